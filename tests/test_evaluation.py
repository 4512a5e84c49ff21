"""Evaluation: test sets that can be made again, honest measuring of folders, tables, searches that
resume, ablations with equal budgets. The metrics themselves: test_metrics.py."""
import csv
import itertools
import json
import math
import resource
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from gfpgan_edu import cli, evaluation
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.engine import TrainingError, config_from, plain
from gfpgan_edu.evaluation import (OLD_PHOTOS, PAPER_ORDER, ROWS, ablation_grid, ablation_table,
                                   apply_method, bootstrap, build_blind, build_colour, build_sr,
                                   counterpart, evaluate, measure_folders, method, row_config,
                                   score_rows, spread, statistics_of, train_rows, verdict,
                                   wrap_real)
from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import Face, template, to_images, to_tensor
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.metrics import Gaussian, Metric, Protocol, frechet, open_metric, psnr, ssim
from gfpgan_edu.pictures import read_image, write_image
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.train_restorer import PRESETS, RestorerConfig, RestorerTrainer
from gfpgan_edu.weights import read_header, save
from train_runs import CONTEXT, faces

quick = settings(max_examples=25, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return faces(tmp_path_factory.mktemp("data") / "clean", 6, 32)


@pytest.fixture
def folder(tmp_path):
    """fill(name, n, noise): a folder of n pictures of 16 px, 00.png, …; the same `name` or not,
    without noise the same pictures."""
    def fill(name, n=6, noise=0.0, size=16, suffix=".png"):
        for i in range(n):
            rng = np.random.default_rng(i)
            coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(float)
            noisy = np.clip(picture + noise * rng.normal(size=picture.shape), 0, 255)
            write_image(tmp_path / name / f"{i:02}{suffix}", noisy.astype(np.uint8))
        return tmp_path / name

    return fill


def stub(label, kind="single", better=1, digits=2, **kw):
    "A metric without a network: mean grey level, mean distance, or the mean colour as features."
    measure = {"single": lambda a: float(a.mean()),
               "pair": lambda a, b: float(np.abs(a.astype(int) - b).mean()),
               "set": lambda a: a.mean((0, 1))}[kind]
    return Metric(label, kind, better, digits, kw.pop("measure", measure), **kw)


@pytest.fixture
def stubs(monkeypatch):
    "`evaluate` and the command open fid, lpips-vgg and deg as cheap functions; all others as ever."
    real = evaluation.open_metrics
    fakes = {"fid": stub("fid", "set", -1), "lpips-vgg": stub("lpips-vgg", "pair", -1, 4),
             "deg": stub("deg", "pair", -1)}

    def open_metrics(names, *args):
        found, missing = real([n for n in names if n not in fakes], *args)
        known = sorted(found + [fakes[n] for n in names if n in fakes], key=lambda m: m.label)
        return known, missing

    monkeypatch.setattr(evaluation, "open_metrics", open_metrics)


def lines(folder):
    return [json.loads(line) for line in (folder / "draws.jsonl").read_text().splitlines()]


def measured(table, name):
    return next(r for r in table.results if r.name == name)


# ---------------------------------------------------------------- test sets

@pytest.mark.parametrize("build, options", [
    (build_blind, dict(draws=2, seed=3, ranges="extreme")),
    (build_colour, dict(seed=5, ranges="severe"))])
def test_a_damaged_set_is_made_again_from_its_log_to_the_last_bit(clean, tmp_path, build, options):
    made = build(clean, tmp_path / "set", 32, **options)
    logged = lines(tmp_path / "set")
    assert made.n == len(logged) == 12 == len({d["file"] for d in logged}) and not made.failed
    for d in logged:
        gt, params = read_image(clean / d["source"]), json.dumps(d["params"])
        damaged = degrade(gt, DegradationParams.from_json(params))
        assert np.array_equal(read_image(tmp_path / "set/gt" / d["file"]), gt)
        assert np.array_equal(read_image(tmp_path / "set/lq" / d["file"]), damaged)
    about = json.loads((tmp_path / "set/testset.json").read_text())
    assert about["pictures"] == 12 and about["seed"] == options["seed"] and about["limit"] is None
    with pytest.raises(ValueError, match="is not empty"):
        build(clean, tmp_path / "set", 32)
    with pytest.raises(ValueError, match="no ranges 'mild'"):
        build(clean, tmp_path / "other", 32, ranges="mild")


def test_a_draw_depends_on_seed_number_and_version_only(clean, tmp_path):
    "Not on limit, on the number of versions, on what other files hold, nor on one that is broken."
    build_blind(clean, tmp_path / "all", 32, seed=1)
    build_blind(clean, tmp_path / "few", 32, seed=1, limit=2)
    build_blind(clean, tmp_path / "two", 32, seed=1, draws=2)
    build_blind(clean, tmp_path / "seed", 32, seed=2)
    other = tmp_path / "changed"
    for i, p in enumerate(sorted(clean.iterdir())):
        write_image(other / p.name, 255 - read_image(p) if i != 4 else read_image(p))
    (other / "01.png").write_bytes(b"no picture")
    made = build_blind(other, tmp_path / "broken", 32, seed=1)
    params = lambda name: {d["file"]: d["params"] for d in lines(tmp_path / name)}
    everything = params("all")
    assert len({json.dumps(v) for v in everything.values()}) == 6
    assert params("few") == {k: everything[k] for k in ("00.png", "01.png")}
    assert {k.replace("_0", ""): v for k, v in params("two").items() if "_0." in k} == everything
    assert params("broken") == {k: v for k, v in everything.items() if k != "01.png"}
    assert [p.name for p, _ in made.failed] == ["01.png"]
    seed, two = params("seed"), params("two")
    assert not any(seed[k] == v for k, v in everything.items())
    assert not any(two[f"{k[:2]}_1.png"] == v for k, v in everything.items())
    assert (tmp_path / "broken/lq/04.png").read_bytes() == (tmp_path / "all/lq/04.png").read_bytes()
    with pytest.raises(ValueError, match="from 1 up"):
        build_blind(clean, tmp_path / "none", 32, draws=0)


def test_pictures_are_brought_to_size_and_those_that_are_not_square_are_left_out(tmp_path):
    for name, shape in (("a", (64, 64)), ("b", (20, 30)), ("c", (16, 16))):
        write_image(tmp_path / "in" / f"{name}.png", np.full((*shape, 3), 90, np.uint8))
    write_image(tmp_path / "in/c.jpg", np.full((16, 16, 3), 90, np.uint8))
    real = lambda source, out, size: wrap_real(source, out, "x", size)
    left_out = [("b.png", "has 30×20 pixels; aligned faces are square"),
                ("c.png", "a picture of this name is in the set already")]
    for build in (build_blind, build_sr, build_colour, real):
        made = build(tmp_path / "in", tmp_path / f"out{id(build)}", 32)
        assert sorted((p.name, why) for p, why in made.failed) == left_out
        assert {read_image(p).shape for p in made.folder.glob("*q/*")} == {(32, 32, 3)}


def test_super_resolution_set(clean, tmp_path):
    def shrink(picture, side):
        x = torch.nn.functional.interpolate(to_tensor(picture), (side, side), mode="bicubic",
                                            antialias=True, align_corners=False)
        return to_images(x)[0]

    build_sr(clean, tmp_path / "sr", 32, factor=4)
    for d in lines(tmp_path / "sr"):
        gt, lr, lq = (read_image(tmp_path / "sr" / k / d["file"]) for k in ("gt", "lr", "lq"))
        assert lr.shape == (8, 8, 3) and np.abs(shrink(gt, 8).astype(int) - lr).max() <= 1
        # Pillow clips after each axis, which shows where it overshoots
        away = np.abs(shrink(lr, 32).astype(int) - lq)
        assert away.max() <= 6 and away.mean() < 0.6
    for factor in (1, 5):
        with pytest.raises(ValueError, match="that divides 32"):
            build_sr(clean, tmp_path / "no", 32, factor=factor)


def test_colour_set_differs_in_colour_alone(clean, tmp_path):
    build_colour(clean, tmp_path / "set", 32, ranges="severe")
    for grey, yellow in zip(*[iter(lines(tmp_path / "set"))] * 2):
        assert grey["source"] == yellow["source"]
        assert (grey["file"][-9:], yellow["file"][-13:]) == ("-grey.png", "-yellowed.png")
        changed = {k for k, v in grey["params"].items() if v != yellow["params"][k]}
        assert changed == {"gray", "shift", "jitter"}
        picture, old = (read_image(tmp_path / "set/lq" / d["file"]).astype(int)
                        for d in (grey, yellow))
        assert np.abs(picture - picture[..., :1]).max() == 0
        assert old[..., 0].mean() - old[..., 2].mean() > 20
    assert set(OLD_PHOTOS) == {"grey", "yellowed"}


def test_real_photos_are_counted_and_cut_out(folder, tmp_path, monkeypatch):
    photos = folder("photos", 3, size=64)
    made = wrap_real(photos, tmp_path / "a", "CelebChild-Test", 32)
    assert "counts 180 faces, here are 3" in made.note
    assert "180 faces" in json.loads((tmp_path / "a/testset.json").read_text())["note"]
    assert wrap_real(photos, tmp_path / "b", "mine", 32).note == ""
    assert wrap_real(photos, tmp_path / "c", "LFW-Test", 32, limit=2).note == ""
    assert not (tmp_path / "a/gt").exists() and len(list((tmp_path / "c/lq").iterdir())) == 2
    monkeypatch.setitem(evaluation.KNOWN, "here", 4)
    found = [[Face((0, 0, 1, 1), 1.0, template(32) + shift) for shift in shifts]
             for shifts in ([0, 8], [], [4])]
    monkeypatch.setattr(evaluation, "detect", lambda image: found.pop(0))
    made = wrap_real(photos, tmp_path / "d", "here", 32, align=True)
    written = sorted(p.name for p in (tmp_path / "d/lq").iterdir())
    assert written == ["00.png", "00_1.png", "02.png"]
    assert made.n == 3 and "4 faces, here are 3" in made.note
    assert [(p.name, why) for p, why in made.failed] == [("01.png", "no face found")]
    whole = read_image(photos / "00.png").astype(int)
    first, second = (read_image(tmp_path / "d/lq" / name) for name in ("00.png", "00_1.png"))
    assert np.abs(first - whole[:32, :32]).max() <= 2
    assert np.abs(second - whole[8:40, 8:40]).max() <= 2


def test_a_face_in_a_photo_is_found_and_aligned(tmp_path):
    from gfpgan_edu.faces import points_in_aligned

    write_image(tmp_path / "in/portrait.jpg", astronaut())
    assert wrap_real(tmp_path / "in", tmp_path / "out", "x", 128, align=True).n == 1
    aligned = read_image(tmp_path / "out/lq/portrait.png")
    assert np.abs(points_in_aligned(aligned) - template(128)).max() < 6


# ---------------------------------------------------------------- measuring folders

def test_faults_are_reported_and_the_rest_is_measured(folder, stubs, tmp_path):
    gt, pred = folder("gt"), folder("pred", noise=12, suffix=".jpg")
    (pred / "01.jpg").unlink()
    write_image(pred / "zz.jpg", np.zeros((16, 16, 3), np.uint8))
    write_image(pred / "02.jpg", np.zeros((16, 18, 3), np.uint8))
    (pred / "03.jpg").write_bytes((pred / "03.jpg").read_bytes()[:300])
    t = evaluate({"x": pred, "input": gt}, gt, metrics=("psnr", "ssim", "deg"), progress=False)
    r = measured(t, "x")
    assert (r.missing, r.extra) == (["01"], ["zz"])
    (wrong, why), (broken, reason) = r.failed
    assert (wrong.name, why) == ("02.jpg", "has 18×16 px, its truth 16×16")
    assert broken.name == "03.jpg" and "cannot be read" in reason
    kept = {s: (read_image(pred / f"{s}.jpg"), read_image(gt / f"{s}.png"))
            for s in ("00", "04", "05")}
    assert r.images == {s: dict(psnr=psnr(a, b), ssim=ssim(a, b),
                                deg=float(np.abs(a.astype(int) - b).mean()))
                        for s, (a, b) in kept.items()}
    assert "x: N = 3, 2 failed, 1 missing, 1 without a truth" in t.notes
    assert "input: N = 6" in t.notes
    cell, mean = t.cells(r)["psnr"], np.mean([psnr(a, b) for a, b in kept.values()])
    assert cell["mean"] == pytest.approx(mean, rel=1e-12) and cell["n"] == 3


def test_a_broken_truth_costs_its_results_and_nothing_else(folder):
    gt, pred, few = folder("gt"), folder("pred", noise=9), folder("few", 2, noise=9)
    (gt / "03.png").write_bytes(b"")
    full, part = measure_folders({"pred": pred, "few": few}, gt, [open_metric("psnr")],
                                 progress=False)
    assert sorted(full.images) == ["00", "01", "02", "04", "05"]
    assert full.failed == [(gt / "03.png", "is empty")]
    assert part.failed == [] and part.missing == ["02", "03", "04", "05"]


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_a_folder_against_itself_is_perfect(folder, stubs, monkeypatch):
    import lpips

    torch.manual_seed(0)
    untrained = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    monkeypatch.setattr(lpips, "LPIPS", lambda **_: untrained)
    gt = folder("gt", size=64)
    names = ("psnr", "ssim", "lpips-alex", "fid", "chroma", "deg[bundled]")
    t = evaluate({"itself": gt}, gt, gt, names, progress=False)
    cells = t.cells(t.results[0])
    assert cells["psnr"] | dict(low=0, high=0) == dict(mean=math.inf, low=0, high=0, n=6)
    assert math.isnan(cells["psnr"]["low"]) and cells["ssim"]["mean"] == 1
    assert cells["lpips-alex"]["mean"] == cells["chroma"]["mean"] == 0
    assert cells["deg[bundled]"]["mean"] < 1e-3 and cells["fid"]["mean"] < 1e-9
    text = evaluate(gt, gt, metrics=("psnr", "ssim"), progress=False).markdown()
    assert "| gt | ∞ | 1.0000 ± 0.0000 |" in text
    noisy = folder("noisy", size=64, noise=20)
    t = evaluate({"noisy": noisy}, gt, gt, ("lpips-alex", "fid"), progress=False)
    assert all(c["mean"] > 1e-4 for c in t.cells(t.results[0]).values())


def test_names(folder, tmp_path):
    """Endings and a suffix do not matter, two ways to write ü neither; two files of one name are
    refused before anything is read."""
    gt, pred, black = folder("gt", 2), tmp_path / "pred", np.zeros((16, 16, 3), np.uint8)
    for i in range(2):
        write_image(pred / f"{i:02}_00.bmp", read_image(gt / f"{i:02}.png"))
    write_image(gt / "u\u0308.png", black)
    write_image(pred / "\u00fc_00.png", black)
    r, = measure_folders({"x": pred}, gt, [open_metric("psnr")], suffix="_00", progress=False)
    assert set(r.images) == {"00", "01", "\u00fc"} and not r.missing + r.extra + r.failed
    write_image(pred / "00.png", black)
    with pytest.raises(ValueError, match="00.png has the same name"):
        evaluate(pred, gt, metrics=("psnr",), suffix="_00", progress=False)
    r, = measure_folders({"x": pred}, pred, [open_metric("psnr")], progress=False)
    assert len(r.images) == 4


def test_results_with_alpha_or_one_channel_are_taken_as_colours(folder):
    gt = folder("gt", 3)
    for i, mode in enumerate(("RGBA", "L", "P")):
        Image.fromarray(read_image(gt / f"{i:02}.png")).convert(mode).save(gt.parent / "p.png")
        (gt.parent / "odd").mkdir(exist_ok=True)
        (gt.parent / "p.png").rename(gt.parent / f"odd/{i:02}.png")
    r, = measure_folders({"odd": gt.parent / "odd"}, gt, [open_metric("psnr")], progress=False)
    assert not r.failed and r.images["00"]["psnr"] == math.inf
    assert math.isfinite(r.images["01"]["psnr"])


def test_folders_that_are_not_there_are_refused_before_the_reference_is_read(
        folder, stubs, tmp_path, monkeypatch):
    gt, unread = folder("gt"), lambda *_: pytest.fail("the reference was read")
    monkeypatch.setattr(evaluation, "statistics_of", unread)
    (tmp_path / "empty").mkdir()
    for name, why in (("none", "no such folder"), ("empty", "no pictures in it")):
        with pytest.raises(ValueError, match=why):
            evaluate({"gt": gt, name: tmp_path / name}, gt, gt, ("fid",), progress=False)
    with pytest.raises(ValueError, match="is no metric"):
        evaluate(gt, gt, gt, ("psmr",), progress=False)


def test_what_cannot_be_measured_is_a_dash_with_a_reason(folder, stubs):
    gt, one = folder("gt", size=8), folder("one", 1, 5, size=8)
    t = evaluate({"gt": gt, "one": one}, gt, gt, ("psnr", "ssim", "fid", "niqe"), progress=False)
    # SSIM needs 11 px, a Fréchet distance two pictures
    assert [c[0] for c in t.columns] == ["fid", "psnr", "ssim"] and set(t.missing) == {"niqe"}
    table = [line.split("|") for line in t.markdown().splitlines() if line.startswith("| ")]
    rows = {cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in table}
    assert rows[""] == ["fid ↓", "psnr ↑", "ssim ↑", "niqe"]
    assert rows["gt"][1:] == ["∞", "–", "–"] and float(rows["gt"][0]) < 1e-6
    assert rows["one"][0] == "–" and "±" not in rows["one"][1]
    told = "\n".join(t.notes)
    assert "gt: ssim not measured on 6 pictures (" in told
    assert "one: fid not measured on 1 pictures (a covariance needs two pictures" in told
    assert "– niqe needs the authors'" in told
    blind = evaluate(gt, None, (), ("psnr", "fid", "colourfulness"), progress=False)
    assert [c[0] for c in blind.columns] == ["colourfulness"]
    assert "psnr needs the truth (gt)" in blind.missing["psnr"]
    assert "needs a reference" in blind.missing["fid"]


def test_features_of_another_length_spoil_their_column_only(folder, stubs, tmp_path):
    gt, other = folder("gt"), Gaussian("fid")
    other.update(np.random.default_rng(0).normal(size=(9, 5)))
    other.save(tmp_path / "fid.npz")
    t = evaluate(gt, gt, tmp_path / "fid.npz", ("psnr", "fid"), progress=False)
    cells = t.cells(t.results[0])
    assert "fid" not in cells and cells["psnr"]["mean"] == math.inf
    assert any("cannot be compared" in n for n in t.notes)


def test_references(folder, stubs, tmp_path):
    """A folder, the file kept of it, and the formula give one number; files go before the folder;
    two for one metric are refused."""
    pred, real, kept = folder("pred", noise=25), folder("real", 5), tmp_path / "kept"
    m, options = stub("fid", "set"), dict(metrics=("fid",), progress=False)
    gather = lambda f, size=None: statistics_of(f, [m], False, size)[0][0]
    for size in (None, 8):
        t = evaluate(pred, reference=real, save_reference=kept, reference_size=size, **options)
        expected = pytest.approx(frechet(gather(pred), gather(real, size)), rel=1e-9)
        assert t.results[0].sets["fid"] == expected and t.cells(t.results[0])["fid"]["n"] == 6
        again = evaluate(pred, reference=kept / "fid.npz", **options)
        assert again.results[0].sets["fid"] == expected
        assert any("5 pictures of real" in n and ("at 8 px" in n) == (size == 8) for n in t.notes)
    assert frechet(gather(real), gather(real, 8)) > 1e-6    # resizing the reference matters
    both = [real, kept / "fid.npz"]
    mixed = evaluate(pred, reference=both, save_reference=tmp_path / "more", **options)
    assert mixed.results[0].sets["fid"] == expected and not (tmp_path / "more").exists()
    for two in ([real, pred], [kept / "fid.npz"] * 2):
        with pytest.raises(ValueError, match="a second"):
            evaluate(pred, reference=two, **options)
    (real / "bad.png").write_bytes(b"x")
    notes = evaluate(pred, reference=real, **options).notes
    assert any(n.startswith("reference ") and "bad.png" in n for n in notes)


def test_a_metric_named_twice_is_one_column(folder, stubs):
    pred, real = folder("pred", noise=25), folder("real", 5)
    once, twice = (evaluate(pred, real, real, names, progress=False)
                   for names in (("fid", "psnr"), ("fid", "psnr", "fid", "psnr")))
    assert twice.columns == once.columns and twice.results[0].sets == once.results[0].sets


def test_small_angles_are_dropped_under_the_vqfr_protocol_and_counted(folder, monkeypatch):
    angles = iter([0.2, 10.0, 0.9, 20.0, 1.0, 30.0] * 2 + [0.5] * 6)
    deg = stub("deg", "pair", -1, measure=lambda a, b: next(angles))
    monkeypatch.setattr(evaluation, "open_metrics", lambda *_: ([deg], {}))
    gt = folder("gt")
    t = evaluate(gt, gt, metrics=("deg",), progress=False)
    assert t.cells(t.results[0])["deg"]["mean"] == pytest.approx(62.1 / 6)
    assert not any("left out" in n for n in t.notes)
    t = evaluate(gt, gt, metrics=("deg",), protocol=Protocol.vqfr(), progress=False)
    cell = t.cells(t.results[0])["deg"]
    assert cell | dict(low=0, high=0) == dict(mean=pytest.approx(61 / 4), low=0, high=0, n=4)
    assert "gt: 2 pairs below 1° left out of deg" in t.notes
    t = evaluate(gt, gt, metrics=("deg",), protocol=Protocol.vqfr(), progress=False)
    assert "deg" not in t.cells(t.results[0]) and "| gt | – |" in t.markdown()
    assert "gt: 6 pairs below 1° left out of deg" in t.notes


def test_the_three_forms_of_a_table_agree(folder, stubs, tmp_path):
    gt, pred, names = folder("gt"), folder("pred", noise=20), ("psnr", "ssim", "fid", "niqe")
    t = evaluate({"a | b": pred, "truth": gt}, gt, gt, names, progress=False)
    for name in ("t.json", "deep/t.csv", "t.md"):
        t.write(tmp_path / name)
    j = json.loads((tmp_path / "t.json").read_text(),
                   parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "deep/t.csv").open())}
    text = (tmp_path / "t.md").read_text()
    for name in ("a | b", "truth"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        for label, _, digits in j["columns"]:
            v = j["methods"][name]["values"][label]
            assert float(rows[name][label]) == float(v["mean"])
            assert int(rows[name][f"{label} n"]) == v["n"] == 6
            assert (rows[name][f"{label} low"] == "") == (v["low"] is None)
            shown = "∞" if v["mean"] == "inf" else f"{v['mean']:.{digits}f}"
            if v["mean"] != "inf" and v["low"] is not None:
                shown += f" ± {(v['high'] - v['low']) / 2:.{digits}f}"
            assert f"| {shown} |" in line
    assert set(j["missing"]) == {"niqe"} and "niqe" not in rows["truth"]
    assert j["notes"] == t.notes and all(f"- {n}" in text for n in t.notes)
    t.write_images(tmp_path / "deep/er/images.csv")
    images = list(csv.DictReader((tmp_path / "deep/er/images.csv").open()))
    ssims = [float(r["ssim"]) for r in images if r["method"] == "a | b"]
    mean = j["methods"]["a | b"]["values"]["ssim"]["mean"]
    assert len(images) == 12 and np.mean(ssims) == pytest.approx(mean, rel=1e-12)
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.md"):
        t.write(tmp_path / "t.xlsx")


# ---------------------------------------------------------------- intervals

def test_intervals_hold_the_true_mean_as_often_as_they_say():
    sample = lambda i: np.random.default_rng([7, i]).gamma(4.0, 2.0, 40)
    for level, low, high in ((0.95, 0.90, 0.97), (0.6, 0.54, 0.65)):
        ends = np.array([bootstrap(sample(i), level, draws=200, seed=i)[1:] for i in range(400)])
        assert low < np.mean((ends[:, 0] < 8) & (8 < ends[:, 1])) < high


@quick
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=60), st.floats(-50, 50),
       st.floats(0.1, 10))
def test_bootstrap_moves_with_the_values(values, shift, scale):
    v = np.array(values)
    mean, low, high = bootstrap(v, draws=100)
    assert v.min() - 1e-9 <= low <= high <= v.max() + 1e-9
    assert mean == v.mean() and bootstrap(v, draws=100) == (mean, low, high)
    moved = tuple(scale * x + shift for x in (mean, low, high))
    assert bootstrap(scale * v + shift, draws=100) == pytest.approx(moved, abs=1e-6)


def test_where_there_is_no_interval():
    for values in ([3.0], [1.0, math.inf], [1.0, math.nan]):
        assert np.isnan(bootstrap(values)[1:]).all()
    assert bootstrap([3.0])[0] == 3 and bootstrap([1.0, math.inf])[0] == math.inf
    assert math.isnan(bootstrap([])[0]) and bootstrap([2.0, 2.0, 2.0]) == (2, 2, 2)
    n = 2000
    v = np.random.default_rng(0).normal(size=n)
    _, low, high = bootstrap(v)
    assert (high - low) / 2 == pytest.approx(1.96 * v.std() / n**0.5, rel=0.05)


# ---------------------------------------------------------------- methods

def test_a_method_goes_on_where_it_was_broken_off(folder, tmp_path):
    """Batches are repeated whole, so that the result of one that looks at its place in the batch is
    that of a run without a break."""
    lq, out, about, seen = folder("lq", 7), tmp_path / "out", dict(method="place", size=16), []

    def restore(images):
        if len(seen) == 2:
            raise RuntimeError("power cut")
        seen.append(len(images))
        return images + np.arange(len(images), dtype=np.uint8)[:, None, None, None]

    with pytest.raises(RuntimeError):
        apply_method(restore, about, lq, out, batch=3, progress=False)
    assert len(list(out.glob("*.png"))) == 6
    (out / "05.png").unlink()
    seen.append(0)
    failed = apply_method(restore, about, lq, out, batch=3, progress=False)
    assert failed == [] and seen == [3, 3, 0, 3, 1]
    for i in range(7):
        restored, picture = (read_image(f / f"{i:02}.png") for f in (out, lq))
        assert np.array_equal(restored, picture + i % 3)
    kept = json.loads((out / "method.json").read_text())
    assert kept["method"] == "place" and kept["pictures"] == 10
    assert kept["seconds_per_picture"] >= 0 and kept["batch"] == 3
    before = (out / "method.json").read_bytes()
    apply_method(lambda _: pytest.fail("all is done"), about, lq, out, batch=3, progress=False)
    assert (out / "method.json").read_bytes() == before


def test_a_method_refuses_wrong_sizes_its_own_inputs_and_another_methods_folder(folder, tmp_path):
    lq, out = folder("lq", 3), tmp_path / "out"
    about = dict(method="m", size=16, settings=dict(steps=3, crops=(1, 2)))
    write_image(lq / "big.png", np.zeros((16, 32, 3), np.uint8))
    (lq / "bad.png").write_bytes(b"")
    same = lambda images: images
    failed = apply_method(same, about, lq, out, progress=False)
    assert sorted((p.name, why) for p, why in failed) == [
        ("bad.png", "is empty"), ("big.png", "has 32×16 px, m restores 16×16")]
    assert sorted(p.name for p in out.glob("*.png")) == ["00.png", "01.png", "02.png"]
    assert len(apply_method(same, about, lq, out, progress=False)) == 2
    for other in (about | dict(method="n"), about | dict(settings=dict(steps=4, crops=(1, 2)))):
        with pytest.raises(ValueError, match="holds results of method m"):
            apply_method(same, other, lq, out, progress=False)
    with pytest.raises(ValueError, match="overwrite the inputs"):
        apply_method(same, about, lq, lq.parent / "out" / ".." / "lq", progress=False)
    with pytest.raises(ValueError, match="no such folder"):
        apply_method(same, about, tmp_path / "none", tmp_path / "x", progress=False)


def test_methods_by_name(tmp_path):
    net = GFPGAN(GFPGANConfig.tiny(16)).eval()
    save(net, tmp_path / "own.safetensors")
    save(StyleGAN2(16, 16, 2, narrow=1 / 32), tmp_path / "prior.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    restore, about = method(tmp_path / "own.safetensors")
    assert json.loads(json.dumps(about)) == dict(method=str(tmp_path / "own.safetensors"), size=16)
    with torch.no_grad():
        assert np.array_equal(restore(images), to_images(net(to_tensor(images))[0]))
    for name, options in (("pulse", dict(steps=2, lr="1e-1")),
                          ("mganprior", dict(steps=2, n=2, block=0))):
        restore, about = method(name, tmp_path / "prior.safetensors", **options)
        out = restore(images)
        assert out.shape == images.shape and out.dtype == np.uint8
        assert np.array_equal(out, restore(images))
        assert about["size"] == 16 and about["settings"]["steps"] == 2
    for odd in (dict(x=3), dict(step=3), dict(prior="p"), dict(name="n"), dict(size=16)):
        with pytest.raises(ValueError, match="pulse has no setting"):
            method("pulse", **odd)
    for odd in (dict(steps="many"), dict(steps=2.5), dict(lr="fast"), dict(steps=True)):
        with pytest.raises(ValueError, match="pulse: .* needs (int|a finite number)"):
            method("pulse", tmp_path / "prior.safetensors", **odd)
    with pytest.raises(ValueError, match="is a network, it has no setting steps"):
        method("bundled", steps=3)


# ---------------------------------------------------------------- what the prior invented

def test_spread():
    net = GFPGAN(GFPGANConfig.tiny(16)).eval()
    x = torch.rand(3, 16, 16) * 1.6 - 0.8
    state = torch.random.get_rng_state()
    assert spread(net, x, 4)[1].max() == 0                  # a new net: strengths are zero
    for m in net.decoder.synthesis.convs:
        m.noise_strength.data.fill_(0.1)
    mean, noisy = spread(net, x, 6)
    assert mean.shape == x.shape and noisy.shape == (16, 16)
    assert noisy.mean() > 0.01 and noisy.min() >= 0
    assert torch.equal(noisy, spread(net, x, 6)[1])
    assert not torch.equal(noisy, spread(net, x, 6, seed=1)[1])
    assert torch.equal(state, torch.random.get_rng_state())
    near, nearer = spread(net, x, 6, nearby=0.2)[1].mean(), spread(net, x, 6, nearby=0.1)[1].mean()
    assert 1.8 < near / nearer < 2.2
    plain_net = GFPGAN(GFPGANConfig.tiny(16).replace(use_prior=False)).eval()
    assert spread(plain_net, x, 3)[1].max() == 0 < spread(plain_net, x, 3, nearby=1.0)[1].max()

    class Echo(torch.nn.Module):
        def forward(self, x, noise):
            return 0.5 * x, []

    _, deviation = spread(Echo(), torch.zeros(3, 64, 64), 200, nearby=4.0)
    assert deviation.mean().item() == pytest.approx(2, rel=0.03)    # grey levels, by the formula
    with pytest.raises(ValueError, match="needs two"):
        spread(net, x, 1)


# ---------------------------------------------------------------- ablations

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=4)


@quick
@given(scores, scores, st.sampled_from([1, -1]))
def test_verdict(row, full, better):
    wins = [better * (a - b) for a in row for b in full]
    expected = 1 if min(wins) > 0 else -1 if max(wins) < 0 else 0
    assert verdict(row, full, better) == expected
    assert -verdict(full, row, better) == -verdict(row, full, -better) == expected


@pytest.mark.parametrize("n", [1, 2, 3])
def test_how_often_chance_makes_a_verdict(n):
    deals = list(itertools.combinations(range(2 * n), n))
    rest = lambda deal: [k for k in range(2 * n) if k not in deal]
    made = sum(verdict(deal, rest(deal), 1) != 0 for deal in deals)
    assert made / len(deals) == pytest.approx(2 / math.comb(2 * n, n))


@pytest.mark.parametrize("preset", ["faces32", "paper", "tiny"])
def test_a_row_changes_what_it_says_and_nothing_else(preset):
    base = PRESETS[preset]()
    full, asked = plain(row_config(base, "full", seed=3, iterations=500)), plain(base)
    k = 500 / base.run.iterations
    moved = dict(seed=3, iterations=500, valid_every=500, save_every=125, keep=1)
    milestones = [max(1, round(m * k)) for m in base.milestones]
    until = max(1, round(base.loss.pyramid_until * k))
    assert full == asked | dict(run=asked["run"] | moved, milestones=milestones,
                                loss=asked["loss"] | dict(pyramid_until=until))
    no_prior = dict(model=dict(use_prior=False), freeze_prior=False)
    off = dict(component=0.0, feature_style=0.0)
    l1 = off | dict(adversarial=0.0, feature_matching=0.0, perceptual=0.0, style=0.0, identity=0.0)
    matching = pytest.approx(0.0075 * base.loss.feature_style)
    expected = {
        "full": {},
        "a": dict(model=dict(sft="none")),
        "b": dict(model=dict(sft="full")),
        "c": no_prior,
        "d": dict(loss=dict(pyramid=0.0)),
        "no-parts": dict(loss=off),
        "D": dict(loss=dict(feature_style=0.0)),
        "D+fm": dict(loss=dict(feature_style=0.0, feature_matching=matching)),
        "l1": no_prior | dict(loss=l1),
    }
    assert set(expected) == set(ROWS)
    for row, changes in expected.items():
        c = row_config(base, row, seed=3, iterations=500)
        changed = {key: full[key] | v if isinstance(full[key], dict) else v
                   for key, v in changes.items()}
        assert plain(c) == full | changed, row
        assert config_from(RestorerConfig, plain(c)) == c
    n = base.run.iterations
    moved = dict(seed=0, iterations=n, valid_every=n, save_every=n // 4)
    assert plain(row_config(base, "full")) == full | dict(
        run=full["run"] | moved, milestones=list(base.milestones), loss=asked["loss"])


BASE = RestorerConfig.tiny()
BASE = replace(BASE, model=GFPGANConfig(size=16, style_dim=16, n_mlp=2, narrow=1 / 32),
               narrow_d=1 / 32, run=replace(BASE.run, batch=2, log_every=1, channels_last=False))


def run(clean, out, said=None, **changes):
    say = (lambda s: None) if said is None else said.append
    usual = dict(rows=("full", "l1"), seeds=1, iterations=2, device="cpu", say=say)
    return train_rows(BASE, clean, out, **usual | changes)


def test_every_row_sees_the_same_pictures_and_damage(clean):
    fed = {}
    for row, seed in itertools.product(ROWS, (0, 1)):
        trainer = RestorerTrainer(row_config(BASE, row, seed, 4), clean, device="cpu")
        fed[row, seed] = [b for _, b in zip(range(4), trainer.loader())]
    for (row, seed), batches in fed.items():
        for b, f in zip(batches, fed["full", seed]):
            assert all(torch.equal(b[k], f[k]) for k in ("lq", "gt", "index")), row
    first, second = (torch.cat([b["lq"] for b in fed["full", seed]]) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_rows_go_on_and_end_as_if_nothing_had_happened(clean, tmp_path, monkeypatch):
    """Stopped inside a row (which leaves weights of too few iterations), and killed between two;
    then more seeds and another row."""
    straight, said = run(clean, tmp_path / "straight", iterations=4), []
    step, count = RestorerTrainer.iteration, []

    def stop_at_second(trainer, batch):
        step(trainer, batch)
        count.append(trainer.it)
        if len(count) == 2:
            trainer.stop = "interrupted"

    monkeypatch.setattr(RestorerTrainer, "iteration", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(clean, tmp_path / "cut", said, iterations=4)
    early = tmp_path / "cut/full-s0/ema.safetensors"
    assert read_header(early)["iterations"] == "2" and said == ["full-s0: 4 iterations"]

    def killed(trainer, *_):
        if "l1" in trainer.out.name:
            raise MemoryError
        return fit(trainer)

    fit = RestorerTrainer.fit
    monkeypatch.setattr(RestorerTrainer, "fit", killed)
    with pytest.raises(MemoryError):
        run(clean, tmp_path / "cut", said, iterations=4)
    monkeypatch.setattr(RestorerTrainer, "fit", fit)
    count[:] = [0] * 9
    folders = run(clean, tmp_path / "cut", said, iterations=None)       # the budget is remembered
    assert said == ["full-s0: 4 iterations"] * 2 + ["l1-s0: 4 iterations"] * 2
    assert list(folders) == list(straight)
    for key, folder in folders.items():
        ours, theirs = (load_file(f / "ema.safetensors") for f in (folder, straight[key]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    more = run(clean, tmp_path / "cut", said, seeds=2, rows=("full", "d"), iterations=None)
    assert said[4:] == ["d-s0: 4 iterations", "full-s1: 4 iterations", "d-s1: 4 iterations"]
    assert set(more) == {(r, s) for r in ("full", "d") for s in (0, 1)}
    budget = yaml.safe_load((tmp_path / "cut/budget.yaml").read_text())
    assert budget["seeds"] == 2 and budget["iterations"] == 4 and budget["pictures"] == 6
    assert config_from(RestorerConfig, budget["config"]) == BASE


def test_a_time_limit_stops_with_a_checkpoint_and_the_rest_follows(clean, tmp_path, monkeypatch):
    straight = run(clean, tmp_path / "straight", iterations=3)
    assert run(clean, tmp_path / "cut", iterations=3, minutes=0) == {}
    assert not list((tmp_path / "cut").glob("*-s0"))
    fit, given = RestorerTrainer.fit, []

    def second_row_meets_the_end(trainer, minutes):
        given.append(minutes)
        return fit(trainer, 0 if trainer.out.name == "l1-s0" else minutes)

    monkeypatch.setattr(RestorerTrainer, "fit", second_row_meets_the_end)
    first = run(clean, tmp_path / "cut", iterations=None, minutes=5)
    assert list(first) == [("full", 0)] and 5 > given[0] > given[1] > 0
    early = tmp_path / "cut/l1-s0/ema.safetensors"
    assert int(read_header(early)["iterations"]) < 3
    monkeypatch.undo()
    for key, folder in run(clean, tmp_path / "cut", iterations=None).items():
        ours, theirs = (load_file(f / "ema.safetensors") for f in (folder, straight[key]))
        assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_another_experiment_is_refused(clean, folder, tmp_path):
    out = tmp_path / "out"
    run(clean, out, rows=("l1",), iterations=1)
    for data, changes in ((clean, dict(iterations=2)), (folder("other", 3, size=32), {})):
        with pytest.raises(TrainingError, match="another config, budget or number"):
            run(data, out, rows=("l1",), **changes)
    with pytest.raises(TrainingError, match="another config"):
        train_rows(replace(BASE, lr=1e-3), clean, out, ("l1",), 1, iterations=1, device="cpu")
    # damaged weights are made anew from the checkpoint
    (out / "l1-s0/ema.safetensors").write_bytes(b"half")
    again = run(clean, out, rows=("l1",), iterations=1)
    assert read_header(again["l1", 0] / "ema.safetensors")["iterations"] == "1"


def test_the_budget_is_the_speed_of_the_full_row(clean, tmp_path, monkeypatch):
    clock = iter(np.cumsum([0.0] + [0.5, 0.0] * 40))
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    built = []

    def trainer(config, *args, **options):
        built.append(config)
        return RestorerTrainer(config, *args, **options)

    monkeypatch.setattr(evaluation, "RestorerTrainer", trainer)
    monkeypatch.setattr(RestorerTrainer, "iteration", lambda self, batch: None)
    # two minutes of half a second
    assert evaluation._measured(BASE, clean, 2.0, "cpu") == 240
    assert built == [row_config(BASE, "full")]


@pytest.fixture(scope="module")
def scored(clean, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation")
    torch.set_num_threads(1)
    folders = run(clean, out, rows=("full", "a", "l1"), seeds=2)
    result = score_rows(folders, BASE, clean, (), out, ("psnr", "ssim", "niqe"), progress=False)
    return folders, out, result


def test_rows_are_scored_on_one_set(clean, scored):
    folders, out, result = scored
    gt = {p.stem: read_image(p) for p in (out / "test/gt").iterdir()}
    lq = {p.stem: read_image(p) for p in (out / "test/lq").iterdir()}
    assert len(gt) == 6
    for d in lines(out / "test"):
        stem, params = d["file"][:2], DegradationParams.from_json(json.dumps(d["params"]))
        assert np.array_equal(degrade(gt[stem], params), lq[stem])
    for (row, seed), folder in folders.items():
        restore, _ = method(folder / "ema.safetensors")
        shown = {s: restore(x[None])[0] for s, x in lq.items()}
        stored = {s: read_image(folder / f"restored/{s}.png") for s in lq}
        assert max(np.abs(stored[s].astype(int) - v).max() for s, v in shown.items()) <= 1
        mean = np.mean([psnr(stored[s], gt[s]) for s in gt])
        assert result["rows"][row]["psnr"][seed] == pytest.approx(mean, rel=1e-12)
    mean = np.mean([ssim(lq[s], gt[s]) for s in gt])
    assert result["input"]["ssim"] == pytest.approx(mean, rel=1e-12)
    assert set(result["input"]) == {"psnr", "ssim"}
    full = result["rows"]["full"]
    for row in ("a", "l1"):
        verdicts = {k: verdict(v, full[k], 1) for k, v in result["rows"][row].items()}
        assert result["verdicts"][row] == verdicts
    assert json.loads((out / "ablation.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "table.md").read_text() == ablation_table(result)
    images = list(csv.DictReader((out / "per_image.csv").open()))
    methods = {"Input", *(f"{r}-s{s}" for r, s in folders)}
    assert len(images) == 6 * 7 and {r["method"] for r in images} == methods
    sheet = ablation_grid(out, ("full", "l1"), seed=1, faces=3, scale=2)
    assert sheet.shape == (3 * 32, 4 * 32, 3) and sheet.dtype == np.uint8
    strip = np.concatenate([lq["00"], read_image(out / "full-s0/restored/00.png"), gt["00"]], 1)
    assert np.array_equal(ablation_grid(out, ("full",), faces=1, scale=1), strip)


def test_a_second_score_uses_the_same_set_and_refuses_another(clean, folder, scored, monkeypatch):
    folders, out, result = scored
    monkeypatch.setattr(evaluation, "build_blind", lambda *a, **k: pytest.fail("the set is there"))
    again = score_rows(folders, BASE, clean, (), out, ("psnr", "ssim", "niqe"), progress=False)
    assert again == result
    for valid, limit in ((clean, 3), (folder("others", 7), None)):
        if limit is None:
            (valid / "zz.png").write_bytes(b"")
            for p in sorted(valid.glob("0[0-2].png")):
                p.unlink()
        with pytest.raises(ValueError, match="other faces or with other settings"):
            score_rows(folders, BASE, valid, (), out, ("psnr",), limit=limit, progress=False)


def test_a_set_that_was_broken_off_is_made_anew(clean, tmp_path, monkeypatch):
    n, real = [], evaluation.degrade

    def cut(*args):
        n.append(1)
        if len(n) == 3:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(evaluation, "degrade", cut)
    with pytest.raises(MemoryError):
        score_rows({}, BASE, clean, (), tmp_path, ("psnr",), progress=False)
    assert not (tmp_path / "test").exists()
    result = score_rows({}, BASE, clean, (), tmp_path, ("psnr",), progress=False)
    assert len(list((tmp_path / "test/lq").iterdir())) == 6
    assert result["rows"] == {} and "| input |" in ablation_table(result)


def test_a_reference_folder_is_brought_to_the_size_of_the_network(clean, tmp_path, monkeypatch):
    asked = []

    def spy(*args, **options):
        asked.append(options["reference_size"])
        return evaluate(*args, **options)

    monkeypatch.setattr(evaluation, "evaluate", spy)
    score_rows({}, BASE, clean, clean, tmp_path, ("psnr",), progress=False)
    assert asked == [16]


def test_the_text_of_an_ablation():
    columns = [["psnr", 1, 2], ["deg[x]", -1, 1]]
    rows = dict(full={"psnr": [20.0, 21.0], "deg[x]": [30.0, 31.0]},
                b={"psnr": [22.0, 23.0], "deg[x]": [30.5, 40.0]})
    result = dict(rows=rows, input={"psnr": 19.0, "deg[x]": 35.0},
                  verdicts=dict(b={"psnr": 1, "deg[x]": 0}), paper=PAPER_ORDER,
                  table=dict(columns=columns, notes=["a note"]))
    text = ablation_table(result).splitlines()
    assert text[0] == "| | psnr ↑ | deg[x] ↓ | paper |"
    assert text[2] == "| input | 19.00 | 35.0 | |"
    assert text[4] == ("| b) SFT on all channels | 22.50 (22.00 … 23.00) ▲ | 35.2 (30.5 … 40.0) "
                       "| LPIPS▼ FID▼ NIQE▼ Deg▲ |")
    assert "33 % of cells" in text[6] and text[7] == "- a note"
    known = {"psnr": None, "lpips-vgg": "LPIPS", "perceptual[efficientnet-lite1]": "LPIPS",
             "frechet[x]": "FID", "fid": "FID", "deg[dlib]": "Deg", "niqe[own]": "NIQE"}
    assert {label: counterpart(label) for label in known} == known


def test_shipped_results_have_the_form_that_the_book_reads():
    path = Path(__file__).parent.parent / "figures/ablation/table4.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert ablation_table(stored).count("\n| ") >= len(ROWS)
    assert set(stored["rows"]) == set(ROWS) and stored["paper"] == PAPER_ORDER


# ---------------------------------------------------------------- memory

def _peak(args, sender):
    evaluate(args[0], args[1], metrics=("psnr",), progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send(peak * (1 if sys.platform == "darwin" else 1024))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / "one.png", picture.repeat(8, 0).repeat(8, 1))
    data, peaks = (tmp_path / "one.png").read_bytes(), []
    for n in (20, 60):
        folders = tmp_path / f"pred{n}", tmp_path / f"gt{n}"
        for folder in folders:
            folder.mkdir()
            for i in range(n):
                (folder / f"{i:02}.png").write_bytes(data)
        receiver, sender = CONTEXT.Pipe(False)
        p = CONTEXT.Process(target=_peak, args=(folders, sender))
        p.start()
        assert receiver.poll(120)
        peaks.append(receiver.recv())
        p.join()
    grown = peaks[1] - peaks[0]
    assert grown < 20e6, f"40 more pairs of 1.6 MB took {grown / 1e6:.0f} MB"


# ---------------------------------------------------------------- the command

def call(capsys, *args):
    "(exit code, stdout, lines of stderr) of the command."
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return e.value.code, out, err.splitlines()


def test_command_evaluate(capsys, folder, stubs, tmp_path):
    gt, pred = folder("gt"), folder("pred", noise=9)
    text, table, images = (tmp_path / name for name in ("t.md", "t.json", "i.csv"))
    code, out, err = call(capsys, "evaluate", "--pred", pred, f"Truth={gt}", "--gt", gt,
                          "--reference", gt, "--metrics", "psnr", "fid", "--out", text, table,
                          "--per-image", images)
    assert code == 0 and out == text.read_text() and not err and "| Truth | " in out
    assert set(json.loads(table.read_text())["methods"]) == {"pred", "Truth"}
    assert len(images.read_text().splitlines()) == 13
    line = ("evaluate", "--pred", pred, "--gt", gt)
    # nothing is replaced unasked, and nothing measured in vain
    for there in ("--out", tmp_path / "new.md", table), ("--per-image", images):
        code, out, err = call(capsys, *line, "--metrics", "psnr", *there)
        assert code == 2 and not out and len(err) == 1
        assert "exists; --force replaces it" in err[0] and not (tmp_path / "new.md").exists()
    before = table.read_text()
    assert call(capsys, *line, "--metrics", "psnr", "--out", table, "--force")[0] == 0
    assert table.read_text() != before
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "fid.npz").touch()
    code, out, err = call(capsys, *line, "--reference", gt, "--metrics", "fid",
                          "--save-reference", kept)
    assert code == 2 and "holds statistics already" in err[0]
    assert not (kept / "fid.npz").stat().st_size
    (pred / "00.png").unlink()
    (pred / "01.png").write_bytes(b"")
    code, out, err = call(capsys, *line, "--metrics", "psnr", "niqe", "--protocol", "vqfr")
    assert code == 1 and "after matching" in out and "pred: N = 4, 1 failed, 1 missing" in out
    assert len(err) == 3 and all(e.startswith("gfpgan-edu: ") for e in err)
    assert any("niqe needs" in e for e in err) and any(e.endswith("01.png: is empty") for e in err)
    assert "gfpgan-edu: pred: no result for 00" in err
    for p in pred.iterdir():
        p.write_bytes(b"")
    assert call(capsys, *line, "--metrics", "psnr")[0] == 2
    for args, why in ((("--pred", tmp_path / "none"), "no such folder"),
                      (("--pred", gt, "--out", "t.xls"), ".json, .csv or .md"),
                      (("--pred", gt, gt), "the same name"),
                      (("--pred", gt, "--metrics", "beauty"), "is no metric"),
                      (("--pred", gt, "--reference", tmp_path / "r.npz"), "r.npz")):
        code, out, err = call(capsys, "evaluate", "--gt", gt, *args)
        assert code == 2 and not out and len(err) == 1 and why in err[0]


def test_command_testset_and_baseline(capsys, clean, tmp_path):
    prior, made = tmp_path / "prior/p.safetensors", tmp_path / "set"
    prior.parent.mkdir()
    save(StyleGAN2(32, 16, 2, narrow=1 / 32), prior)
    code, out, _ = call(capsys, "testset", "blind", clean, "--out", made, "--size", "32",
                        "--ranges", "severe", "--limit", "3")
    assert code == 0 and "3 pictures in" in out and len(lines(made)) == 3
    code, _, err = call(capsys, "testset", "sr", clean, "--out", made, "--size", "32")
    assert code == 2 and "is not empty" in err[0] and len(err) == 1
    line = ("baseline", "pulse", "--prior", prior, "--out", tmp_path / "pulse",
            "--device", "cpu", "--lq", made / "lq", "--set")
    code, out, _ = call(capsys, *line, "steps=2", "factor=4")
    assert code == 0 and "3 restored faces" in out
    kept = json.loads((tmp_path / "pulse/method.json").read_text())
    assert kept["settings"] == dict(steps=2, factor=4)
    for setting, why in (("steps=3", "holds results of"), ("stops=2", "no setting stops"),
                         ("steps=few", "needs int"), ("device=cpu", "there is --device")):
        code, _, err = call(capsys, *line, setting)
        assert code == 2 and len(err) == 1 and why in err[0]
    mixed = clean.parent / "mixed"
    mixed.mkdir()
    write_image(mixed / "a.png", np.zeros((32, 32, 3), np.uint8))
    (mixed / "b.png").write_bytes(b"")
    code, _, err = call(capsys, "testset", "real", mixed, "--out", tmp_path / "real",
                        "--size", "32")
    assert code == 1 and err == [f"gfpgan-edu: {mixed / 'b.png'}: is empty"]


def test_command_ablate(capsys, clean, tmp_path):
    setting = ["model.size=16", "model.style_dim=16", "model.narrow=0.03125", "narrow_d=0.03125",
               "prior=random", "freeze_prior=false", "run.batch=2"]
    made, rows = tmp_path / "run", ("--rows", "full", "d")
    line = ("ablate", "--preset", "tiny", "--data", clean, "--valid", clean, "--out", made,
            "--seeds", "1", "--device", "cpu", "--metrics", "psnr", "--set", *setting)
    code, out, _ = call(capsys, *line, "--iterations", "2", *rows, "--minutes", "0")
    assert code == 0 and not (made / "table.md").exists()
    assert out == "stopped: 0 of 2 runs are finished; the same command goes on\n"
    code, out, err = call(capsys, *line, "--iterations", "2", *rows)
    assert code == 0 and (made / "table.md").read_text() in out
    assert out.splitlines()[:2] == ["full-s0: 2 iterations", "d-s0: 2 iterations"]
    written = {p.name for p in made.iterdir()}
    assert {"fig6.png", "fig7.png", "ablation.json", "per_image.csv"} <= written
    assert read_image(made / "fig6.png").shape == (6 * 48, 4 * 48, 3)
    code, out, _ = call(capsys, *line, *rows)
    assert code == 0 and "iterations" not in out.splitlines()[0]
    for args, why in ((("--rows", "x"), "no row x"),
                      (("--iterations", "3"), "another config, budget"),
                      (("--rows", "full", "--limit", "2"), "other faces")):
        code, _, err = call(capsys, *line, *args)
        assert code == 2 and len(err) == 1 and why in err[0]

"""The commands `prepare` and `train`: configs from presets, files and folders; errors in one line;
a run from the command to the weights."""
import json
import tempfile

import numpy as np
import pytest
import torch
import yaml
from test_cli import call

from gfpgan_edu import train_prior, train_restorer
from gfpgan_edu.cli import DONE, NOTHING_DONE, SOME_FAILED, parse
from gfpgan_edu.engine import plain
from gfpgan_edu.examples import astronaut
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.pictures import read_image, write_image
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.weights import load, save

TINY = ["--preset", "tiny", "--device", "cpu"]


@pytest.fixture
def faces(tmp_path):
    folder, rng = tmp_path / "faces", np.random.default_rng(0)
    for i in range(6):
        write_image(folder / f"{i}.png", rng.integers(0, 255, (16, 16, 3), np.uint8))
    return folder


def test_prepare(tmp_path, capsys):
    photos = tmp_path / "photos"
    write_image(photos / "a.png", astronaut())
    (photos / "b.jpg").write_text("no picture")
    code, out, err = call(capsys, "prepare", photos, "--out", tmp_path / "faces", "--size", 64)
    assert code == SOME_FAILED and len([line for line in err if "b.jpg" in line]) == 1
    assert out.startswith("1 faces written into")
    assert json.loads((tmp_path / "faces/manifest.jsonl").read_text())["size"] == 64
    code, out, err = call(capsys, "prepare", photos, "--out", tmp_path / "faces", "--size", 64)
    assert "1 pictures done before" in out
    code, out, err = call(capsys, "prepare", tmp_path / "nowhere", "--out", tmp_path / "x")
    assert code == NOTHING_DONE and len(err) == 1 and "nowhere" in err[0]


def test_compression_makes_files_smaller_and_changes_no_pixel(tmp_path, capsys):
    write_image(tmp_path / "photos/a.png", astronaut()[:256, 100:356])
    for n in (0, 9):
        words = ["--out", tmp_path / str(n), "--size", 64, "--aligned", "--compression", n]
        assert call(capsys, "prepare", tmp_path / "photos", *words)[0] == DONE
    large, small = (tmp_path / n / "a.png" for n in "09")
    assert small.stat().st_size < 0.9 * large.stat().st_size
    np.testing.assert_array_equal(read_image(small), read_image(large))


def test_train_prior_is_train_with_prior():
    words = ["--preset", "tiny", "--data", "a", "--out", "b", "--set", "run.batch=2",
             "--minutes", "3", "--dry-run"]
    prior = vars(parse(["train", "prior", *words]))
    assert vars(parse(["train-prior", *words])) == prior != vars(parse(["train", *words]))


@pytest.mark.parametrize("what, presets", [("restorer", train_restorer.PRESETS),
                                           ("prior", train_prior.PRESETS)])
def test_every_preset_prints_its_config_and_reads_it_back(what, presets, tmp_path, capsys):
    words = ["--data", "x", "--out", tmp_path / "run", "--show-config"]
    for name, preset in presets.items():
        code, out, _ = call(capsys, "train", what, "--preset", name, *words)
        assert code == DONE and yaml.safe_load(out) == plain(preset())
        assert not (tmp_path / "run").exists()
        (tmp_path / "c.yaml").write_text(out)
        again = yaml.safe_load(call(capsys, "train", what, "--config", tmp_path / "c.yaml", *words,
                                    "--set", "run.batch=7", "lr=1e-4")[1])
        assert again["run"]["batch"] == 7 and again["lr"] == 1e-4


@pytest.mark.parametrize("args, words", [
    ([], "--preset is missing"),
    (["--preset", "tinny"], "tinny"),
    ([*TINY, "--set", "run.bach=3"], "run.bach"),
    ([*TINY, "--set", "run.batch=many"], "run.batch is 'many'"),
    ([*TINY, "--set", "loss=1"], "loss"),
    ([*TINY, "--set", "prior="], "no prior is named"),
    ([*TINY, "--set", "embedder=", "loss.identity=1"], "no embedder is named"),
    ([*TINY, "--set", "loss.perceptual=1"], "no features is named"),
    ([*TINY, "--set", "freeze_prior=true"], "freeze_prior"),
    ([*TINY, "--prior", "nowhere.pth"], "nowhere.pth"),
    ([*TINY, "--prior", "bundled"], "does not fit"),
    ([*TINY, "--set", "run.batch=3", "run.accumulate=2"], "cannot be shared"),
    ([*TINY, "--init-from", "nobody"], "nobody"),
    ([*TINY, "--set", "boxes=manifest"], "manifest"),
    (["--config", "broken.yaml"], "broken.yaml: not YAML")])
def test_what_cannot_start_is_one_line_and_2(args, words, faces, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("run: {batch: [")
    code, out, err = call(capsys, "train", "--data", faces, "--out", tmp_path / "run", *args)
    assert code == NOTHING_DONE and out == "" and len(err) == 1 and words in err[0], err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "missing", tmp_path / "empty"):
        code, _, err = call(capsys, "train", *TINY, "--data", data, "--out", tmp_path / "run")
        assert code == NOTHING_DONE and len(err) == 1 and data.name in err[0]


SMALL = ["--set", "model.size=16", "run.iterations=2", "run.batch=2", "run.log_every=1",
         "run.valid_every=2", "run.channels_last=false", "embedder=random"]


def test_a_run_from_the_command_to_the_weights(faces, tmp_path, capsys):
    run = tmp_path / "run"
    code, out, err = call(capsys, "train", *TINY, "--data", faces, "--out", run, *SMALL)
    assert code == DONE and "done at iteration 2 of 2" in out
    net = load(run / "ema.safetensors")
    assert net.config.size == 16
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["batch"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in lines if "pixel" in r] == [1, 2]
    assert [r["iteration"] for r in lines if "valid_psnr" in r] == [0, 2]
    assert (run / "valid-00000002.png").exists() and list((run / "tensorboard").iterdir())
    # the run's own config
    words = ["--set", "run.iterations=3", "--device", "cpu"]
    code, out, _ = call(capsys, "train", "--data", faces, "--out", run, *words)
    assert code == DONE and "done at iteration 3" in out
    words = [*TINY, "--data", faces, "--out", run, *SMALL, "loss.pixel=0.5"]
    code, _, err = call(capsys, "train", *words)
    assert code == NOTHING_DONE and "loss.pixel was 1.0, is 0.5" in err[-1]


def test_fine_tuning_takes_the_config_of_the_weights(faces, tmp_path, capsys):
    torch.manual_seed(0)
    old = GFPGAN(GFPGANConfig(size=16, style_dim=8, n_mlp=1, narrow=1 / 32, resample="bilinear"))
    save(old, tmp_path / "old.safetensors")
    words = [*TINY, "--data", faces, "--out", tmp_path / "run",
             "--init-from", tmp_path / "old.safetensors", *[s for s in SMALL if "size" not in s],
             "run.iterations=1", "lr=1e-30"]
    code, out, err = call(capsys, "train", *words)
    assert code == DONE, err
    new = load(tmp_path / "run/ema.safetensors")
    assert new.config == old.config
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b)        # at this learning rate nothing moves


def test_a_prior_is_trained_and_taken_up_by_the_restorer(faces, tmp_path, capsys):
    size = ["size=16", "style_dim=8", "n_mlp=1", "narrow=0.03125"]
    words = [*TINY, "--data", faces, "--out", tmp_path / "prior", "--set", *size,
             "run.iterations=2", "run.batch=2", "path_every=2", "r1_every=2"]
    code, out, err = call(capsys, "train", "prior", *words)
    assert code == DONE, err
    prior = load(tmp_path / "prior/ema.safetensors", StyleGAN2)
    words = [*TINY, "--data", faces, "--out", tmp_path / "run",
             "--prior", tmp_path / "prior/ema.safetensors", *SMALL, *[f"model.{s}" for s in size],
             "freeze_prior=true", "run.iterations=1"]
    code, out, err = call(capsys, "train", *words)
    assert code == DONE, err
    decoder = load(tmp_path / "run/ema.safetensors").decoder.state_dict()
    for k, v in prior.state_dict().items():
        torch.testing.assert_close(decoder[k], v)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    "Where temporary files go."
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(folder):
    # torch makes a cache of its own there
    return [p for p in folder.iterdir() if "inductor" not in p.name]


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("what, changes", [
    ("restorer", SMALL),
    ("prior", ["--set", "size=16", "style_dim=8", "n_mlp=1", "narrow=0.03125", "run.batch=2"])])
def test_a_dry_run_tells_what_a_run_would_take_and_leaves_nothing(what, changes, faces, tmp_path,
                                                                  temporary, capsys):
    before = contents(tmp_path)
    words = [*TINY, "--data", faces, "--out", tmp_path / "run", *changes, "run.iterations=1234"]
    code, out, err = call(capsys, "train", what, *words, "--dry-run")
    assert code == DONE and err == [], err
    # the whole is a config file; what was found is in its comments
    assert yaml.safe_load(out)["run"]["iterations"] == 1234
    told = [line for line in out.splitlines() if line.startswith("# ")]
    expected = ("GB at the peak", "images/s", "of the time is spent waiting", "checkpoint",
                "from iteration 0 to 1234")
    for line, part in zip(told, expected, strict=True):
        assert part in line, told
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists() and not left(temporary)


def test_a_dry_run_does_not_touch_the_run_that_is_there(faces, tmp_path, temporary, capsys):
    words = ["train", *TINY, "--data", faces, "--out", tmp_path / "run", *SMALL]
    assert call(capsys, *words)[0] == DONE
    before = contents(tmp_path)
    code, out, _ = call(capsys, *words, "run.iterations=9", "--dry-run")
    assert code == DONE and "from iteration 2 to 9" in out
    assert contents(tmp_path) == before and not left(temporary)


def test_a_dry_run_that_fails_is_one_line_and_2(faces, tmp_path, temporary, capsys):
    (faces / "0.png").write_bytes(b"broken")
    words = [*TINY, "--data", faces, "--out", tmp_path / "run", *SMALL]
    for workers in (0, 1):
        code, out, err = call(capsys, "train", *words, f"run.workers={workers}", "--dry-run")
        assert code == NOTHING_DONE and out == "" and len(err) == 1 and "0.png" in err[0], err
    assert not (tmp_path / "run").exists() and not left(temporary)


def test_a_broken_picture_ends_the_run_with_its_name(faces, tmp_path, capsys):
    (faces / "0.png").write_bytes(b"broken")
    words = [*TINY, "--data", faces, "--out", tmp_path / "run", *SMALL, "run.iterations=5"]
    code, _, err = call(capsys, "train", *words)
    assert code in (SOME_FAILED, NOTHING_DONE) and "0.png" in err[-1]


def test_help_of_the_new_commands(capsys):
    for command in ("prepare", "train"):
        code, out, _ = call(capsys, command, "--help")
        assert code == DONE and "Example" in out
    assert "torchrun" in out and "--nnodes" in out

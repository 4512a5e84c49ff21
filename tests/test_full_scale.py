"""Counting a step without computing it, the model of its time, the rehearsal of a run, and the
benchmark that both are held against."""
import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfpgan_edu import full_scale
from gfpgan_edu.engine import Run
from gfpgan_edu.full_scale import (CARDS, Blueprint, Cost, StepCost, Tally, at_batch, held_against,
                                   rehearse, step_cost, step_seconds)
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.train_prior import PriorConfig, PriorTrainer
from gfpgan_edu.train_restorer import LossWeights, RestorerConfig, RestorerTrainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/bench"))
import training  # noqa: E402

SMALL = RestorerConfig(model=GFPGANConfig.tiny(16), narrow_d=1 / 16, width_parts=4,
                       features="random", embedder="random", run=Run(batch=4, workers=0))


def tallied(work):
    with Tally() as t:
        work()
    return t


def flops(work):
    return sum(tallied(work).cost.values(), Cost()).flops


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
       st.integers(1, 2), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_convolution_is_counted_by_its_multiplications(
        b, cin, cout, groups, stride, transposed, for_x, for_w):
    into = (groups * cin, cout) if transposed else (groups * cout, cin)
    x, w = torch.randn(b, groups * cin, 6, 6), torch.randn(*into, 3, 3)
    x.requires_grad_(for_x), w.requires_grad_(for_w)
    F = torch.nn.functional
    kind = F.conv_transpose2d if transposed else F.conv2d
    conv = functools.partial(kind, stride=stride, groups=groups)
    out = conv(x, w)
    places = 36 if transposed else out.shape[2] * out.shape[3]      # where a weight meets a number
    one = 2 * b * places * groups * cin * cout * 9
    assert flops(lambda: conv(x, w)) == one
    if for_x or for_w:
        assert flops(lambda: conv(x, w).sum().backward()) == one * (1 + for_x + for_w)


def test_bytes_are_those_of_operands_and_results():
    x = torch.randn(4, 5)
    other = lambda work: sum(tallied(work).cost.values(), Cost()).other_bytes
    assert other(lambda: x + 1) == 2 * 80 and other(lambda: x.add_(1)) == 2 * 80
    assert other(lambda: x.t()[1:]) == 0 and other(lambda: torch.empty(9)) == 0
    # the storage of x is what the row may read at most
    assert other(lambda: x + x[:1].expand(4, 5)) == 3 * 80
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    cost = sum(tallied(lambda: a @ b).cost.values(), Cost())
    assert cost == Cost(2 * 2 * 3 * 4, 4 * (6 + 12 + 8), 0)


def test_the_peak_is_what_lives_at_once():
    def work():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return (b + 1).sum()
    assert 8000 <= tallied(work).peak <= 8004                               # never three at once


def real_step(config, it=1):
    t = RestorerTrainer(config, [], init_from=GFPGAN(config.model), device="cpu")
    t.it, n, s = it, config.run.batch, config.model.size
    boxes = torch.tensor([2.0, 2, 12, 12]).expand(n, 3, 4).contiguous()
    batch = dict(lq=torch.zeros(n, 3, s, s), gt=torch.zeros(n, 3, s, s), boxes=boxes)
    tally = Tally()
    with tally:
        for player in t.optimizers:
            for k, parameters in t.learns.items():
                for p in parameters:
                    p.requires_grad_(k == player)
            t.gradients(player, [batch])
    return tally


@pytest.mark.parametrize("changes", [
    {},
    dict(loss=LossWeights(perceptual=0.0)),
    dict(loss=LossWeights(style=50.0)),
    dict(loss=LossWeights(adversarial=0.0)),
    dict(loss=LossWeights(component=0.0, feature_style=0.0)),
    dict(loss=LossWeights(identity=0.0, pyramid=0.0)),
    dict(freeze_prior=False),
    dict(model=SMALL.model.replace(sft="full", resample="bilinear")),
])
def test_the_count_is_that_of_a_real_step(changes, one_thread):
    config = replace(SMALL, **changes)
    counted, tally = step_cost(config), real_step(config)
    parts = sum((c for k, c in counted.parts.items() if k[1] != "R1" and k[0] != "update"), Cost())
    real = sum(tally.cost.values(), Cost())
    assert parts.flops == real.flops and parts.matrix_bytes == real.matrix_bytes
    # the example batch is made within the count
    assert parts.other_bytes == pytest.approx(real.other_bytes, rel=0.02)


def test_the_memory_is_that_of_a_real_step(one_thread):
    config = replace(SMALL, model=GFPGANConfig.tiny(32), run=Run(batch=6, workers=0))
    counted = step_cost(config)
    real = real_step(config, it=16)
    assert counted.activations == pytest.approx(real.peak, rel=0.02)
    t = Blueprint(config)
    weights = lambda *nets: sum(4 * p.numel() for n in nets for p in n.parameters())
    learned = {k: sum(4 * p.numel() for p in ps) for k, ps in t.learns.items()}
    rest = sum(v for k, v in learned.items() if k != "g")
    networks = weights(*t.nets.values(), *t.frozen.values(), t.ema)
    assert counted.resident == networks + 2 * sum(learned.values()) + rest
    assert learned["g"] < weights(t.nets["g"])              # the prior is frozen: no moments


def test_r1_counts_with_its_share_and_is_what_it_says():
    steps = [step_cost(replace(SMALL, loss=LossWeights(r1_every=k))) for k in (1, 16)]
    often, seldom = (step.parts["d", "R1", ""].flops for step in steps)
    assert often == 16 * seldom > 0
    due, not_due = (sum(real_step(SMALL, it).cost.values(), Cost()).flops for it in (16, 1))
    assert due - not_due == 16 * seldom


def test_batch_precision_and_micro_batches():
    counts = {b: step_cost(replace(SMALL, run=Run(batch=b))) for b in (2, 6, 12)}
    assert counts[12].total.flops == 6 * counts[2].total.flops
    line = at_batch((2, counts[2]), (6, counts[6]), 12)
    assert line.total.flops == pytest.approx(counts[12].total.flops)
    assert line.memory == pytest.approx(counts[12].memory, rel=0.01)
    assert line.total.other_bytes == pytest.approx(counts[12].total.other_bytes, rel=0.01)
    assert line.resident == counts[2].resident
    assert at_batch((2, counts[2]), (6, counts[6]), 2) == counts[2]
    half = step_cost(replace(SMALL, run=Run(batch=12, precision="bf16")))
    cut = step_cost(replace(SMALL, run=Run(batch=12, accumulate=2)))
    assert half.total.flops == counts[12].total.flops
    assert half.total.matrix_bytes < 0.7 * counts[12].total.matrix_bytes
    assert half.activations < counts[12].activations
    assert cut.total.flops == counts[12].total.flops and cut.activations == counts[6].activations


def test_the_labels_cover_the_step():
    parts = step_cost(SMALL).parts
    players = {"g", "d", "left_eye", "right_eye", "mouth"}
    others = {"features", "embedder", "losses", "R1", "Adam", "average"}
    assert {k[1] for k in parts} - {""} == players | others
    assert {k[0] for k in parts} == players | {"data", "update"}
    features = [(k[2], c.flops) for k, c in parts.items() if k[:2] == ("g", "features")]
    f, b = (sum(n for way, n in features if way == d) for d in ("forward", "backward"))
    assert f == 2 * b                               # two passes forward, one back to the picture
    assert parts["g", "d", "forward"].flops == parts["g", "d", "backward"].flops


def test_seconds_are_the_formula():
    step = StepCost({"a": Cost(10, 1, 4), "b": Cost(1, 10, 0)}, 0, 0)
    # a by its operations, b by its bytes
    assert step_seconds(step, 2, 1, efficiency=0.5, streaming=0.5) == (10 + 8) + 20
    assert step_seconds(step, 2, 1, efficiency=0.5, streaming=0.5, fused=0.75) == (10 + 2) + 20
    assert all(c.half >= c.fp32 and c.bandwidth > c.link for c in CARDS.values())


@pytest.fixture
def faces(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"faces/{i}.png"), rng.integers(0, 255, (16, 16, 3), np.uint8))
    return tmp_path / "faces"


def test_a_rehearsal_gives_every_kind_of_iteration_its_share(
        faces, tmp_path, monkeypatch, one_thread):
    clock = [0.0]
    monkeypatch.setattr(full_scale.time, "perf_counter", lambda: clock[0])
    config = PriorConfig(
        size=16, style_dim=8, n_mlp=1, narrow=1 / 32, path_every=4, r1_every=16,
        run=Run(batch=2, workers=0, iterations=32, save_every=8, valid_every=16))
    t = PriorTrainer(config, faces, tmp_path / "run", device="cpu")
    seen = []

    def iteration(batch):
        seen.append(t.it)
        seconds = 1 + 4 * (t.it % 4 == 0) + 16 * (t.it % 16 == 0)
        clock[0] += 100 if len(seen) <= 2 else seconds              # the first two warm up

    t.iteration = iteration
    monkeypatch.setattr(t, "validate", lambda: (clock.__setitem__(0, clock[0] + 32), ({}, None))[1])
    monkeypatch.setattr(t, "save", lambda save=t.save: (save(), clock.__setitem__(0, clock[0] + 8)))
    told = rehearse(t)
    assert seen == list(range(7, 17))
    assert told.seconds == 1 + 4 / 4 + 16 / 16
    assert (told.waiting, told.validation, told.saving) == (0, 32, 8)
    assert told.hours() * 3600 == 32 * (3 + 0 + 2 + 1)
    assert told.hours(32) == 0 and told.hours(16) * 2 == told.hours()
    assert told.checkpoint == (tmp_path / "run/state-00000016.pt").stat().st_size
    assert told.peak > told.checkpoint
    lines = list(told.lines(16))
    assert "0.667 images/s" in lines[1] and "0% of the time" in lines[2]
    assert "from iteration 16 to 32" in lines[-1] and "1.6 minutes" in lines[-1]


def test_a_rehearsal_trains_with_loading_processes(faces, tmp_path, one_thread):
    config = replace(RestorerConfig.tiny(), model=GFPGANConfig.tiny(16),
                     run=Run(batch=2, workers=1, iterations=5))
    t = RestorerTrainer(config, faces, tmp_path / "run", device="cpu")
    before = t.nets["g"].unet.first.weight.clone()
    with pytest.raises(ValueError, match="steps is 3, needs 4"):
        rehearse(t, steps=3)
    told = rehearse(t, steps=4)
    assert t.it == 16 and not torch.equal(before, t.nets["g"].unet.first.weight)
    assert {"r1", "d", "pixel"} <= set(t.logs)
    assert told.seconds > 0 and told.picture > 0
    assert sorted(p.suffix for p in (tmp_path / "run").iterdir()) == [".pt", ".yaml"]


# ---------------------------------------------------------------- the benchmark

@pytest.fixture
def alone(monkeypatch):
    "No official packages, no real compiler."
    def missing(device):
        raise ImportError("not here")
    monkeypatch.setattr(training, "official_class", missing)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_the_gpu_job_runs_goes_on_and_is_read_by_the_chapter(alone, tmp_path, capsys, one_thread):
    file = tmp_path / "out/bench-gpu.json"
    words = ["--gpu", "--tiny", "--device", "cpu", "--rounds", "1", "--out", str(file)]
    training.main([*words, "--minutes", "0"])
    found = json.loads(file.read_text())
    assert not found["training"] and len(found["left_out"]) > 20
    assert found["rates"].keys() == {"bf16", "tf32", "fp32"}
    training.main([*words, "--minutes", "9"])
    found = json.loads(file.read_text())
    kinds = {(r["precision"], r["channels_last"], r["compiled"]) for r in found["training"]}
    assert {("bf16", True, True), ("bf16", True, False), ("bf16", False, False),
            ("tf32", False, False), ("fp32", False, False)} <= kinds
    assert found["inference"] and all(r["impl"] == "official" for r in found["left_out"])
    assert "not installed" in found["official"]
    for r in found["training"]:
        share = r["flops"] / r["seconds"] / found["rates"][r["precision"]]
        assert r["share_of_matrix_rate"] == pytest.approx(share, rel=0.02)
        assert r["images_per_second"] == pytest.approx(r["batch"] / r["seconds"], rel=0.02)
    said = capsys.readouterr().out
    training.main([*words, "--minutes", "9"])
    assert json.loads(file.read_text()) == found
    assert capsys.readouterr().out == "" != said                    # nothing twice

    def counted(precision, b):
        return b, step_cost(training.config_of(32, 1 / 16, b, precision=precision))

    ends = {p: [counted(p, b) for b in (1, 2)] for p in ("fp32", "bf16")}
    lines = held_against(file, ends, narrow=1 / 16)
    assert len(lines) == len(found["training"])
    assert "bf16, channels_last, compiled, 2 pictures" in " ".join(lines)
    found["training"].append(dict(found["training"][0], error="does not fit into memory", batch=99))
    file.write_text(json.dumps(found))
    last = held_against(file, ends, narrow=1 / 16)[-1]
    assert last.endswith("99 pictures: does not fit into memory")
    assert held_against(tmp_path / "nothing.json", ends) == ["no GPU measurement is in yet"]


def test_what_does_not_fit_is_a_row_not_an_end(alone, tmp_path, monkeypatch, one_thread):
    def full(*_):
        raise torch.OutOfMemoryError("no room")
    monkeypatch.setattr(training, "measure_training", full)
    monkeypatch.setattr(training, "measure_inference", full)
    found = training.measure_gpu(tmp_path / "b.json", 1, 32, torch.device("cpu"), 1, 16)
    rows = found["training"] + found["inference"]
    assert found["training"] and all(r["error"] == "does not fit into memory" for r in rows)


def test_alternate_clocks_take_r1_with_its_share(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    step = lambda base: lambda it: clock.__setitem__(0, clock[0] + base * (17 if it == 16 else 1))
    alternately, cpu = training.alternately, torch.device("cpu")
    assert alternately({"a": step(1), "b": step(3)}, 4, cpu) == {"a": 2, "b": 6}
    assert alternately({"a": step(1)}, 1, cpu) == {"a": 2}


def test_without_the_official_packages_the_cpu_part_says_how(alone, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        training.main(["--tiny", "--out", str(tmp_path / "t.json")])
    assert e.value.code == 2 and "tests/peer/README.md" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_the_stored_measurement_is_whole_and_names_no_place():
    text = (ROOT / "figures/bench/training.json").read_text()
    stored = json.loads(text)
    assert {"machine", "torch", "date", "command", "rate", "bandwidth", "picture_seconds",
            "official"} <= stored.keys()
    assert len(stored["rows"]) >= 3
    assert "/work" not in text and "/home" not in text
    for r in stored["rows"]:
        seconds = r["seconds"]
        assert r["ratio"] == pytest.approx(seconds["official"] / seconds["ours"], rel=0.01)


def test_the_job_script_knows_the_benchmark():
    script = ROOT / "figures/gpu_job.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "tests/bench/training.py --gpu --minutes" in script.read_text()

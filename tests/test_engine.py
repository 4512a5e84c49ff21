"""The training loop inside one process.

Config, data order, averages, checkpoints, divergence, precision, time limits.
"""
import math
import os
import resource
import signal
import warnings
from dataclasses import dataclass, field, replace
from typing import Literal, Optional

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu import engine, train_restorer
from gfpgan_edu.engine import (NonFinite, Phase, Run, Stream, TrainingError, adam, average,
                               checkpoints, config_from, ema_decay, override, plain,
                               read_checkpoint, split, stepwise, write_checkpoint)
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.train_prior import PriorConfig
from gfpgan_edu.train_restorer import RestorerConfig, RestorerTrainer
from train_runs import Points, Toy, differences, metrics, newest, toy_run

many = settings(max_examples=25, deadline=None)


# ---------------------------------------------------------------- config

@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    n: int = 3
    on: bool = False
    name: str = ""
    sides: tuple = (1, 2)
    most: Optional[int] = None
    least: float | None = None


def outers():
    number = st.floats(allow_nan=False, allow_infinity=False)
    name = st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
    return st.builds(Outer, st.builds(Inner, number, st.sampled_from("ab")), st.integers(),
                     st.booleans(), name, st.lists(st.integers()).map(tuple),
                     st.none() | st.integers(), st.none() | number)


@many
@given(outers())
def test_a_config_survives_plain_and_yaml(c):
    assert config_from(Outer, plain(c)) == c
    assert config_from(Outer, yaml.safe_load(yaml.safe_dump(plain(c), sort_keys=False))) == c
    assert override(c, []) == c


@pytest.mark.parametrize("make", [RestorerConfig.paper, RestorerConfig.official,
                                  RestorerConfig.faces128, RestorerConfig.tiny,
                                  PriorConfig.paper, PriorConfig.faces64])
def test_presets_survive_yaml(make):
    assert config_from(type(make()), yaml.safe_load(yaml.safe_dump(plain(make())))) == make()


@pytest.mark.parametrize("given, says", [
    ({"m": 1}, ["unknown config key m", "inner, n, on, name, sides, most, least"]),
    ({"inner": {"lrr": 1}}, ["unknown config key inner.lrr", "inner.lr, inner.kind"]),
    ({"n": 1.5}, ["n is 1.5", "int"]),
    ({"n": True}, ["n is True", "int"]),
    ({"on": 1}, ["on is 1", "bool"]),
    ({"name": 3}, ["name is 3", "str"]),
    ({"inner": {"lr": "fast"}}, ["inner.lr is 'fast'", "a finite number"]),
    ({"inner": {"lr": True}}, ["inner.lr is True", "a finite number"]),
    ({"inner": {"kind": "c"}}, ["inner.kind is 'c'", "'a', 'b'"]),
    ({"sides": 3}, ["sides is 3", "tuple"]),
    ({"most": "x"}, ["most is 'x'", "int"]),
    ({"inner": None}, ["inner is None", "keys and values"]),
    (None, ["the config is None"]),
    ({3: 1}, ["unknown config key 3"]),
    ({"inner": 5}, ["inner is 5"]),
])
def test_what_does_not_fit_a_config_is_named(given, says):
    with pytest.raises(ValueError) as e:
        config_from(Outer, given)
    assert all(s in str(e.value) for s in says), e.value


def test_yaml_numbers_and_none_are_read_as_the_field_wants_them():
    c = override(Outer(), ["inner.lr=1e-3", "least=2", "most=null", "sides=[3, 4]", "name=a=b",
                           "on=true"])
    assert c == Outer(Inner(0.001), on=True, name="a=b", sides=(3, 4), least=2.0)
    assert isinstance(c.least, float)
    assert override(c, ["least=null"]).least is None


@pytest.mark.parametrize("setting", ["n", "m=1", "inner.x=1", "n.x=1", "=1", "inner=", "n=[", "n=",
                                     "inner.lr=: :"])
def test_a_setting_that_cannot_be_is_named(setting):
    with pytest.raises(ValueError, match=r"^(?s:.{0,250})$") as e:
        override(Outer(), [setting])
    assert setting.split("=")[0] in str(e.value)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "'nan'", "[1.0]", "true", "~"])
@pytest.mark.parametrize("key, cls", [("inner.lr", Outer), ("ema_images", Run)])
def test_no_number_of_a_config_may_be_infinite_or_none(cls, key, value):
    with pytest.raises(ValueError, match=f"^{key} is .*, needs a finite number$"):
        override(cls(), [f"{key}={value}"])


@pytest.mark.parametrize("change", [
    dict(batch=0), dict(keep=0), dict(ema_images=-1.0), dict(accumulate=0), dict(workers=-1),
    dict(threads=-1), dict(seed=-1), dict(ema_images=math.nan), dict(ema_images=math.inf),
    dict(workers=10**6), dict(threads=10**6), dict(batch=10**12), dict(seed=1 << 63)])
def test_a_run_of_nonsense_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Run(**change)


# ---------------------------------------------------------------- data order

@many
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 30),
       st.integers(0, 5))
def test_ranks_share_one_stream_that_starts_anywhere(n, world, share, start, seed):
    batch = world * share
    take = lambda **o: [b for b, _ in zip(Stream(n, batch, seed, **o), range(6))]
    whole, late = [b for b, _ in zip(Stream(n, batch, seed), range(start + 6))], take(start=start)
    assert late == whole[start:]
    ranks = [take(rank=r, world=world, start=start) for r in range(world)]
    for step, b in enumerate(late):
        assert [ranks[i % world][step][i // world] for i in range(batch)] == b


@many
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 3))
def test_every_epoch_is_a_permutation_of_its_own(n, batch, seed):
    need = 3 * n
    batches = zip(Stream(n, batch, seed), range(-(-need // batch)))
    seen = [key for b, _ in batches for key in b][:need]
    for e in range(3):
        epoch = seen[e * n:(e + 1) * n]
        assert {k[0] for k in epoch} == {e} and sorted(k[1] for k in epoch) == list(range(n))
    if n == 30:
        assert seen[:n] != [(0, i) for _, i in seen[n:2 * n]]


@many
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_micro_batches_and_ranks_cut_alike(k, world, share):
    whole = torch.arange(k * world * share)
    own = [whole[r::world] for r in range(world)]
    parts = [m["x"] for x in own for m in split({"x": x}, k)]
    assert sorted(torch.cat(parts).tolist()) == whole.tolist()
    assert all(len(p) == share for p in parts)
    # the stride that keeps groups of the minibatch statistic together
    assert all((p[1:] - p[:-1] == k * world).all() for p in parts)


def test_every_iteration_run_and_process_draws_its_own():
    def seeds(seed, rank):
        t = Toy(toy_run(seed=seed))
        t.rank = rank
        for t.it in range(1, 50):
            yield t.seed(), t.seed(shared=True)

    pairs = [pair for seed in (0, 1) for rank in (0, 1) for pair in seeds(seed, rank)]
    own, shared = zip(*pairs)
    assert len(set(own)) == len(own) == 4 * 49
    assert len(set(shared)) == len(shared) / 2 and not set(own) & set(shared)
    assert all(0 <= s < 2**63 for s in own)


# ---------------------------------------------------------------- averages and rates

def test_the_official_decay_is_a_half_life_of_3750_pictures():
    official = 0.5 ** (32 / 10000)
    assert math.isclose(ema_decay(12, 3750), official)
    assert math.isclose(ema_decay(Run().batch, Run().ema_images), official)
    assert math.isclose(ema_decay(7, 100) ** (100 / 7), 0.5)
    assert math.isclose(ema_decay(6, 500) ** 2, ema_decay(12, 500))


def test_average_moves_parameters_only():
    nets = [torch.nn.BatchNorm1d(3) for _ in range(2)]
    for i, net in enumerate(nets):
        for t in net.state_dict().values():
            t.fill_(i + 1)
    average(*nets, 0.75)
    ema = nets[0].state_dict()
    assert all(torch.equal(ema[k], torch.full((3,), 1.25)) for k in ("weight", "bias"))
    assert torch.equal(ema["running_mean"], torch.ones(3)) and ema["num_batches_tracked"] == 1
    assert torch.equal(nets[1].weight, torch.full((3,), 2.0))


def test_milestones_act_one_later_as_the_official_scheduler():
    net = torch.nn.Linear(1, 1)
    opt = torch.optim.Adam(net.parameters(), 1.0)
    official = torch.optim.lr_scheduler.MultiStepLR(opt, [3, 5], 0.5)
    ours, rates = stepwise((3, 5)), []
    for it in range(1, 9):
        opt.step()
        if it > 1:
            official.step()
        rates.append(opt.param_groups[0]["lr"])
    assert rates == [ours(it) for it in range(1, 9)] == [1, 1, 1, .5, .5, .25, .25, .25]
    assert [stepwise((), warmup=4)(it) for it in (1, 2, 4, 9)] == [0.25, 0.5, 1, 1]


def test_lazy_betas_and_what_is_trained():
    net = torch.nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    group = adam(net, 2e-3, (0.0, 0.99), 16).param_groups[0]
    assert group["betas"] == (0.0, 0.99 ** (16 / 17)) and round(group["betas"][1], 6) == 0.990585
    assert group["lr"] == 2e-3 and group["params"] == [net.weight]
    assert adam(net, 1.0, (0.9, 0.99)).param_groups[0]["betas"] == (0.9, 0.99)


# ---------------------------------------------------------------- the toy goes on where it was

def test_a_toy_goes_on_bit_for_bit(tmp_path):
    Toy(toy_run(), tmp_path / "a").fit()
    Toy(toy_run(iterations=5, save_every=5), tmp_path / "b").fit()
    second = Toy(toy_run(workers=2), tmp_path / "b")
    assert second.fit() == "done"
    a, b = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert a["config"].pop("run") != b["config"].pop("run") and not differences(a, b)
    rows = metrics(tmp_path / "a")
    again = metrics(tmp_path / "b")
    # a look at the average at the first end, 5
    assert again.pop(7).keys() == {"iteration", "images", "size_of_g"} and again == rows
    assert [r["iteration"] for r in rows] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [r["lr"] for r in rows if "lr" in r] == [0.01] * 4 + [0.005] * 4


def test_the_data_is_asked_in_the_order_of_the_stream(tmp_path):
    data = Points()
    Toy(toy_run(iterations=3), tmp_path, data).fit()
    Toy(toy_run(iterations=6), tmp_path, data).fit()
    assert data.seen == [key for b, _ in zip(Stream(10, 4), range(6)) for key in b]


def test_a_finished_run_is_done_at_once_and_more_iterations_are_allowed(tmp_path):
    Toy(toy_run(), tmp_path).fit()
    rows, again = metrics(tmp_path), Toy(toy_run(), tmp_path)
    assert again.fit() == "done" and again.it == 8 and metrics(tmp_path) == rows
    for n, at in ((4, 8), (10, 10)):
        assert Toy(toy_run(iterations=n), tmp_path).fit() == "done"
        assert newest(tmp_path)["iteration"] == at


def test_another_batch_in_a_run_is_refused_by_name(tmp_path):
    Toy(toy_run(), tmp_path).fit()
    before = (tmp_path / "config.yaml").read_bytes()
    says = r"run\.batch was 4, is 2; run\.seed was 0, is 3\b"
    with pytest.raises(TrainingError, match=says) as e:
        Toy(toy_run(batch=2, seed=3), tmp_path).fit()
    assert str(tmp_path) in str(e.value) and (tmp_path / "config.yaml").read_bytes() == before


def test_a_run_goes_on_in_a_version_with_more_settings(tmp_path):
    Toy(toy_run(), tmp_path).fit()
    path = checkpoints(tmp_path)[-1]
    state = torch.load(path, weights_only=True)
    # batch: the default differs from what the run has
    for absent, same in (("threads", True), ("seed", True), ("batch", False)):
        run = {k: v for k, v in state["config"]["run"].items() if k != absent}
        older = {**state, "config": {**state["config"], "run": run}}
        torch.save(older, path)
        if same:
            assert Toy(toy_run(), tmp_path).fit() == "done"
        else:
            with pytest.raises(TrainingError, match=r"run\.batch was \d+, is 4"):
                Toy(toy_run(), tmp_path).fit()


def test_iteration_zero_is_written_once_whenever_the_first_attempt_died(tmp_path, monkeypatch):
    def die(self, *args):
        raise KeyboardInterrupt

    for moment in ("save", "loop"):     # before and after the first checkpoint
        with monkeypatch.context() as m:
            m.setattr(Toy, moment, die)
            with pytest.raises(KeyboardInterrupt):
                Toy(toy_run(), tmp_path).fit()
    Toy(toy_run(), tmp_path).fit()
    assert [r["iteration"] for r in metrics(tmp_path)].count(0) == 1


def test_a_config_file_is_never_half_written(tmp_path, monkeypatch):
    Toy(toy_run(), tmp_path).fit()
    before, replaced = (tmp_path / "config.yaml").read_bytes(), os.replace

    def dies(a, b):
        if str(b).endswith("config.yaml"):
            raise KeyboardInterrupt
        return replaced(a, b)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        Toy(toy_run(iterations=9), tmp_path).fit()
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = Toy(toy_run(), None)
    assert t.fit() == "done" and t.it == 8 and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- time limit, signals

def test_a_time_limit_stops_with_a_checkpoint_and_the_same_goes_on(tmp_path):
    t = Toy(toy_run(save_every=100), tmp_path / "a")
    for at in (1, 2):
        assert t.fit(minutes=0) == "stopped" and t.it == at == newest(tmp_path / "a")["iteration"]
        assert (tmp_path / "a/ema.safetensors").exists()
    assert t.fit(minutes=60) == "done"
    Toy(toy_run(save_every=100), tmp_path / "b").fit()
    assert not differences(newest(tmp_path / "a"), newest(tmp_path / "b"))


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM],
                                     [signal.SIGINT, signal.SIGTERM]])
def test_a_signal_stops_with_a_checkpoint(tmp_path, signals):
    """The last pair is what torchrun's processes get when Ctrl-C is pressed.

    One is from the terminal, one from torchrun.
    """
    def terms(b):
        if t.it == 3 and not t.stop:
            for s in signals:
                os.kill(os.getpid(), s)
        return t.g_terms(b)

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    t = Toy(toy_run(save_every=100), tmp_path, terms=lambda b: terms(b))
    assert t.fit() == "interrupted" and t.it == 3 == newest(tmp_path)["iteration"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert t.fit() == "done"


def test_a_second_ctrl_c_some_time_later_ends_at_once(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 10))

    def terms(b):
        monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))
        os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)
        return t.g_terms(b)

    t = Toy(toy_run(), tmp_path, terms=lambda b: terms(b))
    with pytest.raises(KeyboardInterrupt):
        t.fit()


# ---------------------------------------------------------------- checkpoints

def some_state(i):
    return {"iteration": i, "x": torch.full((500,), float(i)), "more": {"y": [torch.arange(5)]}}


def fill(folder, n=4, keep=3):
    for i in range(n):
        write_checkpoint(folder, i, some_state(i), keep)
    return checkpoints(folder)


def test_keep_is_kept(tmp_path):
    assert [p.name for p in fill(tmp_path, 5, 3)] == [f"state-{i:08d}.pt" for i in (2, 3, 4)]
    write_checkpoint(tmp_path, 9, some_state(9), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["state-00000009.pt"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "zeroed", "other"])
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path, damage):
    *_, before, last = fill(tmp_path)
    data = bytearray(last.read_bytes())
    place = data.find(np.float32(3).tobytes() * 100) + 801      # in the middle of the tensor
    if damage == "flipped":
        data[place] ^= 1
    elif damage == "zeroed":                                    # a page that never reached the disk
        data[place:place + 512] = bytes(512)
    last.write_bytes({"truncated": data[:-1000], "empty": b"", "other": b"hello"}.get(damage, data))
    with pytest.warns(UserWarning, match=f"{last}: damaged"):
        state, path = read_checkpoint(tmp_path)
    assert path == before and not differences(state, some_state(2))


def test_any_flipped_byte_is_found_or_does_no_harm(tmp_path):
    (path,) = fill(tmp_path, 1)
    data, rng, found = path.read_bytes(), np.random.default_rng(0), 0
    for at in rng.choice(len(data), 150, replace=False):
        flipped = bytes([data[at] ^ (1 << int(rng.integers(8)))])
        path.write_bytes(data[:at] + flipped + data[at + 1:])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state, _ = read_checkpoint(tmp_path)
        assert (state is None) == bool(told)
        assert state is None or not differences(state, some_state(0))
        found += state is None
    assert found > 75


def test_when_all_are_damaged_the_run_does_not_start_anew_in_silence(tmp_path):
    Toy(toy_run(), tmp_path).fit()
    for p in checkpoints(tmp_path):
        p.write_bytes(p.read_bytes()[:100])
    refused = pytest.raises(TrainingError, match="every checkpoint is damaged")
    with pytest.warns(UserWarning, match="damaged"), refused:
        Toy(toy_run(), tmp_path).fit()
    assert len(checkpoints(tmp_path)) == 3


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path):
    Toy(toy_run(), tmp_path / "a").fit()
    Toy(toy_run(iterations=6), tmp_path / "b").fit()
    last = checkpoints(tmp_path / "b")[-1]
    last.write_bytes(last.read_bytes()[:-1])
    (tmp_path / "b/state-00000099.part").write_bytes(b"left by a kill")
    with pytest.warns(UserWarning, match=last.name):
        assert Toy(toy_run(), tmp_path / "b").fit() == "done"
    assert not differences(newest(tmp_path / "a"), newest(tmp_path / "b"))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.part"))


def test_a_full_disk_leaves_the_older_checkpoints_and_says_which(tmp_path):
    *_, last = fill(tmp_path)
    # a file may not grow any more: the same error as a full disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(TrainingError) as e:
            write_checkpoint(tmp_path, 4, some_state(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    says = str(e.value)
    assert "state-00000004.pt" in says and "File too large" in says
    assert str(last) in says and "\n" not in says
    assert len(checkpoints(tmp_path)) == 3 and not list(tmp_path.glob("*.part"))
    assert read_checkpoint(tmp_path)[0]["iteration"] == 3


@pytest.mark.parametrize("file", ["metrics.jsonl", "config.yaml", "valid-00000008.png",
                                  "state-00000006.pt", "ema.safetensors", "tensorboard"])
def test_whatever_cannot_be_written_is_named(tmp_path, monkeypatch, file):
    "Each file of a run in turn meets a full disk: /dev/full in its place."
    Toy(toy_run(iterations=4), tmp_path).fit()
    t, full = Toy(toy_run(), tmp_path), OSError(28, "No space left on device")
    t.validate = lambda: ({}, np.zeros((4, 4, 3), np.uint8))
    stem = file.split(".")[0]

    def opened(path, *a, **k):
        hit = stem in str(path) and stem != "metrics" or str(path).endswith(file)
        return open("/dev/full" if hit else path, *a, **k)

    def fails(*a, **k):
        raise full

    monkeypatch.setattr(engine, "open", opened, raising=False)
    if file == "ema.safetensors":
        monkeypatch.setattr(engine, "save", fails)
    if file == "tensorboard":
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fails)
    says = rf"{file}: not written .*No space left.*; last good checkpoint: .*state-\d+\.pt$"
    with pytest.raises(TrainingError, match=says):
        t.fit()
    assert newest(tmp_path)["iteration"] >= 4 and not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    assert Toy(toy_run(), tmp_path).fit() == "done"


# ---------------------------------------------------------------- divergence

def poisoned(at, once=False, term="near"):
    "Terms of a toy whose `term` is NaN from iteration `at` on, or there `once`."
    def terms(b):
        out = t.g_terms(b)
        if t.it >= at and not (once and terms.done):
            terms.done = True
            out[term] = out[term] * math.nan
        return out

    terms.done = False

    def build(run, out):
        nonlocal t
        t = Toy(run, out, terms=terms)
        return t

    t = None
    return build


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path):
    t = poisoned(6)(toy_run(save_every=4), tmp_path)
    says = r"loss near is not finite at iteration 6; last good checkpoint: .*state-00000004\.pt"
    with pytest.raises(NonFinite, match=says):
        t.fit()
    everyone = (*t.nets.values(), t.ema)
    assert all(torch.isfinite(p).all() for n in everyone for p in n.parameters())
    assert newest(tmp_path)["iteration"] == 4


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path):
    def terms(b):
        out = t.g_terms(b)
        if t.it == 3:
            w = t.nets["g"].weight
            zero = w.sub(w.detach()).abs().sum().sqrt()      # 0, with an infinite slope
            out["near"] = out["near"] + zero
        return out

    t = Toy(toy_run(), tmp_path, terms=terms)
    says = ("the gradient of g is not finite at iteration 3; "
            "last good checkpoint: .*state-00000002.pt")
    with pytest.raises(NonFinite, match=says):
        t.fit()
    assert all(torch.isfinite(p).all() for p in t.nets["g"].parameters())


def test_a_bad_picture_names_its_terms(tmp_path):
    bad = [key for b, _ in zip(Stream(10, 4), range(8)) for key in b][17]
    with pytest.raises(NonFinite, match="loss near, fool is not finite at iteration 5"):
        Toy(toy_run(), tmp_path, Points(bad=bad)).fit()


def test_a_term_of_the_restorer_is_named(tmp_path, monkeypatch):
    t = small_restorer(tmp_path)

    def spoilt(ex, ey):
        return (ex - ey).abs().mean() * (math.nan if t.it == 3 else 1)

    monkeypatch.setattr(train_restorer, "identity", spoilt)
    says = (r"loss identity is not finite at iteration 3; "
            r"last good checkpoint: .*state-00000002\.pt")
    with pytest.raises(NonFinite, match=says):
        t.fit()


def test_rollback_halves_the_rate_three_times_and_then_stops(tmp_path):
    t = poisoned(6)(toy_run(save_every=4, on_nonfinite="rollback"), tmp_path)
    with pytest.raises(NonFinite, match="iteration 6"):
        t.fit()
    rows = [r for r in metrics(tmp_path) if "rollback" in r]
    assert [r["iteration"] for r in rows] == [4] * 3
    assert [f"{n} of 3" in r["rollback"] for n, r in enumerate(rows, 1)] == [True] * 3
    assert [r["lr"] for r in metrics(tmp_path) if r["iteration"] == 4 and "lr" in r] == [0.01]
    state = newest(tmp_path)
    assert state["iteration"] == 4 and state["rollbacks"] == 3 and state["lr_factor"] == 1 / 8
    with pytest.raises(NonFinite):          # said again: the three are used up
        poisoned(6)(toy_run(save_every=4, on_nonfinite="rollback"), tmp_path).fit()
    assert len([r for r in metrics(tmp_path) if "rollback" in r]) == 3


def test_a_rollback_is_not_forgotten_when_the_run_is_killed(tmp_path):
    class Killed(BaseException):
        pass

    def terms(b):
        if t.it == 5 and t.rollbacks:
            raise Killed
        return {k: v * (math.nan if t.it == 6 else 1) for k, v in t.g_terms(b).items()}

    run = toy_run(save_every=4, on_nonfinite="rollback")
    t = Toy(run, tmp_path, terms=terms)
    with pytest.raises(Killed):
        t.fit()
    t = Toy(run, tmp_path)
    assert t.fit() == "done" and t.rollbacks == 1 and t.lr_factor == 0.5
    rates = [r["lr"] for r in metrics(tmp_path) if r["iteration"] == 5 and "lr" in r]
    assert rates == [0.01 / 4]              # milestone 4 and the rollback
    assert len([r for r in metrics(tmp_path) if "rollback" in r]) == 1


def test_after_one_rollback_the_run_ends_well(tmp_path):
    t = poisoned(6, once=True)(toy_run(save_every=4, on_nonfinite="rollback"), tmp_path)
    assert t.fit() == "done" and t.it == 8 and t.rollbacks == 1
    assert [r["iteration"] for r in metrics(tmp_path)] == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8]


def test_without_a_checkpoint_there_is_no_way_back():
    with pytest.raises(NonFinite, match="last good checkpoint: none"):
        poisoned(2)(toy_run(on_nonfinite="rollback"), None).fit()


# ---------------------------------------------------------------- precision

def small_restorer(out=None, data=None,
                   model=GFPGANConfig(size=16, style_dim=16, n_mlp=2, narrow=1 / 32), **changes):
    c = RestorerConfig.tiny()
    loss = replace(c.loss, r1_every=2, adversarial=0.1, component=0.1, feature_style=1.0,
                   identity=0.1, pyramid=0.1)
    run = toy_run(**dict(iterations=3, batch=2) | changes)
    c = replace(c, model=model, embedder="random", narrow_d=1 / 32, prior="random",
                freeze_prior=False, loss=loss, run=run)
    valid = [{k: Pictures()[0, i][k] for k in ("lq", "gt")} for i in range(2)]
    return RestorerTrainer(c, data or Pictures(), out, valid=valid, device="cpu")


class Pictures:
    "Made-up items of a restorer's data set."

    def __init__(self, n=6, size=16):
        g = torch.Generator().manual_seed(0)
        coarse = torch.rand(n, 3, 4, 4, generator=g) * 2 - 1
        self.gt = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        self.lq = (self.gt + 0.1 * torch.randn(self.gt.shape, generator=g)).clamp(-1, 1)
        self.boxes = torch.tensor([[2.0, 4, 7, 8], [9, 4, 14, 8], [4, 9, 12, 14]])

    def __len__(self):
        return len(self.gt)

    def __getitem__(self, key):
        return {"lq": self.lq[key[1]], "gt": self.gt[key[1]], "boxes": self.boxes}


LOSSES = ("l1", "pyramid", "g_logistic", "d_logistic", "r1", "feature_style", "identity")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_losses_in_float32(monkeypatch, precision):
    seen, leaves = {}, torch.utils._pytree.tree_leaves

    def watch(name):
        real = getattr(train_restorer, name)

        def loss(*args):
            tensors = [x for x in leaves(args) if torch.is_tensor(x)]
            seen.setdefault(name, set()).update(x.dtype for x in tensors)
            assert not torch.is_autocast_enabled("cpu")
            return real(*args)
        monkeypatch.setattr(train_restorer, name, loss)

    for name in LOSSES:
        watch(name)
    t, inside = small_restorer(precision=precision), set()
    watch_inside = lambda m, i, o: inside.update(x.dtype for x in leaves(o))
    t.nets["g"].unet.register_forward_hook(watch_inside)
    assert t.fit() == "done"
    assert seen == {name: {torch.float32} for name in LOSSES}
    assert {"bf16": torch.bfloat16, "fp16": torch.float16}[precision] in inside
    parameters = [p for n in t.nets.values() for p in n.parameters()]
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in parameters)


def test_channels_last_changes_nothing_but_the_layout():
    a, b = small_restorer(), small_restorer(channels_last=True)
    for t in (a, b):
        t.it, batch = 2, t.place(next(iter(t.loader())))
        t.iteration(batch)
    weight = lambda t: max(t.nets["d"].parameters(), key=lambda p: p.ndim * p.numel())
    assert weight(b).is_contiguous(memory_format=torch.channels_last)
    assert not weight(a).is_contiguous(memory_format=torch.channels_last)
    assert a.logs.keys() == b.logs.keys() >= {"r1", "identity", "grad_g", "grad_mouth"}
    for name in a.logs:
        assert_close(a.logs[name], b.logs[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


def test_fp16_skips_a_step_that_overflows_and_goes_on():
    t = Toy(toy_run(precision="fp16"))
    # near the end of float32: scaled gradients are infinite
    t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before, batch = t.nets["g"].weight.clone(), t.place(next(iter(t.loader())))
    t.it = 1
    t.iteration(dict(batch))
    assert not torch.isfinite(t.logs["grad_g"]) and torch.equal(t.nets["g"].weight, before)
    assert t.scaler.get_scale() == 2.0**126
    while not torch.isfinite(t.logs["grad_g"]):
        t.it += 1
        t.iteration(dict(batch))
    assert t.it > 3 and not torch.equal(t.nets["g"].weight, before)
    assert all(torch.isfinite(p).all() for p in t.nets["g"].parameters())


def test_fp16_gives_up_when_no_scale_is_small_enough(tmp_path):
    t = Toy(toy_run(precision="fp16"))
    # finite, but with a slope that is no number
    t.phases = [Phase("g", lambda b: {"near": (0 * t.nets["g"].weight.sum()).abs().sqrt()})]
    t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with pytest.raises(NonFinite, match="the gradient of g is not finite at iteration 3"):
        t.fit()


def test_fp16_does_not_excuse_a_loss_that_is_no_number(tmp_path):
    with pytest.raises(NonFinite, match="loss near"):
        poisoned(3)(toy_run(precision="fp16"), tmp_path).fit()


def test_the_scale_of_fp16_is_part_of_the_state(tmp_path):
    Toy(toy_run(precision="fp16"), tmp_path / "a").fit()
    t = Toy(toy_run(precision="fp16", iterations=4), tmp_path / "b")
    t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    t.fit()
    again = Toy(toy_run(precision="fp16"), tmp_path / "b")
    again.fit()
    assert again.scaler.get_scale() == 2.0**10


def test_compile_takes_all_but_what_is_differentiated_twice(monkeypatch):
    compiled, calls, eager = [], [], []

    def fake(net):
        compiled.append(net)
        return lambda *a, **k: (calls.append((net, t.it)), net(*a, **k))[1]

    monkeypatch.setattr(torch, "compile", fake)
    t = small_restorer(compile=True)
    assert compiled == [*t.nets.values(), *t.frozen.values()]
    assert not any(n is t.ema for n in compiled)

    def watched(scores, y, r1=train_restorer.r1):
        eager.append(len(calls))
        return r1(scores, y)

    monkeypatch.setattr(train_restorer, "r1", watched)
    assert t.fit() == "done"
    of_d = [it for net, it in calls if net is t.nets["d"]]
    assert of_d == [1, 1, 1, 2, 2, 2, 3, 3, 3]      # fool, real, fake; none for R1 at iteration 2
    assert len(eager) == 1 and [it for net, it in calls if net is t.nets["g"]] == [1, 2, 3]


@pytest.mark.parametrize("k", [2, 4])
def test_micro_batches_add_up(k):
    def terms(b):
        return {"near": t.nets["g"](b["x"]).square().mean()}

    states = []
    for accumulate in (1, k):
        t = Toy(toy_run(accumulate=accumulate), None, Points(dtype=torch.float64), terms=terms)
        cube = lambda b: {"d": (t.nets["d"](b["x"]) ** 3).mean()}
        t.phases = [Phase("g", terms), Phase("d", cube), Phase("d", t.slow_terms, 3)]
        for n in (*t.nets.values(), t.ema):
            n.double()
        t.fit()
        states.append(t.state_dict())
    states[1]["config"] = states[0]["config"]
    assert not differences(*states, rtol=1e-9)


def test_a_batch_that_cannot_be_shared_is_refused():
    says = "batch 4 cannot be shared by 1 processes × 3 micro-batches"
    with pytest.raises(TrainingError, match=says):
        Toy(toy_run(accumulate=3))

"""Training as real processes.

Killed, out of disk, with loading processes that die, and shared by two.
"""
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gfpgan_edu.cli import DONE, INTERRUPTED, NOTHING_DONE, SOME_FAILED
from gfpgan_edu.engine import (NonFinite, Stream, TrainingError, checkpoints, override,
                               write_checkpoint)
from gfpgan_edu.train_prior import PriorConfig, PriorTrainer
from gfpgan_edu.train_restorer import RestorerConfig, RestorerTrainer
from train_runs import (SMALL, Points, Toy, command, differences, ended, faces, kill_all,
                        kill_often, metrics, newest, small, start, start_ranks, toy_run, wait_for)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return faces(tmp_path_factory.mktemp("faces") / "faces")


def run(folder, *words, within=120, target=command, **env):
    "(exit code, output) of a run."
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    return ended(start(target, *words, log=log, **env), within)[0], log.read_text()


def has(folder, iteration):
    return lambda: any(p.name >= f"state-{iteration:08d}.pt" for p in checkpoints(folder))


# ---------------------------------------------------------------- killed

@pytest.mark.parametrize("what", SMALL)
def test_a_run_killed_once_ends_as_if_it_had_not_been(what, data, tmp_path):
    """All terms, noise, mixing, augmentation, path length, R1 at every second.

    Once loading in the process itself, once in two others.
    """
    code, log = run(tmp_path, *small(what, data, tmp_path / "straight"))
    assert code == DONE and "done at iteration 8 of 8" in log
    state, rows = newest(tmp_path / "straight"), metrics(tmp_path / "straight")
    terms = {"restorer": {"adversarial", "identity", "component_mouth", "feature_style", "r1",
                          "d_mouth"},
             "prior": {"g", "path", "d", "r1"}}[what]
    assert terms <= set().union(*rows)
    assert [r["iteration"] for r in rows if "lr" in r] == list(range(1, 9))
    assert what == "restorer" or state["extra"]["path_mean"] > 0
    for workers in (0, 2):
        out = tmp_path / f"w{workers}"
        words = small(what, data, out, f"run.workers={workers}")
        p = start(command, *words, log=tmp_path / "log.txt")
        wait_for(has(out, 3))
        kill_all(p)
        assert p.exitcode == -signal.SIGKILL and newest(out)["iteration"] < 8
        code, log = run(tmp_path, *words)
        assert code == DONE, log
        again = newest(out)
        before, after = (s["config"]["run"] for s in (state, again))
        assert after.pop("workers") == workers
        assert before | {"workers": 0} == after | {"workers": 0}
        assert not differences(state | {"config": 0}, again | {"config": 0})
        assert metrics(out) == rows


def test_killed_at_random_moments_nothing_is_lost(data, tmp_path):
    kill_often("prior", data, tmp_path, 3)


def _killed_inside(folder, call, at):
    "A checkpoint is written until the `at`-th os.<call> (or Path.unlink); there the process dies."
    home = Path if call == "unlink" else os
    real, left = getattr(home, call), [at]

    def dies(*args):
        left[0] -= 1
        return os.kill(os.getpid(), signal.SIGKILL) if not left[0] else real(*args)

    setattr(home, call, dies)
    write_checkpoint(folder, 3, {"iteration": 3, "x": torch.ones(1000)}, 2)


def test_a_kill_at_any_step_of_saving_leaves_whole_checkpoints(tmp_path):
    for n, (call, at) in enumerate([("fsync", 1), ("replace", 1), ("fsync", 2), ("unlink", 1)]):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i in (1, 2):
            write_checkpoint(folder, i, {"iteration": i, "x": torch.ones(1000)}, 2)
        p = start(_killed_inside, folder, call, at, log=tmp_path / "log.txt")
        assert ended(p) == [-signal.SIGKILL], (tmp_path / "log.txt").read_text()
        left = 2 if n < 2 else 3
        assert newest(folder)["iteration"] == left and len(checkpoints(folder)) == left


# ---------------------------------------------------------------- what the command says

def _limited(size, *words):
    "The command in a process whose files may not grow beyond `size` bytes, as on a full disk."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    command(*words)


def test_a_full_disk_ends_with_one_line_and_code_1(data, tmp_path):
    out = tmp_path / "run"
    assert run(tmp_path, *small("prior", data, out, "run.iterations=2"))[0] == DONE
    last = checkpoints(out)[-1]
    size, kept = last.stat().st_size, last.read_bytes()
    code, log = run(tmp_path, size // 2, *small("prior", data, out), target=_limited)
    lines = [line for line in log.splitlines() if line.strip()]
    assert code == SOME_FAILED and len(lines) == 1 and lines[0].startswith("gfpgan-edu: ")
    assert "state-00000003.pt: not written" in lines[0] and "File too large" in lines[0]
    assert f"last good checkpoint: {last}" in lines[0]
    assert last.read_bytes() == kept and newest(out)["iteration"] == 2
    assert not list(out.glob("*.part"))
    code, log = run(tmp_path, *small("prior", data, out, "run.batch=4"))
    assert code in (SOME_FAILED, NOTHING_DONE)
    assert "run.batch was 2, is 4" in log and log.count("\n") == 1
    assert run(tmp_path, *small("prior", data, out))[0] == DONE     # there is room again


def test_time_limit_and_sigterm_to_the_whole_group(data, tmp_path):
    "A batch system sends SIGTERM to every process of a job, those that load pictures too."
    out = tmp_path / "run"
    words = small("restorer", data, out, "run.workers=2", "run.save_every=1000",
                  "run.iterations=500")
    timed = words[:words.index("--set")] + ["--minutes", "0"] + words[words.index("--set"):]
    code, log = run(tmp_path, *timed)
    assert code == DONE and "stopped at iteration 1 of 500" in log and newest(out)["iteration"] == 1
    p = start(command, *words, log=tmp_path / "log.txt")
    wait_for(lambda: len(metrics(out)) > 4)
    os.killpg(p.pid, signal.SIGTERM)
    assert ended(p) == [INTERRUPTED]
    log = (tmp_path / "log.txt").read_text()
    at = newest(out)["iteration"]
    assert f"interrupted at iteration {at} of 500" in log and "Traceback" not in log and at > 1
    assert metrics(out)[-1]["iteration"] == at
    code, log = run(tmp_path, *timed)
    assert code == DONE and f"stopped at iteration {at + 1} of 500" in log


def test_loading_processes_that_fail_or_die(data, tmp_path):
    bad = tmp_path / "faces"
    faces(bad)
    (bad / "05.png").write_bytes((bad / "05.png").read_bytes()[:60])
    code, log = run(tmp_path, *small("prior", bad, tmp_path / "a", "run.workers=2"))
    lines = [line for line in log.splitlines() if line.strip()]
    assert code in (SOME_FAILED, NOTHING_DONE) and len(lines) == 1, log
    assert str(bad / "05.png") in lines[0], log
    words = small("prior", data, tmp_path / "b", "run.workers=2", "run.iterations=100000",
                  "run.save_every=1000")
    p = start(command, *words, log=tmp_path / "log.txt")
    wait_for(lambda: (tmp_path / "b/metrics.jsonl").exists() and len(metrics(tmp_path / "b")) > 2)
    children = Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert ended(p, 60) == [SOME_FAILED]
    log = (tmp_path / "log.txt").read_text()
    assert "DataLoader worker" in log and "Traceback" not in log
    assert newest(tmp_path / "b")["iteration"] == 0


# ---------------------------------------------------------------- several processes

class Doubles:
    "Made-up pictures in float64, like a FaceFolder's."

    def __init__(self, degraded, n=24, size=16):
        g = torch.Generator().manual_seed(0)
        coarse = torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64) * 2 - 1
        self.gt = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        noise = torch.randn(self.gt.shape, generator=g, dtype=torch.float64)
        self.lq = (self.gt + 0.1 * noise).clamp(-1, 1)
        self.degraded = degraded

    def __len__(self):
        return len(self.gt)

    def __getitem__(self, key):
        boxes = torch.tensor([[2.0, 4, 7, 8], [9, 4, 14, 8], [4, 9, 12, 14]], dtype=torch.float64)
        more = {"lq": self.lq[key[1]], "boxes": boxes + key[1] / 8} if self.degraded else {}
        return {"gt": self.gt[key[1]]} | more


def shared(what, accumulate, out, spoil=False):
    """Three iterations in float64 of as many processes as there are.

    The main one writes the state. Draws that belong to a process are off.
    """
    run = toy_run(iterations=3, batch=16, accumulate=accumulate, save_every=3)
    no_report = dict(validate=lambda self: ({}, None))
    if what == "restorer":
        c = override(RestorerConfig.tiny(), SMALL["restorer"])
        c = replace(c, run=run, noise="fixed")
        t = type("Quiet", (RestorerTrainer,), no_report)(c, Doubles(True), out, device="cpu")
        with torch.no_grad():
            named = t.nets["g"].named_parameters()
            strengths = [p for name, p in named if name.endswith("noise_strength")]
            assert strengths
            for p in strengths:
                p.fill_(0.3)
        t.ema.load_state_dict(t.nets["g"].state_dict())
    else:
        c = override(PriorConfig.tiny(), SMALL["prior"])
        c = replace(c, run=run, noise="fixed", augment=(), path=0.0)
        t = type("Quiet", (PriorTrainer,), no_report)(c, Doubles(False), out, device="cpu")
    for net in (*t.nets.values(), *t.frozen.values(), t.ema):
        net.double()
    if spoil and t.rank == 1:
        next(t.nets["d"].parameters()).data += 1e-6
    try:
        t.fit()
    except TrainingError as e:
        print(e)
        return 3


@pytest.mark.parametrize("what", SMALL)
def test_processes_and_micro_batches_share_one_batch(what, tmp_path):
    """World × accumulate = 1×1, 1×2, 2×1, 2×2: the same training.

    The statistic of the minibatch (groups of 4) and R1 included.
    """
    states = {}
    ways = [(1, 1), (1, 2), (2, 1), (2, 2)]
    for world, k in ways:
        call, log = (shared, what, k, tmp_path / f"{world}{k}"), tmp_path / f"log{world}{k}"
        p = start_ranks(*call, world=world, log=log) if world > 1 else start(*call, log=log)
        assert ended(p) == [0] * world
        states[world, k] = newest(tmp_path / f"{world}{k}") | {"config": 0}
    rows = {way: metrics(tmp_path / f"{way[0]}{way[1]}") for way in ways}
    assert states[1, 1]["nets"]["d"]["first.weight"].dtype == torch.float64
    assert "r1" in rows[1, 1][1]
    for way in ways[1:]:
        assert not differences(states[1, 1], states[way], rtol=1e-7), way
        assert [r.keys() for r in rows[way]] == [r.keys() for r in rows[1, 1]]
        pairs = [(r[k], v) for r, s in zip(rows[way], rows[1, 1]) for k, v in s.items()]
        assert all(abs(x - v) <= 1e-7 * abs(v) + 1e-12 for x, v in pairs), way


def test_processes_with_different_weights_do_not_start(tmp_path):
    ranks = start_ranks(shared, "prior", 1, tmp_path / "run", True, world=2, log=tmp_path / "log")
    assert ended(ranks, 60) == [3, 3]
    says = "the processes start from different weights"
    assert all(says in (tmp_path / f"log.{r}").read_text() for r in (0, 1))
    assert not checkpoints(tmp_path / "run")


def _accident(out, on_nonfinite):
    """A toy on as many processes as there are.

    Picture 17 of the run is NaN, and belongs to one process.
    """
    bad = [key for b, _ in zip(Stream(10, 4), range(8)) for key in b][17]
    t = Toy(toy_run(on_nonfinite=on_nonfinite, save_every=3), out, Points(bad=bad))
    try:
        t.fit()
    except NonFinite as e:
        print(e)
        return 10 + t.it + t.rollbacks


def test_all_processes_see_the_accident_of_one(tmp_path):
    for choice, code in (("stop", 15), ("rollback", 18)):
        out, log = tmp_path / choice, tmp_path / f"log-{choice}"
        codes = ended(start_ranks(_accident, out, choice, world=2, log=log), 60)
        said = [Path(f"{log}.{r}").read_text() for r in (0, 1)]
        assert codes == [code] * 2, said
        want = (f"loss near, fool is not finite at iteration 5; "
                f"last good checkpoint: {out}/state-00000003.pt")
        assert all(want in s for s in said)
        rollbacks = [r for r in metrics(out) if "rollback" in r]
        assert len(rollbacks) == newest(out)["rollbacks"] == (3 if choice == "rollback" else 0)


def test_two_processes_stop_together_and_only_one_writes(data, tmp_path):
    """SIGINT to one of them, and at once SIGTERM, as torchrun passes Ctrl-C on.

    Then the run is ended by one process alone. Nobody tells them --device cpu.
    """
    out = tmp_path / "run"
    words = small("restorer", data, out, "run.iterations=100000", "run.save_every=1000",
                  "run.workers=1", "run.batch=2")
    untold = [w for w in words if w not in ("--device", "cpu")]
    ranks = start_ranks(command, *untold, world=2, log=tmp_path / "log", CUDA_VISIBLE_DEVICES="")
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 3)
    os.kill(ranks[1].pid, signal.SIGINT), os.kill(ranks[1].pid, signal.SIGTERM)
    codes = ended(ranks, 60)
    log = [(tmp_path / f"log.{r}").read_text() for r in (0, 1)]
    assert codes[1] == INTERRUPTED and codes[0] in (DONE, INTERRUPTED), log
    assert "Traceback" not in log[0] + log[1], log
    at, rows = newest(out)["iteration"], metrics(out)
    assert [r["iteration"] for r in rows if "lr" in r] == list(range(1, at + 1))
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert "at iteration" in log[0] and "at iteration" not in log[1]
    words[words.index("run.iterations=100000")] = f"run.iterations={at + 2}"
    assert run(tmp_path, *words)[0] == DONE and newest(out)["iteration"] == at + 2


def test_torchrun_ends_when_one_process_is_killed(data, tmp_path):
    out, env = tmp_path / "run", os.environ | dict(OMP_NUM_THREADS="1")
    words = small("prior", data, out, "run.iterations=100000", "run.save_every=2", "run.workers=1")
    tool = str(Path(sys.executable).with_name("gfpgan-edu"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
                "--nproc-per-node", "2", tool]
    with open(tmp_path / "log.txt", "wb") as log:
        p = subprocess.Popen([*torchrun, *map(str, words)], stdout=log, stderr=log, env=env,
                             start_new_session=True)
    try:
        wait_for(has(out, 2), 120)
        children = Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        began = time.monotonic()
        assert p.wait(60) != 0 and time.monotonic() - began < 60
        wait_for(lambda: not any(Path(f"/proc/{c}").exists() for c in children), 10)
        assert newest(out)["iteration"] >= 2
    finally:
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

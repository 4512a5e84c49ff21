"""Training runs as real processes, for the tests.

They are forked from a server that has imported everything once, so that one starts at once.

    run = start(command, "train", "prior", …, log=file)

is a process with pid, kill(), join(), exitcode; its output goes to the file.
"""
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gfpgan_edu.engine import Phase, Run, Trainer, adam, read_checkpoint, stepwise

# what a killed process left behind is cleaned up; no need to say so
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "gfpgan_edu.cli", "gfpgan_edu.train_prior", "gfpgan_edu.train_restorer", "gfpgan_edu.photos",
    "accelerate.utils", "cv2", "yaml", "tqdm", "torch.utils.tensorboard", "torchvision.ops"])


# ---------------------------------------------------------------- processes

def _child(target, args, log, env, start_method):
    # of its own children: the platform's
    multiprocessing.set_start_method(start_method, force=True)
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ |= env
    torch.set_num_threads(1)
    sys.exit(target(*args))


def start(target, *args, log, **env):
    "A process that runs target(*args) in its own process group; what it returns is its exit code."
    method = multiprocessing.get_start_method()
    p = CONTEXT.Process(target=_child, args=(target, args, str(log), env, method))
    p.start()
    return p


def start_ranks(target, *args, world, log, **env):
    "The same for `world` processes that know of one another, as torchrun would start them."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world), OMP_NUM_THREADS="1")
    return [start(target, *args, log=f"{log}.{r}", RANK=str(r), LOCAL_RANK=str(r), **env)
            for r in range(world)]


def ended(processes, within=120):
    "Their exit codes; any that is still there then is killed and gives None."
    processes = processes if isinstance(processes, list) else [processes]
    end = time.monotonic() + within
    for p in processes:
        p.join(max(0, end - time.monotonic()))
    codes = [p.exitcode for p in processes]
    for p in processes:
        kill_all(p)
    return codes


def kill_all(p):
    "The process and what it started."
    try:
        os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    p.join()


def wait_for(condition, within=60):
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


def command(*args):
    from gfpgan_edu.cli import main

    main([str(a) for a in args])


# ---------------------------------------------------------------- small runs

def faces(folder, n=10, size=32):
    "A folder of smooth coloured pictures."
    import cv2

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(n):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i:02d}.png"), picture)
    return folder


SMALL = {
    "restorer": ["model.size=16", "model.style_dim=16", "model.narrow=0.03125", "narrow_d=0.03125",
                 "embedder=random", "prior=random", "freeze_prior=false", "boxes=template",
                 "loss.adversarial=0.1", "loss.component=0.1", "loss.feature_style=1",
                 "loss.identity=0.1", "loss.pyramid=0.1", "loss.r1_every=2"],
    "prior": ["size=16", "style_dim=16", "r1_every=2", "path=2", "path_every=2", "mixing=0.9",
              "augment=[colour, place]", "narrow=0.03125", "narrow_d=0.03125"],
}
QUICK = ["run.iterations=8", "run.batch=2", "run.log_every=1", "run.valid_every=4",
         "run.save_every=1", "run.workers=0"]


def small(what, data, out, *settings, **options):
    "Words of the command for a small run that uses every term."
    extra = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", v)]
    base = ["train", what, "--preset", "tiny", "--data", data, "--out", out, "--device", "cpu"]
    return [*base, *extra, "--set", *SMALL[what], *QUICK, *settings]


def flat(state, name=""):
    "{path: leaf} of a nested state."
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in flat(value, f"{name}.{key}").items()}
    return {name: state}


def differences(a, b, rtol=0.0):
    "Names of the leaves where two states differ; tensors by more than rtol of their largest entry."
    def same(x, y):
        if not torch.is_tensor(x) or not torch.is_tensor(y):
            return type(x) is type(y) and x == y
        if x.dtype != y.dtype or x.shape != y.shape:
            return False
        return x.numel() == 0 or bool((x - y).abs().max() <= rtol * x.abs().max())

    a, b = flat(a), flat(b)
    return sorted(a.keys() ^ b.keys()) + [k for k in a.keys() & b.keys() if not same(a[k], b[k])]


def metrics(folder):
    "Rows of metrics.jsonl without what the clock measured."
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def newest(folder):
    "The state of the newest checkpoint; a damaged one is an error."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_checkpoint(folder)[0]


def kill_often(what, data, folder, kills, say=lambda line: None, seed=0):
    """Kill a small run at random moments until there were `kills` kills.

    The command is said again until a run is done; then another begins. Every checkpoint must be
    whole, none may get lost, and every run must end as one that nobody disturbed. Returns how many
    kills fell between two renames.
    """
    rng, words = random.Random(seed), lambda name: small(what, data, folder / name)
    log, began = folder / "log", time.monotonic()
    p = start(command, *words("straight"), log=log)
    assert ended(p) == [0], log.read_text()
    seconds = time.monotonic() - began
    straight, rows = newest(folder / "straight"), metrics(folder / "straight")
    done, runs, inside = 0, 0, 0
    while done < kills:
        name, before = f"run{runs}", -1
        out = folder / name
        while True:
            p = start(command, *words(name), log=log)
            p.join(rng.uniform(0, 0.9 * seconds) if done < kills else 120)
            hit = p.exitcode is None
            kill_all(p)
            assert hit or p.exitcode == 0, log.read_text()
            state = newest(out) if out.exists() else None
            at = state["iteration"] if state else -1
            assert at >= before, f"iteration {before} was saved, {at} is left"
            before, done = at, done + hit
            inside += bool(list(out.glob("state-*.part")))
            if not hit:
                break
            say(f"{what}: kill {done} of {kills}, at iteration {at}")
        odd = differences(straight, newest(out))
        assert not odd, f"{name} differs from the run that was not killed: {odd[:5]}"
        assert metrics(out) == rows and not list(out.glob("*.part"))
        runs += 1
    return inside


# ---------------------------------------------------------------- a toy

class Points:
    "Entry (epoch, index): a point on a line that tells which it is; `bad` is one that is NaN."

    def __init__(self, n=10, bad=None, dtype=torch.float32):
        self.n, self.bad, self.dtype, self.seen = n, bad, dtype, []

    def __len__(self):
        return self.n

    def __getitem__(self, key):
        epoch, i = key
        self.seen.append(key)
        x = float("nan") if key == self.bad else i / self.n
        return {"x": torch.tensor([x, 1.0], dtype=self.dtype)}


class Toy(Trainer):
    """Two linear networks that play: g moves points, d scores them.

    Noise, a running number, and a term every third iteration.
    """

    def __init__(self, run, out=None, data=None, terms=None, **options):
        torch.manual_seed(run.seed)
        nets = {"g": torch.nn.Linear(2, 2), "d": torch.nn.Linear(2, 1)}
        nets["g"].config = {"size": 2}
        opts = {k: adam(n, 0.01, (0.5, 0.99)) for k, n in nets.items()}
        phases = [Phase("g", terms or self.g_terms), Phase("d", self.d_terms),
                  Phase("d", self.slow_terms, 3)]
        super().__init__(config(run), out, nets, opts, phases, "g", data or Points(),
                         stepwise((4,)), device="cpu", **options)
        self.extra["mean"] = torch.zeros(())

    def g_terms(self, b):
        fake = self.call(self.fast["g"], b["x"] + 0.1 * torch.randn_like(b["x"]))
        b["fake"] = fake.detach()
        now = self.mean_over_processes(fake.detach().mean())
        self.extra["mean"] = 0.9 * self.extra["mean"] + 0.1 * now
        return {"near": fake.square().mean(), "fool": -self.call(self.fast["d"], fake).mean()}

    def d_terms(self, b):
        d = self.fast["d"]
        return {"d": (self.call(d, b["fake"]) - self.call(d, b["x"])).mean()}

    def slow_terms(self, b):
        return {"slow": 0.1 * self.nets["d"].weight.square().sum()}

    def validate(self):
        return {"size_of_g": float(sum(p.square().sum() for p in self.ema.parameters()))}, None


def config(run):
    from dataclasses import make_dataclass

    return make_dataclass("Config", [("run", Run)], frozen=True)(run)


def toy_run(**changes):
    base = Run(iterations=8, batch=4, workers=0, log_every=1, valid_every=4, save_every=2,
               ema_images=20.0)
    return replace(base, **changes)

# %% [markdown]
# # The training loop {#sec-engine}

# %%
#| default_exp engine

# %%
#| export
import io
import json
import math
import os
import signal
import sys
import time
import types
import warnings
import zipfile
from collections import defaultdict
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Callable, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from gfpgan_edu.weights import save


# %%
#| export
@dataclass(frozen=True)
class Run:
    "What every training run needs, whatever it trains."

    iterations: int = 800_000
    batch: int = 12                    # pictures per iteration, over all processes and micro-batches
    accumulate: int = 1                # micro-batches whose gradients are summed before a step
    seed: int = 0
    ema_images: float = 3750.0         # half-life of the average, in pictures seen: the official 0.5^(32/10000) at batch 12
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False              # torch.compile for what needs no second derivative
    workers: int = 4                   # processes that load and degrade
    log_every: int = 100               # iterations
    valid_every: int = 5000
    save_every: int = 5000
    keep: int = 3                      # checkpoints
    on_nonfinite: Literal["stop", "rollback"] = "stop"

    def __post_init__(self):
        for name in ("iterations", "batch", "accumulate", "log_every", "valid_every", "save_every", "keep", "ema_images"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, needs a positive number")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, needs 0 or more")


# %%
#| export
def _suits(v, hint):
    "`v` as the annotation `hint` wants it; TypeError where it does not suit."
    if get_origin(hint) in (Union, types.UnionType):
        return None if v is None else _suits(v, next(h for h in get_args(hint) if h is not type(None)))
    if get_origin(hint) is Literal:
        hint, ok = get_args(hint), v in get_args(hint)
    elif hint is float:
        try:
            v = float(v) if not isinstance(v, bool) else "a truth value"          # YAML 1.1 reads 1e-3 as text
        except (TypeError, ValueError):
            pass
        ok = isinstance(v, float)
    elif hint is tuple:
        ok, v = isinstance(v, (list, tuple)), tuple(v) if isinstance(v, list) else v
    else:
        ok = isinstance(v, hint) and isinstance(v, bool) == (hint is bool)
    if not ok:
        raise TypeError(f"needs {getattr(hint, '__name__', hint)}")
    return v


def config_from(cls, d, where=""):
    "A config dataclass `cls` from plain dicts, lists and numbers, as YAML holds them. Unknown keys and unfit values are a ValueError."
    hints, values = get_type_hints(cls), {}
    if not isinstance(d, dict):
        raise ValueError(f"{where.rstrip('.') or 'the config'} is {d!r}, needs keys and values")
    if unknown := sorted(map(str, d.keys() - hints.keys())):
        raise ValueError(f"unknown config key {where}{unknown[0]}; there are {', '.join(where + k for k in hints)}")
    for k, v in d.items():
        try:
            values[k] = config_from(hints[k], v, f"{where}{k}.") if is_dataclass(hints[k]) else _suits(v, hints[k])
        except TypeError as e:
            raise ValueError(f"{where}{k} is {v!r}, {e}") from None
    return cls(**values)


def plain(config):
    "The inverse of `config_from`: dicts, lists, numbers and text."
    return json.loads(json.dumps(asdict(config)))


def override(config, settings):
    'A copy of `config` with settings such as "run.batch=4"; values are read as YAML. Unknown keys are a ValueError.'
    import yaml

    d = plain(config)
    for setting in settings:
        key, eq, value = setting.partition("=")
        *path, last = key.strip().split(".")
        here = d
        for part in path:
            here = here.get(part) if isinstance(here, dict) else None
        if not eq or not isinstance(here, dict) or last not in here:
            raise ValueError(f"{setting!r}: no such setting; write key=value with a key as in config.yaml, such as run.batch=4")
        try:
            here[last] = yaml.safe_load(value) if value.strip() else ""
        except yaml.YAMLError:
            raise ValueError(f"{setting!r}: {value!r} is not YAML") from None
    return config_from(type(config), d)


# %%
#| export
class Stream:
    """Which picture comes when: an endless sampler of batches of (epoch, index) that depends on nothing but the clock.

    Picture p of the run (p = 0, 1, …) is entry p mod n of the permutation of epoch p div n. Of the `batch` pictures of an iteration,
    this process takes number rank, rank + world, … : together they see what one process would see.
    """

    def __init__(self, n, batch, seed=0, rank=0, world=1, start=0):
        self.n, self.batch, self.seed, self.rank, self.world, self.start = n, batch, seed, rank, world, start
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(n))

    def at(self, position):
        epoch, place = divmod(position, self.n)
        return epoch, int(self._order(epoch)[place])

    def __iter__(self):
        first = self.start * self.batch
        while True:
            yield [self.at(p) for p in range(first + self.rank, first + self.batch, self.world)]
            first += self.batch


def split(batch, k):
    "k micro-batches: number j takes samples j, j + k, … of every tensor."
    return [batch] if k == 1 else [{name: v[j::k] for name, v in batch.items()} for j in range(k)]


# %%
#| export
def ema_decay(batch, half_life):
    "Decay per iteration for which a weight's influence halves every `half_life` pictures."
    return 0.5 ** (batch / half_life)


@torch.no_grad()
def average(ema, net, decay):
    "ema ← decay·ema + (1 - decay)·net, over parameters; buffers stay as they are."
    own = list(ema.parameters())
    torch._foreach_mul_(own, decay)
    torch._foreach_add_(own, list(net.parameters()), alpha=1 - decay)


def stepwise(milestones, gamma=0.5, warmup=0):
    "Factor of the learning rate at an iteration: ×gamma after each milestone, rising linearly over the first `warmup` iterations."
    return lambda it: gamma ** sum(it > m for m in milestones) * min(1.0, it / warmup if warmup else 1.0)


def adam(net, lr, betas, lazy=None):
    """Adam over what is to be trained of `net`. `lazy` = k: a term that runs every k-th iteration shares this optimiser, so the betas
    are raised to k/(k+1), as StyleGAN2 does to keep the memory of the other steps."""
    ratio = lazy / (lazy + 1) if lazy else 1.0
    return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr, betas=(betas[0] ** ratio, betas[1] ** ratio))


# %%
#| export
class TrainingError(RuntimeError):
    "A run that cannot start or go on; the message names the reason and the last good checkpoint."


class NonFinite(TrainingError):
    "A loss or a gradient that is not a number."


def checkpoints(folder):
    "The state files of a run, oldest first."
    return sorted(Path(folder).glob("state-*.pt"))


@contextmanager
def naming(path):
    "What goes wrong while `path` is written becomes a TrainingError of one line: the file, the reason, the last good checkpoint beside it."
    try:
        yield
    except (OSError, RuntimeError) as e:                       # torch wraps a full disk in a RuntimeError
        cause, last = e.__context__ if isinstance(e.__context__, OSError) else e, checkpoints(path.parent)
        raise TrainingError(f"{path}: not written ({cause}); last good checkpoint: {last[-1] if last else 'none'}") from e


def write_whole(path, write):
    "All or nothing: `write(file)` fills another file, which is forced to the disk, then renamed to `path`. Raises TrainingError; `path` is as before then."
    part = path.with_suffix(".part")
    with naming(path):
        try:
            with open(part, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError):
            part.unlink(missing_ok=True)
            raise
        if os.name == "posix":                                 # the new name, too, has to reach the disk
            handle = os.open(path.parent, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


# %%
#| export
def write_checkpoint(folder, iteration, state, keep=3):
    "Write state-ITERATION.pt; only when it is safe on the disk are all but the last `keep` deleted. Raises TrainingError; the older ones are untouched then."
    path = Path(folder) / f"state-{iteration:08d}.pt"
    write_whole(path, lambda f: torch.save(state, f))
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def read_checkpoint(folder):
    "(state, path) of the newest undamaged checkpoint, (None, None) where there is none. Damaged ones are passed over with a warning."
    for path in reversed(checkpoints(folder)):
        try:
            with zipfile.ZipFile(path) as z:                   # torch.load does not verify the checksums in its own files
                if bad := z.testzip():
                    raise zipfile.BadZipFile(f"checksum of {bad} is wrong")
            return torch.load(path, map_location="cpu", weights_only=True), path
        except Exception as e:
            warnings.warn(f"{path}: damaged ({str(e).splitlines()[0] if str(e) else type(e).__name__}); going back to the one before")
    return None, None


# %%
#| export
@dataclass(frozen=True)
class Phase:
    "One backward pass: at iterations divisible by `every`, `terms(micro-batch)` -> {name: weighted loss} fills the gradients of `player`."

    player: str
    terms: Callable
    every: int = 1


# %%
#| export
class Players:
    """Networks that learn, each with its optimiser and its phases, and one iteration of them. In every process of a run there is one of these.

    nets {player: network that learns}, optimizers {player: Adam}, phases [Phase, …], averaged (the player whose average is kept),
    schedule (iteration -> factor of the learning rate), frozen {name: network that only helps}. `fast` has them all, compiled if asked.
    """

    def __init__(self, config, nets, optimizers, phases, averaged, schedule, frozen=None, device=None):
        from accelerate import PartialState

        self.config, self.run = config, config.run
        self.state = PartialState(cpu=device == "cpu", timeout=timedelta(minutes=30))
        self.rank, self.world, self.main = self.state.process_index, self.state.num_processes, self.state.is_main_process
        self.device = self.state.device if device is None else torch.device(device)
        if self.run.batch % (self.world * self.run.accumulate):
            raise TrainingError(f"batch {self.run.batch} cannot be shared by {self.world} processes × {self.run.accumulate} micro-batches")
        layout = torch.channels_last if self.run.channels_last else torch.preserve_format
        self.nets = {k: n.to(self.device, memory_format=layout) for k, n in nets.items()}
        self.frozen = {k: n.to(self.device, memory_format=layout) if isinstance(n, torch.nn.Module) else n for k, n in (frozen or {}).items()}
        self.fast = {k: torch.compile(n) if self.run.compile else n for k, n in (self.nets | self.frozen).items()}
        self.learns = {k: [p for p in n.parameters() if p.requires_grad] for k, n in self.nets.items()}
        self.averaged, self.ema = averaged, deepcopy(self.nets[averaged]).eval().requires_grad_(False)
        self.optimizers, self.phases, self.schedule = optimizers, phases, schedule
        self.base_lr = {k: o.param_groups[0]["lr"] for k, o in optimizers.items()}
        self.half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.run.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.it, self.lr_factor, self.rollbacks, self.extra, self.logs = 0, 1.0, 0, {}, {}

    def seed(self, shared=False):
        "All random numbers of an iteration follow from this, for this process or `shared` by all: there is no random state to save."
        stream = 0 if shared else self.rank + 1
        return int(np.random.SeedSequence([self.run.seed, self.it, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def inputs(self, batch):
        "The batch (this process's share) with whatever a subclass adds to it."
        return batch

    def call(self, net, *args, **kwargs):
        "net(*args) in the run's precision; what comes out is float32 again, so that losses are computed in it."
        up = lambda t: t.float() if torch.is_tensor(t) and t.dtype in (torch.bfloat16, torch.float16) else t
        with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            return torch.utils._pytree.tree_map(up, net(*args, **kwargs))

    def iteration(self, batch):
        "Every player takes its turn: gradients of its due phases over all micro-batches, one step; the average follows the averaged player."
        torch.manual_seed(self.seed())
        micros = split(self.inputs(batch), self.run.accumulate)
        self.logs, stepped = {}, False
        for player, optimizer in self.optimizers.items():
            for k, parameters in self.learns.items():
                for p in parameters:
                    p.requires_grad_(k == player)
            optimizer.zero_grad(set_to_none=True)
            if terms := self.gradients(player, micros):
                self.step(player, optimizer, terms)
                stepped = True
            if player == self.averaged:
                average(self.ema, self.nets[player], ema_decay(self.run.batch, self.run.ema_images))
        if stepped and self.scaler.is_enabled():
            self.scaler.update()

    def gradients(self, player, micros):
        "The backward passes that are due: they fill the gradients of `player` -> {name of a term: its mean over the micro-batches}."
        terms = defaultdict(float)
        for phase in self.phases:
            if phase.player == player and self.it % phase.every == 0:
                for micro in micros:
                    losses = phase.terms(micro)
                    self.scaler.scale(sum(losses.values()) / len(micros)).backward()
                    for name, v in losses.items():
                        terms[name] += v.detach() / len(micros)
        return terms

    def step(self, player, optimizer, terms):
        "Mean of gradients and losses over the processes, the check that all are finite, then the optimiser's step."
        grads = [p.grad for p in self.learns[player] if p.grad is not None]
        values = torch.stack([v.float() if v.dtype != torch.float64 else v for v in terms.values()])
        if self.world > 1:
            flat = self.mean_over_processes(torch.cat([g.flatten() for g in grads] + [values.to(grads[0].dtype)]))
            *parts, values = flat.split([g.numel() for g in grads] + [len(values)])
            for g, part in zip(grads, parts):
                g.copy_(part.view_as(g))
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        self.logs |= dict(zip(terms, values)) | {f"grad_{player}": norm}
        if not torch.isfinite(torch.cat([values, norm[None].to(values)])).all():
            bad = [k for k, v in zip(terms, values) if not torch.isfinite(v)]
            if bad or not self.scaler.is_enabled() or self.scaler.get_scale() < 1:     # a too large scale is fp16's affair: it skips the step
                raise NonFinite(f"{'loss ' + ', '.join(bad) if bad else 'the gradient of ' + player} is not finite at iteration {self.it}")
        for group in optimizer.param_groups:
            group["lr"] = self.base_lr[player] * self.schedule(self.it) * self.lr_factor
        self.scaler.step(optimizer)

    def mean_over_processes(self, t):
        from accelerate.utils import reduce

        return reduce(t, "mean") if self.world > 1 else t

    def state_dict(self):
        return dict(iteration=self.it, config=plain(self.config), lr_factor=self.lr_factor, rollbacks=self.rollbacks, scaler=self.scaler.state_dict(),
                    nets={k: n.state_dict() for k, n in self.nets.items()}, ema=self.ema.state_dict(), extra=dict(self.extra),
                    optimizers={k: o.state_dict() for k, o in self.optimizers.items()})

    def load_state_dict(self, state):
        for k, n in self.nets.items():
            n.load_state_dict(state["nets"][k])
            self.optimizers[k].load_state_dict(state["optimizers"][k])
        self.ema.load_state_dict(state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.it, self.lr_factor, self.rollbacks = state["iteration"], state["lr_factor"], state["rollbacks"]
        self.extra = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in state["extra"].items()}


# %%
#| export
FREE = {"run": {"iterations", "workers", "log_every", "valid_every", "save_every", "keep", "on_nonfinite"}}     # may change when a run goes on


def _differences(old, new, where=""):
    "Settings in which two plain configs differ, but for those in FREE: a list of sentences."
    out = []
    for k in old | new:
        if isinstance(old.get(k), dict) and isinstance(new.get(k), dict):
            out += _differences(old[k], new[k], f"{where}{k}.")
        elif old.get(k) != new.get(k) and k not in FREE.get(where.rstrip("."), ()):
            out.append(f"{where}{k} was {old.get(k)!r}, is {new.get(k)!r}")
    return out


def _quiet_worker(_):
    "A loading process: one thread; signals are its parent's affair, which needs it to the end of the iteration."
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)


@contextmanager
def _signals(trainer):
    "Ctrl-C and SIGTERM end the run after the iteration, with a checkpoint; again after two seconds (torchrun repeats what it gets at once): on the spot."
    import threading

    def ask(number, frame):
        nonlocal first
        if first is not None and time.monotonic() > first + 2:
            raise KeyboardInterrupt
        first, trainer.stop = first or time.monotonic(), "interrupted"

    first = None
    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)} if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


# %%
#| export
class Trainer(Players):
    """A run of `Players` in a folder: data, checkpoints, journal, signals. What the trainers of this book share.

    A subclass builds its networks, then calls this. `out`: the folder; None: nothing is written. `data`: a map-style data set with keys
    (epoch, index). For the rest see `Players`. A subclass may override `inputs`, `validate` and `card`.
    """

    def __init__(self, config, out, nets, optimizers, phases, averaged, data, schedule, frozen=None, device=None):
        super().__init__(config, nets, optimizers, phases, averaged, schedule, frozen, device)
        self.out, self.data, self.stop, self.deadline = None if out is None else Path(out), data, None, math.inf

    def validate(self):
        "(numbers {name: value}, picture uint8 H×W×3 or None) of the averaged network on fixed inputs."
        return {}, None

    def card(self):
        "What goes into the header of the weights that the run leaves."
        return dict(iterations=self.it, images=self.it * self.run.batch)

    def loader(self):
        stream = Stream(len(self.data), self.run.batch, self.run.seed, self.rank, self.world, self.it)
        workers = dict(num_workers=self.run.workers, persistent_workers=True, worker_init_fn=_quiet_worker) if self.run.workers else {}
        return torch.utils.data.DataLoader(self.data, batch_sampler=stream, pin_memory=self.device.type == "cuda", **workers)

    def place(self, batch):
        layout = torch.channels_last if self.run.channels_last else torch.contiguous_format
        return {k: v.to(self.device, non_blocking=True).contiguous(memory_format=layout if v.ndim == 4 else torch.contiguous_format) for k, v in batch.items()}

    def save(self):
        if self.main and self.out:
            write_checkpoint(self.out, self.it, self.state_dict(), self.run.keep)

    def resume(self):
        "Go back to the newest good checkpoint of the folder -> whether there was one. A folder made with another config is a TrainingError."
        import yaml

        state = None
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            state, _ = read_checkpoint(self.out)
            if state is None and checkpoints(self.out):
                raise TrainingError(f"{self.out}: every checkpoint is damaged; move the folder away to start anew")
            if state and (changed := _differences(state["config"], plain(self.config))):
                raise TrainingError(f"{self.out}: holds a run with another config: {'; '.join(changed)}. Choose another folder, or the same config")
        if state:
            self.load_state_dict(state)
        own = sum(p.detach().double().abs().sum() for n in self.nets.values() for p in n.parameters())
        mean = self.mean_over_processes(own)
        if self.mean_over_processes((own - mean).abs()) > 1e-9 * mean:
            raise TrainingError("the processes start from different weights")
        if self.main and self.out:
            for part in self.out.glob("*.part"):                                       # left by a run that was killed while it wrote
                part.unlink()
            write_whole(self.out / "config.yaml", lambda f: f.write(yaml.safe_dump(plain(self.config), sort_keys=False).encode()))
        return state is not None

    def fit(self, minutes=None):
        """Train from the newest checkpoint to the last iteration -> "done"; "stopped" at the time limit, "interrupted" by a signal, both with a checkpoint.

        Raises NonFinite where a loss or gradient is not finite (with `on_nonfinite="rollback"`: after three returns to the last checkpoint),
        TrainingError where the folder does not fit or cannot be written.
        """
        self.stop, self.deadline = None, math.inf if minutes is None else time.monotonic() + 60 * minutes
        resumed = self.resume()
        with Journal(self, self.it if resumed else -1) as journal, _signals(self):
            if not resumed and self.it == 0:
                self.report(journal)
                self.save()
            while True:
                try:
                    ended = self.loop(journal)
                    break
                except NonFinite as e:
                    self.roll_back(e, journal)
        if self.main and self.out:
            with naming(self.out / "ema.safetensors"):
                save(self.ema, self.out / "ema.safetensors", **self.card())
        self.state.wait_for_everyone()
        return ended

    def loop(self, journal):
        batches = iter(self.loader())
        while self.it < self.run.iterations:
            self.it += 1
            self.iteration(self.place(next(batches)))
            journal.tick(self.logs)
            if self.it % self.run.valid_every == 0 or self.it == self.run.iterations:
                self.report(journal)
            ending = self.agreed_stop()
            if ending or self.it % self.run.save_every == 0 or self.it == self.run.iterations:
                self.save()
            if ending and self.it < self.run.iterations:
                return self.stop or "stopped"
        return "done"

    def agreed_stop(self):
        "Whether any process was asked to stop or ran out of time; all learn it at the same iteration."
        if self.stop is None and time.monotonic() > self.deadline:
            self.stop = "stopped"
        if self.world == 1:
            return self.stop is not None
        return bool(self.mean_over_processes(torch.tensor(float(self.stop is not None), device=self.device)) > 0)

    def roll_back(self, error, journal):
        "Return to the last good checkpoint with half the learning rate, at most three times."
        state, path = read_checkpoint(self.out) if self.out else (None, "none")
        if state is None or self.rollbacks >= 3 or self.run.on_nonfinite != "rollback":
            raise NonFinite(f"{error}; last good checkpoint: {path}") from error
        rollbacks, factor = self.rollbacks + 1, self.lr_factor / 2
        self.load_state_dict(state)
        self.rollbacks, self.lr_factor = rollbacks, factor
        self.save()                                                                    # else a kill would forget it
        journal.rewind(f"{error}; back to iteration {self.it}, learning rate × {factor:g} ({rollbacks} of 3)")

    def report(self, journal):
        if self.main:
            journal.picture(*self.validate())
        self.state.wait_for_everyone()


# %%
#| export
class Journal:
    "What a run tells: a progress bar, metrics.jsonl, TensorBoard and valid-ITERATION.png in the run's folder. Only the main process writes."

    def __init__(self, trainer, keep):
        "Lines up to iteration `keep` stay; those after it will be written again."
        self.trainer, self.folder, self.keep = trainer, trainer.out if trainer.main else None, keep

    def __enter__(self):
        from tqdm import tqdm

        t = self.trainer
        self.bar = tqdm(total=t.run.iterations, initial=t.it, unit="it", disable=None if t.main else True, smoothing=0.05)
        self.file = self.board = None
        self.since, self.images = time.perf_counter(), t.it * t.run.batch
        if self.folder:
            from torch.utils.tensorboard import SummaryWriter

            self.trim(self.keep)
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=t.it + 1)
        return self

    def __exit__(self, *_):
        self.bar.close()
        for file in (self.file, self.board) if self.folder else ():
            with suppress(OSError):                            # every line has been flushed, or its loss reported
                file.close()

    def trim(self, keep):
        "Drop lines after the iteration `keep`, and one that was cut off."
        path, kept = self.folder / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError, KeyError):
                kept += [line] * (json.loads(line)["iteration"] <= keep)
        write_whole(path, lambda f: f.write("".join(f"{line}\n" for line in kept).encode()))
        self.file = open(path, "a", buffering=1)

    def write(self, numbers):
        t = self.trainer
        if self.folder:
            with naming(self.folder / "metrics.jsonl"):
                self.file.write(json.dumps(dict(iteration=t.it, images=t.it * t.run.batch) | numbers) + "\n")
            with naming(self.folder / "tensorboard"):
                for k, v in numbers.items():
                    if isinstance(v, (int, float)):
                        self.board.add_scalar(k, v, t.it)

    def tick(self, logs):
        "After each iteration; every `log_every` iterations the numbers are read from the device and written."
        t = self.trainer
        self.bar.update()
        if t.it % t.run.log_every == 0 or t.it == t.run.iterations:
            seconds, images = time.perf_counter() - self.since, t.it * t.run.batch - self.images
            self.since, self.images = time.perf_counter(), t.it * t.run.batch
            numbers = {k: float(v) for k, v in logs.items()}
            self.bar.set_postfix({"img/s": f"{images / seconds:.1f}"} | {k: f"{v:.3g}" for k, v in numbers.items() if not k.startswith("grad_")})
            self.write(numbers | dict(lr=t.base_lr[t.averaged] * t.schedule(t.it) * t.lr_factor, images_per_second=round(images / seconds, 2)))

    def picture(self, numbers, image):
        if numbers:
            self.write(numbers)
        if self.folder and image is not None:
            import cv2

            png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
            write_whole(self.folder / f"valid-{self.trainer.it:08d}.png", lambda f: f.write(png))

    def rewind(self, message):
        "The run went back to an earlier iteration."
        print(message, file=sys.stderr)
        self.bar.reset(total=self.trainer.run.iterations)
        self.bar.update(self.trainer.it)
        self.since, self.images = time.perf_counter(), self.trainer.it * self.trainer.run.batch
        if self.folder:
            self.file.close()
            self.trim(self.trainer.it)
            self.write(dict(rollback=message))

# %% [markdown]
# # The training loop {#sec-engine}
#
# > A run of six days will be interrupted. It has to end as if it had not been.
#
# **You will build** the loop that every training of this book runs in: who takes a step when, which picture comes next, what is averaged, what is saved, and what happens when a loss is not a number, a disk is full or a process dies.
# **Needs** @sec-losses for three loss functions and @sec-discriminators for one statistic.
# **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp engine

# %%
import contextlib
import io
import json
import tempfile
from dataclasses import field, replace

import matplotlib.pyplot as plt
import yaml
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.discriminators import Discriminator, minibatch_stddev
from gfpgan_edu.examples import draw_map
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.losses import d_logistic, g_logistic, r1

# %%
#| export
import json
import math
import os
import reprlib
import signal
import sys
import time
import types
import warnings
import zipfile
from collections import defaultdict
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, is_dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Callable, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from fastcore.basics import patch

from gfpgan_edu.weights import save

# %% [markdown]
# Networks and losses are there. What is missing is the loop in which they learn. @fig-engine-map is lit wherever training changes a weight. The loop of this chapter knows nothing of faces. It trains whatever it is given, and the example here is the smallest GAN that still shows every problem: points on a ring.

# %%
#| label: fig-engine-map
#| fig-cap: "The parts of the method that learn. The loop treats them as one player, `g`; the discriminators are the other players."
#| fig-alt: "The method as boxes and arrows; U-Net, codes, conditions, prior and pyramid are coloured, the degraded input and the output are not."
draw_map("unet", "latent", "csft", "stylegan2", "pyramid");


# %% [markdown]
# ## What a run is told
#
# A training run has some forty numbers. A mistyped one that is ignored in silence costs days. So a config is a frozen dataclass: each number has a name, a type and a default in one place. `Run` holds those that any training has.

# %%
#| export
@dataclass(frozen=True)
class Run:
    "What every training run needs, whatever it trains."

    iterations: int = 800_000
    batch: int = 12                    # pictures per iteration, of all processes
    accumulate: int = 1                # micro-batches whose gradients are summed before a step
    seed: int = 0
    ema_images: float = 3750.0         # half-life of the average, in pictures: official at batch 12
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False              # torch.compile for what needs no second derivative
    workers: int = 4                   # processes that load and degrade
    threads: int = 0                   # of the CPU; 0: torch's choice. 1 is quickest for small nets
    log_every: int = 100               # iterations
    valid_every: int = 5000
    save_every: int = 5000
    keep: int = 3                      # checkpoints
    on_nonfinite: Literal["stop", "rollback"] = "stop"

    def __post_init__(self):
        for name in ("iterations", "batch", "accumulate", "log_every", "valid_every", "save_every",
                     "keep", "ema_images"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, needs a positive number")
        # thousands of processes or threads bring a machine down
        for name, most in dict(seed=2**63 - 1, workers=1024, threads=1024).items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, needs 0 to {most}")
        if self.batch > 1 << 20:
            raise ValueError(f"batch is {self.batch}, needs {1 << 20} at most")


# %% [markdown]
# On disk a config is YAML. `config_from` builds the dataclass from what YAML holds and refuses what does not fit, `read_config` does so for a file, and names it; `override` changes single values, as the command line does.

# %%
#| export
def _suits(v, hint):
    "`v` as the annotation `hint` wants it; TypeError where it does not suit."
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(h for h in get_args(hint) if h is not type(None))
        return None if v is None else _suits(v, inner)
    if get_origin(hint) is Literal:
        hint, ok = get_args(hint), v in get_args(hint)
    elif hint is float:
        try:
            # YAML 1.1 reads 1e-3 as text
            v = float(v) if not isinstance(v, bool) else "a truth value"
        except (TypeError, ValueError, OverflowError):
            pass
        hint, ok = "a finite number", isinstance(v, float) and math.isfinite(v)
    elif hint is tuple:
        ok = isinstance(v, (list, tuple)) and all(isinstance(x, (int, float, str)) for x in v)
        v = tuple(v) if isinstance(v, list) else v
    else:
        ok = isinstance(v, hint) and isinstance(v, bool) == (hint is bool)
    if not ok:
        raise TypeError(f"needs {getattr(hint, '__name__', hint)}")
    return v


# %%
#| export
_told = reprlib.Repr()        # a few nested lists of YAML can be gigabytes once written out
_told.maxlevel, _told.maxstring = 2, 60


def config_from(cls, d, where=""):
    """A config dataclass `cls` from plain dicts, lists and numbers, as YAML holds them.

    Unknown keys and unfit values are a ValueError.
    """
    hints, values = get_type_hints(cls), {}
    if not isinstance(d, dict):
        what = where.rstrip(".") or "the config"
        raise ValueError(f"{what} is {_told.repr(d)}, needs keys and values")
    if unknown := sorted(" ".join(str(k)[:60].split()) for k in d.keys() - hints.keys()):
        known = ", ".join(where + k for k in hints)
        raise ValueError(f"unknown config key {where}{unknown[0]}; there are {known}")
    for k, v in d.items():
        try:
            nested = is_dataclass(hints[k])
            values[k] = config_from(hints[k], v, f"{where}{k}.") if nested else _suits(v, hints[k])
        except TypeError as e:
            raise ValueError(f"{where}{k} is {_told.repr(v)}, {e}") from None
    return cls(**values)


# %%
#| export
def _yaml(text):
    "YAML as dicts, lists and values; ValueError where it is none."
    import yaml

    try:
        return yaml.safe_load(text)
    except Exception as e:                  # YAMLError, and on odd values whatever Python raises
        why = (str(e) or type(e).__name__).splitlines()[0][:200]
        raise ValueError(f"not YAML ({why})") from None


def read_config(cls, path):
    """A config dataclass `cls` from a YAML file of at most 1 MB.

    Raises ValueError that names the file and the reason, and OSError.
    """
    with open(path, "rb") as f:
        data = f.read(1_000_001)
    try:
        if len(data) > 1_000_000:
            raise ValueError("larger than 1 MB, which no config is")
        return config_from(cls, _yaml(data))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def plain(config):
    "The inverse of `config_from`: dicts, lists, numbers and text."
    return json.loads(json.dumps(asdict(config)))


# %%
#| export
def override(config, settings):
    """A copy of `config` with settings such as "run.batch=4"; values are read as YAML.

    Unknown keys are a ValueError.
    """
    d = plain(config)
    for setting in settings:
        key, eq, value = setting.partition("=")
        *path, last = key.strip().split(".")
        here = d
        for part in path:
            here = here.get(part) if isinstance(here, dict) else None
        if not eq or not isinstance(here, dict) or last not in here:
            raise ValueError(f"{setting!r}: no such setting; write key=value with a key as in "
                             "config.yaml, such as run.batch=4")
        try:
            here[last] = _yaml(value) if value.strip() else ""
        except ValueError as e:
            raise ValueError(f"{setting!r}: {e}") from None
    return config_from(type(config), d)


# %%
@dataclass(frozen=True)
class RingConfig:
    "The example of this chapter."

    lr: float = 2e-3
    r1: float = 0.1
    r1_every: int = 16
    run: Run = field(default_factory=lambda: Run(
        iterations=1000, batch=128, ema_images=6400.0, workers=0, log_every=10, valid_every=100,
        save_every=100))


# YAML 1.1 takes 1e-3 for text; the field knows better
config = override(RingConfig(), ["lr=1e-3", "run.seed=3"])
assert config == replace(RingConfig(), lr=0.001, run=replace(RingConfig().run, seed=3))
written = yaml.safe_dump(plain(config))
assert config_from(RingConfig, yaml.safe_load(written)) == config       # there and back
for refused, why in {
    lambda: override(config, ["run.batchsize=4"]): "run.batch",
    lambda: config_from(RingConfig, {"rl": 1e-3}):
        "unknown config key rl; there are lr, r1, r1_every, run",
    lambda: config_from(RingConfig, {"run": {"batch": 2.5}}): "run.batch is 2.5, needs int",
    lambda: Run(batch=0): "batch is 0, needs a positive number",
    lambda: Run(workers=100_000): "workers is 100000, needs 0 to 1024",
}.items():
    test_fail(refused, exc=ValueError, contains=why)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "ring.yaml")
    path.write_text("lr: 1e-3\nrun: {seed: 3}\n")           # what is not said keeps its default
    assert read_config(RingConfig, path) == RingConfig(lr=0.001, run=Run(seed=3))
    path.write_text("rl: 1e-3\n")
    test_fail(lambda: read_config(RingConfig, path), exc=ValueError,
              contains="ring.yaml: unknown config key rl")


# %% [markdown]
# ## Which picture comes when
#
# A loader that shuffles keeps its place in random generators, one for each loading process. To resume exactly, all of them would have to be saved, and most training code does not. There is a simpler way: let the order be a *function of the clock*. Picture number $p$ of the run is
#
# $$ \big(e,\ \pi_e(p \bmod n)\big),\qquad e = \lfloor p/n \rfloor , $$ {#eq-engine-stream}
#
# with $n$ pictures in the folder, the epoch $e$, and $\pi_e$ a permutation drawn from the seed and $e$ alone. Iteration $t$ (from 1) takes pictures $(t-1)B$ to $tB-1$ for a batch of $B$. Of these, process $r$ of $W$ takes those with number $r, r+W, r+2W, \dots$ The data set gets the pair of epoch and index, and draws the degradation from it (@sec-faces). Nothing is left to save but $t$.

# %%
#| export
class Stream:
    """Which picture comes when: an endless sampler of batches that depends on the clock alone.

    A batch is a list of (epoch, index). Picture p of the run (p = 0, 1, …) is entry p mod n of the
    permutation of epoch p div n. Of the `batch` pictures of an iteration, this process takes number
    rank, rank + world, … : together they see what one process would see.
    """

    def __init__(self, n, batch, seed=0, rank=0, world=1, start=0):
        self.n, self.batch, self.seed = n, batch, seed
        self.rank, self.world, self.start = rank, world, start
        order = lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)
        self._order = lru_cache(2)(order)

    def at(self, position):
        epoch, place = divmod(position, self.n)
        return epoch, int(self._order(epoch)[place])

    def __iter__(self):
        first = self.start * self.batch
        while True:
            yield [self.at(p) for p in range(first + self.rank, first + self.batch, self.world)]
            first += self.batch


# %%
#| export
def split(batch, k):
    "k micro-batches: number j takes samples j, j + k, … of every tensor."
    if k == 1:
        return [batch]
    return [{name: v[j::k] for name, v in batch.items()} for j in range(k)]


# %%
def take(batches, **options):
    return [b for b, _ in zip(Stream(10, 4, seed=0, **options), range(batches))]


whole = take(5)
assert take(2, start=3) == whole[3:]                                    # going on = having gone on
shares = zip(take(5, rank=0, world=2), take(5, rank=1, world=2))
assert [a + b for a, b in shares] == [b[::2] + b[1::2] for b in whole]
for e in (0, 1):                                              # every picture once an epoch
    assert sorted(key for b in whole for key in b if key[0] == e) == [(e, i) for i in range(10)]
numbers = [i for e, i in sum(whole, [])]
assert numbers[:10] != numbers[10:]                                     # in another order

# %%
#| label: fig-engine-stream
#| fig-cap: "Ten pictures, batches of four, two processes. A cell is one picture of the run: its number in the folder; blue in epoch 0, orange in epoch 1; dark cells go to process 0."
#| fig-alt: "A table of five rows and four columns with numbers; the colour changes in the middle of the third row, and dark and light cells alternate."
shades = ("#0072B2", "#56B4E9"), ("#D55E00", "#F5B48A")                  # [epoch][process]
fig, ax = plt.subplots(figsize=(5.2, 2.3), layout="constrained")
for t, batch in enumerate(whole):
    for j, (e, i) in enumerate(batch):
        ax.add_patch(plt.Rectangle((j, -t - 1), 0.92, 0.88, fc=shades[e][j % 2]))
        colour = "black" if j % 2 else "white"
        ax.text(j + 0.46, -t - 0.56, i, ha="center", va="center", color=colour)
    ax.text(-0.2, -t - 0.56, f"iteration {t + 1}", ha="right", va="center", fontsize=9)
for j in range(4):
    ax.text(j + 0.46, 0.15, f"process {j % 2}", ha="center", fontsize=8)
ax.set(xlim=(-1.6, 4), ylim=(-5.1, 0.5)), ax.axis("off");

# %% [markdown]
# In @fig-engine-stream an epoch may end inside a batch; no picture is dropped. Why do processes take every second picture, not half of the batch each? Because a discriminator compares samples in groups, and picture $i$ belongs with $i + B/4, i + 2B/4, \dots$ (@sec-discriminators). With the stride a group stays together, in one process and in one micro-batch:

# %%
h = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
together = minibatch_stddev(h)[:, -1, 0, 0]
strided = torch.stack([minibatch_stddev(h[r::2])[:, -1, 0, 0] for r in (0, 1)], 1).flatten()
halves = torch.cat([minibatch_stddev(part)[:, -1, 0, 0] for part in h.chunk(2)])
assert_close(strided, together)                                         # the same statistic
assert not torch.allclose(halves, together, rtol=1e-2)                  # another one


# %% [markdown]
# ## The average that is kept
#
# The two players of a GAN chase each other, so the generator's weights circle. What is used afterwards is a running average of them, with decay $d$ per iteration:
#
# $$ \bar\theta_t = d\,\bar\theta_{t-1} + (1-d)\,\theta_t, \qquad d = 2^{-B/h} . $$ {#eq-engine-ema}
#
# Weights that are $k$ iterations old count with $(1-d)\,d^k$. A bare $d = 0.998$ tells little, and means something else at another batch size. So the config names the half-life $h$, in pictures seen. The official code writes $0.5^{32/10000}$. At its batch of 12 that is a half-life of 3750 pictures.

# %%
#| export
def ema_decay(batch, half_life):
    "Decay per iteration for which a weight's influence halves every `half_life` pictures."
    return 0.5 ** (batch / half_life)


@torch.no_grad()
def average(ema, net, decay):
    """ema ← decay·ema + (1 - decay)·net, over what is trained of `net`.

    The rest, such as a frozen prior and the buffers, is the same in both.
    """
    pairs = zip(ema.parameters(), net.parameters())
    own, new = zip(*((a, b) for a, b in pairs if b.requires_grad))
    torch._foreach_lerp_(own, new, 1 - decay)


# %%
d = ema_decay(12, 3750)
assert math.isclose(d, 0.5 ** (32 / 10000))
assert math.isclose(ema_decay(6, 3750) ** 2, d)     # half the batch, twice the iterations: the same
life = math.log(0.5) / math.log(d)
print(f"official decay {d:.3g}, half-life {life:.3g} iterations = {12 * life:.4g} pictures")

wander = torch.cumsum(torch.randn(400, generator=torch.Generator().manual_seed(2)), 0) / 10
path = wander + torch.sin(torch.arange(400) * 0.7)
mean, net = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
averages = {}
for half in (120, 600):
    mean.weight.data.fill_(path[0])
    averages[half] = []
    for x in path:
        net.weight.data.fill_(x)
        average(mean, net, ema_decay(12, half))
        averages[half].append(mean.weight.item())
k, decay = torch.arange(400), ema_decay(12, 120)
# the sum written out
closed = (1 - decay) * (decay ** (399 - k) * path).sum() + decay**400 * path[0]
assert_close(averages[120][-1], closed.item(), rtol=1e-4, atol=1e-5)

# %%
#| label: fig-engine-ema
#| fig-cap: "Left: how much weights of a given age count at the official decay, relative to the newest. Right: a made-up weight that circles (grey) and its averages with half-lives of 10 and 50 iterations."
#| fig-alt: "A falling exponential with its half marked at 3750 pictures; a jittering grey curve with a calm and a calmer, later curve through it."
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7), layout="constrained")
age = np.arange(0, 1500)
left.plot(age * 12, d**age, color="#0072B2")
left.plot([3750, 3750, 0], [0, 0.5, 0.5], ":", color="#444444")
left.set(xlabel="age in pictures", ylabel="influence", ylim=(0, 1.03), xlim=(0, 16000),
         xticks=range(0, 15001, 3750))
right.plot(path, color="#bbbbbb", lw=0.8)
for (half, line), colour in zip(averages.items(), ("#D55E00", "#009E73")):
    right.plot(line, color=colour, label=f"half-life {half // 12}")
right.set(xlabel="iteration"), right.legend(fontsize=8);


# %% [markdown]
# @fig-engine-ema shows the price: a longer half-life is calmer and later. Buffers, such as fixed noise, are not averaged, as in the official code.

# %% [markdown]
# ## Learning rates, and Adam with lazy terms
#
# The rate is halved at milestones. R1, the penalty on the discriminator's gradient, is computed at every 16th iteration only and multiplied by 16. StyleGAN2 [@karras2020stylegan2] makes an optimiser step of its own for such a lazy term, so $k$ iterations hold $k+1$ steps. To remember as long as before, Adam's [@kingma2015adam] decay factors become $\beta^{k/(k+1)}$, for then $(\beta^{k/(k+1)})^{k+1} = \beta^k$.

# %%
#| export
def stepwise(milestones, gamma=0.5, warmup=0):
    """Factor of the learning rate at an iteration, as a function of it.

    ×gamma after each milestone, rising linearly over the first `warmup` iterations.
    """
    def factor(it):
        return gamma ** sum(it > m for m in milestones) * min(1.0, it / warmup if warmup else 1.0)

    return factor


def adam(net, lr, betas, lazy=None):
    """Adam over what is to be trained of `net`.

    `lazy` = k: a term that runs every k-th iteration shares this optimiser, so the betas are raised
    to k/(k+1), as StyleGAN2 does to keep the memory of the other steps.
    """
    ratio = lazy / (lazy + 1) if lazy else 1.0
    learns = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.Adam(learns, lr, betas=(betas[0] ** ratio, betas[1] ** ratio), fused=True)


# %%
opt = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 1.0)
official, rates = torch.optim.lr_scheduler.MultiStepLR(opt, [3, 5], 0.5), []
for it in range(1, 9):
    opt.step()
    if it > 1:                    # the official loop: from iteration 2 on, the scheduler first
        official.step()
    rates.append(opt.param_groups[0]["lr"])
assert rates == [stepwise((3, 5))(it) for it in range(1, 9)]
assert [stepwise((), warmup=4)(it) for it in (1, 2, 8)] == [0.25, 0.5, 1]
beta = adam(torch.nn.Linear(1, 1), 2e-3, (0.0, 0.99), lazy=16).param_groups[0]["betas"][1]
assert math.isclose(beta**17, 0.99**16)
print("rates:", rates, f"\nβ2 of the discriminator: {beta:.6f}")


# %% [markdown]
# A milestone at 3 acts from iteration 4 on. That is how the official loop counts, and the trace of it in the tests is met to rounding. There, and here, R1 adds to the gradient of the same step, so the raised $\beta_2$ is a heritage more than a need. It is kept because it is part of the recipe.

# %% [markdown]
# ## Whose turn it is
#
# An iteration is a round of a game. Each *player* has a network and an optimiser, and takes one step. What fills its gradients is a list of *phases*: a loss function with an interval.

# %%
#| export
@dataclass(frozen=True)
class Phase:
    """One backward pass, at iterations divisible by `every`.

    terms(micro-batch) -> {name: weighted loss} fills the gradients of `player`.
    """

    player: str
    terms: Callable
    every: int = 1


# %%
def due(phases, it):
    return [p for p in phases if it % p.every == 0]


def schedule_of(*rows):
    return {name: Phase(player, None, every) for name, player, every in rows}


restorer = schedule_of(
    ("generator: all of Eq. 9", "g", 1), ("D: real and restored", "d", 1), ("D: R1", "d", 16),
    ("left eye", "left_eye", 1), ("right eye", "right_eye", 1), ("mouth", "mouth", 1))
prior = schedule_of(("generator: fool D", "g", 1), ("generator: path length", "g", 4),
                    ("D: real and drawn", "d", 1), ("D: R1", "d", 16))
assert [len(due(restorer.values(), it)) for it in (1, 15, 16, 32)] == [5, 5, 6, 6]
assert len(due(prior.values(), 48)) == 4

# %%
#| label: fig-engine-phases
#| fig-cap: "Backward passes of 33 iterations. Rows of one colour belong to one player: they fill the same gradients, and one step follows."
#| fig-alt: "Two timelines; most rows have a mark at every iteration, path length at every fourth, R1 at 16 and 32."
fig, axes = plt.subplots(2, 1, figsize=(8, 3.6), layout="constrained", height_ratios=[6, 4],
                         sharex=True)
colours = dict(g="#0072B2", d="#D55E00", left_eye="#009E73", right_eye="#CC79A7", mouth="#E69F00")
for ax, title, phases in zip(axes, ("restorer", "prior"), (restorer, prior)):
    for y, p in enumerate(phases.values()):
        at = [it for it in range(1, 34) if p in due(phases.values(), it)]
        ax.scatter(at, [y] * len(at), color=colours[p.player], marker="s", s=22)
    ax.set_yticks(range(len(phases)), phases, fontsize=8)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_ylim(len(phases) - 0.5, -0.5)                                # the first row on top
    ax.spines[["top", "right"]].set_visible(False)
axes[1].set_xlabel("iteration"), axes[1].set_xticks([1, 4, 8, 12, 16, 20, 24, 28, 32]);


# %% [markdown]
# @fig-engine-phases shows both trainings of this book. Players move in order: the generator steps first, and the discriminators judge the picture it made *before* that step, as the official code does.
#
# Two kinds of errors end a run. The second one has a section of its own below.

# %%
#| export
class TrainingError(RuntimeError):
    "A run that cannot start or go on; the message names the reason and the last good checkpoint."


class NonFinite(TrainingError):
    "A loss or a gradient that is not a number."


# %% [markdown]
# Now the round itself. `Players` holds the networks, their optimisers and the phases. It knows the device, the process it runs in, and the precision. All that changes from iteration to iteration stands in the last line of `__init__`.

# %%
#| export
class Players:
    """Networks that learn, each with its optimiser and its phases, and one iteration of them.

    In every process of a run there is one of these. nets {player: network that learns}, optimizers
    {player: Adam}, phases [Phase, …], averaged (the player whose average is kept), schedule
    (iteration -> factor of the learning rate), frozen {name: network that only helps}. `fast` has
    them all, compiled if asked.
    """

    def __init__(self, config, nets, optimizers, phases, averaged, schedule, frozen=None,
                 device=None):
        self.config, self.run = config, config.run
        self.state = _processes(device)
        self.rank, self.world = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process
        self.device = self.state.device if device is None else torch.device(device)
        if self.run.threads:
            torch.set_num_threads(self.run.threads)
        if self.run.batch % (self.world * self.run.accumulate):
            raise TrainingError(f"batch {self.run.batch} cannot be shared by {self.world} "
                                f"processes × {self.run.accumulate} micro-batches")
        self.nets = {k: self.put(n) for k, n in nets.items()}
        self.frozen = {k: self.put(n) for k, n in (frozen or {}).items()}
        everyone = self.nets | self.frozen
        self.fast = {k: torch.compile(n) if self.run.compile else n for k, n in everyone.items()}
        self.learns = {k: [p for p in n.parameters() if p.requires_grad]
                       for k, n in self.nets.items()}
        self.averaged = averaged
        self.ema = deepcopy(self.nets[averaged]).eval().requires_grad_(False)
        self.optimizers, self.phases, self.schedule = optimizers, phases, schedule
        self.base_lr = {k: o.param_groups[0]["lr"] for k, o in optimizers.items()}
        self.half = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[self.run.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.it, self.lr_factor, self.rollbacks, self.extra, self.logs = 0, 1.0, 0, {}, {}

    def inputs(self, batch):
        "The batch (this process's share) with whatever a subclass adds to it."
        return batch


# %% [markdown]
# Its methods follow one at a time, each a thought of its own. (`@patch`, as in @sec-gfpgan, puts a function into the class that its first argument names.) First where things are: which processes there are, and how a network gets to the device.

# %%
#| export
def _processes(device):
    "What `accelerate` knows of the processes of this run."
    with warnings.catch_warnings():                           # tqdm looks for Jupyter's widgets
        warnings.simplefilter("ignore")
        from accelerate import PartialState

    # untold, processes on CPUs do not find one another
    card = torch.cuda.is_available() or torch.backends.mps.is_available()
    cpu = device == "cpu" or device is None and not card
    return PartialState(cpu=cpu, timeout=timedelta(minutes=30))


@patch
def put(self: Players, net):
    "A network to the device, in the run's memory layout; what is no network stays as it is."
    if not isinstance(net, torch.nn.Module):
        return net
    last = self.run.channels_last
    return net.to(self.device, memory_format=torch.channels_last if last else torch.preserve_format)


# %% [markdown]
# All others lean on two. `seed` derives all random numbers from seed, iteration and process; as with the data, there is no random state to save. `call` runs a network in the precision of the run.

# %%
#| export
@patch
def seed(self: Players, shared=False):
    """All random numbers of an iteration follow from this, for this process or `shared` by all:
    there is no random state to save."""
    stream = 0 if shared else self.rank + 1
    entropy = np.random.SeedSequence([self.run.seed, self.it, stream])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


@patch
def call(self: Players, net, *args, **kwargs):
    "net(*args) in the run's precision; what comes out is float32 again, for the losses."
    def up(t):
        return t.float() if torch.is_tensor(t) and t.dtype in (torch.bfloat16, torch.float16) else t

    half = self.half is not None
    with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=half):
        return torch.utils._pytree.tree_map(up, net(*args, **kwargs))


# %% [markdown]
# `iteration` lets each player move. Only its own weights ask for gradients meanwhile; those of the others are constants that gradients pass through.

# %%
#| export
@patch
def iteration(self: Players, batch):
    """Every player takes its turn: gradients of its due phases over all micro-batches, one step.
    The average follows the averaged player."""
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


# %% [markdown]
# `gradients` runs the phases that are due. A batch too large for memory is cut into micro-batches; their gradients add up before the one step.

# %%
#| export
@patch
def gradients(self: Players, player, micros):
    """The backward passes that are due: they fill the gradients of `player`.
    -> {name of a term: its mean over the micro-batches}"""
    terms = defaultdict(float)
    for phase in self.phases:
        if phase.player == player and self.it % phase.every == 0:
            for micro in micros:
                losses = phase.terms(micro)
                self.scaler.scale(sum(losses.values()) / len(micros)).backward()
                for name, v in losses.items():
                    terms[name] += v.detach() / len(micros)
    return terms


# %% [markdown]
# `step` averages over processes, tests whether everything is finite, and moves. The mean of all gradients and losses is one message between the processes, however many tensors there are.

# %%
#| export
@patch
def step(self: Players, player, optimizer, terms):
    """Mean of gradients and losses over the processes, the check that all are finite, then the
    optimiser's step."""
    grads = [p.grad for p in self.learns[player] if p.grad is not None]
    values = torch.stack([v.float() if v.dtype != torch.float64 else v for v in terms.values()])
    if self.world > 1:
        message = [g.flatten() for g in grads] + [values.to(grads[0].dtype)]
        flat = self.mean_over_processes(torch.cat(message))
        *parts, values = flat.split([len(m) for m in message])
        for g, part in zip(grads, parts):
            g.copy_(part.view_as(g))
    if self.scaler.is_enabled():
        self.scaler.unscale_(optimizer)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    self.logs |= dict(zip(terms, values)) | {f"grad_{player}": norm}
    if not torch.isfinite(torch.cat([values, norm[None].to(values)])).all():
        bad = [k for k, v in zip(terms, values) if not torch.isfinite(v)]
        # a too large scale is fp16's affair: it skips the step
        if bad or not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            what = f"loss {', '.join(bad)}" if bad else f"the gradient of {player}"
            raise NonFinite(f"{what} is not finite at iteration {self.it}")
    for group in optimizer.param_groups:
        group["lr"] = self.base_lr[player] * self.schedule(self.it) * self.lr_factor
    self.scaler.step(optimizer)


@patch
def mean_over_processes(self: Players, t):
    from accelerate.utils import reduce

    return reduce(t, "mean") if self.world > 1 else t


# %% [markdown]
# Last, all that iteration $t+1$ depends on, out and in again.

# %%
#| export
@patch
def state_dict(self: Players):
    return dict(iteration=self.it, config=plain(self.config), lr_factor=self.lr_factor,
                rollbacks=self.rollbacks, scaler=self.scaler.state_dict(),
                nets={k: n.state_dict() for k, n in self.nets.items()}, ema=self.ema.state_dict(),
                extra=dict(self.extra),
                optimizers={k: o.state_dict() for k, o in self.optimizers.items()})


@patch
def load_state_dict(self: Players, state):
    for k, n in self.nets.items():
        n.load_state_dict(state["nets"][k])
        self.optimizers[k].load_state_dict(state["optimizers"][k])
    self.ema.load_state_dict(state["ema"])
    if self.scaler.is_enabled():
        self.scaler.load_state_dict(state["scaler"])
    self.it, self.lr_factor = state["iteration"], state["lr_factor"]
    self.rollbacks = state["rollbacks"]
    self.extra = {k: v.to(self.device) if torch.is_tensor(v) else v
                  for k, v in state["extra"].items()}


# %% [markdown]
# ## The smallest game
#
# A subclass says who plays and for what. Here the truth is a ring of eight Gaussians in the plane, and both networks are small perceptrons. `validate` also keeps the points for the pictures below. (`Trainer`, its base, comes in a moment. It adds the run around `Players`.)

# %%
angles = torch.arange(8) * 2 * math.pi / 8
MODES = torch.stack([angles.cos(), angles.sin()], 1)


class Ring:
    "A map-style data set: points near eight places on a circle."

    def __init__(self, n=4096):
        rng = torch.Generator().manual_seed(0)
        places = MODES[torch.randint(8, (n,), generator=rng)]
        self.x = places + 0.05 * torch.randn(n, 2, generator=rng)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        epoch, index = key
        return {"gt": self.x[index]}


def perceptron(cin, cout, width=64):
    net = torch.nn.Sequential(
        torch.nn.Linear(cin, width), torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(width, width), torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(width, cout))
    net.config = dict(cin=cin, cout=cout, width=width)    # goes into the header of saved weights
    return net


# %% [markdown]
# The trainer of a large network, in @sec-train-restorer, looks the same. It only has more terms.

# %%
def ring_trainer(config, out=None, poison=lambda it: 1.0):
    "A trainer for the ring; `poison(iteration)` multiplies the generator's loss, for accidents."
    class RingTrainer(Trainer):
        def g_terms(self, b):
            fake = self.call(self.fast["g"], torch.randn(len(b["gt"]), 8))
            b["out"] = fake.detach()                          # for the discriminator's turn
            return {"g": poison(self.it) * g_logistic(self.call(self.fast["d"], fake))}

        def d_terms(self, b):
            d = lambda x: self.call(self.fast["d"], x)
            return {"d": d_logistic(d(b["gt"]), d(b["out"]))}

        def r1_terms(self, b):
            x = b["gt"].clone().requires_grad_(True)
            # the second derivative: never compiled, in float32
            return {"r1": config.r1 / 2 * config.r1_every * r1(self.nets["d"](x), x)}

        @torch.no_grad()
        def validate(self):
            self.album[self.it] = [net(self.shown) for net in (self.nets["g"], self.ema)]
            near = torch.cdist(self.album[self.it][1], MODES) < 0.2     # four standard deviations
            share = near.any(1).float().mean().item()
            return {"near": share, "modes": int((near.sum(0) > 10).sum())}, None

    torch.manual_seed(config.run.seed)
    nets = dict(g=perceptron(8, 2), d=perceptron(2, 1))
    optimizers = dict(g=adam(nets["g"], config.lr, (0.0, 0.99)),
                      d=adam(nets["d"], config.lr, (0.0, 0.99), config.r1_every))
    t = RingTrainer(config, out, nets, optimizers, [], "g", Ring(), stepwise((800,)), device="cpu")
    t.phases = [Phase("g", t.g_terms), Phase("d", t.d_terms),
                Phase("d", t.r1_terms, config.r1_every)]
    t.shown, t.album = torch.randn(600, 8, generator=torch.Generator().manual_seed(1)), {}
    return t


# %% [markdown]
# ## The files of a run
#
# A process can be killed at any instruction, also while it writes. And a disk can fill up. So no file of a run is ever overwritten in place. The new content goes to another name, is forced to the disk with `fsync`, and takes over the name with one atomic `rename`. Whoever looks sees the old file or the new one, whole.

# %%
#| export
def checkpoints(folder):
    "The state files of a run, oldest first."
    return sorted(Path(folder).glob("state-*.pt"))


@contextmanager
def naming(path):
    """What goes wrong while `path` is written becomes a TrainingError of one line: the file, the
    reason, the last good checkpoint beside it."""
    try:
        yield
    except (OSError, RuntimeError) as e:                # torch wraps a full disk in a RuntimeError
        cause = e.__context__ if isinstance(e.__context__, OSError) else e
        last = checkpoints(path.parent)[-1:] or ["none"]
        raise TrainingError(f"{path}: not written ({cause}); "
                            f"last good checkpoint: {last[0]}") from e


def write_whole(path, write):
    """All or nothing: `write(file)` fills another file, which is forced to the disk, then renamed.

    Raises TrainingError; `path` is as before then.
    """
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
        if os.name == "posix":                            # the new name, too, has to reach the disk
            handle = os.open(path.parent, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


# %% [markdown]
# A *checkpoint* is one file with everything that iteration $t+1$ depends on: weights, average, both moments of every Adam, the counter, the config. A file that was whole when written may still rot. The zip format that PyTorch writes holds a checksum of each tensor, but `torch.load` does not compare it. `read_checkpoint` does, and falls back to the one before.

# %%
#| export
def write_checkpoint(folder, iteration, state, keep=3):
    """Write state-ITERATION.pt; when it is safe on the disk, all but the last `keep` are deleted.

    Raises TrainingError; the older ones are untouched then.
    """
    path = Path(folder) / f"state-{iteration:08d}.pt"
    write_whole(path, lambda f: torch.save(state, f))
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def read_checkpoint(folder):
    """(state, path) of the newest undamaged checkpoint, (None, None) where there is none.

    Damaged ones are passed over with a warning.
    """
    for path in reversed(checkpoints(folder)):
        try:
            with zipfile.ZipFile(path) as z:              # torch.load does not verify its checksums
                if bad := z.testzip():
                    raise zipfile.BadZipFile(f"checksum of {bad} is wrong")
            return torch.load(path, map_location="cpu", weights_only=True), path
        except Exception as e:
            why = str(e).splitlines()[0] if str(e) else type(e).__name__
            warnings.warn(f"{path}: damaged ({why}); going back to the one before")
    return None, None


# %%
with tempfile.TemporaryDirectory() as folder:
    for i in range(1, 6):
        weight = torch.full((1000,), float(i))
        last = write_checkpoint(folder, i, {"iteration": i, "weight": weight}, keep=3)
    print("kept:", [p.name for p in checkpoints(folder)])
    data = bytearray(last.read_bytes())
    at = data.find(np.float32(5).tobytes() * 50) + 402                  # inside the tensor
    data[at] ^= 1                                                       # one bit
    last.write_bytes(data)
    unnoticed = torch.load(last, weights_only=True)["weight"]    # PyTorch takes it for a weight
    assert len(unnoticed) == 1000 and (unnoticed != 5).sum() == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state, path = read_checkpoint(folder)
    print(str(told[0].message).replace(folder, "RUN"))
    assert state["iteration"] == 4 and path.name == "state-00000004.pt"
    assert (state["weight"] == 4).all()

# %% [markdown]
# ## The run around the game
#
# `Trainer` adds the folder. Its promise is one sentence: *the same command, said again, goes on where the run was.* Settings that fix the result may not change on the way, those that only watch it may:

# %%
#| export
# what may change when a run goes on
FREE = {"run": {"iterations", "workers", "threads", "log_every", "valid_every", "save_every",
                "keep", "on_nonfinite"}}


def _differences(old, new, where=""):
    "Settings in which two plain configs differ, but for those in FREE: a list of sentences."
    out = []
    for k in old | new:
        if isinstance(old.get(k), dict) and isinstance(new.get(k), dict):
            out += _differences(old[k], new[k], f"{where}{k}.")
        elif old.get(k) != new.get(k) and k not in FREE.get(where.rstrip("."), ()):
            out.append(f"{where}{k} was {old.get(k)!r}, is {new.get(k)!r}")
    return out


def _filled(cls, d):
    "A checkpoint's config with the defaults of settings that are younger than it."
    with suppress(ValueError):
        return plain(config_from(cls, d))
    return d


# %% [markdown]
# Batch systems end a job with SIGTERM, people with Ctrl-C. Both set a mark; the run finishes its iteration, saves and leaves. Loading processes ignore these signals, else the last iteration would wait for pictures from the dead.

# %%
#| export
def _quiet_worker(_):
    """A loading process: one thread; signals are its parent's affair, which needs it to the end of
    the iteration."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)


@contextmanager
def _signals(trainer):
    """Ctrl-C and SIGTERM end the run after the iteration, with a checkpoint; again after two
    seconds: on the spot. (torchrun repeats at once what it gets.)"""
    import threading

    def ask(number, frame):
        nonlocal first
        if first is not None and time.monotonic() > first + 2:
            raise KeyboardInterrupt
        first, trainer.stop = first or time.monotonic(), "interrupted"

    first = None
    # other threads may set no handler
    here = threading.current_thread() is threading.main_thread()
    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


# %% [markdown]
# A `Trainer` is what the trainers of this book have in common. It knows its folder, feeds the data and saves.

# %%
#| export
class Trainer(Players):
    """A run of `Players` in a folder: data, checkpoints, journal, signals.

    What the trainers of this book share. A subclass builds its networks, then calls this. `out`:
    the folder; None: nothing is written. `data`: a map-style data set with keys (epoch, index). For
    the rest see `Players`. A subclass may override `inputs`, `validate` and `card`.
    """

    def __init__(self, config, out, nets, optimizers, phases, averaged, data, schedule,
                 frozen=None, device=None):
        super().__init__(config, nets, optimizers, phases, averaged, schedule, frozen, device)
        self.out = None if out is None else Path(out)
        self.data, self.stop, self.deadline = data, None, math.inf

    def validate(self):
        "(numbers {name: value}, picture uint8 H×W×3 or None) of the average on fixed inputs."
        return {}, None

    def card(self):
        "What goes into the header of the weights that the run leaves."
        return dict(iterations=self.it, images=self.it * self.run.batch)

    def loader(self):
        run = self.run
        stream = Stream(len(self.data), run.batch, run.seed, self.rank, self.world, self.it)
        workers = {}
        if run.workers:
            import cv2

            # validation has used OpenCV's threads; a forked process would wait for them for ever
            cv2.setNumThreads(0)
            workers = dict(num_workers=run.workers, persistent_workers=True,
                           worker_init_fn=_quiet_worker)
        return torch.utils.data.DataLoader(self.data, batch_sampler=stream,
                                           pin_memory=self.device.type == "cuda", **workers)

    def place(self, batch):
        def layout(v):
            last = self.run.channels_last and v.ndim == 4
            return torch.channels_last if last else torch.contiguous_format

        return {k: v.to(self.device, non_blocking=True).contiguous(memory_format=layout(v))
                for k, v in batch.items()}

    def save(self):
        if self.main and self.out:
            write_checkpoint(self.out, self.it, self.state_dict(), self.run.keep)


# %% [markdown]
# `resume` goes back to where the folder is. It refuses a folder that holds another run, and processes that would start from different weights.

# %%
#| export
@patch
def resume(self: Trainer):
    """Go back to the newest good checkpoint of the folder -> whether there was one.

    A folder made with another config is a TrainingError.
    """
    import yaml

    state = None
    if self.out:
        self.out.mkdir(parents=True, exist_ok=True)
        state, _ = read_checkpoint(self.out)
        if state is None and checkpoints(self.out):
            raise TrainingError(f"{self.out}: every checkpoint is damaged; move the folder away to "
                                "start anew")
        now = plain(self.config)
        if state and (changed := _differences(_filled(type(self.config), state["config"]), now)):
            raise TrainingError(f"{self.out}: holds a run with another config: "
                                f"{'; '.join(changed)}. Choose another folder, or the same config")
    if state:
        self.load_state_dict(state)
    own = sum(p.detach().double().abs().sum() for n in self.nets.values() for p in n.parameters())
    mean = self.mean_over_processes(own)
    if self.mean_over_processes((own - mean).abs()) > 1e-12 * mean:
        raise TrainingError("the processes start from different weights")
    if self.main and self.out:
        for part in self.out.glob("*.part"):                  # left by a run killed while it wrote
            part.unlink()
        text = yaml.safe_dump(now, sort_keys=False)
        write_whole(self.out / "config.yaml", lambda f: f.write(text.encode()))
    return state is not None


# %% [markdown]
# `fit` is the whole story in twenty lines: resume, first report, loop, weights.

# %%
#| export
@patch
def fit(self: Trainer, minutes=None):
    """Train from the newest checkpoint to the last iteration -> "done".

    -> "stopped" at the time limit, "interrupted" by a signal, both with a checkpoint. Raises
    NonFinite where a loss or gradient is not finite (with `on_nonfinite="rollback"`: after three
    returns to the last checkpoint), TrainingError where the folder does not fit or cannot be
    written.
    """
    self.stop = None
    self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
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


@patch
def report(self: Trainer, journal):
    if self.main:
        journal.picture(*self.validate())
    self.state.wait_for_everyone()


# %% [markdown]
# All decisions that several processes must share, such as to stop, are agreed upon by all of them in the same iteration.

# %%
#| export
@patch
def loop(self: Trainer, journal):
    "Iterations, with reports and checkpoints, until the last one or until all agree to stop."
    batches = iter(self.loader())
    try:
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
    finally:
        # an error's traceback would keep the workers, and SIGTERM, Python's last word, they ignore
        if self.run.workers:
            batches._shutdown_workers()


@patch
def agreed_stop(self: Trainer):
    "Whether any process was asked to stop or ran out of time; all learn it at the same iteration."
    if self.stop is None and time.monotonic() > self.deadline:
        self.stop = "stopped"
    if self.world == 1:
        return self.stop is not None
    asked = torch.tensor(float(self.stop is not None), device=self.device)
    return bool(self.mean_over_processes(asked) > 0)


# %% [markdown]
# `roll_back` answers a loss that is not a number, if the config allows it. An accident below shows it at work.

# %%
#| export
@patch
def roll_back(self: Trainer, error, journal):
    "Return to the last good checkpoint with half the learning rate, at most three times."
    state, path = read_checkpoint(self.out) if self.out else (None, "none")
    if state is None or self.rollbacks >= 3 or self.run.on_nonfinite != "rollback":
        raise NonFinite(f"{error}; last good checkpoint: {path}") from error
    rollbacks, factor = self.rollbacks + 1, self.lr_factor / 2
    self.load_state_dict(state)
    self.rollbacks, self.lr_factor = rollbacks, factor
    self.save()                                               # else a kill would forget it
    journal.rewind(f"{error}; back to iteration {self.it}, learning rate × {factor:g} "
                   f"({rollbacks} of 3)")


# %% [markdown]
# What a run tells goes through the journal: a progress bar, `metrics.jsonl` with one line of numbers each, TensorBoard, validation sheets. When a run resumes at an older checkpoint, lines after it are dropped first, since they will be written again.

# %%
#| export
class Journal:
    """What a run tells: a progress bar, metrics.jsonl, TensorBoard and valid-ITERATION.png in the
    run's folder. Only the main process writes."""

    def __init__(self, trainer, keep):
        "Lines up to iteration `keep` stay; those after it will be written again."
        self.trainer, self.keep = trainer, keep
        self.folder = trainer.out if trainer.main else None

    def __enter__(self):
        from tqdm import tqdm

        t = self.trainer
        self.bar = tqdm(total=t.run.iterations, initial=t.it, unit="it",
                        disable=None if t.main else True, smoothing=0.05)
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
            with suppress(OSError):                       # every line was flushed, or its loss told
                file.close()


# %% [markdown]
# Lines are read from the device and written every `log_every` iterations only: to read a number, the processor waits until the GPU has computed it.

# %%
#| export
@patch
def write(self: Journal, numbers):
    "One line of {name: value} in metrics.jsonl; numbers go to TensorBoard too."
    t = self.trainer
    if self.folder:
        line = json.dumps(dict(iteration=t.it, images=t.it * t.run.batch) | numbers)
        with naming(self.folder / "metrics.jsonl"):
            self.file.write(line + "\n")
        with naming(self.folder / "tensorboard"):
            for k, v in numbers.items():
                if isinstance(v, (int, float)):
                    self.board.add_scalar(k, v, t.it)


@patch
def tick(self: Journal, logs):
    """After each iteration; every `log_every` iterations the numbers are read from the device and
    written."""
    t = self.trainer
    self.bar.update()
    if t.it % t.run.log_every == 0 or t.it == t.run.iterations:
        seconds, images = time.perf_counter() - self.since, t.it * t.run.batch - self.images
        self.since, self.images = time.perf_counter(), t.it * t.run.batch
        numbers = {k: float(v) for k, v in logs.items()}
        losses = {k: f"{v:.3g}" for k, v in numbers.items() if not k.startswith("grad_")}
        self.bar.set_postfix({"img/s": f"{images / seconds:.1f}"} | losses)
        lr = t.base_lr[t.averaged] * t.schedule(t.it) * t.lr_factor
        self.write(numbers | dict(lr=lr, images_per_second=round(images / seconds, 2)))


@patch
def picture(self: Journal, numbers, image):
    "What `Trainer.validate` gave: the numbers as a line, the picture as a file."
    if numbers:
        self.write(numbers)
    if self.folder and image is not None:
        import cv2

        png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
        write_whole(self.folder / f"valid-{self.trainer.it:08d}.png", lambda f: f.write(png))


# %%
#| export
@patch
def trim(self: Journal, keep):
    "Drop lines after the iteration `keep`, and one that was cut off."
    path, kept = self.folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError):
            kept += [line] * (json.loads(line)["iteration"] <= keep)
    write_whole(path, lambda f: f.write("".join(f"{line}\n" for line in kept).encode()))
    self.file = open(path, "a", buffering=1)


@patch
def rewind(self: Journal, message):
    "The run went back to an earlier iteration."
    print(message, file=sys.stderr)
    self.bar.reset(total=self.trainer.run.iterations)
    self.bar.update(self.trainer.it)
    self.since, self.images = time.perf_counter(), self.trainer.it * self.trainer.run.batch
    if self.folder:
        self.file.close()
        self.trim(self.trainer.it)
        self.write(dict(rollback=message))


# %% [markdown]
# ## One iteration by hand
#
# Is a round what it claims to be? The independent version is plain PyTorch: two networks, two optimisers, no classes. Iteration 16 has everything, R1 too.

# %%
def by_hand(config, it, x):
    "One iteration of the ring in plain PyTorch -> parameters of g, d and the average."
    torch.manual_seed(config.run.seed)
    g, d = perceptron(8, 2), perceptron(2, 1)
    mean = deepcopy(g)
    opt_g = torch.optim.Adam(g.parameters(), config.lr, betas=(0.0, 0.99))
    opt_d = torch.optim.Adam(d.parameters(), config.lr, betas=(0.0, 0.99 ** (16 / 17)))
    seed = np.random.SeedSequence([config.run.seed, it, 1]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(seed >> np.uint64(1)))
    fake = g(torch.randn(len(x), 8))
    softplus = torch.nn.functional.softplus
    softplus(-d(fake)).mean().backward()
    opt_g.step()
    for p, q in zip(mean.parameters(), g.parameters()):
        p.data = 0.5 ** (128 / 6400) * p.data + (1 - 0.5 ** (128 / 6400)) * q.data
    opt_d.zero_grad()
    loss = softplus(-d(x)).mean() + softplus(d(fake.detach())).mean()
    y = x.clone().requires_grad_(True)
    slope, = torch.autograd.grad(d(y).sum(), y, create_graph=True)
    (loss + config.r1 / 2 * 16 * slope.square().sum(1).mean()).backward()
    opt_d.step()
    return [list(n.parameters()) for n in (g, d, mean)]


config, x = RingConfig(), Ring().x[:128]
t = ring_trainer(config)
start = deepcopy(t.nets["d"]).state_dict()
t.it = 16
t.iteration({"gt": x})
for net, parameters in zip((t.nets["g"], t.nets["d"], t.ema), by_hand(config, 16, x)):
    for p, q in zip(net.parameters(), parameters):
        assert_close(p, q, rtol=1e-5, atol=1e-6)
assert set(t.logs) == {"g", "d", "r1", "grad_g", "grad_d"}
assert not torch.equal(start["0.weight"], t.nets["d"][0].weight)

# %% [markdown]
# ## Put together: the ring, live
#
# A thousand iterations of 128 points, with a folder, checkpoints and a journal. This is the class that trains GFP-GAN at 512 px.

# %%
work = tempfile.TemporaryDirectory()
runs = Path(work.name)
straight = ring_trainer(RingConfig(), runs / "straight")
assert straight.fit() == "done"
rows = [json.loads(line) for line in (runs / "straight/metrics.jsonl").read_text().splitlines()]
seen = [r for r in rows if "modes" in r]
found = {r["iteration"]: r["modes"] for r in seen}
print("iteration, modes found:", [(it, found[it]) for it in (0, 100, 1000)])
assert found[0] < 3 and found[1000] == 8 and seen[-1]["near"] > 0.5
files = sorted(p.suffix for p in (runs / "straight").iterdir() if p.is_file())
assert files == [".jsonl", ".pt", ".pt", ".pt", ".safetensors", ".yaml"]

# %%
#| label: fig-engine-ring
#| fig-cap: "The ring while it is learned: data in grey, 600 samples on top. Upper row: the generator at that iteration. Lower row: its average."
#| fig-alt: "Two rows of five scatter plots; samples begin as one clump, spread, form a ring through the eight clusters and thin out between them; the lower row lags at first."
at = [0, 100, 300, 500, 1000]
fig, axes = plt.subplots(2, len(at), figsize=(8, 3.5), layout="constrained")
for row, colour, name in zip((0, 1), ("#D55E00", "#0072B2"), ("generator", "average")):
    for ax, it in zip(axes[row], at):
        ax.scatter(*Ring().x[:600].T, s=2, color="#cccccc")
        ax.scatter(*straight.album[it][row].T, s=2, color=colour)
        ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"iteration {it}", fontsize=9) if row == 0 else None
    axes[row, 0].set_ylabel(name, fontsize=9);

# %% [markdown]
# In @fig-engine-ring the generator scatters its points, finds the circle, and begins to leave the gaps between the eight places. The average follows some hundred iterations behind. A thousand iterations do not empty the gaps; the journal shows how far it came:

# %%
#| label: fig-engine-journal
#| fig-cap: "metrics.jsonl of the run: losses of the players (left), and the share of averaged samples near a mode (right)."
#| fig-alt: "Left: two noisy curves that settle near 0.7 and 1.4. Right: a curve that rises from 0 to more than a half."
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained")
for name, colour in (("g", "#0072B2"), ("d", "#D55E00")):
    its, values = zip(*[(r["iteration"], r[name]) for r in rows if name in r])
    left.plot(its, values, color=colour, lw=0.8, label=name)
for level in (math.log(2), 2 * math.log(2)):
    left.axhline(level, color="#444444", lw=0.6, ls=":")
right.plot([r["iteration"] for r in seen], [r["near"] for r in seen], "o-", color="#009E73", ms=3)
left.set(xlabel="iteration", ylabel="loss"), left.legend(fontsize=8)
right.set(xlabel="iteration", ylabel="share", ylim=(0, 1));


# %% [markdown]
# The dotted lines in @fig-engine-journal are $\log 2$ and $2\log 2$: what the two losses are when the discriminator can only guess. A GAN near its aim looks like that. Losses that fall are no sign of success here, only samples are.

# %% [markdown]
# ## Interrupted and resumed
#
# The claim of the quote, tested. A second run is stopped in the middle of an epoch, twice, each time between two checkpoints. The process is new each time as far as the trainer is concerned; all it has is the folder.

# %%
class Stopped(BaseException):
    pass


def stop_at(iteration):
    def poison(it):
        if it == iteration:
            raise Stopped                                 # as sudden as a kill: nothing is saved
        return 1.0
    return poison


for crash in (237, 671):
    try:
        ring_trainer(RingConfig(), runs / "broken", stop_at(crash)).fit()
    except Stopped:
        print(f"died at {crash}, left:", checkpoints(runs / "broken")[-1].name)
again = ring_trainer(RingConfig(), runs / "broken")
assert again.fit() == "done"
leaves = lambda name: torch.utils._pytree.tree_leaves(read_checkpoint(runs / name)[0])
ours, theirs = leaves("broken"), leaves("straight")
assert len(ours) == len(theirs)
assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(ours, theirs))
print("tensors compared, all equal to the last bit:", sum(map(torch.is_tensor, ours)))
test_fail(lambda: ring_trainer(RingConfig(lr=1.0), runs / "broken").fit(), exc=TrainingError,
          contains="lr was 0.002, is 1.0")

# %% [markdown]
# The tests do the same with real processes and `kill -9`, also in the midst of saving, and with both trainings of the next chapters.

# %% [markdown]
# ## When a loss is not a number
#
# One infinite gradient makes every weight NaN. If nobody looks, the next checkpoints hold nothing else, and after `keep` of them the last good one is gone. So losses and gradients are tested *before* each step. The run stops with the name of the term. Or it goes back to the last checkpoint with half the learning rate, at most three times: a config that diverges will do so again.

# %%
with tempfile.TemporaryDirectory() as folder:
    t = ring_trainer(RingConfig(), Path(folder), lambda it: math.nan if it == 250 else 1.0)
    try:
        t.fit()
        raise AssertionError("must not end well")
    except NonFinite as e:
        print(str(e).replace(folder, "RUN"))
    nets = (*t.nets.values(), t.ema)
    assert all(torch.isfinite(p).all() for n in nets for p in n.parameters())    # not poisoned

# %%
visited = []


def accident(it):
    visited.append(it)
    times = {250: 1, 430: 8}.get(it, 0)
    return math.nan if visited.count(it) <= times else 1.0


config = override(RingConfig(), ["run.on_nonfinite=rollback"])
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
    t = ring_trainer(config, Path(folder), accident)
    test_fail(t.fit, exc=NonFinite, contains="loss g is not finite at iteration 430")
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    notes = [json.loads(line)["rollback"] for line in lines if "rollback" in line]
print(*notes, sep="\n")
assert len(notes) == 3 and t.rollbacks == 3 and t.lr_factor == 1 / 8
assert len(visited) == 250 + 230 + 30 + 30

# %%
#| label: fig-engine-rollback
#| fig-cap: "A run with two accidents: the loss is NaN once at iteration 250, and each time at iteration 430."
#| fig-alt: "A line that rises, falls back from 250 to 200, rises to 430, falls back to 400 twice and ends; the first two pieces carry the factor of the learning rate."
fig, ax = plt.subplots(figsize=(6.5, 2.5), layout="constrained")
ax.plot(range(1, len(visited) + 1), visited, color="#0072B2")
for n, end in enumerate((250, 480, 510, 540)):
    ax.plot(end, visited[end - 1], "x", color="#D55E00", ms=8, mew=2)
    if n < 2:
        ax.text(end - 4, visited[end - 1] + 12, f"rate × {0.5**n:g}", ha="right", fontsize=8)
ax.set(xlabel="iterations computed", ylabel="iteration", ylim=(0, 480));

# %% [markdown]
# In @fig-engine-rollback the first accident costs 50 iterations and half of the rate. The second one cannot be helped, and after the third return the run gives up. The return itself is saved at once, so that a kill does not make the run forget it.

# %% [markdown]
# ## Several processes
#
# One process drives one GPU. Each has all networks, and takes its share of the batch. A loss is a mean over pictures, so with equal shares the mean of the processes' gradients is the gradient of the whole batch:
#
# $$ \nabla_\theta \frac1B\sum_{i} \ell_i = \frac1W \sum_{r=0}^{W-1} \nabla_\theta \frac{W}{B}\sum_{i\,\equiv\, r \bmod W} \ell_i . $$ {#eq-engine-mean}

# %%
torch.manual_seed(0)
judge = Discriminator(16, narrow=1 / 16).double()
x, y = torch.randn(2, 8, 3, 16, 16, dtype=torch.float64)
grads = lambda x, y: torch.autograd.grad(d_logistic(judge(x), judge(y)), list(judge.parameters()))
of_all, by_rank = grads(x, y), [grads(x[r::2], y[r::2]) for r in (0, 1)]
for g, *parts in zip(of_all, *by_rank):
    # the statistic of the minibatch included
    assert_close(torch.stack(parts).mean(0), g, rtol=1e-9, atol=1e-12)
wrong = [grads(x[s], y[s]) for s in (slice(0, 4), slice(4, 8))]
assert not all(torch.allclose(torch.stack(parts).mean(0), g, rtol=1e-3)
               for g, *parts in zip(of_all, *wrong))

# %% [markdown]
# PyTorch's usual tool is `DistributedDataParallel`, a wrapper that averages gradients while `backward` runs. It expects one forward pass per backward pass. A GAN breaks that rule often: the discriminator sees real and fake pictures before one backward pass, R1 differentiates twice, micro-batches should not communicate at all, and each network is frozen in other players' turns. The official code lives with this through `find_unused_parameters` and a loss multiplied by $10^{-12}$ in place of 0. Here `step` joins all gradients of a player with its losses into one vector and averages that with a single all-reduce, after the last backward pass. There are no special cases, and every process sees the same losses and so the same accidents. The price is one more copy of a player's gradients in memory, and communication that does not overlap with computation:

# %%
with torch.device("meta"):
    generator, discriminator = GFPGAN(GFPGANConfig()).freeze_prior(), Discriminator(512)
    trained = sum(p.numel() for p in generator.parameters() if p.requires_grad)
    judged = sum(p.numel() for p in discriminator.parameters())
print(f"sent per iteration at 512 px: generator {trained * 4 / 1e6:.0f} MB, "
      f"discriminator {judged * 4 / 1e6:.0f} MB")
assert round(trained / 1e6, 1) == 51.3                        # the number of the official model

# %% [markdown]
# Inside one machine that is little beside an iteration at 512 px. Between machines with a slow network it is not.
#
# | where | command |
# |---|---|
# | one GPU, or a CPU | `gfpgan-edu train --preset paper --data faces --out runs/paper --prior prior.pth` |
# | four GPUs | `torchrun --no-python --nproc-per-node 4` and the same words |
# | two machines | on each, `torchrun --no-python --nproc-per-node 4 --nnodes 2 --node-rank 0` (`1` on the other) `--rdzv-backend c10d --rdzv-endpoint HOST:29500` and the same words; `--out` on a disk that both see |
# | after any interruption | the same command |
#
# : Starting a run {#tbl-engine-commands}
#
# In @tbl-engine-commands `batch` stays the number of pictures of *all* processes. So going from four GPUs to one needs no new learning rate, only `run.accumulate=4` where memory is short, and a run may change its number of processes between two starts. If a process dies, the others end too, with an error, not a silence. Ctrl-C under `torchrun` leaves a checkpoint as well; the launcher itself then complains and ends with code 1.

# %% [markdown]
# ## Half precision
#
# `precision` chooses what networks compute in. Weights, losses, R1 and Adam stay in float32. `bf16` has the range of float32 with 8 bits of mantissa and needs no care. `fp16` has a narrow range: small gradients vanish. They are saved by multiplying the loss with a large factor before `backward` and dividing after it. Where the factor was too large the step is skipped and the factor halved.

# %%
small = torch.tensor(1e-8)
assert small.half() == 0
assert (small * 2**16).half().float() / 2**16 > 0.9e-8                  # saved by the factor
assert small.bfloat16() > 0 and torch.tensor(1.003).bfloat16() == 1     # in range, but coarse
for precision in ("bf16", "fp16"):
    t = ring_trainer(override(RingConfig(), [f"run.precision={precision}", "run.iterations=20"]))
    assert t.nets["g"](t.shown).dtype == torch.float32
    inside = []
    hook = t.nets["g"][0].register_forward_hook(lambda m, i, o: inside.append(o.dtype))
    out = t.call(t.nets["g"], t.shown)
    hook.remove()
    assert inside == [t.half] and out.dtype == torch.float32        # half inside, float32 outside
    assert t.fit() == "done"
    weights = list(t.nets["g"].parameters())
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in weights)
    print(precision, "factor of the loss:", int(t.scaler.get_scale()))

# %% [markdown]
# A factor of $2^{127}$ overflows for certain. The step must be left out without an alarm:

# %%
t = ring_trainer(override(RingConfig(), ["run.precision=fp16"]))
t.scaler, before = torch.amp.GradScaler("cpu", init_scale=2.0**127), t.nets["g"][0].weight.clone()
t.it = 1
t.iteration({"gt": Ring().x[:128]})
assert not torch.isfinite(t.logs["grad_g"]) and torch.equal(before, t.nets["g"][0].weight)
assert t.scaler.get_scale() == 2.0**126
work.cleanup()

# %% [markdown]
# Two more switches trade nothing but time. `channels_last` stores feature maps pixel by pixel, which convolutions on CPUs and tensor cores prefer. `compile` translates the networks with `torch.compile`, but for R1 and path length: compiled code cannot be differentiated twice, so these two call the plain network.

# %% [markdown]
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | iterations, batch | 800k, 12 | the same, 4 GPUs × 3 | the same, shared by any number of processes | one batch size, whatever the machine |
# | milestones | 700k, 750k | 600k, 700k, acting one later | both presets; one later | the trace is met |
# | average | not stated | $0.5^{32/10000}$ per iteration, parameters only | half-life in pictures; the same number at batch 12 | keeps its meaning at other batches |
# | lazy R1 | not stated | ratio reaches Adam's $\beta$ only; the computed learning rate is overridden | the same | the trace is met |
# | R1's input | – | the batch itself gets `requires_grad` | a copy | its crops are needed later |
# | order of data | – | shuffled by generators; loading processes repeat their degradation draws in every epoch | a function of seed, epoch, index | nothing repeats, nothing to save |
# | random numbers | – | one seed for each process at the start | a seed for each iteration | resuming is exact |
# | resume | – | weights, optimisers and counter in several files; not the data's place | one file, everything, checked, atomic | tested bit for bit |
# | gradients over GPUs | – | DistributedDataParallel, `find_unused_parameters`, a term × $10^{-12}$ | one all-reduce per player | see above |
# | validation | – | first process alone, no barrier | first process, the others wait | else they wait in the next all-reduce, which has its own time limit |
# | NaN | – | not looked for | stop, or return at most three times | a week of NaN helps nobody |
# | unknown keys | – | ignored | an error | a typo costs days |
#
# : Where the three versions of the loop differ {#tbl-engine-versions}
#
# None of the rows of @tbl-engine-versions changes what a step computes: with the same weights, pictures and noise, five iterations equal those of the official code to rounding in float64. The tests replay them.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# **"All losses are NaN at iteration 100"** (GFPGAN, issue 19) and **"fine until 25k, then the pixel loss is 1e27"** (issue 270). Nothing watched the losses, so the broken weights were saved. Watch `grad_g` and `grad_d` in `metrics.jsonl`: they rise before a crash. Remedies, in this order: a pretrained prior, a lower `lr`, `warmup`, `precision=fp32`.
#
# **"Resuming does not work"** (issue 17). Say the same command again. If an option changed, the error names it with both values.
#
# **"I have one GPU"** (issue 93). `run.batch` counts all pictures. Keep 12 and set `run.accumulate` to 2, 3, 4, 6 or 12 until it fits. The minibatch statistic then has groups of at most a micro-batch, as on the paper's four GPUs with three pictures each.
# :::

# %% [markdown]
# ## Summary
#
# * A round gives each player one step; phases with intervals fill its gradients.
# * Order of data and random numbers are functions of the clock. A run of the same command resumes bit for bit.
# * The average is named by its half-life in pictures: 3750 is the official decay.
# * Files are written whole or not at all, verified when read, and the older ones stay.
# * Losses and gradients are tested before they can touch a weight.
#
# The ring was a toy. @sec-train-prior gives the loop its first faces.
#
# ## Exercises
#
# 1. **Compute.** FFHQ has 70,000 pictures. How many epochs are 800,000 iterations of 12? How old, in iterations, are the weights that count one percent as much as the newest ones in the average?
# 2. **Modify.** Give the ring a player more: a second discriminator that sees only the upper half plane. Which methods of `Players` must change?
# 3. **Break.** Replace the permutation of `Stream` by `torch.randperm(n)`, seeded once at the start. Which check turns red first? Which bug would remain if only the check of the first epoch existed?
#
# Worked solutions: [nbs/solutions/13_engine.ipynb](solutions/13_engine.ipynb).
#
# ## References
#
# Games of two networks come from @goodfellow2014gan, lazy regularisation and the average as part of the recipe from @karras2020stylegan2, the R1 penalty from @mescheder2018r1, and Adam from @kingma2015adam. The training recipe is that of @wang2021gfpgan.

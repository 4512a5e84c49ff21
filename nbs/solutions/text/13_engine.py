# %% [markdown]
# # Solutions: the engine {#sec-solutions-engine .unnumbered}
#
# The exercises are those of @sec-engine.

# %%
import math
from dataclasses import dataclass, field
from functools import lru_cache

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail

from gfpgan_edu.engine import Phase, Players, Run, Stream, adam, average, ema_decay, stepwise
from gfpgan_edu.losses import d_logistic, g_logistic

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: epochs and age
#
# *How many epochs are 800,000 iterations of 12 on 70,000 pictures, and how old are weights that count one percent?* Epochs: $800{,}000\cdot12/70{,}000$. With a half-life of 3,750 pictures, $2^{-n/3750}=0.01$ gives $n=3750\log_2 100$ pictures.

# %%
run = Run()
epochs = run.iterations * run.batch / 70_000
age = run.ema_images * math.log2(100) / run.batch
print(f"{epochs:.0f} epochs; one percent after {age:.0f} iterations")
last_epoch, _ = Stream(70_000, run.batch).at(run.iterations * run.batch - 1)
assert last_epoch == math.floor(epochs - 1e-9) == 137

# how much of old weights is left, counted
old, zero = torch.nn.Linear(1, 1).double(), torch.nn.Linear(1, 1).double()
torch.nn.init.ones_(old.weight), torch.nn.init.zeros_(zero.weight)
left = []
while not left or left[-1] > 0.01:
    average(old, zero, ema_decay(run.batch, run.ema_images))
    left.append(old.weight.item())
assert abs(len(left) - age) <= 1

# %% [markdown]
# 137 epochs, and 2,076 iterations, a quarter of a percent of the run: the average forgets quickly what was long ago.
#
# ## 2. Modify: a third player
#
# *Give the ring a second discriminator that sees only the upper half plane. Which methods of `Players` change?* None. A player is an entry of `nets`, one of `optimizers`, and its phases; `Players` goes through the dictionaries. What changes is the subclass: one more term for the generator, one method of terms for the new judge.

# %%
angles = torch.arange(8) * 2 * math.pi / 8
MODES = torch.stack([angles.cos(), angles.sin()], 1)


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=lambda: Run(batch=128, ema_images=6400))
    lr: float = 0.002


def perceptron(cin, cout, width=64):
    act = torch.nn.LeakyReLU(0.2)
    return torch.nn.Sequential(torch.nn.Linear(cin, width), act, torch.nn.Linear(width, width), act,
                               torch.nn.Linear(width, cout))


# %%
class Ring(Players):
    def upper(self, x):
        "Scores of the points above the x axis alone; none above: one score of 0."
        above = x[x[:, 1] > 0]
        return self.nets["up"](above) if len(above) else x.new_zeros(1, 1)

    def g_terms(self, b):
        fake = self.nets["g"](torch.randn(len(b["gt"]), 8))
        b["out"] = fake.detach()
        return {"g": g_logistic(self.nets["d"](fake)), "g_up": g_logistic(self.upper(fake))}

    def d_terms(self, b):
        return {"d": d_logistic(self.nets["d"](b["gt"]), self.nets["d"](b["out"]))}

    def up_terms(self, b):
        return {"up": d_logistic(self.upper(b["gt"]), self.upper(b["out"]))}


# %% tags=["volatile"]
config = Config()
torch.manual_seed(0)
nets = dict(g=perceptron(8, 2), d=perceptron(2, 1), up=perceptron(2, 1))
optimizers = {k: adam(n, config.lr, (0.0, 0.99)) for k, n in nets.items()}
t = Ring(config, nets, optimizers, [], "g", stepwise(()), device="cpu")
t.phases = [Phase("g", t.g_terms), Phase("d", t.d_terms), Phase("up", t.up_terms)]
start, rng = {k: n[0].weight.clone() for k, n in nets.items()}, torch.Generator().manual_seed(1)
for t.it in range(1, 601):
    x = MODES[torch.randint(8, (128,), generator=rng)] + 0.05 * torch.randn(128, 2, generator=rng)
    t.iteration({"gt": x})
with torch.no_grad():
    points = t.ema(torch.randn(600, 8, generator=torch.Generator().manual_seed(2)))
distance = (points.norm(dim=1) - 1).abs().mean().item()
terms = ", ".join(k for k in t.logs if "grad" not in k)
print(f"terms: {terms}; mean distance from the circle {distance:.2f}")
assert all((n[0].weight - start[k]).abs().max() > 0.01 for k, n in nets.items())  # all three learn
assert distance < 0.3 and {"g", "g_up", "d", "up"} <= t.logs.keys()

# %%
#| fig-alt: "Blue points of a generator and eight orange circles on a ring, with a dashed line through the middle."
fig, ax = plt.subplots(figsize=(2.6, 2.6), layout="constrained")
ax.scatter(*points.T, s=4, color="#0072B2")
ax.scatter(*MODES.T, s=90, facecolors="none", edgecolors="#D55E00")
ax.axhline(0, color="#444444", lw=0.8, ls="--")
ax.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal");


# %% [markdown]
# Three players learn by the code of two. The points come to lie around the circle, in this run more tightly above the dashed line, where two judges look, than below, where one does. The component judges of GFP-GAN (@sec-train-restorer) are players of the same kind: each sees a part.
#
# ## 3. Break: one permutation from a seeded generator
#
# *Use `torch.randperm(n)`, seeded once at the start, in `Stream`. Which check turns red first?* The permutation of an epoch now depends on how many have been drawn before, and no longer on the epoch.

# %%
class Stateful(Stream):
    def __init__(self, n, batch, seed=0, rank=0, world=1, start=0):
        super().__init__(n, batch, seed, rank, world, start)
        rng = torch.Generator().manual_seed(seed)
        self._order = lru_cache(2)(lambda epoch: torch.randperm(n, generator=rng).numpy())


def take(cls, batches, **options):
    return [b for b, _ in zip(cls(10, 4, seed=0, **options), range(batches))]


def goes_on(cls):
    assert take(cls, 2, start=3) == take(cls, 5)[3:]


def two_processes(cls):
    whole = take(cls, 5)
    shares = zip(take(cls, 5, rank=0, world=2), take(cls, 5, rank=1, world=2))
    assert [a + b for a, b in shares] == [b[::2] + b[1::2] for b in whole]


# %%
def every_picture_once(cls, epochs=(0, 1)):
    keys = sum(take(cls, 5), [])
    assert all(sorted(k for k in keys if k[0] == e) == [(e, i) for i in range(10)] for e in epochs)


def another_order(cls):
    keys = sum(take(cls, 5), [])
    assert [i for _, i in keys[:10]] != [i for _, i in keys[10:]]


for check in (goes_on, two_processes, every_picture_once, another_order):
    check(Stream)
    try:
        check(Stateful)
        print(f"{check.__name__:20} green")
    except AssertionError:
        print(f"{check.__name__:20} red")
test_fail(lambda: goes_on(Stateful), exc=AssertionError)
every_picture_once(Stateful, epochs=(0,))

# %% [markdown]
# "Going on = having gone on" turns red first, and alone: a run that is resumed in its second epoch gets the first epoch's order again. Two processes and single epochs look healthy, as both generators are asked in step. With a check of the first epoch alone the bug would remain, and show itself only as a run that cannot be repeated after a restart.

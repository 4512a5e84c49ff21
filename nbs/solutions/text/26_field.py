# %% [markdown]
# # Solutions: where the field went {#sec-solutions-field .unnumbered}
#
# The exercises are those of @sec-field.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from gfpgan_edu.examples import show
from gfpgan_edu.weights import load_prior

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: twice the error
#
# *Show that a draw from the posterior has twice the error of the posterior mean. Where is it used that draw and truth are independent given $y$?* Write $m=\mathbb E[x|y]$ and put it between truth and draw:
#
# $$\mathbb E\lVert x-\tilde x\rVert^2=\mathbb E\lVert x-m\rVert^2+\mathbb E\lVert\tilde x-m\rVert^2-2\,\mathbb E\langle x-m,\tilde x-m\rangle$$
#
# Given $y$ the draw has the distribution of the truth, so the first two terms are equal. Given $y$ the two are independent, so the expectation of the product is the product of the expectations, and both are 0. That is the place. The islands of the chapter allow a check without any drawing: for one $y$ all pairs of truth and draw can be summed.

# %%
rng, NOISE = np.random.default_rng(26), 0.45
island = 2 * np.pi * np.arange(2000) / 5 + rng.normal(0, 0.12, 2000)
world = np.stack([np.cos(island), np.sin(island)], 1) * (1 + rng.normal(0, 0.04, (2000, 1)))


def posterior(y):
    "Probabilities (n, 2000) of every face of the world, given y (n, 2)."
    log = -np.square(y[:, None] - world).sum(2) / (2 * NOISE**2)
    p = np.exp(log - log.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


p, = posterior(world[:1] + 0.3)
m = p @ world
apart = np.square(world[:, None] - world).sum(2)                               # truth, draw
independent, mean = p @ apart @ p, p @ np.square(world - m).sum(1)
informed = (p * np.diag(apart)).sum()
print(f"error of the mean {mean:.3f}, of an independent draw {independent:.3f}, "
      f"of a draw that knows the truth {informed:.3f}")
np.testing.assert_allclose(independent, 2 * mean, rtol=1e-9)
assert informed == 0        # x̃ = x has the right distribution too, and is not independent

# %% [markdown]
# ## 2. Modify: codes that agree with their neighbours
#
# *Choose codes jointly: among the 8 nearest codes of each place take the one that agrees best with its neighbours in the training features. Does the fall in @fig-field-codebook move to the right?* From the training faces we count how often code $l$ stands to the right of code $k$, or below it. A choice then pays for its distance and for rare neighbours,
#
# $$\sum_i\frac{\lVert h_i-e_{k_i}\rVert^2}{2\sigma^2}-\sum_{i\sim j}\log P(k_j\,|\,k_i)$$
#
# and every place in turn takes the cheapest of its eight, until three rounds are over. $\sigma$ is the noise, which the method is told.

# %%
prior = load_prior("prior32").requires_grad_(False)
g, PLACES, K = torch.Generator().manual_seed(26), 8, 64
w_mean = prior.mean_w(generator=torch.Generator().manual_seed(0))


def some_codes(n):
    w = prior.mapping(torch.randn(n, prior.config["style_dim"], generator=g))
    return prior.codes(w_mean + 0.7 * (w - w_mean))


def draw(w, change):
    return prior.synthesis(w, modulate=lambda h, k: change(h) if k == 0 else h)


seen = []
draw(some_codes(400), lambda h: seen.append(h) or h)
rows = seen[0].permute(0, 2, 3, 1)                      # (400, 8, 8, c)
vectors = rows.flatten(0, 2)
book = vectors[torch.randperm(25_600, generator=g)[:K]]
for _ in range(5):                                      # Lloyd's algorithm
    owner = torch.cdist(vectors, book).argmin(1)
    n = torch.bincount(owner, minlength=K)[:, None]
    sums = torch.zeros_like(book).index_add_(0, owner, vectors)
    book = torch.where(n > 0, sums / n.clamp_min(1), book)
owner = torch.cdist(vectors, book).argmin(1).view(-1, PLACES, PLACES)


def log_share(first, second):
    """log P(second | first) as a table (K, K), from pairs of codes.

    A tenth of a pair more for each, so that none is impossible.
    """
    n = torch.bincount(first.flatten() * K + second.flatten(), minlength=K * K).view(K, K) + 0.1
    return (n / n.sum(1, keepdim=True)).log()


RIGHT = log_share(owner[:, :, :-1], owner[:, :, 1:])
BELOW = log_share(owner[:, :-1], owner[:, 1:])
assert torch.allclose(RIGHT.exp().sum(1), torch.ones(K))
assert RIGHT.exp().diag().mean() > 2 / K                # neighbours are often alike


# %%
def jointly(h, variance, rounds=3):
    """h (b, c, 8, 8) -> codes (b, 8, 8) chosen place by place, given the neighbours.

    variance (c,): of the noise.
    """
    x = h.permute(0, 2, 3, 1)
    scaled = (x / variance.sqrt()).flatten(0, 2)
    far = torch.cdist(scaled, book / variance.sqrt()).square().view(*x.shape[:3], K) / 2
    eighth = far.kthvalue(8, 3, keepdim=True).values
    far = far.masked_fill(far > eighth, float("inf"))       # the eight nearest stay
    k = far.argmin(3)
    for _ in range(rounds):
        for i, j in np.ndindex(PLACES, PLACES):
            cost = far[:, i, j].clone()
            for table, (di, dj) in ((RIGHT, (0, 1)), (BELOW, (1, 0))):
                if i + di < PLACES and j + dj < PLACES:
                    # this place first, the neighbour second
                    cost -= table[:, k[:, i + di, j + dj]].T
                if i >= di and j >= dj:
                    cost -= table[k[:, i - di, j - dj]]
            k[:, i, j] = cost.argmin(1)
    return k


# %%
w, spread = some_codes(48), vectors.std(0)
clean = draw(w, lambda h: h)
put = lambda k: book[k].permute(0, 3, 1, 2)


def alone(h, variance):
    "h (b, c, 8, 8) -> the nearest codes (b, 8, 8), whatever the variance and the neighbours."
    scaled = (h.permute(0, 2, 3, 1) / spread).flatten(0, 2)
    return torch.cdist(scaled, book / spread).argmin(1).view(-1, PLACES, PLACES)


def noisy(h, s):
    "h with noise of s standard deviations, the same noise at every call."
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    return h + s * spread[:, None, None] * noise


def drawn(choose, s):
    "The faces w with noise of strength s in their features, and codes chosen by `choose`."
    return draw(w, lambda h: put(choose(noisy(h, s), (s * spread) ** 2)))


# %%
strengths, psnr = (0.25, 0.5, 1, 1.5, 2, 3), {"nearest": [], "jointly": []}
for s in strengths:
    for name, choose in (("nearest", alone), ("jointly", jointly)):
        error = (drawn(choose, s) - clean).square().mean((1, 2, 3))
        psnr[name].append((10 * torch.log10(4 / error)).mean().item())
for name, v in psnr.items():
    print(f"{name:8}", " ".join(f"{a:5.1f}" for a in v), "dB")
assert psnr["jointly"][-2] > psnr["nearest"][-2] + 0.5
assert abs(psnr["jointly"][0] - psnr["nearest"][0]) < 0.5

# %%
#| fig-alt: "Three rows of six small faces: clean; from the nearest codes, blotched; from codes chosen jointly, closer to the clean ones."
pictures = [clean, drawn(alone, 2), drawn(jointly, 2)]
shown = [p[i] for p in pictures for i in range(6)]
show(shown, rows=("clean", "nearest", "jointly"), cols=6, height=0.85);

# %% [markdown]
# The fall moves to the right: at little noise the nearest code was right already, at much noise the neighbours know better than the place itself. The level part does not rise, as there are no more codes than before. A transformer does the same with more than four neighbours, and without being told $\sigma$.
#
# ## 3. Break: a flow from the inputs
#
# *Train the flow from the inputs $y$ instead of the posterior means. What happens to error and distance?* Both flows have the same network, steps and noise; only their starting points differ.

# %%
some = lambda n: world[5 * rng.integers(0, 400, n) + np.arange(n) % 5]
x = some(6000)
y = x + NOISE * rng.normal(size=x.shape)
means = np.concatenate([posterior(part) @ world for part in np.split(y, 6)])
starts = {"input": y, "posterior mean": means}
TRAIN, TEST = slice(0, 5500), slice(5500, 6000)


def distance(a, b):
    "Squared Wasserstein distance of two sets of equal size."
    cost = np.square(a[:, None] - b).sum(2)
    return cost[linear_sum_assignment(cost)].mean()


def learned(start, end, steps=600):
    "The velocity of a rectified flow from `start` to `end` (n, 2)."
    torch.manual_seed(0)
    v = torch.nn.Sequential(torch.nn.Linear(3, 96), torch.nn.SiLU(), torch.nn.Linear(96, 96),
                            torch.nn.SiLU(), torch.nn.Linear(96, 2))
    start, end = (torch.tensor(a, dtype=torch.float32) for a in (start, end))
    optimizer = torch.optim.Adam(v.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 if step < 0.7 * steps else 5e-4
        j, t = torch.randint(len(start), (512,)), torch.rand(512, 1)
        a = start[j] + 0.05 * torch.randn(512, 2)
        way = end[j] - a
        loss = (v(torch.cat([a + t * way, t], 1)) - way).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return v


@torch.no_grad()
def followed(v, start, n):
    "Where n equal steps along v take the points `start`."
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    z = torch.tensor(start, dtype=torch.float32) + 0.05 * noise
    for k in range(n):
        z = z + v(torch.cat([z, torch.full((len(z), 1), k / n)], 1)) / n
    return z.numpy()


# %%
other, error, apart, way, answers = some(500), {}, {}, {}, {}
for name, start in starts.items():
    answers[name] = a = followed(learned(start[TRAIN], x[TRAIN]), start[TEST], 30)
    error[name], way[name] = (np.square(a - b).sum(1).mean() for b in (x[TEST], start[TEST]))
    apart[name], before = distance(a, other), distance(start[TEST], other)
    print(f"from the {name:14}: error {error[name]:.2f}, "
          f"distance {apart[name]:.3f} (before {before:.3f}), way {way[name]:.2f}")
guess = np.square(starts["posterior mean"][TEST] - x[TEST]).sum(1).mean()
print(f"the posterior mean itself: error {guess:.2f}")
assert error["input"] > error["posterior mean"] > guess
assert way["input"] > 2 * way["posterior mean"] and max(apart.values()) < before

# %%
#| fig-alt: "Two panels of five islands of grey dots on a circle; purple dots lie on and near the islands, some between them."
fig, axes = plt.subplots(1, 2, figsize=(5.5, 2.6), layout="constrained")
for ax, (name, a) in zip(axes, answers.items()):
    ax.plot(*x[TEST].T, ".", ms=2, color="#bbbbbb")
    ax.plot(*a.T, ".", ms=2, color="#CC79A7")
    ax.set(aspect="equal", title=f"flow from the {name}", xticks=[], yticks=[])
    ax.title.set_fontsize(9)

# %% [markdown]
# Both flows end near the islands, so both answers look like faces. The one from the inputs is farther from the truth: it has to find the best guess and to sharpen it in one go, and its way is several times as long. Nothing in its loss says which of the sharp answers shall be the near one. In two dimensions the difference is small, since this network can nearly learn both. A restorer that skips the best guess asks the same of one network at a million dimensions; its pictures would not show what they lost.

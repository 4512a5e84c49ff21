# %% [markdown]
# # Solutions: metrics {#sec-solutions-metrics .unnumbered}
#
# The exercises are those of @sec-metrics.

# %%
import cv2
import numpy as np
import torch
from skimage import data

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.discriminators import ComponentDiscriminator
from gfpgan_edu.examples import astronaut, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.metrics import Gaussian, fit_niqe, frechet, niqe, perceptual_distance

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: the share of the means
#
# *Show that the means alone contribute $2d/n$, and find the share of the covariances.* The mean of $n$ draws has the variance $1/n$ in each dimension, the difference of two such means $2/n$, and its squared length is $2d/n$ on average.

# %%
rng = np.random.default_rng(0)


def parts(n, dim, repeats):
    """Mean contributions of the means and of the covariances to the distance of two samples of one
    Gaussian."""
    found = []
    for _ in range(repeats):
        a, b = Gaussian("toy"), Gaussian("toy")
        a.update(rng.standard_normal((n, dim)))
        b.update(rng.standard_normal((n, dim)))
        means = np.sum((a.mean - b.mean) ** 2)
        found.append((means, frechet(a, b) - means))
    return np.mean(found, 0)


for n, repeats in ((50, 20), (500, 20), (5000, 3)):
    means, covariances = parts(n, 64, repeats)
    share = covariances / (means + covariances)
    print(f"n = {n:4}: means {means:.3f} (derived {2 * 64 / n:.3f}), "
          f"covariances {covariances:.3f}, {share:.0%} of all")
    np.testing.assert_allclose(means, 2 * 64 / n, rtol=0.25)
    assert covariances > 5 * means

# %% [markdown]
# The means behave as derived; the covariances, with $d(d+1)/2$ numbers to estimate instead of $d$, make up more than nine tenths of the bias with 64 numbers a picture. With FID's 2048 their share is larger still.
#
# ## 2. Modify: forgive a pixel
#
# *Let `perceptual_distance` look at the best of nine shifts by at most one pixel. Which damages become cheaper?* The nine shifted pictures go through the network as one batch. The maps are those of an untrained judge, so that nothing has to be downloaded, and a picture that is only shifted joins the damages.

# %%
torch.manual_seed(0)
network = ComponentDiscriminator(16)
maps = torch.no_grad()(lambda image: network(image)[1])
inner = lambda image: to_tensor(image)[..., 2:-2, 2:-2]


def shifted_distance(a, b):
    """The smallest `perceptual_distance` of a, shifted by up to one pixel each way, from b;
    uint8 H×W×3."""
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    nine = torch.cat([to_tensor(a).roll(s, (2, 3)) for s in shifts])[..., 2:-2, 2:-2]
    theirs = [m.expand(9, -1, -1, -1) for m in maps(inner(b))]
    return perceptual_distance(maps(nine), theirs).min().item()


face = cv2.resize(example_faces(1, 128)[0], (64, 64), interpolation=cv2.INTER_AREA)
damages = {"blur": degrade(face, DegradationParams(1.2, 1.2)),
           "noise": degrade(face, DegradationParams(delta=20, noise_seed=1)),
           "small": degrade(face, DegradationParams(r=3)),
           "tint": np.clip(face * [1.15, 1.0, 0.8], 0, 255).astype(np.uint8),
           "shift": np.roll(face, 1, 1)}
ratio = {}
for name, image in damages.items():
    plain = perceptual_distance(maps(inner(image)), maps(inner(face))).item()
    ratio[name] = shifted_distance(image, face) / plain
    print(f"{name:6} {plain:.2f} -> {ratio[name] * plain:.2f}")
assert ratio["shift"] < 1e-3
assert all(0.9 < ratio[k] <= 1 + 1e-4 for k in ("blur", "noise", "tint"))

# %% [markdown]
# Only what *moves* becomes cheaper: the shifted picture costs nothing now. Blur, noise and tint leave every edge in its place, so no shift is better than none. A metric like this forgives bad alignment, and a method that always returns faces one pixel beside the truth.
#
# ## 3. Break: better than the truth
#
# *Find a picture that is better than the true face by `niqe[four photos]`, by a search over contrast, sharpening and noise.* Forty random draws, the best one kept; no gradient is needed.

# %%
#| fig-alt: "Two pictures of one face: the truth, and a changed one that a metric takes for better."
photos = [astronaut(), data.coffee(), data.rocket(), np.repeat(data.camera()[..., None], 3, 2)]
own = fit_niqe(photos, "four photos", block=32)
face = example_faces(1, 128)[0]
grain = rng.standard_normal(face.shape)


def changed(contrast, sharpen, noise):
    x = face.astype(float)
    x = x + sharpen * (x - cv2.GaussianBlur(x, (0, 0), 1.5))
    return np.clip((x - 128) * contrast + 128 + noise * grain, 0, 255).round().astype(np.uint8)


draws = [(rng.uniform(0.4, 1.6), rng.uniform(0, 4), rng.uniform(0, 12)) for _ in range(40)]
best = min(draws, key=lambda d: niqe(changed(*d), own))
truth, fooled = niqe(face, own), niqe(changed(*best), own)
print("contrast {:.1f}, sharpened by {:.1f}, noise of {:.0f} levels".format(*best),
      f": {fooled:.1f}, the truth {truth:.1f}")
assert fooled < 0.9 * truth
show([face, changed(*best)], [f"truth: {truth:.1f}", f"best found: {fooled:.1f}"], height=1.6);

# %% [markdown]
# The winner has far more contrast and harder edges than the true face, and its skin is burnt out: the four photos have more texture than a portrait, and blocks like theirs score well. NIQE asks whether blocks look like those of its photos and knows nothing of faces, so sharpening buys points without being right.

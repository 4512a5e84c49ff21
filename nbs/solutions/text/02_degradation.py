# %% [markdown]
# # Solutions: degradation {#sec-solutions-degradation .unnumbered}
#
# The exercises are those of @sec-degradation.

# %%
from dataclasses import replace

import numpy as np
import torch
from fastcore.test import test_fail

from gfpgan_edu.degradation import (SEVERE, DegradationParams, add_noise, blur, degrade,
                                    degrade_batch, jpeg, resize, sample_params, to_uint8)
from gfpgan_edu.examples import example_faces, show

face = example_faces(1, 128)[0]
x = face.astype(np.float32) / 255
flat = lambda value, size=240: np.full((size, size, 3), value, np.float32)

# %% [markdown]
# ## 1. Compute: how enlargement weakens noise
#
# *By what factor does the standard deviation of noise fall when the picture is enlarged linearly by $r$?* By the half-pixel rule (@eq-degradation-halfpixel) a new pixel lies a fraction $f$ behind an old one and is $(1-f)a+f b$. Independent $a$, $b$ of variance 1 give
# the variance $(1-f)^2+f^2$ along one axis, and the product of two such factors in two dimensions. At $r=2$ the fractions are $\tfrac14$ and $\tfrac34$: $\tfrac1{16}+\tfrac9{16}=\tfrac58$ per axis, so the standard deviation is $\sqrt{5/8\cdot5/8}=\tfrac58$.
# For large $r$ every fraction occurs: $\int_0^1 (1-f)^2+f^2\,df=\tfrac23$.

# %%
small, delta = add_noise(flat(0.5), 10, seed=1), 10
for r, factor in {2: 5 / 8, 3: (1 + 2 * 5 / 9) / 3, 8: 2 / 3}.items():
    large = resize(small, 240 * r, 240 * r)[2 * r:-2 * r, 2 * r:-2 * r]
    measured = (large - 0.5).std() * 255 / delta
    print(f"r = {r}: measured {measured:.3f}, derived {factor:.3f}, "
          f"the noise is {1 / factor:.2f} times weaker")
    np.testing.assert_allclose(measured, factor, rtol=0.02)


# %% [markdown]
# The noise becomes 1.6 times weaker at $r=2$ and 1.5 times weaker for large $r$. It hardly depends on $r$: at $r=3$, where $f=0$ in a third of the pixels along each axis, the factor is 1.4.
#
# ## 2. Modify: noise that grows with brightness
#
# *Write an `add_noise` of variance $\delta^2(0.2+1.6x)$.* The noise of the chapter, times a square root that depends on the pixel. At mid grey the root is 1, so on average nothing changes. Two flat pictures check it: the ratio of their standard deviations must be $\sqrt{1.4/0.6}$.

# %%
def add_sensor_noise(x, delta, seed):
    """x + n with n of variance delta² (0.2 + 1.6 x), clipped to [0, 1].

    x: float32 H×W×3 in [0, 1]; delta: grey levels of 255.
    """
    noise = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
    return np.clip(x + noise * np.sqrt(0.2 + 1.6 * x) * np.float32(delta / 255), 0, 1)


noisy = {value: add_sensor_noise(flat(value), 10, seed=1) for value in (0.25, 0.5, 0.75)}
spread = {value: (v - value).std() * 255 for value, v in noisy.items()}
print({value: f"{s:.1f}" for value, s in spread.items()}, "grey levels of noise")
np.testing.assert_allclose([spread[0.75] / spread[0.25], spread[0.5]], [np.sqrt(1.4 / 0.6), 10],
                           rtol=0.02)
# equal at mid grey, to the last bit or nearly
same = add_noise(flat(0.5), 10, seed=1)
np.testing.assert_allclose(add_sensor_noise(flat(0.5), 10, seed=1), same, atol=1e-6)

# %%
#| fig-alt: "Three strips with two eyes: clean, with noise everywhere alike, with noise that grows with brightness."
eyes = np.s_[44:80, 34:94]
show([p[eyes] for p in (x, add_noise(x, 20, 0), add_sensor_noise(x, 20, 0))],
     ["clean", "the same everywhere", "grows with brightness"], height=1.3);


# %% [markdown]
# In the right picture the white of the eye and the skin carry more grain than in the middle one (that of @fig-degradation-noise), and the pupils and lashes less.
#
# ## 3. Break: noise before the reduction
#
# *Add the noise before the reduction in a copy of `degrade`. Which checks turn red, and which damage gets lost?* Only one line moves. The independent implementation is here `degrade_batch`, with the same noise given to both.

# %%
def degrade_early(img, p):
    "`degrade` without colour, the noise added at full size: (y * k_σ + n_δ) ↓r."
    h, w = img.shape[:2]
    x = np.divide(img, 255, dtype=np.float32)
    if p.sigma_x:
        x = blur(x, p.sigma_x, p.sigma_y, p.theta, p.kernel_size)
    x = add_noise(x, p.delta, p.noise_seed)
    x = resize(x, int(w // p.r), int(h // p.r))
    if p.q is not None:
        x = np.divide(jpeg(to_uint8(x), p.q), 255, dtype=np.float32)
    return to_uint8(resize(x, w, h))


def given(p, shape):
    "The noise that `add_noise` draws, for `degrade_batch`."
    noise = np.random.default_rng(p.noise_seed).standard_normal((*shape[2:], 3), np.float32)
    return torch.from_numpy(noise).permute(2, 0, 1)[None]


# %%
draws = [sample_params(np.random.default_rng(i), SEVERE.at(128)) for i in range(8)]
records = [replace(d, q=None, shift=None, gray=False, jitter=()) for d in draws]
batch = torch.from_numpy(face).permute(2, 0, 1)[None].float() / 127.5 - 1
reference = (degrade_batch(batch.expand(8, -1, -1, -1), records, given) + 1) * 127.5
reference = reference.round().byte().permute(0, 2, 3, 1).numpy()


def agrees(f):
    error = np.stack([np.abs(f(face, p).astype(int) - r) for p, r in zip(records, reference)])
    assert error.max() <= 1 and (error > 0).mean() < 1e-2, f"up to {error.max()} grey levels apart"


def nothing_asked_nothing_done(f):
    assert (f(face, DegradationParams()) == face).all(), "changed"


def pure_and_same_shape(f):
    p = records[0]
    assert (f(face, p) == f(face[:, ::-1][:, ::-1], p)).all()
    assert f(face[:, :77], p).shape == (128, 77, 3)


for check in (agrees, nothing_asked_nothing_done, pure_and_same_shape):
    check(degrade)
test_fail(lambda: agrees(degrade_early), exc=AssertionError, contains="grey levels apart")
nothing_asked_nothing_done(degrade_early)
pure_and_same_shape(degrade_early)


# %% [markdown]
# Only the comparison with an independent implementation turns red; limits, purity and shapes stay green, since they never look at the order. What is lost is seen on flat grey: the standard deviation of the grain after the reduction, in shares of $\delta$.

# %%
def grain(f, r):
    "Standard deviation of the noise that f leaves on a grey picture, as a share of delta."
    img = (flat(0.5) * 255).astype(np.uint8)
    return f(img, DegradationParams(r=r, delta=20, noise_seed=3)).astype(float).std() / 20


late, early = ({r: grain(f, r) for r in (1, 2, 3, 4, 8)} for f in (degrade, degrade_early))
print("late  ", {r: f"{g:.2f}" for r, g in late.items()})
print("early ", {r: f"{g:.2f}" for r, g in early.items()})
assert all(early[r] < 0.6 * late[r] for r in (2, 4, 8)) and abs(early[3] / late[3] - 1) < 0.05

# %% [markdown]
# Where $r$ is even each new pixel is the mean of four old ones, so half of the noise is gone before the enlargement; at $r=3$ it takes the middle one of three and keeps all. The changed model can no longer make strong coarse grain at most reductions,
# which is the damage of a small face in a noisy photo, and its strength depends on $r$ by accident.

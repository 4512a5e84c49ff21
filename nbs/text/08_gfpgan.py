# %% [markdown]
# # GFP-GAN assembled {#sec-gfpgan}
#
# > A U-Net that cleans, a linear layer that names the face, a pretrained generator that draws it, and two maps that hold the drawing to the photo.
#
# **You will build** the complete generator of GFP-GAN [@wang2021gfpgan] from the parts of the last three chapters, one configuration object
# that describes the paper's model, the released models and a tiny one, and all the variants of the paper's ablation study.
# **Needs** @sec-unet, @sec-stylegan2 and @sec-csft. **Runs in** about 25 s on a laptop CPU.

# %%
#| default_exp gfpgan

# %%
import json
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from fastcore.test import test_fail
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.stylegan2 import NOISE_MODES
from gfpgan_edu.weights import load_weights

# %% [markdown]
# The last three chapters built the boxes of @fig-gfpgan-map. This one owns the arrows: what goes from where to where, in which shape.

# %%
#| label: fig-gfpgan-map
#| fig-cap: "The parts of the generator. All of them are built; this chapter connects them."
#| fig-alt: "Block diagram: degraded face to U-Net, from there to codes, scale and shift, and the pyramid; codes and maps to StyleGAN2 and the restored face. All parts but the degradation are coloured."
draw_map("unet", "latent", "csft", "stylegan2", "output", "pyramid");

# %% [markdown]
# ## One object that says what the network is {#sec-gfpgan-config}
#
# A weights file is useless without the shape of the network it belongs to. Where that shape is spread over a command line,
# a YAML file and default arguments, a misspelt key is ignored and a network of another shape is trained
# for a week. So one frozen dataclass holds everything that fixes the shape, and it refuses what it does not understand.
#
# Four fields set the size: `size` in pixels, `style_dim` for the length of one code, `channel_multiplier` and `narrow` for the widths
# (@sec-stylegan2). Three fields switch the method: `sft`, `w` and `use_prior`; they span the ablation of the paper. Two fields choose
# between the official families: `resample` (@eq-fir or bilinear) and `equalized` (@eq-equalized or baked-in scales).

# %%
#| export
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

import torch
from fastcore.basics import patch
from torch import nn

from gfpgan_edu.csft import ConditionHead, cs_sft, sft
from gfpgan_edu.layers import EqualizedLinear
from gfpgan_edu.stylegan2 import StyleGAN2, widths
from gfpgan_edu.unet import UNet


_NEEDS = {bool: "True or False", int: "a positive whole number", float: "a positive number"}


def _fits(value, hint):
    "Whether `value` suits `hint`: one of a Literal's choices, a bool, or a positive finite number."
    if choices := get_args(hint):
        return isinstance(value, str) and value in choices
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    # false for NaN
    return isinstance(value, int if hint is int else (int, float)) and 0 < value < math.inf


# %% [markdown]
# Three shapes carry names, so that nobody has to remember which fields make up a released file:
#
# - `paper`: 512 px, FIR resampling, equalised layers; the official class `GFPGANv1`.
# - `clean_v1_4`: the released v1.2, v1.3 and v1.4; twice as wide above 32 px, bilinear, scales baked in.
# - `tiny`: the same architecture at 1/16 of the width, for this book and for tests.

# %%
#| export
class _Presets:
    "The named configurations; `cls` is the config class that inherits them."

    @classmethod
    def paper(cls):
        "The model of the paper (official GFPGANv1): 512 px, FIR resampling, 76,207,244 parameters."
        return cls()

    @classmethod
    def clean_v1_4(cls):
        """The released v1.2, v1.3 and v1.4: bilinear, channel multiplier 2, scales baked in,
        86,444,252 parameters."""
        return cls(channel_multiplier=2, resample="bilinear", equalized=False)

    @classmethod
    def tiny(cls, size=64):
        """A net for laptops and tests: same architecture, 1/16 of the width up to 32 px; any size
        from 8 to 256."""
        return cls(size=size, style_dim=64, n_mlp=2, narrow=1 / 16)


# %% [markdown]
# The class itself is mostly its fields. The check runs once, at construction, so that a config which exists is a config that can be built.

# %%
#| export
@dataclass(frozen=True)
class GFPGANConfig(_Presets):
    """Everything that fixes the generator's shape. Unknown names or values are a ValueError; a
    config is never changed in place."""

    size: int = 512       # input and output, px: a power of two from 8 to 1024
    style_dim: int = 512  # length of one code w
    n_mlp: int = 8
    "layers of the mapping network (kept for the prior, not run in restoration)"
    channel_multiplier: float = 1                  # width of the prior above 32 px
    narrow: float = 1                              # width of everything
    sft: Literal["none", "full", "half"] = "half"  # Table 4: a, b, the paper's model
    w: Literal["one", "per_layer"] = "per_layer"   # one code for all layers, or W+
    use_prior: bool = True
    "False: the U-Net's own picture is the output (Table 4 c)"
    resample: Literal["fir", "bilinear"] = "fir"   # the paper's model, or the clean models
    equalized: bool = True                         # run-time weight scales, or baked in
    prior_share: float = 1
    "of the prior's picture in the result outside training; the rest is the U-Net's own"

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            if not _fits(value := getattr(self, name), hint):
                raise ValueError(f"{name} is {value!r}, needs {_NEEDS.get(hint) or get_args(hint)}")
        widths(self.size, self.channel_multiplier, self.narrow)  # raises on impossible ones
        # a slip of the finger would fill the memory
        for name, most in (("style_dim", 16384), ("n_mlp", 100)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at most {most}")
        if (share := self.prior_share) > 1:
            raise ValueError(f"prior_share is {share!r}, needs a number above 0 and at most 1")

    @classmethod
    def from_dict(cls, d):
        "The inverse of `to_dict`; names that the config does not have are a ValueError."
        if unknown := sorted(map(str, set(d) - {f.name for f in fields(cls)})):
            raise ValueError(f"unknown config keys {unknown}")
        return cls(**d)

    def to_dict(self):
        return asdict(self)

    def replace(self, **changes):
        "A copy with some fields changed; the copy is checked as a new one is."
        return replace(self, **changes)


# %% [markdown]
# The checks: every kind of mistake is named, nothing is changed in place, and a config survives JSON and YAML, the two formats it is
# stored in (in the header of a weights file, @sec-weights, and beside a training run).

# %%
for bad, field in [(dict(size=500), "size"), (dict(size=512.0), "size"),
                   (dict(narrow=True), "narrow"), (dict(n_mlp=None), "n_mlp"),
                   (dict(sft="quarter"), "sft"), (dict(w=["one"]), "w"),
                   (dict(use_prior=1), "use_prior"), (dict(narrow=float("nan")), "narrow"),
                   (dict(narrow="1"), "narrow"), (dict(narrow=1 / 512), "narrow"),
                   (dict(n_mlp=10**9), "n_mlp"),
                   (dict(size=1024, channel_multiplier=1 / 16), "1024 px")]:
    test_fail(lambda: GFPGANConfig(**bad), exc=ValueError, contains=field)
test_fail(lambda: GFPGANConfig.from_dict({"size": 64, "chanel_multiplier": 2}), exc=ValueError,
          contains="chanel_multiplier")
test_fail(lambda: GFPGANConfig().replace(size=48), exc=ValueError, contains="size")
test_fail(lambda: setattr(GFPGANConfig(), "size", 64), contains="size")

# %%
config = GFPGANConfig(size=256, narrow=1 / 3 * 3 / 16, channel_multiplier=2, sft="full",
                      resample="bilinear")
assert GFPGANConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
assert GFPGANConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
print(yaml.safe_dump(GFPGANConfig().to_dict(), sort_keys=False))

# %% [markdown]
# ## From one feature to sixteen codes {#sec-gfpgan-codes}
#
# The generator needs codes, the photo offers pixels. GAN inversion closes that gap by optimisation, for every photo anew, in minutes
# [@menon2020pulse; @gu2020mganprior]. GFP-GAN predicts the codes in one step, from the deepest feature of the U-Net: at 4×4 px that
# feature has seen the whole face, so it can say which face this is, though not where each hair lies. The paper's second equation reads
#
# $$\mathcal W = \mathrm{MLP}(F_{latent}), \qquad F_{GAN} = \mathrm{StyleGAN}(\mathcal W).$$ {#eq-latent}
#
# $F_{latent}$ is the 4×4 feature of the U-Net (@eq-unet), $\mathcal W$ the set of codes, one for each layer of the generator, and $F_{GAN}$ the
# features that the generator computes on its way to a picture. The official code makes the MLP a single linear layer, and so does ours:
# flatten the $c \cdot 4 \cdot 4$ numbers of $F_{latent}$, multiply by one matrix, cut the result into $L = 2\log_2 S - 2$ codes of 512 numbers.
# At $S = 512$ that is 8,192 numbers from 4,096 numbers:
# the matrix holds 33.6 million of the model's 76.2 million parameters.
#
# Two things deserve attention. The codes go *directly* into the layers: the mapping network of the prior, which turns Gaussian noise into
# codes, has no part in restoration. And every layer gets a code of its own. The space of such code lists is often called $\mathcal W^+$; it is
# larger than what the prior saw in its training, where all layers share one code.

# %%
config = GFPGANConfig.paper()
c4, n_codes = widths(config.size)[4] // 2, 2 * int(math.log2(config.size)) - 2
with torch.device("meta"):                               # shapes only: no memory, no arithmetic
    to_w = EqualizedLinear(c4 * 4 * 4, n_codes * config.style_dim)
assert (to_w.weight.shape, n_codes) == ((8192, 4096), 16)
print(f"{n_codes} codes from {c4 * 16} numbers: "
      f"{sum(p.numel() for p in to_w.parameters()) / 1e6:.1f} M parameters")


# %% [markdown]
# ## The network {#sec-gfpgan-net}
#
# The rest is wiring. The U-Net $U$ yields $F_{latent}$, the features $F_s$ for $s = 8, 16, \dots, S$ (these are $F_{spatial}$), and a small picture
# $\hat y_s$ at each scale, which serves the pyramid loss only. A condition head $C_s$ turns each $F_s$ into a scale $\alpha_s$ and a shift $\beta_s$
# (@eq-sft). The synthesis network $G$ of the prior runs as always, but after the first convolution of each block its feature $h_s$ is replaced:
#
# $$\hat y = G\big(\mathcal W;\; h_s \mapsto \text{CS-SFT}(h_s \mid \alpha_s, \beta_s)\big), \qquad (\alpha_s, \beta_s) = C_s(F_s).$$ {#eq-gfpgan}
#
# CS-SFT is @eq-cssft: half of the channels pass untouched. The synthesis network of @sec-stylegan2 takes the replacement as a function,
# `modulate(h, k)`, so nothing in it had to change for GFP-GAN. The picture $\hat y$ is the sum of the RGB layers, neither clamped nor squashed.

# %%
#| export
class GFPGAN(nn.Module):
    """Blind face restoration (Fig. 2 of the paper): x (b, 3, S, S) in [-1, 1] ->
    (image (b, 3, S, S), pyramid [8..S: (b, 3, s, s)]).

    `unet` removes the degradation (Eq. 1), `to_w` maps F_latent to codes (Eq. 2), `heads` turn
    F_spatial into scales and shifts (Eq. 3-4) that steer `decoder`, the StyleGAN2 prior. The image
    is the prior's sum of RGB layers, neither clamped nor squashed; in eval mode with
    `prior_share` < 1 it is mixed with the U-Net's own (@eq-gfpgan-share)."""

    def __init__(self, config=GFPGANConfig()):
        super().__init__()
        c = self.config = config
        prior = widths(c.size, c.channel_multiplier, c.narrow)
        spatial = {s: n // 2 for s, n in prior.items()}  # the U-Net is half as wide as the prior
        self.unet = UNet(spatial, resample=c.resample, equalized=c.equalized)
        if not c.use_prior:
            return
        self.decoder = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow,
                                 resample=c.resample, equalized=c.equalized)
        n_codes = self.decoder.synthesis.n_codes if c.w == "per_layer" else 1
        self.to_w = EqualizedLinear(spatial[4] * 16, n_codes * c.style_dim, equalized=c.equalized)
        if c.sft != "none":
            steered = spatial if c.sft == "half" else prior
            self.heads = nn.ModuleList(ConditionHead(spatial[s], steered[s], equalized=c.equalized)
                                       for s in sorted(prior)[1:])

    def forward(self, x, noise="fixed"):
        c = self.config
        if x.ndim != 4 or x.shape[1:] != (3, c.size, c.size):
            raise ValueError(f"input is {tuple(x.shape)}, needs (b, 3, {c.size}, {c.size})")
        latent, spatial, pyramid = self.unet(x)
        if not c.use_prior:
            return pyramid[-1], pyramid
        w = self.to_w(latent.flatten(1)).unflatten(1, (-1, c.style_dim))
        w = w.expand(-1, self.decoder.synthesis.n_codes, -1)
        transform = {"half": cs_sft, "full": sft}.get(c.sft)
        modulate = (lambda h, k: transform(h, *self.heads[k](spatial[k]))) if transform else None
        image = self.decoder.synthesis(w, noise=noise, modulate=modulate)
        if not self.training and c.prior_share != 1:
            image = torch.lerp(pyramid[-1], image, c.prior_share)
        return image, pyramid


# %% [markdown]
# Whether the prior learns too is a choice of the training. The official configuration leaves it as it is. (`@patch` puts a function into the class that its first argument names: a long class, told in pieces.)

# %%
#| export
@patch
def freeze_prior(self: GFPGAN):
    """Turn off the decoder's gradients, as the official configuration does; returns self.
    A net without a prior is a ValueError."""
    if not self.config.use_prior:
        raise ValueError("this net has no prior to freeze (use_prior=False)")
    self.decoder.requires_grad_(False)
    return self


# %% [markdown]
# The check writes @eq-gfpgan out as one loop, in the order in which a reader would compute it, with plain matrix products and slices where
# the class uses layers and functions. It keeps what it computes on the way: the same function feeds the picture of the data flow below.

# %%
def by_hand(net, x, noise=True):
    "The forward pass of GFPGAN step by step -> (image, everything seen on the way, per block)."
    syn, b = net.decoder.synthesis, len(x)
    latent, spatial, pyramid = net.unet(x)
    w = latent.reshape(b, -1) @ (net.to_w.weight * net.to_w.weight_gain).T + net.to_w.bias
    w = w.reshape(b, -1, net.config.style_dim)
    eps = [getattr(syn, f"noise{i}") if noise else None for i in range(len(syn.convs))]
    h = syn.convs[0](syn.constant.repeat(b, 1, 1, 1), w[:, 0], eps[0])
    image, seen = syn.to_rgbs[0](h, w[:, 1]), []
    for k, f in enumerate(spatial):
        # codes i, i + 1 for the convolutions, i + 2 for the colours
        i = 2 * k + 1
        h = syn.convs[i](h, w[:, i], eps[i])
        keep, mod = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2:]
        alpha, beta = net.heads[k].scale(f), net.heads[k].shift(f)
        h = syn.convs[i + 1](torch.cat([keep, alpha * mod + beta], 1), w[:, i + 1], eps[i + 1])
        rgb = syn.to_rgbs[k + 1](h, w[:, i + 2])
        image = rgb + syn.to_rgbs[k + 1].resample.up(image)
        seen.append(dict(spatial=f, pyramid=pyramid[k], alpha=alpha, beta=beta, before=mod,
                         after=alpha * mod + beta, rgb=rgb, image=image))
    return image, seen


# %%
def random_net(**changes):
    "A tiny net with noise strengths and biases off their initial zeros, which would hide mistakes."
    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig.tiny().replace(**changes))
    for p in net.parameters():
        if p.ndim == 1:
            p.data += 0.2 * torch.randn_like(p)
    return net.eval().requires_grad_(False)


net, x = random_net(), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
image, pyramid = net(x)
want, seen = by_hand(net, x)
assert_close(image, want, rtol=1e-4, atol=1e-4)
assert_close(net(x, noise="zero")[0], by_hand(net, x, noise=False)[0], rtol=1e-4, atol=1e-4)
assert all(torch.equal(p, s["pyramid"]) for p, s in zip(pyramid, seen, strict=True))
assert [tuple(p.shape) for p in pyramid] == [(2, 3, s, s) for s in (8, 16, 32, 64)]
test_fail(lambda: net(x[:, :, :32, :32]), exc=ValueError, contains="(b, 3, 64, 64)")

# %% [markdown]
# ## The data flow in pictures {#sec-gfpgan-flow}
#
# A network with random weights would show noise here. So a tiny one is first made to memorise a single face: the input is a degraded
# copy of it, the target the sharp one, at the output and at every level of the pyramid.
# This is no restoration, but a test that the gradients do their work, and it gives the maps something to show.

# %%
face = to_tensor(example_faces(1, 64))
# a quarter of the resolution, and back
degraded = F.interpolate(F.avg_pool2d(face, 4), size=64, mode="bilinear")
targets = [F.avg_pool2d(face, 64 // s) for s in (8, 16, 32, 64)]

torch.manual_seed(0)
memory = GFPGAN(GFPGANConfig.tiny())
optimizer = torch.optim.Adam(memory.parameters(), lr=1e-2, betas=(0.9, 0.99))
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=200)
for step in range(200):
    image, pyramid = memory(degraded)
    error = F.l1_loss(image, face)
    loss = error + sum(F.l1_loss(p, t) for p, t in zip(pyramid, targets))
    first = error.item() if step == 0 else first
    optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
# it learns, and returns more than it was given
assert error < 0.2 * first and error < 0.9 * F.l1_loss(degraded, face)


# %% [markdown]
# @fig-gfpgan-flow shows every tensor on the way from the input to the output, one row for each resolution. Of a feature, one channel is drawn:
# of $F_{spatial}$ the one that varies most, of the prior's feature $h$ the one that the modulation changes most; $\alpha$ and $\beta$ belong to that same channel of $h$.

# %%
def plate(fig, row, col, image, title="", **options):
    "Draw one tensor in the grid of the data-flow figure; the first row carries the titles."
    ax = fig.add_axes([0.115 + 0.111 * col, 0.70 - 0.235 * row, 0.088, 0.2])
    ax.imshow(image, interpolation="nearest", **options)
    ax.set(xticks=[], yticks=[])
    if row == 0:
        ax.set_title(title, fontsize=9)


def busiest(t):
    "Index of the channel of t (1, c, h, w) that varies most over the picture."
    return t[0].flatten(1).std(1).argmax().item()


def rgb(t):
    return (t[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


def symmetric(t, centre):
    "Colours of a map that is neutral at `centre`: orange below, white, purple above."
    reach = (t - centre).abs().max().item() + 1e-6
    return dict(cmap="PuOr", vmin=centre - reach, vmax=centre + reach)


# %%
#| label: fig-gfpgan-flow
#| fig-cap: "The data flow with real tensors, one row per resolution (8 to 64 px). Left to right: the pyramid picture and the feature of the U-Net, the two maps made of it, the prior's feature before and after the modulation, the block's own RGB contribution, and the sum so far. The last sum is the output."
#| fig-alt: "Grid of four rows and eight columns of small pictures; the pyramid shows a face that gets sharper from row to row, alpha and beta follow the outline of the face, the sum so far ends in the restored face."
with torch.no_grad():
    image, seen = by_hand(memory, degraded)
fig = plt.figure(figsize=(9.2, 4.5))
for row, s in enumerate(seen):
    # the channel that the maps change most
    c = busiest(s["after"] - s["before"])
    alpha, beta, before, after = (s[n][0, c] for n in ("alpha", "beta", "before", "after"))
    grey = dict(cmap="gray", vmin=min(before.min(), after.min()),
                vmax=max(before.max(), after.max()))
    plate(fig, row, 0, rgb(s["pyramid"]), "pyramid")
    plate(fig, row, 1, s["spatial"][0, busiest(s["spatial"])], "$F_{spatial}$", cmap="gray")
    plate(fig, row, 2, alpha, r"$\alpha$", **symmetric(alpha, 1))
    plate(fig, row, 3, beta, r"$\beta$", **symmetric(beta, 0))
    plate(fig, row, 4, before, "$h$ before", **grey)
    plate(fig, row, 5, after, "$h$ after", **grey)
    plate(fig, row, 6, rgb(s["rgb"]), "RGB layer")
    plate(fig, row, 7, rgb(s["image"]), "sum so far")
    y = 0.79 - 0.235 * row
    for col, sign in ((1, "\u2190"), (2, "\u2192"), (5, "\u2192"), (6, "\u2192"), (7, "\u2192")):
        fig.text(0.1035 + 0.111 * col, y, sign, ha="center", fontsize=11)
    fig.text(0.1035 + 0.111 * 4, y, "+", ha="center", fontsize=11)
    if row < 3:  # the next row starts from this one, enlarged
        for x_arrow, sign in ((0.27, "\u2193"), (0.936, "\u2193"), (0.6585, "\u2199")):
            fig.text(x_arrow, y - 0.126, sign, ha="center", fontsize=9)
left = fig.add_axes([0.0, 0.36, 0.088, 0.215])
left.imshow(rgb(degraded)), left.set(xticks=[], yticks=[]), left.set_title("input", fontsize=9)
fig.text(0.1, 0.45, "\u2192", ha="center", fontsize=11);

# %% [markdown]
# Read a row from $F_{spatial}$ outwards. To the left it becomes a small picture; to the right it becomes the two maps, and these turn the
# prior's feature, which knows nothing of where this face lies, into one with the outline of the photo. White in a map means neutral:
# $\alpha = 1$ or $\beta = 0$. The last column adds up the RGB layers of all rows so far. Each row only has to supply what the one above
# could not show. The check below confirms that the sum of the enlarged contributions is the output, that only the second half of the channels was touched, and that the figure's last picture is what the network returns.

# %%
up = memory.decoder.synthesis.to_rgbs[1].resample.up
with torch.no_grad():
    codes = memory.to_w(memory.unet(degraded)[0].flatten(1)).unflatten(1, (-1, 64))
    syn = memory.decoder.synthesis
    # the 4×4 picture
    total = syn.to_rgbs[0](syn.convs[0](syn.constant, codes[:, 0], syn.noise0), codes[:, 1])
    for s in seen:
        total = up(total) + s["rgb"]
    assert_close(total, memory(degraded)[0], rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## What it weighs and what it costs {#sec-gfpgan-cost}
#
# Where do the parameters sit, and where does the time go? A network on PyTorch's `meta` device has shapes but no numbers, so the full
# model can be built and "run" at 512 px within a second or two, and a counter sees every multiplication. The counter takes a multiplication and an
# addition as two operations and ignores what is linear in the number of pixels (biases, activations, noise, the modulation itself).

# %%
PARTS = {"U-Net, down": ("unet.first", "unet.down", "unet.last"), "U-Net, up": ("unet.up",),
         "pyramid": ("unet.to_rgb",), "codes": ("to_w",), "scale and shift": ("heads",),
         "mapping": ("decoder.mapping",), "prior": ("decoder.synthesis",)}


def measure(config):
    """{part: (parameters, FLOPs of the forward pass for one picture)} of a GFPGAN, and the empty
    net; nothing is allocated."""
    with torch.device("meta"):
        net, x = GFPGAN(config), torch.empty(1, 3, config.size, config.size)
    with FlopCounterMode(display=False) as counter:
        net(x)
    flops = counter.get_flop_counts()
    count = {name.removeprefix("GFPGAN."): sum(ops.values()) for name, ops in flops.items()}
    table = {}
    for part, names in PARTS.items():
        # a list's members
        called = [n for n in count if n in names or n.rpartition(".")[0] in names
                  and n.rpartition(".")[2].isdigit()]
        table[part] = [sum(p.numel() for n in names for p in net.get_submodule(n).parameters()),
                       sum(count[n] for n in called)]
    # the heads run inside the synthesis network's forward pass
    table["prior"][1] -= table["scale and shift"][1]
    return net, table


# %%
paper, table = measure(GFPGANConfig.paper())
parameters, work = (sum(column) for column in zip(*table.values()))
assert parameters == sum(p.numel() for p in paper.parameters()) == 76_207_244
assert sum(p.numel() for p in paper.freeze_prior().parameters() if p.requires_grad) == 51_346_309
clean, clean_table = measure(GFPGANConfig.clean_v1_4())
clean_parameters, clean_work = (sum(column) for column in zip(*clean_table.values()))
assert clean_parameters == sum(p.numel() for p in clean.parameters()) == 86_444_252


# %%
def shapes(*tensors):
    first, last = tensors[0].shape[1:], tensors[-1].shape[1:]
    name = lambda shape: "×".join(map(str, shape))
    return name(first) + ("" if len(tensors) == 1 else " … " + name(last))


latent, spatial, pyramid = paper.unet(torch.empty(1, 3, 512, 512, device="meta"))
alphas = [head(f)[0] for head, f in zip(paper.heads, spatial)]
output = {"U-Net, down": shapes(latent), "U-Net, up": shapes(*spatial), "pyramid": shapes(*pyramid),
          "codes": shapes(torch.empty(1, 16, 512)),
          "scale and shift": shapes(*alphas) + " (two)", "mapping": "not run",
          "prior": shapes(torch.empty(1, 3, 512, 512))}
print(f"{'':16}{'output, paper':30}{'parameters':>12}{'GFLOP':>8}"
      f"{'clean: parameters':>20}{'GFLOP':>8}")
for part, (n, f) in [*table.items(), ("sum", (parameters, work))]:
    n2, f2 = clean_table.get(part, (clean_parameters, clean_work))
    print(f"{part:16}{output.get(part, ''):30}{n:12,}{f / 1e9:8.2f}{n2:20,}{f2 / 1e9:8.2f}")

# %% [markdown]
# @fig-gfpgan-cost draws the two columns of the paper's model. Nearly half of the parameters sit in the one linear layer that makes
# the codes, and it costs next to nothing, because it runs once and not at every pixel. The work is done where the pixels are.
# The pyramid is free. The released clean model has 13 % more parameters and more than four times the work, because it doubles the widths exactly where the pictures are large.

# %%
#| label: fig-gfpgan-cost
#| fig-cap: "The paper's model at 512 px: share of the parameters and share of the operations of each part."
#| fig-alt: "Two stacked horizontal bars. Parameters: the codes' linear layer takes 44 percent, the prior 30 percent. Operations: prior 42 percent, scale and shift 28 percent, U-Net up 19 percent, U-Net down 11 percent."
colours = ["#56B4E9", "#0072B2", "#444444", "#D55E00", "#E69F00", "#CC79A7", "#009E73"]
fig, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
for row, (column, total) in enumerate([(0, parameters), (1, work)]):
    start = 0
    for (part, values), colour in zip(table.items(), colours):
        share = 100 * values[column] / total
        ax.barh(row, share, left=start, color=colour, label=part if row == 0 else None)
        if share > 5:
            ink = "black" if colour in ("#56B4E9", "#E69F00") else "white"
            ax.text(start + share / 2, row, f"{share:.0f} %", ha="center", va="center", color=ink,
                    fontsize=9)
        start += share
ax.set(yticks=[0, 1], yticklabels=["parameters", "operations"], xlim=(0, 100), xlabel="share (%)")
ax.invert_yaxis()
fig.legend(loc="outside upper center", ncols=7, fontsize=8, frameon=False, columnspacing=1,
           handlelength=1);

# %%
assert clean_parameters / parameters < 1.14 and clean_work / work > 4
assert 0.43 < table["codes"][0] / parameters < 0.45
assert table["codes"][1] / work < 0.001 and table["pyramid"][1] / work < 0.001

# %% [markdown]
# The official network, counted in the same way, needs 91,283,141,632 operations, of which 1,084,290,048 are FIR filters. Ours needs about 1 % less, for
# three reasons, none of which changes a result:
#
# 1. The 1×1 convolution on the skip path of an up-block runs before the enlargement, at a quarter of the pixels.
# 2. A FIR filter in front of a stride is evaluated only where the stride will look.
# 3. Enlarging a picture by FIR is one transposed convolution. The official code writes zeros between the samples and multiplies by them too.
#
# In return, ours counts one small matrix product in every modulated convolution: the demodulation factor (@eq-demod), which the official code computes
# element by element, unseen by the counter. The check accounts for every operation.

# %%
C = {s: n // 2 for s, n in widths(512).items()}          # U-Net channels at 4, 8, …, 512 px
up_skip = sum(2 * C[s // 2] * C[s] * (s**2 - (s // 2) ** 2) for s in C if s > 4)
fir_skip = sum(2 * 16 * C[s] * ((s - 1) ** 2 - (s // 2) ** 2) for s in C if s > 4)      # 16 taps
fir_rgb = sum(2 * 16 * 3 * (s**2 - (s // 2) ** 2) for s in C if s > 4)
demodulation = sum(2 * m.weight.shape[0] * m.weight.shape[1] for m in paper.modules()
                   if getattr(m, "demodulate", False))
assert work == 91_283_141_632 - up_skip - fir_skip - fir_rgb + demodulation == 90_130_723_840

# down: main, skip; prior: feature, RGB
fir_official = sum(2 * 16 * (C[s] * (s + 1) ** 2 + C[s] * (s - 1) ** 2 + 2 * C[s] * s**2 + 3 * s**2)
                   for s in C if s > 4)
assert fir_official == 1_084_290_048
print(f"saved: up-block skips {up_skip / 1e6:.0f} M, "
      f"filters under a stride {fir_skip / 1e6:.0f} M, RGB sums {fir_rgb / 1e6:.1f} M; "
      f"added: {demodulation / 1e6:.1f} M")

# %% [markdown]
# ## The variants of the ablation {#sec-gfpgan-variants}
#
# Is each part needed? The paper asks by taking parts away (its Table 4), and a course should be able to ask the same questions. All the answers are
# one field of the config away:
#
# | config | formula for the feature after block $s$'s first convolution | what it tests |
# |---|---|---|
# | `sft="half"` | $[h_{keep},\ \alpha_s \odot h_{mod} + \beta_s]$ | the paper's model |
# | `sft="full"` | $\alpha_s \odot h + \beta_s$ | configuration b: no channel is reserved for the prior |
# | `sft="none"` | $h$ | configuration a: codes alone steer the prior |
# | `w="one"` | as `sft` says, with $w_1 = \dots = w_L$ | codes stay in the space the prior was trained on |
# | `use_prior=False` | no prior: $\hat y = \hat y_S$, the last pyramid picture | configuration c: a U-Net alone |
#
# : The variants as formulas. {#tbl-gfpgan-variants}
#
# Each line of @tbl-gfpgan-variants contains the next one as a special case, and that is how they are checked. A full transform whose maps are 1 and 0 on the
# first half is the half transform; a half transform with maps 1 and 0 everywhere is none; a per-layer code whose matrix repeats one block is one code.

# %%
half, full, none = (random_net(sft=kind) for kind in ("half", "full", "none"))
state = half.state_dict()
for k in range(4):
    # maps for the first half of the channels: α = 1, β = 0
    for kind, rest in (("scale", 1.0), ("shift", 0.0)):
        name = f"heads.{k}.{kind}.1"
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        state |= {f"{name}.weight": torch.cat([torch.zeros_like(weight), weight]),
                  f"{name}.bias": torch.cat([torch.full_like(bias, rest), bias])}
full.load_state_dict(state)
assert_close(full(x)[0], half(x)[0], rtol=1e-5, atol=1e-5)

# %%
none.load_state_dict({k: v for k, v in half.state_dict().items() if not k.startswith("heads.")})
assert (none(x)[0] - half(x)[0]).abs().mean() > 0.01         # the maps matter …
for head in half.heads:
    head.scale[1].weight.zero_(), head.scale[1].bias.fill_(1)
    head.shift[1].weight.zero_(), head.shift[1].bias.fill_(0)
assert_close(none(x)[0], half(x)[0], rtol=1e-5, atol=1e-5)   # … until they are 1 and 0

# %%
one, many = random_net(w="one"), random_net()
state = one.state_dict()
many.load_state_dict(state | {"to_w.weight": state["to_w.weight"].repeat(10, 1),
                              "to_w.bias": state["to_w.bias"].repeat(10)})
assert_close(many(x)[0], one(x)[0], rtol=1e-5, atol=1e-5)

alone = random_net(use_prior=False)
alone.unet.load_state_dict(one.unet.state_dict())
image, pyramid = alone(x)
assert torch.equal(image, pyramid[-1]) and torch.equal(image, one(x)[1][-1])
test_fail(alone.freeze_prior, exc=ValueError, contains="no prior")

# %%
for name, changes in {"paper": {}, "full": dict(sft="full"), "none": dict(sft="none"),
                      "one code": dict(w="one"), "no prior": dict(use_prior=False)}.items():
    with torch.device("meta"):
        variant = GFPGAN(GFPGANConfig.paper().replace(**changes))
    print(f"{name:9} {sum(p.numel() for p in variant.parameters()) / 1e6:5.1f} M parameters")

# %% [markdown]
# ## Which gradient reaches what {#sec-gfpgan-gradients}
#
# A parameter that no loss reaches stays where chance put it, and nothing complains. So it pays to know the routes. There are two outputs: the
# restored image, on which the adversarial, perceptual and identity losses act, and the pyramid, on which only an L1 loss acts.
# The next cell pulls each output back through each variant and records for which share of a part's parameter tensors the gradient is not zero.

# %%
ROUTES = {"U-Net, down": ("unet.first", "unet.down", "unet.last"), "U-Net, up": ("unet.up",),
          "pyramid layers": ("unet.to_rgb",), "codes": ("to_w",),
          "scale and shift": ("heads",), "prior, synthesis": ("decoder.synthesis",),
          "prior, mapping": ("decoder.mapping",)}


def reached(net, output, x):
    """{part: share of its parameter tensors with a gradient that is not zero}, None for a part that
    the net does not have."""
    net.zero_grad(set_to_none=True)
    image, pyramid = net(x)
    read = image if output == "image" else torch.cat([p.flatten() for p in pyramid])
    read.square().mean().backward()
    shares = {}
    for part, names in ROUTES.items():
        tensors = [p for k, p in net.named_parameters() if k.startswith(names)]
        moved = [p.grad is not None and bool(p.grad.any()) for p in tensors]
        shares[part] = np.mean(moved) if moved else None
    return shares


routes = {}
for label, changes, frozen in [("paper", {}, False), ("prior frozen", {}, True),
                               ("full", dict(sft="full"), False), ("none", dict(sft="none"), False),
                               ("one code", dict(w="one"), False),
                               ("no prior", dict(use_prior=False), False)]:
    for output in ("image", "pyramid"):
        net = random_net(**changes).requires_grad_(True)
        routes[label, output] = reached(net.freeze_prior() if frozen else net, output, x)

# %%
#| label: fig-gfpgan-routes
#| fig-cap: "Which part (row) receives a gradient from which output (column) in which variant. Dark: all of its parameters; light: some; empty: none; grey: the variant has no such part."
#| fig-alt: "Table of filled and empty circles. In the paper's model the image reaches everything but the pyramid layers and the mapping network; the pyramid reaches only the U-Net."
fig, ax = plt.subplots(figsize=(8, 3.1), layout="constrained")
for col, (key, shares) in enumerate(routes.items()):
    for row, share in enumerate(shares.values()):
        edge = "#cccccc" if share is None else "#0072B2"
        fill = {None: "#cccccc", 0: "white", 1: "#0072B2"}.get(share, "#56B4E9")
        ax.scatter(col + col // 2 * 0.4, row, s=90, ec=edge, fc=fill)
ax.set(yticks=range(len(ROUTES)), yticklabels=ROUTES,
       xticks=[c + c // 2 * 0.4 for c in range(len(routes))], xlim=(-0.6, 13.6))
ax.set_xticklabels([output for _, output in routes], fontsize=8)
ax.invert_yaxis(), ax.spines[:].set_visible(False), ax.tick_params(length=0)
for col, (label, _) in enumerate(list(routes)[::2]):
    ax.text(2.4 * col + 0.5, -0.75, label, ha="center", fontsize=9, fontweight="bold")

# %%
partial = {(*key, part): share for key, shares in routes.items() for part, share in shares.items()
           if share not in (None, 0, 1)}
# the image is the last of four pyramid pictures
assert partial == {("no prior", "image", "pyramid layers"): 1 / 4}
silent = {key: [part for part, share in shares.items() if share == 0]
          for key, shares in routes.items()}
prior, idle = ["prior, synthesis", "prior, mapping"], ["pyramid layers", "prior, mapping"]
assert silent["paper", "image"] == silent["full", "image"] == silent["one code", "image"] == idle
assert silent["prior frozen", "image"] == ["pyramid layers", *prior]
assert silent["none", "image"] == ["U-Net, up", "pyramid layers", "prior, mapping"]
assert silent["paper", "pyramid"] == ["codes", "scale and shift", *prior]
assert silent["full", "pyramid"] == silent["paper", "pyramid"]
assert silent["none", "pyramid"] == ["codes", *prior] and silent["no prior", "pyramid"] == []


# %% [markdown]
# @fig-gfpgan-routes holds four lessons.
#
# - **The mapping network is never reached.** It is not run: the codes come from the photo. Its two million parameters are in every file because the prior was trained with them. Ours keeps them, so that the prior can still draw faces of its own.
# - **Frozen is not cut off.** With a frozen prior the gradient flows *through* the synthesis network to the U-Net, the codes and the maps; only its own weights stand still. The official training does this, so 51.3 of 76.2 million parameters learn.
# - **The pyramid layers live on the pyramid loss alone.** The official schedule switches that loss off early (by a factor of $10^{-12}$, since a parameter without a gradient would stop its distributed training).
# - **Without the maps half of the U-Net idles.** With `sft="none"` only the downward half speaks to the image. In a training that switches the pyramid loss off, the upward half would be dead weight.

# %% [markdown]
# ## Noise: stored, fresh or none {#sec-gfpgan-noise}
#
# StyleGAN2 adds noise to its features so that the network need not invent randomness for pores and hair. A restorer inherits it, and its users ask why the same photo gives another
# picture today. Each layer adds $\eta\, \varepsilon$ with a learned strength $\eta$ and a noise map $\varepsilon$, and there are three choices for $\varepsilon$:
# `"fixed"` takes the maps stored in the weights file, `"random"` draws new ones, `"zero"` leaves them out. Ours uses the stored ones unless told otherwise.

# %%
def noise_outputs(net, x):
    with torch.no_grad():
        torch.manual_seed(5)
        return {mode: net(x, noise=mode)[0] for mode in NOISE_MODES}


with torch.no_grad():
    net = random_net()
    fixed, random, zero = noise_outputs(net, x).values()
    # repeatable, and not
    assert torch.equal(fixed, net(x)[0]) and not torch.equal(random, net(x, noise="random")[0])
    # a seed repeats it
    assert torch.equal(noise_outputs(net, x)["random"], random)
    # fixed noise reads the stored maps, and nothing else
    for i in range(9):
        getattr(net.decoder.synthesis, f"noise{i}").zero_()
    assert torch.equal(net(x)[0], zero)
    for conv in net.decoder.synthesis.convs:
        conv.noise_strength.zero_()
    assert torch.equal(net(x, noise="random")[0], zero)      # no strength, no noise
test_fail(lambda: net(x, noise="none"), exc=ValueError, contains="'none'")

# %% [markdown]
# The last check is the state in which every training starts: the strengths are zero at first, so all three modes agree. In the memorised net of this chapter the strengths have
# been trained, with the stored maps. @fig-gfpgan-noise shows what becomes of the picture with other maps, and how much a pixel then varies.

# %%
#| label: fig-gfpgan-noise
#| fig-cap: "The memorised face with the stored noise, two fresh draws, no noise, and the standard deviation of each pixel over 32 draws (white: 0.1, where pixels run from -1 to 1)."
#| fig-alt: "Five small pictures: four versions of the same face that differ slightly, and a dark map of the variation."
with torch.no_grad():
    torch.manual_seed(0)
    draws = torch.cat([memory(degraded, noise="random")[0] for _ in range(32)])
    stored, zero = (memory(degraded, noise=mode)[0][0] for mode in ("fixed", "zero"))
# it learned its own maps by heart
assert F.l1_loss(stored, face[0]) < F.l1_loss(draws, face.expand_as(draws))
show([stored, draws[0], draws[1], zero, draws.std(0).mean(0)],
     ["fixed", "random", "random again", "zero", "deviation"], height=1.6, vmin=0, vmax=0.1);

# %% [markdown]
# ## Two pictures from one network {#sec-gfpgan-share}
#
# In a pass the network draws the face twice. The prior draws $\hat y$, trained to look real. The last level of the pyramid (@sec-unet) is the U-Net's own picture $u$, trained by an $\ell_1$ loss to be right on average: dull, but it invents nothing. Their errors differ, so a mean of the two can be nearer to the truth than either:
#
# $$ y_\lambda = \lambda\,\hat y + (1-\lambda)\,u, \qquad 0 < \lambda \le 1 . $$ {#eq-gfpgan-share}
#
# $\lambda$ is `prior_share` in the config. It costs nothing, and acts outside training only: every loss sees $\hat y$ itself. The paper's network is $\lambda=1$. For the bundled network @sec-train-restorer chooses it by measurement.

# %%
net, mixed = random_net(), random_net(prior_share=0.25)                       # the same weights
(plain, pyramid), (mixture, _) = net(x), mixed(x)
assert_close(mixture, 0.25 * plain + 0.75 * pyramid[-1])
assert (mixture - plain).abs().max() > 0.1
# the losses see the prior's picture
assert torch.equal(mixed.train()(x)[0], plain)
test_fail(lambda: net.config.replace(prior_share=1.5), exc=ValueError, contains="prior_share")

# %% [markdown]
# ## A photo does not see its neighbours {#sec-gfpgan-batch}
#
# Several faces of a photo are restored in one batch. Nobody's face may depend on who else is in the picture.
# The modulated convolution deserves the suspicion most: each picture has a kernel of its own there, and the usual code folds the
# batch into the channels. Two checks: a picture alone gives what it gave in company, and the gradient of one output with respect to another picture's input is exactly zero.

# %%
net = random_net()
batch = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
batch.requires_grad_(True)
together, _ = net(batch)
for i in range(3):
    assert_close(net(batch[i:i + 1])[0][0], together[i], rtol=1e-4, atol=1e-4)
assert_close(net(batch.flip(0))[0], together.flip(0), rtol=1e-4, atol=1e-4)
together[1].sum().backward()
assert batch.grad[1].abs().mean() > 0 and not batch.grad[0].any() and not batch.grad[2].any()


# %% [markdown]
# The tolerance of 1e-4 is rounding: a convolution may add in another order for another batch size, so equality to the last bit is not promised.

# %% [markdown]
# ## Put together: what each level carries {#sec-gfpgan-together}
#
# The bundled restorer has all the parts of this chapter, trained (@sec-train-restorer). Now that they work together: which level does what? The maps act at each resolution from 8 px up; the 4 px feature speaks through the codes alone.
# One way to find out is to take one level's maps $c_s=(\alpha_s,\beta_s)$ away and to put the neutral pair in their place:
#
# $$\hat y_{-s}=G\big(\mathcal W;\;c_8,\dots,\underbrace{(1,0)}_{\text{at }s},\dots,c_S\big).$$ {#eq-gfpgan-drop}
#
# The prior then goes on at that level with what it has from the codes and the coarser levels. `None` stands for the neutral pair in the code below. The faces are the astronaut's and eleven that the prior made up, all shrunk and damaged in the same way.

# %%
def conditions(net, x):
    "What the U-Net makes of x: codes (b, n, d), and maps (alpha, beta) of each level from 8 px on."
    latent, spatial, _ = net.unet(x)
    w = net.to_w(latent.flatten(1)).unflatten(1, (-1, net.config.style_dim))
    w = w.expand(-1, net.decoder.synthesis.n_codes, -1)
    return w, [head(f) for head, f in zip(net.heads, spatial)]


def draw(net, w, maps):
    "The decoder's picture from codes and maps; where maps[k] is None, the prior goes on alone."
    def modulate(h, k):
        return h if maps[k] is None else cs_sft(h, *maps[k])
    return net.decoder.synthesis(w, modulate=modulate)


restorer = load_weights("bundled").requires_grad_(False)
# the maps steer the prior's picture alone
restorer.config = restorer.config.replace(prior_share=1)
size, n_levels = restorer.config.size, len(restorer.heads)
sharp = torch.cat([F.adaptive_avg_pool2d(to_tensor(example_faces(n, s)), size)
                   for n, s in ((1, 128), (11, 64))])
damage = DegradationParams(sigma_x=1, sigma_y=1, r=2.5, delta=8, q=60)
damaged = to_tensor(np.stack([degrade(picture, damage) for picture in to_images(sharp)]))

# %%
w, maps = conditions(restorer, damaged)
whole, alone = draw(restorer, w, maps), draw(restorer, w, [None] * n_levels)
without = [draw(restorer, w, maps[:k] + [None] + maps[k + 1:]) for k in range(n_levels)]
# nothing replaced: the network itself
assert_close(whole, restorer(damaged)[0], rtol=0, atol=1e-4)
neutral = [(torch.ones_like(alpha), torch.zeros_like(beta)) for alpha, beta in maps]
# None is α = 1, β = 0
assert_close(draw(restorer, w, neutral), alone, rtol=0, atol=1e-4)
# all dropped: the prior's own picture for these codes
assert_close(restorer.decoder.synthesis(w), alone, rtol=0, atol=0)
# no level is idle
assert all((y - whole).abs().mean() > 1e-4 for y in without)

# %%
#| label: fig-gfpgan-drop
#| fig-cap: "Three faces, the astronaut's first: sharp, damaged, restored; then restored without the maps of one level; last without any maps, the prior's own picture for the codes."
#| fig-alt: "Three rows of small faces; the columns show how the restored face changes as maps are left out."
columns = {"sharp": sharp, "damaged": damaged, "restored": whole,
           **{f"no {8 * 2**k} px": y for k, y in enumerate(without)}, "no maps": alone}
show([y[i] for i in range(3) for y in columns.values()], list(columns), cols=len(columns),
     height=1.0);


# %% [markdown]
# Read @fig-gfpgan-drop from right to left. The last column is what the codes alone ask of the prior: almost the same for everybody. It is the maps that make it a person. They do not share this work evenly.
# Without a coarse level the face stays who it is and changes in tone and contour. Without the finest one most of the likeness is gone, and the colours with it.

# %% [markdown]
# ## Whose face is it? {#sec-gfpgan-swap}
#
# Dropping shows what goes missing. Swapping shows whose picture it becomes. Let $A$ and $B$ be two faces. One level of the maps comes from the $F_{spatial}$ of $B$, or the codes do:
#
# $$\hat y_{s\leftarrow B}=G\big(\mathcal W^A;\;c^A_8,\dots,c^B_s,\dots,c^A_S\big),\qquad \hat y_{\mathcal W\leftarrow B}=G\big(\mathcal W^B;\;c^A_8,\dots,c^A_S\big).$$ {#eq-gfpgan-swap}
#
# To say at which sizes a picture changed, the difference $d$ is taken apart by octaves. $P_s$ averages it over blocks to $s\times s$ pixels, $U$ repeats each of these twice in both directions, and $\langle\cdot\rangle$ is the mean over all pixels. The parts are orthogonal, so their squares add up:
#
# $$\langle d^2\rangle=\langle(P_4d)^2\rangle+\sum_{s=8}^{S}\langle(P_sd-U P_{s/2}d)^2\rangle.$$ {#eq-gfpgan-bands}

# %%
def bands(d):
    "@eq-gfpgan-bands for d (n, 3, S, S): the mean squares at 4 px, 8 px, …, S px."
    blurred = [F.adaptive_avg_pool2d(d, 4 * 2**k) for k in range(n_levels + 1)]
    steps = [fine - F.interpolate(coarse, scale_factor=2) for coarse, fine in pairwise(blurred)]
    return np.array([part.square().mean().item() for part in blurred[:1] + steps])


flat, checks = torch.ones(1, 3, size, size), torch.arange(size) + torch.arange(size)[:, None]
checks = checks.expand(1, 3, -1, -1) % 2 * 2.0 - 1
# limits: the coarsest …
np.testing.assert_allclose(bands(flat), [1] + [0] * n_levels)
# … and the finest pattern
np.testing.assert_allclose(bands(checks), [0] * n_levels + [1])

# %%
# B is the row before A
next_face = lambda t: t.roll(1, 0)
w_b, maps_b, whole_b = next_face(w), [tuple(map(next_face, m)) for m in maps], next_face(whole)
put = lambda k, m: draw(restorer, w, maps[:k] + [m] + maps[k + 1:])
swapped = {f"{8 * 2**k} px": put(k, maps_b[k]) for k in range(n_levels)}
swapped |= {"codes": draw(restorer, w_b, maps), "all maps": draw(restorer, w, maps_b)}
# a level swapped with itself
assert all(torch.equal(put(k, maps[k]), whole) for k in range(n_levels))
# codes and all maps: the other restoration
assert_close(draw(restorer, w_b, maps_b), whole_b, rtol=0, atol=1e-4)
split = {}
left_out = {f"no {8 * 2**k} px": y for k, y in enumerate(without)} | {"no maps": alone}
for name, y in (left_out | swapped).items():
    split[name] = bands(y - whole)
    # nothing lost
    assert_close(split[name].sum(), (y - whole).square().mean().item(), rtol=1e-3, atol=0)
    from_a, from_b = ((y - t).abs().mean().item() for t in (whole, whole_b))
    distance = f", distance to B {from_b:.2f}" if name in swapped else ""
    print(f"{name:9} change {from_a:.2f}{distance}")
    # only the finest maps make it B
    assert name not in swapped or (from_b < from_a) == (name in (f"{size} px", "all maps"))
spread = lambda y: (y - next_face(y)).abs().mean()
print(f"A to B: {spread(whole):.2f} restored, {spread(alone):.2f} by codes alone, "
      f"{spread(damaged):.2f} damaged")

# %%
#| label: fig-gfpgan-swap
#| fig-cap: "Left: A restored. Right: B restored, which is the face of the row above (of the twelfth face in the first row). Between: A with the maps of one level, the codes, or all maps of B."
#| fig-alt: "Three rows of small faces; from the left column to the right the face of A turns into that of B, in some columns more than in others."
columns = {"A": whole, **swapped, "B": whole_b}
show([y[i] for i in range(3) for y in columns.values()], list(columns), cols=len(columns),
     height=1.0);

# %%
#| label: fig-gfpgan-bands
#| fig-cap: "At which sizes the picture changes (columns) when maps are dropped or codes and maps are swapped (rows): percent of the squared change, mean of twelve faces."
#| fig-alt: "Table of percentages as a heat map; one row per experiment, one column per octave."
share = np.array([100 * v / v.sum() for v in split.values()])
fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
ax.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
for (row, col), v in np.ndenumerate(share):
    ax.text(col, row, f"{v:.0f}", ha="center", va="center", fontsize=9,
            color="white" if v > 55 else "black")
ax.axhline(n_levels + 0.5, color="white", lw=4), ax.tick_params(length=0)
ax.set_yticks(range(len(split)), [n if n.startswith("no") else f"{n} of B" for n in split])
ax.set_xticks(range(n_levels + 1), [f"{4 * 2**k} px" for k in range(n_levels + 1)]);

# %% [markdown]
# @fig-gfpgan-swap and the printed distances answer the question of the heading. With the finest maps of $B$ the picture is nearer to $B$ than to $A$, whatever the other levels and the codes say; with the codes of $B$ it remains $A$. The codes are meant to find the prior's closest face. In a small net they find little: the maps are the shorter way to a smaller loss.
# @fig-gfpgan-bands corrects a tempting idea: that each level of maps edits the detail of its own size. Most of what the finest maps do can be seen at 4 px already, as tone and colour: they sit at full resolution, but they scale whole features.

# %% [markdown]
# ## Paper, official code, ours {#sec-gfpgan-table}
#
# | item | paper | official code | ours | why |
# |---|---|---|---|---|
# | latent mapping | an MLP, several linear layers | one linear layer with $L \cdot 512$ outputs | one linear layer | loads the official weights |
# | codes | $\mathcal W$ | one code per layer, used directly (`different_w`, `input_is_latent`) | `w="per_layer"`; `"one"` as a variant | both can be compared |
# | mapping network of the prior | – | in the file, never run | the same | the prior can still draw on its own |
# | where the maps act | at each resolution scale | after the first convolution of each block from 8 px on, none at 4 px | the same | the weights fit |
# | result | the prior's picture | the same | mixed with the U-Net's own by `prior_share`; 1 unless the weights say otherwise | a smaller error (@eq-gfpgan-share) |
# | prior during training | pretrained | loaded and frozen by the v1 configuration | `freeze_prior()`, to be called | explicit, and a test can see it |
# | noise in restoration | not stated | fresh on every call, unless `randomize_noise=False` | stored maps, unless asked | the same photo gives the same picture |
# | 1×1 skip of an up-block | – | enlarge, then convolve | convolve, then enlarge | the same function, 0.94 GFLOP less |
# | the three released families | – | three classes in six files | one class, `resample` and `equalized` | every family can be trained and converted |
# | mistakes in a configuration | – | unknown keys of the class are a TypeError, impossible sizes fail somewhere | a ValueError that names the field | found before the training, not after |
#
# : The generator in the paper, in the official code and here. {#tbl-gfpgan-deviations}

# %% [markdown]
# ## What users trip over {#sec-gfpgan-trips}
#
# ::: {.callout-warning}
# - **The range.** The network takes and returns RGB in $[-1, 1]$. Fed with $[0, 1]$, as many pipelines do, it does not fail: it returns a grey, flat face (ComfyUI #3594 is one report). The package converts at the edge (@sec-photos).
# - **The same photo, another picture.** The official code draws fresh noise on every call. Compare two installations with fixed noise only.
# - **The fidelity weight.** The official tool has an option `weight`. It hands it to the generator, whose classes for v1 to v1.4 accept and ignore it. There is no such knob inside GFP-GAN; blending with the input is done outside.
# - **Another size.** The architecture works at any power of two, the released weights only at 512 px: noise maps, codes and blocks belong to one size.
# :::

# %%
# the mistake of the first line, made on purpose
dark = (degraded + 1) / 2
with torch.no_grad():
    wrong, right = memory(dark)[0], memory(degraded)[0]
assert F.l1_loss(wrong, face) > 1.5 * F.l1_loss(right, face)

# %% [markdown]
# ## Summary
#
# - One frozen config fixes the shape of the network, refuses what it does not understand, and travels with the weights.
# - The deepest U-Net feature becomes 16 codes by one linear layer, which holds 44 % of the parameters and does 0.1 % of the work.
# - The prior's synthesis network runs as it always did; after the first convolution of each block from 8 px up, half of its channels are scaled and shifted by maps made of the U-Net's features.
# - The variants of the ablation are special cases of each other, and the checks use that. Maps and codes of two faces can be exchanged level by level, which shows what each of them carries.
# - The image loss reaches everything but the pyramid layers and the mapping network; the pyramid loss reaches the U-Net only.
#
# Next: a network is its weights. @sec-weights stores them, fetches them and reads those of the official code.
#
# ## Exercises
#
# 1. **Compute.** How many parameters does the model have at 1024 px with channel multiplier 1? Derive the number of codes and the widths first, then check with a network on the `meta` device.
# 2. **Modify.** Let the maps act after the *second* convolution of each block instead of the first. Which tensors change their shape? Let the tiny net memorise the face again: is the error after 200 steps lower?
# 3. **Break.** In `by_hand`, let the RGB layer of block $k$ use code `i + 1` instead of `i + 2`. Which check notices? Would a check of shapes, or a look at the picture of a network that is trained this way, have noticed?
#
# Worked solutions: [nbs/solutions/08_gfpgan.ipynb](solutions/08_gfpgan.ipynb).
#
# ## References
#
# The architecture is that of @wang2021gfpgan. Its generator is StyleGAN2 [@karras2020stylegan2], the feature-wise modulation goes back to the spatial feature transform [@wang2018sft],
# and inversion by optimisation, which the predicted codes replace, is described by @menon2020pulse and @gu2020mganprior.

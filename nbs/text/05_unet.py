# %% [markdown]
# # The degradation removal module {#sec-unet}
#
# > A U-Net looks at the whole damaged face and hands on what it understood: one feature that says who this is, and a stack of features that say where things are.
#
# **You will build** `DownBlock`, `UpBlock` and `UNet`: the part of GFP-GAN that reads the degraded face. You compare every block with a written-out version, count the parameters against the official model,
# measure how far one output pixel sees, and train a tiny U-Net until it repairs a batch of faces. **Needs** @sec-degradation for the damage and @sec-layers for the layers. **Runs in** about 10 s on a laptop CPU.

# %%
#| default_exp unet

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu.degradation import SEVERE, degrade, sample_params
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.layers import fir_kernel, upfirdn
from gfpgan_edu.stylegan2 import widths

# %%
#| label: fig-unet-map
#| fig-cap: "The method. This chapter builds the U-Net and the small pictures that guide its training."
#| fig-alt: "Boxes and arrows of the method with the U-Net and the pyramid coloured."
draw_map("unet", "pyramid");

# %% [markdown]
# ## What the module delivers
#
# The layers of @sec-layers now become the first of the two networks. The other one, the prior, can paint faces, but it has never seen a damaged one. Something must look at the input first, see through blur, noise and JPEG blocks, and tell the prior two things: *which* face to paint and *where* its parts are.
# That is the degradation removal module, a U-Net [@ronneberger2015unet], lit in @fig-unet-map. The paper [@wang2021gfpgan] states it in one line, its Eq. 1:
#
# $$ F_{latent},\; F_{spatial} = \text{U-Net}(x). $$ {#eq-unet}
#
# Here $x$ is the degraded face. $F_{latent}$ is one small, deep feature of the whole face; a linear layer turns it into the codes of the prior (@sec-gfpgan). $F_{spatial}$ is a list of features, one per resolution; they
# become the scales and shifts that steer the prior at every place of the picture (@sec-csft). A third output exists in training only: a small picture per resolution.
#
# | name | shape at 512 px | read by |
# |---|---|---|
# | $x$ | (b, 3, 512, 512), in [-1, 1] | |
# | $F_{latent}$ | (b, 256, 4, 4) | the linear layer to the codes |
# | $F_{spatial}$ | (b, 256, 8, 8), (b, 256, 16, 16), … (b, 16, 512, 512): seven | the heads for scale and shift |
# | pyramid | (b, 3, 8, 8), … (b, 3, 512, 512): seven | a loss in training |
#
# : What goes in and out of the module. {#tbl-unet-shapes}
#
# The paper gives two reasons for a U-Net: it sees far enough to undo a large blur, and it has features at all resolutions anyway. The first can be measured, and below it is.
#
# ## A block that halves the size
#
# Going down, each block has to halve the size without losing what matters. It is a *residual* block [@he2016resnet]: a short path that only resizes and mixes channels, and a long path with two convolutions that adds a correction. With the
# leaky ReLU $\varphi$, the low-pass filter $f$ of @eq-fir and $\downarrow$ for keeping every second sample, the official block computes
#
# $$ h=\sqrt2\,\varphi(W_1 * x+b_1),\qquad y=\tfrac{1}{\sqrt2}\Big(\sqrt2\,\varphi\big((W_2 * f * h)\!\downarrow+\,b_2\big)+(W_s * f * x)\!\downarrow\Big). $$ {#eq-unet-residual}
#
# $W_1, W_2$ are 3×3 kernels, $W_s$ is 1×1, all scaled as in @eq-equalized. The factor $1/\sqrt2$ is there because the sum of two independent signals of mean square 1 has mean square 2. Three constants can be folded into the gains, by the argument of @eq-layers-homogeneous:
# the gain of the first convolution is $\sqrt2$; that of the second is $\sqrt2\cdot1/\sqrt2=1$; that of the short path is $1/\sqrt2$. No multiplication of a feature map is left.

# %%
#| export
from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d, Resample


# %%
#| export
class DownBlock(nn.Module):
    """Residual block that halves the size (@eq-unet-residual): (b, cin, h, w) ->
    (b, cout, h/2, w/2). The 1/√2 of the sum sits in the gains."""

    def __init__(self, cin, cout, *, resample="fir", equalized=True):
        super().__init__()
        self.conv1 = EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized)
        # √2 of the activation · 1/√2 of the sum
        self.conv2 = EqualizedConv2d(cin, cout, gain=1.0, activate=True, equalized=equalized)
        self.skip = EqualizedConv2d(cin, cout, 1, bias=False, gain=1 / SQRT2, equalized=equalized)
        self.resample = Resample(resample)

    def forward(self, x):
        h = self.conv1(x)
        if self.resample.mode == "fir":
            # h+1 samples -> h/2
            h = self.conv2(self.resample.smooth(h, pad=2), stride=2, padding=0)
        else:
            h = self.conv2(self.resample.down(h))
        return h + self.skip(self.resample.down(x))


# %% [markdown]
# The check is the equation, written out with `torch.nn.functional`, the reference resampler of @sec-layers, all constants where @eq-unet-residual has them, and copied weights. It follows the official order: both paths are filtered at full size and then strided.
# Our short path computes only the samples that stay. The bilinear block is checked in the same way, with the mean of 2×2 pixels before each convolution.

# %%
def act(z):
    return F.leaky_relu(z, 0.2) * 2**0.5

def scaled(conv):
    "The weights that the textbook uses: stored ones over the square root of the fan-in."
    return conv.weight / math.sqrt(conv.weight[0].numel())

def plain_down(block, x):
    h = act(F.conv2d(x, scaled(block.conv1), block.conv1.bias, padding=1))
    if block.resample.mode == "fir":
        h = F.conv2d(upfirdn(h, fir_kernel(), pad=(2, 2)), scaled(block.conv2), stride=2)
        short = F.conv2d(upfirdn(x, fir_kernel(), pad=(1, 1)), scaled(block.skip), stride=2)
    else:
        h = F.conv2d(F.avg_pool2d(h, 2), scaled(block.conv2), padding=1)
        short = F.conv2d(F.avg_pool2d(x, 2), scaled(block.skip))
    return (act(h + block.conv2.bias[:, None, None]) + short) / 2**0.5

torch.manual_seed(0)
x = torch.randn(2, 6, 16, 16, dtype=torch.float64)
for resample in ("fir", "bilinear"):
    block = DownBlock(6, 10, resample=resample).double()
    for conv in (block.conv1, block.conv2):
        # zeros would hide a wrong gain of the bias
        nn.init.normal_(conv.bias)
    assert block(x).shape == (2, 10, 8, 8)
    assert_close(block(x), plain_down(block, x), rtol=1e-12, atol=1e-12)


# %% [markdown]
# ## A block that doubles the size
#
# Going up, the same block is used with bilinear doubling in place of the filter and the stride. All official families agree here, the one with FIR resampling included: the U-Net goes up bilinearly.
#
# The official code resizes first on the short path and applies the 1×1 convolution to the large feature. Ours convolves first. The results are equal, since a 1×1 convolution mixes channels and leaves positions alone, while resizing mixes positions and leaves
# channels alone. With the channel mixing $M$ and the doubling $U$, both linear,
#
# $$ (M\,U x)_{o,p}=\sum_{i,q} M_{oi}\,U_{pq}\,x_{i,q}=(U\,M x)_{o,p}, $$ {#eq-unet-swap}
#
# where $o,i$ run over channels and $p,q$ over positions. The order of two finite sums is free, so the cheaper one wins: a quarter of the multiplications.

# %%
#| export
class UpBlock(nn.Module):
    """Residual block that doubles the size: (b, cin, h, w) -> (b, cout, 2h, 2w).
    Bilinear in every family of official models."""

    def __init__(self, cin, cout, *, equalized=True):
        super().__init__()
        self.conv1 = EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized)
        self.conv2 = EqualizedConv2d(cin, cout, gain=1.0, activate=True, equalized=equalized)
        self.skip = EqualizedConv2d(cin, cout, 1, bias=False, gain=1 / SQRT2, equalized=equalized)
        self.resample = Resample("bilinear")

    def forward(self, x):
        # a 1×1 convolution commutes with resizing (@eq-unet-swap)
        return self.conv2(self.resample.up(self.conv1(x))) + self.resample.up(self.skip(x))


# %%
def plain_up(block, x):
    double = lambda z: F.interpolate(z, scale_factor=2, mode="bilinear")
    h = act(F.conv2d(x, scaled(block.conv1), block.conv1.bias, padding=1))
    h = act(F.conv2d(double(h), scaled(block.conv2), block.conv2.bias, padding=1))
    # official order: resize, then 1×1
    return (h + F.conv2d(double(x), scaled(block.skip))) / 2**0.5

block, x = UpBlock(6, 10).double(), torch.randn(2, 6, 8, 8, dtype=torch.float64)
for conv in (block.conv1, block.conv2):
    nn.init.normal_(conv.bias)
assert block(x).shape == (2, 10, 16, 16)
assert_close(block(x), plain_up(block, x), rtol=1e-12, atol=1e-12)


# %%
def multiplications(f, *args):
    # counts a multiplication and an addition as 2
    with FlopCounterMode(display=False) as counter:
        f(*args)
    return counter.get_total_flops() // 2

twice = lambda z: F.interpolate(z, scale_factor=2, mode="bilinear")
# widths of the U-Net at 512 px, see below
half = {s: n // 2 for s, n in widths(512).items()}
with torch.device("meta"):
    blocks = [(UpBlock(half[s // 2], half[s]), torch.empty(1, half[s // 2], s // 2, s // 2))
              for s in half if s > 4]
    cheap = sum(multiplications(b.skip, x) for b, x in blocks)
    dear = sum(multiplications(b.skip, twice(x)) for b, x in blocks)
assert cheap == sum(half[s // 2] * half[s] * (s // 2) ** 2 for s in half if s > 4)
assert dear == 4 * cheap
print(f"short paths of a U-Net for 512 px: resize first {dear / 1e6:.0f} M multiplications, "
      f"convolve first {cheap / 1e6:.0f} M")

# %% [markdown]
# Does the sum of the two paths keep the size of the signal? A picture that is constant in space passes all filters unchanged, away from the border, so it shows the gains alone. By @eq-layers-square the long path should have a mean square of $1.04\cdot0.52$ and the short one of 0.5, together 1.04.

# %%
torch.manual_seed(0)
flat = torch.randn(16, 128, 1, 1).expand(16, 128, 16, 16)
for block in (DownBlock(128, 128), DownBlock(128, 128, resample="bilinear"), UpBlock(128, 128)):
    with torch.no_grad():
        y = block(flat)
    middle = y[:, :, y.shape[2] // 2, y.shape[3] // 2].square().mean().item()
    assert 0.9 < middle < 1.2, middle
    print(f"{type(block).__name__:9} {block.resample.mode:8} "
          f"mean square of the output {middle:.2f}")


# %% [markdown]
# ## The U-Net
#
# Now the parts are put in order. A 1×1 convolution turns RGB into features. The blocks go down from $S$ to 4 px. One more convolution gives $F_{latent}$. The blocks go up from 4 to $S$ px, and the input of each is the running feature *plus* what the encoder had at that
# size. Every block's output is one entry of $F_{spatial}$, and a 1×1 convolution makes a picture of it. @fig-unet-shape draws the network for 512 px.

# %%
#| export
class UNet(nn.Module):
    """Degradation removal (Eq. 1): x (b, 3, S, S) -> F_latent (b, C4, 4, 4),
    F_spatial [8..S: (b, Cs, s, s)], pyramid [8..S: (b, 3, s, s)].

    `channels` maps each resolution 4, 8, …, S to its width. log2(S) - 2 blocks go down and as many
    up (7 + 7 at 512 px); the skips are additive: each up-block receives the running feature plus
    the encoder's feature of that size.
    """

    def __init__(self, channels, *, resample="fir", equalized=True):
        super().__init__()
        sizes = sorted(channels)                       # 4, 8, …, S
        eq = dict(equalized=equalized)
        self.first = EqualizedConv2d(3, channels[sizes[-1]], 1, gain=SQRT2, activate=True, **eq)
        self.down = nn.ModuleList(DownBlock(channels[s], channels[s // 2], resample=resample, **eq)
                                  for s in sizes[:0:-1])
        self.last = EqualizedConv2d(channels[4], channels[4], gain=SQRT2, activate=True, **eq)
        self.up = nn.ModuleList(UpBlock(channels[s // 2], channels[s], **eq) for s in sizes[1:])
        self.to_rgb = nn.ModuleList(EqualizedConv2d(channels[s], 3, 1, **eq) for s in sizes[1:])

    def forward(self, x):
        h, skips = self.first(x), []
        for block in self.down:
            h = block(h)
            skips.append(h)                            # S/2, …, 4
        latent = h = self.last(h)
        spatial, pyramid = [], []
        for block, to_rgb, skip in zip(self.up, self.to_rgb, reversed(skips)):
            h = block(h + skip)
            spatial.append(h)
            pyramid.append(to_rgb(h))
        return latent, spatial, pyramid


# %% [markdown]
# The loop hides the U. Written as a recursion it is plain to see: a U-Net is a block down, a smaller U-Net, an addition and a block up. That is the independent version for the check. Every width is different, so a feature that is added in the wrong place cannot pass.

# %%
def recursive(net, h, level=0, mute=None):
    """Features 4, 8, … of the U-Net below `level`, given its input h. The smallest U-Net is one
    convolution; the skip of `mute` px is left out."""
    if level == len(net.down):
        return [net.last(h)]
    skip = net.down[level](h)
    inner = recursive(net, skip, level + 1, mute)
    return inner + [net.up[-1 - level](inner[-1] + (0 if skip.shape[-1] == mute else skip))]

torch.manual_seed(0)
net = UNet({4: 10, 8: 9, 16: 7, 32: 5})
x = torch.randn(2, 3, 32, 32)
latent, spatial, pyramid = net(x)
expected = recursive(net, net.first(x))
for got, want in zip([latent, *spatial], expected, strict=True):
    assert_close(got, want, rtol=0, atol=1e-6)
for picture, feature, head in zip(pyramid, spatial, net.to_rgb, strict=True):
    assert_close(picture, head(feature), rtol=0, atol=1e-6)
assert [tuple(f.shape) for f in spatial] == [(2, 9, 8, 8), (2, 7, 16, 16), (2, 5, 32, 32)]

# %%
#| label: fig-unet-shape
#| fig-cap: "The U-Net for 512 px. A box is a feature, size × channels, its width the number of channels. Arrows: the additive skips."
#| fig-alt: "Boxes descend on the left from 512 px with 16 channels to 4 px with 256 channels and ascend on the right; arrows join equal sizes from 256 px downwards."
fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
def box(x, s, colour):
    ax.barh(math.log2(s), half[s] / 128, left=x - half[s] / 256, height=0.5, color=colour)
    ax.text(x, math.log2(s) - 0.45, f"{s} × {half[s]}", ha="center", va="center", fontsize=8)
for i, s in enumerate(sorted(half, reverse=True)):
    right, edge, y = (17.5 - i if s > 4 else 10), half[s] / 256 + 0.2, math.log2(s)
    box(i, s, "#0072B2")                                                      # the encoder
    box(right, s, "#009E73" if s > 4 else "#D55E00")                          # F_spatial, F_latent
    if s > 4:
        ax.plot(right + 1.8, y, "s", color="#E69F00", ms=7)                   # a head
    if s < 512:
        ax.annotate("", (right - edge, y), (i + edge, y),
                    arrowprops=dict(arrowstyle="-|>", color="#888888"))
for x, y, name, colour in [(0, 9.5, "encoder", "#0072B2"), (10, 1.05, "F_latent", "#D55E00"),
                           (17.5, 9.5, "F_spatial", "#009E73"), (19.3, 9.3, "picture", "#E69F00")]:
    ax.text(x, y, name, ha="center", color=colour, fontsize=9)
ax.axis("off");


# %% [markdown]
# ## How wide and how deep
#
# The widths are half of the prior's: 256 channels from 4 to 32 px, then half as many for each doubling. The depth follows from the size. To get from $S=2^n$ to $4=2^2$ takes $\log_2 S-2$ halvings, seven at 512 px. The next cell builds the network for all
# sizes from 8 to 1024 px. The device `meta` gives tensors a shape and no memory, which is all that counting needs.

# %%
def count(module):
    return sum(p.numel() for p in module.parameters())

with torch.device("meta"):
    nets = {s: UNet({k: n // 2 for k, n in widths(s).items()})
            for s in (8, 16, 32, 64, 128, 256, 512, 1024)}
    for s, net in nets.items():
        assert len(net.down) == len(net.up) == len(net.to_rgb) == math.log2(s) - 2
        latent, spatial, pyramid = net(torch.empty(1, 3, s, s))
        assert latent.shape == (1, 256, 4, 4)
        assert [f.shape[1:] for f in spatial] == [(widths(s)[k] // 2, k, k)
                                                  for k in widths(s) if k > 4]
        assert [p.shape[1:] for p in pyramid] == [(3, k, k) for k in widths(s) if k > 4]
print({s: f"{count(net) / 1e6:.2f} M" for s, net in nets.items()})

# %% [markdown]
# Nearly all parameters are at the small sizes, so a U-Net for 1024 px costs few more than one for 64 px. At 512 px the numbers can be held against the official model of the paper (`GFPGANv1`). Its parts and their parameter counts, as that
# code builds them, are facts and written into the next cell.

# %%
official = {"first": ("conv_body_first", 64), "down": ("conv_body_down", 4_368_848),
            "last": ("final_conv", 590_080),
            "up": ("conv_body_up", 4_956_368), "to_rgb": ("toRGB", 3_045)}
for ours, (theirs, parameters) in official.items():
    print(f"{ours:7} {count(getattr(nets[512], ours)):>10,}   {theirs:16} {parameters:>10,}")
    assert count(getattr(nets[512], ours)) == parameters
print(f"{'sum':7} {count(nets[512]):>10,}")
main_path = 1 + 2 * len(nets[512].down) + 1 + 2 * len(nets[512].up)
assert main_path == 30

# %% [markdown]
# All five parts agree; their sum is 9.9 million. A face passes 30 convolutions on the main path.
#
# ## Add, do not concatenate
#
# The original U-Net concatenates the encoder's feature to the running one, so that the next convolution has twice as many input channels. Here they are added. The two are closely related. A convolution of the concatenation has one kernel for each half, $W_h * h+W_s * s$. If both kernels are the same,
#
# $$ [W,W] * [h,s] = W * h + W * s = W * (h+s). $$ {#eq-unet-add}
#
# Adding is concatenating with tied kernels: it gives up the freedom to treat both halves differently, and saves parameters and memory for it.

# %%
h, s, w = torch.randn(1, 5, 8, 8), torch.randn(1, 5, 8, 8), torch.randn(7, 5, 3, 3)
joined = F.conv2d(torch.cat([h, s], 1), torch.cat([w, w], 1))
assert_close(joined, F.conv2d(h + s, w), rtol=1e-4, atol=1e-4)

# first convolution and short path read 2c channels
wide = []
with torch.device("meta"):
    for block in nets[512].up:
        cout, cin = block.skip.weight.shape[:2]
        conv1 = EqualizedConv2d(2 * cin, cin)
        skip = EqualizedConv2d(2 * cin, cout, 1, bias=False)
        wide.append(nn.ModuleList([conv1, skip, block.conv2]))
added = count(nets[512])
concatenated = added - count(nets[512].up) + sum(map(count, wide))
extra = sum(half[s // 2] ** 2 * 9 + half[s // 2] * half[s] for s in half if s > 4)
assert concatenated - added == extra
print(f"U-Net at 512 px: added {added / 1e6:.1f} M, concatenated {concatenated / 1e6:.1f} M "
      f"parameters, {concatenated / added - 1:.0%} more")


# %% [markdown]
# ## What one output pixel sees
#
# A face whose detail is spread over 40 pixels by blur can only be repaired by a network that looks at 40 pixels at once, and to know that a grey smear is an eye one has to see the whole face. The set of input pixels that can change one output pixel is its *receptive field*. For a chain of
# layers with kernel sizes $k_i$ and strides $t_i$ its width is
#
# $$ r = 1+\sum_i (k_i-1)\prod_{j<i} t_j, $$ {#eq-unet-field}
#
# since a kernel of size $k$ reaches $k-1$ samples further, and one sample of a feature that was halved $m$ times is $2^m$ input pixels. At constant size the field grows by 2 per 3×3 convolution. In a U-Net each level counts twice as much as the one above.
#
# Autograd measures it: the gradient of one output pixel with respect to the input is non-zero exactly inside the receptive field. First the formula, on the long path of two blocks down.

# %%
def gradient(net, size, pick):
    "|d pick(net(x)) / dx|, summed over the colours: (size, size)."
    x = torch.randn(1, 3, size, size, dtype=torch.float64, requires_grad=True,
                    generator=torch.Generator().manual_seed(0))
    pick(net(x)).backward()
    return x.grad.abs().sum(1)[0]

def field(layers):
    r, jump = 1, 1
    for kernel, stride in layers:
        r, jump = r + (kernel - 1) * jump, jump * stride
    return r

torch.manual_seed(0)
# convolution, filter, convolution
chains = {"fir": [(3, 1), (4, 1), (3, 2)], "bilinear": [(3, 1), (2, 2), (3, 1)]}
for resample, chain in chains.items():
    blocks = nn.Sequential(DownBlock(3, 8, resample=resample),
                           DownBlock(8, 8, resample=resample)).double()
    row = (gradient(blocks, 64, lambda y: y[0, 0, 8, 8]) > 0).any(0)
    assert row.sum() == field(chain + chain), (row.sum(), field(chain + chain))
    print(f"two {resample} blocks down see {row.sum().item()} px; "
          f"to F_latent at 512 px the formula gives {field(7 * chain + [(3, 1)])} px")

# %% [markdown]
# A single number of $F_{latent}$ at 512 px has a field wider than twice the picture: it sees all of it. Now the whole network at 128 px, against the same number of 3×3 convolutions in a row without any resizing.

# %%
size = 128
torch.manual_seed(0)
unet = UNet({s: 8 for s in (4, 8, 16, 32, 64, 128)}).double()
# its 3×3 convolutions on the main path
depth = 2 * len(unet.down) + 1 + 2 * len(unet.up)
chain = nn.Sequential(*(EqualizedConv2d(3 if i == 0 else 8, 8, gain=SQRT2, activate=True)
                        for i in range(depth))).double()
seen = {"U-Net": gradient(unet, size, lambda out: out[2][-1][0, :, 64, 64].sum()),
        f"{depth} convolutions": gradient(chain, size, lambda y: y[0, :, 64, 64].sum())}
share = [(g > 0).double().mean().item() for g in seen.values()]
assert share[0] == 1.0  # every pixel of the input
assert share[1] == (field([(3, 1)] * depth) / size) ** 2
for name, s in zip(seen, share):
    print(f"{name}: one output pixel sees {s:.0%} of the input")
# a corner of the 4×4 feature
latent_sees = gradient(unet, size, lambda out: out[0][0, :, 0, 0].sum())
assert (latent_sees > 0).all()

# %%
#| label: fig-unet-field
#| fig-cap: "How strongly each input pixel of 128 × 128 acts on the output pixel in the middle: logarithm of the gradient, the darkest colour is none."
#| fig-alt: "The U-Net's map covers the whole square, brightest in the middle; the plain chain's map is a small square around the middle with nothing outside."
maps = [(g / g.max()).clamp_min(1e-6).log10() for g in seen.values()]
show(maps, list(seen), height=2.8, cmap="viridis", vmin=-6, vmax=0);


# %% [markdown]
# In @fig-unet-field the U-Net reaches every pixel, and the chain of equal depth ends at a square. Near the middle both are strong: the skips carry the fine places, the way through the bottom carries the rest. Even a corner of $F_{latent}$ depends on
# every input pixel, which is why a linear layer may read the identity of the whole face from it.
#
# ## Learning to remove the damage
#
# Nothing so far says that the features are *clean*. GFP-GAN asks for it directly: at each resolution a head, `to_rgb`, turns the feature into a picture, and the picture is compared with the undamaged face of that size. With the heads' pictures $\hat y_s$ and the true face $y_s$, halved from the full size
# by means of 2×2 pixels, the pyramid loss is
#
# $$ \mathcal L_{pyramid}=\sum_{s\in\{8,16,\dots,S\}}\frac{1}{3s^2}\,\lVert \hat y_s-y_s\rVert_1 . $$ {#eq-unet-pyramid}
#
# The official training uses it for the first 50,000 of its 800,000 iterations. In the finished model the heads remain in the checkpoint and are read by nobody.

# %%
def pyramid_of(y):
    "The true pictures for the heads, 8 px first: y (b, 3, S, S) halved again and again."
    levels = [y]
    while levels[0].shape[-1] > 8:
        levels.insert(0, F.avg_pool2d(levels[0], 2))
    return levels

def pyramid_loss(pictures, y):
    return sum((p - t).abs().mean() for p, t in zip(pictures, pyramid_of(y), strict=True))

y = torch.rand(2, 3, 32, 32) * 2 - 1
assert pyramid_loss(pyramid_of(y), y) == 0
p = [torch.zeros_like(t) for t in pyramid_of(y)]
# one wrong value of 2·3·8·8 counts 1/(b·3s²)
p[0][1, 2, 3, 4] += 0.5
change = pyramid_loss(p, torch.zeros_like(y))
assert_close(change.item(), 0.5 / (2 * 3 * 8 * 8), rtol=1e-6, atol=0)
# 32 -> 8 px: the mean of 4×4 pixels
assert_close(pyramid_of(y)[0][0, 0, 7, 0], y[0, 0, 28:32, 0:4].mean())

# %% [markdown]
# The demonstration takes eight faces of 32 px, damages them with `degrade` of @sec-degradation (the ranges `SEVERE`, rescaled to this size), and trains a U-Net with 24 channels on this one batch. This is *overfitting on purpose*: a network that cannot
# improve eight pictures that it meets again and again is broken. It says nothing yet about unseen faces.

# %%
faces = example_faces(8, 32)
rng = np.random.default_rng(0)
damaged = np.stack([degrade(face, sample_params(rng, SEVERE.at(32))) for face in faces])
y, x = to_tensor(faces), to_tensor(damaged)

torch.manual_seed(0)
net = UNet({s: 24 for s in (4, 8, 16, 32)})
opt = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.9, 0.99))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 200)
history = []
for step in range(200):
    pictures = net(x)[2]
    loss = pyramid_loss(pictures, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    schedule.step()
    history.append([(p - t).abs().mean().item() for p, t in zip(pictures, pyramid_of(y))])

# %%
with torch.no_grad():
    restored = net(x)[2][-1]
before, after = (x - y).abs().mean().item(), (restored - y).abs().mean().item()
assert after < 0.8 * before, (before, after)
assert all(last < 0.6 * first for first, last in zip(history[0], history[-1]))
colour_error = lambda a: (a.mean((2, 3)) - y.mean((2, 3))).abs().mean().item()
# tints are the easy part
assert colour_error(restored) < 0.5 * colour_error(x)
print(f"mean error, damaged {before:.2f}, repaired {after:.2f}; of the mean colour, "
      f"damaged {colour_error(x):.2f}, repaired {colour_error(restored):.2f}")

# %%
#| label: fig-unet-loss
#| fig-cap: "Mean absolute error of the heads' pictures while a tiny U-Net learns one batch. Dashed: the error of the damaged input at 32 px."
#| fig-alt: "Three curves for 8, 16 and 32 px fall together below the dashed line."
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
for size, curve, colour in zip((8, 16, 32), np.array(history).T, ("#0072B2", "#D55E00", "#009E73")):
    ax.plot(curve, color=colour, label=f"{size} px")
ax.axhline(before, color="#444444", ls="--")
ax.set(yscale="log", xlabel="step", ylabel="mean absolute error")
ax.set_yticks([0.2, 0.4, 0.6], ["0.2", "0.4", "0.6"]), ax.minorticks_off()
ax.legend();

# %%
#| label: fig-unet-restored
#| fig-cap: "Four of the eight faces: damaged, repaired by the tiny U-Net after 200 steps, true."
#| fig-alt: "Three rows of four 32 px faces. The damaged ones are noisy, grey or tinted; the repaired ones have natural colours and smooth outlines but are softer than the true ones."
show([*x[:4], *restored[:4], *y[:4]], rows=("damaged", "repaired", "true"), cols=4, height=1.2);

# %% [markdown]
# @fig-unet-loss and @fig-unet-restored show what the module is good at: tint and grey are gone, noise is down, outlines are right. They also show what it is not good at. The repaired faces stay soft, although the network was free to learn them by heart. Part of the reason is the wiring: the head at $s$ px
# sees encoder features of at most $s/2$ px, as the encoder's feature of $s$ px is added only afterwards, on the way to the next size. Fine detail is not this module's job; it is the prior's. Leaving out one skip at a time proves the statement.

# %%
with torch.no_grad():
    full = recursive(net, net.first(x))[1:]
    for level in (4, 8, 16):
        cut = recursive(net, net.first(x), mute=level)[1:]
        changed = [not torch.equal(a, b) for a, b in zip(cut, full)]
        assert changed == [s > level for s in (8, 16, 32)]
        print(f"without the skip of {level:2} px the features change at",
              [s for s, c in zip((8, 16, 32), changed) if c], "px")

# %% [markdown]
# ## Put together
#
# One of the faces, with damage that the tiny network has not met, goes through the module. All its outputs are drawn: the three small pictures, one channel of $F_{latent}$ and one of each entry of $F_{spatial}$.

# %%
unseen = to_tensor(degrade(faces[0], sample_params(np.random.default_rng(7), SEVERE.at(32))))
with torch.no_grad():
    latent, spatial, pyramid = net(unseen)
assert latent.shape == (1, 24, 4, 4)
assert [f.shape for f in spatial] == [(1, 24, s, s) for s in (8, 16, 32)]

def busiest(f):
    "The channel of f (1, c, h, w) that varies most over the picture."
    return f[0, f[0].var((1, 2)).argmax()]


# %%
#| label: fig-unet-outputs
#| fig-cap: "Everything the module delivers for one damaged face. Top: input and pictures of the heads. Bottom: one channel of each feature."
#| fig-alt: "The damaged face, its 8, 16 and 32 px pictures, and grey maps of 4, 8, 16 and 32 px in which the place of the face shows ever more finely."
show([unseen[0], *(p[0] for p in pyramid), busiest(latent), *(busiest(f) for f in spatial)],
     ["damaged", *(f"head, {s} px" for s in (8, 16, 32)), "F_latent, 4 px",
      *(f"F_spatial, {s} px" for s in (8, 16, 32))], cols=4, height=1.6);

# %% [markdown]
# In @fig-unet-outputs the maps become finer from left to right. At 32 px the face stands apart from the hair around it; at 16 and 8 px a blot marks its place; at 4 px hardly a place is left, but sixteen cells of many channels are enough to say which face it is.
# The network has 24 channels and knows eight pictures; the official one has 256 at these sizes and has seen 70,000 faces. What its features are used for is the subject of @sec-csft and @sec-gfpgan.
#
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | structure | "U-Net", Eq. 1 | residual blocks, additive skips, widths half of the prior's | the same | equal to it within rounding |
# | depth | 7 down, 7 up at 512 px | $\log_2 S-2$ each | the same, for any size from 8 px | small networks for learning and testing |
# | halving | not stated | FIR in the paper's model; bilinear in the others | `resample=` | one class loads all families |
# | doubling | not stated | bilinear in all families | bilinear | the weights expect it |
# | constants of a block | not stated | √2 after each activation, 1/√2 after the sum | folded into the gains | three passes over memory less |
# | short path, up | not stated | resize, then 1×1 convolution | 1×1 convolution, then resize | equal results, a quarter of the multiplications |
# | short path, down | not stated | filter everything, then stride | filter what stays | equal results, a quarter of the filtering |
# | heads | "in the early stage of training" | always computed when training; loss weight 1, then 1e-12 | always computed | 1×1 convolutions to 3 channels cost next to nothing |
# | head at $s$ px | not stated | before the skip of $s$ px is added | the same | the weights expect it |
#
# : The degradation removal module. {#tbl-unet-deviations}
#
# ## What users trip over
#
# ::: {.callout-warning}
# People ask again and again how to run or train GFP-GAN at 128, 256 or 1024 px. The U-Net is not the obstacle: every size from 8 px is one argument, as the cell above shows. The obstacles lie elsewhere. There must be a prior of that size with the same widths; the official component loss rounds its crop size to
# zero below 512 px; and blur in pixels means another damage at another size, so the ranges have to be rescaled (@sec-degradation).
#
# A U-Net is made of convolutions, so it does not complain about a picture of the wrong size: a network for 64 px given 128 px returns an $F_{latent}$ of 8×8. The assembled generator checks the size of its input (@sec-gfpgan).
# :::
#
# ## Summary
#
# * The module maps a damaged face to $F_{latent}$ (4×4, the whole face), $F_{spatial}$ (8 px to $S$, the places) and, for training, one picture per size.
# * Its blocks are residual; $\sqrt2$ and $1/\sqrt2$ disappear in the gains of the convolutions.
# * A 1×1 convolution and a resize commute, so the cheaper order is taken.
# * Skips are additive: concatenation with tied kernels, at fewer parameters. Widths and depth give the official counts exactly.
# * Every output pixel sees the whole input, which a chain of as many convolutions does not. The module removes damage; it does not invent detail.
#
# Next: detail is the job of the prior, @sec-stylegan2.
#
# ## Exercises
#
# 1. **Compute.** Use @eq-unet-field to find how many levels a U-Net needs before one number at the bottom sees 80 px, twice the largest blur kernel. Check it with `gradient`.
# 2. **Modify.** Move the heads behind the addition of the skip, so that the picture of $s$ px may use the encoder's feature of $s$ px. What happens to the 8 and 16 px curves of @fig-unet-loss, and why is there nothing to add at 32 px?
# 3. **Break.** Set the gain of `conv2` in `DownBlock` to $\sqrt2$. Which two checks turn red? Estimate the mean square after seven such blocks.
#
# Worked solutions: [nbs/solutions/05_unet.ipynb](solutions/05_unet.ipynb).
#
# ## References
#
# The U-Net is from [@ronneberger2015unet], residual blocks from [@he2016resnet]; in this form, with a filter in the short path, they stand in the discriminator of StyleGAN2 [@karras2020stylegan2]. Their use as a degradation removal module, and Eq. 1, are from [@wang2021gfpgan].

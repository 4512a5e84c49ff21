# %% [markdown]
# # Fast restoration {#sec-speed}
#
# > The same picture, from the same numbers, in a fraction of the time.
#
# **You will build** `fuse`, which turns a trained restorer into one that only restores, several times faster on a CPU, and `export_onnx`, which writes it as a file for programs without PyTorch. **Needs** @sec-layers, @sec-stylegan2 and @sec-gfpgan. **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp inference

# %%
#| export
import ctypes
import json
import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from fastcore.basics import patch
from torch import nn

from gfpgan_edu.gfpgan import GFPGAN
from gfpgan_edu.layers import SLOPE
from gfpgan_edu.weights import WeightsError

# %%
import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.full_scale import Tally
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.layers import SQRT2, EqualizedConv2d, Resample, fir_kernel, upfirdn
from gfpgan_edu.stylegan2 import ModulatedConv2d, widths
from gfpgan_edu.weights import load_weights

# %% [markdown]
# @fig-speed-map shows what runs when a face is restored. The pyramid does not: only the training looks at it.

# %%
#| label: fig-speed-map
#| fig-cap: "What restoring needs: all of the generator but the pyramid."
#| fig-alt: "The method as boxes and arrows; the U-Net, the codes, the maps, StyleGAN2 and the output are coloured, the degradation and the pyramid are not."
draw_map("unet", "latent", "csft", "stylegan2", "output");

# %% [markdown]
# ## Where the time goes
#
# Most people restore photos on the computer they have, and it has no large graphics card. So the time of one forward pass on a CPU decides whether the method is of use. @sec-full-scale counted operations. A processor that did nothing but convolutions would need
#
# $$ T_{conv} = \frac{F}{R}, $$ {#eq-speed-floor}
#
# where $F$ is the number of operations of the pass (@eq-fullscale-conv) and $R$ the rate at which this machine does these very convolutions; a profile of the network at the end of this chapter tells it. Everything above $T_{conv}$ is spent around the arithmetic: moving maps through memory, multiplying them by a number, adding a bias, resizing.
#
# `tests/bench/inference.py` measures that for the paper's network and for the clean ones, at one and two times the width (`cm`, the channel multiplier; the released v1.2 to v1.4 have two). One picture of 512 px, two threads, the official network and ours in turns in one process. The cells below read what it wrote.

# %%
bench = json.loads(Path("../figures/bench/inference.json").read_text())
rows = bench["families"]
print(f"{bench['machine']}; torch {bench['torch']}, onnxruntime {bench['onnxruntime']}; "
      f"{bench['date']}")
for name, r in rows.items():
    s, kinds, flops = r["seconds"], r["time_by_kind"], r["flops"]
    floor = s["fused fp32"] * kinds["fused fp32"]["convolutions"]
    rate = flops["fused"] / floor
    print(f"{name:12} {flops['plain'] / 1e9:4.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s: "
          f"{floor:.2f} s. Official {s['official']:.2f} s, ours as written {s['plain']:.2f} s")
    assert s["official"] > 1.5 * floor and s["plain"] > 1.5 * floor
    assert 1 / 8 < kinds["plain"]["the rest"] < 1 / 3
assert 0.45 < rows["GFPGANv1"]["time_by_kind"]["official"]["resizing"] < 0.55

# %%
#| label: fig-speed-kinds
#| fig-cap: "Time of one picture by kind of work: the official network, ours as written, ours fused in float32 and in bfloat16. Total lengths are measured seconds."
#| fig-alt: "Three groups of stacked bars. In the official GFPGANv1 half of the time is resizing. In the fused networks convolutions take most of a much shorter bar."
KINDS = ("convolutions", "resizing", "activations", "the rest")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
fig, axes = plt.subplots(1, 3, figsize=(8, 2.4), layout="constrained", sharey=True)
for ax, (name, r) in zip(axes, rows.items()):
    left, seconds, shares = np.zeros(4), r["seconds"], r["time_by_kind"]
    for kind, colour in zip(KINDS, COLOURS):
        width = np.array([seconds[way] * shares[way][kind] for way in shares])
        ax.barh(range(4), width, left=left, color=colour, label=kind)
        left += width
    ax.set(title=name, xlabel="seconds", yticks=range(4),
           yticklabels=["official", "as written", "fused", "fused, bf16"])
    ax.spines[["top", "right"]].set_visible(False)
axes[0].invert_yaxis()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False,
           fontsize=9);


# %% [markdown]
# @fig-speed-kinds tells what to do. Half of the time of the official GFPGANv1 is its FIR filter (@eq-fir): without the CUDA extension it inserts zeros and multiplies by them. In ours as written the FIR filter is cheap (@sec-layers), but an eighth to a third of the time still passes in sums, products and copies of whole maps. The two lower bars of each group are where this chapter ends. Each of the next sections removes one kind of work that changes no result.
#
# The checks use a small net in which no bias and no noise strength is zero. Both begin at zero, so a fresh net would hide that they had been forgotten.

# %%
def restless_net(**changes):
    "A tiny GFPGAN in which nothing is zero, and two faces."
    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig.tiny(32).replace(**changes)).eval().requires_grad_(False)
    for p in net.parameters():
        p += torch.randn_like(p) * (0.3 if p.ndim < 2 else 0.02)
    return net, torch.rand(2, 3, 32, 32) * 2 - 1


# %% [markdown]
# ## Multiply constants once
#
# An equalised layer (@eq-equalized) multiplies its weight $W$ by a constant $c$ and its bias $b$ by $g$ in every pass. Training wants that: the optimiser must see $W$, not $cW$. After training nobody changes $W$ any more, so the products are stored:
#
# $$ y=\varphi\big((cW)*x+g\,b\big)=\varphi\big(W'*x+b'\big),\qquad W'=cW,\quad b'=g\,b. $$ {#eq-speed-gain}
#
# The activation $\varphi$ works in place, since nobody else holds the result of the convolution: one map less to write and to read back.

# %%
#| export
class FusedConv2d(nn.Module):
    """An `EqualizedConv2d` with its gains multiplied in; the leaky ReLU works in place.

    x (b, cin, h, w) in `dtype` -> (b, cout, h', w').
    """

    def __init__(self, conv, dtype):
        super().__init__()
        hold = lambda v: nn.Parameter(v, requires_grad=False)
        weight = conv.weight * conv.weight_gain
        self.weight = hold(weight.to(dtype, memory_format=torch.channels_last))
        self.bias = None if conv.bias is None else hold((conv.bias * conv.bias_gain).to(dtype))
        self.activate = conv.activate

    def forward(self, x, stride=1, padding=None, up=False):
        if up:
            y = enlarge_and_convolve(x, self.weight, self.bias)
        else:
            padding = self.weight.shape[-1] // 2 if padding is None else padding
            y = F.conv2d(x, self.weight, self.bias, stride, padding)
        return F.leaky_relu_(y, SLOPE) if self.activate else y


# %%
layer = EqualizedConv2d(6, 4, gain=SQRT2, activate=True).requires_grad_(False)
layer.bias.normal_()
x = torch.randn(1, 6, 8, 8)
fused = FusedConv2d(layer, torch.float32)
assert_close(fused(x), layer(x), rtol=1e-5, atol=1e-6)
assert_close(fused(x, stride=2, padding=0), layer(x, stride=2, padding=0), rtol=1e-5, atol=1e-6)
# there was something to multiply in
assert not torch.equal(fused.weight, layer.weight) and layer.weight_gain != 1

with torch.device("meta"):
    paper = GFPGAN(GFPGANConfig.paper())
scaled = sum(m.weight.numel() for name, m in paper.named_modules()
             if getattr(m, "weight_gain", 1) != 1 and "mapping" not in name)
print(f"{scaled / 1e6:.0f} million weights of the paper's net "
      "are multiplied by a constant in every pass")


# %% [markdown]
# ## Channels last
#
# A map $x_{c,i,j}$ of $C$ channels, $h\times w$, lies in memory as one row of numbers. PyTorch's usual order and the other one are
#
# $$ \text{channels first: } (c\,h+i)\,w+j,\qquad\text{channels last: } (i\,w+j)\,C+c. $$ {#eq-speed-layout}
#
# A convolution sums over all channels at a place. With the channels last these numbers are neighbours, and one vector instruction takes sixteen of them. The convolution library of PyTorch on CPUs works in such an order inside. If the maps come in another one, each convolution translates there and back.
#
# So the input and the weights are brought into this order once. All that follows has to keep it: a single operation that returns channels first makes all convolutions after it translate again. The check, further down, looks at every weight and at what every convolution of a whole pass returns.

# %% [markdown]
# ## Enlarging is bilinear, in a frame of zeros
#
# The FIR filter enlarges by inserting zeros and filtering with the taps $(1,3,3,1)/4$ along each axis (@eq-fir). At every place only two of the four taps meet a sample; the others meet zeros. Written out, along one axis,
#
# $$ y_{2n}=\tfrac14 x_{n-1}+\tfrac34 x_n,\qquad y_{2n+1}=\tfrac34 x_n+\tfrac14 x_{n+1}. $$ {#eq-speed-bilinear}
#
# These are the weights of bilinear enlargement, for which there is a fast function. The two differ at the border alone. The filter takes samples beyond it to be zero, bilinear enlargement repeats the last one. A frame of zeros one pixel wide makes them equal; what the frame turns into is cut off afterwards.

# %%
#| export
def _double(x):
    "Bilinear enlargement: x (b, c, h, w) -> (b, c, 2h, 2w)."
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class FusedResample(nn.Module):
    """`Resample` without gradients.

    Enlarging with the FIR filter is bilinear enlargement of the picture in a frame of zeros
    (@eq-speed-bilinear).
    """

    def __init__(self, resample, dtype):
        super().__init__()
        self.mode = resample.mode
        self.register_buffer("kernel", resample.kernel.to(dtype))

    def smooth(self, x, pad, gain=1.0, stride=1, bias=None):
        taps = (self.kernel * gain).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, taps, bias, stride, pad, groups=x.shape[1])

    def down(self, x):
        return F.avg_pool2d(x, 2) if self.mode == "bilinear" else self.smooth(x, 1, stride=2)

    def up(self, x):
        if self.mode == "bilinear":
            return _double(x)
        return _double(F.pad(x, (1, 1, 1, 1)))[..., 2:-2, 2:-2]


# %%
x = torch.randn(2, 3, 5, 7)
quick, plain = FusedResample(Resample("fir"), torch.float32), Resample("fir")
inserted = upfirdn(x, 4 * fir_kernel(), up=2, pad=(2, 1))       # with zeros, as the definition says
assert_close(quick.up(x), inserted, rtol=1e-5, atol=1e-6)
assert_close(quick.down(x), plain.down(x), rtol=1e-5, atol=1e-6)
x1 = x[0, 0, 0]
row = quick.up(x1.expand(1, 1, 9, -1))[0, 0, 9]         # the same in every row: one axis is left
assert_close(row[4], x1[1] / 4 + 3 * x1[2] / 4, rtol=1e-5, atol=1e-6)
assert_close(row[5], 3 * x1[2] / 4 + x1[3] / 4, rtol=1e-5, atol=1e-6)
frameless = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
differ = (frameless - quick.up(x)).abs().amax((0, 1)) > 1e-5
assert differ[0].all() and differ[-1].all() and differ[:, 0].all() and differ[:, -1].all()
assert not differ[1:-1, 1:-1].any()

# %% [markdown]
# The clean networks enlarge first and convolve then. The enlarged map is the largest of all: four times the pixels, and still all channels of the level below. It is read once. So it need never exist as a whole: a band of its rows is made, convolved and forgotten. A row of the result needs three rows of the enlarged map, and these need one row more on each side of the small one.

# %%
#| export
BAND = 2**22                                   # numbers of an enlarged map that exist at once


def enlarge_and_convolve(x, weight, bias=None, band=BAND):
    """F.conv2d(bilinear enlargement of x, weight, bias, padding=1), band by band.

    x (b, cin, h, w), weight (cout, cin, 3, 3) -> (b, cout, 2h, 2w).
    """
    b, _, h, w = x.shape
    n = min(h, -(-4 * x.numel() // band))
    if n == 1:
        return F.conv2d(_double(x), weight, bias, padding=1)
    y = torch.empty((b, len(weight), 2 * h, 2 * w), dtype=x.dtype, device=x.device,
                    memory_format=torch.channels_last)
    for first, end in pairwise(k * h // n for k in range(n + 1)):
        # rows that the enlarged ones depend on, and one to spare
        low, high = max(first - 2, 0), min(end + 2, h)
        top, bottom = max(2 * first - 1, 0), min(2 * end + 1, 2 * h)
        rows = _double(x[:, :, low:high])[:, :, top - 2 * low:bottom - 2 * low]
        if first == 0 or end == h:                              # the zeros beyond the picture
            rows = F.pad(rows, (0, 0, int(first == 0), int(end == h)))
        y[:, :, 2 * first:2 * end] = F.conv2d(rows, weight, bias, padding=(0, 1))
    return y


# %%
weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
whole = F.conv2d(large, weight, bias, padding=1)
for k in (1, 2, 3, 5):                              # rows of the small map; 5 are all of it
    banded = enlarge_and_convolve(x, weight, bias, band=4 * k * x[:, :, 0].numel())
    assert_close(banded, whole, rtol=1e-5, atol=1e-5)


# %% [markdown]
# ## The style goes into the smaller of the two
#
# @sec-stylegan2 knows two forms of the modulated convolution. The grouped form multiplies style $s$ and demodulation $d$ into the weight (@eq-demod), one weight for each face. The form used in training multiplies the maps instead (@eq-stylegan2-scaling), so that all faces share a weight. For a single face both need one convolution. They differ in what else is multiplied:
#
# $$ \underbrace{k^2\,c\,c'}_{\text{the weight}}\qquad\text{or}\qquad \underbrace{c\,h\,w}_{\text{map before}}+\underbrace{c'\,h'w'}_{\text{map after}} $$ {#eq-speed-fold}
#
# numbers, with $c$ input and $c'$ output channels. The weight is small where the picture is large. There is a second gain: with $d$ in the weight the bias can be added by the convolution itself. So each layer compares its weight with the map that it gets, and takes the smaller. For several faces at once it multiplies maps.

# %%
#| export
class FusedModulatedConv2d(nn.Module):
    """A `ModulatedConv2d` with a bias: x (b, cin, h, w), w (b, style_dim) -> (b, cout, h', w').

    For one picture, style and demodulation are multiplied into the weight where that is smaller
    than the map (@eq-speed-fold); otherwise into the maps, as in training.
    """

    def __init__(self, conv, bias, dtype):
        super().__init__()
        weight, m = conv.weight * conv.weight_gain, conv.modulation
        self.transposed = conv.up and conv.resample.mode == "fir"
        self.demodulate, self.up, self.gain = conv.demodulate, conv.up, conv.gain
        hold = lambda v: nn.Parameter(v, requires_grad=False)
        self.squares = hold(weight.square().sum((2, 3)).t().contiguous())       # (cin, cout)
        weight = weight.transpose(0, 1) if self.transposed else weight
        self.weight = hold(weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.modulation, self.shift = hold(m.weight * m.weight_gain), hold(m.bias * m.bias_gain)
        self.bias = hold(bias.to(dtype, copy=True))
        self.resample = FusedResample(conv.resample, dtype)

    def forward(self, x, w):
        s = F.linear(w, self.modulation, self.shift)                            # (b, cin), float32
        if self.demodulate:
            d = (s.square() @ self.squares + 1e-8).rsqrt() * self.gain
        else:
            d = torch.full_like(s[:, :1], self.gain)
        fold = len(x) == 1 and self.weight.numel() < x.numel()
        weight, bias = self.weight, None
        if fold:
            outer = s.t() * d if self.transposed else d.t() * s     # (cin, cout) or (cout, cin)
            weight, bias = weight * outer[:, :, None, None].to(x.dtype), self.bias
        else:
            x = x * s[:, :, None, None].to(x.dtype)
        if self.transposed:
            y = F.conv_transpose2d(x, weight, stride=2)
            y = self.resample.smooth(y, 1, 4.0, bias=bias)
        elif self.up:
            y = enlarge_and_convolve(x, weight, bias)
        else:
            y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        if fold:
            return y
        return y.mul_(d[:, :, None, None].to(x.dtype)).add_(self.bias[:, None, None])


# %%
torch.manual_seed(0)
for up, mode in ((False, "fir"), (True, "fir"), (True, "bilinear")):
    # maps smaller than the weight, larger, and several faces
    for b, side in ((1, 2), (1, 16), (3, 16)):
        conv = ModulatedConv2d(6, 4, 3, 8, up=up, resample=mode, gain=SQRT2).requires_grad_(False)
        bias, x, w = torch.randn(4), torch.randn(b, 6, side, side), torch.randn(b, 8)
        fused = FusedModulatedConv2d(conv, bias, torch.float32)
        assert_close(fused(x, w), conv(x, w) + bias[:, None, None], rtol=1e-4, atol=1e-5)
        assert (fused.weight.numel() < x[:1].numel()) == (side == 16)

print("second 3×3 layer of each block of the paper's prior, millions of numbers")
for s, c in widths(512).items():
    weight, maps = 9 * c * c, 2 * c * s * s
    where = "style into the weight" if weight < c * s * s else "style into the maps"
    print(f"{s:4} px, {c:3} channels: weight {weight / 1e6:5.2f}, maps {maps / 1e6:5.2f}  {where}")
assert [s for s, c in widths(512).items() if 9 * c * c < c * s * s] == [64, 128, 256, 512]


# %% [markdown]
# The table turns between 32 and 64 px. From there on each step up in size has maps of twice as many numbers, since the area grows by four and the channels halve.
#
# ## Noise, once
#
# The stored noise map is multiplied by its strength in every pass, and both are constants of the file. One product is kept.

# %%
#| export
class FusedStyleConv(nn.Module):
    """A `StyleConv` with its stored noise, strength and bias multiplied out.

    x (b, cin, h, w), w (b, style_dim) -> (b, cout, h', w').
    """

    def __init__(self, layer, noise, dtype):
        super().__init__()
        self.conv = FusedModulatedConv2d(layer.conv, layer.bias * layer.bias_gain, dtype)
        self.register_buffer("noise", (layer.noise_strength * layer.bias_gain * noise).to(dtype))

    def forward(self, x, w):
        return F.leaky_relu_(self.conv(x, w).add_(self.noise), SLOPE)


# %% [markdown]
# ## Work in place
#
# Training keeps every map, because the backward pass wants it. Restoring needs a map until the next one is there. The network below therefore writes over maps that nobody else will read: sums of residual blocks go into one summand, and CS-SFT (@eq-cssft) changes the second half of the channels where it lies instead of copying both halves into a new map.
#
# Which maps belong to somebody else must be known exactly. The features on the way down are read again on the way up, so `h + skip` makes a new map. The input belongs to the caller. The learned constant is expanded, not copied, and the first convolution multiplies it by the style into a new map before anything is written.

# %%
#| export
class FusedGFPGAN(nn.Module):
    """A `GFPGAN` for restoring only, with the stored noise, without the pyramid.

    x (b, 3, S, S) in [-1, 1] -> (image (b, 3, S, S) float32, []). Build it with `fuse`. It holds
    copies of the weights, in `dtype`, laid out channels last; it cannot be trained.
    """

    def __init__(self, net, dtype=torch.float32, consume=False):
        super().__init__()
        c, unet, self.dtype = net.config, net.unet, dtype

        def made(kind, module, *words):
            fused = kind(module, *words, dtype)
            for p in module.parameters() if consume else ():     # never two whole nets in memory
                p.data = p.data.new_empty(0)
            return fused

        self.config, conv = c, lambda m: made(FusedConv2d, m)
        layers = ("conv1", "conv2", "skip")
        block = lambda b: nn.ModuleDict({k: conv(getattr(b, k)) for k in layers})
        blocks = lambda parts: nn.ModuleList(map(block, parts))
        self.first, self.last = conv(unet.first), conv(unet.last)
        self.down, self.up = blocks(unet.down), blocks(unet.up)
        self.resample = FusedResample(unet.down[0].resample, dtype)
        if not c.use_prior or c.prior_share < 1:
            self.rgb = conv(unet.to_rgb[-1])
        if not c.use_prior:
            return
        hold = lambda v: nn.Parameter(v.to(dtype), requires_grad=False)
        self.w_shift = hold(net.to_w.bias * net.to_w.bias_gain)
        # at 512 px nearly half of all weights
        self.to_w = made(lambda m, dtype: hold(m.weight * m.weight_gain), net.to_w)
        heads, prior = net.heads if c.sft != "none" else (), net.decoder.synthesis
        self.heads = nn.ModuleList(nn.ModuleList(map(conv, [*h.scale, *h.shift])) for h in heads)
        self.convs = nn.ModuleList(made(FusedStyleConv, m, getattr(prior, f"noise{i}"))
                                   for i, m in enumerate(prior.convs))
        rgb = lambda m, dtype: FusedModulatedConv2d(m.conv, m.bias, dtype)
        self.to_rgbs = nn.ModuleList(made(rgb, m) for m in prior.to_rgbs)
        constant = prior.constant.to(dtype, memory_format=torch.channels_last, copy=True)
        self.constant = nn.Parameter(constant, requires_grad=False)
        self.n_codes = prior.n_codes


# %% [markdown]
# A pass goes through the U-Net and then through the prior. In inference mode PyTorch does no bookkeeping for a backward pass.

# %%
#| export
@patch
@torch.inference_mode()
def forward(self: FusedGFPGAN, x):
    c = self.config
    if x.ndim != 4 or x.shape[1:] != (3, c.size, c.size):
        raise ValueError(f"input is {tuple(x.shape)}, needs (b, 3, {c.size}, {c.size})")
    latent, spatial = self.clean(x.to(self.dtype, memory_format=torch.channels_last))
    if not c.use_prior:
        return self.rgb(spatial[-1]).float(), []
    w = F.linear(latent.contiguous().flatten(1), self.to_w, self.w_shift).float()
    w = w.unflatten(1, (-1, c.style_dim)).expand(-1, self.n_codes, -1)
    own = self.rgb(spatial[-1]).float() if c.prior_share < 1 else None
    image = self.draw(w, spatial).float()
    return (image if own is None else torch.lerp(own, image, c.prior_share)), []


# %% [markdown]
# The two halves. Look for what is written over: `add_` and `out=` work in place, `+` does not.

# %%
#| export
@patch
def clean(self: FusedGFPGAN, x):
    "The U-Net (@sec-unet): x -> F_latent, F_spatial [8..S]."
    h, skips = self.first(x), []
    for b in self.down:
        inner = b["conv1"](h)
        if self.resample.mode == "fir":
            inner = b["conv2"](self.resample.smooth(inner, 2), stride=2, padding=0)
        else:
            inner = b["conv2"](self.resample.down(inner))
        h = inner.add_(b["skip"](self.resample.down(h)))
        skips.append(h)
    latent, spatial = self.last(h), []
    h = latent
    for b, skip in zip(self.up, reversed(skips)):
        h = h + skip
        h = b["conv2"](b["conv1"](h), up=True).add_(_double(b["skip"](h)))
        spatial.append(h)
    return latent, spatial


@patch
def draw(self: FusedGFPGAN, w, spatial):
    """The prior, steered by F_spatial (@sec-csft, @sec-stylegan2).

    w (b, n_codes, style_dim) -> picture. Each level of `spatial` is dropped when it has been used.
    """
    h = self.convs[0](self.constant.expand(len(w), -1, -1, -1), w[:, 0])
    image = self.to_rgbs[0](h, w[:, 1])
    for k, to_rgb in enumerate(self.to_rgbs[1:]):
        i, f = 2 * k + 1, spatial.pop(0)
        h = self.convs[i](h, w[:, i])
        if self.heads:
            scale1, scale2, shift1, shift2 = self.heads[k]
            # a view: what follows changes h
            steered = h[:, h.shape[1] // 2:] if self.config.sft == "half" else h
            torch.addcmul(shift2(shift1(f)), steered, scale2(scale1(f)), out=steered)
        h = self.convs[i + 1](h, w[:, i + 1])
        image = to_rgb(h, w[:, i + 2]).add_(self.resample.up(image))
    return image


# %%
#| export
def fuse(net, dtype=torch.float32, consume=False):
    """The same restorer, faster: `net` -> FusedGFPGAN with its own copy of the weights.

    `net`: a GFPGAN, or what `fuse` returned. `consume`: the weights of `net` are freed as they are
    copied, and it can no longer be used; for `fuse(load_weights(…), consume=True)`.
    float32 differs from `net` by rounding; bfloat16 and float16 halve the memory and lose a little
    (@sec-speed).
    """
    if isinstance(net, FusedGFPGAN):
        return net
    with torch.no_grad():
        fused = FusedGFPGAN(net, dtype, consume)
    if consume:
        # glibc keeps what was freed until it is asked
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
    return fused


# %% [markdown]
# Now everything at once, for every variant of @sec-gfpgan, one face and two. The third check is the one on the order of memory that was announced, the last on what is written over: the input, the net it was made from, and its own weights stay as they are.

# %%
variants = [dict(sft=sft, resample=mode, w=w) for sft in ("none", "half", "full")
            for mode in ("fir", "bilinear") for w in ("one", "per_layer")]
for changes in [*variants, dict(use_prior=False), dict(equalized=False)]:
    net, x = restless_net(**changes)
    for faces in (x, x[:1]):
        assert_close(fuse(net)(faces)[0], net(faces)[0], rtol=1e-4, atol=2e-4)
assert (net(x, noise="zero")[0] - net(x)[0]).abs().max() > 0.01         # the noise is not nothing

net, x = restless_net()
fused, orders = fuse(net), []
in_order = lambda v: v.is_contiguous(memory_format=torch.channels_last)
hooks = [m.register_forward_hook(lambda m, given, y: orders.append(in_order(y)))
         for m in fused.modules() if isinstance(m, (FusedConv2d, FusedStyleConv))]
before, state = x.clone(), {k: v.clone() for k, v in fused.state_dict().items()}
first = fused(x[:1])[0]
assert len(orders) > 30 and all(orders)
assert all(in_order(m.weight) for m in fused.modules()
           if isinstance(m, (FusedConv2d, FusedModulatedConv2d)))
assert torch.equal(fused(x[:1])[0], first) and torch.equal(x, before)
assert all(torch.equal(v, state[k]) for k, v in fused.state_dict().items())
assert fuse(fused) is fused
test_fail(lambda: fused(x[..., :16]), exc=ValueError, contains="needs (b, 3, 32, 32)")

# %%
with torch.no_grad(), Tally() as plain_pass:
    net(x[:1])
with torch.no_grad(), Tally() as fused_pass:           # in inference mode nothing could watch it
    type(fused).forward.__wrapped__(fused, x[:1])
total = lambda tally: sum(tally.cost.values(), start=type(tally.cost[""])())
plain, quick = total(plain_pass), total(fused_pass)
for name, c in (("as written", plain), ("fused", quick)):
    print(f"{name:10} {c.flops / 1e6:.1f} MFLOP in convolutions and matrix products, "
          f"{c.other_bytes / 1e6:.1f} MB moved by everything else")
assert abs(quick.flops / plain.flops - 1) < 0.02 and quick.other_bytes < 0.6 * plain.other_bytes

# %% [markdown]
# The last cell counts, with the tally of @sec-full-scale, what was won: the arithmetic is the same, and the traffic beside it is less than six tenths.
#
# ## Half the bits
#
# A number in bfloat16 has the exponent of float32 and 8 significant bits. Rounding to it moves a number $v$ by at most
#
# $$ |\tilde v-v|\le 2^{-8}\,|v|, $$ {#eq-speed-bf16}
#
# 0.4 %. Maps and weights are half as large, and processors with the instructions for it multiply twice as many at once. Sums inside a convolution are still kept in float32. Two things stay in float32 throughout: the style with its demodulation, which is a sum of squares, and the codes. Both are tiny. float16 has more bits and fewer exponents; features of StyleGAN2 can leave its range, so bfloat16 is the safer half.

# %%
v = torch.logspace(-30, 30, 100_001, dtype=torch.float64).float()
most = ((v.bfloat16().float() - v) / v).abs().max()
# the bound, and that it is nearly reached
assert round(100 * 2**-8, 1) == 0.4 and 2**-9 < most <= 2**-8

net, x = restless_net()
exact, image = net(x)[0], fuse(net, torch.bfloat16)(x)[0]
psnr = 20 * torch.log10((exact.max() - exact.min()) / (image - exact).square().mean().sqrt()).item()
assert image.dtype == torch.float32 and 40 < psnr < 70

# %% [markdown]
# Whether a picture suffers is a question for trained weights. The measured networks below have random ones, and their worst case is printed there. Here is the bundled restorer, on a face that it has to work for.

# %%
#| label: fig-speed-bf16
#| fig-cap: "The bundled restorer on a damaged face: float32, bfloat16, and the difference of the two, fifty times enlarged around grey."
#| fig-alt: "A damaged face, two restored faces that look the same, and a grey picture with faint structure."
restorer = load_weights()
size = restorer.config.size
damage = DegradationParams(sigma_x=0.6, sigma_y=0.6, r=1.5, delta=6.0, q=70, noise_seed=1)
damaged = degrade(example_faces(1, size)[0], damage)
x = to_tensor(damaged)
x = x if x.ndim == 4 else x[None]
full, half = fuse(restorer)(x)[0], fuse(restorer, torch.bfloat16)(x)[0]
show([damaged, full[0], half[0], 50 * (half - full)[0]],
     ["damaged", "float32", "bfloat16", "difference × 50"], height=2);

# %%
levels = np.abs(to_images(full).astype(int) - to_images(half).astype(int))
with torch.no_grad():
    same = np.abs(to_images(full).astype(int) - to_images(restorer(x)[0]).astype(int))
assert same.max() <= 1 and levels.max() <= 16 and levels.mean() < 2
print(f"of 255 levels, bfloat16 moves the mean pixel by less than {np.ceil(levels.mean()):.0f}; "
      "fusing alone moves none by more than 1")


# %% [markdown]
# The two faces of @fig-speed-bf16 cannot be told apart. Fifty times enlarged, their difference is noise, strongest where the picture has its hardest edges.
#
# ## A file for other programs
#
# A web service, a plug-in or a telephone has no PyTorch. ONNX is a file format that lists a network's operations with their weights; onnxruntime is one of the programs that run it. Here the *plain* network is written. An ONNX file says what is computed, not where and in which order in memory, so tricks such as working in place mean nothing there. Constants the exporter multiplies in by itself.
#
# Three things are easily lost. The batch must stay free: the exporter follows one pass, and whatever was a Python number then is a constant in the file. The noise must be the stored one, or the file would draw its own. And the result must appear under its name when it is whole.

# %%
#| export
class _Picture(nn.Module):
    "A GFPGAN that returns the picture alone, as a file for other programs should."

    def __init__(self, net):
        super().__init__()
        self.net, self.training = net, False

    def forward(self, face):
        return self.net(face)[0]


# %%
#| export
def export_onnx(net, path, **metadata):
    """Write a GFPGAN to an ONNX file, atomically, with the stored noise.

    In the file: "face" (b, 3, S, S) in [-1, 1] -> "restored" (b, 3, S, S), any b. The config and
    further keyword arguments go into its metadata as strings. Raises WeightsError where a package
    is missing, OSError where the file cannot be written.
    """
    if not isinstance(net, GFPGAN):
        raise ValueError(f"needs a GFPGAN, got {type(net).__name__}")
    size, path = net.config.size, Path(path)
    # two: of one face the exporter would make a constant
    face = torch.zeros(2, 3, size, size).to(next(net.parameters()))
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                _Picture(net), (face,), input_names=["face"], output_names=["restored"],
                dynamic_shapes={"face": {0: torch.export.Dim("b")}}, dynamo=True, verbose=False)
    except ImportError as e:
        raise WeightsError(f"{path}: ONNX needs more packages ({e}): "
                           "pip install gfpgan_edu[onnx]") from e
    about = {"network": "GFPGAN", "size": str(size), "config": json.dumps(net.config.to_dict())}
    program.model.metadata_props.update({k: str(v) for k, v in metadata.items()} | about)
    part = path.with_name(path.name + ".part")
    try:
        program.save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# %%
net, x = restless_net()
folder = tempfile.TemporaryDirectory()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")                              # of the exporter's own parts
    export_onnx(net, f"{folder.name}/tiny.onnx", weights="tiny, random")
session = onnxruntime.InferenceSession(f"{folder.name}/tiny.onnx",
                                       providers=["CPUExecutionProvider"])
for faces in (x[:1], x, x[[0, 1, 0]]):                           # any number of faces
    (restored,) = session.run(["restored"], {"face": faces.numpy()})
    assert_close(torch.from_numpy(restored), net(faces)[0], rtol=1e-4, atol=1e-4)
about = session.get_modelmeta().custom_metadata_map
assert about["weights"] == "tiny, random"
assert GFPGANConfig.from_dict(json.loads(about["config"])) == net.config
test_fail(lambda: export_onnx(fuse(net), "none.onnx"), exc=ValueError, contains="needs a GFPGAN")
print([(v.name, v.shape) for v in (*session.get_inputs(), *session.get_outputs())])
folder.cleanup()

# %% [markdown]
# On the command line this is `gfpgan-edu export v1.4 gfpgan.onnx` (@sec-cli). The file wants aligned faces; finding and pasting them back (@sec-photos) stays with the program that reads it.
#
# ## Put together: what it brings
#
# @fig-speed-ratio sets everything beside the official network of each family, in the same process, in turns.

# %%
#| label: fig-speed-ratio
#| fig-cap: "How many times faster than the official network: one picture of 512 px, two threads of a CPU. The line is the official network itself."
#| fig-alt: "Three groups of five bars. As written ours is faster only for GFPGANv1; fused, every family is faster, in bfloat16 the most."
WAYS = {"official, autocast bf16": "#999999", "plain": "#56B4E9", "fused fp32": "#0072B2",
        "fused bf16": "#D55E00", "onnxruntime": "#009E73"}
fig, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
for k, (way, colour) in enumerate(WAYS.items()):
    at, height = [i + (k - 2) * 0.17 for i in range(3)], [r["ratio"][way] for r in rows.values()]
    label = way.replace("plain", "ours as written")
    bars = ax.bar(at, height, 0.16, color=colour, label=label)
    ax.bar_label(bars, fmt="%.1f", fontsize=8)
ax.axhline(1, color="black", lw=0.8)
ax.set(xticks=range(3), xticklabels=rows, ylabel="times the official speed")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(ncols=2, fontsize=8, frameon=False);

# %%
print(f"{'':13}{'official':>9}{'fused':>8}{'times':>7}{'bf16':>8}{'times':>7}{'ONNX':>8}"
      f"{'times':>7}   convolutions' share; PSNR")
for name, r in rows.items():
    s, t, shares = r["seconds"], r["ratio"], r["time_by_kind"]
    print(f"{name:13}{s['official']:7.2f} s"
          f"{s['fused fp32']:6.2f} s{t['fused fp32']:7.1f}"
          f"{s['fused bf16']:6.2f} s{t['fused bf16']:7.1f}"
          f"{s['onnxruntime']:6.2f} s{t['onnxruntime']:7.1f}   "
          f"{shares['fused fp32']['convolutions']:.0%}, "
          f"bf16 {shares['fused bf16']['convolutions']:.0%}; {r['psnr']['fused bf16']:.0f} dB")
    assert t["fused fp32"] > 1.5 and t["fused bf16"] > t["onnxruntime"]
    assert abs(t["onnxruntime"] / t["fused fp32"] - 1) < 0.25
    assert max(r["largest_difference"].values()) < 1e-4 * r["range"]
    assert r["psnr"]["fused bf16"] > 40
t = rows["GFPGANv1"]["ratio"]
assert t["fused fp32"] > 4 and t["fused bf16"] > 2 * t["official, autocast bf16"]

# %% [markdown]
# Most of what is left is convolution, so little more can be had without changing the network. onnxruntime, with convolutions of its own, is about level with the fused float32, and behind the fused bfloat16. Autocast on the official network helps far less than the fused bfloat16, because it converts weights and maps at every layer. As written, ours is no faster than the official clean networks: readable code and fast code are two things, and this chapter is the bridge.
#
# Could a compiler do all this? `torch.compile` reads the network as written, joins neighbouring operations and writes code for them, which takes its time at the first picture.

# %%
c, fused_seconds = bench["compile"], rows["GFPGANv1"]["seconds"]["fused fp32"]
print(f"torch.compile, GFPGANv1: first picture after {c['first_picture']:.0f} s, "
      f"then {c['compiled']:.2f} s; as written {c['plain']:.2f} s, fused {fused_seconds:.2f} s")
pays = c["first_picture"] / (c["plain"] - c["compiled"])
print(f"it pays after {pays:.0f} pictures, against the network as written")
assert c["speedup"] > 1.2 and c["compiled"] > fused_seconds

# %% [markdown]
# It finds much of it, but not the folding of styles into weights (@eq-speed-fold) nor the bilinear form of the filter (@eq-speed-bilinear), which need to know what the network means. Fusing by hand is quicker and starts at once. For training, where a step is repeated for days, compiling is worth its minute (@sec-full-scale).
#
# Memory matters as well. The next cell gives the peak of a process that does nothing but load the weights and restore one face.

# %%
for name, r in rows.items():
    whole, after = r["peak_bytes"], r["peak_bytes_after_loading"]
    peaks = ", ".join(f"{k} {whole[k] / 1e9:.2f} ({after[k] / 1e9:.2f})"
                      for k in whole if k != "import only")
    print(f"{name:12} weights {r['weights_bytes'] / 1e9:.2f} GB; "
          f"peak in GB (after loading): {peaks}")
    assert max(whole["fused bf16"], whole["fused fp32"]) < whole["official"]
    assert max(whole["fused bf16"], whole["fused fp32"]) <= 1.3e9
print(f"import torch alone: {rows['GFPGANv1']['peak_bytes']['import only'] / 1e9:.2f} GB")

# %% [markdown]
# Before any weights are loaded, PyTorch itself takes its share, since its libraries are large; onnxruntime comes without them. Five habits keep ours low. `load` reads one tensor at a time and closes the file in between, as what has been read of an open file counts too.
# It compares names and shapes with an outline of the network and not with one on torch's meta device, whose first use imports a whole compiler. `fuse(…, consume=True)` frees each layer as it is copied. It then asks the C library to hand back what was freed, which glibc would keep for later. And the largest map never exists as a whole (`enlarge_and_convolve`). What is left above libraries and weights are the maps of one level.
#
# ## Before anything happens
#
# Whoever asks for help should not wait for a deep-learning library. `gfpgan_edu` imports its modules when they are first used, and the command line reads its options before it imports torch. `tests/bench/startup.py` starts a new process for each case.

# %%
startup = json.loads(Path("../figures/bench/startup.json").read_text())
for name, seconds in startup["seconds"].items():
    limit = startup["budget"].get(name)
    print(f"{name:46}{seconds:6.2f} s" + (f", at most {limit} s" if limit else ""))
    assert limit is None or seconds < limit
assert startup["restore_over_torch"] < 0.3

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | constants of equalised layers | – | multiplied in every pass; the clean classes store products | multiplied once, for every family | same function |
# | FIR enlarging on a CPU | – | inserts zeros and filters | bilinear in a frame of zeros for pictures, one filter after the transposed convolution for features | the zeros need no product |
# | modulated convolution | – | grouped, a weight for each face, always | the smaller of weight and maps is multiplied | @eq-speed-fold |
# | order in memory | – | channels first | channels last through all | no translations |
# | half precision | – | none on a CPU | bfloat16, style in float32 | half the traffic |
# | pyramid | for the loss | computed unless `return_rgb=False` | not computed | nobody looks |
# | other programs | – | – | ONNX with a free batch, stored noise | – |
#
# : Deviations in fast restoration. None changes a picture beyond rounding, but for the choice of bfloat16. {#tbl-speed-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **bfloat16 is not fast everywhere.** The processor measured here has instructions for it (`avx512_bf16` among its flags; the json lists them). Without such instructions each product has to be computed by way of float32. Time both on your machine, and take float32 if in doubt.
# - **One channels-first operation undoes the rest.** Code that calls `.contiguous()` or `.view` between layers brings back the usual order, silently.
# - **`fuse` copies.** Two networks are in memory for a moment. Where that is too much, `fuse(load_weights("v1.4"), consume=True)` frees the first layer by layer, as `restore` and the command line do.
# - **A fused net cannot be trained**, saved with `save` or exported. Keep the weights file.
# - **More threads than cores make it slower.** `OMP_NUM_THREADS` sets how many are taken.
# :::
#
# ## Summary
#
# - Count first: the time above $F/R$ is what code can win.
# - Constants are multiplied once, maps keep one order, and the smaller of weight and map is multiplied.
# - Enlarging by FIR is bilinear in a frame of zeros: the same numbers, without the products by zero.
# - bfloat16 halves the traffic again; what it costs is measured in decibels, not believed.
# - Every step is checked against the readable network, which stays the definition.
#
# ## Exercises
#
# 1. **Compute.** For a clean network with `channel_multiplier=2`, from which size on is the style multiplied into the weight? Change `widths(512)` in the table and compare.
# 2. **Modify.** Let `FusedModulatedConv2d` fold for batches too, with `groups=b`. From which batch on is it slower than multiplying the maps?
# 3. **Break.** Replace `h = h + skip` in `clean` by `h += skip`. Which check turns red? Whose map was written over?
#
# Worked solutions: [nbs/solutions/20_speed.ipynb](solutions/20_speed.ipynb).
#
# ## References
#
# GFP-GAN is by @wang2021gfpgan, the modulated convolution and its grouped form by @karras2020stylegan2.

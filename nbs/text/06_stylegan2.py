# %% [markdown]
# # StyleGAN2, the prior {#sec-stylegan2}
#
# > A generator of faces whose layers can be steered from outside.
#
# **You will build** the StyleGAN2 generator [@karras2020stylegan2] in plain PyTorch: modulated convolutions, noise inputs, RGB skips, the mapping network, truncation, style mixing, and the hook through which GFP-GAN steers it. Then you look at what a trained one draws.
# **Needs** the equalised layers and the FIR resampling of @sec-layers.
# **Runs in** about 10 s on a laptop CPU.

# %%
#| default_exp stylegan2

# %%
import io

import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_fail
from IPython.display import Image as Png
from IPython.display import display
from PIL import Image
from torch.testing import assert_close

from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.layers import fir_kernel, upfirdn
from gfpgan_edu.weights import load_prior

# %%
#| export
import math

import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.layers import SLOPE, SQRT2, EqualizedLinear, Resample

# %% [markdown]
# The U-Net of @sec-unet removes damage and leaves the face soft. Detail is the prior's job (@fig-stylegan2-map). It receives codes from one side and scales and shifts from the other, and its output is the restored face.

# %%
#| label: fig-stylegan2-map
#| fig-cap: "This chapter builds the box on the right: a generator that knows what faces look like."
#| fig-alt: "The method as boxes and arrows; the StyleGAN2 box is coloured."
draw_map("stylegan2");


# %% [markdown]
# ## Why a restorer wants a generator
#
# Many sharp faces shrink to the same thumbnail, and nothing in the thumbnail says which of them is the right one.
# A network trained with a squared error alone gives one answer to all of them, and the best such answer is their mean $\bar y$:
#
# $$\frac1n\sum_{i=1}^n\lVert c-y_i\rVert^2=\lVert c-\bar y\rVert^2+\frac1n\sum_{i=1}^n\lVert \bar y-y_i\rVert^2$$ {#eq-stylegan2-mean}
#
# Here $y_1,\dots,y_n$ are the faces that fit the input equally well and $c$ is any answer. The second term does not depend on $c$, so $c=\bar y$ wins. A mean of sharp pictures is not sharp.

# %%
def lean(fig):
    "Show a figure in 96 colours: a smaller book."
    drawn, small = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, bbox_inches="tight", pad_inches=0.02)
    plt.close(fig)
    picture = Image.open(drawn).convert("RGB").quantize(96, Image.Quantize.FASTOCTREE)
    picture.save(small, "PNG", optimize=True)
    display(Png(small.getvalue()))


def sheet(pictures, cols, rows=(), tops=()):
    """Show (n, 3, h, w), values in -1 … 1, on one sheet, each pixel as large as 640 in a row allow,
    with names for rows and columns."""
    pictures = F.interpolate(pictures, scale_factor=max(1, 640 // (cols * pictures.shape[3])))
    _, _, h, w = pictures.shape
    # (R, C, 3, h, w) -> (R, h, C, w, 3) -> (R·h, C·w, 3)
    tiles = pictures.unflatten(0, (-1, cols)).permute(0, 3, 1, 4, 2)
    tiles = tiles.flatten(2, 3).flatten(0, 1)
    fig = plt.figure(figsize=(cols * w / 100, len(tiles) / 100), dpi=100)
    ax = fig.add_axes([0, 0, 1, 1])
    ax.imshow((tiles / 2 + 0.5).clamp(0, 1), interpolation="nearest")
    ax.set_xticks([w * (i + 0.5) for i in range(len(tops))], tops)
    ax.set_yticks([h * (i + 0.5) for i in range(len(rows))], rows)
    ax.xaxis.tick_top(), ax.tick_params(length=0), ax.spines[:].set_visible(False)
    lean(fig)


# quickest for small nets, and the same sums on every machine
torch.set_num_threads(1)

candidates = to_tensor(example_faces(16, 64))
mean = candidates.mean(0)
# any other answer pays its distance to the mean
for c in (candidates[3], torch.zeros(3, 64, 64)):
    assert_close((c - candidates).square().mean(),
                 (c - mean).square().mean() + (mean - candidates).square().mean(),
                 rtol=1e-5, atol=0)

edges = lambda x: x.diff(dim=-1).abs().mean().item()
print(f"mean edge strength: one candidate {edges(candidates[0]):.2f}, "
      f"the average {edges(mean):.2f}")
assert edges(mean) < 0.8 * sum(edges(c) for c in candidates) / len(candidates)

# %%
#| label: fig-stylegan2-mean
#| fig-cap: "Four of sixteen candidate answers, and the answer with the smallest mean squared error to all of them."
#| fig-alt: "Four sharp pictures of faces and the blurred average of sixteen."
sheet(torch.stack([*candidates[:4], mean]), 5, tops=["1", "2", "3", "4", "best"])


# %% [markdown]
# In @fig-stylegan2-mean the candidates are faces that a prior made up. Each has its own crease, shadow and hairline; their mean keeps only what all of them share.
#
# A *generative prior* replaces the mean by a choice. A generator $G$ turns random numbers $z$ into pictures and is trained against a discriminator [@goodfellow2014gan] until they look like photographs of faces. After that its weights are a supply of plausible detail.
#
# Earlier methods searched for the $z$ whose picture, once degraded, matches the input [@menon2020pulse; @gu2020mganprior]. That takes hundreds of steps per photo, and a few hundred numbers cannot hold a particular person.
# GFP-GAN [@wang2021gfpgan] computes the codes in one step and also changes the features *inside* the generator, position by position. This chapter builds that generator and leaves the door open where @sec-csft enters.
#
# Training the prior is the matter of @sec-train-prior. The parts are shown with **untrained, random weights**, so what you see is what the architecture does by itself. From @fig-stylegan2-samples on, the weights are those of the bundled prior.

# %% [markdown]
# ## Width at each resolution
#
# The generator starts from a 4×4 map and doubles its side until it reaches the picture's size. A wide network costs memory most at the fine end, where the maps are large. So the widths are constant up to 32 px and then halve with each doubling.
# Two factors scale them: the *channel multiplier* acts above 32 px only, `narrow` acts everywhere.

# %%
#| export
def widths(size, channel_multiplier=1.0, narrow=1.0):
    """Channels of the prior at each resolution {4: …, 8: …, …, size: …}: 512 up to 32 px, then
    halving, times the two factors.

    Raises ValueError unless `size` is a power of two from 8 to 1024, the factors are sensible, and
    every width is at least 2 and even (Eq. 4 splits it).
    """
    if size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"size is {size}, needs a power of two from 8 to 1024")
    if not all(0 < factor < 1000 for factor in (channel_multiplier, narrow)):
        raise ValueError(f"channel_multiplier is {channel_multiplier}, narrow is {narrow}; "
                         "need positive numbers below 1000")
    out = {}
    for s in (2**i for i in range(2, int(math.log2(size)) + 1)):
        out[s] = int(512 * narrow) if s <= 32 else int(16384 // s * channel_multiplier * narrow)
        if out[s] < 2 or out[s] % 2:
            raise ValueError(f"width at {s} px is {out[s]}, needs an even number >= 2: raise "
                             f"narrow ({narrow}) or channel_multiplier ({channel_multiplier})")
    return out


# %%
# the paper's prior
assert widths(512) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32}
# the released clean models
assert widths(512, 2) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
assert widths(64, narrow=1 / 16) == {4: 32, 8: 32, 16: 32, 32: 32, 64: 16}
test_fail(lambda: widths(96), exc=ValueError, contains="power of two")
test_fail(lambda: widths(1024, narrow=1 / 16), exc=ValueError, contains="width at 1024 px is 1")


# %% [markdown]
# The widths depend on the resolution, not on the final size: a 512 px prior and a 1024 px prior have the same layers up to 512 px.

# %% [markdown]
# ## A style scales the input channels
#
# One generator has to draw many faces with the same weights. What changes from face to face is a *style* $s$: one number per input channel of a convolution. It says how much of that channel enters.
# The style is a learned affine function of a code $w$, here `EqualizedLinear` with its bias starting at 1. Modulation multiplies the kernel by it:
#
# $$W'_{jik}=s_i\,W_{jik},\qquad s=A\,w+b$$ {#eq-modulate}
#
# $W_{jik}$ is the weight from input channel $i$ to output channel $j$ at kernel position $k$ (nine positions for a 3×3 kernel). $A$ and $b$ belong to the layer. Each face of a batch has its own $s$, so each has its own kernel $W'$.
# The readable version builds all these kernels. It also contains the second half of the story, the demodulation of the next section.

# %%
def modulated_weight(weight, s, demodulate=True):
    """weight (cout, cin, k, k), s (b, cin) -> one kernel per sample, (b, cout, cin, k, k):
    @eq-modulate, then @eq-demod."""
    weight = weight[None] * s[:, None, :, None, None]
    if demodulate:
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    return weight


g = torch.Generator().manual_seed(0)
weight, s = torch.randn(3, 2, 3, 3, generator=g), torch.tensor([[1.0, 0.0], [2.0, -1.0]])
kernels = modulated_weight(weight, s, demodulate=False)
# by hand: sample 1, input channel 1
assert_close(kernels[1, 2, 1], -weight[2, 1], rtol=0, atol=0)
x = torch.randn(1, 2, 8, 8, generator=g)
# s = (1, 0): channel 1 is out
assert_close(F.conv2d(x, kernels[0]), F.conv2d(x[:, :1], weight[:, :1]), rtol=1e-5, atol=1e-6)

# %%
#| label: fig-stylegan2-style
#| fig-cap: "A 1×1 modulated convolution with two input channels and one output: three styles weight the channels differently."
#| fig-alt: "Two input patterns, bars and rings, then outputs showing mostly bars, mostly rings, and both."
axis = torch.linspace(-1, 1, 48)
bars = torch.sin(12 * axis).expand(48, 48)
rings = torch.sin(14 * (axis[:, None] ** 2 + axis**2).sqrt())
styles = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.7, 0.7]])
drawn = [F.conv2d(torch.stack([bars, rings])[None], k)[0, 0]
         for k in modulated_weight(torch.ones(1, 2, 1, 1), styles)]
titles = ["channel 0", "channel 1"] + [f"s = ({a:.1f}, {b:.1f})" for a, b in styles]
lean(show([bars, rings, *drawn], titles, vmin=-1.5, vmax=1.5, height=1.5))

# %% [markdown]
# In @fig-stylegan2-style nothing but $s$ changes. A style selects among the patterns that the channels carry. It cannot say *where*: the same two numbers hold at every position. That limit is the reason for @sec-csft.

# %% [markdown]
# ## Demodulation keeps the variance
#
# A style of all twos would double the output, the next layer would double it again, and a dozen layers later the feature would have exploded. So the effect of $s$ on the *size* of the output is divided out, and its effect on the *mixture* stays.
#
# Write one output value as $y_j=\sum_{i,k}s_iW_{jik}\,x_{ik}$. If the inputs $x_{ik}$ are uncorrelated, with mean 0 and variance 1, then the variances of the terms add up:
# $\operatorname{Var}(y_j)=\sum_{i,k}(s_iW_{jik})^2$. Multiplying by the inverse root of that sum brings the variance back to 1:
#
# $$d_j=\Big(\sum_{i,k}(s_iW_{jik})^2+\varepsilon\Big)^{-1/2},\qquad W''_{jik}=d_j\,s_i\,W_{jik}$$ {#eq-demod}
#
# $d_j$ is one number per face and output channel; $\varepsilon=10^{-8}$ guards against a division by zero. The layer normalises by what the data *should* look like, so it needs no batch statistics.
# The check measures the output's standard deviation over styles of very different strength.

# %%
g = torch.Generator().manual_seed(1)
cin, cout = 48, 32
weight = torch.randn(cout, cin, 3, 3, generator=g) / math.sqrt(cin * 9)
style = 1 + 0.5 * torch.randn(1, cin, generator=g)
white = torch.randn(1, cin, 64, 64, generator=g)
smooth = upfirdn(white, fir_kernel(), pad=(1, 2))
# unit variance again, but neighbours agree
smooth = smooth / smooth.std()
scales = (0.25, 0.5, 1.0, 2.0, 4.0)


def stds(x, demodulate):
    "Standard deviation of each output channel for each strength of the style, (5, cout)."
    kernels = [modulated_weight(weight, style * c, demodulate)[0] for c in scales]
    return np.array([F.conv2d(x, k).std((0, 2, 3)).numpy() for k in kernels])


std = {"not demodulated": stds(white, False), "demodulated": stds(white, True),
       "demodulated, smooth input": stds(smooth, True)}
for name, v in std.items():
    print(f"{name:26} channels at the weakest style {v[0].min():.2f} to {v[0].max():.2f}, "
          f"at the strongest {v[-1].min():.2f} to {v[-1].max():.2f}")
# the promise of the derivation
np.testing.assert_allclose(std["demodulated"], 1, atol=0.05)
# proportional to the style
np.testing.assert_allclose(std["not demodulated"], np.outer(scales, std["not demodulated"][2]),
                           rtol=1e-4)
assert_close(modulated_weight(weight, style).square().sum((2, 3, 4)), torch.ones(1, cout),
             rtol=1e-5, atol=0)
# where the assumption fails
assert std["demodulated, smooth input"].std() > 5 * std["demodulated"].std()

# %%
#| label: fig-stylegan2-demod
#| fig-cap: "Standard deviation of a modulated convolution's output channels (mean and range) against the strength of its style."
#| fig-alt: "One rising band without demodulation; with it a thin flat band at 1 and a wider flat band around it."
fig, ax = plt.subplots(figsize=(5.6, 2.5), layout="constrained")
curves = list(zip(std.items(), ("#D55E00", "#0072B2", "#E69F00"), "sov"))
for (name, v), colour, mark in reversed(curves):
    ax.loglog(scales, v.mean(1), mark + "-", color=colour, label=name)
    ax.fill_between(scales, v.min(1), v.max(1), color=colour, alpha=0.3, lw=0)
ax.set_xticks(scales, scales)
ax.set_yticks([0.25, 0.5, 1, 2, 4], [0.25, 0.5, 1, 2, 4])
ax.minorticks_off()
ax.set(xlabel="factor on the style s", ylabel="output std"), ax.legend()
lean(fig)


# %% [markdown]
# The flat blue line of @fig-stylegan2-demod is @eq-demod at work. The yellow band shows what its assumption is worth: in a smooth feature neighbours are correlated, and single channels land about a tenth off 1. Still nothing depends on the style's strength, and that is what matters.

# %% [markdown]
# ## One shared convolution for the whole batch
#
# The kernels of @eq-demod differ from face to face, so the direct implementation needs one convolution group per face, with weights computed at run time. Many exporters and compilers refuse that.
# But $s$ belongs to the input channel and $d$ to the output channel, and a convolution is linear. Both factors can leave the sum:
#
# $$y_j=\sum_{i,k}d_j\,s_i\,W_{jik}\,x_{ik}=d_j\sum_{i,k}W_{jik}\,(s_i\,x_{ik})$$ {#eq-stylegan2-scaling}
#
# So: scale the input channels, run *one* convolution with shared weights, scale the output channels. Upsampling treats all channels alike and does not disturb this. With `up=True` the layer doubles the size: in `"fir"` mode by a convolution of stride 2 transposed, followed by the low-pass filter; in `"bilinear"` mode by interpolating first.

# %%
#| export
class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style (@eq-modulate): x (b, cin, h, w),
    w (b, style_dim) -> (b, cout, h', w').

    Input-scaling form: scale x by s, one shared convolution, scale the result by d (@eq-demod).
    `up=True` doubles the size.
    """

    def __init__(self, cin, cout, kernel, style_dim, *, demodulate=True, up=False, resample="fir",
                 gain=1.0, equalized=True):
        super().__init__()
        std = 1 / math.sqrt(cin * kernel**2)
        self.weight_gain, weight_size = (std, 1.0) if equalized else (1.0, std)
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * weight_size)
        self.modulation = EqualizedLinear(style_dim, cin, bias_init=1.0, equalized=equalized)
        self.demodulate, self.up, self.gain = demodulate, up, gain
        self.resample = Resample(resample)

    def forward(self, x, w):
        s = self.modulation(w)                                             # (b, cin)
        weight = self.weight * self.weight_gain                            # (cout, cin, k, k)
        x, pad = x * s[:, :, None, None], weight.shape[-1] // 2
        if self.up and self.resample.mode == "fir":
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)    # 2h + 1
            # 2h; 4 replaces the zeros that the stride put in
            y = self.resample.smooth(y, pad=1, gain=4.0)
        else:
            y = F.conv2d(self.resample.up(x) if self.up else x, weight, padding=pad)
        if not self.demodulate:
            return y * self.gain
        d = (s.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()  # (b, cout)
        return y * (d * self.gain).to(y.dtype)[:, :, None, None]


# %% [markdown]
# The readable twin uses the kernels of `modulated_weight` and one group per face, and filters with the reference `upfirdn` of @sec-layers. In double precision the two must agree far below the last digit that float32 has.

# %%
def grouped(layer, x, w):
    "The same layer with one kernel per sample: b groups of cin -> cout."
    kernel = modulated_weight(layer.weight * layer.weight_gain, layer.modulation(w),
                              layer.demodulate)
    b, cout, cin, k, _ = kernel.shape
    if layer.up and layer.resample.mode == "fir":
        kernel = kernel.transpose(1, 2).reshape(b * cin, cout, k, k)
        y = F.conv_transpose2d(x.reshape(1, b * cin, *x.shape[2:]), kernel, stride=2, groups=b)
        y = upfirdn(y, 4 * fir_kernel(), pad=(1, 1))
    else:
        if layer.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        y = F.conv2d(x.reshape(1, b * cin, *x.shape[2:]), kernel.reshape(b * cout, cin, k, k),
                     padding=k // 2, groups=b)
    return y.reshape(b, cout, *y.shape[2:]) * layer.gain


# %%
worst = 0.0
for up, mode in ((False, "fir"), (True, "fir"), (True, "bilinear")):
    for demodulate in (True, False):
        for b in (1, 2, 5):
            layer = ModulatedConv2d(6, 4, 3, 8, demodulate=demodulate, up=up, resample=mode,
                                    gain=SQRT2).double()
            x = torch.randn(b, 6, 8, 8, dtype=torch.float64)
            w = torch.randn(b, 8, dtype=torch.float64)
            got, want = layer(x, w), grouped(layer, x, w)
            side = 16 if up else 8
            assert got.shape == (b, 4, side, side)
            assert_close(got, want, rtol=0, atol=1e-10)
            worst = max(worst, (got - want).abs().max().item())
# two computations, not one compared with itself
assert worst > 0

# one element by hand: sample 1, channel 2, pixel (3, 3)
s = layer.modulation(w)
layer.up = False
by_hand = sum(layer.weight[2, i, p, q] * layer.weight_gain * s[1, i] * x[1, i, 2 + p, 2 + q]
              for i in range(6) for p in range(3) for q in range(3))
assert_close(layer(x, w)[1, 2, 3, 3], by_hand * SQRT2, rtol=1e-10, atol=1e-12)
# limit: s starts at 1
assert_close(layer(x, 0 * w), F.conv2d(x, layer.weight * layer.weight_gain, padding=1) * SQRT2,
             rtol=0, atol=1e-12)


# %% [markdown]
# The two forms are the same function. The grouped one holds a kernel per face in memory, so the package keeps the other.

# %% [markdown]
# ## Noise for the details that no code should decide
#
# The exact place of a freckle or a hair is random and would be wasted on the code. So every convolution adds one channel of Gaussian noise $n$, scaled by one learned number $\sigma$, before its bias $b$ and activation:
#
# $$h=\sqrt2\;\operatorname{lrelu}\big(\operatorname{modconv}(x,w)+\sigma\,n+b\big)=\operatorname{lrelu}\big(\sqrt2\operatorname{modconv}(x,w)+\sqrt2\,\sigma\,n+\sqrt2\,b\big)$$ {#eq-stylegan2-noise}
#
# The factor $\sqrt2$ makes up for the variance that the leaky ReLU (slope 0.2) takes away. It may move inside because $\operatorname{lrelu}(ct)=c\operatorname{lrelu}(t)$ for $c>0$; the class uses the right-hand side, which costs one multiplication less per feature value.

# %%
#| export
class StyleConv(nn.Module):
    """Modulated 3×3 convolution, plus strength × noise, plus bias, leaky ReLU:
    (b, cin, h, w) -> (b, cout, h', w').

    `noise` is (1 or b, 1, h', w'), or None for none.
    """

    def __init__(self, cin, cout, style_dim, *, up=False, resample="fir", equalized=True):
        super().__init__()
        self.conv = ModulatedConv2d(cin, cout, 3, style_dim, up=up, resample=resample, gain=SQRT2,
                                    equalized=equalized)
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.bias_gain = SQRT2 if equalized else 1.0       # the activation's √2, moved inside

    def forward(self, x, w, noise=None):
        y = self.conv(x, w)
        if noise is not None:
            y = y + (self.noise_strength * self.bias_gain * noise).to(y.dtype)
        return F.leaky_relu(y + (self.bias * self.bias_gain).to(y.dtype)[:, None, None], SLOPE)


# %% [markdown]
# A layer takes the noise as an argument. Where it comes from is decided in one place, by name: the stored maps (`"fixed"`, the default here), fresh draws (`"random"`), or none (`"zero"`).

# %%
#| export
NOISE_MODES = ("fixed", "random", "zero")     # stored maps, drawn anew, none


def layer_noise(stored, mode, b):
    """The noise of one layer: its `stored` map (1, 1, s, s) for "fixed", a fresh draw (b, 1, s, s)
    for "random", None for "zero"."""
    if mode not in NOISE_MODES:
        raise ValueError(f"noise is {mode!r}, needs one of {NOISE_MODES}")
    if mode == "random":
        return stored.new_empty(b, *stored.shape[1:]).normal_()
    return stored if mode == "fixed" else None


# %% [markdown]
# The first check is the left-hand side of @eq-stylegan2-noise, with the strength and the bias set to values that would show a mistake (both start at 0).

# %%
torch.manual_seed(2)
layer = StyleConv(6, 4, 8).double()
layer.noise_strength.data.fill_(0.3), layer.bias.data.normal_()
x, w = torch.randn(2, 6, 8, 8).double(), torch.randn(2, 8).double()
n = torch.randn(1, 1, 8, 8).double()
outside = SQRT2 * F.leaky_relu(layer.conv(x, w) / SQRT2 + 0.3 * n + layer.bias[:, None, None], 0.2)
assert_close(layer(x, w, n), outside, rtol=0, atol=1e-7)       # 0.3 is stored in float32
assert_close(layer(x, w), layer(x, w, 0 * n), rtol=0, atol=0)  # no noise is noise of zeros

draws = [layer_noise(n, "random", 2) for _ in range(2)]
assert draws[0].shape == (2, 1, 8, 8)
assert not torch.equal(draws[0][0], draws[0][1]) and not torch.equal(*draws)
assert layer_noise(n, "fixed", 2) is n and layer_noise(n, "zero", 2) is None
test_fail(lambda: layer_noise(n, "off", 2), exc=ValueError, contains="noise is 'off'")

# %%
#| label: fig-stylegan2-noise
#| fig-cap: "One channel of an untrained StyleConv on a smooth input, with growing noise strength σ."
#| fig-alt: "The same smooth pattern four times, from clean to grainy."
pattern = F.interpolate(torch.randn(1, 6, 5, 5, generator=g), size=48, mode="bicubic").double()
grain, maps = torch.randn(1, 1, 48, 48, generator=g).double(), []
for strength in (0.0, 0.1, 0.3, 1.0):
    layer.noise_strength.data.fill_(strength)
    maps.append(layer(pattern, w[:1], grain)[0, 0].detach())
lean(show(maps, [f"σ = {v}" for v in (0, 0.1, 0.3, 1.0)], vmin=-2, vmax=4, height=1.7))


# %% [markdown]
# In @fig-stylegan2-noise only $\sigma$ grows. A trained prior has learned one $\sigma$ per layer, and a restorer that freezes the prior freezes these strengths too.

# %% [markdown]
# ## RGB layers that add up
#
# Each resolution proposes its own share of the picture. A 1×1 modulated convolution turns the feature into three channels, and these are added to the upsampled picture so far.
# There is no demodulation here: an RGB layer ends a path, nothing can explode behind it, and the style may set how strong the contribution is.

# %%
#| export
class ToRGB(nn.Module):
    """Modulated 1×1 convolution to a picture, added to the upsampled picture so far:
    (b, cin, h, w), (b, 3, h/2, w/2) -> (b, 3, h, w)."""

    def __init__(self, cin, style_dim, *, resample="fir", equalized=True):
        super().__init__()
        self.conv = ModulatedConv2d(cin, 3, 1, style_dim, demodulate=False, equalized=equalized)
        self.bias = nn.Parameter(torch.zeros(3))
        self.resample = Resample(resample)

    def forward(self, x, w, image=None):
        y = self.conv(x, w) + self.bias[:, None, None]
        return y if image is None else y + self.resample.up(image)


# %%
layer = ToRGB(6, 8).double()
layer.bias.data.normal_()
image = torch.randn(2, 3, 4, 4).double()
matrix = layer.conv.weight[:, :, 0, 0] / math.sqrt(6)
by_hand = torch.einsum("bihw,bi,ji->bjhw", x, layer.conv.modulation(w), matrix)
by_hand = by_hand + layer.bias.view(1, 3, 1, 1)
assert_close(layer(x, w), by_hand, rtol=0, atol=1e-12)
doubled = upfirdn(image, 4 * fir_kernel(), up=2, pad=(2, 1))
assert_close(layer(x, w, image), by_hand + doubled, rtol=0, atol=1e-12)


# %% [markdown]
# ## From z to w
#
# Random numbers $z\sim\mathcal N(0,I)$ lie evenly in all directions. Real faces do not: some combinations hardly occur. A *mapping network* bends $z$ into codes $w$ in which the affine maps of @eq-modulate have an easier task [@karras2019stylegan].
# It first removes the length of $z$, which carries no information, and then applies `n_mlp` linear layers with leaky ReLU:
#
# $$w=f_n(\dots f_1(\hat z)),\qquad \hat z=z\Big/\sqrt{\tfrac1D\textstyle\sum_i z_i^2+\varepsilon},\qquad f_l(t)=\sqrt2\operatorname{lrelu}(W_lt+b_l)$$ {#eq-stylegan2-mapping}
#
# $D$ is the length of a code (512 in the paper). The layers learn a hundred times slower than the rest (`lr_mul=0.01`, see @sec-layers), because a small step here moves every face at once.

# %%
#| export
class Mapping(nn.Module):
    """z (b, style_dim) -> w (b, style_dim): z is normalised to unit mean square, then passes n_mlp
    linear layers with leaky ReLU."""

    def __init__(self, style_dim=512, n_mlp=8, *, lr_mul=0.01, equalized=True):
        super().__init__()
        self.layers = nn.ModuleList(
            EqualizedLinear(style_dim, style_dim, gain=SQRT2, lr_mul=lr_mul, activate=True,
                            equalized=equalized) for _ in range(n_mlp))

    def forward(self, z):
        z = z * (z.square().mean(-1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            z = layer(z)
        return z


# %%
torch.manual_seed(3)
mapping = Mapping(64, 8).double().requires_grad_(False)
z = torch.randn(1000, 64).double()
# @eq-stylegan2-mapping once more, in numpy
t = z.numpy() / np.sqrt((z.numpy() ** 2).mean(1, keepdims=True))
for layer in mapping.layers:
    t = t @ layer.weight.numpy().T * 0.01 / np.sqrt(64) + layer.bias.numpy() * 0.01
    t = np.sqrt(2) * np.where(t > 0, t, 0.2 * t)
np.testing.assert_allclose(mapping(z).numpy(), t, atol=1e-7)
# the length of z does not matter
assert_close(mapping(5 * z), mapping(z), rtol=0, atol=1e-6)
# z is centred, w is not
assert z.mean(0).abs().max() < 0.15 and mapping(z).mean(0).abs().max() > 1

# %%
#| label: fig-stylegan2-mapping
#| fig-cap: "Two coordinates of two hundred draws: z, and w after an untrained mapping of eight layers."
#| fig-alt: "A round cloud, and one bent into an asymmetric shape."
clouds = {"z": z, "w": mapping(z)}
fig, axes = plt.subplots(1, 2, figsize=(5, 2.3), layout="constrained")
for ax, (name, points) in zip(axes, clouds.items()):
    ax.scatter(*points[:200, :2].T, s=4, color="#0072B2")
    ax.set_title(name), ax.set_aspect("equal", "datalim")
lean(fig)


# %% [markdown]
# In @fig-stylegan2-mapping the cloud of $w$ is neither round nor centred at zero. Training decides its shape.
# GFP-GAN does not use this network when it restores a photo: its codes come from the U-Net (@sec-gfpgan). The prior needs it to be trained and to be sampled.

# %% [markdown]
# ## Truncation trades variety for safety
#
# Codes far from the centre of the cloud were rare in training, and their pictures are the least reliable. Truncation pulls a code towards the mean code $\bar w$:
#
# $$w_\psi=\bar w+\psi\,(w-\bar w)$$ {#eq-truncation}
#
# $\psi=1$ leaves $w$ as it is, $\psi=0$ gives the same mean face to everyone, and values between trade variety for quality (@fig-stylegan2-psi shows it). $\bar w$ is estimated by averaging the codes of a few thousand draws.

# %%
#| export
def truncate(w, w_mean, psi):
    """w_mean + psi·(w - w_mean): psi = 1 leaves w (b, style_dim), psi = 0 gives the mean
    (@eq-truncation)."""
    if psi == 1:
        return w
    if w_mean is None:
        raise ValueError("truncation needs w_mean: pass StyleGAN2.mean_w()")
    return w_mean + psi * (w - w_mean)


# %%
w, w_mean = mapping(z), mapping(z).mean(0, keepdim=True)
assert truncate(w, None, 1) is w                                              # limit: identity
assert_close(truncate(w, w_mean, 0), w_mean.expand_as(w), rtol=0, atol=0)     # limit: the mean
assert_close(truncate(w, w_mean, 0.5), (w + w_mean) / 2, rtol=0, atol=1e-12)  # linear in between
spread = lambda v: (v - w_mean).norm(dim=1).mean()
assert_close(spread(truncate(w, w_mean, 0.3)), 0.3 * spread(w), rtol=1e-10, atol=0)
test_fail(lambda: truncate(w, None, 0.7), exc=ValueError, contains="needs w_mean")


# %% [markdown]
# ## Synthesis
#
# The synthesis network starts from a learned constant, 4×4 pixels and the same for every face. Each further resolution is a block of three layers: an upsampling convolution, a second convolution, and an RGB layer.
# A picture of size $S$ takes $n=2\log_2S-2$ codes. With $r_k$ for the RGB layer's own share at level $k$ and $U$ for doubling the size, the picture is a plain sum:
#
# $$\hat y=\sum_{k=0}^{K}U^{K-k}\,r_k,\qquad K=\log_2S-2$$ {#eq-stylegan2-levels}
#
# There is no squashing at the end. Values outside $[-1,1]$ are possible and are clipped when the picture is written.
# The argument `modulate` is the door for @sec-csft: a function that sees the feature after the first convolution of each block and may replace it.

# %%
#| export
class Synthesis(nn.Module):
    """w (b, n_codes, style_dim) -> picture (b, 3, size, size), from a learned 4×4 constant;
    n_codes = 2·log2(size) - 2.

    Block k uses codes i, i+1 for its two convolutions and i+2 for its RGB layer, i advancing by 2:
    neighbours share a code. `modulate(h, k)`, where given, sees the feature h (b, c, s, s) after
    the first convolution of block k = 0, 1, … (8, 16, … px) and returns its replacement: the place
    where GFP-GAN acts. Noise: "fixed" (stored maps), "random" (drawn in forward order), "zero".
    """

    def __init__(self, channels, style_dim=512, *, resample="fir", equalized=True):
        super().__init__()
        sizes, opts = sorted(channels), dict(resample=resample, equalized=equalized)
        self.n_codes, self.style_dim = 2 * len(sizes), style_dim
        self.constant = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.convs = nn.ModuleList([StyleConv(channels[4], channels[4], style_dim, **opts)])
        self.to_rgbs = nn.ModuleList([ToRGB(channels[4], style_dim, **opts)])
        for s in sizes[1:]:
            self.convs.append(StyleConv(channels[s // 2], channels[s], style_dim, up=True, **opts))
            self.convs.append(StyleConv(channels[s], channels[s], style_dim, **opts))
            self.to_rgbs.append(ToRGB(channels[s], style_dim, **opts))
        for i, s in enumerate([4] + [s for s in sizes[1:] for _ in (0, 1)]):
            self.register_buffer(f"noise{i}", torch.randn(1, 1, s, s))

    def forward(self, w, noise="fixed", modulate=None):
        if w.ndim != 3 or w.shape[1:] != (self.n_codes, self.style_dim):
            raise ValueError(f"w is {tuple(w.shape)}, needs (b, {self.n_codes}, {self.style_dim})")
        # len(w) would fix the batch when the net is exported
        b = w.shape[0]
        n = lambda i: layer_noise(getattr(self, f"noise{i}"), noise, b)
        h = self.convs[0](self.constant.expand(b, -1, -1, -1), w[:, 0], n(0))
        image = self.to_rgbs[0](h, w[:, 1])
        for k, to_rgb in enumerate(self.to_rgbs[1:]):
            i = 2 * k + 1
            h = self.convs[i](h, w[:, i], n(i))
            h = h if modulate is None else modulate(h, k)
            h = self.convs[i + 1](h, w[:, i + 1], n(i + 1))
            image = to_rgb(h, w[:, i + 2], image)
        return image


# %% [markdown]
# The check collects each RGB layer's own share with PyTorch hooks, brings all of them to full size, and compares their sum with the output. And a picture must depend on its own codes and on no other picture's.

# %%
def shares(net, w):
    "Each RGB layer's own picture at full size, and the output: @eq-stylegan2-levels."
    own, hooks = [], []
    for t in net.to_rgbs:
        keep = lambda m, i, y, t=t: own.append(y + t.bias[:, None, None])
        hooks.append(t.conv.register_forward_hook(keep))
    out = net(w)
    for h in hooks:
        h.remove()
    for k in range(len(own)):
        while own[k].shape[-1] < out.shape[-1]:
            own[k] = net.to_rgbs[0].resample.up(own[k])
    return own, out


torch.manual_seed(4)
net = Synthesis(widths(64, narrow=1 / 8), 64)
w = torch.randn(2, net.n_codes, 64, requires_grad=True)
own, out = shares(net, w)
assert net.n_codes == 10 == 2 * math.log2(64) - 2 and len(own) == 5 and out.shape == (2, 3, 64, 64)
assert_close(sum(own), out, rtol=1e-5, atol=1e-5)
grad, = torch.autograd.grad(out[1].sum(), w)
# every own code matters, the neighbour's never
assert (grad[1] != 0).any(-1).all() and not grad[0].any()
test_fail(lambda: net(w[:, :8]), exc=ValueError, contains="needs (b, 10, 64)")

# %% [markdown]
# Which code reaches which layer? There are fewer codes than layers. @fig-stylegan2-codes shows the non-zero gradients of each layer's style with respect to each code.

# %%
styles, hooks = {}, []
names = ["4 px conv", "4 px RGB"] + [f"{s} px {part}" for s in (8, 16, 32, 64)
                                     for part in ("conv up", "conv", "RGB")]
layers = [net.convs[0], net.to_rgbs[0]] + [m for k in range(4)
                                           for m in (net.convs[2 * k + 1], net.convs[2 * k + 2],
                                                     net.to_rgbs[k + 1])]
for name, layer in zip(names, layers):
    keep = lambda m, i, s, name=name: styles.update({name: s})
    hooks.append(layer.conv.modulation.register_forward_hook(keep))
net(w)
for h in hooks:
    h.remove()
slopes = [torch.autograd.grad(styles[n].sum(), w, retain_graph=True)[0] for n in names]
reaches = np.array([(g != 0).any(-1).any(0).numpy() for g in slopes])

codes_of = {n: list(np.flatnonzero(r)) for n, r in zip(names, reaches)}
# one code per layer
assert all(len(c) == 1 for c in codes_of.values())
for k, s in enumerate((8, 16, 32, 64)):
    # block k: i, i+1, i+2 with i = 2k + 1
    used = [codes_of[f"{s} px {part}"] for part in ("conv up", "conv", "RGB")]
    assert used == [[2 * k + 1], [2 * k + 2], [2 * k + 3]]
    # the shared one
    assert codes_of[f"{s // 2} px RGB"] == codes_of[f"{s} px conv up"]

# %%
#| label: fig-stylegan2-codes
#| fig-cap: "Which code (column) reaches which layer (row) in a 64 px synthesis, found by gradients."
#| fig-alt: "A staircase of filled cells; each RGB layer is in the same column as the next upsampling convolution."
fig, ax = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
ax.imshow(reaches, cmap="Blues", vmax=1.4, aspect="auto")
ax.set_xticks(range(10), [f"w{i}" for i in range(10)])
ax.set_yticks(range(len(names)), names, fontsize=8)
ax.set_xticks(np.arange(-0.5, 10), minor=True)
ax.set_yticks(np.arange(-0.5, len(names)), minor=True)
ax.grid(which="minor", color="white"), ax.tick_params(which="minor", length=0)
lean(fig)


# %% [markdown]
# Each RGB layer shares its code with the upsampling convolution of the next level: both read the same feature.

# %% [markdown]
# ## The generator and style mixing
#
# A code per layer means that a picture may take its coarse layers from one face and its fine layers from another. This *style mixing* is used when a prior is trained, so that neighbouring layers do not rely on each other. It also shows what each level is responsible for (@fig-stylegan2-mix).
# Codes $0\dots c-1$ come from the first face and the rest from the second; $c$ is the *crossover*.

# %%
#| export
def mix(w1, w2, crossover):
    """Style mixing of two (b, n_codes, style_dim): codes 0 … crossover-1 from w1 (coarse), the rest
    from w2 (fine)."""
    if crossover is None or not 0 <= crossover <= w1.shape[1]:
        raise ValueError(f"crossover is {crossover}, needs 0 … {w1.shape[1]}")
    return torch.cat([w1[:, :crossover], w2[:, crossover:]], dim=1)


# %% [markdown]
# The generator puts mapping, truncation, mixing and synthesis behind one call.

# %%
#| export
class StyleGAN2(nn.Module):
    """The generator: z (b, style_dim) -> picture (b, 3, size, size) in about [-1, 1]. `mapping` and
    `synthesis` can be called alone."""

    def __init__(self, size=512, style_dim=512, n_mlp=8, channel_multiplier=1.0, narrow=1.0, *,
                 resample="fir", equalized=True):
        super().__init__()
        self.config = dict(size=size, style_dim=style_dim, n_mlp=n_mlp,
                           channel_multiplier=channel_multiplier, narrow=narrow,
                           resample=resample, equalized=equalized)
        self.mapping = Mapping(style_dim, n_mlp, equalized=equalized)
        self.synthesis = Synthesis(widths(size, channel_multiplier, narrow), style_dim,
                                   resample=resample, equalized=equalized)

    def codes(self, w):
        "w (b, style_dim) -> the same code for every layer, (b, n_codes, style_dim)."
        return w[:, None].expand(-1, self.synthesis.n_codes, -1)

    def forward(self, z, *, truncation=1.0, w_mean=None, mix_with=None, crossover=None,
                noise="fixed"):
        """z (b, style_dim). Truncation moves w towards `w_mean` (@eq-truncation); codes from
        `crossover` on come from `mix_with` (b, style_dim)."""
        w = self.codes(truncate(self.mapping(z), w_mean, truncation))
        if mix_with is not None:
            w = mix(w, self.codes(truncate(self.mapping(mix_with), w_mean, truncation)), crossover)
        return self.synthesis(w, noise=noise)

    @torch.no_grad()
    def mean_w(self, n=4096, generator=None):
        "Mean of w over n draws of z, (1, style_dim): the centre that truncation moves towards."
        p = next(self.parameters())
        z = torch.randn(n, self.synthesis.style_dim, generator=generator, dtype=p.dtype)
        return self.mapping(z.to(p.device)).mean(0, keepdim=True)


# %%
torch.manual_seed(5)
gan = StyleGAN2(64, 64, 4, narrow=1 / 8).requires_grad_(False)
z1, z2 = torch.randn(2, 1, 64)
same = dict(rtol=0, atol=1e-5)
# limit: all from the second
assert_close(gan(z1, mix_with=z2, crossover=0), gan(z2), **same)
# limit: all from the first
assert_close(gan(z1, mix_with=z2, crossover=10), gan(z1), **same)
test_fail(lambda: gan(z1, mix_with=z2, crossover=11), exc=ValueError, contains="crossover is 11")
test_fail(lambda: gan(z1, mix_with=z2), exc=ValueError, contains="crossover is None")
w1, w2 = (gan.codes(gan.mapping(v)) for v in (z1, z2))
first, mixed = (shares(gan.synthesis, w)[0] for w in (w1, mix(w1, w2, 6)))
# 6 codes: up to 16 px
assert all(torch.equal(a, b) for a, b in zip(first[:3], mixed[:3]))
assert not torch.equal(first[3], mixed[3])
w_mean = gan.mean_w(2048, torch.Generator().manual_seed(0))
draws = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
assert_close(w_mean[0], gan.mapping(draws).mean(0), **same)
# one mean picture for all
assert_close(gan(z1, truncation=0, w_mean=w_mean), gan(z2, truncation=0, w_mean=w_mean), **same)

# %% [markdown]
# ## The hook that a restorer uses
#
# GFP-GAN leaves this network as it is and acts on the features between two layers. `modulate(h, k)` receives the feature of block $k$ (8 px for $k=0$) and returns what goes on. The checks: doing nothing changes nothing, the hook is called once per block with the right shape, and a change at one position stays near that position.

# %%
w, calls = gan.codes(gan.mapping(z1)), []
watch = lambda h, k: calls.append((k, tuple(h.shape))) or h
plain = gan.synthesis(w)
assert torch.equal(gan.synthesis(w, modulate=watch), plain)
assert calls == [(0, (1, 64, 8, 8)), (1, (1, 64, 16, 16)), (2, (1, 64, 32, 32)),
                 (3, (1, 32, 64, 64))]


def bump(level):
    "Add 5 to every channel at the centre position of one level."
    def modulate(h, k):
        centre = torch.zeros(h.shape[-2:])
        centre[h.shape[-2] // 2, h.shape[-1] // 2] = 5
        return h + centre if k == level else h
    return modulate


changes = [(gan.synthesis(w, modulate=bump(k)) - plain).abs().amax((0, 1)) for k in range(4)]
# at 64 px only one 3×3 convolution follows
rows, cols = np.nonzero(changes[3].numpy())
assert (rows.min(), rows.max(), cols.min(), cols.max()) == (31, 33, 31, 33) and len(rows) == 9
touched = [(c > 0).float().mean().item() for c in changes]
print("share of pixels touched:", [f"{t:.2g}" for t in touched])
assert touched == sorted(touched, reverse=True) and touched[2] < 0.25

# %%
#| label: fig-stylegan2-hook
#| fig-cap: "Change of the picture when the hook adds a bump at the centre of one level's feature (black: none)."
#| fig-alt: "Four bright spots at the centre, from most of the picture down to three by three pixels."
lean(show([c / c.max() for c in changes], [f"bump at {8 * 2**k} px" for k in range(4)],
          cmap="magma", vmin=0, vmax=1, height=1.7))


# %% [markdown]
# @fig-stylegan2-hook is the property that codes lack. A change of the feature has a place, and the coarser the level, the wider its effect. A restorer that knows where an eye is can act there and nowhere else.

# %% [markdown]
# ## All sizes, counted
#
# The same class builds every power of two from 8 to 1024 px. PyTorch's `meta` device keeps shapes and no data, so even the large ones can be built and run here at no cost. The counts are compared with a sum written from the layer list.

# %%
def by_hand(size, d=512, n_mlp=8, cm=1):
    "Parameters of StyleGAN2, from the list of layers."
    w = widths(size, cm)
    # A and b of @eq-modulate
    affine = lambda c: d * c + c
    # kernel, style, noise strength, bias
    conv = lambda a, b: 9 * a * b + affine(a) + 1 + b
    rgb = lambda a: 3 * a + affine(a) + 3
    blocks = {4: 16 * w[4] + conv(w[4], w[4]) + rgb(w[4])}
    blocks |= {s: conv(w[s // 2], w[s]) + conv(w[s], w[s]) + rgb(w[s]) for s in sorted(w)[1:]}
    return blocks, n_mlp * (d * d + d)


print("size  codes  parameters")
for size in (2**i for i in range(3, 11)):
    with torch.device("meta"):
        big = StyleGAN2(size)
        assert big(torch.empty(2, 512)).shape == (2, 3, size, size)
    blocks, mlp = by_hand(size)
    count = sum(p.numel() for p in big.parameters())
    assert count == sum(blocks.values()) + mlp and big.synthesis.n_codes == 2 * math.log2(size) - 2
    print(f"{size:4}  {big.synthesis.n_codes:5}  {count:>10,}")
blocks, mlp = by_hand(512)
assert sum(blocks.values()) + mlp == 24_860_935  # the paper's prior
coarse = sum(n for s, n in blocks.items() if s <= 32) / sum(blocks.values())
print(f"share of the synthesis at 32 px and below: {coarse:.2f}")

# %% [markdown]
# The prior at 512 px has 24,860,935 parameters, and most of them sit at 32 px and below: going from 64 px to 512 px costs few. Most of the *computing* is done above.

# %% [markdown]
# ## Sixty-four faces, none picked
#
# What has the bundled prior learned? A few chosen samples would say more about who chose them.
# So @fig-stylegan2-samples shows the first 64 codes that seed 0 yields, in order and untruncated. The check looks for a common failure: a generator that draws the same few pictures whatever it is given.

# %%
prior = load_prior().requires_grad_(False)
n_codes = prior.synthesis.n_codes
z = torch.randn(64, prior.config["style_dim"], generator=torch.Generator().manual_seed(0))
samples = prior(z)
# mean |difference| of every two pictures
distances = lambda x: torch.pdist(x.flatten(1), p=1) / x[0].numel()
print(f"mean distance of two samples {distances(samples).mean():.2f}, "
      f"of the closest two {distances(samples).min():.2f} (pixels in -1 … 1)")
assert distances(samples).min() > 0.05  # no two alike
# a sample does not depend on its neighbours
assert_close(prior(z[37:38])[0], samples[37], rtol=0, atol=1e-3)

# %%
#| label: fig-stylegan2-samples
#| fig-cap: "Sixty-four samples of the bundled prior, 64 px: seed 0, in order, not truncated, none picked."
#| fig-alt: "Eight by eight small faces of varying quality; some are badly broken."
sheet(samples, 8)

# %% [markdown]
# Judge @fig-stylegan2-samples by its worst third. A small network trained for a short time gets the composition right before the details: head, hair, background, a light side and a dark one. What it draws badly, a restorer that is built on it will draw badly too.

# %% [markdown]
# ## Truncation, seen
#
# What does @eq-truncation give up, and what does it gain? Each column of @fig-stylegan2-psi is one code, each row one $\psi$. The last row goes through the mean to the other side.

# %%
w_mean = prior.mean_w(generator=torch.Generator().manual_seed(0))
psis = (1, 0.7, 0.4, 0, -0.5)
truncated = {psi: prior(z[:6], truncation=psi, w_mean=w_mean) for psi in psis}
variety = {psi: distances(pictures).mean().item() for psi, pictures in truncated.items()}
print("mean distance of two pictures:",
      ", ".join(f"{v:.2f} at ψ = {psi}" for psi, v in variety.items()))
# limits: untouched; one face for all
assert torch.equal(truncated[1], prior(z[:6])) and variety[0] < 1e-4
# variety shrinks with ψ
assert all(variety[a] > variety[b] for a, b in zip(psis, psis[1:4]))
opposite = prior.synthesis(prior.codes(1.5 * w_mean - 0.5 * prior.mapping(z[:6])))
# @eq-truncation, multiplied out
assert_close(truncated[-0.5], opposite, rtol=0, atol=1e-3)

# %%
#| label: fig-stylegan2-psi
#| fig-cap: "Six codes (columns) at five strengths of truncation (rows): the first six of the samples."
#| fig-alt: "Six different faces in the top row that turn into one and the same face at ψ = 0, and into different ones below."
sheet(torch.cat(list(truncated.values())), 6, rows=[f"ψ = {psi}" for psi in psis])

# %% [markdown]
# Going down, each column loses first what is odd about it, then what is its own. At $\psi=0$ all columns show the mean face. It is no average of pictures, as in @fig-stylegan2-mean, but the picture of an average code, and it is sharp. Below it everything that set a face apart is reversed: dark becomes light, and a turn to the left one to the right.
# The book's samples use $\psi=0.7$ unless they say otherwise.

# %% [markdown]
# ## What coarse and fine codes carry
#
# Which code decides what? In @fig-stylegan2-mix every picture takes codes $0\dots3$, which feed all layers up to 8 px, from the face $A$ at its left and the rest from the face $B$ above it:
#
# $$w=\big[w^A_0,\dots,w^A_{c-1},\;w^B_c,\dots,w^B_{n-1}\big],\qquad c=4$$ {#eq-stylegan2-crossover}
#
# The check follows from @eq-stylegan2-levels: the shares of the levels below the crossover are those of $A$ to the last bit.

# %%
codes = prior.codes(truncate(prior.mapping(z), w_mean, 0.7))
A, B = codes[:4], codes[8:12]
# (4, 4, 3, 64, 64)
mixed = torch.stack([prior.synthesis(mix(a.expand_as(B), B, 4)) for a in A])
own, crossed = (shares(prior.synthesis, v)[0] for v in (A[:1], mix(A[:1], B[:1], 4)))
assert all(torch.equal(own[k], crossed[k]) for k in (0, 1))
assert not any(torch.equal(own[k], crossed[k]) for k in range(2, len(own)))
# a face mixed with itself
assert_close(prior.synthesis(mix(A, A, 4)), prior.synthesis(A), rtol=0, atol=0)

# %%
#| label: fig-stylegan2-mix
#| fig-cap: "Style mixing, ψ = 0.7. First column: the faces that give the codes of all layers up to 8 px. First row: the faces that give the rest."
#| fig-alt: "A grid of faces; along a row pose and outline stay, along a column the colours."
corner = torch.ones_like(samples[:1])
rows = [torch.cat([prior.synthesis(a[None]), m]) for a, m in zip(A, mixed)]
sheet(torch.cat([corner, prior.synthesis(B), *rows]), 5)

# %% [markdown]
# Along a row of @fig-stylegan2-mix the head keeps its pose, its outline and the mass of its hair. Down a column it is mostly the colours and the contrast that stay.
#
# The next cell cuts the codes into three groups: *coarse* (layers up to 8 px), *middle* (16 px and the convolutions of 32 px) and *fine* (the rest). It replaces one group at a time by that of another face, for 32 pairs, and measures how much the picture changes, and how much its average colour does.

# %%
groups = {"coarse": slice(0, 4), "middle": slice(4, 7), "fine": slice(7, n_codes)}
one, other, replaced = codes[:32], codes[32:], {}
before = prior.synthesis(one)
for name, group in groups.items():
    v = one.clone()
    v[:, group] = other[:, group]
    replaced[name] = prior.synthesis(v)
    change = replaced[name] - before
    print(f"{name:6} codes replaced: pixels change by {change.abs().mean():.2f}, "
          f"the average colour by {change.mean((2, 3)).abs().mean():.2f}")
# every code in one group
assert sorted(i for g in groups.values() for i in range(n_codes)[g]) == list(range(n_codes))

# %%
#| label: fig-stylegan2-groups
#| fig-cap: "Left: three faces. Right: three others. Between: the face at the left with one group of codes from the face at the right."
#| fig-alt: "Three rows of five faces: replacing coarse codes changes the head, fine codes the colours."
columns = [before, *replaced.values(), prior.synthesis(other)]
sheet(torch.stack([x[:3] for x in columns], 1).flatten(0, 1), 5, tops=["face", *groups, "other"])


# %% [markdown]
# In @fig-stylegan2-groups the coarse codes change who is there. The middle ones change the features within the same head, and the fine ones little but colour and contrast, as the printed lines confirm: for the fine codes the average colour makes up most of the change.
# GFP-GAN predicts a code for every layer, so it sets all three groups from the photo.

# %% [markdown]
# ## From one face to another
#
# A prior that has stored its training faces one by one would have nothing between them. The classical test walks from one code to another. There are two natural paths, one in each space:
#
# $$z_t=\frac{\sin((1-t)\theta)\,z_0+\sin(t\theta)\,z_1}{\sin\theta},\qquad w_t=(1-t)\,w_0+t\,w_1,\qquad 0\le t\le1$$ {#eq-stylegan2-paths}
#
# Here $z_0,z_1$ have the length $\sqrt D$ to which the mapping brings them anyway, and $\theta$ is the angle between them. So $z_t$ follows a great circle of the sphere on which all $z$ lie. $w_t$ is a straight line.
# The ends are the same. On the way the mapping bends the first path, and the second one cuts a corner: for independent codes the middle of the line lies at $\sqrt{1/2}\approx0.71$ of the ends' distance from the mean. That is a truncation nobody asked for.

# %%
def slerp(a, b, t):
    "Great circle from a to b, both (n, d) of length √d."
    angle = torch.acos((a * b).mean(1, keepdim=True))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


unit = z / z.square().mean(1, keepdim=True).sqrt()
start, end, times = unit[:32], unit[32:], torch.linspace(0, 1, 7)
ends = prior.mapping(start), prior.mapping(end)
# (7, 32, d)
paths = {"z": torch.stack([prior.mapping(slerp(start, end, t)) for t in times]),
         "w": torch.stack([torch.lerp(*ends, t) for t in times])}
paths = {name: truncate(path, w_mean, 0.7) for name, path in paths.items()}
frames = {name: torch.stack([prior.synthesis(prior.codes(w[:16])) for w in path])
          for name, path in paths.items()}

# %%
length, middle, walked = {}, {}, {}
for name, path in paths.items():
    # 1: straight
    length[name] = path.diff(dim=0).norm(dim=2).sum(0) / (path[-1] - path[0]).norm(dim=1)
    outer = (path[[0, -1]] - w_mean).square().sum(2).mean(0).sum()
    middle[name] = ((path[3] - w_mean).square().sum() / outer).sqrt()
    # in pixels, (6, 16)
    steps = frames[name].diff(dim=0).abs().mean((2, 3, 4))
    walked[name] = steps.sum(0).mean()
    longest = (steps.amax(0) / steps.mean(0)).mean()
    print(f"path in {name}: {length[name].mean():.2f} × the straight line in w, "
          f"middle at {middle[name]:.2f}; in pixels {walked[name]:.2f} long, "
          f"longest step {longest:.1f} × the mean step")
# the same ends
assert_close(paths["z"][[0, -1]], paths["w"][[0, -1]], rtol=0, atol=1e-4)
# only the direction of z counts
assert_close(prior.mapping((start + end) / 2), prior.mapping(slerp(start, end, 0.5)),
             rtol=1e-3, atol=1e-3)
assert_close(length["w"], torch.ones(32), rtol=1e-4, atol=0)
# bent; the corner is cut
assert length["z"].min() > 1.02 and abs(middle["w"] - 0.5**0.5) < 0.1 and middle["z"] > middle["w"]
# the shorter way is the calmer film
assert walked["w"] < walked["z"]

# %%
#| label: fig-stylegan2-paths
#| fig-cap: "From one face to another in six equal steps of t, along the great circle in z and along the line in w; two pairs, ψ = 0.7."
#| fig-alt: "Four rows of seven faces that change gradually; the rows in w change more directly."
films = [frames[name][:, i] for i in (0, 1) for name in ("z", "w")]
sheet(torch.cat(films), 7, rows=["z", "w"] * 2, tops=[f"t = {k}/6" for k in range(7)])

# %% [markdown]
# Every picture of @fig-stylegan2-paths is one face, none a double exposure of two: there is something between the faces. In $z$ the film takes a detour and comes past looks that neither end has. In $w$ it goes more directly, and its middle looks a little more like the mean face of @fig-stylegan2-psi.
# This is why editing and inversion work with $w$, and why a restorer predicts $w$ and not $z$.

# %% [markdown]
# ## Put together
#
# One code through the whole generator: $z\to w$, truncation, then the shares that @eq-stylegan2-levels adds up.

# %%
w = prior.codes(truncate(prior.mapping(z[:1]), w_mean, 0.7))
own, picture = shares(prior.synthesis, w)
sums = torch.cat(own).cumsum(0)                                      # 4 px; 4 + 8 px; …
assert_close(sums[-1], prior(z[:1], truncation=0.7, w_mean=w_mean)[0], rtol=0, atol=1e-3)
assert_close(sums[-1], picture[0], rtol=0, atol=1e-3)
print("standard deviation of the shares:", ", ".join(f"{share.std():.2f} at {4 * 2**k} px"
                                                     for k, share in enumerate(own)))

# %%
#| label: fig-stylegan2-levels
#| fig-cap: "Top: the share of each RGB layer, each at full size and its own contrast. Bottom: their sum so far; the last one is the picture."
#| fig-alt: "Five colour patterns from coarse to fine, and below them a face that appears step by step."
contrast = torch.cat([(r - r.mean()) / r.std() / 2 for r in own])
levels = [4 * 2**k for k in range(len(own))]
sheet(torch.cat([contrast, sums]), len(own), rows=["share", "sum"],
      tops=[f"{s} px" for s in levels])

# %% [markdown]
# In @fig-stylegan2-levels the 4 px share can hold nothing but blobs; each further level may add detail twice as fine. The work is shared unevenly, as the printed deviations tell: the coarse shares are a dim field of colour, the head shows faintly at 32 px, and the finest share draws nearly all of the picture. The coarse layers speak through it: their features, not their colours, say where the head is.

# %% [markdown]
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | modulated convolution | as in StyleGAN2 | one kernel per sample, grouped convolution | input scaling, one shared kernel | same function (checked to $10^{-10}$), no run-time weights, easier to export |
# | channel multiplier | 1 | 1 in the first model, 2 in the released clean ones | a parameter | loads both |
# | resampling | not stated | FIR, or bilinear in the clean models | `resample=` | one class for all families |
# | noise | not stated | drawn anew unless switched off | `"fixed"` by default | the same photo gives the same result |
# | mapping network | codes come from the U-Net | stored in the checkpoint, never run | the same | keeps the prior whole |
# | access for CS-SFT | "each resolution scale" | a copy of the generator's forward pass | the hook `modulate` | one generator class for prior and restorer |
#
# : Where the three versions of the prior differ {#tbl-stylegan2-versions}
#
# @tbl-stylegan2-versions lists what a reader of the official code will notice first. Surplus codes, which it ignores, are a ValueError in ours.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# **FIR and bilinear weights have the same shapes.** A checkpoint of one kind loads into a network of the other without an error and draws something else; users of the official converter have met this as red or broken faces. The cell below measures it.
#
# **Noise drawn inside the forward pass** makes two runs differ and breaks exports. Compare implementations with `noise="fixed"` or `"zero"`.
#
# **A frozen prior that was never loaded** trains without complaint. Check a checksum or a picture of the prior before a long run.
# :::

# %%
with torch.no_grad():
    twin = Synthesis(widths(64, narrow=1 / 8), 64, resample="bilinear")
    twin.load_state_dict(gan.synthesis.state_dict())                        # no complaint
    w = gan.codes(gan.mapping(z1))
    difference = (twin(w) - plain).std() / plain.std()
print("same weights, other resampling: "
      f"pictures differ by {difference:.1f} of their own standard deviation")
assert difference > 0.3
# noise strength starts at 0: nothing to see yet
assert torch.equal(gan.synthesis(w, noise="random"), plain)
gan.synthesis.convs[6].noise_strength.fill_(0.2)
assert not torch.equal(gan.synthesis(w, noise="random"), gan.synthesis(w, noise="random"))
assert torch.equal(gan.synthesis(w, noise="fixed"), gan.synthesis(w, noise="fixed"))

# %% [markdown]
# ## Summary
#
# * A restorer trained on squared error alone gives the mean of all plausible faces. A generative prior gives one of them.
# * A style scales the input channels of a convolution; demodulation divides out its strength. Both can leave the convolution, so one shared kernel serves all faces.
# * The picture is the sum of the RGB shares of all levels; $2\log_2S-2$ codes steer the layers, and neighbours share them.
# * Truncation, mixing and paths are arithmetic on codes. Coarse codes set pose and outline, fine ones colour; the straight path in $w$ is the short one.
# * A code acts everywhere at once. The hook `modulate` acts at a place, and GFP-GAN is built on that.
#
# Next: @sec-csft acts through the hook.
#
# ## Exercises
#
# 1. **Compute.** The demodulated `up=True` layer in `"fir"` mode does not return variance 1 for white noise. Derive the value from the FIR taps $(1,3,3,1)$, then measure it.
# 2. **Modify.** Load the first layers of a 64 px `Synthesis` into a 32 px one and show that its picture equals the sum of the first four shares of the larger one, before the last upsampling.
# 3. **Break.** Remove the demodulation from every `StyleConv` of an untrained 256 px generator with `narrow=1/16`, multiply the code by 2, and plot the standard deviation of the features by depth, with and without.
#
# Worked solutions: [nbs/solutions/06_stylegan2.ipynb](solutions/06_stylegan2.ipynb).
#
# ## References
#
# The generator is that of @karras2020stylegan2; the mapping network, truncation in $w$ and style mixing come from @karras2019stylegan, and equalised layers from @karras2018progressive. Using its features as a prior for restoration is the idea of @wang2021gfpgan; @menon2020pulse and @gu2020mganprior are the optimisation-based alternatives.

# %% [markdown]
# # Channel-split spatial feature transform {#sec-csft}
#
# > Tell the prior where things are, and let it keep half of what it knows.
#
# **You will build** the two equations by which GFP-GAN steers its prior: the spatial feature transform and its channel-split form, and the small networks that predict the scales and shifts.
# **Needs** the equalised convolution of @sec-layers and the prior with its hook from @sec-stylegan2. The last section borrows the U-Net of @sec-unet.
# **Runs in** about 25 s on a laptop CPU.

# %%
#| default_exp csft

# %%
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.stylegan2 import StyleGAN2, widths
from gfpgan_edu.unet import UNet

# %%
#| export
import torch
from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d

# %% [markdown]
# @sec-stylegan2 left a hook in the prior. In @fig-csft-map the U-Net sends two things to that prior: codes, and a pair of maps $\alpha,\beta$ for each resolution. This chapter makes the maps and hangs them on the hook.

# %%
#| label: fig-csft-map
#| fig-cap: "This chapter builds the box in the middle: scales and shifts that act at a place."
#| fig-alt: "The method as boxes and arrows; the box for scale and shift is coloured."
draw_map("csft");

# %% [markdown]
# ## What a code cannot say
#
# The codes of @sec-stylegan2 choose a face. They cannot say where the left corner of the mouth is, because each number of a style multiplies a whole channel, at all positions at once.
# A restorer knows a lot about positions: its input is a picture. So the question is how to tell the prior.
#
# The cell compares the two kinds of influence on an untrained 64 px prior. One number of one code is changed, and then one position of one feature.

# %%
# quickest for small nets, and the same sums on every machine
torch.set_num_threads(1)
torch.manual_seed(0)
prior = StyleGAN2(64, 64, 2, narrow=1 / 8).requires_grad_(False)
w = prior.codes(prior.mapping(torch.randn(1, 64)))
plain = prior.synthesis(w)

other = w.clone()
# one number of the code of the 32 px block
other[:, 5, 0] += 1
spot = torch.ones(1, 1, 32, 32)
# twice the feature at one position, block k = 2 is 32 px
spot[..., 20, 12] = 2
by_code = (prior.synthesis(other) - plain).abs().amax((0, 1))
steered = prior.synthesis(w, modulate=lambda h, k: h * spot if k == 2 else h)
by_place = (steered - plain).abs().amax((0, 1))
share = lambda d: (d > 0).float().mean().item()
print(f"share of pixels that change: by the code {share(by_code):.2f}, "
      f"by the place {share(by_place):.2f}")
assert share(by_code) > 0.99 and share(by_place) < 0.06

with torch.device("meta"):
    paper = StyleGAN2(512)
styles = sum(m.modulation.weight.shape[0] for m in paper.modules() if hasattr(m, "modulation"))
print(f"style values of the paper's prior: {styles:,}, values of a 512 px picture: {3 * 512**2:,}")
assert styles < 0.02 * 3 * 512**2

# %%
#| label: fig-csft-reach
#| fig-cap: "Where the picture of an untrained prior changes: after one number of a code, and after one position of a feature (black: nowhere)."
#| fig-alt: "Left a map that is bright in many places, right a map with one small bright spot."
show([by_code / by_code.max(), by_place / by_place.max()],
     ["one number of a code", "one position of a feature"], cmap="magma", vmin=0, vmax=1,
     height=2.2);


# %% [markdown]
# @fig-csft-reach: the code reaches every pixel, the feature reaches a neighbourhood. And a 512 px picture has about a hundred times more values than the paper's prior has style values.

# %% [markdown]
# ## The spatial feature transform
#
# The spatial feature transform [@wang2018sft] gives every channel *and every position* its own scale and shift. GFP-GAN uses it as its Eq. 3:
#
# $$\alpha,\beta=\mathrm{Conv}(F_{\mathrm{spatial}}),\qquad \mathrm{SFT}(F_{\mathrm{GAN}}\mid\alpha,\beta)=\alpha\odot F_{\mathrm{GAN}}+\beta$$ {#eq-sft}
#
# $F_{\mathrm{GAN}}$ is a feature of the prior, of shape $(b,c,h,w)$. $F_{\mathrm{spatial}}$ is the U-Net's feature of the same resolution. $\alpha$ and $\beta$ have the shape of $F_{\mathrm{GAN}}$, and $\odot$ multiplies element by element.
# The function insists on equal shapes. Broadcasting would accept a scale per channel without a word, and that would be a style again.

# %%
#| export
def _check(name, got, want):
    if got.shape != want.shape:
        raise ValueError(f"{name} is {tuple(got.shape)}, needs {tuple(want.shape)}")


def sft(f, alpha, beta):
    """Spatial feature transform (Eq. 3): alpha ⊙ f + beta, all (b, c, h, w).
    Raises ValueError on unequal shapes."""
    _check("alpha", alpha, f), _check("beta", beta, f)
    return f * alpha + beta


# %%
g = torch.Generator().manual_seed(1)
f, alpha, beta = (torch.randn(2, 4, 5, 6, generator=g) for _ in range(3))
loop = np.empty(f.shape, dtype="float32")
# independent: one number at a time
for i in np.ndindex(*f.shape):
    loop[i] = alpha[i].item() * f[i].item() + beta[i].item()
np.testing.assert_allclose(sft(f, alpha, beta).numpy(), loop, rtol=1e-5, atol=1e-6)
# limit: scale 1, shift 0 changes nothing
assert torch.equal(sft(f, torch.ones_like(f), torch.zeros_like(f)), f)
# limit: scale 0 replaces the prior
assert torch.equal(sft(f, torch.zeros_like(f), beta), beta)
test_fail(lambda: sft(f, alpha[:, :1], beta), exc=ValueError,
          contains="alpha is (2, 1, 5, 6), needs (2, 4, 5, 6)")
test_fail(lambda: sft(f, alpha, beta[..., :1, :1]), exc=ValueError, contains="beta is")

# %%
#| label: fig-csft-sft
#| fig-cap: "One channel: feature, scale, shift and result. The scale is 1 and the shift 0 outside the two discs."
#| fig-alt: "A striped pattern, a map with a dark disc, a map with a bright disc, and the stripes faded in one disc and lifted in the other."
y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
stripes = torch.sin(14 * (x + y))[None, None]
disc = lambda cx, cy, r: (((x - cx) ** 2 + (y - cy) ** 2).sqrt() < r).float()[None, None]
a, b = 1 - disc(-0.4, -0.2, 0.45), disc(0.4, 0.2, 0.45)
show([t[0, 0] for t in (stripes, a, b, sft(stripes, a, b))], ["F", "α", "β", "α ⊙ F + β"],
     vmin=-1.2, vmax=2, height=1.8);


# %% [markdown]
# In @fig-csft-sft the left disc has scale 0 and the prior's stripes are gone there; the right disc lifts them and keeps them. Everything else passes.

# %% [markdown]
# ## The channel split
#
# Spatial control has a price. When every channel of every position follows the input, the result follows the input's faults too. The prior's own texture survives only as far as the scales let it.
# GFP-GAN divides the channels: the first half passes unchanged and the second half is transformed (Eq. 4 of the paper):
#
# $$\mathrm{CS\text{-}SFT}(F\mid\alpha,\beta)=\mathrm{Concat}\big[F^{\mathrm{split}0},\ \alpha\odot F^{\mathrm{split}1}+\beta\big],\qquad F=\mathrm{Concat}\big[F^{\mathrm{split}0},F^{\mathrm{split}1}\big]$$ {#eq-cssft}
#
# $F$ is the prior's feature $F_{\mathrm{GAN}}$ with $c$ channels; both splits have $c/2$. Now $\alpha$ and $\beta$ have $c/2$ channels only. The kept half stands for realness, the transformed half for fidelity.

# %%
#| export
def cs_sft(f, alpha, beta):
    """Channel split (Eq. 4): f (b, c, h, w) keeps its first c/2 channels; the rest become
    alpha ⊙ f + beta, both (b, c/2, h, w)."""
    keep, mod = f.chunk(2, dim=1)
    return torch.cat([keep, sft(mod, alpha, beta)], dim=1)


# %%
f = torch.randn(2, 8, 4, 4, generator=g)
alpha, beta = torch.randn(2, 2, 4, 4, 4, generator=g)
out = cs_sft(f, alpha, beta)
# limit: identity
assert torch.equal(cs_sft(f, torch.ones_like(alpha), torch.zeros_like(beta)), f)
# the kept half, bit for bit
assert torch.equal(out[:, :4], f[:, :4])
# one element by hand
assert_close(out[1, 6, 2, 3], alpha[1, 2, 2, 3] * f[1, 6, 2, 3] + beta[1, 2, 2, 3],
             rtol=1e-6, atol=1e-7)
ones, zeros = torch.ones_like(alpha), torch.zeros_like(beta)
# Eq. 4 is Eq. 3 with half of it fixed
assert torch.equal(out, sft(f, torch.cat([ones, alpha], 1), torch.cat([zeros, beta], 1)))
test_fail(lambda: cs_sft(f, alpha[:, :2], beta), exc=ValueError,
          contains="alpha is (2, 2, 4, 4), needs (2, 4, 4, 4)")

# %% [markdown]
# The transform should also be *local*. A change of the condition at one pixel may show at that pixel only, in the second half of the channels only. The next check asks this of every pixel at once, through the derivative of the output with respect to the condition.

# %%
one, offset = f[:1].double(), beta[:1].double()
transformed = lambda a: cs_sft(one, a, offset)
jacobian = torch.autograd.functional.jacobian(transformed, alpha[:1].double())
# (8, 4, 4 | 4, 4, 4)
jacobian = jacobian[0, :, :, :, 0]
expected = torch.zeros_like(jacobian)
for c, i, j in np.ndindex(4, 4, 4):
    # d out / d alpha = F, at the same channel and pixel, else 0
    expected[4 + c, i, j, c, i, j] = one[0, 4 + c, i, j]
assert_close(jacobian, expected, rtol=0, atol=0)

changed = alpha.clone()
changed[0, :, 1, 2] += 1
where = cs_sft(f, changed, beta) != out
# four channels of one pixel of one sample
assert where[0, 4:, 1, 2].all() and where.sum() == 4

# %%
#| label: fig-csft-local
#| fig-cap: "Absolute change of the eight channels after the scale was changed at one pixel: kept half above, transformed half below."
#| fig-alt: "Eight small maps; the four above are black, the four below have one bright pixel at the same place."
delta = (cs_sft(f, changed, beta) - out)[0].abs()
show(list(delta), [f"channel {c}" for c in range(8)], cols=4, cmap="magma", vmin=0,
     vmax=delta.max().item(), height=1.1);


# %% [markdown]
# @fig-csft-local is what a code could not do: one pixel, and half of the channels. The kept half is untouched *by this layer*. The next convolution of the prior mixes all channels, so the two halves meet again directly afterwards. The split decides which features enter that mixture as the prior made them.

# %% [markdown]
# ## Where scale and shift come from
#
# The paper takes two convolutions each for $\alpha$ and $\beta$, with the U-Net's feature of that resolution as input. The last bias of the scale starts at 1 and the last bias of the shift at 0.

# %%
#| export
class ConditionHead(nn.Module):
    """F_spatial (b, cin, s, s) -> (alpha, beta), each (b, cout, s, s): two 3×3 convolutions each,
    with a leaky ReLU between.

    The last biases centre alpha at 1 and beta at 0. The spread around them is proportional to
    F_spatial at the start of training, and not small: about 1 for features of variance 1. An
    untrained head does disturb the prior.
    """

    def __init__(self, cin, cout, *, equalized=True):
        super().__init__()

        def head(bias_init):
            return nn.Sequential(
                EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized),
                EqualizedConv2d(cin, cout, bias_init=bias_init, equalized=equalized))

        self.scale, self.shift = head(1.0), head(0.0)

    def forward(self, f):
        return self.scale(f), self.shift(f)


# %% [markdown]
# It is tempting to conclude that training starts from the untouched prior. The measurement says otherwise. Only for a feature of zeros is $\alpha=1$ and $\beta=0$. For any other the weights spread both, in proportion to the feature.

# %%
torch.manual_seed(2)
head = ConditionHead(32, 32).requires_grad_(False)
feature = torch.randn(4, 32, 32, 32)
start = {std: head(std * feature) for std in (0.0, 0.1, 0.5, 1.0)}
for std, (a, b) in start.items():
    print(f"F_spatial std {std:.1f}:  alpha {a.mean():.1f} ± {a.std():.2f},  "
          f"beta {abs(b.mean()):.1f} ± {b.std():.2f}")
a0, b0 = start[0.0]
# limit: no feature, no modulation
assert torch.equal(a0, torch.ones_like(a0)) and torch.equal(b0, torch.zeros_like(b0))
a1, b1 = start[1.0]
# the deviation is proportional to the feature
assert_close(start[0.1][0] - 1, 0.1 * (a1 - 1), rtol=1e-3, atol=1e-5)
assert_close(start[0.1][1], 0.1 * b1, rtol=1e-3, atol=1e-5)
assert abs(a1.mean() - 1) < 0.1 and abs(b1.mean()) < 0.1
assert 0.7 < a1.std() < 1.3 and 0.7 < b1.std() < 1.3

# independent: plain functions, copied weights
conv = torch.nn.functional.conv2d
first = head.scale[0].weight * (2 / (32 * 9)) ** 0.5
last = head.scale[1].weight * (1 / (32 * 9)) ** 0.5
hidden = torch.nn.functional.leaky_relu(conv(feature, first, padding=1), 0.2)
assert_close(a1, conv(hidden, last, padding=1) + 1, rtol=1e-4, atol=1e-4)

# %%
#| label: fig-csft-start
#| fig-cap: "Scale α and shift β of an untrained condition head, for features of three strengths."
#| fig-alt: "Histograms: narrow at weak features, wide at strong ones, centred at 1 for the scale and 0 for the shift."
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.5), layout="constrained", sharey=True)
for std, colour in ((0.1, "#0072B2"), (0.5, "#E69F00"), (1.0, "#D55E00")):
    for ax, values, name in zip(axes, start[std], ("α", "β")):
        ax.hist(values.flatten().numpy(), bins=np.linspace(-4, 5, 120), density=True,
                histtype="step", color=colour, label=f"std of F_spatial {std}")
        ax.set_xlabel(name)
axes[1].legend(fontsize=8), axes[0].set_ylabel("density");

# %% [markdown]
# @fig-csft-start: with features of variance 1 a good part of the scales is even negative. So the first pictures of a training run are *not* the prior's pictures. The official code starts the same way.
# Setting the last weights to zero would make the start exact (see the exercises).

# %% [markdown]
# ## What the split saves
#
# Half as many channels to predict means smaller heads; the paper compares it with GhostNet [@han2020ghostnet], which makes part of its features cheaply. How much smaller? Let the prior have $c$ channels at some resolution. The U-Net has $c/2$ there, which is also the width of the first convolution of each head. Only the last convolution depends on the split:
#
# $$P_{\mathrm{half}}=2\Big[2\big(9\tfrac{c^2}{4}+\tfrac c2\big)\Big],\qquad P_{\mathrm{full}}=2\Big[\big(9\tfrac{c^2}{4}+\tfrac c2\big)+\big(9\tfrac{c^2}{2}+c\big)\Big]=\tfrac32P_{\mathrm{half}}$$ {#eq-csft-cost}
#
# The factor 2 in front counts scale and shift. The cell builds the heads for the paper's widths on the `meta` device, which keeps shapes and no data.

# %%
count = lambda m: sum(p.numel() for p in m.parameters())
# no condition at 4 px
channels = {s: c for s, c in widths(512).items() if s > 4}
with torch.device("meta"):
    half = {s: count(ConditionHead(c // 2, c // 2)) for s, c in channels.items()}
    full = {s: count(ConditionHead(c // 2, c)) for s, c in channels.items()}
# @eq-csft-cost
for s, c in channels.items():
    assert half[s] == 4 * (9 * c * c // 4 + c // 2) and 2 * full[s] == 3 * half[s]
print(f"all heads at 512 px: split {sum(half.values()):,}, full {sum(full.values()):,}")
assert sum(half.values()) == 7_865_280

# %%
#| label: fig-csft-cost
#| fig-cap: "Parameters of the condition heads at each resolution of the 512 px model."
#| fig-alt: "Pairs of bars, equal from 8 to 32 px and shrinking above; the full transform is always half as large again."
fig, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
at = np.arange(len(channels))
ax.bar(at - 0.2, [n / 1e6 for n in half.values()], 0.4, color="#0072B2", label="half (CS-SFT)")
ax.bar(at + 0.2, [n / 1e6 for n in full.values()], 0.4, color="#D55E00", label="full (SFT)")
ax.set_xticks(at, [f"{s} px" for s in channels]), ax.set_ylabel("million parameters"), ax.legend();


# %% [markdown]
# The split removes exactly a third of the heads' parameters, at every resolution of @fig-csft-cost: 7,865,280 remain of 11,797,920. The saving is welcome. It is not the reason for the split.

# %% [markdown]
# ## The switch: none, full, half
#
# Table 4 of the paper compares three networks that differ in this layer only. They are one switch in @sec-gfpgan: `sft="none"`, `"full"` or `"half"`. What each of them *can* do follows from the equations, without any training. Take an extreme condition, $\alpha=0$ with any $\beta$, at all levels. Does the finest RGB share still depend on the prior's first code, and does it depend on the condition?

# %%
def finest_share(transform, w, condition):
    """RGB share of the last level (before the sum over levels), with the condition alpha = 0,
    beta = condition at every level."""
    kept = {}
    def modulate(h, k):
        if transform is None:
            return h
        channels = h.shape[1] // 2 if transform is cs_sft else h.shape[1]
        b = condition.expand(1, channels, *h.shape[2:])
        return transform(h, torch.zeros_like(b), b)
    hook = prior.synthesis.to_rgbs[-1].conv.register_forward_hook(lambda m, i, y: kept.update(y=y))
    prior.synthesis(w, modulate=modulate)
    hook.remove()
    return kept["y"]


def depends(transform):
    "Whether the finest share depends on (the first code, the condition)."
    v, condition = w.clone().requires_grad_(), torch.ones(1, 1, 1, 1, requires_grad=True)
    by_w, by_condition = torch.autograd.grad(finest_share(transform, v, condition).square().sum(),
                                             (v, condition), allow_unused=True)
    return bool(by_w[:, 0].any()), by_condition is not None and bool(by_condition.any())


table = {"none": depends(None), "full": depends(sft), "half": depends(cs_sft)}
print(table)
assert table == {"none": (True, False), "full": (False, True), "half": (True, True)}


# %% [markdown]
# | switch | in Table 4 | what reaches the picture | what can go wrong |
# |---|---|---|---|
# | `none` | a) no spatial modulation | the prior alone, steered by codes | a realistic face, but of somebody else |
# | `full` | b) SFT | whatever the scales let pass; the prior can be shut out | the face of the input, with the input's degradation |
# | `half` | the paper's model | both, always | a compromise, by construction |
#
# : The three settings of the switch {#tbl-csft-switch}
#
# @tbl-csft-switch puts the result in words. With `full` and $\alpha=0$ the prior's features no longer count, and the network is free to become a plain U-Net with a decoder attached. With `half` it cannot: half of the channels carry the prior whatever the heads predict.
# The paper reports the matching behaviour of trained networks. Without modulation the identity is lost; with the full transform the identity is kept slightly better than with the split, and the perceptual quality is worse.

# %% [markdown]
# ## Steering a picture through the hook
#
# The next cell uses the transform where GFP-GAN uses it: through the `modulate` hook, after the first convolution of a block. The "condition" is a hand-made mask in the shape of a face, with holes for eyes and mouth. The prior is untrained, so its picture is a pattern, and one sees all the better what the mask does.

# %%
def face_mask(size):
    "A face-shaped mask (1, 1, size, size) in [0, 1]: an ellipse, holes for two eyes and a mouth."
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    ellipse = lambda cx, cy, rx, ry: (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1).float()
    mask = (ellipse(0, 0, 0.6, 0.8) - ellipse(-0.25, -0.2, 0.14, 0.09)
            - ellipse(0.25, -0.2, 0.14, 0.09) - ellipse(0, 0.4, 0.25, 0.08))
    return torch.nn.functional.interpolate(mask[None, None], size=size, mode="area")


# one fixed direction per channel
shift = torch.randn(1, 64, 1, 1, generator=g)
features = {}


def steer(level, keep=True):
    "Hook: at one level, scale 1 - 0.7·mask and shift 2·mask, on half of the channels or on all."
    def modulate(h, k):
        if k != level:
            return h
        c = h.shape[1] // 2 if keep else h.shape[1]
        m = face_mask(h.shape[-1]).expand(1, c, -1, -1)
        out = (cs_sft if keep else sft)(h, 1 - 0.7 * m, 2 * m * shift[:, :c])
        features.update(before=h, after=out)
        return out
    return modulate


halved, filled = (prior.synthesis(w, modulate=steer(2, keep)) for keep in (True, False))
second = {}
# the convolution behind the hook
record = lambda m, i, y: second.update({len(second): y})
hook = prior.synthesis.convs[6].register_forward_hook(record)
prior.synthesis(w), prior.synthesis(w, modulate=steer(2))
hook.remove()
before, after, mask = features["before"], features["after"], face_mask(32)
# kept half: bit for bit
assert torch.equal(after[:, :32], before[:, :32])
# the rest: changed where the mask is, only there
assert torch.equal((after != before).any(1, keepdim=True), mask > 0)
# one convolution later every channel knows
assert (second[0] != second[1]).flatten(2).any(2).all()

# %%
#| label: fig-csft-steer
#| fig-cap: "An untrained prior steered at 32 px. Top: mask, plain picture, picture with CS-SFT, with full SFT. Bottom: a kept and a transformed channel, before and after."
#| fig-alt: "A face mask, an abstract pattern, two patterns in which the face shape appears, and four feature maps of which only the last shows the face."
pictures = [face_mask(64)[0].expand(3, -1, -1) * 2 - 1,
            *(t[0] / 3 for t in (plain, halved, filled))]
maps = [t[0, c] for c in (3, 40) for t in (before, after)]
names = ["mask", "plain", "half", "full", "kept, before", "kept, after", "transformed, before",
         "transformed, after"]
show(pictures + maps, names, cols=4, vmin=-2, vmax=2.5, height=1.7);

# %% [markdown]
# In @fig-csft-steer the face appears in the picture although the prior knows no faces and the code did not change. The kept channel is the same before and after. With the full transform the mask shows more strongly, because twice as many channels follow it.

# %% [markdown]
# ## An experiment: codes against maps
#
# How much can each route carry? The prior is frozen, and the numbers of one route are optimised until the output is as close as possible to a real 32 px face. Five routes compete:
#
# 1. all codes, one per layer (4,096 numbers, more than the 3,072 values of the picture);
# 2. $\alpha,\beta$ at all levels, but *constant over each map* (192 numbers);
# 3. $\alpha,\beta$ as maps at 8 px only (4,096 numbers, as many as the codes);
# 4. $\alpha,\beta$ as maps at 16 px only (16,384 numbers);
# 5. $\alpha,\beta$ as maps at all levels (86,016 numbers).
#
# The prior is untrained here, so this is no contest in beauty. It asks what each route can *express*, with the same optimiser, the same number of steps and the same frozen network.

# %%
torch.manual_seed(3)
tiny = StyleGAN2(32, 512, 2, narrow=1 / 8).requires_grad_(False)
target = to_tensor(example_faces(1, 32))
start_w = tiny.codes(tiny.mean_w(256, torch.Generator().manual_seed(0))).clone()


def fit(target, levels=(), spatial=True, steps=150):
    """Optimise the codes (no levels) or alpha, beta of the named levels; the synthesis stays as it
    is. -> picture, errors, how many numbers"""
    w = start_w.clone().requires_grad_(not levels)
    size = lambda k: (1, 32, 8 * 2**k, 8 * 2**k) if spatial else (1, 32, 1, 1)
    maps = {k: (torch.ones(size(k)).requires_grad_(), torch.zeros(size(k)).requires_grad_())
            for k in levels}
    free = [p for pair in maps.values() for p in pair] or [w]
    optimiser, errors = torch.optim.Adam(free, lr=0.05), []

    def modulate(h, k):
        return cs_sft(h, *(t.expand(-1, -1, *h.shape[2:]) for t in maps[k])) if k in maps else h

    for _ in range(steps):
        out = tiny.synthesis(w, noise="zero", modulate=modulate)
        loss = (out - target).square().mean()
        errors.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return out.detach()[0], errors, sum(p.numel() for p in free)


# %%
routes = {"codes": fit(target), "α, β constant": fit(target, (0, 1, 2), spatial=False),
          "α, β at 8 px": fit(target, (0,)),
          "α, β at 16 px": fit(target, (1,)), "α, β everywhere": fit(target, (0, 1, 2))}
final = {name: errors[-1] for name, (_, errors, _) in routes.items()}
for name, (_, errors, n) in routes.items():
    note = " or less" if final[name] < 1e-3 else ""
    print(f"{name:16} {n:6,} numbers, squared error {max(final[name], 1e-3):.1g}{note}")
assert [r[2] for r in routes.values()] == [4096, 192, 4096, 16384, 86016]
# all start from the same picture
assert all(abs(r[1][0] - routes["codes"][1][0]) < 1e-5 for r in routes.values())
# same count of numbers, better with a place
assert final["α, β at 8 px"] < 0.9 * final["codes"] < 0.9 * final["α, β constant"]
assert final["α, β at 16 px"] < 0.3 * final["codes"]
assert final["α, β everywhere"] < 0.01 * final["codes"]

# %%
#| label: fig-csft-curves
#| fig-cap: "Squared error while fitting one face with a frozen, untrained prior."
#| fig-alt: "Five falling curves; constant scales and codes level off early, spatial maps go far lower, the finer the lower."
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
colours = ("#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73")
for (name, (_, errors, n)), colour in zip(routes.items(), colours):
    ax.semilogy(errors, color=colour, label=f"{name} ({n:,})")
ax.set(xlabel="step", ylabel="mean squared error", ylim=(1e-5, 2))
ax.legend(fontsize=8, loc="lower left");

# %%
#| label: fig-csft-fits
#| fig-cap: "The face and the five fits."
#| fig-alt: "A small face; a blurred fit by codes, coloured blobs by constants, a recognisable fit at 8 px, a good one at 16 px, a perfect one with all maps."
show([target[0], *(r[0] for r in routes.values())], ["face", *routes], height=1.35);

# %% [markdown]
# @fig-csft-curves and @fig-csft-fits agree. The second route has the same levers as the last one, without the positions, and it fails. The third has as many numbers as the codes, in an 8 × 8 grid, and does better. With maps at 16 px the person is there.
# A trained prior would turn the codes' fit into a clean face. It would be somebody's face, and that is why earlier methods that search for codes alone lose the identity.
#
# The same freedom is also the danger. If the target is a noisy photo, the maps carry the noise as faithfully as the face:

# %%
noise = 0.4 * torch.randn(1, 3, 32, 32, generator=g)
noisy_fits = {"codes": fit(target + noise)[0], "α, β everywhere": fit(target + noise, (0, 1, 2))[0]}
kept_noise = {name: ((out - routes[name][0]) * noise[0]).sum().item() / noise.square().sum().item()
              for name, out in noisy_fits.items()}
print("share of the noise that reaches the output:", {k: f"{v:.1f}" for k, v in kept_noise.items()})
assert kept_noise["codes"] < 0.3 and kept_noise["α, β everywhere"] > 0.95

# %%
#| label: fig-csft-noise
#| fig-cap: "Fitting a noisy face: target, fit by codes, fit by maps at all levels."
#| fig-alt: "A noisy face, a smooth blurred fit, and a fit that repeats the noise exactly."
show([(target + noise)[0], *noisy_fits.values()], ["noisy target", *noisy_fits], height=1.6);

# %% [markdown]
# @fig-csft-noise explains two decisions of the method. The conditions come from a U-Net that is trained to remove the degradation first. And half of the channels are closed to them.

# %% [markdown]
# ## Put together
#
# One real face, the U-Net of @sec-unet, one head per level, and the frozen prior. All weights are random, so the output is no face yet. The check is about the wiring: gradients must reach the heads and the U-Net and must leave the prior alone. With the conditions faded to scale 1 and shift 0, exactly the prior's picture must come back.

# %%
torch.manual_seed(4)
prior_widths = widths(64, narrow=1 / 8)
unet = UNet({s: c // 2 for s, c in prior_widths.items()})
heads = nn.ModuleList(ConditionHead(c // 2, c // 2) for s, c in prior_widths.items() if s > 4)
face = to_tensor(example_faces(1, 64))
_, spatial, _ = unet(face)
conditions = [head(f) for head, f in zip(heads, spatial)]
assert [tuple(a.shape) for a, b in conditions] == [(1, 32, 8, 8), (1, 32, 16, 16), (1, 32, 32, 32),
                                                   (1, 16, 64, 64)]


def restore(t=1.0):
    """The prior's picture with all conditions faded by t: t = 0 is the prior alone, t = 1 the full
    influence of the input."""
    def modulate(h, k):
        alpha, beta = conditions[k]
        return cs_sft(h, 1 + t * (alpha - 1), t * beta)
    return prior.synthesis(w, modulate=modulate)


assert_close(restore(0.0), plain, rtol=0, atol=1e-5)
steered = prior.synthesis(w, modulate=lambda h, k: cs_sft(h, *conditions[k]))
assert_close(restore(1.0), steered, rtol=0, atol=1e-4)
(restore() - face).square().mean().backward()
assert all(p.grad is not None and p.grad.any() for p in heads.parameters())
assert unet.first.weight.grad.any() and all(p.grad is None for p in prior.parameters())
for (a, b), f in zip(conditions, spatial):
    print(f"{a.shape[-1]:2} px: F_spatial std {f.std():.1f}, "
          f"alpha {a.mean():.1f} ± {a.std():.1f}, beta {b.mean():+.1f} ± {b.std():.1f}")

# %%
#| label: fig-csft-face
#| fig-cap: "Untrained from end to end: the face, one scale map per level, and the prior's picture with the conditions faded in (t = 0, 0.3, 1)."
#| fig-alt: "A face; maps from 8 to 64 pixels in which its outline appears; three abstract patterns, the last with the outline of the face."
with torch.no_grad():
    grey = lambda m: (m - m.min()) / (m.max() - m.min())
    maps = [grey(a[0, 0]) for a, b in conditions]
    show([face[0], *maps, *(restore(t)[0] / 3 for t in (0, 0.3, 1))],
         ["input"] + [f"α, {m.shape[-1]} px" for m in maps] + [f"t = {t}" for t in (0, 0.3, 1)],
         cols=4, height=1.8);

# %% [markdown]
# Even with random weights the outline of the face is visible in the finest scale map of @fig-csft-face, and it leaves its trace in the picture at $t=1$. Position is preserved by construction. Training (@sec-train-restorer) has to turn the trace into a face.

# %% [markdown]
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | levels | "each resolution scale" | 8 px up to full size, none at 4 px | as official | the weights fit |
# | place | features of each scale | after the first (upsampling) convolution of each block, inside a copy of the generator | the same place, through the hook `modulate` | one generator class |
# | heads | two convolutions each | 3×3, leaky ReLU, 3×3; separate for scale and shift | the same | the weights fit |
# | start | not stated | last bias 1 and 0, weights random | the same | measured above: not the identity |
# | which half | left split passes | first half of the channels passes | the same | the weights fit |
# | full or half | Table 4 | option `sft_half` | `sft="none"`, `"full"`, `"half"` | all three rows of the ablation from one class |
# | wrong shapes | – | may broadcast | ValueError | a broadcast scale is a style in disguise |
#
# : Where the three versions of the transform differ {#tbl-csft-versions}
#
# @tbl-csft-versions is short, because the transform itself is one line.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# **"The restored face is somebody else."** This is the failure of codes without maps: the prior draws a plausible person. It returns in a mild form when the input is so degraded that the U-Net's features say nothing.
#
# **"The noise is still there."** This is the opposite failure. The maps carry whatever the U-Net leaves in its features.
#
# **"I want a knob between the two."** Users ask for a weight between fidelity and realness. The function `restore(t)` above is such a knob: it fades the conditions. A network that was trained at $t=1$ only has never seen the values between, so judge the result by eye.
# :::

# %% [markdown]
# ## Summary
#
# * A style value multiplies a whole channel. It cannot say where.
# * SFT (@eq-sft) gives every channel and position its own scale and shift, and can shut the prior out.
# * CS-SFT (@eq-cssft) does so for the second half of the channels; the first half passes bit for bit and costs nothing.
# * An untrained condition head is centred at scale 1 and shift 0, with a spread that is not small.
# * With a frozen prior, maps fit a face that codes cannot fit, and they fit noise just as well.
#
# Next: all parts are there, and @sec-gfpgan puts them together.
#
# ## Exercises
#
# 1. **Compute.** How many multiplications does one `ConditionHead` take at 512 px in the paper's model, for half and for full? Which share of all heads' multiplications is spent at 256 px and 512 px?
# 2. **Modify.** Set the last weights of all heads in *Put together* to zero. Show that `restore(1.0)` now equals the prior's picture, and that the first layers of the heads get no gradient in the first step. Why does training still start?
# 3. **Break.** Swap the two halves in `cs_sft`. Which checks of this chapter turn red, and which picture would have shown it?
#
# Worked solutions: [nbs/solutions/07_csft.ipynb](solutions/07_csft.ipynb).
#
# ## References
#
# The transform comes from @wang2018sft, and a closely related one for image synthesis from @park2019spade. The channel split and its place in the prior are those of @wang2021gfpgan, who compare the saving with @han2020ghostnet.

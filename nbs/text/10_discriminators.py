# %% [markdown]
# # Discriminators {#sec-discriminators}
#
# > A loss that nobody can write down can still be learned: show a network real and restored pictures and let it find the difference.
#
# **You will build** the networks that judge: one that gives a whole picture a score, and a small one that gives a map of scores for an eye or a mouth. They are needed only for training.
# **Needs** the equalised layers and the resampling of @sec-layers, the residual block of @sec-unet, and the table of widths of @sec-stylegan2.
# **Runs in** about 12 s on a laptop CPU.

# %%
#| default_exp discriminators

# %%
import json

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor

# %%
#| export
import torch
from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d, EqualizedLinear, Resample
from gfpgan_edu.stylegan2 import widths
from gfpgan_edu.unet import DownBlock

# %% [markdown]
# The restorer is built, and its weights can be loaded (@sec-weights). From here on it is trained, and training begins with somebody who judges.
# The networks of this chapter look at the last box of @fig-discriminators-map, and at real photos. They never see the damaged input.

# %%
#| label: fig-discriminators-map
#| fig-cap: "Discriminators judge the restored face; they are not part of the restorer."
#| fig-alt: "The method as boxes and arrows; the box with the restored face is coloured."
draw_map("output");

# %% [markdown]
# ## What a distance cannot reward
#
# A damaged photo does not say where each hair was. Many sharp pictures agree with it, and a distance to the one true picture punishes all of them but one.
# The cell shows this with stripes. The truth has a phase that the input does not tell. One candidate is sharp and has some phase; the other is flat grey.

# %%
torch.set_num_threads(1)             # quickest for small nets, and the same sums on every machine
at = np.linspace(0, 2 * np.pi, 360, endpoint=False)
stripes = lambda phase: np.sin(5 * at + phase)
truths = [stripes(p) for p in at]    # all phases are equally likely
sharp, flat = stripes(0.0), np.zeros(360)
mean_distance = lambda x: float(np.mean([np.abs(x - y).mean() for y in truths]))
distance = {"sharp": mean_distance(sharp), "flat": mean_distance(flat)}
print({k: round(v, 3) for k, v in distance.items()})
np.testing.assert_allclose(list(distance.values()), [8 / np.pi**2, 2 / np.pi], rtol=1e-3)

# %%
#| label: fig-discriminators-stripes
#| fig-cap: "Two truths that are equally likely, a sharp guess and a flat one. In the mean over all phases the flat guess is closer to the truth."
#| fig-alt: "Three striped strips with different phases and a grey strip."
strips = [np.tile(v, (90, 1)) for v in (stripes(1.0), stripes(2.5), sharp, flat)]
guesses = [f"{name} guess: {d:.2f}" for name, d in distance.items()]
show(strips, ["truth, phase 1", "truth, phase 2.5", *guesses], cols=2, height=0.7, vmin=-1, vmax=1);

# %% [markdown]
# A distance prefers the grey strip of @fig-discriminators-stripes, although no truth is grey. A judge that has seen true strips, and sees *one* strip at a time without its truth, would reject the grey one at once. Such a judge is a **discriminator**.

# %% [markdown]
# ## What the score means
#
# A discriminator $D$ turns a picture $x$ into a number, the *score*. Its sigmoid is the probability, in the judge's opinion, that the picture is real [@goodfellow2014gan]:
#
# $$P(\text{real}\mid x)=\sigma(D(x))=\frac1{1+e^{-D(x)}},\qquad \mathcal L_D=\mathbb E_{y}\big[-\log\sigma(D(y))\big]+\mathbb E_{\hat y}\big[-\log(1-\sigma(D(\hat y)))\big]$$ {#eq-discriminators-loss}
#
# $y$ are real pictures, $\hat y$ made ones, and $\mathcal L_D$ is what the judge minimises. If $p(x)$ and $q(x)$ say how often $x$ occurs among the real and the made ones, the best score is
#
# $$D^\star(x)=\log\frac{p(x)}{q(x)}.$$ {#eq-discriminators-best}
#
# So the score is a log ratio: 0 means "cannot tell", 2.3 means "ten times as common among the real ones". The check lets an optimiser find the scores of a world with five pictures. The softplus $\log(1+e^s)=-\log(1-\sigma(s))$ is how such losses are written without overflow.

# %%
p, q = torch.tensor([0.40, 0.25, 0.20, 0.10, 0.05]), torch.tensor([0.05, 0.15, 0.20, 0.20, 0.40])
scores = torch.zeros(5, requires_grad=True)
optimiser = torch.optim.Adam([scores], lr=0.1)
for _ in range(400):
    optimiser.zero_grad()
    # @eq-discriminators-loss, expectations written out
    loss = (p * F.softplus(-scores) + q * F.softplus(scores)).sum()
    loss.backward()
    optimiser.step()
assert_close(scores.detach(), (p / q).log(), rtol=0, atol=1e-3)

# %%
#| label: fig-discriminators-best
#| fig-cap: "Five pictures: how common they are among real and made ones, and the scores that an optimiser finds, with the log ratio of @eq-discriminators-best as crosses."
#| fig-alt: "Left pairs of bars that cross in the middle; right bars from plus two to minus two with a cross at each end."
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.4), layout="constrained")
k = np.arange(5)
left.bar(k - 0.2, p, 0.4, color="#0072B2", label="real, p")
left.bar(k + 0.2, q, 0.4, color="#D55E00", label="made, q")
left.set(xlabel="picture", ylabel="how common"), left.legend(fontsize=8)
right.bar(k, scores.detach(), 0.5, color="#56B4E9", label="score found")
right.plot(k, (p / q).log(), "kx", label="log p/q")
right.axhline(0, color="k", lw=0.8), right.set(xlabel="picture"), right.legend(fontsize=8);


# %% [markdown]
# In @fig-discriminators-best picture 2 is equally common in both worlds and scores 0. A maker who wants better scores has to make more of picture 0 and less of picture 4. That is the whole idea; the rest of the chapter is about judges for pictures that have a million values.

# %% [markdown]
# ## A crowd of equals gives itself away
#
# A judge that sees one picture at a time can be satisfied with one perfect face, made again and again. StyleGAN's discriminator therefore also sees how much the pictures of a batch *differ* [@karras2018progressive]. It appends one map to its last feature $h\in\mathbb R^{b\times c\times s\times s}$:
#
# $$m_G=\frac1{c\,s^2}\sum_{k,u,v}\sqrt{\frac1{|G|}\sum_{i\in G}\big(h_{ikuv}-\bar h_{kuv}\big)^2+\varepsilon}$$ {#eq-discriminators-stddev}
#
# $G$ is a group of samples, $\bar h$ its mean, $k$ a channel, $(u,v)$ a place, $\varepsilon=10^{-8}$. Every sample of the group gets a constant map with the value $m_G$.

# %%
#| export
def minibatch_stddev(h, group=4):
    """Append one map that tells how much the samples of a group differ.

    h (b, c, s, s) -> (b, c + 1, s, s). The group is the largest divisor of b that is at most
    `group`; sample i belongs with i + b/g, i + 2b/g, … (as in StyleGAN2).
    """
    b, c, s, _ = h.shape
    g = next(g for g in range(min(b, group), 0, -1) if b % g == 0)
    groups = h.view(g, b // g, c, s, s)
    spread = (groups.var(0, unbiased=False) + 1e-8).sqrt()    # over the group: (b/g, c, s, s)
    m = spread.mean((1, 2, 3)).repeat(g)                      # one value per sample: (b,)
    return torch.cat([h, m[:, None, None, None].expand(b, 1, s, s)], 1)


# %% [markdown]
# Who is in which group? With group 4 and a batch of 8 there are two groups, and sample $i$ belongs with $i+2$, $i+4$ and $i+6$: the even ones and the odd ones. The check takes the definition literally, one number at a time.

# %%
rng = torch.Generator().manual_seed(0)
h = torch.randn(8, 3, 2, 2, generator=rng, dtype=torch.float64)
got = minibatch_stddev(h)
for i in range(8):
    mates = [j for j in range(8) if j % 2 == i % 2]
    total = 0.0
    for k, u, v in np.ndindex(3, 2, 2):
        values = [h[j, k, u, v].item() for j in mates]
        total += (sum((x - sum(values) / 4) ** 2 for x in values) / 4 + 1e-8) ** 0.5
    assert torch.equal(got[i, :3], h[i])    # the feature itself passes
    assert_close(got[i, 3], torch.full((2, 2), total / 12, dtype=torch.float64))
# limit: equal samples, √ε is left
same = minibatch_stddev(h[:1].expand(4, -1, -1, -1))
assert_close(same[:, 3], torch.full((4, 2, 2), 1e-4, dtype=torch.float64))

# %% [markdown]
# Two things follow from the rule. First, the group must divide the batch. The official code takes `min(b, 4)` and fails on a batch of 5. Ours takes the largest divisor up to 4, so a batch of 5 gets groups of one, whose spread says nothing.
# Second, the groups decide what happens on several GPUs. Let each of $n$ processes take the samples $i$ with $i \bmod n$ equal to its number. Then its groups are the groups of the whole batch, as long as both take the same group size.

# %%
group_of = {}
for b in (1, 2, 3, 4, 5, 6, 8, 12):
    group_of[b] = next(g for g in range(min(b, 4), 0, -1) if b % g == 0)
    assert minibatch_stddev(torch.randn(b, 2, 4, 4, generator=rng)).shape == (b, 3, 4, 4)
print("batch -> group:", group_of)

whole = got[:, 3, 0, 0]
for rank in (0, 1):                                    # two processes with four samples each
    assert_close(minibatch_stddev(h[rank::2])[:, 3, 0, 0], whole[rank::2])
blocks = torch.cat([minibatch_stddev(half)[:, 3, 0, 0] for half in (h[:4], h[4:])])
print("one process:      ", [f"{v:.2f}" for v in whole])
print("two, first/second half:", [f"{v:.2f}" for v in blocks])
assert not torch.allclose(blocks, whole, atol=0.01)    # halves in order would be other groups


# %%
#| label: fig-discriminators-crowd
#| fig-cap: "The appended value for four different crops, for four that are nearly equal, and for one crop four times (the pictures themselves serve as features)."
#| fig-alt: "Three rows of four small faces; the value falls from row to row."
def faces(n, size, seed=0):
    "n shifted, scaled and flipped crops of the example face, uint8 (n, size, size, 3)."
    resize = lambda f: cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA)
    return np.stack([resize(f) for f in example_faces(n, 128, seed)])


four = to_tensor(faces(4, 48))
nearly_equal = four[:1] + 0.05 * torch.randn(4, 3, 48, 48, generator=rng)
rows = [four, nearly_equal, four[:1].expand(4, -1, -1, -1)]
values = [minibatch_stddev(r)[0, 3, 0, 0].item() for r in rows]
assert values[0] > 5 * values[1] > 25 * values[2]
titles = [f"m = {v:.2g}" for v in values for _ in range(4)]
show([x for r in rows for x in r], titles, cols=4, height=1.2);


# %% [markdown]
# The last row of @fig-discriminators-crowd is a generator that has collapsed to one picture. One number exposes it.

# %% [markdown]
# ## A judge of whole pictures
#
# The rest of StyleGAN2's discriminator is plain [@karras2020stylegan2]. A 1×1 convolution lifts the picture to features; residual blocks halve the size until it is 4×4; the spread is appended; one convolution and two linear layers make the score. There is no normalisation layer, and no sigmoid at the end: the losses want scores.
# The residual block is the one by which the U-Net goes down, so the class imports it. The official code, too, uses one block for both.

# %%
#| export
class Discriminator(nn.Module):
    """The judge of whole pictures, as in StyleGAN2: x (b, 3, size, size) -> scores (b, 1).

    Scores are high for real. log2(size) - 2 residual blocks down to 4×4, the spread of the
    minibatch, two linear layers. FIR resampling.
    """

    def __init__(self, size=512, channel_multiplier=1.0, narrow=1.0, stddev_group=4):
        super().__init__()
        self.config = dict(size=size, channel_multiplier=channel_multiplier, narrow=narrow,
                           stddev_group=stddev_group)
        n = widths(size, channel_multiplier, narrow)
        self.first = EqualizedConv2d(3, n[size], 1, gain=SQRT2, activate=True)
        self.blocks = nn.ModuleList(DownBlock(n[s], n[s // 2]) for s in sorted(n)[:0:-1])
        self.last = EqualizedConv2d(n[4] + 1, n[4], gain=SQRT2, activate=True)
        self.hidden = EqualizedLinear(n[4] * 16, n[4], gain=SQRT2, activate=True)
        self.score = EqualizedLinear(n[4], 1)
        self.stddev_group = stddev_group

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        h = self.last(minibatch_stddev(h, self.stddev_group))
        return self.score(self.hidden(h.flatten(1)))


# %% [markdown]
# The blocks have their own check in @sec-unet. What is new here is the order of the layers and the gains around them. The next cell rebuilds the network from plain functions, with the same weights: an equalised layer is weight over the root of its fan-in, plus bias, and $\sqrt2$ times the leaky ReLU.

# %%
torch.manual_seed(0)
small = Discriminator(16, narrow=1 / 32).double().requires_grad_(False)
for b in (m for name, m in small.named_parameters() if name.endswith("bias")):
    b.normal_()    # zeros would hide a forgotten bias
x = torch.randn(4, 3, 16, 16, generator=rng, dtype=torch.float64)
act = lambda t: 2**0.5 * F.leaky_relu(t, 0.2)
scaled = lambda m: m.weight / m.weight[0].numel() ** 0.5
h = act(F.conv2d(x, scaled(small.first), small.first.bias))
for block in small.blocks:
    h = block(h)
spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean()    # four samples: one group
h = torch.cat([h, spread.expand(4, 1, 4, 4)], 1)
h = act(F.conv2d(h, scaled(small.last), small.last.bias, padding=1)).flatten(1)
h = act(F.linear(h, scaled(small.hidden), small.hidden.bias))
assert_close(small(x), F.linear(h, scaled(small.score), small.score.bias))

# %% [markdown]
# At 512 px the judge has 24 million parameters, in ten stages. The meta device builds it without memory.

# %%
#| label: fig-discriminators-parameters
#| fig-cap: "Parameters of the discriminator at 512 px, stage by stage."
#| fig-alt: "Bars: nearly nothing at 512 to 128 px, about five million per stage from 32 px down, and four million for the linear layers."
count = lambda m: sum(p.numel() for p in m.parameters())
with torch.device("meta"):
    paper = Discriminator(512)
stages = {"first": paper.first, **{f"{512 >> i}→{256 >> i}": b for i, b in enumerate(paper.blocks)},
          "last conv": paper.last, "linear": nn.ModuleList([paper.hidden, paper.score])}
assert sum(map(count, stages.values())) == count(paper) == 24_030_753
cost = lambda b: count(b.conv1) * 4 + count(b.conv2) + count(b.skip)
work = [cost(b) / 4**i for i, b in enumerate(paper.blocks)]    # weights × places
# half the size, twice the width: as much work
np.testing.assert_allclose(work[:4], work[0], rtol=0.01)
assert sum(work[:4]) > 0.75 * sum(work)
fig, ax = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
ax.bar(list(stages), [count(m) / 1e6 for m in stages.values()], color="#0072B2")
ax.set_ylabel("million parameters"), ax.tick_params(axis="x", labelsize=8);


# %% [markdown]
# @fig-discriminators-parameters: the weights sit where the picture is small. The work does not: down to 64 px each stage has half the size and twice the width of the one before, and takes as many multiplications. @sec-train-restorer uses narrow versions of the same class.

# %% [markdown]
# ## A judge of parts
#
# A face is judged by its eyes and its mouth. In a score for the whole picture an eye has little weight, so GFP-GAN adds three small judges: left eye, right eye, mouth. Each sees only its crop.
# Their answer is a *map* of scores. Six convolutions, two of them with stride 2, make one score for each 4×4 pixels of the crop; there is no linear layer that would tie all places together.
#
# Two features on the way are handed out as well. They serve the feature style loss of @sec-losses, for which no pretrained network is needed: the judge itself learns which features matter.

# %%
#| export
class ComponentDiscriminator(nn.Module):
    """The judge of one part of the face: a map of scores, and two features.

    Crop x (b, 3, h, w) -> (scores (b, 1, h/4, w/4), [f1 (b, 2c, h/2, w/2), f2 (b, 4c, h/4, w/4)]).
    Six convolutions, two of them with stride 2, so each score sees a patch. f1, f2 feed the
    feature style loss (@eq-comp). c = width.
    """

    def __init__(self, width=64):
        super().__init__()
        conv = lambda cin, cout: EqualizedConv2d(cin, cout, gain=SQRT2, activate=True)
        self.conv1 = conv(3, width)
        self.conv2 = conv(width, 2 * width)
        self.conv3 = conv(2 * width, 2 * width)
        self.conv4 = conv(2 * width, 4 * width)
        self.conv5 = conv(4 * width, 4 * width)
        self.score = EqualizedConv2d(4 * width, 1)
        self.resample = Resample("fir")

    def forward(self, x):
        down = lambda conv, h: conv(self.resample.smooth(h, pad=2), stride=2, padding=0)
        f1 = self.conv3(down(self.conv2, self.conv1(x)))
        f2 = self.conv5(down(self.conv4, f1))
        return self.score(f2), [f1, f2]


# %%
torch.manual_seed(1)
part = ComponentDiscriminator().requires_grad_(False)
eye = to_tensor(example_faces(1, 512))[:, :, 200:280, 150:230]
scores, taps = part(eye)
assert scores.shape == (1, 1, 20, 20)
assert [tuple(f.shape[1:]) for f in taps] == [(128, 40, 40), (256, 20, 20)]
mouth_scores, _ = part(to_tensor(example_faces(1, 512))[:, :, 315:435, 193:313])
assert mouth_scores.shape == (1, 1, 30, 30) and count(part) == 1_110_785
shifted, _ = part(eye.roll((4, 8), (2, 3)))    # property: scores move with the picture
assert_close(shifted[..., 8:14, 8:14], scores[..., 7:13, 6:12], rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## How much one score sees
#
# A score of the map judges a patch: its *receptive field*. Going through the layers $l$ with kernel size $k_l$ and stride $t_l$, the field grows by
#
# $$r_l=r_{l-1}+(k_l-1)\,j_{l-1},\qquad j_l=j_{l-1}\,t_l,\qquad r_0=j_0=1$$ {#eq-discriminators-field}
#
# where $j_l$ is the distance in pixels between neighbouring entries of layer $l$. Before each stride there is a low-pass filter of four taps, which counts as a layer. The check needs no formula. It asks which pixels change one score at all: the gradient of that score, with random weights, is zero elsewhere.

# %%
# conv1, filter, conv2, conv3, filter, conv4, conv5, score
layers = [(3, 1), (4, 1), (3, 2), (3, 1), (4, 1), (3, 2), (3, 1), (3, 1)]
field, jump = 1, 1
for k, t in layers:
    field, jump = field + (k - 1) * jump, jump * t
x = eye.clone().requires_grad_(True)
(grad,) = torch.autograd.grad(part(x)[0][0, 0, 9, 10], x)
sees = grad[0].abs().sum(0)
rows, cols = sees.sum(1).nonzero().flatten(), sees.sum(0).nonzero().flatten()
print(f"one score sees {len(rows)} × {len(cols)} pixels, "
      f"rows {rows[0]}…{rows[-1]}, columns {cols[0]}…{cols[-1]}")
assert field == len(rows) == len(cols) == 38 and jump == 4
assert (rows[0], cols[0]) == (4 * 9 - 17, 4 * 10 - 17)

# %%
#| label: fig-discriminators-field
#| fig-cap: "Left: an 80 px crop of an eye, with the patch of one score. Middle: how strongly each pixel moves that score. Right: the map of 20×20 scores of the untrained judge, that score marked."
#| fig-alt: "An eye with a square around its iris; a bright blob that fades towards the border of the same square; a coarse map in which the eye can be guessed."
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.6), layout="constrained")
axes[0].imshow((eye[0].permute(1, 2, 0) + 1) / 2)
axes[1].imshow(sees.sqrt(), cmap="magma")
axes[2].imshow(scores[0, 0], cmap="viridis")
patch = (cols[0], rows[0], 38)
for ax, (cx, cy, side) in zip(axes, (patch, patch, (10, 9, 1))):
    square = plt.Rectangle((cx - 0.5, cy - 0.5), side, side, fill=False, ec="#E69F00", lw=2)
    ax.add_patch(square), ax.axis("off")
for ax, name in zip(axes, ("crop and patch", "√ of the gradient", "scores")):
    ax.set_title(name, fontsize=9)


# %% [markdown]
# The patch of @fig-discriminators-field covers the iris and a little more, and its middle counts most. So such a judge looks at texture: lashes, the edge of the iris, teeth. Whether the two eyes look in the same direction is beyond it; that remains the business of the whole-picture judge.

# %% [markdown]
# ## Teaching one
#
# Now a small `Discriminator` for 32 px learns to tell crops of a portrait from the same crops after a degradation. Real and damaged pictures pass in two batches, as in the official code: mixed in one batch, the spread of @eq-discriminators-stddev would be computed over both kinds.
# The judge is tested on crops that it was not trained on. They show the same person in the same light, so this is an easy exam.

# %%
def pair(n, seed, size=32):
    "n crops and the same crops degraded, both (n, 3, size, size)."
    y = faces(n, size, seed)
    damage = dict(sigma_x=1.2, sigma_y=1.2, kernel_size=9, r=2.0, delta=8.0, q=80)
    params = [DegradationParams(**damage, noise_seed=1000 * seed + i) for i in range(n)]
    return to_tensor(y), to_tensor(np.stack([degrade(face, p) for face, p in zip(y, params)]))


def teach(net, batches, steps=60, beta=0.0):
    """Minimise @eq-discriminators-loss -> losses.

    `batches()` gives real and made pictures, `net` scores of any shape.
    """
    optimiser, losses = torch.optim.Adam(net.parameters(), 1e-2, betas=(beta, 0.99)), []
    for _ in range(steps):
        score = lambda x: net(x)[0] if isinstance(net, ComponentDiscriminator) else net(x)
        real, made = batches()
        loss = F.softplus(-score(real)).mean() + F.softplus(score(made)).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(2)
judge = Discriminator(32, narrow=1 / 32)
(real, made), (new_real, new_made) = pair(64, 0), pair(64, 1)
draw = lambda: (real[k := torch.randperm(64)[:8]], made[k])
with torch.no_grad():
    before = judge(new_real).flatten(), judge(new_made).flatten()
losses = teach(judge, draw)
with torch.no_grad():
    after = judge(new_real).flatten(), judge(new_made).flatten()
print(f"loss {losses[0]:.1f} -> {losses[-1]:.1f}; parameters {count(judge):,}")
right = lambda s: ((s[0] > 0).float().mean() + (s[1] < 0).float().mean()).item() / 2
assert right(after) > 0.95
assert abs(losses[0] - 2 * np.log(2)) < 0.1    # it starts at "cannot tell"

# %%
#| label: fig-discriminators-taught
#| fig-cap: "Left: some crops, and the same ones degraded. Right: histograms of the scores of new crops, before training and after 60 steps."
#| fig-alt: "Two rows of small faces, the lower ones blurred; above overlapping histograms near zero, below two separate ones."
fig = plt.figure(figsize=(8, 2.8), layout="constrained")
left, right_side = fig.subfigures(1, 2, width_ratios=(1, 1.3))
for ax, x in zip(left.subplots(2, 3).flat, (*new_real[:3], *new_made[:3])):
    ax.imshow((x.permute(1, 2, 0) + 1) / 2), ax.axis("off")
bins = np.linspace(-9, 9, 73)
axes = right_side.subplots(2, 1, sharex=True)
for ax, (a, b), name in zip(axes, (before, after), ("before", "after")):
    ax.hist(a.numpy(), bins, color="#0072B2", alpha=0.7, label="real")
    ax.hist(b.numpy(), bins, color="#D55E00", alpha=0.7, label="degraded")
    ax.set_ylabel(name), ax.legend(fontsize=8)
ax.set_xlabel("score");

# %% [markdown]
# After a second of training the two histograms of @fig-discriminators-taught have nothing in common. This is how every adversarial training of a restorer begins: its first results are blurred, the judge notices at once, and the generator is told what is missing.
# It is also the danger. A judge that wins too easily gives large scores and steep gradients. @sec-losses adds the penalty that keeps it smooth.

# %% [markdown]
# ## Put together
#
# A map of scores says *where* a picture is wrong. To see it, a narrow `ComponentDiscriminator` is taught on 48 px patches, real against degraded. As it has no linear layer, it takes pictures of any size, so it can then be shown a whole 128 px face of which only the right half is degraded.

# %%
torch.manual_seed(3)
patches, bad_patches = pair(16, 2, 128)


def draw_patches(n=8, side=48):
    which, corners = torch.randint(0, 16, (n,)), torch.randint(0, 128 - side, (2, n))
    at = list(zip(which.tolist(), *corners.tolist()))
    cut = lambda x: torch.stack([x[i, :, r:r + side, c:c + side] for i, r, c in at])
    return cut(patches), cut(bad_patches)


local = ComponentDiscriminator(8)
# the official code, too, gives the judges of parts β₁ = 0.9
losses = teach(local, draw_patches, 250, beta=0.9)
face, bad = pair(1, 3, 128)
half = torch.cat([face[..., :64], bad[..., 64:]], -1)
with torch.no_grad():
    verdict = local(half)[0].sigmoid()[0, 0]    # P(real), 32 × 32
untouched, degraded = verdict[:, :14].mean(), verdict[:, 18:].mean()
print(f"mean P(real): untouched half {untouched:.2f}, degraded half {degraded:.2f}")
assert untouched > 0.65 and degraded < 0.35

# %%
#| label: fig-discriminators-where
#| fig-cap: "A face, its degraded version, the two halves joined, and the judge's probability that each place is real."
#| fig-alt: "Three portraits, the last one sharp on the left and blurred on the right, and a map that is bright on the left and dark on the right."
fig, axes = plt.subplots(1, 4, figsize=(6.8, 1.9), layout="constrained")
for ax, x, name in zip(axes, (face[0], bad[0], half[0]), ("real", "degraded", "joined")):
    ax.imshow((x.permute(1, 2, 0) + 1) / 2), ax.set_title(name, fontsize=9), ax.axis("off")
seen = axes[3].imshow(verdict, cmap="viridis", vmin=0, vmax=1)
axes[3].set_title("P(real)", fontsize=9), axes[3].axis("off"), fig.colorbar(seen, ax=axes[3]);


# %% [markdown]
# The seam is where it should be in @fig-discriminators-where. In smooth places the judge is less sure: a plain wall looks nearly the same sharp and blurred, and @eq-discriminators-best says that the honest score there is near 0.

# %% [markdown]
# ## Official weights
#
# The official training saves its discriminators, and somebody who wants to go on from there needs them. The tensors are the same, only the names differ.

# %%
#| export
def official_names(net):
    "(our key, official key) for every tensor of a `Discriminator` or a `ComponentDiscriminator`."
    both = lambda ours, theirs: [(f"{ours}.{p}", f"{theirs}.{p}") for p in ("weight", "bias")]

    def conv(ours, theirs, i):
        return [(f"{ours}.weight", f"{theirs}.{i}.weight"),
                (f"{ours}.bias", f"{theirs}.{i + 1}.bias")]

    if isinstance(net, ComponentDiscriminator):
        convs = [conv(f"conv{i}", f"conv{i}", int(i in (2, 4))) for i in range(1, 6)]
        return sum(convs, []) + both("score", "final_conv.0")
    pairs = conv("first", "conv_body.0", 0)
    for i in range(len(net.blocks)):
        ours, theirs = f"blocks.{i}", f"conv_body.{i + 1}"
        pairs += conv(f"{ours}.conv1", f"{theirs}.conv1", 0)
        pairs += conv(f"{ours}.conv2", f"{theirs}.conv2", 1)
        pairs.append((f"{ours}.skip.weight", f"{theirs}.skip.1.weight"))
    pairs += conv("last", "final_conv", 0)
    return pairs + both("hidden", "final_linear.0") + both("score", "final_linear.1")


def load_official(net, state, source="state dict"):
    """Fill `net` from the official state dict of its kind; returns net.

    Names or shapes that differ are a ValueError.
    """
    own, pairs = net.state_dict(), official_names(net)
    odd = sorted({theirs for _, theirs in pairs} ^ set(state))
    odd += [theirs for ours, theirs in pairs
            if theirs in state and state[theirs].shape != own[ours].shape]
    if odd:
        raise ValueError(f"{source}: not a {type(net).__name__} of this size; "
                         f"{len(odd)} names or shapes differ, first {odd[0]}")
    net.load_state_dict({ours: state[theirs] for ours, theirs in pairs})
    return net


# %% [markdown]
# The names and shapes of both official networks are among the test data of this project. Ours must give the same list. Then a state dict makes the round trip, and two wrong ones are refused.

# %%
with open("../tests/data/official_discriminators.json") as f:
    official = json.load(f)
with torch.device("meta"):
    nets = {"discriminator": Discriminator(512), "component": ComponentDiscriminator()}
for kind, net in nets.items():
    shapes = {k: list(v.shape) for k, v in net.state_dict().items()}
    renamed = {theirs: shapes[ours] for ours, theirs in official_names(net)}
    assert renamed == official[kind]["state_dict"]
    assert count(net) == official[kind]["parameters"]
    print(f"{kind}: {len(shapes)} tensors, {count(net):,} parameters")

state = {theirs: local.state_dict()[ours] for ours, theirs in official_names(local)}
again = load_official(ComponentDiscriminator(8), state)
assert torch.equal(again(half)[0], local(half)[0])
wrong_width = lambda: load_official(ComponentDiscriminator(16), state, "net_d_mouth.pth")
test_fail(wrong_width, exc=ValueError,
          contains="net_d_mouth.pth: not a ComponentDiscriminator of this size")
test_fail(lambda: load_official(judge, state), exc=ValueError, contains="not a Discriminator")

# %% [markdown]
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | whole picture | "similar to StyleGAN2" | StyleGAN2's discriminator, channel multiplier 1 | the same | its weights load |
# | down-blocks | – | the class that the U-Net also uses | the same | one class |
# | spread, group | – | `min(b, 4)`, which has to divide the batch | the largest divisor of the batch up to 4 | any batch works; equal where theirs works |
# | several GPUs | batch 12 on four | groups of the 3 samples of a GPU | sample $i$ goes to process $i \bmod n$ | the groups of one process, where the size of the group is the same |
# | judges of parts | "small local discriminators" | six convolutions, a map of scores, width fixed to 64 | the same, width free | narrow ones for small faces |
# | features of the judge | "multiple layers" | two, after the third and fifth convolution | always returned | one signature |
# | output | – | scores, no sigmoid | the same | the losses take scores |
# | start | – | random | the same | a judge has nothing to remember |
#
# : Where the three versions of the discriminators differ {#tbl-discriminators-versions}
#
# The outputs of both networks in @tbl-discriminators-versions agree with the official ones on copied weights; the tests compare them in single and double precision.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# **"The score of the judge is −10,000,000,000."** A user of the official code saw this after 25,000 good iterations (GFPGAN, thread 270): within three iterations the pixel loss went from 0.008 to 1e27. Scores of a healthy run stay within a few units of 0, as their meaning as log ratios suggests. Log their means; when they run away, go back to an earlier checkpoint. @sec-engine stops at the first number that is not finite.
#
# **"Which discriminator do I load?"** None, as a rule: the official recipe trains all four from scratch. To go on with a run, load those of *that* run. A fresh judge beside a trained generator gives a bad start, because it knows nothing that the generator does not.
#
# **"It fails at batch 5."** See above: the official group of 4 has to divide the batch, unless the batch is smaller than 4. The last, incomplete batch of an epoch is enough to trigger it.
# :::

# %% [markdown]
# ## Summary
#
# * A distance to one truth rewards blur; a judge that sees one picture at a time does not.
# * A score is a log ratio of how common a picture is among real and made ones (@eq-discriminators-best).
# * The spread of a group of samples (@eq-discriminators-stddev) exposes a generator that repeats itself. The group divides the batch, and interleaved shares keep the groups.
# * The judge of whole pictures is the U-Net's way down with a score at the end: 24,030,753 parameters at 512 px.
# * The judge of parts gives a score for each patch of 38×38 pixels, and two features: 1,110,785 parameters.
#
# What the generator makes of these scores is a matter of @sec-losses.
#
# ## Exercises
#
# 1. **Compute.** How large would the patch of one score be with a third stride-2 convolution (and its filter) before the last one? At which crop size would each score see the whole crop?
# 2. **Modify.** Append the spread of *each channel* instead of their mean, so that `minibatch_stddev` returns $2c$ channels. Which lines of `Discriminator` have to change, and which official weights still load?
# 3. **Break.** Replace `h.view(g, b // g, …)` by `h.view(b // g, g, …)` with the variance over the second axis. Which checks turn red? Would the training on one GPU become worse?
#
# Worked solutions: [nbs/solutions/10_discriminators.ipynb](solutions/10_discriminators.ipynb).
#
# ## References
#
# The game of two networks is from @goodfellow2014gan, the spread of the minibatch from @karras2018progressive, the residual discriminator from @karras2020stylegan2. Judges that score patches became common with @isola2017pix2pix. The judges of facial parts are those of @wang2021gfpgan.

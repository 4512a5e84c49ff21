# %% [markdown]
# # Identity {#sec-identity}
#
# > A sharp face can still be somebody else's.
#
# **You will build** the judge behind the identity loss: the grey input of the official code, the ArcFace network with the official names, the angle between two faces, the margin loss such networks are trained with, a small embedder that comes with the package, and a way in for the networks of others.
# **Needs** the losses of @sec-losses, aligned faces from @sec-faces, the weight files of @sec-weights, and the damage of @sec-degradation.
# **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp identity

# %%
import copy
import json
import tempfile
from unittest.mock import patch

import cv2
import matplotlib.pyplot as plt
import numpy as np
import onnx.reference
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import template, to_images, to_tensor
from gfpgan_edu.losses import identity

# %%
#| export
import math
import textwrap
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.faces import FFHQ_512, invert, similarity
from gfpgan_edu.weights import WeightsError, load, read_state

# %% [markdown]
# One judge of @sec-losses is still missing. The identity loss looks at the very end of the chain in @fig-identity-map: at the restored face, beside the true one. It adds no part to the restorer. It is used in training, and again as a measure when results are compared.

# %%
#| label: fig-identity-map
#| fig-cap: "This chapter builds a judge of the last box: is the restored face still the same person?"
#| fig-alt: "The method as boxes and arrows; the box for the restored face is coloured."
draw_map("output");


# %% [markdown]
# ## Faces as directions
#
# A prior that has seen thousands of faces can put a perfect stranger into the picture. Pixel losses hardly notice: a slightly wider nose is a small error. What is needed is a distance that is small for two pictures of one person, and large for two people, however lit or framed.
#
# Such a distance comes from an *embedding*: a function $\eta$ that turns a picture into a short vector, so that the vectors of one person point the same way. The identity loss, @eq-id, is in words: embed the restored face, embed the true face, and take the mean absolute difference of the two vectors.
# As a measure one takes the angle instead. The paper calls it Deg.:
#
# $$\theta(a,b)=\frac{180}{\pi}\arccos\frac{a\cdot b}{\lVert a\rVert\,\lVert b\rVert}$$ {#eq-identity-angle}
#
# Here $a=\eta(\hat y)$ and $b=\eta(y)$ are the embeddings of the restored and of the true face. The angle does not see their lengths. In many dimensions two unrelated vectors stand at about 90 degrees.

# %%
#| export
class Embedder(Protocol):
    """η of Eq. 8: anything that turns faces into vectors that are close for the same person.

    Faces (b, 3, h, w) in [-1, 1], FFHQ-aligned -> vectors (b, d).
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


# %%
#| export
def angle(a, b):
    """Angle in degrees between embeddings a and b (..., d), @eq-identity-angle.

    0 the same direction, 90 unrelated. For measuring, not as a loss.
    """
    return torch.rad2deg(torch.arccos(F.cosine_similarity(a, b, dim=-1).clamp(-1, 1)))


# %%
torch.set_num_threads(1)    # quickest for small nets, and the same sums on every machine
east, north = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
turns = torch.stack([angle(east, v) for v in (3 * east, north, -east, east + north)])
assert_close(turns, torch.tensor([0.0, 90.0, 180.0, 45.0]))
g = torch.Generator().manual_seed(0)
a, b = torch.randn(2, 1000, 128, generator=g)
pairs = zip(a.double().numpy(), b.double().numpy())
cosines = [np.dot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in pairs]
by_numpy = np.degrees(np.arccos(cosines))
np.testing.assert_allclose(angle(a.double(), b.double()).numpy(), by_numpy, rtol=1e-10)
assert 85 < angle(a, b).mean() < 95    # unrelated directions

# %% [markdown]
# Why the clipping? The cosine of equal vectors is 1 only up to rounding. In 32 bits it can come out a little larger than 1, and the arccosine of that is not a number.

# %%
unit = F.normalize(a)
cosines = (unit * unit).sum(-1)
above = cosines[cosines > 1]
print(f"cosines of equal vectors above 1: {len(above) > 0}, "
      f"arccos of them a number: {torch.arccos(above).isfinite().any()}")
assert len(above) > 0 and not torch.arccos(above).isfinite().any()
assert angle(a, a).isfinite().all()
assert angle(a, a).max() < 0.1                     # clipped: small, not exactly 0 in 32 bits
one = torch.ones(1, requires_grad=True)
torch.arccos(one).backward()
assert one.grad.isinf()                            # the slope of arccos at 1
v = a[:1].clone().requires_grad_()
identity(v, a[:1]).backward()
assert torch.equal(v.grad, torch.zeros_like(v))    # Eq. 8 at its minimum: no slope, no trouble

# %% [markdown]
# The last lines are the reason to keep the angle for measuring and to train with Eq. 8. The arccosine has an infinite slope at 1, just where training should come to rest. What the gradient of `angle` is for exactly equal vectors depends on how the framework rounds and clips. That of Eq. 8 is zero there.
#
# `Embedder` is a protocol: any callable of the right shape will do. This one knows a face by its colour alone, and takes a dark copy of a picture for the same person, and so everybody else of that colour.

# %%
mean_colour: Embedder = lambda x: x.mean((2, 3))
skin = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
assert_close(angle(mean_colour(skin), mean_colour(skin / 2)), torch.zeros(1), rtol=0, atol=0.1)
assert angle(mean_colour(skin), mean_colour(skin.flip(1))) > 30    # red and blue exchanged


# %% [markdown]
# The first one of use needs grey pictures, so they come next.

# %% [markdown]
# ## Grey at 128 px
#
# What does the judge see? The official code hands it neither colour nor full resolution. It takes the brightness of the [-1, 1] picture,
#
# $$y=0.2989\,R+0.5870\,G+0.1140\,B$$ {#eq-identity-gray}
#
# where $R,G,B$ are the three channels. Then it resizes $y$ to 128 px: bilinear, `align_corners=False`, without a filter against aliasing. Whoever wants the gradients or the angles of the official code has to do just that.

# %%
#| export
def to_gray(x, size=128):
    """RGB (b, 3, h, w) -> brightness (b, 1, size, size): 0.2989 R + 0.5870 G + 0.1140 B.

    Bilinear, not antialiased, as in the official code.
    """
    y = (x * x.new_tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)).sum(1, keepdim=True)
    return F.interpolate(y, (size, size), mode="bilinear", align_corners=False)


# %%
x = torch.rand(2, 3, 512, 512, generator=g, dtype=torch.float64) * 2 - 1
red, green, blue = x[1, :, :, :].numpy()
luma = 0.2989 * red + 0.5870 * green + 0.1140 * blue
# one pixel by hand: the middle 2×2 of its 4×4 block
i, j = 37, 90
middle = luma[4 * i + 1:4 * i + 3, 4 * j + 1:4 * j + 3].mean()
assert_close(to_gray(x)[1, 0, i, j].item(), middle, rtol=1e-12, atol=1e-12)
# all pixels
inner = luma.reshape(128, 4, 128, 4)[:, 1:3, :, 1:3].mean((1, 3))
np.testing.assert_allclose(to_gray(x)[1, 0].numpy(), inner, rtol=1e-10, atol=1e-12)
# independent: resize first, then weigh
red, green, blue = F.interpolate(x, (100, 100), mode="bilinear", align_corners=False).unbind(1)
assert_close(to_gray(x, 100)[:, 0], 0.2989 * red + 0.5870 * green + 0.1140 * blue)
# from 256 px: plain means of 2×2
corner = x[..., :256, :256]
assert_close(to_gray(corner), F.avg_pool2d(to_gray(corner, 256), 2))
# the weights add up to 0.9999
assert_close(to_gray(torch.ones(1, 3, 128, 128)), torch.full((1, 1, 128, 128), 0.9999))

# %% [markdown]
# So at 512 px each of the 128 × 128 values is the mean of 4 pixels, and the other 12 of its 4 × 4 block are never read. They get no gradient from the identity loss either. The next cells count them, and show what aliasing does to rings that become finer outwards.

# %%
picture = torch.zeros(1, 3, 512, 512, requires_grad=True)
to_gray(picture).sum().backward()
read = (picture.grad[0] != 0).any(0)
print(f"pixels of a 512 px picture that the embedder reads: {read.float().mean():.2f}")
assert read.float().mean() == 0.25

# %%
#| label: fig-identity-gray
#| fig-cap: "Fine rings, 128 px wide part of a 512 px picture; the same part as the embedder gets it, and with a filter against aliasing; the pixels that are read, in a corner of 24 px."
#| fig-alt: "Stripes that become finer to the right; a version whose stripes become wider again; a version that fades to grey; a regular grid of small white squares."
r2 = (torch.arange(512.0) - 255.5).square()
rings = torch.cos(math.pi * (r2[:, None] + r2[None]) / 1024).expand(1, 3, 512, 512)
fair = F.interpolate(rings[:, :1], (128, 128), mode="bilinear", antialias=True)
# at the right edge, half way down
part = lambda t: t[0, 0, 3 * t.shape[2] // 8:5 * t.shape[2] // 8, 3 * t.shape[3] // 4:]
show([part(rings), part(to_gray(rings)), part(fair), read[:24, :24] * 2.0 - 1],
     ["512 px", "to_gray", "antialiased", "pixels read"], vmin=-1, vmax=1, height=1.6);


# %% [markdown]
# The rings of @fig-identity-gray are too fine for 128 px and should fade to an even grey. With `to_gray` they come back as false ones, which even become wider where the true ones become finer. Faces hold less of such detail, but noise does the same: it is averaged over 4 pixels and not over 16. At 256 px nothing is skipped, and at 128 px nothing is resized at all.
#
# With `to_gray` at hand, the embedder of three lines:

# %%
def pixels(x):
    gray = to_gray(x).flatten(1)
    return gray - gray.mean(1, keepdim=True)


# %%
face = example_faces(1, 128)[0]
true = to_tensor(face)
blur = DegradationParams(sigma_x=3, sigma_y=3, kernel_size=17)
views = {"the face": true, "darker, flat": 0.5 * true - 0.3, "mirrored": true.flip(3),
         "4 px aside": true.roll(4, 3), "blurred": to_tensor(degrade(face, blur)),
         "upside down": true.flip(2)}
at = {name: angle(pixels(true), pixels(v)).item() for name, v in views.items()}
# a cosine of centred vectors sees no light and no contrast
assert at["the face"] < 0.1 and at["darker, flat"] < 0.1
values = lambda v: to_gray(v).numpy().ravel()
correlation = np.corrcoef(values(true), values(true.flip(3)))[0, 1]
assert_close(at["mirrored"], float(np.degrees(np.arccos(correlation))), rtol=1e-3, atol=1e-2)
assert at["blurred"] < at["4 px aside"] < at["upside down"]

# %%
#| label: fig-identity-pixels
#| fig-cap: "The embedder of three lines: angles between a face and changed copies of it."
#| fig-alt: "Five pictures of one face, each with an angle: zero for the darker copy, larger for the blurred, shifted, mirrored and upside-down ones."
titles = [f"{name}: {at[name]:.0f}°" for name in views]
show([v[0] for v in views.values()][1:], titles[1:], cols=5, height=1.1);


# %% [markdown]
# In @fig-identity-pixels this embedder forgives darkness and contrast exactly, as it must: its angle is the arccosine of a correlation. It does not forgive a shift of 4 px, and nothing in it knows about people. It is the baseline that a trained one has to beat.

# %% [markdown]
# ## The official network
#
# GFP-GAN takes a ResNet-18 [@he2016resnet] trained for face recognition with ArcFace [@deng2019arcface]. Its file is called `arcface_resnet18.pth`. If our network has exactly the names and shapes of that file, the file loads and nothing has to be converted.
#
# Two details differ from the ResNet-18 that most people know. A block begins with a normalisation, and a single PReLU slope is used twice in it. And the last feature, $512\times8\times8$, is not averaged over places but goes into one linear layer whole: where something is in an aligned face says who it is.

# %%
#| export
class Block(nn.Module):
    """Residual block of ArcFace's ResNet, (b, cin, h, w) -> (b, cout, h/stride, w/stride).

    Normalise, convolve, normalise, PReLU, convolve, normalise. One slope serves both PReLUs.
    """

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cin, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cin)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            conv = nn.Conv2d(cin, cout, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(cout))

    def forward(self, x):
        h = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        h = self.bn2(self.conv2(h))
        return self.prelu(h + (x if self.downsample is None else self.downsample(x)))


# %%
#| export
class ArcFaceResNet(nn.Module):
    """ResNet-18 for faces: brightness x (b, 1, size, size) in [-1, 1] -> (b, dim).

    The result is not normalised. Names as in the official file. `width` 64, `dim` 512, `size` 128
    is the official network (25.6 M parameters); smaller ones serve for teaching. `size`: a multiple
    of 16.
    """

    def __init__(self, width=64, dim=512, size=128):
        super().__init__()
        if size % 16 or size < 16:
            raise ValueError(f"size is {size}, needs a multiple of 16")
        self.config = dict(width=width, dim=dim, size=size)
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2)
        n = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            first = Block(n[i], n[i + 1], 1 if i == 0 else 2)
            second = Block(n[i + 1], n[i + 1])
            setattr(self, f"layer{i + 1}", nn.Sequential(first, second))
        self.bn4 = nn.BatchNorm2d(n[4])
        self.dropout = nn.Dropout()
        self.fc5 = nn.Linear(n[4] * (size // 16) ** 2, dim)
        self.bn5 = nn.BatchNorm1d(dim)

    def forward(self, x):
        h = self.maxpool(self.prelu(self.bn1(self.conv1(x))))
        h = self.bn4(self.layer4(self.layer3(self.layer2(self.layer1(h)))))
        return self.bn5(self.fc5(self.dropout(h).flatten(1)))


# %%
# names and shapes of the official class
official = json.loads(Path("../tests/data/official_arcface.json").read_text())
with torch.device("meta"):
    full = ArcFaceResNet()
ours = {k: list(v.shape) for k, v in full.state_dict().items()}
assert list(ours) == list(official["state_dict"]) and ours == official["state_dict"]
count = lambda m: sum(p.numel() for p in m.parameters())
assert count(full) == official["parameters"] == 25_627_081
by_module = {k: count(m) for k, m in full.named_children() if count(m)}
assert by_module == official["parameters_by_top_module"]
print(f"{len(ours)} tensors, {count(full):,} parameters, "
      f"{count(full.fc5) / count(full):.2f} of them in fc5")

# %%
torch.manual_seed(1)
block = Block(4, 6, stride=2).double().eval()
for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
    for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        t.data.uniform_(0.5, 1.5)


def norm(m, h):
    "The batch normalisation m in eval mode, written out."
    mean, var = m.running_mean[:, None, None], m.running_var[:, None, None]
    return (h - mean) / (var + 1e-5).sqrt() * m.weight[:, None, None] + m.bias[:, None, None]


prelu = lambda h: torch.where(h > 0, h, block.prelu.weight * h)
x = torch.randn(2, 4, 9, 9, generator=g, dtype=torch.float64)
# independent: plain functions with copied weights
h = prelu(norm(block.bn1, F.conv2d(norm(block.bn0, x), block.conv1.weight, padding=1)))
h = norm(block.bn2, F.conv2d(h, block.conv2.weight, padding=1, stride=2))
one_by_one = block.downsample[0].weight[:, :, 0, 0]
skip = torch.einsum("oi,bihw->bohw", one_by_one, x[..., ::2, ::2])
assert_close(block(x), prelu(h + norm(block.downsample[1], skip)), rtol=1e-9, atol=1e-9)
test_fail(lambda: ArcFaceResNet(size=100), exc=ValueError, contains="multiple of 16")

# %%
#| label: fig-identity-parameters
#| fig-cap: "Parameters of the official network, part by part, and the shape of the feature that each part returns."
#| fig-alt: "Bars: small for the first layers, 1.7 and 6.6 million for the last two stages, 16.8 million for the linear layer."
parts = {"conv1": "64 × 128 × 128", "layer1": "64 × 64 × 64", "layer2": "128 × 32 × 32",
         "layer3": "256 × 16 × 16", "layer4": "512 × 8 × 8", "fc5": "512"}
fig, ax = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
millions = [count(getattr(full, k)) / 1e6 for k in parts]
bars = ax.barh(range(len(parts)), millions, color="#0072B2")
ax.bar_label(bars, [f"{m:.2g}" if m < 10 else f"{m:.1f}" for m in millions], padding=3, fontsize=8)
ax.set_yticks(range(len(parts)), [f"{k}: {shape}" for k, shape in parts.items()], fontsize=8)
ax.invert_yaxis()
ax.set_xlim(0, 19), ax.set_xlabel("million parameters");


# %% [markdown]
# @fig-identity-parameters: two thirds of the parameters sit in the linear layer, and the price of keeping places apart is that the input size is fixed. The output has passed a last normalisation (`bn5`) and is *not* brought to length 1. Eq. 8 compares these raw vectors.

# %% [markdown]
# ## Frozen, but not cut off
#
# The judge must not learn. If its weights moved with the restorer's loss, the pair would soon agree that all faces are alike. Three things are easy to confuse here:
#
# - *frozen*: no parameter gets a gradient;
# - *eval mode*: batch normalisation uses its stored statistics, dropout does nothing;
# - *not cut off*: the gradient of the loss still flows through the network to the picture. `torch.no_grad` around it would end the training signal.
#
# Eval mode is lost easily. A trainer calls `.train()` on the module that holds everything, and PyTorch hands this down to all children. So this module refuses.

# %%
#| export
class GrayEmbedder(nn.Module):
    """An `Embedder` made of an `ArcFaceResNet`: frozen, in eval mode whatever is asked.

    Gradients flow through it to the picture.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)        # its statistics stay what they are

    def forward(self, x):
        return self.net(to_gray(x, self.net.config["size"]))


# %%
torch.manual_seed(2)
small = GrayEmbedder(ArcFaceResNet(width=4, dim=16, size=32))
trainer = nn.ModuleDict(dict(restorer=nn.Conv2d(3, 3, 1), judge=small)).train()
# a parent's train() does not reach it
assert trainer.restorer.training and not any(m.training for m in small.modules())
before = copy.deepcopy(small.state_dict())
x, truth = torch.rand(2, 2, 3, 64, 64, generator=g) * 2 - 1
loss = identity(small(trainer.restorer(x)), small(truth))
loss.backward()
# the gradient arrives behind the judge, and leaves nothing in it, statistics included
assert trainer.restorer.weight.grad.abs().min() > 0
assert not any(p.requires_grad or p.grad is not None for p in small.parameters())
assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
# one face, one vector, whoever else is in the batch
assert_close(small(x[:1]), small(x)[:1], rtol=1e-4, atol=1e-5)

# %% [markdown]
# What would go wrong in training mode? The same net, switched by hand, gives one face a different vector depending on its neighbour in the batch.

# %%
careless = copy.deepcopy(small.net).train()
torch.manual_seed(3)
with torch.no_grad():
    beside = lambda other: careless(to_gray(torch.stack([x[0], other]), 32))[0]
    first, second = beside(x[1]), beside(truth[0])
    moved = angle(first, second).item()
print(f"one face beside two neighbours: training mode more than 10 degrees apart: {moved > 10}")
assert moved > 10
# and its statistics have drifted
assert not torch.equal(careless.bn5.running_mean, small.net.bn5.running_mean)


# %% [markdown]
# ## The margin that makes an embedder
#
# How does one train a network so that a person becomes a direction? Give each of the $n$ people of the training set a *prototype* $W_j$, a vector that is trained too, and classify by the angle $\theta_j$ between embedding and prototype. The softmax of $s\cos\theta_j$, with a scale $s$, would do this.
# But it is content as soon as the right prototype is nearest. People who were never seen in training then fall in between. ArcFace [@deng2019arcface] asks for more. It adds a margin $m$ to the angle of the right person $y$:
#
# $$\mathcal L=-\log\frac{e^{s\cos(\theta_y+m)}}{e^{s\cos(\theta_y+m)}+\sum_{j\neq y}e^{s\cos\theta_j}}$$ {#eq-identity-arcface}
#
# The embedding must beat the others although its own angle is counted as larger than it is. Where $\theta_y+m$ would exceed $\pi$, the cosine would rise again and reward a worse angle; there it is continued by $\cos\theta_y-m\sin m$.

# %%
#| export
def arcface_logits(embeddings, prototypes, labels, scale=30.0, margin=0.5):
    """ArcFace: cosines, the right one at angle θ + margin, times `scale` -> logits (b, n).

    They stand between embeddings (b, d) and one prototype per person (n, d). The margin makes the
    right answer harder than it is, so that people end up further apart than the decision needs
    (@eq-identity-arcface).
    """
    cos = F.normalize(embeddings) @ F.normalize(prototypes).t()
    theta = torch.arccos(cos.clamp(-1 + 1e-7, 1 - 1e-7))
    right = F.one_hot(labels, len(prototypes)).bool()
    beyond = cos - margin * math.sin(margin)    # monotone beyond π - margin
    harder = torch.where(theta < math.pi - margin, torch.cos(theta + margin), beyond)
    return scale * torch.where(right, harder, cos)


# %%
e, prototypes = torch.randn(7, 5, generator=g).double(), torch.randn(4, 5, generator=g).double()
labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
got = arcface_logits(e, prototypes, labels, scale=20.0, margin=0.4)
want = np.empty((7, 4))
for row, col in np.ndindex(7, 4):    # independent: one pair at a time, in plain Python
    cos = F.cosine_similarity(e[row], prototypes[col], dim=0).item()
    t = math.acos(cos) + (0.4 if col == labels[row] else 0.0)
    want[row, col] = 20.0 * (math.cos(t) if t < math.pi else cos - 0.4 * math.sin(0.4))
np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)
p = np.exp(want) / np.exp(want).sum(1, keepdims=True)    # the equation itself
loss = -np.log(p[np.arange(7), labels]).mean()
assert_close(F.cross_entropy(got, labels).item(), loss, rtol=1e-9, atol=0)
plain = 20.0 * F.cosine_similarity(e[:, None], prototypes[None], dim=-1)
no_margin = arcface_logits(e, prototypes, labels, 20.0, margin=0.0)
assert_close(no_margin, plain, rtol=1e-9, atol=1e-9)     # limit: no margin, plain cosines

# %%
angles = torch.linspace(0, math.pi, 721, dtype=torch.float64)
around = torch.stack([angles.cos(), angles.sin()], 1)
only, zeros = torch.tensor([[1.0, 0.0]]), torch.zeros(721, dtype=torch.long)
right_logit = lambda m: arcface_logits(around, only.double(), zeros, 1.0, m)[:, 0]
margins = {m: right_logit(m) for m in (0.0, 0.3, 0.5)}
assert all((c.diff() < 0).all() for c in margins.values())   # a worse angle never pays
near = torch.tensor([[1.0, 0.0]], requires_grad=True)
arcface_logits(near, only, torch.tensor([0])).sum().backward()
assert near.grad.isfinite().all()                            # even where arccos is infinitely steep

# %%
#| label: fig-identity-margin
#| fig-cap: "Left: two prototypes on the unit circle; an embedding of person A satisfies the margin only in the blue arc, one of B only in the orange arc. Right: the logit of the right person."
#| fig-alt: "A circle with two arrows and two coloured arcs with a gap between them; three falling curves, lower for a larger margin."
fig, (ax, bx) = plt.subplots(1, 2, figsize=(7.5, 2.9), layout="constrained")
# prototypes at 20 and 100 degrees, margin 0.5: θ_A + m < θ_B
middle, half = math.radians(60), 0.25
for label, at_, lo, hi, colour in (("A", 20, middle - math.pi + half, middle - half, "#0072B2"),
                                   ("B", 100, middle + half, middle + math.pi - half, "#D55E00")):
    t, p = np.linspace(lo, hi, 100), math.radians(at_)
    ax.plot(np.cos(t), np.sin(t), lw=6, color=colour, solid_capstyle="butt")
    arrow = dict(arrowstyle="-|>", color=colour, lw=1.5)
    ax.annotate("", (math.cos(p), math.sin(p)), (0, 0), arrowprops=arrow)
    place = 1.2 * math.cos(p), 1.2 * math.sin(p)
    ax.text(*place, f"$W_{label}$", ha="center", va="center", color=colour)
ax.plot([0, 1.15 * math.cos(middle)], [0, 1.15 * math.sin(middle)], "--", color="#444444")
ax.text(1.5 * math.cos(middle), 1.28 * math.sin(middle), "gap $m$", ha="center", fontsize=9)
ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#bbbbbb", zorder=0))
ax.set(aspect="equal", xlim=(-1.5, 1.7), ylim=(-1.1, 1.45)), ax.axis("off")
for (m, c), colour in zip(margins.items(), ("#444444", "#009E73", "#CC79A7")):
    bx.plot(np.degrees(angles.numpy()), c.numpy(), color=colour, label=f"margin {m}")
bx.set(xlabel="angle to the right prototype (°)", ylabel="logit / scale", xticks=range(0, 181, 45))
bx.legend(fontsize=8);


# %% [markdown]
# Without a margin the dashed line of @fig-identity-margin and its continuation are the only border. With it, a strip as wide as $m$ between any two people belongs to nobody. On the right the curves fall everywhere, also past $\pi-m$.
#
# Does it work? The next cell trains a tiny network that maps six noisy clusters of 16 numbers to *two* numbers, once with margin 0 and once with 0.5. In two dimensions everything can be seen.

# %%
def toy(margin, people=6, steps=300):
    """Train 16 -> 2 numbers with `arcface_logits`.

    -> embeddings, prototypes and labels of 600 fresh samples.
    """
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(people, 16, generator=g)
    def sample(n):
        y = torch.randint(people, (n,), generator=g)
        return centres[y] + 0.5 * torch.randn(n, 16, generator=g), y
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 2))
    prototypes = nn.Parameter(torch.randn(people, 2))
    optimiser = torch.optim.Adam([*net.parameters(), prototypes], 1e-2)
    for _ in range(steps):
        x, y = sample(64)
        loss = F.cross_entropy(arcface_logits(net(x), prototypes, y, 16.0, margin), y)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    x, y = sample(600)
    return net(x).detach(), prototypes.detach(), y


# %%
toys, gaps, owns = {m: toy(m) for m in (0.0, 0.5)}, {}, {}
for m, (e, prototypes, y) in toys.items():
    theta = angle(e[:, None], prototypes[None])
    own, other = theta.gather(1, y[:, None])[:, 0], theta.scatter(1, y[:, None], 999.0).amin(1)
    gaps[m], owns[m] = other - own, own
    print(f"margin {m}: right {(own < other).float().mean():.2f}, "
          f"angle to the own prototype {own.mean():.0f}°, "
          f"worst 5 % of the lead over the next {gaps[m].quantile(0.05):.0f}°")
# both decide well, with very different reserves
assert all((g > 0).float().mean() > 0.97 for g in gaps.values())
assert owns[0.5].mean() < 0.75 * owns[0.0].mean()
assert gaps[0.5].quantile(0.05) > 1.3 * gaps[0.0].quantile(0.05)

# %%
#| label: fig-identity-toy
#| fig-cap: "Directions of 600 fresh samples of six classes (dots, one circle each for margin 0 and 0.5), the prototypes (lines), and the lead of the right prototype over the next."
#| fig-alt: "Two circles with six coloured groups of dots, wide without the margin and narrow with it; two histograms, the one with the margin further right."
fig, axes = plt.subplots(1, 3, figsize=(8, 2.7), layout="constrained", width_ratios=[1, 1, 1.4])
colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
for ax, (m, (e, prototypes, y)) in zip(axes, toys.items()):
    # spread a little, so that dots do not hide each other
    u, radius = F.normalize(e), 0.85 + 0.15 * torch.arange(len(e))[:, None] / len(e)
    ax.scatter(*(u * radius).T, s=3, c=[colours[k] for k in y])
    for k, q in enumerate(F.normalize(prototypes)):
        ax.plot([0, 0.8 * q[0]], [0, 0.8 * q[1]], color=colours[k], lw=1)
    ax.set(aspect="equal", title=f"margin {m}"), ax.axis("off")
bins = np.arange(-20, 91, 5)
for (m, v), colour in zip(gaps.items(), ("#444444", "#CC79A7")):
    axes[2].hist(v.numpy(), bins, histtype="step", color=colour, label=f"margin {m}", lw=1.5)
axes[2].set(xlabel="lead over the next prototype (°)", ylabel="samples")
axes[2].legend(fontsize=8, loc="upper left");

# %% [markdown]
# Both toys of @fig-identity-toy classify almost everything correctly. With the margin the groups contract around their prototypes and empty space opens between them. This reserve is what carries over, in part, to people who were not in the training set.

# %% [markdown]
# ## A small embedder for the shelf
#
# The official file cannot come with this package, and a distance that needs a download is often not there when it is needed. So a small `ArcFaceResNet` was trained for it, by `figures/embedder.py`, on the aligned grey faces of 55 people of Labeled Faces in the Wild [@huang2007lfw], about ten pictures each. That is very little: recognition networks see tens of thousands of people and more.
#
# `load_embedder` reads the small one, any other of ours, the official file, or one of the kind of the next section. The official file needs one kindness: files of old PyTorch versions lack the batch counters of the normalisations.

# %%
#| export
BUNDLED_EMBEDDER = "embedder-lfw55"           # name of its file in gfpgan_edu/bundled


def _complaint(state, own):
    """Why `state` does not fit `own`, both {name: tensor}, or None.

    Counters may be missing: old torch versions did not write them.
    """
    for k in [*own, *state]:
        if k not in own:
            return f"it holds {k}, which the network has not"
        if k not in state:
            if not k.endswith("num_batches_tracked"):
                return f"{k} is missing"
        elif state[k].shape != own[k].shape:
            return f"{k} is {tuple(state[k].shape)}, needs {tuple(own[k].shape)}"
        elif (state[k].is_floating_point() != own[k].is_floating_point()
              or not state[k].isfinite().all()):
            return f"{k} holds NaN, infinity or numbers of the wrong kind ({state[k].dtype})"


# %%
#| export
def load_embedder(source="bundled"):
    """An `Embedder` from "bundled" (the small one of this chapter) or from a file.

    The file: a .safetensors of ours, the official arcface_resnet18.pth, or another network's .onnx.
    Raises WeightsError, which names the file and the reason.
    """
    path = Path(source)
    if source == "bundled":
        path = Path(str(resources.files("gfpgan_edu.bundled") / f"{BUNDLED_EMBEDDER}.safetensors"))
    if path.suffix.lower() == ".safetensors":
        return GrayEmbedder(load(path, ArcFaceResNet))
    if path.suffix.lower() == ".onnx":
        return OnnxEmbedder(path)
    net, state = ArcFaceResNet(), read_state(path)
    if reason := _complaint(state, net.state_dict()):
        raise WeightsError(f"{path}: not the official arcface_resnet18.pth: {reason}")
    net.load_state_dict(net.state_dict() | state)
    return GrayEmbedder(net)


# %%
embedder = load_embedder()
assert embedder(to_tensor(example_faces(3, 128))).shape == (3, embedder.net.config["dim"])
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "arcface_resnet18.pth"
    # as DataParallel names them, old: no counters
    fake = {k: torch.rand(v.shape).to(v.dtype) for k, v in full.state_dict().items()
            if not k.endswith("num_batches_tracked")}
    torch.save({f"module.{k}": v.half() for k, v in fake.items()}, path)
    loaded = load_embedder(path).net.layer3[0].conv2.weight
    assert_close(loaded, fake["layer3.0.conv2.weight"].half().float(), rtol=0, atol=0)
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    test_fail(lambda: load_embedder(path), exc=WeightsError,
              contains="conv1.weight is (64, 3, 3, 3), needs (64, 1, 3, 3)")
    test_fail(lambda: load_embedder(Path(folder) / "none.pth"), exc=WeightsError,
              contains="no such file")

# %% [markdown]
# How the run went is stored in `figures/embedder.json`. All angles below come from 20 *other* people, and from the shipped 16-bit file.

# %%
run = json.loads(Path("../figures/embedder.json").read_text())
unseen, flat, known = run["unseen"], run["pixels"], run["train_people_scores"]
print(f"{run['data']['train_people']} people, {run['data']['train_pictures']} pictures, "
      f"{run['steps']} steps of {run['batch']}; {count(embedder):,} parameters")
print(f"same or different? pairs: {unseen['pairs_same']} same, "
      f"{unseen['pairs_different']:,} different")
table = {"people of the training set": known, "people never seen": unseen,
         "the same, degraded": run["unseen_degraded"],
         "only an oval of the face": run["unseen_face_only"],
         "only what is around it": run["unseen_surroundings_only"],
         "grey pixels": flat, "grey pixels, degraded": run["pixels_degraded"],
         "a strong public embedder": run["reference"]["unseen"],
         "the same one, degraded": run["reference"]["unseen_degraded"]}
for name, s in table.items():
    print(f"{name:28} same {s['mean_same']:.0f}°, different {s['mean_different']:.0f}°, "
          f"equal error rate {s['equal_error_rate']:.2f}")
middles = np.add(unseen["bins"][:-1], 1.5)
for s in (unseen, flat):    # the stored scores agree with the stored histograms
    assert sum(s["same"]) == s["pairs_same"] and sum(s["different"]) == s["pairs_different"]
    np.testing.assert_allclose(np.average(middles, weights=s["same"]), s["mean_same"], atol=0.5)
    missed = 1 - np.cumsum(s["same"]) / s["pairs_same"]
    wrong = np.cumsum(s["different"]) / s["pairs_different"]
    best = np.abs(missed - wrong).argmin()
    assert abs((missed + wrong)[best] / 2 - s["equal_error_rate"]) < 0.03
rate = {name: s["equal_error_rate"] for name, s in table.items()}
assert rate["people of the training set"] < 0.02 and count(embedder) == run["parameters"]
assert max(rate["people never seen"], rate["only an oval of the face"]) < 0.8 * rate["grey pixels"]
assert rate["only what is around it"] < rate["grey pixels"]
assert rate["a strong public embedder"] < 0.05 < 0.3 < rate["the same one, degraded"]
third, last = run["curve"][2], run["curve"][-1]
for c in (third, last):
    print(f"step {c['step']:4}: right in training {c['train_accuracy']:.2f}; "
          f"same or different {c['unseen_accuracy']:.2f}")
assert last["train_accuracy"] > 0.95
assert abs(last["unseen_accuracy"] - third["unseen_accuracy"]) < 0.03

# %%
#| label: fig-identity-run
#| fig-cap: "Training on 55 people. Left: share of right answers on training views, and balanced accuracy of same-or-different on 20 unseen people. Right: angles of all pairs of unseen people, as shares."
#| fig-alt: "The training curve rises steeply to near 1, the other one flattens early. Two wide histograms that overlap, the same-person one further left."
fig, (ax, bx) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
curve = lambda key: [c[key] for c in run["curve"]]
steps = curve("step")
ax.plot(steps, curve("train_accuracy"), color="#444444", label="right person (training)")
ax.plot(steps, curve("unseen_accuracy"), color="#0072B2", label="same or different (unseen)")
ax.axhline(flat["accuracy"], ls=":", color="#D55E00", label="the same, grey pixels")
ax.set(xlabel="step", ylim=(0, 1)), ax.legend(fontsize=8, loc="lower right")
for name, colour in (("same", "#0072B2"), ("different", "#E69F00")):
    share = np.divide(unseen[name], sum(unseen[name]))
    bx.stairs(share, unseen["bins"], color=colour, fill=True, alpha=0.5, label=f"{name} person")
bx.axvline(unseen["threshold"], ls="--", color="#444444")
bx.set(xlabel="angle (°)", ylabel="share of pairs", xlim=(20, 130)), bx.legend(fontsize=8);

# %% [markdown]
# The equal error rate is where one threshold calls as many same-person pairs different as it calls different people the same. A coin has 0.5.
#
# The numbers are sobering. On the people it was trained on the embedder makes no mistake worth printing. On strangers it errs in about a quarter of the cases, against two fifths for plain pixels. @fig-identity-run shows when this was decided: after 300 steps the strangers gain hardly anything more, while the network goes on to learn its 55 people by heart.
# The two histograms on the right are apart, and overlap widely. No single pair can be judged with it. Means over many pairs can be compared.
# It does not look at faces alone, either: with the face painted over it still does better than the pixels of the whole picture. Hair, clothes and background help it.
#
# One line is a surprise. A strong public embedder, trained on far more people, hardly errs on sharp faces, and loses nearly all of that on heavily degraded ones. Ours saw degraded faces in training and hardly changes. An embedder that judges restorers should know what bad pictures look like.

# %% [markdown]
# ## Networks of another habit
#
# Which embedder should judge the angle, when the one of the loss can be fooled and the bundled one is weak? Many good recognition networks are public, most of them as ONNX files: a list of operations with their weights, made by any framework. They share a habit that is not ours: colour, 112 px, and a face cut closer, with the five points at the places $v_k$ of `ARCFACE_112`.
#
# No detector is needed to get from one habit to the other. An FFHQ-aligned face has its five points at known places $u_k$, `FFHQ_512`. So @eq-similarity, with $u_k$ as source and $v_k$ as target, gives one similarity $S$, the same for every face. The picture $x$ is then read at
#
# $$x'(p)=x\big(S^{-1}p\big),\qquad p\in\{0,\dots,111\}^2$$ {#eq-identity-habit}
#
# where $p$ is a pixel of the result $x'$ and $S^{-1}p$ falls between the pixels of $x$: bicubic interpolation, which is differentiable. Pictures larger than the scale of the result are first made smaller, with a filter. The package `onnx2torch` turns the operations into PyTorch modules, so that the gradient passes.

# %%
#| export
# where that habit puts the five points
ARCFACE_112 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
                        [41.5493, 92.3655], [70.7299, 92.2041]])


def _convert(path):
    """The network in an ONNX file, frozen.

    Raises whatever the converter stumbles on, ValueError where two faces at once are not each
    alone.
    """
    from onnx2torch import convert

    net = convert(str(path)).requires_grad_(False).eval()
    faces = torch.stack([torch.zeros(3, 112, 112), torch.ones(3, 112, 112)])
    both, alone = net(faces).reshape(2, -1), torch.cat([net(f[None]).reshape(1, -1) for f in faces])
    if not (both - alone).abs().max() <= 1e-3 * alone.abs().max():    # NaN is no <= either
        raise ValueError("it holds NaN, or does not take two faces at once")
    return net


# %%
#| export
class OnnxEmbedder(nn.Module):
    """An `Embedder` from an ONNX network of the usual kind, frozen, in eval mode.

    The network: (b, 3, 112, 112) RGB, (0 … 255 - 127.5)/128, the five points on `ARCFACE_112`,
    -> (b, d). The graph may be made for b = 1 as long as it takes more. Gradients flow through to
    x. Raises WeightsError, which names the file and the reason.
    """

    def __init__(self, path):
        super().__init__()
        if not Path(path).is_file():
            raise WeightsError(f"{path}: no such file")
        try:
            self.net = _convert(path)
        except ImportError as e:
            raise WeightsError(f"{path}: needs the package onnx2torch ({e}); "
                               "pip install onnx2torch") from e
        except Exception as e:    # the converter raises what it likes
            reason = textwrap.shorten(str(e), 120, placeholder=" …")
            raise WeightsError(f"{path}: not a network for faces of 112 px "
                               f"({type(e).__name__}: {reason})") from e
        back = invert(similarity(FFHQ_512, ARCFACE_112))    # @eq-identity-habit, to px at 512
        # an FFHQ-aligned face of this size has the scale of the result
        self.side = round(512 / np.hypot(*back[:, 0]))
        places = np.stack(np.meshgrid(np.arange(112), np.arange(112)), -1)
        points = places @ back[:, :2].T + back[:, 2]
        # not left to autocast: bfloat16 would move the points
        grid = torch.tensor((points + 0.5) / 256 - 1, dtype=torch.float32)[None]
        self.register_buffer("grid", grid, persistent=False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    def align(self, x):
        "FFHQ-aligned x (b, 3, s, s) -> (b, 3, 112, 112); bicubic, larger ones first made smaller."
        x, grid = x.to(self.grid.dtype), self.grid.expand(len(x), -1, -1, -1)
        if x.shape[-1] > self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True,
                              align_corners=False)
        return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)

    def forward(self, x):
        return self.net(self.align(x) * (127.5 / 128)).reshape(len(x), -1)


# %% [markdown]
# Such files are made by others, so the checks make two of their own: a convolution, a mean over all places, and four numbers a face. The second one flattens the whole batch into one row, as networks do that were exported with one face in mind. `forward` gives each face its row back.
#
# First the places. Five small dots, drawn where FFHQ alignment has the five points, must come out where $S$ takes them, at every size of the picture.

# %%
def tiny_onnx(path, shape=(-1, 4)):
    "A network for faces of 112 px with random weights, whose last step is a reshape."
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.1, (4, 3, 5, 5)), rng.normal(0, 0.1, 4)
    held = dict(weight=weight.astype(np.float32), bias=bias.astype(np.float32),
                shape=np.array(shape))
    step, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    steps = [step("Conv", ["x", "weight", "bias"], ["a"], strides=[4, 4]),
             step("Relu", ["a"], ["b"]), step("GlobalAveragePool", ["b"], ["c"]),
             step("Reshape", ["c", "shape"], ["y"])]
    arrays = [onnx.numpy_helper.from_array(v, k) for k, v in held.items()]
    x, y = info("x", 1, ["n", 3, 112, 112]), info("y", 1, None)
    graph = onnx.helper.make_graph(steps, "tiny", [x], [y], arrays)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    onnx.save(model, path)
    return path

folder = tempfile.TemporaryDirectory()
public = OnnxEmbedder(tiny_onnx(f"{folder.name}/public.onnx", (-1, 4)))
flat_batch = OnnxEmbedder(tiny_onnx(f"{folder.name}/flat.onnx", (1, -1)))

# %%
S = similarity(FFHQ_512, ARCFACE_112)
landing = FFHQ_512 @ S[:, :2].T + S[:, 2]    # where the five points come out
columns, rows = np.meshgrid(np.arange(112), np.arange(112))
for size in (64, 128, 512):
    at, width, worst = np.arange(size), max(1, size / 128), 0
    dot_at = lambda u, v: np.exp(-((at[:, None] - v) ** 2 + (at - u) ** 2) / 2 / width**2)
    dots = sum(dot_at(u, v) for u, v in template(size))
    out = public.align(torch.tensor(dots).expand(1, 3, size, size))[0, 0].numpy()
    for u, v in landing:
        dot = out * (np.hypot(columns - u, rows - v) < 8)
        found = (dot * columns).sum() / dot.sum(), (dot * rows).sum() / dot.sum()
        worst = max(worst, np.hypot(found[0] - u, found[1] - v))
    assert worst < 0.1, size
left = np.linalg.norm(landing - ARCFACE_112, axis=1)
print("all five dots within 0.1 px; what the best similarity leaves between landing and template:",
      " ".join(f"{d:.1f}" for d in left), "px")
assert left.max() < 3

# %% [markdown]
# The last line is no error of the code. The two templates are faces of different shape, one with the mouth lower than the other, and no similarity turns one into the other. Whoever aligns a photo to the 112 px template directly has the same remainder in it, face by face.
#
# Now the values. Where nothing has to be made smaller, OpenCV's warp with its bicubic interpolation must give the same picture. The reference implementation of ONNX, which is plain numpy, must give the same vectors. Nothing outside the crop is read, nothing depends on the neighbours in the batch, and autocast must not touch the places.

# %%
for size in (64, 128):
    x = example_faces(1, size)[0] / np.float32(127.5) - 1
    warped = cv2.warpAffine(x, similarity(template(size), ARCFACE_112), (112, 112),
                            flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    ours = public.align(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    # some builds of OpenCV round places to 1/32 px
    np.testing.assert_allclose(ours, warped, rtol=0, atol=0.03)
x = to_tensor(example_faces(3, 128)).requires_grad_()
crops = public.align(x)
reference = onnx.reference.ReferenceEvaluator(f"{folder.name}/public.onnx")
levels = (crops.detach().numpy() + 1) * 127.5 / 128 - 127.5 / 128
(wanted,) = reference.run(None, {"x": levels})
np.testing.assert_allclose(public(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
assert flat_batch.net(crops).shape == (1, 12) and torch.equal(flat_batch(x), public(x))
assert_close(public(x[1:2]), public(x)[1:2], rtol=1e-4, atol=1e-5)
with torch.autocast("cpu", torch.bfloat16):
    assert torch.equal(public.align(x), crops)
identity(public(x), public(true)).backward()
reached = (x.grad[1] != 0).any(0)
assert reached[40:100, 40:90].all() and not reached[:, :8].any() and not reached[:, -8:].any()
assert not any(m.training for m in public.train().modules())
assert not any(q.requires_grad for q in public.parameters())

# %%
Path(f"{folder.name}/odd.onnx").write_bytes(b"not a network")
test_fail(lambda: load_embedder(f"{folder.name}/odd.onnx"), exc=WeightsError,
          contains="odd.onnx: not a network for faces of 112 px (")
test_fail(lambda: load_embedder(f"{folder.name}/none.onnx"), exc=WeightsError,
          contains="none.onnx: no such file")
one_face = tiny_onnx(f"{folder.name}/one.onnx", (1, 4))    # takes one face only
test_fail(lambda: load_embedder(one_face), exc=WeightsError,
          contains="one.onnx: not a network for faces of 112 px (RuntimeError")
with patch.dict("sys.modules", {"onnx2torch": None}):
    test_fail(lambda: load_embedder(f"{folder.name}/public.onnx"), exc=WeightsError,
              contains="public.onnx: needs the package onnx2torch")
folder.cleanup()

# %%
#| label: fig-identity-habit
#| fig-cap: "Left: an FFHQ-aligned face, its five points, and the part that the other habit cuts out. Right: that part at 112 px; crosses: where the five points come out; circles: the template."
#| fig-alt: "A head with hair and shoulders and a square around the face; the face larger, cut at the hair, with five crosses, each in or at the edge of a circle."
large = example_faces(1, 256)[0]
fig, (ax, bx) = plt.subplots(1, 2, figsize=(6, 2.9), layout="constrained")
border = np.array([[-0.5, 111.5, 111.5, -0.5, -0.5],
                   [-0.5, -0.5, 111.5, 111.5, -0.5],
                   [1, 1, 1, 1, 1]])
corners = invert(similarity(template(256), ARCFACE_112)) @ border
ax.imshow(large), ax.plot(*corners, color="#56B4E9")
ax.plot(*template(256).T, "x", color="#E69F00", mew=2)
bx.imshow(to_images(public.align(to_tensor(large)))[0])
bx.plot(*ARCFACE_112.T, "o", mfc="none", color="#56B4E9", ms=10, mew=1.5)
bx.plot(*landing.T, "x", color="#E69F00", mew=2)
ax.axis("off"), ax.set_title("FFHQ alignment, 256 px", fontsize=9)
bx.axis("off"), bx.set_title("ArcFace alignment, 112 px", fontsize=9);

# %% [markdown]
# In @fig-identity-habit the crop keeps the face and drops much of the hair and the surroundings, which the bundled embedder found so helpful. The crosses lie beside the circles by the remainder printed above.
#
# The file decides what such an embedder is worth, and its licence decides what it may be used for. One that was not in the loss is the better judge.

# %% [markdown]
# ## Put together
#
# One real face, damaged more and more. The true face is one end of the angle, the damaged one the other. A face of somebody else stands at about 90 degrees on average, as the run above showed.

# %%
sigmas = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
damaged = []
for s in sigmas:
    damage = DegradationParams(sigma_x=s, sigma_y=s, kernel_size=41, delta=5 if s else 0,
                               noise_seed=1)
    damaged.append(to_tensor(degrade(face, damage)))
judges = {"embedder": embedder, "grey pixels": pixels}
curves = {name: [angle(f(true), f(x)).item() for x in damaged] for name, f in judges.items()}
assert all(c[0] < 0.1 and c[2] < c[4] < c[7] for c in curves.values())
# no stranger at hand: the face upside down
stranger = angle(embedder(true), embedder(true.flip(2))).item()
assert stranger > curves["embedder"][-1]

# %% [markdown]
# Eq. 8 is a loss, so what it gives the restorer is a gradient. The next cell takes it with respect to the damaged picture. Two checks: along a random direction it agrees with a finite difference, and in each pixel its three channels have the ratio of the grey weights. So the loss is *blind to colour*: a change that leaves the brightness alone costs nothing.

# %%
judge = copy.deepcopy(embedder).double()
target, x = judge(true.double()), damaged[5].double().requires_grad_()
loss = identity(judge(x), target)
slope, = torch.autograd.grad(loss, x)
direction = torch.randn(x.shape, generator=g, dtype=torch.float64)
with torch.no_grad():
    up, down = (identity(judge(x + h * direction), target) for h in (1e-6, -1e-6))
    # no brightness in it
    blind = torch.tensor([0.1140, 0.0, -0.2989], dtype=torch.float64).view(3, 1, 1).expand_as(x)
    tinted = identity(judge(x + 0.5 * blind), target)
assert_close((up - down) / 2e-6, (slope * direction).sum(), rtol=1e-3, atol=1e-8)
assert_close(slope[:, 0] * 0.5870, slope[:, 1] * 0.2989, rtol=1e-6, atol=1e-15)
assert_close(slope[:, 2] * 0.5870, slope[:, 1] * 0.1140, rtol=1e-6, atol=1e-15)
assert_close(tinted, loss, rtol=1e-9, atol=0)

# %% [markdown]
# And now a warning in form of an experiment: what if the identity loss were the only loss? Gradient descent on the *pixels* of the damaged face, with nothing but Eq. 8:

# %%
free, before = damaged[5].clone().requires_grad_(), damaged[5]
optimiser = torch.optim.Adam([free], 0.01)
for _ in range(60):
    loss = identity(embedder(free), embedder(true))
    optimiser.zero_grad(), loss.backward(), optimiser.step()
    free.data.clamp_(-1, 1)
psnr = lambda a: (10 * torch.log10(4 / (a - true).square().mean())).item()
deg = lambda a: angle(embedder(a), embedder(true)).item()
after = free.detach()
flat_deg = lambda a: angle(pixels(a), pixels(true)).item()
for name, a in (("before", before), ("after", after)):
    print(f"{name:6}  angle {deg(a):.0f}°, by grey pixels {flat_deg(a):.0f}°, "
          f"PSNR {psnr(a):.1f} dB")
assert deg(after) < 0.3 * deg(before)
assert psnr(after) < psnr(before) and flat_deg(after) > flat_deg(before)

# %%
#| label: fig-identity-gradient
#| fig-cap: "The true face, a damaged copy, the gradient of the identity loss (size, per pixel), and the copy after descent on Eq. 8 alone."
#| fig-alt: "A sharp face, a blurred face, a map with bright spots over the face, and a blurred face with grain."
strength = slope[0].float().norm(dim=0)
pictures = [true[0], before[0], (strength / strength.max()).sqrt(), after[0]]
titles = ["true", f"damaged: {deg(before):.0f}°", "gradient", f"descent: {deg(after):.0f}°"]
show(pictures, titles, cols=4, height=1.05, cmap="magma");

# %%
#| label: fig-identity-damage
#| fig-cap: "Angle between a face and its damaged copy, for the bundled embedder and for grey pixels."
#| fig-alt: "Two rising curves over the strength of the blur."
fig, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
for (name, c), colour in zip(curves.items(), ("#0072B2", "#D55E00")):
    ax.plot(sigmas, c, "o-", color=colour, label=name, ms=4)
ax.axhline(stranger, ls="--", color="#444444", label="embedder, face upside down")
ax.set(xlabel="blur σ at 128 px", ylabel="angle (°)", ylim=(0, None)), ax.legend(fontsize=8);

# %% [markdown]
# In @fig-identity-gradient the descent reaches an angle of almost zero, and the face is no sharper. The change is a grain that means something to this network only. The other judge, grey pixels, sees no improvement, and the PSNR falls. A judge that can be differentiated can be fooled.
# A restorer is harder to lead astray: the other losses pull too, and one network must serve all faces. Still, it is a reason not to report, as a result, the angle of the very embedder that was trained against.
#
# @fig-identity-damage: with mild blur the angle of the embedder stays near that of the pixels, and then grows faster. What a restorer may be praised for is the way back along such a curve.

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | embedder | "ArcFace" | ResNet-18, 25,627,081 parameters, grey 128 px, 512 numbers | the same class; `load_embedder` also has a small one, trained on 55 people | works offline; the official file loads unchanged |
# | input | not stated | whole aligned face, brightness, bilinear without antialiasing | the same | comparable angles and gradients |
# | Eq. 8 | l1 norm | mean of absolute differences, of vectors that are not normalised, weight 10 | the same (@sec-losses) | |
# | the truth's embedding | not stated | detached | the same | nothing to train there |
# | other networks | – | – | any ONNX file of the 112 px kind, through one similarity | a judge that is not in the loss |
# | frozen | "pretrained" | parameters without gradient, `eval()` once | also refuses a later `.train()` | a parent's `.train()` cannot undo it |
# | Deg. | angle in the ArcFace space | a script published with a later paper of some of the authors: arccosine in degrees, mean over pairs, those below 1° left out | `angle`, clipped | no NaN for equal pictures |
#
# : The identity loss in three versions {#tbl-identity-versions}
#
# @tbl-identity-versions has one line to remember: angles of the bundled embedder and of the official one are two different scales, and only the official one may stand beside numbers from papers.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# - *What is `arcface_resnet18.pth`, and which crop does it want?* It is the network of this chapter, at full width. It wants the whole FFHQ-aligned face, the same picture that the restorer returns. Do not crop tighter and do not align to the 112 px points that other ArcFace files use; for those files there is `OnnxEmbedder`.
# - *It wants brightness.* One channel, from [-1, 1] RGB. A picture with red and blue exchanged gives a plausible but wrong value, as nothing fails.
# - *It is for training only.* Restoring a photo does not need it.
# - *A later `.train()`* on the module that holds the embedder switches batch normalisation and dropout on, unless the embedder refuses.
# :::

# %% [markdown]
# ## Summary
#
# - An embedder turns a face into a direction; the identity loss (@eq-id) is the mean absolute difference of two embeddings, and Deg. (@eq-identity-angle) is the angle between them.
# - The official judge sees brightness at 128 px, resized without antialiasing: of a 512 px picture it reads a quarter of the pixels, and no colour.
# - It is frozen and in eval mode, and the gradient flows through it to the picture.
# - ArcFace trains such networks as classifiers with a margin on the angle (@eq-identity-arcface), which leaves empty space between people.
# - The bundled embedder is better than pixels and far from good; descent on an identity loss alone fools the judge and does not restore the face.
#
# All judges are built now. @sec-engine gives them their turns.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* `angle` of equal vectors is not exactly 0 in 32 bits. Show that $2\arctan(\lVert u-v\rVert/\lVert u+v\rVert)$, with $u,v$ the normalised vectors, is the same angle, and compare the errors of the two formulas for angles of 0.001°.
# 2. *Modify.* Write an embedder that antialiases before it resizes. How do the angles of a noisy 512 px face change?
# 3. *Break.* Put the embedder in training mode during the descent of @fig-identity-gradient (use `embedder.net.train()` on a copy, and two faces at once: with one it refuses). Why does the loss now jump, although the picture changes slowly?
#
# Worked solutions: [nbs/solutions/12_identity.ipynb](solutions/12_identity.ipynb).

# %% [markdown]
# ## References
#
# The identity loss is that of GFP-GAN [@wang2021gfpgan]; the margin loss is ArcFace [@deng2019arcface], the network a residual one [@he2016resnet]. The small embedder was trained on Labeled Faces in the Wild [@huang2007lfw].

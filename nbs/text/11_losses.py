# %% [markdown]
# # Objectives {#sec-losses}

# %%
#| default_exp losses

# %%
#| export
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.weights import WeightsError, read_state


# %%
#| export
def l1(x, y):
    "Mean absolute difference over all entries: the norm of Eq. 5, 7 and 8 as the code means it."
    return (x - y).abs().mean()


def pyramid_targets(y, n):
    "y (b, 3, S, S) -> [S/2^(n-1), …, S/2, S]: halved n-1 times, bilinear, each from the one before."
    out = [y]
    for _ in range(n - 1):
        out.insert(0, F.interpolate(out[0], scale_factor=0.5, mode="bilinear", align_corners=False))
    return out


def pyramid(outputs, y):
    "Distance of the U-Net's picture to the truth at each size (Sec. 3.2): [(b, 3, s, s), …], y (b, 3, S, S) -> {s: l1}."
    return {o.shape[-1]: l1(o, t) for o, t in zip(outputs, pyramid_targets(y, len(outputs)))}


# %%
#| export
class Features(Protocol):
    "Anything that can stand in for VGG-19: x (b, 3, h, w) in [-1, 1] -> {layer: features (b, c, h', w')}, with a weight for each layer."

    weights: dict[str, float]

    def __call__(self, x: torch.Tensor) -> dict[str, torch.Tensor]: ...


# %%
#| export
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"          # torchvision's IMAGENET1K_V1; the end of the name is the start of its SHA-256


def read_vgg19(source):
    "torchvision's state dict of VGG-19, downloaded (\"imagenet\") or from a file. OSError: not to be had; WeightsError, a ValueError: no such or no fit file."
    if source != "imagenet" and not Path(source).is_file():
        raise WeightsError(f"{source}: no such file, nor a known name (imagenet, random)")
    if source != "imagenet":
        return read_state(source)
    try:
        return torch.hub.load_state_dict_from_url(VGG19_URL, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as e:                                                    # no network, no disk, a damaged file in the cache
        raise OSError(f"VGG-19: {VGG19_URL} could not be had ({e}). Fetch that file elsewhere and give its path in place of \"imagenet\"; "
                      "\"random\" needs no file, but an untrained network has seen no picture") from e


# %%
#| export
class VGG19(nn.Module):
    """φ of Eq. 5: x (b, 3, h, w) in [-1, 1] -> outputs of five convolutions of VGG-19 before their activation. Frozen; gradients flow through to x.

    `source`: "imagenet" (torchvision's weights, 548 MB, downloaded once), a file with torchvision's state dict, or "random" (He initialisation
    from `seed`). Raises OSError or ValueError, see `read_vgg19`; nothing is ever replaced in silence.
    """

    PLAN = (64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4)
    TAPS = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}          # place in torchvision's vgg19().features
    weights = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}

    def __init__(self, source="imagenet", seed=0):
        super().__init__()
        layers, c, rng = [], 3, torch.Generator().manual_seed(seed)
        for width in self.PLAN:
            layers += [nn.MaxPool2d(2)] if width == "pool" else [nn.utils.skip_init(nn.Conv2d, c, width, 3, padding=1), nn.ReLU()]
            c = c if width == "pool" else width
        self.layers = nn.ModuleList(layers[: max(self.TAPS.values()) + 1])
        for p in self.layers.parameters():
            nn.init.zeros_(p) if p.ndim == 1 else nn.init.kaiming_normal_(p, nonlinearity="relu", generator=rng)
        if source != "random":
            self.load(read_vgg19(source), source)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))         # ImageNet's statistics of pictures in [0, 1]
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def load(self, state, source):
        own, state = self.layers.state_dict(), {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        if odd := [k for k in own if k not in state or state[k].shape != own[k].shape]:
            raise ValueError(f"{source}: not torchvision's vgg19; features.{odd[0]} is missing or has another shape")
        self.layers.load_state_dict({k: state[k] for k in own})

    def forward(self, x):
        h, out, names = ((x + 1) / 2 - self.mean) / self.std, {}, {i: name for name, i in self.TAPS.items()}
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i in names:
                out[names[i]] = h
        return out


# %%
#| export
def perceptual(fx, fy, weights):
    "Second term of Eq. 5: sum over layers of weight × l1 between features; fx, fy {layer: (b, c, h, w)}."
    return sum(weights[k] * l1(fx[k], fy[k]) for k in fx)


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
#| export
def g_logistic(fake):
    "-log sigmoid of the scores of fakes: what the generator minimises (Eq. 6, non-saturating), a mean over all scores."
    return F.softplus(-fake).mean()


def d_logistic(real, fake):
    "-log sigmoid(real) - log(1 - sigmoid(fake)): what a discriminator minimises; scores of any shape."
    return F.softplus(-real).mean() + F.softplus(fake).mean()


# %%
#| export
def r1(scores, images):
    "Mean over the batch of |∂score/∂image|²: scores (b, 1) made from images (b, 3, s, s), which need requires_grad."
    (grad,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return grad.square().flatten(1).sum(1).mean()


# %%
#| export
def path_length(images, w, mean, probe=None, decay=0.01):
    """(penalty, new mean, lengths): how far |Jᵀy| strays from its running mean `mean`; images (b, 3, s, s) made from w (b, L, d).

    y is noise with variance 1/(s·s) (`probe` (b, 3, s, s) with unit variance, drawn if None), so Jᵀy is the gradient of ⟨image, y⟩ (StyleGAN2, Sec. 3.2).
    """
    probe = torch.randn_like(images) if probe is None else probe
    (grad,) = torch.autograd.grad((images * probe).sum() / (images.shape[2] * images.shape[3]) ** 0.5, w, create_graph=True)
    lengths = grad.square().sum(2).mean(1).sqrt()
    mean = mean + decay * (lengths.detach().mean() - mean)
    return (lengths - mean).square().mean(), mean, lengths.detach()


# %%
#| export
def crop(images, boxes, size):
    "ROI align: images (b, 3, S, S), one box x0, y0, x1, y1 each (b, 4), in pixels -> (b, 3, size, size). Values are interpolated, never scaled."
    from torchvision.ops import roi_align

    rows = torch.arange(len(images), device=images.device, dtype=images.dtype)[:, None]
    return roi_align(images, torch.cat([rows, boxes.to(images)], 1), output_size=size)


# %%
#| export
STYLE_TAPS = (0.5, 1.0)          # weights of the two taps of a component discriminator


def feature_style(fx, fy):
    "Second term of Eq. 7: l1 between Gram matrices of a component discriminator's two features; fy, of the truth, gets no gradient."
    return sum(k * l1(gram(x), gram(y.detach())) for k, x, y in zip(STYLE_TAPS, fx, fy))


def feature_matching(fx, fy):
    "The same place by place, as pix2pixHD does and Fig. 7 compares: l1 between the features themselves."
    return sum(k * l1(x, y.detach()) for k, x, y in zip(STYLE_TAPS, fx, fy))


# %%
#| export
def identity(ex, ey):
    "Eq. 8: l1 between embeddings (b, d) of the restored face and of the truth, which gets no gradient."
    return l1(ex, ey.detach())

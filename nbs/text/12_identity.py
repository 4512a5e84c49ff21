# %% [markdown]
# # Identity {#sec-identity}

# %%
#| default_exp identity

# %%
#| export
import math
from importlib import resources
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.weights import WeightsError, load, read_state


# %%
#| export
class Embedder(Protocol):
    "η of Eq. 8: anything that turns faces (b, 3, h, w) in [-1, 1], FFHQ-aligned, into vectors (b, d) that are close for the same person."

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


# %%
#| export
def to_gray(x, size=128):
    "RGB (b, 3, h, w) -> brightness (b, 1, size, size): 0.2989 R + 0.5870 G + 0.1140 B, bilinear, not antialiased, as in the official code."
    y = (x * x.new_tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)).sum(1, keepdim=True)
    return F.interpolate(y, (size, size), mode="bilinear", align_corners=False)


# %%
#| export
class Block(nn.Module):
    "Residual block of ArcFace's ResNet: normalise, convolve, normalise, PReLU, convolve, normalise; one slope serves both PReLUs."

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cin, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cin)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        same = stride == 1 and cin == cout
        self.downsample = None if same else nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        h = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        h = self.bn2(self.conv2(h))
        return self.prelu(h + (x if self.downsample is None else self.downsample(x)))


# %%
#| export
class ArcFaceResNet(nn.Module):
    """ResNet-18 for faces: brightness x (b, 1, size, size) in [-1, 1] -> (b, dim), not normalised. Names as in the official file.

    `width` 64, `dim` 512, `size` 128 is the official network (25.6 M parameters); smaller ones serve for teaching.
    """

    def __init__(self, width=64, dim=512, size=128):
        super().__init__()
        self.config = dict(width=width, dim=dim, size=size)
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2)
        n = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            setattr(self, f"layer{i + 1}", nn.Sequential(Block(n[i], n[i + 1], 1 if i == 0 else 2), Block(n[i + 1], n[i + 1])))
        self.bn4 = nn.BatchNorm2d(n[4])
        self.dropout = nn.Dropout()
        self.fc5 = nn.Linear(n[4] * (size // 16) ** 2, dim)
        self.bn5 = nn.BatchNorm1d(dim)

    def forward(self, x):
        h = self.maxpool(self.prelu(self.bn1(self.conv1(x))))
        h = self.bn4(self.layer4(self.layer3(self.layer2(self.layer1(h)))))
        return self.bn5(self.fc5(self.dropout(h).flatten(1)))


# %%
#| export
class GrayEmbedder(nn.Module):
    "An `Embedder` made of an `ArcFaceResNet`: frozen, in eval mode; gradients flow through it to the picture."

    def __init__(self, net):
        super().__init__()
        self.net = net.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(False)        # its statistics stay what they are

    def forward(self, x):
        return self.net(to_gray(x, self.net.config["size"]))


# %%
#| export
def angle(a, b):
    "Angle in degrees between embeddings a and b (..., d): 0 the same direction, 90 unrelated."
    return torch.rad2deg(torch.arccos(F.cosine_similarity(a, b, dim=-1).clamp(-1, 1)))


# %%
#| export
def arcface_logits(embeddings, prototypes, labels, scale=30.0, margin=0.5):
    """ArcFace: cosines between embeddings (b, d) and one prototype per person (n, d), the right one at angle θ + margin -> logits (b, n).

    The margin makes the right answer harder than it is, so that people end up further apart than the decision needs (@eq-identity-arcface).
    """
    cos = F.normalize(embeddings) @ F.normalize(prototypes).t()
    theta = torch.arccos(cos.clamp(-1 + 1e-7, 1 - 1e-7))
    right = F.one_hot(labels, len(prototypes)).bool()
    harder = torch.where(theta < math.pi - margin, torch.cos(theta + margin), cos - margin * math.sin(margin))   # monotone beyond π - margin
    return scale * torch.where(right, harder, cos)


# %%
#| export
BUNDLED_EMBEDDER = "embedder-lfw55"


def load_embedder(source="bundled"):
    """An `Embedder` from "bundled" (the small one of this chapter), a .safetensors of ours, or the official arcface_resnet18.pth. Raises WeightsError."""
    path = Path(str(resources.files("gfpgan_edu.bundled") / f"{BUNDLED_EMBEDDER}.safetensors")) if source == "bundled" else Path(source)
    if path.suffix.lower() == ".safetensors":
        return GrayEmbedder(load(path, ArcFaceResNet))
    net = ArcFaceResNet()
    try:
        net.load_state_dict(read_state(path))
    except RuntimeError as e:
        raise WeightsError(f"{path}: not the official arcface_resnet18.pth ({str(e).splitlines()[1].strip()})") from e
    return GrayEmbedder(net)

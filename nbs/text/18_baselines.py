# %% [markdown]
# # Baselines {#sec-baselines}
#
# > What a method is worth shows beside the simplest thing that could have worked.

# %%
#| default_exp baselines

# %%
#| export
import math
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from gfpgan_edu.engine import override

# %%
#| export
# The two networks without a prior, as changes to a config of the full model. The first plays the part of RCAN, the second of ESRGAN and DeblurGANv2; it is row c of Table 4.
UNET_GAN = ("model.use_prior=false", "freeze_prior=false")
UNET_L1 = (*UNET_GAN, *(f"loss.{term}=0" for term in ("adversarial", "component", "feature_style", "feature_matching", "perceptual", "style", "identity")))


def without_prior(config, gan=True):
    """The config of the U-Net alone, whose own picture is the output: trained with all losses of `config`, or (gan=False) with its L1 terms only,
    those of the whole picture and of the pyramid."""
    return override(config, UNET_GAN if gan else UNET_L1)


# %%
#| export
@dataclass
class Inversion:
    "What a search found: `image` (b, 3, s, s), `codes` (the searched tensors), `losses` (one a step, the mean over the batch), `seconds` for the whole batch."
    image: torch.Tensor
    codes: dict
    losses: list = field(default_factory=list)
    seconds: float = 0.0


def shrink(x, factor):
    "x (b, 3, s, s) at 1/factor of its size, bicubic and antialiased: the operator under which PULSE asks for agreement. A factor that does not divide s is a ValueError."
    h, w = x.shape[-2:]
    if factor < 1 or factor != int(factor) or h % factor or w % factor:
        raise ValueError(f"factor is {factor}, needs a whole number that divides {h} and {w}")
    return x if factor == 1 else F.interpolate(x, (h // int(factor), w // int(factor)), mode="bicubic", antialias=True, align_corners=False)


# %%
#| export
def on_sphere(z):
    "z (b, L, d), each code scaled to length √d, where nearly all of a Gaussian in d dimensions lies."
    return z * (math.sqrt(z.shape[-1]) / z.norm(dim=-1, keepdim=True).clamp_min(1e-8))


def geocross(z):
    "Sum over pairs of layers of the squared angle between their codes z (b, L, d), per picture (b,): small where all layers say the same (@eq-baselines-geocross)."
    u = F.normalize(z, dim=-1)
    chord = torch.cdist(u, u).clamp(max=2)
    return (2 * torch.atan2(chord / 2, (1 - (chord / 2) ** 2).clamp_min(1e-12).sqrt())).square().sum((1, 2)) / 2


@torch.no_grad()
def gaussian_of_w(prior, n=4096, seed=0):
    "Mean and standard deviation, each (d,), of the codes w before the mapping's last leaky ReLU: there they are nearly Gaussian."
    p = next(prior.parameters())
    z = torch.randn(n, prior.synthesis.style_dim, generator=torch.Generator().manual_seed(seed), dtype=p.dtype).to(p.device)
    v = F.leaky_relu(prior.mapping(z), 5)                                      # undoes the slope 0.2
    return v.mean(0), v.std(0)


# %%
#| export
def pulse(x, prior, factor=4, steps=100, lr=0.4, cross=0.05, seed=0):
    """PULSE: the face of the prior whose reduced version is the reduced x (@eq-baselines-pulse). x (b, 3, s, s) in [-1, 1] -> `Inversion`.

    One code a layer, put back on the sphere after every step; Adam with a rate that rises and falls. x is only ever seen at 1/factor of its size.
    Pictures do not see one another, but picture i starts from the i-th draw of `seed`: its result depends on its place in the batch.
    """
    _fits(x, prior)
    start, d, n_codes = time.perf_counter(), prior.synthesis.style_dim, prior.synthesis.n_codes
    mean, std = gaussian_of_w(prior)
    z = on_sphere(torch.randn(len(x), n_codes, d, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)).to(x.device).requires_grad_(True)
    target, optimizer, losses = shrink(x, factor), torch.optim.Adam([z], lr), []
    face = lambda: prior.synthesis(F.leaky_relu(z * std + mean, 0.2))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * _rise_and_fall((step + 1) / steps)
        loss = 100 * (shrink(face(), factor) - target).square().mean((1, 2, 3)) + cross * geocross(z)
        losses.append(float(loss.detach().mean()))
        optimizer.zero_grad()
        loss.sum().backward(inputs=[z])
        optimizer.step()
        with torch.no_grad():
            z.copy_(on_sphere(z))
    with torch.no_grad():
        return Inversion(face(), dict(z=z.detach()), losses, time.perf_counter() - start)


def _fits(x, prior):
    size = 2 * 2 ** len(prior.synthesis.to_rgbs)
    if x.ndim != 4 or x.shape[1:] != (3, size, size):
        raise ValueError(f"x is {tuple(x.shape)}, the prior draws (b, 3, {size}, {size})")


def _rise_and_fall(t):
    "Up from 0 to 1 over the first 5 %, level until three quarters, down to 0.05 at the end."
    return min(1.0, t / 0.05, 0.05 + 0.95 * (1 - t) / 0.25)


# %%
#| export
def compose(prior, w, alpha, block):
    """Several codes, one picture: w (b, n, L, d), alpha (b, n, c). Each code is drawn up to block `block`; the features are added, every channel with its own
    weight (@eq-baselines-compose), the RGB sums with each code's mean weight; the rest is drawn with the mean of the codes -> (b, 3, s, s)."""
    net, (b, n) = prior.synthesis, w.shape[:2]
    if block not in range(len(net.to_rgbs) - 1):
        raise ValueError(f"block is {block}, needs 0 … {len(net.to_rgbs) - 2}")
    w_all, w_mean = w.flatten(0, 1), w.mean(1)
    h = net.convs[0](net.constant.expand(b * n, -1, -1, -1), w_all[:, 0], net.noise0)
    image = net.to_rgbs[0](h, w_all[:, 1])
    codes, share = w_all, alpha.mean(2, keepdim=True)
    for k, to_rgb in enumerate(net.to_rgbs[1:]):
        if k == block:
            h = (h.unflatten(0, (b, n)) * alpha[..., None, None]).sum(1)
            image = (image.unflatten(0, (b, n)) * share[..., None, None]).sum(1)
            codes = w_mean
        i = 2 * k + 1
        h = net.convs[i + 1](net.convs[i](h, codes[:, i], getattr(net, f"noise{i}")), codes[:, i + 1], getattr(net, f"noise{i + 1}"))
        image = to_rgb(h, codes[:, i + 2], image)
    return image


def mganprior(x, prior, factor=1, n=8, block=1, steps=200, lr=0.05, seed=0):
    """mGANprior: n codes and n weights per channel found together, so that the composed face, reduced by `factor`, is the reduced x. -> `Inversion`.

    x (b, 3, s, s) in [-1, 1]. `block`: where features are added, 0 before the step to 8 px, 1 to 16 px, …: the later, the closer to x and the weaker the prior.
    As in `pulse`, the start of picture i is the i-th draw of `seed`.
    """
    _fits(x, prior)
    if block not in range(len(prior.synthesis.to_rgbs) - 1):
        raise ValueError(f"block is {block}, needs 0 … {len(prior.synthesis.to_rgbs) - 2}")
    start, d = time.perf_counter(), prior.synthesis.style_dim
    z = torch.randn(len(x), n, d, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device).requires_grad_(True)
    channels = prior.synthesis.convs[2 * block + 1].conv.weight.shape[1]       # of what enters the block
    alpha = torch.full((len(x), n, channels), 1 / n, dtype=x.dtype, device=x.device, requires_grad=True)
    target, optimizer, losses = shrink(x, factor), torch.optim.Adam([z, alpha], lr), []
    face = lambda: compose(prior, prior.mapping(z.flatten(0, 1)).unflatten(0, z.shape[:2])[:, :, None].expand(-1, -1, prior.synthesis.n_codes, -1), alpha, block)
    for _ in range(steps):
        loss = (shrink(face(), factor) - target).square().mean((1, 2, 3))
        losses.append(float(loss.detach().mean()))
        optimizer.zero_grad()
        loss.sum().backward(inputs=[z, alpha])
        optimizer.step()
    with torch.no_grad():
        return Inversion(face(), dict(z=z.detach(), alpha=alpha.detach()), losses, time.perf_counter() - start)

# %% [markdown]
# # StyleGAN2, the prior {#sec-stylegan2}

# %%
#| default_exp stylegan2

# %%
#| export
import math

import torch
import torch.nn.functional as F
from torch import nn

from gfpgan_edu.layers import SLOPE, SQRT2, EqualizedLinear, Resample

# %%
#| export
def widths(size, channel_multiplier=1.0, narrow=1.0):
    """Channels of the prior at each resolution {4: …, 8: …, …, size: …}: 512 up to 32 px, then halving, times the two factors.

    Raises ValueError unless `size` is a power of two from 8 to 1024 and every width is at least 2 and even (Eq. 4 splits it).
    """
    if size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"size is {size}, needs a power of two from 8 to 1024")
    out = {}
    for s in (2**i for i in range(2, int(math.log2(size)) + 1)):
        out[s] = int(512 * narrow) if s <= 32 else int(16384 // s * channel_multiplier * narrow)
        if out[s] < 2 or out[s] % 2:
            raise ValueError(f"width at {s} px is {out[s]}, needs an even number >= 2: raise narrow ({narrow}) or channel_multiplier ({channel_multiplier})")
    return out


# %%
#| export
class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style (@eq-modulate): x (b, cin, h, w), w (b, style_dim) -> (b, cout, h', w').

    Input-scaling form: scale x by s, one shared convolution, scale the result by d (@eq-demod). `up=True` doubles the size.
    """

    def __init__(self, cin, cout, kernel, style_dim, *, demodulate=True, up=False, resample="fir", gain=1.0, equalized=True):
        super().__init__()
        self.weight_gain = 1 / math.sqrt(cin * kernel**2) if equalized else 1.0
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * (1.0 if equalized else 1 / math.sqrt(cin * kernel**2)))
        self.modulation = EqualizedLinear(style_dim, cin, bias_init=1.0, equalized=equalized)
        self.demodulate, self.up, self.gain = demodulate, up, gain
        self.resample = Resample(resample)

    def forward(self, x, w):
        s = self.modulation(w)                                             # (b, cin)
        weight = self.weight * self.weight_gain                            # (cout, cin, k, k)
        x, pad = x * s[:, :, None, None], weight.shape[-1] // 2
        if self.up and self.resample.mode == "fir":
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)    # 2h + 1
            y = self.resample.smooth(y, pad=1, gain=4.0)                   # 2h; 4 replaces the zeros that the stride put in
        else:
            y = F.conv2d(self.resample.up(x) if self.up else x, weight, padding=pad)
        if self.demodulate:
            norm = (s.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()   # d: (b, cout)
            y = y * (norm * self.gain)[:, :, None, None]
        return y


# %%
#| export
class StyleConv(nn.Module):
    """Modulated 3×3 convolution, plus strength × noise, plus bias, leaky ReLU: (b, cin, h, w) -> (b, cout, h', w').

    `noise` is (1 or b, 1, h', w'), or None for none.
    """

    def __init__(self, cin, cout, style_dim, *, up=False, resample="fir", equalized=True):
        super().__init__()
        self.conv = ModulatedConv2d(cin, cout, 3, style_dim, up=up, resample=resample, gain=SQRT2, equalized=equalized)
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.bias_gain = SQRT2 if equalized else 1.0       # the activation's √2, moved inside

    def forward(self, x, w, noise=None):
        y = self.conv(x, w)
        if noise is not None:
            y = y + self.noise_strength * self.bias_gain * noise
        return F.leaky_relu(y + (self.bias * self.bias_gain)[:, None, None], SLOPE)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to a picture, added to the upsampled picture so far: (b, cin, h, w), (b, 3, h/2, w/2) -> (b, 3, h, w)."""

    def __init__(self, cin, style_dim, *, resample="fir", equalized=True):
        super().__init__()
        self.conv = ModulatedConv2d(cin, 3, 1, style_dim, demodulate=False, equalized=equalized)
        self.bias = nn.Parameter(torch.zeros(3))
        self.resample = Resample(resample)

    def forward(self, x, w, image=None):
        y = self.conv(x, w) + self.bias[:, None, None]
        return y if image is None else y + self.resample.up(image)


# %%
#| export
class Mapping(nn.Module):
    """z (b, style_dim) -> w (b, style_dim): z is normalised to unit mean square, then passes n_mlp linear layers with leaky ReLU."""

    def __init__(self, style_dim=512, n_mlp=8, *, lr_mul=0.01, equalized=True):
        super().__init__()
        self.layers = nn.ModuleList(
            EqualizedLinear(style_dim, style_dim, gain=SQRT2, lr_mul=lr_mul, activate=True, equalized=equalized) for _ in range(n_mlp))

    def forward(self, z):
        z = z * (z.square().mean(-1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            z = layer(z)
        return z


# %%
#| export
NOISE_MODES = ("fixed", "random", "zero")


class Synthesis(nn.Module):
    """w (b, n_codes, style_dim) -> picture (b, 3, size, size), from a learned 4×4 constant; n_codes = 2·log2(size) - 2.

    Block k uses codes i, i+1 for its two convolutions and i+2 for its RGB layer, i advancing by 2: neighbours share a code.
    `modulate(h, k)`, where given, sees the feature h (b, c, s, s) after the first convolution of block k = 0, 1, … (8, 16, … px)
    and returns its replacement: the place where GFP-GAN acts. Noise: "fixed" (stored maps), "random" (drawn in forward order), "zero".
    """

    def __init__(self, channels, style_dim=512, *, resample="fir", equalized=True):
        super().__init__()
        sizes = sorted(channels)
        opts = dict(resample=resample, equalized=equalized)
        self.n_codes = 2 * len(sizes)
        self.constant = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.convs = nn.ModuleList([StyleConv(channels[4], channels[4], style_dim, **opts)])
        self.to_rgbs = nn.ModuleList([ToRGB(channels[4], style_dim, **opts)])
        for s in sizes[1:]:
            self.convs.append(StyleConv(channels[s // 2], channels[s], style_dim, up=True, **opts))
            self.convs.append(StyleConv(channels[s], channels[s], style_dim, **opts))
            self.to_rgbs.append(ToRGB(channels[s], style_dim, **opts))
        for i, s in enumerate([4] + [s for s in sizes[1:] for _ in (0, 1)]):
            self.register_buffer(f"noise{i}", torch.randn(1, 1, s, s))

    def _noise(self, i, mode, b):
        fixed = getattr(self, f"noise{i}")
        if mode == "random":
            return fixed.new_empty(b, *fixed.shape[1:]).normal_()
        return fixed if mode == "fixed" else None

    def forward(self, w, noise="fixed", modulate=None):
        if noise not in NOISE_MODES:
            raise ValueError(f"noise is {noise!r}, needs one of {NOISE_MODES}")
        b = w.shape[0]
        h = self.convs[0](self.constant.expand(b, -1, -1, -1), w[:, 0], self._noise(0, noise, b))
        image = self.to_rgbs[0](h, w[:, 1])
        for k in range(len(self.to_rgbs) - 1):
            i = 2 * k + 1
            h = self.convs[i](h, w[:, i], self._noise(i, noise, b))
            if modulate is not None:
                h = modulate(h, k)
            h = self.convs[i + 1](h, w[:, i + 1], self._noise(i + 1, noise, b))
            image = self.to_rgbs[k + 1](h, w[:, i + 2], image)
        return image


# %%
#| export
class StyleGAN2(nn.Module):
    """The generator: z (b, style_dim) -> picture (b, 3, size, size) in about [-1, 1]. `mapping` and `synthesis` can be called alone."""

    def __init__(self, size=512, style_dim=512, n_mlp=8, channel_multiplier=1.0, narrow=1.0, *, resample="fir", equalized=True):
        super().__init__()
        self.mapping = Mapping(style_dim, n_mlp, equalized=equalized)
        self.synthesis = Synthesis(widths(size, channel_multiplier, narrow), style_dim, resample=resample, equalized=equalized)

    def codes(self, w):
        "w (b, style_dim) -> the same code for every layer, (b, n_codes, style_dim)."
        return w[:, None].expand(-1, self.synthesis.n_codes, -1)

    def forward(self, z, *, truncation=1.0, w_mean=None, mix_with=None, crossover=None, noise="fixed"):
        """z (b, style_dim). Truncation moves w towards `w_mean` (@eq-truncation); codes from `crossover` on come from `mix_with` (b, style_dim)."""
        w = self.codes(truncate(self.mapping(z), w_mean, truncation))
        if mix_with is not None:
            w = mix(w, self.codes(truncate(self.mapping(mix_with), w_mean, truncation)), crossover)
        return self.synthesis(w, noise=noise)

    @torch.no_grad()
    def mean_w(self, n=4096, generator=None):
        "Mean of w over n draws of z, (1, style_dim): the centre that truncation moves towards."
        p = next(self.parameters())
        z = torch.randn(n, self.mapping.layers[0].weight.shape[1], generator=generator, dtype=p.dtype).to(p.device)
        return self.mapping(z).mean(0, keepdim=True)


def truncate(w, w_mean, psi):
    "w_mean + psi·(w - w_mean): psi = 1 leaves w (b, style_dim), psi = 0 gives the mean (@eq-truncation)."
    if psi == 1:
        return w
    if w_mean is None:
        raise ValueError("truncation needs w_mean: pass StyleGAN2.mean_w()")
    return w_mean + psi * (w - w_mean)


def mix(w1, w2, crossover):
    "Style mixing of two (b, n_codes, style_dim): codes 0 … crossover-1 from w1 (coarse), the rest from w2 (fine)."
    if crossover is None or not 0 <= crossover <= w1.shape[1]:
        raise ValueError(f"crossover is {crossover}, needs 0 … {w1.shape[1]}")
    return torch.cat([w1[:, :crossover], w2[:, crossover:]], dim=1)

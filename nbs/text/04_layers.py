# %% [markdown]
# # Layers {#sec-layers}

# %%
#| default_exp layers

# %%
#| export
import math

import torch
import torch.nn.functional as F
from torch import nn

# %%
#| export
SLOPE = 0.2               # negative slope of every leaky ReLU of the method
SQRT2 = math.sqrt(2.0)    # keeps the variance through a leaky ReLU close to 1


class EqualizedConv2d(nn.Module):
    """k×k convolution, same padding: x (b, cin, h, w) -> leaky_relu?(conv(x, c·W) + g·bias), (b, cout, h/stride, w/stride).

    `equalized=True` stores W ~ N(0, 1) and multiplies it at run time by c = gain/√(cin·k²) (@eq-equalized), so that Adam moves
    every layer at the same relative speed; `equalized=False` stores the product (c = g = 1). Both start as the same function.
    `gain` is applied inside the activation: leaky_relu(g·z) = g·leaky_relu(z) for g > 0.
    """

    def __init__(self, cin, cout, kernel=3, *, bias=True, bias_init=0.0, gain=1.0, activate=False, equalized=True):
        super().__init__()
        std = gain / math.sqrt(cin * kernel**2)
        self.weight_gain, self.bias_gain = (std, gain) if equalized else (1.0, 1.0)
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * (1.0 if equalized else std))
        self.bias = nn.Parameter(torch.full((cout,), bias_init * (1.0 if equalized else gain))) if bias else None
        self.activate = activate

    def forward(self, x, stride=1, padding=None):
        pad = self.weight.shape[-1] // 2 if padding is None else padding
        bias = self.bias if self.bias is None else self.bias * self.bias_gain
        y = F.conv2d(x, self.weight * self.weight_gain, bias, stride=stride, padding=pad)
        return F.leaky_relu(y, SLOPE) if self.activate else y


# %%
#| export
class EqualizedLinear(nn.Module):
    """Fully connected layer, x (..., cin) -> (..., cout), scaled as `EqualizedConv2d`.

    `lr_mul` slows a layer down further: W is stored 1/lr_mul larger and used lr_mul smaller, the bias likewise (StyleGAN's
    mapping network uses 0.01).
    """

    def __init__(self, cin, cout, *, bias_init=0.0, gain=1.0, lr_mul=1.0, activate=False, equalized=True):
        super().__init__()
        std = gain / math.sqrt(cin)
        self.weight_gain, self.bias_gain = (std * lr_mul, gain * lr_mul) if equalized else (1.0, 1.0)
        self.weight = nn.Parameter(torch.randn(cout, cin) * (1.0 / lr_mul if equalized else std))
        self.bias = nn.Parameter(torch.full((cout,), bias_init / lr_mul if equalized else bias_init * gain))
        self.activate = activate

    def forward(self, x):
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(y, SLOPE) if self.activate else y


# %%
#| export
def fir_kernel(taps=(1, 3, 3, 1)):
    "Two-dimensional low-pass kernel (k, k), float64: outer product of `taps`, normalised to sum 1."
    t = torch.tensor(taps, dtype=torch.float64)
    return torch.outer(t, t) / t.sum()**2


def upfirdn(x, kernel, up=1, down=1, pad=(0, 0)):
    """Readable reference of FIR resampling: insert `up`-1 zeros after each sample, pad both axes, convolve, keep every `down`-th.

    x (b, c, h, w), kernel (k, k) -> (b, c, h', w') with h' = (h·up + pad[0] + pad[1] - k) // down + 1.
    """
    b, c, h, w = x.shape
    z = x.new_zeros(b, c, h, up, w, up)
    z[:, :, :, 0, :, 0] = x
    z = F.pad(z.reshape(b, c, h * up, w * up), (*pad, *pad))
    flipped = kernel.to(x).flip(0, 1).expand(c, 1, *kernel.shape)  # conv2d correlates; a filter convolves
    return F.conv2d(z, flipped, groups=c)[:, :, ::down, ::down]


# %%
#| export
class Resample(nn.Module):
    """The two ways this network changes resolution: `mode="fir"` (the paper's model) or `"bilinear"` (the clean models).

    `up(x)` doubles and `down(x)` halves the size of x (b, c, h, w); `smooth(x, pad, gain)` only low-passes, for use beside a strided convolution.
    """

    def __init__(self, mode):
        super().__init__()
        if mode not in ("fir", "bilinear"):
            raise ValueError(f"resample is {mode!r}, needs 'fir' or 'bilinear'")
        self.mode = mode
        self.register_buffer("kernel", fir_kernel().flip(0, 1), persistent=False)

    def _depthwise(self, x, gain=1.0):
        return (self.kernel * gain).to(x).expand(x.shape[1], 1, *self.kernel.shape)

    def smooth(self, x, pad, gain=1.0):
        return F.conv2d(x, self._depthwise(x, gain), padding=pad, groups=x.shape[1])

    def up(self, x):
        if self.mode == "bilinear":
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv_transpose2d(x, self._depthwise(x, 4.0), stride=2, padding=1, groups=x.shape[1])

    def down(self, x):
        if self.mode == "bilinear":
            return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)  # the mean of each 2×2 block
        return F.conv2d(x, self._depthwise(x), stride=2, padding=1, groups=x.shape[1])

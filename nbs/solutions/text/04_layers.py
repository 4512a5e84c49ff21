# %% [markdown]
# # Solutions: layers {#sec-solutions-layers .unnumbered}
#
# The exercises are those of @sec-layers.

# %%
import math

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.layers import SLOPE, SQRT2, EqualizedConv2d, Resample, fir_kernel, upfirdn

torch.manual_seed(0);


# %% [markdown]
# ## 1. Compute: the exact gain
#
# *Which gain makes @eq-layers-square exact, and how much does $\sqrt2$ add over 45 layers?* With weights of standard deviation $g/\sqrt n$ the mean square is multiplied by $\tfrac12(1+s^2)\,g^2$ per layer. It stays 1 for $g=\sqrt{2/(1+s^2)}=1.387$. The rounder $\sqrt2$ multiplies it by $1+s^2=1.04$.

# %%
def sizes(gain, depth=45, width=512):
    "Root mean square of the features after each of `depth` random layers, as in the chapter."
    x, out = torch.randn(256, width), []
    for _ in range(depth):
        x = F.leaky_relu(x @ torch.randn(width, width) * gain / width**0.5, SLOPE)
        out.append(x.square().mean().sqrt().item())
    return np.array(out)


exact = math.sqrt(2 / (1 + SLOPE**2))
growth, factor = sizes(SQRT2)[-1] / sizes(exact)[-1], 1.04 ** (45 / 2)
print(f"exact gain {exact:.3f}; after 45 layers √2 is larger by {growth:.1f}, "
      f"predicted {factor:.1f}")
assert 0.7 < growth / factor < 1.4 and 0.7 < sizes(exact)[-1] < 1.4
# closer: wide, fewer layers
ratio = sizes(SQRT2, 10, 2048) / sizes(exact, 10, 2048)
np.testing.assert_allclose(ratio[-1], 1.04**5, rtol=0.06)


# %% [markdown]
# The exact gain is 1.387, and $\sqrt2$ enlarges the features by $1.04^{22.5}\approx2.4$ after 45 layers: harmless, and one number less to remember.
#
# ## 2. Modify: taps 1, 5, 10, 10, 5, 1
#
# *Give `Resample` these taps. Predict the curve, find the paddings, measure.* The taps are those of five averagings of neighbours in a row, each of which leaves $\cos(\pi f)$ of a wave: the curve is $\cos^5$. Halving $n$ samples with 6 taps and stride 2 gives $(n+2p-6)/2+1=n/2$ for $p=2$,
# and the transposed convolution $2(n-1)+6-2p=2n$ for $p=2$ too. `smooth` before a strided 3×3 convolution must give $n+1$ samples: $p=3$.

# %%
class Longer(Resample):
    "The `fir` mode of `Resample` with six taps."

    def __init__(self):
        super().__init__("fir")
        self.kernel = fir_kernel((1, 5, 10, 10, 5, 1))

    def _strided(self, conv, x, gain=1.0):
        return conv(x, self._depthwise(x, gain), stride=2, padding=2, groups=x.shape[1])


longer, x = Longer(), torch.randn(1, 2, 32, 32)
assert longer.down(x).shape == (1, 2, 16, 16)
assert longer.up(x).shape == (1, 2, 64, 64)
assert longer.smooth(x, pad=3).shape[-1] == 33
assert_close(longer.down(x), upfirdn(x, longer.kernel, down=2, pad=(2, 2)), atol=1e-6, rtol=1e-5)
assert_close(longer.up(x), 4 * upfirdn(x, longer.kernel, up=2, pad=(3, 2)), atol=1e-6, rtol=1e-5)
# cycles per pixel, along one axis
for f in (1 / 16, 1 / 8, 3 / 16, 3 / 8):
    wave = torch.exp(2j * math.pi * f * torch.arange(64)).expand(1, 1, 64, 64)
    parts = [longer.down(part.contiguous())[..., 4:-4, 4:-4] for part in (wave.real, wave.imag)]
    amplitude = torch.complex(*parts).abs().mean().item()
    assert_close(amplitude, math.cos(math.pi * f) ** 5, atol=1e-4, rtol=1e-4)

# %%
noise = torch.randn(1, 1, 1, 4096, dtype=torch.float64)
spectrum, freq = torch.fft.rfft(noise), torch.fft.rfftfreq(4096)
low, high = (torch.fft.irfft(spectrum * m).expand(1, 1, 16, 4096)
             for m in (freq < 0.25, freq >= 0.25))
power = lambda y: y[..., 3:-3, 3:-3].square().mean().item()
grid = (np.arange(4000) + 0.5) / 8000
for name, net, order in (("1, 3, 3, 1", Resample("fir"), 3), ("1, 5, 10, 10, 5, 1", longer, 5)):
    kept, leaked = (power(net.double().down(part)) / power(part) for part in (low, high))
    response = np.cos(np.pi * grid) ** (2 * order)
    print(f"{name:18} keeps {kept:4.0%} of the power that fits, "
          f"lets {leaked:4.1%} of the rest alias")
    want = [response[grid < 0.25].mean(), response[grid > 0.25].mean()]
    np.testing.assert_allclose([kept, leaked], want, rtol=0.1, atol=0.003)


# %% [markdown]
# The longer filter lets about a seventh of the aliases of the shorter one through, and pays with another fifth of the power that would have fitted: more blur for less false detail.
#
# ## 3. Break: no gain on the bias
#
# *Take the `bias_gain` out. Which check turns red, and why not at the initial value?* The check of the chapter is that a layer with its scales baked in computes the same function: weight times `weight_gain`, bias times `bias_gain`.

# %%
class NoBiasGain(EqualizedConv2d):
    def forward(self, x, stride=1, padding=None):
        y = F.conv2d(x, self.weight * self.weight_gain, self.bias, stride=stride,
                     padding=self.weight.shape[-1] // 2)
        return F.leaky_relu(y, SLOPE) if self.activate else y


def baked_agrees(layer):
    "The same layer with `equalized=False` and the products stored must give the same output."
    plain = EqualizedConv2d(2, 4, gain=SQRT2, activate=True, equalized=False)
    with torch.no_grad():
        plain.weight.copy_(layer.weight * layer.weight_gain)
        plain.bias.copy_(layer.bias * layer.bias_gain)
        assert_close(layer(x), plain(x), atol=1e-5, rtol=1e-4)


broken = NoBiasGain(2, 4, gain=SQRT2, activate=True)
baked_agrees(broken)  # green: all biases are 0
torch.nn.init.normal_(broken.bias)
test_fail(lambda: baked_agrees(broken), exc=AssertionError, contains="not close")
whole = EqualizedConv2d(2, 4, gain=SQRT2, activate=True)
torch.nn.init.normal_(whole.bias)
baked_agrees(whole)

# %% [markdown]
# The check of equal functions turns red, and only with a bias that is not 0: a missing factor on 0 is no factor at all. That is why checks should run on weights that have left their initial values.

# %% [markdown]
# # Channel-split spatial feature transform {#sec-csft}

# %%
#| default_exp csft

# %%
#| export
import torch
from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d

# %%
#| export
def _check(name, got, want):
    if got.shape != want.shape:
        raise ValueError(f"{name} is {tuple(got.shape)}, needs {tuple(want.shape)}")


def sft(f, alpha, beta):
    "Spatial feature transform (Eq. 3): alpha ⊙ f + beta, all (b, c, h, w). Raises ValueError on unequal shapes."
    _check("alpha", alpha, f), _check("beta", beta, f)
    return f * alpha + beta


# %%
#| export
def cs_sft(f, alpha, beta):
    "Channel split (Eq. 4): f (b, c, h, w) keeps its first c/2 channels; the rest become alpha ⊙ f + beta, both (b, c/2, h, w)."
    keep, mod = f.chunk(2, dim=1)
    return torch.cat([keep, sft(mod, alpha, beta)], dim=1)


# %%
#| export
class ConditionHead(nn.Module):
    """F_spatial (b, cin, s, s) -> (alpha, beta), each (b, cout, s, s): two 3×3 convolutions each; alpha starts at 1, beta at 0.

    At the start of training the last bias alone gives alpha = 1 + small, beta = small: the prior is nearly untouched.
    """

    def __init__(self, cin, cout, *, equalized=True):
        super().__init__()

        def head(bias_init):
            return nn.Sequential(EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized),
                                 EqualizedConv2d(cin, cout, bias_init=bias_init, equalized=equalized))

        self.scale, self.shift = head(1.0), head(0.0)

    def forward(self, f):
        return self.scale(f), self.shift(f)

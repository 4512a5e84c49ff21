# %% [markdown]
# # Discriminators {#sec-discriminators}

# %%
#| default_exp discriminators

# %%
#| export
import torch
from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d, EqualizedLinear, Resample
from gfpgan_edu.stylegan2 import widths
from gfpgan_edu.unet import DownBlock


# %%
#| export
def minibatch_stddev(h, group=4):
    """Append one map that tells how much the samples of a group differ: h (b, c, s, s) -> (b, c + 1, s, s).

    The group is the largest divisor of b that is at most `group`; sample i belongs with i + b/g, i + 2b/g, … (as in StyleGAN2).
    """
    b, c, s, _ = h.shape
    g = next(g for g in range(min(b, group), 0, -1) if b % g == 0)
    spread = (h.view(g, b // g, c, s, s).var(0, unbiased=False) + 1e-8).sqrt()     # over the group: (b/g, c, s, s)
    return torch.cat([h, spread.mean((1, 2, 3)).repeat(g)[:, None, None, None].expand(b, 1, s, s)], 1)


# %%
#| export
class Discriminator(nn.Module):
    """The judge of whole pictures, as in StyleGAN2: x (b, 3, size, size) -> scores (b, 1), high for real.

    log2(size) - 2 residual blocks down to 4×4, the spread of the minibatch, two linear layers. FIR resampling.
    """

    def __init__(self, size=512, channel_multiplier=1.0, narrow=1.0, stddev_group=4):
        super().__init__()
        self.config = dict(size=size, channel_multiplier=channel_multiplier, narrow=narrow, stddev_group=stddev_group)
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


# %%
#| export
class ComponentDiscriminator(nn.Module):
    """The judge of one part of the face: crop x (b, 3, h, w) -> (map of scores (b, 1, h/4, w/4), [f1 (b, 2c, h/2, w/2), f2 (b, 4c, h/4, w/4)]).

    Six convolutions, two of them with stride 2, so each score sees a patch. f1, f2 feed the feature style loss (@eq-comp). c = width.
    """

    def __init__(self, width=64):
        super().__init__()
        conv = lambda cin, cout: EqualizedConv2d(cin, cout, gain=SQRT2, activate=True)
        self.conv1, self.conv2, self.conv3 = conv(3, width), conv(width, 2 * width), conv(2 * width, 2 * width)
        self.conv4, self.conv5 = conv(2 * width, 4 * width), conv(4 * width, 4 * width)
        self.score = EqualizedConv2d(4 * width, 1)
        self.resample = Resample("fir")

    def forward(self, x):
        down = lambda conv, h: conv(self.resample.smooth(h, pad=2), stride=2, padding=0)
        f1 = self.conv3(down(self.conv2, self.conv1(x)))
        f2 = self.conv5(down(self.conv4, f1))
        return self.score(f2), [f1, f2]


# %%
#| export
def official_names(net):
    "(our key, official key) for every tensor of a `Discriminator` or a `ComponentDiscriminator`."
    conv = lambda ours, theirs, i: [(f"{ours}.weight", f"{theirs}.{i}.weight"), (f"{ours}.bias", f"{theirs}.{i + 1}.bias")]
    both = lambda ours, theirs: [(f"{ours}.{p}", f"{theirs}.{p}") for p in ("weight", "bias")]
    if isinstance(net, ComponentDiscriminator):
        pairs = [conv(f"conv{i}", f"conv{i}", int(i in (2, 4))) for i in range(1, 6)] + [both("score", "final_conv.0")]
        return sum(pairs, [])
    pairs = conv("first", "conv_body.0", 0)
    for i in range(len(net.blocks)):
        ours, theirs = f"blocks.{i}", f"conv_body.{i + 1}"
        pairs += conv(f"{ours}.conv1", f"{theirs}.conv1", 0) + conv(f"{ours}.conv2", f"{theirs}.conv2", 1) + [(f"{ours}.skip.weight", f"{theirs}.skip.1.weight")]
    return pairs + conv("last", "final_conv", 0) + both("hidden", "final_linear.0") + both("score", "final_linear.1")


def load_official(net, state, source="state dict"):
    "Fill `net` from the official state dict of its kind; returns net. Names or shapes that differ are a ValueError."
    own, pairs = net.state_dict(), official_names(net)
    odd = sorted({theirs for _, theirs in pairs} ^ set(state))
    odd += [theirs for ours, theirs in pairs if theirs in state and state[theirs].shape != own[ours].shape]
    if odd:
        raise ValueError(f"{source}: not a {type(net).__name__} of this size; {len(odd)} names or shapes differ, first {odd[0]}")
    net.load_state_dict({ours: state[theirs] for ours, theirs in pairs})
    return net

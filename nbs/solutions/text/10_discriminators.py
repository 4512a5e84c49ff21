# %% [markdown]
# # Solutions: discriminators {#sec-solutions-discriminators .unnumbered}
#
# The exercises are those of @sec-discriminators.

# %%
import torch
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.discriminators import (ComponentDiscriminator, Discriminator, load_official,
                                       minibatch_stddev, official_names)
from gfpgan_edu.layers import SQRT2, EqualizedConv2d


# %% [markdown]
# ## 1. Compute: a larger patch
#
# *How large is the patch of one score with a third stride-2 convolution, and at which crop size does each score see the whole crop?* A kernel of size $k$ at a jump of $j$ pixels adds $(k-1)\,j$. Up to `conv5` that makes $1+2+3+2+4+6+4+8=30$ px at jump 4. The new filter adds 12, the new convolution 8, and the scores then stand 8 px apart, so the last one adds 16: 66 instead of 38 px.

# %%
class Third(ComponentDiscriminator):
    def __init__(self, width=4):
        super().__init__(width)
        self.conv6 = EqualizedConv2d(4 * width, 4 * width, gain=SQRT2, activate=True)

    def forward(self, x):
        _, taps = super().forward(x)
        h = self.conv6(self.resample.smooth(taps[1], pad=2), stride=2, padding=0)
        return self.score(h), taps


def seen(net, size, i):
    "First and last column of the crop on which score number i of the middle row depends."
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, size, requires_grad=True)
    scores = net(x)[0]
    scores[0, 0, scores.shape[2] // 2, i].backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero()
    return columns.min().item(), columns.max().item()


# %%
torch.manual_seed(0)
two, three = ComponentDiscriminator(4), Third()
patch = [1 + last - first for first, last in (seen(two, 160, 20), seen(three, 160, 10))]
print(f"patch of one score: {patch[0]} px, with a third halving {patch[1]} px")
assert patch == [38, 66]

whole = [s for s in range(8, 80, 8) if all(seen(three, s, i) == (0, s - 1) for i in range(s // 8))]
print(f"crops of up to {max(whole)} px are seen whole by every score")
middle = max(s for s in range(8, 80, 8) if seen(three, s, s // 16) == (0, s - 1))
print(f"the one in the middle sees crops of up to {middle} px whole")
assert max(whole) < 40 < middle < 66


# %% [markdown]
# The patch becomes 66 px wide, and the score in the middle sees nearly as large a crop whole. One at the edge looks half into the zeros outside, so *every* score sees everything only up to half of that, 32 px; the crops of the method have 80 and 120 px at 512 px. A patch that is smaller than the crop is what makes the judge look at texture.
#
# ## 2. Modify: the spread of each channel
#
# *Append the spread of each channel, so that $2c$ channels come out. Which lines change, and which official weights load?* The mean over channels goes; the mean over places stays. In `Discriminator` one line changes, the number of inputs of `last`.

# %%
def channel_stddev(h, group=4):
    b, c, s, _ = h.shape
    g = next(g for g in range(min(b, group), 0, -1) if b % g == 0)
    spread = (h.view(g, b // g, c, s, s).var(0, unbiased=False) + 1e-8).sqrt()
    m = spread.mean((2, 3)).repeat(g, 1)
    return torch.cat([h, m[:, :, None, None].expand(b, c, s, s)], 1)


class ByChannel(Discriminator):
    def __init__(self, **config):
        super().__init__(**config)
        n4 = self.hidden.weight.shape[0]
        self.last = EqualizedConv2d(2 * n4, n4, gain=SQRT2, activate=True)

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.score(self.hidden(self.last(channel_stddev(h, self.stddev_group)).flatten(1)))


# %%
h = torch.randn(8, 3, 4, 4)
# the mean of the new maps is the old one
assert_close(channel_stddev(h)[:, 3:].mean(1), minibatch_stddev(h)[:, 3])
usual, by_channel = Discriminator(size=32, narrow=1 / 16), ByChannel(size=32, narrow=1 / 16)
state = {theirs: usual.state_dict()[ours] for ours, theirs in official_names(usual)}
own = by_channel.state_dict()
misfits = [theirs for ours, theirs in official_names(by_channel)
           if state[theirs].shape != own[ours].shape]
print(f"of {len(state)} official tensors {len(state) - len(misfits)} fit; not {misfits}")
test_fail(lambda: load_official(by_channel, state), exc=ValueError, contains="final_conv.0.weight")
assert misfits == ["final_conv.0.weight"] and by_channel(torch.randn(4, 3, 32, 32)).shape == (4, 1)


# %% [markdown]
# All tensors but one load: the weight of the last convolution has twice the inputs. Its first $c$ input channels could be copied, and the rest set to the old channel's weights divided by $c$: then the function is the old one at the start.
#
# ## 3. Break: other groups
#
# *View as `(b // g, g, …)` with the variance over the second axis. Which checks turn red, and is training on one GPU worse?* The groups are now neighbours, `0 1 2 3` and `4 5 6 7`, while `repeat(g)` still hands the spreads out in turns.

# %%
def neighbours(h, group=4):
    b, c, s, _ = h.shape
    g = next(g for g in range(min(b, group), 0, -1) if b % g == 0)
    spread = (h.view(b // g, g, c, s, s).var(1, unbiased=False) + 1e-8).sqrt()
    m = spread.mean((1, 2, 3)).repeat(g)
    return torch.cat([h, m[:, None, None, None].expand(b, 1, s, s)], 1)


def by_loop(f):
    h = torch.randn(8, 3, 2, 2)
    for i in range(8):
        mates = h[[j for j in range(8) if j % 2 == i % 2]]                    # b/g = 2
        assert_close(f(h)[i, 3, 0, 0], (mates.var(0, unbiased=False) + 1e-8).sqrt().mean())


def shared_by_two_processes(f):
    h = torch.randn(8, 3, 2, 2)
    for rank in (0, 1):
        assert_close(f(h[rank::2])[:, 3], f(h)[rank::2, 3])


# %%
def equal_samples(f):
    assert_close(f(torch.ones(4, 3, 2, 2))[:, 3], torch.full((4, 2, 2), 1e-4))


torch.manual_seed(0)
for check in (by_loop, shared_by_two_processes):    # these two turn red …
    check(minibatch_stddev)
    test_fail(lambda: check(neighbours), exc=AssertionError)
for grouping in (minibatch_stddev, neighbours):     # … and this one does not
    equal_samples(grouping)
h = torch.randn(4, 3, 2, 2)
assert_close(neighbours(h), minibatch_stddev(h))    # up to the size of a group nothing changes
spread = lambda f: f(torch.randn(8, 3, 2, 2))[0, 3, 0, 0]
chance = torch.stack([spread(f) for f in (minibatch_stddev, neighbours) for _ in range(400)])
means = chance.view(2, 400).mean(1)
print("mean spread of unrelated samples:", *(f"{v:.2f}" for v in means))
assert abs(means.diff()) < 0.03

# %% [markdown]
# The loop and the comparison of two processes with one turn red. On one GPU training would not become worse: the samples of a batch are in random order, so one grouping is as good as another, though a sample may now be told the spread of the other group. Official weights would give other scores, and several GPUs other results than one.

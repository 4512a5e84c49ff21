# %% [markdown]
# # Solutions: speed {#sec-solutions-speed .unnumbered}
#
# The exercises are those of @sec-speed.

# %%
import inspect
import time

import torch
import torch.nn.functional as F
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu import inference
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.inference import FusedGFPGAN, FusedModulatedConv2d, fuse
from gfpgan_edu.stylegan2 import ModulatedConv2d, widths

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: where the style goes
#
# *For a clean network with `channel_multiplier=2`, from which size on is the style multiplied into the weight?* The weight of a layer with $c$ channels has $9c^2$ numbers, its map $c\,s^2$. The smaller one is multiplied: the weight where $9c<s^2$. Twice as many channels at 64 px mean $c=512$, and $9\cdot512=4608$ is more than $64^2=4096$.

# %%
first = {}
for multiplier in (1, 2):
    rows = {s: (9 * c * c, c * s * s) for s, c in widths(512, multiplier).items()}
    first[multiplier] = min(s for s, (weight, feature) in rows.items() if weight < feature)
    weight, feature = rows[64]
    print(f"channel multiplier {multiplier}: from {first[multiplier]} px on; "
          f"at 64 px the weight has {weight:,} numbers, the map {feature:,}")
assert first == {1: 64, 2: 128}
layer = ModulatedConv2d(512, 512, 3, 8, resample="bilinear", equalized=False)
fused = FusedModulatedConv2d(layer, torch.zeros(512), torch.float32)
assert fused.weight.numel() > torch.empty(1, 512, 64, 64).numel()      # what `forward` compares


# %% [markdown]
# From 128 px instead of 64. It is close at 64 px, where both ways cost nearly the same.
#
# ## 2. Modify: folding for batches
#
# *Let `FusedModulatedConv2d` fold for batches, with `groups=b`. From which batch on is it slower?* The pictures of a batch become groups of one wide picture, and each gets its own weight. The multiplications are the same; but $b$ weights have to be made and read, and a convolution in groups has less to reuse.

# %%
class Folding(FusedModulatedConv2d):
    def forward(self, x, w):
        if self.transposed:
            return super().forward(x, w)
        s, b = F.linear(w, self.modulation, self.shift), len(x)
        d = torch.full_like(s[:, :1], self.gain)
        if self.demodulate:
            d = (s.square() @ self.squares + 1e-8).rsqrt() * self.gain
        x = self.resample.up(x) if self.up else x
        weight = self.weight * (d[:, :, None] * s[:, None])[..., None, None]  # (b, cout, cin, k, k)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), self.bias.repeat(b),
                     padding=weight.shape[-1] // 2, groups=b)
        return y.view(b, -1, *y.shape[2:])


torch.manual_seed(0)
conv, bias = ModulatedConv2d(32, 32, 3, 16, resample="bilinear"), torch.randn(32)
maps, folds = (cls(conv, bias, torch.float32) for cls in (FusedModulatedConv2d, Folding))
for b in (1, 3):
    x, w = torch.randn(b, 32, 24, 24), torch.randn(b, 16)
    with torch.inference_mode():
        assert_close(folds(x, w), conv(x, w) + bias[:, None, None], rtol=1e-4, atol=1e-4)
        assert_close(maps(x, w), folds(x, w), rtol=1e-4, atol=1e-4)


# %% tags=["volatile"]
def seconds(f, *args, n=12):
    "The quickest of n calls."
    taken = []
    with torch.inference_mode():
        for _ in range(n):
            start = time.perf_counter()
            f(*args)
            taken.append(time.perf_counter() - start)
    return min(taken)


for b in (1, 2, 4, 8):
    x, w = torch.randn(b, 32, 96, 96), torch.randn(b, 16)
    x = x.contiguous(memory_format=torch.channels_last)
    once, grouped = seconds(maps, x, w), seconds(folds, x, w)
    print(f"batch {b}: {1000 * once:.1f} ms as it is, {1000 * grouped:.1f} ms folded in groups")


# %% [markdown]
# The results are equal. The times depend on the machine and on the sizes; in the run above folding in groups is slower as soon as the batch has more than one picture, since `FusedModulatedConv2d` itself folds for one, and multiplying two maps costs less than leaving the fast kernels for groups. That is why it folds for one picture only.
#
# ## 3. Break: `h += skip`
#
# *Replace `h = h + skip` in `clean` by `h += skip`. Which check turns red, and whose map was written over?* The first `h` is `latent`, and every later one is an entry of `spatial`. Both are returned and still needed: by `to_w` and by the heads. The changed source goes to a class of its own, through the same `@patch`.

# %%
class InPlace(FusedGFPGAN):
    "A fused network with a `clean` of its own."


source = inspect.getsource(FusedGFPGAN.clean).replace("self: FusedGFPGAN", "self: InPlace")
assert source.count("h = h + skip") == 1
exec(source.replace("h = h + skip", "h += skip"), vars(inference) | dict(InPlace=InPlace))
assert InPlace.clean is not FusedGFPGAN.clean

# %%
net, x = GFPGAN(GFPGANConfig.tiny(32)).eval(), torch.rand(2, 3, 32, 32) * 2 - 1
with torch.inference_mode():
    right, broken = fuse(net), InPlace(net)
    assert_close(right(x)[0], net(x)[0], rtol=1e-4, atol=2e-4)
    test_fail(lambda: assert_close(broken(x)[0], net(x)[0], rtol=1e-4, atol=2e-4),
              exc=AssertionError, contains="not close")
    (latent, spatial), (want, features) = broken.clean(x), right.clean(x)
    names = ["F_latent", "8 px", "16 px", "32 px"]
    wrong = [n for n, a, b in zip(names, [latent, *spatial], [want, *features])
             if not torch.allclose(a, b, atol=1e-4)]
print("written over:", ", ".join(wrong))
assert wrong == ["F_latent", "8 px", "16 px"]

# %% [markdown]
# The comparison with the network as written turns red. $F_{latent}$ and all of $F_{spatial}$ but the last hold the sum with the skip: the codes and the maps are made from the wrong features, while the pictures of the U-Net, had they been asked for, would be right. In training PyTorch would have complained; with gradients off nobody does.

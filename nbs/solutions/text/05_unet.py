# %% [markdown]
# # Solutions: the U-Net {#sec-solutions-unet .unnumbered}
#
# The exercises are those of @sec-unet.

# %%
import numpy as np
import torch
import torch.nn.functional as F
from fastcore.test import test_fail
from torch import nn

from gfpgan_edu.degradation import SEVERE, degrade, sample_params
from gfpgan_edu.examples import example_faces
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.layers import SQRT2, EqualizedConv2d
from gfpgan_edu.unet import DownBlock, UNet

torch.set_num_threads(1)


# %% [markdown]
# ## 1. Compute: how deep for 80 px
#
# *How many levels until one number at the bottom sees 80 px?* In @eq-unet-field a FIR block adds, at a jump of $2^m$ px, $2+3+2$ samples: 3×3, four taps, 3×3. After $L$ blocks the field is $1+7(2^L-1)$, and the last 3×3 convolution adds $2\cdot2^L$: $9\cdot2^L-6$ px.

# %%
def field(levels):
    return 9 * 2**levels - 6


def measured(levels, size=256):
    "Width of the input that one number at the bottom depends on, by the gradient."
    torch.manual_seed(0)
    net = nn.Sequential(*(DownBlock(3, 3) for _ in range(levels)),
                        EqualizedConv2d(3, 3, activate=True)).double()
    x = torch.randn(1, 3, 32, size, dtype=torch.float64, requires_grad=True)
    y = net(x)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    return int((x.grad.abs().sum((0, 1, 2)) > 0).sum())


for levels in (2, 3, 4):
    print(f"{levels} levels: {field(levels)} px by the formula, {measured(levels)} px measured")
    assert measured(levels) == field(levels)
assert field(3) < 80 < field(4)


# %% [markdown]
# Four levels, which see 138 px; three see 66. Without the last convolution it is four as well, with 106 px. The paper's seven levels leave room for damage of several kinds on top of one another.
#
# ## 2. Modify: the head after the skip
#
# *Let the picture of $s$ px use the encoder's feature of $s$ px. What happens to the 8 and 16 px curves?* Only `forward` changes: the addition moves before the head. At 32 px there is nothing to add, since `skips` begins with the output of the first block, which is half the size.

# %%
class LateHeads(UNet):
    def forward(self, x):
        h, skips = self.first(x), []
        for block in self.down:
            h = block(h)
            skips.append(h)
        latent = h = self.last(h)
        spatial, pyramid = [], []
        h = h + skips.pop()                                # 4 px
        for block, to_rgb in zip(self.up, self.to_rgb):
            h = block(h)
            spatial.append(h)
            h = h + skips.pop() if skips else h            # 8, 16 px; nothing is left at 32
            pyramid.append(to_rgb(h))
        return latent, spatial, pyramid


# %% tags=["volatile"]
rng, faces = np.random.default_rng(0), example_faces(8, 32)
damaged = np.stack([degrade(f, sample_params(rng, SEVERE.at(32))) for f in faces])
y, x = to_tensor(faces), to_tensor(damaged)
targets = [F.avg_pool2d(y, 4), F.avg_pool2d(y, 2), y]


def learn(cls, steps=60):
    """Mean absolute error of the 8, 16 and 32 px pictures at each step, overfitting one batch as
    in the chapter."""
    torch.manual_seed(0)
    net, history = cls({s: 24 for s in (4, 8, 16, 32)}), []
    opt = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        errors = torch.stack([(p - t).abs().mean() for p, t in zip(net(x)[2], targets)])
        opt.zero_grad()
        errors.sum().backward()
        opt.step(), schedule.step()
        history.append(errors.detach())
    return torch.stack(history)


before, after = learn(UNet)[-5:].mean(0), learn(LateHeads)[-5:].mean(0)
for size, a, b in zip((8, 16, 32), before, after):
    print(f"{size:2} px: {a:.3f}, heads behind the skip {b:.3f}")
assert after[0] < 0.8 * before[0] and after[1] < 0.9 * before[1]
assert abs(after[2] / before[2] - 1) < 0.15


# %% [markdown]
# The heads of 8 and 16 px end clearly lower: they now see the damaged face at their own resolution, and the way through the bottom is no longer all they have. The 32 px error stays as it was. To change it one would have to keep the output of `first`, the only encoder feature of 32 px. (60 steps here instead of 200.)
#
# ## 3. Break: √2 in `conv2`
#
# *Set the gain of `conv2` in `DownBlock` to $\sqrt2$. Which checks turn red, and what is the mean square after seven blocks?* By @eq-layers-square the long path of a flat picture then has a mean square of $1.04\cdot1.04$ instead of $1.04\cdot0.52$, and the short one adds 0.5: each block multiplies by 1.58, and seven by $1.58^7\approx25$.
# The long path by hand is the first check; its weights have no gain, and the $1/\sqrt2$ comes at the end.

# %%
class Loud(DownBlock):
    def __init__(self, cin, cout, **options):
        super().__init__(cin, cout, **options)
        self.conv2 = EqualizedConv2d(cin, cout, gain=SQRT2, activate=True)


def equals_its_definition(cls):
    "Bilinear `DownBlock` against one in plain PyTorch, √2 in the activations and 1/√2 in the sum."
    torch.manual_seed(0)
    block = cls(6, 10, resample="bilinear").double()
    x = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    scaled = lambda conv: conv.weight / conv.weight[0].numel() ** 0.5
    act = lambda h: F.leaky_relu(h, 0.2) * 2**0.5
    h = act(F.conv2d(F.avg_pool2d(act(F.conv2d(x, scaled(block.conv1), padding=1)), 2),
                     scaled(block.conv2), padding=1))
    want = (h + F.conv2d(F.avg_pool2d(x, 2), scaled(block.skip))) / 2**0.5
    torch.testing.assert_close(block(x), want)


# %%
def growth(cls, n=7, width=128, seed=0):
    "Mean squares after n blocks on flat pictures: each block gets the middle of the one before."
    torch.manual_seed(seed)
    h, out = torch.randn(16, width), []
    with torch.no_grad():
        for _ in range(n):
            flat = h[:, :, None, None].expand(-1, -1, 8, 8)
            h = cls(width, width, resample="bilinear")(flat)[:, :, 2, 2]
            out.append(h.square().mean().item())
    return out


def keeps_the_size(cls):
    assert 0.9 < growth(cls, n=1)[0] < 1.2, growth(cls, n=1)


for check in (equals_its_definition, keeps_the_size):
    check(DownBlock)
    test_fail(lambda: check(Loud), exc=AssertionError)
usual, loud = (np.mean([growth(cls, seed=seed) for seed in range(5)], 0)
               for cls in (DownBlock, Loud))
print("mean squares:", " ".join(f"{v:.1f}" for v in usual),
      "and with √2:", " ".join(f"{v:.1f}" for v in loud))
assert 8 < loud[-1] < 40 and usual[-1] < 3

# %% [markdown]
# The comparison with a written-out block and the check of the mean square turn red; shapes, counts and receptive fields stay green. The measured growth is about half of the estimate, as @eq-layers-square assumes independent inputs that are symmetric about 0, and features are neither. A signal that is four times too large after seven blocks is no disaster: training would survive it, and start worse.

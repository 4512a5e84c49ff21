# %% [markdown]
# # Solutions: GFP-GAN {#sec-solutions-gfpgan .unnumbered}
#
# The exercises are those of @sec-gfpgan.

# %%
import torch
import torch.nn.functional as F
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.stylegan2 import Synthesis, layer_noise, widths

torch.set_num_threads(1)


# %% [markdown]
# ## 1. Compute: 1024 px
#
# *How many parameters at 1024 px with channel multiplier 1?* Codes: $2\log_2 1024-2=18$. The prior has 512 channels up to 32 px, then 256, 128, 64, 32 and, new, 16 at 1024 px; the U-Net and the heads half of each. So two codes come in (each $8192\cdot512$ weights in `to_w`, much the largest part), and one more block everywhere, with few channels.
# With $p$ and $c$ for the widths of the prior and the U-Net at the new size, $P=2p$, $C=2c$ for those at half of it, and style length $d$:

# %%
def new_block(p, c, d=512):
    """Parameters that one more level adds: codes, U-Net down and up, picture head, condition head,
    two style layers, RGB layer."""
    P, C = 2 * p, 2 * c
    conv = lambda cin, cout, k=3: cin * cout * k * k + cout
    codes = 2 * d * (256 * 16 + 1)
    # the 1×1 convolution on RGB has c channels now
    first = conv(3, c, 1) - conv(3, C, 1)
    down = conv(c, c) + conv(c, C) + c * C
    up = conv(C, C) + conv(C, c) + C * c + conv(c, 3, 1)
    heads = 2 * (conv(c, c) + conv(c, p // 2))
    # weights, modulation, noise strength, bias
    style = lambda cin, cout: 9 * cin * cout + d * cin + cin + 1 + cout
    return codes + first + down + up + heads + style(P, p) + style(p, p) + (3 * p + d * p + p + 3)


with torch.device("meta"):
    nets = {s: GFPGAN(GFPGANConfig(size=s)) for s in (512, 1024)}
count = {s: sum(p.numel() for p in net.parameters()) for s, net in nets.items()}
derived = count[512] + new_block(16, 8)
print(f"512 px: {count[512]:,}; derived for 1024: {derived:,}; counted: {count[1024]:,}")
assert count[1024] == derived
assert nets[1024].decoder.synthesis.n_codes == 18 and widths(1024)[1024] == 16


# %% [markdown]
# 80.5 million, 4.3 million more than at 512 px, of which 4.2 million are the two codes: four times the pixels for six percent more weights.
#
# ## 2. Modify: maps after the second convolution
#
# *Let the maps act after the second convolution of each block. Which shapes change, and does the tiny net memorise better?* Both convolutions of a block return the same number of channels at the same size, so no tensor changes its shape and the same weights load. What changes is who sees the modulated feature: the RGB layer now gets it directly, without a convolution between.

# %%
class LateMaps(Synthesis):
    def forward(self, w, noise="fixed", modulate=None):
        n = lambda i: layer_noise(getattr(self, f"noise{i}"), noise, len(w))
        h = self.convs[0](self.constant.expand(len(w), -1, -1, -1), w[:, 0], n(0))
        image = self.to_rgbs[0](h, w[:, 1])
        for k, to_rgb in enumerate(self.to_rgbs[1:]):
            i = 2 * k + 1
            h = self.convs[i + 1](self.convs[i](h, w[:, i], n(i)), w[:, i + 1], n(i + 1))
            h = modulate(h, k)  # the only line that moved
            image = to_rgb(h, w[:, i + 2], image)
        return image


# %%
face = to_tensor(example_faces(1, 64))
degraded = F.interpolate(F.avg_pool2d(face, 4), size=64, mode="bilinear")
targets = [F.avg_pool2d(face, 64 // s) for s in (8, 16, 32, 64)]


def memorise(synthesis=Synthesis, steps=45):
    "The tiny net learns one face by heart, as in the chapter -> (error of the last 10 steps, net)."
    torch.manual_seed(0)
    net, errors = GFPGAN(GFPGANConfig.tiny()), []
    net.decoder.synthesis.__class__ = synthesis
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=steps)
    for _ in range(steps):
        image, pyramid = net(degraded)
        errors.append(F.l1_loss(image, face))
        loss = errors[-1] + sum(F.l1_loss(p, t) for p, t in zip(pyramid, targets))
        optimizer.zero_grad(), loss.backward()
        optimizer.step(), schedule.step()
    return torch.stack(errors[-10:]).mean().item(), net


# %% tags=["volatile"]
(early, net), (late, other) = memorise(), memorise(LateMaps)
print(f"error after 45 steps: maps after the first convolution {early:.3f}, "
      f"after the second {late:.3f}; the input's {F.l1_loss(degraded, face):.3f}")
assert all(a.shape == b.shape
           for a, b in zip(net.state_dict().values(), other.state_dict().values()))
assert late < 2 * early


# %% [markdown]
# No shape changes, and the error is the same within what another seed would change: the second convolution was no obstacle. (45 steps here instead of 200; both are still above the error of the input, and fall alike.) The official weights would be of no use, though, as they were trained for the first place.
#
# ## 3. Break: the neighbour's code
#
# *Let the RGB layer use code `i + 1` instead of `i + 2`. Which check notices, and would shapes or a picture notice?* The codes are all of one length, so the shapes agree. The check is the comparison of the class with the function written out by hand.

# %% tags=["volatile"]
#| fig-alt: "Four small faces: the truth, restored with its own code, with another code, and by a network that was trained so."
class WrongCode(Synthesis):
    def forward(self, w, noise="fixed", modulate=None):
        n = lambda i: layer_noise(getattr(self, f"noise{i}"), noise, len(w))
        h = self.convs[0](self.constant.expand(len(w), -1, -1, -1), w[:, 0], n(0))
        image = self.to_rgbs[0](h, w[:, 1])
        for k, to_rgb in enumerate(self.to_rgbs[1:]):
            i = 2 * k + 1
            h = modulate(self.convs[i](h, w[:, i], n(i)), k)
            h = self.convs[i + 1](h, w[:, i + 1], n(i + 1))
            image = to_rgb(h, w[:, i + 1], image)  # the wrong code
        return image


with torch.no_grad():
    right = net(degraded)[0]
    net.decoder.synthesis.__class__ = WrongCode
    wrong = net(degraded)[0]
assert wrong.shape == right.shape
test_fail(lambda: assert_close(wrong, right, rtol=1e-4, atol=1e-4), exc=AssertionError,
          contains="not close")
trained, habit = memorise(WrongCode)
print(f"same weights, wrong code: up to {(wrong - right).abs().max():.1f} apart; "
      f"trained with it: error {trained:.3f} beside {early:.3f}")
assert trained < 2 * early and (wrong - right).abs().max() > 0.01
with torch.no_grad():
    show([face[0], right[0], wrong[0], habit(degraded)[0][0]],
         ["face", "right code", "wrong code", "trained with it"], height=1.4);

# %% [markdown]
# Only the comparison of numbers notices. Shapes are equal, and a network that is trained with the wrong code learns the face as well, since `to_w` makes all codes afresh. The mistake would surface with somebody else's weights.

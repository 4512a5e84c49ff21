# %% [markdown]
# # Solutions: the channel split {#sec-solutions-csft .unnumbered}
#
# The exercises are those of @sec-csft.

# %%
import torch
from fastcore.test import test_fail
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu import gfpgan, load_weights
from gfpgan_edu.csft import ConditionHead, cs_sft, sft
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.stylegan2 import widths
from gfpgan_edu.unet import UNet
from gfpgan_edu.weights import load_prior

torch.set_num_threads(1)


# %% [markdown]
# ## 1. Compute: what a head costs
#
# *How many multiplications does a head take at 512 px, and which share do 256 and 512 px have?* A head has two branches. Each is a 3×3 convolution from $c$ to $c$ and one from $c$ to $n$ channels: $2\cdot 9\,(c^2+c\,n)\,s^2$, with $c=16$ at 512 px and $n=16$ (half) or $32$ (full).
# Up from 32 px the width halves when the size doubles, so $c\,s$ and the cost stay the same; 16 px costs a quarter and 8 px a sixteenth of it.

# %%
def cost(c, n, s):
    return 2 * 9 * (c * c + c * n) * s * s


def counted(c, n, s):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ConditionHead(c, n)(torch.empty(1, c, s, s))
    # a multiplication and an addition count as 2
    return counter.get_total_flops() // 2


prior = widths(512)
half = {s: cost(n // 2, n // 2, s) for s, n in prior.items() if s > 4}
full = {s: cost(n // 2, n, s) for s, n in prior.items() if s > 4}
assert all(half[s] == counted(prior[s] // 2, prior[s] // 2, s)
           and full[s] == counted(prior[s] // 2, prior[s], s) for s in half)
share = (half[256] + half[512]) / sum(half.values())
print(f"512 px: {half[512] / 1e9:.2f} G for half, {full[512] / 1e9:.2f} G for full; "
      f"256 and 512 px have {share:.1%} of all")
assert share == 2 / (5 + 1 / 4 + 1 / 16)

# %% [markdown]
# 2.4 and 3.6 billion: the split saves a third, not a half, since the first convolutions stay. 256 and 512 px take 38 % together, as each size from 32 px up costs the same.
#
# ## 2. Modify: heads that start silent
#
# *Set the last weights of all heads to zero. Show that the prior's picture comes back, and that the first layers get no gradient at first. Why does training start?* With $W_2=0$ a head returns its bias, 1 or 0, whatever goes in. The gradient of $W_2$ is (error) × (hidden feature), which is not zero;
# the gradient of $W_1$ passes through $W_2$, which is.

# %%
torch.manual_seed(4)
net = load_prior("bundled").requires_grad_(False)
size = net.config["size"]
width = widths(size, net.config["channel_multiplier"], net.config["narrow"])
unet = UNet({s: c // 2 for s, c in width.items()})
heads = nn.ModuleList(ConditionHead(c // 2, c // 2) for s, c in width.items() if s > 4)
for head in heads:
    nn.init.zeros_(head.scale[1].weight), nn.init.zeros_(head.shift[1].weight)
face = to_tensor(example_faces(1, size))
w = net.codes(net.mapping(torch.randn(1, net.config["style_dim"])))


def restore():
    _, spatial, _ = unet(face)
    return net.synthesis(w, modulate=lambda h, k: cs_sft(h, *heads[k](spatial[k])))


# %%
assert_close(restore(), net.synthesis(w))
opt = torch.optim.Adam([*heads.parameters(), *unet.parameters()], lr=1e-3)
for step in (1, 2):
    opt.zero_grad()
    (restore() - face).square().mean().backward()
    moved = {name: sum(b[i].weight.grad.abs().sum().item()
                       for h in heads for b in (h.scale, h.shift))
             for i, name in enumerate(("first", "last"))}
    opt.step()
    print(f"step {step}: first layers {'get a gradient' if moved['first'] else 'get none'}, "
          f"last layers {'get one' if moved['last'] else 'get none'}")
    assert (moved["first"] > 0) == (step == 2) and moved["last"] > 0
assert unet.first.weight.grad.any()


# %% [markdown]
# The first step moves the last weights only; from the second step on they are not zero, and the gradient reaches the heads' first layers and the U-Net. Training starts at exactly the prior's picture, one step late.
#
# ## 3. Break: the wrong half
#
# *Swap the halves in `cs_sft`. Which checks turn red, and which picture would have shown it?* The checks of the chapter, once more, on the swapped function.

# %%
def swapped(f, alpha, beta):
    mod, keep = f.chunk(2, dim=1)
    return torch.cat([sft(mod, alpha, beta), keep], dim=1)


torch.manual_seed(0)
f, alpha, beta = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
ones, zeros = torch.ones_like(alpha), torch.zeros_like(beta)
element = alpha[1, 2, 2, 3] * f[1, 6, 2, 3] + beta[1, 2, 2, 3]
whole = sft(f, torch.cat([ones, alpha], 1), torch.cat([zeros, beta], 1))
checks = {
    "scale 1, shift 0 changes nothing": lambda t: assert_close(t(f, ones, zeros), f),
    "first half kept bit for bit":
        lambda t: assert_close(t(f, alpha, beta)[:, :4], f[:, :4], rtol=0, atol=0),
    "one element by hand": lambda t: assert_close(t(f, alpha, beta)[1, 6, 2, 3], element),
    "Eq. 4 is Eq. 3 with half of it fixed": lambda t: assert_close(t(f, alpha, beta), whole),
    "wrong shapes are refused":
        lambda t: test_fail(lambda: t(f, alpha[:, :2], beta), exc=ValueError),
}
red = []
for name, check in checks.items():
    check(cs_sft)
    try:
        check(swapped)
    except AssertionError:
        red.append(name)
    print(f"{name:38} {'red' if name in red else 'green'}")
assert len(red) == 3

# %%
#| fig-alt: "Three faces: the input, the result with the right half of the channels, and one with the wrong half."
restorer, clean = load_weights("bundled"), example_faces(1, 64, seed=3)[0]
x = to_tensor(degrade(clean, DegradationParams(1.0, 1.0, r=2.0, delta=6, noise_seed=1)))
with torch.no_grad():
    right = restorer(x)[0]
    gfpgan.cs_sft = swapped
    wrong = restorer(x)[0]
    gfpgan.cs_sft = cs_sft
errors = [(p - to_tensor(clean)).abs().mean().item() for p in (right, wrong)]
print(f"mean error {errors[0]:.2f} with the right half, {errors[1]:.2f} with the wrong one")
assert errors[1] > 2 * errors[0]
show([x[0], right[0], wrong[0]], ["input", "right half", "wrong half"], height=1.4);

# %% [markdown]
# Whatever looks at single channels turns red; the identity and the shapes cannot tell the halves apart. A network trained with swapped halves would look just as good, since its channels have no names. The picture that shows it is that of a *trained* network: weights from elsewhere, here the bundled ones, fall to pieces.

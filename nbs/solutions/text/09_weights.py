# %% [markdown]
# # Solutions: weights {#sec-solutions-weights .unnumbered}
#
# The exercises are those of @sec-weights.

# %%
import torch
import torch.nn.functional as F
from fastcore.test import test_fail

from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.layers import EqualizedConv2d, EqualizedLinear
from gfpgan_edu.stylegan2 import ModulatedConv2d, StyleConv

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: bytes
#
# *How many bytes does the paper's model need, how many of them are noise maps, and which part does restoration never run?* The state has the parameters and, as buffers, one map per style convolution: one of 4 px and two for each size up to 512 px. Restoration gets its codes from `to_w`, so the mapping network of the prior is never called.

# %%
with torch.device("meta"):
    net = GFPGAN(GFPGANConfig.paper())
numbers = {k: v.numel() for k, v in net.state_dict().items()}
noise = sum(n for k, n in numbers.items() if ".noise" in k and not k.endswith("strength"))
mapping = sum(n for k, n in numbers.items() if k.startswith("decoder.mapping"))
total = sum(numbers.values())
print(f"{total:,} numbers: {4 * total / 1e6:.0f} MB in 32 bits, {2 * total / 1e6:.0f} MB in 16; "
      f"noise maps {noise / total:.2%}; mapping network {mapping / total:.2%}")
assert total - noise == sum(p.numel() for p in net.parameters())
assert noise == 16 + 2 * sum(s * s for s in (8, 16, 32, 64, 128, 256, 512))

tiny = GFPGAN(GFPGANConfig.tiny()).eval()
x = torch.rand(1, 3, 64, 64) * 2 - 1
with torch.no_grad():
    before = tiny(x)[0]
    del tiny.decoder.mapping
    assert torch.equal(tiny(x)[0], before)                                    # nobody misses it


# %% [markdown]
# 308 MB and half of it; the noise maps are 0.9 %. The mapping network, 2.7 %, could be left out of a file that only restores. (The heads of the pyramid run, but nobody reads what they paint; they are 3,045 numbers.)
#
# ## 2. Modify: between two networks
#
# *Write `blend(a, b, t)` and look at snapshots of one training. Does it work for two seeds?* Two snapshots of one run lie in the same valley: the way between them is short and nearly straight. Two seeds give channels in another order, and the mean of two unrelated channels is neither. A network that learns one small face by heart shows it.

# %% tags=["volatile"]
def blend(a, b, t):
    "A network of a's config with the weights (1 - t)·a + t·b."
    if a.config != b.config:
        raise ValueError("networks of different configs have nothing to blend")
    net, other = GFPGAN(a.config), b.state_dict()
    mixed = {k: v.lerp(other[k], t) if v.is_floating_point() else v
             for k, v in a.state_dict().items()}
    net.load_state_dict(mixed)
    return net.eval()


face = to_tensor(example_faces(1, 32))
small = F.interpolate(F.avg_pool2d(face, 4), size=32, mode="bilinear")


# %% tags=["volatile"]
def snapshots(seed, at=(30, 60)):
    torch.manual_seed(seed)
    net, out = GFPGAN(GFPGANConfig.tiny(32)), []
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.9, 0.99))
    for step in range(1, max(at) + 1):
        optimizer.zero_grad()
        F.l1_loss(net(small)[0], face).backward()
        optimizer.step()
        if step in at:
            out.append(blend(net, net, 0.0))
    return out


first, second = snapshots(0)
stranger = snapshots(1)[1]
shares = (0, 0.25, 0.5, 0.75, 1)
with torch.no_grad():
    same, other = ([blend(a, second, t)(small)[0] for t in shares] for a in (first, stranger))
loss = lambda p: F.l1_loss(p, face)
for name, pictures in (("one training", same), ("two seeds", other)):
    print(f"{name:13}", *(f"{loss(p):.3f}" for p in pictures))
assert all(loss(p) < 1.2 * loss(same[0]) for p in same) and loss(other[2]) > 2 * loss(other[0])
test_fail(lambda: blend(first, tiny, 0.5), exc=ValueError, contains="configs")

# %%
#| fig-alt: "Two rows of five faces, between two sets of weights; the upper row stays a face all the way."
show([p[0] for p in (*same, *other)], [f"t = {t}" for t in shares],
     rows=("one training", "two seeds"), cols=5, height=1.2);


# %% [markdown]
# Between snapshots (upper row) every blend is a fair picture; this is what averaging over training (@sec-engine) lives on. Between two seeds (lower row) both ends show the face and the middle shows none.
#
# ## 3. Break: a line less in `to_clean`
#
# *Leave out the bias, then the noise strength. Which check notices, also on a fresh network?* The lines are those of `to_clean`; `skip` leaves one out. The check is that of the chapter, equal outputs, once on a fresh network and once on one whose weights have moved.

# %%
def to_clean(net, skip=None):
    clean, state = GFPGAN(net.config.replace(equalized=False)), net.state_dict()
    for name, m in net.named_modules():
        if isinstance(m, (EqualizedConv2d, EqualizedLinear, ModulatedConv2d)):
            state[f"{name}.weight"] = m.weight.detach() * m.weight_gain
        scaled = isinstance(m, (EqualizedConv2d, EqualizedLinear, StyleConv))
        if skip != "bias" and scaled and m.bias is not None:
            state[f"{name}.bias"] = m.bias.detach() * m.bias_gain
        if skip != "noise" and isinstance(m, StyleConv):
            state[f"{name}.noise_strength"] = m.noise_strength.detach() * m.bias_gain
    clean.load_state_dict(state)
    return clean


# %%
def same_output(net, skip):
    with torch.no_grad():
        return torch.allclose(net(small)[0], to_clean(net, skip)(small)[0], atol=1e-4)


torch.manual_seed(0)
fresh = GFPGAN(GFPGANConfig.tiny(32).replace(resample="bilinear"))
moved = blend(fresh, fresh, 0)
for p in moved.parameters():
    p.data += 0.2 * torch.randn_like(p)
for skip in (None, "bias", "noise"):
    colours = ["green" if same_output(net, skip) else "red" for net in (fresh, moved)]
    print(f"without {skip or 'nothing':7}: fresh {colours[0]}, moved {colours[1]}")
assert same_output(fresh, None) and same_output(moved, None)
assert not same_output(moved, "bias") and not same_output(moved, "noise")
assert same_output(fresh, "bias") and same_output(fresh, "noise")

# %% [markdown]
# Equal outputs notice both, but only where weights have moved: fresh biases are 0, or 1 where the gain is 1, and fresh noise strengths are 0. A check on a fresh network would have let both mistakes pass.

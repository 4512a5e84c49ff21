# %% [markdown]
# # Solutions: the prior {#sec-solutions-stylegan2 .unnumbered}
#
# The exercises are those of @sec-stylegan2.

# %%
import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

from gfpgan_edu.stylegan2 import ModulatedConv2d, Synthesis, widths

torch.set_num_threads(1)

torch.manual_seed(0);


# %% [markdown]
# ## 1. Compute: the variance behind a FIR filter
#
# *Which variance does a demodulated `up=True` layer return for white noise?* Demodulation counts all weights of a 3×3 kernel. But after the zeros are put in, a filter follows, with taps $(1,3,3,1)/4$ per axis (their sum is 2). One output sample along an axis is
# $\sum_{m,j}x_m w_j f_{n-2m-j}$. For each of the three $j$ the sum over $m$ meets every second tap, $1,3$ or $3,1$, whose squares add up to $10/16$ either way. With independent $w_j$ of variance $\tfrac13$ the variance is $10/16$ per axis and $(5/8)^2=0.39$ in two dimensions.

# %%
def variance(resample, up, seed=0):
    torch.manual_seed(seed)
    layer = ModulatedConv2d(64, 64, 3, 8, up=up, resample=resample)
    with torch.no_grad():
        y = layer(torch.randn(8, 64, 32, 32), torch.randn(8, 8))
    return y[..., 4:-4, 4:-4].var().item()


measured = {"not up": variance("fir", False), "up, fir": variance("fir", True)}
print({name: f"{v:.2f}" for name, v in measured.items()}, f"derived for fir: {(10 / 16) ** 2:.2f}")
assert abs(measured["not up"] - 1) < 0.03 and abs(measured["up, fir"] - (10 / 16) ** 2) < 0.02

# %% [markdown]
# 0.39 it is: noise becomes smooth when it is enlarged, and smooth noise has less variance. (It is the factor $\tfrac58$ of enlarged noise in @sec-degradation once more.) White noise is the worst case; features that are smooth already lose less.
#
# ## 2. Modify: a small generator inside a large one
#
# *Load the first layers of a 64 px `Synthesis` into a 32 px one and show that its picture is the sum of the first four shares.* The keys of the small one are a subset of those of the large one: constant, seven convolutions, four RGB layers, seven noise maps. A share is what one RGB layer adds; hooks collect their inputs.

# %%
large, small = Synthesis(widths(64, narrow=1 / 16), 16), Synthesis(widths(32, narrow=1 / 16), 16)
for conv in large.convs:
    torch.nn.init.normal_(conv.noise_strength)  # zeros would hide the noise
state = large.state_dict()
small.load_state_dict({k: state[k] for k in small.state_dict()})
w, inputs = torch.randn(2, large.n_codes, 16), []
hooks = [rgb.register_forward_pre_hook(lambda m, args: inputs.append(args))
         for rgb in large.to_rgbs]
with torch.no_grad():
    picture = large(w)
    for hook in hooks:
        hook.remove()
    shares = [rgb.conv(h, code) + rgb.bias[:, None, None]
              for rgb, (h, code, *_) in zip(large.to_rgbs, inputs)]
    total, up = shares[0], large.to_rgbs[1].resample.up
    for share in shares[1:4]:
        total = up(total) + share
    assert_close(small(w[:, :small.n_codes]), total, atol=1e-5, rtol=1e-4)
    assert_close(picture, up(total) + shares[4], atol=1e-5, rtol=1e-4)
print([tuple(s.shape[1:]) for s in shares], "codes:", large.n_codes, "and", small.n_codes)


# %% [markdown]
# The 32 px picture is the sum of four shares, and one more upsampling and share make the 64 px picture. Ten codes become eight: the last two speak to the last block. This is why a generator can grow during training, and why a pyramid of pictures comes for free.
#
# ## 3. Break: no demodulation
#
# *Remove the demodulation from every `StyleConv` of an untrained 256 px generator, double the code, and plot the sizes by depth.* A style is $1+$ a normal number times the code's size: its mean square is about $1+1=2$, and $1+4=5$ for the doubled code. Without demodulation each layer should multiply the features by about $\sqrt2$ or $\sqrt5$, less what the filters smooth away.

# %%
def sizes(demodulate, scale):
    "Standard deviation of the features after each StyleConv, for codes of mean square scale²."
    torch.manual_seed(0)
    net, out = Synthesis(widths(256, narrow=1 / 16), 64), []
    for layer in net.convs:
        layer.conv.demodulate = demodulate
        layer.register_forward_hook(lambda m, i, o: out.append(o.std().item()))
    w = scale * torch.randn(8, 1, 64).expand(-1, net.n_codes, -1)
    with torch.no_grad():
        net(w, noise="zero")
    return out


cases = {"demodulated": sizes(True, 1), "demodulated, code × 2": sizes(True, 2),
         "without": sizes(False, 1), "without, code × 2": sizes(False, 2)}
for name, v in cases.items():
    print(f"{name:22} from {v[0]:.1f} to {v[-1]:.2g} in {len(v)} layers")
assert 0.2 < cases["demodulated, code × 2"][-1] / cases["demodulated"][-1] < 5
loudest = cases["without, code × 2"][-1]
assert loudest > 50 * cases["without"][-1] and loudest > 1000 * cases["demodulated"][-1]

# %%
#| fig-alt: "Curves of the standard deviation over the convolutions, on a logarithmic axis."
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
for (name, v), colour, style in zip(cases.items(), ("#0072B2", "#56B4E9", "#E69F00", "#D55E00"),
                                    ("-", "--", "-", "--")):
    ax.plot(range(1, len(v) + 1), v, style, marker="o", ms=4, color=colour, label=name)
ax.set(yscale="log", xlabel="convolution", ylabel="standard deviation")
ax.legend(fontsize=8);

# %% [markdown]
# With demodulation the size of the code changes nothing; without it the features grow by a constant factor per layer, which the code decides. Thirteen layers turn a factor of two in the code into a factor of more than fifty in the features: no learning rate fits that.

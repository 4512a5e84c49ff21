# %% [markdown]
# # Solutions: GAN inversion {#sec-solutions-inversion .unnumbered}
#
# The exercises are those of @sec-inversion.

# %%
import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gfpgan_edu.baselines import gaussian_of_w, geocross, mganprior, on_sphere, pulse, shrink
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import example_faces
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.full_scale import Tally
from gfpgan_edu.weights import load_prior, load_weights

torch.set_num_threads(1)
seeded = lambda seed: torch.Generator().manual_seed(seed)
prior = load_prior("prior32").requires_grad_(False)
with torch.no_grad():
    w_mean = prior.mean_w(generator=seeded(0))
    z_true = torch.randn(2, prior.config["style_dim"], generator=seeded(27))
    w_true = w_mean + 0.7 * (prior.mapping(z_true) - w_mean)
    truth = prior.synthesis(prior.codes(w_true))
damage = DegradationParams(sigma_x=0.7, sigma_y=0.7, kernel_size=7, r=4, delta=5, q=60)
x = to_tensor(np.stack([degrade(f, damage) for f in np.ascontiguousarray(to_images(truth))]))


# %% [markdown]
# ## 1. Compute: the price of a step by block
#
# *With batches of 8 codes, how does the price of a step of mGANprior depend on `block`? Predict it from the operations of each layer, then measure.* What lies before the block runs for each of the $n$ codes, what lies behind it runs once. With $f_j$ the operations of layer $j$ for one picture and $m$ those of the mapping, a drawing costs $n\,(m+\sum_{before}f_j)+\sum_{behind}f_j$. The way back costs the same again: every convolution passes the gradient to what came in, and none is computed for the weights, which are frozen. (The styles are multiplied into the maps, so no weight depends on a code.)

# %%
def operations(run):
    "Operations of the convolutions and matrix products in run()."
    with Tally() as counter:
        run()
    return counter.cost[""].flops


net, cost = prior.synthesis, {}         # cost: (which list, number) -> operations for one picture
layers = {(kind, k): layer for kind, some in (("conv", net.convs), ("rgb", net.to_rgbs))
          for k, layer in enumerate(some)}
hooks = []
with Tally() as counter, torch.no_grad():
    for key, layer in layers.items():
        def before(module, args, key=key):
            cost[key] = -counter.cost[""].flops

        def after(module, args, out, key=key):
            cost[key] += counter.cost[""].flops

        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    prior.synthesis(prior.codes(w_true[:1]))
for h in hooks:
    h.remove()
mapping = operations(lambda: prior.mapping(z_true[:1]))
assert sum(cost.values()) == counter.cost[""].flops > 0         # nothing outside these layers

# block b is convs 2b + 1 and 2b + 2 and RGB layer b + 1
for block in range(len(net.to_rgbs) - 1):
    last = dict(conv=2 * block, rgb=block)
    each = mapping + sum(f for (kind, k), f in cost.items() if k <= last[kind])
    once = mapping + sum(cost.values()) - each
    one, two = (operations(lambda: mganprior(x[:1], prior, factor=4, n=8, block=block, steps=s))
                for s in (1, 2))
    print(f"block {block}: each code {each / 1e6:.1f}, once {once / 1e6:.1f}; a step predicted "
          f"{2 * (8 * each + once) / 1e6:.0f}, measured {(two - one) / 1e6:.0f} million operations")
    assert two - one == 2 * (8 * each + once)

# %% [markdown]
# The prediction is exact. The price rises with every block that is drawn eight times, most at the end, where maps are large.
#
# ## 2. Modify: stay near the codes of the pass
#
# *Give `refined` a term that keeps $w$ near $w_0$. Is there a weight at which the PSNR rises?* The codes are moved by a hook on `to_w`: whatever it returns, the search adds $d$ to it, and $\lambda\lVert d\rVert^2$, a mean over its numbers, to the misfit. So the network stays whole, with maps, noise and share.

# %%
restorer = load_weights("bundled").requires_grad_(False)
full = load_prior("bundled").requires_grad_(False)
with torch.no_grad():
    z = torch.randn(2, full.config["style_dim"], generator=seeded(27))
    drawn = full(z, truncation=0.7, w_mean=full.mean_w(generator=seeded(0)))
photo = to_tensor(cv2.resize(example_faces(1, 128)[0], (64, 64), interpolation=cv2.INTER_AREA))
faces = to_tensor(np.ascontiguousarray(to_images(torch.cat([drawn, photo]))))
damage = DegradationParams(sigma_x=1, sigma_y=1, kernel_size=9, r=4, delta=5, q=60)
originals = np.ascontiguousarray(to_images(faces))
blurred = to_tensor(np.stack([degrade(f, damage) for f in originals]))


def psnr(y, truth):
    error = (y.clamp(-1, 1) - truth).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


def refined(x, weight, steps=9, lr=0.04, factor=4):
    """Picture after `steps` steps on the codes, held near their start with `weight`.

    Besides, the misfit of the first and of the last picture.
    """
    d = torch.zeros(len(x), restorer.to_w.weight.shape[0], requires_grad=True)
    hook = restorer.to_w.register_forward_hook(lambda m, a, out: out + d)
    optimizer, misfit = torch.optim.Adam([d], lr), []
    try:
        for _ in range(steps + 1):
            y = restorer(x)[0]
            off = (shrink(y, factor) - shrink(x, factor)).square().mean((1, 2, 3))
            misfit.append(off.mean().item())
            optimizer.zero_grad()
            (off + weight * d.square().mean(1)).sum().backward()
            optimizer.step()
    finally:
        hook.remove()
    return y.detach(), misfit[0], misfit[-1]


# %%
start, rows = psnr(restorer(blurred)[0], faces), {}
for weight in (0, 0.1, 1, 10):
    y, first, last = refined(blurred, weight)
    rows[weight] = psnr(y, faces) - start, last / first
    print(f"weight {weight:3}: misfit {rows[weight][1]:.2f} of the start, "
          f"PSNR {rows[weight][0]:+.2f} dB against the pass")
most = max(gain for gain, _ in rows.values())
print(f"the best of them: {most:+.2f} dB")
assert rows[0][1] < rows[0.1][1] < 1
assert rows[0][0] < 0 and abs(rows[10][0]) < 0.3 and most < 0.3


# %% [markdown]
# The weight is a slider between two ends: none of it, and the search fits the damage; much of it, and the result is the pass. In between the last line tells what there is to gain: a few hundredths of a decibel, if that. What the search is missing is not a leash but knowledge of the damage.
#
# ## 3. Break: start at the answer
#
# *Start PULSE from the codes `z` that drew the samples. What is its loss at step 0, and why is the PSNR still not infinite after 100 steps?* First, which codes? PULSE searches in another space: its $z$ becomes $w$ through a Gaussian and a leaky ReLU, not through the mapping. Put into it as they are, the true $z$ are no better than any draw. The right start is the $w$ of the samples, taken back: $(\mathrm{lrelu}_5(w)-\mu)/\sigma$.

# %%
def pulse_from(z, x, truth, steps, lr=0.4, cross=0.05, sphere=True):
    """`pulse` from codes z (b, d), one for all layers -> losses and PSNR at every step.

    With `sphere` the codes are put on it, before the first step too.
    """
    mean, std = gaussian_of_w(prior)
    put = on_sphere if sphere else lambda z: z
    z = put(z[:, None].expand(-1, net.n_codes, -1)).clone().requires_grad_(True)
    optimizer, losses, dB = torch.optim.Adam([z], lr), [], []
    for step in range(steps + 1):
        t = (step + 1) / (steps + 1)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, t / 0.05, 0.05 + 0.95 * (1 - t) / 0.25)
        face = net(F.leaky_relu(z * std + mean, 0.2))
        loss = 100 * (shrink(face, 4) - shrink(x, 4)).square().mean((1, 2, 3)) + cross * geocross(z)
        losses.append(loss.mean().item())
        dB.append(psnr(face.detach(), truth))
        optimizer.zero_grad()
        loss.sum().backward(inputs=[z])
        optimizer.step()
        z.data = put(z.data)
    return losses, dB


# %%
mean, std = gaussian_of_w(prior)
back = (F.leaky_relu(w_true, 5) - mean) / std                   # undoes the slope 0.2
assert_close(F.leaky_relu(back * std + mean, 0.2), w_true, rtol=1e-4, atol=1e-5)
STEPS, runs = 30, {}
cases = (("z as it is", z_true, x, True),
         ("taken back, no sphere, clean target", back, truth, False),
         ("taken back, clean target", back, truth, True),
         ("taken back, damaged target", back, x, True))
for name, z, target, sphere in cases:
    runs[name] = losses, dB = pulse_from(z, target, truth, STEPS, sphere=sphere)
    print(f"{name:36} step 0: loss {losses[0]:.2f}, PSNR {min(dB[0], 99):.0f} dB; "
          f"step {STEPS}: loss {losses[-1]:.2f}, PSNR {dB[-1]:.0f} dB")
at_random = pulse(x, prior, factor=4, steps=1).losses[0]
own = 100 * (shrink(truth, 4) - shrink(x, 4)).square().mean().item()
print(f"a random start: loss {at_random:.2f}; the truth itself, with the damaged target: {own:.2f}")
assert runs["taken back, no sphere, clean target"][0][0] < 1e-6
assert 0.2 < runs["z as it is"][0][0] / at_random < 5
losses, dB = runs["taken back, damaged target"]
assert own > 0.01 and losses[0] > own and losses[-1] < losses[0] and max(dB) < 40

# %%
#| fig-alt: "Four curves of PSNR over steps. One starts at 60 and falls to 15 at the first step, the others start between 10 and 20; all climb slowly to about 20."
fig, ax = plt.subplots(figsize=(5.5, 2.7), layout="constrained")
for (name, (_, dB)), colour in zip(runs.items(), ("#444444", "#009E73", "#0072B2", "#D55E00")):
    ax.plot(np.minimum(dB, 60), color=colour, label=name)
ax.set(xlabel="step", ylabel="PSNR (dB), at most 60"), ax.legend(fontsize=7);

# %% [markdown]
# The loss at step 0 is not 0, for two reasons. The input is damaged, so that the truth itself does not agree with it; and the codes are put on the sphere, where the samples, drawn with truncation, are not. Without both the loss is 0 and the PSNR is that of rounding.
#
# The PSNR does not stay there. Adam's first steps have the size of its rate, however small the gradient is, so even a search that starts at the answer leaves it, and has to come back in the steps that are left. And with the damaged input even the truth has a loss, so a smaller one is no proof of being nearer to it.

# %% [markdown]
# # GAN inversion against one forward pass {#sec-inversion}
#
# > A search asks the prior a hundred times what a restorer has learned to ask once.
#
# **You will build** a meter that counts what a method runs, quality curves over that count for two searches, a test of starting the search where the restorer ends, and the number of photos from which training pays.
# **Needs** the searches of @sec-baselines, the assembled network of @sec-gfpgan, the embedder of @sec-identity.
# **Runs in** about 20 s on a laptop CPU.
#
# In this appendix @sec-baselines meets the restorer. PULSE [@menon2020pulse] and mGANprior [@gu2020mganprior] look for codes with which the *unchanged* prior draws something that agrees with the input. GFP-GAN reads codes and maps off the input in one pass. Here both get the same damaged faces, a prior of the same origin, and one currency.

# %%
import json
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_fail
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu.baselines import mganprior, pulse, shrink
from gfpgan_edu.csft import cs_sft
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.full_scale import Tally
from gfpgan_edu.identity import angle, load_embedder
from gfpgan_edu.weights import load_prior, load_weights

# %%
#| label: fig-inversion-map
#| fig-cap: "A search keeps the prior and the codes (blue). All that reads the input is replaced by gradient descent."
#| fig-alt: "The method as boxes and arrows; codes, StyleGAN2 and the restored face are coloured, the U-Net and the maps are not."
draw_map("latent", "stylegan2", "output");

# %% [markdown]
# @fig-inversion-map shows what a search does without: the U-Net, and the maps $\alpha,\beta$ that tell the prior where things are.
#
# ## The same three faces for all
#
# Two faces are samples of the bundled prior. For a search through this prior they are as easy as faces can be: an exact solution exists. The third is a photo, for which none exists. All are reduced to a quarter, with blur, noise and JPEG. PULSE is told the factor 4; GFP-GAN is not.

# %%
torch.set_num_threads(1)
seeded = lambda seed: torch.Generator().manual_seed(seed)
net = load_weights("bundled").requires_grad_(False)
prior, embed = load_prior("bundled").requires_grad_(False), load_embedder()
with torch.no_grad():
    z = torch.randn(2, prior.config["style_dim"], generator=seeded(27))
    drawn = prior(z, truncation=0.7, w_mean=prior.mean_w(generator=seeded(0)))
photo = to_tensor(cv2.resize(example_faces(1, 128)[0], (64, 64), interpolation=cv2.INTER_AREA))
truth = to_tensor(np.ascontiguousarray(to_images(torch.cat([drawn, photo]))))
damage = DegradationParams(sigma_x=1, sigma_y=1, kernel_size=9, r=4, delta=5, q=60)
x = to_tensor(np.stack([degrade(f, damage) for f in np.ascontiguousarray(to_images(truth))]))


def quality(y):
    "PSNR (dB) to the truth and identity angle (°) of the three pictures y, each (3,)."
    y = y.detach().clamp(-1, 1)
    dB = 10 * torch.log10(4 / (y - truth).square().mean((1, 2, 3)))
    return dB.numpy(), angle(embed(y), embed(truth)).numpy()


with torch.no_grad():
    once = net(x)[0]
two = lambda v: f"samples {v[:2].mean():.1f}, photo {v[2]:.1f}"
for name, y in (("input", x), ("GFP-GAN", once)):
    q = quality(y)
    print(f"{name:8} PSNR: {two(q[0])}; angle: {two(q[1])}")
# by hand: an error of 0.02 everywhere, but where it is clipped
shifted = quality(truth + 0.02)[0][2]
assert abs(shifted - 20 * np.log10(2 / 0.02)) < 0.5 and quality(truth)[1].max() < 0.1
assert (quality(once)[0] > quality(x)[0]).mean() > 0.5


# %% [markdown]
# ## One currency
#
# Seconds depend on the machine and on the care that went into each program. Multiplications do not. The tally of @sec-full-scale adds up the operations of every convolution and matrix product, forward and backward. (PyTorch's ready-made counter stumbles over mGANprior's leaves.) If a search takes $n$ steps, its price in units of one pass is
#
# $$P(n)=\frac{a\,n+b}{c}$$ {#eq-inversion-price}
#
# with $a$ the operations of one step (a picture, its gradient with respect to the codes), $b$ those of the start and the last picture, and $c$ those of one pass of GFP-GAN, U-Net included. If the model of a straight line is right, two short runs fix $a$ and $b$, and every longer run must lie on it to the last operation.

# %%
def operations(run):
    "Operations of the convolutions and matrix products in run(), by the tally of @sec-full-scale."
    with Tally() as counter:
        run()
    return counter.cost[""].flops


c = operations(lambda: net(x[:1]))
maps, kernels = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3)
by_hand = operations(lambda: torch.nn.functional.conv2d(maps, kernels, padding=1))
# multiply and add, two pictures, five channels, 8 × 8 places, 27 products
assert by_hand == 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
with FlopCounterMode(display=False) as theirs:
    net(x[:1])
assert c == theirs.get_total_flops()                            # PyTorch's own counter
assert operations(lambda: net(x[:3])) == 3 * c                  # two more faces, two more passes
print(f"one pass: {c / 1e9:.2f} billion operations")


# %%
def price(search):
    "(a, b) of @eq-inversion-price in operations, from 1 and 2 steps; 5 steps must agree exactly."
    one, twice, five = (operations(lambda: search(x[:1], prior, steps=n)) for n in (1, 2, 5))
    a = twice - one
    assert five == one + 4 * a
    return a, one - a


settings = {"PULSE": (pulse, dict(factor=4), 100),
            "mGANprior": (mganprior, dict(n=8, block=1, lr=0.1), 40)}
prices = {name: price(lambda x, p, steps: f(x, p, steps=steps, **kw))
          for name, (f, kw, _) in settings.items()}
for name, (a, b) in prices.items():
    print(f"{name}: a step {a / c:.2f} passes, start and end {b / c:.2f}; "
          f"100 steps cost {(100 * a + b) / c:.0f} passes")
assert all(a > 0.5 * c for a, _ in prices.values())


# %% [markdown]
# A step costs about a pass, or two: the gradient runs back through the prior, and mGANprior draws the first layers once for every code. So the price is, roughly, the number of steps.

# %% [markdown]
# ## What each step brings
#
# A hook on the prior keeps every picture that is tried. So one run gives the whole curve.

# %%
def watched(search, steps, **kw):
    """Runs the search -> (result, PSNR (steps, 3), angle (steps, 3)).

    The two tell the quality of the picture after each step.
    """
    # the output of this layer is the picture, in both searches
    seen, last = [], prior.synthesis.to_rgbs[-1]
    hook = last.register_forward_hook(lambda m, args, out: seen.append(quality(out)))
    try:
        found = search(x, prior, steps=steps, **kw)
    finally:
        hook.remove()
    return found, *map(np.array, zip(*seen))


runs = {name: watched(f, steps, **kw) for name, (f, kw, steps) in settings.items()}
for name, (found, dB, degrees) in runs.items():
    assert len(dB) == settings[name][2] + 1 and found.losses[-1] < found.losses[0] / 3
    assert_close(dB[-1], quality(found.image)[0])       # the last picture watched is the result
    print(f"{name:9} after {len(dB) - 1:3} steps: PSNR: {two(dB[-1])}; angle: {two(degrees[-1])}")

# %%
#| label: fig-inversion-curves
#| fig-cap: "Quality over the price in passes. Lines: the two searches, on samples of the prior (solid) and on the photo (dashed). Diamonds at 1: GFP-GAN, filled for samples, open for the photo."
#| fig-alt: "Two panels. PSNR rises with the price along two solid and two lower dashed lines; at price one, the filled diamond lies just below the end of PULSE's solid line, the open one above both dashed lines. Identity angles fall; the open diamond lies far below all lines."
fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
for k, (ax, label) in enumerate(zip(axes, ("PSNR to the truth (dB)", "identity angle (°)"))):
    for (name, run), colour in zip(runs.items(), ("#0072B2", "#E69F00")):
        a, b = prices[name]
        at = (a * np.arange(1, len(run[1]) + 1) + b) / c
        ax.plot(at, run[1 + k][:, :2].mean(1), color=colour, label=name)
        ax.plot(at, run[1 + k][:, 2], "--", color=colour, label=f"{name}, photo")
    q = quality(once)[k]
    ax.plot(1, q[:2].mean(), "D", color="#D55E00", label="GFP-GAN")
    ax.plot(1, q[2], "D", mfc="white", color="#D55E00", label="GFP-GAN, photo")
    ax.set(xscale="log", xlabel="passes of GFP-GAN per face", ylabel=label)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8);

# %%
#| label: fig-inversion-pictures
#| fig-cap: "Truth, input, one pass of GFP-GAN, PULSE after 100 steps, mGANprior after 40."
#| fig-alt: "Five rows of three small faces. Those of GFP-GAN resemble the truths, PULSE's are faces of somewhat different people, mGANprior's are blotched and unfinished."
rows = {"truth": truth, "input": x, "GFP-GAN": once,
        **{name: found.image for name, (found, _, _) in runs.items()}}
show([face for faces in rows.values() for face in faces], ["sample 1", "sample 2", "photo"],
     rows=rows, cols=3, height=1.1);

# %%
best = {name: (run[1][:, 2].max(), run[2][:, 2].min()) for name, run in runs.items()}
one, last = quality(once), [run[-1][:2].mean() for run in runs["PULSE"][1:]]
print(f"photo: GFP-GAN {one[0][2]:.1f} dB, {one[1][2]:.0f}°; best of all steps:",
      {n: f"{d:.1f} dB, {g:.0f}°" for n, (d, g) in best.items()})
assert all(d < one[0][2] and g > one[1][2] for d, g in best.values())
# on its own samples PULSE ends nearer
assert 0.5 < last[0] - one[0][:2].mean() < 2 and 2 < one[1][:2].mean() - last[1] < 10

# %% [markdown]
# Two stories in @fig-inversion-curves. On its own samples PULSE comes nearer than one pass, by a decibel or two and some degrees, for nearly a hundred times the operations: a solution exists, it knows the factor, and it has time. On the photo no step of either search reaches the restorer. PULSE's dashed lines flatten, since the picture is not among those that the prior can draw, and codes have no way to say "this strand of hair, here". That is the paper's point about "low-dimension latent codes" in its introduction, and the reason for the maps of @sec-csft. In @fig-inversion-pictures PULSE draws faces, but partly of others; mGANprior, after as many steps as fit in here, draws mixtures that are hardly faces. The one pass is no miracle either: the smile of the photo has become a narrow mouth.

# %% [markdown]
# ## Who tells the factor?
#
# PULSE compares pictures after a reduction by $f$. Blind restoration does not know $f$. What if it is wrong by two, in either direction?

# %%
wrong = {f: pulse(x, prior, factor=f, steps=40).image for f in (2, 4, 8)}
for f, y in wrong.items():
    q = quality(y)
    print(f"told {f}, true 4: PSNR: {two(q[0])}; angle: {two(q[1])}")
mean = {f: quality(y)[0].mean() for f, y in wrong.items()}
assert mean[8] < mean[4] - 0.5 and mean[8] < mean[2] < mean[4]
assert all(m < one[0].mean() for m in mean.values())
test_fail(lambda: pulse(x, prior, factor=3, steps=1), exc=ValueError, contains="divides")


# %% [markdown]
# Too large a factor throws away what the input still held, and costs most here. Too small a one makes the damage part of the target; it costs less, as this prior cannot draw such damage. A restorer that was trained on random damage carries the answer, on average over faces, in its weights.

# %% [markdown]
# ## Going on from the pass
#
# Is the best of both a search that *starts* at the restorer's codes, with its maps in place? The next cell moves the codes $w$ alone, by Adam, so that the restored face agrees with the input after reduction by the true factor:
#
# $$\min_w\ \big\lVert D_4\,G(w\,;\alpha,\beta)-D_4\,x\big\rVert^2,\qquad w_0=\mathrm{to\_w}(F_{latent})$$ {#eq-inversion-refine}
#
# $D_4$ is the bicubic reduction of @eq-baselines-shrink, $G(w;\alpha,\beta)$ the decoder with the maps made from $F_{spatial}$, mixed with the U-Net's own picture as ever (@eq-gfpgan-share).

# %%
def refined(x, steps, lr, factor=4):
    "Pictures after 0 … steps steps on the restorer's codes (@eq-inversion-refine), and misfits."
    with torch.no_grad():
        latent, spatial, pyramid = net.unet(x)
        maps = [head(f) for head, f in zip(net.heads, spatial)]
        w = net.to_w(latent.flatten(1)).unflatten(1, (-1, net.config.style_dim))
    w, pictures, misfit, target = w.clone().requires_grad_(True), [], [], shrink(x, factor)
    optimizer = torch.optim.Adam([w], lr)
    for _ in range(steps + 1):
        face = net.decoder.synthesis(w, modulate=lambda h, k: cs_sft(h, *maps[k]))
        y = torch.lerp(pyramid[-1], face, net.config.prior_share)
        loss = (shrink(y, factor) - target).square().mean((1, 2, 3))
        pictures.append(y.detach())
        misfit.append(loss.mean().item())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return pictures, misfit


pictures, misfit = refined(x, 30, 0.03)
# step 0 is the forward pass, built from its parts
assert_close(pictures[0], once, rtol=1e-4, atol=1e-4)
track = [quality(y) for y in pictures]
for k in (0, 5, 10, 30):
    print(f"step {k:2}: misfit to the input {misfit[k] / misfit[0]:.2f} of the start, "
          f"PSNR {track[k][0].mean():.2f} dB, angle {track[k][1].mean():.1f}°")
assert misfit[-1] < 0.5 * misfit[0]
assert track[-1][0].mean() < track[0][0].mean() and track[-1][1].mean() > track[0][1].mean()

# %% [markdown]
# The misfit falls and the face gets *worse*: in PSNR from the first steps on, in the angle at the end. The input is noisy and blocky, also after reduction. The pass had already left out what it took for noise; each further step brings some of it back. To be nearer to the input is not to be nearer to the truth, and the network has learned the difference, as far as its training damage goes.

# %% [markdown]
# ## When does training pay?
#
# One pass is cheap because the price was paid before. The bundled restorer saw some number of pictures in training. Each costs at least one pass and its gradients, about three passes; the judges come on top, and are put at another three here. So training cost $6\,m$ passes for $m$ pictures, and PULSE costs $P$ passes for each photo more. The restorer has paid for itself after
#
# $$N=\frac{6\,m}{P-1}$$ {#eq-inversion-even}
#
# photos.

# %%
m = json.loads(Path("../figures/bundled/restorer.json").read_text())["images"]
a, b = prices["PULSE"]
P = (100 * a + b) / c
even = 6 * m / (P - 1)
print(f"{m:,} pictures of training; PULSE {P:.0f} passes a photo; even after {even:,.0f} photos")
leaf = x[:1].clone().requires_grad_(True)
net.requires_grad_(True)
ratio = operations(lambda: net(leaf)[0].sum().backward()) / c
net.requires_grad_(False).zero_grad(set_to_none=True)
print(f"a pass with its gradients: {ratio:.1f} passes")
assert 2.5 < ratio < 3.3 and 10_000 < even < 20_000

# %% [markdown]
# Between ten and twenty thousand photos: one archive. And this counts operations only, for a small model that was trained briefly. The training of the prior is left out on both sides, as both need it.

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | inversion methods | PULSE and mGANprior in Tables 1 and 3, by their official codes | – | our forms of both (@tbl-baselines-versions) | one prior for all |
# | cost | "expensive image-specific optimization" | – | operations, in passes | seconds mix method and program |
# | search from the restorer's codes | – | – | @eq-inversion-refine | the obvious hybrid should be tried |
# | cost of training | not counted | – | @eq-inversion-even | a pass is not free, it is prepaid |
#
# : Inversion in three versions {#tbl-inversion-versions}
#
# @tbl-inversion-versions compares questions; the paper's numbers come from other priors and other faces.
#
# ::: {.callout-warning}
# ## What users trip over
# - *A perfect inversion of a damaged face draws the damage.* Ask for agreement after a reduction, or with a model of the damage.
# - *More steps are not better.* Watch a number that knows the truth, on made pictures, before trusting the loss.
# - *The loss of a search says nothing about identity.* In @fig-inversion-curves it falls all along.
# :::

# %% [markdown]
# ## Summary
#
# - A search costs about as many passes as it has steps (@eq-inversion-price), and the count is exact.
# - On samples of its own prior PULSE comes nearer than one pass, at nearly a hundred times the price; on a photo both searches stay behind.
# - A search needs to be told the damage. A restorer has it in its weights.
# - Going on from the restorer's codes fits the damage (@eq-inversion-refine).
# - Training pays after some ten thousand photos (@eq-inversion-even).

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* With batches of 8 codes, how does the price of a step of mGANprior depend on `block`? Predict it from the operations of each layer, then measure.
# 2. *Modify.* Give `refined` a term that keeps $w$ near $w_0$. Is there a weight at which the PSNR rises?
# 3. *Break.* Start PULSE from the codes `z` that drew the samples. What is its loss at step 0, and why is the PSNR still not infinite after 100 steps?
#
# Worked solutions: [nbs/solutions/27_inversion.ipynb](solutions/27_inversion.ipynb).

# %% [markdown]
# ## References
#
# PULSE is by @menon2020pulse, mGANprior by @gu2020mganprior; the argument against inversion is in Secs. 1 and 3.3 of @wang2021gfpgan. The prior is StyleGAN2 [@karras2020stylegan2].

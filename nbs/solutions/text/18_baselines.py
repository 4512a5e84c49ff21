# %% [markdown]
# # Solutions: baselines {#sec-solutions-baselines .unnumbered}
#
# The exercises are those of @sec-baselines.

# %%
import math

import torch
import torch.nn.functional as F

from gfpgan_edu.baselines import (UNET_GAN, gaussian_of_w, geocross, on_sphere, pulse, shrink,
                                  without_prior)
from gfpgan_edu.engine import override
from gfpgan_edu.gfpgan import GFPGAN
from gfpgan_edu.train_restorer import PRESETS
from gfpgan_edu.weights import load_prior

# %% [markdown]
# ## 1. Compute: the median of four
#
# *What does `torch.median` return for 0.1, 0.2, 0.8, 0.9, and which other answers have the same L1 error?* Between the two middle numbers a step to the right comes nearer to two truths and away from two: the error stays the same there, and grows outside.

# %%
truths = torch.tensor([0.1, 0.2, 0.8, 0.9])
answers = torch.linspace(0, 1, 101)
error = (answers[:, None] - truths).abs().mean(1)
best = answers[error < error.min() + 1e-6]
print(f"torch.median: {truths.median():.1f}; "
      f"least error {error.min():.2f} from {best.min():.1f} to {best.max():.1f}")
assert truths.median() == truths[1]
assert abs(best.min() - 0.2) < 1e-6 and abs(best.max() - 0.8) < 1e-6
assert abs(truths.mean() - 0.5) < 1e-6          # the mean is one of them here

# %% [markdown]
# 0.2, the lower of the two middle ones. Every answer from 0.2 to 0.8 is as good for L1, the mean included: between two equally likely groups L1 does not care where it stands, and L2 insists on the middle.
#
# ## 2. Modify: a U-Net as large as the whole
#
# *Find the `narrow` at which the U-Net alone has about as many parameters as the full `faces32` model.* Widths go in steps of even numbers, so the candidates are few; the device `meta` counts without building.

# %%
config = PRESETS["faces32"]()


def count(model):
    with torch.device("meta"):
        return sum(p.numel() for p in GFPGAN(model).parameters())


full, alone = count(config.model), without_prior(config)
candidates = {n: count(override(alone, [f"model.narrow={n}"]).model)
              for n in (k / 128 for k in range(16, 65, 2))}
narrow = min(candidates, key=lambda n: abs(candidates[n] - full))
equal = override(config, [*UNET_GAN, f"model.narrow={narrow}"])
print(f"full {full:,}; U-Net at narrow {config.model.narrow} {count(alone.model):,}, "
      f"at {narrow} {count(equal.model):,}")
assert abs(count(equal.model) / full - 1) < 0.05
assert not equal.model.use_prior and equal.loss == config.loss


# %% [markdown]
# The U-Net alone needs two and a half times the width for as many parameters. A comparison at equal width, as in the ablation, gives the full model more weights; one at equal size is the other fair one, and `equal` is its config.
#
# ## 3. Break: no way back to the sphere
#
# *Take the return to the sphere out of `pulse` and divide by the length when drawing instead. Print the lengths. Why does the loss stay higher?* The picture now depends on the direction of a code alone, so the gradient is at right angles to it, and every step of Adam makes the code longer.

# %% tags=["volatile"]
def drifting(x, prior, factor=4, steps=30, lr=0.4, cross=0.05, seed=0):
    "`pulse` without the return -> (losses, lengths of the codes in √d, at each step)."
    mean, std = gaussian_of_w(prior)
    d, n_codes = prior.synthesis.style_dim, prior.synthesis.n_codes
    rng = torch.Generator().manual_seed(seed)
    z = on_sphere(torch.randn(len(x), n_codes, d, generator=rng)).requires_grad_(True)
    target, optimizer, losses, lengths = shrink(x, factor), torch.optim.Adam([z], lr), [], []
    for step in range(steps):
        t = (step + 1) / steps
        optimizer.param_groups[0]["lr"] = lr * min(1.0, t / 0.05, 0.05 + 0.95 * (1 - t) / 0.25)
        drawn = on_sphere(z)                    # divided by the length when drawing
        face = prior.synthesis(F.leaky_relu(drawn * std + mean, 0.2))
        off = shrink(face, factor) - target
        loss = 100 * off.square().mean((1, 2, 3)) + cross * geocross(drawn)
        losses.append(loss.mean().item())
        lengths.append((z.norm(dim=-1).mean() / math.sqrt(d)).item())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return losses, lengths


# %% tags=["volatile"]
torch.set_num_threads(1)
prior = load_prior("prior32").requires_grad_(False)
rng = torch.Generator().manual_seed(3)
with torch.no_grad():
    z = torch.randn(2, prior.config["style_dim"], generator=rng)
    faces = prior(z, truncation=0.8, w_mean=prior.mean_w(generator=rng))
kept, (losses, lengths) = pulse(faces, prior, steps=30).losses, drifting(faces, prior)
for step in range(0, 30, 10):
    print(f"step {step:2}: length {lengths[step]:.1f}, loss {losses[step]:.2f}; "
          f"with the return to the sphere {kept[step]:.2f}")
print(f"at the end {losses[-1]:.2f} and {kept[-1]:.2f}")
assert all(b > a for a, b in zip(lengths[::10], lengths[10::10]))
assert losses[-1] > kept[-1] and lengths[-1] > 2

# %% [markdown]
# The codes grow several times as long. A step of fixed size turns a long code by a smaller angle, so the search slows down while it walks, and ends higher for the same number of steps. Putting the code back keeps the step an angle.

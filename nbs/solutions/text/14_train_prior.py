# %% [markdown]
# # Solutions: training the prior {#sec-solutions-train-prior .unnumbered}
#
# The exercises are those of @sec-train-prior.

# %%
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_fail

from gfpgan_edu.discriminators import Discriminator
from gfpgan_edu.engine import Stream
from gfpgan_edu.losses import d_logistic
from gfpgan_edu.train_prior import AUGMENTATIONS, PriorConfig, PriorTrainer
from gfpgan_edu.train_prior import augment_hole, augment_place

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: what survives
#
# *Which share of a picture survives a hole of half the side with its centre anywhere, and all three augmentations?* With the centre at $c\in[0,1]$ the visible side is $\min(1,c+\tfrac14)-\max(0,c-\tfrac14)$, whose mean is $\tfrac12-2\int_0^{1/4}(\tfrac14-c)\,dc=\tfrac7{16}$. Both axes are independent: $1-(\tfrac7{16})^2=0.81$ survives.
# `place` fills the rows that were shifted in, $\tfrac1{16}$ of the side on average. Let $p_i$ be the chance that row $i$ shows the picture and $h_i$ that it is in the hole. A place survives both with $p_ip_j(1-h_ih_j)$; the mean of it is $\bar p^2-\overline{ph}^2$. Colour removes nothing.

# %%
s, n, m = 64, 32, 8
at = np.arange(s)
first = np.arange(s + 1)[:, None] - n // 2                            # where the hole may begin
h = ((at >= first) & (at < first + n)).mean(0)
shifted = at + np.arange(-m, m + 1)[:, None]
p = ((shifted >= 0) & (shifted < s)).mean(0)
derived = {"hole": 1 - h.mean() ** 2, "all three": p.mean() ** 2 - (p * h).mean() ** 2}

torch.manual_seed(0)
ones = torch.ones(2000, 1, s, s)
counted = {"hole": augment_hole(ones).mean().item()}
counted["all three"] = augment_hole(augment_place(ones)).mean().item()
for name in derived:
    print(f"{name:10} derived {derived[name]:.3f}, counted {counted[name]:.3f}")
    np.testing.assert_allclose(counted[name], derived[name], rtol=0.02)
assert abs(derived["hole"] - (1 - (7 / 16) ** 2)) < 0.005


# %% [markdown]
# 81 % after the hole, as the check of the chapter has it ($1-\text{side}^2$), and 70 % after all three: less than the product, 71 %, since the hole is rarer at the rim, where the shift has already taken something.
#
# ## 2. Modify: γ of 0.1 and of 50
#
# *Train the dolls with both. In which does $D$ win?* The dolls here are simpler, two discs of 16 px, and the runs have 100 iterations without a folder. An undecided $D$ has the loss $2\log2=1.39$; the lower its loss, the surer it is.

# %%
class Dolls:
    "Heads of two discs, 16 px: hair and skin on a blue background."
    def __init__(self, n=128, size=16, rng=np.random.default_rng(0)):
        y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
        self.x = torch.tensor([-0.6, -0.1, 0.5]).view(3, 1, 1).repeat(n, 1, size, size)
        for i in range(n):
            at, tone = rng.uniform(-0.15, 0.15), rng.uniform(0.3, 1)
            hair, skin = [-0.3, -0.6, -0.8], [0.9 * tone, 0.55 * tone, 0.3 * tone]
            for cy, r, colour in ((-0.1, 0.7, hair), (0.1, 0.52, skin)):
                inside = torch.from_numpy(((x - at) / r) ** 2 + ((y - cy) / 0.75) ** 2 < 1)
                self.x[i, :, inside] = torch.tensor(colour, dtype=torch.float32)[:, None]

    def __len__(self):
        return len(self.x)


# %%
dolls = Dolls()


def train(iterations=100, **changes):
    "-> (loss of D at each iteration, samples of the average)."
    run = replace(PriorConfig.tiny().run, ema_images=150.0)
    config = replace(PriorConfig.tiny(), size=16, path=0.0, lr=4e-3, noise="zero", run=run,
                     **dict(augment=()) | changes)
    t, losses = PriorTrainer(config, dolls, device="cpu"), []
    stream = iter(Stream(len(dolls), run.batch))
    for t.it in range(1, iterations + 1):
        t.iteration({"gt": dolls.x[[i for _, i in next(stream)]]})
        losses.append(t.logs["d"].item())
    z = torch.randn(64, config.style_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return np.array(losses), t.ema(z, noise="zero")


# %% tags=["volatile"]
runs = {gamma: train(r1=gamma) for gamma in (0.1, 50.0)}
end = {gamma: losses[-30:].mean() for gamma, (losses, _) in runs.items()}
for gamma, (_, made) in runs.items():
    off = (made.mean(0) - dolls.x.mean(0)).square().mean().sqrt()
    print(f"γ = {gamma:4}: loss of D at the end {end[gamma]:.1f} (undecided 1.4), "
          f"mean picture off by {off:.1f}")
assert end[0.1] < 0.7 * end[50.0] and end[50.0] > 0.5 * 2 * math.log(2)

# %%
#| fig-alt: "Two curves of the loss of D over the iterations, and a dashed line for an undecided D."
fig, ax = plt.subplots(figsize=(5.4, 2.4), layout="constrained")
for (gamma, (losses, _)), colour in zip(runs.items(), ("#D55E00", "#0072B2")):
    ax.plot(losses, color=colour, label=f"γ = {gamma:g}")
ax.axhline(2 * math.log(2), color="#444444", lw=0.8, ls="--")
ax.set(xlabel="iteration", ylabel="loss of D"), ax.legend(fontsize=8);


# %% [markdown]
# With $\gamma=0.1$ the loss of $D$ falls to nearly nothing, with a spike where the generator surprises it: it is sure of itself, and a generator against such a judge has little to go by. $D$ wins there. With $\gamma=50$ the curve stays much nearer to the dashed line: R1 keeps $D$ so flat that it can hardly tell the two apart, and learning is slow for both. Good values lie between.
#
# ## 3. Break: augmented reals, plain fakes
#
# *Augment only the real pictures in `d_terms`, with `place`. What do the samples learn, and which checks notice?* $D$ sees reals with grey rims and fakes without, so grey rims become a mark of reality, and the generator is told to paint them. The clearest test is a *perfect* generator: its fakes are dolls themselves. A fair judge cannot tell them from the reals; the one-sided judge can.

# %% tags=["volatile"]
def judge(one_sided, steps=60):
    """-> (loss of a judge that is trained against a perfect generator,
    how often it scores a shifted doll above the same doll as it was).
    """
    torch.manual_seed(0)
    d = Discriminator(16, narrow=1 / 16)
    adam, losses = torch.optim.Adam(d.parameters(), 2e-3, betas=(0.0, 0.99)), []
    for _ in range(steps):
        real, fake = (dolls.x[torch.randperm(len(dolls))[:16]] for _ in range(2))
        real, fake = augment_place(real), fake if one_sided else augment_place(fake)
        losses.append(d_logistic(d(real), d(fake)))
        adam.zero_grad(), losses[-1].backward(), adam.step()
    with torch.no_grad():
        above = (d(augment_place(dolls.x)) > d(dolls.x)).float().mean().item()
    return np.mean([v.item() for v in losses[-20:]]), above


(fair, even), (one, rims) = judge(False), judge(True)
print(f"loss of D against a perfect generator: both augmented {fair:.1f}, "
      f"only the reals {one:.1f} (undecided 1.4)")
print(f"a shifted doll scores above the same doll: both augmented {even:.0%}, "
      f"only the reals {rims:.0%}")
assert fair > 1.2 and one < 0.8 * fair and rims > max(0.75, even)


# %%
class OneSided(PriorTrainer):
    def d_terms(self, b):
        with torch.no_grad():
            fake = self.generate(self.nets["g"], b["z_d"], b["cut"])
        return {"d": d_logistic(self.nets["d"](augment_place(b["gt"])), self.nets["d"](fake))}


def sees_both_alike(cls):
    "Every picture that D sees in its turn has passed the augmentation: a mark that adds 100."
    AUGMENTATIONS["mark"] = lambda x: x + 100
    config = replace(PriorConfig.tiny(), size=16, augment=("mark",), noise="zero")
    t, seen = cls(config, dolls, device="cpu"), []
    t.nets["d"].register_forward_pre_hook(lambda m, args: seen.append(args[0].mean().item()))
    t.d_terms(t.inputs({"gt": dolls.x[:config.run.batch]}))
    del AUGMENTATIONS["mark"]
    assert len(seen) == 2 and min(seen) > 50, seen


sees_both_alike(PriorTrainer)
test_fail(lambda: sees_both_alike(OneSided), exc=AssertionError)

# %% [markdown]
# Against one-sided augmentation even perfect samples lose, and a doll that is shifted, with a grey rim, scores above the same doll without: the generator has to learn the *augmented* dolls, rims included. The chapter's checks of the augmentations stay green, since each of them is right, and the live run trains without any. The check above, that $D$ sees both kinds through the same glasses, notices at once.

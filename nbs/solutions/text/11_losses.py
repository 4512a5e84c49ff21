# %% [markdown]
# # Solutions: losses {#sec-solutions-losses .unnumbered}
#
# The exercises are those of @sec-losses.

# %%
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.discriminators import ComponentDiscriminator, Discriminator
from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.identity import load_embedder
from gfpgan_edu.losses import d_logistic, feature_style, g_logistic, identity, l1, perceptual, style

torch.set_num_threads(1)


class Edges:
    "The extractor of the chapter: differences of neighbours."
    weights = {"across": 1.0, "down": 1.0}

    def __call__(self, x):
        return {"across": x[..., 1:] - x[..., :-1], "down": x[..., 1:, :] - x[..., :-1, :]}


# %% [markdown]
# ## 1. Compute: a constant error
#
# *Everything is right but for a constant 0.1. With `Edges` as extractor, which terms of @eq-total are 0, which are small, and what is the pixel term?* Differences forget a constant: the perceptual and the style term are 0. The pixel term is $0.1\cdot0.1=0.01$. Networks with biases see the constant a little: the identity, the features of the component judges, the scores.

# %%
torch.manual_seed(0)
y = to_tensor(example_faces(1, 128)) * 0.8    # room for the constant
x, edges, embed = y + 0.1, Edges(), load_embedder("bundled")
part, judge = ComponentDiscriminator(8), Discriminator(128, narrow=1 / 32)
with torch.no_grad():
    crop = (..., slice(48, 80), slice(36, 68))
    terms = {"pixel": 0.1 * l1(x, y),
             "perceptual (Edges)": perceptual(edges(x), edges(y), edges.weights),
             "style (Edges)": 50 * style(edges(x), edges(y), edges.weights),
             "identity": 10 * identity(embed(x), embed(y)),
             "feature style": 200 * feature_style(part(x[crop])[1], part(y[crop])[1]),
             "adversarial, change": 0.1 * abs(g_logistic(judge(x)) - g_logistic(judge(y)))}
    stranger = 10 * identity(embed(y.flip(2)), embed(y))
for name, v in terms.items():
        note = f" (the face upside down: {stranger.item():.1f})" if name == "identity" else ""
        print(f"{name:20} {v.item():.3f}{note}")
assert_close(terms["pixel"].item(), 0.01, atol=1e-6, rtol=1e-6)
assert terms["perceptual (Edges)"] < 1e-6 and terms["style (Edges)"] < 1e-5
assert 0 < terms["identity"] < 0.2 * stranger


# %% [markdown]
# Only the two terms on `Edges` are 0, up to rounding. With a VGG-19 no term would be: its convolutions add the constant up. The pixel term is 0.01 and nearly alone in asking for the constant to go, which is why colours drift when it is switched off.
#
# ## 2. Modify: edges at three scales
#
# *Write a `Features` of the differences at three scales, start from noise, and compare with `Edges`.* Neighbouring differences fix the fine detail at once and large areas only by passing corrections on from pixel to pixel. Half and quarter size reach further.

# %% tags=["volatile"]
class Scales(Edges):
    weights = {f"{name} {i}": 1.0 for i in range(3) for name in Edges.weights}

    def __call__(self, x):
        out = {}
        for i in range(3):
            out |= {f"{name} {i}": v for name, v in super(Scales, self).__call__(x).items()}
            x = F.avg_pool2d(x, 2)    # blurs and halves
        return out


# %% tags=["volatile"]
def descend(loss, start, steps=40, lr=0.03, step=torch.optim.Adam):
    "As in the chapter: the picture itself follows the gradient -> picture, values of the loss."
    z, values = start.clone().requires_grad_(True), []
    optimizer = step([z], lr)
    for _ in range(steps):
        value = loss(z)
        values.append(value.item())
        optimizer.zero_grad(), value.backward(), optimizer.step()
    return z.detach().clamp(-1, 1), values


y = to_tensor(cv2.resize(example_faces(1, 128)[0], (64, 64), interpolation=cv2.INTER_AREA))
noise = 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
pictures = []
for extract in (Edges(), Scales()):
    target = extract(y)
    loss = lambda z: perceptual(extract(z), target, extract.weights)
    pictures.append(descend(loss, noise, 100)[0])
centred = lambda p: p - p.mean((2, 3), keepdim=True)
errors = [l1(centred(p), centred(y)).item() for p in pictures]
print(f"distance without the mean colour: Edges {errors[0]:.3f}, three scales {errors[1]:.3f}")
assert errors[1] < 0.8 * errors[0]

# %%
#| fig-alt: "Four pictures: noise, two reconstructions from it, and the face that was to be met."
titles = ["start", "Edges", "three scales", "truth"]
show([noise[0], *(p[0] for p in pictures), y[0]], titles, height=1.4);


# %% [markdown]
# Both find every contour. With `Edges` the large areas are still too pale after 100 steps, as their brightness has to be passed on from neighbour to neighbour; three scales carry it there at once. The mean colour is free in both, and stays grey. A deep network does the same with learned filters: its later layers see larger areas.
#
# ## 3. Break: the saturating form
#
# *Use $-\mathrm{softplus}(s)$ in `g_logistic`. Which checks turn red, and how soon does the score rise?* The checks of the chapter first.

# %%
def saturating(fake):
    return -F.softplus(fake).mean()


zero, s = torch.zeros(4), torch.linspace(-3, 3, 7)
bce = F.binary_cross_entropy_with_logits
checks = {"log 2 at score 0": lambda g: assert_close(g(zero), torch.tensor(2.0).log()),
          "cross-entropy with label 1": lambda g: assert_close(g(s), bce(s, torch.ones_like(s))),
          "won: nothing left": lambda g: assert_close(g(zero + 50), torch.tensor(0.0)),
          "hopeless: 50": lambda g: assert_close(g(zero - 50), torch.tensor(50.0))}
for name, check in checks.items():
    check(g_logistic)
    test_fail(lambda: check(saturating), exc=AssertionError)
    print(f"{name:27} red")

# %% [markdown]
# All four values change. Now the descent. A small judge learns sharp from degraded crops and is frozen; degraded crops then climb its score by both losses, with plain gradient steps and with Adam.

# %% tags=["volatile"]
resize = lambda f: cv2.resize(f, (32, 32), interpolation=cv2.INTER_AREA)
damage = lambda i: DegradationParams(1.2, 1.2, 0, 9, r=2.0, delta=8, q=80, noise_seed=i)
real = np.stack([resize(f) for f in example_faces(24, 128)])
made = to_tensor(np.stack([degrade(f, damage(i)) for i, f in enumerate(real)]))
real, judge = to_tensor(real), Discriminator(32, narrow=1 / 32)
adam = torch.optim.Adam(judge.parameters(), 1e-2, betas=(0.0, 0.99))
for _ in range(60):
    loss = d_logistic(judge(real), judge(made))
    adam.zero_grad(), loss.backward(), adam.step()
judge.requires_grad_(False)
start = made[judge(made)[:, 0].argsort()[:4]]    # those it sees through best


def steps_until_it_rises(loss, **options):
    "Steps until the mean score has risen by 1, at most 100."
    scores = []

    def noted(z):
        scores.append(judge(z).mean().item())
        return loss(judge(z))

    descend(noted, start, 100, **options)
    return next((i for i, v in enumerate(scores) if v > scores[0] + 1), 100)


count = {}
for name, loss in (("softplus(-s)", g_logistic), ("-softplus(s)", saturating)):
    for step, lr in ((torch.optim.SGD, 0.3), (torch.optim.Adam, 0.003)):
        count[name, step.__name__] = steps_until_it_rises(loss, step=step, lr=lr)
print(f"scores at the start: {judge(start).mean():.1f}")
for (name, step), n in count.items():
    print(f"{name:13} {step:5} {f'{n} steps' if n < 100 else 'not in 100 steps'}")
assert count["-softplus(s)", "SGD"] > 5 * count["softplus(-s)", "SGD"]
assert count["-softplus(s)", "Adam"] < 3 * count["softplus(-s)", "Adam"]

# %% [markdown]
# With plain steps the score stays where it is: the gradient is multiplied by $\sigma(s)$, next to nothing. The descent of @fig-losses-fooled uses Adam, which divides by the size of the gradient, and hides the difference completely while this loss is alone. In training it is not alone: beside other terms a vanishing gradient is drowned.

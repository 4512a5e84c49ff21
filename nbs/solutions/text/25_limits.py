# %% [markdown]
# # Solutions: ethics and limits {#sec-solutions-limits .unnumbered}
#
# The exercises are those of @sec-limits. The faces, the damage and the measures are the chapter's, with fewer faces.

# %%
from dataclasses import replace

import numpy as np
import torch
from skimage.color import rgb2lab

from gfpgan_edu.degradation import SEVERE, DegradationParams, degrade, sample_params
from gfpgan_edu.examples import show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.identity import angle, load_embedder
from gfpgan_edu.inference import fuse
from gfpgan_edu.weights import load_prior, load_weights

torch.set_num_threads(1)
prior, net, embed = load_prior("bundled"), fuse(load_weights("bundled")), load_embedder()
seeded = lambda seed: torch.Generator().manual_seed(seed)
with torch.inference_mode():
    w_mean = prior.mean_w(generator=seeded(0))
    z = torch.randn(320, prior.config["style_dim"], generator=seeded(25))
    faces = np.concatenate([to_images(prior(part, truncation=0.8, w_mean=w_mean))
                            for part in z.split(80)])


def restored(x):
    with torch.inference_mode():
        parts = to_tensor(np.ascontiguousarray(x)).split(48)
        return np.concatenate([to_images(net(part)[0]) for part in parts])


def vectors(x):
    with torch.inference_mode():
        return torch.nn.functional.normalize(embed(to_tensor(np.ascontiguousarray(x))))


away = lambda x, y: angle(vectors(x), vectors(y)).numpy()


# %% [markdown]
# ## 1. Compute: four times as many
#
# *How many faces does the darkest group need for an interval half as wide? And how many samples of the prior is that?* The half width is $1.96\,s/\sqrt n$, so half of it takes $4n$ faces. At an unchanged share that is $4\cdot160=640$ samples. Below the same is tried from 80 to 320.

# %%
def tone(x):
    "Individual typology angle of the cheeks (n,)."
    s = x.shape[1]
    rows = slice(round(0.56 * s), round(0.69 * s))
    left, right = slice(round(0.30 * s), round(0.41 * s)), slice(round(0.59 * s), round(0.70 * s))
    pixels = np.concatenate([x[:, rows, c].reshape(len(x), -1, 3) for c in (left, right)], 1)
    lab = np.median(rgb2lab(pixels / 255), 1)
    return np.clip(np.degrees(np.arctan2(lab[:, 0] - 50, lab[:, 2])), -90, 90)


darkest = np.flatnonzero(tone(faces) < 10)
rng = np.random.default_rng(25)
damage = replace(SEVERE.at(64), shift_prob=0, gray_prob=0, jitter_prob=0)
out = restored(np.stack([degrade(faces[i], sample_params(rng, damage)) for i in darkest]))
angles, half = away(out, faces[darkest]), {}
for n in (80, 320):
    v = angles[darkest < n]
    half[n] = 1.96 * v.std(ddof=1) / np.sqrt(len(v))
    print(f"{n} samples: {len(v)} of the darkest group, angle {v.mean():.1f} ± {half[n]:.1f}°")
print(f"the interval is {half[80] / half[320]:.1f} times as wide")
assert 1.3 < half[80] / half[320] < 3.2 and 2.5 < len(angles) / (darkest < 80).sum() < 6


# %% [markdown]
# A rare group is expensive to be sure about, in proportion to its rarity: most samples were drawn for nothing. Drawing on until the group is full would be honest; drawing until the interval looks as one likes would not.
#
# ## 2. Modify: brighten, restore, darken again
#
# *Restore underexposed faces by way of `exposed`. How much of the identity angle at −2 stops comes back?*

# %%
def linear(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def display(v):
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 0) ** (1 / 2.4) - 0.055)


def exposed(x, stops):
    return np.round(255 * display(np.clip(linear(x / 255) * 2.0**stops, 0, 1))).astype(np.uint8)


people = faces[:32]
draws = [sample_params(rng, damage) for _ in people]
damaged = lambda y: np.stack([degrade(f, p) for f, p in zip(y, draws)])
dark = exposed(people, -2)
direct = restored(damaged(dark))
by_way = exposed(restored(exposed(damaged(dark), 2)), -2)
pairs = ((restored(damaged(people)), people), (direct, dark), (by_way, dark))
normal, straight, around = (away(a, b).mean() for a, b in pairs)
print(f"identity angle: normal exposure {normal:.0f}°; two stops less, restored as it is "
      f"{straight:.0f}°, by way of normal exposure {around:.0f}°")
print(f"of the {straight - normal:.0f}° lost, "
      f"{(straight - around) / (straight - normal):.0%} come back")
lightness = [rgb2lab(x / 255)[..., 0].mean() for x in (dark, direct, by_way)]
print("mean L*: truth {:.0f}, as it is {:.0f}, by way of normal exposure {:.0f}".format(*lightness))
assert straight - around > 0.5 * (straight - normal) > 0
assert abs(lightness[2] - lightness[0]) < abs(lightness[1] - lightness[0])

# %%
#| fig-alt: "Four rows of five small dark faces: the truth, the damaged input, the result as it is, which is much brighter, and the result by way of normal exposure, dark again."
shown = [x[i] for x in (dark, damaged(dark), direct, by_way) for i in range(5)]
show(shown, rows=("truth", "input", "as it is", "and back"), cols=5, height=0.9);


# %% [markdown]
# The exposure stays where it was, and more than half of what was lost of the person comes back. Noise and rounding that were small in the dark picture are four times as large after brightening, in linear light; but that is damage of the kind that the network was trained on.
#
# ## 3. Break: a judge of grey pixels
#
# *Replace the embedder by plain grey pixels, 64 × 64 numbers. Which assertions of the line-up still hold, and why is that worrying?*

# %%
def grey_pixels(x):
    "The pixels as a vector of length 1 (n, 4096), their mean taken off."
    v = torch.tensor(x.mean(3).reshape(len(x), -1), dtype=torch.float32)
    return torch.nn.functional.normalize(v - v.mean(1, keepdim=True))


def damage_of(d, seed):
    size = 2 * round(0.75 * d) + 3
    return DegradationParams(sigma_x=0.25 * d, sigma_y=0.25 * d, kernel_size=size, r=d, delta=5,
                             q=60, noise_seed=seed)


views = []              # for each damage: damaged, restored, restored under another noise
for d in (2, 8, 16):
    x, twin = (np.stack([degrade(f, damage_of(d, i + 1000 * k)) for i, f in enumerate(people)])
               for k in (0, 1))
    views.append((x, restored(x), restored(twin)))


def line_up(judge):
    """For each damage: own, twin, and other angle; share of faces found, restored and damaged.

    Before them the angle of strangers.
    """
    true, different, rows = judge(people), ~torch.eye(len(people), dtype=bool), []
    strangers = angle(true[:, None], true[None])[different].mean().item()

    def found(v):
        nearest = angle(v[:, None], true[None]).argmin(1)
        return (nearest == torch.arange(len(people))).float().mean().item()

    for x, y, again in views:
        v, v2, vx = judge(y), judge(again), judge(x)
        other = angle(v[:, None], v[None])[different].mean().item()
        rows.append((angle(v, true).mean().item(), angle(v, v2).mean().item(), other,
                     found(v), found(vx)))
    return strangers, np.array(rows).T


# %%
held, told = {}, {}
for name, judge in (("embedder", vectors), ("grey pixels", grey_pixels)):
    strangers, (own, twin, other, found, found_input) = line_up(judge)
    told[name] = found
    held[name] = {"the own angle grows": bool((np.diff(own) > 0).all()),
                  "found at little damage": found[0] > 0.9,
                  "lost at heavy damage": found[-1] < 0.15,
                  "input and result alike": bool((np.abs(found - found_input) < 0.25).all()),
                  "at the end a stranger": own[-1] > 0.95 * strangers,
                  "and the same again": twin[-1] < own[-1] / 2}
    print(f"{name:11} own {own.round()}, strangers {strangers:.0f}°, found {found.round(2)}: "
          + ", ".join(k for k, v in held[name].items() if v))
assert held["grey pixels"]["the own angle grows"]
assert not held["grey pixels"]["lost at heavy damage"]
assert told["grey pixels"][-1] > told["embedder"][-1]

# %% [markdown]
# The own angle grows, input and result agree in their verdict, a repeated restoration gives the same again: all this holds for grey pixels too, so none of it says that the judge knows anything of persons. What fails is the end. To grey pixels most faces can still be found after a reduction by 16, where four by four blocks are left: light, pose and hair are enough to tell the pictures of a small set apart. A line-up measures whether *pictures* can be told apart. With photos of one person on two days these pixels would be of no use, and no assertion of the chapter would notice. A judge has to be tested on that, as the embedder is in @sec-identity, before its verdicts mean anything.

# %% [markdown]
# # Ethics and limits {#sec-limits}
#
# > A restored face is a guess with sharp edges.
#
# **You will build** four measurements that a model should pass through before anybody uses it: whether it treats skin tones alike, what it does with grey and dark photos, from which damage on it draws somebody else, and how it fails on turned heads. The licences of everything that is used stand at the end.
# **Needs** the damage of @sec-degradation, the identity network of @sec-identity, the metrics of @sec-metrics.
# **Runs in** about 20 s on a laptop CPU.
#
# The paper closes with two figures. Its Fig. 8 shows dark-skinned faces and one failure, a grey photo whose skin gets the wrong colour. Its Fig. 9 shows limits: heavy damage and large poses. This chapter is our counterpart of both, with the bundled model. Where the paper shows examples, here are numbers, which anybody can compute for another model by changing one name.

# %%
from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image as Picture, Markdown
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from gfpgan_edu.degradation import SEVERE, DegradationParams, degrade, sample_params
from gfpgan_edu.examples import show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.identity import angle, load_embedder
from gfpgan_edu.inference import fuse
from gfpgan_edu.metrics import psnr
from gfpgan_edu.weights import load_prior, load_weights

# %% [markdown]
# ## Whose faces?
#
# A fair test needs photos of many people who agreed to it, with notes on who they are. No such set comes with this package, and none should be scraped together. So the test faces are samples of the bundled prior: nobody's portraits, as many as we like, and each with an exact truth. Such faces test the *restorer*. They say nothing about people whom the prior never draws, and that is the first finding, not a footnote. So whom does it draw?
#
# Skin tone in a picture can be described by the *individual typology angle* [@chardon1991ita], computed from the CIELAB colour of the cheeks:
#
# $$\mathrm{ITA}=\frac{180}{\pi}\arctan\frac{L^*-50}{b^*}$$ {#eq-limits-ita}
#
# $L^*$ is lightness from 0 to 100, $b^*$ the amount of yellow against blue. Large angles are light skin, negative ones dark skin. Dermatologists measure it with a lamp of their own. In a photo light, exposure and shadow count too, so it is an *apparent* tone.

# %%
torch.set_num_threads(1)
N = 160
prior, net, embed = load_prior("bundled"), fuse(load_weights("bundled")), load_embedder()
seeded = lambda seed: torch.Generator().manual_seed(seed)
with torch.inference_mode():
    z = torch.randn(N, prior.config["style_dim"], generator=seeded(25))
    w_mean = prior.mean_w(generator=seeded(0))
    faces = np.ascontiguousarray(to_images(prior(z, truncation=0.8, w_mean=w_mean)))


def compact(fig):
    "The figure as a PNG of 160 colours, half the size."
    whole, small = BytesIO(), BytesIO()
    fig.savefig(whole, dpi=80)
    plt.close(fig)
    image = Image.open(whole).convert("RGB")
    image = image.quantize(160, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return Picture(small.getvalue())


def cheeks(x):
    "Median CIELAB colour (n, 3) of both cheeks of aligned faces x (n, s, s, 3) uint8."
    s = x.shape[1]
    rows = slice(round(0.56 * s), round(0.69 * s))
    left, right = slice(round(0.30 * s), round(0.41 * s)), slice(round(0.59 * s), round(0.70 * s))
    pixels = np.concatenate([x[:, rows, c].reshape(len(x), -1, 3) for c in (left, right)], 1)
    return np.median(rgb2lab(pixels / 255), 1)


def ita(lab):
    "Individual typology angle (@eq-limits-ita) of colours (n, 3), degrees; no skin beyond ±90."
    return np.clip(np.degrees(np.arctan2(lab[:, 0] - 50, lab[:, 2])), -90, 90)


# %%
known = np.array([[70.0, 5, 20], [50, 8, 15], [30, 9, 20]])             # by hand: 45°, 0°, -45°
np.testing.assert_allclose(ita(known), [45, 0, -45], atol=1e-9)
colours = np.round(lab2rgb(known)[:, None, None] * 255).astype(np.uint8)
flat = np.broadcast_to(colours, (3, 64, 64, 3))
np.testing.assert_allclose(ita(cheeks(flat)), [45, 0, -45], atol=1.5)   # through 8 bits and back
one_sided = flat.copy()
one_sided[:, :, :8], one_sided[:, :20] = 255, 0     # hair and background do not count
np.testing.assert_array_equal(cheeks(one_sided), cheeks(flat))

# lower bounds, degrees
GROUPS = {"dark and brown": -91, "tan": 10, "intermediate": 28, "light": 41, "very light": 55}
tone = ita(cheeks(faces))
group = np.digitize(tone, list(GROUPS.values())) - 1
share = np.bincount(group, minlength=5) / N
print({name: f"{s:.0%}" for name, s in zip(GROUPS, share)},
      f"below -30°: {(tone < -30).mean():.1%}")
assert share.sum() == 1 and (tone < -30).mean() < 0.06

# %%
#| label: fig-limits-groups
#| fig-cap: "160 samples of the bundled prior by apparent skin tone; two of each group, none picked."
#| fig-alt: "Five bars of about equal height; below, five pairs of small made-up faces from darker to lighter."
fig, axes = plt.subplots(2, 5, figsize=(8, 3), layout="constrained", height_ratios=(1, 1.3),
                         sharex="row")
whole = fig.add_subplot(axes[0, 0].get_gridspec()[0, :])
colours = ["#5c3a21", "#9a6a3c", "#c89868", "#e3bf9a", "#f3dfcb"]
whole.bar(range(5), share, color=colours, edgecolor="#444444")
labels = [f"{name}\n{100 * s:.0f} %" for name, s in zip(GROUPS, share)]
whole.set_xticks(range(5), labels, fontsize=8)
whole.set_yticks([])
whole.spines[["top", "right", "left"]].set_visible(False)
for k in range(5):
    axes[0, k].remove()
    axes[1, k].imshow(np.concatenate(list(faces[group == k][:2]), 1))
    axes[1, k].axis("off");


# %% [markdown]
# The bars of @fig-limits-groups are a portrait of the training data, as far as a small prior remembers it. Nearly all samples are brown or lighter; hardly any lies below −30°, the class that dermatologists call dark. A face that the prior cannot draw it can also not add to a photo. This holds for age, headwear and disability as it does for tone, and there no formula shows it.

# %% [markdown]
# ## Alike, while there is colour
#
# Now the test of Fig. 8. Every face gets damage from the range "severe", without colour changes. Asked are three things, group by group: Is the restored face as near to the person? Is the picture as near in pixels? And is the tone kept, that is, what is the mean change of $L^*$ on the cheeks? The same change of the *damaged* face stands beside it, since blur mixes hair into the cheeks by itself.

# %%
def restored(x):
    with torch.inference_mode():
        return np.concatenate([to_images(net(part)[0]) for part in to_tensor(x).split(48)])


def away(x, y):
    "Identity angle in degrees between faces x and y, uint8 (n, s, s, 3) -> (n,)."
    with torch.inference_mode():
        return angle(embed(to_tensor(x)), embed(to_tensor(y))).numpy()


rng = np.random.default_rng(25)
colourless = replace(SEVERE.at(64), shift_prob=0, gray_prob=0, jitter_prob=0)
draws = [sample_params(rng, colourless) for _ in range(N)]
damaged = np.stack([degrade(f, p) for f, p in zip(faces, draws)])
out = restored(damaged)
gain = np.array([psnr(a, y) - psnr(b, y) for a, b, y in zip(out, damaged, faces)])
moved = {name: cheeks(x)[:, 0] - cheeks(faces)[:, 0]
         for name, x in (("input", damaged), ("restored", out))}
angles, angles_in = away(out, faces), away(damaged, faces)
half = lambda v: 1.96 * v.std(ddof=1) / np.sqrt(len(v))
print(f"{'':15} {'n':>3}  angle (°)   (input)  gain (dB)     change of L*: input, restored")
for k, name in enumerate(GROUPS):
    m = group == k
    print(f"{name:15} {m.sum():3}  {angles[m].mean():.1f} ± {half(angles[m]):.1f}   "
          f"{angles_in[m].mean():.1f}    {gain[m].mean():+.2f} ± {half(gain[m]):.2f}  "
          f"{moved['input'][m].mean():+10.1f} {moved['restored'][m].mean():+10.1f}")
means = np.array([angles[group == k].mean() for k in range(5)])
slope = np.polyfit(cheeks(faces)[:, 0], cheeks(out)[:, 0], 1)[0]
print(f"one L* more in the truth gives {slope:.2f} more in the result; "
      f"correlation of tone and angle {np.corrcoef(tone, angles)[0, 1]:+.2f}")
assert means[0] == means.max()
# all intervals overlap
assert np.ptp(means) < 2 * min(half(angles[group == k]) for k in range(5))
assert 0.9 < slope < 1.05 and all(abs(moved["restored"][group == k].mean()) < 1.5 for k in range(5))

# %%
#| label: fig-limits-alike
#| fig-cap: "The first two faces of each group: truth, input, restored, and restored from the grey input of the next section."
#| fig-alt: "Four rows of ten small faces, from darker to lighter; the restored rows keep the tones, the last row is more uniform and cooler."
first = np.concatenate([np.flatnonzero(group == k)[:2] for k in range(5)])
grey = np.stack([degrade(f, replace(p, gray=True)) for f, p in zip(faces, draws)])
from_grey = restored(grey)
shown = [x[i] for x in (faces, damaged, out, from_grey) for i in first]
compact(show(shown, rows=("truth", "input", "restored", "from grey"), cols=10, height=0.8))

# %% [markdown]
# The tones of rows one and three of @fig-limits-alike agree, and the numbers say the same: the lightness of the cheeks stays within about one unit in every group. The identity angle is largest for the darkest group. The difference to the others is a few degrees, all intervals overlap, and already the *damaged* faces of this group differ more than others from their truths; so 160 faces neither prove nor exclude that the model is a little worse there. This is how a careful answer looks. "It performs well on most", which one reads in papers, is another way to say it.
#
# Two cautions. The judge is the small embedder of @sec-identity, trained on 55 people of the press photos of 2002; a biased judge can hide a bias, or make one. And systems in use have been measured to err unevenly between groups [@buolamwini2018shades], so a borrowed judge is no way out.

# %% [markdown]
# ## Grey photos: a tone from nowhere
#
# A grey photo holds lightness and no colour. Whatever colour comes out was learned. If the model knew nothing of the person, the best it could do on average is the mean colour of its training faces; so the result regresses to the middle. Regression shows in the slope $k$ of a line through the points (true value, restored value):
#
# $$v_{out}\approx k\,v_{true}+c,\qquad k=1:\ \text{kept},\quad k=0:\ \text{replaced by a constant}$$ {#eq-limits-slope}
#
# $v$ is $L^*$ or $b^*$ of the cheeks.

# %%
truth, views = cheeks(faces), {"colour": cheeks(out), "grey": cheeks(from_grey)}
measures = (("lightness L*", 0), ("yellow b*", 2))
slopes = {(name, what): np.polyfit(truth[:, j], v[:, j], 1)[0]
          for name, v in views.items() for what, j in measures}
for (name, what), k in slopes.items():
    print(f"{name:6} input: {what:12} kept with slope {k:.2f}")
halves = {"darker half": tone < np.median(tone), "lighter half": tone >= np.median(tone)}
ends = {name: (views["grey"] - truth)[m, 0].mean() for name, m in halves.items()}
print("grey input, change of L*:", {name: f"{v:+.1f}" for name, v in ends.items()})
x = np.linspace(0, 1, 50)                           # the meter itself, on a known line
np.testing.assert_allclose(np.polyfit(x, 0.3 * x + 7, 1), [0.3, 7])
assert slopes["grey", "yellow b*"] < 0.3 < 0.6 < slopes["colour", "yellow b*"]
assert slopes["grey", "lightness L*"] < slopes["colour", "lightness L*"] - 0.1
assert ends["darker half"] > 0 > ends["lighter half"]

# %%
#| label: fig-limits-grey
#| fig-cap: "Cheeks before and after, one dot for each face, restored from a colour input (blue) and from a grey one (orange)."
#| fig-alt: "Two scatter plots. Lightness: both clouds follow the diagonal, the orange one is flatter. Yellow: the blue cloud follows the diagonal, the orange one is nearly level."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained")
for ax, (what, j) in zip(axes, measures):
    for (name, v), colour in zip(views.items(), ("#0072B2", "#D55E00")):
        ax.plot(truth[:, j], v[:, j], ".", ms=3, color=colour, label=name)
    ends_ = np.array([truth[:, j].min(), truth[:, j].max()])
    ax.plot(ends_, ends_, color="#444444", lw=0.8)
    ax.set(xlabel=f"{what}, truth", ylabel="restored")
axes[0].legend(fontsize=8, title="input", title_fontsize=8);


# %% [markdown]
# In @fig-limits-grey the orange clouds turn. The darker half of the faces comes out lighter than it was, the lighter half darker, and the yellow of the skin hardly depends on the person any more. Nobody programmed this. It is what a loss that rewards averages does with a question that has no answer in the input, and the average is that of the training faces. The paper names the same failure for its model and asks for balanced data. Balance would move the average; it would not bring the person's colour back. A photo that was grey should stay grey, or carry a note.

# %% [markdown]
# ## Dark photos are taken for damaged ones
#
# Training also shows the model faces whose brightness was changed, with the unchanged face as the answer: that is the colour jitter of @sec-degradation, by factors of 0.5 to 1.5. So it learns to undo bad exposure. But it cannot know whether a dark picture is badly exposed, or a dark scene. The next cell darkens and brightens the *truth* by $e$ stops, which multiplies the linear light by $2^e$, and restores from damage of that truth.

# %%
def linear(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def display(v):
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 0) ** (1 / 2.4) - 0.055)


def exposed(x, stops):
    "uint8 pictures whose linear light is 2^stops times that of x, clipped."
    return np.round(255 * display(np.clip(linear(x / 255) * 2.0**stops, 0, 1))).astype(np.uint8)


np.testing.assert_array_equal(exposed(faces[:2], 0), faces[:2])
dimmed = exposed(np.full((1, 1, 1, 3), 200, np.uint8), -1)[0, 0, 0, 0]
assert dimmed == 146                                # by hand: half the light of 200 is 146, not 100
light = {}
for stops in (-3, -2, -1, 0, 1):
    y = exposed(faces[:32], stops)
    x = np.stack([degrade(f, p) for f, p in zip(y, draws)])
    o = restored(x)
    angles_o = away(o, y)
    before, after = cheeks(y)[:, 0].mean(), cheeks(o)[:, 0].mean()
    light[stops] = y, x, o, angles_o, before, after
    print(f"{stops:+} stops: L* {before:.0f} -> {after:.0f}, "
          f"identity angle input {away(x, y).mean():.0f}°, restored {angles_o.mean():.0f}°")
assert light[-2][5] > light[-2][4] + 20 and light[1][5] < light[1][4]
assert light[-2][3].mean() > 1.5 * light[0][3].mean()

# %%
#| label: fig-limits-dark
#| fig-cap: "Two faces at five exposures: truth, input, restored."
#| fig-alt: "Three rows of ten small faces; the dark ones are returned much brighter and distorted."
shown = [light[s][k][i] for k in range(3) for i in (5, 2) for s in light]
titles = [f"{s:+}" for _ in range(2) for s in light]
compact(show(shown, titles, rows=("truth", "input", "restored"), cols=10, height=0.8))

# %% [markdown]
# One stop more or less costs a few degrees. At two stops less the model of @fig-limits-dark does not restore the picture, it *repaints* it, lighter by more than twenty units and as somebody farther from the person. This touches dark skin in bad light first. The cure for a user is dull: bring the exposure to normal before, and undo it afterwards. The cure in training is a narrower jitter, or none.

# %% [markdown]
# ## The point where somebody else appears
#
# Fig. 9 shows twisted faces under heavy damage. More dangerous is the case in which nothing looks twisted. As damage grows, at some point the result is a good face of another person. Where is that point? Three angles tell, for 32 faces and growing damage $d$ (reduction by $d$, blur and JPEG with it):
#
# $$a_{own}=\angle(\hat y_i,\,y_i),\qquad a_{twin}=\angle(\hat y_i,\,\hat y_i'),\qquad a_{other}=\angle(\hat y_i,\,\hat y_j)$$ {#eq-limits-angles}
#
# $\hat y_i$ and $\hat y_i'$ are restorations of one face $y_i$ under two seeds of the noise, $\hat y_j$ that of another face, $\angle$ the angle between embeddings. As long as the person survives, $a_{own}$ is far below $a_{other}$. And a police line-up: how often is the true face, among all 32, the one nearest to the restored one?

# %%
people = faces[:32]
vectors = lambda x: torch.nn.functional.normalize(embed(to_tensor(x)))


def damage(d, seed):
    size = 2 * round(0.75 * d) + 3
    return DegradationParams(sigma_x=0.25 * d, sigma_y=0.25 * d, kernel_size=size, r=d, delta=5,
                             q=60, noise_seed=seed)


def line_up(v):
    "Share of the vectors v (32, c) for which the nearest true one is their own."
    nearest = angle(v[:, None], true[None]).argmin(1)
    return (nearest == torch.arange(32)).float().mean().item()


steps, curve, sample = (1, 2, 4, 6, 8, 12, 16), [], []
different = ~torch.eye(32, dtype=bool)
with torch.inference_mode():
    true = vectors(people)
    strangers = angle(true[:, None], true[None])[different].mean().item()
    for d in steps:
        x, twin = (np.stack([degrade(f, damage(d, i + 1000 * k)) for i, f in enumerate(people)])
                   for k in (0, 1))
        y, y2 = restored(x), restored(twin)
        v, v2, vx = vectors(y), vectors(y2), vectors(x)
        others = angle(v[:, None], v[None])[different].mean().item()
        curve.append((angle(v, true).mean().item(), angle(v, v2).mean().item(), others,
                      line_up(v), line_up(vx)))
        sample.append((x[4], y[4], y2[4]))
own, twins, other, found, found_input = np.array(curve).T
print(f"two different people: {strangers:.0f}°; line-up by chance {1 / 32:.0%}")
for row in zip(steps, own, twins, other, found, found_input):
    numbers = *row[:4], *(100 * v for v in row[4:])
    print("damage %2d: own %.0f°, twin %.0f°, other %.0f°, found %.0f %% (input %.0f %%)" % numbers)
assert 0.6 < found[3] < 0.9 and 0.4 < found[4] < 0.6 and found[5] < 0.2     # at 6, 8 and 12
assert (np.diff(own[1:]) > 0).all() and found[0] == 1 and found[-1] < 0.15
assert (np.abs(found - found_input) < 0.25).all()
# a stranger, and twice the same one
assert own[-1] > 0.95 * strangers and twins[-1] < own[-1] / 2

# %%
#| label: fig-limits-invents
#| fig-cap: "Left: the three angles as damage grows (means of 32 faces). Right: how often the true face is the nearest of 32, for the restored and for the damaged face."
#| fig-alt: "Left, the curve of the own face rises from 15 to nearly 90 degrees and crosses that of other people, while the curve of the same face again stays near 30 and below. Right, two falling curves close together."
fig, (ax, bx) = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
curves = ((own, "own face", "#0072B2"), (other, "other people", "#444444"),
          (twins, "the same face again", "#D55E00"))
for v, name, colour in curves:
    ax.plot(steps, v, "o-", ms=3, color=colour, label=name)
ax.axhline(strangers, ls=":", color="#444444")
ax.set(xlabel="damage: reduced by", ylabel="identity angle (°)", ylim=(0, 100))
ax.legend(fontsize=8)
bx.plot(steps, found, "o-", ms=3, color="#0072B2", label="restored")
bx.plot(steps, found_input, "o--", ms=3, color="#E69F00", label="damaged")
bx.axhline(1 / 32, ls=":", color="#444444")
bx.set(xlabel="damage: reduced by", ylabel="found in the line-up", ylim=(0, 1.05))
bx.legend(fontsize=8);

# %%
#| label: fig-limits-heavy
#| fig-cap: "One face under growing damage: input, restored, restored under another noise. The first picture is the truth."
#| fig-alt: "Three rows; the inputs dissolve into grey fog, the restored faces keep a face's features up to a reduction by 6, then melt, and the lower two rows resemble each other all along."
blank = np.full_like(people[0], 255)
inputs, once, again = zip(*sample)
shown = [people[4], *inputs, blank, *once, blank, *again]
compact(show(shown, ["truth", *map(str, steps)], rows=("input", "restored", "other noise"),
             cols=8, height=0.95))


# %% [markdown]
# The orange curve of @fig-limits-invents is the trap. Up to a reduction by 4 the own face is found almost always. At 6 there is still a face in @fig-limits-heavy, and in about a quarter of the cases somebody else is nearer to it. At 16 the result is as far from its person as a stranger is, and twisted, like the paper's examples. But two restorations of one face still agree: the model invents, and it invents the *same* face again. Agreement between runs, a natural test of reliability, proves nothing. The grey curve falls at the end for a related reason: the answers become alike, whoever was asked about.
#
# The dashed curve is the other lesson. The line-up succeeds nearly as often with the damaged face itself. Restoration made the pictures nicer to look at; it added little about who it is. It cannot add much: the network sees the input and nothing else.

# %% [markdown]
# ## Large poses
#
# The prior saw faces that look at the camera, roughly. To turn a face without a camera, wrap the picture around an upright cylinder of radius $R$ and turn that by $\theta$. A pixel at distance $x'$ from the axis shows the point that was at
#
# $$x=R\,\sin\!\big(\arcsin(x'/R)-\theta\big)$$ {#eq-limits-turn}
#
# which is a crude head, without nose and ears, and enough to leave the range of the training set.

# %%
def turned(x, degrees, radius=0.42):
    """Faces x (n, s, s, 3), wrapped around a cylinder of `radius` sides, turned (@eq-limits-turn).

    What comes from behind the head repeats the rim.
    """
    n, s = x.shape[:2]
    u = (np.arange(s) + 0.5) / s - 0.5
    phi = np.arcsin(np.clip(u / radius, -1, 1)) - np.radians(degrees)
    source = np.where(np.abs(u) < radius, radius * np.sin(np.clip(phi, -np.pi / 2, np.pi / 2)), u)
    grid = torch.tensor(np.stack(np.meshgrid(2 * source, 2 * u), -1), dtype=torch.float32)
    pixels = torch.tensor(x.copy()).permute(0, 3, 1, 2).float()
    y = torch.nn.functional.grid_sample(pixels, grid.expand(n, -1, -1, -1), padding_mode="border",
                                        align_corners=False)
    return y.permute(0, 2, 3, 1).round().byte().numpy()


np.testing.assert_array_equal(turned(people[:2], 0), people[:2])        # no turn, no change
mirrored = turned(people[:2, :, ::-1], -30)[:, :, ::-1]
np.testing.assert_allclose(turned(people[:2], 30).astype(int), mirrored, atol=1)
yaws, pose = (0, 15, 30, 45, 60), []
mild = [damage(3, i) for i in range(32)]
for yaw in yaws:
    y = turned(people, yaw)
    x = np.stack([degrade(f, p) for f, p in zip(y, mild)])
    o = restored(x)
    gained = np.mean([psnr(a, c) - psnr(b, c) for a, b, c in zip(o, x, y)])
    pose.append((gained, away(o, y).mean(), y[9], x[9], o[9]))
    print(f"{yaw:2}°: gain over the input {pose[-1][0]:+.2f} dB, identity angle {pose[-1][1]:.0f}°")
assert pose[0][0] > 0.5 and pose[-1][0] < -0.2 and pose[0][0] > pose[2][0] > pose[-1][0]

# %%
#| label: fig-limits-pose
#| fig-cap: "A made-up face turned on its cylinder: truth, input, restored."
#| fig-alt: "Three rows of five small faces turning to the side; the restored ones grow more distorted."
shown = [p[k] for k in (2, 3, 4) for p in pose]
compact(show(shown, [f"{a}°" for a in yaws], rows=("truth", "input", "restored"), cols=5,
             height=0.95))

# %% [markdown]
# The cylinder is a stand-in, so read the trend of @fig-limits-pose, not the values. From a gain over the input the model falls to a loss: as the head turns, it draws a smear where the prior expected an eye and a cheek. The identity angle hardly notices. The embedder saw frontal faces too, and its word on a turned one is worth little: a judge has limits of its own.

# %% [markdown]
# ## Consent, and a note that travels
#
# A restorer needs no permission to run; the person in the photo may still mind. Some rules hold whatever the law of a country says:
#
# - *No evidence, no search.* Never restore a face to find out who it is, and never feed a restored face to a recognition system. The line-up above says what comes of it.
# - *Ask.* For photos of living people, ask them. Children and people who are ill or in distress cannot always answer for themselves; then the answer is no.
# - *Show the input.* A restored picture stands beside its input, or links to it.
# - *Say it in the file.* A caption gets lost when a file is passed on. A note inside it gets lost less often.

# %%
NOTE = ("Face restored by a network (gfpgan_edu faces64): details are invented. "
        "Not evidence of identity.")


def with_note(image, note=NOTE):
    "The uint8 picture as a JPEG file in memory, with the note as its EXIF description."
    exif, file = Image.Exif(), BytesIO()
    exif[0x010E] = note                             # ImageDescription
    Image.fromarray(image).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


marked = with_note(out[0])
back = Image.open(BytesIO(marked))
assert back.getexif()[0x010E] == NOTE and back.size == (64, 64)
assert len(marked) - len(with_note(out[0], "")) < 200       # it costs next to nothing
print(len(NOTE), "letters, read back from the file")

# %% [markdown]
# ## Licences
#
# "Is it free?" has one answer for each asset. The code may be free while the weights are not, because weights inherit conditions from the pictures they were trained on.
#
# | asset | licence | what follows |
# |---|---|---|
# | code and text of this book | Apache-2.0; written from the papers | may be used commercially |
# | bundled restorer and priors | CC BY-NC-SA 4.0, as FFHQ, on which they were trained | not commercially; share alike |
# | bundled face embedder | for research, as Labeled Faces in the Wild [@huang2007lfw] | not in a product |
# | official GFP-GAN code | Apache-2.0; its licence file lists parts under NVIDIA's non-commercial licence (StyleGAN2) and CC BY-NC-SA (DFDNet) | users' questions about commercial use were left open |
# | official GFP-GAN weights | trained on FFHQ; a hash is known for v1.2, v1.3 and v1.4 only | treat as non-commercial; downloaded, never bundled |
# | FFHQ [@karras2019stylegan] | collection CC BY-NC-SA 4.0; each photo has a licence of its own | name it, do not sell it |
# | ArcFace-type networks of insightface | non-commercial | an option (`embedder=`), never a dependency |
# | CodeFormer, DifFace | S-Lab 1.0, non-commercial | results may be compared, code not mixed in |
# | RestoreFormer(++), VQFR | Apache-2.0 | |
# | PMRF | MIT | |
# | face detector (facenet-pytorch) | MIT, weights in the package | |
#
# : Who may use what. No legal advice: read the licence files themselves. {#tbl-limits-licences}
#
# For a product, the rows of @tbl-limits-licences that block are the training faces. The code is ready for others: train the prior and the restorer on faces whose owners agreed (@sec-train-prior, @sec-train-restorer).

# %% [markdown]
# ## Put together: a card in one cell
#
# A model card [@mitchell2019cards] collects such findings beside the weights. The numbers of this chapter as one, made by the cell:

# %%
worst = list(GROUPS)[means.argmax()]
limit = next(d for d, f in zip(steps, found) if f < 0.5)
lines = [
    ("identity angle, groups of tone",
     f"{means.min():.0f}° to {means.max():.0f}°; largest for “{worst}”, all intervals overlap"),
    ("tone from colour photos", f"kept (slope {slopes['colour', 'lightness L*']:.2f} in L*)"),
    ("tone from grey photos",
     f"drawn to the middle (slopes {slopes['grey', 'lightness L*']:.2f} in L*, "
     f"{slopes['grey', 'yellow b*']:.2f} in b*)"),
    ("two stops underexposed", f"repainted: L* {light[-2][4]:.0f} becomes {light[-2][5]:.0f}"),
    ("person lost", f"in most cases from a reduction by {limit} ({64 // limit} px a side)"),
    ("turned by 60°", f"{pose[-1][0]:+.1f} dB against the input, frontal {pose[0][0]:+.1f} dB")]
assert len(with_note(out[0], "; ".join(f"{a}: {b}" for a, b in lines))) > len(marked)
rows = [f"| {a} | {b} |" for a, b in lines]
Markdown("\n".join(["| measured on made-up faces of 64 px | bundled model |", "|---|---|", *rows]))

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | dark-skinned faces | examples (Fig. 8) | – | five groups of apparent tone, with intervals | an example shows that it can work, a group how often |
# | grey inputs | "may have a bias", one example | – | slopes of lightness and colour | @eq-limits-slope |
# | exposure | not discussed | – | five stops | a consequence of colour jitter |
# | heavy damage | examples (Fig. 9) | – | angles and a line-up as damage grows | the point where the person is lost |
# | large poses | examples (Fig. 9) | – | a face on a cylinder | no photos of turned heads with a licence to bundle |
# | test faces | real photos | – | samples of the prior | nobody's portraits; less varied than people |
#
# : Limits in three versions {#tbl-limits-versions}
#
# @tbl-limits-versions compares kinds of proof, not models: ours is a hundred times smaller than the paper's.
#
# ::: {.callout-warning}
# ## What users trip over
# - *Eyes change colour, skin gets lighter, scarves become chins.* All three are reported for the official weights, and all three are the training set speaking.
# - *Glasses appear, or turn into double eyebrows.* Half-visible frames are explained by what was seen more often.
# - *"Is it accurate?"* For looks, often. For identity, no. Ask how many pixels the face had: @fig-limits-invents tells where a 64 px model loses the person.
# - *"I restored it twice and got the same face, so it must be right."* See @fig-limits-invents.
# :::

# %% [markdown]
# ## Summary
#
# - The prior draws whom it saw. Hardly one sample in twenty is darker than brown (@eq-limits-ita).
# - With colour in the input, the bundled model keeps every tone; a difference in identity between tones is at most a few degrees. Without colour it gives everybody nearly the same.
# - A very dark photo counts as damaged and is repainted.
# - At a reduction by 8 a 64 px face is somebody else in half of the cases, at 12 nearly always, and the same somebody each time (@eq-limits-angles).
# - Code, weights and data have a licence each; the strictest decides.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* How many faces does the darkest group need for an interval half as wide? And how many samples of the prior is that, at its present share?
# 2. *Modify.* Restore underexposed faces by way of `exposed`: brighten, restore, darken again. How much of the identity angle at −2 stops comes back?
# 3. *Break.* Replace the embedder by plain grey pixels, 64 × 64 numbers. Which assertions of the line-up still hold, and why is that worrying?
#
# Worked solutions: [nbs/solutions/25_limits.ipynb](solutions/25_limits.ipynb).

# %% [markdown]
# ## References
#
# The discussion of bias and limits follows Sec. 4.4 of @wang2021gfpgan; PULSE [@menon2020pulse] started the public debate on whom such methods draw. The typology angle is from @chardon1991ita, uneven errors of face analysis were measured by @buolamwini2018shades, model cards proposed by @mitchell2019cards. FFHQ is from @karras2019stylegan.

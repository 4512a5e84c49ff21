# %% [markdown]
# # Restoring a photo {#sec-photos}
#
# > The network repairs a square of 64 or 512 pixels; people have photos.
#
# **You will build** `restore`: find and align the faces of a photo, restore each, look them up from the photo's side, and blend them in without a seam; and `restore_video`, the same for the frames of a film. **Needs** alignment (@sec-faces), the damage of @sec-degradation,
# weights (@sec-weights) and picture files (@sec-pictures). **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp photos

# %%
#| export
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from gfpgan_edu.faces import SUFFIXES, Detector, Face, align, detect, footprint
from gfpgan_edu.faces import invert, similarity, template, to_images, to_tensor
from gfpgan_edu.pictures import PhotoError, read_image, to_rgb, write_image

if TYPE_CHECKING:
    import torch

# %%
import tempfile
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, show
from gfpgan_edu.weights import load_prior, load_weights

# %% [markdown]
# @fig-photos-map marks the two ends of the method that this chapter ties to a photo: the degraded face goes in on the left, the restored face comes out on the right.

# %%
#| label: fig-photos-map
#| fig-cap: "This chapter works at both ends of the network: it cuts the input out of a photo and puts the output back."
#| fig-alt: "The method as boxes and arrows; the boxes of the degraded face and of the restored face are coloured."
draw_map("degradation", "output");

# %% [markdown]
# ## The plan, step by step
#
# Take the astronaut photo and damage it as @sec-degradation does, this time the whole photo. Then follow one face: detected, aligned to the size of the network, restored, and seen again from the photo's side. The last step, the blend, is the subject of the rest of the chapter.

# %%
photo, temporary = astronaut(), tempfile.TemporaryDirectory()
folder = Path(temporary.name)
torch.set_num_threads(1)                                # the same sums on every machine
damage = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
damaged = degrade(photo, damage)
net = load_weights("bundled")
face, = detect(damaged)
size = net.config.size
crop, matrix = align(damaged, face.landmarks, size)
with torch.inference_mode():
    restored = to_images(net(to_tensor(crop))[0])[0]
scale = np.hypot(*matrix[:, 0])
print(f"a model of {size} px; "
      f"one pixel of the photo becomes {scale:.2f} pixels of the aligned face")
assert restored.shape == crop.shape == (size, size, 3)

# %%
#| label: fig-photos-steps
#| fig-cap: "The steps on one face: the damaged photo with the detected points, the aligned face, the restored face, and that face seen from the photo's side."
#| fig-alt: "A damaged portrait with five dots, an upright blurred face, a cleaner face, and that face small and slightly turned on an empty ground."
seen = cv2.warpAffine(restored, invert(matrix), (512, 512), flags=cv2.INTER_CUBIC,
                      borderValue=(255, 255, 255))
view = np.s_[20:200:2, 135:315:2]
steps = {"detected": damaged[view], f"aligned, {size} px": crop,
         "restored": restored, "seen from the photo": seen[view]}
fig, axes = plt.subplots(1, 4, figsize=(5.4, 1.5), layout="constrained")
for ax, (title, p) in zip(axes, steps.items()):
    ax.imshow(p, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.axis("off")
axes[0].scatter(*(face.landmarks - (135, 20)).T / 2, c="#56B4E9", s=6);


# %% [markdown]
# What the network never saw, everything outside its square in @fig-photos-steps, must stay exactly as it is.
#
# ## The way back
#
# Alignment sends the photo's point $p$ to $Ap+t$ in the aligned picture. To put the restored face back, ask the same question in the other direction: which colour belongs at the photo's pixel $p$? It is the face at $Ap+t$, between pixels, so interpolation decides.
# OpenCV's `warpAffine` does this for all $p$; it wants the matrix of the way from the source to the target and inverts it itself, so it gets the inverse of $[A\;t]$.
#
# How good is that? There is a test with a known answer: a network that changes *nothing*. Its face, aligned and put back, should be the photo. What is missing was lost by resampling alone. At a size above the photo's own the loss should be small.

# %%
def look_up(crop, matrix, flags=cv2.INTER_CUBIC):
    "The aligned picture seen from a photo of 512 px, one sample a pixel."
    return cv2.warpAffine(crop.astype(np.float32), invert(matrix), (512, 512), flags=flags,
                          borderMode=cv2.BORDER_REPLICATE)


def error_inside(seen, matrix, truth=photo):
    "Mean absolute error in grey levels where the face covers the photo, its outer tenth left out."
    square = np.zeros((crop256.shape[0],) * 2, np.float32)
    square[26:-26, 26:-26] = 1
    inside = look_up(square, matrix, cv2.INTER_NEAREST) > 0
    return np.abs(np.clip(seen, 0, 255) - truth)[inside].mean()


# from here on the face of the undamaged photo
face, = detect(photo)
crop256, m256 = align(photo, face.landmarks, 256)
ways = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
errors = {name: error_inside(look_up(crop256, m256, flags), m256) for name, flags in ways.items()}
print("a network that changes nothing, 256 px, mean error in grey levels: "
      + ", ".join(f"{k} {v:.2f}" for k, v in errors.items()))
assert errors["cubic"] < errors["linear"] < errors["nearest"] and errors["cubic"] < 1

# an independent look-up: scipy, straight from A p + t
y, x = np.mgrid[:512, :512]
at = m256[:, :2] @ np.stack([x.ravel(), y.ravel()]) + m256[:, 2:]
channels = np.moveaxis(crop256.astype(float), 2, 0)
linear = [ndimage.map_coordinates(c, at[::-1], order=1, mode="nearest") for c in channels]
linear = np.stack(linear, 1).reshape(512, 512, 3)
off = np.abs(linear - look_up(crop256, m256, cv2.INTER_LINEAR))
print(f"against scipy's linear interpolation: {off.mean():.3f} grey levels on average")
assert off.mean() < 0.1             # some versions of OpenCV round positions to 1/32 px


# %% [markdown]
# Half a pixel is enough to spoil it. A half-pixel rule that is forgotten on the way back moves the face by half a pixel of the aligned picture. Here it is, made on purpose.

# %%
def half_a_pixel_off(matrix):
    return matrix + np.array([[0, 0, 0.5], [0, 0, 0.5]])


shifted = error_inside(look_up(crop256, half_a_pixel_off(m256)), m256)
print(f"half a pixel off: {shifted:.1f} grey levels at 256 px, against {errors['cubic']:.1f}")
assert shifted > 5 * errors["cubic"] and shifted > errors["nearest"]

# %%
#| label: fig-photos-halfpixel
#| fig-cap: "A network that changes nothing, put back into the photo. The error, drawn eight times as strong, for three interpolations and for cubic interpolation half a pixel off."
#| fig-alt: "A face, and four difference pictures: faint for cubic, stronger for linear, strong for nearest, and with clear outlines of the face when half a pixel off."
window = np.s_[80:160, 185:265]
flags = (cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_NEAREST)
tests = [look_up(crop256, m256, f) for f in flags] + [look_up(crop256, half_a_pixel_off(m256))]
maps = [np.abs(np.clip(t, 0, 255) - photo).mean(2)[window] * 8 for t in tests]
titles = ["photo", "cubic", "linear", "nearest", "cubic, ½ px off"]
show([photo[window], *maps], titles, vmin=0, vmax=255, height=1.2);

# %% [markdown]
# In @fig-photos-halfpixel cubic interpolation leaves almost nothing. The shifted face shows every outline of the photo; a viewer sees doubled contours where the blend sets in.
#
# ## When the restored face has more detail than the photo
#
# The test above is too kind in one point. A real restorer returns 512 sharp pixels for a face that has perhaps 60 in the photo. Now one sample per photo pixel skips most of them: the aliasing of @eq-faces-lowpass, on the way back.
#
# Test it with a *perfect* restorer. Shrink the astronaut three times by averaging; that is the photo. The perfect restorer returns the face from the original. Put back into the small photo it should give that photo again, because the photo *is* the average of the original.

# %%
truth = photo[:510, :510]
tiny = truth.reshape(170, 3, 170, 3, 3).mean((1, 3))    # each pixel the mean of 3 × 3
points = (face.landmarks + 0.5) / 3 - 0.5
perfect, _ = align(photo, face.landmarks, 256)
m_tiny = similarity(points, template(256))
one_sample = cv2.warpAffine(perfect.astype(np.float32), invert(m_tiny), (170, 170),
                            flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
print(f"{np.hypot(*m_tiny[:, 0]):.1f} pixels of the aligned face for one of the photo")


# %% [markdown]
# `unalign` does what a camera does: it averages. It looks the face up on a grid that is $n$ times finer, with $n$ the scale of the alignment rounded to a whole number, and takes the mean of each $n\times n$ block. By the half-pixel rule the photo's point $p$ lies at $n\,(p-p_0+\frac12)-\frac12$ of a fine grid that begins at the pixel $p_0$.

# %%
#| export
def unalign(crop, matrix, box, flags=cv2.INTER_CUBIC):
    """The inverse of `align`: an aligned picture (S, S, c) as seen from the photo's pixels
    `box` = (x0, y0, x1, y1) -> float32.

    Where S exceeds the photo's own resolution, n × n samples are averaged for each pixel, so that
    the crop's detail does not alias.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    w, h = x1 - x0, y1 - y0
    n = max(1, round(float(np.hypot(matrix[0, 0], matrix[1, 0]))))
    fine = n * invert(matrix)
    # pixel p of the photo is n (p - p0 + 1/2) - 1/2 of the fine grid
    fine[:, 2] += n * (0.5 - np.array([x0, y0])) - 0.5
    out = cv2.warpAffine(crop.astype(np.float32), fine, (n * w, n * h), flags=flags,
                         borderMode=cv2.BORDER_REPLICATE)
    return out if n == 1 else cv2.resize(out, (w, h), interpolation=cv2.INTER_AREA)


# %%
averaged = unalign(perfect, m_tiny, (0, 0, 170, 170))
inside = unalign(np.pad(np.ones((204, 204)), 26), m_tiny, (0, 0, 170, 170)) > 0.99
lost = [np.abs(p - tiny)[inside].mean() for p in (one_sample, averaged)]
print(f"a perfect restorer, put back: {lost[0]:.1f} grey levels of error "
      f"with one sample a pixel, {lost[1]:.1f} with the average")
assert lost[1] < 1 and lost[0] > 5 * lost[1]

# the price: a network that changes nothing loses a little more
n, seen = round(np.hypot(*m256[:, 0])), unalign(crop256, m256, (0, 0, 512, 512))
price = error_inside(seen, m256)
print(f"a network that changes nothing, 256 px: {price:.1f} with the average over {n} × {n}, "
      f"{errors['cubic']:.1f} without")
assert price < 2.5
# a rectangle is the same as the whole, cut
part, cut = unalign(crop256, m256, (150, 40, 290, 200)), seen[40:200, 150:290]
assert_allclose(part, cut, atol=6)
assert np.abs(part - cut).mean() < 0.1

# %%
#| label: fig-photos-average
#| fig-cap: "A perfect restorer's face put back into a photo of 170 px: the photo it should give, one sample a pixel, and the average."
#| fig-alt: "Three small pictures of a face; the middle one has jagged edges and bright speckles, the right one equals the left one."
view = np.s_[8:62, 46:100]
pictures = [np.clip(p, 0, 255).astype(np.uint8)[view] for p in (tiny, one_sample, averaged)]
show(pictures, ["the photo", "one sample a pixel", "averaged"], height=1.5);

# %% [markdown]
# The middle picture of @fig-photos-average is jagged and too contrasty. Averaging costs a network that changes nothing about one grey level, and saves a good one several.
#
# ## A mask, and why its slope matters
#
# The restored square must not end at an edge. The network may have changed the brightness a little, and hair that leaves the square would be cut. So the photo is a mixture of the two,
#
# $$\mathrm{out}(p)=m(p)\cdot\mathrm{face}(p)+\big(1-m(p)\big)\cdot\mathrm{photo}(p)$$ {#eq-blend}
#
# with $\mathrm{face}(p)$ the restored face at the photo's pixel $p$, and a mask $m$ that is 1 on the face and 0 away from it, drawn in the aligned picture and looked up at $Ap+t$. Which shape should it have, and how should it fall from 1 to 0?
#
# **Shape.** The restorer is at its best on the face and at its worst on hair, ears and wall. In FFHQ's framing the face fills the same oval every time: no second network has to find it. In coordinates $u,v$ that run from 0 to 1 over the aligned picture, let
#
# $$\rho(u,v)=\left(\Big|\frac{u-u_0}{a}\Big|^{q}+\Big|\frac{v-v_0}{b}\Big|^{q}\right)^{1/q},\qquad t=\min\Big(1,\max\Big(0,\frac{1-\rho}{f}\Big)\Big),\qquad m=3t^2-2t^3$$ {#eq-photos-mask}
#
# with the centre $(u_0,v_0)$ and the half axes $a,b$ in units of the picture, the exponent $q$ ($q=2$ is an ellipse, larger is squarer: faces are a little squarer), and the feather $f$, the share of the radius over which the mask falls. All are shares of the face and grow with it.
#
# **Slope.** A jump shows as a line. A straight ramp has no jump, but a kink where it begins and one where it ends, and the eye is known to draw bright and dark bands at kinks (Mach bands). The polynomial $3t^2-2t^3$ has slope 0 at both ends.

# %%
#| export
# of the face in FFHQ's framing, shares of the picture: x, y
CENTRE, AXES = (0.5, 0.54), (0.38, 0.44)


def face_mask(size: int, power: float = 2.5, feather: float = 0.35) -> np.ndarray:
    """Soft oval (size, size) float32 on an aligned face (@eq-photos-mask): 1 on the face, 0 on
    hair, ears and background."""
    t = (np.arange(size) + 0.5) / size
    x, y = (np.abs(t - centre) / axis for centre, axis in zip(CENTRE, AXES))
    rho = (x**power + y[:, None] ** power) ** (1 / power)
    t = np.clip((1 - rho) / feather, 0, 1)
    mask = t * t * (3 - 2 * t)      # slope 0 at both ends: no seam in the slope either
    mask[[0, -1]] = 0               # below 32 px the oval would reach the edge
    return mask.astype(np.float32)


# %%
m = face_mask(200)
assert_array_equal(m, m[:, ::-1])
assert (m[:20] == 0).all() and (m[-4:] == 0).all() and (m[:, :24] == 0).all()
eyes_nose_mouth = np.rint(template(200)).astype(int)
assert (m[eyes_nose_mouth[:, 1], eyes_nose_mouth[:, 0]] == 1).all()
assert (np.diff(m[:, 100])[:108] >= 0).all() and (np.diff(m[:, 100])[108:] <= 0).all()
# one element, by hand: column 125, row 179
rho = ((25.5 / 200 / 0.38) ** 2.5 + (71.5 / 200 / 0.44) ** 2.5) ** 0.4
t = (1 - rho) / 0.35
assert 0 < t < 1
assert_allclose(m[179, 125], 3 * t**2 - 2 * t**3, rtol=1e-5)
assert_allclose(face_mask(400).mean(), m.mean(), atol=1e-3)     # the same share at any size
print(f"{m.mean():.0%} of the square, {(m == 1).mean():.0%} of it whole; "
      f"the astronaut's face square has {256 / np.hypot(*m256[:, 0]):.0f} px")

ramp = np.clip((1 - np.abs((np.arange(512) + 0.5) / 512 - 0.5) / 0.38) / 0.35, 0, 1)[:256]
profiles = {"jump": (ramp > 0.5) * 1.0, "ramp": ramp, "smooth": ramp * ramp * (3 - 2 * ramp)}
assert_allclose(profiles["smooth"], face_mask(512)[276, :256], atol=1e-4)
steps, kinks = ({k: np.abs(np.diff(20 * p, order)).max() for k, p in profiles.items()}
                for order in (1, 2))
print("a difference of 20 grey levels, spread over 68 of 512 px")
for k in profiles:
    print(f"  {k:6}: largest step {steps[k]:5.2f}, "
          f"largest change from one step to the next {kinks[k]:5.2f}")
assert steps["jump"] > 30 * steps["smooth"] and kinks["smooth"] < kinks["ramp"] / 5

# %%
#| label: fig-photos-mask
#| fig-cap: "A face that came back 60 grey levels too bright, blended into a plain wall with three masks. Below: how the brightness rises from the side towards the middle."
#| fig-alt: "Three grey squares with a brighter oval inside: with a sharp edge, with faint bands along the ramp, and without bands. Below, three curves: a step, a ramp with corners, a smooth rise."
soft = face_mask(512)
# the same oval with a straight ramp
straight = np.interp(soft, profiles["smooth"][60:140], ramp[60:140])
ovals = {"jump": (straight > 0.5) * 1.0, "ramp": straight, "smooth": soft}
fig, axes = plt.subplots(2, 3, figsize=(6, 3.2), layout="constrained", height_ratios=(2.4, 1))
for (top, below), (name, p) in zip(axes.T, ovals.items()):
    top.imshow(100 + 60 * p, cmap="gray", vmin=0, vmax=255)
    top.set_title(name, fontsize=9)
    top.axis("off")
    below.plot(100 * (np.arange(180) + 0.5) / 512, 60 * profiles[name][:180], c="#0072B2")
    below.set(xlabel="% of the square", ylim=(-6, 66))
axes[1, 0].set_ylabel("grey levels");

# %% [markdown]
# @fig-photos-mask exaggerates, so that the three can be told apart. With the jump the outline is plain. With the ramp many people see a dark line where it begins and a bright one where it ends, although there are none. The smooth mask has neither.

# %%
prior = load_prior("bundled")
with torch.inference_mode():
    g = torch.Generator().manual_seed(0)
    faces_of_prior = prior(torch.randn(48, prior.config["style_dim"], generator=g))
average = to_images(faces_of_prior.mean(0, keepdim=True))[0]
average = cv2.resize(average, (256, 256), interpolation=cv2.INTER_CUBIC)
t = (np.arange(64) + 0.5) / 64
e = np.clip((np.minimum(t, 1 - t) - 0.08) / 0.12, 0, 1)
edge = e * e * (3 - 2 * e)
masks = {"square": np.outer(edge, edge).astype(np.float32), "oval": face_mask(64)}
matrix = align(damaged, detect(damaged)[0].landmarks, 64)[1]
there = unalign(cv2.resize(restored, (64, 64)), matrix, (0, 0, 512, 512))
blends = {}
for name, small_mask in masks.items():
    m = np.clip(unalign(small_mask, matrix, (0, 0, 512, 512)), 0, 1)[..., None]
    blends[name] = np.rint(np.clip(m * there + (1 - m) * damaged, 0, 255)).astype(np.uint8)
beside = np.clip(unalign(masks["square"] - masks["oval"], matrix, (0, 0, 512, 512)), 0, 1)
hair = np.abs(there - damaged).mean(2) * beside
redrawn = np.abs(blends["square"].astype(int) - damaged).mean(2)
print("redrawn by the square mask and not by the oval: "
      f"{hair.sum() / redrawn.sum():.0%} of all change")

# %%
#| label: fig-photos-shape
#| fig-cap: "Left: the average of 48 faces of the prior with the lines m = 0.02, 0.5 and 0.98 of the oval, and dashed of a soft square. Then the damaged photo, restored with the square mask, and with the oval."
#| fig-alt: "A blurred average face inside three ovals and three squares; three portraits, in the second the hair and wall beside the face are redrawn, in the third they are as in the first."
fig, axes = plt.subplots(1, 4, figsize=(6, 1.7), layout="constrained")
axes[0].imshow(average)
for name, style, colour in (("oval", "-", "#0072B2"), ("square", "--", "#E69F00")):
    axes[0].contour(cv2.resize(masks[name], (256, 256)), levels=(0.02, 0.5, 0.98), colors=colour,
                    linestyles=style, linewidths=1)
for ax, (name, p) in zip(axes[1:], {"damaged": damaged, **blends}.items()):
    ax.imshow(p[20:200, 135:315], interpolation="nearest")
for ax, name in zip(axes, ("average face", "damaged", "square", "oval")):
    ax.set_title(name, fontsize=9)
    ax.axis("off")


# %% [markdown]
# In @fig-photos-shape the middle line of the oval follows brow, cheeks and chin of the average face. The square brings a dark, redrawn fringe and a brighter wall into the photo; with the oval, hair and wall beside the face are the photo's. The printed share is what the oval saves.
#
# ## The colour at the border
#
# A mask hides small differences. It cannot hide that the face came back a little darker or warmer than the neck below it. So look at the difference of the two pictures *where the mask falls off*, where both are seen, and give the face the plane of colour that takes it away: for each channel
#
# $$c(u,v)=c_0+c_1u+c_2v\quad\text{with}\quad (c_0,c_1,c_2)=\arg\min\sum_q m(q)\big(1-m(q)\big)\,\big[\mathrm{crop}(q)-\mathrm{face}(q)-c(q)\big]^2$$ {#eq-photos-colour}
#
# over all pixels $q$ of the aligned picture. The weight $m(1-m)$ is 0 on the face and outside, and largest halfway. A plane can follow light from one side, but it cannot learn a face. It is added to the whole face: the restored shading stays, its level and tint become the photo's. A network that changes nothing gets the plane 0.

# %%
#| export
def match_colour(crop: np.ndarray, face: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The plane of colour, float (S, S, 3), to be added to `face` so that it agrees with `crop`
    (both S×S×3) where the mask (S, S) falls off (@eq-photos-colour)."""
    size = len(face)
    t = (np.arange(size) + 0.5) / size
    terms = np.stack([np.ones((size, size)), *np.meshgrid(t, t)]).reshape(3, -1)    # 1, u, v
    weighted = terms * (mask * (1 - mask)).ravel()
    difference = np.subtract(crop, face, dtype=np.float32).reshape(-1, 3)
    # (3 terms, 3 channels); of a mask without a border 0
    coefficients = np.linalg.lstsq(weighted @ terms.T, weighted @ difference, rcond=None)[0]
    return (terms.T @ coefficients).reshape(size, size, 3)


# %%
mask = face_mask(size)
u, v = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2)
tint = np.stack([12 - 30 * u, 8 * v, -25 + 5 * u - 9 * v], -1)
# a network that changes nothing
assert (match_colour(crop, crop, mask) == 0).all()
# a network that only tints is undone
assert_allclose(match_colour(crop, crop - tint, mask), tint, atol=1e-3)
# independently: torch's least squares on the rows themselves
root, ones = np.sqrt(mask * (1 - mask)).ravel()[:, None], np.ones_like(u)
sides = np.stack([ones, u, v], -1), crop.astype(float) - restored
rows = [torch.tensor(root * a.reshape(-1, 3)) for a in sides]
by_rows = torch.linalg.lstsq(*rows).solution.numpy()
plane = match_colour(crop, restored, mask)
by_hand = [1, 9.5 / size, 7.5 / size] @ by_rows
assert_allclose(plane[7, 9], by_hand, rtol=1e-3, atol=1e-2)
middle = np.round(plane[size // 2, size // 2], 1)
print("the bundled model's face, at its middle, red, green, blue:", middle)

# %%
#| label: fig-photos-tint
#| fig-cap: "A network that darkens and reddens the face, and more so to the right: the photo, its face pasted as it came, and with the plane of colour."
#| fig-alt: "Three portraits; the middle one has a face that is too dark and too red on one side, the right one looks like the left one."
u, v = np.meshgrid(*[(np.arange(256) + 0.5) / 256] * 2)
wrong = np.clip(crop256 - np.stack([10 * u, 30 + 30 * u, 30 + 40 * u], -1), 0, 255)
here = np.clip(unalign(face_mask(256), m256, (0, 0, 512, 512)), 0, 1)[..., None]
matched = wrong + match_colour(crop256, wrong, face_mask(256))
seen = [np.clip(unalign(a, m256, (0, 0, 512, 512)), 0, 255) for a in (wrong, matched)]
pictures = [photo, *(here * p + (1 - here) * photo for p in seen)]
titles = ["photo", "as it came", "colour matched"]
show([p.astype(np.uint8)[30:190, 145:305] for p in pictures], titles, height=1.2);


# %% [markdown]
# In @fig-photos-tint the middle face is plainly somebody else's colour. The plane brings it back, but for one place: in the hair at the right the wrong face had been cut off at black, and what is cut off does not return. The price of matching: a network that repairs a yellowed face gets its repair of the *overall* tint taken back, as neck and hands stay yellow.

# %% [markdown]
# ## Paste the change, not the face
#
# Now $\mathrm{face}(p)$ of @eq-blend. The obvious choice is the restored face itself, seen from the photo: $\mathrm{face}(p)=\mathrm{restored}(Ap+t)$. But a model of 64 pixels then makes a face of 170 pixels blurred, whatever it knows: every detail finer than its own pixels is wiped away. The other choice is the *change*,
#
# $$\mathrm{face}(p)=\mathrm{photo}(p)+\big[\mathrm{restored}+c-\mathrm{crop}\big](Ap+t)$$ {#eq-photos-change}
#
# with the plane $c$ of @eq-photos-colour. What the crop cannot hold stays in the photo. Where the model is larger than the face the two agree but for resampling, as $\mathrm{crop}(Ap+t)$ *is* the photo; and a network that changes nothing now gives back the photo exactly, at any size. The price: finer noise stays too.
#
# `paste` works in strips of the rectangle under the face, to save memory; pixels with $m=0$ keep their value to the last bit. Where two faces overlap, the later one is mixed with what is there.

# %%
#| export
def paste(out: np.ndarray, photo: np.ndarray, change: np.ndarray, mask: np.ndarray,
          matrix: np.ndarray, strip: int = 1 << 20) -> None:
    """Blend a change into `out`, in place: m · (photo + change) + (1 - m) · out (@eq-blend,
    @eq-photos-change).

    out, photo: uint8 H×W×3, `out` at first a copy of `photo`. change S×S×3 and mask S×S: of an
    aligned face. matrix: 2×3, photo -> face. strip: pixels worked on at a time.
    """
    x0, y0, x1, y1 = footprint(matrix, len(change))
    (x0, x1), (y0, y1) = np.clip((x0, x1), 0, photo.shape[1]), np.clip((y0, y1), 0, photo.shape[0])
    rows = max(1, strip // max(1, x1 - x0))
    for top in range(y0, y1 if x1 > x0 else y0, rows):
        bottom = min(top + rows, y1)
        seen = unalign(np.dstack([change, mask]), matrix, (x0, top, x1, bottom))
        here = np.s_[top:bottom, x0:x1]
        m = np.clip(seen[..., 3:], 0, 1)    # cubic interpolation overshoots
        mixed = m * (photo[here] + seen[..., :3]) + (1 - m) * out[here]
        out[here] = np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


# %%
def pasted(photo, change, matrix, **kw):
    paste(out := photo.copy(), photo, change, face_mask(len(change)), matrix, **kw)
    return out


to_green = np.array([0, 255, 0]) - crop256.astype(float)
green = pasted(photo, to_green, m256)
m = np.clip(unalign(face_mask(256), m256, (0, 0, 512, 512)), 0, 1)[..., None]
outside = m[..., 0] == 0
assert_array_equal(green[outside], photo[outside])      # not one pixel outside is touched
# the equations, over the whole photo
whole = photo + unalign(to_green, m256, (0, 0, 512, 512))
assert np.abs(green - np.clip(m * whole + (1 - m) * photo, 0, 255)).max() < 1
brighter = np.full((256, 256, 3), 50.0)
in_strips = pasted(photo, brighter, m256, strip=1000)
assert np.abs(in_strips.astype(int) - pasted(photo, brighter, m256)).max() <= 2
for s in (16, 64, 256):                     # a network that changes nothing, exact at any size
    m_s = align(photo, face.landmarks, s)[1]
    assert_array_equal(pasted(photo, np.zeros((s, s, 3)), m_s), photo)
away = similarity(face.landmarks + 5000, template(32))  # a face outside the photo
assert_array_equal(pasted(photo, np.full((32, 32, 3), 99.0), away), photo)

# %% [markdown]
# Which is better? Take the damaged astronaut with the bundled model, both ways, and the same for a network that changes nothing.

# %%
found, = detect(damaged)
crop, matrix = align(damaged, found.landmarks, size)
region = unalign(face_mask(512), align(photo, face.landmarks, 512)[1], (0, 0, 512, 512)) > 0.999
psnr = lambda p: 10 * np.log10(255**2 / ((p.astype(float) - photo)[region] ** 2).mean())
mask_here = np.clip(unalign(face_mask(size), matrix, (0, 0, 512, 512)), 0, 1)[..., None]


def face_itself(face):
    "@eq-blend with the face itself in the place of the change."
    seen = unalign(face, matrix, (0, 0, 512, 512))
    mixed = mask_here * seen + (1 - mask_here) * damaged
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def fine(p):
    "Mean absolute difference from a blurred copy, in the face."
    coarse = cv2.GaussianBlur(p.astype(np.float32), (0, 0), 512 / size / 6 + 1)
    return np.abs(p - coarse)[region].mean()


coloured = restored + match_colour(crop, restored, face_mask(size))
ways = {"unchanged, the face": face_itself(crop),
        "unchanged, the change": pasted(damaged, np.zeros(crop.shape), matrix),
        "restored, the face": face_itself(coloured),
        "restored, the change": pasted(damaged, coloured - crop, matrix)}
for name, p in ways.items():
    print(f"{name:22}: PSNR {psnr(p):.1f} dB, fine detail {fine(p):.1f} grey levels")
print(f"{'the original':22}:                fine detail {fine(photo):.1f} grey levels")
assert psnr(ways["restored, the change"]) > psnr(ways["restored, the face"])

# %%
#| label: fig-photos-change
#| fig-cap: "The damaged astronaut: a network that changes nothing and the bundled model, with the face itself pasted and with the change; the original."
#| fig-alt: "Five portraits; the ones with the face itself are soft, the ones with the change are crisper and a little noisy."
near = np.s_[58:168, 170:280]
titles = ["nothing, face", "nothing, change", "restored, face", "restored, change", "original"]
show([*(p[near] for p in ways.values()), photo[near]], titles, height=1.35);


# %% [markdown]
# In @fig-photos-change the first portrait shows what 64 pixels leave of the face; in the second that loss is gone. Between the restored ones the difference is smaller and goes the same way: with the change, lashes and cheek are a little crisper, PSNR is higher, and fine detail is nearer to the original's. So `restore` pastes the change, for every face and every model.
#
# ## The whole of it
#
# `restore` ties the steps together. It takes a path, a PIL image or an array; weights by name, by path, or as a network; and any detector. First the small questions: what was given, and on which device.

# %%
#| export
class NoFace(PhotoError):
    "A readable photo in which no face was found."


def pick_device(name="auto") -> "torch.device":
    """A torch device by name; "auto": cuda where there is one, else mps, else cpu. Raises
    ValueError for a device that this machine does not have."""
    import torch

    here = dict(cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()), cpu=1)
    if name == "auto":
        return torch.device(next(kind for kind, n in here.items() if n))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name!r} is no device; there are auto, {', '.join(here)}") from None
    if (device.index or 0) >= here.get(device.type, 0):
        there = ", ".join(kind for kind, n in here.items() if n)
        raise ValueError(f"this machine has no {name}; it has {there}")
    return device


def _open(image):
    "What `restore` takes -> uint8 H×W×3 and its name for messages. Raises PhotoError."
    if isinstance(image, (str, Path)):
        return read_image(image), str(image)
    if isinstance(image, Image.Image):
        try:
            image = to_rgb(image)
        except Exception as e:  # Pillow decodes only now, and its decoders raise nearly anything
            raise PhotoError(f"image: cannot be read ({e})") from e
    is_array = isinstance(image, np.ndarray)
    has_pixels = is_array and image.ndim == 3 and image.shape[2] == 3 and image.size
    if not (has_pixels and image.dtype == np.uint8):
        what = type(image).__name__
        if is_array:
            what = f"{image.dtype} {'×'.join(map(str, image.shape))}"
        raise PhotoError("image: needs uint8 H×W×3 (RGB, 0 to 255), a path or a PIL image, "
                         f"got {what}")
    return image, "image"


# %%
assert pick_device("cpu").type == "cpu" and pick_device().type in ("cuda", "mps", "cpu")
test_fail(lambda: pick_device("toaster"), exc=ValueError, contains="no device")
test_fail(lambda: pick_device("cuda:99"), exc=ValueError, contains="has no cuda:99")
for wrong in (photo / 255, np.full((9, 9, 3), np.nan), photo[..., 0], photo[:0], None):
    test_fail(lambda: _open(wrong), exc=PhotoError, contains="uint8 H×W×3")


# %% [markdown]
# **Enlarging.** With `upscale` $k$ the whole photo grows, by Lanczos interpolation, and the faces are pasted at the new size: a model of 512 pixels can then show detail for which the photo had no room. The enlarged photo's point $p'$ is the photo's point $(p'+\frac12)/k-\frac12$.

# %%
#| export
def enlarge(photo: np.ndarray, k: float) -> np.ndarray:
    "uint8 H×W×3 enlarged k times by Lanczos interpolation; the same array where k is 1."
    h, w = photo.shape[:2]
    if k == 1:
        return photo
    return cv2.resize(photo, (round(k * w), round(k * h)), interpolation=cv2.INTER_LANCZOS4)


def _enlarged(matrix, small, large):
    "The matrix photo -> face for the photo of shape `large` in the place of `small`."
    k = np.array(large[1::-1]) / small[1::-1]               # across, down
    shift = matrix[:, 2:] + matrix[:, :2] @ (0.5 / k - 0.5)[:, None]
    return np.concatenate([matrix[:, :2] / k, shift], axis=1)


# %%
corners = np.array([[0, 0], [511, 0], [0, 511], [100.25, 7.5]])
at = lambda p, a: p @ a[:, :2].T + a[:, 2]
tripled = _enlarged(m256, (512, 512), (1536, 1536))
assert_allclose(at(3 * (corners + 0.5) - 0.5, tripled), at(corners, m256), atol=1e-9)
back = cv2.resize(enlarge(photo, 2), (512, 512), interpolation=cv2.INTER_AREA)
# nothing moved: half a pixel would cost several grey levels
assert np.abs(back.astype(int) - photo).mean() < 1.5


# %% [markdown]
# **All faces at once.** The faces of a photo go through the network in batches. `fidelity` $\varphi$ mixes the network's face with the crop, $(1-\varphi)\,\mathrm{restored}+\varphi\,\mathrm{crop}$, which by @eq-photos-change means: only the share $1-\varphi$ of the change is made. At $\varphi=1$ the photo comes back untouched.

# %%
#| export
@dataclass(frozen=True)
class RestoreResult:
    """What `restore` returns. `faces` holds pairs (degraded, restored), uint8 S×S×3; `boxes` and
    `landmarks` are in pixels of the photo that was given."""

    image: np.ndarray
    "uint8 H×W×3, or `upscale` times as large: the photo with its faces restored"
    faces: list
    boxes: list
    landmarks: list
    notes: tuple = ()
    "sentences for the user"


def _run(net, crops, batch):
    "uint8 (n, S, S, 3) -> the network's faces, the same shape."
    import torch

    where, faces = next(net.parameters()), []
    with torch.inference_mode():
        for part in np.split(crops, range(batch, len(crops), batch)):
            answer = net(to_tensor(part).to(where))[0]
            if not torch.isfinite(answer).all():
                raise PhotoError("the network answered with numbers that are not finite; "
                                 "half precision, or damaged weights?")
            faces.append(to_images(answer))
    return np.concatenate(faces)


# %%
#| export
def _cut(image, landmarks, size):
    """`align`; of a face many times larger than `size` from a copy whose pixels are means of k × k,
    as its low-pass over all pixels would take minutes."""
    h, w = image.shape[:2]
    scale = np.hypot(*similarity(landmarks, template(size))[:, 0])
    # two pixels of the copy, or more, for one of the face
    k = min(int(0.5 / scale), min(h, w) // 64)
    if k < 2:
        return align(image, landmarks, size)
    small = cv2.resize(image[:h // k * k, :w // k * k], (w // k, h // k),
                       interpolation=cv2.INTER_AREA)
    crop, matrix = align(small, (np.asarray(landmarks) + 0.5) / k - 0.5, size)
    return crop, _enlarged(matrix, (1, 1), (k, k))


def _blend(image, found, net, fidelity, upscale, batch, whole=False):
    """Restore the `found` faces of a photo and put them back; `whole`: the photo is one face, to
    its edges -> RestoreResult."""
    size = net.config.size
    crops, matrices = (np.stack(a) for a in zip(*(_cut(image, f.landmarks, size) for f in found)))
    faces = _run(net, crops, batch)
    if fidelity:
        faces = np.rint((1 - fidelity) * faces + fidelity * crops).astype(np.uint8)
    photo = enlarge(image, upscale)
    mask = np.ones((size, size), np.float32) if whole else face_mask(size)
    out = photo.copy()
    for crop, face, matrix in zip(crops, faces, matrices):
        change = face - crop.astype(np.float32) + match_colour(crop, face, mask).astype(np.float32)
        paste(out, photo, change, mask, _enlarged(matrix, image.shape, photo.shape))
    boxes, landmarks = [f.box for f in found], [f.landmarks for f in found]
    return RestoreResult(out, list(zip(crops, faces)), boxes, landmarks, _notes(matrices, size))


def _notes(matrices, size, largest=512):
    """A sentence for each face that has more pixels in the photo than in the model; `largest`: of
    the known weights."""
    def better(w):
        if size >= largest:
            return "no known weights are larger"
        return f"weights v1.4 ({largest} px) {'fit' if w <= largest else 'come closer'}"

    widths = [round(size / np.hypot(*m[:, 0])) for m in matrices]
    return tuple(f"face of {w} px is larger than the model's {size} px: "
                 f"only what {size} px can hold is restored; {better(w)}"
                 for w in widths if w > size)


# %% [markdown]
# `restore` itself finds the faces and checks what it was told. A photo without a face is an error: a caller should know that nothing was done. With `aligned` the photo *is* a face in FFHQ's framing, so the five points are those of the template, and the mask is 1 everywhere.

# %%
#| export
MOST_PIXELS = 180_000_000       # of an enlarged photo; Pillow's own limit for reading, nearly


def _network(weights, device):
    "A network from what `restore` takes as `weights` and `device`."
    from gfpgan_edu.inference import fuse
    from gfpgan_edu.weights import load_weights

    if isinstance(weights, (str, Path)):
        return fuse(load_weights(weights), consume=True).to(pick_device(device))
    return weights if device == "auto" else weights.to(pick_device(device))


def _options(fidelity, upscale, batch):
    "The numbers that `restore` takes, checked. Raises ValueError."
    fidelity = 0.0 if fidelity is None else fidelity
    ranges = (("fidelity", fidelity, 0, 1), ("upscale", upscale, 1, 16),
              ("batch", batch, 1, 1 << 20))
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, needs {low} to {high}")
    return dict(fidelity=fidelity, upscale=upscale, batch=int(batch))


# %%
#| export
def restore(image: "str | Path | Image.Image | np.ndarray",
            weights: "str | Path | torch.nn.Module" = "bundled", *, detector: Detector = detect,
            fidelity: "float | None" = None, only_center: bool = False, aligned: bool = False,
            upscale: float = 1, device: "str | torch.device" = "auto",
            batch: int = 8) -> RestoreResult:
    """Find the faces of a photo, restore each, blend them back.

    image: a path, a PIL image, or uint8 H×W×3 RGB. weights: a name or path
    (`gfpgan_edu.weights.load_weights`), or a GFPGAN, or what `gfpgan_edu.inference.fuse` made of
    one. fidelity: from 0, the network's face, to 1, the photo's own; None is the weights' own
    choice, today 0. only_center: only the face nearest to the middle of the photo. aligned: the
    picture is one aligned face of any size; nothing is searched. upscale: enlarges the result, 1 to
    16 times (Lanczos), with the faces at that size. device: where the network runs (`pick_device`);
    "auto" leaves a network that is given where it is. batch: faces restored at a time.

    Safe to call from several threads with one network. Raises PhotoError (unreadable, no picture),
    NoFace, WeightsError, and ValueError for the other arguments.
    """
    options = _options(fidelity, upscale, batch)
    image, name = _open(image)
    h, w = image.shape[:2]
    pixels = h * w * upscale**2
    if upscale > 1 and pixels > MOST_PIXELS:
        raise PhotoError(f"{name}: the result would have {pixels / 1e6:.0f} million pixels; "
                         f"{MOST_PIXELS / 1e6:.0f} are the most")
    if aligned and h != w:
        raise PhotoError(f"{name}: has {w}×{h} pixels; aligned faces are square")
    found = [Face((0.0, 0.0, w - 1.0, h - 1.0), 1.0, template(w))] if aligned else detector(image)
    if not found:
        raise NoFace(f"{name}: no face found")
    if only_center:
        middle = (w - 1) / 2, (h - 1) / 2
        found = [min(found, key=lambda f: np.hypot(*(np.mean(f.landmarks, 0) - middle)))]
    return _blend(image, found, _network(weights, device), **options, whole=aligned)


# %% [markdown]
# For checks we need networks with a known answer: one changes nothing, one darkens the middle of every face.

# %%
class Known(torch.nn.Module):
    "Returns its input, or its input with `value` added to the inner half, in units of [-1, 1]."

    def __init__(self, size, value=0.0):
        super().__init__()
        self.config, self.weight = SimpleNamespace(size=size), torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("bump", torch.zeros(size, size))
        self.bump[size // 4:-size // 4, size // 4:-size // 4] = value

    def forward(self, x):
        return x + self.bump, []


# %%
# the astronaut and her mirror image
two = np.concatenate([photo[:300, 80:380], photo[:300, 380:80:-1]], axis=1)
result = restore(two, Known(256))
assert len(result.faces) == len(result.boxes) == len(result.landmarks) == 2 and result.notes == ()
left, right = sorted((p[:, 0].mean() for p in result.landmarks))
assert left < 300 < right and abs(left + right - 600) < 3       # mirror images of one another
assert_array_equal(result.image, two)                           # two faces, nothing changed
darker = Known(256, -0.5)
changed = (restore(two, darker).image.astype(int) - two).min(2)
middles = np.rint([p.mean(0) for p in result.landmarks]).astype(int)
# both faces, by a quarter of 255
assert all(abs(changed[y, x] + 64) < 12 for x, y in middles), [changed[y, x] for x, y in middles]
# now the mirror image is nearer to the middle
one = restore(two[:, 40:], darker, only_center=True)
assert len(one.faces) == 1 and one.landmarks[0][:, 0].mean() > 250
half = (restore(two, darker, fidelity=0.5).image.astype(int) - two).min(2)
assert all(abs(half[y, x] + 32) < 8 for x, y in middles)
assert_array_equal(restore(two, darker, fidelity=1).image, two)

# %%
as_file = folder / "two.png"
write_image(as_file, two)
# a path, a string, a PIL image
for image in (as_file, str(as_file), Image.fromarray(two)):
    assert_array_equal(restore(image, Known(256)).image, result.image)
assert restore(crop256, Known(64, 0.1), aligned=True).image.shape == (256, 256, 3)
test_fail(lambda: restore(photo[300:], net), exc=NoFace, contains="no face")
test_fail(lambda: restore(np.zeros((1, 1, 3), np.uint8), net), exc=NoFace, contains="no face")
test_fail(lambda: restore(photo, net, fidelity=float("nan")), exc=ValueError, contains="fidelity")
test_fail(lambda: restore(photo[:40], net, aligned=True), exc=PhotoError, contains="square")

# %% [markdown]
# ## How much of the network? Fidelity
#
# `fidelity` is the knob between *likely* and *yours*. The cell turns it from 0 to 1 for the damaged astronaut and measures PSNR against the undamaged photo inside the face, and the distance that remains to the damaged one.

# %%
steps_of = np.linspace(0, 1, 6)
its_face = lambda image: [found]
results = {f: restore(damaged, net, detector=its_face, fidelity=float(f)).image for f in steps_of}
apart = lambda p: np.abs(p.astype(int) - damaged)[region].mean()
table = np.array([(psnr(p), apart(p)) for p in results.values()])
for f, (value, moved) in zip(steps_of, table):
    print(f"fidelity {f:.1f}: PSNR {value:.1f} dB, {moved:4.1f} grey levels from the damaged face")
assert_array_equal(results[1.0], damaged)
assert (np.diff(table[:, 1]) < 0).all() and table[1:-1, 0].max() > table[0, 0]

# %%
#| label: fig-photos-fidelity
#| fig-cap: "The damaged astronaut restored with the bundled model at four values of fidelity; at 1 it is the damaged photo itself."
#| fig-alt: "Four portraits from clean and strongly drawn on the left to noisy and blurred on the right."
four = steps_of[[0, 1, 3, 5]]
show([results[f][near] for f in four], [f"fidelity {f:.1f}" for f in four], height=1.4);

# %% [markdown]
# From left to right in @fig-photos-fidelity contrast and drawing fall and the mild face of the damaged photo returns. PSNR is highest near the right end: on a photo that is damaged this mildly, with a model this small, most of what the network redraws is not what was there. On worse photos the best value lies further left.
#
# ## Faces larger than the model, and smaller
#
# A network of $S$ pixels returns $S$ pixels. How much of a face do $S$ pixels hold? Send the undamaged astronaut through networks that change nothing and look at the face itself, the part that the model can restore; the rest is what @eq-photos-change leaves as it was.

# %%
sizes, kept, views = (32, 64, 128, 256, 512), [], []
edges = lambda p: np.abs(np.diff(p.astype(float), axis=1))[region[:, 1:] & region[:, :-1]].mean()
for s in sizes:
    crop_s, m_s = align(photo, face.landmarks, s)
    image = np.clip(unalign(crop_s, m_s, (0, 0, 512, 512)), 0, 255)
    ratio, error = np.hypot(*m_s[:, 0]), np.abs(image - photo)[region].mean()
    share = edges(image) / edges(photo)
    kept.append((ratio, error, share))
    views.append(image[80:160, 185:265].astype(np.uint8))
    print(f"model of {s:3} px: {ratio:4.2f} of its pixels for one of the photo, "
          f"error {error:.1f} grey levels, {share:.0%} of the edges held")
ratios, errors_by_size, edges_kept = np.array(kept).T
assert (np.diff(edges_kept[:4]) > 0).all() and edges_kept[0] < 0.5
assert errors_by_size[0] > 3 * errors_by_size[-1]
assert round(128 / ratios[2], -1) == 170
note, = restore(photo, net).notes
print(note)
assert "170 px" in note.replace("171", "170").replace("169", "170")
assert f"{size} px" in note and "v1.4 (512 px) fit" in note

# %%
#| label: fig-photos-size
#| fig-cap: "What models of different size can hold of the astronaut's face. Right: the share of the photo's edges; left of the dashed line the model has fewer pixels than the face."
#| fig-alt: "Five portraits, from blurred to sharp, and a rising curve that levels off at about 90 percent."
fig = plt.figure(figsize=(7, 1.7), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=(2.3, 1))
for ax, v, s in zip(left.subplots(1, 5), views, sizes):
    ax.imshow(v, interpolation="nearest")
    ax.set_title(f"{s} px", fontsize=9)
    ax.axis("off")
ax = right.subplots()
ax.semilogx(ratios, 100 * edges_kept, "o-", c="#0072B2", base=2)
ax.axvline(1, c="#444444", ls="--")
ax.set(xlabel="model px / photo px", ylabel="edges held, %", ylim=(0, 105),
       xticks=(0.25, 0.5, 1, 2), xticklabels=("¼", "½", "1", "2"));

# %% [markdown]
# In @fig-photos-size the 32 px face is past recognition: such a model cannot repair the lashes of a face of 170 px. `RestoreResult.notes` says so for every face that is larger than the model, and names weights that fit.
#
# The other way round, a small face in a small photo, is what `upscale` is for. The perfect restorer of @fig-photos-average gives its 256 pixels to a photo of 170, and to the same photo enlarged three times.

# %%
tiny8 = np.rint(tiny).astype(np.uint8)


class Perfect(Known):
    "Answers with the face of the original, whatever it is shown."

    def forward(self, x):
        return to_tensor(perfect).to(x).expand_as(x), []


its_face = lambda image: [SimpleNamespace(box=(0, 0, 1, 1), landmarks=points)]
large = restore(tiny8, Perfect(256), detector=its_face, upscale=3).image
lanczos, in_face = enlarge(tiny8, 3), region[:510, :510]
answers = {"Lanczos": lanczos, "perfect restorer": large}
error = {k: np.abs(p.astype(int) - truth)[in_face].mean() for k, p in answers.items()}
print("error inside the face, grey levels: "
      + ", ".join(f"{k} {v:.1f}" for k, v in error.items()))
assert large.shape == truth.shape and error["perfect restorer"] < error["Lanczos"] / 1.5
assert_array_equal(large[300:], lanczos[300:])

# %%
#| label: fig-photos-upscale
#| fig-cap: "A photo of 170 px enlarged three times: by Lanczos interpolation alone, with the face of a perfect restorer, and the original."
#| fig-alt: "Three portraits: blurred, with a sharp face in blurred hair, and sharp."
titles = ["Lanczos", "with the face", "original"]
show([p[30:190, 140:310] for p in (lanczos, large, truth)], titles, height=1.4);


# %% [markdown]
# In @fig-photos-upscale the middle face is nearly the original's, in hair and collar that were only enlarged: Lanczos adds pixels and no detail.
#
# ## Video: the same face, frame after frame
#
# Restore the frames of a film one by one and the face trembles: the detector's points jump by a fraction of a pixel from frame to frame, each time the network sees a slightly different crop, and answers with slightly different teeth. So first know which face is which: a face belongs to the track whose last box overlaps it most (intersection over union). Then smooth each track's points over time,
#
# $$\bar L_t=\frac{\sum_{k\in K_t}w_k\,L_{t+k}}{\sum_{k\in K_t}w_k},\qquad w_k=e^{-k^2/2s^2},\qquad K_t=\{k:\ |k|\le 3s,\ \text{both } t-k \text{ and } t+k \text{ in the track}\}$$ {#eq-photos-smooth}
#
# with $L_t$ the five points in frame $t$ and $s$ the width of the window in frames. An exponential average over the past would lag behind a moving head. Here $K_t$ is symmetric, so steady motion passes unchanged, at the ends and at gaps of the track too.

# %%
#| export
def overlap(a: tuple, b: tuple) -> float:
    "Intersection over union of two boxes (x0, y0, x1, y1), in [0, 1]."
    area = lambda w, h: max(w, 0.0) * max(h, 0.0)
    both = area(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
    either = area(a[2] - a[0], a[3] - a[1]) + area(b[2] - b[0], b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def follow(found: "list[list[Face]]", least: float = 0.3,
           patience: int = 5) -> "list[dict[int, Face]]":
    """Faces of each frame -> tracks {frame: Face}: a face joins the track whose last box, at most
    `patience` frames old, it overlaps most, by `least` or more."""
    tracks = []
    for t, faces in enumerate(found):
        last = {j: next(reversed(track)) for j, track in enumerate(tracks)}
        pairs = [(overlap(face.box, tracks[j][u].box), i, j) for i, face in enumerate(faces)
                 for j, u in last.items() if t - u <= patience]
        left = set(range(len(faces)))
        for share, i, j in sorted(pairs, reverse=True):
            if share >= least and i in left and t not in tracks[j]:
                tracks[j][t] = faces[i]
                left.remove(i)
        tracks += [{t: faces[i]} for i in sorted(left)]
    return tracks


def smooth(track: "dict[int, Face]", width: float = 2.0) -> "dict[int, Face]":
    """A track with its landmarks averaged over time by a symmetric Gaussian window, `width` in
    frames (@eq-photos-smooth); 0 leaves them."""
    out = {}
    for t, face in track.items():
        near = [k for k in range(1, int(3 * width) + 1) if t - k in track and t + k in track]
        window = [0, *near, *(-k for k in near)]
        weights = [np.exp(-k * k / (2 * width * width)) if k else 1.0 for k in window]
        points = [track[t + k].landmarks for k in window]
        out[t] = replace(face, landmarks=np.average(points, axis=0, weights=weights))
    return out


# %%
assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == 1 / 7
assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0 == overlap((0, 0, 0, 0), (0, 0, 0, 0))
rng, five = np.random.default_rng(0), template(64)


def at_x(x, noise=0.0):
    landmarks = five + [x, 0.0] + noise * rng.normal(size=(5, 2))
    return Face((x, 0.0, x + 60.0, 60.0), 1.0, landmarks)


# two faces that come closer; the order of every other frame is changed
crossing = [[at_x(5.0 * t), at_x(300 - 5.0 * t)] for t in range(20)]
tracks = follow([pair[::-1] if t % 2 else pair for t, pair in enumerate(crossing)])
assert [len(track) for track in tracks] == [20, 20]
assert all(abs(f.box[0] - 5 * t) < 1e-9 for t, f in tracks[0].items())
# steady motion with gaps
steady = {t: at_x(3.0 * t) for t in range(30) if t not in (7, 8, 20)}
for t, f in smooth(steady).items():
    assert_allclose(f.landmarks, steady[t].landmarks, atol=1e-9)
trembling = {t: at_x(3.0 * t, 1.0) for t in range(400)}
smoothed = list(smooth(trembling).items())[20:-20]
rest = np.array([f.landmarks - at_x(3.0 * t).landmarks for t, f in smoothed]).std()
w = np.exp(-np.arange(-6, 7) ** 2 / 8)
by_weights = np.sqrt((w**2).sum()) / w.sum()
print(f"independent noise falls to {rest:.2f} of itself; "
      f"by the weights it should be {by_weights:.2f}")
assert abs(rest / by_weights - 1) < 0.05


# %% [markdown]
# `restore_video` goes over a folder of frames twice: once to find the faces, once to restore them with the smoothed points. A frame without a face is copied; one that cannot be read is reported, and the film goes on.

# %%
#| export
@dataclass(frozen=True)
class VideoResult:
    """What `restore_video` did: names of the frames restored and of those copied because they have
    no face, (path, reason) of those that failed, and the smoothed tracks."""

    restored: list
    copied: list
    failures: list
    tracks: list                 # {number of the frame: Face}
    notes: tuple = ()


# %%
#| export
def restore_video(frames: "str | Path", out: "str | Path",
                  weights: "str | Path | torch.nn.Module" = "bundled", *,
                  detector: Detector = detect, width: float = 2.0,
                  fidelity: "float | None" = None, upscale: float = 1,
                  device: "str | torch.device" = "auto", batch: int = 8,
                  progress: bool = False) -> VideoResult:
    """Restore a folder of frames (pictures, in the order of the numbers in their names) into the
    folder `out`, under the same names, with landmarks smoothed over time.

    width: of the smoothing window in frames (`smooth`); 0: none. The other arguments as in
    `restore`. Results that are there already are replaced. Raises PhotoError where there are no
    frames or `out` is their own folder; a frame that fails is in `VideoResult.failures`.
    """
    frames, out, options = Path(frames), Path(out), _options(fidelity, upscale, batch)
    paths = _frames_in(frames)
    if out.exists() and out.samefile(frames):
        raise PhotoError(f"{out}: the results would overwrite the frames; choose another folder")
    net, failures, found = _network(weights, device), {}, []
    for path in tqdm(paths, "finding faces", disable=not progress):
        found.append(_attempt(lambda: detector(read_image(path)), path, failures) or [])
    tracks = [smooth(track, width) for track in follow(found)]
    restored, copied, notes = [], [], {}
    for t, path in enumerate(tqdm(paths, "restoring", disable=not progress)):
        if path not in failures:
            faces = [track[t] for track in tracks if t in track]
            work = lambda: _frame(path, out / path.name, faces, net, options)
            result = _attempt(work, path, failures)
            if path not in failures:
                (restored if faces else copied).append(path.name)
                notes |= dict.fromkeys(result.notes if faces else ())
    said = []
    if copied:
        names = ", ".join(copied[:3]) + " …" * (len(copied) > 3)
        said.append(f"{len(copied)} of {len(paths)} frames without a face, copied: {names}")
    return VideoResult(restored, copied, list(failures.items()), tracks, (*said, *list(notes)[:1]))


# %%
#| export
def _frames_in(folder):
    "Pictures of a folder in the order of the numbers in their names. Raises PhotoError."
    def number(p):
        parts = re.split(r"([0-9]+)", p.name)
        return [int(part) if part.isdigit() else part for part in parts]

    try:
        paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=number)
    except OSError as e:
        raise PhotoError(f"{folder}: cannot be read ({(e.strerror or str(e)).lower()})") from e
    if not paths:
        raise PhotoError(f"{folder}: no frames in this folder ({', '.join(sorted(SUFFIXES))})")
    return paths


def _attempt(work, path, failures):
    "`work()`, or None with the reason noted in `failures`."
    try:
        return work()
    except PhotoError as e:
        failures[path] = str(e)


def _frame(path, target, faces, net, options):
    """Restore one frame, or enlarge it alike where it has no face, and write it -> RestoreResult,
    or None."""
    image = read_image(path)
    result = _blend(image, faces, net, **options) if faces else None
    write_image(target, result.image if faces else enlarge(image, options["upscale"]))
    return result


# %% [markdown]
# A film with a known answer: a window of the astronaut photo that moves and zooms slowly, damaged anew in every frame. Undo the motion, and what differs between consecutive frames is flicker, here its mean absolute value inside the face.

# %%
def motion(t):
    "Matrix photo -> frame t, a window of 200 px."
    k = 1 + 0.006 * t
    return np.array([[k, 0.0, -k * 125.3 - 0.7 * t], [0.0, k, -k * 15.8 + 0.4 * t]])


def stilled(pictures):
    "The frames seen from the photo, the motion undone."
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return [cv2.warpAffine(p.astype(np.float32), motion(t), (512, 512), flags=flags)
            for t, p in enumerate(pictures)]


def flicker(pictures):
    "Mean absolute difference of consecutive frames in the face, in grey levels, the motion undone."
    steady = stilled(pictures)
    return np.mean([np.abs(b - a)[region].mean() for a, b in zip(steady, steady[1:])])


def still(t, face):
    "The points in the photo, where they should stand still."
    return (face.landmarks - motion(t)[:, 2]) @ np.linalg.inv(motion(t)[:, :2]).T


# %%
clip = folder / "clip"
film = [cv2.warpAffine(photo, motion(t), (200, 200), flags=cv2.INTER_CUBIC) for t in range(14)]
film = [degrade(frame, replace(damage, noise_seed=t)) for t, frame in enumerate(film)]
for t, frame in enumerate(film):
    write_image(clip / f"frame{t}.png", frame)              # frame10 comes after frame9
videos = {w: restore_video(clip, folder / f"width{w}", net, width=w) for w in (0, 2)}
for v in videos.values():
    assert len(v.restored) == 14 and len(v.tracks) == 1 and not v.copied and not v.failures
tremble = {w: np.std([still(t, f) for t, f in v.tracks[0].items()], axis=0).mean()
           for w, v in videos.items()}
read = lambda w: [read_image(folder / f"width{w}" / f"frame{t}.png") for t in range(14)]
shown = {"the frames": film} | {f"restored, width {w}": read(w) for w in videos}
fl = {k: flicker(v) for k, v in shown.items()}
for w in videos:
    print(f"width {w}: points tremble by {tremble[w]:.2f} px")
print("flicker, grey levels: " + ", ".join(f"{k} {v:.1f}" for k, v in fl.items()))
assert tremble[2] < 0.7 * tremble[0] and fl["restored, width 2"] < fl["restored, width 0"]

# %%
#| label: fig-photos-video
#| fig-cap: "How much each pixel of the face changes from frame to frame with the motion undone (mean over the film, drawn twenty times as strong), and a point's way through the photo without and with smoothing."
#| fig-alt: "Three grey maps of a face and a plot of two lines; the smoothed line is nearly straight, the other one jagged."
fig, axes = plt.subplots(1, 4, figsize=(5.6, 1.4), layout="constrained",
                         width_ratios=(1, 1, 1, 1.3))
for ax, (name, pictures) in zip(axes, shown.items()):
    steady = stilled(pictures)
    changes = np.mean([np.abs(b - a).mean(2) for a, b in zip(steady, steady[1:])], 0)
    ax.imshow(changes[70:160, 180:270] * 20, cmap="gray", vmin=0, vmax=255)
    ax.set_title(name, fontsize=8)
    ax.axis("off")
for (w, v), colour in zip(videos.items(), ("#D55E00", "#0072B2")):
    axes[3].plot([still(t, f)[0, 0] for t, f in v.tracks[0].items()], c=colour, label=f"width {w}")
axes[3].set(xlabel="frame", title="x of an eye, px")
axes[3].title.set_fontsize(8)
axes[3].legend(frameon=False, fontsize=6, loc="upper left");

# %%
(clip / "frame3.png").write_bytes(b"half a frame")              # broken
write_image(clip / "frame5.png", np.full_like(film[5], 90))     # without a face
rough = restore_video(clip, folder / "rough", net)
(path, reason), = rough.failures
print(f"{path.name}: {reason.split(': ')[-1]}; {rough.notes[0]}")
assert path.name == "frame3.png" and rough.copied == ["frame5.png"]
assert len(rough.restored) == 12 and len(rough.tracks) == 1
copy = read_image(folder / "rough" / "frame5.png")
assert_array_equal(copy, read_image(clip / "frame5.png"))
test_fail(lambda: restore_video(clip, clip, net), exc=PhotoError, contains="overwrite")
nowhere = folder / "nowhere"
test_fail(lambda: restore_video(nowhere, folder / "rough", net), exc=PhotoError,
          contains="no such file")
temporary.cleanup()

# %% [markdown]
# In @fig-photos-video the first map is the noise of the frames, the same everywhere. Restored without smoothing, the face adds lines of its own along nose, eyes and brows: features that move. With smoothing they are fainter. The flicker that remains is above all the answer to the noise, which no smoothing of *points* removes.
#
# ## Put together
#
# The damaged photo of the beginning, through `restore` with the bundled model. The cell prints PSNR against the undamaged photo inside the face, for the input and for the result. Here the result has the *lower* one: it is sharper, and not in every line right. PSNR measures likeness of pixels and not beauty, and one photo is an illustration and not an evaluation.

# %%
result = restore(damaged, net)
print(f"PSNR inside the face: damaged {psnr(damaged):.1f} dB, restored {psnr(result.image):.1f} dB")
assert psnr(result.image) < psnr(damaged)
changed = (result.image != damaged).any(2)
x0, y0, x1, y1 = footprint(align(damaged, result.landmarks[0], size)[1], size)
assert changed.any() and not changed[:, :max(x0, 0)].any()
assert not changed[:, x1:].any() and not changed[y1:].any()

# %%
#| label: fig-photos-together
#| fig-cap: "The photo after restoration with the bundled model, and the face enlarged: damaged, restored, original."
#| fig-alt: "A portrait with a clean face in a noisy photo, and three enlarged faces: noisy and blurred, cleaned, and sharp."
near = np.s_[68:158, 180:270]
faces = [p[near] for p in (damaged, result.image, photo)]
titles = ["the restored photo", "damaged", "restored", "original"]
show([result.image[:230:2, 110:340:2], *faces], titles, height=1.45);

# %% [markdown]
# In @fig-photos-together the suit and the wall behind are as noisy as before: GFP-GAN restores faces, and the background is somebody else's job.
#
# ::: {.before-after}
# ![A portrait, blurred, noisy and full of compression blocks; eyes and mouth are smudges.](../figures/portrait-damaged.jpg "damaged")
# ![The same portrait with a clear face; hair and background are as before.](../figures/portrait-restored.jpg "restored")
#
# The same photo in two pictures, made by `figures/slider.py`; in the book a line between them can be moved.
# :::
#
# Photos that really are old or bad have no original to compare with. @fig-photos-real and @fig-photos-colour were made by `python figures/bundled.py pictures` with all pictures of their folders.
#
# ![Twelve real photos, aligned, none left out: as they are, and restored by the bundled model.](../figures/bundled/real.png){#fig-photos-real fig-alt="Pairs of small faces; the right of each pair is sharper, colours are less faded."}
#
# ![Grey and yellowed faces, damaged as well: input, restored, truth (FFHQ 04700 to 04703, CC BY-NC-SA 4.0).](../figures/bundled/colour.png){#fig-photos-colour fig-alt="Rows of grey and yellow faces, their restorations in faint colours, and the originals."}
#
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | input | aligned faces | photos, by OpenCV | photos, by Pillow | EXIF orientation; errors that say what is wrong |
# | 16-bit pictures | – | recognised by their largest value, reduced to 8 bits | recognised by their file, reduced to 8 bits | a very dark one is not mistaken for 8 bits |
# | size of the result | – | enlarged twice by default | the size of the photo; `upscale` enlarges | the background is not ours to invent |
# | half pixel on the way back | – | shifted by $k/2$ at enlargement $k$ | by $(k-1)/2$, as @eq-faces-halfpixel gives | @fig-photos-halfpixel |
# | sampling | – | linear, one sample a pixel | cubic, averaged where the face has more pixels than the photo | @fig-photos-average |
# | what is pasted | – | the face | its change | @fig-photos-change; a network that changes nothing is exact |
# | mask | – | face parsing network, blurred, or an eroded square | soft oval of FFHQ's framing | no second network to download; hair and wall stay, @fig-photos-shape |
# | colour at the border | – | as it came | a plane of colour | @fig-photos-tint |
# | fidelity | – | a blend weight, ignored by the networks of GFP-GAN | `fidelity` | a standing wish of users |
# | video | – | frame by frame | landmarks smoothed over time | @fig-photos-video |
# | rounding | – | fraction cut off | rounded | half a grey level darker otherwise |
# | no face found | – | the photo comes back enlarged | `NoFace` | the caller should know |
# | a face that fails | – | the unrestored face is pasted | an error | no silent half success |
#
# : Deviations in handling photos {#tbl-photos-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **A line through the hair.** The mask ends inside hair that the network changed. A parsing mask follows the hair line; an oval only fades.
# - **The pasted face looks softer than the aligned one.** It has fewer pixels there: see `RestoreResult.faces`, or use `upscale`.
# - **A poster on the wall was restored.** The detector decides what a face is. `only_center` takes one; a detector of your own, whichever you like.
# - **Noise stays on a large face.** It is finer than the model's pixels. Take larger weights.
# - **"Is it her?"** The network fills in what is plausible, and identity can drift. Glasses, eye colour and teeth are the usual victims. Do not use restored faces as evidence of anything.
# - **Memory.** A photo of 50 million pixels stays below 2 GB, also when one face fills it (`tests/bench/photos.py`): detection works on a small copy, pasting in strips.
# - **Many photos.** Load the network once and pass it; `restore` may be called from several threads with it.
# :::
#
# ## Summary
#
# - The way back is a look-up at $Ap+t$. A network that changes nothing measures its loss; a perfect network measures its aliasing. Half a pixel off costs more than the choice of the interpolation.
# - The mask is an oval in FFHQ's framing with slope 0 at both ends: no seam, and every pixel outside stays exactly as it was.
# - A plane of colour, estimated where the mask falls off, brings level and tint of the face to those of the photo.
# - What is pasted is the change: detail that the model cannot hold stays, and a network that changes nothing is exact. `fidelity` scales the change.
# - In a film, points that are averaged over a symmetric window follow steady motion without lag and tremble less.
#
# ## Exercises
#
# 1. **Compute.** With $q=2$ the oval is an ellipse. Which share of the square lies inside $\rho<1$, and which has $m=1$? Compare with the shares that were printed for $q=2.5$. At which brightness error does the steepest step of the mask reach one grey level for a square of 170 px?
# 2. **Modify.** Replace the plane of @eq-photos-colour by a constant, then by a polynomial of degree two. Which of the three brings the darkened face of @fig-photos-tint back best, and which do you trust where half of the border is hair?
# 3. **Break.** Replace the symmetric window of `smooth` by an exponential average over the past. Measure the lag for a head that moves 3 px a frame, and look at what the network does with a crop that is off by as much. Then forget the `+ 0.5` in `unalign`: which check turns red first?
#
# Worked solutions: [nbs/solutions/22_photos.ipynb](solutions/22_photos.ipynb).
#
# ## References
#
# GFP-GAN [@wang2021gfpgan] is described for aligned faces; everything around them in this chapter follows from the geometry of @sec-faces. The faces that the networks know are those of FFHQ [@karras2019stylegan].

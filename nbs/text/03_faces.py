# %% [markdown]
# # Faces: find and align {#sec-faces}
#
# > A restorer that has only seen upright faces of one size must be handed upright faces of one size.
#
# **You will build** the way from a photo to the network's input: find faces and five points in each, turn and scale them to the framing of FFHQ without aliasing, convert pixels to tensors and back.
# Then the way from a folder of photos to training pairs: boxes around eyes and mouth, a command that cuts out all faces, and a data set that damages them afresh in every epoch.
# **Needs** the degradation of @sec-degradation. **Runs in** about 20 s on a laptop CPU.

# %%
#| default_exp faces

# %%
#| export
import json
import os
import re
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from gfpgan_edu.degradation import PAPER, degrade, sample_params

# %%
import shutil
import tempfile
from dataclasses import FrozenInstanceError

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail
from numpy.testing import assert_allclose, assert_array_equal
from skimage.transform import estimate_transform

from gfpgan_edu.degradation import SEVERE, DegradationParams
from gfpgan_edu.examples import astronaut, draw_map, show

# %% [markdown]
# @sec-degradation damaged faces that were cut out already. This chapter does the cutting (@fig-faces-map). The way back, from the network's output into the photo, is @sec-photos.

# %%
#| label: fig-faces-map
#| fig-cap: "This chapter cuts the face x out of a photo. Everything to the right sees only such cut-outs."
#| fig-alt: "The method as boxes and arrows; the box of the degraded face is coloured."
draw_map("degradation");


# %% [markdown]
# ## What a detector owes us
#
# GFP-GAN is trained on FFHQ [@karras2019stylegan], where every face is upright, of one size and at one place. The prior has never drawn a tilted face, and the U-Net has never seen one.
# So before anything is restored, somebody must say where the faces are, how large, and how turned. A box alone cannot tell the turn. Five points can: the two eyes, the tip of the nose, and the two corners of the mouth.
#
# Detectors come and go, so the package fixes only a *protocol*: anything that can be called with a picture and returns a list of `Face` is a detector.

# %%
#| export
@dataclass(frozen=True)
class Face:
    """A face found in a picture: box (x0, y0, x1, y1), score in [0, 1], landmarks (5, 2).

    Coordinates are pixels whose centres are at whole numbers.
    """

    box: tuple
    score: float
    landmarks: np.ndarray
    "x, y of left eye, right eye, nose, left and right mouth corner; left = left in the picture"


class Detector(Protocol):
    "Anything that finds faces: uint8 H×W×3 RGB -> list of `Face`, the largest first."

    def __call__(self, image: np.ndarray) -> list[Face]: ...


# %%
here = Face((10.0, 10.0, 50.0, 60.0), 1.0, np.zeros((5, 2)))
by_hand: Detector = lambda image: [here]    # a detector for a photo whose face is known
assert by_hand(np.zeros((80, 80, 3), np.uint8)) == [here]
test_fail(lambda: setattr(here, "score", 0.5), exc=FrozenInstanceError)


# %% [markdown]
# ## Three small networks, coarse to fine
#
# Our detector is MTCNN [@zhang2016mtcnn], a cascade of three small networks that looks at few places closely instead of at all places a little.
#
# 1. **P-Net** is fully convolutional and judges every 12 × 12 window. Faces are not 12 px wide, so it runs on a pyramid of smaller and smaller copies of the photo.
# 2. **R-Net** gets the windows that P-Net liked, each shrunk to 24 × 24 px, and throws most of them away.
# 3. **O-Net** gets the survivors at 48 × 48 px, gives the final verdict and box, and is the only one asked for the five points.
#
# For a picture whose shorter side is $m$ pixels, and faces from $f_{\min}$ pixels up, copy number $i$ has the scale
#
# $$s_i=\frac{12}{f_{\min}}\,\gamma^{\,i},\qquad i=0,1,\dots\ \text{ while } m\,s_i\ge 12$$ {#eq-faces-pyramid}
#
# with $\gamma=0.709\approx\sqrt{1/2}$: each copy has half the pixels of the one before, and the whole pyramid costs twice its first copy. The weights of all three networks are inside the wheel of `facenet-pytorch`, so nothing is downloaded.

# %%
#| export
@lru_cache(maxsize=1)
def _mtcnn():
    with warnings.catch_warnings():
        # on import it asks for notebook widgets
        warnings.simplefilter("ignore")
        from facenet_pytorch import MTCNN    # the weights are inside the wheel
    return MTCNN(keep_all=True, device="cpu", min_face_size=20)


# %% [markdown]
# A hook on each network records what goes in. The number of copies must be that of @eq-faces-pyramid, and the crowd must thin out from stage to stage.

# %%
few_colours = lambda image: image // 8 * 8                   # for drawing only: a smaller book
# small nets: quickest, and the same sums on every machine
torch.set_num_threads(1)
photo, net, seen = astronaut(), _mtcnn(), {"pnet": [], "rnet": [], "onet": []}
hooks = [getattr(net, name).register_forward_hook(lambda m, i, o, kept=kept: kept.append((i[0], o)))
         for name, kept in seen.items()]
boxes, scores, points = net.detect(photo, landmarks=True)
for h in hooks:
    h.remove()

# the last i with 512 s_i >= 12, counted from 0
copies = 1 + int(np.log(12 / (512 * 12 / 20)) / np.log(0.709))
assert len(seen["pnet"]) == copies
windows = [sum((o[1][0, 1] >= 0.6).sum().item() for _, o in seen["pnet"]),
           *(sum(len(i) for i, _ in seen[k]) for k in ("rnet", "onet")), len(boxes)]
print(f"{copies} copies of the photo; windows after P-Net {windows[0]}, "
      f"merged for R-Net {windows[1]}, for O-Net {windows[2]}, faces {windows[3]}")
assert windows[0] > windows[1] > windows[2] > windows[3] == 1
weights = {name: sum(p.numel() for p in getattr(net, name).parameters()) for name in seen}
print(f"weights: {weights}, together {sum(weights.values()):,}")

# %%
#| label: fig-faces-cascade
#| fig-cap: "The cascade at work. Top: P-Net's map of face scores on three copies of the photo. Bottom: six of the windows that R-Net was shown, best to worst, with its score."
#| fig-alt: "Three heat maps, the middle one with a bright spot at the face; a row of small pictures, the first ones of the face, the last ones of clothes and background."
fig, axes = plt.subplot_mosaic([[*"aabbcc"], [*"012345"]], figsize=(7, 4), layout="constrained")
for ax, i in zip("abc", (2, 5, 7)):
    axes[ax].imshow(seen["pnet"][i][1][1][0, 1], cmap="gray", vmin=0, vmax=1)
    axes[ax].set_title(f"copy {i}: {seen['pnet'][i][0].shape[-1]} px wide", fontsize=9)
windows = torch.cat([i for i, _ in seen["rnet"]])
verdicts = torch.cat([o[1][:, 1] for _, o in seen["rnet"]])
order = verdicts.argsort(descending=True)[[0, 8, 16, 24, 60, 120]]
for k, (window, verdict) in enumerate(zip(windows[order], verdicts[order])):
    axes[str(k)].imshow((window / 2 + 0.5).clip(0, 1).permute(1, 2, 0))
    axes[str(k)].set_title(f"{verdict:.2f}", fontsize=9)
assert f"{verdicts[order[1]]:.2f}" == "0.90"                  # the fold of the suit
for ax in axes.values():
    ax.axis("off")
plt.show()


# %% [markdown]
# In @fig-faces-cascade the fine copy answers at many small spots; in the copy where the astronaut's face is about 12 px wide it becomes one bright spot. R-Net turns down most of the clothes and the background, but a fold of the orange suit still gets 0.90 from it. O-Net, with four times the pixels, is not fooled, and one face remains.
#
# ## Using it safely: rim, offset, large photos
#
# Three things stand between the raw detector and a result we can build on. Each is checked below.
#
# - **Faces at the border.** When a window reaches over the edge of the photo, the library stretches the rest to 48 × 48 px, and the points come out in the wrong places. A black rim around the photo lets the window stay whole.
# - **A pixel too far.** The library counts pixels from 1 and starts its windows at whole pixels. Its points lie one pixel to the right of and below the truth, at every size of face.
# - **Large photos.** P-Net's cost grows with the number of pixels. Photos above `longest` are searched in a smaller copy, and the coordinates mapped back.

# %%
#| export
def detect(image, min_score=0.9, longest=1600):
    """Faces in uint8 H×W×3 RGB, the largest first, by MTCNN: three small networks, coarse to fine.

    Pictures whose longer side exceeds `longest` px are searched in a smaller copy and the
    coordinates mapped back. Empty list: none.
    """
    if not (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"detect needs uint8 H×W×3, got {image.dtype} {image.shape}")
    h, w = image.shape[:2]
    k = min(1.0, longest / max(h, w))
    small = image if k == 1 else cv2.resize(image, (max(1, round(w * k)), max(1, round(h * k))),
                                            interpolation=cv2.INTER_AREA)
    # smaller than any face that could be restored
    if min(small.shape[:2]) < 24:
        return []
    # black, so that windows may reach over the border
    rim = min(small.shape[:2]) // 4
    padded = cv2.copyMakeBorder(small, rim, rim, rim, rim, cv2.BORDER_CONSTANT)
    boxes, scores, points = _mtcnn().detect(padded, landmarks=True)
    if boxes is None:
        return []
    scale = np.array([w / small.shape[1], h / small.shape[0]])
    faces = []
    for box, score, five in zip(boxes, scores, points):
        if score is not None and score >= min_score:
            corners = (np.asarray(box, float).reshape(2, 2) - rim + 0.5) * scale - 0.5
            # - 1: the library's points lie one pixel too far right and down
            five = (np.asarray(five, float) - rim - 1 + 0.5) * scale - 0.5
            faces.append(Face(tuple(float(v) for v in corners.ravel()), float(score), five))
    return sorted(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]), reverse=True)


# %% [markdown]
# A photo whose pixels are each repeated 4 × 4 times and which is then searched at its old size gives the detector the very same picture. So its points must be the old ones under the map $p\mapsto 4(p+\frac12)-\frac12$, which @eq-faces-halfpixel below explains.
# Enlarged smoothly and searched at another size, they may move by the detector's own noise only.

# %%
face = detect(photo)[0]
fourfold = lambda p: 4 * (p + 0.5) - 0.5
assert_allclose(detect(photo.repeat(4, 0).repeat(4, 1), longest=512)[0].landmarks,
                fourfold(face.landmarks), atol=1e-4)
large = cv2.resize(photo, (2048, 2048), interpolation=cv2.INTER_CUBIC)
moved = np.abs(detect(large, longest=1024)[0].landmarks - fourfold(face.landmarks)) / 4
eyes = float(np.hypot(*(face.landmarks[1] - face.landmarks[0])))
print(f"searched at twice the size the points move by {moved.mean():.2f} px on average; "
      f"the eyes are {eyes:.0f} px apart")
assert moved.mean() < 0.03 * eyes and moved.max() < 0.08 * eyes
assert detect(np.zeros((200, 200, 3), np.uint8)) == [] == detect(photo[:23])
test_fail(lambda: detect(photo / 255), exc=ValueError, contains="uint8")


# %% [markdown]
# The offset shows in a mirror. If the points of a picture $w$ pixels wide are right, then those of its mirror image are $x'=w-1-x$, so $x+x'$ must be $w-1$ on average. A constant offset of $b$ pixels makes it $w-1+2b$, whatever the size of the face.

# %%
def mirror_offset(width, n=6, seed=0):
    """Mean of (x + x' - (w - 1)) / 2 over the five points of `n` shifted crops.

    The photo is scaled so that the face is about `width` px wide.
    """
    rng, k, offsets = np.random.default_rng(seed), width / 87, []
    scaled = cv2.resize(photo, None, fx=k, fy=k,
                        interpolation=cv2.INTER_AREA if k < 1 else cv2.INTER_CUBIC)
    for dx, dy in rng.integers(0, 8, (n, 2)):
        crop = scaled[dy + int(20 * k):int(240 * k), dx + int(100 * k):int(350 * k)]
        a, b = (detect(c)[0].landmarks[:, 0] for c in (crop, np.ascontiguousarray(crop[:, ::-1])))
        # left and right change names in a mirror
        offsets.append(((a + b[[1, 0, 2, 4, 3]]) - (crop.shape[1] - 1)).mean() / 2)
    return np.mean(offsets)


offsets = {width: mirror_offset(width) for width in (40, 80, 160)}
for width, v in offsets.items():
    print(f"face {width:3} px wide: points {abs(v):.1f} px off sideways, "
          f"{abs(v + 1):.1f} px as the library counts")
# without the correction: 1
assert all(abs(v) < 0.35 for v in offsets.values())


# %% [markdown]
# For the rim, cut the photo ever further into the face and compare the points with those of the whole photo.

# %%
def border_error(cut, rim):
    """Mean error of the points, in eye distances, when the photo begins `cut` px inside the box of
    the face. nan: no face.
    """
    x0 = round(face.box[0]) + cut
    if rim:
        found = detect(np.ascontiguousarray(photo[:, x0:]))
        points = found[0].landmarks if found else np.full((5, 2), np.nan)
    else:
        _, _, found = net.detect(np.ascontiguousarray(photo[:, x0:]), landmarks=True)
        points = np.asarray(found[0], float) - 1 if found is not None else np.full((5, 2), np.nan)
    return np.abs(points + (x0, 0) - face.landmarks).mean() / eyes


cuts = np.arange(-20, 25, 4)
with_rim, without = (np.array([border_error(c, rim) for c in cuts]) for rim in (True, False))
print(f"cut by 12 px: error {with_rim[cuts == 12].item():.2f} eye distances with the rim, "
      f"{without[cuts == 12].item():.2f} without")
assert with_rim[cuts <= 12].max() < 0.05 and without[cuts == 12] > 0.1

# %%
#| label: fig-faces-border
#| fig-cap: "A face that the edge of the photo cuts. Left: the points found with the black rim (blue) and without (orange, crosses). Right: their error against how much of the face's box is cut off."
#| fig-alt: "A portrait cut at its left edge with two sets of five points, and a line chart in which the error without a rim rises steeply."
x0 = round(face.box[0]) + 16
cut = np.ascontiguousarray(photo[40:200, x0:x0 + 120])
fig, (ax, chart) = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained", width_ratios=(1, 1.8))
ax.imshow(few_colours(cut), interpolation="nearest")
ax.scatter(*detect(cut)[0].landmarks.T, c="#56B4E9", s=22)
ax.scatter(*net.detect(cut, landmarks=True)[2][0].T - 1, c="#D55E00", s=30, marker="x")
ax.axis("off")
chart.plot(100 * cuts / 87, without, "x-", c="#D55E00", label="as the library does it")
chart.plot(100 * cuts / 87, with_rim, "o-", c="#0072B2", label="with a black rim")
chart.set(xlabel="share of the box cut off, %", ylabel="error, eye distances")
chart.legend(frameon=False);


# %% [markdown]
# @fig-faces-border: without the rim the error grows before the face is even cut, since the detector's windows are wider than the box. With the rim the points stay put until a part of the face that matters is gone.
#
# ## How much damage it survives
#
# A face that is not found is not restored, so the detector's limit is a limit of the whole method. To measure it, damage the photo more and more, with several draws of the noise, and count.
# Here one number $d$ sets all parts of @eq-degradation: a blur of $\sigma=0.6\,d$ px, shrinking by $r=d$, noise of $\delta=10$, JPEG at quality 60.

# %%
def damaged(d, seed):
    "The head of the astronaut, shifted a little, with damage d."
    dx, dy = np.random.default_rng(seed).integers(0, 16, 2)
    crop = np.ascontiguousarray(photo[10 + dy:240 + dy, 100 + dx:340 + dx])
    params = DegradationParams(0.6 * d, 0.6 * d, r=d, delta=10, q=60, noise_seed=seed)
    return degrade(crop, params), (100 + dx, 10 + dy)


damages, draws = (1, 2, 4, 6, 8, 10, 12, 16), 5
found = np.full((len(damages), draws), np.nan)
for i, d in enumerate(damages):
    for j in range(draws):
        crop, corner = damaged(d, j)
        if faces := detect(crop):
            found[i, j] = np.abs(faces[0].landmarks + corner - face.landmarks).mean() / eyes
rate = np.mean(~np.isnan(found), axis=1)
for d, r, e in zip(damages, rate, found):
    off = f", error of the points {np.nanmean(e):.2f} eye distances" if r else ""
    print(f"d = {d:2}: face {87 / d:4.1f} px wide, found in {int(r * draws)} of {draws}{off}")
assert rate[0] == 1 and rate[-1] == 0 and np.nanmean(found[0]) < 0.05

# %%
#| label: fig-faces-robust
#| fig-cap: "The same face under growing damage, one draw each, with the points that were found. Below: the share of draws in which the face was found, and the error of the points where it was."
#| fig-alt: "Six pictures of a face, from clear to a few blocks of colour; below them a falling line of the detection rate and a rising line of the error."
fig = plt.figure(figsize=(7, 4.1), layout="constrained")
top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.4))
for ax, d in zip(top.subplots(1, 6), (1, 4, 6, 8, 10, 16)):
    crop, _ = damaged(d, 0)
    ax.imshow(few_colours(crop[50:170, 70:190]), interpolation="nearest")
    faces = detect(crop)
    if faces:
        ax.scatter(*(faces[0].landmarks - (70, 50)).T, c="#56B4E9", s=6)
    ax.set_title(f"d = {d}" + ("" if faces else ": none"), fontsize=9)
    ax.axis("off")
left, right = bottom.subplots(1, 2)
left.plot(damages, 100 * rate, "o-", c="#0072B2")
left.set(xlabel="damage d", ylabel="found, %", ylim=(-5, 105))
right.plot(np.repeat(damages, draws), found.ravel(), "o", c="#D55E00", ms=4)
right.set(xlabel="damage d", ylabel="error, eye distances", xlim=left.get_xlim(), ylim=(0, None));


# %% [markdown]
# In @fig-faces-robust the detector is sure of the face down to a width of about 15 px and loses it at about 10. Long before that its points become vague, and a face that is aligned wrongly is restored wrongly:
# a tenth of the eye distance is about 13 px in the 512 px picture that the network sees. Detectors trained on hard photos, such as the RetinaFace network of the official code, reach further; the protocol above is where one would be plugged in.
#
# ## Which rotation, scale and shift
#
# The five points of a photo must land on five given places. A similarity (rotation by $\varphi$, scale $s$, shift) has four unknowns and five points give ten equations, so the best we can ask for is the smallest squared error. Written with $a=s\cos\varphi$ and $b=s\sin\varphi$ the map is *linear* in its unknowns:
#
# $$\min_{a,b,t_x,t_y}\ \sum_{k=1}^{5}\left\lVert\begin{pmatrix}a&-b\\b&a\end{pmatrix}\begin{pmatrix}x_k\\y_k\end{pmatrix}+\begin{pmatrix}t_x\\t_y\end{pmatrix}-\begin{pmatrix}u_k\\v_k\end{pmatrix}\right\rVert^2$$ {#eq-similarity}
#
# Here $(x_k,y_k)$ are the points in the photo, $(u_k,v_k)$ the places they should take, and $(t_x,t_y)$ is the shift: ten rows, four columns, one least-squares solve. A mirror image is not of this form, so a face can never come out flipped.

# %%
#| export
def similarity(src, dst):
    """The rotation, scale and shift that bring points `src` closest to `dst`, both (n, 2), by least
    squares (@eq-similarity) -> 2×3 matrix.

    A similarity is [[a, -b, t_x], [b, a, t_y]]: linear in its four unknowns, so one least-squares
    solve is exact.
    """
    src, dst = np.asarray(src, float), np.asarray(dst, float)
    if (src.shape != dst.shape or src.ndim != 2 or src.shape[1] != 2 or len(src) < 2
            or not np.isfinite([src, dst]).all()):
        raise ValueError("similarity needs two equal (n, 2) arrays of finite numbers with n >= 2, "
                         f"got {src.shape} and {dst.shape}")
    x, y, one, zero = src[:, 0], src[:, 1], np.ones(len(src)), np.zeros(len(src))
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    target = np.concatenate([dst[:, 0], dst[:, 1]])
    (a, b, tx, ty), _, rank, _ = np.linalg.lstsq(rows, target, rcond=None)
    if rank < 4 or a * a + b * b < 1e-12:
        raise ValueError("the points coincide: no similarity maps them")
    return np.array([[a, -b, tx], [b, a, ty]])


def invert(matrix):
    "The inverse of a 2×3 affine matrix, 2×3."
    a = np.linalg.inv(matrix[:, :2])
    return np.concatenate([a, -a @ matrix[:, 2:]], axis=1)


# %% [markdown]
# Two independent checks: Umeyama's closed form [@umeyama1991] as scikit-image has it, and complex numbers, where a similarity is $w=\alpha z+\beta$ and the best $\alpha$ is a quotient of two sums.
# And a property: turning and scaling the photo first must not change where the points land.

# %%
apply = lambda m, p: p @ m[:, :2].T + m[:, 2]
rng = np.random.default_rng(0)
for n in (2, 5, 20):
    src, dst = rng.normal(100, 40, (n, 2)), rng.normal(0, 3, (n, 2))
    m = similarity(src, dst)
    assert_allclose(m, estimate_transform("similarity", src, dst).params[:2], atol=1e-9)

    z, w = (src - src.mean(0)) @ (1, 1j), (dst - dst.mean(0)) @ (1, 1j)
    assert_allclose(m[0, 0] + 1j * m[1, 0], (z.conj() * w).sum() / (abs(z) ** 2).sum(), atol=1e-9)

    assert_allclose(apply(invert(m), apply(m, src)), src, atol=1e-6)
    turned = apply(np.array([[0.3, -1.2, 50], [1.2, 0.3, -7]]), src)
    assert_allclose(apply(similarity(turned, dst), turned), apply(m, src), atol=1e-6)
test_fail(lambda: similarity(np.ones((5, 2)), dst[:5]), exc=ValueError, contains="coincide")
test_fail(lambda: similarity(src[:4], dst[:5]), exc=ValueError, contains="equal")

# %% [markdown]
# ## Half a pixel
#
# Where is a pixel? We say that pixel number $i$ has its *centre* at the coordinate $i$, as OpenCV does. So it covers the interval from $i-\frac12$ to $i+\frac12$, and a row of $S$ pixels reaches from $-\frac12$ to $S-\frac12$.
# When a picture of 512 px is shrunk to $S$ px, it is these edges that correspond. The map that sends $-\frac12$ to $-\frac12$ and $511\frac12$ to $S-\frac12$ is
#
# $$p_S+\tfrac12=\left(p_{512}+\tfrac12\right)\frac{S}{512}$$ {#eq-faces-halfpixel}
#
# and not $p_S=p_{512}\,S/512$, which differs from it by $\frac12(1-S/512)$: three eighths of a pixel at 128 px.
# The places where the five points go are the mean positions over FFHQ that the official code uses; at another size they follow @eq-faces-halfpixel.

# %%
#| export
# Where FFHQ alignment puts the five points at 512 px (means over FFHQ; of the official weights).
FFHQ_512 = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935],
                     [201.26117, 371.41043], [313.08905, 371.15118]])


def template(size=512):
    "The five target points (5, 2) for an aligned face of `size` px (@eq-faces-halfpixel)."
    return (FFHQ_512 + 0.5) * size / 512 - 0.5


# %% [markdown]
# Pixels decide who is right: draw a soft dot at each of the five places in a 512 px picture, shrink it by averaging blocks, and ask where the dots' centres of mass are now.

# %%
def centre_of_mass(picture):
    y, x = np.mgrid[:picture.shape[0], :picture.shape[1]]
    return np.array([(picture * x).sum(), (picture * y).sum()]) / picture.sum()


y, x = np.mgrid[:512, :512]
dots = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / 200) for u, v in FFHQ_512]
for size in (256, 128, 64):
    block = 512 // size
    blocks = [d.reshape(size, block, size, block).mean((1, 3)) for d in dots]
    measured = np.array([centre_of_mass(b) for b in blocks])
    ours = np.abs(measured - template(size)).max()
    naive = np.abs(measured - FFHQ_512 * size / 512).mean()
    print(f"{size:3} px: our template is off by {ours:.3f} px, plain scaling by {naive:.3f}")
    assert_allclose(measured, template(size), atol=0.002)
    assert_allclose(naive, 0.5 * (1 - size / 512), atol=0.002)
# a tenth of the eye distance, in pixels of the 512 px picture
assert round(0.1 * np.hypot(*(FFHQ_512[1] - FFHQ_512[0]))) == 13


# %% [markdown]
# ## Cut, but not with scissors
#
# With the matrix in hand, the aligned face is a resampling: for each of its pixels, look up the place in the photo and interpolate. When a face 600 px wide becomes one of 64, that reads a few photo pixels for each result pixel and skips the rest.
# Finer detail comes back as false coarse patterns, the aliases of @sec-degradation. There they were wanted as damage; here the network would take them for the face.
#
# The remedy is to blur first. If we think of a pixel as a Gaussian of $\frac12$ px, a pixel of the result, seen in the photo, should have a width of $\frac12\cdot\frac1s$ for a map of scale $s<1$. Widths of successive blurs add as squares, so the blur that is missing has
#
# $$\sigma=\tfrac12\sqrt{\frac1{s^2}-1}$$ {#eq-faces-lowpass}
#
# photo pixels, and none for $s\ge1$. Only the part of the photo that the crop looks at is blurred: `footprint` finds it, and `_mirror` fills what lies over the edge with a mirror image.

# %%
#| export
def footprint(matrix, size, margin=0):
    """The photo pixels under an aligned crop, `margin` more on each side: x0, y0, x1, y1, half
    open, not clipped to the photo.
    """
    back, ends = invert(matrix), (-0.5, size - 0.5)
    corners = np.array([[x, y] for x in ends for y in ends]) @ back[:, :2].T + back[:, 2]
    low, high = np.floor(corners.min(0)) - margin, np.ceil(corners.max(0)) + 1 + margin
    return tuple(int(v) for v in (*low, *high))


def _mirror(i, n):
    "Indices i into range(n), mirrored at its ends: -1 is 1, n is n - 2."
    i = np.abs(i) % max(2 * n - 2, 1)
    return np.minimum(i, 2 * n - 2 - i)


def align(image, landmarks, size=512):
    """Turn, scale and cut so that the five landmarks fall on `template(size)` -> (uint8
    size×size×3, 2×3 matrix photo -> crop).

    A face larger than `size` is low-passed first, so that shrinking does not alias; outside the
    photo the edge is mirrored.
    """
    matrix = similarity(landmarks, template(size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    sigma = 0.5 * np.sqrt(max(1 / scale**2 - 1, 0))                         # @eq-faces-lowpass
    x0, y0, x1, y1 = footprint(matrix, size, margin=int(4 * sigma) + 3)
    h, w = image.shape[:2]
    part = image[np.ix_(_mirror(np.arange(y0, y1), h), _mirror(np.arange(x0, x1), w))]
    if sigma > 0:
        part = cv2.GaussianBlur(part, (0, 0), sigma + 1e-6)
    local = np.concatenate([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ [[x0], [y0]]], axis=1)
    return cv2.warpAffine(part, local, (size, size), flags=cv2.INTER_CUBIC), matrix


# %% [markdown]
# Four checks. The points land on the template as closely as @eq-similarity allows: a second fit has nothing left to gain. A plain colour stays that colour. Cutting out the part first changes nothing against blurring and warping the whole photo. And a photo that was turned by 25° and enlarged gives the same face.

# %%
crop, matrix = align(photo, face.landmarks, 256)
residual = np.abs(apply(matrix, face.landmarks) - template(256)).mean()
refit = similarity(apply(matrix, face.landmarks), template(256))
assert_allclose(refit, [[1, 0, 0], [0, 1, 0]], atol=1e-6)    # nothing is left to gain
assert (align(np.full((90, 120, 3), 77, np.uint8), face.landmarks - 100, 64)[0] == 77).all()

assert_array_equal(_mirror(np.arange(-3, 8), 4), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1])
# shifted: the crop looks over an edge of the photo
for size, shift in ((32, 0), (64, 150), (64, -200), (300, 0)):
    landmarks = face.landmarks + shift
    m = similarity(landmarks, template(size))
    sigma = 0.5 * np.sqrt(max(1 / np.linalg.det(m[:, :2]) - 1, 0))
    whole = cv2.GaussianBlur(photo, (0, 0), sigma + 1e-6) if sigma else photo
    whole = cv2.warpAffine(whole, m, (size, size), flags=cv2.INTER_CUBIC,
                           borderMode=cv2.BORDER_REFLECT_101)
    off = np.abs(align(photo, landmarks, size)[0].astype(int) - whole)
    assert off.mean() < 0.01 and off.max() <= 12, (size, shift, off.mean(), off.max())

turn = cv2.getRotationMatrix2D((225, 110), 25, 1.3) + np.array([[0, 0, 200], [0, 0, 200]])
turned = cv2.warpAffine(photo, turn, (900, 900), flags=cv2.INTER_CUBIC,
                        borderMode=cv2.BORDER_REFLECT_101)
change = np.abs(align(turned, apply(turn, face.landmarks), 256)[0].astype(int) - crop).mean()
shift = np.abs(align(turned, apply(turn, face.landmarks) + 2, 256)[0].astype(int) - crop).mean()
print(f"points {residual:.1f} px from the template; turned by 25°: {change:.1f} grey levels of "
      f"change, with the points 2 px off: {shift:.1f}")
assert change < 2 < shift

# %% [markdown]
# For aliasing the hardest picture is a set of stripes finer than the result can show. The honest answer is an even grey, so whatever contrast is left is false.

# %%
# 6 px a period
stripes = np.where((np.arange(1000) // 3) % 2, 255, 0).astype(np.uint8)
stripes = stripes[None, :, None].repeat(1000, 0).repeat(3, 2)
c, d = np.cos(0.1), np.sin(0.1)
# a face of 700 px, turned by 0.1
points = (template(700) - 350) @ np.array([[c, d], [-d, c]]) + 500
# scale 1:11
m = similarity(points, template(64))
bare = cv2.warpAffine(stripes, m, (64, 64), flags=cv2.INTER_CUBIC)
ours = align(stripes, points, 64)[0]
false = [p.astype(float).std() for p in (bare, ours)]
print(f"scale 1:{1 / np.hypot(*m[:, 0]):.1f}; contrast of the false pattern: "
      f"{false[0]:.0f} grey levels without the blur, {false[1]:.1f} with it")
assert false[1] < 3 < 50 < false[0]

# %%
#| label: fig-faces-alias
#| fig-cap: "Fine stripes shrunk eleven times. Interpolation alone invents coarse stripes that are not there; low-passed first, the result is the even grey it should be. Right: the astronaut at 32 px, without and with the blur."
#| fig-alt: "Stripes, false wavy stripes, an even grey square, a jagged small face and a smooth small face."
landmarks = fourfold(face.landmarks)
to_32 = similarity(landmarks, template(32))
small = [cv2.warpAffine(large, to_32, (32, 32), flags=cv2.INTER_CUBIC),
         align(large, landmarks, 32)[0]]
show([stripes[:90, :90], bare, ours, *small],
     ["stripes (a part)", "interpolated", "blurred first", "interpolated", "blurred first"],
     height=1.45);


# %% [markdown]
# In @fig-faces-alias only the blur tells the second picture from the third. On the face the difference is milder, but jagged edges are just what a restorer is tempted to explain as wrinkles.
#
# ## Pixels and tensors
#
# Networks work on float32 in $[-1,1]$ with shape $(n,3,h,w)$, files on bytes from 0 to 255. With $v$ the byte and $x$ the number,
#
# $$x=\frac{v}{127.5}-1,\qquad v=\mathrm{clip}_{0}^{255}\big(\mathrm{round}(127.5\,(x+1))\big)$$ {#eq-faces-bytes}
#
# The network's output is not limited to $[-1,1]$ (@sec-gfpgan), so the way back must clip; and it must round, as cutting off the fraction would darken every picture by half a grey level.

# %%
#| export
def to_tensor(images):
    "uint8 (n, h, w, 3) or (h, w, 3) RGB -> float32 (n, 3, h, w) in [-1, 1]."
    import torch

    a = np.ascontiguousarray(images)
    if a.dtype != np.uint8 or a.ndim not in (3, 4) or a.shape[-1] != 3:
        raise ValueError("to_tensor needs uint8 (n, h, w, 3) or (h, w, 3), "
                         f"got {a.dtype} {a.shape}")
    x = torch.from_numpy(a[None] if a.ndim == 3 else a).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1)


def to_images(x):
    "float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3), clipped and rounded."
    x = x.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return x.permute(0, 2, 3, 1).cpu().numpy()


# %%
every = np.arange(256, dtype=np.uint8).reshape(16, 16)
# all values in each channel, the channels different
every = np.stack([every, every.T, 255 - every], 2)
x = to_tensor(every)
assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
assert_array_equal(to_images(x)[0], every)              # exact for all 256 values
assert x[0, 1, 2, 3] == every[2, 3, 1] / 127.5 - 1      # one element, by hand
assert_array_equal(to_images(torch.full((1, 3, 1, 1), 1.3))[0, 0, 0], [255] * 3)
# noise below half a grey level is rounded away
assert_array_equal(to_images(x.double() + 0.9 / 255)[0], every)
x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
exact = 127.5 * (x + 1)
assert abs(to_images(x).mean() - exact.mean()) < 0.02    # rounded
assert exact.floor().mean() - exact.mean() < -0.48       # cut off
test_fail(lambda: to_tensor(every / 255), exc=ValueError, contains="uint8")

# %% [markdown]
# ## Eyes and mouth as boxes
#
# People look at eyes and mouths first. So in training the method gives each of these three parts a discriminator of its own (@sec-discriminators), which needs a box in the aligned face.
# The official boxes come from 68 points that FFHQ publishes for each of its pictures: the centre $c$ is the mean of the part's points and $h$ half the longer side of their bounding box, 16 px at least. Other pictures have no such points, but our detector gives five.
# With $e_l,e_r$ the eyes, $m_l,m_r$ the corners of the mouth, $d=e_r-e_l$, and $d_\perp$ the same arrow turned by 90° to point at the mouth, we estimate, at 512 px,
#
# $$c_{\mathrm{eye}}=e+\alpha_1d_\perp,\quad h_{\mathrm{eye}}=\alpha_2\lVert d\rVert,\qquad c_{\mathrm{mouth}}=\tfrac12(m_l+m_r)+\alpha_3d_\perp,\quad h_{\mathrm{mouth}}=\alpha_4\lVert m_r-m_l\rVert$$ {#eq-faces-components}
#
# The four numbers are measured: a detector of 68 points and ours were run on the same FFHQ faces, and each $\alpha$ is the median of what it would have to be.

# %%
#| export
PARTS = ("left_eye", "right_eye", "mouth")    # left = left in the picture
# Made by figures/component_boxes.py.
# Medians over FFHQ faces; `down` and `eye_half` in eye distances, `mouth_half` in mouth widths.
COMPONENT_FIT = {"eye_down": 0.026, "eye_half": 0.198, "mouth_down": 0.047, "mouth_half": 0.498}


def face_components(landmarks, size, fit=COMPONENT_FIT):
    """Five points of an aligned face of `size` px -> {part: (x, y, half length)} at 512 px, as the
    official file holds them (@eq-faces-components).
    """
    five = (np.asarray(landmarks, float).reshape(5, 2) + 0.5) * 512 / size - 0.5
    across, mouth = five[1] - five[0], five[4] - five[3]
    down = np.array([-across[1], across[0]])    # as long as the eyes are apart
    eyes = five[:2] + fit["eye_down"] * down
    lips = five[3:].mean(0) + fit["mouth_down"] * down
    eye, lip = fit["eye_half"] * np.hypot(*across), fit["mouth_half"] * np.hypot(*mouth)
    halves = np.maximum(16, [eye, eye, lip])
    return {part: (float(x), float(y), float(half))
            for part, (x, y), half in zip(PARTS, [*eyes, lips], halves)}


# %%
measured = json.loads(Path("../figures/component_boxes.json").read_text())
assert measured["constants"] == COMPONENT_FIT
print(f"fitted on {measured['fitted_faces']} faces: {measured['constants']}")
print("overlap (shared area / area of both) with the boxes of the 68 points on "
      f"{measured['measured_faces']} other faces:")
for part in PARTS:
    ours, mean = measured["iou"][part], measured["iou_of_the_mean_boxes"][part]
    print(f"  {part:9}  median {ours['median']:.2f}, worst 5 % below {ours['worst_5_percent']:.2f};"
          f" the mean face's box: {mean['median']:.2f}, {mean['worst_5_percent']:.2f}")
assert round((70 - 5) / (70 + 5), 2) == 0.87                # squares 70 px wide, 5 px apart
assert all(measured["iou"][part]["median"] > 0.8 for part in PARTS)
means = measured["iou_of_the_mean_boxes"]
assert means["mouth"]["median"] < 0.75 and means["left_eye"]["median"] > 0.85

c = face_components([[200, 240], [300, 240], [250, 300], [210, 360], [290, 360]], 512,
                    dict(eye_down=0.03, eye_half=0.2, mouth_down=0.05, mouth_half=0.5))
# by hand
assert_allclose([c[part] for part in PARTS], [[200, 243, 20], [300, 243, 20], [250, 365, 40]])
a, b = 0.9 * np.cos(0.2), 0.9 * np.sin(0.2)
# a face that is turned has its components turned
turn = np.array([[a, -b, 40], [b, a, -30]])
turned, straight = face_components(apply(turn, FFHQ_512), 512), face_components(FFHQ_512, 512)
for part in PARTS:
    assert_allclose(turned[part][:2], apply(turn, np.array(straight[part][:2])), atol=1e-9)
    assert_allclose(turned[part][2], 0.9 * straight[part][2])


# %% [markdown]
# The printed overlap is the area that two boxes share, divided by the area that they cover together. A box 70 px wide and misplaced by 5 px one way has an overlap of 0.87, so the medians mean errors of a few pixels.
# The last two columns use one box for all faces, the mean. For FFHQ's own eyes it is better in the median: FFHQ was aligned with 68 points of the same kind, so its eyes are nearly always in one place. Mouths open and smile, and there the five points earn their keep.
#
# A box is larger than $h$ for the eyes, by $\rho=1.4$ ($\rho=1$ for the mouth), and lies at
#
# $$b_S=\frac{S}{512}\,\big(c-\rho h+1,\ c+\rho h\big)$$ {#eq-faces-boxes}
#
# in x and in y, for a face of $S$ px. The $+1$ looks like a slip and is none if box coordinates are counted from the *edge* of the picture, pixel $i$ reaching from $i$ to $i+1$: the centre of pixel $c$ is then at $c+\frac12$, just the middle of the box. And edges scale without the half-pixel rule.

# %%
#| export
def boxes_from_components(components, size):
    """{part: (x, y, half length)} at 512 px -> boxes (3, 4) float32 of an aligned face of `size`
    px: x0, y0, x1, y1, order `PARTS` (@eq-faces-boxes).

    Counted from the edge of the picture: pixel i reaches from i to i + 1.
    """
    c = np.array([components[part] for part in PARTS], float)
    half = c[:, 2:] * [[1.4], [1.4], [1.0]]    # the eyes with their lids
    boxes = np.concatenate([c[:, :2] - half + 1, c[:, :2] + half], axis=1)
    return (boxes * size / 512).astype(np.float32)


def component_boxes(landmarks, size):
    """Five points (5, 2) of an aligned face of `size` px -> boxes (3, 4) float32 of its eyes and
    mouth, order `PARTS`.
    """
    return boxes_from_components(face_components(landmarks, size), size)


# %% [markdown]
# The check draws a soft bar at $c$, shrinks the picture by averaging, and asks where the bar's centre of mass is now: it must stay in the middle of the box at every size.

# %%
known = {"left_eye": (100, 200, 20), "right_eye": (300, 210, 30), "mouth": (220, 380, 50)}
# 1.4 · 20 = 28, 1.4 · 30 = 42
assert_allclose(boxes_from_components(known, 512),
                [[73, 173, 128, 228], [259, 169, 342, 252], [171, 331, 270, 430]], atol=1e-4)
for size in (512, 256, 64):
    for box, (x, _, _) in zip(boxes_from_components(known, size), known.values()):
        bar = np.exp(-((np.arange(512) - x) ** 2) / 200).reshape(size, -1).mean(1)
        # centres of pixels, from the edge
        centre = (bar * (np.arange(size) + 0.5)).sum() / bar.sum()
        assert_allclose(centre, (box[0] + box[2]) / 2, atol=0.01)
    assert_allclose(boxes_from_components(known, size) * 512 / size,
                    boxes_from_components(known, 512))
assert_allclose(component_boxes(template(100), 100) * 5.12, component_boxes(FFHQ_512, 512),
                rtol=1e-5)

# %%
#| label: fig-faces-parts
#| fig-cap: "The three boxes on an aligned face, from its five points (white), and what each discriminator gets to see of it."
#| fig-alt: "A portrait with a blue, an orange and a green square around the eyes and the mouth; beside it the two eyes and the mouth, cut out."
face512, matrix512 = align(photo, face.landmarks, 512)
five, colours = apply(matrix512, face.landmarks), ("#56B4E9", "#E69F00", "#009E73")
boxes512 = component_boxes(five, 512)
fig, axes = plt.subplot_mosaic([["face", "mouth", "left_eye"], ["face", "mouth", "right_eye"]],
                               figsize=(5.6, 2.5), width_ratios=(2, 1.6, 1), layout="constrained")
axes["face"].imshow(few_colours(cv2.resize(face512, (100, 100), interpolation=cv2.INTER_AREA)),
                    extent=(0, 512, 512, 0), interpolation="nearest")
axes["face"].scatter(*(five + 0.5).T, c="white", s=5)
for part, (x0, y0, x1, y1), colour in zip(PARTS, boxes512, colours):
    axes["face"].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.8))
    crop = face512[round(float(y0)):round(float(y1)), round(float(x0)):round(float(x1))]
    axes[part].imshow(few_colours(crop[::2, ::2]), interpolation="nearest")
    assert abs(crop.shape[1] - (x1 - x0)) <= 1    # the box lies inside the picture
    axes[part].set_title(f"{part.replace('_', ' ')}, {x1 - x0:.0f} px", fontsize=8, color="#222222")
for ax in axes.values():
    ax.axis("off")
plt.show()


# %% [markdown]
# In @fig-faces-parts each crop holds its part, the eyes with their lids.
#
# ## What a mirror does to the names
#
# In training about every second picture is mirrored, which doubles the number of faces for free. The boxes must follow: $x$ becomes $512-x$, as in the official code (exact would be $511-x$; we keep its one pixel). And the eye that was on the left is on the right now, so the two change names.
# Code that swaps the entries of the *stored* table finds them swapped the next time, and mirrors them back while the picture is not. The function here makes new values.

# %%
#| export
def mirror_components(components):
    """The components of the mirror image, as the official code has them: x becomes 512 - x, the
    eyes change places. The argument stays as it is.
    """
    (x0, y0, h0), (x1, y1, h1), (x2, y2, h2) = (components[part] for part in PARTS)
    return {"left_eye": (512 - x1, y1, h1), "right_eye": (512 - x0, y0, h0),
            "mouth": (512 - x2, y2, h2)}


# %% [markdown]
# Three properties: mirroring twice changes nothing; the argument is as it was; and mirroring the five points first, exactly, gives the same up to the one pixel.

# %%
parts = face_components(five, 512)
frozen = {part: np.array(v) for part, v in parts.items()}
for part in PARTS:
    assert_allclose(mirror_components(mirror_components(frozen))[part], parts[part])
    assert_array_equal(frozen[part], parts[part])
mirrored = np.stack([511 - five[:, 0], five[:, 1]], axis=1)[[1, 0, 2, 4, 3]]
for part in PARTS:
    both = mirror_components(parts)[part], face_components(mirrored, 512)[part]
    assert_allclose(np.subtract(*both), [1, 0, 0], atol=1e-9)


# %% [markdown]
# ## The official file of landmarks
#
# Who trains on FFHQ itself can have the official centres and half lengths: a file `FFHQ_eye_mouth_landmarks_512.pth` with one entry for each picture, keyed by its number in eight digits. A `.pth` file is a program (@sec-weights): loading it carelessly runs whatever its author wrote.
# PyTorch's `weights_only` mode allows a short list of names. Numbers that numpy wrote are not on it, so for this one call we add the functions that rebuild a numpy number and array, under their old and new names.

# %%
#| export
def _numpy_parts():
    "What a pickle of numbers and numeric arrays may name, under the names of old and new numpy."
    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    functions = [(getattr(core, name), f"numpy.{package}.multiarray.{name}")
                 for name in ("_reconstruct", "scalar") for package in ("core", "_core")]
    return [*functions, np.ndarray, np.dtype, *{type(np.dtype(c)) for c in "fdilqIBHL"}]


def read_official_landmarks(path):
    """The official file of landmarks (.pth) -> {number of a picture: {part: (x, y, half length)}},
    at 512 px.

    Nothing in the file is executed. Raises ValueError naming the file and the reason.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_parts()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # damaged archives raise nearly anything
    except Exception as e:
        reason = getattr(e, "strerror", None) or "damaged, or more in it than numbers and arrays"
        if named := re.search(r"GLOBAL (\S+)", str(e)):
            reason = f"it holds {named[1]}, which is neither a number nor an array"
        raise ValueError(f"{path}: refused as a file of landmarks ({reason})") from None
    try:
        read = {int(key): {part: tuple(float(v) for v in item[part]) for part in PARTS}
                for key, item in content.items()}
    except Exception as e:
        raise ValueError(f"{path}: is not {{'00000000': {{'left_eye': [x, y, half], …}}, …}} "
                         f"({type(e).__name__}: {e})") from None
    for n, parts in read.items():
        if not all(len(c) == 3 and np.isfinite(c).all() and c[2] > 0 for c in parts.values()):
            raise ValueError(f"{path}: number {n} is not three finite numbers a part, "
                             "the last positive")
    return read


# %% [markdown]
# Of two files, one as the official one is made and one that would make a folder while it is being read, the first is read and the second refused with the name of what it tried to call.

# %%
class Trojan:
    def __reduce__(self):
        return Path.mkdir, (Path(work.name) / "owned",)


work = tempfile.TemporaryDirectory()
good, bad = Path(work.name) / "good.pth", Path(work.name) / "bad.pth"
torch.save({"00000007": {part: [np.float64(v) for v in parts[part]] for part in PARTS}}, good)
torch.save({"00000007": parts | {"mouth": Trojan()}}, bad)
assert read_official_landmarks(good) == {7: parts}
test_fail(lambda: read_official_landmarks(bad), exc=ValueError,
          contains="bad.pth: refused as a file of landmarks (it holds")
assert not (Path(work.name) / "owned").exists()

# %% [markdown]
# ## From photos to a folder of faces
#
# Training wants thousands of aligned faces. They are cut out once and kept as pictures, with a *manifest* beside them: one line of JSON for each face, with its source, its five points and its three components at 512 px.
# In a job over thousands of files some are not pictures, some have no face or several, two folders have a `1.jpg` each, and somewhere in the middle the machine is switched off. `prepare` reports the first kinds, finds a free name for each face, and goes on from its manifest after the last.
#
# For that the order of writing matters. First all faces of a photo are written, each under a temporary name and then renamed; then their lines go into the manifest at once. Each line tells how many faces its photo has, so a photo whose lines are incomplete is done again.

# %%
#| export
# of the pictures that `prepare` looks for
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
# the file that `prepare` writes beside the faces
MANIFEST = "manifest.jsonl"


def read_manifest(folder):
    """Entries of the manifest that `prepare` writes; a half-written last line is left out.

    Raises ValueError naming file and line.
    """
    path = Path(folder) / MANIFEST
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        raise ValueError(f"{path}: cannot be read ({why}); `prepare` makes it, "
                         "and boxes='template' does without") from None
    entries = []
    for n, line in enumerate(lines, 1):
        try:
            if line.strip():
                entry = json.loads(line)
                if not {"file", "source", "size", "faces"} <= entry.keys():
                    raise KeyError
                if np.shape([entry["components"][part] for part in PARTS]) != (3, 3):
                    raise KeyError
                entries.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            # only a line that was never finished has no line end
            if n < len(lines):
                raise ValueError(f"{path}: line {n} is damaged") from None
    return entries


# %%
#| export
@dataclass
class Prepared:
    "What one call of `prepare` did."
    written: int = 0                                # pictures of faces
    faces: int = 0                                  # found in the sources, those too small included
    skipped: int = 0                                # sources that an earlier call has done
    no_face: list = field(default_factory=list)     # paths of sources without a large enough face
    unreadable: list = field(default_factory=list)  # (path, reason)


def points_in_aligned(image, detector=None):
    """The five points in an aligned face, found in a copy of at most 256 px: those of the face
    nearest to `template`, or None.
    """
    side, size = min(len(image), 256), len(image)
    faces = (detector or detect)(_square(image, side, "picture"))
    found = [(f.landmarks + 0.5) * size / side - 0.5 for f in faces]
    off = [np.abs(five - template(size)).mean() / size for five in found]
    return found[int(np.argmin(off))] if off and min(off) < 0.1 else None


# %%
#| export
def _cut_faces(image, size, detector, min_face, largest):
    "All faces in a photo, and [(aligned picture, its five points)] of those that are large enough."
    faces = detector(image)
    large = [f for f in faces if min(f.box[2] - f.box[0], f.box[3] - f.box[1]) >= min_face]
    large = large[:1] if largest else large
    crops = [align(image, f.landmarks, size) for f in large]
    return faces, [(crop, f.landmarks @ matrix[:, :2].T + matrix[:, 2])
                   for f, (crop, matrix) in zip(large, crops)]


def _take_face(image, size, detector, path):
    "The same for a picture that is aligned already; points None: not found."
    face = _square(image, size, path)
    points = points_in_aligned(_square(image, len(image), path), detector)
    if points is not None:
        points = (points + 0.5) * size / len(image) - 0.5
    return [face], [(face, points)]


def _entry(file, source, size, faces, landmarks):
    "One line of the manifest."
    parts = face_components(template(size) if landmarks is None else landmarks, size)
    points = "template" if landmarks is None else np.round(landmarks, 3).tolist()
    rounded = {part: np.round(v, 3).tolist() for part, v in parts.items()}
    return json.dumps(dict(file=file, source=source, faces=faces, size=size, landmarks=points,
                           components=rounded)) + "\n"


# %%
#| export
def _resume(out, size):
    """Entries of the sources that `out`'s manifest tells completely; what a killed run left of
    another one is taken out of the file.
    """
    path = out / MANIFEST
    # it is made before the first picture
    if not path.exists():
        if any(p.suffix.lower() in SUFFIXES for p in out.iterdir()):
            raise ValueError(f"{out}: holds pictures of other origin; choose another folder")
        return []
    entries = read_manifest(out)
    if other := {e["size"] for e in entries} - {size}:
        raise ValueError(f"{path}: the faces in this folder have {other.pop()} px, not {size}; "
                         "choose another folder")
    told = Counter(e["source"] for e in entries)
    entries = [e for e in entries if told[e["source"]] == e["faces"]]
    text = "".join(json.dumps(e) + "\n" for e in entries)
    if path.read_bytes() != text.encode():
        part = path.with_suffix(".part")
        part.write_bytes(text.encode())
        part.replace(path)
    return entries


def _sources(source, out):
    "Sorted pictures below the folder `source`; `out`, if it lies there, is left out."
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder")
    base, inside = source.resolve(), out.resolve()
    if base == inside:
        raise ValueError(f"{source}: the faces would fall among their sources; "
                         "choose another folder")
    results = source / inside.relative_to(base) if inside.is_relative_to(base) else out
    return sorted(p for p in source.rglob("*")
                  if p.suffix.lower() in SUFFIXES and results not in p.parents and p.is_file())


# %%
#| export
def _first_free(stem, taken):
    "stem.png, stem_1.png, …: the first that is not taken, on a disk that may not tell a from A."
    name, n = f"{stem}.png", 0
    while name.casefold() in taken:
        n += 1
        name = f"{stem}_{n}.png"
    taken.add(name.casefold())
    return name


def _write_png(path, image, compression):
    """uint8 RGB -> PNG, atomically.

    A row is kept as its difference to the row above: quicker to read than a choice row by row, and
    not larger.
    """
    from gfpgan_edu.pictures import PhotoError

    filters = []
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        kind = cv2.IMWRITE_PNG_FILTER_UP if compression else cv2.IMWRITE_PNG_FILTER_NONE
        filters = [cv2.IMWRITE_PNG_FILTER, kind]
    part = path.with_name(f".gfpgan_edu-{os.getpid()}.part")
    try:
        part.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                                      [cv2.IMWRITE_PNG_COMPRESSION, compression, *filters])[1])
        part.replace(path)
    except OSError as e:
        raise PhotoError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


# %%
#| export
def prepare(source, out, size=512, *, aligned=False, detector=None, min_face=None, largest=False,
            compression=0, progress=True):
    """Cut every face out of the pictures below the folder `source` into `out`: STEM.png,
    STEM_1.png, …, and manifest.jsonl with points and components.

    aligned: the pictures are FFHQ-aligned faces, only resized. min_face: faces whose box is
    narrower (px) are left out; None: size / 4, enlarged about twice. largest: one face a picture.
    compression: of the PNGs, 0 (large, quick to read) to 9; no pixel depends on it. Sources in the
    manifest are skipped, so a killed run goes on where it was. Returns `Prepared`.
    """
    from tqdm import tqdm

    from gfpgan_edu.pictures import read_image

    source, out, detector, report = Path(source), Path(out), detector or detect, Prepared()
    min_face = size / 4 if min_face is None else min_face
    paths = _sources(source, out)
    out.mkdir(parents=True, exist_ok=True)
    entries = _resume(out, size)
    done, taken = {e["source"] for e in entries}, {e["file"].casefold() for e in entries}
    with open(out / MANIFEST, "a", encoding="utf-8", newline="\n") as manifest:
        for path in tqdm(paths, unit="picture", disable=None if progress else True):
            if (name := path.relative_to(source).as_posix()) in done:
                report.skipped += 1
                continue
            try:
                image = read_image(path)
                if aligned:
                    found, kept = _take_face(image, size, detector, path)
                else:
                    found, kept = _cut_faces(image, size, detector, min_face, largest)
            except ValueError as e:
                report.unreadable.append((path, str(e).removeprefix(f"{path}: ")))
                continue
            files = [_first_free(path.stem, taken) for _ in kept]
            for file, (crop, _) in zip(files, kept):
                _write_png(out / file, crop, compression)  # first all pictures, then their lines
            manifest.write("".join(_entry(file, name, size, len(kept), points)
                                   for file, (_, points) in zip(files, kept)))
            manifest.flush()
            report.faces, report.written = report.faces + len(found), report.written + len(kept)
            report.no_face += [path] * (not kept)
    return report


# %% [markdown]
# The check kills such a job in its middle and starts it again. Pictures and manifest must be those of an undisturbed run, byte for byte.

# %%
source = Path(work.name) / "photos"
(source / "more").mkdir(parents=True)
# two faces
wide = np.concatenate([photo[:300, 60:420], photo[:300, 420:60:-1]], axis=1)
for name, image in (("eileen.png", photo), ("pair.png", wide), ("wall.png", photo[:90, :90]),
                    ("more/eileen.png", photo[:, ::-1])):
    cv2.imwrite(str(source / name), np.ascontiguousarray(image[..., ::-1]))
(source / "noise.jpg").write_bytes(b"not a picture")


def killed(image, left=[2]):
    "A detector in whose third photo somebody pulls the plug."
    left[0] -= 1
    if left[0] < 0:
        raise KeyboardInterrupt
    return detect(image)


straight, resumed = Path(work.name) / "straight", Path(work.name) / "resumed"
report = prepare(source, straight, 128, progress=False)
test_fail(lambda: prepare(source, resumed, 128, detector=killed, progress=False),
          exc=KeyboardInterrupt)
begun = len(read_manifest(resumed))
again = prepare(source, resumed, 128, progress=False)
held = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir()}
assert held(resumed) == held(straight) and 0 < begun < report.written
print(f"straight: {report.written} faces from {report.written - 1} photos;",
      f"no face: {[p.name for p in report.no_face]};",
      f"unreadable: {[(p.name, why) for p, why in report.unreadable]}")
print(f"killed after {begun} faces; then {again.skipped} photos skipped",
      f"and {again.written} faces written")
for e in read_manifest(straight):
    eye, half = [round(v) for v in e["landmarks"][0]], e["components"]["mouth"][2]
    print(f"{e['file']:15} from {e['source']:16} left eye at {eye}, mouth's half length {half:.0f}")
assert all(np.abs(np.array(e["landmarks"]) - template(128)).max() < 6
           for e in read_manifest(straight))


# %% [markdown]
# Two photos called `eileen.png` gave two pictures, and the two bad files are in the report. Faces whose box is narrower than a quarter of the result are left out unless you say otherwise (`min_face`): enlarged more than about twice they are blurred, and a restorer would learn that blurred is good.
# The pictures are PNGs without compression: a face is read in every epoch, and unpacking a compressed PNG takes a good part of the time of one item (@fig-degradation-time). Where the disc is small or far away, `compression=3` gives files less than half as large; no pixel changes.
# A JPEG would be smaller still, but it would change what the network is taught. The cell measures how much, on the aligned face, with the colours at full size.

# %%
def stored(image, suffix, *options):
    "(kilobytes, mean error in grey levels) of a picture kept in a file of this kind."
    data = cv2.imencode(suffix, image[..., ::-1].copy(), options)[1]
    back = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    return len(data) / 1000, np.abs(back.astype(int) - image).mean()


full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        cv2.IMWRITE_JPEG_QUALITY]
kinds = {"PNG, compression 0": (".png", cv2.IMWRITE_PNG_COMPRESSION, 0),
         "PNG, compression 3": (".png", cv2.IMWRITE_PNG_COMPRESSION, 3),
         "JPEG 98": (".jpg", *full, 98), "JPEG 95": (".jpg", *full, 95)}
kept = {name: stored(face512, *how) for name, how in kinds.items()}
for name, (size, loss) in kept.items():
    print(f"{name:18} {size:4.0f} kB, changes a value by {loss:.2f} levels on average")
losses = [loss for _, loss in kept.values()]
assert losses[0] == losses[1] == 0 < losses[2] < losses[3]


# %% [markdown]
# For pictures that are aligned already, such as FFHQ's, `aligned=True` only resizes them and looks for the five points; where it finds none it takes those of the mean face and says so in the manifest.
#
# ## A folder as a data set
#
# Each training step needs a clean face $y$ and a damaged one $x$, and in every epoch the damage should be another. The usual generator in each worker process makes a run depend on the number of workers, cannot be repeated after a restart, and repeats itself when workers start from the same seed in every epoch.
# So chance comes from the place in the run:
#
# $$(\text{mirrored},\ \theta)=\mathrm{draw}\big(\mathrm{rng}(\text{seed},\ \text{epoch},\ \text{index})\big),\qquad x=\mathrm{degrade}_\theta(y)$$ {#eq-faces-draw}
#
# with $\theta$ all numbers of @eq-degradation. An item is a pure function of three integers. The epoch travels with the index: the data set is asked for `folder[epoch, index]`, and a sampler yields such pairs.

# %%
#| export
def _find_components(folder, names, boxes):
    """Array (n, 3, 3) of x, y, half length at 512 px, order `PARTS`, for the pictures `names` of
    `folder`.
    """
    if boxes == "template":
        known = dict.fromkeys(names, face_components(FFHQ_512, 512))
    elif boxes == "manifest":
        known = {e["file"]: e["components"] for e in read_manifest(folder)}
    # by the number in the name, never by position
    else:
        official, numbers = read_official_landmarks(boxes), {n: Path(n).stem for n in names}
        if odd := [n for n, stem in numbers.items() if not (stem.isascii() and stem.isdigit())]:
            raise ValueError(f"{Path(folder) / odd[0]}: its name is not a number, "
                             f"so the landmarks of {boxes} cannot be matched")
        known = {n: official[int(stem)] for n, stem in numbers.items() if int(stem) in official}
    if lacking := [n for n in names if n not in known]:
        where = MANIFEST if boxes == "manifest" else boxes
        raise ValueError(f"{Path(folder) / lacking[0]}: no entry in {where} "
                         f"({len(lacking)} of {len(names)} pictures have none)")
    return np.array([[known[n][part] for part in PARTS] for n in names], float)


def _square(image, size, path):
    "A square picture at `size` px."
    h, w = image.shape[:2]
    if h != w:
        raise ValueError(f"{path}: has {w}×{h} pixels; aligned faces are square")
    interpolation = cv2.INTER_AREA if h > size else cv2.INTER_CUBIC
    return image if h == size else cv2.resize(image, (size, size), interpolation=interpolation)


# %%
#| export
def _is_plain(png):
    """Whether bytes are a PNG of 8-bit RGB with nothing in it but pixels, as `prepare` writes them:
    every decoder reads it alike, or refuses it.
    """
    at, kinds = 8, set()
    # the last two: bits in a channel, kind of colour
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[24:26] != b"\x08\x02":
        return False
    # chunks: length, kind, content, checksum
    while at < len(png):
        kinds.add(png[at + 4:at + 8])
        at += 12 + int.from_bytes(png[at:at + 4], "big")
    return kinds == {b"IHDR", b"IDAT", b"IEND"}


def _read_face(path):
    "`read_image`, by OpenCV for plain PNGs, which takes two thirds of the time."
    from gfpgan_edu.pictures import read_image

    with suppress(OSError):
        if _is_plain(png := path.read_bytes()):
            image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    # any other picture, and the one who says what is wrong
    return read_image(path)


# %%
#| export
def _picture_names(folder, wanted=None):
    "Sorted names of the pictures in `folder`, or of those `wanted`."
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    names = sorted(e.name for e in os.scandir(folder)
                   if Path(e.name).suffix.lower() in SUFFIXES and e.is_file())
    if not names:
        raise ValueError(f"{folder}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    if wanted is None:
        return names
    wanted = sorted(set(wanted))
    if not wanted:
        raise ValueError(f"{folder}: no names to restrict it to")
    if unknown := sorted(set(wanted) - set(names)):
        raise ValueError(f"{folder / unknown[0]}: no such picture "
                         f"({len(unknown)} of {len(wanted)} names)")
    return wanted


# %%
#| export
class FaceFolder:
    """Aligned faces of a folder with fresh damage every epoch: `folder[epoch, index]` (or
    `folder[index]`: epoch 0) -> dict. Fit for any DataLoader.

    lq, gt: (3, size, size) float32 RGB in [-1, 1]; boxes: (3, 4) float32, order `PARTS`; index:
    int. All chance depends on (seed, epoch, index) alone. boxes: "manifest" (that of `prepare`),
    "template" (the mean face's), the path of an official .pth, or None: without.
    names: only these files. degraded=False: without lq. Raises ValueError that names the file.
    """

    def __init__(self, folder, size, ranges=PAPER, seed=0, flip=True, boxes="manifest", names=None,
                 degraded=True):
        if size < 1 or seed < 0:
            raise ValueError(f"size is {size}, seed is {seed}: "
                             "needs a positive size and a seed from 0 up")
        self.folder, self.size, self.seed = Path(folder), size, seed
        self.flip, self.degraded, self.components = flip, degraded, None
        self.names, self.ranges = _picture_names(self.folder, names), ranges.at(size)
        if boxes is not None:
            self.components = _find_components(self.folder, self.names, boxes)

    def __len__(self):
        return len(self.names)

    def draw(self, epoch, index):
        "What an epoch does to a picture: whether it is mirrored, and the record of its damage."
        # -1 is the last; IndexError where there is none
        rng = np.random.default_rng([self.seed, int(epoch), range(len(self))[index]])
        return bool(rng.random() < 0.5) and self.flip, sample_params(rng, self.ranges)

    def __getitem__(self, key):
        import torch

        epoch, index = key if isinstance(key, (tuple, list)) else (0, key)
        (flipped, params), index = self.draw(epoch, index), range(len(self))[index]
        path = self.folder / self.names[index]
        image = _square(_read_face(path), self.size, path)
        image = cv2.flip(image, 1) if flipped else image
        item = {"gt": to_tensor(image)[0], "index": index}
        if self.degraded:
            item["lq"] = to_tensor(degrade(image, params))[0]
        if self.components is not None:
            parts = dict(zip(PARTS, self.components[index]))
            parts = mirror_components(parts) if flipped else parts
            item["boxes"] = torch.from_numpy(boxes_from_components(parts, self.size))
        return item


# %% [markdown]
# If @eq-faces-draw is kept, the order of asking cannot matter, a new object gives the same, and other epochs differ. For the boxes, paint those of a black picture in red, green and blue: each returned box must hold one colour, and the eyes' colours change places exactly in the mirrored epochs.

# %%
data = FaceFolder(resumed, 64, SEVERE, seed=5)
fresh = lambda seed: FaceFolder(resumed, 64, SEVERE, seed=seed)
same = lambda a, b: all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k]))
                        for k in ("lq", "gt", "boxes", "index"))
first = {key: data[key] for key in [(0, 0), (0, 1), (1, 1), (7, 1)]}
assert all(same(fresh(5)[key], item) for key, item in reversed(first.items()))
assert same(data[1], first[0, 1])
assert not same(first[0, 1], first[1, 1]) and not same(fresh(6)[0, 1], first[0, 1])

painted, canvas = Path(work.name) / "painted", np.zeros((256, 256, 3), np.uint8)
# known: far from symmetric
for channel, (x0, y0, x1, y1) in enumerate(boxes_from_components(known, 256).round().astype(int)):
    canvas[y0:y1, x0:x1, channel] = 255
painted.mkdir()
cv2.imwrite(str(painted / "1.png"), canvas[..., ::-1])
torch.save({"00000001": known}, painted / "boxes.pth")
planted, seen = FaceFolder(painted, 256, boxes=painted / "boxes.pth", degraded=False), []
# asked twice: nothing is remembered
for epoch in [*range(12), *range(12)]:
    item = planted[epoch, 0]
    held = torch.stack([(item["gt"][:, y0:y1, x0:x1] > 0).float().mean((1, 2))
                        for x0, y0, x1, y1 in item["boxes"].round().int().tolist()])
    # the left box holds the right eye's colour: mirrored
    seen.append(bool(held[0, 1] > 0.5))
    assert_allclose(held, np.eye(3)[[1, 0, 2]] if seen[-1] else np.eye(3), atol=0.08)
assert seen[:12] == seen[12:] and 0 < sum(seen) < 24
print(f"{sum(seen[:12])} of 12 epochs mirrored, the same ones when asked again")

# %%
#| label: fig-faces-epochs
#| fig-cap: "One face in six epochs at 64 px: the clean picture with its boxes (blue: left eye, orange: right eye, green: mouth), and the damaged one that the network is given."
#| fig-alt: "Two rows of six small portraits, some of them mirrored; the upper ones have three coloured squares, the lower ones are blurred, noisy or tinted in different ways."
upright = FaceFolder(resumed, 64, flip=False, degraded=False)[0]["gt"]
fig, axes = plt.subplots(2, 6, figsize=(7, 2.5), layout="constrained")
for epoch, column in enumerate(axes.T):
    item = data[epoch, 0]
    for ax, kind in zip(column, ("gt", "lq")):
        ax.imshow(few_colours(to_images(item[kind][None])[0]), extent=(0, 64, 64, 0),
                  interpolation="nearest")
        ax.axis("off")
    for (x0, y0, x1, y1), colour in zip(item["boxes"], colours):
        box = plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.5)
        column[0].add_patch(box)
    mirrored = not torch.equal(item["gt"], upright)
    column[0].set_title(f"epoch {epoch}{', mirrored' if mirrored else ''}", fontsize=8)
plt.show()

# %% [markdown]
# In @fig-faces-epochs the blue box is on the left eye of the picture, whichever way the face looks. No two damages are alike, and each can be had again by its three numbers.
#
# Boxes come from the manifest, or from the mean face (`boxes="template"`), or from the official file, matched by the number in the file's name. A picture of another size is resized; one that cannot be read, or is not square, is an error that names it. Here the official file has entry 7, and the same face is wanted under three names.

# %%
numbered = Path(work.name) / "numbered"
numbered.mkdir()
for name in ("00007.png", "7_1.png", "8.png"):
    shutil.copy(resumed / "eileen.png", numbered / name)
official = FaceFolder(numbered, 512, boxes=good, names=["00007.png"], flip=False)
assert_allclose(official[0]["boxes"], boxes512, atol=1e-4)
test_fail(lambda: FaceFolder(numbered, 512, boxes=good, names=["00007.png", "8.png"]),
          exc=ValueError, contains="8.png: no entry")
# int("7_1") is 71 for Python
test_fail(lambda: FaceFolder(numbered, 512, boxes=good, names=["7_1.png"]), exc=ValueError,
          contains="not a number")
(numbered / "8.png").write_bytes(b"not a picture")
test_fail(lambda: FaceFolder(numbered, 64, boxes="template")[2], exc=ValueError,
          contains="8.png: is not a picture")
work.cleanup()

# %% [markdown]
# ## Put together
#
# The whole chapter on one photo that is tilted and damaged: detect, align at three sizes, and back to pictures through tensors (@fig-faces-together).

# %%
turn = cv2.getRotationMatrix2D((225, 130), -20, 1.0)
tilted = cv2.warpAffine(photo, turn, (512, 512), borderMode=cv2.BORDER_REFLECT_101)[:300, 60:420]
tilted = degrade(np.ascontiguousarray(tilted), DegradationParams(1.0, 1.0, r=2.0, delta=8, q=60))
one, = detect(tilted)
crops = [align(tilted, one.landmarks, size)[0] for size in (512, 128, 64)]
again = [to_images(to_tensor(c))[0] for c in crops]
assert all((a == c).all() for a, c in zip(again, crops))
off = np.abs(apply(similarity(one.landmarks, template()), one.landmarks) - template()).mean()
print(f"score {one.score:.2f}; the points end {off:.0f} px of 512 from the template on average")
assert off < 15

# %%
#| label: fig-faces-together
#| fig-cap: "A tilted, damaged photo with the box and points of the detector, and the aligned face at three sizes with the five places of the template (crosses)."
#| fig-alt: "A tilted portrait with five dots, and three upright cut-outs of the face, 512, 128 and 64 pixels wide, each with five crosses on eyes, nose and mouth."
fig, axes = plt.subplots(1, 4, figsize=(7, 2), layout="constrained", width_ratios=(1.2, 1, 1, 1))
axes[0].imshow(few_colours(tilted[::2, ::2]), extent=(-0.5, 359.5, 299.5, -0.5),
               interpolation="nearest")
x0, y0, x1, y1 = one.box
axes[0].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="#56B4E9", lw=1.5))
axes[0].scatter(*one.landmarks.T, c="#56B4E9", s=6)
axes[0].set_title("detected", fontsize=9)
for ax, c in zip(axes[1:], again):
    # drawn at 128 px at most, to keep the book small
    step = max(1, len(c) // 128)
    ax.imshow(few_colours(c[::step, ::step]), extent=(-0.5, len(c) - 0.5, len(c) - 0.5, -0.5),
              interpolation="nearest")
    ax.scatter(*template(len(c)).T, c="#D55E00", s=25, marker="+")
    ax.set_title(f"aligned, {len(c)} px", fontsize=9)
for ax in axes:
    ax.axis("off")
plt.show()

# %% [markdown]
# The crosses sit on the eyes and the mouth at every size, although the photo was tilted by 20°. They are not exact: five points of a real face and five means over 70,000 faces are not similar figures, and least squares shares the error out.
#
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | detector | not named | RetinaFace with a ResNet-50, downloaded on first use | MTCNN, weights in the wheel | works offline; any other detector fits the protocol |
# | score from which a face counts | not named | 0.97 | 0.9 | MTCNN's scores are of another scale |
# | size at which is searched | not named | full size | longest side 1600 px | bounded time and memory for large photos |
# | faces at the border | not named | as they are | black rim of a quarter of the shorter side | @fig-faces-border |
# | offset of the points | – | – | one pixel taken off | the library counts from 1; the mirror shows it |
# | transform | FFHQ's alignment, resized to 512 px | similarity by least median of squares | similarity by least squares | one solve, no random sampling; the official form ignores a point that does not fit |
# | template at size $S$ | 512 px only | points times $S/512$ | half-pixel rule, @eq-faces-halfpixel | equal at 512, right elsewhere |
# | shrinking | – | bilinear, no low-pass | low-pass, then cubic | @fig-faces-alias |
# | outside the photo | – | filled with grey | mirrored | no hard edge inside the network's view |
# | boxes of eyes and mouth | not told | from FFHQ's 68 points | from five points; the official file can be used | any folder of faces can be trained on |
# | boxes below 512 px | 512 px only | size ratio cut to the integer 0: empty crops | boxes scale, @eq-faces-boxes | small networks can be trained whole |
# | whose boxes | – | by position in a list that is not sorted | by file name or number | a picture never gets another one's boxes |
# | mirroring | not told | stored boxes edited in place; $512-x$ | new values; $512-x$ | asked twice, the boxes still fit; one pixel beside the exact $511-x$, as there |
# | pictures on the disc | – | PNG or a database of PNGs | PNG without compression by default, any format is read | quicker to read, @fig-degradation-time |
# | chance | – | one generator per worker, seeded alike in each epoch | @eq-faces-draw | the same for any number of workers, and after a restart |
#
# : Deviations in finding, aligning and serving faces {#tbl-faces-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **"No face found."** Profiles, faces below about 15 px, hats and hands. `detect(image, min_score=0.5)` finds some of them; if the cut-out is aligned by hand already, skip detection and hand it to the network.
# - **Restored faces with strange eyes** are often wrongly aligned ones: look at the landmarks before blaming the network.
# - **Faces invented where there are none.** Lower the score and you will restore patterns in a carpet.
# - **Blue faces.** OpenCV's `imread` gives BGR. Everything here is RGB.
# - **Boxes of somebody else.** The official data set takes its pictures in the order in which the disk lists them and looks their boxes up by *position*. On a disk that lists in another order, or in a folder that lacks a few faces, the discriminators of the eyes are shown ears and hair, and no message says so. Here the number in the name decides.
# - **Boxes for your own pictures** are the most asked question on training (GFPGAN #12, #16, #91, #277). The entries of the official file belong to FFHQ's pictures and to no others; `prepare` makes yours.
# :::
#
# ## Summary
#
# - A detector is any function from a picture to a list of `Face`; ours is MTCNN, three small networks, with two repairs, a rim and a shift by one pixel. Its points become vague before it fails.
# - Alignment is a linear least-squares problem in four unknowns. Pixel centres carry the whole numbers, so sizes convert by @eq-faces-halfpixel. Shrinking needs a low-pass.
# - Five points and four measured numbers give boxes of eyes and mouth that overlap the official ones by more than 0.8 in the median.
# - `prepare` turns photos into a folder of aligned faces with a manifest. It survives bad files and can be killed at any moment.
# - `FaceFolder` is a pure function of seed, epoch and index: no number of workers and no restart changes a byte of the training data.
#
# Next: the data are there. @sec-layers begins the network with its smallest parts.
#
# ## Exercises
#
# 1. **Compute.** How many copies does the pyramid have for a photo of 4000 × 3000 px, and for one searched at 1600 × 1200? What share of P-Net's work is in the first copy? And what is the overlap of two equal squares of width $b$ of which one is moved by $t$ to the right?
# 2. **Modify.** Write a `Detector` that calls `detect` on the photo and on its mirror image, and averages the points of faces that are found twice. Does the error in @fig-faces-robust fall? Which faces are found by only one of the two?
# 3. **Break.** Let `mirror_components` edit its argument and let `FaceFolder` keep dictionaries: which check turns red, and why only when an epoch is asked for twice? Then remove the `- 1` in `detect`: by how much does an aligned face of 512 px move when the face in the photo is 40 px wide?
#
# Worked solutions: [nbs/solutions/03_faces.ipynb](solutions/03_faces.ipynb).
#
# ## References
#
# MTCNN is due to @zhang2016mtcnn; the closed form of the best similarity to @umeyama1991. The framing of faces is that of FFHQ [@karras2019stylegan], on which GFP-GAN [@wang2021gfpgan] was trained. On why networks themselves should low-pass before they shrink, see @zhang2019shift.

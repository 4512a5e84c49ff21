# %% [markdown]
# # Faces: find and align {#sec-faces}
#
# > A restorer that has only seen upright faces of one size must be handed upright faces of one size.
#
# **You will build** the way from a photo to the network's input: find the faces and five points in each, turn and scale each face to the framing of FFHQ without aliasing, and convert pixels to tensors and back.
# **Needs** the degradation of @sec-degradation, to measure where the detector fails. **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp faces

# %%
#| export
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np

# %%
from dataclasses import FrozenInstanceError
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail
from numpy.testing import assert_allclose, assert_array_equal
from skimage.transform import estimate_transform

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, show

# %% [markdown]
# @fig-faces-map shows the place of this chapter: it makes the input of the network out of a photo. The way back, from the network's output into the photo, is @sec-photos.

# %%
#| label: fig-faces-map
#| fig-cap: "This chapter cuts the face x out of a photo. Everything to the right sees only such cut-outs."
#| fig-alt: "The method as boxes and arrows; the box of the degraded face is coloured."
draw_map("degradation");


# %% [markdown]
# ## What a detector owes us
#
# GFP-GAN is trained on FFHQ [@karras2019stylegan], where every face is upright, has one size and looks at almost the same spot of the picture. The prior has never drawn a tilted face, and the U-Net has never seen one.
# So before anything is restored, somebody must say where the faces are, how large, and how turned. A box alone cannot tell the turn. Five points can: the two eyes, the tip of the nose, and the two corners of the mouth.
#
# Detectors come and go, so the package fixes only what it needs from one. A *protocol* in Python's sense is enough: anything that can be called with a picture and returns a list of `Face` is a detector, with no class to inherit from.

# %%
#| export
@dataclass(frozen=True)
class Face:
    "A face found in a picture, in pixels whose centres are at whole numbers: box (x0, y0, x1, y1), score in [0, 1], landmarks (5, 2)."

    box: tuple
    score: float
    landmarks: np.ndarray        # x, y of left eye, right eye, nose, left and right corner of the mouth; left = left in the picture


class Detector(Protocol):
    "Anything that finds faces: uint8 H×W×3 RGB -> list of `Face`, the largest first."

    def __call__(self, image: np.ndarray) -> list[Face]: ...


# %%
here = Face((10.0, 10.0, 50.0, 60.0), 1.0, np.zeros((5, 2)))
by_hand: Detector = lambda image: [here]                    # a detector for a photo whose face is known
assert by_hand(np.zeros((80, 80, 3), np.uint8)) == [here]
test_fail(lambda: setattr(here, "score", 0.5), exc=FrozenInstanceError)


# %% [markdown]
# ## Three small networks, coarse to fine
#
# Our detector is MTCNN [@zhang2016mtcnn], a cascade of three small networks that looks at few places closely instead of at all places a little.
#
# 1. **P-Net** is fully convolutional and judges every 12 × 12 window of the picture. Faces are not 12 px wide, so it runs on a pyramid of smaller and smaller copies, and a window of a small copy is a large window of the photo.
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
        warnings.simplefilter("ignore")                                     # on import it asks for notebook widgets
        from facenet_pytorch import MTCNN                                   # the weights are inside the wheel
    return MTCNN(keep_all=True, device="cpu", min_face_size=20)


# %% [markdown]
# To see the cascade work, a hook on each network records what goes in. The number of copies must be that of @eq-faces-pyramid, and the crowd must thin out from stage to stage.

# %%
torch.set_num_threads(1)                                     # small nets: quickest, and the same sums on every machine
photo, net, seen = astronaut(), _mtcnn(), {"pnet": [], "rnet": [], "onet": []}
hooks = [getattr(net, name).register_forward_hook(lambda m, i, o, kept=kept: kept.append((i[0], o))) for name, kept in seen.items()]
boxes, scores, points = net.detect(photo, landmarks=True)
for h in hooks:
    h.remove()

copies = 1 + int(np.log(12 / (512 * 12 / 20)) / np.log(0.709))     # the last i with 512 s_i >= 12, counted from 0
assert len(seen["pnet"]) == copies
windows = [sum((o[1][0, 1] >= 0.6).sum().item() for _, o in seen["pnet"]), *(sum(len(i) for i, _ in seen[k]) for k in ("rnet", "onet")), len(boxes)]
print(f"{copies} copies of the photo; windows after P-Net {windows[0]}, merged for R-Net {windows[1]}, for O-Net {windows[2]}, faces {windows[3]}")
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
windows, verdicts = torch.cat([i for i, _ in seen["rnet"]]), torch.cat([o[1][:, 1] for _, o in seen["rnet"]])
order = verdicts.argsort(descending=True)[[0, 8, 16, 24, 60, 120]]
for k, (window, verdict) in enumerate(zip(windows[order], verdicts[order])):
    axes[str(k)].imshow((window / 2 + 0.5).clip(0, 1).permute(1, 2, 0))
    axes[str(k)].set_title(f"{verdict:.2f}", fontsize=9)
for ax in axes.values():
    ax.axis("off")
plt.show()


# %% [markdown]
# In @fig-faces-cascade the fine copies answer at many small spots that look a little like a face; in the copy where the astronaut's face is about 12 px wide it becomes one bright spot. R-Net turns down most of the clothes and the background, but a fold of the orange suit still gets 0.90 from it. O-Net, with four times the pixels, is not fooled, and one face remains.
#
# ## Using it safely: rim, offset, large photos
#
# Three things stand between the raw detector and a result we can build on. Each was found by measuring, and each is checked below.
#
# - **Faces at the border.** When a window reaches over the edge of the photo, the library cuts it off and stretches the rest to 48 × 48 px. The points of a stretched face come out in the wrong places. A black rim around the photo lets the window stay whole.
# - **A pixel too far.** The library counts pixels from 1 and starts its windows at whole pixels. Its points lie one pixel to the right of and below the truth, at every size of face.
# - **Large photos.** P-Net's cost grows with the number of pixels. Photos above `longest` are searched in a smaller copy, and the coordinates mapped back.

# %%
#| export
def detect(image, min_score=0.9, longest=1600):
    """Faces in uint8 H×W×3 RGB, the largest first, by MTCNN: three small networks, coarse to fine.

    Pictures whose longer side exceeds `longest` px are searched in a smaller copy and the coordinates mapped back. Empty list: none.
    """
    if not (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"detect needs uint8 H×W×3, got {image.dtype} {image.shape}")
    h, w = image.shape[:2]
    k = min(1.0, longest / max(h, w))
    small = image if k == 1 else cv2.resize(image, (max(1, round(w * k)), max(1, round(h * k))), interpolation=cv2.INTER_AREA)
    if min(small.shape[:2]) < 24:                                           # smaller than any face that could be restored
        return []
    rim = min(small.shape[:2]) // 4                                         # black, so that windows may reach over the border
    boxes, scores, points = _mtcnn().detect(cv2.copyMakeBorder(small, rim, rim, rim, rim, cv2.BORDER_CONSTANT), landmarks=True)
    if boxes is None:
        return []
    scale = np.array([w / small.shape[1], h / small.shape[0]])
    faces = []
    for box, score, five in zip(boxes, scores, points):
        if score is not None and score >= min_score:
            corners = (np.asarray(box, float).reshape(2, 2) - rim + 0.5) * scale - 0.5
            five = (np.asarray(five, float) - rim - 1 + 0.5) * scale - 0.5  # - 1: the library's points lie one pixel too far right and down
            faces.append(Face(tuple(float(v) for v in corners.ravel()), float(score), five))
    return sorted(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]), reverse=True)


# %% [markdown]
# A photo whose pixels are each repeated 4 × 4 times and which is then searched at its old size gives the detector the very same picture. So its points must be the old ones under the map $p\mapsto 4(p+\frac12)-\frac12$, which a later section derives, with no tolerance to speak of.
# Enlarged smoothly and searched at another size, the points may move by the detector's own noise, but not more.

# %%
face = detect(photo)[0]
fourfold = lambda p: 4 * (p + 0.5) - 0.5
assert_allclose(detect(photo.repeat(4, 0).repeat(4, 1), longest=512)[0].landmarks, fourfold(face.landmarks), atol=1e-4)
large = cv2.resize(photo, (2048, 2048), interpolation=cv2.INTER_CUBIC)
moved = np.abs(detect(large, longest=1024)[0].landmarks - fourfold(face.landmarks)) / 4
eyes = float(np.hypot(*(face.landmarks[1] - face.landmarks[0])))
print(f"searched at twice the size the points move by {moved.mean():.2f} px on average; the eyes are {eyes:.0f} px apart")
assert moved.mean() < 0.03 * eyes and moved.max() < 0.08 * eyes
assert detect(np.zeros((200, 200, 3), np.uint8)) == [] == detect(photo[:23])
test_fail(lambda: detect(photo / 255), exc=ValueError, contains="uint8")


# %% [markdown]
# The offset shows in a mirror. If the points of a picture $w$ pixels wide are right, then those of its mirror image are $x'=w-1-x$, so $x+x'$ must be $w-1$ on average. A constant offset of $b$ pixels makes it $w-1+2b$, whatever the size of the face; a network that errs in proportion to the face would show otherwise.

# %%
def mirror_offset(width, n=6, seed=0):
    "Mean of (x + x' - (w - 1)) / 2 over the five points of `n` shifted crops, the photo scaled so that the face is about `width` px wide."
    rng, k = np.random.default_rng(seed), width / 87
    scaled, offsets = cv2.resize(photo, None, fx=k, fy=k, interpolation=cv2.INTER_AREA if k < 1 else cv2.INTER_CUBIC), []
    for dx, dy in rng.integers(0, 8, (n, 2)):
        crop = scaled[dy + int(20 * k):int(240 * k), dx + int(100 * k):int(350 * k)]
        a, b = (detect(c)[0].landmarks[:, 0] for c in (crop, np.ascontiguousarray(crop[:, ::-1])))
        offsets.append(((a + b[[1, 0, 2, 4, 3]]) - (crop.shape[1] - 1)).mean() / 2)      # left and right change names in a mirror
    return np.mean(offsets)


offsets = {width: mirror_offset(width) for width in (40, 80, 160)}
for width, v in offsets.items():
    print(f"face {width:3} px wide: points {abs(v):.1f} px off sideways, {abs(v + 1):.1f} px as the library counts")
assert all(abs(v) < 0.35 for v in offsets.values())                                      # without the correction: 1


# %% [markdown]
# For the rim, cut the photo ever further into the face and compare the points with those of the whole photo.

# %%
def border_error(cut, rim):
    "Mean error of the points, in eye distances, when the photo begins `cut` px inside the box of the face. nan: no face."
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
print(f"cut by 12 px: error {with_rim[cuts == 12].item():.2f} eye distances with the rim, {without[cuts == 12].item():.2f} without")
assert with_rim[cuts <= 12].max() < 0.05 and without[cuts == 12] > 0.1

# %%
#| label: fig-faces-border
#| fig-cap: "A face that the edge of the photo cuts. Left: the points found with the black rim (blue) and without (orange, crosses). Right: their error against how much of the face's box is cut off."
#| fig-alt: "A portrait cut at its left edge with two sets of five points, and a line chart in which the error without a rim rises steeply."
x0 = round(face.box[0]) + 16
cut = np.ascontiguousarray(photo[40:200, x0:x0 + 120])
fig, (ax, chart) = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained", width_ratios=(1, 1.8))
ax.imshow(cut, interpolation="nearest")
ax.scatter(*detect(cut)[0].landmarks.T, c="#56B4E9", s=22)
ax.scatter(*net.detect(cut, landmarks=True)[2][0].T - 1, c="#D55E00", s=30, marker="x")
ax.axis("off")
chart.plot(100 * cuts / 87, without, "x-", c="#D55E00", label="as the library does it")
chart.plot(100 * cuts / 87, with_rim, "o-", c="#0072B2", label="with a black rim")
chart.set(xlabel="share of the box cut off, %", ylabel="error, eye distances")
chart.legend(frameon=False);


# %% [markdown]
# @fig-faces-border shows that without the rim the error grows before the face is even cut: the detector's windows are wider than the box, and they touch the border first. With the rim the points stay put until a part of the face that matters is gone.
#
# ## How much damage it survives
#
# A restorer is for bad photos, and a face that is not found is not restored. So the detector's own limit is a limit of the whole method. It is easy to measure: damage the photo more and more, with several draws of the noise, and count.
# The damage $d$ here is one number for all parts of @eq-degradation: a blur of $\sigma=0.6\,d$ px, shrinking by $r=d$, noise of $\delta=10$, JPEG at quality 60.

# %%
def damaged(d, seed):
    "The head of the astronaut, shifted a little, with damage d."
    dx, dy = np.random.default_rng(seed).integers(0, 16, 2)
    crop = np.ascontiguousarray(photo[10 + dy:240 + dy, 100 + dx:340 + dx])
    return degrade(crop, DegradationParams(0.6 * d, 0.6 * d, r=d, delta=10, q=60, noise_seed=seed)), (100 + dx, 10 + dy)


damages, draws = (1, 2, 4, 6, 8, 10, 12, 16), 5
found = np.full((len(damages), draws), np.nan)
for i, d in enumerate(damages):
    for j in range(draws):
        crop, corner = damaged(d, j)
        if faces := detect(crop):
            found[i, j] = np.abs(faces[0].landmarks + corner - face.landmarks).mean() / eyes
rate = np.mean(~np.isnan(found), axis=1)
for d, r, e in zip(damages, rate, found):
    print(f"d = {d:2}: face {87 / d:4.1f} px wide, found in {int(r * draws)} of {draws}" + (f", error of the points {np.nanmean(e):.2f} eye distances" if r else ""))
assert rate[0] == 1 and rate[-1] == 0 and np.nanmean(found[0]) < 0.05

# %%
#| label: fig-faces-robust
#| fig-cap: "The same face under growing damage, one draw each, with the points that were found. Below: the share of draws in which the face was found, and the error of the points where it was."
#| fig-alt: "Six pictures of a face, from clear to a few blocks of colour; below them a falling line of the detection rate and a rising line of the error."
fig = plt.figure(figsize=(7, 4.1), layout="constrained")
top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.4))
for ax, d in zip(top.subplots(1, 6), (1, 4, 6, 8, 10, 16)):
    crop, _ = damaged(d, 0)
    ax.imshow(crop[50:170, 70:190], interpolation="nearest")
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
# In @fig-faces-robust the detector is sure of the face down to a width of about 15 px and loses it at about 10. The second plot matters as much: long before the face is lost its points become vague, and a face that is aligned wrongly is restored wrongly.
# A tenth of the eye distance is about 13 px in the 512 px picture that the network sees. Detectors trained on hard photos, such as the RetinaFace network of the official code, reach further; the protocol above is where one would be plugged in.
#
# ## Which rotation, scale and shift
#
# The five points of a photo must land on five given places. A similarity (rotation by $\varphi$, scale $s$, shift) has four unknowns and five points give ten equations, so the best we can ask for is the smallest squared error. Written with $a=s\cos\varphi$ and $b=s\sin\varphi$ the map is *linear* in its unknowns:
#
# $$\min_{a,b,t_x,t_y}\ \sum_{k=1}^{5}\left\lVert\begin{pmatrix}a&-b\\b&a\end{pmatrix}\begin{pmatrix}x_k\\y_k\end{pmatrix}+\begin{pmatrix}t_x\\t_y\end{pmatrix}-\begin{pmatrix}u_k\\v_k\end{pmatrix}\right\rVert^2$$ {#eq-similarity}
#
# Here $(x_k,y_k)$ are the points in the photo, $(u_k,v_k)$ the places they should take, and $(t_x,t_y)$ is the shift. No iteration and no singular value decomposition of a covariance is needed: ten rows, four columns, one least-squares solve. A mirror image is not of this form, so a face can never come out flipped.

# %%
#| export
def similarity(src, dst):
    """The rotation, scale and shift that bring points `src` closest to `dst`, both (n, 2), by least squares (@eq-similarity) -> 2×3 matrix.

    A similarity is [[a, -b, t_x], [b, a, t_y]]: linear in its four unknowns, so one least-squares solve is exact.
    """
    src, dst = np.asarray(src, float), np.asarray(dst, float)
    if src.shape != dst.shape or src.ndim != 2 or src.shape[1] != 2 or len(src) < 2 or not np.isfinite([src, dst]).all():
        raise ValueError(f"similarity needs two equal (n, 2) arrays of finite numbers with n >= 2, got {src.shape} and {dst.shape}")
    x, y, one, zero = src[:, 0], src[:, 1], np.ones(len(src)), np.zeros(len(src))
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    (a, b, tx, ty), _, rank, _ = np.linalg.lstsq(rows, np.concatenate([dst[:, 0], dst[:, 1]]), rcond=None)
    if rank < 4 or a * a + b * b < 1e-12:
        raise ValueError("the points coincide: no similarity maps them")
    return np.array([[a, -b, tx], [b, a, ty]])


def invert(matrix):
    "The inverse of a 2×3 affine matrix, 2×3."
    a = np.linalg.inv(matrix[:, :2])
    return np.concatenate([a, -a @ matrix[:, 2:]], axis=1)


# %% [markdown]
# Three independent checks. Umeyama's closed form [@umeyama1991] as scikit-image has it solves the same problem by another road. So do complex numbers: a similarity of the plane is $w=\alpha z+\beta$, and the best $\alpha$ is a quotient of two sums.
# And a property: turning and scaling the photo first must not change where the points land, so the answer must be the old one composed with the inverse of that turn.

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
    turned = np.array([[0.3, -1.2, 50], [1.2, 0.3, -7]])
    assert_allclose(apply(similarity(apply(turned, src), dst), apply(turned, src)), apply(m, src), atol=1e-6)
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
# and not $p_S=p_{512}\,S/512$, which differs from it by $\frac12(1-S/512)$. For a network that sees 128 px this is a constant shift of three eighths of a pixel between the faces it was trained on and those it is handed.
# The places where the five points go are the mean positions over FFHQ that the official code uses; at another size they follow @eq-faces-halfpixel.

# %%
#| export
# Where FFHQ alignment puts the five points at 512 px (means over FFHQ, as used with the official weights).
FFHQ_512 = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]])


def template(size=512):
    "The five target points (5, 2) for an aligned face of `size` px (@eq-faces-halfpixel)."
    return (FFHQ_512 + 0.5) * size / 512 - 0.5


# %% [markdown]
# Pixels decide who is right. Draw a soft dot at each of the five places in a 512 px picture, shrink the picture by averaging blocks, and ask where the dots' centres of mass are now.

# %%
def centre_of_mass(picture):
    y, x = np.mgrid[:picture.shape[0], :picture.shape[1]]
    return np.array([(picture * x).sum(), (picture * y).sum()]) / picture.sum()


y, x = np.mgrid[:512, :512]
dots = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / 200) for u, v in FFHQ_512]
for size in (256, 128, 64):
    block = 512 // size
    measured = np.array([centre_of_mass(d.reshape(size, block, size, block).mean((1, 3))) for d in dots])
    naive = np.abs(measured - FFHQ_512 * size / 512).mean()
    print(f"{size:3} px: our template is off by {np.abs(measured - template(size)).max():.3f} px, plain scaling by {naive:.3f}")
    assert_allclose(measured, template(size), atol=0.002)
    assert_allclose(naive, 0.5 * (1 - size / 512), atol=0.002)
assert round(0.1 * np.hypot(*(FFHQ_512[1] - FFHQ_512[0]))) == 13           # a tenth of the eye distance, in pixels of the 512 px picture


# %% [markdown]
# ## Cut, but not with scissors
#
# With the matrix in hand, the aligned face is a resampling: for each of its pixels, look up the place in the photo and interpolate. That is right as long as the photo has no more pixels per face than the result. When a face 600 px wide becomes one of 64, interpolation reads a few photo pixels for each result pixel and skips the rest.
# Detail that is finer than the new pixels does not vanish then; it comes back as false coarse patterns. This is aliasing, and the network would try to restore it.
#
# The remedy is to blur first. If we think of a pixel as a Gaussian of $\frac12$ px, a pixel of the result, seen in the photo, should have a width of $\frac12\cdot\frac1s$ for a map of scale $s<1$. Widths of successive blurs add as squares, so the blur that is missing has
#
# $$\sigma=\tfrac12\sqrt{\frac1{s^2}-1}$$ {#eq-faces-lowpass}
#
# photo pixels, and none for $s\ge1$. Only the part of the photo that the crop looks at is blurred: `footprint` finds it, and `_mirror` fills what lies over the edge with a mirror image.

# %%
#| export
def footprint(matrix, size, margin=0):
    "The photo pixels under an aligned crop, `margin` more on each side: x0, y0, x1, y1, half open, not clipped to the photo."
    back, ends = invert(matrix), (-0.5, size - 0.5)
    corners = np.array([[x, y] for x in ends for y in ends]) @ back[:, :2].T + back[:, 2]
    return *(int(v) for v in np.floor(corners.min(0)) - margin), *(int(v) for v in np.ceil(corners.max(0)) + 1 + margin)


def _mirror(i, n):
    "Indices i into range(n), mirrored at its ends: -1 is 1, n is n - 2."
    i = np.abs(i) % max(2 * n - 2, 1)
    return np.minimum(i, 2 * n - 2 - i)


def align(image, landmarks, size=512):
    """Turn, scale and cut so that the five landmarks fall on `template(size)` -> (uint8 size×size×3, 2×3 matrix photo -> crop).

    A face larger than `size` is low-passed first, so that shrinking does not alias; outside the photo the edge is mirrored.
    """
    matrix = similarity(landmarks, template(size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    sigma = 0.5 * np.sqrt(max(1 / scale**2 - 1, 0))                         # @eq-faces-lowpass
    x0, y0, x1, y1 = footprint(matrix, size, margin=int(4 * sigma) + 3)
    part = image[np.ix_(_mirror(np.arange(y0, y1), image.shape[0]), _mirror(np.arange(x0, x1), image.shape[1]))]
    if sigma > 0:
        part = cv2.GaussianBlur(part, (0, 0), sigma + 1e-6)
    local = np.concatenate([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ [[x0], [y0]]], axis=1)
    return cv2.warpAffine(part, local, (size, size), flags=cv2.INTER_CUBIC), matrix


# %% [markdown]
# Four checks. The points land on the template as closely as @eq-similarity allows: the sum of errors must be that of the fit. A plain colour stays that colour. Cutting out the part first changes nothing against blurring and warping the whole photo. And a photo that was turned by 25° and enlarged gives the same face, because the turn is undone.

# %%
crop, matrix = align(photo, face.landmarks, 256)
residual = np.abs(apply(matrix, face.landmarks) - template(256)).mean()
refit = similarity(apply(matrix, face.landmarks), template(256))
assert_allclose(refit, [[1, 0, 0], [0, 1, 0]], atol=1e-6)                   # nothing is left to gain
assert (align(np.full((90, 120, 3), 77, np.uint8), face.landmarks - 100, 64)[0] == 77).all()

assert_array_equal(_mirror(np.arange(-3, 8), 4), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1])
for size, shift in ((32, 0), (64, 150), (64, -200), (300, 0)):              # shifted: the crop looks over an edge of the photo
    landmarks = face.landmarks + shift
    m = similarity(landmarks, template(size))
    sigma = 0.5 * np.sqrt(max(1 / np.linalg.det(m[:, :2]) - 1, 0))
    whole = cv2.GaussianBlur(photo, (0, 0), sigma + 1e-6) if sigma else photo
    whole = cv2.warpAffine(whole, m, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    off = np.abs(align(photo, landmarks, size)[0].astype(int) - whole)
    assert off.mean() < 0.01 and off.max() <= 12, (size, shift, off.mean(), off.max())

turn = cv2.getRotationMatrix2D((225, 110), 25, 1.3) + np.array([[0, 0, 200], [0, 0, 200]])
turned = cv2.warpAffine(photo, turn, (900, 900), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
change = np.abs(align(turned, apply(turn, face.landmarks), 256)[0].astype(int) - crop).mean()
shift = np.abs(align(turned, apply(turn, face.landmarks) + 2, 256)[0].astype(int) - crop).mean()
print(f"points {residual:.1f} px from the template; turned by 25°: {change:.1f} grey levels of change, with the points 2 px off: {shift:.1f}")
assert change < 2 < shift

# %% [markdown]
# For aliasing the hardest picture is a set of stripes finer than the result can show. The honest answer is an even grey, so whatever contrast is left is false.

# %%
stripes = np.where((np.arange(1000) // 3) % 2, 255, 0).astype(np.uint8)[None, :, None].repeat(1000, 0).repeat(3, 2)    # 6 px a period
c, d = np.cos(0.1), np.sin(0.1)
points = (template(700) - 350) @ np.array([[c, d], [-d, c]]) + 500                                                    # a face of 700 px, turned by 0.1
m = similarity(points, template(64))                                                                                  # scale 1:11
bare = cv2.warpAffine(stripes, m, (64, 64), flags=cv2.INTER_CUBIC)
ours = align(stripes, points, 64)[0]
false = [p.astype(float).std() for p in (bare, ours)]
print(f"scale 1:{1 / np.hypot(*m[:, 0]):.1f}; contrast of the false pattern: {false[0]:.0f} grey levels without the blur, {false[1]:.1f} with it")
assert false[1] < 3 < 50 < false[0]

# %%
#| label: fig-faces-alias
#| fig-cap: "Fine stripes shrunk eleven times. Interpolation alone invents coarse stripes that are not there; low-passed first, the result is the even grey it should be. Right: the astronaut at 32 px, without and with the blur."
#| fig-alt: "Stripes, false wavy stripes, an even grey square, a jagged small face and a smooth small face."
small = [cv2.warpAffine(large, similarity(fourfold(face.landmarks), template(32)), (32, 32), flags=cv2.INTER_CUBIC), align(large, fourfold(face.landmarks), 32)[0]]
show([stripes[:90, :90], bare, ours, *small], ["stripes (a part)", "interpolated", "blurred first", "interpolated", "blurred first"], height=1.45);


# %% [markdown]
# The middle pictures of @fig-faces-alias have the same input. Only the blur tells them apart. On the face the difference is milder, but the jagged edges on the left one are just the sort of damage a restorer is tempted to explain as a wrinkle.
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
        raise ValueError(f"to_tensor needs uint8 (n, h, w, 3) or (h, w, 3), got {a.dtype} {a.shape}")
    return torch.from_numpy(a[None] if a.ndim == 3 else a).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(x):
    "float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3), clipped and rounded."
    return x.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


# %%
every = np.arange(256, dtype=np.uint8).reshape(16, 16)
every = np.stack([every, every.T, 255 - every], 2)                          # all values in each channel, the channels different
x = to_tensor(every)
assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
assert_array_equal(to_images(x)[0], every)                                  # exact for all 256 values
assert x[0, 1, 2, 3] == every[2, 3, 1] / 127.5 - 1                          # one element, by hand
assert_array_equal(to_images(torch.full((1, 3, 1, 1), 1.3))[0, 0, 0], [255] * 3)
assert_array_equal(to_images(x.double() + 0.9 / 255)[0], every)             # noise below half a grey level is rounded away
x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
exact = 127.5 * (x + 1)
assert abs(to_images(x).mean() - exact.mean()) < 0.02 and exact.floor().mean() - exact.mean() < -0.48     # rounded, cut off
test_fail(lambda: to_tensor(every / 255), exc=ValueError, contains="uint8")

# %% [markdown]
# ## Put together
#
# The whole chapter on one photo that is tilted and damaged: detect, align at the sizes of three networks, and back to pictures through tensors. @fig-faces-together shows the result, with the template's five places drawn in.

# %%
tilted = cv2.warpAffine(photo, cv2.getRotationMatrix2D((225, 130), -20, 1.0), (512, 512), borderMode=cv2.BORDER_REFLECT_101)[:300, 60:420]
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
axes[0].imshow(tilted[::2, ::2], extent=(-0.5, 359.5, 299.5, -0.5), interpolation="nearest")
axes[0].add_patch(plt.Rectangle(one.box[:2], one.box[2] - one.box[0], one.box[3] - one.box[1], fill=False, ec="#56B4E9", lw=1.5))
axes[0].scatter(*one.landmarks.T, c="#56B4E9", s=6)
axes[0].set_title("detected", fontsize=9)
for ax, c in zip(axes[1:], again):
    step = max(1, len(c) // 128)                                            # drawn at 128 px at most, to keep the book small
    ax.imshow(c[::step, ::step], extent=(-0.5, len(c) - 0.5, len(c) - 0.5, -0.5), interpolation="nearest")
    ax.scatter(*template(len(c)).T, c="#D55E00", s=25, marker="+")
    ax.set_title(f"aligned, {len(c)} px", fontsize=9)
for ax in axes:
    ax.axis("off")
plt.show()

# %% [markdown]
# The crosses sit on the eyes and the mouth at every size, although the photo was tilted by 20°. They are not exact: five points of a real face and five means over 70,000 faces do not fit on one another by a similarity, and least squares shares the error out.
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
#
# : Deviations in finding and aligning {#tbl-faces-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **"No face found."** Profiles, faces below about 15 px, hats and hands. `detect(image, min_score=0.5)` finds some of them; if the cut-out is aligned by hand already, skip detection and hand it to the network.
# - **Restored faces with strange eyes** are often wrongly aligned ones: look at the landmarks before blaming the network.
# - **Faces invented where there are none.** Lower the score and you will restore patterns in a carpet.
# - **Blue faces.** OpenCV's `imread` gives BGR. Everything here is RGB.
# :::
#
# ## Summary
#
# - A detector is any function from a picture to a list of `Face`; ours is MTCNN, three networks of half a million weights together, run on a pyramid of copies.
# - Measured on one face, it is sure down to a width of about 15 px, and its points become vague before it fails.
# - The library's points needed two repairs, a rim and a shift by one pixel; a cut photo and a mirror showed them.
# - Alignment is a linear least-squares problem in four unknowns. Pixel centres, not pixel corners, carry the whole numbers, so sizes convert by @eq-faces-halfpixel.
# - Shrinking needs a low-pass, and bytes become numbers in $[-1,1]$ and come back exactly.
#
# ## Exercises
#
# 1. **Compute.** How many copies does the pyramid have for a photo of 4000 × 3000 px, and for one searched at 1600 × 1200? What share of P-Net's work is in the first copy?
# 2. **Modify.** Write a `Detector` that calls `detect` on the photo and on its mirror image, and averages the points of faces that are found twice. Does the error in @fig-faces-robust fall? Which faces are found by only one of the two?
# 3. **Break.** Replace `template` by plain scaling and run the cell with the dots. Then remove the `- 1` in `detect`: which check turns red, and by how much does an aligned face of 512 px move when the face in the photo is 40 px wide?
#
# ## References
#
# MTCNN is due to @zhang2016mtcnn; the closed form of the best similarity to @umeyama1991. The framing of faces is that of FFHQ [@karras2019stylegan], on which GFP-GAN [@wang2021gfpgan] was trained. On why networks themselves should low-pass before they shrink, see @zhang2019shift.

# %% [markdown]
# # Restoring a photo {#sec-photos}
#
# > The network repairs a square of 128 or 512 pixels; people have photos.
#
# **You will build** the way from a file to a restored file: read any picture, find and align its faces, restore each, look them up from the photo's side, and blend them in without a seam. **Needs** alignment (@sec-faces), the damage of @sec-degradation,
# and weights (@sec-weights). **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp photos

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gfpgan_edu.faces import align, detect, footprint, invert, to_images, to_tensor
from gfpgan_edu.pictures import PhotoError, read_image, to_rgb

# %%
import io
import tempfile
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, show
from gfpgan_edu.faces import similarity, template
from gfpgan_edu.pictures import write_image
from gfpgan_edu.weights import load_weights

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
torch.set_num_threads(1)                                                    # the same sums on every machine
damage = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
damaged = degrade(photo, damage)
net = load_weights("bundled")
face, = detect(damaged)
size = net.config.size
crop, matrix = align(damaged, face.landmarks, size)
with torch.inference_mode():
    restored = to_images(net(to_tensor(crop))[0])[0]
scale = np.hypot(*matrix[:, 0])
print(f"a model of {size} px; one pixel of the photo becomes {scale:.2f} pixels of the aligned face")
assert restored.shape == crop.shape == (size, size, 3)

# %%
#| label: fig-photos-steps
#| fig-cap: "The steps on one face: the damaged photo with the detected points, the aligned face, the restored face, and the restored face seen from the photo's side."
#| fig-alt: "A damaged portrait with five dots, an upright blurred face, a cleaner face, and that face small and slightly turned on an empty ground."
seen = cv2.warpAffine(restored, invert(matrix), (512, 512), flags=cv2.INTER_CUBIC, borderValue=(255, 255, 255))
fig, axes = plt.subplots(1, 4, figsize=(5.8, 1.6), layout="constrained")
for ax, p, title in zip(axes, (damaged[20:200:2, 135:315:2], crop, restored, seen[20:200:2, 135:315:2]), ("detected", f"aligned, {size} px", "restored", "seen from the photo")):
    ax.imshow(p, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.axis("off")
axes[0].scatter(*(face.landmarks - (135, 20)).T / 2, c="#56B4E9", s=6);


# %% [markdown]
# @fig-photos-steps also shows what the network never saw: everything outside its square. That part of the photo must stay exactly as it is.
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
    return cv2.warpAffine(crop.astype(np.float32), invert(matrix), (512, 512), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def error_inside(seen, matrix, truth=photo):
    "Mean absolute error in grey levels where the face covers the photo, its outer tenth left out."
    square = np.zeros((crop256.shape[0],) * 2, np.float32)
    square[26:-26, 26:-26] = 1
    return np.abs(np.clip(seen, 0, 255) - truth)[look_up(square, matrix, cv2.INTER_NEAREST) > 0].mean()


face, = detect(photo)                                                       # from here on the face of the undamaged photo
crop256, m256 = align(photo, face.landmarks, 256)
ways = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
errors = {name: error_inside(look_up(crop256, m256, flags), m256) for name, flags in ways.items()}
print("a network that changes nothing, 256 px, mean error in grey levels: " + ", ".join(f"{k} {v:.2f}" for k, v in errors.items()))
assert errors["cubic"] < errors["linear"] < errors["nearest"] and errors["cubic"] < 1

y, x = np.mgrid[:512, :512]                                                 # an independent look-up: scipy, straight from A p + t
at = m256[:, :2] @ np.stack([x.ravel(), y.ravel()]) + m256[:, 2:]
linear = np.stack([ndimage.map_coordinates(crop256[..., c].astype(float), at[::-1], order=1, mode="nearest").reshape(512, 512) for c in range(3)], 2)
off = np.abs(linear - look_up(crop256, m256, cv2.INTER_LINEAR))
print(f"against scipy's linear interpolation: {off.mean():.3f} grey levels on average")
assert off.mean() < 0.1                                                     # some versions of OpenCV round positions to 1/32 px


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
tests = [look_up(crop256, m256, f) for f in (cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_NEAREST)] + [look_up(crop256, half_a_pixel_off(m256))]
maps = [np.abs(np.clip(t, 0, 255) - photo).mean(2)[window] * 8 for t in tests]
show([photo[window], *maps], ["photo", "cubic", "linear", "nearest", "cubic, ½ px off"], vmin=0, vmax=255, height=1.2);

# %% [markdown]
# In @fig-photos-halfpixel cubic interpolation leaves almost nothing. The shifted face shows every outline of the photo: the error of an edge that is in the wrong place. A viewer sees it as doubled contours where the blend sets in.
#
# ## When the restored face has more detail than the photo
#
# The test above is too kind in one point. A network that changes nothing returns a face that has no more detail than the photo. A real restorer returns 512 sharp pixels for a face that has perhaps 60 in the photo. Now one sample per photo pixel skips most of them: the aliasing of @eq-faces-lowpass, on the way back.
#
# Test it with a *perfect* restorer. Shrink the astronaut three times by averaging; that is the photo. The perfect restorer returns the face from the original. Put back into the small photo it should give that photo again, because the photo *is* the average of the original.

# %%
truth = photo[:510, :510]
tiny = truth.reshape(170, 3, 170, 3, 3).mean((1, 3))                        # each pixel the mean of 3 × 3
points = (face.landmarks + 0.5) / 3 - 0.5
perfect, _ = align(photo, face.landmarks, 256)
m_tiny = similarity(points, template(256))
one_sample = cv2.warpAffine(perfect.astype(np.float32), invert(m_tiny), (170, 170), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
print(f"{np.hypot(*m_tiny[:, 0]):.1f} pixels of the aligned face for one of the photo")


# %% [markdown]
# `unalign` does what a camera does: it averages. It looks the face up on a grid that is $n$ times finer, with $n$ the scale of the alignment rounded to a whole number, and takes the mean of each $n\times n$ block. By the half-pixel rule the photo's point $p$ lies at $n\,(p-p_0+\frac12)-\frac12$ of a fine grid that begins at the pixel $p_0$.

# %%
#| export
def unalign(crop, matrix, box, flags=cv2.INTER_CUBIC):
    """The inverse of `align`: an aligned picture (S, S, c) as seen from the photo's pixels `box` = (x0, y0, x1, y1) -> float32.

    Where S exceeds the photo's own resolution, n × n samples are averaged for each pixel, so that the crop's detail does not alias.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    n = max(1, round(float(np.hypot(matrix[0, 0], matrix[1, 0]))))
    fine = n * invert(matrix)
    fine[:, 2] += n * (0.5 - np.array([x0, y0])) - 0.5                      # pixel p of the photo is n (p - p0 + 1/2) - 1/2 of the fine grid
    out = cv2.warpAffine(crop.astype(np.float32), fine, (n * (x1 - x0), n * (y1 - y0)), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out if n == 1 else cv2.resize(out, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)


# %%
averaged = unalign(perfect, m_tiny, (0, 0, 170, 170))
inside = unalign(np.pad(np.ones((204, 204)), 26), m_tiny, (0, 0, 170, 170)) > 0.99
lost = [np.abs(p - tiny)[inside].mean() for p in (one_sample, averaged)]
print(f"a perfect restorer, put back: {lost[0]:.1f} grey levels of error with one sample a pixel, {lost[1]:.1f} with the average")
assert lost[1] < 1 and lost[0] > 5 * lost[1]

n = round(np.hypot(*m256[:, 0]))                                            # the price: a network that changes nothing loses a little more
price = error_inside(unalign(crop256, m256, (0, 0, 512, 512)), m256)
print(f"a network that changes nothing, 256 px: {price:.1f} with the average over {n} × {n}, {errors['cubic']:.1f} without")
assert price < 2.5
part = unalign(crop256, m256, (150, 40, 290, 200))                          # a rectangle is the same as the whole, cut
assert_allclose(part, unalign(crop256, m256, (0, 0, 512, 512))[40:200, 150:290], atol=6)
assert np.abs(part - unalign(crop256, m256, (0, 0, 512, 512))[40:200, 150:290]).mean() < 0.1

# %%
#| label: fig-photos-average
#| fig-cap: "A perfect restorer's face put back into a photo of 170 px: the photo it should give, one sample a pixel, and the average."
#| fig-alt: "Three small pictures of a face; the middle one has jagged edges and bright speckles, the right one equals the left one."
view = np.s_[8:62, 46:100]
show([np.clip(p, 0, 255).astype(np.uint8)[view] for p in (tiny, one_sample, averaged)], ["the photo", "one sample a pixel", "averaged"], height=2.1);


# %% [markdown]
# The middle picture of @fig-photos-average is jagged and too contrasty: a good network, spoilt by the last step. Averaging costs a network that changes nothing about one grey level, and saves a good one several.
#
# ## A mask, and why its slope matters
#
# The restored square must not end at an edge. The network may have changed the brightness a little, and hair that leaves the square would be cut. So the photo is a mixture of the two,
#
# $$\mathrm{out}(p)=m(p)\cdot\mathrm{face}(Ap+t)+\big(1-m(p)\big)\cdot\mathrm{photo}(p)$$ {#eq-blend}
#
# with a mask $m$ that is 1 on the face and 0 outside the square, drawn in the aligned picture and taken back by the same $[A\;t]$ as the face. How should it fall from 1 to 0? A jump shows as a line. A straight ramp has no jump, but a kink where it begins and one where it ends, and the eye is known to draw bright and dark bands at kinks (Mach bands).
# The polynomial $3t^2-2t^3$ runs from 0 to 1 with slope 0 at both ends.

# %%
#| export
def face_mask(size, border=0.08, feather=0.12):
    "Soft mask (size, size) float32: 1 inside, falling smoothly to 0 over `feather` of the size, 0 in the outer `border`."
    t = (np.arange(size) + 0.5) / size
    edge = np.clip((np.minimum(t, 1 - t) - border) / feather, 0, 1)
    edge = edge * edge * (3 - 2 * edge)                                     # slope 0 at both ends: no seam in the slope either
    return np.outer(edge, edge).astype(np.float32)


# %%
m = face_mask(200)
assert_array_equal(m, m.T)
assert_array_equal(m, m[::-1])
assert (m[:16] == 0).all() and (m[40:160, 40:160] == 1).all() and (np.diff(m[:100, 100]) >= 0).all()
t = (23.5 / 200 - 0.08) / 0.12                                              # one element, by hand
assert_allclose(m[23, 100], 3 * t**2 - 2 * t**3, rtol=1e-6)
assert_allclose(face_mask(400)[::2, 200].mean(), m[:, 100].mean(), atol=0.01)                           # the same share at any size

ramp = np.clip(((np.arange(512) + 0.5) / 512 - 0.08) / 0.12, 0, 1)[:256]
profiles = {"jump": (ramp > 0.5) * 1.0, "ramp": ramp, "smooth": face_mask(512)[:256, 256]}
steps, kinks = ({k: np.abs(np.diff(20 * p, order)).max() for k, p in profiles.items()} for order in (1, 2))
print("a difference of 20 grey levels, spread over 61 of 512 px")
for k in profiles:
    print(f"  {k:6}: largest step {steps[k]:5.2f}, largest change from one step to the next {kinks[k]:5.2f}")
assert steps["jump"] > 30 * steps["smooth"] and kinks["smooth"] < kinks["ramp"] / 5

# %%
#| label: fig-photos-mask
#| fig-cap: "A square that came back 60 grey levels too bright, blended into a plain wall with three masks. Below: how the brightness rises from the edge of the square towards its middle."
#| fig-alt: "Three grey squares with a brighter square inside: with a sharp edge, with faint bands along the ramp, and without bands. Below, three curves: a step, a ramp with corners, a smooth rise."
edge = {"jump": lambda e: (e > 0.5) * 1.0, "ramp": lambda e: e, "smooth": lambda e: e * e * (3 - 2 * e)}
t = (np.arange(512) + 0.5) / 512
e = np.clip((np.minimum(t, 1 - t) - 0.08) / 0.12, 0, 1)
fig, axes = plt.subplots(2, 3, figsize=(7, 3.8), layout="constrained", height_ratios=(2.4, 1))
for (top, below), (name, f) in zip(axes.T, edge.items()):
    top.imshow(100 + 60 * np.outer(f(e), f(e)), cmap="gray", vmin=0, vmax=255)
    top.set_title(name, fontsize=9)
    top.axis("off")
    below.plot(100 * t[:160], 60 * f(e)[:160], c="#0072B2")
    below.set(xlabel="% of the square", ylim=(-6, 66))
axes[1, 0].set_ylabel("grey levels");


# %% [markdown]
# @fig-photos-mask exaggerates, so that the three can be told apart. With the jump the frame is plain. With the ramp many people see a thin dark line where it begins and a bright one where it ends, although no such lines are in the picture. The smooth mask has neither.
# A good mask hides small mistakes of the network; large ones, such as a wrong skin colour, it cannot hide.
#
# `paste` is @eq-blend. It computes only the rectangle under the face, so a small face in a photo of 20 million pixels is cheap, and pixels with $m=0$ keep their value to the last bit.

# %%
#| export
def paste(photo, face, matrix):
    """Blend an aligned face back (@eq-blend): photo uint8 H×W×3, face uint8 S×S×3, `matrix` 2×3 photo -> face. Returns a new photo.

    Only the rectangle that the face touches is computed.
    """
    x0, y0, x1, y1 = footprint(matrix, len(face))
    (x0, x1), (y0, y1) = np.clip((x0, x1), 0, photo.shape[1]), np.clip((y0, y1), 0, photo.shape[0])
    out = photo.copy()
    if x1 > x0 and y1 > y0:
        seen = unalign(np.dstack([face, face_mask(len(face))]), matrix, (x0, y0, x1, y1))
        mask = np.clip(seen[..., 3:], 0, 1)                                 # cubic interpolation overshoots
        mixed = mask * seen[..., :3] + (1 - mask) * photo[y0:y1, x0:x1]
        out[y0:y1, x0:x1] = np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)
    return out


# %%
before = photo.copy()
green = paste(photo, np.full((256, 256, 3), (0, 255, 0), np.uint8), m256)
assert_array_equal(photo, before)                                           # the photo itself is left alone
mask = np.clip(unalign(face_mask(256), m256, (0, 0, 512, 512)), 0, 1)[..., None]
assert_array_equal(green[mask[..., 0] == 0], photo[mask[..., 0] == 0])      # not one pixel outside is touched
assert_array_equal(green[mask[..., 0] == 1], np.broadcast_to([0, 255, 0], green[mask[..., 0] == 1].shape))
assert np.abs(green - (mask * [0, 255, 0] + (1 - mask) * photo)).max() < 3  # @eq-blend, over the whole photo
same = paste(photo, crop256, m256)
print(f"a network that changes nothing: {(same != photo).any(2).mean():.0%} of the pixels change, by {np.abs(same.astype(int) - photo)[mask[..., 0] > 0].mean():.2f} grey levels on average")
grey, m32 = np.full((32, 32, 3), 128, np.uint8), align(photo, face.landmarks, 32)[1]
between = paste(photo, grey, m32)                                           # a mixture lies between what is mixed, at any size
assert (between >= np.minimum(photo, 128)).all() and (between <= np.maximum(photo, 128)).all()
away = similarity(face.landmarks + 5000, template(32))
assert_array_equal(paste(photo, grey, away), photo)                         # a face outside the photo
corner, m_corner = align(photo, face.landmarks - (200, 60), 64)             # one half outside
assert np.abs(paste(photo, corner, m_corner).astype(int) - photo).mean() < 2


# %% [markdown]
# ## The whole of it
#
# `restore` ties the steps together. It takes a path, a PIL image or an array; weights by name, by path, or as a network; and any detector. Faces are cut from the photo as it came and pasted in the order in which they were found, the largest first. A photo without a face is an error and not a copy of the input: a caller should know that nothing was done.

# %%
#| export
class NoFace(PhotoError):
    "A readable photo in which no face was found."


@dataclass(frozen=True)
class RestoreResult:
    """What `restore` returns. `faces` holds pairs (degraded, restored), uint8 S×S×3; `boxes` and `landmarks` are in photo pixels."""

    image: np.ndarray            # H×W×3 uint8, the photo with its faces restored
    faces: list
    boxes: list
    landmarks: list


def restore(image, weights="bundled", detector=detect):
    """Find the faces of a photo, restore each, blend them back.

    `image`: a path, a PIL image, or uint8 H×W×3 RGB. `weights`: a name or path (`gfpgan_edu.weights.load_weights`), or a GFPGAN, or what `gfpgan_edu.inference.fuse` made of one.
    Raises PhotoError (unreadable), NoFace, WeightsError.
    """
    import torch

    from gfpgan_edu.inference import fuse
    from gfpgan_edu.weights import load_weights

    name = image if isinstance(image, (str, Path)) else "image"
    if isinstance(image, (str, Path)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = to_rgb(image)
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise PhotoError(f"{name}: needs uint8 H×W×3, got {getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}")
    found = detector(image)
    if not found:
        raise NoFace(f"{name}: no face found")
    net = fuse(load_weights(weights)) if isinstance(weights, (str, Path)) else weights
    crops, matrices = zip(*(align(image, f.landmarks, net.config.size) for f in found))
    where = next(net.parameters())
    with torch.inference_mode():
        restored = np.concatenate([to_images(net(to_tensor(c).to(where))[0]) for c in crops])
    out = image
    for face, matrix in zip(restored, matrices):
        out = paste(out, face, matrix)
    return RestoreResult(out, list(zip(crops, restored)), [f.box for f in found], [f.landmarks for f in found])


# %% [markdown]
# For checks we need networks with a known answer. One changes nothing; one paints every face in one colour, so that we see where `restore` has been.

# %%
class Known(torch.nn.Module):
    "Returns its input, or a plain picture of `value` in [-1, 1]."

    def __init__(self, size, value=None):
        super().__init__()
        self.config, self.value, self.weight = SimpleNamespace(size=size), value, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (x if self.value is None else torch.full_like(x, self.value)), []


two = np.concatenate([photo[:300, 80:380], photo[:300, 380:80:-1]], axis=1)  # the astronaut and her mirror image
result = restore(two, Known(256))
assert len(result.faces) == len(result.boxes) == len(result.landmarks) == 2
left, right = sorted((p[:, 0].mean() for p in result.landmarks))
assert left < 300 < right and abs(left + right - 600) < 3                   # mirror images of one another
print(f"two faces, nothing changed: mean error over the photo {np.abs(result.image.astype(int) - two).mean():.2f} grey levels")
assert np.abs(result.image.astype(int) - two).mean() < 0.5

painted = restore(two, Known(64, 1.0)).image
for x, y in np.rint([p.mean(0) for p in result.landmarks]).astype(int):
    assert (painted[y, x] == 255).all()                                     # both faces
write_image(folder / "two.png", two)
for image in (folder / "two.png", str(folder / "two.png"), Image.fromarray(two)):
    assert_array_equal(restore(image, Known(256)).image, result.image)      # a path, a string, a PIL image
test_fail(lambda: restore(photo[300:], net), exc=NoFace, contains="no face")
test_fail(lambda: restore(photo / 255, net), exc=PhotoError, contains="uint8")
temporary.cleanup()

# %% [markdown]
# ## What a small model cannot give back
#
# A network of $S$ pixels returns $S$ pixels. If the face in the photo covers more, its detail is lost on the way in, whatever the network does: even one that changes nothing returns a blurred face. This is a limit to know before choosing weights. The astronaut's aligned square is about 170 px wide in her photo. What remains of it for models of 32 to 512 px?

# %%
sizes, kept, views = (32, 64, 128, 256, 512), [], []
region = unalign(face_mask(512), align(photo, face.landmarks, 512)[1], (0, 0, 512, 512)) > 0.999
edges = lambda p: np.abs(np.diff(p.astype(float), axis=1))[region[:, 1:] & region[:, :-1]].mean()
for s in sizes:
    image = restore(photo, Known(s), detector=lambda image: [face]).image
    ratio = np.hypot(*align(photo, face.landmarks, s)[1][:, 0])
    kept.append((ratio, np.abs(image.astype(int) - photo)[region].mean(), edges(image) / edges(photo)))
    views.append(image[80:160, 185:265])
    print(f"model of {s:3} px: {ratio:4.2f} of its pixels for one of the photo, error {kept[-1][1]:.1f} grey levels, {kept[-1][2]:.0%} of the edges kept")
ratios, errors_by_size, edges_kept = np.array(kept).T
assert (np.diff(edges_kept[:4]) > 0).all() and edges_kept[0] < 0.5 and errors_by_size[0] > 3 * errors_by_size[-1]
assert round(128 / ratios[2], -1) == 170

# %%
#| label: fig-photos-size
#| fig-cap: "The astronaut after a network that changes nothing, for models of different size. Right: the share of the photo's edges that is kept; left of the dashed line the model has fewer pixels than the face."
#| fig-alt: "Four portraits, from blurred to sharp, and a rising curve that levels off at about 90 percent."
fig = plt.figure(figsize=(7, 1.9), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=(1.9, 1))
for ax, v, s in zip(left.subplots(1, 4), views, sizes):
    ax.imshow(v, interpolation="nearest")
    ax.set_title(f"{s} px", fontsize=9)
    ax.axis("off")
ax = right.subplots()
ax.semilogx(ratios, 100 * edges_kept, "o-", c="#0072B2", base=2)
ax.axvline(1, c="#444444", ls="--")
ax.set(xlabel="model pixels per photo pixel", ylabel="edges kept, %", ylim=(0, 105));

# %% [markdown]
# @fig-photos-size is about resampling alone, and yet the 32 px face is past recognition. Reading it for your own photo: a face that is about as wide as the astronaut's needs a model of 256 px or more to come back sharp. If the printed scale in your case is far below 1, use larger weights, or do not restore a face that has more detail than the model can draw.
#
# ## Put together
#
# The damaged photo of the beginning, through `restore` with the bundled model. The table gives PSNR against the undamaged photo inside the face, for the input and for the result; it measures likeness of pixels and not beauty. On one photo it is an illustration and not an evaluation.

# %%
result = restore(damaged, net)
psnr = lambda p: 10 * np.log10(255**2 / ((p.astype(float) - photo)[region] ** 2).mean())
print(f"PSNR inside the face: damaged {psnr(damaged):.1f} dB, restored {psnr(result.image):.1f} dB")
changed = (result.image != damaged).any(2)
x0, y0, x1, y1 = footprint(align(damaged, result.landmarks[0], size)[1], size)
assert changed.any() and not changed[:, :max(x0, 0)].any() and not changed[:, x1:].any() and not changed[y1:].any()

# %%
#| label: fig-photos-together
#| fig-cap: "The photo after restoration with the bundled model, and the face enlarged: damaged, restored, original."
#| fig-alt: "A portrait with a clean face in a noisy photo, and three enlarged faces: noisy and blurred, cleaned, and sharp."
near = np.s_[68:158, 180:270]
show([result.image[:230:2, 110:340:2], *(p[near] for p in (damaged, result.image, photo))], ["the restored photo", "damaged", "restored", "original"], height=1.45);

# %% [markdown]
# In @fig-photos-together the suit and the wall behind are as noisy as before: GFP-GAN restores faces, and the background is somebody else's job.
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
# | size of the result | – | enlarged twice by default | the size of the photo | the background is not ours to invent |
# | half pixel on the way back | – | shifted by $k/2$ at enlargement $k$ | by $(k-1)/2$, as @eq-faces-halfpixel gives | @fig-photos-halfpixel |
# | sampling | – | linear, one sample a pixel | cubic, averaged where the face has more pixels than the photo | @fig-photos-average |
# | mask | – | face parsing network, blurred, or an eroded square | smooth square | no second network to download; hair outside the square stays |
# | rounding | – | fraction cut off | rounded | half a grey level darker otherwise |
# | no face found | – | the photo comes back enlarged | `NoFace` | the caller should know |
# | a face that fails | – | the unrestored face is pasted | an error | no silent half success |
#
# : Deviations in handling photos {#tbl-photos-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **A box around the face, or a line through the hair.** The mask ends inside hair that the network changed. A parsing mask follows the hair line; a square only fades.
# - **The pasted face looks softer than the aligned one.** It has fewer pixels there. Look at `RestoreResult.faces` for the full size.
# - **The photo came out lying on its side**, with other tools: EXIF was ignored. Here the result is upright and carries no orientation tag.
# - **"Is it her?"** The network fills in what is plausible, and identity can drift. Glasses, eye colour and teeth are the usual victims. Do not use restored faces as evidence of anything.
# - **Memory.** Cost grows with the number of faces and the size of the model, hardly with the photo.
# :::
#
# ## Summary
#
# - Reading means turning upright, reducing to 8-bit RGB, and failing with one clear sentence; writing means whole or not at all.
# - The way back is a look-up at $Ap+t$. A network that changes nothing measures its loss; a perfect network measures its aliasing. Both matter.
# - Half a pixel off costs more than the choice of the interpolation.
# - @eq-blend with a mask of slope 0 at both ends leaves no seam, and leaves every pixel outside exactly as it was.
# - A model cannot return more pixels than it has: compare its size with the face before you use it.
#
# ## Exercises
#
# 1. **Compute.** With `border=0.08` and `feather=0.12`, which share of the square has $m=1$, and which has $m=0$? At which brightness error does the steepest step of the smooth mask reach one grey level for a square of 170 px?
# 2. **Modify.** Paste the *change* and not the face: $\mathrm{photo}(p)+m(p)\,[\mathrm{face}-\mathrm{crop}](Ap+t)$. Show that a network that changes nothing now gives back the photo exactly, at every model size. On the damaged photo, what happens to its noise?
# 3. **Break.** Forget the `+ 0.5` in `unalign`, and look at how the error of a network that changes nothing depends on $n$. Then leave out the clipping of the mask: which check turns red?
#
# ## References
#
# GFP-GAN [@wang2021gfpgan] is described for aligned faces; everything around them in this chapter follows from the geometry of @sec-faces. The faces that the networks know are those of FFHQ [@karras2019stylegan].

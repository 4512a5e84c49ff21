# %% [markdown]
# # Blind face restoration {#sec-restoration}
#
# > One photo, one command, and the question that the rest of the book answers.
#
# **You will build** nothing yet: you will use the finished package on a real photo, see what it can and cannot do, and meet the method in one picture.
# **Needs** nothing but a first idea of what a convolution and a loss are. **Runs in** about 10 s on a laptop CPU.

# %%
#| default_exp examples

# %%
import numpy as np
import torch
from fastcore.test import test_fail

from gfpgan_edu import load_weights, restore
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, example_faces, show
from gfpgan_edu.faces import align, to_images, to_tensor

# %% [markdown]
# ## A face, three lines
#
# Old photos, video calls and security cameras have one thing in common: the face is the part that people look at, and it is a few dozen pixels wide. The picture was blurred by a lens,
# made small by a sensor, sprinkled with noise and squeezed by a JPEG encoder. Nobody wrote down how much of each. *Blind face restoration* is the task of drawing the face again as it
# may have looked, without being told what happened to it.
#
# Here is a photo to try it on, and the face that accompanies this book: the NASA portrait of the astronaut Eileen Collins, which is in the public domain. We damage it on purpose, so that we know the truth and can compare. The numbers say how:
# a blur of 2 pixels, 4 times fewer pixels in each direction, noise of 15 grey levels, JPEG at quality 50. @sec-degradation is about these numbers.

# %%
original = astronaut()
damage = DegradationParams(sigma_x=2.0, sigma_y=2.0, r=4.0, delta=15.0, q=50, noise_seed=1)
photo = degrade(original, damage)

# %% [markdown]
# The restoration itself takes one call. It finds the faces, cuts each out upright, runs the network, and blends the result back into the photo. `photo` may be an array as here, a PIL image or the path of a file.

# %%
result = restore(photo)
len(result.boxes), result.image.shape

# %%
#| label: fig-restoration-first
#| fig-cap: "The damaged photo, the same photo with its face restored by the bundled model, and the original that the model never saw."
#| fig-alt: "Portrait of an astronaut three times: noisy and blocky, with a smooth restored face, and sharp."
view = np.s_[20:250, 100:350]                            # the astronaut's head and collar
show([p[view] for p in (photo, result.image, original)], ["input", "restored", "original"],
     height=1.6);

# %%
#| label: fig-restoration-face
#| fig-cap: "The face alone, aligned to the model's 64 by 64 pixels: what went into the network, what came out, and the original cut out in the same way."
#| fig-alt: "Close-up of the face three times: damaged, restored, original."
degraded, restored = result.faces[0]
truth, _ = align(original, result.landmarks[0], restored.shape[0])
show([degraded, restored, truth], ["network input", "network output", "original"], height=1.6);


# %% [markdown]
# Look at @fig-restoration-first first from arm's length, then at @fig-restoration-face from close up. The noise and the coloured JPEG specks are gone and eyes, nose and mouth have outlines again. Some of what you see was never in the input: it is what such a face usually looks like.
# Everything outside the face is as bad as before: the network sees faces and nothing else.
# The bundled model is small: 64 by 64 pixels, trained for a few hours on two CPU cores. A face that is larger in the photo loses detail. Its card, `gfpgan_edu/bundled/faces64.md`, says what it was trained on, with which losses, and how it scores.
# The official weights, at 512 pixels, load by name: `restore(photo, weights="v1.4")` downloads them once (@sec-weights).
#
# Before we trust our eyes, two numbers, over the middle of the face: how far a picture is from the original, pixel by pixel, and how strong its edges are, as the mean difference of neighbouring pixels.

# %% tags=["volatile"]
def error(picture, reference=truth):
    "Mean absolute difference from the original, in grey levels, over the middle of the face."
    q = len(picture) // 4
    return np.abs(picture[q:-q // 2, q:-q].astype(float) - reference[q:-q // 2, q:-q]).mean()


def edges(picture):
    "Mean absolute difference of neighbouring pixels, in grey levels, over the same part."
    q = len(picture) // 4
    return np.abs(np.diff(picture[q:-q // 2, q:-q].astype(float), axis=1)).mean()


pictures = {"network input": degraded, "network output": restored, "original": truth}
for name, picture in pictures.items():
    print(f"{name:15} {error(picture):4.1f} from the original, edges {edges(picture):4.1f}")
assert edges(degraded) < edges(restored) < 1.3 * edges(truth)
assert error(restored) < 1.3 * error(degraded)

# %% [markdown]
# The output has regained edges that the input had lost. And yet, pixel by pixel, it is hardly nearer to the original than the input was, or not at all: it drew plausible edges, not always in the true place. The next but one section shows that the two numbers pull against each other by necessity.

# %% [markdown]
# ## Why this is hard
#
# Restoration asks for more than the input holds. Degradation is a function from clean pictures to damaged ones, and it is far from invertible: many clean faces lead to (nearly) the same damaged one.
# To see this, we draw a fine pattern over the face, as strong as the texture of hair, damage both versions in the same way, and look at how much of the difference is left.

# %%
face = np.clip(example_faces(1, 128)[0], 32, 223)       # leave room for the pattern
v, u = np.mgrid[:128, :128]
pattern = 24.0 * np.sign(np.sin(2 * np.pi * u / 3)) * np.sign(np.sin(2 * np.pi * v / 3))
other = (face + pattern[..., None]).astype(np.uint8)
blur = DegradationParams(sigma_x=2.0, sigma_y=2.0, r=3.0)
before = np.abs(face.astype(float) - other).mean()
after = np.abs(degrade(face, blur).astype(float) - degrade(other, blur)).mean()
print(f"the two faces differ by {before:.0f} grey levels, their damaged versions by {after:.1f}")
assert after < before / 10

# %%
#| label: fig-restoration-illposed
#| fig-cap: "Two different faces, and what blur and downsampling leave of them."
#| fig-alt: "A face and the same face with a checkered pattern; beside them, two blurred faces that look the same."
show([face, other, degrade(face, blur), degrade(other, blur)],
     ["face A", "face B", "A damaged", "B damaged"], height=1.4);

# %% [markdown]
# The damaged versions in @fig-restoration-illposed cannot be told apart, so no method can know from them which face was the true one. A restorer must *choose*. The choice can be guided only by what faces look like in general: by a **prior**.
#
# ## Why a careful answer is a blurred one
#
# Suppose that a network is trained to be as close as possible to the truth, pixel by pixel. If several faces are equally likely, the safest answer is their average, and an average of sharp pictures is not sharp. We can check this with pictures whose
# details sit in slightly different places. The average has a smaller mean squared error than every single candidate, and it alone is blurred.

# %%
shifts = [(0, 0), (0, 2), (2, 0), (2, 2), (-2, 0), (0, -2), (-2, -2)]
candidates = np.stack([np.roll(face, shift, axis=(0, 1)) for shift in shifts]).astype(float)
mean = candidates.mean(0)


def risk(answer):
    "Mean squared error of one answer when each candidate is equally likely to be the truth."
    return ((candidates - answer) ** 2).mean()


risks = [risk(c) for c in candidates]
print(f"best sharp candidate {min(risks):.0f}, blurred mean {risk(mean):.0f}")
assert risk(mean) < min(risks)

# %% [markdown]
# This is the tension that runs through the whole field. *Fidelity* asks for the average, *realness* asks for one of the candidates, and *identity* asks that the candidate is the same person. Losses that measure pixels pull one way,
# discriminators and pretrained priors pull the other way. The bundled model of this chapter was trained by both kinds at once, and later chapters take them apart.
#
# ## The method in one picture
#
# GFP-GAN [@wang2021gfpgan] answers with two networks and a bridge between them (@fig-restoration-map). It was published at CVPR 2021, and it restores a face in a single forward pass.

# %%
#| label: fig-restoration-map
#| fig-cap: "GFP-GAN. Each chapter of the book opens with this map and lights up its own part."
#| fig-alt: "Diagram: degraded face to U-Net; U-Net to codes w and to scale and shift; both to StyleGAN2; then the restored face. The U-Net also makes a pyramid of pictures."
draw_map("degradation", "unet", "latent", "csft", "stylegan2", "output", "pyramid");

# %% [markdown]
# * **The prior.** A StyleGAN2 generator [@karras2020stylegan2] that was trained to draw faces from noise knows eyes, skin and hair at every scale: this knowledge sits in its convolutions (@sec-stylegan2). GFP-GAN keeps it and steers it.
# * **The degradation removal module.** A U-Net [@ronneberger2015unet] reads the damaged face and produces two things: one vector that says roughly *which* face this is, and feature maps that say *where* everything is (@sec-unet). While it is trained, it must also
#   draw the clean face at every resolution, so that the damage is removed before the prior comes into play.
# * **The codes.** A linear layer turns the vector into the codes that StyleGAN2 listens to. Earlier methods searched for such codes by optimisation, for each image anew [@menon2020pulse; @gu2020mganprior]; here one matrix product does it (@sec-gfpgan).
# * **The bridge.** Codes are too small to carry a face exactly. So the feature maps of the U-Net scale and shift *half* of the prior's features, position by position; the other half passes untouched and keeps the prior's realism (@sec-csft).
#
# The network is trained on pairs made by damaging good photos (@sec-degradation), with losses that compare pixels, features, facial parts and identity (@sec-losses). The book makes the pairs, builds the network, trains it, measures it, and uses it on photos, in this order.
#
# ## What it cannot do
#
# A restorer that always answers will also answer when nothing is left to restore. Below, the same photo is damaged more and more. The columns at the right of @fig-restoration-limits are where a careful user stops believing: the output is a face, but not necessarily *this* face.

# %%
#| label: fig-restoration-limits
#| fig-cap: "Growing damage (left to right: r = 1.5, 4, 8, 14 with matching blur and noise). Top: what the network sees. Bottom: what it draws."
#| fig-alt: "Four columns of faces with growing damage; the restored faces become vaguer and less like the person."
net = load_weights("bundled")
levels = [DegradationParams(sigma_x=r / 3, sigma_y=r / 3, r=r, delta=1.2 * r, q=int(90 - 3 * r),
                            noise_seed=2)
          for r in (1.5, 4.0, 8.0, 14.0)]
inputs = [degrade(truth, level) for level in levels]
with torch.inference_mode():
    outputs = to_images(net(to_tensor(np.stack(inputs)))[0])
show([*inputs, *outputs], [f"r = {level.r:g}" for level in levels], rows=("damaged", "restored"),
     cols=4, height=1.1);

# %% tags=["volatile"]
errors = [error(o) for o in outputs]
print("grey levels from the original:", [round(float(e), 1) for e in errors])
assert errors[0] < errors[-1]

# %% [markdown]
# The printed error grows with the damage, as it must. Three things follow for every face restorer, ours and others:
#
# * What it adds is likely, not true. A restored face is no evidence of who somebody is.
# * It repeats the faces it was trained on. Ours saw FFHQ, which has more light-skinned adults than the world has.
# * It is made for upright faces that a detector can find. Profiles, hands and glasses go wrong first.
#
# ## The faces and pictures of this book
#
# Chapters need pictures, and faces belong to people. So above 64 px the examples use the astronaut, shifted and flipped. Up to 64 px they use faces that the bundled prior made up, nobody's portrait: the same few in every chapter. To see faces of your own instead, name a folder of aligned ones in the environment variable `GFPGAN_EDU_FACES`.
# Each chapter opens with the map. Its code is long and dull, and is shown here once.

# %%
#| export
import os
from functools import lru_cache
from pathlib import Path

import numpy as np


# %%
#| export
def astronaut():
    "The public-domain portrait of Eileen Collins (NASA), uint8 512×512×3, from scikit-image."
    from skimage.data import astronaut as photo

    return photo()


@lru_cache(maxsize=8)
def _made_up(n, seed):
    "n samples of the bundled prior, truncated, uint8 (n, 64, 64, 3)."
    import torch

    from gfpgan_edu.faces import to_images
    from gfpgan_edu.weights import load_prior

    with torch.inference_mode():
        net = load_prior()
        z = torch.randn(n, net.config["style_dim"], generator=torch.Generator().manual_seed(seed))
        w_mean = net.mean_w(generator=torch.Generator().manual_seed(0))
        return to_images(net(z, truncation=0.7, w_mean=w_mean))


# %%
#| export
def example_faces(n=8, size=128, seed=0):
    """Aligned faces for trying things out, uint8 (n, size, size, 3): from the folder
    $GFPGAN_EDU_FACES; else, up to 64 px, faces that the bundled prior makes up (nobody's portrait);
    above 64 px, shifted and flipped crops of `astronaut()`.

    Raises FileNotFoundError where the folder holds no readable picture.
    """
    import cv2

    rng, folder = np.random.default_rng(seed), os.environ.get("GFPGAN_EDU_FACES")
    if folder:
        suffixes = (".jpg", ".jpeg", ".png", ".webp")
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in suffixes)
        faces = [img for p in paths[:n] if (img := cv2.imread(str(p))) is not None]
        if not faces:
            raise FileNotFoundError(f"GFPGAN_EDU_FACES={folder}: "
                                    "no readable .jpg, .png or .webp in it")
        faces = [f[..., ::-1] for f in faces]
    elif size <= 64:
        faces = list(_made_up(n, seed))
    else:
        photo, faces = astronaut(), []
        for i in range(n):
            # the face, framed as FFHQ frames it
            side, x, y = 168, 225, 106
            if i > 0:
                side += int(rng.integers(-12, 24))
                x += int(rng.integers(-8, 9))
                y += int(rng.integers(-8, 9))
            crop = photo[y - side // 2:y + side // 2, x - side // 2:x + side // 2]
            faces.append(crop[:, ::-1] if i % 2 else crop)
    faces = [np.ascontiguousarray(faces[i % len(faces)]) for i in range(n)]
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in faces])


# %% [markdown]
# Drawing is a matter of few lines, the same everywhere: `show` takes pictures as arrays, tensors or maps.

# %%
#| export
def show(images, titles=(), *, rows=(), cols=None, height=2.2, cmap="gray", vmin=None, vmax=None):
    """Draw pictures in a grid, `rows` named at the left, and return the matplotlib figure.

    Each is uint8 H×W×3, a tensor (3, h, w) in [-1, 1] (clipped), or a 2-D map drawn with `cmap`
    between vmin and vmax.
    """
    import matplotlib.pyplot as plt

    images = [_drawable(i) for i in images]
    cols = cols or min(len(images), 8)
    lines, titled = -(-len(images) // cols), -(-len(titles) // cols)
    widest = max(i.shape[1] / i.shape[0] for i in images)
    size = cols * height * widest + 0.8 * bool(rows), lines * height + 0.25 * titled
    fig, axes = plt.subplots(lines, cols, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        ax.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")
        if i < len(titles):
            ax.set_title(titles[i], fontsize=9)
    for ax, name in zip(axes[:, 0], rows):
        ax.text(-0.08, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    return fig


def _drawable(image):
    if hasattr(image, "detach"):
        image = image.detach().float().cpu().numpy()
    if image.ndim == 3 and image.shape[0] == 3 and image.dtype != np.uint8:
        image = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    return image


# %% [markdown]
# And the map itself:

# %%
#| export
# One picture of the method, drawn in every chapter with that chapter's part lit.
# Box name: (x, y, width, height, label).
_BOXES = {
    "degradation": (0.0, 2.1, 1.5, 0.8, "degraded\nface x"),
    "unet": (2.1, 1.2, 1.7, 2.2, "U-Net\nremoves the\ndegradation"),
    "latent": (4.8, 2.75, 1.5, 0.65, "codes w"),
    "csft": (4.8, 1.2, 1.5, 0.9, "scale α\nshift β"),
    "stylegan2": (7.0, 1.2, 1.9, 2.2, "StyleGAN2\nthe prior"),
    "output": (9.6, 2.1, 1.5, 0.8, "restored\nface ŷ"),
    "pyramid": (2.1, 0.0, 1.7, 0.65, "pyramid\nof pictures"),
}
_ARROWS = [("degradation", "unet", ""), ("unet", "latent", "F_latent"),
           ("unet", "csft", "F_spatial"), ("latent", "stylegan2", ""), ("csft", "stylegan2", ""),
           ("stylegan2", "output", ""), ("unet", "pyramid", "")]


# %%
#| export
def draw_map(*lit):
    """Draw the method as boxes and arrows with the parts named in `lit` coloured.

    Names: the keys of _BOXES. Returns the matplotlib figure.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    if unknown := set(lit) - _BOXES.keys():
        raise ValueError(f"no part {sorted(unknown)} in the map; there are {sorted(_BOXES)}")
    fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for name, (x, y, w, h, label) in _BOXES.items():
        fill, ink = ("#0072B2", "white") if name in lit else ("#eeeeee", "#222222")
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.05", fc=fill, ec="#444444"))
        ax.text(x + w / 2, y + h / 2, label, ha="center", va="center", fontsize=9, color=ink)
    for a, b, label in _ARROWS:
        (ax0, ay0, aw, ah, _), (bx, by, bw, bh, _) = _BOXES[a], _BOXES[b]
        if b == "pyramid":    # the one arrow that points down
            start, end = (ax0 + aw / 2, ay0 - 0.06), (bx + bw / 2, by + bh + 0.06)
        else:
            y = (by if bh < ah else ay0) + min(ah, bh) / 2
            start, end = (ax0 + aw + 0.06, y), (bx - 0.06, y)
        ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color="#444444"))
        ax.text((start[0] + end[0]) / 2, start[1] + 0.1, label, ha="center", fontsize=7)
    ax.set(xlim=(-0.2, 11.3), ylim=(-0.2, 3.7), aspect="equal")
    ax.axis("off")
    return fig


# %% [markdown]
# Two checks: the examples are reproducible and of the promised shape, and a misspelt part of the map is refused.

# %%
faces = example_faces(4, 64, seed=3)
assert faces.shape == (4, 64, 64, 3) and faces.dtype == np.uint8
assert (faces == example_faces(4, 64, seed=3)).all()
assert (faces != example_faces(4, 64, seed=4)).any()
test_fail(lambda: draw_map("unett"), exc=ValueError, contains="unett")

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | input and output | 512 px, aligned face | the same | 8 to 1024 px; the bundled model 64 px | runs on a laptop, same code at full size |
# | whole photos | not described | detector and blending in a second package | `restore`, with a detector whose weights come with it | works offline |
# | faces not found | – | skipped without a word | `NoFace`, an error with the file's name | a photo that stays as it was should say so |
# | outside the face | – | a second network for the background, optional | left as it is | one task at a time |
#
# ::: {.callout-warning}
# ## What users trip over
# Colours that turn blue come from swapped channels: OpenCV reads BGR, this package wants and returns RGB. A photo that comes back unchanged had no face that the detector found; enlarge it or turn it upright.
# Glasses may turn into double eyebrows and scarves into chins, since the model draws what it saw most often.
# :::
#
# ## Summary
#
# * Blind restoration draws a likely clean face from a damaged one, without knowing the damage.
# * The task is ill-posed: faces that differ visibly lead to the same damaged picture.
# * Pixel losses alone give averages, and averages are blurred. A prior is needed to choose a sharp answer.
# * GFP-GAN steers a pretrained StyleGAN2 with codes and with spatial feature maps, both read off the damaged face by a U-Net, in one forward pass.
# * The answer is plausible, not certain. It repeats the training data's habits.
#
# Next: a restorer learns from pairs of a damaged and a clean face. @sec-degradation makes them.
#
# ## Exercises
#
# 1. *Compute.* In the section on averages, use only two candidates, shifted by one pixel to the left and right. What is the ratio of the two risks, and why is it so?
# 2. *Modify.* Restore one of your own photos: `restore("path.jpg")`. Then shrink the photo by 2 and by 4 before restoring. At which size does the detector lose the face, and at which does the result stop looking like the person?
# 3. *Break.* Call `restore` on the photo with its colour channels reversed (`photo[..., ::-1]`). What does the network do with a blue face, and what does that say about what it learned?
#
# Worked solutions: [nbs/solutions/01_restoration.ipynb](solutions/01_restoration.ipynb).
#
# ## References
#
# The method is @wang2021gfpgan. The prior it uses is StyleGAN2 [@karras2020stylegan2]. Restoration by searching the codes of a generator is the subject of @menon2020pulse and @gu2020mganprior.

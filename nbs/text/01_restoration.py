# %% [markdown]
# # Blind face restoration {#sec-restoration}

# %%
#| default_exp examples

# %%
#| export
import os
from pathlib import Path

import numpy as np

# %%
#| export
def astronaut():
    "The public-domain portrait of Eileen Collins (NASA), uint8 512×512×3, that ships with scikit-image."
    from skimage.data import astronaut as photo

    return photo()


def example_faces(n=8, size=128, seed=0):
    """Aligned faces for trying things out, uint8 (n, size, size, 3): from the folder $GFPGAN_EDU_FACES, else shifted and flipped crops of `astronaut()`.

    Raises FileNotFoundError where the folder holds no readable picture.
    """
    import cv2

    rng, folder = np.random.default_rng(seed), os.environ.get("GFPGAN_EDU_FACES")
    if folder:
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        faces = [img for p in paths[:n] if (img := cv2.imread(str(p))) is not None]
        if not faces:
            raise FileNotFoundError(f"GFPGAN_EDU_FACES={folder}: no readable .jpg, .png or .webp in it")
        faces = [f[..., ::-1] for f in faces]
    else:
        photo, faces = astronaut(), []
        for i in range(n):
            side = 168 + (0 if i == 0 else int(rng.integers(-12, 24)))              # the face, framed as FFHQ frames it
            x, y = (225, 106) if i == 0 else (225 + int(rng.integers(-8, 9)), 106 + int(rng.integers(-8, 9)))
            crop = photo[y - side // 2:y + side // 2, x - side // 2:x + side // 2]
            faces.append(crop[:, ::-1] if i % 2 else crop)
    return np.stack([cv2.resize(np.ascontiguousarray(faces[i % len(faces)]), (size, size), interpolation=cv2.INTER_AREA) for i in range(n)])


# %%
#| export
def show(images, titles=(), *, cols=None, height=2.2, cmap="gray", vmin=None, vmax=None):
    """Draw pictures in a grid and return the matplotlib figure.

    Each is uint8 H×W×3, a tensor (3, h, w) in [-1, 1] (clipped), or a 2-D map drawn with `cmap` between vmin and vmax.
    """
    import matplotlib.pyplot as plt

    images = [_drawable(i) for i in images]
    cols = cols or min(len(images), 8)
    rows = -(-len(images) // cols)
    widest = max(i.shape[1] / i.shape[0] for i in images)
    fig, axes = plt.subplots(rows, cols, figsize=(cols * height * widest, rows * (height + (0.25 if len(titles) else 0))), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        ax.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")
        if i < len(titles):
            ax.set_title(titles[i], fontsize=9)
    return fig


def _drawable(image):
    if hasattr(image, "detach"):
        image = image.detach().float().cpu().numpy()
    if image.ndim == 3 and image.shape[0] == 3 and image.dtype != np.uint8:
        image = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    return image


# %%
#| export
# Box name: (x, y, width, height, label). One picture of the method, drawn in every chapter with that chapter's part lit.
_BOXES = {
    "degradation": (0.0, 2.1, 1.5, 0.8, "degraded\nface x"), "unet": (2.1, 1.2, 1.7, 2.2, "U-Net\nremoves the\ndegradation"),
    "latent": (4.8, 2.75, 1.5, 0.65, "codes w"), "csft": (4.8, 1.2, 1.5, 0.9, "scale α\nshift β"),
    "stylegan2": (7.0, 1.2, 1.9, 2.2, "StyleGAN2\nthe prior"), "output": (9.6, 2.1, 1.5, 0.8, "restored\nface ŷ"), "pyramid": (2.1, 0.0, 1.7, 0.65, "pyramid\nof pictures"),
}
_ARROWS = [("degradation", "unet", ""), ("unet", "latent", "F_latent"), ("unet", "csft", "F_spatial"), ("latent", "stylegan2", ""),
           ("csft", "stylegan2", ""), ("stylegan2", "output", ""), ("unet", "pyramid", "")]


def draw_map(*lit):
    "Draw the method as boxes and arrows with the parts named in `lit` coloured; returns the matplotlib figure. Names: the keys of _BOXES."
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    if unknown := set(lit) - _BOXES.keys():
        raise ValueError(f"no part {sorted(unknown)} in the map; there are {sorted(_BOXES)}")
    fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for name, (x, y, w, h, label) in _BOXES.items():
        on = name in lit
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.05", fc="#0072B2" if on else "#eeeeee", ec="#444444"))
        ax.text(x + w / 2, y + h / 2, label, ha="center", va="center", fontsize=9, color="white" if on else "#222222")
    for a, b, label in _ARROWS:
        (ax0, ay0, aw, ah, _), (bx, by, bw, bh, _) = _BOXES[a], _BOXES[b]
        down = b == "pyramid"
        start = (ax0 + aw / 2, ay0 - 0.06) if down else (ax0 + aw + 0.06, (by if bh < ah else ay0) + min(ah, bh) / 2)
        end = (bx + bw / 2, by + bh + 0.06) if down else (bx - 0.06, start[1])
        ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color="#444444"))
        ax.text((start[0] + end[0]) / 2, start[1] + 0.1, label, ha="center", fontsize=7)
    ax.set(xlim=(-0.2, 11.3), ylim=(-0.2, 3.7), aspect="equal")
    ax.axis("off")
    return fig

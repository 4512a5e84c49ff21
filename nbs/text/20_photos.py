# %% [markdown]
# # Restoring a photo {#sec-photos}

# %%
#| default_exp photos

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gfpgan_edu.faces import align, detect, invert, to_images, to_tensor

# %%
#| export
class PhotoError(ValueError):
    "A photo that cannot be read or written; the message names the file and the reason."


class NoFace(PhotoError):
    "A readable photo in which no face was found."


def read_image(path):
    "A picture file -> uint8 H×W×3 RGB, turned upright by its EXIF tag. Raises PhotoError that names the file and the reason."
    path = Path(path)
    if path.is_dir():
        raise PhotoError(f"{path}: is a folder, not a picture")
    try:
        with Image.open(path) as im:
            im.load()
            return np.array(ImageOps.exif_transpose(im).convert("RGB"))
    except FileNotFoundError:
        raise PhotoError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise PhotoError(f"{path}: not a picture that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise PhotoError(f"{path}: damaged or unreadable ({e})") from e


def write_image(path, image):
    "uint8 H×W×3 RGB -> file, atomically: a failed write leaves nothing behind. Raises PhotoError."
    path = Path(path)
    part = path.with_name(path.stem + ".part" + path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part, quality=95)
        part.replace(path)
    except (OSError, ValueError) as e:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
        raise PhotoError(f"{path}: cannot be written ({getattr(e, 'strerror', None) or e})") from e


# %%
#| export
def face_mask(size, border=0.08, feather=0.12):
    "Soft mask (size, size) float32: 1 inside, falling smoothly to 0 over `feather` of the size, 0 in the outer `border`."
    t = (np.arange(size) + 0.5) / size
    edge = np.clip((np.minimum(t, 1 - t) - border) / feather, 0, 1)
    edge = edge * edge * (3 - 2 * edge)                                     # smoothstep: no visible seam in the slope either
    return np.minimum.outer(edge, edge).astype(np.float32)


def paste(photo, face, matrix):
    """Blend an aligned face back (@eq-blend): photo uint8 H×W×3, face uint8 S×S×3, `matrix` 2×3 photo -> face. Returns a new photo.

    Only the rectangle that the face touches is computed.
    """
    h, w = photo.shape[:2]
    size, back = face.shape[0], invert(matrix)
    corners = np.array([[-0.5, -0.5], [size - 0.5, -0.5], [-0.5, size - 0.5], [size - 0.5, size - 0.5]]) @ back[:, :2].T + back[:, 2]
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, (w, h))
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, (w, h))
    if x1 <= x0 or y1 <= y0:
        return photo.copy()
    local = back - np.array([[0, 0, x0], [0, 0, y0]])                       # into the rectangle's own coordinates
    warp = dict(dsize=(int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_CUBIC)
    face = cv2.warpAffine(face.astype(np.float32), local, borderMode=cv2.BORDER_REPLICATE, **warp)
    mask = np.clip(cv2.warpAffine(face_mask(size), local, borderMode=cv2.BORDER_CONSTANT, **warp), 0, 1)[..., None]
    out = photo.copy()
    out[y0:y1, x0:x1] = np.rint(np.clip(mask * face + (1 - mask) * photo[y0:y1, x0:x1], 0, 255)).astype(np.uint8)
    return out


# %%
#| export
@dataclass(frozen=True)
class RestoreResult:
    """What `restore` returns. `faces` holds pairs (degraded, restored), uint8 S×S×3; `boxes` and `landmarks` are in photo pixels."""

    image: np.ndarray            # H×W×3 uint8, the photo with its faces restored
    faces: list
    boxes: list
    landmarks: list


def restore(image, weights="bundled", detector=detect):
    """Find the faces of a photo, restore each, blend them back.

    `image`: a path, a PIL image, or uint8 H×W×3 RGB. `weights`: a name or path (`gfpgan_edu.weights.load_weights`) or a GFPGAN.
    Raises PhotoError (unreadable), NoFace, WeightsError.
    """
    import torch

    from gfpgan_edu.weights import load_weights

    name = image if isinstance(image, (str, Path)) else "image"
    if isinstance(image, (str, Path)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise PhotoError(f"{name}: needs uint8 H×W×3, got {getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}")
    found = detector(image)
    if not found:
        raise NoFace(f"{name}: no face found")
    net = load_weights(weights) if isinstance(weights, (str, Path)) else weights
    crops, matrices = zip(*(align(image, f.landmarks, net.config.size) for f in found))
    where = next(net.parameters())
    with torch.inference_mode():
        restored = np.concatenate([to_images(net(to_tensor(c).to(where))[0]) for c in crops])
    out = image
    for face, matrix in zip(restored, matrices):
        out = paste(out, face, matrix)
    return RestoreResult(out, list(zip(crops, restored)), [f.box for f in found], [f.landmarks for f in found])

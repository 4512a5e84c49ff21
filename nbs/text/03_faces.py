# %% [markdown]
# # Faces: find and align {#sec-faces}

# %%
#| default_exp faces

# %%
#| export
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np

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
#| export
@lru_cache(maxsize=1)
def _mtcnn():
    from facenet_pytorch import MTCNN     # the weights are inside the wheel

    return MTCNN(keep_all=True, device="cpu", min_face_size=20)


def detect(image, min_score=0.9, longest=1600):
    """Faces in uint8 H×W×3 RGB, the largest first, by MTCNN: three small networks, coarse to fine.

    Pictures whose longer side exceeds `longest` px are searched in a smaller copy and the coordinates mapped back. Empty list: none.
    """
    if not (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"detect needs uint8 H×W×3, got {image.dtype} {image.shape}")
    h, w = image.shape[:2]
    k = min(1.0, longest / max(h, w))
    small = image if k == 1 else cv2.resize(image, (max(1, round(w * k)), max(1, round(h * k))), interpolation=cv2.INTER_AREA)
    if min(small.shape[:2]) < 24:                                           # smaller than MTCNN's last window
        return []
    boxes, scores, points = _mtcnn().detect(small, landmarks=True)
    if boxes is None:
        return []
    scale = np.array([w / small.shape[1], h / small.shape[0]])
    faces = []
    for box, score, five in zip(boxes, scores, points):
        if score is not None and score >= min_score:
            corners = (np.asarray(box, float).reshape(2, 2) + 0.5) * scale - 0.5   # pixel centres, not corners, are the whole numbers
            faces.append(Face(tuple(float(v) for v in corners.ravel()), float(score), (np.asarray(five, float) + 0.5) * scale - 0.5))
    return sorted(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]), reverse=True)


# %%
#| export
# Where FFHQ alignment puts the five points at 512 px (means over FFHQ, as used with the official weights).
FFHQ_512 = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]])


def template(size=512):
    "The five target points (5, 2) for an aligned face of `size` px."
    return (FFHQ_512 + 0.5) * size / 512 - 0.5


def similarity(src, dst):
    """The rotation, scale and shift that bring points `src` closest to `dst`, both (n, 2), by least squares -> 2×3 matrix.

    A similarity is [[a, -b, t_x], [b, a, t_y]]: linear in its four unknowns, so one least-squares solve is exact.
    """
    src, dst = np.asarray(src, float), np.asarray(dst, float)
    if src.shape != dst.shape or src.ndim != 2 or src.shape[1] != 2 or len(src) < 2:
        raise ValueError(f"similarity needs two equal (n, 2) arrays with n >= 2, got {src.shape} and {dst.shape}")
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


# %%
#| export
def align(image, landmarks, size=512):
    """Turn, scale and cut so that the five landmarks fall on `template(size)` -> (uint8 size×size×3, 2×3 matrix photo -> crop).

    A face larger than `size` is low-passed first, so that shrinking does not alias; outside the photo the edge is mirrored.
    """
    matrix = similarity(landmarks, template(size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:                                                           # shrinking by 1/scale: Gaussian of matching width
        image = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(1 / scale**2 - 1) + 1e-6)
    crop = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return crop, matrix


# %%
#| export
def to_tensor(images):
    "uint8 (n, h, w, 3) or (h, w, 3) RGB -> float32 (n, 3, h, w) in [-1, 1]."
    import torch

    a = np.ascontiguousarray(images)
    return torch.from_numpy(a[None] if a.ndim == 3 else a).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(x):
    "float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3), clipped and rounded."
    return x.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

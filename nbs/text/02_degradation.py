# %% [markdown]
# # Degradation {#sec-degradation}

# %%
#| default_exp degradation

# %%
#| export
import json
import math
from dataclasses import asdict, dataclass, fields, replace

import cv2
import numpy as np

# %%
#| export
@dataclass(frozen=True)
class DegradationRanges:
    """What `sample_params` draws from. Pixels (sigma, kernel) and factors (r) are stated for faces of `size` px; `at(size)` rescales them.

    Pairs are (low, high) of a uniform draw; each `*_prob` is the chance that the step happens at all.
    """

    sigma: tuple = (0.2, 10.0)           # blur, px
    r: tuple = (1.0, 8.0)                # downsampling factor; below 1 it enlarges
    delta: tuple = (0.0, 15.0)           # noise, grey levels of 255
    q: tuple = (60.0, 100.0)             # JPEG quality
    kernel_size: int = 41                # taps of the blur kernel, odd
    aniso_prob: float = 0.5              # elliptic and turned instead of round
    shift_prob: float = 0.0              # a constant added to each channel …
    shift: float = 20.0                  # … of up to ± this many grey levels
    gray_prob: float = 0.0
    jitter_prob: float = 0.0             # brightness, contrast, saturation, hue in random order
    brightness: tuple = (0.5, 1.5)
    contrast: tuple = (0.5, 1.5)
    saturation: tuple = (0.0, 1.5)
    hue: tuple = (-0.1, 0.1)             # turns of the colour circle
    size: int = 512

    def __post_init__(self):
        for f in fields(self):
            v = getattr(self, f.name)
            if f.name.endswith("_prob") and not 0 <= v <= 1:
                raise ValueError(f"{f.name} is {v}, needs a probability")
            if isinstance(f.default, tuple) and not (len(v) == 2 and v[0] <= v[1]):
                raise ValueError(f"{f.name} is {v}, needs (low, high)")
        if self.kernel_size % 2 == 0 or self.sigma[0] < 0 or self.r[0] <= 0 or self.delta[0] < 0 or not (1 <= self.q[0] and self.q[1] <= 100):
            raise ValueError(f"impossible ranges: {self}")

    def at(self, size):
        "The same loss of detail for faces of `size` px: sigma, kernel and r scale by size / self.size, r above 1 not below 1."
        k = size / self.size
        sigma = tuple(s * k for s in self.sigma)
        r = tuple(x if x <= 1 else max(1.0, x * k) for x in self.r)
        return replace(self, sigma=sigma, r=r, kernel_size=2 * math.ceil((self.kernel_size // 2) * k) + 1, size=size)


# %%
#| export
PAPER = DegradationRanges(shift_prob=0.3, gray_prob=0.01, jitter_prob=0.3)                            # Sec. 4.1; colour: the official numbers
OFFICIAL = replace(PAPER, sigma=(0.1, 10.0), r=(0.8, 8.0), delta=(0.0, 20.0))                         # train_gfpgan_v1.yml
SEVERE = replace(PAPER, sigma=(0.2, 16.0), r=(1.0, 24.0), delta=(0.0, 20.0), q=(30.0, 100.0))         # for nets of 64 to 256 px
PRESETS = {"paper": PAPER, "official": OFFICIAL, "severe": SEVERE}

# %%
#| export
@dataclass(frozen=True)
class DegradationParams:
    "One draw: every number that `degrade` needs, the noise's seed included. The defaults change nothing."

    sigma_x: float = 0.0
    sigma_y: float = 0.0
    theta: float = 0.0                   # radians, angle of the x axis of the kernel
    kernel_size: int = 41
    r: float = 1.0
    delta: float = 0.0
    q: int | None = None                 # None: no JPEG
    noise_seed: int = 0
    shift: tuple | None = None           # grey levels, R, G, B
    gray: bool = False
    jitter: tuple = ()                   # (("hue", 0.03), ("contrast", 1.2), …), in this order

    def to_json(self):
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        "The inverse of `to_json`. Unknown names are a ValueError."
        d = json.loads(text)
        unknown = sorted(set(d) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown degradation parameters {unknown}")
        d["shift"] = tuple(d["shift"]) if d.get("shift") is not None else None
        d["jitter"] = tuple((name, value) for name, value in d.get("jitter", ()))
        return cls(**d)


# %%
#| export
def sample_params(rng, ranges=PAPER):
    "Draw `DegradationParams` from `ranges` with `rng`, a numpy Generator. All the randomness of a degradation is drawn here."
    sigma_x = rng.uniform(*ranges.sigma)
    sigma_y, theta = sigma_x, 0.0
    if rng.random() < ranges.aniso_prob:
        sigma_y, theta = rng.uniform(*ranges.sigma), rng.uniform(-math.pi, math.pi)
    r, delta, q = rng.uniform(*ranges.r), rng.uniform(*ranges.delta), int(rng.uniform(*ranges.q))
    seed = int(rng.integers(2**32))
    shift = tuple(float(v) for v in rng.uniform(-ranges.shift, ranges.shift, 3)) if rng.random() < ranges.shift_prob else None
    gray = bool(rng.random() < ranges.gray_prob)
    jitter = ()
    if rng.random() < ranges.jitter_prob:
        names = ("brightness", "contrast", "saturation", "hue")
        jitter = tuple((names[i], rng.uniform(*getattr(ranges, names[i]))) for i in rng.permutation(4))
    return DegradationParams(sigma_x, sigma_y, theta, ranges.kernel_size, r, delta, q, seed, shift, gray, jitter)


# %%
#| export
def gaussian_kernel(sigma_x, sigma_y=None, theta=0.0, size=41):
    "Blur kernel k_σ (size, size), float64, sum 1: a Gaussian with axes sigma_x, sigma_y turned by theta; sigma 0 gives a single 1."
    if size % 2 == 0 or size < 1:
        raise ValueError(f"kernel size is {size}, needs an odd number")
    sx, sy = max(sigma_x, 1e-3), max(sigma_x if sigma_y is None else sigma_y, 1e-3)
    v, u = np.mgrid[:size, :size] - size // 2                      # v down, u right
    a = (np.cos(theta) * u + np.sin(theta) * v) / sx
    b = (-np.sin(theta) * u + np.cos(theta) * v) / sy
    k = np.exp(-0.5 * (a**2 + b**2))
    return k / k.sum()


# %%
#| export
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def jitter_colour(x, jitter):
    "Apply ((name, factor), …), names brightness, contrast, saturation, hue, in order to x, float32 H×W×3 RGB in [0, 1], clipped after each."
    for name, f in jitter:
        if name == "hue":
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)               # hue in degrees
            hsv[..., 0] = (hsv[..., 0] + 360 * f) % 360
            x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        else:
            other = {"brightness": lambda: 0.0, "contrast": lambda: (x @ LUMA).mean(), "saturation": lambda: (x @ LUMA)[..., None]}[name]()
            x = f * x + (1 - f) * other                            # a blend with black, the mean grey, the grey picture
        x = np.clip(x, 0, 1).astype(np.float32)
    return x


# %%
#| export
def degrade(img, params):
    """Eq. 10, x = [(y * k_σ) ↓r + n_δ] JPEG_q, then back to size, then colour: uint8 H×W×3 RGB -> uint8 H×W×3 RGB.

    Pure and deterministic: the same `img` and `params` give the same bytes. Order of steps as in the official data set.
    """
    if not (isinstance(img, np.ndarray) and img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3):
        raise ValueError(f"degrade needs uint8 H×W×3, got {getattr(img, 'dtype', type(img).__name__)} {getattr(img, 'shape', '')}")
    h, w = img.shape[:2]
    x = img.astype(np.float32) / 255
    if max(params.sigma_x, params.sigma_y) > 0:
        x = cv2.filter2D(x, -1, gaussian_kernel(params.sigma_x, params.sigma_y, params.theta, params.kernel_size))
    small = (max(1, int(w // params.r)), max(1, int(h // params.r)))
    x = cv2.resize(x, small, interpolation=cv2.INTER_LINEAR)
    if params.delta > 0:
        noise = np.random.default_rng(params.noise_seed).standard_normal(x.shape, np.float32)
        x = np.clip(x + params.delta / 255 * noise, 0, 1)
    if params.q is not None:
        x = jpeg(np.rint(x * 255).astype(np.uint8), params.q).astype(np.float32) / 255
    x = cv2.resize(x, (w, h), interpolation=cv2.INTER_LINEAR)
    if params.shift is not None:
        x = np.clip(x + np.float32(params.shift) / 255, 0, 1)
    if params.gray:
        x = np.repeat((x @ LUMA)[..., None], 3, axis=2)
    x = jitter_colour(x, params.jitter)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def jpeg(img, q):
    "Encode and decode uint8 H×W×3 RGB as JPEG of quality q (1 … 100)."
    ok, buffer = cv2.imencode(".jpg", np.ascontiguousarray(img[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, int(q)])
    if not ok:
        raise ValueError(f"JPEG encoding failed for shape {img.shape}, quality {q}")
    return np.ascontiguousarray(cv2.imdecode(buffer, cv2.IMREAD_COLOR)[..., ::-1])

# %% [markdown]
# # Solutions: restoring a photo {#sec-solutions-photos .unnumbered}
#
# The exercises are those of @sec-photos.

# %%
import inspect
import math

import cv2
import numpy as np
import torch
from fastcore.test import test_fail
from numpy.testing import assert_allclose

from gfpgan_edu import photos
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, show
from gfpgan_edu.faces import align, detect, similarity, template, to_images, to_tensor
from gfpgan_edu.identity import angle, load_embedder
from gfpgan_edu.photos import AXES, face_mask, match_colour, unalign
from gfpgan_edu.weights import load_prior, load_weights

torch.set_num_threads(1)
photo = astronaut()
face, = detect(photo)

# %% [markdown]
# ## 1. Compute: the ellipse, and its steepest step
#
# *Which share of the square lies inside $\rho<1$ for $q=2$, and which has $m=1$? At which brightness error does the steepest step of the mask reach one grey level for a square of 170 px?* A superellipse has the area $4ab\,\Gamma(1+1/q)^2/\Gamma(1+2/q)$, for $q=2$ that is $\pi ab$. Where $m=1$ is the same shape, smaller by $1-f$ each way. The polynomial $3t^2-2t^3$ is steepest at $t=\frac12$, with slope $\frac32$, and $t$ rises by $1/(fa)$ over the picture's width, along the shorter axis.

# %%
(a, b), f = AXES, 0.35
area = lambda q: 4 * a * b * math.gamma(1 + 1 / q) ** 2 / math.gamma(1 + 2 / q)
for q in (2, 2.5):
    m = face_mask(1000, power=q)
    inside, whole = area(q), (1 - f) ** 2 * area(q)
    by_mask = [(m > 0).mean(), (m == 1).mean()]
    print(f"q = {q}: inside {inside:.1%} of the square (on the mask {by_mask[0]:.1%}), "
          f"whole {whole:.1%} ({by_mask[1]:.1%}), mean {m.mean():.0%}")
    assert_allclose(by_mask, [inside, whole], rtol=0.01)
assert math.isclose(area(2), math.pi * a * b)
step = 1.5 / (f * a * 170)
found = max(np.abs(np.diff(face_mask(170), axis=k)).max() for k in (0, 1))
print(f"steepest step {step:.4f} a pixel (on the mask {found:.4f}): "
      f"one grey level at an error of {1 / step:.0f}")
assert_allclose(found, step, rtol=0.01)


# %% [markdown]
# The squarer oval covers four hundredths of the square more than the ellipse. An error of fifteen grey levels is spread so that no two neighbouring pixels differ by more than one.
#
# ## 2. Modify: a constant, a plane, a polynomial of degree two
#
# *Which of the three brings the darkened face back best, and which do you trust where half of the border is hair?* The three differ in the terms of the least squares alone. The second test puts "hair" into the photo's crop: the left half of the border is 80 grey levels darker there than in the restored face, which has nothing to do with light.

# %%
def match(crop, face, mask, degree):
    "`match_colour` with all terms u^i v^j up to i + j = degree."
    t = (np.arange(len(face)) + 0.5) / len(face)
    u, v = np.meshgrid(t, t)
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    terms = np.stack([u**i * v**j for i, j in powers]).reshape(-1, u.size)
    root = np.sqrt(mask * (1 - mask)).ravel()
    difference = np.subtract(crop, face, dtype=float).reshape(-1, 3)
    coefficients = np.linalg.lstsq((terms * root).T, root[:, None] * difference, rcond=None)[0]
    return (terms.T @ coefficients).reshape(face.shape)


crop, matrix = align(photo, face.landmarks, 128)
mask = face_mask(128)
u, v = np.meshgrid(*[(np.arange(128) + 0.5) / 128] * 2)
darkened = crop - np.stack([10 * u, 30 + 30 * u, 30 + 40 * u], -1)
hair = np.where((u < 0.5) & (mask < 1), 80, 0)[..., None]
inner, off = mask == 1, {}
hairy = np.clip(crop - 1.0 * hair, 0, 255)
assert_allclose(match(crop, darkened, mask, 1), match_colour(crop, darkened, mask), atol=0.1)
tests = {"darkened": (crop, darkened),
         "darkened, cut off at black": (crop, np.maximum(darkened, 0)),
         "hair on one side": (hairy, crop.astype(float))}
for name, (target, wrong) in tests.items():
    results = [np.clip(wrong + match(target, wrong, mask, d), 0, 255) for d in (0, 1, 2)]
    off[name] = [np.abs(result - crop)[inner].mean() for result in results]
    print(f"{name:26} error on the face, constant, plane, degree two:",
          *(f"{v:.1f}" for v in off[name]))
assert off["darkened"][0] > 2 > 0.01 > off["darkened"][1]
assert off["darkened, cut off at black"][1] == min(off["darkened, cut off at black"])
assert off["hair on one side"][2] == max(off["hair on one side"])

# %%
#| fig-alt: "Three times one face: evenly lit with a constant, brighter to the right with a plane, and more so with degree two."
lit = [np.clip(crop + match(hairy, crop, mask, d), 0, 255).astype(np.uint8) for d in (0, 1, 2)]
show(lit, ["constant", "plane", "degree two"], height=1.5);

# %% [markdown]
# For light from one side the plane is exact and a constant is not; degree two adds nothing. Where the wrong face was cut off at black, as in @fig-photos-tint, the border lies about the light, and degree two believes the most of it. So it does with hair: none of the three knows what hair is, and the terms of higher degree carry the error from the border to the middle, where nothing was measured. Hence the fewest terms that can follow light: a plane.
#
# ## 3. Break: the past alone, and half a pixel
#
# *Replace the symmetric window of `smooth` by an exponential average over the past. Measure the lag for a head that moves 3 px a frame.* The average $\bar L_t=\alpha L_t+(1-\alpha)\bar L_{t-1}$ follows a steady motion of $v$ px a frame at a distance of $v(1-\alpha)/\alpha$. For a fair comparison $\alpha$ is such that noise falls as much as with the window: by the root of $\alpha/(2-\alpha)$.

# %%
w = np.exp(-np.arange(-6, 7) ** 2 / 8)
noise = np.sqrt((w**2).sum()) / w.sum()                 # what the window of width 2 leaves
alpha = 2 * noise**2 / (1 + noise**2)
at, mean = 3.0 * np.arange(60), [0.0]
for x in at[1:]:
    mean.append(alpha * x + (1 - alpha) * mean[-1])
lag = at[-1] - mean[-1]
print(f"α = {alpha:.2f}: {lag:.1f} px behind; by the formula {3 * (1 - alpha) / alpha:.1f}")
assert_allclose(lag, 3 * (1 - alpha) / alpha, rtol=1e-3)
rng, trembling = np.random.default_rng(0), [0.0]
for e in rng.normal(size=20_000):
    trembling.append(alpha * e + (1 - alpha) * trembling[-1])
assert_allclose(np.std(trembling), noise, rtol=0.03)

# %% [markdown]
# What does the network do with a crop that is off by as much? For a head whose square has 170 px, nine pixels are 3.4 of the model's 64. The faces are samples of the prior, aligned by themselves; damaged, moved, restored and moved back they are compared with the truth.

# %%
#| fig-alt: "Three rows of four small faces: the face, restored in time, and restored late, more blurred."
net, prior, embed = load_weights("bundled"), load_prior("bundled"), load_embedder()
g, size = torch.Generator().manual_seed(22), net.config.size
with torch.inference_mode():
    z = torch.randn(32, prior.config["style_dim"], generator=g)
    faces = to_images(prior(z, truncation=0.7, w_mean=prior.mean_w(generator=g)))
damaged = [degrade(y, DegradationParams(sigma_x=0.7, sigma_y=0.7, r=2, delta=8, q=70, noise_seed=k))
           for k, y in enumerate(faces)]


def moved(image, px):
    "The picture px further to the right."
    matrix = np.float32([[1, 0, px], [0, 1, 0]])
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (size, size),
                          borderMode=cv2.BORDER_REPLICATE)


inside, error, degrees, seen = face_mask(size) > 0.5, {}, {}, {}
for name, px in (("in time", 0), ("late", lag * size / 170)):
    with torch.inference_mode():
        out = to_images(net(to_tensor(np.stack([moved(x, px) for x in damaged])))[0])
        seen[name] = np.stack([moved(y, -px) for y in out])
        ours, theirs = embed(to_tensor(seen[name])), embed(to_tensor(faces.copy()))
        degrees[name] = angle(ours, theirs).mean().item()
    error[name] = np.sqrt(np.square(seen[name].astype(float) - faces)[:, inside].mean())
    print(f"{name:7}: root mean square error on the face {error[name]:.1f}, "
          f"identity angle {degrees[name]:.0f}°")
assert error["late"] > error["in time"] and degrees["late"] > degrees["in time"]
rows = {"the face": faces, **seen}
titles = [name for name in rows for _ in range(4)]
show([x[i] for x in rows.values() for i in range(4)], titles, cols=4, height=0.95);

# %% [markdown]
# The network knows faces in one place. A twentieth of the square beside it, both numbers get worse, on average over 32 faces. A film that is there as a whole needs no filter of the past, so `smooth` looks both ways.
#
# *Then forget the `+ 0.5` in `unalign`: which check turns red first?* The half pixel is one of the *photo*, so it matters most where the face has more pixels than the photo. The first check behind `unalign` is that of the perfect restorer.

# %%
source = inspect.getsource(unalign)
assert source.count("n * (0.5 - np.array([x0, y0]))") == 1
broken = dict(vars(photos))
exec(source.replace("n * (0.5 - np.array([x0, y0]))", "n * (-np.array([x0, y0]))"), broken)
tiny = photo[:510, :510].reshape(170, 3, 170, 3, 3).mean((1, 3))
perfect, _ = align(photo, face.landmarks, 256)
m_tiny = similarity((face.landmarks + 0.5) / 3 - 0.5, template(256))
inside = unalign(np.pad(np.ones((204, 204)), 26), m_tiny, (0, 0, 170, 170)) > 0.99


def loses_little(unalign):
    lost = np.abs(unalign(perfect, m_tiny, (0, 0, 170, 170)) - tiny)[inside].mean()
    print(f"a perfect restorer, put back: {lost:.1f} grey levels of error")
    assert lost < 1, "more than one grey level"


loses_little(unalign)
test_fail(lambda: loses_little(broken["unalign"]), exc=AssertionError, contains="one grey level")

# %% [markdown]
# # Solutions: faces {#sec-solutions-faces .unnumbered}
#
# The exercises are those of @sec-faces.

# %%
import tempfile

import cv2
import numpy as np
import torch

from gfpgan_edu import faces
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import PARTS, Face, FaceFolder, align, boxes_from_components, detect

torch.set_num_threads(1)
photo = astronaut()
face = detect(photo)[0]
eyes = float(np.hypot(*(face.landmarks[1] - face.landmarks[0])))


# %% [markdown]
# ## 1. Compute: copies, work and overlap
#
# *How many copies has the pyramid, what share of the work is in the first, and how much do two shifted squares overlap?* By @eq-faces-pyramid the last copy is the largest $i$ with $m\,s_i\ge12$. Work is proportional to pixels, and copy $i$ has $\gamma^{2i}$ of the first one's: a geometric sum.
# The black rim of `detect` adds a quarter of the shorter side all round, so the pyramid of a searched photo starts from $1.5\,m$.

# %%
def copies(shorter, smallest=20, gamma=0.709):
    return 1 + int(np.log(12 / (shorter * 12 / smallest)) / np.log(gamma))


seen = []
hook = faces._mtcnn().pnet.register_forward_hook(
    lambda m, i, o: seen.append(i[0].shape[-1] * i[0].shape[-2]))
# with its rim: 600 × 450
detect(np.zeros((300, 400, 3), np.uint8))
hook.remove()
assert len(seen) == copies(450)
first = (1 - 0.709**2) / (1 - 0.709 ** (2 * copies(450)))
print(f"4000 × 3000: {copies(3000)} copies; 1600 × 1200: {copies(1200)}, "
      f"with its rim {copies(1800)}")
print(f"first copy: {first:.3f} of the work as derived, "
      f"{seen[0] / sum(seen):.3f} counted at 400 × 300")
assert abs(first - seen[0] / sum(seen)) < 0.01

# squares drawn and counted, against (b - t)/(b + t)
b, t = 20, 5
canvas = np.zeros((2, b, b + t), bool)
canvas[0, :, :b] = canvas[1, :, t:] = True
overlap = (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()
assert overlap == (b - t) / (b + t)
print(f"squares of {b} px, {t} px apart: overlap {overlap:.2f}")


# %% [markdown]
# 15 copies for the large photo and 12 at 1600 × 1200 (14 with the rim); half of P-Net's work is in the first copy. Squares moved by $t$ share $b(b-t)$ and cover $b(b+t)$, so the overlap is $(b-t)/(b+t)$, and 0 from $t=b$ on.
#
# ## 2. Modify: look twice
#
# *Write a `Detector` that also looks at the mirror image and averages the points. Does the error fall?* Mirrored points go back by $x\mapsto w-1-x$, left and right change names, and two faces are the same one if their middles are close.

# %%
def detect_twice(image):
    "A `Detector`: faces of the photo and of its mirror image; points found in both are averaged."
    w, found = image.shape[1], detect(image)
    for f in detect(np.ascontiguousarray(image[:, ::-1])):
        x0, y0, x1, y1 = f.box
        points = (f.landmarks * (-1, 1) + (w - 1, 0))[[1, 0, 2, 4, 3]]
        back = Face((w - 1 - x1, y0, w - 1 - x0, y1), f.score, points)
        near = [i for i, g in enumerate(found)
                if np.hypot(*(g.landmarks.mean(0) - points.mean(0))) < (x1 - x0) / 3]
        if near:
            g = found[near[0]]
            found[near[0]] = Face(g.box, max(g.score, f.score), (g.landmarks + points) / 2)
        else:
            found.append(back)
    return found


# %%
def damaged(d, seed):
    "As in the chapter: the head, shifted a little, with damage d, and where its corner was."
    dx, dy = np.random.default_rng(seed).integers(0, 16, 2)
    crop = np.ascontiguousarray(photo[10 + dy:240 + dy, 100 + dx:340 + dx])
    params = DegradationParams(0.6 * d, 0.6 * d, r=d, delta=10, q=60, noise_seed=seed)
    return degrade(crop, params), (100 + dx, 10 + dy)


def error(found, corner):
    return np.abs(found[0].landmarks + corner - face.landmarks).mean() / eyes if found else np.nan


once, twice = [], []
for d in (4, 8, 10):
    draws = [damaged(d, seed) for seed in range(4)]
    once.append([error(detect(crop), corner) for crop, corner in draws])
    twice.append([error(detect_twice(crop), corner) for crop, corner in draws])
    count = [int(np.isfinite(e[-1]).sum()) for e in (once, twice)]
    errors = ""
    if count[0]:
        errors = f"; error {np.nanmean(once[-1]):.3f} and {np.nanmean(twice[-1]):.3f}"
    print(f"d = {d}: found in {count[0]} of 4 by one look, {count[1]} by two{errors}")
both = np.isfinite(once)
gain = np.mean(np.array(twice)[both]) / np.mean(np.array(once)[both])
print(f"error over the faces found by one look: {gain:.2f} of what it was")
assert 0.8 < gain < 1.1 and np.isfinite(twice).sum() >= both.sum()


# %% [markdown]
# Hardly: the two looks share the damage and much of their error, so the average gains a few percent, and at $d=10$ the face that was missed stays missed. What one look finds alone is a face at the edge of what can be found, whose score lies near `min_score` in either picture. Twice the work buys little here; a better detector would buy more.
#
# ## 3. Break: edit in place, and forget the offset
#
# *Let `mirror_components` edit its argument and let `FaceFolder` keep dictionaries. Which check turns red, and why only when an epoch is asked for twice?* The careless class below differs from `FaceFolder` in these two points. The check is that of the chapter: boxes of a mirrored epoch must be the mirrored boxes, each time.

# %%
def mirror_in_place(c):
    for part in PARTS:
        c[part][0] = 512 - c[part][0]
    c["left_eye"], c["right_eye"] = c["right_eye"], c["left_eye"]
    return c


class Careless(FaceFolder):
    # one dictionary per picture, for good
    kept = None

    def __getitem__(self, key):
        item, (flipped, _) = super().__getitem__(key), self.draw(*key)
        self.kept = self.kept or [{p: list(v) for p, v in zip(PARTS, c)} for c in self.components]
        parts = self.kept[key[1]]
        parts = mirror_in_place(parts) if flipped else parts
        boxes = torch.from_numpy(boxes_from_components(parts, self.size))
        return item | {"boxes": boxes}


# %%
folder = tempfile.TemporaryDirectory()
cv2.imwrite(f"{folder.name}/1.png", align(photo, face.landmarks, 64)[0])
good, bad = (c(folder.name, 64, boxes="template", degraded=False) for c in (FaceFolder, Careless))
# a face that is not symmetric
bad.components[:, 0, 0] = good.components[:, 0, 0] = 120
# the first mirrored one
epochs = [e for e in range(12) if good.draw(e, 0)[0]][:1]
same = lambda data, e: torch.equal(data[e, 0]["boxes"], good[e, 0]["boxes"])
first, second = same(bad, epochs[0]), same(bad, epochs[0])
print(f"mirrored epoch {epochs[0]} asked once: {'right' if first else 'wrong'}, "
      f"twice: {'right' if second else 'wrong'}")
assert first and not second and same(good, epochs[0])
folder.cleanup()

# %% [markdown]
# The first mirrored visit is right, because the stored boxes were still those of the file; it leaves them mirrored, and the next visit mirrors them back while the picture is mirrored anew. A check that visits a picture once cannot see it. (An unmirrored visit after a mirrored one is wrong too.)
#
# Now the `- 1` of `detect`. Points one pixel too far right and down shift the crop by one photo pixel, which is $s$ pixels of the aligned face, with $s$ the scale of the map.

# %%
small = cv2.resize(photo, None, fx=40 / 87, fy=40 / 87, interpolation=cv2.INTER_AREA)
points = detect(small)[0].landmarks
(_, m), (_, shifted) = align(small, points, 512), align(small, points + 1, 512)
moved = np.abs((shifted - m)[:, 2])
scale = np.hypot(m[0, 0], m[1, 0])
print(f"scale {scale:.1f}; the aligned face moves by {moved[0]:.1f} px sideways "
      f"and {moved[1]:.1f} px upwards")
np.testing.assert_allclose(np.hypot(*moved), scale * np.sqrt(2), rtol=1e-6)

# %% [markdown]
# A face 40 px wide is enlarged about seven times, so one pixel of the photo becomes about seven of the 512 in each direction: about a third of the width of an iris.

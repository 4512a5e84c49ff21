"""Restore a photo with the bundled model and draw input | restored | original.

python figures/demo.py        # the astronaut photo of scikit-image (public domain), degraded first
python figures/demo.py PHOTO  # your photo as it is
"""
import argparse
import json
import pathlib
import sys
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut
from gfpgan_edu.photos import restore
from gfpgan_edu.pictures import PhotoError, read_image
from gfpgan_edu.weights import BUNDLED

HERE = pathlib.Path(__file__).parent
DAMAGE = DegradationParams(sigma_x=2.0, sigma_y=2.0, r=4.0, delta=15.0, q=50, noise_seed=1)


def neighbourhood(box, shape, grow=0.45):
    "A square window around a face, inside the photo: slices (rows, columns)."
    h, w = shape[:2]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = (0.5 + grow) * max(box[2] - box[0], box[3] - box[1])
    return tuple(slice(int(max(0, c - half)), int(min(n, c + half))) for c, n in ((y, h), (x, w)))


def draw(columns, boxes, out):
    "`columns`: {title: photo}. First row the photos, then a row for each of the first three faces."
    shape = next(iter(columns.values())).shape
    windows = [(slice(None), slice(None))] + [neighbourhood(b, shape) for b in boxes[:3]]
    down, across = len(windows), len(columns)
    fig, axes = plt.subplots(down, across, figsize=(3.4 * across, 3.4 * down), squeeze=False,
                             layout="constrained")
    for row, window in zip(axes, windows):
        for ax, (title, photo) in zip(row, columns.items()):
            ax.imshow(photo[window], interpolation="nearest")
            ax.set_title(title, fontsize=10)
            ax.axis("off")
    fig.savefig(out, dpi=90, pil_kwargs=dict(quality=90) if out.suffix == ".jpg" else None)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("photo", nargs="?", type=pathlib.Path)
    ap.add_argument("--out", type=pathlib.Path, default=HERE / "demo.png")
    a = ap.parse_args()
    start = time.perf_counter()
    original = None if a.photo else astronaut()
    try:
        photo = read_image(a.photo) if a.photo else degrade(original, DAMAGE)
        result = restore(photo)
    except PhotoError as e:
        message = str(e)
        if a.photo is not None and str(a.photo) not in message:
            message = f"{a.photo}: {message.removeprefix('image: ')}"
        print("demo: " + " ".join(message.split()), file=sys.stderr)
        sys.exit(2)
    columns = {"input": photo, f"restored ({BUNDLED})": result.image}
    if original is not None:
        columns["original"] = original
    draw(columns, result.boxes, a.out)
    n, seconds = len(result.boxes), time.perf_counter() - start
    print(f"{n} face{'s' * (n != 1)} restored in {seconds:.1f} s: see {a.out}")
    if original is not None and a.out.name != "demo.png":
        from manifest import record

        record(a.out.name, f"python figures/demo.py --out figures/{a.out.name}",
               dict(damage=json.loads(DAMAGE.to_json()), weights=BUNDLED))
        face = neighbourhood(result.boxes[0], photo.shape, 0)
        error = {title: float(np.abs(c[face].astype(float) - original[face]).mean())
                 for title, c in columns.items()}
        print("mean absolute error on the face, grey levels:",
              {title: round(e, 2) for title, e in error.items()})


if __name__ == "__main__":
    main()

"""Draw a training as a film strip from the validation sheets that runs left: the same faces after
more and more pictures.

python figures/film.py runs/bundled/restorer
    figures/bundled/film.png: input, restored after ever more pictures, truth
python figures/film.py runs/first runs/then --faces 0 3
    a run and one that went on with its weights (its begun.yaml says after how many pictures)
python figures/film.py runs/prior --out film.png
    of a prior: the samples of the same codes
"""
import argparse
import pathlib
import sys

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from manifest import record
from PIL import Image

HERE = pathlib.Path(__file__).parent
LABELS, DPI = 22, 100                       # LABELS: height of the line of numbers, in pixels


def sheets(run):
    """{pictures seen: validation sheet} of a run's folder, the side of its faces, and whether it is
    a restorer's (rows input, restored, truth)."""
    config, begun = yaml.safe_load((run / "config.yaml").read_text()), run / "begun.yaml"
    before = yaml.safe_load(begun.read_text())["images"] if begun.exists() else 0
    found = {}
    for path in sorted(run.glob("valid-*.png")):
        seen = before + int(path.stem[6:]) * config["run"]["batch"]
        found[seen] = cv2.imread(str(path))[..., ::-1]
    return found, config.get("model", config)["size"], "model" in config


def spread(seen, n):
    """At most n of the sorted counts `seen`: the first, the last, and between them ever larger
    steps, as most happens early."""
    wanted = np.geomspace(max(1, seen[min(1, len(seen) - 1)]), max(1, seen[-1]), n - 1)
    return sorted({seen[0], *(min(seen, key=lambda s: abs(s - w)) for w in wanted)})


def strip(runs, faces, frames):
    "(labels of the columns, picture of one row for each face). Raises ValueError."
    missing = [str(run) for run in runs
               if not (run / "config.yaml").exists() or not list(run.glob("valid-*.png"))]
    if missing:
        raise ValueError(f"not a run with validation sheets: {', '.join(missing)}")
    parts = [sheets(run) for run in runs]
    if len({part[1:] for part in parts}) > 1:
        raise ValueError("these runs are of different kinds or sizes")
    _, s, restorer = parts[0]
    found = {}
    for part in parts:
        found |= part[0]                                    # where two runs meet, the later one's
    seen = spread(sorted(found), frames)
    per_row, down = (length // s for length in found[seen[0]].shape[1::-1])
    if max(faces) >= (most := per_row if restorer else per_row * down):
        raise ValueError(f"the sheets hold {most} faces, 0 to {most - 1}")

    def face(sheet, i, kind):                               # kind: row of a restorer's sheet
        row = kind if restorer else i // per_row
        return sheet[row * s:(row + 1) * s, i % per_row * s:(i % per_row + 1) * s]

    rows = [[face(found[n], i, 1) for n in seen] for i in faces]
    labels = [f"{n:,}" for n in seen]
    if restorer:
        last = found[seen[-1]]
        rows = [[face(last, i, 0), *row, face(last, i, 2)] for i, row in zip(faces, rows)]
        labels = ["input", *labels, "truth"]
    return labels, np.concatenate([np.concatenate(row, 1) for row in rows])


def draw(labels, picture, out):
    "Faces pixel by pixel, a label above each column; 256 colours."
    h, w = picture.shape[:2]
    fig = plt.figure(figsize=(w / DPI, (h + LABELS) / DPI), dpi=DPI)
    ax = fig.add_axes([0, 0, 1, h / (h + LABELS)])
    ax.imshow(picture, interpolation="nearest", aspect="auto")
    ax.axis("off")
    for i, label in enumerate(labels):
        fig.text((i + 0.5) / len(labels), 1 - LABELS / 2 / (h + LABELS), label, fontsize=8,
                 ha="center", va="center")
    fig.canvas.draw()
    drawn = Image.fromarray(np.asarray(fig.canvas.buffer_rgba())[..., :3])
    few = drawn.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
    few.save(out, "PNG", optimize=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", type=pathlib.Path)
    ap.add_argument("--faces", nargs="+", type=int, default=[0, 1, 2, 6],
                    help="places on the sheet, from 0")
    ap.add_argument("--frames", type=int, default=8, help="how many steps of the training at most")
    ap.add_argument("--out", type=pathlib.Path, default=HERE / "bundled/film.png")
    a = ap.parse_args()
    try:
        labels, picture = strip(a.runs, a.faces, a.frames)
    except ValueError as e:
        sys.exit(f"film: {e}")
    draw(labels, picture, a.out)
    print(f"{a.out}: {', '.join(labels)}; {a.out.stat().st_size // 1000} kB")
    if a.out.resolve().is_relative_to(HERE):
        command = (f"python figures/film.py {' '.join(map(str, a.runs))} "
                   f"--faces {' '.join(map(str, a.faces))} --frames {a.frames}")
        record(a.out.resolve().relative_to(HERE), command, dict(labels=labels, faces=a.faces))


if __name__ == "__main__":
    main()

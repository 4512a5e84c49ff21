"""Fit the constants by which five points give the official component boxes, and measure how well
they do.

Needs besides the package: pip install dlib-bin face-recognition-models (the 68 points that the
official boxes are made of)

python figures/component_boxes.py --data DIR
    DIR holds ffhq256/; writes figures/component_boxes.json, about a minute on one core
"""
import argparse, datetime, importlib.util, json, os, pathlib, platform

import cv2, dlib, numpy as np, torch

from gfpgan_edu.faces import (PARTS, boxes_from_components, detect, face_components,
                              points_in_aligned)
from manifest import record

FIT, MEASURE = range(0, 300), range(1000, 1100)
POINTS = {"left_eye": range(36, 42), "right_eye": range(42, 48), "mouth": range(48, 68)}
# The package of the model cannot be imported any more (it needs pkg_resources), but its file can
# be found.
FOUND = importlib.util.find_spec("face_recognition_models")
MODEL = pathlib.Path(FOUND.origin).parent / "models/shape_predictor_68_face_landmarks.dat"


def official(points):
    """The official (x, y, half) of each part from the 68 points at 512 px: mean; half the longer
    side of their bounding box, at least 16."""
    parts = {part: points[list(which)] for part, which in POINTS.items()}
    return {part: (*q.mean(0), max(16, np.ptp(q, axis=0).max() / 2)) for part, q in parts.items()}


def faces(data, numbers):
    """(number, five points by the package's detector at 512 px, official components) of each face
    that both detectors find."""
    find, predict = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(MODEL))
    for n in numbers:
        image = cv2.imread(str(data / f"ffhq256/{n:05d}.jpg"))
        if image is None:
            continue
        image = np.ascontiguousarray(image[..., ::-1])
        five = points_in_aligned(image, detect)
        large = cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC)
        if five is None or not (boxes := find(large)):
            continue
        # the face that the picture is aligned to
        box = min(boxes, key=lambda b: np.hypot(b.center().x - 256, b.center().y - 290))
        points = np.array([[p.x, p.y] for p in predict(large, box).parts()], float)
        yield n, 2 * (five + 0.5) - 0.5, official(points)


def ratios(five, parts):
    """What is fitted, for one face: how far below their points the centres lie and how large the
    halves are, in eye distances and mouth widths."""
    across, mouth = five[1] - five[0], np.hypot(*(five[4] - five[3]))
    eyes = np.hypot(*across)
    down = np.array([-across[1], across[0]]) / eyes
    points = five[0], five[1], five[3:].mean(0)
    below = [(np.array(parts[p][:2]) - q) @ down / eyes for p, q in zip(PARTS, points)]
    halves = [parts["left_eye"][2] / eyes, parts["right_eye"][2] / eyes, parts["mouth"][2] / mouth]
    return dict(eye_down=np.mean(below[:2]), eye_half=np.mean(halves[:2]),
                mouth_down=below[2], mouth_half=halves[2])


def iou(a, b):
    "Intersection over union of boxes (…, 4)."
    area = lambda q: (q[..., 2:] - q[..., :2]).prod(-1)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    return both / (area(a) + area(b) - both)


def summary(overlaps):
    "Median and worst 5 % of each part, overlaps (n, 3)."
    def told(v):
        return dict(median=round(float(np.median(v)), 3),
                    worst_5_percent=round(float(np.quantile(v, 0.05)), 3))

    return {p: told(v) for p, v in zip(PARTS, overlaps.T)}


def main(data):
    torch.set_num_threads(1)
    fitted, measured = (list(faces(data, numbers)) for numbers in (FIT, MEASURE))
    each = [ratios(five, parts) for _, five, parts in fitted]
    constants = {k: round(float(np.median([r[k] for r in each])), 3) for k in each[0]}
    true = np.array([boxes_from_components(parts, 512) for _, _, parts in measured])
    ours = [face_components(five, 512, constants) for _, five, _ in measured]
    ours = np.array([boxes_from_components(parts, 512) for parts in ours])
    mean = {p: np.mean([parts[p] for _, _, parts in fitted], axis=0) for p in PARTS}
    mean = boxes_from_components(mean, 512)
    config = dict(fit=[FIT.start, FIT.stop], measure=[MEASURE.start, MEASURE.stop],
                  data="FFHQ, 256 px", landmarks="dlib, 68 points, at 512 px")
    result = dict(command="python figures/component_boxes.py --data DIR", config=config, seed=None,
                  hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}",
                  date=datetime.date.today().isoformat(),
                  fitted_faces=len(fitted), measured_faces=len(measured), constants=constants,
                  iou=summary(iou(true, ours)), iou_of_the_mean_boxes=summary(iou(true, mean)))
    out = pathlib.Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(result, indent=1) + "\n")
    record(out.name, result["command"], config)
    print(out.read_text())


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=pathlib.Path, required=True)
    main(ap.parse_args().data)

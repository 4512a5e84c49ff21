"""Images a second of the official training data set and of ours: one process, one thread, the same
faces at 512 px, in turns in one run.

    python tests/bench/degradation.py [--faces DIR] [--count 28] [--repeats 5]
                                      [--out figures/bench/degradation.json]

DIR: any pictures of faces; they are brought to 512 px. Without: the astronaut, shifted by another
amount each. Both sides read Pillow's PNGs and the PNGs that `prepare` writes, draw from the ranges
of train_gfpgan_v1.yml, mirror at random and give component boxes. The official packages must lie in
.peer (tests/peer/README.md). Times are medians over the repeats; a repeat asks every data set for
each picture four times, the same draws in every repeat. `cpu` is the processor time of the process,
`wall` the clock's; they differ where other programs want the same core. Stages come from separate
repeats, in which the functions that the data sets call are timed without those that they call in
turn; the rest of an item is `other`.
"""
import argparse
import datetime
import importlib.metadata
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "peer"), str(ROOT / "figures")]

import cv2
import numpy as np
import torch
from manifest import neat, record
from official import load_official
from PIL import Image

from gfpgan_edu import degradation, faces
from gfpgan_edu.examples import astronaut
from gfpgan_edu.pictures import read_image

PASSES, SIZE = 4, 512
OPTIONS = dict(                                                 # train_gfpgan_v1.yml
    io_backend=dict(type="disk"), use_hflip=True, mean=[0.5] * 3, std=[0.5] * 3, out_size=SIZE,
    blur_kernel_size=41, kernel_list=["iso", "aniso"], kernel_prob=[0.5, 0.5],
    blur_sigma=[0.1, 10], downsample_range=[0.8, 8], noise_range=[0, 20], jpeg_range=[60, 100],
    color_jitter_prob=0.3, color_jitter_shift=20, color_jitter_pt_prob=0.3, gray_prob=0.01,
    crop_components=True, eye_enlarge_ratio=1.4)


def make_folders(source, work, count):
    """The same faces three times: PNGs as Pillow writes them, and as `prepare` does by default and
    with compression. Returns {name: folder}."""
    if source is None:
        images = (np.roll(astronaut(), 512 * i // count, axis=1) for i in range(count))
    else:
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in faces.SUFFIXES)
        images = (faces._square(read_image(p), SIZE, p.name) for p in paths[:count])
    (work / "png").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(work / "png" / f"{i:08d}.png")
    for name, options in ("prepared", {}), ("compressed", dict(compression=3)):
        faces.prepare(work / "png", work / name, SIZE, aligned=True, detector=lambda image: [],
                      progress=False, **options)
    return {name: work / name for name in ("png", "prepared", "compressed")}


def official_data(folder, work):
    "Their data set; its landmark file holds the same boxes for each picture."
    from gfpgan.data.ffhq_degradation_dataset import FFHQDegradationDataset

    def parts():
        return dict(left_eye=np.array([190., 240., 32.]), right_eye=np.array([320., 240., 32.]),
                    mouth=np.array([256., 375., 45.]))

    n, file = len(list(folder.glob("*.png"))), work / "boxes.pth"
    torch.save({f"{i:08d}": parts() for i in range(n)}, file)
    options = dict(dataroot_gt=str(folder), component_path=str(file), io_backend=dict(type="disk"))
    # numpy arrays, as theirs
    with mock.patch.object(torch, "load", partial(torch.load, weights_only=False)):
        data = FFHQDegradationDataset(OPTIONS | options)
    # it would take the manifest for a picture
    data.paths = sorted(p for p in data.paths if p.endswith(".png"))
    return data


def one_round(data, ours):
    "(wall, cpu) seconds for each item, over PASSES passes with the same draws every time."
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    wall, cpu = time.perf_counter(), time.process_time()
    for epoch in range(PASSES):
        for i in range(len(data)):
            data[(epoch, i) if ours else i]
    n = PASSES * len(data)
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n


class Stages:
    """Patches functions so that the CPU time spent in each, less that of patched ones it calls, is
    summed under a stage's name."""

    def __init__(self, sites):
        self.sites, self.spent, self.inner = sites, defaultdict(float), [0.0]

    def timed(self, stage, fn):
        def wrapper(*args, **kwargs):
            self.inner.append(0.0)
            start = time.process_time()
            try:
                return fn(*args, **kwargs)
            finally:
                took = time.process_time() - start
                self.spent[stage] += took - self.inner.pop()
                self.inner[-1] += took
        return wrapper

    def __enter__(self):
        self.stack = ExitStack()
        for owner, name, stage in self.sites:
            wrapped = self.timed(stage, getattr(owner, name))
            if isinstance(owner, type) and isinstance(owner.__dict__.get(name), staticmethod):
                wrapped = staticmethod(wrapped)
            self.stack.enter_context(mock.patch.object(owner, name, wrapped))
        return self

    def __exit__(self, *error):
        self.stack.close()


def sites(ours):
    "(where, name, stage) of what is timed."
    if ours:
        steps = dict(gaussian_kernel="blur kernel", blur="blur", resize="resize",
                     add_noise="noise", jpeg="JPEG", shift_colour="colour", to_gray="colour",
                     jitter_colour="colour", to_uint8="to 8 bit")
        return [*((degradation, name, stage) for name, stage in steps.items()),
                (faces, "_read_face", "read and decode"), (faces, "to_tensor", "to tensor")]
    from basicsr.data import degradations as theirs
    from basicsr.utils import FileClient
    from gfpgan.data import ffhq_degradation_dataset as module

    data = module.FFHQDegradationDataset
    return [
        (FileClient, "get", "read and decode"),
        (module, "imfrombytes", "read and decode"),
        (theirs, "random_mixed_kernels", "blur kernel"),
        (cv2, "filter2D", "blur"),
        (cv2, "resize", "resize"),
        (theirs, "random_add_gaussian_noise", "noise"),
        (theirs, "random_add_jpg_compression", "JPEG"),
        (data, "color_jitter", "colour"),
        (data, "color_jitter_pt", "colour"),
        (module, "img2tensor", "to tensor"),
        (module, "normalize", "to tensor"),
    ]


def stages_of(data, ours, repeats):
    "Milliseconds of CPU time for each item and stage: medians over the repeats."
    rounds = []
    for _ in range(repeats):
        with Stages(sites(ours)) as s:
            total = one_round(data, ours)[1] * 1e3
        spent = {k: v * 1e3 / (PASSES * len(data)) for k, v in s.spent.items()}
        rounds.append(spent | {"other": total - sum(spent.values()), "total": total})
    return {k: round(statistics.median(r.get(k, 0.0) for r in rounds), 3) for k in rounds[0]}


def machine():
    "Whatever of this machine changes the numbers."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = "torch", "numpy", "opencv-python", "pillow"
    versions = {name: importlib.metadata.version(name) for name in packages}
    return dict(cpu=names[0] if names else platform.processor() or platform.machine(),
                cores=os.cpu_count(), python=platform.python_version(), **versions)


def by_side(table):
    "{(side, folder): value} as {side: {folder: value}}."
    out = {}
    for (side, name), value in table.items():
        out.setdefault(side, {})[name] = value
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--faces", type=Path)
    ap.add_argument("--count", type=int, default=28)
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--out", type=Path, default=ROOT / "figures" / "bench" / "degradation.json")
    a = ap.parse_args()
    load_official()
    encode = cv2.imencode
    # they pass the quality as a float
    cv2.imencode = lambda ext, image, params=(): encode(ext, image, [int(p) for p in params])
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as tmp:
        folders = make_folders(a.faces, Path(tmp), a.count)
        runs = {("official", name): official_data(folders[name], Path(tmp))
                for name in ("png", "prepared")}
        for name, folder in folders.items():
            boxes = "template" if name == "png" else "manifest"
            runs["ours", name] = faces.FaceFolder(folder, SIZE, degradation.OFFICIAL, boxes=boxes)
        times = {run: [] for run in runs}
        for repeat in range(a.repeats + 1):                     # the first one warms up
            for run, data in runs.items():
                t = one_round(data, run[0] == "ours")
                times[run] += [t] * (repeat > 0)
        few = max(2, a.repeats // 2)
        stages = {run: stages_of(data, run[0] == "ours", few) for run, data in runs.items()}
        bytes_of = lambda folder: statistics.mean(p.stat().st_size for p in folder.glob("*.png"))
        sizes = {name: round(bytes_of(folder) / 1e3) for name, folder in folders.items()}
    rates, ratio = {}, {}
    for k, kind in enumerate(("wall", "cpu")):
        r = rates[kind] = {run: 1 / statistics.median(t[k] for t in times[run]) for run in runs}
        ratio[kind] = {n: round(r["ours", n] / r["official", "png"], 2) for n in folders}
        both = r["ours", "prepared"] / r["official", "prepared"]
        ratio[kind]["prepared, both"] = round(both, 2)
    n = len(runs["ours", "png"])
    config = dict(size=SIZE, faces=n, repeats=a.repeats, images_in_a_repeat=PASSES * n,
                  threads=torch.get_num_threads(), ranges="official")
    command = (f"python tests/bench/degradation.py{' --faces DIR' * (a.faces is not None)} "
               f"--count {a.count} --repeats {a.repeats}")
    rounded = {kind: {run: round(v, 1) for run, v in r.items()} for kind, r in rates.items()}
    milliseconds = {run: [round(t[0] * 1e3, 1) for t in times[run]] for run in runs}
    result = dict(command=command, date=datetime.date.today().isoformat(), machine=machine(),
                  load_before=round(load, 1), load_after=round(os.getloadavg()[0], 1),
                  config=config, kilobytes_a_file=sizes,
                  images_per_second={kind: by_side(r) for kind, r in rounded.items()},
                  ratio=ratio, milliseconds=by_side(milliseconds),
                  cpu_milliseconds_by_stage=by_side(stages))
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(neat(result))
    if a.out.resolve().is_relative_to(ROOT / "figures"):
        record(a.out.resolve().relative_to(ROOT / "figures"), command, config)
    told = "load_before", "load_after", "images_per_second", "ratio", "cpu_milliseconds_by_stage"
    print(neat({k: result[k] for k in told}))


if __name__ == "__main__":
    main()

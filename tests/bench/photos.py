"""Memory and time of whole photos: 50 million pixels, each case from file to file in a process of
its own.

python tests/bench/photos.py        # two minutes; writes figures/bench/photos.json
"""
import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "figures"))

from manifest import neat, record  # noqa: E402

from gfpgan_edu.examples import astronaut  # noqa: E402
from gfpgan_edu.pictures import write_image  # noqa: E402

OUT = ROOT / "figures/bench/photos.json"
LIMIT = 2e9                                                     # bytes that a photo may take
CHILD = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from gfpgan_edu import load, restore
from gfpgan_edu.inference import fuse
from gfpgan_edu.pictures import read_image, write_image
def peak():                                                     # bytes in use at the worst moment
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
source, target, upscale = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
net, clock = fuse(load()), [time.process_time()]
restore(read_image(sys.argv[4]), net)                           # loads everything, by a small photo
small = peak()
clock = [time.process_time()]
photo = read_image(source)
clock.append(time.process_time())
result = restore(photo, net, upscale=upscale)
clock.append(time.process_time())
write_image(target, result.image)
clock.append(time.process_time())
changed = 0 if upscale > 1 else float((result.image[::4, ::4] != photo[::4, ::4]).any(-1).mean())
took = [round(b - a, 2) for a, b in zip(clock, clock[1:])]
print(json.dumps(dict(pixels=photo.shape[0] * photo.shape[1], upscale=upscale,
                      faces=len(result.faces), share_changed=round(changed, 4),
                      peak_bytes=peak(), peak_bytes_small_photo=small,
                      seconds=dict(zip(("read", "restore", "write"), took)))))
"""


def pictures(pixels):
    "{name: (picture, enlargement of the result)}, made of the astronaut photo, `pixels` in each."
    photo, side = astronaut(), round(pixels**0.5)
    tiles = np.tile(photo, (6, 6, 1))
    crowd = cv2.resize(tiles, (side, side), interpolation=cv2.INTER_CUBIC)
    portrait = cv2.resize(photo[10:230, 115:335], (side, side), interpolation=cv2.INTER_CUBIC)
    group = np.full((side, side, 3), 90, np.uint8)
    for y, x in ((0.1, 0.2), (0.1, 0.6), (0.5, 0.4)):
        y, x = round(y * side), round(x * side)
        part = cv2.resize(photo, (round(0.35 * side),) * 2, interpolation=cv2.INTER_CUBIC)
        group[y:y + len(part), x:x + len(part)] = part
    quarter = cv2.resize(group, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return {"36 small faces": (crowd, 1), "3 faces": (group, 1),
            "one face fills the photo": (portrait, 1),
            "a quarter of the pixels, enlarged twice": (quarter, 2)}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--megapixels", type=float, default=50)
    ap.add_argument("--out", type=Path, default=OUT)
    a = ap.parse_args()
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_image(folder / "small.png", astronaut()[:250, 100:350])
        for name, (picture, upscale) in pictures(a.megapixels * 1e6).items():
            write_image(folder / "photo.jpg", picture)
            words = [sys.executable, "-c", CHILD, folder / "photo.jpg", folder / "result.jpg",
                     str(upscale), folder / "small.png"]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr}")
            cases[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, cases[name], flush=True)
    worst = max(case["peak_bytes"] for case in cases.values())
    found = dict(command="python tests/bench/photos.py", weights="bundled",
                 limit_bytes=int(LIMIT), worst_peak_bytes=worst, seconds="of one processor",
                 cases=cases,
                 hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}, 1 thread",
                 python=platform.python_version(), torch=version("torch"),
                 date=datetime.date.today().isoformat())
    a.out.write_text(neat(found))
    if a.out == OUT:
        record("bench/photos.json", found["command"], dict(megapixels=a.megapixels))
    if a.megapixels == 50 and worst > LIMIT:
        sys.exit(f"{worst / 1e9:.2f} GB, allowed are {LIMIT / 1e9:.0f}")


if __name__ == "__main__":
    main()

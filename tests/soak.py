"""Kill training runs at random moments, again and again: no checkpoint may be lost or damaged, and every run must end as an undisturbed one.

    .venv/bin/python tests/soak.py [--kills 20] [--seed 0]      20 for the prior and 20 for the restorer: minutes
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

from train_runs import SMALL, faces, kill_often


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="for each kind of run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    began, inside = time.monotonic(), 0
    say = lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)
    for what in SMALL:
        with tempfile.TemporaryDirectory() as folder:
            try:
                inside += kill_often(what, faces(Path(folder) / "faces"), Path(folder), options.kills, say, options.seed)
            except AssertionError as e:
                print(f"soak: FAILED, {what} (seed {options.seed}): {e}")
                return 1
    print(f"soak: all well, {len(SMALL)} × {options.kills} kills, {inside} of them while a checkpoint was being written; nothing lost, nothing damaged, every run as if undisturbed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

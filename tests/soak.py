"""The long counts: damage thousands of files and read them, restore a thousand photos with one
network, and kill training runs at random moments, again and again.

    .venv/bin/python tests/soak.py [--files 20000] [--calls 1000] [--kills 20] [--seed 0]

Takes minutes; 20 kills for the prior and 20 for the restorer. No file may do more than be read or
be refused. Memory may not grow. No checkpoint may be lost or damaged, and every run must end as an
undisturbed one.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_runs import SMALL, faces, kill_often


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=20_000, help="damaged files to read")
    parser.add_argument("--calls", type=int, default=1000, help="of restore, with one network")
    parser.add_argument("--kills", type=int, default=20, help="for each kind of run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the damage")
    options = parser.parse_args()
    began, inside = time.monotonic(), 0
    say = lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)
    if options.files:
        fuzz = [sys.executable, str(Path(__file__).with_name("fuzz.py")),
                "--count", str(options.files), "--seed", str(options.seed)]
        # the decoders' own complaints go to stderr
        with subprocess.Popen(fuzz, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True) as process:
            for line in process.stdout:
                say(line.rstrip())
        if process.returncode:
            print(f"soak: FAILED, {options.files} damaged files (seed {options.seed}): "
                  f"exit code {process.returncode}; the files are in the folder above")
            return 1
    if options.calls:
        from test_concurrency import SLACK, growth

        grown = growth(options.calls)
        say(f"{options.calls} calls of restore: memory grew by {grown / 1e6:.1f} MB, "
            f"allowed are {SLACK / 1e6:.1f}")
        if grown > SLACK:
            print("soak: FAILED, memory grows")
            return 1
    for what in SMALL if options.kills else ():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                data = faces(folder / "faces")
                inside += kill_often(what, data, folder, options.kills, say, options.seed)
            except AssertionError as e:
                print(f"soak: FAILED, {what} (seed {options.seed}): {e}")
                return 1
    print(f"soak: all well, {options.files} damaged files read or refused; "
          f"{options.calls} photos restored in the same memory; "
          f"{len(SMALL)} × {options.kills} kills, "
          f"{inside} of them while a checkpoint was being written; "
          "nothing lost, nothing damaged, every run as if undisturbed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long a user waits before anything happens: the command's help and the imports, each in a new
process.

python tests/bench/startup.py        # a minute; writes figures/bench/startup.json
"""
import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "figures"))

from manifest import neat, record  # noqa: E402

COMMAND = Path(sys.executable).with_name("gfpgan-edu")
# name: words of a process; seconds allowed, where there is a budget
CASES = {
    "gfpgan-edu --help": ([str(COMMAND), "--help"], 0.5),
    "gfpgan-edu restore --help": ([str(COMMAND), "restore", "--help"], 0.5),
    "python": ([sys.executable, "-c", ""], None),
    "import gfpgan_edu": ([sys.executable, "-c", "import gfpgan_edu"], 0.3),
    "import torch": ([sys.executable, "-c", "import torch"], None),
    "import torch; from gfpgan_edu import restore": (
        [sys.executable, "-c", "import torch; from gfpgan_edu import restore"], None),
}


def seconds(words):
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    raw = argparse.RawDescriptionHelpFormatter
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--out", type=Path, default=ROOT / "figures/bench/startup.json")
    a = ap.parse_args()
    rounds = [{name: seconds(words) for name, (words, _) in CASES.items()}
              for _ in range(a.rounds + 1)][1:]                 # the first fills the disk's cache
    medians = {name: round(statistics.median(r[name] for r in rounds), 3) for name in CASES}
    budget = {name: limit for name, (_, limit) in CASES.items() if limit}
    both, alone = medians["import torch; from gfpgan_edu import restore"], medians["import torch"]
    command = "python tests/bench/startup.py"
    result = dict(command=command, seconds=medians, budget=budget,
                  restore_over_torch=round(both - alone, 3), rounds=a.rounds,
                  hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}",
                  python=platform.python_version(), torch=version("torch"),
                  date=datetime.date.today().isoformat())
    a.out.write_text(neat(result))
    if a.out.resolve().parent == (ROOT / "figures/bench").resolve():
        record("bench/startup.json", command, dict(rounds=a.rounds))
    print(neat(result), end="")


if __name__ == "__main__":
    main()

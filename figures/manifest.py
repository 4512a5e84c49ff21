"""Keep figures/manifest.json: which command, config and commit made each file of this folder, and
when."""
import datetime
import json
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).parent


def record(file, command, config):
    "Note how `file` (in this folder) was made; `config` is any JSON value that fixes the run."
    path = HERE / "manifest.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True,
                         text=True)
    entries[pathlib.PurePosixPath(file).as_posix()] = dict(
        command=command, config=config, commit=git.stdout.strip() or "unknown",
        date=datetime.date.today().isoformat())
    path.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")


def neat(value):
    "JSON text with one key a line, and lists of plain values on one line."
    flat = lambda m: "[" + " ".join(m[1].split()) + "]"
    return re.sub(r"\[([^\[\]{}]*)\]", flat, json.dumps(value, indent=1)) + "\n"

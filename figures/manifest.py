"""Keep figures/manifest.json: which command, config and commit made each file of this folder, and when."""
import datetime
import json
import pathlib
import subprocess

HERE = pathlib.Path(__file__).parent


def record(file, command, config):
    "Note how `file` (in this folder) was made; `config` is any JSON value that fixes the run."
    path = HERE / "manifest.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    entries[pathlib.Path(file).name] = dict(command=command, config=config, commit=commit or "unknown", date=datetime.date.today().isoformat())
    path.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")

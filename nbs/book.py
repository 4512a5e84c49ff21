"""Keeps the book whole: text twins, notebooks, exported package, the page of its names
(api_page.py), saved outputs.

    python nbs/book.py sync [04 05]      twins -> notebooks -> package -> nbs/api.qmd;
                                         rewrites only what changed
    python nbs/book.py execute [04 05]   sync, run the chapters, save their outputs
    python nbs/book.py check             find what is stale, broken, missing or too large;
                                         changes nothing
    python nbs/book.py run [04 05]       run the chapters in memory and compare with the saved
                                         text outputs; changes nothing
    python nbs/book.py render            let Quarto make the pages in _book/;
                                         a warning of Quarto is a failure

The source of a chapter is its twin nbs/text/NN_name.py (jupytext's percent format). After work in a
notebook, without jupytext's pairing, take it over with `sync --from-notebooks`. Solutions of its
exercises are nbs/solutions/NN_name.ipynb, with twins in nbs/solutions/text, and are kept in the
same way, but nothing of them is exported; 04 means both, solutions/04 the solutions alone. Every
function takes the root of the tree, so that tests can use a small one.
"""
import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from api_page import api_page

PACKAGE = "gfpgan_edu"
METADATA = {
    # the twin gets no header
    "jupytext": {"cell_metadata_filter": "tags,-all", "notebook_metadata_filter": "-all"},
    "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
}
SLOW, SLOW_SOLUTIONS = 60, 12    # seconds a chapter, and the solutions of one, may take


# ---------------------------------------------------------------- files

def chapters(root, wanted=(), suffix=".ipynb"):
    """Paths of the notebooks, or with suffix .py of their twins: chapters, then solutions.

    `wanted`: as in 04, 04_layers, solutions/04.
    """
    inner, found = "text/" if suffix == ".py" else "", []
    for part in ("", "solutions/"):
        found += sorted((root / "nbs").glob(f"{part}{inner}[0-9][0-9]_*{suffix}"))
    for w in wanted:
        if not any(named(p, w) for p in found):
            there = ", ".join(p.stem for p in found if not is_solution(p))
            sys.exit(f"no chapter {w} in {root / 'nbs'}; there are {there}")
    return [p for p in found if not wanted or any(named(p, w) for w in wanted)]


def is_solution(path):
    return "solutions" == (path.parent.parent if path.suffix == ".py" else path.parent).name


def named(path, wanted):
    wanted = Path(wanted)
    same = wanted.stem == path.stem or wanted.name == path.stem[:2]
    return same and ("solutions" not in wanted.parts or is_solution(path))


def twin_path(path):
    return path.parent / "text" / f"{path.stem}.py"


def notebook_path(twin):
    return twin.parent.parent / f"{twin.stem}.ipynb"


def write_if_changed(path, text):
    "Write atomically, and only where the content differs; returns whether it did."
    if path.exists() and path.read_bytes() == text.encode():
        return False
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
    return True


def read_notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


def as_json(nb):
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def joined(text):
    return text if isinstance(text, str) else "".join(text)


def code_cells(nb):
    "(number counted from 1 over all cells, cell) of each code cell."
    return [(i, c) for i, c in enumerate(nb["cells"], 1) if c["cell_type"] == "code"]


# ---------------------------------------------------------------- sync

def notebook_from(twin, old=None):
    """Twin text -> notebook. Outputs of `old` stay with the code cells whose source is unchanged;
    ids are hashes of the source."""
    import jupytext

    kept, seen, cells = defaultdict(list), Counter(), []
    for _, c in code_cells(old or {"cells": []}):
        kept[joined(c["source"])].append(cleaned(c["outputs"]))
    for c in jupytext.reads(twin, fmt="py:percent").cells:
        source = c.source.strip("\n")
        if not source.strip():
            continue
        digest = hashlib.sha1(f"{c.cell_type}\n{source}".encode()).hexdigest()[:8]
        cell = {"cell_type": c.cell_type,
                "id": digest if not seen[digest] else f"{digest}-{seen[digest]}",
                "metadata": {k: v for k, v in c.metadata.items() if k == "tags"},
                "source": source.splitlines(keepends=True)}
        seen[digest] += 1
        if c.cell_type == "code":
            cell["execution_count"] = None
            cell["outputs"] = kept[source].pop(0) if kept[source] else []
        cells.append(cell)
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def twin_of(nb):
    "Notebook -> twin text, as `jupytext --to py:percent --output - NOTEBOOK` prints it."
    import jupytext
    import nbformat

    node = nbformat.reads(as_json({**nb, "metadata": METADATA}), as_version=4)
    return jupytext.writes(node, fmt="py:percent")


def exported(root):
    """The package as nbdev makes it from the notebooks, {file name: text}, made in a temporary
    copy. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copy(root / "settings.ini", tmp)
        for folder, pattern in ("nbs", "*.ipynb"), (PACKAGE, "__init__.py"):
            (tmp / folder).mkdir()
            for p in (root / folder).glob(pattern):
                shutil.copy(p, tmp / folder)
        code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        command = [sys.executable, "-c", code]
        r = subprocess.run(command, cwd=tmp, env=env, capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(f"nbdev_export failed\n{r.stderr.strip()}")
        made = [p for p in (tmp / PACKAGE).glob("*.py") if p.name != "__init__.py"]
        return {p.name: p.read_text(encoding="utf-8") for p in made}


def sync(root, wanted=(), from_notebooks=False):
    """Twins -> notebooks (or the other way round) -> package -> page of its names.

    Returns the files it changed.
    """
    changed = []
    if from_notebooks:
        for path in chapters(root, wanted):
            twin = twin_path(path)
            twin.parent.mkdir(exist_ok=True)
            changed += [twin] * write_if_changed(twin, twin_of(read_notebook(path)))
    for twin in chapters(root, wanted, ".py"):
        path = notebook_path(twin)
        old = read_notebook(path) if path.exists() else None
        nb = notebook_from(twin.read_text(encoding="utf-8"), old)
        changed += [twin] * write_if_changed(twin, twin_of(nb))
        changed += [path] * write_if_changed(path, as_json(nb))
    for name, text in exported(root).items():
        changed += [root / PACKAGE / name] * write_if_changed(root / PACKAGE / name, text)
    api = root / "nbs/api.qmd"
    changed += [api] * write_if_changed(api, api_page(root, PACKAGE))
    return changed


# ---------------------------------------------------------------- execute, run

def execute(nb, cwd):
    """A copy of `nb` with fresh outputs. Raises CellExecutionError.

    What could differ between machines is fixed: this interpreter's kernel, the hash seed, one
    thread (which sleeps while it waits: on a busy machine that is several times quicker), no GPU,
    the example faces, no start-up files of the user.
    """
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in os.environ.items() if k != "GFPGAN_EDU_FACES"}
        env |= {"PYTHONHASHSEED": "0", "IPYTHONDIR": home, "CUDA_VISIBLE_DEVICES": "",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                "OMP_WAIT_POLICY": "PASSIVE"}
        node = nbformat.reads(as_json(nb), as_version=4)
        client = NotebookClient(node, timeout=600, kernel_name="python3",
                                resources={"metadata": {"path": str(cwd)}},
                                extra_arguments=["--log-level=ERROR"])
        client.execute(env=env)
    cells = []
    for old, new in zip(nb["cells"], node["cells"]):
        cells.append({**old, "outputs": cleaned(new["outputs"])} if "outputs" in old else old)
    return {**nb, "cells": cells}


def cleaned(outputs):
    """Outputs without counters, widgets, metadata and addresses; neighbouring pieces of one stream
    joined."""
    out = []
    for o in outputs:
        if o["output_type"] == "stream" and out and out[-1].get("name") == o["name"]:
            out[-1]["text"] = joined(out[-1]["text"]) + joined(o["text"])
            continue
        o = {k: v for k, v in o.items() if k != "transient"}
        if "data" in o:
            o["data"] = {k: v for k, v in o["data"].items() if "widget" not in k}
            if "image/png" in o["data"]:
                o["data"]["image/png"] = slim(joined(o["data"]["image/png"]).rstrip())
            o["metadata"] = {}
        if "execution_count" in o:
            o["execution_count"] = None
        out.append(o)
    for o in out:
        data = o.get("data", {})
        for holder, k in [(o, "text")] + [(data, k) for k in data if k.startswith("text")]:
            if k in holder:
                text = re.sub(r" at 0x[0-9a-fA-F]+", "", joined(holder[k]))
                holder[k] = text.splitlines(keepends=True)
    return out


def slim(png, limit=60_000):
    """A picture in base64; one of more than `limit` bytes with 256 colours of its own, a third of
    the size."""
    from PIL import Image

    raw = base64.b64decode(png)
    if len(raw) <= limit or not raw.startswith(b"\x89PNG"):    # damaged ones are the check's affair
        return png
    image = Image.open(io.BytesIO(raw))
    if image.mode == "P":
        return png
    few = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
    out = io.BytesIO()
    few.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def seen_by_reader(cell):
    "What two runs must agree on: printed text, values, and how many pictures."
    for o in cell["outputs"]:
        if o["output_type"] == "stream" and o["name"] == "stdout":
            yield joined(o["text"])
        elif o["output_type"] == "execute_result":
            yield joined(o["data"].get("text/plain", ""))
        elif "image/png" in o.get("data", {}):
            yield "a picture"


def run_chapter(path, root, save):
    "Execute one chapter -> its problems, and the seconds it took."
    from nbclient.exceptions import CellExecutionError

    nb, start, problems = read_notebook(path), time.perf_counter(), []
    try:
        fresh = execute(nb, path.parent)
    except CellExecutionError as e:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(e))
        problems.append(f"{path.relative_to(root)}: a cell failed\n{text}")
    else:
        if save:
            write_if_changed(path, as_json(fresh))
        else:
            problems += [f"{path.relative_to(root)}: {d}" for d in differences(nb, fresh)]
    return problems, time.perf_counter() - start


def run_chapters(root, wanted=(), save=False):
    """Execute the chapters, two at a time. Returns problems; prints seconds.

    `save`: keep the outputs; else report where they differ from the saved ones.
    """
    problems, begin, paths = [], time.perf_counter(), chapters(root, wanted)
    run_one = partial(run_chapter, root=root, save=save)
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for path, (found, seconds) in zip(paths, pool.map(run_one, paths)):
            problems += found
            name, limit = path.stem, SLOW
            if is_solution(path):
                name, limit = f"solutions/{path.stem}", SLOW_SOLUTIONS
            slow = f"   over {limit} s" if seconds > limit else ""
            print(f"{name:30} {seconds:6.1f} s{slow}", flush=True)
    print(f"{'together':30} {time.perf_counter() - begin:6.1f} s")
    return problems if chapters(root) else ["nbs: no chapter to run"]


def differences(saved, fresh):
    for (i, a), (_, b) in zip(code_cells(saved), code_cells(fresh)):
        if "volatile" not in a["metadata"].get("tags", []):
            old, new = list(seen_by_reader(a)), list(seen_by_reader(b))
            if old != new:
                yield (f"cell {i}: saved output differs from a fresh run\n"
                       f"  saved: {old}\n  fresh: {new}")


# ---------------------------------------------------------------- render

NO_QUARTO = """Not rendered: the program quarto is not installed. \
Get it from https://quarto.org/docs/download (on Debian and Ubuntu:
download quarto-<version>-linux-amd64.deb there, \
then: sudo apt-get install ./quarto-*.deb) and say make book again."""


def render(root):
    """Render the book with Quarto, whose output is shown as it comes.

    Returns problems: each of its warnings, and that it failed.
    """
    if not (quarto := shutil.which("quarto")):
        return [NO_QUARTO]
    problems, env = [], {**os.environ, "QUARTO_PYTHON": sys.executable}
    with subprocess.Popen([quarto, "render"], cwd=root, env=env, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        for line in run.stdout:
            print(line, end="", flush=True)
            text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
            # WARN: Quarto's, WARNING: its filters', [WARNING]: pandoc's
            if re.match(r"\W*WARN(ING)?\b", text):
                problems.append(f"quarto: {text}")
    if run.returncode:
        problems.append(f"quarto: failed with exit code {run.returncode}")
    return problems


def main(args=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    sub = parser.add_subparsers(dest="command", required=True)
    helps = {"sync": "twins -> notebooks -> package", "execute": "sync, run, save outputs",
             "run": "run and compare with the saved outputs"}
    for name in helps:
        p = sub.add_parser(name, help=helps[name])
        p.add_argument("chapters", nargs="*", metavar="NN",
                       help="numbers or names of chapters, with their solutions; "
                            "solutions/NN: these alone; none: all")
        if name == "sync":
            p.add_argument("--from-notebooks", action="store_true",
                           help="take the text from the notebooks instead of the twins")
    sub.add_parser("check", help="find what is stale, broken, missing or too large")
    sub.add_parser("render", help="let Quarto make the pages")
    a, root = parser.parse_args(args), Path(__file__).resolve().parent.parent
    problems = []
    if a.command in ("sync", "execute"):
        for path in sync(root, a.chapters, getattr(a, "from_notebooks", False)):
            print(f"changed {path.relative_to(root)}")
    if a.command in ("run", "execute"):
        problems = run_chapters(root, a.chapters, save=a.command == "execute")
    if a.command == "check":
        from check_book import check

        problems, counts = check(root)
        seen = ", ".join(f"{n} {what}" for what, n in counts.items())
        print(seen, "checked:", f"{len(problems)} problems" if problems else "all well")
    if a.command == "render":
        problems = render(root)
        print("not well:" if problems else "open _book/index.html")
    for p in problems:
        print(p)
    return bool(problems)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as e:      # the export failed: nbdev's message is enough
        sys.exit(str(e))

"""The tools that keep the book whole find planted faults; the package imports lean; what it imports is declared."""
import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "nbs"))
import book  # noqa: E402
import check_book  # noqa: E402
from strip_directives import strip_directives  # noqa: E402

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

FIRST = '''# %% [markdown]
# # First {#sec-first}
#
# See @fig-dot, @eq-sum, @sec-second and [@key2020]; a [link](02_second.ipynb#sec-second), a picture ![dot](../figures/dot.png), an `@address` and $a@b$.
#
# $$a + b$$ {#eq-sum}
#
# ::: {.callout-note}
# A note.
# :::

# %%
#| default_exp first

# %%
#| export
LIMIT = 3


def double(x):
    "Twice x (@eq-sum)."
    return 2 * x


# %%
#| label: fig-dot
#| fig-cap: "A dot."
show(1);

# %%
print(double(2))
'''
SECOND = '''# %% [markdown]
# # Second {#sec-second}

# %%
x = 1

# %% [markdown]
# ## Exercises
#
# 1. **Compute.** Two and two.
#
# Worked solutions: [nbs/solutions/02_second.ipynb](solutions/02_second.ipynb).

# %% tags=["volatile"]
import time; print(time.time())
'''
SOLUTIONS = '''# %% [markdown]
# # Solutions: second {#sec-solutions-second .unnumbered}
#
# ## 1. Compute
#
# @sec-second asks for the sum.

# %%
2 + 2
'''
CONFIG = '''project: {type: book, render: [index.qmd, nbs/01_first.ipynb, nbs/02_second.ipynb, nbs/solutions/02_second.ipynb]}
book: {title: T, chapters: [index.qmd, {part: P, chapters: [nbs/01_first.ipynb, nbs/02_second.ipynb]}, {part: S, chapters: [nbs/solutions/02_second.ipynb]}]}
'''


FIRST_PY, SECOND_PY, SOLUTIONS_PY = "nbs/text/01_first.py", "nbs/text/02_second.py", "nbs/solutions/text/02_second.py"
FOUR = dict(output_type="execute_result", execution_count=None, metadata={}, data={"text/plain": ["4"]})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A small healthy tree: two chapters, solutions of one, a package, a figure."
    root = tmp_path_factory.mktemp("tree")
    for folder in ("nbs/text", "nbs/solutions/text", "figures", "gfpgan_edu"):
        (root / folder).mkdir(parents=True)
    for name, text in {"nbs/text/01_first.py": FIRST, "nbs/text/02_second.py": SECOND, SOLUTIONS_PY: SOLUTIONS, "_quarto.yml": CONFIG, "index.qmd": "# Preface\n\nSee @sec-first.\n",
                       "references.bib": "@book{key2020,\n title = {T}\n}\n", "gfpgan_edu/__init__.py": "", ".gitignore": "__pycache__/\n",
                       "README.md": "# T\n\n[one](nbs/01_first.ipynb), [below](#t)\n"}.items():
        (root / name).write_text(text)
    shutil.copy(ROOT / "settings.ini", root)
    (root / "figures/dot.png").write_bytes(b"png")
    (root / "figures/manifest.json").write_text(json.dumps({"dot.png": dict(command="c", config={}, commit="1", date="2026-01-01")}))
    book.sync(root)
    edit(root, 1, lambda nb: nb["cells"][3].update(outputs=[dict(output_type="display_data", metadata={}, data={"image/png": PIXEL})]))
    edit(root, 1, lambda nb: nb["cells"][4].update(outputs=[dict(output_type="stream", name="stdout", text=["4\n"])]))
    edit(root, 2, lambda nb: nb["cells"][3].update(outputs=[dict(output_type="stream", name="stdout", text=["0.1\n"])]))
    solved = root / "nbs/solutions/02_second.ipynb"
    solved.write_text(solved.read_text().replace('"outputs": []', f'"outputs": [{json.dumps(FOUR)}]'))
    book.sync(root, ["solutions/02"])
    return root


@pytest.fixture
def root(template, tmp_path):
    return shutil.copytree(template, tmp_path / "a tree")


def edit(root, number, change):
    "Change a notebook's JSON in place."
    path = next((root / "nbs").glob(f"0{number}_*.ipynb"))
    nb = json.loads(path.read_text())
    change(nb)
    path.write_text(book.as_json(nb))


def edit_text(name, old, new):
    def plant(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
        if "/text/" in name:                                  # as sync does, without the export
            path = book.notebook_path(root / name)
            path.write_text(book.as_json(book.notebook_from((root / name).read_text(), book.read_notebook(path))))
    return plant


def edit_cell(number, cell, **fields):
    return lambda root: edit(root, number, lambda nb: nb["cells"][cell].update(fields))


def problems(root):
    "Everything `check` looks for but the export, which takes seconds."
    b = check_book.Book(root)
    found = [*check_book.stale_twins(root), *check_book.foreign_names(root)]
    for look in (check_book.listing, check_book.solutions, check_book.headings, check_book.labels, check_book.references, check_book.links, check_book.cells,
                 check_book.large_files, check_book.unexplained_figures):
        found += look(b)
    return found, b.counts


def test_healthy_tree_has_no_problem_and_is_really_looked_at(root):
    found, counts = problems(root)
    assert found == []
    assert counts == dict(chapters=3, labels=5, figures=1, references=6, citations=1, links=5, files=17) | {"code cells": 7, "outputs": 4, "result files": 1}


ERROR = dict(output_type="error", ename="E", evalue="", traceback=[])
FAULTS = {
    "unresolved reference": (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# @fig-none"), "@fig-none is not a label"),
    "unresolved reference in code": (edit_text(FIRST_PY, "(@eq-sum)", "(@eq-none)"), "@eq-none in the code"),
    "missing citation": (edit_text(FIRST_PY, "[@key2020]", "[@key2020; @key2021]"), "@key2021 is not in references.bib"),
    "broken link": (edit_text(FIRST_PY, "](02_second.ipynb", "](03_third.ipynb"), "link 03_third.ipynb#sec-second leads nowhere"),
    "link to no label": (edit_text(FIRST_PY, "ipynb#sec-second", "ipynb#sec-third"), "no such label"),
    "broken link in the README": (edit_text("README.md", "01_first", "1_first"), "README.md: link nbs/1_first.ipynb leads nowhere"),
    "missing picture": (edit_text(FIRST_PY, "../figures/dot.png", "../figures/dots.png"), "picture ../figures/dots.png leads nowhere"),
    "picture from a server": (edit_text(FIRST_PY, "../figures/dot.png", "https://example.org/dot.png"), "needs a network"),
    "duplicate label": (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# $$c$$ {#eq-sum}"), "label eq-sum is already in nbs/01_first.ipynb"),
    "two titles": (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# # More"), "2 headings of level 1"),
    "no title": (edit_text(SECOND_PY, "# # Second", "# ## Second"), "0 headings of level 1"),
    "unclosed div": (edit_text(FIRST_PY, "# A note.\n# :::", "# A note."), "1 ::: not closed"),
    "div closed twice": (edit_text(FIRST_PY, "# A note.\n# :::", "# A note.\n# :::\n# :::"), "::: closes nothing"),
    "source as one string": (edit_cell(1, 1, source="#| default_exp first"), "source is not a list of lines"),
    "stale twin": (lambda root: (root / FIRST_PY).write_text((root / FIRST_PY).read_text().replace("2 * x", "3 * x")), "01_first.py: differs"),
    "missing twin": (lambda root: (root / SECOND_PY).unlink(), "nbs/02_second: has no text twin"),
    "saved error": (edit_cell(2, 1, outputs=[ERROR]), "the saved output is an error"),
    "saved warning": (edit_cell(2, 1, outputs=[dict(output_type="stream", name="stderr", text=["UserWarning: old\n"])]), "a warning or traceback"),
    "missing output": (edit_cell(1, 4, outputs=[]), "no output is saved"),
    "missing picture of a figure": (edit_cell(1, 3, outputs=[]), "figure fig-dot has no saved picture"),
    "large picture": (edit_cell(1, 3, outputs=[dict(output_type="display_data", metadata={}, data={"image/png": "AAAA" * 70_000})]), "a picture of 210 kB"),
    "large notebook": (edit_cell(2, 1, outputs=[dict(output_type="stream", name="stdout", text=["x" * 700_000])]), "allowed are 700"),
    "figure never referred to": (edit_text(FIRST_PY, "@fig-dot", "the figure"), "figure @fig-dot is never referred to"),
    "unknown directive": (edit_text(SECOND_PY, "x = 1", "#| exprot\nx = 1"), "'#| exprot' is neither"),
    "missing manifest entry": (lambda root: (root / "figures/new.json").write_text("{}"), "figures/new.json: figures/manifest.json does not tell its command"),
    "manifest entry without a file": (lambda root: (root / "figures/dot.png").unlink(), "dot.png does not exist"),
    "stale twin of solutions": (lambda root: (root / SOLUTIONS_PY).write_text(SOLUTIONS.replace("2 + 2", "2 + 3")), "nbs/solutions/text/02_second.py: differs"),
    "missing twin of solutions": (lambda root: (root / SOLUTIONS_PY).unlink(), "nbs/solutions/02_second: has no text twin"),
    "solutions without a link": (edit_text(SECOND_PY, "](solutions/02", "](../nbs/solutions/02"), "nbs/02_second.ipynb: no link to solutions/02_second.ipynb"),
    "link to no solutions": (edit_text(FIRST_PY, "](02_second.ipynb#sec-second", "](solutions/01_first.ipynb"), "link solutions/01_first.ipynb leads nowhere"),
    "exercise without a solution": (edit_text(SECOND_PY, "Two and two.", "Two and two.\n# 2. **Break.** It."), "nbs/solutions/02_second.ipynb: 1 solutions of 2"),
    "solutions of no chapter": (lambda root: [p.rename(p.with_stem("03_third")) for p in (root / "nbs").glob("text/02*")] and
                                edit_text("_quarto.yml", "nbs/02_second", "nbs/03_third")(root), "nbs/solutions/02_second.ipynb: solves the exercises of no"),
    "unlisted solutions": (edit_text("_quarto.yml", "nbs/solutions/", ""), "nbs/solutions/02_second.ipynb is not listed"),
    "unlisted chapter": (edit_text("_quarto.yml", ", nbs/02_second.ipynb", ""), "nbs/02_second.ipynb is not listed"),
    "listed chapter missing": (lambda root: (root / "nbs/02_second.ipynb").unlink(), "nbs/02_second.ipynb does not exist"),
    "large file": (lambda root: (root / "data.bin").write_bytes(bytes(26_000_000)), "tracked tree: 26.0 MB"),
    "notebook global": (lambda root: (root / "gfpgan_edu/first.py").write_text("def f():\n    return device\n"), "undefined name 'device'"),
}


@pytest.mark.parametrize("plant, message", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_found(root, plant, message):
    plant(root)
    found, _ = problems(root)
    assert any(message in f for f in found), found
    assert all(re.match(r"[\w./ ]+: ", f) and "\n" not in f for f in found)


def test_check_finds_hand_edited_and_orphaned_modules_and_an_empty_book(root):
    (root / "gfpgan_edu/first.py").write_text((root / "gfpgan_edu/first.py").read_text() + "\n# by hand\n")
    (root / "gfpgan_edu/orphan.py").write_text("")
    for path in (root / "nbs").rglob("02*"):
        path.unlink()
    found, _ = check_book.check(root)
    assert any(f.startswith("gfpgan_edu/first.py: differs from a fresh export") for f in found)
    assert any(f.startswith("gfpgan_edu/orphan.py: no notebook exports it") for f in found)
    for path in (root / "nbs").glob("01*"):
        path.unlink()
    (root / "gfpgan_edu/_modidx.py").unlink()
    (root / "nbs/text/01_first.py").unlink()
    assert "book: found no chapters to check" in check_book.check(root)[0]


def test_sync_is_idempotent_keeps_outputs_of_unchanged_cells_and_drops_others(root):
    def content():
        return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    before = content()
    assert book.sync(root) == [] and content() == before
    twin = root / FIRST_PY
    twin.write_text(twin.read_text().replace("print(double(2))", "print(double(3))").replace("LIMIT = 3", "LIMIT = 4") + "\n\n\n")
    assert {p.name for p in book.sync(root, ["01"])} == {"01_first.py", "01_first.ipynb", "first.py"}
    cells = book.read_notebook(root / "nbs/01_first.ipynb")["cells"]
    assert cells[3]["outputs"][0]["data"]["image/png"] == PIXEL and cells[4]["outputs"] == []
    assert "LIMIT = 4" in (root / "gfpgan_edu/first.py").read_text()
    cells = book.notebook_from("# %%\nx\n\n# %%\nx\n")["cells"]
    assert len({c["id"] for c in cells}) == 2 and cells == book.notebook_from("# %%\nx\n\n\n\n# %%\nx")["cells"]


def test_solutions_are_synced_as_chapters_are_and_export_nothing(root):
    assert [p.parent.name for p in book.chapters(root, ["02"])] == ["nbs", "solutions"] and len(book.chapters(root)) == 3
    assert [p.parent.name for p in book.chapters(root, ["solutions/02"], ".py")] == ["text"] and book.chapters(root, ["01"]) == [root / "nbs/01_first.ipynb"]
    for name in ("nbs/solutions/02_second.ipynb", SOLUTIONS_PY):
        assert [root / name] == book.chapters(root, [name], Path(name).suffix)
    twin = root / SOLUTIONS_PY
    twin.write_text(twin.read_text().replace("2 + 2", "#| default_exp second\n#| export\ndef f(): pass"))
    assert {p.name for p in book.sync(root)} == {"02_second.ipynb"} and not (root / "gfpgan_edu/second.py").exists()
    with pytest.raises(SystemExit, match="no chapter solutions/01"):
        book.chapters(root, ["solutions/01"])


def test_twin_is_what_jupytext_prints(root):
    shutil.copy(ROOT / "jupytext.toml", root)
    command = [sys.executable, "-m", "jupytext", "--to", "py:percent", "--output", "-", "nbs/01_first.ipynb"]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == (root / FIRST_PY).read_text()


def test_run_reports_failures_and_stale_outputs_but_not_volatile_ones(root, capsys):
    text = SECOND.replace("x = 1", "2 + 2").replace("# %% tags", "# %%\nprint('new')\n\n# %% tags")
    (root / SECOND_PY).write_text(text)
    book.sync(root, ["02"])
    edit(root, 2, lambda nb: nb["cells"][1].update(outputs=[dict(output_type="execute_result", execution_count=None, metadata={}, data={"text/plain": ["5"]})]))
    before = (root / "nbs/02_second.ipynb").read_bytes()
    found = book.run_chapters(root)                           # the first chapter calls show(), which nobody defines
    assert [f.split("\n")[0] for f in found] == ["nbs/01_first.ipynb: a cell failed", "nbs/02_second.ipynb: cell 2: saved output differs from a fresh run",
                                                 "nbs/02_second.ipynb: cell 4: saved output differs from a fresh run"]
    assert "NameError" in found[0] and "saved: ['5']" in found[1] and "fresh: ['4']" in found[1]
    assert (root / "nbs/02_second.ipynb").read_bytes() == before and "total" in capsys.readouterr().out
    edit_text(SOLUTIONS_PY, "2 + 2", "len(__import__('os').listdir('text')) + 4")(root)        # run where the notebook lies
    book.write_if_changed(solved := root / "nbs/solutions/02_second.ipynb", solved.read_text().replace('"outputs": []', f'"outputs": [{json.dumps(FOUR)}]'))
    found = book.run_chapters(root, ["solutions/02"])
    assert len(found) == 1 and "nbs/solutions/02_second.ipynb: cell 2: saved output differs" in found[0] and "fresh: ['5']" in found[0]
    assert book.run_chapters(root / "figures") == ["nbs: no chapter to run"]


# ---------------------------------------------------------------- strip_directives

def notebook(*sources):
    cells = [dict(cell_type="code", id=str(i), metadata={}, outputs=[], execution_count=None, source=s.splitlines(keepends=True)) for i, s in enumerate(sources)]
    return dict(cells=cells, metadata={"kernelspec": {"name": "python3"}}, nbformat=4, nbformat_minor=5)


@pytest.mark.parametrize("line", ["#| export", "#|export", "#| exports", "#| exporti", "#| export other.module", "#| default_exp a.b", "#|default_exp a:b",
                                  "#| hide_input", "#| hide_output", "#| hide_line", "#| filter_stream FutureWarning: old", "#| eval:false", "#| collapse_input"])
def test_directives_are_removed_and_options_stay(line):
    code = 'x = {"a": 1}\n"""\n#| export\n"""\n#| not at the top'
    nb = notebook(f"{line}\n{code}", f'{line}\n\n#| label: fig-a\n#|fig-cap: "A: b"\n#| eval: false\n{code}', line, f"{line}\n", code)
    got = strip_directives(nb)
    assert ["".join(c["source"]) for c in got["cells"]] == [code, f'#| label: fig-a\n#|fig-cap: "A: b"\n#| eval: false\n{code}', code]
    assert got["cells"][-1] == nb["cells"][-1] and got["metadata"] == nb["metadata"]
    assert all(isinstance(c["source"], list) and all(s.endswith("\n") for s in c["source"][:-1]) for c in got["cells"])


def test_hidden_cells_go_and_markdown_stays():
    nb = notebook("#| hide\nx", "#|hide\nx", "#| hide:\nx", "#| export\n#| hide\nx", "#| hide_input\nx", "")
    nb["cells"].append(dict(cell_type="markdown", id="m", metadata={}, source=["#| export\n", "text"]))
    got = strip_directives(nb)["cells"]
    assert [c["id"] for c in got] == ["4", "m"] and got[1] == nb["cells"][-1]


def test_filter_runs_with_the_standard_library_alone():
    nb = notebook("#| export\nx = 'ŷ'")
    run = subprocess.run([sys.executable, "-I", "-S", str(ROOT / "nbs/strip_directives.py")], input=json.dumps(nb, ensure_ascii=False).encode(), capture_output=True, check=True)
    assert json.loads(run.stdout.decode("utf-8")) == strip_directives(nb)


# ---------------------------------------------------------------- the tree itself

def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert targets == set(re.findall(r"^make ([a-z-]+) ", listed, re.M)) == set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split())
    assert {"demo", "test", "soak", "bench", "book", "chapters", "sync", "jupyter", "train-bundled", "verify-official", "test-web", "help"} == targets


def test_import_is_quiet_and_lean():
    heavy = "{'torch', 'torchvision', 'matplotlib', 'facenet_pytorch', 'cv2'}"
    for code in (f"import gfpgan_edu, sys; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)",
                 f"import gfpgan_edu.cli, sys; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"):
        run = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_modules_import_without_pictures_and_detector():
    names = [f"gfpgan_edu.{p.stem}" for p in (ROOT / "gfpgan_edu").glob("*.py") if not p.stem.startswith("_")]
    assert len(names) >= 11
    code = f"import {', '.join(names)}, sys; bad = {{'matplotlib', 'facenet_pytorch', 'torchvision'}} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def requirements(key):
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return {re.split(r"[<>=!~ ;\[]", line)[0].lower().replace("_", "-") for line in cfg["DEFAULT"][key].splitlines() if line.strip()}


def test_every_import_is_a_declared_requirement():
    runtime, dev, judges, onnx, web = (requirements(k) for k in ("requirements", "dev_requirements", "judges_requirements", "onnx_requirements", "web_requirements"))
    optional = {"web.py": web, "examples.py": dev, "metrics.py": judges, "losses.py": judges, "identity.py": onnx}                                       # examples serves the chapters, the others ask politely
    dists, seen = packages_distributions(), set()
    for path in (ROOT / "gfpgan_edu").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops = [a.name.split(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                tops = [node.module.split(".")[0]]
            else:
                continue
            for top in set(tops) - set(sys.stdlib_module_names) - {"gfpgan_edu"}:
                seen.add(top)
                allowed = runtime | optional.get(path.name, set())
                names = dists.get(top) or [{"skimage": "scikit-image", "dlib": "dlib-bin"}.get(top, top)]            # Python 3.10 knows fewer
                assert {d.lower().replace("_", "-") for d in names} & allowed, f"{path.name} imports {top}, which settings.ini does not require"
    assert {"torch", "cv2", "PIL", "safetensors", "facenet_pytorch", "lpips", "torch_fidelity"} <= seen


def test_large_pictures_are_saved_with_256_colours():
    import base64
    import io

    import numpy as np
    from PIL import Image

    def png(image):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()

    ramp = np.arange(256, dtype=np.uint8)
    photo = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.random.default_rng(0).integers(0, 64, (256, 256), np.uint8)), 2)
    small, large = png(photo[:32, :32]), png(photo)
    slimmed = Image.open(io.BytesIO(base64.b64decode(book.slim(large))))
    assert book.slim(small) == small and len(book.slim(large)) < 0.6 * len(large)
    assert book.slim(book.slim(large), limit=100) == book.slim(large)                           # once is enough
    assert slimmed.size == (256, 256) and np.abs(np.asarray(slimmed.convert("RGB"), float) - photo).mean() < 12

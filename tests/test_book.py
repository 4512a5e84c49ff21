"""The tools that keep the book whole find planted faults; the package imports lean; what it imports
is declared."""
import ast
import json
import os
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

PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
         "rkJggg==")

FIRST = '''# %% [markdown]
# # First {#sec-first}
#
# See @fig-dot, @eq-sum, @sec-second and [@key2020]; a [link](02_second.ipynb#sec-second), \
a picture ![dot](../figures/dot.png), an `@address` and $a@b$.
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
    return 2 * x if x < LIMIT else x


# %%
#| label: fig-dot
#| fig-cap: "A dot."
#| fig-alt: "One black pixel."
show(1);

# %%
print(double(2))

# %%
import json; print(json.loads(open("../figures/gain.json").read()))

# %% [markdown]
# The gain is 24.3 dB in 90 % of the cases. ::: stays text.
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
CONFIG = '''project: {type: book, render: [index.qmd, \
nbs/01_first.ipynb, nbs/02_second.ipynb, nbs/api.qmd, nbs/solutions/02_second.ipynb]}
book: {title: T, chapters: [index.qmd, \
{part: P, chapters: [nbs/01_first.ipynb, nbs/02_second.ipynb, nbs/api.qmd]}, \
{part: S, chapters: [nbs/solutions/02_second.ipynb]}]}
'''


FIRST_PY, SECOND_PY = "nbs/text/01_first.py", "nbs/text/02_second.py"
SOLUTIONS_PY, SOLVED = "nbs/solutions/text/02_second.py", "nbs/solutions/02_second.ipynb"


def value(text):
    return dict(output_type="execute_result", execution_count=None, metadata={},
                data={"text/plain": [text]})


def printed(text, name="stdout"):
    return dict(output_type="stream", name=name, text=[text])


def picture(png):
    return dict(output_type="display_data", metadata={}, data={"image/png": png})


FOUR = value("4")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A small healthy tree: two chapters, solutions of one, a package, a figure."
    root = tmp_path_factory.mktemp("tree")
    for folder in ("nbs/text", "nbs/solutions/text", "figures", "gfpgan_edu"):
        (root / folder).mkdir(parents=True)
    texts = {FIRST_PY: FIRST, SECOND_PY: SECOND, SOLUTIONS_PY: SOLUTIONS, "_quarto.yml": CONFIG,
             "index.qmd": "# Preface\n\nSee @sec-first.\n",
             "references.bib": "@book{key2020,\n title = {T}\n}\n",
             "gfpgan_edu/__init__.py": '_HOME = {"twice": "first.double"}\n',
             ".gitignore": "__pycache__/\n",
             "README.md": "# T\n\n[one](nbs/01_first.ipynb), [below](#t)\n"}
    for name, text in texts.items():
        (root / name).write_text(text)
    shutil.copy(ROOT / "settings.ini", root)
    (root / "figures/dot.png").write_bytes(b"png")
    (root / "figures/gain.json").write_text("[24.31, 0.9]")
    entry = dict(command="c", config={}, commit="1", date="2026-01-01")
    manifest = {"dot.png": entry, "gain.json": entry}
    (root / "figures/manifest.json").write_text(json.dumps(manifest))
    book.sync(root)
    edit_cell(1, 3, outputs=[picture(PIXEL)])(root)
    edit_cell(1, 4, outputs=[printed("4\n")])(root)
    edit_cell(1, 5, outputs=[printed("[24.31, 0.9]\n")])(root)
    edit_cell(2, 3, outputs=[printed("0.1\n")])(root)
    solved = root / SOLVED
    saved = f'"outputs": [{json.dumps(FOUR)}]'
    solved.write_text(solved.read_text().replace('"outputs": []', saved))
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
            nb = book.notebook_from((root / name).read_text(), book.read_notebook(path))
            path.write_text(book.as_json(nb))
    return plant


def edit_cell(number, cell, **fields):
    return lambda root: edit(root, number, lambda nb: nb["cells"][cell].update(fields))


def problems(root, but=(check_book.spelling,)):
    "Everything `check` looks for but the export and the spelling, which take a while."
    b = check_book.Book(root)
    found = [*check_book.stale_twins(root), *check_book.stale_api_page(root)]
    found += check_book.foreign_names(root)
    for look in check_book.LOOKS:
        found += look(b) if look not in but else []
    return found, b.counts


def test_healthy_tree_has_no_problem_and_is_really_looked_at(root):
    found, counts = problems(root, but=())
    assert found == []
    assert counts == {
        "chapters": 3, "labels": 9, "figures": 1, "references": 9, "citations": 1, "links": 6,
        "files": 19, "numbers": 2, "outputs": 5, "code cells": 8, "result files": 2,
        "public names": 2, "spelled files": 7, "Python files": 1}


def written(name, text):
    return lambda root: (root / name).write_text(text)


def removed(name):
    return lambda root: (root / name).unlink()


def link_to_no_page(root):
    (root / "nbs/other.qmd").write_text("# O")
    edit_text(FIRST_PY, "02_second.ipynb#sec-second", "other.qmd")(root)


def stale_twin(root):
    text = (root / FIRST_PY).read_text()
    (root / FIRST_PY).write_text(text.replace("2 * x", "3 * x"))


def picture_in_solutions(root):
    edit_text(SOLVED, '"text/plain"', '"image/png"')(root)
    edit_text(SOLVED, '"4"', f'"{PIXEL}"')(root)


def solutions_of_no_chapter(root):
    (root / SECOND_PY).rename(root / "nbs/text/03_third.py")
    edit_text("_quarto.yml", "nbs/02_second", "nbs/03_third")(root)


WIDE = f"x = {'1' * 97}"
ERROR = dict(output_type="error", ename="E", evalue="", traceback=[])
FAULTS = {
    "unresolved reference":
        (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# @fig-none"),
         "@fig-none is not a label"),
    "unresolved reference in code":
        (edit_text(FIRST_PY, "(@eq-sum)", "(@eq-none)"), "@eq-none in the code"),
    "missing citation":
        (edit_text(FIRST_PY, "[@key2020]", "[@key2020; @key2021]"),
         "@key2021 is not in references.bib"),
    "unresolved reference in a caption":
        (edit_text(FIRST_PY, "A dot.", "A dot as in @tbl-none."), "@tbl-none is not a label"),
    "unresolved reference in solutions":
        (edit_text(SOLUTIONS_PY, "@sec-second", "@sec-none"),
         "nbs/solutions/02_second.ipynb: cell 1: @sec-none is not a label"),
    "reference to what has no number":
        (edit_text(SOLUTIONS_PY, "@sec-second", "@sec-solutions-second"),
         "@sec-solutions-second has no number"),
    "broken link":
        (edit_text(FIRST_PY, "](02_second.ipynb", "](03_third.ipynb"),
         "link 03_third.ipynb#sec-second leads nowhere"),
    "link to no label":
        (edit_text(FIRST_PY, "ipynb#sec-second", "ipynb#sec-third"), "no such label"),
    "link to no page of the book":
        (link_to_no_page, "link other.qmd leads to no page of the book"),
    "broken link in the README":
        (edit_text("README.md", "01_first", "1_first"),
         "README.md: link nbs/1_first.ipynb leads nowhere"),
    "missing picture":
        (edit_text(FIRST_PY, "../figures/dot.png", "../figures/dots.png"),
         "picture ../figures/dots.png leads nowhere"),
    "picture from a server":
        (edit_text(FIRST_PY, "../figures/dot.png", "https://example.org/dot.png"),
         "needs a network"),
    "duplicate label":
        (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# $$c$$ {#eq-sum}"),
         "label eq-sum is already in nbs/01_first.ipynb"),
    "two titles":
        (edit_text(SECOND_PY, "{#sec-second}", "{#sec-second}\n#\n# # More"),
         "2 headings of level 1"),
    "no title":
        (edit_text(SECOND_PY, "# # Second", "# ## Second"), "0 headings of level 1"),
    "unclosed div":
        (edit_text(FIRST_PY, "# A note.\n# :::", "# A note."), "1 ::: not closed"),
    "div closed twice":
        (edit_text(FIRST_PY, "# A note.\n# :::", "# A note.\n# :::\n# :::"), "::: closes nothing"),
    "div without a blank line above":
        (edit_text(FIRST_PY, "# $$a + b$$ {#eq-sum}\n#\n", "# $$a + b$$ {#eq-sum}\n#\n# Then\n"),
         "'::: {.callout-note}' opens no div"),
    "text behind the opening of a div":
        (edit_text(FIRST_PY, "{.callout-note}", "{.callout-note} Beware"),
         "'::: {.callout-note} Beware' opens no div"),
    "name that no cell tries":
        (edit_text(FIRST_PY, "print(double(2))", "print(4)"),
         "nbs/01_first.ipynb: LIMIT is exported, and no cell that exports nothing uses it"),
    "number that no cell tells":
        (edit_text(FIRST_PY, "24.3 dB", "24.4 dB"),
         "nbs/01_first.ipynb: cell 7: 24.4 is in no source and no output"),
    "share that no cell tells":
        (edit_text(FIRST_PY, "90 %", "91 %"), "cell 7: 91 is in no source and no output"),
    "stale page of names":
        (edit_text("nbs/api.qmd", "Twice x", "Thrice x"),
         "nbs/api.qmd: not what signatures and docstrings say"),
    "missing page of names":
        (removed("nbs/api.qmd"), "nbs/api.qmd: not what signatures and docstrings say"),
    "public name that is not there":
        (edit_text("gfpgan_edu/__init__.py", "first.double", "first.triple"),
         "gfpgan_edu/__init__.py: lists what is not there: "
         "gfpgan_edu.twice: first has no public name triple"),
    "source as one string":
        (edit_cell(1, 1, source="#| default_exp first"), "source is not a list of lines"),
    "stale twin": (stale_twin, "01_first.py: differs"),
    "missing twin": (removed(SECOND_PY), "nbs/02_second: has no text twin"),
    "saved error": (edit_cell(2, 1, outputs=[ERROR]), "the saved output is an error"),
    "saved warning":
        (edit_cell(2, 1, outputs=[printed("UserWarning: old\n", "stderr")]),
         "a warning or traceback"),
    "missing output": (edit_cell(1, 4, outputs=[]), "no output is saved"),
    "missing picture of a figure":
        (edit_cell(1, 3, outputs=[]), "figure fig-dot has no saved picture"),
    "picture without a text":
        (edit_cell(1, 3, source=["show(1);"]),
         "nbs/01_first.ipynb: cell 4: a picture without `#| fig-alt`"),
    "picture without a text in solutions":
        (picture_in_solutions,
         "nbs/solutions/02_second.ipynb: cell 2: a picture without `#| fig-alt`"),
    "large picture":
        (edit_cell(1, 3, outputs=[picture("AAAA" * 70_000)]), "a picture of 210 kB"),
    "large notebook":
        (edit_cell(2, 1, outputs=[printed("x" * 700_000)]), "allowed are 700"),
    "figure never referred to":
        (edit_text(FIRST_PY, "@fig-dot", "the figure"), "figure @fig-dot is never referred to"),
    "wide line":
        (edit_text(SECOND_PY, "x = 1", WIDE),
         "nbs/02_second.ipynb: cell 2: a line of 101 characters"),
    "wide command":
        (edit_text(FIRST_PY, "The gain is", "```\n# " + "x" * 101 + "\n# ```\n#\n# The gain is"),
         "nbs/01_first.ipynb: cell 7: a line of 101 characters"),
    "wide line of a tool":
        (written("figures/run.py", f"{WIDE[:-1]}\n{WIDE}\n"),
         "figures/run.py: line 2: 101 characters, allowed are 100: x = 111"),
    "wide line of the package":
        (edit_text("gfpgan_edu/__init__.py", "_HOME", f"{WIDE}\n_HOME"),
         "gfpgan_edu/__init__.py: line 1: 101 characters"),
    "long cell":
        (edit_text(SECOND_PY, "x = 1", "\n".join(f"x{i} = 1" for i in range(41))),
         "nbs/02_second.ipynb: cell 2: 41 lines of code"),
    "unknown directive":
        (edit_text(SECOND_PY, "x = 1", "#| exprot\nx = 1"), "'#| exprot' is neither"),
    "directive below the top":
        (edit_text(SECOND_PY, "x = 1", "x = 1\n#| export"),
         "nbs/02_second.ipynb: cell 2: a `#|` line below the top"),
    "missing manifest entry":
        (written("figures/new.json", "{}"),
         "figures/new.json: figures/manifest.json does not tell its command"),
    "manifest entry without a file":
        (removed("figures/dot.png"), "dot.png does not exist"),
    "stale twin of solutions":
        (written(SOLUTIONS_PY, SOLUTIONS.replace("2 + 2", "2 + 3")),
         "nbs/solutions/text/02_second.py: differs"),
    "missing twin of solutions":
        (removed(SOLUTIONS_PY), "nbs/solutions/02_second: has no text twin"),
    "solutions without a link":
        (edit_text(SECOND_PY, "](solutions/02", "](../nbs/solutions/02"),
         "nbs/02_second.ipynb: no link to solutions/02_second.ipynb"),
    "link to no solutions":
        (edit_text(FIRST_PY, "](02_second.ipynb#sec-second", "](solutions/01_first.ipynb"),
         "link solutions/01_first.ipynb leads nowhere"),
    "exercise without a solution":
        (edit_text(SECOND_PY, "Two and two.", "Two and two.\n# 2. **Break.** It."),
         "nbs/solutions/02_second.ipynb: 1 solutions of 2"),
    "exercises without solutions":
        (edit_text(FIRST_PY, "The gain is",
                   "## Exercises\n#\n# 1. It.\n#\n# ## Gain\n#\n# The gain is"),
         "nbs/01_first.ipynb: exercises without solutions in nbs/solutions/01_first.ipynb"),
    "solutions of no chapter":
        (solutions_of_no_chapter, "nbs/solutions/02_second.ipynb: solves the exercises of no"),
    "unlisted solutions":
        (edit_text("_quarto.yml", "nbs/solutions/", ""),
         "nbs/solutions/02_second.ipynb is not listed"),
    "unlisted chapter":
        (edit_text("_quarto.yml", ", nbs/02_second.ipynb", ""),
         "nbs/02_second.ipynb is not listed"),
    "listed chapter missing":
        (removed("nbs/02_second.ipynb"), "nbs/02_second.ipynb does not exist"),
    "large file": (written("data.bin", "\0" * 26_000_000), "tracked tree: 26.0 MB"),
    "notebook global":
        (written("gfpgan_edu/first.py", "def f():\n    return device\n"),
         "undefined name 'device'"),
}


@pytest.mark.parametrize("plant, message", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_found(root, plant, message):
    plant(root)
    found, _ = problems(root)
    assert any(message in f for f in found), found
    assert all(re.match(r"[\w./ ]+: ", f) and "\n" not in f for f in found)


PATCHED = "class double: pass\n@patch\ndef value(self: double): return _help(self) + LIMIT"


@pytest.mark.parametrize("double", ["def double(x): return _help(x) + LIMIT", PATCHED],
                         ids=["function", "patched"])
def test_a_name_is_tried_by_another_that_uses_it_itself_or_in_a_private_helper_but_not_farther_away(
        root, double):
    (root / "gfpgan_edu/first.py").write_text(f"""__all__ = ["double", "LIMIT", "near", "far"]
LIMIT = 3
{double}
def _help(x): return near(x)
def near(x): return far(x)
def far(x): return x
""")
    found = check_book.unchecked_names(check_book.Book(root))
    assert [f.split(" is ")[0] for f in found] == ["nbs/01_first.ipynb: far"]


def test_misspellings_are_found_in_prose_and_docstrings(root):
    edit_text(FIRST_PY, "A note.", "A seperate note.")(root)
    edit_text(SECOND_PY, "Two and two.", "Recieve two.")(root)
    edit_text("README.md", "below", "belwo")(root)
    found = list(check_book.spelling(check_book.Book(root)))
    assert [f.split(": ")[::2] for f in found] == [
        ["README.md", "belwo ==> below"], [FIRST_PY, "seperate ==> separate"],
        [SECOND_PY, "Recieve ==> Receive"]]


def test_check_finds_hand_edited_and_orphaned_modules_and_an_empty_book(root):
    module = root / "gfpgan_edu/first.py"
    module.write_text(module.read_text() + "\n# by hand\n")
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
    text = twin.read_text().replace("print(double(2))", "print(double(3))")
    twin.write_text(text.replace("LIMIT = 3", "LIMIT = 4") + "\n\n\n")
    changed = {p.name for p in book.sync(root, ["01"])}
    assert changed == {"01_first.py", "01_first.ipynb", "first.py", "api.qmd"}
    cells = book.read_notebook(root / "nbs/01_first.ipynb")["cells"]
    assert cells[3]["outputs"][0]["data"]["image/png"] == PIXEL
    assert cells[4]["outputs"] == []
    assert "LIMIT = 4" in (root / "gfpgan_edu/first.py").read_text()
    cells = book.notebook_from("# %%\nx\n\n# %%\nx\n")["cells"]
    assert len({c["id"] for c in cells}) == 2
    assert cells == book.notebook_from("# %%\nx\n\n\n\n# %%\nx")["cells"]


def test_solutions_are_synced_as_chapters_are_and_export_nothing(root):
    assert [p.parent.name for p in book.chapters(root, ["02"])] == ["nbs", "solutions"]
    assert len(book.chapters(root)) == 3
    assert [p.parent.name for p in book.chapters(root, ["solutions/02"], ".py")] == ["text"]
    assert book.chapters(root, ["01"]) == [root / "nbs/01_first.ipynb"]
    for name in (SOLVED, SOLUTIONS_PY):
        assert [root / name] == book.chapters(root, [name], Path(name).suffix)
    twin = root / SOLUTIONS_PY
    exporting = "#| default_exp second\n#| export\ndef f(): pass"
    twin.write_text(twin.read_text().replace("2 + 2", exporting))
    assert {p.name for p in book.sync(root)} == {"02_second.ipynb"}
    assert not (root / "gfpgan_edu/second.py").exists()
    with pytest.raises(SystemExit, match="no chapter solutions/01"):
        book.chapters(root, ["solutions/01"])


def test_twin_is_what_jupytext_prints(root):
    shutil.copy(ROOT / "jupytext.toml", root)
    command = [sys.executable, "-m", "jupytext", "--to", "py:percent", "--output", "-",
               "nbs/01_first.ipynb"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == (root / FIRST_PY).read_text()


def test_run_reports_failures_and_stale_outputs_but_not_volatile_ones(root, capsys):
    text = SECOND.replace("x = 1", "2 + 2").replace("# %% tags", "# %%\nprint('new')\n\n# %% tags")
    (root / SECOND_PY).write_text(text)
    book.sync(root, ["02"])
    edit_cell(2, 1, outputs=[value("5")])(root)
    before = (root / "nbs/02_second.ipynb").read_bytes()
    # the first chapter calls show(), which nobody defines
    found = book.run_chapters(root)
    assert [f.split("\n")[0] for f in found] == [
        "nbs/01_first.ipynb: a cell failed",
        "nbs/02_second.ipynb: cell 2: saved output differs from a fresh run",
        "nbs/02_second.ipynb: cell 4: saved output differs from a fresh run"]
    assert "NameError" in found[0]
    assert "saved: ['5']" in found[1] and "fresh: ['4']" in found[1]
    assert (root / "nbs/02_second.ipynb").read_bytes() == before
    assert "together" in capsys.readouterr().out
    # run where the notebook lies
    edit_text(SOLUTIONS_PY, "2 + 2", "len(__import__('os').listdir('text')) + 4")(root)
    solved, saved = root / SOLVED, f'"outputs": [{json.dumps(FOUR)}]'
    book.write_if_changed(solved, solved.read_text().replace('"outputs": []', saved))
    found = book.run_chapters(root, ["solutions/02"])
    assert len(found) == 1 and "fresh: ['5']" in found[0]
    assert "nbs/solutions/02_second.ipynb: cell 2: saved output differs" in found[0]
    assert book.run_chapters(root / "figures") == ["nbs: no chapter to run"]


# ---------------------------------------------------------------- strip_directives

def notebook(*sources):
    cells = [dict(cell_type="code", id=str(i), metadata={}, outputs=[], execution_count=None,
                  source=s.splitlines(keepends=True)) for i, s in enumerate(sources)]
    return dict(cells=cells, metadata={"kernelspec": {"name": "python3"}}, nbformat=4,
                nbformat_minor=5)


@pytest.mark.parametrize("line", [
    "#| export", "#|export", "#| exports", "#| exporti", "#| export other.module",
    "#| default_exp a.b", "#|default_exp a:b", "#| hide_input", "#| hide_output", "#| hide_line",
    "#| filter_stream FutureWarning: old", "#| eval:false", "#| collapse_input"])
def test_directives_are_removed_and_options_stay(line):
    code = 'x = {"a": 1}\n"""\n#| export\n"""\n#| not at the top'
    options = '#| label: fig-a\n#|fig-cap: "A: b"\n#| eval: false'
    nb = notebook(f"{line}\n{code}", f"{line}\n\n{options}\n{code}", line, f"{line}\n", code)
    got = strip_directives(nb)
    assert ["".join(c["source"]) for c in got["cells"]] == [code, f"{options}\n{code}", code]
    assert got["cells"][-1] == nb["cells"][-1] and got["metadata"] == nb["metadata"]
    for c in got["cells"]:
        assert isinstance(c["source"], list)
        assert all(s.endswith("\n") for s in c["source"][:-1])


def test_hidden_cells_go_and_markdown_stays():
    nb = notebook("#| hide\nx", "#|hide\nx", "#| hide:\nx", "#| export\n#| hide\nx",
                  "#| hide_input\nx", "")
    markdown = dict(cell_type="markdown", id="m", metadata={}, source=["#| export\n", "text"])
    nb["cells"].append(markdown)
    got = strip_directives(nb)["cells"]
    assert [c["id"] for c in got] == ["4", "m"] and got[1] == nb["cells"][-1]


def test_filter_runs_with_the_standard_library_alone():
    nb = notebook("#| export\nx = 'ŷ'")
    command = [sys.executable, "-I", "-S", str(ROOT / "nbs/strip_directives.py")]
    text = json.dumps(nb, ensure_ascii=False).encode()
    run = subprocess.run(command, input=text, capture_output=True, check=True)
    assert json.loads(run.stdout.decode("utf-8")) == strip_directives(nb)


# ---------------------------------------------------------------- links of a page to its notebook

@pytest.fixture
def tree(root):
    shutil.copy(ROOT / "nbs/strip_directives.py", root / "nbs")
    return root


def filtered(tree, name):
    command = [sys.executable, "-I", "-S", str(tree / "nbs/strip_directives.py")]
    page = tree / name
    run = subprocess.run(command, input=page.read_bytes(), cwd=page.parent, capture_output=True)
    if run.returncode:
        return run, False
    cells = [c for c in json.loads(run.stdout)["cells"] if c["cell_type"] == "markdown"]
    return run, ["".join(c["source"]) for c in cells]


def test_each_page_offers_its_notebook(tree):
    pages = {"nbs/02_second.ipynb": "# Second", SOLVED: "# Solutions"}
    for name, title in pages.items():
        _, (first, links, *_) = filtered(tree, name)
        assert first.startswith(title)
        assert '](02_second.ipynb){download="02_second.ipynb" data-noresolveinput="true"}' in links
        assert "colab" not in links and "binder" not in links
    config = check_book.Book(ROOT).config
    patterns = config["project"]["resources"]
    copied = {p.relative_to(ROOT).as_posix() for pattern in patterns for p in ROOT.glob(pattern)}
    assert {n for n in config["project"]["render"] if n.endswith(".ipynb")} <= copied


@pytest.mark.parametrize("branch", ["", "  repo-branch: trunk\n"])
def test_planted_address_gives_links_to_colab_and_binder(tree, branch):
    address = "https://github.com/some-body/gfpgan_edu"
    (tree / "_quarto.yml").write_text(f"book:\n  repo-url: {address}\n{branch}")
    branch = branch.split()[-1] if branch else "main"
    colab = f"https://colab.research.google.com/github/some-body/gfpgan_edu/blob/{branch}"
    binder = f"https://mybinder.org/v2/gh/some-body/gfpgan_edu/{branch}?urlpath=lab/tree"
    for name in ("nbs/02_second.ipynb", SOLVED):
        links = filtered(tree, name)[1][1]
        assert f"]({colab}/{name})" in links
        assert f"]({binder}/{name})" in links
        assert (f"!git clone --depth 1 --branch {branch} {address} && "
                'pip install -q "./gfpgan_edu[dev]"\n'
                f"%cd gfpgan_edu/{Path(name).parent}\n") in links
        assert links.startswith("::: {.notebook-links}\n") and links.endswith("\n:::\n")
        assert links.count("```") == 2


def test_address_of_another_host_stops_the_rendering(tree):
    address = "https://example.org/some-body/gfpgan_edu"
    (tree / "_quarto.yml").write_text(f"book:\n  repo-url: {address}\n")
    run, _ = filtered(tree, "nbs/02_second.ipynb")
    assert run.returncode and f"_quarto.yml: repo-url is {address}".encode() in run.stderr


# ---------------------------------------------------------------- the page of names

def test_page_of_names_shows_every_public_name_as_python_sees_it():
    import importlib
    import inspect

    import gfpgan_edu

    page, seen = (ROOT / "nbs/api.qmd").read_text(encoding="utf-8"), 0
    for path in sorted((ROOT / "gfpgan_edu").glob("[a-z]*.py")):
        module = importlib.import_module(f"gfpgan_edu.{path.stem}")
        for name in module.__all__:
            form = re.search(rf"^\[`(.*)`\]\{{#api-{path.stem}-{name}\}}$", page, re.M)[1]
            thing, at = getattr(module, name), f"{path.stem}.{name}"
            plain = inspect.isclass(thing) and not issubclass(thing, Exception)
            made = plain and "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False)
            if inspect.isfunction(thing) or made:
                args = ast.parse(f"def {form}: pass").body[0].args
                named = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
                parameters = inspect.signature(thing).parameters
                assert [a.arg for a in named if a] == list(parameters), at
                defaults = len(args.defaults) + sum(d is not None for d in args.kw_defaults)
                assert defaults == sum(p.default is not p.empty for p in parameters.values())
                seen += 1
            said = page.split(f"{{#api-{path.stem}-{name}}}")[1].split("{#api-")[0]
            members = vars(thing).values() if inspect.isclass(thing) else ()
            for f in filter(inspect.isfunction, members):    # those put into it by @patch too
                public = f.__module__ == module.__name__ and not f.__name__.startswith("_")
                if public and f.__doc__:
                    assert f"- `.{f.__name__}(" in said, f"{at}.{f.__name__}"
    assert seen > 200
    listed = re.findall(r"^- \[`(\w+)`\]\(#api-(\w+?)-(\w+)\)", page, re.M)
    assert [name for name, _, _ in listed] == gfpgan_edu.__all__
    for name, module, there in listed:
        module = importlib.import_module(f"gfpgan_edu.{module}")
        assert getattr(gfpgan_edu, name) is getattr(module, there)


# ---------------------------------------------------------------- rendering and publishing

QUARTO = """#!/bin/sh
echo "render $* with $QUARTO_PYTHON"
printf '\\033[33mWARN: Unable to resolve link target: nbs/03.ipynb\\033[39m\\n' >&{stream}
echo "[ 1/50] nbs/01_first.ipynb: a check may warn you, WARN it does not"
exit {code}
"""
WARNED = "quarto: WARN: Unable to resolve link target: nbs/03.ipynb"


@pytest.mark.parametrize("text, found", [
    (QUARTO.format(stream=2, code=0), [WARNED]),
    (QUARTO.format(stream=1, code=3), [WARNED, "quarto: failed with exit code 3"]),
    ("#!/bin/sh\necho '[WARNING] Citeproc: citation key2021 not found'",
     ["quarto: [WARNING] Citeproc: citation key2021 not found"]),
    ("#!/bin/sh\necho 'WARNING (crossref.lua:1) Unable to resolve crossref @fig-none'",
     ["quarto: WARNING (crossref.lua:1) Unable to resolve crossref @fig-none"]),
    ("#!/bin/sh\necho 'Output created: _book/index.html'", []), (None, [book.NO_QUARTO])])
def test_a_warning_of_quarto_is_a_failure(tmp_path, monkeypatch, capfd, text, found):
    if text:
        (tmp_path / "quarto").write_text(text)
        (tmp_path / "quarto").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if text else str(tmp_path))
    assert book.render(tmp_path) == found
    if text and "render $*" in text:
        assert capfd.readouterr().out.startswith(f"render render with {sys.executable}\n")


def test_make_book_fails_where_quarto_warns(tree):
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / "bin").mkdir()
    for name in ("nbs/book.py", "nbs/check_book.py", "nbs/api_page.py", "Makefile",
                 "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tree / name)
    programs = {".venv/bin/python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
                "bin/quarto": QUARTO.format(stream=2, code=0)}
    for name, text in programs.items():
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    (tree / ".venv/.installed").write_text(str(tree))
    (tree / ".gitignore").write_text(".venv/\nbin/\n__pycache__/\n")
    env = {**os.environ, "PATH": f"{tree}/bin:{os.environ['PATH']}"}
    run = subprocess.run(["make", "book"], cwd=tree, env=env, capture_output=True, text=True)
    assert "checked: all well" in run.stdout and WARNED in run.stdout, run.stdout + run.stderr
    assert run.returncode, run.stdout + run.stderr
    (tree / "bin/quarto").write_text("#!/bin/sh\necho 'Output created: _book/index.html'\n")
    run = subprocess.run(["make", "book"], cwd=tree, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("open _book/index.html\n"), run.stdout + run.stderr


def test_workflow_tests_renders_and_publishes_from_the_default_branch_alone():
    import yaml

    flow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    jobs, targets = flow["jobs"], set(re.findall(r"^([a-z-]+):", makefile, re.M))
    # YAML 1.1 reads `on` as true
    assert set(flow[True]) == {"push", "pull_request", "workflow_dispatch"}
    assert flow["permissions"] == {"contents": "read"}
    assert {name for name, job in jobs.items() if "permissions" in job} == {"publish"}
    publish = jobs["publish"]
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert set(publish["needs"]) == set(jobs) - {"publish"}
    assert "github.ref_name == github.event.repository.default_branch" in publish["if"]
    assert "!= 'pull_request'" in publish["if"]
    steps = {name: job["steps"] for name, job in jobs.items()}
    used = {name: [s["uses"].split("@")[0] for s in job if "uses" in s]
            for name, job in steps.items()}
    assert used["render"][-1] == "actions/upload-pages-artifact"
    assert "quarto-dev/quarto-actions/setup" in used["render"]
    assert used["publish"] == ["actions/deploy-pages"]
    output = check_book.Book(ROOT).config["project"]["output-dir"]
    assert steps["render"][-1]["with"] == {"path": output}
    every = [s for job in steps.values() for s in job]
    assert all(re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", s["uses"]) for s in every if "uses" in s)
    made = [s["run"].split()[1] for s in every if s.get("run", "").startswith("make ")]
    assert sorted(made) == ["book", "test"] and set(made) <= targets
    assert all(job["timeout-minutes"] <= 120 for job in jobs.values())
    assert all(job["runs-on"] == "ubuntu-latest" for job in jobs.values())


# ---------------------------------------------------------------- the tree itself

def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    run = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True,
                         check=True)
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert targets == set(re.findall(r"^make ([a-z-]+) ", run.stdout, re.M))
    assert targets == set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split())
    assert targets == {"demo", "test", "soak", "bench", "book", "chapters", "sync", "jupyter",
                       "train-bundled", "verify-official", "test-web", "help"}


def test_import_is_quiet_and_lean():
    heavy = "{'torch', 'torchvision', 'matplotlib', 'facenet_pytorch', 'cv2'}"
    for module in ("gfpgan_edu", "gfpgan_edu.cli"):
        code = (f"import {module}, sys; sys.exit(str({heavy} & set(sys.modules)) "
                f"if {heavy} & set(sys.modules) else 0)")
        run = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, text=True,
                             capture_output=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_modules_import_without_pictures_and_detector():
    names = [p.stem for p in (ROOT / "gfpgan_edu").glob("*.py") if not p.stem.startswith("_")]
    assert len(names) >= 11
    modules = ", ".join(f"gfpgan_edu.{name}" for name in names)
    code = (f"import {modules}, sys; "
            "bad = {'matplotlib', 'facenet_pytorch', 'torchvision'} & set(sys.modules); "
            "sys.exit(str(bad) if bad else 0)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def requirements(key):
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    lines = [line for line in cfg["DEFAULT"][key].splitlines() if line.strip()]
    return {re.split(r"[<>=!~ ;\[]", line)[0].lower().replace("_", "-") for line in lines}


def test_every_import_is_a_declared_requirement():
    runtime, dev = requirements("requirements"), requirements("dev_requirements")
    judges, onnx = requirements("judges_requirements"), requirements("onnx_requirements")
    # examples serves the chapters, the others ask politely
    optional = {"web.py": requirements("web_requirements"), "examples.py": dev,
                "metrics.py": judges, "losses.py": judges, "identity.py": onnx}
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
                # Python 3.10 knows fewer
                known = {"skimage": "scikit-image", "dlib": "dlib-bin"}
                found = dists.get(top) or [known.get(top, top)]
                names = {d.lower().replace("_", "-") for d in found}
                assert names & allowed, (f"{path.name} imports {top}, "
                                         "which settings.ini does not require")
    assert {"torch", "cv2", "PIL", "safetensors", "facenet_pytorch", "lpips",
            "torch_fidelity"} <= seen


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
    noise = np.random.default_rng(0).integers(0, 64, (256, 256), np.uint8)
    photo = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], noise), 2)
    small, large = png(photo[:32, :32]), png(photo)
    slimmed = Image.open(io.BytesIO(base64.b64decode(book.slim(large))))
    assert book.slim(small) == small and len(book.slim(large)) < 0.6 * len(large)
    assert book.slim(book.slim(large), limit=100) == book.slim(large)        # once is enough
    assert slimmed.size == (256, 256)
    assert np.abs(np.asarray(slimmed.convert("RGB"), float) - photo).mean() < 12

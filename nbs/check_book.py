"""What `python nbs/book.py check` looks for. Each function yields lines `file: problem`; nothing is
changed.

Quarto finishes without an error on an unresolved reference, a missing citation, a broken link or
picture and an unclosed div; so these are looked for here. Every function takes the root of the tree
or a Book, so that tests can plant faults in a small one.
"""
import ast
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections import Counter, defaultdict
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from api_page import api_page, methods_in_classes
from book import (PACKAGE, as_json, chapters, code_cells, exported, is_solution, joined,
                  notebook_from, notebook_path, read_notebook, twin_of, twin_path)

# bytes
MAX_NOTEBOOK, MAX_PICTURE, MAX_BUNDLED, MAX_TREE = 700_000, 200_000, 12_000_000, 25_000_000
MAX_WIDTH, MAX_LINES = 100, 40     # of a line: what a page shows; of a cell: what a reader holds
DIRECTIVES = {"default_exp", "export", "exporti", "exports", "hide", "hide_input", "hide_output"}
UNIT = r"(?:dB|ms|s|%|kB|MB|GB|°|minutes|hours|seconds)"
CROSSREF = r"(?:[Ss]ec|[Ff]ig|[Ee]q|[Tt]bl)-[\w-]*\w"


def check(root):
    "All problems of the tree, and a Counter of what was looked at."
    book = Book(root)
    problems = []
    for look in (stale_twins, stale_modules, stale_api_page, foreign_names):
        problems += look(root)
    for look in LOOKS:
        problems += look(book)
    for kind in ("chapters", "labels", "references", "code cells"):
        if not book.counts[kind]:
            problems.append(f"book: found no {kind} to check")
    return problems, book.counts


# ---------------------------------------------------------------- generated files

def stale_twins(root):
    from_twins = [notebook_path(twin) for twin in chapters(root, suffix=".py")]
    for path in sorted({*chapters(root), *from_twins}):
        twin = twin_path(path)
        name, text = path.relative_to(root), twin.relative_to(root)
        if not (path.exists() and twin.exists()):
            missing = "notebook" if twin.exists() else "text twin"
            yield f"{name.with_suffix('')}: has no {missing}; run `make sync`"
            continue
        nb = read_notebook(path)
        if twin.read_text(encoding="utf-8") != twin_of(nb):
            yield f"{text}: differs from {name}; run `make sync`"
        elif as_json(notebook_from(twin_of(nb), nb)) != path.read_text(encoding="utf-8"):
            yield f"{name}: not in the form that `make sync` writes (source, ids or metadata)"


def modules(root):
    files = [p for p in sorted((root / PACKAGE).glob("*.py")) if p.name != "__init__.py"]
    return {p.name: p.read_text(encoding="utf-8") for p in files}


def stale_modules(root):
    fresh, there = exported(root), modules(root)
    for name in sorted(fresh.keys() | there.keys()):
        if name not in there:
            yield f"{PACKAGE}/{name}: missing; run `make sync`"
        elif name not in fresh:
            yield f"{PACKAGE}/{name}: no notebook exports it"
        elif fresh[name] != there[name]:
            yield (f"{PACKAGE}/{name}: differs from a fresh export "
                   "(edit the chapter's twin, then `make sync`)")


def foreign_names(root):
    "Exported code that reads a name which only its notebook has."
    from pyflakes import checker, messages

    kinds = messages.UndefinedName, messages.UndefinedLocal, messages.UndefinedExport
    for name, text in modules(root).items():
        for m in checker.Checker(ast.parse(text), filename=name).messages:
            if isinstance(m, kinds):
                yield f"{PACKAGE}/{name}: line {m.lineno}: {m.message % m.message_args}"


def stale_api_page(root):
    page = root / "nbs/api.qmd"
    try:
        if not page.exists() or page.read_text(encoding="utf-8") != api_page(root, PACKAGE):
            yield "nbs/api.qmd: not what signatures and docstrings say; run `make sync`"
    except (KeyError, ValueError) as e:
        yield f"{PACKAGE}/__init__.py: lists what is not there: {e}"


def names_in(tree):
    "Names and attributes that code mentions."
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute))]
    return {getattr(n, "id", None) or getattr(n, "attr", None) for n in nodes}


def parsed(source):
    "The syntax tree of a cell, magics left out; empty where it is no Python."
    try:
        return ast.parse(re.sub(r"^[%!].*$", "pass", source, flags=re.M))
    except SyntaxError:
        return ast.Module([], [])


def definitions(tree):
    "{name: the statement that defines it} of the top level of a module."
    for s in methods_in_classes(tree.body):
        if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
            yield s.name, s
        elif isinstance(s, (ast.Assign, ast.AnnAssign)):
            for target in s.targets if isinstance(s, ast.Assign) else [s.target]:
                yield from ((n.id, s) for n in ast.walk(target) if isinstance(n, ast.Name))


def tried(page):
    "Names that cells of the page mention which export nothing."
    sources = [joined(c["source"]) for _, c in page.code]
    sources = [s for s in sources if not re.search(r"^#\|\s*export", s, re.M)]
    return set().union(*(names_in(parsed(s)) for s in sources))


def unchecked_names(book):
    """Public names that no chapter tries out.

    A cell that exports nothing has to use the name, or has to use another public name of the module
    whose definition, with the private helpers it calls, uses it.
    """
    pages = [p for p in book.pages if p.path.suffix == ".ipynb" and not is_solution(p.path)]
    for file, text in modules(book.root).items():
        module, used, home = Path(file).stem, set(), file
        if not (defined := dict(definitions(ast.parse(text)))).get("__all__"):
            continue
        public = set(ast.literal_eval(defined.pop("__all__").value))
        for page in pages:
            if own := bool(re.search(rf"^#\|\s*default_exp {module}\s*$", page.source, re.M)):
                home = page.name
            if own or re.search(rf"\b{PACKAGE}(\.{module}\b| import )", page.source):
                used |= tried(page)
        reached, todo = set(), list(public & used)
        while todo:
            if (name := todo.pop()) in defined and name not in reached:
                reached.add(name)
                within = names_in(defined[name])
                used |= within & public
                todo += [n for n in within if n.startswith("_")]
        book.counts["public names"] += len(public)
        for name in sorted(public - used):
            yield (f"{home}: {name} is exported, and no cell that exports nothing uses it, "
                   "alone or through another")


# ---------------------------------------------------------------- the book as the reader sees it

class Page:
    """One page: its name, `pieces` [(place, prose)] with place such as
    'nbs/04_layers.ipynb: cell 3', `code` [(place, cell)] and the `source` of these together."""

    def __init__(self, root, name):
        self.name, self.path, self.cells, self.code = name, root / name, [], []
        if self.path.suffix == ".ipynb":
            nb = read_notebook(self.path)
            self.cells = [(f"{name}: cell {i}", c) for i, c in enumerate(nb["cells"], 1)]
            self.code = [(f"{name}: cell {i}", c) for i, c in code_cells(nb)]
            self.pieces = [(at, prose(c)) for at, c in self.cells]
        else:
            self.pieces = [(name, plain(self.path.read_text(encoding="utf-8")))]
        self.prose = "\n".join(text for _, text in self.pieces)
        self.source = "\n".join(joined(c["source"]) for _, c in self.code)


class Book:
    """The pages that _quarto.yml lists, their labels {label: [place, …]} and the keys of the
    bibliography."""

    def __init__(self, root):
        import yaml

        self.root, self.names = root, []
        self.config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
        for c in self.config["book"]["chapters"]:
            self.names += [c] if isinstance(c, str) else c.get("chapters") or []
        self.pages = [Page(root, name) for name in self.names if (root / name).exists()]
        bib = root / "references.bib"
        text = bib.read_text(encoding="utf-8") if bib.exists() else ""
        self.keys = re.findall(r"^@\w+\{([^,\s]+),", text, re.M)
        kinds = ("chapters", "labels", "figures", "references", "citations", "links", "code cells",
                 "outputs", "result files", "files")
        self.counts = Counter({k: 0 for k in kinds})

    @cached_property
    def labels(self):
        places = defaultdict(list)
        for page in self.pages:
            for at, text in page.pieces:
                for label in re.findall(r"\{#([\w-]+)[^}]*\}", text):
                    places[label].append(at)
            for at, cell in page.code:
                if label := option(cell, "label"):
                    places[label].append(at)
        return dict(places)


def plain(text):
    """Markdown without code blocks, comments, inline code and maths: what is left may hold
    references, links and headings."""
    text = re.sub(r"^(\s*)(```+|~~~+).*?^\s*\2\s*$", "", text, flags=re.M | re.S)
    for pattern in (r"<!--.*?-->", r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", r"\$\$.*?\$\$",
                    r"(?<!\\)\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)"):
        text = re.sub(pattern, "", text, flags=re.S)
    return text


def option(cell, key):
    "Value of the Quarto option `#| key: value` of a code cell, or None."
    m = re.search(rf"^#\|\s*{key}:\s*(.*?)\s*$", joined(cell["source"]), re.M)
    return m and m[1].strip("\"'")


def caption(cell):
    return " ".join(option(cell, k) or "" for k in ("fig-cap", "tbl-cap"))


def prose(cell):
    return plain(joined(cell["source"])) if cell["cell_type"] == "markdown" else caption(cell)


def listing(book):
    "Notebooks and _quarto.yml name each other."
    made = [p.relative_to(book.root).as_posix() for p in chapters(book.root)]
    book.counts["chapters"] += len(made)
    missing = [n for n in book.names if not (book.root / n).exists()]
    yield from (f"_quarto.yml: {n} does not exist" for n in missing)
    yield from (f"_quarto.yml: {n} is not listed" for n in made if n not in book.names)
    for n in sorted(set(book.config["project"]["render"]) ^ set(book.names)):
        yield f"_quarto.yml: {n} is a chapter or in the render list, not both"


def solutions(book):
    """A chapter with exercises has a notebook of solutions and links to it; there each exercise is
    answered under a heading of its own."""
    pages = {page.path: page for page in book.pages}
    for page in book.pages:
        asks = re.search(r"^## Exercises$", page.prose, re.M)
        if asks and page.path.parent / "solutions" / page.path.name not in pages:
            yield f"{page.name}: exercises without solutions in nbs/solutions/{page.path.name}"
    for path in filter(is_solution, pages):
        chapter = pages.get(path.parent.parent / path.name)
        solved = len(re.findall(r"^## ", pages[path].prose, re.M))
        if chapter is None:
            yield f"nbs/solutions/{path.name}: solves the exercises of no chapter"
            continue
        section = re.search(r"^## Exercises\n(.*?)(?=^## |\Z)", chapter.prose, re.M | re.S)
        if f"](solutions/{path.name})" not in (section[1] if section else ""):
            yield f"{chapter.name}: no link to solutions/{path.name} under Exercises"
        elif (asked := len(re.findall(r"^\d+\. ", section[1], re.M))) != solved:
            yield f"nbs/solutions/{path.name}: {solved} solutions of {asked} exercises"


def headings(book):
    "One title a page; every ::: div opened as pandoc wants it, and closed."
    for page in book.pages:
        if (n := len(re.findall(r"^# ", page.prose, re.M))) != 1:
            yield f"{page.name}: {n} headings of level 1, needs exactly one"
        for at, text in page.pieces:
            lines = [line.strip() for line in text.splitlines()]
            for above, line in zip(["", *lines], lines):
                if not (fence := re.match(r":::+\s*([^\s:].*?)[\s:]*$", line)):
                    continue
                crowded = above and not above.startswith(":::")
                if crowded or not re.fullmatch(r"\{[^{}]*\}|[\w-]+", fence[1]):
                    yield (f"{at}: '{line}' opens no div: "
                           "it needs a blank line above, and one class or {…} behind it")
        depth = 0
        for fence in re.findall(r"^\s*:::+[ \t]*(.*)$", page.prose, re.M):
            depth += 1 if fence.strip(" :") else -1
            if depth < 0:
                break
        if depth > 0:
            yield f"{page.name}: {depth} ::: not closed"
        if depth < 0:
            yield f"{page.name}: ::: closes nothing"


def labels(book):
    "Unique over the book; each figure is referred to."
    book.counts["labels"] += len(book.labels)
    refs = [ref for page in book.pages for ref in re.findall(rf"@({CROSSREF})", page.prose)]
    referred = {ref[0].lower() + ref[1:] for ref in refs}
    for label, places in book.labels.items():
        book.counts["figures"] += label.startswith("fig-")
        yield from (f"{at}: label {label} is already in {places[0]}" for at in places[1:])
        if label.startswith("fig-") and label not in referred:
            yield f"{places[0]}: figure @{label} is never referred to"


def references(book):
    """Every @fig-, @sec-, @eq-, @tbl- (in code too) and every citation resolves; what is referred
    to has a number."""
    unnumbered = set()
    for page in book.pages:
        unnumbered |= set(re.findall(r"\{#(sec-[\w-]+) [^}]*\.unnumbered", page.prose))
    yield from (f"references.bib: {k} twice" for k, n in Counter(book.keys).items() if n > 1)
    for page in book.pages:
        for at, text in page.pieces:
            for ref in re.findall(r"(?<![\w\\@/.])@([A-Za-z][\w:-]*\w)", text):
                cross = re.fullmatch(CROSSREF, ref)
                book.counts["references" if cross else "citations"] += 1
                if ref in unnumbered:
                    yield f"{at}: @{ref} has no number that Quarto could show; link to the page"
                if cross and ref[0].lower() + ref[1:] not in book.labels:
                    yield f"{at}: @{ref} is not a label of the book"
                if not cross and ref not in book.keys:
                    yield f"{at}: @{ref} is not in references.bib"
        for at, cell in page.code:
            code = "".join(line for line in cell["source"] if not line.startswith("#|"))
            for ref in re.findall(rf"@({CROSSREF})", code):
                book.counts["references"] += 1
                if ref not in book.labels:
                    yield f"{at}: @{ref} in the code is not a label of the book"


def slugs(page):
    "The anchors that the headings of a page get by themselves."
    titles = re.findall(r"^#+ (.*?)(?:\{.*)?$", page.prose, re.M)
    return {re.sub(r"[^\w.-]", "", re.sub(r"\s+", "-", t.strip().lower())) for t in titles}


def links(book):
    """Relative links and pictures lead to a file of the tree, #anchors to a label or heading; no
    picture needs a network. README.md and the like too."""
    markdown = r"(!?)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)"
    html = r"<(img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\""
    root = book.root.resolve()
    for page in book.pages + [Page(book.root, p.name) for p in sorted(book.root.glob("*.md"))]:
        own = slugs(page)
        for at, text in page.pieces:
            for bang, target in re.findall(markdown, text) + re.findall(html, text):
                book.counts["links"] += 1
                kind = "picture" if bang in ("!", "img") else "link"
                if re.match(r"[a-z]+:", target):
                    if kind == "picture":
                        yield f"{at}: picture {target} needs a network"
                    continue
                file, _, anchor = unquote(target).partition("#")
                goal = book.root / file[1:] if file.startswith("/") else page.path.parent / file
                goal, to_page = goal.resolve(), file.endswith((".ipynb", ".qmd"))
                name = goal.relative_to(root).as_posix() if goal.is_relative_to(root) else None
                if file and not (goal.exists() and name):
                    yield f"{at}: {kind} {target} leads nowhere"
                elif to_page and page in book.pages and name not in book.names:
                    yield f"{at}: {kind} {target} leads to no page of the book"
                elif anchor and anchor not in book.labels:
                    if to_page or not file and anchor not in own:
                        yield f"{at}: link {target}: no such label"


def spelling(book):
    """Misspellings that codespell knows, in twins (prose and docstrings), pages and tools.

    What only looks like one is listed in pyproject.toml.
    """
    places = ("*.md", "*.qmd", "nbs/*.qmd", "nbs/*.py", "nbs/text/*.py", "nbs/solutions/text/*.py",
              f"{PACKAGE}/__init__.py", f"{PACKAGE}/bundled/*.md", "figures/*.py")
    files = [p for place in places for p in sorted(book.root.glob(place))]
    book.counts["spelled files"] += len(files)
    names = [p.relative_to(book.root).as_posix() for p in files]
    command = [sys.executable, "-m", "codespell_lib", *names]
    run = subprocess.run(command, cwd=book.root, capture_output=True, text=True)
    found = re.findall(r"^(?:\./)?(.*?):(\d+): (.*)$", run.stdout, re.M)
    yield from (f"{file}: line {line}: {words}" for file, line, words in found)
    if run.returncode not in (0, 65):                          # 65: it found some
        yield f"pyproject.toml: codespell failed: {' '.join(run.stderr.split())}"


def told(page):
    """The numbers in the source and the text outputs of the page's cells; those with decimals also
    with fewer, and shares in percent too."""
    texts = [page.source]
    for _, cell in page.code:
        for o in cell["outputs"]:
            shown = [joined(v) for k, v in o.get("data", {}).items() if k.startswith("text/")]
            texts.append(joined(o.get("text", "")) + "".join(shown))
    found = re.findall(r"\d[\d,_]*(?:\.\d+)?", "\n".join(texts))
    known = {number.replace(",", "").replace("_", "") for number in found}
    for number in [k for k in known if "." in k]:
        decimals = len(number.partition(".")[2])
        rounded = [f"{float(number):.{d}f}" for d in range(decimals)]
        known |= {r for r in rounded if len(r.strip("0.")) > 1}
    return known | {f"{100 * float(k):g}" for k in known if k.startswith("0.")}


def numbers(book):
    """In a chapter that reads results from figures/*.json, each number of the prose that has
    decimals or a unit stands in the source or the output of a cell.

    The decimals of the prose may be fewer, but for numbers of one digit. The head (it tells
    seconds), the exercises and tables are left out.
    """
    left_out = r"^## Exercises\n.*?(?=^## |\Z)|^\|.*?$|\]\([^)]*\)|@[\w-]+"
    checked = rf"(?<![\w.-])(\d[\d,]*\.\d+|\d[\d,]*(?=[ -]?{UNIT}(?!\w)))"
    for page in book.pages:
        if is_solution(page.path) or not re.search(r"figures/.*\.json", page.source):
            continue
        known = told(page)
        markdown = [(at, cell) for at, cell in page.cells if cell["cell_type"] == "markdown"]
        for at, cell in markdown[1:]:
            text = re.sub(left_out, "", prose(cell), flags=re.M | re.S)
            for number in re.findall(checked, text):
                book.counts["numbers"] += 1
                if number.replace(",", "") not in known:
                    yield (f"{at}: {number} is in no source and no output of the chapter's cells; "
                           "read it from the results and print or assert it")


# ---------------------------------------------------------------- cells and their saved outputs

def cells(book):
    for page in book.pages:
        for at, cell in page.cells:
            yield from (f"{at}: {p}" for p in cell_problems(cell, book.counts))


def cell_problems(cell, counts):
    lines, source = cell["source"], joined(cell["source"])
    several = any("\n" in line[:-1] for line in lines)
    unended = any(line[-1:] != "\n" for line in lines[:-1])
    if isinstance(lines, str) or several or unended:
        yield "source is not a list of lines"
    if cell["cell_type"] != "code":
        for block in re.findall(r"^```.*\n([\s\S]*?)^```", source, re.M):
            yield from too_wide(block.splitlines())
        return
    outputs, label = cell["outputs"], option(cell, "label") or ""
    counts.update({"code cells": 1, "outputs": len(outputs)})
    for line in re.findall(r"^#\|\s*(.*)", source, re.M):
        option_like, first = re.match(r"[\w-]+:\s+\S", line), line.split()[:1]
        if not option_like and first and first[0] not in DIRECTIVES:
            yield f"'#| {line}' is neither `#| key: value` nor a directive of the book"
    below = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")]
    if below and any(line.startswith("#|") for line in lines[below[0]:]):
        yield "a `#|` line below the top of the cell"
    code = [line for line in source.splitlines() if not line.startswith("#|")]
    yield from too_wide(code)
    alone = [s for s in ast.walk(parsed(source)) if isinstance(s, ast.Expr)]
    docs = sum(s.end_lineno - s.lineno + 1 for s in alone if isinstance(s.value, ast.Constant))
    if (n := sum(bool(line.strip()) for line in code) - docs) > MAX_LINES:
        yield f"{n} lines of code besides docstrings; {MAX_LINES} are what a reader can hold"
    pictures = [joined(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    if any(o["output_type"] == "error" for o in outputs):
        yield "the saved output is an error"
    stderr = [joined(o["text"]) for o in outputs if o.get("name") == "stderr"]
    if any(re.search(r"Traceback|Warning", text) for text in stderr):
        yield "a warning or traceback among the saved outputs"
    if pictures and not option(cell, "fig-alt"):
        yield "a picture without `#| fig-alt`, its text for readers who cannot see it"
    if label.startswith("fig-") and not pictures:
        yield f"figure {label} has no saved picture; run `make chapters`"
    elif not outputs and shows_something(source):
        yield "shows something, but no output is saved; run `make chapters`"
    for size in (len(b64decode(p)) for p in pictures):
        if size > MAX_PICTURE:
            yield f"a picture of {size // 1000} kB, allowed are {MAX_PICTURE // 1000}"


def too_wide(code):
    for line in code:
        if len(line) > MAX_WIDTH:
            yield (f"a line of {len(line)} characters, the page shows {MAX_WIDTH}: "
                   f"{line.strip()[:40]} …")


def shows_something(source):
    """Whether a cell surely prints or draws: a top-level call of print, display, show or draw_map,
    or a bare value at its end."""
    body = parsed(source).body
    values = [s.value for s in body if isinstance(s, ast.Expr)]
    called = [v.func for v in values if isinstance(v, ast.Call)]
    called = {getattr(f, "id", getattr(f, "attr", "")) for f in called}
    if called & {"print", "display", "show", "draw_map"}:
        return True
    last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    bare = isinstance(last, (ast.Name, ast.Tuple, ast.BinOp, ast.Subscript, ast.Compare))
    return bare and not source.rstrip().endswith(";")


# ---------------------------------------------------------------- sizes, and results of runs

def tree(root):
    "Every file that .gitignore does not name, relative to the root: {path: bytes}."
    gitignore = root / ".gitignore"
    lines = gitignore.read_text().splitlines() if gitignore.exists() else []
    ignored = [".git", *(line.rstrip("/") for line in lines if line.strip())]

    def kept(path):
        names = path.name, path.relative_to(root).as_posix()
        return not any(fnmatch(name, p) for p in ignored for name in names)

    sizes = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [d for d in inner if kept(Path(folder, d))]
        paths = [p for p in (Path(folder, f) for f in files) if kept(p)]
        sizes |= {p.relative_to(root): p.stat().st_size for p in paths}
    return sizes


def wide_lines(book):
    """Python outside the cells keeps to the width of a page too: tools, tests, figures and what of
    the package is written by hand. Twins and modules are looked at in the cells they come from."""
    twins = Path("nbs/text"), Path("nbs/solutions/text")
    made = {Path(PACKAGE, name) for name in modules(book.root)}
    files = [p for p in sorted(tree(book.root)) if p.suffix == ".py" and p.parent not in twins]
    files = [p for p in files if p not in made]
    book.counts["Python files"] += len(files)
    for p in files:
        for i, line in enumerate((book.root / p).read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > MAX_WIDTH:
                yield (f"{p}: line {i}: {len(line)} characters, allowed are {MAX_WIDTH}: "
                       f"{line.strip()[:40]} …")


def large_files(book):
    sizes = tree(book.root)
    book.counts["files"] += len(sizes)
    pictures = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
    limits = {".ipynb": MAX_NOTEBOOK} | dict.fromkeys(pictures, MAX_PICTURE)
    for p, size in sizes.items():
        limit = limits.get(p.suffix.lower(), size)
        if size > limit:
            yield f"{p}: {size // 1000} kB, allowed are {limit // 1000}"
    bundled = sum(size for p, size in sizes.items() if p.parts[:2] == (PACKAGE, "bundled"))
    for what, total, most in (("tracked tree", sum(sizes.values()), MAX_TREE),
                              (f"{PACKAGE}/bundled", bundled, MAX_BUNDLED)):
        if total > most:
            yield f"{what}: {total / 1e6:.1f} MB, allowed are {most / 1e6:.0f}"


def unexplained_figures(book):
    "Each file of figures/ that a run made is told of in manifest.json, and the other way round."
    manifest = book.root / "figures/manifest.json"
    entries = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    files = [p for p in tree(book.root) if p.parts[0] == "figures" and p.name != "manifest.json"]
    made = [p for p in files if p.suffix not in (".py", ".sh")]
    book.counts["result files"] += len(made)
    for p in made:
        entry = entries.get(p.relative_to("figures").as_posix(), {})
        if missing := [k for k in ("command", "config", "commit", "date") if k not in entry]:
            yield f"{p}: figures/manifest.json does not tell its {', '.join(missing)}"
    for name in entries:
        if not (book.root / "figures" / name).exists():
            yield f"figures/manifest.json: {name} does not exist"


# at a Book
LOOKS = (unchecked_names, listing, solutions, headings, labels, references, links, spelling,
         numbers, cells, wide_lines, large_files, unexplained_figures)

"""Pages of the book as HTML near to Quarto's, by pandoc: to look at them, and for book.py beside
it, where Quarto is missing.

# none named: all of _quarto.yml
.venv-web/bin/python tests/web/preview.py FOLDER [nbs/22_photos.ipynb …]

Numbers of chapters and figures, search, sidebar and Quarto's themes are not here; divs, cells,
figures, tables, maths, citations, and our own style and script are. A page lies where Quarto puts
it: FOLDER/nbs/22_photos.html.
"""
import argparse
import base64
import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pypandoc
import yaml

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "nbs"))
from strip_directives import strip_directives  # noqa: E402

OPTION = re.compile(r"^#\|\s*([\w-]+):\s*(.*?)\s*$")
# What matters of the style that Quarto brings: box model, column widths, tables, code, form
# elements; dark colours of its theme darkly.
STYLE = """
*, ::before, ::after { box-sizing: border-box }
body { --bs-body-bg: #fff; --bs-body-color: #212529; --code: #f1f3f5; --line: #dee2e6; margin: 0;
       font: 17px/1.5 system-ui, "Noto Sans", sans-serif; color: var(--bs-body-color);
       background: var(--bs-body-bg); overflow-wrap: break-word }
body.quarto-dark { --bs-body-bg: #222; --bs-body-color: #e9e9e9; --code: #303030; --line: #444 }
.page-columns { display: grid; grid-template-columns: 1.5em minmax(0, 1fr) 1.5em }
main { grid-column: 2; margin: 1em 0 }
@media (min-width: 992px) {
  .page-columns { grid-template-columns:
                  minmax(1.5em, 1fr) 250px minmax(500px, 850px) 250px minmax(1.5em, 1fr) }
  main { grid-column: 3 }
}
h1, h2 { font-weight: 600; margin: 2rem 0 1rem }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .5rem }
a { color: #2761e3 } .quarto-dark a { color: #66b9ec }
img { vertical-align: middle }
.img-fluid { max-width: 100%; height: auto }
figure { margin: 0 0 1rem }
figcaption, caption { font-size: .9rem; opacity: .85; caption-side: top; text-align: left }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
th, td { padding: .5rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .875em }
pre { margin: 0 0 1rem }
pre code { font-size: inherit }
p code, li code, td code { color: #7d12ba; background: var(--code); padding: .2em }
.quarto-dark :is(p, li, td) code { color: #d9a6ef }
td code { white-space: pre-wrap }
div.sourceCode { background: var(--code); border-radius: .25rem; overflow-y: hidden;
                 margin: 1em 0 }
pre.sourceCode { padding: .4em; margin: 0; overflow: visible !important }
.callout { border: 1px solid var(--line); border-left: 5px solid #e6a100; border-radius: .25rem;
           padding: .5rem .7rem; margin: 1.25rem 0 }
blockquote { margin: 0 0 1rem; padding-left: 1rem; border-left: 3px solid var(--line) }
input, button, select, textarea { background-color: var(--bs-body-bg); font: inherit }
.cell-output-display { overflow-x: scroll }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0, user-scalable=yes">
<title>{title}</title>
<style>{style}</style>{sheets}</head>
<body class="quarto-light"><script>
document.body.className = matchMedia("(prefers-color-scheme: dark)").matches
                          ? "quarto-dark" : "quarto-light";
</script>
<div id="quarto-content" class="page-columns page-rows-contents page-layout-article">
<main class="content" id="quarto-document-content">
{body}
</main></div>
{after}</body></html>
"""


def joined(text):
    return text if isinstance(text, str) else "".join(text)


def attributes(options):
    return f'fig-alt="{html.escape(options["fig-alt"])}"' if "fig-alt" in options else ""


def box(kind, text):
    "Markdown of what a cell gives out, in Quarto's div."
    return f"::: {{.cell-output .cell-output-{kind}}}\n{text}\n:::"


def code_cell(cell, stem, folder):
    "Markdown of a code cell in Quarto's divs; its pictures become files in `folder`/`stem`_files."
    lines = joined(cell["source"]).splitlines()
    options = {m[1]: yaml.safe_load(m[2]) for m in map(OPTION.match, lines) if m}
    code = "\n".join(line for line in lines if not OPTION.match(line))
    parts = [] if options.get("echo") is False else [f"``` {{.python .cell-code}}\n{code}\n```"]
    for i, output in enumerate(cell["outputs"]):
        data, label = output.get("data", {}), options.get("label", "")
        if output["output_type"] == "stream":
            parts.append(box("stdout", f"```\n{joined(output['text'])}\n```"))
        elif "image/png" in data:
            file = folder / f"{stem}_files" / f"{cell['id']}-{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(joined(data["image/png"])))
            mark = f"#{label} " if label.startswith("fig-") else ""
            place = f"{stem}_files/{file.name}"
            picture = f"![{options.get('fig-cap', '')}]({place}){{{mark}{attributes(options)}}}"
            parts.append(box("display", picture))
        elif "text/markdown" in data:
            table = f"{joined(data['text/markdown'])}\n\n{options.get('tbl-cap', '')}"
            parts.append(box("display", table))
        elif "text/plain" in data:
            parts.append(box("display", f"```\n{joined(data['text/plain'])}\n```"))
    return "::: {.cell}\n" + "\n\n".join(parts) + "\n:::"


def markdown(path, folder):
    """The page as pandoc's Markdown, with what only Quarto knows (cross-references, labels of
    equations and tables, callouts) put in pandoc's words."""
    if path.suffix == ".ipynb":
        cells = strip_directives(json.loads(path.read_text(encoding="utf-8")))["cells"]
        text = "\n\n".join(joined(c["source"]) if c["cell_type"] == "markdown"
                           else code_cell(c, path.stem, folder)
                           for c in cells if c["cell_type"] != "raw")
    else:
        text = path.read_text(encoding="utf-8")
    text = re.sub(r"(\$\$.*?\$\$)[ ]*\{#(eq-[\w-]+)\}", r"[\1]{#\2}", text, flags=re.S)
    text = re.sub(r"^: (.*?)[ ]*\{#(tbl-[\w-]+)[^}]*\}", r"[]{#\2}\n\n: \1", text, flags=re.M)
    pieces = re.split(r"^(```.*?^```)$", text, flags=re.S | re.M)       # code is left as it is
    pointer = r"(^|[\s(\[–—-])@((?:sec|fig|eq|tbl)-[\w-]*\w)"
    pieces[::2] = [re.sub(pointer, r"\1[\2](#\2)", p, flags=re.I | re.M) for p in pieces[::2]]
    text = "".join(pieces)
    return re.sub(r"::: *\{\.callout-(\w+)",
                  r"::: {.callout .callout-style-default .callout-\1", text)


def body(path, folder):
    options = ["--mathml", "--section-divs", "--citeproc",
               f"--bibliography={ROOT / 'references.bib'}", "--wrap=none", "--quiet"]
    text = markdown(path, folder)
    out = pypandoc.convert_text(text, "html", format="markdown", extra_args=options)
    out = re.sub(r'\bfig-alt="(.*?)"|\bdata-fig-alt="(.*?)"',
                 lambda m: f'data-alt="{m[1] or m[2]}"', out)
    out = re.sub(r'<img ([^>]*?)alt="[^"]*"([^>]*?)data-alt="([^"]*)"', r'<img \1alt="\3"\2', out)
    out = re.sub(r'<img ([^>]*?)data-alt="([^"]*)"([^>]*?)alt="[^"]*"', r'<img \1alt="\2"\3', out)
    # without a caption pandoc writes no alt of its own
    out = re.sub(r'<img (?![^>]*\salt=)([^>]*?)data-alt=', r'<img \1alt=', out)
    return out.replace("<img ", '<img class="img-fluid" ')


def settings():
    "What _quarto.yml says."
    return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def names():
    "The pages of the book, in the order of _quarto.yml."
    return settings()["project"]["render"]


def write(folder, pages=None):
    "Write the named pages and what they show; returns the HTML files."
    form, made, root = settings()["format"]["html"], [], folder.resolve()
    sheets = [form["css"]] if isinstance(form["css"], str) else form["css"]
    after = (ROOT / form["include-after-body"]).read_text(encoding="utf-8")
    for name in pages or names():
        target = (folder / name).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        up = os.path.relpath(folder, target.parent)
        links = "".join(f'<link rel="stylesheet" href="{up}/{s}">' for s in sheets)
        page = PAGE.format(title=name, style=STYLE, sheets=links, after=after,
                           body=body(ROOT / name, target.parent))
        target.write_text(page, encoding="utf-8")
        made.append(target)
        sources = re.findall(r'<img [^>]*?src="([^":]+)"', page)
        shown = {(target.parent / src).resolve() for src in sources}
        files = [p.relative_to(root) for p in shown if p.is_relative_to(root)]
        for file in [*files, *map(Path, sheets)]:
            if not (folder / file).exists() and (ROOT / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
    return made


def main():
    raw = argparse.RawDescriptionHelpFormatter
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    ap.add_argument("folder", type=Path)
    ap.add_argument("pages", nargs="*")
    a = ap.parse_args()
    for file in write(a.folder, a.pages):
        print(file)


if __name__ == "__main__":
    main()

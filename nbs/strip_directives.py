"""Quarto's ipynb-filter (_quarto.yml): notebook JSON in, notebook JSON out, without the directives
that are meant for nbdev, with links to the notebook itself.

At the top of a code cell a `#|` line with `key: value` is an option for Quarto and stays
(`#| label: fig-x`); any other is a directive for nbdev (`#| export`), which Quarto would print, and
goes. Cells marked `#| hide` and cells with nothing left go too.

Below its head each page offers its notebook for download, and, where _quarto.yml names the address
of a public repository (`repo-url`), in Colab and Binder.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def strip_directives(nb):
    cells = []
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines(keepends=True)
            code = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")]
            top = code[0] if code else len(lines)
            options = [line for line in lines[:top] if re.match(r"#\|\s*[\w-]+\s*:(\s|$)", line)]
            hidden = any(re.match(r"#\|\s*hide\s*:?\s*$", line) for line in lines[:top])
            if hidden or not options + lines[top:]:
                continue
            cell = {**cell, "source": options + lines[top:]}
        cells.append(cell)
    return {**nb, "cells": cells}


def repository(config):
    """(owner, name, branch) of the public repository in the text of _quarto.yml, or None where it
    names none. Raises ValueError for an address that is not GitHub's."""
    named = dict(re.findall(r"^  (repo-url|repo-branch):\s*[\"']?([^\s\"']+)", config, re.M))
    if "repo-url" not in named:
        return None
    url = named["repo-url"]
    if not (address := re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?", url)):
        raise ValueError(f"_quarto.yml: repo-url is {url}; "
                         "Colab and Binder open https://github.com/OWNER/NAME")
    return (*address.groups(), named.get("repo-branch", "main"))


def links(path, repo):
    "Markdown: the notebook `path` (from the root of the tree) for download, in Colab, in Binder."
    # data-noresolveinput: or Quarto would link to the page
    parts = [f'[Download this page as a notebook]({path.name})'
             f'{{download="{path.name}" data-noresolveinput="true"}}']
    if repo:
        owner, name, branch = repo
        page, folder = path.as_posix(), path.parent.as_posix()
        binder = f"https://mybinder.org/v2/gh/{owner}/{name}/{branch}?urlpath=lab/tree/{page}"
        colab = f"https://colab.research.google.com/github/{owner}/{name}/blob/{branch}/{page}"
        clone = f"git clone --depth 1 --branch {branch} https://github.com/{owner}/{name}"
        install = f'pip install -q "./{name}[dev]"'
        commands = f"```\n!{clone} && {install}\n%cd {name}/{folder}\n```"
        parts += [f"[open it in Binder]({binder})",
                  f"[open it in Colab]({colab}) and run first:\n\n{commands}"]
    return "::: {.notebook-links}\n" + " · ".join(parts) + "\n:::\n"


def with_links(nb, root=ROOT):
    """The notebook with the links below its first cell.

    Quarto does not say which file it is filtering: it is the one that begins with the same cell.
    """
    for path in sorted(root.glob("nbs/**/[0-9][0-9]_*.ipynb")):
        if begins(json.loads(path.read_text(encoding="utf-8"))) == begins(nb):
            config = (root / "_quarto.yml").read_text(encoding="utf-8")
            text = links(path.relative_to(root), repository(config))
            cell = {"cell_type": "markdown", "id": "notebook-links", "metadata": {},
                    "source": text.splitlines(keepends=True)}
            return {**nb, "cells": [*nb["cells"][:1], cell, *nb["cells"][1:]]}
    return nb


def begins(nb):
    return "".join("".join(cell["source"]) for cell in nb["cells"][:1])


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    json.dump(strip_directives(with_links(json.load(sys.stdin))), sys.stdout, ensure_ascii=False)

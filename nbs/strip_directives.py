"""Quarto's ipynb-filter (_quarto.yml): notebook JSON in, notebook JSON out, without the directives that are meant for nbdev.

At the top of a code cell a `#|` line with `key: value` is an option for Quarto and stays (`#| label: fig-x`); any other is a directive
for nbdev (`#| export`), which Quarto would print, and goes. Cells marked `#| hide` and cells with nothing left go too.
"""
import json
import re
import sys


def strip_directives(nb):
    cells = []
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines(keepends=True)
            top = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")), len(lines))
            options = [line for line in lines[:top] if re.match(r"#\|\s*[\w-]+\s*:(\s|$)", line)]
            hidden = any(re.match(r"#\|\s*hide\s*:?\s*$", line) for line in lines[:top])
            if hidden or not options + lines[top:]:
                continue
            cell = {**cell, "source": options + lines[top:]}
        cells.append(cell)
    return {**nb, "cells": cells}


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    json.dump(strip_directives(json.load(sys.stdin)), sys.stdout, ensure_ascii=False)

"""The README tells the truth: its pictures exist, its numbers are those of the result file, its
snippets run."""
import json
import re
import shlex
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_length_and_links():
    assert len(README.splitlines()) <= 160
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert len(targets) > 10
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_scores_are_those_of_the_result_files_and_of_the_card():
    scores, run = (json.loads((ROOT / f"figures/bundled/{name}.json").read_text())
                   for name in ("scores", "restorer"))
    card = (ROOT / "gfpgan_edu/bundled/faces64.md").read_text(encoding="utf-8")
    shown = {name: s for name, s in scores["sets"].items() if name.endswith("blind")}
    assert len(shown) == 2
    for name, s in shown.items():
        assert s["markdown"].strip() in README and s["markdown"].strip() in card
        lines = s["markdown"].splitlines()
        # the table is made of the numbers beside it
        for label, value in s["methods"]["GFP-GAN"].items():
            digits = next(c[2] for c in s["columns"] if c[0] == label)
            if isinstance(value, dict):
                value = value["mean"]
            elif isinstance(value, list):
                value = value[0]
            line = next(line for line in lines if line.startswith("| GFP-GAN"))
            assert f"{value:.{digits}f}" in line
    assert f"{run['images']:,} pictures in {run['minutes']} minutes" in card


@pytest.fixture
def photo(tmp_path):
    from gfpgan_edu.examples import astronaut

    Image.fromarray(astronaut()).save(tmp_path / "photo.jpg")
    (tmp_path / "holiday_folder").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "holiday_folder" / "a.jpg")
    return tmp_path


def test_python_snippet_runs(photo, monkeypatch, capsys):
    monkeypatch.chdir(photo)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) == 5
    (photo / "snippet.py").write_text(code)
    runpy.run_path(str(photo / "snippet.py"))
    assert capsys.readouterr().out.startswith("1 [(")
    assert np.array(Image.open(photo / "restored.png")).shape == (512, 512, 3)


def test_command_lines_run(photo):
    block = re.search(r"```sh\n(gfpgan-edu.*?)```", README, re.S)[1].strip().splitlines()
    assert len(block) == 5
    for line in block:
        words = shlex.split(line, comments=True)
        if "v1.4" in words or "web" in words:                # need a network, the extra [web]
            continue
        python = [sys.executable, "-c", "from gfpgan_edu.cli import main; main()"]
        run = subprocess.run([*python, *words[1:]], cwd=photo, capture_output=True, text=True)
        assert run.returncode == 0, f"{line}: {run.stderr}"
    assert (photo / "restored" / "photo.jpg").exists() and (photo / "restored" / "a.jpg").exists()


def demo(*args):
    command = [sys.executable, str(ROOT / "figures/demo.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_demo_draws_three_columns(tmp_path):
    run = demo("--out", tmp_path / "demo.png")
    assert run.returncode == 0, run.stderr
    assert str(tmp_path / "demo.png") in run.stdout
    picture = np.array(Image.open(tmp_path / "demo.png").convert("RGB"), int)
    third = picture.shape[1] // 3
    left, middle = picture[:, :third], picture[:, third:2 * third]
    assert np.abs(left - middle).mean() > 0.5       # the restored column is not the input column


def test_demo_with_own_photo_and_without_a_face(tmp_path, photo):
    run = demo(photo / "photo.jpg", "--out", tmp_path / "own.png")
    assert run.returncode == 0 and (tmp_path / "own.png").exists(), run.stderr
    Image.new("RGB", (200, 200), "gray").save(tmp_path / "grey.png")
    for bad in (tmp_path / "grey.png", tmp_path / "missing.png"):
        run = demo(bad, "--out", tmp_path / "none.png")
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1 and str(bad) in run.stderr
        assert not (tmp_path / "none.png").exists()

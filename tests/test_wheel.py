"""The package works where the tree is not.

The wheel, built from the source archive and installed into a fresh environment, restores a photo
from another folder.
"""
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
from PIL import Image

from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import detect

ROOT = Path(__file__).parent.parent
FILES = "settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    words = [str(c) for c in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_restores_a_photo_outside_the_tree(tmp_path):
    source, fresh, work = tmp_path / "source", tmp_path / "fresh", tmp_path / "work"
    source.mkdir(), work.mkdir()
    for name in FILES:                                          # a copy: building leaves traces
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gfpgan_edu", source / "gfpgan_edu", ignore=ignored)
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    archive = run(sys.executable, "-c", code, cwd=source).split()[-1]
    shutil.rmtree(source)
    run(sys.executable, "-m", "pip", "wheel", tmp_path / archive, "--no-deps",
        "--no-build-isolation", "--quiet", "-w", tmp_path, cwd=work)
    wheel, = tmp_path.glob("*.whl")

    venv.create(fresh, with_pip=False, symlinks=True)
    python = fresh / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--quiet", wheel, cwd=work)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=work).strip())
    # torch and the rest, from here
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    found = run(python, "-c", "import gfpgan_edu; print(gfpgan_edu.__file__)", cwd=work)
    assert Path(found.strip()).is_relative_to(fresh)
    assert (site / "gfpgan_edu" / "py.typed").exists()

    photo = astronaut()
    Image.fromarray(photo).save(work / "photo.png")
    command = fresh / "bin/gfpgan-edu"
    told = run(command, "restore", "photo.png", "--out", "out", cwd=work)
    assert "1 of 1 restored" in told
    restored = np.array(Image.open(work / "out/photo.png"))
    assert restored.shape == photo.shape
    (x0, y0, x1, y1), changed = detect(photo)[0].box, (restored != photo).any(-1)
    w, h = x1 - x0, y1 - y0                             # the aligned face reaches beyond the box
    rows, columns = np.nonzero(changed)
    assert changed[int(y0):int(y1), int(x0):int(x1)].mean() > 0.5
    assert x0 - w < columns.min() and columns.max() < x1 + w
    assert y0 - h < rows.min() and rows.max() < y1 + h
    assert changed.mean() < 0.25

"""figures/film.py on made runs: every tile of a sheet has a grey level of its own, so that the
strip tells where its faces came from."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FIGURES, S = Path(__file__).parent.parent / "figures", 8
sys.path.append(str(FIGURES))
from film import spread, strip  # noqa: E402


def made_run(folder, iterations, restorer, size=S, begun=None, shift=0):
    """Sheets of 3 x 4 faces of one grey level each: 20 a row, 3 a column, and one more with each
    sheet."""
    folder.mkdir()
    model = f"model:\n  size: {size}\n" if restorer else f"size: {size}\n"
    (folder / "config.yaml").write_text(model + "run:\n  batch: 2\n")
    if begun:
        (folder / "begun.yaml").write_text(f"images: {begun}\nminutes: 1\nstory: made\n")
    for n, i in enumerate(iterations):
        greys = 20 * np.arange(3)[:, None] + 3 * np.arange(4) + n + shift
        sheet = np.kron(greys, np.ones((size, size))).astype(np.uint8)
        Image.fromarray(sheet).convert("RGB").save(folder / f"valid-{i:08}.png")
    return folder


def levels(picture):
    return picture[S // 2::S, S // 2::S, 0].tolist()


def test_restorers_faces_between_input_and_truth(tmp_path):
    labels, picture = strip([made_run(tmp_path / "run", [0, 10, 500], True)], [0, 3], 5)
    assert labels == ["input", "0", "20", "1,000", "truth"]
    # input and truth of the last sheet
    assert levels(picture) == [[2, 20, 21, 22, 42], [11, 29, 30, 31, 51]]


def test_priors_samples(tmp_path):
    labels, picture = strip([made_run(tmp_path / "run", [0, 7], False)], [1, 6], 5)
    assert labels == ["0", "14"] and levels(picture) == [[3, 4], [26, 27]]


def test_a_run_that_went_on(tmp_path):
    first = made_run(tmp_path / "first", [0, 10], True)
    then = made_run(tmp_path / "then", [0, 5], True, begun=20, shift=9)
    labels, picture = strip([first, then], [0], 9)
    assert labels[1:-1] == ["0", "20", "30"] and levels(picture) == [[10, 20, 29, 30, 50]]


def test_steps_grow():
    seen = list(range(0, 100_001, 1000))
    chosen = spread(seen, 6)
    assert len(chosen) == 6 and chosen[0] == 0 and chosen[-1] == 100_000
    assert (np.diff(chosen, 2) > 0).all()
    assert spread([5], 4) == [5] and spread([0, 8], 4) == [0, 8]


def test_the_command_draws_labels_above_the_faces(tmp_path):
    run = made_run(tmp_path / "run", [0, 10, 500], True, size=64)
    command = [sys.executable, str(FIGURES / "film.py"), str(run), "--faces", "0", "3",
               "--out", str(tmp_path / "film.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "input, 0, 20, 1,000, truth" in done.stdout, done.stderr
    film = np.array(Image.open(tmp_path / "film.png").convert("RGB"))
    assert film.shape[1] == 5 * 64 and film.shape[0] > 2 * 64
    # pixel by pixel, no colour lost
    assert film[-32, 32::64, 0].tolist() == [11, 29, 30, 31, 51]
    above = film[:-2 * 64]
    assert all((above[:, 64 * i:64 * i + 64] < 128).any() for i in range(5))
    assert above[0].min() > 250


@pytest.mark.parametrize("runs, faces, message", [
    (["nothing"], [0], "not a run with validation sheets"),
    (["a", "prior"], [0], "different kinds"),
    (["a", "large"], [0], "different kinds or sizes"),
    (["a"], [4], "hold 4 faces"),
    (["prior"], [12], "hold 12 faces"),
])
def test_errors_tell_what_is_wrong(tmp_path, runs, faces, message):
    made_run(tmp_path / "a", [0], True)
    made_run(tmp_path / "prior", [0], False)
    made_run(tmp_path / "large", [0], True, size=16)
    with pytest.raises(ValueError, match=message):
        strip([tmp_path / r for r in runs], faces, 4)

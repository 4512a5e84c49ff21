"""The command line: exit codes, one line for each failure, nothing partial, nothing lost, nothing
overwritten."""
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gfpgan_edu import bundled, cli, photos, weights
from gfpgan_edu.cli import (DONE, INTERRUPTED, NOTHING_DONE, SOME_FAILED, UNHEARD, one_line, parse,
                            plan)
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut
from gfpgan_edu.pictures import read_image, write_image


def call(capsys, *args):
    "(exit code, stdout, lines of stderr) of the command."
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return e.value.code, out, err.splitlines()


def refusal(capsys, *args):
    "The one line of a command that does nothing and says nothing else."
    code, said, lines = call(capsys, *args)
    assert code == NOTHING_DONE and said == "" and len(lines) == 1, (code, said, lines)
    return lines[0]


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def grey(value, height=20, width=30):
    return np.full((height, width, 3), value, np.uint8)


class Quick:
    """In the place of network and detector: what is black has no face, grey 66 is a Ctrl-C, 77 a
    surprise, 88 has notes; all others come back inverted. Keeps what was asked."""

    def __init__(self):
        self.loaded, self.options = [], []

    def load(self, name, progress):
        self.loaded.append(name)
        return SimpleNamespace(to=lambda device: self)

    def restore(self, image, net, **options):
        self.options.append(options)
        value = image[0, 0, 0]
        if value == 66:
            raise KeyboardInterrupt
        if value == 77:
            raise RuntimeError("out of memory\nstack of\nthings")
        if value == 0:
            raise photos.NoFace("image: no face found")
        notes = ("face of 300 px is larger than the model's 64 px",) if value == 88 else ()
        face = (image[:4, :4], 255 - image[:4, :4])
        return SimpleNamespace(image=255 - image, faces=[face, face],
                               boxes=[(1, 2, 3.26, 4), (0, 0, 9, 9)], landmarks=[], notes=notes)


@pytest.fixture
def quick(monkeypatch):
    q = Quick()
    monkeypatch.setattr(photos, "restore", q.restore)
    monkeypatch.setattr(weights, "load_weights", q.load)
    monkeypatch.setattr("gfpgan_edu.inference.fuse", lambda net, **options: net)
    return q


@pytest.fixture
def folder(tmp_path):
    "Two good photos, four bad ones, and what is no photo by its name."
    f = tmp_path / "in"
    write_image(f / "good.png", grey(40))
    write_image(f / "Good too.JPG", grey(40))
    write_image(f / "faceless.png", grey(0))
    write_image(f / "half.png", grey(40))
    (f / "half.png").write_bytes((f / "half.png").read_bytes()[:50])
    (f / "text.jpg").write_text("text")
    (f / "two\nlines.png").touch()
    (f / "notes.txt").write_text("not by its suffix")
    (f / "folder.png").mkdir()
    return f


# ---------------------------------------------------------------- a folder

def test_bad_files_are_named_and_the_others_are_done(folder, tmp_path, capsys, quick):
    before, out = snapshot(folder), tmp_path / "new" / "out"
    code, said, lines = call(capsys, "restore", folder, "--out", out)
    first, *reasons = said.splitlines()
    assert code == SOME_FAILED
    assert first == f"2 of 6 restored into {out}: 1 without a face, 3 failed"
    assert len(reasons) == 4 and "  1 × no face found" in reasons and "  1 × is empty" in reasons
    expected = {"faceless.png": "no face found", "half.png": "cannot be read",
                "text.jpg": "not a picture", "two lines.png": "is empty"}
    assert len(lines) == 4 and all(line.startswith(f"gfpgan-edu: {folder}") for line in lines)
    for name, reason in expected.items():
        assert sum(name in line and reason in line for line in lines) == 1
    assert sorted(p.name for p in out.iterdir()) == ["Good too.JPG", "good.png"]
    assert (read_image(out / "good.png") == 215).all()
    assert snapshot(folder) == before
    assert quick.loaded == ["bundled"]                       # the network is loaded once


def test_a_second_run_does_what_is_left_and_force_does_all(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    for name in ("faceless.png", "half.png", "text.jpg", "two\nlines.png"):
        (folder / name).unlink()

    def restored(photos, *words):
        code, said, lines = call(capsys, "restore", photos, "--out", out, *words)
        assert code == DONE and lines == []
        return said

    assert restored(folder) == f"2 of 2 restored into {out}\n"
    (out / "good.png").write_text("mine")
    assert restored(folder) == f"0 of 2 restored into {out}: 2 done before\n"
    assert (out / "good.png").read_text() == "mine"
    assert len(quick.loaded) == 1                            # nothing to do, nothing loaded
    (out / "Good too.JPG").unlink()
    assert restored(folder) == f"1 of 2 restored into {out}: 1 done before\n"
    assert restored(folder / "good.png", "--force") == f"1 of 1 restored into {out}\n"
    assert (read_image(out / "good.png") == 215).all()


def test_all_bad_is_2_and_one_bad_beside_one_done_before_is_1(folder, tmp_path, capsys, quick):
    good = (folder / "good.png").read_bytes()
    (folder / "good.png").unlink()
    (folder / "Good too.JPG").unlink()
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == NOTHING_DONE and said.startswith("0 of 4") and len(lines) == 4
    assert not snapshot(tmp_path / "out")
    (tmp_path / "out" / "good.png").write_bytes(good)
    (folder / "good.png").write_bytes(good)
    assert call(capsys, "restore", folder, "--out", tmp_path / "out")[0] == SOME_FAILED


def test_the_unforeseen_is_one_line_and_the_others_are_done(folder, tmp_path, capsys, quick):
    write_image(folder / "good.png", grey(77))
    code, _, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["Good too.JPG"]
    line = f"gfpgan-edu: {folder / 'good.png'}: RuntimeError: out of memory stack of things"
    assert line in lines


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    write_image(folder / "good.png", grey(66))
    code, said, lines = call(capsys, "restore", folder, "--out", out)
    assert code == INTERRUPTED and said.startswith("1 of 6 restored") and "4 left" in said
    assert lines[-1].startswith("gfpgan-edu: interrupted")
    assert [p.name for p in out.iterdir()] == ["Good too.JPG"]
    write_image(folder / "good.png", grey(40))
    said = call(capsys, "restore", folder, "--out", out)[1]
    assert said.startswith(f"1 of 6 restored into {out}: 1 done before")


def test_json_lines_say_all_and_nothing_else_is_on_stdout(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    write_image(out / "Good too.JPG", grey(1))
    write_image(folder / "large.png", grey(88))
    code, said, lines = call(capsys, "restore", folder, "--out", out, "--json")
    *records, summary = [json.loads(line) for line in said.splitlines()]
    by_name = {os.path.basename(r["photo"]): r for r in records}
    assert len(by_name) == len(records) == 7
    assert {r["status"] for r in records} == {"done", "done_before", "no_face", "failed"}
    assert by_name["good.png"] == dict(
        photo=str(folder / "good.png"), status="done", reason=None, notes=[],
        result=str(out / "good.png"), faces=2, boxes=[[1.0, 2.0, 3.3, 4.0], [0.0, 0.0, 9.0, 9.0]])
    assert by_name["two\nlines.png"]["reason"] == "is empty"
    assert by_name["faceless.png"]["status"] == "no_face"
    assert by_name["large.png"]["notes"] == ["face of 300 px is larger than the model's 64 px"]
    reasons = summary.pop("reasons")
    assert code == SOME_FAILED
    assert summary == dict(status="summary", photos=7, done=2, done_before=1, no_face=1, failed=3,
                           left=0, out=str(out), exit_code=SOME_FAILED)
    assert sum(reasons.values()) == 4 and reasons["no face found"] == 1
    noted = [line for line in lines if "larger than the model" in line and "large.png" in line]
    assert len(lines) == 5 and len(noted) == 1               # a note is said once


def test_a_tree_keeps_its_shape(folder, tmp_path, capsys, quick, monkeypatch):
    for name in ("a/b/deep.png", "a/good.png", "closed/x.png", "out/results.png"):
        write_image(folder / name, grey(50))
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    real = os.scandir

    def scandir(path):         # root may look into any folder, so the refusal is made here
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    out = folder / "out"
    code, said, lines = call(capsys, "restore", folder, "--out", out, "--recursive")
    assert code == SOME_FAILED and said.startswith("4 of 9")
    assert f"gfpgan-edu: {folder / 'closed'}: permission denied" in lines
    names = {"Good too.JPG", "good.png", "a/good.png", "a/b/deep.png", "results.png"}
    assert {p.as_posix() for p in snapshot(out)} == names
    assert (read_image(out / "a/good.png") == 205).all()
    assert (read_image(out / "results.png") == 50).all()     # no result is restored again
    assert len(call(capsys, "restore", folder, "--out", tmp_path / "flat")[2]) == 4
    # without --recursive subfolders are left alone
    assert not (tmp_path / "flat" / "a").exists()


def test_names_that_meet_and_names_that_do_not(folder, tmp_path, capsys, quick):
    x, out, both = tmp_path / "x", tmp_path / "out", tmp_path / "both"
    for name, value in (("a.jpg", 10), ("a.png", 20), ("other/a.png", 30)):
        write_image(x / name, grey(value))
    assert call(capsys, "restore", x, "--out", out)[0] == DONE
    assert [int(read_image(out / n)[0, 0, 0]) for n in ("a.jpg", "a.png")] == [245, 235]
    line = refusal(capsys, "restore", x, x / "other", "--out", both)
    assert "x/other/a.png" in line and "x/a.png" in line and not both.exists()
    pairs, _ = plan([x, x / "a.png", x / "a.png"], out)
    assert [p.name for p, _ in pairs] == ["a.jpg", "a.png"]  # named thrice, done once


def test_pairs_of_faces_are_saved_beside(folder, tmp_path, capsys, quick):
    faces = tmp_path / "faces"
    write_image(folder / "sub/good.png", grey(50))
    write_image(faces / "good.png-1-after.png", grey(3))
    words = ["restore", folder, "--out", tmp_path / "out", "--recursive", "--save-faces", faces]
    assert call(capsys, *words)[0] == SOME_FAILED
    photos = ("good.png", "Good too.JPG", "sub/good.png")
    names = {f"{p}-{i}-{w}.png" for p in photos for i in (1, 2) for w in ("before", "after")}
    assert {p.as_posix() for p in snapshot(faces)} == names
    assert read_image(faces / "sub/good.png-2-before.png")[0, 0, 0] == 50
    assert read_image(faces / "sub/good.png-2-after.png")[0, 0, 0] == 205
    assert read_image(faces / "good.png-1-after.png")[0, 0, 0] == 3        # what is there stays
    call(capsys, *words, "--force")
    assert read_image(faces / "good.png-1-after.png")[0, 0, 0] == 215
    (tmp_path / "file").touch()
    for place, reason in ((tmp_path / "file", "is a file"), (folder, "originals")):
        line = refusal(capsys, "restore", folder, "--out", tmp_path / "new", "--save-faces", place)
        assert str(place) in line and reason in line and not snapshot(tmp_path / "new")
    inside = ["restore", folder, "--out", folder / "out", "--recursive",
              "--save-faces", folder / "faces", "--json"]
    first, second = (json.loads(call(capsys, *inside)[1].splitlines()[-1]) for _ in range(2))
    assert first["photos"] == second["photos"] == 7          # faces are not taken for photos


def test_options_reach_the_restorer(folder, tmp_path, capsys, quick):
    call(capsys, "restore", folder / "good.png", "--out", tmp_path / "a")
    call(capsys, "restore", folder / "good.png", "--out", tmp_path / "b", "--fidelity", 0.25,
         "--only-center", "--aligned", "--upscale", 2, "--device", "cpu", "--weights", "v1.3")
    names = ("fidelity", "only_center", "aligned", "upscale")
    plain, other = ([options[name] for name in names] for options in quick.options)
    assert plain == [None, False, False, 1] and other == [0.25, True, True, 2]
    assert quick.loaded == ["bundled", "v1.3"]


@pytest.mark.parametrize("args, words", [
    (["--fidelity", 1.5], "fidelity"), (["--upscale", 0], "upscale"), (["--device", "tpu"], "tpu"),
    (["--device", "cuda:99"], "cuda")])
def test_impossible_options_are_refused_at_once(args, words, folder, tmp_path, capsys):
    line = refusal(capsys, "restore", folder, "--out", tmp_path / "out", *args)
    assert words in line.lower()


def test_what_a_file_holds_besides_its_pixels_is_kept(tmp_path, capsys, quick):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Brownie"
    im = Image.fromarray(np.dstack([grey(40), np.tile(np.arange(30, dtype=np.uint8), (20, 1))]))
    (tmp_path / "in").mkdir()
    im.save(tmp_path / "in/a.png", icc_profile=profile, exif=exif)
    assert call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out")[0] == DONE
    with Image.open(tmp_path / "out/a.png") as got:
        assert got.mode == "RGBA" and got.size == (20, 30)
        assert got.getpixel((0, 0))[:3] == (215,) * 3 and got.info["icc_profile"] == profile
        assert got.getexif().get(0x010F) == "Brownie" and got.getexif().get(0x0112) in (None, 1)
        upright = np.asarray(im.transpose(Image.Transpose.ROTATE_270))
        np.testing.assert_array_equal(np.asarray(got)[..., 3], upright[..., 3])


# ---------------------------------------------------------------- a clip

def test_a_clip_is_restored_frame_by_frame(tmp_path, capsys):
    frames, out = tmp_path / "in", tmp_path / "out"
    for i, left in enumerate((100, 102, 104)):
        write_image(frames / f"{i}.png", astronaut()[:300, left:left + 250])
    write_image(frames / "3.png", grey(90, 300, 250))
    (frames / "4.png").touch()
    code, said, lines = call(capsys, "restore", frames, "--out", out, "--video", "--json")
    *records, summary = map(json.loads, said.splitlines())
    assert code == SOME_FAILED
    assert [(os.path.basename(r["photo"]), r["status"], r.get("copied")) for r in records] == [
        ("0.png", "done", False), ("1.png", "done", False), ("2.png", "done", False),
        ("3.png", "done", True), ("4.png", "failed", None)]
    assert summary["done"] == 4 and summary["failed"] == 1
    assert any("without a face" in line for line in lines)
    assert sum("4.png: is empty" in line for line in lines) == 1
    assert sorted(p.name for p in out.iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert (read_image(out / "0.png") != read_image(frames / "0.png")).any()
    (out / "1.png").write_text("mine")
    line = refusal(capsys, "restore", frames, "--out", out, "--video")
    assert "4 of the 5" in line and "--force" in line and (out / "1.png").read_text() == "mine"


def test_a_clip_that_cannot_be_is_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "restore_video", lambda *a, **k: pytest.fail("restored"))
    (tmp_path / "bare").mkdir()
    for words, reason in [
            ((folder / "good.png",), "one folder"), ((folder, folder), "one folder"),
            ((tmp_path / "gone",), "one folder"), ((tmp_path / "bare",), "no pictures"),
            ((folder, "--aligned"), "--aligned"),
            ((folder, "--save-faces", tmp_path / "f"), "--save-faces"),
            ((folder, "--fidelity", 7), "fidelity")]:
        line = refusal(capsys, "restore", "--video", "--out", tmp_path / "out", *words)
        assert reason in line


# ---------------------------------------------------------------- what cannot work

def test_bad_places_are_refused_before_anything_is_loaded(folder, tmp_path, capsys, quick):
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "circle").symlink_to("circle")
    before = snapshot(folder)
    for photo, out, name, reason in [
        (tmp_path / "gone.jpg", "out", "gone.jpg", "no such file"),
        (tmp_path / "bare", "out", "bare", "no pictures"),
        (folder, "file", "file", "is a file"),
        (folder, "file/out", "file/out", "not a directory"),
        (folder, "in", "in", "originals"),
        (folder, "link", "link", "originals"),
        (folder / "good.png", "in", "in", "originals"),
        (folder / "good.png" / "x.png", "out", "x.png", "not a directory"),
        (tmp_path / ("n" * 300), "out", "nnn", "name too long"),
        (tmp_path / "circle", "out", "circle", "symbolic links"),
    ]:
        line = refusal(capsys, "restore", photo, "--out", tmp_path / out)
        assert name in line and reason in line
    assert quick.loaded == [] and snapshot(folder) == before and not (tmp_path / "out").exists()


def test_a_folder_without_leave_to_write_is_refused(folder, tmp_path, capsys, quick, monkeypatch):
    def refuse(dir):           # root may write anywhere, so the refusal is made here
        raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmp1234"))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    out = tmp_path / "out"
    line = refusal(capsys, "restore", folder, "--out", out)
    assert line == f"gfpgan-edu: {out}: cannot be used for the results (permission denied)"
    assert quick.loaded == []


def test_a_result_never_replaces_its_original(folder, tmp_path, capsys, quick):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "good.png").symlink_to(folder / "good.png")
    before = snapshot(folder)
    for force in ([], ["--force"]):
        code, _, lines = call(capsys, "restore", tmp_path / "links", "--out", folder, *force)
        assert code == NOTHING_DONE and len(lines) == 1 and "overwrite" in lines[0]
        assert snapshot(folder) == before


def test_things_that_are_not_files_do_not_hold_up_the_others(folder, tmp_path, capsys, quick):
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")         # opened, it would wait for a writer without end
    out = tmp_path / "out"
    code, said, lines = call(capsys, "restore", folder, "--out", out)
    assert code == SOME_FAILED and said.startswith("2 of 9 restored") and len(lines) == 7
    for name, reason in {"self.jpg": "symbolic links", "dangling.jpg": "no such file",
                         "pipe.jpg": "is a pipe"}.items():
        assert sum(name in line and reason in line for line in lines) == 1, lines
    assert call(capsys, "restore", folder / "pipe.jpg", "--out", out)[0] == NOTHING_DONE


def test_libraries_are_not_heard(tmp_path, capfd, quick):
    """libtiff prints on the stderr of the process, past Python; each photo gets one line all the
    same, and ours come through."""
    write_image(tmp_path / "in/good.png", grey(40))
    bad = tmp_path / "in/bad.tif"
    Image.fromarray(grey(40)).save(bad, compression="tiff_lzw")
    data = bytearray(bad.read_bytes())
    data[12:16] = b"\xff" * 4              # in the compressed pixels
    bad.write_bytes(data)
    with pytest.raises(ValueError, match="bad.tif: cannot be read"):
        read_image(bad)
    assert capfd.readouterr().err          # the complaint there would be
    code, said, lines = call(capfd, "restore", tmp_path / "in", "--out", tmp_path / "out")
    assert code == SOME_FAILED and len(lines) == 1, lines
    assert lines[0].startswith(f"gfpgan-edu: {bad}: cannot be read"), lines


def test_too_little_memory_is_one_line(folder, tmp_path, capsys, quick, monkeypatch):
    def load(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(weights, "load_weights", load)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert (code, said, lines) == (NOTHING_DONE, "", ["gfpgan-edu: not enough memory"])


def test_a_file_that_may_not_be_read_is_named(folder, tmp_path, capsys, quick, monkeypatch):
    real = Image.open

    def refuse(path, *args, **kwargs):     # root may read anything, so the refusal is made here
        if str(getattr(path, "name", path)).endswith("good.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refuse)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED and said.startswith("1 of 6")
    assert f"gfpgan-edu: {folder / 'good.png'}: cannot be read (permission denied)" in lines


@pytest.mark.parametrize("name", [
    "with space.png", "ünïcode 顔 ☺.png", "two\nlines\x1b[31m.png", "-rf.png", "$(touch gone).png",
    os.fsdecode(b"caf\xe9.png"), "." + "n" * 200 + ".png", "%s{0}.png"])
def test_any_name_is_restored_and_printed_on_one_line(name, tmp_path, capsys, quick, monkeypatch):
    write_image(tmp_path / "in" / name, grey(88))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / ("out" + name)
    code, said, lines = call(capsys, "restore", "in", "--out", out, "--json")
    record, summary = map(json.loads, said.splitlines())
    assert code == DONE and len(lines) == 1
    assert record["result"] == str(out / name) and os.path.exists(record["result"])
    assert call(capsys, "restore", "in", "--out", out, "--force")[1].count("\n") == 1


def full(monkeypatch, after):
    "A disk on which `after` more pictures find room."
    real, room = Image.Image.save, [after]

    def save(self, fp, *args, **kwargs):
        room[0] -= 1
        if room[0] < 0:
            getattr(fp, "write", lambda data: open(fp, "wb").write(data))(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, fp, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save)
    return lambda: monkeypatch.setattr(Image.Image, "save", real)


def test_a_full_disk_ends_the_run_and_leaves_nothing_partial(tmp_path, capsys, quick, monkeypatch):
    for i in range(6):
        write_image(tmp_path / f"in/{i}.png", grey(40 + i))
    words = ["restore", tmp_path / "in", "--out", tmp_path / "out"]
    make_room = full(monkeypatch, after=2)
    code, said, lines = call(capsys, *words)
    assert code == SOME_FAILED and len(lines) == 2
    assert said.startswith(f"2 of 6 restored into {tmp_path / 'out'}: 1 failed, 3 left")
    assert "2.png" in lines[0] and "no space left" in lines[0].lower() and "goes on" in lines[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    assert len(quick.options) == 3
    make_room()
    rest = f"4 of 6 restored into {tmp_path / 'out'}: 2 done before\n"
    assert call(capsys, *words)[:2] == (DONE, rest)


def test_ten_thousand_files_one_in_a_hundred_broken(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda f: None)         # a disk's time is not ours
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "good.bmp", grey(40, 2, 2))
    (tmp_path / "bad.bmp").write_bytes(b"BM")
    for i in range(10_000):
        kind = "bad.bmp" if i % 100 == 7 else "good.bmp"
        os.link(tmp_path / kind, tmp_path / f"in/{i:05}.bmp")
    out = tmp_path / "out"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", out, "--json")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    summary = json.loads(said.splitlines()[-1])
    assert code == SOME_FAILED and len(said.splitlines()) == 10_001
    assert (summary["photos"], summary["done"], summary["failed"]) == (10_000, 9_900, 100)
    assert len(lines) == 100 and sum(summary["reasons"].values()) == 100
    assert len(os.listdir(out)) == 9_900
    assert grown < 100, f"{grown} MB more"
    code, said, _ = call(capsys, "restore", tmp_path / "in", "--out", out)
    assert code == SOME_FAILED and len(said.splitlines()) == 2
    assert said.startswith(f"0 of 10000 restored into {out}: 9900 done before, 100 failed")


def test_broken_or_unknown_weights_are_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.safetensors").write_text("weights")
    half = weights.bundled_path().read_bytes()
    (tmp_path / "half.safetensors").write_bytes(half[:len(half) // 2])
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"params_ema": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    for name in ["v9", "gone.pth", *sorted(p.name for p in tmp_path.iterdir() if p != folder)]:
        w = name if name == "v9" else tmp_path / name
        line = refusal(capsys, "restore", folder, "--out", tmp_path / "out", "--weights", w)
        assert str(w) in line, name
    assert not snapshot(tmp_path / "out")


@pytest.mark.parametrize("args, words", [
    ("", "Expected one of {restore,"),
    ("restore", "--out DIR"),
    ("restore a.jpg", "--out DIR"),
    ("restore --out b", "no photo is named"),
    ("fly", "fly"),
    ("weights", "{list,fetch,info,convert}"),
    ("restore a.jpg --out b --wieghts v1", "--weights NAME_OR_FILE"),
    ("weights eat", "eat"),
    ("prepare a --out b --size big", "--size"),
    ("restore a.jpg --out", "--out"),
    ("degrade a --out b --seed -1", "--seed -1"),
    ("prepare a --out b --compression 10", "10"),
    ("completion fish", "fish"),
    ("train eat --data x --out y", "eat"),
    ("train-prior restorer --data x --out y", "restorer"),
    ("--no-such-option", "--no-such-option")])
@pytest.mark.parametrize("width, boxes", [("50", "utf-8"), ("200", "ascii")])
def test_bad_usage_is_one_line_and_2(capsys, args, words, width, boxes, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    stdout = SimpleNamespace(encoding=boxes, flush=lambda: None, write=sys.stdout.write,
                             isatty=lambda: False)           # tyro draws by it
    monkeypatch.setattr(sys, "stdout", stdout)
    line = refusal(capsys, *args.split())
    assert line.startswith("gfpgan-edu: ") and words in line
    assert not re.search("│|─|---|  ", line)


# ---------------------------------------------------------------- weights

def test_weights_list_and_info(tmp_path, capsys):
    code, said, lines = call(capsys, "weights", "list")
    assert code == DONE and not lines and "non-commercial" in said
    assert all(r.name in said and r.url in said for r in weights.RELEASES.values())
    code, said, lines = call(capsys, "weights", "info")
    assert code == DONE and not lines and "config: GFPGANConfig(size=64" in said
    gone = tmp_path / "gone.safetensors"
    assert "gone.safetensors" in refusal(capsys, "weights", "info", gone)


def test_weights_fetch(tmp_path, capsys, monkeypatch):
    def download(name, progress):
        return tmp_path / f"{name}, progress {progress}"

    monkeypatch.setattr(weights, "download", download)
    fetched = tmp_path / "v1.4, progress False"
    assert call(capsys, "weights", "fetch", "v1.4") == (DONE, f"{fetched}\n", [])
    for name in ("v9", ""):
        assert "v1.3" in refusal(capsys, "weights", "fetch", *name.split())

    def no_network(name, progress):
        raise weights.WeightsError("v1: download failed\n(no network)")

    monkeypatch.setattr(weights, "download", no_network)
    line = refusal(capsys, "weights", "fetch", "v1")
    assert line == "gfpgan-edu: v1: download failed (no network)"


# ---------------------------------------------------------------- export

def test_export_writes_a_file_that_runs_and_does_not_replace_it_unasked(tmp_path, capsys,
                                                                        monkeypatch):
    import onnxruntime

    from gfpgan_edu import inference

    net = weights.load_weights()
    target, size = tmp_path / "new" / "a.onnx", net.config.size
    code, said, lines = call(capsys, "export", "bundled", target)
    assert code == DONE and lines == [] and said.count("\n") == 1
    assert said.startswith(f"{target}: ") and said.endswith(f" MB, faces of {size} px\n")
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    x = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        want = net(x)[0]
    got = torch.from_numpy(session.run(None, {"face": x.numpy()})[0])
    assert (got - want).abs().max() < 1e-4 * (want.max() - want.min())
    assert session.get_modelmeta().custom_metadata_map["weights"] == "bundled"
    assert [p.name for p in target.parent.iterdir()] == ["a.onnx"]
    target.write_text("mine")
    line = refusal(capsys, "export", "bundled", target)
    assert line == f"gfpgan-edu: {target}: exists; --force replaces it"
    assert target.read_text() == "mine"
    monkeypatch.setattr(inference, "export_onnx", lambda net, path, **about: path.write_text("new"))
    assert call(capsys, "export", "bundled", target, "--force")[0] == DONE
    assert target.read_text() == "new"


def test_export_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    from gfpgan_edu import inference

    def missing(*_, **__):
        raise weights.WeightsError("a.onnx: ONNX needs more packages: pip install gfpgan_edu[onnx]")
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(inference, "export_onnx", missing)
    for name, target, reason in [
            ("bundled", "a.txt", "must end in .onnx"), ("bundled", "folder.onnx", "is a folder"),
            ("bundled", "file/a.onnx", "is a file"), ("v9", "a.onnx", "no such file"),
            ("bundled", "a.onnx", "pip install gfpgan_edu[onnx]")]:
        assert reason in refusal(capsys, "export", name, tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx"]


def test_export_tells_the_terms_of_released_weights(tmp_path, capsys, monkeypatch):
    from gfpgan_edu import inference

    told, net = {}, SimpleNamespace(config=SimpleNamespace(size=512))

    def export(net, path, **about):
        told.update(about)
        path.touch()

    monkeypatch.setattr(weights, "load_weights", lambda name, progress: net)
    monkeypatch.setattr(inference, "export_onnx", export)
    assert call(capsys, "export", "v1.4", tmp_path / "a.onnx")[0] == DONE
    assert told == dict(weights="v1.4", licence=weights.LICENCE)


# ---------------------------------------------------------------- degrade

def test_degrade_is_a_pure_function_of_seed_and_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    clean, one = tmp_path / "in", tmp_path / "one"
    for name in ("a.png", "sub/a.png", "b.jpg"):
        write_image(clean / name, rng.integers(0, 255, (40, 60, 3), np.uint8))
    (clean / "bad.png").write_text("no picture")
    words = ["--recursive", "--ranges", "severe", "--json", "--seed"]
    code, said, lines = call(capsys, "degrade", clean, "--out", one, *words, 3)
    told = map(json.loads, said.splitlines()[:-1])
    records = {os.path.relpath(r["photo"], clean): r for r in told}
    assert code == SOME_FAILED and len(lines) == 1 and "bad.png" in lines[0]
    # the draw that is told gives the same pixels, by the function of chapter 2
    for name in ("a.png", "sub/a.png"):
        params = DegradationParams.from_json(json.dumps(records[name]["params"]))
        want = degrade(read_image(clean / name), params)
        np.testing.assert_array_equal(read_image(one / name), want)
    assert records["a.png"]["params"] != records["sub/a.png"]["params"]
    # the others make no difference
    call(capsys, "degrade", clean / "a.png", "--out", tmp_path / "alone", *words, 3)
    assert (tmp_path / "alone/a.png").read_bytes() == (one / "a.png").read_bytes()
    call(capsys, "degrade", clean / "a.png", "--out", tmp_path / "other", *words, 4)
    assert (tmp_path / "other/a.png").read_bytes() != (one / "a.png").read_bytes()
    code, said, _ = call(capsys, "degrade", clean, "--out", one, "--recursive")
    assert said.startswith(f"0 of 4 degraded into {one}: 3 done before, 1 failed")


def test_degrade_takes_any_size(tmp_path, capsys):
    clean = tmp_path / "in"
    for h, w in ((1, 1), (1, 300), (3, 2), (17, 64)):
        picture = np.random.default_rng(0).integers(0, 255, (h, w, 3), np.uint8)
        write_image(clean / f"{h}x{w}.png", picture)
    for ranges in ("paper", "official", "severe", "extreme"):
        out = tmp_path / ranges
        assert call(capsys, "degrade", clean, "--out", out, "--ranges", ranges)[0] == DONE
        assert all(read_image(p).shape == read_image(clean / p.name).shape for p in out.iterdir())


def test_the_damage_scales_with_the_named_size(tmp_path, capsys):
    write_image(tmp_path / "a.png", astronaut()[:256, 100:356])
    draws = []
    for size in ((), ("--size", 256), ("--size", 64)):
        words = ["degrade", tmp_path / "a.png", "--out", tmp_path / f"o{size}", "--json", *size]
        said = call(capsys, *words)[1]
        draws.append(json.loads(said.splitlines()[0])["params"])
    assert draws[0] == draws[1] and draws[2]["sigma_x"] == pytest.approx(draws[0]["sigma_x"] / 4)


# ---------------------------------------------------------------- convert

def test_weights_are_converted_there_and_back(tmp_path, capsys):
    net, pth, ours = weights.load_weights(), tmp_path / "new/a.pth", tmp_path / "b.safetensors"
    code, said, lines = call(capsys, "weights", "convert", "bundled", pth)
    assert code == DONE and lines == []
    assert ("prior's picture alone" in said) == (net.config.prior_share < 1)
    state = torch.load(pth, weights_only=True)
    assert list(state) == ["params_ema"]
    assert "stylegan_decoder.constant_input.weight" in state["params_ema"]
    family = "bilinear" if net.config.resample == "bilinear" else "v1"
    code, said, lines = call(capsys, "weights", "convert", pth, ours, "--family", family)
    assert code == DONE and lines == []
    assert said.startswith(f"{ours}: ") and f"size={net.config.size}" in said
    again = weights.load(ours)
    assert again.config == net.config.replace(prior_share=1.0)
    for (k, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=k)
    half = tmp_path / "half.safetensors"
    assert call(capsys, "weights", "convert", ours, half, "--half")[0] == DONE
    assert half.stat().st_size < 0.6 * ours.stat().st_size
    names = ["b.safetensors", "half.safetensors", "new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [p.name for p in pth.parent.iterdir()] == ["a.pth"]


def test_convert_to_clean_computes_the_same(tmp_path, capsys):
    from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig

    torch.manual_seed(0)
    config = GFPGANConfig(size=16, style_dim=8, n_mlp=1, narrow=1 / 32, resample="bilinear")
    net, source, target = GFPGAN(config).eval(), tmp_path / "a.safetensors", tmp_path / "c.pth"
    weights.save(net, source)
    assert call(capsys, "weights", "convert", source, target, "--clean")[0] == DONE
    clean, x = weights.load_weights(target), torch.rand(1, 3, 16, 16) * 2 - 1
    assert not clean.config.equalized
    with torch.no_grad():
        torch.testing.assert_close(clean(x)[0], net(x)[0], rtol=1e-4, atol=1e-5)


def test_convert_refuses_in_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "there.pth").write_text("mine")
    (tmp_path / "text.pth").write_text("no weights")
    before = snapshot(tmp_path)
    fir = weights.load_weights().config.resample == "fir"
    for words, reason in [
            ((), "needs two names"), (("bundled",), "needs two names"),
            (("bundled", "a.onnx"), "must end in .safetensors or .pth"),
            (("bundled", "there.pth"), "--force"), (("bundled", "a.pth", "--half"), "32 bits"),
            (("bundled", "there.pth/a.pth"), "cannot be written"),
            (("v9", "a.pth"), "no such file"), (("text.pth", "a.safetensors"), "text.pth"),
            (("bundled", "a.pth", "--clean"), "clean form" if fir else "")]:
        words = [tmp_path / w if "." in w and not w.startswith("-") and w != "v9" else w
                 for w in words]
        if not reason:
            continue
        assert reason in refusal(capsys, "weights", "convert", *words), words
        assert snapshot(tmp_path) == before

    def no_room(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", no_room)
    for words in ((tmp_path / "a.pth",), (tmp_path / "there.pth", "--force")):
        code, _, lines = call(capsys, "weights", "convert", "bundled", *words)
        assert code == NOTHING_DONE and "no space left" in lines[0].lower()
        assert snapshot(tmp_path) == before


# ---------------------------------------------------------------- doctor

def findings(capsys):
    code, said, lines = call(capsys, "doctor", "--json")
    assert lines == []
    return code, {f["check"]: f for f in map(json.loads, said.splitlines())}


def test_doctor_finds_nothing_missing_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "cache"))
    code, found = findings(capsys)
    assert code == DONE and not [f for f in found.values() if f["status"] == "missing"]
    assert {"python", "torch", "torchvision", "opencv-python", "extra onnx", "extra judges",
            "import cv2", "quarto", "cpu", "cuda", "faces64", "cache", "v1.4",
            "a photo"} <= found.keys()
    assert " ms for a face of 64 px" in found["cpu"]["found"]
    assert found["cache"]["found"] == str(tmp_path / "cache")
    assert found["torch"]["found"].startswith(torch.__version__.split("+")[0])
    for f in found.values():
        assert set(f) == {"check", "status", "found", "todo"}
        assert f["status"] == "ok" or f["status"] == "warn" and f["todo"]


def test_doctor_names_what_is_missing_and_what_to_do(tmp_path, capsys, monkeypatch):
    from importlib import metadata

    cache, real = tmp_path / "cache", metadata.version
    cache.mkdir()
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(cache))
    (cache / "GFPGANv1.4.pth").write_text("not these")
    (cache / "GFPGANv1.3.pth.part").write_text("half")

    def version(name):
        if name in ("tensorboard", "onnx2torch"):
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    def no_gl(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(bundled.SHA256, "faces64.safetensors", "0" * 64)
    monkeypatch.setitem(bundled.SHA256, "gone.safetensors", "0" * 64)
    monkeypatch.setattr(photos, "restore", lambda image: 1 / 0)
    monkeypatch.setattr(cli, "import_module", no_gl)
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": "/bin/nvidia-smi"}.get)
    code, found = findings(capsys)
    assert code == NOTHING_DONE
    expected = {
        "torch": ("missing", "1.0 (needs >=2.6)", "pip install"),
        "tensorboard": ("missing", "not installed", "tensorboard"),
        "extra onnx": ("warn", "onnx2torch", "gfpgan_edu[onnx]"),
        "import cv2": ("missing", "libGL", "libgl1"),
        "faces64": ("missing", "SHA-256 differs", "again"),
        "gone": ("missing", "no such file", "again"),
        "v1.4": ("warn", "SHA-256 differs", "fetch v1.4"),
        "v1.3": ("warn", "broken off", "fetch v1.3"),
        "a photo": ("missing", "ZeroDivisionError", ""),
        "quarto": ("warn", "not found", "quarto.org"),
    }
    if not torch.cuda.is_available():
        expected["cuda"] = ("warn", "cannot use it", "pytorch.org")
    for check, (status, words, todo) in expected.items():
        f = found[check]
        assert f["status"] == status and words in f["found"] and todo in f["todo"], f
    monkeypatch.setattr(photos, "restore", lambda image: SimpleNamespace(faces=[]))
    code, said, _ = call(capsys, "doctor")
    assert "0 face restored" in said and code == NOTHING_DONE
    line = r"^missing torch +1\.0 \(needs >=2\.6\); pip install \"torch>=2\.6\"$"
    assert re.search(line, said, re.M)


def test_doctor_of_a_cache_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cli, "look_at_devices", lambda: iter(()))
    monkeypatch.setattr(cli, "look_at_a_photo", lambda: iter(()))
    code, found = findings(capsys)
    cache = found["cache"]
    assert code == DONE and cache["status"] == "warn"
    assert "is a file" in cache["found"] and "GFPGAN_EDU_CACHE" in cache["todo"]


def test_the_sums_are_those_of_the_bundled_files():
    folder = weights.bundled_path().parent
    files = {p.name: weights.sha256_of(p) for p in folder.glob("*.safetensors")}
    todo = "new weights: write their sums into gfpgan_edu/bundled/__init__.py"
    assert bundled.SHA256 == files, todo


# ---------------------------------------------------------------- web, completion, pipes

def test_web_passes_its_options_on_and_says_what_is_missing(capsys, monkeypatch):
    asked = {}
    page = SimpleNamespace(launch=lambda **options: asked.update(options))
    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", page)
    words = ["--port", 7001, "--weights", "v1.4", "--max-mb", 5, "--no-open-browser"]
    assert call(capsys, "web", *words)[0] == DONE
    assert asked == dict(port=7001, weights="v1.4", max_mb=5, open_browser=False)

    def launch(**options):
        raise RuntimeError('the web page needs gradio: pip install "gfpgan_edu[web]"')

    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", SimpleNamespace(launch=launch))
    assert "gfpgan_edu[web]" in refusal(capsys, "web")
    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", None)
    assert call(capsys, "web")[0] == NOTHING_DONE


def test_completion_knows_the_commands_and_their_options(tmp_path, capsys):
    scripts = {shell: call(capsys, "completion", shell) for shell in ("bash", "zsh")}
    for shell, (code, said, lines) in scripts.items():
        assert code == DONE and lines == [] and "save-faces" in said and "doctor" in said, shell
    assert "#compdef gfpgan-edu" in scripts["zsh"][1]
    (tmp_path / "script").write_text(scripts["bash"][1])
    ask = ('source ./script; complete -p gfpgan-edu; '
           'function ask { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
           '_tyro_gfpgan_edu; echo "${COMPREPLY[@]}"; }; '
           'ask gfpgan-edu do; ask gfpgan-edu restore --fid; ask gfpgan-edu degrade --ranges se')
    r = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert r.stderr == "", r
    found = [line.strip() for line in r.stdout.splitlines()[1:]]
    assert found == ["doctor", "--fidelity", "severe"], r


class Gone(io.StringIO):
    "A stdout whose reader has gone away after `n` lines."

    def __init__(self, n):
        super().__init__()
        self.n, self.at = n, os.dup(2)

    def write(self, text):
        self.n -= text.count("\n")
        if self.n < 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)

    def fileno(self):
        return self.at


def test_json_that_nobody_reads_any_more_ends_the_run(tmp_path, quick, monkeypatch):
    for i in range(9):
        write_image(tmp_path / f"in/{i}.png", grey(40))
    monkeypatch.setattr(sys, "stdout", Gone(2))
    with pytest.raises(SystemExit) as e:
        cli.main(["restore", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"])
    assert e.value.code == UNHEARD and len(quick.options) == 3
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("words", ["--help", "restore --help", "completion bash", "weights list"])
def test_a_reader_that_goes_away_is_no_traceback(words):
    command = [sys.executable, "-c", "from gfpgan_edu.cli import main; main()", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        assert p.wait(120) == UNHEARD and p.stderr.read() == b""


# ---------------------------------------------------------------- what is said, and where

@pytest.mark.parametrize("message, line", [
    ("a\nb\r\n\n c", "a b  c"), ("two  blanks", "two  blanks"),
    ("\x1b[31m\t\x07", "\\x1b[31m\\t\\x07"), ("é ☺", "é ☺"), ("caf\udce9", "caf\\udce9"), ("", "")])
def test_one_line(message, line):
    assert one_line(message) == line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_and_the_complaints_do_not_garble_each_other(folder, tmp_path, quick, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(SystemExit):
        cli.main(["restore", str(folder), "--out", str(tmp_path / "out")])
    lines = [line.replace("\x1b[A", "").split("\r")[-1].strip()
             for line in screen.getvalue().split("\n")]
    assert sum(line.startswith("gfpgan-edu: ") for line in lines) == 4
    assert sum("6/6" in line and "gfpgan-edu" not in line for line in lines) == 1


def test_help_of_every_command_has_examples_and_all_are_good_usage(capsys):
    for name in cli.COMMANDS:
        code, out, err = call(capsys, name, "--help")
        examples = re.findall(r"Example: (?:eval \"\$\()?gfpgan-edu (.*?)(?=\n\n|\n╭|$)", out, re.S)
        assert code == DONE and err == [] and examples, name
        for example in examples:
            words = re.sub(r"\s+", " ", example).split(" > ")[0].replace(')"', "").split()
            assert parse(words) is not None and words[0] == name
    code, out, err = call(capsys, "--help")
    assert code == DONE and all(name in out for name in cli.COMMANDS)
    assert "Exit codes: 0 all done" in out


def test_help_needs_no_torch():
    code = """
import sys
from gfpgan_edu.cli import COMMANDS, main
for args in (["--help"], *([c, "--help"] for c in COMMANDS), ["completion", "bash"],
             ["export", "v1", "a.txt"], ["restore"], ["restore", "gone.jpg", "--out", "nowhere"]):
    try:
        main(args)
    except SystemExit as e:
        print("CODE", e.code)
heavy = {"torch", "torchvision", "facenet_pytorch", "matplotlib", "numpy", "cv2", "PIL",
         "gradio"} & set(sys.modules)
print("HEAVY", *sorted(heavy))
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    codes = [line.split()[1] for line in r.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["0"] * (len(cli.COMMANDS) + 2) + ["2"] * 3
    assert r.stdout.splitlines()[-1].strip() == "HEAVY"
    assert "gfpgan-edu: gone.jpg: no such file or directory" in r.stderr


# ---------------------------------------------------------------- for real

def test_end_to_end_with_the_real_detector_and_the_bundled_model(tmp_path, capsys):
    photo, faces = astronaut()[:330, 40:420], tmp_path / "faces"
    write_image(tmp_path / "in" / "a.png", photo)
    (tmp_path / "in" / "b.jpg").write_text("no photo")
    words = ["--out", tmp_path / "out", "--save-faces", faces, "--json"]
    code, said, lines = call(capsys, "restore", tmp_path / "in", *words)
    record, _ = map(json.loads, said.splitlines()[::2])
    assert code == SOME_FAILED and record["faces"] == 1
    assert sum("b.jpg" in line for line in lines) == 1
    x0, y0, x1, y1 = record["boxes"][0]
    assert 120 < (x0 + x1) / 2 < 240 and 60 < (y0 + y1) / 2 < 180
    got = read_image(tmp_path / "out" / "a.png")
    changed = (got != photo).any(2)
    assert got.shape == photo.shape and changed[60:170, 140:230].mean() > 0.5
    assert not changed[250:].any() and not changed[:, :50].any()
    before, after = (read_image(faces / f"a.png-1-{which}.png") for which in ("before", "after"))
    assert before.shape == after.shape == (64, 64, 3) and (before != after).any()
    words = ["--out", tmp_path / "twice", "--upscale", 2, "--only-center", "--fidelity", 1]
    assert call(capsys, "restore", tmp_path / "in/a.png", *words)[0] == DONE
    assert read_image(tmp_path / "twice/a.png").shape == (660, 760, 3)
    words = ["--out", tmp_path / "face", "--aligned"]
    assert call(capsys, "restore", faces / "a.png-1-before.png", *words)[0] == DONE


def test_a_real_ctrl_c_ends_without_a_traceback(tmp_path):
    code = f"""
import signal, sys, time
from types import SimpleNamespace
from gfpgan_edu import cli, inference, photos, weights
# a test run in the background ignores it, and hands that down
signal.signal(signal.SIGINT, signal.default_int_handler)
net = SimpleNamespace(to=lambda device: None)
weights.load_weights, inference.fuse = lambda name, progress: net, lambda net, **options: net
def slow(image, net, **options):
    print("READY", flush=True)
    time.sleep(60)
photos.restore = slow
cli.main(["restore", {str(tmp_path)!r}, "--out", {str(tmp_path / "out")!r}])
"""
    write_image(tmp_path / "a.png", np.zeros((5, 5, 3), np.uint8))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == "READY\n"
        time.sleep(0.2)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    assert p.returncode == INTERRUPTED and out.startswith("0 of 1 restored")
    assert err.splitlines() == ["gfpgan-edu: interrupted; what was finished so far is kept"]
    assert not list((tmp_path / "out").iterdir())

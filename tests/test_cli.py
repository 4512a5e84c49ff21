"""The command line: exit codes, one line for each failure, nothing partial, nothing lost, nothing overwritten."""
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
from gfpgan_edu.cli import DONE, INTERRUPTED, NOTHING_DONE, SOME_FAILED, UNHEARD, one_line, parse, plan
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut
from gfpgan_edu.pictures import read_image, write_image


def call(capsys, *args):
    "(exit code, stdout, lines of stderr) of the command."
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return e.value.code, out, err.splitlines()


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def grey(value, height=20, width=30):
    return np.full((height, width, 3), value, np.uint8)


class Quick:
    "In the place of network and detector: what is black has no face, grey 66 is a Ctrl-C, 77 a surprise, 88 has notes; all others come back inverted. Keeps what was asked."

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
        return SimpleNamespace(image=255 - image, faces=[face, face], boxes=[(1, 2, 3.26, 4), (0, 0, 9, 9)], landmarks=[], notes=notes)


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
    assert code == SOME_FAILED and first == f"2 of 6 restored into {out}: 1 without a face, 3 failed"
    assert len(reasons) == 4 and "  1 × no face found" in reasons and "  1 × is empty" in reasons
    expected = {"faceless.png": "no face found", "half.png": "cannot be read", "text.jpg": "not a picture", "two lines.png": "is empty"}
    assert len(lines) == 4 and all(line.startswith(f"gfpgan-edu: {folder}") for line in lines)
    for name, reason in expected.items():
        assert sum(name in line and reason in line for line in lines) == 1
    assert sorted(p.name for p in out.iterdir()) == ["Good too.JPG", "good.png"]
    assert (read_image(out / "good.png") == 215).all()
    assert snapshot(folder) == before
    assert quick.loaded == ["bundled"]                           # the network is loaded once


def test_a_second_run_does_what_is_left_and_force_does_all(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    for name in ("faceless.png", "half.png", "text.jpg", "two\nlines.png"):
        (folder / name).unlink()
    assert call(capsys, "restore", folder, "--out", out) == (DONE, f"2 of 2 restored into {out}\n", [])
    (out / "good.png").write_text("mine")
    assert call(capsys, "restore", folder, "--out", out) == (DONE, f"0 of 2 restored into {out}: 2 done before\n", [])
    assert (out / "good.png").read_text() == "mine" and len(quick.loaded) == 1         # nothing to do, nothing loaded
    (out / "Good too.JPG").unlink()
    assert call(capsys, "restore", folder, "--out", out) == (DONE, f"1 of 2 restored into {out}: 1 done before\n", [])
    assert call(capsys, "restore", folder / "good.png", "--out", out, "--force") == (DONE, f"1 of 1 restored into {out}\n", [])
    assert (read_image(out / "good.png") == 215).all()


def test_all_bad_is_2_and_one_bad_beside_one_done_before_is_1(folder, tmp_path, capsys, quick):
    good = (folder / "good.png").read_bytes()
    (folder / "good.png").unlink()
    (folder / "Good too.JPG").unlink()
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == NOTHING_DONE and said.startswith("0 of 4") and len(lines) == 4 and not snapshot(tmp_path / "out")
    (tmp_path / "out" / "good.png").write_bytes(good)
    (folder / "good.png").write_bytes(good)
    assert call(capsys, "restore", folder, "--out", tmp_path / "out")[0] == SOME_FAILED


def test_the_unforeseen_is_one_line_and_the_others_are_done(folder, tmp_path, capsys, quick):
    write_image(folder / "good.png", grey(77))
    code, _, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED and [p.name for p in (tmp_path / "out").iterdir()] == ["Good too.JPG"]
    assert f"gfpgan-edu: {folder / 'good.png'}: RuntimeError: out of memory stack of things" in lines


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(folder, tmp_path, capsys, quick):
    write_image(folder / "good.png", grey(66))
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == INTERRUPTED and said.startswith("1 of 6 restored") and "4 left" in said and lines[-1].startswith("gfpgan-edu: interrupted")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["Good too.JPG"]
    write_image(folder / "good.png", grey(40))
    assert call(capsys, "restore", folder, "--out", tmp_path / "out")[1].startswith(f"1 of 6 restored into {tmp_path / 'out'}: 1 done before")


def test_json_lines_say_all_and_nothing_else_is_on_stdout(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    write_image(out / "Good too.JPG", grey(1))
    write_image(folder / "large.png", grey(88))
    code, said, lines = call(capsys, "restore", folder, "--out", out, "--json")
    *records, summary = [json.loads(line) for line in said.splitlines()]
    by_name = {os.path.basename(r["photo"]): r for r in records}
    assert len(by_name) == len(records) == 7 and {r["status"] for r in records} == {"done", "done_before", "no_face", "failed"}
    assert by_name["good.png"] == dict(photo=str(folder / "good.png"), status="done", reason=None, notes=[], result=str(out / "good.png"), faces=2, boxes=[[1.0, 2.0, 3.3, 4.0], [0.0, 0.0, 9.0, 9.0]])
    assert by_name["two\nlines.png"]["reason"] == "is empty" and by_name["faceless.png"]["status"] == "no_face"
    assert by_name["large.png"]["notes"] == ["face of 300 px is larger than the model's 64 px"]
    reasons = summary.pop("reasons")
    assert summary == dict(status="summary", photos=7, done=2, done_before=1, no_face=1, failed=3, left=0, out=str(out), exit_code=SOME_FAILED) and code == SOME_FAILED
    assert sum(reasons.values()) == 4 and reasons["no face found"] == 1
    assert len(lines) == 5 and sum("larger than the model" in line and "large.png" in line for line in lines) == 1        # a note is said once


def test_a_tree_keeps_its_shape(folder, tmp_path, capsys, quick, monkeypatch):
    for name in ("a/b/deep.png", "a/good.png", "closed/x.png", "out/results.png"):
        write_image(folder / name, grey(50))
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    real = os.scandir

    def scandir(path):                                           # root may look into any folder, so the refusal is made here
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, said, lines = call(capsys, "restore", folder, "--out", folder / "out", "--recursive")
    assert code == SOME_FAILED and said.startswith("4 of 9") and f"gfpgan-edu: {folder / 'closed'}: permission denied" in lines
    assert {p.as_posix() for p in snapshot(folder / "out")} == {"Good too.JPG", "good.png", "a/good.png", "a/b/deep.png", "results.png"}
    assert (read_image(folder / "out/a/good.png") == 205).all() and (read_image(folder / "out/results.png") == 50).all()    # no result is restored again
    assert len(call(capsys, "restore", folder, "--out", tmp_path / "flat")[2]) == 4
    assert not (tmp_path / "flat" / "a").exists()                # without --recursive subfolders are left alone


def test_names_that_meet_and_names_that_do_not(folder, tmp_path, capsys, quick):
    for name, value in (("a.jpg", 10), ("a.png", 20), ("other/a.png", 30)):
        write_image(tmp_path / "x" / name, grey(value))
    assert call(capsys, "restore", tmp_path / "x", "--out", tmp_path / "out")[0] == DONE
    assert [int(read_image(tmp_path / "out" / n)[0, 0, 0]) for n in ("a.jpg", "a.png")] == [245, 235]
    code, said, lines = call(capsys, "restore", tmp_path / "x", tmp_path / "x/other", "--out", tmp_path / "both")
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and "x/other/a.png" in lines[0] and "x/a.png" in lines[0] and not (tmp_path / "both").exists()
    pairs, _ = plan([tmp_path / "x", tmp_path / "x/a.png", tmp_path / "x/a.png"], tmp_path / "out")
    assert [p.name for p, _ in pairs] == ["a.jpg", "a.png"]      # named thrice, done once


def test_pairs_of_faces_are_saved_beside(folder, tmp_path, capsys, quick):
    write_image(folder / "sub/good.png", grey(50))
    write_image(tmp_path / "faces/good.png-1-after.png", grey(3))
    words = ["restore", folder, "--out", tmp_path / "out", "--recursive", "--save-faces", tmp_path / "faces"]
    assert call(capsys, *words)[0] == SOME_FAILED
    names = {f"{p}-{i}-{which}.png" for p in ("good.png", "Good too.JPG", "sub/good.png") for i in (1, 2) for which in ("before", "after")}
    assert {p.as_posix() for p in snapshot(tmp_path / "faces")} == names
    assert read_image(tmp_path / "faces/sub/good.png-2-before.png")[0, 0, 0] == 50 and read_image(tmp_path / "faces/sub/good.png-2-after.png")[0, 0, 0] == 205
    assert read_image(tmp_path / "faces/good.png-1-after.png")[0, 0, 0] == 3           # what is there stays
    call(capsys, *words, "--force")
    assert read_image(tmp_path / "faces/good.png-1-after.png")[0, 0, 0] == 215
    (tmp_path / "file").touch()
    for faces, reason in ((tmp_path / "file", "is a file"), (folder, "originals")):
        code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "new", "--save-faces", faces)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and str(faces) in lines[0] and reason in lines[0] and not snapshot(tmp_path / "new")
    inside = ["restore", folder, "--out", folder / "out", "--recursive", "--save-faces", folder / "faces"]
    first, second = (json.loads(call(capsys, *inside, "--json")[1].splitlines()[-1]) for _ in range(2))
    assert first["photos"] == second["photos"] == 7              # faces are not taken for photos


def test_options_reach_the_restorer(folder, tmp_path, capsys, quick):
    call(capsys, "restore", folder / "good.png", "--out", tmp_path / "a")
    call(capsys, "restore", folder / "good.png", "--out", tmp_path / "b", "--fidelity", 0.25, "--only-center", "--aligned", "--upscale", 2, "--device", "cpu", "--weights", "v1.3")
    plain, other = quick.options
    assert (plain["fidelity"], plain["only_center"], plain["aligned"], plain["upscale"]) == (None, False, False, 1)
    assert (other["fidelity"], other["only_center"], other["aligned"], other["upscale"]) == (0.25, True, True, 2) and quick.loaded == ["bundled", "v1.3"]


@pytest.mark.parametrize("args, words", [(["--fidelity", 1.5], "fidelity"), (["--upscale", 0], "upscale"), (["--device", "tpu"], "tpu"), (["--device", "cuda:99"], "cuda")])
def test_impossible_options_are_refused_at_once(args, words, folder, tmp_path, capsys):
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out", *args)
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and words in lines[0].lower(), lines


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
        assert got.mode == "RGBA" and got.size == (20, 30) and got.getpixel((0, 0))[:3] == (215,) * 3 and got.info["icc_profile"] == profile
        assert got.getexif().get(0x010F) == "Brownie" and got.getexif().get(0x0112) in (None, 1)
        np.testing.assert_array_equal(np.asarray(got)[..., 3], np.asarray(im.transpose(Image.Transpose.ROTATE_270))[..., 3])


# ---------------------------------------------------------------- a clip

def test_a_clip_is_restored_frame_by_frame(tmp_path, capsys):
    for i, left in enumerate((100, 102, 104)):
        write_image(tmp_path / f"in/{i}.png", astronaut()[:300, left:left + 250])
    write_image(tmp_path / "in/3.png", grey(90, 300, 250))
    (tmp_path / "in/4.png").touch()
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out", "--video", "--json")
    *records, summary = map(json.loads, said.splitlines())
    assert code == SOME_FAILED and [(os.path.basename(r["photo"]), r["status"], r.get("copied")) for r in records] == [
        ("0.png", "done", False), ("1.png", "done", False), ("2.png", "done", False), ("3.png", "done", True), ("4.png", "failed", None)]
    assert summary["done"] == 4 and summary["failed"] == 1 and any("without a face" in line for line in lines) and sum("4.png: is empty" in line for line in lines) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png", "3.png"] and (read_image(tmp_path / "out/0.png") != read_image(tmp_path / "in/0.png")).any()
    (tmp_path / "out/1.png").write_text("mine")
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out", "--video")
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and "4 of the 5" in lines[0] and "--force" in lines[0] and (tmp_path / "out/1.png").read_text() == "mine"


def test_a_clip_that_cannot_be_is_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "restore_video", lambda *a, **k: pytest.fail("restored"))
    (tmp_path / "bare").mkdir()
    for words, reason in [((folder / "good.png",), "one folder"), ((folder, folder), "one folder"), ((tmp_path / "gone",), "one folder"), ((tmp_path / "bare",), "no pictures"),
                          ((folder, "--aligned"), "--aligned"), ((folder, "--save-faces", tmp_path / "f"), "--save-faces"), ((folder, "--fidelity", 7), "fidelity")]:
        code, said, lines = call(capsys, "restore", "--video", "--out", tmp_path / "out", *words)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and reason in lines[0], lines


# ---------------------------------------------------------------- what cannot work

def test_bad_places_are_refused_before_anything_is_loaded(folder, tmp_path, capsys, quick):
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "circle").symlink_to("circle")
    before = snapshot(folder)
    for photo, out, names, reason in [
        (tmp_path / "gone.jpg", "out", "gone.jpg", "no such file"), (tmp_path / "bare", "out", "bare", "no pictures"), (folder, "file", "file", "is a file"),
        (folder, "file/out", "file/out", "not a directory"), (folder, "in", "in", "originals"), (folder, "link", "link", "originals"), (folder / "good.png", "in", "in", "originals"),
        (folder / "good.png" / "x.png", "out", "x.png", "not a directory"), (tmp_path / ("n" * 300), "out", "nnn", "name too long"), (tmp_path / "circle", "out", "circle", "symbolic links"),
    ]:
        code, said, lines = call(capsys, "restore", photo, "--out", tmp_path / out)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and names in lines[0] and reason in lines[0], lines
    assert quick.loaded == [] and snapshot(folder) == before and not (tmp_path / "out").exists()


def test_a_folder_without_leave_to_write_is_refused(folder, tmp_path, capsys, quick, monkeypatch):
    def refuse(dir):                                             # root may write anywhere, so the refusal is made here
        raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmp1234"))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert (code, said, quick.loaded) == (NOTHING_DONE, "", []) and lines == [f"gfpgan-edu: {tmp_path / 'out'}: cannot be used for the results (permission denied)"]


def test_a_result_never_replaces_its_original(folder, tmp_path, capsys, quick):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "good.png").symlink_to(folder / "good.png")
    before = snapshot(folder)
    for force in ([], ["--force"]):
        code, _, lines = call(capsys, "restore", tmp_path / "links", "--out", folder, *force)
        assert code == NOTHING_DONE and len(lines) == 1 and "overwrite" in lines[0] and snapshot(folder) == before


def test_things_that_are_not_files_do_not_hold_up_the_others(folder, tmp_path, capsys, quick):
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")                               # opened, it would wait for a writer without end
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED and said.startswith("2 of 9 restored") and len(lines) == 7
    for name, reason in {"self.jpg": "symbolic links", "dangling.jpg": "no such file", "pipe.jpg": "is a pipe"}.items():
        assert sum(name in line and reason in line for line in lines) == 1, lines
    assert call(capsys, "restore", folder / "pipe.jpg", "--out", tmp_path / "out")[0] == NOTHING_DONE


def test_libraries_are_not_heard(tmp_path, capfd, quick):
    "libtiff prints on the stderr of the process, past Python; each photo gets one line all the same, and ours come through."
    write_image(tmp_path / "in/good.png", grey(40))
    Image.fromarray(grey(40)).save(tmp_path / "in/bad.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "in/bad.tif").read_bytes())
    data[12:16] = b"\xff" * 4                                    # in the compressed pixels
    (tmp_path / "in/bad.tif").write_bytes(data)
    with pytest.raises(ValueError, match="bad.tif: cannot be read"):
        read_image(tmp_path / "in/bad.tif")
    assert capfd.readouterr().err                                # the complaint there would be
    code, said, lines = call(capfd, "restore", tmp_path / "in", "--out", tmp_path / "out")
    assert code == SOME_FAILED and len(lines) == 1 and lines[0].startswith(f"gfpgan-edu: {tmp_path / 'in/bad.tif'}: cannot be read"), lines


def test_too_little_memory_is_one_line(folder, tmp_path, capsys, quick, monkeypatch):
    def load(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(weights, "load_weights", load)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert (code, said, lines) == (NOTHING_DONE, "", ["gfpgan-edu: not enough memory"])


def test_a_file_that_may_not_be_read_is_named(folder, tmp_path, capsys, quick, monkeypatch):
    real = Image.open

    def refuse(path, *args, **kwargs):                           # root may read anything, so the refusal is made here
        if str(getattr(path, "name", path)).endswith("good.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refuse)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED and said.startswith("1 of 6") and f"gfpgan-edu: {folder / 'good.png'}: cannot be read (permission denied)" in lines


@pytest.mark.parametrize("name", ["with space.png", "ünïcode 顔 ☺.png", "two\nlines\x1b[31m.png", "-rf.png", "$(touch gone).png", os.fsdecode(b"caf\xe9.png"), "." + "n" * 200 + ".png", "%s{0}.png"])
def test_any_name_is_restored_and_printed_on_one_line(name, tmp_path, capsys, quick, monkeypatch):
    write_image(tmp_path / "in" / name, grey(88))
    monkeypatch.chdir(tmp_path)
    code, said, lines = call(capsys, "restore", "in", "--out", tmp_path / ("out" + name), "--json")
    record, summary = map(json.loads, said.splitlines())
    assert code == DONE and record["result"] == str(tmp_path / ("out" + name) / name) and os.path.exists(record["result"]) and len(lines) == 1
    assert call(capsys, "restore", "in", "--out", tmp_path / ("out" + name), "--force")[1].count("\n") == 1


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
    make_room = full(monkeypatch, after=2)
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out")
    assert code == SOME_FAILED and said.startswith(f"2 of 6 restored into {tmp_path / 'out'}: 1 failed, 3 left") and len(lines) == 2
    assert "2.png" in lines[0] and "no space left" in lines[0].lower() and "goes on" in lines[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png"] and len(quick.options) == 3
    make_room()
    assert call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out")[:2] == (DONE, f"4 of 6 restored into {tmp_path / 'out'}: 2 done before\n")


def test_ten_thousand_files_one_in_a_hundred_broken(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda f: None)             # a disk's time is not ours
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "good.bmp", grey(40, 2, 2))
    (tmp_path / "bad.bmp").write_bytes(b"BM")
    for i in range(10_000):
        os.link(tmp_path / ("bad.bmp" if i % 100 == 7 else "good.bmp"), tmp_path / f"in/{i:05}.bmp")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out", "--json")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    summary = json.loads(said.splitlines()[-1])
    assert code == SOME_FAILED and (summary["photos"], summary["done"], summary["failed"]) == (10_000, 9_900, 100) and len(said.splitlines()) == 10_001
    assert len(lines) == 100 and sum(summary["reasons"].values()) == 100 and len(os.listdir(tmp_path / "out")) == 9_900
    assert grown < 100, f"{grown} MB more"
    again = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out")
    assert again[0] == SOME_FAILED and again[1].startswith(f"0 of 10000 restored into {tmp_path / 'out'}: 9900 done before, 100 failed") and len(again[1].splitlines()) == 2


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
        code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out", "--weights", w)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and str(w) in lines[0], (name, lines)
    assert not snapshot(tmp_path / "out")


@pytest.mark.parametrize("args, words", [
    ("", "Expected one of {restore,"), ("restore", "--out DIR"), ("restore a.jpg", "--out DIR"), ("restore --out b", "no photo is named"), ("fly", "fly"), ("weights", "{list,fetch,info,convert}"),
    ("restore a.jpg --out b --wieghts v1", "--weights NAME_OR_FILE"), ("weights eat", "eat"), ("prepare a --out b --size big", "--size"), ("restore a.jpg --out", "--out"), ("degrade a --out b --seed -1", "--seed -1"),
    ("prepare a --out b --compression 10", "10"), ("completion fish", "fish"), ("train eat --data x --out y", "eat"), ("train-prior restorer --data x --out y", "restorer"), ("--no-such-option", "--no-such-option")])
@pytest.mark.parametrize("width, boxes", [("50", "utf-8"), ("200", "ascii")])
def test_bad_usage_is_one_line_and_2(capsys, args, words, width, boxes, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=boxes, flush=lambda: None, write=sys.stdout.write, isatty=lambda: False))       # tyro draws by it
    code, said, lines = call(capsys, *args.split())
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and lines[0].startswith("gfpgan-edu: ") and words in lines[0] and not re.search("│|─|---|  ", lines[0]), lines


# ---------------------------------------------------------------- weights

def test_weights_list_and_info(tmp_path, capsys):
    code, said, lines = call(capsys, "weights", "list")
    assert code == DONE and not lines and all(r.name in said and r.url in said for r in weights.RELEASES.values()) and "non-commercial" in said
    code, said, lines = call(capsys, "weights", "info")
    assert code == DONE and not lines and "config: GFPGANConfig(size=64" in said
    code, said, lines = call(capsys, "weights", "info", tmp_path / "gone.safetensors")
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and "gone.safetensors" in lines[0]


def test_weights_fetch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(weights, "download", lambda name, progress: tmp_path / f"{name}, progress {progress}")
    assert call(capsys, "weights", "fetch", "v1.4") == (DONE, f"{tmp_path / 'v1.4, progress False'}\n", [])
    for name in ("v9", ""):
        code, said, lines = call(capsys, "weights", "fetch", *name.split())
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and "v1.3" in lines[0]

    def no_network(name, progress):
        raise weights.WeightsError("v1: download failed\n(no network)")

    monkeypatch.setattr(weights, "download", no_network)
    assert call(capsys, "weights", "fetch", "v1") == (NOTHING_DONE, "", ["gfpgan-edu: v1: download failed (no network)"])


# ---------------------------------------------------------------- export

def test_export_writes_a_file_that_runs_and_does_not_replace_it_unasked(tmp_path, capsys, monkeypatch):
    import onnxruntime

    from gfpgan_edu import inference

    net = weights.load_weights()
    target, size = tmp_path / "new" / "a.onnx", net.config.size
    code, said, lines = call(capsys, "export", "bundled", target)
    assert code == DONE and said.startswith(f"{target}: ") and said.endswith(f" MB, faces of {size} px\n") and said.count("\n") == 1 and lines == []
    session, x = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"]), torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        want = net(x)[0]
    assert (torch.from_numpy(session.run(None, {"face": x.numpy()})[0]) - want).abs().max() < 1e-4 * (want.max() - want.min())
    assert session.get_modelmeta().custom_metadata_map["weights"] == "bundled" and [p.name for p in target.parent.iterdir()] == ["a.onnx"]
    target.write_text("mine")
    assert call(capsys, "export", "bundled", target) == (NOTHING_DONE, "", [f"gfpgan-edu: {target}: exists; --force replaces it"]) and target.read_text() == "mine"
    monkeypatch.setattr(inference, "export_onnx", lambda net, path, **about: path.write_text("new"))
    assert call(capsys, "export", "bundled", target, "--force")[0] == DONE and target.read_text() == "new"


def test_export_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    from gfpgan_edu import inference

    def missing(*_, **__):
        raise weights.WeightsError("a.onnx: ONNX needs more packages: pip install gfpgan_edu[onnx]")
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(inference, "export_onnx", missing)
    for name, target, reason in [("bundled", "a.txt", "must end in .onnx"), ("bundled", "folder.onnx", "is a folder"), ("bundled", "file/a.onnx", "is a file"),
                                 ("v9", "a.onnx", "no such file"), ("bundled", "a.onnx", "pip install gfpgan_edu[onnx]")]:
        code, said, lines = call(capsys, "export", name, tmp_path / target)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and reason in lines[0], lines
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx"]


def test_export_tells_the_terms_of_released_weights(tmp_path, capsys, monkeypatch):
    from gfpgan_edu import inference

    told, net = {}, SimpleNamespace(config=SimpleNamespace(size=512))
    monkeypatch.setattr(weights, "load_weights", lambda name, progress: net)
    monkeypatch.setattr(inference, "export_onnx", lambda net, path, **about: told.update(about) or path.touch())
    assert call(capsys, "export", "v1.4", tmp_path / "a.onnx")[0] == DONE and told == dict(weights="v1.4", licence=weights.LICENCE)


# ---------------------------------------------------------------- degrade

def test_degrade_is_a_pure_function_of_seed_and_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/a.png", "b.jpg"):
        write_image(tmp_path / "in" / name, rng.integers(0, 255, (40, 60, 3), np.uint8))
    (tmp_path / "in" / "bad.png").write_text("no picture")
    words = ["--recursive", "--ranges", "severe", "--json", "--seed"]
    code, said, lines = call(capsys, "degrade", tmp_path / "in", "--out", tmp_path / "one", *words, 3)
    records = {os.path.relpath(r["photo"], tmp_path / "in"): r for r in map(json.loads, said.splitlines()[:-1])}
    assert code == SOME_FAILED and len(lines) == 1 and "bad.png" in lines[0]
    for name in ("a.png", "sub/a.png"):                          # the draw that is told gives the same pixels, by the function of chapter 2
        want = degrade(read_image(tmp_path / "in" / name), DegradationParams.from_json(json.dumps(records[name]["params"])))
        np.testing.assert_array_equal(read_image(tmp_path / "one" / name), want)
    assert records["a.png"]["params"] != records["sub/a.png"]["params"]
    call(capsys, "degrade", tmp_path / "in/a.png", "--out", tmp_path / "alone", *words, 3)
    assert (tmp_path / "alone/a.png").read_bytes() == (tmp_path / "one/a.png").read_bytes()       # the others make no difference
    call(capsys, "degrade", tmp_path / "in/a.png", "--out", tmp_path / "other", *words, 4)
    assert (tmp_path / "other/a.png").read_bytes() != (tmp_path / "one/a.png").read_bytes()
    code, said, _ = call(capsys, "degrade", tmp_path / "in", "--out", tmp_path / "one", "--recursive")
    assert said.startswith(f"0 of 4 degraded into {tmp_path / 'one'}: 3 done before, 1 failed")


def test_degrade_takes_any_size(tmp_path, capsys):
    for h, w in ((1, 1), (1, 300), (3, 2), (17, 64)):
        write_image(tmp_path / f"in/{h}x{w}.png", np.random.default_rng(0).integers(0, 255, (h, w, 3), np.uint8))
    for ranges in ("paper", "official", "severe", "extreme"):
        assert call(capsys, "degrade", tmp_path / "in", "--out", tmp_path / ranges, "--ranges", ranges)[0] == DONE
        assert all(read_image(p).shape == read_image(tmp_path / "in" / p.name).shape for p in (tmp_path / ranges).iterdir())


def test_the_damage_scales_with_the_named_size(tmp_path, capsys):
    write_image(tmp_path / "a.png", astronaut()[:256, 100:356])
    draws = [json.loads(call(capsys, "degrade", tmp_path / "a.png", "--out", tmp_path / f"o{s}", "--json", *s)[1].splitlines()[0])["params"] for s in ((), ("--size", 256), ("--size", 64))]
    assert draws[0] == draws[1] and draws[2]["sigma_x"] == pytest.approx(draws[0]["sigma_x"] / 4)


# ---------------------------------------------------------------- convert

def test_weights_are_converted_there_and_back(tmp_path, capsys):
    net, pth, ours = weights.load_weights(), tmp_path / "new/a.pth", tmp_path / "b.safetensors"
    code, said, lines = call(capsys, "weights", "convert", "bundled", pth)
    assert code == DONE and lines == [] and ("prior's picture alone" in said) == (net.config.prior_share < 1)
    state = torch.load(pth, weights_only=True)
    assert list(state) == ["params_ema"] and "stylegan_decoder.constant_input.weight" in state["params_ema"]
    code, said, lines = call(capsys, "weights", "convert", pth, ours, "--family", "bilinear" if net.config.resample == "bilinear" else "v1")
    assert code == DONE and lines == [] and said.startswith(f"{ours}: ") and f"size={net.config.size}" in said
    again = weights.load(ours)
    assert again.config == net.config.replace(prior_share=1.0)
    for (k, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=k)
    assert call(capsys, "weights", "convert", ours, tmp_path / "half.safetensors", "--half")[0] == DONE
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * ours.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.safetensors", "half.safetensors", "new"] and [p.name for p in pth.parent.iterdir()] == ["a.pth"]


def test_convert_to_clean_computes_the_same(tmp_path, capsys):
    from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig

    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig(size=16, style_dim=8, n_mlp=1, narrow=1 / 32, resample="bilinear")).eval()
    weights.save(net, tmp_path / "a.safetensors")
    assert call(capsys, "weights", "convert", tmp_path / "a.safetensors", tmp_path / "c.pth", "--clean")[0] == DONE
    clean, x = weights.load_weights(tmp_path / "c.pth"), torch.rand(1, 3, 16, 16) * 2 - 1
    assert not clean.config.equalized
    with torch.no_grad():
        torch.testing.assert_close(clean(x)[0], net(x)[0], rtol=1e-4, atol=1e-5)


def test_convert_refuses_in_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "there.pth").write_text("mine")
    (tmp_path / "text.pth").write_text("no weights")
    before = snapshot(tmp_path)
    for words, reason in [((), "needs two names"), (("bundled",), "needs two names"), (("bundled", "a.onnx"), "must end in .safetensors or .pth"), (("bundled", "there.pth"), "--force"),
                          (("bundled", "a.pth", "--half"), "32 bits"), (("bundled", "there.pth/a.pth"), "cannot be written"), (("v9", "a.pth"), "no such file"), (("text.pth", "a.safetensors"), "text.pth"),
                          (("bundled", "a.pth", "--clean"), "clean form" if weights.load_weights().config.resample == "fir" else "")]:
        words = [tmp_path / w if "." in w and not w.startswith("-") and w != "v9" else w for w in words]
        if not reason:
            continue
        code, said, lines = call(capsys, "weights", "convert", *words)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and reason in lines[0], (words, lines)
        assert snapshot(tmp_path) == before

    def no_room(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", no_room)
    for words in ((tmp_path / "a.pth",), (tmp_path / "there.pth", "--force")):
        code, _, lines = call(capsys, "weights", "convert", "bundled", *words)
        assert code == NOTHING_DONE and "no space left" in lines[0].lower() and snapshot(tmp_path) == before


# ---------------------------------------------------------------- doctor

def findings(capsys):
    code, said, lines = call(capsys, "doctor", "--json")
    assert lines == []
    return code, {f["check"]: f for f in map(json.loads, said.splitlines())}


def test_doctor_finds_nothing_missing_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "cache"))
    code, found = findings(capsys)
    assert code == DONE and not [f for f in found.values() if f["status"] == "missing"]
    assert {"python", "torch", "torchvision", "opencv-python", "extra onnx", "extra judges", "import cv2", "quarto", "cpu", "cuda", "faces64", "cache", "v1.4", "a photo"} <= found.keys()
    assert " ms for a face of 64 px" in found["cpu"]["found"] and found["cache"]["found"] == str(tmp_path / "cache") and found["torch"]["found"].startswith(torch.__version__.split("+")[0])
    assert all(set(f) == {"check", "status", "found", "todo"} and f["status"] in ("ok", "warn") and (f["status"] == "ok" or f["todo"]) for f in found.values())


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
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi" if name == "nvidia-smi" else None)
    code, found = findings(capsys)
    assert code == NOTHING_DONE
    expected = {"torch": ("missing", "1.0 (needs >=2.6)", "pip install"), "tensorboard": ("missing", "not installed", "tensorboard"), "extra onnx": ("warn", "onnx2torch", "gfpgan_edu[onnx]"),
                "import cv2": ("missing", "libGL", "libgl1"), "faces64": ("missing", "SHA-256 differs", "again"), "gone": ("missing", "no such file", "again"),
                "v1.4": ("warn", "SHA-256 differs", "fetch v1.4"), "v1.3": ("warn", "broken off", "fetch v1.3"), "a photo": ("missing", "ZeroDivisionError", ""), "quarto": ("warn", "not found", "quarto.org")}
    if not torch.cuda.is_available():
        expected["cuda"] = ("warn", "cannot use it", "pytorch.org")
    for check, (status, words, todo) in expected.items():
        f = found[check]
        assert f["status"] == status and words in f["found"] and todo in f["todo"], f
    monkeypatch.setattr(photos, "restore", lambda image: SimpleNamespace(faces=[]))
    code, said, _ = call(capsys, "doctor")
    assert "0 face restored" in said and code == NOTHING_DONE and re.search(r"^missing torch +1\.0 \(needs >=2\.6\); pip install \"torch>=2\.6\"$", said, re.M)


def test_doctor_of_a_cache_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cli, "look_at_devices", lambda: iter(()))
    monkeypatch.setattr(cli, "look_at_a_photo", lambda: iter(()))
    code, found = findings(capsys)
    assert code == DONE and found["cache"]["status"] == "warn" and "is a file" in found["cache"]["found"] and "GFPGAN_EDU_CACHE" in found["cache"]["todo"]


def test_the_sums_are_those_of_the_bundled_files():
    files = {p.name: weights.sha256_of(p) for p in weights.bundled_path().parent.glob("*.safetensors")}
    assert bundled.SHA256 == files, "new weights: write their sums into gfpgan_edu/bundled/__init__.py"


# ---------------------------------------------------------------- web, completion, pipes

def test_web_passes_its_options_on_and_says_what_is_missing(capsys, monkeypatch):
    asked = {}
    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", SimpleNamespace(launch=lambda **options: asked.update(options)))
    assert call(capsys, "web", "--port", 7001, "--weights", "v1.4", "--max-mb", 5, "--no-open-browser")[0] == DONE
    assert asked == dict(port=7001, weights="v1.4", max_mb=5, open_browser=False)

    def launch(**options):
        raise RuntimeError('the web page needs gradio: pip install "gfpgan_edu[web]"')

    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", SimpleNamespace(launch=launch))
    code, said, lines = call(capsys, "web")
    assert code == NOTHING_DONE and said == "" and len(lines) == 1 and "gfpgan_edu[web]" in lines[0]
    monkeypatch.setitem(sys.modules, "gfpgan_edu.web", None)
    assert call(capsys, "web")[0] == NOTHING_DONE


def test_completion_knows_the_commands_and_their_options(tmp_path, capsys):
    scripts = {shell: call(capsys, "completion", shell) for shell in ("bash", "zsh")}
    for shell, (code, said, lines) in scripts.items():
        assert code == DONE and lines == [] and "save-faces" in said and "doctor" in said, shell
    assert "#compdef gfpgan-edu" in scripts["zsh"][1]
    (tmp_path / "script").write_text(scripts["bash"][1])
    ask = 'source ./script; complete -p gfpgan-edu; function ask { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tyro_gfpgan_edu; echo "${COMPREPLY[@]}"; }; ask gfpgan-edu do; ask gfpgan-edu restore --fid; ask gfpgan-edu degrade --ranges se'
    r = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert r.stderr == "" and [line.strip() for line in r.stdout.splitlines()[1:]] == ["doctor", "--fidelity", "severe"], r


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
    assert e.value.code == UNHEARD and len(quick.options) == 3 and len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("words", ["--help", "restore --help", "completion bash", "weights list"])
def test_a_reader_that_goes_away_is_no_traceback(words):
    command = [sys.executable, "-c", "from gfpgan_edu.cli import main; main()", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        assert p.wait(120) == UNHEARD and p.stderr.read() == b""


# ---------------------------------------------------------------- what is said, and where

@pytest.mark.parametrize("message, line", [("a\nb\r\n\n c", "a b  c"), ("two  blanks", "two  blanks"), ("\x1b[31m\t\x07", "\\x1b[31m\\t\\x07"), ("é ☺", "é ☺"), ("caf\udce9", "caf\\udce9"), ("", "")])
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
    lines = [line.replace("\x1b[A", "").split("\r")[-1].strip() for line in screen.getvalue().split("\n")]
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
    assert code == DONE and all(name in out for name in cli.COMMANDS) and "Exit codes: 0 all done" in out


def test_help_needs_no_torch():
    code = """
import sys
from gfpgan_edu.cli import COMMANDS, main
for args in (["--help"], *([c, "--help"] for c in COMMANDS), ["completion", "bash"], ["export", "v1", "a.txt"], ["restore"], ["restore", "gone.jpg", "--out", "nowhere"]):
    try:
        main(args)
    except SystemExit as e:
        print("CODE", e.code)
heavy = {"torch", "torchvision", "facenet_pytorch", "matplotlib", "numpy", "cv2", "PIL", "gradio"} & set(sys.modules)
print("HEAVY", *sorted(heavy))
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    codes = [line.split()[1] for line in r.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["0"] * (len(cli.COMMANDS) + 2) + ["2"] * 3
    assert r.stdout.splitlines()[-1].strip() == "HEAVY" and "gfpgan-edu: gone.jpg: no such file or directory" in r.stderr


# ---------------------------------------------------------------- for real

def test_end_to_end_with_the_real_detector_and_the_bundled_model(tmp_path, capsys):
    photo = astronaut()[:330, 40:420]
    write_image(tmp_path / "in" / "a.png", photo)
    (tmp_path / "in" / "b.jpg").write_text("no photo")
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out", "--save-faces", tmp_path / "faces", "--json")
    record, _ = map(json.loads, said.splitlines()[::2])
    assert code == SOME_FAILED and record["faces"] == 1 and sum("b.jpg" in line for line in lines) == 1
    x0, y0, x1, y1 = record["boxes"][0]
    assert 120 < (x0 + x1) / 2 < 240 and 60 < (y0 + y1) / 2 < 180
    got = read_image(tmp_path / "out" / "a.png")
    changed = (got != photo).any(2)
    assert got.shape == photo.shape and changed[60:170, 140:230].mean() > 0.5 and not changed[250:].any() and not changed[:, :50].any()
    before, after = (read_image(tmp_path / f"faces/a.png-1-{which}.png") for which in ("before", "after"))
    assert before.shape == after.shape == (64, 64, 3) and (before != after).any()
    assert call(capsys, "restore", tmp_path / "in/a.png", "--out", tmp_path / "twice", "--upscale", 2, "--only-center", "--fidelity", 1)[0] == DONE
    assert read_image(tmp_path / "twice/a.png").shape == (660, 760, 3)
    assert call(capsys, "restore", tmp_path / "faces/a.png-1-before.png", "--out", tmp_path / "face", "--aligned")[0] == DONE


def test_a_real_ctrl_c_ends_without_a_traceback(tmp_path):
    code = f"""
import signal, sys, time
from types import SimpleNamespace
from gfpgan_edu import cli, inference, photos, weights
signal.signal(signal.SIGINT, signal.default_int_handler)                # a test run in the background ignores it, and hands that down
weights.load_weights, inference.fuse = lambda name, progress: SimpleNamespace(to=lambda device: None), lambda net, **options: net
def slow(image, net, **options):
    print("READY", flush=True)
    time.sleep(60)
photos.restore = slow
cli.main(["restore", {str(tmp_path)!r}, "--out", {str(tmp_path / "out")!r}])
"""
    write_image(tmp_path / "a.png", np.zeros((5, 5, 3), np.uint8))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == "READY\n"
        time.sleep(0.2)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    assert p.returncode == INTERRUPTED and err.splitlines() == ["gfpgan-edu: interrupted; what was finished so far is kept"] and out.startswith("0 of 1 restored")
    assert not list((tmp_path / "out").iterdir())

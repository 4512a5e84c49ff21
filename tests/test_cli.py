"""The command line: exit codes, one line for each failure, nothing partial, nothing overwritten."""
import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gfpgan_edu import cli, photos, weights
from gfpgan_edu.cli import DONE, INTERRUPTED, NOTHING_DONE, SOME_FAILED, one_line
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


@pytest.fixture
def quick(monkeypatch):
    "No network and no detector: a photo whose first pixel is black has no face, all others come back inverted. Counts what is loaded."
    loaded = []

    def restore(path, net):
        image = read_image(path)
        if not image[0, 0].any():
            raise photos.NoFace(f"{path}: no face found")
        return SimpleNamespace(image=255 - image)

    monkeypatch.setattr(photos, "restore", restore)
    monkeypatch.setattr(weights, "load_weights", lambda name, progress: loaded.append(name) or "net")
    monkeypatch.setattr("gfpgan_edu.inference.fuse", lambda net: net)
    return loaded


@pytest.fixture
def folder(tmp_path):
    "Two good photos, four bad ones, and what is no photo by its name."
    f = tmp_path / "in"
    picture = np.full((20, 30, 3), 40, np.uint8)
    write_image(f / "good.png", picture)
    write_image(f / "Good too.JPG", picture)
    write_image(f / "faceless.png", 0 * picture)
    write_image(f / "half.png", picture)
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
    assert code == SOME_FAILED and said == f"2 of 6 restored into {out}\n"
    reasons = {"faceless.png": "no face found", "half.png": "cannot be read", "text.jpg": "not a picture", "two lines.png": "is empty"}
    assert len(lines) == 4 and all(line.startswith(f"gfpgan-edu: {folder}") for line in lines)
    for name, reason in reasons.items():
        assert sum(name in line and reason in line for line in lines) == 1
    assert sorted(p.name for p in out.iterdir()) == ["Good too.JPG", "good.png"]
    assert (read_image(out / "good.png") == 215).all()
    assert snapshot(folder) == before
    assert quick == ["bundled"]                                  # the network is loaded once


def test_all_good_is_0_and_a_second_run_replaces_the_results(folder, tmp_path, capsys, quick):
    for name in ("faceless.png", "half.png", "text.jpg", "two\nlines.png"):
        (folder / name).unlink()
    for _ in range(2):
        assert call(capsys, "restore", folder, "--out", tmp_path / "out") == (DONE, f"2 of 2 restored into {tmp_path / 'out'}\n", [])
    assert call(capsys, "restore", folder / "good.png", "--out", tmp_path / "out")[0] == DONE


def test_all_bad_is_2(folder, tmp_path, capsys, quick):
    (folder / "good.png").unlink()
    (folder / "Good too.JPG").unlink()
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == NOTHING_DONE and said.startswith("0 of 4") and len(lines) == 4 and not snapshot(tmp_path / "out")


def test_the_unforeseen_is_one_line_and_the_others_are_done(folder, tmp_path, capsys, quick, monkeypatch):
    real = photos.restore

    def bad_luck(path, net):
        if path.name == "good.png":
            raise RuntimeError("out of memory\nstack of\nthings")
        return real(path, net)

    monkeypatch.setattr(photos, "restore", bad_luck)
    code, _, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == SOME_FAILED and [p.name for p in (tmp_path / "out").iterdir()] == ["Good too.JPG"]
    assert f"gfpgan-edu: {folder / 'good.png'}: RuntimeError: out of memory stack of things" in lines


def test_ctrl_c_keeps_what_is_finished(folder, tmp_path, capsys, quick, monkeypatch):
    real = photos.restore

    def pressed(path, net):
        if path.name == "good.png":
            raise KeyboardInterrupt
        return real(path, net)

    monkeypatch.setattr(photos, "restore", pressed)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert code == INTERRUPTED and said == "" and lines[-1].startswith("gfpgan-edu: interrupted")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["Good too.JPG"]


# ---------------------------------------------------------------- what cannot work

def test_bad_places_are_refused_before_anything_is_loaded(folder, tmp_path, capsys, quick):
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "link").symlink_to(folder)
    before = snapshot(folder)
    for photo, out, names, reason in [
        (tmp_path / "gone.jpg", "out", "gone.jpg", "no such file"), (tmp_path / "bare", "out", "bare", "no pictures"), (folder, "file", "file", "is a file"),
        (folder, "file/out", "file/out", "not a directory"), (folder, "in", "in", "originals"), (folder, "link", "link", "originals"), (folder / "good.png", "in", "in", "originals"),
        (folder / "good.png" / "x.png", "out", "x.png", "not a directory"), (tmp_path / ("n" * 300), "out", "nnn", "name too long"),
    ]:
        code, said, lines = call(capsys, "restore", photo, "--out", tmp_path / out)
        assert code == NOTHING_DONE and said == "" and len(lines) == 1 and names in lines[0] and reason in lines[0], lines
    assert quick == [] and snapshot(folder) == before and not (tmp_path / "out").exists()


def test_a_folder_without_leave_to_write_is_refused(folder, tmp_path, capsys, quick, monkeypatch):
    def refuse(dir):                                             # root may write anywhere, so the refusal is made here
        raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmp1234"))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, said, lines = call(capsys, "restore", folder, "--out", tmp_path / "out")
    assert (code, said, quick) == (NOTHING_DONE, "", []) and lines == [f"gfpgan-edu: {tmp_path / 'out'}: cannot be used for the results (permission denied)"]


def test_a_result_never_replaces_its_original(folder, tmp_path, capsys, quick):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "good.png").symlink_to(folder / "good.png")
    before = snapshot(folder)
    code, _, lines = call(capsys, "restore", tmp_path / "links", "--out", folder)
    assert code == NOTHING_DONE and len(lines) == 1 and "overwrite" in lines[0] and snapshot(folder) == before


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


@pytest.mark.parametrize("args", ["", "restore", "restore a.jpg", "restore a.jpg --out b --wieghts v1", "restore a.jpg b.jpg --out c", "weights", "weights eat", "fly"])
def test_bad_usage_is_2(capsys, args):
    code, said, lines = call(capsys, *args.split())
    assert code == NOTHING_DONE and said == "" and lines


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

def test_export_writes_a_file_that_runs_and_does_not_replace_it_unasked(tmp_path, capsys):
    import onnxruntime

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
    assert call(capsys, "export", "bundled", target, "--force")[0] == DONE and target.stat().st_size > 100_000


def test_export_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    from gfpgan_edu import inference

    def missing(*_, **__):
        raise weights.WeightsError("a.onnx: ONNX needs more packages: pip install gfpgan_edu[onnx]")
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(inference, "export_onnx", missing)
    for name, target, reason in [("bundled", "a.txt", "ends in .onnx"), ("bundled", "folder.onnx", "is a folder"), ("bundled", "file/a.onnx", "is a file"),
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


def test_a_name_that_is_not_text_is_printed_all_the_same(tmp_path, capsys, quick):
    name = os.fsdecode(b"caf\xe9.png")
    write_image(tmp_path / "in" / name, np.full((5, 5, 3), 9, np.uint8))
    code, said, lines = call(capsys, "restore", tmp_path / "in" / name, "--out", tmp_path / os.fsdecode(b"\xe9"))
    assert code == DONE and "\\udce9" in said and lines == []


def test_help_needs_no_torch():
    code = """
import sys
from gfpgan_edu.cli import main
for args in (["--help"], ["restore", "--help"], ["weights", "--help"], ["export", "--help"], ["export", "v1", "a.txt"], ["restore"], ["restore", "gone.jpg", "--out", "nowhere"]):
    try:
        main(args)
    except SystemExit as e:
        print("CODE", e.code)
heavy = {"torch", "torchvision", "facenet_pytorch", "matplotlib", "numpy", "cv2", "PIL"} & set(sys.modules)
print("HEAVY", *sorted(heavy))
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert [line.split()[1] for line in r.stdout.splitlines() if line.startswith("CODE")] == ["0", "0", "0", "0", "2", "2", "2"]
    assert r.stdout.splitlines()[-1].strip() == "HEAVY" and "gfpgan-edu: gone.jpg: no such file or directory" in r.stderr


# ---------------------------------------------------------------- for real

def test_end_to_end_with_the_real_detector_and_the_bundled_model(tmp_path, capsys):
    photo = astronaut()[:330, 40:420]
    write_image(tmp_path / "in" / "a.png", photo)
    (tmp_path / "in" / "b.jpg").write_text("no photo")
    code, said, lines = call(capsys, "restore", tmp_path / "in", "--out", tmp_path / "out")
    assert code == SOME_FAILED and said == f"1 of 2 restored into {tmp_path / 'out'}\n" and len(lines) == 1 and "b.jpg" in lines[0]
    got = read_image(tmp_path / "out" / "a.png")
    changed = (got != photo).any(2)
    assert got.shape == photo.shape and changed[60:170, 140:230].mean() > 0.5 and not changed[250:].any() and not changed[:, :50].any()


def test_a_real_ctrl_c_ends_without_a_traceback(tmp_path):
    code = f"""
import sys, time
from gfpgan_edu import cli, inference, photos, weights
weights.load_weights, inference.fuse = lambda name, progress: None, lambda net: net
def slow(path, net):
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
        out, err = p.communicate(timeout=30)
    assert p.returncode == INTERRUPTED and err.splitlines() == ["gfpgan-edu: interrupted; the photos finished so far are kept"]

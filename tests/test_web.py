"""The local web page without its page: what it does with uploads, files, requests and connections.
tests/web has the rest, in a browser."""
import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gfpgan_edu import web
from gfpgan_edu.examples import astronaut
from gfpgan_edu.photos import NoFace
from gfpgan_edu.pictures import Picture, PhotoError, read_picture
from gfpgan_edu.web import (HEADERS, Files, Guard, WebError, answer, build, launch, network,
                            on_this_machine, only_this_machine, preview, restore_upload,
                            write_results)
from gfpgan_edu.weights import WeightsError


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    path = tmp_path_factory.mktemp("a folder") / "Zoë's portrait.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a camera"
    Image.fromarray(astronaut()[:240, 100:340]).save(path, quality=95, exif=exif)
    return path


@pytest.fixture
def files():
    files = Files()
    yield files
    files.close()


# ---------------------------------------------------------------- uploads and results

def test_an_upload_is_restored_with_the_chosen_fidelity(portrait):
    restored = restore_upload(portrait)
    sent, result = restored.before.pixels.astype(int), restored.after.pixels.astype(int)
    assert restored.message.startswith("1 face restored in ") and result.shape == sent.shape
    changed = np.abs(result - sent).max(2)
    assert changed[80:140, 90:170].mean() > 3 and changed[:10].max() == 0
    own = restore_upload(portrait, fidelity=1.0).after.pixels
    assert np.abs(own - sent).mean() < np.abs(result - sent).mean() / 4
    assert restored.after.exif == restored.before.exif is not None


def test_refusals_name_the_file_and_not_its_folder(portrait, tmp_path):
    Image.new("RGB", (100, 100), "grey").save(tmp_path / "wall.png")
    (tmp_path / "letter.jpg").write_text("Dear Eileen")
    (tmp_path / "empty.png").touch()
    for path, limit, reason in [
            (portrait, 0.001, "at most 0.001"), (tmp_path / "wall.png", 20, "no face"),
            (tmp_path / "letter.jpg", 20, "not a picture"), (tmp_path / "empty.png", 20, "empty"),
            (tmp_path / "gone.jpg", 20, "no such file"), (tmp_path, 20, "folder")]:
        with pytest.raises(PhotoError) as e:
            restore_upload(path, max_mb=limit)
        said = str(e.value)
        assert said.startswith(f"{path.name}: ") and reason in said
        assert str(path.parent) not in said
    with pytest.raises(WeightsError, match="no_such_weights"):
        restore_upload(portrait, "no_such_weights")


def test_the_cap_is_tested_before_the_file_is_read(portrait, monkeypatch):
    monkeypatch.setattr(web, "read_picture", lambda path: pytest.fail("it was read"))
    with pytest.raises(PhotoError, match="at most"):
        restore_upload(portrait, max_mb=0.001)


def test_answer_never_raises(portrait, tmp_path, files, monkeypatch, capsys):
    made, said = answer(portrait, files.folder)
    assert [p.name for p in made] == ["before.png", "after.png", "Zoë's portrait-restored.jpg"]
    assert said.startswith("1 face")
    assert answer(tmp_path / "gone.jpg", files.folder) == (None, "gone.jpg: no such file")
    assert answer(portrait, files.folder, "no_such_weights")[0] is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("gfpgan_edu.photos.restore", lambda *a, **k: 1 / 0)
    made, said = answer(portrait, files.folder)
    assert made is None and "ZeroDivisionError" in said and "\n" not in said
    assert "Traceback" in capsys.readouterr().err      # the whole story to the terminal


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), side=st.integers(1, 70))
def test_preview_keeps_the_shape_within_its_side(h, w, side):
    pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    whole = Picture(pixels, alpha=np.zeros((h, w), np.uint8), exif=b"place", icc=b"profile")
    small = preview(whole, side)
    assert max(small.pixels.shape[:2]) == min(side, max(h, w)) and min(small.pixels.shape[:2]) >= 1
    assert small.alpha is None and small.exif is None and small.icc == b"profile"
    if side >= max(h, w):
        np.testing.assert_array_equal(small.pixels, pixels)


@pytest.mark.parametrize("name, written", [
    ("a.jpg", "a-restored.jpg"), ("a.PNG", "a-restored.PNG"), ("a.gif", "a-restored.png"),
    ("a", "a-restored.png"), ("ünï cödé.tiff", "ünï cödé-restored.tiff")])
def test_results_have_a_folder_and_a_name_of_their_own(portrait, files, name, written):
    restored = restore_upload(portrait)
    first, second = (write_results(restored, files.folder, name) for _ in range(2))
    home = first[0].parent
    assert first[2].name == written
    assert home != second[0].parent and home.parent == files.folder
    before, after, result = map(read_picture, first)
    # without loss: the slider shows the network alone
    np.testing.assert_array_equal(before.pixels, restored.before.pixels)
    np.testing.assert_array_equal(after.pixels, restored.after.pixels)
    assert result.pixels.shape == restored.after.pixels.shape and before.exif is None


# ---------------------------------------------------------------- one network

def test_the_network_is_loaded_once_for_all_visitors(monkeypatch):
    loads, real = [], web._load.__wrapped__

    def load(name):
        loads.append(name)
        time.sleep(0.2)
        return real(name)

    monkeypatch.setattr(web, "_load", web.lru_cache(load))
    with ThreadPoolExecutor(8) as pool:
        nets = list(pool.map(network, ["bundled"] * 8))
    assert loads == ["bundled"] and len({id(n) for n in nets}) == 1


def test_visitors_at_once_get_their_own_results(portrait, files):
    mirrored = portrait.parent / "mirrored.png"
    Image.fromarray(np.array(Image.open(portrait))[:, ::-1]).save(mirrored)
    alone = [restore_upload(p).after.pixels for p in (portrait, mirrored)]
    with ThreadPoolExecutor(4) as pool:
        pictures = pool.map(restore_upload, [portrait, mirrored] * 3)
        together = [r.after.pixels for r in pictures]
    for i, pixels in enumerate(together):
        assert np.abs(pixels.astype(int) - alone[i % 2]).max() <= 1


def test_only_weights_that_are_here_are_offered(monkeypatch, tmp_path):
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path))
    assert on_this_machine() == ["bundled"]
    (tmp_path / "GFPGANv1.3.pth").touch()
    (tmp_path / "GFPGANv1.4.pth.part").touch()
    assert on_this_machine() == ["bundled", "v1.3"]


# ---------------------------------------------------------------- files

def make(files, *names):
    paths = [files.folder / name for name in names]
    for p in paths:
        p.parent.mkdir(exist_ok=True)
        p.touch()
    return paths


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sets(st.integers(0, 4))), max_size=12))
def test_what_is_held_is_there_and_nothing_else(steps):
    files, held = Files(), {}
    try:
        for visitor, wanted in steps:
            make(files, *(f"{i}/photo" for i in wanted))
            files.hold(visitor, *(files.folder / f"{i}/photo" for i in wanted))
            held[visitor] = wanted
            union = set().union(*held.values())
            assert {int(p.parent.name) for p in files.folder.glob("*/*")} == union
            assert {int(p.name) for p in files.folder.iterdir()} == union
    finally:
        files.close()


def test_files_outside_are_never_removed(files, tmp_path):
    outside = tmp_path / "mine.jpg"
    outside.touch()
    link = files.folder / "link"
    link.symlink_to(outside)
    inner = outside.relative_to("/")
    for path in (outside, files.folder / ".." / inner, link, files.folder / "x/../../.." / inner):
        files.hold("Eve", path)
        files.hold("Eve")
    files.sweep(-1)
    assert outside.exists()


def test_sweep_removes_what_was_not_used(files):
    old, used, new = make(files, "a/old", "b/used", "new")
    for p in (old, used):
        os.utime(p, (time.time() - 4000,) * 2)
    files.hold("Ann", used)                                # used just now
    files.sweep(3600)
    assert (old.parent.exists(), used.exists(), new.exists()) == (False, True, True)


def test_the_folder_is_private_and_goes_at_the_end_of_the_process(tmp_path):
    code = ("from gfpgan_edu.web import Files; f = Files(); (f.folder / 'a').touch(); "
            "print(f.folder, oct(f.folder.stat().st_mode & 0o777))")
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)},
                         capture_output=True, text=True, check=True)
    folder, mode = run.stdout.split()
    assert Path(folder).parent == tmp_path.resolve() and mode == "0o700"
    assert not Path(folder).exists()


# ---------------------------------------------------------------- guard and gate

def guarded(scope_type="http", **headers):
    "Status, headers and body of a page behind the guard; None for what is not HTTP and passes."
    async def page(scope, receive, send):
        if scope["type"] == "http":
            head = [(b"Cache-Control", b"max-age=9"), (b"content-type", b"image/png")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"photo"})

    async def ask():
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": scope_type}
        if scope_type == "http":
            scope["headers"] = [(k.encode(), v.encode()) for k, v in headers.items()]
        await Guard(page)(scope, None, send)
        return sent

    sent = asyncio.run(ask())
    if not sent:
        return None
    start, rest = sent
    return start["status"], [(k.lower(), v) for k, v in start["headers"]], rest["body"]


@pytest.mark.parametrize("headers", [
    dict(host="127.0.0.1:7860"), dict(host="localhost:7860"),
    dict(host="127.0.0.1:7860", origin="http://127.0.0.1:7860")])
def test_guard_lets_its_own_page_through(headers):
    status, sent, body = guarded(**headers)
    assert (status, body) == (200, b"photo")
    assert sorted(k for k, _ in sent) == sorted([b"content-type", *HEADERS])
    assert dict(sent)[b"cache-control"] == b"no-store"


@pytest.mark.parametrize("headers", [
    dict(), dict(host="evil.example"), dict(host="127.0.0.1.evil.example:7860"),
    dict(host="evil.example:127.0.0.1"), dict(host="192.168.0.2:7860"),
    dict(host="127.0.0.1:7860", origin="https://evil.example"),
    dict(host="127.0.0.1:7860", origin="http://127.0.0.1:8000"),
    dict(host="127.0.0.1:7860", origin="null"), dict(host="127.0.0.1:7860", origin="")])
def test_guard_refuses_strangers(headers):
    status, sent, body = guarded(**headers)
    assert status == 403 and b"photo" not in body and b"content-security-policy" in dict(sent)


def test_guard_leaves_start_and_end_of_the_server_alone():
    assert guarded("lifespan") is None


def test_gate_closes_every_way_out_and_opens_again():
    def datagram():
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    ways = [lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
            lambda: socket.getaddrinfo("elsewhere.example", 80),
            lambda: socket.getaddrinfo(b"elsewhere.example", 80),
            lambda: socket.gethostbyname("elsewhere.example"),
            lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
            lambda: datagram().sendto(b"", ("192.0.2.1", 53)),
            lambda: datagram().sendmsg([b""], [], 0, ("192.0.2.1", 53))]
    with only_this_machine():
        for way in ways:
            with pytest.raises(PermissionError, match="keeps to this computer"):
                way()
        caught = []

        def attempt():
            caught.append(pytest.raises(PermissionError, ways[0]))

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        assert len(caught) == 1                            # in every thread
        with socket.create_server(("127.0.0.1", 0)) as home:
            socket.create_connection(home.getsockname()).close()
            socket.create_connection(("localhost", home.getsockname()[1])).close()
        a, b = socket.socketpair()                         # no network
        a.sendall(b"x"), a.close(), b.close()
    try:
        socket.getaddrinfo("elsewhere.invalid", 80)
    except OSError as e:
        assert not isinstance(e, PermissionError)          # the answer of the network again


# ---------------------------------------------------------------- without gradio

def test_without_gradio_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for f in (build, lambda: launch(0, open_browser=False)):
        with pytest.raises(WebError) as e:
            f()
        assert 'pip install "gfpgan_edu[web]"' in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_is_none(port):
    with pytest.raises(WebError, match=f"port {port} cannot be used"):
        launch(port, open_browser=False)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(WebError, match="choose another"):
            launch(taken.getsockname()[1], open_browser=False)


def test_import_needs_no_gradio_and_no_torch():
    code = ("import gfpgan_edu.web, sys; "
            "bad = {'gradio', 'starlette', 'torch'} & set(sys.modules); "
            "sys.exit(str(bad) if bad else 0)")
    run = subprocess.run([sys.executable, "-W", "error", "-c", code],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_face_is_its_own_error(tmp_path):
    Image.new("RGB", (100, 100), "grey").save(tmp_path / "wall.png")
    with pytest.raises(PhotoError) as e:
        restore_upload(tmp_path / "wall.png")
    assert isinstance(e.value.__cause__, NoFace)

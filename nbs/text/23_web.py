# %% [markdown]
# # A local web page {#sec-web}
#
# > The photo that somebody wants restored is often one that must not leave the house.
#
# **You will build** a page for the browser: drop a photo, compare before and after with a slider, choose weights and fidelity, download the result. It runs on your own computer and talks to nobody else. **Needs** @sec-pictures and @sec-photos. **Runs in** about 8 s on a laptop CPU; the package that draws the page is not needed for it.

# %%
#| default_exp web

# %%
#| export
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import webbrowser
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2

from gfpgan_edu.pictures import Picture, PhotoError, read_picture, write_picture

# %%
import io
import socketserver
import urllib.request
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_fail
from matplotlib.patches import FancyBboxPatch
from numpy.testing import assert_array_equal
from PIL import Image

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, show
from gfpgan_edu.photos import restore

# %% [markdown]
# ## What a page adds, and what it must not do
#
# The command line of the next chapter serves people who know what a folder is. A page serves everybody else, and it shows at once what a file cannot: the two pictures under one slider. It is the form in which a person *looks*.
#
# It is also the form in which photos leak. People believe that a page "runs locally" and mean that nothing leaves the machine. That is a promise with several parts, and each can be broken by a default of the tools. @tbl-web-leaks lists them with what keeps them shut; @fig-web-parts shows where they sit.
#
# | leak | kept shut by |
# |---|---|
# | other computers open the page | it listens at 127.0.0.1 only |
# | other web pages send requests to it through your browser | `Guard` |
# | the page loads fonts or scripts from a server, which learns that you use it | `Guard` again: a header that forbids it |
# | a package reports home, or fetches an address that somebody typed | `only_this_machine` |
# | photos stay in a temporary folder or in the browser's cache | `Files`; a header; the history of the package switched off |
# | somebody fills the memory or the disk | a cap on uploads, one photo at a time, `sweep` |
#
# : How a local page leaks {#tbl-web-leaks}

# %%
#| label: fig-web-parts
#| fig-cap: "The browser and the server are on one machine. Requests pass the guard; everything that could leave the machine meets the gate."
#| fig-alt: "Four boxes in a frame named 127.0.0.1: browser, guard, page, restore; below them a box of files. An arrow from the page out of the frame is crossed out by a box named gate."
fig, ax = plt.subplots(figsize=(7, 2.5), layout="constrained")
frame = dict(boxstyle="round,pad=0.1", fc="white", ec="#444444", ls="--")
ax.add_patch(FancyBboxPatch((-0.3, -0.35), 8.1, 3.1, **frame))
ax.text(-0.2, 2.55, "this machine, 127.0.0.1", fontsize=8)
grey, blue = "#eeeeee", "#56B4E9"
boxes = {"browser": (0, 1.3, grey), "Guard": (2, 1.3, blue), "page\n(gradio)": (4, 1.3, grey),
         "restore_upload": (6, 1.3, blue), "Files": (4, 0, blue),
         "only_this_\nmachine": (6, 0, blue), "the internet": (8.6, 0, grey)}
for name, (x, y, colour) in boxes.items():
    box = FancyBboxPatch((x, y), 1.4, 0.8, boxstyle="round,pad=0.05", fc=colour, ec="#444444")
    ax.add_patch(box)
    ax.text(x + 0.7, y + 0.4, name, ha="center", va="center", fontsize=8)
arrows = [((1.5, 1.7), (1.95, 1.7)), ((3.5, 1.7), (3.95, 1.7)), ((5.5, 1.7), (5.95, 1.7)),
          ((4.7, 1.25), (4.7, 0.85)), ((5.2, 1.2), (5.95, 0.7))]
for a, b in arrows:
    style = "-|>" if b[1] == 0.7 else "<|-|>"
    ax.annotate("", b, a,
                arrowprops=dict(arrowstyle=style, color="#444444", shrinkA=0, shrinkB=0))
ax.plot([7.5, 8.5], [0.4, 0.4], c="#D55E00", ls=":")
ax.text(8.2, 0.4, "×", c="#D55E00", fontsize=22, ha="center", va="center")
ax.set(xlim=(-0.5, 10.2), ylim=(-0.5, 2.9))
ax.axis("off");


# %% [markdown]
# ## One file in, one answer out
#
# A server has several visitors and one network. Loading it takes seconds and its memory, so it is loaded once. Two visitors may ask at the same moment, hence the lock. The page offers the weights that are on this machine already: a choice in a page must not start a download.

# %%
#| export
class WebError(RuntimeError):
    "The page cannot be served; the message says why, and what to do."


_loading = threading.Lock()


# %%
#| export
@lru_cache(maxsize=2)
def _load(weights):
    from gfpgan_edu.inference import fuse
    from gfpgan_edu.photos import pick_device
    from gfpgan_edu.weights import load_weights

    return fuse(load_weights(weights), consume=True).to(pick_device())


# %%
#| export
def network(weights="bundled"):
    """The restorer of this name or path, loaded once and shared by all visitors.

    Raises WeightsError.
    """
    with _loading:                                       # two first visitors load it once, too
        return _load(str(weights))


# %%
#| export
def on_this_machine():
    "Names of the weights that need no download."
    from gfpgan_edu.weights import RELEASES, cache_dir

    here = [name for name, r in RELEASES.items()
            if (cache_dir() / r.url.rsplit("/", 1)[1]).is_file()]
    return ["bundled", *here]


# %%
assert network("bundled") is network()
assert not any(p.requires_grad and p.grad is not None for p in network().parameters())
with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, GFPGAN_EDU_CACHE=cache):
    assert on_this_machine() == ["bundled"]
    Path(cache, "GFPGANv1.4.pth").touch()
    assert on_this_machine() == ["bundled", "v1.4"]


# %% [markdown]
# `restore_upload` is all that the page does with a photo, as a plain function. It can be tested, and used, without any page. An upload lies in a folder with a name of 64 letters and digits, which means nothing to its owner, so errors name the file alone.

# %%
#| export
@dataclass(frozen=True)
class Restored:
    "What the page shows of one photo: the picture as it came, the result, sentences for the user."

    before: Picture
    after: Picture
    message: str


# %%
#| export
def restore_upload(path, weights="bundled", fidelity=None, max_mb=20):
    """Read an uploaded file and restore its faces -> Restored.

    fidelity: 0 (the network's face) … 1 (the photo's own), None as the weights say. Raises
    PhotoError (too large, not a picture, no face), whose message names the file without its
    folder, and WeightsError.
    """
    from gfpgan_edu.photos import restore

    path, start = Path(path), time.perf_counter()
    try:
        if path.is_file() and path.stat().st_size > max_mb * 2**20:
            mb = path.stat().st_size / 2**20
            raise PhotoError(f"{path}: has {mb:.1f} MB, at most {max_mb:g} are taken")
        before = read_picture(path)
        result = restore(before.pixels, network(weights), fidelity=fidelity)
    except PhotoError as e:                         # the upload's folder means nothing to its owner
        why = str(e).removeprefix(f"{path}: ").removeprefix("image: ")
        raise PhotoError(f"{path.name}: {why}") from e
    n, seconds = len(result.faces), time.perf_counter() - start
    done = f"{n} face{'s' * (n != 1)} restored in {seconds:.1f} s"
    message = "\n".join([done, *before.notes, *result.notes])
    return Restored(before, replace(before, pixels=result.image), message)


# %%
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
params = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
photo = degrade(astronaut(), params)[:240, 100:340]
exif = Image.Exif()
exif[0x0110] = "a camera"
Image.fromarray(photo).save(folder / "portrait.png", exif=exif)
restored = restore_upload(folder / "portrait.png")
assert_array_equal(restored.before.pixels, photo)
# the page adds nothing of its own
assert_array_equal(restored.after.pixels, restore(photo).image)
assert restored.message.startswith("1 face restored in ")
print("\n".join(restored.message.splitlines()[1:]))      # the first line tells seconds
kept = restore_upload(folder / "portrait.png", fidelity=1).after.pixels.astype(int)
assert np.abs(kept - photo).mean() < np.abs(restored.after.pixels.astype(int) - photo).mean() / 4

# %%
(folder / "letter.jpg").write_text("Dear Eileen")
Image.new("RGB", (200, 200), "grey").save(folder / "wall.png")
for name, limit in {"letter.jpg": 20, "wall.png": 20, "portrait.png": 0.01, "gone.jpg": 20}.items():
    try:
        restore_upload(folder / name, max_mb=limit)
        raise AssertionError(f"{name} was restored")
    except PhotoError as e:
        assert str(e).startswith(f"{name}: ") and str(folder) not in str(e)
        print(e)

# %% [markdown]
# ## What the screen gets
#
# The download is the whole picture with all that its file held (@sec-pictures). The screen gets copies of at most 1,600 pixels. They are PNG files: two lossy copies would differ everywhere by their own noise, and the slider would show the difference between two compressions. They carry no EXIF, since a copy for the screen need not tell where the photo was taken.

# %%
#| export
# kinds of files that are written as they came
KEPT = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


# %%
#| export
def preview(picture, side=1600):
    """The picture for the screen: at most `side` px wide and high, opaque.

    It comes without EXIF, which tells when and where; the colour profile stays.
    """
    h, w = picture.pixels.shape[:2]
    k = min(1, side / max(h, w))
    small = picture.pixels
    if k < 1:
        size = max(1, round(w * k)), max(1, round(h * k))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    return replace(picture, pixels=small, alpha=None, exif=None)


# %%
#| export
def write_results(restored, folder, name):
    "Files of one result in a new folder of their own: (before, after, download)."
    out, name = Path(tempfile.mkdtemp(dir=folder)), Path(name)
    suffix = name.suffix if name.suffix.lower() in KEPT else ".png"
    paths = out / "before.png", out / "after.png", out / f"{name.stem}-restored{suffix}"
    pictures = preview(restored.before), preview(restored.after), restored.after
    for path, picture in zip(paths, pictures):
        write_picture(path, picture)
    return paths


# %%
before, after, download = write_results(restored, folder, "portrait.png")
assert download.name == "portrait-restored.png"
assert write_results(restored, folder, "portrait.gif")[2].name == "portrait-restored.png"
assert_array_equal(read_picture(before).pixels, photo)                      # exactly
assert_array_equal(read_picture(download).pixels, restored.after.pixels)
assert read_picture(before).exif is None and Image.open(download).getexif()[0x0110] == "a camera"
large = preview(replace(restored.before, pixels=np.full((300, 4000, 3), 7, np.uint8)))
assert large.pixels.shape == (120, 1600, 3) and (large.pixels == 7).all()

# %%
#| label: fig-web-slider
#| fig-cap: "What the slider compares: the upload, the result, and where they differ (brighter: more)."
#| fig-alt: "A noisy portrait; the same with a smoother face; a black picture with a bright blurred square where the face is."
pair = [read_picture(p).pixels for p in (before, after)]
difference = np.abs(pair[1].astype(int) - pair[0]).mean(2)
assert (difference[:20] == 0).all() and difference[70:150, 90:170].mean() > 3
pictures = [*pair, np.clip(difference * 6, 0, 255)]
show(pictures, ["before", "after", "difference, 6 times"], vmin=0, vmax=255, height=1.9);


# %% [markdown]
# The black part of @fig-web-slider is exactly zero. A visitor who moves the slider sees what the network did, and nothing else.
#
# Whatever happens, the page must answer. `answer` turns every outcome into files and a sentence.

# %%
#| export
def answer(path, folder, weights="bundled", fidelity=None, max_mb=20):
    """What the page says of an upload: ((before, after, download), message).

    Where nothing could be restored: (None, the reason).
    """
    from gfpgan_edu.weights import WeightsError

    try:
        restored = restore_upload(path, weights, fidelity, max_mb)
        return write_results(restored, folder, Path(path).name), restored.message
    except (PhotoError, WeightsError) as e:                                 # written for people
        return None, str(e)
    except Exception as e:
        # unforeseen: the whole story to the terminal, one sentence to the page
        traceback.print_exc()
        return None, f"Sorry, that went wrong ({type(e).__name__}: {e})."


# %%
made, said = answer(folder / "portrait.png", folder)
assert len(made) == 3 and all(p.exists() for p in made) and said.startswith("1 face")
assert answer(folder / "wall.png", folder) == (None, "wall.png: no face found")
no_room = patch("gfpgan_edu.photos.restore", side_effect=MemoryError("no room"))
with no_room, patch("traceback.print_exc") as told:
    sorry = "Sorry, that went wrong (MemoryError: no room)."
    assert answer(folder / "portrait.png", folder) == (None, sorry)
    told.assert_called_once()


# %% [markdown]
# ## Files that go away
#
# Between upload and download a photo lies on the disk. `Files` knows who needs which file: a visitor holds the upload and its results, and lets go of them when another photo comes or the tab is closed. Two visitors who upload the same photo share one file, because the server names uploads by their content; it goes when the second one leaves. `sweep` is for what nobody can let go of, such as an upload that broke off. `close` removes the whole folder.

# %%
#| export
class Files:
    """Where uploads and results lie.

    Each file is there as long as a visitor holds it, and until `close` at the latest.
    """

    def __init__(self):
        self._temporary = tempfile.TemporaryDirectory(prefix="gfpgan_edu-web-",
                                                      ignore_cleanup_errors=True)
        self.folder, self.close = Path(self._temporary.name).resolve(), self._temporary.cleanup
        self._held, self._lock = {}, threading.Lock()

    def hold(self, visitor, *paths):
        """From now on the visitor holds these files and no others.

        What nobody holds any more is removed.
        """
        # never anything outside
        paths = {p for p in map(Path, paths) if p.resolve().is_relative_to(self.folder)}
        with self._lock:
            dropped = self._held.pop(visitor, set())
            if paths:
                self._held[visitor] = paths
            for path in paths:
                with suppress(OSError):
                    os.utime(path)                                          # in use
            for path in dropped.difference(*self._held.values()):
                self._remove(path)

    def sweep(self, seconds=3600):
        """Remove what was not used for so long.

        That is broken-off uploads, and results that came when their visitor had left.
        """
        for path in [p for p in self.folder.rglob("*") if not p.is_dir()]:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > seconds:
                    self._remove(path)

    def _remove(self, path):
        path.unlink(missing_ok=True)
        if path.parent != self.folder:
            with suppress(OSError):                     # not empty: somebody else's file is in it
                path.parent.rmdir()


# %%
files = Files()
a, b, c = (files.folder / d / "photo.jpg" for d in "abc")
for p in (a, b, c):
    p.parent.mkdir()
    p.touch()
files.hold("Ann", a, b)
files.hold("Bob", b)
files.hold("Ann", c)                                    # another photo: a goes, b is Bob's too
assert (a.exists(), b.exists(), c.exists(), a.parent.exists()) == (False, True, True, False)
files.hold("Ann")                                       # she leaves
files.hold("Bob")
assert list(files.folder.iterdir()) == []
mine = folder / "mine.jpg"
mine.touch()
files.hold("Eve", mine)
files.hold("Eve")
assert mine.exists()                                    # never a file that is not the page's
old, new = files.folder / "old.part", files.folder / "new.part"
for p, age in ((old, 4000), (new, 0)):
    p.touch()
    os.utime(p, (time.time() - age,) * 2)
files.sweep(3600)
assert (old.exists(), new.exists()) == (False, True)
files.close()
assert not files.folder.exists()

# %% [markdown]
# ## A guard at the door
#
# A server at 127.0.0.1 cannot be reached from other computers. It *can* be reached from every web page that you have open, because your browser is on this machine. A page elsewhere may post a form to `http://127.0.0.1:7860`, or give its own name the address 127.0.0.1 and then count as the same site (DNS rebinding). Two headers that a browser sets and a page cannot forge give it away: `Host`, the name that was asked for, and `Origin`, the page that asks.
#
# On the way out the guard adds headers of its own. `Content-Security-Policy` tells the browser to load nothing from elsewhere, no matter what the page says. `no-store` keeps photos out of its cache on the disk.

# %%
#| export
# names by which a browser on this machine asks for the page
HOSTS = (b"127.0.0.1", b"localhost")
# of every answer: load nothing from elsewhere, keep nothing
HEADERS = {
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
                                b"frame-ancestors 'none'; form-action 'self'",
    b"cross-origin-resource-policy": b"same-origin", b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",                  # no photo in the browser's cache on the disk
}


# %%
#| export
class Guard:
    """ASGI middleware: answers its own page only, asked for by this machine's name.

    It forbids the browser to load anything from elsewhere or to keep it.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def guarded(message):
            if message["type"] == "http.response.start":
                others = [(k, v) for k, v in message.get("headers", ()) if k.lower() not in HEADERS]
                message = message | {"headers": [*others, *HEADERS.items()]}
            await send(message)

        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"")
        own = b"http://" + host
        ours = host.rsplit(b":", 1)[0] in HOSTS and headers.get(b"origin", own) == own
        if scope["type"] != "http" or ours:
            return await self.app(scope, receive, guarded)
        plain = [(b"content-type", b"text/plain")]
        body = b"This page answers at 127.0.0.1, and no other pages.\n"
        await guarded({"type": "http.response.start", "status": 403, "headers": plain})
        await guarded({"type": "http.response.body", "body": body})


# %% [markdown]
# The guard is a function between the server and the page (ASGI, the interface of Python's web servers). It needs no server to be tried.

# %%
async def hello(scope, receive, send):
    "A page of one word that wants to be cached."
    headers = [(b"Cache-Control", b"max-age=9"), (b"x-page", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


async def ask(**headers):
    "Status, headers and body that `hello` behind the guard answers."
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await Guard(hello)({"type": "http", "headers": pairs}, None, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


us = "127.0.0.1:7860"
status, headers, body = await ask(host=us, origin=f"http://{us}")
assert (status, body) == (200, b"hello") and headers[b"x-page"] == b"1"
assert headers[b"cache-control"] == b"no-store" and b"Cache-Control" not in headers
assert (await ask(host="localhost:7860"))[0] == 200
strangers = {
    "DNS rebinding": dict(host="evil.example:7860"),
    "a longer name": dict(host="127.0.0.1.evil.example"),
    "a form elsewhere": dict(host=us, origin="https://evil.example"),
    "another port": dict(host=us, origin="http://127.0.0.1:8000"),
    "a sandbox": dict(host=us, origin="null"),
    "no name": dict()}
for name, stranger in strangers.items():
    status, headers, body = await ask(**stranger)
    assert status == 403 and b"hello" not in body and b"content-security-policy" in headers, name
    print(f"{name}: {status}")

# %% [markdown]
# ## A gate for everything else
#
# Packages report home: the number of starts, the version, the kinds of buttons. They keep a history of what was done, photos included. They offer switches against it, and we set them. But a switch is a promise about one version. It is better to have a rule that holds whatever a package does. Python has a place for such a rule: an audit hook, which the interpreter calls before it connects a socket or looks up a name, and which may refuse.
#
# Building this chapter we found a case that no switch covers. The page's programming interface takes a file, and gradio accepts an address there, `https://…`, and fetches it from our machine. The gate refuses it.

# %%
#| export
# hosts to which this process may connect
OURSELVES = {None, "", "127.0.0.1", "::1", "localhost"}
_NAMES = {"socket.getaddrinfo", "socket.gethostbyname"}
_ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_closed = threading.Event()


# %%
#| export
def _gate(event, args, closed=_closed):         # its own name for it: the hook outlives the module
    "Audit hook: Python calls it before each such event, and what it raises, the caller gets."
    if closed.is_set() and event in _NAMES | _ADDRESSES:
        if event in _NAMES:
            host = args[0]
        else:                                   # no tuple: a socket of the file system
            host = args[1][0] if isinstance(args[1], tuple) else None
        if (host.decode() if isinstance(host, bytes) else host) not in OURSELVES:
            raise PermissionError(13, f"the web page keeps to this computer, {host} is elsewhere")


# %%
#| export
@lru_cache(maxsize=1)           # audit hooks cannot be taken away again, one is enough
def _install_gate():
    sys.addaudithook(_gate)


# %%
#| export
@contextmanager
def only_this_machine():
    """Within it, this process can open no connection to another computer and look up no name.

    That holds whatever code tries to.
    """
    _install_gate()
    _closed.set()
    try:
        yield
    finally:
        _closed.clear()


# %%
def refused(host):
    test_fail(lambda: socket.create_connection((host, 80), timeout=1),
              exc=PermissionError, contains="elsewhere")


with only_this_machine():
    refused("192.0.2.1")            # an address that is nobody's, reserved for documents
    refused("gradio.app")           # not even the name is looked up
    test_fail(lambda: urllib.request.urlopen("http://gradio.app"), contains="elsewhere")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        test_fail(lambda: s.sendto(b"hello", ("192.0.2.1", 53)), exc=PermissionError)
    with socketserver.TCPServer(("127.0.0.1", 0), None) as home:
        socket.create_connection(home.server_address).close()       # itself: allowed
assert not _closed.is_set()         # afterwards the process is free again


# %% [markdown]
# ## The page
#
# What is left is short. `build` describes the page with gradio [@abid2019gradio], an optional package (`pip install "gfpgan_edu[web]"`); without it there is one clear line. The network is loaded before the page is there, so that wrong weights are an error in the terminal and not in front of a visitor. `concurrency_limit=1` restores one photo at a time and lets the others queue. `trigger_mode="always_last"` keeps what a visitor does during a run; by default it would be dropped without a word, and a photo that replaces another one at once would never be restored.

# %%
#| export
def build(weights="bundled", max_mb=20):
    "The page as gr.Blocks, its files in `.files`. Raises WebError (no gradio), WeightsError."
    if find_spec("gradio") is None:
        raise WebError('the web page needs the package gradio: pip install "gfpgan_edu[web]"')
    network(weights)                # what cannot be loaded should be known before a visitor comes
    files = Files()
    # read when gradio is imported, and later
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(files.folder))
    import gradio as gr

    names = list(dict.fromkeys([str(weights), *on_this_machine()]))

    def show(path, weights, fidelity, request: gr.Request):
        made, said = answer(path, files.folder, weights, fidelity, max_mb) if path else (None, "")
        files.hold(request.session_hash, *([path] if path else []), *(made or []))
        slider = made and tuple(map(str, made[:2]))
        return slider, gr.DownloadButton(value=made and str(made[2]), interactive=bool(made)), said

    def leave(request: gr.Request):
        files.hold(request.session_hash)

    with gr.Blocks(title="gfpgan_edu", analytics_enabled=False) as page:
        gr.Markdown("# Restore the faces of a photo\nThe photo stays on this computer. "
                    "What a restorer adds is likely, not true.")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                photo = gr.File(label=f"Photo, at most {max_mb:g} MB", elem_id="photo", height=160)
                chosen = gr.Dropdown(names, value=str(weights), label="Weights", elem_id="weights")
                fidelity = gr.Slider(0, 1, value=0, step=0.05, label="Fidelity",
                                     info="0: the network's face, 1: the photo's own",
                                     elem_id="fidelity")
                message = gr.Textbox(label="Result", lines=3, interactive=False, elem_id="message")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
            slider = gr.ImageSlider(label="Before and after", elem_id="slider", interactive=False,
                                    buttons=["fullscreen"], scale=2, max_height=700)
        # always_last: what comes during a run is done after it
        gr.on([photo.upload, photo.clear, chosen.input, fidelity.release], show,
              [photo, chosen, fidelity], [slider, download, message],
              concurrency_limit=1, trigger_mode="always_last", api_name="restore")
        page.unload(leave)
    page.files = files
    return page


# %%
#| export
def launch(port=7860, weights="bundled", max_mb=20, open_browser=True):
    """Serve the page at http://127.0.0.1:port until Ctrl-C (or SIGTERM), then remove its files.

    max_mb: the largest upload, in units of 2²⁰ bytes. Raises WebError (no gradio, the port is
    taken), WeightsError.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as e:
            raise WebError(f"port {port} cannot be used ({e}); choose another one") from e
    page = build(weights, max_mb)
    import gradio as gr
    from starlette.middleware import Middleware

    terminated = None
    if threading.current_thread() is threading.main_thread():
        terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with only_this_machine():
            theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
            page.launch(server_name="127.0.0.1", server_port=port, share=False,
                        prevent_thread_lock=True, quiet=True, max_file_size=int(max_mb * 2**20),
                        run_history=False, enable_monitoring=False, mcp_server=False, pwa=False,
                        ssr_mode=False, footer_links=[], strict_cors=True, theme=theme,
                        app_kwargs={"middleware": [Middleware(Guard)]})
            print(f"http://127.0.0.1:{port} shows the page; Ctrl-C ends it and removes its files",
                  flush=True)
            if open_browser:
                webbrowser.open(f"http://127.0.0.1:{port}")
            while True:
                time.sleep(60)
                page.files.sweep()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
        page.files.close()
        if terminated is not None:
            signal.signal(signal.SIGTERM, terminated)


# %%
with patch.dict(sys.modules, gradio=None):      # as on a machine without it
    for f in (build, lambda: launch(0, open_browser=False)):
        test_fail(f, exc=WebError, contains='pip install "gfpgan_edu[web]"')
with socket.create_server(("127.0.0.1", 0)) as taken:
    test_fail(lambda: launch(taken.getsockname()[1]), exc=WebError, contains="cannot be used")
temporary.cleanup()

# %% [markdown]
# ![The page in Chromium, with the slider in the middle: left of the line the damaged portrait, right of it the result of the bundled model.](../figures/web.png){#fig-web-page fig-alt="A page with a column of controls (photo, weights, fidelity, result, download) and a large portrait with a vertical line in its middle."}
#
# @fig-web-page was made by `figures/web.py`, which drives the real page in a real browser. The text under "Result" is what `restore` has to say: this face has more pixels than the bundled model, and which weights would fit.
#
# ## How it is tested
#
# A page has two halves. All functions above are tested without it. The rest is tested by `make test-web` in headless Chromium: a photo is uploaded, seen, compared, downloaded; a letter named `.jpg`, a cut file, a photo without a face and an upload over the cap are refused in a sentence; two visitors work at once; a file whose name is HTML does no harm; after Ctrl-C or SIGTERM no file is left.
#
# "Nothing leaves the machine" is tested from three sides: by all addresses that the page's scripts ask for, by a proxy that the browser would have to use for any other host, and by an audit hook in the server that writes every connection down. The proxy is shown to catch a picture from elsewhere.
#
# ::: {.callout-warning}
# ## What users trip over
# - **The whole family opens the page from the phone.** That does not work, on purpose: 127.0.0.1 is this machine. A page for others needs a login, encryption, and somebody who answers for the photos.
# - **Other users of the same computer** can open the page while it runs. Files are named so that they cannot be guessed, but it is not a lock.
# - **The browser itself calls its maker.** Chromium asks servers of Google about updates and, on pages with fields, about their filling-in; it does so on any page, with no photo in it. Nothing on a page can stop that.
# - **`kill -9` leaves the folder** `gfpgan_edu-web-…` in the temporary folder; nothing can clean up after that.
# - **The slider shows little difference.** It shows at most 1,600 pixels. Zoom with the wheel, or download.
# - **Nothing happens for a minute.** Another visitor's large photo is being restored; the page shows the queue.
# :::
#
# ## Summary
#
# - A page is a thin layer: `restore_upload` is a function, and is tested as one.
# - "Local" is a promise of several parts. A table of leaks, each with its check, is worth more than the word.
# - A browser carries strangers' requests to 127.0.0.1; `Host` and `Origin` tell them apart.
# - Switches against telemetry are promises of one version; a gate holds for all.
# - Every file has an owner, and goes with the owner.
#
# ## Exercises
#
# 1. **Compute.** Photos of 20 MB arrive every 10 s and are never let go of. How many gigabytes lie in the folder when `sweep` removes as many as come?
# 2. **Modify.** Let the page take a photo of several faces and restore only the one in the middle: a check box, and one argument of `restore`.
# 3. **Break.** Take `no-store` out of `HEADERS` and look for the photo in the browser's cache. Then take out the test of `Origin`, and write the page elsewhere that fills the disk.
#
# Worked solutions: [nbs/solutions/23_web.ipynb](solutions/23_web.ipynb).
#
# ## References
#
# Gradio [@abid2019gradio] draws the page. The restorer behind it is GFP-GAN [@wang2021gfpgan].

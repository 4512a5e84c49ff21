"""The page of `gfpgan-edu web` in a real browser. `make test-web` runs it; plain pytest does not,
as it needs gradio and Chromium."""
import io
import json
import re
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from served import ROOT, Server  # noqa: E402

from gfpgan_edu.degradation import DegradationParams, degrade  # noqa: E402
from gfpgan_edu.examples import astronaut  # noqa: E402

MAX_MB = 1


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    "The astronaut, damaged, and files that are refused."
    folder = tmp_path_factory.mktemp("photos")
    params = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
    damaged = degrade(astronaut(), params)
    Image.fromarray(damaged).save(folder / "astronaut.jpg", quality=95)
    Image.fromarray(damaged[:, ::-1]).save(folder / "mirrored.jpg", quality=95)
    Image.fromarray(damaged[300:]).save(folder / "suit.png")
    (folder / "letter.jpg").write_text("Dear Eileen")
    (folder / "cut.jpg").write_bytes((folder / "astronaut.jpg").read_bytes()[:5000])
    (folder / "large.png").write_bytes(np.random.default_rng(0).bytes(MAX_MB * 2**20 + 1))
    Image.fromarray(damaged).save(folder / "<img src=x onerror=alert(1)>.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), MAX_MB)
    yield server
    server.stop()


@pytest.fixture
def visit(server, chrome):
    """A function that opens the page as a new visitor; every address that visitors ask for must be
    this server's."""
    asked, contexts, complaints = [], [], []

    def complain(message):
        if "Content Security Policy" in message.text:
            complaints.append(message.text)

    def visit():
        context = chrome.new_context(viewport=dict(width=1100, height=760), accept_downloads=True)
        contexts.append(context)
        context.set_default_timeout(120_000)                            # the machine may be busy
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.on("console", complain)
        page.goto(server.url)
        page.locator("#photo input[type=file]").wait_for(state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    place = f"127.0.0.1:{server.port}"
    sent = [url for url in asked if not url.startswith(("data:", "blob:"))]
    elsewhere = [url for url in sent if urllib.parse.urlsplit(url).netloc != place]
    assert asked and elsewhere == [] and complaints == []


def upload(page, path):
    page.set_input_files("#photo input[type=file]", path)


def message(page, holding):
    "The text of the result field, once it holds `holding`."
    page.wait_for_function(
        "text => document.querySelector('#message textarea').value.includes(text)", arg=holding)
    return page.input_value("#message textarea")


def shown(page):
    "The two pictures of the slider as arrays, (before, after)."
    page.wait_for_function("""() => {
        const images = [...document.querySelectorAll("#slider img")];
        return images.length == 2 && images.every(i => i.complete && i.naturalWidth);
    }""")
    sources = page.eval_on_selector_all("#slider img", "images => images.map(i => i.src)")
    read = lambda s: Image.open(io.BytesIO(page.request.get(s).body())).convert("RGB")
    return {Path(s).stem: np.array(read(s)) for s in sources}


def download(page):
    with page.expect_download() as waiting:
        page.locator("#download").click()
    return waiting.value


def gone(server, before, seconds=60):
    "Wait until no files are left but those of `before`."
    end = time.monotonic() + seconds
    while set(server.files()) - set(before):
        assert time.monotonic() < end, f"still there: {server.files()}"
        time.sleep(0.2)


def test_a_photo_is_restored_compared_and_downloaded(visit, photos, server):
    page = visit()
    upload(page, photos / "astronaut.jpg")
    assert re.match(r"1 face restored in \d+\.\d s", message(page, "restored in"))
    sent, pictures = np.array(Image.open(photos / "astronaut.jpg")), shown(page)
    np.testing.assert_array_equal(pictures["before"], sent)
    changed = np.abs(pictures["after"].astype(int) - pictures["before"]).max(2)
    # the face, not the suit
    assert changed[60:160, 170:280].mean() > 3 and changed[300:].max() == 0
    # the browser keeps nothing
    assert page.evaluate("indexedDB.databases().then(all => all.map(one => one.name))") == []
    kept = page.evaluate("[...Object.values(localStorage), ...Object.values(sessionStorage)]")
    assert not any("astronaut" in k for k in kept)
    saved = download(page)
    assert saved.suggested_filename == "astronaut-restored.jpg"
    result = np.array(Image.open(saved.path()))
    assert result.shape == sent.shape and np.abs(result.astype(int) - pictures["after"]).mean() < 3
    page.context.close()
    gone(server, [])


def test_the_slider_moves(visit, photos):
    page = visit()
    upload(page, photos / "astronaut.jpg")
    shown(page)
    slider = page.locator("#slider")
    look = lambda: np.array(Image.open(io.BytesIO(slider.screenshot())).convert("RGB"), int)
    centre = slider.locator("[data-testid=slider] .inner").bounding_box()
    frame = slider.bounding_box()
    x, y = centre["x"] + centre["width"] / 2, centre["y"] + centre["height"] / 2
    views = {}
    for share in (0.1, 0.9):                        # nearly all "after", nearly all "before"
        page.mouse.move(x, y)
        page.mouse.down()
        x = frame["x"] + share * frame["width"]
        page.mouse.move(x, y, steps=8)
        page.mouse.up()
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        views[share] = look()
    h, w = views[0.1].shape[:2]
    face = np.s_[h // 10:h * 3 // 10, w * 35 // 100:w * 55 // 100]
    corner = np.s_[h * 8 // 10:h * 95 // 100, w * 35 // 100:w * 55 // 100]
    assert np.abs(views[0.1][face] - views[0.9][face]).mean() > 2           # the face differs
    assert np.abs(views[0.1][corner] - views[0.9][corner]).max() == 0       # the suit does not


@pytest.mark.parametrize("name, reason", [
    ("letter.jpg", "not a picture"),
    ("cut.jpg", "cut.jpg: "),
    ("suit.png", "no face"),
])
def test_what_cannot_be_restored_is_told_in_a_sentence(visit, photos, name, reason):
    page = visit()
    upload(page, photos / name)
    told = message(page, reason)
    assert told.startswith(f"{name}: ") and len(told) < 200
    assert "/" not in told and "Traceback" not in told
    assert page.locator("#slider img").count() == 0
    upload_again(page, photos / "astronaut.jpg")                            # and the page goes on
    message(page, "1 face restored")


def upload_again(page, path):
    page.locator("#photo button[aria-label=Clear]").click()
    page.locator("#photo input[type=file]").wait_for(state="attached")
    upload(page, path)


def test_an_upload_over_the_cap_is_refused(visit, photos, server):
    before, page = server.files(), visit()
    upload(page, photos / "large.png")
    toast = page.get_by_text("exceed the maximum allowed size")
    toast.wait_for()
    assert "1.0 Mb" in toast.inner_text() and "large.png" in toast.inner_text()
    # and by the server itself, whatever the page's script does
    boundary, body = "b", (photos / "large.png").read_bytes()
    head = (f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n')
    data = head.encode() + body + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{server.url}/gradio_api/upload", data, kind)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413
    gone(server, before)


def test_fidelity_one_gives_the_photo_back(visit, photos):
    page = visit()
    upload(page, photos / "astronaut.jpg")
    network = shown(page)["after"]
    first = page.get_attribute("#slider img", "src")
    number = page.locator("#fidelity input[type=number]")
    number.fill("1")
    number.press("Tab")
    page.wait_for_function("""old => {
        const image = document.querySelector("#slider img");
        return image && image.src != old;
    }""", arg=first)
    own = shown(page)
    difference = lambda a, b: np.abs(a[60:160, 170:280].astype(int) - b[60:160, 170:280]).mean()
    assert difference(own["after"], own["before"]) < 2 < difference(network, own["before"])


def test_two_visitors_at_once(visit, photos, server):
    pages = [visit(), visit()]
    for page, name in zip(pages, ("astronaut.jpg", "mirrored.jpg")):
        upload(page, photos / name)
    for page, name in zip(pages, ("astronaut", "mirrored")):
        message(page, "1 face restored")
        saved = download(page)
        assert saved.suggested_filename == f"{name}-restored.jpg"
        files = saved.path(), photos / f"{name}.jpg"
        got, sent = (np.array(Image.open(file), int)[300:] for file in files)
        assert np.abs(got - sent).mean() < 3                            # each got their own
    kept = server.files()
    pages[0].context.close()
    closed = {p.parent for p in kept if "astronaut" in p.name}
    gone(server, [p for p in kept if "astronaut" not in p.name and p.parent not in closed])
    # the other one's stay
    assert any(p.name == "mirrored-restored.jpg" for p in server.files())
    shown(pages[1])


def test_a_name_is_text_and_not_markup(visit, photos):
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail("the name of a file was executed"))
    upload(page, next(photos.glob("<img*")))
    message(page, "1 face restored")
    assert page.locator("img[src=x]").count() == 0


# ---------------------------------------------------------------- without a browser

def ask(server, path, **headers):
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(server.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read()


def test_strangers_get_nothing(server, photos):
    assert ask(server, "/")[0] == 200
    # a name that was made to point here; another page's script
    for stranger in (dict(Host="evil.example"), dict(Host="127.0.0.1.evil.example"),
                     dict(Origin="https://evil.example"), dict(Origin="null")):
        status, headers, _ = ask(server, "/", **stranger)
        assert status == 403, stranger
        assert headers.get("Access-Control-Allow-Origin", "") == "", stranger
    for path in ("/etc/passwd", str(photos / "astronaut.jpg"), str(ROOT / "settings.ini"),
                 "settings.ini", str(server.temporary / "../addresses.txt")):
        answer = ask(server, "/gradio_api/file=" + urllib.parse.quote(path))
        assert answer[0] in (403, 404), path
    headers = ask(server, "/")[1]
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'self'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("photo, weights", [
    (dict(path="/etc/passwd"), "bundled"),
    (None, "bundled"),
    (dict(path="https://evil.example/a.png"), "bundled"),
    (None, "/etc/passwd"),
])
def test_the_api_takes_no_paths_from_strangers(server, photo, weights):
    photo = photo and photo | {"meta": {"_type": "gradio.FileData"}}
    url, kind = f"{server.url}/gradio_api/call/restore", {"Content-Type": "application/json"}
    data = json.dumps({"data": [photo, weights, 0]}).encode()
    event = json.load(urllib.request.urlopen(urllib.request.Request(url, data, kind)))["event_id"]
    answer = urllib.request.urlopen(f"{url}/{event}").read().decode()
    empty = "event: complete" in answer and photo is None and weights == "bundled"
    assert "root:" not in answer and ("event: error" in answer or empty)
    assert "evil.example" not in server.spoken_to()


def test_nothing_left_the_machine(server, trap, chrome):
    # Chromium asks its maker: on an empty page, and where it sees fields
    own = (r"(CONNECT |POST http://)"
           r"(update\.googleapis|accounts\.google|content-autofill\.googleapis)\.com[:/]")
    assert server.spoken_to() <= {"127.0.0.1", "::1"}
    assert [line for line in trap.seen if not re.match(own, line)] == []
    page = chrome.new_page()                                                # the trap does snap
    page.goto("data:text/html,<img src=http://elsewhere.example/a.png>")
    end = time.monotonic() + 60
    while not any("elsewhere.example" in line for line in trap.seen):
        assert time.monotonic() < end
        page.wait_for_timeout(100)
    page.close()
    trap.seen.clear()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_end_leaves_no_file(tmp_path, how, photos, chrome):
    server = Server(tmp_path, MAX_MB)
    page = chrome.new_page()
    page.goto(server.url)
    upload(page, photos / "astronaut.jpg")
    shown(page)
    assert len(server.files()) == 4                     # upload, before, after, download
    assert server.stop(how) == 0
    page.close()
    assert list(server.temporary.glob("gfpgan_edu-web-*")) == []
    assert not [p for p in server.temporary.rglob("*") if p.is_file()]
    assert "Traceback" not in server.said()


def test_a_port_that_is_taken_is_one_line(server):
    from gfpgan_edu.web import WebError, launch

    with pytest.raises(WebError, match=f"port {server.port} cannot be used"):
        launch(port=server.port, open_browser=False)

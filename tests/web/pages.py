"""The book's pages in a real browser: those of preview.py, or of a book that Quarto made (make
book; BOOK=_book make test-web).

`make test-web` runs this; plain pytest does not, as it needs pandoc and Chromium. Pages are opened
as files: no server, no network.
"""
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import preview  # noqa: E402

PHONE, DESK = (390, 844), (1280, 800)
# What of a page reaches beyond the window and lies in no box that scrolls.
SPILLED = """() => {
  const root = document.documentElement, width = root.clientWidth;
  const outside = e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > width + 1;
  };
  const scrolls = e =>
    e !== document.body && e !== root && getComputedStyle(e).overflowX !== "visible";
  const boxed = e => {
    while ((e = e.parentElement)) if (scrolls(e) && !outside(e)) return true;
    return false;
  };
  const spilled = [...document.querySelectorAll("main *")].filter(e => outside(e) && !boxed(e))
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
  if (root.scrollWidth > width) spilled.unshift(`the page is ${root.scrollWidth} px wide`);
  return spilled;
}"""
PICTURES = """() => [...document.querySelectorAll("main img")].map(i => {
  const long = i.src.length > 80 && !i.src.startsWith("data:");
  return {
    src: long ? "…" + i.src.slice(-60) : i.src.slice(0, 80), alt: i.alt,
    width: i.naturalWidth, shown: i.getBoundingClientRect().width,
  };
})"""
# Every text of the page with less contrast than 4.5 : 1 to the colour behind it.
PALE = """() => {
  const parse = c => {
    const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const share = [0.2126, 0.7152, 0.0722];
  const light = c => c.map(v => linear(v / 255)).reduce((s, v, i) => s + v * share[i], 0);
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const known = new Map([[null, [[255, 255, 255], 1]]]);    // element: colour behind, opacity
  const behind = e => {
    if (!known.has(e)) {
      const style = getComputedStyle(e), [under, opacity] = behind(e.parentElement);
      known.set(e, [over(parse(style.backgroundColor), under), opacity * Number(style.opacity)]);
    }
    return known.get(e);
  };
  const pale = new Map();
  for (const e of document.querySelectorAll("main *")) {
    const texts = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim());
    const text = texts.join("");
    if (!text || !e.getClientRects().length || e.closest("annotation, script, style")) continue;
    const [back, opacity] = behind(e), c = parse(getComputedStyle(e).color);
    const front = over([...c.slice(0, 3), c[3] * opacity], back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), name = `${e.tagName}.${e.className}`;
    if (ratio < 4.5) pale.set(name, `${name} ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return [...pale.values()];
}"""


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    if os.environ.get("BOOK"):
        return (preview.ROOT / os.environ["BOOK"]).resolve()
    folder = tmp_path_factory.mktemp("book").resolve()
    preview.write(folder)
    return folder


@pytest.fixture
def visit(chrome, book):
    """A function that opens a page, `visit('nbs/22_photos', PHONE, …)`; page.asked are the
    addresses that it asked for, page.complaints its errors."""
    contexts = []

    def visit(name, size=DESK, **more):
        context = chrome.new_context(viewport=dict(width=size[0], height=size[1]), **more)
        contexts.append(context)
        context.set_default_timeout(120_000)                            # the machine may be busy
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        complain = page.complaints.append
        page.on("console", lambda m: complain(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: complain(str(e)))
        page.goto(name if ":" in name else (book / name).with_suffix(".html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()


def problems(page):
    "What is wrong with a page at this width."
    found = [f"spills: {s}" for s in page.evaluate(SPILLED)[:5]]
    pictures = page.evaluate(PICTURES)
    missing = [p["src"] for p in pictures if not p["width"] or not p["shown"]]
    wordless = [p["src"] for p in pictures if len(p["alt"]) < 10]
    found += [f"picture does not load: {src}" for src in missing]
    found += [f"picture without alternative text: {src}" for src in wordless]
    strange = [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]
    found += [f"asks for {url[:100]}" for url in strange]
    return found + [f"error: {c}" for c in page.complaints]


# ---------------------------------------------------------------- every page

@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_pages_fit_and_are_whole(visit, size):
    found, pictures = {}, 0
    for name in preview.names():
        page = visit(name.rsplit(".", 1)[0], size)
        pictures += len(page.evaluate(PICTURES))
        if p := problems(page):
            found[name] = p
        page.context.close()
    assert found == {}
    assert pictures > 150


PLANTED = """<meta name=viewport content="width=device-width"><main>
<div style="width: 600px">wide</div><img src="missing.png" alt="a missing picture">
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" alt="">
<img src="http://elsewhere.example/a.png" alt="a strange picture"></main>
<script>nothing()</script>"""
FAULTS = ("spills: DIV wide", "does not load: ", "missing.png",
          "without alternative text: data:image/gif", "asks for http://elsewhere.example",
          "nothing is not defined")


def test_faults_are_seen(visit, tmp_path, trap):
    """A wide box, a picture that is not there, one without words, one from elsewhere, a script that
    fails."""
    (tmp_path / "planted.html").write_text(PLANTED)
    page = visit((tmp_path / "planted.html").as_uri(), PHONE)
    page.wait_for_load_state("networkidle")
    told = "\n".join(problems(page))
    for fault in FAULTS:
        assert fault in told, (fault, told)
    assert any("elsewhere.example" in line for line in trap.seen)
    trap.seen.clear()


def test_code_and_printed_text_need_no_scrolling_on_a_wide_screen(visit):
    "100 characters (check_book.MAX_WIDTH) are what the page has room for."
    boxes, wide = 0, {}
    for name in preview.names():
        page = visit(name.rsplit(".", 1)[0], (1440, 900))
        found = page.evaluate("""() => [...document.querySelectorAll("main pre")].map(
            e => [e.scrollWidth - e.clientWidth, e.textContent.trim().slice(0, 60)])""")
        boxes += len(found)
        if over := [text for pixels, text in found if pixels > 1]:
            wide[name] = over
        page.context.close()
    assert wide == {} and boxes > 1000


def test_wide_things_scroll_in_their_own_box(visit):
    page = visit("nbs/28_official", PHONE)
    for what in ("table", "div.sourceCode", ":is(p, span):has(> math[display=block])"):
        reach = page.evaluate("""what => {
            const all = [...document.querySelectorAll("main " + what)];
            const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
            return all.filter(e => e.scrollWidth > e.clientWidth + 20 && scrolls(e))
                .map(e => { e.scrollLeft = 1e6; return e.scrollLeft; });
        }""", what)
        assert reach and min(reach) > 0, what


# ---------------------------------------------------------------- the slider

@pytest.fixture
def pair(book):
    files = (book / f"figures/portrait-{name}.jpg" for name in ("damaged", "restored"))
    return [np.array(Image.open(file).convert("RGB"), float) for file in files]


def seen(slider, at):
    "What the slider shows, at the size of its pictures, with the line at `at` percent."
    moved = "(e, at) => { e.value = at; e.dispatchEvent(new Event('input')); }"
    slider.locator("input").evaluate(moved, at)
    picture = Image.open(io.BytesIO(slider.screenshot())).convert("RGB")
    return np.array(picture.resize((448, 448)), float)


def line(slider):
    "Where the line is, in percent of the width."
    box, rule = slider.bounding_box(), slider.locator(".line").bounding_box()
    return 100 * (rule["x"] + rule["width"] / 2 - box["x"]) / box["width"]


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_slider_shows_one_picture_left_and_the_other_right(visit, pair, size):
    slider = visit("index", size).locator(".before-after .slider")
    named = "all => all.map(i => i.alt.length > 20 && !i.title)"
    assert slider.locator("img").evaluate_all(named) == [True, True]
    assert slider.locator("span:not(.line)").all_text_contents() == ["damaged", "restored"]
    near = lambda a, b, part: np.abs(a - b)[80:380, part].mean()
    before, after = pair
    for at, part, own, other in (
        (100, np.s_[100:400], before, after),
        (0, np.s_[100:400], after, before),
        (50, np.s_[100:190], before, after),
        (50, np.s_[260:330], after, before),
    ):
        view = seen(slider, at)
        assert near(view, own, part) < 3 < near(view, other, part), (at, part)


def test_slider_slides_by_mouse_keys_and_finger(visit):
    page = visit("index")
    slider = page.locator(".before-after .slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert abs(line(slider) - 50) < 1
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 120, steps=5)
    page.mouse.up()
    assert abs(line(slider) - 25) < 4
    page = visit("index")
    slider = page.locator(".before-after .slider")
    for _ in range(300):                                # the keyboard gets there by itself
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    assert slider.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    start = line(slider)
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert abs(line(slider) - start - step) < 0.3
    page.keyboard.press("End")
    assert abs(line(slider) - 100) < 0.5
    touched = visit("index", PHONE, has_touch=True, is_mobile=True)
    slider = touched.locator(".before-after .slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    touched.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 100)
    assert abs(line(slider) - 80) < 4


def test_without_scripts_the_pictures_stand_side_by_side(visit):
    page = visit("index", java_script_enabled=False)
    left, right = (page.locator(".before-after img").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert left["width"] == right["width"] > 200
    assert page.locator(".slider").count() == 0


# ---------------------------------------------------------------- enlarged pictures

@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_pictures_enlarge_and_close(visit, size):
    page = visit("nbs/22_photos", size)
    picture, dialog = page.locator("main figure img").nth(2), page.locator("dialog.enlarged")
    small = picture.bounding_box()["width"]
    focused = "document.activeElement.tagName"
    caption = page.locator("main figcaption").nth(2)
    inside = """() => {
        const b = document.querySelector("dialog.enlarged").getBoundingClientRect();
        return b.left >= 0 && b.right <= innerWidth && b.top >= 0 && b.bottom <= innerHeight;
    }"""
    ways = ("click", "Escape"), ("Enter", "Escape"), (" ", "button"), ("click", "picture")
    for opened, closed in ways:
        if opened == "click":
            picture.click()
        else:
            picture.press(opened)
        assert dialog.get_attribute("open") is not None
        large = dialog.locator("img")
        assert large.bounding_box()["width"] > 1.2 * small
        assert large.get_attribute("alt") == picture.get_attribute("alt")
        assert dialog.locator("p").text_content() in caption.text_content().strip()
        assert page.evaluate(inside)
        if closed == "Escape":
            page.keyboard.press("Escape")
        else:
            (dialog.locator("button") if closed == "button" else large).click()
        assert dialog.get_attribute("open") is None and page.evaluate(focused) == "IMG"
    assert page.locator(".slider img[role=button]").count() == 0


def test_enlarged_pictures_of_a_wide_sheet_can_be_seen_whole(visit):
    page = visit("nbs/19_evaluation", PHONE)
    page.locator("main figure img").last.click()
    assert page.locator("dialog.enlarged").evaluate("""d => {
        d.scrollTo(1e6, 1e6);
        const b = d.querySelector("img").getBoundingClientRect();
        return b.right <= innerWidth + 1 && b.width > 0;
    }""")


# ---------------------------------------------------------------- dark pages, paper

BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(visit, mode):
    found = {}
    for name in ("index", "nbs/02_degradation", "nbs/22_photos", "nbs/28_official", "nbs/glossary"):
        page = visit(name, color_scheme=mode)
        dark = page.evaluate(BACKGROUND) != "rgb(255, 255, 255)"
        assert dark == (mode == "dark")
        if pale := page.evaluate(PALE):
            found[name] = pale
    assert found == {}


def test_pictures_stay_on_white_in_the_dark(visit):
    page = visit("nbs/22_photos", color_scheme="dark")
    cards = page.locator("main figure img").evaluate_all("""all => all.map(i => {
        const style = getComputedStyle(i);
        return [style.backgroundColor, parseFloat(style.paddingLeft) > 4];
    })""")
    assert cards and all(c == ["rgb(255, 255, 255)", True] for c in cards)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_on_paper(visit, mode):
    page = visit("index", color_scheme=mode)
    page.emulate_media(media="print", color_scheme=mode)
    left, right = (page.locator(".slider img").nth(i) for i in (0, 1))
    a, b = left.bounding_box(), right.bounding_box()
    assert a["x"] + a["width"] <= b["x"] and a["y"] == b["y"]
    assert right.evaluate("i => getComputedStyle(i).clipPath") == "none"
    controls = page.locator(".slider input, .slider .line")
    displays = "all => all.map(e => getComputedStyle(e).display)"
    assert controls.evaluate_all(displays) == ["none", "none"]
    assert page.evaluate(PALE) == [] and page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    page = visit("nbs/28_official", (800, 1000), color_scheme=mode)
    page.emulate_media(media="print", color_scheme=mode)
    assert page.evaluate(PALE) == []
    # no line of code is cut off
    cut = "all => all.filter(c => c.scrollWidth > c.closest('pre').clientWidth + 2).length"
    assert page.locator("main pre code").evaluate_all(cut) == 0

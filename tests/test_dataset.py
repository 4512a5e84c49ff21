"""Component boxes, the folder of faces as a dataset, and the making of such a folder."""
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from torch.utils.data import DataLoader

from gfpgan_edu import cli, faces
from gfpgan_edu.degradation import PAPER, degrade, sample_params
from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import (COMPONENT_FIT, FFHQ_512, MANIFEST, PARTS, SUFFIXES, Face, FaceFolder,
                              boxes_from_components, component_boxes, face_components,
                              mirror_components, points_in_aligned, prepare, read_manifest,
                              read_official_landmarks, template, to_tensor)
from gfpgan_edu.pictures import read_image

few = settings(max_examples=25, deadline=None)
KNOWN = {"left_eye": (100.0, 200.0, 20.0), "right_eye": (300.0, 210.0, 30.0),
         "mouth": (220.0, 380.0, 50.0)}


# ---------------------------------------------------------------- boxes

def test_official_formula_by_hand():
    # half lengths of the eyes: 1.4 · 20 = 28, 1.4 · 30 = 42
    by_hand = [[73, 173, 128, 228], [259, 169, 342, 252], [171, 331, 270, 430]]
    boxes = boxes_from_components(KNOWN, 512)
    assert boxes.dtype == np.float32 and boxes.shape == (3, 4)
    assert_allclose(boxes, by_hand, atol=1e-4)
    assert_allclose(boxes_from_components(KNOWN, 128)[0], [18.25, 43.25, 32, 57], atol=1e-5)


def test_five_points_by_hand():
    "Eyes 100 px apart, mouth 80 px wide, nothing turned."
    points = [[200, 240], [300, 240], [250, 300], [210, 360], [290, 360]]
    fit = dict(eye_down=0.03, eye_half=0.2, mouth_down=0.05, mouth_half=0.5)
    c = face_components(points, 512, fit)
    assert_allclose([c[p] for p in PARTS], [[200, 243, 20], [300, 243, 20], [250, 365, 40]])
    small = face_components([[250, 240], [280, 240], [265, 260], [258, 290], [272, 290]], 512)
    assert [small[p][2] for p in PARTS] == [16, 16, 16]          # the official least


@few
@given(st.integers(32, 1024), st.floats(-0.3, 0.3), st.floats(0.6, 1.3), st.integers(0, 2**31))
def test_boxes_scale_with_the_picture(size, angle, scale, seed):
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    noise = np.random.default_rng(seed).normal(0, 5, (5, 2))
    points = (FFHQ_512 - 256) @ np.array([[a, b], [-b, a]]) + 256 + noise
    at_size = (points + 0.5) * size / 512 - 0.5
    boxes = component_boxes(points, 512)
    assert_allclose(component_boxes(at_size, size), boxes * size / 512, rtol=1e-5, atol=1e-4)
    assert_array_equal(boxes, boxes_from_components(face_components(points, 512), 512))


def test_boxes_hold_what_they_are_named_after():
    for size in (32, 512):
        boxes, rim = component_boxes(template(size), size), 3 * size / 512
        five = template(size) + 0.5                  # as boxes count: from the edge of the picture
        # the corners of the mouth are on the rim of the box
        for box, inside in zip(boxes, (five[:1], five[1:2], five[3:])):
            assert (box[:2] - rim < inside).all() and (inside < box[2:] + rim).all()
        assert boxes.min() > 0 and boxes.max() < size
        assert boxes[0, 2] < boxes[1, 0] and boxes[0, 3] < boxes[2, 1]


def test_mirror_is_the_official_one_and_gives_new_values():
    kept = {k: np.array(v) for k, v in KNOWN.items()}
    twice = mirror_components(mirror_components(kept))
    once = {"left_eye": (212, 210, 30), "right_eye": (412, 200, 20), "mouth": (292, 380, 50)}
    assert mirror_components(kept) == once
    for part in PARTS:
        assert_array_equal(kept[part], KNOWN[part])
        assert_array_equal(twice[part], KNOWN[part])


def test_mirroring_the_points_is_mirroring_the_components():
    points = FFHQ_512 + np.random.default_rng(0).normal(0, 6, (5, 2))
    mirrored = np.stack([511 - points[:, 0], points[:, 1]], 1)[[1, 0, 2, 4, 3]]
    there, ours = face_components(mirrored, 512), mirror_components(face_components(points, 512))
    for part in PARTS:               # the official 512 - x is one pixel beside the exact 511 - x
        assert_allclose(np.subtract(ours[part], there[part]), [1, 0, 0], atol=1e-9)


def test_constants_are_the_measured_ones():
    figures = Path(__file__).parent.parent / "figures"
    measured = json.loads((figures / "component_boxes.json").read_text())
    assert COMPONENT_FIT == measured["constants"]
    assert measured["fitted_faces"] > 250 and measured["measured_faces"] > 90
    assert all(measured["iou"][part]["median"] > 0.8 for part in PARTS)


# ---------------------------------------------------------------- the official file

def official(kind, numbers=(0, 7)):
    make = {
        "arrays": np.array,
        "scalars": lambda v: [np.float64(x) for x in v],
        "lists": list,
        "float32": lambda v: np.array(v, np.float32),
        "mixed": lambda v: [*np.array(v[:2]), 20],
    }[kind]
    return {f"{n:08d}": {part: make([x + n, y, half if kind != "mixed" else 20])
                         for part, (x, y, half) in KNOWN.items()} for n in numbers}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["arrays", "scalars", "lists", "float32", "mixed"])
def test_official_files_are_read(tmp_path, kind, zipped):
    torch.save(official(kind), tmp_path / "l.pth", _use_new_zipfile_serialization=zipped)
    read = read_official_landmarks(tmp_path / "l.pth")
    assert sorted(read) == [0, 7] and list(read[0]) == list(PARTS)
    assert read[7]["left_eye"] == (107, 200, 20)


@pytest.mark.parametrize("old, new", [
    (b"numpy._core", b"numpy.core"),
    (b"numpy.core", b"numpy._core"),
])
def test_official_files_of_old_and_new_numpy_are_read(tmp_path, old, new):
    plain = io.BytesIO()
    torch.save(official("scalars"), plain, _use_new_zipfile_serialization=False)
    assert b"cnumpy._core" in plain.getvalue() or b"cnumpy.core" in plain.getvalue()
    (tmp_path / "l.pth").write_bytes(plain.getvalue().replace(b"c" + old, b"c" + new))
    assert sorted(read_official_landmarks(tmp_path / "l.pth")) == [0, 7]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("hide", [
    lambda e: e,
    lambda e: {"00000000": {"left_eye": [e, 1, 2]}},
    lambda e: {"00000000": {"left_eye": np.array([e], object)}},
])
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_file_is_refused_and_not_run(tmp_path, hide, zipped):
    hidden = hide(Evil(tmp_path / "ran"))
    torch.save(hidden, tmp_path / "l.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"l\.pth: refused") as e:
        read_official_landmarks(tmp_path / "l.pth")
    assert not (tmp_path / "ran").exists() and "\n" not in str(e.value)
    plain = not isinstance(hidden, dict) or isinstance(hidden["00000000"]["left_eye"], list)
    assert ("mkdir" in str(e.value)) == plain


@pytest.mark.parametrize("content, reason", [
    ([1, 2], "is not"),
    ({"one": KNOWN}, "is not"),
    ({"00000000": {"left_eye": [1, 2, 3]}}, "right_eye"),
    ({"00000003": KNOWN | {"mouth": [1, 2]}}, "number 3"),
    ({"00000003": KNOWN | {"mouth": [1, 2, float("nan")]}}, "number 3"),
    ({"00000003": KNOWN | {"mouth": [1, 2, 0]}}, "number 3"),
    ({"0": KNOWN | {"mouth": None}}, "is not"),
])
def test_files_of_another_content_are_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "l.pth")
    with pytest.raises(ValueError, match=rf"l\.pth: .*{reason}"):
        read_official_landmarks(tmp_path / "l.pth")


def test_damaged_files_are_refused(tmp_path):
    torch.save(official("arrays"), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for n, content in enumerate((b"", b"hello", whole[:300], pickle.dumps(print, 2))):
        (tmp_path / f"{n}.pth").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{n}\.pth: refused"):
            read_official_landmarks(tmp_path / f"{n}.pth")
    with pytest.raises(ValueError, match="No such file"):
        read_official_landmarks(tmp_path / "none.pth")


# ---------------------------------------------------------------- the dataset

def write(path, image):
    assert cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


def smooth(seed, size=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("faces")
    for i in (3, 0, 4, 1, 2):
        write(out / f"{i:05d}.png", smooth(i))
    return out


@pytest.fixture
def no_threads():
    "A worker that is forked while OpenCV has threads may wait for them for ever."
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    yield
    cv2.setNumThreads(before)


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_an_item_is_what_the_class_says(folder):
    data = FaceFolder(folder, 64, boxes="template", flip=False, seed=5)
    item = data[2, 3]
    assert len(data) == 5 and set(item) == {"lq", "gt", "boxes", "index"} and item["index"] == 3
    rng = np.random.default_rng([5, 2, 3])
    rng.random()                                                 # the flip
    assert_array_equal(item["gt"], to_tensor(smooth(3))[0])
    damaged = degrade(smooth(3), sample_params(rng, PAPER.at(64)))
    assert_array_equal(item["lq"], to_tensor(damaged)[0])
    assert_array_equal(item["boxes"], component_boxes(template(64), 64))
    assert item["lq"].dtype == item["gt"].dtype == item["boxes"].dtype == torch.float32
    assert item["gt"].shape == (3, 64, 64)
    levels = item["lq"] * 127.5 + 127.5
    assert_allclose(levels, levels.round(), atol=1e-4)           # went through bytes


def test_same_key_same_bytes_other_epochs_seeds_and_pictures_differ(folder):
    data = FaceFolder(folder, 64, boxes="template", seed=1)
    items = {key: data[key] for key in [(0, 1), (1, 1), (2, 1), (0, 2)]}
    assert all(same(data[key], item) for key, item in items.items())
    assert same(data[1], items[0, 1]) and same(data[-4], items[0, 1])
    assert same(FaceFolder(folder, 64, boxes="template", seed=1)[[2, 1]], items[2, 1])
    other = FaceFolder(folder, 64, boxes="template", seed=2)[0, 1]
    lq = [item["lq"] for item in (*items.values(), other)]
    assert all(not torch.equal(a, b) for i, a in enumerate(lq) for b in lq[:i])
    for beyond in (5, -6, (0, 5)):
        with pytest.raises(IndexError):
            data[beyond]


def test_half_of_the_items_are_flipped(folder):
    data = FaceFolder(folder, 64, boxes=None, degraded=False)
    plain = to_tensor(smooth(2))[0]
    flips = [torch.equal(item["gt"], plain.flip(2)) for item in (data[e, 2] for e in range(200))]
    assert 70 < sum(flips) < 130 and set(data[0]) == {"gt", "index"}
    for e, flipped in enumerate(flips):
        assert torch.equal(data[e, 2]["gt"], plain.flip(2) if flipped else plain)
    still = FaceFolder(folder, 64, boxes=None, degraded=False, flip=False)
    assert all(torch.equal(still[e, 2]["gt"], plain) for e in range(20))


@pytest.mark.parametrize("options", [
    dict(num_workers=1),
    dict(num_workers=2),
    dict(num_workers=2, persistent_workers=True),
])
def test_any_number_of_workers_gives_the_same_stream(folder, no_threads, options):
    class Keys(list):
        "A sampler whose epoch the training loop sets."

        def __iter__(self):
            return iter([(self.epoch, i) for i in (4, 2, 0, 1, 3)])

        def __len__(self):
            return 5

    def stream(**options):
        keys = Keys()
        data = FaceFolder(folder, 32, boxes="template", seed=3)
        loader = DataLoader(data, batch_size=2, sampler=keys, **options)
        for keys.epoch in range(2):
            yield from loader

    straight, parallel = list(stream()), list(stream(**options))
    assert len(straight) == 6 and all(same(a, b) for a, b in zip(straight, parallel, strict=True))
    assert [b["index"].tolist() for b in straight[:3]] == [[4, 2], [0, 1], [3]]
    assert straight[0]["lq"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("source", ["manifest", "official"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_box_is_over_the_patch_flipped_or_not(tmp_path, source, size):
    """Each part is a patch of its own colour; in every epoch, on every asking, its box must hold
    just that colour."""
    parts = {"left_eye": (150.0, 200.0, 24.0), "right_eye": (330.0, 216.0, 30.0),
             "mouth": (220.0, 380.0, 50.0)}
    image, colours = np.zeros((256, 256, 3), np.uint8), np.eye(3, dtype=np.uint8) * 255
    patches = np.rint(boxes_from_components(parts, 256)).astype(int)
    for (x0, y0, x1, y1), colour in zip(patches, colours):
        image[y0:y1, x0:x1] = colour
    write(tmp_path / "00012.png", image)
    if source == "manifest":
        boxes = "manifest"
        entry = dict(file="00012.png", source="a.jpg", size=256, faces=1, landmarks="template",
                     components=parts)
        (tmp_path / MANIFEST).write_text(json.dumps(entry) + "\n")
    else:
        boxes = tmp_path / "l.pth"
        torch.save({"00000012": {k: np.array(v) for k, v in parts.items()}}, boxes)
    data, seen = FaceFolder(tmp_path, size, boxes=boxes), set()
    stored = data.components.copy()
    for epoch in [*range(10), *range(10)]:
        item = data[epoch, 0]
        red = item["gt"][0]
        # red, the left eye, is on the right
        flipped = bool(red[:, size // 2:].sum() > red[:, :size // 2].sum())
        seen.add(flipped)
        for k, (x0, y0, x1, y1) in enumerate(item["boxes"].round().int().tolist()):
            part = PARTS[k]
            # the left eye of a flipped face is the former right one
            colour = k if part == "mouth" or not flipped else 1 - k
            share = (item["gt"][:, y0:y1, x0:x1] > 0).float().mean((1, 2))
            assert share[colour] > 0.9 and share.sum() - share[colour] == 0, (epoch, part, flipped)
            outside = (item["gt"][colour] > 0).sum() - (item["gt"][colour, y0:y1, x0:x1] > 0).sum()
            assert outside < 0.12 * (item["gt"][colour] > 0).sum()
    assert seen == {True, False}
    assert_array_equal(data.components, stored)


def test_order_is_by_name_whatever_the_disk_says(folder, monkeypatch):
    want = [f"{i:05d}.png" for i in range(5)]
    real = os.scandir
    for order in (sorted, lambda v, key: sorted(v, key=key, reverse=True)):
        def scandir(path, order=order):
            return iter(order(real(path), key=lambda e: e.name))

        monkeypatch.setattr(faces.os, "scandir", scandir)
        data = FaceFolder(folder, 64, boxes=None, flip=False, degraded=False)
        assert data.names == want
        assert all(torch.equal(data[i]["gt"], to_tensor(smooth(i))[0]) for i in range(5))
        two = FaceFolder(folder, 64, boxes=None, names=["00003.png", "00001.png"])
        assert two.names == [want[1], want[3]]


def test_official_boxes_go_by_number_not_by_position(tmp_path):
    torch.save(official("arrays", range(20)), tmp_path / "l.pth")
    for n in (3, 11):
        write(tmp_path / f"{n}.png", smooth(n))
    data = FaceFolder(tmp_path, 512, boxes=str(tmp_path / "l.pth"), flip=False, degraded=False)
    assert data.names == ["11.png", "3.png"]                     # sorted as text
    assert_allclose([data[i]["boxes"][0, 0] for i in (0, 1)], [73 + 11, 73 + 3])
    # Python would read 00000_1 as the number 1
    write(tmp_path / "00000_1.png", smooth(1))
    with pytest.raises(ValueError, match=r"00000_1\.png: its name is not a number"):
        FaceFolder(tmp_path, 512, boxes=tmp_path / "l.pth")
    write(tmp_path / "77.png", smooth(1))
    with pytest.raises(ValueError, match=r"77\.png: no entry .*\(1 of 3"):
        FaceFolder(tmp_path, 512, boxes=tmp_path / "l.pth", names=["77.png", "3.png", "11.png"])


def test_pictures_of_any_size_and_kind(tmp_path):
    face = smooth(9, 96)
    write(tmp_path / "a.png", face)
    write(tmp_path / "b.jpg", cv2.resize(face, (48, 48), interpolation=cv2.INTER_AREA))
    write(tmp_path / "c.webp", cv2.resize(face, (200, 200)))
    Image.fromarray(face).convert("LA").save(tmp_path / "d.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    data = FaceFolder(tmp_path, 64, boxes="template", flip=False)
    assert data.names == ["a.png", "b.jpg", "c.webp", "d.png"]
    items = [data[i]["gt"] for i in range(4)]
    assert all(i.shape == (3, 64, 64) for i in items)
    assert all((i - items[0]).abs().mean() < 0.1 for i in items[1:3])
    reduced = cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
    assert_array_equal(items[0], to_tensor(reduced)[0])
    assert torch.equal(items[3][0], items[3][1])


PNG_KINDS = dict(
    plain=lambda im, f: im.save(f, "PNG"),
    interlaced_by_hand=lambda im, f: im.save(f, "PNG", compress_level=0),
    grey=lambda im, f: im.convert("L").save(f, "PNG"),
    palette=lambda im, f: im.quantize(64).save(f, "PNG"),
    alpha=lambda im, f: im.convert("RGBA").save(f, "PNG"),
    turned=lambda im, f: im.save(f, "PNG", exif=turned_by(6)),
    one_colour_clear=lambda im, f: im.save(f, "PNG", transparency=(1, 2, 3)),
    profile=lambda im, f: im.save(f, "PNG", dpi=(72, 72), icc_profile=b"not a profile"),
    jpeg=lambda im, f: im.save(f, "JPEG"),
    bmp=lambda im, f: im.save(f, "BMP"),
    sixteen_bits=lambda im, f: save_deep(im, f),
)


def turned_by(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def save_deep(im, file):
    file.write(cv2.imencode(".png", np.asarray(im)[..., ::-1].astype(np.uint16) * 257)[1].tobytes())


@pytest.mark.parametrize("kind", PNG_KINDS)
def test_the_quick_way_of_reading_is_the_slow_one(tmp_path, kind):
    """Which file is plain is decided by its content; whatever the way, the pixels are those of
    `read_image`."""
    image, path = Image.fromarray(smooth(5, 40)).crop((0, 0, 40, 33)), tmp_path / "a.png"
    with open(path, "wb") as file:
        PNG_KINDS[kind](image, file)
    assert faces._is_plain(path.read_bytes()) == (kind in ("plain", "interlaced_by_hand"))
    assert_array_equal(faces._read_face(path), read_image(path))
    if kind == "turned":
        assert faces._read_face(path).shape == (40, 33, 3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 3]), st.integers(0, 2**31), st.booleans())
def test_a_damaged_face_is_never_read_as_something_else(tmp_path_factory, compression, seed, cut):
    path, rng = tmp_path_factory.mktemp("d") / "a.png", np.random.default_rng(seed)
    faces._write_png(path, smooth(3, 32), compression)
    data = bytearray(path.read_bytes())
    where = int(rng.integers(8, len(data)))
    data[where] ^= 1 << rng.integers(8)
    path.write_bytes(data[:where] if cut else data)
    try:
        image = faces._read_face(path)
    except ValueError as e:
        assert "a.png: " in str(e)
    else:
        assert_array_equal(image, smooth(3, 32))         # a flipped bit that no pixel depends on


def test_draw_tells_what_an_item_is_made_with(folder):
    data = FaceFolder(folder, 64, boxes=None, seed=9)
    for key in [(0, 0), (3, 2), (5, -1)]:
        flipped, params = data.draw(*key)
        face = smooth(range(5)[key[1]])[:, ::-1] if flipped else smooth(range(5)[key[1]])
        assert_array_equal(data[key]["lq"], to_tensor(degrade(face, params))[0])
    with pytest.raises(IndexError):
        data.draw(0, 5)


def test_boxes_follow_a_folder_of_another_size(tmp_path):
    write(tmp_path / "a.png", smooth(0, 128))
    entry = dict(file="a.png", source="a.png", size=128, faces=1, landmarks="template",
                 components=KNOWN)
    (tmp_path / MANIFEST).write_text(json.dumps(entry) + "\n")
    for size in (32, 128, 256):
        item = FaceFolder(tmp_path, size, flip=False)[0]
        assert_array_equal(item["boxes"], boxes_from_components(KNOWN, size))


@pytest.mark.parametrize("spoil, reason", [
    (lambda d: (d / "00001.png").write_bytes(b"no picture"), "not a picture"),
    (lambda d: (d / "00001.png").write_bytes(b""), "is empty"),
    (lambda d: (d / "00001.png").write_bytes((d / "00002.png").read_bytes()[:500]),
     "cannot be read"),
    (lambda d: write(d / "00001.png", smooth(0)[:40]), "square"),
    (lambda d: (d / "00001.png").unlink(), "no such file"),
])
def test_a_bad_file_is_named(folder, tmp_path, spoil, reason):
    shutil.copytree(folder, tmp_path / "f")
    data = FaceFolder(tmp_path / "f", 64, boxes="template")
    spoil(tmp_path / "f")
    with pytest.raises(ValueError, match=rf"00001\.png: .*{reason}"):
        data[3, 1]


def test_a_bad_file_is_named_from_a_worker(folder, no_threads, tmp_path):
    shutil.copytree(folder, tmp_path / "f")
    data = FaceFolder(tmp_path / "f", 64, boxes="template")
    (tmp_path / "f/00001.png").write_bytes(b"no picture")
    batches = iter(DataLoader(data, num_workers=1, prefetch_factor=1))
    next(batches)
    with pytest.raises(ValueError, match=r"(?s)00001\.png: is not a picture"):
        next(batches)
    assert len(list(batches)) == 3                               # the worker lives on


def test_bad_folders_are_named(folder, tmp_path):
    for bad, reason in ((tmp_path / "none", "none: no such folder"),
                        (tmp_path, "no pictures"),
                        (folder, rf"{MANIFEST}: cannot be read \(no such file")):
        with pytest.raises(ValueError, match=reason):
            FaceFolder(bad, 64)
    with pytest.raises(ValueError, match=r"x\.png: no such picture \(1 of 2"):
        FaceFolder(folder, 64, boxes=None, names=["x.png", "00001.png"])
    with pytest.raises(ValueError, match="no names"):
        FaceFolder(folder, 64, boxes=None, names=[])
    for wrong in (dict(size=0), dict(size=64, seed=-1)):
        with pytest.raises(ValueError, match="needs a positive size"):
            FaceFolder(folder, boxes=None, **wrong)
    shutil.copytree(folder, tmp_path / "f")
    entry = dict(file="00001.png", source="s", size=64, faces=1, landmarks="template",
                 components=KNOWN)
    line = json.dumps(entry) + "\n"
    (tmp_path / "f" / MANIFEST).write_text(line)
    with pytest.raises(ValueError, match=rf"00000\.png: no entry in {MANIFEST} \(4 of 5"):
        FaceFolder(tmp_path / "f", 64)
    assert len(FaceFolder(tmp_path / "f", 64, names=("00001.png",))) == 1
    for damaged in ("{]\n", "[]\n", "{}\n", line.replace("mouth", "nose")):
        (tmp_path / "f" / MANIFEST).write_text(line + damaged + line)
        with pytest.raises(ValueError, match=f"{MANIFEST}: line 2 is damaged"):
            FaceFolder(tmp_path / "f", 64)


def test_a_scan_of_the_folder_needs_no_torch(folder):
    import subprocess
    import sys

    code = ("import sys; from gfpgan_edu.faces import FaceFolder; "
            f"assert len(FaceFolder({str(folder)!r}, 64, boxes='template')) == 5; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_pickled_it_gives_the_same(folder):
    data = FaceFolder(folder, 64, boxes="template")
    assert same(pickle.loads(pickle.dumps(data))[3, 2], data[3, 2])


# ---------------------------------------------------------------- making a folder

@pytest.fixture(scope="module")
def photo():
    return astronaut()[:300, 60:420]


@pytest.fixture
def photos(tmp_path, photo):
    "A folder of pictures, good and bad."
    source = tmp_path / "photos"
    (source / "deeper").mkdir(parents=True)
    write(source / "a.jpg", photo)
    write(source / "a.png", photo[:, ::-1])
    write(source / "deeper" / "a.JPG", cv2.resize(photo, None, fx=1.2, fy=1.2))
    write(source / "b.png", np.concatenate([photo, photo[:, ::-1]], 1))      # two faces
    Image.fromarray(photo).convert("L").save(source / "grey.png")
    Image.fromarray(photo).convert("RGBA").save(source / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
    lying.save(source / "turned.jpg", exif=exif, quality=95)
    write(source / "nobody.png", np.full((200, 200, 3), 90, np.uint8))
    (source / "empty.jpg").write_bytes(b"")
    (source / "broken.png").write_bytes((source / "b.png").read_bytes()[:3000])
    (source / "text.jpg").write_text("hello")
    (source / "readme.txt").write_text("hello")
    return source


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_folder_with_everything_in_it(photos, tmp_path):
    out = tmp_path / "out" / "faces"
    report = prepare(photos, out, 128, min_face=40, progress=False)
    entries = {e["file"]: e for e in read_manifest(out)}
    assert sorted(entries) == ["a.png", "a_1.png", "a_2.png", "b.png", "b_1.png", "clear.png",
                               "grey.png", "turned.png"]
    sources = {f: e["source"] for f, e in entries.items()}
    assert {f: s for f, s in sources.items() if f[0] == "a"} == {
        "a.png": "a.jpg", "a_1.png": "a.png", "a_2.png": "deeper/a.JPG"}
    assert list(sources.values()).count("b.png") == 2
    assert sorted(content(out)) == sorted([*entries, MANIFEST])
    assert (report.written, report.faces, report.skipped) == (8, 8, 0)
    assert report.no_face == [photos / "nobody.png"]
    assert {p.name for p, _ in report.unreadable} == {"empty.jpg", "broken.png", "text.jpg"}
    assert "is empty" in dict(report.unreadable)[photos / "empty.jpg"]
    assert all(str(photos) not in why for _, why in report.unreadable)

    data, first = FaceFolder(out, 128, flip=False), None
    for i, name in enumerate(data.names):
        e = entries[name]
        assert e["size"] == 128 and np.abs(np.array(e["landmarks"]) - template(128)).max() < 8
        assert_allclose(data[i]["boxes"], component_boxes(e["landmarks"], 128), atol=0.01)
        first = data[i]["gt"] if first is None else first
        if name in ("clear.png", "turned.png", "a_2.png"):                   # the same face
            assert (data[i]["gt"] - first).abs().mean() < 0.08, name


def test_small_faces_and_the_largest(photos, tmp_path, photo):
    with_small = np.full((300, 520, 3), 200, np.uint8)
    with_small[:150, :180] = cv2.resize(photo, (180, 150), interpolation=cv2.INTER_AREA)
    with_small[:, 160 + 20:] = photo[:, :340]
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "x.png", with_small)
    sizes = [f.box[2] - f.box[0] for f in faces.detect(with_small)]
    assert len(sizes) == 2 and sizes[0] > 80 > 45 > sizes[1] > 32
    cases = [
        (dict(min_face=0), 2),
        (dict(min_face=60), 1),
        (dict(min_face=0, largest=True), 1),
        (dict(min_face=500), 0),
        ({}, 2),
    ]
    for k, (options, written) in enumerate(cases):
        report = prepare(tmp_path / "one", tmp_path / f"out{k}", 128, progress=False, **options)
        assert (report.written, report.faces, len(report.no_face)) == (written, 2, written == 0)
    report = prepare(tmp_path / "one", tmp_path / "out9", 256, progress=False)
    assert report.written == 1                                   # 256 / 4 = 64 px at least


def test_compression_changes_files_and_no_pixel(tmp_path):
    (tmp_path / "s").mkdir()
    write(tmp_path / "s" / "a.png", smooth(1, 128))
    kilobytes = []
    for compression in (0, 1, 3, 9):
        out = tmp_path / f"c{compression}"
        prepare(tmp_path / "s", out, 128, aligned=True, detector=lambda image: [],
                compression=compression, progress=False)
        file = out / "a.png"
        kilobytes.append(file.stat().st_size / 1000)
        assert_array_equal(np.asarray(Image.open(file)), smooth(1, 128))
        assert faces._is_plain(file.read_bytes())
    assert 49 < kilobytes[0] < 50.5 and kilobytes[1] < 0.8 * kilobytes[0]
    assert kilobytes[1:] == sorted(kilobytes[1:], reverse=True)


def test_a_face_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a\.png: cannot be written \(No such file"):
        faces._write_png(tmp_path / "nowhere" / "a.png", smooth(1), 0)

    def disk_is_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", disk_is_full)
    with pytest.raises(ValueError, match=r"a\.png: cannot be written \(No space"):
        faces._write_png(tmp_path / "a.png", smooth(1), 0)
    assert list(tmp_path.iterdir()) == []


def test_killed_and_resumed_is_as_good_as_straight(photos, tmp_path):
    straight = tmp_path / "straight"
    prepare(photos, straight, 64, min_face=20, progress=False)
    lines = (straight / MANIFEST).read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    whole = b"".join(lines)
    two = next(i for i, line in enumerate(lines) if json.loads(line)["file"] == "b_1.png")
    starts = np.cumsum([0] + [len(line) for line in lines])
    cuts = [0, 10, starts[2] - 1, starts[2], starts[two], starts[two] + 30, starts[two + 1] - 1,
            len(whole)]
    for cut in cuts:
        out = tmp_path / f"cut{cut}"
        shutil.copytree(straight, out)
        (out / MANIFEST).write_bytes(whole[:cut])
        told = [json.loads(line) for line in whole[:cut].split(b"\n") if line.endswith(b"}}")]
        for late in {p.name for p in out.glob("*.png")} - {e["file"] for e in told}:
            (out / late).unlink()
        report = prepare(photos, out, 64, min_face=20, progress=False)
        sources = [e["source"] for e in told]
        assert content(out) == content(straight), cut
        complete = sum(sources.count(e["source"]) == e["faces"] for e in told)
        assert report.skipped == complete - (sources.count("b.png") == 2), cut
    calls = []

    def finds_nobody(image):
        calls.append(1)
        return []

    report = prepare(photos, straight, 64, detector=finds_nobody, progress=False)
    # asks again about nobody.png alone
    assert (report.written, report.skipped, len(calls)) == (0, 7, 1)


def test_killed_between_picture_and_manifest(photos, tmp_path, monkeypatch):
    prepare(photos, tmp_path / "straight", 64, min_face=20, progress=False)
    real, count = faces.json.dumps, []

    def dies(entry, **options):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real(entry, **options)

    monkeypatch.setattr(faces.json, "dumps", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(photos, tmp_path / "out", 64, min_face=20, progress=False)
    monkeypatch.undo()
    assert 1 <= len(read_manifest(tmp_path / "out")) < len(list((tmp_path / "out").glob("*.png")))
    prepare(photos, tmp_path / "out", 64, min_face=20, progress=False)
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_new_photos_are_added_and_nothing_is_overwritten(tmp_path, photo):
    (tmp_path / "s").mkdir()
    write(tmp_path / "s" / "m.png", photo)
    prepare(tmp_path / "s", tmp_path / "out", 64, progress=False)
    before = content(tmp_path / "out")
    # sorted before m.png; the same name on some disks
    write(tmp_path / "s" / "M.jpg", photo[:, ::-1])
    write(tmp_path / "s" / "m_1.png", photo[10:])
    report = prepare(tmp_path / "s", tmp_path / "out", 64, progress=False)
    after = content(tmp_path / "out")
    assert (report.written, report.skipped) == (2, 1)
    assert after["m.png"] == before["m.png"] and after[MANIFEST].startswith(before[MANIFEST])
    entries = read_manifest(tmp_path / "out")
    assert [e["file"] for e in entries] == ["m.png", "M_1.png", "m_1_1.png"]


def test_folders_that_cannot_be(tmp_path, photo, monkeypatch):
    (tmp_path / "s" / "out").mkdir(parents=True)
    write(tmp_path / "s" / "m.png", photo)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "o", 64)
    with pytest.raises(ValueError, match="among their sources"):
        prepare(tmp_path / "s", tmp_path / "s" / "out" / "..", 64)
    monkeypatch.chdir(tmp_path)
    # the results lie below the sources, and are no sources
    for source, out in ((tmp_path / "s", Path("s/out")), (Path("s"), tmp_path / "s/out"),
                        ("s/", "./s/out/")):
        prepare(source, out, 64, progress=False)
    assert [e["source"] for e in read_manifest(tmp_path / "s" / "out")] == ["m.png"]
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "m.png", photo)
    before = content(tmp_path / "mine")
    with pytest.raises(ValueError, match="mine: holds pictures of other origin"):
        prepare(tmp_path / "s", tmp_path / "mine", 64, progress=False)
    assert content(tmp_path / "mine") == before
    with pytest.raises(ValueError, match="64 px, not 128"):
        prepare(tmp_path / "s", tmp_path / "s" / "out", 128, progress=False)


def test_aligned_pictures(tmp_path, photo):
    source = tmp_path / "s"
    source.mkdir()
    points = faces.detect(photo)[0].landmarks
    crop = faces.align(photo, points, 300)[0]
    write(source / "00007.png", crop)
    write(source / "00008.png", np.full((64, 64, 3), 120, np.uint8))
    write(source / "00009.png", photo)
    report = prepare(source, tmp_path / "out", 128, aligned=True, progress=False)
    assert (report.written, report.no_face) == (2, [])
    (unreadable, reason), = report.unreadable
    assert unreadable.name == "00009.png" and "square" in reason
    found, blind = read_manifest(tmp_path / "out")
    assert blind["landmarks"] == "template" and found["file"] == "00007.png"
    assert_allclose(found["landmarks"], template(128), atol=4)
    expected = face_components(FFHQ_512, 512)
    for part in PARTS:
        assert_allclose(blind["components"][part], expected[part], atol=1e-3)
    written = cv2.imread(str(tmp_path / "out/00007.png"))[..., ::-1]
    assert_array_equal(written, cv2.resize(crop, (128, 128), interpolation=cv2.INTER_AREA))


def test_of_several_faces_in_an_aligned_picture_the_aligned_one_counts(photo):
    near, far = template(400) + 3, template(400) / 3
    empty, asked = np.zeros((400, 400, 3), np.uint8), []

    def at(points):
        "A face with these points, as it is in the copy of 256 px that is searched."
        return Face((0, 0, 1, 1), 1.0, (points + 0.5) * 256 / 400 - 0.5)

    def finds_both(image):
        asked.append(image.shape)
        return [at(far), at(near)]

    assert_allclose(points_in_aligned(empty, finds_both), near)
    assert asked == [(256, 256, 3)]
    assert points_in_aligned(empty, lambda image: [at(far)]) is None
    assert points_in_aligned(np.zeros((20, 20, 3), np.uint8)) is None


def test_the_same_suffixes_as_the_command_line():
    assert SUFFIXES == cli.SUFFIXES

"""Picture files: what people have goes in, the whole of it comes out again, and what cannot is one
clear sentence."""
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzz import camera_notes, ink_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms

from gfpgan_edu import pictures
from gfpgan_edu.examples import astronaut
from gfpgan_edu.pictures import (MAX_BYTES, UPRIGHT, PhotoError, Picture, read_image, read_picture,
                                 to_rgb, write_image, write_picture)

T, PROFILE = Image.Transpose, ink_profile()


@pytest.fixture(scope="module")
def photo():
    return astronaut()


@pytest.fixture(scope="module")
def small(photo):
    return Image.fromarray(photo[:60, 200:240])


# ---------------------------------------------------------------- reading

@pytest.mark.parametrize("tag, undone_by", [
    (1, None), (2, T.FLIP_LEFT_RIGHT), (3, T.ROTATE_180), (4, T.FLIP_TOP_BOTTOM),
    (5, T.TRANSPOSE), (6, T.ROTATE_90), (7, T.TRANSVERSE), (8, T.ROTATE_270)])
def test_photos_are_turned_upright(tmp_path, small, tag, undone_by):
    exif = Image.Exif()
    exif[0x0112] = tag
    (small if undone_by is None else small.transpose(undone_by)).save(tmp_path / "a.png", exif=exif)
    assert_array_equal(read_image(tmp_path / "a.png"), small)
    with Image.open(tmp_path / "a.png") as im:
        assert_array_equal(to_rgb(im), small)


def test_a_broken_exif_block_does_not_lose_the_picture(tmp_path, small):
    small.save(tmp_path / "a.png", exif=b"Exif\x00\x00no such thing")
    assert_array_equal(read_image(tmp_path / "a.png"), small)
    exif = Image.Exif()
    exif[0x0100], exif[0x010E], exif[0x0112] = 8, "abc", 6
    damaged = bytearray(exif.tobytes())
    # the width's type: the orientation can still be read, but not written again
    damaged[damaged.index(b"\x01\x00\x00\x04") + 3] = 1
    small.transpose(T.ROTATE_90).save(tmp_path / "b.png", exif=bytes(damaged))
    assert_array_equal(read_image(tmp_path / "b.png"), small)


def test_a_png_whose_sums_do_not_agree_is_refused_wherever_its_pixels_are_damaged(tmp_path):
    "Pillow decodes without the sums, and some damage it shows as if it were the picture."
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
    whole = np.kron(blocks, np.ones((4, 4, 1))).astype(np.uint8)
    Image.fromarray(whole).save(path := tmp_path / "a.png")
    data, shown = path.read_bytes(), 0
    at = data.index(b"IDAT") + 4
    for bit in range(8 * int.from_bytes(data[at - 8:at - 4], "big")):
        i = at + bit // 8
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << bit % 8]) + data[i + 1:])
        with suppress(Exception), Image.open(path) as im:
            shown += not np.array_equal(im, whole)
        with pytest.raises(PhotoError, match="a.png: cannot be read .its checksums do not agree"):
            read_image(path)
    assert shown > 5                       # the decoder alone lets some through


@pytest.mark.parametrize("exif", [None, b"Exif\x00\x00no such thing"])
def test_damaged_pixels_of_a_png_are_an_error_not_taken_for_a_broken_block(tmp_path, small, exif):
    small.save(tmp_path / "a.png", **dict(exif=exif) if exif else {}, compress_level=0)
    data = bytearray((tmp_path / "a.png").read_bytes())
    # the kind of filter of the first row: there are five
    data[data.index(b"IDAT") + 11] = 77
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PhotoError, match="a.png: cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(tmp_path, small, mode):
    if mode == "P":
        picture = small.quantize(256)
    elif mode == "LAB":
        picture = Image.new("LAB", (40, 60), (128, 128, 128))
    else:
        picture = small.convert(mode)
    # some versions of Pillow cannot read the YCbCr TIFF that they wrote
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tif")
    picture.save(path)
    got = read_image(path)
    assert got.dtype == np.uint8 and got.shape == (60, 40, 3)
    if mode in ("P", "RGBA", "CMYK"):
        assert np.abs(got.astype(int) - small).mean() < 3
    if mode in ("L", "LA"):
        assert_array_equal(got[..., 1], small.convert("L"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)).save(path)
    assert read_image(path)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 117, 255)]


def test_transparency_is_dropped_and_16_bit_colour_reduced(tmp_path, small):
    rgba = small.convert("RGBA")
    rgba.putalpha(0)
    rgba.save(tmp_path / "a.png")
    assert_array_equal(read_image(tmp_path / "a.png"), small)
    cv2.imwrite(str(tmp_path / "deep.png"), np.asarray(small)[..., ::-1].astype(np.uint16) * 257)
    assert_array_equal(read_image(tmp_path / "deep.png"), small)


def files(folder, small):
    "Bad inputs: name -> the reason that must be given."
    whole = io.BytesIO()
    small.save(whole, "JPEG")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "half.jpg").write_bytes(whole.getvalue()[:-300])
    (folder / "two\nlines.png").write_text("x")
    (folder / "folder.png").mkdir()
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
    return {"text.jpg": "not a picture", "empty.png": "is empty", "half.jpg": "truncated",
            "two\nlines.png": "not a picture", "folder.png": "is a folder",
            "float.tif": "floating-point", "gone.jpg": "no such file",
            "text.jpg/inside.jpg": "not a directory", "n" * 300 + ".jpg": "name too long",
            "nul\0.jpg": "cannot be read"}


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, small):
    for name, reason in files(tmp_path, small).items():
        with pytest.raises(PhotoError) as e:
            read_image(tmp_path / name)
        said = str(e.value)
        assert str(tmp_path / name) in said and reason in said.lower(), said


def test_too_many_pixels_are_refused_and_many_are_read_in_silence(tmp_path, small, monkeypatch):
    small.save(tmp_path / "a.png")                           # 2400 pixels
    for module, name, most in ((pictures, "MAX_PIXELS", 2399), (Image, "MAX_IMAGE_PIXELS", 1000)):
        with monkeypatch.context() as m:
            m.setattr(module, name, most)
            with pytest.raises(PhotoError, match="more than .* million"):
                read_image(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)     # Pillow warns from here to twice that
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(read_image(tmp_path / "a.png"), small)


# ---------------------------------------------------------------- writing

@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.b.bmp", "a.tif", "a.TIFF"])
def test_lossless_formats_come_back_as_they_were(tmp_path, photo, name):
    write_image(tmp_path / "new" / "folder" / name, photo[:40, :30])
    assert_array_equal(read_image(tmp_path / "new" / "folder" / name), photo[:40, :30])
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_formats_lose_little(tmp_path, photo, name):
    write_image(tmp_path / name, photo)
    assert np.abs(read_image(tmp_path / name).astype(int) - photo).mean() < 2.5


@pytest.mark.parametrize("name, reason", [
    ("a.xyz", ".xyz"), ("a", "without a suffix"), ("a.psd", ".psd"), ("a.xbm", "cannot be written"),
    ("file/a.png", "cannot be written"), ("folder.png", "cannot be written")])
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, photo, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PhotoError) as e:
        write_image(tmp_path / name, photo)
    assert str(tmp_path / name) in str(e.value) and reason in str(e.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder.png"]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_write_that_breaks_off_keeps_the_older_result(tmp_path, photo, monkeypatch, trouble):
    write_image(tmp_path / "a.png", photo[:9, :9])

    def break_off(self, file, *args, **kw):
        file.write(b"half of")
        raise trouble

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(KeyboardInterrupt if trouble is KeyboardInterrupt else PhotoError):
        write_image(tmp_path / "a.png", photo)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert_array_equal(read_image(tmp_path / "a.png"), photo[:9, :9])


# ---------------------------------------------------------------- what comes along with the pixels

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]
HOLD_ALL = ["png", "tif", "webp", "avif"]


def tags(data):
    "(IFD 0 without pointers, camera's IFD, GPS) of EXIF bytes."
    exif = Image.Exif()
    exif.load(data or b"")
    head = {k: v for k, v in exif.items() if k not in (0x8769, 0x8825)}
    return head, dict(exif.get_ifd(0x8769)), dict(exif.get_ifd(0x8825))


@pytest.fixture
def full(small):
    "A picture of 40 × 60 pixels with all that a picture can have."
    rgba = small.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(small.size))
    return rgba, dict(exif=camera_notes(6), icc_profile=SRGB)


@pytest.mark.parametrize("suffix", HOLD_ALL)
def test_alpha_profile_camera_and_place_are_kept_and_the_orientation_is_done(tmp_path, full,
                                                                             suffix):
    rgba, blocks = full
    options = dict(webp=dict(lossless=True, exact=True), avif=dict(quality=100)).get(suffix, {})
    rgba.save(tmp_path / f"a.{suffix}", **blocks, **options)
    picture = read_picture(tmp_path / f"a.{suffix}")
    pixels, alpha = picture.pixels.astype(int), picture.alpha.astype(int)
    upright = np.rot90(np.asarray(rgba), -1)
    assert pixels.shape == (40, 60, 3) and np.abs(pixels - upright[..., :3]).mean() < 2
    assert np.abs(alpha - upright[..., 3]).max() <= 2
    assert picture.icc == SRGB and not picture.grey and picture.notes == ()
    head, camera, place = tags(picture.exif)
    assert head == {0x10F: "Maker", 0x132: "2020:01:01 00:00:00"}
    assert camera == {0x9003: "2020:01:01 00:00:00", 0x927C: b"maker's note"}
    assert place == {1: "N", 2: (48.0, 12.0, 3.5)}
    for other in HOLD_ALL:                 # and out of every format into every other
        write_picture(tmp_path / f"b.{other}", picture)
        back = read_picture(tmp_path / f"b.{other}")
        assert tags(back.exif) == (head, camera, place) and back.icc == SRGB
        assert np.abs(back.alpha - alpha).max() <= 2
        assert np.abs(back.pixels - pixels).mean() < (0.01 if other in ("png", "tif") else 3)


def test_what_a_format_cannot_hold_is_left_out_without_an_error(tmp_path, full):
    rgba, blocks = full
    pixels = np.asarray(rgba)
    picture = Picture(pixels[..., :3], pixels[..., 3], icc=SRGB, exif=blocks["exif"])
    for suffix, *kept in (("jpg", False, True, True), ("bmp", False, False, False),
                          ("gif", True, False, False)):
        write_picture(tmp_path / f"a.{suffix}", picture)
        back = read_picture(tmp_path / f"a.{suffix}")
        assert [v is not None for v in (back.alpha, back.icc, back.exif)] == kept
    long = Image.Exif()
    long[0x10E] = "x" * 70_000             # a JPEG's segment ends at 65,533 bytes
    too_long = replace(picture, exif=long.tobytes(), icc=SRGB + bytes(17_000_000))
    write_picture(tmp_path / "long.jpg", too_long)
    back = read_picture(tmp_path / "long.jpg")
    assert back.exif is None and back.icc is None
    write_picture(tmp_path / "long.png", replace(picture, exif=long.tobytes()))
    assert tags(read_picture(tmp_path / "long.png").exif)[0] == {0x10E: "x" * 70_000}


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK"])
def test_tiffs_are_turned_once(tmp_path, small, tag, mode):
    """Pillow turns them itself while loading, and mixes the pixels up where it maps the file into
    memory."""
    exif = Image.Exif()
    exif[0x112] = tag
    im = small.convert(mode)
    undone_by = {6: T.ROTATE_90, 8: T.ROTATE_270}.get(tag, UPRIGHT.get(tag))
    (im if tag == 1 else im.transpose(undone_by)).save(tmp_path / "a.tif", exif=exif)
    assert_array_equal(read_picture(tmp_path / "a.tif").pixels, im.convert("RGB"))


def test_tags_that_describe_the_stored_pixels_are_not_kept(tmp_path, small):
    small.save(tmp_path / "a.tif", compression="tiff_lzw", resolution=300)
    head, _, _ = tags(read_picture(tmp_path / "a.tif").exif)
    assert set(head) <= {0x11A, 0x11B, 0x128} and head[0x11A] == 300


def test_a_damaged_exif_block_is_said(tmp_path, small):
    small.save(tmp_path / "a.png", exif=b"Exif\x00\x00no such thing")
    picture = read_picture(tmp_path / "a.png")
    assert picture.exif is None and picture.notes == ("its EXIF block is damaged and is not kept",)


@pytest.mark.parametrize("make", [
    lambda s, a: (s.convert("RGBA"), {}),
    lambda s, a: (s.convert("LA"), {}),
    lambda s, a: (s.quantize(8), dict(transparency=bytes(range(8)))),
    lambda s, a: (s.quantize(8), dict(transparency=3)),
    lambda s, a: (s, dict(transparency=s.getpixel((5, 5)))),
    lambda s, a: (s.convert("L"), dict(transparency=s.convert("L").getpixel((5, 5)))),
])
def test_every_kind_of_transparency_is_read_and_written(tmp_path, small, make):
    im, options = make(small, None)
    if im.mode in ("RGBA", "LA"):
        im.putalpha(Image.linear_gradient("L").resize(small.size))
    im.save(tmp_path / "a.png", **options)
    with Image.open(tmp_path / "a.png") as again:
        want = np.asarray(again.convert("RGBA"))
    picture = read_picture(tmp_path / "a.png")
    assert 0 < (picture.alpha < 255).mean() and picture.grey == (im.mode in ("L", "LA"))
    write_picture(tmp_path / "b.png", picture)
    for p in (picture, read_picture(tmp_path / "b.png")):
        assert_array_equal(np.dstack([p.pixels, p.alpha]), want)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P"])
def test_grey_in_is_grey_out_even_where_colour_was_painted(tmp_path, small, mode):
    grey = small.convert("L")
    if mode == "I;16":
        im = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    else:
        im = grey.quantize(256) if mode == "P" else grey.convert(mode)
    im.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey and (picture.pixels == picture.pixels[..., :1]).all()
    if mode != "1":
        assert_array_equal(picture.pixels[..., 0], grey)
    painted = replace(picture, pixels=picture.pixels // 2 + np.array([0, 40, 90], np.uint8))
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp"):
        write_picture(tmp_path / f"b.{suffix}", painted)
        with Image.open(tmp_path / f"b.{suffix}") as im:
            if suffix == "webp":
                assert im.mode == "RGB"
            elif suffix != "gif":
                assert im.mode == ("LA" if mode == "LA" and suffix in ("png", "tif") else "L")
        back = read_picture(tmp_path / f"b.{suffix}").pixels.astype(int)
        assert np.ptp(back, axis=2).max() <= (4 if suffix == "webp" else 0)


def test_a_profile_stays_with_the_pixels_it_is_for(tmp_path, small):
    assert PROFILE[16:20] == b"CMYK"
    for mode, icc, kept in [
            ("RGB", SRGB, True), ("RGB", GREY, False), ("L", GREY, True), ("L", SRGB, False),
            ("CMYK", PROFILE, False), ("RGB", PROFILE, False), ("RGB", b"nonsense" * 40, False),
            ("RGB", SRGB[:90], False)]:
        small.convert(mode).save(tmp_path / "a.tif", icc_profile=icc)
        picture = read_picture(tmp_path / "a.tif")
        assert (picture.icc == icc) == kept, (mode, icc[16:20])
        assert kept == (picture.icc is not None), (mode, icc[16:20])
        # nor does the writer believe what it is told
        write_picture(tmp_path / "b.png", replace(picture, icc=icc))
        with Image.open(tmp_path / "b.png") as im:
            assert (im.info.get("icc_profile") == icc) == kept
    grey = Picture(np.asarray(small), grey=True, icc=GREY)
    write_picture(tmp_path / "c.webp", grey)                 # WebP has no grey
    with Image.open(tmp_path / "c.webp") as im:
        assert im.mode == "RGB" and "icc_profile" not in im.info


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_ink_becomes_colour_by_its_profile(tmp_path, suffix):
    patches = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    ink = Image.fromarray(patches.repeat(16, 0).repeat(16, 1), "CMYK")
    options = dict(quality=100) if suffix == "jpg" else {}
    for profile, want in ((PROFILE, [255, 118, 118, 0]), (PROFILE[:300], [255, 0, 255, 0]),
                          (None, [255, 0, 255, 0])):
        about = dict(icc_profile=profile) if profile else {}
        ink.save(tmp_path / f"a.{suffix}", **about, **options)
        picture = read_picture(tmp_path / f"a.{suffix}")
        assert np.abs(picture.pixels[8, 8::16, 0].astype(int) - want).max() <= 4
        assert picture.icc is None and len(picture.notes) == 1
        assert ("by its profile" if profile == PROFILE else "a guess") in picture.notes[0]


def test_a_later_frame_that_is_damaged_does_not_cost_the_first(tmp_path, small):
    for name in ("a.gif", "a.png"):
        later = [small.rotate(90), small.rotate(180)]
        small.save(tmp_path / name, save_all=True, append_images=later)
        want = read_picture(tmp_path / name).pixels
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-400])
        assert_array_equal(read_picture(tmp_path / name).pixels, want)


def test_what_the_result_cannot_hold_is_said(tmp_path, small):
    deep = np.asarray(small).astype(np.uint16) * 257
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.tif", compression="tiff_adobe_deflate")
    alpha = np.dstack([deep, deep[..., :1]])
    for name, data in (("colour.png", deep), ("colour.tif", deep), ("alpha.png", alpha)):
        cv2.imwrite(str(tmp_path / name), data)
    frames = [small, small.rotate(90), small.rotate(180)]
    for name in ("film.gif", "film.webp", "film.png", "pages.tif", "phone.mpo"):
        options = dict(lossless=True) if "webp" in name else {}
        later = [f.copy() for f in frames[1:]]
        small.save(tmp_path / name, save_all=True, append_images=later, **options)
    small.save(tmp_path / "photo.jpg", "PNG")
    small.save(tmp_path / "plain.png")
    expected = {
        "grey": "16 bits a channel, the result has 8",
        "colour": "16 bits a channel, the result has 8",
        "alpha": "16 bits a channel, the result has 8",
        "film": "animated, the first of 3 frames",
        "pages": "the first of 3 pictures in the file",
        "phone": "the first of 3 pictures in the file",
        "photo": "named .jpg, but it is a PNG file",
        "plain": None,
    }
    for path in tmp_path.iterdir():
        picture, want = read_picture(path), expected[path.stem]
        assert picture.notes == ((want,) if want else ()), path.name
        if path.suffix not in (".mpo", ".gif") and path.stem != "grey":
            swapped = path.stem in ("colour", "alpha")       # OpenCV writes blue first
            assert_array_equal(picture.pixels, np.asarray(small)[..., ::-1] if swapped else small)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans(),
       st.sampled_from(["png", "tif"]), st.integers(0, 2**32 - 1))
def test_any_picture_comes_back_as_it_was_written(tmp_path_factory, h, w, alpha, grey, suffix,
                                                  seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
    cover = rng.integers(0, 256, (h, w), np.uint8) if alpha else None
    picture = Picture(pixels[..., :1].repeat(3, 2) if grey else pixels, cover, grey)
    path = tmp_path_factory.mktemp("any") / f"a.{suffix}"
    write_picture(path, picture)
    back = read_picture(path)
    assert_array_equal(back.pixels, picture.pixels)
    assert back.grey == grey and (back.alpha is None) == (not alpha)
    assert not alpha or (back.alpha == picture.alpha).all()


# ---------------------------------------------------- files that mean harm, or that met with it

def png_of(width, height, rows=b""):
    "A PNG that claims this size."
    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def refused(path, reason):
    with pytest.raises(PhotoError) as e:
        read_picture(path)
    said = str(e.value)
    assert said.startswith(f"{path}: ") and reason in said, said
    assert "\n" not in said.removeprefix(str(path)), said


def test_pipes_devices_loops_and_files_without_leave_are_refused_at_once(tmp_path, small):
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "is a pipe or a device")
    refused(Path("/dev/zero"), "is a pipe or a device")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "symbolic link")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "nowhere.png", "no such file")
    small.save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    root = os.geteuid() == 0
    try:
        if root:                           # who may read anything
            os.seteuid(65534)
        refused(tmp_path / "secret.png", "permission denied")
    finally:
        if root:
            os.seteuid(0)


def test_a_file_beyond_the_limit_is_not_opened(tmp_path):
    with open(tmp_path / "large.png", "wb") as f:
        f.write(png_of(8, 8))
        f.truncate(MAX_BYTES + 1)          # takes no place on the disk
    refused(tmp_path / "large.png", "more than 1000")


@pytest.mark.parametrize("name", ["two words.png", "Müller 東京 🙂.png", "two\nlines.png", " .png",
                                  "%s{0}.png", "-rf.png"])
def test_any_name_is_a_good_name(tmp_path, small, name):
    write_image(tmp_path / name, np.asarray(small))
    assert_array_equal(read_image(tmp_path / name), small)
    (tmp_path / name).write_text("no picture")
    refused(tmp_path / name, "not a picture")


@pytest.mark.parametrize("shape", [(1, 1), (2, 100_000), (100_000, 2), (1, 65_000)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_smallest_and_the_longest(tmp_path, shape, suffix):
    long = {"jpg": 65_500, "webp": 16_383}.get(suffix, 10**9)
    path, picture = tmp_path / f"a.{suffix}", np.full((*shape, 3), 77, np.uint8)
    if max(shape) > long:
        with pytest.raises(PhotoError, match="a side"):
            write_image(path, picture)
        assert not list(tmp_path.iterdir())
    else:
        write_image(path, picture)
        back = read_image(path)
        assert back.shape == picture.shape and np.abs(back.astype(int) - picture).max() <= 2


MEMORY = """
import sys
sys.path.append(sys.argv[1])
from peak import peak
from gfpgan_edu.pictures import PhotoError, read_picture
read_picture(sys.argv[2])
before = peak()
for path in sys.argv[3:]:
    try:
        print("read", read_picture(path).pixels.shape)
    except PhotoError as e:
        print(str(e).removeprefix(path))
print(peak() - before)
"""


def memory_of_reading(*paths):
    "(what was said of each, bytes above reading the first), in a process of its own."
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, grown = run.stdout.splitlines()
    return said, int(grown)


def test_bombs_are_refused_by_their_headers(tmp_path, small):
    small.save(tmp_path / "small.png")
    (tmp_path / "bomb.png").write_bytes(png_of(50_000, 50_000, bytes(10**7)))
    (tmp_path / "giant.png").write_bytes(png_of(2**31 - 1, 2**31 - 1))
    (tmp_path / "flat.png").write_bytes(png_of(0, 5))
    for suffix, where in (("gif", 6), ("bmp", 18), ("tif", None)):
        small.save(tmp_path / f"bomb.{suffix}")
        data = bytearray((tmp_path / f"bomb.{suffix}").read_bytes())
        if suffix == "gif":
            data[6:10] = struct.pack("<2H", 65_535, 65_535)
        elif suffix == "bmp":
            data[18:26] = struct.pack("<2i", 40_000, 40_000)
        else:
            for tag in (256, 257):
                at = data.index(struct.pack("<HH", tag, 4))
                data[at + 8:at + 12] = struct.pack("<I", 40_000)
        (tmp_path / f"bomb.{suffix}").write_bytes(data)
    bad = ("bomb.png", "giant.png", "flat.png", "bomb.gif", "bomb.bmp", "bomb.tif")
    said, grown = memory_of_reading(tmp_path / "small.png", *(tmp_path / name for name in bad))
    assert len(said) == 6 and all("million" in line for i, line in enumerate(said) if i != 2), said
    assert grown < 50_000_000, grown


def test_50_million_pixels_are_read_in_bounded_memory(tmp_path, small):
    small.save(tmp_path / "small.png")
    Image.new("RGB", (8660, 5774), (90, 120, 30)).save(tmp_path / "large.jpg")
    Image.new("RGBA", (4000, 3000), (90, 120, 30, 7)).save(tmp_path / "alpha.png", compress_level=1)
    Image.fromarray(np.zeros((3000, 4000), np.uint16)).save(tmp_path / "deep.tif")
    for name, h, w, most in (("large.jpg", 5774, 8660, 12), ("alpha.png", 3000, 4000, 17),
                             ("deep.tif", 3000, 4000, 20)):
        said, grown = memory_of_reading(tmp_path / "small.png", tmp_path / name)
        assert said == [f"read ({h}, {w}, 3)"]
        assert grown < most * h * w, f"{grown / h / w:.1f} bytes for a pixel"


def test_eight_threads_read_and_write_and_leave_no_trace(tmp_path, photo):
    before = list(warnings.filters)

    def work(i):
        for j in range(6):
            write_image(tmp_path / f"own-{i}.png", photo[:20 + i, :30])
            write_image(tmp_path / "same.png", photo[:20, :30])
            assert_array_equal(read_image(tmp_path / f"own-{i}.png"), photo[:20 + i, :30])
            assert_array_equal(read_image(tmp_path / "same.png"), photo[:20, :30])
        return i

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    assert warnings.filters == before and len(list(tmp_path.iterdir())) == 9


# ---------------------------------------------------------------- what cannot be written

@pytest.mark.parametrize("bad", [
    np.full((4, 4, 3), np.nan), np.full((4, 4, 3), np.inf, np.float32),
    np.zeros((4, 4, 3), np.int64), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8), None, [[1]], "a"])
def test_what_is_no_picture_is_not_written(tmp_path, bad):
    for suffix in ("png", "jpg"):
        with pytest.raises(PhotoError, match="needs uint8 H×W×3") as e:
            write_image(tmp_path / f"a.{suffix}", bad)
        assert str(tmp_path) in str(e.value) and not list(tmp_path.iterdir())


def test_alpha_of_another_size_is_not_written(tmp_path, photo):
    for alpha in (np.zeros((5, 6), np.uint8), np.zeros((6, 5)), np.zeros((6, 5, 1), np.uint8)):
        with pytest.raises(PhotoError, match="alpha is"):
            write_picture(tmp_path / "a.png", Picture(photo[:6, :5], alpha))
    assert not list(tmp_path.iterdir())


def test_a_written_file_has_the_permissions_of_any_other(tmp_path, photo):
    write_image(tmp_path / "a.png", photo[:5, :5])
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode

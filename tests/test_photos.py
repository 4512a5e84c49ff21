"""From file to restored file: reading, writing, the way back into the photo, the whole."""
import io
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from gfpgan_edu import photos
from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import Face, align, invert, similarity, template
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.photos import NoFace, RestoreResult, face_mask, paste, restore, unalign
from gfpgan_edu.pictures import PhotoError, read_image, write_image
from gfpgan_edu.weights import WeightsError, save

T = Image.Transpose
POINTS = np.array([[204.2, 100.8], [246.1, 102.9], [223.9, 127.9], [201.0, 138.9], [244.3, 141.3]])        # of the astronaut's face


def by_hand(*shifts):
    "A detector that finds the astronaut's face, shifted."
    return lambda image: [Face((0.0, 0.0, 1.0, 1.0), 1.0, POINTS + s) for s in shifts or [(0, 0)]]


class Known(torch.nn.Module):
    "Changes nothing, or paints the face in one colour; counts its calls."

    def __init__(self, size, value=None, dtype=torch.float32):
        super().__init__()
        self.config, self.value, self.calls, self.weight = SimpleNamespace(size=size), value, 0, torch.nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x):
        self.calls += 1
        assert x.dtype == self.weight.dtype
        return (x if self.value is None else torch.full_like(x, self.value)), []


@pytest.fixture(scope="module")
def photo():
    return astronaut()


@pytest.fixture(scope="module")
def small(photo):
    return Image.fromarray(photo[:60, 200:240])


# ---------------------------------------------------------------- reading

@pytest.mark.parametrize("tag, undone_by", [(1, None), (2, T.FLIP_LEFT_RIGHT), (3, T.ROTATE_180), (4, T.FLIP_TOP_BOTTOM), (5, T.TRANSPOSE), (6, T.ROTATE_90), (7, T.TRANSVERSE), (8, T.ROTATE_270)])
def test_photos_are_turned_upright(tmp_path, small, tag, undone_by):
    exif = Image.Exif()
    exif[0x0112] = tag
    (small if undone_by is None else small.transpose(undone_by)).save(tmp_path / "a.png", exif=exif)
    assert_array_equal(read_image(tmp_path / "a.png"), small)
    with Image.open(tmp_path / "a.png") as im:
        assert restore(im, Known(32), by_hand((-190, -60))).image.shape == (60, 40, 3)


def test_a_broken_exif_block_does_not_lose_the_picture(tmp_path, small):
    small.save(tmp_path / "a.png", exif=b"Exif\x00\x00no such thing")
    assert_array_equal(read_image(tmp_path / "a.png"), small)
    exif = Image.Exif()
    exif[0x0100], exif[0x010E], exif[0x0112] = 8, "abc", 6
    damaged = bytearray(exif.tobytes())
    damaged[damaged.index(b"\x01\x00\x00\x04") + 3] = 1          # the width's type: the orientation can still be read, but not written again
    small.transpose(T.ROTATE_90).save(tmp_path / "b.png", exif=bytes(damaged))
    assert_array_equal(read_image(tmp_path / "b.png"), small)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(tmp_path, small, mode):
    picture = small.quantize(256) if mode == "P" else Image.new("LAB", (40, 60), (128, 128, 128)) if mode == "LAB" else small.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tif")       # some versions of Pillow cannot read the YCbCr TIFF that they wrote
    picture.save(path)
    got = read_image(path)
    assert got.dtype == np.uint8 and got.shape == (60, 40, 3)
    if mode in ("P", "RGBA", "CMYK"):
        assert np.abs(got.astype(int) - small).mean() < 3
    if mode in ("L", "LA"):
        assert_array_equal(got[..., 1], small.convert("L"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(tmp_path, suffix):
    Image.fromarray(np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 117, 255)]


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
    return {"text.jpg": "not a picture", "empty.png": "is empty", "half.jpg": "truncated", "two\nlines.png": "not a picture", "folder.png": "is a folder", "float.tif": "floating-point",
            "gone.jpg": "no such file", "text.jpg/inside.jpg": "not a directory", "n" * 300 + ".jpg": "name too long", "nul\0.jpg": "cannot be read"}


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, small):
    for name, reason in files(tmp_path, small).items():
        with pytest.raises(PhotoError) as e:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(e.value) and reason in str(e.value).lower(), str(e.value)


def test_too_many_pixels_are_refused_and_many_are_read_in_silence(tmp_path, small, monkeypatch):
    small.save(tmp_path / "a.png")                               # 2400 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PhotoError, match="million pixels"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)         # Pillow warns from here to twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(read_image(tmp_path / "a.png"), small)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path, small, kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40
    whole, rng, read = io.BytesIO(), np.random.default_rng(0), 0
    small.save(whole, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    for i in range(150):
        data = bytearray(whole.getvalue())
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(min(len(data), 200 if i % 2 else len(data)))] = rng.integers(256)
        (tmp_path / "a").write_bytes(data[:rng.integers(len(data))] if i % 3 == 0 else data)
        try:
            got = read_image(tmp_path / "a")
            assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3
            read += 1
        except PhotoError as e:
            assert str(tmp_path / "a") in str(e)
    assert 0 < read < 150


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


@pytest.mark.parametrize("name, reason", [("a.xyz", ".xyz"), ("a", "without a suffix"), ("a.psd", ".psd"), ("a.xbm", "cannot be written"), ("file/a.png", "cannot be written"), ("folder.png", "cannot be written")])
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

    def break_off(self, path, *args, **kw):
        path.write_bytes(b"half of")
        raise trouble

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(KeyboardInterrupt if trouble is KeyboardInterrupt else PhotoError):
        write_image(tmp_path / "a.png", photo)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert_array_equal(read_image(tmp_path / "a.png"), photo[:9, :9])


# ---------------------------------------------------------------- the way back

def test_unalign_undoes_align(photo):
    for size, most in ((170, 2.5), (256, 2), (512, 2)):
        crop, m = align(photo, POINTS, size)
        inside = unalign(np.pad(np.ones((size - 20, size - 20)), 10), m, (0, 0, 512, 512)) > 0.999
        assert np.abs(np.clip(unalign(crop, m, (0, 0, 512, 512)), 0, 255) - photo)[inside].mean() < most


def test_unalign_averages_what_the_photo_cannot_hold(photo):
    "A perfect restorer's face, put back into a photo that has a third of the pixels, gives that photo."
    tiny = photo[:510, :510].reshape(170, 3, 170, 3, 3).mean((1, 3))
    m = similarity((POINTS + 0.5) / 3 - 0.5, template(256))
    inside = unalign(np.pad(np.ones((204, 204)), 26), m, (0, 0, 170, 170)) > 0.99
    assert np.abs(unalign(align(photo, POINTS, 256)[0], m, (0, 0, 170, 170)) - tiny)[inside].mean() < 1


def test_unalign_of_a_rectangle_is_a_part_of_the_whole(photo):
    crop, m = align(photo, POINTS, 256)
    whole, part = unalign(crop, m, (0, 0, 512, 512)), unalign(crop, m, (150, 40, 290, 200))
    off = np.abs(whole[40:200, 150:290] - part)
    assert off.mean() < 0.1 and off.max() < 6


@pytest.mark.parametrize("size", [16, 128, 512])
def test_mask_is_one_inside_zero_outside_and_smooth(size):
    m = face_mask(size)
    assert m.dtype == np.float32 and m.shape == (size, size) and 0 <= m.min() and m.max() == 1
    for turned in (m.T, m[::-1], m[:, ::-1]):
        assert_array_equal(m, turned)
    edge = int(0.08 * size)
    assert (m[:edge] == 0).all() and (m[-(-size // 5):-(-(-size // 5)), -(-size // 5):-(-(-size // 5))] == 1).all()
    assert np.abs(np.diff(m, axis=0)).max() < 2 / (0.12 * size) and np.abs(np.diff(m, 2, axis=0)).max() < 8 / (0.12 * size) ** 2


@settings(max_examples=25, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(0.05, 30), st.floats(-100, 700), st.floats(-100, 700), st.sampled_from([16, 64, 128]))
def test_paste_mixes_inside_and_touches_nothing_outside(angle, width, x, y, size):
    photo, before = astronaut()[:150, :200], astronaut()[:150, :200].copy()
    a, b = width * np.cos(angle), width * np.sin(angle)
    m = invert(np.array([[a, -b, x - 250], [b, a, y - 250]]))                 # crop pixels `width` photo pixels wide, anywhere and any way up
    out = paste(photo, np.full((size, size, 3), 128, np.uint8), m)
    assert_array_equal(photo, before)
    assert out.shape == photo.shape and out.dtype == np.uint8 and out is not photo
    assert (out >= np.minimum(photo, 128)).all() and (out <= np.maximum(photo, 128)).all()
    q, p = np.mgrid[:150, :200]
    u = m[:, :2] @ np.stack([p.ravel(), q.ravel()]) + m[:, 2:]
    border = 0.08 * size - 2 - np.hypot(m[0, 0], m[1, 0])                     # well outside of the mask; cubic interpolation reads 2 px
    outside = ((u < border) | (u > size - 1 - border)).any(0).reshape(150, 200)
    assert_array_equal(out[outside], photo[outside])
    inside = ((u > 0.2 * size + 3 + 1 / width) & (u < 0.8 * size - 4 - 1 / width)).all(0).reshape(150, 200)
    assert (out[inside] == 128).all()


# ---------------------------------------------------------------- the whole

@pytest.mark.parametrize("size", [128, 512])
def test_a_network_that_changes_nothing_gives_back_the_photo(photo, size):
    result = restore(photo, Known(size), by_hand())
    assert isinstance(result, RestoreResult) and result.image.dtype == np.uint8 and result.image.shape == photo.shape
    (before, after), = result.faces
    assert_array_equal(before, after)
    assert before.shape == (size, size, 3)
    assert_allclose(result.landmarks[0], POINTS)
    off = np.abs(result.image.astype(int) - photo)
    assert off.mean() < 0.25 and (off.any(2).mean() < 0.12) and not off[300:].any() and not off[:, :100].any()


def test_every_face_is_restored_and_all_from_the_photo_as_it_came(photo):
    net, shifts = Known(64, 1.0), [(0, 0), (30, 10), (200, 300)]             # the second overlaps the first
    result = restore(photo, net, by_hand(*shifts))
    assert net.calls == 3 == len(result.faces) == len(result.boxes) == len(result.landmarks)
    for s in shifts:
        x, y = np.rint(POINTS.mean(0) + s).astype(int)
        assert (result.image[y, x] == 255).all()
    assert_array_equal(result.faces[1][0], align(photo, POINTS + (30, 10), 64)[0])


@pytest.mark.parametrize("shift", [(-200, 0), (270, 0), (0, -110), (0, 370), (3000, 0)])
def test_a_face_at_or_over_the_border(photo, shift):
    result = restore(photo, Known(64, -1.0), by_hand(shift))
    x, y = np.rint(POINTS.mean(0) + shift).astype(int)
    if 0 <= x < 512 and 0 <= y < 512:
        assert (result.image[y, x] == 0).all()
    else:
        assert_array_equal(result.image, photo)


def test_odd_pictures_and_networks(photo):
    assert restore(np.full((1, 1, 3), 7, np.uint8), Known(16), by_hand()).image.tolist() == [[[7, 7, 7]]]
    assert restore(photo, Known(64, dtype=torch.float64), by_hand()).image.shape == photo.shape
    assert restore(photo[:, ::-1], Known(64), lambda im: by_hand()(im)).image.shape == photo.shape


def test_path_string_picture_and_array_are_the_same(tmp_path, photo):
    write_image(tmp_path / "a.png", photo)
    results = [restore(i, Known(64), by_hand()).image for i in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo), photo)]
    for r in results[1:]:
        assert_array_equal(r, results[0])


@pytest.mark.parametrize("bad", [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), None, 3])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(PhotoError, match="uint8 H×W×3"):
        restore(bad, Known(16), by_hand())


def test_no_face_is_an_error_that_names_the_photo(tmp_path, photo):
    write_image(tmp_path / "suit.png", photo[320:])
    net = Known(64)
    with pytest.raises(NoFace, match="suit.png: no face found"):
        restore(tmp_path / "suit.png", net)                      # the real detector
    assert net.calls == 0


def test_weights_by_path_and_a_clear_error_for_what_is_none(tmp_path, photo):
    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig.tiny(32)).eval()
    save(net, tmp_path / "tiny.safetensors")
    by_path = restore(photo, tmp_path / "tiny.safetensors", by_hand())
    assert_array_equal(by_path.image, restore(photo, net, by_hand()).image)
    assert not np.array_equal(by_path.image, photo)
    with pytest.raises(WeightsError, match="nobody"):
        restore(photo, "nobody", by_hand())


def test_the_default_detector_is_the_real_one(photo):
    result = restore(photo, Known(64))
    assert_allclose(result.landmarks[0], POINTS, atol=1.5)
    assert photos.restore.__defaults__[0] == "bundled"

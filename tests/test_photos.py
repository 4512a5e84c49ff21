"""From photo to restored photo: the way back, mask, colour, the whole, films."""
import ast
import inspect
import io
import subprocess
import sys
from pathlib import Path
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
from gfpgan_edu.photos import (NoFace, RestoreResult, enlarge, face_mask, follow, match_colour,
                               paste, pick_device, restore, restore_video, smooth, unalign)
from gfpgan_edu.pictures import PhotoError, read_image, write_image
from gfpgan_edu.weights import WeightsError, save

POINTS = np.array([[204.2, 100.8], [246.1, 102.9], [223.9, 127.9], [201.0, 138.9],
                   [244.3, 141.3]])                             # of the astronaut's face


def by_hand(*shifts):
    "A detector that finds the astronaut's face, shifted."
    return lambda image: [Face((0.0, 0.0, 1.0, 1.0), 1.0, POINTS + s) for s in shifts or [(0, 0)]]


class Known(torch.nn.Module):
    """Changes nothing, or adds `value`, in units of [-1, 1], to the middle half of the face or to
    all of it; counts its calls."""

    def __init__(self, size, value=0.0, dtype=torch.float32, everywhere=False):
        super().__init__()
        self.config, self.calls = SimpleNamespace(size=size), 0
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
        self.bump = torch.full((size, size), value if everywhere else 0.0, dtype=dtype)
        self.bump[size // 4:-(size // 4), size // 4:-(size // 4)] = value

    def forward(self, x):
        self.calls += 1
        assert x.dtype == self.weight.dtype
        return x + self.bump, []


@pytest.fixture(scope="module")
def photo():
    return astronaut()


# ---------------------------------------------------------------- the way back

def test_unalign_undoes_align(photo):
    whole = 0, 0, 512, 512
    for size, most in ((170, 2.5), (256, 2), (512, 2)):
        crop, m = align(photo, POINTS, size)
        inside = unalign(np.pad(np.ones((size - 20, size - 20)), 10), m, whole) > 0.999
        back = np.clip(unalign(crop, m, whole), 0, 255)
        assert np.abs(back - photo)[inside].mean() < most


def test_unalign_averages_what_the_photo_cannot_hold(photo):
    """A perfect restorer's face, put back into a photo that has a third of the pixels, gives that
    photo."""
    tiny = photo[:510, :510].reshape(170, 3, 170, 3, 3).mean((1, 3))
    m = similarity((POINTS + 0.5) / 3 - 0.5, template(256))
    inside = unalign(np.pad(np.ones((204, 204)), 26), m, (0, 0, 170, 170)) > 0.99
    back = unalign(align(photo, POINTS, 256)[0], m, (0, 0, 170, 170))
    assert np.abs(back - tiny)[inside].mean() < 1


def test_unalign_of_a_rectangle_is_a_part_of_the_whole(photo):
    crop, m = align(photo, POINTS, 256)
    whole, part = unalign(crop, m, (0, 0, 512, 512)), unalign(crop, m, (150, 40, 290, 200))
    off = np.abs(whole[40:200, 150:290] - part)
    assert off.mean() < 0.1 and off.max() < 6


@pytest.mark.parametrize("size", [16, 128, 512])
def test_mask_is_one_on_the_face_zero_outside_and_smooth(size):
    m = face_mask(size)
    assert m.dtype == np.float32 and m.shape == (size, size) and 0 <= m.min() and m.max() == 1
    assert_array_equal(m, m[:, ::-1])
    x, y = np.rint(template(size)).astype(int).T
    assert (m[y, x] == 1).all()
    t = (np.arange(size) + 0.5) / size
    assert (m[t < 0.1] == 0).all() and (m[t > 0.98] == 0).all()
    assert (m[:, abs(t - 0.5) > 0.38] == 0).all()
    assert (m[(np.abs(t - 0.54) < 0.28)][:, np.abs(t - 0.5) < 0.01] == 1).all()
    if size > 16:
        assert np.abs(np.diff(m, axis=0)).max() < 2 / (0.13 * size)
        assert np.abs(np.diff(m, 2, axis=0)).max() < 10 / (0.13 * size) ** 2


def turned(angle, width, x, y, size, about=(100, 75)):
    """The matrix photo -> aligned face: an aligned pixel is `width` photo pixels wide, the middle
    of the face lies at `about` + (x, y)."""
    a, b, c = width * np.cos(angle), width * np.sin(angle), (size - 1) / 2
    shift = np.array(about) + (x, y) - np.array([[a, -b], [b, a]]) @ (c, c)
    return invert(np.array([[a, -b, shift[0]], [b, a, shift[1]]]))


ANGLES, WIDTHS, SHIFTS = st.floats(-3.1, 3.1), st.floats(0.05, 30), st.floats(-200, 200)


@settings(max_examples=25, deadline=None)
@given(ANGLES, WIDTHS, SHIFTS, SHIFTS, st.sampled_from([16, 64, 128]))
def test_paste_touches_nothing_outside_and_adds_the_change_inside(angle, width, x, y, size):
    photo, m = astronaut()[:150, :200] // 2, turned(angle, width, x, y, size)
    paste(out := photo.copy(), photo, np.full((size, size, 3), 60.0), mask := face_mask(size), m)
    assert out.shape == photo.shape and out.dtype == np.uint8
    assert (out >= photo).all() and (out <= photo + 60).all()
    q, p = np.mgrid[:150, :200]
    u = m[:, :2] @ np.stack([p.ravel(), q.ravel()]) + m[:, 2:]
    # cubic interpolation reads 2 px; averaging as wide as a pixel of the photo
    reach = 3 + int(np.ceil(np.hypot(m[0, 0], m[1, 0])))
    i = np.clip(np.rint(u).astype(int), 0, size - 1)
    around = np.ones((2 * reach + 1,) * 2, np.uint8)
    far = ((u < -reach) | (u > size - 1 + reach)).any(0)
    outside = ((cv2.dilate(mask, around)[i[1], i[0]] == 0) | far).reshape(150, 200)
    assert_array_equal(out[outside], photo[outside])
    near = ((u >= 0) & (u <= size - 1)).all(0)
    inside = (cv2.erode(mask, around, borderValue=0)[i[1], i[0]] == 1) & near
    assert (out == photo + 60)[inside.reshape(150, 200)].all()


@settings(max_examples=25, deadline=None)
@given(ANGLES, st.floats(0.2, 2), st.floats(-40, 40), st.floats(-40, 40),
       st.sampled_from([33, 64, 128]), st.sampled_from([1, 2, 2.5]))
def test_the_way_back_is_exact_to_a_fraction_of_a_pixel(angle, width, x, y, size, k):
    """A change that rises steadily across the aligned face must rise steadily in the photo, at the
    places that the matrix says: half a pixel of either would show."""
    m, v = turned(angle, width, x, y, size), np.arange(size, dtype=float)
    change = np.stack(np.broadcast_arrays(v, v[:, None], 0.0), -1)
    shape = (round(150 * k), round(200 * k), 3)
    m_k = photos._enlarged(m, (150, 200), shape)
    # OpenCV's cubic bends a straight line a little
    seen = unalign(change, m_k, (0, 0, shape[1], shape[0]), cv2.INTER_LINEAR)
    q, p = np.mgrid[:shape[0], :shape[1]]
    scale = np.array([shape[1] / 200, shape[0] / 150])
    at = (np.stack([p.ravel(), q.ravel()]) + 0.5) / scale[:, None] - 0.5
    u = m[:, :2] @ at + m[:, 2:]
    inside = ((u > 4) & (u < size - 5)).all(0)
    off = seen.reshape(-1, 3)[inside, :2] - u.T[inside]
    # half a pixel of the photo is 0.1 or more; some versions of OpenCV round positions to 1/32 px
    if len(off):
        assert np.abs(off).max() < 0.05 and np.abs(off.mean(0)).max() < 0.03


def test_strips_are_the_whole(photo):
    m, change = align(photo, POINTS, 256)[1], np.random.default_rng(0).normal(0, 30, (256, 256, 3))
    change = cv2.GaussianBlur(change, (0, 0), 4) * 8
    paste(whole := photo.copy(), photo, change, face_mask(256), m)
    paste(strips := photo.copy(), photo, change, face_mask(256), m, strip=700)
    assert (whole != photo).any() and np.abs(whole.astype(int) - strips).max() <= 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=9, max_size=9), st.sampled_from([16, 64]))
def test_a_plane_of_colour_is_taken_back_and_nothing_else_is_added(coefficients, size):
    crop = np.random.default_rng(1).uniform(0, 255, (size, size, 3))
    u, v = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2)
    plane = np.stack([a + b * u + c * v for a, b, c in np.reshape(coefficients, (3, 3))], -1)
    assert_allclose(match_colour(crop, crop - plane, face_mask(size)), plane, atol=2e-3)
    assert (match_colour(crop, crop, face_mask(size)) == 0).all()
    # a change on the face alone does not count
    inner = (face_mask(size) == 1)[..., None] * 200.0
    assert_allclose(match_colour(crop, crop - inner, face_mask(size)), 0, atol=1e-3)
    assert (match_colour(crop, crop - plane, np.ones((size, size), np.float32)) == 0).all()


# ---------------------------------------------------------------- the whole

@settings(max_examples=30, deadline=None)
@given(ANGLES, WIDTHS, SHIFTS, SHIFTS, st.sampled_from([8, 64, 256]), st.sampled_from([1, 1.5, 3]))
def test_a_network_that_changes_nothing_gives_back_the_photo(angle, width, x, y, size, k):
    photo = astronaut()[60:210, 130:330]
    back = invert(turned(angle, width, x, y, 64))
    points = template(64) @ back[:, :2].T + back[:, 2]
    find = lambda image: [Face((0.0, 0.0, 1.0, 1.0), 1.0, points)]
    result = restore(photo, Known(size), detector=find, upscale=k)
    (before, after), = result.faces
    assert isinstance(result, RestoreResult) and result.image.dtype == np.uint8
    assert before.shape == (size, size, 3)
    assert_array_equal(before, after)
    # to the last bit, whatever the model's size
    assert_array_equal(result.image, enlarge(photo, k))
    assert (len(result.notes) == 1) == (round(64 * width) > size)


def test_every_face_is_restored_and_all_from_the_photo_as_it_came(photo):
    net, shifts = Known(64, 0.3), [(0, 0), (30, 10), (200, 300)]  # the second overlaps the first
    result = restore(photo, net, detector=by_hand(*shifts), batch=2)
    assert net.calls == 2 and 3 == len(result.faces) == len(result.boxes)
    assert 3 == len(result.landmarks) == len(result.notes)
    assert_array_equal(result.faces[1][0], align(photo, POINTS + (30, 10), 64)[0])
    assert_array_equal(restore(photo, net, detector=by_hand(*shifts), batch=8).image, result.image)
    assert net.calls == 3
    x, y = np.rint(POINTS.mean(0) + (200, 300)).astype(int)
    assert abs((result.image[y, x].astype(int) - photo[y, x]).max() - 38) < 4


def test_where_two_faces_overlap_the_change_is_made_once(photo):
    dark = photo // 2
    once, twice = (restore(dark, Known(64, 0.3), detector=by_hand(*[(0, 0)] * n)).image.astype(int)
                   for n in (1, 2))
    x, y = np.rint(POINTS.mean(0)).astype(int)
    assert abs((once - dark)[y, x].max() - 38) < 4
    assert np.abs(once - twice)[y - 10:y + 10, x - 10:x + 10].max() <= 1


@pytest.mark.parametrize("shift", [(-200, 0), (270, 0), (0, -110), (0, 370), (3000, 0)])
def test_a_face_at_or_over_the_border(photo, shift):
    result = restore(photo, Known(64, -1.0), detector=by_hand(shift)).image.astype(int)
    x, y = np.rint(POINTS.mean(0) + shift).astype(int)
    if 0 <= x < 512 and 0 <= y < 512:
        darker = np.maximum(photo[y, x].astype(int) - 128, 0)
        assert (result[y, x] - darker < 30).all() and (result != photo).any()
    else:
        assert_array_equal(result, photo)


def test_fidelity_goes_from_the_network_to_the_photo(photo):
    net, find, dark, change = Known(64, 0.3), by_hand(), photo // 2, {}
    for f in (None, 0, 0.25, 1):
        change[f] = restore(dark, net, detector=find, fidelity=f).image.astype(int) - dark
    assert_array_equal(change[None], change[0])
    assert not change[1].any() and change[0].max() > 30
    assert np.abs(change[0.25] - 0.75 * change[0]).max() <= 1.5
    (crop, face), = restore(photo, net, detector=find, fidelity=1).faces
    assert_array_equal(crop, face)
    for bad in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fidelity"):
            restore(photo, net, detector=find, fidelity=bad)


def test_only_the_face_in_the_middle(photo):
    find = by_hand((0, 0), (30, 140), (250, 300))
    result = restore(photo, Known(64, 0.3), detector=find, only_center=True)
    assert len(result.faces) == len(result.boxes) == 1
    assert_allclose(result.landmarks[0], POINTS + (30, 140))


@pytest.mark.parametrize("side, k", [(64, 1), (64, 2), (37, 1), (200, 1.5), (1, 1)])
def test_an_aligned_face_is_restored_to_its_edges(photo, side, k):
    face = cv2.resize(photo[20:190, 140:310], (side, side), interpolation=cv2.INTER_AREA)
    options = dict(detector=lambda image: pytest.fail("searched"), aligned=True, upscale=k)
    assert_array_equal(restore(face, Known(64), **options).image, enlarge(face, k))
    half = restore(face // 2, Known(64, 0.3, everywhere=True), **options).image
    assert half.shape == (round(side * k),) * 2 + (3,)
    assert np.abs(half.astype(int) - enlarge(face // 2, k) - 38).max() <= 1
    if side == 64 and k == 1:                   # at the model's size it is the network's picture
        painted = restore(face, Known(64, 0.3, everywhere=True), aligned=True)
        assert_array_equal(painted.image, painted.faces[0][1])
    with pytest.raises(PhotoError, match="aligned faces are square"):
        restore(photo[:40], Known(64), aligned=True)


def test_enlarged_faces_land_where_the_photo_is(photo):
    """A perfect restorer with three times the photo's pixels: the enlarged photo is the original
    where the face is."""
    truth, points = photo[:510, :510], (POINTS + 0.5) / 3 - 0.5
    tiny = np.rint(truth.reshape(170, 3, 170, 3, 3).mean((1, 3))).astype(np.uint8)
    net, (crop, m) = Known(256), align(photo, POINTS, 256)
    net.forward = lambda x: (photos.to_tensor(crop), [])
    found = Face((0.0, 0.0, 1.0, 1.0), 1.0, points)
    large = restore(tiny, net, detector=lambda image: [found], upscale=3).image
    on_face = unalign(face_mask(256), m, (0, 0, 510, 510)) > 0.999
    errors = [np.abs(p.astype(int) - truth)[on_face].mean() for p in (large, enlarge(tiny, 3))]
    assert large.shape == truth.shape and errors[0] < errors[1] / 2 and errors[0] < 2.5
    assert_array_equal(large[300:], enlarge(tiny, 3)[300:])
    for bad in (0.5, 0, -1, 17, float("nan")):
        with pytest.raises(ValueError, match="upscale"):
            restore(tiny, net, detector=by_hand(), upscale=bad)
    with pytest.raises(PhotoError, match="256 million pixels"):
        restore(np.zeros((1000, 1000, 3), np.uint8), net, detector=by_hand(), upscale=16)


def test_a_large_face_is_named_with_the_weights_that_fit(photo):
    assert restore(photo, Known(256), detector=by_hand()).notes == ()
    note, = restore(photo, Known(64), detector=by_hand()).notes
    assert note == ("face of 168 px is larger than the model's 64 px: only what 64 px can hold is "
                    "restored; weights v1.4 (512 px) fit")
    large = cv2.resize(photo, None, fx=4, fy=4)
    find = by_hand(4 * (POINTS + 0.5) - 0.5 - POINTS)
    told = lambda s: restore(large, Known(s), detector=find).notes[0].split("; ")[1]
    assert told(64) == "weights v1.4 (512 px) come closer"
    assert told(512) == "no known weights are larger"


def test_odd_pictures_and_networks(photo):
    dot = restore(np.full((1, 1, 3), 7, np.uint8), Known(16), detector=by_hand()).image
    assert dot.tolist() == [[[7, 7, 7]]]
    double = Known(64, dtype=torch.float64)
    assert restore(photo, double, detector=by_hand()).image.shape == photo.shape
    assert restore(photo[:, ::-1], Known(64), detector=by_hand()).image.shape == photo.shape
    before = photo.copy()
    restore(photo, Known(64, 1.0), detector=by_hand())
    assert_array_equal(photo, before)
    with pytest.raises(PhotoError, match="not finite"):
        restore(photo, Known(64, float("nan")), detector=by_hand())


def test_path_string_picture_and_array_are_the_same(tmp_path, photo):
    write_image(path := tmp_path / "a.png", photo)
    results = [restore(i, Known(64, 0.3), detector=by_hand()).image
               for i in (path, str(path), Image.fromarray(photo), photo)]
    for r in results[1:]:
        assert_array_equal(r, results[0])


ODD = {
    "float": np.zeros((9, 9, 3)),
    "nan": np.full((9, 9, 3), np.nan, np.float32),
    "inf": np.full((9, 9, 3), np.inf),
    "grey": np.zeros((9, 9), np.uint8),
    "alpha": np.zeros((9, 9, 4), np.uint8),
    "16 bits": np.zeros((9, 9, 3), np.uint16),
    "bool": np.zeros((9, 9, 3), bool),
    "objects": np.full((9, 9, 3), None),
    "empty": np.zeros((0, 9, 3), np.uint8),
    "batch": np.zeros((2, 9, 9, 3), np.uint8),
    "channels first": np.zeros((3, 9, 9), np.uint8),
    "scalar": np.uint8(3),
    "none": None,
    "number": 3,
    "list": [[[1, 2, 3]]],
    "bytes": b"abc",
    "tensor": torch.zeros(3, 9, 9),
}


@pytest.mark.parametrize("bad", ODD.values(), ids=ODD)
def test_what_is_no_picture_is_refused_in_one_line(bad):
    for aligned in (False, True):
        with pytest.raises(PhotoError, match="needs uint8 H×W×3") as e:
            restore(bad, Known(16), detector=by_hand(), aligned=aligned)
        assert "\n" not in str(e.value) and len(str(e.value)) < 160


@pytest.mark.parametrize("shape", [(1, 1), (2, 100_000), (100_000, 2), (23, 23), (1, 5000)])
def test_pictures_too_thin_for_a_face_have_none(shape):
    with pytest.raises(NoFace, match="no face found"):
        restore(np.full((*shape, 3), 128, np.uint8), Known(16))               # the real detector


def test_pillow_pictures_that_cannot_be_decoded_are_refused(tmp_path, photo):
    whole = io.BytesIO()
    Image.fromarray(photo[:50, :50]).save(whole, "JPEG")
    half = Image.open(io.BytesIO(whole.getvalue()[:-300]))
    for bad in (half, Image.fromarray(np.ones((4, 4), np.float32))):
        with pytest.raises(PhotoError, match="image: cannot be read"):
            restore(bad, Known(16), detector=by_hand())


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
    by_path = restore(photo, tmp_path / "tiny.safetensors", detector=by_hand(), device="cpu")
    assert_array_equal(by_path.image, restore(photo, net, detector=by_hand()).image)
    assert not np.array_equal(by_path.image, photo)
    with pytest.raises(WeightsError, match="nobody"):
        restore(photo, "nobody", detector=by_hand())


def test_one_rule_for_the_device(photo, monkeypatch):
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="toaster"):
        pick_device("toaster")
    with pytest.raises(ValueError, match="cuda:99"):
        restore(photo, Known(64), detector=by_hand(), device="cuda:99")
    def here(cards, apple):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    for cards, apple, wanted in ((2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")):
        here(cards, apple)
        assert pick_device().type == pick_device("auto").type == wanted
    here(0, False)
    for missing in ("cuda", "mps", "cuda:0"):
        with pytest.raises(ValueError, match=f"has no {missing}; it has cpu"):
            pick_device(missing)


def test_the_default_detector_is_the_real_one(photo):
    result = restore(photo, Known(64))
    assert_allclose(result.landmarks[0], POINTS, atol=1.5)
    assert photos.restore.__defaults__[0] == "bundled"


# ---------------------------------------------------------------- the package's names

def test_the_public_names_are_there_typed_and_imported_on_first_use():
    import gfpgan_edu

    tree = ast.parse(Path(gfpgan_edu.__file__).read_text())
    parts = [part for node in tree.body if isinstance(node, ast.If) for part in node.body]
    typed = {a.asname or a.name for part in parts for a in part.names}
    # what editors see is what there is
    assert typed == set(gfpgan_edu.__all__) >= {"restore", "load", "degrade", "evaluate"}
    assert all(callable(getattr(gfpgan_edu, name)) for name in gfpgan_edu.__all__)
    assert gfpgan_edu.load is gfpgan_edu.load_weights and gfpgan_edu.restore is restore
    assert Path(gfpgan_edu.__file__).with_name("py.typed").exists()
    for f in (restore, restore_video, pick_device, enlarge, paste, match_colour, follow, smooth):
        s = inspect.signature(f)
        untyped = [p.name for p in s.parameters.values() if p.annotation is p.empty]
        missing = [name for name in untyped if name != "name"]
        assert not missing and s.return_annotation is not s.empty, (f.__name__, missing)
    code = ("import sys, gfpgan_edu; "
            "assert not {'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules); gfpgan_edu.nothing")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stderr and "AssertionError" not in done.stderr


# ---------------------------------------------------------------- video

def boxed(x, y=0.0, size=60.0):
    return Face((x, y, x + size, y + size), 1.0, template(64) + [x, y])


def test_tracks_follow_faces_through_gaps_and_changes_of_order():
    frames = [[boxed(5.0 * t), boxed(400 - 5.0 * t, 100.0)][::-1 if t % 3 else 1]
              for t in range(20)]                               # they pass one another
    frames[4], frames[9], frames[12] = [], frames[9][:1], [*frames[12], boxed(900.0)]
    tracks = follow(frames)
    assert sorted(map(len, tracks)) == [1, 18, 19] and tracks[-1] == {12: frames[12][2]}
    for track in tracks[:2]:
        assert len({f.box[1] for f in track.values()}) == 1
    assert len(follow([[boxed(0.0)]] + [[]] * 5 + [[boxed(0.0)]])) == 2       # gone for too long
    assert len(follow([[boxed(0.0)], [boxed(50.0)]])) == 2                    # too far
    assert follow([]) == follow([[], []]) == []


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 30)), st.floats(-9, 9), st.floats(-9, 9), st.floats(0, 5))
def test_steady_motion_passes_the_smoothing_unchanged(gone, dx, dy, width):
    track = {t: boxed(dx * t, dy * t) for t in range(31) if t not in gone}
    for t, face in smooth(track, width).items():
        assert_allclose(face.landmarks, track[t].landmarks, atol=1e-9)
        assert face.box == track[t].box


def test_smoothing_is_the_stated_average():
    rng = np.random.default_rng(0)
    track = {t: Face((0.0, 0.0, 1.0, 1.0), 1.0, rng.normal(size=(5, 2)))
             for t in range(9) if t != 3}
    # frames 4 and 6 about 5; 3 is missing, so 7 does not count either
    w = np.exp(-np.array([4, 1, 0, 1, 4]) / (2 * 0.7**2))
    wanted = w[1] * (track[4].landmarks + track[6].landmarks) + track[5].landmarks
    assert_allclose(smooth(track, 0.7)[5].landmarks, wanted / (1 + 2 * w[1]))
    same = smooth(track, 0)
    assert all((same[t].landmarks == track[t].landmarks).all() for t in track)
    # no partner at the ends
    assert_array_equal(smooth(track, 2)[0].landmarks, track[0].landmarks)


@pytest.fixture
def clip(tmp_path, photo):
    """Twelve frames, f0 to f11: 3 is broken, 5 has no face; a text file beside them. Each holds its
    number in its first pixel."""
    for t in range(12):
        frame = photo[:200, 100:300].copy() if t != 5 else photo[310:510, 100:300].copy()
        frame[0, 0] = t
        write_image(tmp_path / "clip" / f"f{t}.png", frame)
    (tmp_path / "clip" / "f3.png").write_bytes(b"half")
    (tmp_path / "clip" / "notes.txt").write_text("not a frame")
    return tmp_path / "clip"


def find(image):
    "The astronaut's face in a frame of the clip, trembling with the frame's number."
    t = int(image[0, 0, 0])
    if t == 5:
        return []
    return [Face((90.0, 60.0, 160.0, 160.0), 1.0, POINTS - (100, 0) + 0.5 * (-1) ** t)]


def test_a_film_is_restored_frame_by_frame(clip, tmp_path, photo):
    out = tmp_path / "out"
    result = restore_video(clip, out, Known(64, 0.3), detector=find, upscale=2)
    names = [f"f{t}.png" for t in range(12)]
    assert result.restored == [n for n in names if n not in ("f3.png", "f5.png")]
    assert result.copied == ["f5.png"]
    (path, reason), = result.failures
    assert path == clip / "f3.png" and str(path) in reason
    track, = result.tracks
    assert list(track) == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]      # in the order of numbers
    assert "1 of 12 frames without a face, copied: f5.png" in result.notes[0]
    assert "larger than the model's 64 px" in result.notes[1]
    assert sorted(p.name for p in out.iterdir()) == sorted(n for n in names if n != "f3.png")
    assert_array_equal(read_image(out / "f5.png"), enlarge(read_image(clip / "f5.png"), 2))
    still = restore(clip / "f8.png", Known(64, 0.3), detector=lambda image: [track[8]], upscale=2)
    assert_array_equal(read_image(out / "f8.png"), still.image)

    def tremble(width):
        film = restore_video(clip, out, Known(8), detector=find, width=width)
        return np.std([f.landmarks for f in film.tracks[0].values()], axis=0).max()

    assert tremble(0) > 0.48 and tremble(2) < 0.35


def test_a_film_that_cannot_be_made_is_one_clear_error(clip, tmp_path):
    (tmp_path / "empty").mkdir()
    made = tmp_path / "out"
    for frames, out, reason in (
        (tmp_path / "empty", made, "no frames in this folder"),
        (tmp_path / "gone", made, "no such file"),
        (clip / "f0.png", made, "not a directory"),
        (clip, clip, "overwrite the frames"),
        (clip, clip / ".." / "clip", "overwrite the frames"),
    ):
        with pytest.raises(PhotoError, match=reason) as e:
            restore_video(frames, out, Known(8), detector=find)
        assert "\n" not in str(e.value) and not made.exists()
    # a folder where a frame should go: that frame fails, the others do not
    (made / "f2.png").mkdir(parents=True)
    result = restore_video(clip, made, Known(8), detector=find)
    assert [path.name for path, _ in result.failures] == ["f3.png", "f2.png"]
    assert len(result.restored) == 9

"""Finding and aligning faces: coordinates, least squares, resampling, pixels and tensors."""
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.transform import estimate_transform

from gfpgan_edu.examples import astronaut
from gfpgan_edu.faces import (FFHQ_512, Face, align, detect, footprint, invert, similarity,
                              template, to_images, to_tensor)

few = settings(max_examples=25, deadline=None)


def moved(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def transform(angle, scale, x, y):
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, -b, x], [b, a, y]])


similarities = st.builds(transform, st.floats(-3.1, 3.1), st.floats(0.05, 20),
                         st.floats(-3000, 3000), st.floats(-3000, 3000))


@pytest.fixture(scope="module")
def photo():
    return astronaut()


@pytest.fixture(scope="module")
def face(photo):
    found = detect(photo)
    assert len(found) == 1 and isinstance(found[0], Face)
    return found[0]


# ---------------------------------------------------------------- least squares

@few
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.1, 1000))
def test_similarity_is_umeyamas(seed, n, spread):
    rng = np.random.default_rng(seed)
    src, dst = rng.normal(300, spread, (n, 2)), rng.normal(-50, 40, (n, 2))
    theirs = estimate_transform("similarity", src, dst).params[:2]
    assert_allclose(similarity(src, dst), theirs, rtol=1e-6, atol=1e-6)


@few
@given(similarities)
def test_similarity_finds_what_was_done_and_invert_undoes_it(m):
    assert_allclose(similarity(FFHQ_512, moved(m, FFHQ_512)), m, rtol=1e-7, atol=1e-6)
    assert_allclose(moved(invert(m), moved(m, FFHQ_512)), FFHQ_512, atol=1e-6)


@pytest.mark.parametrize("src, dst, reason", [
    (np.ones((5, 2)), FFHQ_512, "coincide"),
    (FFHQ_512, np.ones((5, 2)), "coincide"),
    (FFHQ_512[:4], FFHQ_512, "equal"),
    (FFHQ_512[:1], FFHQ_512[:1], "n >= 2"),
    (FFHQ_512.T, FFHQ_512.T, "equal"),
    (FFHQ_512 * np.nan, FFHQ_512, "finite"),
])
def test_similarity_refuses(src, dst, reason):
    with pytest.raises(ValueError, match=reason):
        similarity(src, dst)


# ---------------------------------------------------------------- sizes

@pytest.mark.parametrize("size", [32, 64, 128, 256, 300, 1024])
def test_template_keeps_the_edges_of_the_picture_in_place(size):
    assert_allclose((template(size) + 0.5) / size, (template(512) + 0.5) / 512)
    assert_array_equal(template(), FFHQ_512)


@few
@given(similarities, st.sampled_from([16, 64, 512]), st.integers(0, 5))
def test_footprint_holds_the_crop_and_not_much_more(m, size, margin):
    x0, y0, x1, y1 = footprint(m, size, margin)
    ends = -0.5, size - 0.5
    corners = moved(invert(m), np.array([[x, y] for x in ends for y in ends]))
    low, high = corners.min(0) - margin, corners.max(0) + margin
    assert all(0 <= low[i] - v < 1 + 1e-6 for i, v in enumerate((x0, y0)))
    assert all(0 < v - high[i] < 2 + 1e-6 for i, v in enumerate((x1, y1)))


# ---------------------------------------------------------------- align

@pytest.mark.parametrize("size", [16, 33, 128, 512])
def test_align_puts_a_marked_point_where_it_belongs(photo, face, size):
    matrix = align(photo, face.landmarks, size)[1]
    y, x = np.mgrid[:512, :512]
    for k in (0, 4):
        u, v = face.landmarks[k]
        dot = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 9**2))
        dot = np.repeat(dot.astype(np.uint8)[..., None], 3, 2)
        crop = align(dot, face.landmarks, size)[0][..., 0].astype(float)
        b, a = np.mgrid[:size, :size]
        centre = [(crop * a).sum() / crop.sum(), (crop * b).sum() / crop.sum()]
        assert_allclose(centre, moved(matrix, face.landmarks[k]), atol=max(0.06, size / 1000))


def test_align_is_independent_of_how_the_photo_lies(photo, face):
    turn = cv2.getRotationMatrix2D((225, 110), 30, 1.5) + np.array([[0, 0, 300], [0, 0, 300]])
    turned = cv2.warpAffine(photo, turn, (1200, 1200), flags=cv2.INTER_CUBIC,
                            borderMode=cv2.BORDER_REFLECT_101)
    a = align(photo, face.landmarks, 128)[0]
    b = align(turned, moved(turn, face.landmarks), 128)[0]
    assert np.abs(a.astype(int) - b).mean() < 2


@pytest.mark.parametrize("shift, size", [
    ((0, 0), 64),
    ((0, 0), 300),
    ((-190, -40), 64),
    ((250, 380), 128),
    ((900, 20), 32),
    ((0, -1100), 32),
])
def test_align_reads_a_part_and_gives_what_the_whole_would(photo, face, shift, size):
    around = 1200                                                # the photo and its mirror images
    whole = np.pad(photo, ((around, around), (around, around), (0, 0)), mode="reflect")
    crop, m = align(photo, face.landmarks + shift, size)
    sigma = 0.5 * np.sqrt(max(1 / np.linalg.det(m[:, :2]) - 1, 0))
    whole = cv2.GaussianBlur(whole, (0, 0), sigma + 1e-6) if sigma else whole
    m[:, 2] -= m[:, :2] @ (around, around)
    wanted = cv2.warpAffine(whole, m, (size, size), flags=cv2.INTER_CUBIC)
    off = np.abs(crop.astype(int) - wanted)
    assert off.mean() < 0.02 and off.max() <= 15


def test_align_does_not_alias():
    row = np.where((np.arange(900) // 3) % 2, 255, 0).astype(np.uint8)
    stripes = row[None, :, None].repeat(900, 0).repeat(3, 2)
    assert align(stripes, template(700) + 100, 64)[0].std() < 4


def test_align_of_odd_pictures(photo, face):
    dot, strip = np.full((1, 1, 3), 9, np.uint8), np.full((30, 40000, 3), 9, np.uint8)
    assert (align(dot, face.landmarks, 32)[0] == 9).all()
    # wider than OpenCV can warp
    assert (align(strip, face.landmarks + (30000, -100), 32)[0] == 9).all()
    frozen = photo.copy()
    frozen.flags.writeable = False
    crop = align(frozen, face.landmarks, 64)[0]
    assert_array_equal(crop, align(photo[..., ::-1][..., ::-1], face.landmarks, 64)[0])
    assert_array_equal(frozen, photo)


# ---------------------------------------------------------------- pixels and tensors

def test_all_256_values_survive():
    every = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, 2)
    every[..., 1], every[..., 2] = every[..., 1].T, 255 - every[..., 2]
    x = to_tensor(np.stack([every, every[::-1]]))
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    assert_array_equal(to_images(x), [every, every[::-1]])
    assert_array_equal(to_tensor(every), x[:1])
    mirrored = every[:, :, ::-1]                                 # a view with negative strides
    assert_array_equal(to_images(to_tensor(mirrored))[0], mirrored)


def test_to_images_clips_rounds_and_takes_any_float():
    x = torch.tensor([-5.0, -1, -0.999, 0, 0.999, 1, 5], dtype=torch.float64)
    x = x.reshape(1, 1, 1, 7).expand(1, 3, 1, 7).requires_grad_()
    assert to_images(x)[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert to_images(x.bfloat16()).dtype == np.uint8


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_to_tensor_refuses(bad):
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(bad)


# ---------------------------------------------------------------- the detector

def test_points_are_on_the_face(photo, face):
    eyes, nose, mouth = face.landmarks[:2], face.landmarks[2], face.landmarks[3:]
    # read off the picture
    seen = [[204, 101], [246, 103], [224, 128], [201, 139], [244, 141]]
    assert_allclose(face.landmarks, seen, atol=4)
    x0, y0, x1, y1 = face.box
    assert x0 < eyes[:, 0].min() and eyes[:, 0].max() < x1
    assert y0 < eyes[0, 1] < nose[1] < mouth[0, 1] < y1
    assert 0.99 < face.score <= 1


def test_a_larger_copy_moves_the_points_by_the_half_pixel_map(photo, face):
    big = photo.repeat(4, 0).repeat(4, 1)
    again, = detect(big, longest=512)                # searched at the old size: the same picture
    assert_allclose(again.landmarks, 4 * (face.landmarks + 0.5) - 0.5, atol=1e-3)
    assert_allclose(again.box, 4 * (np.array(face.box) + 0.5) - 0.5, atol=1e-3)
    smooth, = detect(cv2.resize(photo, (1024, 1024), interpolation=cv2.INTER_CUBIC))
    assert np.abs((smooth.landmarks + 0.5) / 2 - 0.5 - face.landmarks).max() < 3


def test_points_have_no_offset(photo):
    "A picture and its mirror image agree on average to a third of a pixel."
    sums, middle = [], photo[:260, 90:360]
    for k in (0.5, 0.7, 0.9, 1.2):
        way = cv2.INTER_AREA if k < 1 else cv2.INTER_CUBIC
        small = cv2.resize(middle, None, fx=k, fy=k, interpolation=way)
        mirrored = np.ascontiguousarray(small[:, ::-1])
        a, b = detect(small)[0].landmarks, detect(mirrored)[0].landmarks[[1, 0, 2, 4, 3]]
        sums.append((a[:, 0] + b[:, 0] - (small.shape[1] - 1)).mean() / 2)
    assert abs(np.mean(sums)) < 0.35


@pytest.mark.parametrize("rows, columns", [
    (slice(None), slice(192, None)),
    (slice(None), slice(0, 255)),
    (slice(74, None), slice(None)),
    (slice(60, 170), slice(180, 270)),
])
def test_a_face_at_the_border_keeps_its_points(photo, face, rows, columns):
    found = detect(photo[rows, columns])                         # not contiguous, too
    offset = (columns.start or 0, rows.start or 0)
    assert np.abs(found[0].landmarks + offset - face.landmarks).mean() < 3


def test_the_largest_face_comes_first(photo):
    both = np.full((300, 520, 3), 200, np.uint8)
    both[:150, :150] = cv2.resize(photo[:300, 80:380], (150, 150), interpolation=cv2.INTER_AREA)
    both[:, 200:500] = photo[:300, 80:380]
    large, small = detect(both)
    assert large.landmarks[:, 0].min() > 200 > small.landmarks[:, 0].max()


@pytest.mark.parametrize("shape", [(1, 1), (23, 400), (400, 23), (24, 24), (200, 200), (24, 3000)])
def test_no_face_is_an_empty_list(shape):
    assert detect(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize("bad", [
    np.zeros((50, 50, 3)), np.zeros((50, 50), np.uint8), np.zeros((50, 50, 4), np.uint8)])
def test_detect_refuses(bad):
    with pytest.raises(ValueError, match="uint8 H×W×3"):
        detect(bad)

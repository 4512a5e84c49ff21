"""BasicSR's metrics beside ours. `python -m pytest -m peer tests/peer/test_metrics_peer.py`

PSNR, SSIM, Y and the Fréchet distance agree to 1e-9. NIQE as BasicSR publishes it computes in
single precision: it agrees to 0.1 % (measured on ten faces of 512 px: at most 0.0008). In double
precision its own formulas give ours to 1e-8, once the rounding noise of flat places is zero there
as well; with that noise the numbers differ, on a half black picture by half.
"""
import importlib
import sys
import types
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
from official import PEER
from skimage import data

from gfpgan_edu.examples import astronaut, example_faces
from gfpgan_edu.metrics import (Protocol, Statistics, aggd, frechet, half, luma, mscn, niqe, psnr,
                                read_niqe, ssim)

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def theirs(official):
    """basicsr.metrics.niqe, psnr_ssim and fid as modules; `official` has patched what they need to
    be imported."""
    try:
        import scipy.ndimage.filters  # noqa: F401
    except ImportError:                                 # a namespace that SciPy has given up
        filters = types.SimpleNamespace(convolve=scipy.ndimage.convolve)
        sys.modules["scipy.ndimage.filters"] = filters
    names = ("niqe", "psnr_ssim", "fid")
    found = {name: importlib.import_module(f"basicsr.metrics.{name}") for name in names}
    resize = importlib.import_module("basicsr.utils.matlab_functions").imresize
    return types.SimpleNamespace(**found, resize=resize)


@pytest.fixture(scope="module")
def model():
    return read_niqe(Path(PEER) / "basicsr/metrics/niqe_pris_params.npz")


@pytest.fixture(scope="module")
def window():
    return np.load(Path(PEER) / "basicsr/metrics/niqe_pris_params.npz")["gaussian_window"]


def bordered(level, width=200):
    photo = astronaut().copy()
    photo[:, :width] = level
    return photo


def pictures():
    photo, rng = astronaut(), np.random.default_rng(0)
    away = (np.mgrid[:512, :512] - 256.0) ** 2
    face = example_faces(1, 128)[0]
    found = {
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "astronaut": photo,
        "face": cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC),
        "noisy": np.clip(photo + rng.normal(0, 15, photo.shape), 0, 255).astype(np.uint8),
        "burnt": np.clip(photo.astype(int) * 2 - 100, 0, 255).astype(np.uint8),
        "black border": bordered(0),
        "white border": bordered(255),
        "narrow border": bordered(128, 101),
        "vignette": np.where((away.sum(0) < 230**2)[..., None], photo, 0).astype(np.uint8),
    }
    return {k: np.ascontiguousarray(v) for k, v in found.items()}


@pytest.mark.parametrize("name", ["cat", "coffee", "astronaut", "noisy", "burnt"])
def test_niqe_as_published(theirs, model, name):
    image = pictures()[name]
    want = theirs.niqe.calculate_niqe(image[..., ::-1], 0)
    assert niqe(image, model) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", ["black border", "white border", "narrow border", "vignette"])
def test_niqe_with_flat_places_as_published(theirs, model, name):
    """Single precision leaves noise in flat blocks of the second scale, whose scales then count as
    0 instead of not at all: some per cent."""
    image = pictures()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = theirs.niqe.calculate_niqe(image[..., ::-1], 0)
        assert niqe(image, model) == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("name", pictures())
def test_niqe_in_exact_arithmetic(theirs, model, window, monkeypatch, name):
    def convolve(x, k, mode):
        y = scipy.ndimage.convolve(x, k, mode=mode)
        return np.where(np.abs(y - x) < 1e-9, x, y)     # the one change: no noise where x is flat

    image = pictures()[name]
    monkeypatch.setattr(theirs.niqe, "imresize", lambda x, scale, antialiasing: half(x))
    monkeypatch.setattr(theirs.niqe, "convolve", convolve)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = theirs.niqe.niqe(np.round(luma(image)), model.mean, model.covariance, window)
    assert niqe(image, model) == pytest.approx(want, abs=1e-8)


def test_niqe_needs_no_change_where_nothing_is_flat(theirs, model, window, monkeypatch):
    image = data.chelsea()
    assert np.count_nonzero(mscn(np.round(luma(image)))[0]) == image[..., 0].size
    monkeypatch.setattr(theirs.niqe, "imresize", lambda x, scale, antialiasing: half(x))
    want = theirs.niqe.niqe(np.round(luma(image)), model.mean, model.covariance, window)
    assert niqe(image, model) == pytest.approx(want, abs=1e-8)


def test_noise_of_flat_places_decides_their_number(theirs, model, window, monkeypatch):
    """Why `mscn` sets it to zero: in double precision the same formulas give two numbers for two
    orders of summation."""
    def all_at_once(x, k2, mode):
        return scipy.ndimage.convolve(x, k2, mode=mode)

    def rows_before_columns(x, k2, mode):
        return cv2.sepFilter2D(x, -1, k, k, borderType=cv2.BORDER_REPLICATE)

    image = bordered(0)
    y = np.round(luma(image))
    monkeypatch.setattr(theirs.niqe, "imresize", lambda x, scale, antialiasing: half(x))
    k, found = np.sqrt(np.diag(window)), []
    np.testing.assert_allclose(np.outer(k, k), window, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for convolve in (all_at_once, rows_before_columns):
            monkeypatch.setattr(theirs.niqe, "convolve", convolve)
            found.append(theirs.niqe.niqe(y, model.mean, model.covariance, window))
    assert abs(found[0] - found[1]) > 0.1


def test_half_is_their_imresize(theirs):
    y = np.random.default_rng(0).random((96, 130)).astype(np.float32)
    want = theirs.resize(y, 0.5, antialiasing=True)
    np.testing.assert_allclose(half(y.astype(np.float64)), want, atol=2e-6)


@pytest.mark.parametrize("x", [
    np.random.default_rng(0).laplace(size=5000),
    np.random.default_rng(1).normal(0.1, 1, 5000) ** 3,
    np.ones(50), np.zeros(50), -np.ones(50)])
def test_aggd(theirs, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(aggd(x), theirs.niqe.estimate_aggd_param(x), rtol=1e-9)


@pytest.mark.parametrize("y_only", [False, True])
def test_psnr_and_ssim(theirs, y_only):
    rng = np.random.default_rng(0)
    a = astronaut()[100:228, 150:262]
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    p = Protocol("y" if y_only else "rgb")
    pair, code = (b[..., ::-1], a[..., ::-1]), theirs.psnr_ssim
    want_psnr = code.calculate_psnr(*pair, 0, test_y_channel=y_only)
    want_ssim = code.calculate_ssim(*pair, 0, test_y_channel=y_only)
    # their Y is rounded to single precision
    assert psnr(b, a, p) == pytest.approx(want_psnr, abs=1e-4 if y_only else 1e-9)
    assert ssim(b, a, p) == pytest.approx(want_ssim, abs=1e-6 if y_only else 1e-9)


def test_frechet(theirs):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 300, 40)) @ rng.standard_normal((40, 40))
    a, b = (Statistics("fid", v.mean(0), np.cov(v, rowvar=False)) for v in (x, y + 0.3))
    moments = a.mean, a.covariance, b.mean, b.covariance
    try:
        want = theirs.fid.calculate_fid(*moments)
    except (TypeError, ValueError):                     # SciPy's sqrtm has lost the argument disp
        def sqrtm(m, disp=True):
            return scipy_sqrtm(m) if disp else (scipy_sqrtm(m), 0)

        theirs.fid.linalg = types.SimpleNamespace(sqrtm=sqrtm)
        want = theirs.fid.calculate_fid(*moments)
    assert frechet(a, b) == pytest.approx(want, rel=1e-8)


def scipy_sqrtm(m):
    from scipy.linalg import sqrtm

    return sqrtm(m)

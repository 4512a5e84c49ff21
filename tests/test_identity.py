"""What an embedder sees, what it is, how it stays frozen, the margin it is trained with, and which
files it is read from."""
import copy
import json
import math
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import onnx.reference
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import example_faces
from gfpgan_edu.faces import FFHQ_512, similarity, template, to_tensor
from gfpgan_edu.identity import (ARCFACE_112, ArcFaceResNet, GrayEmbedder, OnnxEmbedder, angle,
                                 arcface_logits, load_embedder, to_gray)
from gfpgan_edu.losses import identity
from gfpgan_edu.weights import WeightsError, load_weights, save

EXACT = dict(rtol=0, atol=0)
quick = settings(max_examples=25, deadline=None)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(seed=0, **config):
    "A small embedder whose normalisations are not the identity."
    torch.manual_seed(seed)
    net = ArcFaceResNet(**dict(width=4, dim=8, size=32) | config)
    for k, v in net.state_dict().items():
        if v.is_floating_point() and v.ndim == 1:
            v.add_(0.2 * torch.rand_like(v))
    return GrayEmbedder(net)


@pytest.fixture(scope="module")
def bundled():
    return load_embedder()


@pytest.fixture(scope="module")
def official_pth(tmp_path_factory):
    "A file as the official one: names with `module.`, random weights -> its path and its network."
    torch.manual_seed(0)
    net, path = ArcFaceResNet(), tmp_path_factory.mktemp("official") / "arcface_resnet18.pth"
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, path)
    return path, net.eval()


# ---------------------------------------------------------------- grey

@pytest.mark.parametrize("size, skip", [(512, slice(1, 3)), (256, slice(0, 2)), (128, slice(0, 1))])
def test_gray_is_the_official_brightness_without_antialiasing(size, skip):
    x, k = randn(2, 3, size, size), size // 128
    r, g, b = x.numpy().transpose(1, 0, 2, 3)
    blocks = (0.2989 * r + 0.5870 * g + 0.1140 * b).reshape(2, 128, k, 128, k)
    want = blocks[:, :, skip, :, skip].mean((2, 4))
    np.testing.assert_allclose(to_gray(x)[:, 0].numpy(), want, rtol=1e-10, atol=1e-12)


@quick
@given(st.integers(8, 80), st.integers(8, 80), st.integers(4, 64))
def test_gray_is_linear_and_takes_any_size(h, w, size):
    x = randn(1, 3, h, w)
    each = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=False)
    weights = torch.tensor([0.2989, 0.5870, 0.1140]).double()
    assert_close(to_gray(x, size)[:, 0], torch.einsum("c,bchw->bhw", weights, each))
    assert to_gray(x.float(), size).dtype == torch.float32


# ---------------------------------------------------------------- network

def test_names_shapes_and_counts_are_official():
    official = json.loads((Path(__file__).parent / "data/official_arcface.json").read_text())
    with torch.device("meta"):
        net = ArcFaceResNet()
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == official["state_dict"]
    assert list(net.state_dict()) == list(official["state_dict"])
    assert sum(p.numel() for p in net.parameters()) == official["parameters"] == 25_627_081
    assert net.config == dict(width=64, dim=512, size=128)


def test_forward_agrees_with_plain_functions():
    "Written once more from the names alone, with every step of the official order."
    net = tiny(seed=5, size=32).double().net
    w = net.state_dict()

    def norm(h, name):
        shape = (1, -1) + (1,) * (h.ndim - 2)
        mean, var, gain, bias = (w[f"{name}.{k}"].view(shape)
                                 for k in ("running_mean", "running_var", "weight", "bias"))
        return (h - mean) / (var + 1e-5).sqrt() * gain + bias

    def prelu(h, name):
        return h.clamp(min=0) + w[f"{name}.weight"] * h.clamp(max=0)

    x = randn(3, 1, 32, 32)
    h = F.max_pool2d(prelu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1"), "prelu"), 2, 2)
    for b in (f"layer{i}.{j}" for i in range(1, 5) for j in range(2)):
        stride = 2 if b in ("layer2.0", "layer3.0", "layer4.0") else 1
        f = F.conv2d(norm(h, f"{b}.bn0"), w[f"{b}.conv1.weight"], padding=1)
        f = prelu(norm(f, f"{b}.bn1"), f"{b}.prelu")
        f = norm(F.conv2d(f, w[f"{b}.conv2.weight"], stride=stride, padding=1), f"{b}.bn2")
        if stride == 2:
            h = norm(F.conv2d(h, w[f"{b}.downsample.0.weight"], stride=2), f"{b}.downsample.1")
        h = prelu(f + h, f"{b}.prelu")
    want = norm(norm(h, "bn4").flatten(1) @ w["fc5.weight"].t() + w["fc5.bias"], "bn5")
    assert want.std() > 0.1
    assert_close(net(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [100, 0, 8, -16])
def test_sizes_the_network_cannot_have(size):
    with pytest.raises(ValueError, match="multiple of 16"):
        ArcFaceResNet(size=size)


# ---------------------------------------------------------------- frozen

def test_embedder_stays_frozen_and_lets_gradients_through():
    embedder, restorer = tiny(), nn.Conv2d(3, 3, 1)
    whole = nn.ModuleList([restorer, embedder]).train()
    assert whole.training and restorer.training and not any(m.training for m in embedder.modules())
    assert not any(m.training for m in embedder.train().modules())
    before = copy.deepcopy(embedder.state_dict())
    x, y = randn(2, 2, 3, 40, 40, dtype=torch.float32)
    identity(embedder(restorer(x)), embedder(y)).backward()
    assert restorer.weight.grad.abs().min() > 0
    assert not any(p.requires_grad or p.grad is not None for p in embedder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in embedder.state_dict().items())
    assert_close(embedder(x[1:]), embedder(x)[1:], rtol=1e-4, atol=1e-5)


def test_identity_loss_is_blind_to_colour_and_its_gradient_is_right():
    embedder = tiny().double()
    x, y = randn(2, 1, 3, 32, 32, seed=3).clamp(-1, 1)
    x.requires_grad_()
    slope, = torch.autograd.grad(identity(embedder(x), embedder(y)), x)
    d, h = randn(1, 3, 32, 32, seed=4), 1e-6
    with torch.no_grad():
        up, down = (identity(embedder(x + step), embedder(y)) for step in (h * d, -h * d))
        change = (up - down) / (2 * h)
        tint = torch.tensor([0.1140, 0.0, -0.2989]).double().view(3, 1, 1)
        assert_close(embedder(x + tint), embedder(x), rtol=1e-9, atol=1e-9)
    assert_close(change, (slope * d).sum(), rtol=1e-4, atol=1e-9)
    weights = torch.tensor([0.2989, 0.5870, 0.1140]).double().div(0.5870).view(1, 3, 1, 1)
    assert_close(slope / slope[:, 1:2], weights.expand_as(slope), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- angle

@pytest.mark.parametrize("a, b, degrees", [
    ((1, 0), (5, 0), 0),
    ((1, 0), (0, 2), 90),
    ((1, 1), (-3, -3), 180),
    ((1, 0), (1, 1), 45),
    ((0, 0), (1, 0), 90)])
def test_known_angles(a, b, degrees):
    got = angle(torch.tensor([a]).double(), torch.tensor([b]).double())
    assert_close(got, torch.tensor([degrees]).double(), rtol=0, atol=1e-5)


@quick
@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_angle_is_symmetric_and_ignores_length(d, seed, k):
    a, b = randn(2, 9, d, seed=seed)
    cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(a.numpy(), b.numpy())]
    want = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    for got in (angle(a, b), angle(b, a), angle(k * a, b)):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-4)
    assert_close(angle(a, -b), 180 - angle(a, b), rtol=0, atol=1e-4)


def test_equal_and_opposite_vectors_give_numbers_in_single_precision():
    a = randn(4000, 64, dtype=torch.float32)
    assert (angle(a, a) < 0.1).all() and (angle(a, -a) > 179.9).all()           # false for NaN
    v = a.clone().requires_grad_()
    identity(v, a).backward()
    assert torch.equal(v.grad, torch.zeros_like(a))


# ---------------------------------------------------------------- margin

@quick
@given(st.integers(1, 6), st.integers(2, 8), st.integers(2, 16), st.floats(1, 64),
       st.integers(0, 10**6))
def test_no_margin_is_the_plain_cosine(b, n, d, scale, seed):
    e, w = randn(b, d, seed=seed), randn(n, d, seed=seed + 1)
    y = torch.arange(b) % n
    want = scale * F.cosine_similarity(e[:, None], w[None], dim=-1)
    assert_close(arcface_logits(e, w, y, scale, 0.0), want, rtol=1e-6, atol=1e-4)


@quick
@given(st.floats(0.01, 1.5), st.integers(0, 10**6))
def test_margin_lowers_the_right_logit_only(margin, seed):
    e, w, y = randn(6, 5, seed=seed), randn(4, 5, seed=seed + 1), torch.tensor([0, 1, 2, 3, 0, 1])
    plain, hard = arcface_logits(e, w, y, 10.0, 0.0), arcface_logits(e, w, y, 10.0, margin)
    right = F.one_hot(y, 4).bool()
    assert_close(hard[~right], plain[~right], **EXACT)
    assert (hard[right] < plain[right]).all()
    theta = torch.arccos(plain[right] / 10)
    inside = theta + margin < math.pi - 1e-3
    assert_close(hard[right][inside], 10 * torch.cos(theta + margin)[inside], rtol=1e-6, atol=1e-5)


@quick
@given(st.floats(0, 1.5))
def test_a_worse_angle_never_pays(margin):
    t = torch.linspace(1e-3, math.pi - 1e-3, 2000, dtype=torch.float64)
    e, w = torch.stack([t.cos(), t.sin()], 1), torch.tensor([[1.0, 0.0]]).double()
    logits = arcface_logits(e, w, torch.zeros(2000, dtype=torch.long), 1.0, margin)[:, 0]
    assert (logits.diff() < 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_margin_has_finite_gradients_where_arccos_is_steep(sign):
    e = torch.tensor([[sign, 0.0], [3 * sign, 0.0]], requires_grad=True)
    arcface_logits(e, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])).sum().backward()
    assert e.grad.isfinite().all()


# ---------------------------------------------------------------- files

def test_an_own_file_comes_back(tmp_path):
    embedder, path = tiny(), tmp_path / "own.safetensors"
    save(embedder.net, path)
    x = randn(2, 3, 50, 50, dtype=torch.float32)
    again = load_embedder(path)
    assert again.net.config == dict(width=4, dim=8, size=32)
    assert not any(p.requires_grad for p in again.parameters())
    assert_close(again(x), embedder(x), **EXACT)


def test_an_official_file_is_read(official_pth):
    path, net = official_pth
    embedder = load_embedder(str(path))
    x = randn(1, 3, 128, 128, dtype=torch.float32)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in embedder.net.state_dict().items())
    with torch.no_grad():
        assert_close(embedder(x), net(to_gray(x)), **EXACT)


def test_an_official_file_of_old_torch_lacks_counters(official_pth, tmp_path):
    path, net = official_pth
    state = torch.load(path, weights_only=True)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert torch.equal(load_embedder(tmp_path / "old.pth").net.fc5.weight, net.fc5.weight)


def changed(state, how):
    state = {k.removeprefix("module."): v for k, v in state.items()}
    if how == "missing":
        del state["bn5.running_var"]
    elif how == "extra":
        state["layer1.0.se.fc.0.weight"] = torch.zeros(4, 64)
    elif how == "shape":
        state["fc5.weight"] = state["fc5.weight"][:, :100]
    elif how == "nan":
        state["conv1.weight"] = state["conv1.weight"] * float("nan")
    elif how == "kind":
        state["conv1.weight"] = state["conv1.weight"].long()
    return state if how != "empty" else {}


@pytest.mark.parametrize("how, reason", [
    ("missing", "bn5.running_var is missing"),
    ("extra", "layer1.0.se.fc.0.weight, which the network has not"),
    ("empty", "conv1.weight is missing"),
    ("shape", r"fc5.weight is \(512, 100\), needs \(512, 32768\)"),
    ("nan", "conv1.weight holds NaN"),
    ("kind", "conv1.weight holds .*int64")])
def test_wrong_official_files_are_named_with_the_reason(official_pth, tmp_path, how, reason):
    path = tmp_path / "wrong.pth"
    torch.save(changed(torch.load(official_pth[0], weights_only=True), how), path)
    with pytest.raises(WeightsError, match=rf"wrong\.pth: .*{reason}") as e:
        load_embedder(path)
    assert len(str(e.value)) < 300


def test_other_wrong_files(tmp_path):
    def fails(path, match):
        with pytest.raises(WeightsError, match=match) as e:
            load_embedder(path)
        assert Path(path).name in str(e.value)

    fails(tmp_path / "none.pth", "no such file")
    fails(tmp_path / "none.safetensors", "not a readable safetensors file")
    (tmp_path / "text.pth").write_text("not found")
    fails(tmp_path / "text.pth", "not a plain file of tensors")
    save(load_weights(), tmp_path / "other.safetensors")
    fails(tmp_path / "other.safetensors", "holds a GFPGAN, needs a ArcFaceResNet")
    config = json.dumps(dict(width=4, dim=8, size=20))
    header = {"format": "gfpgan_edu", "network": "ArcFaceResNet", "config": config}
    save_file({"a": torch.zeros(1)}, tmp_path / "size.safetensors", metadata=header)
    fails(tmp_path / "size.safetensors", "multiple of 16")


# ---------------------------------------------------------------- networks of another habit

def tiny_onnx(path, shape=(-1, 4), channels=3, scale=1.0, last=("Reshape", ["c", "shape"], {})):
    "Convolution, mean over places and a last step, random weights, as an ONNX file -> its path."
    rng, helper = np.random.default_rng(0), onnx.helper
    weight = scale * rng.normal(0, 0.1, (4, channels, 5, 5)).astype(np.float32)
    bias = rng.normal(0, 0.1, 4).astype(np.float32)
    held = dict(weight=weight, bias=bias, shape=np.array(shape))
    held = [onnx.numpy_helper.from_array(np.asarray(v, v.dtype), k) for k, v in held.items()]
    steps = [("Conv", ["x", "weight", "bias"], "a", dict(strides=[4, 4])),
             ("Relu", ["a"], "b", {}),
             ("GlobalAveragePool", ["b"], "c", {}),
             (*last[:2], "y", last[2])]
    nodes = [helper.make_node(op, inputs, [output], **how) for op, inputs, output, how in steps]
    x = helper.make_tensor_value_info("x", 1, ["n", channels, 112, 112])
    y = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "tiny", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    return tiny_onnx(tmp_path_factory.mktemp("onnx") / "public.onnx")


@pytest.fixture(scope="module")
def public(onnx_path):
    return load_embedder(onnx_path)


@pytest.mark.parametrize("size", [64, 112, 128, 256, 512])
def test_the_five_points_go_where_the_similarity_takes_them(public, size):
    landing = np.c_[FFHQ_512, np.ones(5)] @ similarity(FFHQ_512, ARCFACE_112).T
    # the best there is: the templates differ in shape
    assert np.linalg.norm(landing - ARCFACE_112, axis=1).max() < 3
    at, width = np.arange(size), max(1, size / 128)
    columns, rows = np.meshgrid(np.arange(112), np.arange(112))
    dots = sum(np.exp(-((at[:, None] - v) ** 2 + (at - u) ** 2) / 2 / width**2)
               for u, v in template(size))
    out = public.align(torch.tensor(dots).expand(1, 3, size, size))[0, 0].numpy()
    for u, v in landing:
        dot = out * (np.hypot(columns - u, rows - v) < 8)
        x, y = (dot * columns).sum() / dot.sum(), (dot * rows).sum() / dot.sum()
        assert np.hypot(x - u, y - v) < 0.1


@pytest.mark.parametrize("size", [40, 64, 112, 128, 150])
def test_small_pictures_are_warped_as_opencv_does(public, size):
    noise = np.random.default_rng(size).uniform(-1, 1, (size, size, 3)).astype(np.float32)
    x = cv2.GaussianBlur(noise, (0, 0), 0.8)
    warped = cv2.warpAffine(x, similarity(template(size), ARCFACE_112), (112, 112),
                            flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    ours = public.align(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    # some builds of OpenCV round places to 1/32 px
    assert_close(ours, warped, rtol=0, atol=0.03)
    assert np.abs(warped).max() > 0.3


def test_large_pictures_are_filtered_first(public):
    stripes = torch.ones(512, 512)
    stripes[:, ::2] = -1                                    # too fine for 112 px: grey
    assert public.align(stripes.expand(1, 3, 512, 512)).abs().max() < 0.05
    face = to_tensor(example_faces(1, 128))
    large = public.align(F.interpolate(face, (512, 512), mode="bicubic", align_corners=False))
    assert (large - public.align(face)).abs().mean() < 0.02


def test_onnx_vectors_are_those_of_the_file(public, onnx_path):
    x = randn(3, 3, 90, 90, dtype=torch.float32).tanh()
    crops = public.align(x)
    fed = ((crops.numpy() + 1) * 127.5 - 127.5) / 128
    wanted, = onnx.reference.ReferenceEvaluator(str(onnx_path)).run(None, {"x": fed})
    assert_close(public(x).numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert wanted.shape == (3, 4) and np.ptp(wanted, axis=0).min() > 1e-4


def test_a_batch_that_comes_out_flattened(public, tmp_path):
    flat = OnnxEmbedder(tiny_onnx(tmp_path / "flat.onnx", (1, -1)))
    x = randn(3, 3, 64, 64, dtype=torch.float32)
    assert flat.net(flat.align(x)).shape == (1, 12)
    assert_close(flat(x), public(x), **EXACT)
    assert_close(flat(x[2:]), flat(x)[2:], rtol=1e-4, atol=1e-5)


def test_onnx_embedder_is_frozen_and_lets_gradients_through(public):
    trainer = nn.ModuleDict(dict(judge=public)).train()
    assert trainer.training and not any(m.training for m in public.modules())
    assert not any(p.requires_grad for p in public.parameters())
    x = randn(2, 3, 128, 128, dtype=torch.float32).requires_grad_()
    identity(public(x), public(x.detach() + 0.1)).backward()
    reached = (x.grad != 0).any(1)
    # the crop, nothing beside it
    assert reached[:, 40:90, 40:90].float().mean() > 0.99
    assert not reached[..., :8].any() and not reached[..., -8:].any()


def test_onnx_alignment_is_not_rounded(public):
    x = randn(1, 3, 128, 128, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = public.align(x)
    assert_close(inside, public.align(x), **EXACT)
    assert_close(public.align(x.bfloat16()), public.align(x.bfloat16().float()), **EXACT)
    assert "grid" not in public.state_dict()


@pytest.mark.parametrize("how, reason", [
    ("none", "no such file"),
    ("text", r"not a network for faces of 112 px \("),
    ("empty", "not a network"),
    ("cut", r"not a network for faces of 112 px \("),
    ("gray", "RuntimeError"),
    ("one", "RuntimeError"),
    ("mixed", "does not take two faces at once"),
    ("nan", "holds NaN"),
    ("unknown", "Mystery"),
    ("folder", "no such file"),
    ("package", "needs the package onnx2torch")])
def test_wrong_onnx_files_are_named_with_the_reason(onnx_path, tmp_path, how, reason):
    path = tmp_path / "odd.onnx"
    whole = onnx_path.read_bytes()
    if how == "folder":
        path.mkdir()
    elif how in ("text", "empty", "cut", "package"):
        content = dict(text=b"not a network", empty=b"", cut=whole[:len(whole) // 2], package=whole)
        path.write_bytes(content[how])
    elif how != "none":
        odd = dict(gray=dict(channels=1), one=dict(shape=(1, 4)),
                   mixed=dict(last=("Transpose", ["c"], dict(perm=[1, 0, 2, 3]))),
                   nan=dict(scale=float("nan")), unknown=dict(last=("Mystery", ["c"], {})))
        tiny_onnx(path, **odd[how])
    modules = {"onnx2torch": None} if how == "package" else {}
    says = rf"(?s)odd\.onnx: .*{reason}"
    with patch.dict("sys.modules", modules), pytest.raises(WeightsError, match=says) as e:
        load_embedder(str(path))
    assert "\n" not in str(e.value) and len(str(e.value)) < 300 + len(str(path))


# ---------------------------------------------------------------- the bundled one

def test_bundled_embedder_is_small_frozen_and_described(bundled):
    import gfpgan_edu.identity as module

    path = Path(module.__file__).parent / "bundled" / f"{module.BUNDLED_EMBEDDER}.safetensors"
    assert path.stat().st_size <= 2_000_000
    assert path.with_suffix(".md").read_text().count("not for recognising people") == 1
    assert not bundled.training and not any(p.requires_grad for p in bundled.parameters())
    run = json.loads((Path(__file__).parents[1] / "figures/embedder.json").read_text())
    assert bundled.net.config == run["config"]
    assert sum(p.numel() for p in bundled.parameters()) == run["parameters"]
    assert all(v.isfinite().all() for v in bundled.state_dict().values())


def crops():
    "Pictures that are not the astronaut's face, 128 px."
    import cv2
    from skimage import data

    sources = [data.chelsea()[20:280, 100:360], data.coffee()[50:350, 150:450],
               data.astronaut()[256:512, 0:256],
               np.repeat(data.camera()[80:336, 120:376, None], 3, 2),
               data.rocket()[:400, 100:500]]
    small = [cv2.resize(np.ascontiguousarray(s), (128, 128), interpolation=cv2.INTER_AREA)
             for s in sources]
    return to_tensor(np.stack(small))


def test_degraded_views_of_one_face_are_closer_to_each_other_than_to_other_pictures(bundled):
    face = example_faces(1, 128)[0]
    damages = [DegradationParams(sigma_x=2, sigma_y=2, kernel_size=11, delta=8, q=70, noise_seed=1),
               DegradationParams(r=3, delta=5, q=60, noise_seed=2),
               DegradationParams(sigma_x=3, sigma_y=1, theta=0.5, kernel_size=17)]
    views = bundled(to_tensor(np.stack([degrade(face, p) for p in damages])))
    others = bundled(crops())
    own = angle(views[:, None], views[None])
    apart = angle(views[:, None], others[None])
    assert own.max() < apart.min() - 10


def test_bundled_embedder_follows_the_damage_and_the_picture_size(bundled):
    face = example_faces(1, 128)[0]
    sharp = bundled(to_tensor(face))
    blurred = (degrade(face, DegradationParams(sigma_x=s, sigma_y=s)) for s in (0, 1, 2, 4))
    at = [angle(sharp, bundled(to_tensor(view))).item() for view in blurred]
    assert at[0] < 0.1 and at == sorted(at)
    # 256 px: means of 2×2 give the face back
    large = F.interpolate(to_tensor(face), scale_factor=2, mode="nearest")
    assert angle(sharp, bundled(large)).item() < 0.1

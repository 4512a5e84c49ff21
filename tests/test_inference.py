"""The fused restorer is the plain one, faster; its ONNX file is the plain one, elsewhere; the
benchmark measures what it says."""
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.inference import (FusedGFPGAN, FusedModulatedConv2d, FusedResample,
                                  enlarge_and_convolve, export_onnx, fuse)
from gfpgan_edu.layers import Resample
from gfpgan_edu.stylegan2 import ModulatedConv2d
from gfpgan_edu.weights import WeightsError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/bench"))
import inference as bench  # noqa: E402

TINY = GFPGANConfig.tiny(32)
pytestmark = pytest.mark.usefixtures("one_thread")


def restless(config=TINY):
    """A net in which nothing is zero: what begins as zero (biases, noise strengths) would hide
    mistakes."""
    net = GFPGAN(config).eval().requires_grad_(False)
    for p in net.parameters():
        p += torch.randn_like(p) * (0.3 if p.ndim < 2 else 0.02)
    return net


def faces(n=1, size=32):
    return torch.rand(n, 3, size, size) * 2 - 1


def away(got, want):
    "Largest difference, as a share of the range of what is wanted."
    return ((got - want).abs().max() / (want.max() - want.min())).item()


# ---------------------------------------------------------------- the same function

@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([8, 16, 32, 64]), sft=st.sampled_from(["none", "half", "full"]),
       w=st.sampled_from(["one", "per_layer"]), resample=st.sampled_from(["fir", "bilinear"]),
       equalized=st.booleans(), use_prior=st.booleans(), share=st.sampled_from([1, 0.4]),
       b=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_fused_is_plain_for_every_config(size, sft, w, resample, equalized, use_prior, share, b,
                                         seed):
    torch.manual_seed(seed)
    net = restless(TINY.replace(size=size, sft=sft, w=w, resample=resample, equalized=equalized,
                                use_prior=use_prior, prior_share=share))
    x = faces(b, size)
    image, pyramid = fuse(net)(x)
    assert image.shape == (b, 3, size, size) and image.dtype == torch.float32 and pyramid == []
    assert away(image, net(x)[0]) < 2e-5


@pytest.mark.parametrize("sft", ["none", "half", "full"])
@pytest.mark.parametrize("resample", ["fir", "bilinear"])
def test_every_picture_of_a_batch_is_as_alone(sft, resample):
    "One picture takes other branches than three."
    fused, x = fuse(restless(TINY.replace(sft=sft, resample=resample))), faces(3)
    together = fused(x)[0]
    for i in range(3):
        assert away(fused(x[i : i + 1])[0], together[i : i + 1]) < 2e-5


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("resample", ["fir", "bilinear"])
@pytest.mark.parametrize("side", [2, 32])       # below and above where the weight is smaller
@pytest.mark.parametrize("demodulate", [True, False])
def test_style_in_the_weight_or_in_the_map(up, resample, side, demodulate):
    conv = ModulatedConv2d(6, 4, 3, 5, demodulate=demodulate, up=up, resample=resample, gain=1.3)
    conv.requires_grad_(False)
    bias, x, w = torch.randn(4), torch.randn(1, 6, side, side), torch.randn(1, 5)
    assert (conv.weight.numel() < x.numel()) == (side == 32)
    fused = FusedModulatedConv2d(conv, bias, torch.float32)
    assert_close(fused(x, w), conv(x, w) + bias[:, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["fir", "bilinear"])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (2, 5, 8, 8), (1, 1, 6, 10)])
def test_resampling_is_that_of_the_layers(mode, shape):
    x, plain = torch.randn(shape), Resample(mode)
    fused = FusedResample(plain, torch.float32)
    assert_close(fused.up(x), plain.up(x), rtol=1e-5, atol=1e-5)
    assert_close(fused.down(x), plain.down(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 2), h=st.integers(1, 9), w=st.integers(1, 7), band=st.integers(1, 700),
       biased=st.booleans(), seed=st.integers(0, 99))
def test_bands_together_are_the_whole_map(b, h, w, band, biased, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(b, 3, h, w), torch.randn(4, 3, 3, 3)
    bias = torch.randn(4) if biased else None
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    whole = torch.nn.functional.conv2d(large, weight, bias, padding=1)
    assert_close(enlarge_and_convolve(x, weight, bias, band), whole, rtol=1e-5, atol=1e-5)


def test_the_noise_that_is_fused_is_the_stored_noise():
    net, x = restless(), faces()
    fused = fuse(net)(x)[0]
    assert away(fused, net(x, noise="zero")[0]) > 0.01
    assert away(fused, net(x, noise="fixed")[0]) < 2e-5


@pytest.mark.parametrize("resample", ["fir", "bilinear"])
def test_bfloat16_is_close(resample):
    net, x = restless(TINY.replace(resample=resample)), faces(2)
    want, image = net(x)[0], fuse(net, torch.bfloat16)(x)[0]
    assert image.dtype == torch.float32
    error = (image - want).square().mean().sqrt()
    psnr = 20 * torch.log10((want.max() - want.min()) / error).item()
    assert 40 <= psnr < 80                                      # close, but not secretly float32


# ---------------------------------------------------------------- a good neighbour

@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_was_made_from_and_what_it_is_given_stay_as_they_were(b, dtype):
    net, x = restless(), faces(b)
    before, given_, want = copy.deepcopy(net.state_dict()), x.clone(), net(x)[0]
    fused = fuse(net, dtype)
    first = fused(x)[0]
    assert torch.equal(x, given_)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    kept = copy.deepcopy(fused.state_dict())
    assert torch.equal(fused(x)[0], first)              # nothing of itself is worked on in place
    assert all(torch.equal(v, kept[k]) for k, v in fused.state_dict().items())
    for p in net.parameters():
        p.zero_()
    assert torch.equal(fused(x)[0], first)
    assert not torch.equal(want, net(x)[0])                     # a copy, not a view


def test_fusing_twice_is_fusing_once():
    fused = fuse(restless())
    assert fuse(fused) is fused and isinstance(fused, FusedGFPGAN)


def test_wrong_input_is_named():
    fused = fuse(restless())
    for shape in [(1, 3, 16, 16), (1, 1, 32, 32), (3, 32, 32), (1, 3, 32, 64)]:
        with pytest.raises(ValueError, match=r"needs \(b, 3, 32, 32\)"):
            fused(torch.zeros(shape))


def test_threads_do_not_change_the_picture():
    fused, x = fuse(restless()), faces()
    one = fused(x)[0]
    torch.set_num_threads(8)                                    # the fixture puts it back
    assert_close(fused(x)[0], one, rtol=0, atol=1e-5)


def test_it_is_a_module_that_moves():
    net, x = restless(), faces()
    fused, other = fuse(net), fuse(restless())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not torch.equal(other(x)[0], fused(x)[0])
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(x)[0], fused(x)[0])
    assert copy.deepcopy(fused).config == net.config
    assert torch.equal(copy.deepcopy(fused)(x)[0], fused(x)[0])
    kinds = {v.device.type for v in fuse(net).to("meta").state_dict().values()}
    assert kinds == {"meta"} and fused.dtype == torch.float32
    exact = lambda k: "squares" in k or "modulation" in k or "shift" in k[-5:]
    half = fuse(net, torch.bfloat16).state_dict()
    assert {v.dtype for k, v in half.items() if not exact(k)} == {torch.bfloat16}


def test_photos_take_it():
    from gfpgan_edu.examples import astronaut
    from gfpgan_edu.photos import restore
    from gfpgan_edu.weights import load_weights

    net = load_weights()
    plain = restore(astronaut(), net).image.astype(int)
    quick = restore(astronaut(), fuse(net)).image.astype(int)
    assert np.abs(plain - quick).max() <= 1 and (plain != astronaut()).any()


# ---------------------------------------------------------------- ONNX

@pytest.mark.parametrize("changes", [
    {},
    dict(resample="bilinear", equalized=False, sft="full"),
    dict(use_prior=False),
    dict(sft="none", w="one", size=8),
], ids=str)
def test_the_onnx_file_is_the_same_function_for_any_batch(changes, tmp_path, recwarn):
    net = restless(TINY.replace(**changes)).train()
    export_onnx(net, tmp_path / "net.onnx", weights="tiny", licence="none")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and net.training
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx",
                                           providers=["CPUExecutionProvider"])
    size = net.config.size
    (i,), (o,) = session.get_inputs(), session.get_outputs()
    assert (i.name, i.shape) == ("face", ["b", 3, size, size])
    assert (o.name, o.shape) == ("restored", ["b", 3, size, size])
    for b in (1, 3):
        x = faces(b, size)
        restored = torch.from_numpy(session.run(None, {"face": x.numpy()})[0])
        assert away(restored, net(x)[0]) < 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert about["weights"] == "tiny" and about["licence"] == "none" and about["size"] == str(size)
    assert GFPGANConfig.from_dict(json.loads(about["config"])) == net.config
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"))


def test_what_cannot_be_exported_leaves_nothing(tmp_path, monkeypatch):
    net = restless()
    with pytest.raises(ValueError, match="needs a GFPGAN, got FusedGFPGAN"):
        export_onnx(fuse(net), tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_text("older")
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "onnxscript", None)
        m.setattr(torch.onnx, "export", lambda *_, **__: __import__("onnxscript"))
        with pytest.raises(WeightsError, match=r"a.onnx: .*pip install gfpgan_edu\[onnx\]"):
            export_onnx(net, tmp_path / "a.onnx")
    with monkeypatch.context() as m:                    # the disk is full at the last moment
        def full(*_):
            raise OSError(28, "No space left on device")
        m.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            export_onnx(net, tmp_path / "a.onnx")
    with pytest.raises(OSError):
        export_onnx(net, tmp_path / "none" / "b.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "older"


def test_without_the_package_the_message_is_one_line(tmp_path):
    "In a process of its own: the exporter is imported once."
    code = f"""
import sys
sys.modules["onnxscript"] = None
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.inference import export_onnx
try:
    export_onnx(GFPGAN(GFPGANConfig.tiny(8)), {str(tmp_path / "a.onnx")!r})
except ValueError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    assert "pip install gfpgan_edu[onnx]" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the benchmark

@pytest.fixture
def alone(monkeypatch):
    "Ours in the place of the official network, whose packages need not be there."
    class Official(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, return_rgb, randomize_noise):
            return self.net(x)
    monkeypatch.setattr(bench, "official_like", lambda family, config: Official(restless(config)))
    monkeypatch.setattr(bench, "from_official", lambda state, family: _filled(state, family))
    monkeypatch.setattr(bench, "MEMORY", ("import only", "fused fp32"))


def _filled(state, family):
    config = bench.FAMILIES["GFPGANv1" if family == "v1" else "Clean, cm 1"][1]
    net = GFPGAN(config.replace(size=32, narrow=1 / 16, style_dim=32, n_mlp=2)).eval()
    net.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    return net


def test_the_benchmark_runs_and_merges(alone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    out, words = tmp_path / "b.json", ["--tiny", "--rounds", "2", "--out", str(tmp_path / "b.json")]
    bench.main([*words, "--only", "GFPGANv1", "--part", "time", "memory"])
    first = json.loads(out.read_text())
    bench.main([*words, "--only", "Clean, cm 1", "--part", "time"])
    found = json.loads(out.read_text())
    assert found["families"].keys() == {"GFPGANv1", "Clean, cm 1"}
    assert found["families"]["GFPGANv1"] == first["families"]["GFPGANv1"]
    for row in found["families"].values():
        check_row(row)
    assert 0 < row["flops"]["fused"] <= row["flops"]["plain"]
    peaks = first["families"]["GFPGANv1"]["peak_bytes"]
    assert 1e8 < peaks["import only"] <= peaks["fused fp32"] * 1.02 < 4e9


def check_row(row):
    names = {"official", "official, autocast bf16", "plain", "fused fp32", "fused bf16",
             "onnxruntime"}
    seconds, fused = row["seconds"], row["flops"]["fused"]
    assert seconds.keys() == row["ratio"].keys() == names
    for name in names:
        ratio = seconds["official"] / seconds[name]
        assert row["ratio"][name] == pytest.approx(ratio, rel=0.02)
    for k in ("fp32", "bf16"):
        share = fused / seconds[f"fused {k}"] / row["convolution_rate"][k]
        assert row["share_of_rate"][k] == pytest.approx(share, rel=0.02)
    for shares in row["time_by_kind"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
        assert shares.keys() == {"convolutions", "activations", "resizing", "the rest"}
        assert shares["convolutions"] > 0
    assert max(row["largest_difference"].values()) < 1e-4 * row["range"]
    assert min(row["psnr"].values()) > 35


def test_medians_leave_out_the_first_turn(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    waits = {"a": iter([99, 1, 5, 2]), "b": iter([99, 3, 3, 9])}
    work = lambda name: lambda: now.__setitem__(0, now[0] + next(waits[name]))
    assert bench.alternately({"a": work("a"), "b": work("b")}, 3) == {"a": 2, "b": 3}


def test_convolutions_are_found_with_their_work():
    fused, x = fuse(restless(TINY.replace(resample="bilinear"))), faces()
    with torch.no_grad(), bench.Convolutions() as c:
        bench.unwrapped(fused)(x)
    work = sum(n * 2 * np.prod(w) * np.prod(shape[2:]) / np.prod(stride)
               for (shape, w, stride, _, transposed), n in c.found.items())
    assert not any(k[4] for k in c.found)
    # the rest: linear layers
    assert work == pytest.approx(bench.flops(bench.unwrapped(fused), x), rel=0.02)
    assert bench.convolution_rate(c.found, torch.float32, 1) > 0


def test_without_the_official_packages_it_says_how(tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise ImportError("not here")
    monkeypatch.setattr(bench, "official_like", missing)
    with pytest.raises(SystemExit) as e:
        bench.main(["--tiny", "--out", str(tmp_path / "b.json")])
    err = capsys.readouterr().err
    assert e.value.code == 1 and err.count("\n") == 1 and "tests/peer/README.md" in err
    assert not list(tmp_path.iterdir())


def test_the_stored_measurement_is_whole_and_names_no_place():
    text = (ROOT / "figures/bench/inference.json").read_text()
    stored = json.loads(text)
    assert stored.keys() >= {"machine", "torch", "onnxruntime", "date", "command", "size", "batch",
                             "rounds"}
    assert stored["size"] == 512 and stored["rounds"] >= 5
    assert stored["families"].keys() == bench.FAMILIES.keys()
    assert "/work" not in text and "/home" not in text
    for row in stored["families"].values():
        check_row(row)
        assert row["ratio"]["fused bf16"] > row["ratio"]["fused fp32"] > 1
        assert row["peak_bytes"].keys() == {"import only", "plain", "fused fp32", "fused bf16",
                                            "onnxruntime", "official"}


@pytest.mark.parametrize("config", [
    TINY,
    TINY.replace(resample="bilinear", equalized=False),
    TINY.replace(use_prior=False),
])
def test_consuming_gives_the_same_and_frees_every_weight_that_was_copied(config):
    net, x = restless(config), faces(2)
    want, twin = fuse(net)(x)[0], copy.deepcopy(net)
    assert torch.equal(fuse(twin, consume=True)(x)[0], want)
    copied = [name for name, p in twin.named_parameters() if not p.numel()]
    left = [name for name, p in twin.named_parameters() if p.numel()]
    parts = "unet.down", "unet.up", "synthesis.convs", "to_w"
    assert copied and not any(part in name for name in left for part in parts), left
    whole = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in twin.parameters()) < 0.6 * whole


def test_loading_weights_imports_no_compiler():
    "The meta device would: 900 modules, two seconds and 150 MB before the first weight is read."
    code = ("import sys; from gfpgan_edu.weights import load_weights; load_weights(); "
            "sys.exit('sympy' in sys.modules or 'torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

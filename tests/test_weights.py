"""Weights: our files, official files, conversion, and download. No network: the other side is a
server on this machine."""
import hashlib
import json
import os
import re
import stat
import struct
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_weights import made_state, uniform
from peak import peak
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import gfpgan_edu.weights as weights
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.weights import (FAMILIES, RELEASES, Release, WeightsError, cache_dir, download,
                                from_official, generator_names, load, load_weights, load_prior,
                                prior_from_official, read_header, recognise, save, sha256_of,
                                to_clean, to_official)

DATA = Path(__file__).parent / "data"
SHAPES = json.loads((DATA / "official_shapes.json").read_text())
TINY = GFPGANConfig.tiny(16)
quick = settings(max_examples=25, deadline=None)


def tiny_net(**changes):
    torch.manual_seed(0)
    net = GFPGAN(TINY.replace(**changes)).eval().requires_grad_(False)
    for p in net.parameters():
        if p.ndim == 1:
            p += 0.2 * torch.randn_like(p)
    return net


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- our files

def test_round_trip_keeps_every_bit_and_the_header(tmp_path):
    net = tiny_net(sft="full", w="one")
    net.to_w.weight[0, 0] = 1e-44                                # a subnormal number survives too
    save(net, tmp_path / "a.safetensors", steps=7, licence="CC0")
    back, header = load(tmp_path / "a.safetensors"), read_header(tmp_path / "a.safetensors")
    assert same(net.state_dict(), back.state_dict()) and not back.training
    assert back.config == header["config"] == net.config
    assert (header["steps"], header["licence"]) == ("7", "CC0")
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_metadata_cannot_replace_the_config(tmp_path):
    save(tiny_net(), tmp_path / "a.safetensors", config="another", format="another")
    assert load(tmp_path / "a.safetensors").config == TINY


def test_half_precision_rounds_within_its_bound(tmp_path):
    net = tiny_net()
    save(net, tmp_path / "a.safetensors", dtype=torch.float16)
    back = load(tmp_path / "a.safetensors")
    for a, b in zip(net.state_dict().values(), back.state_dict().values(), strict=True):
        assert b.dtype == torch.float32 and ((a - b).abs() <= a.abs() * 2**-11 + 2**-25).all()


def test_saving_is_atomic_and_refuses_what_could_not_be_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    save(tiny_net(), path)
    before = path.read_bytes()
    for bad, dtype in (1e6, torch.float16), (float("nan"), None):
        net = tiny_net()
        net.to_w.bias[3] = bad
        with pytest.raises(WeightsError, match="a.safetensors.*to_w.bias"):
            save(net, path, dtype=dtype)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_saved_file_has_the_permissions_of_any_other(tmp_path):
    save(tiny_net(), tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    ours, other = ((tmp_path / name).stat() for name in ("a.safetensors", "b"))
    assert stat.S_IMODE(ours.st_mode) == stat.S_IMODE(other.st_mode)


def rewrite(path, change_state=lambda s: s, change_meta=lambda m: m):
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    save_file(change_state(load_file(path)), path, metadata=change_meta(meta))


def in_state(change):
    return lambda path: rewrite(path, change_state=change)


def in_meta(change):
    return lambda path: rewrite(path, change_meta=change)


def in_bias(change):
    return in_state(lambda s: s | {"to_w.bias": change(s["to_w.bias"])})


def config_is(text):
    return in_meta(lambda m: m | {"config": text})


def config_with(**changes):
    return config_is(json.dumps(TINY.to_dict() | changes))


UNREADABLE = "not a readable safetensors file"
uint64 = struct.Struct("<Q").pack           # a file begins with the length of its header
DAMAGE = {
    "missing key": (in_state(lambda s: {k: v for k, v in s.items() if k != "to_w.bias"}),
                    "1 keys missing.*to_w.bias"),
    "extra key": (in_state(lambda s: s | {"hello": torch.zeros(1)}), "1 unexpected.*hello"),
    "shape": (in_bias(lambda b: torch.zeros(5)), r"to_w.bias is \(5,\)"),
    "transposed": (in_state(lambda s: s | {"to_w.weight": s["to_w.weight"].t().contiguous()}),
                   "to_w.weight is"),
    "nan": (in_bias(lambda b: b * float("nan")), "to_w.bias holds NaN"),
    "integers": (in_bias(lambda b: b.int()), "to_w.bias holds torch.int32"),
    "no config": (in_meta(lambda m: {"format": "pt"}), "no usable config"),
    "config not JSON": (config_is("{"), "no usable config"),
    "config a list": (config_is("[1]"), "no usable config"),
    "config a number": (config_is("1"), "no usable config"),
    "unknown config key": (config_with(colour="red"), "unknown config keys.*colour"),
    "impossible size": (config_with(size=17), "size is 17"),
    "another size": (config_with(size=32), "keys missing"),
    "endless mapping": (config_with(n_mlp=10**9), "at most 100"),
    "terabytes wide": (config_with(narrow=999.0), "is .* needs"),
    "beyond all measure": (config_with(narrow=1e9), "below 1000"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), UNREADABLE),
    "zero bytes": (lambda p: p.write_bytes(b""), UNREADABLE),
    "a text file": (lambda p: p.write_text("what is this"), UNREADABLE),
    "10 GB header": (lambda p: p.write_bytes(uint64(10 * 2**30) + p.read_bytes()[8:]), UNREADABLE),
    "gone": (lambda p: p.unlink(), UNREADABLE),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), UNREADABLE),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), UNREADABLE),
    "11 MB header": (lambda p: p.write_bytes(uint64(11 * 10**6) + b"{" + bytes(12 * 10**6)),
                     "claims 11000000 bytes"),
    "header no JSON": (lambda p: p.write_bytes(uint64(20) + b"{'single': quotes}   "), UNREADABLE),
    "header not UTF-8": (lambda p: p.write_bytes(uint64(8) + b"\xff" * 8), UNREADABLE),
    "header a list": (lambda p: p.write_bytes(uint64(2) + b"[]"), UNREADABLE),
    "deep config": (config_is("[" * 100_000), "no usable config"),
    "config a word": (in_meta(lambda m: m | {"config": '"tiny"', "network": "StyleGAN2"}),
                      "no usable config"),
    "size 2^30": (config_with(size=2**30), "size is 1073741824"),
    "size of thousands of digits": (config_with(size=10**4000), "size is 1000"),
    "size a word": (config_with(size="64"), "size is '64'"),
    "narrow beyond floats": (config_with(narrow=1e308, channel_multiplier=1e308),
                             "no usable config"),
    "another network": (in_meta(lambda m: m | {"network": "x\n" * 9999}), "holds a x x x"),
    "names of a megabyte": (in_state(lambda s: s | {"line\nbreak" * 10**5: torch.zeros(1)}),
                            "1 unexpected"),
    "too large for 32 bits": (in_bias(lambda b: b.double() + 1e300),
                              "to_w.bias holds NaN or infinity"),
    "nan in 8 bits": (in_bias(lambda b: (b * float("nan")).to(torch.float8_e4m3fn)),
                      "to_w.bias holds NaN"),
    "truth values": (in_bias(lambda b: b.bool()), "to_w.bias holds torch.bool"),
    "complex": (in_bias(lambda b: b.to(torch.complex64)), "to_w.bias holds torch.complex64"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_ours_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "mine.safetensors"
    save(tiny_net(), path)
    change, reason = DAMAGE[damage]
    change(path)
    with pytest.raises(WeightsError, match=reason) as e:
        load(path)
    assert str(path) in str(e.value) and len(str(e.value)) < 1000 and "\n" not in str(e.value)


def test_a_prior_whose_config_lies_costs_no_memory(tmp_path):
    "The config of a prior is arguments of its class, so it is the class that refuses."
    prior, path = StyleGAN2(8, 8, 1, narrow=1 / 64), tmp_path / "prior.safetensors"
    lies = [dict(size=2**30), dict(size=1024), dict(style_dim=2**40), dict(narrow=1e6),
            dict(narrow=1e308), dict(n_mlp=10**9), dict(n_mlp="8"), dict(size=[8]),
            dict(style_dim=8.5), dict(resample=7), dict(colour=1), dict(self=1)]
    for change in lies:
        save(prior, path)
        config_is(json.dumps(prior.config | change))(path)
        before = peak()
        with pytest.raises(WeightsError, match="prior.safetensors"):
            load_prior(path)
        assert peak() - before < 200e6, change


@quick
@given(st.integers(0, 5_000), st.integers(0, 255))
def test_one_wrong_byte_never_crashes_the_loader(tmp_path_factory, position, value):
    path = tmp_path_factory.mktemp("byte") / "mine.safetensors"
    save(tiny_net(), path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        # a byte of a weight, or the one that was there
        assert load(path).config.size in (8, 16)
    except WeightsError as e:
        assert str(path) in str(e)


# ---------------------------------------------------------------- official names and shapes

def shapes_of(kind, multiplier):
    return SHAPES[kind]["c1"] | (SHAPES[kind]["c2"] if multiplier == 2 else {})


def cheap_state(shapes):
    """Small random values; the tensors share one buffer, since the full networks would fill the
    memory."""
    sizes = {k: torch.Size(s) for k, s in shapes.items()}
    largest = max(s.numel() for s in sizes.values())
    pool = 0.01 * torch.randn(largest + 285, generator=torch.Generator().manual_seed(0))
    return {k: pool[i:i + s.numel()].view(s) for i, (k, s) in enumerate(sizes.items())}


@pytest.mark.parametrize("family,multiplier", [
    ("v1", 1),
    ("bilinear", 2),
    ("clean", 1),
    ("clean", 2),
])
def test_the_official_networks_at_512_px(family, multiplier):
    shapes = shapes_of("clean" if family == "clean" else "equalized", multiplier)
    assert len(shapes) == 285
    state = cheap_state(shapes)
    net = from_official(state, family)
    assert net.config == GFPGANConfig(channel_multiplier=multiplier, **FAMILIES[family])
    assert same(to_official(net), state)
    total = 76_207_244 if multiplier == 1 else 86_444_252
    assert sum(p.numel() for p in net.parameters()) == total


def test_the_official_prior_at_512_px():
    prefix, every = "stylegan_decoder.", shapes_of("equalized", 2)
    shapes = {k.removeprefix(prefix): s for k, s in every.items() if k.startswith(prefix)}
    state = cheap_state(shapes)
    prior = prior_from_official({"params_ema": state})
    learnt = sum(p.numel() for p in prior.parameters())
    noise = sum(b.numel() for b in prior.synthesis.buffers(recurse=False))
    assert learnt + noise == sum(v.numel() for v in state.values())
    fourth = prior.synthesis.convs[3].conv.weight
    assert torch.equal(fourth[None], state["style_convs.2.modulated_conv.weight"])


@pytest.mark.parametrize("kind,family", [
    ("equalized", "v1"),
    ("equalized", "bilinear"),
    ("clean", "clean"),
])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_names_and_shapes_without_the_memory(kind, family, multiplier):
    "The full lists again, for every family and width, on the meta device."
    config = GFPGANConfig(channel_multiplier=multiplier, **FAMILIES[family])
    with torch.device("meta"):
        net = GFPGAN(config)
    assert {k: list(v.shape) for k, v in to_official(net).items()} == shapes_of(kind, multiplier)
    assert recognise(to_official(net), family) == config


@quick
@given(size=st.sampled_from([8, 16, 64, 128]), channels=st.integers(1, 12).map(lambda n: 16 * n),
       multiplier=st.sampled_from([0.5, 1, 1.5, 2, 4]), n_mlp=st.integers(1, 9),
       style_dim=st.integers(1, 40), sft=st.sampled_from(["half", "full"]),
       w=st.sampled_from(["one", "per_layer"]), family=st.sampled_from(sorted(FAMILIES)))
def test_any_shape_is_recognised(size, channels, multiplier, n_mlp, style_dim, sft, w, family):
    multiplier = multiplier if size >= 64 else 1                 # below 64 px it has no effect
    config = GFPGANConfig(size, style_dim, n_mlp, multiplier, channels / 512, sft, w,
                          **FAMILIES[family])
    with torch.device("meta"):
        official = to_official(GFPGAN(config))
    assert recognise(official, family) == config
    if family == "bilinear":
        config = config.replace(resample="fir")
    assert recognise(official) == config


# ---------------------------------------------------------------- the official outputs

def reference(name):
    path = DATA / f"reference_{name}.safetensors"
    with safe_open(path, "pt") as f:
        facts = {k: json.loads(v) for k, v in f.metadata().items() if k in ("family", "shapes")}
    return load_file(path), facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["v1", "bilinear", "clean", "v1_full_one"])
def test_generators_return_what_the_official_code_returned(name, dtype):
    want, facts = reference(name)
    made = made_state(facts["shapes"], facts["family"] != "clean")
    state = {k: v.to(dtype) for k, v in made.items()}
    net = from_official({"params": state, "params_ema": state}, facts["family"])
    with torch.no_grad():
        image, pyramid = net(uniform("input", (1, 3, 64, 64)).to(dtype))
    assert image.dtype == dtype and len(pyramid) == 4
    for got, key in [(image, "image"), *((p, f"rgb{i}") for i, p in enumerate(pyramid))]:
        assert want[key].std() > 0.1                 # a picture of nothing would prove nothing
        most = max(1, want[key].abs().max().item())
        assert_close(got.float(), want[key], rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_prior_returns_what_the_official_code_returned(dtype):
    want, facts = reference("prior")
    made = made_state(facts["shapes"], True)
    prior = prior_from_official({k: v.to(dtype) for k, v in made.items()})
    with torch.no_grad():
        for name, network in (("z", prior), ("w", prior.synthesis)):
            picture, theirs = network(want[name].to(dtype)).float(), want[f"from_{name}"]
            assert_close(picture, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_the_families_are_different_networks():
    "The references could not tell a swapped resampling otherwise."
    want, facts = reference("v1")
    net = from_official(made_state(facts["shapes"], True), "bilinear")
    with torch.no_grad():
        image, _ = net(uniform("input", (1, 3, 64, 64)))
    assert (image - want["image"]).abs().max() > 0.05 * want["image"].abs().max()


# ---------------------------------------------------------------- conversion

@pytest.mark.parametrize("changes", [
    dict(), dict(sft="full", w="one"), dict(sft="none"), dict(use_prior=False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_clean_computes_the_same(changes, dtype):
    net = tiny_net(resample="bilinear", **changes).to(dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    clean, x = to_clean(net), torch.rand(2, 3, 16, 16, dtype=dtype) * 2 - 1
    eps = 100 * torch.finfo(dtype).eps
    for a, b in zip([clean(x)[0], *clean(x)[1]], [net(x)[0], *net(x)[1]], strict=True):
        assert b.std() > 0.01
        assert_close(a, b, rtol=eps, atol=eps)
    assert clean.config == net.config.replace(equalized=False) and not clean.training
    assert same(before, net.state_dict())                        # the original is left alone
    if net.config.use_prior:
        z = torch.randn(2, 64, dtype=dtype)
        assert_close(clean.decoder(z), net.decoder(z), rtol=eps, atol=eps)
        gains = {m.weight_gain for m in clean.modules() if hasattr(m, "weight_gain")}
        assert gains == {1.0}


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(ValueError, match="clean form"):
        to_clean(tiny_net())
    for changes, reason in ((dict(use_prior=False), "without the prior"),
                            (dict(sft="none"), "without the maps"),
                            (dict(equalized=False), "baked scales")):
        with pytest.raises(ValueError, match=reason):
            to_official(tiny_net(**changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_official_round_trip(family, tmp_path):
    net = tiny_net(**FAMILIES[family])
    ema = {f"module.{k}": v for k, v in to_official(net).items()}
    torch.save({"params": {}, "params_ema": ema}, tmp_path / "a.pth")
    back = load_weights(tmp_path / "a.pth", family=family)
    assert back.config == net.config and not back.training
    assert same(back.state_dict(), net.state_dict())


def test_averaged_weights_are_preferred():
    ema, last = to_official(tiny_net()), to_official(GFPGAN(TINY))
    assert same(to_official(from_official({"params": last, "params_ema": ema})), ema)
    assert same(to_official(from_official({"params": last})), last)


def test_precision_is_kept_or_raised_to_32_bits():
    state = to_official(tiny_net())
    for given_, want in ((torch.float64, torch.float64), (torch.float16, torch.float32),
                         (torch.bfloat16, torch.float32)):
        net = from_official({k: v.to(given_) for k, v in state.items()})
        assert {p.dtype for p in net.parameters()} == {want}


MODULATED = "stylegan_decoder.style_conv1.modulated_conv.weight"
TO_RGB = "stylegan_decoder.to_rgb1.modulated_conv.weight"
BIAS = "final_conv.1.bias"


def without(start):
    return lambda s: {k: v for k, v in s.items() if not k.startswith(start)}


OFFICIAL_DAMAGE = {
    "missing": (without(BIAS), "1 keys missing.*final_conv.1.bias"),
    "extra": (lambda s: s | {"surprise": torch.zeros(1)}, "1 unexpected.*surprise"),
    "shape": (lambda s: s | {BIAS: torch.zeros(3)}, r"final_conv.1.bias is \(3,\)"),
    "same number of elements": (lambda s: s | {TO_RGB: s[TO_RGB].transpose(1, 2)},
                                "to_rgb1.modulated_conv.weight is"),
    "without its leading 1": (lambda s: s | {MODULATED: s[MODULATED][0]},
                              "style_conv1.modulated_conv.weight is"),
    "nan": (lambda s: s | {BIAS: s[BIAS] / 0}, "holds NaN or infinity"),
    "integers": (lambda s: {k: v.int() for k, v in s.items()}, "holds torch.int32"),
    "no maps": (without("condition"), "condition_scale.0.2.weight is missing"),
    "no pyramid": (without("toRGB"), "toRGB.0.weight is missing"),
    "a level missing": (without("toRGB.1"), "unexpected"),
    "no mapping": (lambda s: {k: v for k, v in s.items() if "style_mlp" not in k}, "n_mlp is 0"),
    "flat": (lambda s: {k: v.flatten() for k, v in s.items()}, "is missing"),
    "empty tensors": (lambda s: {k: v[..., :0] if v.ndim > 1 else v for k, v in s.items()},
                      "theirs.pth"),
    "a discriminator": (lambda s: {"conv_body.0.0.weight": torch.zeros(3)},
                        "not an official GFPGAN generator"),
    "not tensors": (lambda s: dict.fromkeys(s, 1.0), "needs a dict of tensors"),
    "no names": (lambda s: dict(enumerate(s.values())), "needs a dict of tensors"),
    "a list": (lambda s: list(s.values()), "needs a dict of tensors"),
    "sparse": (lambda s: s | {BIAS: s[BIAS].to_sparse()}, "needs a dict of tensors"),
    "empty": (lambda s: {}, "not an official GFPGAN generator"),
    "one number posing as many": (
        lambda s: {k: torch.zeros(()).expand(v.shape) for k, v in s.items()},
        "MB of weights in a file of"),
    "a tensor without numbers": (lambda s: s | {BIAS: s[BIAS].to("meta")},
                                 "needs a dict of tensors"),
}


@pytest.mark.parametrize("damage", OFFICIAL_DAMAGE)
def test_a_damaged_official_file_is_an_error_that_names_it(tmp_path, damage):
    change, reason = OFFICIAL_DAMAGE[damage]
    path = tmp_path / "theirs.pth"
    torch.save(change(to_official(tiny_net())), path)
    with pytest.raises(WeightsError, match=reason) as e:
        load_weights(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("state,resample", [
    ({}, "fir"),
    ({"constant_input.weight": torch.zeros(1, 32, 4, 4), "style_mlp.1.weight": torch.zeros(8, 8)},
     "fir"),
    ({"constant_input.weight": torch.zeros(1, 0, 4, 4), "style_mlp.1.weight": torch.zeros(8, 8),
      "style_convs.6.modulated_conv.weight": torch.zeros(1, 8, 0, 3, 3)}, "fir"),
    ([], "fir"),
])
def test_a_damaged_prior_is_an_error_that_names_it(state, resample):
    with pytest.raises(WeightsError, match="prior.pth"):
        prior_from_official(state, resample, source="prior.pth")


def test_a_wrong_family_is_refused_where_it_can_be_seen():
    with pytest.raises(WeightsError, match="clean network, not of family 'v1'"):
        from_official(to_official(tiny_net(**FAMILIES["clean"])), "v1")
    with pytest.raises(WeightsError, match="v1 network, not of family 'clean'"):
        from_official(to_official(tiny_net()), "clean")
    with pytest.raises(WeightsError, match="known: .*bilinear"):
        from_official(to_official(tiny_net()), "V1")


# ---------------------------------------------------------------- what is no file of tensors

class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def write_bomb(path):
    "A .pth as torch writes it, but compressed: 100 MB of zeros in 100 kB."
    torch.save({"zeros": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as z:
        entries = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries.items():
            z.writestr(name, bytes(100_000_000) if "/data/" in name else data)


def write_attack(path):
    torch.save({"params_ema": {"conv_body_first.0.weight": Attack(path.with_name("marker"))}}, path)


FOREIGN = {
    "attack": write_attack,
    "attack, old format": lambda p: torch.save(Attack(p.with_name("marker")), p,
                                               _use_new_zipfile_serialization=False),
    "zero bytes": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("hello\nworld\n"),
    "a page of a website": lambda p: p.write_text("<!DOCTYPE html><html>not found</html>"),
    "a zip of something else": lambda p: p.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a bare number": lambda p: torch.save(3, p),
    "a tensor": lambda p: torch.save(torch.zeros(3), p),
    "a compressed bomb": write_bomb,
    "an optimiser": lambda p: torch.save(
        {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}, p),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_an_error_that_names_it_and_runs_no_code(tmp_path, kind):
    path = tmp_path / "some.pth"
    FOREIGN[kind](path)
    with pytest.raises(WeightsError) as e:
        load_weights(path)
    told = str(e.value)
    assert str(path) in told and not (tmp_path / "marker").exists()
    # short, and PyTorch's advice how to run the code is not passed on
    assert "\n" not in told and "weights_only" not in told and len(told) < len(str(path)) + 120


def test_a_file_that_unpacks_is_refused_unread(tmp_path):
    write_bomb(tmp_path / "bomb.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < 200_000
    with pytest.raises(WeightsError, match="bomb.pth: .*compressed"):
        load_weights(tmp_path / "bomb.pth")


def test_the_attack_would_work_without_the_guard(tmp_path):
    write_attack(tmp_path / "some.pth")
    torch.load(tmp_path / "some.pth", weights_only=False)
    assert (tmp_path / "marker").exists()


@quick
@given(cut=st.floats(0, 0.999), old=st.booleans())
def test_a_truncated_pickle_is_an_error(tmp_path_factory, cut, old):
    path = tmp_path_factory.mktemp("cut") / "some.pth"
    torch.save(to_official(tiny_net()), path, _use_new_zipfile_serialization=not old)
    path.write_bytes(path.read_bytes()[:int(cut * path.stat().st_size)])
    with pytest.raises(WeightsError, match="some.pth"):
        load_weights(path)


def test_names_and_paths(tmp_path):
    assert load_weights().config == read_header(weights.bundled_path())["config"]
    path = tmp_path / "A.SAFETENSORS"
    save(tiny_net(), path)
    assert load_weights(str(path)).config == load_weights(path).config == TINY
    for wrong in ("v5", tmp_path, tmp_path / "none.pth", ""):
        with pytest.raises(WeightsError, match="nor a known name"):
            load_weights(wrong)


# ---------------------------------------------------------------- download

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked.append(self.headers["Range"])
        body, start = site.files.get(self.path), 0
        if body is None:
            return self.send_error(404)
        if self.headers["Range"] and site.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return None
        self.send_response(206 if start else 200)
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            chunk = b"%x\r\n%s\r\n" % (len(body), body[:site.stop])
            return self.wfile.write(chunk + (b"" if site.stop else b"0\r\n\r\n"))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        return self.wfile.write(body[start:site.stop])

    def log_message(self, *args):
        pass


class Site:
    "What the server offers, how it misbehaves, and what it was asked for."

    def __init__(self, port):
        self.url, self.body = f"http://127.0.0.1:{port}/net.pth", bytes(range(256)) * 4000
        self.files, self.asked = {"/net.pth": self.body}, []
        self.ranges, self.chunked, self.stop = True, False, None

    def release(self, published=True):
        sha256 = hashlib.sha256(self.body).hexdigest() if published else None
        return Release("net", self.url, "v1", sha256)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(server.server_address[1])
    serve = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01},
                             daemon=True)
    serve.start()
    yield server.site
    server.shutdown(), server.server_close()


def get(release, folder):
    return download(release, folder, progress=False)


def test_a_download_arrives_and_is_used_again(site, tmp_path):
    path = get(site.release(), tmp_path / "new" / "folder")
    assert path.read_bytes() == site.body and os.listdir(path.parent) == ["net.pth"]
    assert get(site.release(), path.parent) == path and site.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed_or_begun_again(site, tmp_path, ranges):
    site.stop, site.ranges = 300_000, ranges
    with pytest.raises(WeightsError, match=r"net: .*300000 of 1024000 bytes.*net.pth.part"):
        get(site.release(), tmp_path)
    assert (tmp_path / "net.pth.part").stat().st_size == 300_000
    assert not (tmp_path / "net.pth").exists()
    site.stop = None
    assert get(site.release(), tmp_path).read_bytes() == site.body
    assert site.asked == [None, "bytes=300000-"] and os.listdir(tmp_path) == ["net.pth"]


def test_a_part_that_is_already_whole_is_taken(site, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(site.body)
    assert get(site.release(published=False), tmp_path).read_bytes() == site.body


def test_a_part_longer_than_the_file_is_begun_again(site, tmp_path, capsys):
    (tmp_path / "net.pth.part").write_bytes(site.body + b"more")
    assert get(site.release(published=False), tmp_path).read_bytes() == site.body
    assert site.release().sha256 in capsys.readouterr().err


def test_a_wrong_file_is_deleted(site, tmp_path):
    release = site.release()
    site.files["/net.pth"] = site.body[:-1] + b"!"
    told = f"net: SHA-256.*not {release.sha256} .published.*deleted"
    with pytest.raises(WeightsError, match=told):
        get(release, tmp_path)
    assert os.listdir(tmp_path) == []
    site.files["/net.pth"] = site.body
    assert get(release, tmp_path).read_bytes() == site.body


def test_a_part_of_another_file_does_not_survive(site, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(b"x" * 1000)
    with pytest.raises(WeightsError, match="SHA-256"):
        get(site.release(), tmp_path)
    assert get(site.release(), tmp_path).read_bytes() == site.body


def test_an_unpublished_hash_is_told_remembered_and_held(site, tmp_path, capsys):
    release = site.release(published=False)
    path = get(release, tmp_path)
    told = capsys.readouterr().err
    assert sha256_of(path) in told and "no SHA-256 is published" in told
    path.unlink()
    assert get(release, tmp_path).read_bytes() == site.body               # the same again: silent
    assert capsys.readouterr().err == ""
    path.unlink()
    site.files["/net.pth"] = site.body + b"changed"
    with pytest.raises(WeightsError, match="remembered in .*hashes.json"):
        get(release, tmp_path)
    assert os.listdir(tmp_path) == ["hashes.json"]


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_memory_of_hashes_loses_nothing(site, tmp_path, content):
    (tmp_path / "hashes.json").write_text(content)
    try:
        assert get(site.release(), tmp_path).read_bytes() == site.body
    except WeightsError as e:
        assert "hashes.json" in str(e) and (tmp_path / "net.pth.part").exists()


def test_a_missing_page_is_an_error(site, tmp_path):
    site.files.clear()
    with pytest.raises(WeightsError, match="net: .*404") as e:
        get(site.release(), tmp_path)
    assert "resumed" not in str(e.value) and os.listdir(tmp_path) == []


def test_a_stream_of_unknown_length_that_breaks_is_an_error(site, tmp_path):
    Handler.protocol_version, site.chunked, site.stop = "HTTP/1.1", True, 5000
    try:
        with pytest.raises(WeightsError, match="net: download"):
            get(site.release(), tmp_path)
    finally:
        Handler.protocol_version = "HTTP/1.0"
    assert not (tmp_path / "net.pth").exists()


def test_no_network_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for url in ("http://127.0.0.1:9/net.pth", "http://127.0.0.1:99999/net.pth", "nonsense/net.pth"):
        with pytest.raises(WeightsError, match="net: download"):
            get(Release("net", url, "v1"), tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="net: download"):
        get(site.release(), tmp_path / "file" / "cache")


def test_a_release_by_name_is_downloaded_once_and_loaded(site, tmp_path, monkeypatch):
    net = tiny_net(**FAMILIES["clean"])
    torch.save({"params_ema": to_official(net)}, tmp_path / "made.pth")
    site.files["/GFPGANv1.4.pth"] = (tmp_path / "made.pth").read_bytes()
    url, sha256 = site.url.replace("net", "GFPGANv1.4"), sha256_of(tmp_path / "made.pth")
    monkeypatch.setitem(RELEASES, "v1.4", Release("v1.4", url, "clean", sha256))
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        loaded = load_weights("v1.4", progress=False)
        assert same(loaded.state_dict(), net.state_dict())
    assert len(site.asked) == 1
    with pytest.raises(WeightsError, match="known are v1, v1.2"):
        download("v1.5")


def test_the_cache_folder(monkeypatch, tmp_path):
    for name in ("GFPGAN_EDU_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "gfpgan_edu"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x" / "gfpgan_edu"
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "y"))
    assert cache_dir() == tmp_path / "y"


def test_the_registry():
    families = {n: r.family for n, r in RELEASES.items()}
    assert families == {"v1": "v1", "v1.2": "clean", "v1.3": "clean", "v1.4": "clean"}
    for name, r in RELEASES.items():
        assert r.name == name and r.url.startswith("https://") and r.url.endswith(".pth")
        assert r.sha256 is None or re.fullmatch("[0-9a-f]{64}", r.sha256)
    assert len({r.url for r in RELEASES.values()}) == len(RELEASES)
    assert len(generator_names(GFPGANConfig())) == 285


def test_verify_official_says_so_when_there_is_nothing_to_compare_with(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "peer"))
    import verify_official

    def missing():
        raise ImportError("No module named 'basicsr'")

    monkeypatch.setattr(verify_official, "load_official", missing)
    assert verify_official.main() == 2
    assert "Nothing was compared" in capsys.readouterr().out
    assert verify_official.main(["v0"]) == 2
    x = verify_official.inputs(64)
    assert x.shape == (2, 3, 64, 64) and x.abs().max() <= 1

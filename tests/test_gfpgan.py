"""The assembled generator: its config, its size, its variants, where gradients go, what noise and
batches do."""
import json

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gfpgan_edu.csft import cs_sft, sft
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.stylegan2 import NOISE_MODES, widths

quick = settings(max_examples=25, deadline=None)
VARIANTS = {
    "paper": {},
    "full": dict(sft="full"),
    "none": dict(sft="none"),
    "one code": dict(w="one"),
    "no prior": dict(use_prior=False),
}
configs = st.builds(
    GFPGANConfig, size=st.sampled_from([8, 32, 128]), style_dim=st.integers(1, 600),
    n_mlp=st.integers(1, 9), channel_multiplier=st.sampled_from([1, 1.5, 2]),
    narrow=st.sampled_from([1, 1 / 4, 1 / 16]), sft=st.sampled_from(["none", "full", "half"]),
    w=st.sampled_from(["one", "per_layer"]), use_prior=st.booleans(),
    resample=st.sampled_from(["fir", "bilinear"]), equalized=st.booleans())


def tiny_net(size=16, **changes):
    "Biases and noise strengths away from the zeros they start at."
    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig.tiny(size).replace(**changes)).eval().requires_grad_(False)
    for p in net.parameters():
        if p.ndim == 1:
            p += 0.2 * torch.randn_like(p)
    return net


def pictures(n=2, size=16, seed=1):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def on_meta(config):
    with torch.device("meta"):
        return GFPGAN(config)


# ---------------------------------------------------------------- config

@quick
@given(configs)
def test_a_config_survives_json_and_yaml(config):
    assert GFPGANConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert GFPGANConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert config.replace(size=16).replace(size=config.size) == config


@pytest.mark.parametrize("name,value", [
    *[("size", v) for v in (0, 4, 100, 513, 2048, -64, 64.0, "64", None, True, [64])],
    *[(n, v) for n in ("style_dim", "n_mlp") for v in (0, -1, 1.5, 64.0, "8", None, True)],
    *[(n, v) for n in ("narrow", "channel_multiplier")
      for v in (0, -1, float("nan"), float("inf"), "1", None, True, 1j)],
    *[("sft", v) for v in ("Half", "", None, True, ["half"])],
    *[("w", v) for v in ("two", 1, None)],
    *[("resample", v) for v in ("nearest", None, False)],
    *[(n, v) for n in ("use_prior", "equalized") for v in (0, 1, "True", None, [])],
])
def test_a_wrong_value_is_an_error_that_names_the_field(name, value):
    with pytest.raises(ValueError, match=f"^{name} is"):
        GFPGANConfig(**{name: value})
    with pytest.raises(ValueError, match=f"^{name} is"):
        GFPGANConfig.from_dict({name: value})


@pytest.mark.parametrize("changes", [
    dict(narrow=1 / 512),
    dict(narrow=3 / 512),
    dict(size=1024, channel_multiplier=1 / 16),
    dict(narrow=1 / 16, channel_multiplier=0.5),
])
def test_impossible_widths_are_an_error(changes):
    with pytest.raises(ValueError, match="width at .* px is .*narrow"):
        GFPGANConfig(**changes)


def test_unknown_names_are_an_error():
    with pytest.raises(ValueError, match=r"unknown config keys \['colour', 'sise'\]"):
        GFPGANConfig.from_dict({"sise": 64, "colour": 1, "size": 64})
    with pytest.raises(ValueError, match="unknown config keys"):
        GFPGANConfig.from_dict({1: 2})
    with pytest.raises(TypeError):
        GFPGANConfig(sise=64)
    with pytest.raises(TypeError):
        GFPGANConfig().replace(sise=64)


def test_a_config_is_never_changed_in_place():
    config = GFPGANConfig()
    with pytest.raises(AttributeError):
        config.size = 64
    config.to_dict()["size"] = 64
    assert config.size == 512 and hash(config) == hash(GFPGANConfig())


# ---------------------------------------------------------------- size

def test_parameter_counts():
    paper = on_meta(GFPGANConfig.paper())
    assert sum(p.numel() for p in paper.parameters()) == 76_207_244
    assert paper.freeze_prior() is paper
    assert sum(p.numel() for p in paper.parameters() if p.requires_grad) == 51_346_309
    assert sum(p.numel() for p in on_meta(GFPGANConfig.clean_v1_4()).parameters()) == 86_444_252


def test_every_operation_of_the_official_network_is_accounted_for():
    """91,283,141,632 operations at 512 px, measured on the official network; ours leaves out what
    is thrown away, and counts the demodulation."""
    net = on_meta(GFPGANConfig.paper())
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 512, 512, device="meta"))
    c = {s: n // 2 for s, n in widths(512).items()}
    skips_after_enlarging = sum(2 * c[s // 2] * c[s] * (s**2 - (s // 2) ** 2) for s in c if s > 4)
    filters_under_a_stride = sum(32 * c[s] * ((s - 1) ** 2 - (s // 2) ** 2) for s in c if s > 4)
    zeros_in_rgb = sum(32 * 3 * (s**2 - (s // 2) ** 2) for s in c if s > 4)
    thrown_away = skips_after_enlarging + filters_under_a_stride + zeros_in_rgb
    demodulated = [m.weight for m in net.modules() if getattr(m, "demodulate", False)]
    demodulation = sum(2 * w.shape[0] * w.shape[1] for w in demodulated)
    assert counter.get_total_flops() == 91_283_141_632 - thrown_away + demodulation


@quick
@given(configs)
def test_any_config_gives_a_network_of_its_size(config):
    size = config.size
    image, pyramid = on_meta(config)(torch.empty(3, 3, size, size, device="meta"))
    assert image.shape == (3, 3, size, size)
    assert [tuple(p.shape) for p in pyramid] == [(3, 3, s, s) for s in sorted(widths(size))[1:]]


@pytest.mark.parametrize("shape", [
    (1, 3, 32, 32), (3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 17), (1, 16, 16, 3)])
def test_another_input_is_an_error_that_says_what_is_needed(shape):
    with pytest.raises(ValueError, match=r"needs \(b, 3, 16, 16\)"):
        tiny_net()(torch.zeros(shape))


# ---------------------------------------------------------------- the formulas

@torch.no_grad()
def by_hand(net, x, noise="fixed"):
    "The forward pass written out, with slices and products in place of our layers and functions."
    c, syn, b = net.config, net.decoder.synthesis, len(x)
    latent, spatial, pyramid = net.unet(x)
    weight, bias = net.to_w.weight * net.to_w.weight_gain, net.to_w.bias * net.to_w.bias_gain
    w = (latent.reshape(b, -1) @ weight.T + bias).reshape(b, -1, c.style_dim)
    w = w if c.w == "per_layer" else w.repeat(1, syn.n_codes, 1)
    eps = [None if noise == "zero" else getattr(syn, f"noise{i}") for i in range(len(syn.convs))]
    h = syn.convs[0](syn.constant.repeat(b, 1, 1, 1), w[:, 0], eps[0])
    image = syn.to_rgbs[0](h, w[:, 1])
    for k, f in enumerate(spatial):
        i, out = 2 * k + 1, h.shape[1]
        h = syn.convs[i](h, w[:, i], eps[i])
        if c.sft != "none":
            alpha, beta = net.heads[k].scale(f), net.heads[k].shift(f)
            first = 0 if c.sft == "full" else h.shape[1] // 2
            out = h.clone()
            out[:, first:] = h[:, first:] * alpha + beta
            h = out
        h = syn.convs[i + 1](h, w[:, i + 1], eps[i + 1])
        image = syn.to_rgbs[k + 1](h, w[:, i + 2]) + syn.to_rgbs[k + 1].resample.up(image)
    return image, pyramid


@pytest.mark.parametrize("noise", ["fixed", "zero"])
@pytest.mark.parametrize("resample,equalized", [
    ("fir", True), ("bilinear", True), ("bilinear", False)])
@pytest.mark.parametrize("variant", ["paper", "full", "none", "one code"])
def test_every_variant_is_its_formula(variant, resample, equalized, noise):
    net = tiny_net(32, resample=resample, equalized=equalized, **VARIANTS[variant])
    x = pictures(size=32)
    image, pyramid = net(x, noise=noise)
    want, want_pyramid = by_hand(net, x, noise)
    assert want.std() > 0.05
    assert_close(image, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    assert all(torch.equal(a, b) for a, b in zip(pyramid, want_pyramid, strict=True))


def conditions(net, x):
    "Codes and the maps of each level, through the public parts."
    latent, spatial, _ = net.unet(x)
    w = net.to_w(latent.flatten(1)).unflatten(1, (-1, net.config.style_dim))
    maps = [head(f) for head, f in zip(net.heads, spatial, strict=True)]
    return w.expand(-1, net.decoder.synthesis.n_codes, -1), maps


def draw(net, w, maps):
    transform = {"half": cs_sft, "full": sft}[net.config.sft]
    modulate = lambda h, k: h if maps[k] is None else transform(h, *maps[k])
    return net.decoder.synthesis(w, modulate=modulate)


@pytest.mark.parametrize("variant", ["paper", "full", "one code"])
def test_codes_and_maps_are_all_that_the_prior_hears(variant):
    """With codes and all maps of another face the picture is the other's; without maps it is the
    prior's own; half of each is neither."""
    differ = lambda a, b: (a - b).abs().mean() > 1e-3
    net, x = tiny_net(32, **VARIANTS[variant]), pictures(3, size=32)
    w, maps = conditions(net, x)
    image, n = net(x)[0], len(maps)
    rolled = image.roll(1, 0)
    assert n == 3 and torch.equal(draw(net, w, maps), image)
    assert torch.equal(draw(net, w, [None] * n), net.decoder.synthesis(w))
    neutral = [(torch.ones_like(a), torch.zeros_like(b)) for a, b in maps]
    assert_close(draw(net, w, neutral), net.decoder.synthesis(w), rtol=1e-5, atol=1e-5)
    other_w, other = w.roll(1, 0), [(a.roll(1, 0), b.roll(1, 0)) for a, b in maps]
    assert_close(draw(net, other_w, other), rolled, rtol=1e-4, atol=1e-4)
    for k in range(n):
        for m in (None, other[k]):
            changed = draw(net, w, maps[:k] + [m] + maps[k + 1:])
            assert differ(changed, image) and differ(changed, rolled)
    assert differ(draw(net, other_w, maps), image)
    assert differ(draw(net, w, other), rolled)


def test_without_the_prior_the_pyramid_is_the_output():
    net, whole, x = tiny_net(use_prior=False), tiny_net(), pictures()
    net.unet.load_state_dict(whole.unet.state_dict())
    image, pyramid = net(x)
    assert torch.equal(image, pyramid[-1])
    assert all(torch.equal(a, b) for a, b in zip(pyramid, whole(x)[1], strict=True))
    assert {k.split(".")[0] for k in net.state_dict()} == {"unet"}
    with pytest.raises(ValueError, match="no prior"):
        net.freeze_prior()


# ---------------------------------------------------------------- gradients

def reached(net, output):
    net.zero_grad(set_to_none=True)
    image, pyramid = net(pictures(size=net.config.size))
    loss = image.square().mean() if output == "image" else sum(p.square().mean() for p in pyramid)
    loss.backward()
    return {k: p.grad is not None and bool(p.grad.any()) for k, p in net.named_parameters()}


def may_stay_silent(name, variant, output, frozen):
    "The parameters that a loss on this output cannot reach, and why."
    if name.startswith("decoder.mapping"):              # not run: the codes come from the photo
        return True
    if name.startswith("decoder."):
        return frozen or output == "pyramid"
    if name.startswith(("heads", "to_w")):
        return output == "pyramid"
    if output == "image" and variant == "no prior" and name.startswith("unet.to_rgb"):
        return not name.startswith("unet.to_rgb.1.")    # the last of two levels is the image
    if output == "image" and name.startswith("unet.to_rgb"):
        return True
    return output == "image" and variant == "none" and name.startswith("unet.up")


@pytest.mark.parametrize("output", ["image", "pyramid"])
@pytest.mark.parametrize("variant,frozen", [*[(v, False) for v in VARIANTS], ("paper", True)])
def test_the_gradient_reaches_exactly_what_it_should(variant, frozen, output):
    net = tiny_net(**VARIANTS[variant]).requires_grad_(True)
    got = reached(net.freeze_prior() if frozen else net, output)
    assert got == {k: not may_stay_silent(k, variant, output, frozen) for k in got}


def test_a_fresh_network_learns_too():
    "Noise strengths and biases that start at zero have a gradient all the same."
    torch.manual_seed(0)
    got = reached(GFPGAN(GFPGANConfig.tiny(16)), "image")
    assert got == {k: not may_stay_silent(k, "paper", "image", False) for k in got}


# ---------------------------------------------------------------- noise

def test_fixed_noise_repeats_and_random_noise_follows_the_seed():
    net, x = tiny_net(), pictures()
    assert torch.equal(net(x)[0], net(x, noise="fixed")[0])
    torch.manual_seed(3)
    first = net(x, noise="random")[0]
    assert not torch.equal(first, net(x, noise="random")[0])
    torch.manual_seed(3)
    assert torch.equal(first, net(x, noise="random")[0])
    assert not torch.equal(first, net(x)[0]) and not torch.equal(net(x)[0], net(x, noise="zero")[0])


def test_each_picture_gets_random_noise_of_its_own():
    x = pictures(1).expand(2, -1, -1, -1)
    a, b = tiny_net()(x, noise="random")[0]
    assert (a - b).abs().max() > 1e-3


def test_without_strength_all_modes_agree():
    net, x = tiny_net(), pictures()
    for conv in net.decoder.synthesis.convs:
        conv.noise_strength.zero_()
    fixed, random, zero = (net(x, noise=mode)[0] for mode in NOISE_MODES)
    assert torch.equal(fixed, zero) and torch.equal(random, zero)
    with pytest.raises(ValueError, match="noise is 'none'"):
        net(x, noise="none")


# ---------------------------------------------------------------- batches

@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_does_not_see_its_neighbours(variant):
    net, x = tiny_net(**VARIANTS[variant]), pictures(3)
    together, pyramid = net(x)
    for i in range(3):
        alone, levels = net(x[i:i + 1])
        assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
        for a, b in zip(levels, pyramid, strict=True):
            assert_close(a[0], b[i], rtol=1e-4, atol=1e-4)
    other = torch.cat([x[:1], pictures(2, seed=9) * 50])
    assert_close(net(other)[0][0], together[0], rtol=1e-4, atol=1e-4)


def test_the_gradient_stays_within_one_picture():
    net, x = tiny_net(), pictures(3).requires_grad_(True)
    net(x)[0][1].sum().backward()
    assert x.grad[1].any() and not x.grad[0].any() and not x.grad[2].any()


def test_training_mode_changes_nothing():
    net, x = tiny_net(), pictures()
    assert torch.equal(net.train()(x)[0], net.eval()(x)[0])

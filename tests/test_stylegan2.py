"""The prior: widths, modulated convolution, noise, codes, truncation, mixing, the hook. Contracts
that restorer and trainer rely on."""
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.layers import SQRT2, fir_kernel, upfirdn
from gfpgan_edu.stylegan2 import (Mapping, ModulatedConv2d, StyleConv, StyleGAN2, ToRGB,
                                  layer_noise, mix, truncate, widths)
from gfpgan_edu.weights import load_prior

EXACT = dict(rtol=0, atol=0)
quick = settings(max_examples=25, deadline=None)


def prior(size=32, seed=0, **kwargs):
    """A small untrained generator in float64 in which noise and biases are not zero, as they would
    hide mistakes."""
    torch.manual_seed(seed)
    narrow = 1 / 32 if size <= 256 else 1 / 8
    net = StyleGAN2(size, 16, 2, narrow=narrow, **kwargs).double().requires_grad_(False)
    for name, p in net.named_parameters():
        if p.ndim == 1:
            p += 0.1 * torch.randn_like(p)
    return net


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- widths

@quick
@given(st.sampled_from([8, 16, 32, 64, 128, 256, 512]), st.sampled_from([0.5, 1, 2]),
       st.floats(1 / 64, 2))
def test_widths_do_not_depend_on_the_final_size(size, multiplier, narrow):
    try:
        larger = widths(2 * size, multiplier, narrow)
    except ValueError as e:
        assert "needs an even number" in str(e)
        return
    smaller = widths(size, multiplier, narrow)
    assert list(larger)[:-1] == list(smaller) and larger == smaller | {2 * size: larger[2 * size]}
    assert all(c >= 2 and c % 2 == 0 for c in larger.values())


@pytest.mark.parametrize("size", [0, 4, 7, 96, 2048, -64])
def test_widths_refuses_sizes(size):
    with pytest.raises(ValueError, match=f"size is {size}, needs a power of two"):
        widths(size)


@pytest.mark.parametrize("factor", [0, -1, 1e18, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["channel_multiplier", "narrow"])
def test_widths_refuses_factors(name, factor):
    with pytest.raises(ValueError, match=f"{name} is {re.escape(str(factor))}.*positive numbers"):
        widths(8, **{name: factor})


def test_widths_names_the_resolution_that_is_too_narrow():
    with pytest.raises(ValueError, match="width at 1024 px is 1"):
        widths(1024, narrow=1 / 16)


# ---------------------------------------------------------------- modulated convolution

def grouped(layer, x, w):
    "One kernel per sample, convolved one sample at a time: what a modulated convolution is."
    out = []
    for x1, s in zip(x, layer.modulation(w)):
        kernel = layer.weight * layer.weight_gain * s[None, :, None, None]
        if layer.demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        x1, k = x1[None], kernel.shape[-1]
        if layer.up and layer.resample.mode == "fir":
            y = F.conv_transpose2d(x1, kernel.transpose(0, 1), stride=2)
            y = upfirdn(y, 4 * fir_kernel(), pad=(1, 1))
        else:
            if layer.up:
                x1 = F.interpolate(x1, scale_factor=2, mode="bilinear", align_corners=False)
            y = F.conv2d(x1, kernel, padding=k // 2)
        out.append(y * layer.gain)
    return torch.cat(out)


@pytest.mark.parametrize("up,mode", [(False, "fir"), (True, "fir"), (True, "bilinear")])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("equalized", [True, False])
@pytest.mark.parametrize("b", [1, 2, 5])
def test_modulated_conv_is_one_kernel_per_sample(up, mode, demodulate, equalized, b):
    torch.manual_seed(0)
    layer = ModulatedConv2d(6, 4, 3, 8, demodulate=demodulate, up=up, resample=mode, gain=SQRT2,
                            equalized=equalized).double()
    x, w = randn(b, 6, 7, 9), randn(b, 8, seed=2)
    got = layer(x, w)
    assert got.shape == ((b, 4, 14, 18) if up else (b, 4, 7, 9))
    assert_close(got, grouped(layer, x, w), rtol=0, atol=1e-10)


def test_style_starts_at_one():
    "An empty code leaves the kernel as it is."
    layer = ModulatedConv2d(4, 3, 3, 8, demodulate=False).double()
    x = randn(2, 4, 5, 5)
    plain = F.conv2d(x, layer.weight / 6, padding=1)
    assert_close(layer(x, torch.zeros(2, 8).double()), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("demodulate", [True, False])
def test_gain_scales_the_output_with_and_without_demodulation(demodulate):
    layer = ModulatedConv2d(4, 4, 3, 8, demodulate=demodulate, gain=1.0).double()
    x, w = randn(2, 4, 5, 5), randn(2, 8)
    once = layer(x, w)
    layer.gain = 3.0
    assert_close(layer(x, w), 3 * once, rtol=1e-12, atol=0)


@quick
@given(st.floats(0.1, 100))
def test_demodulation_forgets_the_strength_of_the_style(strength):
    torch.manual_seed(0)
    layer = ModulatedConv2d(16, 4, 3, 8).double()
    x, w = randn(2, 16, 5, 5), randn(2, 8)
    before = layer(x, w)
    layer.modulation.weight.data *= strength
    layer.modulation.bias.data *= strength
    assert_close(layer(x, w), before, rtol=1e-4, atol=1e-6)


def test_demodulation_keeps_unit_variance():
    torch.manual_seed(0)
    layer = ModulatedConv2d(32, 16, 3, 8).double()
    y = layer(randn(4, 32, 48, 48), 5 * randn(4, 8))
    y = y[..., 1:-1, 1:-1]                              # the zero padding weakens the border
    assert_close(y.std((2, 3)), torch.ones(4, 16, dtype=torch.float64), rtol=0, atol=0.06)


@pytest.mark.parametrize("mode", ["fir", "bilinear"])
def test_folding_the_scales_gives_the_same_layer(mode):
    torch.manual_seed(0)
    scaled, plain = (StyleConv(6, 4, 8, up=True, resample=mode, equalized=e).double()
                     for e in (True, False))
    scaled.bias.data.normal_(), scaled.noise_strength.data.fill_(0.3)
    plain.conv.weight.data = scaled.conv.weight.data * scaled.conv.weight_gain
    old, new = scaled.conv.modulation, plain.conv.modulation
    new.weight.data = old.weight.data * old.weight_gain
    new.bias.data = old.bias.data * old.bias_gain
    plain.bias.data = scaled.bias.data * scaled.bias_gain
    plain.noise_strength.data = scaled.noise_strength.data * scaled.bias_gain
    args = randn(2, 6, 4, 4), randn(2, 8), randn(1, 1, 8, 8)
    assert_close(scaled(*args), plain(*args), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["fir", "bilinear"])
def test_second_derivatives_exist(mode):
    "Path-length regularisation differentiates the generator twice."
    torch.manual_seed(0)
    layer = ModulatedConv2d(2, 2, 3, 3, up=True, resample=mode).double()
    x, w = randn(1, 2, 3, 3).requires_grad_(), randn(1, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x, w), atol=1e-6)


# ---------------------------------------------------------------- style convolution, RGB, noise

def test_activation_gain_may_move_inside():
    torch.manual_seed(0)
    layer = StyleConv(6, 4, 8).double()
    layer.bias.data.normal_(), layer.noise_strength.data.fill_(0.25)
    x, w, n = randn(2, 6, 5, 5), randn(2, 8), randn(1, 1, 5, 5)
    inside = layer.conv(x, w) / SQRT2 + 0.25 * n + layer.bias[:, None, None]
    outside = SQRT2 * F.leaky_relu(inside, 0.2)
    assert_close(layer(x, w, n), outside, rtol=0, atol=1e-12)
    assert_close(layer(x, w), layer(x, w, torch.zeros_like(n)), **EXACT)


def test_to_rgb_adds_to_the_upsampled_picture():
    layer = ToRGB(6, 8).double()
    x, w, image = randn(2, 6, 8, 8), randn(2, 8), randn(2, 3, 4, 4)
    up = upfirdn(image, 4 * fir_kernel(), up=2, pad=(2, 1))
    assert_close(layer(x, w, image) - layer(x, w), up, rtol=0, atol=1e-12)


def test_noise_modes():
    net, w = prior().synthesis, randn(2, 8, 16)
    assert_close(net(w), net(w), **EXACT)                            # fixed
    assert not torch.equal(net(w, noise="random"), net(w, noise="random"))
    assert not torch.equal(net(w, noise="zero"), net(w))
    for c in net.convs:
        c.noise_strength.zero_()
    assert_close(net(w, noise="zero"), net(w), **EXACT)
    assert_close(net(w, noise="random"), net(w), **EXACT)
    for bad in ("off", None, True):
        with pytest.raises(ValueError, match="noise is"):
            net(w, noise=bad)


def test_random_noise_is_drawn_per_sample_in_forward_order():
    net, w, seen = prior().synthesis, randn(3, 8, 16), []
    for c in net.convs:
        c.register_forward_pre_hook(lambda m, args: seen.append(args[2]))
    torch.manual_seed(7)
    net(w, noise="random")
    torch.manual_seed(7)
    for n, side in zip(seen, (4, 8, 8, 16, 16, 32, 32), strict=True):
        assert_close(n, torch.empty(3, 1, side, side, dtype=torch.float64).normal_(), **EXACT)


def test_fixed_noise_travels_with_the_weights():
    a, b = prior(seed=0), prior(seed=1)
    z = randn(1, 16)
    assert not torch.equal(a(z), b(z))
    b.load_state_dict(a.state_dict())
    assert_close(a(z), b(z), **EXACT)
    assert layer_noise(a.synthesis.noise3, "fixed", 4) is a.synthesis.noise3


# ---------------------------------------------------------------- synthesis

@pytest.mark.parametrize("mode", ["fir", "bilinear"])
def test_picture_is_the_sum_of_the_levels(mode):
    net, w, own = prior(resample=mode).synthesis, randn(2, 8, 16), []
    for t in net.to_rgbs:
        t.conv.register_forward_hook(lambda m, i, y, t=t: own.append(y + t.bias[:, None, None]))
    out = net(w)
    total = own[0]
    for share in own[1:]:
        total = net.to_rgbs[0].resample.up(total) + share
    assert_close(out, total, rtol=0, atol=1e-12)


def test_each_layer_reads_one_code_and_neighbours_share():
    net, read = prior(64).synthesis, {}
    # code i is filled with i
    w = torch.arange(10.0, dtype=torch.float64)[None, :, None].expand(1, 10, 16)

    def note(*key):
        return lambda m, args: read.update({key: args[0].unique().tolist()})

    for kind in ("convs", "to_rgbs"):
        for i, m in enumerate(getattr(net, kind)):
            m.conv.modulation.register_forward_pre_hook(note(kind, i))
    net(w)
    assert [read["convs", i] for i in range(9)] == [[i] for i in range(9)]
    assert [read["to_rgbs", k] for k in range(5)] == [[2 * k + 1] for k in range(5)]


def test_a_picture_depends_on_its_own_codes_only():
    net, w = prior().synthesis, randn(3, 8, 16).requires_grad_()
    grad, = torch.autograd.grad(net(w)[1].square().sum(), w)
    assert (grad[1] != 0).any(-1).all() and not grad[0].any() and not grad[2].any()
    assert_close(net(w)[1:2], net(w[1:2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 7, 16), (1, 9, 16), (1, 8, 15), (8, 16), (1, 1, 16)])
def test_wrong_codes_are_refused(shape):
    with pytest.raises(ValueError, match=r"w is .*, needs \(b, 8, 16\)"):
        prior().synthesis(randn(*shape))


COUNTS = {8: 10_505_225, 16: 16_014_350, 32: 21_523_475, 64: 23_819_544, 128: 24_525_213,
          256: 24_767_458, 512: 24_860_935, 1024: 24_900_764}


@pytest.mark.parametrize("size", COUNTS)
def test_every_size_builds(size):
    with torch.device("meta"):
        net = StyleGAN2(size)
        assert net(torch.empty(2, 512)).shape == (2, 3, size, size)
    assert net.synthesis.n_codes == 2 * math.log2(size) - 2
    count = sum(p.numel() for p in net.parameters())
    assert count == COUNTS[size]


def test_smaller_prior_is_the_beginning_of_a_larger_one():
    large, small, images = prior(32).synthesis, prior(16, seed=1).synthesis, []
    state = large.state_dict()
    small.load_state_dict({k: state[k] for k in small.state_dict()})
    large.to_rgbs[2].register_forward_hook(lambda m, i, y: images.append(y))
    w = randn(1, 8, 16)
    large(w)
    assert_close(small(w[:, :6]), images[0], rtol=0, atol=1e-12)


def test_exports_with_any_batch():
    net = prior(16).synthesis
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(net, (randn(2, 6, 16),), dynamic_shapes=shapes)
    w = randn(5, 6, 16)
    assert_close(program.module()(w), net(w), rtol=0, atol=1e-10)


# ---------------------------------------------------------------- the hook

def test_hook_sees_every_block_once_and_identity_changes_nothing():
    net, w, calls = prior(32).synthesis, randn(2, 8, 16), []
    out = net(w, modulate=lambda h, k: calls.append((k, tuple(h.shape))) or h)
    assert calls == [(0, (2, 16, 8, 8)), (1, (2, 16, 16, 16)), (2, (2, 16, 32, 32))]
    assert_close(out, net(w), **EXACT)


def test_hook_replaces_the_feature_between_the_two_convolutions():
    net, w, seen = prior(32).synthesis, randn(1, 8, 16), {}
    net.convs[3].register_forward_hook(lambda m, i, y: seen.update(first=y))
    net.convs[4].register_forward_pre_hook(lambda m, args: seen.update(second=args[0]))
    net(w, modulate=lambda h, k: 2 * h + k)
    assert_close(seen["second"], 2 * seen["first"] + 1, **EXACT)


def test_hook_is_local_at_the_last_level():
    net, w = prior(32).synthesis, randn(1, 8, 16)
    spot = torch.zeros(32, 32, dtype=torch.float64)
    spot[10, 20] = 1
    change = (net(w, modulate=lambda h, k: h + spot if k == 2 else h) - net(w)).abs().sum((0, 1))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[9:12, 19:22] = True
    assert torch.equal(change > 0, inside)


# ---------------------------------------------------------------- mapping, truncation, mixing

def test_mapping_against_plain_layers():
    torch.manual_seed(0)
    mapping, z = Mapping(16, 3).double(), randn(4, 16)
    t = F.normalize(z, dim=1) * 4
    for layer in mapping.layers:
        layer.bias.data.normal_()
        t = SQRT2 * F.leaky_relu(F.linear(t, layer.weight * 0.01 / 4, layer.bias * 0.01), 0.2)
    assert_close(mapping(z), t, rtol=0, atol=1e-6)


@quick
@given(st.floats(0.01, 1000))
def test_mapping_ignores_the_length_of_z(length):
    torch.manual_seed(0)
    mapping, z = Mapping(16, 2).double(), randn(4, 16)
    assert_close(mapping(length * z), mapping(z), rtol=1e-3, atol=1e-5)


def test_mean_w():
    net = prior()
    z = torch.randn(300, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = net.mean_w(300, torch.Generator().manual_seed(3))
    assert got.shape == (1, 16) and not got.requires_grad
    assert_close(got, net.mapping(z).mean(0, keepdim=True), rtol=0, atol=1e-12)


@quick
@given(st.floats(-1, 2))
def test_truncation_is_linear(psi):
    w, mean = randn(5, 16), randn(1, 16, seed=9)
    assert_close(truncate(w, mean, psi), (1 - psi) * mean + psi * w, rtol=0, atol=1e-12)


def test_truncation_limits():
    net = prior()
    z, mean = randn(2, 16), net.mean_w(100, torch.Generator().manual_seed(0))
    assert_close(net(z, truncation=1), net(z, truncation=1.0, w_mean=mean), **EXACT)
    one_face = net(z, truncation=0, w_mean=mean)
    assert_close(one_face[:1], one_face[1:], rtol=0, atol=1e-12)
    assert_close(one_face[:1], net.synthesis(net.codes(mean)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="needs w_mean"):
        net(z, truncation=0.5)


@quick
@given(st.integers(0, 8))
def test_mixing_takes_coarse_codes_from_the_first(crossover):
    w1, w2 = randn(2, 8, 16), randn(2, 8, 16, seed=5)
    mixed = mix(w1, w2, crossover)
    assert torch.equal(mixed[:, :crossover], w1[:, :crossover])
    assert torch.equal(mixed[:, crossover:], w2[:, crossover:])


def test_mixing_limits():
    net = prior()
    z1, z2 = randn(2, 1, 16)
    assert_close(net(z1, mix_with=z2, crossover=0), net(z2), rtol=0, atol=1e-12)
    assert_close(net(z1, mix_with=z2, crossover=8), net(z1), rtol=0, atol=1e-12)
    for bad in (None, -1, 9):
        with pytest.raises(ValueError, match=f"crossover is {bad}, needs 0 … 8"):
            net(z1, mix_with=z2, crossover=bad)


def shares(net, w):
    "Each RGB layer's own picture, before the sum."
    own, hooks = [], []
    for t in net.to_rgbs:
        hooks.append(t.conv.register_forward_hook(lambda m, i, y: own.append(y)))
    net(w)
    for h in hooks:
        h.remove()
    return own


@pytest.mark.parametrize("crossover", range(9))
def test_codes_from_the_crossover_on_do_not_reach_coarser_shares(crossover):
    """The share of level k reads codes 0 … 2k + 1: it stays to the last bit while the crossover
    lies behind them, and changes otherwise."""
    net, w1, w2 = prior().synthesis, randn(2, 8, 16), randn(2, 8, 16, seed=5)
    before, after = shares(net, w1), shares(net, mix(w1, w2, crossover))
    kept = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert kept == [2 * k + 1 < crossover for k in range(4)]


@quick
@given(st.floats(0, 1), st.floats(-1, 1))
def test_truncation_commutes_with_the_line_in_w_and_with_mixing(t, psi):
    """So a truncated film is the film between truncated faces, and a mixture of truncated faces a
    truncated mixture."""
    w1, w2, mean = randn(3, 16), randn(3, 16, seed=5), randn(1, 16, seed=9)
    short = [truncate(w, mean, psi) for w in (w1, w2)]
    between = truncate(torch.lerp(w1, w2, t), mean, psi)
    assert_close(between, torch.lerp(*short, t), rtol=0, atol=1e-12)
    codes = lambda w: w[:, None].expand(-1, 8, -1)
    mixture = truncate(mix(codes(w1), codes(w2), 3), mean, psi)
    assert_close(mix(*map(codes, short), 3), mixture, **EXACT)


def test_the_bundled_prior_draws_many_faces():
    "Not one picture for every code; and truncation makes them more alike."
    net = load_prior().requires_grad_(False)
    size, width = net.config["size"], net.config["style_dim"]
    z = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    mean = net.mean_w(generator=torch.Generator().manual_seed(0))
    faces = {psi: net(z, truncation=psi, w_mean=mean).flatten(1) for psi in (1, 0.5, 0)}
    apart = {psi: torch.pdist(f, p=1) / (3 * size ** 2) for psi, f in faces.items()}
    assert apart[1].min() > 0.05
    assert apart[1].mean() > apart[0.5].mean() > 0.1 and apart[0].max() < 1e-4


def test_generator_learns():
    """A few steps of gradient descent on one picture must lower the error: every parameter takes
    part."""
    net = prior(16).requires_grad_(True)
    z, target = randn(1, 16), 0.5 * randn(1, 3, 16, 16, seed=8)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = (net(z) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert losses[-1] < 0.5 * losses[0]

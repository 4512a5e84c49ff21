"""Equalised layers against the textbook, FIR resampling against scipy, the two resampling modes
against each other."""
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from torch.testing import assert_close

from gfpgan_edu.layers import (SLOPE, SQRT2, EqualizedConv2d, EqualizedLinear, Resample, fir_kernel,
                               upfirdn)

FEW = settings(max_examples=25, deadline=None)


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- equalised layers

@FEW
@given(cin=st.integers(1, 6), cout=st.integers(1, 6), kernel=st.sampled_from([1, 3, 5]),
       stride=st.sampled_from([1, 2]), bias=st.booleans(), activate=st.booleans(),
       gain=st.sampled_from([1 / SQRT2, 1.0, SQRT2]))
def test_conv_equals_the_textbook(cin, cout, kernel, stride, bias, activate, gain):
    conv = EqualizedConv2d(cin, cout, kernel, bias=bias, gain=gain, activate=activate).double()
    if bias:
        torch.nn.init.normal_(conv.bias)
    x = rand(2, cin, 8, 6)
    weight = conv.weight / math.sqrt(cin * kernel**2)
    want = F.conv2d(x, weight, conv.bias, stride=stride, padding=kernel // 2)
    # the gain last, as in the textbook
    want = gain * (F.leaky_relu(want, 0.2) if activate else want)
    assert_close(conv(x, stride=stride), want, rtol=1e-10, atol=1e-10)


def test_conv_padding_can_be_chosen():
    conv, x = EqualizedConv2d(2, 3), torch.randn(1, 2, 9, 9)
    assert conv(x).shape[-2:] == (9, 9)
    assert_close(conv(x, padding=0), conv(x)[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [
    lambda **k: EqualizedConv2d(4, 64, 3, **k),
    lambda **k: EqualizedLinear(36, 64, **k),
])
@pytest.mark.parametrize("gain", [1.0, SQRT2])
def test_both_forms_start_as_the_same_function(make, gain):
    layers = []
    for equalized in (True, False):
        torch.manual_seed(0)
        layer = make(gain=gain, bias_init=0.5, activate=True, equalized=equalized)
        layers.append(layer.double())
    x = rand(2, 4, 6, 6) if isinstance(layers[0], EqualizedConv2d) else rand(5, 36)
    # weights are drawn in float32
    assert_close(layers[0](x), layers[1](x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layers[0].weight, layers[1].weight)
    assert layers[0].state_dict().keys() == layers[1].state_dict().keys()


@FEW
@given(cin=st.integers(8, 300), equalized=st.booleans(), lr_mul=st.sampled_from([1.0, 0.1, 0.01]),
       gain=st.sampled_from([1.0, SQRT2]))
def test_speed_under_adam(cin, equalized, lr_mul, gain):
    torch.manual_seed(0)
    layer = EqualizedLinear(cin, 32, gain=gain, lr_mul=lr_mul, equalized=equalized).double()
    before = layer.weight.detach().clone()
    layer(rand(16, cin)).square().mean().backward()
    torch.optim.Adam(layer.parameters(), lr=1e-3, eps=1e-30).step()
    relative = ((layer.weight.detach() - before).norm() / before.norm()).item()
    speed = lr_mul if equalized else math.sqrt(cin) / gain
    assert relative == pytest.approx(1e-3 * speed, rel=0.15)


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_lr_mul_does_not_change_the_function(lr_mul):
    torch.manual_seed(0)
    layer = EqualizedLinear(16, 8, bias_init=1.0, gain=SQRT2, lr_mul=lr_mul, activate=True).double()
    x = rand(3, 2, 16)                                           # any number of leading dimensions
    ones = torch.ones(8, dtype=torch.float64)
    want = SQRT2 * F.leaky_relu(F.linear(x, layer.weight * lr_mul / 4, ones), SLOPE)
    assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


def test_the_signal_keeps_its_size():
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    for _ in range(20):
        x = EqualizedLinear(256, 256, gain=SQRT2, activate=True)(x)
    assert 0.5 < x.square().mean().sqrt() < 3


# ---------------------------------------------------------------- FIR resampling

def scipy_upfirdn(v, taps, up, down, pad):
    full = np.pad(signal.upfirdn(np.array(taps) / np.sum(taps), v, up), 50)
    start = 50 + len(taps) - 1 - pad[0]
    return full[start:start + len(v) * up + sum(pad) - len(taps) + 1:down]


@FEW
@given(taps=st.lists(st.integers(1, 9), min_size=1, max_size=6), up=st.integers(1, 3),
       down=st.integers(1, 3), pad=st.tuples(st.integers(0, 4), st.integers(0, 4)),
       h=st.integers(6, 11), w=st.integers(6, 11))
def test_upfirdn_equals_scipy(taps, up, down, pad, h, w):
    x = rand(2, 3, h, w)
    ours = upfirdn(x, fir_kernel(taps), up, down, pad)
    assert ours.shape == (2, 3, *((n * up + sum(pad) - len(taps)) // down + 1 for n in (h, w)))
    theirs = np.apply_along_axis(scipy_upfirdn, 1, x[1, 2].numpy(), taps, up, down, pad)
    theirs = np.apply_along_axis(scipy_upfirdn, 0, theirs, taps, up, down, pad)
    np.testing.assert_allclose(ours[1, 2], theirs, rtol=0, atol=1e-12)


@FEW
@given(c=st.integers(1, 4), h=st.integers(1, 8), w=st.integers(1, 8))
def test_fast_forms_equal_the_reference(c, h, w):
    x, fir, k = rand(2, c, 2 * h, 2 * w), Resample("fir"), fir_kernel()
    assert_close(fir.down(x), upfirdn(x, k, down=2, pad=(1, 1)), rtol=0, atol=1e-12)
    assert_close(fir.up(x), upfirdn(x, 4 * k, up=2, pad=(2, 1)), rtol=0, atol=1e-12)
    assert_close(fir.smooth(x, 2), upfirdn(x, k, pad=(2, 2)), rtol=0, atol=1e-12)
    assert_close(fir.smooth(x, 2, 4.0), upfirdn(x, 4 * k, pad=(2, 2)), rtol=0, atol=1e-12)
    for mode in ("fir", "bilinear"):
        r = Resample(mode)
        assert r.down(x).shape == (2, c, h, w) and r.up(x).shape == (2, c, 4 * h, 4 * w)


def test_bilinear_is_a_filter_too():
    x, fir, bilinear = rand(1, 2, 10, 8), Resample("fir"), Resample("bilinear")
    assert_close(bilinear.down(x), upfirdn(x, fir_kernel((1, 1)), down=2), rtol=0, atol=1e-12)
    repeated = F.pad(x, (1, 1, 1, 1), mode="replicate")
    assert_close(bilinear.up(x), fir.up(repeated)[..., 2:-2, 2:-2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode,power", [("bilinear", 1), ("fir", 3)])
@pytest.mark.parametrize("f", [0.0, 0.1, 0.25, 0.3, 0.45])
def test_response_of_halving(mode, power, f):
    phase = 2 * math.pi * f * torch.arange(64, dtype=torch.float64)
    wave = torch.stack([phase.cos(), phase.sin()])[None, :, None].expand(1, 2, 16, 64)
    amplitude = Resample(mode).down(wave)[0, :, 2:-2, 2:-2].square().sum(0).sqrt()
    wanted = torch.full_like(amplitude, math.cos(math.pi * f) ** power)
    assert_close(amplitude, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["fir", "bilinear"])
def test_resampling_keeps_constants_dtype_and_gradients(mode):
    r = Resample(mode)
    assert not r.state_dict()                                        # the filter is no weight
    for dtype in (torch.float32, torch.float64):
        ones = torch.ones(1, 3, 8, 8, dtype=dtype)
        for y in (r.up(ones), r.down(ones)):
            assert y.dtype == dtype
            inner = y[..., 1:-1, 1:-1]
            assert_close(inner, torch.ones_like(inner), rtol=0, atol=1e-6)
    x = rand(1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(r.up, x) and torch.autograd.gradcheck(r.down, x)
    # R1 differentiates twice
    assert torch.autograd.gradgradcheck(lambda z: r.down(r.up(z)).square(), x)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_is_filtered_in_float32_on_a_cpu(way, autocast, memory):
    resample = getattr(Resample("fir"), way)
    narrow = rand(2, 3, 12, 10).bfloat16().to(memory_format=memory)
    wide = narrow.float()

    def slopes(v):
        v = v.clone().requires_grad_()
        (first,) = torch.autograd.grad(resample(v).float().pow(3).sum(), v, create_graph=True)
        return first, *torch.autograd.grad(first.float().square().sum(), v)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, same, of_narrow = resample(narrow), resample(wide), slopes(narrow)
        assert torch.is_autocast_enabled("cpu") is autocast          # what follows is as it was
    assert y.dtype == of_narrow[0].dtype == of_narrow[1].dtype == torch.bfloat16
    assert same.dtype == torch.float32
    assert torch.equal(y, resample(wide).bfloat16())                 # rounded once, at the end
    assert torch.equal(same, resample(wide))
    for a, b in zip(of_narrow, slopes(wide)):
        assert b.abs().max() > 0.1
        assert_close(a.float(), b, rtol=2**-5, atol=2**-6 * b.abs().max().item())


@pytest.mark.parametrize("way, function", [("up", "conv_transpose2d"), ("down", "conv2d")])
def test_the_convolution_itself_runs_in_float32_on_a_cpu(way, function):
    "Both formats round alike, so that only the time would tell."
    original, x = getattr(F, function), torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    with patch.object(F, function, side_effect=original) as conv:
        with torch.autocast("cpu", torch.bfloat16):
            getattr(Resample("fir"), way)(x)
    assert [a.dtype for a in conv.call_args.args] == [torch.float32] * 2


@pytest.mark.parametrize("way, size", [("up", 16), ("down", 4)])
def test_resampling_without_memory(way, size):
    "Shapes of a network that would not fit: the device meta knows no autocast."
    for dtype in (torch.float32, torch.bfloat16):
        y = getattr(Resample("fir"), way)(torch.zeros(2, 3, 8, 8, device="meta", dtype=dtype))
        assert y.shape == (2, 3, size, size) and y.dtype == dtype


@pytest.mark.parametrize("mode", ["nearest", "", None, "FIR"])
def test_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="needs 'fir' or 'bilinear'"):
        Resample(mode)

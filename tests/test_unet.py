"""The U-Net: blocks against written-out ones, shapes, official parameter counts, wiring,
learning."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.layers import EqualizedConv2d, fir_kernel, upfirdn
from gfpgan_edu.stylegan2 import widths
from gfpgan_edu.unet import DownBlock, UNet, UpBlock


def act(z):
    return F.leaky_relu(z, 0.2) * math.sqrt(2)


def scaled(conv, equalized):
    "The weight before any gain of ours: what the textbook's residual block uses."
    w = conv.weight / math.sqrt(conv.weight[0].numel())
    return w if equalized else w * math.sqrt(conv.weight[0].numel())


def randomise(block):
    for conv in (block.conv1, block.conv2):
        torch.nn.init.normal_(conv.bias)
    return block.double()


@settings(max_examples=25, deadline=None)
@given(cin=st.integers(1, 6), cout=st.integers(1, 6), h=st.integers(1, 6), w=st.integers(1, 6))
def test_fir_down_block(cin, cout, h, w):
    b, x = randomise(DownBlock(cin, cout)), torch.randn(2, cin, 2 * h, 2 * w, dtype=torch.float64)
    y = act(F.conv2d(x, scaled(b.conv1, True), b.conv1.bias, padding=1))
    y = upfirdn(y, fir_kernel(), pad=(2, 2))
    y = act(F.conv2d(y, scaled(b.conv2, True), b.conv2.bias, stride=2))
    short = F.conv2d(upfirdn(x, fir_kernel(), pad=(1, 1)), scaled(b.skip, True), stride=2)
    assert_close(b(x), (y + short) / math.sqrt(2), rtol=1e-10, atol=1e-10)


def test_baked_bilinear_down_block():
    "The form of the released models: plain convolutions and leaky ReLUs, no constants at all."
    b = randomise(DownBlock(4, 6, resample="bilinear", equalized=False))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    y = F.leaky_relu(F.conv2d(x, b.conv1.weight, b.conv1.bias, padding=1), 0.2)
    y = F.leaky_relu(F.conv2d(F.avg_pool2d(y, 2), b.conv2.weight, b.conv2.bias, padding=1), 0.2)
    assert_close(b(x), y + F.conv2d(F.avg_pool2d(x, 2), b.skip.weight), rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(cin=st.integers(1, 6), cout=st.integers(1, 6), h=st.integers(1, 6), w=st.integers(1, 6))
def test_up_block_in_the_official_order(cin, cout, h, w):
    b, x = randomise(UpBlock(cin, cout)), torch.randn(2, cin, h, w, dtype=torch.float64)
    double = lambda z: F.interpolate(z, scale_factor=2, mode="bilinear")
    y = act(F.conv2d(x, scaled(b.conv1, True), b.conv1.bias, padding=1))
    y = act(F.conv2d(double(y), scaled(b.conv2, True), b.conv2.bias, padding=1))
    short = F.conv2d(double(x), scaled(b.skip, True))
    assert_close(b(x), (y + short) / math.sqrt(2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [8, 16, 64, 256, 512, 1024])
@pytest.mark.parametrize("resample", ["fir", "bilinear"])
@pytest.mark.parametrize("equalized", [True, False])
def test_shapes_and_depth(size, resample, equalized):
    channels = {s: n // 2 for s, n in widths(size).items()}
    with torch.device("meta"):
        net = UNet(channels, resample=resample, equalized=equalized)
        latent, spatial, pyramid = net(torch.empty(3, 3, size, size))
    levels = [s for s in channels if s > 4]
    assert len(net.down) == len(net.up) == len(levels) == math.log2(size) - 2
    assert latent.shape == (3, channels[4], 4, 4)
    assert [f.shape for f in spatial] == [(3, channels[s], s, s) for s in levels]
    assert [p.shape for p in pyramid] == [(3, 3, s, s) for s in levels]
    assert {b.resample.mode for b in net.down} == {resample}
    assert {b.resample.mode for b in net.up} == {"bilinear"}
    gains = {m.weight_gain for m in net.modules() if isinstance(m, EqualizedConv2d)}
    assert (gains == {1.0}) != equalized


@pytest.mark.parametrize("multiplier,counts", [
    # GFPGANv1
    (1, dict(first=64, down=4_368_848, last=590_080, up=4_956_368, to_rgb=3_045)),
    # GFPGANBilinear, GFPGANv1Clean
    (2, dict(first=128, down=5_607_072, last=590_080, up=6_187_680, to_rgb=3_765)),
])
def test_official_parameter_counts(multiplier, counts):
    with torch.device("meta"):
        net = UNet({s: n // 2 for s, n in widths(512, multiplier).items()})
    parts = {name: getattr(net, name) for name in counts}
    assert {n: sum(p.numel() for p in part.parameters()) for n, part in parts.items()} == counts
    assert sum(p.numel() for p in net.parameters()) == sum(counts.values())


def test_wiring_is_a_recursion():
    torch.manual_seed(0)
    net, x = UNet({4: 8, 8: 7, 16: 6, 32: 5}), torch.randn(2, 3, 32, 32)

    def features(h, level=0):
        if level == len(net.down):
            return [net.last(h)]
        skip = net.down[level](h)
        inner = features(skip, level + 1)
        return inner + [net.up[-1 - level](inner[-1] + skip)]

    latent, spatial, pyramid = net(x)
    for got, want in zip([latent, *spatial], features(net.first(x)), strict=True):
        assert_close(got, want, rtol=0, atol=1e-6)
    for got, feature, head in zip(pyramid, spatial, net.to_rgb, strict=True):
        assert_close(got, head(feature), rtol=0, atol=1e-6)


def test_every_output_sees_the_whole_input():
    torch.manual_seed(0)
    net = UNet({4: 6, 8: 6, 16: 6, 32: 6}).double()
    for pick in (lambda o: o[0][0, :, 0, 0], lambda o: o[2][-1][0, :, 31, 31]):
        x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        pick(net(x)).sum().backward()
        assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("resample", ["fir", "bilinear"])
def test_faces_of_a_batch_do_not_mix_and_features_keep_their_size(resample):
    torch.manual_seed(0)
    net = UNet({4: 32, 8: 32, 16: 32, 32: 32}, resample=resample)
    x = F.interpolate(torch.randn(3, 3, 4, 4), size=32, mode="bilinear")
    latent, spatial, _ = net(x)
    alone, _, pictures = net(x[1:2])
    assert_close(latent[1:2], alone, rtol=0, atol=1e-5)
    for f in (latent, *spatial):
        assert 0.1 < f.square().mean().sqrt() < 10


def test_it_learns():
    """Twenty steps on two smooth pictures lower the loss of every level, and every parameter takes
    part."""
    torch.manual_seed(0)
    net = UNet({4: 16, 8: 16, 16: 16})
    y = F.interpolate(torch.rand(2, 3, 3, 3) * 2 - 1, size=16, mode="bilinear")
    targets, losses = [F.avg_pool2d(y, 2), y], []
    opt = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(20):
        opt.zero_grad()
        each = [(p - t).abs().mean() for p, t in zip(net(y)[2], targets, strict=True)]
        sum(each).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        opt.step()
        losses.append([e.item() for e in each])
    assert all(last < 0.7 * first for first, last in zip(losses[0], losses[-1]))

"""The two judges.

Their parts against plain loops, their state dicts against the official ones, and gradients of
gradients.
"""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.discriminators import (ComponentDiscriminator, Discriminator, load_official,
                                       minibatch_stddev, official_names)
from gfpgan_edu.layers import fir_kernel, upfirdn
from gfpgan_edu.losses import d_logistic, r1

EXACT = dict(rtol=0, atol=0)
CLOSE = dict(rtol=1e-9, atol=1e-9)
OFFICIAL = json.loads((Path(__file__).parent / "data/official_discriminators.json").read_text())
quick = settings(max_examples=25, deadline=None)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(net, seed=0):
    "In double precision, with biases that are not zero."
    for i, p in enumerate(net.double().parameters()):
        p.data = randn(*p.shape, seed=1000 * seed + i)
    return net.requires_grad_(False)


def tiny(size=16, group=4):
    return shaken(Discriminator(size, narrow=1 / 64, stddev_group=group))


# ---------------------------------------------------------------- minibatch standard deviation

def by_hand(h, group):
    "One sample, one channel, one place at a time."
    b, c, s, _ = h.shape
    g = max(d for d in range(1, group + 1) if b % d == 0)
    n, out = b // g, torch.empty(b, 1, s, s, dtype=h.dtype)
    for i in range(b):
        mates = [j for j in range(b) if j % n == i % n]
        assert len(mates) == g and i in mates
        total = 0.0
        for k in range(c):
            for y in range(s):
                for x in range(s):
                    v = [h[j, k, y, x].item() for j in mates]
                    mean = sum(v) / g
                    total += (sum((a - mean) ** 2 for a in v) / g + 1e-8) ** 0.5
        out[i] = total / (c * s * s)
    return torch.cat([h, out], 1)


@quick
@given(b=st.integers(1, 13), c=st.integers(1, 3), s=st.integers(1, 3), group=st.integers(1, 8))
def test_the_spread_agrees_with_loops_for_every_batch_and_group(b, c, s, group):
    h = randn(b, c, s, s, seed=b)
    assert_close(minibatch_stddev(h, group), by_hand(h, group), **CLOSE)


def test_the_spread_of_equal_samples_is_that_of_epsilon_alone():
    same = randn(1, 3, 4, 4).expand(4, 3, 4, 4)
    spread = lambda b: torch.full((b, 1, 4, 4), 1e-4, dtype=torch.float64)
    assert_close(minibatch_stddev(same)[:, 3:], spread(4), **CLOSE)
    five = randn(5, 3, 4, 4)                                     # groups of one
    assert_close(minibatch_stddev(five)[:, 3:], spread(5), **CLOSE)


@quick
@given(n=st.integers(1, 3), per=st.sampled_from([1, 2, 3, 4, 8]),
       group=st.sampled_from([1, 2, 3, 4]))
def test_interleaved_shares_give_the_scores_of_the_whole(n, per, group):
    "Sample i on process i mod n: the same groups wherever the whole batch has the same group size."
    size = lambda b: max(d for d in range(1, group + 1) if b % d == 0)
    d, x = tiny(8, group), randn(n * per, 3, 8, 8, seed=per)
    if size(n * per) == size(per):
        for rank in range(n):
            assert_close(d(x[rank::n]), d(x)[rank::n], **CLOSE)
    else:
        assert size(n * per) > size(per)


def test_scores_of_a_group_know_of_each_other_and_of_nobody_else():
    d, x = tiny(), randn(8, 3, 16, 16)
    y = x.clone()
    y[1] += 1
    changed = (d(x) != d(y)).squeeze(1)
    assert changed.tolist() == [i % 2 == 1 for i in range(8)]    # 8 samples, group 4: the odd ones
    alone = tiny(group=1)
    assert (alone(x) != alone(y)).squeeze(1).tolist() == [i == 1 for i in range(8)]


# -------------------------------------------------------- the networks against plain functions

def conv(m, x, **kw):
    "An equalised convolution written out: weight × gain/√fan-in; √2 of the activation outside."
    w = m.weight / (m.weight[0].numel() ** 0.5)
    y = F.conv2d(x, w, **kw)
    return y if m.bias is None else y + m.bias.view(-1, 1, 1)


def act(x):
    return torch.where(x > 0, x, 0.2 * x) * 2 ** 0.5


def down(m, x):
    return conv(m, upfirdn(x, fir_kernel(), pad=(2, 2)), stride=2)


def plain_discriminator(d, x):
    h = act(conv(d.first, x))
    for block in d.blocks:
        skip = conv(block.skip, upfirdn(h, fir_kernel(), down=2, pad=(1, 1)))
        h = (act(down(block.conv2, act(conv(block.conv1, h, padding=1)))) + skip) / 2 ** 0.5
    h = act(conv(d.last, by_hand(h, d.stddev_group), padding=1)).flatten(1)
    h = act(h @ d.hidden.weight.t() / h.shape[1] ** 0.5 + d.hidden.bias)
    return h @ d.score.weight.t() / h.shape[1] ** 0.5 + d.score.bias


def plain_component(d, x):
    f1 = act(conv(d.conv3, act(down(d.conv2, act(conv(d.conv1, x, padding=1)))), padding=1))
    f2 = act(conv(d.conv5, act(down(d.conv4, f1)), padding=1))
    return conv(d.score, f2, padding=1), f1, f2


@pytest.mark.parametrize("size,batch", [(8, 1), (16, 4), (32, 6)])
def test_discriminator_from_plain_functions(size, batch):
    d, x = tiny(size), randn(batch, 3, size, size)
    assert d(x).shape == (batch, 1)
    assert_close(d(x), plain_discriminator(d, x), **CLOSE)


@pytest.mark.parametrize("h,w", [(16, 16), (20, 28), (80, 80)])
def test_component_discriminator_from_plain_functions(h, w):
    d, x = shaken(ComponentDiscriminator(4)), randn(2, 3, h, w)
    score, (f1, f2) = d(x)
    shapes = (2, 1, h // 4, w // 4), (2, 8, h // 2, w // 2), (2, 16, h // 4, w // 4)
    assert (score.shape, f1.shape, f2.shape) == shapes
    for ours, plain in zip((score, f1, f2), plain_component(d, x), strict=True):
        assert_close(ours, plain, **CLOSE)


def test_one_score_of_a_component_sees_38_pixels():
    d, x = shaken(ComponentDiscriminator(4)), randn(1, 3, 80, 80).requires_grad_(True)
    (grad,) = torch.autograd.grad(d(x)[0][0, 0, 10, 9], x)
    rows, cols = (grad[0].abs().sum(0).sum(k).nonzero().squeeze(1) for k in (1, 0))
    assert (rows.min(), rows.max()) == (4 * 10 - 17, 4 * 10 + 20)
    assert (cols.min(), cols.max()) == (4 * 9 - 17, 4 * 9 + 20)


def test_scores_of_a_component_move_with_the_picture():
    d, x = shaken(ComponentDiscriminator(4)), randn(1, 3, 80, 80)
    inner = slice(5, 15)                                        # scores that see no border
    moved = d(x.roll((4, -8), (2, 3)))[0]
    assert_close(moved[..., 6:15, 5:13], d(x)[0][..., 5:14, 7:15], **CLOSE)
    assert d(x)[0][..., inner, inner].std() > 0


# ---------------------------------------------------------------- official state dicts

def build(kind):
    return Discriminator(512) if kind == "discriminator" else ComponentDiscriminator()


@pytest.mark.parametrize("kind", ["discriminator", "component"])
def test_names_shapes_and_counts_are_the_official_ones(kind):
    with torch.device("meta"):
        net = build(kind)
    own = net.state_dict()
    pairs = official_names(net)
    assert sorted(ours for ours, _ in pairs) == sorted(own)
    assert {theirs: list(own[ours].shape) for ours, theirs in pairs} == OFFICIAL[kind]["state_dict"]
    known = {"discriminator": 24_030_753, "component": 1_110_785}[kind]
    assert sum(p.numel() for p in net.parameters()) == OFFICIAL[kind]["parameters"] == known


@pytest.mark.parametrize("make", [lambda: Discriminator(16, narrow=1 / 64),
                                  lambda: ComponentDiscriminator(2)], ids=["whole", "component"])
def test_official_state_dicts_load_completely_or_not_at_all(make):
    net, other = shaken(make(), 1), shaken(make(), 2)
    names = official_names(net)
    state = {theirs: other.state_dict()[ours] for ours, theirs in names}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    last = names[-1][1]
    wrong = {"missing": {k: v for k, v in state.items() if k != last},
             "extra": state | {"conv_body.99.weight": torch.zeros(1)},
             "shape": state | {last: torch.zeros(7)}}
    says = r"d\.pth: not a \w*Discriminator of this size; 1 names or shapes differ, first "
    for what, bad in wrong.items():
        first = "conv_body.99" if what == "extra" else last
        with pytest.raises(ValueError, match=says + first):
            load_official(net, bad, "d.pth")
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert load_official(net, state) is net
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_discriminator_of_another_size_is_refused():
    names = official_names(Discriminator(32, narrow=1 / 64))
    state = {theirs: torch.zeros(1) for _, theirs in names}
    with pytest.raises(ValueError, match="not a Discriminator of this size"):
        load_official(Discriminator(16, narrow=1 / 64), state)


# ---------------------------------------------------------------- gradients

def test_second_derivatives_agree_with_finite_differences():
    d, x = tiny(8), randn(3, 3, 8, 8).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: d(x), x)
    weights = [d.first.weight, d.blocks[0].conv2.bias, d.last.weight, d.score.weight]
    for w in weights:
        w.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *_: r1(d(x), x), weights)
    assert torch.autograd.gradcheck(lambda x: r1(d(x), x), x)


def test_second_derivatives_of_the_component_discriminator():
    d, x = shaken(ComponentDiscriminator(2)), randn(1, 3, 8, 8).requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda x: d(x)[0], x)


def test_a_small_one_learns_to_tell_two_kinds_of_noise():
    torch.manual_seed(0)
    d = Discriminator(8, narrow=1 / 64)
    adam = torch.optim.Adam(d.parameters(), 1e-2, betas=(0.0, 0.99))
    g = torch.Generator().manual_seed(1)
    rough = lambda: torch.randn(8, 3, 8, 8, generator=g)
    smooth = lambda: F.avg_pool2d(torch.randn(8, 3, 10, 10, generator=g), 3, 1) * 3
    assert d_logistic(d(rough()), d(smooth())) > 1
    for _ in range(60):
        adam.zero_grad()
        d_logistic(d(rough()), d(smooth())).backward()
        adam.step()
    with torch.no_grad():
        assert d_logistic(d(rough()), d(smooth())) < 0.2

"""The spatial feature transform, its channel split, and the heads that predict its conditions."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.csft import ConditionHead, cs_sft, sft
from gfpgan_edu.layers import SQRT2
from gfpgan_edu.stylegan2 import StyleGAN2, widths

EXACT = dict(rtol=0, atol=0)
quick = settings(max_examples=25, deadline=None)
# (b, c/2, h, w)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(shapes)
def test_sft_is_element_by_element(shape):
    f, alpha, beta = randn(3, *shape)
    assert torch.from_numpy(f.numpy() * alpha.numpy() + beta.numpy()).equal(sft(f, alpha, beta))
    assert_close(sft(f, torch.ones_like(f), torch.zeros_like(f)), f, **EXACT)
    assert_close(sft(f, torch.zeros_like(f), beta), beta, **EXACT)


@quick
@given(shapes)
def test_split_is_the_full_transform_with_its_first_half_fixed(shape):
    b, c, h, w = shape
    f, (alpha, beta) = randn(b, 2 * c, h, w), randn(2, *shape, seed=1)
    out = cs_sft(f, alpha, beta)
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    assert_close(out, sft(f, torch.cat([one, alpha], 1), torch.cat([zero, beta], 1)), **EXACT)
    assert_close(out[:, :c], f[:, :c], **EXACT)
    assert_close(cs_sft(f, one, zero), f, **EXACT)


def test_a_condition_acts_on_its_own_pixel_of_the_second_half():
    f, alpha, beta = randn(1, 6, 3, 4), randn(1, 3, 3, 4, seed=1), randn(1, 3, 3, 4, seed=2)
    slopes = torch.autograd.functional.jacobian(lambda a, b: cs_sft(f, a, b), (alpha, beta))
    by_alpha, by_beta = slopes
    eye = torch.eye(36, dtype=torch.float64).reshape(3, 3, 4, 3, 3, 4)
    assert_close(by_beta[0, 3:, :, :, 0], eye, **EXACT)
    assert_close(by_alpha[0, 3:, :, :, 0], eye * f[0, 3:, :, :, None, None, None], **EXACT)
    assert not by_alpha[0, :3].any() and not by_beta[0, :3].any()


@pytest.mark.parametrize("shape", [
    (1, 1, 4, 4), (2, 3, 1, 1), (2, 3, 4, 1), (2, 6, 4, 4), (2, 2, 4, 4), (3, 4, 4)])
def test_nothing_is_broadcast(shape):
    f, good, bad = randn(2, 6, 4, 4), randn(2, 3, 4, 4), randn(*shape)
    with pytest.raises(ValueError, match=r"alpha is \(.*\), needs \(2, 3, 4, 4\)"):
        cs_sft(f, bad, good)
    with pytest.raises(ValueError, match=r"beta is \(.*\), needs \(2, 3, 4, 4\)"):
        cs_sft(f, good, bad)
    with pytest.raises(ValueError, match="alpha is"):
        sft(good, randn(2, 3, 1, 1), good)


# ---------------------------------------------------------------- heads

@pytest.mark.parametrize("equalized", [True, False])
def test_head_against_plain_convolutions(equalized):
    torch.manual_seed(0)
    head, f = ConditionHead(6, 10, equalized=equalized).double(), randn(2, 6, 7, 5)
    for p in head.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for got, (first, last) in zip(head(f), (head.scale, head.shift), strict=True):
        c = (SQRT2 / 54**0.5, SQRT2, 1 / 54**0.5) if equalized else (1, 1, 1)
        hidden = F.conv2d(f, first.weight * c[0], first.bias * c[1], padding=1)
        wanted = F.conv2d(F.leaky_relu(hidden, 0.2), last.weight * c[2], last.bias, padding=1)
        assert_close(got, wanted, rtol=0, atol=1e-12)
        assert got.shape == (2, 10, 7, 5)


@pytest.mark.parametrize("equalized", [True, False])
def test_head_starts_around_the_identity(equalized):
    torch.manual_seed(0)
    head, f = ConditionHead(32, 32, equalized=equalized), torch.randn(4, 32, 24, 24)
    alpha, beta = head(torch.zeros_like(f))
    assert_close(alpha, torch.ones_like(alpha), **EXACT)
    assert_close(beta, torch.zeros_like(beta), **EXACT)
    alpha, beta = head(f)
    weak_alpha, weak_beta = head(0.1 * f)
    # the spread is proportional to the feature
    assert_close(weak_alpha - 1, 0.1 * (alpha - 1), rtol=1e-3, atol=1e-5)
    assert_close(weak_beta, 0.1 * beta, rtol=1e-3, atol=1e-5)
    assert abs(alpha.mean() - 1) < 0.15 and abs(beta.mean()) < 0.15
    assert 0.7 < alpha.std() < 1.3 and 0.7 < beta.std() < 1.3


def test_head_sees_five_by_five_pixels():
    torch.manual_seed(0)
    head, f = ConditionHead(4, 4).double(), randn(1, 4, 11, 11)
    changed = f.clone()
    changed[0, :, 5, 5] += 1
    inside = torch.zeros(11, 11, dtype=torch.bool)
    inside[3:8, 3:8] = True
    for a, b in zip(head(f), head(changed)):
        assert torch.equal((a != b).any(1)[0], inside)


def test_split_saves_a_third_of_the_heads():
    def count(share):
        heads = [ConditionHead(c // 2, c // share) for s, c in widths(512).items() if s > 4]
        return sum(p.numel() for head in heads for p in head.parameters())

    with torch.device("meta"):
        half, full = count(2), count(1)
    assert half == 7_865_280 and 2 * full == 3 * half


# ---------------------------------------------------------------- with the prior

def steered(prior, w, transform, alpha, beta):
    def modulate(h, k):
        c = h.shape[1] // 2 if transform is cs_sft else h.shape[1]
        return transform(h, *(t.expand(h.shape[0], c, *h.shape[2:]) for t in (alpha, beta)))
    return prior.synthesis(w, modulate=modulate)


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return StyleGAN2(32, 16, 2, narrow=1 / 32).double().requires_grad_(False)


@pytest.mark.parametrize("transform", [sft, cs_sft])
def test_identity_conditions_give_the_prior(prior, transform):
    w, one = randn(2, 8, 16), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert_close(steered(prior, w, transform, one, 0 * one), prior.synthesis(w), **EXACT)


def test_full_transform_can_shut_the_prior_out_and_the_split_cannot(prior):
    one, shares = torch.ones(1, 1, 1, 1, dtype=torch.float64), {}
    last = prior.synthesis.to_rgbs[-1].conv
    hook = last.register_forward_hook(lambda m, i, y: shares.update(last=y))
    reaches = {}
    for transform in (sft, cs_sft):
        w = randn(1, 8, 16).requires_grad_()
        steered(prior, w, transform, 0 * one, one)
        grad, = torch.autograd.grad(shares["last"].square().sum(), w)
        reaches[transform] = [bool(g.any()) for g in grad[0]]
    hook.remove()
    # only the last convolution and RGB layer come after the transform
    assert reaches[sft] == [False] * 6 + [True] * 2
    assert reaches[cs_sft] == [True] * 8


def test_gradients_reach_the_conditions_and_not_the_frozen_prior(prior):
    w = randn(1, 8, 16)
    def condition(value):
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64, requires_grad=True)

    w, alpha, beta = randn(1, 8, 16), condition(1.0), condition(0.0)
    steered(prior, w, cs_sft, alpha, beta).square().sum().backward()
    assert alpha.grad.any() and beta.grad.any()
    assert all(p.grad is None for p in prior.parameters())


def test_maps_fit_a_picture_that_codes_cannot(prior):
    "The reason for the transform: with a frozen prior, positions carry what codes do not."
    target = F.interpolate(randn(1, 3, 8, 8, seed=3), size=32, mode="bilinear")

    def fit(free, forward):
        optimiser = torch.optim.Adam(free, lr=0.05)
        for _ in range(100):
            loss = (forward() - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    def plane(value, side):
        return torch.full((1, 8, side, side), value, dtype=torch.float64, requires_grad=True)

    start = randn(1, 1, 16).expand(1, 8, 16)
    w = start.clone().requires_grad_()
    maps = [[plane(1.0, side), plane(0.0, side)] for side in (8, 16, 32)]
    by_codes = fit([w], lambda: prior.synthesis(w))
    steer = lambda h, k: cs_sft(h, *maps[k])
    by_maps = fit(sum(maps, []), lambda: prior.synthesis(start, modulate=steer))
    assert by_maps < 0.1 * by_codes

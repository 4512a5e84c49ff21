"""The U-Net alone as a config, the reduction, PULSE's sphere, angles and Gaussian, the two searches
against loops of their own, what they leave untouched."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.baselines import (UNET_GAN, UNET_L1, Inversion, compose, gaussian_of_w, geocross,
                                  mganprior, on_sphere, pulse, shrink, without_prior)
from gfpgan_edu.engine import override, plain
from gfpgan_edu.faces import PARTS, component_boxes, template
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.train_restorer import PRESETS, RestorerConfig, RestorerTrainer
from gfpgan_edu.weights import load_prior
from train_runs import flat

quick = settings(max_examples=25, deadline=None)
SIZE, DIM = 16, 16
LAYERS = 2 * int(math.log2(SIZE)) - 2


pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def prior():
    "A small random prior in 64 bits whose parameters all do something and all want gradients."
    torch.manual_seed(0)
    net = StyleGAN2(SIZE, DIM, 2, narrow=1 / 64).double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net.requires_grad_(True)


@pytest.fixture(scope="module")
def faces(prior):
    with torch.no_grad():
        return prior(randn(3, DIM, seed=7)) + 0.05 * randn(3, 3, SIZE, SIZE, seed=8)


# ---------------------------------------------------------------- the U-Net alone

def changed(a, b):
    a, b = flat(plain(a)), flat(plain(b))
    assert a.keys() == b.keys()
    return {k: b[k] for k in a if a[k] != b[k]}


@pytest.mark.parametrize("preset", PRESETS)
def test_without_prior_changes_what_it_says_and_nothing_else(preset):
    base = PRESETS[preset]()
    before = plain(base)
    for gan in (True, False):
        alone, off = without_prior(base, gan), {"model.use_prior": False, "freeze_prior": False}
        if not gan:
            terms = ("adversarial", "component", "feature_style", "feature_matching", "perceptual",
                     "style", "identity")
            off |= {f"loss.{t}": 0 for t in terms}
        now = flat(plain(base))
        assert changed(base, alone) == {f".{k}": v for k, v in off.items() if now[f".{k}"] != v}
        assert type(alone) is RestorerConfig
        assert without_prior(alone, gan) == alone == override(base, UNET_GAN if gan else UNET_L1)
    assert plain(base) == before


def test_l1_leaves_no_other_term_however_much_was_on():
    everything = RestorerConfig.official()
    everything = replace(everything, loss=replace(everything.loss, feature_matching=10.0))
    rest = ("r1", "r1_every", "pyramid_until", "pyramid_after")
    loss = without_prior(everything, gan=False).loss
    weights = {k: v for k, v in vars(loss).items() if k not in rest}
    assert {k for k, v in weights.items() if v} == {"pixel", "pyramid"} and len(weights) == 9
    assert all(v for v in vars(everything.loss).values())       # all were on before


class Pairs:
    def __init__(self, n=4):
        self.gt = randn(n, 3, SIZE, SIZE, dtype=torch.float32).clamp(-1, 1)
        self.boxes = torch.from_numpy(component_boxes(template(SIZE), SIZE))

    def __len__(self):
        return len(self.gt)

    def __getitem__(self, key):
        i = key[1] if isinstance(key, tuple) else key
        return {"lq": 0.5 * self.gt[i], "gt": self.gt[i], "boxes": self.boxes}


@pytest.mark.parametrize("gan, players, judges", [
    (True, {"g", "d", *PARTS}, {"embedder"}),
    (False, {"g"}, set())])
def test_a_trainer_is_built_from_it_and_trains_the_unet(gan, players, judges):
    base = RestorerConfig.tiny()
    model = GFPGANConfig(size=SIZE, style_dim=16, n_mlp=2, narrow=1 / 32)
    base = replace(base, model=model, narrow_d=1 / 32, embedder="random", prior="",
                   freeze_prior=True, loss=replace(base.loss, identity=0.1),
                   run=replace(base.run, batch=2, channels_last=False))
    t = RestorerTrainer(without_prior(base, gan), Pairs(), valid=None, device="cpu")
    assert set(t.nets) == players and set(t.frozen) == judges
    g = t.nets["g"]
    assert [n for n, _ in g.named_children()] == ["unet"]
    before = {k: v.clone() for k, v in g.state_dict().items()}
    t.it = 1
    t.batch = t.place(next(iter(t.loader())))
    t.iteration(t.batch)
    assert {k for k, p in g.named_parameters() if torch.equal(p, before[k])} == set()
    terms = {k for k in t.logs if not k.startswith(("grad_", "d"))}
    expected = {"pixel", "pyramid_8", "pyramid_16"}
    if gan:
        expected |= {"adversarial", "feature_style", "identity", *(f"component_{p}" for p in PARTS)}
    assert terms == expected
    image, pyramid = g(t.batch["lq"])
    assert torch.equal(image, pyramid[-1])


# ---------------------------------------------------------------- the reduction

def reduction(size, factor):
    "Matrix (size/factor, size) of an antialiased cubic reduction, a = -1/2, from its formula."
    def cubic(t):
        t = np.abs(t)
        far = np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0)
        return np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, far)

    i, j = np.arange(size // factor), np.arange(size)
    m = cubic((j[None] + 0.5) / factor - (i[:, None] + 0.5))
    return torch.from_numpy(m / m.sum(1, keepdims=True))


@quick
@given(st.integers(2, 9), st.integers(2, 6), st.integers(2, 6), st.integers(0, 99))
def test_shrink_is_an_antialiased_cubic_reduction(factor, h, w, seed):
    x = randn(2, 3, h * factor, w * factor, seed=seed)
    want = reduction(h * factor, factor) @ x @ reduction(w * factor, factor).T
    assert_close(shrink(x, factor), want, rtol=1e-8, atol=1e-10)


def test_shrink_keeps_what_it_must():
    x = randn(2, 3, 24, 24)
    assert torch.equal(shrink(x, 1), x) and shrink(x, 4.0).shape == (2, 3, 6, 6)
    assert_close(shrink(torch.full_like(x, 0.3), 4), torch.full((2, 3, 6, 6), 0.3, dtype=x.dtype))
    assert shrink(randn(1, 3, 98, 98), 49).shape[-1] == 2   # 98 · (1/49) is a little less than 2
    assert shrink(x.float(), 3).dtype == torch.float32


@pytest.mark.parametrize("factor", [5, 7, 48, 0, -2, 0.5, 1.5])
def test_a_factor_that_does_not_divide_is_refused(factor, prior):
    says = f"factor is {factor}, needs a whole number that divides 24"
    with pytest.raises(ValueError, match=says):
        shrink(randn(1, 3, 24, 24), factor)
    x = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    for search in (pulse, mganprior):
        with pytest.raises(ValueError, match="factor is"):
            search(x, prior, factor=factor, steps=1)


# ---------------------------------------------------------------- sphere, angles, Gaussian

@quick
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 40), st.integers(0, 99))
def test_on_sphere_changes_the_length_only(b, layers, d, seed):
    z = randn(b, layers, d, seed=seed) * torch.rand(b, layers, 1) * 100
    y = on_sphere(z)
    assert_close(y.norm(dim=-1), torch.full((b, layers), math.sqrt(d), dtype=z.dtype))
    assert_close(F.cosine_similarity(y, z, dim=-1), torch.ones(b, layers, dtype=z.dtype))
    assert_close(on_sphere(y), y)


def test_on_sphere_of_nothing_is_a_number():
    assert on_sphere(torch.zeros(1, 2, 8)).isfinite().all()


def by_loop(z):
    out = []
    for codes in z.tolist():
        angles = []
        for i, p in enumerate(codes):
            for q in codes[i + 1:]:
                dot, lengths = sum(a * b for a, b in zip(p, q)), math.hypot(*p) * math.hypot(*q)
                angles.append(math.acos(max(-1.0, min(1.0, dot / lengths))))
        out.append(sum(a * a for a in angles))
    return torch.tensor(out, dtype=z.dtype)


@quick
@given(st.integers(1, 3), st.integers(1, 18), st.integers(2, 12), st.integers(0, 99))
def test_geocross_is_the_sum_over_pairs(b, layers, d, seed):
    z = randn(b, layers, d, seed=seed)
    assert_close(geocross(z), by_loop(z), rtol=1e-6, atol=1e-9)
    assert_close(geocross(z * (0.1 + torch.rand(b, layers, 1))), by_loop(z), rtol=1e-6, atol=1e-9)


def test_geocross_at_its_ends():
    one = randn(2, 1, 8).expand(-1, 6, -1).clone().requires_grad_(True)
    cost = geocross(one)
    cost.sum().backward()
    assert torch.equal(cost.detach(), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(one.grad, torch.zeros_like(one))
    z = randn(1, 1, 8)
    opposite = torch.cat([z, -2 * z], 1).requires_grad_(True)
    cost = geocross(opposite)
    cost.sum().backward()
    assert_close(cost.item(), math.pi**2, rtol=1e-4, atol=0)
    assert opposite.grad.isfinite().all()


def test_geocross_has_the_right_slope():
    z = randn(2, 4, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(geocross, z)


def test_gaussian_of_w_is_that_of_undone_codes(prior):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    mean, std = gaussian_of_w(prior)
    # it draws from a generator of its own
    assert torch.equal(torch.get_rng_state(), state) and not mean.requires_grad
    with torch.no_grad():
        w = prior.mapping(randn(20_000, DIM, seed=5)).numpy()
    v = np.where(w > 0, w, 5 * w)
    assert mean.shape == std.shape == (DIM,) and mean.dtype == torch.float64
    np.testing.assert_allclose(mean.numpy(), v.mean(0), atol=5 * v.std() / math.sqrt(4096))
    np.testing.assert_allclose(std.numpy(), v.std(0), rtol=0.06)
    other = gaussian_of_w(prior, seed=1)[0]
    assert torch.equal(gaussian_of_w(prior, seed=1)[0], other) and not torch.equal(other, mean)


# ---------------------------------------------------------------- PULSE

def rate(step, steps, top):
    """The schedule in words: up to 1 over the first twentieth, level, from three quarters on down
    to a twentieth."""
    t = (step + 1) / steps
    return top * (t / 0.05 if t < 0.05 else 1.0 if t <= 0.75 else 0.05 + 0.95 * (1 - t) / 0.25)


def pulse_by_hand(x, prior, factor, steps, lr=0.4, cross=0.05, seed=0):
    "Projected Adam written out: a step, then each code back to its length."
    mean, std = gaussian_of_w(prior)
    z, m, v, losses, d = randn(len(x), LAYERS, DIM, seed=seed), 0, 0, [], reduction(SIZE, factor)
    pairs = [(i, j) for i in range(LAYERS) for j in range(i)]
    z = z / z.norm(dim=-1, keepdim=True) * math.sqrt(DIM)
    for step in range(steps):
        z.requires_grad_(True)
        u = z * std + mean
        y = prior.synthesis(torch.where(u > 0, u, 0.2 * u))
        error = (d @ (y - x) @ d.T).square().mean((1, 2, 3))
        unit = z / z.norm(dim=-1, keepdim=True)
        cosines = torch.stack([(unit[:, i] * unit[:, j]).sum(-1) for i, j in pairs], 1)
        loss = 100 * error + cross * cosines.arccos().square().sum(1)
        losses.append(loss.mean().item())
        g, = torch.autograd.grad(loss.sum(), z)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        slope, size = m / (1 - 0.9 ** (step + 1)), (v / (1 - 0.999 ** (step + 1))).sqrt()
        z = z.detach() - rate(step, steps, lr) * slope / (size + 1e-8)
        z = z / z.norm(dim=-1, keepdim=True) * math.sqrt(DIM)
    return z, losses


@pytest.mark.parametrize("factor, cross", [(4, 0.05), (2, 0.5)])
def test_pulse_is_projected_adam(prior, faces, factor, cross):
    r = pulse(faces, prior, factor=factor, steps=12, cross=cross, seed=3)
    z, losses = pulse_by_hand(faces, prior, factor, 12, cross=cross, seed=3)
    assert_close(r.losses, losses, rtol=1e-6, atol=0)
    assert_close(r.codes["z"], z, rtol=0, atol=1e-5)


def test_pulse_finds_something_and_says_what(prior, faces):
    r = pulse(faces, prior, factor=4, steps=40)
    assert isinstance(r, Inversion) and r.image.shape == faces.shape
    assert r.image.dtype == torch.float64 and len(r.losses) == 40 and r.seconds > 0
    assert r.losses[-1] < 0.5 * r.losses[0] and all(map(math.isfinite, r.losses))
    lengths = torch.full((3, LAYERS), math.sqrt(DIM), dtype=torch.float64)
    assert_close(r.codes["z"].norm(dim=-1), lengths)
    mean, std = gaussian_of_w(prior)
    with torch.no_grad():
        assert_close(prior.synthesis(F.leaky_relu(r.codes["z"] * std + mean, 0.2)), r.image)
    assert not r.image.requires_grad and not r.codes["z"].requires_grad


SEARCHES = {
    "pulse": lambda x, prior, **o: pulse(x, prior, **dict(steps=6) | o),
    "mganprior": lambda x, prior, **o: mganprior(x, prior, **dict(steps=6, n=2, block=0) | o),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_seed_fixes_the_result_and_the_global_generator_is_left_alone(search, prior, faces):
    torch.manual_seed(1)
    state, x = torch.get_rng_state(), faces.clone()
    a = search(x, prior, seed=2)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, faces)
    torch.manual_seed(9)
    assert torch.equal(search(x, prior, seed=2).image, a.image)
    assert (search(x, prior, seed=3).image - a.image).abs().mean() > 1e-2


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_neighbours_do_not_matter_but_the_place_in_the_batch_does(search, prior, faces):
    more = torch.cat([faces[:1], -faces[1:2], 2 * faces[2:], faces[:1]])
    a, b = search(faces, prior).image, search(more, prior).image
    assert_close(b[0], a[0], rtol=0, atol=1e-6)             # other neighbours, and more of them
    assert_close(search(faces[:1], prior).image[0], a[0], rtol=0, atol=1e-6)
    # the same picture, another start: as documented
    assert (b[3] - b[0]).abs().mean() > 1e-2
    assert "place in the batch" in pulse.__doc__


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_no_gradient_is_left_on_the_prior(search, prior, faces):
    assert all(p.requires_grad for p in prior.parameters())
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    a = search(faces[:2], prior).image
    assert all(p.grad is None and p.requires_grad for p in prior.parameters())
    assert all(torch.equal(v, before[k]) for k, v in prior.state_dict().items())
    try:
        frozen = search(faces[:2], prior.requires_grad_(False)).image
        assert_close(frozen, a, rtol=0, atol=1e-9)
    finally:
        prior.requires_grad_(True)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_only_the_reduced_picture_is_seen(search, prior, faces):
    line = torch.linalg.svd(reduction(SIZE, 4))[2][-1]      # the reduction makes it nothing
    striped = faces + 3 * torch.outer(line, line)
    assert (striped - faces).abs().max() > 0.3
    a, b = (search(x, prior, factor=4).image for x in (striped, faces))
    assert_close(a, b, rtol=0, atol=1e-6)
    a, b = (search(x, prior, factor=1).image for x in (striped, faces))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, SIZE, SIZE), (3, SIZE, SIZE),
                                   (1, 3, SIZE, 8)])
def test_a_picture_of_another_shape_is_refused(search, prior, shape):
    with pytest.raises(ValueError, match=rf"the prior draws \(b, 3, {SIZE}, {SIZE}\)"):
        search(torch.zeros(shape, dtype=torch.float64), prior)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_32_bits_and_no_steps(search, faces):
    torch.manual_seed(0)
    net = StyleGAN2(SIZE, DIM, 2, narrow=1 / 64)
    r = search(faces.float(), net)
    assert r.image.dtype == torch.float32 and r.image.isfinite().all()
    assert all(v.dtype == torch.float32 for v in r.codes.values())
    start = search(faces.float(), net, steps=0)
    assert start.losses == [] and start.image.shape == faces.shape
    assert not torch.equal(start.image, r.image)


def test_pulse_meets_the_reduced_face_not_the_person():
    """The bundled prior: several answers to one thumbnail of 4 px agree there, and differ at full
    size."""
    net = load_prior("prior32").requires_grad_(False)
    with torch.no_grad():
        w_mean = net.mean_w(generator=torch.Generator().manual_seed(0))
        z = randn(1, 64, seed=4, dtype=torch.float32)
        face = net(z, truncation=0.7, w_mean=w_mean)
    r = pulse(face.expand(3, -1, -1, -1), net, factor=8, steps=50)
    away = lambda f: (shrink(r.image, f) - shrink(face, f)).square().mean().sqrt().item()
    assert away(8) < 0.06 and away(1) > 3 * away(8)
    assert r.image.std(0).mean() > 0.05
    loose = pulse(face.expand(3, -1, -1, -1), net, factor=8, steps=50, cross=0.0)
    assert geocross(r.codes["z"]).mean() < 0.5 * geocross(loose.codes["z"]).mean()


# ---------------------------------------------------------------- mGANprior

BLOCKS = range(len([8, 16]))


def channels(prior, block):
    return prior.synthesis.convs[2 * block + 1].conv.weight.shape[1]


def codes(prior, b, n, seed=0):
    with torch.no_grad():
        w = prior.mapping(randn(b * n, DIM, seed=seed))
        return w.view(b, n, 1, DIM).expand(-1, -1, LAYERS, -1)


@pytest.mark.parametrize("block", BLOCKS)
def test_one_code_with_weight_1_is_the_priors_own_picture(prior, block):
    w, one = codes(prior, 2, 1), torch.ones(2, 1, channels(prior, block), dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(compose(prior, w, one, block), prior.synthesis(w[:, 0]))
        varied = w + 0.3 * randn(*w.shape, seed=2)          # a code of its own for each layer
        assert torch.equal(compose(prior, varied, one, block), prior.synthesis(varied[:, 0]))


@pytest.mark.parametrize("block", BLOCKS)
def test_compose_against_hooks_on_the_prior(prior, block):
    """Each code alone, its feature and its RGB sum caught at the cut; added; put back into a pass
    of the mean code."""
    net, (b, n) = prior.synthesis, (2, 3)
    w = codes(prior, b, n) + 0.2 * randn(b, n, LAYERS, DIM, seed=3)
    alpha = randn(b, n, channels(prior, block), seed=4)
    conv, rgb = net.convs[2 * block + 1], net.to_rgbs[block + 1]
    h, image = 0, 0
    with torch.no_grad():
        for k in range(n):
            caught = {}
            hooks = [conv.register_forward_pre_hook(lambda m, a: caught.update(h=a[0])),
                     rgb.register_forward_pre_hook(lambda m, a: caught.update(image=a[2]))]
            net(w[:, k])
            for hook in hooks:
                hook.remove()
            h = h + alpha[:, k, :, None, None] * caught["h"]
            image = image + alpha[:, k].mean(1)[:, None, None, None] * caught["image"]
        hooks = [conv.register_forward_pre_hook(lambda m, a: (h, *a[1:])),
                 rgb.register_forward_pre_hook(lambda m, a: (*a[:2], image))]
        expected = net(w.mean(1))
        for hook in hooks:
            hook.remove()
        assert_close(compose(prior, w, alpha, block), expected)


@pytest.mark.parametrize("block", [-1, 2, 7, 0.5])
def test_a_block_that_is_not_there_is_refused(prior, faces, block):
    one = torch.ones(1, 1, 8, dtype=torch.float64)
    for call in (lambda: compose(prior, codes(prior, 1, 1), one, block),
                 lambda: mganprior(faces, prior, block=block, steps=1)):
        with pytest.raises(ValueError, match=f"block is {block}, needs 0 … 1"):
            call()


@pytest.mark.parametrize("n, block, factor", [(1, 0, 1), (3, 0, 1), (3, 1, 2)])
def test_mganprior_is_adam_on_codes_and_weights(prior, faces, n, block, factor):
    c = channels(prior, block)
    d = reduction(SIZE, factor) if factor > 1 else torch.eye(SIZE, dtype=torch.float64)
    z = randn(3, n, DIM, seed=5).requires_grad_(True)
    alpha = torch.full((3, n, c), 1 / n, dtype=torch.float64, requires_grad=True)
    adam, losses = torch.optim.Adam([z, alpha], 0.05), []
    for _ in range(8):
        w = torch.stack([prior.codes(prior.mapping(z[:, k])) for k in range(n)], 1)
        loss = (d @ (compose(prior, w, alpha, block) - faces) @ d.T).square().mean((1, 2, 3))
        losses.append(loss.mean().item())
        adam.zero_grad()
        z.grad, alpha.grad = torch.autograd.grad(loss.sum(), (z, alpha))
        adam.step()
    r = mganprior(faces, prior, factor=factor, n=n, block=block, steps=8, seed=5)
    assert_close(r.losses, losses, rtol=1e-8, atol=0)
    assert_close(r.codes, dict(z=z.detach(), alpha=alpha.detach()), rtol=0, atol=1e-6)
    assert r.codes["alpha"].shape == (3, n, c) and not r.image.requires_grad


def test_more_codes_come_closer(prior, faces):
    last = {n: mganprior(faces, prior, n=n, block=1, steps=40) for n in (1, 6)}
    assert all(r.losses[-1] < r.losses[0] for r in last.values())
    assert last[6].losses[-1] < 0.9 * last[1].losses[-1]
    assert last[6].image.shape == faces.shape and len(last[6].losses) == 40

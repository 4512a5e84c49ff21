"""Training the prior.

Augmentations, mixed codes, the two lazy penalties, what an iteration changes, the config.
"""
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.discriminators import Discriminator
from gfpgan_edu.engine import config_from, plain
from gfpgan_edu.losses import d_logistic, g_logistic
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.train_prior import (AUGMENTATIONS, PRESETS, PriorConfig, PriorTrainer, augment,
                                    augment_colour, augment_hole, augment_place, grow, mixed_codes)

quick = settings(max_examples=25, deadline=None)


def pictures(b, s, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, s, s, generator=g, dtype=torch.float64) * 2 - 1


pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- augmentations

@quick
@given(b=st.integers(1, 5), s=st.integers(4, 40),
       names=st.lists(st.sampled_from(sorted(AUGMENTATIONS)), max_size=4),
       seed=st.integers(0, 2**31))
def test_augmented_pictures_keep_their_shape_and_type_and_depend_on_the_seed_alone(
        b, s, names, seed):
    x = pictures(b, s, seed).float()
    kept = x.clone()
    torch.manual_seed(seed)
    once = augment(x, names)
    torch.manual_seed(seed)
    assert torch.equal(once, augment(x, names)) and torch.equal(x, kept)
    assert once.shape == x.shape and once.dtype == x.dtype and once.isfinite().all()
    assert names or torch.equal(once, x)


@quick
@given(s=st.integers(4, 24), seed=st.integers(0, 2**31))
def test_only_brightness_moves_the_mean_and_greys_stay_grey(s, seed):
    torch.manual_seed(seed)
    x = pictures(6, s, seed)
    moved = augment_colour(x).mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert moved.abs().max() <= 0.5 + 1e-12
    assert moved.unique().numel() == 6                      # a draw of its own for each
    assert augment_colour(x.mean(1, keepdim=True).expand_as(x)).std(1).max() < 1e-12


def test_colour_is_brightness_then_saturation_then_contrast():
    x = pictures(4, 6)
    torch.manual_seed(3)
    ours = augment_colour(x).numpy()
    torch.manual_seed(3)
    draw = lambda lo, hi: torch.rand(4, 1, 1, 1, dtype=torch.float64).numpy() * (hi - lo) + lo
    bright, sat, contrast = draw(-0.5, 0.5), draw(0, 2), draw(0.5, 1.5)
    for i in range(4):
        y = x[i].numpy() + bright[i]
        grey = y.mean(0)
        y = grey + sat[i] * (y - grey)
        np.testing.assert_allclose(ours[i], y.mean() + contrast[i] * (y - y.mean()), atol=1e-12)


def test_colour_is_centred_on_no_change():
    x = pictures(1, 4)
    assert_close(augment_colour(x.expand(20_000, -1, -1, -1)).mean(0), x[0], rtol=0, atol=0.03)


@quick
@given(s=st.integers(4, 24), seed=st.integers(0, 2**31))
def test_place_moves_by_whole_pixels_with_grey_behind(s, seed):
    torch.manual_seed(seed)
    m, x = int(s / 8 + 0.5), pictures(3, s, seed)
    frame = np.pad(x.numpy(), ((0, 0), (0, 0), (s, s), (s, s)))
    steps = range(-m, m + 1)
    for y, f in zip(augment_place(x).numpy(), frame):
        where = [(i, j) for i in steps for j in steps
                 if np.array_equal(f[:, s + i:2 * s + i, s + j:2 * s + j], y)]
        assert len(where) == 1


def test_all_shifts_occur_alike():
    s, m = 16, 2
    ramp = (torch.arange(s)[:, None] * 100.0 + torch.arange(s) + 1).expand(1, 3, s, s)
    moved, steps = augment_place(ramp.expand(5000, -1, -1, -1)), range(-m, m + 1)
    n = Counter(divmod(int(v) - 1, 100) for v in moved[:, 0, 8, 8])
    assert set(n) == {(8 + i, 8 + j) for i in steps for j in steps}
    assert max(n.values()) < 1.5 * min(n.values())


@quick
@given(s=st.integers(2, 40), share=st.floats(0.05, 1), seed=st.integers(0, 2**31))
def test_a_hole_is_a_square_of_the_given_share(s, share, seed):
    torch.manual_seed(seed)
    n = int(s * share + 0.5)
    gone = augment_hole(torch.ones(40, 3, s, s), share) == 0
    assert (gone == gone[:, :1]).all()
    gone = gone[:, 0]
    high, wide = gone.any(2).sum(1), gone.any(1).sum(1)
    assert (gone.sum((1, 2)) == high * wide).all()
    if n:
        assert max(high.max(), wide.max()) <= n
        assert min(high.min(), wide.min()) >= (n + 1) // 2  # its centre is in the picture


def test_a_hole_lies_as_often_left_as_right():
    for s in (15, 16):
        gone = (augment_hole(torch.ones(20_000, 1, s, s))[:, 0] == 0).double().mean(0)
        for mirrored in (gone.flip(0), gone.flip(1), gone.t()):
            assert_close(gone, mirrored, rtol=0, atol=0.03)


@pytest.mark.parametrize("names", [("colour",), ("place",), ("hole",), ("colour", "place", "hole")])
def test_gradients_flow_through(names):
    def fixed(x):
        torch.manual_seed(1)
        return augment(x, names)

    assert torch.autograd.gradcheck(fixed, pictures(2, 6).requires_grad_(True))


# ---------------------------------------------------------------- codes

@quick
@given(cuts=st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_layers_before_the_cut_take_the_first_code(cuts):
    g = StyleGAN2(32, 8, 1, narrow=1 / 64).requires_grad_(False)
    z = torch.randn(len(cuts), 2, 8)
    w = mixed_codes(g, z, torch.tensor(cuts))
    assert w.shape == (len(cuts), 8, 8) and g.synthesis.n_codes == 8
    for b, cut in enumerate(cuts):
        first, second = g.mapping(z[b])
        for i in range(8):
            assert_close(w[b, i], first if i < cut else second, rtol=1e-5, atol=1e-6)


class Made:
    "n made-up pictures, entry (epoch, index)."

    def __init__(self, n=16, size=16):
        self.x = pictures(n, size).float()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        return {"gt": self.x[key[1]]}


def small(out=None, batch=4, run={}, **changes):
    base = PriorConfig.tiny()
    run = replace(base.run, batch=batch, **run)
    own = dict(size=16, style_dim=16, narrow=1 / 32, narrow_d=1 / 32, run=run)
    c = replace(base, **own | changes)
    return PriorTrainer(c, Made(), out, device="cpu")


@quick
@given(world=st.sampled_from([1, 2, 3, 4, 6]), it=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_codes_do_not_depend_on_the_number_of_processes(world, it, seed):
    t = small(batch=12, run=dict(seed=seed))
    t.it, t.rank, t.world = it, 0, 1
    whole, t.world, shares = t.inputs({}), world, []
    for t.rank in range(world):
        shares.append(t.inputs({"gt": 0}))
    for k in ("z_g", "z_d", "cut"):
        assert torch.equal(torch.stack([s[k] for s in shares], 1).flatten(0, 1), whole[k])
    assert all(s["gt"] == 0 for s in shares) and not torch.equal(whole["z_g"], whole["z_d"])
    t.rank, t.world, t.it = 0, 1, it + 1
    assert not torch.equal(t.inputs({})["z_g"], whole["z_g"])


@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.9, 1.0])
def test_the_share_of_mixed_pictures(mixing):
    cut = small(batch=4000, mixing=mixing).inputs({})["cut"]
    assert abs((cut < 6).double().mean() - mixing) < 0.03
    assert cut.min() >= 1 and cut.max() <= 6                # six codes at 16 px


# ---------------------------------------------------------------- an iteration

def run_one(t, it):
    "-> names of the networks that changed and of the logs."
    everyone = t.nets | {"ema": t.ema}
    before = {k: [p.clone() for p in n.parameters()] for k, n in everyone.items()}
    t.it = it
    t.iteration(next(iter(t.loader())))

    def moved(k, n):
        return any(not torch.equal(a, b) for a, b in zip(before[k], n.parameters()))

    return {k for k, n in everyone.items() if moved(k, n)}, set(t.logs) - {"grad_g", "grad_d"}


@pytest.mark.parametrize("it, terms", [(1, {"g", "d"}), (4, {"g", "d", "path"}),
                                       (12, {"g", "d", "path"}), (16, {"g", "d", "path", "r1"})])
def test_penalties_run_when_they_are_due(it, terms):
    t = small()
    assert run_one(t, it) == ({"g", "d", "ema"}, terms)
    assert (t.extra["path_mean"] > 0) == (it % 4 == 0)
    assert all(s["step"] == 1 for o in t.optimizers.values() for s in o.state.values())


def test_without_path_or_r1_there_is_no_such_phase():
    assert run_one(small(path=0.0, r1=0.0), 16)[1] == {"g", "d"}


@pytest.mark.parametrize("player, other", [("g", "d"), ("d", "g")])
def test_each_player_moves_itself_alone(player, other):
    t = small()
    t.optimizers[other].step = lambda *a, **k: None
    assert run_one(t, 16)[0] - {"ema"} == {player}


def test_no_gradient_reaches_g_in_the_turn_of_d():
    t = small()
    b = t.inputs({"gt": t.data.x[:4]})
    for n in t.nets.values():
        n.requires_grad_(True)
    (sum(t.d_terms(b).values()) + sum(t.r1_terms(b).values())).backward()
    assert all(p.grad is None for p in t.nets["g"].parameters())
    assert all(p.grad is not None for p in t.nets["d"].blocks.parameters())


def test_the_terms_are_the_objectives():
    t = small(augment=(), noise="zero")
    t.it = 3
    b = t.inputs({"gt": t.data.x[:4]})
    g, d = t.nets["g"], t.nets["d"]
    made = lambda z: g.synthesis(mixed_codes(g, z, b["cut"]), noise="zero")
    assert_close(t.g_terms(b)["g"], g_logistic(d(made(b["z_g"]))))
    assert_close(t.d_terms(b)["d"], d_logistic(d(b["gt"]), d(made(b["z_d"]))))
    y = b["gt"].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(d(y).sum(), y)
    assert_close(t.r1_terms(b)["r1"], 16 * 10 / 2 * slope.square().sum((1, 2, 3)).mean())
    assert not b["gt"].requires_grad


def test_path_length_uses_half_of_the_batch_and_moves_its_mean():
    t = small(noise="zero", augment=())
    t.it = 4
    b, seen = t.inputs({"gt": t.data.x[:4]}), []
    watch = lambda m, args, out: seen.append(len(args[0]))
    hook = t.nets["g"].synthesis.register_forward_hook(watch)
    torch.manual_seed(1)
    term = t.path_terms(b)["path"]
    hook.remove()
    mean = t.extra["path_mean"]
    assert seen == [2] and mean > 0 and mean.requires_grad is False
    torch.manual_seed(1)
    w = mixed_codes(t.nets["g"], b["z_g"][:2], b["cut"][:2])
    image = t.nets["g"].synthesis(w, noise="zero")
    (slope,) = torch.autograd.grad((image * torch.randn_like(image)).sum() / 16, w)
    lengths = slope.square().sum(2).mean(1).sqrt()
    assert_close(mean, 0.01 * lengths.mean())
    assert_close(term, 2.0 * 4 * (lengths - mean).square().mean())


def test_the_same_augmentation_stands_before_every_call_of_d(monkeypatch):
    import gfpgan_edu.train_prior as module

    calls = []
    monkeypatch.setattr(module, "augment", lambda x, names: calls.append(names) or x)
    run_one(small(augment=("place", "hole")), 16)
    assert calls == [("place", "hole")] * 4                 # G's fake; real, fake; R1's real


def test_lazy_rates():
    t = small()
    groups = {k: o.param_groups[0] for k, o in t.optimizers.items()}
    rates = {k: (g["lr"], *g["betas"]) for k, g in groups.items()}
    assert rates["g"] == pytest.approx((2e-3 * 4 / 5, 0.0, 0.99 ** (4 / 5)))
    assert rates["d"] == pytest.approx((2e-3 * 16 / 17, 0.0, 0.99 ** (16 / 17)))


# ---------------------------------------------------------------- runs

def test_the_sheet_shows_the_same_codes_each_time_and_the_run_goes_on(tmp_path):
    t = small(tmp_path / "a", run=dict(iterations=6, valid_every=3, save_every=3, log_every=1))
    assert t.fit() == "done"
    half = small(tmp_path / "b", run=dict(iterations=3, valid_every=3, save_every=3, log_every=1))
    assert half.fit() == "done"
    rest = small(tmp_path / "b", run=dict(iterations=6, valid_every=3, save_every=3, log_every=1))
    rest.fit()
    assert rest.it == 6 and torch.equal(rest.extra["path_mean"], t.extra["path_mean"])
    assert t.extra["path_mean"] > 0
    for a, b in zip(t.ema.parameters(), rest.ema.parameters()):
        assert torch.equal(a, b)
    numbers, sheet = t.validate()
    assert numbers == {} and sheet.shape == (64, 128, 3) and sheet.dtype == np.uint8
    assert np.array_equal(sheet, rest.validate()[1])
    with torch.no_grad():
        one = t.ema(t.shown[9:10], noise="fixed")[0]
    want = ((one.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(sheet[16:32, 16:32].astype(int) - want).max() <= 1    # row 1, column 1


def test_init_from_begins_with_those_weights():
    g = StyleGAN2(16, 16, 2, narrow=1 / 32)
    t = PriorTrainer(small().config, Made(), device="cpu", init_from=g)
    for net in (t.nets["g"], t.ema):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), g.parameters()))
    with pytest.raises(RuntimeError, match="size mismatch|Missing key"):
        PriorTrainer(small().config, Made(), device="cpu",
                     init_from=StyleGAN2(16, 32, 2, narrow=1 / 32))


@pytest.mark.parametrize("resample", ["fir", "bilinear"])
def test_a_smaller_prior_is_grown_and_draws_the_same_pictures_enlarged(resample):
    g = StyleGAN2(8, 16, 2, narrow=1 / 32, resample=resample).double()
    g.synthesis.convs[0].noise_strength.data.fill_(0.3)
    big, z = grow(g.float()).double(), torch.randn(4, 16, dtype=torch.float64)
    g = g.double()
    with torch.no_grad():
        small_picture, picture = g(z), big(z)
    assert picture.shape == (4, 3, 16, 16) and big.config == g.config | dict(size=16)
    assert_close(picture, big.synthesis.to_rgbs[-1].resample.up(small_picture), rtol=0, atol=1e-12)
    shrunk = torch.nn.functional.avg_pool2d(picture, 2)
    assert_close(shrunk.mean((2, 3)), small_picture.mean((2, 3)), rtol=0, atol=0.2)
    t = PriorTrainer(small(resample=resample).config, Made(), device="cpu", init_from=g.float())
    old, new = g.state_dict(), t.nets["g"].state_dict()
    assert all(torch.equal(v, old[k]) for k, v in new.items() if k in old)
    assert not t.nets["g"].synthesis.to_rgbs[-1].conv.weight.any()


def test_a_prior_learns_where_its_faces_are():
    """Eight-pixel discs on dark ground.

    After some hundred pictures the samples have the bright spot, and less of what they began with.
    """
    y, x = np.mgrid[:16, :16] - 7.5
    disc = torch.from_numpy(np.where(x**2 + y**2 < 25, 0.8, -0.8)).float()
    rng = torch.Generator().manual_seed(0)
    data = Made()
    data.x = (disc + 0.2 * torch.randn(64, 3, 1, 1, generator=rng)).clamp(-1, 1)
    base = PriorConfig.tiny()
    run = replace(base.run, iterations=110, ema_images=100.0, log_every=1000)
    c = replace(base, size=16, r1=2.0, path=0.0, lr=4e-3, noise="zero", augment=(), run=run)
    t = PriorTrainer(c, data, device="cpu")
    z = torch.randn(64, c.style_dim, generator=torch.Generator().manual_seed(1))

    def agreement():
        with torch.no_grad():
            made = t.ema(z, noise="zero")
        error = (made.mean(0) - data.x.mean(0)).square().mean().sqrt().item()
        return error, np.corrcoef(made.mean((0, 1)).flatten(), disc.flatten())[0, 1]

    before = agreement()
    t.fit()
    after = agreement()
    assert after[0] < 0.6 * before[0] and after[1] > 0.6 > before[1], (before, after)


# ---------------------------------------------------------------- config

@pytest.mark.parametrize("bad, says", [
    (dict(augment=("flip",)), "augment names 'flip', there are colour, place, hole"),
    (dict(r1_every=0), "r1_every is 0"),
    (dict(path_every=-1), "path_every"),
    (dict(mixing=1.1), "mixing"),
    (dict(mixing=-0.1), "mixing"),
    (dict(lr=0.0), "lr"),
    (dict(r1=-1.0), "r1"),
    (dict(path=-2.0), "path"),
    (dict(lr=math.nan), "lr"),
    (dict(lr=math.inf), "lr"),
    (dict(style_dim=0), "style_dim is 0"),
    (dict(style_dim=10**12), "style_dim"),
    (dict(n_mlp=0), "n_mlp is 0"),
    (dict(n_mlp=10**9), "n_mlp"),
    (dict(size=-1), "size is -1"),
    (dict(narrow=math.nan), "narrow is nan"),
    (dict(narrow=-1.0), "narrow is -1"),
    (dict(narrow_d=math.inf), "narrow is inf"),
    (dict(channel_multiplier=0.0), "channel_multiplier is 0"),
])
def test_a_config_that_cannot_be_is_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        PriorConfig(**bad)


@pytest.mark.parametrize("d, says", [
    (dict(noise="loud"), "noise is 'loud'"),
    (dict(resample="cubic"), "resample"),
    (dict(sise=64), "unknown config key sise"),
    (dict(augment="colour"), "augment"),
])
def test_a_file_with_wrong_settings_is_refused(d, says):
    with pytest.raises(ValueError, match=says):
        config_from(PriorConfig, d)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_a_file(name):
    c = PRESETS[name]()
    assert config_from(PriorConfig, plain(c)) == c
    with torch.device("meta"):
        g = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow,
                      resample=c.resample)
        d = Discriminator(c.size, c.channel_multiplier, c.narrow_d)
    assert g.config["size"] == d.config["size"] == c.size
    codes = torch.zeros(1, c.style_dim, device="meta")
    faces = torch.zeros(4, 3, c.size, c.size, device="meta")
    assert g(codes).shape == (1, 3, c.size, c.size) and d(faces).shape == (4, 1)


def test_the_paper_preset_is_the_prior_of_the_paper():
    from gfpgan_edu.gfpgan import GFPGAN

    c = PriorConfig.paper()
    with torch.device("meta"):
        ours = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow,
                         resample=c.resample)
        theirs = GFPGAN().decoder
    assert ours.config == theirs.config
    assert (c.r1, c.r1_every, c.path, c.path_every, c.mixing, c.lr) == (10, 16, 2, 4, 0.9, 2e-3)

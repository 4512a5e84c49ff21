"""Training the restorer.

Terms and players of every variant, refusals, crops at any size, what an iteration changes, that it
learns. The official step itself: test_trace.py.
"""
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gfpgan_edu.discriminators import Discriminator
from gfpgan_edu.engine import TrainingError, config_from, plain
from gfpgan_edu.faces import PARTS, component_boxes, template
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.identity import GrayEmbedder
from gfpgan_edu.losses import VGG19, crop, d_logistic
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.train_restorer import (PRESETS, LossWeights, RestorerConfig, RestorerTrainer,
                                       build_generator, build_judges, held_out, psnr)
from gfpgan_edu.weights import WeightsError, save

quick = settings(max_examples=25, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


class Pairs:
    """Made-up pairs, entry (epoch, index) or index.

    Smooth pictures with a brighter face in the middle, and noisy copies.
    """

    def __init__(self, n=8, size=16, seed=0):
        g = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
        face = torch.sigmoid(12 * (0.7 - (x**2 + y**2).sqrt()))
        coarse = torch.randn(n, 3, 3, 3, generator=g)
        waves = F.interpolate(coarse, size=size, mode="bilinear")
        self.gt = (-0.6 + face + 0.3 * waves).clamp(-1, 1)
        self.lq = (self.gt + 0.3 * torch.randn(self.gt.shape, generator=g)).clamp(-1, 1)
        self.boxes = torch.from_numpy(component_boxes(template(size), size))

    def __len__(self):
        return len(self.gt)

    def __getitem__(self, key):
        i = key[1] if isinstance(key, tuple) else key
        return {"lq": self.lq[i], "gt": self.gt[i], "boxes": self.boxes}


def small(size=16, loss={}, model={}, run={}, **changes):
    base = RestorerConfig.tiny()
    model = GFPGANConfig(size=size, style_dim=16, n_mlp=2, narrow=1 / 32).replace(**model)
    loss = replace(base.loss, **dict(identity=0.1) | loss)
    run = replace(base.run, batch=2, channels_last=False, **run)
    own = dict(model=model, loss=loss, narrow_d=1 / 32, embedder="random", run=run)
    return replace(base, **own | changes)


def trainer(c, **options):
    size = c.model.size
    return RestorerTrainer(c, Pairs(size=size), valid=Pairs(3, size, 1), device="cpu", **options)


def run_one(t, it=1):
    "One iteration -> names of the networks that changed."
    everyone = t.nets | t.frozen
    before = {k: {n: v.clone() for n, v in net.state_dict().items()} for k, net in everyone.items()}
    t.it = it
    t.batch = t.place(next(iter(t.loader())))
    t.iteration(t.batch)

    def moved(k, net):
        return any(not torch.equal(v, before[k][n]) for n, v in net.state_dict().items())

    return {k for k, net in everyone.items() if moved(k, net)}


# ---------------------------------------------------------------- terms and players

LEVELS = {"pyramid_8", "pyramid_16"}
LOCAL, JUDGED = {f"component_{p}" for p in PARTS}, {f"d_{p}" for p in PARTS}
FULL = {"pixel", "adversarial", "identity", "d", "feature_style"} | LEVELS | LOCAL | JUDGED
VARIANTS = {
    "the paper's": ({}, {}, FULL),
    "Table 4 a": ({}, dict(sft="none"), FULL),
    "Table 4 b": ({}, dict(sft="full"), FULL),
    "Table 4 c": ({}, dict(use_prior=False), FULL),
    "Table 4 d": (dict(pyramid=0.0), {}, FULL - LEVELS),
    "Fig. 7, none": (dict(component=0.0, feature_style=0.0), {},
                     FULL - LOCAL - JUDGED - {"feature_style"}),
    "Fig. 7, D": (dict(feature_style=0.0), {}, FULL - {"feature_style"}),
    "Fig. 7, D + fm": (dict(feature_style=0.0, feature_matching=1.0), {},
                       FULL - {"feature_style"} | {"feature_matching"}),
    "style of parts without their D's term": (dict(component=0.0), {}, FULL - LOCAL),
    "no D": (dict(adversarial=0.0), {}, FULL - {"adversarial", "d"}),
    "no identity": (dict(identity=0.0), {}, FULL - {"identity"}),
    "pixels only": (dict(adversarial=0.0, component=0.0, feature_style=0.0, identity=0.0,
                         pyramid=0.0), {}, {"pixel"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_terms_and_players_of_each_variant(name):
    loss, model, terms = VARIANTS[name]
    t = trainer(small(loss=loss, model=model))
    changed = run_one(t, 16)
    players = {"g", *({"d"} & terms), *(PARTS if JUDGED <= terms else ())}
    assert set(t.nets) == set(t.optimizers) == changed == players
    r1 = {"r1"} if "d" in terms else set()
    assert set(t.logs) == terms | {f"grad_{p}" for p in players} | r1
    assert set(t.frozen) == ({"embedder"} if "identity" in terms else set())
    assert all(np.isfinite(v.item()) for v in t.logs.values())


def test_r1_comes_every_sixteenth_time_and_not_at_all_with_weight_0():
    for it, r1, there in ((15, 10.0, False), (32, 10.0, True), (32, 0.0, False)):
        t = trainer(small(loss=dict(r1=r1)))
        run_one(t, it)
        assert ("r1" in t.logs) == there and not t.batch["gt"].requires_grad


def test_the_features_serve_both_terms_and_are_built_only_when_asked():
    off = dict(adversarial=0.0, component=0.0, feature_style=0.0, identity=0.0, pyramid=0.0)
    for loss, terms in ((dict(perceptual=1.0), {"perceptual"}), (dict(style=50.0), {"style"}),
                        (dict(perceptual=1.0, style=50.0), {"perceptual", "style"})):
        t = trainer(small(loss=off | loss, features="random"))
        run_one(t)
        assert set(t.logs) == {"pixel", "grad_g"} | terms and set(t.frozen) == {"features"}


def test_weights_multiply_their_terms():
    once = dict(pixel=0.1, adversarial=0.1, component=1.0, feature_style=3.0, identity=2.0,
                pyramid=0.5)
    a, b = (trainer(small(loss={k: f * v for k, v in once.items()}, noise="zero")) for f in (1, 7))
    for t in (a, b):
        t.it = 1
    batch = next(iter(a.loader()))
    x, y = a.g_terms(dict(batch)), b.g_terms(dict(batch))
    assert set(x) == set(y)
    for k in x:
        assert_close(y[k], 7 * x[k], rtol=1e-4, atol=1e-8)


def test_the_pyramid_is_switched_off_after_its_iteration():
    t = trainer(small(loss=dict(pyramid=0.5, pyramid_until=3, pyramid_after=1e-6), noise="zero"))
    batch, seen = next(iter(t.loader())), {}
    for t.it in (3, 4):
        seen[t.it] = t.g_terms(dict(batch))
    for k in LEVELS:
        assert_close(seen[4][k] * 0.5 / 1e-6, seen[3][k], rtol=1e-4, atol=0)
    assert_close(seen[3]["pixel"], seen[4]["pixel"])


def test_one_function_for_all_parts_and_each_sees_its_own_crop(monkeypatch):
    import gfpgan_edu.train_restorer as module

    t, asked = trainer(small(64)), []

    def watched(x, boxes, side):
        asked.append((tuple(boxes[0].tolist()), side))
        return crop(x, boxes, side)

    monkeypatch.setattr(module, "crop", watched)
    run_one(t)
    boxes = [tuple(b) for b in t.batch["boxes"][0].tolist()]
    assert asked[:6] == [(b, 16) for b in boxes for _ in range(2)]
    assert asked[6:] == asked[:6] and len(set(boxes)) == 3


def test_judges_see_the_picture_from_before_the_step_and_it_is_detached():
    t = trainer(small(noise="zero"))
    t.it, batch = 1, next(iter(t.loader()))
    with torch.no_grad():
        before, _ = t.nets["g"](batch["lq"], noise="zero")
    d = t.nets["d"].state_dict()
    d = {k: v.clone() for k, v in d.items()}
    t.iteration(batch)
    assert_close(batch["out"], before) and not batch["out"].requires_grad
    fresh = Discriminator(16, 1.0, 1 / 32)
    fresh.load_state_dict(d)
    assert_close(t.logs["d"], d_logistic(fresh(batch["gt"]), fresh(before)).detach())


def test_g_runs_once():
    t, n = trainer(small()), []
    t.nets["g"].register_forward_hook(lambda *_: n.append(1))
    run_one(t, 16)
    assert len(n) == 1


# ---------------------------------------------------------------- what must be loaded

@pytest.mark.parametrize("changes, says", [
    (dict(prior=""), "no prior is named.*set prior to bundled"),
    (dict(freeze_prior=True), "prior=random with freeze_prior=true"),
    (dict(embedder=""), "no embedder is named.*arcface_resnet18.pth"),
    (dict(loss=LossWeights(identity=0)), "no features is named.*imagenet"),
    (dict(prior="lost.pth"), "lost.pth: no such file"),
    (dict(embedder="lost.pth"), "lost.pth: no such file"),
    (dict(loss=LossWeights(), features="lost.pth"), "lost.pth: no such file"),
    (dict(prior="bundled"), "the prior bundled does not fit the model: .*style_dim 64 ≠ 16"),
])
def test_what_was_not_loaded_is_refused(changes, says):
    with pytest.raises((TrainingError, WeightsError), match=says):
        trainer(replace(small(), **changes))


def test_nothing_is_asked_for_that_no_term_needs():
    c = small(loss=dict(identity=0.0), model=dict(use_prior=False), prior="", features="",
              embedder="", freeze_prior=True)
    assert build_judges(c) == {} and run_one(trainer(c)) == {"g", "d", *PARTS}


def test_random_is_taken_at_its_word():
    judges = build_judges(small(loss=dict(perceptual=1.0), features="random"))
    assert isinstance(judges["features"], VGG19) and isinstance(judges["embedder"], GrayEmbedder)
    assert not any(p.requires_grad for n in judges.values() for p in n.parameters())


def test_the_bundled_embedder_is_not_random():
    nets = [build_judges(replace(small(), embedder="bundled"))["embedder"].net for _ in range(2)]
    a, b = (net.state_dict() for net in nets)
    assert all(torch.equal(a[k], b[k]) for k in a)


def prior_file(folder, **changes):
    path = folder / "prior.safetensors"
    save(StyleGAN2(**dict(size=16, style_dim=16, n_mlp=2, narrow=1 / 32) | changes), path)
    return str(path)


def test_a_frozen_prior_is_the_file_and_survives_while_the_rest_moves(tmp_path):
    from gfpgan_edu.weights import load_prior

    c = small(prior=prior_file(tmp_path), freeze_prior=True)
    t = trainer(c)
    want = load_prior(c.prior).state_dict()
    old = {k: v.clone() for k, v in t.nets["g"].state_dict().items()}
    for it in (1, 2, 16):
        run_one(t, it)
    new = t.nets["g"].state_dict()
    for k, v in want.items():
        assert torch.equal(v, new[f"decoder.{k}"])
        assert_close(t.ema.state_dict()[f"decoder.{k}"], v, rtol=1e-5, atol=1e-6)
    moved = {k for k in new if not torch.equal(new[k], old[k])}
    assert {k.split(".")[0] for k in moved} == {"unet", "to_w", "heads"}
    learned = [p for group in t.optimizers["g"].param_groups for p in group["params"]]
    prior = list(t.nets["g"].decoder.parameters())
    assert not any(p is q for p in learned for q in prior)


def test_an_unfrozen_prior_moves(tmp_path):
    t = trainer(small(prior=prior_file(tmp_path), freeze_prior=False))
    old = [p.clone() for p in t.nets["g"].decoder.synthesis.parameters()]
    run_one(t)
    new = t.nets["g"].decoder.synthesis.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(old, new))


@pytest.mark.parametrize("changes, says", [
    (dict(style_dim=8), "style_dim 8 ≠ 16"),
    (dict(n_mlp=3, size=32), "size 32 ≠ 16, n_mlp 3 ≠ 2"),
    (dict(resample="bilinear"), "resample bilinear ≠ fir"),
])
def test_a_prior_that_does_not_fit_is_named(tmp_path, changes, says):
    with pytest.raises(TrainingError, match=says):
        build_generator(small(prior=prior_file(tmp_path, **changes)))


def test_init_from_begins_with_those_weights_and_refuses_others():
    c = small()
    net = GFPGAN(c.model)
    want = {k: v.clone() for k, v in net.state_dict().items()}
    t = trainer(c, init_from=net)
    assert all(torch.equal(n.state_dict()[k], want[k]) for n in (t.nets["g"], t.ema) for k in want)
    says = (r"the weights to start from are of GFPGANConfig\(size=16.*sft='half'.*"
            r"the config wants.*sft='full'")
    with pytest.raises(TrainingError, match=says):
        trainer(small(model=dict(sft="full")), init_from=net)
    # its prior came with it, so it may be frozen
    frozen = trainer(replace(c, freeze_prior=True), init_from=net)
    learned = [k for k, p in frozen.nets["g"].named_parameters() if p.requires_grad]
    assert "decoder" not in {k.split(".")[0] for k in learned}


# ---------------------------------------------------------------- data

@lru_cache
def noise(n):
    return np.random.default_rng(0).integers(0, 256, (n, 24, 24, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    def make(n, name="faces"):
        (tmp_path / name).mkdir()
        for i, face in enumerate(noise(n)):
            cv2.imwrite(str(tmp_path / name / f"{i:03}.png"), face)
        return tmp_path / name
    return make


@pytest.mark.parametrize("n, kept_back", [(2, 1), (9, 1), (20, 2), (39, 3)])
def test_the_last_tenth_is_held_out(folder, n, kept_back):
    train, valid = held_out(small(), folder(n))
    names = [f"{i:03}.png" for i in range(n)]
    assert valid.names == names[n - kept_back:] and train.names == names[:n - kept_back]
    assert train.flip and not valid.flip and "boxes" in train[0, 0] and "boxes" not in valid[0]
    assert torch.equal(valid[0]["lq"], valid[0]["lq"])
    assert not torch.equal(train[0, 0]["lq"], train[1, 0]["lq"])


def test_at_most_64_are_held_out_and_a_folder_of_ones_own_is_taken_whole(folder):
    many = folder(700)
    assert [len(d) for d in held_out(small(), many)] == [636, 64]
    own = folder(70, "own")
    train, valid = held_out(small(), many, own)
    assert len(train) == 700 and valid.folder == own
    assert valid.names == [f"{i:03}.png" for i in range(64)]


def test_one_picture_is_too_few(folder):
    with pytest.raises(TrainingError, match="one picture cannot be trained on and held out"):
        held_out(small(), folder(1))


def test_without_part_terms_no_landmarks_are_needed(folder):
    c = small(loss=dict(component=0.0, feature_style=0.0), boxes="manifest")
    assert "boxes" not in held_out(c, folder(3))[0][0, 0]
    with pytest.raises(ValueError, match="boxes='template' does without"):
        held_out(small(boxes="manifest"), folder(3, "more"))


# ---------------------------------------------------------------- sizes

@pytest.mark.parametrize("size, sides", [
    (32, [16, 16, 16]),
    (64, [16, 16, 16]),
    (128, [20, 20, 32]),
    (256, [40, 40, 60]),
    (512, [80, 80, 120]),
    (1024, [160, 160, 240]),
])
def test_sides_of_crops(size, sides):
    t = RestorerTrainer.__new__(RestorerTrainer)
    t.config = replace(RestorerConfig(), model=GFPGANConfig(size=size))
    assert [t.side(p) for p in PARTS] == sides


@quick
@given(size=st.sampled_from([32, 64, 128, 256, 512, 1024]),
       crops=st.tuples(*[st.integers(1, 300)] * 3))
def test_any_side_can_be_halved_twice_and_is_near_to_what_was_asked(size, crops):
    t = RestorerTrainer.__new__(RestorerTrainer)
    t.config = replace(RestorerConfig(), model=GFPGANConfig(size=size), crops=crops)
    for part, n in zip(PARTS, crops):
        side, exact = t.side(part), n * size / 512
        assert side % 4 == 0 and side >= 16 and (abs(side - exact) <= 2 or side == 16 > exact)


def test_a_component_crop_at_1024_keeps_its_values():
    "The official code multiplies them by two there."
    x = torch.linspace(-1, 1, 1024).expand(1, 3, 1024, 1024)
    boxes = torch.from_numpy(component_boxes(template(1024), 1024))
    for box, side in zip(boxes, (160, 160, 240)):
        c, middle = crop(x, box[None], side), (box[0] + box[2]) / 2 / 512 - 1
        assert c.shape == (1, 3, side, side)
        assert abs(c.mean() - middle) < 2e-3 and c.abs().max() <= 1


@pytest.mark.parametrize("size", [16, 32, 64])
def test_all_terms_run_at_any_size(size):
    loss = dict(perceptual=0.1, style=0.1, feature_matching=0.1)
    t = trainer(small(size, features="random", loss=loss))
    assert run_one(t, 16) == {"g", "d", *PARTS}
    assert set(t.logs) >= loss.keys() | {f"pyramid_{2**k}" for k in range(3, size.bit_length())}
    assert all(np.isfinite(v.item()) for v in t.logs.values())


# ---------------------------------------------------------------- validation, learning

def test_validate_scores_the_average_and_its_inputs():
    t = trainer(small())
    run_one(t)
    numbers, sheet = t.validate()
    with torch.no_grad():
        out = torch.stack([t.ema(x[None], noise="fixed")[0][0] for x in t.valid.lq]).clamp(-1, 1)

    def by_hand(x):
        errors = [((a - b).double() / 2).square().mean().item() for a, b in zip(x, t.valid.gt)]
        return np.mean([-10 * np.log10(e) for e in errors])

    assert numbers["valid_psnr"] == pytest.approx(by_hand(out), abs=1e-3)
    assert numbers["valid_psnr_input"] == pytest.approx(by_hand(t.valid.lq), abs=1e-3)
    assert sheet.shape == (48, 48, 3) and sheet.dtype == np.uint8
    shown = lambda x: ((x + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(sheet[32:, 16:32] - shown(t.valid.gt[1])).max() <= 1
    assert np.abs(sheet[:16, 16:32] - shown(t.valid.lq[1])).max() <= 1
    assert t.validate()[0] == numbers


def test_without_validation_faces_there_is_nothing_to_report():
    t = RestorerTrainer(small(run=dict(iterations=2, valid_every=1)), Pairs(), device="cpu")
    assert t.validate() == ({}, None) and t.fit() == "done"


def test_psnr_by_hand():
    x = torch.zeros(2, 3, 4, 4)
    off = x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    # 20 and 40 dB: a mean of decibels, not of errors
    assert psnr(off, x) == pytest.approx(30, abs=1e-4)


def test_a_restorer_learns():
    """Fixed seed and pictures, all terms but VGG, 32 px.

    The pixel term halves, the average gains 6 dB over the untrained net and beats the noisy input.
    """
    base = RestorerConfig.tiny()
    loss = replace(base.loss, identity=0.01)
    run = replace(base.run, iterations=80, batch=4, ema_images=40.0)
    c = replace(base, model=GFPGANConfig.tiny(32), embedder="random", milestones=(), loss=loss,
                run=run)
    t = RestorerTrainer(c, Pairs(64, 32), valid=Pairs(8, 32, 1), device="cpu")
    start, pixel, batches = t.validate()[0], [], iter(t.loader())
    for t.it in range(1, c.run.iterations + 1):
        t.iteration(t.place(next(batches)))
        pixel.append(t.logs["pixel"].item())
    end = t.validate()[0]
    assert np.mean(pixel[-8:]) < 0.5 * np.mean(pixel[:4]), pixel
    assert end["valid_psnr"] > start["valid_psnr"] + 6, (start, end)
    assert end["valid_psnr_input"] == start["valid_psnr_input"], (start, end)


# ---------------------------------------------------------------- config

@pytest.mark.parametrize("make, says", [
    (lambda: LossWeights(pixel=-0.1), "loss.pixel is -0.1"),
    (lambda: LossWeights(r1_every=0), "loss.r1_every is 0"),
    (lambda: LossWeights(pyramid_until=-1), "pyramid_until"),
    (lambda: LossWeights(identity=float("nan")), "loss.identity"),
    (lambda: RestorerConfig(crops=(80, 80)), "crops"),
    (lambda: RestorerConfig(crops=(80, 80, 0)), "crops"),
    (lambda: RestorerConfig(lr=0.0), "lr"),
    (lambda: RestorerConfig(lr=float("inf")), "lr"),
    (lambda: RestorerConfig(lr=float("nan")), "lr"),
    (lambda: LossWeights(r1=float("inf")), "loss.r1"),
    (lambda: RestorerConfig(width_parts=0), "width_parts is 0"),
    (lambda: RestorerConfig(narrow_d=float("nan")), "narrow is nan"),
    (lambda: RestorerConfig(narrow_d=1e18), "narrow is 1e"),
    (lambda: RestorerConfig(warmup=-1), "warmup is -1"),
    (lambda: RestorerConfig(milestones=(4.5,)), "milestones"),
    (lambda: RestorerConfig(milestones=("many",)), "milestones"),
    (lambda: RestorerConfig(milestones=(-1,)), "milestones"),
    (lambda: config_from(RestorerConfig, dict(degradation="mild")), "degradation is 'mild'"),
    (lambda: config_from(RestorerConfig, dict(loss=dict(adv=1.0))), "unknown config key loss.adv"),
])
def test_a_config_that_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file_and_build(name):
    c = PRESETS[name]()
    assert config_from(RestorerConfig, plain(c)) == c
    shape = (1, 3, c.model.size, c.model.size)
    with torch.device("meta"):
        g = GFPGAN(c.model)
        assert g(torch.zeros(shape, device="meta"))[0].shape == shape


def test_paper_and_official_hold_the_published_numbers():
    p, o = RestorerConfig.paper(), RestorerConfig.official()
    w = p.loss
    assert (w.pixel, w.perceptual, w.adversarial, w.component) == (0.1, 1, 0.1, 1)
    assert (w.feature_style, w.identity, w.style) == (200, 10, 0)
    assert (p.lr, p.run.batch, p.run.iterations) == (2e-3, 12, 800_000)
    assert p.milestones == (700_000, 750_000)
    assert o == replace(p, loss=replace(w, style=50.0), degradation="official",
                        milestones=(600_000, 700_000))
    assert (w.r1, w.r1_every, p.freeze_prior) == (10, 16, True)
    assert (w.pyramid, w.pyramid_until, w.pyramid_after) == (1, 50_000, 1e-12)


def test_the_optimizers_are_the_official_ones():
    t = trainer(small(lr=2e-3))
    groups = {k: o.param_groups[0] for k, o in t.optimizers.items()}
    got = {k: (g["lr"], *g["betas"]) for k, g in groups.items()}
    assert list(got) == ["g", "d", *PARTS]
    assert got["g"] == (2e-3, 0, 0.99) and got["d"] == pytest.approx((2e-3, 0, 0.99 ** (16 / 17)))
    assert all(got[p] == (2e-3, 0.9, 0.99) for p in PARTS)

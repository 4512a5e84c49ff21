"""Random-weight official networks against ours: equal pictures and pyramids.
`python -m pytest -m peer tests/peer`"""
import pytest
import torch
from official import build_like

from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.weights import (FAMILIES, from_official, generator_names, load_weights,
                                prior_from_official, to_clean, to_official)

pytestmark = pytest.mark.peer
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def shake(net):
    "Noise strengths and most biases start at 0 and would hide their own mistakes."
    for name, p in net.named_parameters():
        if p.ndim <= 1 or name.endswith("bias"):
            p.data += 0.1 * torch.randn_like(p)
    return net.eval()


def build(official, family, size, cm, dtype, **changes):
    torch.manual_seed(0)
    config = GFPGANConfig(size=size, channel_multiplier=cm, **FAMILIES[family]).replace(**changes)
    return shake(build_like(official, family, config).to(dtype)), config


def close(got, want, dtype):
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=0)


@torch.inference_mode()
def assert_equal(theirs, ours, size, dtype):
    x = torch.rand(2 if size < 512 else 1, 3, size, size, dtype=dtype) * 2 - 1
    want, want_rgbs = theirs(x, return_rgb=True, randomize_noise=False)
    got, got_rgbs = ours(x, noise="fixed")
    for a, b in zip([got, *got_rgbs], [want, *want_rgbs], strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128, 512])
@pytest.mark.parametrize("family,cm", [
    ("v1", 1), ("v1", 2), ("bilinear", 1), ("bilinear", 2), ("clean", 1), ("clean", 2)])
def test_generator(official, family, cm, size, dtype):
    theirs, config = build(official, family, size, cm, dtype)
    ours = from_official(theirs.state_dict(), family)
    assert ours.config == config
    assert_equal(theirs, ours, size, dtype)
    back = to_official(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [
    dict(sft="full"),
    dict(w="one"),
    dict(sft="full", w="one"),
    dict(narrow=0.25),
    dict(narrow=1 / 16, style_dim=48, n_mlp=3),
    dict(size=32, narrow=0.5)], ids=str)
def test_generator_variants(official, family, changes, dtype):
    size = changes.get("size", 64)
    theirs, config = build(official, family, dtype=dtype, **({"size": 64, "cm": 1} | changes))
    ours = from_official(theirs.state_dict(), family)
    assert ours.config == config
    assert_equal(theirs, ours, size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size,cm,narrow", [
    (64, 1, 1), (64, 2, 0.25), (128, 2, 1), (512, 1, 1), (512, 2, 1)])
@torch.inference_mode()
def test_prior(official, size, cm, narrow, dtype):
    torch.manual_seed(0)
    theirs = shake(official["prior"](size, channel_multiplier=cm, narrow=narrow).to(dtype))
    ours = prior_from_official({"params_ema": theirs.state_dict()})
    z = torch.randn(2, 512, dtype=dtype)
    w = torch.randn(1, ours.synthesis.n_codes, 512, dtype=dtype)
    close(ours.mapping(z), theirs.style_mlp(z), dtype)
    close(ours(z), theirs([z], randomize_noise=False)[0], dtype)
    want, _ = theirs([w[:, 0]], input_is_latent=True, randomize_noise=False)
    close(ours.synthesis(ours.codes(w[:, 0])), want, dtype)
    want, _ = theirs([w], input_is_latent=True, randomize_noise=False)
    close(ours.synthesis(w), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_prior_truncation_mixing_and_random_noise(official, dtype):
    torch.manual_seed(0)
    theirs = shake(official["prior"](64, channel_multiplier=1).to(dtype))
    ours = prior_from_official(theirs.state_dict())
    z, z2 = torch.randn(2, 2, 512, dtype=dtype)
    mean = ours.mapping(torch.randn(64, 512, dtype=dtype)).mean(0, keepdim=True)
    want, _ = theirs([z, z2], truncation=0.7, truncation_latent=mean, inject_index=4,
                     randomize_noise=False)
    close(ours(z, truncation=0.7, w_mean=mean, mix_with=z2, crossover=4), want, dtype)
    torch.manual_seed(1)
    want, _ = theirs([z])
    torch.manual_seed(1)
    close(ours(z, noise="random"), want, dtype)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_random_noise_is_drawn_in_the_same_order(official, family):
    theirs, _ = build(official, family, 64, 1, torch.float64, narrow=0.25)
    ours = from_official(theirs.state_dict(), family)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    torch.manual_seed(2)
    want, _ = theirs(x)
    torch.manual_seed(2)
    close(ours(x, noise="random")[0], want, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size,cm,narrow", [(64, 1, 0.5), (64, 2, 0.5), (512, 2, 1)])
@torch.inference_mode()
def test_to_clean_is_the_official_clean_network(official, size, cm, narrow, dtype):
    """Bilinear in the official code -> ours -> clean -> the official clean class: the same picture
    as at the start."""
    bilinear, config = build(official, "bilinear", size, cm, dtype, narrow=narrow)
    ours = to_clean(from_official(bilinear.state_dict(), "bilinear"))
    clean = build_like(official, "clean", config).to(dtype)
    clean.load_state_dict(to_official(ours), strict=True)
    x = torch.rand(1, 3, size, size, dtype=dtype) * 2 - 1
    three = ours(x), clean(x, randomize_noise=False), bilinear(x, randomize_noise=False)
    for a, b, c in zip(*([image, *pyramid] for image, pyramid in three), strict=True):
        close(a, b, dtype)
        close(b, c, dtype)


@torch.inference_mode()
def test_the_official_v1_has_no_clean_form(official):
    "What the conversion would give if it were allowed: another picture."
    v1, config = build(official, "v1", 64, 1, torch.float64, narrow=0.25)
    clean = build_like(official, "clean", config).double()
    state = to_official(to_clean(from_official(v1.state_dict(), "bilinear")))
    clean.load_state_dict(state, strict=True)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1
    want = v1(x, randomize_noise=False)[0]
    assert (clean(x, randomize_noise=False)[0] - want).abs().max() > 0.1 * want.abs().max()


def test_gradients_agree(official):
    """The same loss gives the same gradient for every parameter, so a training would take the same
    steps."""
    theirs, _ = build(official, "v1", 64, 1, torch.float64, narrow=0.25)
    ours = from_official(theirs.state_dict(), "v1")
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    for image, pyramid in (theirs(x, randomize_noise=False), ours(x)):
        (image.square().mean() + sum(p.abs().mean() for p in pyramid)).backward()
    mine, want = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for key, name in generator_names(ours.config):
        if key in mine:                                 # the noise maps are no parameters
            a, b = mine[key].grad, want[name].grad
            assert (a is None) == (b is None) == ("mapping" in key)
            if a is not None:
                torch.testing.assert_close(a.reshape(b.shape), b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@torch.inference_mode()
def test_spandrel_reads_what_we_write(official, ending, tmp_path):
    "A third implementation, at the released shape: 512 px, channel multiplier 2, clean."
    from safetensors.torch import save_file
    from spandrel import ModelLoader

    theirs, _ = build(official, "clean", 512, 2, torch.float32)
    ours, path = from_official(theirs.state_dict()), tmp_path / f"model{ending}"
    state = {k: v.contiguous() for k, v in to_official(ours).items()}
    torch.save({"params_ema": state}, path) if ending == ".pth" else save_file(state, path)
    loaded = ModelLoader(device="cpu").load_from_file(path)
    assert loaded.architecture.id == "GFPGAN"
    x = torch.rand(1, 3, 512, 512) * 2 - 1
    close(ours(x)[0], loaded.model.eval()(x, randomize_noise=False)[0], torch.float32)
    if ending == ".pth":
        close(load_weights(path)(x)[0], ours(x)[0], torch.float32)

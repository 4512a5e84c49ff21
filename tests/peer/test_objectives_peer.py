"""Discriminators and losses of the official code against ours, random weights.
`python -m pytest -m peer tests/peer/test_objectives_peer.py`"""
import pytest
import torch
from torch.testing import assert_close

from gfpgan_edu.discriminators import ComponentDiscriminator, Discriminator, load_official
from gfpgan_edu.losses import (VGG19, crop, d_logistic, feature_style, g_logistic, gram, l1,
                               path_length, perceptual, pyramid_targets, r1, style)
from gfpgan_edu.stylegan2 import StyleGAN2

pytestmark = pytest.mark.peer
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="session")
def code(official):
    "The official classes and functions of the objectives."
    from basicsr.archs.stylegan2_arch import StyleGAN2Discriminator
    from basicsr.losses import basic_loss, gan_loss
    from gfpgan.archs.gfpganv1_arch import FacialComponentDiscriminator
    from gfpgan.models.gfpgan_model import GFPGANModel

    return dict(discriminator=StyleGAN2Discriminator, component=FacialComponentDiscriminator,
                gan=gan_loss, basic=basic_loss, model=GFPGANModel)


def close(got, want, dtype):
    """Equal to the tolerance, relative to the largest entry where that is below 1: penalties and
    gradients are small."""
    size, tolerance = want.detach().abs().max().item(), TOLERANCE[dtype]
    assert size > 0
    assert_close(got, want, atol=tolerance * min(1.0, size), rtol=0 if size < 1 else tolerance)


def shaken(net, dtype):
    "Biases start at 0 and would hide their own mistakes."
    torch.manual_seed(0)
    for p in net.to(dtype).parameters():
        p.data = torch.randn_like(p)
    return net


def pictures(*shape, dtype, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1


# ---------------------------------------------------------------- networks

@dtypes
@pytest.mark.parametrize("size,multiplier,narrow,batch", [
    (64, 1, 1, 4), (64, 2, 0.25, 8), (128, 1, 0.25, 3), (128, 2, 0.25, 1)])
def test_discriminator(code, size, multiplier, narrow, batch, dtype):
    theirs = shaken(code["discriminator"](size, multiplier, narrow=narrow), dtype)
    ours = load_official(Discriminator(size, multiplier, narrow).to(dtype), theirs.state_dict())
    x = pictures(batch, 3, size, size, dtype=dtype).requires_grad_(True)
    got, want = ours(x), theirs(x)
    assert want.abs().max() > 0.01
    close(got, want, dtype)
    if dtype == torch.float64:
        # in float32 one activation on the other side of 0 shows in its neighbourhood
        (a,), (b,) = (torch.autograd.grad(t.sum(), x) for t in (got, want))
        close(a, b, dtype)


def test_a_batch_that_the_group_does_not_divide(code):
    """Five pictures, group four: theirs cannot, ours takes groups of one, as theirs does for a
    single picture."""
    theirs = shaken(code["discriminator"](16, narrow=1 / 16), torch.float64)
    ours = load_official(Discriminator(16, 2, 1 / 16).double(), theirs.state_dict())
    x = pictures(5, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        theirs(x)
    want = torch.cat([theirs(x[i:i + 1]) for i in range(5)])
    close(ours(x), want, torch.float64)


@dtypes
@pytest.mark.parametrize("side", [64, 80, 120, 128])
def test_component_discriminator(code, side, dtype):
    theirs = shaken(code["component"](), dtype)
    ours = load_official(ComponentDiscriminator().to(dtype), theirs.state_dict())
    x = pictures(2, 3, side, side, dtype=dtype)
    with torch.no_grad():
        (got, got_taps), (want, want_taps) = ours(x), theirs(x, return_feats=True)
    assert want.std() > 0.01 and want.shape == (2, 1, side // 4, side // 4)
    for a, b in zip([got, *got_taps], [want, *want_taps], strict=True):
        close(a, b, dtype)


# ---------------------------------------------------------------- the game

@dtypes
def test_logistic_losses(code, dtype):
    gan = code["gan"].GANLoss("wgan_softplus", loss_weight=0.1)
    component = code["gan"].GANLoss("vanilla", loss_weight=1.0)
    real, fake = (4 * pictures(6, 1, 5, 5, dtype=dtype, seed=s) for s in (1, 2))
    close(0.1 * g_logistic(fake), gan(fake, True, is_disc=False), dtype)
    close(g_logistic(fake), component(fake, True, is_disc=False), dtype)
    got, of_fake = d_logistic(real, fake), gan(fake, False, is_disc=True)
    close(got, gan(real, True, is_disc=True) + of_fake, dtype)
    # as the component step mixes them
    close(got, component(real, True, is_disc=True) + of_fake, dtype)


@dtypes
def test_r1_and_its_gradient(code, dtype):
    theirs = shaken(code["discriminator"](32, 1, narrow=1 / 8), dtype)
    ours = load_official(Discriminator(32, 1, 1 / 8).to(dtype), theirs.state_dict())
    x = pictures(4, 3, 32, 32, dtype=dtype).requires_grad_(True)
    got, want = r1(ours(x), x), code["gan"].r1_penalty(theirs(x), x)
    close(got, want, dtype)
    (a,) = torch.autograd.grad(got, ours.first.weight)
    (b,) = torch.autograd.grad(want, theirs.conv_body[0][0].weight)
    close(a, b, dtype)


@dtypes
def test_path_length_and_its_gradient(code, dtype):
    torch.manual_seed(0)
    g = StyleGAN2(32, 16, 1, narrow=1 / 16).to(dtype)
    w = torch.randn(4, g.synthesis.n_codes, 16, dtype=dtype).requires_grad_(True)
    images, mean = g.synthesis(w), torch.tensor(0.2, dtype=dtype)
    weight = g.synthesis.convs[2].conv.weight
    torch.manual_seed(7)
    theirs, their_lengths, their_mean = code["gan"].g_path_regularize(images, w, mean)
    torch.manual_seed(7)
    ours, our_mean, our_lengths = path_length(images, w, mean)
    close(ours, theirs, dtype)
    close(our_mean, their_mean, dtype)
    close(our_lengths.mean(), their_lengths, dtype)
    # The one difference: the official penalty also follows the gradient of the new mean, a
    # hundredth of the lengths' own mean.
    torch.manual_seed(7)
    probe = torch.randn_like(images)
    (grad,) = torch.autograd.grad((images * probe).sum() / 32, w, create_graph=True)
    lengths = grad.square().sum(2).mean(1).sqrt()
    (a,), (b,) = (torch.autograd.grad(p, weight, retain_graph=True) for p in (ours, theirs))
    moved = 2 * (our_lengths - our_mean).mean() * (0.01 * lengths.mean())
    (rest,) = torch.autograd.grad(moved, weight, retain_graph=True)
    assert rest.abs().max() > 1e-3 * a.abs().max()
    close(a - rest, b, dtype)


# ---------------------------------------------------------------- features

@pytest.fixture(scope="module")
def features():
    return VGG19("random")


@pytest.fixture
def their_perceptual(code, features, monkeypatch):
    "The official loss with our random VGG-19 in place of the download."
    import torchvision.models.vgg as vgg

    def made(*_, **__):
        net = real(weights=None, init_weights=False)
        state = {k: v.clone() for k, v in features.layers.state_dict().items()}
        net.features[:len(features.layers)].load_state_dict(state)
        return net

    real = vgg.vgg19
    monkeypatch.setattr(vgg, "vgg19", made)
    layers = dict(conv1_2=0.1, conv2_2=0.1, conv3_4=1, conv4_4=1, conv5_4=1)
    return code["basic"].PerceptualLoss(
        layers, use_input_norm=True, range_norm=True, perceptual_weight=1.0, style_weight=50,
        criterion="l1")


@pytest.mark.parametrize("size,dtype", [
    (64, torch.float64), (64, torch.float32), (128, torch.float32)], ids=str)
def test_perceptual_and_style(their_perceptual, features, size, dtype):
    theirs, ours = their_perceptual.to(dtype), features.to(dtype)
    x, y = (pictures(2, 3, size, size, dtype=dtype, seed=s) for s in (1, 2))
    x.requires_grad_(True)
    want = theirs(x, y)
    fx, fy = ours(x), ours(y)
    got = perceptual(fx, fy, ours.weights), 50 * style(fx, fy, ours.weights)
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)
        (da,), (db,) = (torch.autograd.grad(t, x, retain_graph=True) for t in (a, b))
        close(da, db, dtype)
    features.float()


class Shell:
    "What the model's methods need of `self`."

    def __init__(self, **given):
        self.__dict__.update(given)


@dtypes
def test_gram_style_and_pyramid(code, dtype):
    f = [pictures(2, 8, 12, 10, dtype=dtype, seed=s) for s in range(4)]
    want = [code["model"]._gram_mat(None, t) for t in f]
    close(gram(f[0]), want[0], dtype)
    want = 0.5 * (want[0] - want[2]).abs().mean() + (want[1] - want[3]).abs().mean()
    close(feature_style(f[:2], f[2:]), want, dtype)
    close(l1(f[0], f[1]), code["basic"].L1Loss(loss_weight=1.0)(f[0], f[1]), dtype)
    y = pictures(2, 3, 128, 128, dtype=dtype)
    want = code["model"].construct_img_pyramid(Shell(gt=y, log_size=7))
    got = pyramid_targets(y, 5)
    assert [t.shape[-1] for t in got] == [8, 16, 32, 64, 128]
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)


@dtypes
def test_crops_at_512(code, dtype):
    "At 512 px the official crops are ours; its own factor is 1 there."
    y = pictures(2, 3, 512, 512, dtype=dtype)
    boxes = [[140.3, 190, 231, 280.7], [280, 190.2, 371, 281], [190, 310.4, 320, 439.9]]
    boxes = torch.tensor([boxes]).repeat(2, 1, 1) + torch.tensor([0, 3.3]).view(2, 1, 1)
    boxes = boxes.to(dtype)
    opt = {"network_g": {"out_size": 512}, "face_ratio": 1}
    shell = Shell(opt=opt, gt=y, output=-y, loc_left_eyes=boxes[:, 0], loc_right_eyes=boxes[:, 1],
                  loc_mouths=boxes[:, 2], device=y.device)
    code["model"].get_roi_regions(shell, eye_out_size=80, mouth_out_size=120)
    for i, (part, side) in enumerate(dict(left_eyes=80, right_eyes=80, mouths=120).items()):
        close(crop(y, boxes[:, i], side), getattr(shell, part + "_gt"), dtype)
        close(crop(-y, boxes[:, i], side), getattr(shell, part), dtype)

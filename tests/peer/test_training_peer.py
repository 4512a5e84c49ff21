"""The official training step beside ours, on fresh seeds: noise on, decoder trainable, 512 px
(narrow), R1 and the end of the pyramid loss within two iterations."""
import copy

import pytest
import torch
import torch.nn.functional as F
from official import HOW, load_official_trainer

from gfpgan_edu.discriminators import load_official
from gfpgan_edu.engine import Run
from gfpgan_edu.faces import PARTS
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.train_restorer import LossWeights, RestorerConfig, RestorerTrainer
from gfpgan_edu.weights import from_official

pytestmark = pytest.mark.peer
SIZE, NARROW, STYLE, BATCH, FIRST = 512, 1 / 16, 64, 2, 15


def official_options():
    adam, part = dict(type="Adam", lr=2e-3), dict(type="FacialComponentDiscriminator")
    l1, gan = dict(type="L1Loss"), dict(type="GANLoss")
    layers = dict(conv1_2=0.1, conv2_2=0.1, conv3_4=1, conv4_4=1, conv5_4=1)
    train = dict(
        optim_g=dict(adam), optim_d=dict(adam), optim_component=dict(adam),
        scheduler=dict(type="MultiStepLR", milestones=[600000, 700000], gamma=0.5),
        pixel_opt=dict(l1, loss_weight=0.1), L1_opt=dict(l1, loss_weight=1),
        pyramid_loss_weight=1, remove_pyramid_loss=FIRST,
        perceptual_opt=dict(type="PerceptualLoss", vgg_type="vgg19", use_input_norm=True,
                            range_norm=True, perceptual_weight=1.0, style_weight=50,
                            layer_weights=layers, criterion="l1"),
        gan_opt=dict(gan, gan_type="wgan_softplus", loss_weight=0.1), r1_reg_weight=10,
        gan_component_opt=dict(gan, gan_type="vanilla", real_label_val=1.0, fake_label_val=0.0,
                               loss_weight=1.0),
        comp_style_weight=200, identity_weight=10,
        net_d_iters=1, net_d_init_iters=0, net_d_reg_every=16)
    return dict(
        num_gpu=0, is_train=True, dist=False, manual_seed=0, path={},
        network_g=dict(type="GFPGANv1", out_size=SIZE, num_style_feat=STYLE, channel_multiplier=1,
                       decoder_load_path=None, fix_decoder=False, num_mlp=8, input_is_latent=True,
                       different_w=True, narrow=NARROW, sft_half=True),
        network_d=dict(type="StyleGAN2Discriminator", out_size=SIZE, channel_multiplier=1,
                       narrow=NARROW),
        **{f"network_d_{p}": dict(part) for p in PARTS},
        network_identity=dict(type="ResNetArcFace", block="IRBlock", layers=[2, 2, 2, 2],
                              use_se=False),
        train=train)


@pytest.fixture(scope="module")
def official():
    try:
        model_class = load_official_trainer()
    except ImportError as e:
        pytest.fail(f"{HOW} ({e})")
    # a fresh seed each time; pytest prints it on failure
    torch.manual_seed(torch.seed() % 2**32)
    print("seed", torch.initial_seed())
    model = model_class(official_options())
    for name, p in model.net_g.named_parameters():
        if p.numel() == 1 and "style_conv" in name:
            # noise strengths, 0 at the start otherwise
            torch.nn.init.normal_(p, std=0.1)
    parts = [getattr(model, f"net_d_{p}") for p in PARTS]
    for net in (model.net_g, model.net_d, *parts, model.network_identity, model.cri_perceptual):
        net.double()
    model.net_g_ema = copy.deepcopy(model.net_g).eval()
    return model


def our_trainer(official):
    config = RestorerConfig(
        model=GFPGANConfig(size=SIZE, style_dim=STYLE, narrow=NARROW),
        loss=LossWeights(style=50.0, pyramid_until=FIRST), narrow_d=NARROW, freeze_prior=False,
        features="random", embedder="random",
        run=Run(batch=BATCH, ema_images=BATCH * 312.5, workers=0))
    start = from_official(official.net_g.state_dict(), "v1")
    t = RestorerTrainer(config, [], init_from=start, device="cpu")
    for name in ("d", *PARTS):
        net = getattr(official, "net_d" if name == "d" else f"net_d_{name}")
        load_official(t.nets[name], net.state_dict())
    from gfpgan_edu.identity import ArcFaceResNet, GrayEmbedder

    arcface = ArcFaceResNet()
    arcface.load_state_dict(official.network_identity.state_dict())
    mine = [p for m in t.frozen["features"].layers for p in m.parameters()]
    theirs = list(official.cri_perceptual.vgg.vgg_net.parameters())
    for ours, p in zip(mine, theirs, strict=True):
        ours.data.copy_(p)
    t.frozen["embedder"] = GrayEmbedder(arcface)
    t.fast |= t.frozen
    for net in (*t.nets.values(), *t.frozen.values(), t.ema):
        net.double()
    t.seed = lambda shared=False: 1000 + t.it
    return t


def test_two_iterations(official):
    ours = our_trainer(official)
    names = {"l_g_pix": "pixel", "l_g_percep": "perceptual", "l_g_style": "style",
             "l_g_gan": "adversarial", "l_g_comp_style_loss": "feature_style",
             "l_identity": "identity", "l_d": "d", "l_d_r1": "r1"}
    names |= {f"l_g_gan_{p}": f"component_{p}" for p in PARTS}
    names |= {f"l_d_{p}": f"d_{p}" for p in PARTS}
    names |= {f"l_p_{2**k}": f"pyramid_{2**k}" for k in range(3, 10)}
    places = torch.tensor([[155.0, 200, 230, 275], [285, 200, 360, 275], [200, 330, 310, 430]])
    for it in (FIRST, FIRST + 1):
        gt = torch.randn(BATCH, 3, 32, 32).double()
        gt = F.interpolate(gt, size=(SIZE, SIZE), mode="bilinear").clamp(-1, 1)
        lq = (gt + 0.1 * torch.randn_like(gt)).clamp(-1, 1)
        boxes = places.expand(BATCH, 3, 4) + torch.randn(BATCH, 3, 1) * 5
        locations = {f"loc_{p}": boxes[:, i].double() for i, p in enumerate(PARTS)}
        official.feed_data(dict(lq=lq.clone(), gt=gt.clone(), **locations))
        torch.manual_seed(1000 + it)
        official.optimize_parameters(it)
        ours.it = it
        ours.iteration(dict(lq=lq, gt=gt, boxes=boxes.double()))
        missing = set(names) - set(official.log_dict)
        assert missing == (set() if it == 16 else {"l_d_r1"})
        for theirs, name in names.items():
            if theirs in official.log_dict:
                want = pytest.approx(official.log_dict[theirs], rel=1e-8, abs=1e-14)
                assert ours.logs[name].item() == want, f"{it} {theirs}"
    back = from_official(official.net_g.state_dict(), "v1")
    states = ours.nets["g"].state_dict().items(), back.state_dict().values()
    for (k, a), b in zip(*states, strict=True):
        # one step moves a weight by at most lr = 2e-3; gradients near zero make its sign, so a few
        # entries may differ
        assert (a - b).abs().mean() < 1e-7, k

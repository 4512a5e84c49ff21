"""The training step against a trace of the official one.

In float64, five iterations (14 to 18), R1 and the end of the pyramid loss among them.
"""
import json
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from gfpgan_edu.discriminators import load_official
from gfpgan_edu.engine import Run
from gfpgan_edu.faces import PARTS
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.identity import ArcFaceResNet, GrayEmbedder
from gfpgan_edu.losses import VGG19
from gfpgan_edu.train_restorer import LossWeights, RestorerConfig, RestorerTrainer
from gfpgan_edu.weights import from_official, to_official

FACTS = json.loads((Path(__file__).parent / "data/official_trace.json").read_text())
SIZE, BATCH = 128, 2
LOSSES = {"l_g_pix": "pixel", "l_g_percep": "perceptual", "l_g_style": "style",
          "l_g_gan": "adversarial", "l_g_comp_style_loss": "feature_style",
          "l_identity": "identity", "l_d": "d", "l_d_r1": "r1"}
LOSSES |= {f"l_g_gan_{p}": f"component_{p}" for p in PARTS}
LOSSES |= {f"l_d_{p}": f"d_{p}" for p in PARTS}
LOSSES |= {f"l_p_{s}": f"pyramid_{s}" for s in (8, 16, 32, 64, 128)}
NETS = {"net_g": "g", "net_d": "d"} | {f"net_d_{p}": p for p in PARTS}


def draw(name, shape, mean=0.0, std=1.0):
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return mean + std * torch.randn(shape, generator=g)


def drawn(label):
    recipe = FACTS["recipe"][label]
    return {key: draw(f"{label}/{key}", shape, mean, std)
            for key, (shape, mean, std) in recipe.items()}


def batch(it):
    """Smooth pictures, their blurred and noisy copies, boxes.

    In float64, rounded to float32, as the trace's recipe says.
    """
    resize = lambda x, **to: F.interpolate(x, mode="bilinear", align_corners=False, **to)
    gt = resize(draw(f"gt/{it}", (BATCH, 3, 16, 16)).double(), size=(SIZE, SIZE)).clamp(-1, 1)
    lq = resize(resize(gt, scale_factor=0.25), size=(SIZE, SIZE))
    lq = (lq + draw(f"lq/{it}", lq.shape, 0.0, 0.1)).clamp(-1, 1)
    boxes = []
    places = dict(left_eye=(190, 240, 45), right_eye=(320, 240, 45), mouth=(256, 375, 50))
    for part, (x, y, half) in places.items():
        centre = torch.tensor([x, y]) + draw(f"{part}/{it}", (BATCH, 2), 0.0, 6.0)
        boxes.append(torch.cat([centre - half + 1, centre + half], 1) * (SIZE / 512))
    made = dict(gt=gt, lq=lq, boxes=torch.stack(boxes, 1))
    return {k: v.float().double() for k, v in made.items()}


def random_vgg19(state):
    "The trace's VGG-19: its keys are vgg_net.convX_Y; ours count the layers as torchvision does."
    vgg = VGG19("random")
    convs = [i for i, m in enumerate(vgg.layers) if isinstance(m, torch.nn.Conv2d)]
    names = sorted({k.split(".")[1] for k in state})            # conv1_1, conv1_2, conv2_1, …
    assert len(names) == len(convs) == 16
    for i, name in zip(convs, names):
        for p in ("weight", "bias"):
            getattr(vgg.layers[i], p).data = state[f"vgg_net.{name}.{p}"]
    return vgg


def trainer():
    config = RestorerConfig(
        model=GFPGANConfig(size=SIZE, style_dim=64, narrow=0.25),
        loss=LossWeights(style=50.0, pyramid_until=16), crops=(320, 320, 480), narrow_d=0.25,
        features="random", embedder="random", milestones=(600_000, 700_000),
        run=Run(batch=BATCH, ema_images=BATCH * 312.5, workers=0))
    state = drawn("net_g")
    for i in range(11):
        side = 2 ** (2 + (i + 1) // 2)
        state[f"stylegan_decoder.noises.noise{i}"] = torch.zeros(1, 1, side, side)
    t = RestorerTrainer(config, [], init_from=from_official(state, "v1"), device="cpu")
    for label, name in NETS.items():
        if name != "g":
            load_official(t.nets[name], drawn(label))
    arcface = ArcFaceResNet()
    arcface.load_state_dict(drawn("identity"), strict=False)    # but for the counters of batches
    t.frozen |= dict(features=random_vgg19(drawn("vgg")), embedder=GrayEmbedder(arcface))
    t.fast |= t.frozen
    for net in (*t.nets.values(), *t.frozen.values(), t.ema):
        net.double()
    return t


def close(ours, official, rtol, what):
    assert abs(ours - official) <= rtol * abs(official), (
        f"{what}: {ours!r} against {official!r}, {abs(ours / official - 1):.1e} apart")


def abs_sum(net):
    return sum(p.detach().abs().sum().item() for p in net.parameters())


def official_norms(name, net):
    "Gradient norms by the official top-level modules."
    if name == "g":
        groups = to_official(_with_gradients(net))
        skip = "stylegan_decoder"
    else:
        from gfpgan_edu.discriminators import official_names

        grads = {k: p.grad for k, p in net.named_parameters()}
        groups, skip = {theirs: grads[ours] for ours, theirs in official_names(net)}, "-"
    out = {}
    for key, g in groups.items():
        if not key.startswith(skip):
            top = key.split(".")[0]
            out[top] = out.get(top, 0.0) + g.square().sum().item()
    return {k: v**0.5 for k, v in out.items()}


def _with_gradients(net):
    "A stand-in for `to_official`: the net's config, and gradients in the place of its parameters."
    state = net.state_dict() | {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    return type("Gradients", (), dict(config=net.config, state_dict=lambda self: state))()


def test_the_official_training_step_is_met_to_rounding():
    t = trainer()
    for label, name in NETS.items():
        at_start = FACTS["initial_abs_sums"][label]
        close(abs_sum(t.nets[name]), at_start, 1e-12, f"{label} at the start")
    for row in FACTS["trace"]:
        t.it = row["iteration"]
        t.iteration(batch(t.it))
        ours = {k: v.item() for k, v in t.logs.items()}
        for theirs, value in row["losses"].items():
            if theirs in LOSSES:
                close(ours[LOSSES[theirs]], value, 1e-8, f"iteration {t.it}, {theirs}")
        assert len(set(LOSSES) & set(row["losses"])) == (21 if t.it == 16 else 20) - 2
        assert ("r1" in ours) == (t.it == 16)
        sums = row["abs_sums"]
        for label, name in NETS.items():
            norms = official_norms(name, t.nets[name])
            assert norms.keys() == row["grad_norms"][label].keys()
            for k, v in row["grad_norms"][label].items():
                close(norms[k], v, 1e-7, f"iteration {t.it}, gradient of {label}.{k}")
            what = f"iteration {t.it}, parameters of {label}"
            close(abs_sum(t.nets[name]), sums[label], 1e-9, what)
        close(abs_sum(t.ema), sums["net_g_ema"], 1e-9, f"iteration {t.it}, averaged parameters")

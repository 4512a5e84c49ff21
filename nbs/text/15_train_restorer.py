# %% [markdown]
# # Training the restorer {#sec-train-restorer}

# %%
#| default_exp train_restorer

# %%
#| export
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gfpgan_edu.degradation import PRESETS as DEGRADATIONS
from gfpgan_edu.discriminators import ComponentDiscriminator, Discriminator
from gfpgan_edu.engine import Phase, Run, Trainer, TrainingError, adam, stepwise
from gfpgan_edu.faces import PARTS, FaceFolder, to_images
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.identity import ArcFaceResNet, GrayEmbedder, load_embedder
from gfpgan_edu.losses import VGG19, crop, d_logistic, feature_matching, feature_style, g_logistic, identity, l1, perceptual, pyramid, r1, style
from gfpgan_edu.weights import load_prior


# %%
#| export
@dataclass(frozen=True)
class LossWeights:
    "λ of each term of Eq. 9; the defaults are the paper's, and the official code's where the paper is silent. 0 turns a term off."

    pixel: float = 0.1                  # λ_l1
    perceptual: float = 1.0             # λ_per
    style: float = 0.0                  # official code: 50
    adversarial: float = 0.1            # λ_adv
    component: float = 1.0              # λ_local
    feature_style: float = 200.0        # λ_fs
    feature_matching: float = 0.0       # for Fig. 7
    identity: float = 10.0              # λ_id
    pyramid: float = 1.0                # each size of the U-Net's pictures …
    pyramid_until: int = 50_000         # … up to this iteration,
    pyramid_after: float = 1e-12        # then this much: not 0 in the official code, which needs every parameter used
    r1: float = 10.0                    # γ of γ/2·|∂D/∂y|², scaled by r1_every
    r1_every: int = 16

    @property
    def parts(self):
        "Whether the component discriminators are needed."
        return max(self.component, self.feature_style, self.feature_matching) > 0


# %%
#| export
@dataclass(frozen=True)
class RestorerConfig:
    "One training of GFP-GAN, complete but for the folders. The defaults are the paper's."

    model: GFPGANConfig = GFPGANConfig()
    loss: LossWeights = LossWeights()
    run: Run = Run()
    degradation: Literal["paper", "official", "severe"] = "paper"
    flip: bool = True
    boxes: str = "manifest"             # where the parts are: "manifest", "template", or an official landmark file
    crops: tuple = (80, 80, 120)        # side of the crops of left eye, right eye, mouth, px at 512
    lr: float = 2e-3
    milestones: tuple = (700_000, 750_000)
    warmup: int = 0
    prior: str = ""                     # "bundled", a file, or "random"; "" is refused
    freeze_prior: bool = True
    features: str = ""                  # of the perceptual term: "imagenet", a file, or "random"; "" is refused
    embedder: str = ""                  # of the identity term: "bundled", a file, or "random"; "" is refused
    noise: Literal["random", "fixed", "zero"] = "random"
    narrow_d: float = 1.0
    width_parts: int = 64

    @classmethod
    def paper(cls):
        "Sec. 3.5 and 4.1: 512 px, batch 12, 800k iterations."
        return cls()

    @classmethod
    def official(cls):
        "What train_gfpgan_v1.yml says where it differs from the paper."
        return cls(loss=LossWeights(style=50.0), degradation="official", milestones=(600_000, 700_000))

    @classmethod
    def faces128(cls):
        "128 px on some thousand faces, one GPU, all terms."
        return cls(model=GFPGANConfig(size=128, style_dim=256, n_mlp=4, narrow=0.5), degradation="severe", milestones=(40_000,), narrow_d=0.5, width_parts=32,
                   run=Run(iterations=50_000, batch=16, precision="bf16", ema_images=5000.0, valid_every=1000, save_every=1000), prior="random",
                   freeze_prior=False, features="random", embedder="bundled", loss=LossWeights(pyramid_until=20_000))

    @classmethod
    def tiny(cls):
        "64 px, from nothing, minutes on a CPU."
        return cls(model=GFPGANConfig.tiny(64), degradation="severe", milestones=(), narrow_d=1 / 16, width_parts=8, prior="random", freeze_prior=False,
                   embedder="bundled", boxes="template",
                   loss=LossWeights(pixel=1.0, perceptual=0.0, adversarial=0.01, component=0.01, feature_style=1.0, identity=0.1, pyramid=0.1),
                   run=Run(iterations=3000, batch=8, ema_images=400.0, log_every=20, valid_every=200, save_every=200, workers=0, channels_last=True))


PRESETS = {name: getattr(RestorerConfig, name) for name in ("paper", "official", "faces128", "tiny")}


# %%
#| export
def build_generator(config, init_from=None):
    """The generator that a run starts from: `init_from` (a GFPGAN) or a new one around the config's prior. A prior that was not loaded is a TrainingError."""
    c = config
    if init_from is not None:
        if init_from.config != c.model:
            raise TrainingError(f"the weights to start from are of {init_from.config}, the config wants {c.model}")
        net = init_from.train()
    else:
        net = GFPGAN(c.model)
        if c.model.use_prior and c.prior == "random" and c.freeze_prior:
            raise TrainingError("prior=random with freeze_prior=true would train around noise: name a prior, or set freeze_prior=false")
        if c.model.use_prior and c.prior != "random":
            prior = load_prior(_told(c.prior, "prior", "bundled, or a .safetensors or official .pth file"))
            if prior.config != net.decoder.config:
                odd = [f"{k} {prior.config[k]} ≠ {v}" for k, v in net.decoder.config.items() if prior.config[k] != v]
                raise TrainingError(f"the prior {c.prior} does not fit the model: {', '.join(odd)}")
            net.decoder.load_state_dict(prior.state_dict())
    return net.freeze_prior() if c.model.use_prior and c.freeze_prior else net


def _told(value, name, choices):
    "`value`, or a TrainingError: nothing that should have been learned is made up in silence."
    if not value:
        raise TrainingError(f"no {name} is named, and a random one would be useless: set {name} to {choices}; {name}=random trains with an untrained one")
    return value


def build_judges(config):
    "The frozen networks that losses look through, {name: network}, as far as the weights ask for them."
    c, out = config, {}
    if c.loss.perceptual or c.loss.style:
        out["features"] = VGG19(_told(c.features, "features", "imagenet (torchvision's VGG-19, downloaded once), or a file with its weights"))
    if c.loss.identity:
        source = _told(c.embedder, "embedder", "bundled (small), or the official arcface_resnet18.pth")
        out["embedder"] = GrayEmbedder(ArcFaceResNet(8, 128)) if source == "random" else load_embedder(source)
    return out


# %%
#| export
def held_out(config, data, valid=None):
    "(training set, validation set) of the folder `data`; the second from the folder `valid` (its first 64) or held out of `data`, never flipped."
    c, size = config, config.model.size
    options = dict(ranges=DEGRADATIONS[c.degradation], seed=c.run.seed, boxes=c.boxes if c.loss.parts else None)
    names = FaceFolder(data, size, boxes=None).names
    if valid is None:
        n = min(64, max(1, len(names) // 10))
        if len(names) < 2:
            raise TrainingError(f"{data}: one picture cannot be trained on and held out; give a second folder for validation")
        valid, shown, names = data, names[-n:], names[:-n]
    else:
        shown = FaceFolder(valid, size, boxes=None).names[:64]
    return FaceFolder(data, size, flip=c.flip, names=names, **options), FaceFolder(valid, size, flip=False, names=shown, **options | dict(boxes=None))


# %%
#| export
class RestorerTrainer(Trainer):
    """GFP-GAN against four discriminators: RestorerTrainer(config, data folder, run folder, valid folder).fit().

    Without a `valid` folder the last pictures of `data` (one in ten, at most 64) are held out. `init_from`: a GFPGAN to go on from.
    """

    def __init__(self, config, data, out=None, valid=None, device=None, init_from=None):
        c, self.loss = config, config.loss
        torch.manual_seed(c.run.seed)
        nets = {"g": build_generator(c, init_from)}
        if self.loss.adversarial:
            nets["d"] = Discriminator(c.model.size, c.model.channel_multiplier, c.narrow_d)
        if self.loss.parts:
            nets |= {part: ComponentDiscriminator(c.width_parts) for part in PARTS}
        optimizers = {"g": adam(nets["g"], c.lr, (0.0, 0.99))}
        if "d" in nets:
            optimizers["d"] = adam(nets["d"], c.lr, (0.0, 0.99), self.loss.r1_every)
        optimizers |= {part: adam(nets[part], c.lr, (0.9, 0.99)) for part in PARTS if part in nets}
        phases = [Phase("g", self.g_terms), Phase("d", self.d_terms)]
        phases += [Phase("d", self.r1_terms, self.loss.r1_every)] * (self.loss.r1 > 0)
        phases += [Phase(part, lambda b, part=part: self.part_terms(b, part)) for part in PARTS]
        data, self.valid = held_out(c, data, valid) if isinstance(data, (str, Path)) else (data, valid)
        super().__init__(c, out, nets, optimizers, [p for p in phases if p.player in nets], "g", data, stepwise(c.milestones, 0.5, c.warmup),
                         frozen=build_judges(c), device=device)

    def side(self, part):
        "Side of the crops of a part at this model's size, px: a multiple of 4 (two halvings), at least 16."
        return max(16, 4 * round(self.config.crops[PARTS.index(part)] * self.config.model.size / 512 / 4))

    def g_terms(self, b):
        "Every term of Eq. 9 with its weight. Leaves the restored picture in the batch for the discriminators' turns."
        w, y = self.loss, b["gt"]
        x, pictures = self.call(self.fast["g"], b["lq"], noise=self.config.noise)
        b["out"] = x.detach()
        terms = {"pixel": w.pixel * l1(x, y)}
        factor = w.pyramid if self.it <= w.pyramid_until else w.pyramid_after
        terms |= {f"pyramid_{s}": factor * v for s, v in pyramid(pictures, y).items()} if w.pyramid else {}
        if "features" in self.frozen:
            fx, fy, k = self.call(self.fast["features"], x), self.target("features", y), self.frozen["features"].weights
            terms |= {"perceptual": w.perceptual * perceptual(fx, fy, k)} if w.perceptual else {}
            terms |= {"style": w.style * style(fx, fy, k)} if w.style else {}
        if w.adversarial:
            terms["adversarial"] = w.adversarial * g_logistic(self.call(self.fast["d"], x))
        if w.parts:
            terms |= self.part_losses(x, y, b["boxes"])
        if w.identity:
            terms["identity"] = w.identity * identity(self.call(self.fast["embedder"], x), self.target("embedder", y))
        return terms

    def target(self, net, y):
        "What a network says of the truth: no gradient."
        with torch.no_grad():
            return self.call(self.fast[net], y)

    def part_losses(self, x, y, boxes):
        "Eq. 7 for left eye, right eye and mouth: one function serves all three."
        w, terms, texture, match = self.loss, {}, 0.0, 0.0
        for i, part in enumerate(PARTS):
            scores, fx = self.call(self.fast[part], crop(x, boxes[:, i], self.side(part)))
            _, fy = self.target(part, crop(y, boxes[:, i], self.side(part)))
            terms |= {f"component_{part}": w.component * g_logistic(scores)} if w.component else {}
            texture, match = texture + feature_style(fx, fy), match + feature_matching(fx, fy)
        terms |= {"feature_style": w.feature_style * texture} if w.feature_style else {}
        return terms | ({"feature_matching": w.feature_matching * match} if w.feature_matching else {})

    def d_terms(self, b):
        d = lambda x: self.call(self.fast["d"], x)
        return {"d": d_logistic(d(b["gt"]), d(b["out"]))}

    def r1_terms(self, b):
        y = b["gt"].detach().clone().requires_grad_(True)               # never the batch itself: its crops are needed afterwards
        return {"r1": self.loss.r1 / 2 * self.loss.r1_every * r1(self.nets["d"](y), y)}

    def part_terms(self, b, part):
        box, side = b["boxes"][:, PARTS.index(part)], self.side(part)
        score = lambda x: self.call(self.fast[part], crop(x, box, side))[0]
        return {f"d_{part}": d_logistic(score(b["gt"]), score(b["out"]))}

    @torch.no_grad()
    def validate(self):
        "PSNR of the average on the validation faces, of their inputs too, and a sheet: input, restored, truth."
        items = [self.valid[i] for i in range(len(self.valid))]
        x, y = (torch.stack([i[k] for i in items]).to(self.device) for k in ("lq", "gt"))
        out = torch.cat([self.ema(part, noise="fixed")[0] for part in x.to(next(self.ema.parameters())).split(8)]).clamp(-1, 1)
        sheet = np.concatenate([np.concatenate(list(to_images(t[:8])), 1) for t in (x, out, y)], 0)
        return {"valid_psnr": psnr(out, y), "valid_psnr_input": psnr(x, y)}, sheet


def psnr(x, y):
    "Mean over pictures of 10 log10(2² / mean square error), dB, for x, y (n, 3, h, w) in [-1, 1]."
    return float((10 * torch.log10(4 / (x - y).square().flatten(1).mean(1))).mean())

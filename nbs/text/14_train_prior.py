# %% [markdown]
# # Training the prior {#sec-train-prior}

# %%
#| default_exp train_prior

# %%
#| export
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gfpgan_edu.discriminators import Discriminator
from gfpgan_edu.engine import Phase, Run, Trainer, adam, stepwise
from gfpgan_edu.faces import FaceFolder, to_images
from gfpgan_edu.losses import d_logistic, g_logistic, path_length, r1
from gfpgan_edu.stylegan2 import StyleGAN2


# %%
#| export
def augment_colour(x):
    "Brightness, saturation and contrast of each picture changed at random: x (b, 3, s, s) -> the same shape."
    u = lambda low, high: torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) * (high - low) + low
    x = x + u(-0.5, 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * u(0, 2)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * u(0.5, 1.5)


def augment_place(x, most=1 / 8):
    "Each picture shifted by up to `most` of its side, black where nothing comes in."
    b, _, s, _ = x.shape
    m = int(s * most + 0.5)
    shift = torch.randint(-m, m + 1, (b, 2), device=x.device)
    at = torch.arange(s, device=x.device)
    rows, cols = ((at + shift[:, i, None] + m) for i in (0, 1))                       # into the padded picture
    padded = F.pad(x, (m, m, m, m)).permute(0, 2, 3, 1)
    return padded[torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def augment_hole(x, share=0.5):
    "A square of `share` of the side set to grey (0), its centre anywhere."
    b, _, s, _ = x.shape
    half, at = int(s * share) // 2, torch.arange(s, device=x.device)
    centre = torch.randint(0, s, (b, 2), device=x.device)
    row, col = ((at - centre[:, i, None]).abs() < half for i in (0, 1))
    return x * ~(row[:, None, :, None] & col[:, None, None, :])


AUGMENTATIONS = {"colour": augment_colour, "place": augment_place, "hole": augment_hole}


def augment(x, names):
    "DiffAugment: the named augmentations one after the other; gradients flow through."
    for name in names:
        x = AUGMENTATIONS[name](x)
    return x


# %%
#| export
@dataclass(frozen=True)
class PriorConfig:
    "Training of a StyleGAN2 prior. Numbers are StyleGAN2's where not said otherwise."

    size: int = 512
    style_dim: int = 512
    n_mlp: int = 8
    channel_multiplier: float = 1.0
    narrow: float = 1.0
    resample: str = "fir"
    narrow_d: float = 1.0
    lr: float = 2e-3
    r1: float = 10.0                      # γ of the penalty γ/2·|∂D/∂y|²
    r1_every: int = 16
    path: float = 2.0
    path_every: int = 4                   # on half of the batch
    mixing: float = 0.9                   # share of pictures drawn from two codes
    augment: tuple = ()                   # of colour, place, hole: for small data
    flip: bool = True
    noise: str = "random"
    run: Run = field(default_factory=lambda: Run(batch=32, ema_images=10_000.0))

    def __post_init__(self):
        if odd := [a for a in self.augment if a not in AUGMENTATIONS]:
            raise ValueError(f"augment names {odd[0]!r}, there are {', '.join(AUGMENTATIONS)}")

    @classmethod
    def paper(cls):
        "512 px, channel multiplier 1: the prior that GFP-GAN restores with."
        return cls()

    @classmethod
    def faces128(cls):
        "128 px on some thousand faces, one GPU."
        return cls(size=128, style_dim=256, n_mlp=4, narrow=0.5, narrow_d=0.5, augment=("colour", "place", "hole"),
                   run=Run(iterations=100_000, batch=32, ema_images=10_000.0, precision="bf16", valid_every=1000, save_every=1000))

    @classmethod
    def faces64(cls):
        "64 px on some thousand faces: hours on a laptop. This made the bundled prior."
        return cls(size=64, style_dim=96, n_mlp=4, narrow=0.1875, narrow_d=0.1875, path=0.0, augment=("colour", "place", "hole"),
                   run=Run(iterations=200_000, batch=16, ema_images=10_000.0, precision="bf16", channels_last=True, valid_every=2000, save_every=500, log_every=50, workers=0))

    @classmethod
    def tiny(cls):
        "32 px, seconds per hundred iterations on a CPU."
        return cls(size=32, style_dim=64, n_mlp=2, narrow=1 / 16, narrow_d=1 / 16, augment=("colour", "place"),
                   run=Run(iterations=2000, batch=8, ema_images=1000.0, log_every=20, valid_every=500, save_every=500, workers=0))


PRESETS = {name: getattr(PriorConfig, name) for name in ("paper", "faces128", "faces64", "tiny")}


# %%
#| export
class PriorTrainer(Trainer):
    "StyleGAN2 against its discriminator: PriorTrainer(config, data folder, run folder).fit()."

    def __init__(self, config, data, out=None, device=None, init_from=None):
        torch.manual_seed(config.run.seed)
        c = config
        g = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow, resample=c.resample)
        d = Discriminator(c.size, c.channel_multiplier, c.narrow_d)
        if init_from is not None:
            g.load_state_dict(init_from.state_dict())
        if isinstance(data, (str, Path)):
            data = FaceFolder(data, c.size, seed=c.run.seed, flip=c.flip, boxes=None, degraded=False)
        lazy = lambda every: every / (every + 1)
        optimizers = dict(g=adam(g, c.lr * lazy(c.path_every), (0.0, 0.99), c.path_every), d=adam(d, c.lr * lazy(c.r1_every), (0.0, 0.99), c.r1_every))
        phases = [Phase("g", self.g_terms)] + [Phase("g", self.path_terms, c.path_every)] * (c.path > 0)
        phases += [Phase("d", self.d_terms)] + [Phase("d", self.r1_terms, c.r1_every)] * (c.r1 > 0)
        super().__init__(config, out, dict(g=g, d=d), optimizers, phases, "g", data, stepwise(()), device=device)
        self.extra["path_mean"] = torch.zeros((), device=self.device)
        self.shown = torch.randn(32, c.style_dim, generator=torch.Generator().manual_seed(c.run.seed + 1))

    def inputs(self, batch):
        "Adds the random codes: each process draws those of all and takes its own, so that their number does not matter."
        n, rng = self.run.batch, torch.Generator().manual_seed(self.seed(shared=True))
        mine = slice(self.rank, None, self.world)
        dtype = next(self.nets["g"].parameters()).dtype
        draw = lambda *shape: torch.randn(n, *shape, generator=rng, dtype=dtype)[mine].to(self.device)
        cuts = torch.randint(1, self.nets["g"].synthesis.n_codes, (n,), generator=rng)
        cuts = torch.where(torch.rand(n, generator=rng) < self.config.mixing, cuts, self.nets["g"].synthesis.n_codes)[mine].to(self.device)
        return batch | dict(z_g=draw(2, self.config.style_dim), z_d=draw(2, self.config.style_dim), cut=cuts)

    def codes(self, g, z, cut):
        "z (b, 2, d), cut (b,) -> w (b, L, d): layers from `cut` on take the second code."
        w = g.mapping(z)
        late = torch.arange(g.synthesis.n_codes, device=cut.device) >= cut[:, None]
        return torch.where(late[..., None], w[:, 1, None], w[:, 0, None])

    def generate(self, g, z, cut):
        return g.synthesis(self.codes(g, z, cut), noise=self.config.noise)

    def g_terms(self, b):
        fake = self.call(partial(self.generate, self.nets["g"]), b["z_g"], b["cut"])
        return {"g": g_logistic(self.call(self.fast["d"], augment(fake, self.config.augment)))}

    def path_terms(self, b):
        g, half = self.nets["g"], max(1, len(b["cut"]) // 2)
        w = self.codes(g, b["z_g"][:half], b["cut"][:half])
        penalty, mean, _ = path_length(g.synthesis(w, noise=self.config.noise), w, self.extra["path_mean"])
        self.extra["path_mean"] = self.mean_over_processes(mean.detach())
        return {"path": self.config.path * self.config.path_every * penalty}

    def d_terms(self, b):
        with torch.no_grad():
            fake = self.call(partial(self.generate, self.nets["g"]), b["z_d"], b["cut"])
        d = lambda x: self.call(self.fast["d"], augment(x, self.config.augment))
        return {"d": d_logistic(d(b["gt"]), d(fake))}

    def r1_terms(self, b):
        x = augment(b["gt"], self.config.augment).detach().requires_grad_(True)
        return {"r1": self.config.r1 / 2 * self.config.r1_every * r1(self.nets["d"](x), x)}

    @torch.no_grad()
    def validate(self):
        "A sheet of 4 × 8 samples of the average, the same codes each time."
        p = next(self.ema.parameters())
        faces = to_images(self.ema(self.shown.to(p), noise="fixed"))
        return {}, np.concatenate([np.concatenate(list(row), 1) for row in faces.reshape(4, 8, *faces.shape[1:])], 0)

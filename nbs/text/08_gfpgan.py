# %% [markdown]
# # GFP-GAN assembled {#sec-gfpgan}

# %%
#| default_exp gfpgan

# %%
#| export
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

from torch import nn

from gfpgan_edu.csft import ConditionHead, cs_sft, sft
from gfpgan_edu.layers import EqualizedLinear
from gfpgan_edu.stylegan2 import StyleGAN2, widths
from gfpgan_edu.unet import UNet

# %%
#| export
@dataclass(frozen=True)
class GFPGANConfig:
    """Everything that fixes the generator's shape. Unknown names or values are a ValueError; a config is never changed in place."""

    size: int = 512                                     # input and output, px: a power of two from 8 to 1024
    style_dim: int = 512                                # length of one code w
    n_mlp: int = 8                                      # layers of the mapping network (kept for the prior, not run in restoration)
    channel_multiplier: float = 1                       # width of the prior above 32 px
    narrow: float = 1                                   # width of everything
    sft: Literal["none", "full", "half"] = "half"       # Table 4: a, b, the paper's model
    w: Literal["one", "per_layer"] = "per_layer"        # one code for all layers, or W+
    use_prior: bool = True                              # False: the U-Net's own picture is the output (Table 4 c)
    resample: Literal["fir", "bilinear"] = "fir"        # the paper's model, or the clean models
    equalized: bool = True                              # run-time weight scales, or baked in

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                raise ValueError(f"{name} is {value!r}, needs one of {choices}")
            if hint in (int, float) and (isinstance(value, (bool, str)) or value <= 0):
                raise ValueError(f"{name} is {value!r}, needs a positive number")
        widths(self.size, self.channel_multiplier, self.narrow)  # raises on impossible sizes and widths

    @classmethod
    def from_dict(cls, d):
        "The inverse of `to_dict`; names that the config does not have are a ValueError."
        unknown = sorted(set(d) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown config keys {unknown}")
        return cls(**d)

    def to_dict(self):
        return asdict(self)

    def replace(self, **changes):
        return replace(self, **changes)

    @classmethod
    def paper(cls):
        "The model of the paper (official GFPGANv1): 512 px, FIR resampling, 76,207,244 parameters."
        return cls()

    @classmethod
    def clean_v1_4(cls):
        "The released v1.2, v1.3 and v1.4: bilinear, channel multiplier 2, scales baked in, 86,444,252 parameters."
        return cls(channel_multiplier=2, resample="bilinear", equalized=False)

    @classmethod
    def tiny(cls, size=64):
        "A net for laptops and tests: same architecture, 1/16 of the width up to 32 px; any size from 8 to 256."
        return cls(size=size, style_dim=64, n_mlp=2, narrow=1 / 16)


# %%
#| export
class GFPGAN(nn.Module):
    """Blind face restoration (Fig. 2 of the paper): x (b, 3, S, S) in [-1, 1] -> (image (b, 3, S, S), pyramid [8..S: (b, 3, s, s)]).

    `unet` removes the degradation (Eq. 1), `to_w` maps F_latent to codes (Eq. 2), `heads` turn F_spatial into scales and shifts
    (Eq. 3-4) that steer `decoder`, the StyleGAN2 prior. The image is the prior's sum of RGB layers, neither clamped nor squashed.
    """

    def __init__(self, config=GFPGANConfig()):
        super().__init__()
        c = self.config = config
        prior = widths(c.size, c.channel_multiplier, c.narrow)
        spatial = {s: n // 2 for s, n in prior.items()}      # the U-Net is half as wide as the prior
        self.unet = UNet(spatial, resample=c.resample, equalized=c.equalized)
        if not c.use_prior:
            return
        self.decoder = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow, resample=c.resample, equalized=c.equalized)
        n_codes = self.decoder.synthesis.n_codes if c.w == "per_layer" else 1
        self.to_w = EqualizedLinear(spatial[4] * 16, n_codes * c.style_dim, equalized=c.equalized)
        if c.sft != "none":
            self.heads = nn.ModuleList(
                ConditionHead(spatial[s], prior[s] // (2 if c.sft == "half" else 1), equalized=c.equalized) for s in sorted(prior)[1:])

    def forward(self, x, noise="fixed"):
        c = self.config
        if x.ndim != 4 or x.shape[1:] != (3, c.size, c.size):
            raise ValueError(f"input is {tuple(x.shape)}, needs (b, 3, {c.size}, {c.size})")
        latent, spatial, pyramid = self.unet(x)
        if not c.use_prior:
            return pyramid[-1], pyramid
        w = self.to_w(latent.flatten(1)).unflatten(1, (-1, c.style_dim))                    # (b, n_codes or 1, style_dim)
        w = w.expand(-1, self.decoder.synthesis.n_codes, -1)
        transform = {"half": cs_sft, "full": sft}.get(c.sft)
        modulate = (lambda h, k: transform(h, *self.heads[k](spatial[k]))) if transform else None
        return self.decoder.synthesis(w, noise=noise, modulate=modulate), pyramid

    def freeze_prior(self):
        "Turn off the decoder's gradients, as the official configuration does; returns self."
        self.decoder.requires_grad_(False)
        return self

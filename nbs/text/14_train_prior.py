# %% [markdown]
# # Training the prior {#sec-train-prior}
#
# > Before a network can restore faces, something has to know what faces look like.
#
# **You will build** the trainer of the StyleGAN2 prior: its two players, two penalties that run only now and then, mixed codes, and augmentations that hide nothing from the gradient.
# **Needs** the generator of @sec-stylegan2, the discriminator of @sec-discriminators, the objectives of @sec-losses and the loop of @sec-engine.
# **Runs in** about 30 s on a laptop CPU, a live training included.

# %%
#| default_exp train_prior

# %%
import json
import tempfile
import warnings
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.engine import plain
from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.gfpgan import GFPGAN
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.weights import load_prior

# %%
#| export
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import patch

from gfpgan_edu.discriminators import Discriminator
from gfpgan_edu.engine import Phase, Run, Trainer, adam, stepwise
from gfpgan_edu.faces import FaceFolder, to_images
from gfpgan_edu.losses import d_logistic, g_logistic, path_length, r1
from gfpgan_edu.stylegan2 import StyleGAN2, widths

# %% [markdown]
# The loop of @sec-engine has trained points on a ring. Now it trains faces. In @fig-train-prior-map the prior is the last box before the output. This chapter trains it alone, with no degraded face in sight.

# %%
#| label: fig-train-prior-map
#| fig-cap: "This chapter trains the prior, before anything else is trained."
#| fig-alt: "The method as boxes and arrows; the box of StyleGAN2 is coloured."
torch.set_num_threads(1)                                              # quickest for small nets
warnings.filterwarnings("ignore", message="IProgress not found")
draw_map("stylegan2");

# %% [markdown]
# ## Why a prior comes first
#
# A restorer is trained on pairs: a damaged face and the truth. Pairs teach it what to keep. They teach it less well what a face *is*, because the pixel loss rewards a blurred average wherever the input does not decide.
# A generative network is trained on sharp pictures alone. No pair, no label and no degradation is needed. GFP-GAN therefore takes a finished StyleGAN2, freezes it, and trains the rest around it.
#
# How much of the restorer is that frozen part? The cell counts on the `meta` device, where tensors have shapes and no data.

# %%
with torch.device("meta"):
    net = GFPGAN()
count = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad)
total, prior = count(net), count(net.decoder)
print(f"restorer of the paper: {total / 1e6:.1f} million parameters, "
      f"{prior / total:.0%} of them in the prior")
assert count(net.freeze_prior()) == total - prior and 0.3 < prior / total < 0.4

# %% [markdown]
# A third of the numbers never learns from pairs. If that third is random instead of trained, the restorer bends around noise. @sec-train-restorer refuses to start in that state.
#
# ## The game
#
# Two networks play. The generator $G$ makes a picture from a code $z$. The discriminator $D$ scores pictures, high for real. Per iteration they minimise, in turn,
#
# $$\mathcal L_D=\mathbb E_y\,\mathrm{sp}(-D(t(y)))+\mathbb E_z\,\mathrm{sp}(D(t(G(z))))+\tfrac{\gamma}{2}\,\mathbb E_y\|\partial D(t(y))/\partial t(y)\|^2,\qquad \mathcal L_G=\mathbb E_z\,\mathrm{sp}(-D(t(G(z))))+\lambda\,\mathbb E\big(\|J^\top\epsilon\|-a\big)^2$$ {#eq-train-prior-game}
#
# Here $y$ is a real face, $\mathrm{sp}$ is softplus, and $t$ is an augmentation that is explained below. The logistic terms are those of @eq-adv. The term with $\gamma=10$ is R1: it keeps the slope of $D$ small at real pictures, so that $D$ cannot become a cliff. The last term asks that steps of equal size in code space change the picture by equal amounts: $J$ is the derivative of the picture with respect to the codes, $\epsilon$ is noise, $a$ is a running mean. All of them were built and checked in @sec-losses.
#
# Two numbers help to read such a game. A discriminator that cannot tell scores 0 everywhere:

# %%
undecided = torch.zeros(8, 1)
d, g = d_logistic(undecided, undecided).item(), g_logistic(undecided).item()
print(f"an undecided discriminator: loss of D {d:.2f}, loss of G {g:.2f}")
np.testing.assert_allclose([d, g], [2 * np.log(2), np.log(2)], rtol=1e-6)

# %% [markdown]
# A loss of $D$ far below 1.39 means that $D$ wins. Neither loss says how good the pictures are. They describe the balance, and pictures are judged by looking.
#
# ## Penalties that run now and then
#
# Both penalties need a derivative of a derivative. That costs about as much as the rest of the iteration. StyleGAN2 [@karras2020stylegan2] computes R1 in every 16th iteration only and path length in every 4th, and calls this lazy regularisation. Two corrections belong to it, for an interval of $k$ iterations:
#
# $$\text{weight}\times k,\qquad \beta'=\beta^{\,k/(k+1)},\qquad \eta'=\eta\,\tfrac{k}{k+1}$$ {#eq-train-prior-lazy}
#
# The first is bookkeeping: once in $k$ iterations, $k$ times as strong, gives the same push on average. The others concern Adam [@kingma2015adam], with its decay rates $\beta$ and its learning rate $\eta$. In StyleGAN2 the penalty takes a step of its own, so $k$ iterations hold $k+1$ steps. With $\beta'$ the memory fades over those $k+1$ steps as it would over $k$ steps with $\beta$, and the steps add up to the same distance. The cell checks this arithmetic.

# %%
for k in (4, 16):
    beta, lr = 0.99, 2e-3
    slower, shorter = beta ** (k / (k + 1)), lr * k / (k + 1)
    steps = [slower ** (k + 1), shorter * (k + 1)]
    np.testing.assert_allclose(steps, [beta**k, lr * k], rtol=1e-12)
    pushes = sum(k * (it % k == 0) for it in range(1, 10 * k + 1))     # weight k, every k-th time
    assert pushes == 10 * k
    print(f"every {k:2}: beta {beta} -> {slower:.4f}, learning rate {lr} -> {shorter:.5f}")


# %% [markdown]
# Our engine, like the official GFP-GAN code, adds the penalty's gradient to the same step and takes no extra one. The corrections are then a convention. We keep StyleGAN2's values, so that its learning rates can be copied. The trainer further down is checked for both: one step, and the sum of the two gradients.
#
# ## Codes that are mixed
#
# A face drawn from one code lets neighbouring layers rely on each other: the hair of layer 8 may assume the pose of layer 2. StyleGAN [@karras2019stylegan] breaks this with pictures made from *two* codes. Layers before a random cut take the first, the rest the second. With $L$ layers and a cut $c\in\{1,\dots,L-1\}$:
#
# $$w_i=\begin{cases}f(z_1)& i<c\\ f(z_2)& i\ge c\end{cases}\qquad i=0,\dots,L-1$$ {#eq-train-prior-mixing}
#
# $f$ is the mapping network. A cut at $L$ means a single code. In training 90 % of the pictures are mixed. GFP-GAN profits, because it later asks the prior for a different code at each layer.

# %%
#| export
def mixed_codes(g, z, cut):
    """z (b, 2, d), cut (b,) -> codes w (b, L, d) of a StyleGAN2 `g`.

    Layers before `cut` take the first, those from `cut` on the second (@eq-train-prior-mixing).
    """
    w = g.mapping(z)
    late = torch.arange(g.synthesis.n_codes, device=cut.device) >= cut[:, None]
    return torch.where(late[..., None], w[:, 1, None], w[:, 0, None])


# %%
torch.manual_seed(0)
small = StyleGAN2(32, 16, 2, narrow=1 / 16).requires_grad_(False)
L, z = small.synthesis.n_codes, torch.randn(4, 2, 16)
cut = torch.tensor([1, 3, L - 1, L])
w = mixed_codes(small, z, cut)
for b in range(4):                                    # independent: one layer, one code at a time
    for i in range(L):
        alone = small.mapping(z[b, 0 if i < cut[b] else 1][None])[0]
        assert_close(w[b, i], alone, rtol=1e-5, atol=1e-6)
assert w.shape == (4, L, 16) and (w[3] == w[3, :1]).all() and not (w[2] == w[2, :1]).all()


# %% [markdown]
# ## Augmentations the generator never sees
#
# A discriminator with a few thousand faces soon knows them by heart. From then on it teaches nothing. The remedy would be more pictures, and augmentation makes more out of few. But a discriminator that is shown shifted and tinted real faces takes shifted and tinted for real, and the generator learns to make such faces.
# The way out is to treat real and made pictures alike [@zhao2020diffaugment; @karras2020ada]. The same $t$ stands before every $D$ in @eq-train-prior-game. Then a shift is no sign of anything. For $G$ to learn through $t$, a gradient must flow through it.

# %%
#| export
def augment_colour(x):
    """Brightness, saturation and contrast of each picture changed at random.

    x (b, 3, s, s) -> the same shape.
    """
    def u(low, high):
        drawn = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
        return drawn * (high - low) + low

    x = x + u(-0.5, 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * u(0, 2)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * u(0.5, 1.5)


# %% [markdown]
# Of the three changes only brightness may move the mean of a picture, and only by up to 0.5. Saturation turns colours about the grey of each pixel, contrast turns values about the mean of the picture. All three are centred on "no change", so the average over many draws is the picture itself.

# %%
face = to_tensor(example_faces(1, 128))                           # (1, 3, 128, 128)
one = face.double()[..., ::8, ::8]
crowd = augment_colour(one.expand(20_000, -1, -1, -1))
drift = crowd.mean((1, 2, 3)) - one.mean()
assert 0.45 < drift.abs().max() < 0.5 and abs(drift.mean()) < 0.01
assert_close(crowd.mean(0), one[0], rtol=0, atol=0.03)            # centred: the mean is the picture
grey = one.mean(1, keepdim=True).expand_as(one)
assert (augment_colour(grey).std(1) < 1e-12).all()                # a grey picture gains no colour
slope = (crowd - crowd.mean((1, 2, 3), keepdim=True)).mean(1) / (grey - grey.mean())[:, 0]
# one contrast per picture: the greys stay in proportion
assert_close(slope.amax((1, 2)), slope.amin((1, 2)), rtol=1e-6, atol=1e-6)
assert 0.5 < slope.min() < 0.51 and 1.49 < slope.max() < 1.5


# %%
#| export
def augment_place(x, most=1 / 8):
    """Each picture of x (b, c, s, s) shifted by up to `most` of its side.

    0, a middle grey, where nothing comes in.
    """
    b, _, s, _ = x.shape
    m = int(s * most + 0.5)
    shift = torch.randint(-m, m + 1, (b, 2), device=x.device)
    at = torch.arange(s, device=x.device)
    rows, cols = ((at + shift[:, i, None] + m) for i in (0, 1))         # into the padded picture
    padded = F.pad(x, (m, m, m, m)).permute(0, 2, 3, 1)
    each = torch.arange(b, device=x.device)[:, None, None]
    return padded[each, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


# %% [markdown]
# Shifts are whole pixels. A fraction would need interpolation, and the discriminator would see blur. The check looks for the shift of each picture by trying all of them with `np.roll`.

# %%
torch.manual_seed(1)
many = torch.randn(1, 3, 16, 16).expand(300, -1, -1, -1)
moved, found = augment_place(many).numpy(), set()
framed = np.pad(many[0].numpy(), ((0, 0), (16, 16), (16, 16)))
window = lambda shift: np.roll(framed, shift, (1, 2))[:, 16:32, 16:32]
shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
for picture in moved:
    fits = [shift for shift in shifts if np.array_equal(window(shift), picture)]
    assert len(fits) == 1                     # exactly one whole shift explains it, to the last bit
    found.add(fits[0])
assert len(found) == 25                       # all shifts of up to 16/8 = 2 px occur


# %%
#| export
def augment_hole(x, share=0.5):
    """In each picture of x (b, c, s, s) a square of `share` of the side set to 0.

    Its centre is anywhere; what sticks out is cut off.
    """
    b, _, s, _ = x.shape
    n = int(s * share + 0.5)
    first = torch.randint(0, s + 1 - n % 2, (b, 2), device=x.device) - n // 2
    at = torch.arange(s, device=x.device)
    row, col = ((at >= first[:, i, None]) & (at < first[:, i, None] + n) for i in (0, 1))
    return x * ~(row[:, None, :, None] & col[:, None, None, :])


# %%
for s, share in ((16, 0.5), (15, 0.2), (64, 0.5)):
    n = int(s * share + 0.5)
    gone = augment_hole(torch.ones(4000, 1, s, s), share)[:, 0] == 0
    sides = torch.stack([gone.any(2).sum(1), gone.any(1).sum(1)], 1)
    assert (gone.flatten(1).sum(1) == sides.prod(1)).all()            # a rectangle without gaps,
    # n × n in the middle, cut in half at most at the rim
    assert sides.max() == n and sides.min() == (n + 1) // 2
    share_of_all = gone.float().mean().item()
    k = s + 1 - n % 2                            # by hand: the mean visible side over all centres
    side = np.mean([min(s, c - n // 2 + n) - max(0, c - n // 2) for c in range(k)])
    np.testing.assert_allclose(share_of_all, (side / s) ** 2, rtol=0.05)

# %%
#| export
# by the names that a config uses
AUGMENTATIONS = {"colour": augment_colour, "place": augment_place, "hole": augment_hole}


def augment(x, names):
    """DiffAugment of x (b, 3, s, s) in [-1, 1]; gradients flow through.

    The augmentations `names`, of `AUGMENTATIONS`, one after the other.
    """
    for name in names:
        x = AUGMENTATIONS[name](x)
    return x


# %%
#| label: fig-train-prior-augment
#| fig-cap: "Two draws for one face with each augmentation alone and with all three."
#| fig-alt: "Portraits: with other colours, shifted with grey borders, with a grey square, and all of it at once."
torch.manual_seed(3)
tile = F.avg_pool2d(face, 2).expand(2, -1, -1, -1)
every = ("colour", "place", "hole")
rows = {name: (name,) for name in every} | {"all three": every}
tiles = [t for names in rows.values() for t in augment(tile, names)]
show(tiles, [n for name in rows for n in (name, "")], cols=8, height=1.0);


# %% [markdown]
# @fig-train-prior-augment: nothing here changes what makes a face a face. Only pictures for $D$ are treated this way. What the generator makes is never shown like this.
#
# Does the gradient arrive? The check compares it with differences of values, for the whole chain and fixed draws. And the same draws must do the same to a real and to a made picture.

# %%
def with_seed(x, seed=0):
    torch.manual_seed(seed)
    return augment(x, ("colour", "place", "hole"))


x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
x.requires_grad_(True)
assert torch.autograd.gradcheck(with_seed, x)                         # against finite differences
for names in (("place", "hole"), ("colour", "place", "hole")):
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad(augment(x, names).square().sum(), x)
    print(f"{', '.join(names)}: {(slope != 0).double().mean():.0%} of the values get a gradient")
real, made = torch.randn(2, 4, 3, 8, 8).double()
shift = with_seed(torch.zeros_like(made))             # t is affine: it cannot know what it is given
assert_close(with_seed(real) - with_seed(made), with_seed(real - made) - shift, rtol=0, atol=1e-12)


# %% [markdown]
# What is in the hole or outside the frame gets nothing from a draw of these two. With colour everything gets a little, because contrast depends on the mean of the picture. The next draw moves the hole.

# %% [markdown]
# ## One config
#
# Everything that fixes a run is in one frozen dataclass. Five presets: `paper` is the prior GFP-GAN takes (512 px), `faces128`, `faces64` and `faces32` are for a few thousand faces, `tiny` is for a test. A wrong value is refused when the config is made, not after a night of training.

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
    resample: Literal["fir", "bilinear"] = "fir"
    narrow_d: float = 1.0
    lr: float = 2e-3
    r1: float = 10.0                      # γ of the penalty γ/2·|∂D/∂y|²
    r1_every: int = 16
    path: float = 2.0
    path_every: int = 4                   # on half of the batch
    mixing: float = 0.9                   # share of pictures drawn from two codes
    augment: tuple = ()                   # of colour, place, hole: for small data
    flip: bool = True
    noise: Literal["random", "fixed", "zero"] = "random"
    run: Run = field(default_factory=lambda: Run(batch=32, ema_images=10_000.0))

    def __post_init__(self):
        if odd := [a for a in self.augment if a not in AUGMENTATIONS]:
            raise ValueError(f"augment names {odd[0]!r}, there are {', '.join(AUGMENTATIONS)}")
        for narrow in (self.narrow, self.narrow_d):
            widths(self.size, self.channel_multiplier, narrow)  # raises on impossible sizes, widths
        possible = dict(
            style_dim=1 <= self.style_dim <= 1 << 16, n_mlp=1 <= self.n_mlp <= 100,
            mixing=0 <= self.mixing <= 1, lr=0 < self.lr < np.inf, r1=0 <= self.r1 < np.inf,
            path=0 <= self.path < np.inf, r1_every=self.r1_every >= 1,
            path_every=self.path_every >= 1)
        for name, fits in possible.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}, which cannot be")


# %% [markdown]
# The presets are class methods: `PriorConfig.faces64()` makes a config. They are added by `patch`, which takes the class from the annotation of the first parameter.

# %%
#| export
@patch(cls_method=True)
def paper(cls: PriorConfig):
    "512 px, channel multiplier 1: the prior that GFP-GAN restores with."
    return cls()


@patch(cls_method=True)
def faces128(cls: PriorConfig):
    "128 px on some thousand faces, one GPU."
    return cls(size=128, style_dim=256, n_mlp=4, narrow=0.5, narrow_d=0.5,
               augment=("colour", "place", "hole"),
               run=Run(iterations=100_000, batch=32, ema_images=10_000.0, precision="bf16",
                       valid_every=1000, save_every=1000))


@patch(cls_method=True)
def faces64(cls: PriorConfig):
    """64 px on some thousand faces: hours on a laptop.

    The bundled prior, but for the augmentation that it began with.
    """
    # no augmentation: it keeps a small D undecided,
    # and such runs are too short for D to learn the faces by heart
    return cls(size=64, style_dim=64, n_mlp=4, narrow=0.125, narrow_d=0.125, r1=0.1, path=0.0,
               run=Run(iterations=200_000, batch=16, ema_images=10_000.0, precision="bf16",
                       channels_last=True, valid_every=2000, save_every=500, log_every=50,
                       workers=0, threads=1))


# %%
#| export
@patch(cls_method=True)
def faces32(cls: PriorConfig):
    "32 px on some thousand faces: half an hour on a laptop. The prior of the ablations."
    return cls(size=32, style_dim=64, n_mlp=4, narrow=0.125, narrow_d=0.125, r1=0.1, path=0.0,
               augment=("colour", "place", "hole"),
               run=Run(iterations=20_000, batch=16, ema_images=5000.0, channels_last=True,
                       valid_every=1000, save_every=500, log_every=50, workers=0, threads=1))


@patch(cls_method=True)
def tiny(cls: PriorConfig):
    "32 px, seconds per hundred iterations on a CPU."
    return cls(size=32, style_dim=64, n_mlp=2, narrow=1 / 16, narrow_d=1 / 16,
               augment=("colour", "place"),
               run=Run(iterations=2000, batch=8, ema_images=1000.0, log_every=20,
                       valid_every=500, save_every=500, workers=0, threads=1))


# name -> function that makes the config
PRESETS = {name: getattr(PriorConfig, name)
           for name in ("paper", "faces128", "faces64", "faces32", "tiny")}

# %%
for bad in (dict(r1_every=0), dict(path_every=0), dict(mixing=1.5), dict(lr=0.0), dict(n_mlp=1000)):
    test_fail(lambda: PriorConfig(**bad), exc=ValueError, contains=f"{next(iter(bad))} is")
test_fail(lambda: PriorConfig(augment=("mirror",)), exc=ValueError,
          contains="augment names 'mirror', there are colour, place, hole")


def cell(v):
    "A value as the table prints it."
    if isinstance(v, tuple):
        return "".join(a[0] for a in v) or "-"
    return f"{v:.4g}" if isinstance(v, float) else str(v)


keys = "size style_dim n_mlp narrow r1_every path path_every mixing augment".split()
print(f"{'':12}" + "".join(f"{name:>10}" for name in PRESETS))
for key in keys + ["run.batch", "run.precision"]:
    value = lambda c: getattr(c.run, key[4:]) if key.startswith("run.") else getattr(c, key)
    print(f"{key:13}" + "".join(f"{cell(value(make())):>10}" for make in PRESETS.values()))


# %% [markdown]
# (`cph` stands for colour, place, hole.) The large presets keep the path length term, which later makes codes easy to find. `faces64` drops it, because its second derivative is dear on a CPU.
#
# ## Beginning with a smaller one
#
# Large shapes are learned first, and a small generator learns them at a fraction of the cost. Its successor need not forget them. The StyleGAN2 of twice the size has the same layers and one block more, so the old weights fit. If the RGB layer of the new block is zero, the picture is the old one, enlarged, and training goes on from there. This is progressive growing [@karras2018progressive] in one step, without its fading. Its opponent is the weak spot: the trainer's discriminator still begins from nothing, against pictures that are good already. If its loss stays on the line of an undecided one, $G$ learns nothing new.

# %%
#| export
def grow(net):
    """A StyleGAN2 of twice the size that draws the same pictures enlarged.

    It has all weights of `net`, and a random new block, whose RGB layer is 0.
    """
    big = StyleGAN2(**net.config | dict(size=2 * net.config["size"]))
    big.load_state_dict(big.state_dict() | net.state_dict())
    torch.nn.init.zeros_(big.synthesis.to_rgbs[-1].conv.weight)
    return big


# %%
little = StyleGAN2(16, 16, 2, narrow=1 / 32)
big, z = grow(little), torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
with torch.no_grad():
    same = big.synthesis.to_rgbs[-1].resample.up(little(z))
    assert_close(big(z), same, rtol=0, atol=1e-6)
big(z).square().mean().backward()
block = big.synthesis.convs[-1].conv.weight.grad, big.synthesis.to_rgbs[-1].conv.weight.grad
# at first only the new RGB layer learns; then its block does
assert block[0].abs().max() == 0 and block[1].abs().max() > 0


# %% [markdown]
# ## The trainer
#
# The class below adds to @sec-engine only what is a prior's own: two networks, up to four phases, and the codes. Read `__init__` as the list of who plays, and each `*_terms` as one summand of @eq-train-prior-game. The augmentation stands before every call of $D$.

# %%
#| export
class PriorTrainer(Trainer):
    """StyleGAN2 against its discriminator: PriorTrainer(config, data folder, run folder).fit().

    `init_from`: a StyleGAN2 to begin with; a smaller one is grown.
    """

    def __init__(self, config, data, out=None, device=None, init_from=None):
        torch.manual_seed(config.run.seed)
        c = config
        g = StyleGAN2(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, c.narrow,
                      resample=c.resample)
        d = Discriminator(c.size, c.channel_multiplier, c.narrow_d)
        while init_from is not None and init_from.config["size"] < c.size:
            init_from = grow(init_from)
        if init_from is not None:
            g.load_state_dict(init_from.state_dict())
        if isinstance(data, (str, Path)):
            data = FaceFolder(data, c.size, seed=c.run.seed, flip=c.flip, boxes=None,
                              degraded=False)
        lazy = lambda every: every / (every + 1)
        optimizers = dict(g=adam(g, c.lr * lazy(c.path_every), (0.0, 0.99), c.path_every),
                          d=adam(d, c.lr * lazy(c.r1_every), (0.0, 0.99), c.r1_every))
        phases = [Phase("g", self.g_terms)]
        phases += [Phase("g", self.path_terms, c.path_every)] * (c.path > 0)
        phases += [Phase("d", self.d_terms)] + [Phase("d", self.r1_terms, c.r1_every)] * (c.r1 > 0)
        super().__init__(config, out, dict(g=g, d=d), optimizers, phases, "g", data, stepwise(()),
                         device=device)
        self.extra["path_mean"] = torch.zeros((), device=self.device)
        rng = torch.Generator().manual_seed(c.run.seed + 1)
        self.shown = torch.randn(32, c.style_dim, generator=rng)


# %% [markdown]
# Every iteration needs its random codes and cuts, which become pictures.

# %%
#| export
@patch
def inputs(self: PriorTrainer, batch):
    """Adds the random codes.

    Each process draws those of all and takes its own, so that their number does not matter.
    """
    n, rng = self.run.batch, torch.Generator().manual_seed(self.seed(shared=True))
    mine = slice(self.rank, None, self.world)
    dtype, d = next(self.nets["g"].parameters()).dtype, self.config.style_dim
    draw = lambda *shape: torch.randn(n, *shape, generator=rng, dtype=dtype)[mine].to(self.device)
    L = self.nets["g"].synthesis.n_codes
    cuts = torch.randint(1, L, (n,), generator=rng)
    cuts = torch.where(torch.rand(n, generator=rng) < self.config.mixing, cuts, L)
    return batch | dict(z_g=draw(2, d), z_d=draw(2, d), cut=cuts[mine].to(self.device))


@patch
def generate(self: PriorTrainer, g, z, cut):
    return g.synthesis(mixed_codes(g, z, cut), noise=self.config.noise)


# %% [markdown]
# The generator's two terms, $\mathcal L_G$. The second derivatives of path length are dear, so it looks at half of the batch.

# %%
#| export
@patch
def g_terms(self: PriorTrainer, b):
    fake = self.call(partial(self.generate, self.nets["g"]), b["z_g"], b["cut"])
    return {"g": g_logistic(self.call(self.fast["d"], augment(fake, self.config.augment)))}


@patch
def path_terms(self: PriorTrainer, b):
    g, half = self.nets["g"], max(1, len(b["cut"]) // 2)
    w = mixed_codes(g, b["z_g"][:half], b["cut"][:half])
    picture = g.synthesis(w, noise=self.config.noise)
    penalty, mean, _ = path_length(picture, w, self.extra["path_mean"])
    self.extra["path_mean"] = self.mean_over_processes(mean.detach())
    return {"path": self.config.path * self.config.path_every * penalty}


# %% [markdown]
# The discriminator's two terms, $\mathcal L_D$. Nothing flows back into $G$ from here.

# %%
#| export
@patch
def d_terms(self: PriorTrainer, b):
    with torch.no_grad():
        fake = self.call(partial(self.generate, self.nets["g"]), b["z_d"], b["cut"])
    d = lambda x: self.call(self.fast["d"], augment(x, self.config.augment))
    return {"d": d_logistic(d(b["gt"]), d(fake))}


@patch
def r1_terms(self: PriorTrainer, b):
    x = augment(b["gt"], self.config.augment).detach().requires_grad_(True)
    return {"r1": self.config.r1 / 2 * self.config.r1_every * r1(self.nets["d"](x), x)}


# %% [markdown]
# What there is to look at while it runs:

# %%
#| export
@patch
@torch.no_grad()
def validate(self: PriorTrainer):
    "A sheet of 4 × 8 samples of the average, the same codes each time."
    codes = self.shown.to(next(self.ema.parameters())).split(8)
    faces = to_images(torch.cat([self.ema(z, noise="fixed") for z in codes]))
    rows = faces.reshape(4, 8, *faces.shape[1:])
    return {}, np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


# %% [markdown]
# R1 looks at the picture that $D$ really sees, so its derivative is taken after the augmentation. $G$ and $D$ get different codes in the same iteration: a picture that $G$ has just been corrected for would be an odd one to judge by.
#
# Four properties are checked on a small trainer. First, in iteration 16 one step of $D$ uses the sum of the two gradients. Second, path length runs in every fourth iteration and moves its mean then. Third, nobody else's parameters move. Fourth, three processes together draw the codes that one would draw.

# %%
class Noise:
    "A stand-in data set."
    def __len__(self):
        return 12

    def __getitem__(self, key):
        rng = torch.Generator().manual_seed(key[1])
        return {"gt": torch.rand(3, 16, 16, generator=rng) * 2 - 1}


config = PriorConfig.tiny()
config = replace(config, size=16, style_dim=16, augment=(), noise="zero",
                 run=replace(config.run, batch=12))
t = PriorTrainer(config, Noise(), device="cpu")
batch = {"gt": torch.stack([Noise()[0, i]["gt"] for i in range(12)])}

t.it, before = 16, {k: v.clone() for k, v in t.nets["d"].state_dict().items()}
t.iteration(batch)
d, b = t.nets["d"], t.inputs(batch)
summed = [p.grad.clone() for p in d.parameters()]
assert {s["step"].item() for s in t.optimizers["d"].state.values()} == {1.0}
assert set(t.logs) >= {"g", "path", "d", "r1"}
d.load_state_dict(before)        # the D that was asked; G has moved by then, as in the iteration
alone = [torch.autograd.grad(terms(b)[name], d.parameters(), allow_unused=True)
         for name, terms in (("d", t.d_terms), ("r1", t.r1_terms))]
for got, parts in zip(summed, zip(*alone)):
    assert_close(got, sum(p for p in parts if p is not None), rtol=1e-3, atol=1e-5)

# %%
t = PriorTrainer(config, Noise(), device="cpu")
for it in range(1, 6):
    old, t.it = t.extra["path_mean"].clone(), it
    t.iteration(batch)
    assert ("path" in t.logs) == (t.extra["path_mean"] != old).item() == (it % 4 == 0)

t.it, codes = 7, {}
for world in (1, 3):
    t.world, codes[world] = world, []
    for t.rank in range(world):
        codes[world].append(t.inputs({}))
for name in ("z_g", "z_d", "cut"):
    together = torch.stack([c[name] for c in codes[3]], 1).flatten(0, 1)     # 0, 1, 2, 0, 1, 2, …
    assert torch.equal(together, codes[1][0][name])
assert not torch.equal(codes[1][0]["z_g"], codes[1][0]["z_d"])

# %% [markdown]
# The share of mixed pictures and the range of the cuts can be counted, too:

# %%
t = PriorTrainer(replace(config, run=replace(config.run, batch=3000)), Noise(), device="cpu")
cuts, L = t.inputs({})["cut"], t.nets["g"].synthesis.n_codes
mixed = (cuts < L).double().mean().item()
print(f"{mixed:.2f} of the pictures are mixed, "
      f"cuts {cuts[cuts < L].min()} to {cuts[cuts < L].max()} of {L} layers")
assert abs(mixed - 0.9) < 0.02 and set(cuts.tolist()) == set(range(1, L + 1))


# %% [markdown]
# ## Put together: a prior in seconds
#
# A live training needs data that are quickly learned. The cell draws 256 heads of 16 px: one palette, with skin, hair, background, width and position at random. They are toys, and they make the outcome measurable, because their statistics are known.

# %%
class Dolls:
    "256 drawn heads, 16 × 16, as a data set."
    def __init__(self, n=256, size=16, rng=np.random.default_rng(0)):
        y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
        disc = lambda cx, cy, rx, ry: (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)[..., None]
        self.x = torch.empty(n, 3, size, size)
        for i in range(n):
            sky = np.array([-0.6, -0.1, 0.5]) + rng.uniform(-0.3, 0.3, 3)
            hair = np.array([-0.3, -0.6, -0.8]) + rng.uniform(-0.15, 0.3)
            skin = np.array([0.9, 0.55, 0.3]) * rng.uniform(0.3, 1)
            at, w = rng.uniform(-0.15, 0.15), rng.uniform(0.45, 0.6)
            mouth = disc(at, 0.45, rng.uniform(0.15, 0.3), 0.1)
            shapes = ((disc(at, -0.1, w + 0.15, 0.75), hair), (disc(at, 0.1, w, 0.72), skin),
                      (disc(at - 0.22, 0, 0.1, 0.1), -0.9), (disc(at + 0.22, 0, 0.1, 0.1), -0.9),
                      (mouth, np.array([0.6, -0.5, -0.5])))
            picture = sky + np.zeros((size, size, 1))
            for shape, colour in shapes:
                picture = np.where(shape, colour, picture)
            self.x[i] = torch.from_numpy(picture).permute(2, 0, 1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        return {"gt": self.x[key[1]]}


# %% [markdown]
# The training is one call of `fit`, as in the command line. The run folder keeps a line of numbers for every fifth iteration. $\gamma$ is 2 here: how much R1 a game needs depends on size and batch, and for 16 px the standard 10 is a lot.

# %% tags=["volatile"]
dolls, folder = Dolls(), Path(tempfile.mkdtemp())
run = replace(PriorConfig.tiny().run, iterations=350, ema_images=200.0, log_every=5,
              valid_every=350, save_every=350)
config = replace(PriorConfig.tiny(), size=16, r1=2.0, path=0.0, lr=4e-3, noise="zero", augment=(),
                 run=run)
t = PriorTrainer(config, dolls, folder, device="cpu")


def samples(n=256):
    z = torch.randn(n, config.style_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return t.ema(z, noise="zero")


def gap(made):
    """How far `made` is from the dolls: (the mean picture, the spread of each pixel).

    The third number is the agreement of the mean pictures.
    """
    rms = lambda a, b: (a - b).square().mean().sqrt().item()
    mean, wanted = made.mean(0), dolls.x.mean(0)
    agreement = np.corrcoef(mean.flatten(), wanted.flatten())[0, 1]
    return rms(mean, wanted), rms(made.std(0), dolls.x.std(0)), agreement


before = samples()
ended = t.fit()
after = samples()
was, now = gap(before), gap(after)
print("before: mean off by {:.1f}, spread off by {:.1f}, agreement {:.1f}".format(*was))
print("after:  mean off by {:.1f}, spread off by {:.1f}, agreement {:.1f}".format(*now))
assert ended == "done" and now[0] < was[0] / 2 and now[1] < was[1] / 2 and now[2] > 0.7 > was[2]

# %%
#| label: fig-train-prior-curves
#| fig-cap: "The live game: both losses, with the values of an undecided discriminator dashed."
#| fig-alt: "Two noisy curves over the pictures seen; neither falls steadily."
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
seen = [r["images"] for r in lines]
fig, ax = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
for name, colour, level in (("g", "#0072B2", np.log(2)), ("d", "#D55E00", 2 * np.log(2))):
    ax.plot(seen, [r[name] for r in lines], color=colour, label=f"loss of {name.upper()}")
    ax.axhline(level, color=colour, lw=0.8, ls="--")
ax.set(xlabel="pictures seen", ylabel="loss"), ax.legend(fontsize=8);

# %%
#| label: fig-train-prior-dolls
#| fig-cap: "Twelve dolls of the data (top), and twelve samples for the same codes before and after the live training."
#| fig-alt: "Drawn heads; coloured blots; and blurred heads with hair on a blue background."
titles = sum(([n] + [""] * 11 for n in ("dolls", "before", "after")), [])
show([*dolls.x[:12], *before[:12], *after[:12]], titles, cols=12, height=0.7);

# %% [markdown]
# In @fig-train-prior-curves both losses wander. $D$ stays ahead of an undecided one, $G$ keeps pressing, and neither curve tells how far one is. @fig-train-prior-dolls tells it. After some thousand pictures the samples have the background, the hair and the skin where they belong. Eyes and mouth are a smear at best. This order, colour before layout before detail, is that of large trainings, too.
#
# ## The bundled prior
#
# The package brings a prior that was trained with the preset `faces64`. The cell reads its story from the result file of that run, not from this text. It is small and has seen few pictures, so expect faces, not portraits.

# %% tags=["volatile"]
story = json.loads(Path("../figures/prior64.json").read_text())
sheet = cv2.imread("../figures/prior64.png")[..., ::-1]
print(f"{story['command']}\n"
      f"{story['data']}; {story['hardware']}; torch {story['torch']}; {story['date']}")
print(story["history"])
print(f"{story['parameters']:,} parameters, {story['images']:,} pictures seen "
      f"in {story['minutes']:.0f} minutes: {story['images'] / 25e6:.1%} of the 25 million "
      "that StyleGAN2's authors use")
assert sheet.shape == (64 * len(story["rows"]), 64 * 12, 3) and story["config"]["size"] == 64
chroma = lambda row: np.ptp(sheet[64 * row:64 * row + 64].astype(float), axis=2).mean()
assert chroma(len(story["rows"]) - 1) < 0.8 * chroma(0)     # the wild colours of the start are gone

# %% tags=["volatile"]
#| label: fig-train-prior-story
#| fig-cap: "The stored run. Left of each row: pictures seen. The same seven codes in every row, none picked; shrunk to 32 px."
#| fig-alt: "Rows of small pictures, from coloured blots at the top to later stages below."
seen = story["rows"][:-1]
half = cv2.resize(sheet[:64 * len(seen), :448], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
fig, ax = plt.subplots(figsize=(6, 0.8 * len(seen) + 0.1), layout="constrained")
ax.imshow(half, interpolation="nearest")
ax.set_yticks([32 * i + 16 for i in range(len(seen))], [f"{r:,}" for r in seen], fontsize=8)
ax.tick_params(length=0), ax.set_xticks([]), [s.set_visible(False) for s in ax.spines.values()];

# %% tags=["volatile"]
#| label: fig-train-prior-samples
#| fig-cap: "Eight samples of the bundled prior, truncation 0.7, none picked."
#| fig-alt: "A row of eight small pictures made by the bundled prior."
show([sheet[-64:, 64 * i:64 * i + 64] for i in range(8)], cols=8, height=1.0);

# %% tags=["volatile"]
#| label: fig-train-prior-run
#| fig-cap: "The stored run: losses of both players, with the values of an undecided discriminator dashed, and the R1 term."
#| fig-alt: "Curves of two losses over the pictures seen, and of the penalty."
fig, axes = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained")
for ax, names in zip(axes, (("g", "d"), ("r1",))):
    for name, colour in zip(names, ("#0072B2", "#D55E00") if len(names) == 2 else ("#009E73",)):
        points = np.array(story["curves"][name])
        ax.plot(points[:, 0] / 1000, points[:, 1], color=colour, label=name, lw=1)
        if name in "gd":
            ax.axhline(np.log(2) * (1 + (name == "d")), color=colour, lw=0.8, ls="--")
    ax.set(xlabel="thousand pictures seen", ylim=(0, None)), ax.legend(fontsize=8)

# %% [markdown]
# Read @fig-train-prior-story down one column: the code is the same. The saturated blots of the untrained network give way to heads with coarse stripes for eyes and mouth. Hair and features get their shapes after that, skin and teeth last. @fig-train-prior-samples has the final samples, with codes drawn towards the mean (@eq-truncation): less variety, fewer accidents.
# @fig-train-prior-run shows the balance, and a mistake. The run began with all three augmentations, and the loss of $D$ crept towards its dashed line: with the colours changed, the place shifted and a hole cut out, a small $D$ could hardly tell the two kinds apart, and $G$ had nobody to learn from. At the step in the curve (the printed history says when) they were switched off. The loss of $D$ fell, and the faces cleared up. Augmentation is a cure for a $D$ that has learned its few faces by heart, which takes many more passes over the data than such a run makes; given too early it is the illness. How far the loss of $D$ is from its dashed line tells how well $D$ still tells the two kinds apart, so look at it first.
#
# The prior can be asked what it has put where. In @fig-train-prior-mix two codes meet at different cuts.

# %% tags=["volatile"]
#| label: fig-train-prior-mix
#| fig-cap: "The bundled prior with two codes and four cuts. Layers before the cut follow the first code."
#| fig-alt: "Six small pictures that change from the picture of one code to that of another."
net = load_prior().requires_grad_(False)
g, L = torch.Generator().manual_seed(1), net.synthesis.n_codes
centre = net.mean_w(generator=torch.Generator().manual_seed(0))
cuts = [L, 8, 6, 4, 2, 0]
z = torch.randn(1, 2, net.config["style_dim"], generator=g).expand(len(cuts), -1, -1)
w = mixed_codes(net, z, torch.tensor(cuts))
pictures = net.synthesis(centre + 0.7 * (w - centre), noise="fixed")
titles = ["first code"] + [f"cut at {c}" for c in cuts[1:-1]] + ["second code"]
show(list(pictures), titles, cols=6, height=1.1);

# %% [markdown]
# From left to right the second code takes over, from the fine layers to the coarse. Colours change first, because they live in the last layers. Shape and pose change last.
#
# ## A quarter of the pixels
#
# The preset `faces32` made the second prior of the package, `load_prior("prior32")`, on which the ablations of @sec-evaluation build. The same pictures, at a quarter of the pixels, through a thinner network, with $\gamma=0.1$.

# %% tags=["volatile"]
#| label: fig-train-prior-32
#| fig-cap: "Twelve samples of prior32, truncation 0.7, none picked."
#| fig-alt: "A row of twelve small faces."
small = json.loads(Path("../figures/prior32.json").read_text())
print(f"{small['command']}\n{small['images']:,} pictures seen in {small['minutes']:.0f} minutes, "
      f"{small['parameters']:,} parameters, {small['hardware']}")
sheet = cv2.imread("../figures/prior32.png")[..., ::-1]
assert small["config"]["size"] == 32 and sheet.shape == (32 * len(small["rows"]), 32 * 12, 3)
assert small["images"] < story["images"] and small["minutes"] < story["minutes"]
show([sheet[-32:, 32 * i:32 * i + 32] for i in range(12)], cols=12, height=0.6);

# %% [markdown]
# For faces of this size, fewer pictures and a fraction of the time were enough (@fig-train-prior-32). Small pictures are an easier distribution: here $D$ coped with the augmentations that held it back at 64 px. To begin with a small prior and grow it is therefore worth a try where machines are few.
#
# ## Your own prior
#
# ```
# gfpgan-edu prepare photos/ --out faces/ --size 64
# gfpgan-edu train prior --preset faces64 --data faces/ --out runs/mine --minutes 60
# gfpgan-edu train prior --preset faces64 --data faces/ --out runs/mine
# ```
#
# The second line stops after an hour, the third goes on where it stopped. `--init-from bundled` begins with the bundled prior instead of noise, `--init-from prior32 --set size=64` grows the small one; watch the loss of $D$, which begins from nothing in both cases. The run leaves `ema.safetensors`, and `--prior runs/mine/ema.safetensors` puts it under a restorer. With `faces128` or `paper` take a GPU. What a large run costs is counted in @sec-full-scale.
#
# ## Paper, official code, ours
#
# | what | paper | official code | ours | why |
# |---|---|---|---|---|
# | the prior | a pretrained StyleGAN2 of 512 px | loads a released checkpoint; brings no trainer for it | trained here, or the official file | the book ends nowhere in a black box |
# | channels | multiplier 1 | 1 | the preset `paper`; `narrow` for small ones | a laptop |
# | R1, path length | not stated | not used on the prior, which is frozen | StyleGAN2's: $\gamma=10$ every 16, weight 2 every 4 iterations | the prior is a StyleGAN2 |
# | lazy steps | – | StyleGAN2 takes a step for each penalty | one step with the summed gradient, StyleGAN2's rates | one rule for all players of the engine |
# | path length off | – | – | the rates of $G$ keep the factor 4/5 | learning rates stay comparable |
# | augmentation | – | – | DiffAugment, for both kinds of pictures | thousands of faces, not 70,000 |
# | R1 and augmentation | – | – | the slope at the augmented picture | it is what $D$ judges |
# | random codes | – | – | drawn for all processes from (seed, iteration), then shared out | one GPU or eight: the same codes |
# | average | – | half-life 10,000 pictures in StyleGAN2 | the same | counts pictures, so the batch may change |
#
# : Where the three versions of the prior's training differ {#tbl-train-prior-versions}
#
# @tbl-train-prior-versions is mostly ours, because the paper starts where this chapter ends.
#
# ## What users trip over
#
# ::: {.callout-warning}
# **"Do I have to train a StyleGAN2 first?"** Not at 512 px: the official prior loads with `--prior`. At any other size nobody has published one, and yes, then this chapter comes first.
#
# **"The samples all look alike."** The generator has found a few faces that $D$ accepts. Look at the sheet, not at the losses. More augmentation or a higher $\gamma$ helps; so does more data.
#
# **"My loss stopped falling."** It is a game. Compare sheets of the same codes that are hours apart.
#
# **"The loss of D sits on the dashed line."** Then $D$ cannot tell the two kinds apart, and $G$ learns little from it. Often $\gamma$ is too large: R1 flattens $D$. The authors of @karras2020ada choose $\gamma$ in proportion to pixels over batch, which for small pictures is far below 10. The dolls got 2.
#
# **"NaN with a small batch."** Path length on two pictures is noisy. Set `path=0` or raise `path_every`. The engine stops at the first value that is not finite and names the last good checkpoint.
# :::
#
# ## Summary
#
# * A prior needs sharp faces only. A third of the paper's restorer is such a prior, and it does not learn from pairs.
# * R1 and path length run in every 16th and 4th iteration, with weights to match (@eq-train-prior-lazy).
# * Mixed codes (@eq-train-prior-mixing) keep layers independent, which GFP-GAN relies on.
# * Augmentation stands before every call of the discriminator, and the gradient passes through it.
# * Losses of a GAN show the balance. Progress is seen in samples of fixed codes, and here in the statistics of toys.
#
# With a prior at hand, @sec-train-restorer trains the network around it.
#
# ## Exercises
#
# 1. **Compute.** With a hole of half the side and its centre anywhere, which share of a picture survives on average? Compare with the check of `augment_hole`, then find the share after all three augmentations.
# 2. **Modify.** Train the dolls with $\gamma$ = 0.1 and 50. Describe both curves. In which of the two does $D$ win?
# 3. **Break.** Augment only the real pictures in `d_terms`, with `place`. What do the samples of the dolls learn? Which checks of this chapter notice?
#
# Worked solutions: [nbs/solutions/14_train_prior.ipynb](solutions/14_train_prior.ipynb).
#
# ## References
#
# Generator, R1 interval and path length are those of @karras2020stylegan2, mixing is from @karras2019stylegan. The augmentations are DiffAugment [@zhao2020diffaugment]; @karras2020ada reach the same end with a strength that adapts. GFP-GAN [@wang2021gfpgan] takes its prior ready-made.

# %% [markdown]
# # Weights {#sec-weights}
#
# > Numbers and names: how a trained network is stored, recognised, converted, fetched, and kept from running a stranger's code.
#
# **You will build** a file format for our own weights, a translator between our names and those of the official code, the conversion into the
# clean form, a registry of the released models, and a download that survives a broken line.
# **Needs** @sec-gfpgan and, for the scales, @sec-layers. **Runs in** about 10 s on a laptop CPU, without a network.

# %%
#| default_exp weights

# %%
import struct
import tempfile
import threading
from contextlib import redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from IPython.display import Markdown
from fastcore.test import test_fail
from torch.testing import assert_close

from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.layers import Resample

# %% [markdown]
# The network of @sec-gfpgan is complete, and its weights make it worth anything. @fig-weights-map shows which parts carry some: at 512 px 285 tensors, in the narrow model as in the wide one.

# %%
#| label: fig-weights-map
#| fig-cap: "The parts whose weights a file holds."
#| fig-alt: "Block diagram of the method with the U-Net, the codes, scale and shift, and StyleGAN2 coloured."
draw_map("unet", "latent", "csft", "stylegan2");

# %%
#| export
import hashlib
import http.client
import json
import math
import os
import re
import sys
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.layers import EqualizedConv2d, EqualizedLinear
from gfpgan_edu.stylegan2 import ModulatedConv2d, StyleConv, StyleGAN2


# %% [markdown]
# ## A weights file can run code {#sec-weights-pickle}
#
# Every released GFP-GAN is a `.pth` file, and a `.pth` file is a *pickle*. A pickle is not a table of numbers. It is a small program that rebuilds
# objects, and one of its instructions is "call this function with these arguments". Whoever makes the file chooses the function. People fetch such
# files from forums and mirrors, and then load them with all the rights of their account.
#
# The next cell plays the attacker, harmlessly: its file, when unpickled, writes a marker file of ours into a temporary folder. The plain pickle module
# obeys. `torch.load(weights_only=True)` knows only a short list of functions that rebuild tensors, and refuses.

# %%
class Attack:
    "Unpickling one calls Path.write_text, which stands for anything an attacker might call."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "your account, my code")


# %%
work = tempfile.TemporaryDirectory()
folder = Path(work.name)
marker, bad_file = folder / "marker.txt", folder / "GFPGANv9.pth"
torch.save({"params_ema": {"conv_body_first.weight": Attack(marker)}}, bad_file)

torch.load(bad_file, weights_only=False)                     # the old default
assert marker.read_text() == "your account, my code"
marker.unlink()
test_fail(lambda: torch.load(bad_file, weights_only=True), contains="Weights only load failed")
assert not marker.exists()


# %% [markdown]
# So this package reads foreign pickles with `weights_only=True` and nothing else, and it writes none. Anything that is wrong with a file becomes one kind of
# error, and its message names the file, because a user who restores four hundred photos with a script wants to know which file to look at.

# %%
#| export
class WeightsError(ValueError):
    "A weights file that cannot be read, trusted or matched; the message names file and reason."


# %% [markdown]
# ## A file that cannot {#sec-weights-format}
#
# The safetensors format holds no program. Its layout fits in one line: eight bytes with the length $n$ of a header, $n$ bytes of JSON that
# say for each tensor its type, shape and place, then the bare numbers. A field for free text is part of the header, and there goes what a `.pth` lacks:
# the configuration of the network (@sec-gfpgan). A file of ours rebuilds its network with no further information.
#
# Writing is atomic. The file grows under another name and takes its own name when it is complete, so a crash leaves the old file or the new one, never half of one.

# %%
#| export
def save(net, path, dtype=None, **metadata):
    """Write `net` (anything with a `.config`) to a safetensors file, config in the header,
    atomically; `dtype=torch.float16` halves the size.

    Further keyword arguments are kept as strings in the header. Weights that are not finite, or
    become so in `dtype`, are a WeightsError.
    """
    state = {k: v.detach().to("cpu", dtype if v.is_floating_point() else None).contiguous().clone()
             for k, v in net.state_dict().items()}
    for k, v in state.items():
        if not torch.isfinite(v).all():
            raise WeightsError(f"{path}: not written, {k} holds NaN or infinity in {v.dtype}")
    config = net.config if isinstance(net.config, dict) else net.config.to_dict()
    header = {k: str(v) for k, v in metadata.items()}
    header |= {"format": "gfpgan_edu", "network": type(net).__name__, "config": json.dumps(config)}
    tmp = Path(path).with_name(Path(path).name + ".part")
    try:
        # safetensors' save_file would make it readable for its owner only
        tmp.write_bytes(to_bytes(state, metadata=header))
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


# %% [markdown]
# To see that there is nothing behind the format, the check reads a file back with `struct` and `json` alone, finds the config, and takes one tensor out of the bytes by hand.

# %%
torch.manual_seed(0)
tiny = GFPGAN(GFPGANConfig.tiny())
path = folder / "tiny.safetensors"
save(tiny, path, run="demo", step=1)

# %%
raw = path.read_bytes()
n = struct.unpack("<Q", raw[:8])[0]                           # little-endian, 64 bits
header = json.loads(raw[8:8 + n])
entry = header["to_w.weight"]
start, end = entry["data_offsets"]
by_hand = np.frombuffer(raw[8 + n + start:8 + n + end], "<f4").reshape(entry["shape"])
assert np.array_equal(by_hand, tiny.to_w.weight.detach().numpy())
assert GFPGANConfig.from_dict(json.loads(header["__metadata__"]["config"])) == tiny.config
# and not a byte more
assert len(raw) == 8 + n + 4 * sum(v.numel() for v in tiny.state_dict().values())
about = {k: header["__metadata__"][k] for k in ("format", "run", "step")}
print(entry["dtype"], entry["shape"], about)

# %% [markdown]
# ## Loading without trust {#sec-weights-load}
#
# A loader that copies what fits and skips the rest produces a network that runs and is wrong. `load` is strict: the same names, the same shapes, only finite
# numbers. It checks names and shapes before it builds anything, against an outline of the network, so a header that lies about the size costs no memory. What a message quotes from the file is cut to one short line.

# %%
#| export
MAX_HEADER = 10_000_000    # bytes; those of the official models would be 30,000


def _short(text):
    "A message or name out of a file nobody has checked, on one line of bounded length."
    text = " ".join(str(text).split())
    return text if len(text) <= 300 else text[:300] + " …"


def read_header(path):
    """The header of a safetensors file of ours as a dict. Raises WeightsError.

    `config` is a GFPGANConfig (a dict where it holds another `network`).
    """
    try:
        if not Path(path).is_file():                          # a pipe would keep us waiting
            raise OSError("no such file")
        with open(path, "rb") as f:
            if (n := int.from_bytes(f.read(8), "little")) > MAX_HEADER:
                raise OSError(f"its header claims {n} bytes")
        with safe_open(path, "pt") as f:
            meta = dict(f.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path}: not a readable safetensors file ({_short(e)})") from e
    try:
        meta["config"] = json.loads(meta["config"])
        if not isinstance(meta["config"], dict):
            raise TypeError("not a table of names and values")
        if meta.setdefault("network", "GFPGAN") == "GFPGAN":
            meta["config"] = GFPGANConfig.from_dict(meta["config"])
    except (KeyError, ValueError, TypeError, ArithmeticError, RecursionError) as e:
        raise WeightsError(f"{path}: no usable config in the header ({_short(e)})") from e
    return meta


# %%
#| export
def _compare(given, wanted, source):
    "Raise WeightsError unless the two {name: shape} agree."
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unexpected:
        raise WeightsError(f"{source}: {len(missing)} keys missing {missing[:3]}, "
                           f"{len(unexpected)} unexpected {_short(unexpected[:3])}")
    for k, shape in wanted.items():
        if tuple(given[k]) != tuple(shape):
            raise WeightsError(f"{source}: {k} is {tuple(given[k])}, needs {tuple(shape)}")


class _Outline(TorchFunctionMode):
    """New tensors hold one number, read again and again: the names and shapes of a network without
    its memory. (Torch's meta device does as much, but its first operation imports 900 modules: two
    seconds and 150 MB.)"""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = next(iter([*args, *kwargs.values()]), None)
        if func in (torch.randn, torch.zeros, torch.ones, torch.empty, torch.full):
            return torch.zeros(()).expand(first if isinstance(first, (tuple, list)) else args)
        outline = isinstance(first, torch.Tensor) and first.ndim and not any(first.stride())
        # times a number, or filled in place
        if outline and (func is torch.Tensor.mul
                        or func.__name__.strip("_") + "_" == func.__name__):
            return first
        return func(*args, **kwargs)


def _outline(build, source):
    "The state dict of `build()`, names and shapes only. One beyond all measure is a WeightsError."
    try:
        with _Outline():
            return build().state_dict()
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as e:
        raise WeightsError(f"{source}: describes a network that cannot be built "
                           f"({_short(e)})") from e


# %%
#| export
def _fill(net, pairs, source):
    """Copy pairs (name, tensor), whose names and shapes agree with those of `net`, into it.

    Every weight must be a finite float, also in the network's precision.
    """
    own = net.state_dict()
    for k, v in pairs:
        # only counters are whole numbers
        floating = own[k].is_floating_point()
        if v.is_floating_point() != floating:
            raise WeightsError(f"{source}: {k} holds {v.dtype}, "
                               f"needs {'floating-point' if floating else 'whole'} numbers")
        v = v.to(own[k].dtype)
        # NaN passes through both; no copy of a large tensor is made
        if v.numel() and not torch.stack(v.aminmax()).isfinite().all():
            raise WeightsError(f"{source}: {k} holds NaN or infinity")
        own[k].copy_(v)
    return net.eval()


def _one_by_one(path, names):
    "Pairs (name, tensor), the file opened for each: what is read of an open file counts as memory."
    for k in names:
        with safe_open(path, "pt") as f:
            yield k, f.get_tensor(k)


# %%
#| export
def load(path, network=GFPGAN):
    """Read a safetensors file written by `save` -> GFPGAN, or another class of this package named
    by `network`, in float32, eval mode.

    Raises WeightsError that names the file and the reason.
    """
    header = read_header(path)
    if header["network"] != network.__name__:
        raise WeightsError(f"{path}: holds a {_short(header['network'])}, "
                           f"needs a {network.__name__}")
    config = header["config"]
    build = (lambda: network(**config)) if isinstance(config, dict) else lambda: network(config)
    try:
        with safe_open(path, "pt") as f:
            given = {k: f.get_slice(k).get_shape() for k in f.keys()}
            n_mlp = config.get("n_mlp", 0) if isinstance(config, dict) else config.n_mlp
            # the one number that could make even the outline endless
            if not isinstance(n_mlp, int) or n_mlp > len(given):
                raise WeightsError(f"{path}: {len(given)} tensors for {_short(n_mlp)} "
                                   "mapping layers")
            _compare(given, {k: v.shape for k, v in _outline(build, path).items()}, path)
        # copying returns to 32 bits
        return _fill(build(), _one_by_one(path, given), path)
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path}: {_short(e)}") from e


# %% [markdown]
# The round trip is exact to the last bit. The other half of the check forges files: a key too few, one too many, a wrong shape, a NaN, a cut-off end, a header that describes another network or a monstrous one.

# %%
def same_weights(a, b):
    "Whether two networks hold the same numbers."
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


loaded = load(path)
assert loaded.config == tiny.config and not loaded.training
assert same_weights(tiny, loaded)


# %%
def forge(name, state=None, **changes):
    "A file whose tensors or config were tampered with."
    config = json.dumps(tiny.config.to_dict() | changes)
    forged = folder / f"{name}.safetensors"
    forged.write_bytes(to_bytes(state or tiny.state_dict(), metadata={"config": config}))
    return forged


# %%
state = tiny.state_dict()
first = state["unet.first.weight"]
lies = {"1 keys missing": forge("less", {k: v for k, v in state.items() if k != "to_w.bias"}),
        "1 unexpected": forge("more", state | {"extra": first.clone()}),
        "needs (8, 3, 1, 1)": forge("shape", state | {"unet.first.weight": first[:4].clone()}),
        "NaN": forge("nan", state | {"unet.first.weight": first * float("nan")}),
        "unknown config keys": forge("key", colour="red"), "is (": forge("wide", narrow=4),
        "below 1000": forge("vast", narrow=1e9), "at most 100": forge("deep", n_mlp=10**9)}
lies["not a readable"] = folder / "cut.safetensors"
lies["not a readable"].write_bytes(raw[:-1000])
for reason, forged in lies.items():
    test_fail(lambda: load(forged), exc=WeightsError, contains=reason)
    test_fail(lambda: load(forged), exc=WeightsError, contains=str(forged))

# %% [markdown]
# One model comes inside the package, so that everything works without a network. It is found beside the code, also in an installed copy.

# %%
#| export
BUNDLED = "faces64"    # the restorer in gfpgan_edu/bundled


def bundled_path():
    "Where the model that comes with the package lies."
    return Path(str(resources.files("gfpgan_edu.bundled") / f"{BUNDLED}.safetensors"))


# %%
bundled = load(bundled_path())
card = read_header(bundled_path())
assert bundled.config == card["config"] and "licence" in card
default, config = GFPGANConfig(), bundled.config.to_dict()
print(bundled_path().name, {k: v for k, v in config.items() if v != getattr(default, k)})

# %% [markdown]
# ## Half the bytes {#sec-weights-half}
#
# Weights are trained in 32 bits, but need they be shipped so? A 16-bit float keeps 11 significant bits. Rounding to it changes a number by at most a
# part in $2^{11}$, about 0.05 %, unless it is so small (below $2^{-14}$) that the spacing stops shrinking. `save(..., dtype=torch.float16)` halves the file, and `load` returns to 32 bits for the arithmetic.
# The model that comes with this package is stored that way. The check holds every weight of a tiny net to that bound, and @fig-weights-half shows what the rounding does to a picture.

# %%
half_path = folder / "half.safetensors"
save(tiny, half_path, dtype=torch.float16)
half = load(half_path)
assert half_path.stat().st_size < 0.55 * path.stat().st_size
for a, b in zip(tiny.parameters(), half.parameters(), strict=True):
    assert b.dtype == torch.float32 and ((a - b).abs() <= a.abs() * 2**-11 + 2**-25).all()

# %%
# two bytes each
assert bundled_path().stat().st_size < 2.1 * sum(v.numel() for v in bundled.state_dict().values())
huge = GFPGAN(GFPGANConfig.tiny(8))
# 16 bits end at 65,504: better no file than one that cannot be loaded
huge.to_w.weight.data[0, 0] = 1e6
test_fail(lambda: save(huge, folder / "huge.safetensors", dtype=torch.float16), exc=WeightsError,
          contains="to_w.weight")
assert not (folder / "huge.safetensors").exists()

# %%
#| label: fig-weights-half
#| fig-cap: "Left: relative rounding error of the weights of a tiny net in 16 bits, with the bound. Right: the same network's output on a face, with 32-bit and with rounded weights, and their difference enlarged 100 times."
#| fig-alt: "A histogram that ends at the bound of 2 to the power of minus 11, and three pictures; the first two look the same, the third shows faint noise."
face = to_tensor(example_faces(1, 64))
with torch.no_grad():
    a, b = tiny(face)[0][0], half(face)[0][0]
weights, rounded = (torch.cat([p.detach().flatten() for p in net.parameters()])
                    for net in (tiny, half))
usual = weights.abs() > 2**-14
fig, axes = plt.subplots(1, 4, figsize=(8.4, 2.1), layout="constrained", width_ratios=[2, 1, 1, 1])
off = ((weights - rounded).abs() / weights.abs())[usual]
axes[0].hist(off.numpy() * 2**11, bins=40, color="#0072B2")
axes[0].axvline(1, color="#D55E00")
axes[0].set(xlabel="relative error, in units of $2^{-11}$", yticks=[])
scale = a.abs().max()                                        # a random net's values leave [-1, 1]
for ax, image, title in zip(axes[1:], [a / scale, b / scale, 100 * (a - b) / scale],
                            ["32 bits", "16 bits", "difference × 100"]):
    ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0))
    ax.set_title(title, fontsize=9)
    ax.axis("off")
assert (a - b).abs().max() < 0.01 * a.abs().max()

# %% [markdown]
# ## Two sets of names {#sec-weights-names}
#
# The official code names its tensors after the history of its classes: `conv_body_first.0.weight`, `stylegan_decoder.style_convs.3.modulated_conv.modulation.bias`. Ours are named after the parts of the method. A translation needs one list of pairs,
# and nearly all of it follows from four rules:
#
# - An official convolution is a little chain. Its weight sits at index 0 (or 1, after a resampling step), its bias belongs to the activation behind it. In the clean classes it is a plain layer.
# - The official lists leave out the first element: `style_conv1` and `to_rgb1` stand outside `style_convs` and `to_rgbs`. Ours do not.
# - The official noise strength is called `weight`, next to the convolution's own weight.
# - Official modulated weights have a leading dimension of 1, and a bias added to a feature map has shape $(1, c, 1, 1)$.

# %%
#| export
# name -> what sets the official family apart in GFPGANConfig
FAMILIES = {"v1": dict(resample="fir", equalized=True),
            "bilinear": dict(resample="bilinear", equalized=True),
            "clean": dict(resample="bilinear", equalized=False)}


def _conv_names(ours, theirs, index, equalized, act):
    """Names of one convolution.

    The official equalised layers are Sequentials (convolution at `index`, bias in the activation
    `act`).
    """
    if not equalized:
        return [(f"{ours}.weight", f"{theirs}.weight"), (f"{ours}.bias", f"{theirs}.bias")]
    return [(f"{ours}.weight", f"{theirs}.{index}weight"), (f"{ours}.bias", f"{theirs}.{act}.bias")]


def _as_official(name, v):
    "A tensor of ours in the shape that the official code gives it under `name`."
    if name.endswith("modulated_conv.weight"):
        return v[None]                                        # (1, cout, cin, k, k)
    if re.search(r"(to_rgb1|to_rgbs\.\d+|style_conv1|style_convs\.\d+)\.bias$", name):
        return v[None, :, None, None]                         # added to a feature map as it is
    return v


# %%
#| export
def prior_names(n_blocks, n_mlp, equalized, ours="", theirs=""):
    """(our key, official key) for every tensor of a StyleGAN2 with `n_blocks` = log2(size) - 2
    blocks above 4 px.
    """
    pairs = []
    for j in range(n_mlp):
        # the clean Sequential counts its activations too
        k = j + 1 if equalized else 2 * j + 1
        pairs += [(f"{ours}mapping.layers.{j}.{p}", f"{theirs}style_mlp.{k}.{p}")
                  for p in ("weight", "bias")]
    s = f"{ours}synthesis."
    pairs.append((f"{s}constant", f"{theirs}constant_input.weight"))
    for i in range(2 * n_blocks + 1):
        name = f"{theirs}style_conv1" if i == 0 else f"{theirs}style_convs.{i - 1}"
        pairs += [(f"{s}convs.{i}.noise_strength", f"{name}.weight"),
                  (f"{s}convs.{i}.bias", f"{name}.{'activate.' if equalized else ''}bias"),
                  (f"{s}noise{i}", f"{theirs}noises.noise{i}")]
        pairs += [(f"{s}convs.{i}.conv.{p}", f"{name}.modulated_conv.{p}")
                  for p in ("weight", "modulation.weight", "modulation.bias")]
    for k in range(n_blocks + 1):
        name = f"{theirs}to_rgb1" if k == 0 else f"{theirs}to_rgbs.{k - 1}"
        pairs.append((f"{s}to_rgbs.{k}.bias", f"{name}.bias"))
        pairs += [(f"{s}to_rgbs.{k}.conv.{p}", f"{name}.modulated_conv.{p}")
                  for p in ("weight", "modulation.weight", "modulation.bias")]
    return pairs


# %%
#| export
def generator_names(config):
    "(our key, official key) for every tensor of a GFPGAN of this config."
    n, eq = int(math.log2(config.size)) - 2, config.equalized
    pairs = _conv_names("unet.first", "conv_body_first", "0.", eq, "1")
    pairs += _conv_names("unet.last", "final_conv", "0.", eq, "1")
    for i in range(n):
        d, u = f"conv_body_down.{i}", f"conv_body_up.{i}"
        pairs += _conv_names(f"unet.down.{i}.conv1", f"{d}.conv1", "0.", eq, "1")
        pairs += _conv_names(f"unet.down.{i}.conv2", f"{d}.conv2", "1.", eq, "2")
        pairs += _conv_names(f"unet.up.{i}.conv1", f"{u}.conv1", "0.", eq, "1")
        pairs += _conv_names(f"unet.up.{i}.conv2", f"{u}.conv2", "", eq, "activation")
        pairs += [(f"unet.down.{i}.skip.weight", f"{d}.skip.{'1.' if eq else ''}weight"),
                  (f"unet.up.{i}.skip.weight", f"{u}.skip.weight")]
        for p in ("weight", "bias"):
            pairs.append((f"unet.to_rgb.{i}.{p}", f"toRGB.{i}.{p}"))
            pairs += [(f"heads.{i}.{head}.{j}.{p}", f"condition_{head}.{i}.{2 * j}.{p}")
                      for head in ("scale", "shift") for j in (0, 1)]
    pairs += [(f"to_w.{p}", f"final_linear.{p}") for p in ("weight", "bias")]
    return pairs + prior_names(n, config.n_mlp, eq, "decoder.", "stylegan_decoder.")


# %% [markdown]
# The list must cover both sides exactly: every tensor of our network appears once, no official name appears twice. For the paper's model and for the released clean model these are 285 pairs. The printed rows are those whose two names differ most.

# %%
for config in (GFPGANConfig.paper(), GFPGANConfig.clean_v1_4(), GFPGANConfig.tiny(8),
               GFPGANConfig(size=1024, n_mlp=3, sft="full", w="one")):
    pairs = generator_names(config)
    ours, theirs = zip(*pairs)
    with torch.device("meta"):
        assert sorted(ours) == sorted(GFPGAN(config).state_dict())
    assert len(set(theirs)) == len(theirs)
    assert len(pairs) == 285 or config.size != 512

# %%
both = [dict(generator_names(c)) for c in (GFPGANConfig.paper(), GFPGANConfig.clean_v1_4())]
rows = ["| ours | official v1 and bilinear | official clean |", "|---|---|---|"]
for key in ("unet.first.weight", "unet.first.bias", "unet.down.0.conv2.weight",
            "unet.up.3.conv2.bias", "unet.to_rgb.6.weight", "to_w.weight", "heads.6.shift.1.bias",
            "decoder.mapping.layers.1.weight", "decoder.synthesis.convs.0.conv.weight",
            "decoder.synthesis.convs.3.noise_strength", "decoder.synthesis.convs.3.bias",
            "decoder.synthesis.noise12", "decoder.synthesis.to_rgbs.1.bias"):
    v1, clean = (names[key].replace("stylegan_decoder", "…") for names in both)
    clean = "the same" if clean == v1 else f"`{clean}`"
    rows.append(f"| `{key.replace('decoder.synthesis', '…')}` | `{v1}` | {clean} |")
Markdown("\n".join(rows))


# %% [markdown]
# In the rows that start with an ellipsis, ours begins with `decoder.synthesis` and the official name with `stylegan_decoder`.

# %% [markdown]
# ## Which family is it? {#sec-weights-recognise}
#
# A file from the network says nothing about its class, size or width, and users rename files. So the configuration is read from the names and shapes themselves. The number of `toRGB` layers gives the size,
# the width of the constant gives `narrow`, the width at 64 px the channel multiplier, the number of rows of the linear layer tells one code from many, and a plain `conv_body_first.weight` marks the clean family.
#
# Real files wrap the tensors: in `params_ema`, the running average that is meant for use, or in `params`, and sometimes in the prefix `module.` that parallel training leaves behind. The wrapping comes off first.

# %%
#| export
def _unwrap(state, source):
    """The plain {name: tensor} inside an official file: prefers the averaged weights, drops
    DataParallel's `module.`.
    """
    def plain(k, v):
        return (isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout == torch.strided
                and not v.is_meta and not v.is_quantized)

    if isinstance(state, dict):
        inner = (state[k] for k in ("params_ema", "params") if isinstance(state.get(k), dict))
        state = next(inner, state)
    if not isinstance(state, dict) or not all(plain(k, v) for k, v in state.items()):
        raise WeightsError(f"{source}: needs a dict of tensors")
    return {k.removeprefix("module."): v for k, v in state.items()}


# %%
#| export
def recognise(state, family=None):
    """The GFPGANConfig of an official GFPGAN state dict, read from its names and shapes; any size
    and width.

    GFPGANv1 and GFPGANBilinear have the same names and shapes: `family` ("v1", "bilinear", "clean")
    decides; None means v1 for both.
    """
    d = "stylegan_decoder"
    needed = ["final_linear.weight", "toRGB.0.weight", "condition_scale.0.2.weight",
              f"{d}.constant_input.weight", f"{d}.to_rgb1.modulated_conv.modulation.weight"]
    missing = [k for k in needed if k not in state or state[k].ndim < 2]
    if missing:
        raise WeightsError(f"not an official GFPGAN generator: {missing[0]} is missing")
    found = "clean" if "conv_body_first.weight" in state else "v1"
    family = family or found
    if family not in FAMILIES or (family == "clean") != (found == "clean"):
        raise WeightsError(f"these are weights of a {found} network, not of family {family!r}; "
                           f"known: {sorted(FAMILIES)}")
    rows, cond, scale, constant, mod = (state[k].shape for k in needed)
    narrow = constant[1] / 512
    # first convolution at 64 px
    at64 = state.get(f"{d}.style_convs.6.modulated_conv.weight")
    blocks = sum(bool(re.fullmatch(r"toRGB\.\d+\.weight", k)) for k in state)
    return GFPGANConfig(size=4 * 2**blocks,
                        style_dim=mod[1], narrow=narrow,
                        channel_multiplier=1 if at64 is None else at64.shape[1] / 256 / narrow,
                        sft="half" if scale[0] == cond[1] else "full",
                        n_mlp=sum("style_mlp" in k and k.endswith(".weight") for k in state),
                        w="one" if rows[0] == mod[1] else "per_layer", **FAMILIES[family])


# %% [markdown]
# Translating is then a renaming, with strict checks: all official names present, none left over, every shape as the official class would have it.

# %%
#| export
def _translate(build, pairs, state, source):
    """`build()` filled with the official `state`; `pairs` are (our key, official key).

    64-bit weights stay so, all others become float32.
    """
    own = _outline(build, source)
    _compare({k: v.shape for k, v in state.items()},
             {theirs: _as_official(theirs, own[ours]).shape for ours, theirs in pairs}, source)
    state = {ours: state[theirs].reshape(own[ours].shape) for ours, theirs in pairs}
    double = any(v.dtype == torch.float64 for v in state.values())
    return _fill(build().to(torch.float64 if double else torch.float32), state.items(), source)


def from_official(state, family=None, source="state dict"):
    """An official GFPGANv1, GFPGANBilinear or GFPGANv1Clean state dict -> GFPGAN with the same
    outputs. Raises WeightsError.
    """
    state = _unwrap(state, source)
    try:
        config = recognise(state, family)
    except (ValueError, IndexError, ArithmeticError) as e:
        raise WeightsError(f"{source}: {e}") from e
    return _translate(lambda: GFPGAN(config), generator_names(config), state, source)


def prior_from_official(state, resample="fir", source="state dict"):
    """An official StyleGAN2 generator (equalised; FIR or bilinear resampling) -> StyleGAN2 with the
    same outputs. Raises WeightsError.
    """
    state = _unwrap(state, source)
    needed = ("constant_input.weight", "style_mlp.1.weight")
    if any(k not in state or state[k].ndim < 2 for k in needed):
        raise WeightsError(f"{source}: not an official StyleGAN2 generator")
    n = sum(k.startswith("to_rgbs.") and k.endswith("modulated_conv.weight") for k in state)
    narrow, style_dim = state[needed[0]].shape[1] / 512, state[needed[1]].shape[1]
    at64 = state.get("style_convs.6.modulated_conv.weight")
    n_mlp = sum(k.startswith("style_mlp") and k.endswith(".weight") for k in state)
    multiplier = 1 if at64 is None or not narrow else at64.shape[1] / 256 / narrow
    build = lambda: StyleGAN2(4 * 2**n, style_dim, n_mlp, multiplier, narrow, resample=resample)
    return _translate(build, prior_names(n, n_mlp, True), state, source)


# %%
#| export
def to_official(net):
    """The state dict that the official class of this net's family loads (`GFPGANv1`,
    `GFPGANBilinear` or `GFPGANv1Clean`).

    `prior_share` has no place in it: the official code shows the prior's picture alone.
    """
    c = net.config
    if not c.use_prior or c.sft == "none":
        raise ValueError("the official code has no generator without the prior or without the maps")
    if (c.resample, c.equalized) == ("fir", False):
        raise ValueError("no official class has FIR resampling with baked scales")
    own = net.state_dict()
    return {theirs: _as_official(theirs, own[ours].detach().clone())
            for ours, theirs in generator_names(c)}


# %% [markdown]
# Round trips check both directions: out and back gives the same bits, in every family and variant that has an official class, also at odd sizes and widths. That the official classes really compute the same picture is checked
# against the official code itself, in the tests that need it installed (`tests/peer`), and in the ordinary tests against stored outputs of it.

# %%
for changes in (dict(), dict(resample="bilinear", channel_multiplier=2),
                dict(resample="bilinear", equalized=False), dict(sft="full", w="one"),
                dict(size=16, narrow=3 / 64, n_mlp=5)):
    net = GFPGAN(GFPGANConfig.tiny().replace(**changes))
    family = next(k for k, v in FAMILIES.items()
                  if (v["resample"], v["equalized"]) == (net.config.resample, net.config.equalized))
    official = to_official(net)
    again = from_official({"params_ema": {f"module.{k}": v for k, v in official.items()}}, family)
    assert again.config == net.config and same_weights(net, again)

# %% [markdown]
# A round trip would not notice a name that is wrong in both directions. So a handful of facts about the official files are checked as such; the ordinary tests hold the full list of 285 names and shapes against ours.

# %%
facts = {"v1": {"conv_body_down.6.conv2.2.bias": (256,),
                "conv_body_up.0.conv2.activation.bias": (256,),
                "stylegan_decoder.style_mlp.1.weight": (512, 512),
                "stylegan_decoder.style_convs.13.modulated_conv.weight": (1, 32, 32, 3, 3),
                "stylegan_decoder.style_convs.13.activate.bias": (32,)},
         "clean": {"conv_body_down.6.conv2.bias": (256,), "conv_body_up.0.conv2.bias": (256,),
                   "stylegan_decoder.style_mlp.15.weight": (512, 512),
                   "stylegan_decoder.style_convs.13.modulated_conv.weight": (1, 64, 64, 3, 3),
                   "stylegan_decoder.style_convs.13.bias": (1, 64, 1, 1)}}
for family, config in (("v1", GFPGANConfig.paper()), ("clean", GFPGANConfig.clean_v1_4())):
    with torch.device("meta"):
        named = to_official(GFPGAN(config))
    assert {k: tuple(named[k].shape) for k in facts[family]} == facts[family]

# %%
official = to_official(tiny)
test_fail(lambda: from_official(official, "clean"), exc=WeightsError,
          contains="not of family 'clean'")
lacking = {k: v for k, v in official.items() if "condition" not in k}
test_fail(lambda: from_official(lacking), exc=WeightsError,
          contains="condition_scale.0.2.weight is missing")
name = "stylegan_decoder.to_rgb1.modulated_conv.weight"
turned = official | {name: official[name].transpose(1, 2)}
test_fail(lambda: from_official(turned, source="mirror.pth"), exc=WeightsError,
          contains="mirror.pth: stylegan_decoder.to_rgb1")
test_fail(lambda: to_official(GFPGAN(GFPGANConfig.tiny().replace(sft="none"))), exc=ValueError,
          contains="without the maps")


# %% [markdown]
# ## Scales baked in {#sec-weights-clean}
#
# Our equalised layers multiply their weights by a constant at every call (@eq-equalized). That helps training and is wasted work afterwards. The released models v1.2 to v1.4 are "clean": their scales are multiplied into the weights once and for all.
# With $c$ the scale of a layer, $g$ its gain (the $\sqrt 2$ that belongs to a leaky ReLU) and $\phi$ the leaky ReLU,
#
# $$g\,\phi\big(\tfrac{c}{g} W x + b\big) = \phi(c\,W x + g\,b) = \phi(W' x + b'), \qquad W' = c\,W, \quad b' = g\,b .$$ {#eq-weights-baked}
#
# The first step is allowed because $\phi(g z) = g\,\phi(z)$ for $g > 0$; our layers compute the middle form from the start, the official ones the left. A noise strength goes with the bias, as it is added at the same place. In the modulated convolution, demodulation
# divides the scale out again, but for the $10^{-8}$ that guards against a division by zero; baking the scale in leaves that in its place too, so the identity is exact there as well.

# %%
#| export
def to_clean(net):
    """A bilinear, equalised GFPGAN -> the same function with every scale baked into the weights
    (`equalized=False`), ready to deploy.

    Exact up to rounding; a FIR net is a ValueError, as its resampling has no clean form.
    """
    c = net.config
    if c.resample != "bilinear":
        raise ValueError("only a net with resample='bilinear' has a clean form; "
                         "FIR resampling does not")
    clean = GFPGAN(c.replace(equalized=False)).to(next(net.parameters()))
    state = net.state_dict()
    for name, m in net.named_modules():
        if isinstance(m, (EqualizedConv2d, EqualizedLinear, ModulatedConv2d)):
            state[f"{name}.weight"] = m.weight.detach() * m.weight_gain
        if isinstance(m, (EqualizedConv2d, EqualizedLinear, StyleConv)) and m.bias is not None:
            state[f"{name}.bias"] = m.bias.detach() * m.bias_gain
        if isinstance(m, StyleConv):
            state[f"{name}.noise_strength"] = m.noise_strength.detach() * m.bias_gain
    clean.load_state_dict(state)
    return clean.train(net.training)


# %% [markdown]
# First one layer. The left form of @eq-weights-baked, written out as the official code computes it, and the baked right form differ by rounding alone: the error shrinks from 32 to 64 bits by the factor between the two precisions.

# %%
layer = EqualizedConv2d(8, 16, gain=2**0.5, activate=True)
torch.nn.init.normal_(layer.bias)
for dtype in (torch.float64, torch.float32):
    h = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = layer.to(dtype)
    sums = F.conv2d(h, layer.weight, padding=1) / (8 * 9) ** 0.5 + layer.bias[:, None, None]
    left = 2**0.5 * F.leaky_relu(sums, 0.2)
    weight, bias = layer.weight * layer.weight_gain, layer.bias * layer.bias_gain
    right = F.leaky_relu(F.conv2d(h, weight, bias, padding=1), 0.2)
    error = (left - right).abs().max().item() / left.abs().max().item()
    assert 0 < error < 8 * torch.finfo(dtype).eps
    print(f"{str(dtype):14} the two forms differ by less than 8 units of rounding "
          f"({torch.finfo(dtype).eps:.0e})")


# %% [markdown]
# Then the whole network. Our layers compute the middle form, in which $c\,W$ is rounded once, whether at run time or beforehand. So here the clean net must give the same *bits*, at either precision, and does.
# Every bias and noise strength is made nonzero first, for a zero would hide a forgotten scale.

# %%
def shaken(config, dtype=torch.float32):
    torch.manual_seed(0)
    net = GFPGAN(config).to(dtype).eval().requires_grad_(False)
    for p in net.parameters():
        if p.ndim == 1:
            p += 0.2 * torch.randn_like(p)
    return net


# %%
x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
x = x * 2 - 1
z = torch.randn(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
config = GFPGANConfig.tiny().replace(resample="bilinear")
for dtype in (torch.float64, torch.float32):
    net = shaken(config, dtype)
    clean = to_clean(net)
    assert torch.equal(clean(x.to(dtype))[0], net(x.to(dtype))[0])
    # the mapping network too
    assert torch.equal(clean.decoder(z.to(dtype)), net.decoder(z.to(dtype)))
# and something was baked in
assert clean.to_w.weight.abs().max() < 0.1 * net.to_w.weight.abs().max()
assert clean.config == config.replace(equalized=False)
test_fail(lambda: to_clean(tiny), exc=ValueError, contains="bilinear")


# %% [markdown]
# ## The two that cannot be told apart {#sec-weights-twins}
#
# The official v1 network resamples with an FIR filter (@eq-fir), the bilinear network with bilinear interpolation. Resampling has no weights. So the two have the same names and shapes, and nothing in a file says which it is.
# Loaded as the wrong one, the network runs and returns a picture. This is no thought experiment: the official script that converts to the clean form accepts v1 files, and users have reported the red faces it makes of them.
#
# The cell stores the model of this package, which has FIR resampling, under the official names, and loads it as both.

# %%
def shapes(resample):
    official = to_official(shaken(config.replace(resample=resample)))
    return {k: v.shape for k, v in official.items()}


# same names, same shapes
assert shapes(FAMILIES["v1"]["resample"]) == shapes(FAMILIES["bilinear"]["resample"])

# %%
#| label: fig-weights-twins
#| fig-cap: "One file, loaded as the family it belongs to and as its twin. Nothing fails; the picture is wrong."
#| fig-alt: "Three faces: the degraded input, the restored face, and a distorted version of it."
size = bundled.config.size
sharp = to_tensor(example_faces(1, size))
blurred = F.interpolate(F.avg_pool2d(sharp, 4), scale_factor=4, mode="bilinear")
file = to_official(bundled)
with torch.no_grad():
    right, wrong = (from_official(file, family)(blurred)[0] for family in ("v1", "bilinear"))
    image, pyramid = bundled(blurred)
assert_close(torch.lerp(pyramid[-1], right, bundled.config.prior_share), image, rtol=0, atol=1e-3)
assert (right - wrong).abs().mean() > 0.03
show([blurred[0], right[0], wrong[0]], ["input", 'family="v1"', 'family="bilinear"']);


# %% [markdown]
# ## Why FIR has no clean form {#sec-weights-fir}
#
# Could a v1 file be converted by cleverer arithmetic? A resampling step and the convolution beside it are one linear map, so the question has an answer. In the prior, which enlarges, the answer is almost yes: in the interior of the picture
# FIR enlargement and bilinear enlargement are the same filter (@sec-layers), and the two networks differ in that one convolves with the mirrored kernel, and at the border. In the U-Net, which shrinks, the answer is no. There the FIR net blurs with the taps 1, 3, 3, 1 and lets its kernel look at
# neighbouring *full-size* pixels, while the clean net averages blocks of 2×2 first and lets its kernel look at neighbouring *blocks*.
#
# The cell collects, for each of the nine unit kernels, the weights with which an output pixel sees the input. If the span of the FIR columns lay in that of the bilinear columns, every FIR kernel would have a twin.

# %%
def seen_weights(step, kernel):
    "How strongly each pixel of a 16×16 input enters one pixel of `step(input, kernel)`; flat."
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    y = step(x, kernel)
    (g,) = torch.autograd.grad(y[0, 0, y.shape[2] // 2, y.shape[3] // 2], x)
    return g.flatten()


# %%
fir, bilinear = Resample("fir"), Resample("bilinear")
steps = {"down": (lambda x, k: F.conv2d(fir.smooth(x, pad=2), k, stride=2),
                  lambda x, k: F.conv2d(bilinear.down(x), k, padding=1)),
         "up": (lambda x, k: fir.smooth(F.conv_transpose2d(x, k, stride=2), pad=1, gain=4.0),
                lambda x, k: F.conv2d(bilinear.up(x), k, padding=1))}
units = torch.eye(9, dtype=torch.float64).reshape(9, 1, 1, 3, 3)
spans = {name: [torch.stack([seen_weights(step, u) for u in units], 1) for step in pair]
         for name, pair in steps.items()}

rank = torch.linalg.matrix_rank
# enlarging: the same, with the mirrored kernel
assert torch.equal(spans["up"][0], spans["up"][1].flip(1))
assert rank(spans["down"][0]) == rank(spans["down"][1]) == 9
# shrinking: 9 + 9 - 17 = 1 direction in common
assert rank(torch.cat(spans["down"], 1)) == 17

# %%
#| label: fig-weights-fir
#| fig-cap: "How one output pixel of a shrinking layer sees the input. Left: a random kernel behind the FIR filter. Middle: the best that a kernel behind the 2×2 mean can do. Right: the one kernel for which both agree, with taps 1, -2, 1 in both directions."
#| fig-alt: "Three small maps. The first is smooth, the second is made of 2 by 2 blocks and differs from it, the third is a checkered pattern of blocks."
g = torch.Generator().manual_seed(3)
a, b = spans["down"]
random_kernel = torch.randn(9, 1, generator=g, dtype=torch.float64)
best = torch.linalg.lstsq(b, a @ random_kernel).solution
special = torch.outer(*2 * [torch.tensor([1.0, -2, 1], dtype=torch.float64)]).reshape(9, 1)
twin = torch.linalg.lstsq(b, a @ special).solution
missed = ((a @ random_kernel - b @ best).norm() / (a @ random_kernel).norm()).item()
assert_close(a @ special, b @ twin) and missed > 0.3
shown = (a, random_kernel, random_kernel), (b, best, random_kernel), (a, special, special)
maps = [(m @ k).reshape(16, 16)[5:13, 5:13] / (a @ scale).abs().max() for m, k, scale in shown]
show(maps, ["FIR", "best clean kernel", "the common kernel"], cmap="PuOr", vmin=-1, vmax=1)
print(f"part of the FIR kernel that no clean kernel reaches: {100 * missed:.0f} %")


# %% [markdown]
# @fig-weights-fir shows the difference: behind the mean every 2×2 block has one weight, behind the FIR filter it has not. Of the nine-dimensional space of 3×3 kernels a single direction has a twin. A trained v1 network therefore stays an FIR network. To have a clean one, train with `resample="bilinear"` from the start;
# both can be trained here.

# %% [markdown]
# ## The released files {#sec-weights-registry}
#
# Four generators are published under a licence that must be known before use: the code is free, but the weights were trained on faces whose licence excludes commercial use. The registry keeps address, family, licence and, where one is known from public sources, the SHA-256 of each file.
# The hash matters twice. It tells a broken download from a good one, and it tells the file that everybody means from another file of the same name.

# %%
#| export
@dataclass(frozen=True)
class Release:
    "One official file: where it is, its hash (None: not published), the family it belongs to."

    name: str
    url: str
    family: str
    sha256: str | None = None
    bytes: int | None = None
    note: str = ""


# of the released weights
LICENCE = "code Apache-2.0; weights trained on FFHQ (CC BY-NC-SA 4.0): non-commercial"
_BASE = "https://github.com/TencentARC/GFPGAN/releases/download/"
# by name: the official files
RELEASES = {r.name: r for r in (
    Release("v1", _BASE + "v0.1.0/GFPGANv1.pth", "v1",
            note="the paper's model, with colour enhancement"),
    Release("v1.2", _BASE + "v0.2.0/GFPGANCleanv1-NoCE-C2.pth", "clean",
            "29e25ee90c170f4231163f4c83df6b59c968b73f3ce00cb884015ae005db083c",
            note="no colour enhancement"),
    Release("v1.3", _BASE + "v1.3.0/GFPGANv1.3.pth", "clean",
            "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
            348632874, "more natural than v1.2"),
    Release("v1.4", _BASE + "v1.3.0/GFPGANv1.4.pth", "clean",
            "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
            348632874, "more details, better identity than v1.3"),
)}

# %%
print(f"{'name':6}{'file':31}{'MB':>5}  {'SHA-256':14}{'family':8}note")
for r in RELEASES.values():
    file = r.url.rsplit("/", 1)[1]
    size = round(r.bytes / 1e6) if r.bytes else "–"
    known = r.sha256[:10] + "…" if r.sha256 else "not published"
    print(f"{r.name:6}{file:31}{size:>5}  {known:14}{r.family:8}{r.note}")
print(LICENCE)
assert all(r.family in FAMILIES and (r.sha256 is None or len(r.sha256) == 64)
           for r in RELEASES.values())


# %% [markdown]
# ## A download that may break {#sec-weights-download}
#
# 350 MB through a weak line will break off sooner or later. Three rules make that harmless. What has come is kept as a `.part` file, and the next try asks the server for the rest only (a `Range` request).
# The file gets its real name only after its hash has been checked, so a file with the real name is always whole. And a file with the wrong hash is deleted, because it would be resumed forever.
#
# For the one file whose hash nobody has published, trust is placed in the first download: its hash is shown, remembered beside the file, and a later download must agree with it.

# %%
#| export
def cache_dir():
    "Where downloads are kept: $GFPGAN_EDU_CACHE, else gfpgan_edu in $XDG_CACHE_HOME or ~/.cache."
    if base := os.environ.get("GFPGAN_EDU_CACHE"):
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfpgan_edu"


def sha256_of(path):
    "SHA-256 of a file as 64 hexadecimal digits, read in pieces."
    with open(path, "rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remembered(path):
    "The hashes of earlier downloads, {url: SHA-256}."
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path}: cannot be read ({e}); it remembers the hashes of earlier "
                           "downloads, delete it to start afresh") from e
    return known if isinstance(known, dict) else {}


# %%
#| export
def _fetch(url, part, progress):
    "Download `url` to `part`, going on where an earlier try broke off."
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not have:
            raise
        # nothing is left to fetch
        if (e.headers.get("Content-Range") or f"*/{have}").endswith(f"/{have}"):
            return
        # more than the whole file: not this file
        part.unlink()
        return _fetch(url, part, progress)
    with response, open(part, "ab" if response.status == 206 else "wb") as f:
        # 200: the server sends the whole file again
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem,
                  disable=not progress) as bar:
            while block := response.read(1 << 18):
                f.write(block)
                bar.update(len(block))
    if total > have and part.stat().st_size != total:
        raise OSError(f"connection closed after {part.stat().st_size} of {total} bytes")


# %%
#| export
def download(release, cache=None, progress=True):
    """Fetch a `Release` (or its name) into the cache and return the path. A finished file is used
    again; a broken-off one is resumed.

    The SHA-256 must agree with the published one. Where none is published, the hash of the first
    download is shown and remembered, and a later download must agree with it. Raises WeightsError
    (no network, wrong hash); nothing partial is ever used.
    """
    if isinstance(release, str) and release not in RELEASES:
        raise WeightsError(f"{release}: no such release; known are {', '.join(RELEASES)}")
    r = RELEASES[release] if isinstance(release, str) else release
    folder = Path(cache) if cache else cache_dir()
    file = r.url.rsplit("/", 1)[1]
    path, part, seen = folder / file, folder / f"{file}.part", folder / "hashes.json"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(r.url, part, progress)
    # URLError and time-outs are OSErrors
    except (OSError, ValueError, http.client.HTTPException) as e:
        kept = f"; what came is kept in {part} and will be resumed" if part.exists() else ""
        raise WeightsError(f"{r.name}: download of {r.url} failed ({e}){kept}") from e
    digest, known = sha256_of(part), _remembered(seen)
    want = r.sha256 or known.get(r.url)
    if want and digest != want:
        part.unlink()
        told = "published" if r.sha256 else f"remembered in {seen}"
        raise WeightsError(f"{r.name}: SHA-256 of {r.url} is {digest}, not {want} ({told}); "
                           "the file was deleted")
    if not want:
        print(f"{r.name}: no SHA-256 is published for this file; this one has {digest}, "
              f"remembered in {seen}", file=sys.stderr)
        seen.write_text(json.dumps(known | {r.url: digest}, indent=1))
    os.replace(part, path)
    return path


# %% [markdown]
# No chapter of this book needs a network, so the other side of the line is played by a small server on this machine. It can answer `Range` requests, and it can hang up in the middle.

# %%
class Server(BaseHTTPRequestHandler):
    "Serves `files`; hangs up after `breaks[path]` bytes, once; `asked`: where each answer started."
    files, breaks, asked = {}, {}, []

    def do_GET(self):
        body = self.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:self.breaks.pop(self.path, None)])

    def log_message(self, *args):
        "Keep the log out of the chapter."


# %%
server = ThreadingHTTPServer(("127.0.0.1", 0), Server)        # port 0: any free one
threading.Thread(target=server.serve_forever, daemon=True).start()
site = f"http://127.0.0.1:{server.server_address[1]}"

# %% [markdown]
# A made file under official names takes the place of a release. The line breaks after 50,000 bytes; the second try asks for the rest and no more; the third asks for nothing.

# %%
torch.save({"params_ema": to_official(tiny)}, folder / "made.pth")
Server.files["/made.pth"] = (folder / "made.pth").read_bytes()
Server.breaks["/made.pth"] = 50_000
made = Release("made", f"{site}/made.pth", "v1", sha256_of(folder / "made.pth"))
cache = folder / "cache"

# %%
test_fail(lambda: download(made, cache, progress=False), exc=WeightsError,
          contains="will be resumed")
assert [p.name for p in cache.iterdir()] == ["made.pth.part"]
arrived = download(made, cache, progress=False)
assert sha256_of(arrived) == made.sha256 and [p.name for p in cache.iterdir()] == ["made.pth"]
assert download(made, cache, progress=False) == arrived and Server.asked == [0, 50_000]
print("answers started at byte", Server.asked)

# %% [markdown]
# Then the failures: a file that is not the published one, a file that is not there, a file without a published hash that changes after its first download, and no network at all.

# %%
Server.files["/other.pth"] = b"something else"
test_fail(lambda: download(Release("other", f"{site}/other.pth", "v1", made.sha256), cache, False),
          exc=WeightsError, contains="published")
assert not list(cache.glob("other*"))    # neither the file nor its part is left
test_fail(lambda: download(Release("gone", f"{site}/gone.pth", "v1"), cache, False),
          exc=WeightsError, contains="404")
test_fail(lambda: download("v9"), exc=WeightsError, contains="known are v1, v1.2, v1.3, v1.4")

# %%
unknown = Release("unknown", f"{site}/other.pth", "v1")
with redirect_stderr(StringIO()) as told:
    first = download(unknown, cache, progress=False)
assert sha256_of(first) in told.getvalue()
first.unlink()
Server.files["/other.pth"] = b"changed behind your back"
test_fail(lambda: download(unknown, cache, False), exc=WeightsError, contains="remembered")

# %%
server.shutdown(), server.server_close()
test_fail(lambda: download(Release("late", f"{site}/late.pth", "v1"), cache, False),
          exc=WeightsError, contains="failed");


# %% [markdown]
# ## One door {#sec-weights-door}
#
# Everything above serves one function. `load_weights` takes the word `"bundled"`, the name of a release, or a path to a file of ours or of the official code, and returns a network in evaluation mode. Only for an official file of the v1 and bilinear twins does it need to be told the `family`.

# %%
#| export
def _read_pickle(path):
    """The content of a .pth file; only plain tensors and containers are allowed in it, and nothing
    that unpacks to more than the file's size.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                # torch.save never compresses
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in z.infolist()):
                    raise ValueError("holds compressed entries")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                   # it is read, or it is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    # a damaged pickle can raise anything; PyTorch's own text would advise to run what is in it
    except Exception as e:
        if type(e) is ValueError:
            reason = str(e)
        else:
            damaged = "damaged, or it holds more than tensors; nothing in it was run"
            reason = (getattr(e, "strerror", None) or damaged).lower()
        raise WeightsError(f"{path}: not a plain file of tensors ({_short(reason)})") from e


def read_state(path):
    """The {name: tensor} of an official .pth file; prefers averaged weights, drops `module.`.

    Raises WeightsError.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file")
    state, there = _unwrap(_read_pickle(path), path), Path(path).stat().st_size
    # one number can pose as a tensor of any size
    if (claimed := sum(v.numel() * v.element_size() for v in state.values())) > there:
        raise WeightsError(f"{path}: describes {claimed / 1e6:.1f} MB of weights "
                           f"in a file of {there / 1e6:.1f} MB")
    return state


# %%
#| export
def load_weights(weights="bundled", family=None, progress=True):
    """A GFPGAN by name or path, eval mode: "bundled", an official release ("v1" … "v1.4",
    downloaded once), a .safetensors of ours, or an official .pth (`family` as in `recognise`).
    Pickles are read with weights_only=True: code in them does not run. Raises WeightsError."""
    if weights == "bundled":
        return load(bundled_path())
    if str(weights) in RELEASES:
        r = RELEASES[str(weights)]
        weights, family = download(r, progress=progress), r.family
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"{weights}: no such file, "
                           f"nor a known name (bundled, {', '.join(RELEASES)})")
    if path.suffix.lower() == ".safetensors":
        return load(path)
    return from_official(read_state(path), family, path)


# %% [markdown]
# A file without code can still do harm by its size. A safetensors header that claims more than 10 MB is refused before it is parsed. A `.pth` is a zip archive that PyTorch never compresses, so a compressed one is a bomb; and a pickle can pose one number as a tensor of any shape, by strides of 0, for which a real network would be built. Neither gets that far.

# %%
posing = {k: torch.zeros(()).expand(v.shape) for k, v in to_official(tiny).items()}
torch.save(posing, folder / "posing.pth")
test_fail(lambda: load_weights(folder / "posing.pth"), exc=WeightsError,
          contains="MB of weights in a file of")
with zipfile.ZipFile(folder / "made.pth") as given, zipfile.ZipFile(folder / "bomb.pth", "w",
                                                                    zipfile.ZIP_DEFLATED) as packed:
    for entry in given.infolist():
        packed.writestr(entry.filename, given.read(entry))
test_fail(lambda: load_weights(folder / "bomb.pth"), exc=WeightsError, contains="compressed")
(folder / "claim.safetensors").write_bytes(struct.pack("<Q", 10 * 2**30) + raw[8:])
test_fail(lambda: load(folder / "claim.safetensors"), exc=WeightsError,
          contains="claims 10737418240 bytes")

# %% [markdown]
# Training needs priors as well (@sec-train-prior). They come through a door of the same make.

# %%
#| export
# name -> file in gfpgan_edu/bundled
BUNDLED_PRIORS = {"bundled": "prior64", "prior64": "prior64", "prior32": "prior32"}


def load_prior(source="bundled"):
    """A StyleGAN2 by name or path, eval mode: "bundled" (64 px), "prior32", a .safetensors of ours
    (of a restorer: its decoder), or an official .pth (StyleGAN2_512_Cmul1_FFHQ…). Raises
    WeightsError."""
    path = Path(source)
    if source in BUNDLED_PRIORS:
        name = f"{BUNDLED_PRIORS[source]}.safetensors"
        path = Path(str(resources.files("gfpgan_edu.bundled") / name))
    if path.suffix.lower() != ".safetensors":
        return prior_from_official(read_state(path), source=path)
    if read_header(path)["network"] != "GFPGAN":
        return load(path, StyleGAN2)
    net = load(path)
    if not net.config.use_prior or not net.config.equalized:
        raise WeightsError(f"{path}: a GFPGAN without a prior, or with scales baked in, "
                           "holds no StyleGAN2 to train or search with")
    return net.decoder


# %%
by_name = [load_weights(), load_weights(path), load_weights(arrived),
           load_weights(str(arrived), family="bilinear")]
assert by_name[0].config == bundled.config and by_name[2].config == tiny.config
assert torch.equal(by_name[1].to_w.weight, by_name[2].to_w.weight)
assert by_name[3].config == tiny.config.replace(resample="bilinear")

decoder = load_prior(path)                                    # of a restorer: its decoder
assert same_weights(tiny.decoder, decoder)
assert [load_prior(name).config["size"] for name in ("bundled", "prior32")] == [64, 32]
save(GFPGAN(tiny.config.replace(use_prior=False)), folder / "alone.safetensors")
test_fail(lambda: load_prior(folder / "alone.safetensors"), exc=WeightsError,
          contains="holds no StyleGAN2")

# %%
broken = {"empty.pth": b"", "note.pth": b"this is a text file\n",
          "cut.pth": Server.files["/made.pth"][:9000], "empty.safetensors": b""}
for name, content in broken.items():
    (folder / name).write_bytes(content)
    test_fail(lambda: load_weights(folder / name), exc=WeightsError, contains=name)
test_fail(lambda: load_weights(bad_file), exc=WeightsError, contains="GFPGANv9.pth")
assert not marker.exists()
test_fail(lambda: load_weights("v5"), exc=WeightsError, contains="nor a known name")

# %% [markdown]
# ## Put together {#sec-weights-together}
#
# The full circle on one face: the bundled model goes out as an official file, comes back as a network, is stored in 16 bits, and restores the same face (@fig-weights-circle).
# It was stored in 16 bits before, and changing names changes no number, so the same ones must come out at the end. One thing is lost on the way: an official file has no place for `prior_share` (@eq-gfpgan-share), so what comes back shows the prior's picture alone.

# %%
torch.save({"params_ema": to_official(bundled)}, folder / "circle.pth")
back = load_weights(folder / "circle.pth", family="v1")
save(back, folder / "circle.safetensors", dtype=torch.float16, source="circle.pth")
end = load_weights(folder / "circle.safetensors")
assert end.config == bundled.config.replace(prior_share=1.0)
assert same_weights(bundled, end)
print(f"{sum(p.numel() for p in end.parameters()):,} numbers, all unchanged")

# %%
#| label: fig-weights-circle
#| fig-cap: "A degraded face, and what the bundled model makes of it after the full circle of conversions."
#| fig-alt: "The degraded face and a restored one."
with torch.no_grad():
    show([blurred[0], end(blurred)[0][0]], ["input", "after the circle"]);

# %% [markdown]
# ## Paper, official code, ours {#sec-weights-table}
#
# | item | paper | official code | ours | why |
# |---|---|---|---|---|
# | file | – | a pickle with `params_ema` | safetensors with the config in the header | holds no code, rebuilds its own network |
# | reading a pickle | – | `torch.load` with the default of the installed torch | `weights_only=True`, always | a file must not run code |
# | which class a file needs | – | the user knows | read from names and shapes; the v1/bilinear twins by `family` | a wrong class is silent |
# | run-time scales | – | in v1 and bilinear; baked in by a script that takes v1 too | `to_clean`, refuses FIR | the script's result for v1 is wrong |
# | mismatching names | – | `strict=True` | names, shapes and finiteness, with the file's name | a net that skips a name runs and is wrong |
# | share of the U-Net's picture | none | none | `prior_share`, in the header of our files only | an official file has no place for it |
# | download | – | no hash, restarts | hash, resumed, atomic | |
# | precision on disk | – | 32 bits | 32, or 16 for the bundled model | half the bytes |
#
# : Weights in the paper, in the official code and here. {#tbl-weights-deviations}

# %% [markdown]
# ## What users trip over {#sec-weights-trips}
#
# ::: {.callout-warning}
# - **Red or washed-out faces after a conversion.** A v1 file was taken for a bilinear one. No message is possible: see @fig-weights-twins.
# - **v1.2 to v1.4 cannot be trained further as they are.** They are clean, with baked scales, and the bilinear network they came from was never released. Ours can be trained in every form (`equalized=False` included), but the learning rates of the paper assume run-time scales.
# - **`Weights only load failed`.** Newer versions of PyTorch refuse what older ones ran. The released GFP-GAN files hold plain tensors and pass. If a file does not pass, distrust the file, not the check.
# - **The wrong half of the file.** `params` are the weights of the last step, `params_ema` the running average that the published pictures were made with. The average is preferred wherever both exist.
# - **Half precision.** Weights may be *stored* in 16 bits. *Computing* in 16 bits is another matter: users of the released models report lost quality and NaNs.
# :::
#
# ## Summary
#
# - A `.pth` file is a program. It is read with `weights_only=True` or not at all; our own files are safetensors with the config in the header.
# - Loading is strict about names, shapes and finite numbers, and every error names the file.
# - 285 pairs of names translate a 512 px network to and from the official code; family, size and widths are read from names and shapes.
# - The v1 and bilinear families differ only in their resampling, so no file can tell them apart. Bilinear has a clean form, exact up to rounding; FIR has none.
# - Downloads are resumed, verified and named last; where no hash is published, the first one is remembered.
#
# Next: where such weights come from. Training begins with the networks that judge, @sec-discriminators.
#
# ## Exercises
#
# 1. **Compute.** How many bytes does the paper's model need in 32 and in 16 bits? Which share of them are noise maps, and which part of the network that restoration never runs could be left out?
# 2. **Modify.** Write `blend(a, b, t)`, which mixes the weights of two networks of the same config, and look at the pictures of two snapshots of one training for `t` between 0 and 1. Would it work for two networks trained from different seeds?
# 3. **Break.** Leave out one line of `to_clean`, first the bias, then the noise strength. Which check notices, and would it have noticed on a network fresh from its initialisation?
#
# Worked solutions: [nbs/solutions/09_weights.ipynb](solutions/09_weights.ipynb).
#
# ## References
#
# The families of weights belong to GFP-GAN [@wang2021gfpgan]; run-time weight scales come from @karras2018progressive. That averages of weights over the training give better pictures than the last ones is used since then in all generators of this line [@karras2019stylegan].

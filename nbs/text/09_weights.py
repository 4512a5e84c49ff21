# %% [markdown]
# # Weights {#sec-weights}

# %%
#| default_exp weights

# %%
#| export
import hashlib
import json
import math
import os
import pickle
import re
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.layers import EqualizedConv2d, EqualizedLinear
from gfpgan_edu.stylegan2 import ModulatedConv2d, StyleConv, StyleGAN2

# %%
#| export
class WeightsError(ValueError):
    "A weights file that cannot be read, trusted or matched; the message names the file and the reason."


def save(net, path, dtype=None, **metadata):
    """Write `net` (GFPGAN) to a safetensors file with its config in the header, atomically; `dtype=torch.float16` halves the size.

    Further keyword arguments are kept as strings in the header.
    """
    state = {k: v.detach().to("cpu", dtype if v.is_floating_point() else None).contiguous().clone() for k, v in net.state_dict().items()}
    header = {"format": "gfpgan_edu", "config": json.dumps(net.config.to_dict()), **{k: str(v) for k, v in metadata.items()}}
    tmp = Path(path).with_name(Path(path).name + ".part")
    save_file(state, tmp, metadata=header)
    os.replace(tmp, path)


# %%
#| export
def read_header(path):
    "The header of a safetensors file of ours as a dict; `config` is a GFPGANConfig. Raises WeightsError."
    try:
        with safe_open(path, "pt") as f:
            meta = dict(f.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path}: not a readable safetensors file ({e})") from e
    try:
        meta["config"] = GFPGANConfig.from_dict(json.loads(meta["config"]))
    except (KeyError, ValueError, TypeError) as e:
        raise WeightsError(f"{path}: no usable config in the header ({e})") from e
    return meta


def load(path):
    "Read a safetensors file written by `save` -> GFPGAN in float32, eval mode. Raises WeightsError that names the file and the reason."
    net = GFPGAN(read_header(path)["config"])
    try:
        with safe_open(path, "pt") as f:
            state = {k: f.get_tensor(k).float() for k in f.keys()}
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path}: {e}") from e
    return _fill(net, state, path).eval()


def _fill(net, state, source):
    "Copy `state` into `net`, strictly: same names, same shapes, finite numbers."
    own = net.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise WeightsError(f"{source}: {len(missing)} keys missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}")
    for k, v in state.items():
        if v.shape != own[k].shape:
            raise WeightsError(f"{source}: {k} is {tuple(v.shape)}, needs {tuple(own[k].shape)}")
        if not torch.isfinite(v).all():
            raise WeightsError(f"{source}: {k} holds NaN or infinity")
    net.load_state_dict(state)
    return net


# %%
#| export
FAMILIES = {"v1": dict(resample="fir", equalized=True), "bilinear": dict(resample="bilinear", equalized=True),
            "clean": dict(resample="bilinear", equalized=False)}


def _conv_names(ours, theirs, index, equalized, act):
    "Names of one convolution: the official equalised layers are Sequentials (convolution at `index`, bias in the activation `act`)."
    if not equalized:
        return [(f"{ours}.weight", f"{theirs}.weight"), (f"{ours}.bias", f"{theirs}.bias")]
    return [(f"{ours}.weight", f"{theirs}.{index}weight"), (f"{ours}.bias", f"{theirs}.{act}.bias")]


def prior_names(n_blocks, n_mlp, equalized, ours="", theirs=""):
    "(our key, official key) for every tensor of a StyleGAN2 with `n_blocks` = log2(size) - 2 blocks above 4 px."
    pairs = []
    for j in range(n_mlp):
        k = j + 1 if equalized else 2 * j + 1           # the clean Sequential counts its activations too
        pairs += [(f"{ours}mapping.layers.{j}.{p}", f"{theirs}style_mlp.{k}.{p}") for p in ("weight", "bias")]
    s = f"{ours}synthesis."
    pairs.append((f"{s}constant", f"{theirs}constant_input.weight"))
    for i in range(2 * n_blocks + 1):
        name = f"{theirs}style_conv1" if i == 0 else f"{theirs}style_convs.{i - 1}"
        pairs += [(f"{s}convs.{i}.noise_strength", f"{name}.weight"), (f"{s}convs.{i}.bias", f"{name}.{'activate.' if equalized else ''}bias"),
                  (f"{s}noise{i}", f"{theirs}noises.noise{i}")]
        pairs += [(f"{s}convs.{i}.conv.{p}", f"{name}.modulated_conv.{p}") for p in ("weight", "modulation.weight", "modulation.bias")]
    for k in range(n_blocks + 1):
        name = f"{theirs}to_rgb1" if k == 0 else f"{theirs}to_rgbs.{k - 1}"
        pairs.append((f"{s}to_rgbs.{k}.bias", f"{name}.bias"))
        pairs += [(f"{s}to_rgbs.{k}.conv.{p}", f"{name}.modulated_conv.{p}") for p in ("weight", "modulation.weight", "modulation.bias")]
    return pairs


def generator_names(config):
    "(our key, official key) for every tensor of a GFPGAN of this config."
    n, eq = int(math.log2(config.size)) - 2, config.equalized
    pairs = _conv_names("unet.first", "conv_body_first", "0.", eq, "1") + _conv_names("unet.last", "final_conv", "0.", eq, "1")
    for i in range(n):
        d, u = f"conv_body_down.{i}", f"conv_body_up.{i}"
        pairs += _conv_names(f"unet.down.{i}.conv1", f"{d}.conv1", "0.", eq, "1") + _conv_names(f"unet.down.{i}.conv2", f"{d}.conv2", "1.", eq, "2")
        pairs += _conv_names(f"unet.up.{i}.conv1", f"{u}.conv1", "0.", eq, "1") + _conv_names(f"unet.up.{i}.conv2", f"{u}.conv2", "", eq, "activation")
        pairs += [(f"unet.down.{i}.skip.weight", f"{d}.skip.{'1.' if eq else ''}weight"), (f"unet.up.{i}.skip.weight", f"{u}.skip.weight")]
        for p in ("weight", "bias"):
            pairs.append((f"unet.to_rgb.{i}.{p}", f"toRGB.{i}.{p}"))
            if config.sft != "none":
                pairs += [(f"heads.{i}.{head}.{j}.{p}", f"condition_{head}.{i}.{2 * j}.{p}") for head in ("scale", "shift") for j in (0, 1)]
    pairs += [(f"to_w.{p}", f"final_linear.{p}") for p in ("weight", "bias")]
    return pairs + prior_names(n, config.n_mlp, eq, "decoder.", "stylegan_decoder.")


# %%
#| export
def _unwrap(state):
    "The plain state dict inside an official file: prefers the averaged weights, drops DataParallel's `module.`."
    for key in ("params_ema", "params"):
        if key in state and isinstance(state[key], dict):
            state = state[key]
            break
    return {k.removeprefix("module."): v for k, v in state.items()}


def recognise(state, family=None):
    """The GFPGANConfig of an official GFPGAN state dict, read from its names and shapes; any size and width.

    GFPGANv1 and GFPGANBilinear have the same names and shapes: `family` ("v1", "bilinear", "clean") decides; None means v1 for both.
    """
    missing = [k for k in ("final_linear.weight", "stylegan_decoder.constant_input.weight", "stylegan_decoder.to_rgb1.modulated_conv.modulation.weight") if k not in state]
    if missing:
        raise WeightsError(f"not an official GFPGAN generator: {missing[0]} is missing")
    found = "clean" if "conv_body_first.weight" in state else "v1"
    family = family or found
    if family not in FAMILIES or (family == "clean") != (found == "clean"):
        raise WeightsError(f"these are weights of a {found} network, not of family {family!r}; known: {sorted(FAMILIES)}")
    size = 4 * 2 ** sum(k.startswith("toRGB.") and k.endswith(".weight") for k in state)
    style_dim = state["stylegan_decoder.to_rgb1.modulated_conv.modulation.weight"].shape[1]
    narrow = state["stylegan_decoder.constant_input.weight"].shape[1] / 512
    at64 = state.get("stylegan_decoder.style_convs.6.modulated_conv.weight")      # first convolution at 64 px
    scale, cond = state.get("condition_scale.0.2.weight"), state["toRGB.0.weight"].shape[1]
    sft = "none" if scale is None else "half" if scale.shape[0] == cond else "full"
    return GFPGANConfig(size=size, style_dim=style_dim, narrow=narrow, channel_multiplier=1 if at64 is None else at64.shape[1] / 256 / narrow, sft=sft,
                        n_mlp=sum("style_mlp" in k and k.endswith(".weight") for k in state),
                        w="one" if state["final_linear.weight"].shape[0] == style_dim else "per_layer", **FAMILIES[family])


def _translate(net, pairs, state, source):
    own, got = net.state_dict(), {}
    missing = [theirs for _, theirs in pairs if theirs not in state]
    unexpected = sorted(state.keys() - {theirs for _, theirs in pairs})
    if missing or unexpected:
        raise WeightsError(f"{source}: {len(missing)} keys missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}")
    for ours, theirs in pairs:
        v, want = state[theirs], own[ours].shape
        if v.numel() != want.numel():                   # the official shapes only add dimensions of size 1
            raise WeightsError(f"{source}: {theirs} is {tuple(v.shape)}, needs {tuple(want)}")
        got[ours] = v.reshape(want)
    return _fill(net.to(next(iter(got.values())).dtype), got, source).eval()


def from_official(state, family=None, source="state dict"):
    "An official GFPGANv1, GFPGANBilinear or GFPGANv1Clean state dict -> GFPGAN with the same outputs. Raises WeightsError."
    state = _unwrap(state)
    try:
        config = recognise(state, family)
    except ValueError as e:
        raise WeightsError(f"{source}: {e}") from e
    return _translate(GFPGAN(config), generator_names(config), state, source)


def prior_from_official(state, resample="fir", source="state dict"):
    "An official StyleGAN2 generator (equalised; FIR or bilinear resampling) -> StyleGAN2 with the same outputs."
    state = _unwrap(state)
    if "constant_input.weight" not in state or "style_mlp.1.weight" not in state:
        raise WeightsError(f"{source}: not an official StyleGAN2 generator")
    n = sum(k.startswith("to_rgbs.") and k.endswith("modulated_conv.weight") for k in state)
    narrow = state["constant_input.weight"].shape[1] / 512
    at64 = state.get("style_convs.6.modulated_conv.weight")
    n_mlp = sum(k.startswith("style_mlp") and k.endswith(".weight") for k in state)
    net = StyleGAN2(4 * 2**n, state["style_mlp.1.weight"].shape[1], n_mlp, 1 if at64 is None else at64.shape[1] / 256 / narrow, narrow, resample=resample)
    return _translate(net, prior_names(n, n_mlp, True), state, source)


# %%
#| export
def to_official(net):
    "The state dict that the official class of this net's family loads (`GFPGANv1`, `GFPGANBilinear` or `GFPGANv1Clean`)."
    c = net.config
    if not c.use_prior:
        raise ValueError("the official code has no generator without the prior")
    if (c.resample, c.equalized) == ("fir", False):
        raise ValueError("no official class has FIR resampling with baked scales")
    own, out = net.state_dict(), {}
    for ours, theirs in generator_names(c):
        v = own[ours].detach().clone()
        if theirs.endswith("modulated_conv.weight"):
            v = v[None]                                  # (1, cout, cin, k, k)
        elif re.search(r"(to_rgb1|to_rgbs\.\d+|style_conv1|style_convs\.\d+)\.bias$", theirs):
            v = v[None, :, None, None]                   # added to a feature map as it is
        out[theirs] = v
    return out


def to_clean(net):
    """A bilinear, equalised GFPGAN -> the same function with every scale baked into the weights (`equalized=False`), ready to deploy.

    Exact up to rounding; a FIR net is a ValueError, as its resampling has no clean form.
    """
    c = net.config
    if c.resample != "bilinear":
        raise ValueError("only a net with resample='bilinear' has a clean form; FIR resampling does not")
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


# %%
#| export
@dataclass(frozen=True)
class Release:
    "One official file: where it is, what it must hash to (None: not published), which family it belongs to."

    name: str
    url: str
    family: str
    sha256: str | None = None
    bytes: int | None = None
    note: str = ""


LICENCE = "code Apache-2.0; weights trained on FFHQ (CC BY-NC-SA 4.0): non-commercial"
_BASE = "https://github.com/TencentARC/GFPGAN/releases/download/"
RELEASES = {r.name: r for r in (
    Release("v1", _BASE + "v0.1.0/GFPGANv1.pth", "v1", note="the paper's model, with colour enhancement"),
    Release("v1.2", _BASE + "v0.2.0/GFPGANCleanv1-NoCE-C2.pth", "clean", "29e25ee90c170f4231163f4c83df6b59c968b73f3ce00cb884015ae005db083c", note="no colour enhancement"),
    Release("v1.3", _BASE + "v1.3.0/GFPGANv1.3.pth", "clean", "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70", 348632874, "more natural than v1.2"),
    Release("v1.4", _BASE + "v1.3.0/GFPGANv1.4.pth", "clean", "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad", 348632874, "more details, better identity than v1.3"),
)}


def cache_dir():
    "Where downloads are kept: $GFPGAN_EDU_CACHE, else $XDG_CACHE_HOME/gfpgan_edu, else ~/.cache/gfpgan_edu."
    base = os.environ.get("GFPGAN_EDU_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfpgan_edu"


def sha256_of(path):
    with open(path, "rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# %%
#| export
def download(release, cache=None, progress=True):
    """Fetch a `Release` (or its name) into the cache and return the path. A finished file is used again; a broken-off one is resumed.

    The SHA-256 must agree with the published one. Where none is published, the hash of the first download is shown and remembered,
    and a later download must agree with it. Raises WeightsError (no network, wrong hash); nothing partial is ever used.
    """
    r = RELEASES[release] if isinstance(release, str) else release
    folder = Path(cache) if cache else cache_dir()
    path, part, seen = folder / r.url.rsplit("/", 1)[1], folder / (r.url.rsplit("/", 1)[1] + ".part"), folder / "hashes.json"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(r.url, part, progress)
    except OSError as e:                                 # URLError and time-outs are OSErrors
        raise WeightsError(f"{r.name}: download of {r.url} failed ({e}); what came is kept in {part} and will be resumed") from e
    known = json.loads(seen.read_text()) if seen.exists() else {}
    digest, want = sha256_of(part), r.sha256 or known.get(r.url)
    if want and digest != want:
        part.unlink()
        raise WeightsError(f"{r.name}: SHA-256 of {r.url} is {digest}, not {want}; the file was deleted")
    if not want:
        print(f"{r.name}: no SHA-256 is published for this file; this one has {digest}, remembered in {seen}", file=sys.stderr)
        seen.write_text(json.dumps(known | {r.url: digest}, indent=1))
    os.replace(part, path)
    return path


def _fetch(url, part, progress):
    "Download `url` to `part`, going on where an earlier try broke off."
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:                       # nothing is left to fetch
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as f:
        have = have if response.status == 206 else 0     # 200: the server sends the whole file again
        total = have + int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=not progress) as bar:
            while block := response.read(1 << 18):
                f.write(block)
                bar.update(len(block))
    if total and part.stat().st_size < total:
        raise OSError(f"connection closed after {part.stat().st_size} of {total} bytes")


# %%
#| export
BUNDLED = "first128"


def bundled_path():
    return Path(str(resources.files("gfpgan_edu.bundled") / f"{BUNDLED}.safetensors"))


def load_weights(weights="bundled", family=None, progress=True):
    """A GFPGAN by name or path, eval mode: "bundled", an official release ("v1" … "v1.4", downloaded once), a .safetensors of ours,
    or an official .pth (`family` as in `recognise`). Pickles are read with weights_only=True: code in them does not run. Raises WeightsError."""
    if weights == "bundled":
        return load(bundled_path())
    if str(weights) in RELEASES:
        r = RELEASES[str(weights)]
        weights, family = download(r, progress=progress), r.family
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"{weights}: no such file, nor a known name (bundled, {', '.join(RELEASES)})")
    if path.suffix == ".safetensors":
        return load(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        raise WeightsError(f"{path}: not a plain file of tensors ({str(e).splitlines()[0]})") from e
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds {type(state).__name__}, needs a dict of tensors")
    return from_official(state, family, path)

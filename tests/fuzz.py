"""Damage files at random and read them: pictures, weights, training configs. Whatever a file holds,
it is read or refused by one clear error of ours, soon and in little memory.

    .venv/bin/python tests/fuzz.py [--count 1000] [--seed 0] [--what picture weights config]

Exit code 1 and the files in a folder where something is wrong. File number i of a seed is always
the same, so a fault that was found once can be found again. A reader that kills the process or
works longer than a minute leaves its file behind, too.
"""
import argparse
import io
import json
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from peak import peak
from PIL import Image, ImageCms

from gfpgan_edu.cli import Train
from gfpgan_edu.engine import plain
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.pictures import (KINDS, MAX_PIXELS, UPRIGHT, PhotoError, read_picture,
                                 write_picture)
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.train_prior import PRESETS as PRIORS
from gfpgan_edu.train_restorer import PRESETS as RESTORERS
from gfpgan_edu.weights import WeightsError, load_prior, load_weights, save, to_official

SHARES = {"picture": 0.6, "weights": 0.25, "config": 0.15}
# bytes above what the process had after reading the undamaged files: a damaged header can claim as
# many pixels as are allowed
MOST_MEMORY = 20 * MAX_PIXELS


# ---------------------------------------------------------------- undamaged files

def ink_profile(lightness=50):
    """A CMYK profile in which paper is white, black ink is black, and any other ink is grey of
    this CIE lightness."""
    corner = lambda c, m, y, k: 0 if k else round(2.55 * lightness) if c or m or y else 255
    table = bytes(v for i in range(16) for v in (corner(i & 8, i & 4, i & 2, i & 1), 128, 128))
    ramp = bytes(range(256))
    unit = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + 4 * ramp + table + 3 * ramp
    head = struct.pack(">I4xI4s4s4s12x4s28x3i48x", 144 + len(lut), 0x02400000, b"prtr", b"CMYK",
                       b"Lab ", b"acsp", 0xF6D6, 65536, 0xD32D)
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


def camera_notes(orientation=6):
    exif = Image.Exif()
    exif[0x10F], exif[0x112], exif[0x132] = "Maker", orientation, "2020:01:01 00:00:00"
    camera = {0x9003: "2020:01:01 00:00:00", 0xA002: 24, 0x927C: b"maker's note"}
    exif.get_ifd(0x8769).update(camera)
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 3.5)})
    return exif.tobytes()


def pictures():
    "[(suffix, bytes)]: every format, and in each what makes it difficult."
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((4, 4, 1)))
    rgb = Image.fromarray(blocks.astype(np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (16, 24)).astype(np.uint16))
    rgba, grey, ink = rgb.copy(), rgb.convert("L"), rgb.convert("CMYK")
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    notes, inks = dict(exif=camera_notes()), dict(icc_profile=ink_profile())
    both = dict(exif=camera_notes(), icc_profile=srgb)
    film = dict(save_all=True, append_images=[rgb.rotate(a) for a in (90, 180)])
    made = [
        ("jpg", rgb, both), ("jpg", rgb, dict(progressive=True)), ("jpg", ink, inks),
        ("jpg", grey, notes), ("mpo", rgb, film),
        ("png", rgba, both), ("png", rgb.quantize(16), dict(transparency=3)), ("png", deep, {}),
        ("png", rgb, film), ("png", rgb.convert("LA"), notes), ("png", rgb.convert("1"), {}),
        ("webp", rgb, both), ("webp", rgba, dict(lossless=True)), ("webp", rgb, film),
        ("tif", rgb, both), ("tif", rgba, dict(compression="tiff_lzw")), ("tif", rgba, notes),
        ("tif", deep, dict(compression="tiff_adobe_deflate")), ("tif", ink, inks),
        ("tif", rgb, dict(compression="jpeg")),
        ("tif", rgb.convert("1"), dict(compression="group4")), ("tif", rgb, film),
        ("bmp", rgb, {}), ("bmp", rgb.quantize(16), {}), ("gif", rgb, film), ("gif", grey, {}),
        ("avif", rgba, both)]
    formats = Image.registered_extensions()
    return [(suffix, stored(im, suffix, options)) for suffix, im, options in made
            if formats.get(f".{suffix}") in Image.SAVE]


def stored(im, suffix, options):
    # copies: Pillow leaves one format's settings on an image, and the next stumbles over them
    file = io.BytesIO()
    options = {k: [i.copy() for i in v] if k == "append_images" else v for k, v in options.items()}
    im.copy().save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def weights(folder):
    torch.manual_seed(0)
    net = GFPGAN(GFPGANConfig.tiny(8).replace(style_dim=8))
    prior = StyleGAN2(8, 8, 1, narrow=1 / 64)
    save(net, folder / "net.safetensors")
    save(prior, folder / "prior.safetensors")
    torch.save({"params_ema": to_official(net)}, folder / "net.pth")
    torch.save(to_official(net), folder / "old.pth", _use_new_zipfile_serialization=False)
    return [(p.suffix[1:], p.read_bytes()) for p in sorted(folder.iterdir())]


def configs():
    made = []
    for what, presets in (("restorer", RESTORERS), ("prior", PRIORS)):
        for make in presets.values():
            text = f"# {what}\n" + yaml.safe_dump(plain(make()), sort_keys=False)
            made.append(("yaml", text.encode()))
    return made


# ---------------------------------------------------------------- damage

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 20, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]


def bytes_damaged(data, other, rng):
    """One to four of: a bit, a number of 1 to 8 bytes, a piece of another file put in or over, a
    piece removed, the end cut off. More often near the beginning, where the fields are."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # a file without its first bytes is of no known kind, and nobody looks further
        first = 12 if rng.random() < 0.9 and len(data) > 12 else 0
        at = first + int((len(data) - first) * rng.random() ** 2.5)
        long = int(rng.integers(1, 64))
        piece = other[(start := int(rng.integers(len(other)))):start + long]
        match rng.choice(6, p=[0.3, 0.35, 0.1, 0.1, 0.1, 0.05]):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                width = int(rng.choice([1, 2, 4, 8]))
                number = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)
                order = str(rng.choice(["little", "big"]))
                data[at:at + width] = number.to_bytes(width, order)
            case 2:
                data[at:at] = piece
            case 3:
                data[at:at + long] = piece
            case 4:
                del data[at:at + long]
            case 5:
                del data[int(rng.integers(len(data) + 1)):]
    return bytes(data)


def with_right_sums(png):
    "The chunks' checksums made right again, without which a reader looks no further."
    out, at = bytearray(png), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at:at + 4], "big")
        if end + 4 > len(out):
            break
        out[end:end + 4] = zlib.crc32(out[at + 4:end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


DEEP = "DEEP"             # stands for 100,000 brackets, which no JSON writer would write
VALUES = [None, True, False, -1, 0, 1, 3, 2.5, 1e308, -1e308, float("nan"), float("inf"), 1 << 30,
          1 << 63, 1 << 80, 10**4000, "", "64", "F32", "F64", "I8", "BOOL", "F8_E4M3", "C64",
          "clean\n", "x" * 5000, [], [[]], [0, 1], [1 << 40, 1 << 40], {}, {"a": 1}, DEEP]


def header_damaged(data, rng):
    "A safetensors file in whose header, or config, one to three values are others."
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    meta = header["__metadata__"]
    meta["config"] = json.loads(meta["config"])
    for _ in range(rng.integers(1, 4)):
        names = sorted(header)
        entry = header[names[rng.integers(len(names))]]
        holder = [header, meta, meta["config"], meta["config"], entry][rng.integers(5)]
        if isinstance(holder, dict) and holder:
            keys = sorted(holder)
            key = keys[rng.integers(len(keys))]
            match rng.integers(6):
                case 0:
                    del holder[key]
                case 1:
                    holder[str(VALUES[rng.integers(len(VALUES))])] = holder[key]
                case _:
                    holder[key] = VALUES[rng.integers(len(VALUES))]
        if not all(isinstance(v, dict) for v in (header.get("__metadata__"), meta.get("config"))):
            break
    if rng.random() < 0.95 and "config" in meta:
        meta["config"] = json.dumps(meta["config"]).replace(f'"{DEEP}"', "[" * 100_000)
    text = json.dumps(header).replace(f'"{DEEP}"', "[" * 100_000).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + n:]


# 9^10 letters once written out
LAUGHS = "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij")) + "]"
TEXTS = ["", "~", "[", "]", "{a: [}", "!!python/object/apply:os._exit [3]", "1e999", ".nan",
         "-.inf", "-1", "0", "0x10", "1_0", "2001-99-99", "2001-01-01", "&z [*z]", "&z {a: *z}",
         "*none", "!!int ''", "!!float ''", "!!int x", "!!binary x", "!!set {a}", "!!timestamp x",
         "!!bool x", "9" * 5000, "[" * 2000, "{" * 2000, "yes", "'64'", "\x00", "\ufeff", "\u2028",
         "- 1", "? ", "1:2:3", "<<: 3", "{<<: 3}", "{? [a] : b}", "|", ">", "%YAML 9", "---", "...",
         LAUGHS, "1 # x", "{}", "[1, 2]", "[1, a, ~]", "[[1], {}]", "1e308", str(1 << 70),
         "x" * 5000]


def text_damaged(data, rng):
    "A YAML file in which one to three values, keys or lines are others."
    lines = data.decode().split("\n")
    for _ in range(rng.integers(1, 4)):
        i, text = int(rng.integers(1, len(lines))), TEXTS[rng.integers(len(TEXTS))]
        key, colon, value = lines[i].partition(":")
        match rng.integers(6):
            case 0:
                lines[i] = f"{key}{text}:{value}"
            case 1:
                lines.insert(i, text)
            case 2:
                lines.insert(i, lines[rng.integers(1, len(lines))])
            case 3:
                lines[i] = text
            case _:
                lines[i] = f"{key}: {text}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged(seed, i, what, files):
    """(suffix, bytes) of damaged file number `i`; the same on every machine that writes the same
    undamaged files."""
    rng = np.random.default_rng([seed, i, *what.encode()])
    (suffix, data), (_, other) = (files[rng.integers(len(files))] for _ in range(2))
    if what == "weights" and suffix == "safetensors" and rng.random() < 0.6:
        return suffix, header_damaged(data, rng)
    if what == "config" and rng.random() < 0.7:
        return suffix, text_damaged(data, rng)
    data = bytes_damaged(data, other, rng)
    return suffix, with_right_sums(data) if suffix == "png" and rng.random() < 0.8 else data


# ---------------------------------------------------------------- readers

def by_pillow_alone(path):
    """What Pillow's decoders, strict as they are, make of a file, turned upright -> pixels
    (h, w, 3); None where `read_picture` has rules of its own for them (16 bits, ink). Raises what
    they raise."""
    with Image.open(io.BytesIO(path.read_bytes()), formats=KINDS) as im:
        deep = im.mode[0] == "I" or any(";16" in str(tile[3]) for tile in im.tile)
        im.load()
        # a damaged block turns nothing; not by ImageOps.exif_transpose, which also gives up where
        # it cannot write the rest of a block
        with suppress(Exception):
            im = im.transpose(UPRIGHT[im.getexif()[0x112]])
        if deep or im.mode == "CMYK":
            return None
        clear = im.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in im.info
        return np.asarray(im.convert("RGBA" if clear else "RGB"))[..., :3]


def check_pixels(path, picture):
    """Nothing is read that Pillow alone refuses, and no other pixels than it reads: an error that
    is swallowed would be the silent loss of a picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            alone = by_pillow_alone(path)
        except Exception as e:
            said = f"{type(e).__name__}: {e}"
            raise AssertionError(f"was read, though Pillow alone says {said}") from e
    same = alone is None or np.array_equal(alone, picture.pixels)
    assert same, "other pixels than Pillow alone reads"


def read_and_write_again(path):
    picture = read_picture(path)
    pixels, alpha = picture.pixels, picture.alpha
    h, w = pixels.shape[:2]
    assert pixels.dtype == np.uint8 and pixels.shape == (h, w, 3) and h * w
    assert all(isinstance(n, str) and "\n" not in n for n in picture.notes)
    assert alpha is None or alpha.dtype == np.uint8 and alpha.shape == (h, w)
    if h * w < 4_000_000:
        check_pixels(path, picture)
    # whatever was read can be written, with all that came along
    if h * w < 100_000:
        again = path.with_name(f"again.{('png', 'jpg', 'tif', 'webp')[h * w % 4]}")
        try:
            write_picture(again, picture)
        except PhotoError as e:
            if "a side" not in str(e):
                raise AssertionError(f"was read but cannot be written: {e}") from e
        else:
            assert read_picture(again).pixels.shape == picture.pixels.shape
            assert read_picture(again).pixels.shape == pixels.shape

def load_either(path):
    try:
        net = load_weights(path)
    except WeightsError as e:
        if "StyleGAN2" not in str(e):
            raise
        net = load_prior(path)
    assert all(torch.isfinite(v).all() for v in net.state_dict().values())


def resolve(path):
    what = "prior" if path.read_bytes().startswith(b"# prior") else "restorer"
    Train(data=path, out=path.with_name("out"), what=what, config=path).resolve()


READERS = {
    "picture": (read_and_write_again, PhotoError),
    "weights": (load_either, WeightsError),
    "config": (resolve, ValueError),
}


@dataclass
class Found:
    read: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    # what -> Counter of reasons, names and numbers taken out
    reasons: dict = field(default_factory=dict)
    faults: list = field(default_factory=list)      # one line each
    slowest: tuple = (0.0, "")
    memory: int = 0                                 # bytes above the beginning, at most


def try_file(path, what, found):
    "Read one file; what goes wrong is a line in `found.faults`."
    reader, error = READERS[what]
    # a minute of work, then the process ends: a program that waits for another is not disturbed
    signal.setitimer(signal.ITIMER_PROF, 60)
    began = time.process_time()
    try:
        reader(path)
        found.read[what] += 1
    except error as e:
        found.refused[what] += 1
        message = str(e).replace(str(path), "")
        reason = re.sub(r"['\"].*['\"]|\[.*\]|[-\d.]+", "…", message)[:70]
        found.reasons.setdefault(what, Counter())[reason] += 1
        told = str(path) in str(e) and message.strip(": ")
        if not told or "\n" in message or len(message) > 1000:
            found.faults.append(
                f"{path.name}: message of {len(str(e))} characters without the file's name, "
                f"too long, or of several lines: {str(e)[:200]!r}")
    except BaseException as e:                      # noqa: B036
        # everything else is a fault, whatever it is
        if isinstance(e, KeyboardInterrupt):
            raise
        found.faults.append(f"{path.name}: {type(e).__name__}: {str(e)[:200]!r}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    found.slowest = max(found.slowest, (time.process_time() - began, path.name))


def fuzz(count, seed, folder, wanted=tuple(SHARES), say=lambda line: None):
    "Read `count` damaged files; a file with a fault stays in `folder`."
    (folder / "whole").mkdir(parents=True)
    sources = {"picture": pictures(), "weights": weights(folder / "whole"), "config": configs()}
    # undamaged, all are read: the readers are warm and their memory is known
    for what in wanted:
        for i, (suffix, data) in enumerate(sources[what]):
            (path := folder / f"whole-{i}.{suffix}").write_bytes(data)
            READERS[what][0](path)
            path.unlink()
    found, before = Found(), peak()
    all_shares = sum(SHARES[w] for w in wanted)
    jobs = [(what, i) for what in wanted
            for i in range(round(count * SHARES[what] / all_shares))]
    for n, (what, i) in enumerate(jobs, 1):
        suffix, data = damaged(seed, i, what, sources[what])
        (path := folder / f"{what}-{seed}-{i}.{suffix}").write_bytes(data)
        faults = len(found.faults)
        try_file(path, what, found)
        if len(found.faults) == faults:
            path.unlink()
        if n % 2000 == 0:
            say(f"{n} of {len(jobs)} damaged files")
    found.memory = peak() - before
    if found.memory > MOST_MEMORY:
        found.faults.append(f"memory: {found.memory / 1e6:.0f} MB above the beginning")
    return found


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", nargs="*", choices=SHARES, default=list(SHARES))
    parser.add_argument("--reasons", action="store_true",
                        help="print how often each reason was given")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="gfpgan-edu-fuzz-"))
    print(f"files under test in {folder}", flush=True)
    found = fuzz(options.count, options.seed, folder / "files", options.what,
                 lambda line: print(line, flush=True))
    for line in found.faults[:50]:
        print(f"FAULT {line}")
    for what, reasons in found.reasons.items():
        for reason, n in reasons.most_common() if options.reasons else ():
            print(f"{what:8} {n:6} {reason}")
    counts = [f"{what}: {found.read[what]} read, {found.refused[what]} refused"
              for what in options.what]
    seconds, name = found.slowest
    print("; ".join(counts) + f"; {len(found.faults)} faults; slowest {seconds:.1f} s ({name}); "
          f"{found.memory / 1e6:.0f} MB of memory above the beginning")
    if found.faults:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

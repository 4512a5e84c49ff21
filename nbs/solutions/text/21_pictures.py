# %% [markdown]
# # Solutions: picture files {#sec-solutions-pictures .unnumbered}
#
# The exercises are those of @sec-pictures.

# %%
import inspect
import io
import struct
import tempfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastcore.test import test_fail
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms

from gfpgan_edu import pictures
from gfpgan_edu.examples import astronaut, show
from gfpgan_edu.pictures import MAX_PIXELS, Picture, PhotoError, read_picture, write_picture

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## 1. Compute: the claim and the packing
#
# *A PNG of 3 kB claims 50,000 × 50,000 pixels. How much memory would a decoder ask for? How large is a PNG of 120 million equal pixels at least?* RGB is three bytes a pixel (Pillow itself keeps four). zlib writes at best 258 bytes as two bits, one for the length and one for the distance, which is where its limit of $8\cdot258/2=1032$ comes from.

# %%
print(f"claimed: {50_000**2 * 3 / 1e9:.1f} GB, in Pillow {50_000**2 * 4 / 1e9:.0f} GB")
packed = {n: len(zlib.compress(bytes(3 * n), 9)) for n in (4_000_000, 8_000_000)}
a_pixel = (packed[8_000_000] - packed[4_000_000]) / 4_000_000           # bytes for each further one
print(f"one byte for {3 / a_pixel:.0f}; {MAX_PIXELS:,} equal pixels: "
      f"{MAX_PIXELS * a_pixel / 1e3:.0f} kB at least")
assert abs(3 / a_pixel - 8 * 258 / 2) < 5 and 3 * MAX_PIXELS / 1032 > 300_000


def png_of(width, height, data):
    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))


side = 1000
rows = (b"\0" + bytes(3 * side)) * side             # a byte for the filter before each row
honest = png_of(side, side, zlib.compress(rows, 9))
(folder / "honest.png").write_bytes(honest)
assert (read_picture(folder / "honest.png").pixels == 0).all() and len(honest) > 3 * side**2 / 1032
(folder / "bomb.png").write_bytes(png_of(50_000, 50_000, zlib.compress(bytes(3_000_000), 9)))
test_fail(lambda: read_picture(folder / "bomb.png"), exc=PhotoError, contains="million pixels")
print(f"a million equal pixels, honestly: {len(honest)} bytes; "
      f"the file that claims 2,500 million: {(folder / 'bomb.png').stat().st_size}")


# %% [markdown]
# The bomb is of the size of an honest file of one million pixels, and claims 2,500 times as many. So a rule "not more than 1,030 pixels' bytes for each byte of the file" would catch it as well; but an honest file of 120 million equal pixels is only 350 kB, so a small file alone is no sign of harm. What counts is the number in the header.
#
# ## 2. Modify: to sRGB and back
#
# *Let pictures with an RGB profile be converted to sRGB for the network and back afterwards. How would you check that a picture nobody restored comes back within one grey level?* With a wide profile and colours outside sRGB: those are cut off on the way, and no way back returns them. The next cell makes such a profile, that of Display P3 with a plain power for the curve.

# %%
def wide_profile(gamma=2.2):
    "An RGB profile with the primaries of Display P3 (XYZ, adapted to D50)."
    primaries = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2920, 0.6922, 0.0419),
                 b"bXYZ": (0.1571, 0.0666, 0.7841)}
    curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(256 * gamma))
    tags = {k: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in xyz))
            for k, xyz in primaries.items()}
    tags |= {k: curve for k in (b"rTRC", b"gTRC", b"bTRC")}
    at, table, data = 132 + 12 * len(tags), b"", b""
    for kind, body in tags.items():
        table += struct.pack(">4sII", kind, at + len(data), len(body))
        data += body
    head = struct.pack(">I4xI4s4s4s12x4s28x3i48x", at + len(data), 0x02400000, b"mntr", b"RGB ",
                       b"XYZ ", b"acsp", 0xF6D6, 65536, 0xD32D)
    return head + struct.pack(">I", len(tags)) + table + data


def converted(pixels, *profiles):
    "uint8 H×W×3 from the first profile to the second."
    image = ImageCms.profileToProfile(Image.fromarray(pixels), *profiles, outputMode="RGB")
    return np.asarray(image)


wide = ImageCms.ImageCmsProfile(io.BytesIO(wide_profile()))
srgb = ImageCms.createProfile("sRGB")
photo = astronaut()[50:170, 180:270]                # sRGB; its colours are all inside
rows = np.repeat(np.uint8([[230, 20, 20], [20, 220, 30], [20, 30, 230]]), 30, 0)
vivid = np.concatenate([converted(photo[:60], srgb, wide), np.tile(rows, (60, 1, 1))])
there_and_back = converted(converted(vivid, wide, srgb), srgb, wide)
off = np.abs(there_and_back.astype(int) - vivid).max(2)
print(f"there and back: the photo's half is off by at most {off[:60].max()}, "
      f"the vivid half by up to {off[60:].max()} grey levels")
assert off[:60].max() <= 1 and off[60:].max() > 20


# %% [markdown]
# So the plain way there and back fails the check. The cure is the one of @sec-photos: not the restored picture goes back but the *change*. With $p$ the pixels, $s$ their sRGB version, $y$ the network's answer to $s$, and $B$ the way back, the result is $p+B(y)-B(s)$. Where $y=s$ that is $p$, exactly.

# %%
#| fig-alt: "Three pictures: the original, the same after a way there and back, and the change between them, lighter."
def restored_in_srgb(path, out, network):
    "Read, convert, run the network, and give back the change in the picture's own colours."
    picture = read_picture(path)
    profile = picture.icc and not picture.grey and ImageCms.ImageCmsProfile(io.BytesIO(picture.icc))
    if not profile:
        write_picture(out, replace(picture, pixels=network(picture.pixels)))
        return
    s = converted(picture.pixels, profile, srgb)
    back = [converted(np.ascontiguousarray(p), srgb, profile).astype(int) for p in (network(s), s)]
    changed = np.clip(picture.pixels + back[0] - back[1], 0, 255).astype(np.uint8)
    write_picture(out, replace(picture, pixels=changed))


def lighten(s):
    return np.clip(s + 12.0, 0, 255).astype(np.uint8)


write_picture(folder / "vivid.png", Picture(vivid, icc=wide_profile()))
restored_in_srgb(folder / "vivid.png", folder / "same.png", lambda s: s)
assert_array_equal(read_picture(folder / "same.png").pixels, vivid)
assert read_picture(folder / "same.png").icc == wide_profile()
restored_in_srgb(folder / "vivid.png", folder / "lighter.png", lighten)
lighter = read_picture(folder / "lighter.png").pixels
change = lighter.astype(int) - vivid
print("a network that adds 12 to sRGB changes the photo's half by "
      f"{change[:60].min()} to {change[:60].max()}, {change[:60].mean():.0f} on average")
assert abs(change[:60].mean() - 12) < 4
show([vivid, there_and_back, lighter], ["the picture", "there and back", "the change, lighter"],
     height=1.6);

# %% [markdown]
# ## 3. Break: eight hundred damaged files
#
# *Damage the first 200 bytes of a small picture as GIF, BMP, PNG and JPEG, one at a time, and read them. Then remove `except Exception` from `read_picture` and count the kinds of errors that Pillow raises.*

# %%
source, tiny = inspect.getsource(read_picture), Image.fromarray(photo[:24, :24])
assert source.count("except Exception as e:") == 1
bare = dict(vars(pictures))
# the same function, without the net
exec(source.replace("except Exception as e:", "except PhotoError as e:"), bare)


def outcomes(read, kind):
    "How often what comes of reading 200 copies, each with one other byte."
    file, rng, seen = io.BytesIO(), np.random.default_rng(21), Counter()
    tiny.save(file, kind)
    for i in range(200):
        damaged = bytearray(file.getvalue())
        damaged[i] ^= int(rng.integers(1, 256))
        (folder / "x").write_bytes(damaged)
        try:
            seen["read"] += bool(read(folder / "x").pixels.size)
        except Exception as e:
            seen[type(e).__name__] += 1
    return seen


# %% tags=["volatile"]
kinds = set()
for kind in ("GIF", "BMP", "PNG", "JPEG"):
    ours, pillows = outcomes(read_picture, kind), outcomes(bare["read_picture"], kind)
    print(f"{kind:4} with the net {dict(ours)}, without {dict(pillows)}")
    assert set(ours) <= {"read", "PhotoError"} and ours["read"] == pillows["read"]
    kinds |= set(pillows) - {"read", "PhotoError"}
assert len(kinds) >= 3
temporary.cleanup()

# %% [markdown]
# Most damage to a GIF or a BMP is not seen: they have no checksum, so a changed byte is a changed picture. A PNG has one for each chunk and is nearly always refused. What is noticed comes in several kinds of errors, and one of them, the bomb, is no error of reading at all in Python's order of exceptions. Which kinds there are is an accident of the decoders and differs between versions. A caller cannot list them, so the reader has to take them all.

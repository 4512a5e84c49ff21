# %% [markdown]
# # Picture files {#sec-pictures}
#
# > A photo is more than its pixels, and not every file called .jpg is a photo.
#
# **You will build** a reader that turns whatever people have into pixels or into one clear sentence, and a writer that leaves a whole file or none. **Needs** nothing from the earlier chapters. **Runs in** about 3 s on a laptop CPU.

# %%
#| default_exp pictures

# %%
#| export
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# %%
import io
import tempfile

from fastcore.test import test_fail
from numpy.testing import assert_array_equal

from gfpgan_edu.examples import astronaut


# %% [markdown]
# ## Reading whatever people have
#
# A photo from a phone is often stored lying on its side, with a note (the EXIF orientation) that says how to turn it. A scan may be grey with 16 bits, a logo may have a transparent background, a printer's file may be CMYK. The network wants 8-bit RGB, upright.
# A program that restores whole folders also meets text files called `.jpg`, half downloads and empty files. It must name the file and the reason, and go on with the next one.
#
# `to_rgb` converts what Pillow has opened, and `read_image` turns every failure into one kind of error.

# %%
#| export
class PhotoError(ValueError):
    "A photo that cannot be read or written; the message names the file and the reason."


_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
UPRIGHT = {tag: Image.Transpose[turn] for tag, turn in enumerate(_TURNS, 2)}    # what undoes an EXIF orientation; 1 is upright


def to_rgb(im):
    "A PIL image -> uint8 H×W×3 RGB, turned upright by its EXIF tag. Grey of 16 bits becomes 8 bits; transparency is dropped."
    turn = None
    with suppress(Exception):                                               # a broken EXIF block does not make the picture worthless
        turn = UPRIGHT.get(im.getexif().get(0x0112))
    if turn is not None:
        im = im.transpose(turn)
    if im.mode.startswith("I"):                                             # Pillow's own conversion would clip everything above 255
        grey = np.rint(np.clip(np.asarray(im, np.float32), 0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if im.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    return np.array(im.convert("RGB"))


# %%
#| export
def read_image(path):
    "A picture file -> uint8 H×W×3 RGB, turned upright by its EXIF tag. Raises PhotoError that names the file and the reason."
    path = Path(path)
    try:
        if path.is_dir():
            raise PhotoError(f"{path}: is a folder, not a picture")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                 # a picture is read or it is an error, nothing between
            with Image.open(path) as im:
                im.load()
                return to_rgb(im)
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise PhotoError(f"{path}: " + ("not a picture of a known kind" if path.stat().st_size else "is empty")) from None
    except Image.DecompressionBombError:
        raise PhotoError(f"{path}: has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels") from None
    except Exception as e:                                                  # decoders of damaged files raise nearly anything
        reason = getattr(e, "strerror", None) or str(e).split(" (")[0] or type(e).__name__
        raise PhotoError(f"{path}: cannot be read ({reason.lower()})") from e


# %% [markdown]
# The eight orientations: store the picture turned so that the tag undoes it, and read it back. The inverse of each of Pillow's eight operations is known, so every pixel can be compared.

# %%
photo, temporary = astronaut(), tempfile.TemporaryDirectory()
folder, T = Path(temporary.name), Image.Transpose
small = Image.fromarray(photo[:60, 200:240])
undone_by = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
for tag, operation in undone_by.items():
    exif = Image.Exif()
    exif[0x0112] = tag
    (small.transpose(operation) if operation is not None else small).save(folder / "turned.png", exif=exif)
    assert_array_equal(read_image(folder / "turned.png"), small)

values = np.array([[0, 256, 257, 65535]], np.uint16)                        # 16 bits of grey, to the nearest of 256 levels
Image.fromarray(values).save(folder / "deep.png")
assert_array_equal(read_image(folder / "deep.png")[0, :, 1], [0, 1, 1, 255])
for mode in ("L", "LA", "P", "RGBA", "CMYK"):
    (small.quantize(256) if mode == "P" else small.convert(mode)).save(folder / "mode.tif")
    off = np.abs(read_image(folder / "mode.tif").astype(int) - (small.convert("L").convert("RGB") if mode in ("L", "LA") else small)).mean()
    assert off < (3 if mode == "P" else 1), (mode, off)                     # a palette has 256 colours only

# %%
(folder / "letter.jpg").write_text("Dear Eileen")
(folder / "empty.png").touch()
whole = io.BytesIO()
small.save(whole, "JPEG")
(folder / "half.jpg").write_bytes(whole.getvalue()[:900])
for name, reason in {"letter.jpg": "not a picture", "empty.png": "is empty", "half.jpg": "truncated", "gone.jpg": "no such file", "": "is a folder"}.items():
    try:
        read_image(folder / name)
        raise AssertionError(f"{name} was read")
    except PhotoError as e:
        assert str(folder / name) in str(e) and reason in str(e), e
        print(str(e).replace(str(folder), "folder"))


# %% [markdown]
# This first version keeps the picture only. Transparency, the other eight bits of a deep file, the colour profile and the camera's notes are not carried over to the result; the photo you started from is never touched, so nothing is lost for good.
#
# Writing has one rule: a result is there whole or not at all. So the file is made under another name and renamed at the end. JPEGs are stored at quality 95 with full colour resolution, as the eyes that were just restored should not be blurred again.

# %%
#| export
def write_image(path, image):
    "uint8 H×W×3 RGB -> file of the kind that its suffix names, atomically: a failed write leaves nothing behind. Raises PhotoError."
    path = Path(path)
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise PhotoError(f"{path}: cannot be written (no format is known for {path.suffix or 'a name without a suffix'})")
    options = {"JPEG": dict(quality=95, subsampling=0), "WEBP": dict(quality=95), "AVIF": dict(quality=95)}.get(kind, {})
    part = path.with_name(f".gfpgan_edu-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part, kind, **options)
        part.replace(path)
    except (OSError, ValueError) as e:
        raise PhotoError(f"{path}: cannot be written ({getattr(e, 'strerror', None) or e})") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)                                    # there only if something went wrong, Ctrl-C included


# %%
out = folder / "results" / "deeper"
write_image(out / "a.png", photo)
assert_array_equal(read_image(out / "a.png"), photo)                        # no loss where the format has none
write_image(out / "a.jpg", photo)
Image.fromarray(photo).save(folder / "usual.jpg", quality=95)
error = [np.abs(read_image(p).astype(int) - photo).mean() for p in (out / "a.jpg", folder / "usual.jpg")]
print(f"mean error of a JPEG at quality 95: {error[0]:.2f} grey levels; with the usual halved colour resolution {error[1]:.2f}")
assert error[0] < error[1]
(folder / "file").touch()
test_fail(lambda: write_image(folder / "file" / "a.png", photo), exc=PhotoError, contains="cannot be written")
test_fail(lambda: write_image(out / "a.xyz", photo), exc=PhotoError, contains=".xyz")
test_fail(lambda: write_image(out / "a.xbm", photo), exc=PhotoError, contains="cannot be written")      # a format for black and white
(out / "b.png").mkdir()                                                     # a folder where the file should go: found out at the last moment
test_fail(lambda: write_image(out / "b.png", photo), exc=PhotoError, contains="cannot be written")
assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "a.png", "b.png"]           # no crumbs

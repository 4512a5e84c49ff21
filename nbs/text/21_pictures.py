# %% [markdown]
# # Picture files {#sec-pictures}
#
# > A photo is more than its pixels, and not every file called .jpg is a photo.
#
# **You will build** a reader that turns whatever people have into upright 8-bit RGB, or into one clear sentence, and a writer that gives back what came with the pixels and leaves a whole file or none. **Needs** nothing from the earlier chapters. **Runs in** about 8 s on a laptop CPU.

# %%
#| default_exp pictures

# %%
#| export
import io
import math
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# %%
import tempfile

from fastcore.test import test_fail
from IPython.display import Markdown
from numpy.testing import assert_allclose, assert_array_equal
from PIL import ImageCms

from gfpgan_edu.examples import astronaut, show


# %% [markdown]
# ## What a photo file holds besides its pixels
#
# The network wants 8-bit RGB, upright, and nothing else. People's files hold more, and they want it back: a logo's transparent background, the colour profile of a camera, the date and place of a holiday. A grey portrait of a grandmother should come back grey.
# A restorer that decodes the pixels and throws the rest away returns a photo that is turned on its side, has lost its date, and looks duller on a good screen.
#
# So what is read is not an array but a `Picture`: the pixels for the network, and beside them what the writer needs to put the file together again. What had to be given up on the way is said in `notes`.

# %%
#| export
class PhotoError(ValueError):
    "A photo that cannot be read or written; the message names the file and the reason."


@dataclass(frozen=True, eq=False)
class Picture:
    """A photo as `read_picture` returns it and `write_picture` takes it.

    `dataclasses.replace(picture, pixels=…)` keeps all but the pixels.
    """

    pixels: np.ndarray                 # uint8 H×W×3, RGB, upright
    alpha: np.ndarray | None = None    # uint8 H×W, 255 opaque; None: the file has no transparency
    grey: bool = False                 # the file holds no colour, and shall be written so
    icc: bytes | None = None           # colour profile that fits the pixels (of RGB, or of grey)
    exif: bytes | None = None          # camera, date, place, … but no orientation, which is done
    notes: tuple = ()                  # a sentence for each thing not shown as the file has it


# %% [markdown]
# ## Upright
#
# A camera held sideways stores the rows as its sensor delivers them, and adds a note, the EXIF orientation, a number from 1 to 8: which of the eight symmetries of a rectangle would make the picture upright. A face detector sees the stored rows only. A face on its side is a face it does not find, so the note has to be obeyed, and then removed: a viewer that obeys it a second time would lay the result on its side again.
#
# The same block holds tags that describe how the pixels were *stored*: width, strips, compression, an embedded thumbnail. After a restoration they are false, so they go. What describes the *photo* stays: camera, date, exposure, and also the place, which is the user's to keep or remove.

# %%
#| export
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
          "TRANSVERSE", "ROTATE_90")
# what undoes an EXIF orientation; 1 is upright
UPRIGHT = {tag: Image.Transpose[turn] for tag, turn in enumerate(_TURNS, 2)}
# TIFF 6.0: size, strips, tiles, orientation, JPEG; XMP, IPTC, Photoshop, profile
_OF_PIXELS = {0xFE, 0xFF, *range(0x100, 0x104), 0x106, 0x10A, *range(0x111, 0x113),
              *range(0x115, 0x11A), 0x11C, 0x13D, *range(0x140, 0x146), 0x14A, 0x152, 0x153,
              0x154, 0x155, 0x15B, *range(0x200, 0x20A), *range(0x211, 0x215), 0x2BC, 0x83BB,
              0x8649, 0x8773}


# %%
#| export
def _exif(im):
    """(EXIF as bytes without what describes the stored pixels, or None; whether it was damaged).

    `im` is a PIL image. A TIFF must not be loaded yet: turning it empties the block.
    """
    try:
        exif = Image.Exif()
        exif.load(im.getexif().tobytes())       # a copy: Pillow needs the tags for loading
        for tag in _OF_PIXELS & set(exif):
            del exif[tag]
        # width and height once more, among the camera's settings
        for tag in (0xA002, 0xA003) if 0x8769 in exif else ():
            exif.get_ifd(0x8769).pop(tag, None)
        return exif.tobytes() if len(exif) else None, False
    except Exception:                           # a broken block does not make the picture worthless
        return None, True


# %%
#| export
def _upright(im):
    "A loaded PIL image turned as its EXIF orientation says."
    with suppress(Exception):
        return im.transpose(UPRIGHT[im.getexif()[0x112]])
    return im


# %% [markdown]
# ## Eight bits, and whose grey
#
# A scanner delivers 16 bits for a pixel. The largest values are 65535 and 255, and $65535=257\cdot255$, so a deep value $v$ becomes the nearest whole number to $v/257$. Pillow's own conversion of deep grey does something else: it cuts everything above 255. The check knows every one of the 65,536 answers.

# %%
#| export
_LEVELS = np.rint(np.arange(65536) / 257).astype(np.uint8)                  # 16 bits -> 8 bits


def _is_deep(im):
    """Whether a PIL image, opened but not loaded, holds 16 bits a channel.

    Seen from its mode or from the name of the layout that the decoder is told.
    """
    if im.mode.startswith("I"):
        return True
    return any(re.search(r";16", str(tile[3])) for tile in getattr(im, "tile", ()))


def _eight_bits(im):
    "Grey of 16 bits as grey of 8 bits."
    grey = np.asarray(im)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its grey values do not fit in 16 bits")
    return Image.fromarray(_LEVELS[grey])


# %%
every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
ours = np.asarray(_eight_bits(Image.fromarray(every)))
nearest = [[(2 * int(v) + 257) // 514 for v in row] for row in every]       # in whole numbers
assert_array_equal(ours, nearest)
wide = (np.arange(256) * 257).astype(np.uint16)                             # 8 -> 16 -> 8 bits
assert_array_equal(_eight_bits(Image.fromarray(wide[None])), [np.arange(256)])
too_large = Image.fromarray(np.array([[70000]], np.int32))
test_fail(lambda: _eight_bits(too_large), exc=ValueError, contains="16 bits")


# %% [markdown]
# ## Ink, and a profile for each kind of pixel
#
# Two files with the same numbers need not show the same colours. A colour profile (ICC) says what the numbers mean. The network's answer to a pixel is a pixel of the same kind, so an RGB file keeps its profile, and the result looks on every screen as the input did.
#
# A profile fits one kind of pixel only; bytes 16 to 19 of its header name it. A print shop's file holds four amounts of ink (CMYK), and its profile turns *ink* into colours. With the profile we convert to sRGB, without it by the textbook formula, which no printer obeys; either way the ink profile must not be attached to the RGB result. Nor may a grey profile go with colour pixels.

# %%
#| export
def _space(icc):
    """What kind of pixels an ICC profile is for: b'RGB ', b'GRAY', b'CMYK', …

    None where the bytes are no profile.
    """
    is_profile = isinstance(icc, bytes) and len(icc) >= 128 and icc[36:40] == b"acsp"
    return icc[16:20] if is_profile else None


def _from_ink(im, icc):
    "A CMYK image -> (RGB image, a note): by its profile to sRGB where it has one that works."
    from PIL import ImageCms

    if _space(icc) == b"CMYK":
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            srgb = ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(im, profile, srgb, outputMode="RGB")
            return rgb, "CMYK (ink), converted to sRGB by its profile"
    return im.convert("RGB"), "CMYK (ink) without a usable profile, its colours are a guess"


# %% [markdown]
# For a check that can fail we need a profile with a known answer. The next cell makes a small one: a table with a colour for each of the 16 corners of "no ink, full ink". Paper is white, black ink is black, and any mixture of the three others is a grey of lightness 50, which is an sRGB level of about 119. No real ink is like that, so an answer near 119 can only come from the profile.

# %%
def ink_profile(lightness=50):
    "A CMYK profile: paper is white, black ink black, any other ink grey of this CIE lightness."
    corner = lambda c, m, y, k: 0 if k else round(2.55 * lightness) if c or m or y else 255
    corners = (corner(i & 8, i & 4, i & 2, i & 1) for i in range(16))
    table = bytes(v for value in corners for v in (value, 128, 128))            # Lab, a = b = 0
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))      # changes nothing
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    head = struct.pack(">I4xI4s4s4s12x4s28x3i48x", 144 + len(lut), 0x02400000, b"prtr", b"CMYK",
                       b"Lab ", b"acsp", 0xF6D6, 65536, 0xD32D)
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


# paper, cyan, red, black
ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
# CIE lightness 50 as a share of the light, then as an sRGB level
y = ((50 + 16) / 116) ** 3
level = 255 * (1.055 * y ** (1 / 2.4) - 0.055)
by_profile, note = _from_ink(Image.fromarray(ink, "CMYK"), ink_profile())
assert_allclose(np.asarray(by_profile)[0, :, 1], [255, level, level, 0], atol=2)
cut_off = ink_profile()[:200]                                               # no profile any more
plain, other_note = _from_ink(Image.fromarray(ink, "CMYK"), cut_off)
assert np.asarray(plain)[0].tolist() == [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
assert "by its profile" in note and "a guess" in other_note and _space(ink_profile()) == b"CMYK"
print(f"cyan ink by this profile: {np.asarray(by_profile)[0, 1]}, "
      f"by the textbook: {np.asarray(plain)[0, 1]}")


# %% [markdown]
# `to_picture` puts the steps in order. EXIF and depth must be looked at before the pixels are decoded, as decoding forgets them. Palettes (GIF, small PNGs) become RGB; a colour that the palette calls transparent becomes alpha. An animation has no single pixel that is right for all its frames: the first is taken, and that is said.

# %%
#| export
def to_picture(im):
    """A PIL image -> Picture.

    Raises ValueError where the pixels have no meaning as a photo, and whatever a decoder raises
    on damage.
    """
    deep, kind = _is_deep(im), getattr(im, "format", None)
    if kind != "TIFF":
        # before its EXIF is looked for: that would load a PNG, and a damaged one's error be taken
        # for the block's
        im.load()
    exif, damaged = _exif(im)
    im.load()
    turned, icc = _upright(im), im.info.get("icc_profile")
    notes = ["its EXIF block is damaged and is not kept"] * damaged
    if deep:
        notes.append("16 bits a channel, the result has 8")
    if turned.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if turned.mode.startswith("I"):
        turned = _eight_bits(turned)
    if turned.mode == "CMYK":
        turned, note = _from_ink(turned, icc)
        notes.append(note)
    grey, palette, alpha = turned.mode in ("1", "L", "LA", "La"), turned.mode in ("P", "PA"), None
    if turned.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in turned.info:
        turned = turned if turned.mode == "RGBA" else turned.convert("RGBA")
        alpha = np.array(turned.getchannel("A"))
    # a needless conversion is a copy
    pixels = np.array(turned if turned.mode == "RGB" else turned.convert("RGB"))
    grey = grey or palette and bool((pixels == pixels[..., :1]).all())
    frames = 1
    with suppress(Exception):                   # a later frame may be damaged; this one is whole
        frames = getattr(im, "n_frames", 1)     # last: counting moves to other frames
    if frames > 1:
        animated = kind in ("AVIF", "GIF", "PNG", "WEBP")
        notes.append(f"animated, the first of {frames} frames" if animated
                     else f"the first of {frames} pictures in the file")
    fits = _space(icc) == (b"GRAY" if grey else b"RGB ")
    return Picture(pixels, alpha, grey, icc if fits else None, exif, tuple(notes))


# %%
#| export
def to_rgb(im):
    "A PIL image -> uint8 H×W×3 RGB, upright; the pixels of `to_picture`."
    return to_picture(im).pixels


# %% [markdown]
# The eight orientations: store a picture turned so that the tag undoes it, and read it back. The inverse of each of Pillow's eight operations is known, so every pixel can be compared. @fig-pictures-upright shows what lies in the eight files.

# %%
photo, temporary = astronaut(), tempfile.TemporaryDirectory()
folder, T = Path(temporary.name), Image.Transpose
small = Image.fromarray(photo[50:170, 180:270])
undone_by = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
             5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
stored = []
for tag, operation in undone_by.items():
    exif = Image.Exif()
    exif[0x112], exif[0x110] = tag, "A camera"
    stored.append(np.asarray(small.transpose(operation) if operation is not None else small))
    Image.fromarray(stored[-1]).save(folder / f"{tag}.png", exif=exif)
    with Image.open(folder / f"{tag}.png") as im:
        picture = to_picture(im)
    assert_array_equal(picture.pixels, small)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert dict(kept) == {0x110: "A camera"}    # the camera's name stays, the orientation has gone

# %%
#| label: fig-pictures-upright
#| fig-cap: "The pixels of eight files with the EXIF orientations 1 to 8, as stored. All are the same photo, and after reading all look like the first."
#| fig-alt: "Eight pictures of one portrait: upright, mirrored, upside down, and lying on either side."
show(stored, [f"orientation {tag}" for tag in undone_by], cols=4, height=1.3);

# %% [markdown]
# Now the modes. Each file below is made by Pillow from the same small photo; what is read must equal what the mode can hold.

# %%
#| label: fig-pictures-modes
#| fig-cap: "The same photo out of five files. The last is the deep grey file converted by Pillow alone, which cuts everything above 255 of 65535."
#| fig-alt: "A portrait in colour, with the few colours of a palette, in slightly different colours, in grey, and as an empty white frame."
deep = np.asarray(small.convert("L"), np.uint16) * 257
files = {"RGB": small, "palette of 16": small.quantize(16), "CMYK": small.convert("CMYK"),
         "grey, 16 bits": Image.fromarray(deep)}
pictures = {name: to_picture(im) for name, im in files.items()}
clipped = np.asarray(Image.fromarray(np.minimum(deep, 255).astype(np.uint8)).convert("RGB"))
clipped = np.pad(clipped, ((1, 1), (1, 1), (0, 0)), constant_values=128)     # with a grey frame
show([*(p.pixels for p in pictures.values()), clipped], [*files, "clipped"], height=1.6);

# %%
assert_array_equal(pictures["RGB"].pixels, small)
assert_array_equal(pictures["palette of 16"].pixels, files["palette of 16"].convert("RGB"))
assert_array_equal(pictures["grey, 16 bits"].pixels[..., 0], small.convert("L"))
assert_array_equal(to_rgb(files["grey, 16 bits"]), small.convert("L").convert("RGB"))
assert [p.grey for p in pictures.values()] == [False, False, False, True]
assert "16 bits" in pictures["grey, 16 bits"].notes[0]
# alpha is kept beside the pixels, whose hidden colours stay
for mode in ("LA", "RGBA", "PA"):
    clear = small.convert("L" if mode == "LA" else "RGB").convert(mode)
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    assert_array_equal(to_picture(clear).alpha, Image.linear_gradient("L").resize(small.size))
    assert to_picture(clear).grey == (mode == "LA")
for name, p in pictures.items():
    print(f"{name:14} grey {p.grey!s:5} {'; '.join(p.notes)}")

# %% [markdown]
# @fig-pictures-modes: the palette shows its steps, ink its rounding, and 16 bits of grey come out right where the plain conversion leaves a white area.
#
# ## From a file, with limits
#
# A program that restores whole folders meets text files called `.jpg`, half downloads, empty files, and now and then a file made to do harm. Each must become one sentence that names the file and the reason, in a moment, in little memory, and the next file must get its turn. Five guards stand before the decoder:
#
# - **Only files.** A named pipe would let the program wait for ever; so would a device. They are asked what they are before they are opened.
# - **Only photos' formats**, recognised by content, not by name. Pillow knows some forty formats. One of them, EPS, is a program, which Pillow hands to another program.
# - **A pixel limit, checked in the header.** A few kilobytes can unpack to gigabytes. `MAX_PIXELS` lets the largest phone cameras with 108 million pixels pass.
# - **A limit for the file**, because some fields are read whole before they are looked at.
# - **The checksums of a PNG's pixels.** Pillow does not compare them, and shows some damage as if it were the picture. GIF, WebP and TIFF have none: damage there may be decoded as Pillow likes.

# %%
#| export
# formats that are read, as Pillow names them
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# of a picture, of its file
MAX_PIXELS, MAX_BYTES = 120_000_000, 1_000_000_000
# Python's warning filters belong to all threads
_QUIET = threading.Lock()


# %%
#| export
def _reason(error):
    "Why reading failed, in a few words."
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture of a known kind (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF)"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {MAX_PIXELS / 1e6:.0f} million pixels"
    if isinstance(error, MemoryError):
        return "cannot be read (not enough memory)"
    # IndexError, struct.error, … of a decoder that was led astray
    if not isinstance(error, (OSError, ValueError, SyntaxError)):
        return "cannot be read (its data is damaged)"
    text = getattr(error, "strerror", None) or str(error).split(" (")[0].split("\n")[0]
    text = text or "its data is damaged"
    return f"cannot be read ({text[:200].lower()})"


# %%
#| export
def _compare_sums(f):
    """Compare the checksums of the pixels of an open PNG's first picture.

    Pillow decodes without, and shows some damage as if it were the picture. Raises ValueError;
    the file stays where it is.
    """
    here, begun = f.tell(), False
    f.seek(8)
    while len(head := f.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            begun, found = True, zlib.crc32(kind)
            for at in range(0, size, 1 << 20):          # a length that lies takes no memory
                found = zlib.crc32(f.read(min(size - at, 1 << 20)), found)
            if f.read(4) != struct.pack(">I", found):
                raise ValueError("its checksums do not agree")
        elif begun:
            break
        else:
            f.seek(size + 4, os.SEEK_CUR)
    f.seek(here)


# %%
#| export
def read_picture(path):
    """A picture file -> Picture. At most `MAX_PIXELS` pixels and `MAX_BYTES` bytes.

    Raises PhotoError that names the file and the reason.
    """
    path = Path(path)
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise PhotoError(f"{path}: is a folder, not a picture")
        if not stat.S_ISREG(about.st_mode):
            raise PhotoError(f"{path}: is a pipe or a device, not a file")
        if not about.st_size:
            raise PhotoError(f"{path}: is empty")
        if about.st_size > MAX_BYTES:
            raise PhotoError(f"{path}: has {about.st_size / 1e6:.0f} MB, "
                             f"more than {MAX_BYTES / 1e6:.0f}")
        Image.init()        # loads the decoders once; an older Pillow has none for AVIF
        # a path would be mapped into memory: a crash where the file shrinks meanwhile
        with open(path, "rb") as f, _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")     # it is read or it is an error, nothing between
            with Image.open(f, formats=[k for k in KINDS if k in Image.OPEN]) as im:
                size = im.width * im.height
                if not size:
                    raise PhotoError(f"{path}: has no pixels")
                if not 0 < size <= MAX_PIXELS:
                    raise PhotoError(f"{path}: has {im.width} × {im.height} pixels, "
                                     f"more than {MAX_PIXELS / 1e6:.0f} million")
                if im.format == "PNG":
                    _compare_sums(f)
                picture, kind = to_picture(im), im.format
    except PhotoError:
        raise
    except Exception as e:          # decoders of damaged files raise nearly anything
        raise PhotoError(f"{path}: {_reason(e)}") from e
    named = Image.EXTENSION.get(path.suffix.lower(), kind)
    # MPO: a JPEG with a second picture behind it, as phones write
    if named != kind and {named, kind} != {"JPEG", "MPO"}:
        note = f"named {path.suffix}, but it is a {kind} file"
        return replace(picture, notes=(*picture.notes, note))
    return picture


# %%
#| export
def read_image(path):
    "A picture file -> uint8 H×W×3 RGB, upright; the pixels of `read_picture`. Raises PhotoError."
    return read_picture(path).pixels


# %% [markdown]
# Now the traps. Each is a file on the disk, made by the next two cells; what the reader says is printed as it is. A sentence that does not name the file, or a case that is read although it should not be, is an error of the cell.

# %%
def png_of(width, height, rows=b""):
    "A PNG of a few bytes that claims this size."
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def encoded(im, kind, **options):
    file = io.BytesIO()
    im.save(file, kind, **options)
    return file.getvalue()


whole, plain = encoded(small, "JPEG"), encoded(small, "PNG")
unsummed = plain[:-16] + bytes(4) + plain[-12:]     # the pixels' sum stands before the last 12
turning = dict(save_all=True, append_images=[small.rotate(90), small.rotate(180)])
bomb = png_of(50_000, 50_000, bytes(3_000_000))
cases = {
    "a letter": ("letter.jpg", b"Dear Eileen"),
    "an empty file": ("empty.png", b""),
    "half a download": ("half.jpg", whole[:len(whole) // 2]),
    "a PNG with a wrong checksum": ("sum.png", unsummed),
    "a PostScript program": ("page.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a bomb: 3 kB that claim 2,500 million pixels": ("bomb.png", bomb),
    "no pixels": ("none.png", png_of(0, 7)),
    "floating-point numbers": ("float.tif", encoded(Image.new("F", (9, 9)), "TIFF")),
    "a PNG called .jpg": ("wrong.jpg", encoded(small, "PNG")),
    "a broken EXIF block": ("exif.png", encoded(small, "PNG", exif=b"Exif\0\0no such thing")),
    "an animation": ("film.gif", encoded(small, "GIF", **turning)),
    "1 × 1": ("dot.png", encoded(Image.new("RGB", (1, 1)), "PNG")),
    "100,000 × 2": ("long.png", encoded(Image.new("RGB", (100_000, 2)), "PNG")),
    "a name with blanks and accents": ("Müller auf Föhr.png", encoded(small, "PNG"))}
for name, data in cases.values():
    (folder / name).write_bytes(data)
os.mkfifo(folder / "pipe.jpg")
(folder / "loop.png").symlink_to(folder / "loop.png")
cases |= {"a named pipe": ("pipe.jpg", None), "a link to itself": ("loop.png", None),
          "a folder": ("", None), "nothing": ("gone.jpg", None)}


# %%
def told(path):
    try:
        picture = read_picture(path)
        notes = "; ".join(picture.notes) or "nothing to say"
        return "read, {1} × {0}; ".format(*picture.pixels.shape) + notes
    except PhotoError as e:
        assert str(e).startswith(f"{path}: ") and "\n" not in str(e)
        return str(e).removeprefix(f"{path}: ")


answers = {case: told(folder / name) for case, (name, _) in cases.items()}
good = {"a PNG called .jpg", "a broken EXIF block", "an animation", "1 × 1", "100,000 × 2",
        "a name with blanks and accents"}
assert {case for case, answer in answers.items() if answer.startswith("read")} == good
rows = [f"| {case} | {answer} |" for case, answer in answers.items()]
Markdown("\n".join(["| the file | the answer |", "|---|---|", *rows]))

# %% [markdown]
# A list of known traps ends where its author's fancy ends. So the package's tests go on with a fuzzer, `tests/fuzz.py`. It takes two dozen small pictures in all formats, with profiles, EXIF, palettes and animations, and damages each at random: bits, length fields, pieces of other files, missing ends. PNGs get their checksums corrected afterwards, so that the damage is not noticed at the door.
# Every file must be read, or be refused by one line that names it, within a minute and 20 bytes of memory for each pixel of the limit. `make test` reads a thousand such files, `make soak` twenty thousand. The same fuzzer damages weights (@sec-weights) and training configs (@sec-engine). A small version of it is an exercise.
#
# A hole that was found in this way deserves a word. Pillow maps an uncompressed TIFF into memory when it is given a *path*, and in the version at hand it does so with width and height exchanged where the orientation says so; the pixels come out mixed up. If another program shortens the file meanwhile, the process is killed. `read_picture` opens the file itself, and both cannot happen.

# %%
wide = small.convert("RGBA").transpose(T.ROTATE_90)
exif = Image.Exif()
exif[0x112] = 6
wide.save(folder / "mapped.tif", exif=exif)
assert_array_equal(read_picture(folder / "mapped.tif").pixels, small)

# %% [markdown]
# ## Writing: whole or not at all
#
# A result is there whole or not at all. If the disk is full, or the power fails, or the user presses Ctrl-C, there must be no half picture under a good name, because a program that looks at names will take it for done. So the file is made under another name, brought to the disk (`fsync`), and renamed at the end; renaming is one step for every reader. Each process and thread has a name of its own for the unfinished file.
#
# What a format can hold is kept. What it cannot hold is left out without an error: a JPEG has no transparency, a BMP no profile. A grey photo is written without colour even if the network painted some. JPEGs are stored at quality 95 with full colour resolution, as the eyes that were just restored should not be blurred again.

# %%
#| export
_HOLDS = {"AVIF": {"alpha", "icc", "exif"}, "BMP": {"grey"}, "GIF": {"alpha", "grey"},
          "JPEG": {"grey", "icc", "exif"}, "PNG": {"alpha", "grey", "icc", "exif"},
          "TIFF": {"alpha", "grey", "icc", "exif"}, "WEBP": {"alpha", "icc", "exif"}}
_SETTINGS = {"JPEG": dict(quality=95, subsampling=0), "WEBP": dict(quality=95, exact=True),
             "AVIF": dict(quality=95)}
# the longest side
_LONGEST = {"JPEG": 65_500, "GIF": 65_535, "WEBP": 16_383, "AVIF": 16_384}
# bytes that fit into a JPEG's segments
_ROOM = dict(exif=65_533, icc=16_000_000)


# %%
#| export
def _packed(picture, kind):
    "(PIL image, options of its `save`) with as much of a Picture as the format holds."
    pixels, alpha, holds = picture.pixels, picture.alpha, _HOLDS[kind]
    is_rgb = (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3
              and pixels.shape[2] == 3 and pixels.size)
    if not is_rgb:
        got = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
        raise ValueError(f"needs uint8 H×W×3, got {got}")
    if max(pixels.shape) > _LONGEST.get(kind, math.inf):
        raise ValueError(f"{pixels.shape[1]} × {pixels.shape[0]} pixels, "
                         f"{kind} ends at {_LONGEST[kind]} a side")
    image, grey = Image.fromarray(pixels), picture.grey and "grey" in holds
    if picture.grey:
        image = image.convert("L") if grey else image.convert("L").convert("RGB")
    if alpha is not None and "alpha" in holds:
        if alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]:
            raise ValueError(f"alpha is {alpha.dtype} {alpha.shape}, "
                             f"needs uint8 {pixels.shape[:2]}")
        image.putalpha(Image.fromarray(alpha))
    fits = _space(picture.icc) == (b"GRAY" if grey else b"RGB ")
    blocks = dict(exif=picture.exif, icc=picture.icc if fits else None)
    kept = {k: v for k, v in blocks.items()
            if v and k in holds and (kind != "JPEG" or len(v) <= _ROOM[k])}
    names = dict(exif="exif", icc="icc_profile")        # as `save` calls them
    return image, _SETTINGS.get(kind, {}) | {names[k]: v for k, v in kept.items()}


# %%
#| export
def write_picture(path, picture):
    """Picture -> file of the kind that its suffix names, whole or not at all. Raises PhotoError.

    Alpha, grey, profile and EXIF are kept where the format can hold them; where it cannot, that
    is no error. JPEG, WebP and AVIF are written at quality 95.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in _HOLDS:
        what = path.suffix or "a name without a suffix"
        raise PhotoError(f"{path}: cannot be written (no format is known for {what})")
    part = path.with_name(f".gfpgan_edu-{os.getpid()}-{threading.get_ident()}.part")
    try:
        image, options = _packed(picture, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as f:
            image.save(f, kind, **options)
            f.flush()
            os.fsync(f.fileno())            # on the disk before it gets its name
        part.replace(path)
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise PhotoError(f"{path}: cannot be written ({reason})") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)    # there only if something went wrong, Ctrl-C included


# %%
#| export
def write_image(path, image):
    "uint8 H×W×3 RGB -> file; `write_picture` of nothing but pixels. Raises PhotoError."
    write_picture(path, Picture(image))


# %%
def camera_and_place(data):
    exif = Image.Exif()
    exif.load(data or b"")
    return exif.get(0x110), dict(exif.get_ifd(0x8825))


camera = Image.Exif()
camera[0x110], camera[0x112] = "A camera", 6
place = {1: "N", 2: (54.0, 41.0, 24.0)}
camera.get_ifd(0x8825).update(place)
srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
logo = small.convert("RGBA")
logo.putalpha(Image.linear_gradient("L").resize(small.size))
logo.transpose(T.ROTATE_90).save(folder / "logo.png", exif=camera, icc_profile=srgb)
picture, rows = read_picture(folder / "logo.png"), []
for suffix in ("png", "tif", "webp", "jpg", "bmp"):
    write_picture(folder / "results" / f"logo.{suffix}", picture)
    back = read_picture(folder / "results" / f"logo.{suffix}")
    off = np.abs(back.pixels.astype(int) - picture.pixels).mean()
    exif_kept = camera_and_place(back.exif) == ("A camera", place)
    rows.append((suffix, back.alpha is not None, back.icc == srgb, exif_kept))
    assert off == 0 if suffix in ("png", "tif", "bmp") else 0 < off < 3
assert rows == [("png", True, True, True), ("tif", True, True, True), ("webp", True, True, True),
                ("jpg", False, True, True), ("bmp", False, False, False)]
lines = [f"| {suffix} | " + " | ".join("kept" if k else "–" for k in kept) + " |"
         for suffix, *kept in rows]
head = ["| written as | transparency | profile | EXIF |", "|---|---|---|---|"]
Markdown("\n".join(head + lines))

# %%
out = folder / "results"
write_image(out / "a.jpg", photo)
Image.fromarray(photo).save(folder / "usual.jpg", quality=95)
jpegs = (out / "a.jpg", folder / "usual.jpg")
error = [np.abs(read_image(p).astype(int) - photo).mean() for p in jpegs]
print(f"mean error of a JPEG at quality 95: {error[0]:.2f} grey levels; "
      f"with the usual halved colour resolution {error[1]:.2f}")
assert error[0] < error[1]
(folder / "file").touch()
# a folder where the file should go: found out at the last moment
(out / "b.png").mkdir()
before = sorted(p.name for p in out.iterdir())
failures = [("../file/a.png", photo, "cannot be written"), ("a.xyz", photo, ".xyz"),
            ("b.png", photo, "cannot be written"), ("c.png", photo * np.nan, "needs uint8"),
            ("c.png", photo[..., 0], "needs uint8"),
            ("long.webp", np.zeros((2, 20_000, 3), np.uint8), "16383 a side")]
for name, bad, reason in failures:
    test_fail(lambda: write_image(out / name, bad), exc=PhotoError, contains=reason)
assert sorted(p.name for p in out.iterdir()) == before                      # no crumbs

# %% [markdown]
# ## Put together
#
# A grey photo of 16 bits that lies on its side, with a date, goes through a "network" that brightens it and, as networks do, tints it. It comes back upright, grey, with its date, and says what it lost.

# %%
exif = Image.Exif()
exif[0x112], exif[0x132] = 8, "1962:07:14 12:00:00"
Image.fromarray(np.rot90(deep, -1).copy()).save(folder / "scan.png", exif=exif)
scan = read_picture(folder / "scan.png")
tinted = np.clip(scan.pixels * 1.2 + [20, 0, -10], 0, 255).astype(np.uint8)
write_picture(folder / "results" / "scan.png", replace(scan, pixels=tinted))
result = read_picture(folder / "results" / "scan.png")
kept = Image.Exif()
kept.load(result.exif)
assert scan.pixels.shape == (120, 90, 3) and scan.grey and result.grey
assert dict(kept) == {0x132: "1962:07:14 12:00:00"}
assert (result.pixels == result.pixels[..., :1]).all() and result.pixels.mean() > scan.pixels.mean()
print("; ".join(scan.notes))
temporary.cleanup()

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | decoder | – | OpenCV's `imread` in colour mode | Pillow, seven formats, recognised by content | OpenCV gives `None` for what it cannot read, without a reason |
# | orientation | – | left to OpenCV, which turns JPEGs | obeyed in every format that has one, then removed | a face on its side is not found |
# | transparency | – | lost | kept where the format can | logos and cut-outs |
# | grey | – | comes back in colour | comes back grey | a tint in an old photo is a defect |
# | 16 bits | – | cut to 8 in silence | rounded to 8, and said | the network has no more |
# | profile, EXIF | – | lost | kept, but for tags about the stored pixels | colours and dates are the user's |
# | XMP, IPTC, a phone's second picture | – | lost | lost | they can hold crops and edits that are false for the result |
# | a bad file | – | a Python error ends the run | `PhotoError` with file and reason | the others wait |
# | damaged pixels | – | – | a PNG's checksums are compared; GIF, WebP and TIFF have none | damage should not pass for the photo |
# | writing | – | straight to the name | another name, `fsync`, rename | no half results |
#
# : Deviations in reading and writing {#tbl-pictures-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **"My 16-bit scan became 8 bits"** is a known complaint about the official helper library, which does it in silence. Here it is a note; the scan itself is never touched.
# - **The result is turned.** Programs that ignore EXIF hand over a picture on its side, and then no face is found either.
# - **HEIC files of iPhones** are "not a picture of a known kind". Export them as JPEG.
# - **Transparent areas hold colours**, often black. They are kept as they are, and appear when a PNG is written as JPEG.
# - **A wide-gamut profile** (Display P3) is kept but not applied: the network sees slightly duller faces than you do.
# - **The place of a photo stays in its EXIF.** Remove it before you publish, as you would with the original.
# :::
#
# ## Summary
#
# - A `Picture` is pixels for the network and all that the writer needs to give the file back: alpha, grey, profile, EXIF.
# - Orientation is obeyed once and removed; a profile goes only with the kind of pixels it was made for.
# - What is lost is said in `notes`; what cannot be read is one line with file and reason.
# - Limits are checked in the header and before the file is opened, so harm costs neither time nor memory.
# - A result appears under its name when it is complete and on the disk.
#
# ## Exercises
#
# 1. **Compute.** A PNG of 3 kB claims 50,000 × 50,000 pixels. How much memory would an RGB decoder ask for? How large can a PNG of 120 million equal pixels be at least, if zlib packs at most about 1,030 bytes into one?
# 2. **Modify.** Let `read_picture` convert pictures with an RGB profile to sRGB before the network and back afterwards. How would you check that a picture nobody restored comes back within one grey level?
# 3. **Break.** Damage the first 200 bytes of a small picture as GIF, BMP, PNG and JPEG, one at a time, and read them. Then remove `except Exception` from `read_picture` and count the kinds of errors that Pillow raises.
#
# Worked solutions: [nbs/solutions/21_pictures.ipynb](solutions/21_pictures.ipynb).
#
# ## References
#
# JPEG's quantisation is that of @wallace1992jpeg. The method whose photos are read here is GFP-GAN [@wang2021gfpgan].

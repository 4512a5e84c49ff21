# %% [markdown]
# # Evaluation {#sec-evaluation}
#
# > A table is a set of decisions; here they are commands.
#
# **You will build** test sets that can be made again from a log, a meter for folders of results, intervals that say how sure a mean is, the paper's tables as commands, its ablations as a program, and maps of what moves when the question is disturbed.
# **Needs** the metrics of @sec-metrics, the rivals of @sec-baselines, the damage of @sec-degradation, the trainer of @sec-train-restorer.
# **Runs in** about 20 s on a laptop CPU. Results of longer runs are read from files.

# %%
#| default_exp evaluation

# %%
import io
import itertools
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_fail
from IPython.display import Image as Picture, Markdown
from PIL import Image
from torch.testing import assert_close

from gfpgan_edu.baselines import pulse
from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.engine import TrainingError, plain
from gfpgan_edu.examples import astronaut, draw_map, example_faces, show
from gfpgan_edu.faces import points_in_aligned, template, to_images, to_tensor
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.metrics import Protocol, chroma_distance, colourfulness, open_metric, psnr
from gfpgan_edu.pictures import read_image, write_image
from gfpgan_edu.train_restorer import PRESETS, RestorerTrainer
from gfpgan_edu.weights import load_prior, load_weights

# %%
#| export
import csv
import inspect
import io
import json
import math
import shutil
import time
import unicodedata
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from fastcore.basics import patch
from PIL import Image

from gfpgan_edu.baselines import UNET_GAN, UNET_L1, mganprior, pulse
from gfpgan_edu.degradation import PRESETS as DEGRADATIONS, degrade, sample_params
from gfpgan_edu.engine import TrainingError, _suits, override, plain, write_whole
from gfpgan_edu.faces import _picture_names, _square, align as align_face
from gfpgan_edu.faces import detect, to_images, to_tensor
from gfpgan_edu.metrics import DEFAULT_METRICS, Files, Gaussian, Protocol
from gfpgan_edu.metrics import frechet, open_metrics, read_statistics
from gfpgan_edu.pictures import PhotoError, read_image, write_image
from gfpgan_edu.train_restorer import RestorerTrainer
from gfpgan_edu.inference import fuse
from gfpgan_edu.weights import WeightsError, load_prior, load_weights, read_header

# %% [markdown]
# This chapter looks at the last box of @fig-evaluation-map, for many faces and many methods at once.

# %%
#| label: fig-evaluation-map
#| fig-cap: "Evaluated is the restored face, whatever method made it."
#| fig-alt: "The method as boxes and arrows; the box for the restored face is coloured."
torch.set_num_threads(1)
warnings.filterwarnings("ignore", message="IProgress not found")
draw_map("output");

# %% [markdown]
# ## A table is a set of decisions
#
# Before the first number, somebody has decided:
#
# | decision | examples in print | what it does |
# |---|---|---|
# | the damaged pictures | CelebA-Test of the GFP-GAN and VQFR authors [@wang2021gfpgan; @gu2022vqfr], and a much harder one that came with DAEFR [@tsai2024daefr] | PSNR is about 25 dB on the first and about 20 dB on the second, Deg. 30° to 37° and 60° to 72°; both are called CelebA-Test |
# | the reference of FID | all 70,000 faces of FFHQ, or the truths of the test set | the order changes: the table of OSDFace [@wang2025osdface] has both columns, and RestoreFormer++ is in the middle of one and last by far in the other |
# | the number of pictures | 3,000 (CelebA-Test), 1,711 (LFW-Test), 407 (WebPhoto-Test), 180 (CelebChild-Test) | FID grows as the number falls (@sec-metrics) |
# | matching of means | always on in VQFR's public script, absent in others | forgives every tint (@sec-metrics) |
# | who ran the method | its authors, or rivals with the public weights | the paper reports FID 42.6 for GFP-GAN on CelebA-Test; the authors of PMRF [@ohayon2025pmrf], who ran all methods again, report 46.7 |
# | JPEG or PNG, LPIPS with VGG or AlexNet, Inception weights, resizing | seldom stated | all of them change the value |
#
# : Decisions behind one cell of a table {#tbl-evaluation-decisions}
#
# So two numbers from two papers rarely compare (@tbl-evaluation-decisions). The remedy: measure all methods again, on one set, with one program that writes its decisions under the table. This chapter is that program. Its live faces are made up by a small 32 px prior and show that the machinery works, no more.

# %%
work = Path(tempfile.mkdtemp())
prior = load_prior("prior32").requires_grad_(False)
seeded = lambda seed: torch.Generator().manual_seed(seed)


def draw(n, seed):
    "n faces that the prior made up, uint8."
    z = torch.randn(n, 64, generator=seeded(seed))
    return to_images(prior(z, truncation=0.7, w_mean=prior.mean_w(generator=seeded(0))))


def compact(fig, colours=96):
    "The figure as a PNG with few colours: photos take a third of the room then."
    whole, small = io.BytesIO(), io.BytesIO()
    fig.savefig(whole, dpi=88)
    plt.close(fig)
    picture = Image.open(whole).convert("RGB")
    picture = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return Picture(small.getvalue())


def fill(folder, pictures):
    "Write pictures as 00.png, 01.png, … -> the folder."
    for i, picture in enumerate(pictures):
        write_image(folder / f"{i:02}.png", picture)
    return folder


clean = fill(work / "clean", draw(24, seed=5))

# %% [markdown]
# ## Damage that can be made again
#
# A test set that was damaged at random exists once. If it is lost, no result on it can be checked. So every draw follows from three known numbers, and is written down besides:
#
# $$x_{i,k}=D(y_i;\theta_{i,k}),\qquad \theta_{i,k}\sim p(\theta)\ \text{from the seed}\ (s,i,k)$$ {#eq-evaluation-draw}
#
# $y_i$ is the $i$-th clean face by name, $k$ counts the damaged versions of it, $D$ is `degrade` with the numbers $\theta$, $p$ the ranges of a preset, $s$ the seed of the set. Other files do not matter.
#
# One function makes all sets. It refuses a folder that is not empty, and lists what it had to leave out.

# %%
#| export
# pictures, as the paper counts them
KNOWN = {"LFW-Test": 1711, "CelebChild-Test": 180, "WebPhoto-Test": 407, "CelebA-Test": 3000}


@dataclass
class TestSet:
    "What was made: `folder` holds lq/, gt/ (not of real photos), draws.jsonl and testset.json."
    folder: Path
    n: int = 0
    failed: list = field(default_factory=list)      # (path, reason)
    note: str = ""


# %%
#| export
def _reason(error, path):
    return str(error).removeprefix(f"{path}: ")


def _build(source, out, about, make, limit=None, note=lambda n: ""):
    """Calls make(index, path, picture) -> [(file, {folder: picture}, draw)] for each readable
    picture of `source`, writes what it yields."""
    source, out, done = Path(source), Path(out), TestSet(Path(out))
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; choose another folder, "
                         "so that two test sets do not mix")
    names, taken = _picture_names(source), set()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "draws.jsonl", "w", encoding="utf-8", newline="\n") as log:
        for index, name in enumerate(names[:limit]):
            path = source / name
            try:
                made = make(index, path, read_image(path))
                if taken & {file for file, _, _ in made}:
                    raise PhotoError(f"{path}: a picture of this name is in the set already")
            except ValueError as e:
                done.failed.append((path, _reason(e, path)))
                continue
            taken |= {file for file, _, _ in made}
            for file, pictures, draw in made:
                for folder, picture in pictures.items():
                    write_image(out / folder / file, picture)
                log.write(json.dumps(dict(file=file, source=name, **draw)) + "\n")
            done.n += len(made)
    done.note = note(done.n)
    found = dict(limit=limit, pictures=done.n, left_out=len(done.failed), note=done.note)
    text = json.dumps(about | found, indent=1)
    write_whole(out / "testset.json", lambda f: f.write(text.encode() + b"\n"))
    return done


# %%
#| export
def _draw(seed, index, k, ranges, size):
    if ranges not in DEGRADATIONS:
        raise ValueError(f"no ranges {ranges!r}; there are {', '.join(DEGRADATIONS)}")
    return sample_params(np.random.default_rng([seed, index, k]), DEGRADATIONS[ranges].at(size))


def build_blind(source, out, size=512, ranges="paper", seed=0, draws=1, limit=None):
    """A set like CelebA-Test from aligned clean faces: gt/ the pictures at `size` px, lq/ `draws`
    damaged versions of each (Eq. 10).

    `ranges`: a name in `gfpgan_edu.degradation.PRESETS`. Each draw depends on (seed, number of the
    picture, draw) alone and is kept in draws.jsonl, so the set can be made again from the clean
    faces (@eq-evaluation-draw). Raises ValueError for a folder that is not fit.
    """
    if draws < 1 or size < 1:
        raise ValueError(f"draws is {draws}, size is {size}: needs whole numbers from 1 up")
    _draw(seed, 0, 0, ranges, size)

    def make(index, path, image):
        gt, made = _square(image, size, path), []
        for k in range(draws):
            params = _draw(seed, index, k, ranges, size)
            drawn = dict(params=json.loads(params.to_json()))
            name = path.stem + f"_{k}" * (draws > 1)
            made.append((f"{name}.png", dict(lq=degrade(gt, params), gt=gt), drawn))
        return made

    about = dict(kind="blind", size=size, ranges=ranges, seed=seed, draws=draws)
    return _build(source, out, about, make, limit)


# %% [markdown]
# The check makes the set again from the log alone. A set of five faces has to hold the first five results.

# %%
def remade(folder, source):
    "The damaged pictures of a set, from its log and the clean faces: {file: picture}."
    pictures = {}
    for line in (folder / "draws.jsonl").read_text().splitlines():
        d = json.loads(line)
        params = DegradationParams.from_json(json.dumps(d["params"]))
        pictures[d["file"]] = degrade(read_image(source / d["source"]), params)
    return pictures


made = build_blind(clean, work / "blind", size=32, ranges="extreme", seed=3)
again = remade(work / "blind", clean)
few = build_blind(clean, work / "few", size=32, ranges="extreme", seed=3, limit=5)
assert made.n == len(again) == 24 and few.n == 5 and not made.failed
for file, picture in again.items():
    assert np.array_equal(picture, read_image(work / "blind/lq" / file))
for p in (work / "few/lq").iterdir():
    assert p.read_bytes() == (work / "blind/lq" / p.name).read_bytes()
assert len({p.tobytes() for p in again.values()}) == 24
test_fail(lambda: build_blind(clean, work / "few", size=32), exc=ValueError,
          contains="is not empty")
log = (work / "blind/draws.jsonl").read_text().splitlines()
print((work / "blind/testset.json").read_text(), log[0][:150], "…")

# %%
#| label: fig-evaluation-blind
#| fig-cap: "Eight of the 24 faces, damaged (above) and true (below)."
#| fig-alt: "Two rows of eight small faces; the upper ones are blurred, noisy and blocky."
shown = sorted(again)[:8]
pictures = [read_image(work / "blind" / which / file) for which in ("lq", "gt") for file in shown]
compact(show(pictures, rows=("damaged", "true"), cols=8, height=0.9))


# %% [markdown]
# A mean over the draws of @fig-evaluation-blind mixes easy and hopeless inputs, so the ranges belong to the result.

# %% [markdown]
# ## Four times smaller
#
# Table 2 of the paper is about super-resolution: the input is the face bicubically reduced to a quarter, then enlarged to the size that a restorer takes. The word "bicubic" hides a decision: the kernel is widened when it shrinks a picture (antialiased), as in MATLAB and Pillow, or it is not, as in OpenCV.

# %%
#| export
def build_sr(source, out, size=512, factor=4, limit=None):
    """A super-resolution set: lr/ the faces bicubically reduced (antialiased), lq/ these enlarged
    bicubically to `size` again, gt/ the faces."""
    if factor < 2 or size % factor:
        raise ValueError(f"factor is {factor}, needs a whole number from 2 up that divides {size}")

    def bicubic(image, side):
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))

    def make(index, path, image):
        gt = _square(image, size, path)
        lr = bicubic(gt, size // factor)
        pictures = dict(lq=bicubic(lr, size), gt=gt, lr=lr)
        return [(f"{path.stem}.png", pictures, dict(factor=factor))]

    about = dict(kind="sr", size=size, factor=factor, resampling="bicubic, antialiased (Pillow)")
    return _build(source, out, about, make, limit)


# %% [markdown]
# PyTorch's own implementation agrees to one grey level; without antialiasing it is far off.

# %%
build_sr(clean, work / "sr", size=32, factor=4)
face, small = read_image(work / "sr/gt/00.png"), read_image(work / "sr/lr/00.png")
off = {}
for antialias in (True, False):
    theirs = torch.nn.functional.interpolate(to_tensor(face), (8, 8), mode="bicubic",
                                             antialias=antialias, align_corners=False)
    off[antialias] = np.abs(to_images(theirs)[0].astype(int) - small).max()
print(f"largest difference to PyTorch: antialiased {off[True]}, "
      f"not antialiased {off[False]} grey levels")
assert small.shape == (8, 8, 3) and off[True] <= 1 < 10 < off[False]

# %% [markdown]
# ## Old colours
#
# The paper restores the colours of old photos and has no numbers for it, as there are no truths. This set has them. Each face appears twice with the same blur, noise and JPEG: once grey, once yellowed, that is shifted towards yellow, paler and flatter.

# %%
#| export
# what colour enhancement has to undo, besides mild damage
OLD_PHOTOS = {
    "grey": dict(gray=True),
    "yellowed": dict(shift=(50.0, 10.0, -80.0), jitter=(("saturation", 0.6), ("contrast", 0.75))),
}


def build_colour(source, out, size=512, ranges="paper", seed=0, limit=None):
    """Each face grey and yellowed, with the blur, noise and JPEG of a draw from `ranges`:
    NAME-grey.png and NAME-yellowed.png in lq/, gt/ in colour."""
    _draw(seed, 0, 0, ranges, size)

    def make(index, path, image):
        gt, made = _square(image, size, path), []
        base = replace(_draw(seed, index, 0, ranges, size), shift=None, gray=False, jitter=())
        for name, changes in OLD_PHOTOS.items():
            params = replace(base, **changes)
            drawn = dict(params=json.loads(params.to_json()))
            made.append((f"{path.stem}-{name}.png", dict(lq=degrade(gt, params), gt=gt), drawn))
        return made

    about = dict(kind="colour", size=size, ranges=ranges, seed=seed)
    return _build(source, out, about, make, limit)


# %%
build_colour(clean, work / "colour", size=32, ranges="severe", limit=8)
for file, picture in remade(work / "colour", clean).items():
    assert np.array_equal(picture, read_image(work / "colour/lq" / file))
log = (work / "colour/draws.jsonl").read_text().splitlines()
logged = {d["file"]: d["params"] for d in map(json.loads, log)}
for i in range(8):
    grey, yellowed = logged[f"{i:02}-grey.png"], logged[f"{i:02}-yellowed.png"]
    assert {k for k, v in grey.items() if v != yellowed[k]} == {"gray", "shift", "jitter"}


def colour(which, kind):
    "The pictures of one kind, grey or yellowed, in lq/ or gt/ of the colour set."
    return [read_image(p) for p in sorted((work / "colour" / which).glob(f"*-{kind}.png"))]


for kind in ("grey", "yellowed"):
    lq, gt = colour("lq", kind), colour("gt", kind)
    before, after = (np.mean([colourfulness(i) for i in images]) for images in (gt, lq))
    distance = np.mean([chroma_distance(a, b) for a, b in zip(lq, gt)])
    print(f"{kind:9} colourfulness {before:.0f} -> {after:.0f}, distance of chroma {distance:.0f}")
    assert (after == 0) == (kind == "grey") and distance > 5

# %%
#| label: fig-evaluation-colour
#| fig-cap: "Four faces of the colour set: grey, yellowed, true."
#| fig-alt: "Three rows of four small faces: without colour, yellowish and flat, in full colour."
views = {"grey": ("lq", "grey"), "yellowed": ("lq", "yellowed"), "true": ("gt", "grey")}
pictures = [i for which in views.values() for i in colour(*which)[:4]]
compact(show(pictures, rows=views, cols=4, height=0.9))


# %% [markdown]
# Colourfulness alone could not judge @fig-evaluation-colour: a yellow veil is colourful. The distance of chroma asks for the *right* colours, which have to be guessed from a grey input.

# %% [markdown]
# ## Photos without a truth
#
# Real damage has no truth beside it. For the paper's three real sets, LFW-Test, CelebChild-Test and WebPhoto-Test, only metrics without a truth remain: FID against faces in general, and NIQE. Both ask whether the result looks like a photo of *some* face.

# %%
#| export
def wrap_real(source, out, name, size=512, align=False, limit=None):
    """Real photos without a truth: lq/ each face at `size` px. `align`: the photos are not aligned,
    every face found is cut out.

    `name`: that of a set in `KNOWN` is checked against the number of faces the paper counts (the
    `note`); any other is as good.
    """
    def make(index, path, image):
        if align:
            faces = [align_face(image, f.landmarks, size)[0] for f in detect(image)]
        else:
            faces = [_square(image, size, path)]
        if not faces:
            raise PhotoError(f"{path}: no face found")
        return [(f"{path.stem}{f'_{k}' * (k > 0)}.png", dict(lq=face), dict(face=k))
                for k, face in enumerate(faces)]

    def note(n):
        if limit is None and n != KNOWN.get(name, n):
            return f"the paper counts {KNOWN[name]} faces, here are {n}"
        return ""

    about = dict(kind="real", name=name, size=size, aligned_here=align)
    return _build(source, out, about, make, limit, note)


# %% [markdown]
# Copies of these sets differ: WebPhoto-Test has 407 faces in the paper and 469 in a public list. So a difference is noted in `testset.json`. `align=True` cuts faces out of photos; the detector, asked again, has to find them aligned.

# %%
for n, name in ((180, "CelebChild-Test"), (179, "CelebChild-Test"), (3, "my photos")):
    fill(work / f"real{n}", np.tile(face[:8, :8], (n, 1, 1, 1)))
    wrapped = wrap_real(work / f"real{n}", work / f"{name}{n}", name, size=8)
    print(f"{name}: {wrapped.note or 'as expected'}")
notes = [json.loads((work / folder / "testset.json").read_text())["note"]
         for folder in ("CelebChild-Test180", "CelebChild-Test179", "my photos3")]
assert [note == "" for note in notes] == [True, False, True]
write_image(work / "photos/portrait.png", astronaut())
assert wrap_real(work / "photos", work / "real", "photos", size=128, align=True).n == 1
points = points_in_aligned(read_image(work / "real/lq/portrait.png"))
assert np.abs(points - template(128)).max() < 6 and not (work / "real/gt").exists()


# %% [markdown]
# ## Measuring folders
#
# Results come as folders of any program: endings differ, a file is missing, one is broken, one has another size. To stop at the first fault is bad, to resize or skip in silence worse. The meter goes on, and what it could not measure is part of the result.

# %%
#| export
@dataclass
class Result:
    """One method, measured: `images` {file stem: {label: value}}, `sets` {label: value} of
    distances between sets, and what could not be measured."""
    name: str
    images: dict = field(default_factory=dict)
    sets: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)
    "(path, reason): broken, or of another size than its truth"
    missing: list = field(default_factory=list)
    "stems of truths without a result"
    extra: list = field(default_factory=list)
    "stems of results without a truth"
    unmeasured: dict = field(default_factory=dict)
    "{label: [number of pictures, why the first]}: too small for a metric"

    def values(self, label):
        return [v[label] for v in self.images.values() if label in v]


def _by_stem(folder, suffix=""):
    "{stem without `suffix`: path} of the pictures in a folder; two of one stem are a ValueError."
    found = {}
    for name in _picture_names(Path(folder)):
        # Macs write ü as two characters
        stem = unicodedata.normalize("NFC", Path(name).stem).removesuffix(suffix)
        if stem in found:
            raise ValueError(f"{Path(folder) / name}: {found[stem].name} has the same name; "
                             "which one is meant?")
        found[stem] = Path(folder) / name
    return found


# %% [markdown]
# A metric is a cheap `measure` of costly `describe`s (@sec-metrics). A description is made when first asked for and kept during this picture's turn, so one network serves several metrics.

# %%
#| export
class _Described(dict):
    "What each `describe` says of one picture, computed when first asked for."

    def __init__(self, path, size_of=None):
        self.image = read_image(path)
        if size_of is not None and size_of.image.shape != self.image.shape:
            (h, w), (true_h, true_w) = self.image.shape[:2], size_of.image.shape[:2]
            raise ValueError(f"has {w}×{h} px, its truth {true_w}×{true_h}")

    def __missing__(self, describe):
        self[describe] = describe(self.image)
        return self[describe]


def _numbers(metrics, shown, truth, gathered, unmeasured):
    """{label: value} of one picture. Features go to `gathered`, what a metric refuses to
    `unmeasured`."""
    row = {}
    for m in metrics:
        try:
            compared = (shown, truth) if m.kind == "pair" else (shown,)
            value = m.measure(*(picture[m.describe] for picture in compared))
        except (ValueError, RuntimeError) as e:     # a metric that needs more pixels, for one
            unmeasured.setdefault(m.label, [0, " ".join(str(e).split())])[0] += 1
            continue
        if m.kind == "set":
            gathered[m.label].update(value[None])
        else:
            row[m.label] = value
    return row


# %%
#| export
def measure_folders(folders, gt, metrics, reference=(), suffix="", progress=True):
    """Measure the pictures of folders {name: path}, against those of the same names in `gt` (or
    None) and against `reference` statistics -> [Result, …].

    Names are compared without their ending, so .jpg fits .png; `suffix` is cut off the names of
    results first ("_00"). Broken and wrong-sized files are listed and the rest is measured; sizes
    are never changed in silence. One truth and one result are in memory at a time.
    """
    from tqdm import tqdm

    truths = _by_stem(gt) if gt is not None else {}
    found = {name: _by_stem(folder, suffix) for name, folder in folders.items()}
    results, gathered = {}, {}
    for name, paths in found.items():
        extra = sorted(paths.keys() - truths.keys()) if gt is not None else []
        results[name] = Result(name, missing=sorted(truths.keys() - paths.keys()), extra=extra)
        gathered[name] = {m.label: Gaussian(m.label) for m in metrics if m.kind == "set"}
    stems = sorted(truths) if gt is not None else sorted(set().union(*found.values()))
    for stem in tqdm(stems, unit="face", disable=None if progress else True):
        here = {name: paths[stem] for name, paths in found.items() if stem in paths}
        try:
            truth = _Described(truths[stem]) if gt is not None else None
        except ValueError as e:
            for name in here:
                results[name].failed.append((truths[stem], _reason(e, truths[stem])))
            continue
        for name, path in here.items():
            try:
                shown = _Described(path, truth)
            except ValueError as e:
                results[name].failed.append((path, _reason(e, path)))
                continue
            r = results[name]
            r.images[stem] = _numbers(metrics, shown, truth, gathered[name], r.unmeasured)
    for r in (r for r in results.values() if r.images):
        for known in (k for k in reference if k.features in gathered[r.name]):
            try:
                r.sets[known.features] = frechet(gathered[r.name][known.features], known)
            except ValueError as e:                 # one picture, or features of another length
                r.unmeasured.setdefault(known.features, [len(r.images), str(e)])
    return list(results.values())


# %% [markdown]
# A folder with one fault of each kind, and JPEG files for PNG truths. The rest must have the numbers that the metric gives when called by hand.

# %%
lq = sorted((work / "blind/lq").iterdir())
for path in lq[:20]:
    write_image(work / "theirs" / f"{path.stem}_00.jpg", read_image(path))
(work / "theirs/03_00.jpg").unlink()                                # missing
write_image(work / "theirs/extra_00.jpg", read_image(lq[0]))        # nobody asked for it
write_image(work / "theirs/05_00.jpg", read_image(lq[5])[:, :24])   # another size
broken = work / "theirs/07_00.jpg"
broken.write_bytes(broken.read_bytes()[:200])
r = measure_folders({"theirs": work / "theirs"}, work / "blind/gt", [open_metric("psnr")],
                    suffix="_00", progress=False)[0]
print("missing", r.missing, "\nextra", r.extra, "\nfailed",
      *(f"\n  {path.name}: {reason}" for path, reason in r.failed))
by_hand = {}
for stem in (f"{i:02}" for i in range(20) if i not in (3, 5, 7)):
    truth = read_image(work / f"blind/gt/{stem}.png")
    by_hand[stem] = psnr(read_image(work / f"theirs/{stem}_00.jpg"), truth)
assert {stem: v["psnr"] for stem, v in r.images.items()} == by_hand
assert r.missing == ["03", "20", "21", "22", "23"] and r.extra == ["extra"]
assert [p.stem for p, _ in r.failed] == ["05_00", "07_00"]


# %% [markdown]
# ## How sure is a mean?
#
# How different would the mean be on other pictures? The textbook answer is the standard error,
#
# $$\mathrm{se}=\frac{s}{\sqrt N},\qquad \bar v\pm1.96\,\mathrm{se}\ \text{in 95 of 100 cases}$$ {#eq-evaluation-se}
#
# with the mean $\bar v$ and the standard deviation $s$ of the $N$ values. The bootstrap [@efron1979bootstrap] asks the data instead: draw $N$ of the $N$ values, with repetition, take the mean, do this 2,000 times, and cut off 2.5 % at each end. For lopsided values the interval is lopsided too.

# %%
#| export
def bootstrap(values, level=0.95, draws=2000, seed=0):
    """(mean, low, high): the mean of `values` and the interval in which the means of resampled sets
    fall `level` of the time; NaN ends for one value or infinite ones."""
    v = np.asarray(values, float)
    mean = float(v.mean()) if len(v) else float("nan")
    if len(v) < 2 or not np.isfinite(v).all():
        return mean, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [v[rng.integers(len(v), size=len(v))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


# %% [markdown]
# Both answers must agree (@eq-evaluation-se). And of many sets from a known distribution, about 95 of 100 intervals must hold the true mean.

# %%
rng = np.random.default_rng(0)
for n in (50, 300, 3000):
    v = rng.gamma(2.0, 3.0, n)
    mean, low, high = bootstrap(v)
    print(f"N = {n:4}: bootstrap ± {(high - low) / 2:.2f}, formula ± {1.96 * v.std() / n**0.5:.2f}")
    assert_close((high - low) / 2, 1.96 * v.std() / n**0.5, rtol=0.06, atol=0)
    assert mean == v.mean()
sets = np.random.default_rng(1).normal(25, 3, (300, 40))
ends = np.array([bootstrap(v, draws=250, seed=i)[1:] for i, v in enumerate(sets)])
held = (ends[:, 0] < 25) & (25 < ends[:, 1])
print(f"{100 * held.mean():.0f} % of 300 intervals hold the true mean")
assert 0.90 < held.mean() < 0.97
assert np.isnan(bootstrap([1.0])[1]) and np.isnan(bootstrap([1.0, np.inf])[2])

# %%
#| label: fig-evaluation-coverage
#| fig-cap: "Intervals of 60 simulated test sets of 40 pictures each; the line is the true mean, orange intervals miss it."
#| fig-alt: "Sixty vertical bars around a horizontal line; a few of them, in another colour, do not touch it."
fig, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
for ok, colour_of in ((True, "#0072B2"), (False, "#D55E00")):
    at = np.flatnonzero(held[:60] == ok)
    ax.vlines(at, *ends[at].T, color=colour_of, lw=2)
ax.axhline(25, color="black", lw=0.8)
ax.set(xlabel="test set", ylabel="mean PSNR, dB", xlim=(-1, 60));


# %% [markdown]
# The interval of @fig-evaluation-coverage is about *which pictures* happened to be in the set. It knows nothing of the training, which is just as random: only more trainings, from other seeds, tell how far their means lie apart.

# %% [markdown]
# ## The table
#
# A `Table` writes the results as Markdown, JSON or CSV. A number that could not be measured is a dash, with a line below that gives the reason.

# %%
#| export
@dataclass
class Table:
    "Results of one or more methods on a test set under a protocol. `write` puts it into a file."
    results: list
    columns: list       # (label, better, digits), in order
    missing: dict       # {metric asked for: why it could not be measured}
    notes: list         # one line each, printed under the table
    protocol: Protocol = Protocol()

    def cells(self, result):
        "{label: dict(mean, low, high, n)} of one method; labels without a number are left out."
        found = {}
        for label, _, _ in self.columns:
            v = result.values(label)
            if label.startswith("deg") and (floor := self.protocol.min_angle):
                v = [a for a in v if a >= floor]
            if v:
                mean, low, high = bootstrap(v)
                found[label] = dict(mean=mean, low=low, high=high, n=len(v))
            elif label in result.sets:
                n = len(result.images) - result.unmeasured.get(label, [0])[0]
                found[label] = dict(mean=result.sets[label], low=math.nan, high=math.nan, n=n)
        return found

    def csv(self):
        "One line a method: means, bounds and numbers; what does not exist is empty."
        ends = dict(mean="", low=" low", high=" high", n=" n")
        rows = []
        for r in self.results:
            row = dict(method=r.name)
            for label, c in self.cells(r).items():
                row |= {label + end: "" if np.isnan(c[k]) else c[k] for k, end in ends.items()}
            rows.append(row)
        return _csv(rows)


# %% [markdown]
# For people, `±` is half the width of the bootstrap interval, and an arrow says which way is better.

# %%
#| export
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


@patch
def markdown(self: Table):
    """The table as text: mean, and the half width of the bootstrap interval where there is one; a
    dash where nothing was measured."""
    def cell(c, digits):
        if c is None:
            return "–"
        mean = "∞" if np.isinf(c["mean"]) else f"{c['mean']:.{digits}f}"
        half = (c["high"] - c["low"]) / 2
        return mean if np.isnan(c["low"]) else f"{mean} ± {half:.{digits}f}"

    asked = [*self.columns, *((name, 0, 0) for name in self.missing)]
    head = " | ".join(label + _ARROWS[better] for label, better, _ in asked)
    lines = [f"| | {head} |", "|---|" + "---:|" * len(asked)]
    for r in self.results:
        cells = self.cells(r)
        row = " | ".join(cell(cells.get(label), digits) for label, _, digits in asked)
        lines.append(f"| {r.name} | {row} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"


# %% [markdown]
# JSON has neither NaN nor infinity: they become `null` and `"inf"`.

# %%
#| export
@patch
def to_dict(self: Table):
    def safe(v):
        if isinstance(v, (int, str)) or np.isfinite(v):
            return v
        return None if np.isnan(v) else "inf"

    methods = {}
    for r in self.results:
        values = {label: {k: safe(v) for k, v in c.items()} for label, c in self.cells(r).items()}
        failed = [[str(p), why] for p, why in r.failed]
        methods[r.name] = dict(values=values, pictures=len(r.images), failed=failed,
                               missing=r.missing, extra=r.extra)
    return dict(protocol=asdict(self.protocol), missing=self.missing, notes=self.notes,
                columns=[list(c) for c in self.columns], methods=methods)


# %% [markdown]
# A file holds the table in the form that its suffix names, or the numbers of every single picture.

# %%
#| export
@patch
def write(self: Table, path):
    "To PATH.json, .csv or .md, by the suffix. Raises ValueError for another."
    path = Path(path)
    forms = {".json": lambda: json.dumps(self.to_dict(), indent=1) + "\n",
             ".csv": self.csv, ".md": self.markdown}
    if path.suffix.lower() not in forms:
        raise ValueError(f"{path}: a table is written as {', '.join(forms)}")
    _put(path, forms[path.suffix.lower()]())


@patch
def write_images(self: Table, path):
    "Every number of every picture, .csv: method, picture, one column a metric."
    rows = [dict(method=r.name, picture=stem) | row
            for r in self.results for stem, row in r.images.items()]
    _put(path, _csv(rows))


# %%
#| export
def _put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), lambda f: f.write(text.encode()))


def _csv(rows):
    names = list(dict.fromkeys(k for row in rows for k in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# %% [markdown]
# Distances between sets need statistics of real faces: a file, or a folder that is read once and can be kept as one. Pictures of another size than the results would add a difference of sharpness to every row; `reference_size` brings them to one size, and says so.

# %%
#| export
def statistics_of(folder, metrics, progress=True, size=None):
    """([Gaussian, …], [(path, reason), …]): the statistics of the pictures in `folder` (at `size`
    px) for each metric of kind "set", and what could not be read."""
    from tqdm import tqdm

    wanted, failed = [m for m in metrics if m.kind == "set"], []
    gathered = [Gaussian(m.label) for m in wanted]
    paths = [Path(folder) / n for n in _picture_names(Path(folder))] if wanted else []
    for path in tqdm(paths, unit="picture", desc="reference", disable=None if progress else True):
        try:
            image = read_image(path)
            image = image if size is None else _square(image, size, path)
        except ValueError as e:
            failed.append((path, _reason(e, path)))
            continue
        for g, m in zip(gathered, wanted):
            g.update(m(image)[None])
    return gathered, failed


# %%
#| export
def _references(sources, metrics, progress, size, save):
    """([Gaussian or Statistics, …], notes). Files come first; one folder serves the metrics that no
    file serves. Two for one metric are a ValueError."""
    known, notes = {}, []
    if len(folders := [s for s in sources if s.is_dir()]) > 1:
        raise ValueError(f"{folders[1]}: a second folder of references; give one")
    for source in [s for s in sources if not s.is_dir()]:
        s = read_statistics(source)
        if s.features in known:
            raise ValueError(f"{source}: a second reference for {s.features}; give one")
        known[s.features] = s
        n = s.n or "an unstated number of"
        notes.append(f"reference: {source.name}, {n} pictures, for {s.features}")
    for folder in folders:
        wanted = [m for m in metrics if m.label not in known]
        gathered, failed = statistics_of(folder, wanted, progress, size)
        at = "" if size is None else f", at {size} px,"
        notes += [f"reference: {g.n} pictures of {folder.name}{at} for {g.features}"
                  for g in gathered]
        notes += [f"reference {path}: {why}" for path, why in failed]
        for g in (g for g in gathered if g.n > 1):
            known[g.features] = g
            if save is not None:
                Path(save).mkdir(parents=True, exist_ok=True)
                g.save(Path(save) / f"{g.features}.npz")
    return list(known.values()), notes


# %%
#| export
def evaluate(pred, gt=None, reference=(), metrics=DEFAULT_METRICS, protocol=Protocol(),
             files=Files(), suffix="", device="cpu", progress=True, save_reference=None,
             reference_size=None):
    """The table of one or more folders of restored faces, whatever made them.

    pred: a folder, or {name: folder}. gt: the folder of truths, for the metrics that compare.
    reference: a folder of real faces, or files of statistics (`read_statistics`), for fid and
    frechet[…]. metrics: names as in `open_metric`; one that cannot be opened here gets a column of
    dashes and a note. save_reference: folder in which the statistics of a reference folder are
    kept, METRIC.npz. reference_size: its pictures are brought to so many px first. Raises
    ValueError for folders that are not there or hold no pictures.
    """
    if not isinstance(pred, dict):
        pred = {Path(pred).name or str(pred): pred}
    folders = {str(k): Path(v) for k, v in pred.items()}
    for folder in folders.values():     # refused now, not after the reference has been read
        _by_stem(folder, suffix)
    opened, missing = open_metrics(metrics, protocol, files, device)
    opened = list({m.label: m for m in opened}.values())
    sources = [Path(r) for r in ([reference] if isinstance(reference, (str, Path)) else reference)]
    known, notes = _references(sources, opened, progress, reference_size, save_reference)
    for m in [m for m in opened if m.kind == "set" and m.label not in {k.features for k in known}]:
        missing[m.label] = (f"{m.label} needs a reference of two pictures or more: "
                            "a folder of real faces, or a file of their statistics")
    if gt is None:
        missing |= {m.label: f"{m.label} needs the truth (gt)" for m in opened if m.kind == "pair"}
    opened = [m for m in opened if m.label not in missing]
    results = measure_folders(folders, gt, opened, known, suffix, progress)
    notes += [note for r in results for note in _notes(r, opened, protocol)]
    interval = "± is half of the 95 % interval over resampled pictures"
    if sets := ", ".join(m.label for m in opened if m.kind == "set"):
        interval += f"; {sets} has none, and is larger for smaller N: compare at equal N only"
    notes += [f"protocol: {protocol}", interval, *(f"– {why}" for why in missing.values())]
    columns = [(m.label, m.better, m.digits) for m in opened]
    return Table(results, columns, missing, notes, protocol)


# %%
#| export
def _notes(r, metrics, protocol):
    "What a reader has to know of one line of the table."
    line = f"{r.name}: N = {len(r.images)}"
    for v, what in ((r.failed, "failed"), (r.missing, "missing"), (r.extra, "without a truth")):
        if v:
            line += f", {len(v)} {what}"
    yield line
    for label, (n, why) in r.unmeasured.items():
        yield f"{r.name}: {label} not measured on {n} pictures ({why})"
    if not protocol.min_angle:
        return
    for label in (m.label for m in metrics if m.label.startswith("deg")):
        if n := sum(a < protocol.min_angle for a in r.values(label)):
            yield f"{r.name}: {n} pairs below {protocol.min_angle:g}° left out of {label}"


# %% [markdown]
# The first check of any meter is the truth against itself. Among the metrics is one whose file is not in the package:

# %%
tables = evaluate({"damaged": work / "blind/lq", "truth": work / "blind/gt"}, work / "blind/gt",
                  metrics=("psnr", "ssim", "deg[bundled]", "niqe"), progress=False)
perfect = tables.cells(tables.results[1])
assert perfect["psnr"]["mean"] == np.inf and perfect["ssim"]["mean"] == 1
assert perfect["deg[bundled]"]["mean"] < 1e-3 and "niqe" not in perfect
own = tables.to_dict()["methods"]["damaged"]["values"]["psnr"]
by_hand = [psnr(read_image(p), read_image(work / "blind/gt" / p.name)) for p in lq]
assert_close(own["mean"], np.mean(by_hand))
assert f"{own['mean']:.2f} ± {(own['high'] - own['low']) / 2:.2f}" in tables.markdown()
test_fail(lambda: tables.write(work / "table.docx"), exc=ValueError,
          contains="a table is written as .json, .csv, .md")
Markdown(tables.markdown())

# %% [markdown]
# Why the notes? Two imaginary methods: one returns the truth with a yellow veil, one blurs it slightly. The same files, three protocols:

# %%
for i, p in enumerate(sorted((work / "blind/gt").iterdir())):
    gt = read_image(p)
    write_image(work / "veil" / p.name, degrade(gt, DegradationParams(shift=(25, 5, -40))))
    write_image(work / "soft" / p.name, degrade(gt, DegradationParams(sigma_x=0.8, sigma_y=0.8)))
two, order = {"veil": work / "veil", "soft": work / "soft"}, []
for protocol in (Protocol(), Protocol(channel="y"), Protocol.vqfr()):
    t = evaluate(two, work / "blind/gt", metrics=("psnr",), protocol=protocol, progress=False)
    veil, soft = (t.cells(r)["psnr"]["mean"] for r in t.results)
    order.append(veil > soft)
    print(f"veil {veil:4.1f} dB, soft {soft:4.1f} dB: {protocol}")
assert order == [False, True, True]


# %% [markdown]
# The winner changes with a switch: only the first protocol asks for the right colours. None is wrong; a table that does not name its own is.

# %% [markdown]
# ## Tables 1 to 3 as commands
#
# `method` opens a method by name: a search of @sec-baselines, or weights. `apply_method` goes through a folder, and goes on where it was broken off. A batch is repeated whole, because a search starts each picture by its place in the batch. `method.json` says what was used and what it cost; another method may not add to the same folder.

# %%
#| export
def method(name, prior="", /, device="cpu", **settings):
    """(function uint8 (n, s, s, 3) -> the same, restored; what it is) of a method: "pulse" or
    "mganprior" on the prior `prior` with `settings` of `gfpgan_edu.baselines`, or weights of a
    GFPGAN, by name or file. Raises WeightsError, and ValueError for settings that are not there or
    do not suit."""
    if name not in ("pulse", "mganprior"):
        if settings:
            raise ValueError(f"{name} is a network, it has no setting {sorted(settings)[0]}")
        net = fuse(load_weights(name), consume=True).to(device)
        restore = lambda images: to_images(_forward(net, to_tensor(images).to(device)))
        return restore, dict(method=str(name), size=net.config.size)
    search = {"pulse": pulse, "mganprior": mganprior}[name]
    # without the pictures and the prior
    known = dict(list(inspect.signature(search).parameters.items())[2:])
    for k, v in settings.items():
        if k not in known:
            raise ValueError(f"{name} has no setting {k}; there are {', '.join(known)}")
        try:
            settings[k] = _suits(v, type(known[k].default))
        except TypeError as e:
            raise ValueError(f"{name}: {k} is {v!r}, {e}") from None
    net = load_prior(prior or "bundled").requires_grad_(False).to(device)
    restore = lambda images: to_images(search(to_tensor(images).to(device), net, **settings).image)
    return restore, dict(method=name, prior=str(prior or "bundled"), size=net.config["size"],
                         settings=settings)


@torch.inference_mode()
def _forward(net, x):
    return net(x)[0]


# %%
#| export
def apply_method(restore, about, lq, out, batch=8, progress=True):
    """Restore the aligned faces of the folder `lq` into `out`, PNG files of the same names; those
    already there are left. -> [(path, reason)] of the broken.

    `out`/method.json says what it was and the mean seconds a picture took, reading and writing left
    out. Results of another method there are a ValueError.
    """
    from tqdm import tqdm

    lq, out, failed = Path(lq), Path(out), []
    if out.exists() and lq.exists() and out.samefile(lq):
        raise ValueError(f"{out}: the results would overwrite the inputs; choose another folder")
    seconds, n = _spent(out / "method.json", about)
    paths = list(_by_stem(lq).items())
    groups = [paths[i:i + batch] for i in range(0, len(paths), batch)]
    groups = [g for g in groups if not all((out / f"{stem}.png").exists() for stem, _ in g)]
    for group in tqdm(groups, unit="batch", disable=None if progress else True):
        read = {}
        for stem, path in group:
            try:
                image = read_image(path)
                h, w = image.shape[:2]
                if (h, w) != (about["size"], about["size"]):
                    raise ValueError(f"has {w}×{h} px, {about['method']} restores "
                                     f"{about['size']}×{about['size']}")
                read[stem] = image
            except ValueError as e:
                failed.append((path, _reason(e, path)))
        if read:
            start = time.perf_counter()
            restored = restore(np.stack(list(read.values())))
            seconds, n = seconds + time.perf_counter() - start, n + len(read)
            cost = dict(pictures=n, seconds_per_picture=round(seconds / n, 6), batch=batch,
                        threads=torch.get_num_threads())
            _put(out / "method.json", json.dumps(about | cost, indent=1) + "\n")
            for stem, image in zip(read, restored):
                if not (out / f"{stem}.png").exists():
                    write_image(out / f"{stem}.png", image)
    return failed


# %%
#| export
def _spent(path, about):
    """(seconds, pictures) of earlier calls, from a method.json; that of another method is a
    ValueError."""
    if not path.exists():
        return 0.0, 0
    kept = json.loads(path.read_text(encoding="utf-8"))
    if {k: kept.get(k) for k in about} != json.loads(json.dumps(about)):
        what = ", ".join(f"{k} {kept.get(k)}" for k in about)
        raise ValueError(f"{path.parent}: holds results of {what}; choose another folder")
    return kept["seconds_per_picture"] * kept["pictures"], kept["pictures"]


# %%
calls = []
invert = lambda images: calls.append(len(images)) or 255 - images
about = dict(method="invert", size=32)
damaged, inverted = work / "blind/lq", work / "inverted"
assert apply_method(invert, about, damaged, inverted, batch=10, progress=False) == []
assert calls == [10, 10, 4]
(inverted / "12.png").unlink()              # as if broken off
apply_method(invert, about, damaged, inverted, batch=10, progress=False)
assert calls == [10, 10, 4, 10]             # its batch again, nothing else
assert all((read_image(inverted / p.name) == 255 - read_image(p)).all() for p in lq)
other = dict(method="v1.4", size=32)
test_fail(lambda: apply_method(invert, other, damaged, inverted), exc=ValueError,
          contains="holds results of method invert")
test_fail(lambda: apply_method(invert, about, damaged, damaged), exc=ValueError,
          contains="overwrite the inputs")
test_fail(lambda: method("pulse", "prior32", step=5), exc=ValueError,
          contains="pulse has no setting step")


# %% [markdown]
# Now the tables are lines in a shell, with your folders in capitals. **Table 1**, blind restoration on CelebA-Test, from 3,000 aligned faces of CelebA-HQ; the searches need a prior of 512 px:
#
# ```
# gfpgan-edu testset blind CELEBA_HQ --out celeba --limit 3000
# gfpgan-edu baseline v1   --lq celeba/lq --out results/v1
# gfpgan-edu baseline v1.4 --lq celeba/lq --out results/v1.4
# gfpgan-edu baseline pulse --prior PRIOR_512.pth --lq celeba/lq --out results/pulse \
#     --set factor=16 steps=100
# gfpgan-edu evaluate --gt celeba/gt --reference FFHQ_512 --save-reference statistics \
#     --pred Input=celeba/lq results/v1 results/v1.4 results/pulse DFDNet=THEIR_RESULTS \
#     --niqe niqe_pris_params.npz --arcface arcface_resnet18.pth --out table1.md table1.json
# ```
#
# If you have the authors' own damaged pictures, take their folders in place of the first line. Any other program's results are a folder with the same names. `--protocol vqfr` follows the scripts of VQFR.
#
# **Table 2**, four times super-resolution, with the statistics of FFHQ that were kept:
#
# ```
# gfpgan-edu testset sr CELEBA_HQ --out celeba-x4 --factor 4 --limit 3000
# gfpgan-edu baseline v1 --lq celeba-x4/lq --out results/x4-v1
# gfpgan-edu evaluate --pred Bicubic=celeba-x4/lq GFP-GAN=results/x4-v1 --gt celeba-x4/gt \
#     --reference statistics/fid.npz --niqe niqe_pris_params.npz \
#     --arcface arcface_resnet18.pth --out table2.md
# ```
#
# **Table 3**, the real sets; photos that are not aligned yet take `--align`:
#
# ```
# gfpgan-edu testset real LFW --name LFW-Test --out lfw
# gfpgan-edu testset real WEB_PHOTOS --name WebPhoto-Test --align --out web
# gfpgan-edu baseline v1.4 --lq lfw/lq --out results/lfw-v1.4
# gfpgan-edu evaluate --pred Input=lfw/lq results/lfw-v1.4 --metrics fid niqe \
#     --reference statistics/fid.npz --niqe niqe_pris_params.npz --out table3-lfw.md
# ```
#
# `evaluate` ends with 0 (all measured), 1 (some files failed or are missing; each is named) or 2 (nothing measured).

# %% [markdown]
# ## Baselines on held-out faces
#
# The methods of @sec-baselines and the full model, at 32 px, with the same prior and training pictures, on faces that none has seen. The numbers come from the result file of that run.

# %%
def stored(name):
    "What a longer run left in its result file."
    return json.loads(Path(f"../figures/ablation/{name}.json").read_text(encoding="utf-8"))


def stored_cell(c, digits):
    "Mean and half width of a stored number, as `Table.markdown` prints it."
    if c is None:
        return "–"
    mean = "∞" if c["mean"] == "inf" else f"{c['mean']:.{digits}f}"
    return mean if c["low"] is None else f"{mean} ± {(c['high'] - c['low']) / 2:.{digits}f}"


base = stored("baselines")
print(base["command"].replace("; ", "\n"))
print(f"{base['data']}\n{base['iterations']:,} iterations a network, {base['images']:,} pictures "
      f"seen; {base['hardware']}; torch {base['torch']}; {base['date']}")
print(*(f"{name}: {settings}" for name, settings in base["settings"].items()), sep="\n")
counts = {str(c["n"]) for m in base["methods"].values() for c in m.values()}
print(*(note for note in base["notes"] if "N =" not in note),
      "N = " + ", ".join(sorted(counts)), sep="\n")

# %%
#| label: tbl-evaluation-baselines
#| tbl-cap: "Baselines and GFP-GAN on held-out faces at 32 px; seconds a picture on one thread."
seconds = {name: cost["seconds_per_picture"] for name, cost in base["cost"].items()}
columns = base["columns"]
head = " | ".join(label + _ARROWS[better] for label, better, _ in columns)
lines = [f"| | {head} | seconds ↓ |", "|---|" + "---:|" * (len(columns) + 1)]
for name in base["order"]:
    found = base["methods"][name]
    row = " | ".join(stored_cell(found.get(label), digits) for label, _, digits in columns)
    lines.append(f"| {name} | {row} | {f'{seconds[name]:.2g}' if name in seconds else '–'} |")
truth = base["methods"]["Truth"]
assert truth["psnr"]["mean"] == "inf" and truth["ssim"]["mean"] == 1
assert base["order"] == list(base["methods"])
assert all(cost["threads"] == 1 for cost in base["cost"].values())
assert seconds["PULSE"] > 5 * seconds["GFP-GAN"]
Markdown("\n".join(lines))


# %%
def sheet_of(name, titles, rows=3, side=96):
    "The first rows of a stored sheet of faces with titles, as a small PNG."
    faces = read_image(f"../figures/ablation/{name}.png")[:rows * side]
    assert faces.shape[1] == side * len(titles), (
        f"{name}.png has {faces.shape[1] // side} columns, {len(titles)} titles")
    size = (len(titles) * 0.95, len(faces) / side * 0.95 + 0.3)
    fig, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(faces, interpolation="bilinear")
    ax.xaxis.tick_top()
    ax.set_xticks((np.arange(len(titles)) + 0.5) * side - 0.5, titles, fontsize=8)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return compact(fig)


# %%
#| label: fig-evaluation-baselines
#| fig-cap: "The first three held-out faces, none picked (FFHQ, CC BY-NC-SA 4.0)."
#| fig-alt: "Rows of small faces: damaged input, the results of five methods, and the truth."
sheet_of("baselines", base["order"])

# %% [markdown]
# @fig-evaluation-baselines has the order of @tbl-evaluation-baselines.

# %%
FEATURES, REALNESS = "perceptual[efficientnet-lite1]", "frechet[efficientnet-lite1]"
LIKENESS = "deg[dlib]"
of = lambda name, label: base["methods"][name][label]["mean"]
restored = [name for name in base["order"] if name not in ("Input", "Truth")]
for label in ("psnr", "ssim"):
    assert of("U-Net, L1", label) == max(of(n, label) for n in restored)
assert all(of(n, "psnr") < of("Input", "psnr") for n in restored if n != "U-Net, L1")
assert (min(of(n, LIKENESS) for n in ("PULSE", "mGANprior"))
        > max(of(n, LIKENESS) for n in ("Input", "U-Net, L1", "U-Net + GAN", "GFP-GAN")))
alike = [of(n, LIKENESS) for n in ("Input", "U-Net, L1", "GFP-GAN")]
interval = base["methods"]["GFP-GAN"][LIKENESS]
assert np.ptp(alike) < (interval["high"] - interval["low"]) / 2
assert of("U-Net, L1", FEATURES) == min(of(n, FEATURES) for n in restored)
assert min(of(n, REALNESS) for n in restored) > 5 * of("Truth", REALNESS)
assert seconds["PULSE"] > 100 * seconds["GFP-GAN"]
for name in ("PULSE", "mGANprior"):
    times = seconds[name] / seconds["GFP-GAN"]
    print(f"{name} costs {times:.0f} times as much as GFP-GAN's one pass")

# %% [markdown]
# The L1 network wins PSNR, SSIM and the perceptual distance: it takes noise and part of the tint away, and adds nothing (@fig-evaluation-baselines). All others stay below the PSNR of their input, because detail that is not exactly right costs more than blur. GFP-GAN's detail follows the person; the U-Net with the same losses but no prior draws bands. PULSE finds faces of somebody else, mGANprior repaints the damage, and both are farther from the person than the input is, at more than a hundred times the price.
#
# Two warnings. In identity the input, the L1 network and GFP-GAN differ by less than the half width of an interval: nobody has won. And the Fréchet distance of every method is far from that of the truths: the judge, who sees them enlarged from 32 px, takes none of these faces for photos.

# %% [markdown]
# ## The bundled model, judged
#
# The same machinery, on the restorer that comes with the package (@sec-train-restorer), at its own size. The rivals: the damaged input, the U-Net alone, trained with l1 on as many pictures, and the first model that this package shipped, a network of 128 px without a prior, whose results are reduced to the same size. The judges took no part in any training: dlib's embedder and EfficientNet-lite1. The faces are 300 of FFHQ, each damaged in three ways, and 28 of CelebA-HQ, a data set that no network here has seen.

# %%
verdict = json.loads(Path("../figures/bundled/scores.json").read_text(encoding="utf-8"))
print(f"{verdict['command']}\n{verdict['hardware']}; torch {verdict['torch']}; {verdict['date']}; "
      f"seed {verdict['seed']}")
shown = {name: s for name, s in verdict["sets"].items() if name.endswith("blind")}
assert [s["n"] for s in shown.values()] == [900, 84] and verdict["config"]["size"] == 64

# %%
#| label: tbl-evaluation-bundled-ffhq
#| tbl-cap: "900 damaged faces of FFHQ at 64 px, three of each of 300."
Markdown(shown["validation, blind"]["markdown"])

# %%
#| label: tbl-evaluation-bundled-celeba
#| tbl-cap: "84 damaged faces of CelebA-HQ at 64 px, three of each of 28."
Markdown(shown["CelebA-HQ, blind"]["markdown"])

# %% [markdown]
# Whether a difference is one cannot be read from two overlapping intervals, because both methods saw the same faces. So the differences themselves are drawn again and again: for each face, ours minus the rival's, the draws of one face averaged first.

# %%
#| label: fig-evaluation-bundled
#| fig-cap: "The bundled GFP-GAN minus its rivals, means over faces with 95 % intervals. Left of zero, ours is closer to the truth."
#| fig-alt: "Two rows of three panels; in each, one dot with a bar for each rival, beside a line at zero."
kinds = {"validation": "FFHQ", "CelebA-HQ": "CelebA-HQ"}
rivals = ["Input", "U-Net", "first model"]
labels = {FEATURES: "perceptual distance", LIKENESS: "angle of identity, °",
          "psnr": "PSNR, dB, times −1"}
fig, axes = plt.subplots(2, 3, figsize=(7.2, 2.9), layout="constrained", sharey=True)
for row, (name, s) in zip(axes, shown.items()):
    for ax, (label, title) in zip(row, labels.items()):
        sign = -1 if label == "psnr" else 1
        for y, rival in enumerate(rivals):
            mean, *ends = sign * np.array(s["ours_minus"][rival][label])
            ax.plot(sorted(ends), (y, y), c="#0072B2", lw=2)
            ax.plot(mean, y, "o", c="#0072B2")
        ax.axvline(0, c="#444444", lw=0.8)
        last = s is list(shown.values())[-1]
        ax.set(xlabel=title if last else "", yticks=range(len(rivals)), yticklabels=rivals,
               ylim=(-0.6, len(rivals) - 0.4))
    row[0].set_ylabel(kinds[name.split(",")[0]])

# %% [markdown]
# ![CelebA-HQ, the first twelve faces, none picked. In each block: input, the U-Net alone, GFP-GAN, truth.](../figures/bundled/celeba-hq.png){#fig-evaluation-bundled-faces fig-alt="Two blocks of six rows of four small faces."}
#
# ![The six worst of 900 results by identity: input, the U-Net alone, GFP-GAN, truth (FFHQ, CC BY-NC-SA 4.0).](../figures/bundled/failures.png){#fig-evaluation-bundled-failures width=60% fig-alt="Six rows of four small faces; the third column shows another person or a distorted face."}
#
# ![Four times smaller, bicubic: the small face, enlarged, the U-Net alone, GFP-GAN, truth; the first six, none picked (FFHQ, CC BY-NC-SA 4.0).](../figures/bundled/superresolution.png){#fig-evaluation-bundled-sr width=70% fig-alt="Six rows of five faces, from blocks to sharp."}

# %%
HALF = "GFP-GAN, fidelity 0.5"
for name, s in shown.items():
    judged = {k: v for k, v in s["methods"].items() if k != "Truth"}
    realness, features, likeness, pixels = (
        {k: v[label]["mean"] for k, v in judged.items()}
        for label in (REALNESS, FEATURES, LIKENESS, "psnr"))
    assert min(realness, key=realness.get) == min(features, key=features.get) == "GFP-GAN"
    assert min(likeness, key=likeness.get) == HALF
    assert features[HALF] < min(features[k] for k in rivals)
    assert abs(pixels["GFP-GAN"] - pixels["U-Net"]) < 0.1 and pixels[HALF] > pixels["U-Net"] - 1
    # [input, ours], the least damaged quarter of the faces first
    quarters = s["by_damage"][LIKENESS]
    assert quarters[0][0] < quarters[0][1] and quarters[-1][1] < quarters[-1][0] - 0.5
    angles = ", ".join(f"{a:.1f} → {b:.1f}°" for a, b in quarters)
    print(f"{kinds[name.split(',')[0]]}: angle of input → ours, "
          f"from the least to the most damaged quarter: {angles}")
ffhq, celeba = (s["ours_minus"] for s in shown.values())
for rival in rivals:
    assert ffhq[rival][LIKENESS][2] < 0 and ffhq[rival][FEATURES][2] < 0
    assert rival == "U-Net" or ffhq[rival]["psnr"][1] > 0
assert celeba["Input"][LIKENESS][1] > 0
for rival in ("U-Net", "first model"):
    assert celeba[rival][LIKENESS][1] < 0 < celeba[rival][LIKENESS][2]

# %% [markdown]
# @tbl-evaluation-bundled-ffhq, @tbl-evaluation-bundled-celeba and @fig-evaluation-bundled hold good news and one piece of bad news, and the assertions above keep this paragraph honest.
#
# - **Realness** is where GFP-GAN leads, by far: as a set, its faces are nearest to real ones. In @fig-evaluation-bundled-faces it is the restored column with clear eyes.
# - **Features**: nearer to the truth than every rival, on both sets.
# - **Pixels**: level with the U-Net, which was trained for nothing else. That is owed to the share of the U-Net's own picture in the result (@eq-gfpgan-share); the prior's picture alone would pay for its sharpness (@sec-restoration).
# - **Identity** is won on FFHQ, by little: less than a degree against each rival, with intervals that leave zero out. On CelebA-HQ it is not. There the damaged input itself is nearer to the person than any restorer's whole result. Split by damage, the printed lines show why: the most damaged half comes back nearer, the least damaged quarter loses likeness, since what a small network cannot copy it redraws.
#
# The row with fidelity 0.5 is the cure and its price. It is the mean of result and input, `--fidelity 0.5` of @sec-photos. Nothing beats it in identity, on either set, and in features it still beats all rivals. But half of the blur and noise is back, and the distance to real faces grows by half on FFHQ. Faces that are to be looked at want fidelity 0, faces that are to be recognised want more of the input.
#
# Clean faces that are merely small (@fig-evaluation-bundled-sr) are the easiest case. @fig-evaluation-bundled-failures are the worst of all: a profile, which the prior hardly knows, faces that were nearly gone, a grey one, old men under a cap and a paper crown who become somebody else. Most results are faces still. That is exactly the danger.

# %% [markdown]
# ## One change at a time
#
# An ablation takes one thing out and trains again. Table 4 of the paper does this with the modulation (a, b), the prior (c) and the pyramid loss (d), Fig. 7 with the component loss. Each row is a few changes to the config of the full model. When a run is shorter than its preset, the milestones of the learning rate and the end of the pyramid loss move in proportion.

# %%
#| export
# What each row of Table 4 and of Fig. 7 changes in a config of the full model. In Fig. 7 the full
# model is the row D + fs.
ROWS = {
    "full": ("GFP-GAN, all terms", ()),
    "a": ("a) no spatial modulation", ("model.sft=none",)),
    "b": ("b) SFT on all channels", ("model.sft=full",)),
    "c": ("c) without the prior", UNET_GAN),
    "d": ("d) without the pyramid loss", ("loss.pyramid=0",)),
    "no-parts": ("no component loss", ("loss.component=0", "loss.feature_style=0")),
    "D": ("component D alone", ("loss.feature_style=0",)),
    "D+fm": ("component D + feature matching",
             ("loss.feature_style=0", "loss.feature_matching=FM")),
    "l1": ("U-Net, L1 only", UNET_L1),
}


def row_config(base, row, seed=0, iterations=None, matching=0.0075):
    """The config of one row of `ROWS` from that of the full model; milestones and the end of the
    pyramid move with the number of iterations.

    `matching`: weight of the feature matching loss in the row D+fm, which the paper does not give,
    as a share of that of the feature style loss in the full model; 0.0075 made their gradients on
    the picture equally long at 32 px.
    """
    n = base.run.iterations if iterations is None else iterations
    moved = lambda it: max(1, round(it * n / base.run.iterations))
    settings = [f"run.seed={seed}", f"run.iterations={n}",
                f"milestones={[moved(m) for m in base.milestones]}",
                f"loss.pyramid_until={moved(base.loss.pyramid_until)}",
                f"run.valid_every={n}", f"run.save_every={max(1, n // 4)}", "run.keep=1"]
    fm = f"={matching * base.loss.feature_style:g}"
    return override(base, settings + [s.replace("=FM", fm) for s in ROWS[row][1]])


# %% [markdown]
# What a row really changes is read off the finished configs:

# %%
def settings_of(config, where=""):
    "{name: value} of all settings, the nested ones too."
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= settings_of(value, f"{where}{key}.")
        else:
            found[where + key] = value
    return found


small_base = PRESETS["faces32"]()
full = settings_of(plain(row_config(small_base, "full", iterations=2000)))
for row in ROWS:
    config = settings_of(plain(row_config(small_base, row, iterations=2000)))
    changed = {k: v for k, v in config.items() if v != full[k]}
    told = ", ".join(f"{k.split('.')[-1]} {full[k]} -> {v}" for k, v in changed.items())
    print(f"{row:9}{told}")
    named = {s.partition("=")[0] for s in ROWS[row][1]}
    assert set(changed) <= named and all(full[k] == config[k] for k in named - set(changed))
assert full["milestones"] == [1600] and full["loss.pyramid_until"] == 1600
assert plain(small_base)["milestones"] == [4000]


# %% [markdown]
# Row c loses more than the prior: without it there is nothing to modulate either. The row l1 is the plain restorer of the baselines.

# %% [markdown]
# ## The same budget for all
#
# Rows are only comparable if all else is equal: the pictures, their order and damage, and the number of steps. Steps and not minutes, because a row without a prior would otherwise see more pictures. What the full model makes in the time given is the budget of every row. The folder remembers it, goes on where it was broken off, and refuses to mix two experiments.

# %%
#| export
def train_rows(base, data, out, rows=tuple(ROWS), seeds=2, minutes_each=10.0, iterations=None,
               valid=None, device=None, say=print, minutes=None):
    """Train each row of `ROWS` for each seed into `out`/ROW-sSEED: the same prior, pictures, order
    of pictures and number of iterations for all.

    `iterations` None: as many as the full row makes in `minutes_each`, measured once at the start
    and kept in `out`/budget.yaml. What is finished is not done again, what was broken off goes on;
    more seeds or rows may follow later. `minutes`: stop after this time with a checkpoint. Returns
    {(row, seed): folder} of what is finished; raises TrainingError where `out` holds another
    experiment, KeyboardInterrupt.
    """
    start, out = time.monotonic(), Path(out)
    iterations = _budget(base, data, out, seeds, minutes_each, iterations, device)
    left = lambda: None if minutes is None else minutes - (time.monotonic() - start) / 60
    folders = {}
    for seed in range(seeds):
        for row in rows:
            folder = out / f"{row}-s{seed}"
            if not _finished(folder / "ema.safetensors", iterations):
                if minutes is not None and left() <= 0:
                    continue
                say(f"{folder.name}: {iterations} iterations")
                config = row_config(base, row, seed, iterations)
                trainer = RestorerTrainer(config, data, folder, valid=valid, device=device)
                ended = trainer.fit(left())
                if ended == "interrupted":
                    raise KeyboardInterrupt
                if ended != "done":
                    continue
            folders[row, seed] = folder
    return folders


# %%
#| export
def _budget(base, data, out, seeds, minutes_each, iterations, device):
    "The iterations of each row, kept in `out`/budget.yaml; TrainingError for another experiment."
    pictures = len(_picture_names(Path(data)))
    out.mkdir(parents=True, exist_ok=True)
    kept = {}
    if (out / "budget.yaml").exists():
        kept = yaml.safe_load((out / "budget.yaml").read_text(encoding="utf-8"))
    if kept:
        same = (kept["config"] == plain(base) and iterations in (None, kept["iterations"])
                and kept.get("pictures", pictures) == pictures)
        if not same:
            raise TrainingError(f"{out}: holds ablations of another config, budget or number of "
                                "pictures; choose another folder")
    budget = dict(config=plain(base), data=str(data), minutes_each=minutes_each,
                  iterations=iterations or 0) | kept
    budget |= dict(pictures=pictures, seeds=max(seeds, kept.get("seeds", 0)))
    if not budget["iterations"]:
        budget["iterations"] = _measured(base, data, minutes_each, device)
    if budget != kept:
        _put(out / "budget.yaml", yaml.safe_dump(budget, sort_keys=False))
    return budget["iterations"]


# %%
#| export
def _finished(weights, iterations):
    """Whether a row is done: a run that was stopped leaves weights too, with fewer iterations in
    their header."""
    try:
        return int(read_header(weights).get("iterations", 0)) >= iterations
    except WeightsError:        # none yet
        return False


def _measured(base, data, minutes, device):
    """How many iterations of the full row fit into so many minutes: the median of a few, after a
    few to warm up."""
    trainer, times = RestorerTrainer(row_config(base, "full"), data, None, device=device), []
    batches = iter(trainer.loader())
    for _ in range(25):
        start = time.perf_counter()
        trainer.it += 1
        trainer.iteration(trainer.place(next(batches)))
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return max(1, int(60 * minutes / np.median(times[5:])))


# %% [markdown]
# The check: the first batches of all nine rows must agree to the last bit, and another seed must give others. Then two rows are trained for two iterations; said again, nothing is left to do.

# %%
tiny = PRESETS["tiny"]()
run = replace(tiny.run, batch=2, log_every=1, channels_last=False)
test_base = replace(tiny, model=GFPGANConfig.tiny(16), run=run)


def first_batches(row, seed=0):
    trainer = RestorerTrainer(row_config(test_base, row, seed, 4), clean, device="cpu")
    return [b for _, b in zip(range(3), trainer.loader())]


fed = {row: first_batches(row) for row in ROWS}
for row in ROWS:
    for a, b in zip(fed[row], fed["full"]):
        assert all(torch.equal(a[k], b[k]) for k in ("lq", "gt", "index"))
others = first_batches("full", seed=1)
assert not any(torch.equal(a["lq"], b["lq"]) for a, b in zip(fed["full"], others))
said = []


def train(**changes):
    settings = dict(rows=("full", "l1"), seeds=2, iterations=2, device="cpu", say=said.append)
    return train_rows(test_base, clean, work / "rows", **(settings | changes))


folders = train()
assert said == [f"{row}-s{seed}: 2 iterations" for seed in (0, 1) for row in ("full", "l1")]
assert train() == folders and len(said) == 4
test_fail(lambda: train(iterations=3), exc=TrainingError, contains="another config, budget")


# %% [markdown]
# ## What two seeds can say
#
# A row is called better than the full model only if *every* seed of it is better than *every* seed of the full model, and worse in the same way. Otherwise there is no verdict.

# %%
#| export
def verdict(row, full, better):
    """+1, -1: every seed of `row` is better (worse) than every seed of `full`; 0: their ranges
    overlap. `better` is 1 or -1."""
    row, full = np.asarray(row) * better, np.asarray(full) * better
    return 1 if row.min() > full.max() else -1 if row.max() < full.min() else 0


# %% [markdown]
# How often does this rule speak when there is nothing to say? If both rows have $n$ seeds and the same distribution, all orders of the $2n$ numbers are equally likely, and two of the $\binom{2n}{n}$ ways to deal them out separate the rows:
#
# $$P(\text{verdict}\mid\text{no difference})=2\Big/\binom{2n}{n}$$ {#eq-evaluation-chance}

# %%
for n in (1, 2, 3, 4):
    deals = list(itertools.combinations(range(2 * n), n))
    spoke = sum(verdict(sorted(set(range(2 * n)) - set(full)), full, -1) != 0 for full in deals)
    chance = spoke / len(deals)
    print(f"{n} seeds: {spoke} of {len(deals)} deals, {100 * chance:.0f} %")
    assert chance == 2 / np.prod([(n + i) / i for i in range(1, n + 1)])

# %% [markdown]
# With two seeds a third of all cells gets an arrow by chance (@eq-evaluation-chance). So an arrow is a hint; look at the sizes of the differences as well. With one seed, as in most papers, every cell has an arrow, whatever the truth.

# %% [markdown]
# ## Table 4
#
# Every trained row restores one saved test set, and `evaluate` measures them all. The paper's claims stand beside ours as arrows, those of its nearest metric where it lacks ours (`counterpart`).

# %%
#| export
# What the paper reports for Table 4 against its full model: +1 better, -1 worse. Fig. 7 has no
# numbers.
PAPER_ORDER = {"a": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1),
               "b": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=1),
               "c": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1),
               "d": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1)}
# the columns of Table 4, by networks that can be had
ABLATION_METRICS = ("psnr", "ssim", "lpips-vgg", "fid", "deg[bundled]")


def counterpart(label):
    """The paper's column that a label stands for: its own metric, or the nearest on other networks;
    None: the paper has none in Table 4."""
    columns = {"lpips-vgg": "LPIPS", "lpips-alex": "LPIPS", "perceptual": "LPIPS",
               "fid": "FID", "frechet": "FID", "niqe": "NIQE", "deg": "Deg"}
    return columns.get(label.partition("[")[0])


# %%
#| export
def saved_test_set(valid, out, base, limit):
    """The one test set of an ablation, made once; of other faces or settings it is a ValueError, as
    the results beside it would not fit."""
    wanted = dict(kind="blind", size=base.model.size, ranges=base.degradation, seed=1, draws=1,
                  limit=limit)
    if (out / "testset.json").exists():
        kept = json.loads((out / "testset.json").read_text(encoding="utf-8"))
        log = (out / "draws.jsonl").read_text(encoding="utf-8").splitlines()
        sources = {json.loads(line)["source"] for line in log}
        same = all(kept.get(k) == v for k, v in wanted.items())
        if not same or not sources <= set(_picture_names(Path(valid))[:limit]):
            raise ValueError(f"{out}: was made of other faces or with other settings; move it "
                             "away, with the folders `restored` beside it")
        return
    part = out.with_name(f"{out.name}.part")        # made whole, or not at all
    shutil.rmtree(part, ignore_errors=True)
    build_blind(valid, part, wanted["size"], wanted["ranges"], wanted["seed"], limit=limit)
    part.rename(out)


# %%
#| export
def score_rows(folders, base, valid, reference, out, metrics=ABLATION_METRICS, files=Files(),
               limit=None, device="cpu", progress=True):
    """Restore one saved test set (from the folder `valid`, damage as in training) with every
    trained row, measure all, compare with the full row.

    folders {(row, seed): folder} as `train_rows` returns. A folder as `reference` is brought to the
    size of the network. Writes `out`/table.md, per_image.csv and ablation.json and returns what the
    last holds.
    """
    out = Path(out)
    saved_test_set(valid, out / "test", base, limit)
    shown = {"Input": out / "test/lq"}
    for (row, seed), folder in folders.items():
        name = f"{row}-s{seed}"
        restore, about = method(folder / "ema.safetensors", device=device)
        apply_method(restore, about | dict(method=name), out / "test/lq", folder / "restored",
                     batch=16, progress=progress)
        shown[name] = folder / "restored"
    table = evaluate(shown, out / "test/gt", reference, metrics, files=files, device=device,
                     progress=progress, reference_size=base.model.size)
    values = {}
    for r in table.results:
        values[r.name] = {label: c["mean"] for label, c in table.cells(r).items()}
    labels = [label for label, _, _ in table.columns if all(label in v for v in values.values())]
    rows = {row: {label: [] for label in labels} for row, _ in folders}
    for row, seed in folders:
        for label in labels:
            rows[row][label].append(values[f"{row}-s{seed}"][label])
    directions = {label: better for label, better, _ in table.columns if better and label in labels}
    verdicts = {}
    for row in (r for r in rows if r != "full" and "full" in rows):
        verdicts[row] = {label: verdict(rows[row][label], rows["full"][label], better)
                         for label, better in directions.items()}
    result = dict(rows=rows, input={label: values["Input"][label] for label in labels},
                  verdicts=verdicts, paper=PAPER_ORDER, table=table.to_dict())
    _put(out / "ablation.json", json.dumps(result, indent=1) + "\n")
    _put(out / "table.md", ablation_table(result))
    table.write_images(out / "per_image.csv")
    return result


# %%
#| export
def ablation_table(result):
    """The rows of `score_rows` as text: the mean over seeds with the range, ▲ better and ▼ worse
    than the full row in every seed; then the paper's arrows beside ours."""
    mark = {1: " ▲", -1: " ▼", 0: ""}
    n = max((len(v) for values in result["rows"].values() for v in values.values()), default=1)
    columns = [c for c in result["table"]["columns"] if c[0] in result["input"]]

    def cell(v, digits):
        mean = f"{np.mean(v):.{digits}f}"
        return f"{mean} ({min(v):.{digits}f} … {max(v):.{digits}f})" if len(v) > 1 else mean

    head = " | ".join(label + _ARROWS[better] for label, better, _ in columns)
    row = " | ".join(f"{result['input'][label]:.{digits}f}" for label, _, digits in columns)
    lines = [f"| | {head} | paper |", "|---|" + "---:|" * len(columns) + "---|",
             f"| input | {row} | |"]
    for name, values in result["rows"].items():
        ours, theirs = result["verdicts"].get(name, {}), result["paper"].get(name, {})
        row = " | ".join(cell(values[label], digits) + mark[ours.get(label, 0)]
                         for label, _, digits in columns)
        said = " ".join(f"{k}{mark[v].strip()}" for k, v in theirs.items())
        lines.append(f"| {ROWS[name][0]} | {row} | {said} |")
    chance = 2 / math.comb(2 * n, n)
    first = (f"mean over {n} seeds, in brackets the smallest and largest; ▲ ▼: every seed is "
             "better (worse) than every seed of the full model, which among equals happens by "
             f"chance in {100 * chance:.0f} % of cells")
    notes = [f"- {note}" for note in (first, *result["table"]["notes"])]
    return "\n".join([*lines, "", *notes]) + "\n"


def ablation_grid(out, rows, seed=0, faces=6, scale=3):
    """The counterpart of Fig. 6 or Fig. 7, uint8: the first `faces` of the test set, a line each:
    input, the named rows, truth."""
    out = Path(out)
    restored = [out / f"{row}-s{seed}" / "restored" for row in rows]
    columns = [_by_stem(folder) for folder in (out / "test/lq", *restored, out / "test/gt")]
    lines = [np.concatenate([read_image(column[stem]) for column in columns], 1)
             for stem in sorted(columns[0])[:faces]]
    sheet = np.concatenate(lines, 0)
    return cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


# %% [markdown]
# First the machinery, on the four networks of two iterations. The means are taken again by hand. A second call with fewer faces is refused, as the restored pictures belong to the first.

# %%
def score(**options):
    return score_rows(folders, test_base, clean, (), work / "rows", ("psnr", "ssim"),
                      progress=False, **options)


result = score()
for (row, seed), folder in folders.items():
    pairs = [(read_image(p), read_image(work / "rows/test/gt" / p.name))
             for p in sorted((folder / "restored").glob("*.png"))]
    assert len(pairs) == 24
    by_hand = np.mean([psnr(a, b) for a, b in pairs])
    assert_close(result["rows"][row]["psnr"][seed], by_hand, rtol=1e-12, atol=0)
ours, full = (result["rows"][row]["psnr"] for row in ("l1", "full"))
assert result["verdicts"]["l1"]["psnr"] == verdict(ours, full, 1)
kept = json.loads((work / "rows/ablation.json").read_text())
assert kept == json.loads(json.dumps(result))
assert ablation_grid(work / "rows", ("full", "l1"), faces=2).shape == (2 * 48, 4 * 48, 3)
test_fail(lambda: score(limit=3), exc=ValueError, contains="other faces or with other settings")

# %% [markdown]
# And the run: nine rows, two seeds each, with one command:
#
# ```
# gfpgan-edu ablate --preset faces32 --data DIR --valid DIR2 --out runs/ablation32 \
#     --minutes-each 5.5 --seeds 2
# ```
#
# The judges took no part in any training.

# %%
run4 = stored("table4")
print(f"{run4['data']}\n{run4['iterations']:,} iterations a row and seed, {run4['images']:,} "
      f"pictures seen; {run4['hardware']}; torch {run4['torch']}; {run4['date']}")
print(*(note for note in run4["table"]["notes"] if "N =" not in note), sep="\n")
assert set(run4["rows"]) == set(ROWS)
assert len({len(v) for r in run4["rows"].values() for v in r.values()}) == 1
directions = {label: better for label, better, _ in run4["table"]["columns"]}
full = run4["rows"]["full"]
for row, values in run4["rows"].items():        # the arrows in the file follow from its numbers
    ours = {k: verdict(v, full[k], directions[k]) for k, v in values.items()}
    assert row == "full" or run4["verdicts"][row] == ours
one = {label: (c["mean"], full[label][0]) for label, c in base["methods"]["GFP-GAN"].items()}
assert all(abs(a - b) < 1e-4 * max(1, abs(b)) for a, b in one.values()), (
    f"baselines.json and table4.json measured the same pictures differently: {one}")

# %%
#| label: tbl-evaluation-table4
#| tbl-cap: "Our Table 4 and Fig. 7 in numbers: mean over seeds (smallest … largest); ▲ ▼ every seed better (worse) than every seed of the full model. Last column: the paper's arrows."
Markdown("\n".join(line for line in ablation_table(run4).splitlines() if line.startswith("|")))

# %% [markdown]
# Chance alone draws arrows into a table as large as @tbl-evaluation-table4. So they are counted first, then held against the paper's.

# %%
arrows = [v for verdicts in run4["verdicts"].values() for v in verdicts.values()]
n_seeds = len(next(iter(run4["rows"]["full"].values())))
share = 2 / len(list(itertools.combinations(range(2 * n_seeds), n_seeds)))
print(f"{sum(v != 0 for v in arrows)} of {len(arrows)} cells have an arrow; "
      f"{share * len(arrows):.0f} would by chance, if nothing made a difference")
with_counterpart = [label for label in run4["input"] if counterpart(label)]
both = [(row, label, run4["verdicts"][row][label], run4["paper"][row][counterpart(label)])
        for row in run4["paper"] for label in with_counterpart]
count = lambda test: sum(test(ours, theirs) for _, _, ours, theirs in both)
agree, contradict = count(lambda o, t: o == t), count(lambda o, t: o == -t)
print(f"{len(both)} cells have a counterpart: {agree} agree, {contradict} contradict, "
      f"in {count(lambda o, t: o == 0)} ours has no verdict")
assert count(lambda o, t: o in (t, -t, 0)) == len(both) == 4 * len(with_counterpart)

# %%
#| label: tbl-evaluation-agreement
#| tbl-cap: "Ours / the paper's, each against its own full model. A dot: no verdict."
sign = {1: "▲", -1: "▼", 0: "·"}
head = " | ".join(f"{label} / {counterpart(label)}" for label in with_counterpart)
lines = [f"| | {head} |", "|---|" + ":---:|" * len(with_counterpart)]
for row in run4["paper"]:
    cells = " | ".join(f"{sign[o]} / {sign[t]}" for r, _, o, t in both if r == row)
    lines.append(f"| {ROWS[row][0]} | {cells} |")
Markdown("\n".join(lines))

# %% [markdown]
# @tbl-evaluation-agreement compares directions only: other networks are behind the columns, pictures have 32 px instead of 512, trainings take minutes instead of days. Agreement is support; disagreement at this scale refutes nothing.
#
# How much do the intervals leave out? For the full model, the half width over pictures, and half the distance of its seeds:

# %%
for label, better, digits in run4["table"]["columns"]:
    c, seeds = base["methods"]["GFP-GAN"][label], run4["rows"]["full"][label]
    over = "–" if c["low"] is None else f"{(c['high'] - c['low']) / 2:.{digits}f}"
    half = (max(seeds) - min(seeds)) / 2
    print(f"{label:31} over pictures ± {over:6} over {len(seeds)} seeds ± {half:.{digits}f}")
    assert max(seeds) >= min(seeds)
    assert (c["low"] is None) == (label.startswith("frechet") or label == "fid")

# %%
v4 = run4["verdicts"]
m4 = {row: {k: np.mean(x) for k, x in values.items()} for row, values in run4["rows"].items()}
perceptual, fre, deg = (next(k for k in run4["input"] if k.startswith(s))
                        for s in ("perceptual", "frechet", "deg"))
assert set(v4["a"].values()) == {-1} and m4["full"]["psnr"] - m4["a"]["psnr"] > 3
assert [v4["b"][k] for k in ("psnr", "ssim", perceptual, fre, deg)] == [1, 1, 1, 1, 0]
assert [v4["c"][k] for k in ("psnr", "ssim", perceptual, fre, deg)] == [0, -1, 1, 1, -1]
assert [v4["d"][k] for k in ("psnr", "ssim", perceptual, fre, deg)] == [0, -1, 0, 0, 0]
assert v4["no-parts"][deg] == -1 and v4["D"][deg] == v4["D+fm"][deg] == 0
assert {k for k, v in v4["D+fm"].items() if v == 1} == {"psnr", "ssim", perceptual, fre}

# %% [markdown]
# What @tbl-evaluation-table4 says, row by row:
#
# - **a)** Without spatial modulation everything gets worse, by many times the distance of the seeds: codes alone cannot hold the face. The paper's clearest claim holds at our scale.
# - **b)** Steering all channels is *better* here in everything but identity, where the seeds overlap. The paper has it the other way round. A likely reason is our small prior (@sec-train-prior): the half of the channels that CS-SFT leaves alone is worth keeping if a large one wrote it.
# - **c)** Without the prior structure and identity suffer, as in the paper. The two distances that ask for no person in particular are slightly better, against the paper, as they do not punish what the pictures below show.
# - **d)** The pyramid loss makes almost no difference that these runs, short as they are, can show.
# - **The component loss.** Without it identity is worse in every seed; its three forms have no order there. Feature matching is ahead of feature style in the other four columns, by little; the paper prefers feature style, for textures that an eye of four pixels does not have.
# - **L1 only.** The best PSNR and SSIM, as for anyone who asks for nothing else.

# %% [markdown]
# ## The pictures beside the numbers
#
# The networks of the first seed.

# %%
#| label: fig-evaluation-fig6
#| fig-cap: "Counterpart of Fig. 6: the rows of Table 4 on the first three held-out faces (FFHQ, CC BY-NC-SA 4.0)."
#| fig-alt: "Rows of small faces: input, without modulation, with SFT on all channels, without prior, without pyramid loss, full model, truth."
sheet_of("fig6", ["input", "a) no\nmodulation", "b) SFT", "c) no prior", "d) no\npyramid",
                  "full", "truth"])

# %%
#| label: fig-evaluation-fig7
#| fig-cap: "Counterpart of Fig. 7: the component loss taken apart, on the same faces."
#| fig-alt: "Rows of small faces: input, no component loss, discriminators alone, with feature matching, with feature style, truth."
sheet_of("fig7", ["input", "no component\nloss", "D", "D + fm", "D + fs (full)", "truth"])

# %% [markdown]
# In @fig-evaluation-fig6 variant a has the light and the pose of the input and the face of somebody else. Variant c answers the discriminator with horizontal bands: sharp, natural to no one, and not punished by the Fréchet distance. Variants b and d and the full model are alike: outlines of the truth where the input still has them, noise where it has not. The columns of @fig-evaluation-fig7 can hardly be told apart by eye; with eyes of four or five pixels the component loss has little to look at (@sec-train-restorer).

# %% [markdown]
# ## Colour, measured
#
# The colour set of the same faces, restored by the networks of the first seed.

# %%
#| label: tbl-evaluation-colour
#| tbl-cap: "Colour enhancement: distance of chroma to the truth (lower is better) and colourfulness (nearer to the truth's is better)."
tint = stored("colour")
kinds = list(tint["by_kind"])
c4 = tint["by_kind"]
head = " | ".join(f"{kind}: chroma ↓ | {kind}: colourfulness" for kind in kinds)
lines = [f"| | {head} |", "|---|" + "---:|" * (2 * len(kinds))]
for name in tint["order"]:
    cells = [f"{c4[kind][name][k]:.1f}" for kind in kinds for k in ("chroma", "colourfulness")]
    lines.append(f"| {name} | {' | '.join(cells)} |")
assert DEGRADATIONS[tint["config"]["degradation"]].gray_prob == 0.01
assert kinds == list(OLD_PHOTOS) and c4["grey"]["Input"]["colourfulness"] == 0
assert all(c4[kind]["Truth"]["chroma"] == 0 for kind in kinds)
Markdown("\n".join(lines))

# %%
#| label: fig-evaluation-colour-results
#| fig-cap: "Two held-out faces, grey and yellowed (FFHQ, CC BY-NC-SA 4.0)."
#| fig-alt: "Four rows of small faces: grey or yellowed input, three restored versions, truth."
sheet_of("colour", tint["order"], rows=4)

# %% [markdown]
# @tbl-evaluation-colour and @fig-evaluation-colour-results belong together.

# %%
chroma = {kind: {name: c4[kind][name]["chroma"] for name in tint["order"]} for kind in kinds}
for c in chroma.values():
    assert all(c[name] < c["Input"] for name in tint["order"][1:])
    assert c["U-Net, L1"] == min(c[name] for name in tint["order"][1:-1])
grey = {name: c4["grey"][name]["colourfulness"] for name in tint["order"]}
assert all(grey[name] < 0.6 * grey["Truth"] for name in tint["order"][:-1])
veiled = chroma["yellowed"]
assert veiled["GFP-GAN"] > veiled["U-Net + GAN"] > veiled["U-Net, L1"]


# %% [markdown]
# All three networks bring the colours nearer to the truth, and none brings them back. Grey faces stay below six tenths of the colourfulness they should have. The L1 network is nearest in chroma: an average errs least. The adversarial ones choose, and a chosen colour can be wrong. Of the yellow veil the full model leaves the most: a small prior, trained on one grey input in a hundred, has not learned to insist on skin.

# %% [markdown]
# ## What the prior invented
#
# Which parts of a restored eye came from the input? One answer needs no truth: restore again with a change that should not matter, and see what moves. StyleGAN2's noise maps may be exchanged for others; and an input that differs by a grey level or two is the same photo to anybody. With $f_j$ the restored face of the $j$-th of $J$ draws, the map is the standard deviation at each pixel $p$,
#
# $$s(p)=\frac13\sum_{c}\Big(\frac1{J-1}\sum_j\big(f_j(p,c)-\bar f(p,c)\big)^2\Big)^{1/2}$$ {#eq-evaluation-spread}
#
# with $\bar f$ the mean face, $c$ one of R, G, B, in grey levels of 255.

# %%
#| export
@torch.inference_mode()
def spread(net, x, draws=16, nearby=0.0, seed=0):
    """What the prior invented: the standard deviation of the restored face over draws, in grey
    levels, mean over R, G, B -> (mean face (3, s, s), map (s, s)).

    x (3, s, s) in [-1, 1]. nearby = 0: the noise maps of StyleGAN2 are drawn anew; nearby > 0:
    noise maps fixed, x changed by Gaussian noise of so many grey levels, inputs that nobody could
    tell apart (@eq-evaluation-spread).
    """
    if draws < 2:
        raise ValueError(f"draws is {draws}, needs two at least")
    rng = torch.Generator().manual_seed(seed)
    noise = "fixed" if nearby else "random"
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        faces = []
        for _ in range(draws):
            near = x + torch.randn(x.shape, generator=rng).to(x) * nearby / 127.5
            faces.append(net(near.clamp(-1, 1)[None], noise=noise)[0][0].clamp(-1, 1))
    faces = torch.stack(faces)
    return faces.mean(0), faces.std(0).mean(0) * 127.5


# %% [markdown]
# Where nothing is random the map has to be zero: a net whose noise strengths are zero, and a U-Net without a prior. Twice a small disturbance must give about twice the spread. And the global random state must be as before.

# %%
bundled = load_weights("bundled")
portrait = example_faces(1, bundled.config.size)[0]
damage = DegradationParams(sigma_x=2.5, sigma_y=2.5, r=4.0, delta=8.0, q=60)
x = to_tensor(degrade(portrait, damage))[0]
before = torch.random.get_rng_state()
mean, by_noise = spread(bundled, x, draws=8)
_, by_input = spread(bundled, x, draws=8, nearby=2.0)
_, double = spread(bundled, x, draws=8, nearby=4.0)
assert torch.equal(before, torch.random.get_rng_state())
assert torch.equal(by_noise, spread(bundled, x, draws=8)[1])
assert 1.8 < double.mean() / by_input.mean() < 2.2 and by_noise.mean() > 0.3
quiet = load_weights("bundled")
for m in quiet.decoder.synthesis.convs:
    m.noise_strength.data.zero_()
assert spread(quiet, x, draws=3)[1].max() == 0
unet = load_weights(folders["l1", 0] / "ema.safetensors")
assert spread(unet, torch.zeros(3, 16, 16), draws=3)[1].max() == 0
error = (mean - to_tensor(portrait)[0]).abs().mean(0) * 127.5
print(f"mean over the face, grey levels: spread by noise {by_noise.mean():.1f}, by inputs 2 levels "
      f"apart {by_input.mean():.1f}, distance to the truth {error.mean():.0f}")

# %%
#| label: fig-evaluation-spread
#| fig-cap: "The bundled model. Below: spread over noise maps, spread over inputs two grey levels apart, distance to the truth; brighter is more, each on its own scale."
#| fig-alt: "Above a damaged portrait, its restored version and the true one; below three maps, bright at different places."
maps = [by_noise, by_input, error]
tops = [m.quantile(0.995) for m in maps]
titles = [f"{name}, up to {top:.1f}" for name, top in zip(("noise", "inputs", "distance"), tops)]
pictures = [x, mean, portrait, *(m / top for m, top in zip(maps, tops))]
compact(show(pictures, ["input", "restored", "truth", *titles], cols=3, height=1.7,
             cmap="inferno", vmin=0, vmax=1))

# %%
related = [np.corrcoef(m.flatten(), error.flatten())[0, 1] for m in maps[:2]]
print(f"correlation with the distance to the truth: noise {related[0]:.2f}, "
      f"inputs {related[1]:.2f}")
assert by_noise.mean() < error.mean() / 3 and by_input.mean() < error.mean() / 3
assert all(abs(c) < 0.4 for c in related)

# %% [markdown]
# The maps of @fig-evaluation-spread look like maps of doubt and are none. The places that move most are hardly more wrong than others, and the spread is a small part of the distance to the truth. Nearly the same answer to every disturbed question is steadiness, not truth: a restorer that was trained to give one answer does not show what else would have been possible.
#
# A search does, because every start ends elsewhere. Six faces that PULSE finds for one face at an eighth of its size:

# %%
target = to_tensor(read_image(clean / "09.png"))
found = pulse(target.expand(6, -1, -1, -1), prior, factor=8, steps=40, seed=1).image.clamp(-1, 1)
shrunk = lambda t: torch.nn.functional.avg_pool2d(t, 8)
apart = found.std(0).mean() * 127.5
misfit = (shrunk(found) - shrunk(target)).abs().mean() * 127.5
print(f"the six differ by {apart:.0f} grey levels a pixel; "
      f"at an eighth of the size they miss the input by {misfit:.0f}")
assert apart > 2 * misfit

# %%
#| label: fig-evaluation-pulse
#| fig-cap: "The face, what the search sees of it, and six faces it found."
#| fig-alt: "A small face, four by four blocks of colour, and six different faces with similar colours."
seen = torch.nn.functional.interpolate(shrunk(target), size=32, mode="nearest")[0]
compact(show([target[0], seen, *found], ["truth", "seen", *"123456"], cols=8, height=0.9))

# %% [markdown]
# All six of @fig-evaluation-pulse fit the blocks, and no two are the same face. A single sharp result does not tell how many such answers there were. So show the input beside the result.

# %% [markdown]
# ## How it is done today
#
# LPIPS, FID and NIQE can all be won by a sharp face of somebody else. The NTIRE challenges of 2025 and 2026 on real-world face restoration [@chen2025ntire] turn the order around, for 450 faces of five sets. First an identity filter: AdaFace compares the results with the *inputs*, and a face whose cosine falls below a threshold counts as somebody else (0.3 for WIDER and WebPhoto, 0.5 for CelebA, 0.6 for LFW and CelebChild). Too many of those, and the method is out. Only then do scores without a truth decide: CLIP-IQA, MANIQA, MUSIQ, Q-Align, NIQE and FID. The filter is the part to copy: `--metrics deg` with the *input* as `--gt`. The learned scores have weights with licences of their own and do not come with this package.

# %% [markdown]
# ## Put together
#
# Three crops of one portrait, damaged, restored by the bundled model, measured, with all decisions under the table.

# %%
fill(work / "portraits", example_faces(3, 128))
build_blind(work / "portraits", work / "chain", size=64, ranges="severe", seed=2)
restore, about = method("bundled")
apply_method(restore, about, work / "chain/lq", work / "chain/restored", progress=False)
chain = evaluate({"Input": work / "chain/lq", "bundled": work / "chain/restored"},
                 work / "chain/gt", metrics=("psnr", "ssim", "chroma", "deg[bundled]", "niqe"),
                 progress=False)
assert [len(r.images) for r in chain.results] == [3, 3] and "niqe" in chain.missing
before, after = (chain.cells(r)["psnr"] for r in chain.results)
assert abs(after["mean"] - before["mean"]) < (after["high"] - after["low"]) / 2
Markdown(chain.markdown())

# %%
#| label: fig-evaluation-chain
#| fig-cap: "The three crops: damaged, restored, true."
#| fig-alt: "Three rows of three portraits of the same astronaut: blurred, clearer, sharp."
views = {"damaged": "lq", "restored": "restored", "true": "gt"}
pictures = [read_image(work / "chain" / which / f"{i:02}.png")
            for which in views.values() for i in range(3)]
compact(show(pictures, rows=views, cols=3, height=1.5))

# %% [markdown]
# With three pictures the interval of PSNR is wider than the difference: this table decides nothing, and it says so. Besides, the three crops (@fig-evaluation-chain) are one person. Nothing follows from them for others.

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | blind set | 3,000 CelebA-HQ faces, damage "as in training" | the finished pictures, for download | made from clean faces and a seed, every draw kept | it can be made again |
# | super-resolution set | 4×, bicubic | – | Pillow's antialiased kernel, named in testset.json | the word has two meanings |
# | colour | examples | – | grey and yellowed faces with truths | numbers need truths |
# | real sets | 1,711, 180 and 407 faces | the pictures, for download | any folder; counts checked | copies differ |
# | files that do not fit | – | an error, or skipped | listed, the rest measured, exit code 1 | long runs, honest N |
# | uncertainty | – | – | bootstrap over pictures, range over seeds | a mean alone has none |
# | FID | against FFHQ | stored statistics | a folder or a file; the number of pictures under the table | @sec-metrics |
# | matching of means | not mentioned | always, in VQFR's script | off; `--protocol vqfr` | it forgives tints |
# | ablations | rows at 512 px, one training each | – | the same rows, equal iterations and pictures, two seeds | what one machine can do |
# | feature matching in Fig. 7 | weight not given | – | gradients as long as those of the style loss | a fair contest |
#
# : Evaluation in three versions {#tbl-evaluation-versions}
#
# @tbl-evaluation-versions has "–" where nothing was published.

# %% [markdown]
# ## What users trip over
#
# ::: {.callout-warning}
# - *I get 5 dB more than the paper.* Another set of damaged pictures. Compare the PSNR of the *input* first, in the first row of Table 1.
# - *The reference has another size,* say 1,024 px beside results of 128 px. Use `--reference-size`; `ablate` does it by itself.
# - *My results carry `_00` at the end, or are JPEG.* `--suffix _00` cuts it off; endings do not matter, but JPEG costs quality.
# - *The original test set is gone.* That has happened. Keep draws.jsonl and the clean faces.
# :::

# %% [markdown]
# ## Summary
#
# - A number belongs to a set, a reference, an N and a protocol (@tbl-evaluation-decisions).
# - Every damaged picture follows from a seed (@eq-evaluation-draw) and can be made again from the log alone.
# - The meter goes through folders of any program, and faults become part of the result.
# - Intervals cover the choice of pictures (@eq-evaluation-se), not the training. With two seeds, one cell in three gets an arrow by chance (@eq-evaluation-chance).
# - Ablations are configs with equal budgets, and a steady answer (@eq-evaluation-spread) is not yet a true one.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* How many seeds does a row need until an arrow comes by chance in less than one of 1,000 cells? How many trainings is that for nine rows?
# 2. *Modify.* Write the verdict for a paired comparison: bootstrap the difference of two methods picture by picture. For which kind of damaged set is the paired interval much narrower than the single ones, and why?
# 3. *Break.* Let `_numbers` skip the line that counts the unmeasured. Which check turns red? If none does, write it.
#
# Worked solutions: [nbs/solutions/19_evaluation.ipynb](solutions/19_evaluation.ipynb).

# %% [markdown]
# ## References
#
# Tables, sets and ablations are those of @wang2021gfpgan; LFW is due to @huang2007lfw, CelebA to @liu2015celeba, FFHQ to @karras2019stylegan. The scripts of @gu2022vqfr fix many decisions that papers share. The searches are PULSE [@menon2020pulse] and mGANprior [@gu2020mganprior]; the bootstrap is that of @efron1979bootstrap.

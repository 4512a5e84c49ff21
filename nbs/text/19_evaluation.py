# %% [markdown]
# # Evaluation {#sec-evaluation}
#
# > A table is a set of decisions; here they are commands.

# %%
#| default_exp evaluation

# %%
#| export
import csv
import inspect
import io
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from PIL import Image

from gfpgan_edu.baselines import UNET_GAN, UNET_L1, mganprior, pulse
from gfpgan_edu.degradation import PRESETS as DEGRADATIONS, degrade, sample_params
from gfpgan_edu.engine import TrainingError, override, plain, write_whole
from gfpgan_edu.faces import _picture_names, _square, align as align_face, detect, to_images, to_tensor
from gfpgan_edu.metrics import DEFAULT_METRICS, Files, Gaussian, Protocol, frechet, open_metrics, read_statistics
from gfpgan_edu.photos import PhotoError, read_image, write_image
from gfpgan_edu.train_restorer import RestorerTrainer
from gfpgan_edu.weights import load_prior, load_weights, read_header

# %%
#| export
# What each row of Table 4 and of Fig. 7 changes in a config of the full model. In Fig. 7 the full model is the row D + fs.
ROWS = {
    "full": ("GFP-GAN, all terms", ()),
    "a": ("a) no spatial modulation", ("model.sft=none",)),
    "b": ("b) SFT on all channels", ("model.sft=full",)),
    "c": ("c) without the prior", UNET_GAN),
    "d": ("d) without the pyramid loss", ("loss.pyramid=0",)),
    "no-parts": ("no component loss", ("loss.component=0", "loss.feature_style=0")),
    "D": ("component D alone", ("loss.feature_style=0",)),
    "D+fm": ("component D + feature matching", ("loss.feature_style=0", "loss.feature_matching=FM")),
    "l1": ("U-Net, L1 only", UNET_L1),
}


def row_config(base, row, seed=0, iterations=None, matching=0.0075):
    """The config of one row of `ROWS` from that of the full model; milestones and the end of the pyramid move with the number of iterations.

    `matching`: weight of the feature matching loss in the row D+fm, which the paper does not give, as a share of that of the feature style loss in
    the full model; 0.0075 made their gradients on the picture equally long at 32 px.
    """
    n = base.run.iterations if iterations is None else iterations
    moved = lambda it: max(1, round(it * n / base.run.iterations))
    settings = [f"run.seed={seed}", f"run.iterations={n}", f"milestones={[moved(m) for m in base.milestones]}", f"loss.pyramid_until={moved(base.loss.pyramid_until)}",
                f"run.valid_every={n}", f"run.save_every={max(1, n // 4)}", "run.keep=1"]
    return override(base, settings + [s.replace("=FM", f"={matching * base.loss.feature_style:g}") for s in ROWS[row][1]])


# %%
#| export
def train_rows(base, data, out, rows=tuple(ROWS), seeds=2, minutes_each=10.0, iterations=None, valid=None, device=None, say=print):
    """Train each row of `ROWS` for each seed into `out`/ROW-sSEED: the same prior, pictures, order of pictures and number of iterations for all.

    `iterations` None: as many as the full row makes in `minutes_each`, measured once at the start and kept in `out`/budget.yaml. What is
    finished is not done again, what was broken off goes on. Returns the folders; raises TrainingError where `out` holds another experiment, KeyboardInterrupt.
    """
    out, wanted = Path(out), dict(config=plain(base), seeds=seeds, data=str(data))
    out.mkdir(parents=True, exist_ok=True)
    if (out / "budget.yaml").exists():
        kept = yaml.safe_load((out / "budget.yaml").read_text(encoding="utf-8"))
        if kept["config"] != wanted["config"] or (iterations or kept["iterations"]) != kept["iterations"]:
            raise TrainingError(f"{out}: holds ablations of another config or budget; choose another folder")
        iterations = kept["iterations"]
    else:
        iterations = iterations or _measured(base, data, minutes_each, device)
        write_whole(out / "budget.yaml", lambda f: f.write(yaml.safe_dump(wanted | dict(iterations=iterations, minutes_each=minutes_each), sort_keys=False).encode()))
    folders = {}
    for seed in range(seeds):
        for row in rows:
            folder = folders[row, seed] = out / f"{row}-s{seed}"
            if (folder / "ema.safetensors").exists() and int(read_header(folder / "ema.safetensors")["iterations"]) >= iterations:
                continue
            say(f"{folder.name}: {iterations} iterations")
            trainer = RestorerTrainer(row_config(base, row, seed, iterations), data, folder, valid=valid, device=device)
            if trainer.fit() == "interrupted":
                raise KeyboardInterrupt
    return folders


def _measured(base, data, minutes, device):
    "How many iterations of the full row fit into so many minutes: the median of a few, after a few to warm up."
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


# %%
#| export
KNOWN = {"LFW-Test": 1711, "CelebChild-Test": 180, "WebPhoto-Test": 407, "CelebA-Test": 3000}       # pictures, as the paper counts them


@dataclass
class TestSet:
    "What a builder made: `folder` holds lq/, gt/ (not of real photos), draws.jsonl and testset.json."
    folder: Path
    n: int = 0
    failed: list = field(default_factory=list)                                 # (path, reason)


def _build(source, out, about, make, limit=None):
    "Calls make(index, stem, picture) -> [(file, {folder: picture}, draw)] for each readable picture of `source`, writes what it yields."
    source, out, done = Path(source), Path(out), TestSet(Path(out))
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; choose another folder, so that two test sets do not mix")
    names, taken = _picture_names(source), set()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "draws.jsonl", "w", encoding="utf-8", newline="\n") as log:
        for index, name in enumerate(names[:limit]):
            try:
                made = make(index, Path(name).stem, read_image(source / name))
                if taken & {file for file, _, _ in made}:
                    raise PhotoError(f"{source / name}: a picture of this name is in the set already")
            except ValueError as e:
                done.failed.append((source / name, str(e).removeprefix(f"{source / name}: ")))
                continue
            taken |= {file for file, _, _ in made}
            for file, pictures, draw in made:
                for folder, picture in pictures.items():
                    write_image(out / folder / file, picture)
                log.write(json.dumps(dict(file=file, source=name, **draw)) + "\n")
            done.n += len(made)
    text = json.dumps(about | dict(pictures=done.n, left_out=len(done.failed)), indent=1)
    write_whole(out / "testset.json", lambda f: f.write(text.encode() + b"\n"))
    return done


# %%
#| export
def build_blind(source, out, size=512, ranges="paper", seed=0, draws=1, limit=None):
    """A set like CelebA-Test from aligned clean faces: gt/ the pictures at `size` px, lq/ `draws` damaged versions of each (Eq. 10).

    `ranges`: a name in `gfpgan_edu.degradation.PRESETS`. Each draw depends on (seed, number of the picture, draw) alone and is kept in
    draws.jsonl, so the set can be made again from the clean faces. Raises ValueError for a folder that is not fit.
    """
    def make(index, stem, image):
        gt = _square(image, size, stem)
        params = [sample_params(np.random.default_rng([seed, index, k]), DEGRADATIONS[ranges].at(size)) for k in range(draws)]
        return [(f"{stem}{f'_{k}' * (draws > 1)}.png", dict(lq=degrade(gt, p), gt=gt), dict(params=json.loads(p.to_json()))) for k, p in enumerate(params)]

    return _build(source, out, dict(kind="blind", size=size, ranges=ranges, seed=seed, draws=draws), make, limit)


def build_sr(source, out, size=512, factor=4, limit=None):
    "A super-resolution set: lr/ the faces bicubically reduced (antialiased), lq/ these enlarged bicubically to `size` again, gt/ the faces."
    if factor < 2 or size % factor:
        raise ValueError(f"factor is {factor}, needs a whole number from 2 up that divides {size}")
    bicubic = lambda image, side: np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))

    def make(index, stem, image):
        gt = _square(image, size, stem)
        lr = bicubic(gt, size // factor)
        return [(f"{stem}.png", dict(lq=bicubic(lr, size), gt=gt, lr=lr), dict(factor=factor))]

    return _build(source, out, dict(kind="sr", size=size, factor=factor, resampling="bicubic, antialiased (Pillow)"), make, limit)


# %%
#| export
OLD_PHOTOS = {                                                                 # what colour enhancement has to undo, besides mild damage
    "grey": dict(gray=True),
    "yellowed": dict(shift=(50.0, 10.0, -80.0), jitter=(("saturation", 0.6), ("contrast", 0.75))),
}


def build_colour(source, out, size=512, ranges="paper", seed=0, limit=None):
    "Each face grey and yellowed, with the blur, noise and JPEG of a draw from `ranges`: NAME-grey.png and NAME-yellowed.png in lq/, gt/ in colour."
    def make(index, stem, image):
        gt, base = _square(image, size, stem), replace(sample_params(np.random.default_rng([seed, index, 0]), DEGRADATIONS[ranges].at(size)), shift=None, gray=False, jitter=())
        return [(f"{stem}-{name}.png", dict(lq=degrade(gt, p), gt=gt), dict(params=json.loads(p.to_json())))
                for name, p in ((name, replace(base, **changes)) for name, changes in OLD_PHOTOS.items())]

    return _build(source, out, dict(kind="colour", size=size, ranges=ranges, seed=seed), make, limit)


def wrap_real(source, out, name, size=512, align=False, limit=None):
    """Real photos without a truth: lq/ each face at `size` px. `align`: the photos are not aligned, every face found is cut out.

    `name`: that of a set in `KNOWN` is checked against the number of pictures the paper counts; any other is as good.
    """
    def make(index, stem, image):
        faces = [_square(image, size, stem)] if not align else [align_face(image, f.landmarks, size)[0] for f in detect(image)]
        if not faces:
            raise PhotoError(f"{stem}: no face found")
        return [(f"{stem}{f'_{k}' * (k > 0)}.png", dict(lq=face), dict(face=k)) for k, face in enumerate(faces)]

    n = len(_picture_names(Path(source)))
    note = f"the paper counts {KNOWN[name]} faces, this folder holds {n} pictures" if name in KNOWN and n != KNOWN[name] else ""
    return _build(source, out, dict(kind="real", name=name, size=size, aligned_here=align, note=note), make, limit)


# %%
#| export
def bootstrap(values, level=0.95, draws=2000, seed=0):
    """(mean, low, high): the mean of `values` and the interval in which the means of resampled sets fall `level` of the time; NaN ends for one value or infinite ones."""
    v = np.asarray(values, float)
    mean = float(v.mean()) if len(v) else float("nan")
    if len(v) < 2 or not np.isfinite(v).all():
        return mean, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [v[rng.integers(len(v), size=len(v))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


# %%
#| export
@dataclass
class Result:
    "One method, measured: `images` {file stem: {label: value}}, `sets` {label: value} of distances between sets, and what could not be measured."
    name: str
    images: dict = field(default_factory=dict)
    sets: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)                                 # (path, reason): broken, or of another size than its truth
    missing: list = field(default_factory=list)                                # stems of truths without a result
    extra: list = field(default_factory=list)                                  # stems of results without a truth
    unmeasured: dict = field(default_factory=dict)                             # {label: [number of pictures, why the first]}: too small for a metric

    def values(self, label):
        return [v[label] for v in self.images.values() if label in v]


def _by_stem(folder, suffix=""):
    "{stem without `suffix`: path} of the pictures in a folder; two of one stem are a ValueError."
    found = {}
    for name in _picture_names(Path(folder)):
        stem = Path(name).stem.removesuffix(suffix)
        if stem in found:
            raise ValueError(f"{Path(folder) / name}: {found[stem].name} has the same name; which one is meant?")
        found[stem] = Path(folder) / name
    return found


class _Described(dict):
    "What each `describe` says of one picture, computed when first asked for."

    def __init__(self, path, size_of=None):
        self.image = read_image(path)
        if size_of is not None and size_of.image.shape != self.image.shape:
            h, w = size_of.image.shape[:2]
            raise ValueError(f"has {self.image.shape[1]}×{self.image.shape[0]} px, its truth {w}×{h}")

    def __missing__(self, describe):
        self[describe] = describe(self.image)
        return self[describe]


def measure_folders(folders, gt, metrics, reference=(), suffix="", progress=True):
    """Measure the pictures of folders {name: path}, against those of the same names in `gt` (or None) and against `reference` statistics -> [Result, …].

    Names are compared without their ending, so .jpg fits .png; `suffix` is cut off the names of results first ("_00"). Broken and wrong-sized files are
    listed and the rest is measured; sizes are never changed in silence. One truth and one result are in memory at a time.
    """
    from tqdm import tqdm

    truths = _by_stem(gt) if gt is not None else {}
    found = {name: _by_stem(folder, suffix) for name, folder in folders.items()}
    results = {name: Result(name, missing=sorted(truths.keys() - paths.keys()), extra=sorted(paths.keys() - truths.keys()) if gt is not None else []) for name, paths in found.items()}
    gathered = {name: {m.label: Gaussian(m.label) for m in metrics if m.kind == "set"} for name in folders}
    stems = sorted(truths) if gt is not None else sorted(set().union(*found.values()))
    for stem in tqdm(stems, unit="face", disable=None if progress else True):
        try:
            truth = _Described(truths[stem]) if gt is not None else None
        except ValueError as e:
            for name in folders:
                results[name].failed.append((truths[stem], str(e).removeprefix(f"{truths[stem]}: ")))
            continue
        for name, paths in found.items():
            if stem in paths:
                try:
                    shown = _Described(paths[stem], truth)
                except ValueError as e:
                    results[name].failed.append((paths[stem], str(e).removeprefix(f"{paths[stem]}: ")))
                    continue
                row = results[name].images[stem] = {}
                for m in metrics:
                    try:
                        value = m.measure(shown[m.describe], *([truth[m.describe]] if m.kind == "pair" else []))
                    except (ValueError, RuntimeError) as e:                    # a metric that needs more pixels, for one
                        results[name].unmeasured.setdefault(m.label, [0, " ".join(str(e).split())])[0] += 1
                        continue
                    if m.kind == "set":
                        gathered[name][m.label].update(value[None])
                    else:
                        row[m.label] = value
    for known in reference:
        for name, own in gathered.items():
            if known.features in own and own[known.features].n > 1:
                results[name].sets[known.features] = frechet(own[known.features], known)
    return list(results.values())


# %%
#| export
def statistics_of(folder, metrics, progress=True):
    "([Gaussian, …], [(path, reason), …]): the statistics of the pictures in `folder` for each metric of kind \"set\", and what could not be read."
    from tqdm import tqdm

    wanted, failed = [m for m in metrics if m.kind == "set"], []
    gathered = [Gaussian(m.label) for m in wanted]
    for path in tqdm([Path(folder) / n for n in _picture_names(Path(folder))] if wanted else [], unit="picture", desc="reference", disable=None if progress else True):
        try:
            image = read_image(path)
        except ValueError as e:
            failed.append((path, str(e).removeprefix(f"{path}: ")))
            continue
        for g, m in zip(gathered, wanted):
            g.update(m(image)[None])
    return gathered, failed


# %%
#| export
@dataclass
class Table:
    "Results of one or more methods on one test set under one protocol. `write` puts it into a file."
    results: list
    columns: list                                                              # (label, better, digits), in order
    missing: dict                                                              # {metric asked for: why it could not be measured}
    notes: list                                                                # one line each, printed under the table
    protocol: Protocol = Protocol()

    def cells(self, result):
        "{label: dict(mean, low, high, n)} of one method; labels without a number are left out."
        found = {}
        for label, _, _ in self.columns:
            v = result.values(label)
            if label.startswith("deg") and (floor := self.protocol.min_angle):
                v = [a for a in v if a >= floor]
            if v:
                found[label] = dict(zip(("mean", "low", "high"), bootstrap(v))) | dict(n=len(v))
            elif label in result.sets:
                found[label] = dict(mean=result.sets[label], low=float("nan"), high=float("nan"), n=len(result.images))
        return found

    def markdown(self):
        "The table as text: mean, and the half width of the bootstrap interval where there is one; a dash where nothing was measured."
        def cell(c, digits):
            if c is None:
                return "–"
            spread = "" if np.isnan(c["low"]) else f" ± {(c['high'] - c['low']) / 2:.{digits}f}"
            return ("∞" if np.isinf(c["mean"]) else f"{c['mean']:.{digits}f}") + spread

        asked = [(label, better, digits) for label, better, digits in self.columns] + [(name, 0, 0) for name in self.missing]
        lines = ["| | " + " | ".join(f"{label}{ {1: ' ↑', -1: ' ↓', 0: ''}[better]}" for label, better, _ in asked) + " |", "|---|" + "---:|" * len(asked)]
        for r in self.results:
            cells = self.cells(r)
            lines.append(f"| {r.name} | " + " | ".join(cell(cells.get(label), digits) for label, _, digits in asked) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def to_dict(self):
        safe = lambda v: v if isinstance(v, (int, str)) or np.isfinite(v) else None if np.isnan(v) else "inf"
        return dict(protocol=asdict(self.protocol), missing=self.missing, notes=self.notes, columns=[list(c) for c in self.columns],
                    methods={r.name: dict(values={label: {k: safe(v) for k, v in c.items()} for label, c in self.cells(r).items()}, pictures=len(r.images),
                                          failed=[[str(p), why] for p, why in r.failed], missing=r.missing, extra=r.extra) for r in self.results})

    def csv(self):
        "One line a method: means, bounds and numbers."
        rows = []
        for r in self.results:
            rows.append(dict(method=r.name) | {f"{label}{end}": c[k] for label, c in self.cells(r).items() for k, end in (("mean", ""), ("low", " low"), ("high", " high"), ("n", " n"))})
        return _csv(rows)

    def write(self, path):
        "To PATH.json, .csv or .md, by the suffix. Raises ValueError for another."
        path, forms = Path(path), {".json": lambda: json.dumps(self.to_dict(), indent=1) + "\n", ".csv": self.csv, ".md": self.markdown}
        if path.suffix.lower() not in forms:
            raise ValueError(f"{path}: a table is written as {', '.join(forms)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = forms[path.suffix.lower()]()
        write_whole(path, lambda f: f.write(text.encode()))

    def write_images(self, path):
        "Every number of every picture, .csv: method, picture, one column a metric."
        text = _csv([dict(method=r.name, picture=stem) | row for r in self.results for stem, row in r.images.items()])
        write_whole(Path(path), lambda f: f.write(text.encode()))


def _csv(rows):
    names = list(dict.fromkeys(k for row in rows for k in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# %%
#| export
def evaluate(pred, gt=None, reference=(), metrics=DEFAULT_METRICS, protocol=Protocol(), files=Files(), suffix="", device="cpu", progress=True, save_reference=None):
    """The table of one or more folders of restored faces, whatever made them.

    pred: a folder, or {name: folder}. gt: the folder of truths, for the metrics that compare. reference: a folder of real faces, or files of
    statistics (`read_statistics`), for fid and frechet[…]. metrics: names as in `open_metric`; one that cannot be opened here gets a column of
    dashes and a note. save_reference: folder in which the statistics of a reference folder are kept, METRIC.npz. Raises ValueError for folders that
    are not there or hold no pictures.
    """
    folders = {str(k): Path(v) for k, v in pred.items()} if isinstance(pred, dict) else {Path(pred).name: Path(pred)}
    opened, missing = open_metrics(metrics, protocol, files, device)
    sources = [Path(r) for r in ([reference] if isinstance(reference, (str, Path)) else reference)]
    known, notes = [], []
    for source in sources:
        if source.is_dir():
            gathered, failed = statistics_of(source, opened, progress)
            known += [g for g in gathered if g.n > 1]
            if save_reference is not None:
                Path(save_reference).mkdir(parents=True, exist_ok=True)
                for g in known:
                    g.save(Path(save_reference) / f"{g.features}.npz")
            notes += [f"reference: {g.n} pictures of {source.name} for {g.features}" for g in gathered] + [f"reference {path}: {why}" for path, why in failed]
        else:
            known.append(read_statistics(source))
            notes.append(f"reference: {source.name}, {known[-1].n or 'an unstated number of'} pictures, for {known[-1].features}")
    for m in [m for m in opened if m.kind == "set" and m.label not in {k.features for k in known}]:
        missing[m.label] = f"{m.label} needs a reference: a folder of real faces, or a file of their statistics"
    if gt is None:
        missing |= {m.label: f"{m.label} needs the truth (gt)" for m in opened if m.kind == "pair"}
    opened = [m for m in opened if m.label not in missing]
    results = measure_folders(folders, gt, opened, known, suffix, progress)
    for r in results:
        notes.append(f"{r.name}: N = {len(r.images)}" + "".join(f", {len(v)} {what}" for v, what in ((r.failed, "failed"), (r.missing, "missing"), (r.extra, "without a truth")) if v))
        notes += [f"{r.name}: {label} not measured on {n} pictures ({why})" for label, (n, why) in r.unmeasured.items()]
    small = [m.label for m in opened if m.kind == "set"]
    notes += [f"protocol: {protocol}", "± is half of the 95 % interval over resampled pictures" + (f"; {', '.join(small)} has none, and is larger for smaller N: compare at equal N only" if small else "")]
    notes += [f"– {why}" for why in missing.values()]
    return Table(results, [(m.label, m.better, m.digits) for m in opened], missing, notes, protocol)


# %%
#| export
def method(name, prior="", size=None, device="cpu", **settings):
    """(function uint8 (n, s, s, 3) -> the same, restored; what it is) of a method: "pulse" or "mganprior" on the prior `prior` with `settings` of
    `gfpgan_edu.baselines`, or weights of a GFPGAN, by name or file. Raises WeightsError, and ValueError for settings that are not there."""
    if name in ("pulse", "mganprior"):
        search = {"pulse": pulse, "mganprior": mganprior}[name]
        if odd := sorted(settings.keys() - inspect.signature(search).parameters.keys()):
            raise ValueError(f"{name} has no setting {odd[0]}; there are {', '.join(list(inspect.signature(search).parameters)[2:])}")
        net = load_prior(prior or "bundled").requires_grad_(False).to(device)
        about = dict(method=name, prior=prior or "bundled", size=net.config["size"], settings=settings)
        return lambda images: to_images(search(to_tensor(images).to(device), net, **settings).image), about
    if settings:
        raise ValueError(f"{name} is a network, it has no setting {sorted(settings)[0]}")
    net = load_weights(name).to(device)
    return lambda images: to_images(_forward(net, to_tensor(images).to(device))), dict(method=name, size=net.config.size)


@torch.inference_mode()
def _forward(net, x):
    return net(x)[0]


def apply_method(restore, about, lq, out, batch=8, progress=True):
    """Restore the aligned faces of the folder `lq` into `out`, PNG files of the same names; those already there are left. -> [(path, reason)] of the broken.

    `out`/method.json says what it was and the mean seconds a picture took, reading and writing left out.
    """
    from tqdm import tqdm

    lq, out, failed, seconds, n = Path(lq), Path(out), [], 0.0, 0
    if out.exists() and lq.exists() and out.samefile(lq):
        raise ValueError(f"{out}: the results would overwrite the inputs; choose another folder")
    paths = [p for stem, p in _by_stem(lq).items() if not (out / f"{stem}.png").exists()]
    for group in tqdm([paths[i:i + batch] for i in range(0, len(paths), batch)], unit="batch", disable=None if progress else True):
        read = {}
        for path in group:
            try:
                image = read_image(path)
                if image.shape[:2] != (about["size"], about["size"]):
                    raise ValueError(f"has {image.shape[1]}×{image.shape[0]} px, {about['method']} restores {about['size']}×{about['size']}")
                read[path] = image
            except ValueError as e:
                failed.append((path, str(e).removeprefix(f"{path}: ")))
        if read:
            start = time.perf_counter()
            restored = restore(np.stack(list(read.values())))
            seconds, n = seconds + time.perf_counter() - start, n + len(read)
            for path, image in zip(read, restored):
                write_image(out / f"{path.stem}.png", image)
    if n:
        text = json.dumps(about | dict(pictures=n, seconds_per_picture=round(seconds / n, 4), batch=batch, threads=torch.get_num_threads()), indent=1) + "\n"
        write_whole(out / "method.json", lambda f: f.write(text.encode()))
    return failed


# %%
#| export
@torch.inference_mode()
def spread(net, x, draws=16, nearby=0.0, seed=0):
    """What the prior invented: the standard deviation of the restored face over draws, in grey levels, mean over R, G, B -> (mean face (3, s, s), map (s, s)).

    x (3, s, s) in [-1, 1]. nearby = 0: the noise maps of StyleGAN2 are drawn anew; nearby > 0: noise maps fixed, x changed by Gaussian noise of so many
    grey levels, inputs that nobody could tell apart.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        faces = []
        for _ in range(draws):
            near = x + torch.randn(x.shape, generator=rng).to(x) * nearby / 127.5
            faces.append(net(near.clamp(-1, 1)[None], noise="fixed" if nearby else "random")[0][0].clamp(-1, 1))
    faces = torch.stack(faces)
    return faces.mean(0), faces.std(0).mean(0) * 127.5


# %%
#| export
# What the paper reports for Table 4 against its full model: +1 better, -1 worse. Fig. 7 has no numbers.
PAPER_ORDER = {"a": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1), "b": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=1),
               "c": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1), "d": dict(LPIPS=-1, FID=-1, NIQE=-1, Deg=-1)}
ABLATION_METRICS = ("psnr", "ssim", "lpips-vgg", "fid", "deg[bundled]")


def counterpart(label):
    "The paper's column that a label stands for: its own metric, or the nearest on other networks; None: the paper has none in Table 4."
    kind = label.partition("[")[0]
    return {"lpips-vgg": "LPIPS", "lpips-alex": "LPIPS", "perceptual": "LPIPS", "fid": "FID", "frechet": "FID", "niqe": "NIQE", "deg": "Deg"}.get(kind)


def verdict(row, full, better):
    "+1, -1: every seed of `row` is better (worse) than every seed of `full`; 0: their ranges overlap. `better` is 1 or -1."
    row, full = np.asarray(row) * better, np.asarray(full) * better
    return 1 if row.min() > full.max() else -1 if row.max() < full.min() else 0


def score_rows(folders, base, valid, reference, out, metrics=ABLATION_METRICS, files=Files(), limit=None, device="cpu", progress=True):
    """Restore one saved test set (from the folder `valid`, damage as in training) with every trained row, measure all, compare with the full row.

    folders {(row, seed): folder} as `train_rows` returns. Writes `out`/table.md, per_image.csv and ablation.json and returns what the last holds.
    """
    out = Path(out)
    if not (out / "test" / "testset.json").exists():
        build_blind(valid, out / "test", base.model.size, base.degradation, seed=1, limit=limit)
    shown = {"Input": out / "test/lq"}
    for (row, seed), folder in folders.items():
        restore, about = method(folder / "ema.safetensors", device=device)
        apply_method(restore, about | dict(method=f"{row}-s{seed}"), out / "test/lq", folder / "restored", batch=16, progress=progress)
        shown[f"{row}-s{seed}"] = folder / "restored"
    table = evaluate(shown, out / "test/gt", reference, metrics, files=files, device=device, progress=progress)
    values = {r.name: {label: c["mean"] for label, c in table.cells(r).items()} for r in table.results}
    rows = {row: {label: [values[f"{row}-s{s}"][label] for r, s in folders if r == row] for label, _, _ in table.columns if label in values["Input"]}
            for row in dict.fromkeys(r for r, _ in folders)}
    verdicts = {row: {label: verdict(v[label], rows["full"][label], better) for label, better, _ in table.columns if better and label in v} for row, v in rows.items() if row != "full"} if "full" in rows else {}
    result = dict(rows=rows, input=values["Input"], verdicts=verdicts, paper=PAPER_ORDER, table=table.to_dict())
    write_whole(out / "ablation.json", lambda f: f.write((json.dumps(result, indent=1) + "\n").encode()))
    write_whole(out / "table.md", lambda f: f.write(ablation_table(result).encode()))
    table.write_images(out / "per_image.csv")
    return result


def ablation_table(result):
    "The rows of `score_rows` as text: the mean over seeds with the range, ▲ better and ▼ worse than the full row in every seed; then the paper's arrows beside ours."
    mark, n = {1: " ▲", -1: " ▼", 0: ""}, len(next(iter(next(iter(result["rows"].values())).values())))
    columns = [c for c in result["table"]["columns"] if c[0] in result["input"]]
    cell = lambda v, digits: f"{np.mean(v):.{digits}f}" + (f" ({min(v):.{digits}f} … {max(v):.{digits}f})" if len(v) > 1 else "")
    lines = ["| | " + " | ".join(f"{label}{ {1: ' ↑', -1: ' ↓', 0: ''}[better]}" for label, better, _ in columns) + " | paper |", "|---|" + "---:|" * len(columns) + "---|"]
    lines.append("| input | " + " | ".join(f"{result['input'][label]:.{d}f}" for label, _, d in columns) + " | |")
    for row, values in result["rows"].items():
        said = " ".join(f"{k}{mark[v].strip()}" for k, v in result["paper"].get(row, {}).items())
        lines.append(f"| {ROWS[row][0]} | " + " | ".join(cell(values[label], d) + mark[result["verdicts"].get(row, {}).get(label, 0)] for label, _, d in columns) + f" | {said} |")
    chance = 2 / math.comb(2 * n, n)
    notes = [f"mean over {n} seeds, in brackets the smallest and largest; ▲ ▼: every seed is better (worse) than every seed of the full model, which among equals happens by chance in {100 * chance:.0f} % of cells",
             *result["table"]["notes"]]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def ablation_grid(out, rows, seed=0, faces=6, scale=3):
    "The counterpart of Fig. 6 or Fig. 7, uint8: the first `faces` of the test set, a line each: input, the named rows, truth."
    out = Path(out)
    stems = sorted(_by_stem(out / "test/lq"))[:faces]
    columns = [out / "test/lq", *(out / f"{row}-s{seed}" / "restored" for row in rows), out / "test/gt"]
    sheet = np.concatenate([np.concatenate([read_image(folder / f"{stem}.png") for folder in columns], 1) for stem in stems], 0)
    return cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

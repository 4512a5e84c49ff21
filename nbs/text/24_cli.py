# %% [markdown]
# # The command line {#sec-cli}
#
# > A tool that restores a thousand photos must survive the one that is not a photo.
#
# **You will build** the command `gfpgan-edu`: restore a photo or a folder, list and fetch weights, with error messages of one line, exit codes that a script can trust, and help that appears at once. **Needs** @sec-photos and @sec-weights. **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp cli

# %%
#| export
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import tyro

# %%
import io
import os
import subprocess
from contextlib import redirect_stderr
from importlib.metadata import entry_points
from unittest.mock import patch

from fastcore.test import test_fail
from tqdm import tqdm

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut, draw_map, example_faces, show
from gfpgan_edu.pictures import read_image, write_image

# %% [markdown]
# @fig-cli-map is the whole method once more. The command runs all of it, from the degraded face to the restored one, without a line of Python from the user.

# %%
#| label: fig-cli-map
#| fig-cap: "The command of this chapter drives every box but the pyramid, which is needed in training only."
#| fig-alt: "The method as boxes and arrows; all boxes but the pyramid are coloured."
draw_map("degradation", "unet", "latent", "csft", "stylegan2", "output");

# %% [markdown]
# ## What a command owes its user
#
# People call a command from scripts, on folders they have not looked through, over night. Four habits make that work.
#
# - **Results on stdout, complaints on stderr.** A script can keep one and show the other.
# - **One line per complaint**, with the file and the reason. A Python traceback tells a user nothing; a line can be searched for.
# - **One bad file does not stop the others.** It is named, and the work goes on.
# - **The exit code tells what happened**, as @tbl-cli-codes lists.
#
# | code | meaning |
# |---|---|
# | 0 | everything that was asked for is done |
# | 1 | some files failed, the others are done |
# | 2 | nothing was done: bad usage, no weights, no place to write, or every file failed |
# | 130 | interrupted with Ctrl-C (128 + the number of the signal, as shells do); finished files are kept |
#
# : Exit codes of `gfpgan-edu` {#tbl-cli-codes}

# %%
#| export
DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 130                 # exit codes
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def photos_in(path):
    "The picture files of a folder (by suffix, sorted, not its subfolders), or the one file named. Raises OSError where there is nothing."
    path.stat()
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def make_writable(folder):
    "Make the folder with its parents, and try whether a file can be made in it. Raises OSError."
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(20, "is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()                              # gone when closed


# %% [markdown]
# Whether the output can be written is tested before the weights are loaded and the first photo is restored: an hour of work that cannot be saved is worse than an error at once.
#
# A message may hold anything: file names with line breaks or with bytes that are not text, and library errors of several lines. It must become one line all the same. And a progress bar may be on the screen. It redraws itself on one line, so a plain `print` would land in its middle; `tqdm.write` clears the bar, prints, and draws it again.

# %%
#| export
def one_line(message):
    "Text that fits on one line: white space to single blanks, what cannot be printed as an escape."
    text = " ".join(part for part in str(message).splitlines() if part.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def complain(message):
    "One line on stderr, over a progress bar if there is one."
    from tqdm import tqdm

    tqdm.write(f"gfpgan-edu: {one_line(message)}", file=sys.stderr)


# %%
assert one_line("first\nsecond\r\n\nthird") == "first second third"
assert one_line("two  blanks.jpg") == "two  blanks.jpg"                     # a file name must stay what it is
assert one_line("a\x1b[31mred\tb") == "a\\x1b[31mred\\tb"                   # no control codes reach the terminal
assert one_line(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"            # a name that is not UTF-8


class Terminal(io.StringIO):
    "A stream that claims to be a screen."

    def isatty(self):
        return True


def on_screen(stream):
    "What stays to be read: on every line the text after the last carriage return, escapes taken out, blank lines dropped."
    lines = (line.replace("\x1b[A", "").split("\r")[-1].strip() for line in stream.getvalue().split("\n"))
    return [line for line in lines if line]


def loop(say):
    with redirect_stderr(Terminal()) as screen:
        for i in tqdm(range(4), disable=None, mininterval=0, ascii=True, ncols=60):
            if i % 2:
                say(f"file {i} is broken")
    return on_screen(screen)


assert loop(complain)[:2] == ["gfpgan-edu: file 1 is broken", "gfpgan-edu: file 3 is broken"]
garbled = loop(lambda m: print(m, file=sys.stderr))
assert not any(line.startswith("file") for line in garbled)                 # a plain print ends up behind the bar
with redirect_stderr(io.StringIO()) as quiet:
    list(tqdm(range(4), disable=None))
assert quiet.getvalue() == ""                                               # no bar where nobody watches


# %% [markdown]
# ## A command is a dataclass
#
# The options of a command are typed fields with a default and a sentence each: what a dataclass is. `tyro` reads the class and makes the parser, the help and the error messages from it, so there is one place where an option lives. The work is a method `run` that returns the exit code.
#
# Nothing heavy is imported at the top. PyTorch takes seconds to load, and a user who asks for help, or has mistyped an option, should not wait for it. So each `run` imports what it needs.

# %%
#| export
@dataclass
class Restore:
    """Restore the faces in a photo or in all photos of a folder.

    Example: gfpgan-edu restore holiday.jpg --out restored
    """

    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO_OR_FOLDER")]
    "A picture file, or a folder of them."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder for the results, made if missing; names stay the same, originals are never touched, older results are replaced."
    weights: Annotated[str, tyro.conf.arg(metavar="NAME_OR_FILE")] = "bundled"
    "bundled, v1, v1.2, v1.3, v1.4 (downloaded once), or a .safetensors or .pth file."

    def run(self):
        try:
            paths = photos_in(self.photo)
        except OSError as e:
            complain(f"{self.photo}: {(e.strerror or str(e)).lower()}")
            return NOTHING_DONE
        if not paths:
            complain(f"{self.photo}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
            return NOTHING_DONE
        try:
            make_writable(self.out)
            if self.out.samefile(paths[0].parent):
                raise OSError(17, "the results would overwrite the originals; choose another folder")
        except OSError as e:
            complain(f"{self.out}: cannot be used for the results ({(e.strerror or str(e)).lower()})")
            return NOTHING_DONE
        done = restore_all(paths, self.out, self.weights)
        if done is None:
            return NOTHING_DONE
        print(one_line(f"{done} of {len(paths)} restored into {self.out}"))
        return DONE if done == len(paths) else SOME_FAILED if done else NOTHING_DONE


# %% [markdown]
# `restore_all` loads the network once and keeps going whatever a photo does. It knows the errors that are expected. For the rest (out of memory, a bug) it names the kind of error too, so that a report of it is of use.

# %%
#| export
def restore_all(paths, out, weights):
    "Restore each photo into the folder `out`, complaining about those that fail -> how many are done; None where the weights fail."
    from tqdm import tqdm

    from gfpgan_edu.inference import fuse
    from gfpgan_edu.photos import restore
    from gfpgan_edu.pictures import PhotoError, write_image
    from gfpgan_edu.weights import WeightsError, load_weights

    try:
        net = fuse(load_weights(weights, progress=sys.stderr.isatty()))
    except WeightsError as e:
        complain(e)
        return None
    done = 0
    for path in tqdm(paths, unit="photo", disable=len(paths) < 2 or None):  # None: a bar on a terminal only
        try:
            target = out / path.name
            if target.exists() and target.samefile(path):
                raise PhotoError(f"{path}: the result would overwrite the original")
            write_image(target, restore(path, net).image)
            done += 1
        except PhotoError as e:
            complain(e)
        except Exception as e:                                              # unforeseen; the other photos are done all the same
            complain(f"{path}: {type(e).__name__}: {e}")
    return done


# %%
#| export
@dataclass
class Weights:
    """List, download or look into weights.

    Example: gfpgan-edu weights fetch v1.4
    """

    action: Annotated[Literal["list", "fetch", "info"], tyro.conf.Positional]
    "list the known names, fetch one into the cache, or show what a .safetensors file holds."
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_FILE")] = ""
    "A name (fetch) or a file (info); without one, info shows the bundled weights."

    def run(self):
        from gfpgan_edu import weights as w

        try:
            if self.action == "list":
                print(f"bundled   inside the package, {w.BUNDLED}")
                for r in w.RELEASES.values():
                    print(f"{r.name:9} {r.family:6} {r.note}; {r.url}; SHA-256 {r.sha256 or 'not published'}")
                print(f"licence of the official files: {w.LICENCE}")
            elif self.action == "fetch":
                if self.what not in w.RELEASES:
                    raise w.WeightsError(f"{self.what or 'no name given'}: known are {', '.join(w.RELEASES)}")
                print(w.download(self.what, progress=sys.stderr.isatty()))
            else:
                for k, v in w.read_header(w.bundled_path() if self.what in ("", "bundled") else self.what).items():
                    print(f"{k}: {v}")
        except w.WeightsError as e:
            complain(e)
            return NOTHING_DONE
        return DONE


# %% [markdown]
# `export` writes weights as an ONNX file (@sec-speed), for programs without PyTorch. A file that is there already stays as it is unless `--force` is given: unlike the results of `restore`, it need not be ours.

# %%
#| export
@dataclass
class Export:
    """Write weights as an ONNX file, for programs without PyTorch: "face" (b, 3, size, size) in [-1, 1] -> "restored", of aligned faces.

    Example: gfpgan-edu export v1.4 gfpgan.onnx
    """

    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_FILE")]
    "bundled, v1, v1.2, v1.3, v1.4 (downloaded once), or a .safetensors or .pth file."
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.onnx")]
    "The file to write; its folder is made if missing."
    force: bool = False
    "Replace the file if it is there."

    def run(self):
        try:
            if self.out.suffix.lower() != ".onnx":
                raise ValueError(f"{self.out}: the name of an ONNX file ends in .onnx")
            if self.out.is_dir() or self.out.exists() and not self.force:
                raise ValueError(f"{self.out}: is a folder" if self.out.is_dir() else f"{self.out}: exists; --force replaces it")
            make_writable(self.out.parent)
        except ValueError as e:
            complain(e)
            return NOTHING_DONE
        except OSError as e:
            complain(f"{self.out}: cannot be written ({(e.strerror or str(e)).lower()})")
            return NOTHING_DONE
        from gfpgan_edu.inference import export_onnx
        from gfpgan_edu.weights import LICENCE, RELEASES, load_weights

        try:
            net = load_weights(self.weights, progress=sys.stderr.isatty())
            export_onnx(net, self.out, weights=Path(self.weights).name, **(dict(licence=LICENCE) if self.weights in RELEASES else {}))
        except (ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        print(one_line(f"{self.out}: {self.out.stat().st_size / 1e6:.1f} MB, faces of {net.config.size} px"))
        return DONE


# %% [markdown]
# ## Commands for training
#
# `prepare` cuts aligned faces out of a folder of photos (@sec-faces) and `train` trains on such a folder (@sec-train-restorer, @sec-train-prior). A training run is described by one config: that of a preset, of a file, or of
# the folder where the run began, so that the command of a stopped run only has to be said again. Several GPUs need nothing but a launcher in front of the same words. Before a long run, the same words with `--dry-run` tell what it will need (@sec-full-scale).

# %%
#| export
@dataclass
class Prepare:
    """Cut the faces out of a folder of photos, aligned, for training.

    Example: gfpgan-edu prepare photos --out faces --size 512
    """

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    "Folder of pictures; its subfolders are searched too."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder for the faces and manifest.jsonl (where eyes and mouth are). A run that was broken off goes on where it was."
    size: int = 512
    "Side of the aligned faces in px."
    aligned: bool = False
    "The pictures are aligned as FFHQ already: only resize them and find eyes and mouth."
    largest: bool = False
    "Only the largest face of each picture."
    min_face: Annotated[Optional[int], tyro.conf.arg(metavar="PX")] = None
    "Leave out faces narrower than this in the photo; default: a quarter of --size."

    def run(self):
        from gfpgan_edu.faces import prepare

        try:
            done = prepare(self.photos, self.out, self.size, aligned=self.aligned, largest=self.largest, min_face=self.min_face)
        except (ValueError, OSError) as e:
            complain(e)
            return NOTHING_DONE
        for path, reason in done.unreadable:
            complain(f"{path}: {reason}")
        for path in done.no_face:
            complain(f"{path}: no face that is large enough")
        print(one_line(f"{done.written} faces written into {self.out}, {done.skipped} pictures done before, {len(done.no_face)} without a face, {len(done.unreadable)} unreadable"))
        return SOME_FAILED if done.unreadable else DONE if done.written or done.skipped else NOTHING_DONE


# %%
#| export
@dataclass
class Train:
    """Train GFP-GAN, or the StyleGAN2 prior it restores with; said again with the same --out, the run goes on.

    Example: gfpgan-edu train --preset tiny --data faces --out runs/tiny --minutes 3

    Several GPUs: torchrun --no-python --nproc-per-node 4 gfpgan-edu train --preset paper --data faces --out runs/paper --prior prior.pth

    Several machines: the same on each, with torchrun's --nnodes 2 --node-rank 0 (1, …) --rdzv-backend c10d --rdzv-endpoint HOST:29500,
    and --out on a disk that all of them see (only the first process writes).
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces; `gfpgan-edu prepare` makes one."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of the run: config.yaml, checkpoints, metrics.jsonl, tensorboard/, validation sheets, at the end ema.safetensors."
    what: Annotated[Literal["restorer", "prior"], tyro.conf.Positional] = "restorer"
    "What to train."
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    "restorer: paper, official, faces128, faces64, faces32, tiny. prior: paper, faces128, faces64, faces32, tiny."
    config: Annotated[Optional[Path], tyro.conf.arg(metavar="YAML")] = None
    "A config file in the place of a preset, such as the config.yaml of another run."
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    "Changes to it, such as run.batch=4 loss.pixel=1 model.size=256 run.precision=bf16; unknown keys are errors."
    valid: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Folder of faces for validation; without one, some of --data are held out."
    prior: Annotated[str, tyro.conf.arg(metavar="WHICH")] = ""
    "Restorer: the prior to build on: bundled, an official .pth or a .safetensors, or random. The same as --set prior=…"
    init_from: Annotated[str, tyro.conf.arg(metavar="NAME_OR_FILE")] = ""
    "Fine-tune: begin with these weights (of the same kind; names as in `gfpgan-edu weights list`); the model's config is theirs."
    minutes: Annotated[Optional[float], tyro.conf.arg(metavar="M")] = None
    "Stop after this time with a checkpoint; saying the command again goes on."
    on_nonfinite: Optional[Literal["stop", "rollback"]] = None
    "When a loss or gradient is not finite: stop, or return to the last checkpoint with half the learning rate, at most three times."
    compile: bool = False
    "torch.compile what needs no second derivative."
    device: Literal["auto", "cpu"] = "auto"
    "auto takes a GPU where there is one."
    dry_run: bool = False
    "Print the config, run ten iterations on the data in a temporary folder, print memory, speed, waiting for data and the time the run would take, and stop. --out is not touched."
    show_config: bool = False
    "Only print the config."

    def resolve(self):
        "The config of the run and the weights to begin with (or None). Raises ValueError or OSError."
        import yaml

        from gfpgan_edu import train_prior, train_restorer
        from gfpgan_edu.engine import config_from, override

        cls = train_restorer.RestorerConfig if self.what == "restorer" else train_prior.PriorConfig
        presets = train_restorer.PRESETS if self.what == "restorer" else train_prior.PRESETS
        file = self.config or (self.out / "config.yaml" if (self.out / "config.yaml").exists() and not self.preset else None)
        if file is not None:
            try:
                config = config_from(cls, yaml.safe_load(file.read_text(encoding="utf-8")))
            except (yaml.YAMLError, UnicodeDecodeError) as e:
                raise ValueError(f"{file}: not YAML ({str(e).splitlines()[0]})") from e
        elif self.preset in presets:
            config = presets[self.preset]()
        else:
            raise ValueError(f"--preset {self.preset or 'is missing'}: there are {', '.join(presets)} for the {self.what}")
        net, changes = None, list(self.set)
        if self.init_from:
            from gfpgan_edu.weights import load_prior, load_weights

            net = load_weights(self.init_from) if self.what == "restorer" else load_prior(self.init_from)
            theirs = net.config if self.what == "prior" else net.config.to_dict()
            changes = [f"{'model.' * (self.what == 'restorer')}{k}={v}" for k, v in theirs.items() if k != "equalized" or self.what == "restorer"] + changes
        changes += [f"prior={self.prior}"] * bool(self.prior) + [f"run.on_nonfinite={self.on_nonfinite}"] * bool(self.on_nonfinite) + ["run.compile=true"] * self.compile
        return override(config, changes), net

    def run(self):
        try:
            config, net = self.resolve()
            if self.show_config or self.dry_run:
                return self.rehearse(config, net)
            trainer = self.trainer(config, net, self.out)
        except (ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        try:
            ended = trainer.fit(self.minutes)
        except (ValueError, OSError, RuntimeError) as e:
            complain(str(e).strip().splitlines()[-1])                       # an error from a loading process brings its whole story
            return SOME_FAILED if trainer.it else NOTHING_DONE
        if trainer.main:
            print(one_line(f"{ended} at iteration {trainer.it} of {config.run.iterations}; weights in {self.out / 'ema.safetensors'}"))
        trainer.state.destroy_process_group()
        return INTERRUPTED if ended == "interrupted" else DONE

    def rehearse(self, config, net):
        "The config, and with --dry-run what ten iterations tell, as comments, so that the whole is still a config file."
        import yaml

        from gfpgan_edu.engine import checkpoints, plain
        from gfpgan_edu.full_scale import rehearse

        text = yaml.safe_dump(plain(config), sort_keys=False)
        if self.show_config:
            print(text, end="")
            return DONE
        with tempfile.TemporaryDirectory(prefix="gfpgan-edu-") as folder:
            trainer = self.trainer(config, net, Path(folder))
            try:
                told = rehearse(trainer)
            except (ValueError, OSError, RuntimeError) as e:
                raise RuntimeError(str(e).strip().splitlines()[-1]) from e      # an error from a loading process brings its whole story
        if trainer.main:
            begun = checkpoints(self.out)
            print(text + "".join(f"# {line}\n" for line in told.lines(int(begun[-1].stem[6:]) if begun else 0)), end="")
        trainer.state.destroy_process_group()
        return DONE

    def trainer(self, config, net, out):
        from gfpgan_edu.train_prior import PriorTrainer
        from gfpgan_edu.train_restorer import RestorerTrainer

        device = None if self.device == "auto" else self.device
        if self.what == "prior":
            return PriorTrainer(config, self.data, out, device=device, init_from=net)
        return RestorerTrainer(config, self.data, out, valid=self.valid, device=device, init_from=net)


# %% [markdown]
# ## Commands for measuring
#
# Four commands make the tables of @sec-evaluation. `testset` builds a set with a saved draw for every picture, `baseline` restores it by a search or a network, `evaluate` puts any folders of results into one table, and `ablate` trains, restores and scores the rows of Table 4 and Fig. 7. What a metric lacks is said on stderr in one line, and its column holds dashes.

# %%
#| export
@dataclass
class Testset:
    """Build a test set: lq/ to be restored, gt/ the truth, every draw of the damage saved.

    Example: gfpgan-edu testset blind faces --out celeba-test
    """

    kind: Annotated[Literal["blind", "sr", "colour", "real"], tyro.conf.Positional]
    "blind: damage as in training; sr: reduced bicubically; colour: each face grey and yellowed; real: photos without a truth."
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    "Folder of clean aligned faces (real: of photos)."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "New folder for the set."
    size: int = 512
    "Side of the faces in px."
    ranges: Literal["paper", "official", "severe", "extreme"] = "paper"
    "blind, colour: what the damage is drawn from."
    seed: int = 0
    draws: int = 1
    "blind: damaged versions of each face."
    factor: int = 4
    "sr: how many times smaller."
    name: str = ""
    "real: LFW-Test, CelebChild-Test, WebPhoto-Test or any other; known ones are checked against the paper's number of pictures."
    align: bool = False
    "real: the photos are not aligned; cut every face out."
    limit: Annotated[Optional[int], tyro.conf.arg(metavar="N")] = None
    "Only the first N pictures."

    def run(self):
        from gfpgan_edu import evaluation as e

        try:
            if self.kind == "blind":
                made = e.build_blind(self.source, self.out, self.size, self.ranges, self.seed, self.draws, self.limit)
            elif self.kind == "sr":
                made = e.build_sr(self.source, self.out, self.size, self.factor, self.limit)
            elif self.kind == "colour":
                made = e.build_colour(self.source, self.out, self.size, self.ranges, self.seed, self.limit)
            else:
                made = e.wrap_real(self.source, self.out, self.name or self.source.name, self.size, self.align, self.limit)
        except (ValueError, OSError, RuntimeError) as error:
            complain(error)
            return NOTHING_DONE
        for path, reason in made.failed:
            complain(f"{path}: {reason}")
        print(one_line(f"{made.n} pictures in {made.folder}, {len(made.failed)} left out{f'; {made.note}' * bool(made.note)}"))
        return NOTHING_DONE if not made.n else SOME_FAILED if made.failed else DONE


# %%
#| export
@dataclass
class Baseline:
    """Restore a folder of aligned faces by PULSE, mGANprior or a network, for the tables. For photos take `restore`.

    Example: gfpgan-edu baseline pulse --lq celeba-test/lq --out results/pulse --prior bundled
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    "pulse, mganprior, or weights: a name as in `gfpgan-edu weights list`, or a file."
    lq: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces of the method's size."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder for the results; those already there are left, so a run that was broken off goes on. method.json says what it cost."
    prior: Annotated[str, tyro.conf.arg(metavar="WHICH")] = ""
    "The StyleGAN2 that is searched: bundled (64 px), prior32, an official .pth or a .safetensors."
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    "Settings of the search, such as factor=4 steps=100 n=8 block=2."
    batch: int = 8
    device: Literal["auto", "cpu"] = "auto"

    def run(self):
        import yaml

        from gfpgan_edu.evaluation import apply_method, method

        try:
            settings = {k: yaml.safe_load(v) for k, _, v in (s.partition("=") for s in self.set)}
            if "device" in settings:
                raise ValueError(f"{self.method} has no setting device; there is --device")
            restore, about = method(self.method, self.prior, device=_device(self.device), **settings)
            failed = apply_method(restore, about, self.lq, self.out, self.batch, sys.stderr.isatty())
        except (ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        for path, reason in failed:
            complain(f"{path}: {reason}")
        done = len(list(self.out.glob("*.png")))
        print(one_line(f"{done} restored faces in {self.out}, {len(failed)} failed"))
        return NOTHING_DONE if not done else SOME_FAILED if failed else DONE


def _device(wanted):
    import torch

    return "cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu"


# %%
#| export
@dataclass
class Evaluate:
    """Measure folders of restored faces, whatever made them, and print one table.

    Example: gfpgan-edu evaluate --pred Input=celeba-test/lq results/pulse --gt celeba-test/gt --out table.md table.json
    """

    pred: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]DIR")]
    "Folders of results, one line of the table each."
    gt: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Folder of truths with the same names (endings may differ)."
    reference: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR_OR_FILE")] = ()
    "For fid and frechet: a folder of real faces, or files of statistics (.npz, .pth)."
    reference_size: Annotated[Optional[int], tyro.conf.arg(metavar="PX")] = None
    "Bring the pictures of a reference folder to this size first, where the results are smaller."
    out: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="TABLE")] = ()
    "Files for the table: .json, .csv, .md."
    per_image: Annotated[Optional[Path], tyro.conf.arg(metavar="CSV")] = None
    "File for every number of every picture."
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ("psnr", "ssim", "lpips-vgg", "fid", "niqe", "deg")
    "Also lpips-alex chroma colourfulness deg:bundled deg:dlib perceptual:efficientnet-lite1 frechet:efficientnet-lite1."
    protocol: Literal["plain", "vqfr"] = "plain"
    "vqfr: channel means and deviations matched before PSNR and SSIM, pairs below 1 degree left out of deg."
    channel: Literal["rgb", "y"] = "rgb"
    "PSNR and SSIM on colours or on brightness."
    suffix: str = ""
    "Ending of the result names that the truths do not have, such as _00."
    niqe: str = ""
    "File of NIQE's pristine parameters: niqe_pris_params.npz, modelparameters.mat, or one of fit_niqe."
    arcface: str = ""
    "The official arcface_resnet18.pth, for deg."
    inception: str = ""
    "torch-fidelity's Inception weights, where they cannot be downloaded."
    save_reference: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Keep the statistics of a reference folder here, one .npz a metric."
    device: Literal["auto", "cpu"] = "auto"

    def run(self):
        from dataclasses import replace

        from gfpgan_edu.evaluation import evaluate
        from gfpgan_edu.metrics import Files, Protocol

        try:
            folders = dict((name, path) if eq else (Path(p).name or p, p) for p in self.pred for name, eq, path in [p.partition("=")])
            if len(folders) < len(self.pred):
                raise ValueError("two folders of --pred have the same name; write NAME=DIR")
            if odd := [p for p in self.out if p.suffix.lower() not in (".json", ".csv", ".md")]:
                raise ValueError(f"{odd[0]}: a table is written as .json, .csv or .md")
            protocol = replace(Protocol.vqfr() if self.protocol == "vqfr" else Protocol(), channel=self.channel)
            table = evaluate(folders, self.gt, self.reference, self.metrics, protocol, Files(self.niqe, self.arcface, self.inception), self.suffix, _device(self.device), sys.stderr.isatty(), self.save_reference, self.reference_size)
            for path in self.out:
                table.write(path)
            if self.per_image:
                table.write_images(self.per_image)
        except (ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        return self.report(table)

    def report(self, table):
        print(table.markdown(), end="")
        for why in table.missing.values():
            complain(why)
        for r in table.results:
            for path, reason in r.failed:
                complain(f"{path}: {reason}")
            for stems, what in ((r.missing, "no result"), (r.extra, "no truth")):
                for stem in stems[:10]:
                    complain(f"{r.name}: {what} for {stem}")
                if len(stems) > 10:
                    complain(f"{r.name}: {what} for {len(stems) - 10} more")
        if not any(r.images for r in table.results):
            return NOTHING_DONE
        return SOME_FAILED if any(r.failed or r.missing or r.extra for r in table.results) else DONE


# %%
#| export
@dataclass
class Ablate:
    """Train, restore and score the rows of Table 4 and Fig. 7 with equal budgets; said again with the same --out, it goes on.

    Example: gfpgan-edu ablate --data faces --valid other-faces --out runs/ablation --minutes-each 5 --seeds 2
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces to train on; it is also the reference of fid and frechet."
    valid: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of other aligned faces to measure on."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of the runs, with table.md, ablation.json, per_image.csv, fig6.png and fig7.png at the end."
    preset: Literal["faces32", "tiny", "faces128", "paper", "official"] = "faces32"
    "Config of the full model; the rows change it."
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    "Changes to it."
    minutes_each: Annotated[float, tyro.conf.arg(metavar="M")] = 10.0
    "Measured once for the full model: all rows get as many iterations as it makes in this time."
    iterations: Annotated[Optional[int], tyro.conf.arg(metavar="N")] = None
    "In the place of --minutes-each."
    minutes: Annotated[Optional[float], tyro.conf.arg(metavar="M")] = None
    "Stop the whole command after this time with a checkpoint; saying it again goes on."
    seeds: int = 2
    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW")] = ()
    "Some of full a b c d no-parts D D+fm l1; default: all."
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ("psnr", "ssim", "lpips-vgg", "fid", "deg:bundled")
    "As in `evaluate`."
    limit: Annotated[Optional[int], tyro.conf.arg(metavar="N")] = None
    "Measure on the first N of --valid only."
    device: Literal["auto", "cpu"] = "auto"

    def run(self):
        from gfpgan_edu import evaluation as e
        from gfpgan_edu.engine import override
        from gfpgan_edu.pictures import write_image
        from gfpgan_edu.train_restorer import PRESETS

        try:
            base, rows = override(PRESETS[self.preset](), list(self.set)), self.rows or tuple(e.ROWS)
            if odd := [r for r in rows if r not in e.ROWS]:
                raise ValueError(f"there is no row {odd[0]}: there are {', '.join(e.ROWS)}")
            device = None if self.device == "auto" else self.device
            folders = e.train_rows(base, self.data, self.out, rows, self.seeds, self.minutes_each, self.iterations, self.valid, device, lambda s: print(one_line(s), flush=True), self.minutes)
            if len(folders) < len(rows) * self.seeds:
                print(f"stopped: {len(folders)} of {len(rows) * self.seeds} runs are finished; the same command goes on")
                return DONE
            result = e.score_rows(folders, base, self.valid, self.data, self.out, self.metrics, limit=self.limit, device=_device(self.device), progress=sys.stderr.isatty())
            for name, wanted in (("fig6", ("a", "b", "c", "d", "full")), ("fig7", ("no-parts", "D", "D+fm", "full"))):
                write_image(self.out / f"{name}.png", e.ablation_grid(self.out, [r for r in wanted if r in rows]))
        except (ValueError, OSError, RuntimeError) as error:
            complain(error)
            return NOTHING_DONE
        print(e.ablation_table(result), end="")
        return DONE


# %%
#| export
Command = Union[tuple(Annotated[c, tyro.conf.subcommand(c.__name__.lower())] for c in (Restore, Weights, Export, Prepare, Train, Testset, Baseline, Evaluate, Ablate))]


def main(args=None):
    "Entry point of the command `gfpgan-edu`; exits with 0 all done, 1 some files failed, 2 nothing done or bad usage, 130 interrupted."
    command = tyro.cli(Command, prog="gfpgan-edu", description="GFP-GAN: restore faces in photos, and train what restores them.", args=args)
    try:
        code = command.run()
    except KeyboardInterrupt:
        complain("interrupted; the photos finished so far are kept")
        code = INTERRUPTED
    sys.exit(code)


# %% [markdown]
# Parsing alone can be checked without running anything: arguments in, dataclass out. Wrong usage must end with 2, help with 0, and Ctrl-C with 130.

# %%
def exit_code(*args):
    with redirect_stderr(io.StringIO()), patch("sys.stdout", io.StringIO()):
        try:
            main(list(args))
        except SystemExit as e:
            return e.code


parsed = tyro.cli(Command, args=["restore", "a.jpg", "--out", "b", "--weights", "v1.4"])
assert parsed == Restore(Path("a.jpg"), Path("b"), "v1.4")
assert tyro.cli(Command, args=["weights", "fetch", "v1"]) == Weights("fetch", "v1")
for wrong in ([], ["restore"], ["restore", "a.jpg"], ["restore", "a.jpg", "--out", "b", "--wieghts", "v1"], ["weights", "eat"], ["fly"]):
    assert exit_code(*wrong) == NOTHING_DONE, wrong
assert exit_code("--help") == exit_code("restore", "--help") == DONE
with patch.object(Weights, "run", side_effect=KeyboardInterrupt):
    assert exit_code("weights", "list") == INTERRUPTED
command, = entry_points(group="console_scripts", name="gfpgan-edu")
assert command.value == "gfpgan_edu.cli:main"                               # what `pip install` puts on the path

# %% [markdown]
# ## Help at once
#
# From here on the command runs as a user runs it: in a process of its own, in a temporary folder, with both streams and the exit code caught. That is the only way to test what a process does at its end; a function called inside the notebook shares the notebook's modules and streams. First the help, and the proof that it costs no PyTorch: after printing it, the process looks at which modules it has loaded.

# %%
folder = tempfile.TemporaryDirectory()
ENV = {**os.environ, "COLUMNS": "90", "NO_COLOR": "1", "OMP_NUM_THREADS": "2"}


def run(line, code="from gfpgan_edu.cli import main; main()"):
    "Run `gfpgan-edu` with the words of `line` in the folder, and show all that comes of it."
    r = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=folder.name, env=ENV, capture_output=True, text=True)
    print(f"$ gfpgan-edu {line}\n{r.stdout}", end="")
    print("".join(f"[stderr] {e}\n" for e in r.stderr.splitlines()) + f"[exit code {r.returncode}]\n")
    return r


run("restore --help")
r = subprocess.run([sys.executable, "-c", """
import sys, gfpgan_edu.cli
try:
    gfpgan_edu.cli.main(["restore", "--help"])
except SystemExit:
    pass
print("LOADED", *sorted({m.split(".")[0] for m in sys.modules}))
"""], env=ENV, capture_output=True, text=True)
loaded = r.stdout.split("LOADED")[1].split()
assert "tyro" in loaded and not {"torch", "torchvision", "numpy", "cv2", "PIL", "facenet_pytorch", "matplotlib"} & set(loaded)

# %% [markdown]
# ## Two commands, one table
#
# The measuring commands, tried the same way: a set of four crops of the portrait, then a table of its inputs and of the truths themselves. The truth beside itself is the check that any table command should pass: infinite PSNR, similarity 1. NIQE's parameters are not here, so its column holds dashes and one line says why.

# %%
for i, face in enumerate(example_faces(4)):
    write_image(Path(folder.name, f"faces/{i}.png"), face)
assert run("testset blind faces --out set --size 128 --ranges severe").returncode == DONE
table = "evaluate --pred Input=set/lq Truth=set/gt --gt set/gt --metrics psnr ssim niqe --out table.json"
r = run(table)
assert r.returncode == DONE and "| Truth | ∞ | 1.0000 ± 0.0000 | – |" in r.stdout and r.stderr.count("\n") == 1

# %% [markdown]
# Then one result is deleted and another is broken. The rest is measured, and the exit code tells.

# %%
Path(folder.name, "set/lq/0.png").unlink()
Path(folder.name, "set/lq/1.png").write_bytes(b"")
r = run(table)
assert r.returncode == SOME_FAILED and "Input: N = 2, 1 failed, 1 missing" in r.stdout and "set/lq/1.png: is empty" in r.stderr and "Input: no result for 0" in r.stderr

# %% [markdown]
# ## Put together: a folder in which everything goes wrong
#
# Now the test that matters. The folder `holiday` holds one good photo, damaged as old photos are, and four traps: a letter that somebody named `.jpg`, half of a download, an empty file, and a photo without a face.

# %%
holiday = Path(folder.name, "holiday")
damaged = degrade(astronaut(), DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1))
write_image(holiday / "astronaut.png", damaged)
write_image(holiday / "half.jpg", damaged)
(holiday / "half.jpg").write_bytes((holiday / "half.jpg").read_bytes()[:20_000])
(holiday / "letter.jpg").write_text("Dear Eileen, thank you for the photos.")
(holiday / "empty.png").touch()
write_image(holiday / "suit.jpg", astronaut()[320:])
before = {p.name: p.read_bytes() for p in holiday.iterdir()}

# %%
r = run("restore holiday --out restored")
assert r.returncode == SOME_FAILED and r.stdout == "1 of 5 restored into restored\n"
lines = r.stderr.splitlines()
assert len(lines) == 4 and all(line.startswith("gfpgan-edu: holiday") for line in lines)
for name, reason in {"empty.png": "is empty", "half.jpg": "truncated", "letter.jpg": "not a picture", "suit.jpg": "no face found"}.items():
    assert sum(name in line and reason in line for line in lines) == 1, name
assert {p.name: p.read_bytes() for p in holiday.iterdir()} == before        # the originals, byte for byte
assert [p.name for p in Path(folder.name, "restored").iterdir()] == ["astronaut.png"]

# %%
#| label: fig-cli-result
#| fig-cap: "The one good photo of the folder, before and after the command (a part of it)."
#| fig-alt: "Two portraits, noisy, the right one with a cleaned face."
part = lambda p: read_image(p)[10:200:2, 125:325:2]
show([part(holiday / "astronaut.png"), part(Path(folder.name, "restored", "astronaut.png"))], ["holiday/astronaut.png", "restored/astronaut.png"], height=2);

# %% [markdown]
# Every trap has its line, the good photo of @fig-cli-result is done, and the exit code is 1. Three promises of @sec-photos are kept along the way. The originals are the same byte for byte. The result has its original's name and format, so a folder can be compared with its results file by file.
# And there is no half file, neither from the traps nor from the good photo: a result appears under its name when it is complete. If the power fails in the middle of a folder, what lies in `restored` can be trusted, and the command can be run again.
#
# The same care for a whole command that cannot work: a path that is not there, an output that is a file, an output that is the folder of the originals, weights nobody knows. Each ends with one line and a 2, and all but the last before PyTorch is loaded.

# %%
bad = ["restore nowhere.jpg --out restored", "restore holiday --out holiday/letter.jpg", "restore holiday --out holiday", "restore holiday --out restored --weights v9"]
for line in bad:
    r = run(line)
    assert r.returncode == NOTHING_DONE and r.stdout == "" and len(r.stderr.splitlines()) == 1
assert {p.name: p.read_bytes() for p in holiday.iterdir()} == before

# %% [markdown]
# The other command looks after weights. `list` names the sources, hashes and terms; `fetch` downloads one into the cache and checks its SHA-256 (@sec-weights); `info` prints what a file says about itself.

# %%
r = run("weights list")
assert r.returncode == DONE and all(name in r.stdout for name in ("bundled", "v1.2", "v1.3", "v1.4", "non-commercial"))
r = run("weights fetch v9")
assert r.returncode == NOTHING_DONE and "known are" in r.stderr
folder.cleanup()

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | how it is called | – | a script in the repository | an installed command with sub-commands | works from any folder |
# | input | – | a file, or every file of a folder | a file, or the pictures of a folder by suffix | a folder may hold other files |
# | a file that is not a picture | – | Python error, the rest is not done | one line, the rest is done, exit code 1 | batch runs over night |
# | results | – | four folders: cut-outs, restored cut-outs, comparisons, photos | the photos, under their own names | the rest is in `RestoreResult` |
# | original and result | – | may be the same folder | refused | originals are never touched |
# | weights | – | downloaded into the working directory's tree | into the user's cache, SHA-256 checked | found again from any folder |
#
# : Deviations in the command line {#tbl-cli-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **Nothing written, exit code 2, "no face found".** That is on purpose: a copy of the input would look like a success.
# - **"gfpgan-edu: command not found".** The environment in which the package was installed is not active.
# - **Subfolders are not searched.** Call the command once for each, with its own `--out`, as equal names would overwrite one another.
# - **Results of a run before are replaced** without a question, so that a run can be repeated.
# - **TIFF files.** The library that reads them prints warnings of its own to stderr, which no Python code can hold back.
# :::
#
# ## Summary
#
# - Exit codes are an interface: 0, 1, 2 and 130 tell a script all it needs.
# - One line for each failure, on stderr, with file and reason; what cannot be printed is escaped.
# - What can be known early (missing input, unusable output) is tested before anything slow.
# - A command is a dataclass with a `run` method, and parser and help follow from it. Help needs no PyTorch.
# - A folder of traps, run as a user would, is the test that counts.
#
# ## Exercises
#
# 1. **Compute.** A folder of 800 photos holds 3 that are damaged. What does `gfpgan-edu restore … && next-step` do? Write the shell line that goes on for the codes 0 and 1 only.
# 2. **Modify.** Add an option `--skip-existing` that leaves results alone that are there already. Which exit code should a run have in which every file was skipped?
# 3. **Break.** Import `gfpgan_edu.photos` and then `torch` at the top of the module. Which check turns red for which of the two? How much longer does `gfpgan-edu --help` take?
#
# ## References
#
# The method that the command runs is GFP-GAN [@wang2021gfpgan].

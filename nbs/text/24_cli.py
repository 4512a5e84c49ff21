# %% [markdown]
# # The command line {#sec-cli}
#
# > A tool that restores a thousand photos must survive the one that is not a photo.
#
# **You will build** the command `gfpgan-edu`: restore or damage photos and folders of them, look after weights, train, measure, and find out what is wrong with an installation, with error messages of one line, exit codes that a script can trust, and help that appears at once. **Needs** @sec-photos, @sec-pictures and @sec-weights. **Runs in** about 15 s on a laptop CPU.

# %%
#| default_exp cli

# %%
#| export
import errno
import io
import json
import os
import re
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import tyro
from fastcore.basics import patch

# %%
import shutil
import subprocess
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import entry_points
from unittest import mock

import torch
from fastcore.test import test_fail
from IPython.display import Markdown
from PIL import Image
from tqdm import tqdm

from gfpgan_edu import bundled, photos, weights
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
# People call a command from scripts, on folders they have not looked through, over night. Five habits make that work.
#
# - **Results on stdout, complaints on stderr.** A script can keep one and show the other.
# - **One line per complaint**, with the file and the reason. A Python traceback tells a user nothing; a line can be searched for.
# - **One bad file does not stop the others.** It is named, and the work goes on.
# - **Nothing is lost.** Originals are never touched, results are replaced only with `--force`, and a run that was broken off goes on where it was.
# - **The exit code tells what happened**, as @tbl-cli-codes lists.
#
# | code | meaning |
# |---|---|
# | 0 | everything that was asked for is done, now or before |
# | 1 | some files failed, the others are done |
# | 2 | nothing was done: bad usage, no weights, no memory, no place to write, or every file failed; for `doctor`: something needed is missing |
# | 130 | interrupted with Ctrl-C (128 + the number of the signal, as shells do); finished files are kept |
# | 141 | the program that read the output went away, as `head` does (128 + 13) |
#
# : Exit codes of `gfpgan-edu` {#tbl-cli-codes}

# %%
#| export
# exit codes
DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, UNHEARD = 0, 1, 2, 130, 141
# of the files that are taken from a folder
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def reason(error, path=""):
    """Why, in a few words and without the name of the file.

    The kind of error is named only where it is not one of those we expect.
    """
    if getattr(error, "strerror", None):
        return error.strerror.lower()
    text = str(error).removeprefix(f"{path}: ").removeprefix("image: ")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def told(error):
    "An error as a message: the system's own with the file they are about, all others as they are."
    return f"{error.filename}: {reason(error)}" if getattr(error, "filename", None) else str(error)


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
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in text)


def complain(message):
    """One line on stderr, over a progress bar if there is one.

    Where nobody reads stdout any more, that is not for the user but for `main`.
    """
    from tqdm import tqdm

    if isinstance(message, BrokenPipeError):
        raise message

    tqdm.write(f"gfpgan-edu: {one_line(message)}", file=sys.stderr)


# %%
assert one_line("first\nsecond\r\n\nthird") == "first second third"
# a file name must stay what it is
assert one_line("two  blanks.jpg") == "two  blanks.jpg"
# no control codes reach the terminal
assert one_line("a\x1b[31mred\tb") == "a\\x1b[31mred\\tb"
# a name that is not UTF-8
assert one_line(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"


# %%
class Terminal(io.StringIO):
    "A stream that claims to be a screen."

    def isatty(self):
        return True


# %%
def on_screen(stream):
    """What stays to be read: on every line the text after the last carriage return.

    Escapes are taken out, blank lines dropped.
    """
    lines = stream.getvalue().replace("\x1b[A", "").split("\n")
    shown = [line.split("\r")[-1].strip() for line in lines]
    return [line for line in shown if line]


# %%
def loop(say):
    with redirect_stderr(Terminal()) as screen:
        for i in tqdm(range(4), disable=None, mininterval=0, ascii=True, ncols=60):
            if i % 2:
                say(f"file {i} is broken")
    return on_screen(screen)


# %%
assert loop(complain)[:2] == ["gfpgan-edu: file 1 is broken", "gfpgan-edu: file 3 is broken"]
garbled = loop(lambda m: print(m, file=sys.stderr))
# a plain print ends up behind the bar
assert not any(line.startswith("file") for line in garbled)
with redirect_stderr(io.StringIO()) as quiet:
    list(tqdm(range(4), disable=None))
assert quiet.getvalue() == ""           # no bar where nobody watches


# %% [markdown]
# ## Which pictures, and where their results go
#
# A folder is read by the suffixes of its files. It may hold things that wait: a link that points to itself, a link to nothing, a named pipe from which a program would read for ever (`read_picture` of @sec-pictures refuses all three). With `--recursive` there may be a link to the folder above, and following it never ends, or a subfolder that may not be opened. So links to folders are not followed,
# a subfolder that cannot be read counts as one failure, and everything else is left to the moment when its turn comes.
#
# A result has the name and suffix of its photo, below the folder of results. `a.jpg` and `a.png` stay apart that way, and the tree is kept. Two photos of the same name from two folders would meet; that is refused before anything is done.

# %%
#| export
def photos_in(path, recursive=False, leave_out=()):
    """The picture files of a folder (by suffix, sorted), or the one file named.

    Returns (paths, {subfolder that cannot be read: reason}). `recursive`: subfolders too, through
    no links and without the folders `leave_out`. Raises OSError where there is nothing to read.
    """
    path.stat()
    if not path.is_dir():
        return [path], {}
    os.scandir(path).close()
    found, closed = [], {}
    skip = {os.path.realpath(folder) for folder in leave_out}

    def cannot_be_read(error):
        closed[Path(error.filename)] = reason(error)

    for folder, subfolders, names in os.walk(path, onerror=cannot_be_read):
        subfolders[:] = [s for s in subfolders
                         if recursive and os.path.realpath(os.path.join(folder, s)) not in skip]
        found += [Path(folder, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    return sorted(found), closed


# %%
#| export
def plan(sources, out, recursive=False, leave_out=()):
    """Files and folders -> ([(picture, where its result goes)], {unreadable subfolder: reason}).

    Raises OSError or ValueError.
    """
    if not sources:
        raise ValueError("no photo is named")
    owners, closed = {}, {}
    for source in sources:
        paths, locked = photos_in(source, recursive, (out, *leave_out))
        if not paths and not locked:
            kinds = ", ".join(sorted(SUFFIXES))
            raise ValueError(f"{source}: no pictures in this folder ({kinds})")
        closed |= locked
        top = source if source.is_dir() else source.parent
        for path in paths:
            target = out / path.relative_to(top)
            if (other := owners.setdefault(target, path)) != path:
                raise ValueError(f"{path}: its result would have the name of that of {other}; "
                                 "give them folders of their own")
    return [(path, target) for target, path in owners.items()], closed


# %%
with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    for name in ("b.jpg", "a.png", "a.jpg", "notes.txt", "deep/er/c.tif", "out/a.jpg"):
        (d / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (d / "in" / name).touch()
    # a link to the folder above, and a link to itself
    (d / "in/deep/up").symlink_to(d / "in", target_is_directory=True)
    (d / "in/self.jpg").symlink_to("self.jpg")
    for recursive in (False, True):
        pairs, closed = plan([d / "in"], d / "in/out", recursive)
        targets = [target.relative_to(d / "in/out").as_posix() for _, target in pairs]
        print(f"recursive={recursive}: {targets}")
        assert len(pairs) == 4 + recursive and not closed
    test_fail(lambda: plan([d / "in", d / "in/out/a.jpg"], d / "x"),
              exc=ValueError, contains="would have the name")


# %% [markdown]
# ## Keeping account
#
# A run over many pictures ends with an account: so many done, so many done before, so many without a face, so many failed and why. Ten thousand photos with a hundred broken ones give a hundred lines on the way, but a handful of reasons at the end.
#
# A program that calls the command should not have to read prose. With `--json` stdout holds one JSON object per line and nothing else. @tbl-cli-json names the fields. File names come as they are, with JSON's escapes, so a name with a line break in it takes one line all the same.
#
# | field | of a picture | of the last line |
# |---|---|---|
# | `status` | `done`, `done_before`, `no_face`, `failed` | `summary` |
# | `photo`, `result` | path of the original; path of the result, where there is one | – |
# | `reason` | why not, or null | – |
# | `notes` | sentences such as that the face is larger than the model | – |
# | `faces`, `boxes` | `restore`: how many, and where in the photo (x0, y0, x1, y1) | – |
# | `params` | `degrade`: the draw | – |
# | `copied` | `restore --video`: whether the frame has no face and was copied | – |
# | `photos`, `done`, `done_before`, `no_face`, `failed`, `left` | – | how many in all, and of each kind; left: never begun |
# | `reasons`, `out`, `exit_code` | – | how often each reason; folder of the results; as in @tbl-cli-codes |
#
# : What `--json` prints {#tbl-cli-json}

# %%
#| export
@dataclass
class Account:
    """What became of the pictures of a run.

    Complaints and notes on stderr, with `json` one line each on stdout, and a summary at the end.
    """

    total: int
    out: Path
    verb: str = "restored"
    json: bool = False
    counts: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)

    def tell(self, path, status, why=None, notes=(), **more):
        "One picture: status done, done_before, no_face or failed."
        self.counts[status] += 1
        for text in (why, *notes):
            if text:
                complain(f"{path}: {text}")
        if why:
            self.reasons[one_line(why)] += 1
        self.print(photo=str(path), status=status, reason=why, notes=list(notes), **more)

    def print(self, **record):
        from tqdm import tqdm

        if self.json:
            tqdm.write(json.dumps(record), file=sys.stdout)
            sys.stdout.flush()


# %% [markdown]
# The counts of the summary decide the exit code; the most frequent reasons come with them. `@patch` makes the function a method of the class that its first argument names.

# %%
#| export
@patch
def end(self: Account, code=None):
    "Print the summary -> exit code."
    c = {status: self.counts[status] for status in ("done", "done_before", "no_face", "failed")}
    left = self.total - sum(c.values())
    if code is None:
        done, lacking = c["done"] or c["done_before"], c["no_face"] or c["failed"] or left
        code = DONE if not lacking else SOME_FAILED if done else NOTHING_DONE
    self.print(status="summary", photos=self.total, **c, left=left,
               reasons=dict(self.reasons.most_common()), out=str(self.out), exit_code=code)
    if not self.json:
        others = {"done before": c["done_before"], "without a face": c["no_face"],
                  "failed": c["failed"], "left": left}
        words = ", ".join(f"{n} {word}" for word, n in others.items() if n)
        print(one_line(f"{c['done']} of {self.total} {self.verb} into {self.out}"
                       f"{': ' * bool(words)}{words}"))
        for why, n in self.reasons.most_common(10) if self.total > 1 else ():
            print(f"  {n} × {why}")
    return code


# %% [markdown]
# The loop takes one picture after the other. It knows the errors that are expected. For the rest (out of memory, a bug) it names the kind of error too, so that a report of it is of use. Some libraries print complaints of their own past Python, as libtiff does; while a photo is worked on they are not heard. One error ends the loop: where no disk space is left, the next photo would be restored for nothing.

# %%
#| export
@contextmanager
def only_ours():
    """Meanwhile nothing is heard of what libraries print past Python.

    libtiff prints so about damaged files; a photo gets one line, and that is ours.
    """
    try:
        kept = os.dup(2)
    except OSError:                                                         # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# %%
#| export
def each_picture(pairs, work, account):
    """Call work(path, target) -> what there is to tell, for every pair.

    What fails is told, and the next picture is taken.
    """
    from tqdm import tqdm

    from gfpgan_edu.photos import NoFace

    # disable=None: a bar on a terminal only
    for path, target in tqdm(pairs, unit="photo", disable=len(pairs) < 2 or None):
        try:
            if target.exists() and target.samefile(path):
                raise ValueError("the result would overwrite the original")
            with only_ours():
                found = work(path, target)
        except NoFace as e:
            account.tell(path, "no_face", reason(e, path))
        except Exception as e:       # unforeseen ones too; the other photos are done all the same
            account.tell(path, "failed", reason(e, path))
            numbers = {getattr(x, "errno", None) for x in (e, e.__cause__)}
            if numbers & {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
                complain(f"{account.out}: no more can be written; "
                         "the same command goes on when there is room")
                break
        else:
            account.tell(path, "done", result=str(target), **found)


# %%
def breaks_at_2(path, target):
    if path.stem == "2":
        raise ValueError(f"{path}: is empty")
    return {"faces": 1}


account = Account(3, Path("out"))
pairs = [(Path(f"{i}.png"), Path("out", f"{i}.png")) for i in (1, 2, 3)]
with redirect_stderr(io.StringIO()) as err:
    each_picture(pairs, breaks_at_2, account)
assert account.counts == {"done": 2, "failed": 1} and account.reasons == {"is empty": 1}
assert reason(ValueError("2.png: is empty"), "2.png") == "is empty"
assert err.getvalue().splitlines()[-1] == "gfpgan-edu: 2.png: is empty"


# %% [markdown]
# ## A command is a dataclass
#
# The options of a command are typed fields with a default and a sentence each: what a dataclass is. `tyro` reads the class and makes the parser, the help and the error messages from it, so there is one place where an option lives. The work is a method `run` that returns the exit code.
#
# Nothing heavy is imported at the top. PyTorch takes seconds to load, and a user who asks for help, or has mistyped an option, should not wait for it. So each `run` imports what it needs.
#
# Two commands go through pictures, `restore` and `degrade`. What they share is a class of its own: the places, and the rule that a result which is there already is done. That rule makes every run resumable, since `write_picture` (@sec-pictures) puts a result under its name only when it is complete. A folder in which nothing is left to do ends without loading PyTorch.

# %%
#| export
@dataclass
class OnPictures:
    "What `restore` and `degrade` have in common."

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional,
                      tyro.conf.arg(metavar="PHOTO_OR_FOLDER", help_behavior_hint="(one or more)")]
    "Picture files, or folders of them."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    ("Folder for the results, made if missing; names stay the same, originals are never touched. A "
     "result that is there already counts as done.")
    recursive: bool = False
    "Search subfolders too; the results keep their tree."
    force: bool = False
    "Do everything again and replace results that are there."
    json: bool = False
    "Print one JSON object per photo and one for the summary, and nothing else on stdout."


# %% [markdown]
# Both hand their work to `each`. It looks at all places before anything heavy is loaded, and at what is done already before it begins.

# %%
#| export
@patch
def each(self: OnPictures, verb, start, *others):
    """Check all places, then work on every picture that is not done yet -> exit code.

    `others`: folders for further results. start() -> work(path, target) for `each_picture`.
    """
    try:
        pairs, closed = plan(self.photos, self.out, self.recursive, others)
    except (OSError, ValueError) as e:
        complain(told(e))
        return NOTHING_DONE
    for folder in (self.out, *others):
        try:
            make_writable(folder)
            if any(folder.samefile(source if source.is_dir() else source.parent)
                   for source in self.photos):
                raise OSError(errno.EEXIST, "the results would overwrite the originals; "
                                            "choose another folder")
        except OSError as e:
            complain(f"{folder}: cannot be used for the results ({reason(e)})")
            return NOTHING_DONE
    before = [not self.force and target.is_file()
              and os.path.realpath(target) != os.path.realpath(path) for path, target in pairs]
    try:
        work = None if all(before) else start()
    except (ValueError, OSError, RuntimeError) as e:
        complain(e)
        return NOTHING_DONE
    account = Account(len(pairs) + len(closed), self.out, verb, self.json)
    try:
        for path, why in closed.items():
            account.tell(path, "failed", why)
        for (path, target), there in zip(pairs, before):
            if there:
                account.tell(path, "done_before", result=str(target))
        each_picture([pair for pair, there in zip(pairs, before) if not there], work, account)
    except KeyboardInterrupt:
        account.end(INTERRUPTED)
        raise
    return account.end()


# %% [markdown]
# `restore` reads a `Picture` and writes one, so transparency, profile and EXIF come along. With `--video` the folder is one clip, and `restore_video` (@sec-photos) sees all frames before it restores the first. A clip cannot be done in two halves, so results that are there, all or some, are an error unless `--force` is given.

# %%
#| export
def fitted(alpha, image):
    "Transparency (h, w) or None, enlarged as the photo was: to the size of `image`."
    from PIL import Image

    if alpha is None or alpha.shape == image.shape[:2]:
        return alpha
    import numpy as np

    return np.array(Image.fromarray(alpha).resize(image.shape[1::-1], Image.Resampling.LANCZOS))


def save_faces(folder, name, faces, force):
    """Write the aligned pairs (before, after) of one photo.

    As folder/NAME-1-before.png, folder/NAME-1-after.png, …; what is there stays unless `force`.
    """
    from gfpgan_edu.pictures import write_image

    for i, pair in enumerate(faces, 1):
        for which, face in zip(("before", "after"), pair):
            path = folder / f"{name}-{i}-{which}.png"
            if force or not path.exists():
                write_image(path, face)


# %%
#| export
@dataclass
class Restore(OnPictures):
    """Restore the faces in photos, or in all photos of folders.

    Example: gfpgan-edu restore holiday.jpg --out restored

    Example: gfpgan-edu restore holiday --out restored --recursive --weights v1.4 --json > log.jsonl

    Example: gfpgan-edu restore frames --video --out restored-frames
    """

    weights: Annotated[str, tyro.conf.arg(metavar="NAME_OR_FILE")] = "bundled"
    "bundled, v1, v1.2, v1.3, v1.4 (downloaded once), or a .safetensors or .pth file."
    fidelity: Annotated[Optional[float], tyro.conf.arg(metavar="0..1")] = None
    ("How much of the degraded face is blended in: 0 the network's face, 1 the photo's; default: "
     "what the weights were made for.")
    only_center: bool = False
    "Only the face nearest to the middle of the photo."
    aligned: bool = False
    "The pictures are aligned faces already: no detection."
    upscale: Annotated[float, tyro.conf.arg(metavar="K")] = 1
    "Enlarge the photo K times, the background by Lanczos interpolation."
    save_faces: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Folder for the aligned faces before and after: PHOTO-1-before.png, PHOTO-1-after.png, …"
    video: bool = False
    ("A folder holds the frames of one clip, in the order of their names: landmarks are smoothed "
     "over time, frames without a face are copied.")
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps."


# %% [markdown]
# Photos go through `each`, one call of `work` for each. The network is loaded in `start`, once.

# %%
#| export
@patch
def run(self: Restore):
    if self.video:
        return self.clip()
    return self.each("restored", self.start, *([self.save_faces] if self.save_faces else []))


@patch
def start(self: Restore):
    "Load the network -> work(path, target) for one photo."
    from gfpgan_edu.photos import restore
    from gfpgan_edu.pictures import read_picture, write_picture

    options = dict(only_center=self.only_center, aligned=self.aligned, **self.options())
    net = self.network()

    def work(path, target):
        picture = read_picture(path)
        result = restore(picture.pixels, net, **options)
        if self.save_faces:          # before the photo: where its result is, its faces are too
            folder = self.save_faces / target.parent.relative_to(self.out)
            save_faces(folder, target.name, result.faces, self.force)
        alpha = fitted(picture.alpha, result.image)
        write_picture(target, replace(picture, pixels=result.image, alpha=alpha))
        boxes = [[round(float(v), 1) for v in box] for box in result.boxes]
        return dict(notes=(*picture.notes, *result.notes), faces=len(result.faces), boxes=boxes)

    return work


# %% [markdown]
# A photo and a clip take the same options and the same network.

# %%
#| export
@patch
def options(self: Restore):
    "What `restore` and `restore_video` both take, checked before the first photo."
    from gfpgan_edu.photos import pick_device

    if self.fidelity is not None and not 0 <= self.fidelity <= 1:
        raise ValueError(f"--fidelity is {self.fidelity:g}, needs a number from 0 to 1")
    if not 1 <= self.upscale <= 16:
        raise ValueError(f"--upscale is {self.upscale:g}, needs a number from 1 to 16")
    return dict(fidelity=self.fidelity, upscale=self.upscale, device=pick_device(self.device))


@patch
def network(self: Restore):
    from gfpgan_edu.inference import fuse
    from gfpgan_edu.weights import load_weights

    return fuse(load_weights(self.weights, progress=sys.stderr.isatty()), consume=True)


# %% [markdown]
# A clip does not go through `each`: its frames are restored together.

# %%
#| export
@patch
def clip(self: Restore):
    """Restore the frames of one clip -> exit code.

    A frame without a face is copied and counts as done.
    """
    try:
        frames, *others = self.photos or (None,)
        if others or not frames or not frames.is_dir():
            raise ValueError("--video takes one folder of frames")
        if self.only_center or self.aligned or self.save_faces or self.recursive:
            raise ValueError("--video goes without --only-center, --aligned, --save-faces "
                             "and --recursive")
        pairs, _ = plan(self.photos, self.out)
        make_writable(self.out)
        if (there := sum(target.exists() for _, target in pairs)) and not self.force:
            raise ValueError(f"{self.out}: holds {there} of the {len(pairs)} frames already; "
                             "--force replaces them")
        options = self.options()

        from gfpgan_edu.photos import restore_video

        done = restore_video(frames, self.out, self.network(), progress=sys.stderr.isatty(),
                             **options)
    except (ValueError, OSError, RuntimeError) as e:
        complain(told(e))
        return NOTHING_DONE
    account = Account(len(pairs), self.out, "restored", self.json)
    for name in (*done.restored, *done.copied):
        result = str(self.out / name)
        account.tell(frames / name, "done", result=result, copied=name in done.copied)
    for path, why in done.failures:
        account.tell(path, "failed", why.removeprefix(f"{path}: "))
    for note in done.notes:
        complain(f"{frames}: {note}")
    return account.end()


# %% [markdown]
# `degrade` is the other direction: the damage of @sec-degradation on any photos. Each picture has a draw of its own, from the seed and the picture's name below the folder, so the result does not depend on which other pictures are there or in which order they come.

# %%
#| export
@dataclass
class Degrade(OnPictures):
    """Damage photos as training does: blur, loss of pixels, noise, JPEG, colour. Each has a draw of
    its own, from the seed and its name.

    Example: gfpgan-edu degrade faces --out damaged --ranges severe --seed 1
    """

    ranges: Literal["paper", "official", "severe", "extreme"] = "paper"
    "What the damage is drawn from."
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    "Another seed, another draw; the same seed, the same pixels."
    size: Annotated[Optional[int], tyro.conf.arg(metavar="PX")] = None
    ("Side of the faces that blur and loss of pixels are scaled to; default: the shorter side of "
     "each picture.")

    def run(self):
        if self.seed < 0 or self.size is not None and self.size < 1:
            complain(f"--seed {self.seed} --size {self.size}: "
                     "needs a seed from 0 and a size from 1 up")
            return NOTHING_DONE
        return self.each("degraded", self.start)

    def start(self):
        import numpy as np

        from gfpgan_edu.degradation import PRESETS, degrade, sample_params
        from gfpgan_edu.pictures import read_picture, write_picture

        def work(path, target):
            picture = read_picture(path)
            ranges = PRESETS[self.ranges].at(self.size or min(picture.pixels.shape[:2]))
            name = os.fsencode(target.relative_to(self.out))
            params = sample_params(np.random.default_rng([self.seed, *name]), ranges)
            write_picture(target, replace(picture, pixels=degrade(picture.pixels, params)))
            return dict(notes=picture.notes, params=json.loads(params.to_json()))

        return work


# %% [markdown]
# ## Weights, in and out
#
# `weights` lists the official files, fetches one into the cache and checks its SHA-256, tells what a file holds, and converts between our safetensors and the official `.pth` (@sec-weights). `export` writes weights as an ONNX file (@sec-speed), for programs without PyTorch. Both leave a file alone that is there already, unless `--force` is given.

# %%
#| export
def check_target(path, suffixes, force):
    "Raise ValueError unless a file may be written at `path`; its folder is made."
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir() or path.exists() and not force:
        why = "is a folder" if path.is_dir() else "exists; --force replaces it"
        raise ValueError(f"{path}: {why}")
    try:
        make_writable(path.parent)
    except OSError as e:
        raise ValueError(f"{path}: cannot be written ({reason(e)})") from e


# %%
#| export
def write_official(net, path):
    "The official form of a GFPGAN as a .pth file, under the key params_ema, atomically."
    import torch

    from gfpgan_edu.weights import to_official

    part = path.with_name(f"{path.name}.part")
    try:
        torch.save({"params_ema": to_official(net)}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# %%
#| export
@dataclass
class Weights:
    """List, download, look into or convert weights.

    Example: gfpgan-edu weights fetch v1.4

    Example: gfpgan-edu weights convert v1.4 gfpgan14.safetensors --half
    """

    action: Annotated[Literal["list", "fetch", "info", "convert"], tyro.conf.Positional]
    ("list the known names, fetch one into the cache, show what a .safetensors file holds, or "
     "convert one kind of file into the other.")
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_FILE")] = ""
    "A name (fetch), a file (info; without one, the bundled weights), or either (convert)."
    out: Annotated[Optional[Path], tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    "convert: the file to write, .safetensors (ours) or .pth (official)."
    family: Optional[Literal["v1", "bilinear", "clean"]] = None
    ("convert: the official class that a .pth belongs to; v1 and bilinear cannot be told apart by "
     "the file.")
    clean: bool = False
    ("convert: multiply all scales into the weights, as the official clean files have them "
     "(bilinear networks only).")
    half: bool = False
    "convert: 16 bits a number in a .safetensors file, half the size."
    force: bool = False
    "convert: replace the file if it is there."

    def run(self):
        try:
            getattr(self, self.action)()
        except (ValueError, OSError) as e:      # WeightsError is a ValueError
            complain(e)
            return NOTHING_DONE
        return DONE

    def list(self):
        from gfpgan_edu import weights as w

        print(f"bundled   inside the package, {w.BUNDLED}")
        for r in w.RELEASES.values():
            sha256 = r.sha256 or "not published"
            print(f"{r.name:9} {r.family:6} {r.note}; {r.url}; SHA-256 {sha256}")
        print(f"licence of the official files: {w.LICENCE}")


# %% [markdown]
# The action is the name of a method. `fetch` and `info` are as short as `list`.

# %%
#| export
@patch
def fetch(self: Weights):
    from gfpgan_edu import weights as w

    if self.what not in w.RELEASES:
        known = ", ".join(w.RELEASES)
        raise w.WeightsError(f"{self.what or 'no name given'}: known are {known}")
    print(w.download(self.what, progress=sys.stderr.isatty()))


@patch
def info(self: Weights):
    from gfpgan_edu import weights as w

    path = w.bundled_path() if self.what in ("", "bundled") else self.what
    for k, v in w.read_header(path).items():
        print(f"{k}: {v}")


# %% [markdown]
# `convert` writes. The licence of official weights goes with them into our files.

# %%
#| export
@patch
def convert(self: Weights):
    if not self.what or self.out is None:
        raise ValueError("convert needs two names, such as: "
                         "gfpgan-edu weights convert v1.4 gfpgan14.safetensors")
    check_target(self.out, (".safetensors", ".pth"), self.force)
    official = self.out.suffix.lower() == ".pth"
    if official and self.half:
        raise ValueError("--half is for .safetensors files; the official code reads 32 bits")
    import torch

    from gfpgan_edu.weights import LICENCE, RELEASES, load_weights, save, to_clean

    net = load_weights(self.what, self.family, progress=sys.stderr.isatty())
    net = to_clean(net) if self.clean else net
    if official:
        write_official(net, self.out)
    else:
        kind = torch.float16 if self.half else None
        licence = dict(licence=LICENCE) if self.what in RELEASES else {}
        save(net, self.out, kind, source=Path(self.what).name, **licence)
    print(one_line(f"{self.out}: {self.out.stat().st_size / 1e6:.1f} MB, {net.config}"))
    if official and net.config.prior_share < 1:
        print(f"{self.out}: the official code will show the prior's picture alone; "
              f"a share of {net.config.prior_share:g} has no place in its files")


# %%
#| export
@dataclass
class Export:
    """Write weights as an ONNX file, for programs without PyTorch: "face" (b, 3, size, size)
    in [-1, 1] -> "restored", of aligned faces.

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
            check_target(self.out, (".onnx",), self.force)

            from gfpgan_edu.inference import export_onnx
            from gfpgan_edu.weights import LICENCE, RELEASES, load_weights

            net = load_weights(self.weights, progress=sys.stderr.isatty())
            licence = dict(licence=LICENCE) if self.weights in RELEASES else {}
            export_onnx(net, self.out, weights=Path(self.weights).name, **licence)
        except (ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        size = self.out.stat().st_size / 1e6
        print(one_line(f"{self.out}: {size:.1f} MB, faces of {net.config.size} px"))
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
    ("Folder for the faces and manifest.jsonl (where eyes and mouth are). A run that was broken "
     "off goes on where it was.")
    size: int = 512
    "Side of the aligned faces in px."
    aligned: bool = False
    "The pictures are aligned as FFHQ already: only resize them and find eyes and mouth."
    largest: bool = False
    "Only the largest face of each picture."
    min_face: Annotated[Optional[int], tyro.conf.arg(metavar="PX")] = None
    "Leave out faces narrower than this in the photo; default: a quarter of --size."
    compression: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] = 0
    "Of the PNGs: 0 is large and quick to read, 9 is small; the pixels are the same."

    def run(self):
        from gfpgan_edu.faces import prepare

        try:
            done = prepare(self.photos, self.out, self.size, aligned=self.aligned,
                           largest=self.largest, min_face=self.min_face,
                           compression=self.compression)
        except (ValueError, OSError) as e:
            complain(e)
            return NOTHING_DONE
        for path, reason in done.unreadable:
            complain(f"{path}: {reason}")
        for path in done.no_face:
            complain(f"{path}: no face that is large enough")
        print(one_line(
            f"{done.written} faces written into {self.out}, {done.skipped} pictures done before, "
            f"{len(done.no_face)} without a face, {len(done.unreadable)} unreadable"))
        if done.unreadable:
            return SOME_FAILED
        return DONE if done.written or done.skipped else NOTHING_DONE


# %%
#| export
@dataclass
class Train:
    """Train GFP-GAN, or the StyleGAN2 prior it restores with; said again with the same --out, the
    run goes on.

    Example: gfpgan-edu train --preset tiny --data faces --out runs/tiny --minutes 3

    Several GPUs: torchrun --no-python --nproc-per-node 4 gfpgan-edu train --preset paper --data
    faces --out runs/paper --prior prior.pth

    Several machines: the same on each, with
    torchrun's --nnodes 2 --node-rank 0 (1, …) --rdzv-backend c10d --rdzv-endpoint HOST:29500,
    and --out on a disk that all of them see (only the first process writes).
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces; `gfpgan-edu prepare` makes one."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    ("Folder of the run: config.yaml, checkpoints, metrics.jsonl, tensorboard/, validation sheets, "
     "at the end ema.safetensors.")
    what: Annotated[Literal["restorer", "prior"], tyro.conf.Positional] = "restorer"
    "What to train."
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    ("restorer: paper, official, faces128, faces64, faces32, tiny. prior: paper, faces128, "
     "faces64, faces32, tiny.")
    config: Annotated[Optional[Path], tyro.conf.arg(metavar="YAML")] = None
    "A config file in the place of a preset, such as the config.yaml of another run."
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    ("Changes to it, such as run.batch=4 loss.pixel=1 model.size=256 run.precision=bf16; unknown "
     "keys are errors.")
    valid: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Folder of faces for validation; without one, some of --data are held out."
    prior: Annotated[str, tyro.conf.arg(metavar="WHICH")] = ""
    ("Restorer: the prior to build on: bundled, an official .pth or a .safetensors, or random. The "
     "same as --set prior=…")
    init_from: Annotated[str, tyro.conf.arg(metavar="NAME_OR_FILE")] = ""
    ("Fine-tune: begin with these weights (of the same kind; names as in `gfpgan-edu weights "
     "list`); the model's config is theirs.")
    minutes: Annotated[Optional[float], tyro.conf.arg(metavar="M")] = None
    "Stop after this time with a checkpoint; saying the command again goes on."
    on_nonfinite: Optional[Literal["stop", "rollback"]] = None
    ("When a loss or gradient is not finite: stop, or return to the last checkpoint with half the "
     "learning rate, at most three times.")
    compile: bool = False
    "torch.compile what needs no second derivative."
    device: Literal["auto", "cpu"] = "auto"
    "auto takes a GPU where there is one."
    dry_run: bool = False
    ("Print the config, run ten iterations on the data in a temporary folder, print memory, speed, "
     "waiting for data and the time the run would take, and stop. --out is not touched.")
    show_config: bool = False
    "Only print the config."


# %% [markdown]
# The config comes from a file, from the folder of the run or from a preset, in this order. Then come the model of the weights to begin with and the user's changes.

# %%
#| export
@patch
def resolve(self: Train):
    """The config of the run and the weights to begin with (or None).

    Raises ValueError or OSError.
    """
    from gfpgan_edu import train_prior, train_restorer
    from gfpgan_edu.engine import override, read_config

    restorer = self.what == "restorer"
    cls = train_restorer.RestorerConfig if restorer else train_prior.PriorConfig
    presets = train_restorer.PRESETS if restorer else train_prior.PRESETS
    saved = self.out / "config.yaml"
    file = self.config or (saved if saved.exists() and not self.preset else None)
    if file is not None:
        config = read_config(cls, file)
    elif self.preset in presets:
        config = presets[self.preset]()
    else:
        raise ValueError(f"--preset {self.preset or 'is missing'}: "
                         f"there are {', '.join(presets)} for the {self.what}")
    net, changes = None, list(self.set)
    if self.init_from:
        from gfpgan_edu.weights import load_prior, load_weights

        net = load_weights(self.init_from) if restorer else load_prior(self.init_from)
        theirs = net.config.to_dict() if restorer else net.config
        model = {k: v for k, v in theirs.items() if restorer or k != "equalized"}
        changes = [f"{'model.' * restorer}{k}={v}" for k, v in model.items()] + changes
    if self.prior:
        changes.append(f"prior={self.prior}")
    if self.on_nonfinite:
        changes.append(f"run.on_nonfinite={self.on_nonfinite}")
    if self.compile:
        changes.append("run.compile=true")
    return override(config, changes), net


# %% [markdown]
# A run that cannot begin has done nothing. One that breaks off after its first iteration counts as half done.

# %%
#| export
@patch
def run(self: Train):
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
        # an error from a loading process brings its whole story
        complain(str(e).strip().splitlines()[-1])
        return SOME_FAILED if trainer.it else NOTHING_DONE
    if trainer.main:
        print(one_line(f"{ended} at iteration {trainer.it} of {config.run.iterations}; "
                       f"weights in {self.out / 'ema.safetensors'}"))
    trainer.state.destroy_process_group()
    return INTERRUPTED if ended == "interrupted" else DONE


@patch
def trainer(self: Train, config, net, out):
    from gfpgan_edu.train_prior import PriorTrainer
    from gfpgan_edu.train_restorer import RestorerTrainer

    device = None if self.device == "auto" else self.device
    if self.what == "prior":
        return PriorTrainer(config, self.data, out, device=device, init_from=net)
    return RestorerTrainer(config, self.data, out, valid=self.valid, device=device, init_from=net)


# %% [markdown]
# A rehearsal trains for ten iterations in a folder that goes away, and prints what it saw.

# %%
#| export
@patch
def rehearse(self: Train, config, net):
    """Print the config, and with --dry-run what ten iterations tell.

    That is printed as comments, so that the whole is still a config file.
    """
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
            # an error from a loading process brings its whole story
            raise RuntimeError(str(e).strip().splitlines()[-1]) from e
    if trainer.main:
        begun = checkpoints(self.out)
        lines = told.lines(int(begun[-1].stem[6:]) if begun else 0)
        print(text + "".join(f"# {line}\n" for line in lines), end="")
    trainer.state.destroy_process_group()
    return DONE


# %%
#| export
@dataclass
class TrainPrior(Train):
    """Train the StyleGAN2 prior: the same as `gfpgan-edu train prior`.

    Example: gfpgan-edu train-prior --preset tiny --data faces --out runs/prior --minutes 3
    """

    what: tyro.conf.Suppress[Literal["prior"]] = "prior"


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
    ("blind: damage as in training; sr: reduced bicubically; colour: each face grey and yellowed; "
     "real: photos without a truth.")
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
    ("real: LFW-Test, CelebChild-Test, WebPhoto-Test or any other; known ones are checked against "
     "the paper's number of pictures.")
    align: bool = False
    "real: the photos are not aligned; cut every face out."
    limit: Annotated[Optional[int], tyro.conf.arg(metavar="N")] = None
    "Only the first N pictures."


# %% [markdown]
# Each kind of set has its own builder in @sec-evaluation.

# %%
#| export
@patch
def run(self: Testset):
    from gfpgan_edu import evaluation as e

    try:
        if self.kind == "blind":
            made = e.build_blind(self.source, self.out, self.size, self.ranges, self.seed,
                                 self.draws, self.limit)
        elif self.kind == "sr":
            made = e.build_sr(self.source, self.out, self.size, self.factor, self.limit)
        elif self.kind == "colour":
            made = e.build_colour(self.source, self.out, self.size, self.ranges, self.seed,
                                  self.limit)
        else:
            name = self.name or self.source.name
            made = e.wrap_real(self.source, self.out, name, self.size, self.align, self.limit)
    except (ValueError, OSError, RuntimeError) as error:
        complain(error)
        return NOTHING_DONE
    for path, reason in made.failed:
        complain(f"{path}: {reason}")
    note = f"; {made.note}" if made.note else ""
    print(one_line(f"{made.n} pictures in {made.folder}, {len(made.failed)} left out{note}"))
    return NOTHING_DONE if not made.n else SOME_FAILED if made.failed else DONE


# %%
#| export
@dataclass
class Baseline:
    """Restore a folder of aligned faces by PULSE, mGANprior or a network, for the tables. For
    photos take `restore`.

    Example: gfpgan-edu baseline pulse --lq celeba-test/lq --out results/pulse --prior bundled
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    "pulse, mganprior, or weights: a name as in `gfpgan-edu weights list`, or a file."
    lq: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces of the method's size."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    ("Folder for the results; those already there are left, so a run that was broken off goes on. "
     "method.json says what it cost.")
    prior: Annotated[str, tyro.conf.arg(metavar="WHICH")] = ""
    "The StyleGAN2 that is searched: bundled (64 px), prior32, an official .pth or a .safetensors."
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    "Settings of the search, such as factor=4 steps=100 n=8 block=2."
    batch: int = 8
    device: Literal["auto", "cpu"] = "auto"


# %% [markdown]
# The values of the settings are read as YAML, so that numbers are numbers.

# %%
#| export
@patch
def run(self: Baseline):
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


# %%
#| export
def _device(wanted):
    "For measuring: an Apple GPU has no float64, which the metrics need."
    import torch

    return "cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu"


# %%
#| export
@dataclass
class Evaluate:
    """Measure folders of restored faces, whatever made them, and print one table.

    Example: gfpgan-edu evaluate --pred Input=celeba-test/lq results/pulse --gt
    celeba-test/gt --out table.md table.json
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
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = (
        "psnr", "ssim", "lpips-vgg", "fid", "niqe", "deg")
    ("Also lpips-alex chroma colourfulness deg:bundled deg:dlib perceptual:efficientnet-lite1 "
     "frechet:efficientnet-lite1.")
    protocol: Literal["plain", "vqfr"] = "plain"
    ("vqfr: channel means and deviations matched before PSNR and SSIM, pairs below 1 degree left "
     "out of deg.")
    channel: Literal["rgb", "y"] = "rgb"
    "PSNR and SSIM on colours or on brightness."
    suffix: str = ""
    "Ending of the result names that the truths do not have, such as _00."
    niqe: str = ""
    ("File of NIQE's pristine parameters: niqe_pris_params.npz, modelparameters.mat, or one of "
     "fit_niqe.")
    arcface: str = ""
    "The official arcface_resnet18.pth, for deg."
    inception: str = ""
    "torch-fidelity's Inception weights, where they cannot be downloaded."
    save_reference: Annotated[Optional[Path], tyro.conf.arg(metavar="DIR")] = None
    "Keep the statistics of a reference folder here, one .npz a metric."
    force: bool = False
    "Replace tables and statistics that are there."
    device: Literal["auto", "cpu"] = "auto"


# %% [markdown]
# What can be refused is refused before the first picture is measured.

# %%
#| export
@patch
def run(self: Evaluate):
    from gfpgan_edu.evaluation import evaluate
    from gfpgan_edu.metrics import Files, Protocol

    try:
        folders = {}
        for p in self.pred:
            name, eq, path = p.partition("=")
            folders |= {name: path} if eq else {Path(p).name or p: p}
        if len(folders) < len(self.pred):
            raise ValueError("two folders of --pred have the same name; write NAME=DIR")
        if odd := [p for p in self.out if p.suffix.lower() not in (".json", ".csv", ".md")]:
            raise ValueError(f"{odd[0]}: a table is written as .json, .csv or .md")
        for path in (*self.out, *filter(None, [self.per_image])):
            check_target(path, (path.suffix.lower(),), self.force)
        if self.save_reference and not self.force and any(self.save_reference.glob("*.npz")):
            raise ValueError(f"{self.save_reference}: holds statistics already; "
                             "--force replaces them")
        protocol = Protocol.vqfr() if self.protocol == "vqfr" else Protocol()
        protocol = replace(protocol, channel=self.channel)
        files = Files(self.niqe, self.arcface, self.inception)
        table = evaluate(folders, self.gt, self.reference, self.metrics, protocol, files,
                         self.suffix, _device(self.device), sys.stderr.isatty(),
                         self.save_reference, self.reference_size)
        for path in self.out:
            table.write(path)
        if self.per_image:
            table.write_images(self.per_image)
    except (ValueError, OSError, RuntimeError) as e:
        complain(e)
        return NOTHING_DONE
    return self.report(table)


# %% [markdown]
# The table goes to stdout. What is missing in it goes to stderr, ten names of each kind at most.

# %%
#| export
@patch
def report(self: Evaluate, table):
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
    """Train, restore and score the rows of Table 4 and Fig. 7 with equal budgets; said again with
    the same --out, it goes on.

    Example: gfpgan-edu ablate --data faces --valid other-faces --out
    runs/ablation --minutes-each 5 --seeds 2
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of aligned faces to train on; it is also the reference of fid and frechet."
    valid: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    "Folder of other aligned faces to measure on."
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    ("Folder of the runs, with table.md, ablation.json, per_image.csv, fig6.png and fig7.png at "
     "the end.")
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
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = (
        "psnr", "ssim", "lpips-vgg", "fid", "deg:bundled")
    "As in `evaluate`."
    limit: Annotated[Optional[int], tyro.conf.arg(metavar="N")] = None
    "Measure on the first N of --valid only."
    device: Literal["auto", "cpu"] = "auto"


# %% [markdown]
# First all runs, then all scores: while a run is missing, there is no table.

# %%
#| export
@patch
def run(self: Ablate):
    from gfpgan_edu import evaluation as e
    from gfpgan_edu.engine import override
    from gfpgan_edu.pictures import write_image
    from gfpgan_edu.train_restorer import PRESETS

    def say(line):
        print(one_line(line), flush=True)

    try:
        base = override(PRESETS[self.preset](), list(self.set))
        rows = self.rows or tuple(e.ROWS)
        if odd := [r for r in rows if r not in e.ROWS]:
            raise ValueError(f"there is no row {odd[0]}: there are {', '.join(e.ROWS)}")
        device = None if self.device == "auto" else self.device
        folders = e.train_rows(base, self.data, self.out, rows, self.seeds, self.minutes_each,
                               self.iterations, self.valid, device, say, self.minutes)
        if len(folders) < len(rows) * self.seeds:
            print(f"stopped: {len(folders)} of {len(rows) * self.seeds} runs are finished; "
                  "the same command goes on")
            return DONE
        result = e.score_rows(folders, base, self.valid, self.data, self.out, self.metrics,
                              limit=self.limit, device=_device(self.device),
                              progress=sys.stderr.isatty())
        figures = {"fig6": ("a", "b", "c", "d", "full"), "fig7": ("no-parts", "D", "D+fm", "full")}
        for name, wanted in figures.items():
            grid = e.ablation_grid(self.out, [r for r in wanted if r in rows])
            write_image(self.out / f"{name}.png", grid)
    except (ValueError, OSError, RuntimeError) as error:
        complain(error)
        return NOTHING_DONE
    print(e.ablation_table(result), end="")
    return DONE


# %% [markdown]
# ## What is wrong with this installation?
#
# Most questions about a program like this one are about the machine: a package of the wrong version, PyTorch without the graphics card, a system library that OpenCV wants, a cache folder that belongs to somebody else. `doctor` looks at each and prints one line: `ok`, `warn` (works without, or slower) or `missing` (needed), what was found, and what to do.
#
# A check must not trust what it checks. So each is a small function that yields its findings, and whatever it raises is a finding too.

# %%
#| export
@dataclass
class Finding:
    "One line of `doctor`; status ok, warn (works without) or missing (needed)."

    check: str
    status: str
    found: str
    todo: str = ""


# %%
#| export
def judged(check, fine, found, todo, otherwise="missing"):
    "A Finding; what to do is told only where it is not fine."
    return Finding(check, "ok" if fine else otherwise, found, "" if fine else todo)


# %%
#| export
def look_at_packages():
    "Python and every requirement of the package; the extras, one line each."
    from importlib.metadata import PackageNotFoundError, requires, version
    from platform import python_version

    from packaging.requirements import Requirement

    yield judged("gfpgan_edu", True, version("gfpgan_edu"), "")
    version_fits = sys.version_info >= (3, 10)
    yield judged("python", version_fits, python_version(), "install Python 3.10 or newer")
    extras = {}
    for need in map(Requirement, requires("gfpgan_edu") or ()):
        try:
            have = version(need.name)
        except PackageNotFoundError:
            have = None
        fits = have is not None and need.specifier.contains(have, prereleases=True)
        if need.marker:                                                     # extra == "onnx"
            extras.setdefault(str(need.marker).split('"')[1], []).append((need, have, fits))
        else:
            found = have or "not installed"
            if need.specifier:
                found += f" (needs {need.specifier})"
            yield judged(need.name, fits, found, f'pip install "{need}"')
    for extra, needs in sorted(extras.items()):
        lacking = [need.name for need, _, fits in needs if not fits]
        found = f"lacks {', '.join(lacking)}" if lacking else "complete"
        todo = f'if wanted: pip install "gfpgan_edu[{extra}]"'
        yield judged(f"extra {extra}", not lacking, found, todo, "warn")


# %% [markdown]
# A version number says little about a library that cannot be loaded. OpenCV is the usual case: on a bare server it stops with a line about `libGL.so.1`.

# %%
#| export
def look_at_libraries():
    "Whether the compiled libraries load, and the programs besides them."
    import shutil

    libraries = {"torch": "the networks", "torchvision": "needed by the detector",
                 "cv2": "OpenCV, and the libraries it needs (libGL)"}
    for name, does in libraries.items():
        try:
            import_module(name)
            yield Finding(f"import {name}", "ok", does)
        except Exception as e:
            todo = "install torch and torchvision together: https://pytorch.org/get-started/locally"
            if any(lib in str(e) for lib in ("libGL", "libgthread", "libglib")):
                todo = ("sudo apt-get install libgl1 libglib2.0-0, "
                        "or pip install opencv-python-headless")
            yield Finding(f"import {name}", "missing", str(e), todo)
    quarto = shutil.which("quarto")
    todo = "only `make book` needs it: https://quarto.org/docs/download"
    yield judged("quarto", quarto, quarto or "not found", todo, "warn")


# %%
#| export
def look_at_devices():
    """The bundled network on every device: milliseconds for one face.

    And whether a graphics card lies idle.
    """
    import shutil
    from time import perf_counter

    import torch

    from gfpgan_edu.inference import fuse
    from gfpgan_edu.weights import load_weights

    devices = ["cpu"]
    devices += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    n = torch.get_num_threads()
    threads = f"{n} thread{'s' * (n > 1)}"
    for device in devices:
        net, times = fuse(load_weights(), consume=True).to(device), []
        for _ in range(5):
            begin = perf_counter()
            y = net(torch.zeros(1, 3, net.config.size, net.config.size, device=device))[0].cpu()
            times.append(perf_counter() - begin)
        name = {"cpu": threads, "mps": "Apple"}.get(device) or torch.cuda.get_device_name()
        found = f"{name}, {1000 * min(times):.1f} ms for a face of {net.config.size} px"
        yield judged(device, torch.isfinite(y).all(), found,
                     "the network's output is not finite: install torch again")
    if "cuda" not in devices:
        idle = shutil.which("nvidia-smi") is not None
        found = "none, the CPU does the work"
        if idle:
            found = "a driver is there, but torch cannot use it"
        todo = "https://pytorch.org/get-started/locally names the torch that fits the driver"
        yield judged("cuda", not idle, found, todo, "warn")


# %% [markdown]
# Weights are the second cause of questions. The SHA-256 of the bundled files is part of the package, and downloads are compared with the published ones. The last check restores a photo: if that works, so does the rest.

# %%
#| export
def look_at_weights():
    "The bundled files against their SHA-256, the cache, what is in it."
    from gfpgan_edu import weights as w
    from gfpgan_edu.bundled import SHA256

    for name, want in SHA256.items():
        path = w.bundled_path().with_name(name)
        same = path.is_file() and w.sha256_of(path) == want
        ill = "SHA-256 differs" if path.is_file() else "no such file"
        found = "bundled, SHA-256 agrees" if same else f"{path}: {ill}"
        yield judged(path.stem, same, found, "install the package again")
    cache = w.cache_dir()
    try:
        make_writable(cache)
        yield Finding("cache", "ok", str(cache))
    except OSError as e:
        yield Finding("cache", "warn", f"{cache}: {reason(e)}",
                      "downloads fail; name another folder in $GFPGAN_EDU_CACHE")
    known = w._remembered(cache / "hashes.json")
    for r in w.RELEASES.values():
        fetch = f"gfpgan-edu weights fetch {r.name}"
        path = cache / r.url.rsplit("/", 1)[1]
        want = r.sha256 or known.get(r.url)
        if path.is_file():
            same = want is None or w.sha256_of(path) == want
            ours = "differs" if not same else "agrees" if want else "not published"
            found = f"{path}: {path.stat().st_size / 1e6:.0f} MB, SHA-256 {ours}"
            yield judged(r.name, same, found, f"delete it, then: {fetch}", "warn")
        elif path.with_name(f"{path.name}.part").is_file():
            yield Finding(r.name, "warn", "download broken off", f"{fetch} goes on with it")
        else:
            yield Finding(r.name, "ok", "not downloaded", f"if wanted: {fetch}")


# %%
#| export
def look_at_a_photo():
    "Detector, network and all between."
    from gfpgan_edu.examples import astronaut
    from gfpgan_edu.photos import restore

    n = len(restore(astronaut()).faces)
    yield judged("a photo", n == 1, f"{n} face restored",
                 "detector or network do not work: look at the lines above")


# %%
#| export
@dataclass
class Doctor:
    """Look at versions, devices, weights, cache and extras: one line each, with what to do. Exit
    code 2 where something needed is missing.

    Example: gfpgan-edu doctor
    """

    json: bool = False
    "Print one JSON object per line."

    def run(self):
        missing = False
        for look in (look_at_packages, look_at_libraries, look_at_devices, look_at_weights,
                     look_at_a_photo):
            try:
                for finding in look():
                    missing |= finding.status == "missing"
                    self.print(finding)
            except Exception as e:                               # a check that fails is a finding
                missing = True
                check = look.__name__.removeprefix("look_at_").replace("_", " ")
                self.print(Finding(check, "missing", f"{type(e).__name__}: {e}"))
        return NOTHING_DONE if missing else DONE

    def print(self, finding):
        if self.json:
            print(json.dumps(asdict(finding)), flush=True)
        else:
            todo = f"; {finding.todo}" if finding.todo else ""
            line = f"{finding.status:8}{finding.check:20}{finding.found}{todo}"
            print(one_line(line), flush=True)


# %% [markdown]
# ## The page, and the completion of words
#
# `web` starts the local page of @sec-web. `completion` prints a script that teaches the shell our words, so that the tabulator key completes commands and options. `tyro` writes it from the same classes, which is why it knows every option:
#
# ```sh
# eval "$(gfpgan-edu completion bash)"                # in ~/.bashrc
# gfpgan-edu completion zsh > ~/.zfunc/_gfpgan-edu    # fpath+=~/.zfunc before compinit in ~/.zshrc
# ```

# %%
#| export
@dataclass
class Web:
    """Open a local page: drop a photo, see it restored, download it. Needs
    pip install "gfpgan_edu[web]".

    Example: gfpgan-edu web --port 7860
    """

    port: int = 7860
    "The page is at http://127.0.0.1:PORT, for this machine only."
    weights: Annotated[str, tyro.conf.arg(metavar="NAME_OR_FILE")] = "bundled"
    "The weights that are chosen at first."
    max_mb: Annotated[float, tyro.conf.arg(metavar="MB")] = 20
    "Larger uploads are refused."
    open_browser: bool = True
    "Show the page in the browser at once."

    def run(self):
        try:
            from gfpgan_edu.web import launch

            launch(port=self.port, weights=self.weights, max_mb=self.max_mb,
                   open_browser=self.open_browser)
        except (ImportError, ValueError, OSError, RuntimeError) as e:
            complain(e)
            return NOTHING_DONE
        return DONE


# %%
#| export
@dataclass
class Completion:
    """Print the script that completes commands and options in a shell.

    Example: eval "$(gfpgan-edu completion bash)"
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    "The shell."

    def run(self):
        parse(["--tyro-print-completion", self.shell])


# %% [markdown]
# ## From words to a command
#
# The table of commands is a dictionary. What `tyro` says of bad usage is a drawn box of several lines; it becomes one line like every other complaint, so that there is one style of errors.
#
# A last trap is `gfpgan-edu --help | head`. `head` ends when it has seen enough, and the next byte written to it is an error, at the latest when Python empties its buffers at exit, where it cannot be caught any more. So the buffer is emptied within `main`, and the error leads to the exit code that other programs have then.

# %%
#| export
# The word after gfpgan-edu, and the class that does what it says.
COMMANDS = {"restore": Restore, "degrade": Degrade, "weights": Weights, "export": Export,
            "web": Web, "prepare": Prepare, "train": Train, "train-prior": TrainPrior,
            "testset": Testset, "baseline": Baseline, "evaluate": Evaluate, "ablate": Ablate,
            "doctor": Doctor, "completion": Completion}
# What the help of the whole command says.
ABOUT = """GFP-GAN: restore faces in photos, and train what restores them.

Exit codes: 0 all done; 1 some files failed; 2 nothing done or bad usage; 130 interrupted, finished
files are kept; 141 nobody read the output.

Help of a command: gfpgan-edu restore --help"""


def unbox(text):
    """The box that tyro draws around an error -> one line.

    It tells what is wrong, what may be meant, where there is help.
    """
    # without frame and title
    lines = [line[1:].rstrip("│ ") for line in text.splitlines()[1:]]
    # what stands further in is the help of an option
    kept = [line for line in lines if not line.startswith(" " * 9)]
    blocks = re.split(r"^[ ─╯-]*$", "\n".join(kept), flags=re.M)
    parts = [" ".join(block.split()) for block in blocks]
    return "; ".join(part.replace("For full", "for full") for part in parts
                     if part and not part.startswith("Argument helptext")) or text


# %%
#| export
def parse(args=None):
    """Words of the command line -> a command.

    Help ends with SystemExit(0), bad usage with one line and SystemExit(2).
    """
    named = [Annotated[cls, tyro.conf.subcommand(name)] for name, cls in COMMANDS.items()]
    command = Union[tuple(named)]
    with redirect_stderr(io.StringIO()) as box:
        try:
            return tyro.cli(command, prog="gfpgan-edu", description=ABOUT, args=args,
                            config=(tyro.conf.FlagCreatePairsOff,))
        except SystemExit as e:
            if not e.code:
                raise
    complain(unbox(box.getvalue()))
    raise SystemExit(NOTHING_DONE)


# %%
#| export
def main(args=None):
    "Entry point of the command `gfpgan-edu`; exits with the codes that its help names."
    try:
        try:
            code = parse(args).run()
        except SystemExit as e:                                     # help, completion and bad usage
            code = e.code or DONE
        sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted; what was finished so far is kept")
        code = INTERRUPTED
    except MemoryError:
        complain("not enough memory")
        code = NOTHING_DONE
    except BrokenPipeError:
        # nothing more is said at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = UNHEARD
    sys.exit(code)


# %% [markdown]
# Parsing alone can be checked without running anything: words in, dataclass out. Wrong usage must end with 2 and one line, help with 0, and Ctrl-C with 130.

# %%
def quietly(*args):
    "(exit code, stdout, lines of stderr) of the command, run in this process."
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()) as out:
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            return e.code, out.getvalue(), err.getvalue().splitlines()


command = parse(["restore", "a.jpg", "b.jpg", "--out", "b", "--weights", "v1.4"])
assert command == Restore((Path("a.jpg"), Path("b.jpg")), Path("b"), weights="v1.4")
assert parse(["weights", "fetch", "v1"]) == Weights("fetch", "v1")
short, long = "train-prior --data a --out b", "train prior --data a --out b"
assert vars(parse(short.split())) == vars(parse(long.split()))
for name, command in COMMANDS.items():
    if name != "completion":
        assert f"Example: gfpgan-edu {name} " in f"{one_line(command.__doc__)} "
for wrong in ("", "restore", "restore a.jpg", "restore a.jpg --out b --wieghts v1", "weights eat",
              "fly", "prepare a --out b --size big"):
    code, out, err = quietly(*wrong.split())
    assert (code, out, len(err)) == (NOTHING_DONE, "", 1), wrong
    print(err[0].split("; for full")[0][:120])
with mock.patch.object(Weights, "run", side_effect=KeyboardInterrupt):
    assert quietly("weights", "list")[0] == INTERRUPTED
command, = entry_points(group="console_scripts", name="gfpgan-edu")
# what `pip install` puts on the path
assert command.value == "gfpgan_edu.cli:main"

# %% [markdown]
# ## Help at once
#
# What a process does at its end can be tested only with a process of its own; a function called inside the notebook shares the notebook's modules and streams. First the help, and the proof that it costs no PyTorch: after printing it, the process looks at which modules it has loaded. Then a reader that goes away before the first word.

# %%
ENV = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
r = subprocess.run([sys.executable, "-c", """
import sys, gfpgan_edu.cli
try:
    gfpgan_edu.cli.main(["restore", "--help"])
except SystemExit:
    pass
print("LOADED", *sorted({m.split(".")[0] for m in sys.modules}))
"""], env=ENV, capture_output=True, text=True)
text, loaded = r.stdout.split("LOADED")
print(text)
assert "tyro" in loaded.split()
heavy = {"torch", "torchvision", "numpy", "cv2", "PIL", "facenet_pytorch", "matplotlib"}
assert not heavy & set(loaded.split())
unheard = [sys.executable, "-c", "from gfpgan_edu.cli import main; main(['--help'])"]
with subprocess.Popen(unheard, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
    p.stdout.close()
    assert p.wait() == UNHEARD and p.stderr.read() == b""

# %% [markdown]
# The completion script is tested as a shell would use it: loaded into bash, asked what could follow some letters.

# %%
script = quietly("completion", "bash")[1]
ask = ('ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
       '_tyro_gfpgan_edu; echo "$* -> ${COMPREPLY[@]}"; }; ')
questions = "ask gfpgan-edu do; ask gfpgan-edu restore --o; ask gfpgan-edu degrade --ranges s"
r = subprocess.run(["bash", "-c", script + ask + questions], capture_output=True, text=True)
print(r.stdout, end="")
answers = [line.split("-> ")[1].split() for line in r.stdout.splitlines()]
assert answers == [["doctor"], ["--out", "--only-center"], ["severe"]]
assert "#compdef gfpgan-edu" in quietly("completion", "zsh")[1]

# %% [markdown]
# ## Two commands, one table
#
# From here on the commands run in a temporary folder, and both streams and the exit code are shown. The measuring commands first: a set of four crops of the portrait, then a table of its inputs and of the truths themselves. The truth beside itself is the check that any table command should pass: infinite PSNR, similarity 1. NIQE's parameters are not here, so its column holds dashes and one line says why.

# %%
folder, home = tempfile.TemporaryDirectory(), Path.cwd()


# %%
def run(line, show=True):
    "Run `gfpgan-edu` with the words of `line` in the folder, and show all that comes of it."
    os.chdir(folder.name)
    try:
        code, out, err = quietly(*line.split())
    finally:
        os.chdir(home)
    if show:
        print(f"$ gfpgan-edu {line}\n{out}", end="")
        print("".join(f"[stderr] {e}\n" for e in err) + f"[exit code {code}]\n")
    return code, out, err


for i, face in enumerate(example_faces(4)):
    write_image(Path(folder.name, f"faces/{i}.png"), face)
assert run("testset blind faces --out set --size 128 --ranges severe")[0] == DONE
table = ("evaluate --pred Input=set/lq Truth=set/gt --gt set/gt --metrics psnr ssim niqe "
         "--out table.json")
code, out, err = run(table)
assert code == DONE and "| Truth | ∞ | 1.0000 ± 0.0000 | – |" in out and len(err) == 1

# %% [markdown]
# Then one result is deleted and another is broken. The rest is measured, and the exit code tells. The table of the first run is replaced only with `--force`.

# %%
Path(folder.name, "set/lq/0.png").unlink()
Path(folder.name, "set/lq/1.png").write_bytes(b"")
assert run(table, show=False)[2] == ["gfpgan-edu: table.json: exists; --force replaces it"]
code, out, err = run(f"{table} --force", show=False)
print(*err, sep="\n")
assert code == SOME_FAILED and "Input: N = 2, 1 failed, 1 missing" in out
for why in ("set/lq/1.png: is empty", "Input: no result for 0"):
    assert any(why in e for e in err)

# %% [markdown]
# ## Put together: a folder in which everything goes wrong
#
# Now the test that matters. The folder `holiday` holds one good photo, damaged as old photos are, and four traps: a letter that somebody named `.jpg`, half of a download, an empty file, and a photo without a face.

# %%
holiday = Path(folder.name, "holiday")
params = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
damaged = degrade(astronaut(), params)
write_image(holiday / "astronaut.png", damaged)
write_image(holiday / "half.jpg", damaged)
(holiday / "half.jpg").write_bytes((holiday / "half.jpg").read_bytes()[:20_000])
(holiday / "letter.jpg").write_text("Dear Eileen, thank you for the photos.")
(holiday / "empty.png").touch()
write_image(holiday / "suit.jpg", astronaut()[320:])
before = {p.name: p.read_bytes() for p in holiday.iterdir()}

# %%
code, out, err = run("restore holiday --out restored --save-faces faces-of-holiday")
assert code == SOME_FAILED
assert out.startswith("1 of 5 restored into restored: 1 without a face, 3 failed\n")
reasons = {"empty.png": "is empty", "half.jpg": "truncated", "letter.jpg": "not a picture",
           "suit.jpg": "no face found"}
for name, why in reasons.items():
    lines = [e for e in err if e.startswith("gfpgan-edu: holiday") and name in e and why in e]
    assert len(lines) == 1, name
# the originals, byte for byte
assert {p.name: p.read_bytes() for p in holiday.iterdir()} == before
assert [p.name for p in Path(folder.name, "restored").iterdir()] == ["astronaut.png"]
faces = Path(folder.name, "faces-of-holiday")
kept = sorted(p.name for p in faces.iterdir())
assert kept == ["astronaut.png-1-after.png", "astronaut.png-1-before.png"]

# %%
#| label: fig-cli-result
#| fig-cap: "The one good photo of the folder, before and after the command (a part of it), and the pair of faces that --save-faces keeps."
#| fig-alt: "Two portraits, noisy, the right one with a cleaned face; then the face alone, noisy and cleaned."
part = lambda p: read_image(p)[10:200:2, 125:325:2]
pair = [read_image(faces / f"astronaut.png-1-{which}.png") for which in ("before", "after")]
parts = [part(holiday / "astronaut.png"), part(Path(folder.name, "restored", "astronaut.png"))]
show([*parts, *pair], ["the photo", "restored", "face before", "after"], height=1.7);

# %% [markdown]
# Every trap has its line, the good photo of @fig-cli-result is done, and the exit code is 1. Nothing partial lies about, neither from the traps nor from the good photo. If the power fails in the middle of a folder, what lies in `restored` can be trusted, and the same command goes on.
#
# So a second run finds the good photo done. The other half of the download has come meanwhile, and a program asks for JSON.

# %%
write_image(holiday / "half.jpg", damaged)
code, out, err = run("restore holiday --out restored --json", show=False)
*records, summary = map(json.loads, out.splitlines())
for r in records:
    print({k: r[k] for k in ("photo", "status", "reason")})
print(summary)
status = {r["photo"]: r["status"] for r in records}
assert status["holiday/astronaut.png"] == "done_before"
assert summary["done"] == summary["done_before"] == 1
assert code == summary["exit_code"] == SOME_FAILED

# %% [markdown]
# `degrade` makes such damage for others. Run twice with one seed into two folders, it gives the same bytes; the draw in the JSON line gives them again through the function of @sec-degradation.

# %%
for out_folder in ("worn", "worn-again"):
    code, out, err = run(f"degrade faces --out {out_folder} --ranges severe --seed 5 --json",
                         show=False)
worn, again = Path(folder.name, "worn"), Path(folder.name, "worn-again")
same = [(worn / p.name).read_bytes() == p.read_bytes() for p in again.iterdir()]
record = json.loads(out.splitlines()[0])
params = DegradationParams.from_json(json.dumps(record["params"]))
repeated = degrade(read_image(Path(folder.name, record["photo"])), params)
assert code == DONE and same == [True] * 4
assert (repeated == read_image(Path(folder.name, record["result"]))).all()
print(f"{record['photo']}: blur of {params.sigma_x:.1f} px, {params.r:.1f} times fewer pixels, "
      f"noise of {params.delta:.0f} grey levels, JPEG {params.q}")

# %% [markdown]
# ## Hostile cases
#
# The next cells set traps of all kinds and note what comes of each: the exit code, how many results there are, and a line on stderr; no unfinished file may be left. Some traps cannot be set by everybody (nothing is forbidden to the superuser, and nobody fills a disk for a test), so the system call that would fail is replaced by one that does. Each trap stands beside one good picture, a face without a background, which `--aligned` restores in milliseconds.

# %%
rows, good = [], example_faces(1)[0]


# %%
def trap(name, setting=None, words="in --out out", code=SOME_FAILED, results=1, says="",
         during=nullcontext()):
    """Put one good face into `in`, set the trap, restore, and note what came of it.

    Checked are the exit code, the number of results, a line that must be there, and that nothing
    unfinished is left.
    """
    place = Path(folder.name, name.replace(" ", "-"))
    write_image(place / "in/good.png", good)
    os.chdir(place)
    try:
        if setting:
            setting()
        with during:
            got, _, err = quietly("restore", *words.split(), "--aligned")
    finally:
        os.chdir(home)
    made = [p for p in (place / "out").rglob("*") if p.is_file()]
    line = next((e.removeprefix("gfpgan-edu: ") for e in err if says and says in e), "")
    assert got == code and len(made) == results, (name, got, made, err)
    assert bool(line) == bool(says) and not any("Traceback" in e for e in err), (name, got, err)
    assert not [p for p in place.rglob("*") if p.suffix == ".part"]
    shown = line.replace("|", "/")[:64] + "…" * (len(line) > 64) if line else "–"
    rows.append(f"| {name} | {got} | {results} | {shown} |")


# %%
trap("an empty file", lambda: Path("in/x.png").touch(), says="is empty")
trap("a text named png", lambda: Path("in/x.png").write_text("Dear Eileen"), says="not a picture")
trap("blanks and letters of many scripts in a name",
     lambda: shutil.copy("in/good.png", "in/ein Gesicht 顔 ☺.png"), code=DONE, results=2)
trap("a line break and an escape in a name",
     lambda: Path("in/two\nlines\x1b[31m.png").touch(), says="two lines\\x1b[31m.png")
trap("one stem and two suffixes",
     lambda: write_image("in/good.jpg", good), code=DONE, results=2)
trap("two photos of one name", lambda: write_image("in/sub/good.png", good),
     "in in/sub --out out", NOTHING_DONE, 0, "name of that of")
trap("a link to itself", lambda: Path("in/x.png").symlink_to("x.png"), says="symbolic links")
trap("a link to nothing", lambda: Path("in/x.png").symlink_to("gone.png"), says="no such file")
trap("a link to the folder above",
     lambda: Path("in/up").symlink_to(".."), "in --out out --recursive", DONE)
trap("results below the originals, run again",
     lambda: write_image("in/out/good.png", good), "in --out in/out --recursive", DONE, 0)
trap("results among the originals", None, "in --out in", NOTHING_DONE, 0, "overwrite the originals")
if hasattr(os, "mkfifo"):
    trap("a pipe that nobody writes to", lambda: os.mkfifo("in/x.png"), says="is a pipe")


# %%
def stubborn(real, name, error):
    "A system call that works but for one name."
    def call(path, *args, **kwargs):
        if name in str(path):
            raise error
        return real(path, *args, **kwargs)
    return call


# %%
def interrupted_at(n):
    "A restorer that is interrupted at the n-th photo."
    calls, real = [], photos.restore

    def restore(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            raise KeyboardInterrupt
        return real(*args, **kwargs)
    return restore


locked = PermissionError(errno.EACCES, "Permission denied", "in/closed")
no_room = OSError(errno.ENOSPC, "No space left on device")
more = lambda: write_image("in/late.png", good)
trap("a locked subfolder",
     lambda: write_image("in/closed/x.png", good), "in --out out --recursive",
     says="in/closed: permission denied",
     during=mock.patch("os.scandir", stubborn(os.scandir, "closed", locked)))
trap("a folder that may not be written", None, code=NOTHING_DONE, results=0,
     says="permission denied", during=mock.patch("tempfile.TemporaryFile", side_effect=locked))
trap("a full disk", more, code=NOTHING_DONE, results=0, says="goes on when there is room",
     during=mock.patch.object(Image.Image, "save", side_effect=no_room))
trap("Ctrl-C in the second photo", more, code=INTERRUPTED, says="interrupted",
     during=mock.patch.object(photos, "restore", interrupted_at(2)))


# %%
class Evil:
    "Its pickle is a command."

    def __reduce__(self):
        return os.system, ("touch was-run",)


# %%
def with_nan(net):
    next(net.parameters()).data[0] = float("nan")
    return net


def store(content):
    "Bytes as w.safetensors, all else as w.pth."
    if isinstance(content, bytes):
        Path("w.safetensors").write_bytes(content)
    else:
        torch.save(content, "w.pth")


whole = weights.bundled_path().read_bytes()
no_numbers = weights.to_official(with_nan(weights.load_weights()))
bad_weights = {
    "weights with a command in them": Evil(),
    "half of a weights file": whole[:len(whole) // 2],
    "weights that claim a header of 10 GB": (10**10).to_bytes(8, "little") + b"{}",
    "weights of another network": {"params_ema": {"a": torch.zeros(1)}},
    "weights that are not numbers": {"params_ema": no_numbers}}
for name, content in bad_weights.items():
    file = "w.safetensors" if isinstance(content, bytes) else "w.pth"
    trap(name, lambda: store(content), f"in --out out --weights {file}", NOTHING_DONE, 0, file)
# the command in the weights was not run
assert not list(Path(folder.name).rglob("was-run"))

# %%
#| label: tbl-cli-traps
#| tbl-cap: "Traps, each beside one good picture, and what came of them."
Markdown("| trap | exit code | results | line on stderr |\n|---|---|---|---|\n" + "\n".join(rows))

# %% [markdown]
# In @tbl-cli-traps a bad photo costs that photo. A bad place or bad weights cost the run, but before the first photo is restored. The tests of the package add a folder of 10,000 files with a hundred broken ones among them: 9,900 results, 100 lines, a summary of two, and memory that grows by less than 100 MB.
#
# ## What the doctor says
#
# The output of `doctor` is that of the machine on which this page was made.

# %% tags=["volatile"]
with mock.patch.dict(os.environ, GFPGAN_EDU_CACHE="cache"):
    code, out, err = run("doctor")
assert code == DONE and err == [] and "missing" not in out

# %% [markdown]
# Each look begins with what it is for, and advice is given only where something is wrong:

# %%
assert judged("eyes", True, "sharp", "wear glasses") == Finding("eyes", "ok", "sharp")
dim = Finding("eyes", "warn", "dim", "wear glasses")
assert judged("eyes", False, "dim", "wear glasses", "warn") == dim
looks = look_at_packages, look_at_libraries, look_at_devices, look_at_weights, look_at_a_photo
with mock.patch.dict(os.environ, GFPGAN_EDU_CACHE=folder.name):
    first = [next(look()).check for look in looks]
stem = Path(next(iter(bundled.SHA256))).stem
assert first == ["gfpgan_edu", "import torch", "cpu", stem, "a photo"]

# %% [markdown]
# A doctor must also find the illness. Here the sum of the bundled weights is another one than the file's, and OpenCV lacks its library.

# %%
other_sum = mock.patch.dict(bundled.SHA256, {"faces64.safetensors": "0" * 64})
no_library = ImportError("libGL.so.1: cannot open shared object file")
imports = mock.patch("__main__.import_module", side_effect=no_library)
with other_sum, imports, mock.patch.dict(os.environ, GFPGAN_EDU_CACHE="cache"):
    code, out, err = run("doctor", show=False)
ill = [line for line in out.splitlines() if line.startswith("missing")]
here, checks = str(weights.bundled_path().parent), [line.split()[1] for line in ill]
print(*(line.replace(here, "…") for line in ill), f"[exit code {code}]", sep="\n")
assert code == NOTHING_DONE and checks == ["import"] * 3 + ["faces64"] and "libgl1" in ill[2]

# %% [markdown]
# The last check: weights of the package as an official file, and back. Every number must be the same.

# %%
code, out, err = run("weights convert bundled official.pth")
family = "bilinear" if weights.load_weights().config.resample == "bilinear" else "v1"
words = f"weights convert official.pth ours.safetensors --family {family}"
assert code == DONE and run(words, show=False)[0] == DONE
ours = weights.load_weights().state_dict()
back = weights.load(Path(folder.name, "ours.safetensors")).state_dict()
assert ours.keys() == back.keys() and all((ours[k] == back[k]).all() for k in ours)
assert run("weights convert bundled official.pth")[0] == NOTHING_DONE       # it is there
code, out, err = run("weights list")
assert code == DONE
assert all(name in out for name in ("bundled", "v1.2", "v1.3", "v1.4", "non-commercial"))
folder.cleanup()

# %% [markdown]
# ## Paper, official code, ours
#
# | | paper | official code | ours | why |
# |---|---|---|---|---|
# | how it is called | – | a script in the repository | an installed command with sub-commands | works from any folder |
# | input | – | a file, or every file of a folder | files and folders, the pictures by suffix, subfolders with `--recursive` | a folder may hold other files |
# | a file that is not a picture | – | Python error, the rest is not done | one line, the rest is done, exit code 1 | batch runs over night |
# | results | – | four folders: cut-outs, restored cut-outs, comparisons, photos | the photos under their own names; faces with `--save-faces` | results can be compared file by file |
# | results that are there | – | replaced | kept and counted as done; replaced with `--force` | runs can be broken off |
# | original and result | – | may be the same folder | refused | originals are never touched |
# | blending with the input | – | `--weight`, which its GFP-GAN networks do not use | `--fidelity` | see @sec-photos |
# | for other programs | – | – | `--json`, exit codes | no prose to be read by machines |
# | weights | – | downloaded into the working directory's tree | into the user's cache, SHA-256 checked | found again from any folder |
#
# : Deviations in the command line {#tbl-cli-deviations}
#
# ::: {.callout-warning}
# ## What users trip over
# - **Nothing written, exit code 2, "no face found".** That is on purpose: a copy of the input would look like a success.
# - **Other weights, the same result.** The photo was done before, with the old weights. Say `--force`, or name another folder.
# - **"gfpgan-edu: command not found".** The environment in which the package was installed is not active.
# - **"libGL.so.1: cannot open shared object file".** A server without graphics libraries; `gfpgan-edu doctor` says what to install.
# :::
#
# ## Summary
#
# - Exit codes are an interface: 0, 1, 2, 130 and 141 tell a script all it needs; `--json` tells a program the rest.
# - One line for each failure, on stderr, with file and reason; what cannot be printed is escaped, bad usage included.
# - A result that is there is done. With whole files only, that makes every run resumable.
# - A command is a dataclass with a `run` method; parser, help and completion follow from it, without PyTorch.
# - Traps, set on purpose and run as a user would, are the tests that count. `doctor` is the same for an installation.
#
# ## Exercises
#
# 1. **Compute.** A folder of 800 photos holds 3 that are damaged. What does `gfpgan-edu restore … && next-step` do? Write the shell line that goes on for the codes 0 and 1 only.
# 2. **Modify.** Let a photo be done again where the original is newer than the result. What becomes of a folder that is copied, so that all files get new dates? And of an original that is replaced by an older file?
# 3. **Break.** Import `gfpgan_edu.photos` and then `torch` at the top of the module. Which check turns red for which of the two? Then give `os.walk` in `photos_in` the argument `followlinks=True`: which trap turns red, and why does the walk end all the same?
#
# Worked solutions: [nbs/solutions/24_cli.ipynb](solutions/24_cli.ipynb).
#
# ## References
#
# The method that the command runs is GFP-GAN [@wang2021gfpgan].

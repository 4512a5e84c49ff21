# %% [markdown]
# # The command line {#sec-cli}

# %%
#| default_exp cli

# %%
#| export
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

# %%
#| export
DONE, SOME_FAILED, NOTHING_DONE = 0, 1, 2          # exit codes
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def photos_in(path):
    "The picture files of a folder (by suffix, sorted, not its subfolders), or the one file named."
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def complain(message):
    "One line on stderr, whatever line breaks a file name or a library put into the message."
    print("gfpgan-edu: " + " ".join(str(message).split()), file=sys.stderr)


# %%
#| export
@dataclass
class Restore:
    """Restore the faces in a photo or in all photos of a folder.

    Example: gfpgan-edu restore holiday.jpg --out restored
    """

    photo: Annotated[Path, tyro.conf.Positional]
    "A picture file, or a folder of them."
    out: Path
    "Folder for the results, made if missing; names stay the same, originals are never touched."
    weights: str = "bundled"
    "bundled, v1, v1.2, v1.3, v1.4 (downloaded once), or a .safetensors or .pth file."

    def run(self):
        paths = photos_in(self.photo)
        if not paths:
            complain(f"{self.photo}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
            return NOTHING_DONE
        from tqdm import tqdm

        from gfpgan_edu.photos import PhotoError, read_image, restore, write_image
        from gfpgan_edu.weights import WeightsError, load_weights

        try:
            net = load_weights(self.weights)
        except WeightsError as e:
            complain(e)
            return NOTHING_DONE
        failed = 0
        for path in tqdm(paths, unit="photo", disable=len(paths) < 2 or None):
            try:
                target = self.out / path.name
                if target.resolve() == path.resolve():
                    raise PhotoError(f"{path}: the result would overwrite the original; choose another --out")
                write_image(target, restore(read_image(path), net).image)
            except PhotoError as e:
                failed += 1
                complain(e if str(path) in str(e) else f"{path}: {str(e).removeprefix('image: ')}")
        done = len(paths) - failed
        print(f"{done} of {len(paths)} restored into {self.out}")
        return DONE if not failed else SOME_FAILED if done else NOTHING_DONE


# %%
#| export
@dataclass
class Weights:
    """List, download or look into weights.

    Example: gfpgan-edu weights fetch v1.4
    """

    action: Annotated[Literal["list", "fetch", "info"], tyro.conf.Positional]
    "list the known names, fetch one into the cache, or show what a .safetensors file holds."
    what: Annotated[str, tyro.conf.Positional] = ""
    "A name (fetch) or a file (info)."

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
                print(w.download(self.what))
            else:
                for k, v in w.read_header(w.bundled_path() if self.what in ("", "bundled") else self.what).items():
                    print(f"{k}: {v}")
        except w.WeightsError as e:
            complain(e)
            return NOTHING_DONE
        return DONE


# %%
#| export
Command = Union[Annotated[Restore, tyro.conf.subcommand("restore")], Annotated[Weights, tyro.conf.subcommand("weights")]]


def main(args=None):
    "Entry point of the command `gfpgan-edu`; exits with 0 all done, 1 some files failed, 2 nothing done or bad usage."
    command = tyro.cli(Command, prog="gfpgan-edu", description="GFP-GAN: restore faces in photos.", args=args)
    sys.exit(command.run())

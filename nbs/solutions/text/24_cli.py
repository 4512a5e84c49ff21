# %% [markdown]
# # Solutions: the command line {#sec-solutions-cli .unnumbered}
#
# The exercises are those of @sec-cli.

# %%
import inspect
import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from gfpgan_edu import cli
from gfpgan_edu.cli import SOME_FAILED, Account, OnPictures, photos_in
from gfpgan_edu.examples import example_faces
from gfpgan_edu.pictures import write_image

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## 1. Compute: eight hundred photos, three damaged
#
# *What does `gfpgan-edu restore … && next-step` do? Write the shell line that goes on for the codes 0 and 1 only.* Some failed and the others are done, so the code is 1, which is false to a shell: the next step is not taken. The line that goes on for 0 and 1 keeps the code before anything else overwrites it.

# %%
account = Account(800, Path("restored"))
account.counts.update(done=797, failed=3)
with redirect_stdout(io.StringIO()) as said:
    code = account.end()
print(said.getvalue(), end="")
assert code == SOME_FAILED


def shell(line):
    r = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    return r.stdout.strip()


LINE = 'gfpgan-edu restore in --out out; code=$?; [ $code -le 1 ] && echo "next step after $code"'
taken = {}
for code in (0, 1, 2, 130, 141):
    stub = f"gfpgan-edu() {{ return {code}; }}; "       # what the shell sees of the command
    usual = shell(stub + "gfpgan-edu restore in --out out && echo next step")
    ours = shell(stub + LINE)
    taken[code] = usual, ours
    print(f"{code:3}: with && {usual or 'nothing'}; with the line {ours or 'nothing'}")
assert [c for c, (usual, ours) in taken.items() if usual] == [0]
assert [c for c, (usual, ours) in taken.items() if ours] == [0, 1]

# %% [markdown]
# ## 2. Modify: again where the original is newer
#
# *Let a photo be done again where the original is newer than the result. What becomes of a folder that is copied, so that all files get new dates? And of an original that is replaced by an older file?* The rule stands in one line of `each`, where it is decided what counts as done before.

# %%
source = inspect.getsource(OnPictures.each)
assert source.count("target.is_file()") == 1
rule = "target.is_file() and target.stat().st_mtime >= path.stat().st_mtime"


class Newer(OnPictures):
    "The same places, with the rule of dates in `each`."


exec(source.replace("target.is_file()", rule), dict(vars(cli), OnPictures=Newer))


def done_again(OnPictures):
    """How many of two pictures are worked on in each of four runs after the first.

    In a second run, after one got a newer date, after a copy with new dates, after both were
    replaced by older files.
    """
    place, counts, worked = Path(tempfile.mkdtemp(dir=folder)), [], []
    for i, face in enumerate(example_faces(2, 16)):
        write_image(place / f"in/{i}.png", face)
        os.utime(place / f"in/{i}.png", (1000, 1000))

    def work(path, target):
        worked.append(path)
        write_image(target, example_faces(1, 16)[0])
        return {}

    def run_again():
        worked.clear()
        job = OnPictures((place / "in",), place / "out")
        with redirect_stdout(io.StringIO()):
            job.each("copied", lambda: work)
        counts.append(len(worked))

    run_again()
    run_again()
    for seconds, names in (4e9, ["0.png"]), (4e9, ["0.png", "1.png"]), (10, ["0.png", "1.png"]):
        for name in names:
            os.utime(place / "in" / name, (seconds, seconds))
        run_again()
    return counts[1:]


print("as it is:", done_again(OnPictures), " with dates:", done_again(Newer))
assert done_again(OnPictures) == [0, 0, 0, 0] and done_again(Newer) == [0, 1, 2, 0]

# %% [markdown]
# The four numbers: a second run, one original with a newer date, a copy with new dates, an exchange for older files. A copied folder is done again as a whole, over results that were good, and without `--force`. An exchanged original with an old date, as `cp -p` or a memory card leaves it, is not noticed. A date says when a file was written, not what is in it. A sum of the contents, kept beside the results, would be right and would read every original once more.
#
# ## 3. Break: imports, and links that are followed
#
# *Import `gfpgan_edu.photos` and then `torch` at the top of the module. Which check turns red for which of the two?* The one below "Help at once", for either. It looks at modules that are loaded after the help, and an import at the top is the same as one before.

# %%
TOO_MUCH = {"torch", "torchvision", "numpy", "cv2", "PIL", "facenet_pytorch", "matplotlib"}
loaded = {}
for first in ("gfpgan_edu.cli", "gfpgan_edu.photos", "torch"):
    words = f"import sys, {first}, gfpgan_edu.cli; print(*{{m.split('.')[0] for m in sys.modules}})"
    r = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    loaded[first] = sorted(TOO_MUCH & set(r.stdout.split()))
    print(f"{first:17} loads of what is not allowed:", ", ".join(loaded[first]) or "nothing")
heavy = set(loaded["gfpgan_edu.photos"])
assert not loaded["gfpgan_edu.cli"] and {"numpy", "cv2", "PIL"} <= heavy and "torch" not in heavy
assert "torch" in loaded["torch"]

# %% [markdown]
# `photos` costs NumPy, OpenCV and Pillow, but no PyTorch: its functions import it when they need it, as the commands do.
#
# *Then give `os.walk` in `photos_in` the argument `followlinks=True`: which trap turns red, and why does the walk end all the same?* "A link to the folder above": the folder is found in itself again and again.

# %%
source = inspect.getsource(photos_in)
assert source.count("os.walk(path, ") == 1
following = dict(vars(cli))
exec(source.replace("os.walk(path, ", "os.walk(path, followlinks=True, "), following)
place = folder / "links"
write_image(place / "in/good.png", example_faces(1, 16)[0])
(place / "in/up").symlink_to("..")

# %% tags=["volatile"]
walks = {"photos_in": photos_in, "following": following["photos_in"]}
found = {name: walk(place / "in", True)[0] for name, walk in walks.items()}
deepest = max(p.as_posix().count("up/") for p in found["following"])
print(f"one picture, found {len(found['photos_in'])} time; with links followed "
      f"{len(found['following'])} times, through up to {deepest} links")
good = place / "in/good.png"
assert found["photos_in"] == [good]
assert {p.resolve() for p in found["following"]} == {good.resolve()}
assert len(found["following"]) == deepest + 1 and 8 <= deepest <= 64
temporary.cleanup()

# %% [markdown]
# The system ends the walk, not the program: it refuses a path through too many links (40 on Linux), and what it refuses is no folder to `os.walk`. Each copy would have been restored, under a path of its own. With two such links in a folder there would be $2^{40}$ paths.

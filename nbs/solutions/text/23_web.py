# %% [markdown]
# # Solutions: a local web page {#sec-solutions-web .unnumbered}
#
# The exercises are those of @sec-web.

# %%
import inspect
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from PIL import Image

from gfpgan_edu import web
from gfpgan_edu.examples import astronaut, show
from gfpgan_edu.web import HEADERS, Files, Guard, restore_upload

# %% [markdown]
# ## 1. Compute: how full the folder gets
#
# *Photos of 20 MB arrive every 10 s and are never let go of. How many gigabytes lie in the folder when `sweep` removes as many as come?* What is older than an hour goes, so an hour of uploads stays: $3600/10=360$ photos, 7.2 GB. `launch` sweeps once a minute, so up to six more wait for it: 7.3 GB. Below two hours pass on a clock of our own; each file stands for 20 MB.

# %%
files, held = Files(), []
with patch("gfpgan_edu.web.time.time") as clock:
    for now in range(0, 2 * 3600, 10):
        clock.return_value = now + 0.5
        upload = files.folder / f"{now}.jpg"
        upload.touch()
        os.utime(upload, (now, now))
        if now % 60 == 0:
            files.sweep()
        held.append(len(os.listdir(files.folder)))
files.close()
steady = held[-180:]            # of the last half hour
least, most = min(steady), max(steady)
print(f"after two hours: {least} to {most} photos, {0.02 * least:.1f} to {0.02 * most:.1f} GB")
assert 360 <= least < most <= 366

# %% [markdown]
# To this come the results, three more files for each photo that was restored. A visitor who never leaves is the case that `sweep` is for; for all others `hold` keeps one photo each.
#
# ## 2. Modify: only the face in the middle
#
# *Let the page take a photo of several faces and restore only the one in the middle.* `restore` has the argument already, so it only has to be handed through: one in `restore_upload`, one in `answer`, and a check box in `build` whose value `show` gets. The first is done here on the function itself.

# %%
source = inspect.getsource(restore_upload)
changes = {"max_mb=20)": "max_mb=20, only_center=False)",
           "fidelity=fidelity)": "fidelity=fidelity, only_center=only_center)"}
for old, new in changes.items():
    assert source.count(old) == 1
    source = source.replace(old, new)
ours = dict(vars(web))
exec(source, ours)

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
portrait = cv2.resize(astronaut()[:240, 100:340], (120, 120), interpolation=cv2.INTER_AREA)
# 220 px wide: the left face is nearer to the middle
two = np.concatenate([portrait[:, :100], portrait], 1)
Image.fromarray(two).save(folder / "two.png")
touched = {}
for middle in (False, True):
    restored = ours["restore_upload"](folder / "two.png", only_center=middle)
    change = np.abs(restored.after.pixels.astype(int) - two).mean(2)
    halves = change[:, :100], change[:, 105:]
    touched[middle] = [bool(half.max() > 0) for half in halves]
    left, right = touched[middle]
    done = restored.message.split(" in ")[0]
    print(f"only_center={middle}: {done}; left changed {left}, right changed {right}")
assert touched == {False: [True, True], True: [True, False]}
temporary.cleanup()

# %%
#| fig-alt: "Twice the same picture of two faces side by side; in the second one only the left face is changed."
titles = ["two faces", "the one nearer to the middle restored"]
show([two, restored.after.pixels], titles, height=1.5);


# %% [markdown]
# In `build` the rest is three words: `middle = gr.Checkbox(label="Only the face in the middle")`, its name in the list of inputs, and its value as an argument of `show`. It also joins the list of events, so that the picture follows the box.
#
# ## 3. Break: `no-store`, then `Origin`
#
# *Take `no-store` out of `HEADERS` and look for the photo in the browser's cache.* On a real page: the photo lies among the files of the browser's profile, after the page is closed and after `Files` has removed its own. The rule a browser goes by can be tried here. An answer may be kept unless it says `no-store`; gradio's own header for files invites keeping.

# %%
async def page(scope, receive, send):
    "A page that answers with a photo, which may be kept for a day, and stores what is sent to it."
    if scope["method"] == "POST":
        (inbox.folder / f"{len(list(inbox.folder.iterdir()))}.jpg").write_bytes(bytes(2**20))
    headers = [(b"cache-control", b"max-age=86400")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"the photo"})


async def ask(guard, method="GET", **headers):
    "Status and headers of the page's answer behind a guard."
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await guard({"type": "http", "method": method, "headers": pairs}, None, send)
    return sent[0]["status"], dict(sent[0]["headers"])


def kept(headers):
    return b"no-store" not in headers.get(b"cache-control", b"")


us, inbox = "127.0.0.1:7860", Files()
assert not kept((await ask(Guard(page), host=us))[1])
cached = HEADERS.pop(b"cache-control")
try:
    answer = await ask(Guard(page), host=us)
    print(f"without no-store: {answer[1][b'cache-control'].decode()}")
    assert kept(answer[1])
finally:
    HEADERS[b"cache-control"] = cached

# %% [markdown]
# *Then take out the test of `Origin`, and write the page elsewhere that fills the disk.* That page needs one line of script, in a loop: `fetch("http://127.0.0.1:7860/gradio_api/upload", {method: "POST", mode: "no-cors", body: form})`. The browser sends it, for a form may be posted anywhere, and only hides the answer, which the attacker does not need. Here are ten rounds, with the headers that the browser would add.

# %%
source = inspect.getsource(Guard)
test = ' and headers.get(b"origin", own) == own'
assert source.count(test) == 1
careless = dict(vars(web))
exec(source.replace(test, ""), careless)
stored = {}
strange = dict(host=us, origin="https://evil.example")
for name, guard in (("Guard", Guard(page)), ("without the test", careless["Guard"](page))):
    said = {(await ask(guard, "POST", **strange))[0] for _ in range(10)}
    stored[name] = sum(p.stat().st_size for p in inbox.folder.iterdir()) // 2**20
    print(f"{name}: status {said}, {stored[name]} MB stored")
inbox.close()
assert stored == {"Guard": 0, "without the test": 10}

# %% [markdown]
# The name in `Host` is the right one in this attack, since the browser was told the right address. Only `Origin` says who asks. The cap on uploads does not help either: it is a cap for one file.

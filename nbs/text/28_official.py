# %% [markdown]
# # Paper, official code, ours {#sec-official}
#
# > A copy that says where it differs can be checked; one that claims to be equal must be believed.
#
# **You will build** nothing new. This appendix reads the other chapters and the package, and puts in one place what somebody needs who knows the official code: the names of all weights there and here, four faults that names do not show, one training step there and here, and every deviation that a chapter lists.
# **Needs** @sec-weights and @sec-train-restorer; the tables come from all chapters.
# **Runs in** about 10 s on a laptop CPU.

# %%
import json
import re
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_fail
from IPython.display import Markdown
from torch.testing import assert_close

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import PARTS, to_tensor
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.train_restorer import PRESETS, LossWeights, RestorerTrainer
from gfpgan_edu.weights import from_official, generator_names, load_weights, to_clean, to_official

# %% [markdown]
# ## The key map
#
# A checkpoint is a dictionary from names to tensors. The official code has three generators with two sets of names: `GFPGANv1` and `GFPGANBilinear` share one, `GFPGANv1Clean` has the other. Ours is one class with one set. The map $m$ from our names to theirs has to be a *bijection*: each of our tensors has exactly one counterpart and none of theirs is left over,
#
# $$m: K_{ours}\to K_{official},\qquad m(a)=m(b)\Rightarrow a=b,\qquad m(K_{ours})=K_{official}$$ {#eq-official-map}
#
# $K$ are the sets of keys. `generator_names` states $m$ as pairs. The check has three sources that do not know one another: the pairs, the network itself, and a list of names and shapes that was printed by the official classes (gfpgan 1.3.8) and is kept with the tests.

# %%
printed = json.loads(Path("../tests/data/official_shapes.json").read_text())
families = {"v1": (GFPGANConfig.paper(), printed["equalized"]["c1"]),
            "clean": (GFPGANConfig.clean_v1_4(), printed["clean"]["c1"] | printed["clean"]["c2"])}
maps, shapes, numbers = {}, {}, {}
for name, (config, official) in families.items():
    with torch.device("meta"):
        net = GFPGAN(config)
        own, theirs = net.state_dict(), to_official(net)
    pairs = generator_names(config)
    maps[name], shapes[name] = dict(pairs), {k: (tuple(v.shape)) for k, v in own.items()}
    # no name twice, on either side; nothing left over, on either side
    assert len(pairs) == len(dict(pairs)) == len({b for _, b in pairs})
    assert set(maps[name]) == set(own) and set(maps[name].values()) == set(official)
    # shapes as the official class printed them
    assert {k: list(v.shape) for k, v in theirs.items()} == official
    noise = {k for k in own if re.search(r"\.noise\d+$", k)}
    numbers[name] = sum(v.numel() for k, v in own.items() if k not in noise)
    print(f"{name:5} {config.size} px: {len(pairs)} tensors, {numbers[name]:,} parameters, "
          f"{len(noise)} stored noise maps")

# %%
torch.manual_seed(0)
tiny = GFPGAN(GFPGANConfig.tiny(32))
state = to_official(tiny)
back = from_official(state)
for a, b in zip(tiny.state_dict().values(), back.state_dict().values()):
    assert torch.equal(a, b)                                # there and back: to the bit
# one official tensor changes: ours of that name changes, no other
for ours, theirs in generator_names(tiny.config)[::7]:
    other = from_official(state | {theirs: state[theirs] + 1}).state_dict()
    assert [k for k, v in tiny.state_dict().items() if not torch.equal(v, other[k])] == [ours]

# %% [markdown]
# @tbl-official-keys lists the map by families of names: `{0…6}` counts from the first to the last member, `…` is `stylegan_decoder.`

# %%
#| label: tbl-official-keys
#| tbl-cap: "Names of every tensor of the generator at 512 px, grouped: ours, GFPGANv1 and GFPGANBilinear, GFPGANv1Clean; how many, and the shape of the first in ours (channel multiplier 1)."
groups = {}
for key in maps["v1"]:
    groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=noise)\d+", "#", key), []).append(key)


def span(first, last):
    "Two names as one: a.0.b and a.6.b -> a.{0…6}.b"
    a, b = (name.replace("stylegan_decoder", "…").split(".") for name in (first, last))
    if len(a) != len(b):
        return f"`{'.'.join(a)}` to `{'.'.join(b)}`"
    return "`" + ".".join(x if x == y else f"{{{x}…{y}}}" for x, y in zip(a, b)) + "`"


rows = []
for keys in groups.values():
    itself, shape = {k: k for k in keys}, "×".join(map(str, shapes["v1"][keys[0]]))
    names = [span(m[keys[0]], m[keys[-1]]) for m in (itself, maps["v1"], maps["clean"])]
    rows.append(f"| {' | '.join(names)} | {len(keys)} | {shape} |")
assert span("a.0.b", "a.6.b") == "`a.{0…6}.b`"
assert sum(len(keys) for keys in groups.values()) == len(maps["v1"]) == len(maps["clean"])
Markdown("\n".join(["| ours | v1, bilinear | clean | n | shape |", "|---|---|---|--:|---|", *rows]))

# %% [markdown]
# Three rules explain the names. In the equalised classes a convolution is a `Sequential`, with the weight at position 0 or 1 and the bias inside the activation behind it. The clean mapping counts its activations too, so its layers have every second number. And the first style convolution and RGB layer of StyleGAN2 have names of their own there (`style_conv1`, `to_rgb1`), while ours are number 0 of a list. Discriminators are mapped in @sec-discriminators; the identity network keeps the official names (@sec-identity).

# %%
v1, clean = maps["v1"], maps["clean"]
small = [k for k in v1 if k.startswith("decoder.mapping")]
names = lambda *at: [f"stylegan_decoder.style_mlp.{i}.weight" for i in at]
assert [v1[k] for k in small[:3:2]] == names(1, 2)
assert [clean[k] for k in small[:3:2]] == names(1, 3)
assert v1["decoder.synthesis.convs.1.bias"] == "stylegan_decoder.style_convs.0.activate.bias"
assert len(set(v1.values()) & set(clean.values())) < len(v1)

# %% [markdown]
# ## What names and shapes do not show
#
# A map of names can be whole, every shape can fit, and the pictures can be wrong all the same. Four such faults are reported again and again by people who move weights between programs. Each is made here on purpose, with the bundled restorer in its official form.
#
# - *The wrong class.* `GFPGANv1` and `GFPGANBilinear` share all names and shapes and differ in how they enlarge maps. Nothing in a file tells them apart, so `family` has to be said (@sec-weights).
# - *Blue and red exchanged.* OpenCV reads pictures as BGR; the networks want RGB.
# - *The wrong range.* They want [-1, 1]; many programs hold pictures in [0, 1].
# - *Scale and shift exchanged.* The heads for $\alpha$ and $\beta$ have the same shapes (@eq-cssft).

# %%
torch.set_num_threads(1)
face = cv2.resize(example_faces(1, 128)[0], (64, 64), interpolation=cv2.INTER_AREA)
lq = degrade(face, DegradationParams(sigma_x=1, sigma_y=1, r=2, delta=5, q=70))
net = load_weights("bundled")
x, state = to_tensor(lq), to_official(net)
family, other = ("bilinear", "v1") if net.config.resample == "bilinear" else ("v1", "bilinear")
exchange = {"condition_scale": "condition_shift", "condition_shift": "condition_scale"}
swapped = lambda key: re.sub("condition_scale|condition_shift", lambda m: exchange[m[0]], key)
crossed = {k: state[swapped(k)] for k in state}
assert {k: v.shape for k, v in crossed.items()} == {k: v.shape for k, v in state.items()}
run = lambda state, family, x: from_official(state, family).eval()(x)[0]
with torch.inference_mode():
    right = run(state, family, x)
    # the prior's picture: what the official class would draw
    assert_close(right, net.train()(x)[0], rtol=1e-4, atol=1e-4)
    faults = {"wrong class": run(state, other, x),
              "as BGR": run(state, family, x.flip(1)).flip(1),
              "as [0, 1]": run(state, family, (x + 1) / 2),
              "scale ↔ shift": run(crossed, family, x)}
off = {name: (y - right).square().mean().sqrt().item() for name, y in faults.items()}
print("root mean square change, of a range of 2:",
      ", ".join(f"{name} {v:.2f}" for name, v in off.items()))
assert min(off.values()) > 0.02

# %%
#| label: fig-official-faults
#| fig-cap: "The input, the right result, and four results of weights whose names and shapes are all right."
#| fig-alt: "Six small faces: the damaged input, a restored face, and four that are wrong in colour or in structure."
show([lq, right[0], *(y[0] for y in faults.values())], ["input", "right", *faults], cols=6,
     height=1.3);

# %% [markdown]
# None of the faults of @fig-official-faults raises an error. Some are plain to see, others would pass with somebody who does not know the right picture. So a port is checked in this order, each step being blind to what the next one sees:
#
# 1. the names, as a bijection, and the shapes (the first check of this appendix);
# 2. one tensor after the other: change it there, and see which one changes here (the second);
# 3. the outputs, on one input, to the rounding of the arithmetic (@sec-weights does it against the official classes);
# 4. the gradients, since a network may be right forwards and trained wrongly (`detach`, a mean in the place of a sum);
# 5. some whole training steps, with losses, penalties and the running average (@sec-train-restorer).
#
# The last two need the other program to run beside ours, on the same random numbers. That is the work of the tests marked `peer`.

# %% [markdown]
# ## One training step, there and here
#
# The order in which networks are called decides which weights a loss sees. The left column below was read off the official code while it ran. The right one is observed now: hooks on all networks of a small trainer note who is called during iteration 16, which is one with R1.

# %%
OFFICIAL = """g: lq -> output and pyramid       g
VGG-19: output, gt                features features
d: output (adversarial term)      d
parts: crops of output and gt     left_eye left_eye right_eye right_eye mouth mouth
ArcFace: output, gt               embedder embedder
step of g, then its average       step:g
d: output without gradient, gt    d d
d: gt once more, R1 (every 16)    d
step of d                         step:d
parts: output and gt, three times left_eye step:left_eye right_eye step:right_eye mouth step:mouth
"""
wanted = [(line[:34].strip(), line[34:].split()) for line in OFFICIAL.splitlines()]


def observed(trainer, batch):
    """Names of the networks in the order of their calls in one iteration.

    And step:NAME for each optimiser's step.
    """
    events, hooks = [], []
    for name, net in (trainer.nets | trainer.frozen).items():
        note = lambda m, a, o, name=name: events.append(name)
        hooks.append(net.register_forward_hook(note))
    for name, optimizer in trainer.optimizers.items():
        note = lambda *a, name=name: events.append(f"step:{name}")
        hooks.append(optimizer.register_step_post_hook(note))
    trainer.iteration(batch)
    for h in hooks:
        h.remove()
    return events


# %%
folder = Path(tempfile.mkdtemp())
for i, face in enumerate(example_faces(4, 64)):
    cv2.imwrite(str(folder / f"{i}.png"), face[..., ::-1])
config = PRESETS["tiny"]()
config = replace(config, model=GFPGANConfig.tiny(64), loss=LossWeights(style=50.0),
                 features="random", embedder="random",
                 run=replace(config.run, batch=2, channels_last=False))
trainer = RestorerTrainer(config, folder, device="cpu")
batch = trainer.place(next(iter(trainer.loader())))
trainer.it = 16
events = observed(trainer, batch)
flat = [e for _, names in wanted for e in names]
assert events == flat, list(zip(events, flat))
trainer.it = 17
without = [e for what, names in wanted if "R1" not in what for e in names]
assert observed(trainer, batch) == without                   # without R1: one call less
for what, names in wanted:
    print(f"{what:38} {' '.join(names)}")

# %%
#| label: fig-official-step
#| fig-cap: "The calls of iteration 16, from left to right, as observed in our trainer; a bar ends a player's turn."
#| fig-alt: "A chart with seven rows of networks and a dot for each call; five vertical bars mark the steps of the optimisers, the first after the turn of the generator."
lanes = ["g", "features", "embedder", "d", *PARTS]
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
for i, e in enumerate(events):
    if e.startswith("step:"):
        ax.axvline(i, color="#D55E00", lw=1.2)
        ax.plot(i, lanes.index(e[5:]), "s", color="#D55E00")
    else:
        ax.plot(i, lanes.index(e), "o", color="#0072B2")
ax.set_yticks(range(len(lanes)), lanes), ax.invert_yaxis()
ax.set_xlabel("call"), ax.grid(axis="y", lw=0.4);

# %% [markdown]
# In @fig-official-step dots are calls, squares are optimiser steps. Where the official code calls a network twice on two small batches and ours once on both, the row of the table says so. The generator runs once, at the far left, before its own update; the judges that follow see the picture of the *old* generator, there as here. @tbl-official-step has the details that an order of calls does not show.
#
# | moment | official code | ours | same result? |
# |---|---|---|---|
# | before | learning rates, from the 2nd iteration on | the rate as a function of the iteration | yes |
# | forward of $G$ | fresh noise for each layer, drawn in order | the same | yes, from the same generator of numbers |
# | pyramid weight | 1, then 1e-12 after 50,000 | the same | yes |
# | pyramid of the truth | halved again and again, bilinear | the same | yes |
# | crops | 80, 80, 120 px at 512, multiplied by an integer ratio | in proportion | yes at 512; below, the official crops are empty |
# | step of $G$ | no clipping, one precision | the same; half precision can be chosen | yes |
# | average | parameters, decay $0.5^{32/10000}$ | half-life in pictures | yes at batch 12 |
# | $D$ | fake first, then real | real first, then fake | yes: two passes, one sum |
# | R1 | on the batch itself, factor 16 × 5 | on a copy | yes |
# | parts | fake and real in two passes; three backward passes, then three steps | both crops in one pass; a step after each | yes: no layer of theirs looks across the batch, and they share nothing |
# | several GPUs | each loss a mean on its GPU, gradients averaged by DDP | gradients averaged once a turn | yes |
#
# : One step, moment by moment {#tbl-official-step}
#
# "Yes" is not an opinion: the tests replay five official iterations in double precision (@sec-train-restorer), and `pytest -m peer` runs both trainers side by side.

# %% [markdown]
# ## Every deviation of the book
#
# Each chapter ends with a table "Paper, official code, ours". The next cell collects them from the notebooks as they are now. Its printed fingerprint changes with any word of any of these tables, so that a page that has fallen behind is found when the chapters are run.

# %%
HEADING = "## Paper, official code, ours"


def split_row(line):
    return [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def deviations(path):
    """Rows (what, paper, official, ours, why) of a chapter's table.

    A chapter without the paper's column gets a dash. A row that does not fit is a ValueError.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    rest = next((s.split(HEADING, 1)[1] for s in cells if HEADING in s), "")
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [split_row(line) for line in lines] or [[], []]
    for row in rows:
        if len(row) != len(head) or len(row) not in (4, 5):
            raise ValueError(f"{path.name}: {len(head)} columns, but a row of {len(row)}: {row}")
    return [row if len(row) == 5 else [row[0], "–", *row[1:]] for row in rows]


# %%
planted = folder / "x.ipynb"
page = ["# T\n", "\n", HEADING + "\n", "\n",
        "| | official code | ours | why |\n", "|---|---|---|---|\n",
        "| a \\| b | $x$ | y | z |\n", "\n", "## Next\n", "| no | no |\n"]
planted.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": page}]}))
assert deviations(planted) == [["a \\| b", "–", "$x$", "y", "z"]]
planted.write_text(planted.read_text().replace("| y | z |", "| y |"))
try:
    deviations(planted)
    raise AssertionError("a short row was not noticed")
except ValueError as e:
    assert "a row of 3" in str(e)


def section_name(path):
    "The name that other chapters call this one by."
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return re.search(r"^# .*\{#(sec-[\w-]+)", "".join(first["source"]), re.M)[1]


pages = [p for p in sorted(Path(".").glob("[0-9][0-9]_*.ipynb")) if not p.stem.endswith("official")]
found = {p: deviations(p) for p in pages}
label = {p: section_name(p) for p in pages}
everything = [(label[p], row) for p, rows in found.items() for row in rows]
fingerprint = zlib.crc32(json.dumps(everything).encode())
print(f"{len(everything)} deviations in {sum(map(bool, found.values()))} of {len(pages)} chapters, "
      f"fingerprint {fingerprint:08x}")
assert len(everything) > 200
assert all(found[p] for p in pages if re.match(r"0[2-9]|1[0-9]", p.stem))

# %%
#| label: tbl-official-all
#| tbl-cap: "Every deviation that a chapter lists, in the chapters' words."
lines = ["| chapter | what | paper | official code | ours | why |", "|---|---|---|---|---|---|"]
for p, rows in found.items():
    for k, row in enumerate(rows):
        chapter = f"@{label[p]}" if k == 0 else ""
        lines.append(f"| {chapter} | {' | '.join(row)} |")
Markdown("\n".join(lines))

# %% [markdown]
# @tbl-official-all is long, and that is the point of it. Most rows are silent places of the paper, where the official code decides; the next most are repairs at sizes other than 512 px; a few are choices of ours, such as the detector that needs no download.

# %%
nothing = ("–", "", "not stated", "not told", "not named", "not described")
silent = sum(row[1] in nothing or row[1].startswith("not ") for _, row in everything)
alike = r"\bas official|the same|as in the paper|as each says"
same = sum(bool(re.search(alike, row[3])) for _, row in everything)
print(f"the paper says nothing: {silent / len(everything):.0%}; "
      f"ours as the official code or the paper: {same / len(everything):.0%}")
assert silent > len(everything) / 3 and same < silent

# %% [markdown]
# ## Where the paper's parts are
#
# | paper | what it shows | here |
# |---|---|---|
# | Eq. 1, 2 | U-Net, latent codes | @eq-unet, @eq-latent |
# | Eq. 3, 4 | modulation, channel split | @eq-sft, @eq-cssft |
# | Eq. 5 to 9 | the terms of the loss and their sum | @eq-rec, @eq-adv, @eq-comp, @eq-id, @eq-total |
# | Eq. 10 | degradation | @eq-degradation |
# | Fig. 1 | GFP-GAN beside other methods on photos | @fig-inversion-pictures, @fig-evaluation-baselines |
# | Fig. 2 | the method | @fig-restoration-map, with real tensors @fig-gfpgan-flow |
# | Fig. 3, Table 1 | blind restoration of CelebA-HQ | @fig-evaluation-bundled-faces, @tbl-evaluation-bundled-celeba |
# | Fig. 4, Table 2 | four times super-resolution | @fig-evaluation-bundled-sr, numbers in `figures/bundled/scores.json` |
# | Fig. 5, Table 3 | real photos | @fig-photos-real, @fig-photos-colour; twelve faces are too few for a Fréchet distance, the command stands in @sec-evaluation |
# | Fig. 6, 7, Table 4 | ablations | @fig-evaluation-fig6, @fig-evaluation-fig7, @tbl-evaluation-table4 |
# | Fig. 8, 9 | dark skin, limits | @fig-limits-alike, @fig-limits-heavy, @fig-limits-pose |
#
# : The paper's equations, figures and tables, and their counterparts {#tbl-official-where}
#
# The counterparts in @tbl-official-where are runs of this book, on the faces and at the sizes that they name. Their numbers stand for themselves and not beside the paper's.

# %% [markdown]
# ::: {.callout-warning}
# ## What users trip over
# - *"The converted weights draw red nonsense."* The official conversion script maps the bilinear class to the clean one. It runs on v1 too, without a word, but v1 enlarges maps by another filter, which has no clean form. Ours refuses it.
# - *"Can I go on training from v1.4?"* The clean files were converted from a bilinear model whose training code was not published. Their scales are baked in, so they learn at other rates. Here one class has both forms, and `to_clean` is the last step.
# - *"Missing key(s) in state_dict."* The weights lie one level deeper, under `params_ema` (the running average, which is wanted) or `params`.
# - *At 256 px the official training loses its part discriminators*: their crops have no pixels, because a ratio is rounded to 0 (@tbl-official-step).
# - *A share of the U-Net's own picture* (`prior_share`) has no place in an official file; what is written there shows the prior's picture alone.
# :::

# %%
v1 = GFPGAN(GFPGANConfig.tiny(32).replace(resample="fir"))
test_fail(lambda: to_clean(v1), exc=ValueError, contains="bilinear")      # refused, not nonsense
wrapped = {"params": {k: v + 1 for k, v in state.items()}, "params_ema": state}
once, again = (from_official(s, family).state_dict() for s in (wrapped, state))
assert all(torch.equal(a, b) for a, b in zip(once.values(), again.values()))

# %% [markdown]
# ## Summary
#
# - One class of ours stands for three official ones; the map of names is a bijection, checked against what those classes print (@eq-official-map).
# - Names and shapes can be right and the pictures wrong; outputs, gradients and whole steps are checked one after the other.
# - A training step calls the same networks in the same order as the official one.
# - All deviations stand in the chapters, and are collected here by a cell.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* Which tensors of @tbl-official-keys change their shape on the way, and why did the official code want it so?
# 2. *Modify.* Write the map for a prior alone, from `prior_names`, and check that it is the part of the generator's map behind `decoder.`
# 3. *Break.* Let two pairs of `generator_names` point to the same official key. Which assertion above turns red first?
#
# Worked solutions: [nbs/solutions/28_official.ipynb](solutions/28_official.ipynb).

# %% [markdown]
# ## References
#
# The paper is @wang2021gfpgan. Its official code is the package gfpgan 1.3.8 with basicsr 1.4.2 and the configuration `train_gfpgan_v1.yml`; the networks come from @karras2020stylegan2 and @ronneberger2015unet.

# %% [markdown]
# # Solutions: paper, official code, ours {#sec-solutions-official .unnumbered}
#
# The exercises are those of @sec-official.

# %%
import json
from collections import Counter
from pathlib import Path

import torch

from gfpgan_edu import weights
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.weights import generator_names, prior_names, to_official

printed = json.loads(Path("../../tests/data/official_shapes.json").read_text())
official = {"v1": printed["equalized"]["c1"],
            "clean": printed["clean"]["c1"] | printed["clean"]["c2"]}
configs = {"v1": GFPGANConfig.paper(), "clean": GFPGANConfig.clean_v1_4()}
with torch.device("meta"):
    nets = {name: GFPGAN(config) for name, config in configs.items()}

# %% [markdown]
# ## 1. Compute: shapes that change
#
# *Which tensors of @tbl-official-keys change their shape on the way, and why did the official code want it so?* The map gives the pairs, the network and the printed list give the shapes.

# %%
changes = {}
for name, net in nets.items():
    own = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    pairs = {a: tuple(official[name][b]) for a, b in generator_names(configs[name])}
    changes[name] = {a: (own[a], theirs) for a, theirs in pairs.items() if own[a] != theirs}
    kinds = Counter((a.split(".")[-1], len(ours), len(theirs))
                    for a, (ours, theirs) in changes[name].items())
    said = [f"{n} × {kind} with {a} axes here and {b} there" for (kind, a, b), n in kinds.items()]
    print(f"{name}: {len(changes[name])} of {len(own)};", ", ".join(said))
    for kind in dict.fromkeys(k for k, _, _ in kinds):
        key = next(a for a in changes[name] if a.endswith(kind))
        print(f"   {key}: {changes[name][key][0]} here, {changes[name][key][1]} there")
n_convs, n_rgbs = len(nets["v1"].decoder.synthesis.convs), len(nets["v1"].decoder.synthesis.to_rgbs)
assert len(changes["v1"]) == n_convs + 2 * n_rgbs
assert len(changes["clean"]) == 2 * (n_convs + n_rgbs)
for found in changes.values():
    for key, (ours, theirs) in found.items():
        assert key.startswith("decoder.synthesis.")
        assert theirs == ((1, *ours) if key.endswith("weight") else (1, *ours, 1, 1))


# %% [markdown]
# All of them are in StyleGAN2, and no number moves: axes of length 1 are added. A modulated weight is multiplied by a style for each picture, and `(1, cout, cin, k, k) * (b, 1, cin, 1, 1)` gives the `b` weights at once. A bias with four axes can be added to a map as it is. The equalised convolutions have their bias in the activation, which wants one axis; the clean ones have no such activation, hence fifteen more there.
#
# ## 2. Modify: the map of a prior alone
#
# *Write the map for a prior alone, from `prior_names`, and check that it is the part of the generator's map behind `decoder.`*

# %%
def prior_map(config):
    "Our key -> official key for every tensor of a StyleGAN2 with this config of a generator."
    return dict(prior_names(config.size.bit_length() - 3, config.n_mlp, config.equalized))


for name, config in configs.items():
    pairs, alone = generator_names(config), prior_map(config)
    part = {a: b for a, b in pairs if a.startswith("decoder.")}
    assert {f"decoder.{a}": f"stylegan_decoder.{b}" for a, b in alone.items()} == part
    with torch.device("meta"):
        prior = StyleGAN2(config.size, config.style_dim, config.n_mlp, config.channel_multiplier,
                          config.narrow, resample=config.resample, equalized=config.equalized)
    assert set(alone) == set(prior.state_dict())    # it is whole: nothing of the prior is left over
    print(f"{name}: {len(alone)} of {len(pairs)} tensors; {next(iter(alone.items()))}")


# %% [markdown]
# $\log_2$ of the size less two is the number of blocks; for powers of two `bit_length` is $\log_2$ plus one.
#
# ## 3. Break: two names, one tensor
#
# *Let two pairs of `generator_names` point to the same official key. Which assertion turns red first?* The checks of the chapter, in their order, on a map in which the second tensor has the official name of the first.

# %%
def first_red(pairs, own, theirs):
    "Which check of the chapter is the first to fail on this map, and which would be next."
    names = dict(pairs)
    checks = {"no name twice": len(pairs) == len(names) == len({b for _, b in pairs}),
              "ours, nothing left over": set(names) == set(own),
              "official, nothing left over": set(names.values()) == set(theirs)}
    return [name for name, fine in checks.items() if not fine]


right = generator_names(configs["v1"])
wrong = [right[0], (right[1][0], right[0][1]), *right[2:]]
keys = nets["v1"].state_dict(), official["v1"]
print("the map as it is:", first_red(right, *keys), "| with the fault:", first_red(wrong, *keys))
assert first_red(right, *keys) == []
assert first_red(wrong, *keys) == ["no name twice", "official, nothing left over"]


# %% [markdown]
# Each name of ours occurs once, so a dictionary shows nothing; the number of *different* official names is one too small, and the first assertion says so. The one that follows finds the official tensor that nobody asks for. The shapes would have noticed only where the two differ in shape: in the U-Net two layers of one shape could have been exchanged for each other without any of the three turning red. That is what the last loop of the chapter's second cell is for: it changes one official tensor and looks whether ours of that name follows.
#
# Writing has no such net. `to_official` makes a dictionary, and of two pairs with one name the later one wins:

# %%
def confused(config):
    first, second, *rest = names(config)
    return [first, (second[0], first[1]), *rest]


tiny, names = GFPGAN(GFPGANConfig.tiny(32)), weights.generator_names
try:
    weights.generator_names = confused
    short = to_official(tiny)
finally:
    weights.generator_names = names
print(f"{len(tiny.state_dict())} tensors, {len(short)} written")
assert len(short) == len(tiny.state_dict()) - 1 == len(to_official(tiny)) - 1

# %% [markdown]
# # Solutions: training the restorer {#sec-solutions-train-restorer .unnumbered}
#
# The exercises are those of @sec-train-restorer.

# %%
from dataclasses import replace

import numpy as np
import torch
from fastcore.test import test_fail

from gfpgan_edu.degradation import SEVERE, degrade, sample_params
from gfpgan_edu.engine import Run, ema_decay
from gfpgan_edu.examples import example_faces, show
from gfpgan_edu.faces import component_boxes, template, to_tensor
from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.train_restorer import PRESETS, RestorerTrainer, psnr

torch.set_num_threads(1)

# %% [markdown]
# ## 1. Compute: the half-life in iterations
#
# *After how many iterations has an update lost half of its influence, at batch 12 and in the live run?* The half-life is counted in pictures, so it is `ema_images` divided by the batch.

# %%
live = replace(PRESETS["tiny"]().run, ema_images=60.0)
for name, run in {"paper": Run(), "live run": live}.items():
    half = run.ema_images / run.batch
    print(f"{name:9} batch {run.batch:2}: {half:g} iterations")
    np.testing.assert_allclose(ema_decay(run.batch, run.ema_images) ** half, 0.5)
decay, share, n = ema_decay(live.batch, live.ema_images), 1.0, 0
while share > 0.5 + 1e-12:
    share, n = share * decay, n + 1
assert n == 15

# %% [markdown]
# 312.5 iterations in the paper's run (the decay is 0.998), 15 in the live one. The live run has 140 iterations, so its average has forgotten the start by then, which is why the number was made small.
#
# ## 2. Modify: without judges
#
# *Train the live run with `adversarial`, `component` and `feature_style` at 0, from the same seed. Compare.* In smaller form: 32 px, 40 iterations, three crops held out. Sharpness is the mean difference of neighbouring pixels.

# %%
faces = example_faces(24, 128)
rng = np.random.default_rng(0)
small = [f.reshape(32, 4, 32, 4, 3).mean((1, 3)).round().astype(np.uint8) for f in faces]
y = to_tensor(np.stack(small))
pictures = [((f + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for f in y]
x = to_tensor(np.stack([degrade(f, sample_params(rng, SEVERE.at(32))) for f in pictures]))
boxes = torch.from_numpy(component_boxes(template(32), 32)).expand(len(y), 3, 4)
config = PRESETS["tiny"]()
config = replace(config, model=GFPGANConfig.tiny(32), run=replace(config.run, ema_images=60.0))
no_judges = replace(config.loss, adversarial=0.0, component=0.0, feature_style=0.0)
without = replace(config, loss=no_judges)


def fit(config, cls=RestorerTrainer, iterations=40):
    t = cls(config, list(range(21)), device="cpu")
    for t.it in range(1, iterations + 1):
        i = torch.randint(21, (4,), generator=torch.Generator().manual_seed(t.it))
        t.iteration({"lq": x[i], "gt": y[i], "boxes": boxes[i]})
    with torch.no_grad():
        return t, t.ema(x[21:], noise="fixed")[0].clamp(-1, 1)


# %% tags=["volatile"]
trained = {"all terms": fit(config), "no judges": fit(without)}
sharp = lambda p: (p[..., 1:] - p[..., :-1]).abs().mean().item()
for name, (t, out) in trained.items():
    print(f"{name:12} players {', '.join(t.nets)}: PSNR {psnr(out, y[21:]):.1f} dB, "
          f"sharpness {sharp(out):.2f} (truth {sharp(y[21:]):.2f}, input {sharp(x[21:]):.2f})")
(_, a), (t, b) = trained.values()
assert set(t.nets) == {"g"} and abs(psnr(a, y[21:]) - psnr(b, y[21:])) < 2 and not torch.equal(a, b)

# %%
#| fig-alt: "Four rows of three small faces: inputs, restored with all terms, without judges, truths."
titles = sum(([n] + [""] * 2 for n in ("input", "all terms", "no judges", "truth")), [])
show([*x[21:], *a, *b, *y[21:]], titles, cols=3, height=0.9);


# %% [markdown]
# In a run this short the two are nearly the same: the eye sees no difference, and the numbers hardly one. Neither is sharp yet; PSNR sees the colours settle. The judges of the preset have a weight of 0.01, and they are as untrained as the generator. What they are worth shows after thousands of iterations; the ablations of @sec-evaluation train those.
#
# ## 3. Break: no `detach`
#
# *Remove `.detach()` in `b["out"] = x.detach()`. What turns red first?* The discriminators then push gradients through the restored picture into the generator's graph, which was used up and freed in the generator's own turn.

# %%
class Attached(RestorerTrainer):
    def call(self, net, *args, **kwargs):
        out = super().call(net, *args, **kwargs)
        if net is self.fast["g"]:
            self.attached = out[0]
        return out

    def d_terms(self, b):
        return super().d_terms({**b, "out": self.attached})            # as if it were not detached


# %%
def turns_are_separate(cls):
    "No gradient may reach the picture that the generator left for the judges."
    t = cls(config, list(range(4)), device="cpu")
    batch = {"lq": x[:2], "gt": y[:2], "boxes": boxes[:2]}
    t.g_terms(batch)
    given = []
    note = lambda m, args: given.append(args[0].requires_grad)
    t.nets["d"].register_forward_pre_hook(note)
    t.d_terms(batch)
    assert not any(given), "the judge's turn reaches into the generator"


turns_are_separate(RestorerTrainer)
test_fail(lambda: turns_are_separate(Attached), exc=AssertionError, contains="reaches into")
test_fail(lambda: fit(config, Attached, iterations=1), exc=RuntimeError,
          contains="backward through the graph a second time")

# %% [markdown]
# No assertion of the chapter gets a chance: the first cell that takes a whole iteration, the one that counts the calls of each player's turn, ends in PyTorch's error "Trying to backward through the graph a second time". That is the lucky case. With `retain_graph=True`, which the message recommends, it would run, at twice the cost; only `requires_grad_(False)` on the other players keeps the generator's weights from the judges' gradients.

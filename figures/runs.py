"""What finished training runs leave for the book and the package: curves, pictures, bundled
weights. The runs themselves are made by `gfpgan-edu train`.

python figures/runs.py prior64 --run runs/prior64s
    gfpgan_edu/bundled/prior64.safetensors with its card, figures/prior64.json, figures/prior64.png
python figures/runs.py prior32 --run runs/prior32
    gfpgan_edu/bundled/prior32.safetensors with its card, figures/prior32.json, figures/prior32.png
"""
import argparse, datetime, json, os, pathlib

import cv2, numpy as np, torch, yaml
from PIL import Image

from gfpgan_edu.faces import to_images
from gfpgan_edu.engine import read_checkpoint
from gfpgan_edu.stylegan2 import StyleGAN2
from gfpgan_edu.weights import load_prior, save
from manifest import neat, record

FIGURES = pathlib.Path(__file__).parent
COMMANDS = {
    "prior32": "torchrun --no-python --nproc-per-node 2 gfpgan-edu train prior --preset faces32 "
               "--data DIR --out runs/prior32 --minutes 19",
    "prior64": "python figures/bundled.py prior --data DIR",
}
HISTORY = {
    "prior32": "one run, stopped by the clock; none of it repeated",
    "prior64": "DiffAugment (colour, place, hole) for the first 110,032 pictures, which left the "
               "discriminator close to undecided; none from there on (the checkpoint's config was "
               "changed by hand)",
}
DATA = "FFHQ 00000-04699 and 1,100 faces made by a StyleGAN trained on FFHQ"


def thinned(rows, keys, most=120):
    "At most `most` points of each curve {name: [[images, value], …]}, means of neighbours."
    curves = {}
    for k in keys:
        points = np.array([[r["images"], r[k]] for r in rows if k in r], float)
        if len(points):
            parts = np.array_split(points, min(most, len(points)))
            curves[k] = [[int(p[-1, 0]), float(f"{p[:, 1].mean():.4g}")] for p in parts]
    return curves


def read_run(run):
    """(lines of the log of a run in the folder `run`, what they and its config say of it: config,
    seed, iterations, images, minutes)."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((run / "config.yaml").read_text())
    timed = [r for r in rows if "images_per_second" in r]
    seconds = sum((b["images"] - a["images"]) / b["images_per_second"]
                  for a, b in zip([dict(images=0), *timed], timed))
    return rows, dict(config=config, seed=config["run"]["seed"], iterations=rows[-1]["iteration"],
                      images=rows[-1]["images"], minutes=round(seconds / 60, 1))


def story(name, run, curves):
    "What every result file says about a run in the folder `run`."
    rows, result = read_run(run)
    made = dict(data=DATA, hardware=f"{os.cpu_count()} CPU cores, shared with other work",
                torch=torch.__version__, date=datetime.date.today().isoformat(),
                curves=thinned(rows, curves))
    return rows, dict(command=COMMANDS[name]) | result | made


def write(name, result, picture, figures=FIGURES):
    "figures/NAME.json and .png, and their lines in the manifest."
    (figures / f"{name}.json").write_text(neat(result))
    # a third of the bytes
    few = Image.fromarray(picture).quantize(256, method=Image.Quantize.MEDIANCUT,
                                            dither=Image.Dither.NONE)
    few.save(figures / f"{name}.png", optimize=True)
    if figures == FIGURES:
        command = result["command"]
        if "bundled.py" not in command:
            command += f"; python figures/runs.py {name} --run runs/{name}"
        for suffix in ("json", "png"):
            record(f"{name}.{suffix}", command, result["config"])


def sheets(run, n):
    "n of the run's validation sheets, evenly spread, [(iteration, picture)]."
    paths = sorted(run.glob("valid-*.png"))
    chosen = np.unique(np.linspace(0, len(paths) - 1, n).round().astype(int))
    return [(int(paths[i].stem[6:]), cv2.imread(str(paths[i]))[..., ::-1]) for i in chosen]


def prior(run, name, weights=None, role="", figures=FIGURES):
    """A prior's curves and a sheet: samples over time, the same codes in every row, and truncated
    ones. `weights`: also ship its average there, with its card."""
    keys = "g", "d", "r1", "grad_g", "grad_d", "images_per_second"
    rows, result = story(name, run, keys)
    batch = result["config"]["run"]["batch"]
    state = read_checkpoint(run)[0]                        # also of a run that is still going on
    settings = "size", "style_dim", "n_mlp", "channel_multiplier", "narrow", "resample"
    net = StyleGAN2(**{k: state["config"][k] for k in settings})
    net.load_state_dict(state["ema"])
    result |= dict(history=HISTORY[name], iterations=state["iteration"],
                   images=state["iteration"] * batch)
    if weights:
        save(net, weights, dtype=torch.float16, name=weights.stem,
             licence="CC BY-NC-SA 4.0 (non-commercial), from FFHQ",
             iterations=result["iterations"], images=result["images"])
        net = load_prior(weights)
        result |= dict(file_kb=weights.stat().st_size // 1000)
    z = torch.randn(12, net.config["style_dim"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        centre = net.mean_w(generator=torch.Generator().manual_seed(0))
        cut = to_images(net(z, truncation=0.7, w_mean=centre))
    s, shown = net.config["size"], sheets(run, 4)
    # 12 of the 32 samples, the same codes in every row
    lines = [np.concatenate([sheet[:s], sheet[s:2 * s, :4 * s]], 1) for _, sheet in shown]
    lines.append(np.concatenate(list(cut), 1))
    result |= dict(parameters=sum(p.numel() for p in net.parameters()),
                   rows=[i * batch for i, _ in shown] + ["truncation 0.7"])
    write(name, result, np.concatenate(lines, 0), figures)
    if weights:
        augmentation = ", ".join(result["config"]["augment"]) or "none"
        text = CARD.format(name=name, role=role, augmentation=augmentation, **result)
        weights.with_suffix(".md").write_text(text)


ROLES = {
    "prior32": "The ablations build on it, and the inversions search it: `prior=prior32`.",
    "prior64": "The book takes its example faces from it, because they are nobody's; "
               "the trainer takes it as `prior=bundled`.",
}
# a backslash ends a line of the source, not of the card
CARD = """# {name}: a bundled prior

A StyleGAN2 of this package at {config[size]} px ({parameters:,} parameters, {file_kb} kB in \
fp16), trained from nothing on a CPU. It is small and has seen few pictures: its faces are faces, \
not portraits.
{role}

- **Data**: {data}, {config[size]} px. Flipped; augmentation at the end of the run: {augmentation}.
- **Objective**: non-saturating logistic loss, R1 (weight {config[r1]:g}) every 16 iterations, \
style mixing, average with a half-life of {config[run][ema_images]:g} pictures; \
no path length term. Adam, batch {config[run][batch]}.
- **History**: {history}.
- **Run**: {images:,} pictures seen, {iterations:,} iterations, {minutes} minutes on {hardware}; \
torch {torch}, {date}. Command: `{command}`. StyleGAN2's authors use 25 million pictures.
- **Known failures**: crooked eyes, melted hats, hands and backgrounds, glasses; little variety. \
Samples, none picked: figures/{name}.png.
- **Bias**: FFHQ's: more light-skinned and young adults than the world holds.
- **Licence of the weights**: CC BY-NC-SA 4.0 (non-commercial, share alike), as FFHQ. \
The code is Apache-2.0.
"""


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=list(COMMANDS))
    ap.add_argument("--run", type=pathlib.Path, required=True)
    a = ap.parse_args()
    prior(a.run, a.what, pathlib.Path(f"gfpgan_edu/bundled/{a.what}.safetensors"), ROLES[a.what])

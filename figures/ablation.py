"""What `gfpgan-edu ablate` left, as result files of the book: Table 4 and Fig. 7 at small size,
the baselines beside the full model, and the colour set.

python figures/ablation.py --run runs/ablation32 --valid DIR --data DIR
    figures/ablation/table4.json, fig6.png, fig7.png
        the rows, scored by networks that no loss used
    figures/ablation/baselines.json, baselines.png
        input, U-Net, U-Net + GAN, PULSE, mGANprior, GFP-GAN: quality and seconds a picture
    figures/ablation/colour.json, colour.png
        grey and yellowed faces: colourfulness and distance of chroma
"""
import argparse, datetime, json, os, pathlib, shutil

import cv2, numpy as np, torch, yaml
from PIL import Image

from gfpgan_edu.evaluation import (ROWS, ablation_grid, apply_method, build_colour, evaluate,
                                   method, saved_test_set, score_rows, statistics_of)
from gfpgan_edu.engine import config_from
from gfpgan_edu.metrics import open_metrics
from gfpgan_edu.pictures import read_image
from gfpgan_edu.train_restorer import RestorerConfig
from manifest import neat, record

HERE = pathlib.Path(__file__).parent / "ablation"
# dlib's embedder and EfficientNet-lite1 took no part in any training here
METRICS = ("psnr", "ssim", "perceptual[efficientnet-lite1]", "frechet[efficientnet-lite1]",
           "deg[dlib]")
SEARCHES = {
    "PULSE": ("pulse", dict(factor=4, steps=100)),
    "mGANprior": ("mganprior", dict(factor=1, n=8, block=1, steps=150)),
}
DATA = ("trained on FFHQ 00000-04699 and 1,100 faces made by a StyleGAN trained on FFHQ, "
        "measured on FFHQ 04700-04999")


def about(command, config, budget):
    n = budget["iterations"]
    return dict(command=command, config=config, seed=f"0 to {budget['seeds'] - 1}", data=DATA,
                iterations=n, images=n * config["run"]["batch"],
                hardware=f"{os.cpu_count()} CPU cores, shared with other work",
                torch=torch.__version__, date=datetime.date.today().isoformat())


def ship(name, result, picture, command):
    "figures/ablation/NAME.json and the pictures, with their lines in the manifest."
    HERE.mkdir(exist_ok=True)
    (HERE / f"{name}.json").write_text(neat(result))
    record(f"ablation/{name}.json", command, result["config"])
    for key, image in picture.items():
        few = Image.fromarray(image).quantize(256, method=Image.Quantize.MEDIANCUT,
                                              dither=Image.Dither.NONE)
        few.save(HERE / f"{key}.png", optimize=True)
        record(f"ablation/{key}.png", command, result["config"])


def grid(columns, stems, scale=3):
    "A line each: the face `stem` of every folder."
    lines = [[read_image(folder / f"{stem}.png") for folder in columns] for stem in stems]
    sheet = np.concatenate([np.concatenate(line, 1) for line in lines], 0)
    return cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def values(table):
    def short(v):
        return {k: round(x, 5) if isinstance(x, float) else x for k, x in v.items()}

    return {name: {label: short(v) for label, v in m["values"].items()}
            for name, m in table.to_dict()["methods"].items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "valid", "data"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", choices=("reference", "table4", "baselines", "colour"),
                        help="a part of the work, so that two processes can share it")
    a = parser.parse_args()
    wanted = lambda part: a.only in (None, part)
    torch.set_num_threads(1)
    budget = yaml.safe_load((a.run / "budget.yaml").read_text())
    base = config_from(RestorerConfig, budget["config"])
    folders = {(row, seed): a.run / f"{row}-s{seed}"
               for seed in range(budget["seeds"]) for row in ROWS}
    folders = {k: folder for k, folder in folders.items() if (folder / "ema.safetensors").exists()}
    command = ("gfpgan-edu ablate --preset faces32 --data DIR --valid DIR2 --out runs/ablation32 "
               "--minutes-each 5.5 --seeds 2; "
               "python figures/ablation.py --run runs/ablation32 --valid DIR2 --data DIR")
    facts = about(command, budget["config"], budget)

    reference = a.run / f"training-faces-{base.model.size}px.npz"
    if not reference.exists():
        judges = open_metrics(METRICS)[0]
        (gathered,), failed = statistics_of(a.data, judges, size=base.model.size)
        assert not failed, failed
        gathered.save(reference)
    saved_test_set(a.valid, a.run / "test", base, a.limit)
    for part in (table4, baselines, colour):
        if wanted(part.__name__):
            part(a, base, budget, folders, facts, command, reference)


def table4(a, base, budget, folders, facts, command, reference):
    scores = score_rows(folders, base, a.valid, reference, a.run, METRICS, limit=a.limit)
    speeds = {}
    for (row, seed), folder in folders.items():
        log = (folder / "metrics.jsonl").read_text().splitlines()
        timed = [json.loads(line) for line in log if "images_per_second" in line]
        if timed:
            median = np.median([line["images_per_second"] for line in timed])
            speeds[f"{row}-s{seed}"] = round(float(median), 1)
    scores["table"].pop("methods")
    pictures = {"fig6": ablation_grid(a.run, ("a", "b", "c", "d", "full"), faces=5),
                "fig7": ablation_grid(a.run, ("no-parts", "D", "D+fm", "full"), faces=5)}
    ship("table4", facts | dict(images_per_second=speeds) | scores, pictures, command)


def baselines(a, base, budget, folders, facts, command, reference):
    test = a.run / "test"
    for row in ("l1", "c", "full"):
        restore, about = method(a.run / f"{row}-s0" / "ema.safetensors")
        apply_method(restore, about | dict(method=f"{row}-s0"), test / "lq",
                     a.run / f"{row}-s0" / "restored", batch=16)
    shown = {"Input": test / "lq", "U-Net, L1": a.run / "l1-s0/restored",
             "U-Net + GAN": a.run / "c-s0/restored"}
    for name, (search, settings) in SEARCHES.items():
        restore, what = method(search, "prior32", **settings)
        apply_method(restore, what, test / "lq", a.run / search)
        shown[name] = a.run / search
    shown |= {"GFP-GAN": a.run / "full-s0/restored", "Truth": test / "gt"}
    table = evaluate(shown, test / "gt", reference, METRICS)
    cost = {}
    for name, folder in shown.items():
        if (folder / "method.json").exists():
            told = json.loads((folder / "method.json").read_text())
            cost[name] = {k: told[k] for k in ("seconds_per_picture", "batch", "threads")}
    result = facts | dict(methods=values(table), columns=table.to_dict()["columns"],
                          notes=table.notes, cost=cost,
                          settings={k: v[1] for k, v in SEARCHES.items()}, order=list(shown))
    stems = sorted(p.stem for p in (test / "lq").iterdir())[:6]
    ship("baselines", result, {"baselines": grid(shown.values(), stems)}, command)


def colour(a, base, budget, folders, facts, command, reference):
    colour = a.run / "colour"
    if not (colour / "testset.json").exists():
        shutil.rmtree(colour, ignore_errors=True)                   # a build that was broken off
        build_colour(a.valid, colour, base.model.size, base.degradation, seed=2, limit=a.limit)
    shown = {"Input": colour / "lq"}
    for name, row in {"U-Net, L1": "l1", "U-Net + GAN": "c", "GFP-GAN": "full"}.items():
        restore, what = method(a.run / f"{row}-s0" / "ema.safetensors")
        shown[name] = a.run / f"{row}-s0" / "colour"
        apply_method(restore, what | dict(method=row), colour / "lq", shown[name], batch=16)
    shown["Truth"] = colour / "gt"
    table = evaluate(shown, colour / "gt", (), ("psnr", "chroma", "colourfulness"))

    def mean(result, label, kind):
        "Over the pictures of one kind."
        found = [v[label] for stem, v in result.images.items() if stem.endswith(kind)]
        return round(float(np.mean(found)), 3)

    split, labels = {}, ("chroma", "colourfulness")
    for kind in ("grey", "yellowed"):
        split[kind] = {r.name: {label: mean(r, label, kind) for label in labels}
                       for r in table.results}
    result = facts | dict(methods=values(table), by_kind=split, notes=table.notes,
                          order=list(shown))
    faces = sorted({p.stem.rsplit("-", 1)[0] for p in (colour / "lq").iterdir()})[:4]
    stems = [f"{face}-{kind}" for face in faces for kind in ("grey", "yellowed")]
    ship("colour", result, {"colour": grid(shown.values(), stems)}, command)


if __name__ == "__main__":
    main()

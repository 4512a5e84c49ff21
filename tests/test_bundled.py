"""The bundled model is made by commands: every stage of figures/bundled.py on a dozen pictures,
into a folder of its own."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from gfpgan_edu.examples import example_faces
from gfpgan_edu.weights import load, load_prior, read_header

ROOT, NAME = Path(__file__).parent.parent, "faces64"
RESTORER = ("features=random", "run.batch=2", "run.save_every=2", "run.valid_every=2",
            "width_parts=4", "loss.perceptual=0.01")


def stage(folder, name, *words, changes=()):
    command = [sys.executable, str(ROOT / "figures/bundled.py"), name, "--data", folder / "train",
               "--valid", folder / "valid", "--runs", folder / "runs", "--to", folder / "made",
               "--processes", "1", *words]
    command += ["--set", *changes] if changes else []
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, f"{name}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
    return run.stdout


def shipped_weights(folder):
    return folder / "made" / f"gfpgan_edu/bundled/{NAME}.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "All stages, one after the other, two iterations each."
    folder = tmp_path_factory.mktemp("bundled")
    for name, n, seed in (("train", 6, 0), ("valid", 3, 1), ("real", 2, 2)):
        (folder / name).mkdir()
        for i, face in enumerate(example_faces(n, 64, seed=seed)):
            cv2.imwrite(str(folder / name / f"{i:03}.png"), face[..., ::-1])
    stage(folder, "prior", changes=("run.iterations=2", "run.batch=2", "run.valid_every=2",
                                    "run.save_every=2"))
    stage(folder, "trials", "--minutes", "0.01", "--only", "prior tuned",
          "frozen, all channels steered", changes=RESTORER)
    stage(folder, "restorer", changes=(*RESTORER, "run.iterations=2", "freeze_prior=true"))
    stage(folder, "unet", changes=RESTORER)
    stage(folder, "share", "--metrics", "psnr", "deg:bundled")
    stage(folder, "ship")
    shipped, other = shipped_weights(folder), folder / "other.safetensors"
    shutil.copy(shipped, other)
    stage(folder, "score", "--draws", "2", "--metrics", "psnr", "deg:bundled",
          "--others", f"the same={other}", "--sets", f"real={folder / 'real'}")
    stage(folder, "pictures", "--real", folder / "real")
    return folder


def test_weights_are_shipped_with_the_prior_inside(made):
    path = shipped_weights(made)
    net, prior = load(path), load_prior(path)
    trained = load_prior(made / "runs/prior/ema.safetensors")
    # frozen: what the prior's own run left, in half precision
    for k, v in prior.state_dict().items():
        np.testing.assert_allclose(v.numpy(), trained.state_dict()[k].numpy(), rtol=1e-3,
                                   atol=1e-6, err_msg=k)
    assert net.config.use_prior and read_header(path)["iterations"] == "2"
    assert not (made / "made/gfpgan_edu/bundled/first128.safetensors").exists()


def test_shipped_share_is_the_best_of_those_tried(made):
    told = json.loads((made / "made/figures/bundled/share.json").read_text())
    psnr = {float(name): values["psnr"]["mean"]
            for name, values in told["methods"].items() if name != "Input"}
    assert set(psnr) == {1, 0.8, 0.6, 0.5, 0.4, 0.2, 0} and len(set(psnr.values())) > 1
    assert psnr[told["chosen"]] == max(v for k, v in psnr.items() if k)
    assert load(shipped_weights(made)).config.prior_share == told["chosen"]


def test_unet_has_as_many_iterations_and_no_judges(made):
    log = (made / "runs/unet/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in log][-1]
    judges = "adversarial", "component", "perceptual", "identity", "d"
    assert last["iteration"] == 2 and not [k for k in last if k.startswith(judges)]


def test_trials_have_equal_budgets(made):
    scores = json.loads((made / "made/figures/bundled/scores.json").read_text())["trials"]
    iterations = scores["iterations"]
    assert set(iterations) == {"prior tuned", "frozen, all channels steered"}
    assert len(set(iterations.values())) == 1
    assert scores["changes"]["frozen, all channels steered"][-1] == "model.sft=full"


def test_scores_are_paired_and_an_equal_method_is_equal(made):
    sets = json.loads((made / "made/figures/bundled/scores.json").read_text())["sets"]
    assert set(sets) == {"validation, blind", "validation, 4x bicubic",
                         "real, blind", "real, 4x bicubic"}
    blind = sets["validation, blind"]
    assert blind["n"] == 6
    assert set(blind["methods"]) == {"Input", "U-Net", "the same", "GFP-GAN",
                                     "GFP-GAN, fidelity 0.5", "Truth"}
    assert blind["ours_minus"]["the same"]["psnr"] == [0, 0, 0]

    def mean(name):
        v = blind["methods"][name]["psnr"]
        return v[0] if isinstance(v, list) else v["mean"] if isinstance(v, dict) else v

    more = mean("GFP-GAN") - mean("Input")
    assert blind["ours_minus"]["Input"]["psnr"][0] == pytest.approx(more, abs=1e-2)


def test_card_tells_config_scores_and_licence(made):
    card = (made / f"made/gfpgan_edu/bundled/{NAME}.md").read_text()
    for words in ("CC BY-NC-SA 4.0", "4 pictures in ", "the last 2 iterations", "| GFP-GAN |"):
        assert words in card
    assert str(made) not in card
    assert str(made) not in (made / "made/figures/bundled/restorer.json").read_text()


def test_pictures_are_drawn(made):
    drawn = {p.name for p in (made / "made/figures/bundled").glob("*.png")}
    assert drawn >= {"validation.png", "real.png", "colour.png", "failures.png",
                     "superresolution.png"}
    shape = cv2.imread(str(made / "made/figures/bundled/validation.png")).shape
    # three faces, input, U-Net, GFP-GAN, truth, twice as large
    assert shape == (3 * 128, 4 * 128, 3)


def test_missing_folder_is_named():
    command = [sys.executable, str(ROOT / "figures/bundled.py"), "score", "--data", str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "score needs --valid, a folder of faces" in run.stderr


def test_make_says_every_stage():
    command = ["make", "-n", "train-bundled", "DATA=a b", "VALID=c"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    stages = re.findall(r"bundled\.py (\w+)", listed)
    assert stages == ["prior", "trials", "restorer", "unet", "share", "ship", "score", "pictures"]
    assert listed.count('--data "a b"') == 6
    refused = subprocess.run(["make", "train-bundled"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "DATA" in refused.stdout + refused.stderr


def test_what_is_in_the_package():
    folder = ROOT / "gfpgan_edu/bundled"
    assert sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) <= 12e6
    cards = {p.stem for p in folder.glob("*.md")}
    assert {p.stem for p in folder.glob("*.safetensors")} == cards >= {NAME, "prior64"}

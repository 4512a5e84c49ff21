"""Compare this package with the official code on the official weights.
For a machine with a network and the official code installed.

    make verify-official        or        python tests/peer/verify_official.py [v1 v1.2 v1.3 v1.4]

Downloads the named releases (all by default, about 1.3 GB, once), loads each in both
implementations, runs both on a degraded face and on noise, and prints a table. Exit code 0: every
difference is at most 1e-4; 1: some are not, or a file could not be had; 2: the official code is not
installed, so nothing was compared.
"""
import sys

import numpy as np
import torch
from official import HOW, build_like, load_official

from gfpgan_edu.degradation import PAPER, degrade, sample_params
from gfpgan_edu.examples import example_faces
from gfpgan_edu.weights import RELEASES, WeightsError, download, from_official, sha256_of

LIMIT = 1e-4


def inputs(size):
    "A degraded portrait and uniform noise, (2, 3, size, size) in [-1, 1]; the same on every run."
    params = sample_params(np.random.default_rng(0), PAPER.at(size))
    face = degrade(example_faces(1, size)[0], params)
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.from_numpy(face).permute(2, 0, 1) / 255, noise]) * 2 - 1


def read(path):
    "The tensors of an official file, as the official code takes them."
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("params_ema", state.get("params", state))


@torch.inference_mode()
def compare(classes, release):
    "(hash, largest difference of the image, of the pyramid) for one release. Raises WeightsError."
    path = download(release)
    digest, state = sha256_of(path), read(path)
    ours = from_official(state, release.family, path)
    theirs = build_like(classes, release.family, ours.config)
    theirs.load_state_dict(state, strict=True)
    image, pyramid = differences(ours, theirs, inputs(ours.config.size))
    if digest == release.sha256:
        told = "agrees"
    elif release.sha256 is None:
        told = f"{digest[:12]}…, none published"
    else:
        told = "DIFFERS"
    return told, image, pyramid


def differences(ours, theirs, x):
    want, want_rgbs = theirs(x, return_rgb=True, randomize_noise=False)
    got, got_rgbs = ours(x, noise="fixed")
    image = (got - want).abs().max().item()
    pairs = zip(got_rgbs, want_rgbs, strict=True)
    return image, torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()


def main(names=()):
    unknown = [n for n in names if n not in RELEASES]
    if unknown:
        print(f"no release {', '.join(unknown)}; known are {', '.join(RELEASES)}")
        return 2
    try:
        classes = load_official()
    except ImportError as e:
        print(f"Nothing was compared: {HOW} ({e}).")
        return 2
    failed = 0
    print(f"{'name':8}{'SHA-256':34}{'max abs diff image':>20}{'pyramid':>12}")
    for release in [RELEASES[n] for n in names or RELEASES]:
        try:
            told, image, pyramid = compare(classes, release)
        except (WeightsError, OSError) as e:
            print(f"{release.name:8}failed: {e}")
            failed += 1
            continue
        good = image <= LIMIT and pyramid <= LIMIT and told != "DIFFERS"     # false for NaN
        failed += not good
        verdict = "" if good else "   NOT EQUAL"
        print(f"{release.name:8}{told:34}{image:20.1e}{pyramid:12.1e}{verdict}")
    print(f"{failed} failed" if failed else f"all within {LIMIT:g}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

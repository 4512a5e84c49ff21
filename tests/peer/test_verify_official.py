"""verify_official.py itself, on made files of 64 px in place of the released ones."""
from pathlib import Path

import pytest
import torch
import verify_official
from official import build_like
from test_parity import shake

from gfpgan_edu.gfpgan import GFPGANConfig
from gfpgan_edu.weights import FAMILIES, RELEASES, Release, sha256_of

pytestmark = pytest.mark.peer
SMALL = GFPGANConfig(size=64, style_dim=32, n_mlp=2, narrow=1 / 8)


@pytest.fixture
def releases(official, tmp_path, monkeypatch):
    """The registry with two made files behind file:// addresses, one of them without a published
    hash."""
    monkeypatch.setenv("GFPGAN_EDU_CACHE", str(tmp_path / "cache"))
    for name in list(RELEASES):
        monkeypatch.delitem(RELEASES, name)
    made = [("made v1", "v1", "params_ema", False), ("made clean", "clean", "params", True)]
    for name, family, key, published in made:
        torch.manual_seed(0)
        net = shake(build_like(official, family, SMALL.replace(**FAMILIES[family])))
        path = tmp_path / f"{family}.pth"
        torch.save({key: net.state_dict()}, path)
        digest = sha256_of(path) if published else None
        monkeypatch.setitem(RELEASES, name, Release(name, path.as_uri(), family, digest))
    return tmp_path


def test_equal_networks_pass(releases, capsys):
    assert verify_official.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("made v1") and "none published" in lines[1]
    assert lines[2].startswith("made clean") and "agrees" in lines[2]
    assert lines[3] == "all within 0.0001" and len(lines) == 4


def test_only_the_named_ones_are_compared(releases, capsys):
    assert verify_official.main(["made clean"]) == 0
    assert "made v1" not in capsys.readouterr().out
    assert verify_official.main(["v9"]) == 2


def test_another_network_fails(releases, capsys, monkeypatch, official):
    swapped = official | {"v1": official["bilinear"]}
    monkeypatch.setattr(verify_official, "load_official", lambda: swapped)
    assert verify_official.main() == 1
    out = capsys.readouterr().out
    assert out.count("NOT EQUAL") == 1 and "1 failed" in out


def test_a_wrong_or_missing_file_fails_and_the_rest_is_compared(releases, capsys):
    (releases / "clean.pth").write_bytes(b"changed")
    (releases / "v1.pth").rename(releases / "gone.pth")
    assert verify_official.main() == 1
    out = capsys.readouterr().out
    assert "SHA-256" in out and "failed" in out and "2 failed" in out
    (releases / "gone.pth").rename(releases / "v1.pth")
    assert verify_official.main() == 1
    assert "1 failed" in capsys.readouterr().out


def test_a_cached_file_that_was_changed_later_fails(releases, capsys):
    assert verify_official.main(["made clean"]) == 0
    cached = Path(releases, "cache", "clean.pth")
    state = torch.load(cached, weights_only=True)
    torch.save({"params_ema": state["params"]}, cached)
    assert verify_official.main(["made clean"]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("image, pyramid", [(0.0, float("nan")), (float("nan"), 0.0)])
def test_a_result_that_is_no_number_fails(releases, capsys, monkeypatch, image, pyramid):
    monkeypatch.setattr(verify_official, "differences", lambda *nets: (image, pyramid))
    assert verify_official.main() == 1
    assert capsys.readouterr().out.count("NOT EQUAL") == 2


def test_no_nan_is_lost_among_the_levels_of_the_pyramid():
    levels = [torch.zeros(1), torch.full((1,), float("nan")), torch.zeros(1)]
    theirs = lambda x, **options: (x, [torch.zeros(1)] * 3)
    _, pyramid = verify_official.differences(lambda x, noise: (x, levels), theirs, torch.zeros(1))
    assert pyramid != pyramid

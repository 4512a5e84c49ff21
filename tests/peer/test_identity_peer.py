"""The official ArcFace network, random weights, against ours.
`python -m pytest -m peer tests/peer/test_identity_peer.py`"""
import pytest
import torch
import torch.nn.functional as F

from gfpgan_edu.identity import ArcFaceResNet, GrayEmbedder, load_embedder

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def theirs(official):
    """ResNetArcFace as the official training builds it, with weights and statistics that hide
    nothing."""
    from gfpgan.archs.arcface_arch import ResNetArcFace

    torch.manual_seed(0)
    net = ResNetArcFace(block="IRBlock", layers=[2, 2, 2, 2], use_se=False)
    for k, v in net.state_dict().items():
        if "running_var" in k or k.endswith("bn.weight"):
            v.uniform_(0.5, 1.5)
        elif v.is_floating_point() and v.ndim == 1:
            v.add_(0.2 * torch.randn_like(v))
    return net.double().eval().requires_grad_(False)


def official_gray(x):
    "As `gray_resize_for_identity` of the official model."
    gray = 0.2989 * x[:, 0] + 0.5870 * x[:, 1] + 0.1140 * x[:, 2]
    return F.interpolate(gray[:, None], (128, 128), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_embeddings_and_gradients_agree(theirs, size):
    net = ArcFaceResNet().double()
    net.load_state_dict(theirs.state_dict())
    rng = torch.Generator().manual_seed(size)
    x, y = torch.rand(2, 2, 3, size, size, dtype=torch.float64, generator=rng) * 2 - 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, got = theirs(official_gray(a)), GrayEmbedder(net)(b)
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    with torch.no_grad():
        truth = theirs(official_gray(y))
    F.l1_loss(want, truth).backward()
    F.l1_loss(got, truth).backward()
    assert a.grad.abs().max() > 1e-6
    torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-9)


def test_a_file_of_the_official_class_loads(theirs, tmp_path):
    path = tmp_path / "arcface_resnet18.pth"
    torch.save({f"module.{k}": v for k, v in theirs.state_dict().items()}, path)
    embedder, x = load_embedder(path).double(), torch.rand(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        # read in single precision
        torch.testing.assert_close(embedder(x), theirs(official_gray(x)), rtol=0, atol=1e-4)

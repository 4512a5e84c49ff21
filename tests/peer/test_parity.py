"""Random-weight official networks against ours: equal pictures and pyramids. `pytest -m peer tests/peer`"""
import pytest
import torch

from gfpgan_edu.weights import from_official, prior_from_official, to_clean, to_official

pytestmark = pytest.mark.peer
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def build(official, family, size, cm, dtype, narrow=1, **kwargs):
    torch.manual_seed(0)
    opts = dict(num_style_feat=512, channel_multiplier=cm, decoder_load_path=None, fix_decoder=False, num_mlp=8, input_is_latent=True, different_w=True, narrow=narrow, sft_half=True)
    net = official[family](size, **(opts | kwargs)).to(dtype).eval()
    for name, p in net.named_parameters():      # noise strengths and most biases start at 0 and would hide their own mistakes
        if p.ndim <= 1 or name.endswith("bias"):
            p.data += 0.1 * torch.randn_like(p)
    return net


@torch.inference_mode()
def assert_equal(theirs, ours, size, dtype):
    x = torch.rand(2, 3, size, size, dtype=dtype) * 2 - 1
    want, want_rgbs = theirs(x, return_rgb=True, randomize_noise=False)
    got, got_rgbs = ours(x, noise="fixed")
    assert len(got_rgbs) == len(want_rgbs)
    for a, b in zip([got, *got_rgbs], [want, *want_rgbs]):
        torch.testing.assert_close(a, b, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [64, 128, 512])
@pytest.mark.parametrize("family,cm", [("v1", 1), ("v1", 2), ("bilinear", 1), ("bilinear", 2), ("clean", 1), ("clean", 2)])
def test_generator(official, family, cm, size, dtype):
    theirs = build(official, family, size, cm, dtype)
    ours = from_official(theirs.state_dict(), family)
    assert_equal(theirs, ours, size, dtype)
    back = to_official(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())

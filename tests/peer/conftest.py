"""Compatibility patches that let gfpgan 1.3.8 and basicsr 1.4.2 run on a current torch, without CUDA extensions. Nothing numerical changes."""
import sys

import pytest
import torch

HOW = "needs the official code: pip install --no-deps --no-build-isolation gfpgan==1.3.8 basicsr==1.4.2 facexlib addict future lmdb yapf spandrel"


def leaky_relu_with_bias(x, bias, slope, scale):
    "What the CUDA extension computes."
    return torch.nn.functional.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), slope) * scale


@pytest.fixture(scope="session")
def official():
    "The official archs by name; fails with the instruction when they are not installed."
    try:
        import torchvision.transforms._functional_tensor as tensor_ops

        sys.modules.setdefault("torchvision.transforms.functional_tensor", tensor_ops)
        import basicsr.ops.fused_act.fused_act as fused

        fused.FusedLeakyReLUFunction = type("F", (), {"apply": staticmethod(leaky_relu_with_bias)})
        from basicsr.archs.stylegan2_arch import StyleGAN2Generator
        from gfpgan.archs.gfpgan_bilinear_arch import GFPGANBilinear
        from gfpgan.archs.gfpganv1_arch import GFPGANv1
        from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean
    except ImportError as e:
        pytest.fail(f"{HOW} ({e})")
    return dict(v1=GFPGANv1, bilinear=GFPGANBilinear, clean=GFPGANv1Clean, prior=StyleGAN2Generator)

"""The official classes, patched so that gfpgan 1.3.8 and basicsr 1.4.2 run on a current torch
without CUDA extensions. Nothing numerical changes."""
import sys
from pathlib import Path

import torch

HOW = ("the official code is not installed; tests/peer/README.md tells how "
       "(pip install, three lines)")
PEER = Path(__file__).resolve().parents[2] / ".peer"


def leaky_relu_with_bias(x, bias, slope, scale):
    "What the CUDA extension computes."
    return torch.nn.functional.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), slope) * scale


def load_official():
    """The official generator classes by family, and StyleGAN2's as `prior`.

    ImportError where they are not installed.
    """
    if PEER.is_dir() and str(PEER) not in sys.path:
        sys.path.append(str(PEER))
    import torchvision.transforms._functional_tensor as tensor_ops

    sys.modules.setdefault("torchvision.transforms.functional_tensor", tensor_ops)
    import basicsr.ops.fused_act.fused_act as fused

    fused.FusedLeakyReLUFunction = type("F", (), {"apply": staticmethod(leaky_relu_with_bias)})
    from basicsr.archs.stylegan2_arch import StyleGAN2Generator
    from gfpgan.archs.gfpgan_bilinear_arch import GFPGANBilinear
    from gfpgan.archs.gfpganv1_arch import GFPGANv1
    from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean

    return dict(v1=GFPGANv1, bilinear=GFPGANBilinear, clean=GFPGANv1Clean, prior=StyleGAN2Generator)


def build_like(classes, family, config):
    "The official generator of `family` in the shape of our `config`, random weights, eval mode."
    net = classes[family](
        config.size, num_style_feat=config.style_dim, channel_multiplier=config.channel_multiplier,
        decoder_load_path=None, fix_decoder=False, num_mlp=config.n_mlp, input_is_latent=True,
        different_w=config.w == "per_layer", narrow=config.narrow, sft_half=config.sft == "half")
    return net.eval()


def load_official_trainer(vgg_seed=19):
    """The official `GFPGANModel` on CPU, its VGG-19 random instead of downloaded.

    ImportError where it is not installed.
    """
    load_official()
    import cv2
    from basicsr.models.base_model import BaseModel
    from torchvision.models import vgg

    real, optimizer, encode = vgg.vgg19, BaseModel.get_optimizer, cv2.imencode

    def random_vgg19(*_, **__):
        with torch.random.fork_rng():
            torch.manual_seed(vgg_seed)
            net = real(weights=None)
            for m in net.features:
                if isinstance(m, torch.nn.Conv2d):
                    # unit scale through all layers
                    torch.nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        return net

    def get_optimizer(self, kind, params, lr, betas=(0.9, 0.999), **kw):
        return optimizer(self, kind, params, lr, betas=tuple(map(float, betas)), **kw)

    if getattr(BaseModel, "patched", None) is None:
        vgg.vgg19 = random_vgg19
        BaseModel.get_optimizer = get_optimizer
        BaseModel.patched = encode
    from gfpgan.archs import arcface_arch  # noqa: F401  (registers the network)
    from gfpgan.models.gfpgan_model import GFPGANModel

    return GFPGANModel

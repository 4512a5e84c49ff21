"""Write tests/data/reference_*.safetensors: what the official code returns for made weights and a
fixed input, at 64 px and 1/16 of the width.

The ordinary tests (tests/test_weights.py) compare with these files, without the official code.
Run once: python tests/peer/make_references.py
A file holds the outputs (computed in float64, stored in float32), the prior's its codes too, and,
as JSON in its header, the official names and shapes.
"""
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from official import load_official
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[1]))
from made_weights import made_state, uniform  # noqa: E402

DATA = Path(__file__).resolve().parents[1] / "data"
SMALL = dict(out_size=64, num_style_feat=32, num_mlp=2, narrow=1 / 16)
# name: family, channel multiplier, SFT on half of the channels, a code for each layer
GENERATORS = {
    "v1": ("v1", 1, True, True),
    "bilinear": ("bilinear", 2, True, True),
    "clean": ("clean", 2, True, True),
    "v1_full_one": ("v1", 1, False, False),
}


def filled(net, equalized):
    "The official network in float64 with made weights, and its names and shapes."
    shapes = {k: list(v.shape) for k, v in net.state_dict().items()}
    net.load_state_dict(made_state(shapes, equalized))
    return net.double().eval(), shapes


def write(name, tensors, **facts):
    header = {k: json.dumps(v) for k, v in facts.items()}
    header["by"] = f"gfpgan {version('gfpgan')}, basicsr {version('basicsr')}"
    path = DATA / f"reference_{name}.safetensors"
    tensors = {k: v.float().contiguous() for k, v in tensors.items()}
    save_file(tensors, path, metadata=header)
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


@torch.inference_mode()
def main():
    classes = load_official()
    x = uniform("input", (1, 3, 64, 64)).double()
    for name, (family, multiplier, half, different) in GENERATORS.items():
        net = classes[family](
            **SMALL, channel_multiplier=multiplier, decoder_load_path=None, fix_decoder=False,
            input_is_latent=True, different_w=different, sft_half=half)
        net, shapes = filled(net, family != "clean")
        image, rgbs = net(x, return_rgb=True, randomize_noise=False)
        pictures = {"image": image} | {f"rgb{i}": v for i, v in enumerate(rgbs)}
        write(name, pictures, family=family, shapes=shapes)
    net, shapes = filled(classes["prior"](**SMALL, channel_multiplier=2), True)
    z, w = uniform("z", (2, 32)).double(), uniform("w", (1, 10, 32)).double()
    from_z, _ = net([z], randomize_noise=False)
    from_w, _ = net([w], input_is_latent=True, randomize_noise=False)
    write("prior", dict(z=z, w=w, from_z=from_z, from_w=from_w), shapes=shapes)


if __name__ == "__main__":
    main()

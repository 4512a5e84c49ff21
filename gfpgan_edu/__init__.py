"""GFP-GAN taught and implemented. The public names below are imported on first use, so that `import gfpgan_edu` is quick."""
from importlib import import_module

_HOME = {
    "restore": "photos", "RestoreResult": "photos", "PhotoError": "pictures", "NoFace": "photos",
    "GFPGAN": "gfpgan", "GFPGANConfig": "gfpgan", "StyleGAN2": "stylegan2",
    "load_weights": "weights", "from_official": "weights", "to_official": "weights", "to_clean": "weights", "WeightsError": "weights",
    "detect": "faces", "align": "faces", "Face": "faces",
    "DegradationRanges": "degradation", "DegradationParams": "degradation", "sample_params": "degradation", "degrade": "degradation",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])

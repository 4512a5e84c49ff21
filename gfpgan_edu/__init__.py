"""GFP-GAN taught and implemented: `from gfpgan_edu import restore, load, degrade, evaluate`.

All names below are imported on first use, so that `import gfpgan_edu` is quick.
"""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:    # for editors and type checkers; at run time `_HOME` says the same
    from gfpgan_edu.degradation import DegradationParams, DegradationRanges, degrade, sample_params
    from gfpgan_edu.evaluation import evaluate
    from gfpgan_edu.faces import Face, align, detect
    from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
    from gfpgan_edu.photos import NoFace, RestoreResult, VideoResult
    from gfpgan_edu.photos import pick_device, restore, restore_video
    from gfpgan_edu.pictures import PhotoError
    from gfpgan_edu.stylegan2 import StyleGAN2
    from gfpgan_edu.weights import WeightsError, from_official, load_weights, to_clean, to_official
    from gfpgan_edu.weights import load_weights as load

_HOME = {    # name: module, or module.name where the name there is another
    "restore": "photos", "load": "weights.load_weights", "degrade": "degradation",
    "evaluate": "evaluation",
    "restore_video": "photos", "RestoreResult": "photos", "VideoResult": "photos",
    "NoFace": "photos", "pick_device": "photos", "PhotoError": "pictures",
    "GFPGAN": "gfpgan", "GFPGANConfig": "gfpgan", "StyleGAN2": "stylegan2",
    "load_weights": "weights", "from_official": "weights", "to_official": "weights",
    "to_clean": "weights", "WeightsError": "weights",
    "detect": "faces", "align": "faces", "Face": "faces",
    "DegradationRanges": "degradation", "DegradationParams": "degradation",
    "sample_params": "degradation",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        module, _, other = _HOME[name].partition(".")
        return getattr(import_module(f"{__name__}.{module}"), other or name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])

"""Weights out of thin air, the same on every machine: for each tensor of an official network a
stream of bits that depends on its name alone."""
import hashlib
import math

import numpy as np
import torch


def uniform(name, shape):
    """float32 in [-1, 1), exact multiples of 2^-23. Raw Philox bits are the same in every version
    of NumPy."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape))
    numbers = (bits >> np.uint64(40)).astype(np.float32) / 2**23 - 1
    return torch.from_numpy(numbers).reshape(tuple(shape))


def made_state(shapes, equalized):
    """A state dict for {official name: shape} that keeps activations at about unit size and leaves
    no bias or noise strength at zero.

    `equalized`: whether the network scales its weights at run time (v1, bilinear, StyleGAN2) or
    not (clean).
    """
    state = {}
    for name, shape in shapes.items():
        v = uniform(name, shape)
        scale = "condition_scale" in name and ".2." in name
        if name.endswith(".bias") or len(shape) == 1:      # one number: a noise strength
            v = 0.3 * v + (1.0 if "modulation.bias" in name or scale else 0.0)
        elif "noises" not in name and "constant_input" not in name and not equalized:
            v = v * math.sqrt(6 / math.prod(shape[1:] if len(shape) < 5 else shape[2:]))
        else:
            # √3: unit variance; the mapping network is slowed down a hundredfold
            v = v * (173.0 if "style_mlp" in name else 1.73)
        state[name] = v
    return state

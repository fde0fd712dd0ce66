"""Attacks: a network and clean images in, perturbed images out. What they return is judged elsewhere."""

from .auto import autoattack_part
from .crafting import Holdable, crafting, input_gradient
from .gradient import bim, far_off, fgsm, n_fgsm, nearby, pgd, tpgd
from .minimum import cw
from .named import Attack, Scene, named
from .noise import gaussian_noise
from .queries import square

__all__ = [
    "Attack",
    "Holdable",
    "Scene",
    "autoattack_part",
    "bim",
    "crafting",
    "cw",
    "far_off",
    "fgsm",
    "gaussian_noise",
    "input_gradient",
    "n_fgsm",
    "named",
    "nearby",
    "pgd",
    "square",
    "tpgd",
]

"""Attacks: a network and clean images in, perturbed images out. What they return is judged elsewhere."""

from .auto import autoattack_part, square
from .cascade import Memory, PartResult, Strongest, strong
from .gradient import PgdConfig, bim, cw, far_off, fgsm, gaussian_noise, n_fgsm, nearby, pgd, tpgd
from .plan import StrongConfig
from .registry import Attack, Scene, attack_names, named

__all__ = [
    "Attack",
    "Memory",
    "PartResult",
    "PgdConfig",
    "Scene",
    "StrongConfig",
    "Strongest",
    "attack_names",
    "autoattack_part",
    "bim",
    "cw",
    "far_off",
    "fgsm",
    "gaussian_noise",
    "n_fgsm",
    "named",
    "nearby",
    "pgd",
    "square",
    "strong",
    "tpgd",
]

"""Attacks: a network and clean images in, perturbed images out. What they return is judged elsewhere."""

from .crafting import Holdable, crafting
from .gradient import bim, fgsm, pgd
from .named import Attack, named
from .noise import gaussian_noise

__all__ = ["Attack", "Holdable", "bim", "crafting", "fgsm", "gaussian_noise", "named", "pgd"]

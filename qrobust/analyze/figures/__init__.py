"""Figures from data alone: neither torch nor the run is needed, so that a saved JSON can be drawn again."""

from .style import draw, save

__all__ = [
    "draw",
    "save",
]

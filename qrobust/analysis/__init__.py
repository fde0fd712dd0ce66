"""Figures of both papers from one's own runs: experiments give data, and drawings are made from that data alone.

session         the table of experiments; each is done once and saved       ← needs torch
cases           the networks side by side
images, layers  the experiments: a case → data that JSON can hold
figures         the table of figures: data → figure, without torch or the run
curves, maps    the drawings, in one style
encoding        numbers and images inside JSON
"""

from .figures import NAMES, chosen, draw, redraw, save

__all__ = [
    "NAMES",
    "chosen",
    "draw",
    "redraw",
    "save",
]

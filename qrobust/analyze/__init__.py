"""Figures of both papers from one's own runs: experiments that give data, and drawings made from that data alone.

    session      which experiments, each done once and saved   ← needs torch
    cases        the networks side by side
    needs        what an experiment asks of them
    experiments  cases → data that JSON can hold
    table        the names
    figures      data → figure                                 ← needs matplotlib alone
    pixels       images inside JSON

A row of `table.ROWS` called "heat-map" with home "spectra" is measured by `experiments.spectra.heat_map` and drawn by
`figures.spectra.heat_map`.
"""

from .figures import draw, save
from .table import NAMES, ROWS, chosen

__all__ = [
    "NAMES",
    "ROWS",
    "chosen",
    "draw",
    "save",
]

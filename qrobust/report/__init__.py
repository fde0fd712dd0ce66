"""One page that says how a run went, and a model card beside it; neither needs torch, a network or a server.

collect    a run folder → plain data
examples   a suite → a few images with their perturbations
charts     numbers → points on a canvas
page       plain data → report.html, by page.html.j2, chart.svg.j2 and style.css
card       plain data → model-card.md, by card.md.j2
"""

from .writing import CARD, PAGE, write

__all__ = [
    "CARD",
    "PAGE",
    "write",
]

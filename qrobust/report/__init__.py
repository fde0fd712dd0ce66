"""One page that says how a run went, and a model card beside it; neither needs torch, a network or a server.

collect    a run folder → plain data; the schemas of its results
alone      an artifact without its run → the same
words      verdicts in sentences, accuracies and layers as rows
pictures   charts, figures of an analysis, images of a suite
page       report.html by page.html.j2 and style.css, model-card.md by card.md.j2
"""

from .page import CARD, PAGE, write

__all__ = [
    "CARD",
    "PAGE",
    "write",
]

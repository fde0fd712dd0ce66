"""The deployed file as a torch network: white-box attacks on what was shipped, not on what was trained."""

from .building import covered
from .module import Twin, twin
from .node import FORMS

__all__ = [
    "FORMS",
    "Twin",
    "covered",
    "twin",
]

"""The deployed file as a torch network: white-box attacks on what was shipped, not on what was trained."""

from .building import covered
from .network import Twin, twin
from .rounding import FORMS

__all__ = ["FORMS", "Twin", "covered", "twin"]

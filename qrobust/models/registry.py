"""The list of networks; one decorated function adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import ModelError, did_you_mean
from . import own

Builder = Callable[..., nn.Module]
REGISTERED = "registered"  # attribute of a network from here: the arguments that build it again
_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Add a network under its function's name: `builder(*, in_channels, classes, **options) -> nn.Module`."""
    _BUILDERS[builder.__name__] = builder
    return builder


def names() -> tuple[str, ...]:
    """All networks known, sorted."""
    return tuple(sorted(_BUILDERS))


def networks() -> dict[str, Builder]:
    """Every network's builder by its name, sorted; what it takes besides `in_channels` and `classes` are options."""
    return dict(sorted(_BUILDERS.items()))


def build(name: str, *, in_channels: int, classes: int, **options: Any) -> nn.Module:
    """A fresh network that takes images (n, in_channels, h, w) in [0,1] and gives logits (n, classes).

    name: one of `names()`, or a user's own (see `own.build`). options: what its builder takes besides. Raises
    ModelError for an unknown name or option.
    """
    if own.is_own(name):
        return own.build(name, in_channels=in_channels, classes=classes, **options)
    if name not in _BUILDERS:
        raise ModelError(f"expected a network, got {name!r}{did_you_mean(name, _BUILDERS)}")
    known = set(inspect.signature(_BUILDERS[name]).parameters) - {"in_channels", "classes"}
    for option in options:
        if option not in known:
            raise ModelError(f"{name} has no option {option!r}{did_you_mean(option, known)}")
    made = _BUILDERS[name](in_channels=in_channels, classes=classes, **options)
    vars(made)[REGISTERED] = {"name": name, "in_channels": in_channels, "classes": classes, **options}
    return made

"""In which setting two trainings differ: a key alone, a digest, cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ORDERED = "quant.layers"  # whose last pattern that matches decides


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting, in the order of `new`, that was another when a network was trained; None if none was.

    old, new: nested tables of JSON values. A key that is absent is as one that is None, so that settings which a
    later version adds differ from older ones only where they are used.

    >>> difference({"train": {"lr": 0.1}}, {"train": {"lr": 0.05}})
    'train.lr: trained with 0.1, the recipe has 0.05'
    """
    return next(_differences(old, new, ""), None)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in (*new, *(key for key in old if key not in new)):
        before, after = (_plain(table.get(key)) for table in (old, new))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
            if f"{prefix}{key}" == ORDERED and list(before) != list(after):
                yield f"{ORDERED}: trained in the order {list(before)}, the recipe has {list(after)}"
        elif before != after:
            yield f"{prefix}{key}: trained with {_shown(before)}, the recipe has {_shown(after)}"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return "none" if value is None else repr(value)

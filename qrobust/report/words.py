"""Verdicts in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from .collect import Collected, Record, Width

SIGNS = {"held": "✓", "broken": "✗", "not checked": "?"}


@dataclass(frozen=True)
class Card:
    """A network's verdict and why, in one sentence. kind: a class of style.css."""

    width: Width
    sentence: str

    @property
    def kind(self) -> str:
        """held, broken or unknown."""
        return self.width.verdict if self.width.verdict in ("held", "broken") else "unknown"

    @property
    def sign(self) -> str:
        """For those who tell no colours apart."""
        return SIGNS[self.width.verdict]


def headline(run: Collected) -> str:
    """Held, or which networks are not."""
    for verdict in ("broken", "not checked"):
        if names := [width.label for width in run.widths if width.verdict == verdict]:
            return f"{verdict.capitalize()}: {_listed(names)}"
    return "Held" if len(run.widths) == 1 else f"Held: all {len(run.widths)} networks"


def cards(run: Collected) -> list[Card]:
    """One a network."""
    return [Card(width, _sentence(width) + _warning(len(_flags(width)))) for width in run.widths]


def _warning(flags: int) -> str:
    return f" {flags} flag{'s' * (flags > 1)}: look before you trust the numbers." if flags else ""


def flags(run: Collected) -> list[tuple[str, Record]]:
    """What could not be put to rest, in torch and on the artifact, each with its network."""
    return [found for width in run.widths for found in _flags(width)]


def _flags(width: Width) -> list[tuple[str, Record]]:
    places = ((width.label, width.evaluation), (f"{width.label}'s artifact", width.attacked))
    return [(label, flag) for label, result in places for flag in (result or {}).get("flags", [])]


def _sentence(width: Width) -> str:
    checked = width.checked
    if width.stale:
        return "The check judged another model.onnx than the one that lies here; check it anew."
    if checked is None:
        return f"No check has judged it: {width.problem or 'continue the run'}."
    broken = [verdict for verdict in checked["verdicts"] if not verdict["passed"]]
    if broken:
        more = f" {len(broken)} limits are broken in all." if len(broken) > 1 else ""
        first = broken[0]
        return f"{first['name']} is {first['measured']:.3g}, at most {first['limit']:.3g} is allowed: " \
               f"{first['reason']}.{more}"  # fmt: skip
    return (
        f"All {len(checked['verdicts'])} limits held on {checked['n']} images: {checked['worst_case']:.1%} survive "
        f"the check's attacks, and {checked['label_flips']:.2%} of labels changed in export.{_attacked(width)}"
    )


def _attacked(width: Width) -> str:
    found = width.attacked or {}
    if not {"n", "worst_case"} <= found.keys():
        return ""
    return f" With gradients of its own, attacks leave {found['worst_case']['accuracy']:.1%} of {found['n']} images."


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

"""The one number of a network and its verdict: what a terminal, README, the report and the model card say of it.

    a width of report.json ──headline──▶ Headline ──words──▶ "export held; under attack 66.0 % (n = 300, …)"

The number is the lowest that was measured at any place. Places may have seen different images; then the number says of
how many, and the float model's beside it is of the same ones. Needs neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Result = Mapping[str, Any]
PLACES = ON_FILE, IN_TORCH, REPLAYED = "on the file", "in torch", "replayed"
CLEAN = "clean"
HELD, BROKEN, NOT_CHECKED = "held", "broken", "not checked"
GREEN, AMBER, RED = "green", "amber", "red"
# The sign of a tone, for those who see no colours, and what it says; a number of weak attacks has it not either.
SIGNS = {GREEN: "✓", AMBER: "!", RED: "✗"}
LEGEND = (
    f"{SIGNS[GREEN]}: nothing is flagged, and the number is not below the float model's by more than both intervals"
)
FLOAT_BITS = 32
WEAK = "weak attacks"
# Attacks that return their last step, whatever they broke on their way, unless their name says which they keep.
_LAST_STEP = re.compile(r"(bim|pgd|tpgd|cw-inf|transfer)-\d+(x\d+)?(:(?!keep=best)[^:]+)*")
BEST_POINTS = ("strong", "apgd", "autoattack")  # which keep them, and lead along gradients


@dataclass(frozen=True)
class Number:
    """An accuracy under attack: of n images, a share that lies in its 95 % interval.

    images: equal for numbers of the same images. by: the attack that left least. weak: whether none
    there led along gradients and kept its best points.
    """

    place: str
    accuracy: float
    ci95: tuple[float, float]
    n: int
    images: str
    by: str
    weak: bool = False

    @property
    def interval(self) -> str:
        """In percent, without the sign."""
        return "–".join(f"{100 * end:.1f}" for end in self.ci95)

    @property
    def where(self) -> str:
        """The attack and the place."""
        return f"{self.by}, {self.place}"


@dataclass(frozen=True)
class Headline:
    """What is said of a network first, wherever.

    export: whether the check of its artifact "held", was "broken" or is "not checked"; broken: names of limits.
    number: the lowest of any place; None for a network that was not attacked, since replays alone overestimate. weak:
    whether no attack, in torch or on the file, led along gradients and kept its best points.
    float_model: the lowest of the float model on the same images; None of itself, or where there is none. flags: names
    of what sanity checks raised in torch and on the file; None where results do not say.
    """

    network: str
    export: str
    broken: tuple[str, ...] = ()
    number: Number | None = None
    float_model: Number | None = None
    flags: tuple[str, ...] | None = ()
    weak: bool = False

    @property
    def words(self) -> str:
        """The verdict: "held" is said of the export alone, and the number stands beside it."""
        export = f"export {self.export}" + (f" ({', '.join(self.broken)})" if self.broken else "")
        return "; ".join(filter(None, (export, self._flagged, self._attacked)))

    @property
    def _flagged(self) -> str:
        return "flags not recorded" if self.flags is None else "flagged" if self.flags else ""

    @property
    def _attacked(self) -> str:
        if self.number is None:
            return "not attacked yet"
        beside = "" if self.float_model is None else f", float model {percent(self.float_model.accuracy)}"
        attack = WEAK if self.weak else "attack"
        return f"under {attack} {percent(self.number.accuracy)} (n = {self.number.n}{beside})"

    @property
    def detail(self) -> str:
        """One sentence on the number: interval, images, attack and place; "" where there is none."""
        if self.number is None:
            return ""
        one, other = self.number, self.float_model
        beside = f"; of the same images the float model {_of(other)}, {other.where}" if other else ""
        return f"Lowest of any place: {_of(one)} of {one.n} images, {one.where}{beside}."

    @property
    def fell(self) -> bool:
        """Whether the number lies below the float model's by more than both intervals."""
        one, other = self.number, self.float_model
        return one is not None and other is not None and one.ci95[1] < other.ci95[0]

    @property
    def tone(self) -> str:
        """Red: the export broke a limit. Green: as `LEGEND`."""
        if self.export == BROKEN:
            return RED
        attacked = self.number is not None and not self.weak
        return GREEN if self.export == HELD and attacked and self.flags == () and not self.fell else AMBER

    @property
    def sign(self) -> str:
        """Of the tone."""
        return SIGNS[self.tone]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with words and tone."""
        return asdict(self) | {"words": self.words, "tone": self.tone}


def headlines(widths: Sequence[Result]) -> list[Headline]:
    """Of every width of report.json; keys that older versions did not write may be missing."""
    floats = next((numbers(width) for width in widths if width["bits"] == FLOAT_BITS), [])
    return [headline(width, [] if width["bits"] == FLOAT_BITS else floats) for width in widths]


def headline(width: Result, of_float: Iterable[Number] = ()) -> Headline:
    """Of one width, beside what was measured of the float model."""
    found, flags = numbers(width), width.get("flags")
    attacked = [one for one in found if one.place != REPLAYED]
    number = min(found, key=_rank) if attacked else None
    same = [one for one in of_float if number is not None and one.images == number.images]
    return Headline(
        f"QM-{width['bits']}",
        width["verdict"],
        tuple(verdict["name"] for verdict in width["broken"]),
        number,
        min(same, key=_rank, default=None),
        None if flags is None else tuple(dict.fromkeys(flag["name"] for flag in flags)),
        all(one.weak for one in attacked),
    )


def _rank(one: Number) -> tuple[float, int, int]:
    """Lowest first; of equal ones that of more images, then the file's own."""
    return one.accuracy, -one.n, PLACES.index(one.place)


def numbers(width: Result) -> list[Number]:
    """Worst cases at every attacked place: of the test images, of the suite, of the file's.

    "further" of a width: more evaluations in torch, of other attacks or images.
    """
    before, after, gap = (width.get(key) for key in ("before", "after", "gap"))
    found = []
    for one in (before, *width.get("further", ())):
        if one and (attack := strongest(one["attacks"])):
            images = one.get("images") or f"{one['n']} of the test"
            found.append(_number(IN_TORCH, one["worst_case"], one["n"], images, attack))
    left = {name: {"accuracy": share} for name, share in after["accuracy"].items() if name != CLEAN} if after else {}
    if after and (attack := strongest(left)):
        n = after["n"]
        images = found[0].images if found and found[0].n == n else f"{n} of the suite"
        found.append(_number(REPLAYED, _counted(after["worst_case"], n), n, images, attack))
    for place, key in ((IN_TORCH, "in_torch"), (REPLAYED, "replayed"), (ON_FILE, "attacked")):
        if gap and (cell := gap[key]):
            images = gap.get("images") or f"{gap['n']} of the file's"
            found.append(_number(place, cell, gap["n"], images, {"by": gap["by"], **cell}))
    return found


def strongest(attacks: Mapping[str, Result]) -> dict[str, Any]:
    """The attack within the ball that left least, of several the best, as "by"; "weak": whether none leads
    along the network's gradients and keeps its best points. Empty where there is no attack.
    """
    bounded = [name for name, cell in attacks.items() if cell.get("bounded", True)]
    if not bounded:
        return {}
    by = min(bounded, key=lambda name: (attacks[name]["accuracy"], is_last_step(name)))
    return {"by": by, "weak": not any(map(_keeps_best, bounded))}


def _keeps_best(name: str) -> bool:
    return name.startswith(BEST_POINTS) or ("keep=best" in name and not name.startswith("transfer"))


def is_last_step(name: str) -> bool:
    """Whether an attack of this name returns its last step, as papers report it.

    >>> is_last_step("pgd-20"), is_last_step("pgd-20:keep=best"), is_last_step("strong")
    (True, False, False)
    """
    return _LAST_STEP.fullmatch(name) is not None


def _number(place: str, cell: Result, n: int, images: str, attack: Result) -> Number:
    low, high = cell["ci95"]
    weak = attack.get("weak", not _keeps_best(attack["by"]))  # of older results that one alone is known
    return Number(place, cell["accuracy"], (low, high), n, images, attack["by"], weak)


def _counted(share: float, n: int) -> Result:
    from .runtime import wilson  # with numpy, which most tables need not wait for

    return {"accuracy": share, "ci95": wilson(round(share * n), n)}


def summary(found: Sequence[Headline]) -> str:
    """All networks of a run in one line."""
    missing = [one.network for one in found if one.number is None]
    unattacked = f"not attacked yet: {listed(missing)}" if missing else ""
    return "; ".join(filter(None, (_exports(found), _flags(found), _range(found), unattacked)))


def _exports(found: Sequence[Headline]) -> str:
    by_state = {state: [one.network for one in found if one.export == state] for state in (BROKEN, NOT_CHECKED)}
    parts = [f"{state}: {listed(names)}" for state, names in by_state.items() if names]
    return f"export {', '.join(parts)}" if parts else "export held"


def _flags(found: Sequence[Headline]) -> str:
    if any(one.flags is None for one in found):
        return "flags not recorded"
    names = [one.network for one in found if one.flags]
    return f"flagged: {listed(names)}" if names else ""


def _range(found: Sequence[Headline]) -> str:
    pairs = sorted((one.number.accuracy, one.network) for one in found if one.number)
    if not pairs:
        return ""
    ends = [f"{percent(share)} ({network})" for share, network in (pairs[0], *pairs[1:][-1:])]
    attack = WEAK if any(one.weak for one in found if one.number) else "attack"
    return f"under {attack} {' to '.join(ends)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(share: float) -> str:
    """A share in percent, with the sign."""
    return f"{100 * share:.1f} %"


def _of(one: Number) -> str:
    return f"{percent(one.accuracy)} ({one.interval})"

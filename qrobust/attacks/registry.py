"""Attacks as recipes and the command line spell them.

`gn`, `fgsm`, `bim-20`, `pgd-20`, `pgd-20x5` (five restarts), `tpgd-20`, `cw-20` (L2, unbounded), `cw-inf-30`,
`square-5000` (queries), `transfer-20` (PGD on the float model), `autoattack`, and two of its parts alone, `apgd-ce` and
`apgd-t` (targeted); `strong`, a cascade that is stronger where rounding hides gradients, and cheaper. Settings follow,
each behind a colon: `pgd-20:step_size=1/255`, `cw-20:c=10:lr=0.05`, `pgd-20:keep=best`, `strong:quick`, and
`strong:budget=5000`, the most forward and gradient passes that an image takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import RecipeError, did_you_mean
from ..objectives import margin
from ..threat import Threat
from .auto import PARTS, autoattack_part, square
from .cascade import Expected, Memory, Settle, Strongest, expect, strong
from .gradient import KEEPS, LOSSES, PgdConfig, bim, cw, fgsm, gaussian_noise, pgd, tpgd
from .plan import StrongConfig

TRANSFER, SQUARE, STRONG = "transfer", "square", "strong"  # families
WITHOUT_GRADIENTS = ("gn", SQUARE)
WORDS = {"loss": tuple(LOSSES), "keep": KEEPS}  # settings that are no numbers
COUNT = "[1-9][0-9]*"  # no steps, or no restarts, would be no attack
SPELLING = re.compile(
    rf"(?P<family>[a-z]+(?:-[a-z]+)*?)(?:-(?P<steps>{COUNT})(?:x(?P<restarts>{COUNT}))?)?(?::(?P<more>.+))?"
)


@dataclass(frozen=True)
class Attack:
    """An attack with its settings.

    bounded: whether what it returns must lie within the threat. parts: attacks in a row, each on the images
    that those before left right; most have one.
    """

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    bounded: bool = True
    parts: tuple[str, ...] = ("",)

    def run(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator, part: str = "") -> Tensor:
        """x_adv for images x (n, c, h, w) in [0,1] and labels y (n,)."""
        settings = {**self.settings, "part": part} if part else self.settings
        return _FAMILIES[self.family].run(scene, x, y, generator, settings)

    def expect(self, scene: Scene, x: Tensor, y: Tensor) -> Expected:
        """What `strong` will take of an image; of no other attack."""
        return expect(scene.model, x, y, config=_config(scene, self.settings), forms=scene.forms or None)

    def strongest(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator) -> Strongest:
        """All that `strong` says of its points, as `run` does not; of no other attack."""
        return _strongest(scene, x, y, generator, self.settings)

    def perturb(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        """`run` with all parts in a row, each on the images of this batch that are still right.

        Of an image that none breaks, the point where a wrong class leads by most.
        """
        x_adv = self.run(scene, x, y, generator, self.parts[0])
        for part in self.parts[1:]:
            lead = _lead(scene.model, x_adv, y)
            todo = (lead <= 0).nonzero()[:, 0]
            if len(todo):
                found = self.run(scene, x[todo], y[todo], generator, part)
                better = _lead(scene.model, found, y[todo]) > lead[todo]
                x_adv[todo[better]] = found[better]
        return x_adv


@torch.no_grad()
def _lead(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return margin(model(x), y)


@dataclass(frozen=True)
class Scene:
    """Who is attacked: the network, the threat, the float model if there is one, and a seed.

    For `strong`: forms, memory and settle, as there, {} for the model's own forms; batch_size: images at once.
    """

    model: nn.Module
    threat: Threat
    float_model: nn.Module | None = None
    seed: int = 0
    forms: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Memory | None = None
    settle: Settle | None = None
    batch_size: int = StrongConfig.batch_size


# The columns of the papers' tables. CW-20 is the unbounded L2 attack there; SP's C&W is the margin loss in l-inf.
PROTOCOLS = {
    "fd": ("gn", "fgsm", "pgd-20", "bim-20", "tpgd-20", "cw-20"),
    "sp": ("pgd-20", "pgd-50", "cw-inf-30", "autoattack"),
}


def attack_names(text: str, default: Sequence[str] = ()) -> tuple[str, ...]:
    """Names with commas, or those of a key of PROTOCOLS; `default` for "".

    >>> attack_names("fgsm, pgd-20")
    ('fgsm', 'pgd-20')
    """
    return tuple(name.strip() for name in PROTOCOLS.get(text) or (text.split(",") if text else default))


Runner = Callable[[Scene, Tensor, Tensor, Generator, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class _Family:
    """count: what the number in the name sets. step_size: whether the threat sets one. defaults: all settings."""

    run: Runner
    count: str | None = None
    restarts: bool = False
    step_size: bool = False
    bounded: bool = True
    parts: tuple[str, ...] = ("",)
    defaults: dict[str, Any] = field(default_factory=dict)


def named(name: str, threat: Threat) -> Attack:
    """The attack of a name, its step size a quarter of eps. Raises RecipeError for what is no attack."""
    match = _spelt(name)
    family = _FAMILIES[match["family"]]
    settings = dict(family.defaults)
    if family.count is not None:
        settings[family.count] = int(match["steps"])
    if family.step_size:
        settings["step_size"] = threat.eps / 4
    if family.restarts:
        settings["restarts"] = int(match["restarts"] or 1)
    settings |= _given(match["more"] or "", settings, name)
    if match["family"] == STRONG:
        StrongConfig(**settings)  # refuses what is no attack
    return Attack(name, match["family"], settings, family.bounded, family.parts)


def _given(text: str, known: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings behind the colons."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(":")):
        key, _, value = part.partition("=")
        if key not in known:
            raise RecipeError(f"{name}: unknown setting {key!r}{did_you_mean(key, known)}")
        if known[key] is False:
            given[key] = _flag(key, part, name)
            continue
        given[key] = _word(key, value, name) if key in WORDS else _number(key, value, known[key], name)
    return given


def _spelt(name: str) -> re.Match[str]:
    """The parts of a name."""
    match = SPELLING.fullmatch(name)
    family = _FAMILIES.get(match["family"]) if match else None
    if match is None or family is None:
        raise _unknown(name)
    if (family.count is None) != (match["steps"] is None) or (match["restarts"] and not family.restarts):
        raise _unknown(name)
    return match


def _flag(key: str, text: str, name: str) -> bool:
    if text != key:
        raise RecipeError(f"{name}: expected {key} alone, got {text!r}; leave out what follows it")
    return True


def _word(key: str, value: str, name: str) -> str:
    if value not in WORDS[key]:
        raise RecipeError(f"{name}: expected a {key}, got {value!r}{did_you_mean(value, WORDS[key])}")
    return value


def _number(key: str, value: str, default: float, name: str) -> float:
    """A number of the default's type, above 0; only kappa may be 0."""
    try:
        fraction = Fraction(value)
        number = type(default)(fraction)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise RecipeError(f"{name}: expected a number for {key}, got {value!r}") from error
    if isinstance(default, int) and number != fraction:
        raise RecipeError(f"{name}: expected a whole number for {key}, got {value!r}")
    if number < 0 or (number == 0 and key != "kappa"):
        raise RecipeError(f"{name}: expected {key} above 0, got {value!r}; else it is no attack")
    return number


def _unknown(name: str) -> RecipeError:
    return RecipeError(f"expected an attack, got {name!r}{did_you_mean(name, EXAMPLES)}")


def _transfer(scene: Scene, x: Tensor, y: Tensor, generator: Generator, settings: dict[str, Any]) -> Tensor:
    if scene.float_model is None:
        raise RecipeError("expected a float model for transfer, got none; it needs a quantised network of a run")
    return pgd(scene.float_model, x, y, threat=scene.threat, config=PgdConfig(**settings), generator=generator)


def _pgd(scene: Scene, x: Tensor, y: Tensor, generator: Generator, settings: dict[str, Any]) -> Tensor:
    return pgd(scene.model, x, y, threat=scene.threat, config=PgdConfig(**settings), generator=generator)


def _strongest(scene: Scene, x: Tensor, y: Tensor, generator: Generator, settings: dict[str, Any]) -> Strongest:
    return strong(
        scene.model, x, y, threat=scene.threat, config=_config(scene, settings), forms=scene.forms or None,
        generator=generator, memory=scene.memory, settle=scene.settle,
    )  # fmt: skip


def _strong(scene: Scene, x: Tensor, y: Tensor, generator: Generator, settings: dict[str, Any]) -> Tensor:
    return _strongest(scene, x, y, generator, settings).x


def _config(scene: Scene, settings: dict[str, Any]) -> StrongConfig:
    return StrongConfig(**settings, batch_size=scene.batch_size)


_FAMILIES = {
    "gn": _Family(
        lambda _s, x, _y, g, k: gaussian_noise(x, generator=g, **k), bounded=False, defaults={"std": 0.1}
    ),
    "fgsm": _Family(lambda s, x, y, _g, _k: fgsm(s.model, x, y, threat=s.threat)),
    "bim": _Family(
        lambda s, x, y, _g, k: bim(s.model, x, y, threat=s.threat, config=PgdConfig(**k)),
        count="steps", step_size=True,
    ),
    "pgd": _Family(
        _pgd, count="steps", restarts=True, step_size=True, defaults={"loss": "ce", "keep": "last"}
    ),
    "cw-inf": _Family(
        _pgd, count="steps", restarts=True, step_size=True, defaults={"loss": "margin", "keep": "last"}
    ),
    "tpgd": _Family(
        lambda s, x, y, g, k: tpgd(s.model, x, y, threat=s.threat, config=PgdConfig(**k), generator=g),
        count="steps", step_size=True,
    ),
    "cw": _Family(
        lambda s, x, y, _g, k: cw(s.model, x, y, **k),
        count="steps", bounded=False, defaults={"c": 1.0, "kappa": 0.0, "lr": 0.01},
    ),
    "square": _Family(
        lambda s, x, y, g, k: square(s.model, x, y, threat=s.threat, generator=g, **k), count="queries",
    ),
    "transfer": _Family(
        _transfer, count="steps", restarts=True, step_size=True, defaults={"loss": "ce", "keep": "last"}
    ),
    "apgd-ce": _Family(
        lambda s, x, y, _g, _k: autoattack_part(s.model, x, y, threat=s.threat, seed=s.seed, part="apgd-ce")
    ),
    "apgd-t": _Family(
        lambda s, x, y, _g, _k: autoattack_part(s.model, x, y, threat=s.threat, seed=s.seed, part="apgd-t"),
    ),
    "autoattack": _Family(
        lambda s, x, y, _g, k: autoattack_part(s.model, x, y, threat=s.threat, seed=s.seed, **k), parts=PARTS,
    ),
    STRONG: _Family(_strong, defaults={"quick": False, "budget": 0}),
}  # fmt: skip
EXAMPLES = (
    "gn", "fgsm", "bim-20", "pgd-20", "pgd-20x5", "tpgd-20", "cw-20", "cw-inf-30", "square-5000", "transfer-20",
    "apgd-ce", "apgd-t", "autoattack", "strong", "strong:quick",
)  # fmt: skip

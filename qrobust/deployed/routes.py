"""Named attacks as they run on a file: each crafted on several networks in turn, and judged elsewhere.

pgd-20      on the session's logits with the twin's gradient, in each backward form
autoattack  its parts with gradients likewise, Square on the session
square-500  on the session
transfer-20 on the twin of every other file
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator, Tensor, nn

from ..attacks import Attack, Scene
from ..data import to_unit
from ..errors import RecipeError
from ..export.suite import to_pixels
from .serving import Deployed, Served

WITHOUT_GRADIENTS = ("gn", "square")  # families
TRANSFER, SQUARE, SESSION = "transfer", "square", "session"


@dataclass(frozen=True)
class Route:
    """A network to craft on, and the part of an attack that does; "" for the one part that most have."""

    network: nn.Module
    part: str = ""


@dataclass(frozen=True)
class Routed(Attack):
    """An attack whose parts are routes by name: each sees the images that those before it left right.

    camera: its images are rounded to the bytes that the file takes, inside the threat: what a session rounds to the
    nearest byte may leave an l2 ball.
    """

    inner: Attack | None = None
    routes: Mapping[str, Route] = field(default_factory=dict, repr=False, compare=False)
    camera: bool = False

    def run(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator, part: str = "") -> Tensor:
        """x_adv, crafted on the route's network instead of the scene's."""
        assert self.inner is not None
        route = self.routes[part]
        place: dict[str, Any] = {"twin" if self.family == TRANSFER else "model": route.network}
        x_adv = self.inner.run(replace(scene, **place), x, y, generator, route.part)
        if not (self.camera and self.bounded):
            return x_adv
        return to_unit(to_pixels(scene.threat.project(x_adv, x), x, scene.threat), x.device)


def routed(
    attack: Attack, deployed: Deployed, served: Served, *, forms: Sequence[str], sources: Sequence[Deployed]
) -> Routed:
    """An attack with its routes on a file. Raises RecipeError for a transfer attack without sources."""
    settings = dict(attack.settings)
    if attack.family == TRANSFER:
        if not sources:
            raise RecipeError(f"expected a file to transfer {attack.name} from, got none; name one by --transfer")
        routes = {f"from {source.name} {source.sha256[:8]}": Route(source.gradient()) for source in sources}
        settings["sources"] = {source.name: source.sha256 for source in sources}
    elif attack.family in WITHOUT_GRADIENTS:
        routes = {SESSION: Route(served)}
    else:
        through = {form: deployed.through(served, form) for form in forms}
        parts = [part for part in attack.parts if part != SQUARE]
        routes = {f"{form} {part}".strip(): Route(through[form], part) for form in forms for part in parts}
        routes |= {f"{SESSION} {part}": Route(served, part) for part in attack.parts if part == SQUARE}
        settings["backward"] = list(forms)
    return Routed(attack.name, attack.family, settings, attack.bounded, tuple(routes), attack, routes, deployed.camera)

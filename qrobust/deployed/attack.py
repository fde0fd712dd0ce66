"""`qrobust attack`: a file under every attack that fits it, and how far the number in torch was from that.

pgd-20      on the session's logits with the gradient of the module rebuilt from the file, in each backward form
autoattack  its parts with gradients likewise, Square on the session
strong      the session judges and Square asks it; gradients as above, the backward forms in turns
square-500  on the session
transfer-20 on the module of every other file

in torch (manifest) ─ replayed (suite on the session) ─ attacked (the file itself): the gap
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from .. import devices
from ..attacks import Attack, Scene, named
from ..attacks.cascade import Expected, Strongest
from ..attacks.registry import SQUARE, STRONG, TRANSFER, WITHOUT_GRADIENTS, attack_names
from ..data import Given, Images, as_images, make_images
from ..distributed import is_first, own
from ..errors import RecipeError
from ..evaluation import evaluate
from ..evaluation.outcomes import CLEAN, result_file, stream
from ..export.artifact import NO_PARITY, in_bytes
from ..runtime import Artifact, served
from ..threat import Threat
from .model import GIVEN, SUITE, Deployed, Served, expect_classes, find_images, find_sources, of_artifact, open_deployed
from .sanity import TRAINED_FORM, CheckedFile, Labels, check_file_sanity

SESSION = "session"
TURNS = (TRAINED_FORM, "soft", "identity")  # of backward forms


@dataclass(frozen=True)
class Surrogate:
    """A network to attack in the place of a file, and the part of an attack that does; most have one, "". forms: of
    `strong`, by backward form, the session's logits with the module's gradient.
    """

    network: nn.Module
    part: str = ""
    forms: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class SurrogateAttack(Attack):
    """An attack whose parts are surrogates by name: each sees the images that those before it left right.

    takes_bytes: its images are rounded to the bytes that the file takes, inside the threat: what a session rounds to
    the nearest byte may leave an l2 ball.
    """

    inner: Attack | None = None
    surrogates: Mapping[str, Surrogate] = field(default_factory=dict, repr=False, compare=False)
    takes_bytes: bool = False

    def run(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator, part: str = "") -> Tensor:
        """x_adv, made on the surrogate instead of the scene's network."""
        assert self.inner is not None
        x_adv = self.inner.run(self._on_surrogate(scene, part), x, y, generator, self.surrogates[part].part)
        return in_bytes(x_adv, x, scene.threat) if self.takes_bytes and self.bounded else x_adv

    def strongest(self, scene: Scene, x: Tensor, y: Tensor, generator: Generator) -> Strongest:
        """As the attack itself, on its surrogate."""
        assert self.inner is not None
        return self.inner.strongest(self._on_surrogate(scene, *self.surrogates), x, y, generator)

    def expect(self, scene: Scene, x: Tensor, y: Tensor) -> Expected:
        """As the attack itself, on its surrogate."""
        assert self.inner is not None
        return self.inner.expect(self._on_surrogate(scene, *self.surrogates), x, y)

    def _on_surrogate(self, scene: Scene, part: str) -> Scene:
        surrogate = self.surrogates[part]
        place: dict[str, Any] = {"float_model" if self.family == TRANSFER else "model": surrogate.network}
        settle = partial(in_bytes, threat=scene.threat) if self.takes_bytes else scene.settle
        return replace(scene, forms=surrogate.forms, settle=settle, **place)


def with_surrogates(
    attack: Attack, deployed: Deployed, served: Served, *, forms: Sequence[str], sources: Sequence[Deployed]
) -> SurrogateAttack:
    """An attack with its surrogates for a file. Raises RecipeError for a transfer attack without sources."""
    settings = dict(attack.settings)
    if attack.family == TRANSFER:
        if not sources:
            raise RecipeError(f"expected a file to transfer {attack.name} from, got none; name one by --transfer")
        surrogates = {f"from {source.name} {source.sha256[:8]}": Surrogate(source.gradient()) for source in sources}
        settings["sources"] = {source.name: source.sha256 for source in sources}
    elif attack.family in WITHOUT_GRADIENTS:
        surrogates = {SESSION: Surrogate(served)}
    elif attack.family == STRONG:
        turns = sorted(forms, key=TURNS.index)
        surrogates = {"": Surrogate(served, forms={form: deployed.through(served, form) for form in turns})}
        settings["backward"] = turns
    else:
        through = {form: deployed.through(served, form) for form in forms}
        parts = [part for part in attack.parts if part != SQUARE]
        surrogates = {f"{form} {part}".strip(): Surrogate(through[form], part) for form in forms for part in parts}
        surrogates |= {f"{SESSION} {part}": Surrogate(served, part) for part in attack.parts if part == SQUARE}
        settings["backward"] = list(forms)
    return SurrogateAttack(
        attack.name,
        attack.family,
        settings,
        attack.bounded,
        tuple(surrogates),
        attack,
        surrogates,
        deployed.takes_bytes,
    )


FROM_SCRATCH = "square-500"  # which must not beat what has gradients
FROM_OTHERS = "transfer-20:keep=best"
WITHOUT_GRADIENTS_ALONE = ("gn", "square-500")
WORST = "worst_case"
MAX_VALUES = 2**22  # of one batch: 250 images up to 74x74, fewer of larger ones
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """attacks: names; () for `default_attacks`. n: how many images, None for all. eps: None for the artifact's,
    or 8/255. forms: backward forms, () for all that differ. sources: files to transfer from, the first of them the
    float network.
    """

    attacks: tuple[str, ...] = ()
    n: int | None = None
    seed: int = 0
    eps: float | None = None
    forms: tuple[str, ...] = ()
    sources: tuple[Deployed, ...] = ()


def attack_deployed(
    deployed: Deployed, images: Images, settings: Settings, path: Path | None = None, **more: Any
) -> Record:
    """What attacks on a file leave of its accuracy; the session judges every candidate.

    Returns an evaluation's result with "artifact", "gap", "sanity_checks", "flags" and `more`; saved to `path` (.json)
    with masks beside it, and then a stopped one goes on where it was. Raises RecipeError for what is no attack,
    DataError for more images than there are.
    """
    threat = threat_of(deployed, settings.eps)
    served = devices.on_device(deployed.served())
    assert isinstance(served, Served)
    for network in (deployed, *settings.sources):
        devices.on_device(network.module)
    state = path.with_suffix(".partial.npz") if path else None
    batch_size = batch_size_of(images)
    outcomes = evaluate(
        served,
        images,
        attacks=_attacks(deployed, served, threat, settings),
        threat=threat,
        n=settings.n,
        seed=settings.seed,
        batch_size=batch_size,
        state=state,
    )
    source = settings.sources[0] if settings.sources else None
    checked = CheckedFile(deployed, served, images, outcomes, source=source, batch_size=batch_size)
    found = check_file_sanity(checked)
    more |= {
        "artifact": described(deployed),
        "gap": gap(checked),
        "sanity_checks": found.measured,
        "flags": [flag.to_dict() for flag in found.flags],
    }
    if path is not None and is_first():
        outcomes.save(path, **more)
    if state is not None:
        own(state).unlink(missing_ok=True)
    return outcomes.to_dict() | more


def batch_size_of(images: Images) -> int:
    """Images at once."""
    return max(1, min(250, MAX_VALUES // math.prod(images.shape[1:])))


def attack(
    file: Artifact | str | Path,
    data: Given | None = None,
    *,
    attacks: str | Sequence[str] = (),
    n: int | None = None,
    seed: int = 0,
    eps: float | None = None,
    transfer: Sequence[str | Path] = (),
) -> Record:
    """What attacks on the file itself leave of its accuracy, with gradients of its own; the session judges.

    file: an artifact, its folder, or any classifier in an ONNX file that takes images (n, c, h, w) in [0,1]. data: an
    (x, y) pair of tensors or arrays, a torch Dataset or DataLoader, `Images`; None for the suite's clean images.
    attacks: names, as in `qrobust eval --attacks`; () for `strong`, the suite's, Square, and transfer where there is a
    source. n: how many images, None for all. eps: in units of [0,1], None for the artifact's, or 8/255. transfer:
    artifacts, ONNX files or runs to transfer examples from; () for the float artifact beside.

    Returns what `Outcomes.to_dict` does: "clean", "attacks", "worst_case" with intervals; besides it "artifact", "gap"
    (the same attack's accuracy in torch, replayed, and here), "sanity_checks" and "flags". Raises ArtifactError for a
    damaged artifact, GraphError for a graph that gradients cannot pass, RecipeError for what is no attack or where
    images are missing, DataError for images or labels that do not fit.

    >>> import qrobust
    >>> result = qrobust.attack("artifact", attacks=["pgd-20:keep=best", "square-20"], n=50)
    >>> result["worst_case"]["accuracy"] <= result["clean"]["accuracy"]
    True
    """
    deployed = of_artifact(file) if isinstance(file, Artifact) else open_deployed(Path(file))
    names = attack_names(attacks, ()) if isinstance(attacks, str) else tuple(attacks)
    if data is None and deployed.artifact is None:
        raise RecipeError(f"expected images for {deployed.path.name}, which has no suite, got none; pass data=(x, y)")
    images = find_images(deployed) if data is None else expect_classes(deployed, as_images(data))
    sources = find_sources(deployed, [Path(one) for one in transfer])
    chosen = Settings(names, n, seed, eps, sources=sources)
    return attack_deployed(deployed, images, chosen, data=SUITE if data is None else GIVEN)


def attack_file(
    path: Path,
    settings: Settings,
    *,
    transfer: Sequence[Path] = (),
    data: str = "",
    root: str | None = None,
    json: Path | None = None,
) -> Record:
    """The result of `attack_deployed` on an artifact or an ONNX file.

    settings: without sources, which `transfer` names as in `find_sources`. data, root: as in `find_images`. json: as in
    `evaluate_artifact`.
    """
    place, deployed = result_file(json), open_deployed(path)
    sources = find_sources(deployed, transfer)
    images = find_images(deployed, data, root)
    result = attack_deployed(deployed, images, replace(settings, sources=sources), place, data=data or SUITE)
    stream(json, result)
    return result


def evaluate_artifact(folder: Path, attacks: str, n: int | None, seed: int, json: Path | None) -> dict[str, Record]:
    """The result of attacks without gradients on an artifact's session, by its name.

    attacks: names with commas, a key of `PROTOCOLS`, or "" for noise and Square. json: a file for the result, masks
    beside it, or a stream.
    Raises RecipeError for an attack that needs gradients.
    """
    place, artifact = result_file(json), Artifact.load(folder)
    threat = Threat(artifact.manifest["threat"]["norm"], artifact.eps)
    chosen = [named(name, threat) for name in attack_names(attacks, WITHOUT_GRADIENTS_ALONE)]
    for one in chosen:
        if one.family not in WITHOUT_GRADIENTS:
            raise RecipeError(
                f"expected attacks without gradients on an artifact (gn, square-500), got {one.name}; "
                "use qrobust attack ARTIFACT"
            )
    pixels, labels = (torch.from_numpy(artifact.suite[name]) for name in ("x.clean", "y"))
    state = place.with_suffix(".partial.npz") if place else None
    outcomes = evaluate(
        Served(artifact.logits, artifact.manifest["files"][served(artifact.manifest)]["sha256"]),
        make_images(pixels, labels, classes=len(artifact.classes)),
        attacks=chosen,
        threat=threat,
        n=n,
        seed=seed,
        state=state,
    )
    if place is not None and is_first():
        outcomes.save(place, flags=[])
    if state is not None:
        own(state).unlink(missing_ok=True)
    result = outcomes.to_dict() | {"flags": []}
    stream(json, result)
    return {artifact.name: result}


def threat_of(deployed: Deployed, eps: float | None = None) -> Threat:
    """The threat on a file, l-inf for one that came in no artifact; there in whole steps of a byte where it takes
    bytes, so that rounding stays inside.
    """
    norm: Any = deployed.artifact.manifest["threat"]["norm"] if deployed.artifact else "linf"
    eps = (deployed.artifact.eps if deployed.artifact else 8 / 255) if eps is None else eps
    whole = deployed.takes_bytes and norm == "linf"
    return Threat(norm, math.floor(eps * 255 + 1e-6) / 255 if whole else eps)


def described(deployed: Deployed) -> Record:
    """Which file it was, and where it ran."""
    return {
        "name": deployed.name,
        "sha256": deployed.sha256,
        "provider": deployed.provider,
        "graph_optimization_level": deployed.level,
    }


def gap(checked: CheckedFile) -> Record:
    """Accuracies on the same images by place and attack, with n: "in_torch", "replayed", "attacked".

    in_torch: by torch's labels of the suite's images, "worst_case" too, and for attacks that the suite lacks as the
    manifest has it, if it was measured on these images; empty for a file of which no torch network is known. replayed:
    the suite's images on the session. Both are empty where images of no suite were attacked.
    """
    artifact = checked.deployed.artifact
    in_torch = artifact is None or artifact.manifest.get("parity") != NO_PARITY
    outcomes = checked.outcomes
    attacked = {name: float(mask.mean()) for name, mask in outcomes.correct.items()}
    return {
        "in_torch": _measured(checked) | _on_suite(checked, checked.stored) if in_torch else {},
        "replayed": _on_suite(checked, checked.labels),
        "attacked": {"n": outcomes.n, **attacked, WORST: float(outcomes.worst_case().mean())},
    }


def _measured(checked: CheckedFile) -> Record:
    """A manifest's numbers of the same attacks and images; what is none is left out: a manifest is only data."""
    artifact, outcomes = checked.deployed.artifact, checked.outcomes
    before = artifact.manifest["metrics"]["before"] if artifact else {}
    if before.get("images") != outcomes.images:
        return {}
    attacks = before.get("attacks")
    cells = {CLEAN: before.get(CLEAN), **(attacks if isinstance(attacks, dict) else {}), WORST: before.get(WORST)}
    shares = {name: cell.get("accuracy") for name, cell in cells.items() if isinstance(cell, dict)}
    same = {name: share for name, share in shares.items() if name in (*outcomes.correct, WORST)}
    return {"n": outcomes.n} | {name: one for name, one in same.items() if isinstance(one, float) and 0 <= one <= 1}


def _on_suite(checked: CheckedFile, labels: Labels) -> Record:
    """Accuracies of the labels that a place gives to the suite's images."""
    if not checked.stored:
        return {}
    y = checked.y.cpu().numpy()
    right = {name: found.numpy() == y for name, found in labels.items()}
    worst = np.logical_and.reduce(list(right.values()))
    return {"n": len(worst), **{name: float(mask.mean()) for name, mask in right.items()}, WORST: float(worst.mean())}


def _attacks(deployed: Deployed, served: Served, threat: Threat, settings: Settings) -> list[SurrogateAttack]:
    forms = settings.forms or deployed.forms
    chosen = [named(name, threat) for name in settings.attacks or default_attacks(deployed, settings.sources)]
    return [with_surrogates(one, deployed, served, forms=forms, sources=settings.sources) for one in chosen]


def default_attacks(deployed: Deployed, sources: Sequence[Deployed] = ()) -> tuple[str, ...]:
    """`strong`, the suite's, so that they compare, Square, which must not beat them, and transfer from any source."""
    stored = [name for name in deployed.artifact.sets if name != CLEAN] if deployed.artifact else []
    names = dict.fromkeys((STRONG, *stored, FROM_SCRATCH, FROM_OTHERS))
    return tuple(name for name in names if sources or not name.startswith(TRANSFER))

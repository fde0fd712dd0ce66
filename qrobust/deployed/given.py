"""`qrobust.export_file`: somebody's ONNX file and images to an artifact that is checked, timed and attacked as our own.

F.onnx ──prepare──▶ GivenFile ──session, and gradients of the module rebuilt──▶ metrics, suite ──▶ artifact

No torch network is known that the file came from: labels and logits of the suite are the session's, parity is "none".
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import devices
from ..attacks import Attack, named
from ..attacks.registry import STRONG, TRANSFER, attack_names
from ..data import Dataset, Given, Images, as_images, choose, to_unit
from ..data.images import fingerprint
from ..errors import DataError, GraphError, RecipeError
from ..evaluation.accuracy import are_probabilities, predict
from ..export.artifact import (
    NO_PARITY,
    Arrays,
    Contents,
    GivenFile,
    check_suite_attacks,
    expect_replaceable,
    make_suite,
    write_artifact,
)
from ..export.given import class_names, expect_enough
from ..export.sessions import present_provider
from ..export.target import Target, load_target
from ..export.write import GIVEN_TARGET, check_given
from ..runtime import Artifact
from ..threat import Threat
from .attack import Settings, attack_deployed, batch_size_of, threat_of, with_surrogates
from .model import Deployed, Served, expect_classes, of_artifact, read_data
from .prepare import prepare
from .source import Normalisation, size_of

STEP = 1 / 255
MANY = 32  # rows in which probabilities are told from logits


@dataclass(frozen=True)
class FileConfig:
    """How `export_file` reads and writes a file.

    name: of the artifact, None for its folder's. classes: names, label k is `classes[k]`; None for the data's own, or
    numbers. n: images that are attacked and stored, a stratified choice, or all if there are fewer; None for all. mean,
    std: of pixels in [0,1], one number or one a channel, () for none: what the file's images were normalised by.
    output: the value of the graph that gives logits, if not its only output. Raises DataError for no images.
    """

    name: str | None = None
    classes: tuple[str, ...] | None = None
    n: int | None = 300
    seed: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    output: str | None = None

    def __post_init__(self) -> None:
        if (self.n is not None and self.n < 1) or self.seed < 0:
            raise DataError(f"expected n of 1 or more and a seed of 0 or more, got {self.n} and {self.seed}; change it")


def export_file(
    file: str | Path,
    data: Given | Dataset,
    *,
    threat: Threat,
    out: str | Path,
    target: str | Target = GIVEN_TARGET,
    attacks: str | Sequence[str] = (STRONG,),
    config: FileConfig = FileConfig(),
) -> Artifact:
    """Make an artifact of an ONNX file that somebody else wrote; returns it.

    file: a classifier of images, float or quantised, that takes floats or bytes, channels first or last; data that lie
    beside it are put inside. It is stored as it is, but for what stands before it (`config.mean`, a transpose, a cast)
    and the value that gives logits, where it ends in a softmax; the manifest's `source` holds the sha256 of the file as
    it came, and says what was changed. data, out: as `export_artifact` takes them. target: name or path of one in
    `export/`. attacks: of the evaluation and of the suite, made on the session's logits with the gradients of the
    module rebuilt from the graph; the session judges. There is no torch network to compare with: parity reads "none".

    Raises GraphError for a file that cannot be read, changed or rebuilt, DataError for images that do not fit or are
    too few, ExportError for one that a target does not take, RecipeError for what is no attack, RunError for a folder
    that is not ours.
    """
    place, chosen = Path(out).absolute(), target if isinstance(target, Target) else load_target(target)
    expect_replaceable(place, ours=False)
    asked = _asked(attacks, threat)
    images = data.test if isinstance(data, Dataset) else as_images(data)
    expect_enough(min(len(images), config.n or len(images)), chosen, len(asked))
    found = prepare(Path(file), images, normalisation=Normalisation(config.mean, config.std), output=config.output)
    check_given(found.data, chosen)
    with tempfile.TemporaryDirectory() as folder:
        deployed = _opened(Path(folder), found, chosen, threat)
        expect_classes(deployed, images)
        dataset = _dataset(found, data, images, config)
        before, suite = _measured(deployed, dataset, asked, config)
    own = threat_of(deployed)
    stated = {"norm": own.norm, "eps": own.eps}
    name = config.name or place.name
    contents = Contents(
        name=name,
        bits=found.bits,
        seed=config.seed,
        threat=own,
        recipe={"name": name, "threat": stated, "evaluate": {"attacks": [one.name for one in asked]}},
        before=before,
        suite=suite,
    )
    write_artifact(place, found, dataset, chosen, contents)
    return Artifact.load(place)


def export_named(
    file: Path, data: tuple[str, str | None], *, threat: Threat, out: Path, target: str = "", config: FileConfig
) -> Artifact:
    """`export_file` on images that are named. data: as `read_data` takes them, with the data set's root."""
    text, root = data
    size = size_of(file) if text else None
    images = read_data(text, root, name=file.name, size=size)
    return export_file(file, images, threat=threat, out=out, target=target or GIVEN_TARGET, config=config)


def _asked(attacks: str | Sequence[str], threat: Threat) -> tuple[Attack, ...]:
    if threat.eps < STEP - 1e-9:
        raise RecipeError(f"expected eps of 1/255 or more, a step of a byte, got {threat.eps:g}; raise it")
    names = attack_names(attacks) if isinstance(attacks, str) else attacks
    found = tuple(named(name, threat) for name in names)
    check_suite_attacks(found)
    if not any(one.bounded for one in found):
        raise RecipeError(f"expected an attack within the threat, got none; add one, as {STRONG!r}")
    if transfer := [one.name for one in found if one.family == TRANSFER]:
        raise RecipeError(f"expected attacks on the file itself, got {transfer[0]}; qrobust attack --transfer makes it")
    return found


def _opened(folder: Path, found: GivenFile, target: Target, threat: Threat) -> Deployed:
    """The file where it will run, or on the CPU where that is missing, before it has a suite."""
    path = folder / "model.onnx"
    path.write_bytes(found.data)
    stated: dict[str, Any] = {
        "name": str(found.source["name"]),
        "input": found.input,
        "output": {"name": found.output},
        "classes": list(map(str, range(found.classes))),
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "reference": {},
        "parity": NO_PARITY,
        "target": {"provider": present_provider(target), "session_options": target.session.model_dump()},
        "files": {"model.onnx": {"sha256": found.sha256}},
    }
    return of_artifact(Artifact(folder, stated, {"x.clean": np.empty(0)}, found.data))


def _dataset(found: GivenFile, data: Given | Dataset, images: Images, config: FileConfig) -> Dataset:
    """The images that are attacked, with names of classes. Raises DataError unless there are as many as logits."""
    names = config.classes or class_names(data) or tuple(map(str, range(found.classes)))
    if len(names) != found.classes:
        raise DataError(
            f"expected {found.classes} names of classes, as the file has logits, got {len(names)}; name them by "
            "--classes, or classes= in Python"
        )
    chosen, _ = choose(images, config.n, config.seed)
    nothing = images.take(slice(0, 0))  # nothing is trained on here
    printed = data.fingerprint if isinstance(data, Dataset) else fingerprint(images)
    return Dataset("given", tuple(map(str, names)), nothing, nothing, chosen, printed)


def _measured(
    deployed: Deployed, dataset: Dataset, attacks: Sequence[Attack], config: FileConfig
) -> tuple[dict[str, Any], Arrays]:
    """The evaluation that the manifest keeps, with its flags, and the suite."""
    images, threat = dataset.test, threat_of(deployed)
    served = devices.on_device(deployed.served())
    assert isinstance(served, Served)
    _expect_logits(deployed, served, images)
    names = tuple(one.name for one in attacks)
    found = attack_deployed(deployed, images, Settings(names, seed=config.seed))
    before = {key: value for key, value in found.items() if key not in ("artifact", "gap", "indices")}
    through = [with_surrogates(one, deployed, served, forms=deployed.forms, sources=()) for one in attacks]
    size = batch_size_of(images)
    return before, make_suite(served, images, attacks=through, threat=threat, seed=config.seed, batch_size=size)


@torch.no_grad()
def _expect_logits(deployed: Deployed, served: Served, images: Images) -> None:
    """Before minutes of attacks. Raises GraphError for probabilities, or a file that is right on no image."""
    name = deployed.path.name
    logits = served(to_unit(images.take(slice(0, MANY)).x, "cpu"))
    if are_probabilities(logits):
        raise GraphError(
            f"expected logits, got probabilities (rows sum to {float(logits.sum(1).mean()):.3g}) of no Softmax at the "
            "end; name the value before them by --output NAME"
        )
    if not any(bool((predict(served, to_unit(one.x, "cpu")) == one.y).any()) for one in images.batches(MANY)):
        raise GraphError(
            f"expected {name} to be right on some of {len(images)} images, got none; say how images were normalised "
            "(--mean, --std), or mend the labels"
        )

"""`qrobust.export_artifact`: anyone's network and images to an artifact of exactly what was evaluated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from .. import devices, runtime
from ..attacks import Attack, attack_names, named
from ..attacks.registry import STRONG, TRANSFER
from ..data import Dataset, Given, as_images, choose, to_unit
from ..data.images import fingerprint
from ..errors import DataError, ExportError, ModelError, did_you_mean, shown
from ..evaluation import CHEAP_CHECKS, CheckedModel, check_sanity, evaluate
from ..evaluation.accuracy import check_logits
from ..models.inference import in_eval_mode
from ..quant import bits_per_layer, cost, quantizers, round_biases
from ..threat import Threat
from .artifact import Arrays, Contents, check_suite_attacks, expect_replaceable, make_suite, write_artifact
from .target import Target, load_target
from .write import INPUTS

ATTACKS = (STRONG,)  # of the evaluation, and of the suite
FLOAT, FLOAT_BITS = "qm-32", 32  # folder of the float artifact, beside the one that is compared with it
MOST_CHECKED = 200  # images of sanity checks


@dataclass(frozen=True)
class ExportConfig:
    """How `export_artifact` writes; a target's name is all that most need.

    name: of the artifact, None for its folder's. classes: names, label k is `classes[k]`; None for the data's own, or
    numbers. n: images that are evaluated and stored, a stratified choice; None for all. suite_attacks: names of the
    stored attacks, whatever the evaluation takes; None for its bounded ones. input: "float32-nchw" or "uint8-nhwc".
    Raises ExportError for another input.
    """

    name: str | None = None
    classes: tuple[str, ...] | None = None
    n: int | None = None
    seed: int = 0
    suite_attacks: tuple[str, ...] | None = ATTACKS
    input: str = INPUTS[0]

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise ExportError(f"expected input {' or '.join(INPUTS)}, got {shown(self.input)}"
                              f"{did_you_mean(str(self.input), INPUTS)}")  # fmt: skip


def export_artifact(
    model: nn.Module,
    data: Given | Dataset,
    *,
    threat: Threat,
    out: str | Path,
    target: str | Target = "ort-cpu",
    attacks: str | Sequence[Attack | str] = ATTACKS,
    float_model: nn.Module | None = None,
    config: ExportConfig = ExportConfig(),
) -> runtime.Artifact:
    """Evaluate a network and write exactly what was evaluated, with its suite, parity and manifest; returns it.

    model: float or from `quantize`, with logits (n, classes); it stays as it is. Biases that a loop of one's own left
    between two steps are rounded first, in a copy, so that the file is of the network evaluated. data: test images, an
    (x, y) pair of tensors or arrays, x uint8 or in [0,1], a torch Dataset or DataLoader, `Images`, or our `Dataset`,
    of which the test images are taken. out: a folder; an artifact there is replaced, anything else never. target: name
    or path of one in `export/`. attacks: of the evaluation, which the manifest keeps. float_model: what the network was
    quantised from: for transfer attacks, and written as an artifact of its own, `qm-32` beside `out`, for the ratios
    of a bench and for `qrobust.attack`.

    Raises ExportError for a network or target that cannot be written, ParityError for a file that computes something
    else, DataError or ModelError for images and networks that do not fit, RunError for a folder that is not ours.

    >>> import torch, qrobust
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> x, threat = torch.rand(160, 1, 8, 8), qrobust.Threat("linf", 8 / 255)
    >>> data = x, net(x).argmax(1)
    >>> artifact = qrobust.export_artifact(net, data, threat=threat, out="artifact", attacks=["pgd-20"])
    >>> artifact.sets, artifact.classes
    (('clean', 'strong'), ('0', '1'))
    """
    place, chosen = Path(out).absolute(), target if isinstance(target, Target) else load_target(target)
    dataset = _as_dataset(model, data, config)
    order = _Order(dataset, chosen, _asked(attacks, threat), threat, config)
    networks: list[tuple[Path, nn.Module, nn.Module | None]] = [(place, model, float_model)]
    if float_model is not None and _width(model) < FLOAT_BITS:
        if place.name == FLOAT:
            raise ExportError(f"expected a folder other than {FLOAT}, which is for the float artifact, got {out}; "
                              "choose another out")  # fmt: skip
        networks.insert(0, (place.with_name(FLOAT), float_model, None))
    for folder, _, source in networks:
        order.expect_possible(folder, source)
    for folder, network, source in networks:
        order.write(folder, network, source)
    return runtime.Artifact.load(place)


@dataclass(frozen=True)
class _Order:
    """What all networks of one call share."""

    dataset: Dataset
    target: Target
    attacks: tuple[Attack, ...]
    threat: Threat
    config: ExportConfig

    def expect_possible(self, folder: Path, source: nn.Module | None) -> None:
        """Before any work: raises RunError for a folder that is not ours, ExportError or DataError for the attacks."""
        expect_replaceable(folder, ours=False)
        self._expect_bounded(self.evaluated(source), "evaluate by")
        n = len(self.dataset.test)
        expect_enough(min(self.config.n or n, n), self.target, len(self.stored(source)))

    def write(self, folder: Path, network: nn.Module, source: nn.Module | None) -> None:
        """One network; source: the float one that a quantised one was made from."""
        model = devices.on_device(copy.deepcopy(network)).eval()
        if isinstance(model, fx.GraphModule):
            round_biases(model)
        float_model = None if source is None else devices.on_device(copy.deepcopy(source)).eval()
        name = folder.name if self.config.name is None else self.config.name + f"-{FLOAT}" * (folder.name == FLOAT)
        attacks = [one.name for one in self.evaluated(float_model)]
        contents = Contents(
            name=name,
            bits=_width(model),
            seed=self.config.seed,
            threat=self.threat,
            recipe={"name": name, "threat": self._threat(), "evaluate": {"attacks": attacks}},
            before=self._measured(model, float_model),
            suite=self._suite(model, float_model),
            input=self.config.input,
        )
        write_artifact(folder, model, self.dataset, self.target, contents)

    def evaluated(self, float_model: nn.Module | None) -> tuple[Attack, ...]:
        """The attacks; the float network itself has none to transfer from."""
        return _possible(self.attacks, float_model)

    def stored(self, float_model: nn.Module | None) -> tuple[Attack, ...]:
        """Those of the suite. Raises ExportError for none."""
        given = self.config.suite_attacks
        bounded = tuple(one for one in self.attacks if one.bounded)
        found = _possible(bounded if given is None else _asked(given, self.threat), float_model)
        check_suite_attacks(found)
        self._expect_bounded(found, "store")
        return found

    @staticmethod
    def _expect_bounded(attacks: Sequence[Attack], use: str) -> None:
        """Without one, the worst case would be the clean accuracy."""
        if not any(one.bounded for one in attacks):
            raise ExportError(f"expected an attack within the threat to {use}, got none; add one, as '{STRONG}'")

    def _threat(self) -> dict[str, Any]:
        return {"norm": self.threat.norm, "eps": self.threat.eps}

    def _suite(self, model: nn.Module, float_model: nn.Module | None) -> Arrays:
        images, _ = choose(self.dataset.test, self.config.n, self.config.seed)
        attacks, seed = self.stored(float_model), self.config.seed
        return make_suite(model, images, attacks=attacks, threat=self.threat, seed=seed, float_model=float_model)

    def _measured(self, model: nn.Module, float_model: nn.Module | None) -> dict[str, Any]:
        """The evaluation that the manifest keeps, with its cost and flags."""
        images, seed = self.dataset.test, self.config.seed
        outcomes = evaluate(
            model, images, attacks=self.evaluated(float_model), threat=self.threat, n=self.config.n, seed=seed,
            float_model=float_model,
        )  # fmt: skip
        checked = CheckedModel(
            model, images, self.threat, float_model=float_model, outcomes=outcomes, n=min(outcomes.n, MOST_CHECKED),
            seed=seed,
        )  # fmt: skip
        found = check_sanity(checked, CHEAP_CHECKS)
        example = to_unit(images.take(slice(0, 1)).x, devices.device_of(model), channels_last=True)
        stated = {key: value for key, value in outcomes.to_dict().items() if key != "indices"}
        flags = [flag.to_dict() for flag in found.flags]
        return stated | {"cost": cost(model, example).to_dict(), "sanity_checks": found.measured, "flags": flags}


def _possible(attacks: Sequence[Attack], float_model: nn.Module | None) -> tuple[Attack, ...]:
    return tuple(one for one in attacks if one.family != TRANSFER or float_model is not None)


def _asked(attacks: str | Sequence[Attack | str], threat: Threat) -> tuple[Attack, ...]:
    given = attack_names(attacks) if isinstance(attacks, str) else attacks
    return tuple(named(one, threat) if isinstance(one, str) else one for one in given)


def expect_enough(n: int, target: Target, stored: int) -> None:
    """Raises DataError for a suite on which no check could tell the drop that the target wants detected."""
    stated = target.statistics
    level = stated.alpha / stored
    needed = runtime.images_needed(stated.detected_drop, target.limits.robust_drop, 0.0, level, stated.power)
    if target.executable and n < needed:
        raise DataError(
            f"expected {needed} images or more, for {target.name} to detect a drop of {stated.detected_drop:.3g} under "
            f"{stored} attack{'s' * (stored > 1)}, got {n}; give more, or a target that detects less"
        )


def _as_dataset(model: nn.Module, data: Given | Dataset, config: ExportConfig) -> Dataset:
    """Test images with the names of their classes. Raises DataError unless there are as many as the network has."""
    if not isinstance(model, nn.Module):
        file = "; call qrobust.export_file for an ONNX file" if isinstance(model, (str, Path)) else "; pass one"
        raise ModelError(f"expected a network (torch.nn.Module), got {shown(model)}{file}")
    images = data.test if isinstance(data, Dataset) else as_images(data)
    first = to_unit(images.take(slice(0, 2)).x, devices.device_of(model), channels_last=True)
    with in_eval_mode(model):
        count = check_logits(model, first)
    names = config.classes or class_names(data) or tuple(map(str, range(count)))
    if len(names) != count:
        raise DataError(
            f"expected {count} names of classes, as the network has logits, got {len(names)}; "
            "pass config=ExportConfig(classes=(...))"
        )
    # No image is trained on here: the empty part says only their shape.
    nothing = images.take(slice(0, 0))
    printed = data.fingerprint if isinstance(data, Dataset) else fingerprint(images)
    return Dataset("given", tuple(map(str, names)), nothing, nothing, images, printed)


def class_names(data: object) -> tuple[str, ...]:
    """Of our data sets, torchvision's, and loaders of them; () where they have none."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    return tuple(map(str, getattr(data, "classes", ())))


def _width(model: nn.Module) -> int:
    """n of QM-n: the width that inner layers share, or the least of any; 32 for a float network."""
    inner = [one.bits for one in quantizers(model) if one.inner]
    return min(inner or bits_per_layer(model).values(), default=FLOAT_BITS)

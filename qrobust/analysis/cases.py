"""The networks that stand side by side in a figure, and what several experiments ask of them, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import devices
from ..attacks import Scene, named
from ..data import Images, choose, to_unit
from ..errors import DataError, RunError
from ..progress import bar
from ..runs.folder import FLOAT, NetworkFolder, RunFolder
from ..runs.run import Run
from ..storage import digest, read_json

BATCH = 125
DEFAULT_N = 500


@dataclass(frozen=True)
class Settings:
    """What a figure may be asked. n: test images, chosen as `data.choose` does, None for 500 or all there are.
    bandwidths: k, () for eighths of the side. attacks: names; the first makes the perturbations. norm: L2 norm per
    channel of the heat map's waves, None for that of an image whose every pixel moves by eps.
    """

    n: int | None = None
    seed: int = 0
    bandwidths: tuple[int, ...] = ()
    attacks: tuple[str, ...] = ("pgd-20",)
    norm: float | None = None

    @property
    def attack(self) -> str:
        """The one that makes the perturbations."""
        return self.attacks[0]


@dataclass(eq=False)
class Case:
    """One width of one run, on n of its test images."""

    run: Run
    bits: int
    settings: Settings
    label: str = ""
    _perturbed: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def files(self) -> NetworkFolder:
        """RUN/qm-N."""
        return self.run.files.network(self.bits)

    @property
    def model(self) -> nn.Module:
        """The network, on the device, in eval mode."""
        return self.run.network(self.bits)

    @cached_property
    def images(self) -> Images:
        """The test images. Raises DataError if there are fewer than asked for."""
        every, n = self.run.dataset.test, self.settings.n
        if n is not None and not 1 <= n <= len(every):
            raise DataError(f"expected -n in [1, {len(every)}], the test images of {self.run.folder}, got {n}")
        return choose(every, n or DEFAULT_N, self.settings.seed)[0]

    @property
    def bandwidths(self) -> tuple[int, ...]:
        """k: as set, or eighths of the side. Raises DataError for one that is wider than the images."""
        side = min(self.images.shape[-2:])
        if wrong := [k for k in self.settings.bandwidths if not 1 <= k <= side]:
            raise DataError(f"expected -k in [1, {side}], the side of the images, got {wrong[0]}; change it")
        return self.settings.bandwidths or tuple(sorted({max(1, round(side * part / 8)) for part in range(1, 9)}))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, c, h, w) in [0,1] with labels, on the device."""
        for batch in self.images.batches(BATCH):
            yield to_unit(batch.x, devices.device(), channels_last=True), batch.y.to(devices.device())

    def adversarial(self, attack: str | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x, x_adv, y of every batch under an attack (None: the first); attacked once, then from memory."""
        name = attack or self.settings.attack
        if name not in self._perturbed:
            self._perturbed[name] = self._perturb(name)
        pairs = zip(self.batches(), self._perturbed[name], strict=True)
        return ((x, x_adv.to(x.device), y) for (x, y), x_adv in pairs)

    def identity(self, reads: Sequence[str]) -> str:
        """Digest of all that decides what an experiment finds on this case, but for the settings and the label."""
        found = [path for pattern in reads for path in sorted(self.files.path.glob(pattern))]
        files = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in found]
        threat = [self.run.threat.norm, self.run.threat.eps]
        return digest([self.bits, files, threat, self.run.dataset.fingerprint])

    def _perturb(self, name: str) -> list[Tensor]:
        attack, threat = named(name, self.run.threat), self.run.threat
        scene = Scene(self.model, threat, self.run.networks.float_network(self.bits), self.settings.seed)
        perturbed = []
        with bar(f"{self.label}: {name}", len(self.images), "images") as moving:
            for index, (x, y) in enumerate(self.batches()):
                x_adv = attack.perturb(scene, x, y, devices.generator(self.settings.seed, "analyze", name, index))
                # As `evaluate.judge`: whatever an attack promised.
                perturbed.append((threat.project(x_adv, x) if attack.bounded else x_adv.clamp(0, 1)).detach().cpu())
                moving.advance(len(y))
        return perturbed


@dataclass(frozen=True)
class Result:
    """An evaluation alone, whose recipe is not known: an ablation compares it by its file's name."""

    label: str
    evaluation: dict[str, Any]

    def identity(self, reads: Sequence[str]) -> str:  # noqa: ARG002, as a case's
        """Digest of the evaluation."""
        return digest(self.evaluation)


def open_cases(paths: Sequence[Path], settings: Settings, model: str = "") -> list[Case]:
    """The cases of run folders: every width of a single run, QM-32 of each of several; of RUN/qm-N that width.

    Raises RunError for a folder that is no run, a width that was not trained, or one given twice.
    """
    folders = [RunFolder.find(path) for path in paths]
    runs = {files.path.resolve(): Run.open(files.path, model=model) for files, _ in folders}
    cases = []
    for files, one in folders:
        run = runs[files.path.resolve()]
        widths = run.recipe.bits if len(paths) == 1 else (FLOAT,)
        cases += [Case(run, bits, settings) for bits in (widths if one is None else (run.expect_width(one),))]
    for case in cases:
        _expect_trained(case)
    _set_labels(cases)
    return cases


def open_results(paths: Sequence[Path]) -> list[Result]:
    """The evaluations in files of `qrobust eval --json`. Raises RunError for a file that is none."""
    found = []
    for path in paths:
        evaluation = read_json(path)
        if not isinstance(evaluation, dict) or not {"clean", "attacks", "n"} <= evaluation.keys():
            raise RunError(f"expected the result of one network in {path}, got something else; write it by "
                           "qrobust eval RUN/qm-N --json F")  # fmt: skip
        found.append(Result(path.stem, evaluation))
    return found


def _expect_trained(case: Case) -> None:
    if not case.files.training.exists():
        raise RunError(f"expected a trained network in {case.files.path}, got none; train it by qrobust train RECIPE")


def _set_labels(cases: Sequence[Case]) -> None:
    """QM-N in a run alone; else names of folders, as long as they must be, and QM-N where it is not the float one."""
    folders = [case.run.folder.resolve() for case in cases]
    several = len(set(folders)) > 1
    short = len({folder.name for folder in folders}) == len(set(folders))
    for case, folder in zip(cases, folders, strict=True):
        name = folder.name if short else f"{folder.parent.name}/{folder.name}"
        width = f"QM-{case.bits}"
        case.label = width if not several else name if case.bits == FLOAT else f"{name} {width}"
    labels = [case.label for case in cases]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise RunError(f"expected each network once, got {repeated[0]} more often; leave one out")

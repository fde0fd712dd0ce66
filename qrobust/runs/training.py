"""Training as a stage: kept for ever, continued where it stopped, never thrown away for a changed recipe.

A float network of other settings is an error that names the key; quantised ones of other settings are moved aside.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from .. import devices, distributed, quant
from ..errors import CheckpointError, RecipeError, RunError
from ..models import own
from ..progress import detail, note
from ..recipe import Model, Recipe, difference, load, parse
from ..resources import unplaced
from ..threat import Threat
from ..train import AVERAGE, MODEL, Job, State, fit, is_whole, read_metadata, save_weights
from ..train.fitting import finish
from ..train.listeners import Listener, teller
from .folder import FLOAT, NetworkFolder
from .networks import Networks
from .stages import Stage, announce, without_key

WEIGHTS = {MODEL, AVERAGE}
SHA256 = "sha256:"  # of the weights that a network starts from


def training_settings(recipe: Recipe, bits: int) -> dict[str, Any]:
    """All keys of a recipe that decide the weights of a width, as tables of a recipe."""
    tables: dict[str, Any] = recipe.model_dump(mode="json", include={"model", "threat", "train", "seed"})
    tables["model"] = _identity(recipe.model)
    if recipe.train.teacher is not None:
        tables["train"]["teacher"] = _identity(_pinned(recipe.train.teacher))
    if recipe.train.extra is not None:
        tables["train"]["extra"] = recipe.train.extra.identity()
    tables["data"] = recipe.data.model_dump(mode="json", exclude={"root", "download", "cache", "skip_unreadable"})
    tables["data"]["name"] = unplaced(recipe.data.name)  # its code may move: images have a fingerprint
    if bits == FLOAT and not recipe.train.epochs:  # how the quantised ones are trained is not its matter
        tables.pop("threat")
        retained = ("epochs", "batch_size", "estimate_statistics") if recipe.train.estimate_statistics else ("epochs",)
        tables["train"] = {key: tables["train"][key] for key in retained}
    if bits != FLOAT:
        assert recipe.quant is not None
        chain = [width for width in recipe.bits if FLOAT > width >= bits]
        tables["bits"] = [FLOAT, *(chain if recipe.quant.start_from == "previous" else [bits])]
        tables["quant"] = recipe.model_dump(mode="json", include={"quant"})["quant"]
        if recipe.quant.teacher is not None:
            tables["quant"]["teacher"] = _identity(_pinned(recipe.quant.teacher))
    return tables


def _pinned(teacher: Model) -> Model:
    """With the digest of the file that its factory stands in, as a run's own network has it."""
    path = None if teacher.sha256 else own.source_of(teacher.name)
    return teacher if path is None else teacher.model_copy(update={"sha256": own.digest_of(path)})


def _identity(model: Model) -> dict[str, Any]:
    """A network's table with digests for places: what was moved is the same."""
    table: dict[str, Any] = model.model_dump(mode="json")
    if model.sha256:
        table["name"] = Path(model.name).name
    if (weights := model.weights) and not weights.startswith(SHA256):
        table["weights"] = SHA256 + own.digest_of(Path(weights))
    return table


class TrainStage:
    """The training of one width of a run."""

    def __init__(self, networks: Networks, threat: Threat, bits: int, on_event: Listener | None = None) -> None:
        self.networks, self.threat, self.bits, self.tell = networks, threat, bits, teller(on_event)
        self.files: NetworkFolder = networks.files.network(bits)
        self.settings = training_settings(networks.recipe, bits)
        if self.settings["train"].get("extra") and networks.extra is not None:
            _, self.settings["train"]["extra"]["sha256"] = networks.extra  # other images are another training

    @property
    def stage(self) -> Stage:
        """The record: what it reads is the width before it, and a teacher."""
        reads = {}
        if self.bits != FLOAT:
            for width in {self.networks.before(self.bits), FLOAT}:
                reads[f"qm-{width}"] = self.networks.files.network(width).weights(self.networks.deployed(width))
        names = (MODEL, AVERAGE) if self.networks.has_average(self.bits) else (MODEL,)
        return Stage(self.files.training, self.settings, reads, {name: self.files.weights(name) for name in names})

    def reconcile(self) -> None:
        """Before anything changes: refuse a float network of other settings, move a quantised one of others aside."""
        before = self._trained_with()
        changed = None if before is None else difference(before, self.settings)
        if changed is None:
            return
        if self.bits == FLOAT:
            raise RunError(
                f"expected a run of this recipe in {self.networks.files.path}, got another; {changed}; "
                "set it back, or give another --out"
            )
        self._move_aside(changed)

    def run(self) -> None:
        """Train, unless it is done."""
        stage, name = self.stage, self.networks.files.name_of(self.files.training)
        if stage.done() or self._adopted(stage):
            announce(self.tell, name, "done before", stage.recorded() or {})
            return
        detail(f"{name}: {stage.why()}")
        self._expect_remakeable(stage)
        result = self._train()
        if distributed.is_first():
            stage.finish(result)
            announce(self.tell, name, "written", result)

    def _trained_with(self) -> dict[str, Any] | None:
        """Settings of what was trained, or is in training, here, as today's schema reads them; None if nothing was."""
        stated = (self.stage.recorded() or {}).get("settings")
        if stated is None and self.files.state.exists():
            stated = _metadata(self.files).get("settings")
        if stated and isinstance(stated, dict):
            return _as_today(stated, self.bits)
        traces = (self.files.training, self.files.state, *self.stage.writes.values())
        if not any(path.exists() for path in traces):
            return None
        path = self.networks.files.recipe  # what version 0.1.0 kept of it
        try:
            return training_settings(load(str(path)), self.bits)
        except RecipeError as error:
            raise RunError(
                f"expected {path}, which says how the networks beside it were trained, got: {error}; "
                "put it back, or give another --out"
            ) from error

    def _adopted(self, stage: Stage) -> bool:
        """Whether an older record, whose key had another form, is of these settings; it then gets today's form."""
        found = stage.recorded()
        if found is None or not ("writes" not in found or (stage.stands(found) and self._same_reads(found, stage))):
            return False
        if not all(is_whole(path) for path in stage.writes.values()):
            return False
        distributed.wait()  # all have looked before the first changes what they look at
        if distributed.is_first():
            stage.finish({**without_key(found), "settings": self.settings})
        distributed.wait()
        return True

    def _same_reads(self, found: Mapping[str, Any], stage: Stage) -> bool:
        return bool(found.get("reads") == stage.digests_read())

    def _expect_remakeable(self, stage: Stage) -> None:
        """Raises RunError where training would replace what it did not make, or begin anew unasked."""
        found = stage.recorded()
        if self.bits != FLOAT and found is not None and "reads" in found and not self._same_reads(found, stage):
            self._move_aside("the network that it was made from is another one")
            return
        whole = [path for path in stage.writes.values() if is_whole(path)]
        if found is not None and "writes" in found and len(whole) == len(stage.writes):
            raise RunError(
                f"expected the weights that training wrote in {self.files.path}, got others; put them back, "
                f"or remove {whole[0].name} to have it made from the training state"
            )
        remakeable = self.files.state.exists() or not self.networks.schedule(self.bits).epochs
        if remakeable or not (whole or self.files.training.exists()):
            return
        raise RunError(
            f"expected {self.files.training.name}, weights and training state in {self.files.path}, got some "
            f"of them missing or damaged; put them back, or remove {self.files.path} to train anew"
        )

    def _move_aside(self, reason: str) -> None:
        files = self.networks.files
        distributed.wait()  # all have looked
        if distributed.is_first():
            note(f"{self.files.path.name}: {reason}; moved to {files.name_of(files.move_aside(self.bits))}")
        distributed.wait()

    def job(self) -> Job:
        """What `fit` is asked for: a training state that is there is gone on from."""
        recipe, bits = self.networks.recipe, self.bits
        begun = _metadata(self.files).get("key") if self.files.state.exists() else None
        return Job(
            label=f"train qm-{bits}" if bits == FLOAT else f"quantize qm-{bits}",
            key=str(begun or self.stage.key),  # `reconcile` has compared the settings
            folder=self.files.path,
            schedule=self.networks.schedule(bits),
            training=self.networks.training(bits),
            data=recipe.data,
            threat=self.threat,
            seed=recipe.seed,
            precision=(recipe.train if bits == FLOAT or not recipe.quant else recipe.quant).precision,
            settings=self.settings,
            tensorboard=recipe.tensorboard,
            on_event=self.tell,
        )

    def _train(self) -> dict[str, Any]:
        started, networks = time.perf_counter(), self.networks
        model, job = devices.on_device(networks.start(self.bits)), self.job()
        state = State(job.key)
        if job.schedule.epochs:
            extra, _ = networks.extra or (None, "")
            state = fit(model, networks.dataset, job, teacher=networks.teacher(self.bits), extra=extra)
        else:
            self._save(model, job, MODEL)
        for name in WEIGHTS & state.best.keys():
            model.load_state_dict(state.best_of(name))
            self._save(model, job, name)
        distributed.wait()
        return {
            "settings": self.settings,
            "bits": self.bits,
            "epochs": state.epoch,
            "best": state.best,
            **({"layers": [asdict(one) for one in errors]} if (errors := networks.errors.get(self.bits)) else {}),
            "seconds": round(time.perf_counter() - started, 1),
            "precision": devices.precision_here(job.precision),
            "data_fingerprint": networks.dataset.fingerprint,
            "versions": devices.versions(),
            "hardware": devices.hardware(),
        }

    def _save(self, model: nn.Module, job: Job, name: str) -> None:
        finish(model, self.networks.dataset.train, job)
        if distributed.is_first():
            retained = quant.fold_fat(copy.deepcopy(model)) if self.bits == FLOAT else model
            save_weights(self.files.weights(name), retained, {"key": job.key, "bits": self.bits})


def _as_today(stated: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """Recorded settings with the defaults of keys that came later; as they are where a key is no longer known."""
    try:
        return training_settings(parse({"name": "recorded", **stated}, source="recorded settings"), bits)
    except RecipeError:
        return dict(stated)


def _metadata(files: NetworkFolder) -> dict[str, Any]:
    """What describes a training state; nothing if it is damaged, which `load_state` tells when it is needed."""
    try:
        return read_metadata(files.state)
    except CheckpointError:
        return {}

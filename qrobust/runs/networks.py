"""The images and networks of a run: built from its recipe, loaded from its folder, kept in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data, devices, models, quant
from ..data.images import fingerprint
from ..errors import ModelError, QrobustError, RunError
from ..models import own
from ..recipe import Model, Recipe, Schedule, Training, load, located
from ..train import AUGMENTATION, AVERAGE, METHODS, MODEL, load_weights
from .folder import FLOAT, RunFolder, is_sealed
from .stages import Stage

NAME_IT = "name it by --model FILE.py:factory"
TRIED = 32  # images of a trial
CALIBRATED = 64  # at once, without training


def with_source(settings: Recipe, model: str = "") -> Recipe:
    """The recipe, with the digest of the file that its network's factory stands in.

    model: a name instead of the recipe's, as a user gives it by `--model`; then whatever the file holds. Raises
    ModelError where there is no such file, RunError for another than the digest in the recipe is of.
    """
    table = settings.model
    if model:
        whole = located({"model": {"name": model}}, Path.cwd())["model"]
        table = table.model_copy(update={**whole, "sha256": None})
    try:
        path = own.source_of(table.name)
        digest = own.digest_of(path) if path is not None else None
    except ModelError as error:
        raise ModelError(f"{error}{f', or {NAME_IT}' if table.sha256 else ''}") from error
    if path is not None and table.sha256 not in (None, digest):
        raise RunError(
            f"expected the file {path} that the network was made by (sha256 {str(table.sha256)[:12]}), got another "
            f"({str(digest)[:12]}); put it back, or {NAME_IT}"
        )
    return settings.model_copy(update={"model": table.model_copy(update={"sha256": digest})})


def recipe_of(files: RunFolder, model: str = "") -> Recipe:
    """The recipe of a run folder. Raises RunError where it names code and this user has not made the run so.

    model: as of `with_source`; the code is then named by the user. Somebody else's folder could name any function of
    any package, with arguments.
    """
    found = load(str(files.recipe))
    name = found.model.name
    if own.is_users(name) and not model and not is_sealed(files, source_record(found)):
        raise RunError(
            f"expected a run that you made yourself to load code for, got {files.path} with {name}, made by another or "
            f"changed since; {NAME_IT}, if you trust it"
        )
    return found


def source_record(settings: Recipe) -> dict[str, Any]:
    """What decides which code makes a run's network, and what it is given."""
    table: dict[str, Any] = settings.model_dump(mode="json", include={"model"})["model"]
    return table


def taken_from(settings: Recipe, folder: Path, model: str = "") -> Recipe:
    """The recipe with the float network that a run has made (what it deploys) instead of training one.

    Raises RunError for a folder that is no run, or whose float network is not trained, and as `recipe_of`.
    """
    files = RunFolder.expect(folder)
    source = recipe_of(files, model)
    weights = files.network(FLOAT).weights(Networks(source, files).deployed(FLOAT))
    if not weights.is_file():
        raise RunError(f"expected a trained float network in {folder}, got none; train it by qrobust train RECIPE")
    return settings.model_copy(
        update={
            "model": source.model.model_copy(update={"weights": str(weights.resolve())}),
            "train": settings.train.model_copy(update={"epochs": 0, "fat": "none", "average": None}),
        }
    )


def _with_weights(model: nn.Module, table: Model) -> nn.Module:
    """The network, filled from the file that its table names, if it names one."""
    if table.weights is not None:
        inner = model.network if isinstance(model, own.Normalised) else model
        own.load_weights_into(inner, table.weights, normalised=inner is not model)
    return model


def _expect_source(table: Model) -> None:
    """Raises ModelError where a factory's file is not the one of the table's digest."""
    path = own.source_of(table.name)
    if path is not None and table.sha256 not in (None, digest := own.digest_of(path)):
        raise ModelError(
            f"expected the file {path} of sha256 {str(table.sha256)[:12]}, got another ({digest[:12]}); put it back, "
            "or remove sha256"
        )


class Networks:
    """averaged: use weight averages where there are some, deployed or not."""

    def __init__(self, recipe: Recipe, files: RunFolder, *, averaged: bool = False) -> None:
        self.recipe, self.files, self.averaged = recipe, files, averaged
        self.errors: dict[int, list[quant.LayerError]] = {}  # of widths that were made here without training
        self._loaded: dict[int, nn.Module] = {}

    @cached_property
    def dataset(self) -> data.Dataset:
        """The images, read once, when a stage needs them. Raises RunError for others than were trained on."""
        table = self.recipe.data.model_dump(exclude=AUGMENTATION)
        found = data.load(data.DataSettings(**table, seed=self.recipe.seed))
        trained = Stage(self.files.network(FLOAT).training, None).recorded() or {}
        if trained.get("data_fingerprint") not in (None, found.fingerprint):
            raise RunError(
                f"expected the images that {self.files.path} was trained on, got others (fingerprint "
                f"{found.fingerprint[:12]}); give the same data, or another --out"
            )
        return found

    @cached_property
    def extra(self) -> tuple[data.Images, str] | None:
        """The images of the table `train.extra`, read once, with their fingerprint; None without any.

        Raises DataError for what does not go with the data set, RunError for others than the table's `sha256`.
        """
        table = self.recipe.train.extra
        if table is None or not table.share:
            return None
        found = data.load_extra(table, self.dataset, self.recipe.seed)
        digest = fingerprint(found)
        if table.sha256 not in (None, digest):
            raise RunError(
                f"train.extra: expected images of sha256 {str(table.sha256)[:12]}, got others ({digest[:12]}); give "
                "the same, or remove sha256"
            )
        return found, digest

    def network(self, bits: int) -> nn.Module:
        """The trained network of a width, on the device: its weight average where the recipe deploys that."""
        if bits not in self._loaded:
            model = self.untrained(bits)
            load_weights(self.files.network(bits).weights(self.deployed(bits)), model)
            self._loaded[bits] = devices.on_device(model).eval()
        return self._loaded[bits]

    def float_network(self, bits: int) -> nn.Module | None:
        """The float network that a quantised one was made from; None for the float one itself."""
        return None if bits == FLOAT else self.network(FLOAT)

    def untrained(self, bits: int) -> nn.Module:
        """The network of a width before training, on the CPU; quantisers not yet placed."""
        model = self._built(self.recipe.model, checked=own.is_own(self.recipe.model.name))
        return model if bits == FLOAT else self._quantized(model, bits, None)

    def initial(self) -> nn.Module:
        """The float network that training starts from, on the CPU: with the recipe's weights if it names some."""
        return _with_weights(self.untrained(FLOAT), self.recipe.model)

    def teacher(self, bits: int) -> nn.Module | None:
        """Whom the training of a width learns from, on the device, in eval mode; None where its method has no teacher.

        The network of its table `teacher`, or the float network. Raises ModelError or CheckpointError for a table of
        another network, or for other images or classes.
        """
        if not METHODS[self.training(bits).method].teacher:
            return None
        table = self.schedule(bits).teacher
        if table is None:
            return self.network(FLOAT)
        try:
            _expect_source(table)
            return devices.on_device(_with_weights(self._built(table, checked=True), table)).eval()
        except QrobustError as error:
            text = re.sub(r"\bmodel\.(mean|std|weights)\b", r"\1", str(error))  # keys as the run's own network has them
            raise type(error)(f"{'train' if bits == FLOAT else 'quant'}.teacher: {text}") from error

    def _built(self, table: Model, *, checked: bool) -> nn.Module:
        """A network for the run's images behind its normalisation, on the CPU. checked: whether it is tried on some."""
        shape, classes = self.dataset.shape, len(self.dataset.classes)
        with devices.own_randomness():
            torch.manual_seed(self.recipe.seed)
            model = models.build(table.name, in_channels=shape[0], classes=classes, **table.options)
            if checked:
                own.check_network(model, table.name, shape, classes)
        return own.normalised(model, shape[0], table.mean, table.std)

    def start(self, bits: int) -> nn.Module:
        """The network that training of a width starts from."""
        if bits == FLOAT:
            model, settings = devices.on_device(self.initial()), self.recipe.train
            if settings.fat == "none":
                return model
            images = self._calibration(settings.batch_size)  # behind FAT, batch-norm's first statistics are far off
            return quant.quantize(model, quant.QuantConfig(FLOAT, fat=settings.fat), calibration=images)
        assert self.recipe.quant is not None
        images, before = self._calibration(self.recipe.quant.calibration), self.before(bits)
        if self.recipe.quant.ptq is not None:
            return self._repaired(bits, images)
        anew = True if self.recipe.quant.epochs else None  # training goes on from there
        if before == FLOAT:
            begun = self.recipe.quant.start_from == "initial"
            return self._quantized(devices.on_device(self.initial()) if begun else self.network(FLOAT), bits, images)
        return quant.requantize(self.network(before), bits, calibration=images, estimate_statistics=anew)

    def one_pass(self) -> Callable[[], object]:
        """A forward and backward pass of the float network on a few images, to try numbers of threads with."""
        model, images = self.untrained(FLOAT).eval(), self.dataset.train
        x = data.to_unit(images.take(slice(0, TRIED)).x, torch.device("cpu"), channels_last=True)
        return lambda: model(x).square().sum().backward()

    def before(self, bits: int) -> int:
        """The width that a quantised one starts from; 32 too where it starts from the float network's own start."""
        settings = self.recipe.quant
        if settings is not None and (settings.start_from != "previous" or settings.ptq is not None):
            return FLOAT
        return self.recipe.bits[self.recipe.bits.index(bits) - 1]

    def schedule(self, bits: int) -> Schedule:
        """How long, and at which rates, a width is trained."""
        found = self.recipe.train if bits == FLOAT else self.recipe.quant
        assert found is not None
        return found

    def training(self, bits: int) -> Training:
        """How a width is trained: as the float network, but for a method of its own, and no warm-up of the attack."""
        training, settings = self.recipe.train, self.recipe.quant
        if bits == FLOAT or settings is None:
            return training
        attack = training.attack.model_copy(update={"warmup": 0})
        return training.model_copy(update={"attack": attack, "method": settings.method or training.method})

    def has_average(self, bits: int) -> bool:
        """Whether training of a width averages weights."""
        return self.schedule(bits).average is not None

    def deployed(self, bits: int) -> str:
        """Which weights are evaluated, quantised and exported: the "model"'s, or its "average"'s."""
        average = self.schedule(bits).average
        return AVERAGE if average is not None and (average.deploy or self.averaged) else MODEL

    def _config(self, bits: int) -> quant.QuantConfig:
        settings = self.recipe.quant
        assert settings is not None
        return quant.QuantConfig(
            {quant.EVERY: bits, **settings.layers} if settings.layers else bits,
            activation_bits=settings.activation_bits,
            fat=settings.fat,
            edge_layers=settings.edge_layers,
            per_channel=settings.per_channel,
            classifier=settings.classifier,
            shortcuts=settings.shortcuts,
            activation_range=settings.activation_range,
            unsupported=settings.unsupported,
            calibrator=settings.calibrator,
        )

    def _repaired(self, bits: int, calibration: tuple[Tensor, ...]) -> nn.Module:
        """A width of the float network's without training."""
        settings = self.recipe.quant
        assert settings is not None
        assert settings.ptq is not None
        batches = [part for images in calibration for part in torch.split(images, CALIBRATED)]
        how = quant.PtqConfig(**settings.ptq.model_dump())
        made, self.errors[bits] = quant.ptq(self.network(FLOAT), self._config(bits), calibration=batches, settings=how)
        quant.set_straight_through(made, settings.straight_through)
        return made

    def _quantized(self, model: nn.Module, bits: int, calibration: tuple[Tensor, ...] | None) -> nn.Module:
        settings = self.recipe.quant
        assert settings is not None
        # Where training goes on from there, under the quantisers' inputs; else where weights change.
        anew = None if calibration is not None and not settings.epochs else calibration is not None
        shape = self.dataset.shape
        config = self._config(bits)
        quantized = quant.quantize(model, config, calibration=calibration, shape=shape, estimate_statistics=anew)
        quant.set_straight_through(quantized, settings.straight_through)
        return quantized

    def _calibration(self, count: int) -> tuple[Tensor, ...]:
        images, _ = data.choose(self.dataset.train, count, self.recipe.seed)
        return (data.to_unit(images.x, devices.device(), channels_last=True),)

"""`qrobust.fit`: any network on any images, trained as a recipe's [train] says, by the trainer of all runs."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import fx, nn

from .. import devices, quant
from ..attacks.gradient import check_output
from ..data import Dataset, Given, Images, as_images, choose, load_extra, to_unit
from ..data.images import fingerprint
from ..data.loading import split
from ..errors import DataError, ModelError, RecipeError, did_you_mean, shown
from ..models.inference import estimate_statistics, in_eval_mode
from ..recipe import Data, Training, checked
from ..storage import digest
from ..threat import Threat
from .job import AUGMENTATION, Job
from .methods import METHODS
from .trainer import AVERAGE, MODEL, plain_images
from .trainer import fit as train

SHARE = 0.1  # of the images, to validate on


@dataclass(frozen=True)
class Fitted:
    """What `fit` made.

    model: with the best epoch's weights, in eval mode, on the device. average: likewise of the weight average, where
    there is one. history: the record of every epoch: loss, train_accuracy, lr, validation_clean, validation_robust …
    best: the record of the best epoch of "model" and of "average".
    """

    model: nn.Module
    average: nn.Module | None
    history: tuple[dict[str, Any], ...]
    best: dict[str, dict[str, Any]]

    @property
    def clean(self) -> float | None:
        """Accuracy of the model on the validation images, a share; None without any."""
        return self.best[MODEL].get("validation_clean")

    @property
    def robust(self) -> float | None:
        """The same under margin PGD, judged at its best points."""
        return self.best[MODEL].get("validation_robust")


def fit(
    model: nn.Module,
    data: Given | Dataset,
    *,
    threat: Threat,
    method: str = "trades",
    validation_data: Given | float = SHARE,
    teacher: nn.Module | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Fitted:
    """Train a copy of a network, robustly; a quantised one too, whose clips and masks then have rates of their own.

    model: any module from images (n, c, h, w) in [0,1] to logits (n, classes); normalisation belongs inside. data: an
    (x, y) pair of tensors or arrays, x uint8 or in [0,1], a torch Dataset or DataLoader of such, `Images`; or our
    `Dataset`, whose validation split is used if it has one. method: a key of `METHODS`: natural, at, trades, mart, or
    ard and rslad, which learn from a teacher. validation_data: images, or which share of the data, in [0, 0.5], to
    choose the best epoch by. out: a folder for the state after every epoch, which the same call goes on from.
    settings: keys of a recipe's [train], as `epochs=30, lr=0.05, milestones=[20, 26], attack={"steps": 7},
    sar={"weight": 0.1}`, and `crop`, `resized_crop` and `flip` of its [data].

    Biases of a quantised network are rounded at the end, as `quantize` does: what is evaluated can be exported.
    Raises RecipeError for settings, DataError for images, ModelError for a network that do not go together; RunError
    for a loss that is not finite, or an `out` of another training.

    >>> import torch, qrobust
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> x, y, threat = torch.rand(64, 1, 8, 8), torch.arange(64) % 2, qrobust.Threat("linf", 8 / 255)
    >>> fitted = qrobust.fit(net, (x, y), threat=threat, method="at", epochs=1)
    >>> len(fitted.history), 0 <= fitted.robust <= 1
    (1, True)

    The objectives and their sources stand in `qrobust.objectives`.
    """
    training, augmentation = _settings(model, method, settings)
    teacher = _teacher(method, teacher)
    dataset = _dataset(model, data, validation_data, seed)
    extra = load_extra(training.extra, dataset, seed) if training.extra is not None and training.extra.share else None
    if not isinstance(threat, Threat):
        raise RecipeError(f"expected a Threat, got {shown(threat)}; pass qrobust.Threat('linf', 8 / 255)")
    described: dict[str, Any] = {
        "train": training.model_dump(mode="json"),
        "data": augmentation.model_dump(mode="json", include=AUGMENTATION),
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "seed": seed,
        "images": dataset.fingerprint,
        "teacher": None if teacher is None else _digest(teacher),
        # Of a float network that is not seeded, every process begins with other weights.
        "start": _digest(model) if _is_quantised(model) else None,
    }
    if training.extra is not None and extra is not None:
        described["train"]["extra"] = {**training.extra.identity(), "sha256": fingerprint(extra)}
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            label="fit",
            key=digest(described),
            folder=Path(scratch if out is None else out),
            schedule=training,
            training=training,
            data=augmentation,
            threat=threat,
            seed=seed,
            precision=training.precision,
            settings=described,
        )
        return _fitted(_start(model, dataset, training, seed), dataset, job, teacher, extra)


def finish(model: nn.Module, images: Images, job: Job) -> None:
    """What follows the last step, in place: batch-norm's statistics once more if the job says so; biases rounded."""
    if job.schedule.estimate_statistics:
        estimate_statistics(model, plain_images(images, job))
    if isinstance(model, fx.GraphModule):
        quant.round_biases(model)


def _fitted(model: nn.Module, dataset: Dataset, job: Job, teacher: nn.Module | None, extra: Images | None) -> Fitted:
    state, networks = train(model, dataset, job, teacher=teacher, extra=extra), dict[str, nn.Module]()
    for name in state.best:
        model.load_state_dict(state.best_of(name))
        finish(model, dataset.train, job)
        made = copy.deepcopy(model)
        networks[name] = (made if _is_quantised(made) else quant.fold_fat(made)).eval()
    return Fitted(networks[MODEL], networks.get(AVERAGE), tuple(state.history), state.best)


def _settings(model: nn.Module, method: str, settings: Mapping[str, Any]) -> tuple[Training, Data]:
    """Of training, and of augmentation. Raises RecipeError for what is wrong, or does not suit the network."""
    if not isinstance(model, nn.Module) or not any(one.requires_grad for one in model.parameters()):
        raise ModelError(f"expected a network with weights to train, got {shown(model)}; pass one")
    if method not in METHODS:
        raise RecipeError(f"fit: expected a method, got {shown(method)}{did_you_mean(str(method), METHODS)}")
    own = {key: value for key, value in settings.items() if key not in AUGMENTATION}
    usual = "at" if METHODS[method].teacher else method  # whose teacher is no table here
    training = checked(Training, {**own, "method": usual}, source="fit").model_copy(update={"method": method})
    if METHODS[method].teacher and training.mix is not None:
        raise RecipeError(f"fit: expected method 'at' or 'natural' for mixed images, got {method!r}; remove mix")
    coarse = training.precision in ("bf16", "auto")
    if _is_quantised(model) and (coarse or training.fat != "none"):
        key = "precision" if coarse else "fat"
        raise RecipeError(
            f"fit: expected no {key} = {getattr(training, key)!r} for a quantised network, got it; leave it out"
        )
    augmentation = {key: settings[key] for key in AUGMENTATION if key in settings}
    return training, checked(Data, {"name": "given", **augmentation}, source="fit")


def _teacher(method: str, teacher: nn.Module | None) -> nn.Module | None:
    """On the device, in eval mode. Raises ModelError unless the method has one, and it is given."""
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise ModelError(f"expected a network as teacher, got {shown(teacher)}; pass a torch module")
    if METHODS[method].teacher != (teacher is not None):
        wanted, got = ("a", "none") if METHODS[method].teacher else ("no", "one")
        raise ModelError(
            f"expected {wanted} teacher for method {method!r}, got {got}; pass teacher=, or another method"
        )
    return None if teacher is None else devices.on_device(teacher).eval()


def _dataset(model: nn.Module, data: Given | Dataset, validation_data: Given | float, seed: int) -> Dataset:
    """Images to train and to validate on, with as many classes as the network has."""
    images = data.train if isinstance(data, Dataset) else as_images(data)
    validation = data.validation if isinstance(data, Dataset) and len(data.validation) else None
    if not isinstance(validation_data, (int, float)):
        validation = as_images(validation_data, name="validation images")
    elif validation is None:
        share = checked(
            Data, {"name": "given", "validation": validation_data}, source="fit: validation_data"
        ).validation
        images, validation = split(images, share, torch.Generator().manual_seed(seed))
    if len(validation) and validation.shape[1:] != images.shape[1:]:
        raise DataError(
            f"expected validation images of shape {images.shape[1:]} as the others, got {validation.shape[1:]}; "
            "give both one shape"
        )
    classes = tuple(map(str, range(_classes(model, images, validation))))
    return Dataset("given", classes, images, validation, validation, fingerprint(images, validation))


@torch.no_grad()
def _classes(model: nn.Module, *parts: Images) -> int:
    """How many the network tells apart. Raises ModelError unless it takes such images, DataError for other labels."""
    some = parts[0].take(slice(0, 2))
    try:
        with in_eval_mode(model):
            logits = model(to_unit(some.x, devices.device_of(model)))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # as torch says that sizes do not fit
        raise ModelError(
            f"expected a network that takes images {tuple(some.x.shape)} (n, c, h, w), got: {error}; pass its own size"
        ) from error
    check_output(logits, some.y)
    for part in parts:
        check_output(logits[:1].expand(len(part), -1), part.y)
    return int(logits.shape[1])


def _start(model: nn.Module, dataset: Dataset, training: Training, seed: int) -> nn.Module:
    """The copy that is trained, behind FAT if asked."""
    if training.fat == "none":
        return devices.on_device(copy.deepcopy(model))
    some = choose(dataset.train, training.batch_size, seed)[0]
    behind = quant.quantize(model, quant.QuantConfig(32, fat=training.fat), calibration=some)
    return devices.on_device(behind)


def _is_quantised(model: nn.Module) -> bool:
    return next(quant.quantizers(model), None) is not None


def _digest(model: nn.Module) -> str:
    """sha256 of all weights."""
    dense = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(model.state_dict().items())}
    return hashlib.sha256(save(dense)).hexdigest()

"""The training loop: step, validate, keep; one checkpoint an epoch."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import devices, distributed
from ..attacks import StrongConfig, strong
from ..attacks.plan import passes
from ..data import Dataset, Extra, Images, epoch_batches, learning_batches, to_unit
from ..errors import RunError
from ..models.inference import frozen
from ..progress import Bar, bar, note
from ..quant import mask_statistics, parameter_groups
from ..recipe import Schedule, difference
from ..spectrum import first_activation, low_pass, low_to_high
from .checkpoint import State, capture, load_state, part, restore, save_state
from .job import Job, learning_rate
from .listeners import event, listening
from .methods import METHODS, class_weights
from .step import Average, Stepper


def accuracies(model: nn.Module, images: Images, job: Job) -> tuple[float, float]:
    """Shares right when clean and under `strong:quick`, cut at the recipe's steps; the network ends in eval mode.

    Not under the last step of PGD on the cross-entropy: by that, a network of 2 bits with 66 % under the strongest
    attacks ranked above its float network with 89 %.
    """
    config = StrongConfig(quick=True, budget=passes(job.training.validation.steps))
    generator = devices.generator(job.seed, "validation")
    model.eval()
    right = torch.zeros(2, device=devices.device())
    for batch in images.batches(job.schedule.batch_size):
        x = to_unit(batch.x, devices.device(), channels_last=True)
        x, y = (distributed.part(tensor) for tensor in (x, batch.y.to(x.device)))
        if len(y):
            found = strong(model, x, y, threat=job.threat, config=config, generator=generator)
            right += torch.stack([(~(found.broken & found.untouched)).sum(), (~found.broken).sum()])
    clean, robust = (distributed.summed(right) / len(images)).tolist()
    return clean, robust


MODEL, AVERAGE = "model", "average"  # what is kept the best of
LOOKS_EVERY = 32  # batches: to read a loss, a GPU must have done all that it was given


def fit(
    model: nn.Module, dataset: Dataset, job: Job, *, teacher: nn.Module | None = None, extra: Images | None = None
) -> State:
    """Train in place, from the last checkpoint if there is one; the model ends with the best epoch's weights.

    The best epoch has the highest accuracy under attack on the validation split (ties: clean accuracy, then the
    later), that of natural training the highest clean accuracy (ties: under attack); without a split, the last.
    teacher: whom a method that distils learns from, in eval mode. extra: images of the table `train.extra`, a share of
    every batch. `State.best_of` gives these weights, and those of the best weight average. Raises RunError on a loss or
    weights that are not finite, naming epoch, batch and rate, and where a batch holds a single image and batch-norm
    needs more.
    """
    if job.precision == "bf16" and not devices.has_bf16():
        note(f"{job.label}: this processor has no instructions for bf16, which may take many times as long as "
             'float32; precision = "auto" takes what suits it')  # fmt: skip
    with _interruptible(job), devices.own_randomness(), devices.precision(job.precision):
        work = _Work(model, dataset, job, teacher, extra)
        with (
            listening(job.folder, work.state.history, tensorboard=job.tensorboard, on_event=job.on_event) as tell,
            bar(
                job.label,
                job.schedule.epochs * work.seen,
                "images",
                done=work.state.epoch * work.seen,
            ) as moving,
            distributed.synchronised(model) as whole,
        ):
            for epoch in range(work.state.epoch, job.schedule.epochs):
                record = work.epoch(whole, epoch, moving)
                tell(event("epoch", stage=job.label, epoch=epoch + 1, epochs=job.schedule.epochs, metrics=record))
                _say(job, record, moving)
    model.load_state_dict(work.state.best_of(MODEL))
    return work.state


def optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Of a network's weights, and of the clips that a quantised one learns."""
    adamw, (lr, decay) = schedule.optimizer == "adamw", (schedule.lr, schedule.weight_decay)
    groups = parameter_groups(model, lr=lr, weight_decay=decay, matrices_only=adamw or schedule.decay == "matrices")
    if adamw:
        return torch.optim.AdamW(groups, fused=True)  # one pass over each parameter, not a dozen
    return torch.optim.SGD(groups, momentum=schedule.momentum, nesterov=schedule.nesterov)


class _Work:
    """A training under way: the network with its optimiser, its average, and where it stands. seen: images an epoch."""

    def __init__(
        self, model: nn.Module, dataset: Dataset, job: Job, teacher: nn.Module | None, extra: Images | None
    ) -> None:
        schedule = job.schedule
        self.model, self.job, self.validation = model, job, dataset.validation
        self.images = dataset.train.to(devices.home(math.prod(dataset.train.shape)))
        self.extra = None if extra is None else _beside(extra, job)
        beside = [] if self.extra is None else self.extra.counts(len(self.images), schedule.batch_size)
        self.batches = len(beside or learning_batches(len(self.images), schedule.batch_size))
        self.seen = len(self.images) + sum(beside)
        self.optimizer = optimizer(model, schedule)
        self.rates = [group["lr"] / schedule.lr for group in self.optimizer.param_groups]
        self.average = Average(model, schedule.average) if schedule.average else None
        weights = class_weights(job.training, dataset.train.y.to(devices.device()), len(dataset.classes))
        self.stepper = Stepper(model, self.optimizer, self.average, job, len(dataset.classes), teacher, weights)
        self.state = self._resume()

    def epoch(self, whole: nn.Module, epoch: int, moving: Bar) -> dict[str, Any]:
        """Train for one epoch, validate and keep; returns its record."""
        started = time.perf_counter()
        record: dict[str, Any] = {"epoch": epoch + 1, "lr": learning_rate(self.job.schedule, epoch)}
        averaging = self.average is not None and self.job.started("average", epoch)
        if self.average is not None and averaging and not self.average.n_averaged:
            self.average.begin(self.model)
        record |= self._train(whole, epoch, moving)
        if self.average is not None and averaging:
            if self.average.settings.kind == "equal":
                self.average.update_parameters(self.model)
            if self.average.settings.statistics != "copied":
                torch.manual_seed(
                    devices.seed(self.job.seed, self.job.label, "statistics", epoch)
                )  # one dropout for all
                self.average.estimate(self._statistics_images(epoch))
        record["images_per_second"] = round(self.seen / (time.perf_counter() - started), 1)
        record |= self._validate(epoch)
        if masks := mask_statistics(self.model):
            record["masks"] = masks
        if self.job.training.log_frequency_ratio:
            record["frequency_ratio"] = self._frequency_ratio()
        self._keep(record)
        return record

    def _train(self, whole: nn.Module, epoch: int, moving: Bar) -> dict[str, float]:
        job, size = self.job, self.job.schedule.batch_size
        generator = devices.generator(job.seed, job.label, "epoch", epoch)
        torch.manual_seed(devices.seed(job.seed, job.label, "layers", epoch, distributed.rank()))  # dropout's
        extra = None if self.extra is None else replace(self.extra, epoch=epoch)
        batches = epoch_batches(self.images, size, generator, devices.device(), *_augmentation(job), extra=extra)
        counted: list[Tensor] = []
        for index, (x, y) in enumerate(batches):
            self._set_rate(epoch + index / self.batches)
            counted.append(self.stepper.step(whole, x, y, epoch, generator))
            moving.advance(len(y))
            if len(counted) % LOOKS_EVERY == 0:
                self._refuse_infinite(counted[-LOOKS_EVERY:], epoch, len(counted) - LOOKS_EVERY)
        self._refuse_infinite(counted, epoch, 0)
        self._refuse_infinite_weights(epoch)
        loss, right, seen = distributed.summed(torch.stack(counted).sum(0)).tolist()
        return {"loss": loss / seen, "train_accuracy": right / seen}

    def _set_rate(self, epoch: float) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = ratio * learning_rate(self.job.schedule, epoch)

    def _refuse_infinite(self, counted: list[Tensor], epoch: int, first: int) -> None:
        losses = torch.stack(counted)[:, 0].tolist() if counted else []
        for index, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                rate = learning_rate(self.job.schedule, epoch + index / self.batches)
                raise RunError(
                    f"{self.job.label}: expected a finite loss, got {loss} at epoch {epoch + 1}, "
                    f"batch {index + 1}, lr {rate:g}; lower lr (the checkpoint before stands)"
                )

    def _refuse_infinite_weights(self, epoch: int) -> None:
        if not all(bool(value.isfinite().all()) for value in self.model.state_dict().values()):
            raise RunError(  # the last step of an epoch is followed by no loss
                f"{self.job.label}: expected finite weights, got NaN or infinity after epoch {epoch + 1}, "
                f"lr {self.optimizer.param_groups[0]['lr']:g}; lower lr (the checkpoint before stands)"
            )

    def _statistics_images(self, epoch: int) -> Iterator[Tensor]:
        """What the average's batch-norm sees; augmented anew in every epoch."""
        job = self.job
        if job.schedule.average is not None and job.schedule.average.statistics == "plain":
            return plain_images(self.images, job)
        generator = devices.generator(job.seed, job.label, "statistics", epoch)
        return _shuffled(self.images, job, generator, *_augmentation(job))

    def _validate(self, epoch: int) -> dict[str, float]:
        """Clean and robust accuracy on the validation split, of the network and of its average."""
        every = self.job.training.validation.every
        if not len(self.validation) or ((epoch + 1) % every and epoch + 1 < self.job.schedule.epochs):
            return {}
        clean, robust = accuracies(self.model, self.validation, self.job)
        record = {"validation_clean": clean, "validation_robust": robust}
        if self.average is not None and self.job.started("average", epoch):
            clean, robust = accuracies(self.average.module, self.validation, self.job)
            record |= {"average_clean": clean, "average_robust": robust}
        return record

    def _frequency_ratio(self) -> float:
        """Mean R of the first activation over the first batch of training images, clean and in their order."""
        with frozen(self.model):
            first = self.images.take(slice(0, self.job.schedule.batch_size))
            x = _filtered(to_unit(first.x, devices.device()), self.job)
            return float(low_to_high(first_activation(self.model, x)).mean())

    def _keep(self, record: dict[str, Any]) -> None:
        state = self.state
        retained = {name: state.best_of(name) for name in state.best}
        networks = {MODEL: self.model}
        if self.average is not None and self.job.started("average", record["epoch"] - 1):
            networks[AVERAGE] = self.average.module
        for name, network in networks.items():
            if self._rank(record, name) >= self._rank(state.best.get(name), name):
                state.best[name] = record
                retained[name] = {key: value.clone() for key, value in network.state_dict().items()}
        state.history.append(record)
        state.epoch = record["epoch"]
        state.tensors = capture(self.model, self.optimizer)
        if self.average is not None:
            state.tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for name, tensors in retained.items():
            state.tensors |= {f"best.{name}.{key}": value for key, value in tensors.items()}
        if distributed.is_first():
            save_state(_checkpoint(self.job), state)
        distributed.wait()

    def _rank(self, record: dict[str, Any] | None, name: str) -> tuple[float, float]:
        if record is None:
            return (-2.0, -2.0)
        prefix = "validation" if name == MODEL else name
        robust, clean = (record.get(f"{prefix}_{part}", -1.0) for part in ("robust", "clean"))
        # A network that says the same of every image stands under any attack; a natural one does not.
        return (clean, robust) if METHODS[self.job.training.method].ascends is None else (robust, clean)

    def _resume(self) -> State:
        job, path = self.job, _checkpoint(self.job)
        if not path.exists():
            return State(job.key, settings=job.settings)
        state = load_state(path)
        compared = bool(state.settings and job.settings)
        found = difference(state.settings, job.settings) if compared else None
        if state.key != job.key and (found or not compared):  # else a key of an older form
            raise RunError(
                f"expected training state of this recipe in {path}, got another's{f' ({found})' if found else ''}; "
                f"give another --out or remove {job.folder}"
            )
        state.settings = job.settings  # an older version kept none
        restore(state, self.model, self.optimizer, path)
        if self.average is not None:
            self.average.load_state_dict(_as_today(part(state.tensors, "average.")))
        if distributed.is_first() and state.epoch < job.schedule.epochs:
            note(f"{job.label}: continuing after epoch {state.epoch} of {job.schedule.epochs}")
        distributed.wait()
        return state


def plain_images(images: Images, job: Job) -> Iterator[Tensor]:
    """Batches of training images without augmentation, filtered where the network learns on filtered ones.

    Shuffled: of data in the order of its classes, no batch would vary as all images together do.
    """
    return _shuffled(images, job, devices.generator(job.seed, job.label, "plain"))


def _beside(images: Images, job: Job) -> Extra:
    """What stands in every batch beside the data set's images; the same on all processes, and in a continued run."""
    assert job.training.extra is not None
    resting = images.to(devices.home(math.prod(images.shape)))

    def order(number: int) -> Tensor:
        generator = devices.generator(job.seed, job.label, "extra", number)
        return torch.randperm(len(images), generator=generator)

    return Extra(resting, job.training.extra.share, order)


def _augmentation(job: Job) -> tuple[int, bool, tuple[float, float] | None]:
    """What `epoch_batches` is told of it."""
    return job.data.crop, job.data.flip, job.data.resized_crop


def _shuffled(images: Images, job: Job, generator: Generator, *augmentation: Any) -> Iterator[Tensor]:
    batches = epoch_batches(images, job.schedule.batch_size, generator, devices.device(), *augmentation)
    return (_filtered(x, job) for x, _ in batches)


def _filtered(x: Tensor, job: Job) -> Tensor:
    """As the network sees clean images in training."""
    width = job.training.low_pass
    x = x if width is None else low_pass(x, width).clamp(0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _as_today(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """An average's tensors by the names of `AveragedModel`; version 0.1 had its own."""
    return {
        "n_averaged" if name == "count" else re.sub(r"^network\.", "module.", name): average[name] for name in average
    }


def _checkpoint(job: Job) -> Path:
    return job.folder / "checkpoint" / "last.safetensors"


def _say(job: Job, record: dict[str, Any], moving: Bar) -> None:
    if not distributed.is_first():
        return
    text = f"loss {record['loss']:.3f}"
    if "validation_robust" in record:
        text += f"  clean {record['validation_clean']:.1%}  robust {record['validation_robust']:.1%}"
    moving.describe(job.label, text)
    note(
        f"{job.label}: epoch {record['epoch']}/{job.schedule.epochs}  {text}  "
        f"{record['images_per_second']:.0f} images/s"
    )


@contextmanager
def _interruptible(job: Job) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal that the command line turned into an exit
        note(f"{job.label}: stopped; the same command continues after the last whole epoch")
        raise
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise RunError(
            f"{job.label}: expected more than one image a batch, for batch-norm over 1x1 maps, got one; "
            "raise batch_size, or give more images"
        ) from error

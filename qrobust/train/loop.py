"""The training loop: craft, step, validate, keep; one checkpoint an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import machine, objectives
from ..attacks import pgd
from ..data import Dataset, Images, epoch_batches, to_unit
from ..errors import RunError
from ..progress import Bar, bar, note
from ..quant import parameter_groups
from ..recipe import Data, Schedule, Training
from ..storage import write_text
from ..threat import Threat
from .checkpoint import State, capture, load_state, part, restore, save_state
from .metrics import EventLog, json_lines
from .schedule import learning_rate, sar_starts


@dataclass(frozen=True)
class Job:
    """What to train: schedule, method and attack, data settings, threat, seed.

    label: for people, and part of the random streams. key: digest of all that decides the result; a
    checkpoint with another key is refused. folder: gets checkpoint/, metrics.jsonl and TensorBoard events.
    """

    label: str
    key: str
    folder: Path
    schedule: Schedule
    training: Training
    data: Data
    threat: Threat
    seed: int


def fit(model: nn.Module, dataset: Dataset, job: Job) -> State:
    """Train in place, from the last checkpoint if there is one; the model ends with the best epoch's weights.

    The best epoch has the highest accuracy under PGD on the validation split (ties: clean accuracy, then the
    later); without a split, the last. Raises RunError on a loss or weights that are not finite, naming epoch,
    batch and rate.
    """
    optimizer = torch.optim.SGD(
        parameter_groups(model, lr=job.schedule.lr, weight_decay=job.schedule.weight_decay),
        momentum=job.schedule.momentum,
    )
    rates = [group["lr"] / job.schedule.lr for group in optimizer.param_groups]
    state = _resume(model, optimizer, job)
    images = dataset.train.to(machine.device())
    total = job.schedule.epochs * len(images)
    with (
        _interruptible(job),
        closing(EventLog(job.folder, state.epoch)) as log,
        bar(job.label, total, "images") as moving,
    ):
        moving.advance(state.epoch * len(images))
        for epoch in range(state.epoch, job.schedule.epochs):
            for group, ratio in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = ratio * learning_rate(job.schedule, epoch)
            started = time.perf_counter()
            record = {"epoch": epoch + 1, "lr": learning_rate(job.schedule, epoch)}
            record |= _epoch(model, optimizer, images, job, epoch, moving)
            record["images_per_second"] = round(len(images) / (time.perf_counter() - started), 1)
            record |= _validate(model, dataset.validation, job, epoch)
            _keep(state, record, model, optimizer, job)
            log.write(record)
            _say(job, record, moving)
    assert state.best is not None
    model.load_state_dict(part(state.tensors, "best."))
    return state


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> State:
    path = _checkpoint(job)
    if not path.exists():
        return State(job.key)
    state = load_state(path)
    if state.key != job.key:
        raise RunError(
            f"expected training state of this recipe in {path}, got another's; "
            f"give another --out or remove {job.folder}"
        )
    restore(state, model, optimizer, path)
    _write_metrics(state, job)  # the run may have stopped between the two files
    if state.epoch < job.schedule.epochs:
        note(f"{job.label}: continuing after epoch {state.epoch} of {job.schedule.epochs}")
    return state


def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Images, job: Job, epoch: int, moving: Bar
) -> dict[str, float]:
    generator = machine.generator(job.seed, job.label, "epoch", epoch)
    batches = epoch_batches(images, job.schedule.batch_size, generator, machine.device(), job.data.crop, job.data.flip)
    total, correct, seen = 0.0, 0, 0
    model.train()
    for index, (x, y) in enumerate(batches):
        x = x.contiguous(memory_format=torch.channels_last)
        loss, logits = _loss(model, x, y, job, epoch, generator)
        if not math.isfinite(float(loss.detach())):
            rate = optimizer.param_groups[0]["lr"]
            raise RunError(
                f"{job.label}: expected a finite loss, got {float(loss.detach())} at epoch {epoch + 1}, "
                f"batch {index + 1}, lr {rate:g}; lower lr (the checkpoint before stands)"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(y)
        correct += int((logits.argmax(1) == y).sum())
        seen += len(y)
        moving.advance(len(y))
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise RunError(  # the last step of an epoch is followed by no loss
            f"{job.label}: expected finite weights, got NaN or infinity after epoch {epoch + 1}, "
            f"lr {optimizer.param_groups[0]['lr']:g}; lower lr (the checkpoint before stands)"
        )
    return {"loss": total / seen, "train_accuracy": correct / seen}


def _loss(
    model: nn.Module, x: Tensor, y: Tensor, job: Job, epoch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The method's loss, and the logits that it classifies by."""
    if job.training.method == "natural":
        logits = model(x)
        return objectives.cross_entropy(logits, y), logits
    craft = job.training.attack
    x_adv = pgd(
        model, x, y, threat=job.threat, steps=craft.steps, step_size=craft.step_size,
        random_start=craft.random_start, training=craft.mode == "train", generator=generator,
    )  # fmt: skip
    logits = model(x_adv)
    loss = objectives.cross_entropy(logits, y)
    sar = job.schedule.sar
    if sar is not None and epoch >= sar_starts(sar, job.schedule):
        loss = loss + sar.weight * objectives.sar(model(x), logits, form=sar.form, distance=sar.distance)
    return loss, logits


def _validate(model: nn.Module, images: Images, job: Job, epoch: int) -> dict[str, float]:
    """Clean and robust accuracy on the validation split, by the same noise in every epoch."""
    settings = job.training.validation
    due = (epoch + 1) % settings.every == 0 or epoch + 1 == job.schedule.epochs
    if not len(images) or not due:
        return {}
    generator = machine.generator(job.seed, "validation")
    model.eval()
    clean = robust = 0
    for batch in images.batches(job.schedule.batch_size):
        x = to_unit(batch.x, machine.device(), channels_last=True)
        y = batch.y.to(x.device)
        x_adv = pgd(
            model,
            x,
            y,
            threat=job.threat,
            steps=settings.steps,
            step_size=settings.step_size,
            generator=generator,
        )
        with torch.no_grad():
            clean += int((model(x).argmax(1) == y).sum())
            robust += int((model(x_adv).argmax(1) == y).sum())
    return {"validation_clean": clean / len(images), "validation_robust": robust / len(images)}


def _keep(state: State, record: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> None:
    state.history.append(record)
    state.epoch = record["epoch"]
    best = part(state.tensors, "best.")
    if _rank(record) >= _rank(state.best):
        state.best, best = record, {name: value.clone() for name, value in model.state_dict().items()}
    state.tensors = capture(model, optimizer) | {f"best.{name}": value for name, value in best.items()}
    save_state(_checkpoint(job), state)
    _write_metrics(state, job)


def _write_metrics(state: State, job: Job) -> None:
    write_text(job.folder / "metrics.jsonl", json_lines(state.history))


def _rank(record: dict[str, Any] | None) -> tuple[float, float]:
    if record is None:
        return (-2.0, -2.0)
    return record.get("validation_robust", -1.0), record.get("validation_clean", -1.0)


def _checkpoint(job: Job) -> Path:
    return job.folder / "checkpoint" / "last.safetensors"


def _say(job: Job, record: dict[str, Any], moving: Bar) -> None:
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
    except KeyboardInterrupt:
        note(f"{job.label}: stopped; the same command continues after the last whole epoch")
        raise

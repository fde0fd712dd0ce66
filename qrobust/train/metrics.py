"""Metrics of training: JSON lines for programs, TensorBoard events for eyes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .. import distributed


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


class EventLog:
    """TensorBoard events in a run's folder; a continued run hides what was written beyond `epoch`.

    Only the first of several processes writes.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=epoch + 1) if distributed.is_first() else None

    def write(self, record: Mapping[str, Any]) -> None:
        """All numbers of an epoch."""
        if self._writer is None:
            return
        for name, value in _numbers(record):
            if name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """End the writer's thread and its file."""
        if self._writer is not None:
            self._writer.close()


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested records, by its path."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value

"""Who hears of a training and of a run: metrics.jsonl, TensorBoard, and a function of the user's own (`on_event`).

A record is a dict of JSON values: `kind`, `time` (UTC), and

    "run"     run, folder, status "started", "finished" or "stopped"; recipe, when it starts
    "epoch"   stage (as "train qm-32"), epoch from 1, epochs, metrics (numbers, some nested, as in metrics.jsonl)
    "stage"   stage (the file that it leaves, as "qm-4/eval.json"), status "written" or "done before"; result, of both
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import distributed, resources
from ..errors import RunError
from ..progress import note, stamp
from ..storage import write_text

Record = dict[str, Any]
Listener = Callable[[Record], object]


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


class Metrics:
    """The listener that keeps metrics.jsonl: the epochs of earlier processes, then each that it hears of."""

    def __init__(self, path: Path, history: Iterable[Mapping[str, Any]]) -> None:
        self._path, self._records = path, list(history)
        if self._records:  # the process before may have stopped between checkpoint and metrics
            self._write()

    def __call__(self, record: Record) -> None:
        """Add an epoch."""
        self._records.append(record["metrics"])
        self._write()

    def _write(self) -> None:
        write_text(self._path, json_lines(self._records))


def check_tensorboard() -> None:
    """Raises RunError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise RunError(
            'expected TensorBoard for tensorboard = true, got none; pip install "qrobust[tensorboard]", or set it to '
            "false: metrics.jsonl holds the same numbers"
        )


class TensorBoard:
    """The listener that writes TensorBoard events into a folder; what was written beyond `epoch` is hidden.

    Raises RunError as `check_tensorboard`.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # half a second, and an extra

        self._writer = SummaryWriter(str(folder), purge_step=epoch + 1)

    def __call__(self, record: Record) -> None:
        """All numbers of an epoch."""
        for name, value in numbers(record["metrics"]):
            if name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """End the writer's thread and its file."""
        self._writer.close()


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested records, by its path."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value


class Teller:
    """Tells a function of the user's own, from the first of several processes.

    A listener that raises is told of in one line and hears no more: a training of hours does not end by its logging.
    """

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener

    def __call__(self, record: Record) -> None:
        """Pass on a copy."""
        if self._listener is None or not distributed.is_first():
            return
        try:
            self._listener(copy.deepcopy(record))
        except Exception as error:  # of somebody's code, any
            self._listener = None
            note(f"on_event: expected to return, raised {type(error).__name__}: {error}; it hears no more")


def teller(listener: Listener | None) -> Teller:
    """The one that tells `listener`, or is it already."""
    return listener if isinstance(listener, Teller) else Teller(listener)


def event(kind: str, **values: Any) -> Record:
    """A record of now."""
    return {"kind": kind, "time": stamp(time.time()), **values}


@contextmanager
def listening(
    folder: Path, history: Iterable[Mapping[str, Any]], *, tensorboard: bool, on_event: Listener | None
) -> Iterator[Listener]:
    """What to tell of each epoch: it reaches all who listen to a training in this folder; only the first of several
    processes has any.
    """
    past: list[Mapping[str, Any]] = list(history)
    heard: list[Listener] = []
    with ExitStack() as stack:
        if distributed.is_first():
            heard += [Metrics(folder / "metrics.jsonl", past), teller(on_event)]
            if tensorboard:
                heard.append(stack.enter_context(closing(TensorBoard(folder, past[-1]["epoch"] if past else 0))))
        yield lambda record: [listener(record) for listener in heard]


def load_listener(name: str) -> Listener:
    """The function that `package.module:function` or `FILE.py:function` stands for; its code is run.

    Raises RecipeError: no such module, file or function, or code that raises.
    """
    return resources.named_factory(name, Path.cwd())


class Trackio:
    """The listener that keeps a run in Trackio on this machine: its recipe, the numbers of every epoch, and the
    accuracies of every stage. A run that goes on is gone on with. `pip install "qrobust[trackio]"`.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def __call__(self, record: Record) -> None:
        """Raises RunError where Trackio is not installed."""
        with redirect_stdout(sys.stderr):  # where results are not
            if record["kind"] != "run":
                self._log(record)
            elif record["status"] == "started":
                self._begin(record["run"], Path(record["folder"]).absolute().name, record["recipe"])
            elif self._run is not None:
                self._run.finish()
                self._run = None

    def _begin(self, project: str, name: str | None = None, config: Record | None = None) -> None:
        if find_spec("trackio") is None:
            raise RunError('expected Trackio, got none; pip install "qrobust[trackio]"')
        import trackio

        self._run = trackio.init(project=project, name=name, config=config, resume="allow")

    def _log(self, record: Record) -> None:
        if self._run is None:  # a training without a run around it
            self._begin("qrobust")
        if record["kind"] == "epoch":
            self._run.log(_named(record["stage"], record["metrics"]), step=record["epoch"])
        elif found := accuracies(record["result"]):
            self._run.log(_named(record["stage"], found))


def accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    """Of a stage's result: the shares right, on clean images and under each attack, and in the worst case."""
    shares = {name: cell for name in ("clean", "worst_case") if (cell := result.get(name)) is not None}
    shares |= result.get("attacks") or {}
    return {name: cell["accuracy"] for name, cell in shares.items() if isinstance(cell, dict) and "accuracy" in cell}


def _named(stage: str, found: Mapping[str, Any]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in numbers(found) if name != "epoch"}


trackio = Trackio()  # --on-event qrobust.train.listeners:trackio

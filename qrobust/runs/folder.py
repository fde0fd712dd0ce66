"""Where every file of a run lies, which file a result is of, and who is at work in the folder.

RUN/recipe.toml                      resolved
RUN/skipped.json                     files of images that were left out, as none of them could be read
RUN/source.json                      whose code makes the network, if it is the user's own
RUN/qm-N/train.json                  training, or quantisation below 32 bits
RUN/qm-N/checkpoint/, metrics.jsonl, events    training state
RUN/qm-N/model.safetensors           also average.safetensors
RUN/qm-N/eval.json, eval.npz
RUN/qm-N/export.json, artifact/
RUN/qm-N/check.json
RUN/qm-N/attack.json, attack.npz
RUN/bench.json
RUN/report.json, report.html, model-card.md, analysis/
RUN/older/                           quantised networks of other settings, moved aside
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import RunError
from ..storage import read_json, write_json

FLOAT = 32
WIDTH = re.compile(r"qm-(\d+)")
ARTIFACT = "artifact"


class NetworkFolder:
    """RUN/qm-N: what the stages leave of one network; every attribute is a path."""

    def __init__(self, run: Path, bits: int) -> None:
        self.path, self.bits = run / f"qm-{bits}", bits
        path = self.path
        self.training, self.metrics = path / "train.json", path / "metrics.jsonl"
        self.state = path / "checkpoint" / "last.safetensors"
        self.evaluation, self.outcomes = path / "eval.json", path / "eval.npz"
        self.export, self.artifact = path / "export.json", path / ARTIFACT
        self.check, self.attack, self.attack_outcomes = path / "check.json", path / "attack.json", path / "attack.npz"

    def weights(self, name: str) -> Path:
        """Of the "model", or of its weight "average"."""
        return self.path / f"{name}.safetensors"


class RunFolder:
    """RUN; every attribute is a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.bench, self.report = (path / name for name in ("recipe.toml", "bench.json", "report.json"))
        self.analysis, self.older, self.threads = path / "analysis", path / "older", path / "threads.json"
        self.skipped = path / "skipped.json"
        self.source = path / "source.json"

    @classmethod
    def find(cls, path: Path) -> tuple[RunFolder, int | None]:
        """The run folder of RUN, or of RUN/qm-N with its width; raises RunError for what is neither."""
        inside = WIDTH.fullmatch(path.absolute().name)
        if inside and not (path / "recipe.toml").exists():
            return cls.expect(path.absolute().parent if path.name in ("", ".") else path.parent), int(inside[1])
        return cls.expect(path), None

    @classmethod
    def expect(cls, path: Path) -> RunFolder:
        """A folder with recipe.toml. Raises RunError for any other."""
        found = cls(path)
        if not found.recipe.is_file():
            raise RunError(
                f"expected a run folder with recipe.toml, got {path}; make one by qrobust run RECIPE --out {path}"
            )
        return found

    def network(self, bits: int) -> NetworkFolder:
        """RUN/qm-N."""
        return NetworkFolder(self.path, bits)

    def name_of(self, path: Path) -> str:
        """A path as it is printed: below the run folder without it."""
        return str(path.relative_to(self.path) if path.is_relative_to(self.path) else path)

    def move_aside(self, bits: int) -> Path:
        """Move RUN/qm-N below RUN/older; returns its new place."""
        source = self.network(bits).path
        numbers = (int(path.name.rpartition(".")[2]) for path in self.older.glob(f"{source.name}.*"))
        place = self.older / f"{source.name}.{max(numbers, default=0) + 1}"
        self.older.mkdir(exist_ok=True)
        return source.rename(place)


def seal(files: RunFolder, value: Any) -> None:
    """Note in source.json that this user made the run with a value (JSON): code that it names is loaded unasked."""
    if (key := _user_key()) is not None:
        write_json(files.source, {"seal": _seal(key, value)})


def is_sealed(files: RunFolder, value: Any) -> bool:
    """Whether `seal` was called by this user with this value; somebody else's folder is not, whatever it holds."""
    key = _user_key()
    try:
        found = str(read_json(files.source)["seal"])
    except (RunError, LookupError, TypeError):
        return False
    return key is not None and hmac.compare_digest(found.encode(), _seal(key, value).encode())


def _seal(key: bytes, value: Any) -> str:
    return hmac.new(key, json.dumps(value, sort_keys=True).encode(), "sha256").hexdigest()


def _user_key() -> bytes | None:
    """32 random bytes that no folder brings along, made at first; None where the user has no place for them."""
    try:
        path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "qrobust" / "key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        found = path.read_bytes()
    except (OSError, RuntimeError):  # no home
        return None
    return found if len(found) == 32 else None


def judged(record: Any) -> str | None:
    """sha256 of the model.onnx that a check.json or attack.json is of; None if it does not say."""
    if not isinstance(record, dict):
        return None
    attacked = record.get("artifact")
    found = attacked.get("sha256") if isinstance(attacked, dict) else record.get("model")
    return found if isinstance(found, str) else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; what killed ones left half-written is removed first.

    Raises RunError, which names the process that is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"expected {folder} to be free, got {_holder(folder)} at work in it; "
            "wait for its end, or give another --out"
        ) from None
    except OSError as error:
        raise RunError(f"expected a writable folder {folder}, got: {error.strerror}; give another --out") from error
    try:
        _remove_left(folder)
        write_json(folder / HOLDER, {"pid": os.getpid(), "command": sys.argv, "since": f"{datetime.now():%F %T}"})
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


HOLDER = ".lock.json"
# Names under which files of a run are written before they are whole; see `storage.write_bytes`.
_UNFINISHED = re.compile(r"\.[\w-]+\.(?:json|jsonl|npz|safetensors|toml|html|md)\.\w{8}\.partial|\.artifact\.\w{8}")


def _holder(folder: Path) -> str:
    try:
        stated = read_json(folder / HOLDER)
        command = " ".join(map(str, stated["command"][1:]))[:100]
        return f"process {int(stated['pid'])} ({command!r}, since {stated['since']})"
    except (RunError, KeyError, TypeError, ValueError):
        return "another process"


def _remove_left(folder: Path) -> None:
    """What a killed process left, in a run folder and below its widths."""
    places = (folder, *(path for path in folder.glob("qm-*") if WIDTH.fullmatch(path.name)))
    for place in (*places, *(path / "checkpoint" for path in places)):
        for path in place.glob(".*") if place.is_dir() else ():
            if not _UNFINISHED.fullmatch(path.name) or path.is_symlink():
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

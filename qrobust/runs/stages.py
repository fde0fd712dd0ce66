"""The one mechanism of "done before": a stage is done if all that it read and wrote is still what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..progress import note
from ..storage import digest, read_json, write_json

if TYPE_CHECKING:
    from ..train.listeners import Listener


@dataclass(frozen=True)
class Stage:
    """One step of a run, whose result is the JSON object in `record`.

    settings: JSON-ready, all that decides the result besides files. reads, writes: files and folders by a name that
    stays when the run is moved. The record keeps `key`, the digest of settings and of what was read, the digests of
    what was read and written, and that of the result itself.
    """

    record: Path
    settings: Any
    reads: Mapping[str, Path] = field(default_factory=dict)
    writes: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Digest of the settings and of every file that is read, as it is now."""
        return digest([self.settings, self.digests_read()])

    def recorded(self) -> dict[str, Any] | None:
        """The record, or None where there is none as a stage wrote it: it was cut, emptied or changed."""
        try:
            found = read_json(self.record)
        except RunError:
            return None
        whole = isinstance(found, dict) and found.get("result", of := digest(without_key(found))) == of
        return found if whole else None

    def done(self) -> bool:
        """Whether the record is of these settings and files, and what was written still stands."""
        found = self.recorded()
        return found is not None and "result" in found and found.get("key") == self.key and self.stands(found)

    def why(self) -> str:
        """Why it is not done, in a few words."""
        found = self.recorded()
        if found is None or "result" not in found:
            return "its record is damaged" if self.record.exists() else "not done yet"
        for what, then, now in (
            ("read", found.get("reads"), self.digests_read()),
            ("wrote", found.get("writes"), _digests(self.writes)),
        ):
            then = then if isinstance(then, dict) else {}
            if changed := [name for name in {**then, **now} if then.get(name) != now.get(name)]:
                return f"what it {what} has changed: {', '.join(changed)}"
        return "settings have changed"

    def stands(self, found: Mapping[str, Any]) -> bool:
        """Whether everything that a record says was written is there, unchanged."""
        return bool(found.get("writes") == _digests(self.writes))

    def digests_read(self) -> dict[str, str | None]:
        """sha256 of everything that is read, as it is now."""
        return _digests(self.reads)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the record, after all that the stage writes. Raises RunError if it cannot."""
        files = {"reads": self.digests_read(), "writes": _digests(self.writes)}
        retained = json.loads(json.dumps(without_key(result)))  # as it will be read
        write_json(self.record, {"key": self.key, **files, "result": digest(retained), **retained})


def announce(tell: Listener, name: str, status: str, result: Mapping[str, Any]) -> None:
    """Say on stderr and to a run's listener what became of a stage. name: of the record, as it is printed."""
    note(f"{name}: {status}")
    from ..train.listeners import event  # with its package torch

    tell(event("stage", stage=name, status=status, result=without_key(result)))


def without_key(record: Mapping[str, Any]) -> dict[str, Any]:
    """The result in a record."""
    return {name: value for name, value in record.items() if name not in ("key", "reads", "writes", "result")}


def fingerprint(path: Path) -> str | None:
    """sha256 of a file, or of a folder's files with their names; None if there is nothing."""
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return digest({one.relative_to(path).as_posix(): fingerprint(one) for one in files})
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _digests(files: Mapping[str, Path]) -> dict[str, str | None]:
    return {name: fingerprint(path) for name, path in files.items()}

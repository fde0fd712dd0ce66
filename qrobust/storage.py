"""Writing files so that a reader finds the old one or the new one, never half of one; reading JSON strictly."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO

from .errors import RunError

STDOUT = Path("-")
PARTIAL = ".partial"
RENAMED = {"doubts": "sanity_checks", "twin": "reference"}  # keys of results of version 0.1


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: temporary neighbour, flush to disk, rename. Raises RunError if it cannot.

    `-` is standard output; a pipe or a device gets the bytes as they are; of a link, what it leads to is written.
    """
    try:
        if number := _descriptor(path):
            _put({1: sys.stdout, 2: sys.stderr}[number], data)
        elif is_stream(path):
            with path.open("wb") as opened:
                opened.write(data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except BrokenPipeError:  # whoever read has seen enough
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"expected a writable place, cannot write {path}: {reason}; choose another place") from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair out of a file's name or a JSON escape
        raise RunError(f"expected text for {path}, got {error.reason}; rename what holds it") from error
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON: indented, keys in the order given, no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def is_stdout(path: Path) -> bool:
    """Whether what is written to a path goes where standard output goes."""
    return _descriptor(path) == 1


def is_stream(path: Path) -> bool:
    """Whether a path is `-`, a pipe or a device: nothing can be read again there, or lie beside it."""
    if _descriptor(path):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def expect_place(path: Path) -> None:
    """Raises RunError, before any work, for a file that cannot be written, or that would harm an artifact."""
    if is_stream(path):
        return
    target = Path(os.path.realpath(path))
    above = next(folder for folder in target.parents if folder.exists())
    if target.is_dir():
        raise RunError(f"expected a file to write, got the folder {path}; add a name")
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RunError(f"expected a writable place for {path}, got {above}, which is none; choose another")
    if (target.parent / "manifest.json").is_file() and (target.parent / "suite.npz").is_file():
        raise RunError(f"expected a place outside of an artifact, got {path}; choose another")


def read_json(path: Path, do: str = "") -> Any:
    """The JSON value in a file. Raises RunError, with `do`, if it is missing or not strictly JSON."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"expected a JSON file at {path}, got: {reason}{do and f'; {do}'}") from error


def read_result(path: Path, do: str = "") -> Any:
    """`read_json` of a result, its keys by today's names."""
    found = read_json(path, do)
    return {RENAMED.get(key, key): value for key, value in found.items()} if isinstance(found, dict) else found


def read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """The tables in a file of JSON lines, none if it is missing; a line that is none, cut by a kill, ends them."""
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            records.append({**parse_json(line)})
        except (TypeError, ValueError, RecursionError):
            break
    return tuple(records)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """A JSON value as the standard has it: no key twice, no NaN or infinity unless not `finite`.

    Raises ValueError, RecursionError.
    """
    whole = text.decode() if isinstance(text, bytes) else text
    numbers: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    return json.loads(whole, object_pairs_hook=_once, **numbers)


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def described(data: bytes) -> dict[str, Any]:
    """Hash and size of a file's bytes, as manifests hold them."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:  # two readers might take one each
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name}, which is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _no_number(text[:20])


def _descriptor(path: Path) -> int:
    """1 or 2 for another name of standard output or error, as /dev/stdout, or the file that a shell opened; else 0."""
    if path == STDOUT:
        return 1
    with suppress(OSError):
        found = path.stat()
        return next((number for number in (1, 2) if os.path.samestat(found, os.fstat(number))), 0)
    return 0


def _put(stream: TextIO | None, data: bytes) -> None:
    if stream is None:
        raise ValueError("it is closed")
    stream.flush()
    if hasattr(stream, "buffer"):  # the bytes of a file, whatever the locale
        stream.buffer.write(data)
    else:
        stream.write(data.decode())
    stream.flush()


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name[:100]}.", suffix=PARTIAL, delete=False
    ) as file:
        partial = Path(file.name)
        try:
            _lock(file)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _sweep(path: Path) -> None:
    """Remove what killed writers of a file left. A living one's is locked, and empty before that."""
    for left in path.parent.glob(f".{glob.escape(path.name[:100])}.????????{PARTIAL}"):
        with suppress(OSError), left.open("rb") as file:
            if _lock(file) and file.seek(0, os.SEEK_END):
                left.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Whether this process has it now; never where the system or the file system has no locks."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

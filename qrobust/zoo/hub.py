"""Networks too large for the repository: on a hub, at one commit, fetched once and read offline ever after."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import RunError
from ..storage import read_json

COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pointer:
    """Where a network lies: OWNER/NAME on the hub, the commit (a branch may change), and the sha256 of its zoo.json,
    which holds those of all its files.
    """

    hub: str
    revision: str
    sha256: str
    description: str


def read_pointer(path: Path) -> Pointer:
    """What export/zoo/NAME.json says. Raises RunError for another table."""
    found = read_json(path)
    names = {field.name for field in fields(Pointer)}
    valid = isinstance(found, dict) and set(found) == names and all(type(value) is str for value in found.values())
    if not (valid and COMMIT.fullmatch(found["revision"]) and SHA256.fullmatch(found["sha256"])):
        raise RunError(f"expected text for {', '.join(sorted(names))} in {path}, a commit of 40 and a sha256 of 64 "
                       "digits, got others; mend it")  # fmt: skip
    return Pointer(**found)


def fetch(where: Pointer, names: Sequence[str], anew: bool = False) -> Path:
    """The folder that holds these files of a commit: the cache's, else downloaded into it. anew: downloaded although
    the cache has them.

    Raises RunError without the package huggingface_hub, or where nothing can be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RunError("expected the package huggingface_hub, got none; pip install 'qrobust[hub]'") from error
    folder = None
    for cached in (False,) if anew else (True, False):
        try:
            folder = Path(
                snapshot_download(
                    where.hub,
                    revision=where.revision,
                    allow_patterns=list(names),
                    local_files_only=cached,
                    force_download=anew,
                )
            )
        except Exception as error:  # of the network, the hub, the cache: they share no base
            if not cached:
                raise RunError(f"expected {where.hub} at {where.revision[:12]} from the hub, got {_reason(error)}; "
                               "try again online, else install another version of qrobust") from error  # fmt: skip
            continue
        if all((folder / name).is_file() for name in names):
            return folder
    raise RunError(f"expected {', '.join(names)} in {where.hub} at {where.revision[:12]}, got some of them alone; "
                   "point to another commit")  # fmt: skip


def _reason(error: BaseException) -> str:
    """What went wrong at first, in one line: what the package says of it later is long, or says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {line}"

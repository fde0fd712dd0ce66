"""Finding recipes, targets and scenarios: a path wins, then the checkout's folder, then the installed share/qrobust.

A name is the path below the folder of its kind, without suffix: `digits`, `spectral/cifar10-resnet18-at`.
"""

from __future__ import annotations

import os
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import RecipeError, did_you_mean

KINDS = ("recipes", "export", "benches/scenarios")


def find(kind: str, name: str) -> Path:
    """The TOML file for a name (`digits`, `fourier/cifar10`) or path (`my/recipe.toml`).

    Raises RecipeError if there is none.

    kind: one of KINDS, the folder below the checkout.
    """
    if name.endswith(".toml") or os.sep in name:
        path = Path(name)
        if path.is_file():
            return path
        name = _below(kind, path) or name
    known = dict(listing(kind))
    stem = name.removesuffix(".toml")
    if stem in known:
        return known[stem]
    alike = [full for full in known if full.endswith(f"/{stem}")]  # the folder was left out
    raise RecipeError(f"expected a file or one of qrobust's {kind}, got {name!r}{did_you_mean(stem, alike or known)}")


def listing(kind: str) -> Iterator[tuple[str, Path]]:
    """Name and path of every TOML of a kind; a checkout hides what is installed."""
    for folder in folders(kind):
        if folder.is_dir():
            yield from sorted((_name(path, folder), path) for path in folder.rglob("*.toml"))
            return


def name_of(kind: str, path: Path) -> str:
    """What `find` calls a shipped file; of any other, the file's name without suffix."""
    whole = path.resolve()
    shelves = [folder.resolve() for folder in folders(kind)]
    return next((_name(whole, folder) for folder in shelves if whole.is_relative_to(folder)), path.stem)


def folders(kind: str) -> list[Path]:
    """Where TOML files of a kind may lie, in order."""
    user = sysconfig.get_preferred_scheme("user")
    installed = [sysconfig.get_path("data"), sysconfig.get_path("data", user)]
    checkout = Path(__file__).resolve().parent.parent / kind
    return [checkout, *(Path(base) / "share" / "qrobust" / kind for base in installed)]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _below(kind: str, path: Path) -> str:
    """What stands behind the last folder called `kind`: documents print `recipes/digits.toml`."""
    _, found, rest = f"/{path.as_posix()}".rpartition(f"/{kind}/")
    return rest if found else ""


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises RecipeError with line and column if it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"expected a TOML file at {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of text, TOML, or an integer of thousands of digits
        raise RecipeError(f"{path}: expected TOML: {error}") from error

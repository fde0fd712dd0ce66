"""Finding recipes, targets and scenarios: a path wins, then the checkout's folder, then the installed share/qrobust.

A name is the path below the folder of its kind, without suffix: `digits`. A file with tables [variants.NAME] holds them
as a folder holds files: `spectral/cifar10-resnet18-at` stands in `spectral.toml`; of a file elsewhere, `FILE.toml#NAME`
is one. A file whose name begins with "_" has no name of its own: others build on it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import RecipeError, did_you_mean, shown

KINDS = ("recipes", "export", "benches/scenarios")
ZOO = "zoo/"  # of networks, each with a recipe of its own, in export
DEFAULTS = "_defaults.toml"
MARK = ".toml#"  # FILE.toml#VARIANT


@dataclass(frozen=True)
class Found:
    """A TOML file that was read, or one of its variants (else "")."""

    path: Path
    variant: str
    file: Mapping[str, Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.path}#{self.variant}" if self.variant else str(self.path)

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """The tables [variants.NAME] of the file. Raises RecipeError where something else stands."""
        tables = self.file.get("variants", {})
        for table in tables.values() if isinstance(tables, dict) else [tables]:
            if not isinstance(table, dict):
                raise RecipeError(f"{self.path}: expected tables [variants.NAME], got {shown(table)}")
        return dict(tables)

    @property
    def table(self) -> dict[str, Any]:
        """What it says itself, without what it builds on."""
        stated = self.variants[self.variant] if self.variant else self.file
        return {key: value for key, value in stated.items() if self.variant or key != "variants"}

    @property
    def base(self) -> Found | None:
        """What a variant builds on if it does not say: the keys of its file that belong to no variant."""
        return Found(self.path, "", self.file) if self.variant else None

    def near(self, name: str) -> Found | None:
        """Another one of a name: among the variants of the same file, else beside it. Raises RecipeError as `find`."""
        if self.variant != name and self.variant and name in self.variants:
            return Found(self.path, name, self.file)
        found = _within(lambda stem: self.path.parent / f"{stem}.toml", name)
        return None if found is None or found.place == self.place else _chosen(found)

    @property
    def place(self) -> tuple[Path, str]:
        """The same for every way to write a path."""
        return self.path.resolve(), self.variant


def find(kind: str, name: str) -> Found:
    """What a name (`digits`, `fourier/cifar10`) or path (`my/recipe.toml`, `my/recipes.toml#NAME`) stands for.

    Raises RecipeError if there is none, or for a file of variants without the name of one.

    kind: one of KINDS, the folder below the checkout.
    """
    path, variant = _parted(name)
    if variant or name.endswith(".toml") or os.sep in name:
        if _is_file(path):
            return _chosen(Found(path, variant, read_toml(path)))
        name = _below(kind, Path(name)) or name
    found = _within(dict(_files(kind)).get, name)
    if found is None:
        stem, known = _stem(name), [full for full, _ in listing(kind)]
        alike = [full for full in known if full.endswith(f"/{stem}")]  # the folder was left out
        hint = did_you_mean(stem, alike or known)
        raise RecipeError(f"expected a file or one of qrobust's {kind}, got {name!r}{hint}")
    return _chosen(found)


def listing(kind: str) -> Iterator[tuple[str, Found]]:
    """Every name of a kind in order, with what it stands for; a checkout hides what is installed."""
    known: list[tuple[str, Found]] = []
    for name, path in _files(kind):
        file = read_toml(path)
        variants = Found(path, "", file).variants
        known += [(f"{name}/{one}", Found(path, one, file)) for one in variants] or [(name, Found(path, "", file))]
    yield from sorted(known, key=lambda pair: pair[0])


def defaults(kind: str) -> dict[str, Any]:
    """What holds for each file of a kind, one's own too, that does not say otherwise."""
    folder = _folder(kind)
    return read_toml(folder / DEFAULTS) if folder and (folder / DEFAULTS).is_file() else {}


def name_of(kind: str, found: Found) -> str:
    """What `find` calls what is shipped; of any other, the file's name without suffix. A variant's stands behind."""
    whole = found.path.resolve()
    shelves = [folder.resolve() for folder in folders(kind)]
    name = next((_name(whole, folder) for folder in shelves if whole.is_relative_to(folder)), found.path.stem)
    return f"{name}/{found.variant}" if found.variant else name


def folders(kind: str) -> list[Path]:
    """Where TOML files of a kind may lie, in order."""
    user = sysconfig.get_preferred_scheme("user")
    installed = [sysconfig.get_path("data"), sysconfig.get_path("data", user)]
    checkout = Path(__file__).resolve().parent.parent / kind
    return [checkout, *(Path(base) / "share" / "qrobust" / kind for base in installed)]


def _folder(kind: str) -> Path | None:
    return next((folder for folder in folders(kind) if folder.is_dir()), None)


def _files(kind: str) -> Iterator[tuple[str, Path]]:
    folder = _folder(kind)
    if folder is not None:
        named = ((_name(path, folder), path) for path in folder.rglob("*.toml") if not path.name.startswith("_"))
        yield from (pair for pair in named if not pair[0].startswith(ZOO))


def _within(file: Callable[[str], Path | None], name: str) -> Found | None:
    """The file of a name, or of FILE/VARIANT the variant; `file` is the path for a stem."""
    stem = _stem(name)
    folder, _, variant = stem.rpartition("/")
    for one, wanted in ((stem, ""), (folder, variant)):
        path = file(one) if one else None
        if path is not None and _is_file(path):
            found = Found(path, wanted, read_toml(path))
            return found if not wanted or wanted in found.variants else None
    return None


def _chosen(found: Found) -> Found:
    """Raises RecipeError for a variant that a file does not have, or for none of those it has."""
    known = found.variants
    if found.variant in known or not (known or found.variant):
        return found
    if not known:
        raise RecipeError(f"expected {found.path} with tables [variants.NAME], got none; leave #{found.variant} out")
    if found.variant:
        hint = did_you_mean(found.variant, known)
        raise RecipeError(f"expected one of the variants in {found.path}, got {found.variant!r}{hint}")
    hint = f"; name one, as {found.path}#{next(iter(known))}{did_you_mean('', known)}"
    raise RecipeError(f"expected one of the variants in {found.path}, got the whole file{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _parted(name: str) -> tuple[Path, str]:
    """FILE.toml#VARIANT in two; any other name whole."""
    stem, mark, variant = name.rpartition(MARK)
    return (Path(f"{stem}.toml"), variant) if mark else (Path(name), "")


def _stem(name: str) -> str:
    return name.replace(MARK, "/").removesuffix(".toml")


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


def located(text: str, base: Path) -> str:
    """FILE.py:NAME with FILE, which is relative to `base`, as a whole path; anything else as it is."""
    file, mark, name = text.rpartition(":")
    whole = os.path.abspath(base / Path(file).expanduser())  # noqa: PTH100, links stay
    return f"{whole}:{name}" if mark and file.endswith(".py") else text


def unplaced(text: str) -> str:
    """FILE.py:NAME without the folders of FILE; anything else as it is.

    >>> unplaced("/home/me/mine.py:make")
    'mine.py:make'
    """
    file, mark, name = text.rpartition(":")
    return f"{Path(file).name}:{name}" if mark and file.endswith(".py") else text


def named_factory(text: str, base: Path) -> Callable[..., Any]:
    """What "FILE.py:NAME" (FILE relative to `base`) or "package.module:NAME" names; this runs the code there.

    A file finds its neighbours by `import`, and is run once however often it is asked, until it changes. Raises
    RecipeError for a file or module that is missing or raises, and for a name that it lacks or that cannot be called.
    """
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise RecipeError(f"expected FILE.py:NAME or package.module:NAME, got {text!r}; name a function in it")
    module = _run_file(base / Path(source).expanduser()) if source.endswith(".py") else _imported(source)
    found = getattr(module, name, None)
    if not callable(found):
        public = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise RecipeError(f"expected a function {name!r} in {source}, got none{did_you_mean(name, public)}")
    function: Callable[..., Any] = found
    return function


def place_in(path: object, error: BaseException) -> str:
    """`, line N` of a file in which an error was raised, as far as its traceback says."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _run_file(path: Path) -> ModuleType:
    path = path.absolute()
    try:
        code = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"expected Python code at {path}: {error.strerror}; put it there, or name another") from error
    name = f"_own_{path.stem}_{hashlib.sha256(str(path).encode() + code).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # where classes in it are looked for
    module.__file__ = str(path)
    sys.path.append(str(path.parent))  # what lies beside it may be imported, and stands for nothing else
    try:
        exec(
            compile(code, str(path), "exec", dont_inherit=True), module.__dict__
        )  # what was read, never an older compiled form
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):  # whatever is raised by what is not ours
            raise _raised(f"{path}{place_in(path, error)}", error) from error
        raise
    finally:
        with suppress(ValueError):  # the file may have taken it away
            sys.path.remove(str(path.parent))
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # as in a file
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"expected a module {name}, got none; install it, or name a file, FILE.py:NAME"
            ) from error
        raise _raised(f"module {name}", error) from error


def _raised(where: str, error: BaseException) -> RecipeError:
    return RecipeError(f"expected code that runs in {where}, it raised {type(error).__name__}: {error}; mend it")

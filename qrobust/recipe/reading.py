"""From a TOML file, what it extends and overrides to a checked recipe, and back; where two of them differ."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from .. import resources
from ..errors import RecipeError, did_you_mean, shown
from .schema import Recipe

TableT = TypeVar("TableT", bound=BaseModel)
DEEPEST, LARGEST = 20, 2.0**63
NAMING = ("model", "data", "teacher", "extra")  # tables that name code, and weights
TRAINING = ("train", "quant")  # tables that hold such


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a name or path, with what it extends and overrides, as in `made`. Raises RecipeError.

    Code that a file names, as data.name = "FILE.py:NAME", lies relative to it; by an override, to where one stands.
    """
    table, found = read("recipes", name)
    table.pop("description", None)  # for `qrobust recipes`
    table.setdefault("name", resources.name_of("recipes", found))
    return made(table, overrides, source=str(found))


def made(table: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str) -> Recipe:
    """A checked recipe of a table, with overrides.

    overrides: `key=value`, or the path of a TOML file, whose tables are merged over it. source: where the table is
    from, for the error. Raises RecipeError naming the first wrong key.
    """
    for override in overrides:
        table = _merge(table, _override(override))
    return parse(table, source=source)


def read(kind: str, name: str) -> tuple[dict[str, Any], resources.Found]:
    """The table of a name or path, merged over what it extends, and that over the defaults of its kind.

    kind: one of resources.KINDS. Raises RecipeError: nothing of that name, no TOML, or a circle.
    """
    found = resources.find(kind, name)
    return _merge(resources.defaults(kind), _extended(kind, found, ())), found


def parse(table: Mapping[str, Any], *, source: str) -> Recipe:
    """A checked recipe. Raises RecipeError naming the first wrong key of `source`."""
    return checked(Recipe, table, source=source)


def checked(schema: type[TableT], table: Mapping[str, Any], *, source: str) -> TableT:
    """A table, as TOML gives it, as `schema`.

    source: where it is from, for the error. Raises RecipeError: where, what was expected, what came.
    """
    try:
        found = schema.model_validate(dict(table))
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(schema, error)}") from error
    _expect_plain(table, source)
    return found


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every default spelled out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _extended(kind: str, found: resources.Found, seen: tuple[resources.Found, ...]) -> dict[str, Any]:
    if found.place in (one.place for one in seen):
        chain = " → ".join(one.variant or one.path.stem for one in (*seen, found))
        raise RecipeError(f"expected {kind} that extend others, got a circle: {chain}; remove one `extends`")
    table = located(found.table, found.path.parent)
    parent = _parent(kind, found, table.pop("extends", None))
    if parent is None:
        return table
    inherited = _extended(kind, parent, (*seen, found))
    for key in ("name", "description", "claim"):  # a variant carries no paper's numbers but its own
        inherited.pop(key, None)
    if parent.path != found.path:  # a file is a paper's
        inherited.pop("departures", None)
    return _merge(inherited, table)


def _parent(kind: str, found: resources.Found, name: Any) -> resources.Found | None:
    """What is extended: one nearby, or one shipped, which may have the name of the one that extends it."""
    if name is None:
        return found.base
    if not isinstance(name, str):
        raise RecipeError(f"{found}: expected extends = 'NAME', got {shown(name)}")
    return found.near(name) or resources.find(kind, name)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(text: str) -> dict[str, Any]:
    if text.endswith(".toml") and "=" not in text:
        return located(resources.read_toml(Path(text)), Path(text).absolute().parent)
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"expected an override KEY=VALUE, got {text!r}; as in -o train.epochs=3")
    try:
        found = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        found = {}
    parsed: Any = found["value"] if found.keys() == {"value"} else value  # a second line would be another key
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return located(parsed, Path.cwd())


def located(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The table with whole paths for the files that it names, which are relative to the file that names them."""

    def whole(path: str) -> str:
        return os.path.abspath(folder / Path(path).expanduser())  # noqa: PTH100, links stay

    return _with_places(table, lambda code: resources.located(code, folder), whole)


def portable(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table for others to read: code and weights by the names of their files, not by their place on a machine."""
    return _with_places(table, resources.unplaced, lambda path: Path(path).name)


def _with_places(table: Mapping[str, Any], code: Callable[[str], str], weights: Callable[[str], str]) -> dict[str, Any]:
    found = dict(table)
    for key in NAMING:
        if isinstance(inner := table.get(key), Mapping):
            found[key] = dict(inner)
            if isinstance(name := inner.get("name"), str):
                found[key]["name"] = code(name)
            if isinstance(path := inner.get("weights"), str) and path:
                found[key]["weights"] = weights(path)
    for key in TRAINING:
        if isinstance(inner := table.get(key), Mapping):
            found[key] = _with_places(inner, code, weights)
    if isinstance(name := table.get("on_event"), str):
        found["on_event"] = code(name)
    return found


def _expect_plain(value: Any, source: str, where: tuple[object, ...] = ()) -> None:
    """Raises RecipeError unless a value can go into a JSON file and come back: finite, no dates, not deep."""
    if isinstance(value, (Mapping, list, tuple)) and len(where) < DEEPEST:
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            _expect_plain(part, source, (*where, key))
        return
    number = isinstance(value, (int, float)) and abs(value) < LARGEST  # which NaN is not either
    if not number and value is not None and not isinstance(value, str):
        raise RecipeError(
            f"{source}: {'.'.join(map(str, where))}: expected text, a finite number up to 64 bits, a truth value, or "
            f"a table of them up to {DEEPEST} deep, got {shown(value)}"
        )


def _explain(schema: type[BaseModel], error: ValidationError) -> str:
    wrong = error.errors()
    # A misspelt key is also a missing one: the spelling is what helps.
    first = next((one for one in wrong if one["type"] == "extra_forbidden"), wrong[0])
    where = ".".join(str(part) for part in first["loc"]) or schema.__name__.lower()
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{did_you_mean(str(first['loc'][-1]), _fields(schema, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"expected a value for {where!r}, got none; add it"
    if first["type"] == "too_short":
        return f"{where}: expected {first['ctx']['min_length']} value or more, got {first['input']!r}; add one"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    got = "" if "got" in message else f", got {shown(first['input'])}"
    return f"{where}: {message}{got}"


def _fields(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names of the table at a location."""
    for part in location:
        annotation = schema.model_fields[part].annotation
        options = (annotation, *get_args(annotation))
        schema = next(t for t in options if isinstance(t, type) and issubclass(t, BaseModel))
    return list(schema.model_fields)


ORDERED = "quant.layers"  # whose last pattern that matches decides


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting, in the order of `new`, that was another when a network was trained; None if none was.

    old, new: nested tables of JSON values. A key that is absent is as one that is None, so that settings which a
    later version adds differ from older ones only where they are used.

    >>> difference({"train": {"lr": 0.1}}, {"train": {"lr": 0.05}})
    'train.lr: trained with 0.1, the recipe has 0.05'
    """
    return next(_differences(old, new, ""), None)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in (*new, *(key for key in old if key not in new)):
        before, after = (_plain(table.get(key)) for table in (old, new))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
            if f"{prefix}{key}" == ORDERED and list(before) != list(after):
                yield f"{ORDERED}: trained in the order {list(before)}, the recipe has {list(after)}"
        elif before != after:
            yield f"{prefix}{key}: trained with {_shown(before)}, the recipe has {_shown(after)}"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return "none" if value is None else repr(value)

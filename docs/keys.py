"""Tables of keys for documents, from the classes that check TOML files: key, value, default, meaning."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qrobust.models.registry import networks

KINDS = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any"}
LEFT_OUT = "left out:"  # how a meaning says what holds without the key
Tables = dict[type[BaseModel], list[str]]


def tables(root: type[BaseModel]) -> Tables:
    """Every class that a file of `root` is made of, with the names of its TOML tables; a base class before its own."""
    found: Tables = {}
    _collect(root, "", found)
    return found


def _collect(table: type[BaseModel], path: str, found: Tables) -> None:
    bases = [one for one in reversed(table.__mro__) if issubclass(one, BaseModel) and own_keys(one)]
    for base in bases:
        found.setdefault(base, []).append(path)
    for base in bases:
        for name, field in own_keys(base).items():
            if (inner := table_of(field.annotation)) is not None:
                _collect(inner, f"{path}.{name}".lstrip("."), found)


def own_keys(table: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that a class adds to those of the class below it."""
    own = inspect.get_annotations(table)
    return {name: field for name, field in table.model_fields.items() if name in own}


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The class of a key that is a table."""
    options = (annotation, *get_args(annotation))
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def sections(root: type[BaseModel], level: str, defaults: dict[str, Any] | None = None) -> str:
    """A heading, what it is, and a table of keys for every TOML table of a file. defaults: over the class's own."""
    found = tables(root)
    lines: list[str] = []
    for table, paths in found.items():
        lines += [f"{level} {_title(table, paths, found)}", "", _about(table), "", *rows(table, paths[0], defaults), ""]
    return "\n".join(lines).rstrip() + "\n"


def rows(table: type[BaseModel], path: str = "", defaults: dict[str, Any] | None = None) -> Iterator[str]:
    """The table of a class's own keys that are values, its heads first."""
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    given: Any = defaults or {}
    for part in filter(None, path.split(".")):
        given = given.get(part, {})
    for name, field in own_keys(table).items():
        if table_of(field.annotation) is None:
            value, meaning = values(field.annotation, field.metadata), " ".join((field.description or "").split())
            yield f"| `{name}` | {value} | {_default(field, given.get(name))} | {meaning} |"


def _title(table: type[BaseModel], paths: Sequence[str], found: Tables) -> str:
    name = " and ".join(f"[{path}]" if path else "Outside of tables" for path in paths)
    return name + (" alone" if any(one in found for one in table.__mro__[1:]) else "")


def _about(table: type[BaseModel]) -> str:
    return " ".join(inspect.getdoc(table).split()) if table.__doc__ else ""  # type: ignore[union-attr]


def values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a key takes, and its range: `number in [0, 1)`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(values(one, metadata) for one in inner if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin is tuple:
        return f"list of {values(inner[0])}"
    if origin is dict:
        return f"table of {values(inner[1])}"
    return KINDS[annotation] + _range(metadata)


def _range(metadata: Sequence[Any]) -> str:
    flat = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    low = next((f"{'[' if isinstance(one, Ge) else '('}{_end(one)}" for one in flat if isinstance(one, (Ge, Gt))), "")
    high = next((f"{_end(one)}{']' if isinstance(one, Le) else ')'}" for one in flat if isinstance(one, (Le, Lt))), "")
    if low and high:
        return f" in {low}, {high}"
    return f" {'≥' if low[0] == '[' else '>'} {low[1:]}" if low else ""


def _end(bound: Any) -> str:
    number = next(getattr(bound, key) for key in ("ge", "gt", "le", "lt") if hasattr(bound, key))
    return f"{number:.10g}"


def _default(field: FieldInfo, given: Any) -> str:
    if given is None and field.is_required():
        return "" if LEFT_OUT in (field.description or "") else "required"  # a name, which the file gives
    value = field.get_default(call_default_factory=True) if given is None else given
    return "" if value is None or value == {} else f"`{json.dumps(value)}`"


def network_table() -> str:
    """Each network that a recipe may name, with the options it takes."""
    lines = ["| name | options, the default first | what it is |", "|---|---|---|"]
    for name, builder in networks().items():
        taken = inspect.signature(builder, eval_str=True).parameters.values()
        options = [_option(one) for one in taken if one.name not in ("in_channels", "classes")]
        about = " ".join((inspect.getdoc(builder) or "").split("\n\n")[0].split())
        lines.append(f"| `{name}` | {'; '.join(options)} | {about} |")
    return "\n".join(lines)


def _option(option: inspect.Parameter) -> str:
    given = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
    words = [one for one in given if one != option.default]
    rest = [values(Literal[tuple(words)])] if words else []
    return f"`{option.name}`: {', '.join([f'`{json.dumps(option.default)}`', *rest])}"

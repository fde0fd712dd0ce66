"""What a key of a TOML table may hold: numbers, widths, names, and the texts that refuse others."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ..runtime import MAX_THREADS

Form = Literal["batch", "sample"]
Distance = Literal["l1", "l2", "cosine"]
Width = Literal[2, 3, 4, 5, 6, 7, 8]
Bits = Literal[Width, 32]
Fat = Literal["paper", "normalised", "identity", "none"]


def _fraction(value: Any) -> Any:
    """'8/255' as a number."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _radius(value: Any) -> Any:
    value = _fraction(value)
    if isinstance(value, (int, float)) and value > 1:
        raise ValueError("expected a share of the pixel range [0, 1]; write '8/255', not 8")
    return value


def _start(value: Any) -> Any:
    if value != "first-drop" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("expected an epoch, counted from 0, or 'first-drop'")
    return value


def _size(value: Any) -> Any:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError("expected a side in pixels, or [HEIGHT, WIDTH]")
    return sides[0] if sides[0] == sides[1] else tuple(sides)


def _scale(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"expected two shares above 0 and up to 1 that do not fall, as [0.25, 1.0], got {list(value)}")
    return value


def _class_weights(value: Any) -> Any:
    many = isinstance(value, (list, tuple)) and len(value) > 1
    if value != "balanced" and not (many and all(type(one) in (int, float) and 0 < one < 2**63 for one in value)):
        raise ValueError("expected 'balanced', or a positive number a class")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts among the integers
        raise ValueError("expected a number")
    return value


def _folder(value: str) -> str:
    """A name is also where a run lies, below `runs/`."""
    parts = value.split("/")
    if "\\" in value or not value.isprintable() or not all(part.strip(". ") for part in parts) or len(value) > 150:
        raise ValueError(f"expected a printable name that can name a folder, got {value[:50]!r}")
    return value


Name = Annotated[str, AfterValidator(_folder)]
Start = Annotated[int | Literal["first-drop"], BeforeValidator(_start)]
Radius = Annotated[float, BeforeValidator(_number), BeforeValidator(_radius), Field(ge=0, le=1)]
ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...], BeforeValidator(_class_weights)]
Size = Annotated[int | tuple[int, int], BeforeValidator(_size)]
Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Scale = Annotated[tuple[Float, Float], AfterValidator(_scale)]
Count = Annotated[int, BeforeValidator(_number), Field(gt=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Threads = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MAX_THREADS)]  # 0: as many as the runtime likes
CallSize = Annotated[int, BeforeValidator(_number), Field(gt=0, le=2**16)]  # images of one call
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=86_400)]  # a day at most
Weight = Annotated[float, BeforeValidator(_number), Field(ge=0)]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, (int, float, str)) else value


def _above_zero(value: tuple[float, ...]) -> tuple[float, ...]:
    if not all(one > 0 for one in value):
        raise ValueError("expected numbers above 0")
    return value


PerChannel = Annotated[tuple[Float, ...], BeforeValidator(_one_or_more)]


def further_options(table: Any, fields: Collection[str]) -> Any:
    """Of a user's own factory further keys are its options; of any other source they are unknown."""
    if not isinstance(table, dict) or ":" not in str(table.get("name")):
        return table
    given = table.get("options", {})
    further = {key: value for key, value in table.items() if key not in fields}
    known = {key: value for key, value in table.items() if key in fields}
    return {**known, "options": {**given, **further} if isinstance(given, dict) else given}


class Table(BaseModel):
    """A TOML table: unknown keys are errors, values do not change. The text under a key is its meaning, in docs too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

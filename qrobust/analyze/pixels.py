"""Images as JSON can hold them: eight bits a value, as base64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def pack(pixels: Pixels) -> dict[str, Any]:
    """An array of bytes of any shape."""
    return {"shape": list(pixels.shape), "base64": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> Pixels:
    """What `pack` was given."""
    return np.frombuffer(base64.b64decode(packed["base64"]), np.uint8).reshape(packed["shape"])

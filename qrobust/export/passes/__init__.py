"""Steps from Brevitas' QCDQ graph to what a deployment target runs.

Each step changes an onnx-ir model in place and says whether it did. Run them in the order of `steps`: one may
rely on what those before it ensure.
"""

from __future__ import annotations

from functools import partial

from .activations import (
    activations_as_arithmetic,
    align_channels,
    byte_input,
    half_precision,
    integers_through_parts,
    integers_through_shapes,
    pixels_as_floats,
    symmetric_activations,
    unsigned_activations,
)
from .cleaning import drop_defaults, drop_types, explicit_pads, share_constants, tidy
from .graph import Step
from .qonnx import to_qonnx
from .weights import (
    fit_biases,
    fold_batch_norm,
    fold_constants,
    fold_weight_clips,
    narrow_storage,
    own_constants,
    quantise_biases,
    weights_as_arithmetic,
    weights_as_floats,
)

FOLDED: tuple[Step, ...] = (tidy, fold_constants, explicit_pads, fold_weight_clips, fold_batch_norm)
NARROW = narrow_storage  # where a format narrows its weights, if the target's storage asks for it
CLEAN: tuple[Step, ...] = (share_constants, own_constants, drop_defaults, drop_types)
# What the formats of a target mean; see export/README.md.
FORMATS: dict[str, tuple[Step, ...]] = {
    "integer": (
        integers_through_parts,
        integers_through_shapes,
        fit_biases,
        quantise_biases,
        unsigned_activations,
        align_channels,
        NARROW,
    ),
    "compact": (fit_biases, unsigned_activations, NARROW),
    "float": (pixels_as_floats, weights_as_floats, activations_as_arithmetic),
    "float16": (
        pixels_as_floats,
        NARROW,
        weights_as_arithmetic,
        activations_as_arithmetic,
        half_precision,
    ),
    "symmetric": (pixels_as_floats, fit_biases, symmetric_activations),
    "qonnx": (pixels_as_floats, to_qonnx),
}
STORAGE = ("cast", "direct", "bytes")


def steps(kind: str, *, storage: str, opset: int, takes_bytes: bool = False) -> list[Step]:
    """The steps of a format.

    storage: "cast": weights at the least width that `opset` knows, a Cast to INT8 behind; "direct": without
    one; "bytes": INT8. takes_bytes: for an input of uint8 (batch, h, w, c).
    """
    narrow = partial(narrow_storage, opset=opset, cast=storage == "cast")
    middle = [narrow if step is NARROW else step for step in FORMATS[kind] if step is not NARROW or storage != "bytes"]
    return [*FOLDED, *([byte_input] if takes_bytes else []), *middle, *CLEAN]

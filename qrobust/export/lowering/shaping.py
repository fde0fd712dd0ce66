"""Entries for what moves, selects, pads and pools values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from ...errors import ExportError
from .lowering import Lowering, aten, each, filled, is_batch, lowers, rank_of, shape_of, sizes
from .quantised import Activation

END = 2**62
MODES = {"reflect": "reflect", "replicate": "edge"}


@lowers(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unflatten.int, aten.view_as.default,
        aten.reshape_as.default)  # fmt: skip
def reshape(low: Lowering, x: fx.Node, *_: Any) -> Any:
    """Reshape into what torch's has."""
    if [str(size) for size in shape_of(low.node)] == [str(size) for size in shape_of(x)]:
        return low.env[x]
    return low.moved(x, lambda value: low.op("Reshape", value, sizes(low, shape_of(low.node))))


@lowers(aten.flatten.using_ints)
def flatten(low: Lowering, x: fx.Node, start: int = 0, end: int = -1) -> Any:
    """Flatten a row an image; else Reshape."""
    if start == 1 and end % rank_of(x) == rank_of(x) - 1 and rank_of(x) > 2:
        return low.moved(x, lambda value: low.op("Flatten", value, axis=1))
    return reshape(low, x)


@lowers(aten.permute.default)
def permute(low: Lowering, x: fx.Node, dims: Sequence[int]) -> Any:
    """Transpose, where something moves."""
    perm = [dim % len(dims) for dim in dims]
    if perm == sorted(perm):
        return low.env[x]
    return low.moved(x, lambda value: low.op("Transpose", value, perm=perm))


@lowers(aten.transpose.int, aten.swapaxes.default)
def transpose(low: Lowering, x: fx.Node, one: int, other: int) -> Any:
    """Of two dimensions."""
    perm = list(range(rank_of(x)))
    perm[one], perm[other] = perm[other], perm[one]
    return permute(low, x, perm)


@lowers(aten.t.default, aten.mT.default, aten.adjoint.default)
def turned(low: Lowering, x: fx.Node) -> Any:
    """Of the last two dimensions."""
    return transpose(low, x, -1, -2)


@lowers(aten.movedim.int)
def movedim(low: Lowering, x: fx.Node, source: int, destination: int) -> Any:
    """One dimension elsewhere."""
    dims = [dim for dim in range(rank_of(x)) if dim != source % rank_of(x)]
    dims.insert(destination % rank_of(x), source % rank_of(x))
    return permute(low, x, dims)


@lowers(aten.unsqueeze.default)
def unsqueeze(low: Lowering, x: fx.Node, dim: int) -> Any:
    """A dimension of one."""
    axes = low.graph.integers(dim % rank_of(low.node))
    return low.moved(x, lambda value: low.op("Unsqueeze", value, axes))


@lowers(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(low: Lowering, x: fx.Node, *_: Any) -> Any:
    """Without dimensions of one."""
    return reshape(low, x)


@lowers(aten.slice.Tensor)
def slice_(low: Lowering, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """Slice, where something is left out."""
    first, last = start or 0, END if end is None or is_batch(end) else end
    if first == 0 and step == 1 and (last >= END or last == shape_of(x)[dim]):
        return low.env[x]
    return low.moved(x, lambda value: _slice(low, value, dim, first, last, step))


@lowers(aten.narrow.default)
def narrow(low: Lowering, x: fx.Node, dim: int, start: int, length: int) -> Any:
    """Slice by its length."""
    return low.moved(x, lambda value: _slice(low, value, dim, start, start + length))


@lowers(aten.select.int)
def select(low: Lowering, x: fx.Node, dim: int, index: int) -> Any:
    """Gather of one."""
    return low.moved(x, lambda value: low.op("Gather", value, _index(low, index), axis=dim))


@lowers(aten.unbind.int)
def unbind(low: Lowering, x: fx.Node, dim: int = 0) -> Any:
    """Gather of each."""
    count = int(shape_of(x)[dim])
    return low.parts(x, lambda value: [low.op("Gather", value, _index(low, i), axis=dim) for i in range(count)])


@lowers(aten.index_select.default)
def index_select(low: Lowering, x: fx.Node, dim: int, index: fx.Node) -> Any:
    """Gather."""
    return low.moved(x, lambda value: low.op("Gather", value, low.constant(index), axis=dim))


@lowers(aten.index.Tensor)
def index(low: Lowering, x: fx.Node, indices: Sequence[Any]) -> Any:
    """Gather along one dimension by known places."""
    given = [(dim, low.constant(one)) for dim, one in enumerate(indices) if one is not None]
    if len(given) != 1 or given[0][1].dtype == torch.bool:
        raise ExportError("expected an index of whole numbers along one dimension; select along one after the other")
    ((dim, places),) = given
    return low.moved(x, lambda value: low.op("Gather", value, places, axis=dim))


@lowers(aten.embedding.default)
def embedding(low: Lowering, table: fx.Node, places: fx.Node, *_: Any) -> Any:
    """Gather of rows."""
    return low.op("Gather", table, places, axis=0)


@lowers(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes,
        aten.tensor_split.sections)  # fmt: skip
def split(low: Lowering, x: fx.Node, _: Any, dim: int = 0) -> Any:
    """Split."""
    lengths = [int(part.shape[dim]) for part in low.node.meta["val"]]
    if len(lengths) == 1:
        return [low.env[x]]
    wanted = low.graph.integers(*lengths)
    return low.parts(x, lambda value: low.op("Split", value, wanted, outputs=len(lengths), axis=dim))


@lowers(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(low: Lowering, parts: Sequence[fx.Node], dim: int = 0) -> Any:
    """Concat, of integers where all parts lie on one grid."""
    sources = [low.env[part] for part in parts]
    axis, first = dim % rank_of(low.node), sources[0]
    if low.form.carries and all(isinstance(one, Activation) and one.shares_grid(first) for one in sources):
        integers = [one.integers for one in sources]
        return first.moved(lambda _: low.op("Concat", *integers, axis=axis))
    return low.op("Concat", *(low.floats(part) for part in parts), axis=axis)


@lowers(aten.stack.default)
def stack(low: Lowering, parts: Sequence[fx.Node], dim: int = 0) -> Any:
    """Concat of what has a dimension more."""
    axis = dim % rank_of(low.node)
    axes = low.graph.integers(axis)
    return low.op("Concat", *(low.op("Unsqueeze", low.floats(part), axes) for part in parts), axis=axis)


@lowers(aten.expand.default, aten.expand_as.default)
def expand(low: Lowering, x: fx.Node, *_: Any, **__: Any) -> Any:
    """Expand; what stays as it is says 1."""
    before, after = [1] * (rank_of(low.node) - rank_of(x)) + shape_of(x), shape_of(low.node)
    if [str(size) for size in before] == [str(size) for size in after] and len(after) == rank_of(x):
        return low.env[x]
    wanted = [1 if str(old) == str(new) else new for old, new in zip(before, after, strict=True)]
    return low.op("Expand", x, _shape(low, wanted))


@lowers(aten.repeat.default, aten.tile.default)
def repeat(low: Lowering, x: fx.Node, counts: Sequence[Any]) -> Any:
    """Tile."""
    missing = max(0, len(counts) - rank_of(x))
    value = low.op("Reshape", x, sizes(low, [1] * missing + shape_of(x))) if missing else x
    wanted = [*[1] * (rank_of(x) - len(counts)), *(_number(low, count) for count in counts)]
    return low.op("Tile", value, _shape(low, wanted))


@lowers(aten.roll.default)
def roll(low: Lowering, x: fx.Node, shifts: Any, dims: Any = ()) -> Any:
    """The end of each dimension before its beginning."""
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    turns = [(dim, -shift % int(shape_of(x)[dim])) for shift, dim in pairs]

    def turned(value: Any) -> Any:
        for dim, cut in turns:
            if cut:
                value = low.op("Concat", _slice(low, value, dim, cut, END), _slice(low, value, dim, 0, cut), axis=dim)
        return value

    return low.moved(x, turned)


@lowers(aten.flip.default)
def flip(low: Lowering, x: fx.Node, dims: Sequence[int]) -> Any:
    """From the end to the beginning."""

    def turned(value: Any) -> Any:
        for dim in dims:
            value = _slice(low, value, dim, -1, -END, -1)
        return value

    return low.moved(x, turned)


@lowers(aten.pad.default, aten.constant_pad_nd.default)
def pad(low: Lowering, x: fx.Node, pads: Sequence[int], mode: Any = "constant", value: Any = None) -> Any:
    """Pad; a circular one by slices, and negative ones cut."""
    if low.node.target is aten.constant_pad_nd.default:
        mode, value = "constant", mode
    if not any(pads):
        return low.env[x]
    rank, source = rank_of(x), low.env[x]
    begin, end = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        begin[rank - 1 - i], end[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    if mode == "circular":
        return low.moved(x, lambda given: _wrapped(low, given, shape_of(x), begin, end))
    wanted = low.graph.integers(*begin, *end)
    if mode in MODES:
        return low.moved(x, lambda given: low.op("Pad", given, wanted, mode=MODES[mode]))
    if value and isinstance(source, Activation):  # no level, perhaps
        return low.op("Pad", x, wanted, low.floats(float(value)))
    if low.form.carries and isinstance(source, Activation):
        return source.moved(lambda given: low.op("Pad", given, wanted, source.zero))
    return low.op("Pad", x, wanted, low.floats(float(value)) if value else None)


@lowers(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(low: Lowering, x: fx.Node, kernel: Any, *settings: Any) -> Any:
    """MaxPool."""
    stride, padding, dilation, ceil_mode = filled(settings, ((), 0, 1, False))
    count = rank_of(x) - 2
    window = each(kernel, count)
    return low.op(
        "MaxPool", x, kernel_shape=window, strides=each(stride or kernel, count), pads=each(padding, count) * 2,
        dilations=each(dilation, count), ceil_mode=int(ceil_mode),
    )  # fmt: skip


@lowers(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(low: Lowering, x: fx.Node, kernel: Any, *settings: Any) -> Any:
    """AveragePool; another divisor is a factor behind it."""
    stride, padding, ceil_mode, count_include_pad, divisor = filled(settings, ((), 0, False, True, None))
    count = rank_of(x) - 2
    window, pads = each(kernel, count), each(padding, count)
    pooled = low.op(
        "AveragePool", x, kernel_shape=window, strides=each(stride or kernel, count), pads=pads * 2,
        ceil_mode=int(ceil_mode), count_include_pad=int((count_include_pad or divisor is not None) and any(pads)),
    )  # fmt: skip
    return pooled if divisor is None else low.op("Mul", pooled, float(np.prod(window)) / divisor)


@lowers(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool(low: Lowering, x: fx.Node, *_: Any) -> Any:
    """GlobalAveragePool, AveragePool where windows are all of one size, else products."""
    return _adaptive(low, x, shape_of(low.node), "GlobalAveragePool", "AveragePool")


@lowers(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(low: Lowering, x: fx.Node, *_: Any) -> Any:
    """GlobalMaxPool, or MaxPool where windows are all of one size; places are not given."""
    return [_adaptive(low, x, list(low.node.meta["val"][0].shape), "GlobalMaxPool", "MaxPool"), None]


@lowers(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
def upsample_nearest(low: Lowering, x: fx.Node, *_: Any) -> Any:
    """Resize by the nearest value before."""
    return _resized(low, x, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@lowers(aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec, aten.upsample_bicubic2d.vec)
def upsample_linear(low: Lowering, x: fx.Node, _: Any, align_corners: bool, *__: Any) -> Any:
    """Resize by lines or cubics between values."""
    cubic = low.node.target is aten.upsample_bicubic2d.vec
    corners = "align_corners" if align_corners else "half_pixel"
    return _resized(low, x, mode="cubic" if cubic else "linear", coordinate_transformation_mode=corners)


@lowers(aten.pixel_shuffle.default)
def pixel_shuffle(low: Lowering, x: fx.Node, factor: int) -> Any:
    """DepthToSpace."""
    return low.moved(x, lambda value: low.op("DepthToSpace", value, blocksize=factor, mode="CRD"))


@lowers(aten.pixel_unshuffle.default)
def pixel_unshuffle(low: Lowering, x: fx.Node, factor: int) -> Any:
    """SpaceToDepth has another order of channels."""
    batch, channels, height, width = shape_of(x)
    apart = [batch, channels, height // factor, factor, width // factor, factor]
    return low.moved(x, lambda value: _shuffled(low, value, apart, [0, 1, 3, 5, 2, 4], shape_of(low.node)))


@lowers(aten.channel_shuffle.default)
def channel_shuffle(low: Lowering, x: fx.Node, groups: int) -> Any:
    """Channels as (groups, each), turned."""
    batch, channels, *rest = shape_of(x)
    perm = [0, 2, 1, *range(3, 3 + len(rest))]
    return low.moved(
        x, lambda value: _shuffled(low, value, [batch, groups, channels // groups, *rest], perm, shape_of(low.node))
    )


def _shuffled(low: Lowering, value: Any, apart: Sequence[Any], perm: Sequence[int], after: Sequence[Any]) -> Any:
    turned = low.op("Transpose", low.op("Reshape", value, sizes(low, apart)), perm=perm)
    return low.op("Reshape", turned, sizes(low, after))


def _slice(low: Lowering, value: Any, dim: int, start: int, end: int, step: int = 1) -> Any:
    steps = low.graph.integers(step) if step != 1 else None
    return low.op("Slice", value, low.graph.integers(start), low.graph.integers(end), low.graph.integers(dim), steps)


def _index(low: Lowering, number: int) -> ir.Value:
    return low.graph.constant(np.array(number, np.int64))


def _number(low: Lowering, count: Any) -> Any:
    return low.env[count] if isinstance(count, fx.Node) else count


def _shape(low: Lowering, wanted: Sequence[Any]) -> ir.Value:
    """A shape that may hold the number of images."""
    if not any(is_batch(size) for size in wanted):
        return low.graph.integers(*(int(size) for size in wanted))
    if any(is_batch(size) and not size.node.expr.is_Symbol for size in wanted):
        raise ExportError("expected the number of images, got a size that hangs on it; repeat along other dimensions")
    parts = [low.batch() if is_batch(size) else low.graph.integers(int(size)) for size in wanted]
    return low.op("Concat", *parts, axis=0)  # type: ignore[no-any-return]


def _wrapped(low: Lowering, value: Any, shape: Sequence[Any], begin: Sequence[int], end: Sequence[int]) -> Any:
    """The end before the beginning, and the beginning behind the end; from the last dimension to the first."""
    for dim in range(len(shape))[::-1]:
        parts = [value]
        if begin[dim] > 0:
            parts.insert(0, _slice(low, value, dim, -begin[dim], END))
        if end[dim] > 0:
            parts.append(_slice(low, value, dim, 0, end[dim]))
        value = low.op("Concat", *parts, axis=dim) if len(parts) > 1 else value
    return value


def _adaptive(low: Lowering, x: fx.Node, after: Sequence[Any], whole: str, parts: str) -> Any:
    old, new = ([int(size) for size in given[2:]] for given in (shape_of(x), after))
    if set(new) == {1}:
        return low.op(whole, x)
    if not any(size % part for size, part in zip(old, new, strict=True)):
        window = [size // part for size, part in zip(old, new, strict=True)]
        return low.op(parts, x, kernel_shape=window, strides=window)
    if whole != "GlobalAveragePool" or len(new) > 2:
        raise ExportError(f"expected a pool that divides its input, got {old} into {new}; choose sizes that divide")
    value = low.op("MatMul", x, _windows(old[-1], new[-1]).T.contiguous())
    return low.op("MatMul", _windows(old[0], new[0]), value) if len(new) > 1 else value


def _windows(old: int, new: int) -> Tensor:
    """The matrix (new, old) of means over windows that differ in size."""
    ends = [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
    return torch.tensor([[float(first <= j < last) / (last - first) for j in range(old)] for first, last in ends])


def _resized(low: Lowering, x: fx.Node, **settings: Any) -> Any:
    after = [int(size) for size in shape_of(low.node)[2:]]
    axes = list(range(2, 2 + len(after)))
    coefficient = -0.75 if settings["mode"] == "cubic" else None
    return low.op("Resize", x, None, None, low.graph.integers(*after), axes=axes, cubic_coeff_a=coefficient, **settings)

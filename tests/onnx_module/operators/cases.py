"""What the operators are tested with: graphs in ONNX's text form, one after `name: `, `;` between nodes.

They read `x`, floats (n, 3, 8, 8), and the constants below; the last value is `a`.
"""

import numpy as np
import onnx

random = np.random.default_rng(0)


def normal(*shape):
    return random.normal(size=shape).astype(np.float32)


def integers(kind, low, high, *shape):
    return random.integers(low, high, size=shape).astype(kind)


CONSTANTS = {
    "w": normal(6, 3, 3, 3),
    "wide": normal(6, 3, 5, 5),
    "deep": normal(6, 1, 3, 3),
    "b": normal(6),
    "m": normal(8, 5),
    "fc": normal(5, 192),
    "fct": normal(192, 5),
    "b5": normal(5),
    "b25": normal(2, 5),
    "g": normal(3),
    "h": normal(3),
    "mu": normal(3),
    "var": normal(3) ** 2 + 0.5,
    "ln": normal(8),
    "lnb": normal(8),
    "half": np.float32(0.5),
    "low": np.float32(-0.2),
    "high": np.float32(0.7),
    "slope": normal(3, 1, 1),
    "k": normal(3, 8, 8),
    "two": np.float32(2),
    "none": np.array([], np.int64),
    "i0": np.int64(0),
    "i1": np.array([1]),
    "i2": np.array([2, -1]),
    "i02": np.array([0, -1]),
    "i23": np.array([2, 3]),
    "i3": np.array([3]),
    "neg": np.array([-1]),
    "sizes": np.array([2, 1, 5]),
    "starts": np.array([1, -2]),
    "ends": np.array([2**62, 1]),
    "steps": np.array([2, -1]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]),
    "flat": np.array([0, -1, 4]),
    "grow": np.array([2, 1, 3, 8, 8]),
    "rep": np.array([1, 2, 1, 1]),
    "fill": np.float32(0.3),
    "d32": np.array([3, 8, 8]),
    "ten": np.int64(10),
    "four": np.int64(4),
    "one": np.int64(1),
    "t": np.array(True),
    "three": np.int32(3),
    "seven": np.int32(7),
    "million": np.float32(1e6),
    # of quantisation
    "s": np.float32(0.0117),
    "z": np.uint8(131),
    "s2": np.float32(0.021),
    "z2": np.uint8(100),
    "si": np.float32(1 / 255),
    "z0": np.uint8(0),
    "zi": np.int8(-5),
    "sc": np.abs(normal(3)) / 50 + 0.01,
    "zc": integers(np.uint8, 100, 150, 3),
    "qw": integers(np.int8, -64, 65, 6, 3, 3, 3),  # larger ones saturate on x64 processors without VNNI
    "ws": np.abs(normal(6)) / 100 + 1e-3,
    "wz": np.zeros(6, np.int8),
    "qb": integers(np.int32, -3000, 3000, 6),
    "sy": np.float32(0.05),
    "qfc": integers(np.int8, -64, 65, 5, 192),
    "fs": np.abs(normal(5)) / 100 + 1e-3,
    "fz": np.zeros(5, np.int8),
    "qb5": integers(np.int32, -3000, 3000, 5),
    "qm": integers(np.uint8, 0, 256, 8, 5),
    "q15": np.uint8(15),
    "q3": np.uint8(3),
    "block": np.abs(normal(6, 1, 3, 3)) / 100,
    "z16": np.uint16(30000),
    "s16": np.float32(1e-4),
}
# Storage that numpy has no type for.
for name, kind, span in (("w4", "INT4", 7), ("u4", "UINT4", 15), ("w2", "INT2", 1), ("u2", "UINT2", 3)):
    values = random.integers(0 if kind[0] == "U" else -span, span + 1, size=(6, 3, 3, 3))
    CONSTANTS[name] = onnx.helper.make_tensor(name, getattr(onnx.TensorProto, kind), values.shape, values.ravel())
CONSTANTS |= {
    "g3": normal(3, 1, 1),
    "r0": np.float32(0),
    "flat24": np.array([0, 24, 8]),
    "w1d": normal(4, 24, 3),
    "i0ax": np.array([0]),
    "r2": np.array([0, 4]),
    "s256": np.float32(1 / 256),
    "grow5": np.array([1, 4, 1, 1, 1]),
    "ten_": np.float32(10),
    "wt": normal(3, 4, 3, 3),
    "wt2": normal(6, 2, 3, 2),
    "bt": normal(4),
    "gn": normal(6),
    "gb": normal(6),
    "half2": np.array([1, 1, 1.5, 2], np.float32),
    "down": np.array([1, 1, 0.6, 0.4], np.float32),
    "up2": np.array([0.4, 1.7], np.float32),
    "to57": np.array([5, 7]),
    "to1": np.array([1, 12]),
    "nd": np.array([[[0, 1], [2, -3]]]),
    "column": np.array([0, 64, 1]),
    "eight": np.int64(8),
    "kk": normal(2, 8, 8),
    "w1d_t": normal(24, 4, 3),
    "w4c": normal(8, 3, 3, 3),
    "first": np.array([[0, 0], [1, 0]]),
    "minus": np.int64(-1),
    "depth": np.int64(3),
    "offon": np.array([-1, 2], np.float32),
    "onehot": np.array([[0, -1, 1]]),
    "mask": normal(8, 8),
    "seen": random.normal(size=(8, 8)) > -0.5,
    "short": random.normal(size=(8, 5)) > -0.5,
    "blind": np.arange(8)[:, None] != np.full((1, 8), 3),
    "i4": np.array([4]),
    "packed": normal(8, 24),
    "b24": normal(24),
    "b8": normal(8),
    "qpacked": integers(np.int8, -64, 65, 8, 24),
    "s24": np.abs(normal(24)) / 100 + 1e-3,
    "z24": np.zeros(24, np.int8),
    "sq": np.float32(0.013),
    "qrows": integers(np.uint8, 0, 256, 4, 8),
    "zrows": integers(np.uint8, 100, 140, 4),
    "one8": np.int8(1),
    "zq": np.int8(0),
    "qm8": integers(np.int8, -64, 65, 8, 5),
    "s5": np.abs(normal(5)) / 100 + 1e-3,
    "z5": integers(np.int8, -3, 4, 5),
    "b_5": normal(5),
    "wide_mask": np.where(random.normal(size=(1, 1, 8, 8)) > 0, 0, np.finfo(np.float32).min).astype(np.float32),
    "smask": np.float32(np.finfo(np.float32).max / 255),
    "zmask": np.uint8(255),
}


def parsed(text):
    """Cases by name; lines that begin with spaces continue the one before."""
    lines = text.strip().replace("\n    ", " ").splitlines()
    return {name: body.replace(";", "\n") for name, body in (line.split(": ", 1) for line in lines)}


SIMPLE = (
    "Relu Sigmoid Tanh HardSwish Softplus Mish Softsign Erf Exp Neg Abs Floor Ceil Identity LeakyRelu Elu Selu "
    "HardSigmoid Softmax LogSoftmax GlobalAveragePool GlobalMaxPool Dropout Gelu Celu Sin Cos Tan Atan Sign "
    "LpNormalization"
)
CASES = {op: f"a = {op} (x)" for op in SIMPLE.split()} | parsed("""
Log, Sqrt, Reciprocal: b1 = Abs (x) ; b2 = Add (b1, half) ; b3 = Log (b2) ; b4 = Sqrt (b2) ; b5_ = Reciprocal
    (b2) ; b6 = Add (b3, b4) ; a = Add (b6, b5_)
Add: a = Add (x, k)
Sub: a = Sub (x, g3)
Mul: a = Mul (x, slope)
Div: a = Div (k, x)
Pow: a = Pow (x, two)
Sum: a = Sum (x, k, half)
Mean: a = Mean (x, k)
Min: a = Min (x, k, half)
Max: a = Max (x, k)
Mod fmod: a = Mod <fmod = 1> (x, half)
Clip: a = Clip (x, low, high)
Clip above: a = Clip (x, , high)
Clip below: a = Clip (x, low)
Clip of tensors: p = ReduceMean (x) ; r = Squeeze (p) ; a = Clip (x, r)
PRelu: a = PRelu (x, slope)
LeakyRelu alpha: a = LeakyRelu <alpha = 0.3> (x)
Gelu tanh: a = Gelu <approximate = "tanh"> (x)
Gelu contrib: a = com.microsoft.Gelu (x)
HardSigmoid alpha: a = HardSigmoid <alpha = 0.4, beta = 0.3> (x)
Softmax axis: a = Softmax <axis = 1> (x)
Where, Less, Greater, And, Or, Not: c1 = Less (x, half) ; c2 = Greater (x, low) ; c3 = And (c1, c2) ; c4 = Not
    (c1) ; c5 = Or (c3, c4) ; a = Where (c5, x, k)
Equal: r = Floor (x) ; c = Equal (r, r0) ; a = Where (c, x, k)
ReduceMean: a = ReduceMean <keepdims = 0> (x, i23)
ReduceMean one: a = ReduceMean (x, neg)
ReduceMean nothing: a = ReduceMean <noop_with_empty_axes = 1> (x)
ReduceSum: a = ReduceSum (x, i23)
ReduceMax: a = ReduceMax (x, i1)
ReduceMin: a = ReduceMin (x, i3)
ReduceL2: a = ReduceL2 (x, i23)
Conv: a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
Conv asymmetric: a = Conv <pads = [0, 2, 1, 0], strides = [2, 1]> (x, w)
Conv dilated: a = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (x, w, b)
Conv groups: a = Conv <group = 3> (x, deep)
Conv same upper: a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)
Conv valid: a = Conv <auto_pad = "VALID"> (x, wide)
Conv same lower: a = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)
Conv 1d: r = Reshape (x, flat24) ; a = Conv <pads = [1, 1]> (r, w1d)
Gemm: f = Flatten (x) ; a = Gemm <transB = 1> (f, fc, b5)
Gemm plain: f = Flatten (x) ; a = Gemm (f, fct)
Gemm alpha: f = Flatten (x) ; a = Gemm <alpha = 0.5, beta = 2.0> (f, fct, b5)
MatMul: a = MatMul (x, m)
BatchNormalization: a = BatchNormalization <epsilon = 0.01> (x, g, h, mu, var)
LayerNormalization: a = LayerNormalization <epsilon = 0.01> (x, ln, lnb)
LayerNormalization axis: a = LayerNormalization <axis = 1> (x, k)
InstanceNormalization: a = InstanceNormalization (x, g, h)
Dropout at inference: a = Dropout (x, half)
MaxPool: a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
MaxPool asymmetric: a = MaxPool <kernel_shape = [2, 3], strides = [2, 2], pads = [0, 2, 1, 0]> (x)
MaxPool ceil: a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)
MaxPool ceil pads: a = MaxPool <kernel_shape = [3, 3], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1> (x)
MaxPool dilated: a = MaxPool <kernel_shape = [3, 3], dilations = [2, 2]> (x)
MaxPool same: a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)
AveragePool: a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
AveragePool include: a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],
    count_include_pad = 1> (x)
AveragePool ceil: a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)
AveragePool ceil include: a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0],
    ceil_mode = 1, count_include_pad = 1> (x)
AveragePool asymmetric: a = AveragePool <kernel_shape = [2, 2], pads = [0, 1, 1, 0]> (x)
Flatten: a = Flatten <axis = -3> (x)
Reshape: a = Reshape (x, flat)
Transpose: a = Transpose <perm = [0, 2, 3, 1]> (x)
Squeeze, Unsqueeze: u = Unsqueeze (x, i02) ; v = Squeeze (u, i02) ; p = GlobalAveragePool (v) ; r = Squeeze (p,
    i23) ; a = Unsqueeze (r, i1)
Concat: a = Concat <axis = -1> (x, x)
Split: a, p = Split <axis = 3, num_outputs = 2> (x)
Split sizes: p, o, a = Split <axis = 2> (x, sizes)
Slice: a = Slice (x, starts, ends, i2, steps)
Gather: a = Gather <axis = 3> (x, i2)
Gather one: a = Gather <axis = 1> (x, one)
Pad: a = Pad (x, pads)
Pad value: a = Pad (x, pads, fill)
Pad reflect: a = Pad <mode = "reflect"> (x, pads)
Pad edge: a = Pad <mode = "edge"> (x, pads)
Pad axes: a = Pad (x, i23, fill, i1)
Pad wrap: a = Pad <mode = "wrap"> (x, pads)
Shape, Mod, ConstantOfShape, Expand: d = Shape (x) ; n = Gather (d, i0) ; e = Mod (ten, four) ; u = Unsqueeze
    (n, i0ax) ; c = Concat <axis = 0> (u, d32) ; o = ConstantOfShape <value = float[1] {0.5}> (c) ; v = Expand
    (o, c) ; a = Add (x, v)
Shape part, Size: d = Shape <start = 2, end = 4> (x) ; p = Size (d) ; v = Cast <to = 1> (p) ; f = Cast <to = 1>
    (d) ; e = Gather (f, i0) ; t1 = Mul (x, v) ; a = Div (t1, e)
Integers: d = Shape (x) ; e = Div (d, four) ; f = Cast <to = 1> (e) ; g1 = Gather (f, i1) ; a = Mul (x, g1)
Range: r = Range (i0, ten, four) ; a = Gather <axis = 3> (x, r2)
Tile: a = Tile (x, rep)
Expand: u = Unsqueeze (x, i1) ; a = Expand (u, grow5)
Cast: h1 = Cast <to = 11> (x) ; a = Cast <to = 1> (h1)
Round: h1 = Mul (x, ten_) ; a = Round (h1)
Div of integers: h1 = Mul (x, ten_) ; i = Cast <to = 6> (h1) ; q = Div (i, three) ; a = Cast <to = 1> (q)
Div of many digits: h1 = Mul (x, million) ; i = Cast <to = 6> (h1) ; p = Mul (i, seven) ; q = Div (p, three) ; r =
    Mod (q, seven) ; a = Cast <to = 1> (r)
ReduceMean of integers: h1 = Mul (x, ten_) ; i = Cast <to = 6> (h1) ; q = ReduceMean (i, i3) ; a = Cast <to = 1> (q)
Cast to narrower integers: h1 = Mul (x, million) ; i = Cast <to = 6> (h1) ; u = Cast <to = 2> (i) ; p = Cast <to = 3>
    (i) ; f = Cast <to = 1> (u) ; g1 = Cast <to = 1> (p) ; a = Add (f, g1)
Cast to integers: h1 = Mul (x, ten_) ; i = Cast <to = 3> (h1) ; a = Cast <to = 1> (i)
Constant: c = Constant <value_float = 0.25> () ; v = Constant <value_ints = [2, 3]> () ; p = ReduceMean (x, v) ;
    o = Add (p, c) ; a = Mul (x, o)
Celu alpha: a = Celu <alpha = 0.4> (x)
GreaterOrEqual, LessOrEqual, Xor: c1 = GreaterOrEqual (x, low) ; c2 = LessOrEqual (x, half) ; c3 = Xor (c1, c2) ; a =
    Where (c3, x, k)
IsNaN: r = Log (x) ; c = IsNaN (r) ; a = Where (c, x, r)
CastLike: i = Shape (x) ; f = CastLike (i, x) ; e = Gather (f, i0ax) ; v = Div (x, e) ; a = Mul (v, ten_)
ReduceProd: a = ReduceProd (x, i23)
ReduceL1: a = ReduceL1 <keepdims = 0> (x, i23)
ReduceSumSquare: a = ReduceSumSquare (x, neg)
ReduceLogSumExp: a = ReduceLogSumExp (x, i23)
ReduceLogSum: b1 = Exp (x) ; a = ReduceLogSum (b1, i1)
LpNormalization one: a = LpNormalization <axis = 1, p = 1> (x)
LRN: a = LRN <size = 3, alpha = 0.3, beta = 0.6, bias = 1.5> (x)
GroupNormalization: c = Conv (x, w) ; a = GroupNormalization <num_groups = 3, epsilon = 0.01> (c, gn, gb)
ConvTranspose: a = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 2], output_padding = [1, 1]> (x, wt, bt)
ConvTranspose groups: c = Conv (x, w) ; a = ConvTranspose <group = 2, dilations = [2, 1], strides = [1, 3]> (c, wt2)
ConvTranspose shape: a = ConvTranspose <strides = [2, 2], output_shape = [17, 16]> (x, wt, bt)
ConvTranspose same: a = ConvTranspose <strides = [3, 2], auto_pad = "SAME_UPPER"> (x, wt)
ConvTranspose same lower: a = ConvTranspose <strides = [2, 2], auto_pad = "SAME_LOWER"> (x, wt)
ConvTranspose 1d: r = Reshape (x, flat24) ; a = ConvTranspose <strides = [2]> (r, w1d_t)
Resize nearest: a = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">
    (x, , half2)
Resize nearest half: a = Resize <nearest_mode = "ceil"> (x, , down)
Resize nearest ceil: a = Resize <nearest_mode = "round_prefer_ceil", coordinate_transformation_mode =
    "align_corners", axes = [2, 3]> (x, , , to57)
Resize linear: a = Resize <mode = "linear"> (x, , half2)
Resize linear corners: a = Resize <mode = "linear", coordinate_transformation_mode = "align_corners", axes = [-2, -1]>
    (x, , , to57)
Resize linear asymmetric: a = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, , down)
Resize pytorch: a = Resize <mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel", axes = [2, 3]>
    (x, , , to1)
Resize symmetric: a = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric", axes = [2, 3]>
    (x, , up2)
Resize cubic: a = Resize <mode = "cubic", axes = [2, 3]> (x, , , to57)
Resize cubic outside: a = Resize <mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5> (x, , half2)
Resize antialias: a = Resize <mode = "linear", antialias = 1> (x, , down)
Resize antialias cubic: a = Resize <mode = "cubic", antialias = 1, axes = [2, 3]> (x, , , to57)
Resize policy: a = Resize <mode = "linear", axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , to57)
DepthToSpace: c = Conv (x, w4c) ; a = DepthToSpace <blocksize = 2> (c)
DepthToSpace rows: c = Conv (x, w4c) ; a = DepthToSpace <blocksize = 2, mode = "CRD"> (c)
SpaceToDepth: a = SpaceToDepth <blocksize = 4> (x)
GatherElements: v, i = TopK <axis = 2> (x, i3) ; j = Sub (i, eight) ; a = GatherElements <axis = 2> (x, j)
GatherND: r = Transpose <perm = [1, 2, 3, 0]> (x) ; g1 = GatherND (r, nd) ; a = Transpose <perm = [3, 0, 1, 2]> (g1)
GatherND batches: i = ArgMax <axis = 1> (x) ; r = Reshape (i, column) ; a = GatherND <batch_dims = 1> (x, r)
ScatterND: a = ScatterND (x, first, kk)
ScatterND add: a = ScatterND <reduction = "add"> (x, first, kk)
ScatterElements: v, i = TopK <axis = 3> (x, i3) ; p = Mul (v, ten_) ; j = Sub (i, eight) ; a = ScatterElements <axis =
    3> (x, j, p)
ScatterElements add: v, i = TopK <axis = 3> (x, i3) ; e = Sub (i, i) ; a = ScatterElements <axis = 3, reduction =
    "add"> (x, e, v)
TopK: a, i = TopK <axis = 3> (x, i3)
TopK smallest: v, i = TopK <axis = 1, largest = 0> (x, i1) ; f = Cast <to = 1> (i) ; a = Mul (v, f)
ArgMax: i = ArgMax <axis = 3> (x) ; a = Cast <to = 1> (i)
ArgMin last: r = Floor (x) ; i = ArgMin <axis = 1, keepdims = 0, select_last_index = 1> (r) ; a = Cast <to = 1> (i)
CumSum: a = CumSum (x, depth)
CumSum reverse: a = CumSum <reverse = 1, exclusive = 1> (x, minus)
Trilu: a = Trilu (x)
Trilu lower: a = Trilu <upper = 0> (x, minus)
OneHot: o = OneHot <axis = 1> (onehot, depth, offon) ; u = Unsqueeze (o, neg) ; p = ReduceSum (u, i23) ; a = Mul (x, p)
Einsum: a = Einsum <equation = "nchw, wd -> nchd"> (x, m)
BiasGelu: a = com.microsoft.BiasGelu (x, b8)
FastGelu: a = com.microsoft.FastGelu (x, b8)
Gelu, QuickGelu: a = com.microsoft.QuickGelu <alpha = 1.5> (x)
SkipLayerNormalization: r = Reshape (x, flat24) ; p = Mul (r, half) ; v, , , e = com.microsoft.SkipLayerNormalization
    <epsilon = 0.01> (r, p, ln, lnb, b8) ; a = Mul (v, e)
FusedMatMul: a = com.microsoft.FusedMatMul <transB = 1, alpha = 0.3> (x, k)
FusedGemm: f = Flatten (x) ; a = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (f, fc, b5)
FusedConv: a = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.2]> (x, w, b)
FusedConv clip: a = com.microsoft.FusedConv <activation = "Clip", activation_params = [-0.5, 1.0]> (x, w, b)
MultiHeadAttention: r = Reshape (x, flat24) ; p = Mul (r, half) ; a = com.microsoft.MultiHeadAttention <num_heads = 2>
    (r, p, r, b24)
Attention contrib: r = Reshape (x, flat24) ; a = com.microsoft.Attention <num_heads = 2> (r, packed, b24)
Attention contrib causal: r = Reshape (x, flat24) ; a = com.microsoft.Attention <num_heads = 4, unidirectional = 1>
    (r, packed, b24)
MatMulInteger: q = QuantizeLinear (x, s, z) ; i = MatMulInteger (q, qm8, z, z5) ; f = Cast <to = 1> (i) ; e =
    DequantizeLinear (one8, s) ; v = Mul (e, s5) ; a = Mul (f, v)
DynamicQuantizeLinear: q, e, o = DynamicQuantizeLinear (x) ; a = DequantizeLinear (q, e, o)
DynamicQuantizeLinear, half its scale: q, e, o = DynamicQuantizeLinear (x) ; f = Div (e, two) ; a = Mul (x, f)
ConvInteger: q, e, o = DynamicQuantizeLinear (x) ; i = ConvInteger <pads = [1, 1, 1, 1]> (q, qw, o, zq) ; f = Cast <to
    = 1> (i) ; v = Mul (e, s2) ; a = Mul (f, v)
MatMulIntegerToFloat: q = QuantizeLinear (x, s, z) ; a = com.microsoft.MatMulIntegerToFloat (q, qm8, s, s5, z, z5, b_5)
DynamicQuantizeMatMul: a = com.microsoft.DynamicQuantizeMatMul (x, qm8, s5, z5, b_5)
A mask of the lowest number: e = QuantizeLinear (wide_mask, smask, zmask) ; d = DequantizeLinear (e, smask, zmask) ; q
    = QuantizeLinear (x, s, z) ; f = DequantizeLinear (q, s, z) ; v = Add (f, d) ; a = Softmax (v)
QAttention: r = Reshape (x, flat24) ; q = QuantizeLinear (r, s, z) ; f = com.microsoft.QAttention <num_heads = 2> (q,
    qpacked, b24, s, sq, , z, zq) ; o = QuantizeLinear (f, s2, z2) ; a = DequantizeLinear (o, s2, z2)
QLinearWhere: q = QuantizeLinear (x, s, z) ; p = QuantizeLinear (k, s2, z2) ; c = Less (x, half) ; o =
    com.microsoft.QLinearWhere (c, q, s, z, p, s2, z2, sy, z2) ; a = DequantizeLinear (o, sy, z2)
QLinearConv, Resize of integers: q = QuantizeLinear (x, s, z) ; o = Resize <mode = "linear"> (q, , half2) ; a =
    DequantizeLinear (o, s, z)
QuantizeLinear: q = QuantizeLinear (x, s, z) ; a = DequantizeLinear (q, s, z)
QuantizeLinear apart: q = QuantizeLinear (x, s, z) ; f = Cast <to = 1> (q) ; a = Mul (f, half)
QuantizeLinear narrower: q = QuantizeLinear (x, s, z) ; c = Clip (q, q3, q15) ; a = DequantizeLinear (c, s, z0)
QuantizeLinear narrower, alone: q = QuantizeLinear (x, s, z) ; c = Clip (q, z2, z) ; a = DequantizeLinear (c, s,
    z)
QuantizeLinear, two scales: q = QuantizeLinear (x, s, z) ; a = DequantizeLinear (q, s2, z2)
QuantizeLinear, no zero point: q = QuantizeLinear (x, s) ; a = DequantizeLinear (q, s)
QuantizeLinear signed: q = QuantizeLinear (x, s2, zi) ; a = DequantizeLinear (q, s2, zi)
QuantizeLinear channels: q = QuantizeLinear (x, sc, zc) ; a = DequantizeLinear (q, sc, zc)
QuantizeLinear 16 bits: q = QuantizeLinear (x, s16, z16) ; a = DequantizeLinear (q, s16, z16)
QuantizeLinear output type: q = QuantizeLinear <output_dtype = 3> (x, s2) ; a = DequantizeLinear (q, s2)
QuantizeLinear contrib: q = com.microsoft.QuantizeLinear (x, s, z) ; a = com.microsoft.DequantizeLinear (q, s,
    z)
QuantizeLinear of two readers: q = QuantizeLinear (x, s, z) ; d = DequantizeLinear (q, s, z) ; e =
    DequantizeLinear (q, s, z) ; r = Relu (d) ; a = Add (r, e)
Pool of integers: q = QuantizeLinear (x, s, z) ; p = MaxPool <kernel_shape = [2, 2]> (q) ; a = DequantizeLinear
    (p, s, z)
DequantizeLinear of weights: w_ = DequantizeLinear <axis = 0> (qw, ws, wz) ; a = Conv (x, w_)
QLinearConv: q = QuantizeLinear (x, s, z) ; o = QLinearConv <pads = [1, 1, 1, 1]> (q, s, z, qw, ws, wz, sy, z2,
    qb) ; a = DequantizeLinear (o, sy, z2)
QLinearMatMul: q = QuantizeLinear (x, s, z) ; o = QLinearMatMul (q, s, z, qm, s2, z2, sy, z2) ; a =
    DequantizeLinear (o, sy, z2)
QGemm: q = QuantizeLinear (x, s, z) ; f = Flatten (q) ; o = com.microsoft.QGemm <transB = 1> (f, s, z, qfc, fs,
    fz, qb5, sy, z2) ; a = DequantizeLinear (o, sy, z2)
QGemm to floats: q = QuantizeLinear (x, s, z) ; f = Flatten (q) ; a = com.microsoft.QGemm <transB = 1> (f, s, z,
    qfc, fs, fz, qb5)
QLinearAdd: q = QuantizeLinear (x, s, z) ; p = QuantizeLinear (x, s2, z2) ; o = com.microsoft.QLinearAdd (q, s,
    z, p, s2, z2, sy, z2) ; a = DequantizeLinear (o, sy, z2)
QLinearMul: q = QuantizeLinear (x, s, z) ; p = QuantizeLinear (x, s2, z2) ; o = com.microsoft.QLinearMul (q, s,
    z, p, s2, z2, sy, z2) ; a = DequantizeLinear (o, sy, z2)
QLinearSigmoid: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearSigmoid (q, s, z, si, z0) ; a =
    DequantizeLinear (o, si, z0)
QLinearLeakyRelu: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearLeakyRelu <alpha = 0.2> (q, s, z, s2,
    z2) ; a = DequantizeLinear (o, s2, z2)
QLinearSoftmax: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearSoftmax <axis = -1, opset = 13> (q, s,
    z, s256, z0) ; a = DequantizeLinear (o, s256, z0)
QLinearAveragePool: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2]>
    (q, s, z, s2, z2) ; a = DequantizeLinear (o, s2, z2)
QLinearGlobalAveragePool: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearGlobalAveragePool (q, s, z, s,
    z) ; a = DequantizeLinear (o, s, z)
QLinearConcat: q = QuantizeLinear (x, s, z) ; o = com.microsoft.QLinearConcat <axis = 1> (s2, z2, q, s, z, q, s,
    z) ; a = DequantizeLinear (o, s2, z2)
""")
# Name and opset: settings that were attributes in older files.
OLD = parsed("""
Clip (10): a = Clip <min = -0.5, max = 0.5> (x)
Squeeze (11): p = GlobalAveragePool (x) ; a = Squeeze <axes = [2, 3]> (p)
Unsqueeze (11): a = Unsqueeze <axes = [1, -1]> (x)
ReduceMean (13): a = ReduceMean <axes = [2, 3], keepdims = 0> (x)
Softmax (11): a = Softmax (x)
LogSoftmax (11): a = LogSoftmax <axis = 2> (x)
Dropout (10): a = Dropout <ratio = 0.4> (x)
Pad (10): a = Pad <pads = [0, 0, 1, 1, 0, 0, 0, 2], value = 0.2> (x)
Slice (9): a = Slice <axes = [2], starts = [1], ends = [-1]> (x)
Split (11): p, a = Split <axis = 1, split = [1, 2]> (x)
ReduceSum (11): a = ReduceSum <axes = [3]> (x)
GroupNormalization (18): c = Conv (x, w) ; a = GroupNormalization <num_groups = 3> (c, g, h)
Resize (10): a = Resize <mode = "linear"> (x, half2)
Resize (10) nearest: a = Resize (x, down)
Upsample (9): a = Upsample (x, half2)
Upsample (7): a = Upsample <mode = "linear", scales = [1.0, 1.0, 1.5, 2.0]> (x)
""")
# Name and opset of what came later.
NEW = parsed("""
Attention (23): p = Mul (x, half) ; a = Attention (x, p, x)
Attention (23) flat: r = Reshape (x, flat24) ; p = Mul (r, half) ; a = Attention <q_num_heads = 2, kv_num_heads = 2,
    scale = 0.3> (r, p, r, )
Attention (23) added: a = Attention (x, x, x, mask)
Attention (23) hidden: a = Attention (x, x, x, seen)
Attention (23) causal: a = Attention <is_causal = 1, softcap = 2.0> (x, x, x)
Attention (23) blind: a = Attention (x, x, x, blind)
Attention (23) groups: r = Reshape (x, flat24) ; p = Slice (r, i0ax, i4, neg) ; a = Attention <q_num_heads = 4,
    kv_num_heads = 2> (r, p, p)
RMSNormalization (23): a = RMSNormalization <epsilon = 0.01> (x, ln)
RMSNormalization (23) axis: a = RMSNormalization <axis = -2> (x, mask)
""")

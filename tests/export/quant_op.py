"""What the Quant nodes of QONNX compute, after its definition, for the ONNX reference evaluator."""

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qrobust.export.lowering.forms import QONNX


class Quant(OpRun):
    """s·(clip(round(x/s + z)) - z) over the integers of a width."""

    op_domain = QONNX

    def _run(self, x, scale, zero, bits, narrow=None, rounding_mode=None, signed=None):
        assert rounding_mode == "ROUND"  # half to even
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if narrow:
            low, high = (low + 1, high) if signed else (low, high - 1)
        return (((np.clip(np.rint(x / scale + zero), low, high) - zero) * scale).astype(np.float32),)


def evaluate(model, x):
    """Outputs of an onnx-ir model or of a file's bytes."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return ReferenceEvaluator(proto, new_ops=[Quant]).run(None, {"x": x})[0]

"""What only moves values moves integers where the format carries them, to the bit."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.quant.layers import quantized_activation

from ...quant.helpers import images
from ..helpers import runtime_logits
from .helpers import Does, file_of

X = images(3, side=6, channels=4)
MOVING = {
    "reshape": lambda x: x.reshape(x.shape[0], 2, -1),
    "flatten": lambda x: x.flatten(1),
    "flatten the last": lambda x: x.flatten(2).transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1).unsqueeze(1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "slice": lambda x: x[:, 1:, ::2],
    "select": lambda x: x[:, 1],
    "index": lambda x: x[:, [2, 0, 1]],
    "split": lambda x: x.split([1, 3], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "concatenate": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "flip": lambda x: x.flip(3),
    "zeros": lambda x: F.pad(x, (1, 0, 2, 1)),
    "reflect": lambda x: F.pad(x, (1, 0, 2, 1), mode="reflect"),
    "edge": lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 0, 2, 1), mode="circular"),
    "shuffled pixels": nn.PixelShuffle(2),
    "unshuffled pixels": nn.PixelUnshuffle(2),
    "shuffled channels": nn.ChannelShuffle(2),
    "changed in place": lambda x: x.flatten(1).relu_(),
}


@pytest.mark.parametrize(
    ("name", "signed"), [*((name, False) for name in MOVING), *((name, True) for name in ("zeros", "circular", "roll"))]
)
def test_integers_move(name, signed):
    quantiser = quantized_activation(5, signed=signed)
    model = nn.Sequential(Does(lambda x: x - 0.4 * signed), quantiser, Does(MOVING[name])).eval()
    data = file_of(model, X)
    with torch.no_grad():
        np.testing.assert_array_equal(runtime_logits(data, X.numpy()), model(X).numpy())
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("DequantizeLinear") == 1
    assert kinds[-1] in ("DequantizeLinear", "Relu")


def test_a_value_that_is_padded_with_need_be_no_level():
    model = nn.Sequential(quantized_activation(4, signed=False), Does(lambda x: F.pad(x, (1, 1), value=0.123))).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(runtime_logits(file_of(model, X), X.numpy()), model(X).numpy())


def test_parts_on_two_grids_are_floats():
    one, other = quantized_activation(4, signed=False), quantized_activation(5, signed=False)
    model = Does(lambda x: torch.cat([one(x), other(x)], 1))
    model.one, model.other = one, other
    with torch.no_grad():
        np.testing.assert_array_equal(runtime_logits(file_of(model.eval(), X), X.numpy()), model(X).numpy())

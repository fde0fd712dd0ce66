"""The walk: what torch computes, what happens in place, and what is refused."""

import copy
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qrobust.errors import ExportError
from qrobust.export.target import load_target
from qrobust.export.write import written

from ...quant.helpers import images
from ..helpers import network
from .helpers import Does, assert_equal, file_of, network_of, numbers

X = numbers(3, 4, 6, 6)


class Kept(nn.Module):
    """Computes with buffers, one of which it changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("table", torch.rand(9, 4, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        self.calls.fill_(2)
        with torch.no_grad():
            scale = torch.linalg.norm(self.table, dim=0) * torch.fft.rfft(self.weight).abs().sum()
        return x * scale[:, None, None] + self.calls


def in_place(x):
    y = x * 2
    y += 1
    y.relu_()
    return y.mul_(3) - x


def through_the_same(x):
    y = x * 2
    z = torch.dropout(y, 0.5, False).detach()
    z.add_(1)
    return y + z


def through_a_view(x):
    y = x * 2
    y[:, 0].add_(1)
    return y


def seen_by_a_view(x):
    y = x * 2
    z = y.flatten(1)
    y.add_(1)
    return z


def a_view_that_nobody_reads_again(x):
    return (x * 2).flatten(1).relu_()


@pytest.mark.parametrize("function", [in_place, through_the_same, a_view_that_nobody_reads_again])
def test_what_changes_in_place_is_read_anew(function):
    assert_equal(function, X)


@pytest.mark.parametrize("function", [through_a_view, seen_by_a_view])
def test_what_changes_a_view_is_refused(function):
    message = r"^ort-cpu: the network: expected no change in place of values that a view shares, got add_.*; write y ="
    with pytest.raises(ExportError, match=message):
        file_of(Does(function), X)


def test_what_depends_on_no_image_is_a_constant_and_the_network_stays():
    model = Kept().eval()
    graph = onnx.load_from_string(file_of(model, X)).graph
    assert [node.op_type for node in graph.node] == ["Mul", "Add"]
    assert model.calls == 0
    assert_equal(copy.deepcopy(model), X[:1])


def test_a_number_of_images_may_be_repeated_but_not_computed_with():
    with pytest.raises(
        ExportError, match=r"^ort-cpu: the network: div.Tensor: expected arithmetic without the number of"
    ):
        file_of(Does(lambda x: x / x.shape[0]), X)


def test_sizes_may_be_computed_with():
    assert_equal(lambda x: x.reshape(x.shape[0] * 2, -1).reshape(x.shape[0], -1) * x.shape[1], X)
    assert_equal(lambda x: x.reshape(torch.mul(x.shape[0], 4), 36).reshape(-1, 4, 36), X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.sort(1)[0],
            "sort.default: expected an operator that has a form in ONNX here; replace it by others",
        ),
        (
            lambda x: nn.functional.batch_norm(x, None, None, training=True),
            "batch_norm.default: expected batch-norm with",
        ),
        (lambda x: x.norm(3, 1), "expected a norm of order 1 or 2, got 3"),
        (
            lambda x: nn.functional.adaptive_max_pool2d(x, 4),
            r"expected a pool that divides its input, got \[6, 6\] into",
        ),
        (lambda x: nn.functional.conv2d(x, x[:1]), "expected a weight that depends on no image"),
        (lambda x: x[x > 0], "index.Tensor: expected a constant, got what depends on the image"),
        (lambda x: x if x.mean() > 0 else -x, "expected a network that torch.export captures for any number of images"),
        (lambda x: (x, x), "expected a network that gives logits alone, got 2 outputs; return them alone"),
        (lambda x: x.bfloat16(), "expected float32, whole numbers or booleans, got torch.bfloat16"),
    ],
)
def test_what_cannot_be_written_is_told_in_one_line(function, message):
    with pytest.raises(ExportError, match=rf"^ort-cpu: .*{message}") as caught:
        file_of(Does(function), X)
    assert "\n" not in str(caught.value)


def test_the_module_is_named():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Does(lambda x: x.cumsum(1))))
    with pytest.raises(ExportError, match=r"^ort-cpu: 1.1: cumsum.default: expected"):
        file_of(model, X)


def test_a_layer_called_twice_is_stored_once():
    layer = network_of(nn.Linear(6, 6))
    graph = onnx.load_from_string(file_of(nn.Sequential(layer, nn.GELU(), layer), X)).graph
    assert sorted(tuple(tensor.dims) for tensor in graph.initializer) == [(6,), (6, 6)]


def test_no_warning_and_no_gradient_is_left():
    model = network_of(nn.Conv2d(4, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file_of(model, X)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_quantised_activations_are_told_with_their_values():
    found = written(network(4), images(1), load_target("ort-cpu"))
    values = {name for node in onnx.load_from_string(found.data).graph.node for name in node.output}
    assert [one.value in values for one in found.activations] == [True] * 14
    assert found.activations[1].module == "act"
    assert {one.zero for one in found.activations} == {0, 128}
    bytes_in = written(network(4), images(1), load_target("ort-cpu"), input="uint8-nhwc")
    assert bytes_in.activations[0].value == ""
    assert np.all([one.value for one in bytes_in.activations[1:]])

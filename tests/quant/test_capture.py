"""What a graph loses of its network is seen, whoever captured it; operations in place are kept where they can be."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.quant import QuantConfig, quantize
from qrobust.quant.capture import check_capture, check_pools
from qrobust.quant.graph import capture

from .helpers import images

SHAPE = (1, 8, 8)


class Between(nn.Module):
    """conv a, something between, conv b, and a classifier."""

    def __init__(self, between):
        super().__init__()
        self.between = between
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.norm, self.fc = nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Linear(144, 3)

    def forward(self, x):
        y = self.between(self, self.a(x))
        return self.fc(self.norm(y).relu().flatten(1))


def then(change):
    """The change as a statement, whose result nobody reads."""

    def between(net, y):
        change(net, y)
        return net.b(y)

    return between


def skip(net, y):
    return net.b(net.relu(y)) + y  # which is relu(y) by now


def twice(net, y):
    z = y.mul_(2)
    y.add_(0.5)
    return net.b(z) + y


def counted(net, y):
    channels = y.size(1)
    more = channels
    more += 1
    return net.b(y) * channels + more


def alias(net, y):
    before = y
    y += net.b(y)
    return before * 2


RIGHT = {
    "relu_": then(lambda _, y: y.relu_()),
    "F.relu_": then(lambda _, y: F.relu_(y)),
    "F.relu(inplace=True)": then(lambda _, y: F.relu(y, inplace=True)),
    "F.relu(y, True)": then(lambda _, y: F.relu(y, True)),
    "module": then(lambda net, y: net.relu(y)),
    "mul_": then(lambda _, y: y.mul_(3)),
    "a view": then(lambda _, y: y.flatten(1).relu_()),
    "a slice": then(lambda _, y: y[:, :2].mul_(3)),
    "a slice of a slice": then(lambda _, y: y[:, 1:][:, 0, 2:].zero_()),
    "add_": then(lambda _, y: y.add_(0.5)),
    "skip": skip,
    "twice": twice,
    "sizes": counted,
    "dropout": lambda net, y: net.b(F.dropout(y, 0.5, net.training)),
    "detached": lambda net, y: net.b(y) + y.detach() * y.detach(),
    "dropout never": lambda net, y: net.b(F.dropout(y, training=False)),
    "alias": alias,
}
APART = r"b: expected a graph that computes what the network does, .* eval mode; write "
RANDOM = r"expected a network whose random numbers are dropout's, .*, got rand"
LOST = {
    "a part": (
        then(lambda _, y: y.chunk(2, 1)[0].relu_()),
        "Between: expected a network that torch.export can capture",
    ),
    "a turned view": (then(lambda _, y: y.transpose(2, 3)[..., :3].relu_()), APART),
    "noise": (lambda net, y: net.b(y + torch.rand(4, 1, 1)), "rand: " + RANDOM),
    "noise in training": (lambda net, y: net.b(y + torch.rand_like(y) if net.training else y), "rand_like: " + RANDOM),
    "dropout always": (lambda net, y: net.b(F.dropout(y)), APART),
}


def network(between):
    torch.manual_seed(0)
    return Between(between)


@pytest.mark.parametrize("name", RIGHT)
@torch.no_grad()
def test_operations_in_place_are_kept(name):
    model = network(RIGHT[name])
    captured = capture(model, SHAPE)
    for training in (False, True):
        outcomes = []
        for one in (model.train(training), captured.train(training)):
            torch.manual_seed(1)  # dropout
            outcomes.append(one(images()))
        torch.testing.assert_close(*outcomes)
    made = quantize(model.eval(), QuantConfig(8, fat="none"), calibration=images()).eval()
    torch.testing.assert_close(made(images()), model(images()), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_refused_with_the_first_layer_apart(name, given):
    between, message = LOST[name]
    with pytest.raises(ModelError, match=f"^{message}.*[^\n]$"):
        quantize(network(between), 4, calibration=images() if given else None, shape=SHAPE)


@pytest.mark.parametrize("layer", ["a", "b", "norm", "fc"])
def test_any_graph_is_compared_and_its_wrong_layer_named(layer):
    """The guard does not ask how the graph was captured: here by hand, one weight changed."""
    model = network(lambda net, y: net.b(y))
    wrong = fx.symbolic_trace(copy.deepcopy(model))
    check_capture(model, wrong, images())
    with torch.no_grad():
        wrong.get_submodule(layer).weight.add_(0.01)
    with pytest.raises(ModelError, match=rf"^{layer}: expected a graph that computes what the network does"):
        check_capture(model, wrong, images())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_network_changes(training):
    model = network(RIGHT["dropout"]).train(training)
    model.norm.eval()
    captured = capture(model)
    before = [copy.deepcopy(one.state_dict()) for one in (model, captured)]
    modes, state = [m.training for m in (*model.modules(), *captured.modules())], torch.get_rng_state()
    check_capture(model, captured, images())
    check_pools(captured, images())
    assert [m.training for m in (*model.modules(), *captured.modules())] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for one, old in zip((model, captured), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in one.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.modules())


def test_auxiliary_heads_of_training_are_no_difference():
    def headed(net, y):
        return net.b(y)

    class Headed(Between):
        def forward(self, x):
            logits = super().forward(x)
            return (logits, F.dropout(logits, 0.5)) if self.training else logits

    torch.manual_seed(0)
    quantize(Headed(headed), 4, calibration=images())


def test_a_network_that_insists_on_float32_is_compared_in_it():
    model = network(lambda net, y: net.b(y.float()))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model).double()(images().double())
    captured = capture(model)
    check_capture(model, captured, images())
    with torch.no_grad():
        captured.get_submodule("b").weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"^b: expected a graph that computes what the network does"):
        check_capture(model, captured, images())


def test_images_that_a_network_does_not_take_are_told():
    with pytest.raises(ModelError, match=r"^expected a network that takes images \(4, 1, 9, 9\), got: mat1 and mat2"):
        quantize(network(lambda net, y: net.b(y)), 4, calibration=images(side=9))


def test_an_argument_with_a_default_keeps_it():
    class Masked(Between):
        def forward(self, x, mask=None):
            return super().forward(x if mask is None else x * mask)

    torch.manual_seed(0)
    quantize(Masked(lambda net, y: net.b(y)), 4, calibration=images())


def small(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *layers, nn.Conv2d(4, 2, 1), nn.Flatten())


class Several(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(1, 4, 3), function

    def forward(self, x):
        return self.function(self.conv(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x, y):
        return self.conv(x + y)


REFUSED = {
    "no statistics": (small(nn.BatchNorm2d(4, track_running_stats=False)), r"^2: expected batch-norm with running"),
    "divisor": (small(nn.AvgPool2d(2, divisor_override=1)), r"^2: expected a pool that divides by its pixels.*=1;"),
    "ceil": (small(nn.AvgPool2d(4, ceil_mode=True)), r"^2: expected an average over whole windows, got \(6, 6\) into"),
    "indices": (
        small(nn.MaxPool2d(2, return_indices=True)),
        r"^expected a network that takes images \(4, 1, 8, 8\), got",
    ),
    "largest parts": (small(nn.AdaptiveMaxPool2d(4)), r"^2: expected an adaptive pool that divides its input"),
    "open": (small(nn.AdaptiveAvgPool2d((None, 1))), r"^2: expected an adaptive pool of a known size"),
    "two outputs": (Several(lambda y: (y, y)), r"^expected a network of one input, images, and one output.* 1 and tup"),
    "a dictionary": (Several(lambda y: {"logits": y}), r"^expected a network of one input.* got 1 and dict"),
    "two inputs": (Two(), r"^expected a network of one input, images, and one output, logits, got 2 and 1; wrap"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_holds_is_refused_in_one_line(name):
    model, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        quantize(model, 4, calibration=images())
    assert "\n" not in str(caught.value)


def test_the_remedy_for_a_divisor_computes_the_same():
    given, mended = nn.AvgPool2d(2, divisor_override=1), nn.AvgPool2d(2)
    torch.testing.assert_close(mended(images()) * 4, given(images()))


def test_a_pool_that_rounds_up_to_whole_windows_is_taken():
    quantize(small(nn.AvgPool2d(2, ceil_mode=True)), 4, calibration=images())


def test_channels_are_shuffled_by_functions():
    torch.manual_seed(0)
    model = small(nn.ChannelShuffle(2)).eval()
    captured = capture(model, SHAPE)
    torch.testing.assert_close(captured(images()), model(images()))
    assert not any(isinstance(module, nn.ChannelShuffle) for module in captured.modules())


def test_the_state_of_a_quantised_network_loads_into_another_of_the_same_settings():
    model = network(lambda net, y: net.b(y))
    made = quantize(model, 4, calibration=images()).eval()
    again = quantize(model, 4, calibration=None).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(images()), made(images()))

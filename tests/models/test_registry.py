"""Networks are found by name; a slip gets a hint."""

import pytest
from torch import nn

from qrobust.errors import ModelError
from qrobust.models import build, names, register, registry


@pytest.fixture
def own_list(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_names_are_sorted():
    assert list(names()) == sorted(names())
    assert {"resnet8", "resnet20"} <= set(names())


def test_one_decorated_function_adds_a_network(own_list):
    @register
    def flat(*, in_channels, classes, bias=True):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels, classes, bias=bias))

    assert "flat" in names()
    network = build("flat", in_channels=3, classes=7, bias=False)
    assert (network[1].in_features, network[1].out_features, network[1].bias) == (3, 7, None)


def test_an_unknown_network_is_refused():
    with pytest.raises(ModelError, match=r"^expected a network, got 'resnet9'; did you mean 'resnet8'\?$"):
        build("resnet9", in_channels=1, classes=10)
    with pytest.raises(ModelError, match=r"^expected a network, got 'xyz'; known: .*resnet20, resnet34"):
        build("xyz", in_channels=1, classes=10)


def test_an_unknown_option_is_refused():
    with pytest.raises(ModelError) as caught:
        build("resnet8", in_channels=1, classes=10, activaton="relu")
    assert str(caught.value) == "resnet8 has no option 'activaton'; did you mean 'activation'?"

"""What a layer's bits cost, measured by turning them down alone."""

import pytest
import torch
from torch import nn

from qrobust.attacks import StrongConfig
from qrobust.errors import ModelError
from qrobust.evaluation.sensitivity import Sensitivities, weight_quantizers
from qrobust.quant import QuantConfig, quantize, requantize
from qrobust.threat import Threat

THREAT = Threat("linf", 8 / 255)


@pytest.fixture(scope="module")
def network():
    """Of 8 bits; what its second layer gives is all that counts, its last one hardly matters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    return quantize(model.eval(), QuantConfig(8, fat="none"), calibration=torch.rand(32, 1, 8, 8)).eval()


def measured(network, *widths, done=()):
    torch.manual_seed(1)
    x = torch.rand(24, 1, 8, 8)
    y = network(x).argmax(1)
    wrong = torch.cat([y[:20], (y[20:] + 1) % 3])  # which count for nothing
    asked = Sensitivities(network, x, wrong, threat=THREAT, config=StrongConfig(quick=True, budget=11))
    return x, y, asked, list(asked.measure(widths, done))


def test_every_layer_at_every_width_and_the_network_as_it_was(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    *_, found = measured(network, 2, 4)
    assert [(one.layer, one.bits) for one in found] == [(name, bits) for name in ("0", "2", "5") for bits in (2, 4)]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert {quantizer.bits for _, quantizer, _ in weight_quantizers(network)} == {8}
    lost = {(one.layer, one.bits): one.margin for one in found}
    assert all(lost[name, 2] > 2 * lost[name, 4] > 0 for name in ("0", "2", "5"))  # in a mean of gains too it is noise


def test_a_clean_margin_by_hand(network):
    """As of the network quantised anew with this one layer at two bits, its clip placed alike."""
    x, y, asked, found = measured(network, 2)
    assert len(asked.x) == 20
    alone = requantize(network, 8, calibration=x)
    for _, quantizer, layer in weight_quantizers(alone):
        if layer is alone.get_submodule("2"):
            quantizer.set_bits(2)
            quantizer.observed = 0
            quantizer(layer.weight)
            quantizer.observed = None
    margins = []
    for model in (network, alone.eval()):
        with torch.no_grad():
            ordered = model(x[:20]).clone()
        own = ordered.gather(1, y[:20, None])[:, 0]
        margins.append(own - ordered.scatter(1, y[:20, None], -torch.inf).amax(1))
    one = next(one for one in found if one.layer == "2")
    assert one.clean_margin == pytest.approx(float((margins[0] - margins[1]).clamp(min=0).mean()), abs=0.01)


def test_what_is_done_is_not_measured_again(network):
    *_, found = measured(network, 2, 4, done={("0", 2), ("2", 4)})
    assert [(one.layer, one.bits) for one in found] == [("0", 4), ("2", 2), ("5", 2), ("5", 4)]


def test_between_two_of_them_the_network_is_as_it_was(network):
    x = torch.rand(8, 1, 8, 8)
    asked = Sensitivities(network, x, network(x).argmax(1), threat=THREAT, config=StrongConfig(quick=True, budget=5))
    for _ in asked.measure((2,)):
        assert {quantizer.bits for _, quantizer, _ in weight_quantizers(network)} == {8}


def test_a_network_that_is_never_right_is_refused(network):
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(ModelError, match="expected a network that is right on some of 4 images, got none"):
        Sensitivities(network, x, (network(x).argmax(1) + 1) % 3, threat=THREAT)


def test_no_width_that_is_none(network):
    *_, found = measured(network, 8)
    assert not found

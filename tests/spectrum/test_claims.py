"""What the papers claim, on images whose frequencies are known: shapes below frequency 5, textures at 5 and 6.

Three networks of one recipe: natural, natural on low-passed images (L-model), adversarial. LPF_11 takes the textures
away and LPF_13 lets them through, so that a filter that is swapped, shifted or one frequency off is seen.
Thresholds lie between what was measured and what such filters give.
"""

import pytest
import torch

from qrobust import recipe
from qrobust.attacks import pgd
from qrobust.data import DataSettings, load, to_unit
from qrobust.data.sources.spectral_shapes import SIDE, WAVES
from qrobust.models.inference import frozen
from qrobust.runs.run import Run
from qrobust.spectrum import heat_map, low_pass, low_pass_accuracy, mean_spectrum, perturbed_accuracy

pytestmark = pytest.mark.slow

N = 400
WITHOUT, WITH = 11, 13  # bandwidths just below the textures and just above
FASTEST = 7  # a high-pass that lets the textures through, and no shape
SWEEP = (3, 5, 9, WITHOUT, WITH, SIDE)
KINDS = {
    "natural": ["train.method=natural"],
    "low": ["train.method=natural", f"train.low_pass={WITHOUT}"],
    "robust": ["train.method=at"],
}


def some_images(texture=None):
    images = load(DataSettings("spectral-shapes", texture=texture)).test.take(slice(0, N))
    return to_unit(images.x, "cpu"), images.y


class Network:
    """A trained network, and what was measured of it."""

    def __init__(self, settings, folder):
        run = Run(settings, folder)
        run.train()
        self.model, (x, y), seeded = run.network(32), some_images(), torch.Generator().manual_seed(0)
        x_adv = pgd(self.model, x, y, threat=run.threat, generator=seeded)
        self.delta = x_adv - x
        with frozen(self.model):
            self.sweep = dict(zip(SWEEP, low_pass_accuracy(self.model, [(x, y)], SWEEP), strict=True))
            self.clean = self.sweep[SIDE]
            (self.shape,) = low_pass_accuracy(self.model, [some_images(texture=0.0)], [SIDE])
            (self.under_low,) = perturbed_accuracy(self.model, [(x, x_adv, y)], [WITHOUT], band="low")
            (self.under_high,) = perturbed_accuracy(self.model, [(x, x_adv, y)], [FASTEST], band="high")
            (self.attacked,) = perturbed_accuracy(self.model, [(x, x_adv, y)], [SIDE], band="low")
            self.heat = heat_map(self.model, x[:100], y[:100], norm=0.4, generator=seeded)
        self.spectrum = mean_spectrum([self.delta])

    @property
    def low_share(self):
        """Share of the perturbations' energy below the textures."""
        return float(low_pass(self.delta, WITHOUT).square().sum() / self.delta.square().sum())


def at_textures(spectrum):
    """The largest value at a texture's frequency."""
    place = WAVES + SIDE // 2
    return float(spectrum[place[:, 0], place[:, 1]].max())


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    return {
        kind: Network(recipe.load("spectral-shapes", ["bits=[32]", "data.validation=0", *extra]), folder / kind)
        for kind, extra in KINDS.items()
    }


def test_natural_networks_use_both_cues(networks):
    natural = networks["natural"]
    assert natural.clean > 0.9
    assert 0.65 < natural.sweep[WITHOUT] < 0.83
    assert abs(natural.sweep[WITHOUT] - natural.shape) < 0.04  # textures taken away, or there and saying nothing
    assert abs(natural.sweep[WITH] - natural.clean) < 0.02
    assert at_textures(natural.heat) > natural.heat.median() + 0.15


def test_l_models_use_the_shape_alone(networks):
    low = networks["low"]
    assert low.shape > 0.87
    for bandwidth in (9, WITHOUT, WITH):
        assert abs(low.sweep[bandwidth] - low.clean) < 0.05
    assert low.sweep[5] < 0.6  # frequency 2 is not all there is of a shape
    assert at_textures(low.heat) < low.heat.median() + 0.08


def test_adversarial_training_moves_attention_to_low_frequencies(networks):
    natural, robust = networks["natural"], networks["robust"]
    assert robust.clean > 0.7
    for bandwidth in (3, 5):
        assert robust.sweep[bandwidth] > natural.sweep[bandwidth] + 0.1
    assert abs(robust.sweep[WITHOUT] - robust.clean) < 0.05
    assert at_textures(robust.heat) < robust.heat.median() + 0.08
    assert robust.heat.max() - robust.heat.min() < (natural.heat.max() - natural.heat.min()) / 2


def test_low_frequencies_alone_make_nothing_robust(networks):
    assert networks["natural"].attacked < 0.1
    assert networks["low"].attacked < 0.1
    assert networks["robust"].attacked > 0.35


def test_attacks_go_where_the_network_looks(networks):
    natural, low, robust = networks.values()
    assert at_textures(natural.spectrum) > 2 * natural.spectrum.median()
    assert at_textures(low.spectrum) < 1.6 * low.spectrum.median()
    assert low.low_share > natural.low_share + 0.1
    assert robust.low_share > natural.low_share + 0.03
    for network in (natural, low):
        both = torch.stack([network.spectrum.flatten(), network.heat.flatten()])
        assert both.corrcoef()[0, 1] > 0.6


def test_only_the_bands_that_a_network_looks_at_break_it(networks):
    natural, low, robust = networks.values()
    assert natural.under_high < natural.clean - 0.08
    for network in (low, robust):
        assert network.under_high > network.clean - 0.05
        assert network.under_low < network.clean - 0.25
    assert low.under_low < 0.1

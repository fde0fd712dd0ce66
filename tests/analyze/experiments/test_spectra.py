"""Maps over frequencies: of perturbations and networks whose frequency is known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qrobust.analyze.experiments.spectra import heat_map, mean_spectrum
from qrobust.data import Images
from qrobust.spectrum import fourier_basis
from qrobust.threat import Threat

POSITION, PARTNER, SIDE = (11, 4), (1, 8), 12


class Detector(nn.Module):
    """Says 1 where an image holds a wave, else 0."""

    def __init__(self):
        super().__init__()
        self.register_buffer("wave", fourier_basis(torch.tensor([POSITION]), SIDE, SIDE))

    def forward(self, x):
        found = (x * self.wave).sum((2, 3)).abs().amax(1)
        return torch.stack([torch.full_like(found, 0.1), found], dim=1)


def case_of(model, delta=None, **settings):
    """A case of grey images of class 0, with perturbations that are given."""
    x = torch.full((8, 1, SIDE, SIDE), 128, dtype=torch.uint8)
    images = Images(x, torch.zeros(8, dtype=torch.int64))

    def batches():
        return iter([(images.x / 255, images.y)])

    return SimpleNamespace(
        model=model, label="a", images=images, batches=batches, run=SimpleNamespace(threat=Threat("linf", 0.05)),
        settings=SimpleNamespace(**({"seed": 0, "norm": None} | settings)),
        adversarial=lambda: ((x, x + delta, y) for x, y in batches()),
    )  # fmt: skip


def test_the_map_is_hot_where_the_network_looks():
    found = heat_map(case_of(Detector().eval()))
    hot = {(i, j) for i, line in enumerate(found["error"]) for j, error in enumerate(line) if error > 0.5}
    assert hot == {POSITION, PARTNER}
    assert found["clean_error"] == 0
    assert found["norm"] == pytest.approx(0.05 * SIDE)
    assert heat_map(case_of(Detector().eval(), norm=0.05))["error"] == [[0.0] * SIDE] * SIDE


def test_the_mean_spectrum_is_where_perturbations_are():
    inside, outside = (fourier_basis(torch.tensor([place]), SIDE, SIDE) for place in ((6, 8), POSITION))
    found = mean_spectrum(case_of(None, inside + 3 * outside))
    spectrum = torch.tensor(found["spectrum"])
    assert (spectrum > 1e-3).nonzero().tolist() == [[1, 8], [6, 4], [6, 8], [11, 4]]
    assert float(spectrum[POSITION] / spectrum[6, 8]) == pytest.approx(3, rel=1e-3)
    assert found["central"] == pytest.approx(1 / 4, rel=1e-2)


def test_an_l2_threat_shares_its_norm_among_channels(cases):
    case = replace(cases[0], settings=replace(cases[0].settings, n=4))
    assert heat_map(case)["norm"] == pytest.approx(0.05 * SIDE)
    case.run.threat, before = Threat("l2", 0.3), case.run.threat
    try:
        assert heat_map(case)["norm"] == pytest.approx(0.3 / 3**0.5)
    finally:
        case.run.threat = before

"""Experiments on images hold what they promise, within the rounding to 8 bits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.analysis.cases import Case, Result, Settings, open_cases
from qrobust.analysis.encoding import unpack
from qrobust.analysis.images import ablation, aggressiveness, filtered, heat_map, low_pass, mean_spectrum, perturbations
from qrobust.data import Images
from qrobust.runs.run import Run
from qrobust.spectrum import fourier_basis, high_pass, log_spectrum
from qrobust.spectrum import low_pass as low_passed
from qrobust.storage import read_json
from qrobust.threat import Threat

from .conftest import FINISHED, SETTINGS

STEP = 0.5 / 255 + 1e-6


def shown(packed):
    """Images (n, c, h, w) in [0,1]."""
    return torch.from_numpy(unpack(packed).astype(np.float32) / 255).permute(0, 3, 1, 2)


def test_filters_are_those_of_the_spectrum(cases):
    found = filtered(cases[0])
    pictures = {row["title"]: shown(row["pixels"]) for row in found["rows"]}
    x = pictures["image"]
    assert found["classes"][:3] == ["0", "1", "2"]
    assert x.shape == (6, 3, 12, 12)
    for k in (3, 6, 12):
        assert torch.allclose(pictures[f"LPF, k = {k}"], low_passed(x, k).clamp(0, 1), atol=STEP)
        high = high_pass(x, k)
        stretched = 0.5 + high / (2 * high.abs().amax((1, 2, 3), keepdim=True))
        assert torch.allclose(pictures[f"HPF, k = {k}"], stretched, atol=STEP)


def test_what_an_attack_adds_is_shown_stretched_with_spectra_of_itself(cases):
    case = cases[0]
    found = perturbations(case)
    pictures = {name: shown(packed) for name, packed in found["pixels"].items()}
    which = [case.images.y.tolist().index(label) for label in range(3)]
    x, x_adv = (torch.cat(parts)[which] for parts in list(zip(*case.adversarial(), strict=True))[:2])
    assert torch.equal(pictures["clean"], x.contiguous())
    assert torch.allclose(pictures["adversarial"], x_adv, atol=STEP)
    delta = pictures["perturbation"] - 0.5
    assert delta.abs().amax((1, 2, 3)).tolist() == pytest.approx([0.5] * 3, abs=STEP)
    for name, view in (("clean", x), ("adversarial", x_adv), ("perturbation", x_adv - x)):
        assert torch.allclose(torch.tensor(found["spectra"][name]), log_spectrum(view), atol=1e-3)
    with torch.no_grad():
        assert found["right"] == (case.model(x_adv).argmax(1).tolist() == np.arange(3)).tolist()


def right(case, x):
    """Share of all images that the network gets right."""
    y = torch.cat([y for _, y in case.batches()])
    with torch.no_grad():
        return float((case.model(x.clamp(0, 1)).argmax(1) == y).float().mean())


def views(case):
    x, x_adv = zip(*((x, x_adv) for x, x_adv, _ in case.adversarial()), strict=True)
    return torch.cat(x), torch.cat(x_adv)


def test_low_pass_is_the_loop_written_out(cases):
    case = cases[1]
    x, x_adv = views(case)
    found = low_pass(case)
    assert found["bandwidths"] == [3, 6, 12]
    for name, images in (("clean", x), ("pgd-2", x_adv)):
        curve = found["curves"][name]
        assert curve["accuracy"] == pytest.approx([right(case, low_passed(images, k)) for k in (3, 6, 12)])
        assert all(low <= share <= high for share, (low, high) in zip(curve["accuracy"], curve["ci95"], strict=True))
        assert curve["bounded"]


def test_attacks_without_a_bound_are_marked(run):
    case = Case(Run.open(run), 32, Settings(n=6, bandwidths=(12,), attacks=("fgsm", "gn")))
    assert {name: curve["bounded"] for name, curve in low_pass(case)["curves"].items()} == {
        "clean": True, "fgsm": True, "gn": False,
    }  # fmt: skip


def test_aggressiveness_filters_the_perturbation_alone(cases):
    case = cases[0]
    x, x_adv = views(case)
    found = aggressiveness(case)
    for band, band_pass in (("low", low_passed), ("high", high_pass)):
        expected = [right(case, x + band_pass(x_adv - x, k)) for k in (3, 6, 12)]
        assert found["curves"][band]["accuracy"] == pytest.approx(expected)
    assert found["clean"] == pytest.approx(right(case, x))
    assert found["curves"]["low"]["accuracy"][-1] == found["curves"]["high"]["accuracy"][-1]


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


def test_a_run_tells_its_recipe():
    first, second = (ablation(case) for case in open_cases([FINISHED], SETTINGS))
    evaluation = read_json(FINISHED / "qm-32" / "eval.json")
    assert first["n"] == evaluation["n"]
    assert first["accuracy"]["pgd-10"]["accuracy"] == evaluation["attacks"]["pgd-10"]["accuracy"]
    assert list(first["accuracy"]) == ["clean", *evaluation["attacks"]]
    assert first["settings"]["train.epochs"] == 10
    assert {key for key in first["settings"] if first["settings"][key] != second["settings"][key]} == {"bits"}
    assert not any(key.startswith(("evaluate", "name")) for key in first["settings"])


def test_a_file_alone_tells_its_accuracies():
    share = {"accuracy": 0.5, "ci95": [0.4, 0.6], "settings": {}}
    found = ablation(Result("a", {"n": 4, "clean": share, "attacks": {"fgsm": share}}))
    copied = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    assert found == {"settings": {}, "n": 4, "accuracy": {"clean": copied, "fgsm": copied}}

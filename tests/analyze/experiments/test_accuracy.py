"""Accuracy over bandwidths against loops written out."""

import pytest
import torch

from qrobust.analyze.cases import Case, Settings
from qrobust.analyze.experiments.accuracy import aggressiveness, low_pass
from qrobust.runs.run import Run
from qrobust.spectrum import high_pass
from qrobust.spectrum import low_pass as kept


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
        assert curve["accuracy"] == pytest.approx([right(case, kept(images, k)) for k in (3, 6, 12)])
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
    for band, filtered in (("low", kept), ("high", high_pass)):
        expected = [right(case, x + filtered(x_adv - x, k)) for k in (3, 6, 12)]
        assert found["curves"][band]["accuracy"] == pytest.approx(expected)
    assert found["clean"] == pytest.approx(right(case, x))
    assert found["curves"]["low"]["accuracy"][-1] == found["curves"]["high"]["accuracy"][-1]

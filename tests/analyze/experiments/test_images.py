"""Pictures hold what they promise, within the rounding to 8 bits."""

import numpy as np
import pytest
import torch

from qrobust.analyze.experiments.images import filtered, perturbations
from qrobust.analyze.pixels import unpack
from qrobust.spectrum import high_pass, log_spectrum, low_pass

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
        assert torch.allclose(pictures[f"LPF, k = {k}"], low_pass(x, k).clamp(0, 1), atol=STEP)
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

"""Bad input to an attack is one clear line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qrobust.attacks import PgdConfig, autoattack_part, cw, gaussian_noise, pgd, square, tpgd
from qrobust.errors import DataError, ModelError
from qrobust.threat import Threat

THREAT = Threat("linf", 8 / 255)
ATTACKS = {
    "pgd": lambda model, x, y: pgd(model, x, y, threat=THREAT, config=PgdConfig(steps=2)),
    "tpgd": lambda model, x, y: tpgd(model, x, y, threat=THREAT, config=PgdConfig(steps=2)),
    "cw": lambda model, x, y: cw(model, x, y, steps=2),
    "square": lambda model, x, y: square(model, x, y, threat=THREAT, queries=2),
    "apgd-ce": lambda model, x, y: autoattack_part(model, x, y, part="apgd-ce", threat=THREAT),
    "gn": lambda model, x, y: gaussian_noise(x),
}


class Tuple(nn.Module):
    def forward(self, x):
        return x.flatten(1), None


pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.full((2, 1, 2, 2), -2.12), r"got \[-2.12, -2.12\]; pass unnormalised images"),
        (torch.full((2, 1, 2, 2), 255.0), r"got \[255, 255\]"),
        (torch.full((2, 1, 2, 2), float("nan")), r"got \[nan, nan\]"),
        (torch.full((2, 1, 2, 2), 1.00001), r"got \[1.00001, 1.00001\]"),
        (torch.ones((2, 1, 2, 2), dtype=torch.uint8), "got torch.uint8; divide 8-bit images by 255"),
    ],
    ids=["normalised", "not divided", "nan", "a little outside", "bytes"],
)
def test_images_outside_the_range_are_refused(attack, x, got):
    with pytest.raises(DataError, match=got):
        ATTACKS[attack](nn.Flatten(), x, torch.tensor([0, 1]))


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_resizing_rounds_beyond_the_range_is_taken(attack):
    x = torch.rand(2, 1, 2, 2)
    x[:, :, 0] = torch.tensor([1 + 1.2e-7, -1e-7])
    found = ATTACKS[attack](nn.Flatten(), x, torch.tensor([0, 1]))
    assert found.isfinite().all()


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match=r"expected labels in \[0, 3\], got 7; number the classes from 0"):
        ATTACKS["pgd"](nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 7]))


def test_a_tuple_is_no_logits():
    with pytest.raises(ModelError, match=r"expected logits of shape \(2, classes\), got tuple"):
        ATTACKS["pgd"](Tuple(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))

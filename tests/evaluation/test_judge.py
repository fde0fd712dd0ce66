"""The judge believes no attack and no network."""

import math

import pytest
import torch
from torch import nn

from qrobust.errors import DataError, ModelError
from qrobust.evaluation import judge, predict
from qrobust.evaluation.accuracy import are_probabilities
from qrobust.threat import Threat

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)


class Brightness(nn.Module):
    """Label 1 for bright images, 0 for dark ones."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Returning(nn.Module):
    """A network that returns one and the same thing."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def greys(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


X, Y = greys(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 1])


def test_right_and_wrong():
    assert judge(Brightness(), X, Y, X, LINF).tolist() == [True] * 4
    assert judge(Brightness(), X, 1 - Y, X, LINF).tolist() == [False] * 4


@pytest.mark.parametrize(("threat", "kept"), [(LINF, [True, False, False, True]), (L2, [True, False, False, True])])
def test_a_cheating_attack_gains_nothing(threat, kept):
    """All images inverted, far outside the ball: only those within eps of the threshold fall."""
    assert judge(Brightness(), X, Y, 1 - X, threat).tolist() == kept


def test_without_a_bound_pixels_are_clipped():
    far = torch.full_like(X, 0.2)
    far[:, 0] = 100.0  # clipped, the mean is 0.47
    assert judge(Brightness(), X, Y, far, None).tolist() == [True, True, False, False]
    far = torch.full_like(X, 0.8)
    far[:, 0] = -100.0
    assert judge(Brightness(), X, Y, far, None).tolist() == [False, False, True, True]


@pytest.mark.parametrize("threat", [LINF, L2, None], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_no_numbers_are_refused(threat, value):
    x_adv = X.clone()
    x_adv[2, 0, 1, 1] = value
    with pytest.raises(DataError) as caught:
        judge(Brightness(), X, Y, x_adv, threat)
    text = "expected perturbed images of finite pixels, got NaN or infinity; mend the attack"
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ((torch.zeros(4, 2), None), "tuple"),
        ({"logits": torch.zeros(4, 2)}, "dict"),
        (torch.zeros(4), "(4,)"),
        (torch.zeros(3, 2), "(3, 2)"),
        (torch.zeros(4, 2, 1), "(4, 2, 1)"),
    ],
)
def test_what_is_no_logits_is_refused(output, got):
    with pytest.raises(ModelError) as caught:
        judge(Returning(output), X, Y, X, LINF)
    assert str(caught.value) == f"expected logits of shape (4, classes), got {got}; return the logits alone"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    logits = torch.zeros(4, 2)
    logits[3, 1] = value
    with pytest.raises(ModelError) as caught:
        predict(Returning(logits), X)
    assert str(caught.value) == "expected finite logits, got NaN or infinity; the network has diverged"


def test_no_gradient_is_kept():
    x = X.clone().requires_grad_(True)
    assert not judge(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), X, Y, x, LINF).requires_grad
    assert predict(Brightness(), X).tolist() == Y.tolist()


def softmax(n=40, classes=10, scale=3.0):
    return (torch.randn(n, classes, generator=torch.Generator().manual_seed(0)) * scale).softmax(1)


PROBABILITIES = {
    "softmax": softmax(),
    "in half precision": softmax().half(),
    "in half precision, as float32": softmax().half().float(),
    "in bfloat16, as float32, in percent": (softmax(scale=1.0) * 100).bfloat16().float(),
    "in percent": softmax() * 100,
    "in 8 bits": (softmax() * 255).round() / 255,
    "as bytes": (softmax() * 255).round(),
    "in 1/256, at most 255": (softmax() * 256).round().clamp(max=255) / 256,
    "whole percent": (softmax() * 100).round(),
    "100 classes in 8 bits": (softmax(classes=100) * 255).round() / 255,
    "one image": softmax(1),
    "one image in percent": softmax(1) * 100,
}
NORMAL = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
LOGITS = {
    "logits": NORMAL,
    "log-softmax": softmax().log(),
    "behind a ReLU": NORMAL.relu(),
    "behind a ReLU, of 2 bits": (NORMAL.relu() * 2).round().clamp(max=3),
    "squared": NORMAL[:, :3].square(),
    "shifted": softmax() - 0.1,
    "one image behind a ReLU": torch.tensor([[0.0, 2.0, 3.5]]),
    "zeros": torch.zeros(40, 10),
}  # fmt: skip


@pytest.mark.parametrize("output", PROBABILITIES.values(), ids=PROBABILITIES)
def test_probabilities_are_known_however_they_are_written(output):
    assert are_probabilities(output)


@pytest.mark.parametrize("output", LOGITS.values(), ids=LOGITS)
def test_logits_are_no_probabilities(output):
    assert not are_probabilities(output)

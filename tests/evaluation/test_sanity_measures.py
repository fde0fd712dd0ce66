"""What sanity checks share: attacks on a part of the images, in batches, and the networks that they attack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qrobust.attacks import PgdConfig, pgd
from qrobust.data import Images
from qrobust.errors import DataError
from qrobust.evaluation.sanity_measures import CheckedModel, SurrogateGradient
from qrobust.threat import Threat

THREAT = Threat("linf", 20 / 255)
N = 50


def _network(seed: int, *, rounds: bool = False) -> nn.Module:
    """A smooth network, or its rounded one whose gradient is zero."""
    torch.manual_seed(seed)
    return nn.Sequential(
        _Rounded() if rounds else nn.Identity(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
    )


class _Rounded(nn.Module):
    def forward(self, x):
        return (x * 8).round() / 8


def _images() -> Images:
    """Labelled by the rounded network, so that all are right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (N, 1, 4, 4), generator=generator).to(torch.uint8)
    with torch.no_grad():
        return Images(x, _network(0, rounds=True)(x / 255).argmax(1))


def _subject(batch_size: int = 128, **settings) -> CheckedModel:
    return CheckedModel(_network(0, rounds=True), _images(), THREAT, batch_size=batch_size, **settings)


class _Widest(nn.Module):
    """Remembers the most images it saw at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen = max(self.seen, len(x))
        return self.model(x)


def test_no_more_images_at_once_than_a_batch() -> None:
    model = _Widest(_network(0))
    checked = CheckedModel(model, _images(), THREAT, batch_size=7)
    assert checked.white_box.shape == (N,)
    assert checked.gradient.shape == (N, 1, 4, 4)
    assert model.seen == 7


@pytest.mark.parametrize("attack", ["fgsm", "pgd-5", "cw-inf-5"])
def test_the_batch_size_does_not_change_results(attack: str) -> None:
    small, large = (CheckedModel(_network(0), _images(), THREAT, batch_size=size) for size in (7, 128))
    assert torch.equal(small.right(attack), large.right(attack))
    for loss in ("ce", "margin"):
        torch.testing.assert_close(small.gradient_of(small.model, loss), large.gradient_of(large.model, loss))


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="batch size of at least 1, got 0"):
        _subject(0)


def test_only_the_images_of_a_mask_are_attacked() -> None:
    checked = CheckedModel(_network(0), _images(), THREAT, batch_size=7)
    among = torch.arange(N) % 3 == 0
    left = checked.right("fgsm", among=among)  # draws nothing, so the rest of the batch does not matter
    assert torch.equal(left, among & checked.right("fgsm"))
    assert 0 < int(left.sum()) < int(among.sum())
    assert not checked.right("fgsm", among=torch.zeros(N, dtype=torch.bool)).any()


def test_images_that_are_wrong_when_clean_are_not_right() -> None:
    images = _images()
    checked = CheckedModel(_network(0), Images(images.x, (images.y + 1) % 3), THREAT)
    assert not (checked.right("fgsm") & ~checked.clean).any()


def test_values_are_the_network_s_and_gradients_the_surrogate_s() -> None:
    model, float_model = _network(0, rounds=True), _network(0)
    through = SurrogateGradient(model, float_model)
    x = (_images().x / 255).requires_grad_(True)
    logits = through(x)
    torch.testing.assert_close(logits, model(x))
    assert not torch.allclose(logits, float_model(x))
    (got,) = torch.autograd.grad(logits[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(float_model(x)[:, 0].sum(), x)
    assert torch.equal(got, expected)


def test_through_a_surrogate_an_attack_finds_what_rounding_hides() -> None:
    checked = _subject()
    through = SurrogateGradient(checked.model, _network(0))
    assert torch.equal(checked.gradient, torch.zeros_like(checked.gradient))
    assert checked.share(checked.right("cw-inf-20", model=through)) < checked.share(checked.white_box) - 0.1


def test_the_networks_inside_are_left_as_found() -> None:
    model, float_model = _network(0), _network(1).train()
    pgd(SurrogateGradient(model, float_model), _images().x / 255, _images().y, threat=THREAT, config=PgdConfig(steps=1))
    assert float_model.training
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *float_model.parameters()))

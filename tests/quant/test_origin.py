"""Quantised networks are copied, pickled and made again, whatever became of them since."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from qrobust.quant import QuantConfig, first_unrounded, fold_fat, quantize, quantizers, requantize, set_straight_through

from .helpers import Plain, images, resnet


class Normalised(nn.Module):
    """A network of a user's own, with numbers that no state holds."""

    def __init__(self):
        super().__init__()
        self.inner = Plain()
        self.register_buffer("mean", torch.tensor([0.4]).view(1, 1, 1, 1), persistent=False)
        self.deviation = torch.tensor(0.3)

    def forward(self, x):
        return self.inner((x - self.mean) / self.deviation)


def unclipped(model):
    set_straight_through(model, "unclipped")
    return model


def in_part(model):
    """One module in train mode, one parameter without gradient."""
    model.get_submodule("inner.fc").train()
    next(model.parameters()).requires_grad_(False)
    return model


CHANGES = {
    "as it was made": lambda model: model,
    "of another width": lambda model: requantize(model, 2, calibration=images()),
    "without FAT": fold_fat,
    "trained through clips": unclipped,
    "in part in train mode": in_part,
    "in float64": lambda model: model.double(),
    "in another network": lambda model: nn.Sequential(nn.Identity(), model),
}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def quantized(kind=Normalised):
    torch.manual_seed(0)
    return quantize(kind().eval(), QuantConfig({"*": 4, "*third": 8}), calibration=images()).eval()


def same(made, given):
    """Whether two networks give the same logits, modes and gradients."""
    x = images(8, seed=1).to(next(given.parameters()).dtype)
    assert torch.equal(made(x), given(x))
    assert [m.training for m in made.modules()] == [m.training for m in given.modules()]
    assert not any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
    ours, theirs = gradients(made, x), gradients(given, x)
    assert ours.keys() == theirs.keys()
    return all(
        ours[name] is None if gradient is None else torch.equal(gradient, ours[name])
        for name, gradient in theirs.items()
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_quantised_network_is_made_again(change):
    given = CHANGES[change](quantized())
    assert same(by_pickle(given), given)


@pytest.mark.parametrize("again", [by_torch, copy.deepcopy, lambda model: by_pickle(by_pickle(copy.deepcopy(model)))])
def test_a_quantised_network_is_made_again_by(again):
    given = quantized()
    assert same(again(given), given)


def test_a_residual_network_with_batch_norm_is_made_again():
    given = quantize(resnet(), 4, calibration=images()).train()
    assert same(by_pickle(given), given)


def test_what_was_made_again_goes_on():
    given = by_pickle(quantized(Plain))
    given.load_state_dict(quantized(Plain).state_dict())
    narrower = requantize(given, 2, calibration=images())
    assert {q.bits for q in quantizers(narrower) if q.inner} == {2}
    assert first_unrounded(narrower) is None

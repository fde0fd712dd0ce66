"""Files of transformers: a flipped tie reaches every token, so layers are judged on torch's integers, and named."""

import pytest
import torch

from qrobust.errors import ExportError, ParityError
from qrobust.export.parity import check_parity, parity
from qrobust.export.target import load_target
from qrobust.runtime import sums_saturate

from ..quant.helpers import images
from .tokens import FORMS, TOKENS, Named, file, network

X = images(40, side=TOKENS, seed=5)
TARGETS = {"integer": "ort-cpu", "gemm": "compact", "float": "ort-cpu-float"}
QUANTISERS = ["q0", *(f"blocks.{block}.q{place}" for block in (0, 1) for place in (1, 2, 3, 4)), "q5"]


@pytest.mark.parametrize("runtime", ["all", "disable", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_a_right_file_agrees_within_a_step(form, runtime):
    if form == "integer" and runtime == "disable" and sums_saturate():
        pytest.skip("without optimisation, onnxruntime lets sums of 8-bit products saturate on this processor")
    some = X if runtime != "reference" else X[:4]
    found = parity(network(), file(form).data(), some, activations=file(form).activations, runtime=runtime, forced=True)
    assert [layer.module for layer in found.layers] == QUANTISERS
    assert max(layer.largest for layer in found.layers) <= 1
    assert found.share < 1e-3
    assert found.change < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_activations_are_found_where_nobody_names_them(form):
    named, found = (
        parity(network(), file(form).data(), X, activations=activations, forced=True)
        for activations in (file(form).activations, None)
    )
    assert named == found


def test_names_decide_not_the_order():
    turned = [*file("integer").activations[::-1]]
    found = parity(network(), file("integer").data(), X, activations=turned, forced=True)
    assert [layer.module for layer in found.layers] == QUANTISERS[::-1]
    assert max(layer.largest for layer in found.layers) <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("constant", "fault"),
    [
        ("blocks.0.fc2.scale", "blocks.0.fc2"),  # only blocks.1.q1, behind a float sum and a norm, shows it
        ("blocks.1.norm1.weight", "blocks.1.norm1"),
        ("blocks.1.qkv.scale", "blocks.1.qkv"),
        ("blocks.1.temperature", "blocks.1.q2"),  # of no module: what is quantised next
        ("blocks.1.q3.scale", "blocks.1.q3"),
        ("embed.scale", "embed"),
        ("head.scale", "head"),
    ],
)
def test_one_wrong_number_is_refused_and_its_layer_named(form, constant, fault):
    factor = 20 if "temperature" in constant else 1.3
    wrong, target = file(form).data(**{constant: factor}), load_target(TARGETS[form])
    with pytest.raises(ParityError, match=rf"^{target.name}: .* tolerated \S+; {fault} computes something else: choo"):
        check_parity(network(), wrong, X, limited(target), activations=file(form).activations)


def limited(target):
    return target.model_copy(update={"limits": target.limits.model_copy(update={"logit_change": 0.001})})


@pytest.mark.parametrize("form", FORMS)
def test_a_right_file_passes_and_its_layers_are_counted_alone(form):
    found = check_parity(
        network(), file(form).data(), X, load_target(TARGETS[form]), activations=file(form).activations
    )
    assert (found.n, len(found.layers)) == (40, 10)
    assert found.flips <= 1 / 40
    assert found.layers[0].elements == 40 * TOKENS**2
    assert found.share < 1e-3


def test_few_images_at_a_time_where_activations_are_large(monkeypatch):
    sizes = []
    model = network()
    handle = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr("qrobust.export.parity.MOST", 3000)
    try:
        found = parity(model, file("integer").data(), X, forced=True)
    finally:
        handle.remove()
    integers = 16 + 2 * (3 * 32 + 64) + 8
    assert sizes[2:] == [3000 // integers] * 5 == [8] * 5
    assert found.n == 40


def test_a_file_of_other_quantisers_is_refused():
    data, activations = file("integer").data(), file("integer").activations
    with pytest.raises(ExportError, match=r"^expected 10 quantised activations in the file, got 9; export again"):
        parity(network(), data, X, activations=activations[1:])
    with pytest.raises(ExportError, match=r"^expected a tensor gone in the file, got none; export again"):
        parity(network(), data, X, activations=[*activations[:-1], Named("q5", "gone", 0)])


def test_the_network_is_left_as_it_was():
    before = network()(X)
    with pytest.raises(ParityError):
        check_parity(network(), file("integer").data(**{"embed.scale": 2}), X, load_target("ort-cpu"))
    assert not any(module._forward_hooks for module in network().modules())
    torch.testing.assert_close(network()(X), before, rtol=0, atol=0)

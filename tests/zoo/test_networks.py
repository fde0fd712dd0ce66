"""Every network that the zoo holds against its card: whole, and the one whose numbers stand there; no data needed."""

import re
import tomllib

import pytest
import torch

import qrobust
from qrobust.headline import numbers
from qrobust.runtime import check
from qrobust.zoo import entries, find, generated, get, listing
from qrobust.zoo.artifact import logits_of
from qrobust.zoo.card import card

from ..conftest import evidence

NAMES = [name for name, _ in listing() if entries._places()[name].is_dir()]


def test_the_zoo_holds_networks():
    assert "digits-resnet8-w4a8" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_the_one_of_its_card(name):
    """Hashes, the labels of generated images on the runtime and in torch, and the card's numbers."""
    entry = find(name)
    stated = entry.index["generated"]
    sure = [label for label in stated["labels"] if label is not None]
    assert len(sure) >= stated["count"] / 4
    assert len(set(sure)) > 1
    logits = logits_of(entry)
    assert generated.agreement(stated["labels"], logits) >= stated["least_share"]
    loaded = qrobust.load(f"zoo:{name}")
    shape = loaded.entry.json(entries.MANIFEST)["input"]["shape"]
    x = torch.from_numpy(generated.images(stated["count"], shape)).float() / 255
    with torch.no_grad():
        assert generated.agreement(stated["labels"], loaded.model(x).numpy()) >= stated["least_share"]
        assert loaded.float_model(x).shape == logits.shape
    result = entry.json(entries.RESULT)
    network = result["network"]
    for text in (entry.files[entries.CARD].decode(), card(entry.index, result)):
        shown = [float(value) for value in re.findall(r"type: accuracy, .*value: ([\d.]+)}", text)]
        assert shown == [network["before"]["clean"]["accuracy"], *(one.accuracy for one in numbers(network))]
    manifest = entry.json(entries.MANIFEST)
    assert manifest["files"]["model.onnx"] == entry.index["files"]["model.onnx"]
    assert manifest["metrics"]["before"]["worst_case"] == network["before"]["worst_case"]
    weights = tomllib.loads(entry.files[entries.RECIPE].decode())["model"].get("weights")
    assert weights in (None, entries.FLOAT)  # where they lay when it was trained is nobody's concern


@pytest.mark.parametrize("name", NAMES)
def test_labels_tell_other_networks_apart(name):
    """Of a network whose classes stand in another order."""
    entry = find(name)
    stated = entry.index["generated"]
    assert generated.agreement(stated["labels"], logits_of(entry)[:, ::-1]) < stated["least_share"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_holds_its_check(name, tmp_path):
    data = find(name).index["data"]["name"]
    made = get(name, tmp_path / name, None if data == "digits" else str(evidence("images")))
    assert check(made).passed

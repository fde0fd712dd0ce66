"""Weights and state survive the disk bit by bit; anything else is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from qrobust.errors import CheckpointError
from qrobust.recipe import Schedule
from qrobust.train import checkpoint, load_weights, read_metadata, save_weights, trainer
from qrobust.train.checkpoint import State, capture, load_state, restore, save_state

from .helpers import are_equal, network, weights_of

CONTINUE = " and continue by qrobust run RECIPE, which makes it from the training state"


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda model: trainer.optimizer(model, Schedule(epochs=1, optimizer="adamw", lr=0.01)),
}


def trained(model, steps=3, kind="sgd"):
    """A network after some steps, and its optimiser."""
    optimizer = OPTIMIZERS[kind](model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        step(model, optimizer, generator)
    return optimizer


def step(model, optimizer, generator):
    device = next(model.parameters()).device
    x = torch.rand(6, 3, 6, 6, generator=generator).to(device)
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.arange(6, device=device) % 3).backward()
    optimizer.step()


def refusal(action, *arguments):
    with pytest.raises(CheckpointError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def weights(tmp_path):
    save_weights(tmp_path / "w.safetensors", network(), {"bits": 4})
    return tmp_path / "w.safetensors"


@pytest.fixture
def state(tmp_path):
    model = network()
    tensors = capture(model, trained(model))
    save_state(tmp_path / "s.safetensors", State("k", 2, [{"loss": 0.1}], {"epoch": 2}, tensors))
    return tmp_path / "s.safetensors"


def test_weights_survive(tmp_path):
    model, other = network(), network(seed=1)
    trained(model)
    save_weights(tmp_path / "w", model, {"bits": 4, "name": "λ"})
    assert not are_equal(weights_of(model), weights_of(other))
    found = load_weights(tmp_path / "w", other)
    assert are_equal(weights_of(model), weights_of(other))
    assert found == {"bits": 4, "name": "λ", "kind": "weights"}
    assert read_metadata(tmp_path / "w") == found
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_state_survives(state):
    found = load_state(state)
    assert (found.key, found.epoch, found.history, found.best) == ("k", 2, [{"loss": 0.1}], {"epoch": 2})


def test_state_keeps_the_settings_that_its_key_stands_for(tmp_path, state):
    settings = {"train": {"lr": 0.1, "milestones": [1, 2]}}
    save_state(tmp_path / "new", State("k", 2, settings=settings))
    assert load_state(tmp_path / "new").settings == settings
    assert load_state(state).settings == {}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_optimiser_goes_on_as_if_nothing_had_been(tmp_path, kind):
    """Momentum, moments and the count of steps are part of the state: the next steps are the same bits."""
    model, path = network(), tmp_path / "s"
    optimizer = trained(model, kind=kind)
    save_state(path, State("k", 1, tensors=capture(model, optimizer)))
    other = network(seed=1)
    fresh = OPTIMIZERS[kind](other)
    restore(load_state(path), other, fresh, path)
    for net, optim in ((model, optimizer), (other, fresh)):
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            step(net, optim, generator)
    assert are_equal(weights_of(model), weights_of(other))


def test_an_optimiser_without_steps_has_no_momentum():
    model = network()
    names = capture(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert all(name.startswith("model.") for name in names)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(state, weights, share):
    for path, action in ((state, load_state), (weights, lambda path: load_weights(path, network()))):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        text = refusal(action, path)
        assert text.startswith(f"expected a whole checkpoint at {path}, got ")
        assert text.endswith(" to train anew" if path == state else CONTINUE)


def test_a_missing_file_is_refused(tmp_path):
    text = refusal(load_state, tmp_path / "none")
    assert text.startswith(f"expected a whole checkpoint at {tmp_path / 'none'}, got ")


@pytest.mark.parametrize(
    ("metadata", "got"),
    [(None, "a foreign file"), ({"format": "pt"}, "format"), ({"qrobust-0": "{}"}, "qrobust-0")],
)
def test_a_foreign_file_is_refused(tmp_path, metadata, got):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    expected = f"expected a checkpoint of format qrobust-1 at {path}, got {got}; remove it"
    for action in (load_state, read_metadata):
        assert refusal(action, path) == f"{expected} to train anew"
    assert refusal(load_weights, path, network()) == f"{expected}{CONTINUE}"


def test_the_same_weights_give_the_same_bytes(tmp_path):
    files = [tmp_path / name for name in "abcdef"]
    for path in files:
        save_weights(path, network(), {"key": "k", "bits": 4})
    assert len({path.read_bytes() for path in files}) == 1


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_description_is_refused(tmp_path, text):
    path = tmp_path / "damaged.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={checkpoint.FORMAT: text})
    for action in (load_state, read_metadata):
        assert refusal(action, path).startswith(f"expected a whole checkpoint at {path}, got ")


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    assert "expected a whole checkpoint" in refusal(load_state, tmp_path / "pickle.pt")


def test_weights_are_no_state_and_state_no_weights(state, weights):
    text = refusal(load_state, weights)
    assert text == f"expected state in {weights}, got weights; remove it to train anew"
    text = refusal(load_weights, state, network())
    assert text == f"expected weights in {state}, got state; remove it{CONTINUE}"


def test_state_without_its_numbers_is_refused(tmp_path):
    path = tmp_path / "s"
    description = json.dumps({"kind": "state", "key": "k", "epoch": 1})
    save_file({"a": torch.zeros(2)}, path, metadata={checkpoint.FORMAT: description})
    expected = f"expected training state with history of type list in {path}, got None; remove it to train anew"
    assert refusal(load_state, path) == expected


def test_another_network_is_refused(weights, state):
    wider, deeper = network(width=5), torch.nn.Sequential(*network(), torch.nn.Linear(3, 3))
    for other, first in ((wider, "0.weight"), (deeper, "6.bias")):
        before = weights_of(other)
        text = refusal(load_weights, weights, other)
        assert text == (
            f"expected weights of this network in {weights}, got others (first difference: {first}); "
            "use the recipe it was trained with"
        )
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        assert f"first difference: {first}" in refusal(restore, load_state(state), other, optimizer, state)
        assert are_equal(weights_of(other), before)

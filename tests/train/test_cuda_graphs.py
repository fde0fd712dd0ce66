"""Work recorded once and replayed: when it is, and that a training is the same with it."""

import copy

import pytest
import torch

from qrobust import devices
from qrobust.train import cuda_graphs
from qrobust.train.cuda_graphs import Replayed

from .helpers import are_equal, deeper, job, network, some_batch, stepper, weights_of

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Fake:
    """Stands for a CUDA graph: tells what was recorded."""

    def __init__(self, work, inputs, settings):
        self.seen = (len(inputs[0]), settings)

    def replay(self, inputs):
        return ("replayed", *self.seen)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_can_record", lambda inputs: True)
    monkeypatch.setattr(cuda_graphs, "_Recording", Fake)
    return Replayed(lambda x, **settings: ("worked", len(x)))


def test_a_form_is_recorded_when_it_comes_twice_in_a_row(recorder):
    four, three = torch.zeros(4), torch.zeros(3)
    assert recorder(four) == ("worked", 4)
    assert recorder(four) == ("replayed", 4, {})
    for _ in range(2):  # an epoch's last batch, then whole ones: it is never recorded
        assert recorder(three) == ("worked", 3)
        assert recorder(four) == ("replayed", 4, {})
    assert len(recorder.recorded) == 1


def test_settings_and_types_are_part_of_a_form(recorder):
    x = torch.zeros(4)
    assert [recorder(x, late=late)[0] for late in (False, False, True, True)] == ["worked", "replayed"] * 2
    assert recorder(x.double(), late=True)[0] == "worked"


def test_what_cannot_be_recorded_works_on_and_says_so_once(monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graphs, "_can_record", lambda inputs: True)
    monkeypatch.setattr(cuda_graphs, "_Recording", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    worker, x = Replayed(lambda x: (x + 1,)), torch.zeros(2)
    assert [float(worker(x)[0].sum()) for _ in range(4)] == [2.0] * 4
    said = capsys.readouterr().err
    assert said.count("not recorded as a CUDA graph, trains on slower: operation not permitted") == 1
    assert "more" not in said


def test_nothing_is_recorded_on_a_cpu():
    worker, x = Replayed(lambda x: (x,)), torch.zeros(2)
    for _ in range(3):
        worker(x)
    assert not worker.recorded


@on_gpu
@pytest.mark.parametrize("fat", ["none", "normalised"])
@pytest.mark.parametrize("settings", [{}, {"method": "trades"}, {"awp": {"gamma": 0.01}}, {"sar": {"start": 0}}])
def test_replays_train_to_the_same_weights(tmp_path, settings, fat):
    task = job(tmp_path, **settings)
    first = deeper(fat)
    second = copy.deepcopy(first)
    plain, recorded = stepper(first, task), stepper(second, task)
    plain._descended.possible = plain._attacked.possible = False
    batches = [some_batch(seed=seed) for seed in range(6)]
    for model, worker in ((first, plain), (second, recorded)):
        generator = devices.generator(0)
        for x, y in batches:
            worker.step(model, x, y, 0, generator)
    assert recorded._descended.recorded
    assert not plain._descended.recorded
    assert are_equal(weights_of(first), weights_of(second))


@on_gpu
def test_a_second_training_is_recorded_beside_a_first(tmp_path):
    for name in "ab":
        model = network()
        worker, generator = stepper(model, job(tmp_path / name)), devices.generator(0)
        for _ in range(3):
            worker.step(model, *some_batch(), 0, generator)
        assert worker._descended.recorded

"""The cascade within an evaluation: announced, stopped after a part and continued, its parts added up."""

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.data import Images
from qrobust.evaluation import accuracy, cascade, evaluate, journal
from qrobust.threat import Threat

NAME = "strong:budget=230"  # three parts of a float network of three classes
THREAT = Threat("linf", 0.03)


class Stopped(Exception):
    pass


@pytest.fixture
def some(monkeypatch):
    """A network, and images with its labels."""
    monkeypatch.setattr(accuracy, "TOGETHER", 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randint(256, (20, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = model(x / 255).argmax(1)
    y[:2] = (y[:2] + 1) % 3  # wrong from the beginning
    return model, Images(x, y)


@pytest.fixture
def saved(monkeypatch):
    """The parts after which a journal was written, each time; set `most` to stop then."""
    monkeypatch.setattr(journal, "SAVE_EVERY", 0.0)
    parts, real = [], cascade._InJournal.save

    def save(self, arrays, done):
        real(self, arrays, done)
        parts.append(done[-1].part)
        if len(parts) == getattr(parts_most, "most", None):
            raise Stopped

    parts_most = type("Most", (), {})
    monkeypatch.setattr(cascade._InJournal, "save", save)
    return parts, parts_most


def evaluated(some, **more):
    model, images = some
    return evaluate(model, images, attacks=[NAME], threat=THREAT, batch_size=5, **more)


def untimed(outcomes):
    return [(p.part, p.tried, p.broken, p.forward_passes, p.gradient_passes) for p in outcomes.parts[NAME]]


def test_parts_are_added_up_over_blocks(some, monkeypatch):
    notes = []
    monkeypatch.setattr(cascade, "note", notes.append)
    outcomes = evaluated(some)
    clean, left = outcomes.correct["clean"], outcomes.correct[NAME]
    assert 0 < left.sum() < clean.sum() == 18  # two blocks of ten, of which one is not full
    names, tried, broken, *passes = zip(*untimed(outcomes), strict=True)
    assert names == ("margin-30", "margin-30, target 1", "margin-30, target 2")
    assert tried[0] == 18
    assert tried[1:] == tuple(18 - np.cumsum(broken)[:-1])
    assert sum(broken) == 18 - left.sum()
    assert all(min(one) > 0 for one in passes)
    found = outcomes.to_dict()["attacks"][NAME]
    assert [part["broken"] for part in found["parts"]] == list(broken)
    (text,) = notes
    assert text.startswith(f"{NAME}: 94 forward and 92 gradient passes an image that holds, 0:00:0")
    assert text.endswith(" if all 18 do")


def test_a_stopped_cascade_goes_on_after_the_part_where_it_was(some, saved, tmp_path):
    parts, most = saved
    whole = evaluated(some)
    total = len(parts)
    assert total > 3
    for stop_after in (1, total - 1):
        state = tmp_path / f"{stop_after}.npz"
        parts.clear()
        most.most = stop_after
        with pytest.raises(Stopped):
            evaluated(some, state=state)
        parts.clear()
        most.most = None
        again = evaluated(some, state=state)
        assert len(parts) == total - stop_after
        assert again.correct[NAME].tolist() == whole.correct[NAME].tolist()
        assert untimed(again) == untimed(whole)
    parts.clear()
    assert untimed(evaluated(some, state=state)) == untimed(whole)
    assert parts == []  # nothing is done twice, and what each took is still known


def test_when_a_block_is_done_its_points_go(some, saved, tmp_path):
    evaluated(some, state=tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as stored:
        memory = [name for name in stored if name.startswith("memory/")]
    assert memory == [f"memory/{NAME}/0/done", f"memory/{NAME}/10/done"]


def test_other_attacks_have_no_parts(some):
    model, images = some
    outcomes = evaluate(model, images, attacks=["pgd-2"], threat=THREAT)
    assert outcomes.parts == {}
    assert "parts" not in outcomes.to_dict()["attacks"]["pgd-2"]

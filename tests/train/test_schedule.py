"""The learning rate, and where parts of a training begin, epoch by epoch."""

import itertools
import math

import pytest
import torch

from qrobust.recipe import Average, Awp, Sar, Schedule
from qrobust.train import first_epoch, learning_rate

TABLE = {
    "constant": ({"epochs": 3}, [0.1] * 3),
    "drops of ten": ({"epochs": 6, "milestones": [2, 4]}, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]),
    "own factors": (
        {"epochs": 5, "lr": 2.0, "milestones": [1, 2, 4], "factors": [0.1, 0.5, 2.0]},
        [2.0, 0.2, 0.1, 0.1, 0.2],
    ),
    "from the start": ({"epochs": 2, "milestones": [0]}, [0.01, 0.01]),
    "neighbours": ({"epochs": 4, "milestones": [1, 2]}, [0.1, 0.01, 1e-3, 1e-3]),
    "cosine": (
        {"epochs": 4, "lr": 2.0, "shape": "cosine"},
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0],
    ),
    "cyclic": (
        {"epochs": 10, "shape": "cyclic"},
        [0, 0.025, 0.05, 0.075, 0.1, 1 / 12, 1 / 15, 0.05, 1 / 30, 1 / 60, 0],
    ),
    "warm-up, steps": ({"epochs": 5, "warmup": 2, "milestones": [1, 4]}, [0, 5e-3, 0.01, 0.01, 1e-3]),
    "warm-up, cosine": ({"epochs": 5, "shape": "cosine", "warmup": 1}, [0, 0.1, 0.05 + 0.05 * 0.5**0.5, 0.05]),
    "warm-up, cyclic": ({"epochs": 5, "shape": "cyclic", "warmup": 1}, [0, 0.1, 0.075, 0.05, 0.025, 0]),
    "half an epoch": ({"epochs": 2, "warmup": 0.5}, [0, 0.1]),
    "one cycle": (
        {"epochs": 4, "lr": 2.0, "shape": "one-cycle", "pct_start": 0.5},
        [0.08, 1.04, 2.0, 1 + 4e-6, 8e-6],
    ),
}


@pytest.mark.parametrize(("settings", "rates"), TABLE.values(), ids=TABLE)
def test_learning_rate(settings, rates):
    schedule = Schedule.model_validate(settings)
    assert [learning_rate(schedule, epoch) for epoch in range(len(rates))] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "warmup", "steepest"),
    [("cosine", 0, math.pi / 2), ("cyclic", 0, 2.5), ("cosine", 3, 10), ("cyclic", 1.5, 20)],
)
def test_smooth_shapes_have_no_jumps(shape, warmup, steepest):
    """Between two batches the rate moves by no more than its steepest slope; it stays within 0 and lr."""
    schedule, steps = Schedule(epochs=30, lr=0.2, shape=shape, warmup=warmup), 3000
    rates = [learning_rate(schedule, 30 * step / steps) for step in range(steps + 1)]
    jumps = [abs(after - before) for before, after in itertools.pairwise(rates)]
    assert max(jumps) == pytest.approx(0.2 * steepest / steps, rel=1e-3)
    assert min(rates) >= 0
    assert max(rates) == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("pct_start", [0.025, 0.3])
def test_one_cycle_is_torch_s(pct_start):
    """Its rate at step s of N, which it counts to N - 1 and turns at pct_start·N - 1, is that at their shares."""
    total, schedule = 2000, Schedule(epochs=10, lr=0.2, shape="one-cycle", pct_start=pct_start)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=total, pct_start=pct_start, cycle_momentum=False
    )
    theirs = []
    for _ in range(total):
        theirs.append(cycle.get_last_lr()[0])
        optimizer.step()
        if len(theirs) < total:
            cycle.step()
    turn = pct_start * total - 1
    shares = [s / turn * pct_start if s <= turn else 1 - (total - 1 - s) / (total - 1 - turn) * (1 - pct_start)
              for s in range(total)]  # fmt: skip
    assert [learning_rate(schedule, 10 * share) for share in shares] == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    plain = [learning_rate(schedule, 10 * s / total) for s in range(total)]
    assert max(abs(a - b) for a, b in zip(plain, theirs, strict=True)) < 0.2 * 8 / (pct_start * total)
    assert (max(theirs), theirs[-1]) == (pytest.approx(0.2), pytest.approx(0.2 / 25e4))


def test_cyclic_rises_to_lr_at_two_fifths():
    schedule = Schedule(epochs=15, lr=0.3, shape="cyclic")
    assert learning_rate(schedule, 6) == pytest.approx(0.3)
    assert [learning_rate(schedule, epoch) for epoch in (3, 10.5)] == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize("fraction", [0, 0.5, 0.999])
def test_steps_do_not_move_within_an_epoch(fraction):
    schedule = Schedule(epochs=6, milestones=(2, 4))
    assert learning_rate(schedule, 1 + fraction) == 0.1
    assert learning_rate(schedule, 2 + fraction) == pytest.approx(0.01)


@pytest.mark.parametrize("part", [Sar, Awp, Average])
@pytest.mark.parametrize(("start", "epoch"), [("first-drop", 3), (0, 0), (5, 5)])
def test_a_part_starts(part, start, epoch):
    assert first_epoch(part(start=start).start, Schedule(epochs=9, milestones=(3, 6))) == epoch

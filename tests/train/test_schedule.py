"""The learning rate and the start of alignment, epoch by epoch."""

import pytest

from qrobust.recipe import Sar, Schedule
from qrobust.train import learning_rate, sar_starts

TABLE = {
    "constant": ({"epochs": 3}, [0.1] * 3),
    "drops of ten": ({"epochs": 6, "milestones": [2, 4]}, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]),
    "own factors": (
        {"epochs": 5, "lr": 2.0, "milestones": [1, 2, 4], "factors": [0.1, 0.5, 2.0]},
        [2.0, 0.2, 0.1, 0.1, 0.2],
    ),
    "from the start": ({"epochs": 2, "milestones": [0]}, [0.01, 0.01]),
    "neighbours": ({"epochs": 4, "milestones": [1, 2]}, [0.1, 0.01, 1e-3, 1e-3]),
}


@pytest.mark.parametrize(("settings", "rates"), TABLE.values(), ids=TABLE)
def test_learning_rate(settings, rates):
    schedule = Schedule.model_validate(settings)
    assert [learning_rate(schedule, epoch) for epoch in range(schedule.epochs)] == pytest.approx(rates)


@pytest.mark.parametrize(("start", "epoch"), [("first-drop", 3), (0, 0), (5, 5)])
def test_alignment_starts(start, epoch):
    sar = Sar(start=start)
    assert sar_starts(sar, Schedule(epochs=9, milestones=(3, 6), sar=sar)) == epoch

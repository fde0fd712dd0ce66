"""Scenarios are found like recipes, and refused with one line."""

import pytest

from qrobust import resources
from qrobust.bench.measure import FOLDER, Scenario, load_scenario
from qrobust.errors import RecipeError

SHIPPED = [name for name, _ in resources.listing(FOLDER)]


def test_what_is_shipped():
    assert SHIPPED == ["offline", "single-stream"]
    stream, offline = load_scenario("single-stream"), load_scenario("offline")
    assert (stream.batch, stream.threads, stream.metric) == ((1,), (1,), "p90_ms")
    assert offline.metric == "images_per_second"
    assert offline.batch[0] * offline.min_runs == 24_576


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones_say_what_they_are(name):
    assert resources.find(FOLDER, name).table["description"]


def test_a_path_wins(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('description = "mine"\n[scenario]\nbatch = [3]\n')
    assert load_scenario(str(path)) == Scenario(batch=(3,))


BAD = {
    "batch = [0]": "scenario.batch.0: expected greater than 0, got 0",
    "batch = []": "scenario.batch: expected 1 value or more, got []",
    "threads = [1025]": "scenario.threads.0: expected less than or equal to 1024, got 1025",
    "bach = [1]": "did you mean 'batch'?",
    'metric = "p95_ms"': "scenario.metric: expected",
    "min_seconds = 0": "scenario.min_seconds: expected greater than 0, got 0",
}


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_named(line, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(f'description = ""\n[scenario]\n{line}\n')
    with pytest.raises(RecipeError) as caught:
        load_scenario(str(path))
    assert BAD[line] in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(RecipeError, match=r"got 'single'; did you mean 'single-stream'\?"):
        load_scenario("single")


def test_changes_are_checked_and_leave_the_rest():
    base = load_scenario("single-stream")
    assert base.changed() == base
    changed = base.changed(threads=[1, 2], seconds=0.5)
    assert (changed.batch, changed.threads, changed.min_seconds, changed.metric) == ((1,), (1, 2), 0.5, "p90_ms")
    with pytest.raises(RecipeError, match=r"^scenario: min_seconds: expected greater than 0"):
        base.changed(seconds=0)

"""Metrics for programs and for eyes."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qrobust.errors import RunError
from qrobust.train import trainer
from qrobust.train.trainer import EventLog, json_lines


def events(folder):
    log = EventAccumulator(str(folder))
    log.Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_one_object_a_line():
    records = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    lines = json_lines(records).splitlines()
    assert [json.loads(line) for line in lines] == records
    assert json_lines([]) == ""


def test_events_by_epoch(tmp_path):
    log = EventLog(tmp_path, 0)
    log.write({"epoch": 1, "loss": 0.5, "lr": 0.25})
    log.write({"epoch": 2, "loss": 0.125})
    log.close()
    assert events(tmp_path) == {"loss": [(1, 0.5), (2, 0.125)], "lr": [(1, 0.25)]}


def test_nested_records_have_names_like_paths(tmp_path):
    log = EventLog(tmp_path, 0)
    log.write({"epoch": 1, "loss": 0.5, "masks": {"layer1.0.conv1": {"min": 0.25, "max": 2}, "conv2": {"min": 1}}})
    log.close()
    assert events(tmp_path) == {
        "loss": [(1, 0.5)],
        "masks/layer1.0.conv1/min": [(1, 0.25)],
        "masks/layer1.0.conv1/max": [(1, 2)],
        "masks/conv2/min": [(1, 1)],
    }


def test_none_are_written_that_are_not_wanted(tmp_path):
    log = EventLog(tmp_path, 0, wanted=False)
    log.write({"epoch": 1, "loss": 0.5})
    log.close()
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_it_is_refused_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "find_spec", lambda name: None)
    EventLog(tmp_path, 0, wanted=False).close()
    with pytest.raises(RunError, match=r'pip install "qrobust\[tensorboard\]", or set it to false'):
        EventLog(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_a_continued_run_hides_what_it_repeats(tmp_path, monkeypatch):
    first = EventLog(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write({"epoch": epoch, "loss": 1.0})
    first.close()
    later = time.time() + 60  # event files are read in the order of their time
    monkeypatch.setattr(time, "time", lambda: later)
    second = EventLog(tmp_path, 1)
    second.write({"epoch": 2, "loss": 0.5})
    second.close()
    assert events(tmp_path) == {"loss": [(1, 1.0), (2, 0.5)]}

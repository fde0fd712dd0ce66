"""Who hears of a training: a file for programs, TensorBoard for eyes, a function of the user's own."""

import inspect
import json
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qrobust import distributed
from qrobust.errors import RecipeError, RunError
from qrobust.train import listeners
from qrobust.train.listeners import (
    Metrics,
    Teller,
    TensorBoard,
    Trackio,
    accuracies,
    event,
    json_lines,
    listening,
    load_listener,
    teller,
)

from ..conftest import evidence


def epoch(number, stage="train qm-32", **metrics):
    return event("epoch", stage=stage, epoch=number, epochs=9, metrics={"epoch": number, **metrics})


def events(folder):
    log = EventAccumulator(str(folder))
    log.Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_one_object_a_line():
    records = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    lines = json_lines(records).splitlines()
    assert [json.loads(line) for line in lines] == records
    assert json_lines([]) == ""


def test_metrics_continue_with_what_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert not Metrics(path, []) or not path.exists()
    path.write_text('{"epoch": 1}\n')  # the process before wrote its checkpoint of epoch 2, and no metrics any more
    log = Metrics(path, [{"epoch": 1}, {"epoch": 2}])
    assert path.read_text() == json_lines([{"epoch": 1}, {"epoch": 2}])
    log(epoch(3, loss=0.5))
    assert path.read_text() == json_lines([{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "loss": 0.5}])


def test_events_by_epoch(tmp_path):
    with closing(TensorBoard(tmp_path, 0)) as log:
        log(epoch(1, loss=0.5, lr=0.25))
        log(epoch(2, loss=0.125))
    assert events(tmp_path) == {"loss": [(1, 0.5), (2, 0.125)], "lr": [(1, 0.25)]}


def test_nested_records_have_names_like_paths(tmp_path):
    with closing(TensorBoard(tmp_path, 0)) as log:
        log(epoch(1, loss=0.5, masks={"layer1.0.conv1": {"min": 0.25, "max": 2}, "conv2": {"min": 1}}))
    assert events(tmp_path) == {
        "loss": [(1, 0.5)],
        "masks/layer1.0.conv1/min": [(1, 0.25)],
        "masks/layer1.0.conv1/max": [(1, 2)],
        "masks/conv2/min": [(1, 1)],
    }


def test_without_tensorboard_it_is_refused_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "find_spec", lambda name: None)
    with listening(tmp_path, [], tensorboard=False, on_event=None):
        pass
    with pytest.raises(RunError, match=r'pip install "qrobust\[tensorboard\]", or set it to false'):
        TensorBoard(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_a_continued_run_hides_what_it_repeats(tmp_path, monkeypatch):
    with closing(TensorBoard(tmp_path, 0)) as first:
        for number in (1, 2, 3):
            first(epoch(number, loss=1.0))
    later = time.time() + 60  # event files are read in the order of their time
    monkeypatch.setattr(time, "time", lambda: later)
    with listening(tmp_path, [{"epoch": 1}], tensorboard=True, on_event=None) as tell:
        tell(epoch(2, loss=0.5))
    assert events(tmp_path) == {"loss": [(1, 1.0), (2, 0.5)]}


def test_all_listeners_hear_the_same(tmp_path):
    heard = []
    with listening(tmp_path, [], tensorboard=True, on_event=heard.append) as tell:
        tell(record := epoch(1, loss=0.5))
    assert heard == [record]
    assert record["time"].endswith("Z")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1, "loss": 0.5}\n'
    assert events(tmp_path) == {"loss": [(1, 0.5)]}


def test_only_the_first_process_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with listening(tmp_path, [{"epoch": 1}], tensorboard=True, on_event=pytest.fail) as tell:
        tell(epoch(2))
    teller(pytest.fail)(epoch(2))
    assert not list(tmp_path.iterdir())


def test_a_listener_changes_nothing_and_one_that_raises_hears_no_more(capfd):
    calls = []

    def careless(record):
        calls.append(record["epoch"])
        record["metrics"].clear()
        if len(calls) == 2:
            raise ValueError("a server is down")

    tell, record = teller(careless), epoch(1, loss=0.5)
    assert teller(tell) is tell
    for _ in range(3):
        tell(record)
    assert record["metrics"] == {"epoch": 1, "loss": 0.5}
    assert calls == [1, 1]
    assert capfd.readouterr().err.count("on_event: expected to return, raised ValueError: a server is down") == 1
    Teller(None)(record)


# Functions by name

OWN = "heard = []\nnumber = 3\n\n\ndef listen(record):\n    heard.append(record)\n"
WRONG = {
    "listen": "FILE.py:",
    "own.py:": "FILE.py:",
    "nowhere.py:listen": "nowhere.py",
    "no_such_module:listen": "no_such_module",
    "own.py:listne": "expected a function 'listne' in own.py, got none; did you mean 'listen'?",
    "own.py:number": "expected a function 'number'",
    "broken.py:listen": "SyntaxError",
}


def test_a_function_of_a_file_and_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    listen = load_listener(f"{tmp_path}/own.py:listen")
    listen({"kind": "run"})
    assert listen.__globals__["heard"] == [{"kind": "run"}]
    assert load_listener("qrobust.train.listeners:trackio") is listeners.trackio


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_function_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("broken.py").write_text("def listen(")
    with pytest.raises(RecipeError) as error:
        load_listener(name)
    assert WRONG[name] in str(error.value)


# Trackio

EVALUATED = {
    "clean": {"accuracy": 0.75, "correct": 3},
    "worst_case": {"accuracy": 0.25},
    "attacks": {"pgd-20": {"accuracy": 0.5, "steps": 20}},
    "seconds": {"clean": 1.0},
}
RUN = {"run": "digits", "folder": "runs/mine"}
TOLD = (
    event("run", **RUN, status="started", recipe={"seed": 3}),
    epoch(1, loss=0.5, masks={"conv": {"min": 0.25}}),
    event("stage", stage="qm-32/train.json", status="written", result={"epochs": 1}),
    event("stage", stage="qm-32/eval.json", status="written", result=EVALUATED),
    event("run", **RUN, status="finished"),
)
LOGGED = [
    {"train qm-32/loss": 0.5, "train qm-32/masks/conv/min": 0.25},
    {"qm-32/eval.json/clean": 0.75, "qm-32/eval.json/worst_case": 0.25, "qm-32/eval.json/pgd-20": 0.5},
]


def test_accuracies_of_a_result():
    assert accuracies(EVALUATED) == {"clean": 0.75, "worst_case": 0.25, "pgd-20": 0.5}
    assert accuracies({"attacks": None, "bits": 4}) == {}


def init(
    project: str, name: str | None = None, group: str | None = None, space_id: str | None = None,
    server_url: str | None = None, dataset_id: str | None = None, bucket_id: str | None = None,
    config: dict | None = None, resume: str = "never", settings: object = None, private: bool | None = None,
):  # fmt: skip
    """As trackio.init begins."""


def log(metrics: dict, step: int | None = None):
    """As Run.log of trackio."""


@pytest.fixture
def calls(monkeypatch):
    """What a module with Trackio's signatures is called with."""
    heard = []

    def recorded(name, signature=lambda: None):
        def call(*given, **named):
            heard.append((name, inspect.signature(signature).bind(*given, **named).arguments))
            print("said by it")
            return run

        return call

    run = SimpleNamespace(log=recorded("log", log), finish=recorded("finish"))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=recorded("init", init)))
    monkeypatch.setattr(listeners, "find_spec", lambda name: name)
    return heard


def test_trackio_hears_of_a_run(calls, capfd):
    listener = Trackio()
    for record in TOLD:
        listener(record)
    begun = {"project": "digits", "name": "mine", "config": {"seed": 3}, "resume": "allow"}
    logged = [("log", {"metrics": LOGGED[0], "step": 1}), ("log", {"metrics": LOGGED[1]})]
    assert calls == [("init", begun), *logged, ("finish", {})]
    assert capfd.readouterr().out == ""  # where results are


def test_trackio_hears_of_a_training_alone(calls):
    Trackio()(epoch(2, loss=0.5))
    assert calls[0] == ("init", {"project": "qrobust", "name": None, "config": None, "resume": "allow"})
    assert calls[1] == ("log", {"metrics": {"train qm-32/loss": 0.5}, "step": 2})


def test_without_trackio_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(listeners, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r'pip install "qrobust\[trackio\]"'):
        Trackio()(TOLD[0])


def test_trackio_keeps_it_on_this_machine(tmp_path, monkeypatch):
    evidence("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its folder when it is loaded
    listener = Trackio()
    for record in TOLD:
        listener(record)
    with closing(sqlite3.connect(tmp_path / "digits.db")) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert [(name, json.loads(found)) for name, _, found in rows] == [("mine", found) for found in LOGGED]
    assert rows[0][1] == 1

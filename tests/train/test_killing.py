"""Killed anywhere and run again, a training ends with the bits of one that was never disturbed."""

import functools
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from qrobust import storage
from qrobust.train import METHODS, fit, listeners, methods, trainer
from qrobust.train.checkpoint import load_state
from qrobust.train.step import Average

from .helpers import are_equal, distilling, job, metrics, network, some_data, weights_of

DATA = some_data()
DROP = {"sar": {}, "awp": {"start": 1}}
WARM = {"reference": "average", "weight": 0.3}
CONSTANT = {"milestones": [], "average": {"start": 1, "kind": "exponential", "decay": 0.7}}
CASES = {
    "natural, cutmix, cyclic, exponential": {
        "method": "natural",
        "mix": {"kind": "cutmix"},
        "schedule": {**CONSTANT, "shape": "cyclic", "gradient_clip": 0.5},
    },
    "natural, low pass, equal": {"method": "natural", "low_pass": 3, "schedule": {"average": {"start": 0}}},
    "at, sarwa, awp, equal": {"method": "at", "schedule": {**DROP, "sar": WARM, "average": {}}},
    "at, n-fgsm, mixup, cosine": {
        "method": "at",
        "attack": {"kind": "n-fgsm"},
        "mix": {"kind": "mixup"},
        "schedule": {**CONSTANT, "shape": "cosine", "awp": {}},
    },
    "at, fgsm-rs, cutmix of adversarial images": {
        "method": "at",
        "attack": {"kind": "fgsm-rs", "mode": "train"},
        "mix": {"kind": "cutmix", "on": "adversarial", "loss": "ce"},
    },
    "trades, sar, awp, equal": {"method": "trades", "smoothing": 0.1, "schedule": {**DROP, "average": {"start": 1}}},
    "mart, sarwa, cosine, exponential": {
        "method": "mart",
        "schedule": {**CONSTANT, "shape": "cosine", "sar": {**WARM, "start": 2}},
    },
    "ard, awp, kurtosis": {"method": "ard", "temperature": 4, "schedule": {"awp": {"start": 1}, "kurtosis": 0.1}},
    "rslad, frozen statistics, lipschitz, equal": {
        "method": "rslad",
        "schedule": {"freeze_statistics": 2, "lipschitz": 0.01, "average": {}},
    },
}
# What is called, by whom. `fsync` stands for the middle of writing: half of the file is there.
POINTS = {
    "attack": [(methods, "pgd"), (methods, "tpgd"), (methods, "n_fgsm"), (trainer, "strong")],
    "step": [(torch.optim.SGD, "step")],
    "average": [(Average, "update_parameters"), (Average, "estimate")],
    "checkpoint": [(trainer, "save_state"), (listeners, "write_text")],
    "writing": [(storage.os, "fsync")],
    "renaming": [(Path, "replace")],
}
REACHED = {case: [point for point in POINTS if point != "average" or "average" in str(CASES[case])] for case in CASES}
EVERY = [(case, point) for case, points in REACHED.items() for point in points]
FEW = {(case, points[(i + k) % len(points)]) for i, (case, points) in enumerate(REACHED.items()) for k in (0, 4)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked process can trust no other threads, and sums must have the same order in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def whole(case):
    """A case undisturbed: how it ends, how often each point is called, and how many seconds it takes."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        counts, started = {point: watch(patch, point) for point in POINTS}, time.perf_counter()
        end = ending(case, Path(folder))
        return end, {point: next(count) - 1 for point, count in counts.items()}, time.perf_counter() - started


def ending(case, folder):
    """All tensors of the last state, momentum and averages among them, the weights given back, and the metrics."""
    model, teacher = network(), network(width=5, seed=7).eval()
    fit(model, DATA, task_of(case, folder), teacher=teacher)
    last = load_state(folder / "checkpoint" / "last.safetensors")
    return {"end": weights_of(model), "state": last.tensors}, metrics(folder)


def task_of(case, folder):
    """A case's job; with methods that have a teacher, as `Run` gives them to quantised networks."""
    settings = {**CASES[case]}
    if not METHODS[settings["method"]].teacher:
        return job(folder, **settings)
    method = settings.pop("method")
    return distilling(job(folder, **settings), method)


def watch(patch, point, call=0, die=None, late=False):
    """Count the calls of a point's functions, and die at one of them, before or after it does its work."""
    calls = itertools.count(1)

    def watched(original):
        def instead(*arguments, **options):
            now = next(calls) == call
            if now and not late:
                die(point, *arguments)
            result = original(*arguments, **options)
            if now and late:
                die(point, *arguments)
            return result

        return instead

    for owner, name in POINTS[point]:
        patch.setattr(owner, name, watched(getattr(owner, name)))
    return calls


def interrupt(point, *arguments):
    halve(point, *arguments)
    raise KeyboardInterrupt("here")


def kill(point, *arguments):
    halve(point, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)


def halve(point, *arguments):
    """What was written so far is half of the file."""
    if point == "writing":
        os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)


def is_killed(case, folder, *how):
    """Whether a training in a process of its own died of SIGKILL."""
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                watch(patch, *how)
                ending(case, folder)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def assert_equal(found, expected):
    assert all(are_equal(found[0][part], expected[0][part]) for part in ("end", "state"))
    assert found[1] == expected[1]


@pytest.mark.parametrize(
    ("case", "point"), [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.slow) for pair in EVERY]
)
def test_interrupted_at_a_random_call(tmp_path, monkeypatch, case, point):
    end, counts, _ = whole(case)
    chance = random.Random(f"{case} {point}")
    with monkeypatch.context() as patch:
        watch(patch, point, chance.randint(1, counts[point]), interrupt, chance.random() < 0.5)
        with pytest.raises(KeyboardInterrupt, match="here"):
            ending(case, tmp_path)
    assert_equal(ending(case, tmp_path), end)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1  # no half file is left


@pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="CUDA does not survive a fork")
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if i % 3 else []) for i, c in enumerate(CASES)]
)
def test_killed_twice(tmp_path, case):
    """SIGKILL leaves nobody to tidy up: half a file may lie around, and is never read."""
    end, counts, _ = whole(case)
    chance = random.Random(case)
    for point in chance.sample(["attack", "step", "checkpoint", "writing", "renaming"], 2):
        assert is_killed(case, tmp_path, point, chance.randint(1, counts[point] // 4), kill, chance.random() < 0.5)
    assert_equal(ending(case, tmp_path), end)


# Signals at moments that nobody chose

SIGNALS = {"TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "KILL": signal.SIGKILL}


def signalled(number, case, folder, seconds):
    """How a training in a process of its own ends, to which a signal comes after some time.

    The command line turns TERM and HUP into an exit of 128 + n; KILL leaves no choice.
    """
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            for handled in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(handled, lambda got, frame: sys.exit(128 + got))
            os.write(tell, b".")
            ending(case, folder)
        except SystemExit as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(0)
    os.read(ready, 1)
    os.close(ready), os.close(tell)
    time.sleep(seconds)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="CUDA does not survive a fork")
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("case", ["at, sarwa, awp, equal", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES)])
def test_signalled_at_random_moments(tmp_path, capfd, case, name):
    """The same weights in the end; where there is time to tidy up, no half file and one line that says what next."""
    (end, _, seconds), chance, number, ends = whole(case), random.Random(f"{case} {name}"), SIGNALS[name], []
    while len(ends) < 3 or not any(ends):
        if ends and not any(ends):  # over before the signal came: the undisturbed one had a busier machine
            shutil.rmtree(tmp_path)
            seconds /= 2
        ends.append(signalled(number, case, tmp_path, chance.uniform(0.1, 0.7) * seconds))
        left = [path.name for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("events.")]
        assert name == "KILL" or set(left) <= {"last.safetensors", "metrics.jsonl"}
    assert set(ends) <= {0, -number if name == "KILL" else 128 + number}
    said = capfd.readouterr().err.count("stopped; the same command continues after the last whole epoch")
    stops = ends.count(128 + number)
    assert (said > 0) == (stops > 0)
    assert said <= stops  # one may come when training is over
    assert_equal(ending(case, tmp_path), end)


def test_there_are_enough_of_them():
    assert {CASES[case]["method"] for case, _ in FEW} == set(METHODS)
    assert all(sum(pair[0] == case for pair in FEW) >= 2 for case in CASES)
    assert all(sum(pair[1] == point for pair in FEW) >= 2 for point in POINTS)

"""What the best published trainings add, together: stopped and continued, with every alignment, and by `fit`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import qrobust
from qrobust import Threat
from qrobust.errors import QrobustError
from qrobust.recipe import Data
from qrobust.train import fit, step, trainer
from qrobust.train.checkpoint import load_state

from .helpers import are_equal, job, metrics, network, some_data, some_images, weights_of

DATA, MORE = some_data(), some_images(33, 8)
EMA = {"average": {"start": 0, "kind": "exponential", "warmup": True, "statistics": "copied"}}
CYCLE = {"shape": "one-cycle", "milestones": [], "nesterov": True, "decay": "matrices"}
EXTRA = {"extra": {"name": "npz", "share": 0.7}}
RESIZED = Data(name="fake", resized_crop=(0.25, 1.0), flip=True)


def taught(method):
    return {"method": method, "teacher": {"name": "mine.py:network"}}


INGREDIENTS = {
    "ema": {"schedule": EMA},
    "one cycle": {"schedule": CYCLE},
    "extra": EXTRA,
    "ard": taught("ard"),
    "rslad": taught("rslad"),
    "resized crops": {},
}
ON_TOP = {
    "sar": {"sar": {"start": 0}},
    "sarwa": {"sar": {"start": 0, "reference": "average"}, "average": {"start": 0}},
    "awp": {"awp": {"start": 0}},
}


def trained(task, model=None, **more):
    model = model or network()
    extra = MORE if task.training.extra is not None else None
    state = fit(model, more.get("data", DATA), task, extra=extra, teacher=more.get("teacher"))
    return weights_of(model), state


@pytest.mark.parametrize("on_top", ON_TOP)
@pytest.mark.parametrize("name", INGREDIENTS)
def test_alignment_and_weight_perturbation_train_with_each(tmp_path, monkeypatch, name, on_top):
    """Every parameter moves, by finite losses, and what is on top was there."""
    options = dict(INGREDIENTS[name])
    schedule = {"epochs": 1, "milestones": []} | ON_TOP[on_top] | options.pop("schedule", {})
    task = job(tmp_path, schedule=schedule, **options)
    task = replace(task, data=RESIZED) if name == "resized crops" else task
    seen = []
    for place, called in ((step, "aligned"), (step, "perturbed")):
        original = getattr(place, called)
        monkeypatch.setattr(place, called, lambda *a, o=original, c=called, **k: seen.append(c) or o(*a, **k))
    teacher = network(seed=7).eval() if "method" in options else None
    before = weights_of(network())
    after, state = trained(task, data=some_data(validation=0), teacher=teacher)
    assert set(seen) == {"perturbed" if on_top == "awp" else "aligned"}
    assert [key for key, value in after.items() if torch.equal(value, before[key])] == []
    assert np.isfinite(state.history[0]["loss"])


def test_all_of_them_go_on_where_they_stopped(tmp_path, monkeypatch):
    """Extra images, their passes across epochs, rates, momentum, windows and the average: the same to the bit."""

    def task(name):
        made = job(tmp_path / name, schedule=EMA | CYCLE | {"epochs": 3, "sar": {"start": 1}}, **EXTRA)
        return replace(made, data=RESIZED)

    whole, state = trained(task("whole"))
    written, original = [], trainer.save_state

    def killed(*arguments):
        original(*arguments)
        written.append(1)
        if len(written) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_state", killed)
    for seed in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(task("cut"), network(seed=seed))
    again, other = trained(task("cut"), network(seed=3))
    assert are_equal(whole, again)
    assert are_equal(state.tensors, other.tensors)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert "average" in load_state(tmp_path / "cut" / "checkpoint" / "last.safetensors").best


def test_a_batch_has_its_share_and_an_epoch_is_of_the_data_set(tmp_path, monkeypatch):
    """60 images, 6 of a batch of 20: ten batches, in which 140 places are the others'."""
    seen, original = [], trainer.Stepper.step

    def watched(stepper, whole, x, y, epoch, generator):
        seen.append(len(y))
        return original(stepper, whole, x, y, epoch, generator)

    monkeypatch.setattr(trainer.Stepper, "step", watched)
    rates, sgd = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o: rates.append(o.param_groups[0]["lr"]) or sgd(o))
    trained(job(tmp_path, schedule={"epochs": 1, "shape": "cosine", "milestones": []}, **EXTRA), data=some_data(0))
    assert seen == [20] * 10
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * share / 10)) / 2 for share in range(10)])


def test_the_order_of_a_pass_hangs_on_its_number_alone(tmp_path):
    """Not on what an epoch, or a process, draws otherwise: a pass goes on in the next epoch."""
    beside, found = trainer._beside(MORE, job(tmp_path, **EXTRA)), []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(beside.order(5))
    assert torch.equal(*found)
    assert not torch.equal(found[0], beside.order(4))
    assert found[0].sort().values.tolist() == list(range(33))


def test_fit_takes_them_too(tmp_path):
    np.savez(tmp_path / "more.npz", x=MORE.x.numpy(), y=MORE.y.numpy())
    np.savez(tmp_path / "other.npz", x=255 - MORE.x.numpy(), y=MORE.y.numpy())
    quick = {"epochs": 1, "batch_size": 20, "attack": {"steps": 1}, "validation": {"steps": 1}, "method": "at"}

    def fitted(file, **more):
        extra = {"name": "npz", "root": str(tmp_path / file), "share": 0.5}
        return qrobust.fit(network(), DATA, threat=Threat("linf", 8 / 255), extra=extra, **quick, **more).model

    first = weights_of(fitted("more.npz", out=tmp_path / "run"))
    (tmp_path / "more.npz").rename(tmp_path / "moved.npz")
    assert are_equal(weights_of(fitted("moved.npz", out=tmp_path / "run")), first)
    with pytest.raises(QrobustError, match=r"train\.extra\.sha256: trained with"):
        fitted("other.npz", out=tmp_path / "run")
    assert not are_equal(weights_of(fitted("other.npz")), first)

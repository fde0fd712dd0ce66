"""`qrobust.fit`: a recipe's training on anyone's network and images; what is evaluated afterwards can be exported."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qrobust
from qrobust import Threat, devices
from qrobust.data import Images
from qrobust.errors import QrobustError
from qrobust.quant import FAT, first_unrounded, quantize, quantizers
from qrobust.train import fit as run_job

from .helpers import deeper, job, network, some_data, some_images

IMAGES = some_images(60, 0)
THREAT = Threat("linf", 8 / 255)
QUICK = {"epochs": 2, "batch_size": 20, "lr": 0.05, "attack": {"steps": 1}, "validation": {"steps": 1}}


def fit(model, data=IMAGES, **settings):
    return qrobust.fit(model, data, **{"threat": THREAT, **QUICK, **settings})


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


GIVEN = {
    "arrays": lambda: (IMAGES.x.numpy(), IMAGES.y.numpy().astype(np.int32)),
    "floats in [0, 1]": lambda: (IMAGES.x / 255, IMAGES.y.tolist()),
    "a data set of torch's": lambda: TensorDataset(IMAGES.x, IMAGES.y),
    "a loader": lambda: DataLoader(TensorDataset(IMAGES.x / 255, IMAGES.y), batch_size=7),
}


def test_data_of_every_kind_trains_alike():
    expected, given = fit(network()), network()
    before = copy.deepcopy(given)
    for make in GIVEN.values():
        fitted = fit(given, make())
        assert same(fitted.model, expected.model)
        assert fitted.history[-1]["loss"] == expected.history[-1]["loss"]
    assert same(given, before)  # a copy was trained
    assert not same(expected.model, before)
    assert not expected.model.training


def test_it_is_the_training_of_runs(tmp_path):
    data, theirs = some_data(), network()
    settings = {"epochs": 3, "batch_size": 20, "lr": 0.05, "milestones": [2], "sar": {"weight": 0.2, "start": 1}}
    more = {"attack": {"steps": 1}, "validation": {"steps": 1}, "method": "trades", "beta": 2.0}
    asked = job(tmp_path, schedule=settings, **more)
    vars(asked)["label"] = "fit"
    state = run_job(theirs, data, asked)
    fitted = qrobust.fit(network(), data, threat=THREAT, crop=1, flip=True, **settings, **more)
    assert same(fitted.model, theirs)
    assert [r["loss"] for r in fitted.history] == [r["loss"] for r in state.history]
    best = state.best["model"]
    assert (fitted.clean, fitted.robust) == (best["validation_clean"], best["validation_robust"])


@pytest.mark.parametrize("able", [True, False])
def test_a_precision_without_instructions_for_it_is_not_silently_slow(monkeypatch, capsys, able):
    monkeypatch.setattr(devices, "has_bf16", lambda: able)
    fit(network(), precision="bf16", epochs=1)
    assert ("no instructions for bf16" in capsys.readouterr().err) == (not able)
    fit(network(), precision="auto", epochs=1)
    assert "bf16" not in capsys.readouterr().err


def test_images_to_validate_on():
    assert fit(network(), validation_data=0).robust is None
    assert fit(network(), some_data(validation=0), validation_data=0.5).robust is not None
    other = fit(network(), validation_data=some_images(30, 5))
    assert 0 <= other.robust <= other.clean <= 1
    assert other.clean * 30 == pytest.approx(round(other.clean * 30))


@pytest.mark.parametrize("method", ["trades", "rslad"])
def test_a_quantised_network_ends_with_rounded_biases(method):
    taught = {"teacher": network()} if method in ("ard", "rslad") else {}
    given = deeper("normalised")
    average = {"average": {"start": 0, "kind": "equal"}, "estimate_statistics": True}
    fitted = fit(given, method=method, **taught, **average)
    for made in (fitted.model, fitted.average):
        assert first_unrounded(made) is None
        assert not same(made, given)
        assert [q.bits for q in quantizers(made)] == [q.bits for q in quantizers(given)]
    assert first_unrounded(given) is None


def test_fat_is_trained_and_folded():
    fitted = fit(deeper("none"), fat="normalised", milestones=[1])
    assert "masks" in fitted.history[-1]
    assert not any(isinstance(module, FAT) for module in fitted.model.modules())
    assert fitted.model.state_dict().keys() == deeper("none").state_dict().keys()


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    settings = {"epochs": 4, "milestones": [3], "average": {"start": 1}}
    whole = fit(network(), **settings)
    calls, write = [], qrobust.train.trainer.save_state

    def killed(*args):
        write(*args)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(qrobust.train.trainer, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), out=tmp_path, **settings)
    again = fit(network(seed=1), out=tmp_path, **settings)  # as in a process that draws other weights
    assert len(calls) == 4
    assert same(again.model, whole.model)
    assert same(again.average, whole.average)
    assert same(fit(network(), out=tmp_path, **settings).model, whole.model)
    assert len(calls) == 4
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_another_training_in_the_same_folder_is_refused(tmp_path):
    given = deeper("none")
    narrow = quantize(given, 4, calibration=IMAGES)
    fit(narrow, out=tmp_path)
    others = {
        r"train\.lr: trained with 0\.05": lambda: fit(narrow, out=tmp_path, lr=0.1),
        r"seed: trained with 0": lambda: fit(narrow, out=tmp_path, seed=1),
        r"images: trained with": lambda: fit(narrow, some_images(60, 9), out=tmp_path),
        r"threat\.eps: trained with": lambda: fit(narrow, out=tmp_path, threat=Threat("linf", 4 / 255)),
        r"start: trained with": lambda: fit(quantize(given, 4, calibration=some_images(9, 9)), out=tmp_path),
    }
    for message, call in others.items():
        with pytest.raises(QrobustError, match=message):
            call()


class Two(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))


REFUSED = {
    "no epochs": (lambda: qrobust.fit(network(), IMAGES, threat=THREAT), "fit: expected a value for 'epochs'"),
    "a slip": (lambda: fit(network(), epoch=3), "fit: unknown key 'epoch'; did you mean 'epochs'"),
    "an unknown method": (lambda: fit(network(), method="trade"), "got 'trade'; did you mean 'trades'"),
    "a rate below 0": (lambda: fit(network(), lr=-1), "fit: lr: expected greater than 0, got -1"),
    "a crop below 0": (lambda: fit(network(), crop=-1), "fit: crop: expected greater"),
    "no threat": (lambda: fit(network(), threat=8 / 255), "expected a Threat, got 0.03"),
    "no network": (lambda: fit("net"), "expected a network with weights to train, got 'net'"),
    "no weights": (lambda: fit(Two()), "expected a network with weights to train, got Two"),
    "no teacher": (lambda: fit(network(), method="ard"), "expected a teacher for method 'ard', got none"),
    "a teacher that is none": (
        lambda: fit(network(), method="ard", teacher={"name": "wide"}), "expected a network as teacher, got {'name'"
    ),
    "a teacher too many": (lambda: fit(network(), teacher=network()), "expected no teacher for method 'trades'"),
    "a distilled mix": (
        lambda: fit(network(), method="ard", teacher=network(), mix={"kind": "cutmix"}), "for mixed images, got 'ard'"
    ),
    "FAT on a quantised network": (lambda: fit(deeper("paper"), fat="paper"), "expected no fat = 'paper' for a qu"),
    "bf16 on a quantised network": (lambda: fit(deeper("paper"), precision="bf16"), "expected no precision = 'bf16'"),
    "perhaps bf16 on one": (lambda: fit(deeper("paper"), precision="auto"), "expected no precision = 'auto'"),
    "one image a channel": (lambda: fit(network(), (IMAGES.x[:, :1], IMAGES.y)), r"takes images \(2, 1, 6, 6\)"),
    "other labels": (lambda: fit(network(), Images(IMAGES.x, IMAGES.y + 1)), r"labels in \[0, 2\], got 3"),
    "other validation images": (
        lambda: fit(network(), validation_data=(IMAGES.x[:, :, :5], IMAGES.y)), r"of shape \(3, 6, 6\) as the others"
    ),
    "a share too large": (lambda: fit(network(), validation_data=0.7), "expected less than or equal to 0.5, got 0.7"),
    "no images": (lambda: fit(network(), "images"), "expected images, got str"),
    "a loss that is not finite": (lambda: fit(network(), lr=1e18), "expected a finite loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(name):
    call, message = REFUSED[name]
    with pytest.raises(QrobustError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value) or "unknown key" in str(caught.value) or "fit: " in str(caught.value)

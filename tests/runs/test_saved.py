"""`save` and `load`: the same logits from a file; what a file does not know is given, and nothing else is believed."""

import copy
import functools
import json

import pytest
import torch
from safetensors.torch import save as to_bytes
from torch import nn

import qrobust
from qrobust import models
from qrobust.errors import CheckpointError, ModelError, QrobustError, RunError
from qrobust.quant import QuantConfig, fold_fat, quantize, requantize, set_straight_through
from qrobust.runtime import Artifact
from qrobust.train.checkpoint import FORMAT, read_network, save_network

from ..quant.helpers import Plain, images, resnet

X = images(8, seed=1)


@functools.cache
def made(config):
    return quantize(resnet(), config, calibration=images()).eval()


def quantized(config=QuantConfig(4)):
    return copy.deepcopy(made(config))


NETWORKS = {
    "float": resnet,
    "with options": lambda: models.build("resnet8", in_channels=1, classes=10, activation="hardtanh").eval(),
    "quantised": quantized,
    "by patterns": lambda: quantize(
        resnet(), QuantConfig({"*": 3, "layer2.*": 8}, activation_bits=8, fat="none"), calibration=images()
    ),
    "of another width": lambda: requantize(quantized(), 2, calibration=images()).eval(),
    "without FAT": lambda: fold_fat(quantized()),
    "channels last": lambda: quantized().to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_registered_network_is_loaded_by_its_file_alone(tmp_path, name):
    given = NETWORKS[name]()
    qrobust.save(given.train(), tmp_path / "net")
    loaded = qrobust.load(str(tmp_path / "net"))
    assert not loaded.training
    assert torch.equal(loaded(X), given.eval()(X))
    qrobust.save(loaded, tmp_path / "again")  # what was loaded knows all that was saved
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


@pytest.mark.parametrize("bits", [4, 32])
def test_a_network_of_ones_own_is_given(tmp_path, bits):
    given = Plain().eval() if bits == 32 else quantize(Plain().eval(), bits, calibration=images())
    set_straight_through(given, "unclipped")
    qrobust.save(given, tmp_path / "net")
    with pytest.raises(
        CheckpointError, match=r"expected a registered network in .*net, got a 'Plain'; give the module"
    ):
        qrobust.load(tmp_path / "net")
    loaded = qrobust.load(tmp_path / "net", model=Plain())
    assert torch.equal(loaded(X), given(X))
    wrapped = nn.Sequential(nn.Identity(), given)
    qrobust.save(wrapped, tmp_path / "wrapped")
    again = qrobust.load(tmp_path / "wrapped", model=nn.Sequential(nn.Identity(), loaded))
    assert torch.equal(again(X), given(X))


def test_networks_of_a_run_and_its_artifact(small_run):
    loaded = qrobust.load(small_run / "qm-4")
    artifact = qrobust.load(small_run / "qm-4" / "artifact")
    assert torch.equal(qrobust.load(small_run)(X), qrobust.load(small_run / "qm-32")(X))
    assert not torch.equal(loaded(X), qrobust.load(small_run)(X))
    torch.testing.assert_close(artifact(X), loaded(X), atol=0.2, rtol=0.05)
    logits = Artifact.load(small_run / "qm-4" / "artifact").logits(X.numpy())
    torch.testing.assert_close(artifact(X), torch.from_numpy(logits), atol=1e-4, rtol=1e-4)
    x = X.clone().requires_grad_(True)
    artifact(x).sum().backward()
    assert x.grad.abs().sum() > 0
    for path in (small_run, small_run / "qm-4" / "artifact"):
        with pytest.raises(ModelError, match="expected no model beside"):
            qrobust.load(path, model=Plain())


def test_what_cannot_be_saved_is_refused(tmp_path):
    for given in ("net", {"a": torch.zeros(1)}):
        with pytest.raises(ModelError, match=r"expected a network \(torch\.nn\.Module\) to save, got "):
            qrobust.save(given, tmp_path / "net")
    behind = quantize(resnet(), QuantConfig(32), calibration=images())
    with pytest.raises(ModelError, match=r"without FAT to save, got one; call qrobust\.quant\.fold_fat"):
        qrobust.save(behind, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    qrobust.save(fold_fat(behind), tmp_path / "net")
    with pytest.raises(RunError, match="expected a writable place"):
        qrobust.save(resnet(), tmp_path / "net" / "below")


def changed(path, **more):
    """The file of a quantised network with another description."""
    model = quantized()
    qrobust.save(model, path)
    described, _ = read_network(path)
    save_network(path, model, {**described, **more})


DETAILS = {"bits": [4], "backward": ["clipped"], "folded": True}
DAMAGED = {
    "no pickle": lambda path: torch.save(resnet(), path),
    "an empty file": lambda path: path.write_bytes(b""),
    "half a file": lambda path: (qrobust.save(resnet(), path), path.write_bytes(path.read_bytes()[:-9])),
    "a foreign file": lambda path: path.write_bytes(to_bytes({"a": torch.zeros(2)})),
    "weights of a run": lambda path: path.write_bytes(
        to_bytes({"a": torch.zeros(2)}, metadata={FORMAT: json.dumps({"kind": "weights"})})
    ),
    "code by name": lambda path: changed(path, network={"name": "nets.py:factory", "in_channels": 1, "classes": 9}),
    "an option less": lambda path: changed(path, network={"name": "resnet8"}),
    "no table": lambda path: changed(path, network=4),
    "no configuration": lambda path: changed(path, config={"bits": 99}),
    "a strange configuration": lambda path: changed(path, config={"bit": 4}),
    "fewer quantisers": lambda path: changed(path, details=DETAILS),
    "wide quantisers": lambda path: changed(path, details={**DETAILS, "bits": [10**9]}),
    "no details": lambda path: changed(path, details=None),
    "another network": lambda path: changed(path, network={"name": "resnet20", "in_channels": 1, "classes": 10}),
    "no file": lambda _: None,
    "a folder of something else": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_network_is_refused_in_one_line(tmp_path, name):
    DAMAGED[name](tmp_path / "net")
    with pytest.raises(QrobustError, match=r"expected .* got.*; ") as caught:
        qrobust.load(tmp_path / "net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [nn.Flatten(), resnet(), quantize(Plain().eval(), 3, calibration=images())])
def test_a_module_that_the_file_is_not_of_is_refused(tmp_path, model):
    qrobust.save(quantize(Plain().eval(), 4, calibration=images()), tmp_path / "net")
    with pytest.raises(QrobustError, match=r"got.*; (save it again, or )?give the module that it was saved from"):
        qrobust.load(tmp_path / "net", model=model)

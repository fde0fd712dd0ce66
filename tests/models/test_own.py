"""Networks and weights that a user brings: found, called, checked, filled; every slip is one line."""

import hashlib
import pickle
import sys
from argparse import Namespace
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qrobust.errors import CheckpointError, ModelError
from qrobust.models import build, own

NETS = """
import blocks
from torch import nn

def plain(in_channels, classes, width=4):
    return blocks.net(in_channels, width, classes)

def usual(num_classes=10, in_chans=1):
    return blocks.net(in_chans, 2, num_classes)

def fixed():
    return blocks.net(1, 2, 1000)

def needs(depth):
    return nn.Identity()

def raises(classes):
    return {}["depth"]

def nothing(classes):
    return classes

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))
"""
BLOCKS = """
from torch import nn

def net(channels, width, classes):
    norm, pool = nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(channels, width, 3), norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(width, classes))
"""
SIZES = {"in_channels": 1, "classes": 3}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(NETS)
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / "broken.py").write_text("import no_such_package")
    (folder / "ends.py").write_text("raise SystemExit(0)")
    (folder / "late.py").write_text("def f(): raise SystemExit(1)")
    return folder / "nets.py"


@pytest.mark.parametrize("factory", ["plain", "usual", "Net"])
def test_a_factory_is_given_what_its_signature_names(nets, factory):
    network = build(f"{nets}:{factory}", **SIZES)
    own.check_network(network, factory, (1, 8, 8), 3)
    assert nets.parent.as_posix() not in sys.path


def test_options_and_packages(nets, monkeypatch):
    assert build(f"{nets}:plain", **SIZES, width=7)[0].out_channels == 7
    monkeypatch.syspath_prepend(nets.parent)
    assert build("nets:plain", **SIZES, width=5)[0].out_channels == 5
    assert own.source_of("nets:plain") == own.source_of(f"{nets}:plain") == nets
    assert own.digest_of(nets) == hashlib.sha256(NETS.encode()).hexdigest()


def test_a_changed_file_is_read_anew(tmp_path):
    """Within one second, and of one size: not by its compiled form."""
    path = tmp_path / "n.py"
    for size in (3, 4):
        path.write_text(f"from torch import nn\ndef f(): return nn.Linear({size}, 1)")
        assert build(f"{path}:f", **SIZES).in_features == size


REFUSED = {
    "nets.py:plan": "expected a function 'plan' in {nets}, got none; did you mean 'plain'?",
    "nets.py:": "expected a network as 'FILE.py:factory'",
    "net.py:plain": "no {folder}/net.py; correct the path or the name",
    "broken.py:f": "broken.py, line 1, it raised ModuleNotFoundError: No module named 'no_such_package'; mend it",
    "ends.py:f": "ends.py, line 1, it raised SystemExit: 0; mend it",  # which would be a verdict
    "late.py:f": "got SystemExit: 1 (late.py, line 1); mend it or its options",
    "nets.py:raises": "got KeyError: 'depth' (nets.py, line 18); mend it or its options",
    "nets.py:nothing": "expected a torch module of {nets}:nothing, got 3; return the network",
    "nets.py:needs": "expected options that {nets}:needs takes, got: missing a required argument: 'depth'",
}


@pytest.mark.parametrize(("name", "text"), REFUSED.items(), ids=REFUSED)
def test_a_factory_that_gives_no_network_is_refused(nets, name, text):
    with pytest.raises(ModelError) as caught:
        build(f"{nets.parent}/{name}", **SIZES)
    assert text.format(nets=nets, folder=nets.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torchvision:resnet81", "expected a classifier of torchvision, got 'resnet81'; did you mean 'resnet18'?"),
        ("no.such:net", "no.such:net, got ModuleNotFoundError: No module named 'no'"),
        ("no_such:net", "got 'no_such:net': no module no_such"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(name, text):
    with pytest.raises(ModelError) as caught:
        build(name, **SIZES)
    assert text in str(caught.value)


def test_other_options_classes_and_images_are_refused(nets):
    with pytest.raises(ModelError, match=r"plain has no option 'wdth'; did you mean 'width'\?"):
        build(f"{nets}:plain", **SIZES, wdth=3)
    with pytest.raises(ModelError, match=r"expected logits \(2, 3\) of fixed for two images, got \(2, 1000\); make it"):
        own.check_network(build(f"{nets}:fixed", **SIZES), "fixed", (1, 8, 8), 3)
    with pytest.raises(ModelError, match=r"expected plain to take images \(2, 3, 8, 8\) .*, got RuntimeError: Given"):
        own.check_network(build(f"{nets}:plain", **SIZES), "plain", (3, 8, 8), 3)


def test_torchvision_networks_have_the_classes_of_the_data():
    network = build("torchvision:squeezenet1_1", in_channels=3, classes=7)
    own.check_network(network, "squeezenet", (3, 32, 32), 7)
    with pytest.raises(ModelError, match="expected no option 'weights_backbone' of torchvision:resnet18, which loads"):
        build("torchvision:resnet18", **SIZES, weights_backbone="DEFAULT")


def test_timm_is_asked_for_where_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"expected timm for 'resnet18', got .*; pip install \"qrobust\[timm\]\""):
        build("timm:resnet18", **SIZES)
    timm, asked = ModuleType("timm"), {}
    timm.list_models = lambda: ["resnet18"]
    timm.create_model = lambda name, **options: asked.update(options) or nn.Identity()
    monkeypatch.setitem(sys.modules, "timm", timm)
    build("timm:resnet18", **SIZES, drop_rate=0.1)
    assert asked == {"pretrained": False, "num_classes": 3, "in_chans": 1, "drop_rate": 0.1}
    for name, options in (("hf-hub:a/resnet18", {}), ("resnet18", {"checkpoint_path": "x"})):
        with pytest.raises(ModelError):
            build(f"timm:{name}", **SIZES, **options)


def test_normalisation_stands_in_front(nets):
    network, x = build(f"{nets}:plain", in_channels=3, classes=3).eval(), torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5]).view(1, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(own.normalised(network, 3, (0.1, 0.2, 0.3), (0.5,))(x), network((x - mean) / std))
        assert torch.equal(own.normalised(network, 3, (), (0.5,))(x), network(x / 0.5))
    assert own.normalised(network, 3, (), ()) is network
    with pytest.raises(ModelError, match=r"expected model.mean of 1 or 3 numbers, one a channel, got 2"):
        own.normalised(network, 3, (0.1, 0.2), ())


# Weights


def network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes))


def under(prefix, tensors):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


STATE = {key: value + 1 for key, value in network().state_dict().items()}
OLD = {key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")}
OTHER = {key: value * 0 for key, value in STATE.items()}
FORMS = {
    "plain": STATE,
    "DataParallel": under("module.", STATE),
    "compiled": {"model": under("_orig_mod.module.", STATE), "epoch": 3},
    "trained by a script": {"state_dict": under("module.", STATE), "args": Namespace(lr=0.1), "best": np.float64(0.5)},
    "a checkpoint of timm": {"state_dict": STATE, "state_dict_ema": OTHER, "optimizer": {"state": {}}},
    "old": {"net": OLD},
    "an average alone": {"ema": {"model_state_dict": under("module.", STATE)}},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_usual_files(tmp_path, form):
    torch.save(FORMS[form], tmp_path / "w.pth")
    filled = network()
    own.load_weights_into(filled, tmp_path / "w.pth")
    found = filled.state_dict()
    assert all(torch.equal(found[key], STATE[key]) for key in OLD)


def test_weights_of_a_network_that_normalises_itself(tmp_path):
    """As RobustBench has them: used where the recipe normalises, else it is said."""
    path = tmp_path / "w.pt"
    torch.save({"state_dict": under("module.model.", STATE) | {"module.mu": torch.zeros(3)}}, path)
    own.load_weights_into(filled := network(), path, normalised=True)
    assert torch.equal(filled.state_dict()["3.weight"], STATE["3.weight"])
    with pytest.raises(CheckpointError, match=r"1 unexpected \(mu\); it normalises: set model.mean and model.std$"):
        own.load_weights_into(network(), path)


def test_weights_as_safetensors(tmp_path):
    save_file(under("model.", STATE), tmp_path / "w.safetensors")
    own.load_weights_into(filled := network(), tmp_path / "w.safetensors")
    assert torch.equal(filled.state_dict()["0.weight"], STATE["0.weight"])


def test_a_network_keeps_its_own_prefix(tmp_path):
    wrapped = nn.ModuleDict({"model": network()})
    torch.save(under("module.model.", STATE), tmp_path / "w.pth")
    own.load_weights_into(wrapped, tmp_path / "w.pth")
    assert torch.equal(wrapped.state_dict()["model.0.weight"], STATE["0.weight"])


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path):
    torch.save({"state_dict": under("module.", STATE) | {"head.weight": torch.ones(1)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        own.load_weights_into(nn.Sequential(*network(5), nn.BatchNorm1d(5)), tmp_path / "w.pth")
    assert str(caught.value) == (
        f"expected weights of this network in {tmp_path / 'w.pth'}, got others: "
        "4 missing (4.bias, 4.running_mean, 4.running_var, …); 1 unexpected (head.weight); "
        "2 of another shape (3.weight (3, 144), not (5, 144), 3.bias (3,), not (5,))"
    )


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", [Harmful(), network(), {"state_dict": STATE, "hook": Harmful()}])
def test_pickled_code_is_refused_and_not_run(tmp_path, capsys, content):
    torch.save(content, tmp_path / "w.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content))
    for name in ("w.pth", "plain.pt"):
        with pytest.raises(
            CheckpointError, match=r"expected tensors alone in .*, got pickled code \(\S+\), which is not run"
        ):
            own.load_weights_into(network(), tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.pth", None, "expected weights at .*none.pth, got no file; correct the path"),
        ("w.txt", b"", "expected weights as .safetensors, .pth or .pt, got .*w.txt; save model.state_dict"),
        ("w.pth", b"PK\x03\x04cut", "expected whole weights in .*w.pth, got .*; write the file anew"),
        ("w.safetensors", b"\x09", "expected whole weights in .*w.safetensors, got .*; write the file anew"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        own.load_weights_into(network(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_without_names_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"expected weights by name in .*, got none; save model.state_dict\(\)"):
        own.load_weights_into(network(), tmp_path / "w.pth")

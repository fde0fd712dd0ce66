"""One file, two faces: the session's logits and the module's gradient."""

import numpy as np
import pytest
import torch

from qrobust.deployed.model import Gradient, open_deployed
from qrobust.errors import GraphError
from qrobust.runtime import ArtifactError

from ..onnx_module.helpers import text_model
from ..test_runtime import model_bytes
from .linear import MATRIX, PLAIN, artifact, camera, masked, takes_bytes

X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def slope(network, x=X):
    x = x.clone().requires_grad_(True)
    network(x)[:, 1].sum().backward()
    return x.grad


def expected_slope():
    return torch.from_numpy(MATRIX[:, 1]).view(1, 1, 4, 4).expand(len(X), -1, -1, -1)


def test_value_of_the_session_gradient_of_the_module(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one"))
    through, served = deployed.through(deployed.served(), "identity"), deployed.served()
    torch.testing.assert_close(through(X), served(X))
    torch.testing.assert_close(slope(through), expected_slope())
    assert not served(X.clone().requires_grad_(True)).requires_grad
    assert deployed.forms == ("identity",)  # nothing is rounded


def test_forms_share_one_module_and_do_not_mix(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one", masked()))
    assert deployed.forms == ("identity", "clipped", "soft")
    identity, clipped = (deployed.gradient(form) for form in ("identity", "clipped"))
    x = X.clone().requires_grad_(True)
    first = identity(x)[:, 1].sum()
    torch.testing.assert_close(slope(clipped), expected_slope())
    first.backward()  # after another form ran
    torch.testing.assert_close(x.grad, -999 * expected_slope(), rtol=1e-4, atol=1e-4)
    assert identity.module is clipped.module


def test_bytes_are_rounded_and_passed_whole(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one", camera(), takes_bytes))
    gradient, served = deployed.gradient(), deployed.served()
    torch.testing.assert_close(gradient(X), served(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope(gradient), expected_slope(), atol=1e-5, rtol=1e-4)
    near = X.mul(255).round().add(0.4).clamp(0, 255) / 255
    assert torch.equal(gradient(near), gradient(near.mul(255).round() / 255))
    assert isinstance(gradient, Gradient)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_bare_file(tmp_path, batch):
    path = tmp_path / "bare.onnx"
    path.write_bytes(model_bytes(batch=batch))
    deployed = open_deployed(path)
    assert (deployed.name, deployed.artifact) == ("bare", None)
    torch.testing.assert_close(deployed.served()(X), deployed.gradient()(X))


def test_the_file_is_the_state(tmp_path):
    states = [open_deployed(artifact(tmp_path / name, data)).served().identity.tolist()
              for name, data in (("a", PLAIN), ("b", PLAIN), ("c", masked()))]  # fmt: skip
    assert states[0] == states[1] != states[2]


def test_what_cannot_be_attacked_is_said_in_one_line(tmp_path):
    path = tmp_path / "some.onnx"
    for data, expected in (
        (model_bytes(batch=3), "any number of images, got one for 3"),
        (text_model("a = Det (x)", shape="N, 3, 8, 8").SerializeToString(), "got Det"),
        (b"nothing", "expected an ONNX file"),
    ):
        path.write_bytes(data)
        with pytest.raises(GraphError, match=expected):
            open_deployed(path)
    with pytest.raises(ArtifactError, match="expected an artifact"):
        open_deployed(tmp_path / "nowhere")
    path.write_bytes(PLAIN)
    with pytest.raises(GraphError, match="to run on images"):
        open_deployed(path).served()(torch.rand(2, 3, 4, 4))


def test_levels_are_of_the_file(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one"))
    found = [deployed.at(level)(X.numpy()) for level in ("disable", "all")]
    np.testing.assert_allclose(*found, rtol=1e-5)

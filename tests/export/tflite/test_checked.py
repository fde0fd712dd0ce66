"""A trained network as a whole artifact for LiteRT: exported by the command line, checked, and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qrobust
from qrobust.data import DataSettings, load
from qrobust.export.parity import parity
from qrobust.export.target import load_target
from qrobust.export.write import written
from qrobust.models import build
from qrobust.quant import quantize
from qrobust.runtime import LiteRtSession, litert_module
from qrobust.storage import described, read_json, write_json

from ...conftest import CommandLine, evidence
from ..helpers import runtime_logits

XNNPACK, EXPORT = "litert-xnnpack", Path(__file__).resolve().parents[3] / "export"


@pytest.fixture(autouse=True)
def _installed() -> None:
    evidence("ai-edge-litert")


def stretch(folder: Path, factor: float) -> None:
    """The weights of the first layer are said to be so many times as large; the manifest agrees with the file."""
    schema, path = litert_module("schema_py_generated"), folder / "model.tflite"
    flatbuffers = pytest.importorskip("flatbuffers")  # which ai-edge-litert brings
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    grids = (one.quantization for one in model.subgraphs[0].tensors if one.quantization is not None)
    first = next(grid for grid in grids if grid.scale is not None and len(grid.scale) > 1)
    first.scale = np.float32(factor) * first.scale
    builder = flatbuffers.Builder(2**16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    manifest = read_json(folder / "manifest.json")
    manifest["files"]["model.tflite"] = described(path.read_bytes())
    write_json(folder / "manifest.json", manifest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "kernels"), [("litert", {"DELEGATE"}), ("litert-micro", {"CONV_2D", "FULLY_CONNECTED"})]
)
def test_a_run_is_exported_checked_and_a_fault_is_found(
    target: str, kernels: set[str], small_run: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    # Where some images are gained, 120 of them show a drop of a fifth, not of a tenth.
    stated = (EXPORT / f"{target}.toml").read_text()
    (tmp_path / "mine.toml").write_text(f"{stated}\n[statistics]\ndetected_drop = 0.2\n")
    assert command_line("export", str(small_run), "--target", "mine.toml", "--out", "phone")[0] == 0
    artifact = tmp_path / "phone" / "qm-4"
    ran = read_json(artifact / "manifest.json")["metrics"]["after_kernels"]
    assert kernels <= set(ran)
    assert target == "litert-micro" or ran == {"DELEGATE": 1}

    code, said, error = command_line("check", "phone/qm-4", "--queries", "50", "--json", "sound.json")
    assert code == 0, said + error
    assert read_json(tmp_path / "sound.json")["passed"]
    stretch(artifact, 3.0)
    assert command_line("check", "phone/qm-4", "--queries", "50", "--json", "broken.json")[0] == 1
    verdicts = {one["name"]: one["passed"] for one in read_json(tmp_path / "broken.json")["verdicts"]}
    assert not verdicts["label_flips"]
    attacked = command_line("attack", "phone/qm-4", "--attacks", "pgd-5", "-n", "40", "--json", "attacked.json")
    assert attacked[0] == 0, attacked[2]
    assert "module-differs" in {flag["name"] for flag in read_json(tmp_path / "attacked.json")["flags"]}


@pytest.mark.slow
def test_a_trained_mobilenet_is_one_delegate_that_agrees() -> None:
    """Its signed activations have a second, bounded quantiser before sums, which kernels of int8 miss by a step."""
    data, threat = load(DataSettings("digits")), qrobust.Threat("linf", 8 / 255)
    torch.manual_seed(0)
    network = build("mobilenet_v2", in_channels=1, classes=10)
    settings = {"threat": threat, "method": "natural", "epochs": 1, "batch_size": 64, "validation_data": 0.1}
    network = qrobust.fit(network, data.train, lr=0.05, **settings).model
    x = data.train.x[:128].float() / 255
    quantised = quantize(network, 4, calibration=[x], estimate_statistics=True)
    model = qrobust.fit(quantised, data.train, lr=0.01, **settings).model.eval()

    images = data.test.x.float() / 255
    made = written(model, images[:1], load_target("litert"))
    session = LiteRtSession(made.tflite, XNNPACK, 1)
    assert session.kernels == {"DELEGATE": 1}
    (logits,), expected = session.run(None, {"x": images.numpy()}), runtime_logits(made.data, images.numpy())
    assert (expected.argmax(1) == data.test.y.numpy()).mean() >= 0.2
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    found = parity(model, made.data, images[:32], activations=made.activations, runtime=XNNPACK, forced=True)
    assert found.share < 1e-4
    assert max(layer.largest for layer in found.layers) <= 1

"""Brevitas' file, before any step of ours."""

import onnx
import onnxruntime
import pytest
import torch

from qrobust.export.write import INPUT, OPSET, OUTPUT, write_qcdq
from qrobust.quant import fold_fat, quantize
from qrobust.quant._brevitas import WeightQuantProxyFromInjector

from .helpers import images, resnet


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


@pytest.mark.parametrize("bits", [2, 5, 32])
def test_the_file_computes_what_torch_does(tmp_path, bits):
    model = resnet() if bits == 32 else quantize(resnet(), bits, calibration=[images()])
    model = fold_fat(model).eval()
    write_qcdq(model, images(1), tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(images(7))
    difference = (run(tmp_path / "model.onnx", images(7)) - expected).abs().amax(1)
    assert difference.median() < 1e-5
    graph = onnx.load(tmp_path / "model.onnx")
    assert graph.opset_import[0].version == OPSET
    kinds = {node.op_type for node in graph.graph.node}
    assert ("DequantizeLinear" in kinds) == (bits < 32)


def test_proxies_are_fast_again_afterwards_even_after_an_error(tmp_path):
    model = fold_fat(quantize(resnet(), 4, calibration=[images(8)])).eval()
    with pytest.raises(RuntimeError):
        write_qcdq(model, images(1, channels=3), tmp_path / "model.onnx")
    proxies = [m for m in model.modules() if isinstance(m, WeightQuantProxyFromInjector)]
    assert proxies
    assert all(proxy.skip_create_quant_tensor for proxy in proxies)

"""`attack` on files that others make: onnxruntime's quantiser, torchvision through torch.onnx."""

import logging
import warnings

import numpy as np
import onnxruntime.quantization as ort
import pytest
import torch
from torch import nn

from qrobust.deployed.attack import Settings, attack_deployed
from qrobust.deployed.model import find_images, open_deployed
from qrobust.torchvision_cpu import import_torchvision

SIDE = 8


class Batches(ort.CalibrationDataReader):
    def __init__(self, x):
        self.left = iter([{"x": x}])

    def get_next(self):
        return next(self.left, None)


def exported(model, path, side=SIDE):
    named = {"input_names": ["x"], "output_names": ["logits"], "dynamic_axes": {"x": {0: "n"}, "logits": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (torch.rand(2, 3, side, side),), str(path), dynamo=False, **named)
    return path


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))


def result_of(path, side, *names, n=12):
    deployed = open_deployed(path)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), np.uint8)
    labels = deployed.served()(torch.from_numpy(pixels.astype(np.float32) / 255)).argmax(1).numpy()
    np.savez(path.with_suffix(".npz"), x=pixels, y=labels)
    return attack_deployed(deployed, find_images(deployed, str(path.with_suffix(".npz"))), Settings(attacks=names))


@pytest.mark.parametrize("form", list(ort.QuantFormat), ids=str)
def test_static_quantisation(tmp_path, form):
    logging.getLogger().setLevel(logging.ERROR)
    source, path = exported(small(), tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    x = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).numpy()
    settings = {"quant_format": form, "per_channel": True, "reduce_range": True}  # 8 bits saturate without VNNI
    ort.quantize_static(str(source), str(path), Batches(x), **settings)
    result = result_of(path, SIDE, "pgd-10", "square-20")
    assert result["clean"]["accuracy"] == 1
    assert result["attacks"]["pgd-10"]["settings"]["backward"] == ["identity", "clipped", "soft"]
    assert result["worst_case"]["accuracy"] <= result["attacks"]["square-20"]["accuracy"] < 1
    assert not {"module-differs", "level-differs", "zero-gradient"} & {flag["name"] for flag in result["flags"]}


def transformer():
    torch.manual_seed(0)
    model = import_torchvision().models.VisionTransformer(SIDE, 4, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model


def convnext():
    torch.manual_seed(0)
    models = import_torchvision().models
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], layer_scale=1.0, num_classes=5)


KINDS = [
    (transformer, "int8"),
    (transformer, "float"),
    (transformer, "dynamic"),
    (convnext, "float"),
    (convnext, "int8"),
]


@pytest.mark.parametrize(
    ("make", "kind"), [KINDS[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in KINDS[1:])]
)
def test_transformers_float_and_quantised(tmp_path, make, kind):
    logging.getLogger().setLevel(logging.ERROR)
    source = exported(make(), tmp_path / "float.onnx")
    x = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).numpy()
    if kind == "int8":
        ort.quantize_static(str(source), str(tmp_path / "int8.onnx"), Batches(x), per_channel=True, reduce_range=True)
    if kind == "dynamic":
        ort.quantize_dynamic(str(source), str(tmp_path / "dynamic.onnx"), op_types_to_quantize=["MatMul", "Gemm"])
    result = result_of(tmp_path / f"{kind}.onnx", SIDE, "pgd-10")
    assert result["clean"]["accuracy"] == 1
    assert result["worst_case"]["accuracy"] < 1
    assert not {"module-differs", "zero-gradient"} & {flag["name"] for flag in result["flags"]}


def test_the_logits_of_an_image_do_not_depend_on_those_beside_it(tmp_path):
    """Where a range is measured on what is passed, images are passed one by one."""
    path = exported(small(), tmp_path / "float.onnx")
    ort.quantize_dynamic(str(path), str(path.with_name("dynamic.onnx")), op_types_to_quantize=["Gemm"])
    deployed = open_deployed(path.with_name("dynamic.onnx"))
    x = torch.rand(4, 3, SIDE, SIDE) * torch.tensor([1, 0.1, 0.01, 0.5]).view(4, 1, 1, 1)
    alone = torch.cat([deployed.served()(one[None]) for one in x])
    torch.testing.assert_close(deployed.served()(x), alone)
    torch.testing.assert_close(deployed.gradient()(x), alone, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_autoattack_on_a_float_network(tmp_path):
    result = result_of(exported(small(), tmp_path / "float.onnx"), SIDE, "apgd-t", "autoattack", n=4)
    assert result["attacks"]["autoattack"]["settings"]["backward"] == ["identity"]
    assert result["worst_case"]["accuracy"] <= result["attacks"]["apgd-t"]["accuracy"]


@pytest.mark.slow
def test_a_network_of_torchvision(tmp_path):
    torch.manual_seed(0)
    model = import_torchvision().models.resnet18(weights=None, num_classes=10)
    result = result_of(exported(model, tmp_path / "resnet18.onnx", 32), 32, "pgd-3", "square-10", n=4)
    assert result["n"] == 4
    assert result["attacks"]["pgd-3"]["accuracy"] < 1
    assert "module-differs" not in {flag["name"] for flag in result["flags"]}

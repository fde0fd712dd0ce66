"""Thirty networks of torchvision and timm through the whole path: captured, written, run, compared, attacked, trained.

    python benches/networks.py [NAME ...] [--bits 8 4] [--json benches/results/networks.json]

At random weights, with batch-norm's statistics of the images, and the smallest images that each takes: what is asked is
whether the path holds, not how well a network is right. Each width has 8-bit activations. A network that is in the JSON
already is left out, so that a stopped run goes on; each row has its commit. timm's need the package timm.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import record
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qrobust.attacks import PgdConfig, pgd
from qrobust.errors import QrobustError
from qrobust.export.parity import parity
from qrobust.export.target import load_target
from qrobust.export.write import check_ops, written
from qrobust.models import build
from qrobust.models.inference import estimate_statistics
from qrobust.onnx_module import load_onnx
from qrobust.quant import QuantConfig, cost, parameter_groups, quantize
from qrobust.storage import read_json, write_json
from qrobust.threat import Threat
from qrobust.torchvision_cpu import import_torchvision

TORCHVISION = {
    "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32, "densenet121": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32, "shufflenet_v2_x1_0": 32,
    "squeezenet1_1": 32, "googlenet": 64, "inception_v3": 96, "mnasnet1_0": 32, "regnet_y_400mf": 32,
    "convnext_tiny": 32, "swin_t": 64, "swin_v2_t": 64, "vit_b_16": 32, "maxvit_t": 64, "vgg11_bn": 32,
}  # fmt: skip
TIMM = {
    "vit_tiny_patch16_224": 32, "deit_tiny_patch16_224": 32, "convnextv2_atto": 32, "mobilenetv4_conv_small": 32,
    "repvit_m0_9": 32, "efficientformerv2_s0": 64, "resnet26d": 32, "levit_128": 224, "xcit_nano_12_p16_224": 32,
    "mobileone_s0": 32,
}  # fmt: skip
SIZED = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "efficientformerv2_s0")  # that are made for one image size
AUXILIARY = ("AuxLogits", "aux1", "aux2")
CLASSES, IMAGES, THREAT = 10, 8, Threat("linf", 8 / 255)


def make(name: str) -> tuple[nn.Module, int]:
    """The network at random weights, in eval mode, and the side of its images."""
    torch.manual_seed(0)
    models = import_torchvision().models
    if name in TIMM:
        size = TIMM[name]
        options = {"img_size": size} if name in SIZED else {}
        model = build(f"timm:{name}", in_channels=3, classes=CLASSES, **options)
    else:
        size = TORCHVISION[name]
        options = {"vit_b_16": {"image_size": size}, "googlenet": {"init_weights": False}}.get(name, {})
        if name == "inception_v3":
            options = {"init_weights": False}
        if name == "maxvit_t":  # the same blocks, at partitions that divide small images
            model = models.maxvit.MaxVit(
                input_size=(size, size), stem_channels=64, block_channels=[64, 128, 256, 512],
                block_layers=[2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2, partition_size=2,
                num_classes=CLASSES,
            )  # fmt: skip
        else:
            model = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    return lived_in(model, size), size


def lived_in(model: nn.Module, size: int) -> nn.Module:
    """Classifiers that begin at 0 give something; statistics are those of images."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        heads = {name: head for name in AUXILIARY if isinstance(head := getattr(model, name, None), nn.Module)}
        for name in heads:  # they want larger images
            setattr(model, name, None)
        estimate_statistics(model, [images(size, 32)])
        for name, head in heads.items():
            setattr(model, name, head)
    return model.eval()


def images(size: int, n: int = IMAGES) -> Tensor:
    """Blurred noise on the 8-bit grid, (n, 3, size, size)."""
    noise = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    smooth = F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return (((smooth - 0.5) * 3 + 0.5).clamp(0, 1) * 255).round() / 255


def attempt(model: nn.Module, size: int, bits: int) -> dict[str, Any]:
    """All of the path for one network and width; "failed" says where it ended."""
    x, y = images(size), torch.arange(IMAGES) % CLASSES
    row: dict[str, Any] = {"size": size, "bits": bits}
    try:
        begun = time.process_time()
        made = quantize(model, QuantConfig(bits, activation_bits=8, fat="none"), calibration=x)
        row["quantize_s"] = round(time.process_time() - begun, 2)
        made.eval()
        row["integer_share"] = round(cost(made, x[:1]).integer_share, 4)
        target = load_target("ort-cpu")
        begun = time.process_time()
        file = written(made, x[:1], target)
        row["write_s"] = round(time.process_time() - begun, 2)
        row["bytes"] = len(file.data)
        check_ops(file.data, target, made)
        row["differences"] = _loaded(file.data, x)
        alone = parity(made, file.data, x, activations=file.activations, forced=True)
        row["steps"] = max((layer.largest for layer in alone.layers), default=0)
        row["rebuilt"], row["attacked"] = _attacked(file.data, x, y)
        row["trained"] = _step(made, x, y)
    except QrobustError as error:
        row["failed"] = str(error)
    row["passed"] = "failed" not in row and row["steps"] <= 1 and row["attacked"] and row["trained"]
    return row


def _step(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a step of SGD has finite gradients for all parameters, and moves some."""
    optimizer = torch.optim.SGD(parameter_groups(model.train(), lr=1e-6, weight_decay=0.0), momentum=0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.numel() < 10_000}
    F.cross_entropy(model(x), y).backward()
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    optimizer.step()
    moved = any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    return bool(finite and moved)


def _loaded(data: bytes, x: Tensor) -> dict[str, float]:
    """Largest difference of logits between the session with the option against saturation, and the one without."""
    logits = []
    for option in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        options.add_session_config_entry("session.x64quantprecision", option)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        logits.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    scale = max(float(np.abs(logits[0]).max()), 1e-30)
    return {"options": float(np.abs(logits[0] - logits[1]).max()) / scale}


def _attacked(data: bytes, x: Tensor, y: Tensor) -> tuple[float, bool]:
    """How far the rebuilt module's logits lie from the session's, and whether a step of PGD moves images by them."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    module = load_onnx(data)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        distance = float((module(x) - torch.from_numpy(logits)).abs().max()) / max(float(np.abs(logits).max()), 1e-30)
    moved = pgd(module, x, y, threat=THREAT, config=PgdConfig(steps=2, random_start=False))
    return distance, bool((moved - x).abs().mean() > THREAT.eps / 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=[*TORCHVISION, *TIMM])
    parser.add_argument("--bits", nargs="*", type=int, default=[8, 4])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    origin = record.origin()
    rows = read_json(given.json)["rows"] if given.json and given.json.is_file() else {}
    for name in given.names:
        for bits in given.bits:
            key = f"{name}-w{bits}a8"
            if key not in rows:
                rows[key] = {**attempt(*make(name), bits), "commit": origin["commit"]}
                print(key, rows[key], flush=True)
                if given.json:
                    write_json(given.json, {**origin, "rows": rows})
    passed = sum(row["passed"] for row in rows.values())
    print(f"{passed} of {len(rows)} passed")


if __name__ == "__main__":
    main()

"""What layers hand on: low against high frequencies of the first, likeness of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ... import devices
from ...models.inference import frozen
from ...progress import bar
from ...runs.folder import FLOAT
from ...spectrum import Alignment, first_activation, layer_names, low_to_high, network_cka
from ...spectrum.similarity import LEAST, gram, layer_grams
from ...storage import read_lines
from ..cases import Case
from .numbers import numbers

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
PRODUCTS = ("Conv", "Gemm", "MatMul")  # operators of a graph that stand for layers


def frequency_ratio(case: Case) -> dict[str, Any]:
    """R of the first activation: quantiles over the test images, and its mean on training images after every epoch.

    The latter only where `train.log_frequency_ratio` was set.
    """
    with frozen(case.model):
        ratios = torch.cat([low_to_high(first_activation(case.model, x)).cpu() for x, _ in case.batches()])
    quantiles = torch.quantile(ratios.double(), torch.tensor(LEVELS, dtype=torch.float64))
    return {
        "mean": float(ratios.mean()),
        "levels": list(LEVELS),
        "quantiles": numbers(quantiles),
        "epochs": _logged(case),
    }


def similarity(case: Case) -> dict[str, Any]:
    """Linear CKA between all layers of the network, on its adversarial images."""
    return _between(case, case.model, case.model)


def similarity_to_float(case: Case) -> dict[str, Any] | None:
    """Linear CKA between the layers of a quantised network and of the float one, on the former's adversarial images."""
    return None if case.bits == FLOAT else _between(case, case.model, case.run.network(FLOAT))


@torch.no_grad()
def similarity_to_artifact(case: Case) -> dict[str, Any] | None:
    """Linear CKA between the network's layers and those of its artifact, computed by a torch twin of the graph.

    On adversarial images rounded to 8 bits. Batch-norm counts with the convolution before it, as in the graph.
    """
    path = case.folder / "artifact" / "model.onnx"
    if not path.exists():
        return None
    from ...onnx_module import twin

    deployed, alignment = twin(path).to(devices.device_of(case.model)), Alignment()
    names = layer_names(case.model)
    products = [step.node.outputs[0] for step in deployed.plan.steps if step.node.op in PRODUCTS]
    batches = case.adversarial()
    with frozen(case.model), _moving(case) as moving:
        for _, x_adv, _ in batches:
            x = (x_adv * 255).round() / 255
            if len(x) >= LEAST:
                alignment.update(layer_grams(case.model, names, x), _deployed_grams(deployed, products, x))
            moving.advance(len(x))
    return {"layers": names, "other_layers": products, "cka": numbers(alignment.value())}


def _between(case: Case, first: nn.Module, second: nn.Module) -> dict[str, Any]:
    batches: Iterator[Tensor] = (x_adv for _, x_adv, _ in case.adversarial())
    # A batch-norm that is folded would count with the convolution before it.
    with frozen(first, fold=False), frozen(second, fold=False), _moving(case) as moving:
        cka = network_cka(first, second, batches, on_step=moving.advance)
    return {"layers": layer_names(first), "other_layers": layer_names(second), "cka": numbers(cka)}


def _deployed_grams(deployed: Any, names: list[str], x: Tensor) -> list[Tensor]:
    if deployed.plan.images.dtype == torch.uint8:  # a camera's bytes, channels last
        x = (x * 255).round().byte().permute(0, 2, 3, 1)
    parts = [deployed.inside(part) for part in torch.split(x, deployed.plan.batch or len(x))]
    return [gram(torch.cat([part[name] for part in parts])) for name in names]


def _logged(case: Case) -> list[list[float]]:
    records = read_lines(case.folder / "metrics.jsonl")
    return [[record["epoch"], record["frequency_ratio"]] for record in records if "frequency_ratio" in record]


def _moving(case: Case) -> Any:
    return bar(f"{case.label}: similarity", len(case.images), "images")

"""The card of a network in the zoo, in the form that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..headline import Headline, Number, headlines, numbers, percent
from .packing import WITHOUT_FILES

PIPELINE = "image-classification"


def card(index: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """README.md: what it is, its numbers by place, how it is had. index: of zoo.json; result: of result.json."""
    network, of_float = result["network"], result["float_model"]
    said = headlines([of_float, network])[1]
    return "\n".join([*_front(index, network), "", *_text(index, result, said), "", *_use(index), ""])


def _front(index: Mapping[str, Any], network: Mapping[str, Any]) -> list[str]:
    data = json.dumps(index["data"]["name"])
    metrics = [("clean, in torch", network["before"]["clean"]["accuracy"])]
    metrics += [(f"under attack, {one.where}, n = {one.n}", one.accuracy) for one in numbers(network)]
    return [
        "---",
        f"license: {index['license']}",
        "library_name: onnx",
        f"pipeline_tag: {PIPELINE}",
        f"tags: [onnx, quantized, adversarial-robustness, {PIPELINE}, qrobust]",
        f"datasets: [{data}]",
        "metrics: [accuracy]",
        "model-index:",
        f"- name: {json.dumps(index['name'])}",
        "  results:",
        f"  - task: {{type: {PIPELINE}}}",
        f"    dataset: {{name: {data}, type: {data}, split: test}}",
        "    metrics:",
        *(f"    - {{type: accuracy, name: {json.dumps(name)}, value: {value!r}}}" for name, value in metrics),
        "---",
    ]


def _text(index: Mapping[str, Any], result: Mapping[str, Any], said: Headline) -> list[str]:
    network, of_float = result["network"], result["float_model"]
    rows = [f"| {one.where} | {one.n} | {_cell(one)} | {_beside(one, of_float)} |" for one in numbers(network)]
    clean, of_it = network["before"]["clean"], of_float["before"]["clean"]
    return [
        f"# {index['name']}",
        "",
        f"{index['description'].rstrip('.')}. Verdict: {said.words}. {said.detail}",
        "",
        "| images | n | kept, % (95 % interval) | float model |",
        "|---|---|---|---|",
        f"| clean, in torch | {network['before']['n']} | {percent(clean['accuracy'])} | {percent(of_it['accuracy'])} |",
        *rows,
        "",
        "Replayed adversarial examples can only overestimate robustness; an attack can be stronger than any of these.",
        "",
        f"{network['size_bytes']} bytes of model.onnx; {_latency(network)}.",
    ]


def _cell(one: Number) -> str:
    return f"{percent(one.accuracy)} ({one.interval})"


def _beside(one: Number, of_float: Mapping[str, Any]) -> str:
    """The float model at the same place on the same images."""
    same = [other for other in numbers(of_float) if (other.place, other.images) == (one.place, one.images)]
    return percent(min(other.accuracy for other in same)) if same else "–"


def _latency(network: Mapping[str, Any]) -> str:
    cells = [f"{row['speedup']:.2f} times the float model's speed at batch {batch}"
             for batch, row in network["latency"].items() if row["speedup"]]  # fmt: skip
    return ", ".join(cells) or "latency not compared"


def _use(index: Mapping[str, Any]) -> list[str]:
    name, data = index["name"], index["data"]["name"]
    root = "" if data in WITHOUT_FILES else " --root DIR"
    return [
        "```sh",
        f"qrobust zoo get {name} --out {name}{root}   # its test suite is rebuilt from your copy of {data}",
        f"qrobust check {name}",
        "```",
        "",
        f'In Python `qrobust.load("zoo:{name}")` gives the torch network and its float model; for that no data are '
        "needed.",
        "Inputs lie in [0, 1]; normalisation is inside the network. No image of the data set is here: "
        "`perturbations.npz` holds",
        f"positions and changes alone. Made by {index['producer']}.",
    ]

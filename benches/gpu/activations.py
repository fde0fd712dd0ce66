"""Activations as QuantizeLinear and DequantizeLinear beside Div, Round, Clip, Mul: which graph CUDA runs faster.

    python benches/gpu/activations.py OUT [--run resnet20=RUN] [--run resnet18=RUN] [--provider cpu]

Both graphs are of one artifact of the target `ort-cuda`, ResNet-20 and ResNet-18 at QM-8/4/2, so weights, scales and
biases are the same bytes; only the activations of the second are rewritten, and a bound below a byte's becomes a Clip
in front. First both run on the CPU provider: computed in float32 their logits must be equal to the bit. Then in turns
on the provider, batch 1, 32, 256, images from the host and logits back to it. RUN is a run folder, whose trained
networks are taken; else weights are random, which speed does not mind, and what float16 cannot carry of them is left
out. A row has the nodes that each graph became, where they ran, and the ratio of times with its interval.

Each network at one batch size leaves OUT/activations/PART.json; parts that are there are not done again. Exit code 2
without the provider, 1 where the graphs differ. `--provider cpu` is a look at the script: it says nothing of CUDA.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import record
import specimens

from qrobust.bench.executed import executed, placement
from qrobust.bench.timing import ratio_interval, statistics
from qrobust.errors import ParityError, QrobustError
from qrobust.export.sessions import PROVIDERS, Bound, artifact_session, opened, require
from qrobust.export.target import load_target
from qrobust.runs.run import Run
from qrobust.runtime import Artifact, ArtifactError, time_sessions
from qrobust.storage import write_json

BATCHES = (1, 32, 256)
CHAIN, PAIRS = "Div, Round, Clip, Mul", "QuantizeLinear, DequantizeLinear"
BYTES = {False: (np.uint8, 0, 255), True: (np.int8, -128, 127)}


def as_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose chains of Div, Round, Clip and Mul by one scale are QuantizeLinear and DequantizeLinear.

    Bounds that are not a byte's become a Clip of what is quantised. Raises QrobustError if there is no such chain.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    reads: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            reads.setdefault(name, []).append(node)
    gone: set[str] = set()
    made: dict[str, list[onnx.NodeProto]] = {}  # by the output of the Mul in whose place they come

    def constant(value: Any, name: str) -> str:
        if name not in constants:
            constants[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    for div in graph.node:
        found = chain(div, reads)
        if found is None:
            continue
        rounded, clip, mul = found
        scale, low, high = div.input[1], constants[clip.input[1]], constants[clip.input[2]]
        signed = bool(low < 0)
        kind, least, most = BYTES[signed]
        zero = constant(np.array(0, kind), f"pairs.{np.dtype(kind)}")
        x, nodes = div.input[0], []
        if (low, high) != (least, most):
            bounds = [constant((bound * constants[scale]).astype(low.dtype), f"{div.output[0]}.{side}")
                      for side, bound in (("low", low), ("high", high))]  # fmt: skip
            x = f"{div.output[0]}.bounded"
            nodes.append(helper.make_node("Clip", [div.input[0], *bounds], [x]))
        codes = f"{div.output[0]}.codes"
        nodes.append(helper.make_node("QuantizeLinear", [x, scale, zero], [codes]))
        nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [mul.output[0]]))
        made[mul.output[0]] = nodes
        gone |= {one.output[0] for one in (div, rounded, clip)}
    if not made:
        raise QrobustError("expected Div, Round, Clip and Mul in the graph, got none; export for ort-cuda")
    nodes = [new for node in graph.node if node.output[0] not in gone for new in made.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)
    onnx.checker.check_model(model, full_check=True)
    return model


def chain(div: onnx.NodeProto, reads: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto] | None:
    """The Round, Clip and Mul behind a Div, if they are all that reads it and the Mul has its scale."""
    if div.op_type != "Div":
        return None
    found, last = [], div
    for kind in ("Round", "Clip", "Mul"):
        behind = reads.get(last.output[0], [])
        if len(behind) != 1 or behind[0].op_type != kind:
            return None
        found.append(last := behind[0])
    return found if div.input[1] in last.input else None


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32 wherever the graph says float16: there both forms are the same arithmetic."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for one in model.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT16:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float32), one.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT16:
                attribute.i = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]
    return model


def apart(paths: dict[str, Path], images: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of both graphs on the CPU provider, not optimised: the largest change of a logit in float32, beside the range of
    logits, which must be none; in float16 that and the share of other labels. There a quotient is rounded before it
    is rounded to a step, or it is not, so that a few values go to the neighbouring step.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = {}
    for kind, form in (("float32", in_float32), ("float16", lambda model: model)):
        logits = []
        for path in paths.values():
            data = form(onnx.load(path)).SerializeToString()
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            logits.append(session.run(None, {"x": images})[0])
        found[f"logit_change_{kind}"] = float(np.abs(logits[0] - logits[1]).max() / np.ptp(logits[0]))
        found[f"labels_differ_{kind}"] = float((logits[0].argmax(1) != logits[1].argmax(1)).mean())
    if found["logit_change_float32"] > 0:
        raise QrobustError(
            f"expected two graphs that are equal in float32, got logits {found['logit_change_float32']:.2g} apart"
        )
    return found


def graphs(artifact: Artifact, folder: Path) -> dict[str, Path]:
    """The artifact's own file, and the other one beside it."""
    own = artifact.path / "model.onnx"
    other = folder / f"{artifact.path.name}-pairs.onnx"
    onnx.save(as_pairs(onnx.load(own)), other)
    return {CHAIN: own, PAIRS: other}


def measured(
    paths: dict[str, Path], provider: str, batch: int, *, seconds: float = 5.0, runs: int = 50
) -> dict[str, Any]:
    """Times in turns, and what each graph became."""
    x = specimens.images(batch).numpy().astype(np.float32) / 255
    sessions, facts = {}, {}
    for label, path in paths.items():
        file = opened(path)
        facts[label] = {"executed": placement(executed(file, provider, 0)), "size_bytes": path.stat().st_size}
        sessions[label] = Bound(artifact_session(file, provider, 0), x)
    times = time_sessions(sessions, np.empty(0), min_seconds=seconds, min_runs=runs, warmup=20 if runs > 20 else 1)
    rows = []
    for label, mine in times.items():
        ratio, interval = float(np.median(times[CHAIN]) / np.median(mine)), ratio_interval(times[CHAIN], mine)
        rows.append(
            {"name": label, "batch": batch, **statistics(mine, batch), "speedup": ratio, "speedup_ci95": list(interval)}
        )
    return {"graphs": facts, "results": rows}


def artifact_of(name: str, bits: int, folder: Path, runs: dict[str, Run]) -> Artifact:
    if name in runs and bits in runs[name].recipe.bits:
        return Artifact.load(
            runs[name].export(bits, load_target("ort-cuda"), folder / f"{name}-run-qm-{bits}-ort-cuda")
        )
    return specimens.artifact(folder, name, bits, "ort-cuda")


def part(name: str, bits: int, batch: int, provider: str, folder: Path, runs: dict[str, Run]) -> dict[str, Any]:
    try:
        artifact = artifact_of(name, bits, folder, runs)
    except ParityError as error:  # random weights with coarse steps: labels hang on ties
        return {"refused": str(error)}
    paths = graphs(artifact, folder)
    images = artifact.suite["x.clean"][:64].astype(np.float32) / 255
    result: dict[str, Any] = {"images": len(images), **apart(paths, images)}
    try:
        return result | measured(paths, provider, batch)
    except ArtifactError as error:  # CUDA may lack a kernel: that is a result
        return result | {"refused": str(error)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", action="append", default=[], metavar="NETWORK=RUN", help="trained networks")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    provider = PROVIDERS[options.provider]
    try:
        if options.provider == "cuda" and not torch.cuda.is_available():
            raise ArtifactError("expected a GPU with CUDA, got none; run this on a machine that has one")
        require(provider)
        runs = {name: Run.open(Path(folder)) for name, folder in (text.split("=", 1) for text in options.run)}
        folder = options.out / "artifacts"
        for name, bits, batch in itertools.product(specimens.NETWORKS, (8, 4, 2), BATCHES):
            path = options.out / "activations" / f"{options.provider}-{name}-qm-{bits}-batch-{batch}.json"
            if not path.exists():
                print(path.stem, flush=True)
                write_json(path, {**record.origin(), **part(name, bits, batch, provider, folder, runs)})
    except (QrobustError, ArtifactError) as error:
        print("error:", error, file=sys.stderr)
        return 2 if isinstance(error, ArtifactError) else 1
    print(f"all done: {options.out / 'activations'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

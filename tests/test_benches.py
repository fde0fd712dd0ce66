"""Scripts in benches/: what they need, what they record, how they judge; and the results that are committed."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qrobust.bench.measure import Scenario
from qrobust.errors import QrobustError
from qrobust.evaluation import Outcomes
from qrobust.export.target import load_target
from qrobust.threat import Threat

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benches" / "results").rglob("*.json"))
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "benches" / "gpu")]

import activations  # noqa: E402
import demo_busy  # noqa: E402
import deploy  # noqa: E402
import deploy_transformers  # noqa: E402
import ptq  # noqa: E402
import record  # noqa: E402
import serve  # noqa: E402
import specimens  # noqa: E402
import study_sar  # noqa: E402
import study_tables  # noqa: E402
import tables  # noqa: E402


def test_without_a_gpu_the_job_for_one_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path / "out")])
    assert serve.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: expected a GPU with CUDA, got none; run this on a machine that has one\n"
    assert not list(tmp_path.iterdir())


def chains(path):
    """A graph as `ort-cuda` writes one, with activations of 8 bits and signed ones of 4, behind each other."""
    rng = np.random.default_rng(0)
    constants = {
        "s8": np.float16(1 / 255),
        "s4": np.float16(0.07),
        "zero": np.float16(0),
        "most8": np.float16(255),
        "least4": np.float16(-8),
        "most4": np.float16(7),
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float16),
        "v": rng.normal(size=(10, 4)).astype(np.float16),
        "c": np.zeros(10, np.float16),
    }
    node = helper.make_node
    nodes = [node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16)]
    for given, made, scale, low, high in (("x16", "a", "s8", "zero", "most8"), ("conv", "b", "s4", "least4", "most4")):
        if given == "conv":
            nodes.append(node("Conv", ["a", "w"], ["conv"], pads=[1, 1, 1, 1]))
        nodes += [
            node("Div", [given, scale], [f"{made}.div"]),
            node("Round", [f"{made}.div"], [f"{made}.q"]),
            node("Clip", [f"{made}.q", low, high], [f"{made}.clip"]),
            node("Mul", [f"{made}.clip", scale], [made]),
        ]
    nodes += [
        node("GlobalAveragePool", ["b"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("Gemm", ["flat", "v", "c"], ["y16"], transB=1),
        node("Cast", ["y16"], ["logits"], to=TensorProto.FLOAT),
    ]
    shapes = {"x": ["batch", 3, 32, 32], "logits": ["batch", 10]}
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])] for name in shapes]
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "chains", *ends, values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_activations_in_two_forms_are_equal_and_timed(tmp_path, monkeypatch, capsys):
    """The job for CUDA on the CPU provider: what it rewrites, what it compares, what it leaves."""
    (tmp_path / "net").mkdir()
    chains(tmp_path / "net" / "model.onnx")
    images = specimens.images(8).numpy()
    one = SimpleNamespace(path=tmp_path / "net", suite={"x.clean": images})
    (tmp_path / "out" / "artifacts").mkdir(parents=True)
    monkeypatch.setattr(activations, "artifact_of", lambda *_: one)
    monkeypatch.setattr(activations, "BATCHES", (1,))
    monkeypatch.setattr(activations.specimens, "NETWORKS", ("net",))
    monkeypatch.setattr(activations, "measured", functools.partial(activations.measured, seconds=0.01, runs=2))
    monkeypatch.setattr(sys, "argv", ["activations.py", str(tmp_path / "out"), "--provider", "cpu"])
    assert activations.main() == 0
    assert "all done" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "activations" / "cpu-net-qm-4-batch-1.json").read_text())
    assert found["logit_change_float32"] == 0
    assert found["labels_differ_float16"] <= 0.25
    assert [row["name"] for row in found["results"]] == [activations.CHAIN, activations.PAIRS]
    rewritten = onnx.load(tmp_path / "out" / "artifacts" / "net-pairs.onnx").graph
    kinds = [one.op_type for one in rewritten.node]
    assert [kinds.count(kind) for kind in ("QuantizeLinear", "DequantizeLinear", "Clip", "Div", "Round")] == [
        2,
        2,
        1,
        0,
        0,
    ]

    broken = onnx.load(tmp_path / "net" / "model.onnx")
    del broken.graph.node[2]  # a Round, so that this is another function
    broken.graph.node[2].input[0] = "a.div"
    onnx.save(broken, tmp_path / "broken.onnx")
    pair = {activations.CHAIN: tmp_path / "broken.onnx", activations.PAIRS: tmp_path / "net" / "model.onnx"}
    with pytest.raises(QrobustError, match="equal in float32"):
        activations.apart(pair, images.astype(np.float32) / 300)
    with pytest.raises(QrobustError, match="got none"):
        activations.as_pairs(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["activations.py", str(tmp_path / "out")])
    assert activations.main() == 2


# Without training


def test_the_tables_of_what_is_not_measured_are_drawn():
    """Of few units, without the attack that is made last, and of none."""
    right = {"clean": record.packed(np.ones(12, bool)), "strong:quick": record.packed(np.arange(12) < 6)}
    both = right | {"strong": record.packed(np.arange(12) < 5)}
    lost = right | {"strong": record.packed(np.arange(12) < 3)}
    unit = {"n": 12, "size_bytes": 2000, "flips": 1, "minutes": 0.5, "against": "float"}
    names = {"float": both, "8/mse/both": lost, "8/min-max/both": right, "8/mse/both/64": right, "allocated 0.5": both}
    units = {f"tiny/{name}": unit | {"right": masks, "images": 512} for name, masks in names.items()}
    units["tiny/allocated 0.5"] |= {"against": "uniform 0.5"}
    sensitivities = {"tiny": [["a", 4, 0.1, 0.0], ["b", 4, 0.3, 0.02], ["c", 4, 0.2, 0.01], ["a", 6, 0.1, 0.0]]}
    text = "\n".join(tables.BLOCKS["ptq"]({"units": units, "sensitivities": sensitivities}))
    assert "| tiny/8/mse/both | 100.0 | 50.0 | 25.0 | -16.7 | 0.5 | 1 | 0.50 |" in text
    assert "| tiny/8/min-max/both | 100.0 | 50.0 |  |  |  | 1 | 0.50 |" in text
    assert "| tiny/allocated 0.5 | 2.0 | 100.0 | 50.0 | 41.7 |  |  | 1 | 0.50 |" in text
    assert "| tiny | 4 | 3 | 1.00 |" in text
    assert "| tiny | 6 | 1 | none: clean accuracy is alike |  |" in text
    assert tables.NOT_YET in "\n".join(tables.BLOCKS["ptq"]({"units": {}, "sensitivities": {}}))


def test_equalisation_is_measured_where_a_network_has_depthwise_layers():
    """Beside the same network without it, with one scale a layer, which is what it is for."""
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    assert not ptq.has_depthwise(dense)
    assert ptq.has_depthwise(nn.Sequential(*dense, nn.Conv2d(4, 4, 3, groups=4)))
    found = {one.name: one for one in ptq.subjects([8], (), depthwise=True)}
    equalized = found["8/mse/equalized-per-tensor"]
    beside = found[equalized.against]
    assert beside.config == equalized.config
    assert not equalized.config.per_channel
    assert equalized.settings == replace(beside.settings, equalize=True)
    assert not any("per-tensor" in one.name for one in ptq.subjects([8], (), depthwise=False))


def test_bits_that_are_spent_evenly_spend_the_budget():
    """No layer takes one bit more, and none is narrower than all could be."""
    sizes = {"a": 104, "b": 904, "c": 1000}
    for share in (0.4, 0.5, 0.6):
        found = ptq.evenly(sizes, share * 2008)
        left = share * 2008 - sum(sizes[name] * bits / 8 for name, bits in found.items())
        assert left >= 0
        assert all(bits == 8 or sizes[name] / 8 > left for name, bits in found.items())
        assert min(found.values()) == int(share * 8)
    assert set(ptq.evenly(sizes, 1004).values()) == {4}
    assert set(ptq.evenly(sizes, 5000).values()) == {8}


# Targets


def test_the_table_of_targets_says_what_is_measured_and_what_was_refused():
    right = {"clean": record.packed(np.ones(8, bool)), "strong:quick": record.packed(np.arange(8) < 6)}
    lost = right | {"strong:quick": record.packed(np.arange(8) < 4)}
    common = {"n": 8, "size_bytes": 167000, "right in torch": right, "right": right}
    activations = {"share": 2.5e-6, "most steps": 1}
    attacked = {"attack": "strong:quick", "n": 4, "in_torch": 0.75, "replayed": 0.75, "attacked": 0.5}
    whole = {"flips": {"clean": 0, "strong:quick": 2}, "activations": activations, "attacked": attacked, "right": lost}
    speeds = {"litert": {"speedup": 1.4, "speedup_ci95": [1.3, 1.5]},
              "ort-cpu-float": {"speedup": 0.5, "speedup_ci95": [0.4, 0.6], "size_bytes": 1e6}}  # fmt: skip
    units = {
        "a QM-4/litert": common | whole,
        "a QM-4/ort-web": common | {"flips of torch's": {"all": 1}},
        "a QM-4/litert-micro": {"refused": "11% of labels differ"},
        "a QM-4/speed": {"results": speeds},
    }
    text = "\n".join(tables.BLOCKS["targets"]({"attack": "strong:quick", "units": units}))
    row = "| a QM-4, litert | 0 | 2 | 8 | 2.5 | 75.0 | 50.0 | 50.0 | 75.0 | 75.0 | 4 | 167 | 1.40 (1.30–1.50) |"
    assert row in text
    assert "| a QM-4, ort-web |  | 1 of both | 8 |  | 75.0 | 75.0 |  |  |  |  | 167 |  |" in text
    assert "| a QM-4, its float file |  |  |  |  |  |  |  |  |  |  | 1000 | 0.50 (0.40–0.60) |" in text
    assert "- a QM-4, litert-micro: refused. 11% of labels differ." in text
    assert tables.NOT_YET in "\n".join(tables.BLOCKS["targets"]({"attack": "strong:quick", "units": {}}))


# Goals of deployed speed


def timed(name, bits, batch, speedup):
    return {"name": name, "bits": bits, "batch": batch, "speedup": speedup}


def test_goals_are_judged_by_their_slowest_session_of_ours():
    rows = [timed("QM-32", 32, batch, 1.0) for batch in (1, 32)]
    rows += [timed("QM-8", 8, 1, 1.9), timed("QM-4", 4, 1, 1.86), timed("QM-2", 2, 1, 1.0)]
    rows += [timed("QM-8", 8, 32, 2.1), timed("QM-4", 4, 32, 1.99), timed("QM-2", 2, 32, 3.0)]
    rows += [timed(deploy.RIVAL, 8, batch, 0.1) for batch in (1, 32)]
    found = deploy.judged("resnet20", {"results": rows})
    assert {name: (goal["measured"], goal["held"]) for name, goal in found.items()} == {
        "batch 1": (1.86, True),
        "batch 32": (1.99, False),
    }
    assert deploy.judged("resnet18", {"results": rows})["batch 1 and 32"]["measured"] == 1.0


def test_litert_is_judged_beside_the_same_width_of_onnxruntime():
    rows = [timed(f"QM-{bits}", bits, batch, 2.0) for bits in (8, 4, 2) for batch in (1, 32)]
    lite = [timed(f"{deploy.LITE}QM-{bits}", bits, 1, speed) for bits, speed in ((8, 2.6), (4, 1.9), (2, 2.4))]
    for found, held in ((lite, False), (lite[:1], True)):
        goal = deploy.judged("resnet20", {"results": rows + found})[deploy.LITE_GOAL]
        assert (goal["measured"], goal["held"]) == (pytest.approx(1.3 if held else 0.95), held)


LOOSE = load_target("ort-cpu-float")


def test_a_network_s_files_are_timed_beside_the_faster_float_one(monkeypatch):
    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten())
    small = torch.nn.Sequential(*layers, torch.nn.Linear(128, 4))
    monkeypatch.setattr(deploy_transformers, "NETWORKS", {"small": (lambda: small, 8)})
    monkeypatch.setattr(deploy_transformers, "GOALS", {"small": 1e6})
    monkeypatch.setattr(deploy_transformers, "by_torch", lambda model, x: deploy_transformers.lower(model, x, LOOSE))
    found = deploy_transformers.case(
        "small", Scenario(batch=(1, 2), threads=(1,), min_seconds=0.01, min_runs=3, warmup=1)
    )
    names = [name for name in (deploy_transformers.RIVAL, "float", "W8A8", "W4A8") if name in found["files"]]
    assert [(row["name"], row["batch"]) for row in found["results"]] == [(name, b) for b in (1, 2) for name in names]
    for row in found["results"]:
        assert (row["side"], row["threads"], row["bits"]) == (8, 1, {"W8A8": 8, "W4A8": 4}.get(row["name"], 32))
        assert row["reference"] in (deploy_transformers.RIVAL, "float")
        assert row["speedup"] <= 1 or row["bits"] < 32
    ran = {name: found["files"][name]["executed"].get("QLinearConv", 0) for name in names}
    assert ran == {name: 2 if name.startswith("W") else 0 for name in names}
    sizes = [found["files"][name]["size_bytes"] for name in ("float", "W8A8", "W4A8")]
    assert sizes == sorted(sizes, reverse=True)
    goal = found["goals"]["batch 1"]
    assert goal == {"at_least": 1e6, "measured": goal["measured"], "held": False}
    assert any(line.endswith("at least 1000000.00, missed") for line in deploy_transformers.lines(found))
    text = list(tables.transformers({"cases": [found]}))
    assert "| small at 8 pixels, W8A8 | " in text[0]
    assert "**missed**" in text[1]


# What a result carries


def repository(folder):
    def git(*arguments):
        options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(folder), *options, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("qrobust/a.py", "benches/results/old.json", "README.md"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    return git("rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_clean_tree_and_of_a_changed_one(tmp_path):
    head = repository(tmp_path)
    (tmp_path / "benches" / "results" / "new.json").write_text("results are written one after the other")
    (tmp_path / "README.md").write_text("and texts meanwhile")
    assert record.commit(tmp_path) == head
    (tmp_path / "qrobust" / "b.py").write_text("new code")
    assert record.commit(tmp_path) == head + "-dirty"


def test_without_a_repository_there_is_no_commit(tmp_path):
    assert record.commit(tmp_path) is None


def test_outcomes_are_kept_image_by_image(tmp_path):
    right = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 1], bool)
    saved = Outcomes(Threat("linf", 0.1), 0, (), "0" * 64, {"clean": right})
    saved.save(tmp_path / "e.json")
    assert record.outcomes(tmp_path / "e.json") == {"clean": "9f40"}
    read = np.unpackbits(np.frombuffer(bytes.fromhex("9f40"), np.uint8), count=10)
    assert (read.astype(bool) == right).all()


def test_a_run_is_kept_with_its_outcomes(tmp_path, monkeypatch, capsys):
    run, path = ROOT / "tests" / "fixtures" / "0.1.0" / "run", tmp_path / "kept.json"
    monkeypatch.setattr(sys, "argv", ["record.py", str(run), "--json", str(path)])
    assert record.main() == 0
    kept = json.loads(path.read_text())
    assert kept["commit"] == record.commit()
    assert kept["commit"] is None or kept["commit"] in capsys.readouterr().out
    for width in kept["widths"]:
        bits, before = kept["outcomes"][f"QM-{width['bits']}"], width["before"]
        right = np.unpackbits(np.frombuffer(bytes.fromhex(bits["before"]["clean"]), np.uint8), count=before["n"])
        assert right.mean() == pytest.approx(before["clean"]["accuracy"])
        assert set(bits["after"]) == set(width["after"]["accuracy"])
        assert "clean" in bits["attacked"]


def test_no_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record.py", str(tmp_path)])
    assert record.main() == 2
    assert capsys.readouterr().err.startswith("error: expected a JSON file at")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_no_result_is_committed_from_changed_code(path):
    commit = json.loads(path.read_text()).get("commit")
    assert commit is None or len(commit) == 40, "commit first, then measure again"


# A method's gain


def test_a_gain_is_tested_over_trainings_not_over_images():
    """-0.1, +2.6 and +2.7 points: pooled over images that was p = 0.007; three trainings do not show it."""
    found = record.over_trainings([0.259, 0.25, 0.226], [0.258, 0.276, 0.253])
    assert found["trainings"] == 3
    assert found["difference"] == pytest.approx(0.0173, abs=1e-4)
    assert found["p_value"] == pytest.approx(0.199, abs=1e-3)
    assert found["ci95"] == pytest.approx([-0.0221, 0.0568], abs=1e-4)


@pytest.mark.parametrize(("first", "second"), [([0.2], [0.3]), ([0.2, 0.3], [0.3])])
def test_one_training_shows_no_gain(first, second):
    with pytest.raises(ValueError, match="expected two trainings or more in pairs, got"):
        record.over_trainings(first, second)


def _study(seed: str, rows: dict[str, Any], commit: str = "a", **more: Any) -> dict[str, Any]:
    return {"commit": commit, "epochs": 4, "seeds": {seed: rows}, "float": {seed: f"sha of {seed}"}, **more}


def test_trainings_of_other_seeds_and_rows_stay_in_a_study_each_with_its_commit(tmp_path):
    path = tmp_path / "study.json"
    for result in (_study("0", {"at": 1}), _study("1", {"at": 2}, "b", gains=3), _study("0", {"sar": 4}, "c")):
        path.write_text(json.dumps(record.with_seeds(result, path)))
    kept = json.loads(path.read_text())
    assert kept["seeds"] == {"0": {"at": 1, "sar": 4}, "1": {"at": 2}}
    assert kept["commits"] == {"0": "c", "1": "b"}
    assert kept["float"] == {"0": "sha of 0", "1": "sha of 1"}
    with pytest.raises(ValueError, match=r"the same settings in .*study.json, got other epochs, wide; write"):
        record.with_seeds(_study("2", {"at": 1}, epochs=5, wide=True), path)


def test_the_study_writes_the_same_test():
    seeds = tables.read("study-sar")["seeds"]
    found = study_sar.gains(seeds)["sarwa"]["worst_case"]
    assert found["p_value"] == pytest.approx(0.199, abs=1e-3)


# The tables


def _training(clean: float, worst: float, at: float) -> dict[str, Any]:
    """An evaluation, and its pair with the first row."""
    cell = {"accuracy": worst}
    result = {"clean": {"accuracy": clean}, "attacks": {"pgd-20": {"accuracy": worst + 0.05}}, "worst_case": cell}
    return {"result": result, "pair": {"worst_case": {"first": at, "second": worst, "difference": worst - at}}}


def test_what_a_paper_prints_stands_beside_means_over_trainings_and_is_not_one_of_them():
    ats, emas = [_training(0.5, 0.25, 0.25)] * 2, [_training(0.52, 0.28, 0.25), _training(0.5, 0.26, 0.25)]
    seeds = {
        str(n): {"results": {"at": at["result"], "ema": ema["result"]}, "against_at": {"ema": ema["pair"]}}
        for n, (at, ema) in enumerate(zip(ats, emas, strict=True))
    }
    text = study_tables.reduced_sar({"seeds": seeds}, {"at": {"clean": 0.8198, "autoattack": 0.4819}})
    assert "| AT | 81.98 |  | 48.19 | 2 | 50.0 | 30.0 | 25.0 |  |  |  |" in text
    assert "| AT + average (exponential) |  |  |  | 2 | 51.0 | 32.0 | 27.0 | +2.0 | -10.7 to +14.7 | 0.30 |" in text
    rows = {
        n: {"qm-4-none": {"result": at["result"], "against": {}},
            "qm-4-paper": {"result": ema["result"], "against": {"qm-4-none": ema["pair"]}}}
        for n, (at, ema) in enumerate(zip(ats, emas, strict=True))
    }  # fmt: skip
    text = study_tables.reduced_fat({"seeds": rows}, {"qm-4-paper": {"clean": 0.7458}})
    assert "| QM-4, FAT as published | 74.58 |  | 2 | 51.0 | 32.0 | 27.0 | +2.0 | -10.7 to +14.7 | 0.30 |" in text


def test_a_result_that_is_not_there_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.block("deploy").strip() == "Not measured yet."


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        (None, "before commit and outcomes were kept"),
        ("ab" * 20, "commit abababababab:"),
        ("ab" * 20 + "-dirty", "with changes"),
    ],
)
def test_a_table_says_where_it_comes_from(commit, said):
    machine = {"cpu": "a CPU", "cores": 2, "threads": 1, "gpu": None}
    text = tables.source("x", {"commit": commit, "hardware": machine, "versions": {"torch": "2.13"}})
    assert said in text
    assert "(results/x.json)" in text
    assert "a CPU, 2 cores, 1 thread in torch; torch 2.13" in text


def test_a_study_names_the_commits_of_all_its_trainings():
    about = {"commit": "cd" * 20, "hardware": {"gpu": "a GPU"}, "versions": {}}
    text = tables.source("x", about | {"commits": {"0": "ab" * 20, "1": "cd" * 20, "2": "ab" * 20}})
    assert "commits abababababab, cdcdcdcdcdcd: a GPU" in text


def test_a_missed_goal_says_missed():
    result = {"seconds": {"quiet": 10.0, "busy": 25.0}, "ratio": 2.5, "at_most": 2.0, "held": False}
    assert "| 10 | 25 | 2.50 | 2.0 | **missed** |" in next(tables.busy(result))
    goals = {"batch 1": {"at_least": 1.85, "measured": 1.2, "held": False}}
    text = "".join(tables.deployed({"cases": [{"network": "n", "artifacts": {}, "results": [], "goals": goals}]}))
    assert "| n, batch 1 | 1.85 | 1.20 | **missed** |" in text


def test_what_the_option_costs_is_a_table():
    cost = {"batch": 1, "slower": 2.36, "slower_ci95": [2.34, 2.38], "logits_moved": 0.0}
    case = {"network": "n", "artifacts": {}, "results": [], "goals": {}, "option": [cost]}
    assert "| n, QM-8, batch 1 | 2.36 (2.34–2.38) | 0 |" in list(tables.deployed({"cases": [case]}))[-1]


# The demo beside other work


def test_the_busy_process_is_ended(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args: started.append(popen(*args)) or started[-1])
    with demo_busy.busy():
        assert started[0].poll() is None
    assert started[0].returncode is not None


def test_the_ratio_is_of_the_busy_time_to_the_quiet_one(monkeypatch, capsys):
    times = iter((10.0, 25.0))
    monkeypatch.setattr(demo_busy, "seconds", lambda *_: next(times))
    found = demo_busy.measured([], 1.0)
    assert (found["seconds"], found["ratio"]) == ({"quiet": 10.0, "busy": 25.0}, 2.5)
    assert capsys.readouterr().out == "quiet: 10.0 s\nbusy: 25.0 s\n"

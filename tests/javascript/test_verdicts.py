"""verify.mjs in Node gives the verdicts of verify.py: on sound artifacts, damaged ones, and against baselines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import onnx
import pytest

from qrobust import runtime
from qrobust.export.artifact import JAVASCRIPT, VERIFIERS

from ..conftest import NODE, evidence
from ..export.helpers import lowered
from ..export.test_artifact import write as write_artifact
from ..test_runtime import LENGTH, UNUSABLE, edit, model_bytes, suite_arrays, suite_l2, write

Ended = list[tuple[int, str, str]]


def node(*arguments: str | Path, given: object = None, cwd: Path = NODE, **environment: str) -> Any:
    command = [str(evidence("node")), *map(str, arguments)]
    given = None if given is None else json.dumps(given)
    environment = {**os.environ, **environment}
    return subprocess.run(command, input=given, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def many(asked: Iterable[Sequence[object]]) -> Ended:
    """Exit code, stdout and stderr of each check, all in one process."""
    done = node(NODE / "many.mjs", JAVASCRIPT, given=[[str(part) for part in argv] for argv in asked])
    assert done.returncode == 0, done.stderr
    return [(code, out, error) for code, out, error in json.loads(done.stdout)]


def python(folder: Path, *more: str) -> dict[str, Any]:
    result = folder.parent / f"{folder.name}.python.json"
    code = runtime.main([str(folder), "--json", str(result), *more])
    return json.loads(result.read_text()) | {"exit": code}


def replayed(report: dict[str, Any]) -> dict[str, Any]:
    """What both programs must say alike: verdicts but Square's, to rounding, and every replayed image."""
    verdicts = {
        row["name"]: [row["passed"], row["limit"], *(pytest.approx(row[key], abs=1e-6) for key in ("measured",)),
                      pytest.approx(row["p_value"], abs=1e-12), row["ci95"], row["needed"]]
        for row in report["verdicts"] if not row["name"].startswith(("square", "latency"))
    }  # fmt: skip
    outcomes = {name: bits for name, bits in report["outcomes"].items() if name != "square"}
    keys = ("artifact", "counts", "images", "model", "suite", "session", "parity", "queries", "seed", "found_by")
    return {"verdicts": verdicts, "outcomes": outcomes, **{key: report[key] for key in keys}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "artifact", suite_arrays())


def test_numbers_are_those_of_python() -> None:
    rows = [(lost, gained, n, tolerated, level) for n in (40, 300) for lost, gained in ((0, 3), (1, 0), (9, 2), (30, 8))
            for tolerated, level in ((0.0, 0.05), (0.02, 0.05), (0.1, 0.001))]  # fmt: skip
    done = node(NODE / "many.mjs", JAVASCRIPT, "numbers", given=rows)
    for (lost, gained, n, tolerated, level), found in zip(rows, json.loads(done.stdout), strict=True):
        expected = [test(lost, gained, n, tolerated, level) for test in runtime.TESTS.values()]
        expected += [runtime.drop_score(lost, gained, n, tolerated), *runtime.wilson(lost, n)]
        expected += [*runtime.paired_interval(lost, gained, n), NormalDist().inv_cdf(level)]
        expected += [runtime.images_needed(tolerated + 0.07, tolerated, gained / n, level, 0.8)]
        assert found == pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_sound_and_planted_artifacts_get_the_same_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A linear classifier, whole, in l2, with other weights, other labels, limits that it breaks, on too few images."""
    arrays = suite_arrays()
    folders = {
        "sound": write(tmp_path / "sound", arrays),
        "weights": write(tmp_path / "weights", arrays, model_bytes(np.ones(16, np.float32))),
        "scale": write(tmp_path / "scale", arrays, model_bytes(scale=1.01)),
        "few": write(tmp_path / "few", arrays),
    }
    edit(folders["scale"], lambda manifest: manifest["limits"].update(logit_change=1e-3, latency_ms=1e3, size_bytes=9))
    edit(folders["few"], lambda manifest: manifest["statistics"].update(detected_drop=0.03))
    asked = [(path, "--json", tmp_path / f"{name}.json") for name, path in folders.items()]
    ended = many(asked)
    codes = dict(zip(folders, [code for code, _, _ in ended], strict=True))
    assert codes == {"sound": 0, "weights": 1, "scale": 1, "few": 2}
    for name, (code, out, error) in zip(folders, ended, strict=True):
        capsys.readouterr()
        if code == 2:
            assert runtime.main([str(folders[name])]) == 2
            assert error.split(", got")[0] == capsys.readouterr().err.split(", got")[0]
            continue
        found, expected = json.loads((tmp_path / f"{name}.json").read_text()), python(folders[name])
        assert (found["passed"], code) == (expected["passed"], expected["exit"])
        assert replayed(expected) == replayed(found)
        text = capsys.readouterr().out.splitlines()
        rows = [line for line in text if not line.startswith(("square", "worst", "broken square", "broken latency"))]
        assert [line for line in out.splitlines() if line in rows] == rows
        assert set(expected) - {"exit"} <= set(found)


def test_what_python_refuses_is_refused_with_one_line(tmp_path: Path) -> None:
    for name, (damage, _) in UNUSABLE.items():
        damage(write(tmp_path / name, suite_arrays()))
    for name, (code, out, error) in zip(UNUSABLE, many([tmp_path / name] for name in UNUSABLE), strict=True):
        assert (name, code, out) == (name, 2, "")
        assert error.startswith("error: expected ")
        assert (error.count("\n"), "; " in error) == (1, True), name


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_stays_in_the_ball_and_breaks_what_it_can(tmp_path: Path, norm: str) -> None:
    """Of a linear classifier the exact worst case is known: Square never beats it, and comes near."""
    arrays = suite_arrays() if norm == "linf" else suite_l2()
    folder = write(tmp_path / "artifact", arrays)
    if norm == "l2":
        edit(folder, lambda manifest: manifest["threat"].update(norm="l2", eps=LENGTH))
    path = tmp_path / "found.json"
    ((_, _, error), *_) = ended = many([(folder, "--json", path, "--queries", "300"), (folder, "--seed", "3")])
    assert [code for code, _, _ in ended] == [0, 0], error
    found = json.loads(path.read_text())
    right = np.unpackbits(np.frombuffer(bytes.fromhex(found["outcomes"]["pgd-20"]), np.uint8))
    exact = right[: found["counts"]["square"]].mean()  # the stored attack is the strongest there is
    assert exact <= found["accuracy"]["square"] < found["accuracy"]["clean"] - 0.05
    assert "seed 3" in ended[1][1]


def test_a_baseline_of_python_serves_replayed_sets_alone(folder: Path, tmp_path: Path) -> None:
    pinned, own = tmp_path / "python.json", tmp_path / "own.json"
    assert runtime.main([str(folder), "--baseline", str(pinned), "--update-baseline", "--reason", "first"]) == 0
    other = write(tmp_path / "other", suite_arrays(), model_bytes(np.flip(np.arange(16, dtype=np.float32))))
    against, update = ("--baseline", pinned), ("--update-baseline", "--reason", "first")
    asked = [(folder, *against), (other, *against), (folder, *against, "--seed", "1")]
    asked += [(folder, "--baseline", own, *update), (folder, "--baseline", own)]
    ended = many(asked)
    assert [code for code, _, _ in ended] == [0, 1, 2, 0, 0], ended
    note = f"Square is not compared with {pinned}: its draws are another generator's"
    assert [note in out for _, out, _ in ended] == [True, True, False, False, False]
    assert ended[2][2] == (
        f"error: expected seed 0, as {pinned} pins it, got 1; restore what was pinned, or pin anew by "
        "--update-baseline --reason TEXT\n"
    )
    with pytest.raises(
        runtime.ArtifactError, match=r"expected square.generator sfc32, as .*own.json pins it, got noth"
    ):
        runtime.check(runtime.Artifact.load(folder), baseline=own)


@pytest.mark.slow
@pytest.mark.parametrize("input", ["float32-nchw", "uint8-nhwc"])
def test_an_exported_artifact_carries_its_check(tmp_path: Path, input: str) -> None:
    """Every file of it is there, listed, and the check inside is the same; bytes go in where they are asked for."""
    folder = tmp_path / "artifact"
    manifest = write_artifact(folder, input=input)
    assert set(VERIFIERS) == {name for name in manifest["files"] if name.startswith("verify") and name != "verify.py"}
    if evidence("node") and input == "float32-nchw":
        done = node(folder / "verify.mjs")  # 12 images: no verdict unless it is broken
        assert (done.returncode, "images or more" in done.stderr) == (2, True), done.stderr
    edit_statistics = json.loads((folder / "manifest.json").read_text())
    edit_statistics["limits"] |= {"size_bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(edit_statistics))
    result = tmp_path / "found.json"
    ((code, _, _),) = many([(folder, "--json", result)])
    assert code == 1
    assert replayed(python(folder)) == replayed(json.loads(result.read_text()))


def test_the_command_line_ends_as_verify_py_does(folder: Path, tmp_path: Path) -> None:
    assert node(JAVASCRIPT / "verify.mjs", "--help").stdout.startswith("usage: node verify.mjs [ARTIFACT]")
    bad: dict[str, tuple[str, ...]] = {
        "expected arguments as --help lists them, got ": ("--no-such-option",),
        "expected --update-baseline and --reason TEXT, got ": ("--update-baseline",),
        "expected 50 to 1000000 queries for Square": ("--queries", "3"),
        "expected a place outside of the artifact": ("--json", str(folder / "x.json")),
        "expected another file for each result": ("--json", "-", "--junit", "-"),
        "expected an artifact in nowhere, got no manifest.json; pass an exported folder": (),
    }
    asked = [(folder if more else "nowhere", *more) for more in bad.values()]
    for expected, (code, _, error) in zip(bad, many(asked), strict=True):
        assert (code, error.count("\n"), error.startswith(f"error: {expected}")) == (2, 1, True), error
    done = node(JAVASCRIPT / "verify.mjs", folder, "--json", "-", ORT_LOG="1")
    assert (done.returncode, json.loads(done.stdout)["passed"]) == (0, True)
    assert done.stderr.splitlines()[0] == "note: a check does not pass on ORT_LOG"
    assert done.stderr.splitlines()[-1] == "held"
    late = node(JAVASCRIPT / "verify.mjs", folder, "--timeout", "0.01")
    assert (late.returncode, late.stderr.splitlines()[-1]) == (
        2, "error: expected a check within 0.01 s, got none; raise --timeout, or mend the model",
    )  # fmt: skip


def test_without_onnxruntime_one_line_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    script = shutil.copytree(JAVASCRIPT, tmp_path / "apart") / "verify.mjs"
    done = node(script, folder, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: expected onnxruntime-node or onnxruntime-web, got none; npm install --ignore-scripts onnxruntime-node\n"
    )
    (script.parent / "verify-report.mjs").unlink()
    done = node(script, folder, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: expected verify-*.mjs beside verify.mjs, got Cannot find module ")


@pytest.mark.slow
def test_wasm_in_node_replays_alike(folder: Path, tmp_path: Path) -> None:
    ((code, _, error),) = many([(folder, "--runtime", "web", "--json", tmp_path / "found.json")])
    assert code == 0, error
    found = json.loads((tmp_path / "found.json").read_text())
    assert "onnxruntime-web" in found["versions"]
    assert replayed(python(folder))["outcomes"] == replayed(found)["outcomes"]


@pytest.mark.slow
def test_what_webgpu_reads_states_every_attribute() -> None:
    """onnxruntime-web refuses a convolution without dilations; other targets leave out what is usual."""
    for target, stated in (("ort-web-gpu", True), ("ort-cpu-int8", False)):
        graph = onnx.load_from_string(lowered(4, target=target)).graph
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        found = [{"dilations", "strides", "pads"} <= {a.name for a in node.attribute} for node in convolutions]
        assert convolutions
        assert all(found) is stated
        assert {t.data_type for t in graph.initializer} <= {1, 2, 3, 6, 7}, "one byte a weight"

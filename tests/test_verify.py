"""`verify.py` and `qrobust check` as processes: exit codes, what they import, what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qrobust import runtime
from qrobust.runtime import Artifact, ArtifactError, check

from .test_runtime import WEIGHT, edit, model_bytes, suite_arrays, write

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "0.1.0" / "run" / "qm-4" / "artifact"
# What onnxruntime and numpy need; linked into the bare environment instead of being downloaded again.
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with numpy and onnxruntime only, as a device has them."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python3.*")) / "site-packages"
    installed = Path(sysconfig.get_path("purelib"))
    for name in PACKAGES:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    return folder / "bin" / "python"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write(tmp_path / "artifact", suite_arrays())


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})


def both(artifact: Path) -> dict[str, list[object]]:
    """The two command lines, for `artifact` in the current folder."""
    return {
        "verify.py": [sys.executable, artifact / "verify.py"],
        "qrobust check": [sys.executable, "-P", "-m", "qrobust", "check", "artifact"],
    }


def says_one_line(done: subprocess.CompletedProcess[str], *, out: str = "") -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert (done.stdout, done.stderr.count("\n")) == (out, 1), done.stdout + done.stderr
    assert done.stderr.startswith("error: expected ")
    return done.stderr


def other_model(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(model_bytes(-WEIGHT))
    edit(artifact)


def one_bit(artifact: Path) -> None:
    data = bytearray((artifact / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(data)


# On a device


def test_without_torch_and_qrobust_an_artifact_of_0_1_0_holds(bare_python: Path, tmp_path: Path) -> None:
    assert run(bare_python, "-I", "-c", "import torch", cwd=tmp_path).returncode == 1
    folder = shutil.copytree(FIXTURE, tmp_path / "artifact")
    done = run(bare_python, "-I", runtime.__file__, folder, "--queries", 50, "--junit", "check.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("held\n")
    assert 'failures="0"' in (tmp_path / "check.xml").read_text()


# Exit codes


@pytest.mark.parametrize(("change", "code"), [(lambda folder: None, 0), (other_model, 1), (one_bit, 2)])
def test_both_commands_exit_0_where_all_held_1_where_a_limit_broke_and_2_where_none_was_judged(artifact, change, code):
    change(artifact)
    for name, command in both(artifact).items():
        done = run(*command, cwd=artifact.parent)
        assert done.returncode == code, (name, done.stderr)
        assert done.stdout.splitlines()[-1:] == [["held"], ["broken"], []][code]
        assert done.stderr.count("\n") == (code == 2)


def test_a_report_that_nobody_can_read_is_exit_code_2(artifact: Path) -> None:
    for command in both(artifact).values():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=artifact.parent)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=artifact.parent)
        os.close(writer)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "expected an output that takes the report" in done.stderr


@pytest.mark.parametrize("mebibytes", [30, 90, 240, 480, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 120))])
def test_little_memory_is_never_exit_code_1(artifact: Path, mebibytes: int) -> None:
    """OpenBLAS ends a process without memory by the code that would mean a broken limit."""
    command = f"ulimit -v {mebibytes * 1024}; exec {sys.executable} {artifact / 'verify.py'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=artifact.parent)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode == 2), done.stderr
    assert "exit code" not in done.stderr  # OpenBLAS's own would be told as a model's fault


# Imports


@pytest.fixture
def trapped(artifact: Path) -> Path:
    """Beside verify.py lie modules of all names that it imports; each leaves a trace, were it ever run."""
    names = ("__future__", "argparse", "ctypes", "json", "numpy", "onnxruntime", "typing", "sitecustomize", "zipfile")
    for name in names:
        (artifact / f"{name}.py").write_text(f"import os; os.close(os.open({str(artifact.parent / 'harmed')!r}, 64))")
    return artifact


STARTS = {
    "in its folder": ["verify.py"],
    "in its folder, by ./": ["./verify.py"],
    "isolated": ["-I", "verify.py"],
    "as a module": ["-m", "verify"],
    "from elsewhere": ["{artifact}/verify.py"],
    "by a link": ["{artifact}/../link.py", "{artifact}"],
    "of the installation": [runtime.__file__, "."],
    "qrobust check": ["-P", "-m", "qrobust", "check", "."],
}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_beside_the_file_is_imported(trapped: Path, start: str) -> None:
    (trapped.parent / "link.py").symlink_to(trapped / "verify.py")
    command = [word.format(artifact=trapped) for word in STARTS[start]]
    done = run(sys.executable, "-B", *command, cwd=trapped)
    assert "does not list, got '__future__.py'; remove it" in says_one_line(done)
    assert not (trapped.parent / "harmed").exists()


def test_a_module_path_that_leads_into_the_artifact_is_not_followed(artifact: Path) -> None:
    """Python's own start follows it (docs/trust.md); what is imported after that does not come from there."""
    (artifact / "numpy.py").write_text("raise SystemExit(0)")
    for path in (str(artifact), os.pathsep):
        for command in (["verify.py"], ["-P", "-m", "qrobust", "check", "."]):
            places = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
            assert "got 'numpy.py'" in says_one_line(run(sys.executable, *command, cwd=artifact, PYTHONPATH=places))


# Limits


def looping(artifact: Path) -> None:
    """A graph of a few hundred bytes that runs for longer than anybody waits."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Tanh", ["was"], ["is"])],
        "body",
        [helper.make_tensor_value_info(*value) for value in (("i", 7, []), ("on", 9, []), ("was", 1, None))],
        [helper.make_tensor_value_info(*value) for value in (("still", 9, []), ("is", 1, None))],
    )
    proto = onnx.load_from_string(model_bytes())
    proto.graph.node.insert(0, helper.make_node("Loop", ["times", "", "images"], ["harm"], body=body))
    proto.graph.node[1].input[0] = "harm"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "times"))
    (artifact / "model.onnx").write_bytes(proto.SerializeToString())
    edit(artifact)


def growing(artifact: Path) -> None:
    """Functions that call each other twice: 2^40 nodes when they are unfolded."""
    proto = onnx.load_from_string(model_bytes())
    for level in range(40):
        called, domain = (f"twice{level - 1}", "grow") if level else ("Tanh", "")
        nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in (("x", "m"), ("m", "y"))]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("grow", 1)]
        proto.functions.append(helper.make_function("grow", f"twice{level}", ["x"], ["y"], nodes, opsets))
    proto.opset_import.append(helper.make_opsetid("grow", 1))
    proto.graph.node.insert(0, helper.make_node("twice39", ["images"], ["harm"], domain="grow"))
    proto.graph.node[1].input[0] = "harm"
    (artifact / "model.onnx").write_bytes(proto.SerializeToString())
    edit(artifact)


def test_a_graph_that_does_not_end_is_ended(artifact: Path) -> None:
    looping(artifact)
    done = run(sys.executable, "verify.py", "--timeout", "2", cwd=artifact)
    assert "expected a check within 2 s, got none; raise --timeout" in says_one_line(done)


def test_a_graph_that_grows_without_end_is_ended(artifact: Path) -> None:
    growing(artifact)
    assert (artifact / "model.onnx").stat().st_size < 8000
    done = run(sys.executable, "verify.py", "--timeout", "2", "--memory", "0.5", cwd=artifact)
    assert "expected a check within" in says_one_line(done)


@pytest.mark.skipif(not runtime.LINUX, reason="memory is limited on Linux alone")
def test_memory_has_a_limit_that_can_be_raised(artifact: Path) -> None:
    proto = onnx.load_from_string(model_bytes())
    zeros = helper.make_node("ConstantOfShape", ["size"], ["zeros"])
    proto.graph.node.extend([zeros, helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0)])
    proto.graph.node.append(helper.make_node("Add", ["plain", "zero"], ["logits"]))
    proto.graph.node[1].output[0] = "plain"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**26]), "size"))
    (artifact / "model.onnx").write_bytes(proto.SerializeToString())
    edit(artifact)
    little = run(sys.executable, "verify.py", "--memory", "0.25", cwd=artifact)
    assert "raise --memory" in says_one_line(little)
    assert run(sys.executable, "verify.py", "--memory", "1", cwd=artifact).returncode == 0


def test_settings_of_the_environment_reach_no_session(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may hold options of its own, which write a profile where the environment allows them."""
    proto = onnx.load_from_string(model_bytes())
    options = {"session_options": {"enable_profiling": 1}}
    proto.metadata_props.add(key="ort_config", value=json.dumps(options))
    (artifact / "model.onnx").write_bytes(proto.SerializeToString())
    edit(artifact)
    done = run(sys.executable, artifact / "verify.py", cwd=artifact.parent, ORT_LOAD_CONFIG_FROM_MODEL="1")
    assert done.returncode == 0
    assert done.stderr == "note: a check does not pass on ORT_LOAD_CONFIG_FROM_MODEL\n"
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    with pytest.raises(ArtifactError, match="expected no settings out of a model"):
        check(Artifact.load(artifact))


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    with contextlib.suppress(OSError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*children, *(grandchild for child in children for grandchild in below(child))]
    return []


@pytest.mark.skipif(not runtime.LINUX, reason="asks /proc")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("verify.py", signal.SIGINT), ("qrobust check", signal.SIGTERM),
     pytest.param("verify.py", signal.SIGTERM, marks=pytest.mark.slow),
     pytest.param("qrobust check", signal.SIGINT, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_check_that_is_stopped_leaves_no_process(artifact: Path, name: str, kind: int) -> None:
    looping(artifact)
    depth = {"verify.py": 1, "qrobust check": 2}[name]
    command = both(artifact)[name]
    with subprocess.Popen(command, cwd=artifact.parent, stderr=subprocess.PIPE, text=True) as process:
        while len(started := below(process.pid)) < depth:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(kind)
        error = process.communicate(timeout=20)[1]
    assert process.returncode not in (0, 1)
    assert error.count("\n") <= 1
    deadline = time.monotonic() + 10
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left

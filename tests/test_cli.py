"""The command line: what a user's mistake prints, and what must not be imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qrobust.cli import _analyze
from qrobust.recipe.parts import Analysis

from .conftest import CommandLine, overrides

ROOT = Path(__file__).resolve().parent.parent


def _arrays(path: Path, **changed: object) -> None:
    """An npz of 40 images of 8 × 8 in one channel, two classes, with some arrays replaced."""
    x = np.linspace(0, 1, 40 * 64, dtype=np.float32).reshape(40, 1, 8, 8)
    arrays = {"x_train": x, "y_train": np.arange(40) % 2, "x_test": x, "y_test": np.arange(40) % 2, **changed}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _with_nan(folder: Path) -> list[str]:
    x = np.zeros((40, 1, 8, 8), np.float32)
    x[3, 0, 2, 2] = np.nan
    _arrays(folder / "nan.npz", x_train=x)
    return ["run", "digits", "-o", "data.name=npz", "-o", "data.root=nan.npz"]


def _wrong_shape(folder: Path) -> list[str]:
    _arrays(folder / "flat.npz", x_train=np.zeros((40, 64), np.float32))
    return ["run", "digits", "-o", "data.name=npz", "-o", "data.root=flat.npz"]


def _circle(folder: Path) -> list[str]:
    (folder / "a.toml").write_text('extends = "b"\n')
    (folder / "b.toml").write_text('extends = "a"\n')
    return ["run", "a.toml"]


def _unwritable(folder: Path) -> list[str]:
    (folder / "file").write_text("")  # a file where a folder must be: root may write anywhere else
    return ["run", "digits", "--out", "file/run"]


def _override(setting: str) -> list[str]:
    return ["run", "digits", "-o", setting]


BAD = {
    "unknown key": (lambda f: _override("train.epoch=3"), "did you mean 'epochs'?"),
    "wrong type": (lambda f: _override("train.epochs='many'"), "train.epochs: expected"),
    "missing data": (lambda f: _override("data.name=cifar10"), "data.download=true"),
    "unwritable folder": (_unwritable, "choose another --out"),
    "bits = 9": (lambda f: _override("bits=[32,9]"), "got 9"),
    "eps = 8": (lambda f: _override("threat.eps=8"), "8/255"),
    "NaN in an npz": (_with_nan, "x_train"),
    "wrong image shape": (_wrong_shape, "x_train"),
    "a recipe that extends itself": (_circle, "a → b → a"),
    "unknown figure": (lambda f: _override("analyze.figures=['lowpass']"), "did you mean 'low-pass'?"),
    "unknown recipe": (lambda f: ["run", "digit"], "did you mean 'digits'?"),
    "unknown attack": (lambda f: _override("evaluate.attacks=['pdg-20']"), "did you mean 'pgd-20'?"),
    "unknown network": (lambda f: _override("model.name=resnet21"), "resnet20"),
    "no toml": (lambda f: ["run", str(ROOT / "setup.cfg")], "expected"),
    "no run folder": (lambda f: ["export", "nowhere"], "recipe.toml"),
    "unknown target": (lambda f: _override("export.target=ort-gpu"), "did you mean"),
    "no artifact": (lambda f: ["check", "nowhere"], "expected"),
    "batch sizes": (lambda f: ["bench", "nowhere", "--batch", "1;2"], "expected --batch as 1,32, got '1;2'"),
    "unknown scenario": (lambda f: ["bench", "nowhere", "--scenario", "ofline"], "did you mean 'offline'?"),
    "kind of figure": (lambda f: ["bench", "nowhere", "--plot", "f.jpg"], "ends in .png or .svg for --plot, got f.jpg"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_line_and_exit_code_2(name: str, command_line: CommandLine, tmp_path: Path) -> None:
    prepare, expected = BAD[name]
    arguments = prepare(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, error = command_line(*arguments)
    assert (code, out) == (2, "")
    (line,) = error.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_truncated_checkpoint_is_refused(command_line: CommandLine, small_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    (folder / "qm-2" / "train.json").unlink()
    checkpoint = folder / "qm-2" / "checkpoint" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    code, _, error = command_line("run", "digits", *overrides(), "--out", str(folder))
    assert code == 2
    assert "whole checkpoint" in error.strip().splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["recipes"], ["targets"]])
def test_light_verbs_do_not_import_torch(arguments: list[str]) -> None:
    program = (
        "import sys, qrobust.__main__ as m\n"
        f"sys.argv = ['qrobust', *{arguments!r}]\n"
        "try: m.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'brevitas', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [
    ["check", "{}/qm-4/artifact", "--queries", "50"],
    ["bench", "{}/qm-32/artifact", "{}/qm-2/artifact", "--batch", "1", "--seconds", "0.1", "--json", "b.json"],
])  # fmt: skip
def test_artifacts_are_judged_without_torch(small_run: Path, tmp_path: Path, arguments: list[str]) -> None:
    program = (
        "import sys, qrobust.__main__ as m\n"
        f"sys.argv = ['qrobust', *{[one.format(small_run) for one in arguments]!r}]\n"
        "try: m.main()\n"
        "except SystemExit as end: assert end.code in (0, 1, None), end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if arguments[0] == "bench":
        assert "1.00 ×" in done.stdout
        assert (tmp_path / "b.json").is_file()


@pytest.mark.parametrize("command", [["-c", "import qrobust"], ["-m", "qrobust", "--help"]])
def test_starting_takes_half_a_second_of_cpu_at_most(command: list[str]) -> None:
    seconds = []
    for _ in range(3):
        before = sum(_children())
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        seconds.append(sum(_children()) - before)
    assert min(seconds) < 0.5, seconds


def test_lists_name_what_is_shipped(command_line: CommandLine) -> None:
    assert "digits" in command_line("recipes")[1]
    assert "ort-cpu" in command_line("targets")[1]


def test_doctor_finds_this_installation_sound(command_line: CommandLine) -> None:
    code, out, _ = command_line("doctor")
    assert code == 0, out
    assert "CPUExecutionProvider" in out


def _children() -> tuple[float, float]:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


def test_a_run_ends_with_the_figures_of_its_recipe(small_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What stands in their way is said, and ends nothing."""
    assert {path.name for path in (small_run / "analysis").glob("*.json")} == {"mean-spectrum.json"}
    assert "Where perturbations are" in (small_run / "report.html").read_text()
    asked = Analysis(figures=("mean-spectrum",), n=10**6)
    started = SimpleNamespace(recipe=SimpleNamespace(analyze=asked, seed=0), folder=small_run)
    _analyze(started)  # type: ignore[arg-type]
    assert "analysis: left out: expected -n in [1, 120]" in capfd.readouterr().err

"""A run that was damaged, interrupted or asked for something else ends with the results of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from qrobust import recipe
from qrobust.__main__ import main
from qrobust.errors import CheckpointError, RunError
from qrobust.export import artifact
from qrobust.export.write import Written, written
from qrobust.runs.run import Run
from qrobust.storage import read_json

from ..conftest import once

OVERRIDES = (
    "bits=[32,4]", "data.train_size=300", "data.test_size=130", "train.epochs=2", "train.attack.steps=1",
    "train.validation.steps=1", "train.validation.every=1", "quant.epochs=1", "quant.milestones=[]", "evaluate.n=130",
    "evaluate.attacks=['pgd-2']", "export.suite_attacks=['pgd-2']", "bench.seconds=0.05", "attack.n=20",
    "attack.attacks=['pgd-2']", "threads=1",
)  # fmt: skip
DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}
FILES = (
    "recipe.toml", "bench.json", "report.json",
    *(f"qm-{bits}/{name}" for bits in (32, 4) for name in (
        "train.json", "metrics.jsonl", "model.safetensors", "checkpoint/last.safetensors", "eval.json", "eval.npz",
        "export.json", "artifact/manifest.json", "artifact/model.onnx", "artifact/suite.npz", "artifact/verify.py",
        *(f"artifact/{name}" for name in artifact.VERIFIERS), "check.json", "attack.json", "attack.npz",
    )),
)  # fmt: skip
FEW = [("qm-32/model.safetensors", "cut"), ("qm-4/artifact/manifest.json", "removed")]


def started(folder: Path, *more: str) -> Run:
    """The small run, in a folder."""
    return Run(recipe.load("spectral-shapes", [*OVERRIDES, *more]), folder)


def findings(folder: Path) -> dict[str, Any]:
    """All results of a run but what depends on the clock."""
    found = read_json(folder / "report.json")
    kept = ("bits", "size_bytes", "before", "after", "label_flips", "gap", "verdict")
    widths = [{name: width[name] for name in kept} for width in found["widths"]]
    for width in widths:
        for attack in width["before"]["attacks"].values():
            del attack["seconds"]
    names = ("model.safetensors", "artifact/model.onnx")
    return {"widths": widths} | {
        f"{bits}/{name}": (folder / f"qm-{bits}" / name).read_bytes() for bits in (32, 4) for name in names
    }


def weights(folder: Path) -> list[bytes]:
    """Of both networks. What comes after follows from them, and is compared where it is what was damaged."""
    return [(folder / f"qm-{bits}" / "model.safetensors").read_bytes() for bits in (32, 4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return once(tmp_path_factory, "undisturbed", lambda folder: started(folder / "run").all_stages()) / "run"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """It once more, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_second_run_finds_every_stage_done(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("qm-*/*") if path.is_file()}
    started(copy).all_stages()
    said = capsys.readouterr().err
    assert said.count("done before") == 5 * 2 + 1
    assert "written" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_evaluation_settings_train_nothing_anew(copy: Path) -> None:
    weights = copy / "qm-4" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run = started(copy, "evaluate.attacks=['fgsm']")
    run.train()
    run.evaluate(4)
    assert list(read_json(copy / "qm-4" / "eval.json")["attacks"]) == ["fgsm"]
    assert weights.stat().st_mtime_ns == before


def test_an_attack_made_by_hand_is_kept_and_another_file_s_is_not(copy: Path) -> None:
    for bits, change in ((32, {}), (4, {"artifact": {"sha256": "0" * 64}})):
        path = copy / f"qm-{bits}" / "attack.json"
        found = read_json(path)
        path.write_text(
            json.dumps({key: found[key] for key in found if key not in ("key", "result")} | change | {"seed": 77})
        )
        started(copy).attack_file(bits)
    assert [read_json(copy / f"qm-{bits}" / "attack.json")["seed"] for bits in (32, 4)] == [77, 0]


def test_a_killed_run_continues(whole: Path, tmp_path: Path) -> None:
    """In the middle of training, by a process that had no time for a word."""
    folder = tmp_path / "run"
    with _process(folder) as process:
        assert process.stderr is not None
        assert next(line for line in process.stderr if "epoch 1/2" in line)
        process.kill()
    assert not (folder / "report.json").exists()
    started(folder).train()
    assert weights(folder) == weights(whole)


def test_the_list_of_files_is_whole(whole: Path) -> None:
    found = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    beside = {name for name in found if "events.out" in name} | {".lock", "report.html", "model-card.md"}
    assert found - beside == set(FILES)


@pytest.mark.parametrize(("name", "damage"), [
    pytest.param(name, damage, marks=[] if (name, damage) in FEW else pytest.mark.slow)
    for name in FILES for damage in DAMAGES
])  # fmt: skip
def test_a_damaged_file_is_made_again(whole: Path, copy: Path, name: str, damage: str) -> None:
    DAMAGES[damage](copy / name)
    started(copy).all_stages()
    assert findings(copy) == findings(whole)


def test_a_file_of_others_in_an_artifact_is_kept_and_told(copy: Path) -> None:
    (copy / "qm-4" / "artifact" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"got thesis\.txt in it; move it away"):
        started(copy).all_stages()
    (copy / "qm-4" / "artifact" / "thesis.txt").rename(copy / "thesis.txt")  # the remedy
    started(copy).all_stages()


@pytest.mark.parametrize("place", ["run/qm-4", "thesis", "linked", "file", "record"])
def test_an_export_replaces_an_artifact_and_nothing_else(copy: Path, place: str) -> None:
    base = copy.parent
    shutil.copytree(copy / "qm-4" / "artifact", base / "thesis")
    (base / "thesis" / "thesis.txt").write_text("years of work")
    (base / "linked").symlink_to(copy / "qm-4" / "artifact")
    (base / "file").write_text("text")
    (base / "record.json").write_text('{"mine": 1}')
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="choose another --out"):
        started(copy).export(4, folder=base / place)
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


def test_an_export_is_made_again_where_its_artifact_was_damaged(whole: Path, copy: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "qm-4"
    for damage in (None, DAMAGES["cut"]):
        if damage:
            damage(place / "model.onnx")
        started(copy).export(4, folder=place)
        assert (place / "model.onnx").read_bytes() == (whole / "qm-4" / "artifact" / "model.onnx").read_bytes()


def test_a_file_that_computes_something_else_ends_a_run_with_1_and_is_not_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoiled(*arguments: Any, **options: Any) -> Written:
        made = written(*arguments, **options)
        proto = onnx.load_from_string(made.data)
        weights = next(one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.INT4)
        weights.raw_data = bytes(len(weights.raw_data))
        return replace(made, data=bytes(proto.SerializeToString()))

    shutil.rmtree(copy / "qm-4" / "artifact")
    monkeypatch.setattr(artifact, "written", spoiled)
    options = [part for setting in OVERRIDES for part in ("-o", setting)]
    monkeypatch.setattr(sys, "argv", ["qrobust", "run", "spectral-shapes", *options, "--out", str(copy)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "error: ort-cpu: expected a file that computes what torch does, but layer" in capsys.readouterr().err
    assert not (copy / "qm-4" / "artifact").exists()


def test_another_artifact_does_not_keep_the_verdict(whole: Path, copy: Path) -> None:
    shutil.rmtree(copy / "qm-4" / "artifact")
    shutil.copytree(copy / "qm-32" / "artifact", copy / "qm-4" / "artifact")
    started(copy).all_stages()
    assert findings(copy) == findings(whole)


@pytest.mark.slow
def test_damaged_weights_without_training_state_are_told_with_a_remedy(whole: Path, copy: Path) -> None:
    shutil.rmtree(copy / "qm-4" / "checkpoint")
    DAMAGES["cut"](copy / "qm-4" / "model.safetensors")
    with pytest.raises(RunError, match=r"remove .*qm-4 to train anew") as caught:
        started(copy).all_stages()
    assert "\n" not in str(caught.value)
    shutil.rmtree(copy / "qm-4")
    started(copy).train()
    assert weights(copy) == weights(whole)


@pytest.mark.slow
def test_a_damaged_training_state_is_told_with_a_remedy(whole: Path, copy: Path) -> None:
    for name in ("train.json", "model.safetensors"):  # as in the middle of training
        (copy / "qm-4" / name).unlink()
    DAMAGES["cut"](copy / "qm-4" / "checkpoint" / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"last\.safetensors, got .*; remove it to train anew"):
        started(copy).all_stages()
    (copy / "qm-4" / "checkpoint" / "last.safetensors").unlink()
    started(copy).train()
    assert weights(copy) == weights(whole)


def test_weights_of_others_are_kept_and_told_with_a_remedy(whole: Path, copy: Path) -> None:
    weights = copy / "qm-32" / "model.safetensors"
    other = weights.read_bytes()[:-4] + b"\0\0\0\0"
    weights.write_bytes(other)
    with pytest.raises(RunError, match=r"or remove model\.safetensors"):
        started(copy).all_stages()
    assert weights.read_bytes() == other
    weights.unlink()
    started(copy).all_stages()
    assert findings(copy) == findings(whole)


def test_a_float_network_of_other_settings_is_refused_by_the_key(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for part in ("", "qm-32/train.json", "qm-32/checkpoint/last.safetensors"):
        if part:
            (copy / part).unlink()  # what is left still says what it was trained with
            del before[copy / part]
        with pytest.raises(RunError, match=r"train\.lr: trained with 0\.1, the recipe has 0\.05") as caught:
            started(copy, "train.lr=0.05").train()
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


def test_other_quantisation_moves_the_quantised_networks_aside(whole: Path, copy: Path) -> None:
    float_time = (copy / "qm-32" / "model.safetensors").stat().st_mtime_ns
    started(copy, "quant.lr=0.03").train()
    assert (copy / "qm-32" / "model.safetensors").stat().st_mtime_ns == float_time
    moved = copy / "older" / "qm-4.1"
    assert (moved / "model.safetensors").read_bytes() == (whole / "qm-4" / "model.safetensors").read_bytes()
    assert (moved / "artifact").is_dir()
    assert not (copy / "qm-4" / "artifact").exists()


def test_training_state_names_no_file_outside_the_run(copy: Path) -> None:
    from qrobust.train.checkpoint import load_state, save_state

    state = load_state(copy / "qm-32" / "checkpoint" / "last.safetensors")
    state.best["../../escaped"] = state.best["model"]
    state.tensors |= {f"best.../../escaped.{name}": value for name, value in state.best_of("model").items()}
    save_state(copy / "qm-32" / "checkpoint" / "last.safetensors", state)
    (copy / "qm-32" / "train.json").unlink()
    started(copy).train()
    assert not list(copy.parent.rglob("escaped*"))


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP]


@pytest.mark.slow
def test_thirty_interruptions_anywhere_change_no_result(whole: Path, tmp_path: Path) -> None:
    """Interrupted after a random time, by a random signal, over and over, over all stages; then left in peace."""
    draw, folder, stopped = random.Random(0), tmp_path / "run", 0
    while stopped < 30:
        stopped += _interrupted(folder, draw.uniform(2.0, 9.0), draw.choice(SIGNALS))
        if (folder / "report.json").exists():
            assert findings(folder) == findings(whole)
            shutil.rmtree(folder)
    started(folder).all_stages()
    assert findings(folder) == findings(whole)
    assert not [path for path in folder.rglob(".*") if path.name not in (".lock", ".lock.json")]


def _interrupted(folder: Path, after: float, stop: int) -> bool:
    """Start the run, send the signal after some seconds; whether it was stopped before its end."""
    with _process(folder) as process:
        time.sleep(after)
        process.send_signal(stop)
        errors = process.communicate(timeout=120)[1]
        assert "Traceback" not in errors
        if process.returncode in (0, 1):
            return False
        assert process.returncode in (-stop, 130, 128 + stop), errors
        return True


def _process(folder: Path) -> subprocess.Popen[str]:
    options = [part for setting in OVERRIDES for part in ("-o", setting)]
    # A shell that starts the tests in the background lets them, and their children, ignore SIGINT.
    listening = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{listening}runpy.run_module('qrobust', run_name='__main__')"]
    return subprocess.Popen(
        [*command, "run", "spectral-shapes", *options, "--out", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_report_of_another_file_is_not_shown(copy: Path) -> None:
    """`qrobust report` alone, after the artifact was replaced."""
    from qrobust.report.collect import collect

    shutil.rmtree(copy / "qm-4" / "artifact")
    shutil.copytree(copy / "qm-32" / "artifact", copy / "qm-4" / "artifact")
    width = collect(copy).widths[1]
    assert width.verdict == "not checked"
    assert width.attacked is None
    assert json.loads((copy / "qm-4" / "check.json").read_text())["passed"] in (True, False)

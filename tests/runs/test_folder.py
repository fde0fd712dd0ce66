"""Paths of a run, and who may work in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qrobust.errors import RunError
from qrobust.runs.folder import RunFolder, judged, locked

WORKER = "import sys, time; from pathlib import Path; from qrobust.runs.folder import locked\n" \
         "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that says it is a run's."""
    folder = tmp_path / "run"
    (folder / "qm-4").mkdir(parents=True)
    (folder / "recipe.toml").touch()
    return folder


def test_a_run_and_its_networks_are_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [RunFolder.find(path)[1] for path in (run, run / "qm-4")] == [None, 4]
    assert RunFolder.find(run / "qm-4")[0].path == run
    monkeypatch.chdir(run / "qm-4")
    assert (RunFolder.find(Path())[0].path.resolve(), RunFolder.find(Path())[1]) == (run, 4)
    for wrong in (run.parent, run / "qm-4" / "qm-2", run / "qm-x"):
        with pytest.raises(RunError, match="qrobust run RECIPE --out"):
            RunFolder.find(wrong)


@pytest.mark.parametrize(
    ("record", "expected"),
    [({"model": "a"}, "a"), ({"artifact": {"sha256": "b"}}, "b"), ({"artifact": "name", "model": "c"}, "c"),
     ({}, None), ([], None), ({"model": 3}, None)],
)  # fmt: skip
def test_a_check_and_an_attack_say_which_file_they_are_of(record: object, expected: str | None) -> None:
    assert judged(record) == expected


def test_networks_are_moved_aside_one_after_the_other(run: Path) -> None:
    files = RunFolder(run)
    places = []
    for _ in range(2):
        (run / "qm-4").mkdir(exist_ok=True)
        places.append(files.move_aside(4).name)
    assert places == ["qm-4.1", "qm-4.2"]
    assert not (run / "qm-4").exists()


def test_a_folder_at_work_is_refused_naming_its_holder_and_free_after_a_kill(run: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER, str(run)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "in\n"
        with pytest.raises(RunError, match=f"process {worker.pid} .* at work in it; wait for its end"), locked(run):
            pass
        worker.kill()
    with locked(run):
        assert str(os.getpid()) in (run / ".lock.json").read_text()
    assert not (run / ".lock.json").exists()


def test_what_killed_writers_left_goes_and_everything_else_stays(run: Path) -> None:
    ours = (".recipe.toml.abcd1234.partial", "qm-4/.eval.json.abcd1234.partial", "qm-4/.artifact.a_c41234/model.onnx")
    others = (
        ".gitignore",
        ".notes.original",
        "qm-4/.keep.json.bak",
        "mine/.eval.json.abcd1234.partial",
        "qm-4/thesis.txt",
    )
    for name in (*ours, *others):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("text")
    with locked(run):
        pass
    assert [name for name in ours if (run / name).exists()] == []
    assert [name for name in others if not (run / name).exists()] == []

"""A stage is done while everything that it read and wrote is what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qrobust.runs.stages import Stage, fingerprint, without_key


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """A finished stage that read a file and wrote one, and a folder."""
    for name in ("weights", "masks", "artifact/model.onnx", "artifact/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def made(settings: object = 1) -> Stage:
        writes = {name: tmp_path / name for name in ("masks", "artifact")}
        return Stage(tmp_path / "eval.json", settings, {"weights": tmp_path / "weights"}, writes)

    made().finish({"n": 3})
    return made


def test_it_is_done_and_its_result_is_in_the_record(stage: Callable[..., Stage]) -> None:
    assert stage().done()
    assert without_key(stage().recorded() or {}) == {"n": 3}
    assert not stage(settings=2).done()


@pytest.mark.parametrize("name", ["weights", "masks", "artifact/model.onnx", "artifact/new", "eval.json"])
@pytest.mark.parametrize("content", ["other", "", None])
def test_a_file_that_was_changed_emptied_or_removed_undoes_it(
    stage: Callable[..., Stage], tmp_path: Path, name: str, content: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    elif name != "artifact/new":
        (tmp_path / name).unlink()
    assert stage().done() == (content is None and name == "artifact/new")


@pytest.mark.parametrize(
    ("harm", "said"),
    [({}, "settings have changed"), ({"weights": "other"}, "what it read has changed: weights"),
     ({"masks": None, "artifact/new": "file"}, "what it wrote has changed: masks, artifact"),
     ({"eval.json": "{"}, "its record is damaged"), ({"eval.json": None}, "not done yet")],
)  # fmt: skip
def test_why_it_is_done_again(
    stage: Callable[..., Stage], tmp_path: Path, harm: dict[str, str | None], said: str
) -> None:
    for name, content in harm.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(content)
    assert stage(settings=2).why() == said


@pytest.mark.parametrize("record", ["[1]", "{", '{"key": 1}', "null"])
def test_a_record_that_is_none_is_not_believed(stage: Callable[..., Stage], record: str) -> None:
    stage().record.write_text(record)
    assert not stage().done()


@pytest.mark.parametrize("change", [{"n": 4}, {"more": 1}, {"result": "0" * 64}])
def test_a_result_that_was_changed_is_not_believed(stage: Callable[..., Stage], change: dict[str, object]) -> None:
    record = stage().record
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert (stage().done(), stage().recorded()) == (False, None)


def test_a_record_without_its_own_digest_is_read_and_not_done(stage: Callable[..., Stage]) -> None:
    found = json.loads(stage().record.read_text())
    del found["result"]
    stage().record.write_text(json.dumps(found))
    assert (stage().done(), stage().recorded()) == (False, found)


def test_a_run_may_be_moved(stage: Callable[..., Stage], tmp_path: Path) -> None:
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    writes = {name: moved / name for name in ("masks", "artifact")}
    assert Stage(moved / "eval.json", 1, {"weights": moved / "weights"}, writes).done()
    assert str(tmp_path) not in json.dumps(json.loads((moved / "eval.json").read_text()))
    moved.rename(tmp_path)


def test_names_of_files_are_part_of_a_folder_s_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    before = fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path / "none") is None

"""A reader finds the old file or the new one, whole."""

import errno
import json
import os
from pathlib import Path

import pytest

from qrobust.errors import RunError
from qrobust.storage import digest, read_json, write_bytes, write_json, write_text


def everything_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_whole_in_folders_made_for_it(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"\x00\x01")
    assert everything_in(tmp_path / "a" / "b") == {"file": b"\x00\x01"}


def test_a_file_is_replaced(tmp_path):
    write_text(tmp_path / "file", "a much longer text")
    write_text(tmp_path / "file", "λ")
    assert everything_in(tmp_path) == {"file": "λ".encode()}


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    finally:
        assert os.umask(before) == 0o027


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError) as caught:
        write_text(tmp_path / "file", "new")
    place = tmp_path / "file"
    reason = "No space left on device"
    assert str(caught.value) == (
        f"expected a writable place, cannot write {place}: {reason}; choose another with --out"
    )
    assert everything_in(tmp_path) == {"file": b"old"}


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "new")
    assert everything_in(tmp_path) == {"file": b"old"}


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file, no folder")
    with pytest.raises(RunError, match=r"^expected a writable place, cannot write .*taken/run/file: ") as caught:
        write_text(tmp_path / "taken" / "run" / "file", "x")
    assert "\n" not in str(caught.value)


def test_json_keeps_order_and_value(tmp_path):
    value = {"z": [1, 2.5, None], "a": {"text": "λ → π"}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert list(read_json(tmp_path / "file.json")) == ["z", "a"]
    assert (tmp_path / "file.json").read_text().endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(tmp_path, number):
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": [number]})
    assert json.loads(Path(tmp_path / "file.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_what_is_no_json_is_named_in_one_line(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(RunError, match=r"^expected a JSON file at .*file\.json: .*; remove it to make it anew$"):
        read_json(tmp_path / "file.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"^expected a JSON file at .*: .*No such file"):
        read_json(tmp_path / "file.json")


def test_digest_is_blind_to_the_order_of_keys_alone():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    different = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": "1"}, {"a": None}, {}]
    assert len({digest(value) for value in different}) == len(different)
    assert len(digest({})) == 64


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".a.json.abcd_123").write_text("half")
    (tmp_path / ".b.json.abcd_123").write_text("another's")
    write_json(tmp_path / "a.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.abcd_123", "a.json"]

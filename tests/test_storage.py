"""A reader finds the old file or the new one, whole."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qrobust.errors import RunError
from qrobust.storage import (
    STDOUT,
    digest,
    expect_place,
    is_stdout,
    is_stream,
    read_json,
    read_lines,
    read_result,
    write_bytes,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent


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
    assert str(caught.value) == (f"expected a writable place, cannot write {place}: {reason}; choose another place")
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
    with pytest.raises(RunError, match=r"^expected a JSON file at .*file\.json, got: .*; measure it anew$"):
        read_json(tmp_path / "file.json", "measure it anew")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"^expected a JSON file at .*: .*No such file"):
        read_json(tmp_path / "file.json")


def test_digest_is_blind_to_the_order_of_keys_alone():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    different = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": "1"}, {"a": None}, {}]
    assert len({digest(value) for value in different}) == len(different)
    assert len(digest({})) == 64


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.json.abcd_123.partial").write_text("half")
    kept = [".a.json.original", ".b.json.abcd_123.partial"]  # a user's, another file's
    for name in kept:
        (tmp_path / name).write_text("")
    with (tmp_path / ".a.json.abcd_124.partial").open("w") as file:  # a living writer's
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        file.write("half")
        file.flush()
        write_json(tmp_path / "a.json", 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".a.json.abcd_124.partial", "a.json"])
    write_json(tmp_path / "a.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a.json"])


def test_a_name_as_long_as_names_may_be(tmp_path):
    write_text(tmp_path / ("a" * 255), "x")
    assert everything_in(tmp_path) == {"a" * 255: b"x"}


# standard output, links, pipes and devices


def test_a_dash_is_standard_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_json(STDOUT, {"a": "λ"})
    assert json.loads(capsys.readouterr().out) == {"a": "λ"}
    assert everything_in(tmp_path) == {}
    assert (is_stdout(STDOUT), is_stream(STDOUT), is_stream(tmp_path / "new")) == (True, True, False)


@pytest.mark.parametrize(
    ("name", "shell"),
    [("-", "{} > out"), ("/dev/stdout", "{} >> out"), ("/dev/fd/1", "{} | cat > out"), ("out", "{} > out")],
)
def test_every_name_of_standard_output_keeps_what_is_printed_beside(tmp_path, name, shell):
    code = f"print('before'); from pathlib import Path; from qrobust.storage import *; write_text(Path('{name}'), 'x')"
    command = shell.format(f'"{sys.executable}" -c "{code}; print(); print(is_stdout(Path({name!r})))"')
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert everything_in(tmp_path) == {"out": b"before\nx\nTrue\n"}


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("old")
    for link, to in (("link", "deep/file"), ("dangling", "deep/new"), ("twice", "link")):
        (tmp_path / link).symlink_to(to)
    write_text(tmp_path / "dangling", "n")
    write_text(tmp_path / "twice", "t")
    assert everything_in(tmp_path / "deep") == {"file": b"t", "new": b"n"}
    assert all((tmp_path / link).is_symlink() for link in ("link", "dangling", "twice"))


def test_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_text(tmp_path / "pipe", "x" * 100_000)
        assert reader.communicate()[0] == b"x" * 100_000
    assert is_stream(tmp_path / "pipe")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_is_written_through(tmp_path):
    null = Path(os.devnull)
    before = null.stat()
    write_text(null, "x")
    assert os.path.samestat(before, null.stat())
    with pytest.raises(RunError, match="cannot write /dev/full: No space left on device; choose another place"):
        write_text(Path("/dev/full"), "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "expected a file to write, got the folder"), ("taken/file", "which is none; choose another"),
     ("artifact/manifest.json", "outside of an artifact"), ("artifact/new.json", "outside of an artifact")],
)  # fmt: skip
def test_a_place_is_refused_before_any_work(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").write_text("")
    write_json(tmp_path / "artifact" / "manifest.json", {})
    write_bytes(tmp_path / "artifact" / "suite.npz", b"")
    with pytest.raises(RunError, match=said):
        expect_place(tmp_path / name)
    for good in ("new", "folder/new", "some/where/new", "taken"):
        expect_place(tmp_path / good)


# JSON that two readers could take for two things, or that no reader can take


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"a": 1, "a": 2}', "the key 'a' twice"), ('[{"b": {"limits": 1, "limits": 2}}]', "the key 'limits' twice"),
     ("[NaN]", "NaN, which"), ("[-Infinity]", "-Infinity, which"), ("[1e999]", "1e999, which"),
     ("[" * 100_000, "recursion"), ("9" * 5000, "integer"), ('"\\x1b[2J"', "escape"), ("\ufeff1", "BOM")],
)  # fmt: skip
def test_what_is_not_strictly_json_is_one_line(tmp_path, text, said):
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=said) as caught:
        read_json(tmp_path / "file.json")
    assert str(caught.value).isprintable()


def test_lines_are_read_up_to_one_that_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == ()
    for last in (b'{"epoch": 2, "epo', b"[1]", b"3", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff", b"[" * 99_999):
        path.write_bytes(b'{"epoch": 1}\n' + last)
        assert read_lines(path) == ({"epoch": 1},), last


def test_keys_of_older_results_have_today_s_names(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text('{"twin": "a", "doubts": {"twin": 1}, "n": 2}')
    assert read_result(path) == {"reference": "a", "sanity_checks": {"twin": 1}, "n": 2}

"""Every verb's exit code in a process of its own: 0 held, 1 a limit was broken, 2 it could not run; and no other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qrobust import __version__, cli

from .conftest import CommandLine, call
from .test_runtime import WEIGHT, edit, model_bytes, suite_arrays, write

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "0.1.0"
QUICK = ("--queries", "50")
CLOSED = 141


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts sound/, broken/ (other weights, their hash in the manifest) and damaged/; run/, a finished run."""
    folder = tmp_path_factory.mktemp("codes")
    for name in ("sound", "broken", "damaged"):
        write(folder / name, suite_arrays())
    (folder / "broken" / "model.onnx").write_bytes(model_bytes(weight=-WEIGHT))
    edit(folder / "broken")
    with (folder / "damaged" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    shutil.copytree(FIXTURE, folder, dirs_exist_ok=True)
    return folder


SHORT = ("--adaround", "0", "-o", "evaluate.attacks=['fgsm']", "-o", "export.suite_attacks=['strong:quick:budget=21']",
         "-o", "attack.attacks=['pgd-2']", "-o", "attack.n=9", "-o", "bench.seconds=0.05")  # fmt: skip
LIGHT = {
    "check": [None, None, None],  # test_verify.py, beside verify.py
    "report": [("run",), None, ("damaged",)],
    "recipes": [(), None, ("extra",)],
    "targets": [(), None, ("extra",)],
    "--version": [(), None, None],
    "--help": [(), None, None],
    "no-such-verb": [None, None, ()],
}
HEAVY = {
    "init": [None, None, ("sound",)],
    "run": [("run/recipe.toml", "--out", "run"), ("run/recipe.toml", "--out", "run", "-o", "export.target=strict.toml"),
            ("run/recipe.toml", "--out", "run", "-o", "train.lr=0.5")],
    "train": [("run/recipe.toml", "--out", "run"), None, ("run/recipe.toml", "--out", "run", "-o", "seed=5")],
    "ptq": [("run", "--out", "made", *SHORT), ("run", "--out", "strict", *SHORT, "-o", "export.target=strict.toml"),
            ("run", "--bits", "9", "--out", "made")],
    "allocate": [("run", "--budget", "0.6x", "--widths", "4", "-n", "4", "--out", "bits"), None,
                 ("run", "--budget", "half", "--out", "bits")],
    "eval": [("run/qm-4", "--attacks", "fgsm", "-n", "9"), None, ("damaged",)],
    "compare": [("eval.json", "eval.json"), None, ("eval.json", "run/report.json")],
    "analyze": [("run/qm-4", "--figures", "kernels", "-n", "9", "--out", "figures"), None, ("run", "--figures", "no")],
    "export": [("run", "--out", "exported"), None, ("sound",)],
    "bench": [("sound", "--batch", "1", "--seconds", "0.05"), None, ("damaged",)],
    "attack": [("sound", "--attacks", "pgd-2", "-n", "9"), None, ("damaged",)],
    "doctor": [(), None, ("extra",)],
}  # fmt: skip

STRICT = """description = "no file is as small as this"
provider = "CPUExecutionProvider"
limits = {label_flips = 0.1, accuracy_drop = 0.1, robust_drop = 0.1, square_gap = 0.1, size_bytes = 1}
statistics = {detected_drop = 0.5}
square = {queries = 50, n = 50}
"""


def _cases(table: dict[str, list[tuple[str, ...] | None]]) -> list[tuple[str, tuple[str, ...], int]]:
    return [(verb, arguments, code) for verb, found in table.items() for code, arguments in enumerate(found)
            if arguments is not None]  # fmt: skip


def _expect(place: Path, verb: str, arguments: tuple[str, ...], code: int) -> None:
    done = call([verb, *arguments], place)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        *_, line = done.stderr.splitlines()
        assert (done.stdout, line.startswith("error: "), line.isprintable()) == ("", True, True)


def test_every_verb_is_here() -> None:
    known = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    assert known <= {*LIGHT, *HEAVY}


@pytest.mark.parametrize(("verb", "arguments", "code"), _cases(LIGHT))
def test_the_code_of_a_light_verb(place: Path, verb: str, arguments: tuple[str, ...], code: int) -> None:
    _expect(place, verb, arguments, code)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "arguments", "code"), _cases(HEAVY))
def test_the_code_of_a_verb_that_needs_torch(place: Path, verb: str, arguments: tuple[str, ...], code: int) -> None:
    (place / "strict.toml").write_text(STRICT)
    _expect(place, verb, arguments, code)


@pytest.mark.slow
def test_doctor_finds_what_is_missing(place: Path) -> None:
    code = "import sys, qrobust.__main__ as m, qrobust.doctor as d; d.NEEDED = ('no-such',); sys.argv[1:] = ['doctor']"
    done = subprocess.run([sys.executable, "-c", f"{code}; m.main()"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[:2]) == (1, ["missing", "no-such"])
    assert "pip install no-such" in done.stdout


# What stands around a verb


def test_the_version(command_line: CommandLine) -> None:
    assert command_line("--version") == (0, f"qrobust {__version__}\n", "")


def test_the_volume_stands_anywhere_and_is_one(command_line: CommandLine) -> None:
    for arguments in (("-q", "recipes"), ("recipes", "-q"), ("recipes", "--verbose")):
        assert command_line(*arguments)[0] == 0
    assert command_line("recipes", "-q", "-v")[2] == "error: expected -q or -v, got both; leave one out\n"
    assert command_line("check", "--", "-q")[2].startswith("error: expected an artifact in -q")


@pytest.mark.parametrize(
    ("words", "found"), [("qrobust ben", "bench"), ("qrobust run digi", "digits"), ("qrobust run --on", "--on-event")]
)
def test_a_shell_completes(words: str, found: str) -> None:
    """As the script of --show-completion asks, and without torch."""
    asked = {"_QROBUST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "import sys; sys.argv = ['qrobust']; import qrobust.__main__ as m\ntry: m.main()\n"
    program += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked})
    assert (done.returncode, done.stdout.split()) == (0, [found]), done.stderr


def test_nothing_asked_is_help_and_no_success(command_line: CommandLine) -> None:
    code, out, error = command_line()
    assert (code, error, "Commands:" in out) == (2, "", True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("chek",), "No such command 'chek'. Did you mean 'check'?"), (("check", "--foo"), "No such option: --foo"),
     (("report",), "Missing argument 'RUN...|ARTIFACT'"), (("eval", "a", "-n", "x"), "Invalid value for '-n'"),
     (("eval", "a", "--json"), "Option '--json' requires an argument")],
)  # fmt: skip
def test_a_slip_in_the_command_is_one_line(command_line: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    code, out, error = command_line(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert error.endswith("; see qrobust --help, or the verb's\n")


@pytest.mark.parametrize(
    "arguments",
    [("check", "A", "--baseline", ""), ("run", "digits", "--out", ""), ("report", "R", "--out="), ("check", ""),
     ("bench", "A", "--plot="), ("attack", "A", "--data", ""), ("eval", "R", "--json", ""), ("run", "")],
)  # fmt: skip
def test_an_empty_name_is_an_unset_variable(command_line: CommandLine, arguments: tuple[str, ...]) -> None:
    code, out, error = command_line(*arguments)
    option = next((part.rstrip("=") for part in arguments if part.startswith("--")), "an argument")
    assert (code, out) == (2, "")
    assert error == f"error: expected a value for {option}, got an empty one; set it, or leave it out\n"


def _raising(error: BaseException) -> Callable[[], None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), CLOSED, ""),
        (MemoryError(), 2, "expected more memory"),
        (OSError(12, "Cannot allocate memory"), 2, "expected more memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "expected more memory"),
        (OSError(28, "No space left on device", "a/b"), 2, "expected to reach a/b, got: No space left on device"),
        (
            ImportError("x.so: failed to map segment\nfrom shared object"),
            2,
            "expected a library that loads, got: x.so: f",
        ),
        (ImportError("cannot import name", name="qrobust.x"), 70, "Traceback"),
        (ZeroDivisionError("division by zero"), 70, "Traceback"),
        (SystemExit(1), 70, ""),
    ],
)
def test_one_is_a_verdict_only(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr("qrobust.resources.listing", _raising(error))
    ended, out, told = command_line("recipes")
    assert (ended, out, said in told) == (code, "", True)
    if code == 2:
        assert (told.startswith("error: expected "), told.count("\n")) == (True, 1)
    assert bool(told) == bool(said)


SHELL = {
    "a full disk": ("{} recipes > /dev/full", 2, "expected to reach standard output, got: No space left on device"),
    "a reader that has gone": ("{} recipes | true; exit ${{PIPESTATUS[0]}}", CLOSED, ""),
    "no standard output": ("{} recipes >&-", 0, ""),
    "little memory": ("ulimit -v 100000; {} check sound --queries 50", 2, "expected more memory"),
    "ASCII": ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {} recipes", 0, ""),
}


@pytest.mark.parametrize("name", SHELL)
def test_what_a_shell_does_to_it(place: Path, name: str) -> None:
    command, code, said = SHELL[name]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run(
        ["bash", "-c", command.format(f'"{sys.executable}" -m qrobust')],
        cwd=place, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert (said in done.stderr, done.stderr.count("\n")) == (True, bool(said)), done.stderr


def test_ctrl_c_ends_a_check_with_130(place: Path) -> None:
    command = [sys.executable, "-m", "qrobust", "check", "sound", "--queries", "1000000"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(2)
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=60)
    assert (running.returncode, out, "Traceback" in error) == (130, "", False), error


# Where results go


def test_a_page_on_standard_output_alone(place: Path) -> None:
    before = sorted((place / "run").rglob("*"))
    done = call(["report", "run", "--out", "-"], place)
    assert (done.returncode, done.stderr) == (0, "report: -\n")
    assert done.stdout.startswith("<!DOCTYPE html>")
    assert sorted((place / "run").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [("compare", "eval.json", "eval.json"), ("attack", "sound", "--attacks", "pgd-2", "-n", "9"),
     ("eval", "sound", "--attacks", "gn", "-n", "9"), ("bench", "sound", "--batch", "1", "--seconds", "0.05")],
)  # fmt: skip
def test_json_on_standard_output_can_be_piped(place: Path, verb: tuple[str, ...]) -> None:
    before = sorted(place.rglob("*"))
    done = call([*verb, "--json", "-"], place)
    assert (done.returncode, isinstance(json.loads(done.stdout), dict)) == (0, True), done.stderr
    assert any(letter in done.stderr for letter in ("│", "set"))  # the table
    assert sorted(place.rglob("*")) == before


@pytest.mark.slow
def test_a_result_does_not_go_into_an_artifact(place: Path) -> None:
    for name in ("sound/manifest.json", "sound/new.json"):
        done = call(["attack", "sound", "--attacks", "pgd-2", "--json", name], place)
        assert (done.returncode, "outside of an artifact" in done.stderr) == (2, True), done.stderr
    assert np.load(place / "sound" / "suite.npz").files

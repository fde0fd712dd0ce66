"""What people read on a screen: names from files are text, whatever they hold, on any terminal."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qrobust import progress
from qrobust.progress import bar, note, plain
from qrobust.storage import read_result
from qrobust.tables import (
    accuracy_text,
    artifact_table,
    artifact_text,
    attack_table,
    evaluation_table,
    percent,
    places_table,
    run_table,
    threat_text,
    timing_table,
)

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "0.1.0"
NAME = "a[/b] [link=http://x]y[/link] :smile: [red] \x1b[2J\nz"
AS_TEXT = "a[/b] [link=http://x]y[/link] :smile: [red] ?[2J z"


def load(name):
    return read_result(FIXTURE / name)


def renamed(value, key=None):
    """Every text of a value replaced, and every key that names an attack or an artifact."""
    if isinstance(value, dict):
        names = {name: f"{NAME}{name}" for name in value if name.startswith(("pgd", "gn", "apgd", "spectral"))}
        return {names.get(name, name): renamed(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, key) for part in value]
    return NAME if isinstance(value, str) and key not in ("metric", "verdict") else value


TABLES = {
    "run": lambda: run_table(renamed(load("run/report.json"))),
    "places": lambda: places_table(renamed(load("run/report.json"))),
    "evaluation": lambda: evaluation_table({NAME: renamed(load("eval.json"))}),
    "attack": lambda: attack_table(renamed(load("run/qm-4/attack.json"))),
    "timing": lambda: timing_table(renamed(load("run/bench.json"))),
    "artifact": lambda: artifact_table(renamed(load("run/bench.json"))),
}


def test_one_text_for_a_threat_and_one_for_an_accuracy():
    assert threat_text({"norm": "linf", "eps": 8 / 255}) == "linf, eps 8/255"
    assert threat_text({"norm": "l2", "eps": 0.5}) == "l2, eps 0.5"
    cell = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    assert accuracy_text(cell) == "50.0 (40.0–60.0)"
    assert accuracy_text(cell | {"bounded": False}) == "50.0 (40.0–60.0) *"
    assert (percent(None), percent(0.01234, 2)) == ("-", "1.23")


def test_tables_need_no_torch():
    code = "import sys, qrobust.tables; print({'torch', 'numpy', 'matplotlib', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", TABLES)
def test_a_name_in_a_table_is_text(name, encoding):
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, errors="replace")
    Console(file=file, width=4000, force_terminal=True).print(TABLES[name]())
    file.flush()
    shown = buffer.getvalue().decode(encoding)
    assert AS_TEXT in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]8" not in shown  # a link
    assert ("│" in shown) == (encoding == "utf-8")


def test_a_note_and_a_bar_show_names_as_text(monkeypatch):
    console = Console(file=io.StringIO(), width=300, force_terminal=True)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    note(NAME)
    with bar(NAME, 3, "images") as moving:
        moving.advance()
        moving.describe(NAME, NAME)
    first, *_ = shown = console.file.getvalue().splitlines()
    assert first == AS_TEXT
    assert any(AS_TEXT in line for line in shown[1:])
    assert plain(NAME).plain == AS_TEXT


@pytest.mark.parametrize(
    ("provider", "ending"),
    [("CPUExecutionProvider", ""), ("TensorrtExecutionProvider",
      "; measured on CPUExecutionProvider, which stands in for TensorrtExecutionProvider")],
)  # fmt: skip
def test_a_stand_in_is_named(tmp_path, provider, ending):
    artifact = shutil.copytree(FIXTURE / "run" / "qm-4" / "artifact", tmp_path / "artifact")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["target"]["provider"] = provider
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    line = artifact_text(artifact)
    assert line.endswith(f"{ending}")
    assert ("stands in" in line) == bool(ending)

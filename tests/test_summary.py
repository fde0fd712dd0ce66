"""What people read on a screen: names from files are text, whatever they hold, on any terminal."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qrobust import progress
from qrobust.bench.tables import facts, timings
from qrobust.progress import bar, note, plain
from qrobust.summary import evaluation_table, gap_table, headline_table, table
from qrobust.verbs import exported

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "0.1.0"
NAME = "a[/b] [link=http://x]y[/link] :smile: [red] \x1b[2J\nz"
AS_TEXT = "a[/b] [link=http://x]y[/link] :smile: [red] ?[2J z"


def load(name):
    return json.loads((FIXTURE / name).read_text())


def renamed(value, key=None):
    """Every text of a value replaced, and every key that names an attack or an artifact."""
    if isinstance(value, dict):
        names = {name: f"{NAME}{name}" for name in value if name.startswith(("pgd", "gn", "apgd", "spectral"))}
        return {names.get(name, name): renamed(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, key) for part in value]
    return NAME if isinstance(value, str) and key not in ("metric", "verdict") else value


TABLES = {
    "table": lambda: table(renamed(load("run/report.json"))),
    "headline_table": lambda: headline_table(renamed(load("run/report.json"))),
    "evaluation_table": lambda: evaluation_table({NAME: renamed(load("eval.json"))}),
    "gap_table": lambda: gap_table(renamed(load("run/qm-4/attack.json"))),
    "timings": lambda: timings(renamed(load("run/bench.json"))),
    "facts": lambda: facts(renamed(load("run/bench.json"))),
}


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
    ("provider", "said"),
    [("CPUExecutionProvider", ""), ("TensorrtExecutionProvider",
      "; measured on CPUExecutionProvider, which stands in for TensorrtExecutionProvider")],
)  # fmt: skip
def test_a_stand_in_is_named(tmp_path, provider, said):
    artifact = shutil.copytree(FIXTURE / "run" / "qm-4" / "artifact", tmp_path / "artifact")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["target"]["provider"] = provider
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    line = exported(artifact)
    assert line.endswith(f"{said}")
    assert ("stands in" in line) == bool(said)

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
    headline_table,
    ordered,
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
    "headline": lambda: headline_table(renamed(load("run/report.json"))),
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


def text_of(*tables, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(*tables)
    return console.file.getvalue()


def strong(bits):
    """A width of a run whose attacks are those of today, as long as its texts get."""
    cell = {"accuracy": 0.75, "ci95": [0.698, 0.7956]}
    attacks = {name: {**cell, "bounded": True} for name in ("fgsm", "pgd-20", "strong")}
    cells = {place: {**cell, "by": "strong", "weak": False} for place in ("in_torch", "replayed", "attacked")}
    flags = [{"name": "last-step", "measured": 0.2, "limit": 0.05, "reason": "r", "hint": "h"}] if bits == 2 else []
    return {
        "bits": bits, "size_bytes": 312_056, "label_flips": 0.0, "verdict": "held", "broken": [], "flags": flags,
        "before": {"n": 1000, "images": "ab", "clean": cell, "attacks": attacks, "worst_case": cell},
        "after": {"n": 1000, "accuracy": {"clean": 0.75, "strong": 0.75, "square": 0.75}, "worst_case": 0.76},
        "gap": {"n": 1000, "images": "ab", "by": "strong", **cells},
        "latency": {str(batch): {"p50_ms": 0.45, "speedup": 1.0} for batch in (1, 32)},
    }  # fmt: skip


def test_a_run_fits_120_columns_with_the_verdict_first():
    result = {"recipe": "digits", "threat": {"norm": "linf", "eps": 20 / 255}, "widths": [strong(32), strong(2)]}
    text = text_of(headline_table(result), run_table(result), places_table(result))
    assert max(map(len, text.splitlines())) <= 120
    first, verdict, other = (line for line in text.splitlines() if "export held" in line)
    assert first.strip() == (
        "digits, linf, eps 20/255: export held; flagged: QM-2; under attack 75.0 % (QM-2) to 75.0 % (QM-32)"
    )
    assert "│ ✓ QM-32 │ export held; under attack 75.0 % (n = 1000) " in verdict
    assert "│ ! QM-2  │ export held; flagged; under attack 75.0 % (n = 1000, float model 75.0 %) │" in other
    assert other.endswith("│ 69.8–79.6 │ strong, on the file │")
    heads = [column.header.plain if hasattr(column.header, "plain") else column.header
             for column in run_table(result).columns]  # fmt: skip
    assert heads[2:7] == ["clean", "worst", "strong", "pgd-20\nlast step", "Square"]
    assert "│ 75.0 → 76.0 │ 75.0 → 75.0 │      75.0 │" in text  # what papers report is of torch alone


def test_a_verdict_has_its_colour():
    result = {"recipe": "digits", "threat": {"norm": "linf", "eps": 20 / 255}}
    broken = strong(4) | {"verdict": "broken", "broken": [{"name": "square_gap"}]}
    drawn = headline_table(result | {"widths": [strong(32), broken, strong(2)]})
    assert [str(cell.style) for cell in drawn.columns[1].cells] == ["green", "red", "yellow"]


def test_the_strongest_attack_comes_first_and_papers_last():
    result = load("eval.json")
    cell = next(iter(result["attacks"].values())) | {"bounded": True}
    noise = cell | {"bounded": False}
    result["attacks"] = {"gn": noise, "bim-20": cell, "apgd-t": cell, "strong:quick": cell}
    assert ordered(result["attacks"]) == ["strong:quick", "apgd-t", "bim-20", "gn"]
    drawn = evaluation_table({"QM-2": result})
    heads = [str(column.header) for column in drawn.columns]
    assert heads == ["network", "clean", "worst case", "strong:quick", "apgd-t", "bim-20\nlast step", "gn"]
    assert "blind to what the attack broke" in str(drawn.caption)
    assert str(drawn.caption).endswith("* not bounded by eps")


def test_a_file_under_attack_shows_the_worst_case_first():
    result = load("run/qm-4/attack.json")
    rows = [str(cell) for cell in attack_table(result).columns[0].cells]
    assert rows == ["clean", "worst case", "square-50", "gn", "pgd-10, last step"]


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

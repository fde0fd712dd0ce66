"""`qrobust report RUN` as a user calls it, and the end of `qrobust run`."""

import configparser
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qrobust.report
from qrobust.errors import RunError
from qrobust.report import write

from ..conftest import call
from .conftest import Parsed, change

ROOT = Path(qrobust.report.__file__).resolve().parent.parent.parent


def test_both_files_lie_where_they_should(run, tmp_path):
    done = call(["report", str(run)], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"report: {run / 'report.html'}\n"), done.stderr
    assert (run / "model-card.md").is_file()
    done = call(["report", str(run), "--out", "deep/page.html"], tmp_path)
    assert done.stdout == "report: deep/page.html\n"
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"page.html", "model-card.md"}


def test_a_run_ends_with_its_report(small_run):
    found = json.loads((small_run / "report.json").read_text())
    text = Parsed((small_run / "report.html").read_text()).text
    for width in found["widths"]:
        for said in (width["before"]["worst_case"], width["before"]["attacks"]["pgd-5"]):
            low, high = said["ci95"]
            assert f"{100 * said['accuracy']:.1f} {100 * low:.1f}–{100 * high:.1f}" in text
        assert f"QM-{width['bits']}" in text
    assert text.count("✓ held QM-") == sum(width["verdict"] == "held" for width in found["widths"])
    assert (small_run / "model-card.md").is_file()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [(lambda run: (run / "recipe.toml").unlink(), "expected a run folder with recipe.toml, got "),
     (lambda run: [(run / f"qm-{bits}" / "eval.json").unlink() for bits in (32, 4)], "without one; continue it"),
     (lambda run: (run / "bench.json").write_text("nonsense"), "expected a JSON file at "),
     (lambda run: change(run / "qm-4" / "eval.json", lambda found: {"n": 3}), "got clean: Field required"),
     (lambda run: change(run / "bench.json", lambda found: {"results": [{}]}), "got twin: Field required")],
)  # fmt: skip
def test_bad_input_is_one_line(run, break_it, said):
    before = sorted(run.rglob("*"))
    break_it(run)
    with pytest.raises(RunError, match=said) as caught:
        write(run)
    assert "\n" not in str(caught.value)
    assert not [path for path in run.rglob("*") if path not in before]  # nothing was begun


@pytest.mark.parametrize("name", ["bench", "qm-4/eval", "qm-4/check", "qm-4/train", "qm-4/attack"])
def test_a_damaged_result_can_be_removed_as_the_message_says(run, name):
    path = run / f"{name}.json"
    path.write_text('{"n": 1}')
    with pytest.raises(RunError, match=rf"{name}.json, got .*; remove it, and qrobust run makes it anew"):
        write(run)
    path.unlink()
    write(run)


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [("check", "passed", True, "passed if all of its limits"), ("check", "passed", "x", "a valid boolean, got 'x'"),
     ("check", "worst_case", 1.5, "less than or equal to 1, got 1.5"), ("eval", "n", True, "a valid integer, got True"),
     ("eval", "clean", {"accuracy": 0.9, "ci95": [0.1, 0.2]}, "inside its interval"),
     ("check", "ci95", {}, "an interval and a count for each accuracy")],
)  # fmt: skip
def test_a_forged_result_is_refused(run, name, key, value, said):
    path = run / "qm-4" / f"{name}.json"
    change(path, lambda found: found.update({key: value}))
    with pytest.raises(RunError, match=said) as caught:
        write(run)
    assert str(caught.value).startswith(f"expected a whole result in {path}, got ")


def test_an_output_that_is_no_page_is_refused(run, tmp_path):
    done = call(["report", str(run), "--out", str(run / "bench.json")], tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: expected a file that ends in .html for --out, got {run / 'bench.json'}\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="expected a writable place"):
        write(run, tmp_path / "file" / "page.html")


def test_neither_torch_nor_a_runtime_is_loaded(run):
    program = "import sys; from pathlib import Path; from qrobust.report import write; write(Path(sys.argv[1]))\n"
    program += "print({'torch', 'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_templates_are_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folder = ROOT / "qrobust" / "report"
    patterns = setup["options.package_data"]["qrobust.report"].split(", ")
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == {path for path in folder.iterdir() if path.suffix not in (".py", "") and path.is_file()}

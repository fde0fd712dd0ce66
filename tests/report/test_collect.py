"""What is read of a run folder, and what is said where it is not there."""

import shutil

import pytest

from qrobust.errors import RunError
from qrobust.report.collect import collect
from qrobust.storage import write_json

from .conftest import change


def test_a_whole_run_is_read(run):
    found = collect(run)
    assert [(width.label, width.verdict) for width in found.widths] == [("QM-32", "held"), ("QM-4", "broken")]
    assert found.evaluated == list(found.widths)
    width = found.widths[1]
    assert (width.evaluation["seed"], width.trained["epochs"], len(width.epochs)) == (3, 2, 2)
    assert width.manifest["suite_n"] == 12
    assert 0 < len(width.examples) <= 4  # as many as this network, which is not trained, gets right
    assert [path.name for path in found.analysis] == ["low-pass.json"]


@pytest.mark.parametrize("name", ["eval", "check", "attack", "train"])
def test_what_is_missing_is_none(run, name):
    (run / "qm-4" / f"{name}.json").unlink(missing_ok=True)
    width = collect(run).widths[1]
    shown = (width.evaluation, width.checked, width.attacked, width.trained)
    assert shown[("eval", "check", "attack", "train").index(name)] is None
    assert width.verdict == ("not checked" if name == "check" else "broken")


def test_an_artifact_that_was_changed_is_named_not_shown(run):
    with (run / "qm-4" / "artifact" / "model.onnx").open("ab") as file:
        file.write(b"x")
    width = collect(run).widths[1]
    assert (width.manifest, width.examples) == (None, ())
    assert "expected model.onnx as" in width.problem
    shutil.rmtree(run / "qm-4" / "artifact")
    assert collect(run).widths[1].problem == "not exported yet"


def test_a_verdict_on_another_file_is_none(run):
    change(run / "qm-32" / "check.json", lambda found: found.update(model="0" * 64))
    width = collect(run).widths[0]
    assert width.stale
    assert width.verdict == "not checked"


@pytest.mark.parametrize(("sha256", "shown"), [("0" * 64, False), ("own", True), (None, True)])
def test_an_attack_on_another_file_is_not_shown(run, sha256, shown):
    path = run / "qm-32" / "attack.json"
    own = collect(run).widths[0].manifest["files"]["model.onnx"]["sha256"]
    write_json(path, {"attacks": {}, "artifact": {"sha256": own if sha256 == "own" else sha256}})
    assert (collect(run).widths[0].attacked is not None) is shown
    write_json(path, {"attacks": {}, "artifact": "a name"})
    assert collect(run).widths[0].attacked is not None


def test_a_line_that_a_killed_writer_left_is_not_counted(run):
    with (run / "qm-4" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert len(collect(run).widths[1].epochs) == 2


def test_another_folder_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"expected a run folder with recipe.toml, got .*; make one by qrobust run"):
        collect(tmp_path)


def test_a_run_without_any_evaluation_is_refused(run):
    (run / "qm-4" / "eval.json").unlink()
    assert [width.label for width in collect(run).evaluated] == ["QM-32"]
    (run / "qm-32" / "eval.json").unlink()
    with pytest.raises(RunError, match=r"expected an evaluated run, got .* without one; continue it"):
        collect(run)


@pytest.mark.parametrize(
    ("text", "got"), [("{", "expected a JSON file at"), ("[]", "got the file: expected a valid dict")]
)
def test_json_that_is_none_is_named(run, text, got):
    (run / "qm-4" / "check.json").write_text(text)
    with pytest.raises(RunError, match=got):
        collect(run)

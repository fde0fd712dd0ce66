"""Numbers of the tables are those of the files."""

import pytest

from qrobust.report.collect import collect
from qrobust.report.tables import columns, layers, rows
from qrobust.runtime import wilson
from qrobust.storage import write_json

from .conftest import change, share


def table(run, index=1):
    return rows(collect(run).widths[index])


def test_torch_and_runtime_are_told_apart(run):
    torch, replayed, attacked = table(run)
    assert (torch.cells["pgd-20"].share, torch.cells["pgd-20"].low, torch.cells["pgd-20"].high) == (0.511, 0.254, 0.746)
    assert (torch.cells["gn"].mark, torch.cells["pgd-20"].mark, replayed.cells["square"].mark) == ("*", "", "§")
    assert (replayed.cells["clean"].share, replayed.cells["square"].n, replayed.n) == (0.75, 8, 12)
    worst = replayed.cells["worst case"]
    assert (worst.low, worst.high) == wilson(4, 12)
    assert columns([torch, replayed, attacked]) == ["clean", "worst case", "gn", "pgd-20", "fgsm", "square"]


def test_an_artifact_that_was_not_attacked_says_how(run):
    row = table(run)[2]
    assert (row.cells, row.missing) == ({}, "not attacked yet")
    assert row.command == f"qrobust attack {run}/qm-4/artifact --json {run}/qm-4/attack.json"


def test_an_artifact_that_was_attacked_is_shown(run):
    found = {"attacks": {"bpda-50": share(0.333, 0.1, 0.6)}, "worst_case": share(0.222, 0.1, 0.4)}
    write_json(run / "qm-4" / "attack.json", found)
    row = table(run)[2]
    assert (row.missing, row.n) == ("", None)
    assert {name: cell.share for name, cell in row.cells.items()} == {"bpda-50": 0.333, "worst case": 0.222}


def test_without_a_check_export_has_replayed(run):
    (run / "qm-4" / "check.json").unlink()
    row, after = table(run)[1], collect(run).widths[1].manifest["metrics"]["after"]
    assert {name: cell.share for name, cell in row.cells.items()} == after
    hits = round(after["fgsm"] * 12)
    assert (row.cells["fgsm"].low, row.cells["fgsm"].high) == wilson(hits, 12)
    change(run / "qm-4" / "artifact" / "manifest.json", lambda found: found["metrics"].update(after={}))
    assert table(run)[1].missing == "no runtime here executes it"


def test_a_width_that_was_not_evaluated_says_so(run):
    (run / "qm-4" / "eval.json").unlink()
    assert table(run)[0].missing == "not evaluated yet"
    assert layers(collect(run).widths[1]) == []


def test_layers_have_bits_size_steps_and_mask(run):
    conv, fc = layers(collect(run).widths[1])
    assert (conv.name, conv.size_bytes, conv.steps, conv.mask["max"]) == ("conv1", 500, [0.125, 0.25], 1.25)
    assert fc.mask is None
    first = layers(collect(run).widths[0])[0]
    assert (first.size_bytes, first.steps) == (pytest.approx(4000), None)

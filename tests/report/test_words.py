"""Verdicts in sentences; numbers of the rows are those of the files."""

import pytest

from qrobust.report.collect import collect
from qrobust.report.words import cards, columns, flags, headline, layers, rows
from qrobust.runtime import wilson
from qrobust.storage import write_json

from .conftest import change, checked, share


def test_a_broken_limit_says_which_and_why(run):
    assert headline(collect(run)) == "Broken: QM-4"
    held, broken = cards(collect(run))
    assert (held.kind, held.sign, broken.kind, broken.sign) == ("held", "✓", "broken", "✗")
    assert broken.sentence == "square_gap is 0.0766, at most 0.02 is allowed: wide."
    assert held.sentence == (
        "All 1 limits held on 12 images: 33.3% survive the check's attacks, and 0.00% of labels changed in export."
    )
    write_json(run / "qm-32" / "attack.json", {"attacks": {}, "n": 12, "worst_case": share(0.25, 0.1, 0.5)})
    attacked, _ = cards(collect(run))
    assert attacked.sentence == f"{held.sentence} With gradients of its own, attacks leave 25.0% of 12 images."


@pytest.mark.parametrize(("bits", "expected"), [((4,), "Held: all 2 networks"), ((32, 4), "Broken: QM-32")])
def test_the_headline_names_the_worst(run, bits, expected):
    for width in bits:
        change(run / f"qm-{width}" / "check.json", lambda found, w=width: checked(w == 4, found["model"]))
    assert headline(collect(run)) == expected


def test_what_no_check_has_judged_is_not_called_held(run):
    (run / "qm-4" / "check.json").unlink()
    change(run / "qm-32" / "check.json", lambda found: found.update(model="0" * 64))
    assert headline(collect(run)) == "Not checked: QM-32 and QM-4"
    first, second = cards(collect(run))
    assert first.kind == second.kind == "unknown"
    assert "another model.onnx" in first.sentence
    assert second.sentence.startswith("No check has judged it")


def test_flags_come_with_their_network(run):
    flag = {"name": "square-wins", "measured": 0.1, "limit": 0.01, "reason": "r", "hint": "h"}
    change(run / "qm-4" / "eval.json", lambda found: found["flags"].append(flag))
    write_json(run / "qm-32" / "attack.json", {"attacks": {}, "worst_case": share(0.5, 0.4, 0.6), "flags": [flag]})
    assert [card.sentence.endswith(" 1 flag: look before you trust the numbers.") for card in cards(collect(run))] == [
        True, True,
    ]  # fmt: skip
    assert flags(collect(run)) == [("QM-32's artifact", flag), ("QM-4", flag)]


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

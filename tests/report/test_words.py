"""Verdicts in sentences."""

import pytest

from qrobust.report.collect import collect
from qrobust.report.words import cards, flags, headline
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

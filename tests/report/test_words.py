"""Verdicts in sentences; numbers of the rows are those of the files."""

import pytest

from qrobust.headline import summary
from qrobust.report.collect import collect
from qrobust.report.words import cards, columns, flags, layers, parts, rows
from qrobust.runtime import wilson
from qrobust.storage import write_json

from .conftest import change, share


@pytest.fixture
def strong(run):
    """The run with strong attacks in torch."""
    for bits in (32, 4):
        attack = {"strong": share(0.411, 0.198, 0.681)}
        change(run / f"qm-{bits}" / "eval.json", lambda found, new=attack: found["attacks"].update(new))
    return run


def test_a_broken_limit_says_which_and_why(strong):
    run = strong
    held, broken = cards(collect(run))
    assert (held.kind, broken.kind) == ("held", "broken")
    assert broken.headline.words == "export broken (square_gap); under attack 33.3 % (n = 12, float model 33.3 %)"
    assert broken.sentences == ("square_gap is 0.0766, at most 0.02 is allowed: wide.",)
    assert held.sentences == ("Export: the limit of its check held on 12 images, and 0.00 % of labels changed.",)


def attacked(k=3, **more):
    """An attack on the file, on images of its suite."""
    replayed = {"n": 12, "clean": 0.75, "fgsm": 0.667, "worst_case": 0.667}
    attack = counted(k, 12)
    return {"n": 12, "images": "ef" * 32, "attacks": {"strong": attack}, "worst_case": attack, "flags": [],
            "gap": {"replayed": replayed}} | more  # fmt: skip


def counted(k, n):
    return share(k / n, *wilson(k, n))


def test_every_place_is_looked_at_for_the_lowest_number(run):
    places = [place for card in cards(collect(run)) for place in card.places]
    assert [(place.n, place.in_torch.by, place.replayed.by, place.on_file) for place in places] == [
        (12, "pgd-20", "square", None),
    ] * 2
    write_json(run / "qm-32" / "attack.json", attacked())
    first, _ = cards(collect(run))
    assert first.headline.words == "export held; under attack 25.0 % (n = 12)"
    assert first.headline.number.where == "strong, on the file"
    torch, file = first.places
    assert (torch.on_file, file.in_torch, file.on_file) == (None, None, first.headline.number)
    assert (file.replayed.by, file.replayed.accuracy) == ("fgsm", 0.667)


def test_the_torch_network_is_attacked_as_its_file_was(run):
    """On the same images, which may be those of the evaluation."""
    in_torch = {"attacks": {"strong": counted(2, 12)}, "worst_case": counted(2, 12)}
    write_json(run / "qm-32" / "attack.json", attacked(images="ab" * 32, in_torch=in_torch))
    first, _ = cards(collect(run))
    (place,) = first.places
    assert first.headline.number == place.in_torch
    assert (place.in_torch.accuracy, place.on_file.accuracy) == (2 / 12, 0.25)


def test_images_of_no_suite_are_another_question(run):
    write_json(run / "qm-32" / "attack.json", attacked(gap={"replayed": {}}))
    (found, _) = cards(collect(run))
    assert found.headline.words == "export held; under weak attacks 33.3 % (n = 12)"
    assert found.kind == "unknown"


def test_what_no_check_has_judged_is_not_called_held(run):
    (run / "qm-4" / "check.json").unlink()
    change(run / "qm-32" / "check.json", lambda found: found.update(model="0" * 64))
    first, second = cards(collect(run))
    assert summary([first.headline, second.headline]).startswith("export not checked: QM-32 and QM-4; under ")
    assert first.kind == second.kind == "unknown"
    assert "another model than" in first.sentences[0]
    assert second.sentences[0].startswith("No check has judged it")


PART = {"part": "margin-30", "tried": 10, "broken": 4, "forward_passes": 310, "gradient_passes": 300, "seconds": 0.5}
SQUARE = PART | {"part": "square-240, last", "tried": 6, "broken": 1, "gradient_passes": 0}
NOTHING = PART | {"part": "ce-50, random", "tried": 5, "broken": 0}


def test_the_parts_of_a_cascade_say_what_they_found(run):
    assert parts(collect(run).widths[1]) == []
    took = [PART, SQUARE, NOTHING, SQUARE | {"tried": 5}, NOTHING | {"part": "dlr-50, random"}]
    change(run / "qm-4" / "eval.json", lambda found: found["attacks"]["pgd-20"].update(parts=took))
    write_json(run / "qm-4" / "attack.json", attacked(attacks={"strong": counted(3, 12) | {"parts": [NOTHING]}}))
    torch, file = parts(collect(run).widths[1])
    assert (torch.place, torch.attack, file.place, file.attack) == ("in torch", "pgd-20", "on the file", "strong")
    keys = ("part", "tried", "broken", "forward_passes", "gradient_passes", "seconds")
    assert [tuple(row[key] for key in keys) for row in torch.found] == [
        ("margin-30", 10, 4, 310, 300, 0.5),
        ("square-240, last × 2", 6, 2, 620, 0, 1.0),
        ("2 others", 5, 0, 620, 600, 1.0),
    ]
    assert [row["part"] for row in file.found] == ["ce-50, random"]


def test_flags_come_with_their_network(run):
    flag = {"name": "square-wins", "measured": 0.1, "limit": 0.01, "reason": "r", "hint": "h"}
    change(run / "qm-4" / "eval.json", lambda found: found["flags"].append(flag))
    write_json(run / "qm-32" / "attack.json", {"attacks": {}, "worst_case": share(0.5, 0.4, 0.6), "flags": [flag]})
    found = cards(collect(run))
    assert [card.kind for card in found] == ["unknown", "broken"]
    assert ["; flagged; " in card.headline.words for card in found] == [True, True]
    assert {card.sentences[-1] for card in found} == {"1 flag (square-wins): look before you trust the number."}
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
    assert columns([torch, replayed, attacked]) == ["clean", "worst case", "fgsm", "square", "pgd-20", "gn"]


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

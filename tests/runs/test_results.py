"""What a run's files say of a network, by place."""

import pytest

from qrobust.runs.results import measured
from qrobust.runtime import wilson

FLAG = {"name": "last-step", "measured": 0.2, "limit": 0.05, "reason": "r", "hint": "h"}


def left(share, **more):
    return {"accuracy": share, "ci95": [0.0, 1.0], **more}


def evaluated(**more):
    attacks = {"strong": left(0.5), "gn": left(0.1, bounded=False)}
    whole = {"n": 20, "images": "ab", "clean": left(1.0), "attacks": attacks, "worst_case": left(0.5)}
    return whole | {"flags": [], "versions": {}} | more


def attacked(replayed, **more):
    return evaluated(gap={"replayed": replayed, "in_torch": {}}, **more)


REPLAYED = {"n": 20, "clean": 1.0, "strong": 0.6, "apgd-t": 0.55, "worst_case": 0.55}


def test_every_place_names_the_attack_that_left_least():
    in_torch = {"n": 20, "attacks": {"pgd-20": left(0.7)}, "worst_case": left(0.7)}
    gap = measured(None, None, attacked(REPLAYED, in_torch=in_torch))["gap"]
    assert (gap["n"], gap["images"], gap["by"]) == (20, "ab", "strong")  # noise is no attack within the ball
    assert gap["attacked"] == left(0.5, by="strong", weak=False)
    assert gap["in_torch"] == left(0.7, by="pgd-20", weak=True)
    assert gap["replayed"] == {"accuracy": 0.55, "ci95": list(wilson(11, 20)), "by": "apgd-t", "weak": False}


@pytest.mark.parametrize(
    ("result", "place", "there"),
    [
        (None, "attacked", False),
        (attacked({}), "attacked", False),  # images of no suite
        (attacked(REPLAYED, attacks={"gn": left(0.1, bounded=False)}), "attacked", False),
        (attacked(REPLAYED), "in_torch", False),  # attacked by hand
        (attacked({"n": 20, "clean": 1.0, "worst_case": 1.0}), "replayed", False),  # a suite without attacks
        (attacked({"n": 20, "clean": 1.0, "worst_case": 1.0}), "attacked", True),
    ],
)
def test_what_was_not_measured_is_none(result, place, there):
    gap = measured(None, None, result)["gap"]
    assert bool(gap and gap[place]) == there


def test_flags_say_where_they_were_raised():
    found = measured(evaluated(flags=[FLAG]), None, attacked(REPLAYED, flags=[FLAG]))
    assert [flag["place"] for flag in found["flags"]] == ["in torch", "on the file"]
    assert found["after"] is None
    silent = attacked(REPLAYED)
    del silent["flags"]
    assert measured(evaluated(), None, silent)["flags"] is None
    assert measured(None, None, None)["flags"] == []

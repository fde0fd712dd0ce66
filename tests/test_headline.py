"""One number and one verdict of a network: which, and in which words."""

import json

import pytest

from qrobust.attacks import named
from qrobust.attacks.registry import EXAMPLES
from qrobust.headline import AMBER, GREEN, RED, SIGNS, headlines, is_last_step, summary
from qrobust.runtime import wilson
from qrobust.threat import Threat

FLAG = {"name": "last-step", "measured": 0.2, "limit": 0.05, "reason": "r", "hint": "h"}
SQUARE_GAP = {"name": "square_gap", "passed": False, "measured": 0.1, "limit": 0.02, "reason": "r", "hint": "h"}


def left(k, n, **more):
    """What is left of n images."""
    return {"accuracy": k / n, "ci95": list(wilson(k, n)), **more}


def torch(k, n=300, attack="strong", images="test images", **others):
    """In torch, under one attack and others by name."""
    attacks = {name: left(count, n) for name, count in {attack: k, **others}.items()}
    return {"n": n, "images": images, "clean": left(n, n), "attacks": attacks, "worst_case": left(k, n)}


def runtime(k, n=300):
    """Replayed on the runtime."""
    return {"n": n, "accuracy": {"clean": 1.0, "strong": k / n}, "worst_case": k / n}


def file(in_torch, replayed, attacked, n=100, images="images of the file"):
    """On the same images at every place."""
    places = {"in_torch": in_torch, "replayed": replayed, "attacked": attacked}
    cells = {name: None if k is None else left(k, n, by="strong", weak=False) for name, k in places.items()}
    return {"n": n, "images": images, "by": "strong", **cells}


def width(bits=4, *, flags=(), verdict="held", broken=(), **places):
    return {"bits": bits, "verdict": verdict, "broken": [*broken], "flags": flags, **places}


OLDER = torch(270)
del OLDER["images"]
FLOAT = {"before": torch(276), "after": runtime(276), "gap": file(94, 94, 94)}
CASES = {  # places, what else is known of it, tone, words, where
    "held": ({"before": torch(270)}, {}, GREEN,
             "export held; under attack 90.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "flagged": ({"before": torch(270)}, {"flags": [FLAG]}, AMBER,
                "export held; flagged; under attack 90.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "fell": ({"before": torch(198)}, {}, AMBER,
             "export held; under attack 66.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "broken": ({"before": torch(270)}, {"verdict": "broken", "broken": [SQUARE_GAP]}, RED,
               "export broken (square_gap); under attack 90.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "broken and flagged": ({"before": torch(270)}, {"verdict": "broken", "broken": [SQUARE_GAP], "flags": [FLAG]}, RED,
                           "export broken (square_gap); flagged; under attack 90.0 % (n = 300, float model 92.0 %)",
                           "strong, in torch"),
    "not checked": ({"before": torch(270)}, {"verdict": "not checked"}, AMBER,
                    "export not checked; under attack 90.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "not attacked": ({"before": None, "after": None, "gap": None}, {}, AMBER, "export held; not attacked yet", None),
    "under noise alone": ({"before": torch(270) | {"attacks": {"gn": left(270, 300, bounded=False)}}}, {}, AMBER,
                          "export held; not attacked yet", None),
    "replayed alone": ({"after": runtime(270)}, {}, AMBER, "export held; not attacked yet", None),
    "the file below torch": ({"before": torch(288, 300), "gap": file(95, 94, 91)}, {}, GREEN,
                             "export held; under attack 91.0 % (n = 100, float model 94.0 %)", "strong, on the file"),
    "torch below the file": ({"gap": file(91, 94, 93)}, {}, GREEN,
                             "export held; under attack 91.0 % (n = 100, float model 94.0 %)", "strong, in torch"),
    "a replay below both": ({"before": torch(270), "after": runtime(267)}, {}, GREEN,
                            "export held; under attack 89.0 % (n = 300, float model 92.0 %)", "strong, replayed"),
    "more images below fewer": ({"before": torch(255), "gap": file(90, 91, 89)}, {}, GREEN,
                                "export held; under attack 85.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "fewer images below more": ({"before": torch(210), "gap": file(60, 61, 58)}, {}, AMBER,
                                "export held; under attack 58.0 % (n = 100, float model 94.0 %)",
                                "strong, on the file"),
    "other images than the float model's": ({"before": torch(90, 100, images="others")}, {}, GREEN,
                                            "export held; under attack 90.0 % (n = 100)", "strong, in torch"),
    "equal at every place": ({"before": torch(282), "after": runtime(282), "gap": file(94, 94, 94)}, {}, GREEN,
                             "export held; under attack 94.0 % (n = 300, float model 92.0 %)", "strong, in torch"),
    "equal on the file": ({"gap": file(94, 94, 94)}, {}, GREEN,
                          "export held; under attack 94.0 % (n = 100, float model 94.0 %)", "strong, on the file"),
    "the file attacked by hand": ({"before": torch(270), "gap": file(None, 91, 85)}, {}, GREEN,
                                  "export held; under attack 85.0 % (n = 100, float model 94.0 %)",
                                  "strong, on the file"),
    "last steps alone": ({"before": torch(270, attack="pgd-20", fgsm=280)}, {}, AMBER,
                         "export held; under weak attacks 90.0 % (n = 300, float model 92.0 %)",
                         "pgd-20, in torch"),
    "Square beside last steps": ({"before": torch(270, attack="square-500", **{"pgd-20": 280})}, {}, AMBER,
                                 "export held; under weak attacks 90.0 % (n = 300, float model 92.0 %)",
                                 "square-500, in torch"),
    "best points of one attack": ({"before": torch(270, attack="pgd-20:keep=best")}, {}, GREEN,
                                  "export held; under attack 90.0 % (n = 300, float model 92.0 %)",
                                  "pgd-20:keep=best, in torch"),
    "transfer alone": ({"before": torch(270, attack="transfer-20:keep=best")}, {}, AMBER,
                       "export held; under weak attacks 90.0 % (n = 300, float model 92.0 %)",
                       "transfer-20:keep=best, in torch"),
    "a weak replay below strong attacks": ({"before": torch(276), "after": {
                                               "n": 300, "accuracy": {"clean": 1.0, "fgsm": 0.9}, "worst_case": 0.9}},
                                           {}, GREEN, "export held; under attack 90.0 % (n = 300, float model 92.0 %)",
                                           "fgsm, replayed"),
    "a last step as low as best points": ({"before": torch(270, attack="pgd-20", strong=270)}, {}, GREEN,
                                          "export held; under attack 90.0 % (n = 300, float model 92.0 %)",
                                          "strong, in torch"),
    "an older file": ({"before": OLDER}, {"flags": None}, AMBER,
                      "export held; flags not recorded; under attack 90.0 % (n = 300)", "strong, in torch"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name):
    places, known, tone, words, where = CASES[name]
    _, found = headlines([width(32, **FLOAT), width(4, **places, **known)])
    assert (found.words, found.tone) == (words, tone)
    assert (found.number and found.number.where) == where
    assert "held" not in found.words.replace("export held", "")
    assert found.sign == SIGNS[tone]
    assert json.loads(json.dumps(found.to_dict()))["words"] == words


def test_the_float_model_has_none_beside_it():
    first, alone = headlines([width(32, **FLOAT)])[0], headlines([width(4, before=torch(270))])[0]
    assert first.words == "export held; under attack 92.0 % (n = 300)"
    assert alone.words == "export held; under attack 90.0 % (n = 300)"


def test_older_results_compare_by_their_count():
    older = [
        width(bits, flags=None, before=OLDER, gap={**file(90, 91, 90 - bits % 5), "images": ""}) for bits in (32, 4)
    ]
    first, second = headlines(older)
    assert (first.number.accuracy, first.number.n, first.float_model) == (0.88, 100, None)
    assert (second.number.accuracy, second.float_model.place, second.float_model.accuracy) == (
        0.86,
        "on the file",
        0.88,
    )


def test_a_sentence_says_interval_images_attack_and_place():
    _, found = headlines([width(32, **FLOAT), width(4, **CASES["the file below torch"][0])])
    assert found.detail == (
        "Lowest of any place: 91.0 % (83.8–95.2) of 100 images, strong, on the file; of the same images the float "
        "model 94.0 % (87.5–97.2), strong, on the file."
    )
    assert headlines([width(4)])[0].detail == ""


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ([{}, {}], "export held; under attack 80.0 % (QM-4) to 92.0 % (QM-32)"),
        ([{}, {"flags": [FLAG]}], "export held; flagged: QM-4; under attack 80.0 % (QM-4) to 92.0 % (QM-32)"),
        ([{"verdict": "not checked"}, {"verdict": "broken"}],
         "export broken: QM-4, not checked: QM-32; under attack 80.0 % (QM-4) to 92.0 % (QM-32)"),
        ([{}, {"before": None}], "export held; under attack 92.0 % (QM-32); not attacked yet: QM-4"),
        ([{"before": None}, {"before": None, "flags": None}],
         "export held; flags not recorded; not attacked yet: QM-32 and QM-4"),
        ([{}], "export held; under attack 92.0 % (QM-32)"),
        ([{}, {"before": torch(240, attack="pgd-20")}],
         "export held; under weak attacks 80.0 % (QM-4) to 92.0 % (QM-32)"),
    ],
)  # fmt: skip
def test_a_run_in_one_line(known, text):
    cells = [{"bits": bits, "before": torch(k)} for bits, k in ((32, 276), (4, 240))]
    assert summary(headlines([width(**{**cell, **more}) for cell, more in zip(cells, known, strict=False)])) == text


SETTINGS = ("pgd-20:keep=best", "pgd-20x5:step_size=1/255:keep=best", "cw-inf-20x5:step_size=1/255", "transfer-5x2")


@pytest.mark.parametrize("name", [*EXAMPLES, *SETTINGS])
def test_attacks_that_return_their_last_step_are_known_by_name(name):
    attack = named(name, Threat("linf", 8 / 255))
    one_after_another = attack.settings.get("keep") == "last" or attack.family in ("bim", "tpgd")
    assert is_last_step(name) == one_after_another

"""Every spelling that a recipe may use, and what it stands for."""

import re

import pytest
import torch

from qrobust.attacks import bim, fgsm, gaussian_noise, named, pgd
from qrobust.attacks import named as function
from qrobust.errors import RecipeError

from .helpers import L2, LINF, batch, seeded, smooth_net

STEP = LINF.eps / 4
TABLE = {
    "gn": {"std": 0.1},
    "fgsm": {},
    "pgd-20": {"steps": 20, "step_size": STEP, "restarts": 1},
    "pgd-20x5": {"steps": 20, "step_size": STEP, "restarts": 5},
    "bim-20": {"steps": 20, "step_size": STEP},
    "cw-inf-30": {"loss": "margin", "steps": 30, "step_size": STEP, "restarts": 1},
    "cw-inf-30x2": {"loss": "margin", "steps": 30, "step_size": STEP, "restarts": 2},
}


@pytest.mark.parametrize(("name", "settings"), TABLE.items(), ids=TABLE)
def test_spellings(name, settings):
    attack = named(name, LINF)
    assert attack.name == name
    assert attack.settings == settings
    assert attack.bounded == (name != "gn")


def test_every_spelling_in_the_documentation_works():
    from sys import modules

    import qrobust.attacks.named  # noqa: F401

    spellings = re.findall(r"`([a-z0-9-]+)`", modules["qrobust.attacks.named"].__doc__)
    assert len(spellings) == 6
    assert [function(spelling, LINF).name for spelling in spellings] == spellings


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_a_name_runs_what_it_says(threat):
    model, (x, y) = smooth_net(), batch()
    step = threat.eps / 4
    expected = {
        "gn": gaussian_noise(x, std=0.1, generator=seeded()),
        "fgsm": fgsm(model, x, y, threat=threat),
        "bim-3": bim(model, x, y, threat=threat, steps=3, step_size=step),
        "pgd-3": pgd(model, x, y, threat=threat, steps=3, step_size=step, generator=seeded()),
        "pgd-3x2": pgd(model, x, y, threat=threat, steps=3, step_size=step, restarts=2, generator=seeded()),
        "cw-inf-3": pgd(model, x, y, threat=threat, steps=3, step_size=step, loss="margin", generator=seeded()),
    }
    for name, x_adv in expected.items():
        assert torch.equal(named(name, threat).run(model, x, y, threat, seeded()), x_adv), name


REFUSED = {
    "pgd": "; did you mean 'pgd-20'?",
    "pgd20": "; did you mean 'pgd-20'?",
    "pgd-": "; did you mean 'pgd-20'?",
    "pgd-0": "; did you mean 'pgd-20'?",
    "pgd-20x0": "; did you mean 'pgd-20x5'?",
    "pgd-20x": "; did you mean 'pgd-20x5'?",
    "pgd--20": "; did you mean 'pgd-20'?",
    "PGD-20": None,
    "fgsm-20": "; did you mean 'fgsm'?",
    "gn-3": "; did you mean 'gn'?",
    "bim-20x5": None,
    "cw-inf": "; did you mean 'cw-inf-30'?",
    "zzz": "; known: bim-20, cw-inf-30, fgsm, gn, pgd-20, pgd-20x5",
    "": "; known: bim-20, cw-inf-30, fgsm, gn, pgd-20, pgd-20x5",
}


@pytest.mark.parametrize(("name", "hint"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_attack(name, hint):
    with pytest.raises(RecipeError) as caught:
        named(name, LINF)
    text = str(caught.value)
    assert text.startswith(f"expected an attack, got {name!r}; ")
    assert hint is None or text.endswith(hint)
    assert "\n" not in text

"""Every spelling that a recipe may use, and what it stands for."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from qrobust.attacks import PgdConfig, Scene, bim, cw, fgsm, gaussian_noise, named, pgd, square, tpgd
from qrobust.attacks import named as function
from qrobust.attacks.auto import PARTS
from qrobust.errors import RecipeError

from .helpers import L2, LINF, batch, seeded, smooth_net

STEP = LINF.eps / 4
TABLE = {
    "gn": {"std": 0.1},
    "fgsm": {},
    "pgd-20": {"loss": "ce", "keep": "last", "steps": 20, "step_size": STEP, "restarts": 1},
    "pgd-20x5": {"loss": "ce", "keep": "last", "steps": 20, "step_size": STEP, "restarts": 5},
    "bim-20": {"steps": 20, "step_size": STEP},
    "cw-inf-30": {"loss": "margin", "keep": "last", "steps": 30, "step_size": STEP, "restarts": 1},
    "cw-inf-30x2": {"loss": "margin", "keep": "last", "steps": 30, "step_size": STEP, "restarts": 2},
    "tpgd-20": {"steps": 20, "step_size": STEP},
    "cw-20": {"steps": 20, "c": 1.0, "kappa": 0.0, "lr": 0.01},
    "square-5000": {"queries": 5000},
    "transfer-20": {"loss": "ce", "keep": "last", "steps": 20, "step_size": STEP, "restarts": 1},
    "transfer-20x3": {"loss": "ce", "keep": "last", "steps": 20, "step_size": STEP, "restarts": 3},
    "autoattack": {},
    "strong": {"quick": False, "budget": 0},
    "strong:quick": {"quick": True, "budget": 0},
    "strong:budget=5e3": {"quick": False, "budget": 5000},
    "strong:quick:budget=90": {"quick": True, "budget": 90},
    "gn:std=1/20": {"std": 0.05},
    "pgd-20:keep=best": {"loss": "ce", "keep": "best", "steps": 20, "step_size": STEP, "restarts": 1},
    "pgd-20:step_size=1/255": {"loss": "ce", "keep": "last", "steps": 20, "step_size": 1 / 255, "restarts": 1},
    "pgd-20x5:loss=margin:step_size=0.01": {
        "loss": "margin",
        "keep": "last",
        "steps": 20,
        "step_size": 0.01,
        "restarts": 5,
    },
    "cw-20:c=10:lr=0.05": {"steps": 20, "c": 10.0, "kappa": 0.0, "lr": 0.05},
    "cw-20:kappa=0": {"steps": 20, "c": 1.0, "kappa": 0.0, "lr": 0.01},
    "square-500:queries=1e3": {"queries": 1000},
}
UNBOUNDED = ("gn", "cw")


@pytest.mark.parametrize(("name", "settings"), TABLE.items(), ids=TABLE)
def test_spellings(name, settings):
    attack = named(name, LINF)
    assert attack.name == name
    assert attack.settings == settings
    assert {key: type(value) for key, value in attack.settings.items()} == {k: type(v) for k, v in settings.items()}
    assert attack.bounded == (attack.family not in UNBOUNDED)
    assert attack.parts == (PARTS if name == "autoattack" else ("",))


def test_every_spelling_in_the_documentation_works():
    from sys import modules

    import qrobust.attacks.registry  # noqa: F401

    spellings = re.findall(r"`([^`]+)`", modules["qrobust.attacks.registry"].__doc__)
    assert len(spellings) == 19
    assert [function(spelling, LINF).name for spelling in spellings] == spellings


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_a_name_runs_what_it_says(threat):
    model, float_model, (x, y) = smooth_net(), smooth_net(seed=1), batch()
    step = threat.eps / 4
    expected = {
        "gn": gaussian_noise(x, std=0.1, generator=seeded()),
        "fgsm": fgsm(model, x, y, threat=threat),
        "bim-3": bim(model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step)),
        "pgd-3": pgd(model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step), generator=seeded()),
        "pgd-3x2": pgd(
            model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step, restarts=2), generator=seeded()
        ),
        "cw-inf-3": pgd(
            model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step, loss="margin"), generator=seeded()
        ),
        "pgd-3:step_size=1/50": pgd(
            model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=0.02), generator=seeded()
        ),
        "tpgd-3": tpgd(model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step), generator=seeded()),
        "cw-3:c=9:lr=0.1": cw(model, x, y, steps=3, c=9.0, lr=0.1),
        "transfer-3": pgd(
            float_model, x, y, threat=threat, config=PgdConfig(steps=3, step_size=step), generator=seeded()
        ),
    }
    if threat.norm == "linf":
        expected["square-9"] = square(model, x, y, threat=threat, queries=9, generator=seeded())
    for name, x_adv in expected.items():
        assert torch.equal(named(name, threat).run(Scene(model, threat, float_model), x, y, seeded()), x_adv), name
        assert torch.equal(named(name, threat).perturb(Scene(model, threat, float_model), x, y, seeded()), x_adv), name
    assert not torch.equal(expected["transfer-3"], expected["pgd-3"])


def test_transfer_needs_a_float_model():
    x, y = batch()
    with pytest.raises(RecipeError) as caught:
        named("transfer-3", LINF).run(Scene(smooth_net(), LINF), x, y, seeded())
    text = "expected a float model for transfer, got none; it needs a quantised network of a run"
    assert str(caught.value) == text


def test_parts_in_a_row_see_what_is_still_right(monkeypatch):
    """Each of four parts breaks one of the images it is given, the first of them."""
    from sys import modules

    seen = []

    def breaks_the_first(scene, x, y, generator, settings):
        seen.append((settings["part"], x[:, 0, 0, 0].tolist()))
        return torch.cat([1 - x[:1], x[1:]])

    table = modules["qrobust.attacks.registry"]._FAMILIES
    monkeypatch.setitem(table, "autoattack", replace(table["autoattack"], run=breaks_the_first))
    x = torch.tensor([0.1, 0.2, 0.3, 0.9]).view(4, 1, 1, 1)
    scene = Scene(Threshold(), LINF)
    x_adv = named("autoattack", LINF).perturb(scene, x, torch.tensor([0, 0, 0, 0]), seeded())
    assert [part for part, _ in seen] == list(PARTS[:3])  # then nothing is left
    assert [len(values) for _, values in seen] == [4, 2, 1]
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([0.9, 0.8, 0.7, 0.9]))


class Threshold(nn.Module):
    """Label 1 for pixels above a half."""

    def forward(self, x):
        return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], dim=1)


WRONG_SETTINGS = {
    "pgd-20:stepsize=1": "pgd-20:stepsize=1: unknown setting 'stepsize'; did you mean 'step_size'?",
    "fgsm:std=1": "fgsm:std=1: unknown setting 'std'; known: ",
    "cw-20:eps=1": "cw-20:eps=1: unknown setting 'eps'; did you mean 'steps'?",
    "pgd-20:restarts": "pgd-20:restarts: expected a number for restarts, got ''",
    "pgd-20:step_size=1/0": "pgd-20:step_size=1/0: expected a number for step_size, got '1/0'",
    "pgd-20:step_size=small": "pgd-20:step_size=small: expected a number for step_size, got 'small'",
    "gn:std=nan": "gn:std=nan: expected a number for std, got 'nan'",
    "gn:std=1e999": "gn:std=1e999: expected a number for std, got '1e999'",
    "pgd-20:steps=2.5": "pgd-20:steps=2.5: expected a whole number for steps, got '2.5'",
    "pgd-20:steps=0": "pgd-20:steps=0: expected steps above 0, got '0'; else it is no attack",
    "pgd-20:restarts=0": "pgd-20:restarts=0: expected restarts above 0, got '0'; else it is no attack",
    "pgd-20:step_size=-1": "pgd-20:step_size=-1: expected step_size above 0, got '-1'; else it is no attack",
    "cw-20:kappa=-1": "cw-20:kappa=-1: expected kappa above 0, got '-1'; else it is no attack",
    "pgd-20:keep=bets": "pgd-20:keep=bets: expected a keep, got 'bets'; did you mean 'best'?",
    "strong:quick=1": "strong:quick=1: expected quick alone, got 'quick=1'; leave out what follows it",
    "strong:quik": "strong:quik: unknown setting 'quik'; did you mean 'quick'?",
    "strong:budget": "strong:budget: expected a number for budget, got ''",
    "strong:budget=0": "strong:budget=0: expected budget above 0, got '0'; else it is no attack",
    "strong:budget=2": "expected a budget of 3 passes or more, got 2; else it is no attack",
    "pgd-20:loss=magrin": "pgd-20:loss=magrin: expected a loss, got 'magrin'; did you mean 'margin'?",
}


@pytest.mark.parametrize(("name", "text"), WRONG_SETTINGS.items(), ids=WRONG_SETTINGS)
def test_settings_that_are_none(name, text):
    with pytest.raises(RecipeError) as caught:
        named(name, LINF)
    assert str(caught.value) == text


KNOWN = (
    "; known: apgd-ce, apgd-t, autoattack, bim-20, cw-20, cw-inf-30, fgsm, gn, pgd-20, pgd-20x5, square-5000, "
    "strong, strong:quick, tpgd-20, transfer-20"
)
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
    "cw": "; did you mean 'cw-20'?",
    "cw-20x2": None,
    "square": "; did you mean 'square-5000'?",
    "strong-20": "; did you mean 'strong'?",
    "autoattack-20": "; did you mean 'autoattack'?",
    "transfer": "; did you mean 'transfer-20'?",
    "pgd-20:": "; did you mean 'pgd-20'?",
    "zzz": KNOWN,
    "": KNOWN,
}


@pytest.mark.parametrize(("name", "hint"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_attack(name, hint):
    with pytest.raises(RecipeError) as caught:
        named(name, LINF)
    text = str(caught.value)
    assert text.startswith(f"expected an attack, got {name!r}; ")
    assert hint is None or text.endswith(hint)
    assert "\n" not in text

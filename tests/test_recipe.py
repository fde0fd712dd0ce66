"""A recipe is checked before anything runs, and every mistake gets one helpful line."""

import tomllib

import pytest

from qrobust import recipe, resources
from qrobust.errors import RecipeError

BASE = """
bits = [32, 4, 2]
data = {name = "digits"}
model = {name = "resnet8", shortcut = "A"}
threat = {eps = "8/255"}
train = {epochs = 3}
quant = {epochs = 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only shipped recipes, with `base` among them."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "base.toml").write_text(BASE)
    monkeypatch.setattr(resources, "folders", lambda kind: [shipped])
    return tmp_path


def write(folder, name, text):
    (folder / f"{name}.toml").write_text(text)
    return str(folder / f"{name}.toml")


def overridden(*overrides):
    return recipe.load("base", overrides)


def refusal(action, *arguments):
    with pytest.raises(RecipeError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_and_values(folder):
    loaded = recipe.load("base")
    assert (loaded.name, loaded.seed, loaded.bits) == ("base", 0, (32, 4, 2))
    assert loaded.threat == recipe.ThreatModel(norm="linf", eps=8 / 255)
    assert (loaded.train.epochs, loaded.train.method, loaded.quant.epochs) == (3, "at", 1)
    assert loaded.model.options == {"shortcut": "A"}


def test_a_recipe_does_not_change(folder):
    with pytest.raises(ValueError, match="frozen"):
        recipe.load("base").seed = 3


def test_a_path_wins_over_a_shipped_recipe(folder, monkeypatch):
    write(folder, "base", BASE + "seed = 5")
    monkeypatch.chdir(folder)
    assert recipe.load("base").seed == 0
    assert recipe.load("base.toml").seed == 5


def test_a_missing_recipe_gets_a_hint(folder):
    text = refusal(recipe.load, "bsae")
    assert text == "expected a file or one of qrobust's recipes, got 'bsae'; did you mean 'base'?"


# extends


def test_a_chain_of_recipes(folder):
    write(folder, "middle", "extends = 'base'\nname = 'middle'\nseed = 1\ntrain.epochs = 5\ntrain.lr = 0.2")
    last = recipe.load(write(folder, "last", "extends = 'middle'\nseed = 2\ntrain.lr = 0.3"))
    assert (last.name, last.seed, last.train.epochs, last.train.lr) == ("last", 2, 5, 0.3)
    assert last.data.name == "digits"


@pytest.mark.parametrize("spelling", ["base", "base.toml"])
def test_a_sibling_comes_before_a_shipped_recipe(folder, spelling):
    mine = write(folder, "mine", f"extends = '{spelling}'")
    assert recipe.load(mine).seed == 0
    write(folder, "base", BASE + "seed = 7")
    assert recipe.load(mine).seed == 7


def test_a_value_replaces_a_list_and_merges_a_table(folder):
    loaded = recipe.load(write(folder, "mine", "extends = 'base'\nbits = [32]\n[train.attack]\nsteps = 3"))
    assert loaded.bits == (32,)
    assert (loaded.train.attack.steps, loaded.train.epochs) == (3, 3)


def test_a_circle_is_named(folder):
    write(folder, "a", "extends = 'b'")
    write(folder, "b", "extends = 'c'")
    write(folder, "c", "extends = 'a'")
    text = refusal(recipe.load, str(folder / "a.toml"))
    expected = "expected recipes that extend others, got a circle: a → b → c → a; remove one `extends`"
    assert text == expected


def test_a_recipe_that_extends_nothing_there(folder):
    assert "got 'bse'; did you mean 'base'?" in refusal(recipe.load, write(folder, "a", "extends = 'bse'"))
    text = refusal(recipe.load, write(folder, "a", "extends = 3"))
    assert text.endswith("a.toml: expected extends = 'NAME', got 3")


# overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", lambda r: r.seed == 3),
        ("bits=[32, 8]", lambda r: r.bits == (32, 8)),
        ("train.lr=1e-3", lambda r: r.train.lr == 1e-3),
        ("data.flip=true", lambda r: r.data.flip is True),
        ("data.root=/some/where", lambda r: r.data.root == "/some/where"),
        ("data.name='cifar10'", lambda r: r.data.name == "cifar10"),
        (" data.name =cifar10", lambda r: r.data.name == "cifar10"),
        ("threat.eps=4/255", lambda r: r.threat.eps == 4 / 255),
        ("threat.eps='4 / 255'", lambda r: r.threat.eps == 4 / 255),
        ("threat.eps=0.5", lambda r: r.threat.eps == 0.5),
        ("train.attack.step_size=1/255", lambda r: r.train.attack.step_size == 1 / 255),
        ("quant.sar={start = 1}", lambda r: r.quant.sar.start == 1),
        ("model.activation=hardtanh", lambda r: r.model.options["activation"] == "hardtanh"),
        ("data.root=a=b", lambda r: r.data.root == "a=b"),
    ],
)
def test_an_override(folder, override, value):
    assert value(overridden(override))


def test_later_overrides_win(folder):
    assert overridden("seed=1", "train.epochs=9", "seed=2").seed == 2


@pytest.mark.parametrize("text", ["seed", "=3", "  =3", ""])
def test_what_is_no_override(folder, text):
    expected = f"expected an override KEY=VALUE, got {text!r}; as in -o train.epochs=3"
    assert refusal(overridden, text) == expected


# refusals: override, then the text after the file's name

RISING = "expected bits to fall from 32, the float network, as [32, 4, 2], got"
EPS = "threat.eps: expected a share of the pixel range [0, 1]; write '8/255', not 8, got"
REFUSALS = {
    "threat.eps=8": f"{EPS} 8",
    "threat.eps='510/255'": f"{EPS} '510/255'",
    "threat.eps=-1/255": "threat.eps: expected greater than or equal to 0, got '-1/255'",
    "threat.eps=8/0": "threat.eps: expected a valid number, unable to parse string as a number, got '8/0'",
    "threat.norm=l3": "threat.norm: expected 'linf' or 'l2', got 'l3'",
    "bits=[32, 9]": "bits.1: expected 2, 3, 4, 5, 6, 7, 8 or 32, got 9",
    "bits=[4, 2]": f"recipe: {RISING} [4, 2]",
    "bits=[32, 2, 4]": f"recipe: {RISING} [32, 2, 4]",
    "bits=[32, 4, 4]": f"recipe: {RISING} [32, 4, 4]",
    "bits=[]": f"recipe: {RISING} []",
    "sede=1": "unknown key 'sede'; did you mean 'seed'?",
    "train.epoch=1": "unknown key 'train.epoch'; did you mean 'epochs'?",
    "train.attack.stesp=3": "unknown key 'train.attack.stesp'; did you mean 'steps'?",
    "train.sar.wieght=1": "unknown key 'train.sar.wieght'; did you mean 'weight'?",
    "quant.edge_layer=float": "unknown key 'quant.edge_layer'; did you mean 'edge_layers'?",
    "train..x=3": "unknown key 'train.'; known: ",
    "train.epochs=0": "train.epochs: expected greater than 0, got 0",
    "train.epochs=1.5": "train.epochs: expected a valid integer, got a number with a fractional part",
    "train.epochs=x": "train.epochs: expected a valid integer, unable to parse string as an integer, got 'x'",
    "model.classes=3": "model: expected no 'classes', which follows from the data, got one; remove it",
    "train.lr=inf": "train.lr: expected a finite number, got inf",
    "train.lr=nan": "train.lr: expected a finite number, got nan",
    "train.method=trades": "train.method: expected 'natural' or 'at', got 'trades'",
    "train.factors=[0.1]": "train: expected one factor a milestone, got 1 for 0",
    "quant.milestones=[3, 2]": "quant: expected rising milestones, got [3, 2]",
    "train.sar={}": ("train: expected milestones, for sar.start = 'first-drop', got none; give sar.start an epoch"),
    "train.sar.start=last": "train.sar.start: expected an epoch, counted from 0, or 'first-drop', got 'last'",
    "train.sar.start=-1": "train.sar.start: expected an epoch, counted from 0, or 'first-drop', got -1",
    "data.validation=0.9": "data.validation: expected less than or equal to 0.5, got 0.9",
    "data.flip=perhaps": "data.flip: expected a valid boolean, unable to interpret input, got 'perhaps'",
    "export.suite_attacks=[3]": "export.suite_attacks.0: expected a valid string, got 3",
    "bench.batches=[1, 0]": "bench.batches.1: expected greater than 0, got 0",
    "evaluate.n=0": "evaluate.n: expected greater than 0, got 0",
}


@pytest.mark.parametrize(("override", "text"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(folder, override, text):
    source, _, rest = refusal(overridden, override).partition(": ")
    assert source == str(folder / "shipped" / "base.toml")
    assert rest.startswith(text) if text.endswith(": ") else rest == text


@pytest.mark.parametrize("key", ["data", "model", "threat", "train"])
def test_a_missing_table_is_named(folder, key):
    table = tomllib.loads(BASE) | {"name": "mine"}
    del table[key]
    with pytest.raises(RecipeError, match=f"^mine: expected a value for '{key}', got none; add it$"):
        recipe.parse(table, source="mine")


def test_widths_below_32_need_their_table(folder):
    table = tomllib.loads(BASE) | {"name": "mine"}
    del table["quant"]
    text = refusal(lambda: recipe.parse(table, source="mine"))
    assert text == "mine: recipe: expected a table [quant] for widths below 32, got none"
    assert recipe.parse(table | {"bits": [32]}, source="mine").quant is None


def test_a_table_of_another_kind_is_checked_too():
    table = {"epochs": 1, "sra": 3}
    text = refusal(lambda: recipe.checked(recipe.Schedule, table, source="there"))
    assert text == "there: unknown key 'sra'; did you mean 'sar'?"


# dump


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "train.milestones=[1, 2]",
            "train.factors=[0.1, 0.5]",
            "train.sar={weight = 0.2}",
            "claim.clean=76.67",
        ),
        ("evaluate.n=100", "data.root=/x", "quant.sar={start = 0}", "threat={norm = 'l2', eps = 0.5}"),
    ],
)
def test_dump_is_a_recipe_again(folder, overrides):
    loaded = overridden(*overrides)
    text = recipe.dump(loaded)
    assert recipe.parse(tomllib.loads(text), source="dump") == loaded
    assert recipe.dump(recipe.load(write(folder, "dumped", text))) == text


def test_dump_spells_out_every_default(folder):
    table = tomllib.loads(recipe.dump(recipe.load("base")))
    assert table["train"]["attack"] == {
        "steps": 7,
        "step_size": 2 / 255,
        "random_start": True,
        "mode": "eval",
    }
    assert table["evaluate"]["attacks"] == ["gn", "fgsm", "pgd-20"]

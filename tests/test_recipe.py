"""A recipe is checked before anything runs, and every mistake gets one helpful line."""

import functools
import tomllib
from pathlib import Path

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
    assert "expected a file or one of" in refusal(recipe.load, write(folder, "a", f"extends = '{'b' * 5000}'"))
    text = refusal(recipe.load, write(folder, "a", "extends = 3"))
    assert text.endswith("a.toml: expected extends = 'NAME', got 3")


# variants

STUDY = """
description = "all of a table"
extends = "base"
seed = 1
claim.clean = 0.5

[variants.at]
description = "a row"
train.lr = 0.2

[variants.at-long]
extends = "at"
train = {epochs = 9, lr = 0.3}
claim.clean = 0.7

[variants.base]
extends = "base"
"""


def test_variants_build_on_their_file_and_on_one_another(folder):
    path = write(folder, "study", STUDY)
    first, last, third = (recipe.load(f"{path}#{name}") for name in ("at", "at-long", "base"))
    assert (first.name, first.seed, first.train.lr, first.train.epochs) == ("study/at", 1, 0.2, 3)
    assert (last.name, last.seed, last.train.lr, last.train.epochs) == ("study/at-long", 1, 0.3, 9)
    assert (first.claim, last.claim) == ({}, {"clean": 0.7})
    assert (third.name, third.seed) == ("study/base", 0)  # the shipped one, whose name it has
    assert recipe.load(f"{path}#at", ["train.lr=0.5"]).train.lr == 0.5


@pytest.mark.parametrize("spelling", ["study/at", "study.toml#at"])
def test_a_variant_of_another_file_is_extended(folder, spelling):
    write(folder, "study", STUDY)
    assert recipe.load(write(folder, "mine", f"extends = '{spelling}'")).train.lr == 0.2
    (folder / "study.toml").rename(folder / "shipped" / "study.toml")
    mine = write(folder, "study", f"[variants.mine]\nextends = '{spelling}'")  # without the one that is extended
    assert recipe.load(f"{mine}#mine").train.lr == 0.2


def test_a_wrong_key_of_a_variant_is_found(folder):
    path = write(folder, "study", STUDY + "train.epoch = 3\n[variants.a]\nextends = 'b'\n[variants.b]\nextends = 'a'")
    told = refusal(recipe.load, f"{path}#base")
    assert told == f"{path}#base: unknown key 'train.epoch'; did you mean 'epochs'?"
    assert refusal(recipe.load, f"{path}#a").endswith("got a circle: a → b → a; remove one `extends`")
    told = refusal(recipe.load, write(folder, "mine", "extends = 'study'"))
    assert told.startswith(f"expected one of the variants in {path}, got the whole file; name one, as {path}#at; ")


def test_the_example_of_the_documentation(folder):
    text = (Path(__file__).resolve().parent.parent / "docs" / "recipe.md").read_text()
    path = write(folder, "mine", text.partition("```toml\n")[2].partition("```")[0].replace("digits", "base"))
    short, shorter = (recipe.load(f"{path}#{name}") for name in ("short", "shorter"))
    assert (short.train.milestones, short.train.attack.steps) == ((6, 9), 7)
    assert (shorter.train.milestones, shorter.train.attack.steps) == ((6, 9), 3)


# overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", lambda r: r.seed == 3),
        ("bits=[32, 8]", lambda r: r.bits == (32, 8)),
        ("bits=[4, 2]", lambda r: r.bits == (32, 4, 2)),
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
        ("train.temperature=30", lambda r: r.train.temperature == 30),
        ("train.share=1", lambda r: r.train.share == 1),
        ("train.kurtosis=1.5", lambda r: (r.train.kurtosis, r.quant.kurtosis) == (1.5, 0)),
        ("quant.lipschitz=1e-4", lambda r: r.quant.lipschitz == 1e-4),
        ("quant.freeze_statistics=0", lambda r: (r.quant.freeze_statistics, r.train.freeze_statistics) == (0, None)),
        ("quant.estimate_statistics=true", lambda r: r.quant.estimate_statistics is True),
        ("quant.method=rslad", lambda r: (r.quant.method, r.train.method) == ("rslad", "at")),
        (
            "quant.layers={'layer3.*' = 8, fc = 32}",
            lambda r: list(r.quant.layers.items()) == [("layer3.*", 8), ("fc", 32)],
        ),
        ("quant.activation_bits=8", lambda r: r.quant.activation_bits == 8),
        ("quant.straight_through=unclipped", lambda r: r.quant.straight_through == "unclipped"),
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

PLAIN = "expected text, a finite number up to 64 bits, a truth value, or a table of them up to 20 deep"
NAME = "expected a printable name that can name a folder"
FALLING = "bits: expected widths that fall, as [32, 4, 2], got"


def test_strong_is_what_a_recipe_asks_for_unless_it_says_otherwise(folder):
    found = recipe.load("base", ["attack={}"])
    assert found.attack.attacks == ("strong",)
    assert found.evaluate.attacks[-1] == "strong"
    assert found.export.suite_attacks == ("strong",)


def test_a_file_overrides_by_all_that_it_holds(folder, monkeypatch):
    (folder / "bits.toml").write_text('[quant.layers]\n"layer1.*" = 8\n[train]\nepochs = 7\n')
    monkeypatch.chdir(folder)
    found = recipe.load("base", ["train.epochs=5", "bits.toml", "quant.epochs=2"])
    assert (found.train.epochs, found.quant.epochs, found.quant.layers) == (7, 2, {"layer1.*": 8})
    assert "expected a TOML file at none.toml" in refusal(overridden, "none.toml")


UNTRAINED = (
    "recipe: expected train.epochs above 0, model.weights, or a factory as model.name that loads its own weights, "
    "got none of them; add one"
)
NEAR = "expected kind = 'pgd' with a random start for start = 'near', got another; remove start"
EPS = "threat.eps: expected a share of the pixel range [0, 1]; write '8/255', not 8, got"
ATTACKED = "expected a method with an attack for sar or a mix of adversarial images, got 'natural'"
UNMIXED = "expected method 'at' or 'natural' for mixed images, got"
SHARP = "expected no label smoothing with mart or mixed labels, got some; remove smoothing"
REFUSALS = {
    "evaluate.attacks=[]": (
        "evaluate: expected at least one attack, got none; a clean accuracy says nothing of robustness"
    ),
    "train={epochs = 1, sar = {start = 0}, mix = {kind = 'mixup', on = 'adversarial'}}": (
        "train: expected sar or a mix of adversarial images, which have no pair, got both; remove one"
    ),
    "threat.eps=8": f"{EPS} 8",
    "threat.eps='510/255'": f"{EPS} '510/255'",
    "threat.eps=-1/255": "threat.eps: expected greater than or equal to 0, got '-1/255'",
    "threat.eps=8/0": "threat.eps: expected a valid number, unable to parse string as a number, got '8/0'",
    "threat.norm=l3": "threat.norm: expected 'linf' or 'l2', got 'l3'",
    "bits=[32, 9]": "bits.1: expected 2, 3, 4, 5, 6, 7, 8 or 32, got 9",
    "bits=[32, 2, 4]": f"{FALLING} [32, 2, 4]",
    "bits=[32, 4, 4]": f"{FALLING} [32, 4, 4]",
    "bits=[]": f"{FALLING} []",
    "sede=1": "unknown key 'sede'; did you mean 'seed'?",
    "train.epoch=1": "unknown key 'train.epoch'; did you mean 'epochs'?",
    "train.attack.stesp=3": "unknown key 'train.attack.stesp'; did you mean 'steps'?",
    "train.sar.wieght=1": "unknown key 'train.sar.wieght'; did you mean 'weight'?",
    "quant.edge_layer=float": "unknown key 'quant.edge_layer'; did you mean 'edge_layers'?",
    "train..x=3": "unknown key 'train.'; known: ",
    "train.epochs=0": UNTRAINED,
    "train.warmup=3": "train: expected warmup below 3, all epochs, got 3; lower it",
    "train={shape = 'one-cycle', warmup = 1}": (
        "train: expected no warmup with shape 'one-cycle', which rises by itself, got 1; set pct_start"
    ),
    "data.resized_crop=[0.5, 0.4]": (
        "data.resized_crop: expected two shares above 0 and up to 1 that do not fall, as [0.25, 1.0], got [0.5, 0.4]"
    ),
    "data.resized_crop=[0.5, 2]": (
        "data.resized_crop: expected two shares above 0 and up to 1 that do not fall, as [0.25, 1.0], got [0.5, 2.0]"
    ),
    "data={crop = 4, resized_crop = [0.5, 1.0]}": "data: expected crop or resized_crop, got both, crop = 4; remove one",
    "train.pct_start=0.3": "train: expected shape = 'one-cycle' for pct_start, got 'step'; remove pct_start",
    "train={nesterov = true, optimizer = 'adamw'}": (
        "train: expected optimizer = 'sgd' with momentum for nesterov, got 'adamw'; remove nesterov"
    ),
    "quant={nesterov = true, momentum = 0.0}": (
        "quant: expected optimizer = 'sgd' with momentum for nesterov, got momentum 0; remove nesterov"
    ),
    "train.attack={kind = 'fgsm-rs', start = 'near'}": f"train.attack: {NEAR}",
    "train.attack={random_start = false, start = 'near'}": f"train.attack: {NEAR}",
    "train.mix={kind = 'cutout', border = 'inside'}": (
        "train.mix: expected kind = 'cutmix' for border = 'inside', got 'cutout'; remove border"
    ),
    "quant={epochs = 0, fat = 'none', start_from = 'initial'}": (
        "quant: expected epochs above 0 for start_from = 'initial', got 0; give some"
    ),
    "departures.epoch=3": "departures.epoch: expected a valid string, got 3",
    "train.optimizer=adam": "train.optimizer: expected 'sgd' or 'adamw', got 'adam'",
    "train.epochs=1.5": "train.epochs: expected a valid integer, got a number with a fractional part",
    "train.epochs=x": "train.epochs: expected a valid integer, unable to parse string as an integer, got 'x'",
    "model.std=0": "model.std: expected numbers above 0, got 0",
    "model.mean=[0.5, 'x']": "model.mean.1: expected a valid number, unable to parse string as a number, got 'x'",
    "quant.epochs=0": (
        "quant: expected fat = 'none' with epochs = 0, got 'normalised', whose weights need training; set it to 'none'"
    ),
    "train={epochs = 0, average = {start = 0}}": "train: expected no table average with epochs = 0, got one; remove it",
    "model.classes=3": "model: expected no 'classes', which follows from the data, got one; remove it",
    "train.lr=inf": "train.lr: expected a finite number, got inf",
    "train.lr=nan": "train.lr: expected a finite number, got nan",
    "claim.clean=nan": f"claim.clean: {PLAIN}, got nan",
    "model.width=2020-01-01": f"model.width: {PLAIN}, got datetime.date(2020, 1, 1)",
    f"seed={2**64}": f"seed: {PLAIN}, got {2**64}",
    **{f"name='{name}'": f"name: {NAME}, got {name!r}" for name in ("../../x", "/abs", "..", ".", "", "a//b", "a/")},
    "name=a\x1b[2J": f"name: {NAME}, got 'a\\x1b[2J'",
    "train.method=tardes": "train.method: expected 'natural', 'at', 'trades', 'mart', 'ard' or 'rslad', got 'tardes'",
    "train.method=adr": ("train.method: expected 'natural', 'at', 'trades', 'mart', 'ard' or 'rslad', got 'adr'"),
    "train.method=ard": "train: expected a table teacher for method 'ard', got none; add one",
    "train.teacher={name = 'resnet8', weights = 'a.pth'}": (
        "train: expected method 'ard' or 'rslad' for a table teacher, got 'at'; remove the table"
    ),
    "quant.teacher={name = 'resnet8', weights = 'a.pth'}": (
        "recipe: in training for [quant], expected method 'ard' or 'rslad' for a table teacher, got 'at'; "
        "remove the table"
    ),
    "train.extra={name = 'npz', share = 1}": "train.extra.share: expected less than or equal to 0.95, got 1",
    "train.extra={name = 'npz'}": "expected a value for 'train.extra.share', got none; add it",
    "train.extra={name = 'npz', share = 0.5, n = 3}": (
        "unknown key 'train.extra.n'; known: cache, name, options, root, sha256, share, size, skip_unreadable"
    ),
    "train={batch_size = 4, extra = {name = 'npz', share = 0.95}}": (
        "train: expected a batch_size of which extra.share = 0.95 is an image or more, not all, got 4; raise it"
    ),
    "quant={method = 'rslad', teacher = {name = 'timm:resnet18'}}": (
        "quant: expected weights of the teacher 'timm:resnet18', or a factory that loads its own, got none; "
        "set teacher.weights"
    ),
    "quant={method = 'rslad', teacher = {weights = 'a.pth'}}": (
        "expected a value for 'quant.teacher.name', got none; add it"
    ),
    "quant.method=rslda": ("quant.method: expected 'natural', 'at', 'trades', 'mart', 'ard' or 'rslad', got 'rslda'"),
    "quant.layers={'layer3.*' = 9}": "quant.layers.layer3.*: expected 2, 3, 4, 5, 6, 7, 8 or 32, got 9",
    "quant.layers=8": "quant.layers: expected a valid dictionary, got 8",
    "quant.activation_bits=32": "quant.activation_bits: expected 2, 3, 4, 5, 6, 7 or 8, got 32",
    "quant.straight_through=unclippt": ("quant.straight_through: expected 'clipped' or 'unclipped', got 'unclippt'"),
    "train.temperature=0": "train.temperature: expected greater than 0, got 0",
    "train.share=1.5": "train.share: expected less than or equal to 1, got 1.5",
    "train.share=-0.5": "train.share: expected greater than or equal to 0, got -0.5",
    "quant.kurtosis=-1": "quant.kurtosis: expected greater than or equal to 0, got -1",
    "train.lipschitz=true": "train.lipschitz: expected a number, got True",
    "quant.freeze_statistics=-1": "quant.freeze_statistics: expected greater than or equal to 0, got -1",
    "quant.freeze_statistics=0.5": (
        "quant.freeze_statistics: expected a valid integer, got a number with a fractional part"
    ),
    "train.epochs=true": "train.epochs: expected a number, got True",
    "train.lr=true": "train.lr: expected a number, got True",
    "train.beta=false": "train.beta: expected a number, got False",
    "train.milestones=[true]": "train.milestones.0: expected a number, got True",
    "seed=false": "seed: expected a number, got False",
    "threat.eps=true": "threat.eps: expected a number, got True",
    "train.sar.start=true": "train.sar.start: expected an epoch, counted from 0, or 'first-drop', got True",
    "threat.ep=4/255": "unknown key 'threat.ep'; did you mean 'eps'?",
    "train.factors=[0.1]": "train: expected one factor a milestone, got 1 for 0",
    "quant.milestones=[3, 2]": "quant: expected rising milestones, got [3, 2]",
    "train.sar={}": ("train: expected milestones, for sar.start = 'first-drop', got none; give sar.start an epoch"),
    "train.average={}": (
        "train: expected milestones, for average.start = 'first-drop', got none; give average.start an epoch"
    ),
    "quant.awp={start = 'first-drop'}": (
        "quant: expected milestones, for awp.start = 'first-drop', got none; give awp.start an epoch"
    ),
    "train.sar={start = 0, reference = 'average'}": (
        "train: expected a table average for sar.reference = 'average', got none; add one"
    ),
    "quant={epochs = 2, sar = {start = 0, reference = 'average'}, average = {start = 1}}": (
        "quant: expected sar.start at or after average.start, epoch 1, got 0; change one"
    ),
    "train={epochs = 9, milestones = [3], sar = {start = 2, reference = 'average'}, average = {}}": (
        "train: expected sar.start at or after average.start, epoch 3, got 2; change one"
    ),
    "train={shape = 'cosine', milestones = [2]}": "train: expected no milestones with shape 'cosine', got [2]",
    "quant={shape = 'cyclic', milestones = [2, 3]}": "quant: expected no milestones with shape 'cyclic', got [2, 3]",
    "train.shape=round": "train.shape: expected 'step', 'cosine', 'cyclic' or 'one-cycle', got 'round'",
    "train={method = 'natural', sar = {start = 0}}": f"train: {ATTACKED}",
    "train={method = 'natural', mix = {kind = 'mixup', on = 'adversarial'}}": f"train: {ATTACKED}",
    "train.low_pass=8": "train: expected method = 'natural' for low_pass, got 'at'",
    "train={method = 'trades', mix = {kind = 'cutmix'}}": f"train: {UNMIXED} 'trades'; remove mix",
    "train={method = 'mart', mix = {kind = 'cutout', on = 'adversarial'}}": f"train: {UNMIXED} 'mart'; remove mix",
    "train={method = 'trades', attack = {kind = 'n-fgsm'}}": (
        "train: expected attack.kind = 'pgd' for 'trades', got 'n-fgsm'"
    ),
    "train={method = 'trades', attack = {keep = 'best'}}": (
        "train: expected attack.keep = 'last' for 'trades', got 'best'; remove it"
    ),
    "train={method = 'trades', attack = {kind = 'fgsm-rs'}}": (
        "train: expected attack.kind = 'pgd' for 'trades', got 'fgsm-rs'"
    ),
    "train={method = 'mart', smoothing = 0.1}": f"train: {SHARP}",
    "train={smoothing = 0.1, mix = {kind = 'mixup'}}": f"train: {SHARP}",
    "train.smoothing=1": "train.smoothing: expected less than 1, got 1",
    "train.attack.kind=fgsm": "train.attack.kind: expected 'pgd', 'fgsm-rs' or 'n-fgsm', got 'fgsm'",
    "train.mix={kin = 'mixup'}": "unknown key 'train.mix.kin'; did you mean 'kind'?",
    "train.mix={}": "expected a value for 'train.mix.kind', got none; add it",
    "train.mix={kind = 'mixup', alpha = 0}": "train.mix.alpha: expected greater than 0, got 0",
    "train.awp.gamma=-1": "train.awp.gamma: expected greater than or equal to 0, got -1",
    "train.average={start = 0, decay = 1}": "train.average.decay: expected less than 1, got 1",
    "train.gradient_clip=0": "train.gradient_clip: expected greater than 0, got 0",
    "train.precision=half": "train.precision: expected 'float32', 'tf32', 'bf16' or 'auto', got 'half'",
    "train.sar.start=last": "train.sar.start: expected an epoch, counted from 0, or 'first-drop', got 'last'",
    "train.sar.start=-1": "train.sar.start: expected an epoch, counted from 0, or 'first-drop', got -1",
    "data.validation=0.9": "data.validation: expected less than or equal to 0.5, got 0.9",
    "data.flip=perhaps": "data.flip: expected a valid boolean, unable to interpret input, got 'perhaps'",
    "export.suite_attacks=[3]": "export.suite_attacks.0: expected a valid string, got 3",
    "bench.batches=[1, 0]": "bench.batches.1: expected greater than 0, got 0",
    "bench.batches=[]": "bench.batches: expected 1 value or more, got []; add one",
    "bench.batches=[100000]": "bench.batches.0: expected less than or equal to 65536, got 100000",
    "bench.threads=99999": "bench.threads: expected less than or equal to 1024, got 99999",
    "bench.seconds=1e6": "bench.seconds: expected less than or equal to 86400, got 1000000.0",
    'name="a\\u001b[2Jb"': "name: expected a printable name that can name a folder, got 'a\\x1b[2Jb'",
    "name=": "name: expected a printable name that can name a folder, got ''",
    "claim.there=[{x = nan}]": f"claim.there.0.x: {PLAIN}, got nan",
    "model.width=inf": f"model.width: {PLAIN}, got inf",
    "evaluate.n=0": "evaluate.n: expected greater than 0, got 0",
}


@pytest.mark.parametrize(("override", "text"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(folder, override, text):
    source, _, rest = refusal(overridden, override).partition(": ")
    assert source == str(folder / "shipped" / "base.toml")
    assert rest.startswith(text) if text.endswith(": ") else rest == text


# overrides, then what is said of the method that quantised networks train by
METHODS_OF_QUANT = {
    ("train.method=natural", "quant.sar={start = 0}"): ATTACKED,
    ("quant.method=natural", "quant.sar={start = 0}"): ATTACKED,
    ("quant.method=mart", "train.mix={kind = 'mixup'}"): f"{UNMIXED} 'mart'; remove mix",
    ("quant.method=rslad", "train.mix={kind = 'mixup', on = 'adversarial'}"): f"{UNMIXED} 'rslad'; remove mix",
    ("quant.sar={start = 0}", "train.mix={kind = 'mixup', on = 'adversarial'}"): (
        "expected sar or a mix of adversarial images, which have no pair, got both; remove one"
    ),
    ("quant.method=at", "train.method=natural", "train.low_pass=8"): (
        "expected method = 'natural' for low_pass, got 'at'"
    ),
    ("quant.method=trades", "train.attack.kind=n-fgsm"): "expected attack.kind = 'pgd' for 'trades', got 'n-fgsm'",
    ("quant.method=mart", "train.smoothing=0.1"): SHARP,
}


@pytest.mark.parametrize(("overrides", "text"), METHODS_OF_QUANT.items(), ids=map(" ".join, METHODS_OF_QUANT))
def test_a_method_of_quantised_networks_goes_with_the_rest(folder, overrides, text):
    assert refusal(overridden, *overrides).endswith(f"base.toml: recipe: in training for [quant], {text}")


def test_a_natural_float_network_may_be_quantised_against_attacks(folder):
    loaded = overridden("train.method=natural", "quant.method=at", "quant.sar={start = 0}")
    assert (loaded.train.method, loaded.quant.method, loaded.quant.sar.start) == ("natural", "at", 0)
    assert overridden("train.method=natural", "quant.average={start = 0}").quant.average.start == 0


@pytest.mark.parametrize(
    ("key", "table", "text"),
    [
        ("threat", {"ep": "8/255"}, "unknown key 'threat.ep'; did you mean 'eps'?"),
        ("train", {"epoch": 3}, "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("data", {"nam": "digits"}, "unknown key 'data.nam'; did you mean 'name'?"),
        ("threat", {}, "expected a value for 'threat.eps', got none; add it"),
    ],
)
def test_a_misspelt_key_that_is_required(key, table, text):
    """Two mistakes in one: what is missing is there under another name, and that is what helps."""
    whole = tomllib.loads(BASE) | {"name": "mine", key: table}
    assert refusal(lambda: recipe.parse(whole, source="mine")) == f"mine: {text}"


@pytest.mark.parametrize("key", ["data", "model", "threat"])
def test_a_missing_table_is_named(folder, key):
    table = tomllib.loads(BASE) | {"name": "mine"}
    del table[key]
    with pytest.raises(RecipeError, match=f"^mine: expected a value for '{key}', got none; add it$"):
        recipe.parse(table, source="mine")


def test_without_training_weights_are_needed(folder):
    table = tomllib.loads(BASE) | {"name": "mine"}
    del table["train"]
    assert refusal(lambda: recipe.parse(table, source="mine")) == f"mine: {UNTRAINED}"
    for model in ({"name": "resnet8", "weights": "F.pth"}, {"name": "nets.py:mine"}):
        assert recipe.parse(table | {"model": model}, source="mine").train.epochs == 0
    for model in ("torchvision:resnet18", "timm:resnet18"):
        assert refusal(lambda name=model: recipe.parse(table | {"model": {"name": name}}, source="mine")).endswith(
            UNTRAINED
        )


def test_files_are_relative_to_who_names_them(folder, monkeypatch):
    """The recipe's folder, that of the recipe it extends, or the current one for an override."""
    (folder / "deeper").mkdir()
    write(folder, "whole", BASE.replace('"resnet8"', "'nets.py:mine', weights = 'w.pth'"))
    lower = write(folder, "deeper/mine", "extends = '../whole.toml'\nmodel.name = 'own.py:net'")
    found = recipe.load(lower).model
    assert (found.name, found.weights) == (f"{folder / 'deeper' / 'own.py'}:net", str(folder / "w.pth"))
    monkeypatch.chdir(folder / "deeper")
    assert recipe.load(lower, ["model.name=here.py:net"]).model.name == f"{folder / 'deeper' / 'here.py'}:net"
    assert recipe.load(lower, ["model.name=package.nets:net"]).model.name == "package.nets:net"


def test_widths_below_32_need_their_table(folder):
    table = tomllib.loads(BASE) | {"name": "mine"}
    del table["quant"]
    text = refusal(lambda: recipe.parse(table, source="mine"))
    assert text == "mine: recipe: expected a table [quant] for widths below 32, got none; add one"
    assert recipe.parse(table | {"bits": [32]}, source="mine").quant is None


def test_a_table_of_another_kind_is_checked_too():
    table = {"epochs": 1, "sra": 3}
    text = refusal(lambda: recipe.checked(recipe.Schedule, table, source="there"))
    assert text == "there: unknown key 'sra'; did you mean 'sar'?"


# attacks in training


@pytest.mark.parametrize("part", ["sar", "average", "awp"])
def test_parts_may_start_with_the_drop_or_with_an_epoch(folder, part):
    loaded = overridden("train.milestones=[2]", f"train.{part}={{start = 'first-drop'}}", f"quant.{part}={{start = 4}}")
    assert getattr(loaded.train, part).start == "first-drop"
    assert getattr(loaded.quant, part).start == 4


def test_alignment_to_an_average_that_begins_with_it_or_before(folder):
    for start in (1, 2):
        table = f"{{start = {start}, reference = 'average'}}"
        assert overridden("quant.average={start = 1}", f"quant.sar={table}").quant.sar.start == start
    both = overridden("train.milestones=[2]", "train.sar={reference = 'average'}", "train.average={}").train
    assert both.sar.start == both.average.start == "first-drop"


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
        (
            "train.method=trades",
            "train.shape=cosine",
            "train.attack.step_size=2/255",
            "train.awp={gamma = 5e-3}",
            "train.average={start = 1, kind = 'exponential'}",
            "train.sar={start = 1, reference = 'average'}",
        ),
        ("train.mix={kind = 'cutmix'}", "train.precision=bf16", "train.gradient_clip=0.5"),
        (
            "train.temperature=30",
            "train.kurtosis=0.1",
            "quant.method=ard",
            "quant.layers={'*1' = 3, 'layer3.*' = 8}",
            "quant.activation_bits=4",
            "quant.straight_through=unclipped",
            "quant.freeze_statistics=0",
            "quant.estimate_statistics=true",
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
        "kind": "pgd",
        "steps": 7,
        "random_start": True,
        "keep": "last",
        "mode": "eval",
    }
    assert table["evaluate"]["attacks"] == ["fgsm", "pgd-20", "strong"]
    assert table["export"]["suite_attacks"] == ["strong"]


def test_logging_that_is_off_leaves_no_trace(folder):
    """So that keys of runs from before it stay what they were; on, it survives a dump."""
    assert "log_frequency_ratio" not in recipe.dump(recipe.load("base"))
    assert "log_frequency_ratio" not in recipe.load("base").model_dump(mode="json")["train"]
    assert not {"tensorboard", "on_event"} & recipe.load("base").model_dump(mode="json").keys()
    for setting in ("train.log_frequency_ratio=true", "tensorboard=true", "on_event=own.py:listen"):
        logging = overridden(setting)
        assert recipe.parse(tomllib.loads(recipe.dump(logging)), source="dump") == logging


@pytest.mark.parametrize("stored", [("evaluate.n=100",), ("evaluate.n=500", "export.suite_n=100")])
def test_no_more_images_are_attacked_than_the_suite_has(folder, stored):
    assert overridden("attack.n=100", *stored).attack.n == 100
    told = "expected attack.n of at most 100, the suite's images, got 101; lower it"
    assert refusal(overridden, "attack.n=101", *stored).endswith(told)


def test_a_listener_s_file_lies_beside_the_recipe_that_names_it(folder):
    (folder / "more").mkdir()
    (folder / "more" / "heard.toml").write_text('extends = "base"\non_event = "own.py:listen"\n')
    (folder / "further.toml").write_text('extends = "more/heard"\n')
    for path in ("more/heard.toml", "further.toml"):
        assert recipe.load(str(folder / path)).on_event == f"{(folder / 'more').absolute()}/own.py:listen"
    assert overridden("on_event=own.py:listen").on_event.endswith("own.py:listen")  # where one stands
    assert overridden("on_event=package.module:listen").on_event == "package.module:listen"


# Images of one's own


def test_code_lies_beside_the_recipe_that_names_it(folder, monkeypatch):
    (folder / "deep").mkdir()
    write(folder, "deep/mine", "extends = 'base'\ndata = {name = 'mine.py:make', of = 3, crop = 1}")
    found = recipe.load(write(folder, "outer", "extends = 'deep/mine'\nseed = 3"))
    assert found.data.name == f"{folder}/deep/mine.py:make"
    assert (found.data.options, found.data.crop) == ({"of": 3}, 1)
    monkeypatch.chdir(folder)
    over = overridden("data.name=other.py:make", "data.n=5", "data.size=[12, 20]")
    assert (over.data.name, over.data.options, over.data.size) == (f"{folder}/other.py:make", {"n": 5}, (12, 20))
    for one in (found, over):
        assert recipe.parse(tomllib.loads(recipe.dump(one)), source="again") == one


def test_further_keys_of_other_images_are_unknown(folder):
    assert "unknown key 'data.siz'; did you mean 'size'?" in refusal(overridden, "data.siz=3")
    assert "unknown key 'data.cutout'" in refusal(overridden, "data.cutout=3")


SIZES = ["data.size=0", "data.size=[12]", "data.size=[12, 0]", "data.size=[1, 2, 3]", "data.size=true", "data.size='x'"]


@pytest.mark.parametrize("override", SIZES)
def test_sizes_that_are_none(folder, override):
    assert "data.size: expected a side in pixels, or [HEIGHT, WIDTH], got" in refusal(overridden, override)


def test_a_square_is_one_however_it_is_written(folder):
    assert overridden("data.name=folder", "data.size=[12, 12]").data.size == 12


def test_adamw_has_a_rate_and_a_decay_of_its_own(folder):
    usual, asked = overridden("train.optimizer=adamw"), overridden("quant.optimizer=adamw", "quant.weight_decay=0.1")
    assert (usual.train.lr, usual.train.weight_decay) == (1e-3, 0.05)
    assert (asked.quant.lr, asked.quant.weight_decay, asked.train.lr) == (1e-3, 0.1, recipe.load("base").train.lr)
    assert recipe.parse(asked.model_dump(mode="json"), source="dump") == asked


def test_an_optimiser_and_a_warm_up_that_are_the_usual_ones_leave_no_trace(folder):
    for table in ("train", "quant"):
        assert not {"optimizer", "warmup"} & recipe.load("base").model_dump(mode="json")[table].keys()
        used = overridden(f"{table}.optimizer=adamw", f"{table}.warmup=0.5").model_dump(mode="json")[table]
        assert (used["optimizer"], used["warmup"]) == ("adamw", 0.5)
        assert "extra" not in recipe.load("base").model_dump()[table]
        assert "teacher" not in recipe.load("base").model_dump()[table]
        assert "resized_crop" not in recipe.load("base").model_dump()["data"]
        assert not {"nesterov", "decay", "pct_start"} & recipe.load("base").model_dump(mode="json")[table].keys()
    assert "warmup" not in recipe.load("base").model_dump()["train"]["attack"]
    assert overridden("train.attack.warmup=2").model_dump()["train"]["attack"]["warmup"] == 2


def test_forms_of_the_papers_leave_no_trace_where_they_are_not_taken(folder):
    forms = {
        "train.attack.start=near": ("train", "attack", "start"),
        "train.mix={kind = 'cutmix', border = 'inside'}": ("train", "mix", "border"),
        "quant.start_from=initial": ("quant", "start_from"),
        "departures.epoch=another": ("departures",),
    }
    for setting, (*tables, key) in forms.items():
        usual, used = (overridden(*given) for given in (("train.mix.kind=cutmix",), (setting,)))
        at = [functools.reduce(dict.__getitem__, tables, one.model_dump(mode="json")) for one in (usual, used)]
        assert [key in table for table in at] == [False, True]
        assert recipe.parse(tomllib.loads(recipe.dump(used)), source="dump") == used


def test_departures_are_inherited_and_added_to_within_a_file(folder):
    """A file is a paper's: what extends it is another matter."""
    one = write(folder, "one", f'{BASE}\n[departures]\nepoch = "last"\n[variants.two]\ndepartures.form = "batch"\n')
    three = write(folder, "three", 'extends = "four"\n')
    write(folder, "four", f'{BASE}\n[departures]\nepoch = "last"\n')
    assert recipe.load(f"{one}#two").departures == {"epoch": "last", "form": "batch"}
    assert recipe.load(three).departures == {}


def test_keys_that_came_later_are_not_spelt_out_where_they_are_not_used(folder):
    later = {"texture", "test_share", "skip_unreadable", "options"}
    assert not later & overridden().data.model_dump().keys()
    assert overridden("data.skip_unreadable=true").data.model_dump()["skip_unreadable"] is True


@pytest.mark.parametrize("value", ["'equal'", "[1]", "[1, 0]", "[1, -1]", "[1, true]", "3"])
def test_class_weights_that_are_none(folder, value):
    text = refusal(overridden, f"train.class_weights={value}")
    assert "train.class_weights: expected 'balanced', or a positive number a class, got" in text


def test_class_weights_go_with_cross_entropy_to_labels(folder):
    assert overridden("train.class_weights=[1, 2.5]").train.class_weights == (1, 2.5)
    assert "class_weights" not in overridden().train.model_dump()
    for more in ("train.mix={kind='mixup'}", "quant.method=rslad"):
        assert "expected cross-entropy to labels for class_weights" in refusal(
            overridden, "train.class_weights=balanced", more
        )

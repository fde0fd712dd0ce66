"""Deployment targets in TOML."""

import json
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from qrobust import resources
from qrobust.errors import RecipeError
from qrobust.export.lowering import FORMS
from qrobust.export.target import Target, load_target
from qrobust.runtime import LITERT, OPENVINO

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads((ROOT / "tests" / "fixtures" / "targets.json").read_text())
NAMES = list(dict(resources.listing("export")))
ALIKE = ("ort-cpu-int8", "as-given")  # of a format that another target has too
BARE = 'description = "mine"\nprovider = "CPUExecutionProvider"\n'


def own(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def written(tmp_path, old, new):
    """A target that states every default, with one change."""
    text = BARE + (ROOT / "export" / "_defaults.toml").read_text()
    assert old in text
    return own(tmp_path, text.replace(old, new, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_target_loads_by_name_and_by_path(name):
    target = load_target(name)
    assert target.name == name
    assert target == load_target(str(ROOT / "export" / f"{name}.toml"))
    assert target.description
    assert target.executable == target.provider.endswith(("ExecutionProvider", OPENVINO, *LITERT))


def test_targets_are_what_they_were_when_each_stated_all():
    """Those that there were then."""
    assert {name: load_target(name).model_dump(mode="json") for name in RECORDED} == RECORDED


def test_defaults_are_said_once(tmp_path):
    """In the one file, and neither in the schema nor again in a target; they are no target themselves."""
    defaults = resources.defaults("export")
    bare = load_target(own(tmp_path, BARE)).model_dump(mode="json", exclude_none=True)
    assert bare == {"name": "mine", **tomllib.loads(BARE), **defaults}
    with pytest.raises(RecipeError, match="got '_defaults'; "):
        load_target("_defaults")


@pytest.mark.parametrize("name", NAMES)
def test_a_target_repeats_no_default(name):
    table, defaults = dict(resources.listing("export"))[name].table, resources.defaults("export")
    for key in table.keys() & defaults.keys():
        if isinstance(table[key], dict):
            assert all(table[key][inner] != defaults[key].get(inner) for inner in table[key])
        else:
            assert table[key] != defaults[key]


def test_a_target_of_ones_own_extends_one_that_is_shipped(tmp_path):
    mine = load_target(own(tmp_path, 'extends = "tensorrt"\ndescription = "mine"\nlimits.robust_drop = 0.01'))
    shipped = load_target("tensorrt")
    limits = shipped.limits.model_copy(update={"robust_drop": 0.01})
    assert mine == shipped.model_copy(update={"name": "mine", "description": "mine", "limits": limits})


def test_formats_and_storage_tell_the_targets_apart():
    targets = [load_target(name) for name in NAMES]
    said = {(t.format, t.storage, t.provider, t.names) for t in targets if t.name not in ALIKE}
    assert len(said) == len(NAMES) - len(ALIKE)
    assert {t.format for t in targets} == set(FORMS)
    assert {t.storage for t in targets} == set(get_args(Target.model_fields["storage"].annotation))
    assert [t.name for t in targets if not t.executable] == ["qonnx"]


def test_an_own_target_is_named_after_its_file(tmp_path):
    target = load_target(written(tmp_path, "square_gap = 0.02", "square_gap = 0.05"))
    assert (target.name, target.limits.square_gap) == ("mine", 0.05)


def test_refuses_an_unknown_name():
    with pytest.raises(RecipeError, match="got 'ort-gpu'; did you mean 'ort-cpu'"):
        load_target("ort-gpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[limits]",
            "[limits]\nlabel_flip = 0",
            "unknown key 'limits.label_flip'; did you mean 'label_flips'",
        ),
        ("storage", "storge", "unknown key 'storge'; did you mean 'storage'"),
        (
            "label_flips = 0.005",
            "label_flips = 5",
            "limits.label_flips: expected less than or equal to 0.1, got 5",
        ),
        (
            'storage = "cast"',
            'storage = "int3"',
            "storage: expected 'cast', 'direct' or 'bytes', got 'int3'",
        ),
        ('format = "integer"', 'format = "int"', "format: expected 'integer', 'compact',"),
        ("opset = 25", "opset = 19", "opset: expected greater than or equal to 20, got 19"),
        (
            "intra_op_num_threads = 0",
            "intra_op_num_threads = 5000",
            "session.intra_op_num_threads: expected less than or equal to 1024, got 5000",
        ),
        (
            "description",
            'name = "\\u0007"\ndescription',
            "name: expected a printable name that can name a folder, got '\\x07'",
        ),
        ("opset = 25", "opset = 26", "opset: expected less than or equal to 25, got 26"),
        ('description = "mine"', "", "expected a value for 'description', got none"),
        ("queries = 300", "queries = 49", "square.queries: expected greater than or equal to 50, got 49"),
        ("\nn = 300", "\nn = 1", "square.n: expected greater than or equal to 32, got 1"),
        ("alpha = 0.05", "alpha = 1e-4", "statistics.alpha: expected greater than or equal to 0.001, got 0.0001"),
    ],
)
def test_refuses_what_is_no_target(tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=r"mine\.toml: ") as caught:
        load_target(written(tmp_path, old, new))
    assert message in str(caught.value)


def test_limits_that_no_default_sets(tmp_path):
    target = load_target(own(tmp_path, BARE + "limits = {latency_ms = 2.5, size_bytes = 100_000}"))
    assert (target.limits.latency_ms, target.limits.size_bytes, target.limits.logit_change) == (2.5, 100_000, None)
    assert load_target("ort-cpu").limits.latency_ms is None


def test_int8_activations_are_not_opened_with_an_option_that_breaks_them(tmp_path):
    with pytest.raises(RecipeError, match=r"expected x64quantprecision = 0 for the format symmetric, .* got 1; set it"):
        load_target(written(tmp_path, 'format = "integer"', 'format = "symmetric"'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha = 0.05", "alpha = 0.5", "statistics.alpha: expected less than 0.5, got 0.5"),
        ("power = 0.8", "power = 1.0", "statistics.power: expected less than or equal to 0.999999, got 1.0"),
        ("detected_drop = 0.1", "detected_drop = 0.02", "expected a detected_drop above the tolerated 0.02, got 0.02"),
        ("detected_drop = 0.1", "detected_drop = 0.0200005", "a detected_drop above the tolerated 0.02, got 0.0200005"),
        ("[limits]", "[limits]\nlatency_ms = 0", "limits.latency_ms: expected greater than 0, got 0"),
    ],
)
def test_refuses_statistics_that_decide_nothing(tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=r"mine\.toml: ") as caught:
        load_target(written(tmp_path, old, new))
    assert message in str(caught.value)

"""Deployment targets in TOML."""

from pathlib import Path

import pytest

from qrobust.errors import RecipeError
from qrobust.export import load_target

FOLDER = Path(__file__).resolve().parents[2] / "export"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def written(tmp_path, old, new):
    text = (FOLDER / "ort-cpu.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_target_loads_by_name_and_by_path(name):
    target = load_target(name)
    assert target.name == name
    assert target == load_target(str(FOLDER / f"{name}.toml"))
    assert target.description
    assert target.provider.endswith("ExecutionProvider")


def test_storage_tells_the_targets_apart():
    assert load_target("ort-cpu").storage == "true-width"
    assert load_target("ort-cpu-int8").storage == "int8"


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
            "limits.label_flips: expected less than or equal to 1, got 5",
        ),
        (
            'storage = "true-width"',
            'storage = "int3"',
            "storage: expected 'true-width' or 'int8', got 'int3'",
        ),
        ("queries = 300\n", "", "expected a value for 'square.queries', got none"),
    ],
)
def test_refuses_what_is_no_target(tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=r"mine\.toml: ") as caught:
        load_target(written(tmp_path, old, new))
    assert message in str(caught.value)

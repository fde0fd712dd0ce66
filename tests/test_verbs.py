"""`qrobust eval` on a finished run, and `qrobust compare` on what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qrobust.attacks import plan
from qrobust.evaluation import read_outcomes

from .conftest import CommandLine, ended, once

WIDTHS = ("qm-32", "qm-4", "qm-2")


@pytest.fixture(scope="module")
def evaluated(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all.json of every width, and their masks."""

    def make(folder: Path) -> None:
        arguments = ["eval", str(small_run), "--attacks", "fgsm,pgd-3", "-n", "40", "--json", str(folder / "all.json")]
        assert ended(*arguments) == 0

    return once(tmp_path_factory, "evaluated", make)


def test_every_width_has_its_own_result_and_masks(evaluated: Path) -> None:
    names = {f"all.{width}.{suffix}" for width in WIDTHS for suffix in ("json", "npz")}
    assert {path.name for path in evaluated.iterdir()} >= names | {"all.json"}
    assert not list(evaluated.glob("*.partial.npz"))
    together = json.loads((evaluated / "all.json").read_text())
    assert list(together) == list(WIDTHS)
    for width in WIDTHS:
        result, masks = read_outcomes(evaluated / f"all.{width}.json")
        assert result == together[width]
        assert (result["n"], list(result["attacks"])) == (40, ["fgsm", "pgd-3"])
        assert result["clean"]["accuracy"] == masks["clean"].mean()
        assert isinstance(result["flags"], list)


def test_one_width_alone_is_the_same(
    command_line: CommandLine, small_run: Path, evaluated: Path, tmp_path: Path
) -> None:
    arguments = ["eval", str(small_run / "qm-4"), "--attacks", "pgd-3, fgsm", "-n", "40", "--json", "one.json"]
    assert command_line(*arguments)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"one.json", "one.npz"}
    _, alone = read_outcomes(tmp_path / "one.json")
    _, among = read_outcomes(evaluated / "all.qm-4.json")
    assert alone.keys() == among.keys()
    assert all(np.array_equal(alone[name], among[name]) for name in alone)


def test_without_attacks_the_recipe_s_are_made_and_strong(
    command_line: CommandLine, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ROUNDED", plan.ROUNDED[:1])
    code, _, errors = command_line("eval", str(small_run / "qm-2"), "-n", "20", "--json", "one.json")
    assert code == 0
    assert list(read_outcomes(tmp_path / "one.json")[0]["attacks"]) == ["gn", "pgd-5", "strong"]
    assert "gradient passes an image that holds" in errors


def test_the_seed_is_that_of_the_command(command_line: CommandLine, small_run: Path, tmp_path: Path) -> None:
    assert (
        command_line(
            "eval", str(small_run / "qm-2"), "-n", "9", "--seed", "5", "--attacks", "fgsm", "--json", "one.json"
        )[0]
        == 0
    )
    assert read_outcomes(tmp_path / "one.json")[0]["seed"] == 5


def test_compare_two_widths(command_line: CommandLine, evaluated: Path, tmp_path: Path) -> None:
    code, out, _ = command_line(
        "compare", *(str(evaluated / f"all.{width}.json") for width in WIDTHS[:2]), "--json", "paired.json"
    )
    assert code == 0
    assert "(40 images)" in out
    result = json.loads((tmp_path / "paired.json").read_text())
    first, second = (read_outcomes(evaluated / f"all.{width}.json")[1] for width in WIDTHS[:2])
    assert list(result["sets"]) == ["clean", "fgsm", "pgd-3", "worst_case"]
    for name, row in result["sets"].items():
        assert name in out
        if name != "worst_case":
            assert row["gained"] == np.flatnonzero(second[name] & ~first[name]).tolist()
            assert row["lost"] == np.flatnonzero(first[name] & ~second[name]).tolist()


def _eval(*more: str) -> list[str]:
    return ["eval", "RUN", "-n", "20", *more]


BAD = {
    "unknown attack": (_eval("--attacks", "fgsm,pdg-3"), "did you mean 'pgd-20'?"),
    "unknown setting": (_eval("--attacks", "pgd-3:stepsize=1/255"), "did you mean 'step_size'?"),
    "n too large": (["eval", "RUN", "--attacks", "fgsm", "-n", "100000"], "expected n in [1, 120]"),
    "n = 0": (["eval", "RUN", "--attacks", "fgsm", "-n", "0"], "expected n in [1, 120]"),
    "commas alone": (_eval("--attacks", ","), "expected an attack, got ''"),
    "a space": (_eval("--attacks", " "), "expected an attack, got ''"),
    "a place that takes no masks": (
        _eval("--attacks", "fgsm", "--json", "result"),
        "expected a file that ends in .json",
    ),
    "masks over the result": (_eval("--attacks", "fgsm", "--json", "a.npz"), "expected a file that ends in .json"),
    "transfer from the float network": (_eval("--attacks", "transfer-3"), "expected a float model"),
    "no run": (["eval", "nowhere"], "recipe.toml"),
    "no run of a width": (["eval", "nowhere/qm-4"], "recipe.toml"),
    "another width": (["eval", "RUN/qm-8", "-n", "20"], "expected a width of [32, 4, 2], got qm-8"),
    "no width": (["eval", "RUN/qm-3", "-n", "20"], "expected a width of [32, 4, 2], got qm-3"),
    "nothing to compare": (["compare", "a.json", "b.json"], "expected a JSON file at a.json"),
    "other images": (["compare", "ALL/all.qm-4.json", "RUN/qm-4/eval.json"], "expected results on the same images"),
    "several at once": (["compare", "ALL/all.json", "ALL/all.json"], "with its .npz beside it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    name: str, command_line: CommandLine, small_run: Path, evaluated: Path, tmp_path: Path
) -> None:
    arguments, expected = BAD[name]
    code, out, errors = command_line(
        *(part.replace("RUN", str(small_run)).replace("ALL", str(evaluated)) for part in arguments)
    )
    assert (code, out) == (2, "")
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not list(tmp_path.iterdir())

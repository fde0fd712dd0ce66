"""Documents say what the program does: generated ones are up to date, README's commands exist."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, Field

import qrobust
from qrobust.bench.measure import Scenario
from qrobust.export.target import Target
from qrobust.recipe import Recipe
from qrobust.runtime import Artifact
from qrobust.torchvision_cpu import import_torchvision

from .conftest import CommandLine, docs_generator, evidence

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


GENERATED = docs_generator().DOCUMENTS
KEYS = docs_generator().key_tables


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_documents_are_up_to_date(path: Path) -> None:
    assert path.read_text() == GENERATED[path](), "run `make docs`"


def test_every_command_of_the_readme_exists() -> None:
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M))
    verbs = set(re.findall(r"^qrobust ([a-z]+)", shell, re.M))
    assert verbs
    assert verbs <= set(docs_generator().VERBS)


def test_every_verb_is_in_the_reference(command_line: CommandLine) -> None:
    help_text = command_line("--help")[1]
    for verb in docs_generator().VERBS:
        assert re.search(rf"^\s+{verb}\b", help_text, re.M)


def test_links_in_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_python_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    assert examples
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks one after the other, then its tests; and it names all that is public."""
    monkeypatch.chdir(tmp_path)
    text, names = (ROOT / "docs" / "api.md").read_text(), {"__name__": "api"}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, "docs/api.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()  # type: ignore[operator]
    assert [name for name in qrobust.__all__ if name not in text] == ["__version__", "export_model"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's, of workers and of what torch deprecates
@pytest.mark.parametrize("name", ["plain_loop", "lightning_loop"])
def test_loops_of_ones_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "lightning_loop":
        evidence("lightning")
        import_torchvision()  # which Lightning imports too
        importlib.import_module("lightning")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")
    manifest = Artifact.load("artifacts/qm-4").manifest
    assert manifest["bits"] == 4
    assert manifest["metrics"]["before"]["worst_case"]["accuracy"] > 0.6


def test_examples_of_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user would paste them, in the order of the path: later ones read what earlier ones write."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in ("quantize", "fit", "evaluate", "export_artifact", "check", "attack", "save", "load"):
        (found,) = doctest.DocTestFinder(recurse=False).find(getattr(qrobust, name), name, globs={})
        assert found.examples, name
        assert doctest.DocTestRunner().run(found).failed == 0, name


def test_the_makefile_has_the_commands_of_the_readme() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_the_map_names_what_is_there() -> None:
    text = (ROOT / "docs" / "map.md").read_text()
    named = set(re.findall(r"`((?:qrobust|tests|export|recipes|benches|docs)/[\w./]*)`", text))
    named |= {f"qrobust/{name}" for name in re.findall(r"`((?:runs|deployed|bench|analysis|report)/\w+\.py)`", text)}
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for table in re.findall(r"`([A-Z_]{5,})`", text):
        homes = [path for path in (ROOT / "qrobust").rglob("*.py") if f"\n{table}" in path.read_text()]
        assert [path for path in homes if path.relative_to(ROOT).as_posix() in named], table


@pytest.mark.parametrize("root", [Recipe, Target, Scenario])
def test_every_key_and_table_says_what_it_means(root: type[BaseModel]) -> None:
    silent = [
        f"{table.__name__}.{name}"
        for table in KEYS.tables(root)
        for name, field in KEYS.own_keys(table).items()
        if KEYS.table_of(field.annotation) is None and not (field.description or "").strip().endswith(".")
    ]
    assert silent == []
    assert [table.__name__ for table in KEYS.tables(root) if not (table.__doc__ or "").strip().endswith(".")] == []


def test_a_key_without_a_default_says_what_holds_without_it() -> None:
    for table in KEYS.tables(Recipe):
        for name, field in KEYS.own_keys(table).items():
            if KEYS.table_of(field.annotation) is None and field.default is None:
                assert KEYS.LEFT_OUT in (field.description or ""), f"{table.__name__}.{name}"


def test_a_table_of_keys_gives_value_range_default_and_meaning() -> None:
    class Base(BaseModel, use_attribute_docstrings=True):
        """What both have."""

        share: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """A share."""

    class Part(Base):
        """A part."""

        kinds: tuple[Literal["a", 3], ...]
        """Kinds, in
        two lines.
        """
        count: Annotated[int, Field(gt=0)] | None = None
        """A number; left out: none."""

    class Whole(Base):
        """All of it."""

        on: bool = True
        """Whether."""
        part: Part

    found = KEYS.sections(Whole, "##", {"part": {"count": 7}}).splitlines()
    assert [line for line in found if line[:2] in ("##", "| ") and "default" not in line] == [
        "## Outside of tables and [part]",
        "| `share` | number in [0, 1) | `0.5` | A share. |",
        "## Outside of tables alone",
        "| `on` | true or false | `true` | Whether. |",
        "## [part] alone",
        '| `kinds` | list of `"a"`, `3` | required | Kinds, in two lines. |',
        "| `count` | integer > 0 | `7` | A number; left out: none. |",
    ]

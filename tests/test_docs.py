"""Documents say what the program does: generated ones are up to date, README's commands exist."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, Field
from typer.main import get_command

import qrobust
from qrobust import cli
from qrobust.bench.measure import Scenario
from qrobust.export.target import Target
from qrobust.recipe import Recipe
from qrobust.runtime import Artifact
from qrobust.torchvision_cpu import import_torchvision

from .conftest import CommandLine, docs_generator, ended, evidence

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
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]:
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


DOCS = ROOT / "docs"
SITE = [DOCS / name for name in ("index.md", "start.md", "notebook.md")] + sorted(
    [*DOCS.glob("guides/*.md"), *DOCS.glob("concepts/*.md")]
)
WHY_NOT = re.compile(r"\*Not run (here|by us): [^*]+\.\*\s*$")


def blocks(path: Path) -> list[tuple[str, str, bool]]:
    """Of a page: language, text, and whether the line before says why it is not run."""
    text = path.read_text()
    found = re.finditer(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)
    return [(one[1], one[2], bool(WHY_NOT.search(text[: one.start()]))) for one in found]


def commands(text: str) -> list[list[str]]:
    """Lines of a shell, without comments."""
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", SITE, ids=lambda path: path.name)
def test_every_block_of_a_page_is_run_or_says_why_not(path: Path) -> None:
    for language, text, excused in blocks(path):
        runs = language in ("python", "toml", "text") or (
            language == "sh" and all(line[0] in ("qrobust", "python") for line in commands(text))
        )
        assert runs or excused, text
        for line in commands(text) if language == "sh" else ():
            if line[0] == "qrobust":  # what it says exists, whether it is run or not
                get_command(cli.app).commands[line[1]].make_context(line[1], line[2:])  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("path", SITE, ids=lambda path: path.name)
def test_blocks_of_a_page_run(path: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in a folder with the demo's run at reduced size; `qrobust run digits` is what made that."""
    if path.name == "openvino.md":
        evidence("openvino")
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "again"):
        shutil.copytree(small_run, tmp_path / "runs" / name)
    manifest = tmp_path / "runs" / "digits" / "qm-4" / "artifact" / "manifest.json"
    asked = json.loads(manifest.read_text())
    asked["statistics"]["detected_drop"] = 0.2  # of a suite smaller than the demo's, which a baseline would refuse
    manifest.write_text(json.dumps(asked))
    for language, text, excused in blocks(path):
        if excused:
            continue
        if language == "python":
            exec(compile(text, str(path), "exec"), {"__name__": path.stem})
        elif language == "toml":
            (tmp_path / text.split()[1]).write_text(text)
        for line in commands(text) if language == "sh" else ():
            if line[:2] == ["qrobust", "run"]:
                continue
            if line[0] == "qrobust":
                assert ended(*line[1:]) in (0, 1), line
            else:
                assert subprocess.run([sys.executable, *line[1:]], check=False).returncode in (0, 1), line


@pytest.mark.slow
def test_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / "examples" / "attack_and_check.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert names["report"].passed  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mkdocs")
    if not program.exists():
        pytest.skip("without the extra `docs`")
    command = [str(program), "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        found = re.findall(
            r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?https?:|<link[^>]*href=\"?https?:", page.read_text()
        )
        assert found == [], page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", style.read_text()), style


def test_links_hold_on_the_site() -> None:
    hook = runpy.run_path(str(DOCS / "hook.py"))
    moved, back = hook["rewritten"], hook["in_repository"]
    assert moved("[a](../../export/README.md#x)", "docs/guides/ci.md") == "[a](../export/README.md#x)"
    assert moved("[a](../README.md#use) [b](api.md)", "docs/checking.md") == "[a](overview.md#use) [b](api.md)"
    assert moved("[a](docs/own.md) [c](nowhere.md)", "README.md") == "[a](own.md) [c](nowhere.md)"
    assert moved("[`x`](../qrobust/export/)", "export/README.md") == "`x`"
    assert [back(page) for page in ("overview.md", "own.md", "export/README.md")] == [
        "README.md", "docs/own.md", "export/README.md",
    ]  # fmt: skip

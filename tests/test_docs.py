"""Documents say what the program does: generated ones are up to date, README's commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import CommandLine, docs_generator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


GENERATED = docs_generator().DOCUMENTS


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


def test_python_examples_of_the_readme_run(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    assert examples
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


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

"""Workflows of GitHub: what they may do, what they take from others, and that their commands exist."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import docs_generator, evidence

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
# What is allowed to write, and why: a page, a proof of origin, an upload without a password.
WRITES = {
    ("docs", "publish"): {"pages", "id-token"},
    ("release", "build"): {"id-token", "attestations"},
    ("release", "publish"): {"id-token"},
}


def jobs(path: Path) -> dict[str, Any]:
    evidence("pyyaml")
    import yaml

    found: dict[str, Any] = yaml.safe_load(path.read_text())
    assert found["permissions"] == {}, "each job asks for its own"
    return found["jobs"]  # type: ignore[no-any-return]


def commands(path: Path) -> Iterator[str]:
    """Of all steps, one a line."""
    for job in jobs(path).values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_may_no_more_than_they_need(path: Path) -> None:
    assert "secrets." not in path.read_text()
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 40, name
        writes = {scope for scope, right in job["permissions"].items() if right == "write"}
        assert writes == WRITES.get((path.stem, name), set()), name
        assert set(job["permissions"].values()) <= {"read", "write"}
        assert job.get("needs", name) in jobs(path)
        for step in job["steps"]:
            if "actions/checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_their_commit(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.fullmatch(r"\s+- uses: [\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_commit_everywhere() -> None:
    pins = {tuple(pin) for path in WORKFLOWS for pin in re.findall(r"uses: (\S+)@(\S+)  # (\S+)", path.read_text())}
    assert len({name for name, _, _ in pins}) == len(pins)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_exist(path: Path) -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for line in commands(path):
        assert set(re.findall(r"\bmake ([\w.-]+)", line)) <= TARGETS, line
        for verb in re.findall(r"\bqrobust (\w+)", line):
            assert verb in docs_generator().VERBS, line
        for script in re.findall(r"(?<!\S)(\.ci/\S+)", line):
            assert os.access(ROOT / script, os.X_OK), line
        for pin in re.findall(r"\S+==\S+", line):
            assert pin in constraints, line
        for file in re.findall(r"-[cr] (\S+\.txt)", line):
            assert (ROOT / file).is_file(), line


def test_what_a_change_must_pass_is_made_of_targets() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert made == ["test", "docs"]
    assert set(made) <= TARGETS

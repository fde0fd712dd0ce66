"""Artifacts with anything changed anywhere: every check ends with a verdict or in one line."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from qrobust.runtime import Artifact, ArtifactError, check

from .test_hostile import limited, verify
from .test_runtime import patch, suite_arrays, write

CASES = 10_000
BY_COMMAND = 200  # more of them


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "artifact", suite_arrays())


ODD = (
    None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"),
    "", "a" * 300, "\ud800", "\x1b[2J", "../x", [], [[]], {}, {"a": 1},
)  # fmt: skip


def flip(data, rng):
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] ^= 1 << rng.integers(8)


def cut(data, rng):
    del data[rng.integers(len(data)) :]


def insert(data, rng):
    at = rng.integers(len(data))
    data[at:at] = rng.bytes(rng.integers(1, 40))


def repeat(data, rng):
    first, last = sorted(rng.integers(0, len(data), 2))
    data[last:last] = data[first:last]


def odd_value(manifest, rng):
    """Another value, or none, at any place of the manifest."""
    part = manifest
    while True:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        key = keys[rng.integers(len(keys))]
        deeper = isinstance(part[key], (dict, list)) and len(part[key]) > 0
        if not deeper or rng.random() < 0.2:
            break
        part = part[key]
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = ODD[rng.integers(len(ODD))]


def harm_anything(folder, rng):
    """One random harm; hashes agree, or nothing behind them would ever be read."""
    change = (flip, flip, cut, insert, repeat)[rng.integers(5)]
    kind = rng.integers(4)
    if kind == 0:
        manifest = json.loads((folder / "manifest.json").read_text())
        odd_value(manifest, rng)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif kind == 1:
        patch("manifest.json", lambda data: change(data, rng))(folder)
    else:
        name = ("model.onnx", "suite.npz")[kind - 2]
        patch(name, lambda data: change(data, rng), hashed=True)(folder)


def outcome(folder):
    """The exit code of a check in this process. Anything but a verdict and ArtifactError is a failure."""
    try:
        with warnings.catch_warnings(action="error"):
            return 0 if check(Artifact.load(folder), queries=50).passed else 1
    except ArtifactError as refused:
        return 2 if str(refused).isprintable() else 3


def fuzz(folder, cases, first=0):
    """Exit codes by case, each from the sound artifact."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    codes = []
    for case in range(first, first + cases):
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        print(case, flush=True)  # what a crash leaves behind
        harm_anything(folder, np.random.default_rng(case))
        codes.append(outcome(folder))
    return codes


def test_anything_anywhere_is_an_exit_code(folder):
    codes = fuzz(folder, 150)
    assert set(codes) == {0, 1, 2}
    assert codes.count(2) > 75


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_harms_in_two_gibibytes(folder):
    """In a process of its own, which a crash of the runtime would end."""
    code = f"from tests.test_hostile_fuzz import *; assert {{*fuzz(Path({str(folder)!r}), {CASES})}} == {{0, 1, 2}}"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, preexec_fn=limited)
    assert done.returncode == 0, done.stdout[-100:] + done.stderr[-2000:]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_harms_by_the_command_line(folder):
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for case in range(CASES, CASES + BY_COMMAND):
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        harm_anything(folder, np.random.default_rng(case))
        done = verify(folder)
        assert done.returncode in (0, 1, 2), (case, done.stderr)
        assert done.stderr.count("\n") == (done.returncode == 2), (case, done.stderr)
        assert "Traceback" not in done.stderr

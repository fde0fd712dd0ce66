"""verify.html in headless Chromium: the same verdict as in Python, and the build known to be wrong is caught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qrobust import runtime
from qrobust.export import artifact
from qrobust.export.artifact import JAVASCRIPT, VERIFIERS

from ..conftest import NODE, evidence
from ..export.test_artifact import write as write_artifact
from ..test_runtime import edit, model_bytes, suite_arrays, write
from .browsing import GPU, ended_page

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is served: onnxruntime-web where the page looks for it, and an artifact beside."""
    evidence("node")
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    return tmp_path


def page(root: Path, address: str, *flags: str) -> dict[str, Any]:
    return ended_page(str(evidence("browser")), root, address, *flags)


def linear(folder: Path, **model: Any) -> Path:
    """An artifact of a linear classifier with the check in JavaScript."""
    write(folder, suite_arrays(), model_bytes(**model))
    for name in VERIFIERS:
        shutil.copy(JAVASCRIPT / name, folder)

    def listed(manifest: dict[str, Any]) -> None:
        manifest["files"] |= {name: artifact._hash(folder / name) for name in VERIFIERS}

    edit(folder, listed)
    return folder


def test_a_browser_gives_the_verdict_of_python(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = linear(root / "artifact")
    found = page(root, "artifact/verify.html")
    assert runtime.main([str(folder)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert (found["exit"], found["title"]) == (0, "held · linear")
    assert [line for line in found["text"].splitlines() if not line.startswith(("square", "worst"))] == [
        line for line in text if not line.startswith(("square", "worst"))
    ]
    assert {name.split("/")[2] for name in found["foreign"]} == {found["foreign"][0].split("/")[2]}


def test_a_browser_says_what_is_broken_and_what_is_refused(root: Path) -> None:
    folder = linear(root / "artifact", scale=2)
    edit(folder, lambda manifest: manifest["limits"].update(logit_change=0.01))
    found = page(root, "artifact/verify.html")
    assert (found["exit"], "logit_change" in found["line"]) == (1, True)
    refused = {
        "ort=../nothing/": "expected onnxruntime-web at /nothing/ort.wasm.min.mjs",
        "ort=https://example.org/": "expected an address on http://127.0.0.1",
        "artifact=../elsewhere": "expected an artifact in /elsewhere/, got no manifest.json",
    }
    for asked, line in refused.items():
        found = page(root, f"artifact/verify.html?{asked}")
        assert (found["exit"], found["line"].startswith(f"refused\n{line}")) == (2, True), found["line"]


def test_the_build_that_gives_wrong_labels_is_caught(root: Path) -> None:
    """onnxruntime-web's JSEP build computes INT8 files wrongly and without an error, on Chromium's software GPU too."""
    write_artifact(root / "artifact", "ort-web-gpu")
    found = page(root, "artifact/verify.html?queries=50&ort=../node_modules/onnxruntime-web/dist/ort.min.mjs", *GPU)
    assert (found["exit"], "label_flips" in found["line"]) == (1, True), found
    assert "ort.min.mjs" in found["line"]

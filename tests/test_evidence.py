"""What a test needs and does not find: skipped, or a failure where QROBUST_EVIDENCE asks for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import conftest
from .conftest import EVIDENCE, asked_for, evidence, pytest_configure


@pytest.mark.parametrize("asked", ["", "browser", "images, openvino"])
def test_what_is_missing_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("QROBUST_EVIDENCE", asked)
    monkeypatch.setitem(EVIDENCE, "scipy", (lambda: None, "package scipy"))
    with pytest.raises(pytest.skip.Exception, match=r"needs package scipy \(evidence: scipy\)"):
        evidence("scipy")


@pytest.mark.parametrize("asked", ["all", "scipy", "browser, scipy", "images,all"])
def test_what_is_missing_and_asked_for_fails(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("QROBUST_EVIDENCE", asked)
    monkeypatch.setitem(EVIDENCE, "scipy", (lambda: None, "package scipy"))
    with pytest.raises(pytest.fail.Exception, match="asks for scipy: expected package scipy; install it"):
        evidence("scipy")


def test_what_is_there_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QROBUST_EVIDENCE", "all")
    monkeypatch.setitem(EVIDENCE, "browser", (lambda: "/bin/browser", "a browser"))
    assert evidence("browser") == "/bin/browser"


def test_a_bare_machine_has_none_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(conftest, "SHARED", tmp_path / "nowhere")
    monkeypatch.setattr(conftest, "NODE", tmp_path / "nowhere")
    for module in conftest.PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert [group for group, (look, _) in EVIDENCE.items() if look()] == []


def test_a_slip_in_a_name_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_for(" browser,, openvino ") == {"browser", "openvino"}
    monkeypatch.setenv("QROBUST_EVIDENCE", "browser,opnevino")
    with pytest.raises(pytest.UsageError, match=r"expected QROBUST_EVIDENCE as all or some of .*, got opnevino"):
        pytest_configure()

"""Every source is in the table, under the name that people write."""

from pathlib import Path

from qrobust.data import DataSettings
from qrobust.data.sources.registry import SOURCES, missing, root_of, source


def test_the_names():
    assert set(SOURCES) == {"digits", "spectral-shapes", "cifar10", "cifar100", "tiny-imagenet", "folder", "npz"}


def test_the_decorator_registers_and_changes_nothing(monkeypatch):
    monkeypatch.delitem(SOURCES, "digits")

    def mine(settings): ...

    assert source("digits")(mine) is mine
    assert SOURCES["digits"] is mine


def test_root():
    assert root_of(DataSettings("npz", root=None)) == Path("data")
    assert root_of(DataSettings("npz", root="~/x.npz")) == Path.home() / "x.npz"


def test_missing_says_what_where_and_how():
    error = missing("two pixels", Path("here"), "draw them")
    assert str(error) == "expected two pixels at here, got none; draw them"

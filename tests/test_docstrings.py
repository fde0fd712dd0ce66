"""What a package offers by __all__ says what it does; what takes more than two parameters, in more than one line."""

import importlib
import inspect
import pkgutil

import pytest

import qrobust

MODULES = ["qrobust", *(found.name for found in pkgutil.walk_packages(qrobust.__path__, "qrobust."))]
FEW = 2  # parameters that one line explains


def offered():
    """Functions and classes of every __all__, by their own module and name."""
    modules = [importlib.import_module(name) for name in MODULES if not name.endswith("__main__")]
    found = {id(one): one for module in modules for one in _named(module)}
    ours = [one for one in found.values() if getattr(one, "__module__", "").startswith("qrobust")]
    return {
        f"{one.__module__}.{one.__qualname__}": one for one in ours if inspect.isfunction(one) or inspect.isclass(one)
    }


def _named(module):
    return [getattr(module, name) for name in getattr(module, "__all__", ())]


def says_too_little(one):
    text = (one.__doc__ or "").strip()
    if not text or text.startswith(f"{one.__name__}("):  # what a dataclass writes for itself
        return True
    return inspect.isfunction(one) and len(inspect.signature(one).parameters) > FEW and "\n" not in text


def test_everything_that_is_offered_says_what_it_is():
    found = offered()
    assert len(found) > 100
    assert sorted(name for name, one in found.items() if says_too_little(one)) == []


def nothing(a):
    pass


def short(a, b, c):
    """One line."""


def long(a, b, c):
    """One line.

    And what the parameters are.
    """


@pytest.mark.parametrize(("one", "expected"), [(nothing, True), (short, True), (long, False)])
def test_too_little_is_seen(one, expected):
    assert says_too_little(one) is expected

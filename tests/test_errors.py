"""One tree of errors, drawn where it is defined, and hints that help."""

import pytest

from qrobust import errors
from qrobust.errors import ExportError, QrobustError, did_you_mean, one_line, printable, shown
from qrobust.runtime import ArtifactError

TREE = [*QrobustError.__subclasses__(), *ExportError.__subclasses__()]


def test_the_drawing_names_every_error():
    drawn = {line.split("── ")[1].split()[0] for line in errors.__doc__.splitlines() if "── " in line}
    assert drawn == {error.__name__ for error in TREE}


@pytest.mark.parametrize("error", [QrobustError, *TREE, ArtifactError], ids=lambda error: error.__name__)
def test_every_error_leaves_with_code_2_but_a_judgement(error):
    assert error("expected A, got B").exit_code == (1 if error is errors.ParityError else 2)
    assert str(error("expected A, got B")) == "expected A, got B"


@pytest.mark.parametrize(("name", "meant"), [("dgits", "digits"), ("cifar", "cifar10"), ("digit", "digits")])
def test_a_slip_is_recognised(name, meant):
    assert did_you_mean(name, ["cifar10", "digits"]) == f"; did you mean {meant!r}?"


def test_all_are_listed_where_none_is_close():
    assert did_you_mean("xyz", {"b": 1, "a": 2}) == "; known: a, b"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\tc\r\nd", "a b c d"), ("\x1b[2Jheld", "?[2Jheld"), ("a  b", "a  b"), ("\u202eλ → π\ud800", "?λ → π?")],
)
def test_a_message_is_one_printable_line(text, line):
    assert (one_line(text), str(QrobustError(text)), one_line(text).isprintable()) == (line, line, True)
    assert printable("a  b\x07") == "a  b?"


def test_a_value_is_shown_whatever_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert (shown("a"), shown(1.5), shown(None)) == ("'a'", "1.5", "None")
    assert shown("a" * 1000) == "'" + "a" * 199 + "…"
    assert (shown(deep), shown(10**5000)) == ("a value of list", "a value of int")

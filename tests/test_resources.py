"""A path wins, then the checkout's files, then what is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qrobust import resources
from qrobust.errors import RecipeError


@pytest.fixture
def shelves(tmp_path, monkeypatch):
    """Two folders in order, as a checkout and an installation would be."""
    folders = [tmp_path / "checkout", tmp_path / "installed"]
    for folder in folders:
        folder.mkdir()
        (folder / "digits.toml").write_text(f"from = '{folder.name}'")
    (folders[0] / "cifar10.toml").write_text("")
    (folders[1] / "only-installed.toml").write_text("")
    (folders[0] / "notes.txt").write_text("")
    monkeypatch.setattr(resources, "folders", lambda kind: folders)
    return folders


def test_a_name_is_found(shelves):
    assert resources.find("recipes", "digits").path == shelves[0] / "digits.toml"
    assert resources.find("recipes", "digits.toml").path == shelves[0] / "digits.toml"


def test_a_path_wins(shelves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.toml").write_text("from = 'here'")
    assert resources.find("recipes", "digits.toml").table == {"from": "here"}
    assert resources.find("recipes", "./digits.toml").table == {"from": "here"}
    assert resources.find("recipes", "digits").table == {"from": "checkout"}


def test_the_path_printed_in_the_documentation_works_anywhere(shelves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.find("recipes", "recipes/digits.toml").path == shelves[0] / "digits.toml"
    with pytest.raises(RecipeError):
        resources.find("recipes", "elsewhere/digits.toml")


# folders below


@pytest.fixture
def deep(shelves):
    """The checkout's folder with a folder of recipes in it, one called like another above."""
    folder = shelves[0] / "paper"
    folder.mkdir()
    for name in ("digits", "resnet", "resnet-sar"):
        (folder / f"{name}.toml").write_text(f"from = 'paper/{name}'")
    return folder


def test_names_are_paths_below_the_folder(shelves, deep):
    found = dict(resources.listing("recipes"))
    assert list(found) == ["cifar10", "digits", "paper/digits", "paper/resnet", "paper/resnet-sar"]
    assert [resources.find("recipes", name) for name in found] == list(found.values())
    assert resources.find("recipes", "paper/resnet.toml").path == deep / "resnet.toml"
    assert resources.find("recipes", "digits").path == shelves[0] / "digits.toml"


def test_a_path_wins_over_a_name_with_a_folder(shelves, deep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.find("recipes", "recipes/paper/resnet.toml").path == deep / "resnet.toml"
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "resnet.toml").write_text("from = 'here'")
    assert resources.find("recipes", "paper/resnet.toml").table == {"from": "here"}
    assert resources.find("recipes", "paper/resnet").path == deep / "resnet.toml"


@pytest.mark.parametrize(("name", "meant"), [("paper/resnte", "paper/resnet"), ("resnet-sar", "paper/resnet-sar")])
def test_a_missing_name_with_a_folder_gets_a_hint(deep, name, meant):
    with pytest.raises(RecipeError) as caught:
        resources.find("recipes", name)
    assert str(caught.value).endswith(f"got {name!r}; did you mean {meant!r}?")


def test_a_file_has_the_name_it_is_found_by(shelves, deep, tmp_path):
    for name, found in resources.listing("recipes"):
        assert resources.name_of("recipes", found) == name

    def called(path, variant=""):
        return resources.name_of("recipes", resources.Found(path, variant, {}))

    assert called(shelves[1] / "only-installed.toml") == "only-installed"
    assert called(tmp_path / "my.recipe.toml") == "my.recipe"
    assert called(tmp_path / "my.recipe.toml", "a") == "my.recipe/a"
    assert called(deep / ".." / "digits.toml") == "digits"


# variants


@pytest.fixture
def study(shelves):
    """A file of variants in the checkout, one called like a file beside it."""
    file = shelves[0] / "study.toml"
    file.write_text("seed = 1\n[variants.at]\nseed = 2\n[variants.digits]\n")
    return file


def test_variants_are_named_as_files_in_a_folder(shelves, study, tmp_path, monkeypatch):
    found = dict(resources.listing("recipes"))
    assert list(found) == ["cifar10", "digits", "study/at", "study/digits"]
    assert [resources.find("recipes", name) for name in found] == list(found.values())
    assert [resources.name_of("recipes", one) for one in found.values()] == list(found)
    monkeypatch.chdir(tmp_path)
    for name in ("study/at.toml", "study.toml#at", "recipes/study/at.toml", "recipes/study.toml#at", f"{study}#at"):
        assert resources.find("recipes", name) == found["study/at"]
    assert str(found["study/at"]) == f"{study}#at"
    assert found["study/at"].table == {"seed": 2}
    assert found["study/at"].base.table == {"seed": 1}


WHOLE = "expected one of the variants in {study}, got the whole file; name one, as {study}#at; known: at, digits"
VARIANTS = {
    "study": WHOLE,
    "{study}": WHOLE,
    "{study}#ta": "expected one of the variants in {study}, got 'ta'; did you mean 'at'?",
    "{study}#mart": "expected one of the variants in {study}, got 'mart'; did you mean 'at'?",
    "{study}#x": "expected one of the variants in {study}, got 'x'; known: at, digits",
    "study/digts": "expected a file or one of qrobust's recipes, got 'study/digts'; did you mean 'study/digits'?",
    "at": "expected a file or one of qrobust's recipes, got 'at'; known: study/at",
    "{digits}#at": "expected {digits} with tables [variants.NAME], got none; leave #at out",
}


@pytest.mark.parametrize(("name", "text"), VARIANTS.items())
def test_a_variant_must_be_there_and_be_named(shelves, study, name, text):
    paths = {"study": study, "digits": shelves[0] / "digits.toml"}
    with pytest.raises(RecipeError) as caught:
        resources.find("recipes", name.format(**paths))
    assert str(caught.value) == text.format(**paths)


@pytest.mark.parametrize(("text", "got"), [("variants = 3", "3"), ("variants.at = 'x'", "'x'")])
def test_variants_are_tables(tmp_path, text, got):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(RecipeError, match=rf"a\.toml: expected tables \[variants\.NAME\], got {got}$"):
        resources.find("recipes", f"{tmp_path}/a.toml#at")


def test_a_file_for_others_to_build_on_has_no_name(shelves):
    (shelves[0] / "_defaults.toml").write_text("seed = 7")
    assert resources.defaults("recipes") == {"seed": 7}
    assert list(dict(resources.listing("recipes"))) == ["cifar10", "digits"]
    with pytest.raises(RecipeError, match="got '_defaults'; "):
        resources.find("recipes", "_defaults")


def test_the_checkout_hides_what_is_installed(shelves):
    assert [name for name, _ in resources.listing("recipes")] == ["cifar10", "digits"]
    for path in shelves[0].iterdir():
        path.unlink()
    shelves[0].rmdir()
    assert [name for name, _ in resources.listing("recipes")] == ["digits", "only-installed"]


def test_nothing_is_listed_where_nothing_is(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "folders", lambda kind: [tmp_path / "absent"])
    assert list(resources.listing("export")) == []


@pytest.mark.parametrize("name", ["x" * 5000, f"{'x' * 5000}.toml", f"x/{'x' * 5000}", "x\0.toml", ".toml#x", "", "/"])
def test_what_can_be_no_file_is_no_recipe(shelves, name):
    with pytest.raises(RecipeError, match=r"^expected a file or one of qrobust's recipes, got "):
        resources.find("recipes", name)


@pytest.mark.parametrize("name", ["digts", "digts.toml"])
def test_a_missing_name_gets_a_hint(shelves, name):
    with pytest.raises(RecipeError) as caught:
        resources.find("recipes", name)
    text = f"expected a file or one of qrobust's recipes, got {name!r}; did you mean 'digits'?"
    assert str(caught.value) == text


def test_a_name_like_no_other_gets_the_list(shelves):
    with pytest.raises(RecipeError, match=r"got 'xyz'; known: cifar10, digits$"):
        resources.find("recipes", "xyz")


@pytest.mark.parametrize("kind", resources.KINDS)
def test_folders_are_the_checkout_then_share(kind):
    first, *others = resources.folders(kind)
    assert (Path(first.as_posix().removesuffix(kind)) / "qrobust" / "resources.py").is_file()
    assert others
    assert all(folder.as_posix().endswith(f"/share/qrobust/{kind}") for folder in others)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"^expected a TOML file at .*no\.toml: No such file or directory$"):
        resources.read_toml(tmp_path / "no.toml")


def test_broken_toml_is_named_with_its_line(tmp_path):
    (tmp_path / "a.toml").write_text("x = 1\ny = \n")
    with pytest.raises(RecipeError, match=r"a\.toml: expected TOML: Invalid value \(at line 2, column 5\)$"):
        resources.read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["x = " + "[" * 10_000, "x = " + "9" * 5000, "x = 1\nx = 2", "x = 2020-13-45"])
def test_what_no_reader_takes_is_one_line(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"a\.toml: expected TOML: ") as caught:
        resources.read_toml(tmp_path / "a.toml")
    assert str(caught.value).isprintable()


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"a\.toml: expected TOML: .*can't decode"):
        resources.read_toml(tmp_path / "a.toml")


def test_toml_is_utf8_in_every_locale(tmp_path):
    (tmp_path / "a.toml").write_text("x = 'λ'", encoding="utf-8")
    imports = "import pathlib, sys; from qrobust.resources import read_toml"
    code = f"{imports}; read_toml(pathlib.Path(sys.argv[1], 'a.toml'))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)], env=environment, check=True)


# Functions of the user's own


CODE = """
import neighbour
runs = getattr(neighbour, "runs", 0) + 1
neighbour.runs = runs
def make(): return neighbour.value
text = "no function"
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("value = 3")
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    return tmp_path


def test_a_function_in_a_file_finds_its_neighbours_and_runs_once(code):
    path = list(sys.path)
    first = resources.named_factory("mine.py:make", code)
    assert first() == 3
    assert resources.named_factory(f"{code / 'mine.py'}:make", Path("elsewhere")) is first
    assert sys.path == path
    (code / "mine.py").write_text("def make(): return 4")
    assert resources.named_factory("mine.py:make", code)() == 4


def test_a_function_in_a_module(code):
    assert resources.named_factory("os.path:join", code) is os.path.join


FACTORIES = [
    ("mine.py:mak", "expected a function 'mak' in mine.py, got none; did you mean 'make'?"),
    ("mine.py:text", "expected a function 'text' in mine.py, got none; did you mean 'next'?"),
    ("mine.py:", "expected FILE.py:NAME or package.module:NAME, got 'mine.py:'; name a function in it"),
    (":make", "expected FILE.py:NAME or package.module:NAME, got ':make'; name a function in it"),
    ("none.py:make", "expected Python code at {0}/none.py: No such file or directory; put it there, or name another"),
    ("no.such.module:f", "expected a module no.such.module, got none; install it, or name a file, FILE.py:NAME"),
    ("raises.py:f", "expected code that runs in {0}/raises.py, line 2, it raised ZeroDivisionError: division by zero"),
    ("leaves.py:f", "expected code that runs in {0}/leaves.py, line 1, it raised SystemExit: 3; mend it"),
    ("syntax.py:f", "expected code that runs in {0}/syntax.py, it raised SyntaxError: '(' was never closed"),
    ("lacks.py:f", "expected code that runs in {0}/lacks.py, line 1, it raised ModuleNotFoundError: No module named"),
]


@pytest.mark.parametrize(("text", "message"), FACTORIES, ids=[text for text, _ in FACTORIES])
def test_what_is_no_function_is_refused_in_a_line(code, text, message):
    for name, wrong in {
        "raises": "\n1 / 0",
        "leaves": "raise SystemExit(3)",
        "syntax": "f(",
        "lacks": "import nosuch",
    }.items():
        (code / f"{name}.py").write_text(wrong)
    before = set(sys.modules)
    with pytest.raises(RecipeError) as caught:
        resources.named_factory(text, code)
    assert str(caught.value).startswith(message.format(code).replace("; did you mean 'next'?", ""))
    assert not [name for name in set(sys.modules) - before if name.startswith("_own_") and "mine" not in name]


def test_a_path_of_code_becomes_whole(tmp_path):
    assert resources.located("deep/mine.py:f", tmp_path) == f"{tmp_path / 'deep' / 'mine.py'}:f"
    assert resources.located("/mine.py:f", tmp_path) == "/mine.py:f"
    for other in ("digits", "package.module:f", "mine.py", "torchvision:resnet18"):
        assert resources.located(other, tmp_path) == resources.unplaced(other) == other

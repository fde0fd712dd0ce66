"""The recipe in docs/scaling.md is one, and its commands exist."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

from qrobust import cli
from qrobust.data.sources.registry import DataSettings, check_settings
from qrobust.recipe import load, parse

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()


def the_recipe():
    (block,) = re.findall(r"^```toml\n(.*?)^```", TEXT, re.S | re.M)
    return block


def commands():
    """The words after `qrobust` of every command, lines that go on joined."""
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.S | re.M)).replace("\\\n", " ")
    return [line.split("qrobust ", 1)[1].split() for line in shell.splitlines()]


def test_the_recipe_is_a_recipe():
    found = parse(tomllib.loads(the_recipe()) | {"name": "imagenet"}, source="docs/scaling.md")
    assert found.model.options == {"stem": "imagenet"}
    check_settings(DataSettings(**found.data.model_dump(exclude={"crop", "flip"})))


def test_the_overrides_of_its_commands_are_keys(tmp_path):
    path = tmp_path / "imagenet.toml"
    path.write_text(the_recipe())
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert len(commands()) == 4
    for verb, _, *options in commands():
        assert verb in verbs
        load(str(path), [value for flag, value in pairwise(options) if flag == "-o"])

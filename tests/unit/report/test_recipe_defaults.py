"""Defaults of settings, read from the code, against the signatures of the code as it runs."""

import inspect

import pytest

from helpers.processes import ROOT
from helpers.run_folders import RECIPE
from trainkit.commands.recipe_file import load_recipe
from trainkit.errors import UserError
from trainkit.report.recipe_defaults import read_defaults
from trainkit.storage.setting_values import plain

FILES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_defaults_are_those_of_the_signature(file):
    parameters = inspect.signature(load_recipe(file)).parameters.values()
    expected = {
        each.name: plain(each.default) for each in parameters if each.default is not each.empty
    }
    found = read_defaults(file)
    assert {name: expected[name] for name in found} == found
    # a computed one is left out, and nothing else is
    assert expected.keys() - found.keys() <= {"ignore"}


def test_a_recipe_by_itself(tmp_path):
    (tmp_path / "one.py").write_text(RECIPE + "\nraise SystemExit('it was run')\n")
    found = read_defaults(tmp_path / "one.py")
    assert found["lr"] == 0.1 and found["epochs"] == 10 and found["sizes"] == [32, 64]
    assert found["optimizer"] == "nesterov" and found["schedule"] == "cos"


def test_what_is_not_python_is_refused(tmp_path):
    (tmp_path / "one.py").write_text("def recipe(:")
    with pytest.raises(UserError, match="is not Python"):
        read_defaults(tmp_path / "one.py")
    (tmp_path / "deep.py").write_text("x = " + 100_000 * "-" + "1")  # for which Python has no words
    with pytest.raises(UserError, match="deep.py is not Python: MemoryError"):
        read_defaults(tmp_path / "deep.py")
    with pytest.raises(UserError, match="cannot be read"):
        read_defaults(tmp_path / "none.py")

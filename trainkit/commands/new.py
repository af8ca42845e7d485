"""trainkit new RECIPE FILE: a copy of a recipe, to change."""

from pathlib import Path

from trainkit.commands.arguments import read_options
from trainkit.commands.recipe_names import find_recipe, instead_of
from trainkit.display.terminal import Display
from trainkit.errors import MissingFileError, UserError


def run(first: str, words: list[str]) -> int:
    """Copy the recipe `first` to the file that the words name; the exit code."""
    asked = read_options("new", f"trainkit new {first}", words)
    source = find_recipe(first)
    if not source.is_file():
        raise MissingFileError(f"no recipe at {source}{instead_of(source)}")
    copy(source, asked.file)
    display = Display()
    display.note(f"{asked.file}: a copy of {source.stem}")
    display.note(
        f"trainkit {asked.file} --help lists its settings; trainkit {asked.file} trains it"
    )
    return 0


def copy(source: Path, target: Path) -> None:
    """Write the recipe at `source` to `target`.

    Raises:
        UserError: something is there.
    """
    if target.suffix != ".py":
        raise UserError(f"{target} is no name of a Python file: end it with .py")
    if target.exists():
        raise UserError(f"{target} exists; give another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except OSError as error:
        raise OSError(f"{target} cannot be written: {error.strerror or error}") from error

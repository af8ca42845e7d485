"""trainkit recipes: the recipes that are found by their names."""

from pathlib import Path

from trainkit.commands.arguments import read_options
from trainkit.commands.recipe_names import described, known_recipes
from trainkit.display.terminal import Display
from trainkit.storage.shipped import shipped


def run(first: str, words: list[str]) -> int:
    """List the recipes, one line each; the exit code."""
    read_options("recipes", "trainkit recipes", [first, *words] if first else words)
    display = Display()
    found = [described(file) for _, file in sorted(known_recipes().items())]
    widths = [max(len(row[column]) for row in found) for column in range(2)] if found else []
    for name, task, networks, dataset in found:
        on = f" on {dataset}" if dataset else ""
        display.note(f"{name:{widths[0]}}  {task:{widths[1]}}  {networks}{on}".rstrip())
    display.note("")
    display.note(f"They lie in {_shown(shipped('recipes'))}; one of them to change:")
    display.note("  trainkit new seg_folder my_recipe.py")
    display.note(
        f"Files for accelerate launch --config_file: {_shown(shipped('accelerate_configs'))}"
    )
    return 0


def _shown(folder: Path) -> str:
    """The folder as it is shortest to type."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)

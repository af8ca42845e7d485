"""trainkit RECIPE: train it, or resume where it stopped."""

from dataclasses import replace
from pathlib import Path

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.proposals import proposals
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.commands.starting_weights import starting_weights
from trainkit.data.seeding import seed_host
from trainkit.distributed.accelerator import main_process_ends_first, use_whole_host
from trainkit.engine.loop import train
from trainkit.storage.locks import posix_locks
from trainkit.storage.recipe_source import RecipeSource


@main_process_ends_first()
def run(recipe: str, words: list[str]) -> int:
    """Train a recipe, a file or the name of one; the exit code."""
    path = find_recipe(recipe)
    recipe_file = load_recipe(path)
    settings, options = read_settings_and_options(recipe_file, "train", f"trainkit {recipe}", words)
    out = options.out or Path("runs") / path.stem
    options = replace(options, out=out)
    posix_locks()  # before a recipe that takes minutes to build
    seed_host(options.seed)
    built = build(recipe_file, settings)
    use_whole_host()
    advice = starting_weights(settings) + proposals(recipe_file, settings)
    train(built, options, settings, RecipeSource(file=path), advice=advice)
    return 0

"""Reports before a run begins the recipe's note, and which images it found."""

from collections.abc import Callable, Sequence

from trainkit.data.dataset_info import LazyDataset
from trainkit.data.datasets.inventory import used, used_warnings
from trainkit.recipe import Recipe


def introduce(recipe: Recipe, note: Callable[[str], None]) -> None:
    """Report what the data are, by `note`, a line at a time.

    Train_data that is not open yet is skipped.
    """
    if recipe.note:
        note(recipe.note)
    for name, data in (("train", recipe.train_data), ("val", recipe.val_data)):
        if not isinstance(data, LazyDataset) or data.is_open:
            note(f"{name}: {used(data)}")
            for line in used_warnings(data):
                note(f"warning: {name}: {line}")


def not_introduced(recipe: Recipe, warnings: Sequence[str]) -> list[str]:
    """Those of `warnings` about the training data that `introduce` has not said."""
    said = used_warnings(recipe.train_data)
    return [line for line in warnings if line not in said]

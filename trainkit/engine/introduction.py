"""Reports before a run begins the recipe's note, and which images it found."""

from collections.abc import Callable, Sequence

from trainkit.data.dataset_info import LazyDataset, SizedDataset
from trainkit.data.datasets.inventory import used, used_warnings
from trainkit.data.repeatability import find_unrepeatable
from trainkit.engine.label_warnings import training_warnings
from trainkit.recipe import Recipe


class Introduction:
    """The recipe's note, which images it found, and what looks wrong with them."""

    def __init__(self, recipe: Recipe, note: Callable[[str], None]):
        """Keep what is reported and how.

        Args:
            recipe: that is introduced.
            note: shows a line.
        """
        self._recipe = recipe
        self._note = note

    def say(self, with_warnings: bool = True) -> None:
        """Say what the data are; train_data that is not open yet is passed over.

        Args:
            with_warnings: and what `data_warnings` says of each.
        """
        if self._recipe.note:
            self._note(self._recipe.note)
        adapters = getattr(self._recipe.model, "adapters", None)
        if adapters is not None:
            self._note(adapters.label)
        for name, data in self._open_data():
            self._note(f"{name}: {used(data)}")
            if with_warnings:
                for line in used_warnings(data):
                    self._note(f"warning: {name}: {line}")

    def data_warnings(self) -> list[str]:
        """What the datasets warn of themselves, such as classes without an image."""
        return [
            f"{name}: {line}" for name, data in self._open_data() for line in used_warnings(data)
        ]

    def _open_data(self) -> list[tuple[str, SizedDataset]]:
        both = ("train", self._recipe.train_data), ("val", self._recipe.val_data)
        return [
            (name, data) for name, data in both if not isinstance(data, LazyDataset) or data.is_open
        ]

    def label_warnings(self) -> list[str]:
        """Warnings about classes that no training target is of, see `training_warnings`."""
        return training_warnings(self._recipe.train_data, self._recipe.task)

    def unrepeatable(self, seed: int, workers: int, in_process: bool = False) -> str | None:
        """A warning where a training image read twice differs, see `find_unrepeatable`."""
        return find_unrepeatable(self._recipe.train_data, seed, workers, in_process)

    def unsaid(self, warnings: Sequence[str]) -> list[str]:
        """Those of `warnings` about the training data that `say` does not say."""
        said = used_warnings(self._recipe.train_data)
        return [line for line in warnings if line not in said]

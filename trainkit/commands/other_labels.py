"""Other images, and other labels, for an evaluation of a trained classifier."""

from dataclasses import fields, replace
from pathlib import Path

from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.datasets.label_lists import with_listed_labels
from trainkit.data.datasets.some_classes import open_images
from trainkit.errors import UserError
from trainkit.recipe import Recipe
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.recognition_protocols import AmongSome, OfListedLabels


def with_images(recipe: Recipe, folder: Path | None) -> Recipe:
    """The same recipe, evaluated on images of a folder, which the same transform prepares.

    Args:
        recipe: of recognition.
        folder: with a folder for each class, or for some; None: the recipe as it is.

    Raises:
        UserError: it is no recognition of named classes, or the folder has other ones.
    """
    if folder is None:
        return recipe
    task = _recognition(recipe, f"eval_data is {folder}")
    info = DatasetInfo.of(recipe.val_data)
    transform = None if info.is_augmented else info.transform
    data, of_classes = open_images(folder, transform, _names(task, folder), info.pixels)
    if len(of_classes) < task.num_classes:
        given = {each.name: vars(task)[each.name] for each in fields(task)}
        task = AmongSome(**given, allowed=of_classes)
    return replace(recipe, val_data=data, task=task)


def with_labels(recipe: Recipe, file: Path | None) -> Recipe:
    """The same recipe, evaluated against the labels of a file; None: as it is.

    Raises:
        UserError: it is no recognition of named classes, or the file does not fit its images.
    """
    if file is None:
        return recipe
    task = _recognition(recipe, f"label_sets is {file}")
    data = with_listed_labels(recipe.val_data, file, _names(task, file))
    return replace(recipe, val_data=data, task=OfListedLabels(task, file.name), best_by=None)


def _recognition(recipe: Recipe, asked: str) -> Recognition:
    task = recipe.task
    if type(task) is not Recognition:
        raise UserError(
            f"{asked}, and the recipe's task is {type(task.given).__name__}: it is for recognition"
            " of one class per image"
        )
    return task


def _names(task: Recognition, asked: Path) -> list[str]:
    if isinstance(task.classes, int):
        raise UserError(f"{asked} goes by names of classes, and the recipe has none")
    return [str(name) for name in task.classes]

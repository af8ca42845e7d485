"""Crops of an image in an evaluation of recognition, where not as the run had them."""

from copy import copy
from dataclasses import replace
from typing import Any, Literal

from trainkit.data.dataset_info import DatasetInfo, put_in
from trainkit.data.transforms.recognition import eval_transform
from trainkit.errors import UserError
from trainkit.recipe import Recipe
from trainkit.settings.rebuildable import built_by

Crops = Literal["center", "ten"]
BUILDER = "recognition.eval_transform"


def cropped(transform: Any, crops: Crops) -> Any:
    """The evaluation's transform with one crop from the centre, or with ten.

    Those are torchvision's `TenCrop`: the four corners and the centre, and their mirror images.
    `Recognition` averages the probabilities of the ten, as Krizhevsky et al., 2012, did.

    Raises:
        UserError: it is none of `trainkit.data.transforms.recognition`, and so cuts no crop that is
            known.
    """
    built = built_by(transform)
    if built is None or built["function"] != BUILDER:
        raise UserError(
            f"crops is {crops!r}, and the validation images are not cut by"
            " trainkit.data.transforms.recognition.eval_transform: leave --crops out"
        )
    return eval_transform(**{**built["arguments"], "ten_crop": crops == "ten"})


def with_crops(recipe: Recipe, crops: Crops | None) -> Recipe:
    """The same recipe, evaluated on other crops of its validation images; None: as it is.

    Raises:
        UserError: see `cropped`.
    """
    if crops is None:
        return recipe
    info = DatasetInfo.of(recipe.val_data)
    transform = cropped(None if info.is_augmented else info.transform, crops)
    other = copy(info.transformed)
    other.transform = transform
    return replace(recipe, val_data=put_in(recipe.val_data, info.transformed, other))

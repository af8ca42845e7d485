"""Label sets of ImageNet's validation images from a file: ImageNet-ReaL's real.json."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from trainkit.data.dataset_info import SizedDataset
from trainkit.data.datasets.wrapper import Wrapper
from trainkit.data.reader import name_of
from trainkit.errors import MissingFileError, UserError

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
WNID = re.compile(r"n\d{8}")


class ListedLabels(Wrapper):
    """Images with any number of right classes: (image, uint8 row (C,) with 1 for each of them).

    Args:
        data: the images.
        labels: class ids of each.
        num_classes: C.
    """

    def __init__(self, data: SizedDataset, labels: Sequence[Sequence[int]], num_classes: int):
        super().__init__(data)
        self.labels, self.num_classes = labels, num_classes

    def __getitem__(self, index: int) -> Any:
        image, _ = self.data[index]
        row = torch.zeros(self.num_classes, dtype=torch.uint8)
        row[list(self.labels[index])] = 1
        return image, row


def with_listed_labels(data: SizedDataset, file: Path, classes: Sequence[str]) -> ListedLabels:
    """Validation images of ImageNet with the labels of a file; those without a label are left out.

    Args:
        data: the images, whose names are those of the files, such as ILSVRC2012_val_00000001.JPEG.
        file: JSON, a list of class ids for each image, in the order of their names, as real.json
            of ImageNet-ReaL; ids count the classes in the order of `in_wnid_order`.
        classes: names of the classes that the network tells apart, in the order of its outputs.

    Raises:
        UserError: the file is none of the kind, holds an id that is no class, or has labels of an
            image that is not among them, or an image none of its labels.
        MissingFileError: there is no such file.

    Source:
        Beyer et al., 2020, Are we done with ImageNet?
    """
    order = in_wnid_order(classes)
    lists = read_label_lists(file, len(classes))
    places = _places(data, len(lists), file)
    kept = [number for number, labels in enumerate(lists) if labels]
    if not kept:
        raise UserError(f"label_sets is {file}, which has no label of any image")
    chosen: Any = data  # which torch's types would have as a Dataset
    images: SizedDataset = Subset(chosen, [places[number] for number in kept])
    labels = [sorted({order[label] for label in lists[number]}) for number in kept]
    return ListedLabels(images, labels, len(classes))


def in_wnid_order(classes: Sequence[str]) -> list[int]:
    """The output of each class in the order that label files of ImageNet count them.

    It is that of the sorted names where these are wnids, such as n01440764, else the given one.
    """
    places = list(range(len(classes)))
    if all(WNID.fullmatch(str(name)) for name in classes):
        places.sort(key=lambda place: str(classes[place]))
    return places


def read_label_lists(file: Path, num_classes: int) -> list[list[int]]:
    """Read class ids from JSON, a list of them for each image.

    Raises:
        UserError: the file is none of the kind, or holds an id that is no class.
        MissingFileError: there is no such file.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"no file {file}: label_sets is a file as real.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"label_sets is {file}, which cannot be read as JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(each, list) for each in found):
        raise UserError(
            f"label_sets is {file}, which holds no list of lists: it must have the class ids of"
            " each validation image, as real.json of ImageNet-ReaL"
        )
    for number, labels in enumerate(found, 1):
        for label in labels:
            if type(label) is not int or not 0 <= label < num_classes:
                raise UserError(
                    f"{file} has the label {label!r} for image {number}, and there are"
                    f" {num_classes} classes, 0 to {num_classes - 1}"
                )
    return found


def _places(data: SizedDataset, number: int, file: Path) -> list[int]:
    """The place of each of so many images in the data, by their names."""
    found: dict[int, int] = {}
    for place in range(len(data)):
        name = str(name_of(data, place))
        numbers = VALIDATION.findall(Path(name).name)
        if not numbers:
            raise UserError(
                f"label_sets is {file}, which goes by names as ILSVRC2012_val_00000001.JPEG, and a"
                f" validation image is {name}"
            )
        image = int(numbers[0])
        if not 1 <= image <= number:
            raise UserError(f"{file} has labels of {number} images, and none of {name}")
        if found.setdefault(image - 1, place) != place:
            raise UserError(f"{name} is there twice among the validation images")
    missing = [each for each in range(number) if each not in found]
    if missing:
        raise UserError(
            f"{file} has labels of ILSVRC2012_val_{missing[0] + 1:08d}, which is not among the"
            f" validation images ({len(missing)} of {number} are missing)"
        )
    return [found[each] for each in range(number)]

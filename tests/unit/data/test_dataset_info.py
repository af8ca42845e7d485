"""What datasets say of themselves, through whatever stands around them."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from helpers.toy_recipes import Images, recognition
from trainkit import Options, train
from trainkit.data.dataset_info import (
    DatasetInfo,
    LazyDataset,
    indices_in,
    layers,
    opened,
    put_in,
    require_indexed,
    without_transform,
)
from trainkit.data.datasets.inventory import used
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.datasets.staged import Stages
from trainkit.data.on_device import Flip, OnDevice
from trainkit.errors import UserError


class Plain(Dataset):
    """No optional attribute at all."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index % 2


class Known(Plain):
    """Every optional attribute."""

    split, upright, label_values, classes = "val", False, [0, 7], ["a", "b"]
    locality, fingerprint, transform = "groups", "abc", None
    targets = [index % 2 for index in range(10)]
    used, used_warnings = "10 images of a fair", ["one is dark"]

    def name_of(self, index):
        return f"{index}.png"

    def without_images(self):
        return ["class b has no image"]


def test_defaults():
    info = DatasetInfo.of(Plain())
    assert (info.repeats, info.locality, info.fingerprint, info.final_epoch) == (1, None, None, 0)
    assert (info.split, info.upright, info.label_values, info.classes) == (None, True, None, None)
    assert info.in_epoch is info.transform is info.transformed is info.targets is info.used is None
    assert info.num_classes is None and not info.is_augmented
    assert info.used_warnings == info.without_images == []
    assert info.name_of(3) == "number 3 of Plain"


def wrapped():
    inner = Known()
    part = [3, 1, 8]
    return [
        (inner, inner, range(10), "3.png"),
        (Subset(inner, part), inner, part, "8.png"),
        (Subset(Subset(inner, part), [2, 0]), inner, [8, 3], None),
        (Repeated(inner, 3), inner, range(10), "3.png"),
        (Repeated(Subset(inner, part), 2), inner, part, "3.png"),
        (Subset(Repeated(inner, 3), [12, 2, 25]), inner, [2, 5], "5.png"),
        (Stages(inner, {0: None, 2: None}), inner, range(10), "3.png"),
        (OnDevice(inner), inner, range(10), "3.png"),
        (LazyDataset(lambda: Subset(inner, part)), inner, part, "8.png"),
    ]


@pytest.mark.parametrize("number", range(len(wrapped())))
def test_what_stands_around_a_dataset_changes_nothing_that_it_says(number):
    data, inner, indices, name = wrapped()[number]
    info = DatasetInfo.of(data)
    assert (info.split, info.upright, info.label_values, info.classes) == (
        "val",
        False,
        [0, 7],
        ["a", "b"],
    )
    assert info.transformed is info.innermost is inner and info.num_classes == 2
    assert info.used_warnings == ["one is dark"] and info.used == "10 images of a fair"
    assert list(indices_in(opened(data), inner)) == list(indices)
    if name is not None:
        assert info.name_of(3 if len(data) > 3 else 2) == name

    other = Plain()
    bare = put_in(opened(data), inner, other)
    assert [bare[i][1] for i in range(len(bare))] == [other[i][1] for i in indices]
    assert bare is other or bare.dataset is other


def test_how_a_dataset_is_read_is_reported_by_the_outermost_alone():
    repeated = Repeated(Stages(Known(), {0: None, 4: None}), 3)
    info = DatasetInfo.of(repeated)
    assert (info.repeats, info.locality, info.fingerprint, info.final_epoch) == (
        3,
        "groups",
        "abc",
        4,
    )
    assert info.in_epoch == repeated.in_epoch
    part = DatasetInfo.of(Subset(repeated, [0, 1]))
    assert (part.repeats, part.locality, part.fingerprint, part.final_epoch) == (1, None, None, 0)


def test_an_inner_that_is_no_dataset_is_no_layer():
    data = Plain()
    data.inner = "courtyard"
    assert list(layers(data)) == [data]


def test_what_a_part_holds_is_reported_with_the_whole():
    assert used(Repeated(Subset(Known(), [1, 2]), 2)) == "2 of 10 images of a fair"
    assert used(Subset(Plain(), [1, 2])) == "2 of 10 images"


def test_images_augmented_on_the_device_are_not_as_stored():
    held = OnDevice(Known(), [Flip()])
    assert DatasetInfo.of(held).is_augmented and not DatasetInfo.of(OnDevice(Known())).is_augmented
    assert recognition(val_data=OnDevice(Known())).protocol == "as stored"
    assert recognition(val_data=held).protocol == "as the validation data gives them"
    assert not DatasetInfo.of(Images(3)).is_augmented, "an attribute of a dataset's own"


def test_a_copy_without_the_transform_leaves_the_dataset_alone():
    data = Known()
    data.transform = torch.nn.Identity()
    assert without_transform(data).transform is None and data.transform is not None


def test_training_data_is_opened_once_and_late(tmp_path):
    calls = []

    def open_data():
        calls.append(1)
        return Images(27)

    recipe = recognition(train_data=open_data, epochs=1)
    assert isinstance(recipe.train_data, LazyDataset) and not recipe.train_data.is_open
    assert recipe.protocol and calls == []
    train(recipe, Options(out=tmp_path / "lazy", workers=0))
    assert calls == [1] and len(recipe.train_data) == 27


def test_a_stream_is_refused_when_it_is_opened():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UserError, match="val_data is of type Endless, a stream"):
        require_indexed("val_data", Endless())
    with pytest.raises(UserError, match="train_data is of type Endless, a stream"):
        opened(recognition(train_data=lambda: Endless()).train_data)

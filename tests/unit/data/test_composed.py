"""Mosaic and copy-paste: exact pixels, the same for any workers and after a seek, ids conserved."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from helpers.toy_recipes import CLASSES, Maps
from trainkit.data.dataset_info import DatasetInfo, LazyDataset
from trainkit.data.datasets.composed import Composed, composed
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.loader import make_loader
from trainkit.data.reader import Reader
from trainkit.data.sampler import Batches, TrainOrder
from trainkit.data.seeding import IMAGE, seed_host
from trainkit.errors import DataError, UserError


class Numbered(Dataset):
    """Pixels hold image, row and column; a mask has labels of its image alone and a void rim."""

    def __init__(self, num_images: int = 9, size: int = 8, torn: tuple[int, ...] = ()):
        self.num_images, self.size, self.torn = num_images, size, torn
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(index)
        if index in self.torn:
            raise DataError(f"cannot read image-{index}.png: it is torn")
        rows, columns = torch.meshgrid(
            torch.arange(self.size), torch.arange(self.size), indexing="ij"
        )
        image = torch.stack([torch.full_like(rows, index), rows, columns])
        mask = (index * 4 + rows % 4).to(torch.uint8)
        mask[0] = 255
        return image, mask


def test_a_mosaic_shows_four_images_that_meet_at_a_point():
    """Each pixel is that of its image, at the place that the layout says; masks as images."""
    points = set()
    for seed in range(40):
        data = Numbered()
        seed_host(seed)
        image, mask = Composed(data, mosaic=1.0)[5]
        of, rows, columns = image
        assert image.shape == (3, 8, 8) and mask.dtype == torch.uint8
        assert data.read[0] == 5 and len(data.read) == 4
        # the first image's lower right corner is at the point, and so on
        row, column = 8 - int(rows[0, 0]), 8 - int(columns[0, 0])
        assert 2 <= row < 6 and 2 <= column < 6
        points.add((row, column))
        corners = of[0, 0], of[0, -1], of[-1, 0], of[-1, -1]
        assert [int(each) for each in corners] == data.read
        for y in range(8):
            for x in range(8):
                part = data.read[2 * (y >= row) + (x >= column)]
                place = (y - row) % 8, (x - column) % 8
                assert image[:, y, x].tolist() == [part, *place]
                assert mask[y, x] == (255 if place[0] == 0 else part * 4 + place[0] % 4)
    assert len(points) > 8


def masks_of(labels: Tensor) -> Tensor:
    """A mask of each of 36 classes, int8, -1 where a label is void."""
    masks = (labels == torch.arange(36).view(-1, 1, 1)).to(torch.int8)
    return torch.where(labels == 255, -1, masks)


class OfClasses(Numbered):
    """The same with a mask of each class."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        return image, masks_of(mask)


@pytest.mark.parametrize("chances", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_masks_of_each_class_go_the_way_of_labels(chances):
    for seed in range(20):
        seed_host(seed)
        image, labels = Composed(Numbered(), *chances)[5]
        seed_host(seed)
        other, masks = Composed(OfClasses(), *chances)[5]
        assert torch.equal(image, other) and torch.equal(masks, masks_of(labels))
        assert masks.dtype == torch.int8


def test_pasted_where_classes_overlap_is_all_that_is_known_there():
    """Of the chosen class, and of others that the same pixels are of."""

    class Overlapping(Numbered):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            masks = torch.zeros(3, 8, 8, dtype=torch.int8)
            masks[0, 2:6], masks[1, 4:] = 1, 1  # rows 4 and 5 are of both
            masks[2] = -1
            return image, masks if index != 5 else torch.zeros_like(masks)

    found = set()
    for seed in range(20):
        data = Overlapping()
        seed_host(seed)
        image, masks = Composed(data, copy_paste=1.0)[5]
        if data.read[1] != 5:
            rows = (image[0] != 5).all(1).nonzero()[:, 0].tolist()
            found.add(tuple(rows))
            assert torch.equal(masks[:, rows], data[data.read[1]][1][:, rows])
            assert not masks[:, [row for row in range(8) if row not in rows]].any()
    assert found == {(2, 3, 4, 5), (4, 5, 6, 7)}


def test_pasted_are_half_of_the_classes_and_never_void():
    kept = set()
    for seed in range(40):
        data = Numbered()
        seed_host(seed)
        image, mask = Composed(data, copy_paste=1.0)[5]
        own, other = data.read
        assert own == 5
        of_own, of_other = Numbered()[own], Numbered()[other]
        pasted = image[0] != own if other != own else torch.zeros(8, 8, dtype=torch.bool)
        assert torch.equal(image, torch.where(pasted, of_other[0], of_own[0]))
        assert torch.equal(mask, torch.where(pasted, of_other[1], of_own[1]))
        labels = of_other[1][pasted].unique().tolist()
        assert 255 not in labels and len(labels) == (2 if other != own else 0)
        # all pixels of a class that was chosen
        assert torch.equal(pasted, torch.isin(of_other[1], torch.tensor(labels, dtype=torch.uint8)))
        kept.add(tuple(labels))
    assert len(kept) > 10


def test_of_one_class_nothing_is_pasted_and_void_stays():
    class One(Numbered):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            return image, torch.tensor([[3] * 8] * 4 + [[255] * 8] * 4, dtype=torch.uint8)

    for seed in range(5):
        seed_host(seed)
        image, mask = Composed(One(), copy_paste=1.0)[2]
        assert (image[0] == 2).all() and torch.equal(mask, One()[2][1])


def read(data: Dataset, start: int, stop: int, workers: int) -> list[Tensor]:
    """Images and masks of steps as a training reads them."""
    order = TrainOrder(num_images=len(data), batch_size=6, seed=5)
    loader = make_loader(data, 5, Batches(order, start, stop, 0), workers, torch.device("cpu"))
    return [tensor for images, masks, _ in loader for tensor in (images, masks)]


def test_pixels_are_those_of_any_workers_and_of_a_resume():
    """Augmented by generators of torch, Python and NumPy; steps 4 to 7 of the second epoch too."""
    data = Composed(Maps(21), 0.5, 0.5)
    whole = read(data, 0, 7, 0)
    for first, workers in ((0, 2), (4, 0), (4, 2)):
        found = read(data, first, 7, workers)
        assert len(found) == 2 * (7 - first)
        assert all(torch.equal(a, b) for a, b in zip(found, whole[2 * first :]))
    assert any(not torch.equal(a, b) for a, b in zip(whole, read(Maps(21), 0, 7, 0)))


def test_partners_follow_from_seed_epoch_and_image():
    """By hand, and of the toy images, which are augmented by all three generators."""
    maps = Maps(27)
    reader = Reader(Composed(maps, 0.5, 0.5), seed=5)
    first = [reader[epoch, index] for epoch in (0, 1) for index in range(27)]
    backwards = [reader[epoch, index] for epoch in (1, 0) for index in reversed(range(27))]
    for (image, mask, _), (again, mask_again, _) in zip(first, reversed(backwards)):
        assert torch.equal(image, again) and torch.equal(mask, mask_again)
        assert image.shape == (3, 12, 12) and mask.shape == (12, 12)
        assert set(mask.unique().tolist()) <= {*range(CLASSES), 255}
    assert not torch.equal(first[3][0], first[27 + 3][0])
    seed_host(5, IMAGE, 1, 3)
    image, mask = Composed(maps, 0.5, 0.5)[3]
    assert torch.equal(image, first[27 + 3][0]) and torch.equal(mask, first[27 + 3][1])


def test_a_bad_partner_is_a_bad_image():
    """It counts as the image that drew it, and another image takes the place of that."""
    data = Composed(Numbered(torn=(4,)), mosaic=1.0)
    with pytest.raises(DataError, match="cannot read image-4.png"):
        for index in range(9):
            Reader(data, seed=0)[0, index]
    reader = Reader(data, seed=0, replacement=lambda epoch, index: (index + 1) % 9)
    found = [reader[0, index] for index in range(9)]
    assert all((image[0] != 4).all() for image, _, _ in found)
    bad = [faults for _, _, faults in found if faults]
    assert 1 < len(bad) < 9 and all("image-4.png: it is torn" in each[0] for each in bad)


def test_wrapped_and_not_asked_for():
    maps = Maps(9)
    assert composed(maps) is maps
    wrapped = composed(LazyDataset(lambda: maps), mosaic=1.0)
    assert isinstance(wrapped, LazyDataset) and not wrapped.is_open
    assert wrapped.inner.inner is maps and DatasetInfo.of(wrapped).in_epoch is not None
    seed_host(1)
    twice, mask = Repeated(Composed(maps, mosaic=1.0), 2).in_epoch(0, 9 + 4)
    assert twice.shape == (3, 12, 12) and mask.shape == (12, 12)


class Growing(Numbered):
    def __getitem__(self, index):
        self.size = 8 + index
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: composed(Numbered(), mosaic=2), "mosaic is 2; it is a probability, from 0 to 1"),
        (lambda: Composed(Numbered(), copy_paste=-1), "copy_paste is -1; it is a probability"),
        (
            lambda: Composed(Growing(), mosaic=1.0)[3],
            "take images and masks of one size, and these",
        ),
        (lambda: Composed(Growing(), copy_paste=1.0)[3], "let the transform cut crops of one size"),
    ],
)
def test_user_errors(call, message):
    seed_host(0)
    with pytest.raises(UserError, match=message):
        call()

"""Pixels of crops and masks, against Pillow's.

Batches, against what torch's own loader makes of the same images.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms, tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as on_pillow

from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.image_io import LabelError, read_image, read_mask
from trainkit.data.loader import collate, make_loader
from trainkit.data.reader import Reader
from trainkit.data.to_device import ToDevice
from trainkit.data.transforms.ops import RandomResizedCrop, RandomScaleCrop, resized_region

MOST = 0.3  # grey levels that a crop may differ from Pillow's, in the mean


def write_photo(file: Path, width: int = 320, height: int = 240) -> Path:
    """A picture with detail and with edges, as JPEG."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    smooth[height // 3 :, width // 3 : width // 2] = 255
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth + draw.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)).save(
        file, quality=95
    )
    return file


def mean_difference(ours: Tensor, theirs: Image.Image) -> float:
    assert ours.dtype == torch.uint8
    return (
        (ours.as_subclass(Tensor).float() - on_pillow.pil_to_tensor(theirs).float())
        .abs()
        .mean()
        .item()
    )


@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_training_crops_are_pillows(tmp_path, mode):
    """The same seed gives the region that torchvision draws, and Pillow's pixels of it."""
    file = write_photo(tmp_path / "a.jpg")
    image, stored = read_image(file), Image.open(file).convert("RGB")
    for seed in range(12):
        torch.manual_seed(seed)
        ours = RandomResizedCrop(96, interpolation=mode)(image)
        torch.manual_seed(seed)
        theirs = transforms.RandomResizedCrop(96, interpolation=mode)(stored)
        assert ours.shape == (3, 96, 96) and mean_difference(ours, theirs) <= MOST


def test_training_crops_of_real_photos_are_pillows(real_data):
    data = ClassFolder(real_data / "imagenet_sample" / "val")
    for index in range(0, 200, 20):
        torch.manual_seed(index)
        ours = RandomResizedCrop(224)(read_image(data.files[index]))
        torch.manual_seed(index)
        theirs = transforms.RandomResizedCrop(224)(Image.open(data.files[index]).convert("RGB"))
        assert mean_difference(ours, theirs) <= MOST


def untied(stored: int, shown: int) -> list[int]:
    """Of so many pixels shown, those whose middle is not on the edge between two stored ones."""
    return [place for place in range(shown) if (2 * place + 1) * stored % (2 * shown)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "base, crop, wide",
    [
        (640, 150, None), (200, 150, None), (320, 150, None), (100, 150, None), (190, 150, None),
        (640, 150, 290), (200, 180, 90),
    ],
)  # fmt: skip
def test_scaled_crops_are_pillows(tmp_path, base, crop, wide, mirrored):
    """Larger, smaller, as it is; smaller than the crop on both sides, and on one; no squares."""
    file = write_photo(tmp_path / "a.jpg")
    image, stored = read_image(file), Image.open(file).convert("RGB")
    labels = np.random.default_rng(0).choice(np.array([3, 7, 200], dtype=np.uint8), (240, 320))
    mask = tv_tensors.Mask(torch.from_numpy(labels))
    transform = RandomScaleCrop(
        base, crop, (1.0, 1.0), 255, hflip_prob=float(mirrored), crop_width=wide
    )
    wide = wide or crop
    for seed in range(6):
        torch.manual_seed(seed)
        params = transform.make_params([image, mask])
        (top, height, above, rows), (left, width, before, columns) = (
            params["rows"],
            params["columns"],
        )
        box, size = (left, top, left + width, top + height), (columns, rows)
        assert abs(columns / width - base / 320) <= base / 320 / width and 0 <= left <= 320 - width
        assert (columns, rows) == (min(wide, base), min(crop, base * 3 // 4))
        torch.manual_seed(seed)
        shown, ids = transform(image, mask)
        assert (
            shown.shape == (3, crop, wide)
            and ids.shape == (crop, wide)
            and ids.dtype == torch.uint8
        )
        inside = np.s_[..., above : above + rows, before : before + columns]
        region, nearest = stored.crop(box), Image.fromarray(labels).crop(box)
        if mirrored:
            region, nearest = ImageOps.mirror(region), ImageOps.mirror(nearest)
        assert (
            mean_difference(shown[inside], region.resize(size, Image.Resampling.BILINEAR)) <= MOST
        )
        nearest = nearest.resize(size, Image.Resampling.NEAREST)
        certain = np.ix_(untied(height, rows), untied(width, columns))
        assert np.array_equal(ids[inside].numpy()[certain], np.asarray(nearest)[certain]), (
            "Pillow's labels"
        )
        assert set(ids.unique().tolist()) <= {3, 7, 200, 255}
        outside = torch.ones(crop, wide, dtype=torch.bool)
        outside[inside] = False
        assert (
            (ids[outside] == 255).all()
            and (shown[:, outside] == 0).all()
            and 255 not in ids[inside]
        )


def test_places_and_sizes_are_spread_evenly():
    """Of the whole image resized.

    Sizes and offsets as RandomLongSide and RandomCrop would draw them.
    """
    torch.manual_seed(0)
    transform = RandomScaleCrop(100, 40, (0.5, 2.0), 255)
    image, lengths, starts = tv_tensors.Image(torch.zeros(3, 400, 600, dtype=torch.uint8)), [], []
    for _ in range(2000):
        start, length, _, shown = transform.make_params([image])["columns"]
        assert shown == 40 and 0 <= start <= 600 - length
        lengths.append(length)
        starts.append(start / (600 - length))
    sides = 40 * 600 / np.array(lengths)  # of the long side
    assert sides.min() < 52 and sides.max() > 197 and sides.mean() == pytest.approx(125, abs=4)
    assert np.mean(starts) == pytest.approx(0.5, abs=0.03) and np.std(starts) == pytest.approx(
        12**-0.5, abs=0.03
    )


def test_every_size_and_place_is_drawn_and_each_by_itself():
    """All long sides from 5 to 20, mirrored or not.

    All 13 x 13 places of a crop of 8 in 20 x 20 pixels.
    """
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 20, 20, dtype=torch.uint8))
    sides, places = (
        RandomScaleCrop(10, 100, (0.5, 2.0), 255, hflip_prob=0.5),
        RandomScaleCrop(20, 8, (1.0, 1.0), 255),
    )
    drawn = [sides.make_params([image]) for _ in range(3200)]
    counts = Counter((params["rows"][3], params["mirrored"]) for params in drawn)
    assert set(counts) == {(side, mirrored) for side in range(5, 21) for mirrored in (False, True)}
    assert min(counts.values()) > 60 and max(counts.values()) < 140, "100 each"
    drawn = [places.make_params([image]) for _ in range(16900)]
    counts = Counter((params["rows"][0], params["columns"][0]) for params in drawn)
    assert set(counts) == {(top, left) for top in range(13) for left in range(13)}
    assert min(counts.values()) > 60 and max(counts.values()) < 140, "100 each"


@pytest.mark.parametrize(
    "probability, least, most", [(0.0, 0, 0), (0.25, 70, 130), (1.0, 400, 400)]
)
def test_crops_are_mirrored_as_often_as_asked(probability, least, most):
    """Image and mask together."""
    labels = torch.arange(8, dtype=torch.uint8).expand(8, 8)
    image, mask = tv_tensors.Image(labels.expand(3, -1, -1) * 20), tv_tensors.Mask(labels)
    transform, mirrored = RandomScaleCrop(8, 8, (1.0, 1.0), 255, hflip_prob=probability), 0
    for seed in range(400):
        torch.manual_seed(seed)
        shown, ids = transform(image, mask)
        assert torch.equal(shown[1], ids * 20) and torch.equal(ids.sort().values, labels)
        mirrored += int(ids[0, 0] == 7)
    assert least <= mirrored <= most
    with pytest.raises(ValueError, match="hflip_prob is 1.5; it must be from 0 to 1"):
        RandomScaleCrop(8, 8, (1.0, 1.0), 255, hflip_prob=1.5)


def test_a_crop_does_not_depend_on_the_layout():
    image = tv_tensors.Image(torch.randint(256, (3, 50, 70), dtype=torch.uint8))
    beside = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    for size in ([20, 30], [90, 80]):
        one, other = (resized_region(each, 5, 7, 40, 50, size) for each in (image, beside))
        assert torch.equal(one, other) and one.stride(0) == other.stride(0) == 1


def test_batches_keep_the_layout_of_their_images():
    images = torch.randint(256, (4, 3, 8, 6), dtype=torch.uint8)
    beside = images.contiguous(memory_format=torch.channels_last)
    for given in (images, beside):
        batch, targets, _ = collate([(image, torch.tensor(1), []) for image in given])
        assert (
            torch.equal(batch, images)
            and batch.stride() == given.stride()
            and targets.tolist() == [1] * 4
        )
        for channels_last in (False, True):
            moved, _ = ToDevice(torch.device("cpu"), (0.5,) * 3, (0.25,) * 3, channels_last)(
                batch, targets
            )
            assert torch.equal(moved, (images.float() - 127.5) / 63.75)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert moved.is_contiguous(memory_format=layout)


def test_pixels_of_files_do_not_depend_on_workers(tmp_path):
    for number in range(6):
        write_photo(tmp_path / "class" / f"{number}.jpg", 90 + 8 * number, 80)
    data = ClassFolder(
        tmp_path, transforms.Compose([RandomResizedCrop(32), transforms.RandomHorizontalFlip()])
    )
    keys = [[(0, 1), (3, 5), (0, 0)], [(1, 1), (0, 2), (7, 4)]]
    alone = [images for images, _, _ in make_loader(data, 5, keys, 0, torch.device("cpu"))]
    for workers in (1, 2):
        read = [images for images, _, _ in make_loader(data, 5, keys, workers, torch.device("cpu"))]
        assert all(torch.equal(a, b) for a, b in zip(alone, read)), "bit for bit"
    reader = Reader(data, 5)
    assert torch.equal(reader.__getitems__(keys[0])[1][0], alone[0][1])
    assert torch.equal(alone[1][2], reader[7, 4][0]) and not torch.equal(
        alone[0][0], reader[1, 1][0]
    )


@pytest.mark.parametrize("num_classes, settings", [
    (5, {}), (4, {"label_shift": -1}), (5, {"ignore": (9, 255)}), (255, {}),
    (6, {"to_train_ids": lambda x: x // 2}), (5, {"ignore": (0,)}), (5, {"ignore": ()}),
    (4, {"label_shift": -1, "ignore": (2,)}), (4, {"label_shift": -1, "ignore": ()}),
    (3, {"label_shift": -2, "ignore": ()}), (254, {}), (1, {}), (255, {"ignore": ()}),
    (255, {"ignore": (7, 255)}), (254, {"ignore": (7,)}),
])  # fmt: skip
def test_labels_by_table_are_those_by_arithmetic(tmp_path, num_classes, settings):
    """Label by label: its train id, or an error that names it."""
    write_photo(tmp_path / "images" / "a.jpg", 4, 4)
    (tmp_path / "masks").mkdir()
    for label in (0, 1, 2, 3, 4, 5, 6, 9, 11, 12, 200, 253, 254, 255):
        shift, ignore = settings.get("label_shift", 0), settings.get("ignore", (255,))
        ignored = "to_train_ids" not in settings and (label in ignore or label + shift < 0)
        train_id = label // 2 if "to_train_ids" in settings else 255 if ignored else label + shift
        Image.fromarray(np.full((4, 4), label, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
        data = MaskFolder(tmp_path / "images", tmp_path / "masks", num_classes, **settings)
        if train_id < num_classes or ignored:
            assert data[0][1].unique().tolist() == [train_id]
        else:
            with pytest.raises(LabelError, match=rf"a.png holds label {label} on 16 pixels"):
                data[0]


def test_grey_masks_with_a_transparent_label(tmp_path):
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(labels).save(tmp_path / "a.png", transparency=3)
    assert np.array_equal(read_mask(tmp_path / "a.png"), labels)
    Image.fromarray(labels).save(tmp_path / "b.png", compress_level=9)
    assert np.array_equal(read_mask((tmp_path / "b.png").read_bytes()), labels)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*c.png: .*replace the file"):
        read_mask(tmp_path / "c.png")

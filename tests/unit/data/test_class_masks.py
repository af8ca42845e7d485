"""Masks of overlapping classes: layouts of files, bands and polygons; what is refused; crops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from trainkit.data.datasets.class_mask_source import ClassMaskSource
from trainkit.data.datasets.class_masks import read_masks
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.image_io import MaskSizeError
from trainkit.data.transforms.ops import nearest_region
from trainkit.data.transforms.segmentation import train_transform
from trainkit.errors import DataError, MissingFileError, UserError

NAMES = ("liver", "tumour")
SIZE = 9, 12  # height and width
RANDOM = np.random.default_rng(0)
MASKS = RANDOM.integers(0, 2, (3, 2, *SIZE)).astype(np.uint8)  # of images a, b and c
MASKS[1, 1] = 0  # b has no tumour


def images(folder, names=("a", "b", "c")):
    folder.mkdir(parents=True)
    for name in names:
        pixels = RANDOM.integers(0, 255, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def save(file, mask):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)


def folders(root, part, pattern):
    """Files for each class, of 0 and 255; none where an image is not of it."""
    images(root / "images" / part)
    for name, masks in zip("abc", MASKS):
        for label, mask in zip(NAMES, masks):
            if mask.any():
                save(root / "masks" / part / pattern.format(label=label, name=name), mask * 255)


def arrays(root, part, kind):
    images(root / "images" / part)
    folder = root / "masks" / part
    folder.mkdir(parents=True)
    for name, masks in zip("abc", MASKS):
        if kind == "npy":
            np.save(folder / f"{name}.npy", masks.transpose(1, 2, 0))
        elif kind == "tif":
            tifffile = pytest.importorskip("tifffile")
            tifffile.imwrite(folder / f"{name}.tif", masks * 255, photometric="minisblack")
        elif kind == "npz":
            np.savez(folder / f"{name}.npz", masks.astype(bool))
        else:
            there = {label: mask for label, mask in zip(NAMES, masks) if mask.any()}
            np.savez(folder / f"{name}.npz", **there)


LAYOUTS = {
    "folders": lambda root, part: folders(root, part, "{label}/{name}.png"),
    "folders-suffix": lambda root, part: folders(root, part, "{label}/{name}_L.tif"),
    "names": lambda root, part: folders(root, part, "{name}_{label}.png"),
    **{
        kind: lambda root, part, kind=kind: arrays(root, part, kind)
        for kind in ("npy", "npz", "named", "tif")
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    for part in ("train", "val"):
        LAYOUTS[layout](tmp_path, part)
    source = ClassMaskSource(tmp_path, NAMES)
    for part in ("train", "val"):
        data = source.open(part)
        assert len(data) == 3 and data.used.startswith("3 images of 2 classes")
        for index, wanted in enumerate(MASKS):
            image, masks = data[index]
            assert image.shape == (3, *SIZE) and masks.dtype == torch.int8
            np.testing.assert_array_equal(masks.numpy(), wanted)


def test_the_folders_name_the_classes_and_are_divided(tmp_path):
    folders(tmp_path, "", "{label}/{name}.png")
    source = ClassMaskSource(tmp_path, held_out=SplitSettings(val_share=0.34))
    assert source.names == ["liver", "tumour"]
    assert (len(source.open("train")), len(source.open("val"))) == (2, 1)
    with pytest.raises(UserError, match="hold out|val-share"):
        ClassMaskSource(tmp_path, NAMES).open("train")


def test_similar_names_are_not_mixed_up(tmp_path):
    """a_1.png is that of image a_1 where there is one, and no mask of image a."""
    images(tmp_path / "images", ("a", "a_1"))
    save(tmp_path / "masks" / "liver" / "a_1.png", MASKS[0, 0])
    source = ClassMaskSource(tmp_path, ["liver"], held_out=SplitSettings(val_share=0.5))
    both = {}
    for part in ("train", "val"):
        data = source.open(part)
        both[data.name_of(0).stem] = data[0][1]
        assert "1 of 2 images in" in data.used_warnings[-1]
    np.testing.assert_array_equal(both["a_1"][0].numpy(), MASKS[0, 0])
    assert not both["a"].any()
    save(tmp_path / "masks" / "liver" / "a_1_x.png", MASKS[0, 0])
    with pytest.raises(UserError, match="two masks of image a_1, .*put them into one"):
        ClassMaskSource(tmp_path, ["liver"], held_out=SplitSettings(val_share=0.5)).open("train")


def test_an_ignored_value(tmp_path):
    stored = np.array([[0, 255, 128], [1, 128, 0]], dtype=np.uint8)
    images_of = tmp_path / "images" / "val"
    images_of.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(images_of / "a.png")
    save(tmp_path / "masks" / "val" / "a_liver.png", stored)
    _, masks = ClassMaskSource(tmp_path, ["liver"], ignore=128).open("val")[0]
    assert masks.tolist() == [[[0, 1, -1], [1, -1, 0]]]


def test_bands_of_floats(tmp_path):
    """NaN is not known, and a fraction is no mask."""
    stored = np.array([[[0, 1, np.nan]]], dtype=np.float32)
    np.save(tmp_path / "a.npy", stored)
    assert read_masks(tmp_path / "a.npy", ["liver"]).tolist() == [[[0, 1, -1]]]
    np.save(tmp_path / "a.npy", stored / 3)
    with pytest.raises(DataError, match=r"a.npy.*masks hold fractions: save whole numbers"):
        read_masks(tmp_path / "a.npy", ["liver"])


def test_polygons_that_overlap(tmp_path):
    """Of COCO's kind: a tumour in a liver is both; so is what two objects of a class share."""
    pytest.importorskip("pycocotools")
    images(tmp_path / "train", ("a",))
    images(tmp_path / "valid", ("b",))
    square = [[1, 1, 9, 1, 9, 7, 1, 7]]
    within = [[3, 2, 6, 2, 6, 5, 3, 5]]
    for part, name in (("train", "a"), ("valid", "b")):
        objects = [
            {"id": 1, "image_id": 7, "category_id": 5, "iscrowd": 0, "segmentation": square},
            {"id": 2, "image_id": 7, "category_id": 9, "iscrowd": 0, "segmentation": within},
        ]
        for each in objects:
            each |= {"bbox": [0, 0, 1, 1], "area": 1}
        content = {
            "images": [{"id": 7, "file_name": f"{name}.png", "width": 12, "height": 9}],
            "annotations": objects,
            "categories": [{"id": 5, "name": "liver"}, {"id": 9, "name": "tumour"}],
        }
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    source = ClassMaskSource(tmp_path)
    assert source.names == ["liver", "tumour"]
    _, masks = source.open("val")[0]
    expected = np.zeros((2, *SIZE), dtype=np.int8)
    expected[0, 1:7, 1:9], expected[1, 2:5, 3:6] = 1, 1
    np.testing.assert_array_equal(masks.numpy(), expected)
    _, (tumour,) = ClassMaskSource(tmp_path, ["tumour"]).open("val")[0]
    np.testing.assert_array_equal(tumour.numpy(), expected[1])


def test_crops_of_masks_are_those_of_each(tmp_path):
    """Scaled, cropped, flipped and padded with -1 as a mask of one class is."""
    masks = torch.from_numpy(MASKS[0].astype(np.int8))
    region = {"top": 1, "left": 2, "height": 7, "width": 9, "size": (5, 4), "mirrored": True}
    both = nearest_region(masks, **region)
    assert torch.equal(both, torch.stack([nearest_region(mask, **region) for mask in masks]))
    image = tv_tensors.Image(torch.full((3, *SIZE), 255, dtype=torch.uint8))
    transform = train_transform(12, 16, (0.8, 1.2), ignore=-1, vflip=0.5, rotate90=0.5)
    for seed in range(8):
        torch.manual_seed(seed)
        crop, found = transform(image, tv_tensors.Mask(masks))
        assert found.shape == (2, 16, 16)
        np.testing.assert_array_equal((found < 0).all(0).numpy(), (crop == 0).all(0).numpy())
        torch.manual_seed(seed)
        _, single = transform(image, tv_tensors.Mask(masks[1]))
        assert torch.equal(found[1], single)


def test_what_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="give a folder with images/ and masks/"):
        ClassMaskSource(tmp_path / "none", NAMES).open("train")
    folders(tmp_path, "val", "{label}/{name}.png")
    with pytest.raises(MissingFileError, match="none of spleen: correct --classes"):
        ClassMaskSource(tmp_path, [*NAMES, "spleen"]).open("val")
    with pytest.raises(MissingFileError, match=r"no image in .* has a mask in"):
        ClassMaskSource(tmp_path, ["spleen"]).open("val")
    save(tmp_path / "masks" / "val" / "liver" / "a.png", MASKS[0, 0][:4])
    with pytest.raises(MaskSizeError, match="masks of an image are of its size"):
        ClassMaskSource(tmp_path, NAMES).open("val")[0]
    with pytest.raises(MaskSizeError, match="is 12x9 and its masks are 12x4"):
        ClassMaskSource(tmp_path, ["liver"]).open("val")[0]
    save(tmp_path / "masks" / "val" / "spleen" / "x1.png", MASKS[0, 0])
    with pytest.raises(MissingFileError, match="spleen is called as an image, such as x1: masks"):
        ClassMaskSource(tmp_path, [*NAMES, "spleen"]).open("val")
    arrays(tmp_path / "other", "val", "npy")
    with pytest.raises(DataError, match=r"a.npy is of shape \(9, 12, 2\): there are 3 classes"):
        ClassMaskSource(tmp_path / "other", [*NAMES, "spleen"]).open("val")[0]
    with pytest.raises(UserError, match="no folder of masks for each class that names them"):
        ClassMaskSource(tmp_path / "other").open("val")


def test_one_way_for_the_masks_of_all_images(tmp_path):
    """Images whose masks are told in another way would be of no class."""
    folders(tmp_path, "val", "{name}_{label}.png")
    (name, *_) = sorted(each.stem for each in (tmp_path / "images" / "val").iterdir())
    for file in (tmp_path / "masks" / "val").glob(f"{name}_*"):
        file.unlink()
    np.savez(tmp_path / "masks" / "val" / f"{name}.npz", MASKS[0])
    with pytest.raises(UserError, match=f"files of one class each, and {name}.npz of all classes"):
        ClassMaskSource(tmp_path, NAMES).open("val")

"""Segmentation datasets, each in its true layout: files, labels, colours, and what is ignored."""

import os
import pickle
import sys

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.image_files import blocks, labels_png, photo
from helpers.segmentation_datasets import (
    city_files,
    coco_files,
    runs_of,
    sbd_files,
    string_of,
    voc_files,
)
from helpers.slow import slow_disk
from trainkit.data.datasets import ade20k, cityscapes, coco, pcontext, voc
from trainkit.data.datasets.cache import MappedArrays, cached
from trainkit.data.datasets.cityscapes import Cityscapes
from trainkit.data.datasets.coco import COCO
from trainkit.data.datasets.folder import FileList, MaskFolder
from trainkit.data.datasets.hub import HubMasks
from trainkit.data.datasets.label_tables import look_up
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.pcontext import PascalContext
from trainkit.data.datasets.rle import decode_counts, polygon_to_mask, runs_to_mask, to_grid
from trainkit.data.datasets.voc import VOC, VOCAug
from trainkit.data.image_io import LabelError
from trainkit.data.palette import colour_map

TURNED = 6  # EXIF orientation 6: turn by 90 degrees to see it upright


def mask_of(data, index=0):
    image, mask = data[index]
    assert image.dtype == mask.dtype == torch.uint8 and image.shape == (3, *mask.shape)
    assert type(image) is type(mask) is torch.Tensor
    return mask.numpy()


@pytest.mark.parametrize(
    "module, num_classes", [(ade20k, 150), (voc, 21), (pcontext, 59), (cityscapes, 19)]
)
def test_every_class_has_a_name_a_colour_and_its_label_in_the_files(module, num_classes):
    assert len(set(module.CLASSES)) == num_classes
    assert module.PALETTE.shape == (num_classes, 3) and module.PALETTE.dtype == np.uint8
    assert len(set(module.RAW_IDS.tolist())) == num_classes
    if hasattr(module, "to_train_ids"):
        raw = torch.from_numpy(module.RAW_IDS.astype(np.int32))
        assert module.to_train_ids(raw).tolist() == list(range(num_classes))


def test_colours():
    # the devkit's own numbers: aeroplane, person, tvmonitor, the border
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {label: tuple(colour_map(256)[label].tolist()) for label in known} == known
    assert ade20k.PALETTE[[0, 2, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [92, 0, 255]]
    assert not (pcontext.PALETTE == 0).all(1).any()


def test_voc(tmp_path):
    voc_files(tmp_path, {"train": ["2007_000032"], "val": ["2007_000033", "2007_000042"]}, mode="L")
    data = VOC(tmp_path, "val")
    assert len(data) == 2 and data.name_of(1).name == "2007_000042.jpg"
    assert np.array_equal(mask_of(data), blocks(0, 15, 20, 255)), "palette indices, borders ignored"
    image = data[0][0]
    assert (image[0] == image[2]).all() and abs(int(image[0, 8, 15]) - 200) < 5, (
        "a grey JPEG has three channels"
    )
    assert np.array_equal(data.raw_ids[mask_of(data)[:, :15]], blocks(0, 15, 20, width=15))
    labels_png(data.masks[0], blocks(0, 21, 21, 255))
    with pytest.raises(
        ValueError,
        match=r"000033.png holds label 21 on 160 pixels; Pascal VOC's labels are 0 to 20",
    ):
        data[0]
    with pytest.raises(ValueError, match="split is 'test'"):
        VOC(tmp_path, "test")
    with pytest.raises(
        FileNotFoundError, match=r"no Pascal VOC 2012 at .*nowhere.*VOC2012/JPEGImages.*VOCtrainval"
    ):
        VOC(tmp_path / "nowhere", "train")
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 1 files of VOC's lists are not in .*Class: 2007_000032.png"
    ):
        VOC(tmp_path, "train")


def test_voc_aug_merges_sbd(tmp_path):
    voc_files(tmp_path, {"train": ["a", "b"], "val": ["c", "d"]})
    sbd_files(tmp_path, train=["b", "c", "e"], val=["f", "d"])
    data = VOCAug(tmp_path, "train")
    assert [data.name_of(i).stem for i in range(len(data))] == [
        "a",
        "b",
        "e",
        "f",
    ], "all of both without VOC's val"
    kinds = [data.masks[i].suffix for i in range(4)]
    assert kinds == [".png", ".png", ".mat", ".mat"], "VOC's mask where both have one"
    assert (mask_of(data, 2) == 7).all() and np.array_equal(
        mask_of(data, 1), blocks(0, 15, 20, 255)
    )
    val = VOCAug(tmp_path, "val")
    assert [val.name_of(i).stem for i in range(len(val))] == ["c", "d"]
    data.masks[3].write_bytes(data.masks[3].read_bytes()[:150])
    with pytest.raises(
        ValueError, match=r"cannot read GTcls.Segmentation from .*f.mat: .*replace the file"
    ):
        data[3]
    with pytest.raises(
        FileNotFoundError, match=r"no SBD at .*other: looked for benchmark_RELEASE/dataset/img"
    ):
        VOCAug(tmp_path, "train", sbd=tmp_path / "other")


def test_pascal_context(tmp_path):
    labels = blocks(0, 2, 458, 284)
    labels[0, :4] = [459, 1, 9, 255]  # 255 is a label there, and no class
    expected = np.select([blocks(0, 1, 2, 3) == k for k in range(4)], [255, 0, 58, 36])
    expected[0, :4] = [255, 255, 1, 255]
    for name in ("2008_000002", "2008_000003"):
        photo(tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / "trainval").mkdir(exist_ok=True)
        scipy.io.savemat(tmp_path / f"trainval/{name}.mat", {"LabelMap": labels.astype(np.uint16)})
    (tmp_path / "train.txt").write_text("2008_000002\n2008_000003\n")
    data = PascalContext(tmp_path, "train")
    assert len(data) == 2 and np.array_equal(mask_of(data), expected)
    assert (
        data.classes[36] == "person" and data.raw_ids[36] == 284 and data.raw_ids.dtype == np.uint16
    )

    for name in ("2008_000002", "2008_000003"):  # the same as PNGs, 16 bits deep
        (tmp_path / f"trainval/{name}.mat").unlink()
        labels_png(tmp_path / f"trainval/{name}.png", labels, dtype=np.uint16)
    data = PascalContext(tmp_path, "train")
    assert np.array_equal(mask_of(data), expected)
    labels_png(data.masks[1], blocks(2, 500), dtype=np.uint16)
    with pytest.raises(
        ValueError, match=r"holds label 500 on 160 pixels; Pascal-Context's labels are 0 to 459"
    ):
        data[1]

    lines = [f"{raw}: {name}" for name, raw in zip(pcontext.CLASSES, pcontext.RAW_IDS)]
    lines[lines.index("308: pottedplant")] = "308: potted plant"
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    assert len(PascalContext(tmp_path, "train")) == 2
    (tmp_path / "labels.txt").write_text("\n".join(lines).replace("9: bag", "10: bag"))
    with pytest.raises(ValueError, match=r"labels.txt gives 'bag' the label 10; .* it is 9"):
        PascalContext(tmp_path, "train")
    with pytest.raises(
        FileNotFoundError,
        match=r"no Pascal-Context at .*: looked for .*val.txt; val.txt is not there",
    ):
        PascalContext(tmp_path, "val")


def test_cityscapes(tmp_path):
    every = np.append(np.arange(34), [255] * 6)[None].repeat(8, 0).reshape(16, 20)
    city_files(tmp_path, "train", "gtFine", "zurich", every)
    city_files(tmp_path, "train", "gtFine", "aachen", blocks(7, 33))
    city_files(tmp_path, "train_extra", "gtCoarse", "bayreuth", blocks(0, 26))
    data = Cityscapes(tmp_path, "train")
    assert [data.name_of(i).parent.name for i in range(len(data))] == [
        "aachen",
        "aachen",
        "zurich",
        "zurich",
    ]
    assert int(data[3][0][0, 0, 0]) == 1, "image and mask of one name"
    train_ids = dict(zip(every[:2].flatten().tolist(), mask_of(data, 2)[:2].flatten().tolist()))
    official = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11,
                25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    assert train_ids == {raw: official.get(raw, 255) for raw in [*range(34), 255]}
    assert np.array_equal(data.raw_ids[mask_of(data, 0)], blocks(7, 33)), "as the server wants it"
    assert np.array_equal(
        mask_of(Cityscapes(tmp_path, "train_extra", labels="coarse")), blocks(255, 13)
    )
    with pytest.raises(ValueError, match="split is 'train_extra'; with fine labels it is one of"):
        Cityscapes(tmp_path, "train_extra")
    labels_png(data.masks[1], blocks(7, 34))
    with pytest.raises(
        ValueError, match="holds label 34 on 160 pixels; Cityscapes' labels are 0 to 33"
    ):
        data[1]
    data.masks[0].unlink()
    with pytest.raises(
        FileNotFoundError, match="1 of 4 images .* have no .*gtFine_labelIds.png .*aachen_000000"
    ):
        Cityscapes(tmp_path, "train")
    with pytest.raises(
        FileNotFoundError, match=r"no Cityscapes at .* leftImg8bit/val, gtFine/val.*not there. Get"
    ):
        Cityscapes(tmp_path, "val")


@pytest.mark.parametrize(
    "polygon, text, pixels",
    [  # the strings that COCO's own tools write for these polygons in 20x16
        (
            [4.5, 3.25, 15.99, 3.25, 15.99, 12.6, 10.1, 8.3, 4.5, 12.6],
            "c297O1O100O100001O1O001l1",
            81,
        ),
        # beyond the image
        ([-3.2, 5.0, 12.4, -2.5, 25.7, 9.9, 11.11, 19.3], "35;1N2O1N3N1N2OQ40oK1N2O1NM", 262),
        # crosses itself
        ([2.0, 2.0, 17.5, 13.5, 17.5, 2.0, 2.0, 13.5], "R1;6N2O1N1O2N2O`0O@2O1N1O2N2O1N1n0", 94),
        ([5, 5, 6, 5, 6, 6, 5, 6], "e21Z7", 1),
        ([5, 5, 5, 5, 5, 5], "P:", 0),
    ],
)
def test_polygons_are_those_of_cocos_tools(polygon, text, pixels):
    mask = polygon_to_mask(to_grid(polygon), 16, 20)
    assert mask.sum() == pixels
    assert np.array_equal(mask, runs_to_mask(decode_counts(text), 16, 20))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_run_lengths_go_round(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = runs_of(mask)
    assert decode_counts(string_of(runs)) == runs == decode_counts(string_of(runs).encode())
    assert np.array_equal(runs_to_mask(runs, height, width), mask)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_strings_of_any_numbers(runs):
    assert decode_counts(string_of(runs)) == runs


def test_faulty_run_lengths():
    # written by COCO's own encoder: a 12x7 block with a hole
    block = np.zeros((16, 20), dtype=bool)
    block[2:9, 3:15], block[4, 5:9] = True, False
    assert np.array_equal(
        runs_to_mask(decode_counts("b17900KH28NH28NH28NH2830000000000^2"), 16, 20), block
    )
    with pytest.raises(ValueError, match="end within a number"):
        decode_counts("b17P")
    with pytest.raises(ValueError, match="sum up to 30 pixels, and the image has 320"):
        runs_to_mask([10, 20], 16, 20)


def test_coco_paints_instances(tmp_path):
    coco_files(tmp_path)
    data = COCO(tmp_path, "val", cache=tmp_path / "cache")
    assert [data.name_of(i).name for i in range(len(data))] == [
        "000000000025.jpg",
        "000000000009.jpg",
    ]
    expected = np.zeros((60, 80), dtype=np.uint8)
    expected[:, 30:60] = voc.CLASSES.index("person")
    # the first of the file is in front
    expected[20:40, :40] = expected[20:40, 50:] = voc.CLASSES.index("boat")
    assert np.array_equal(mask_of(data, 1), expected)
    expected = np.zeros((60, 80), dtype=np.uint8)
    expected[30:] = voc.CLASSES.index("dog")
    expected[10:40, 20:70] = voc.CLASSES.index("person")
    assert np.array_equal(mask_of(data, 0), expected)
    assert data[0][0].shape == (3, 60, 80), "a CMYK photo"

    strict = COCO(tmp_path, "val", overlap="ignore", crowd="ignore", cache=tmp_path / "cache")
    expected[10:40, 20:70] = 255
    assert np.array_equal(mask_of(strict, 0), expected)
    assert (mask_of(strict, 1)[20:40, 30:40] == 255).all() and (
        mask_of(strict, 1)[20:40, 40:50] == 15
    ).all()

    assert len(COCO(tmp_path, "val", min_pixels=0, cache=tmp_path / "cache")) == 4
    assert data.raw_ids[[1, 4, 15, 20]].tolist() == [5, 9, 1, 72], "aeroplane, boat, person, tv"


def test_coco_is_read_once(tmp_path):
    coco_files(tmp_path, indent=1)
    reports = []
    data = COCO(
        tmp_path,
        "val",
        cache=tmp_path / "cache",
        progress=lambda done, total: reports.append((done, total)),
    )
    size = (tmp_path / "annotations/instances_val2017.json").stat().st_size
    assert reports[-1] == (size, size) and reports == sorted(reports) and len(reports) > 3
    again = COCO(
        tmp_path,
        "val",
        cache=tmp_path / "cache",
        progress=lambda done, total: pytest.fail("read again"),
    )
    assert (
        isinstance(again.index, MappedArrays)
        and len(list((tmp_path / "cache").glob("coco-*"))) == 1
    )
    copy = pickle.loads(pickle.dumps(again))  # what a worker process gets
    assert len(pickle.dumps(again)) < 3000 and isinstance(copy.index["values"], np.memmap)
    assert np.array_equal(mask_of(copy), mask_of(data))
    coco_files(tmp_path)  # other bytes: read again
    COCO(
        tmp_path,
        "val",
        cache=tmp_path / "cache",
        progress=lambda done, total: reports.append("anew"),
    )
    assert reports[-1] == "anew"


def test_faulty_coco(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no COCO 2017 at .*: looked for val2017, annotations/instances_val",
    ):
        COCO(tmp_path, "val", cache=tmp_path / "cache")
    coco_files(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    whole = file.read_text()
    for text, why in ((whole[:700], ""), ("[]", "character 0 is not '{'"),
                      ('{"images": []}', "it has no images"),
                      (whole.replace('"height"', '"tall"'), "no 'height'")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(
            ValueError, match=f"instances_val2017.json is not a file of COCO's instances: .*{why}"
        ):
            COCO(tmp_path, "val", cache=tmp_path / "cache")
    file.write_text(whole.replace('"counts": [', '"counts": [5, '))
    with pytest.raises(
        ValueError,
        match=r"000000000025.jpg in .*instances_val2017.json: run lengths sum up to 4805",
    ):
        COCO(tmp_path, "val", cache=tmp_path / "cache")[0]
    with pytest.raises(ValueError, match="has 9999 pixels of the classes: lower min_pixels"):
        COCO(tmp_path, "val", min_pixels=9999, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="overlap is 'last'"):
        COCO(tmp_path, "val", overlap="last")


def test_the_first_reading_is_shown(tmp_path, monkeypatch, capsys):
    """As a bar on a terminal, once it takes more than 0.2 s."""
    coco_files(tmp_path, indent=1)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "400")
    file = tmp_path / "annotations/instances_val2017.json"
    with slow_disk("open", str(file), 0.3):
        COCO(tmp_path, "val", cache=tmp_path / "cache")
        printed = capsys.readouterr().out
        assert f"reading {file}, characters" in printed and f"/{file.stat().st_size}" in printed
        COCO(tmp_path, "val", cache=tmp_path / "cache")
        assert capsys.readouterr().out == "", "it is cached"
        monkeypatch.setenv("RANK", "1")
        COCO(tmp_path, "val", cache=tmp_path / "another")
    assert capsys.readouterr().out == "", "the first process alone shows it"


def test_a_cache_that_cannot_be_written(tmp_path):
    source = tmp_path / "source"
    source.write_text("x")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(
        UserWarning,
        match="cannot keep numbers-v1-[0-9a-f]{16} in .*file: it is made anew next time",
    ):
        arrays = cached("numbers-v1", [source], lambda: {"a": np.arange(3)}, tmp_path / "file")
    assert arrays["a"].tolist() == [0, 1, 2]
    assert (
        cached("numbers-v1", [source], lambda: {"a": np.zeros(0)}, tmp_path / "cache")["a"].size
        == 0
    )


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("mask_size", [(20, 16), (16, 20)])
def test_exif_orientation_follows_the_mask(tmp_path, upright, mask_size):
    photo(tmp_path / "images/a.jpg", 16, 20, orientation=TURNED)  # 16 wide, 20 high as stored
    labels_png(tmp_path / "masks/a.png", np.zeros(mask_size))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    data.upright = upright
    assert data[0][0].shape == (3, *mask_size)


def test_upright_or_as_stored_where_both_would_fit(tmp_path):
    photo(tmp_path / "images/a.jpg", 16, 16, orientation=TURNED)
    labels_png(tmp_path / "masks/a.png", np.zeros((16, 16)))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    assert int(data[0][0][0, 2, 2]) < 60 and int(data[0][0][0, 13, 2]) > 180, (
        "dark above, light below"
    )
    data.upright = False
    assert int(data[0][0][0, 13, 2]) < 60 and int(data[0][0][0, 2, 13]) > 180, (
        "dark left, light right"
    )
    assert VOC.upright is ade20k.ADE20K.upright is PascalContext.upright is VOCAug.upright is False


def test_label_shift(tmp_path):
    photo(tmp_path / "images/a.jpg")
    labels_png(tmp_path / "masks/a.png", blocks(0, 1, 3, 255))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3, label_shift=-1)
    assert np.array_equal(mask_of(data), blocks(255, 0, 2, 255)) and data.raw_ids.tolist() == [
        1,
        2,
        3,
    ]
    with pytest.raises(
        ValueError,
        match=r"a.png holds label 3 on 80 pixels; the 2 classes are 1 to 2 .ignored: 255",
    ):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 2, label_shift=-1)[0]
    shifted = MaskFolder(
        tmp_path / "images", tmp_path / "masks", 3, ignore=(3, 255), label_shift=-1
    )
    assert np.array_equal(mask_of(shifted), blocks(255, 0, 255, 255)), (
        "ignored are labels of the files"
    )
    with pytest.raises(
        ValueError, match="label_shift is 1; give minus the first class's label, so 0 or less"
    ):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 3, label_shift=1)
    assert data.palette.tolist() == colour_map(3).tolist()


def test_a_label_that_nobody_ignores_is_reported(tmp_path):
    """255 where only 0 is ignored, and labels of 16 bits whose train id would be the ignored one's
    number."""
    photo(tmp_path / "images/a.jpg")
    labels_png(tmp_path / "masks/a.png", blocks(0, 1, 2, 255))
    with pytest.raises(
        LabelError, match=r"a.png holds label 255 on 80 pixels; .* are 0 to 2 .ignored: 0"
    ):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 3, ignore=(0,))[0]
    for label, more in ((256, {"label_shift": -1}), (255, {"ignore": (0,)}), (511, {})):
        labels_png(tmp_path / "masks/a.png", blocks(1, 2, 1, label), dtype=np.uint16)
        with pytest.raises(LabelError, match=f"a.png holds label {label} on 80 pixels"):
            MaskFolder(tmp_path / "images", tmp_path / "masks", 3, **more)[0]
    labels_png(tmp_path / "masks/a.png", blocks(1, 2, 1, 255), dtype=np.uint16)
    assert np.array_equal(
        mask_of(MaskFolder(tmp_path / "images", tmp_path / "masks", 3)), blocks(1, 2, 1, 255)
    )


def test_masks_through_datasets(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    for index, labels in enumerate((blocks(0, 1, 2, 3), blocks(1, 7))):
        photo(tmp_path / f"{index}.jpg", mode="L")
        labels_png(tmp_path / f"{index}.png", labels, colour_map(256))
    rows = {
        name: [{"bytes": (tmp_path / f"{i}.{end}").read_bytes(), "path": None} for i in range(2)]
        for name, end in (("image", "jpg"), ("annotation", "png"))
    }
    table = Dataset.from_dict(
        rows, Features({"image": ImageFeature(), "annotation": ImageFeature()})
    )
    table.to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    data = HubMasks(tmp_path, "validation", ["a", "b", "c"], label_shift=-1)
    assert len(data) == 2 and data.mask_column == "annotation"
    assert np.array_equal(mask_of(data), blocks(255, 0, 1, 2)) and data.raw_ids.tolist() == [
        1,
        2,
        3,
    ]
    with pytest.raises(
        ValueError, match=r"annotation of row 1 of .* holds label 7 on 160 pixels; .* are 1 to 3"
    ):
        data[1]
    assert np.array_equal(mask_of(HubMasks(tmp_path, "validation", 4)), blocks(0, 1, 2, 3))
    with pytest.raises(
        ValueError, match="no column 'mask'; its columns: image .Image., annotation .Image."
    ):
        HubMasks(tmp_path, "validation", 4, mask_column="mask")
    table.to_parquet(tmp_path / "train.parquet")
    same = MaskSource(tmp_path, ["a", "b", "c"], label_shift=-1).open("val")
    assert same.split == "validation" and np.array_equal(mask_of(same), mask_of(data))
    assert len(MaskSource(tmp_path, 4, stream=2).open("train")) == 2
    (tmp_path / "half").mkdir()
    table.select_columns(["image"]).to_parquet(tmp_path / "half/validation.parquet")
    with pytest.raises(
        ValueError, match=r"has 0 columns that could be the mask .none.; say which with mask_column"
    ):
        HubMasks(tmp_path / "half", "validation", 4)


def test_where_images_with_masks_are_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no val images in .*: looked for images/val/, .* val\*.parquet"
    ):
        MaskSource(tmp_path, 3).open("val")
    with pytest.raises(FileNotFoundError, match="give one with images/train, images/val"):
        MaskSource(tmp_path / "nowhere", 3).open("train")
    for kind in ("images", "annotations"):
        (tmp_path / kind / "train").mkdir(parents=True)
        labels_png(tmp_path / kind / "train" / "0.png", blocks(0, 1, 2, 1))
    data = MaskSource(tmp_path, 2, ignore=(2,)).open("train")
    assert data.split == "train" and np.array_equal(mask_of(data), blocks(0, 1, 255, 1))
    with pytest.raises(ValueError, match="stream is for parquet files, leave it out"):
        MaskSource(tmp_path, 2, stream=4).open("train")


def test_a_list_of_files_costs_its_names_and_four_bytes(tmp_path):
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(20_000)]
    files = FileList(tmp_path, names)
    assert files.names.ends.nbytes + files.names.characters.nbytes == sum(
        map(len, names)
    ) + 4 * len(names)
    assert str(files[19_999].relative_to(tmp_path)) == names[-1]
    assert sys.getsizeof(names) + sum(map(sys.getsizeof, names)) > 2 * len(pickle.dumps(files))


def test_image_files_are_found_wherever_they_lie(tmp_path):
    for name in (
        "b/c.PNG",
        "a.jpg",
        "b/d/e.jpeg",
        "b/.hidden.jpg",
        "b/.hidden/f.jpg",
        "b/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [
        "a.jpg",
        os.path.join("b", "c.PNG"),
        os.path.join("b", "d", "e.jpeg"),
    ]


def test_labels_beyond_a_table_are_unknown():
    labels = torch.tensor([-1, 0, 1, 70_000], dtype=torch.int32)
    assert look_up(labels, np.array([5, 6], np.uint8)).tolist() == [254, 5, 6, 254]


def test_ade20k_of_labels_that_it_lacks(tmp_path):
    photo(tmp_path / "images/training/ADE_train_00000001.jpg")
    file = tmp_path / "annotations/training/ADE_train_00000001.png"
    labels_png(file, blocks(0, 1, 150, 13))
    data = ade20k.ADE20K(tmp_path, "training")
    assert np.array_equal(mask_of(data), blocks(255, 0, 149, 12))
    assert np.array_equal(data.raw_ids[mask_of(data)[:, 5:]], blocks(1, 150, 13, width=15))
    labels_png(file, blocks(0, 151))
    with pytest.raises(
        ValueError, match="00000001.png holds label 151 on 160 pixels; ADE20K's labels are 0 to 150"
    ):
        data[0]
    labels_png(file, blocks(0, 256), dtype=np.uint16)
    with pytest.raises(
        ValueError, match="00000001.png holds label 256 on 160 pixels; ADE20K's labels are 0 to 150"
    ):
        data[0]


def test_real_labels_of_ade20k_come_back(real_data):
    data = ade20k.ADE20K(real_data / "ADEChallengeData2016", "validation")
    stored = np.asarray(Image.open(data.masks[0]))
    mask = mask_of(data)
    assert np.array_equal(
        np.where(mask == 255, 0, data.raw_ids[np.where(mask == 255, 0, mask)]), stored
    )


def test_coco_classes_are_vocs():
    assert coco.CLASSES is voc.CLASSES and len(set(coco.RAW_IDS.tolist())) == 21

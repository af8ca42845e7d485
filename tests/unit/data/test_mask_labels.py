"""Masks whose labels are not 0, 1, 2, ...: other numbers, and colours."""

import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset as ImageRows
from datasets import Features
from datasets import Image as ImageFeature
from PIL import Image

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.data.datasets.cityscapes import CLASSES as CITYSCAPES
from trainkit.data.datasets.class_names import read_classes
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.mask_colors import read_mask_colors
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.segmentation import MaskDataset, read_mask_values
from trainkit.data.datasets.voc import PALETTE
from trainkit.data.image_io import LabelError, read_color_mask
from trainkit.data.palette import MaskColors

COLORS = MaskColors(
    ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)), ((0, 0, 0), (1, 1, 1))
)
TABLE = (
    "# made by hand\n128 64 128 road\n\n0,0,142,car\n70\t130\t180\t\tsky\n0 0 0 ignore\n1 1 1"
    " ignore\n"
)
WORDS = ["--model", "lraspp", "--backbone", "small", "--no-pretrained", "--long-side", "32",
         "--crop", "24", "--batch-size", "2", "--workers", "0", "--no-sync-batch-norm", "--epochs",
         "1"]  # fmt: skip


def ids(size=(12, 10), classes=3) -> np.ndarray:
    """Each class and the ignored one, in no order that a mapping could fall into by itself."""
    return np.random.default_rng(3).choice([*range(classes), IGNORED], size).astype(np.uint8)


def encoded(mask: np.ndarray, mode: str | None = None, form: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(mask)
    (image if mode is None else image.convert(mode)).save(file, form, **how)
    return file.getvalue()


def stored(mask: bytes, folder, kind: str, **settings) -> MaskDataset:
    """One image with this mask, in folders or in a parquet file."""
    size = Image.open(io.BytesIO(mask)).size
    image = encoded(np.zeros((size[1], size[0], 3), np.uint8))
    if kind == "parquet":
        rows = {
            name: [{"bytes": each, "path": None}]
            for name, each in (("image", image), ("mask", mask))
        }
        features = Features({"image": ImageFeature(), "mask": ImageFeature()})
        ImageRows.from_dict(rows, features=features).to_parquet(folder / "train-0.parquet")
    else:
        for name, content in (("images", image), ("annotations", mask)):
            (folder / name / "train").mkdir(parents=True)
            (folder / name / "train" / "a.png").write_bytes(content)
    return MaskSource(folder, 3, **settings).open("train")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("values, ignore", [
    ((0, 128, 255), (7,)), ((255, 0, 128), (7, 9)), ((3, 2, 1), (IGNORED,)),
    ((40, 300, 65535), (IGNORED,)), ((0, 1, 2), (IGNORED,)),
])  # fmt: skip
def test_numbers_stand_for_classes_in_their_order(kind, values, ignore, tmp_path):
    wanted = ids()
    table = np.full(256, ignore[-1], np.uint16)
    table[:3] = values
    raw = table[wanted]
    mask = encoded(raw.astype(np.uint8) if max(values) < 256 else raw)
    data = stored(mask, tmp_path, kind, mask_values=values, ignore=ignore)
    assert np.array_equal(data[0][1].numpy(), wanted) and data[0][1].dtype == torch.uint8
    assert data.raw_ids.tolist() == list(values) == data.label_values
    # and a prediction is written in the numbers that it was read in
    kept = wanted < 3
    assert np.array_equal(data.raw_ids[wanted[kept]], raw[kept])


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_number_that_is_no_class_is_named_with_its_pixels(kind, tmp_path):
    mask = np.array([[0, 255, 255], [17, 17, 0]], np.uint8)
    data = stored(encoded(mask), tmp_path, kind, mask_values=(0, 255, 9))
    message = (
        r"holds label 17 on 2 pixels; the classes are 0, 255, 9 \(--mask-values\), and nothing is"
        r" ignored"
    )
    with pytest.raises(LabelError, match=message):
        data[0]


@pytest.mark.parametrize("settings, message", [
    ({"mask_values": (0, 1, 255), "label_shift": -1}, "label_shift is -1 beside mask_values"),
    ({"mask_colors": COLORS, "label_shift": -1},
        "label_shift is -1 beside mask_values or mask_colors"),
    ({"mask_values": (0, 1, 255), "to_train_ids": lambda labels: labels},
        "to_train_ids is .* beside mask_values"),
    ({"mask_values": (0, 255)}, "mask_values names 2 classes and there are 3"),
    ({"mask_values": (0, 255, 255)},
        r"mask_values is \[0, 255, 255\]; give a number of its own to each class"),
    ({"mask_values": (0, 1, -2)}, "give a number of its own to each class, 0 to 65535"),
    ({"mask_values": (0, 1, 65536)}, "0 to 65535"),
    ({"mask_values": (0, 1, 300), "ignore": (-1,)},
        "ignore holds -1 beside mask_values: masks hold 0 to 65535"),
    ({"mask_values": (0, 1, 7), "ignore": (255, 65536)}, "ignore holds 65536 beside mask_values"),
    ({"mask_values": (0, 1, 7), "ignore": (7, 255)}, "7 is both in mask_values and ignored"),
    ({"mask_values": (0, 1, 7), "mask_colors": COLORS},
        "both given: masks hold numbers or colours"),
    ({"mask_colors": MaskColors(("a", "b"), ((1, 2, 3), (4, 5, 6)))},
        "mask_colors names 2 classes and there are 3"),
    ({"mask_colors": COLORS, "ignore": (0,)},
        r"ignore is \(0,\) beside mask_colors: call ignored colours `ignore`"),
])  # fmt: skip
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskDataset(3, **settings)


@pytest.mark.parametrize("text, values", [("0,255", [0, 255]), (" 3, 2 ,1", [3, 2, 1])])
def test_mask_values_as_they_are_typed(text, values):
    assert read_mask_values(text) == values


@pytest.mark.parametrize("text", ["", "0;255", "0,-1", "0,,1", "a,b", "1.0,2"])
def test_mask_values_that_are_no_list(text):
    with pytest.raises(ValueError, match=f"mask_values is {text!r}; give the number of each class"):
        read_mask_values(text)


def painted(wanted: np.ndarray, colors: MaskColors = COLORS) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors.colors)] = colors.colors
    return table[wanted]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_colours_stand_for_classes(kind, mode, form, tmp_path):
    if (mode, form) == ("RGBA", "BMP"):
        mode = "RGB"
    wanted = ids()
    image = Image.fromarray(painted(wanted))
    if mode == "P":
        image = image.quantize(4, dither=Image.Dither.NONE)  # indices in an order of Pillow's own
        assert np.array_equal(np.asarray(image.convert("RGB")), painted(wanted))
    file = io.BytesIO()
    (image if mode == "P" else image.convert(mode)).save(file, form)
    data = stored(file.getvalue(), tmp_path, kind, mask_colors=COLORS)
    assert np.array_equal(data[0][1].numpy(), wanted) and data[0][1].dtype == torch.uint8
    assert data.palette.tolist() == [
        list(color) for color in COLORS.colors
    ] and data.raw_ids.tolist() == [0, 1, 2]


def test_a_colour_that_is_nearly_one_of_them_is_none(tmp_path):
    mask = painted(ids())
    mask[0, :4], mask[1, 0] = (128, 64, 127), (9, 8, 7)
    data = stored(encoded(mask), tmp_path, "folder", mask_colors=COLORS)
    message = (
        "a.png holds 2 colours that mask_colors has not, on 5 of its pixels: 128 64 127 on 4"
        " pixels, 9 8 7 on 1 pixels; add lines `R G B name`"
    )
    with pytest.raises(LabelError, match=message):
        data[0]
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    (tmp_path / "annotations" / "train" / "a.png").write_bytes(encoded(noise))
    with pytest.raises(
        LabelError, match=r"holds 120 colours .* on 120 of its pixels: .* and 115 more colours"
    ):
        data[0]


def test_colours_that_no_file_can_hold_exactly(tmp_path):
    (tmp_path / "m.jpg").write_bytes(encoded(painted(ids()), form="JPEG", quality=100))
    with pytest.raises(ValueError, match=r"m.jpg is a mask saved as JPEG, which blurs the colours"):
        read_color_mask(tmp_path / "m.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(ValueError, match=r"m.tif is a mask of mode F"):
        read_color_mask(tmp_path / "m.tif")
    (tmp_path / "torn.png").write_bytes(encoded(painted(ids()))[:60])
    with pytest.raises(ValueError, match=r"cannot read .*torn.png"):
        read_color_mask(tmp_path / "torn.png")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_colours(mark, end, tmp_path):
    (tmp_path / "table.txt").write_bytes((mark + TABLE.replace("\n", end)).encode())
    assert read_mask_colors(str(tmp_path / "table.txt")) == COLORS


@pytest.mark.parametrize("text, message", [
    ("1 2 3", r"table.txt, line 1 is '1 2 3'; it is three numbers and a name"),
    ("1 2 3 a\nroad 1 2 3", r"line 2 is 'road 1 2 3'"),
    ("1 2 3 a\n4 5 6 a", r"line 2: a has a colour already"),
    ("1 2 3 a\n1 2 3 b", r"table.txt: a and b have one colour, \(1, 2, 3\)"),
    ("1 2 3 a\n1 2 3 ignore", r"a and ignore have one colour"),
    ("1 2 256 a", r"the colour of a is \(1, 2, 256\); it is three numbers from 0 to 255"),
])  # fmt: skip
def test_a_table_that_is_none(text, message, tmp_path):
    (tmp_path / "table.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mask_colors(str(tmp_path / "table.txt"))


def test_palettes_that_are_known():
    with pytest.raises(
        FileNotFoundError, match=r"mask_colors is vok, .* a known palette \(cityscapes, voc\)"
    ):
        read_mask_colors("vok")
    voc = read_mask_colors("voc")
    assert (
        voc.palette.tolist() == PALETTE.tolist()
        and voc.names[15] == "person"
        and voc.colors[15] == (192, 128, 128)
    )
    known = read_mask_colors("cityscapes")
    assert (
        known.names == CITYSCAPES and known.colors[13] == (0, 0, 142) and (0, 0, 0) in known.ignored
    )
    assert (
        read_classes("", COLORS)
        == read_classes("3", COLORS)
        == read_classes("road,car,sky", COLORS)
    )
    for other in ("road,sky,car", "2"):
        with pytest.raises(ValueError, match=f"classes is {other}, and mask_colors names 3 "):
            read_classes(other, COLORS)


def folders(root, paint, split=("train", "val")) -> None:
    """Four images of each split, whose left half is class 0 and the right half class 1."""
    wanted = np.zeros((24, 32), np.uint8)
    wanted[:, 16:] = 1
    for name in split:
        for kind, content in (
            ("images", np.stack([wanted * 200] * 3, -1)),
            ("annotations", paint(wanted)),
        ):
            (root / kind / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(content).save(root / kind / name / f"{number}.png")


def test_a_run_keeps_its_numbers_and_predicts_in_them(tmp_path, capsys):
    folders(tmp_path / "data", lambda wanted: wanted * 255)
    recipe, run, out = str(ROOT / "recipes" / "seg_folder.py"), tmp_path / "run", tmp_path / "out"
    given = ["--data", str(tmp_path / "data"), "--classes", "bg,fg"]
    assert main([recipe, *given, "--mask-values", "0,255", *WORDS, "--out", str(run)]) == 0
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert row["num_classes"] == 2 and row["IoU"]["fg"] is not None
    settings = json.loads((run / "settings.json").read_text())
    assert settings["settings"]["mask_values"] == "0,255" and settings["label_values"] == [0, 255]
    # going on with other numbers is refused, and a prediction is of those of the run
    assert main([recipe, *given, "--mask-values", "255,0", *WORDS, "--out", str(run)]) == 2
    assert "label_values was [0, 255] and is [255, 0]" in " ".join(capsys.readouterr().err.split())
    images = str(tmp_path / "data" / "images" / "val")
    assert (
        main(
            [
                "predict",
                recipe,
                images,
                "--weights",
                str(run),
                "--out",
                str(out),
                "--workers",
                "0",
            ]
        )
        == 0
    )
    found = {
        int(value)
        for file in (out / "raw").rglob("*.png")
        for value in np.unique(np.asarray(Image.open(file)))
    }
    assert found and found <= {0, 255}
    # without them 255 is the ignored label
    assert (
        main([recipe, *given, "--mask-values", "0,1,255", *WORDS, "--out", str(tmp_path / "other")])
        == 2
    )
    assert "mask_values names 3 classes and there are 2" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_on_colours_predicts_in_them(tmp_path, capsys):
    two = MaskColors(("bg", "fg"), ((10, 20, 30), (200, 100, 0)))
    folders(tmp_path / "data", lambda wanted: painted(wanted, two))
    (tmp_path / "table.txt").write_text("10 20 30 bg\n200 100 0 fg\n")
    recipe, run, out = str(ROOT / "recipes" / "seg_folder.py"), tmp_path / "run", tmp_path / "out"
    words = ["--data", str(tmp_path / "data"), "--mask-colors", str(tmp_path / "table.txt"), *WORDS]
    assert main([recipe, *words, "--out", str(run)]) == 0
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert set(row["IoU"]) == {"bg", "fg"} and row["num_classes"] == 2
    images = str(tmp_path / "data" / "images" / "val")
    assert (
        main(
            [
                "predict",
                recipe,
                images,
                "--weights",
                str(run),
                "--out",
                str(out),
                "--workers",
                "0",
            ]
        )
        == 0
    )
    for file in (out / "colour").rglob("*.png"):
        shown = {
            tuple(color)
            for color in np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3).tolist()
        }
        assert shown <= set(two.colors)
    (tmp_path / "table.txt").write_text("10 20 31 bg\n200 100 0 fg\n")
    assert main([recipe, *words, "--out", str(tmp_path / "other")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert (
        "holds 1 colours that mask_colors has not, on 384 of its pixels: 10 20 30 on 384 pixels"
        in message
    )


def test_a_dataset_without_either_is_as_it_was():
    data = MaskDataset(3, label_shift=-1)
    assert (
        data.label_values is None
        and data.raw_ids.tolist() == [1, 2, 3]
        and data.mask_colors is None
    )
    assert MaskFolder.expects is None

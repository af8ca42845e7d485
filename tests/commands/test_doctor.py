"""`trainkit doctor`.

One planted fault of each kind on small data, and every number counted by hand.
"""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from PIL import Image
from rich.console import Console
from torch._utils import ExceptionWrapper
from torch.utils.data import Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from helpers.image_files import mask, picture
from helpers.processes import RECOG, ROOT, SEG
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit.cli import main
from trainkit.commands.dataset_check import suggested_size, untransformed
from trainkit.commands.doctor import examine
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.image_io import LabelError
from trainkit.display.terminal import Display
from trainkit.errors import report_of
from trainkit.tasks.recognition import Recognition


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


@pytest.fixture
def scenes(tmp_path):
    """Images and masks of the four classes road, car, sky, ghost; a fault of each kind."""
    images, masks = tmp_path / "my" / "images", tmp_path / "my" / "annotations"
    for name, size, runs in (
        ("a", (20, 10), [(0, 150), (1, 50)]),
        ("b", (8, 8), [(2, 60), (255, 4)]),
        ("empty", (12, 12), [(255, 144)]),
        ("strange", (10, 10), [(0, 93), (9, 7)]),
        ("torn-mask", (64, 64), [(0, 4096)]),
        ("turned", (16, 8), [(1, 128)]),
    ):
        picture(images / "train" / f"{name}.png", *size, seed=len(name) * size[0])
        mask(masks / "train" / f"{name}.png", *size, runs)
    mask(masks / "train" / "turned.png", 8, 16, [(1, 128)])
    cut(masks / "train" / "torn-mask.png", 40)
    cut(picture(images / "train" / "torn.jpg", 64, 64, 1), 1500)
    mask(masks / "train" / "torn.png", 64, 64, [(3, 4096)])
    shutil.copy(images / "train" / "a.png", images / "train" / "again.png")
    mask(masks / "train" / "again.png", 20, 10, [(1, 200)])

    (images / "val").mkdir()
    shutil.copy(images / "train" / "b.png", images / "val" / "b2.png")
    mask(masks / "val" / "b2.png", 8, 8, [(0, 64)])
    picture(images / "val" / "z.png", 30, 20, 99)
    mask(masks / "val" / "z.png", 30, 20, [(1, 600)])
    return tmp_path / "my"


def words(data, *more):
    return [
        "doctor",
        SEG,
        "--data",
        str(data),
        "--classes",
        "road,car,sky,ghost",
        "--model",
        "lraspp",
        "--backbone",
        "small",
        "--no-pretrained",
        *more,
    ]


def rows(split):
    return [(row["name"], row["images"], row["pixels"]) for row in split["classes"]]


def test_segmentation(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words(scenes, "--workers", "2")) == 2
    text = (tmp_path / "runs" / "seg_folder-doctor" / "doctor.json").read_text()
    capsys.readouterr()
    assert main(words(scenes, "--workers", "0", "--out", "here")) == 2
    assert (tmp_path / "here" / "doctor.json").read_text() == text, "for any number of workers"

    report = json.loads(text)
    train, val = report["train"], report["val"]
    assert report["num_errors"] == 4 and train["num_images"] == 8 and val["num_images"] == 2
    found = {
        kind: [(fault["index"], fault["name"]) for fault in faults]
        for kind, faults in train["faults"].items()
    }
    files = scenes / "images" / "train"
    assert found == {
        "unreadable": [(5, str(files / "torn-mask.png")), (6, str(files / "torn.jpg"))],
        "mask_size": [(7, str(files / "turned.png"))],
        "label": [(4, str(files / "strange.png"))],
    }
    message = {
        fault["index"]: fault["what"] for faults in train["faults"].values() for fault in faults
    }
    assert f"cannot read {scenes / 'annotations' / 'train' / 'torn-mask.png'}" in message[5]
    assert "turned.png is 8x16 and its image" in message[7] and "is 16x8" in message[7]
    assert "holds label 9 on 7 pixels; the 4 classes are 0 to 3" in message[4]
    assert not any(val["faults"].values())

    # 64, 100, 128, 144, 200, 200: also those at fault whose header can be read
    assert train["sizes"] == {"smallest": [8, 8], "median": [12, 12], "largest": [20, 10]}
    assert val["sizes"] == {"smallest": [8, 8], "median": [30, 20], "largest": [30, 20]}
    assert rows(train) == [("road", 1, 150), ("car", 2, 50 + 200), ("sky", 1, 60), ("ghost", 0, 0)]
    assert rows(val) == [("road", 1, 64), ("car", 1, 600), ("sky", 0, 0), ("ghost", 0, 0)]
    assert train["ignored_pixels"] == 4 + 144 and val["ignored_pixels"] == 0
    assert train["unlabelled"] == [str(files / "empty.png")]
    assert (
        train["repeated"] == [[str(files / "a.png"), str(files / "again.png")]]
        and val["repeated"] == []
    )
    assert report["in_both"] == [[str(files / "b.png"), str(scenes / "images" / "val" / "b2.png")]]

    shown = capsys.readouterr().out
    for line in (
        "1 of 4 classes are in no train image: ghost",
        "2 of 4 classes are in no val image: sky, ghost",
        f"1 train image without a label: {files / 'empty.png'}",
        f"1 train image more than once: {files / 'a.png'} = {files / 'again.png'}",
        f"1 image in both train and val: {scenes / 'images' / 'val' / 'b2.png'}",
    ):
        assert line in report["warnings"] and f"warning: {line}" in shown
    assert len(report["warnings"]) == 6
    ignored = report["train"]["ignored_pixels"] / (
        report["train"]["ignored_pixels"] + sum(row["pixels"] for row in report["train"]["classes"])
    )
    assert (
        f"{100 * ignored:.1f} % of the train pixels are ignored (--mask-values says what classes"
        " are)" in shown
    )
    assert shown.count("error: ") == 4 and all(what in shown for what in message.values())
    assert f"error: {files / 'torn-mask.png'}: {message[5]}" in shown, (
        "the image too, where only the mask is named"
    )
    assert "4 errors, 6 warnings; all of it in here/doctor.json" in shown


def test_mended_data_gives_exit_code_0(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("strange.png", "torn-mask.png", "turned.png", "torn.jpg"):
        (scenes / "images" / "train" / name).unlink()
    assert main(words(scenes, "--workers", "0")) == 0
    assert (
        len(
            json.loads((tmp_path / "runs" / "seg_folder-doctor" / "doctor.json").read_text())[
                "warnings"
            ]
        )
        == 6
    )


def test_class_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "animals"
    for index, name in enumerate(
        ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "[eel]/4.jpg", "[eel]/5.jpg"]
    ):
        picture(data / "train" / name, 10 + index, 9, index)
    cut(picture(data / "train" / "dog" / "torn.jpg", 64, 64, 50), -2)  # all but the mark of its end
    (data / "train" / "dog" / "text.png").write_text("no image")
    picture(data / "val" / "cat" / "6.jpg", 9, 9, 60)
    (data / "val" / "dog").mkdir()
    shutil.copy(data / "train" / "cat" / "1.jpg", data / "val" / "dog" / "other-name.jpg")
    assert (
        main(
            [
                "doctor",
                RECOG,
                "--data",
                str(data),
                "--model",
                "small",
                "--no-pretrained",
                "--workers",
                "1",
            ]
        )
        == 2
    )
    report = json.loads((tmp_path / "runs" / "recog_folder-doctor" / "doctor.json").read_text())
    torn = {fault["name"]: fault["what"] for fault in report["train"]["faults"]["unreadable"]}
    assert list(torn) == [str(data / "train" / "dog" / name) for name in ("text.png", "torn.jpg")]
    assert (
        report["num_errors"] == 2
        and "incomplete or truncated" in torn[str(data / "train" / "dog" / "torn.jpg")]
    )
    assert rows(report["train"]) == [("[eel]", 2, None), ("cat", 2, None), ("dog", 1, None)]
    assert rows(report["val"]) == [("[eel]", 0, None), ("cat", 1, None), ("dog", 1, None)]
    assert report["in_both"] == [
        [str(data / "train" / "cat" / "1.jpg"), str(data / "val" / "dog" / "other-name.jpg")]
    ]
    line = f"val: 1 of 3 classes has no image in {data / 'val'}: [eel]"
    assert report["warnings"][0] == line and len(report["warnings"]) == 2
    shown = capsys.readouterr().out
    assert shown.count(line) == 1
    assert "│ [eel]" in shown and "train pixels" not in shown


def parquet(root, split, labels, formats, features):
    images = []
    for seed, form in enumerate(formats):
        noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
        images.append({"bytes": file.getvalue(), "path": None})
    root.mkdir(exist_ok=True)
    Table.from_dict({"image": images, "label": labels}, features).to_parquet(
        root / f"{split}-0.parquet"
    )


def test_parquet_with_a_label_outside_the_classes(tmp_path, monkeypatch):
    """No files: the same pixels are found again though they are stored in another format."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    parquet(tmp_path / "p", "train", [0, 2, 2], ["PNG"] * 3, features)
    parquet(tmp_path / "p", "val", [1, 3], ["WEBP"] * 2, features)
    message = [
        "--data",
        "p",
        "--label-column",
        "label",
        "--model",
        "small",
        "--no-pretrained",
        "--workers",
        "0",
    ]
    assert main(["doctor", RECOG, *message]) == 2
    report = json.loads((tmp_path / "runs" / "recog_folder-doctor" / "doctor.json").read_text())
    (fault,) = report["val"]["faults"]["label"]
    assert fault == {
        "index": 1,
        "name": "row 1 of p (val)",
        "what": "label 3 is outside the 3 classes 0 to 2",
    }
    assert report["num_errors"] == 1 and rows(report["train"]) == [
        ("0", 1, None),
        ("1", 0, None),
        ("2", 2, None),
    ]
    assert report["in_both"] == [
        [f"row {index} of p (train)", f"row {index} of p (val)"] for index in (0, 1)
    ]


def test_images_held_on_a_device_are_seen_as_stored(tmp_path, monkeypatch):
    """recog_cifar10 augments there.

    An image of both splits is found, and nothing is taken for another.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    parquet(tmp_path / "p", "train", [0, 1, 1, 0], ["PNG"] * 4, features)
    parquet(tmp_path / "p", "test", [0, 1], ["WEBP"] * 2, features)
    path = str(ROOT / "recipes" / "recog_cifar10.py")
    assert main(["doctor", path, "--data", "p", "--model", "small", "--workers", "0"]) == 0
    report = json.loads((tmp_path / "runs" / "recog_cifar10-doctor" / "doctor.json").read_text())
    assert report["train"]["as_stored"] and report["val"]["as_stored"]
    assert report["in_both"] == [
        [f"row {index} of p (train)", f"row {index} of p (test)"] for index in (0, 1)
    ]
    assert report["warnings"] == [
        f"2 images in both train and val: {report['in_both'][0][1]}, row 1 of p (test)"
    ]


def test_data_without_a_transform_to_leave_out(tmp_path, capsys):
    """Toys augment by themselves; soft targets have no histogram; class ids from elsewhere have."""

    class Soft(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, torch.nn.functional.one_hot(target, CLASSES).float()

    train, val = Images(27), Soft(13)
    train.targets[:3] = -1
    report = examine(
        recognition(train_data=Repeated(train, 2), batch_size=8, val_data=val), 0, tmp_path
    )
    assert report["train"]["num_images"] == 27 and report["train"]["repeated"] == [], (
        "copies are read once"
    )
    counts = torch.bincount(train.targets[3:], minlength=CLASSES).tolist()
    assert [row["images"] for row in report["train"]["classes"]] == counts and report["val"][
        "classes"
    ] == []
    assert report["train"]["unlabelled"] == [f"number {index} of Images" for index in range(3)]
    assert "train was checked after its transform" in report["warnings"][0]
    assert report["num_errors"] == 0 and not report["train"]["as_stored"]
    with pytest.raises(ValueError, match="train_data is empty"):
        examine(recognition(train_data=Subset(train, [])), 0, tmp_path)


def test_the_screen_has_the_first_and_the_file_has_all(tmp_path, capsys):
    class Torn(Images):
        def __getitem__(self, index):
            if index < 23:
                raise OSError(f"cannot read {index}")
            return super().__getitem__(index)

    report = examine(
        recognition(train_data=Torn(27), task=Recognition(40)), 0, tmp_path / "deep" / "down"
    )
    shown = capsys.readouterr().out
    assert report["num_errors"] == len(report["train"]["faults"]["unreadable"]) == 23
    assert "error: number 19 of Torn: cannot read 19\n" in shown and "cannot read 20" not in shown
    assert "error: and 3 more in train\n" in shown and "│ (10 more) │" in shown
    assert json.loads((tmp_path / "deep" / "down" / "doctor.json").read_text()) == report


class Insists(Dataset):
    """Calls its transform, whatever it is."""

    transform = staticmethod(lambda image: image + 1)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.transform(torch.zeros(3, 2, 2)), 0


@pytest.mark.filterwarnings("ignore:.*unclosed file")  # torchvision opens masks lazily
def test_transforms_left_out(tmp_path):
    picture(tmp_path / "folder" / "a" / "1.png", 7, 5, 0)
    resize = v2.Compose([v2.ToImage(), v2.Resize((3, 3))])
    images = datasets.ImageFolder(str(tmp_path / "folder"), resize)
    bare, reason = untransformed(Subset(images, [0]))
    assert reason is None and bare[0][0].size == (7, 5) and images[0][0].shape == (3, 3, 3), (
        "and the given one as it was"
    )

    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("x\n")
    picture(voc / "JPEGImages" / "x.jpg", 7, 5, 1)
    mask(voc / "SegmentationClass" / "x.png", 7, 5, [(2, 35)])
    given = datasets.VOCSegmentation(
        str(tmp_path), "2012", "train", transforms=lambda image, mask: (0, 0)
    )
    bare, reason = untransformed(given)
    assert reason is None and bare[0][0].size == (7, 5) and given[0] == (0, 0)
    mapped = datasets.VOCSegmentation(
        str(tmp_path),
        "2012",
        "train",
        transform=resize,
        target_transform=lambda mask: np.array(mask) + 1,
    )
    bare, _ = untransformed(mapped)
    assert bare[0][0].size == (7, 5) and (bare[0][1] == 3).all(), "what maps the labels stays"

    insists = Insists()
    assert untransformed(insists)[0] is insists


def test_real_camvid(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.name for path in (real_data / "camvid" / "images" / "val").iterdir())[:6]
    for part in ("images", "annotations"):
        for split in ("train", "val"):
            (tmp_path / "few" / part / split).mkdir(parents=True)
        for split, chosen in (("train", names[:4]), ("val", names[3:])):
            for name in chosen:
                for file in (real_data / "camvid" / part / "val").glob(
                    f"{name.rpartition('.')[0]}.*"
                ):
                    shutil.copy(file, tmp_path / "few" / part / split)
    message = [
        "--data",
        "few",
        "--classes",
        "250",
        "--model",
        "lraspp",
        "--backbone",
        "small",
        "--no-pretrained",
        "--workers",
        "2",
    ]
    assert main(["doctor", SEG, *message]) == 0
    report = json.loads((tmp_path / "runs" / "seg_folder-doctor" / "doctor.json").read_text())
    assert report["num_errors"] == 0 and [pair[1] for pair in report["in_both"]] == [
        f"few/images/val/{names[3]}"
    ]
    width, height = report["train"]["sizes"]["median"]
    pixels = (
        sum(row["pixels"] for row in report["train"]["classes"]) + report["train"]["ignored_pixels"]
    )
    assert pixels == 4 * width * height


def test_user_errors(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words(tmp_path / "nowhere")) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "photographs").mkdir()
    assert main(["doctor", "fotographs"]) == 2
    assert "did you mean photographs?" in capsys.readouterr().err
    assert main(words(scenes, "--workers", "-1")) == 2
    assert "workers is -1; it must be at least 0" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words(scenes)) == 0 and not (tmp_path / "runs").exists(), "one process does it"


def test_a_label_error_of_a_worker_is_one_message(scenes):
    """A training that meets such an image says what the doctor says, and nothing of the worker's
    traceback."""
    data = MaskFolder(scenes / "images" / "train", scenes / "annotations" / "train", 4)
    with pytest.raises(LabelError, match="Original Traceback") as caught:
        try:
            data[4]
        except LabelError:
            # as torch brings it over
            ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 0").reraise()
    message = report_of(caught.value)
    assert message.startswith(str(scenes)) and "strange.png holds label 9 on 7 pixels" in message


def test_the_bar_and_the_lines():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        batches = [[1, 2], [3, 4], [5]]
        assert list(Display(console=console).track(batches, 5, "reading train")) == batches
        shown = console.file.getvalue()
        assert ("5/5" in shown) == terminal and ("reading train" in shown) == terminal
    hidden = Display(active=False, console=console)
    hidden.grid("a", ("b",), [("c",)])
    assert list(hidden.track(batches, 5, "x")) == batches and console.file.getvalue() == ""


def test_faults_of_a_kind_share_a_line(tmp_path, monkeypatch, capsys):
    """A label outside the classes in every mask is reported once a split, with its remedy."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((10, 12), 11, np.uint8)
            pixels[: number + 1] = 3
            Image.fromarray(pixels).save(tmp_path / f"data/annotations/{split}/{number}.png")
            image = Image.new("RGB", (12, 10), (number, 60 * (split == "val"), 0))
            image.save(tmp_path / f"data/images/{split}/{number}.png")
    words = ["doctor", "seg_folder", "--data", "data", "--classes", "11", "--workers", "0"]
    assert main(words) == 2
    shown = capsys.readouterr().out
    assert shown.count("error: ") == 2 and shown.count("holds label 11") == 2
    assert "error: 4 of 4 train images, such as data/images/train/0.png" in shown
    assert "ignore it (--ignore 11)" in shown and "8 errors, 0 warnings" in shown
    assert shown.count("12x10") == 7 and "not read" not in shown
    report = json.loads((tmp_path / "runs/seg_folder-doctor/doctor.json").read_text())
    assert len(report["train"]["faults"]["label"]) == 4, "each of them is in the file"
    assert main([*words, "--ignore", "11"]) == 0
    table = capsys.readouterr().out.partition("train pixels")[2]
    rows = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert rows == ["3", *(str(label) for label in range(11) if label != 3)], "ids as numbers"


def test_a_wrong_option_is_answered_with_the_recipes_name(capsys):
    for words in (["recog_folder"], ["check", "recog_folder"], ["doctor", "recog_folder"]):
        with pytest.raises(SystemExit):
            main([*words, "--no-such-option", "1"])
        shown = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
        assert f"trainkit {' '.join(words)} --help" in shown


def test_why_a_transform_is_kept_is_reported():
    class Always(Dataset):
        """Calls its transform, whatever it is."""

        def __init__(self):
            self.transform = lambda image: image

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.transform(torch.zeros(3, 4, 4)), 0

    class Without(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), 0

    assert untransformed(Without())[1] == "it has no attribute `transform`"
    assert untransformed(Always())[1] == "Always cannot be read with transform = None"


@pytest.mark.parametrize(
    "median, settings, proposed",
    [
        ([240, 180], {"long_side": 520, "crop": 480}, "--long-side 240 --crop 216 costs less"),
        ([180, 240], {"long_side": 520, "crop": 480, "size": 3}, "--long-side 240 --crop 216"),
        ([640, 480], {"long_side": 520, "crop": 480}, None),
        (
            [320, 120],
            {"size": 224},
            "320x120 pixels, and size is 224: they would be enlarged; --size",
        ),
        ([320, 120], {"size": 224}, "--size 120 costs less"),
        ([320, 224], {"size": 224}, None),
        ([5, 5], {"size": 224}, "--size 8 "),
        ([32, 32], {}, None),
    ],
)
def test_sizes_of_small_images_are_proposed(median, settings, proposed):
    line = suggested_size({"smallest": [1, 1], "median": median, "largest": [9, 9]}, settings)
    assert proposed in line if proposed else line == ""
    assert suggested_size({}, settings) == "", "no image could be read"

"""trainkit evaluate on sets of ImageNet: labels of ReaL, numbers of V2, some classes of A and R."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import trainkit
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.datasets.label_lists import in_wnid_order
from trainkit.errors import MissingFileError, UserError
from trainkit.metrics.recognition import ListedTop1
from trainkit.recipe import Recipe
from trainkit.schedules import cos
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

WNIDS = ["n00000001", "n00000002", "n00000003", "n00000004"]
# of images of gray 0, 10, 20, ...: what the network makes of each
LOGITS = torch.tensor(
    [
        [9.0, 3.0, 1.0, 0.0],
        [0.0, 1.0, 2.0, 9.0],
        [5.0, 2.0, 0.0, 4.0],
        [1.0, 8.0, 2.0, 3.0],
    ]
)


class OfGray(nn.Module):
    """Logits by the gray of an image."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 4))

    def forward(self, images):
        return self.table[(images.mean((1, 2, 3)) * 25.5).round().long()]


def gray(file, level):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 10 * level, np.uint8)).save(file)


@pytest.fixture
def own(tmp_path):
    """Four validation images, one of each class, of which the network knows 0 and 1."""
    for number, (level, wnid) in enumerate(zip((0, 3, 2, 1), WNIDS), 1):
        gray(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.png", level)
    save_file({"table": LOGITS}, tmp_path / "weights.safetensors")
    return tmp_path


def measured(folder, names=WNIDS, task=Recognition, **options):
    def recipe() -> Recipe:
        model = OfGray()
        data = ClassFolder(folder / "val", None, names)
        return Recipe(
            task=task(names),
            model=model,
            train_data=data,
            val_data=data,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            schedule=cos(),
            epochs=1,
            batch_size=2,
            eval_batch_size=3,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )

    weights = folder / "weights.safetensors"
    return trainkit.evaluate(recipe, weights=weights, workers=0, **options)


def write(folder, lists):
    (folder / "real.json").write_text(lists if isinstance(lists, str) else json.dumps(lists))
    return folder / "real.json"


def test_listed_labels(own):
    """Image 1 is called 0, image 2 1, image 3 0, image 4 3; image 2 has no label."""
    assert measured(own)["top1"] == 3 / 4  # 0, 1 and 3 are right
    results = measured(own, label_sets=write(own, [[1, 2], [], [0, 3], [2, 3]]))
    assert results["top1"] == 2 / 3 and results["num_images"] == 3
    assert results["protocol"].endswith("labels of real.json, images without one left out")
    low, high = results["top1_95"]
    assert 0 < low < 2 / 3 < high < 1 or (low, high) == (0, 1)
    assert "val_loss" not in results
    assert measured(own, label_sets=str(write(own, [[0]] * 4)))["top1"] == 2 / 4
    # ids count sorted wnids, whatever the order of the network's outputs
    turned = [*WNIDS[1:], WNIDS[0]]
    assert in_wnid_order(turned) == [3, 0, 1, 2] and in_wnid_order(["b", "a"]) == [0, 1]
    results = measured(own, names=turned, label_sets=write(own, [[1], [2], [], []]))
    assert (results["top1"], results["num_images"]) == (1.0, 2)


def test_the_metric_by_hand():
    metric = ListedTop1()
    rows = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
    assert metric.compute(predictions=LOGITS, references=rows) == {"top1": 2 / 3}
    assert metric.compute(predictions=LOGITS[1:2], references=rows[1:2]) == {"top1": None}


def test_some_classes(own, tmp_path):
    """Among classes 1 and 3: gray 0 is 1, 1 is 3, 2 is 3, 3 is 1."""
    for name, level in (("a", 0), ("b", 2), ("c", 3)):
        gray(tmp_path / "set-a" / WNIDS[1] / f"{name}.png", level)
    for name, level in (("a", 1), ("b", 0)):
        gray(tmp_path / "set-a" / WNIDS[3] / f"{name}.png", level)
    results = measured(own, eval_data=tmp_path / "set-a")
    assert results["top1"] == 3 / 5 and results["num_images"] == 5
    assert results["split"] == "set-a"
    assert results["protocol"].endswith("predictions among 2 of 4 classes")
    # by hand: the softmax of two logits each
    pairs = torch.tensor([[3.0, 0], [2, 4], [8, 3], [1, 9], [3, 0]])
    assert results["macro_recall"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    probability, called = pairs.softmax(1).max(1)
    right = called == torch.tensor([0, 0, 0, 1, 1])
    assert right.sum() == 3
    bins = (probability * 15).ceil()
    gaps = [
        abs(right[bins == b].sum() - probability[bins == b].sum()) for b in bins.unique().tolist()
    ]
    assert results["calibration_error"] == pytest.approx(float(sum(gaps)) / 5, rel=1e-4)
    assert "val_loss" not in results
    assert results["accuracy"][WNIDS[0]] is None


def test_all_classes_are_not_restricted(own):
    results = measured(own, eval_data=own / "val")
    assert results["top1"] == 3 / 4 and "among" not in results["protocol"]


def test_folders_by_number(own, tmp_path):
    """Of ImageNet-V2, whose names do not sort as numbers: 0, 1, 10, ... there, 0 to 3 here."""
    for label, level in enumerate((0, 3, 1, 1)):
        gray(tmp_path / "v2" / str(label) / "a.png", level)
    assert measured(own, eval_data=tmp_path / "v2")["top1"] == 3 / 4
    turned = [*WNIDS[1:], WNIDS[0]]  # outputs 3, 0, 1, 2 are called 0 to 3
    for label, level in enumerate((1, 0, 3, 3)):
        gray(tmp_path / "turned" / str(label) / "a.png", level)
    assert measured(own, names=turned, eval_data=tmp_path / "turned")["top1"] == 3 / 4


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[0]] * 5, "labels of ILSVRC2012_val_00000005, which is not among"),
        ([[0]] * 3, "labels of 3 images, and none of .*ILSVRC2012_val_00000004"),
        ([[0], [4], [], []], "has the label 4 for image 2, and there are 4 classes, 0 to 3"),
        ([[0], [True], [], []], "has the label True for image 2"),
        ([0, 1, 2, 3], "holds no list of lists"),
        ("[[0]", "cannot be read as JSON"),
        ([[]] * 4, "has no label of any image"),
    ],
)
def test_wrong_files_are_refused(own, lists, message):
    with pytest.raises(UserError, match=message):
        measured(own, label_sets=write(own, lists))


def test_wrong_images_are_refused(own, tmp_path):
    with pytest.raises(MissingFileError, match="no file .*absent.json"):
        measured(own, label_sets=own / "absent.json")
    with pytest.raises(UserError, match="leave one of the two out"):
        measured(own, label_sets=write(own, [[0]] * 4), eval_data=own / "val")
    gray(tmp_path / "b" / "n00000009" / "a.png", 0)
    with pytest.raises(UserError, match="has classes .'n00000009'"):
        measured(own, eval_data=tmp_path / "b")
    gray(tmp_path / "c" / "4" / "a.png", 0)
    with pytest.raises(UserError, match="c/4 is called by a number, and there are 4 classes"):
        measured(own, eval_data=tmp_path / "c")
    gray(tmp_path / "d" / WNIDS[2] / "a.png", 0)
    with pytest.raises(UserError, match="are of 1 class: there must be at least 2"):
        measured(own, eval_data=tmp_path / "d")
    with pytest.raises(MissingFileError, match="no folder"):
        measured(own, eval_data=tmp_path / "absent")
    with pytest.raises(UserError, match="the recipe's task is Segmentation"):
        measured(own, task=Segmentation, eval_data=own / "val")
    gray(own / "val" / WNIDS[0] / "other.png", 0)
    with pytest.raises(UserError, match="a validation image is .*other.png"):
        measured(own, label_sets=write(own, [[0]] * 4))

"""Windows, scales and flips: against one window at a time in float64, on several processes."""

import hashlib
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from helpers.logs import assert_same_results, rows
from helpers.network_recipes import in_windows
from helpers.processes import ROOT, TESTS, torchrun
from helpers.toy_recipes import recognition, segmentation
from trainkit import Options, evaluate, train
from trainkit.cli import main
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.transforms.segmentation import eval_transform
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule
from trainkit.inference import Inference
from trainkit.metrics.bootstrap import interval
from trainkit.metrics.recognition import TopK
from trainkit.metrics.segmentation import MeanIoU
from trainkit.models.small import small_fcn
from trainkit.tasks.segmentation import Segmentation

CLASSES, BLACK = 5, torch.tensor([-2.0, -1.5, -1.0]).view(3, 1, 1)
SIZES = ((33, 47), (20, 20), (64, 31), (17, 50))
WAYS = {
    "whole": Inference(),
    "whole, scales, flip": Inference(scales=(0.5, 1.0, 1.75), flip=True),
    "windows": Inference(window=24, stride=16),
    "windows, scales, flip": Inference(
        scales=(0.5, 1.0, 1.75), flip=True, window=24, window_batch=5
    ),
    "wide windows, flip": Inference(window=24, stride=16, window_width=40, flip=True),
    "narrow windows": Inference(window=30, window_width=18, window_batch=3),
    "one window at a time": Inference(scales=(0.75, 1.5), window=32, stride=32, window_batch=1),
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return small_fcn(num_classes=CLASSES).eval()


def images() -> Iterator[tuple[Tensor, Tensor]]:
    """Of unlike sizes, with masks of sizes of their own."""
    generator = torch.Generator().manual_seed(1)
    for number, (height, width) in enumerate(SIZES):
        mask = torch.randint(
            CLASSES, (1, height + 5 * number, width + 3 * number), generator=generator
        )
        yield torch.randn(1, 3, height, width, generator=generator), mask


def plainly(net: nn.Module, image: Tensor, size: tuple[int, int], way: Inference) -> Tensor:
    """The definition, one window at a time: probabilities (1, C, H, W) in float64."""
    total = 0
    for scale in way.scales:
        height, width = (int(length * scale + 0.5) for length in image.shape[-2:])
        scaled = F.interpolate(
            image.double(), (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        side = way.window or 0
        across = way.window_width or side
        full = BLACK.double().expand(3, max(height, side), max(width, across)).clone()[None]
        full[:, :, :height, :width] = scaled
        sums, seen = (
            torch.zeros(1, CLASSES, *full.shape[-2:], dtype=torch.float64),
            torch.zeros(full.shape[-2:]),
        )
        tall, wide = (side, across) if side else full.shape[-2:]
        stride = way.stride or max(1, -(-2 * min(side, across) // 3))
        for top in {
            min(y, full.shape[-2] - tall) for y in range(0, full.shape[-2], stride or 1 << 30)
        }:
            for left in {
                min(x, full.shape[-1] - wide) for x in range(0, full.shape[-1], stride or 1 << 30)
            }:
                place = (..., slice(top, top + tall), slice(left, left + wide))
                for flipped in (False, True)[: 1 + way.flip]:
                    part = full[place].flip(-1) if flipped else full[place]
                    scores = F.interpolate(
                        net(part)["out"], part.shape[-2:], mode="bilinear"
                    ).softmax(1)
                    sums[place] += scores.flip(-1) if flipped else scores
                    seen[place[1:]] += 1
        mean = (sums / seen)[..., :height, :width]
        total = total + F.interpolate(mean, size, mode="bilinear", align_corners=False)
    return total / len(way.scales)


@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_probabilities_are_those_of_one_window_at_a_time(net, name):
    way, passes = WAYS[name], []
    task_module = TaskModule(net, Segmentation(CLASSES)).eval()
    handle = net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    inferer = SlidingWindowInferer(way, task_module, start_accelerator(), BLACK)
    found = [pair for done in inferer.infer(images()) for pair in done]
    handle.remove()
    assert max(passes) <= way.window_batch
    if way.window is not None:
        assert len(passes) == -(-sum(passes) // way.window_batch), (
            "windows of unlike images share a pass"
        )
    twin = small_fcn(num_classes=CLASSES).eval()
    twin.load_state_dict(net.state_dict())
    twin.double()
    assert len(found) == len(SIZES)
    for image, targets in images():
        (scores,) = (scores for scores, theirs in found if torch.equal(theirs, targets))
        expected = plainly(twin, image, targets.shape[-2:], way)
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores.sum(1), torch.ones_like(targets, dtype=torch.float32))


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 64))
def test_windows_cover_every_pixel(length, window, stride):
    stride, length = min(stride, window), max(length, window)
    other = Inference(window=7, stride=1, window_width=9).starts((20, 30))
    assert other == (list(range(14)), list(range(22)))
    starts, across = Inference(window=window, stride=stride).starts((length, window))
    assert across == [0]
    assert set().union(*(range(start, start + window) for start in starts)) == set(range(length))
    assert len(set(starts)) == len(starts) and all(
        b - a <= stride for a, b in zip(starts, starts[1:])
    )


def test_what_is_refused():
    for words, message in (
        ({"scales": ()}, "scales are"), ({"scales": (0.0,)}, "scales are"),
        ({"window": 0}, "window is 0"), ({"stride": 3}, "stride is 3 without a window"),
        ({"window": 8, "stride": 9}, "pixels would be left out"),
        ({"window": 8, "stride": 7, "window_width": 6}, "above the window of 6: pixels would be"),
        ({"window_width": 8}, "window_width is 8 without a window"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Inference(**words)
    assert (
        Inference(scales=(1.0, 2.0), flip=True, window=480, stride=320).label
        == "windows of 480 every 320, scales 1, 2, flipped too"
    )


def test_while_training_and_after(tmp_path):
    """One protocol, one result."""
    train(in_windows(), Options(out=tmp_path, workers=0, seed=5))
    row = rows(tmp_path, "evaluate")[-1]
    weights = sorted((tmp_path / "checkpoints").iterdir())[-1]
    found = evaluate(in_windows(), weights, workers=0, seed=5)
    assert found["mIoU"] == row["mIoU"] and found["num_images"] == 13
    assert (
        found["protocol"]
        == "as the validation data gives them, windows of 10 every 7, scales 1, 1.5, flipped too"
    )
    assert evaluate(segmentation(), weights, workers=0)["mIoU"] != found["mIoU"]


def test_processes_do_not_change_it(tmp_path):
    """13 images on 2 and 3 processes, with uneven numbers of passes, with DDP and sharded."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import json, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.network_recipes import in_windows
from helpers.toy_recipes import recognition
from trainkit import Options, evaluate
each = zip((in_windows(), recognition(eval_batch_size=1)), sys.argv[2:])
found = [evaluate(recipe, Path(weights), workers=0) for recipe, weights in each]
Path(sys.argv[1]).write_text(json.dumps(found))
""")
    recipes, alone = (in_windows(), recognition(eval_batch_size=1)), []
    files = [tmp_path / f"{number}.pth" for number in range(2)]
    for recipe, file in zip(recipes, files):
        torch.save(recipe.model.state_dict(), file)
        alone.append(evaluate(recipe, file, workers=0))
    assert 0 < alone[1]["calibration_error"] < 1 and set(alone[1]) >= {
        "top1",
        "top5",
        "accuracy",
        "confusion",
    }
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for number, way in ((3, {}), (2, fsdp)):
        torchrun(number, script, tmp_path / "found.json", *files, **way)
        found, expected = (
            json.loads((tmp_path / "found.json").read_text()),
            json.loads(json.dumps(alone)),
        )
        errors = found[1].pop("calibration_error"), expected[1].pop("calibration_error")
        assert errors[0] == pytest.approx(errors[1], abs=1e-7), (
            "of the last bits of the model's outputs"
        )
        for mine, theirs in zip(expected, found, strict=True):
            assert_same_results(mine, theirs)
            assert theirs["num_images"] == 13


@pytest.mark.nightly
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(ROOT / "recipes" / "seg_folder.py"), "--sample", "--workers", "0"]
    assert main([*words, "--epochs", "1", "--out", "run"]) == 0
    asked = ["--scales", "0.5", "1", "--flip", "--window", "64", "--window-batch", "16"]
    assert main(["evaluate", *words, "--weights", "run", *asked]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (
        results["protocol"] == "long side 112, windows of 64 every 43, scales 0.5, 1, flipped too"
    )
    low, high = results["mIoU_95"]
    assert 0 <= low <= results["mIoU"] <= high <= 1
    weights = tmp_path / "run" / results["checkpoint"].removeprefix("run/") / "model.safetensors"
    assert results["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    confusion = torch.tensor(results["confusion"])
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(results["pixAcc"])
    accuracy = [value for value in results["accuracy"] if value is not None]
    assert sum(accuracy) / len(accuracy) == pytest.approx(results["mAcc"])
    message = capsys.readouterr().out
    shown = message[message.index("evaluation of run") :]
    assert f"mIoU_95 {100 * low:.2f} % to {100 * high:.2f} %" in shown
    names = [str(label) for label in range(len(results["IoU"]))]
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert list(lines) == names
    for name, iou, right in zip(names, results["IoU"], results["accuracy"]):
        assert lines[name].count("%") == (iou is not None) + (right is not None)
        assert iou is None or f"{100 * iou:.2f} %" in lines[name]
    wrong = (confusion / confusion.sum(1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    worst, called = divmod(int(wrong.argmax()), len(wrong))
    share = f"{100 * wrong.max():.2f} %"
    assert re.search(rf"\(share of the true class\):\n +{worst} .*for {called} {share}", shown)
    assert main(["evaluate", *words, "--weights", "run", "--stride", "9"]) == 2
    assert "without a window" in capsys.readouterr().err


def test_images_as_they_are_stored(tmp_path):
    """Each in its own size, whole, against a loop; a subset of the data stays that subset."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(((24, 40), (33, 18), (20, 20))):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(pixels[..., 0] % CLASSES).save(tmp_path / "masks" / f"{number}.png")
    data = MaskFolder(
        tmp_path / "images", tmp_path / "masks", CLASSES, eval_transform(long_side=16)
    )
    recipe = segmentation(val_data=Subset(data, [2, 0]), task=Segmentation(CLASSES))
    recipe.model.head = nn.Conv2d(8, CLASSES, 1)
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    stored = recipe.as_stored()
    assert stored.protocol == "as stored, seen whole, scale 1" and recipe.protocol.startswith(
        "long side 16"
    )
    found = evaluate(stored, tmp_path / "w.pth", workers=0)
    metric = MeanIoU(CLASSES)
    for index in (2, 0):
        image, mask = MaskFolder(tmp_path / "images", tmp_path / "masks", CLASSES)[index]
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (recipe.mean, recipe.std))
        with torch.no_grad():
            scores = recipe.model.eval()(((image / 255 - mean) / std)[None])
        metric.add_batch(predictions=scores.argmax(1), references=mask[None])
    assert found["num_images"] == 2 and found["mIoU"] == pytest.approx(
        metric.compute()["mIoU"], abs=1e-3
    )
    with pytest.raises(ValueError, match="--as-stored is for segmentation"):
        recognition().as_stored()


def test_an_interval_is_the_binomials():
    """400 images, three quarters right.

    P +- 1.96 sqrt(p (1 - p) / N), within what 1000 draws leave.
    """
    metric = TopK((1, 5)).per_image("top1")
    predictions = torch.eye(8)[torch.zeros(400, dtype=torch.long)]
    metric.add_batch(predictions=predictions, references=(torch.arange(400) % 4 == 0).long())
    low, high = interval(metric.rows(), metric.statistic)
    width = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == (
        pytest.approx(0.75 - width, abs=0.006),
        pytest.approx(0.75 + width, abs=0.006),
    )
    assert interval(metric.rows().flip(0), metric.statistic) == (low, high), "whatever the order"


def test_details_of_classes():
    """Four images of three classes, one of them without a class."""
    metric = TopK((1,), ["cat", "dog", "owl"]).per_image("top1")
    predictions = torch.tensor([[0, 1], [1, 0], [0, 1], [2, 0], [0, 1]])
    metric.add_batch(predictions=predictions, references=torch.tensor([0, 1, 1, -1, 0]))
    assert metric.details(metric.rows()) == {
        "accuracy": {"cat": 1.0, "dog": 0.5, "owl": None},
        "confusion": [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    }  # fmt: skip


def test_rows_of_images_add_up_to_the_figure():
    generator = torch.Generator().manual_seed(0)
    predictions, references = torch.randint(6, (2, 9, 7, 5), generator=generator)
    references[references == 5] = 255
    for absent in ("skip", "zero"):
        metric = MeanIoU(7, absent=absent)
        metric.add_batch(predictions=predictions, references=references)
        expected = metric.compute()
        for name in ("mIoU", "pixAcc", "mAcc", "fwIoU"):
            each = metric.per_image(name)
            each.add_batch(predictions=predictions, references=references)
            value = each.statistic(each.rows().sum(0, keepdim=True).double())
            assert value.item() == pytest.approx(expected[name])

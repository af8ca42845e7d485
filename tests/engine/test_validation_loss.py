"""The validation loss: by torch's own means, for any batch, processes, windows and tasks."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from helpers.logs import rows
from helpers.network_recipes import in_windows
from helpers.processes import TESTS, torchrun
from helpers.toy_recipes import CLASSES, Images, Maps, Net, recognition, segmentation
from trainkit import Options, evaluate, train
from trainkit.data.mixup import Mixup
from trainkit.data.to_device import ToDevice
from trainkit.inference import Inference
from trainkit.losses.pixelwise import BinaryCrossEntropy, CrossEntropy, Focal
from trainkit.losses.region import Dice, Lovasz
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation


def measured(recipe, tmp_path, **changes) -> dict:
    file = tmp_path / "weights.pth"
    torch.save(recipe.model.state_dict(), file)
    return evaluate(replace(recipe, **changes), file, workers=0)


def outputs_of(recipe):
    """Logits and targets of all validation images, one image at a time, in float64."""
    to_device = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)
    model = recipe.model.eval()
    found = []
    with torch.no_grad():
        for index in range(len(recipe.val_data)):
            image, target = recipe.val_data[index]
            images, targets = to_device(image[None], torch.as_tensor(target)[None])
            found.append((model(images).double(), targets))
    return found


@pytest.mark.parametrize("batch", [1, 2, 5, 13])
def test_it_is_the_mean_over_all_images(tmp_path, batch):
    recipe = recognition(task=Recognition(CLASSES, label_smoothing=0.1))
    logits, targets = map(torch.cat, zip(*outputs_of(recipe)))
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1)
    found = measured(recipe, tmp_path, eval_batch_size=batch)
    assert found["val_loss"] == pytest.approx(float(expected), rel=1e-6)
    assert not [name for name in found if name.startswith("val_loss_")]


@pytest.mark.parametrize("batch", [1, 4])
def test_of_masks_every_valid_pixel_counts_alike(tmp_path, batch):
    """Not a mean over images: each of the toy's masks has another number of valid pixels."""
    recipe = segmentation()
    pairs = outputs_of(recipe)
    total = sum(
        F.cross_entropy(logits, targets.long(), ignore_index=255, reduction="sum")
        for logits, targets in pairs
    )
    number = sum(int((targets != 255).sum()) for _, targets in pairs)
    found = measured(recipe, tmp_path, eval_batch_size=batch)
    assert found["val_loss"] == pytest.approx(float(total / number), rel=1e-6)
    of_images = [F.cross_entropy(x, y.long(), ignore_index=255) for x, y in pairs]
    assert float(sum(of_images) / 13) != pytest.approx(found["val_loss"], rel=1e-3)


@pytest.mark.parametrize("batch", [1, 5])
def test_each_term_is_divided_by_its_own_count(tmp_path, batch):
    losses = [CrossEntropy(weight=(1, 2, 3, 4, 5, 6, 7.0)), Dice(factor=0.5), Lovasz(), Focal()]
    recipe = segmentation(task=Segmentation(CLASSES, loss=losses))
    pairs = outputs_of(recipe)
    found = measured(recipe, tmp_path, eval_batch_size=batch)
    for each in losses:
        total = sum(float(each(x.float(), y, 255)) for x, y in pairs)
        count = sum(float(each.count(y, 255, CLASSES)) for _, y in pairs)
        value = each.factor * total / count
        assert found[f"val_loss_{each.name}"] == pytest.approx(value, rel=1e-5), each.name
    terms = [value for name, value in found.items() if name.startswith("val_loss_")]
    assert len(terms) == 4 and found["val_loss"] == pytest.approx(sum(terms))


def test_mixing_and_thresholds_are_of_plain_targets(tmp_path):
    """In a training with mixup the validation loss is the recipe's, of unmixed images."""
    task = Recognition(CLASSES, loss=BinaryCrossEntropy(threshold=0.2))
    recipe = recognition(task=task, mix=Mixup(0.4, CLASSES), epochs=1)
    train(recipe, Options(out=tmp_path, workers=0))
    logits, targets = map(torch.cat, zip(*outputs_of(recipe)))
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(targets, CLASSES).double())
    (row,) = rows(tmp_path, "evaluate")
    assert row["val_loss"] == pytest.approx(float(expected), rel=1e-6)


class WithHeads(Net):
    """With the auxiliary outputs of two losses, in training alone where asked for."""

    def __init__(self, always: bool):
        super().__init__(dense=True)
        self.always = always

    def forward(self, x):
        maps = super().forward(x)
        heads = {"aux": maps[..., ::2, ::2] * 0.5, "se": maps.mean((2, 3))}
        return {"out": maps, **(heads if self.always or self.training else {})}


@pytest.mark.parametrize("always", [True, False])
def test_a_term_of_a_head_that_evaluations_lack_is_left_out(tmp_path, always):
    net = WithHeads(always)
    task = Segmentation(CLASSES, aux_weight=0.4, se_weight=0.2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train(
        segmentation(task=task, model=net, optimizer=optimizer, epochs=0.3),
        Options(out=tmp_path, workers=0),
    )
    (row,) = rows(tmp_path, "evaluate")
    found = {name for name in row if name.startswith("val_loss_")}
    both = {"val_loss_aux", "val_loss_se"} if always else set()
    assert found == {"val_loss_cross_entropy"} | both
    assert row["val_loss"] == pytest.approx(sum(row[name] for name in found))


def test_in_one_window_it_is_that_of_the_whole_image(tmp_path):
    """Of merged scores the loss is that of their logarithms."""
    recipe = segmentation(task=Segmentation(CLASSES, loss=[CrossEntropy(), Dice()]))
    whole = measured(recipe, tmp_path)
    window = measured(recipe, tmp_path, inference=Inference(window=12))
    for name in ("val_loss", "val_loss_cross_entropy", "val_loss_dice"):
        assert window[name] == pytest.approx(whole[name], rel=1e-5)
    assert (
        measured(recipe, tmp_path, inference=Inference(window=8))["val_loss"] != window["val_loss"]
    )


def test_logits_and_masks_may_differ_in_size(tmp_path):
    """As predictions are: resized to the mask, also where it is the smaller one."""

    class Half(Maps):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, target[::2, ::2].contiguous()

    recipe = segmentation(val_data=Half(13, augment=False))
    pairs = outputs_of(recipe)
    total = number = 0.0
    for logits, targets in pairs:
        small = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear")
        total += float(F.cross_entropy(small, targets.long(), ignore_index=255, reduction="sum"))
        number += int((targets != 255).sum())
    assert measured(recipe, tmp_path)["val_loss"] == pytest.approx(total / number, rel=1e-6)


def test_nothing_valid_has_no_loss(tmp_path):
    class Ignored(Images):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], torch.tensor(-1)

    assert measured(recognition(val_data=Ignored(3)), tmp_path)["val_loss"] is None


def test_a_task_of_ones_own(tmp_path, capsys):
    @dataclass(frozen=True)
    class Squared(Recognition):
        """Other losses than its base, of the outputs themselves."""

        terms = ("squared",)

        def counts(self, targets):
            return torch.tensor([2.0 * len(targets)])

        def losses(self, outputs, targets):
            return (outputs.float().square().sum())[None]

    recipe = recognition(task=Squared(CLASSES))
    logits, _ = map(torch.cat, zip(*outputs_of(recipe)))
    found = measured(recipe, tmp_path, eval_batch_size=4)
    assert found["val_loss"] == pytest.approx(float(logits.square().sum() / 26), rel=1e-6)

    class Prepares(Squared):
        def prepare(self, images, targets):
            return images.mean((2, 3))

    assert "val_loss" not in measured(recognition(task=Prepares(CLASSES)), tmp_path)

    class Fails(Squared):
        def losses(self, outputs, targets):
            if not outputs.requires_grad:
                raise RuntimeError("no gradient here\nsecond line")
            return super().losses(outputs, targets)

    capsys.readouterr()
    train(recognition(task=Fails(CLASSES)), Options(out=tmp_path / "run", workers=0))
    assert all("val_loss" not in row for row in rows(tmp_path / "run", "evaluate"))
    message = "no validation loss, as it cannot be computed: RuntimeError: no gradient here\n"
    assert capsys.readouterr().out.count(message) == 1


@pytest.mark.parametrize("failing", [(8, 10), (4,)])
def test_a_fault_is_of_its_evaluation_and_reported_once(tmp_path, capsys, failing):
    """A later one is not without a loss by it: of a run that was resumed it would have one."""
    model = recognition().model

    class Fails(Recognition):
        def at_step(self, model, step, total_steps):
            model.step = step

        def losses(self, outputs, targets):
            if not outputs.requires_grad and model.step in failing:
                raise RuntimeError("no gradient here")
            return super().losses(outputs, targets)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = recognition(task=Fails(CLASSES), model=model, optimizer=optimizer)
    train(recipe, Options(out=tmp_path, workers=0))
    found = [row["step"] for row in rows(tmp_path, "evaluate") if "val_loss" not in row]
    assert found == list(failing)
    message = "no validation loss, as it cannot be computed: RuntimeError: no gradient here\n"
    assert capsys.readouterr().out.count(message) == 1


class NeedsGradients(CrossEntropy):
    """A loss of one's own that no evaluation can compute."""

    def __call__(self, logits, targets, ignore):
        if not logits.requires_grad:
            raise RuntimeError("no gradient here")
        return super().__call__(logits, targets, ignore)


@pytest.mark.parametrize("inference", [None, Inference(window=8)])
def test_a_loss_that_fails_ends_no_evaluation(tmp_path, capsys, inference):
    """In windows as on whole images, and `evaluate` says so too."""
    recipe = segmentation(task=Segmentation(CLASSES, loss=NeedsGradients()), epochs=0.3)
    recipe = replace(recipe, inference=inference)
    train(recipe, Options(out=tmp_path, workers=0))
    found = evaluate(recipe, tmp_path, workers=0)
    assert all("val_loss" not in row for row in [found, *rows(tmp_path, "evaluate")])
    message = "no validation loss, as it cannot be computed: RuntimeError: no gradient here\n"
    assert capsys.readouterr().out.count(message) == 2


@pytest.mark.parametrize("inference", [None, Inference(window=8)])
def test_prepared_targets_have_no_validation_loss(tmp_path, inference):
    class Prepares(Segmentation):
        def prepare(self, images, targets):
            return targets

    found = measured(segmentation(task=Prepares(CLASSES)), tmp_path, inference=inference)
    assert "val_loss" not in found and found["mIoU"] >= 0


def test_a_fault_of_another_process_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.tasks.recognition import Recognition

class Fails(Recognition):
    def losses(self, outputs, targets):
        if os.environ["RANK"] == "1" and not outputs.requires_grad:
            raise RuntimeError("no gradient here")
        return super().losses(outputs, targets)

train(recognition(task=Fails(CLASSES)), Options(out=Path(sys.argv[1]), workers=0))
""")
    printed = torchrun(2, script, tmp_path / "run").stdout
    assert printed.count("no validation loss, as it cannot be computed: RuntimeError") == 1
    assert all("val_loss" not in row for row in rows(tmp_path / "run", "evaluate"))


def test_processes_do_not_change_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import json, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.network_recipes import in_windows
from helpers.toy_recipes import recognition, segmentation
from trainkit import evaluate
build = (recognition, segmentation, in_windows)
found = [evaluate(each(), Path(file), workers=0) for each, file in zip(build, sys.argv[2:])]
Path(sys.argv[1]).write_text(json.dumps(found))
""")
    alone, files = [], []
    for number, build in enumerate((recognition, segmentation, in_windows)):
        recipe = build()
        files.append(tmp_path / f"{number}.pth")
        torch.save(recipe.model.state_dict(), files[-1])
        alone.append(evaluate(recipe, files[-1], workers=0))
    torchrun(2, script, tmp_path / "found.json", *files)
    together = json.loads((tmp_path / "found.json").read_text())
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs["val_loss"] == pytest.approx(mine["val_loss"], rel=1e-6)

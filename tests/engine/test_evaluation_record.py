"""What an evaluation leaves in the folder: a row of each image, and the table of results."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.cases import at_night
from helpers.interruptions import resume
from helpers.logs import rows
from helpers.network_recipes import in_windows
from helpers.processes import TESTS, TOYS, Script, torchrun
from helpers.toy_recipes import CLASSES, RUNS, Images, everything, recognition, segmentation
from trainkit import Options, evaluate, train
from trainkit.data.to_device import ToDevice
from trainkit.engine.ema import EMA
from trainkit.errors import UserError
from trainkit.metrics.base import PerImage
from trainkit.metrics.recognition import TopK
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.storage.evaluation_files import (
    keep_evaluations,
    name_of_step,
    strays,
    write_evaluation,
)
from trainkit.storage.results_table import ResultsTable
from trainkit.tasks.recognition import Recognition


def measured(recipe, out: Path, **changes) -> tuple[dict, dict, dict]:
    """Arrays, what they are of, and the results, with the recipe's own weights."""
    out.mkdir(exist_ok=True)
    file = out / "weights.pth"
    torch.save(recipe.model.state_dict(), file)
    results = evaluate(recipe, file, workers=0, out=out, **changes)
    return *kept(out / "evaluations/evaluate"), results


def kept(stem: Path) -> tuple[dict, dict]:
    with np.load(stem.with_name(f"{stem.name}.npz"), allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    return arrays, json.loads(stem.with_name(f"{stem.name}.json").read_text())


def logits_of(recipe) -> tuple[torch.Tensor, torch.Tensor]:
    to_device = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)
    images, targets = zip(*(recipe.val_data[index] for index in range(len(recipe.val_data))))
    images, targets = to_device(torch.stack(images), torch.stack(targets))
    with torch.no_grad():
        return recipe.model.eval()(images), targets


@pytest.mark.parametrize("batch", [1, 4, 13])
def test_rows_of_a_recognition(tmp_path, batch):
    recipe = recognition(eval_batch_size=batch)
    arrays, about, results = measured(recipe, tmp_path / "out")
    logits, targets = logits_of(recipe)
    assert arrays["ids"].tolist() == list(range(13))
    assert arrays["target"].tolist() == targets.tolist()
    assert arrays["predicted"].tolist() == logits.argmax(1).tolist()
    hits = (logits.topk(5).indices == targets[:, None]).any(1)
    assert arrays["top5_hit"].tolist() == hits.tolist()
    np.testing.assert_allclose(arrays["probability"], logits.softmax(1).amax(1), rtol=1e-5)
    losses = F.cross_entropy(logits, targets, reduction="none")
    np.testing.assert_allclose(arrays["loss"], losses, rtol=1e-5)
    assert (arrays["predicted"] == arrays["target"]).mean() == results["top1"]
    assert arrays["confusion"].tolist() == results["confusion"]
    assert about["task"] == "recognition" and about["headline"] == "top1"
    assert about["num_images"] == 13 and about["step"] is None and about["weights"] == "raw"
    assert len(about["palette"]) == CLASSES and about["classes"] is None
    assert "names" not in arrays  # images in memory are of no files


@pytest.mark.parametrize("batch", [1, 4])
def test_rows_of_masks(tmp_path, batch):
    recipe = segmentation(eval_batch_size=batch)
    arrays, about, results = measured(recipe, tmp_path / "out")
    logits, targets = logits_of(recipe)
    predicted = logits.argmax(1)
    for index, (ours, truth) in enumerate(zip(predicted, targets)):
        valid = truth != 255
        for label in range(CLASSES):
            here, there = (ours == label) & valid, (truth == label) & valid
            assert arrays["predicted_pixels"][index, label] == here.sum()
            assert arrays["true_pixels"][index, label] == there.sum()
            assert arrays["intersection"][index, label] == (here & there).sum()
        loss = F.cross_entropy(logits[index][None], truth[None].long(), ignore_index=255)
        assert arrays["loss"][index] == pytest.approx(float(loss), rel=1e-5, nan_ok=True)
    hits, called, true = (
        arrays[name].sum(0) for name in ("intersection", "predicted_pixels", "true_pixels")
    )
    union = called + true - hits
    assert (hits / np.maximum(union, 1))[union > 0].mean() == pytest.approx(results["mIoU"])
    assert arrays["confusion"].tolist() == results["confusion"]
    assert about["task"] == "segmentation" and about["ignore"] == 255
    assert about["absent"] == "skip"


def test_processes_and_windows_do_not_change_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.network_recipes import in_windows
from helpers.toy_recipes import recognition, segmentation
from trainkit import evaluate
for build, file in zip((recognition, segmentation, in_windows), sys.argv[1:]):
    out = Path(file).parent / "together" / Path(file).stem
    out.mkdir(parents=True, exist_ok=True)
    evaluate(build(), Path(file), workers=0, out=out)
""")
    alone, files = [], []
    for number, build in enumerate((recognition, segmentation, in_windows)):
        recipe = build()
        files.append(tmp_path / f"{number}.pth")
        torch.save(recipe.model.state_dict(), files[-1])
        alone.append(measured(recipe, tmp_path / f"alone-{number}")[:2])
    torchrun(3, script, *files)
    for number, (arrays, about) in enumerate(alone):
        found, described = kept(tmp_path / f"together/{number}/evaluations/evaluate")
        assert described == about and found.keys() == arrays.keys()
        for name, values in arrays.items():
            exact = values.dtype.kind != "f"
            compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
            compare(found[name], values, **({} if exact else {"rtol": 1e-4}))


def test_the_rows_are_of_the_weights_that_decide(tmp_path):
    """EMA weights, where there are any; the latest rows and the best ones are kept."""
    recipe = everything(epochs=4)
    train(recipe, Options(out=tmp_path, workers=0))
    log = rows(tmp_path, "evaluate")
    names = {path.stem for path in (tmp_path / "evaluations").iterdir()}
    assert names == {name_of_step(step) for step in (16, log[-1]["best_step"])}
    arrays, about = kept(tmp_path / "evaluations" / name_of_step(16))
    assert about["weights"] == "ema" and about["headline"] == "top1" and about["step"] == 16
    assert (arrays["predicted"] == arrays["target"]).mean() == log[-1]["ema_top1"]
    path = list_checkpoints(tmp_path / "checkpoints")[-1]
    ema = EMA(recipe.model, 0.9)
    ema.load_state_dict(checkpoint.load(path)[1]["ema"])
    with ema.swapped():
        logits, targets = logits_of(recipe)
    losses = F.cross_entropy(logits, targets, reduction="none")
    np.testing.assert_allclose(arrays["loss"], losses, rtol=1e-4)


def test_what_it_did_not_write_stays(tmp_path):
    train(segmentation(), Options(out=tmp_path, workers=0))
    folder = tmp_path / "evaluations"
    half = ".evaluate.npz.writing-7", ".step-000000002.npz.writing-7"  # the command may write on
    for name in ("notes.txt", "step-7.npz", "step-000000002.json", *half):
        (folder / name).write_text("mine")
    (tmp_path / "shown/step-000000002").mkdir(parents=True, exist_ok=True)
    (tmp_path / "shown/step-000000002/mine.txt").write_text("mine")
    keep_evaluations(tmp_path, {10})
    assert {path.name for path in folder.iterdir()} == {
        "notes.txt",
        half[0],
        "step-7.npz",
        "step-000000010.json",
        "step-000000010.npz",
    }
    assert (tmp_path / "shown/step-000000002/mine.txt").exists()
    assert len(strays(tmp_path)) == 3
    with pytest.raises(UserError, match=r"did not write .*evaluations/notes.txt, .*step-7.npz"):
        train(segmentation(), Options(out=tmp_path, workers=0, resume="never"))


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    """In its place is a folder; it is reported once, and the training goes to its end."""
    (tmp_path / "run/evaluations/step-000000004.npz").mkdir(parents=True)
    (tmp_path / "run/evaluations/step-000000008.npz").mkdir()
    shutil.move(tmp_path / "run/evaluations", tmp_path / "aside")
    train(segmentation(epochs=0.25), Options(out=tmp_path / "run", workers=0))
    shutil.rmtree(tmp_path / "run/evaluations")
    shutil.move(tmp_path / "aside", tmp_path / "run/evaluations")
    options = Options(out=tmp_path / "run", workers=0, allow_schedule_change=True)
    summary = train(segmentation(), options)
    assert summary["steps"] == 10
    message = f"warning: {tmp_path}/run/evaluations cannot be written: Is a directory"
    assert capsys.readouterr().out.count(message) == 1
    assert (tmp_path / "run/evaluations/step-000000010.npz").is_file()


def test_what_rows_are_of_never_lies_beside_others(tmp_path):
    """Also where the rows of a second evaluation cannot be written, or a kill comes before them."""
    about = {"step": 1}
    write_evaluation(tmp_path, "evaluate", {"ids": np.arange(2)}, about)
    (tmp_path / "evaluations/evaluate.npz").unlink()
    (tmp_path / "evaluations/evaluate.npz").mkdir()
    with pytest.raises(OSError, match="evaluate.npz"):
        write_evaluation(tmp_path, "evaluate", {"ids": np.arange(3)}, {"step": 2})
    assert not (tmp_path / "evaluations/evaluate.json").exists()


def test_a_recognition_of_several_rows_for_an_image(tmp_path):
    """The rows of its files are of images, and its metric alone knows what to make of two."""

    class Twice(Recognition):
        rows_per_image = 2

        def predict(self, outputs, targets):
            return super().predict(outputs, targets).repeat_interleave(2, 0)

        def metrics(self):
            return [OfTwo()]

        def thorough_metrics(self):
            return []

    class OfTwo(TopK):
        def _count(self, predictions, references):
            return super()._count(predictions[::2], references)

        def per_image(self, name):
            each = super().per_image(name)
            return PerImage(lambda rows, ids: each.count(rows[::2], ids), each.statistic)

    recipe = recognition()
    one, _, expected = measured(recipe, tmp_path / "one")
    arrays, _, results = measured(replace(recipe, task=Twice(CLASSES)), tmp_path / "two")
    assert results["top1"] == expected["top1"] and "predicted" in one
    assert arrays.keys() <= {"ids", "loss"} and len(arrays["ids"]) == 13


def table(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_table_of_results(tmp_path):
    train(recognition(), Options(out=tmp_path, workers=0, log_every=3))
    steps, evaluations = rows(tmp_path), rows(tmp_path, "evaluate")
    found = table(tmp_path)
    assert [int(row["step"]) for row in found] == [4, 8, 10]
    assert list(found[0])[:4] == ["step", "epoch", "train_loss", "val_loss"]
    assert list(found[0])[-1] == "lr"
    for row, evaluation in zip(found, evaluations, strict=True):
        for name in ("val_loss", "top1", "top5", "macro_f1"):
            assert float(row[name]) == evaluation[name]
    assert float(found[2]["lr"]) == steps[-1]["lr"]


class FailsOnce(Recognition):
    """Once, in training step `at`, counted over all trainings."""

    steps, at = 0, 0

    def losses(self, outputs, targets):
        FailsOnce.steps += torch.is_grad_enabled()
        if FailsOnce.steps == FailsOnce.at:
            raise ValueError("the loss cannot be computed")
        return super().losses(outputs, targets)


@pytest.mark.parametrize("log_every, fails_at", [(1, 0), (3, 0), (3, 6), (4, 0), (9, 0), (9, 8)])
def test_the_training_loss_is_of_the_steps_since_the_last_evaluation(
    tmp_path, log_every, fails_at, monkeypatch
):
    """Wherever rows of the log fall, two evaluations before one too, and on a resume in between."""
    monkeypatch.setattr(FailsOnce, "steps", 0)
    monkeypatch.setattr(FailsOnce, "at", fails_at)
    torch.manual_seed(1)
    train(recognition(), Options(out=tmp_path / "each", workers=0, log_every=1))
    losses = [row["loss"] for row in rows(tmp_path / "each")]
    how = Options(out=tmp_path / "run", workers=0, log_every=log_every, checkpoint_every=1)
    task = FailsOnce(CLASSES, label_smoothing=0.1)
    torch.manual_seed(1)
    if fails_at:
        with pytest.raises(ValueError, match="cannot be computed"):
            train(recognition(task=task), how)
    train(recognition(task=task), how)
    found = [float(row["train_loss"]) for row in table(tmp_path / "run")]
    means = [sum(part) / len(part) for part in (losses[:4], losses[4:8], losses[8:])]
    assert found == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("reads", at_night(30, 45, 62, 75, day=(45,)))
def test_a_kill_anywhere_gives_the_same_files(tmp_path, reads):
    """Killed as an image is read, of a training, of an evaluation, or for what is shown."""
    resume(tmp_path / "whole", "all")
    process = Script(TOYS, tmp_path / "killed", "all", TOY_READS=str(reads))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resume(tmp_path / "killed", "all")
    one, other = tmp_path / "whole/all", tmp_path / "killed/all"
    assert table(one) == table(other) and len(table(one)) == 3
    names = [sorted(p.name for p in (run / "evaluations").iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    for file in names[0]:
        if file.endswith(".npz"):
            mine, theirs = (kept(run / "evaluations" / Path(file).stem) for run in (one, other))
            assert mine[1] == theirs[1]
            for name, values in mine[0].items():
                np.testing.assert_array_equal(values, theirs[0][name])


def test_rows_of_steps_that_were_lost_are_dropped(tmp_path):
    """A run that resumes from an older checkpoint forgets what was measured after it."""
    build, options = RUNS["all"]
    options = Options(out=tmp_path, workers=0, **{**options, "keep_checkpoints": 9})
    train(build(), options)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        if checkpoint.step_of(path) > 6:
            shutil.rmtree(path)
    (tmp_path / "summary.json").unlink()
    kept = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert kept[-1] == "step-000000012.npz"
    seen = []
    recipe = build()
    recipe.model.register_forward_pre_hook(
        lambda *_: seen.append(sorted(p.name for p in (tmp_path / "evaluations").iterdir()))
    )
    train(recipe, options)
    assert seen[0] == [name for name in kept if name < "step-000000007"]
    assert [int(row["step"]) for row in table(tmp_path)] == [4, 8, 12]


def test_names_of_files(tmp_path):
    """From their common folder on: where the data lie is nobody's business."""

    class Named(Images):
        def name_of(self, index):
            return Path(f"/somewhere/set/{'ab'[index % 2]}/{index}.jpg")

    task = Recognition([f"class {number}" for number in range(CLASSES)])
    recipe = recognition(task=task, val_data=Named(13, augment=False))
    arrays, about, _ = measured(recipe, tmp_path / "out")
    assert arrays["names"].tolist()[:3] == ["a/0.jpg", "b/1.jpg", "a/2.jpg"]
    assert about["classes"] == list(task.classes)


def test_steps_that_were_left_out_are_in_no_training_loss(tmp_path):
    """Of 10 steps the first 4 were skipped; an evaluation lies between the rows."""
    evaluation = {"event": "evaluate", "epoch": 1, "best": None, "best_step": None}
    log = [
        {"event": "unlogged", "step": 5, "loss": 10.0, "finite_steps": 1},
        {**evaluation, "step": 5},
        {"event": "step", "step": 10, "loss": (10 + 5) / 6, "lr": 0.1, "skipped_steps": 4},
        {**evaluation, "step": 10},
        {"event": "step", "step": 12, "loss": 3.0, "lr": 0.1, "skipped_steps": 4},
        {"event": "step", "step": 14, "loss": None, "lr": 0.1, "skipped_steps": 6},
        {**evaluation, "step": 14},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    ResultsTable(tmp_path).write()
    assert [float(row["train_loss"]) for row in table(tmp_path)] == pytest.approx([10, 1, 3])

"""--preview: predictions of the same validation images, kept after each evaluation."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image

from helpers.interruptions import resume
from helpers.logs import assert_bit_equal, rows, timeless_row
from helpers.processes import TOYS, Script, torchrun
from helpers.toy_recipes import RUNS, Images, everything, recognition, run, segmentation
from trainkit import Options, train
from trainkit.data.palette import class_colours
from trainkit.data.seeding import seed_host
from trainkit.data.to_device import ToDevice
from trainkit.engine.ema import EMA
from trainkit.engine.shown_images import fixed
from trainkit.errors import UserError
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.storage.evaluation_files import name_of_step, previews, strays
from trainkit.tasks.base import Task

STEPS = [4, 8, 12]  # of the evaluations of three epochs
KEPT = [0, 2, 5, 7, 10]  # of 13 images


def index_of(folder: Path, step: int) -> list[dict]:
    return json.loads((folder / "preview" / name_of_step(step) / "index.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in (folder / "preview").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_which_images_they_are():
    assert fixed(13, 5) == KEPT and fixed(10_000, 8) == list(range(0, 10_000, 1250))
    assert fixed(3, 8) == [0, 1, 2] and fixed(1, 1) == [0]


@pytest.mark.parametrize("name", ["preview", "preview-windows"])
def test_it_changes_nothing_else(tmp_path, name):
    """Not a bit of weights and log, and no other file but report and options."""
    for number, preview in enumerate((5, None)):
        run(name, tmp_path / str(number), preview=preview)
    one, other = (tmp_path / str(number) for number in range(2))
    assert_bit_equal(one, other)
    for event in ("step", "evaluate"):
        mine, theirs = ([timeless_row(row) for row in rows(run, event)] for run in (one, other))
        assert mine == theirs
    assert list(previews(one)) == STEPS and not (other / "preview").exists()
    for file in ("val_predictions.jpg", "worst.jpg", "train_batch.jpg"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_classes_are_those_of_the_weights_that_decide(tmp_path):
    recipe = everything()
    train(recipe, Options(out=tmp_path, workers=0, seed=5, preview=5, report=False))
    assert list(previews(tmp_path)) == STEPS
    ema = EMA(recipe.model, 0.9)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    ema.load_state_dict(checkpoint.load(last)[1]["ema"])
    to_device = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)
    images = torch.stack([recipe.val_data[index][0] for index in KEPT])
    recipe.model.eval()
    with ema.swapped(), torch.no_grad():
        top = recipe.model(to_device(images, torch.zeros(5))[0]).softmax(1).topk(3)
    found = index_of(tmp_path, 12)
    assert [entry["index"] for entry in found] == KEPT
    assert {entry["kind"] for entry in found} == {"preview"}
    for entry, labels, shares in zip(found, top.indices.tolist(), top.values.tolist()):
        assert [name for name, _ in entry["ranking"]] == [str(label) for label in labels]
        assert [share for _, share in entry["ranking"]] == pytest.approx(shares, rel=1e-4)
        assert entry["predicted"] == entry["ranking"][0][0]
    for step in STEPS[:2]:
        assert [entry["index"] for entry in index_of(tmp_path, step)] == KEPT
    assert index_of(tmp_path, 4) != found
    names = {path.name for path in (tmp_path / "preview/step-000000012").iterdir()}
    assert names == {"index.json", *(f"{index}-image.webp" for index in KEPT)}


def test_masks_are_those_that_are_predicted(tmp_path):
    """In the colours of the classes over the image, after each evaluation."""
    recipe = segmentation(epochs=3)
    train(recipe, Options(out=tmp_path, workers=0, preview=5, report=False))
    to_device = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)
    colours = class_colours(7).astype(float)
    folder = tmp_path / "preview/step-000000012"
    recipe.model.eval()
    for index in KEPT:
        image, _ = recipe.val_data[index]
        with torch.no_grad():
            logits = recipe.model(to_device(image[None], torch.zeros(1))[0])
        laid = 0.45 * image.permute(1, 2, 0).numpy() + 0.55 * colours[logits[0].argmax(0)]
        with Image.open(folder / f"{index}-prediction.webp") as thumbnail:
            seen = np.asarray(thumbnail.convert("RGB")).astype(float)
        assert seen.shape == (96, 96, 3), "each pixel eight times as wide"
        assert np.abs(seen.reshape(12, 8, 12, 8, 3).mean((1, 3)) - laid).mean() < 12
    parts = ("image", "target", "prediction", "error")
    names = {f"{index}-{part}.webp" for index in KEPT for part in parts}
    assert {path.name for path in folder.iterdir()} == {"index.json", *names}
    pictures = {path.read_bytes() for path in previews(tmp_path).values()}
    assert len(pictures) == 3


def test_a_kill_anywhere_gives_the_same_pictures(tmp_path):
    """Killed as an image is read, of a training, of an evaluation, or of what is kept."""
    run("preview", tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert len(whole) == 3 * (1 + 1 + len(KEPT))
    for reads in (36, 52, 78):
        folder = tmp_path / str(reads)
        process = Script(TOYS, folder, "preview", TOY_READS=str(reads))
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        resume(folder, "preview")
        assert contents(folder / "preview") == whole


def test_what_lost_steps_left_is_removed(tmp_path):
    """Before the first step of a resume; what somebody else put there stays."""
    build, options = RUNS["preview"]
    options = Options(out=tmp_path, seed=5, workers=0, **options)
    seed_host(5)
    train(build(), options)
    whole = contents(tmp_path)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        if checkpoint.step_of(path) > 6:
            shutil.rmtree(path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "preview/step-000000099").mkdir()
    (tmp_path / "preview/step-000000099/mine.txt").write_text("mine")
    (tmp_path / "preview/.step-000000008.jpg.writing-7").write_text("half")
    seen = []
    seed_host(5)
    recipe = build()
    recipe.model.register_forward_pre_hook(lambda *_: seen.append(list(previews(tmp_path))))
    train(recipe, options)
    assert seen[0] == [4] and seen[-1] == [4, 8]
    assert strays(tmp_path) == [tmp_path / "preview/step-000000099"]
    shutil.rmtree(tmp_path / "preview/step-000000099")
    assert contents(tmp_path) == whole


def test_a_run_with_previews_is_moved_aside(tmp_path):
    train(recognition(epochs=1), Options(out=tmp_path / "run", workers=0, preview=2))
    again = Options(out=tmp_path / "run", workers=0, resume="never")
    train(recognition(epochs=1), again)
    assert list(previews(tmp_path / "run.1")) == [4] and not previews(tmp_path / "run")


@pytest.mark.nightly
def test_processes_with_sharded_parameters_keep_the_same(tmp_path):
    """All take part in the predictions, which are those that the evaluation measured."""
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "100"}  # fmt: skip
    for folder, env in (("ddp", {}), ("fsdp", fsdp)):
        torchrun(2, TOYS, tmp_path / folder, "preview", "preview-windows", **env)
    for name in ("preview", "preview-windows"):
        one, other = tmp_path / "ddp" / name, tmp_path / "fsdp" / name
        assert contents(one).keys() == contents(other).keys()
        for step in STEPS:
            mine, theirs = index_of(one, step), index_of(other, step)
            assert [entry["index"] for entry in mine] == KEPT
            for entry, its in zip(mine, theirs, strict=True):
                assert entry["loss"] == pytest.approx(its["loss"], rel=1e-4, nan_ok=True)
                if name == "preview":
                    assert [label for label, _ in entry["ranking"]] == [
                        label for label, _ in its["ranking"]
                    ]
                    first = [entry["predicted"], pytest.approx(entry["probability"], rel=1e-4)]
                    assert entry["ranking"][0] == first


class Pictures(GeneralTracker):
    """An own tracker that keeps the steps and sizes of the pictures that it gets."""

    name = "pictures"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.sent = []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        pass

    def log_images(self, values, step=None, **_):
        self.sent += [(step, name, pixels.ndim) for name, pixels in values.items()]


def test_trackers_get_each_once_at_its_step(tmp_path):
    """Also those of a run that was stopped, and of steps that are trained a second time."""
    first, second = Pictures(), Pictures()
    build, options = RUNS["preview"]
    options = Options(out=tmp_path, seed=5, workers=0, **options)
    seed_host(5)
    train(build(), options, trackers=[first])
    for path in list_checkpoints(tmp_path / "checkpoints"):
        if checkpoint.step_of(path) > 6:
            shutil.rmtree(path)
    (tmp_path / "summary.json").unlink()
    cursors = json.loads((tmp_path / "own_trackers.json").read_text())
    cursors["pictures"]["preview"] = 8  # as if the last one had not been sent
    (tmp_path / "own_trackers.json").write_text(json.dumps(cursors))
    seed_host(5)
    train(build(), options, trackers=[second])
    expected = [(step, "val/preview", 4) for step in STEPS]
    assert [each for each in first.sent if each[1] == "val/preview"] == expected
    assert [each for each in second.sent if each[1] == "val/preview"] == expected[2:]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("wandb", "run/wandb/offline-run-*/files/media/images/val/preview_*.png"),
        ("mlflow", "mlruns/*/*/artifacts/val/preview/step-*/*.jpg"),
        ("trackio", "trackio/media/run/*/*/*.jpg"),
    ],
)
def test_what_the_stores_of_trackers_hold(name, places, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # where MLflow puts files
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run("preview", tmp_path / "run", track=(name,))
    kept = {pixels_of(path) for path in previews(tmp_path / "run").values()}
    sent = [pixels_of(path) for path in tmp_path.glob(places)]
    assert len(kept) == 3 and all(sent.count(pixels) == 1 for pixels in kept)


def pixels_of(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


class Brightness(Task):
    """A number for each image."""

    terms, headline, higher_is_better = ("square",), "val_loss", False

    def counts(self, targets):
        return torch.tensor([float(len(targets))])

    def losses(self, outputs, targets):
        return (outputs.mean(1) - targets).square().sum()[None]

    def predict(self, outputs, targets):
        return outputs.mean(1)

    def metrics(self):
        return []


@pytest.mark.parametrize("together", [1, 4])
def test_of_a_task_of_ones_own_images_and_what_is_known_of_them(tmp_path, together):
    """Batches of several images have one loss, and none of each image."""
    recipe = recognition(epochs=1, task=Brightness(), eval_batch_size=together)
    train(recipe, Options(out=tmp_path, workers=0, preview=5))
    found = index_of(tmp_path, 4)
    assert [entry["index"] for entry in found] == KEPT
    assert all((entry["loss"] is not None) == (together == 1) for entry in found)
    assert list(previews(tmp_path)) == [4] and "ranking" not in found[0]
    assert "The same validation images after each" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"preview is 8 and pictures is False.*--no-pictures"):
        Options(preview=8, pictures=False)
    with pytest.raises(UserError, match="preview is 0"):
        Options(preview=0)


def test_of_few_images_all_are_kept(tmp_path):
    few = recognition(epochs=1, val_data=Images(3, augment=False))
    train(few, Options(out=tmp_path, workers=0, preview=8))
    assert [entry["index"] for entry in index_of(tmp_path, 4)] == [0, 1, 2]

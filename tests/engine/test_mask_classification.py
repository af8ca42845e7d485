"""Trainings of mask classification: one curve for any split of a batch, and exact resumes."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torchvision import tv_tensors

import trainkit
from helpers.cases import at_night, collected
from helpers.logs import assert_bit_equal, assert_same_training
from helpers.mask_recipes import CLASSES, RUNS, SIDE, masks, run
from helpers.processes import TESTS, torchrun
from helpers.toy_recipes import Maps
from trainkit import Options, train
from trainkit.commands.export import export
from trainkit.data.seeding import seed_host
from trainkit.data.transforms.segmentation import eval_transform
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError
from trainkit.models.mask_networks import mask_probabilities
from trainkit.options import ExportOptions
from trainkit.prediction.model_info import ModelInfo
from trainkit.storage.checkpoint import list_checkpoints, load
from trainkit.storage.weights import take_weights

SCRIPT = TESTS / "helpers" / "mask_recipes.py"
KINDS = ("mask2former", "eomt", "eomt_dinov3")
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
    "FSDP_MIN_NUM_PARAMS": "100",
}
TOGETHER = ("mask2former", "eomt-1")
SPLIT = [name for name, (kind, _) in RUNS.items() if name != kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trains by name in one process, each once; the folder of its run."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def trained(name: str) -> Path:
        run(name, folder / name)
        return folder / name

    return trained


@pytest.fixture(scope="module")
def together(request, tmp_path_factory):
    """In two processes, the last batch of three images on both."""
    folder = tmp_path_factory.mktemp("together")
    names = [name for name in TOGETHER if name in collected(request)]
    torchrun(2, SCRIPT, folder, *names)
    return folder


@pytest.mark.parametrize("name", at_night(*SPLIT, day=("eomt-1",)))
def test_micro_batches_do_not_change_the_training(alone, name):
    assert_same_training(alone(RUNS[name][0]), alone(name))


@pytest.mark.parametrize("name", at_night(*TOGETHER, day=("eomt-1",)))
def test_processes_do_not_change_the_training(alone, together, name):
    assert_same_training(alone(name), together / name)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_parameters_do_not_change_the_training(alone, tmp_path, kind):
    """FSDP2 with units so small that queries and projections would be some of their own."""
    torchrun(2, SCRIPT, tmp_path, kind, **FSDP)
    assert_same_training(alone(kind), tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_bit_equal(alone, tmp_path, kind):
    """Killed after step 3 of 6, where EoMT's attention is masked at times."""
    out = tmp_path / kind
    run(kind, out, checkpoint_every=3)
    later = list_checkpoints(out / "checkpoints")[-1]
    for file in sorted(later.rglob("*"), reverse=True):
        file.unlink()
    later.rmdir()
    log = (out / "log.jsonl").read_text().splitlines(keepends=True)
    first = next(place for place, row in enumerate(log) if json.loads(row).get("step", 0) > 3)
    (out / "log.jsonl").write_text("".join(log[:first]))
    (out / "summary.json").unlink()
    run(kind, out, checkpoint_every=3)
    assert_bit_equal(alone(kind), out)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_masking_fades_with_the_step_and_is_never_averaged(alone, kind):
    for checkpoint in list_checkpoints(alone(kind) / "checkpoints"):
        model, state = load(checkpoint)
        step = int(checkpoint.name.rpartition("-")[2])
        # written before the evaluation that follows, of which the probabilities are those of `step`
        expected = torch.tensor(mask_probabilities(2, step - 1, 6))
        torch.testing.assert_close(model["attn_mask_probs"], expected)
        torch.testing.assert_close(state["ema"]["averages"]["attn_mask_probs"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_average_the_scores_of_images(alone, kind):
    """Of an image as large as a window they are the network's own, and so are the masks."""
    recipe = masks(kind)
    take_weights(recipe.model, list_checkpoints(alone(kind) / "checkpoints")[-1])
    info = ModelInfo.of(recipe, for_other_images=False)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE + 20), dtype=torch.uint8, generator=generator)
    images = info.to_device()(pixels, torch.zeros(1))[0]
    recipe.model.eval()
    with torch.no_grad():
        scores = info.infer()(images)
        left, right = (
            recipe.task.scores(recipe.model(part), part)
            for part in (images[..., :SIDE], images[..., 20:])
        )
    torch.testing.assert_close(scores[..., :20], left[..., :20])
    torch.testing.assert_close(scores[..., SIDE:], right[..., SIDE - 20 :])
    torch.testing.assert_close(scores[..., 20:SIDE], (left[..., 20:] + right[..., :-20]) / 2)
    probabilities = info.probabilities(scores, 1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, SIDE, SIDE + 20))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["eomt", "mask2former"])
@pytest.mark.parametrize("file", ["m.pt2", "m.onnx"])
def test_it_is_exported(alone, tmp_path, capsys, kind, file):
    """For images of its windows: of larger images one of them is taken to try the file on."""
    recipe = masks(kind, ema=None)
    weights = list_checkpoints(alone(kind) / "checkpoints")[-1]
    asked = ExportOptions(out=tmp_path / file, images=2)
    export(recipe, weights, asked)
    assert f"input ['batch', 3, {SIDE}, {SIDE}]" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by torch's compiler itself
def test_a_compiled_step_of_eomt_is_the_same_and_compiled_once():
    recipe = masks("eomt")
    module = TaskModule(recipe.model, recipe.task).train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, backend="aot_eager")
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(CLASSES, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    frames = []
    for step in range(5):  # attention is masked always, at times, and never
        recipe.task.at_step(recipe.model, step, 6)
        recipe.task.at_images(recipe.model, step, range(3))
        assert torch.equal(compiled(images, targets), module(images, targets))
        frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert frames[-1] == frames[0] > 0


class Whole(Maps):
    """Images and masks with a transform, as folders of files have it."""

    def __init__(self, num_images: int, transform):
        super().__init__(num_images, augment=False, size=SIDE)
        self.transform = transform

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(target))


def test_a_loaded_checkpoint_has_the_masking_of_its_step(tmp_path):
    """As its evaluation had it, though it was written before that; a published folder too."""
    seed_host(5)
    recipe = masks("eomt", ema=None, val_data=Whole(3, eval_transform(SIDE, SIDE)))
    options = Options(out=tmp_path / "run", workers=0, pictures=False, report=False)
    train(recipe, replace(options, checkpoint_every=2, keep_checkpoints=9))
    for step in (2, 4, 6):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:09d}"
        network, info = trainkit.load(folder)
        assert network.attn_mask_probs.tolist() == pytest.approx(mask_probabilities(2, step, 6))
        by_hand = masks("eomt").model
        take_weights(by_hand, folder)
        info.task.at_step(by_hand, step, 6)
        images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = info.task.scores(by_hand.eval()(images), images)
            assert torch.equal(info.task.scores(network(images), images), expected)
    with pytest.raises(UserError, match="nothing says of which step the weights in .* are"):
        trainkit.load(shutil.copytree(folder, tmp_path / "alone"))

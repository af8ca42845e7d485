"""What the audit sees of real trainings with a fault planted in them, and of sound ones."""

import json
from pathlib import Path

import pytest
import torch

from helpers.audited_recipes import BAD, recipe
from trainkit import Options
from trainkit.commands.audit_words import in_words
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import seed_host
from trainkit.engine.audit import Audit, Difference
from trainkit.engine.loop import train

STEPS, SAVED = 6, 2


def trained(folder: Path, name: str, fault: str, dense: bool = False, steps: int = STEPS, **given):
    """Train under an audit; what differs from the training called "first"."""
    records, results = folder / "records", folder / f"results-{name}"
    for each in (records, results):
        each.mkdir(exist_ok=True)
    options = {"workers": 0, "checkpoint_every": SAVED, "report": False, "pictures": False}
    seed_host(0)
    audit = Audit(records, results, steps, records=name == "first")
    with pytest.raises(SystemExit) as ended:
        train(
            recipe(fault, dense),
            Options(out=folder / name, **{**options, **given}),
            watch=audit.watch,
        )
    assert ended.value.code == 0
    assert json.loads((results / "end-0.json").read_text())["steps"] == steps
    return audit.difference


def resumed(folder: Path, fault: str, dense: bool = False) -> Difference | None:
    """What differs where a training stops after step SAVED, and another process resumes it."""
    trained(folder, "first", fault, dense)
    assert trained(folder, "parted", fault, dense, steps=SAVED) is None
    return trained(folder, "parted", fault, dense)


@pytest.mark.parametrize("dense", [False, True])
def test_sound_recipes_are_equal_after_a_resume(tmp_path, dense):
    assert resumed(tmp_path, "none", dense) is None
    assert len(list((tmp_path / "records").iterdir())) == STEPS + 1
    kinds = {kind for kind, _ in torch.load(tmp_path / "records" / "step-1.pt")}
    assert kinds == {
        "image", "target", "output", "loss", "gradient", "generator", "parameter",
        "optimizer state",
    }  # fmt: skip


def test_an_unseeded_augmentation_is_named_by_its_image(tmp_path):
    trained(tmp_path, "first", "noise")
    order = TrainOrder(27, 8, seed=0)
    step = next(step for step in range(STEPS) if (0, BAD) in order.keys(step))
    place = order.keys(step).index((0, BAD))
    found = trained(tmp_path, "again", "noise")
    assert (found.step, found.kind, found.value) == (step + 1, "image", [1, 2, 3])
    assert found.name.startswith(f"{place} (") and found.compared == found.of == 3 * 12 * 12
    images = torch.load(tmp_path / "records" / f"step-{step + 1}.pt")["image", str(place)]
    assert found.first == images[2][1 * 144 + 2 * 12 + 3] != found.other
    text = in_words(found)
    assert f"first in step {step + 1}: image {place} (" in text and "not seeded" in text


def test_a_layer_with_hidden_state_is_named_after_a_resume(tmp_path):
    found = resumed(tmp_path, "dropout")
    assert (found.step, found.kind, found.name) == (SAVED + 1, "output", "backbone.3")
    assert "no checkpoint has" in in_words(found)


def test_an_optimizer_whose_state_is_not_saved_is_named_after_a_resume(tmp_path):
    found = resumed(tmp_path, "optimizer")
    assert (found.step, found.kind, found.name) == (SAVED + 1, "parameter", "backbone.0.weight")
    assert found.first != found.other and "state_dict() lacks" in in_words(found)


@pytest.mark.parametrize(
    "fault, kind", [("worker", "image"), pytest.param("order", "target", marks=pytest.mark.nightly)]
)
def test_data_that_depend_on_the_worker_are_named(tmp_path, fault, kind):
    trained(tmp_path, "first", fault, workers=1)
    assert trained(tmp_path, "again", fault, workers=1) is None
    found = trained(tmp_path, "workers", fault, workers=2)
    assert (found.step, found.kind) == (2, kind), "worker 1 reads every other batch"


def test_a_large_tensor_is_compared_in_part(tmp_path):
    """4096 values and the digest of all; the text says so where none of them differs."""
    large = Difference(3, "gradient", "head.weight", compared=4096, of=9000)
    assert "none of the 4096 values compared one by one, of 9000" in in_words(large)
    restored = Difference(2, "buffer", "norm.count", restored=True)
    assert "first in the state resumed from after step 2: buffer norm.count" in in_words(restored)
    built = Difference(0, "parameter", "head.weight", value=[1], first=1.0, other=2.0, of=4)
    assert "first in the state before the first step" in in_words(built)

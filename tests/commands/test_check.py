"""`trainkit check`: what it finds on a few batches, by hand where it can be counted."""

import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.nonfinite import Planted
from helpers.processes import ROOT, TESTS, torchrun
from helpers.toy_recipes import Images, everything, recognition, segmentation
from trainkit import Options
from trainkit.cli import main
from trainkit.commands.check import check
from trainkit.commands.idle_settings import idle_settings
from trainkit.display.terminal import Display
from trainkit.engine.plan import TrainPlan

OPTIONS = Options(workers=0)


def test_results(tmp_path, monkeypatch):
    """A 3x3 convolution from 3 to 8 channels and a 1x1 one to 7, on 12x12; writes nothing."""
    monkeypatch.chdir(tmp_path)
    results = check(recognition(), Options(workers=0, micro_batch=3))["results"]
    assert results["weights"] == (3 * 9 + 1) * 8 + 2 * 8 + (8 + 1) * 7
    assert results["gflops_per_image"] * 1e9 == pytest.approx(2 * 12 * 12 * (3 * 9 * 8 + 8 * 7))
    assert results["micro_batch"] == 3 and results["micro_batches_per_step"] == 3
    assert results["steps_per_epoch"] == 4 and results["total_steps"] == 10
    assert (
        results["resume"] == "bit-equal"
        and results["evaluated_images"] == 4
        and results["evaluation"].startswith("top1 ")
        and " %, " in results["evaluation"]
    )
    assert len(results["losses"]) == 3 and all(1 < loss < 3 for loss in results["losses"])
    alone = results["images_per_s_training_alone"], results["images_per_s_reading_alone"]
    assert results["images_per_s"] == pytest.approx(1 / (1 / alone[0] + 1 / alone[1])), (
        "no workers: one after the other"
    )
    assert results["forecast_hours"] * 3600 >= 80 / results["images_per_s"]
    assert list(tmp_path.iterdir()) == []


def test_it_begins_with_the_weights_of_init(tmp_path, capsys):
    """The loss of its first step is theirs, and weights that fit nothing are refused as in a
    training."""
    torch.manual_seed(1)
    save_file(recognition().model.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    expected = check(recognition(), OPTIONS)["results"]["losses"]
    torch.manual_seed(2)
    found = check(recognition(), Options(workers=0, init_from=tmp_path / "weights.safetensors"))[
        "results"
    ]["losses"]
    assert found == expected and "starting from the weights in" in capsys.readouterr().out
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="none of its 1 names and shapes match"):
        check(recognition(), Options(workers=0, init_from=tmp_path / "other.safetensors"))


@pytest.mark.parametrize("build", [everything, segmentation])
def test_all_state_is_resumed(build):
    assert check(build(), OPTIONS)["results"]["resume"] == "bit-equal"


@pytest.mark.parametrize(
    "way", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["ddp", "fsdp"]
)
def test_two_processes_resume(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from helpers.toy_recipes import everything
from trainkit import Options
from trainkit.commands.check import check
print("GOES ON", check(everything(), Options(workers=0))["results"]["resume"])
""")
    assert torchrun(2, script, **way).stdout.count("GOES ON bit-equal") == 2


def test_a_model_with_a_memory_of_its_own_is_found():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(3 * 12 * 12, 7), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x.flatten(1)) * self.calls

    model = Counting()
    with pytest.raises(
        ValueError, match="resuming from a checkpoint gave other weights .layer.weight"
    ):
        check(
            recognition(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)), OPTIONS
        )


def test_what_cannot_work_is_reported_at_once():
    with pytest.raises(FloatingPointError, match=r"the loss is nan in step \d .gradient norm nan"):
        check(recognition(train_data=Planted(27, 11)), OPTIONS)
    data = Images(27)
    data.targets[:] = 9
    with pytest.raises(ValueError, match="label 9 is outside the 7 classes"):
        check(recognition(train_data=data), OPTIONS)


def test_settings_that_do_nothing():
    recipe = recognition(drop_last=True, batch_size=15)
    recipe.model.extra = nn.Parameter(torch.zeros(3))
    options = Options(
        workers=0, micro_batch=99, log_every=10**4, evaluate_every=50, checkpoint_every=10**5
    )
    message = "; ".join(check(recipe, options)["warnings"])
    for words in (
        "--micro-batch 99 does nothing", "--log-every 10000 is more than the 2 steps",
        "--evaluate-every 50: the run", "--checkpoint-every 100000 is more",
        "drop_last leaves 12 of 27",
        "1 weights are not in the optimizer and will not change: extra",
    ):  # fmt: skip
        assert words in message, (words, message)
    assert check(recognition(), Options(workers=0, log_every=2))["warnings"] == [
        "class 2 has no training image"
    ]


def test_batch_norm_under_a_schedule_free_optimizer():
    """Its statistics are those of other weights than are evaluated, unless re-estimated."""
    schedulefree = pytest.importorskip("schedulefree")

    def warnings(norm: bool, **options) -> list[str]:
        recipe, options = (
            everything() if norm else recognition(),
            Options(workers=0, log_every=2, **options),
        )
        optimizer = schedulefree.SGDScheduleFree(recipe.model.parameters(), lr=0.1)
        return idle_settings(
            replace(recipe, optimizer=optimizer), options, TrainPlan(recipe, options, 1)
        )

    assert warnings(norm=False) == warnings(norm=True, precise_bn=16) == []
    (message,) = warnings(norm=True)
    assert (
        "SGDScheduleFree evaluates other weights than it trains, and 1 batch norms (backbone.1)"
        in message
    )


def test_the_curve_of_the_schedule():
    assert Display.curve([0.0, 0.5, 1.0, math.cos(math.pi / 4)]) == "▁▅█▆  (largest: 1)"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["check", str(ROOT / "recipes" / "recog_folder.py")]
    assert main([*words, "--sample", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    keys = re.sub(r"macro_\w+|val_loss", "", shown.partition("\ncheck")[2])  # names of metrics
    assert (
        "generated data" in shown
        and "GFLOP per image" in shown
        and "time of the whole run" in shown
        and not re.search(r"[a-z]_[a-z]", keys)
        and "█" in shown
    )
    assert not (tmp_path / "runs").exists()
    assert main([*words, "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err

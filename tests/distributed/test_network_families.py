"""One curve for each family of networks: micro-batches, two processes, sharded parameters; resumed.

The types of transformers that segment are resumed in tests/unit/models/test_hf_networks.py.
"""

import shutil
from functools import cache

import pytest
import torch

from helpers.cases import at_night
from helpers.families import FAMILIES, run
from helpers.logs import assert_bit_equal, rows, weights
from helpers.processes import FSDP, TESTS, torchrun
from trainkit.storage.checkpoint import list_checkpoints

for library in ("timm", "transformers", "segmentation_models_pytorch"):
    pytest.importorskip(library)
SCRIPT = TESTS / "helpers" / "families.py"
# its encoder's stages are iterated over, and are no modules that can be gathered on their own
DAY = ("unetplusplus timm:mobilenetv3_small_050",)

MEASURED = {"mIoU", "pixAcc", "top1", "top5", "val_loss"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that trains a network in one process, each once, and returns the run's folder."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def trained(name):
        run(name, folder / name, checkpoint_every=1)
        return folder / name

    return trained


def assert_one_curve(one, other):
    """Losses, weights and, but for pixels of equal scores, what was measured."""
    losses = [row["loss"] for row in rows(one)]
    assert [row["loss"] for row in rows(other)] == pytest.approx(losses, rel=1e-5)
    (mine,), (theirs,) = rows(one, "evaluate"), rows(other, "evaluate")
    for name in MEASURED & mine.keys():
        assert theirs[name] == pytest.approx(mine[name], abs=1e-3), name
    found = weights(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("name", at_night(*FAMILIES, day=DAY))
def test_micro_batches_processes_and_shards_change_nothing(tmp_path, alone, name):
    run(name, tmp_path / "micro", micro_batch=2)
    assert_one_curve(alone(name), tmp_path / "micro")
    for way, environment in (("ddp", {}), ("fsdp2", FSDP)):
        torchrun(2, SCRIPT, tmp_path / way, name, **environment)
        assert_one_curve(alone(name), tmp_path / way / name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.endswith(" dense")])
def test_a_training_resumes_bit_equal(tmp_path, alone, name):
    shutil.copytree(alone(name), tmp_path / "again")
    shutil.rmtree(list_checkpoints(tmp_path / "again" / "checkpoints")[-1])
    (tmp_path / "again" / "summary.json").unlink()
    run(name, tmp_path / "again", checkpoint_every=1)
    assert_bit_equal(alone(name), tmp_path / "again")

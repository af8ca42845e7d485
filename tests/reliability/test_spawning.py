"""Workers that are started anew, as on macOS and Windows, and as CPython 3.14 does.

Classes of the recipe's file.
"""

import sys

import pytest

from helpers.processes import run as run_command

RECIPE = '''
"""A recipe with a dataset, a transform and a network of its own."""
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset

from beside import shifted
from trainkit import Recipe
from trainkit.tasks.recognition import Recognition
from trainkit.schedules import constant


class Stripes(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.transform(torch.full((3, 8, 8), index, dtype=torch.uint8)), index % 3


def recipe(use_lambda: bool = False) -> Recipe:
    """Stripes.

    Args:
        use_lambda: a transform that cannot be pickled
    """
    transform = (lambda image: shifted(image)) if use_lambda else shifted
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 3))
    return Recipe(
        task=Recognition(3),
        model=model,
        train_data=Stripes(transform),
        val_data=Stripes(transform),
        optimizer=SGD(model.parameters(), lr=0.1),
        schedule=constant(),
        epochs=1,
        batch_size=4,
    )
'''
BESIDE = """
def shifted(image):
    return image + 1
"""
START = """
import multiprocessing, sys
from trainkit.cli import main

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    raise SystemExit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spawning")
    for name, text in (("own.py", RECIPE), ("beside.py", BESIDE), ("start.py", START)):
        (folder / name).write_text(text)
    return folder


def start(folder, method, *words, code=0):
    command = [sys.executable, str(folder / "start.py"), method, str(folder / "own.py"), *words]
    return run_command(
        *command, "--workers", "1", "--resume", "never", "--out", str(folder / method), code=code
    )


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_recipe_with_classes_of_its_own(folder, method):
    printed = start(folder, method).stdout
    assert "num_images 12" in printed, printed


def test_a_lambda_is_refused_by_name(folder):
    printed = start(folder, "spawn", "--use-lambda", code=2).stderr
    assert "cannot be sent to data-loading workers" in printed and "<lambda>" in printed, printed
    assert "--workers 0" in printed and "memory" not in printed and "Traceback" not in printed

"""What the kill benchmark trains.

Tiny networks with all that could be random or remembered, slow enough to be hit.
"""

import faulthandler
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import torch

from helpers.toy_recipes import everything, segmentation_with_norm
from trainkit import Recipe
from trainkit.schedules import constant


def recipe(
    task: Literal["recognition", "segmentation"] = "recognition", epochs: float = 3
) -> Recipe:
    """A training of 4 steps an epoch, at a constant rate, so that one made longer is one that
    always was so long.

    Args:
        task: what is learnt
        epochs: passes over the images
    """
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR2)  # what hangs is asked where
    if "KILL_PIDS" in os.environ:
        aside = Path(os.environ["KILL_PIDS"]) / f".{os.environ.get('RANK', 0)}"
        aside.write_text(str(os.getpid()))
        aside.rename(aside.with_name(os.environ.get("RANK", "0")))
    built = everything() if task == "recognition" else segmentation_with_norm()
    return replace(built, schedule=constant(), epochs=epochs)

"""What one training has in hand, and how it is begun."""

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from trainkit.data.to_device import ToDevice
from trainkit.display import Display
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation import Evaluation
from trainkit.engine.plan import Plan
from trainkit.engine.rollback import Undo
from trainkit.engine.stop_signal import StopFlag
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.checkpoint_writer import Saver
from trainkit.storage.run_folder import Run


@dataclass
class Progress:
    """How far a run is: saved with every checkpoint."""

    step: int = 0
    images: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    evaluated: int = 0
    """step after which the last evaluation was"""
    skipped_steps: int = 0
    """updates left out because the loss or the gradient was no number"""
    bad_images: int = 0
    """times another image took the place of one that could not be used"""
    windows_without_targets: int = 0
    """windows of the log in which no target was valid"""
    window_targets: float = 0.0
    """valid targets of the first loss since the last row of the log"""


@dataclass
class Training:
    """What one training has in hand."""

    recipe: Recipe
    options: Options
    accelerator: Accelerator
    plan: Plan
    run: Run
    display: Display
    objective: nn.Module  # wrapped for processes and precision
    to_device: ToDevice
    stop: StopFlag
    saver: Saver
    ema: EMA | None
    undo: Undo
    workers: int
    evaluation: Evaluation
    groups: list[dict[str, Any]]  # the optimizer's, as the recipe set them
    weights: list[nn.Parameter]  # the optimizer's, in the order of the model
    others: list[nn.Parameter]  # that get gradients and are not the optimizer's
    progress: Progress = field(default_factory=Progress)
    # (K + 1,) of each step since the last row: losses, norm
    window: list[Tensor] = field(default_factory=list)
    # replaced in this process since it was last told
    bad_images: list[str] = field(default_factory=list)
    since: tuple[int, float] = (0, 0.0)  # images and seconds of training at the last row
    # valid ones of the first loss since the last row, on the device; None: no step since
    targets: Tensor | None = None
    results: dict[str, Any] = field(default_factory=dict)  # of the last evaluation
    # about the training data, found before the first step
    warnings: list[str] = field(default_factory=list)
    resumed_from: int = 0  # step of the checkpoint that this process went on from
    saved: int = 0  # step of the newest checkpoint
    told: bool = False  # what the first evaluation of this process found its targets to lack
    whole: bool = True  # between two steps, and not inside one
    settled: int = 0  # steps left out, in which DDP has learnt its static graph
    tried: int = 0  # steps that have fitted into the memory of all processes
    trouble: OSError | None = None  # why the run's folder could not be written

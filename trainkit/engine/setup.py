"""Sets up a command that trains, before the model is changed."""

import copy
from typing import Any

from trainkit.data.dataset_info import opened
from trainkit.data.repeatability import require_drawing_nothing
from trainkit.data.workers import choose_workers
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.fsdp import Sharding
from trainkit.engine.distillation import Distillation
from trainkit.engine.introduction import Introduction
from trainkit.engine.metric_checks import require_free_names, try_metrics, with_headline
from trainkit.engine.one_class import refuse_one_class
from trainkit.engine.plan import TrainPlan
from trainkit.engine.precise_bn import refuse_frozen
from trainkit.engine.probe import refuse_lonely_values
from trainkit.engine.torn_files import refuse_torn
from trainkit.engine.trackers import require_installed
from trainkit.errors import UserError
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.locks import posix_locks
from trainkit.storage.weights import start_from


class Setup:
    """What `train`, `check` and `replay` begin with, from which the parts of a training are made.

    Attributes:
        recipe: with its training data opened.
        options: of the run.
        accelerator: of this process, in a group with the others.
        display: of the main process.
        plan: steps, order and learning rates of the run.
        workers: data-loading workers of this process.
        distillation: from the teacher that the options name, or None.
        introduction: what is said of the data before the first step.
    """

    def __init__(self, recipe: Recipe, options: Options):
        """Open the training data, join the other processes, and plan the run.

        Raises:
            UserError: settings that cannot work, or no training can run.
        """
        posix_locks()
        require_installed(options.track)
        _require_shards(options)
        recipe = with_headline(recipe, options.headline)
        require_free_names(recipe.task)
        try_metrics(recipe.task)
        opened(recipe.train_data)  # a fault of it is reported before the processes connect
        refuse_one_class(recipe.train_data)
        refuse_torn(recipe.val_data, options.seed)
        self.distillation = Distillation.asked(recipe, options)
        self.recipe = recipe
        self.options = options
        self.accelerator = start_accelerator(options.static_graph, options.timeout_s)
        self.display = Display(self.accelerator.is_main_process)
        self.plan = TrainPlan(recipe, options, self.accelerator.num_processes)
        self.workers = choose_workers(options.workers, self.accelerator.num_processes)
        self.introduction = Introduction(recipe, self.display.note)
        if self.distillation is not None:
            self.distillation.begin(
                self.accelerator.device, *self.plan.first_images(self.accelerator.device)
            )
            for line in self.distillation.notes:
                self.display.note(line)
        refuse_lonely_values(self.plan)
        if recipe.frozen:
            _require_freezable()
            refuse_frozen(recipe, options.precise_bn)
        require_drawing_nothing(recipe.train_data, options.seed)

    def silent(self, options: Options) -> "Setup":
        """Copy it with other options of what is read and written, and without a display."""
        changed = copy.copy(self)
        changed.options = options
        changed.display = Display(False)
        changed.introduction = Introduction(self.recipe, changed.display.note)
        changed.workers = choose_workers(options.workers, self.accelerator.num_processes)
        return changed

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms."""
        return self.recipe.task.terms if self.distillation is None else self.distillation.terms

    @property
    def resume_invariants(self) -> dict[str, Any]:
        """What a resume must keep, see `TrainPlan.resume_invariants`."""
        if self.distillation is None:
            return {**self.plan.resume_invariants(), "teacher": None}
        return {**self.plan.resume_invariants(), **self.distillation.resume_invariants}

    def load_initial_weights(self) -> list[str]:
        """Load the weights of `--init-from` where there is one; call it before a `Training`.

        Returns:
            What was shown of them.
        """
        weights = self.options.init_from
        if weights is None:
            return []
        lines = start_from(self.recipe.model, weights, self.options.weights_key)
        for line in lines:
            self.display.note(line)
        return lines


def _require_shards(options: Options) -> None:
    """Raise UserError where checkpoints are to be sharded and weights are not."""
    if options.checkpoint_format == "sharded" and Sharding.asked() is None:
        raise UserError(
            "checkpoint_format is sharded, and without FSDP each process holds all weights: launch"
            " with accelerate_configs/fsdp2.yaml, or leave --checkpoint-format out"
        )


def _require_freezable() -> None:
    """Raise UserError where no part can be frozen for some steps."""
    if Sharding.asked() is not None:
        raise UserError(
            "freeze does not work under FSDP, whose units are gathered and reduced whole:"
            " launch without FSDP, or freeze for good with trainkit.freeze"
        )

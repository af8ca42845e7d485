"""Makes the parts of one training, wrapped for processes and precision."""

from functools import cache, partial

import torch
from torch import nn

from trainkit.data.to_device import ToDevice
from trainkit.display.wording import counted
from trainkit.distributed.accelerator import allow_tf32
from trainkit.distributed.fsdp import prepare
from trainkit.distributed.weight_use import WeightUse, weight_use
from trainkit.engine.activation_checkpointing import checkpoint_activations
from trainkit.engine.checkpointing import Checkpointer
from trainkit.engine.early_stopping import EarlyStopping
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation_record import EvaluationRecord
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.fsdp_trial import require_same_updates
from trainkit.engine.nonfinite import FailureRecorder
from trainkit.engine.optimizer_state import has_modes, require_supported, switch_mode, to_weights
from trainkit.engine.probe import unchanged
from trainkit.engine.reporting import Reporter
from trainkit.engine.run_opening import Found
from trainkit.engine.setup import Setup
from trainkit.engine.state import TrainState
from trainkit.engine.step import Stepper
from trainkit.engine.stop_signal import StopFlag
from trainkit.engine.sync_batch_norm import synchronised
from trainkit.engine.task_module import TaskModule
from trainkit.models.freezing import FrozenPart
from trainkit.models.outputs import refusals_reported
from trainkit.storage.checkpoint_shards import ALONE, Shards
from trainkit.storage.checkpoint_writer import CheckpointWriter
from trainkit.storage.model_json import model_json
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.weight_links import WeightLinks


class Training:
    """The parts of one training; each has at its construction what it needs of the set-up.

    Attributes:
        setup: options, accelerator and plan.
        recipe: with the model and the optimizer.
        state: how far the training is.
        stop: whether a signal asks it to stop.
        stepper: makes one optimizer update from a batch.
        reporter: writes log and display.
        checkpointer: saves and resumes.
        evaluator: measures the weights.
        links: best.safetensors and last.safetensors.
        record: what evaluations leave in the folder, beside the log.
        early_stopping: when it ends before its last step.
    """

    def __init__(self, setup: Setup, run: RunFolder):
        """Wrap model and optimizer, and report what will be trained on what."""
        recipe, options, accelerator = setup.recipe, setup.options, setup.accelerator
        self.setup = setup
        self.recipe = recipe
        setup.introduction.say()
        setup.display.note(
            f"{run.folder}: {counted(setup.plan.total_steps, 'step')},"
            f" {counted(recipe.epochs, 'epoch')} of"
            f" {setup.plan.order.num_images} images in batches of {recipe.batch_size} on"
            f" {accelerator.num_processes} x {accelerator.device.type}, precision"
            f" {accelerator.mixed_precision.replace('no', 'fp32')}"
        )
        with refusals_reported(recipe.model):
            _convert_model(setup)
        allow_tf32(options.tf32)
        frozen = _frozen_part(setup)
        task_module = _prepare(setup)
        trained = (each for group in recipe.optimizer.param_groups for each in group["params"])
        ema = None if recipe.ema is None else EMA(recipe.model, recipe.ema, trained)
        to_device = ToDevice(accelerator.device, recipe.mean, recipe.std, options.channels_last)
        self.state = state = TrainState()
        self.links = WeightLinks(run.folder, recipe.ema is not None, lambda: state.best_step)
        sharded = options.checkpoint_format == "sharded"
        writer = CheckpointWriter(
            run.checkpoints,
            options.keep_checkpoints,
            options.async_checkpoint,
            model_json(recipe),
            self.links,
            getattr(recipe.model, "adapters", None),
            Shards.of_all(options.timeout_s) if sharded else ALONE,
        )
        self.stop = StopFlag(accelerator.device, accelerator.num_processes)
        failures = FailureRecorder(setup, run, writer)
        self.reporter = Reporter(setup, run, writer, failures, self.state, self.stop)
        self.stepper = Stepper(
            setup, task_module, to_device, ema, frozen, self.state, self.reporter, self.stop
        )
        self.checkpointer = Checkpointer(setup, writer, ema, self.state, self.reporter)
        self.evaluator = Evaluator(
            recipe=recipe,
            task_module=task_module,
            accelerator=accelerator,
            to_device=to_device,
            seed=options.seed,
            workers=setup.workers,
            ema=ema,
            optimizer=recipe.optimizer,
            precise_bn=options.precise_bn,
            order=setup.plan.order.version,
            on_bad_image=options.on_bad_image,
        )
        self.record = EvaluationRecord(
            self.evaluator,
            run.folder,
            setup.display.note,
            options.pictures,
            self.links,
            options.preview,
        )
        self.early_stopping = EarlyStopping.of(recipe, options)
        if self.stepper.others:
            setup.display.note(
                f"{len(self.stepper.others)} parameters are not in the optimizer and stay as they"
                " are; requires_grad_(False) would save the time of their gradients"
            )

    def resume(self, found: Found) -> None:
        """Restore what an earlier training left, and check that a checkpoint can hold this one."""
        memory, setup = found.memory, self.setup
        if memory is not None and memory["asked"] == setup.options.micro_batch:
            setup.plan.use_micro_batch(memory["micro_batch"])
            setup.display.note(
                f"micro-batches of {memory['micro_batch']} images, as the run was out of memory"
                " (OOM) before; --micro-batch changes it"
            )
        if found.path is not None:
            self.checkpointer.restore(found.path, found.evaluation, verified=True)
        self.checkpointer.require_savable()


def _frozen_part(setup: Setup) -> FrozenPart | None:
    """What the recipe freezes for a while; before DDP looks at which parameters take gradients."""
    recipe = setup.recipe
    if not recipe.frozen:
        return None
    needs_gradients = setup.accelerator.num_processes > 1
    until = setup.plan.unfreeze_step
    return FrozenPart(recipe.model, recipe.frozen, until, needs_gradients, recipe.optimizer)


def _convert_model(setup: Setup) -> None:
    """Change the model as asked for, and check that no output changes."""
    recipe, options, accelerator = setup.recipe, setup.options, setup.accelerator
    model = recipe.model.to(accelerator.device)
    # read where it is needed
    image = cache(partial(setup.plan.first_image, accelerator.device))
    if recipe.sync_batch_norm and accelerator.num_processes > 1:
        with unchanged(model, image(), "sync_batch_norm"):
            synchronised(model, accelerator)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.activation_checkpointing:
        with unchanged(model, image(), "activation_checkpointing"):
            checkpoint_activations(model)


def _weight_use(setup: Setup, task_module: TaskModule) -> WeightUse:
    """Where weights are used for two images, in training and in an evaluation."""
    images = setup.plan.first_image(setup.accelerator.device).repeat(2, 1, 1, 1)
    return weight_use(task_module, lambda: task_module.outputs(images))


def _prepare(setup: Setup) -> nn.Module:
    """Model and task as one module, and the optimizer, wrapped for processes and precision."""
    optimizer = setup.recipe.optimizer
    task_module = TaskModule(setup.recipe.model, setup.recipe.task, setup.distillation)
    require_supported(optimizer, task_module)
    require_same_updates(optimizer, setup.accelerator)
    prepared = prepare(
        setup.accelerator,
        task_module,
        optimizer,
        partial(_weight_use, setup, task_module),
        setup.display.note,
    )
    to_weights(optimizer)
    if has_modes(optimizer):
        switch_mode(optimizer, training=True)
    return prepared

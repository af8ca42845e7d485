"""One step: from a batch to one optimizer update, on any number of processes.

Its gradient is that of sum(loss) / count over the valid targets of the whole batch, in any number
of micro-batches: the counts are summed over the processes before the first backward pass, so no
mean of means occurs. They are on their way while the first forward pass runs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainkit.data.seeding import MIX, POSITION, PREPARE, fold, seed_step
from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import no_sync, settle_buckets
from trainkit.distributed.sharded_tensors import gathered
from trainkit.distributed.unwrapping import without_compile
from trainkit.engine.clipping import clipper
from trainkit.engine.ema import EMA
from trainkit.engine.exchange import Exchange
from trainkit.engine.oom import OomFallback
from trainkit.engine.optimizer_state import of_torch, set_lr, trained_and_others
from trainkit.engine.reporting import Reporter
from trainkit.engine.rollback import StepSnapshot
from trainkit.engine.setup import Setup
from trainkit.engine.state import StepStats, TrainState
from trainkit.engine.stop_signal import StopFlag
from trainkit.engine.task_module import set_images, set_step
from trainkit.errors import UserError, is_out_of_memory, may_fail_alone
from trainkit.models.freezing import FrozenPart
from trainkit.models.outputs import raise_refusal

# Of a static graph DDP learns in a first backward how often it meets each weight, and in a second
# one in which order, for the buckets that it lays out after. The order of a sum over more than two
# processes depends on these: both are left out, else the first steps after a resume would differ by
# a rounding.
SETTLED = 2


class Stepper:
    """Makes one optimizer update from a batch.

    Where forward or backward fails, everything is as it was before.
    """

    def __init__(
        self,
        setup: Setup,
        task_module: nn.Module,
        to_device: ToDevice,
        ema: EMA | None,
        frozen: FrozenPart | None,
        state: TrainState,
        reporter: Reporter,
        stop: StopFlag,
    ):
        """Keep the parts of a step.

        Args:
            setup: of the training.
            task_module: model and task, wrapped for processes and precision.
            to_device: that moves and normalises a batch.
            ema: averages to update, or None.
            frozen: what is not trained before some step, or None.
            state: where the start of an update is recorded.
            reporter: of smaller micro-batches after running out of memory.
            stop: hears in each step whether a process is asked to stop.
        """
        self.recipe = recipe = setup.recipe
        self.options = options = setup.options
        self.accelerator = setup.accelerator
        self.plan = setup.plan
        self.task_module = task_module
        self.to_device = to_device
        self.ema = ema
        self.frozen = frozen
        self.state = state
        # the optimizer's in the order of the model; others that get gradients all the same
        self.weights, self.others = trained_and_others(task_module, recipe.optimizer)
        self.clip = clipper(recipe)
        self.snapshot = StepSnapshot(
            recipe.model,
            recipe.optimizer,
            updates=options.on_nonfinite == "skip" and of_torch(recipe.optimizer),
        )
        self.oom = OomFallback(
            setup=setup,
            task_module=task_module,
            reporter=reporter,
            take_back=self._take_back,
        )
        inner = without_compile(task_module)
        static = isinstance(inner, DistributedDataParallel) and inner.static_graph
        self._left_to_settle = SETTLED if static else 0
        # what does not change is asked for once, as a property of accelerate's takes 0.3 us
        self._num_processes = setup.accelerator.num_processes
        self._rank = setup.accelerator.process_index
        self._exchange = Exchange(self._num_processes, stop)
        self._count = (recipe.task if setup.distillation is None else setup.distillation).counts
        self._changes_with_step = recipe.task.provides("at_step")
        self._prepares_targets = recipe.task.provides("prepare")
        self._draws_by_image = recipe.task.provides("at_images")
        # called once, with the images and targets of the next step as the network gets them
        self.show_batch: Callable[[Tensor, Tensor], None] | None = None

    def start(self) -> None:
        """Put the model into training mode, before the first step."""
        self.task_module.train()
        settle_buckets(self.task_module, _backward)

    @may_fail_alone()
    def __call__(self, step: int, images: Tensor, targets: Tensor) -> StepStats:
        """Make one optimizer update from this process's share of a batch.

        Nothing here waits for a GPU.

        Args:
            step: number of the step, counted from 0.
            images: this process's, as read: (N, C, H, W).
            targets: of the images, one row each.

        Returns:
            Losses, gradient norm and number of targets, on the device.

        Raises:
            UserError: no gradient reached the optimizer's parameters.
            MemoryError: one image does not fit, or the other processes wait for this one.
        """
        recipe, accelerator = self.recipe, self.accelerator
        if self._changes_with_step:
            set_step(recipe.task, recipe.model, (step, self.plan.total_steps))
        self._set_learning_rates(step)
        if self.frozen is not None:
            self.frozen.at_step(step)
        self.snapshot.keep()
        images, targets = self._mixed(step, *self.to_device(images, targets))
        if self.show_batch is not None:
            self.show_batch(images, targets)
            self.show_batch = None
        if self._prepares_targets:
            targets = self._prepared(step, images, targets)
        self._start_counting(step, targets)
        # forward, loss and backward, which is `_forward_backward`: (K,), this process's part
        losses = self._gradients(step, images, targets)

        self.state.updating = True
        if self.frozen is not None:
            self.frozen.drop_gradients(step)
        if accelerator.scaler is not None:  # of fp16
            accelerator.scaler.unscale_(recipe.optimizer)
        weights, gradients = self._with_gradients(step)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        grad_norm = gathered(norm).view(1).to(losses)
        if self._num_processes > 1:
            grad_norm = grad_norm / self._num_processes
        stats = StepStats(losses, grad_norm, self._exchange.counts())
        if self.clip is not None:
            self.clip(weights, norm)
        skipped = self._update(self._is_to_skip(stats))
        self._zero_gradients()
        if self.ema is not None:
            self.ema.update(skipped)
        return stats

    def _set_learning_rates(self, step: int) -> None:
        groups = self.recipe.optimizer.param_groups
        for group, asked, multiplier in zip(groups, self.plan.groups, self.plan.multipliers(step)):
            set_lr(group, asked["lr"] * multiplier)

    def _mixed(self, step: int, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.recipe.mix is None:
            return images, targets
        # for one that does not draw by its seed alone
        seed_step(self.options.seed, step, self._rank, MIX)
        return self.recipe.mix(images, targets, fold(self.options.seed, MIX, step))

    def _prepared(self, step: int, images: Tensor, targets: Tensor) -> Tensor:
        seed_step(self.options.seed, step, self._rank, PREPARE)
        with torch.no_grad():
            return self.recipe.task.prepare(images, targets)

    def _start_counting(self, step: int, targets: Tensor) -> None:
        """Begin to sum the valid targets of each loss over the processes."""
        counts = self._count(targets)  # (K,)
        # a padding sample, counted nowhere
        if self._num_processes > 1 and not sum(self.plan.order.passes(step, self._rank)):
            counts = counts * 0
        self._exchange.start(counts)

    def _gradients(self, step: int, images: Tensor, targets: Tensor) -> Tensor:
        """Run `_forward_backward` over this process's share, by way of `self.oom`.

        Out of memory, it is called again with smaller micro-batches. After an error no gradient is
        left.
        """
        forward_backward = partial(self._forward_backward, step, images, targets)
        try:
            while self._left_to_settle:
                self.oom.gradients(step, forward_backward)
                self._take_back()
                self._left_to_settle -= 1
            return self.oom.gradients(step, forward_backward)
        except Exception as error:
            self._take_back()
            raise_refusal(self.recipe.model, error)
            raise

    def _forward_backward(
        self, step: int, images: Tensor, targets: Tensor, task_module: nn.Module
    ) -> tuple[Tensor, str | None]:
        """Compute loss and gradients of this process's share, micro-batch by micro-batch.

        Returns:
            This process's part of each of the task's K loss terms (K,); or on OOM what is not to be
            read, and the allocator's message.
        """
        accelerator = self.accelerator
        # 0: a padding sample that counts nowhere
        sizes = self.plan.order.passes(step, self._rank)
        begin = self.plan.order.share(step, self._rank).start if self._draws_by_image else 0
        seed_step(self.options.seed, step, self._rank)
        losses: list[Tensor] = []  # (K,) of each micro-batch
        counts: Tensor | None = None  # (K,), of the batch
        first = 0
        try:
            for number, size in enumerate(sizes, 1):
                part = slice(first, first + size) if size else slice(0, 1)
                first += size
                if self._draws_by_image:
                    positions = range(begin + part.start, begin + part.stop)
                    seed = fold(self.options.seed, POSITION, step)
                    set_images(self.recipe.task, self.recipe.model, seed, positions)
                parts = images, targets
                if size != images.shape[0]:  # else all of them, which need no views
                    parts = images[part], targets[part]
                if number == len(sizes) or self.options.static_graph:
                    syncing: AbstractContextManager = nullcontext()
                else:
                    syncing = no_sync(accelerator, self.task_module)
                with syncing:
                    sums = task_module(*parts)  # (K,)
                    if counts is None:
                        # 1 where no target is valid: such a batch has loss 0
                        counts = torch.threshold(self._exchange.counts(), 0, 1)
                    terms = sums / counts
                    if not size:
                        terms = terms * 0
                    loss = terms if terms.numel() == 1 else terms.sum()
                    if self._num_processes > 1:  # the wrapper averages over them
                        loss = loss * self._num_processes
                    if accelerator.scaler is not None:
                        loss = accelerator.scaler.scale(loss)
                    _backward(loss)
                losses.append(terms.detach().float())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # not the error itself: it holds on to what was allocated
            return images.new_empty(0), str(error).splitlines()[0]
        return reduce(torch.add, losses), None

    def _with_gradients(self, step: int) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The optimizer's parameters that received a gradient, and these.

        Raises UserError where none did.
        """
        found = [(weight, weight.grad) for weight in self.weights]
        weights = [weight for weight, gradient in found if gradient is not None]
        if not weights:
            raise UserError(
                f"no gradient reached the {len(self.weights)} parameters of optimizer"
                f" {type(self.recipe.optimizer).__name__} in step {step + 1}: they are unused in"
                " the loss, or requires_grad is False"
            )
        return weights, [gradient for _, gradient in found if gradient is not None]

    def _is_to_skip(self, stats: StepStats) -> Tensor | None:
        """Whether losses or norm are non-finite, a boolean on the device; None without skipping."""
        if self.options.on_nonfinite != "skip":
            return None
        return ~self.accelerator.reduce(torch.cat(stats.row), "sum").isfinite().all()

    def _update(self, failed: Tensor | None) -> Tensor | None:
        """Make one optimizer update, unless `failed`: None for never, but what fp16's scaler says.

        Returns whether it was left out, a boolean on the device, or None where none can be.
        """
        optimizer, scaler = self.recipe.optimizer, self.accelerator.scaler
        skipped = failed
        if failed is not None and not self.snapshot.updates and failed:  # waits for the device
            self.snapshot.restore_buffers()
        elif scaler is None:
            optimizer.step()
        else:
            if failed is None:
                # which its update forgets
                (overflow,) = scaler._found_inf_per_device(optimizer).values()
                skipped = overflow.bool()
            scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        if failed is not None and self.snapshot.updates:
            self.snapshot.restore_where(failed)
        return skipped

    def _take_back(self) -> None:
        """Undo forward and backward."""
        self._zero_gradients()
        self.snapshot.restore_buffers()

    def _zero_gradients(self) -> None:
        """Drop the gradients of all parameters; those that are not the optimizer's accumulate."""
        for weight in self.weights:
            weight.grad = None
        for weight in self.others:
            weight.grad = None


def _backward(loss: Tensor) -> None:
    loss.backward()

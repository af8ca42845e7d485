"""Repeats a step in smaller micro-batches on out of memory (OOM).

The batch, and with it what a step computes, stays.
"""

import gc
import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainkit.distributed.unwrapping import without_compile
from trainkit.engine.reporting import Reporter
from trainkit.engine.setup import Setup
from trainkit.errors import UserError

# Forward and backward of a step through a module: losses (K,), and the allocator's message on OOM.
ForwardBackward = Callable[[nn.Module], tuple[Tensor, str | None]]

# steps of several processes that are first tried without each other: the second has the optimizer's
# state
TRIED = 2


class OomFallback:
    """Computes a step's gradients; on out of memory (OOM), in smaller micro-batches.

    With several processes, each tries the first steps without gradient sync: the others would wait
    for one that is out of memory. After that, the run has to end and resume with smaller
    micro-batches.
    """

    def __init__(
        self,
        setup: Setup,
        task_module: nn.Module,
        reporter: Reporter,
        take_back: Callable[[], None],
    ):
        """Keep what a step is repeated with.

        Args:
            setup: with the plan, whose micro-batch is made smaller.
            task_module: as wrapped for processes and precision.
            reporter: that notes it and remembers the micro-batch for a resume.
            take_back: undoes forward and backward of a step.
        """
        self.task_module = task_module
        self.plan = setup.plan
        self.accelerator = setup.accelerator
        self.reporter = reporter
        self.take_back = take_back
        inner = without_compile(task_module)
        # SyncBN asks the others itself, and a static graph is learnt from all backward passes that
        # there are.
        waits = setup.recipe.sync_batch_norm or setup.options.static_graph
        self._alone: nn.Module | None = None
        if isinstance(inner, DistributedDataParallel) and not waits:
            self._alone = inner.module
        self._trials_left = 0 if self._alone is None else TRIED

    def gradients(self, step: int, forward_backward: ForwardBackward) -> Tensor:
        """Compute the gradients of `step` into the parameters; the losses (K,).

        Raises:
            MemoryError: no smaller micro-batch is left, or the other processes wait by now.
            UserError: parameters received no gradient, which DDP would wait for.
        """
        if self._alone is not None and self._trials_left:
            self._try_alone(self._alone, step, forward_backward)
        while True:
            losses, problem = forward_backward(self.task_module)
            if problem is None:
                return losses
            self.take_back()
            self._halve(step, problem, alone=True)
            if self.accelerator.num_processes > 1:
                raise MemoryError(
                    f"process {self.accelerator.process_index} ran out of memory in step"
                    f" {step + 1}: {problem}. The same command resumes from the last checkpoint,"
                    " with smaller micro-batches"
                )

    def skip_trials(self) -> None:
        """Try no step by each process alone."""
        self._trials_left = 0

    def _try_alone(self, alone: nn.Module, step: int, forward_backward: ForwardBackward) -> None:
        """Make micro-batches so small that the step fits into the memory of every process."""
        while True:
            _, problem = forward_backward(alone)
            model = alone.get_submodule("model")
            unused = [name for name, weight in model.named_parameters() if _is_unused(weight)]
            self.take_back()
            ran_out = torch.tensor(float(problem is not None), device=self.accelerator.device)
            if self.accelerator.reduce(ran_out, "sum"):
                self._halve(step, problem or "another process ran out of memory", alone=False)
            elif unused:
                _refuse_unused(step, unused)
            else:
                self._trials_left -= 1
                return

    def _halve(self, step: int, problem: str, alone: bool) -> None:
        """Halve the micro-batch; with `alone` no other process knows."""
        order = self.plan.order
        now = max(max(order.passes(step, process)) for process in range(order.num_processes))
        smaller = math.ceil(now / 2 / order.unit) * order.unit
        if smaller >= now:
            raise MemoryError(
                f"out of memory in step {step + 1} with a micro-batch of {now}, the minimum:"
                f" {problem}. Use smaller images, a smaller model, or a lower precision (accelerate"
                " launch --mixed_precision bf16)"
            )
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.plan.use_micro_batch(smaller)
        self.reporter.remember_micro_batch(smaller, alone)
        self.reporter.note(
            f"out of memory in step {step + 1} with {now} images in a micro-batch: from here on"
            f" {smaller}, in batches of {self.plan.recipe.batch_size} as before"
        )


def _is_unused(weight: nn.Parameter) -> bool:
    return weight.requires_grad and weight.grad is None


def _refuse_unused(step: int, unused: list[str]) -> NoReturn:
    raise UserError(
        f"{len(unused)} parameters received no gradient (unused) in step {step + 1}"
        f" ({', '.join(unused[:3])}), and the other processes would wait for their gradients: set"
        " requires_grad to False or leave them out of the model; --static-graph allows it where"
        " they are the same in every step"
    )

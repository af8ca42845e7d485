"""One step: from a batch to one optimizer update, on any number of processes and in any number of passes.

Its gradient is that of sum(loss) / count over the valid targets of the whole batch: the counts are summed over
the processes before the first backward pass, so no mean of means occurs.
"""

import gc
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from trainkit.data.loader import make_loader
from trainkit.data.sampler import Batches
from trainkit.data.seeding import MIX, PREPARE, fold, seed_step
from trainkit.distributed.fsdp import gathered, no_sync, settle_buckets
from trainkit.distributed.unwrapping import without_compile
from trainkit.engine.checkpointing import rehearse, remember_micro_batch
from trainkit.engine.optimizer_state import set_lr
from trainkit.engine.state import Training
from trainkit.engine.task_module import set_step
from trainkit.errors import UserError, is_out_of_memory
from trainkit.outputs import refusals_told

# steps of several processes that are first tried without each other: the second has the optimizer's state
TRIED = 2

# Of a static graph DDP learns in a first backward how often it meets each weight, and in a second one in which order,
# for the buckets that it lays out after. The order of a sum over more than two processes depends on these: both are
# left out, else the first steps after a resume would differ by a rounding.
SETTLED = 2


def steps(t: Training, stop: int) -> Iterator[int]:
    """Train up to step `stop`, and yield the number of steps done after each."""
    start, order = t.progress.step, t.plan.order
    skipping = t.options.on_bad_image == "skip"
    loader = make_loader(
        t.recipe.train_data,
        t.options.seed,
        Batches(order, start, stop, t.accelerator.process_index),
        t.workers,
        t.accelerator.device,
        t.recipe.task.own_check,
        order.neighbour if skipping else None,
    )
    t.objective.train()
    settle_buckets(t.objective, _backward)
    clock = time.perf_counter()
    for step, (images, targets, replaced) in enumerate(loader, start):
        t.whole = False
        train_step(t, step, images, targets)
        # of steps that are done: one that fails reads them again when the run is resumed
        t.bad_images += replaced
        if step == start:  # the optimizer has made its state
            rehearse(t)
        t.progress.step = step + 1
        t.progress.images += order.num_images_of(step)
        t.progress.train_seconds += time.perf_counter() - clock
        t.whole = True
        yield step + 1
        clock = time.perf_counter()


def train_step(t: Training, step: int, images: Tensor, targets: Tensor) -> None:
    """One optimizer update from this process's share of the batch. Nothing here waits for a GPU.

    Its losses and its gradient norm are added to `t.window`, which the log reads.
    """
    recipe, accelerator, optimizer = t.recipe, t.accelerator, t.recipe.optimizer
    set_step(recipe.task, recipe.model, (step, t.plan.total_steps))
    multiplier = t.plan.multiplier(step)
    for group, asked in zip(optimizer.param_groups, t.groups):
        set_lr(group, asked["lr"] * multiplier)
    t.undo.keep()

    images, targets = t.to_device(images, targets)
    if recipe.mix is not None:
        # for one that does not draw by its seed alone
        seed_step(t.options.seed, step, accelerator.process_index, MIX)
        images, targets = recipe.mix(images, targets, fold(t.options.seed, MIX, step))
    if recipe.task.provides("prepare"):
        seed_step(t.options.seed, step, accelerator.process_index, PREPARE)
        with torch.no_grad():
            targets = recipe.task.prepare(images, targets)
    counts = recipe.task.counts(targets)
    if accelerator.num_processes > 1:
        # a filler, counted nowhere
        if not sum(t.plan.order.passes(step, accelerator.process_index)):
            counts = counts * 0
        counts = accelerator.reduce(counts, "sum")  # (K,), of the batch
    t.targets = counts[0] if t.targets is None else t.targets + counts[0]
    counts = counts + (counts <= 0)  # a batch without a valid target has loss 0
    try:
        with refusals_told(recipe.model):
            losses = _gradients(t, step, images, targets, counts)  # (K,), this process's part
    except Exception:
        _zero_gradients(t)
        t.undo.buffers_back()
        t.whole = True  # the steps before are as they were, and can be saved
        raise

    scaler = accelerator.scaler  # of fp16
    if scaler is not None:
        scaler.unscale_(optimizer)
    weights = [weight for weight in t.weights if weight.grad is not None]
    if not weights:
        raise UserError(
            f"no gradient reached the {len(t.weights)} parameters of optimizer {type(optimizer).__name__} in step "
            f"{step + 1}: they have no part in the loss, or requires_grad is False"
        )
    norm = torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm([weight.grad for weight in weights]))
    )
    # (K + 1,)
    row = torch.cat(
        [losses, gathered(norm).detach().view(1).to(losses) / accelerator.num_processes]
    )
    failed = (
        ~accelerator.reduce(row, "sum").isfinite().all()
        if t.options.on_nonfinite == "skip"
        else None
    )
    if recipe.clip_norm is not None:
        clip_grads_with_norm_(weights, recipe.clip_norm, norm)
    skipped = _update(t, failed)
    _zero_gradients(t)
    if t.ema is not None:
        t.ema.update(skipped)
    t.window.append(row)


def _update(t: Training, failed: Tensor | None) -> Tensor | None:
    """One optimizer update; whether it was left out, a boolean on the device, or None where none can be.

    failed: whether to leave it out; None for never, but what fp16's scaler decides.
    """
    optimizer, scaler = t.recipe.optimizer, t.accelerator.scaler
    skipped = failed
    if failed is not None and not t.undo.updates and failed:  # waits for the device
        t.undo.buffers_back()
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
    if failed is not None and t.undo.updates:
        t.undo.back_where(failed)
    return skipped


def _zero_gradients(t: Training) -> None:
    """Of all parameters, for what is not the optimizer's would pile up."""
    t.recipe.optimizer.zero_grad()
    for weight in t.others:
        weight.grad = None


def _gradients(t: Training, step: int, images: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Forward and backward over this process's share, in smaller passes where memory runs out; losses (K,)."""
    inner = without_compile(t.objective)
    # SyncBN asks the others itself, and a static graph is learnt from all backward passes that there are.
    trying = isinstance(inner, DistributedDataParallel) and not (
        t.recipe.sync_batch_norm or t.options.static_graph
    )
    while trying and t.tried < TRIED:
        # The others would wait for one whose memory ran out: try without them, and agree.
        _, problem = _passes(t, inner.module, step, images, targets, counts)
        unused = [
            name for name, weight in inner.module.model.named_parameters() if _waited_for(weight)
        ]
        _zero_gradients(t)
        t.undo.buffers_back()
        if t.accelerator.reduce(
            torch.tensor(float(problem is not None), device=counts.device), "sum"
        ):
            _halve(t, step, problem or "another process ran out of memory", alone=False)
        elif unused:
            raise UserError(
                f"{len(unused)} weights have no part in the loss of step {step + 1} ({', '.join(unused[:3])}), and the "
                "other processes would wait for their gradients: set requires_grad to False or leave them out of the "
                "model; --static-graph allows it where they are the same in every step"
            )
        else:
            t.tried += 1
            break
    static = isinstance(inner, DistributedDataParallel) and inner.static_graph
    while True:
        losses, problem = _passes(t, t.objective, step, images, targets, counts)
        settling = static and t.settled < SETTLED
        if problem is None and not settling:
            return losses
        _zero_gradients(t)
        t.undo.buffers_back()
        if problem is None:
            t.settled += 1
            continue
        _halve(t, step, problem, alone=True)
        if t.accelerator.num_processes > 1:
            raise MemoryError(
                f"process {t.accelerator.process_index} ran out of memory in step {step + 1}: {problem}. The same "
                "command goes on from the last checkpoint, with smaller passes"
            )


def _passes(
    t: Training, objective: nn.Module, step: int, images: Tensor, targets: Tensor, counts: Tensor
) -> tuple[Tensor, str | None]:
    """Forward and backward in passes; losses (K,), and the allocator's words where memory ran out."""
    accelerator = t.accelerator
    sizes = t.plan.order.passes(step, accelerator.process_index)  # 0: a filler that counts nowhere
    seed_step(t.options.seed, step, accelerator.process_index)
    losses = torch.zeros_like(counts, dtype=torch.float32)
    processes, first = accelerator.num_processes, 0
    try:
        for number, size in enumerate(sizes, 1):
            part = slice(first, first + size) if size else slice(0, 1)
            first += size
            with (
                nullcontext()
                if number == len(sizes) or t.options.static_graph
                else no_sync(accelerator, t.objective)
            ):
                terms = objective(images[part], targets[part]) / counts  # (K,)
                terms = terms if size else terms * 0
                # the wrapper averages over them
                loss = terms.sum() * processes if processes > 1 else terms.sum()
                _backward(loss if accelerator.scaler is None else accelerator.scaler.scale(loss))
            losses += terms.detach()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # not the error itself: it holds on to what was allocated
        return losses, str(error).splitlines()[0]
    return losses, None


def _backward(loss: Tensor) -> None:
    loss.backward()


def _waited_for(weight: nn.Parameter) -> bool:
    return weight.requires_grad and weight.grad is None


def _halve(t: Training, step: int, problem: str, alone: bool) -> None:
    """Make the passes half as large; the batch, and with it the mathematics, stays. alone: no other process knows."""
    order = t.plan.order
    now = max(max(order.passes(step, process)) for process in range(order.num_processes))
    smaller = math.ceil(now / 2 / order.unit) * order.unit
    if smaller >= now:
        raise MemoryError(
            f"out of memory in step {step + 1} with a pass of {now}, the least there is: {problem}. "
            "Use smaller images, a smaller model, or a lower precision (accelerate launch --mixed_precision bf16)"
        )
    gc.collect()
    if t.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    remember_micro_batch(t, smaller, alone)
    t.display.note(
        f"out of memory in step {step + 1} with {now} images in a pass: from here on {smaller}, in batches of "
        f"{t.recipe.batch_size} as before"
    )

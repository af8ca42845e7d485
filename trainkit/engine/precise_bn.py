"""BatchNorm statistics re-estimated for evaluation (precise BN)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.loader import make_loader
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import seed_step
from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import reshard
from trainkit.distributed.unwrapping import without_wrappers
from trainkit.errors import UserError
from trainkit.recipe import Recipe

PASS = 16  # images whose mean and variance are one sample, whatever the batch and the processes are


class PreciseBatchNorm:
    """Mean and variance as they are under the current weights, not those of the last steps.

    Each is the mean over passes of 16 training images, the first `num_images` of an epoch in all,
    augmented as there: epoch 0, or where images grow the first one of the size that they end with.
    Of streamed files, where neighbours may be of one class, the passes take these images in another
    order. Training is not touched: the statistics it has counted are restored.

    Source:
        Wu and Johnson, 2021, Rethinking Batch in BatchNorm; in one process
        `torch.optim.swa_utils.update_bn`.
    """

    def __init__(
        self,
        recipe: Recipe,
        task_module: nn.Module,
        accelerator: Accelerator,
        to_device: ToDevice,
        seed: int,
        workers: int,
        num_images: int | None,
        on_bad_image: str = "stop",
    ):
        refuse_frozen(recipe, num_images)
        self.recipe = recipe
        self.task_module = task_module
        self.accelerator = accelerator
        self.to_device = to_device
        self.seed = seed
        self.workers = workers
        self.num_images = num_images or 0
        self.on_bad_image = on_bad_image
        norms = [module for module in recipe.model.modules() if isinstance(module, AnyBatchNorm)]
        self.norms = [norm for norm in norms if norm.running_mean is not None] if num_images else []

    @contextmanager
    def estimated(self) -> Iterator[None]:
        """Context manager: the model has these statistics."""
        was_training = self.task_module.training
        self.task_module.train()
        # the statistics of frozen ones stay
        self.norms = [norm for norm in self.norms if norm.training]
        if not self.norms:
            self.task_module.train(was_training)
            yield
            return
        kept = [(buffer, buffer.clone()) for norm in self.norms for buffer in norm.buffers()]
        momenta = [norm.momentum for norm in self.norms]
        try:
            self._estimate()
            self.task_module.train(was_training)
            yield
        finally:
            for norm, momentum in zip(self.norms, momenta):
                norm.momentum = momentum
            with torch.no_grad():
                for buffer, copy in kept:
                    buffer.copy_(copy)

    @torch.no_grad()
    def _estimate(self) -> None:
        accelerator = self.accelerator
        passes = self._passes()
        mine = list(range(accelerator.process_index, len(passes), accelerator.num_processes))
        if len(mine) < -(-len(passes) // accelerator.num_processes):
            mine.insert(0, 0)  # a padding batch, discarded before the first that counts
        batches = [[(self._epoch, index) for index in passes[number]] for number in mine]
        loader = make_loader(
            self.recipe.train_data,
            self.seed,
            batches,
            self.workers,
            accelerator.device,
            self.recipe.task.own_check,
            self._order.neighbour if self.on_bad_image == "skip" else None,
        )
        # DDP would take the first process's statistics over; there is no gradient it could be
        # needed for.
        inner = without_wrappers(self.task_module)
        counted = 0
        for number, (images, targets, _) in zip(mine, loader):
            if not counted:
                for norm in self.norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # the mean of all so far
            seed_step(self.seed, number, 0)
            images, targets = self.to_device(images, targets)
            inner(images, self.recipe.task.prepare(images, targets))
            counted += number % accelerator.num_processes == accelerator.process_index
        reshard(inner)
        for norm in self.norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None  # of all in self.norms
                statistic.copy_(accelerator.reduce(statistic * (counted / len(passes)), "sum"))

    @property
    def _epoch(self) -> int:
        final_epoch = DatasetInfo.of(self.recipe.train_data).final_epoch
        return min(final_epoch, math.ceil(self.recipe.epochs) - 1)

    @property
    def _order(self) -> TrainOrder:
        data = self.recipe.train_data
        info = DatasetInfo.of(data)
        return TrainOrder(
            len(data),
            self.recipe.batch_size,
            self.seed,
            repeats=info.repeats,
            locality=info.locality,
        )

    def _passes(self) -> list[list[int]]:
        """Images of each pass, the same for any number of processes."""
        order = self._order.epoch(self._epoch)
        if len(order) < PASS:
            return [order.tolist()]
        num_passes = max(1, min(self.num_images, len(order)) // PASS)
        if self.recipe.sync_batch_norm:  # all processes make each pass together
            num_passes = (
                -(-num_passes // self.accelerator.num_processes) * self.accelerator.num_processes
            )
        places = torch.arange(num_passes * PASS) % len(order)
        if self._order.locality is not None:
            places = places[
                torch.randperm(len(places), generator=torch.Generator().manual_seed(self.seed))
            ]
        return order[places].view(num_passes, PASS).tolist()


def refuse_frozen(recipe: Recipe, num_images: int | None) -> None:
    """Raise UserError where the statistics of a part that is frozen for a while would change."""
    if num_images and recipe.frozen:
        raise UserError(
            f"precise_bn is {num_images}, and a part of the model is frozen, whose statistics it"
            " would estimate too: give either --precise-bn or --freeze"
        )

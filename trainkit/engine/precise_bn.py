"""BatchNorm statistics re-estimated for evaluation (precise BN)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.loader import make_loader
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import seed_step
from trainkit.distributed.fsdp import reshard
from trainkit.distributed.unwrapping import without_wrappers
from trainkit.errors import UserError
from trainkit.recipe import Recipe

if TYPE_CHECKING:
    from trainkit.engine.evaluator import Evaluator

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

    def __init__(self, evaluator: "Evaluator"):
        """Find the batch norms of the model; none where the evaluator's `precise_bn` is None or 0.

        Raises:
            UserError: a part of the model is frozen for a while.
        """
        refuse_frozen(evaluator.recipe, evaluator.precise_bn)
        self.evaluator = evaluator
        self.recipe = evaluator.recipe
        self.task_module = evaluator.task_module
        self.accelerator = evaluator.accelerator
        self.num_images = evaluator.precise_bn or 0
        self.norms: list[AnyBatchNorm] = []  # whose statistics are estimated
        if self.num_images:
            norms = [each for each in self.recipe.model.modules() if isinstance(each, AnyBatchNorm)]
            self.norms = [norm for norm in norms if norm.running_mean is not None]

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
            self.evaluator.seed,
            batches,
            self.evaluator.workers,
            accelerator.device,
            self.recipe.task.own_check,
            self._order.replacement if self.evaluator.on_bad_image == "skip" else None,
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
            seed_step(self.evaluator.seed, number, 0)
            images, targets = self.evaluator.to_device(images, targets)
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
        order = TrainOrder(
            len(data),
            self.recipe.batch_size,
            self.evaluator.seed,
            repeats=info.repeats,
            locality=info.locality,
        )
        return replace(order, version=self.evaluator.order or order.newest_version)

    def _passes(self) -> list[list[int]]:
        """Images of each pass, the same for any number of processes."""
        order = self._order
        if order.num_images < PASS:
            return [order.indices(self._epoch, np.arange(order.num_images))]
        num_passes = max(1, min(self.num_images, order.num_images) // PASS)
        if self.recipe.sync_batch_norm:  # all processes make each pass together
            num_passes = (
                -(-num_passes // self.accelerator.num_processes) * self.accelerator.num_processes
            )
        places = torch.arange(num_passes * PASS) % order.num_images
        if order.locality is not None:
            places = places[
                torch.randperm(
                    len(places), generator=torch.Generator().manual_seed(self.evaluator.seed)
                )
            ]
        indices = iter(order.indices(self._epoch, places.numpy()))
        return [list(islice(indices, PASS)) for _ in range(num_passes)]


def refuse_frozen(recipe: Recipe, num_images: int | None) -> None:
    """Raise UserError where the statistics of a part that is frozen for a while would change."""
    if num_images and recipe.frozen:
        raise UserError(
            f"precise_bn is {num_images}, and a part of the model is frozen, whose statistics it"
            " would estimate too: give either --precise-bn or --freeze"
        )

"""An evaluation: every image of the validation data exactly once, on any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from trainkit.batch_norm import PreciseBatchNorm
from trainkit.data.loader import make_loader
from trainkit.data.order import evaluation_batches
from trainkit.ema import EMA
from trainkit.metrics import each_metric
from trainkit.objective import ToDevice
from trainkit.recipe import Recipe
from trainkit.sharding import agree_on_buffers, reshard


@dataclass(frozen=True)
class Evaluation:
    """What measures the weights that a recipe's model has at the time."""

    recipe: Recipe
    objective: nn.Module  # as prepared for processes and precision
    accelerator: Accelerator
    to_device: ToDevice
    seed: int
    workers: int
    ema: EMA | None
    batch_norm: PreciseBatchNorm

    def measure(self, stop: Callable[[], int] = lambda: 0) -> dict[str, Any] | None:
        """`num_images` and the figures of the task's metrics, those of the averaged weights as "ema_...".

        None where `stop`, asked after each batch, says so. Metrics with `counts` are summed over the processes
        once, at the end. Others, from `evaluate`, are given the plain labels of all processes batch by batch. Raises
        RuntimeError where not every image was seen once.
        """
        with self.batch_norm.estimated():
            results = self._measure(stop)
        if results is None or self.ema is None:
            return results
        with self.ema.swapped(), self.batch_norm.estimated():
            averaged = self._measure(stop)
        if averaged is None:
            return None
        return results | {f"ema_{name}": value for name, value in averaged.items() if name != "num_images"}

    @torch.no_grad()
    def _measure(self, stop: Callable[[], int]) -> dict[str, Any] | None:
        recipe, objective, accelerator = self.recipe, self.objective, self.accelerator
        batches, valid = evaluation_batches(
            len(recipe.val_data), recipe.eval_batch_size, accelerator.process_index, accelerator.num_processes
        )
        metrics = recipe.task.metrics()
        single = [one for metric in metrics for one in each_metric(metric)]
        counting = [metric for metric in single if hasattr(metric, "counts")]
        others = [metric for metric in single if not hasattr(metric, "counts")]
        was_training = objective.training
        objective.eval()
        agree_on_buffers(objective)
        loader = make_loader(
            recipe.val_data, self.seed, batches, self.workers, accelerator.device, getattr(recipe.task, "check", None)
        )
        for (images, targets, _), count in zip(loader, valid):
            images, targets = self.to_device(images, targets)
            predictions = objective(images, targets)[:count]  # beyond `count`: a filler, see evaluation_batches
            targets = targets[:count]
            for metric in counting if count else ():
                metric.add_batch(predictions=predictions, references=targets)
            if others:
                _add_gathered(others, recipe.task.labels(predictions), targets)
            if stop():
                reshard(objective)
                return None
        objective.train(was_training)
        reshard(objective)

        num_images = int(accelerator.reduce(torch.tensor(sum(valid), device=accelerator.device), "sum"))
        if num_images != len(recipe.val_data):
            raise RuntimeError(f"the evaluation saw {num_images} images of {len(recipe.val_data)}")
        for metric in counting:
            metric.counts = accelerator.reduce(metric.counts.to(accelerator.device), "sum")
        results: dict[str, Any] = {"num_images": num_images}
        for metric in metrics:
            results |= metric.compute()
        return results


def _add_gathered(metrics: list, labels: Tensor, targets: Tensor) -> None:
    """Give metrics that cannot be summed over processes the labels of all of them."""
    for predictions, references in gather_object([(labels.cpu().numpy(), targets.cpu().numpy())]):
        for metric in metrics if len(predictions) else ():
            metric.add_batch(predictions=predictions, references=references)

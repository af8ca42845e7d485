"""Several evaluations that take turns, so that the validation data is read once for all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import tee
from typing import Any, Self

import psutil
import torch

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.likeness import difference
from trainkit.data.reader import Reader
from trainkit.data.repeatability import value_digest
from trainkit.data.sampler import EVALUATION
from trainkit.data.seeding import GeneratorStates, generators_kept
from trainkit.data.to_device import WHOLE
from trainkit.engine.evaluator import Evaluator, Results
from trainkit.inference import Inference
from trainkit.recipe import Recipe

NUM_READ = 16  # images that are read under two seeds


@dataclass(frozen=True)
class Reading:
    """How validation images are read, and which are seen together.

    Where it does not differ, one reading gives several networks what each would read itself. Mean
    and standard deviation may: images are normalised for each network.
    """

    val_data: SizedDataset
    eval_batch_size: int
    inference: Inference | None
    check: Callable | None
    """that workers make of each target"""
    seed: int
    """which counts where reading an image draws random numbers"""

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> Self:
        """That of a recipe's evaluations."""
        check = recipe.task.own_check
        return cls(recipe.val_data, recipe.eval_batch_size, recipe.inference, check, seed)

    def difference(self, other: "Reading") -> str | None:
        """In what another one differs, such as "val_data.transform.size"; None for nothing."""
        for each in fields(self):
            if each.name == "seed":
                continue
            found = difference(getattr(self, each.name), getattr(other, each.name), each.name)
            if found is not None:
                return found
        if self.seed != other.seed and _draws(self.val_data, [self.seed, other.seed]):
            return "seed"
        return None


def _draws(data: SizedDataset, seeds: Sequence[int]) -> bool:
    """Whether some of the images, read under each of the seeds, are not the same."""
    if DatasetInfo.of(data).draws_nothing:
        return False
    readers = [Reader(data, seed) for seed in seeds]
    number = min(NUM_READ, len(data))
    with generators_kept():
        for place in range(number):
            key = EVALUATION, len(data) * place // number
            if len({value_digest(list(reader[key][:2])) for reader in readers}) > 1:
                return True
    return False


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, in this moment."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def parted(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Places of consecutive sizes that sum to at most `room`; a larger one stands alone."""
    parts: list[list[int]] = []
    for place, size in enumerate(sizes):
        if parts and sum(sizes[each] for each in parts[-1]) + size <= room:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts


class OneReading:
    """The batches of one pass over the validation data, for every evaluation that takes part in it.

    Args:
        passes: how many passes each evaluation makes: 2 with EMA weights.
    """

    def __init__(self, passes: Sequence[int]):
        self.passes = passes
        self._open: dict[int, list[Iterator]] = {}  # those that nobody has taken, by the pass

    def of(self, number: int) -> Callable[[Callable[[], Iterable]], Iterable]:
        """`Evaluator.reading` of the evaluation `number`."""
        done = iter(range(self.passes[number]))
        return lambda make: self._take(next(done), make)

    def _take(self, number: int, make: Callable[[], Iterable]) -> Iterator:
        if number not in self._open:
            readers = sum(passes > number for passes in self.passes)
            self._open[number] = list(tee(make(), readers))
        return map(_own, self._open[number].pop())


def _own(batch: list[tuple]) -> list[tuple]:
    """A batch that a network may write into: whole numbers are copied when they are normalised."""
    return [
        (images if images.dtype in WHOLE else images.clone(), targets.clone(), places)
        for images, targets, places in batch
    ]


def taking_turns(
    evaluators: Sequence[Evaluator], started: Sequence[Callable[[Evaluator], Results]]
) -> list[dict[str, Any]]:
    """The results of evaluations whose recipes read alike, each as it would be alone.

    After what each does with a batch that was read the next one has its turn, with random numbers
    of its own. All processes go round in the same order.

    Args:
        evaluators: that measure, each a model of its own.
        started: makes the generator of each evaluation, see `Evaluator.by_batches`.
    """
    reading = OneReading([1 if each.ema is None else 2 for each in evaluators])
    results: dict[int, dict[str, Any]] = {}
    running = {
        number: start(replace(each, reading=reading.of(number)))
        for number, (each, start) in enumerate(zip(evaluators, started))
    }
    states = dict.fromkeys(running, GeneratorStates())
    while running:
        for number, passes in list(running.items()):
            states[number].restore()
            try:
                next(passes)
            except StopIteration as end:
                results[number] = end.value
                del running[number]
            states[number] = GeneratorStates()
    return [results[number] for number in range(len(evaluators))]

"""The forward passes of an evaluation, over images of all sizes, whole or in windows.

Each process reads as many batches of keys as the others, and one turn after another makes the
passes that are due then. Images of one size are put together (`trainkit.data.buckets`), so that the
number of passes is each process's own: only with sharded parameters do they agree on one, and those
with fewer make others of no account.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trainkit.data.buckets import Alike, Buckets, joined
from trainkit.data.loader import make_loader
from trainkit.data.sampler import EVALUATION, evaluation_batches
from trainkit.data.seeding import seed_step
from trainkit.distributed.fsdp import most_of_all
from trainkit.engine.image_rows import Measured
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.errors import UserError
from trainkit.inference import Inference

if TYPE_CHECKING:
    from trainkit.engine.evaluator import Evaluator

REMEDY = (
    "An evaluation skips no image, with --on-bad-image skip neither: its metrics are of all"
    " validation images (num_images). Repair the file, or take it out of them; trainkit doctor"
    " finds all that are unusable"
)
Read = tuple[list[Alike], bool]  # of a batch of keys, and whether they count


@dataclass(frozen=True)
class ForwardPasses:
    """Measures each validation image of an evaluator once, over all processes."""

    evaluator: "Evaluator"

    def turns(self) -> Iterator[Iterator[Measured]]:
        """Yield what is known of the images that are finished in each turn.

        There are as many turns in every process. Each is to be gone through before the next one is
        asked for.

        Raises:
            UserError: `predict` of the task gives another number of rows than it says.
        """
        recipe = self.evaluator.recipe
        if recipe.inference is not None:
            yield from self._in_windows(recipe.inference)
            return
        size, passes = recipe.eval_batch_size, 0
        buckets = Buckets(size)
        for read, counts in self._read(size):
            ready = list(buckets.add(read)) if counts else []
            filler = read[0].part(0, 1)
            yield self._whole(ready, passes, filler, known=1 if size == 1 else None)
            passes += len(ready)
        ready = list(buckets.rest())
        yield self._whole(ready, passes, filler, known=0 if size == 1 else None)

    def _read(self, together: int) -> Iterator[Read]:
        """Read this process's images, so many at a time."""
        evaluator, accelerator = self.evaluator, self.evaluator.accelerator
        data = evaluator.recipe.val_data
        batches, valid = evaluation_batches(
            len(data), together, accelerator.process_index, accelerator.num_processes
        )

        def make() -> Iterable:
            return make_loader(
                data,
                evaluator.seed,
                batches,
                evaluator.workers,
                accelerator.device,
                evaluator.recipe.task.own_check,
                remedy=REMEDY,
                by_kind=True,
            )

        loader = make() if evaluator.reading is None else evaluator.reading(make)
        for kinds, keys, count in zip(loader, batches, valid):
            found = [
                Alike(images, targets, [keys[place][1] for place in places])
                for images, targets, places in kinds
            ]
            yield found, count > 0

    def _whole(
        self, ready: Sequence[list[Alike]], before: int, filler: Alike, known: int | None
    ) -> Iterator[Measured]:
        """Make the passes of a turn.

        Args:
            ready: the images of each.
            before: how many passes this process has made.
            filler: an image for passes of no account, with sharded parameters.
            known: passes of the process that makes most, where it need not be asked for.
        """
        evaluator, together = self.evaluator, len(ready)
        if evaluator.runner.is_sharded:
            device = evaluator.accelerator.device
            together = most_of_all(together, device) if known is None else known
        for number, parts in enumerate(ready, before):
            self._seed(number)
            moved = [evaluator.to_device(part.images, part.targets) for part in parts]
            images, targets = (joined(column) for column in zip(*moved))
            predictions, losses = evaluator.runner(images, targets, with_losses=True)
            self._check_rows(predictions, targets)
            indices = [index for part in parts for index in part.indices]
            yield Measured(predictions, targets, losses, indices)
        for _ in range(len(ready), together):  # the others gather the weights of this one
            images, targets = evaluator.to_device(filler.images, filler.targets)
            evaluator.runner(images, targets, with_losses=True)

    def _seed(self, number: int) -> None:
        """Seed what the model may draw from in a pass."""
        evaluator = self.evaluator
        seed_step(evaluator.seed, EVALUATION - number, evaluator.accelerator.process_index)

    def _check_rows(self, predictions: Tensor, targets: Tensor) -> None:
        """Raise UserError where `predict` gave another number of rows than its task says."""
        task = self.evaluator.recipe.task
        if len(predictions) != task.rows_per_image * len(targets):
            raise UserError(
                f"task {type(task.given).__name__}: predict gave {len(predictions)} rows"
                f" for {len(targets)} images, and rows_per_image is {task.rows_per_image}"
            )

    def _in_windows(self, inference: Inference) -> Iterator[Iterator[Measured]]:
        """The same of images that are seen in windows, which may be finished in another order."""
        evaluator = self.evaluator
        waiting: dict[int, int] = {}  # index of each image, by the identity of its targets

        def read() -> Iterator[tuple[Tensor, Tensor | None]]:
            for number, ((alike,), counts) in enumerate(self._read(1)):
                self._seed(number)
                images, targets = evaluator.to_device(alike.images, alike.targets)
                if counts:
                    (waiting[id(targets)],) = alike.indices
                yield images, targets if counts else None

        black, layout = evaluator.to_device.black, evaluator.to_device.format
        inferer = SlidingWindowInferer(
            inference, evaluator.runner, evaluator.accelerator, black, layout
        )
        for finished in inferer.turns(read()):
            yield (self._merged(scores, targets, waiting) for scores, targets in finished)

    def _merged(self, scores: Tensor, targets: Tensor, waiting: dict[int, int]) -> Measured:
        task = self.evaluator.recipe.task
        return Measured(
            predictions=task.from_scores(scores),
            targets=targets,
            losses=self.evaluator.module.score_losses(scores, targets),
            indices=[waiting.pop(id(targets))],
        )

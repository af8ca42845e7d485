"""Forward passes of an evaluation: what they read, and what is known of the images afterwards."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainkit.data.loader import make_loader
from trainkit.data.sampler import EVALUATION, evaluation_batches
from trainkit.data.seeding import seed_step
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


def forward_passes(evaluator: "Evaluator", task_module: nn.Module) -> Iterator[list[Measured]]:
    """Yield what is known of the images that each forward pass finished.

    There are as many passes in every process.

    Args:
        evaluator: whose validation images are seen.
        task_module: its model and task.

    Raises:
        UserError: `predict` of the task gives another number of rows than it says.
    """
    recipe, accelerator = evaluator.recipe, evaluator.accelerator
    together = 1 if recipe.inference is not None else recipe.eval_batch_size
    batches, valid = evaluation_batches(
        len(recipe.val_data), together, accelerator.process_index, accelerator.num_processes
    )

    def make() -> Iterable:
        return make_loader(
            recipe.val_data,
            evaluator.seed,
            batches,
            evaluator.workers,
            accelerator.device,
            recipe.task.own_check,
            remedy=REMEDY,
        )

    read = make() if evaluator.reading is None else evaluator.reading(make)
    loader = _seeded(evaluator, read)
    if recipe.inference is not None:
        yield from _in_windows(evaluator, task_module, recipe.inference, loader, batches, valid)
        return
    for (images, targets, _), keys, count in zip(loader, batches, valid):
        images, targets = evaluator.to_device(images, targets)
        # beyond `count`: a padding sample, see evaluation_batches
        predictions, losses = task_module(images, targets, with_losses=True)
        rows = recipe.task.rows_per_image
        if len(predictions) != rows * len(targets):
            raise UserError(
                f"task {type(recipe.task.given).__name__}: predict gave {len(predictions)} rows"
                f" for {len(targets)} images, and rows_per_image is {rows}"
            )
        indices = [index for _, index in keys]
        yield [Measured(predictions, targets, losses, indices)] if count else []


def _in_windows(
    evaluator: "Evaluator",
    task_module: nn.Module,
    inference: Inference,
    loader: Iterator,
    batches: Sequence[list[tuple[int, int]]],
    valid: Sequence[int],
) -> Iterator[list[Measured]]:
    """The same of images that are seen in windows, which may be finished in another order."""
    task = evaluator.recipe.task
    waiting: dict[int, int] = {}  # index of each image, by the identity of its targets

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for (images, targets, _), keys, count in zip(loader, batches, valid):
            if count:
                images, targets = evaluator.to_device(images, targets)
                ((_, waiting[id(targets)]),) = keys
                yield images, targets

    black = evaluator.to_device.black
    inferer = SlidingWindowInferer(inference, task_module, evaluator.accelerator, black)
    for done in inferer.infer(read()):
        yield [
            Measured(
                predictions=task.from_scores(scores),
                targets=targets,
                losses=evaluator.module.score_losses(scores, targets),
                indices=[waiting.pop(id(targets))],
            )
            for scores, targets in done
        ]


def _seeded(evaluator: "Evaluator", loader: Iterable) -> Iterator:
    """Yield the batches of a loader, and seed what a model may draw from after each."""
    for number, batch in enumerate(loader):
        seed_step(evaluator.seed, EVALUATION - number, evaluator.accelerator.process_index)
        yield batch

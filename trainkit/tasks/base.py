"""The base class of tasks: what the loop calls of one, with a default for what it may lack."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainkit.errors import UserError

# what a task must have of its own
TASK_DEFINES = (
    "terms", "headline", "higher_is_better", "counts", "losses", "predict", "metrics"
)  # fmt: skip


class Task:
    """Base class of what outputs mean: losses, predictions, metrics.

    A recipe uses `Recognition`, `Segmentation`, or a task of its own. The loop divides the loss
    sums by the counts of the whole batch, over all micro-batches and processes, and adds up the
    quotients: that is the loss of the step.

    A task defines `terms`, `headline`, `higher_is_better`, `counts`, `losses`, `predict` and
    `metrics`; all else has a default. It inherits from this class, or has these members by itself:
    `as_task` adds the defaults then. Beside them it may have an attribute `classes` (how many, or
    their names in the order of their ids), `num_classes`, and `ignore` (the label that is never
    counted).
    """

    if TYPE_CHECKING:  # a task defines them, as attributes or as properties

        @property
        @abstractmethod
        def terms(self) -> tuple[str, ...]:
            """Names of the loss terms, K of them; the log shows each where there are several."""

        @property
        @abstractmethod
        def headline(self) -> str:
            """The result of `metrics` by which the best checkpoint is chosen."""

        @property
        @abstractmethod
        def higher_is_better(self) -> bool:
            """Whether a higher `headline` is a better one."""

    percent: tuple[str, ...] = ()
    """results that are fractions in [0, 1], shown as percent, beside those that its metrics declare
    by an attribute of this name; all others are shown as plain numbers"""
    rows_per_image: int = 1
    """rows that `predict` returns for each image of a batch, those of one image side by side"""

    @abstractmethod
    def counts(self, targets: Tensor) -> Tensor:
        """Count the valid targets of each term.

        Args:
            targets: of this process's share of the batch, on the device.

        Returns:
            float (K,), in the order of `terms`.
        """
        raise NotImplementedError

    @abstractmethod
    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum the loss of each term over valid targets, times the term's weight.

        Args:
            outputs: what the model returned.
            targets: as for `counts`.

        Returns:
            float32 (K,), with gradients, in the order of `terms`.
        """
        raise NotImplementedError

    @abstractmethod
    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """Make what `metrics` compare with the targets, `rows_per_image` rows per image.

        Args:
            outputs: what the model returned.
            targets: as read, on the device.
        """
        raise NotImplementedError

    @abstractmethod
    def metrics(self) -> list:
        """Make fresh metrics with `add_batch(predictions=, references=)` and `compute()`.

        The task's own come first.
        """
        raise NotImplementedError

    def thorough_metrics(self) -> list:
        """Make further metrics for `trainkit evaluate`."""
        return []

    def check(self, target: Tensor) -> str | None:
        """Say what is wrong with the target of one image, as read; None where it is valid.

        It must depend on the target alone: a worker does not ask again about a class id that it
        found valid.
        """
        return None

    def prepare(self, images: Tensor, targets: Tensor) -> Tensor:
        """Make the targets that `counts` and `losses` get in training, such as a teacher's outputs.

        Called without gradients, once a step, with generators seeded by the step. Evaluations
        measure against the targets as they are read.

        Args:
            images: (N, C, H, W), float, normalised, on the device: this process's share of the
                batch, after mixing.
            targets: of these images, as read or mixed.

        Returns:
            One row per image.
        """
        return targets

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions and validation loss of a batch of an evaluation.

        The default calls `predict`, and `losses` with the targets as read; an evaluation divides
        the sums by the `counts` of all its targets.

        Args:
            outputs: what the model returned in evaluation mode.
            targets: as read, on the device.

        Returns:
            What `predict` returns, and by the name of each term its sums, float32 (N,) of each
            image or (1,) of the batch. A term that cannot be computed from outputs in evaluation
            mode, such as that of an auxiliary head, is left out.
        """
        sums = self.losses(outputs, targets)
        terms = {term: each[None] for term, each in zip(self.terms, sums)}
        return self.predict(outputs, targets), terms

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The validation loss of merged scores, by the name of each term; none by default.

        Args:
            scores: (N, C, H, W), what sliding-window inference averaged of `scores`.
            targets: as read, on the device.

        Returns:
            As the second value of `evaluated`; empty where the loss is of outputs alone.
        """
        return {}

    def at_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Change what depends on the step, such as a temperature or the weight of a loss.

        It is a pure function of its arguments, so that a resumed run is the same: it must not
        depend on earlier calls. Called without gradients before every step, evaluation, prediction
        and export.

        Args:
            model: the network.
            step: number of steps done before a training step (0 to total_steps - 1), else the
                number of steps that the weights have seen.
            total_steps: steps of the whole run.
        """

    def at_images(self, model: nn.Module, seed: int, positions: Sequence[int]) -> None:
        """Take up which images the next forward pass of a training step is of.

        A task that draws random numbers for an image, such as points at which a loss is measured,
        seeds them by `fold(seed, position)`: then neither micro-batches nor the number of processes
        change them. Called without gradients, and never in evaluations.

        Args:
            model: the network.
            seed: of the step.
            positions: of the images in the batch over all processes, counted from 0.
        """

    def distillation_count(self, targets: Tensor) -> Tensor:
        """Count what `distillation_loss` is divided by: float (), of this process's share.

        Args:
            targets: as for `counts`.
        """
        raise NotImplementedError

    def distillation_loss(
        self, outputs: Any, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Sum over valid targets of the distance to a teacher (`--teacher`).

        Args:
            outputs: what the model returned.
            teacher: logits of a trained model of the same classes, in the same order, for the same
                images.
            targets: as for `losses`.
            temperature: that both are softened by.

        Returns:
            float32 (), with gradients.
        """
        raise NotImplementedError

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Scores of each pixel, for a dense task alone.

        Args:
            outputs: what the model returned.
            images: (N, C, H, W).

        Returns:
            (N, classes, H, W) at the size of the images.
        """
        raise NotImplementedError

    def from_scores(self, scores: Tensor) -> Tensor:
        """Make `predict`'s rows from scores."""
        raise NotImplementedError

    def labels(self, predictions: Tensor) -> Tensor:
        """Turn `predict`'s rows into the plain labels that metrics without `counts` understand."""
        raise NotImplementedError

    def records(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """What `trainkit predict` writes of each image, a line of predictions.jsonl.

        outputs: of the model, for a batch of images. sizes: height and width of each as it was
        read. Returns plain values by their names, a dict for each image. Not needed where the task
        is derived from `Recognition` or `Segmentation`.
        """
        raise NotImplementedError

    @property
    def given(self) -> Any:
        """The task as the recipe gave it."""
        return self

    @property
    def is_dense(self) -> bool:
        """Whether it scores each pixel, by a method `scores`.

        Images of a dense task may be of any size, and be evaluated in windows.
        """
        return self.provides("scores")

    @property
    def own_check(self) -> Callable[[Tensor], str | None] | None:
        """`check` where the task has one of its own, else None, which costs workers nothing."""
        return self.check if self.provides("check") else None

    @property
    def known_classes(self) -> int | Sequence[str] | None:
        """The attribute `classes`; None where it has none."""
        return getattr(self, "classes", None)

    @property
    def known_num_classes(self) -> int | None:
        """The attribute `num_classes`; None where it has none."""
        return getattr(self, "num_classes", None)

    @property
    def known_palette(self) -> Sequence[tuple[int, int, int]] | None:
        """The attribute `palette`, a colour of each class; None where it has none."""
        return getattr(self, "palette", None)

    @property
    def known_raw_ids(self) -> Sequence[int] | None:
        """The attribute `raw_ids`, the label of each class in the data's files; None without it."""
        return getattr(self, "raw_ids", None)

    @property
    def evaluation_words(self) -> str | None:
        """What its evaluations do beside the usual, for the protocol; None for nothing."""
        return None

    @property
    def ignored_label(self) -> int | None:
        """The attribute `ignore`; None where it has none."""
        return getattr(self, "ignore", None)

    def provides(self, name: str) -> bool:
        """Whether the task itself has a member of this name, not only the default of `Task`."""
        own = getattr(self, name, None)
        return getattr(own, "__func__", own) is not getattr(Task, name, None)


def as_task(task: Any) -> Task:
    """The task itself where it inherits from `Task`, else with the defaults for what it lacks."""
    if isinstance(task, Task):
        return task
    return _CompletedTask(task)  # type: ignore[abstract]  # `__getattribute__` asks the task


class _CompletedTask(Task):
    """A task that does not inherit from `Task`, with the defaults for what it lacks."""

    def __init__(self, task: Any):
        self._given = task

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in ("given", "provides"):
            return super().__getattribute__(name)
        given = super().__getattribute__("_given")
        try:
            return getattr(given, name)
        except AttributeError:
            if hasattr(type(given), name):  # a property of it failed
                raise
        return super().__getattribute__(name)

    @property
    def given(self) -> Any:
        """The task as the recipe gave it."""
        return self._given

    def provides(self, name: str) -> bool:
        """See `Task`."""
        return hasattr(self._given, name)


def check_task(task: Task, seen_in_windows: bool) -> None:
    """Raise UserError for a task that lacks a member, before anything is trained with it."""
    name = type(task.given).__name__
    if seen_in_windows and not task.is_dense:
        raise UserError(
            f"task {name} has no scores to put together: windows, scales and flips are for"
            " segmentation"
        )
    needed = [*TASK_DEFINES, *(["from_scores"] if seen_in_windows else [])]
    missing = [member for member in needed if not task.provides(member)]
    if missing:
        raise UserError(f"task {name} lacks {', '.join(missing)}; see trainkit.tasks.base.Task")
    if task.higher_is_better not in (True, False):
        raise UserError(
            f"task {name}: higher_is_better is {task.higher_is_better!r}; it must be True or False,"
            " by which the best checkpoint is chosen"
        )
    rows = task.rows_per_image
    if not isinstance(rows, int) or rows < 1:
        raise UserError(
            f"task {name}: rows_per_image is {rows!r}; it must be a whole number, at least 1"
        )

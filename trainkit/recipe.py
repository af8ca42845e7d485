"""Recipe and Task: what a recipe returns, and what the loop calls of it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit.data.dataset_info import (
    DatasetInfo,
    LazyDataset,
    SizedDataset,
    put_in,
    require_indexed,
    without_transform,
)
from trainkit.data.to_device import MEAN, STD
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.models.outputs import size_divisor
from trainkit.rebuildable import forget_if_changed

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
        """Say what is wrong with the target of one image, as read; None where it is valid."""
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training as built objects; see docs/recipes.md.

    Images are float tensors, or uint8 ones in [0, 255], which the loop scales to [0, 1] and
    normalises on the device by `mean` and `std`.
    """

    task: Task
    """what the outputs mean: losses, metrics, predictions"""
    model: nn.Module
    """images (N, C, H, W) -> outputs that `task` understands"""
    train_data: SizedDataset
    """index -> (image, target), of one shape; or a function that opens it, which becomes a
    `LazyDataset`, the form that a type checker asks for"""
    val_data: SizedDataset
    """index -> (image, target), each measured exactly once"""
    optimizer: Optimizer
    """over the model's parameters; each group's lr is what the schedule multiplies"""
    schedule: Callable[..., float]
    """from trainkit.schedules: (step, total_steps, steps_per_epoch) -> multiplier"""
    epochs: float
    """passes over train_data; fractions allowed"""
    batch_size: int
    """images of one optimizer step, over all processes"""
    eval_batch_size: int = 1
    """images per forward pass of an evaluation, per process; above 1 they must be of one shape"""
    inference: Inference | None = None
    """windows, scales and flips of an evaluation (segmentation); None: each image once, whole"""
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    """mixup or cutmix from trainkit.data.mixup"""
    clip_norm: float | None = None
    """largest norm of the gradient; larger ones are scaled down to it"""
    ema: float | None = None
    """decay of the weights' EMA, which is evaluated beside them and decides which is best"""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """each training image once an epoch, or as many draws with replacement, of all classes alike"""
    frozen: Sequence[nn.Parameter] = ()
    """parameters that are not trained before `unfreeze_epoch`, though the optimizer has them"""
    unfreeze_epoch: float | None = None
    """epoch from which on they are trained, counted from 0; None: never"""
    sync_batch_norm: bool = False
    """on several GPUs: batch norm over the whole batch, and not each process's part of it"""
    drop_last: bool = False
    """leave out an epoch's last batch where it is shorter than batch_size"""
    mean: Sequence[float] = MEAN
    """per channel, of images in [0, 1]; ImageNet's by default"""
    std: Sequence[float] = STD
    """per channel, of images in [0, 1]; ImageNet's by default"""
    input: Mapping[str, Any] = field(default_factory=dict)
    """input settings taken from the network, such as mean and interpolation, which a run keeps"""
    note: str | None = None
    """a line shown when the run starts, such as that the data is generated"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(
                f"clip_norm is {self.clip_norm}; it must be above 0, or None for no clipping"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(
                f"ema is {self.ema}; it must be between 0 and 1, such as 0.9998, or None for none"
            )
        if self.sampler not in ("shuffle", "balanced"):
            raise UserError(f"sampler is {self.sampler!r}; it is 'shuffle' or 'balanced'")
        _check_frozen(self)
        forget_if_changed(self.model)
        if callable(self.train_data):
            object.__setattr__(self, "train_data", LazyDataset(self.train_data))
        for name, data in (("train_data", self.train_data), ("val_data", self.val_data)):
            require_indexed(name, data)
        if len(self.val_data) == 0:
            raise UserError("val_data is empty: it has no images")
        object.__setattr__(self, "task", as_task(self.task))
        _check_task(self.task, seen_in_windows=self.inference is not None)

    @property
    def headline(self) -> str:
        """The metric that selects the best checkpoint."""
        return self.task.headline if self.ema is None else f"ema_{self.task.headline}"

    @property
    def split(self) -> str | None:
        """The attribute `split` of the validation data, a name such as "val"; None without it."""
        return DatasetInfo.of(self.val_data).split

    @property
    def label_values(self) -> list[int] | None:
        """The attribute `label_values` of the data: the value of each class in training masks."""
        return DatasetInfo.of(self.train_data).label_values

    @property
    def upright(self) -> bool:
        """Whether validation images are read with their EXIF orientation applied.

        It is the data's attribute `upright`, else True.
        """
        return DatasetInfo.of(self.val_data).upright

    @property
    def protocol(self) -> str:
        """The evaluation protocol in a few words.

        Results of different protocols are not comparable.
        """
        info = DatasetInfo.of(self.val_data)
        words = ["as the validation data gives them"]
        if info.transformed is not None and not info.is_augmented:
            plain = words[0] if info.transform is not None else "as stored"
            words = [getattr(info.transform, "label", plain)]
        if (tuple(self.mean), tuple(self.std)) != (MEAN, STD):
            words += [
                f"{name} {' '.join(f'{each:g}' for each in getattr(self, name))}"
                for name in ("mean", "std")
            ]
        if self.task.is_dense:
            words.append((self.inference or Inference()).label)
            divisor = size_divisor(self.model)
            words += [] if divisor == 1 else [f"filled up to sides divisible by {divisor}"]
        return ", ".join(words)

    def as_stored(self) -> "Recipe":
        """The same recipe with validation images at original resolution, not resized or cropped.

        Raises:
            UserError: it is no segmentation of a dataset with an attribute `transform`.
        """
        info = DatasetInfo.of(self.val_data)
        if not self.task.is_dense or info.transformed is None or info.is_augmented:
            raise UserError(
                "--as-stored is for segmentation, and data with an attribute `transform`: leave"
                " it out"
            )
        bare = without_transform(info.transformed)
        return replace(self, val_data=put_in(self.val_data, info.transformed, bare))


def _check_frozen(recipe: Recipe) -> None:
    """Raise UserError for frozen parameters that are not the model's."""
    if recipe.unfreeze_epoch is not None and recipe.unfreeze_epoch <= 0:
        raise UserError(
            f"unfreeze_epoch is {recipe.unfreeze_epoch:g}; it must be above 0, or None for never"
        )
    frozen = {id(parameter) for parameter in recipe.frozen}
    if frozen - {id(parameter) for parameter in recipe.model.parameters()}:
        raise UserError(
            "frozen holds parameters that are not the model's: choose them after the model is"
            " complete, such as after its head was replaced"
        )


def _check_task(task: Task, seen_in_windows: bool) -> None:
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
        raise UserError(f"task {name} lacks {', '.join(missing)}; see trainkit.recipe.Task")
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

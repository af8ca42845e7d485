"""What a recipe is, and how the file that holds one is loaded."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset, Subset

from trainkit.data.on_device import OnDevice
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.outputs import size_divisor

# of ImageNet, per channel of images in [0, 1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Task(Protocol):
    """What the loop asks of a task; `Recognition` and `Segmentation` are two, a recipe may bring its own.

    The loop divides the loss sums by the counts of the whole batch, over all passes and processes, and
    adds up the quotients: that is the loss of the step.
    """

    terms: tuple[str, ...]
    """names of the loss terms, K of them; the log shows each where there are several"""
    headline: str
    """the figure among `results` by which the best checkpoint is chosen"""
    higher_is_better: bool
    percent: tuple[str, ...] = ()
    """results that are fractions in [0, 1], shown as percent, beside those that its metrics declare by an attribute of
    this name; all others are shown as plain numbers. A task may lack it"""

    def check(self, target: Tensor) -> str | None:
        """What is wrong with the target of one image, as read; None where it is right. A task may lack it."""

    def counts(self, targets: Tensor) -> Tensor:
        """Valid targets of each term: float (K,)."""

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over valid targets of each term, times its weight: float32 (K,), on the graph."""

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """What `metrics` compare with the targets, one row per image."""

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Scores of each pixel (N, C, H, W) at the size of the images; a task whose images are seen whole lacks it."""

    def from_scores(self, scores: Tensor) -> Tensor:
        """`predict`'s rows from scores."""

    def metrics(self) -> list:
        """Fresh metrics with `add_batch(predictions=, references=)` and `compute()`; own ones first."""

    def thorough_metrics(self) -> list:
        """Further ones for `trainkit evaluate`. A task may lack it."""

    def labels(self, predictions: Tensor) -> Tensor:
        """From `predict`'s rows to the plain labels that metrics from elsewhere understand."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training as built objects; see docs/recipes.md.

    Images are float tensors, or uint8 ones in [0, 255], which the loop scales to [0, 1] and normalises on
    the device by `mean` and `std`.
    """

    task: Task
    """what the outputs mean: losses, metrics, predictions"""
    model: nn.Module
    """images (N, C, H, W) -> outputs that `task` understands"""
    train_data: Dataset | Callable[[], Dataset]
    """index -> (image, target), of one shape; or a function that opens it, which an evaluation does not call"""
    val_data: Dataset
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
    """images of one forward pass in an evaluation, per process; above 1 they must be of one shape"""
    inference: Inference | None = None
    """windows, scales and flips of an evaluation (segmentation); None: each image once, as val_data gives it"""
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    """mixup or cutmix from trainkit.data.mixup"""
    clip_norm: float | None = None
    """largest norm of the gradient; larger ones are scaled down to it"""
    ema: float | None = None
    """decay of an exponential moving average of the weights, evaluated beside them and deciding which is best"""
    sync_batch_norm: bool = False
    """on several GPUs: batch norm over the whole batch, and not each process's part of it"""
    drop_last: bool = False
    """leave out an epoch's last batch where it is shorter than batch_size"""
    mean: Sequence[float] = MEAN
    """per channel, of images in [0, 1]; ImageNet's by default"""
    std: Sequence[float] = STD
    """per channel, of images in [0, 1]; ImageNet's by default"""
    input: Mapping[str, Any] = field(default_factory=dict)
    """mean, interpolation and such settings, as the recipe took them of its network: a run keeps them for good"""
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
        for name, data in (("train_data", self.train_data), ("val_data", self.val_data)):
            if not callable(data):
                _check_indexed(name, data)
        if len(self.val_data) == 0:
            raise UserError("val_data is empty: it has no images")
        if self.inference is not None and not hasattr(self.task, "scores"):
            raise UserError(
                f"task {type(self.task).__name__} has no scores to put together: windows, scales and flips are for "
                "segmentation"
            )
        missing = [
            p
            for p in ("terms", "headline", "counts", "losses", "predict", "metrics")
            if not hasattr(self.task, p)
        ]
        if missing:
            raise UserError(
                f"task {type(self.task).__name__} lacks {', '.join(missing)}; see trainkit.recipe.Task"
            )

    @property
    def headline(self) -> str:
        """The figure that chooses the best checkpoint."""
        return self.task.headline if self.ema is None else f"ema_{self.task.headline}"

    @property
    def split(self) -> str | None:
        """What the validation data calls its part of the whole, by an attribute `split`; None where it does not say."""
        return getattr(_inner(self.val_data), "split", None)

    @property
    def label_values(self) -> list[int] | None:
        """What stands for each class in the training masks, where the data has an attribute `label_values`."""
        return getattr(_inner(self.train_data), "label_values", None)

    @property
    def upright(self) -> bool:
        """Whether validation images are turned by their EXIF orientation: the data's attribute `upright`, else True."""
        return getattr(_inner(self.val_data), "upright", True)

    @property
    def protocol(self) -> str:
        """How validation images are looked at, in a few words: figures of another protocol are not comparable."""
        data = _inner(self.val_data)
        transform = getattr(data, "transform", None)
        plain = (
            "as stored"
            if transform is None and hasattr(data, "transform")
            else "as the validation data gives them"
        )
        words = [getattr(transform, "label", plain)]
        if (tuple(self.mean), tuple(self.std)) != (MEAN, STD):
            words += [
                f"{name} {' '.join(f'{each:g}' for each in getattr(self, name))}"
                for name in ("mean", "std")
            ]
        if hasattr(self.task, "scores"):
            words.append((self.inference or Inference()).label)
            divisor = size_divisor(self.model)
            words += [] if divisor == 1 else [f"filled up to sides divisible by {divisor}"]
        return ", ".join(words)

    def opened(self) -> "Recipe":
        """The same with train_data opened, where a function was given."""
        return replace(self, train_data=self.train_data()) if callable(self.train_data) else self

    def as_stored(self) -> "Recipe":
        """The same with validation images in the size they are stored in, whatever the validation data makes of them.

        Raises UserError where they are not label maps of a dataset with an attribute `transform`.
        """
        data = _inner(self.val_data)
        if not hasattr(self.task, "scores") or not hasattr(data, "transform"):
            raise UserError(
                "--as-stored is for segmentation, and data with an attribute `transform`: leave it out"
            )
        bare = copy(data)
        bare.transform = None
        return replace(self, val_data=_put_in(self.val_data, bare))


def _check_indexed(name: str, data: Any) -> None:
    """Raises UserError for a stream, of which nobody knows how long it is and which image is where."""
    lacks = [each for each in ("__len__", "__getitem__") if not hasattr(type(data), each)]
    if lacks or isinstance(data, IterableDataset):
        raise UserError(
            f"{name} is of type {type(data).__name__}, a stream without length or index: each image exactly once, and "
            "going on where a run stopped, take both. Parquet files have them, also where they are streamed: "
            "trainkit.data.datasets.hub.HubImages(..., stream=16)"
        )


def _inner(data: Dataset) -> Dataset:
    """What stands within a part of a dataset, or is held on a device as it was read."""
    while isinstance(data, Subset) or (isinstance(data, OnDevice) and not data.augment):
        data = data.dataset if isinstance(data, Subset) else data.data
    return data


def _put_in(data: Dataset, inner: Dataset) -> Dataset:
    """The same parts of another dataset."""
    return Subset(_put_in(data.dataset, inner), data.indices) if isinstance(data, Subset) else inner

"""Recipe: what a recipe returns, checked when it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
from trainkit.settings.rebuildable import forget_if_changed
from trainkit.tasks.base import Task, as_task, check_task


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
    schedule: Callable[..., float] | Sequence[Callable[..., float]]
    """from trainkit.schedules: (step, total_steps, steps_per_epoch) -> multiplier; or a list, one
    for each of the optimizer's groups"""
    epochs: float
    """passes over train_data; fractions allowed"""
    batch_size: int
    """images of one optimizer step, over all processes"""
    eval_batch_size: int = 1
    """images per forward pass of an evaluation, per process, of one shape; see `data.buckets`"""
    inference: Inference | None = None
    """windows, scales and flips of an evaluation (segmentation); None: each image once, whole"""
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    """mixup or cutmix from trainkit.data.mixup"""
    clip_norm: float | None = None
    """largest norm of the gradient; larger ones are scaled down to it"""
    clip_value: float | None = None
    """largest size of each value of the gradient; larger ones are set to it"""
    clip_agc: float | None = None
    """adaptive gradient clipping: largest ratio of the norms of gradient and weights, by output"""
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
    best_by: tuple[str, bool] | None = None
    """result that selects the best checkpoint, and whether higher is better; None: the task's"""
    note: str | None = None
    """a line shown when the run starts, such as that the data is generated"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        _check_clipping(self)
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(
                f"ema is {self.ema}; it must be between 0 and 1, such as 0.9998, or None for none"
            )
        if self.sampler not in ("shuffle", "balanced"):
            raise UserError(f"sampler is {self.sampler!r}; it is 'shuffle' or 'balanced'")
        _check_schedules(self)
        _check_frozen(self)
        forget_if_changed(self.model)
        if callable(self.train_data):
            object.__setattr__(self, "train_data", LazyDataset(self.train_data))
        for name, data in (("train_data", self.train_data), ("val_data", self.val_data)):
            require_indexed(name, data)
        if len(self.val_data) == 0:
            raise UserError("val_data is empty: it has no images")
        object.__setattr__(self, "task", as_task(self.task))
        check_task(self.task, seen_in_windows=self.inference is not None)

    @property
    def headline(self) -> str:
        """The metric that selects the best checkpoint."""
        name = self.task.headline if self.best_by is None else self.best_by[0]
        return name if self.ema is None else f"ema_{name}"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher `headline` is a better one."""
        return self.task.higher_is_better if self.best_by is None else self.best_by[1]

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
        if info.re_encoded is not None:
            words.append(f"images {info.re_encoded}")
        if (tuple(self.mean), tuple(self.std)) != (MEAN, STD):
            words += [
                f"{name} {' '.join(f'{each:g}' for each in getattr(self, name))}"
                for name in ("mean", "std")
            ]
        if self.task.evaluation_words is not None:
            words.append(self.task.evaluation_words)
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


def _check_clipping(recipe: Recipe) -> None:
    """Raise UserError for a limit of the gradient that is none, or for more than one."""
    names = ("clip_norm", "clip_value", "clip_agc")
    given = {name: getattr(recipe, name) for name in names if getattr(recipe, name) is not None}
    for name, limit in given.items():
        if not limit > 0:
            raise UserError(f"{name} is {limit}; it must be above 0, or None for no clipping")
    if len(given) > 1:
        listed = " and ".join(f"{name} is {limit:g}" for name, limit in given.items())
        raise UserError(f"{listed}: gradients are clipped in one way; give None for the others")


def _check_schedules(recipe: Recipe) -> None:
    """Raise UserError for a list of schedules that does not fit the optimizer's groups."""
    groups = recipe.optimizer.param_groups
    if isinstance(recipe.schedule, Sequence) and len(recipe.schedule) != len(groups):
        raise UserError(
            f"schedule is a list of {len(recipe.schedule)}, and the optimizer has {len(groups)}"
            " groups: give one for all, or one for each group"
        )


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
    groups = recipe.optimizer.param_groups
    trained = {id(each) for group in groups for each in group["params"] if each.requires_grad}
    if trained and trained <= frozen:
        raise UserError("frozen holds all that the optimizer trains: leave a part of it out")

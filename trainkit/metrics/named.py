"""Metrics by name with arguments, of torchmetrics and of evaluate, computed from plain labels."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainkit.errors import (
    MissingFileError,
    MissingPackageError,
    UserError,
    did_you_mean,
    first_line,
)
from trainkit.settings.parsing import parse_named

TORCHMETRICS, EVALUATE = "torchmetrics", "evaluate"
IGNORED = -1  # in rows of several classes for each image
COUNTS = {"tp", "fp", "tn", "fn"}  # what torchmetrics keeps of F1, precision and their like


class WithArguments:
    """A metric of `evaluate` whose `compute` gets arguments.

        extra_metrics=[WithArguments(evaluate.load("f1"), average="macro")]

    References below 0, which count nowhere, are left out where there is one for each image.
    """

    def __init__(self, metric: Any, **arguments: Any):
        self.metric, self.arguments = metric, arguments
        self.name = getattr(metric, "name", type(metric).__name__)

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Take up one batch of labels."""
        predictions, references = _counted(predictions, references)
        if len(references):
            self.metric.add_batch(predictions=predictions, references=references)

    def compute(self) -> dict[str, Any]:
        """Results over all batches since the last `compute`."""
        return self.metric.compute(**self.arguments)


class Suffixed(WithArguments):
    """The same with results named after arguments: `average=macro` gives "f1_macro"."""

    def compute(self) -> dict[str, Any]:
        """See `WithArguments`."""
        figures = super().compute()
        return {_key(name, self.arguments): value for name, value in figures.items()}


class TorchMetric:
    """A metric of torchmetrics, given the labels of all processes: it adds up nothing itself."""

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        num_classes: int,
        usual: Mapping[str, Any] | None = None,
    ):
        self.name, self.key = f"{TORCHMETRICS}:{name}", _key(name, arguments)
        self.metric = _torchmetric(name, arguments, num_classes, usual)
        self.higher_is_better = self.metric.higher_is_better

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Take up one batch of labels (N,)."""
        predictions, references = _counted(predictions, references)
        if len(references):
            self.metric.update(torch.as_tensor(predictions), torch.as_tensor(references))

    def compute(self) -> dict[str, Any]:
        """Its result over all batches since the last `compute`."""
        value = self.metric.compute()
        self.metric.reset()
        return {self.key: value}


class ValueMetric:
    """A metric of torchmetrics for regression, of all pixels whose value is known.

    It is given the maps of all processes, and computes in float64.

    Args:
        name: in torchmetrics.regression.
        arguments: of the metric.
        limits: least and largest value of a reference that counts; None: none.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], limits: tuple[float, float] | None = None
    ):
        self.name, self.key = f"{TORCHMETRICS}:{name}", _key(name, arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below
            self.metric = _torchmetric(name, arguments, of="regression").set_dtype(torch.float64)
        # what is measured of predictions and references, where a task says so
        self.prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        self.low, self.high = (-torch.inf, torch.inf) if limits is None else limits
        self.higher_is_better = self.metric.higher_is_better
        if any(isinstance(state, list) for state in self.metric._defaults.values()):
            raise UserError(
                f"metric {self.name} keeps every pixel of the validation images in memory: take one"
                " that keeps sums, such as torchmetrics:R2Score, torchmetrics:PearsonCorrCoef"
            )

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Take up maps (N, H, W); references are NaN where nothing is known."""
        found, wanted = torch.as_tensor(predictions), torch.as_tensor(references)
        if self.prepare is not None and wanted.ndim == 3:  # and not in a trial
            found, wanted = self.prepare(found, wanted)
        found, wanted = found.double(), wanted.double()
        known = wanted.isfinite() & (wanted >= self.low) & (wanted <= self.high)
        if known.any():
            self.metric.update(found[known], wanted[known])

    def compute(self) -> dict[str, Any]:
        """Its result over all batches since the last `compute`."""
        value = self.metric.compute()
        self.metric.reset()
        return {self.key: value}


class FromConfusion:
    """A metric of torchmetrics that follows from a confusion matrix, and is computed from one."""

    def __init__(self, name: str, arguments: Mapping[str, Any], num_classes: int):
        self.name, self.key = f"{TORCHMETRICS}:{name}", _key(name, arguments)
        for option in {"ignore_index", "top_k", "multidim_average"} & arguments.keys():
            raise UserError(
                f"metric {self.name} is computed from the confusion matrix, of which {option} is no"
                " argument: leave it out"
            )
        if name.startswith(("Binary", "Multilabel")) or {"task", "num_classes"} & arguments.keys():
            raise UserError(
                f"metric {self.name} is not of {num_classes} classes, one for each pixel, as"
                " segmentation has them: name the metric alone, such as torchmetrics:F1Score, and"
                " leave task and num_classes out"
            )
        self.metric = _torchmetric(name, arguments, num_classes)
        if self.metric._defaults.keys() not in (COUNTS, {"confmat"}):
            raise UserError(
                f"metric {self.name} does not follow from the confusion matrix, from which those of"
                " segmentation are computed: take one that does, such as torchmetrics:F1Score,"
                " torchmetrics:Precision, torchmetrics:CohenKappa"
            )
        try:
            self(torch.eye(num_classes, dtype=torch.int64))  # all right, one pixel of each class
        except Exception as error:  # whatever it raises: no epoch is to end in it
            raise UserError(f"metric {self.name} cannot be computed: {error}") from error

    def __call__(self, confusion: Tensor) -> dict[str, Any]:
        """Its result from pixels of each (reference, prediction) pair: int64 (C, C)."""
        metric = self.metric
        if "confmat" in metric._defaults:
            states = {"confmat": confusion}
        else:
            hits = confusion.diagonal()
            missed, wrong = confusion.sum(1) - hits, confusion.sum(0) - hits
            rest = confusion.sum() - hits - missed - wrong
            states = {"tp": hits, "fp": wrong, "tn": rest, "fn": missed}
        for state, value in states.items():
            default = metric._defaults[state]
            summed = value if value.numel() == default.numel() else value.sum()
            setattr(metric, state, summed.reshape(default.shape).clone())
        metric._update_count = 1  # it warns where nothing was counted
        result = metric.compute()
        metric.reset()
        return {self.key: result}


def named_metrics(metrics: Sequence[Any], num_classes: int) -> list[Any]:
    """The same metrics, with those that are names made: see `named_metric`."""
    return [named_metric(each, num_classes) if isinstance(each, str) else each for each in metrics]


def multilabel_metrics(metrics: Sequence[Any], num_classes: int) -> list[Any]:
    """`named_metrics` of several classes for each image, which are given probabilities (N, C).

    Raises:
        UserError: as for `named_metric`; or one of `evaluate` is named, which takes single labels.
    """
    return [
        _multilabel_metric(each, num_classes) if isinstance(each, str) else each for each in metrics
    ]


def value_metrics(metrics: Sequence[Any], limits: tuple[float, float] | None = None) -> list[Any]:
    """The same metrics, with those that are names made: see `ValueMetric`.

    Raises:
        UserError: there is none of that name, or it is of labels, or keeps every pixel.
        MissingPackageError: torchmetrics is not installed.
    """
    return [_value_metric(each, limits) if isinstance(each, str) else each for each in metrics]


def _value_metric(text: str, limits: tuple[float, float] | None) -> ValueMetric:
    library, name, arguments = _parsed(text)
    if library == EVALUATE:
        raise UserError(
            f"metric {text} is given labels, and each pixel has a number: give torchmetrics:NAME,"
            " such as torchmetrics:R2Score"
        )
    return ValueMetric(name, arguments, limits)


def _multilabel_metric(text: str, num_classes: int) -> TorchMetric:
    library, name, arguments = _parsed(text)
    if library == EVALUATE:
        raise UserError(
            f"metric {text} is given single labels, and each image has any number of classes: give"
            " torchmetrics:NAME"
        )
    usual = {"task": "multilabel", "num_labels": num_classes, "ignore_index": IGNORED}
    return TorchMetric(name, arguments, num_classes, usual)


def named_metric(text: str, num_classes: int) -> TorchMetric | Suffixed:
    """The metric that `text` names, for one label per image.

    Args:
        text: "torchmetrics:F1Score:average=macro", or "evaluate:PATH_OR_NAME:average=macro", where
            PATH is the folder or the file of a metric. torchmetrics gets task="multiclass" and
            num_classes by itself.
        num_classes: how many classes there are.

    Raises:
        UserError: there is none of that name, or it does not take these arguments.
        MissingPackageError: torchmetrics is not installed.
        MissingFileError: it cannot be loaded.
    """
    library, name, arguments = _parsed(text)
    if library == TORCHMETRICS:
        return TorchMetric(name, arguments, num_classes)
    return Suffixed(copy.deepcopy(_loaded(name)), **arguments)


def from_confusion(text: str, num_classes: int) -> FromConfusion:
    """The metric that `text` names, for segmentation: see `FromConfusion`.

    Raises:
        UserError: there is none of that name, or it does not follow from a confusion matrix.
        MissingPackageError: torchmetrics is not installed.
    """
    library, name, arguments = _parsed(text, "dice, boundary_iou, ")
    if library == EVALUATE:
        raise UserError(
            f"metric {text} is given single labels, and segmentation has a confusion matrix: give"
            " torchmetrics:NAME"
        )
    return FromConfusion(name, arguments, num_classes)


def _parsed(text: str, others: str = "") -> tuple[str, str, dict[str, Any]]:
    """Library, name and arguments; `others` are names besides, for the message."""
    named, arguments = parse_named("metrics", text)
    library, _, name = named.partition(":")
    if library not in (TORCHMETRICS, EVALUATE) or not name:
        raise UserError(
            f"metric {text} is unknown: give {others}torchmetrics:NAME or evaluate:PATH_OR_NAME,"
            " such as torchmetrics:F1Score:average=macro"
        )
    return library, name, arguments


def _torchmetric(
    name: str,
    arguments: Mapping[str, Any],
    num_classes: int = 0,
    usual: Mapping[str, Any] | None = None,
    of: Literal["classification", "regression"] = "classification",
) -> Any:
    """A metric of torchmetrics; `usual`: arguments that it gets where it takes them."""
    try:
        from torchmetrics import classification, regression
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"metric torchmetrics:{name} needs torchmetrics: pip install torchmetrics"
        ) from error
    package = classification if of == "classification" else regression
    if name not in package.__all__:
        known = sorted(each for each in package.__all__ if each[0].isupper())
        raise UserError(f"torchmetrics has no {of} metric {name}{did_you_mean(name, known)}")
    kind = getattr(package, name)
    parameters = inspect.signature(kind).parameters
    if usual is None:
        usual = {"task": "multiclass", "num_classes": num_classes}
    usual = {option: value for option, value in usual.items() if option in parameters}
    try:
        # each process has the labels of all: summing over processes would count them again
        return kind(**{**usual, **arguments}, sync_on_compute=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"metric torchmetrics:{name} does not take its arguments: {error}"
        ) from error


@functools.cache
def _loaded(name: str) -> Any:
    """A metric of `evaluate`, from a file or folder here or from the Hub."""
    import evaluate

    try:
        return evaluate.load(name, keep_in_memory=True)
    except (OSError, ImportError) as error:
        where = "it" if Path(name).exists() else "its script, which lies on the Hub,"
        raise MissingFileError(
            f"metric evaluate:{name}: {where} cannot be loaded: {first_line(error)}. Give the"
            " path of a metric's folder, or torchmetrics:NAME"
        ) from error


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    """Name of a result, such as "f1_macro" or "Accuracy_top_k_2"."""
    parts = [
        value if isinstance(value, str) else f"{option}_{value}"
        for option, value in arguments.items()
    ]
    return "_".join([name, *parts])


def _counted(predictions: Any, references: Any) -> tuple[Any, Any]:
    """Without references below 0, which count nowhere."""
    if getattr(references, "ndim", 0) != 1:
        return predictions, references
    counted = references >= 0
    return predictions[counted], references[counted]

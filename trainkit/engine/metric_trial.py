"""Metrics tried before the first step, on labels that are all right."""

import copy
from typing import Any

import torch

from trainkit.engine.results import metric_name, without_reserved_names
from trainkit.errors import ReportedError, UserError
from trainkit.metrics.base import declared, each_metric
from trainkit.tasks.base import Task
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation


def try_metrics(task: Task) -> None:
    """Compute each metric from elsewhere once, on a copy of it, so that no epoch ends in an error.

    A metric from elsewhere has no `counts`, and gets plain labels: here one of each class.

    Raises:
        UserError: one cannot be computed, or computes what another one does.
    """
    if type(task.given) not in (Recognition, Segmentation):
        return  # what the labels of another task are, it alone knows
    taken = dict.fromkeys(declared(task, "percent") | declared(task, "per_class"), "the task")
    for metric in (one for each in task.metrics() for one in each_metric(each)):
        if not hasattr(metric, "counts"):
            computed = _computed(metric, task)
            without_reserved_names(metric, dict.fromkeys(computed))
            for name in computed:
                if name in taken and name not in getattr(metric, "percent", ()):
                    raise UserError(
                        f"metric {metric_name(metric)} computes {name}, and so does"
                        f" {taken[name]}: one of the two would be lost: leave it out"
                    )
                taken[name] = f"metric {metric_name(metric)}"


def _computed(metric: Any, task: Task) -> list[str]:
    labels = torch.arange(task.known_num_classes or 2)
    if task.is_dense:
        labels = labels[None, None]  # one mask of one row
    tried = copy.deepcopy(metric)
    try:
        tried.add_batch(predictions=labels.numpy(), references=labels.numpy())
        return list(tried.compute())
    except ReportedError:
        raise
    except Exception as error:  # whatever a metric from elsewhere raises
        said = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"metric {metric_name(metric)} cannot be computed: {type(error).__name__}: {said}."
            f" Give its arguments by trainkit.metrics.named.WithArguments(metric, average='macro'),"
            " or name it: --metrics evaluate:NAME:average=macro"
        ) from error

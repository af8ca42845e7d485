"""Sums the loss over the validation data, each term over all of its valid targets."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainkit.tasks.base import Task

NAME = "val_loss"
NO_LOSS = "no validation loss, as it cannot be computed: {}"


class ValidationLoss:
    """Sums and counts of each term, on the device until the end of an evaluation.

    Args:
        task: whose `terms` and `counts` are taken.
    """

    def __init__(self, task: Task):
        self.task = task
        self._measured = set(task.terms)  # in every batch so far
        self._rows: list[Tensor] = []  # of each batch: sums and counts (2, K)

    def add(self, sums: Mapping[str, Tensor], targets: Tensor) -> None:
        """Add a batch; waits for nothing.

        Args:
            sums: by the name of each term, see `Task.evaluated`; empty where there is no loss.
            targets: of the images.
        """
        self._measured &= sums.keys()
        if not self._measured:
            return
        counts = self.task.counts(targets).float()  # (K,)
        none = counts.new_zeros(1)
        found = [sums.get(term, none).float().sum() for term in self.task.terms]
        self._rows.append(torch.stack([torch.stack(found), counts]))

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each term over this process's images; terms not measured are left out.

        Waits for the device.
        """
        if not self._rows:
            return dict.fromkeys(self._measured, (0.0, 0.0))
        sums, counts = torch.stack(self._rows).cpu().double().sum(0).tolist()
        found = zip(self.task.terms, zip(sums, counts))
        return {term: total for term, total in found if term in self._measured}


def loss_results(
    task: Task, totals: Iterable[Mapping[str, tuple[float, float]]]
) -> dict[str, float | None]:
    """The validation loss, and each of its terms where the task has several.

    Args:
        task: whose terms they are.
        totals: of every process, see `ValidationLoss.totals`.

    Returns:
        "val_loss" and "val_loss_<term>", None where no target of a term is valid; nothing where no
        term was measured.
    """
    totals = list(totals)
    measured = [term for term in task.terms if all(term in each for each in totals)]
    if not measured:
        return {}
    terms: dict[str, float | None] = {}
    for term in measured:
        total, count = (sum(column) for column in zip(*(each[term] for each in totals)))
        terms[term] = total / count if count > 0 else None
    known = [value for value in terms.values() if value is not None]
    results: dict[str, float | None] = {NAME: sum(known) if known else None}
    if len(task.terms) > 1:
        results |= {f"{NAME}_{term}": value for term, value in terms.items()}
    return results

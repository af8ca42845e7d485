"""What tasks share whose terms are losses by themselves, one or several."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainkit.errors import UserError
from trainkit.losses.base import CheckedCriteria, Criterion
from trainkit.tasks.base import Task


class TaskOfLosses(Task):
    """Base class of tasks with an attribute `loss`: one of trainkit.losses, or several.

    Each is a term of its name. They are checked where the task is made, and again where a task of
    one's own sets others (`Task.at_step`).
    """

    if TYPE_CHECKING:
        loss: Criterion | Sequence[Criterion] | None

    @property
    def _given_losses(self) -> Criterion | Sequence[Criterion]:
        assert self.loss is not None  # else the task has a default of its own
        return self.loss

    @property
    def _num_outputs(self) -> int:
        """Of the network, for each image or pixel."""
        raise NotImplementedError

    @property
    def _criteria(self) -> tuple[Criterion, ...]:
        return self._checked(self._given_losses, self._num_outputs)

    @cached_property
    def _checked(self) -> CheckedCriteria:
        return CheckedCriteria()

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms."""
        return tuple(each.name for each in self._criteria)


class TaskOfClasses(TaskOfLosses):
    """The same of tasks with an attribute `classes`: how many, or their names."""

    if TYPE_CHECKING:
        classes: int | Sequence[str]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def _num_outputs(self) -> int:
        return self.num_classes

    def _check_any_number(self) -> None:
        """Raise UserError where a task of any number of classes for each target has none.

        Or where a loss has weights of the positives of other classes.
        """
        if self.num_classes < 1:
            raise UserError(f"{type(self).__name__}: no classes; there must be at least one")
        for each in self._criteria:
            weight = getattr(each, "pos_weight", None)
            if weight is not None and len(weight) != self.num_classes:
                raise UserError(
                    f"{type(each).__name__}: {len(weight)} numbers of pos_weight for"
                    f" {self.num_classes} classes; give one per class"
                )

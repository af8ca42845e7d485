"""Class weights from how often each class occurs in the training data."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from trainkit.data.class_counts import count_classes, opened_if_needed
from trainkit.data.dataset_info import SizedDataset

Weights = tuple[float, ...] | Literal["auto"] | None
POWERS = {False: 1.0, True: 0.5}  # of images, and of pixels


def balanced(counts: Sequence[int], power: float = 1.0) -> list[float]:
    """A weight for each class, in proportion to 1 / count**power; the mean over all targets is 1.

    The loss keeps its size, and so does the learning rate that suits it. `power` 1 gives each class
    the same share of the loss (scikit-learn's "balanced"); 0.5 suits pixels, whose counts differ a
    hundredfold. A class that does not occur has weight 1.
    """
    inverse = [count**-power if count else 0.0 for count in counts]
    total = sum(count * weight for count, weight in zip(counts, inverse))
    return [weight * sum(counts) / total if weight else 1.0 for weight in inverse]


def resolved_weights(
    weights: Weights,
    train_data: SizedDataset | Callable[[], SizedDataset],
    num_classes: int,
    dense: bool = False,
) -> tuple[float, ...] | None:
    """The class weights that a recipe's setting `class_weights` says.

    Args:
        weights: one per class; "auto": those that balance the training data, see `balanced`; None:
            all equal.
        train_data: whose classes are counted for "auto", or a function that opens it.
        num_classes: how many classes there are.
        dense: whether pixels are counted, of masks that are all read.

    Returns:
        One per class, those of "auto" to six digits; or None.

    Raises:
        UserError: the data do not say their classes.
    """
    if weights != "auto":
        return weights
    counts = count_classes(opened_if_needed(train_data), num_classes)
    found = balanced(counts.targets.tolist(), POWERS[dense])
    return tuple(float(f"{weight:.6g}") for weight in found)


def positive_weights(targets: Tensor) -> tuple[float, ...]:
    """Negatives / positives of each class, to six digits; 1 for a class that lacks either.

    Args:
        targets: multi-hot rows (N, C), negative where nothing is known.
    """
    present = (targets > 0).sum(0).tolist()
    absent = (targets == 0).sum(0).tolist()
    return tuple(
        float(f"{no / yes:.6g}") if yes and no else 1.0 for yes, no in zip(present, absent)
    )


def recorded_weights(
    asked: Weights, weights: tuple[float, ...] | None
) -> dict[str, tuple[float, ...] | None]:
    """What `Recipe(input=...)` keeps of them: the numbers that "auto" was.

    A resume must find them again; an evaluation takes them from the run, and counts nothing.
    """
    return {"class_weights": weights} if asked == "auto" else {}

"""Class weights from how often each class occurs in the training data."""

from collections.abc import Sequence


def balanced(counts: Sequence[int], power: float = 1.0) -> list[float]:
    """A weight for each class, in proportion to 1 / count**power; the mean over all targets is 1.

    The loss keeps its size, and so does the learning rate that suits it. `power` 1 gives each class
    the same share of the loss (scikit-learn's "balanced"); 0.5 suits pixels, whose counts differ a
    hundredfold. A class that does not occur has weight 1.
    """
    inverse = [count**-power if count else 0.0 for count in counts]
    total = sum(count * weight for count, weight in zip(counts, inverse))
    return [weight * sum(counts) / total if weight else 1.0 for weight in inverse]

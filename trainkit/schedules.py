"""Learning-rate schedules: pure functions of the step.

Each function here returns a schedule, `schedule(step, total_steps, steps_per_epoch) -> multiplier`,
by which the loop multiplies every parameter group's own learning rate. Steps are optimizer updates
counted from 0, the same on any number of processes. `steps_per_epoch` is needed only where a
schedule was given something in epochs. A schedule of your own is any such function: pure, without
memory, and defined for step == total_steps too, since a run records its curve from end to end.

Every schedule takes a linear warm-up from 0, in epochs or in steps (fractions allowed). With a
warm-up of W steps the multiplier is step / W before W; from there on the curve runs over the
remaining steps, so in the formulas below t = step - W and T = total_steps - W. Milestones of `step`
and `multistep` are epochs of the run as printed on screen, warm-up included, as in
PyTorch-Encoding's scheduler.
"""

import math
from collections.abc import Callable, Sequence

from trainkit.errors import UserError

Schedule = Callable[..., float]
"""(step, total_steps, steps_per_epoch=None) -> multiplier of the group's learning rate"""


def constant(*, warmup_epochs: float = 0, warmup_steps: float = 0) -> Schedule:
    """Constant multiplier 1.

    Args:
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: the warm-up is negative, or given in both units.
    """
    return _scheduled(lambda progress: 1.0, warmup_epochs, warmup_steps)


def linear(end: float = 0.0, *, warmup_epochs: float = 0, warmup_steps: float = 0) -> Schedule:
    """A line, 1 - t/T, stretched to finish at `end` instead of 0.

    Args:
        end: multiplier at the last step.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: the warm-up is negative, or given in both units.
    """
    return _scheduled(lambda progress: _between(1.0, end, progress), warmup_epochs, warmup_steps)


def cos(end: float = 0.0, *, warmup_epochs: float = 0, warmup_steps: float = 0) -> Schedule:
    """Half a cosine, from 1 down to `end`.

    It is 0.5 (1 + cos(pi t/T)), stretched to finish at `end`.

    Args:
        end: multiplier at the last step.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: the warm-up is negative, or given in both units.

    Source:
        Loshchilov and Hutter, 2017, SGDR, without restarts.
    """
    return _scheduled(
        lambda progress: _half_cosine(1.0, end, progress), warmup_epochs, warmup_steps
    )


def poly(
    power: float = 0.9, end: float = 0.0, *, warmup_epochs: float = 0, warmup_steps: float = 0
) -> Schedule:
    """Polynomial decay (1 - t/T)^power, stretched to finish at `end`.

    Args:
        power: exponent, above 0.
        end: multiplier at the last step.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: `power` or the warm-up is out of range.

    Source:
        Chen et al., 2017, DeepLab, with power 0.9.
    """
    if power <= 0:
        raise UserError(f"poly: power is {power}; it must be above 0 (0.9 is the usual value)")
    return _scheduled(
        lambda progress: _between(end, 1.0, (1.0 - progress) ** power), warmup_epochs, warmup_steps
    )


def wsd(
    decay: float = 0.2, end: float = 0.0, *, warmup_epochs: float = 0, warmup_steps: float = 0
) -> Schedule:
    """Warm-up, stable, decay: 1 until the last `decay` of T, then linear to `end`.

    Args:
        decay: share of T in which the multiplier falls, in (0, 1].
        end: multiplier at the last step.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: `decay` or the warm-up is out of range.

    Source:
        Hu et al., 2024, MiniCPM.
    """
    if not 0 < decay <= 1:
        raise UserError(
            f"wsd: decay is {decay}; it is the fraction of the run that decays, above 0 and up to 1"
        )
    return _scheduled(
        lambda progress: _between(1.0, end, max(0.0, (progress - (1.0 - decay)) / decay)),
        warmup_epochs,
        warmup_steps,
    )


def one_cycle(
    rise: float = 0.3,
    start: float = 1 / 25,
    end: float = 1 / 25e4,
    *,
    warmup_epochs: float = 0,
    warmup_steps: float = 0,
) -> Schedule:
    """Half a cosine up from `start` to 1, then half a cosine down to `end`.

    Equals torch's `OneCycleLR(max_lr, total_steps)` at every step: the maximum is at step rise * T
    - 1 and the end at step T - 1. It rises by itself; a warm-up comes before the rise.

    Args:
        rise: share of T in which the multiplier rises, in [0, 1).
        start: multiplier at the first step.
        end: multiplier at the last step.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: `rise` or the warm-up is out of range.

    Source:
        Smith and Topin, 2018, Super-Convergence.
    """
    if not 0 <= rise < 1:
        raise UserError(
            f"one_cycle: rise is {rise}; it is the fraction of the run that rises, from 0 to"
            " below 1"
        )

    def curve(step: float, total_steps: float) -> float:
        top, last = rise * total_steps - 1, total_steps - 1
        if step <= top:
            return _half_cosine(start, 1.0, step / top if top else 1.0)
        return _half_cosine(1.0, end, min(1.0, (step - top) / (last - top)) if last > top else 1.0)

    return _warmed_up(lambda t, total, _step, _epoch: curve(t, total), warmup_epochs, warmup_steps)


def step(
    every_epochs: float, gamma: float = 0.1, *, warmup_epochs: float = 0, warmup_steps: float = 0
) -> Schedule:
    """Drops at equal distances: gamma^floor(epoch / every_epochs), epochs of the whole run.

    Args:
        every_epochs: epochs from one drop to the next, above 0.
        gamma: factor of each drop.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: `every_epochs` or the warm-up is out of range.
    """
    if every_epochs <= 0:
        raise UserError(f"step: every_epochs is {every_epochs}; it must be above 0")

    def curve(t: float, total_steps: float, step: int, steps_per_epoch: float | None) -> float:
        return gamma ** math.floor(
            step / (_steps_per_epoch("step", steps_per_epoch) * every_epochs)
        )

    return _warmed_up(curve, warmup_epochs, warmup_steps)


def multistep(
    milestones: Sequence[float],
    gamma: float = 0.1,
    *,
    warmup_epochs: float = 0,
    warmup_steps: float = 0,
) -> Schedule:
    """Drops at given epochs: gamma^(milestones passed).

    Args:
        milestones: epochs of the drops, counted from the start of the run.
        gamma: factor of each drop.
        warmup_epochs: length of the linear warm-up from 0 in epochs.
        warmup_steps: the same in steps, in place of epochs.

    Raises:
        UserError: `milestones` or the warm-up is out of range.
    """
    if list(milestones) != sorted(milestones) or any(milestone <= 0 for milestone in milestones):
        raise UserError(
            f"multistep: milestones are {list(milestones)}; give epochs above 0 in rising order"
        )

    def curve(t: float, total_steps: float, step: int, steps_per_epoch: float | None) -> float:
        length = _steps_per_epoch("multistep", steps_per_epoch)
        return gamma ** sum(step >= milestone * length for milestone in milestones)

    return _warmed_up(curve, warmup_epochs, warmup_steps)


def delayed(schedule: Schedule, steps: int) -> Schedule:
    """Multiplier 0 for some steps, then a schedule over those that remain.

    For a pretrained part that is to wait until the new one is warmed up.

    Args:
        schedule: one of this module's.
        steps: how long it waits, at least 0.

    Raises:
        UserError: `steps` is negative; by the schedule: the run is shorter.

    Source:
        Kerssies et al., 2025, EoMT: `delayed(poly(warmup_steps=1000), 500)` for the encoder, beside
        `poly(warmup_steps=500)` for what is new.
    """
    if steps < 0:
        raise UserError(f"delayed: steps is {steps}; it cannot be negative")

    def after(step: int, total_steps: int, steps_per_epoch: float | None = None) -> float:
        if steps > total_steps:
            raise UserError(
                f"a schedule waits {steps} steps, and the whole run has {total_steps}: let it wait"
                " less, or train for more epochs"
            )
        # also to refuse a warm-up longer than what remains before the first step
        multiplier = schedule(max(0, step - steps), total_steps - steps, steps_per_epoch)
        return 0.0 if step < steps else multiplier

    return after


def _scheduled(
    curve: Callable[[float], float], warmup_epochs: float, warmup_steps: float
) -> Schedule:
    """Make a schedule whose curve depends on t/T alone."""
    return _warmed_up(
        lambda t, total, _step, _epoch: curve(t / total if total else 1.0),
        warmup_epochs,
        warmup_steps,
    )


def _warmed_up(curve: Callable[..., float], warmup_epochs: float, warmup_steps: float) -> Schedule:
    """Put the linear warm-up before `curve(t, T, step, steps_per_epoch)`."""
    if warmup_epochs and warmup_steps:
        raise UserError(
            f"warmup_epochs is {warmup_epochs} and warmup_steps is {warmup_steps}: give the warm-up"
            " in one unit"
        )
    if warmup_epochs < 0 or warmup_steps < 0:
        raise UserError(
            f"the warm-up is {warmup_epochs or warmup_steps}; it cannot be negative (0 = none)"
        )

    def schedule(step: int, total_steps: int, steps_per_epoch: float | None = None) -> float:
        warmup = (
            warmup_epochs * _steps_per_epoch("warm-up", steps_per_epoch)
            if warmup_epochs
            else warmup_steps
        )
        if warmup > total_steps:
            raise UserError(
                f"the warm-up takes {warmup:g} steps and the whole run {total_steps}: "
                "shorten the warm-up or train for more epochs"
            )
        if not 0 <= step <= total_steps:
            raise UserError(
                f"step is {step}; a run of {total_steps} steps has steps 0 to {total_steps}"
            )
        if step < warmup:
            return step / warmup
        return curve(step - warmup, total_steps - warmup, step, steps_per_epoch)

    return schedule


def _steps_per_epoch(what: str, steps_per_epoch: float | None) -> float:
    if steps_per_epoch is None:
        raise UserError(f"{what} is given in epochs: call the schedule with steps_per_epoch")
    return steps_per_epoch


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

"""What changed between a run that began earlier and the command that resumes it."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainkit.errors import UserError, did_you_mean
from trainkit.storage.checkpoint import is_older, steps_done
from trainkit.storage.run_settings import input_of

# Written into "input" only where they differ from what most runs have; else the setting says it.
RECORDED_WHERE_UNUSUAL = frozenset({"class_weights", "channels", "bits"})
# What a resume must keep, and earlier versions did not write.
ADDED = frozenset({"evaluation_protocol", "evaluation_split", "evaluation_images", "precise_bn"})
# Where the images lie; which they are is seen by their number, classes and fingerprint.
PLACES = frozenset({"data"})
# Settings of recipes that --allow-schedule-change is for, and what follows from them.
OF_SCHEDULE = frozenset({"epochs", "warmup_epochs", "schedule"})
FROM_SCHEDULE = frozenset({"total_steps", "schedule"})
ABSENT = object()  # in place of a value
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, which is another in each process


@dataclass(frozen=True)
class Change:
    """A setting that differs from what a run began with."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} was {_short(self.before)} and is {_short(self.now)}"

    def recorded(self, step: int) -> dict[str, Any]:
        """As settings.json holds it: after so many steps."""
        before, now = (None if each is ABSENT else each for each in (self.before, self.now))
        return {"step": step, "name": self.name, "was": before, "is": now}


@dataclass(frozen=True)
class Changes:
    """What changed, of which none is refused."""

    changes: list[Change] = field(default_factory=list)
    reopens: bool = False
    """whether a run that is finished has more to do"""


def compare_settings(
    folder: Path,
    recorded: Mapping[str, Any],
    settings: Mapping[str, Any],
    now: Mapping[str, Any],
    allow_schedule_change: bool = False,
    allow_change: Collection[str] = (),
    was_evaluated: bool = True,
) -> Changes:
    """What changed since a run began, and may.

    Settings of a recipe must stay, as must what is to be kept of the recipe that they built: they
    change what a step computes, or what the best checkpoint was chosen by. Before the first
    checkpoint there is neither. Those that the recipe has gained or lost since are reported:
    nothing says what they were.

    Args:
        folder: of the run.
        recorded: its settings.json, by today's names.
        settings: the recipe's, as they are given now.
        now: what a resume must keep, see `TrainPlan.resume_invariants`, and the seed.
        allow_schedule_change: length and schedule may have changed.
        allow_change: settings that may have changed.
        was_evaluated: whether the run has been; else the evaluation may become another one, as
            after an OOM in the first.

    Raises:
        UserError: something else has changed, or the run has done more steps than it is to have.
    """
    kept = _changes_of_kept(recorded, now)
    own = _changes(_without(recorded["settings"], now["input"]), _without(settings, now["input"]))
    unknown = sorted(set(allow_change) - recorded["settings"].keys() - settings.keys())
    if settings and unknown:
        raise UserError(
            f"--allow-change {unknown[0]}: the recipe has no such setting"
            f"{did_you_mean(unknown[0], settings)}"
        )
    done = steps_done(folder / "checkpoints")
    may_change = PLACES | set(allow_change) if done else set(own)
    may_stay = frozenset() if done and was_evaluated else ADDED
    if allow_schedule_change:
        may_change |= OF_SCHEDULE
        may_stay |= FROM_SCHEDULE
    refused = {
        name: change
        for name, change in own.items()
        if name not in may_change and ABSENT not in (change.before, change.now)
    }
    must_stay = {name: change for name, change in kept.items() if name not in may_stay}
    refused = {**must_stay, **refused}
    if refused:
        raise _refusal(folder, refused, must_stay)
    if done > now["total_steps"]:
        raise UserError(
            f"the run in {folder} has done {done} steps, and is to have"
            f" {now['total_steps']}: --allow-schedule-change is for a longer run; for a shorter"
            " one take another folder with --out, and its weights with --init-from"
        )
    return Changes([*{**kept, **own}.values()], reopens=bool(kept))


def _changes_of_kept(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """What changed of what a resume must keep; what earlier versions did not write is unknown."""
    # by the names of settings, which may leave them open
    input_now, input_before = now["input"], input_of(recorded)
    unknown = ADDED - recorded.keys()
    names = [name for name in now if name != "input" and name not in unknown]
    before = {name: recorded[name] for name in names if name in recorded}
    kept = _changes(before, {name: now[name] for name in names})
    before = {name: input_before.get(name, value) for name, value in input_now.items()}
    for name in RECORDED_WHERE_UNUSUAL & input_now.keys() - input_before.keys():
        before[name] = recorded["settings"].get(name)
    return {**kept, **_changes(before, input_now)}


def _refusal(folder: Path, refused: Mapping[str, Change], kept: Mapping[str, Change]) -> UserError:
    """The error about what changed, of which `kept` is what a resume must keep in any case."""
    shown = dict(refused)
    if {"lr", "lrs"} <= shown.keys():
        del shown["lrs"]  # of each parameter group, which follow from it
    if {"epochs", "schedule"} <= shown.keys() and "schedule" in kept:
        del shown["schedule"]  # its multipliers, which follow from the length
    own = sorted(refused.keys() - OF_SCHEDULE - FROM_SCHEDULE)
    flags = [f"--allow-change {' '.join(own)}"] if own else []
    if refused.keys() & (OF_SCHEDULE | FROM_SCHEDULE):
        flags.append("--allow-schedule-change")
    otherwise = f", or {' '.join(flags)} to train on otherwise"
    if kept.keys() - FROM_SCHEDULE:
        otherwise = ""
    if "evaluation_protocol" in kept:
        otherwise += f", and trainkit evaluate {folder} to measure its weights in another way"
    return UserError(
        f"the run in {folder} was started with different settings:"
        f" {'; '.join(map(str, shown.values()))}. For a run with the new settings give another"
        f" folder with --out, and --init-from {folder} to begin it from this one's weights; to"
        f" resume this one give its settings{otherwise}; --resume never starts afresh here (this"
        f" run is moved aside){_of_older(folder, refused)}"
    )


def _of_older(folder: Path, refused: Mapping[str, Change]) -> str:
    """A hint for a run of an older trainkit, whose parameters have other names or groups."""
    if not (refused.keys() & {"model", "lrs"} and is_older(folder / "checkpoints")):
        return ""
    return (
        ". An older trainkit began it, which named and grouped some parameters otherwise:"
        " evaluate, predict and export read its weights, and --init-from begins another run"
        " from them"
    )


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """What changed, by name."""
    found = {}
    for name in sorted(before.keys() | now.keys()):
        values = before.get(name, ABSENT), now.get(name, ABSENT)
        if ABSENT in values and (values[0] is None or values[1] is None):
            continue  # it is off, and was not known
        if _differ(*values):
            found[name] = Change(name, *values)
    return found


def _differ(before: Any, now: Any) -> bool:
    return before != now and ADDRESS.sub("", repr(before)) != ADDRESS.sub("", repr(now))


def _short(value: Any) -> str:
    """A value as a person reads it: three digits of each number in a list."""
    if value is ABSENT:
        return "no setting"
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(f'{item:.3g}' for item in value)}]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."  # the names of a thousand classes

"""What changed between a run that began earlier and the command that resumes it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.storage.checkpoint import is_older, steps_done
from trainkit.storage.run_settings import input_of

# Written into "input" only where they differ from what most runs have; else the setting says it.
RECORDED_WHERE_UNUSUAL = frozenset({"class_weights", "channels", "bits"})


def compare_settings(
    folder: Path,
    recorded: Mapping[str, Any],
    settings: Mapping[str, Any],
    now: Mapping[str, Any],
    allow_schedule_change: bool,
) -> tuple[list[str], bool]:
    """What changed since a run began, a line each, and whether any of it affects the result.

    Args:
        folder: of the run.
        recorded: its settings.json, by today's names.
        settings: the recipe's, as they are given now.
        now: what a resume must keep, see `TrainPlan.resume_invariants`, and the seed.
        allow_schedule_change: length and schedule may have changed.

    Raises:
        UserError: something else that affects the result has changed, or the run has done more
            steps than it is to have.
    """
    # by the names of settings, which may leave them open
    input_now, input_before = now["input"], input_of(recorded)
    refused = _changes(
        {name: recorded.get(name) for name in now if name != "input"}, _without(now, ["input"])
    )
    before = {name: input_before.get(name, value) for name, value in input_now.items()}
    for name in RECORDED_WHERE_UNUSUAL & input_now.keys() - input_before.keys():
        before[name] = recorded["settings"].get(name)
    refused |= _changes(before, input_now)
    changed = {
        **_changes(_without(recorded["settings"], input_now), _without(settings, input_now)),
        **refused,
    }
    allowed = {"total_steps", "schedule"} if allow_schedule_change else set()
    if refused.keys() - allowed:
        if {"lr", "lrs"} <= changed.keys():
            del changed["lrs"]  # of each parameter group, which follow from it
        if {"epochs", "schedule"} <= changed.keys():
            del changed["schedule"]  # its multipliers, which follow from the length
        raise UserError(
            f"the run in {folder} was started with different settings:"
            f" {'; '.join(changed.values())}. For a run with the new settings give another"
            " folder with --out; to resume this one give its settings, or"
            " --allow-schedule-change for a different length or schedule; --resume never"
            f" starts afresh here (this run is moved aside){_of_older(folder, refused)}"
        )
    done = steps_done(folder / "checkpoints")
    if done > now["total_steps"]:
        raise UserError(
            f"the run in {folder} has done {done} steps, and is to have"
            f" {now['total_steps']}: --allow-schedule-change is for a longer run; for a shorter"
            " one take another folder with --out, and its weights with --init-from"
        )
    return list(changed.values()), bool(refused)


def _of_older(folder: Path, refused: Mapping[str, str]) -> str:
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


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Name -> what changed, in words."""
    return {
        name: f"{name} was {_in_words(name, before)} and is {_in_words(name, now)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _in_words(name: str, values: Mapping[str, Any]) -> str:
    return _short(values[name]) if name in values else "no setting"


def _short(value: Any) -> str:
    """A value as a person reads it: three digits of each number in a list."""
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(f'{item:.3g}' for item in value)}]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."  # the names of a thousand classes

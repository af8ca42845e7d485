"""Maps names of settings and options in runs of earlier versions to today's."""

import re
from collections.abc import Collection, Mapping
from typing import Any

SETTINGS = {
    "base": "long_side",
    "head": "head_lr_mult",
    "max_share": "cat_max_ratio",
    "channels": "head_channels",
}
OPTIONS = {
    "init": "init_from",
    "keep": "keep_checkpoints",
    "rebase": "allow_schedule_change",
    "background_save": "async_checkpoint",
}
# what a resume must keep, in settings.json
KEPT = {"lanes": "interleaved_row_groups"}
# what a checkpoint holds beside the model, and how far the training was
STATE = {"window": "unlogged"}
PROGRESS = {
    "windows_without_targets": "intervals_without_targets",
    "window_targets": "interval_targets",
}
# --model had the backbone in it: fcn_resnet50
NETWORK = re.compile(r"(fcn|deeplabv3|lraspp)_(\w+)")
SMALL = {"small_fcn": "fcn", "small_lraspp": "lraspp"}


def renamed_settings(recorded: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The settings of a run by today's names.

    Args:
        recorded: as settings.json of the run holds them.
        known: the settings of the recipe. A name that is one of them is not old, whatever other
            recipes call so.
    """
    found = {}
    for name, value in recorded.items():
        new = SETTINGS.get(name)
        if new is not None and new in known and name not in known and new not in recorded:
            name = new
        found[name] = value
    # of a recipe that has channels of images by now
    if "head_channels" in known and "head_channels" not in found and "channels" in found:
        found["head_channels"] = found.pop("channels")
    if "backbone" in known and "backbone" not in recorded:
        _take_apart(found)
    return found


def _take_apart(settings: dict[str, Any]) -> None:
    """Model and backbone, where --model had both.

    A small network had no published weights, whatever was asked.
    """
    model = str(settings.get("model"))
    network = NETWORK.fullmatch(model)
    if network is not None:
        settings["model"], settings["backbone"] = network.groups()
    elif model in SMALL:
        settings |= {"model": SMALL[model], "backbone": "small", "pretrained": False}


def renamed_options(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run by today's names."""
    return {OPTIONS.get(name, name): value for name, value in recorded.items()}


def renamed_kept(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What settings.json of a run holds, by today's names of what a resume must keep."""
    return {KEPT.get(name, name): value for name, value in recorded.items()}


def renamed_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint by today's names."""
    found = {STATE.get(name, name): value for name, value in saved.items()}
    progress = found["progress"].items()
    return {**found, "progress": {PROGRESS.get(name, name): value for name, value in progress}}

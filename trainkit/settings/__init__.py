"""Settings of recipes: those that all share, optimizers and schedules by name, variants."""

from trainkit.settings.shared import (
    ClassSettings,
    OptimizerSettings,
    OrientationSettings,
    ScheduleSettings,
    SharedSettings,
)

__all__ = [
    "ClassSettings",
    "OptimizerSettings",
    "OrientationSettings",
    "ScheduleSettings",
    "SharedSettings",
]

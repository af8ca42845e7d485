"""The trackers of accelerate, and what they lack: a run's identity on a resume, and pictures."""

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainkit.errors import MissingPackageError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
TAKE_SEVERAL = ("tensorboard", "mlflow")  # rows in one call, see `send_rows`
PICTURE, PREVIEW = "val/predictions", "val/preview"


def require_installed(names: tuple[str, ...]) -> None:
    """Raise MissingPackageError where a tracker's package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise MissingPackageError(
                f'--track {name} needs {name}: pip install "trainkit[{name}]"'
            )


def new_identity(name: str, run: Path) -> str | None:
    """What a new run is called at the tracker `name`; None where the tracker says it once begun."""
    if name == "tensorboard":
        return name  # its folder in the run's
    if name == "mlflow":
        return None
    return uuid4().hex[:8] if name == "wandb" else f"{run.name}-{uuid4().hex[:8]}"


def started(name: str, identity: str | None, run: Path, project: str, last_step: int) -> Any:
    """Start the tracker `name`, as accelerate has it, so that it continues what it has of the run.

    Args:
        name: one of TRACKERS.
        identity: see `new_identity`.
        run: the run's folder.
        project: under which runs are grouped.
        last_step: the last one that it has been sent.
    """
    from accelerate import tracking

    if name == "tensorboard":
        purge = {"purge_step": last_step + 1} if last_step else {}
        tracker = tracking.TensorBoardTracker(identity, run, **purge)
    elif name == "wandb":
        tracker = tracking.WandBTracker(
            project, id=identity, resume="allow", name=run.name, dir=str(run)
        )
    elif name == "trackio":
        tracker = tracking.TrackioTracker(project, name=identity, resume="allow", embed=False)
    else:
        tracker = tracking.MLflowTracker(project, run_id=identity, run_name=run.name)
    tracker.start()
    return tracker


def least_step(name: str, cursor: Mapping[str, Any] | None) -> int:
    """The first step that a resumed run may send: W&B drops those that it has had before."""
    if cursor is None or name != "wandb":
        return 0
    return max(cursor["step"], cursor["evaluation"]) + 1


def identity_of(tracker: Any) -> str | None:
    """What MLflow calls the run that it has begun; None for the others, which had it before."""
    return tracker.tracker.info.run_id if tracker.name == "mlflow" else None


def send_rows(tracker: Any, rows: Sequence[tuple[Mapping[str, float], int]]) -> None:
    """Send the values of several steps, in their order.

    MLflow takes up to 1,000 values in one call, which costs it what a call of one row does;
    TensorBoard's file is flushed once, and has one event for a row. The others take a row a call.

    Args:
        tracker: one that was started.
        rows: each row's values by name, and its step.
    """
    if tracker.name == "mlflow":
        _send_to_mlflow(tracker, rows)
    elif tracker.name == "tensorboard":
        _send_to_tensorboard(tracker, rows)
    else:
        for values, step in rows:
            tracker.log(dict(values), step=step)


def _send_to_mlflow(tracker: Any, rows: Sequence[tuple[Mapping[str, float], int]]) -> None:
    import mlflow
    from mlflow.entities import Metric
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

    now = int(1000 * time.time())
    metrics = [
        Metric(name, value, now, step) for values, step in rows for name, value in values.items()
    ]
    for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        part = metrics[first : first + MAX_METRICS_PER_BATCH]
        mlflow.MlflowClient().log_batch(tracker.tracker.info.run_id, metrics=part)


def _send_to_tensorboard(tracker: Any, rows: Sequence[tuple[Mapping[str, float], int]]) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    for values, step in rows:
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        tracker.writer.file_writer.add_summary(Summary(value=shown), step)
    tracker.writer.flush()


def send_picture(tracker: Any, file: Path, step: int, name: str = PICTURE) -> None:
    """Send an image file as the predictions of an evaluation; an own tracker may take none."""
    if tracker.name == "mlflow":
        tracker.log_artifact(str(file), f"{name}/step-{step:09d}")
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(str(file))}, step=step)
    elif hasattr(tracker, "log_images"):
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))[None]  # (1, H, W, 3)
        more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pixels}, step=step, **more)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str | int | float | bool]:
    """Settings without nesting, "a.b" for b in a, and all but numbers as text."""
    values: dict[str, str | int | float | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{before}{name}.")
        else:
            plain = isinstance(value, (str, int, float, bool))
            values[f"{before}{name}"] = value if plain else str(value)
    return values

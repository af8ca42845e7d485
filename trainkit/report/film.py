"""The film strip of a report: predictions of the same validation images after each evaluation."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.report.curves import steps_per_epoch
from trainkit.report.run_data import RunData
from trainkit.report.thumbnails import entries_of, files_of
from trainkit.report.wording import number
from trainkit.storage.checked_json import Fault, is_number
from trainkit.storage.evaluation_files import previews

BUDGET = 1_200_000  # bytes of its images as base64
MOST_FRAMES = 60  # evaluations that are shown
Take = Callable[[list[Path]], list[str]]  # see `Pictures.take`


def film(run: RunData, take: Take, notes: list[str]) -> dict[str, Any] | None:
    """The film strip: a row for each image, a column for each evaluation.

    Args:
        run: what its folder holds.
        take: gives pictures as data URIs.
        notes: gets a line about what is damaged.

    Returns:
        "frames", "rows" and "note" for the template; None where the run keeps no predictions.
    """
    indices: dict[int, dict[int, dict[str, Any]]] = {}  # step -> index of an image -> its entry
    folders: dict[int, Path] = {}
    for step, picture in previews(run.folder).items():
        folder = picture.with_suffix("")
        try:
            indices[step] = {entry["index"]: entry for entry in entries_of(folder)}
        except Fault as error:
            notes.append(f"preview/{folder.name}/index.json is left out: {error}.")
            continue
        folders[step] = folder
    if not folders:
        return None
    steps = _spread(list(folders), _most(folders), run.best_step)
    rows = []
    for index, entry in indices[steps[-1]].items():
        cells = [
            _cell(folders[step], index, indices[step][index], take)
            if index in indices[step]
            else None
            for step in steps
        ]
        rows.append({**_still(folders[steps[-1]], index, entry, take), "cells": cells})
    count = f"{len(steps)} of {len(folders)} evaluations" if len(steps) < len(folders) else ""
    return {
        "frames": [_frame(run, step) for step in steps],
        "rows": rows,
        "with_truth": any(row["truth"] for row in rows),
        "note": f"{count}, evenly spaced, for the size of this page." if count else "",
    }


def _most(folders: Mapping[int, Path]) -> int:
    """How many evaluations there is room for."""
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*-prediction.webp"))
        for folder in folders.values()
    ]
    each = max(1.0, 4 / 3 * sum(sizes) / len(sizes))
    return max(2, min(MOST_FRAMES, int(BUDGET / each)))


def _spread(steps: Sequence[int], most: int, best: int | None) -> list[int]:
    """At most so many steps, evenly spaced: the first and the last, and the best one."""
    if len(steps) <= most:
        return list(steps)
    chosen = {steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)}
    if best is not None and best in steps and best not in chosen:
        inner = [step for step in chosen if step not in (steps[0], steps[-1])]
        distances = {abs(step - best): step for step in inner}
        if distances:
            chosen.remove(distances[min(distances)])
        chosen.add(best)
    return sorted(chosen)


def _frame(run: RunData, step: int) -> dict[str, Any]:
    each = steps_per_epoch(run)
    return {
        "step": f"step {step:,}",
        "epoch": f"epoch {number(step / each)}" if each else "",
        "best": step == run.best_step,
    }


def _still(folder: Path, index: int, entry: Mapping[str, Any], take: Take) -> dict[str, Any]:
    """What is the same after each evaluation: the image and the truth."""
    files = files_of(folder, index)
    sources = take([files[part] for part in ("image", "target") if part in files])
    target = entry.get("target")
    return {
        "name": str(entry.get("name") or f"image {index}"),
        "image": sources[0] if sources else None,
        "truth": sources[1] if len(sources) > 1 else None,
        "target": None if target is None else str(target),
    }


def _cell(folder: Path, index: int, entry: Mapping[str, Any], take: Take) -> dict[str, Any]:
    """What an evaluation says of an image."""
    files = files_of(folder, index)
    sources = take([files["prediction"]]) if "prediction" in files else []
    ranking = entry.get("ranking")
    classes = [
        {
            "name": str(pair[0]),
            "share": f"{100 * pair[1]:.0f} %",
            "right": str(pair[0]) == entry.get("target"),
        }
        for pair in (ranking if isinstance(ranking, list) else [])
        if isinstance(pair, list) and len(pair) == 2 and is_number(pair[1])
    ]
    measure = ""
    if is_number(entry.get("iou")):
        measure = f"IoU {100 * entry['iou']:.0f} %"
    elif not classes and is_number(entry.get("loss")):
        measure = f"loss {number(float(entry['loss']))}"
    return {"source": sources[0] if sources else None, "classes": classes, "measure": measure}

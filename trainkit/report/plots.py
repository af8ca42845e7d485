"""Pictures of a run as PNG files, for READMEs and model cards; drawn by matplotlib, an extra."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainkit.errors import MissingPackageError
from trainkit.files import replace_file
from trainkit.report.class_results import MOST_OF_MATRIX, class_evaluation
from trainkit.report.curves import curves
from trainkit.report.images import shown_files
from trainkit.report.overview import name_of
from trainkit.report.run_data import RunData

PLOTS = ("curves.png", "confusion.png", "predictions.png", "train_batch.png")
COLORS = ("#2f6fde", "#e0792b", "#1d9a77", "#a44fc0", "#c53a5b", "#8a7a12", "#2c98b8", "#6d6f78")
CHARTS = 6  # of curves.png, the first ones of the report
TILE, CAPTION, MARGIN = 240, 22, 8  # of predictions.png, in pixels
NAMED = 40  # classes, whose names still fit beside a matrix


def write_plots(run: RunData) -> list[Path]:
    """Draw what a run's folder has, into PNG files in it.

    Returns:
        The files that were written; one that there is nothing for is removed, lest it tells of an
        earlier run.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    drawings: dict[str, Callable[[RunData], bytes | None]] = {
        "curves.png": _curves,
        "confusion.png": _confusion,
        "predictions.png": _predictions,
        "train_batch.png": _train_batch,
    }
    written = []
    for name, draw in drawings.items():
        content = draw(run)
        if content is None:
            (run.folder / name).unlink(missing_ok=True)
            continue
        replace_file(run.folder / name, content)
        written.append(run.folder / name)
    return written


def _figure(width: float, height: float, **more: Any) -> Any:
    """A figure that belongs to no window, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError('plots need matplotlib: pip install "trainkit[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**more)


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _curves(run: RunData) -> bytes | None:
    """The first charts of the report; None for an empty log."""
    charts = curves([run], [name_of(run)])["charts"][:CHARTS]
    if not charts:
        return None
    columns = min(3, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure, grid = _figure(4.4 * columns, 3 * rows, nrows=rows, ncols=columns, squeeze=False)
    places = list(grid.ravel())
    for axes, chart in zip(places, charts):
        factor = 100 if chart["unit"] == "percent" else 1
        for series, color in zip(chart["series"], COLORS):
            values = [math.nan if value is None else factor * value for value in series["y"]]
            marker = "o" if len(values) <= 40 else None
            axes.plot(
                series["x"], values, color=color, marker=marker, markersize=3, linewidth=1.4,
                label=_plain(series["label"]),
            )  # fmt: skip
        axes.set_title(_plain(chart["title"]) + (", %" if factor == 100 else ""), fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        if len(chart["series"]) > 1:
            axes.legend(frameon=False, fontsize=9)
    for axes in places[len(charts) :]:
        axes.set_visible(False)
    return _png(figure)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula, with what cannot be printed escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _confusion(run: RunData) -> bytes | None:
    """The confusion matrix, as shares of each true class; None above 100 classes."""
    evaluated = class_evaluation(run)
    if evaluated is None or len(evaluated[0]) > MOST_OF_MATRIX or not evaluated[1].any():
        return None
    names, matrix = evaluated[0], evaluated[1]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(11, max(4, 0.36 * len(names)))
    figure, axes = _figure(side + 1.6, side + 1)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    if len(names) <= NAMED:
        places = range(len(names))
        shown = [_plain(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
        axes.set_xticks(places, shown, rotation=90, fontsize=9)
        axes.set_yticks(places, shown, fontsize=9)
    if len(names) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                axes.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center", color=color,
                    fontsize=9,
                )  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the class")
    return _png(figure)


def _predictions(run: RunData) -> bytes | None:
    """The worst and the median validation images with truth and prediction; None for none."""
    tiles: list[tuple[list[Image.Image], str]] = []
    found = shown_files(run)
    has_masks = any("target" in files for _, files in found)
    for kind in ("worst", "median"):
        of_kind = [(entry, files) for entry, files in found if entry["kind"] == kind and files]
        for entry, files in of_kind[: 4 if has_masks else 8]:
            parts = [_small(file) for part, file in files.items() if part != "error"]
            labels = [str(entry[name]) for name in ("target", "predicted") if entry.get(name)]
            tiles.append((parts, " → ".join(labels) or str(entry.get("name") or "")))
    if not tiles:
        return None
    widest = max(len(parts) for parts, _ in tiles)
    highest = max(part.height for parts, _ in tiles for part in parts)
    columns = 2 if widest > 1 else 4
    rows = math.ceil(len(tiles) / columns)
    wide, high = TILE * widest + MARGIN, highest + CAPTION + MARGIN
    sheet = Image.new("RGB", (wide * columns, high * rows), "white")
    font = ImageFont.load_default(14)
    draw = ImageDraw.Draw(sheet)
    for number, (parts, text) in enumerate(tiles):
        left, top = number % columns * wide, number // columns * high
        for place, part in enumerate(parts):
            sheet.paste(part, (left + place * TILE, top + (highest - part.height) // 2))
        draw.text((left + 2, top + highest + 3), _printable(text, widest), "black", font)
    return _as_png(sheet)


def _small(file: Path) -> Image.Image:
    """A thumbnail as wide as a tile."""
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    scale = min(TILE / small.width, TILE / small.height)
    return small.resize((round(small.width * scale) or 1, round(small.height * scale) or 1))


def _printable(text: str, widest: int) -> str:
    """What Pillow's own font can draw of a text, as much as fits below a tile."""
    return text.encode("utf-8", "backslashreplace").decode()[: 30 * widest]


def _train_batch(run: RunData) -> bytes | None:
    """The first batch of training; None where the run has no picture of it."""
    file = run.folder / "train_batch.jpg"
    if not file.is_file():
        return None
    with Image.open(file) as picture:
        return _as_png(picture.convert("RGB"))


def _as_png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()

"""Masks drawn from the shapes of LabelMe's JSON files."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from trainkit.data.image_io import LabelError
from trainkit.data.text_files import read_text
from trainkit.errors import DataError, UserError

IGNORED = 255  # the train id that counts nowhere
BACKGROUND = ("background", "_background_", "__background__")
UNCOUNTED = ("__ignore__", "_ignore_", "ignore")  # labels of shapes that count nowhere


def background_id(names: Sequence[str]) -> int:
    """The train id of pixels outside of all shapes: that of a class called background.

    IGNORED where there is no such class.
    """
    return next((place for place, name in enumerate(names) if name in BACKGROUND), IGNORED)


def labelme_labels(file: Path, names: Sequence[str]) -> Tensor:
    """Draw the shapes of a file as train ids, uint8 (H, W), as LabelMe's own tools draw them.

    Polygons, rectangles and circles; of several at one pixel the last one of the file.

    Args:
        file: the JSON file.
        names: of the classes, in the order of their ids. A shape that is labelled __ignore__
            counts nowhere, as do pixels outside of all shapes where no class is called background.

    Raises:
        DataError: it is no file of LabelMe, or has a shape without an area.
        LabelError: a shape's label is none of the classes.
    """
    try:
        content = json.loads(read_text(file))
        width, height = int(content["imageWidth"]), int(content["imageHeight"])
        shapes = [(str(shape["label"]), *_outline(shape)) for shape in content["shapes"]]
    except UserError as error:  # which is a ValueError, too
        raise DataError(f"{file}: {error}") from error
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file} is no file of LabelMe: {what}; save it anew") from error
    if min(width, height) < 1:
        raise DataError(f"{file} is of an image of {width} x {height} pixels; save it anew")
    ids = dict.fromkeys(UNCOUNTED, IGNORED) | {name: place for place, name in enumerate(names)}
    image = Image.new("L", (width, height), background_id(names))
    draw = ImageDraw.Draw(image)
    for label, kind, points in shapes:
        if label not in ids:
            raise LabelError(
                f"{file} has a shape of {label!r}; the {len(names)} classes are"
                f" {', '.join(names[:10])}: name it in --classes, or rename it, __ignore__ where"
                " it is to count nowhere"
            )
        {"polygon": draw.polygon, "rectangle": draw.rectangle, "circle": draw.ellipse}[kind](
            points, fill=ids[label], outline=ids[label]
        )
    return torch.from_numpy(np.array(image))


def shape_labels(file: Path) -> set[str]:
    """The labels of the shapes in a file of LabelMe. Raises DataError where it is none."""
    try:
        return {str(shape["label"]) for shape in json.loads(read_text(file))["shapes"]}
    except UserError as error:
        raise DataError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file} is no file of LabelMe: {what}; save it anew") from error


def _outline(shape: dict[str, Any]) -> tuple[str, list[tuple[float, float]]]:
    """How a shape is drawn, and the corners, or those of the box around it."""
    kind = shape.get("shape_type") or "polygon"
    if any(len(point) != 2 for point in shape["points"]):
        raise UserError(
            f"a shape of {shape['label']!r} has points of other than two numbers, x and y: draw it"
            " anew"
        )
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if not all(math.isfinite(value) for point in points for value in point):
        raise UserError(f"a shape of {shape['label']!r} has a point at infinity: draw it anew")
    if kind == "polygon" and len(points) > 2:
        return kind, points
    if kind == "rectangle" and points:
        (left, right), (top, bottom) = (
            sorted((points[0][0], points[-1][0])),
            sorted((points[0][1], points[-1][1])),
        )
        return kind, [(left, top), (right, bottom)]
    if kind == "circle" and len(points) == 2:
        (x, y), (on_x, on_y) = points
        radius = math.hypot(on_x - x, on_y - y)
        return kind, [(x - radius, y - radius), (x + radius, y + radius)]
    raise UserError(
        f"a shape of {shape['label']!r} is a {kind} of {len(points)} points, which trainkit does"
        " not draw: make it a polygon, a rectangle or a circle"
    )

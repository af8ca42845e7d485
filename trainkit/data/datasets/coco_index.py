"""Reads COCO's instances_*.json object by object into a few flat arrays, which are cached."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.data.datasets.cache import cached, short_hash
from trainkit.data.datasets.rle import decode_counts, polygon_to_mask, runs_to_mask, to_grid
from trainkit.data.text_files import read_text
from trainkit.errors import UserError

VERSION = 2  # of what the arrays mean
LONGEST = 100  # characters of a file's name that list the categories
Progress = Callable[[int, int], None]
_SPACE = re.compile(r"[ \t\r\n]*")


def open_index(
    annotations: Path,
    categories: Sequence[int],
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Mapping[str, np.ndarray]:
    """Open the index of an annotation file, from the cache or read now, in seconds to a minute.

    Arrays: per image `names_ends` (into the bytes `names`), `heights`, `widths`, `areas` (sum over
    its objects, in pixels) and `objects` (the end of its objects); per object `classes`, `crowd`,
    `is_runs` and `parts` (the end of its parts); per part `ends` into `values`, which are run
    lengths, or a polygon's corners as `rle.to_grid` makes them.

    Args:
        annotations: the file.
        categories: COCO's ids of the classes 1, 2, ...; objects of others are left out.
        folder: of the cache; None for the default.
        progress: called with the characters read and their number.

    Raises:
        UserError: the file is not COCO's.
    """
    chosen = "-".join(map(str, categories))
    chosen = chosen if len(chosen) <= LONGEST else short_hash(chosen.encode())
    return cached(
        f"coco-v{VERSION}-{chosen}",
        [annotations],
        lambda: _build(annotations, categories, progress),
        folder,
    )


def masks_of(index: Mapping[str, np.ndarray], image: int) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Yield class, crowd and mask, bool (H, W), of each object of an image, in the file's order."""
    height, width = int(index["heights"][image]), int(index["widths"][image])
    for item in range(*_span(index["objects"], image)):
        mask = np.zeros((height, width), dtype=bool)
        for part in range(*_span(index["parts"], item)):
            values = index["values"][slice(*_span(index["ends"], part))]
            mask |= (runs_to_mask if index["is_runs"][item] else polygon_to_mask)(
                values, height, width
            )
        yield int(index["classes"][item]), bool(index["crowd"][item]), mask


def name_of(index: Mapping[str, np.ndarray], image: int) -> str:
    """The image's file name."""
    return (
        index["names"][slice(*_span(index["names_ends"], image))]
        .tobytes()
        .decode(errors="surrogateescape")
    )


def _span(ends: np.ndarray, place: int) -> tuple[int, int]:
    return int(ends[place - 1]) if place else 0, int(ends[place])


def _build(
    file: Path, categories: Sequence[int], progress: Progress | None
) -> dict[str, np.ndarray]:
    classes = {category: place for place, category in enumerate(categories, start=1)}
    images: dict[int, tuple[str, int, int]] = {}
    objects: dict[int, list[tuple]] = {}
    reported = 0
    try:
        text = read_text(file)
        for key, element, end in elements(text):
            if key == "images":
                images[element["id"]] = element["file_name"], element["height"], element["width"]
            elif key == "annotations" and element["category_id"] in classes:
                objects.setdefault(element["image_id"], []).append(_object(element, classes))
            if progress is not None and end - reported > len(text) // 200:
                reported = end
                progress(reported, len(text))
        if not images:
            raise UserError("it has no images")
        _require_sizes(images, objects)
        if progress is not None:
            progress(len(text), len(text))
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is not a file of COCO's instances: {what}; get it anew") from error
    return _arrays(images, objects)


def _object(element: dict[str, Any], classes: Mapping[int, int]) -> tuple:
    """Class, crowd, whether the parts are run lengths, the parts, the area, and height and width.

    Those are of run lengths that say them, else None.
    """
    shape = element["segmentation"]
    is_runs = isinstance(shape, dict)
    if is_runs:
        counts = shape["counts"]
        parts = [
            np.asarray(
                counts if isinstance(counts, list) else decode_counts(counts), dtype=np.int32
            )
        ]
    else:
        parts = [to_grid(polygon) for polygon in shape]
    return (
        classes[element["category_id"]],
        bool(element.get("iscrowd", 0)),
        is_runs,
        parts,
        element.get("area", 0),
        shape.get("size") if is_runs else None,
    )


def _require_sizes(
    images: dict[int, tuple[str, int, int]], objects: dict[int, list[tuple]]
) -> None:
    """Raise UserError for run lengths of another size than their image's, as of a turned one."""
    for image, (name, height, width) in images.items():
        for *_, size in objects.get(image, []):
            if size is not None and list(size) != [height, width]:
                raise UserError(
                    f"{name} has a height and width of {[height, width]}, and run lengths of"
                    f" {list(size)}"
                )


def _arrays(
    images: dict[int, tuple[str, int, int]], objects: dict[int, list[tuple]]
) -> dict[str, np.ndarray]:
    of_images = [objects.get(image, []) for image in images]
    flat = [item for items in of_images for item in items]
    parts = [part for item in flat for part in item[3]]
    names = [name.encode(errors="surrogateescape") for name, _, _ in images.values()]
    return {
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "names_ends": _ends(map(len, names)),
        "heights": np.array([height for _, height, _ in images.values()], dtype=np.uint32),
        "widths": np.array([width for _, _, width in images.values()], dtype=np.uint32),
        "areas": np.array(
            [sum(item[4] for item in items) for items in of_images], dtype=np.float32
        ),
        "objects": _ends(map(len, of_images)),
        "classes": np.array([item[0] for item in flat], dtype=np.uint16),
        "crowd": np.array([item[1] for item in flat], dtype=bool),
        "is_runs": np.array([item[2] for item in flat], dtype=bool),
        "parts": _ends(len(item[3]) for item in flat),
        "ends": _ends(map(len, parts)),
        "values": np.concatenate([np.zeros(0, dtype=np.int32), *parts]),
    }


def _ends(lengths: Any) -> np.ndarray:
    return np.cumsum(np.fromiter(lengths, dtype=np.int64), dtype=np.int64)


def elements(text: str) -> Iterator[tuple[str, Any, int]]:
    """Yield (key, element, end) of every element of the lists in a JSON object.

    The tree of all of them would take six times the size of the file, text and arrays together
    twice.
    """
    decode = json.JSONDecoder().raw_decode
    place = _after(text, 0, "{")
    while text[place : place + 1] != "}":
        key, place = decode(text, place)
        place = _after(text, place, ":")
        if text[place : place + 1] != "[":
            _, place = decode(text, place)
        else:
            place = _after(text, place, "[")
            while text[place : place + 1] != "]":
                element, place = decode(text, place)
                yield key, element, place
                place = _skip(text, place)
                if text[place : place + 1] != "]":
                    place = _after(text, place, ",")
            place += 1
        place = _skip(text, place)
        if text[place : place + 1] != "}":
            place = _after(text, place, ",")


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return place if space is None else space.end()


def _after(text: str, place: int, mark: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != mark:
        raise UserError(f"character {place} is not {mark!r}")
    return _skip(text, place + 1)

"""The images of a report: thumbnails of the run's folder, as data inside the page."""

import base64
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from trainkit.display.wording import counted
from trainkit.report.film import film
from trainkit.report.run_data import RunData
from trainkit.report.thumbnails import entries_of, files_of
from trainkit.report.wording import number
from trainkit.storage.checked_json import Fault

BUDGET = 3_600_000  # bytes of all images as base64, so that a page stays under 5 MB
LARGEST_SIDE = 1600  # of a picture; larger ones are made smaller
# of a path all but its last two names
FOLDERS = re.compile(r"(?:(?<=\s)|^)[^\s/]*/(?:[^\s/]+/)*(?=[^\s/]+/[^\s/]+)")
TITLES = {
    "worst": (
        "The worst",
        "The validation images with the largest loss, the most wrong labels or the lowest IoU.",
    ),
    "median": ("The median", "Images about which half of the others are better."),
    "mistake": ("The most confident mistakes", "Of each class, at most a few."),
}


@dataclass
class Pictures:
    """The images of a report.

    Attributes:
        left: bytes of images that the page still has room for.
        large: pictures that stand alone.
        groups: of validation images.
        film: strip of the same validation images after each evaluation, see `film.film`.
        notes: what was left out.
        num_beyond: images that the page has no room for.
    """

    left: int
    large: list[dict[str, str]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_beyond: int = 0
    film: dict[str, Any] | None = None

    def take(self, files: list[Path]) -> list[str]:
        """Pictures as data URIs: all, or none where one cannot be read or they do not fit."""
        sources, size = [], 0
        for file in files:
            read = self._read(file)
            if read is None:
                return []
            content, kind = read
            source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            size += len(source)
            sources.append(source)
        if size > self.left:
            self.num_beyond += 1
            return []
        self.left -= size
        return sources

    def _read(self, file: Path) -> tuple[bytes, str] | None:
        """Bytes and type of a picture; None, and a note, where it cannot be read."""
        try:
            return _shrunk(file)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.notes.append(f"{file.name} is left out: it cannot be read ({error}).")
            return None


def _shrunk(file: Path) -> tuple[bytes, str]:
    """Bytes and type of a picture, which is made smaller where it is large."""
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        kind = str(picture.format).lower()
        if max(picture.size) <= LARGEST_SIDE and kind in ("jpeg", "webp", "png"):
            picture.verify()
            return content, kind
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        made = io.BytesIO()
        picture.convert("RGB").save(made, "JPEG", quality=85)
    return made.getvalue(), "jpeg"


def pictures(run: RunData) -> Pictures | None:
    """The images that the run's folder has for a report; None where it has none."""
    found = Pictures(left=BUDGET)
    batch = run.folder / "train_batch.jpg"
    if batch.is_file():
        for source in found.take([batch]):
            note = "As the network gets it: augmented, with its labels or masks."
            found.large.append(
                {"title": "The first batch of training", "note": note, "source": source}
            )
    found.film = film(run, found.take, found.notes)
    folder = _shown_folder(run)
    if folder is not None:
        _add_groups(found, folder)
    if found.num_beyond:
        found.notes.append(
            f"Left out, to keep this page under 5 MB: {counted(found.num_beyond, 'image')}."
        )
    return found if found.large or found.groups or found.film or found.notes else None


def _shown_folder(run: RunData) -> Path | None:
    """The folder of thumbnails of the evaluation that the report tells of, else the newest."""
    folders = [path.parent for path in run.folder.glob("shown/*/index.json")]
    if run.evaluation is not None:
        for folder in folders:
            if folder.name == run.evaluation.name:
                return folder
    return max(folders, key=lambda folder: (folder / "index.json").stat().st_mtime, default=None)


def shown_files(run: RunData) -> list[tuple[dict[str, Any], dict[str, Path]]]:
    """What is said of each image that is shown of a run, and its thumbnails; empty for none."""
    folder = _shown_folder(run)
    if folder is None:
        return []
    try:
        entries = entries_of(folder)
    except Fault:  # the report says what is wrong
        return []
    return [(entry, files_of(folder, entry["index"])) for entry in entries]


def _add_groups(found: Pictures, folder: Path) -> None:
    """Add the validation images of a folder that an evaluation wrote."""
    try:
        entries = entries_of(folder)
    except Fault as error:
        found.notes.append(f"{folder.name}/index.json is left out: {error}.")
        return
    for kind, (title, note) in TITLES.items():
        shown = []
        for entry in (each for each in entries if each["kind"] == kind):
            figure = _figure(found, folder, entry)
            if figure is not None:
                shown.append(figure)
        if shown:
            wide = any(len(each["sources"]) > 1 for each in shown)
            if wide:
                note += " Image, truth, prediction, and errors in red."
            found.groups.append({"title": title, "note": note, "images": shown, "wide": wide})


def _figure(found: Pictures, folder: Path, entry: dict[str, Any]) -> dict[str, Any] | None:
    """What is shown of an image; None where nothing is."""
    index = entry["index"]
    files = files_of(folder, index)
    sources = found.take(list(files.values()))
    if not sources:
        return None
    target, predicted = entry.get("target"), entry.get("predicted")
    name = str(entry.get("name") or f"image {index}")
    measures = [
        (f"{name} {100 * entry[key]:.1f} %" if key != "loss" else f"{name} {number(entry[key])}")
        for key, name in (("loss", "loss"), ("iou", "IoU"), ("probability", "probability"))
        if isinstance(entry.get(key), float)
    ]
    return {
        "sources": list(zip(sources, files)),
        "name": FOLDERS.sub("", name),
        "whole_name": name,
        "target": None if target is None else str(target),
        "predicted": None if predicted is None else str(predicted),
        "wrong": target != predicted,
        "measure": ", ".join(measures),
    }

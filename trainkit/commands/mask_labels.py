"""Which classes masks hold, as settings of a recipe."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.labelme import BACKGROUND, UNCOUNTED, shape_labels
from trainkit.data.datasets.listing import image_files
from trainkit.data.image_io import read_mask
from trainkit.errors import DataError

UNKNOWN = "..."
LOOKED_AT = 20  # masks
WHITE = 255


def labels_in(folder: Path) -> tuple[dict[str, str], list[str]]:
    """`labels_of` the masks below a folder, or of LabelMe's files where it has some."""
    drawn = sorted(folder.rglob("*.json"))
    return labels_of(drawn or [folder / name for name in image_files(folder)])


def labels_of(masks: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """Settings that say which classes the masks hold, by a few of them, and hints."""
    if masks and masks[0].suffix == ".json":
        labels = sorted({label for mask in masks for label in shape_labels(mask)})
        names = [label for label in labels if label not in (*BACKGROUND, *UNCOUNTED)]
        hint = f"{len(masks)} JSON files of LabelMe have shapes of {some(names)}"
        return {"--classes": ",".join(["background", *names])}, [hint]
    chosen = masks[:: max(1, len(masks) // LOOKED_AT)][:LOOKED_AT]
    try:
        found = {int(label) for mask in chosen for label in np.unique(read_mask(mask))}
    except DataError as error:
        hint = f"{error}. Colours of classes are given by --mask-colors FILE"
        return {"--classes": UNKNOWN}, [hint]
    if not found:
        return {"--classes": UNKNOWN}, []
    ids = sorted(found - {WHITE})
    seen = f"{len(chosen)} of {len(masks)} masks hold {some(map(str, sorted(found)))}"
    if found in ({0, WHITE}, {WHITE}):
        hint = f"{seen}: two classes; --classes names them"
        return {"--classes": "background,object", "--mask-values": "0,255"}, [hint]
    ignored = f", {WHITE} counts nowhere" if WHITE in found else ""
    further = "--classes takes their names, too"
    if not ignored:
        further += ", and --ignore LABEL leaves out what is no class (void)"
    number = max(ids) + 1
    if len(ids) < number / 2:
        values = ",".join(map(str, ids))
        hint = f"{seen}: {len(ids)} classes{ignored}; {further}"
        return {"--classes": str(len(ids)), "--mask-values": values}, [hint]
    hint = f"{seen}: classes 0 to {number - 1}{ignored}; {further}"
    return {"--classes": str(number)}, [hint]

"""Refuses validation images whose file ends too early, before the first step of a training."""

import os
from pathlib import Path

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.file_names import extension, is_image
from trainkit.data.image_headers import may_be_cut_short
from trainkit.data.reader import Reader
from trainkit.data.sampler import EVALUATION
from trainkit.data.seeding import generators_kept
from trainkit.engine.forward_passes import REMEDY

NUM_IMAGES = 1024  # at most, spread over the set
HEAD, TAIL = 16, 64  # bytes


def refuse_torn(data: SizedDataset, seed: int) -> None:
    """Read each validation image whose file, or whose mask's file, may be cut short.

    An evaluation skips no image: without this, a training would meet a torn one after its first
    epoch. Only the first and the last bytes of files are read, of up to 1,024 images, and an image
    is decoded where these bytes are not those of a whole file.

    Args:
        data: the validation data.
        seed: of the run.

    Raises:
        DataError: such an image cannot be read.
    """
    info = DatasetInfo.of(data)
    if info.locality is not None:
        return  # streamed
    labelled = info.labelled if isinstance(info.labelled, MaskFiles) else None
    places = info.labelled_indices if labelled is not None else ()
    number = min(NUM_IMAGES, len(data))
    for place in range(number):
        index = len(data) * place // number
        files = [Path(info.name_of(index))]
        if labelled is not None:
            files.append(Path(labelled.masks[places[index]]))
        if any(map(_may_be_torn, files)):
            with generators_kept():
                Reader(data, seed, remedy=REMEDY)[EVALUATION, index]


def _may_be_torn(file: Path) -> bool:
    if not is_image(extension(file.name)):
        return False
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            head = opened.read(HEAD)
            opened.seek(max(0, size - TAIL))
            return may_be_cut_short(head, opened.read(TAIL), size)
    except OSError:
        return file.is_file()  # names that are no files are of other data

"""Mean and std of the training images, for channels that ImageNet's say nothing about."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainkit.data.bands import PixelSettings, read_pixels
from trainkit.data.dataset_info import SizedDataset
from trainkit.data.datasets.cache import cached
from trainkit.data.datasets.folder import ClassFiles
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.display.terminal import of_launcher
from trainkit.errors import UserError


def mean_and_std(
    data: SizedDataset,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel of images of files, where they are not given.

    They are `estimated` once, and read from the cache where the same files were read before.

    Raises:
        UserError: an image is no image of so many channels, a channel has a single value, or the
            images are no files.
    """
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    if not isinstance(data, (ClassFiles, MaskFiles)):
        raise UserError(
            f"mean and std are computed of files of images, and {type(data).__name__} has none:"
            " give --mean and --std"
        )
    pixels = data.pixels
    files = list(data.images if isinstance(data, MaskFiles) else data.files)

    def build() -> dict[str, np.ndarray]:
        found = estimated(files, pixels)
        return {"mean": np.array(found[0]), "std": np.array(found[1])}

    found = cached(f"pixels-v1-{pixels.channels}-{pixels.bits}", files, build)
    means, stds = (tuple(found[name].tolist()) for name in ("mean", "std"))
    return means if mean is None else tuple(mean), stds if std is None else tuple(std)


def estimated(
    files: Sequence[Path], pixels: PixelSettings
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over all pixels of the images, of values in [0, 1].

    Sums of whole numbers: the same in any order.
    """
    scale = 255 if pixels.bits == 8 else 65535
    count, sums, squares = 0, [0] * pixels.channels, [0] * pixels.channels
    with of_launcher().progress("reading images for mean and std") as tell:
        for number, file in enumerate(files, 1):
            image = read_pixels(file, pixels).as_subclass(Tensor)
            values = (image * scale).round() if image.is_floating_point() else image
            values = values.to(torch.int64).flatten(1)
            count += values.shape[1]
            sums = [old + int(new) for old, new in zip(sums, values.sum(1))]
            squares = [old + int(new) for old, new in zip(squares, (values**2).sum(1))]
            tell(number, len(files))
    means = [each / count for each in sums]
    stds = [max(each / count - mean**2, 0) ** 0.5 for each, mean in zip(squares, means)]
    flat = [place for place, std in enumerate(stds) if std == 0]
    if flat:
        raise UserError(
            f"channel {flat[0] + 1} has one value in all {len(files)} training images: nothing can"
            " be learned of it; give fewer --channels, or mean and std"
        )
    return tuple(mean / scale for mean in means), tuple(std / scale for std in stds)

"""Images as a network of transformers was trained on them, by its preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from trainkit.errors import UserError
from trainkit.models.hf_files import read_file

PREPROCESSOR = "preprocessor_config.json"

# Pillow's filters by number; torchvision has no Lanczos, which bicubic is nearest to.
FILTERS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
LARGE = 384  # pixels, from which on ConvNeXt's images are squashed and not cropped


def published_pixels(name: str, files: str | None) -> dict[str, Any]:
    """Mean and std per channel of images in [0, 1], and whether channels are in the order BGR.

    Args:
        name: of the network, for messages.
        files: the folder, or the name on the Hub; None for none.

    Returns:
        "mean", "std" and "bgr"; nothing where no file says it.

    Raises:
        UserError: the file is damaged, or cannot be had.
    """
    said = None if files is None else read_file(name, files, PREPROCESSOR)
    return {} if said is None else _pixels(name, said)


def published_images(name: str, files: str | None) -> dict[str, Any]:
    """`published_pixels`, and interpolation, crop_fraction and crop_mode, as far as a file says.

    Args:
        name: of the network, for messages.
        files: the folder, or the name on the Hub; None for none.

    Raises:
        UserError: the file is damaged, or cannot be had.
    """
    said = None if files is None else read_file(name, files, PREPROCESSOR)
    if said is None:
        return {}
    found = _pixels(name, said)
    if said.get("resample") in FILTERS:
        found["interpolation"] = FILTERS[said["resample"]]
    return found | _crop(said)


def _pixels(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    scale = 255 * factor
    mean: Any = said.get("image_mean")
    std: Any = said.get("image_std")
    if said.get("rescale_offset"):
        raise UserError(
            f"{PREPROCESSOR} of {name} has rescale_offset, which is not supported: give mean and"
            " std of images from 0 to 1 there"
        )
    if said.get("do_normalize") is False or (mean is None and not said.get("do_normalize")):
        mean, std = [0.0] * 3, [1.0] * 3
    if not (_are_numbers(mean) and _are_numbers(std) and len(mean) == len(std) and min(std) > 0):
        raise UserError(
            f"{PREPROCESSOR} of {name} has image_mean {mean!r} and image_std {std!r}: they must be"
            " numbers, one per channel; put a whole copy in its place"
        )
    return {
        "mean": tuple(each / scale for each in mean),
        "std": tuple(each / scale for each in std),
        "bgr": bool(said.get("do_flip_channel_order")),
    }


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, (int, float)) for each in values)


def _crop(said: Mapping[str, Any]) -> dict[str, Any]:
    """Which part of an image an evaluation takes; nothing where the file does not say."""
    size, crop = said.get("size"), said.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if not isinstance(size, Mapping) or said.get("do_resize") is False:
        return {}
    keeps_shape = "shortest_edge" in size
    side = size.get("shortest_edge", size.get("height"))
    if not isinstance(side, int) or side < 1:
        return {}
    if isinstance(said.get("crop_pct"), float) and keeps_shape:  # as timm has it
        if side >= LARGE:
            return {"crop_fraction": 1.0, "crop_mode": "squash"}
        return {"crop_fraction": said["crop_pct"], "crop_mode": "center"}
    mode = "center" if keeps_shape else "squash"
    if not said.get("do_center_crop"):
        return {"crop_fraction": 1.0, "crop_mode": mode}
    taken = crop.get("height") if isinstance(crop, Mapping) else crop
    if not isinstance(taken, int):
        return {}
    return {"crop_fraction": min(1.0, taken / side), "crop_mode": mode}

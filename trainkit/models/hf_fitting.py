"""Fits networks of transformers to images: sizes, channels, auxiliary and unused outputs."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UserError, first_line, is_shortage
from trainkit.models.freezing import freeze_unused
from trainkit.models.image_channels import take_channels
from trainkit.models.outputs import main_logits

TRIAL_SIDE = 64  # pixels, or the next size that the network takes

# Of the segmenters, by type: those that cut images into patches lose what is left over at the
# border, so images are padded; others take any size.
PATCHES = ("beit", "dpt", "sapiens2", "tipsv2_dpt", "upernet")
HALVED = ("dpt", "tipsv2_dpt")


@contextmanager
def refusals_of(name: str) -> Iterator[None]:
    """Raise UserError in place of what transformers raises where it does not build or run it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of a library, for values and sizes that a network does not take
        if is_shortage(error):
            raise
        raise UserError(
            f"{name} of transformers cannot be used so ({first_line(error)}): correct --model-args"
            " or the images' size, or take another network"
        ) from error


def take_image_channels(network: nn.Module, channels: int, pretrained: bool) -> None:
    """As `take_channels`; transformers' modules compare the images' channels with their own."""
    if channels == 3:
        return
    take_channels(network, channels, pretrained)
    for module in network.modules():
        if getattr(module, "num_channels", None) == 3:
            module.num_channels = channels  # type: ignore[assignment]


def take_sizes(network: Any) -> None:
    """Say which sizes of images a segmenter takes, and let it take those of any shape."""
    config = network.config
    kind = config.model_type
    if kind == "data2vec-vision" or getattr(config, "is_hybrid", False):
        network.image_size = sides_of(config.image_size)
        return
    if kind not in PATCHES:
        return
    inner = getattr(config, "backbone_config", None)
    patch = getattr(config if inner is None else inner, "patch_size", None)
    if isinstance(patch, (list, tuple)):
        patch = patch[0]
    if isinstance(patch, int):  # DPT halves the map of patches once more
        network.size_divisor = 2 * patch if kind in HALVED else patch
    if kind == "dpt":  # else it takes maps for squares
        network.register_forward_pre_hook(_note_grid, with_kwargs=True)
        network.neck.register_forward_pre_hook(_give_grid, with_kwargs=True)


def sides_of(size: Any) -> tuple[int, int] | None:
    """Height and width of a size in a configuration."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def sized_config(config: Any) -> Any:
    """The configuration, or that of its vision part, that has an image_size; else None."""
    for each in (config, getattr(config, "vision_config", None)):
        if sides_of(getattr(each, "image_size", None)) is not None:
            return each
    return None


def trial_sizes(network: Any) -> list[tuple[int, int]]:
    """Sizes that a segmenter must take: of a square, and of another shape."""
    only = getattr(network, "image_size", None)
    if only is not None:
        return [only]
    divisor = getattr(network, "size_divisor", 1)
    side = -(-TRIAL_SIDE // divisor) * divisor
    return [(side, side + divisor), (side, side)]


def takes_keyword(network: nn.Module, keyword: str) -> bool:
    """Whether the network's forward has such a keyword."""
    return keyword in inspect.signature(type(network).forward).parameters


def fit(network: Any, name: str, channels: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Run images of these sizes through it, and let unused parameters take no gradient.

    Dropout and batch norm rest, and no random number is drawn that a training would.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    network.training = True  # itself alone, and so that it returns all outputs
    if getattr(network, "auxiliary_head", None) is not None:
        network.auxiliary_head.training = True
    try:
        with refusals_of(name), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            for size in sizes:
                outputs = network(torch.zeros(1, channels, *size))
                logits = main_logits(outputs)
            _check_sides(name, logits, sizes[-1])
            values = [logits.sum()]
            if isinstance(outputs, Mapping) and "aux" in outputs:
                values.append(outputs["aux"].sum())
            freeze_unused(network, torch.stack(values).sum())
    finally:
        for module, mode in modes:
            module.training = mode


def _check_sides(name: str, logits: Tensor, size: tuple[int, int]) -> None:
    """Raise UserError where the logits of a segmenter are larger than its images."""
    if logits.ndim == 4 and (logits.shape[-2] > size[0] or logits.shape[-1] > size[1]):
        raise UserError(
            f"{name} returns logits of {logits.shape[-2]} x {logits.shape[-1]} for images of"
            f" {size[0]} x {size[1]}: give its configuration others with --model-args, such as"
            " larger patches"
        )


def keep_logits(head: Any, inputs: tuple, logits: Tensor) -> None:
    """Keep what an auxiliary head returns, which transformers uses for its own loss alone."""
    if head.training:
        head.kept = logits


def with_aux(network: Any, inputs: tuple, outputs: Any) -> Any:
    """Return an auxiliary head's logits as well, in training."""
    kept = network.auxiliary_head.__dict__.pop("kept", None)
    return outputs if kept is None else {"out": main_logits(outputs), "aux": kept}


def _note_grid(network: Any, inputs: tuple, keywords: dict[str, Any]) -> None:
    images = inputs[0] if inputs else keywords["pixel_values"]
    patch = network.size_divisor // 2
    network.neck.grid = images.shape[-2] // patch, images.shape[-1] // patch


def _give_grid(neck: Any, inputs: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    height, width = neck.grid
    return inputs, {**keywords, "patch_height": height, "patch_width": width}


def interpolating(
    network: nn.Module, inputs: tuple, keywords: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Ask for position embeddings of the images' size; a hook before forward."""
    return inputs, {**keywords, "interpolate_pos_encoding": True}

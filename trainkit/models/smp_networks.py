"""Networks of segmentation_models_pytorch (SMP) by name: a decoder on one of its encoders."""

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from trainkit.errors import UserError, did_you_mean, first_line, is_shortage
from trainkit.models.freezing import freeze_unused
from trainkit.models.outputs import main_logits, size_divisor
from trainkit.models.pretrained import START_AT_RANDOM, offline_where_unreachable, wanted
from trainkit.models.timm_models import timm_with

# Of SMP's others trainkit has networks of the same names, at other strides: DeepLabV3, PSPNet,
# UPerNet.
DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "fpn": "FPN",
    "manet": "MAnet",
    "linknet": "Linknet",
    "pan": "PAN",
    "deeplabv3plus": "DeepLabV3Plus",
    "segformer": "Segformer",
    "dpt": "DPT",
}
HEAD = ("decoder", "segmentation_head")
TRIAL_SIDE = 128  # pixels: PAN pools the last map, at stride 16, three times more


def smp_network(
    name: str,
    num_classes: int,
    encoder: str,
    pretrained: bool,
    image_channels: int,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """Build the network as SMP has it, with its names of weights; its head is all but `encoder`.

    Args:
        name: one of `DECODERS`.
        num_classes: how many classes there are.
        encoder: one of SMP's, such as "resnet34" or "mit_b0", or "timm:", or SMP's "tu-", and a
            name of timm's (of dpt "tu-" alone: "timm:" is `trainkit.models.dpt`).
        pretrained: start the encoder from published weights: ImageNet's, else the first ones that
            SMP lists for it.
        image_channels: of the images, to which SMP and timm adapt the weights.
        out_indices: of dpt: the four blocks that it takes; None: SMP's, which are evenly spaced.

    Raises:
        UserError: SMP, the encoder or its weights are missing, or the decoder does not take it.
    """
    library = _library(name)
    if encoder.startswith("tu-"):  # SMP's word for timm's
        encoder = f"timm:{encoder.removeprefix('tu-')}"
    weights = "imagenet" if encoder.startswith("timm:") else _published(library, name, encoder)
    arguments: dict[str, Any] = {"classes": num_classes, "in_channels": image_channels}
    if out_indices is not None:
        arguments["encoder_output_indices"] = list(out_indices)
    network = _built(
        library, name, encoder, weights if pretrained and wanted() else None, arguments
    )
    network.head_names = HEAD
    _fit(network, name, encoder, image_channels)
    return network


def _library(name: str) -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        raise UserError(
            f'model {name} needs segmentation_models_pytorch: pip install "trainkit[smp]"'
        ) from error
    return segmentation_models_pytorch


def _published(library: ModuleType, name: str, encoder: str) -> str:
    """The name of the weights that an encoder of SMP's own starts from."""
    if encoder == "small":
        raise UserError(
            f"backbone small is none that {name} takes: take one of segmentation_models_pytorch,"
            " such as resnet18, or timm:NAME"
        )
    known = library.encoders.encoders
    if encoder not in known:
        raise UserError(
            f"segmentation_models_pytorch {library.__version__} has no encoder"
            f" {encoder!r}{did_you_mean(encoder, known)}, and timm:NAME"
        )
    listed = list(known[encoder]["pretrained_settings"])
    return "imagenet" if "imagenet" in listed else listed[0]


def _built(
    library: ModuleType, name: str, encoder: str, weights: str | None, arguments: dict[str, Any]
) -> Any:
    build = partial(getattr(library, DECODERS[name]), encoder_weights=weights, **arguments)
    is_timms = encoder.startswith("timm:")
    of_one_size = is_timms and _is_of_one_size(encoder)
    short = f"tu-{encoder.removeprefix('timm:')}" if is_timms else encoder
    try:
        with offline_where_unreachable() if weights is not None else nullcontext():
            network = None
            if of_one_size:
                with suppress(TypeError):  # some of timm's do not know the word
                    network = build(short, dynamic_img_size=True)
            network = build(short) if network is None else network
    except OSError as error:
        raise UserError(
            f"cannot get the weights {weights} of the encoder {encoder}"
            f" ({str(error).splitlines()[0]}). Fill the Hugging Face cache where there is a"
            f" network, or {START_AT_RANDOM}"
        ) from error
    except Exception as error:  # of two libraries, for encoders that a decoder does not take
        raise _refusal(name, encoder, error) from error
    if of_one_size:
        patches = getattr(getattr(network.encoder.model, "patch_embed", None), "patch_size", (1,))
        network.encoder.size_divisor = math.lcm(*patches)
    return network


def _is_of_one_size(encoder: str) -> bool:
    """Whether timm builds a network for images of one size, where it is not asked for others."""
    timm, short = timm_with(encoder)
    known = timm.models.get_pretrained_cfg(short)
    return known is not None and bool(known.fixed_input_size)


def _refusal(name: str, encoder: str, error: Exception) -> Exception:
    if is_shortage(error):
        return error
    reason = first_line(error)
    return UserError(
        f"{name} of segmentation_models_pytorch does not take the backbone {encoder} ({reason}):"
        " take another, such as resnet34, or of dpt tu-vit_small_patch16_dinov3"
    )


def _fit(network: Any, name: str, encoder: str, image_channels: int) -> None:
    """Run small images through it: not every encoder that can be built fits the decoder.

    What no output depends on takes no gradient, such as the last norm of a vision transformer.

    DPT halves the map of a vision transformer's patches once more, and says so of no size.
    """
    divisor = size_divisor(network)
    if name == "dpt" and divisor % 2**3:
        raise UserError(
            f"dpt of segmentation_models_pytorch does not take the backbone {encoder}: its patches"
            f" are of {divisor} pixels, and dpt is made for 16. Take one of these, such as"
            f" tu-vit_small_patch16_dinov3, or trainkit's dpt, --backbone {encoder}"
        )
    side = -(-TRIAL_SIDE // (2 * divisor)) * 2 * divisor
    try:
        size = _size_of_masks(network, image_channels, side, side)
        try:
            _size_of_masks(network, image_channels, side, side + divisor)
        except RuntimeError:
            network.encoder.size_divisor = 2 * divisor
    except Exception as error:  # of two libraries, as above
        raise _refusal(name, encoder, error) from error
    if size != (side, side):
        shape = "x".join(map(str, size))
        wrong = ValueError(f"its masks of {side}x{side} pixels have {shape}")
        raise _refusal(name, encoder, wrong)
    network.eval()
    with torch.enable_grad():
        freeze_unused(network, network(torch.zeros(1, image_channels, side, side)).sum())
    network.train()


@torch.no_grad()
def _size_of_masks(network: nn.Module, channels: int, *size: int) -> tuple[int, ...]:
    training = network.training
    network.eval()
    try:
        return tuple(main_logits(network(torch.zeros(1, channels, *size))).shape[-2:])
    finally:
        network.train(training)

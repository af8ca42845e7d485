"""Builds networks that segment by masks by name: Mask2Former and EoMT, on encoders of timm."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UserError
from trainkit.models.hf_config import (
    PREFIX,
    Found,
    config_of,
    found,
    plain_config,
    recorded_config,
)
from trainkit.models.hf_fitting import refusals_of, take_image_channels
from trainkit.models.hf_input import published_pixels
from trainkit.models.hf_networks import say_pixels
from trainkit.models.hf_weights import from_weights, quiet
from trainkit.models.mask_encoders import (
    encoder_settings,
    load_encoder,
    mapped,
    timm_encoder,
)
from trainkit.models.mask_encoders_hf import hf_encoder, hf_mapped, hf_settings
from trainkit.models.mask_networks import MASK_NETWORKS, finish_mask_network, mask_network_class
from trainkit.models.pretrained import offline, wanted


def is_mask_network(
    name: str, model_args: Sequence[str] = (), config: Mapping[str, Any] | None = None
) -> bool:
    """Whether a name means one of the networks that segment by masks; arguments as below."""
    if not name.startswith(PREFIX):
        return False
    if config is None:
        config = recorded_config(name, model_args)
    if config is not None:
        return config["model_type"] in MASK_NETWORKS
    if name.removeprefix(PREFIX) in MASK_NETWORKS:
        return True
    return found(name, model_args, list(MASK_NETWORKS)).config.model_type in MASK_NETWORKS


def mask_network(
    name: str,
    num_classes: int,
    backbone: str | None = None,
    pretrained: bool = True,
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build Mask2Former or EoMT as transformers has it, with its names of weights.

    Args:
        name: see `trainkit.models.hf_config.found`: "hf:mask2former", "hf:eomt", whose encoder is a
            DINOv2, "hf:eomt_dinov3", a folder or a name on the Hub.
        num_classes: how many classes there are; a head for another number is made anew.
        backbone: of a type of EoMT: "timm:" and the name of a DINOv2 or DINOv3 of timm, whose sizes
            and weights the encoder has, with patches of patch_size (16); "hf:" and a folder or name
            on the Hub of one of transformers, with its own patches; None: as the configuration
            says.
        pretrained: start from published weights, of the name or of the backbone.
        image_channels: of the images, to which published weights are adapted.
        model_args: arguments of the configuration, such as "num_queries=200"; image_size is the
            side of all images of EoMT.
        config: what was found for the name when it was first built; nothing is looked up then.

    Raises:
        UserError: transformers, timm, the name or weights are missing, or the configuration does
            not take the arguments.
    """
    recorded = recorded_config(name, model_args) if config is None else config
    if recorded is not None:
        network = _from_config(name, recorded, num_classes)
        take_image_channels(network, image_channels, pretrained=False)
        return _finished(network, recorded)
    source = found(name, model_args, list(MASK_NETWORKS))
    kind = source.config.model_type
    published = pretrained and wanted()
    if kind == "mask2former" and source.files is None:
        # all stages, of which arguments for the encoder leave the last alone
        body = source.config.backbone_config
        body.out_features = body.stage_names[1:]
    encoder = None
    if backbone is not None:
        encoder = _encoder(name, source, backbone, published, model_args)
    pixels = published_pixels(name, source.files)
    plain = plain_config(source.config)
    if pixels:
        plain |= {"image_mean": list(pixels["mean"]), "image_std": list(pixels["std"])}
    if published and source.files is not None:
        network = from_weights(mask_network_class(kind), name, source, num_classes)
    elif published and encoder is None:
        raise UserError(
            f"pretrained is on, and {name} is a type of network without published weights: give"
            " --no-pretrained, a name on the Hub (hf:owner/name), a folder with weights, or of EoMT"
            " a backbone, such as --backbone timm:vit_large_patch14_reg4_dinov2"
        )
    else:
        network = _from_config(name, plain, num_classes)
        if published and encoder is not None:
            load_encoder(network, _weights_of(encoder, backbone, network))
    take_image_channels(network, image_channels, published)
    return _finished(network, plain)


def _encoder(
    name: str, source: Found, backbone: str, published: bool, model_args: Sequence[str]
) -> Any:
    """Build an encoder, and put its sizes into the configuration that was found.

    Without published weights its weights take no memory.
    """
    config = source.config
    kind = config.model_type
    if source.files is not None or kind == "mask2former":
        raise UserError(
            f"backbone is {backbone}, and {name} has an encoder of its own: leave it out, or take"
            " hf:eomt or hf:eomt_dinov3"
        )
    of_timm = backbone.startswith("timm:")
    if of_timm:
        _require_whole_patches(name, config.image_size, config.patch_size)
    with torch.device("cpu" if published else "meta"):
        if of_timm:
            encoder = timm_encoder(kind, backbone, published, config.image_size, config.patch_size)
        else:
            encoder = hf_encoder(kind, backbone, published)
    settings = (encoder_settings if of_timm else hf_settings)(kind, encoder)
    if not of_timm:
        _require_whole_patches(name, config.image_size, settings["patch_size"])
    twice = settings.keys() & {text.partition("=")[0].strip() for text in model_args}
    if twice:
        raise UserError(
            f"model_args has {min(twice)}, which the backbone {backbone} says: leave one out"
        )
    for setting, value in settings.items():
        setattr(config, setting, value)
    return encoder


def _require_whole_patches(name: str, image_size: int, patch_size: int) -> None:
    if image_size % patch_size:
        raise UserError(
            f"image_size is {image_size}, and {name} has patches of {patch_size} pixels: give a"
            " multiple of that"
        )


def _weights_of(encoder: Any, backbone: str | None, network: Any) -> dict[str, Tensor]:
    """The weights of an encoder by EoMT's names."""
    kind = network.config.model_type
    if backbone is not None and backbone.startswith("timm:"):
        return mapped(kind, encoder.state_dict())
    side = network.config.image_size // network.config.patch_size
    return hf_mapped(kind, encoder.state_dict(), side * side)


def _from_config(name: str, plain: Mapping[str, Any], num_classes: int) -> Any:
    config = config_of(plain)
    config.num_labels = num_classes
    with refusals_of(name), offline(), quiet():
        return mask_network_class(config.model_type)(config)


def _finished(network: Any, plain: Mapping[str, Any]) -> nn.Module:
    finish_mask_network(network)
    say_pixels(network, plain)
    network.looked_up = {"config": dict(plain)}
    return network

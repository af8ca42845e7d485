"""Segmentation networks by name, for the recipes' setting `model`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from trainkit.errors import UserError, did_you_mean
from trainkit.models.backbones import RESNETS
from trainkit.models.backbones import backbone as named_backbone
from trainkit.models.dpt import DPT
from trainkit.models.encnet import EncNet
from trainkit.models.hf_networks import hf_segmenter, is_hf
from trainkit.models.image_channels import take_channels
from trainkit.models.linear import Linear
from trainkit.models.lora import add_adapters
from trainkit.models.mask_building import is_mask_network, mask_network
from trainkit.models.pretrained import load_pretrained
from trainkit.models.pspnet import PSPNet
from trainkit.models.recorded import recorded_network
from trainkit.models.smp_networks import DECODERS, TRIAL_SIDE, smp_network
from trainkit.models.timm_backbones import TimmMaps
from trainkit.models.upernet import UPerNet
from trainkit.models.vision_transformers import ViTMaps, is_vision_transformer
from trainkit.settings.rebuildable import rebuildable

Segmenter = Literal[
    "fcn", "deeplabv3", "encnet", "pspnet", "upernet", "lraspp", "linear",
    # of segmentation_models_pytorch, dpt on the backbones of timm of ours
    "unet", "unetplusplus", "fpn", "manet", "linknet", "pan", "deeplabv3plus", "segformer", "dpt",
]  # fmt: skip

ON_TRANSFORMERS = ("linear", "upernet", "dpt")
MOBILE = "mobilenet_v3_large"  # torchvision dilates it for LR-ASPP alone


@rebuildable
def segmenter(
    name: Segmenter | str,
    num_classes: int,
    backbone: str = "resnet50",
    pretrained: bool = True,
    aux: bool = True,
    se: bool = True,
    lateral: bool = False,
    channels: int = 512,
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    lora: int | None = None,
    out_indices: Sequence[int] | None = None,
    image_size: int | None = None,
    stochastic_depth: float | None = None,
    map_norms: bool = False,
) -> nn.Module:
    """Build the network `name` on a backbone by name, at stride 8, UPerNet and linear at 32.

    On a vision transformer of timm they are at the stride of its patches: UPerNet with the pyramid
    that BEiT makes of four of its maps, linear, DINOv2's protocol, on its last one alone, or on
    several, concatenated, and dpt as in `trainkit.models.dpt`; on "tu-NAME" dpt is SMP's.

    Those of `trainkit.models.smp_networks` are built as segmentation_models_pytorch has them, and
    "hf:..." as transformers has it, see `trainkit.models.hf_networks` and, of those that segment by
    masks, `trainkit.models.mask_building`.

    Args:
        name: of the network.
        num_classes: how many classes there are.
        backbone: see `trainkit.models.backbones`; of lraspp also "mobilenet_v3_large", as
            torchvision has it; of segmentation_models_pytorch's networks one of its encoders, or
            "timm:" and a name of timm's; of EoMT a DINOv2 or DINOv3 of timm or
            transformers ("hf:NAME").
        pretrained: start the backbone from published ImageNet weights.
        aux: an auxiliary FCN head on the last map but one, see `has_aux`.
        se: of EncNet: whether it predicts which classes occur.
        lateral: of EncNet: c2 and c3 beside c4.
        channels: width of the heads of EncNet, PSPNet and UPerNet; those of torchvision's FCN,
            DeepLabV3 and LR-ASPP follow from the backbone, and SMP's are its own.
        image_channels: of the images, to which published weights are adapted, see `take_channels`.
        model_args: of transformers' networks: arguments of their configuration.
        config: of transformers' networks: what was found for the name when it was first built.
        lora: rank of adapters that are trained beside the heads, and nothing else is, see
            `trainkit.models.lora.add_adapters`; None: all is trained.
        out_indices: of linear, upernet and dpt on a vision transformer of timm: its blocks whose
            maps the head takes, counted from 0 or, below 0, from the end; linear takes any number,
            the others four. None: the last one for linear, four evenly spaced ones for the others.
        image_size: side of the images of a backbone of timm's that takes one size alone, see
            `trainkit.models.backbones`, as the network's attribute of this name then says. Of a
            network that an earlier version built without it, it is left out, see
            `trainkit.models.recorded`.
        stochastic_depth: of a backbone of timm's: rate of its last block; None: as timm has it.
        map_norms: of upernet on a pyramid of timm's: a layer norm of each map, as Swin and ConvNeXt
            have them for segmentation.

    Raises:
        UserError: name or backbone are unknown, its weights cannot be downloaded, it takes no
            adapters, or it lacks what else is asked for.
    """
    if lora is not None and is_mask_network(name, model_args, config):
        raise UserError(
            f"lora is {lora}, and {name} segments by masks: its decoder has no part that could stay"
            " as it is. Leave lora out, or take another network"
        )
    if map_norms and name != "upernet":
        raise UserError(f"map_norms is True, and {name} has none: leave it out, or take upernet")
    heads = {"aux": aux, "se": se, "lateral": lateral, "map_norms": map_norms}
    is_earlier = image_size is not None and _had_no_image_size(name, backbone)
    body = {
        "out_indices": out_indices,
        "image_size": None if is_earlier else image_size,
        "stochastic_depth": stochastic_depth,
    }
    network: Any = _without_adapters(
        name,
        num_classes,
        backbone,
        pretrained,
        channels,
        image_channels,
        model_args,
        config,
        heads,
        body,
    )
    if is_earlier:
        network.looked_up = {"image_size": None}
    side = getattr(network, "image_size", None) or (TRIAL_SIDE, TRIAL_SIDE)
    add_adapters(network, lora, torch.zeros(1, image_channels, *side))
    return network


def _had_no_image_size(name: str, backbone: str) -> bool:
    """Whether the network is built again, and was without an image size, as earlier ones were."""
    recorded = recorded_network() if backbone.startswith("timm:") else None
    if recorded is None or recorded["function"] != "segmentation.segmenter":
        return False
    given = recorded["arguments"]
    return (given.get("name"), given.get("backbone"), given.get("image_size")) == (
        name,
        backbone,
        None,
    )


def _without_adapters(
    name: str,
    num_classes: int,
    backbone: str,
    pretrained: bool,
    channels: int,
    image_channels: int,
    model_args: Sequence[str],
    config: Mapping[str, Any] | None,
    heads: Mapping[str, bool],
    body: Mapping[str, Any],
) -> nn.Module:
    """The network of `segmenter`, without adapters."""
    _check_body(name, backbone, body)
    if is_mask_network(name, model_args, config):
        encoder = backbone if backbone.startswith(("timm:", "hf:")) else None
        return mask_network(
            name, num_classes, encoder, pretrained, image_channels, model_args, config
        )
    if is_hf(name):
        return hf_segmenter(
            name, num_classes, pretrained, heads["aux"], image_channels, model_args, config
        )
    known = get_args(Segmenter)
    if name not in known:
        raise UserError(f"no model {name!r}{_meant(name, known)}")
    if model_args:
        raise UserError(
            f"model_args is {' '.join(model_args)}, and {name} takes none: they are of networks of"
            " transformers (hf:...)"
        )
    if _is_smps(name, backbone):
        return smp_network(
            name, num_classes, backbone, pretrained, image_channels, body["out_indices"]
        )
    network = _for_three_channels(name, num_classes, backbone, pretrained, channels, body, **heads)
    take_channels(network, image_channels, pretrained)
    only = getattr(network.backbone, "image_size", None)
    if only is not None:
        network.image_size = only
    return network


def _is_smps(name: str, backbone: str) -> bool:
    """Whether it is a network of segmentation_models_pytorch; dpt on timm's backbones is ours."""
    return name in DECODERS and not (name == "dpt" and backbone.startswith("timm:"))


def _check_body(name: str, backbone: str, body: Mapping[str, Any]) -> None:
    """Refuse settings of a backbone that the network cannot have."""
    chosen, rate = body["out_indices"], body["stochastic_depth"]
    if chosen is not None and name not in ON_TRANSFORMERS:
        raise UserError(
            f"out_indices is {' '.join(map(str, chosen))}, and {name} takes none: they are of"
            f" {', '.join(ON_TRANSFORMERS)} on a vision transformer of timm. Leave it out"
        )
    if chosen is not None and name != "linear" and len(chosen) != 4:
        raise UserError(
            f"out_indices is {' '.join(map(str, chosen))}, and {name} takes the maps of four blocks"
        )
    if rate is not None and (_is_smps(name, backbone) or is_hf(name)):
        its_own = ": set what its configuration has, such as --model-args drop_path_rate=0.1"
        raise UserError(
            f"stochastic_depth is {rate}, and {name} takes none here"
            f"{its_own if is_hf(name) else ': leave it out'}"
        )


def _meant(name: str, known: Sequence[str]) -> str:
    """What a name that is none of a network may mean, as the end of a message."""
    if name == "small" or name.startswith("timm:") or name in list_models(include=RESNETS):
        head = "lraspp" if name == "small" else "fcn"
        return f": it is a backbone, so give --model {head} --backbone {name}"
    return did_you_mean(name, [*known, "hf:NAME"])


def _for_three_channels(
    name: str,
    num_classes: int,
    backbone: str,
    pretrained: bool,
    channels: int,
    asked: Mapping[str, Any],
    *,
    aux: bool,
    se: bool,
    lateral: bool,
    map_norms: bool,
) -> nn.Module:
    if is_vision_transformer(backbone) and name not in ON_TRANSFORMERS:
        raise UserError(
            f"{name} takes maps of several sizes, and backbone {backbone} has maps of one: take"
            f" {', '.join(ON_TRANSFORMERS)} on it, or another backbone"
        )
    if name == "dpt" and not is_vision_transformer(backbone):
        raise UserError(
            f"dpt takes maps of one size, and backbone {backbone} has a pyramid: take a vision"
            " transformer of timm, such as timm:vit_small_patch14_reg4_dinov2, or --model upernet"
        )
    if name == "lraspp":
        return _lraspp(num_classes, backbone, pretrained, asked)
    stride = 32 if name in ON_TRANSFORMERS else 8
    body = named_backbone(backbone, pretrained, stride, name == "linear", **asked)
    if map_norms:
        if not isinstance(body, TimmMaps):
            raise UserError(
                f"map_norms is True, and backbone {backbone} is no pyramid of timm's, such as"
                " timm:swin_tiny_patch4_window7_224: give --no-map-norms"
            )
        body.norm_maps()
    if name == "linear":
        return Linear(body, num_classes)
    if isinstance(body, ViTMaps) and name == "dpt":
        return DPT(body, num_classes)
    if name == "encnet":
        return EncNet(body, num_classes, channels, aux=aux, se=se, lateral=lateral)
    if name in ("pspnet", "upernet"):
        return {"pspnet": PSPNet, "upernet": UPerNet}[name](body, num_classes, channels, aux)
    # The order in which heads are built decides which random weights a seed gives them.
    if name == "fcn":
        aux_head = FCNHead(body.channels[-2], num_classes) if aux else None
        return FCN(body, FCNHead(body.channels[-1], num_classes), aux_head)
    head = DeepLabHead(body.channels[-1], num_classes)
    aux_head = FCNHead(body.channels[-2], num_classes) if aux else None
    return DeepLabV3(body, head, aux_head)


def _lraspp(
    num_classes: int, backbone: str, pretrained: bool, asked: Mapping[str, Any]
) -> nn.Module:
    """Build torchvision's Lite R-ASPP, sharpened by the map at stride 4 (MobileNet: 8)."""
    if backbone != MOBILE:
        body = named_backbone(backbone, pretrained, 8, **asked)
        return LRASPP(body, body.channels[0], body.channels[-1], num_classes)
    if asked.get("stochastic_depth") is not None:
        raise UserError(
            f"stochastic_depth is {asked['stochastic_depth']}, and backbone {backbone} has none:"
            " leave it out"
        )
    network = get_model(
        f"lraspp_{MOBILE}", weights=None, weights_backbone=None, num_classes=num_classes
    )
    if pretrained:
        weights = get_model_weights(MOBILE).IMAGENET1K_V1
        load_pretrained(network.backbone, weights, skip=("fc.", "classifier."))
    return network


def has_aux(model: Segmenter | str) -> bool:
    """Whether the network can have an auxiliary head."""
    return model not in ("lraspp", "linear", *DECODERS)


def auxiliary_weight(network: nn.Module, asked: float) -> float:
    """Factor of the auxiliary loss: as asked, or as the network's configuration says.

    Args:
        network: of `segmenter`; those of transformers have an attribute `aux_weight`.
        asked: the recipe's.
    """
    return getattr(network, "aux_weight", asked)


def published_pixels(network: nn.Module) -> dict[str, Any]:
    """Mean and std of the images that a network was trained on, where it says so; else nothing."""
    return getattr(network, "published_input", {})


def encoding_weight(model: Segmenter | str, asked: float | None) -> float:
    """Factor of the semantic-encoding loss: as asked, else 0.2 of EncNet as published, else 0.

    Args:
        model: the network's name.
        asked: the factor; None for the default.

    Raises:
        UserError: it is asked of a network that has no such head.
    """
    if asked and model != "encnet":
        raise UserError(
            f"se_weight is {asked}, and {model} has no semantic-encoding head: leave it out, or"
            " take encnet"
        )
    return (0.2 if model == "encnet" else 0.0) if asked is None else asked

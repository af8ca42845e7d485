"""Networks of transformers by name, "hf:...": segmentation and recognition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import UserError, did_you_mean
from trainkit.models.hf_config import (
    PREFIX,
    SEGFORMERS,
    config_of,
    files_of,
    found,
    is_segformer_size,
    plain_config,
    recorded_config,
    transformers_of,
)
from trainkit.models.hf_fitting import (
    fit,
    interpolating,
    keep_logits,
    refusals_of,
    sides_of,
    sized_config,
    take_image_channels,
    take_sizes,
    takes_keyword,
    trial_sizes,
    with_aux,
)
from trainkit.models.hf_input import published_images, published_pixels
from trainkit.models.hf_weights import from_weights, head_names, quiet, swap_red_and_blue
from trainkit.models.pretrained import offline, wanted


@dataclass(frozen=True)
class Kind:
    """A task, and where transformers has its networks."""

    auto: str
    mapping: str
    words: str


SEGMENTATION = Kind(
    "AutoModelForSemanticSegmentation",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "semantic segmentation",
)
RECOGNITION = Kind(
    "AutoModelForImageClassification",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "image classification",
)


def is_hf(name: str) -> bool:
    """Whether a name means one of transformers' networks."""
    return name.startswith(PREFIX)


def types_of(kind: Kind, name: str = PREFIX) -> list[str]:
    """Transformers' types for a task; `name` is of a network, for messages."""
    transformers_of(name)
    return list(getattr(import_module("transformers.models.auto.modeling_auto"), kind.mapping))


def hf_segmenter(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    aux: bool = True,
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network as transformers has it, with its names of weights.

    In training it returns logits "aux" as well where its configuration has an auxiliary head, whose
    weight in the loss is its attribute `aux_weight`, 0 for no such head. Parameters that no output
    depends on take no gradient. What its images are like is its attribute `published_input`.

    Args:
        name: see `trainkit.models.hf_config.found`.
        num_classes: how many classes there are; a head for another number is made anew.
        pretrained: start from the published weights.
        aux: with the auxiliary head that its configuration has.
        image_channels: of the images, to which published weights are adapted.
        model_args: arguments of the configuration, such as "depths=3,4,6,3".
        config: what was found for the name when it was first built; nothing is looked up then.

    Raises:
        UserError: transformers, the name or its weights are missing, or it has no head for this.
    """
    is_new = config is None
    network, plain = _built(
        SEGMENTATION, name, num_classes, pretrained, model_args, config, aux=aux
    )
    take_image_channels(network, image_channels, pretrained)
    network.aux_weight = 0.0
    if getattr(network, "auxiliary_head", None) is not None:
        network.aux_weight = float(network.config.auxiliary_loss_weight)
        network.auxiliary_head.register_forward_hook(keep_logits)
        network.register_forward_hook(with_aux)
    take_sizes(network)
    network.looked_up = {"config": plain}
    if is_new:
        fit(network, name, image_channels, trial_sizes(network))
        if network.aux_weight:
            Display(rank() == 0).note(
                f"{name}: the loss of its auxiliary head counts {network.aux_weight:g}, as its"
                " configuration says (auxiliary_loss_weight)"
            )
    return network


def hf_classifier(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    sizes: Sequence[int] = (),
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network as transformers has it, with its names of weights.

    Args:
        name: see `trainkit.models.hf_config.found`.
        num_classes: number of outputs; a head for another number is made anew.
        pretrained: start from the published weights.
        sizes: sides of the images in training and evaluation; a type that is built for one size is
            built for theirs, and position embeddings of published weights are interpolated.
        image_channels: of the images, to which published weights are adapted.
        model_args: arguments of the configuration, such as "depths=3,4,6,3".
        config: what was found for the name when it was first built; nothing is looked up then.

    Raises:
        UserError: transformers, the name or its weights are missing, or it has no head for this, or
            does not take images of these sizes.
    """
    is_new = config is None
    network, plain = _built(
        RECOGNITION, name, num_classes, pretrained, model_args, config, sizes=sizes
    )
    take_image_channels(network, image_channels, pretrained)
    network.looked_up = {"config": plain}
    sized = sized_config(network.config)
    built_for = None if sized is None else sides_of(sized.image_size)
    other = built_for is not None and any((side, side) != built_for for side in sizes)
    if other and takes_keyword(network, "interpolate_pos_encoding"):
        network.register_forward_pre_hook(interpolating, with_kwargs=True)
    if is_new:
        tried = [(side, side) for side in dict.fromkeys(sizes)] or [built_for or (224, 224)]
        fit(network, name, image_channels, tried)
    return network


def hf_images(name: str) -> dict[str, Any]:
    """Images that the network `name` was trained on, see `published_images`, but for "bgr".

    Raises:
        UserError: there is no such network, or the file cannot be had.
    """
    if is_segformer_size(name):
        return {}
    said = published_images(name, files_of(name, [*types_of(RECOGNITION, name), *SEGFORMERS]))
    return {key: value for key, value in said.items() if key != "bgr"}


def _built(
    kind: Kind,
    name: str,
    num_classes: int,
    pretrained: bool,
    model_args: Sequence[str],
    config: Mapping[str, Any] | None,
    aux: bool = True,
    sizes: Sequence[int] = (),
) -> tuple[Any, dict[str, Any]]:
    """The network, and the config by which it is built again."""
    types = types_of(kind, name)
    recorded = recorded_config(name, model_args) if config is None else config
    if recorded is not None:
        return _from_config(kind, name, recorded, num_classes), dict(recorded)
    source = found(name, model_args, types)
    _require_head(kind, types, name, source.config.model_type)
    if not aux and hasattr(source.config, "use_auxiliary_head"):
        source.config.use_auxiliary_head = False
    if source.files is None and len(set(sizes)) == 1:
        _build_for(source.config, sizes[0], model_args)
    # of the sizes of SegFormer they are ImageNet's, which is the usual one: no file is read for it
    pixels = {} if is_segformer_size(name) else published_pixels(name, source.files)
    plain = plain_config(source.config)
    if pixels:
        plain |= {"image_mean": list(pixels["mean"]), "image_std": list(pixels["std"])}
    if not (pretrained and wanted()):
        return _from_config(kind, name, plain, num_classes), plain
    auto = getattr(transformers_of(name), kind.auto)
    network = from_weights(auto, name, source, num_classes)
    if pixels.get("bgr"):
        swap_red_and_blue(network, name)
    _finish(network, name, plain)
    return network, plain


def _build_for(config: Any, side: int, model_args: Sequence[str]) -> None:
    """Set the size that a type is built for, where it is built for one and none is asked for."""
    sized = sized_config(config)
    asked = any("image_size" in text.partition("=")[0] for text in model_args)
    if sized is not None and not asked:
        sized.image_size = side if isinstance(sized.image_size, int) else [side, side]


def _require_head(kind: Kind, types: Sequence[str], name: str, model_type: str) -> None:
    if model_type not in types:
        raise UserError(
            f"{name} is of transformers' type {model_type}, which has no head for {kind.words}"
            f"{did_you_mean(model_type, types)}"
        )


def _from_config(kind: Kind, name: str, plain: Mapping[str, Any], num_classes: int) -> Any:
    """The network with random weights; nothing is fetched."""
    config = config_of(plain)
    _require_head(kind, types_of(kind, name), name, config.model_type)
    config.num_labels = num_classes
    config.architectures = config.architectures or []  # else of several classes none is chosen
    auto = getattr(transformers_of(name), kind.auto)
    with refusals_of(name), offline(), quiet():
        network = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    _finish(network, name, plain)
    return network


def _finish(network: Any, name: str, plain: Mapping[str, Any]) -> None:
    """Say which parts are the head, and what images it was trained on."""
    network.head_names = head_names(network, name)
    say_pixels(network, plain)


def say_pixels(network: Any, plain: Mapping[str, Any]) -> None:
    """Say in `published_input` what the images are like that a network was trained on."""
    network.published_input = {}
    if "image_mean" in plain:
        network.published_input = {
            "mean": tuple(plain["image_mean"]),
            "std": tuple(plain["image_std"]),
        }

"""Networks of transformers by name, "hf:...": segmentation and recognition."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import UserError, did_you_mean, first_line
from trainkit.models.hf_config import (
    PREFIX,
    SEGFORMERS,
    Found,
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
from trainkit.models.pretrained import offline, offline_where_unreachable, wanted


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
        _swap_red_and_blue(network, name)
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


def from_weights(auto: Any, name: str, source: Found, num_classes: int) -> Any:
    """Build the network with published weights; what they lack is shown, or refused.

    Args:
        auto: transformers' class that has `from_pretrained`.
        name: of the network, for messages.
        source: what was found for it.
        num_classes: how many classes there are.

    Raises:
        UserError: there are no weights, or they lack more than the head.
    """
    if source.files is None:
        near = " or hf:segformer_b0" if source.config.model_type == "segformer" else ""
        raise UserError(
            f"pretrained is on, and {name} is a type of network without published weights: give"
            f" --no-pretrained, or a name on the Hub (hf:owner/name){near}, or a folder with"
            " weights"
        )
    source.config.num_labels = num_classes
    try:
        with offline_where_unreachable(), quiet():
            network, loaded = auto.from_pretrained(
                source.files,
                config=source.config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except OSError as error:
        raise UserError(
            f"cannot get the weights of {name} ({first_line(error)}). Fill the Hugging Face cache"
            " where there is a network, put model.safetensors beside its config.json, or start from"
            " random weights with --no-pretrained"
        ) from error
    network.train()
    if getattr(network, "head_names", None) is None:
        network.head_names = _head_names(network, name)
    _say_what_is_new(network, name, source, loaded, num_classes)
    return network


def _finish(network: Any, name: str, plain: Mapping[str, Any]) -> None:
    """Say which parts are the head, and what images it was trained on."""
    network.head_names = _head_names(network, name)
    say_pixels(network, plain)


def say_pixels(network: Any, plain: Mapping[str, Any]) -> None:
    """Say in `published_input` what the images are like that a network was trained on."""
    network.published_input = {}
    if "image_mean" in plain:
        network.published_input = {
            "mean": tuple(plain["image_mean"]),
            "std": tuple(plain["image_std"]),
        }


def _head_names(network: Any, name: str) -> tuple[str, ...]:
    """The parts that are not the network's body, or where transformers names none, come after it.

    That is called backbone, or is the largest.
    """
    parts = dict(network.named_children())
    body = getattr(network, "base_model_prefix", "")
    if body not in parts:
        largest = max(parts, key=lambda each: _size(parts[each]))
        body = "backbone" if "backbone" in parts else largest
        after = list(parts).index(body)
        parts = dict(list(parts.items())[after:])
    head = tuple(each for each, part in parts.items() if each != body and _size(part))
    if not head:
        raise UserError(
            f"{name} has its head within its body, {type(network).__name__}: take another network;"
            " those of timm are timm:NAME"
        )
    return head


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _say_what_is_new(
    network: Any, name: str, source: Found, loaded: Mapping[str, Any], num_classes: int
) -> None:
    """Show which parts start at random. Raises UserError where it is more than the head."""
    others = [each[0] for each in loaded["mismatched_keys"]]
    new = sorted({*loaded["missing_keys"], *others})
    heads = tuple(f"{each}." for each in network.head_names)
    lost = [each for each in new if not each.startswith(heads)]
    if lost:
        why = "of another size" if lost[0] in others else "missing"
        raise UserError(
            f"the weights of {name} do not fit its body: {', '.join(lost[:3])} and"
            f" {len(lost) - 1} others are {why}. Give the configuration that they are of (no"
            " --model-args), or start from random weights with --no-pretrained"
        )
    display = Display(rank() == 0)
    if not new:
        display.note(f"{name}: the published head for {num_classes} classes is kept")
        return
    parts = sorted({each.rpartition(".")[0] for each in new})
    had = source.num_classes
    why = f", published for {had} classes" if had is not None and had != num_classes else ""
    shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
    display.note(f"{name}: random at first, for {num_classes} classes{why}: {shown}")


@torch.no_grad()
def _swap_red_and_blue(network: nn.Module, name: str) -> None:
    """Make a network for images in the order BGR one for RGB."""
    first = next((each for each in network.modules() if isinstance(each, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError(f"{name} takes images in the order BGR, and begins with no convolution")
    first.weight.copy_(first.weight.flip(1))


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: transformers shows no bars and no warnings; what matters is said here."""
    log = import_module("transformers.utils.logging")
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()

"""Names of networks: suggestions for misspelt names, and timm's networks if timm is installed."""

import difflib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from trainkit.errors import UserError, first_line
from trainkit.models.pretrained import START_AT_RANDOM, offline_where_unreachable, wanted


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name most like it, as the end of a message; empty where none is."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def timm_with(name: str) -> tuple[ModuleType, str]:
    """timm, and its own name of the network "timm:NAME".

    Raises:
        UserError: timm or the network is missing.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f'{name} needs timm: pip install "trainkit[timm]"') from error
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        raise UserError(
            f"timm {timm.__version__} has no {short!r}{nearest(short, timm.list_models())}"
        )
    return timm, short


def timm_network(name: str, pretrained: bool, sizes: Sequence[int] = (), **settings: Any) -> Any:
    """Build timm's network "timm:NAME" by `timm.create_model`.

    Args:
        name: with the prefix "timm:".
        pretrained: whether it starts from published weights.
        sizes: sides of the images that it is to take, where it is built for one size (vision
            transformers).
        **settings: further arguments of `timm.create_model`.

    Raises:
        UserError: timm, the network or its weights are missing, or it cannot take images so large.
    """
    timm, short = timm_with(name)
    known = timm.models.get_pretrained_cfg(short)
    if (
        sizes
        and known is not None
        and known.fixed_input_size
        and set(sizes) != set(known.input_size[1:])
    ):
        asked: dict[str, Any] = (
            {"img_size": sizes[0]}
            if len(set(sizes)) == 1
            else {"img_size": max(sizes), "dynamic_img_size": True}
        )
        try:
            network = timm_network(name, pretrained, **asked, **settings)
        except (TypeError, AssertionError) as error:
            raise UserError(
                f"{name} is built for images of {known.input_size[1]} x {known.input_size[2]} and"
                f" not for {', '.join(map(str, sizes))} ({error}): give that size, or take another"
                " network"
            ) from error
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if isinstance(patch, tuple) and any(size % length for size in sizes for length in patch):
            raise UserError(
                f"{name} cuts images into patches of {' x '.join(map(str, patch))}, and would leave"
                f" out the rest of sides of {', '.join(map(str, sizes))}: give a size divisible by"
                " that"
            )
        return network
    try:
        if not (pretrained and wanted()):
            return timm.create_model(short, **settings)
        with offline_where_unreachable():
            return timm.create_model(short, pretrained=True, **settings)
    except NotImplementedError:  # a kind of RuntimeError, and no affair of the weights
        raise
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot get the pretrained weights of {name} ({first_line(error)}). Fill the"
            f" Hugging Face cache where there is a network, or {START_AT_RANDOM}"
        ) from error


def timm_classifier(
    name: str, pretrained: bool, sizes: Sequence[int], num_classes: int, **settings: Any
) -> Any:
    """`timm_network` with so many classes.

    Raises:
        UserError: as there, or the network has no classifier.
    """
    network = timm_network(name, pretrained, sizes, num_classes=num_classes, **settings)
    if not hasattr(network, "get_classifier"):
        timm, short = timm_with(name)
        whole = short.rpartition("_")[0]
        other = f"timm:{whole}, or another network" if timm.is_model(whole) else "another network"
        raise UserError(f"{name} is an encoder without a classifier in timm: take {other}")
    return network

"""Published weights for networks of transformers, and what they lack."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import UserError, first_line
from trainkit.models.hf_config import Found
from trainkit.models.pretrained import START_AT_RANDOM, offline_where_unreachable


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
            " where there is a network, put model.safetensors beside its config.json, or"
            f" {START_AT_RANDOM}"
        ) from error
    network.train()
    if getattr(network, "head_names", None) is None:
        network.head_names = head_names(network, name)
    _say_what_is_new(network, name, source, loaded, num_classes)
    return network


def head_names(network: Any, name: str) -> tuple[str, ...]:
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
def swap_red_and_blue(network: nn.Module, name: str) -> None:
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

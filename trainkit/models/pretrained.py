"""Loads torchvision's published weights, with a clear error where they are not available."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from trainkit.errors import UserError, first_line

START_AT_RANDOM = (
    "start from random weights with --no-pretrained; a small network needs no published ones:"
    " --model small for classes, --model lraspp --backbone small for masks"
)
SMALL = "small"  # networks and backbones of our own, which nobody published weights of
_WANTED = ContextVar("wanted", default=True)


@contextmanager
def without_pretrained() -> Iterator[None]:
    """Context manager: networks start at random, as their weights come from elsewhere."""
    token = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(token)


def has_published_weights(model: str, backbone: str | None = None) -> bool:
    """Whether a network by name has weights that somebody published, as small ones have not.

    Args:
        model: of a recipe's setting; those of transformers have a body of their own.
        backbone: that the others are built on, where there is one.
    """
    return model.startswith("hf:") or SMALL not in (model, backbone)


def wanted() -> bool:
    """Whether published weights are fetched, which `without_pretrained` forgoes."""
    return _WANTED.get()


@contextmanager
def offline() -> Iterator[None]:
    """Context manager: huggingface_hub takes what is in its cache, and asks nobody."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Context manager: huggingface_hub takes what is in its cache where its host has no address.

    It would ask for each file six times over 23 seconds else, and print each time that it failed.
    Where a proxy stands between, the host is not asked for.
    """
    host = urlsplit(constants.ENDPOINT).hostname
    before = constants.HF_HUB_OFFLINE
    try:
        if host and not getproxies():
            socket.getaddrinfo(host, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_pretrained(
    module: nn.Module,
    weights: WeightsEnum,
    skip: tuple[str, ...] = (),
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> nn.Module:
    """Load published weights into a module; they are downloaded once into torch's cache.

    Args:
        module: takes the weights; it is returned.
        weights: torchvision's.
        skip: prefixes of keys that the module does not have or has otherwise, such as "fc."; all
            other keys must match.
        adapt: changes the weights to those of the module.

    Raises:
        UserError: the weights are not in the cache and cannot be downloaded.
    """
    if not wanted():
        return module
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, UnpicklingError) as error:
        raise UserError(
            f"cannot get the pretrained weights {weights} from {weights.url}"
            f" ({first_line(error)}). Put the file at {file}, or {START_AT_RANDOM}"
        ) from error
    state = (
        {key: value for key, value in state.items() if not key.startswith(skip)} if skip else state
    )
    state = state if adapt is None else adapt(state)
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(skip)] if skip else missing
    if missing or unexpected:
        raise UserError(
            f"{weights} does not fit {type(module).__name__}: missing {missing}, unexpected"
            f" {unexpected}"
        )
    return module

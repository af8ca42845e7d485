"""Low-rank adapters (LoRA) by peft: small matrices are trained beside layers that stay as they are.

Source:
    Hu et al., 2021, LoRA: Low-Rank Adaptation of Large Language Models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import MissingPackageError, UserError, first_line, is_shortage
from trainkit.models.freezing import freeze
from trainkit.models.outputs import main_logits, run_padded, size_divisor

# alpha / rank, by which an adapter's output is multiplied. Checkpoints hold the matrices alone and
# are merged by it: another number would be another format.
SCALE = 2
IN_ATTENTION = ("attn", "attention")  # in the name of a module around its linear layers
SIDE = 224  # pixels, of a network that says nothing of its images

_MERGED = ContextVar("merged", default=False)


@dataclass(frozen=True)
class Adapters:
    """What `add_adapters` has put into a network, whose attribute `adapters` it is."""

    rank: int
    targets: tuple[str, ...]
    """names of the layers with one"""
    heads: tuple[str, ...]
    """names of the modules that are trained whole"""
    config: Mapping[str, Any]
    """adapter_config.json, as peft reads it"""

    @property
    def label(self) -> str:
        """What is trained, in a line."""
        shown = ", ".join(self.targets[:2]) + (", ..." if len(self.targets) > 2 else "")
        return (
            f"LoRA of rank {self.rank} in {len(self.targets)} layers ({shown}); trained whole:"
            f" {', '.join(self.heads)}; the rest is frozen"
        )


@contextmanager
def merged() -> Iterator[None]:
    """Context manager: `add_adapters` adds none, as weights come that they are merged into."""
    token = _MERGED.set(True)
    try:
        yield
    finally:
        _MERGED.reset(token)


def add_adapters(network: nn.Module, rank: int | None, images: Tensor | None = None) -> None:
    """Put adapters into a network with its weights, of which they and its head alone are trained.

    They are in the linear layers of its attention. Where it has none, or computes with the weights
    of one without calling it (torchvision's transformers, BEiT), they are in all linear layers and
    convolutions without groups or dilation that it calls, but for the head. All else is frozen, and
    in evaluation mode. At first they change no output. A layer of the name x is x.base_layer then,
    beside x.lora_A.default and x.lora_B.default.

    Args:
        network: says by `head_names` or `backbone` which part is its head; it gets an attribute
            `adapters`.
        rank: of the adapters' matrices, whose product is multiplied by `SCALE`; None: none is
            added.
        images: (N, C, H, W) as the network takes them, run once to see which layers are called;
            None: three channels, as large as a network of timm says.

    Raises:
        UserError: the rank is below 1, the network does not say which part is its head, or there is
            no layer that could have an adapter.
        MissingPackageError: peft is not installed.
    """
    if rank is None or _MERGED.get():
        return
    if rank < 1:
        raise UserError(f"lora is {rank}; it is the rank of the adapters, at least 1: such as 16")
    peft = _peft()
    heads = _heads(network)
    images = _images(network) if images is None else images
    called, before = _run(network, images)
    targets = _targets(network, heads, called)
    config = peft.LoraConfig(
        r=rank, lora_alpha=SCALE * rank, target_modules=targets, modules_to_save=None
    )
    trained = [network.get_submodule(name) for name in heads]
    # a head of transformers may hold parameters that take no gradient
    whole = [each for head in trained for each in head.parameters() if each.requires_grad]
    peft.inject_adapter_in_model(config, network)
    for parameter in whole:
        parameter.requires_grad_(True)
    adapted = [each for each in network.modules() if isinstance(each, peft.tuners.lora.LoraLayer)]
    trained += [part for layer in adapted for part in (layer.lora_A, layer.lora_B)]
    for child in network.children():
        inside = set(child.modules())
        freeze(child, but=[each for each in trained if each in inside])
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        target_modules=targets,
        modules_to_save=list(heads),
        inference_mode=True,
    )
    _require_unchanged(network, images, before)
    about: Any = network  # which may have any attribute
    about.adapters = Adapters(rank, tuple(targets), heads, _as_json(config))


def _peft() -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'lora needs peft, which is not installed: pip install "trainkit[lora]"'
        ) from error
    return peft


def _heads(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are trained whole."""
    names = tuple(getattr(network, "head_names", ()))
    backbone = getattr(network, "backbone", None)
    if not names and isinstance(backbone, nn.Module):
        names = tuple(
            name
            for name, child in network.named_children()
            if child is not backbone and any(True for _ in child.parameters())
        )
    if not names:
        raise UserError(
            f"lora: {type(network).__name__} does not say which part is its head, which is trained"
            ' whole: give it an attribute `backbone`, or `head_names`, such as ("fc",)'
        )
    return names


def _targets(network: nn.Module, heads: Sequence[str], called: set[nn.Module]) -> list[str]:
    """Names of the layers that get an adapter, see `add_adapters`."""
    in_head = {part for name in heads for part in network.get_submodule(name).modules()}
    named = {name: each for name, each in network.named_modules() if each not in in_head}
    usable = [name for name, module in named.items() if module in called and _is_plain(module)]
    in_attention = [
        name
        for name, module in named.items()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and any(word in part for part in name.lower().split(".") for word in IN_ATTENTION)
    ]
    if in_attention and set(in_attention) <= set(usable):
        return in_attention
    if not usable:
        raise UserError(
            f"lora: {type(network).__name__} has no linear layer and no convolution, without"
            " groups and dilation, that could have an adapter: take another network"
        )
    return usable


def _is_plain(module: nn.Module) -> bool:
    """Whether an adapter beside a layer is the same as one merged into its weights.

    Not so of a subclass, which may compute otherwise, as with standardised weights; nor does peft
    take a convolution's dilation and kind of padding to its own.
    """
    if type(module) not in (nn.Linear, nn.Conv2d) or not module.weight.requires_grad:
        return False  # what takes no gradient has no part in the outputs
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
    )


def _require_unchanged(network: nn.Module, images: Tensor, before: Tensor) -> None:
    """Raise UserError where a network with fresh adapters does not compute what it did before."""
    kind = type(network).__name__
    try:
        _, after = _run(network, images)
    except (AttributeError, TypeError, RuntimeError) as error:
        if is_shortage(error):
            raise
        raise UserError(
            f"lora: {kind} reads more of its layers than their outputs, and does not run with"
            f" adapters ({first_line(error)}): take another network"
        ) from error
    if not torch.allclose(after, before, rtol=1e-4, atol=1e-5):
        raise UserError(f"lora: fresh adapters change what {kind} computes: take another network")


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> tuple[set[nn.Module], Tensor]:
    """Linear layers and convolutions that are called in evaluation mode, and the logits.

    The weights of others may be read all the same.
    """
    found: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda called, _: found.add(called))
        for module in network.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        logits = main_logits(run_padded(network, images, size_divisor(network)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return found, logits


def _images(network: nn.Module) -> Tensor:
    known = getattr(network, "pretrained_cfg", None) or {}
    channels, height, width = known.get("input_size", (3, SIDE, SIDE))
    return torch.zeros(1, channels, height, width)


def _as_json(config: Any) -> dict[str, Any]:
    """The configuration as peft writes it: sets as lists, in one order."""
    return json.loads(json.dumps(config.to_dict(), default=sorted))

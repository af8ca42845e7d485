"""Activation checkpointing: keeps a block's input, and computes the rest again when needed.

By `torch.utils.checkpoint`. The training is bit for bit the one without: random numbers are drawn
again as before, and batch norm counts a batch once.

Source:
    Chen et al., 2016, Training Deep Nets with Sublinear Memory Cost.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.utils.checkpoint import checkpoint

from trainkit.errors import UserError

CHAINS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(model: nn.Module) -> int:
    """Have the blocks of `model` computed again in the backward pass; how many there are.

    See `blocks`.

    Raises:
        UserError: there are none.
    """
    names = {module: name for name, module in model.named_modules()}
    found = dict.fromkeys(blocks(model))
    if not found:
        raise UserError(
            f"activation_checkpointing is on, and {type(model).__name__} has no blocks: modules"
            " with parts of their own in an nn.Sequential or nn.ModuleList. Turn it off, or set a"
            " smaller --micro-batch"
        )
    for block in found:
        norms = [module for module in block.modules() if isinstance(module, AnyBatchNorm)]
        block.forward = partial(
            _checkpointed, block.forward, norms, f"{names[block]} ({type(block).__name__})"
        )
    return len(found)


def blocks(module: nn.Module) -> list[nn.Module]:
    """What `checkpoint_activations` would take in a module, such as Bottlenecks or EncoderBlocks.

    Modules with parts of their own in an nn.Sequential or nn.ModuleList; stages and backbones,
    which hold several blocks, are entered. Where those hold less than half of the weights, modules
    of one class beside each other are taken, too, such as the stages of timm's RegNet and what an
    Inception is made of.
    """
    chained = list(_chained(module))
    if 2 * sum(map(_num_weights, chained)) >= _num_weights(module):
        return [block for each in chained for block in _inside(each)]
    kinds = Counter(type(child) for child in module.children() if _is_block(child))
    found: list[nn.Module] = []
    for child in module.children():
        inside = _inside(child) if child in chained else blocks(child)
        if kinds[type(child)] > 1 and _is_block(child) and sum(map(_is_block, inside)) < 2:
            inside = [child]
        found += inside
    return found


def _inside(module: nn.Module) -> list[nn.Module]:
    """The blocks of a module in a chain, where they are most of it, or the module itself."""
    inside = blocks(module)
    enough = sum(map(_is_block, inside)) > 1 and 4 * sum(
        map(_num_weights, inside)
    ) >= 3 * _num_weights(module)
    return inside if enough else [module]


def _chained(module: nn.Module) -> Iterator[nn.Module]:
    in_chain = isinstance(module, CHAINS)
    for child in module.children():
        is_stage = sum(map(_is_block, _chained(child))) > 1
        has_parts = any(child.children()) and _num_weights(child) and not isinstance(child, CHAINS)
        if in_chain and has_parts and not is_stage:
            yield child
        else:
            yield from _chained(child)


def _is_block(module: nn.Module) -> bool:
    """Whether a module has parts, and weights in two layers or more other than norms."""
    layers = sum(weight.ndim > 1 for weight in module.parameters())
    return layers > 1 and any(module.children()) and not isinstance(module, CHAINS)


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _checkpointed(
    forward: Any, norms: list[AnyBatchNorm], name: str, *inputs: Any, **keywords: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **keywords)
    # DenseNets append to theirs
    inputs = tuple(list(each) if isinstance(each, list) else each for each in inputs)
    # not handed to `checkpoint`, which has keywords of its own
    forward = partial(forward, **keywords)
    if torch.compiler.is_compiling():  # which changes buffers in the forward pass alone
        return checkpoint(forward, *inputs, use_reentrant=False)
    given = [each for each in (*inputs, *keywords.values()) if isinstance(each, Tensor)]
    versions = [each._version for each in given]
    outputs = checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _not_counting(norms)),
    )
    if versions != [each._version for each in given]:
        raise UserError(
            f"activation_checkpointing is on, and the block {name} changes its input in place:"
            " computed again, it would start from what it has left. Turn it off, or build the"
            " block without inplace=True"
        )
    return outputs


@contextmanager
def _not_counting(norms: list[AnyBatchNorm]) -> Iterator[None]:
    """Context manager: batch norm normalises by the batch and keeps its running statistics."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, kept):
        norm.momentum = 0.0
        if isinstance(norm, nn.SyncBatchNorm) and batches is not None:
            # it does not do without a counter: one to throw away
            norm.num_batches_tracked = batches.clone()
        else:
            norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, batches

"""Activation checkpointing: keep a block's input instead of what is inside it, and compute that again when needed.

Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", by `torch.utils.checkpoint`. The training is bit
for bit the one without: random numbers are drawn again as before, and batch norm counts a batch once.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> int:
    """Have the blocks of `model` computed again in the backward pass; how many there are.

    Blocks are the outermost modules with parts of their own in an nn.Sequential or nn.ModuleList, such as the
    Bottlenecks of a ResNet and the EncoderBlocks of a ViT. Raises ValueError where there are none.
    """
    found = list(blocks(model))
    if not found:
        raise ValueError(
            f"activation_checkpointing is on, and {type(model).__name__} has no blocks: modules with parts of their "
            "own in an nn.Sequential or nn.ModuleList. Turn it off, or take smaller passes with --micro-batch"
        )
    for block in found:
        norms = [module for module in block.modules() if isinstance(module, AnyBatchNorm)]
        block.forward = partial(_checkpointed, block.forward, norms)
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What `checkpoint_activations` would take in `module`."""
    lists = isinstance(module, (nn.Sequential, nn.ModuleList))
    for child in module.children():
        if lists and any(child.children()) and not isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield child
        else:
            yield from blocks(child)


def _checkpointed(forward: Any, norms: list[nn.Module], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():  # which changes buffers in the forward pass alone
        return checkpoint(forward, *inputs, use_reentrant=False)
    contexts = lambda: (nullcontext(), _not_counting(norms))  # noqa: E731
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _not_counting(norms: list[nn.Module]) -> Iterator[None]:
    """Batch norm normalises by the batch meanwhile, and leaves its running statistics alone."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, batches

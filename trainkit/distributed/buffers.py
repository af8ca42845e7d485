"""Which buffers the processes have to agree on in each step."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# whose layers read their statistics in evaluations alone; others' may train with them
KNOWN = ("torch.nn.", "timm.", "trainkit.")


def train_without_buffers(modules: Iterable[nn.Module]) -> bool:
    """Whether a training step reads no buffer: all are statistics of BatchNorm.

    Then processes need not have the same ones before an evaluation, or in a checkpoint, which has
    those of process 0. Layers in evaluation mode, which read them, do not change them.
    """
    for module in modules:
        statistics = {
            id(buffer)
            for layer in module.modules()
            if isinstance(layer, _BatchNorm) and type(layer).__module__.startswith(KNOWN)
            for buffer in layer.buffers(recurse=False)
        }
        if any(id(buffer) not in statistics for buffer in module.buffers()):
            return False
    return True

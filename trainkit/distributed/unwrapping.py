"""Removes torch.compile's and DistributedDataParallel's wrappers from a module.

accelerate's `extract_model_from_parallel` would also take off the wrapper that sets the precision.
"""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def without_compile(module: nn.Module) -> nn.Module:
    """The module that was compiled, or the module itself.

    torch.compile is the outermost wrapper.
    """
    return getattr(module, "_orig_mod", module)


def without_wrappers(module: nn.Module) -> nn.Module:
    """The module that was compiled and wrapped for several processes, or the module itself."""
    inner = without_compile(module)
    return inner.module if isinstance(inner, DistributedDataParallel) else inner

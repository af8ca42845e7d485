"""Bounds what the building of a network may take, where a file of anybody's describes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from trainkit.errors import UserError, is_out_of_memory

TIMES = 4  # as large as the file, in which a value may take one byte and not four
SPARE = 2**28  # bytes: layers that are built and replaced, buffers that are not stored
LEAST = 1024  # bytes that a module takes for each tensor, however small that is


@contextmanager
def no_larger_than(weights: Path, source: str) -> Iterator[None]:
    """Context manager: networks built in it are not much larger than the file of their weights.

    A layer that is too large is found after its memory was asked for, and before any of it is
    written, which is when a system gives it.

    Args:
        weights: a file, or a checkpoint's folder.
        source: what says how large the network is, for the message.

    Raises:
        UserError: parameters and buffers take more than `TIMES` the file's bytes and `SPARE`.
    """
    files = list(weights.glob("model*.safetensors")) if weights.is_dir() else [weights]
    stored = sum(file.stat().st_size for file in files if file.is_file())
    most = TIMES * stored + SPARE
    total = 0

    def fault(size: str) -> UserError:
        return UserError(
            f"{source} describes a network of more than {size}, and its weights, {weights}, are"
            f" {stored / 2**20:,.1f} MiB: one of the two is damaged, or no training wrote it"
        )

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal total
        if tensor is None:
            return
        total += max(tensor.nbytes, LEAST)
        if total > most:
            raise fault(f"{total / 2**20:,.0f} MiB")

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    )
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise fault("there is memory here") from error
    finally:
        for hook in hooks:
            hook.remove()

"""Converts targets of datasets to tensors: numbers, arrays, tensors of any integer type."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.errors import UserError

WIDER = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def as_target(target: Any) -> Any:
    """A target as a tensor where it is a whole number, an array or a tensor.

    A single whole number is int64, whatever type it came in. Masks and rows keep theirs, but for
    the types that torch hardly computes with, which become wider ones: uint16 is int32, uint32 and
    uint64 are int64, bool is uint8. Anything else, such as a float, stays as it is.

    Raises:
        UserError: a number does not fit into int64.
    """
    if isinstance(target, Tensor) and target.dtype == torch.int64:
        return target  # what most datasets give, once for each image
    if isinstance(target, (bool, int)):
        if not -(2**63) <= target < 2**63:
            raise UserError(f"label {target} is no class id: it does not fit into 64 bits")
        return torch.tensor(int(target))
    if isinstance(target, (np.ndarray, np.generic)):
        array = np.asarray(target)
        if array.dtype.kind not in "biuf":
            return target
        if (
            not array.dtype.isnative
            or not array.flags.writeable
            or min(array.strides, default=0) < 0
        ):
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        target = torch.from_numpy(array)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        return target
    if target.ndim == 0:
        return target.long()
    return target.to(WIDER.get(target.dtype, target.dtype))

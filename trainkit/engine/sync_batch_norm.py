"""Synchronised batch norm: over the whole batch, not each process's part of it."""

from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from trainkit.errors import UserError


def synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model with SyncBatchNorm in place of its batch norms.

    Names, weights, hooks and activations stay. timm's batch norms with an activation become timm's
    own SyncBatchNormAct: torch's `convert_sync_batchnorm` would drop the activation.

    Raises:
        UserError: there is no GPU, or a batch norm computes something of its own, of which nobody
            knows how to synchronise it.
    """
    if accelerator.device.type == "cpu":
        raise UserError(
            f"sync_batch_norm is on, and {accelerator.num_processes} processes train on the CPU:"
            " torch's SyncBatchNorm is for GPUs. Turn it off (--no-sync-batch-norm), or train in"
            " one process with --micro-batch"
        )
    kinds = {
        norm: _synchronised_kind(name, norm)
        for name, norm in model.named_modules()
        if _counts(norm)
    }
    for norm, kind in kinds.items():
        norm.__class__ = kind  # and nothing else changes: names, hooks, what the optimizer holds
        norm.process_group = None
    return model


def _counts(module: nn.Module) -> bool:
    return isinstance(module, AnyBatchNorm) and not isinstance(module, nn.SyncBatchNorm)


def _synchronised_kind(name: str, norm: nn.Module) -> type[nn.Module]:
    """The class that does over all processes what this batch norm does in one."""
    kind = type(norm)
    own_forward = "forward" in vars(norm) or kind.forward is not AnyBatchNorm.forward
    if (
        kind.__name__ == "BatchNormAct2d"
        and kind.__module__.startswith("timm.")
        and "forward" not in vars(norm)
    ):
        from timm.layers.norm_act import SyncBatchNormAct

        return SyncBatchNormAct
    if own_forward or isinstance(norm, LazyModuleMixin):
        raise UserError(
            f"sync_batch_norm is on, and {name} is a {kind.__module__}.{kind.__qualname__}, which"
            " computes otherwise than torch's batch norm: it cannot be synchronised without"
            " changing the network. Turn it off (sync_batch_norm=False, --no-sync-batch-norm), or"
            " build the network with torch's own"
        )
    return nn.SyncBatchNorm

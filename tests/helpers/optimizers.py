"""Every optimizer of torch, timm, schedulefree and prodigyopt that can be built here, by name."""

from collections.abc import Callable, Iterable

import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer

Builder = Callable[[nn.Module], Optimizer]

TORCH = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
)
ELSEWHERE = ("bnb", "fused")  # timm's names for optimizers of bitsandbytes and apex
VARIANTS = {
    "torch.optim.SGD momentum": lambda model: torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, dampening=0.5
    ),
    "torch.optim.SGD nesterov": lambda model: torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, nesterov=True
    ),
    "torch.optim.AdamW amsgrad": lambda model: torch.optim.AdamW(
        model.parameters(), 0.01, amsgrad=True
    ),
    "torch.optim.AdamW fused": lambda model: torch.optim.AdamW(
        model.parameters(), 0.01, fused=True
    ),
    "torch.optim.AdamW tensor lr": lambda model: torch.optim.AdamW(
        model.parameters(), torch.tensor(0.01)
    ),
    "torch.optim.RMSprop centered": lambda model: torch.optim.RMSprop(
        model.parameters(), momentum=0.9, centered=True
    ),
}


def builders() -> dict[str, Builder]:
    """Name -> what builds it over a model's parameters."""
    found: dict[str, Builder] = {
        f"torch.optim.{name}": _of_torch(name) for name in TORCH
    } | VARIANTS
    names = [name for name in timm.optim.list_optimizers() if not name.startswith(ELSEWHERE)]
    names += ["lookahead_sgd", "lookahead_adamw", "lookahead_radam"]
    found |= {f"timm {name}": _of_timm(name) for name in names}
    found["prodigyopt.Prodigy"] = _prodigy
    return found | {f"schedulefree.{name}": _schedule_free(name) for name in SCHEDULE_FREE}


SCHEDULE_FREE = (
    "AdamWScheduleFree",
    "AdamWScheduleFreeClosure",
    "AdamWScheduleFreeReference",
    "AdamWScheduleFreePaper",
    "RAdamScheduleFree",
    "RAdamScheduleFreeClosure",
    "SGDScheduleFree",
    "SGDScheduleFreeClosure",
    "SGDScheduleFreeReference",
    "ScheduleFreeWrapper",
    "ScheduleFreeWrapperReference",
)


def _of_torch(name: str) -> Builder:
    kind = getattr(torch.optim, name)

    def build(model: nn.Module) -> Optimizer:
        return kind(_matrices(model) if name == "Muon" else list(model.parameters()), lr=0.01)

    return build


def _of_timm(name: str) -> Builder:
    return lambda model: timm.optim.create_optimizer_v2(
        model, opt=name, lr=0.01, weight_decay=0.01, momentum=0.9
    )


def _prodigy(model: nn.Module) -> Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(model.parameters(), lr=1.0)


def _schedule_free(name: str) -> Builder:
    def build(model: nn.Module) -> Optimizer:
        import schedulefree

        kind = getattr(schedulefree, name)
        if name.startswith("ScheduleFreeWrapper"):
            return kind(torch.optim.SGD(model.parameters(), lr=0.01))
        return kind(model.parameters(), lr=0.01)

    return build


def _matrices(model: nn.Module) -> Iterable[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.ndim == 2]

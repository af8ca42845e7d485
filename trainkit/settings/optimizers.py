"""Optimizers by name: torch's, timm's, and those of schedulefree and prodigyopt."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch.optim import Optimizer

from trainkit.errors import MissingPackageError, UserError
from trainkit.settings.parsing import parse_named, require_arguments

# Name -> class, of torch's whose step takes one dense gradient of weights of any shape.
TORCH = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam",
    "RMSprop", "Rprop", "SGD",
)  # fmt: skip
REFUSED = {
    "lbfgs": "computes the loss again in its step (a closure)",
    "sparseadam": "is for sparse gradients, and those of images are dense",
}
# Name -> package, class
OTHERS = {
    "prodigy": ("prodigyopt", "Prodigy"),
    "schedulefree": ("schedulefree", "AdamWScheduleFree"),
    "schedulefree_adamw": ("schedulefree", "AdamWScheduleFree"),
    "schedulefree_radam": ("schedulefree", "RAdamScheduleFree"),
    "schedulefree_sgd": ("schedulefree", "SGDScheduleFree"),
}
ONE_RATE = ("prodigy",)  # it would raise in the first step
FUSED = ("SGD", "Adam", "AdamW")  # faster, on the CPU too
USUAL_MOMENTUM = 0.9
# Rates of these scale linearly with the batch; those of adaptive ones by its square root.
NOT_ADAPTIVE = ("sgd", "nesterov", "momentum", "asgd", "lars", "nlars", "larc", "nlarc")


def named_optimizer(
    text: str,
    groups: Sequence[dict[str, Any]],
    lr: float,
    momentum: float | None = None,
    betas: tuple[float, ...] | None = None,
) -> Optimizer:
    """The optimizer that `text` names, over these groups.

    Args:
        text: sgd, nesterov (SGD with Nesterov's momentum) or another of torch's in lower case,
            schedulefree, schedulefree_sgd, schedulefree_radam, prodigy, or a name of timm's, such
            as lion; "timm:" before it takes timm's where torch has one of that name. Further
            arguments of the optimizer follow a colon: "adamw:eps=1e-6,amsgrad=True".
        groups: of parameters, with "lr" and "weight_decay" each.
        lr: of a group without one.
        momentum: None: 0.9 for sgd, nesterov and those of timm's whose own is 0; else its own.
        betas: None: its own.

    Raises:
        UserError: there is none of that name, or it has no such option.
        MissingPackageError: it is timm's or another package's, which is not installed.
    """
    name, arguments = parse_named("optimizer", text)
    build, defaults = _found(name)
    given = {"momentum": momentum, "betas": betas}
    given = {option: value for option, value in given.items() if value is not None}
    twice = sorted(given.keys() & arguments.keys())
    if twice:
        raise UserError(f"optimizer is {text}, and {twice[0]} is given as well: give it once")
    if any(group["weight_decay"] for group in groups) and not _takes(build, "weight_decay"):
        raise UserError(
            f"optimizer {name} has no weight decay: give --weight-decay 0, or another optimizer"
        )
    for option in given:
        if not _takes(build, option):
            raise UserError(f"optimizer {name} has no {option}: leave --{option} out")
    if name.lower() in ONE_RATE and len({group.get("lr", lr) for group in groups}) > 1:
        raise UserError(
            f"optimizer {name} finds one rate for all parameters, and these have several: give"
            " --head-lr-mult 1, and no --layer-decay"
        )
    require_arguments("optimizer", name, arguments, build)
    reserved = sorted({"params", "lr", "weight_decay"} & arguments.keys())
    if reserved:
        flag = reserved[0].replace("_", "-")
        raise UserError(f"optimizer is {text}: {reserved[0]} is given by --{flag}")
    if betas is not None:
        _require_as_many(name, build, betas)
    return build(groups, lr=lr, **{**defaults, **given, **arguments})


def is_adaptive(text: str) -> bool:
    """Whether an optimizer scales its steps itself, as Adam does, and SGD does not."""
    name = parse_named("optimizer", text)[0].removeprefix("timm:").lower()
    return not name.startswith(NOT_ADAPTIVE) and name != "schedulefree_sgd"


def _found(name: str) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """What builds the optimizer, and the arguments that it gets where others are not given."""
    lowered = name.lower()
    if lowered in REFUSED:
        raise UserError(f"optimizer {name} {REFUSED[lowered]}: take another one, such as adamw")
    if lowered in OTHERS:
        package, kind = OTHERS[lowered]
        return getattr(_imported(package, name), kind), {}
    of_torch = {each.lower(): each for each in TORCH}
    if lowered == "nesterov":
        return torch.optim.SGD, {"momentum": USUAL_MOMENTUM, "nesterov": True, "fused": True}
    if lowered in of_torch:
        kind = of_torch[lowered]
        defaults: dict[str, Any] = {"fused": True} if kind in FUSED else {}
        if kind == "SGD":
            defaults["momentum"] = USUAL_MOMENTUM
        return getattr(torch.optim, kind), defaults
    return _of_timm(name.removeprefix("timm:"), [*of_torch, "nesterov", *OTHERS])


def _of_timm(name: str, others: Sequence[str]) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    timm = _imported("timm.optim", name, f"torch has {', '.join(sorted(others))}")
    known = timm.list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, [*others, *known], n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join([*others, *known])}"
        raise UserError(f"no optimizer of the name {name}; {meant}")
    build = timm.get_optimizer_class(name, bind_defaults=True)
    momentum = inspect.signature(build).parameters.get("momentum")
    lacks = momentum is not None and momentum.default == 0
    return build, {"momentum": USUAL_MOMENTUM} if lacks else {}


def _imported(module: str, name: str, else_known: str | None = None) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        more = f" ({else_known})" if else_known else ""
        raise MissingPackageError(
            f"optimizer {name} is none of torch's{more}, and {package} is not installed:"
            f" pip install {package}"
        ) from error


def _takes(build: Callable[..., Optimizer], option: str) -> bool:
    return option in inspect.signature(build).parameters


def _require_as_many(name: str, build: Callable[..., Optimizer], betas: Sequence[float]) -> None:
    own = inspect.signature(build).parameters["betas"].default
    if isinstance(own, tuple) and len(own) != len(betas):
        raise UserError(
            f"optimizer {name} has {len(own)} betas, {', '.join(map(str, own))} by default, and"
            f" --betas gives {len(betas)}"
        )

"""Parameter groups: learning-rate multipliers of head and layers, and weight decay."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn

from trainkit.errors import UserError, did_you_mean

# What embeddings of places and tokens are called in torchvision's, timm's and others' networks:
# they never decay.
EMBEDDINGS = (
    "pos_embed", "pos_embedding", "position_embedding", "position_embeddings", "absolute_pos_embed",
    "relative_position_bias_table", "cls_token", "class_token", "dist_token", "mask_token",
)  # fmt: skip
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr_mult: float = 1.0,
    decay_vectors: bool = True,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Make the parameter groups of a torch optimizer.

    Frozen parameters and empty groups are left out. What `no_decay` finds has no weight decay.

    Args:
        model: the head is what lies in the modules that `model.head_names` names, in what timm's
            `get_classifier` gives, or outside `model.backbone`.
        lr: learning rate of everything but the head.
        weight_decay: of the parameters that decay.
        head_lr_mult: factor of the head's learning rate.
        decay_vectors: False exempts parameters of at most one dimension, that is every bias and
            every norm's scale and shift under whatever name.
        layer_decay: factor of the learning rate from one layer of `depths` to the layer before it,
            such as 0.75; the last layer has `lr` itself.

    Returns:
        Groups with "params", "lr" and "weight_decay".

    Raises:
        UserError: `head_lr_mult` is not 1 and the model does not say which part is its head,
            `layer_decay` is out of range or the model is a single layer, or all of it is frozen.

    Source:
        Layer-wise learning-rate decay: Clark et al., 2020, ELECTRA; Bao et al., 2022, BEiT.
    """
    in_head = _head(model)
    if head_lr_mult != 1.0 and in_head is None:
        raise UserError(
            f"param_groups: head_lr_mult is {head_lr_mult}, and {type(model).__name__} does not say"
            " which part is its head: give it an attribute `backbone`, or `head_names`, such as"
            ' ("fc",)'
        )
    if not 0 < layer_decay <= 1:
        raise UserError(
            f"param_groups: layer_decay is {layer_decay}; it must be above 0 and at most 1 (1 for"
            " none)"
        )
    depth = depths(model) if layer_decay != 1.0 else {}
    top = max(depth.values(), default=0)
    if layer_decay != 1.0 and top == 0:
        raise UserError(
            f"param_groups: layer_decay is {layer_decay}, but {type(model).__name__} is a single"
            " layer"
        )
    exempt = no_decay(model)
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = (decay_vectors or parameter.ndim > 1) and name not in exempt
            key = (id(parameter) in (in_head or ()), decays, depth.get(name, top))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UserError(f"param_groups: every parameter of {type(model).__name__} is frozen")
    return [
        {
            "params": parameters,
            "lr": lr * (head_lr_mult if at_head else 1.0) * layer_decay ** (top - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (at_head, decays, layer), parameters in groups.items()
    ]


def no_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that do not decay whatever their shape.

    These are position and token embeddings, and what the model or a part of it names itself, as
    timm's networks do by `no_weight_decay()`.
    """
    patterns: dict[str, list[str]] = {}  # of the outermost modules that name some, by their path
    for path, module in model.named_modules():
        own_names = getattr(module, "no_weight_decay", None)
        if own_names is not None and not any(f"{path}.".startswith(outer) for outer in patterns):
            prefix = f"{path}." if path else ""
            patterns[prefix] = [f"{prefix}{name}" for name in own_names()]
    listed = [pattern for names in patterns.values() for pattern in names]
    return {
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] in EMBEDDINGS
        or any(fnmatch(name, pattern) for pattern in listed)
    }


def named_parts(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """The parameters of the parts of these names, which are to be frozen for a while.

    Those that take no gradient are among them: a norm of the part that has no others is frozen too.

    Args:
        model: says by `backbone` or `head_names` which part is its head, see `param_groups`.
        names: "backbone", which is all but the head, or modules of `model`, such as "layer1".

    Raises:
        UserError: there is no such part, or these are the whole model.
    """
    chosen: set[int] = set()
    for name in names:
        if name == "backbone":
            chosen |= {id(parameter) for parameter in model.parameters()} - _required_head(model)
            continue
        modules = dict(model.named_modules())
        if not name or name not in modules:
            parts = ["backbone", *(child for child, _ in model.named_children())]
            raise UserError(
                f"freeze is {name}, and {type(model).__name__} has no such part"
                f"{did_you_mean(name, parts)}"
            )
        chosen |= {id(parameter) for parameter in modules[name].parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    if not any(parameter.requires_grad for parameter in rest):
        raise UserError(f"freeze is {' '.join(names)}: that leaves nothing of the model to train")
    return [parameter for parameter in model.parameters() if id(parameter) in chosen]


def last_layer(model: nn.Module) -> set[int]:
    """Ids of the parameters that adaptive gradient clipping leaves as they are.

    They are those of the layers that `head_names` names or timm's `get_classifier` gives; where
    these are not single layers, such as a decoder, or are not named, the model's last two
    parameters, as timm has it.
    """
    parts = _head_parts(model)
    if not parts or any(list(part.children()) for part in parts):
        return {id(parameter) for parameter in list(model.parameters())[-2:]}
    return {id(parameter) for part in parts for parameter in part.parameters()}


def _required_head(model: nn.Module) -> set[int]:
    head = _head(model)
    if head is None:
        raise UserError(
            f"freeze is backbone, and {type(model).__name__} does not say which part is its head:"
            ' give it an attribute `backbone`, or `head_names`, such as ("fc",)'
        )
    return head


def depths(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter by name, from 0 at the input; the head is the last.

    A network defines it by a method `parameter_depths`, which returns this, or as timm's do by
    `group_matcher`; those are numbered as timm.optim numbers them. In others layers follow each
    other in the order of registration. A block is a layer: a module with several weights, such as a
    Bottleneck, a transformer's block or a ConvNeXt's. What comes before the first block is layer 0,
    as is what a module holds itself (position embeddings, class tokens). A single weight between
    blocks, such as a downsampling, belongs to the block after it, and one after the last block to
    that; a norm belongs to what comes after it. Where there are no blocks, each weight is a layer.
    """
    own_depths = getattr(model, "parameter_depths", None)
    if own_depths is not None:
        return own_depths()
    trunk = model
    backbone = getattr(model, "backbone", None)
    if not hasattr(model, "head_names") and isinstance(backbone, nn.Module):
        trunk = backbone
    own: Any = next((part for part in trunk.modules() if hasattr(part, "group_matcher")), None)
    if own is None:
        numbers = _numbers(trunk, _head(model))
        last = max(numbers.values(), default=-1) + 1
        return {
            name: numbers.get(id(parameter), last) for name, parameter in model.named_parameters()
        }
    from timm.models import group_parameters

    found = group_parameters(own, own.group_matcher(coarse=False), reverse=True)
    numbers = {id(parameter): found[name] for name, parameter in own.named_parameters()}
    # in a model of more parts the head is none of the network's groups
    last = max(found.values()) + (own is not model)
    return {name: numbers.get(id(parameter), last) for name, parameter in model.named_parameters()}


def _head(model: nn.Module) -> set[int] | None:
    """Ids of the head's parameters; None where the model does not define its head."""
    backbone = getattr(model, "backbone", None)
    if getattr(model, "head_names", None) is None and isinstance(backbone, nn.Module):
        in_backbone = {id(parameter) for parameter in backbone.parameters()}
        return {id(parameter) for parameter in model.parameters()} - in_backbone
    parts = _head_parts(model)
    if parts is None:
        return None
    return {id(parameter) for part in parts for parameter in part.parameters()}


def _head_parts(model: nn.Module) -> list[nn.Module] | None:
    """The modules that `head_names` names or `get_classifier` gives; None without either."""
    names = getattr(model, "head_names", None)
    if names is not None:
        return [model.get_submodule(name) for name in names]
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return None
    found = get_classifier()
    listed = found if isinstance(found, (tuple, list)) else [found]
    return [each for each in listed if each is not None]


def _numbers(trunk: nn.Module, head: set[int] | None) -> dict[int, int]:
    """Layers by the id of a parameter; what belongs to the head has none."""
    units = list(_units(trunk))
    if head is None:  # the last module with weights is
        weighty = [unit for unit in units if _num_weights(unit)]
        head = {id(parameter) for unit in weighty[-1:] for parameter in unit.parameters()}
    weights = [sum(p.ndim > 1 and id(p) not in head for p in unit.parameters()) for unit in units]
    least = 2 if max(weights, default=0) > 1 else 1  # weights of a layer
    # the first of a kind may be smaller
    kinds = {type(unit) for unit, count in zip(units, weights) if count >= least}
    layers = [place for place, count in enumerate(weights) if count and type(units[place]) in kinds]
    first = layers[0] if layers else len(units)
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    numbers = {id(parameter): 0 for parameter in trunk.parameters() if id(parameter) not in inside}
    # 1 where something is before the first block
    offset = int(least == 2 and (bool(numbers) or any(weights[:first])))
    number = None  # of what comes after: the head
    for place in reversed(range(len(units))):
        if place in layers:
            number = layers.index(place) + offset
        elif place < first:
            number = 0
        elif weights[place] and number is None:
            number = len(layers) - 1 + offset
        if number is not None:
            numbers |= {
                id(parameter): number
                for parameter in units[place].parameters()
                if id(parameter) not in head
            }
    return numbers


def _units(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """Yield blocks, and what stands between them, in the order of registration.

    Lists are entered, and what holds blocks in a list, at any depth; of what is `listed` itself,
    such as a stage or a block, only what holds them directly.
    """
    for child in module.children():
        if type(child) in LISTS or _is_stage(child, LISTS if listed else (nn.Module,)):
            yield from _units(child, listed=True)
        elif (
            any(_is_stage(part, LISTS) for part in child.children())
            if listed
            else any(map(_is_stage, child.modules()))
        ):
            yield from _units(child)
        else:
            yield child


def _is_stage(module: nn.Module, kinds: tuple[type, ...] = (nn.Module,)) -> bool:
    """Whether a module holds nothing but blocks of one type: several weights, and submodules.

    A list may hold a single one. `kinds` are types that it must be of.
    """
    parts = [child for child in module.children() if _num_weights(child)]
    alike = len({type(part) for part in parts}) == 1 and (
        len(parts) > 1 or isinstance(module, LISTS)
    )
    blocks = alike and all(any(part.children()) and _num_weights(part) > 1 for part in parts)
    return blocks and isinstance(module, kinds)


def _num_weights(module: nn.Module) -> int:
    """Parameters of more than one dimension."""
    return sum(parameter.ndim > 1 for parameter in module.parameters())

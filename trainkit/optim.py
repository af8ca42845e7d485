"""Parameter groups."""

from torch import nn


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head: float = 1.0,
    decay_vectors: bool = True,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups for a torch optimizer: the head at `head` times the learning rate, and no decay on vectors.

    lr: of everything in `model.backbone` (of the whole model where there is no backbone). head: factor
    for everything outside `model.backbone`; it stands here and nowhere else. decay_vectors: False exempts
    parameters of at most one dimension, that is every bias and every norm's scale and shift under
    whatever name. layer_decay: the learning rate's factor from one layer of `depths` to the layer before it, such as
    0.75 (Clark et al., 2020; Bao et al., 2022, BEiT); the last one has `lr` itself. Frozen parameters are left out;
    empty groups too.
    """
    backbone = {id(p) for p in model.backbone.parameters()} if hasattr(model, "backbone") else None
    if head != 1.0 and backbone is None:
        raise ValueError(f"param_groups: head is {head}, but {type(model).__name__} has no attribute `backbone`")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"param_groups: layer_decay is {layer_decay}; it must be above 0 and at most 1 (1 for none)")
    depth = depths(model) if layer_decay != 1.0 else {}
    top = max(depth.values(), default=0)
    if layer_decay != 1.0 and top == 0:
        raise ValueError(f"param_groups: layer_decay is {layer_decay}, but {type(model).__name__} is a single layer")
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_head = backbone is not None and id(parameter) not in backbone
            decays = decay_vectors or parameter.ndim > 1
            groups.setdefault((in_head, decays, depth.get(name, top)), []).append(parameter)
    if not groups:
        raise ValueError(f"param_groups: every parameter of {type(model).__name__} is frozen")
    return [
        {
            "params": parameters,
            "lr": lr * (head if in_head else 1.0) * layer_decay ** (top - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_head, decays, layer), parameters in groups.items()
    ]


def depths(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter by name, from 0 at the input; those beside `model.backbone` are one layer, the last.

    Layers follow each other as they are registered. Each element of an nn.Sequential or nn.ModuleList is one, and
    so is a module that has no such child; any other is looked into. A module of vectors alone (a norm) belongs to the
    layer after it, and what a module holds itself (position embeddings, class tokens) to layer 0. So
    torchvision's ViT has its patches as 0, block i as i + 1, and the last norm with the head; a ConvNeXt its stem,
    each block and each downsampling.
    """
    trunk = getattr(model, "backbone", None)
    layers = _layers(model if trunk is None else trunk)
    numbers: dict[int, int] = {}
    number = 0
    for layer in layers:
        for parameter in layer.parameters():
            numbers.setdefault(id(parameter), number)
        number += any(parameter.ndim > 1 for parameter in layer.parameters())
    inside = {id(p) for p in (model if trunk is None else trunk).parameters()}
    return {
        name: numbers.get(id(parameter), 0) if id(parameter) in inside else number
        for name, parameter in model.named_parameters()
    }


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a chain, or of what holds chains, in order; subclasses of nn.Sequential are layers themselves."""
    chain = type(module) in (nn.Sequential, nn.ModuleList)
    found = []
    for child in module.children():
        is_chain = type(child) in (nn.Sequential, nn.ModuleList)
        holds_chains = not chain and any(type(each) in (nn.Sequential, nn.ModuleList) for each in child.children())
        found += _layers(child) if is_chain or holds_chains else [child]
    return found

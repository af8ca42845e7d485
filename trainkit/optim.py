"""Parameter groups."""

from torch import nn


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, head: float = 1.0, decay_vectors: bool = True
) -> list[dict]:
    """Groups for a torch optimizer: the head at `head` times the learning rate, and no decay on vectors.

    lr: of everything in `model.backbone` (of the whole model where there is no backbone). head: factor
    for everything outside `model.backbone`; it stands here and nowhere else. decay_vectors: False exempts
    parameters of at most one dimension, that is every bias and every norm's scale and shift under
    whatever name. Frozen parameters are left out; empty groups too.
    """
    backbone = {id(p) for p in model.backbone.parameters()} if hasattr(model, "backbone") else None
    if head != 1.0 and backbone is None:
        raise ValueError(f"param_groups: head is {head}, but {type(model).__name__} has no attribute `backbone`")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            in_head = backbone is not None and id(parameter) not in backbone
            decays = decay_vectors or parameter.ndim > 1
            groups.setdefault((in_head, decays), []).append(parameter)
    if not groups:
        raise ValueError(f"param_groups: every parameter of {type(model).__name__} is frozen")
    return [
        {
            "params": parameters,
            "lr": lr * (head if in_head else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_head, decays), parameters in groups.items()
    ]

"""Networks for recognition by name: torchvision's and timm's."""

import torchvision
from torch import nn

from trainkit.models.names import nearest, timm_with


def classifier(name: str, num_classes: int) -> nn.Module:
    """The network `name` with random weights and `num_classes` outputs, for images (N, 3, H, W).

    name: one of torchvision's for recognition, such as "resnet50", "resnext50_32x4d", "convnext_tiny", "vit_b_16" or
    "efficientnet_b0", or "timm:" and a name of timm's. The last batch norm of each of a ResNet's residual blocks starts
    from 0 (Goyal et al., 2017). Raises ValueError for a name that is not known, and where timm is not there.
    """
    if name.startswith("timm:"):
        timm, short = timm_with(name)
        return timm.create_model(short, num_classes=num_classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"no model {name!r}{nearest(name, known)}; there are those of torchvision, and timm:NAME")
    residual = name.startswith(("resnet", "resnext", "wide_resnet"))
    settings = {"zero_init_residual": True} if residual else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings)

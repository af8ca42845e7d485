"""Base of the segmentation networks: backbone, head, auxiliary head, upsampling."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCNHead

from trainkit.models.base import Backbone
from trainkit.models.outputs import fill_up


class DenseModel(nn.Module):
    """Logits at the image's size, as `trainkit.tasks.segmentation.Segmentation` reads them.

    A head that no term of the loss reads receives no gradient (unused parameters), which DDP
    refuses: leave it out where its factor is 0. A training step needs two images or more in each
    process where a head pools to one pixel before a BatchNorm.

    Args:
        backbone: images -> maps c1 to c4, with their `channels`.
        head: those maps -> a dict with logits "out" (N, C, h, w) and whatever else it returns.
        num_classes: how many classes there are.
        aux: an FCN head on c3 as well, whose logits are "aux".

    Source:
        Auxiliary head: Zhao et al., 2017, PSPNet.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, num_classes: int, aux: bool):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = FCNHead(backbone.channels[-2], num_classes) if aux else None
        self.patch_size: int = getattr(backbone, "patch_size", 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the head's outputs and "aux" of images (N, 3, H, W), maps resized to (H, W).

        Images that patches do not divide are padded, and the maps are resized to that and cut.
        """
        height, width = images.shape[-2:]
        filled = fill_up(images, self.patch_size)
        maps = self.backbone(filled)
        outputs = OrderedDict(self.head(maps))
        if self.aux_head is not None:
            outputs["aux"] = self.aux_head(maps["c3"])
        size = filled.shape[-2:]
        resized = OrderedDict(
            (name, resize(each, size) if each.ndim == 4 else each) for name, each in outputs.items()
        )
        if filled is images:
            return resized
        return OrderedDict(
            (name, each[..., :height, :width] if each.ndim == 4 else each)
            for name, each in resized.items()
        )


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps (N, C, h, w) to (N, C, *size), bilinear with pixels as areas.

    Equal sizes take the same way: a shortcut would bind an exported model to the sizes it was
    traced with.
    """
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)

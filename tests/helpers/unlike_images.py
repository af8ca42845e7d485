"""Validation images of unlike sizes, and the recipes that evaluate them."""

from torch import Tensor, nn

from helpers.toy_recipes import Maps, recognition, segmentation
from trainkit import Recipe
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference

SIZES = ((9, 11), (12, 7), (9, 11), (8, 8), (12, 7), (9, 11), (11, 9), (9, 11), (12, 7), (5, 12))
SIZES += ((9, 11), (12, 12), (9, 11))
SCALED = Inference(scales=(0.5, 1.0, 1.75), flip=True, window_batch=4)
IN_WINDOWS = Inference(scales=(1.0, 1.5), flip=True, window=8, stride=5, window_batch=4)


class Unlike(Maps):
    """`Maps` of 13 sizes, some of them several times."""

    def __init__(self) -> None:
        super().__init__(len(SIZES), augment=False)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = super().__getitem__(index)
        height, width = SIZES[index]
        return image[:, :height, :width].contiguous(), target[:height, :width].contiguous()


def unlike(together: int = 1, inference: Inference | None = None) -> Recipe:
    """A segmentation whose network has batch norm, pooling and a stride."""
    seed_host(5)
    recipe = segmentation(val_data=Unlike(), eval_batch_size=together, inference=inference)
    recipe.model.backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2, 1)
    )
    recipe.model.eval()
    return recipe


class Classed(Unlike):
    """The same with a class id."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(index)[0], self.targets[index]


def classed(together: int = 1) -> Recipe:
    """A recognition of the same images."""
    seed_host(5)
    return recognition(val_data=Classed(), eval_batch_size=together)

"""Images held on the device, with its augmentations."""

from helpers.toy_recipes import Images
from trainkit.data.on_device import Cutout, Flip, OnDevice, PadCrop


class Pictures(Images):
    """With names for its classes, as `OnDevice` takes them."""

    classes = tuple("abcdefg")

    def __init__(self, num_images=20):
        super().__init__(num_images, augment=False, size=12)


AUGMENT = PadCrop(4), Flip(), Cutout(5)


def held(augment=AUGMENT):
    return OnDevice(Pictures(), augment)

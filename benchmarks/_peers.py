"""What input_pipeline.py compares with.

Torchvision's references, timm's loader, and a decoder of regions.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision import transforms, tv_tensors
from torchvision.transforms import functional

from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.image_io import read_mask
from trainkit.data.transforms.ops import RandomScaleCrop
from trainkit.data.transforms.recognition import train_transform

CROP, SHORT = 480, 520  # of torchvision's segmentation references, whose base is the short side
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_FLOAT = [
    transforms.PILToTensor(),
    transforms.ConvertImageDtype(torch.float),
    transforms.Normalize(MEAN, STD),
]


class ReferencePairs(Dataset):
    """Image and mask as torchvision's segmentation references augment them, with Pillow."""

    def __init__(self, root: Path):
        self.images, self.masks = (
            sorted((root / "images").iterdir()),
            sorted((root / "masks").iterdir()),
        )
        self.to_float = transforms.Compose(TO_FLOAT)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = Image.open(self.images[index]).convert("RGB"), Image.open(self.masks[index])
        side, mirrored = random.randint(SHORT // 2, 2 * SHORT), random.random() < 0.5
        image = functional.resize(image, side, antialias=True)
        mask = functional.resize(mask, side, transforms.InterpolationMode.NEAREST)
        if mirrored:
            image, mask = functional.hflip(image), functional.hflip(mask)
        missing = [0, 0, max(0, CROP - image.width), max(0, CROP - image.height)]
        if any(missing):
            image, mask = functional.pad(image, missing, 0), functional.pad(mask, missing, 255)
        place = transforms.RandomCrop.get_params(image, (CROP, CROP))
        image, mask = functional.crop(image, *place), functional.crop(mask, *place)
        return self.to_float(image), torch.as_tensor(np.array(mask), dtype=torch.int64)


class Regions:
    """JPEG files of which nvImageCodec decodes a region, the same pixels as those of the whole."""

    def __init__(self) -> None:
        from nvidia import nvimgcodec as codec

        self.codec, self.params = codec, codec.DecodeParams(color_spec=codec.ColorSpec.SRGB)
        backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
        self.decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends
        )

    def open(self, file: Path) -> tuple[Any, torch.Tensor]:
        """The stream, and a tensor without memory of the image's size (3, H, W)."""
        stream = self.codec.CodeStream(file.read_bytes())
        return stream, torch.empty(3, stream.height, stream.width, device="meta")

    def read(self, stream: Any, top: int, left: int, height: int, width: int) -> tv_tensors.Image:
        """uint8 (3, height, width)."""
        region = self.codec.Region(top, left, top + height, left + width)
        decoded = self.decoder.decode(stream.get_sub_code_stream(region=region), params=self.params)
        return tv_tensors.Image(torch.from_numpy(np.asarray(decoded.cpu())).permute(2, 0, 1))


class RegionPhotos(ClassFolder):
    """The training crops of trainkit, of regions."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.regions, (self.crop, self.flip) = Regions(), train_transform(224).transforms

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        stream, shape = self.regions.open(self.files[index])
        box = self.crop.make_params([shape])
        region = self.regions.read(stream, **box)
        image = self.crop.transform(region, {**box, "top": 0, "left": 0})
        return self.flip(image).as_subclass(torch.Tensor), self.targets[index]


class RegionPairs(MaskFolder):
    """The training pairs of trainkit, of regions."""

    def __init__(self, root: Path, transform: RandomScaleCrop):
        super().__init__(root / "images", root / "masks", 254)
        self.regions, self.crop = Regions(), transform

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        stream, shape = self.regions.open(self.images[index])
        mask = tv_tensors.Mask(
            self.train_ids(read_mask(self.masks[index]).as_subclass(torch.Tensor), index)
        )
        params = self.crop.make_params([shape, mask])
        (top, height, *down), (left, width, *across) = params["rows"], params["columns"]
        region = self.regions.read(stream, top, left, height, width)
        moved = {**params, "rows": (0, height, *down), "columns": (0, width, *across)}
        pair = self.crop.transform(region, moved), self.crop.transform(mask, params)
        return tuple(each.as_subclass(torch.Tensor) for each in pair)


def timms(data: Dataset, order: list[int], batch: int, workers: int, training: bool) -> Iterable:
    """timm's own loader, as its train.py makes it, without further augmentation."""
    from timm.data import create_loader

    like = {
        "input_size": (3, 224, 224),
        "is_training": training,
        "num_workers": workers,
        "color_jitter": None,
    }
    # which would normalise beside the loader, and have one batch in hand
    like["use_prefetcher"] = False
    part = Subset(data, order)
    loader = create_loader(
        part, batch_size=batch, device=torch.device("cpu"), persistent_workers=False, **like
    )
    data.transform = part.transform  # it gave its transform to the part, which does not look at it
    return loader

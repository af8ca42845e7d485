"""Images from files to batches: trainkit against the loader of torchvision's references, which works on Pillow images.

    python benchmarks/images.py                                          # everything, four minutes on two cores
    python benchmarks/images.py --cases train evaluate --workers 0
    python benchmarks/images.py --images 8 --batch 4 --rounds 1          # to see that it runs

Each way of reading is a process of its own with one thread, and with `--workers` processes that read for it; the rounds
go through all ways in turn, the first warms up, and medians are taken of the rest. Photos and label maps are those of
the folder that TRAINKIT_DATA names, and generated ones of the same sizes where it is not set. "decoding alone" is
torchvision's decoder of JPEG with nothing after it: what no way that decodes whole images can pass. "regions" is what
trainkit would take if nvImageCodec (nvidia-nvimgcodec-cu12, on the CPU) decoded no more than the crop; it and timm's
create_loader are shown where they are installed.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms, tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainkit.data.folder import ClassFolder, MaskFolder
from trainkit.data.images import read_image, read_mask
from trainkit.data.loader import make_loader
from trainkit.launch import start_accelerator
from trainkit.recognition import eval_transform, train_transform
from trainkit.segmentation import train_transform as train_pairs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, SHORT = 480, 520  # of torchvision's segmentation references, whose base is the short side
SIZES = {"segment-jpeg": (683, 512), "segment-png": (240, 180), "segment-png-large": (480, 360)}
TO_FLOAT = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float), transforms.Normalize(MEAN, STD)]


class ReferencePairs(Dataset):
    """Image and mask as torchvision's segmentation references read and augment them, with Pillow."""

    def __init__(self, root: Path):
        self.images, self.masks = sorted((root / "images").iterdir()), sorted((root / "masks").iterdir())
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

    def __init__(self, root: Path, transform: Callable):
        super().__init__(root / "images", root / "masks", 254)
        self.regions, (self.crop, self.flip) = Regions(), transform.transforms

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        stream, shape = self.regions.open(self.images[index])
        mask = tv_tensors.Mask(self._train_ids(read_mask(self.masks[index]).as_subclass(torch.Tensor), index))
        params = self.crop.make_params([shape, mask])
        (top, height, *down), (left, width, *across) = params["rows"], params["columns"]
        region = self.regions.read(stream, top, left, height, width)
        moved = {"rows": (0, height, *down), "columns": (0, width, *across)}
        pair = self.flip(self.crop.transform(region, moved), self.crop.transform(mask, params))
        return tuple(each.as_subclass(torch.Tensor) for each in pair)


def long_side(size: tuple[int, int]) -> int:
    """The long side of an image of `size` whose short side is SHORT."""
    return round(SHORT * max(size) / min(size))


def pairs(case: str) -> dict[str, Callable[[Path], Dataset]]:
    """The ways of a segmentation."""
    transform = train_pairs(long_side(SIZES[case]), CROP)
    ways = {
        "references": ReferencePairs,
        "trainkit": lambda root: MaskFolder(root / "images", root / "masks", 254, transform),
    }
    if case == "segment-jpeg" and is_installed("nvidia.nvimgcodec"):
        ways["regions"] = lambda root: RegionPairs(root, transform)
    return ways


def photos(steps: list, transform: Callable, training: bool) -> dict[str, Callable[[Path], Dataset]]:
    """The ways of a recognition."""
    ways = {
        "references": lambda root: ImageFolder(root, transforms.Compose([*steps, *TO_FLOAT])),
        "decoding alone": lambda root: ClassFolder(root, lambda image: image[:, :1, :1]),
        "trainkit": lambda root: ClassFolder(root, transform),
    }
    if training and is_installed("nvidia.nvimgcodec"):
        ways["regions"] = RegionPhotos
    if is_installed("timm"):
        ways["timm"] = ImageFolder
    return ways


def is_installed(name: str) -> bool:
    """Whether a package that is no part of trainkit is at hand."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def timms(data: Dataset, order: list[int], batch: int, workers: int, training: bool) -> Iterable:
    """timm's own loader, as its train.py makes it, without further augmentation."""
    from timm.data import create_loader

    like = {"input_size": (3, 224, 224), "is_training": training, "num_workers": workers, "color_jitter": None}
    part = Subset(data, order)
    loader = create_loader(part, batch_size=batch, device=torch.device("cpu"), persistent_workers=False, **like)
    data.transform = part.transform  # it gave its transform to the part, which does not look at it
    return loader


def ways_of(case: str) -> dict[str, Callable[[Path], Dataset]]:
    """Name -> what makes the dataset of a folder."""
    if case == "train":
        return photos(
            [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()], train_transform(224), True
        )
    if case == "evaluate":
        return photos([transforms.Resize(256), transforms.CenterCrop(224)], eval_transform(224), False)
    return pairs(case)


def serve(case: str, way: str, root: Path, asked: argparse.Namespace, workers: int, pipe: Connection) -> None:
    """Each number received is a round: read the images in its order, and send back the milliseconds an image took."""
    if way in ("trainkit", "regions"):
        start_accelerator()
    torch.set_num_threads(1)
    data, part = ways_of(case)[way](root), 1 if case in ("train", "evaluate") else 4
    num_images, batch = asked.images // part, asked.batch // part
    while (number := pipe.recv()) is not None:
        torch.manual_seed(number)
        random.seed(number)
        order = [index % len(data) for index in torch.randperm(num_images).tolist()]
        if way == "timm":
            loader = timms(data, order, batch, workers, case == "train")
        elif way != "references":
            keys = [[(number, index) for index in order[i : i + batch]] for i in range(0, len(order), batch)]
            loader = make_loader(data, 0, keys, workers, torch.device("cpu"))
        else:
            loader = DataLoader(data, batch, sampler=order, num_workers=workers)
        begun = time.perf_counter()
        count = sum(len(images) for images, *_ in loader)
        assert count == num_images
        pipe.send(1000 * (time.perf_counter() - begun) / count)


def race(case: str, root: Path, asked: argparse.Namespace, workers: int) -> dict[str, list[float]]:
    """Milliseconds an image, by way and round, the first round left out."""
    fork, servers = get_context("fork"), {}
    for way in ways_of(case):
        here, there = fork.Pipe()
        process = fork.Process(target=serve, args=(case, way, root, asked, workers, there))
        process.start()
        there.close()
        servers[way] = process, here
    taken: dict[str, list[float]] = {way: [] for way in servers}
    for number in range(asked.rounds + 1):
        for way, (_, pipe) in servers.items():
            pipe.send(number)
            taken[way].append(pipe.recv())
    for process, pipe in servers.values():
        pipe.send(None)
        process.join()
    return {way: each[1:] for way, each in taken.items()}


def photo(size: tuple[int, int], number: int) -> Image.Image:
    """A generated picture with as much detail as a photo has."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + draw.normal(0, 8, (*size[::-1], 1))).clip(0, 255).astype(np.uint8))


def real(case: str) -> tuple[list[Path], list[Path]]:
    """Photos and label maps below TRAINKIT_DATA, or none."""
    data = Path(os.environ.get("TRAINKIT_DATA") or "nowhere")
    if case == "segment-jpeg":
        name = "ADE_val_00000001"  # the one of 683x512
        root = data / "ADEChallengeData2016"
        return [root / f"images/validation/{name}.jpg"], [root / f"annotations/validation/{name}.png"]
    if case == "segment-png":
        return sorted(data.glob("camvid/images/val/*"))[:16], sorted(data.glob("camvid/annotations/val/*"))[:16]
    files = [file for file in sorted(data.glob("imagenet_sample/val/*/*")) if Image.open(file).size == (500, 375)]
    return files[:16], sorted(data.glob("camvid/annotations/val/*"))[:16]


def prepare(case: str, work: Path) -> Path:
    """The folder that a case reads, written where it has to be."""
    data = os.environ.get("TRAINKIT_DATA")
    root = work / case
    if case in ("train", "evaluate"):
        if data:
            return Path(data) / "imagenet_sample" / "val"
        for number in range(16):
            file = work / "photos" / f"class{number % 4}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo((500, 375), number).save(file, quality=95)
        return work / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    size = SIZES[case]
    images, masks = real(case) if data else ([], [])
    for number in range(16):
        stored, labels = root / "images" / f"{number:02}", root / "masks" / f"{number:02}.png"
        if case == "segment-jpeg" and data:
            stored.with_suffix(".jpg").write_bytes(images[0].read_bytes())
            labels.write_bytes(masks[0].read_bytes())
            continue
        picture = Image.open(images[number]).convert("RGB").resize(size) if data else photo(size, number)
        picture.save(stored.with_suffix(".jpg" if case == "segment-jpeg" else ".png"))
        mask = Image.open(masks[number]) if data else photo((12, 9), number).convert("L").point(lambda x: x // 24)
        mask.resize(size, Image.Resampling.NEAREST).save(labels)
    return root


def difference(root: Path) -> float:
    """Mean difference, in grey levels, between our and Pillow's training crops of the same regions."""
    data, found = ClassFolder(root), []
    for index in range(min(32, len(data))):
        torch.manual_seed(index)
        ours = train_transform(224).transforms[0](read_image(data.files[index]))
        torch.manual_seed(index)
        theirs = transforms.RandomResizedCrop(224)(Image.open(data.files[index]).convert("RGB"))
        found.append((ours.float() - functional.pil_to_tensor(theirs).float()).abs().mean().item())
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["train", "evaluate", *SIZES], choices=["train", "evaluate", *SIZES]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument(
        "--images", type=int, default=512, help="photos of one round; of pairs with label maps a quarter"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="of photos; label maps come in batches of a quarter of it"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the figures of each round")
    asked = parser.parse_args()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    print(f"{'real' if os.environ.get('TRAINKIT_DATA') else 'generated (TRAINKIT_DATA is not set)'} images; "
          f"{', '.join(map(' '.join, versions.items()))}; {torch.backends.cpu.get_cpu_capability()}")  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in asked.cases:
            root = prepare(case, Path(folder))
            if case == "train":
                print(f"mean difference to Pillow's crops: {difference(root):.3f} grey levels")
            for workers in asked.workers:
                taken = race(case, root, asked, workers)
                first = median(taken["references"])
                for way, each in taken.items():
                    rows.append({"case": case, "workers": workers, "way": way, "ms_per_image": each})
                    spread = f"({min(each):6.3f} to {max(each):6.3f})"
                    print(f"{case:18} {workers} workers  {way:14} {median(each):7.3f} ms an image {spread} "
                          f"{first / median(each):5.2f} x references", flush=True)  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

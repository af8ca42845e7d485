"""Images from files to batches.

Trainkit against the loader of torchvision's references, which works on Pillow images.

    python benchmarks/input_pipeline.py                                   # four minutes, two cores
    python benchmarks/input_pipeline.py --cases train evaluate --workers 0
    python benchmarks/input_pipeline.py --cases train evaluate segment-jpeg --workers 0 --packed
    python benchmarks/input_pipeline.py --images 16 --batch 4 --rounds 1  # to see that it runs

Each way of reading is a process of its own with one thread and `--workers` data-loading workers;
the rounds go through all ways in turn, the first warms up, and medians are taken of the rest.
Photos and masks are those of the folder that TRAINKIT_DATA names, and generated ones of the same
sizes where it is not set. "decoding alone" is torchvision's decoder of JPEG with nothing after it:
what no way that decodes whole images can pass. "trainkit" decodes whole images, "turbojpeg" is
trainkit where libturbojpeg 3 decodes no more than the crop (`trainkit[region]`), and "regions" is
what it would take if nvImageCodec (nvidia-nvimgcodec-cu12, on the CPU) did; these and timm's
create_loader are shown where they are installed. With --packed trainkit also reads the same images
packed (`trainkit pack`): as files' bytes, and as raw pixels, photos with a short side of 256.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from _peers import CROP, SHORT, TO_FLOAT, ReferencePairs, RegionPairs, RegionPhotos, timms
from _results import Results, add_option

from trainkit import Recipe
from trainkit.commands.pack import pack
from trainkit.commands.pack_options import PackOptions
from trainkit.data import first_crop
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.datasets.packed import PackedImages, PackedMasks
from trainkit.data.image_io import read_image
from trainkit.data.loader import make_loader
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.data.transforms.segmentation import train_transform as train_pairs
from trainkit.data.turbojpeg import turbojpeg
from trainkit.distributed.accelerator import use_whole_host
from trainkit.schedules import cos
from trainkit.tasks.base import Task
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

SIZES = {"segment-jpeg": (683, 512), "segment-png": (240, 180), "segment-png-large": (480, 360)}
ROWS = {
    "references": "torchvision references",
    "timm": "timm create_loader",
    "turbojpeg": "trainkit, crops decoded alone by TurboJPEG",
    "regions": "trainkit's crops of regions decoded by nvImageCodec",
    "decoding": "decoding alone",
    "packed": "trainkit, packed: the files' bytes",
    "packed raw": "trainkit, packed: raw pixels, photos of short side 256",
}
COLUMNS = {
    "train": "photos, training",
    "evaluate": "photos, evaluation",
    "segment-jpeg": "683 x 512, JPEG + PNG",
    "segment-png": "240 x 180 (CamVid here), PNG + PNG",
    "segment-png-large": "480 x 360, PNG + PNG",
}
CASES = ["train", "evaluate", *SIZES]
PACKED = tempfile.TemporaryDirectory()  # where the packed folders are


def long_side(size: tuple[int, int]) -> int:
    """The long side of an image of `size` whose short side is SHORT."""
    return round(SHORT * max(size) / min(size))


def pairs(case: str) -> dict[str, Callable[[Path], Dataset]]:
    """The ways of a segmentation."""
    transform = transform_of(case)
    ways = {
        "references": ReferencePairs,
        "trainkit": lambda root: MaskFolder(root / "images", root / "masks", 254, transform),
    }
    if case == "segment-jpeg" and turbojpeg() is not None:
        ways["turbojpeg"] = ways["trainkit"]
    if case == "segment-jpeg" and is_installed("nvidia.nvimgcodec"):
        ways["regions"] = lambda root: RegionPairs(root, transform)
    return ways


def photos(
    steps: list, transform: Callable, training: bool
) -> dict[str, Callable[[Path], Dataset]]:
    """The ways of a recognition."""
    ways = {
        "references": lambda root: ImageFolder(root, transforms.Compose([*steps, *TO_FLOAT])),
        "decoding alone": lambda root: ClassFolder(root, lambda image: image[:, :1, :1]),
        "trainkit": lambda root: ClassFolder(root, transform),
    }
    if training and turbojpeg() is not None:
        ways["turbojpeg"] = lambda root: ClassFolder(root, transform)
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


def with_packed(
    ways: dict[str, Callable[[Path], Dataset]], case: str
) -> dict[str, Callable[[Path], Dataset]]:
    """Those that are compared with a packed folder, and the two ways of it."""
    ways = {way: ways[way] for way in ("references", "trainkit", "turbojpeg") if way in ways}
    transform = transform_of(case)
    kind = PackedImages if case in ("train", "evaluate") else PackedMasks
    for way, encoding in (("packed", "original"), ("packed raw", "raw")):
        ways[way] = lambda root, encoding=encoding: kind(
            Path(PACKED.name) / f"{case}-{encoding}", "train", transform
        )
    return ways


def pack_all(case: str, root: Path) -> None:
    """Pack the images of a case, in both ways."""
    photos_alone = case in ("train", "evaluate")
    if photos_alone:
        data: Dataset = ClassFolder(root)
        task: Task = Recognition(data.classes)
    else:
        data = MaskFolder(root / "images", root / "masks", 254)
        task = Segmentation(254)
    layer = torch.nn.Linear(1, 1)
    recipe = Recipe(
        task=task,
        model=layer,
        train_data=data,
        val_data=data,
        optimizer=torch.optim.SGD(layer.parameters(), lr=1),
        schedule=cos,
        epochs=1,
        batch_size=1,
    )
    for encoding, side in (("original", None), ("raw", 256 if photos_alone else None)):
        out = Path(PACKED.name) / f"{case}-{encoding}"
        pack(recipe, PackOptions(out=out, encoding=encoding, short_side=side, workers=0), case)


def ways_of(case: str) -> dict[str, Callable[[Path], Dataset]]:
    """Name -> what makes the dataset of a folder."""
    if case == "train":
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        return photos(steps, transform_of(case), True)
    if case == "evaluate":
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
        return photos(steps, transform_of(case), False)
    return pairs(case)


def transform_of(case: str) -> Callable:
    """What trainkit does with the images of a case."""
    if case in SIZES:
        return train_pairs(long_side(SIZES[case]), CROP)
    return train_transform(224) if case == "train" else eval_transform(224)


def serve(
    case: str, way: str, root: Path, asked: argparse.Namespace, workers: int, pipe: Connection
) -> None:
    """Each number received is a round.

    Read the images in its order, and send back the milliseconds an image took.
    """
    if way in ("trainkit", "turbojpeg", "regions", "packed", "packed raw"):
        use_whole_host()
    if way != "turbojpeg":  # in this process alone
        first_crop.turbojpeg = lambda: None
    torch.set_num_threads(1)
    ways = with_packed(ways_of(case), case) if asked.packed else ways_of(case)
    data, part = ways[way](root), 1 if case in ("train", "evaluate") else 4
    num_images, batch = asked.images // part, asked.batch // part
    while (number := pipe.recv()) is not None:
        torch.manual_seed(number)
        random.seed(number)
        order = [index % len(data) for index in torch.randperm(num_images).tolist()]
        if way == "timm":
            loader = timms(data, order, batch, workers, case == "train")
        elif way != "references":
            keys = [
                [(number, index) for index in order[i : i + batch]]
                for i in range(0, len(order), batch)
            ]
            loader = make_loader(data, 0, keys, workers, torch.device("cpu"))
        else:
            loader = DataLoader(data, batch, sampler=order, num_workers=workers)
        batches = iter(loader)
        next(batches)  # waits for the workers to start
        begun = time.perf_counter()
        count = sum(len(images) for images, *_ in batches)
        pipe.send(1000 * (time.perf_counter() - begun) / count)


def race(case: str, root: Path, asked: argparse.Namespace, workers: int) -> dict[str, list[float]]:
    """Milliseconds an image, by way and round, the first round left out."""
    fork, servers = get_context("fork"), {}
    ways = with_packed(ways_of(case), case) if asked.packed else ways_of(case)
    for way in ways:
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
    coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        (np.asarray(coarse) + draw.normal(0, 8, (*size[::-1], 1))).clip(0, 255).astype(np.uint8)
    )


def real(case: str) -> tuple[list[Path], list[Path]]:
    """Photos and masks below TRAINKIT_DATA, or none."""
    data = Path(os.environ.get("TRAINKIT_DATA") or "nowhere")
    if case == "segment-jpeg":
        name = "ADE_val_00000001"  # the one of 683x512
        root = data / "ADEChallengeData2016"
        return [root / f"images/validation/{name}.jpg"], [
            root / f"annotations/validation/{name}.png"
        ]
    if case == "segment-png":
        return (
            sorted(data.glob("camvid/images/val/*"))[:16],
            sorted(data.glob("camvid/annotations/val/*"))[:16],
        )
    files = [
        file
        for file in sorted(data.glob("imagenet_sample/val/*/*"))
        if Image.open(file).size == (500, 375)
    ]
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
        picture = (
            Image.open(images[number]).convert("RGB").resize(size) if data else photo(size, number)
        )
        picture.save(stored.with_suffix(".jpg" if case == "segment-jpeg" else ".png"))
        mask = (
            Image.open(masks[number])
            if data
            else photo((12, 9), number).convert("L").point(lambda x: x // 24)
        )
        mask.resize(size, Image.Resampling.NEAREST).save(labels)
    return root


def difference(root: Path) -> float:
    """Mean difference, in grey levels, between our and Pillow's crops of the same regions."""
    data, found = ClassFolder(root), []
    for index in range(min(32, len(data))):
        torch.manual_seed(index)
        ours = train_transform(224).transforms[0](read_image(data.files[index]))
        torch.manual_seed(index)
        theirs = transforms.RandomResizedCrop(224)(Image.open(data.files[index]).convert("RGB"))
        found.append((ours.float() - functional.pil_to_tensor(theirs).float()).abs().mean().item())
    return float(np.mean(found))


def of_case(
    case: str, workers: int, rounds: int, results: dict[str, Results], packed: bool
) -> Results:
    """The file of a case's measurements: one for photos and pairs, and for a number of workers."""
    how = {0: "one_core", 1: "one_worker", 2: "two_workers"}.get(workers, f"{workers}_workers")
    kind = "" if case in ("train", "evaluate") else "segmentation-"
    name = f"input_pipeline-{'packed-' if packed else kind}{how}"
    if name not in results:
        libraries = ("torch", "torchvision", "pillow", "timm", "nvidia-nvimgcodec-cu12")
        results[name] = Results(name, *libraries, rounds=rounds, baseline=ROWS["references"])
    return results[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument(
        "--images",
        type=int,
        default=512,
        help="photos of a round; a quarter of it for segmentation",
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="photos of a batch; a quarter of it for segmentation"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--packed", action="store_true", help="packed folders instead of others")
    add_option(parser)
    asked = parser.parse_args()
    if asked.batch < 4 or asked.images < 2 * asked.batch:
        parser.error("--batch must be at least 4, and --images two batches")
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }
    kind = "real" if os.environ.get("TRAINKIT_DATA") else "generated (TRAINKIT_DATA is not set)"
    print(
        f"{kind} images; {', '.join(map(' '.join, versions.items()))};"
        f" {torch.backends.cpu.get_cpu_capability()}"
    )
    results: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in asked.cases:
            root = prepare(case, Path(folder))
            if asked.packed:
                pack_all(case, root)
            elif case == "train":
                gap = Results("input_pipeline-difference", "torch", "torchvision", "pillow")
                row = "training crops against Pillow's of the same regions"
                gap.put(row, "mean difference", "grey levels", difference(root))
                gap.write(asked.results)
                print(f"mean difference to Pillow's crops: {difference(root):.3f} grey levels")
            for workers in asked.workers:
                taken = race(case, root, asked, workers)
                first = median(taken["references"])
                recorded = of_case(case, workers, asked.rounds, results, asked.packed)
                for way, each in taken.items():
                    row = ROWS.get(way, way)
                    recorded.add(row, COLUMNS[case], "ms", each, first / median(each))
                    spread = f"({min(each):6.3f} to {max(each):6.3f})"
                    print(
                        f"{case:18} {workers} workers  {way:14} {median(each):7.3f} ms an image"
                        f" {spread} {first / median(each):5.2f} x references",
                        flush=True,
                    )
    for recorded in results.values():
        recorded.write(asked.results)


if __name__ == "__main__":
    main()

"""Crops that are decoded alone are those of the whole image, bit for bit."""

import io
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from trainkit.data import first_crop
from trainkit.data.bands import USUAL, PixelSettings, read_pixels
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.first_crop import (
    begins_with_crop,
    begins_with_pairs_crop,
    read_transformed,
)
from trainkit.data.image_headers import jpeg_frame
from trainkit.data.seeding import Seeded
from trainkit.data.transforms.ops import RandomResizedCrop
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.data.transforms.region import resized
from trainkit.data.transforms.segmentation import train_transform as pairs_transform
from trainkit.data.turbojpeg import TurboJpeg, agrees, has_region, turbojpeg
from trainkit.errors import DataError

needs_library = pytest.mark.skipif(
    turbojpeg() is None, reason='needs libturbojpeg 3, as of pip install "trainkit[region]"'
)
# What the wheel of the extras `region` and `test` is for, see setup.cfg.
HAS_WHEEL = (
    sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
)
SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with large shapes and noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 255, (6, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + draw.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **settings})
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def with_exif(data: bytes, *orientations: int, name: bytes = b"Exif") -> bytes:
    """A JPEG with a segment of EXIF for each, in this order."""
    segments = b""
    for orientation in orientations:
        body = name + b"\0\0" + turned(orientation).tobytes().removeprefix(b"Exif\0\0")
        segments += b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    return data[:2] + segments + data[2:]


def first_scans(data: bytes, number: int) -> bytes:
    """A progressive JPEG of which the other scans were not sent, with its end."""
    begins = [found.start() for found in re.finditer(b"\xff\xda", data)]
    assert number < len(begins)
    return data[: begins[number]] + b"\xff\xd9"


def kinds() -> dict[str, bytes]:
    """JPEGs of every kind, with sides that are no multiples of a block's."""
    found = {
        f"{name}, {how}": jpeg(photo(123, 97), subsampling=number, progressive=how == "progressive")
        for name, number in SAMPLINGS.items()
        for how in ("baseline", "progressive")
    }
    found |= {f"EXIF {way}": jpeg(photo(75, 90), exif=turned(way)) for way in range(1, 9)}
    for name, number in (*SAMPLINGS.items(), ("grey", None)):
        image = photo(103, 97, "L" if number is None else "RGB")
        sampling = {} if number is None else {"subsampling": number}
        data = jpeg(image, progressive=True, **sampling)
        found[f"{name}, progressive, scans missing"] = first_scans(data, 2)
    damaged, small = turned(6).tobytes(), jpeg(photo(75, 90))
    return found | {
        "grey": jpeg(photo(101, 64, "L")),
        "inks": jpeg(photo(50, 41, "CMYK")),
        "one pixel": jpeg(photo(1, 1)),
        "a row": jpeg(photo(200, 1)),
        "restart markers": jpeg(photo(90, 70), restart_marker_blocks=3),
        "EXIF 6, then 1": with_exif(small, 6, 1),
        "EXIF 1, then 6": with_exif(small, 1, 6),
        "EXIF in capitals": with_exif(small, 6, name=b"EXIF"),
        "damaged EXIF": jpeg(photo(60, 70), exif=damaged[:9] + b"?" + damaged[10:]),
        "an appendix": jpeg(photo(61, 47)) + b"more",
    }


KINDS = kinds()
ALONE = {f"{name}, baseline" for name in SAMPLINGS}  # kinds of which a region can be decoded
ALONE |= {"EXIF 1", "grey", "one pixel", "a row", "restart markers"}


class Noting(TurboJpeg):
    """The library, and the files that it decoded a region of."""

    def __init__(self, path: str):
        super().__init__(path)
        self.files: set[bytes] = set()

    def region(self, data: bytes, *place) -> Tensor | None:
        found = super().region(data, *place)
        if found is not None:
            self.files.add(data)
        return found


@pytest.fixture
def decoded_alone(monkeypatch) -> set[bytes] | None:
    """The files that a region was decoded of; None where there is no library."""
    library = turbojpeg()
    if library is None:
        return None
    noting = Noting(library.path)
    monkeypatch.setattr(first_crop, "turbojpeg", lambda: noting)
    return noting.files


@pytest.mark.skipif(not HAS_WHEEL, reason="the wheel is for Linux, x86-64 and Python up to 3.13")
def test_the_library_of_the_extra_is_used():
    assert turbojpeg() is not None


@pytest.mark.parametrize("kind", KINDS)
def test_crops_and_draws_are_those_of_the_whole_image(kind, decoded_alone):
    transform, data = train_transform(24, jitter=(0.4,)), KINDS[kind]
    for seed in range(12):
        torch.manual_seed(seed)
        expected = transform(read_pixels(data, USUAL))
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        found = read_transformed(data, USUAL, transform)
        assert torch.equal(found, expected) and type(found) is type(expected)
        assert torch.equal(torch.rand(3), drawn)
    assert decoded_alone in (None, {data} if kind in ALONE else set())


def test_class_folders_give_the_same_images(tmp_path):
    for number, kind in enumerate(("4:2:0, baseline", "grey", "EXIF 6", "inks")):
        file = tmp_path / f"class{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(KINDS[kind])
    photo(40, 30).save(tmp_path / "class0" / "other.png")
    transform = train_transform(16)
    data = ClassFolder(tmp_path, transform)
    whole = ClassFolder(tmp_path, lambda image: transform(image))
    for epoch in range(3):
        for index in range(len(data)):
            first, again, other = (Seeded(each, 7)[epoch, index] for each in (data, data, whole))
            assert torch.equal(first[0], again[0]) and torch.equal(first[0], other[0])
            assert first[1] == other[1]


@pytest.mark.parametrize("kept", [0.3, 0.9, -2])
def test_files_that_end_too_early_are_refused_with_their_name(tmp_path, kept):
    data = KINDS["4:2:0, baseline"]
    file = tmp_path / "torn.jpg"
    file.write_bytes(data[: kept if kept < 0 else int(kept * len(data))])
    for seed in range(8):  # wherever the crop is
        torch.manual_seed(seed)
        with pytest.raises(DataError, match=r"cannot read .*torn\.jpg: .*; replace the file"):
            read_transformed(file, USUAL, train_transform(16))
    with pytest.raises(DataError, match=r"cannot read .*none\.jpg: No such file"):
        read_transformed(tmp_path / "none.jpg", USUAL, train_transform(16))


def test_only_our_own_first_crop_decides_what_is_decoded():
    crop = train_transform(16)
    assert begins_with_crop(crop) and not begins_with_crop(eval_transform(16))
    assert not begins_with_crop(v2.Compose([v2.RandomHorizontalFlip(), *crop.transforms]))
    assert not begins_with_crop(v2.Compose([v2.RandomResizedCrop(16)]))

    class WithMore(RandomResizedCrop):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(255 - image)

    assert not begins_with_crop(v2.Compose([WithMore(16)]))
    assert not begins_with_crop(crop.transforms[0]) and not begins_with_crop(lambda image: image)


def test_regions_are_drawn_as_torchvision_draws_them():
    sizes = [(375, 500), (500, 375), (4, 400), (400, 4), (1, 1), (256, 256), (37, 41)]
    for seed in range(140):
        height, width = sizes[seed % len(sizes)]
        for scale in ((0.08, 1.0), (0.9, 1.6)):  # the last rarely fits in ten tries
            image = [torch.empty(3, height, width, device="meta")]
            torch.manual_seed(seed)
            expected, drawn = v2.RandomResizedCrop(9, scale).make_params(image), torch.rand(1)
            torch.manual_seed(seed)
            assert RandomResizedCrop(9, scale).make_params(image) == expected
            assert torch.rand(1) == drawn


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_regions_are_resized_as_torchvision_resizes_them(mode, channels):
    pixels = torch.randint(256, (61, 83, channels), dtype=torch.uint8).permute(2, 0, 1)
    for image in (pixels, pixels.float()):
        for size in ((24, 24), (61, 83), (100, 30), (130, 170)):
            expected = functional.resize(image, size, InterpolationMode(mode), antialias=True)
            found = resized(image, size, InterpolationMode(mode))
            assert torch.equal(found, expected) and found.dtype == expected.dtype
            assert found.stride() == expected.stride()


@pytest.mark.parametrize("probability", [0.5, 0.3, 1.0])
def test_flips_are_those_of_torchvision(probability):
    steps = [RandomResizedCrop(16), v2.RandomHorizontalFlip(probability)]
    image = read_pixels(KINDS["4:2:2, baseline"], USUAL)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = v2.Compose([v2.RandomResizedCrop(16, antialias=True), steps[1]])(image)
        torch.manual_seed(seed)
        found = read_transformed(KINDS["4:2:2, baseline"], USUAL, v2.Compose(steps))
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([v2.ToPILImage(), v2.RandomHorizontalFlip(), v2.PILToTensor()], id="Pillow"),
        pytest.param([np.asarray, v2.RandomHorizontalFlip(), torch.from_numpy], id="NumPy"),
        pytest.param([v2.FiveCrop(8), v2.RandomHorizontalFlip()], id="five"),
        pytest.param([v2.ToPureTensor(), v2.RandomHorizontalFlip()], id="plain"),
    ],
)
def test_flips_of_what_is_no_image_of_torchvision(others):
    transform, data = v2.Compose([RandomResizedCrop(16), *others]), KINDS["4:2:0, baseline"]
    for seed in range(8):  # some are flipped
        torch.manual_seed(seed)
        expected = transform(read_pixels(data, USUAL))
        torch.manual_seed(seed)
        found = read_transformed(data, USUAL, transform)
        assert type(found) is type(expected) and len(found) == len(expected)
        assert all(torch.equal(*each) for each in zip(found, expected))


def test_images_of_other_channels_are_read_whole():
    grey, pixels = train_transform(16), PixelSettings(channels=1)
    torch.manual_seed(3)
    expected = grey(read_pixels(KINDS["grey"], pixels))
    torch.manual_seed(3)
    found = read_transformed(KINDS["grey"], pixels, grey)
    assert found.shape == (1, 16, 16) and torch.equal(found, expected)


def whole(data: bytes) -> Tensor:
    return read_pixels(data, USUAL).as_subclass(Tensor)


@needs_library
@pytest.mark.parametrize("kind", sorted(ALONE))
def test_every_region_is_that_of_the_whole(kind):
    data, library = KINDS[kind], turbojpeg()
    frame = jpeg_frame(data)
    assert has_region(data, frame)
    draw = np.random.default_rng(1)
    for _ in range(40):
        top, left = int(draw.integers(frame.height)), int(draw.integers(frame.width))
        height = int(draw.integers(1, frame.height - top + 1))
        width = int(draw.integers(1, frame.width - left + 1))
        region = library.region(data, frame, top, left, height, width)
        expected = whole(data)[:, top : top + height, left : left + width]
        assert torch.equal(region, expected), (top, left, height, width)
        assert region.stride(0) == 1


@needs_library
def test_regions_are_read_in_threads():
    library = turbojpeg()

    def read(number: int) -> bool:
        data = KINDS[f"4:2:{2 * (number % 2)}, baseline"]
        region = library.region(data, jpeg_frame(data), 9, number, 50, 60)
        return torch.equal(region, whole(data)[:, 9:59, number : number + 60])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(40)))


def test_kinds_that_are_decoded_whole():
    regions = {
        kind: (frame := jpeg_frame(data)) is not None and has_region(data, frame)
        for kind, data in KINDS.items()
    }
    assert {kind for kind, has in regions.items() if has} == ALONE
    data = KINDS["4:2:0, baseline"]
    frame = jpeg_frame(data)
    assert not has_region(data[:-1], frame) and not has_region(data[:-300], frame)
    assert has_region(data + bytes(9), frame)  # zeros after the end, as some writers leave
    huge = data[:600] + data[-40:]
    assert not has_region(huge, frame._replace(height=60000, width=60000))
    assert jpeg_frame(data[:180]) is None and jpeg_frame(b"\xff\xd8\xff") is None


@needs_library
def test_a_library_of_other_pixels_is_not_used():
    class Brighter(TurboJpeg):
        def region(self, *place) -> Tensor:
            return super().region(*place) // 2

    class Refusing(TurboJpeg):
        def region(self, *place) -> None:
            return None

    class Failing(TurboJpeg):
        def region(self, *place) -> None:
            raise RuntimeError("built without JPEG")  # as torchvision's decoder, where it was

    path = turbojpeg().path
    assert agrees(TurboJpeg(path))
    assert not any(agrees(other(path)) for other in (Brighter, Refusing, Failing))


def test_the_library_is_looked_for_where_there_is_a_jpeg(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    photo(40, 30).save(tmp_path / "images" / "one.png")
    Image.new("L", (40, 30)).save(tmp_path / "masks" / "one.png")
    turbojpeg.cache_clear()
    read_transformed(tmp_path / "images" / "one.png", USUAL, train_transform(16))
    MaskFolder(tmp_path / "images", tmp_path / "masks", 3, pairs_transform(40, 16))[0]
    assert turbojpeg.cache_info().currsize == 0
    read_transformed(KINDS["grey"], USUAL, train_transform(16))
    assert turbojpeg.cache_info().currsize == 1


@needs_library
def test_what_the_library_refuses_is_none():
    data = bytearray(KINDS["4:2:0, baseline"])
    frame = jpeg_frame(data)
    place = data.index(b"\xff\xc4")  # a table of codes that are none
    data[place + 5 : place + 21] = b"\xff" * 16
    assert has_region(bytes(data), frame)
    assert turbojpeg().region(bytes(data), frame, 0, 0, 20, 20) is None
    with pytest.raises(DataError, match=r"cannot read \d+ bytes"):
        read_transformed(bytes(data), USUAL, train_transform(16))


def test_a_file_that_is_no_library_is_passed_over(tmp_path):
    (tmp_path / "libturbojpeg.so.0").write_bytes(b"text")
    with pytest.raises(OSError):
        TurboJpeg(str(tmp_path / "libturbojpeg.so.0"))
    with pytest.raises(AttributeError, match="tj3Init"):
        TurboJpeg(str(Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"))


@pytest.mark.parametrize("settings", [{}, {"photometric": True}, {"cat_max_ratio": 0.6}])
def test_pairs_are_those_of_whole_images(tmp_path, settings, decoded_alone):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    kinds = ("4:2:0, baseline", "4:2:2, progressive", "grey", "EXIF 6", "EXIF 1", "inks")
    for number, kind in enumerate(kinds):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(KINDS[kind])
        size = read_pixels(KINDS[kind], USUAL).shape[-2:]
        labels = np.random.default_rng(number).integers(0, 3, size, dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    transform = pairs_transform(100, 48, **settings)
    folders = tmp_path / "images", tmp_path / "masks", 3
    data = MaskFolder(*folders, transform)
    whole = MaskFolder(*folders, lambda *pair: transform(*pair))
    assert begins_with_pairs_crop(transform) and not begins_with_pairs_crop(whole.transform)
    for epoch in range(6):
        for index in range(len(kinds)):
            (image, mask), (other, labels) = (
                Seeded(each, 5)[epoch, index] for each in (data, whole)
            )
            assert torch.equal(image, other) and torch.equal(mask, labels)
            assert type(image) is type(mask) is Tensor and image.stride() == other.stride()
    assert decoded_alone in (None, {KINDS[kind] for kind in kinds if kind in ALONE})


def test_pairs_are_refused_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    data = KINDS["4:2:0, baseline"]
    (tmp_path / "images" / "torn.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "images" / "wide.jpg").write_bytes(data)
    for name in ("torn", "wide"):
        Image.new("L", (123, 97 if name == "torn" else 96)).save(tmp_path / "masks" / f"{name}.png")
    pairs = MaskFolder(tmp_path / "images", tmp_path / "masks", 3, pairs_transform(100, 48))
    with pytest.raises(DataError, match=r"cannot read .*torn\.jpg: .*; replace the file"):
        pairs[0]
    with pytest.raises(DataError, match=r"wide\.png is 123x96 and its image .*wide\.jpg is 123x97"):
        pairs[1]

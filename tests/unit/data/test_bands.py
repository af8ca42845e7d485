"""Images of other channels and bits: every value against what was written."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainkit.data.bands import PixelSettings, as_stored, read_pixels, shown
from trainkit.data.datasets.folder import ClassFiles, FileList
from trainkit.data.datasets.pixel_statistics import estimated, mean_and_std
from trainkit.data.image_io import read_image
from trainkit.data.to_device import ToDevice
from trainkit.errors import DataError, UserError

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, 7, 4), dtype=np.uint8)
WORDS = RANDOM.integers(0, 65536, (6, 7)).astype(np.uint16)


def values(file, channels, bits=8):
    pixels = PixelSettings(channels, bits)
    return as_stored(read_pixels(file, pixels), pixels)


def saved(tmp_path, array, suffix=".png", mode=None):
    file = tmp_path / f"x{suffix}"
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(file)
    return file


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_each_value_is_that_of_the_file(tmp_path, suffix):
    rgba = values(saved(tmp_path, BYTES, suffix), 4)
    assert rgba.dtype == torch.uint8 and np.array_equal(rgba.permute(1, 2, 0), BYTES)
    assert rgba.stride(0) == 1, "the channels of a pixel lie side by side"
    grey = values(saved(tmp_path, BYTES[..., 0], suffix), 1)
    assert np.array_equal(grey[0], BYTES[..., 0])
    words = values(saved(tmp_path, WORDS, suffix), 1, 16)
    assert words.dtype == torch.uint16 and np.array_equal(words[0].numpy(), WORDS)
    repeated = values(saved(tmp_path, WORDS, suffix), 3, 16)
    assert all(np.array_equal(each.numpy(), WORDS) for each in repeated)
    upper = values(saved(tmp_path, WORDS, suffix), 1, 8)
    assert np.array_equal(upper[0], WORDS >> 8)


def test_colours_of_16_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    colours = RANDOM.integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    assert np.array_equal(values(tmp_path / "a.tif", 3, 16).permute(1, 2, 0).numpy(), colours)
    planes = RANDOM.integers(0, 256, (9, 6, 7), dtype=np.uint8)
    for name, how in (("b.tif", "separate"), ("c.tif", None)):
        tifffile.imwrite(tmp_path / name, planes, photometric="minisblack", planarconfig=how)
        assert np.array_equal(values(tmp_path / name, 9), planes)
    tifffile.imwrite(
        tmp_path / "d.tif",
        planes.transpose(1, 2, 0),
        photometric="minisblack",
        planarconfig="contig",
    )
    assert np.array_equal(values(tmp_path / "d.tif", 9), planes)
    tifffile.imwrite(tmp_path / "e.tif", planes.astype(np.float32), photometric="minisblack")
    with pytest.raises(DataError, match="values are of type float32, whose range nothing tells"):
        values(tmp_path / "e.tif", 9)
    tifffile.imwrite(tmp_path / "f.tif", planes[:8].reshape(2, 4, 6, 7), photometric="minisblack")
    with pytest.raises(DataError, match="its axes are"):
        values(tmp_path / "f.tif", 8)


def test_what_three_channels_of_8_bits_mean_does_not_change(tmp_path):
    file = saved(tmp_path, BYTES)
    assert np.array_equal(values(file, 3), read_image(file))


def test_eight_bits_among_sixteen(tmp_path):
    words = values(saved(tmp_path, BYTES[..., 0]), 1, 16)
    assert np.array_equal(words[0].numpy(), BYTES[..., 0].astype(np.uint16) * 257), "white is white"


def test_channels_that_say_nothing(tmp_path):
    opaque = BYTES.copy()
    opaque[..., 3] = 255
    assert np.array_equal(values(saved(tmp_path, opaque), 3, 16).numpy()[0] // 257, opaque[..., 0])
    same = np.repeat(BYTES[..., :1], 3, 2)
    assert np.array_equal(values(saved(tmp_path, same), 1)[0], same[..., 0])


@pytest.mark.parametrize(
    "array, suffix, mode, channels, bits, words",
    [
        (BYTES[..., :3], ".png", None, 4, 8, "it has 3 channels, and --channels is 4"),
        (BYTES[..., :3], ".png", None, 1, 8, "it has 3 channels, and --channels is 1"),
        (BYTES[..., 0], ".png", None, 4, 8, "it has 1 channels"),
        (BYTES, ".png", None, 3, 16, "it has 4 channels, and --channels is 3"),
        (BYTES[..., :3], ".jpg", "CMYK", 4, 8, "a JPEG of inks"),
        (BYTES[..., :3], ".tif", "CMYK", 4, 8, "a TIFF of inks"),
        (BYTES[..., 0].astype(np.float32), ".tif", None, 1, 8, "range nothing tells|mode F"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(tmp_path, array, suffix, mode, channels, bits, words):
    file = saved(tmp_path, array, suffix, mode)
    with pytest.raises(DataError, match=words) as caught:
        values(file, channels, bits)
    assert str(file) in str(caught.value)


def test_sixteen_bits_are_normalised_like_eight():
    mean, std = (0.25, 0.5), (0.125, 0.25)
    words = torch.from_numpy(RANDOM.integers(0, 65536, (2, 2, 5, 5)).astype(np.uint16))
    moved, _ = ToDevice(torch.device("cpu"), mean, std)(words, torch.zeros(2))
    want = (words.numpy() / 65535 - np.reshape(mean, (2, 1, 1))) / np.reshape(std, (2, 1, 1))
    assert moved.dtype == torch.float32 and np.abs(moved.numpy() - want).max() < 1e-5


@pytest.mark.parametrize("bits", [8, 16])
def test_mean_and_std_are_numpys(tmp_path, monkeypatch, bits):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind, white = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    arrays, names = [], []
    for place in range(5):  # of several sizes: each pixel counts alike
        array = RANDOM.integers(0, 200 * (place + 1), (4 + place, 5)).clip(0, 255).astype(kind)
        names.append(saved(tmp_path, array).rename(tmp_path / f"{place}.png").name)
        arrays.append(array.flatten() / white)
    together, pixels = np.concatenate(arrays), PixelSettings(1, bits)
    data = ClassFiles(FileList(tmp_path, names), [0] * 5, ["a"], None)
    data.pixels = pixels
    mean, std = mean_and_std(data)
    assert mean == pytest.approx([together.mean()], rel=1e-12)
    assert std == pytest.approx([together.std()], rel=1e-9)
    assert mean_and_std(data) == (mean, std), "from the cache"
    files = [tmp_path / name for name in names]
    assert estimated(files[::-1], pixels) == (mean, std), "in any order"
    assert mean_and_std(data, std=(0.5,)) == (mean, (0.5,))
    saved(tmp_path, np.full((4, 4), 7, dtype=kind)).rename(tmp_path / "flat.png")
    with pytest.raises(UserError, match="channel 1 has one value in all 1 training images"):
        estimated([tmp_path / "flat.png"], pixels)


def test_settings():
    with pytest.raises(UserError, match="channels is 0"):
        PixelSettings(0)
    with pytest.raises(UserError, match="mean has 3 values, and the images have 4 channels"):
        PixelSettings(4).require_each(mean=(0.1, 0.2, 0.3), std=None)


def test_what_is_shown_of_an_image():
    image = torch.arange(5 * 4).view(5, 2, 2).to(torch.uint8)
    assert torch.equal(shown(image), image[:3])
    assert torch.equal(shown(image[:1]), image[:1].repeat(3, 1, 1))
    assert shown(image.float() / 65535).max() == 255, "however dark"

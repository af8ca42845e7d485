"""Files of every kind read with other channels and bits: exact values, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.png_files import CHANNELS, HEIGHT, KINDS, WIDTH, as_rgb, chunk, crafted, png, stored
from trainkit.data import png_decoder
from trainkit.data.bands import PixelSettings, read_pixels
from trainkit.data.image_io import read_image
from trainkit.errors import DataError
from trainkit.prediction.images import as_pixels

RANDOM = np.random.default_rng(0)
DEEP = [(2, 16), (4, 16), (6, 16)]  # which Pillow gives the upper 8 bits of


def words(source, channels):
    """Values of 16 bits, (H, W, C)."""
    image = read_pixels(source, PixelSettings(channels, 16))
    return (image.double() * 65535).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour, bits", KINDS)
def test_every_kind_of_png(colour, bits, interlaced):
    values = stored(colour, bits)
    data = png(values, colour, bits, interlaced)
    if colour == 3:
        assert np.array_equal(words(data, 3), as_rgb(values, colour, bits) * 257.0)
        assert np.array_equal(
            read_pixels(data, PixelSettings(3, 16)) * 255, read_image(data).float()
        )
    else:
        assert np.array_equal(words(data, CHANNELS[colour]), values * (65535 // (2**bits - 1)))


@pytest.mark.parametrize("colour, bits", [(0, 8), (0, 16), (3, 4), (6, 8), *DEEP])
@pytest.mark.parametrize("after_pixels", [False, True])
def test_orientations(colour, bits, after_pixels):
    values = stored(colour, bits)
    channels = 3 if colour == 3 else CHANNELS[colour]
    plain = words(png(values, colour, bits), channels)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        body = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        if after_pixels:
            data = png(values, colour, bits).replace(end := chunk(b"IEND", b""), body + end)
        else:
            data = png(values, colour, bits, extra=body)
        turns = {3: 2, 6: 3, 8: 1, 5: 1, 7: 1}.get(orientation, 0)  # anticlockwise, by 90 degrees
        want = np.rot90(plain, turns)
        want = want[::-1] if orientation in (4, 5) else want
        want = want[:, ::-1] if orientation in (2, 7) else want
        assert np.array_equal(words(data, channels), want), orientation
        image = read_pixels(data, PixelSettings(channels, 16), upright=False)
        assert np.array_equal((image.double() * 65535).round().permute(1, 2, 0), plain)


@pytest.mark.parametrize("name, data", list(crafted()))
def test_damaged_png(name, data):
    """Where torchvision's decoder reads them, this process dies."""
    for channels, bits in ((3, 16), (4, 8)):
        with pytest.raises(DataError, match="cannot read it.png: "):
            read_pixels(data, PixelSettings(channels, bits), name="it.png")


def damaged(colour, bits, interlaced):
    """What is said of it, and the deflated rows of a PNG."""
    whole = png(stored(colour, bits), colour, bits, interlaced)
    start = whole.index(b"IDAT") + 4
    deflated = whole[start : start + struct.unpack_from(">I", whole, start - 8)[0]]
    rows = zlib.decompress(deflated)
    yield "fewer rows", zlib.compress(rows[: len(rows) // 2])
    yield "fewer rows", zlib.compress(rows[:-1])
    yield "filter no decoder knows", zlib.compress(b"\5" + rows[1:])
    length = 1 + (CHANNELS[colour] * bits * WIDTH + 7) // 8
    last = len(rows) - length  # the filter of the last row, of the last pass
    yield "filter no decoder knows", zlib.compress(rows[:last] + b"\xff" + rows[last + 1 :])
    yield "fewer rows", deflated[: len(deflated) // 2]
    # whatever the garbage happens to inflate to
    yield "PNG is damaged", deflated[: len(deflated) // 2] + b"\xff" * 300
    yield "do not inflate", b"\xff" * 50
    yield "fewer rows", b""


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour, bits", [(0, 8), (4, 8), (6, 8), *DEEP])
def test_damaged_pixels(colour, bits, interlaced):
    pixels = PixelSettings(CHANNELS[colour], bits)
    whole = png(stored(colour, bits), colour, bits, interlaced)
    header = whole[:33]
    for words_, deflated in damaged(colour, bits, interlaced):
        data = header + chunk(b"IDAT", deflated) + chunk(b"IEND", b"")
        for _ in range(2):  # nothing is remembered of it
            by_pillow = interlaced and bits == 8
            with pytest.raises(DataError, match="cannot read" if by_pillow else words_):
                read_pixels(data, pixels)
    assert read_pixels(whole, pixels).shape == (CHANNELS[colour], HEIGHT, WIDTH)


@pytest.mark.parametrize("level", [0, 9])
@pytest.mark.parametrize("colour, bits", [(0, 8), (2, 8), (6, 8), *DEEP])
def test_a_stream_without_its_end(colour, bits, level):
    """All rows are there, and a few bytes of the checksum, or too many rows, are not."""
    channels = CHANNELS[colour]
    values = stored(colour, bits)
    whole = png(values, colour, bits)
    rows = zlib.decompress(whole[whole.index(b"IDAT") + 4 : -16])
    for deflated in (
        *(zlib.compress(rows, level)[:-cut] for cut in (1, 2, 3, 4)),
        zlib.compress(rows + bytes(9000), level)[:-1],
    ):
        data = whole[:33] + chunk(b"IDAT", deflated) + chunk(b"IEND", b"")
        if bits == 8:  # Pillow needs no end
            assert np.array_equal(words(data, channels), values * 257)
            assert np.array_equal(read_image(data).permute(1, 2, 0), as_rgb(values, colour, bits))
            continue
        with pytest.raises(DataError, match="the PNG is damaged: its pixels are cut short"):
            words(data, channels)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (26, 1, "stored in an unknown way"),
        (27, 1, "stored in an unknown way"),
        (28, 2, "stored in an unknown way"),
    ],
)
def test_unknown_ways_of_16_bit_colours(place, value, message):
    data = bytearray(png(stored(2, 16), 2, 16))
    data[place] = value
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(DataError, match=message):
        read_pixels(bytes(data), PixelSettings(3, 16))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "colour, bits", [(0, 8), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)]
)
def test_pixels_are_checked_once(colour, bits, interlaced):
    """The first time rows are decoded that were inflated to be checked, then those of the file."""
    values = stored(colour, bits)
    data = png(values, colour, bits, interlaced)
    png_decoder._sound.clear()
    for _ in range(3):
        found = words(data, CHANNELS[colour])
        assert np.array_equal(found, values * (257 if bits == 8 else 1))
        if not interlaced or bits == 16:  # others are left to Pillow
            assert len(png_decoder._sound) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".gif", ".bmp"])
def test_palettes_mean_their_colours(tmp_path, suffix):
    colours = RANDOM.integers(0, 256, (5, 3), dtype=np.uint8)
    places = RANDOM.integers(0, 5, (6, 7), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(colours.flatten().tolist())
    image.save(tmp_path / f"x{suffix}")
    assert np.array_equal(words(tmp_path / f"x{suffix}", 3), colours[places] * 257.0)
    with pytest.raises(DataError, match="it has 3 channels, and --channels is 1"):
        read_pixels(tmp_path / f"x{suffix}", PixelSettings(1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_black_and_white(tmp_path, suffix):
    ones = RANDOM.integers(0, 2, (6, 7), dtype=np.uint8)
    Image.fromarray(ones * 255).convert("1").save(tmp_path / f"x{suffix}")
    assert np.array_equal(words(tmp_path / f"x{suffix}", 1)[..., 0], ones * 65535.0)


def test_colours_of_tiff_that_are_no_channels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    rgb = RANDOM.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(rgb).convert("LAB").save(tmp_path / "lab.tif")
    with pytest.raises(DataError, match="lab.tif: it is a TIFF of photometric CIELAB"):
        read_pixels(tmp_path / "lab.tif", PixelSettings(3, 16))
    inverted = RANDOM.integers(0, 65536, (6, 7)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "white.tif", inverted, photometric="miniswhite")
    with pytest.raises(DataError, match="white.tif: it is a TIFF of photometric MINISWHITE"):
        read_pixels(tmp_path / "white.tif", PixelSettings(1, 16))
    table = RANDOM.integers(0, 65536, (3, 256)).astype(np.uint16)
    pages = rgb.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="palette", colormap=table)
    with pytest.raises(DataError, match=r"pages.tif: it is a TIFF of photometric PALETTE"):
        read_pixels(tmp_path / "pages.tif", PixelSettings(3, 16))


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize(
    "suffix, mode",
    [
        *((".png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((".tif", mode) for mode in ("1", "L", "P", "RGB", "CMYK", "LAB", "I;16", "I;16B")),
        (".jpg", "RGB"), (".jpg", "CMYK"), (".gif", "P"), (".pgm", "I;16"),
    ],
)  # fmt: skip
def test_a_pil_image_is_read_as_its_file(tmp_path, suffix, mode, upright):
    file = tmp_path / f"x{suffix}"
    rgb = RANDOM.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    if mode.startswith("I;16"):
        array = RANDOM.integers(0, 65536, (6, 7)).astype(np.uint16)
        image = Image.frombytes(
            mode, (7, 6), (array.byteswap() if mode == "I;16B" else array).tobytes()
        )
    else:
        image = Image.fromarray(rgb).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, **({"exif": exif} if suffix in (".png", ".tif", ".jpg") else {}))
    want = read_image(file, upright=upright)
    # Pillow maps some files into memory, and turns a TIFF wrongly then
    with Image.open(io.BytesIO(file.read_bytes())) as opened:
        found = as_pixels(opened, upright)
    assert found.dtype == torch.uint8
    apart = (found.int() - want.int()).abs().max()
    assert apart <= (2 if suffix == ".jpg" else 0)  # CMYK and rounding of two libraries
    if mode.startswith("I;16") and suffix == ".png" and not upright:
        assert np.array_equal(found[0], array >> 8)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pil_image_without_a_range_is_refused_as_its_file(tmp_path, mode):
    image = Image.fromarray(RANDOM.integers(0, 9000, (6, 7)).astype(np.int32)).convert(mode)
    image.save(tmp_path / "x.tif")
    for source in (image, tmp_path / "x.tif"):
        with pytest.raises(DataError, match=f"its pixels are of mode {mode}, whose range nothing"):
            as_pixels(source)

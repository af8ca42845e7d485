"""Image files.

Every kind of PNG, grey masks, damaged, crafted and large files, and what decoders warn of.
"""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import Dataset

from helpers.png_files import (
    CHANNELS,
    HEIGHT,
    KINDS,
    WIDTH,
    as_rgb,
    chunk,
    crafted,
    packed,
    png,
    stored,
)
from helpers.processes import RECOG, SEG
from helpers.toy_recipes import Images, recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.data import png_decoder
from trainkit.data.file_names import image_extensions
from trainkit.data.image_io import read_color_mask, read_image, read_mask
from trainkit.data.pillow_decoder import taking_notes

TRANSPARENT = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\0\x80"}


@pytest.mark.parametrize("colour, bits", KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_kind_of_png(colour, bits, interlaced):
    """Colours as the specification has them, masks as stored.

    With and without transparency, text and animation.
    """
    values = stored(colour, bits)
    text = chunk(b"tEXt", b"exif\0no EXIF") + chunk(b"tEXt", b"transparency\0none")
    # Pillow takes 1 MiB of text
    long_text = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000)))
    extras = [b"", text + long_text, chunk(b"acTL", struct.pack(">II", 2, 0))]
    extras += [chunk(b"tRNS", TRANSPARENT[colour])] if colour in TRANSPARENT else []
    for extra in extras:
        data = png(values, colour, bits, interlaced, extra)
        assert (read_image(data).permute(1, 2, 0).numpy() == as_rgb(values, colour, bits)).all()
        if CHANNELS[colour] == 1:
            labels = read_mask(data)
            assert labels.dtype == (torch.int32 if bits == 16 else torch.uint8)
            assert (labels.numpy() == values[..., 0]).all()


@pytest.mark.parametrize("bits, top", [(1, 2), (2, 4), (4, 16), (8, 256), (16, 65536)])
def test_grey_masks_of_tiff(bits, top):
    """The same by TIFF, written by hand: one strip, no compression.

    Stored with white as 0 they are refused.
    """
    values = np.random.default_rng(bits).integers(0, top, (HEIGHT, 16))
    pixels = b"".join(packed(row, bits) for row in values)
    for white_is_zero in (False, True):
        entries = [(256, 16), (257, HEIGHT), (258, bits), (259, 1), (262, int(not white_is_zero)),
                   (273, 200), (277, 1),
                   (278, HEIGHT), (279, len(pixels))]  # fmt: skip
        body = b"MM\0*" + struct.pack(">IH", 8, len(entries))
        body += b"".join(
            struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in entries
        ) + bytes(4)
        data = body.ljust(200, b"\0") + pixels
        if white_is_zero and 1 < bits < 16:
            with pytest.raises(ValueError, match="stores white as 0"):
                read_mask(data)
        elif not white_is_zero:
            assert (read_mask(data).numpy() == values).all()


@pytest.mark.parametrize("most", [1, 3, 20, 254, 255, 256, 4095, 65535])
def test_grey_masks_of_pgm(most):
    """A PGM says what white is; labels are what the file holds."""
    values = np.random.default_rng(most).integers(0, most + 1, (HEIGHT, WIDTH))
    head = b"P5 %d %d %d\n" % (WIDTH, HEIGHT, most)
    data = head + values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    assert (read_mask(data).numpy() == values).all()


def encoded(array, kind, **how):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **how)
    return file.getvalue()


def test_a_tiff_that_promises_more_rows_than_it_has():
    """Refused at once, and not filled with zeros."""
    data = bytearray(encoded(np.ones((40, 56), np.uint8), "TIFF"))
    entry = data.index(struct.pack("<HH", 257, 4), 8)  # its number of rows
    data[entry : entry + 12] = struct.pack("<HHII", 257, 4, 1, 2**21)
    for read in (read_image, read_mask):
        with pytest.raises(
            ValueError, match="its header says 56x2097152 pixels, its strips hold 56x40"
        ):
            read(bytes(data))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_orientation_of_tiff(compression):
    """All eight, as photographs held upright and scans have them.

    The size in the header is that of the pixels.
    """
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    ways = [values, values[:, ::-1], values[::-1, ::-1], values[::-1], values.T, values[::-1].T,
            values[::-1, ::-1].T,
            values.T[::-1]]  # fmt: skip
    for orientation, shown in enumerate(ways, start=1):
        data = encoded(values, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
        assert (read_image(data)[0].numpy() == shown).all(), orientation
        assert (read_image(data, upright=False)[0].numpy() == values).all(), orientation
        assert (read_mask(data).numpy() == values).all(), orientation
        red = encoded(np.stack([values] * 3, -1), "TIFF", tiffinfo={0x0112: orientation})
        assert (read_color_mask(red).numpy() == 65793 * values.astype(int)).all(), orientation


def test_masks_that_hold_no_labels():
    whole = np.array([[0, 1], [300, -2]], np.float32)
    assert read_mask(encoded(whole, "TIFF")).tolist() == [[0, 1], [300, -2]]
    for wrong in (0.5, np.nan, np.inf, 1e12):
        whole[0, 1] = wrong
        with pytest.raises(ValueError, match="m.tif is a mask whose pixels are fractions, such as"):
            read_mask(encoded(whole, "TIFF"), "m.tif")
    grey = np.zeros((16, 16), np.uint8)
    for data in (encoded(grey, "JPEG"), encoded(grey, "TIFF", compression="jpeg")):
        with pytest.raises(
            ValueError, match="m is a mask (saved|compressed) as JPEG.* blurs labels: save it anew"
        ):
            read_mask(data, "m")


def test_two_colour_masks_of_tiff():
    """1 bit a pixel: as stored, and refused where white is stored as 0."""
    bits = Image.fromarray(np.array([[True, False], [False, False]]))
    for white_is_zero in (False, True):
        file = io.BytesIO()
        bits.save(file, "TIFF", tiffinfo={262: 0} if white_is_zero else {})
        assert Image.open(file).tag_v2[262] == (0 if white_is_zero else 1)
        if white_is_zero:
            with pytest.raises(ValueError, match="m is a mask that stores white as 0"):
                read_mask(file.getvalue(), "m")
        else:
            assert read_mask(file.getvalue()).tolist() == [[1, 0], [0, 0]]


def test_orientation_of_png():
    """By EXIF, all eight; damaged EXIF turns nothing."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for orientation, shown in {
        1: values,
        3: values[::-1, ::-1],
        6: values[::-1].T,
        8: values.T[::-1],
    }.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(values, "PNG", exif=exif)
        assert (read_image(data)[0].numpy() == shown).all()
        assert (read_image(data, upright=False)[0].numpy() == values).all()


@pytest.mark.parametrize("name, data", list(crafted()))
def test_crafted_png(name, data):
    """Where torchvision's decoder reads them, this process dies."""
    for read in (read_image, read_mask):
        with pytest.raises(
            ValueError, match="it.png is a mask with 3 channels|cannot read it.png: "
        ):
            read(data, "it.png")
    with pytest.raises(ValueError, match="cannot read it.png: "):
        read_image(data, "it.png")


def plain_png(rows: bytes, width: int, height: int, colour: int, window: int = 15) -> bytes:
    """8 bits a channel; `rows` with their filters, deflated in a window of 2**window bytes."""
    deflate = zlib.compressobj(wbits=window)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = deflate.compress(rows) + deflate.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def test_sound_pixels_are_checked_once_and_decoded_as_before():
    """What torchvision's decoder gives, the first time and from then on.

    Of other content it is asked anew.
    """
    rows = np.random.default_rng(0).integers(0, 256, (9, 3 * 7 + 1), np.uint8)
    rows[:, 0] = np.arange(9) % 5  # every filter
    data = plain_png(rows.tobytes(), 7, 9, 2)
    expected = np.array(Image.open(io.BytesIO(data)))
    png_decoder._sound.clear()
    for _ in range(3):
        assert (read_image(data).permute(1, 2, 0).numpy() == expected).all()
        assert len(png_decoder._sound) == 1
    rows[4, 0] = 5
    with pytest.raises(ValueError, match="filter no decoder knows"):
        read_image(plain_png(rows.tobytes(), 7, 9, 2))
    with pytest.raises(ValueError, match="fewer rows"):
        read_image(plain_png(rows[:4].tobytes(), 7, 9, 2))
    assert len(png_decoder._sound) == 1


def test_a_window_that_the_header_denies():
    """libpng takes the window from the stream's header, and stumbles over a distance beyond it.

    Pillow does not.
    """
    block = np.random.default_rng(1).integers(0, 256, 2000, np.uint8).tobytes()
    rows = b"".join(b"\0" + block for _ in range(3))  # repeats over 2001 bytes
    data = bytearray(plain_png(rows, 2000, 3, 0))
    place = data.index(b"IDAT") + 4
    data[place] = 0x18  # a window of 512 bytes
    data[place + 1] += 31 - (data[place] * 256 + data[place + 1]) % 31
    end = data.index(b"IEND") - 8
    data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place - 4 : end]))
    with pytest.raises(ValueError, match="do not inflate"):
        read_mask(bytes(data))


def test_an_index_beyond_the_palette():
    """Black, and a label as any other."""
    values = stored(3, 8) + 100
    beyond = png(values, 3, 8)
    assert not read_image(beyond).any() and (read_mask(beyond).numpy() == values[..., 0]).all()


def test_every_bit_of_a_png():
    """No flipped bit of the pixels or of what they need goes unseen."""
    data = bytearray(png(stored(3, 4), 3, 4))
    for place in range(8, len(data)):
        data[place] ^= 1
        if place < len(data) - 12:
            with pytest.raises(ValueError, match="cannot read it: the PNG"):
                read_mask(bytes(data), "it")
        data[place] ^= 1


def test_a_jpeg_that_promises_too_much():
    """A header of 12 GiB on a few bytes is reported before any of that is taken.

    A blank image is none of these.
    """
    blank = np.zeros((512, 512), np.uint8)
    for how in ({}, {"progressive": True, "optimize": True}, {"optimize": True, "quality": 1}):
        data = bytearray(encoded(blank, "JPEG", **how))
        assert read_image(bytes(data)).shape == (3, 512, 512)
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
        with pytest.raises(
            ValueError,
            match=r"cannot read x.jpg: its header says 65500x65500 pixels, which \d+ bytes",
        ):
            read_image(bytes(data), "x.jpg")


@pytest.mark.parametrize(
    "kind, place, form", [("BMP", 18, "<II"), ("TGA", 12, "<HH"), ("PPM", 3, None)]
)
def test_a_header_that_promises_more_than_memory(kind, place, form):
    """Pillow would take memory row by row until the system ends the process."""
    data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), kind))
    if form is None:
        data[place : place + 3] = b"99999999 99999999"
    else:
        data[place : place + struct.calcsize(form)] = struct.pack(
            form, *(2 ** (4 * struct.calcsize(form)) // 3,) * 2
        )
    assert Image.MAX_IMAGE_PIXELS is not None
    with pytest.raises(
        ValueError, match=r"cannot read x: its header says \d+x\d+ pixels, which .* cannot hold"
    ):
        read_image(bytes(data), "x")


def test_no_limit_of_pixels():
    """Nor a warning; and Pillow's own limit stands again afterwards, also after an error."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 50
    try:
        values = np.arange(200, dtype=np.uint8).reshape(10, 20)
        palette = Image.fromarray(values)
        palette.putpalette(bytes(range(256)) * 3)
        file = io.BytesIO()
        palette.save(file, "PNG")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings(
                "ignore", "The image decoding and encoding capabilities of TorchVision"
            )
            assert (read_mask(file.getvalue()).numpy() == values).all()
            for kind in ("TIFF", "WEBP", "GIF", "BMP", "PNG"):
                assert read_image(encoded(values, kind)).shape == (3, 10, 20)
            with pytest.raises(ValueError):
                read_image(file.getvalue()[:50])
        assert Image.MAX_IMAGE_PIXELS == 50
    finally:
        Image.MAX_IMAGE_PIXELS = before


class Raises(Images):
    """Image 3 is one that Pillow's plugin chokes on, in its own way."""

    def __getitem__(self, index):
        if index == 3:
            PngImagePlugin.PngStream(io.BytesIO(b"\0\0")).read()  # struct.error
        return super().__getitem__(index)


def test_whatever_a_decoder_raises_is_named_and_skipped(tmp_path):
    with pytest.raises(ValueError, match="cannot read number 3 of Raises: error: unpack"):
        train(recognition(train_data=Raises(27)), Options(out=tmp_path / "a", workers=0))
    train(
        recognition(train_data=Raises(27)),
        Options(out=tmp_path / "b", workers=0, on_bad_image="skip"),
    )
    assert "3, number 3 of Raises: unpack" in (tmp_path / "b" / "bad_images.txt").read_text()


def test_a_wrong_call_of_pillow_is_no_bad_image(tmp_path):
    class Mistaken(Dataset):
        def __len__(self):
            return 27

        def __getitem__(self, index):
            return Image.new("L", (4, 4)).resize("large"), 0

    with pytest.raises(TypeError):
        train(
            recognition(train_data=Mistaken()),
            Options(out=tmp_path, workers=0, on_bad_image="skip"),
        )
    assert not (tmp_path / "bad_images.txt").exists()


def test_doctor_tells_what_decoders_warn_of(tmp_path, capfd):
    """A JPEG with zeros in its middle, a PNG whose EXIF is damaged, and images of 12 bits in 16."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for name in ("a", "b"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(count):
                values = noise.integers(0, 4096, (40, 48)).astype(np.uint16)
                (tmp_path / "d" / split / name / f"{number}.png").write_bytes(
                    encoded(values, "PNG")
                )
    data = bytearray(
        encoded(noise.integers(0, 255, (160, 160, 3)).astype(np.uint8), "JPEG", quality=90)
    )
    data[len(data) // 2 : len(data) // 2 + 900] = bytes(900)
    (tmp_path / "d" / "train" / "a" / "zeros.jpg").write_bytes(data)
    data = bytearray(png(stored(2, 8), 2, 8, extra=chunk(b"eXIf", b"MM\0*\0\0\0\x08")))
    data[data.index(b"eXIf") + 9] ^= 1
    (tmp_path / "d" / "train" / "b" / "exif.png").write_bytes(data)
    for workers in ("0", "1"):
        arguments = [
            "doctor",
            RECOG,
            "--data",
            str(tmp_path / "d"),
            "--model",
            "small",
            "--no-pretrained",
        ]
        assert main(
            [*arguments, "--size", "32", "--workers", workers, "--out", str(tmp_path / workers)]
        ) in (0, None)
        shown = " ".join(capfd.readouterr().out.split())
        assert "zeros.jpg: Corrupt JPEG data" in shown.replace("- ", "-")
        assert (
            "exif.png: the PNG's chunk 'eXIf' does not match its checksum and was left out" in shown
        )
        assert (
            "8 train images have 16 bits a channel and values up to 40" in shown
            and "16 levels" in shown
        )


def test_notes_are_taken_only_inside(capfd):
    with taking_notes() as found:
        os.write(2, b"libjpeg says so\n")
    os.write(2, b"outside\n")
    assert found.lines == ["libjpeg says so"]
    assert capfd.readouterr().err == "outside\n"


def test_one_bit_of_a_mask(tmp_path, capsys):
    """From the command line: stopped with the file's name, or skipped; the doctor names it."""
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / "d" / kind / split).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng(number).integers(0, 3, (40, 48), dtype=np.uint8)
            (tmp_path / "d" / "images" / split / f"{number}.png").write_bytes(encoded(noise, "PNG"))
            (tmp_path / "d" / "annotations" / split / f"{number}.png").write_bytes(
                encoded(noise, "PNG")
            )
    file = tmp_path / "d" / "annotations" / "train" / "2.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    asked = [
        "--data",
        str(tmp_path / "d"),
        "--classes",
        "3",
        "--model",
        "lraspp",
        "--backbone",
        "small",
        "--no-pretrained",
    ]
    asked += [
        "--long-side",
        "48",
        "--crop",
        "32",
        "--batch-size",
        "2",
        "--epochs",
        "1",
        "--workers",
        "0",
    ]
    assert main([SEG, *asked, "--out", str(tmp_path / "stopped")]) == 2
    assert f"cannot read {file}: the PNG is damaged" in capsys.readouterr().err.replace("\n", " ")
    assert main([SEG, *asked, "--out", str(tmp_path / "run"), "--on-bad-image", "skip"]) in (
        0,
        None,
    )
    assert str(file) in (tmp_path / "run" / "bad_images.txt").read_text()
    assert (
        main(["doctor", SEG, *asked[:9], "--workers", "0", "--out", str(tmp_path / "doctor")]) == 2
    )
    assert "2.png" in capsys.readouterr().out


def test_formats():
    formats = image_extensions()
    assert {".jpg", ".jfif", ".png", ".webp", ".tif", ".bmp", ".ppm", ".pbm", ".jp2"} <= formats
    assert not {".eps", ".h5", ".pdf", ".txt", ".mpg"} & formats

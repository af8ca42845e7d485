"""Damaged image files through reading, training and the doctor.

None may end a process or be reported without its name.

    python benchmarks/damaged_images.py --files 12000
    python benchmarks/damaged_images.py --files 200 --seed 7                # to see that it runs

Valid files of PNG, JPEG, WebP, TIFF, GIF, BMP and PPM, of every mode that Pillow writes and some
PNGs and TIFFs that it does not, are damaged by flipped bits, cuts, zeroed, doubled and random
blocks, and headers drawn anew; of every second damaged PNG either the checksums are right
afterwards, or the rows were damaged before they were deflated. Each file is read as an image, as a
mask, as a mask of colours, and with more channels or bits than usual; it is one among four whole
ones in a training with `--on-bad-image skip` and for the doctor. All of it happens in processes of
their own, which note the file that they are at: what kills one, or keeps it for longer than a
minute, is counted under that file's name, and the others are still read. The training and the
doctor must call bad exactly the files that cannot be read as images. Exit code 1 where anything
else is found.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from mmap import mmap
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from _results import Results, add_option

from trainkit import Options, Recipe, train
from trainkit.commands.doctor import examine
from trainkit.data.bands import PixelSettings, read_pixels
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.image_io import read_color_mask, read_image, read_mask
from trainkit.errors import UserError
from trainkit.schedules import constant
from trainkit.tasks.recognition import Recognition

SIZE = (56, 40)
NAMES = {"bmp": "BMP", "gif": "GIF", "jpeg": "JPEG", "png": "PNG", "ppm": "PPM", "tiff": "TIFF",
         "webp": "WebP"}  # fmt: skip
# left, top, across, down: where the pixels of a pass of an interlaced PNG are
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
# each file is read as each of them
WAYS = {
    "an image": read_image,
    "a mask": read_mask,
    "a mask of colours": read_color_mask,
    "three channels of 16 bits": partial(read_pixels, pixels=PixelSettings(3, 16)),
    "five channels of 8 bits": partial(read_pixels, pixels=PixelSettings(5, 8)),
}
PATIENCE_S = 60  # for one file
# bytes of addresses a process may take: what asks for more gets a MemoryError, as on a machine
MEMORY = 24 * 2**30


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_hand(bits: int, colour: int, interlaced: bool) -> bytes:
    """A PNG of noise, of kinds that Pillow does not write.

    Grey of 2 and 4 bits, colours of 16, and interlaced: its seven passes are smaller images.
    """
    width, height = SIZE
    draw = np.random.default_rng(bits + colour)
    bits_per_pixel = bits * {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = b""
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, number = len(range(left, width, across)), len(range(top, height, down))
        length = (columns * bits_per_pixel + 7) // 8
        noise = draw.integers(0, 256, (number, length), dtype=np.uint8)
        filters = np.arange(number, dtype=np.uint8)[:, None] % 5
        rows += np.concatenate([filters, noise], 1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    pixels = zlib.compress(rows)
    parts = [pixels[i : i + 500] for i in range(0, len(pixels), 500)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *(chunk(b"IDAT", part) for part in parts), chunk(b"IEND", b"")]
    )


def picture(mode: str) -> Image.Image:
    """A smooth picture with some noise, in a mode of Pillow."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize(SIZE)
    whole = Image.fromarray(
        (np.asarray(coarse) + draw.normal(0, 6, (SIZE[1], SIZE[0], 1))).clip(0, 255).astype("u1")
    )
    if mode == "I;16":
        return Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(whole.convert("L")).astype(np.float32))
    return whole.convert(mode)


def wholes() -> dict[str, bytes]:
    """Valid files by kind; the kind begins with the format."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ways = [
        *(("png", "PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("png-bits", "PNG", "P", {"bits": 4}), ("png-trns", "PNG", "P", {"transparency": 3}),
        ("png-exif", "PNG", "RGB", {"exif": exif}),
        *(("jpeg", "JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
        ("jpeg-progressive", "JPEG", "RGB", {"progressive": True}),
        ("jpeg-444", "JPEG", "RGB", {"subsampling": 0}),
        ("jpeg-restart", "JPEG", "RGB", {"restart_marker_rows": 1}),
        ("jpeg-exif", "JPEG", "RGB", {"exif": exif}),
        ("webp", "WEBP", "RGB", {}), ("webp", "WEBP", "RGBA", {}),
        ("webp-lossless", "WEBP", "RGB", {"lossless": True}),
        *(("tiff", "TIFF", mode, {})
          for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")),
        *((f"tiff-{how}", "TIFF", "RGB", {"compression": how})
          for how in ("tiff_lzw", "tiff_deflate", "packbits")),
        ("tiff-jpeg", "TIFF", "RGB", {"compression": "jpeg"}),
        ("tiff-group4", "TIFF", "1", {"compression": "group4"}),
        ("gif", "GIF", "P", {}), ("gif-grey", "GIF", "L", {}),
        ("gif-trns", "GIF", "P", {"transparency": 1}),
        ("gif-two", "GIF", "P", {"save_all": True, "append_images": [picture("P").rotate(180)]}),
        *(("bmp", "BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("ppm", "PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")),
    ]  # fmt: skip
    found = {}
    for name, form, mode, how in ways:
        file = io.BytesIO()
        picture(mode).save(file, form, **how)
        found[f"{name} {mode}"] = file.getvalue()
    for bits, colour in ((2, 0), (4, 0), (16, 2), (16, 4), (16, 6)):
        found[f"png by hand {bits} {colour}"] = png_by_hand(bits, colour, interlaced=False)
    for bits, colour in ((8, 0), (8, 2), (8, 6), (16, 0), (16, 2)):
        found[f"png interlaced {bits} {colour}"] = png_by_hand(bits, colour, interlaced=True)
    width, height = SIZE
    if find_spec("tifffile"):
        found |= tiffs_of_bands()
    found["ppm plain"] = b"P2 %d %d 15\n" % SIZE + b" ".join(
        b"%d" % (i % 16) for i in range(width * height)
    )
    return found


def tiffs_of_bands() -> dict[str, bytes]:
    """TIFFs that Pillow does not read: of five bands, and of colours with 16 bits."""
    from tifffile import imwrite

    found = {}
    draw = np.random.default_rng(0)
    for bands, bits, how in ((5, 8, None), (5, 16, "zlib"), (3, 16, None), (3, 16, "zlib")):
        shape = (*SIZE[::-1], 3) if bands == 3 else (bands, *SIZE[::-1])
        file = io.BytesIO()
        imwrite(
            file,
            draw.integers(0, 2**bits, shape, dtype=f"u{bits // 8}"),
            photometric="rgb" if bands == 3 else "minisblack",
            compression=how,
        )
        found[f"tiff-bands {bands} {bits} {how}"] = file.getvalue()
    return found


def flip_one(data: bytearray, draw: np.random.Generator) -> None:
    """One bit."""
    data[draw.integers(len(data))] ^= 1 << draw.integers(8)


def flip_some(data: bytearray, draw: np.random.Generator) -> None:
    """Up to twenty bytes."""
    for place in draw.integers(0, len(data), draw.integers(2, 21)):
        data[place] = draw.integers(256)


def cut(data: bytearray, draw: np.random.Generator) -> None:
    """The file ends early."""
    del data[draw.integers(len(data)) :]


def block(data: bytearray, draw: np.random.Generator) -> slice:
    """A place of up to 600 bytes."""
    begin = int(draw.integers(len(data)))
    return slice(begin, begin + int(draw.integers(1, 600)))


def zero(data: bytearray, draw: np.random.Generator) -> None:
    """A block of zeros."""
    place = block(data, draw)
    data[place] = bytes(len(data[place]))


def double(data: bytearray, draw: np.random.Generator) -> None:
    """A block twice."""
    place = block(data, draw)
    data[place.start : place.start] = data[place]


def noise(data: bytearray, draw: np.random.Generator) -> None:
    """A block of noise."""
    place = block(data, draw)
    data[place] = draw.bytes(len(data[place]))


def header(data: bytearray, draw: np.random.Generator) -> None:
    """Some of the first 64 bytes, behind those that name the format, drawn among the values that
    break most."""
    for place in draw.integers(4, min(64, len(data)), draw.integers(1, 5)):
        data[place] = draw.choice([0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 254, 255])


DAMAGES = (flip_one, flip_some, cut, zero, double, noise, header)


def with_checksums(data: bytearray) -> bytearray:
    """A PNG whose chunks, as far as they can be followed, have right checksums."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return data


def with_damaged_rows(data: bytes, damage: Callable, draw: np.random.Generator) -> bytes:
    """A PNG whose chunks and deflate are sound; what they hold is damaged."""
    first = data.index(b"IDAT") - 4
    place, deflated = first, b""
    while data[place + 4 : place + 8] == b"IDAT":
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        deflated += data[place + 8 : end]
        place = end + 4
    rows = bytearray(zlib.decompress(deflated))
    damage(rows, draw)
    return data[:first] + chunk(b"IDAT", zlib.compress(rows)) + data[place:]


def damaged(number: int, seed: int, kinds: dict[str, bytes]) -> tuple[str, bytes]:
    """What was done to which kind, and the file."""
    draw = np.random.default_rng((seed, number))
    kind = list(kinds)[number % len(kinds)]
    data, damage = bytearray(kinds[kind]), DAMAGES[draw.integers(len(DAMAGES))]
    name = f"{kind}, {damage.__name__}"
    how = draw.random()
    if kind.startswith("png") and how < 0.25:
        return f"{name}, of the rows", with_damaged_rows(kinds[kind], damage, draw)
    damage(data, draw)
    if kind.startswith("png") and how < 0.5:
        return f"{name}, right checksums", bytes(with_checksums(data))
    return name, bytes(data)


class Noted(ClassFolder):
    """A folder of classes, which notes where it is before it reads.

    Args:
        first: number of its first file among all.
    """

    def __init__(self, root: Path, place: mmap):
        super().__init__(
            root, lambda image: nn.functional.interpolate(image[None].float(), (8, 8))[0] / 255
        )
        self.place = place

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        note(self.place, index)
        return super().__getitem__(index)


def note(place: mmap, index: int) -> None:
    """Write down, where the parent sees it, which file comes now, and when."""
    place[:16] = struct.pack("qd", index, time.monotonic())


def read_all(files: list[Path], place: mmap, out: Path) -> None:
    """Read each file in all ways.

    "read", what it was refused for, or an error without its name.
    """
    with (out / "read.jsonl").open("a", buffering=1) as lines:
        for index, file in enumerate(files):
            if file.name.startswith("whole") or index < struct.unpack("qd", place[:16])[0]:
                continue
            note(place, index)
            found = {"file": file.name}
            for way, read in WAYS.items():
                try:
                    read(file)
                    found[way] = "read"
                except UserError as error:
                    found[way] = "refused" if str(file) in str(error) else f"unnamed: {error}"
                except Exception as error:
                    found[way] = f"unnamed: {type(error).__name__}: {error}"
            lines.write(json.dumps(found) + "\n")


def recipe(root: Path, place: mmap) -> Recipe:
    """A training of one pass over the folder."""
    data = Noted(root, place)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    whole = Noted(root.parent / "whole", mmap(-1, 16))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    return Recipe(
        task=Recognition(2), model=net, train_data=data, val_data=whole, optimizer=optimizer,
        schedule=constant(), epochs=1, batch_size=64,
    )  # fmt: skip


def train_all(files: list[Path], place: mmap, out: Path) -> None:
    """One pass with `--on-bad-image skip`."""
    options = Options(out=out / "run", workers=0, on_bad_image="skip", log_every=1000)
    train(recipe(files[0].parent.parent, place), options)


def doctor_all(files: list[Path], place: mmap, out: Path) -> None:
    """What the doctor finds."""
    (out / "doctor").mkdir(exist_ok=True)
    examine(recipe(files[0].parent.parent, place), 0, out / "doctor")


def in_a_process(work: Callable, files: list[Path], out: Path) -> Iterator[str]:
    """Run `work` to its end; each file at which it ended or hung.

    Where it can go on behind that file, it does.
    """
    place = mmap(-1, 16)
    note(place, -1)
    while True:
        process = get_context("fork").Process(target=quietly, args=(work, files, place, out))
        process.start()
        while process.is_alive():
            process.join(1)
            index, since = struct.unpack("qd", place[:16])
            if time.monotonic() - since > PATIENCE_S and index >= 0:
                process.kill()
        index, _ = struct.unpack("qd", place[:16])
        if process.exitcode == 0:
            return
        name = (
            signal.Signals(-process.exitcode).name
            if process.exitcode < 0
            else f"exit code {process.exitcode}"
        )
        yield f"{files[index].name}: {work.__name__}: {name}"
        if work is not read_all:
            return
        note(place, index + 1)


def quietly(work: Callable, files: list[Path], place: mmap, out: Path) -> None:
    """`work` in this process, with what it prints in a file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (out / f"{work.__name__}.txt").open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        torch.set_num_threads(1)
        work(files, place, out)


def prepare(
    numbers: range, seed: int, kinds: dict[str, bytes], work: Path
) -> tuple[list[Path], dict[str, str]]:
    """Write the damaged files of `numbers`, four whole ones for each, and a folder of whole ones.

    What each one is.
    """
    names = {}
    whole = kinds["png RGB"]
    for folder in ("mixed", "whole"):
        for name in ("a", "b"):
            (work / folder / name).mkdir(parents=True)
    for number in numbers:
        name, data = damaged(number, seed, kinds)
        file = f"{number:06}.{name.partition(' ')[0].partition('-')[0]}".replace("jpeg", "jpg")
        names[file] = name
        (work / "mixed" / "a" / file).write_bytes(data)
        for copy in range(4):
            os.link(source(work, whole), work / "mixed" / "b" / f"whole-{number:06}-{copy}.png")
    for name in ("a", "b"):
        (work / "whole" / name / "0.png").write_bytes(whole)
    return list(Noted(work / "mixed", mmap(-1, 16)).files), names


def source(work: Path, data: bytes) -> Path:
    """One whole file, which the others are links to."""
    file = work / "whole.png"
    if not file.exists():
        file.write_bytes(data)
    return file


def run(
    numbers: range, seed: int, kinds: dict[str, bytes], work: Path
) -> dict[str, list | Counter]:
    """One portion of the files, by all three ways."""
    files, names = prepare(numbers, seed, kinds, work)
    ended = [
        line for way in (read_all, train_all, doctor_all) for line in in_a_process(way, files, work)
    ]
    lines = (work / "read.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    unnamed = [f"{row['file']}: {row[way]}" for row in rows for way in WAYS
               if row[way].startswith("unnamed")]  # fmt: skip
    counts = Counter()
    for row in rows:
        form = names[row["file"]].partition(" ")[0].partition("-")[0]
        for way in WAYS:
            counts[f"{form} as {way}: {row[way].partition(':')[0]}"] += 1
    bad = {row["file"] for row in rows if row["an image"] != "read"}
    listed = work / "run" / "bad_images.txt"
    skipped = {name for name in names if listed.exists() and f"/{name}" in listed.read_text()}
    report = work / "doctor" / "doctor.json"
    found = (
        json.loads(report.read_text())["train"]
        if report.exists()
        else {"faults": {"unreadable": []}, "warned": []}
    )
    named = {Path(each["name"]).name for each in found["faults"]["unreadable"]}
    for way, those in (("training", skipped), ("doctor", named)):
        unnamed += [
            f"{name}: {way}: {'not' if name in bad else 'wrongly'} called bad"
            for name in sorted(bad ^ those)
        ]
    counts.update(
        {
            "skipped by training": len(skipped),
            "named by doctor": len(named),
            "warned": len(found["warned"]),
        }
    )
    return {"crashes": [f"{line} ({names.get(line.partition(':')[0])})" for line in ended],
            "unnamed": [f"{line} ({names[line.partition(':')[0]]})" for line in unnamed],
            "counts": counts}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--portion", type=int, default=1000, help="files of one training")
    parser.add_argument("--seed", type=int, default=0)
    add_option(parser)
    asked = parser.parse_args()
    kinds, whole = wholes(), {"crashes": [], "unnamed": [], "counts": Counter()}
    for begin in range(0, asked.files, asked.portion):
        work = Path(tempfile.mkdtemp())
        part = run(range(begin, min(begin + asked.portion, asked.files)), asked.seed, kinds, work)
        shutil.rmtree(work)
        for key, value in part.items():
            whole[key] += value
        print(f"{min(begin + asked.portion, asked.files)} files: {len(whole['crashes'])} crashes, "
              f"{len(whole['unnamed'])} without a name or unlike reports", flush=True)  # fmt: skip
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }
    report = {
        "files": asked.files, "kinds": len(kinds), "seed": asked.seed, "crashes": whole["crashes"],
        "unnamed": whole["unnamed"], "counts": dict(sorted(whole["counts"].items())),
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores,"
                   f" Python {platform.python_version()}",
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    libraries = ("torch", "torchvision", "pillow", "tifffile")
    results = Results("damaged_images", *libraries, note=f"seed {asked.seed}")
    results.put(f"damaged files, of {len(kinds)} kinds", "files", "", asked.files)
    crashes = "files that ended a process, or at which one hung"
    results.put(crashes, "files", "", len(whole["crashes"]))
    unnamed = "errors without the file's name, or reported differently by training and doctor"
    results.put(unnamed, "files", "", len(whole["unnamed"]))
    counts = whole["counts"]
    refused = sum(counts[f"{form} as an image: refused"] for form in NAMES)
    results.put("refused as an image", "files", "", refused)
    for what in ("skipped by training", "named by doctor"):
        results.put(what, "files", "", counts[what])
    results.put("at which a decoder warned, reported by doctor", "files", "", counts["warned"])
    results.write(asked.results)
    formats = Results("damaged_images-formats", *libraries, note=f"seed {asked.seed}")
    for form, name in NAMES.items():
        for way in WAYS:
            read, refused = (counts[f"{form} as {way}: {how}"] for how in ("read", "refused"))
            formats.put(name, f"read as {way}", "", f"{read:,} of {read + refused:,}")
    formats.write(asked.results)
    return 1 if whole["crashes"] or whole["unnamed"] else 0


if __name__ == "__main__":
    sys.exit(main())

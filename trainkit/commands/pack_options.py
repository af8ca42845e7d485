"""Options of `trainkit pack`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainkit.errors import UserError

QUALITY = 90
SMALLER = ("jpeg", "png", "webp", "raw")  # encodings that images can be made smaller with


@dataclass(frozen=True)
class PackOptions:
    """Options of packing a recipe's data for fast reading, beside the recipe's own settings."""

    out: Path
    """folder that the packed data is written into; the same command again finishes what was begun
    there"""
    encoding: Literal["original", "jpeg", "png", "webp", "raw"] = "original"
    """of images: original: the files' own bytes; png or webp: lossless; jpeg; raw: uint8 pixels,
    the fastest to read and the largest; masks are always lossless"""
    quality: int | None = None
    """of jpeg, 1 to 100; default: 90"""
    largest_side: int | None = None
    """make larger images smaller, to this side in pixels; default: their own size"""
    short_side: int | None = None
    """make larger images smaller, to this short side in pixels, such as 256; default: their own"""
    shard_images: int = 1024
    """images of one parquet file"""
    workers: int | None = None
    """processes that write, each a file (0: none); default: all cores but one, up to 8"""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """image that cannot be read: stop and name it, or leave it out"""

    def __post_init__(self) -> None:
        least = {"largest_side": 1, "short_side": 1, "shard_images": 1, "workers": 0}
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise UserError(f"{name} is {value}; it must be at least {number}")
        if self.quality is not None and self.encoding != "jpeg":
            raise UserError(
                f"quality is {self.quality} and encoding {self.encoding}: it is of jpeg alone, so"
                " leave --quality out, or give --encoding jpeg"
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}; it must be 1 to 100 (90 is usual)")
        sides = [name for name in ("largest_side", "short_side") if getattr(self, name) is not None]
        if len(sides) == 2:
            raise UserError(
                f"largest_side is {self.largest_side} and short_side {self.short_side}: give one"
            )
        if sides and self.encoding not in SMALLER:
            raise UserError(
                f"{sides[0]} is {getattr(self, sides[0])} and encoding original, which keeps files"
                f" as they are: give --encoding {', '.join(SMALLER[:-1])} or {SMALLER[-1]}"
            )

"""Classifies files by name: images, leftovers of operating systems, and duplicate names."""

import os
import unicodedata
from contextlib import suppress
from functools import cache

from PIL import Image, features

LONGEST = 10  # characters of an extension; what is longer is a part of the name
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
# Pillow knows their extensions too, but opens no picture of them by itself, or one that is no
# photograph: vectors, films, icons, brushes, measured values.
_NO_PICTURES = frozenset(
    {
        "BUFR",
        "CUR",
        "EPS",
        "FITS",
        "GBR",
        "GRIB",
        "HDF5",
        "ICNS",
        "ICO",
        "IM",
        "IPTC",
        "MPEG",
        "PALM",
        "PDF",
        "WMF",
    }
)
_NO_PICTURE_EXTENSIONS = frozenset({".pfm"})  # depths and flows as floats, among Pillow's PPM
_SAME_CONTENT = frozenset({".mpo"})  # a JPEG of which the first picture is taken
_BUILT_IN = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # Pillow may be built without
# Of photographs, for which a decoder may be missing.
_PHOTOGRAPHS = frozenset(
    {
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".jp2",
        ".webp",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raw",
        ".rw2",
    }
)
# What unzipping on a Mac, disks in a network and file managers leave behind, in small letters;
# names that begin with a dot are left out without being listed here.
_LEFTOVERS = frozenset(
    {
        *(
            "__macosx",
            "@eadir",
            "@tmp",
            "@recycle",
            "@recently-snapshot",
            "#recycle",
            "#snapshot",
            "lost+found",
        ),
        *(
            "$recycle.bin",
            "system volume information",
            "thumbs.db",
            "ehthumbs.db",
            "ehthumbs_vista.db",
            "desktop.ini",
        ),
        *("icon\r", "network trash folder", "temporary items", "__pycache__"),
    }
)
_HIDDEN_LEFTOVERS = (
    "._",
    ".ds_store",
    ".ipynb_checkpoints",
    ".appledouble",
    ".trash",
    ".spotlight-",
    ".fseventsd",
)


def extension(name: str) -> str:
    """The file's extension in lower case, with its dot; empty without one, as in "image.000123"."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if len(suffix) <= LONGEST and not suffix[1:].isdigit() else ""


def is_image(suffix: str) -> bool:
    """Whether files of this extension (from `extension`) are images that can be read here."""
    return suffix in EXTENSIONS or suffix in image_extensions()


def is_photograph(suffix: str) -> bool:
    """Whether files of this extension are photographs, whatever reads them."""
    return suffix in _PHOTOGRAPHS


@cache
def image_extensions() -> frozenset[str]:
    """Extensions of the images that the installed decoders open, such as ".jpg".

    Pillow is asked once for its own.
    """
    supported = features.get_supported()  # `features.check` warns of what a Pillow never had
    absent = {kind for kind, feature in _BUILT_IN.items() if feature not in supported}
    known = Image.registered_extensions()  # which loads all of Pillow's decoders
    kinds = Image.OPEN.keys() - _NO_PICTURES - absent
    opened = {suffix for suffix, kind in known.items() if kind in kinds}
    return (EXTENSIONS | opened | _SAME_CONTENT) - _NO_PICTURE_EXTENSIONS


def leftover(name: str) -> str | None:
    """What to call a file or folder that holds no data of the user's, as "@eaDir"; else None."""
    if name.casefold() in _LEFTOVERS:
        return name.strip()
    if not name.startswith("."):
        return None
    known = next((each for each in _HIDDEN_LEFTOVERS if name.casefold().startswith(each)), None)
    if known == "._":
        return "._*"
    return "hidden" if known is None else name


def composed(name: str) -> str:
    """The name in the one form (NFC) of those that look alike.

    A Mac writes "ä" as a letter and its dots. Bytes that a locale without UTF-8 left as they were
    are letters again.
    """
    if name.isascii():
        return name
    with suppress(UnicodeEncodeError):  # a half of a letter of UTF-16, which no file's name holds
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """A relative path without its extension, `composed`: an image and its mask share it."""
    return composed(os.path.splitext(name)[0])

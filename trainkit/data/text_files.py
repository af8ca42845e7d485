"""Reads text files as editors write them: with or without a byte order mark, any line endings."""

import codecs
from pathlib import Path

from trainkit.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does, so it is looked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(file: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 where it begins with their mark.

    Bytes that are no UTF-8 become what names of files with such bytes become (surrogateescape), so
    that a list names the files that it was written from.

    Raises:
        UserError: the file holds no text.
    """
    content = Path(file).read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"  # without its mark
    try:
        text = content.decode(
            encoding, errors="surrogateescape" if encoding == "utf-8" else "strict"
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text: {error}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{file} is no text: it holds NUL; save it as UTF-8")
    return text


def read_lines(file: Path) -> list[str]:
    """The lines of `read_text` that are not empty, without blanks at their ends."""
    lines = read_text(file).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def is_file(text: str) -> bool:
    """Whether a text that may be anything is the path of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path may be
        return False

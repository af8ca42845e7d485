"""Tables of colours for colour-coded masks: a text file, or the palette of a known dataset."""

import re
from pathlib import Path

from trainkit.data.datasets import cityscapes, voc
from trainkit.data.palette import Colour, MaskColors
from trainkit.data.text_files import read_text
from trainkit.errors import MissingFileError, UserError

IGNORED_NAME = "ignore"  # in a table: a colour that counts nowhere
_LINE = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\S.*)")

# Colours of Cityscapes' *_gtFine_color.png that are of no class; licence plates and poles in groups
# share a class's.
_CITYSCAPES_IGNORED = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip
KNOWN = {
    "cityscapes": MaskColors(
        cityscapes.CLASSES, tuple(map(tuple, cityscapes.PALETTE.tolist())), _CITYSCAPES_IGNORED
    ),
    "voc": MaskColors(voc.CLASSES, tuple(map(tuple, voc.PALETTE.tolist())), ((224, 224, 192),)),
}


def read_mask_colors(table: str) -> MaskColors:
    """Read a table of colours: "voc", "cityscapes", or a text file of `R G B name` lines.

    Classes have the order of their lines; the name `ignore` is of colours that are never counted.
    Lines that are empty or begin with # are left out.

    Raises:
        UserError: a line is none of these; the message names it.
        MissingFileError: there is no such file.
    """
    if table in KNOWN:
        return KNOWN[table]
    file = Path(table)
    if not file.is_file():
        raise MissingFileError(
            f"mask_colors is {table}, which is neither a file with one `R G B name` a line nor a"
            f" known palette ({', '.join(KNOWN)})"
        )
    names: list[str] = []
    colors: list[Colour] = []
    ignored: list[Colour] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise UserError(
                f"{file}, line {number} is {line.strip()!r}; it is three numbers and a name: `R G B"
                " name`"
            )
        color, name = (int(parts[1]), int(parts[2]), int(parts[3])), parts[4].strip()
        if name == IGNORED_NAME:
            ignored.append(color)
        elif name in names:
            raise UserError(
                f"{file}, line {number}: {name} has a colour already; each class has one"
            )
        else:
            names.append(name)
            colors.append(color)
    try:
        return MaskColors(tuple(names), tuple(colors), tuple(ignored))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error

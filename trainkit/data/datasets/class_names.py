"""Reads the names of classes, or how many there are, from the values of settings."""

from collections.abc import Sequence
from pathlib import Path

from trainkit.data.datasets.inventory import some
from trainkit.data.palette import MaskColors
from trainkit.data.text_files import is_file, read_lines
from trainkit.errors import MissingFileError, UserError


def read_classes(classes: str, colors: MaskColors | None = None) -> int | list[str]:
    """Read how many classes there are, or their names.

    Args:
        classes: "3", names with commas between, or a text file of one name a line.
        colors: of colour-coded masks, whose names the classes have.

    Raises:
        UserError: there are no names, one is there twice, or `colors` has others.
        MissingFileError: the file is missing.
    """
    if colors is not None and classes not in ("", str(len(colors.names))):
        names = read_classes(classes)
        if names != list(colors.names):
            raise UserError(
                f"classes is {classes}, and mask_colors names {len(colors.names)}"
                f" ({', '.join(colors.names[:5])}, ...): leave classes out, or name the same ones"
                " in the same order"
            )
    if colors is not None:
        return list(colors.names)
    if classes.isdecimal():
        return int(classes)
    named = is_file(classes)
    if classes.endswith(".txt") and not named:
        raise MissingFileError(
            f"no file {classes}: classes is a number, names with commas, or a text file"
        )
    names = (
        read_lines(Path(classes))
        if named
        else [name.strip() for name in classes.split(",") if name.strip()]
    )
    if not names:
        raise UserError(
            "classes is empty: give how many there are, their names with commas, or a file"
            " (--classes); trainkit doctor FOLDER says which ids its masks hold"
        )
    if any("\ud800" <= letter <= "\udfff" for name in names for letter in name):
        raise UserError(f"the class names in {classes} are not all UTF-8: save it as UTF-8")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"classes names {some(map(repr, twice))} more than once: each class has a name of"
            " its own"
        )
    return names


def read_class_names(classes: Sequence[str] | None) -> list[str] | None:
    """The names, or those that `read_classes` reads of a single one; None for None.

    Raises:
        UserError: it is a number.
    """
    if classes is None:
        return None
    # those of a list with commas and spaces have their comma yet
    several = [name.rstrip(",") for name in classes if name != ","]
    names = read_classes(classes[0]) if len(classes) == 1 else several
    if not names:
        raise UserError(
            "classes is empty: give the names of the classes, or a text file with one a line"
            " (--classes)"
        )
    if isinstance(names, int):
        raise UserError(
            f"classes is {names}: give the names of the classes, which are the names of the folders"
            " (--classes)"
        )
    return names

"""Folders that come with the package: recipes and accelerate configs."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """A folder that comes with the package: within it where installed, beside it in a clone."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def same_shipped_recipe(file: Path) -> Path | None:
    """The recipe of the package that is byte for byte the same as `file`; None where none is."""
    content = file.read_bytes()
    known = sorted(shipped("recipes").glob("*.py"))
    return next((each for each in known if each.read_bytes() == content), None)

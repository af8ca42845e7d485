"""Finds the columns of a table that hold images, masks and labels, by types and names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Value
from datasets import Image as ImageFeature

from trainkit.errors import UserError

IMAGES = ("image", "img", "picture", "pixel_values")
MASKS = (
    "mask",
    "label",
    "labels",
    "annotation",
    "annotations",
    "segmentation",
    "segmentation_mask",
    "label_map",
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "y")
_BYTES = ("binary", "large_binary", "binary_view")
_TEXT = ("string", "large_string", "string_view")


def choose_image(source: str | Path, features: Mapping[str, Any], asked: str | None) -> str:
    """The column of images for recognition: the given one, or the only one.

    Raises:
        UserError: it is unclear which; the message has the columns.
    """
    if asked is not None:
        return _known(source, features, asked, is_image(features.get(asked)), "images")
    return _only(source, "image", _images(features), features)


def choose_image_and_mask(
    source: str | Path, features: Mapping[str, Any], image: str | None, mask: str | None
) -> tuple[str, str]:
    """The columns of images and of masks, told apart by their names where not given.

    Raises:
        UserError: it is unclear which; the message has the columns.
    """
    found = _images(features)
    if image is None:
        image = _only(
            source, "image", [name for name in found if name in IMAGES and name != mask], features
        )
    if mask is None:
        others = [name for name in found if name != image]
        mask = _only(source, "mask", [name for name in others if name in MASKS] or others, features)
    for column in (image, mask):
        _known(source, features, column, is_image(features.get(column)), "images")
    return image, mask


def choose_label(source: str | Path, features: Mapping[str, Any], asked: str | None) -> str:
    """The column of labels: the given one, the only one with class names, or the one named so.

    Raises:
        UserError: it is unclear which; the message has the columns.
    """
    if asked is not None:
        return _known(
            source, features, asked, isinstance(features.get(asked), (Value, ClassLabel)), "labels"
        )
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    called = [
        name for name, feature in features.items() if name.lower() in LABELS and _is_label(feature)
    ]
    return _only(source, "label", named or called, features)


def require_group(source: str | Path, features: Mapping[str, Any], asked: str) -> None:
    """Check that a column can say which rows are of one group.

    Raises:
        UserError: there is no such column, or it holds no single values.
    """
    single = isinstance(features.get(asked), (Value, ClassLabel))
    _known(source, features, asked, single and not is_image(features.get(asked)), "groups")


def is_image(feature: Any) -> bool:
    """Whether a column holds images: of the Hub's type, structs of bytes and path, or bytes."""
    if isinstance(feature, Mapping):
        return _is_of(feature.get("bytes"), _BYTES) and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, ImageFeature) or _is_of(feature, _BYTES)


def _images(features: Mapping[str, Any]) -> list[str]:
    """Columns of images; bytes alone count where nothing says more."""
    found = [name for name, feature in features.items() if is_image(feature)]
    return [name for name in found if not _is_of(features[name], _BYTES)] or found


def _is_label(feature: Any) -> bool:
    return isinstance(feature, Value) and (
        "int" in feature.dtype or feature.dtype in ("bool", *_TEXT)
    )


def _is_of(feature: Any, types: Sequence[str]) -> bool:
    return isinstance(feature, Value) and feature.dtype in types


def _known(
    source: str | Path, features: Mapping[str, Any], column: str, holds: bool, what: str
) -> str:
    if column not in features:
        raise UserError(f"{source} has no column {column!r}; its columns: {_listed(features)}")
    if not holds:
        raise UserError(
            f"{source} has no {what} in its column {column!r}; its columns: {_listed(features)}"
        )
    return column


def _only(
    source: str | Path, what: str, columns: Sequence[str], features: Mapping[str, Any]
) -> str:
    if len(columns) == 1:
        return columns[0]
    raise UserError(
        f"{source} has {len(columns)} columns that could be the {what}"
        f" ({', '.join(columns) or 'none'}); say which with {what}_column (--{what}-column where"
        f" the recipe has that setting). Its columns: {_listed(features)}"
    )


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: Any) -> str:
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(feature)}"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__

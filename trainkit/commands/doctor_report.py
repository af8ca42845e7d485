"""What `trainkit doctor` found, as tables and lines."""

import re
from typing import Any

from trainkit.display.terminal import Display
from trainkit.display.wording import counted

KINDS = {
    "unreadable": "cannot be read",
    "mask_size": "mask of another size",
    "label": "label outside the classes",
}
# What differs between two faults of a kind: a path, a row of a table, a number of pixels.
NAME_OR_COUNT = re.compile(r"\S*[/\\]\S*|\S+\[\d+\]|\b\d+(?= pixels)|\b\d+x\d+\b")
# on screen; doctor.json has all
SHOWN_FAULTS, SHOWN_WARNINGS, SHOWN_CLASSES, SHOWN_NAMES = 20, 40, 30, 3


def warnings_of(report: dict[str, Any], split: str, reported: bool) -> list[str]:
    """What would spoil a training without stopping it, a line each.

    `reported`: the dataset says by itself which classes have no image.
    """
    lines = []
    if not report["as_stored"]:
        lines.append(
            f"{split} was checked after its transform, not as it is stored:"
            f" {report['kept_transform']}"
        )
    lines += [f"{each['name']}: {each['what']}" for each in report["warned"]]
    many, highest = report["sixteen_bit"].values()
    if many and highest < 2**15:
        lines.append(
            f"{many} {split} images have 16 bits a channel and values up to {highest} only: their"
            f" upper 8 bits are read (65535 becomes 255), {highest // 256 + 1} levels of these;"
            " read all 16 with --bits 16, or save them scaled to 0 to 65535, or with 8 bits"
        )
    unused = [row["name"] for row in report["classes"] if not row["images"]]
    if unused and not reported:
        lines.append(
            f"{len(unused)} of {len(report['classes'])} classes are in no {split} image:"
            f" {some_of(unused)}"
        )
        pixels = sum(row["pixels"] or 0 for row in report["classes"])
        if report["ignored_pixels"]:
            share = report["ignored_pixels"] / (pixels + report["ignored_pixels"])
            lines.append(
                f"{100 * share:.1f} % of the {split} pixels are ignored (--mask-values says what"
                " classes are)"
            )
    if report["unlabelled"]:
        lines.append(
            f"{counted(len(report['unlabelled']), f'{split} image')} without a label:"
            f" {some_of(report['unlabelled'])}"
        )
    if report["repeated"]:
        names = [" = ".join(same) for same in report["repeated"]]
        lines.append(f"{counted(len(names), f'{split} image')} more than once: {some_of(names)}")
    return lines


def some_of(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _fault_lines(report: dict[str, Any], split: str) -> list[str]:
    """The faults of a split in words; those that differ in file and number of pixels share one."""
    alike: dict[str, list[str]] = {}
    for kind in KINDS:
        for fault in report["faults"][kind]:
            words = fault["what"]
            if fault["name"] not in words:
                words = f"{fault['name']}: {words}"
            alike.setdefault(NAME_OR_COUNT.sub("", words), []).append(words)
    lines = []
    for same in alike.values():
        if len(same) == 1:
            lines.append(same[0])
        else:
            lines.append(f"{len(same)} of {report['num_images']} {split} images, such as {same[0]}")
    more = len(lines) - SHOWN_FAULTS
    return lines[:SHOWN_FAULTS] + ([f"and {more} more in {split}"] if more > 0 else [])


def show(report: dict[str, Any], display: Display) -> None:
    """Statistics and classes as tables, then errors and warnings as lines."""
    train, val = report["train"], report["val"]
    rows: list[tuple[Any, ...]] = [("images", train["num_images"], val["num_images"])]
    for name in ("smallest", "median", "largest"):
        rows.append(
            (
                name,
                *(
                    "x".join(map(str, each["sizes"].get(name, ["not read"])))
                    for each in (train, val)
                ),
            )
        )
    one_class = any(row["pixels"] is None for row in (*train["classes"], *val["classes"]))
    for kind, words in KINDS.items():
        if kind != "mask_size" or not one_class:  # images of one class have no masks
            rows.append((words, *(len(each["faults"][kind]) for each in (train, val))))
    if any(each["sixteen_bit"]["num_images"] for each in (train, val)):
        rows.append(("of 16 bits", *(each["sixteen_bit"]["num_images"] for each in (train, val))))
        rows.append(
            (
                "highest value in them",
                *(each["sixteen_bit"]["highest"] or 0 for each in (train, val)),
            )
        )
    display.grid("data", ("", "train", "val"), rows)
    classes = [
        (
            a["name"],
            a["images"],
            b["images"],
            *(() if a["pixels"] is None else (a["pixels"], b["pixels"])),
        )
        for a, b in zip(train["classes"], val["classes"])
    ]
    classes.sort(key=lambda row: -row[1])  # alike ones stay in the order of their ids
    left_out = max(0, len(classes) - SHOWN_CLASSES)
    if left_out:
        classes[SHOWN_CLASSES // 2 : -SHOWN_CLASSES // 2] = [
            (f"({left_out} more)", *[""] * (len(classes[0]) - 1))
        ]
    heads = ("class", "train images", "val images", "train pixels", "val pixels")
    if classes:
        display.grid("classes", heads[: len(classes[0])], classes)
    if report["refusal"] is not None:
        display.note(f"error: {report['refusal']}")
    for split in ("train", "val"):
        for line in _fault_lines(report[split], split):
            display.note(f"error: {line}")
    for line in report["warnings"][:SHOWN_WARNINGS]:
        display.note(f"warning: {line}")
    if len(report["warnings"]) > SHOWN_WARNINGS:
        display.note(f"warning: and {len(report['warnings']) - SHOWN_WARNINGS} more")

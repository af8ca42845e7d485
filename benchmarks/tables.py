"""Tables of the docs, made from benchmarks/results/*.json.

    python benchmarks/tables.py            # write them into the pages
    python benchmarks/tables.py --check    # exit code 1 where a page differs from its results

A page holds `<!-- table: NAME, ... -->` and `<!-- end -->`; what stands between them is replaced by
the measurements of benchmarks/results/NAME.json, rows by columns, with command, machine and
versions below. `<!-- claims -->` stands for the claims of docs/results.md: figure, target and
whether it is met are computed from the same files. `<!-- recipes -->` is the table of what the
recipes' docstrings expect.
"""

import argparse
import ast
import json
import operator
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"<!-- (claims|recipes|table: [^>]*?) -->\n.*?<!-- end -->", re.DOTALL)
COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
SIGNS = {"<=": "≤ ", ">=": "≥ ", "==": ""}


def load(name: str) -> dict[str, Any]:
    """One run of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def number(value: float | str) -> str:
    """As it was recorded, with commas from 10,000 on."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if abs(value) >= 10_000 else f"{value:g}"


def cell(measurement: dict[str, Any], unit_shown: bool) -> str:
    """`1.99 (1.91 to 2.34), 1.16 ×`: median, range over the rounds, ratio to the baseline."""
    unit = "" if unit_shown or not measurement["unit"] else f" {measurement['unit']}"
    if "values" in measurement:
        return ", ".join(map(number, measurement["values"])) + unit
    if "median" in measurement:
        text = f"{number(measurement['median'])}{unit}"
        text += f" ({number(measurement['min'])} to {number(measurement['max'])})"
    else:
        text = f"{number(measurement['value'])}{unit}"
    if "round_s" in measurement:
        low, high = measurement["round_s"]
        seconds = number(low) if low == high else f"{number(low)} to {number(high)}"
        text += f" ({seconds} s a round)"
    return text + (f", {number(measurement['ratio'])} ×" if "ratio" in measurement else "")


def table(names: Iterable[str]) -> list[str]:
    """Lines of a table of one or more runs, and of a paragraph about where it comes from."""
    runs = [load(name) for name in names]
    measurements = [each for run in runs for each in run["measurements"]]
    rows = list(dict.fromkeys(each["row"] for each in measurements))
    columns = list(dict.fromkeys(each["column"] for each in measurements))
    units = {
        column: {each["unit"] for each in measurements if each["column"] == column}
        for column in columns
    }
    shared = {column: next(iter(found)) for column, found in units.items() if len(found) == 1}
    heads = [f"{column} ({shared[column]})" if shared.get(column) else column for column in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    found = {
        (each["row"], each["column"]): cell(each, each["column"] in shared) for each in measurements
    }
    for row in rows:
        lines.append(
            f"| {row} | " + " | ".join(found.get((row, column), "") for column in columns) + " |"
        )
    return [*lines, "", *dict.fromkeys(provenance(run) for run in runs)]


def provenance(run: dict[str, Any]) -> str:
    """Command, machine, versions, rounds, and whence."""
    command = run["command"]
    shown = (
        f"`{command}`"
        if re.match(r"(python|torchrun|trainkit|accelerate) ", command)
        else f"Command: {command}"
    )
    parts = [shown, run["machine"]["description"]]
    parts += (
        [", ".join(f"{name} {version}" for name, version in run["versions"].items())]
        if run["versions"]
        else []
    )
    if "rounds" in run:
        parts.append(
            f"medians of {run['rounds']} rounds" + (" (minimum to maximum)" if spread(run) else "")
        )
    if "baseline" in run:
        parts.append(f"×: times {run['baseline']}")
    parts += [run["note"]] if "note" in run else []
    return f"*{'; '.join(parts)}; {run['source']}.*\n"


def spread(run: dict[str, Any]) -> bool:
    return any("min" in each for each in run["measurements"])


@dataclass(frozen=True)
class Claim:
    """A row of page one.

    Args:
        text: what is claimed.
        name, row, column: the measurement.
        key: which of its numbers: `median`, `value` or `ratio`.
        unit: written behind the figure.
        target: a comparison and a number, or None where none was set.
    """

    text: str
    name: str
    row: str
    column: str
    key: str = "ratio"
    unit: str = ""
    target: tuple[str, float] | None = None

    def line(self) -> str:
        """As it stands in the table."""
        run = load(self.name)
        (found,) = (
            each
            for each in run["measurements"]
            if (each["row"], each["column"]) == (self.row, self.column)
        )
        value = found[self.key]
        target, met = "", ""
        if self.target is not None:
            sign, bound = self.target
            every = isinstance(value, str) and bound == 1
            target = "all" if every else f"{SIGNS[sign]}{number(bound)}"
            met = self.met(value, COMPARE[sign], bound)
        command = run["command"] if run["command"] != "not kept" else "(program not kept)"
        command = f"`{command}`" if command[0] != "(" else command
        cells = [
            self.text,
            f"{number(value)}{self.unit}",
            target,
            met,
            command,
            run["machine"]["description"],
        ]
        return "| " + " | ".join(cells) + " |"

    def met(self, value: Any, compare: Any, bound: float) -> str:
        """Yes or no."""
        if isinstance(value, str):  # "254 of 254"
            done, _, of = value.partition(" of ")
            value = int(done) / int(of)
        return "yes" if compare(value, bound) else "**no**"


PAIR, SMALL_PAIR = "683 x 512, JPEG + PNG", "240 x 180 (CamVid here), PNG + PNG"
HELD, EACH = (
    "trainkit, images held and read by the batch (OnDevice)",
    "trainkit, images read one by one",
)
CLAIMS = [
    Claim(
        "runs killed at random moments end bit-equal",
        "crash_recovery",
        "runs that ended bit-equal to the run that was never killed",
        "count",
        "value",
        target=("==", 1),
    ),
    Claim(
        "checkpoints that do not verify after a kill",
        "crash_recovery",
        "checkpoints that did not verify after a kill",
        "count",
        "value",
        target=("==", 0),
    ),
    Claim(
        "damaged images that end a process",
        "damaged_images",
        "files that ended a process, or at which one hung",
        "files",
        "value",
        target=("==", 0),
    ),
    Claim(
        "optimizers under FSDP2 that are accepted and train differently",
        "optimizers-sharded",
        "accepted, yet trained differently",
        "optimizers and variants",
        "value",
        target=("==", 0),
    ),
    Claim(
        "resume at step 10,000 against step 100",
        "crash_recovery-resume_later",
        "from step 10,000",
        "start of train to the first image read",
        unit=" ×",
    ),
    Claim(
        "step of 0.7 ms, batches handed over ready-made",
        "step_overhead-mlp_ready",
        "trainkit, batches handed over",
        "time per step",
        "ratio",
        " × bare PyTorch",
        ("<=", 1.5),
    ),
    Claim(
        "step of 0.7 ms, images read one by one",
        "step_overhead-mlp",
        "trainkit, images read one by one",
        "time per step",
        "ratio",
        " × bare PyTorch",
        ("<=", 1.5),
    ),
    Claim(
        "step of 3 ms, images held on the device",
        "step_overhead-tiny",
        "trainkit, images held and read by the batch (OnDevice)",
        "time per step",
        "ratio",
        " × bare PyTorch",
        ("<=", 1.25),
    ),
    Claim(
        "step of 3 ms, images read one by one",
        "step_overhead-tiny",
        "trainkit, images read one by one",
        "time per step",
        "ratio",
        " × bare PyTorch",
        ("<=", 1.25),
    ),
    Claim(
        "step of ResNet-18 on 64 x 64",
        "step_overhead-resnet18",
        EACH,
        "time per step",
        "ratio",
        " × bare PyTorch",
        ("<=", 1.05),
    ),
    Claim(
        "step of two layers with four trackers, a row every 10 steps",
        "trackers",
        "all four",
        "time per step",
        "ratio",
        " × none",
        ("<=", 1.05),
    ),
    Claim(
        "the same, and a tracker that hangs",
        "trackers",
        "all four, and one that hangs",
        "time per step",
        "ratio",
        " × none",
        ("<=", 1.05),
    ),
    Claim(
        "from the command to the first step",
        "startup",
        "trainkit",
        "seconds",
        "ratio",
        " × a bare Accelerate script",
    ),
    Claim("`trainkit --help`", "startup", "trainkit --help", "seconds", "median", " s"),
    Claim(
        "class folder read by four workers without decoding",
        "index_reads",
        "trainkit",
        "4 workers, on the clock",
        "ratio",
        " × ImageFolder",
        ("<=", 1.1),
    ),
    Claim(
        "training images from files",
        "input_pipeline-one_core",
        "trainkit",
        "photos, training",
        "ratio",
        " × the speed of torchvision's references",
        (">=", 2.2),
    ),
    Claim(
        "the same, crops decoded alone",
        "input_pipeline-one_core",
        "trainkit, crops decoded alone by TurboJPEG",
        "photos, training",
        "ratio",
        " × the speed of torchvision's references",
        (">=", 2.8),
    ),
    Claim(
        "the same, from a set packed raw with a short side of 256",
        "input_pipeline-packed-one_core",
        "trainkit, packed: raw pixels, photos of short side 256",
        "photos, training",
        "ratio",
        " × the speed of torchvision's references",
        (">=", 10),
    ),
    Claim(
        "evaluation images from files",
        "input_pipeline-one_core",
        "trainkit",
        "photos, evaluation",
        "ratio",
        " × the speed of torchvision's references",
        (">=", 2.4),
    ),
    Claim(
        "image and mask, 683 x 512",
        "input_pipeline-segmentation-one_core",
        "trainkit",
        PAIR,
        "ratio",
        " × the speed of torchvision's references",
        (">=", 4.7),
    ),
    Claim(
        "the same, crops decoded alone",
        "input_pipeline-segmentation-one_core",
        "trainkit, crops decoded alone by TurboJPEG",
        PAIR,
        "ratio",
        " × the speed of torchvision's references",
        (">=", 5.1),
    ),
    Claim(
        "image and mask, CamVid's size",
        "input_pipeline-segmentation-one_core",
        "trainkit",
        SMALL_PAIR,
        "ratio",
        " × the speed of torchvision's references",
        (">=", 3),
    ),
    Claim(
        "training crops against Pillow's",
        "input_pipeline-difference",
        "training crops against Pillow's of the same regions",
        "mean difference",
        "value",
        " grey levels",
        ("<=", 0.3),
    ),
    Claim(
        "segmentation masks to counts, one thread",
        "confusion_counts-one_thread",
        "torchmetrics",
        "segmentation masks to counts",
        "ratio",
        " × the speed of torchmetrics",
        (">=", 9),
    ),
    Claim(
        "logits (NCHW) to masks, one thread",
        "confusion_counts-one_thread",
        "torch, NCHW",
        "logits to segmentation masks",
        "ratio",
        " × the speed of torch's argmax",
        (">=", 7),
    ),
    Claim(
        "sliding window of 64 pixels, 64 windows per forward pass",
        "sliding_window-64",
        "windows of 64 pixels",
        "64 windows per forward pass",
        "ratio",
        " × one window at a time",
        (">=", 3),
    ),
    Claim(
        "sliding window of 160 pixels, 16 windows per forward pass",
        "sliding_window-160",
        "windows of 160 pixels",
        "16 windows per forward pass",
        "ratio",
        " × one window at a time",
        (">=", 1),
    ),
    Claim(
        "pause of a checkpoint, ResNet-50",
        "checkpoint",
        "foreground: written, flushed, hashed, renamed",
        "pause",
        "ratio",
        " × torch.save",
    ),
    Claim(
        "pause of a checkpoint with `--async-checkpoint`",
        "checkpoint",
        "--async-checkpoint",
        "pause",
        "ratio",
        " × torch.save",
    ),
    Claim(
        "peak memory of a tiny run",
        "memory-tiny_run",
        "trainkit",
        "peak",
        "ratio",
        " × bare PyTorch",
    ),
    Claim(
        "mIoU of a U-Net on CamVid in 20 minutes, seed 0",
        "camvid",
        "seed 0",
        "best mIoU",
        "value",
        "",
        (">=", 0.585),
    ),
    Claim(
        "the same, seed 1",
        "camvid",
        "seed 1",
        "best mIoU",
        "value",
        "",
        (">=", 0.585),
    ),
    Claim(
        "report of CamVid with 169 pictures in it, one file",
        "reports-runs",
        "CamVid, 101 validation images, 3 evaluations",
        "size",
        "value",
        " MB",
        ("<=", 5),
    ),
]


def claims() -> list[str]:
    """Lines of page one."""
    return [
        "| claim | figure | target | met | command | machine |",
        "|---|---|---|---|---|---|",
        *(claim.line() for claim in CLAIMS),
    ]


def recipes() -> list[str]:
    """Lines of a table of what the docstring of each recipe expects."""
    lines = ["| recipe | expected | hardware and time |", "|---|---|---|"]
    for file in sorted((ROOT / "recipes").glob("[!_]*.py")):
        paragraphs = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")
        facts = dict(
            paragraph.replace("\n", " ").split(": ", 1)
            for paragraph in paragraphs
            if ": " in paragraph
        )
        lines.append(f"| `{file.stem}` | {facts['Expected']} | {facts['Hardware and time']} |")
    return lines


def rendered(page: str) -> str:
    """A page with its tables as the results make them."""

    def block(match: re.Match) -> str:
        what = match[1]
        if what == "claims":
            lines = claims()
        elif what == "recipes":
            lines = recipes()
        else:
            lines = table(what.removeprefix("table: ").split(", "))
        return "\n".join([f"<!-- {what} -->", "", *lines]).rstrip("\n") + "\n\n<!-- end -->"

    return BLOCK.sub(block, page)


def pages() -> list[Path]:
    """Every page that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    differ = [page for page in pages() if rendered(page.read_text()) != page.read_text()]
    for page in differ:
        print(f"{page.relative_to(ROOT)} {'differs' if given.check else 'written'}")
        if not given.check:
            page.write_text(rendered(page.read_text()))
    return int(given.check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())

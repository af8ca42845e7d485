"""Every optimizer that can be built here, under FSDP on two processes.

Stopped, resumed, against a run without a stop.

    torchrun --nproc-per-node 2 benchmarks/sharded_resume.py [NAME ...]

Each is trained by `trainkit.train` three times: whole, without a checkpoint before its end; with
one after every second step, of which all but those of the first half are removed; and on from the
last that is left, by objects built anew. Bit-equal means weights, the optimizer's state and every
row of the log but its times.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
               "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
               "FSDP_MIN_NUM_PARAMS": "100"}  # fmt: skip

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _results import Results, add_option

from helpers.optimizers import Builder, builders
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit import Options, Recipe, train
from trainkit.distributed.accelerator import start_accelerator
from trainkit.schedules import constant
from trainkit.storage.checkpoint import list_checkpoints, load, step_of

STEPS, LEFT = 8, 4
TIMES = (
    "images_per_s", "images_per_s_per_device", "data_wait", "memory_gib", "seconds", "pause_s",
    "save_s", "bytes",
)  # fmt: skip


def recipe(build: Builder) -> Recipe:
    """Two epochs of four steps, the last of three images, with weights of every kind and a side
    that is not even."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 24), nn.Tanh(), nn.Dropout(0.2), nn.Linear(24, CLASSES),
    )  # fmt: skip
    val_data = Images(6, augment=False)
    return recognition(
        model=model, optimizer=build(model), epochs=2, val_data=val_data, schedule=constant()
    )


def rows(folder: Path) -> list[dict]:
    """Of steps and evaluations, without times."""
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in found
        if row["event"] != "save"
    ]


def differs(one: Path, other: Path) -> str | None:
    """The first that is not the same in two runs that have ended; None where nothing is."""
    (weights, state), (others, theirs) = (
        load(list_checkpoints(each / "checkpoints")[-1]) for each in (one, other)
    )
    for name, value in weights.items():
        if not torch.equal(value, others[name]):
            return f"weight {name}"
    if not _equal(state["optimizer"], theirs["optimizer"]):
        return "the optimizer's state"
    if not _equal(state["in_training"], theirs["in_training"]):
        return "weights in training"
    for mine, row in zip(rows(one), rows(other), strict=True):
        if mine != row:
            return f"the log's row of step {row['step']}"
    return None


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def resumed(accelerator: Accelerator, build: Builder) -> str:
    """What became of it: "bit-equal", why it was refused, or what differs."""
    (place,) = broadcast_object_list([tempfile.mkdtemp() if accelerator.is_main_process else None])
    whole, parts = Path(place) / "whole", Path(place) / "parts"
    options = {"seed": 5, "workers": 0, "log_every": 1, "keep_checkpoints": 9}
    shown = StringIO()
    try:
        with redirect_stdout(shown):
            train(recipe(build), Options(out=whole, checkpoint_every=STEPS, **options))
            train(recipe(build), Options(out=parts, checkpoint_every=2, **options))
            if accelerator.is_main_process:
                for path in list_checkpoints(parts / "checkpoints"):
                    if step_of(path) > LEFT:
                        shutil.rmtree(path)
                (parts / "summary.json").unlink()
            accelerator.wait_for_everyone()
            train(recipe(build), Options(out=parts, checkpoint_every=2, **options))
        difference = differs(whole, parts)
    except ValueError as error:
        return f"refused: {error}"
    finally:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(place)
    if accelerator.is_main_process and f"resuming from step-{LEFT:09d}" not in shown.getvalue():
        return "NOT RESUMED"
    return "bit-equal" if difference is None else f"DIFFERENT: {difference}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_option(parser)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    accelerator = start_accelerator()
    known, found = builders(), []
    for name in given.names or known:
        went = resumed(accelerator, known[name])
        found.append((name, went))
        if accelerator.is_main_process:
            print(name, went, sep=" | ", flush=True)
    if accelerator.is_main_process:
        counts = [
            sum(went.startswith(what) for _, went in found) for what in ("bit-equal", "refused")
        ]
        others = len(found) - sum(counts)
        line = (
            f"{len(found)} optimizers: {counts[0]} bit-equal, {counts[1]} refused, {others}"
            " otherwise"
        )
        print(line)
        results = Results("sharded_resume", "torch", "timm", "prodigyopt", "schedulefree")
        results.head["command"] = "torchrun --nproc-per-node 2 benchmarks/sharded_resume.py"
        for name, went in found:
            results.put(name, "under FSDP", "", went.partition(":")[0])
        results.write(given.results)
    sys.exit(any("DIFFERENT" in went or "NOT" in went for _, went in found))


if __name__ == "__main__":
    main()

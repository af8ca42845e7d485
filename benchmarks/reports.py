"""How large is a report, and how long does it take to write?

    python benchmarks/reports.py                                     # a long log and many images
    python benchmarks/reports.py CIFAR-10=runs/recog_cifar10 CamVid=runs/seg_camvid

Each report is written by `trainkit report` in a process of its own, start-up included, to another
file than the run's: wall-clock time, and the time of the processor, which other work on the machine
changes less. Without runs: of a run written here, with --rows of a log and --images of 100 classes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _results
import numpy as np

CLASSES = 100


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", help="a few words about the runs or the machine")
    _results.add_option(parser)
    return parser.parse_args()


def long_run(folder: Path, rows: int, images: int) -> Path:
    """A run with a long log and the rows of many images."""
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    recorded = {"settings": {"model": "resnet18"}, "seed": 0, "recipe": None, "total_steps": rows}
    (folder / "settings.json").write_text(json.dumps(recorded))
    draw = np.random.default_rng(0)
    losses = 3 * np.exp(-np.arange(rows) / rows) + draw.normal(0, 0.2, rows)
    with (folder / "log.jsonl").open("w") as log:
        for step, loss in enumerate(losses.tolist(), start=1):
            row = {"event": "step", "step": step, "epoch": step / 1000, "loss": loss, "lr": 0.1}
            row |= {"grad_norm": loss / 2, "images_per_s": 1000.0, "data_wait": 0.01}
            log.write(json.dumps(row) + "\n")
        row = {"event": "evaluate", "step": rows, "epoch": rows / 1000, "top1": 0.5}
        log.write(json.dumps({**row, "best": 0.5, "best_step": rows, "num_images": images}) + "\n")
    target, wrong = np.arange(images) % CLASSES, draw.random(images) < 0.5
    arrays = {
        "ids": np.arange(images),
        "target": target,
        "predicted": np.where(wrong, draw.integers(0, CLASSES, images), target),
        "top5_hit": draw.random(images) < 0.8,
        "probability": draw.uniform(0.01, 1, images).astype(np.float32),
        "loss": draw.exponential(1, images).astype(np.float32),
    }
    (folder / "evaluations").mkdir()
    stem = folder / f"evaluations/step-{rows:09d}"
    np.savez(stem.with_suffix(".npz"), **arrays)
    about = {"step": rows, "task": "recognition", "split": "val", "protocol": None}
    about |= {"weights": "raw", "num_images": images, "headline": "top1", "classes": None}
    stem.with_suffix(".json").write_text(json.dumps({**about, "palette": None, "ignore": None}))
    return folder


def written(run: Path, out: Path) -> tuple[float, float]:
    """Seconds that a report takes, of the clock and of the processor."""
    words = [sys.executable, "-m", "trainkit", "report", str(run), "--out", str(out)]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=_results.ROOT)
    seconds = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Write each report again and again, in turn."""
    asked = arguments()
    name = "reports-runs" if asked.runs else "reports"
    results = _results.Results(name, "torch", "pillow", rounds=asked.rounds, note=asked.note)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.html"
        runs = {
            name: Path(run).resolve() for name, run in (each.split("=", 1) for each in asked.runs)
        }
        if not runs:
            name = f"{asked.rows:,} rows of a log, {asked.images:,} images of {CLASSES} classes"
            runs = {name: long_run(Path(folder) / "run", asked.rows, asked.images)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        sizes = {}
        for _ in range(asked.rounds):
            for name, run in runs.items():
                times[name].append(written(run, out))
                sizes[name] = out.stat().st_size
        for name, found in times.items():
            results.put(name, "size", "MB", sizes[name] / 1e6)
            results.add(name, "time to write it", "s", [clock for clock, _ in found])
            results.add(name, "time of the processor", "s", [processor for _, processor in found])
    results.write(asked.results)


if __name__ == "__main__":
    main()

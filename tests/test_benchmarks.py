"""Every benchmark runs, at a tiny size. What it measures is not looked at: the suite times nothing."""

import sys

import pytest

from helpers.processes import ROOT, run

SMALL = {
    "activations": (
        "--networks",
        "mobilenet_v3_small",
        "--images",
        "2",
        "--out",
        "activations.json",
    ),
    "checkpoint": ("--rounds", "1", "--small"),
    "fuzz_images": ("--files", "104"),
    "gpu": (
        "resnet50",
        "--loops",
        "trainkit",
        "--rounds",
        "1",
        "--steps",
        "3",
        "--batch",
        "2",
        "--size",
        "32",
    ),
    "images": (
        "--images",
        "16",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--cases",
        "train",
        "segment-jpeg",
    ),
    "memory": ("--size", "64", "--rounds", "1", "--way", "loss, bfloat16: trainkit"),
    "metrics": ("--size", "32", "--classes", "5", "--rounds", "1"),
    "optimizers": ("torch.optim.AdamW",),
    "scale": ("--images", "3", "--gb", "0.001", "--rounds", "1", "--steps", "10"),
    "start": ("--rounds", "1"),
    "step": ("--loops", "bare", "trainkit_held", "--rounds", "1", "--steps", "8", "--batch", "4"),
    "survive": ("--kills", "1", "--lanes", "1", "--settings", "recognition-1-ddp"),
    "tiny": ("trainkit",),
    "windows": ("--images", "1", "--rounds", "1", "--batches", "1", "4", "--window", "32"),
}


def test_all_have_a_tiny_size():
    programs = [
        file for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()
    ]
    elsewhere = {
        "sharded_optimizers",
        "sharded_resume",
    }  # on two processes, by test_fsdp_optimizers.py
    elsewhere.add("tables")  # measures nothing; test_docs.py
    assert set(SMALL) | elsewhere == {file.stem for file in programs} and len(programs) >= 6


@pytest.mark.parametrize("name", SMALL)
def test_runs(name, tmp_path):
    path = f"{ROOT}"  # trainkit as it stands here, whatever is installed
    printed = run(
        sys.executable,
        ROOT / "benchmarks" / f"{name}.py",
        *SMALL[name],
        cwd=tmp_path,
        PYTHONPATH=path,
    )
    assert any(letter.isdigit() for letter in printed.stdout), printed.stdout

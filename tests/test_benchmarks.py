"""Every benchmark runs, at a tiny size, and records a file; the suite does not read the times."""

import json
import shlex
import sys

import pytest

from helpers.processes import ROOT, run

SMALL = {
    "activation_checkpointing": "--networks mobilenet_v3_small --images 2",
    "all_networks": "--only hf:resnet --no-onnx",
    "checkpoint": "--rounds 1 --small",
    "compare_commits": "--before . --works mlp --loops trainkit_held --seconds 1 --batch 4",
    "confusion_counts": "--size 32 --classes 5 --rounds 1",
    "crash_recovery": "--kills 1 --parallel 1 --settings recognition-1-ddp",
    "damaged_images": "--files 104",
    "gpu": "resnet50 --loops trainkit --rounds 1 --steps 3 --batch 2 --size 32",
    "index_reads": "--images 1000 --workers 0 2 --rounds 1",
    "input_pipeline": "--images 16 --batch 4 --rounds 1 --cases train segment-jpeg",
    "memory": "--size 32 --rounds 1 --only loss,~bfloat16:~trainkit",
    "optimizers": "torch.optim.AdamW",
    "scaling": "--images 3 --gb 0.001 --rounds 1 --steps 10",
    "reports": "--rows 200 --images 50 --rounds 1",
    "sharded_checkpoint": "--mib 2 --rounds 1 --processes 2",
    "sliding_window": "--images 1 --rounds 1 --batches 1 4 --window 32",
    "startup": "--rounds 1",
    "step_lines": "--steps 600",
    "step_overhead": "--work mlp --loops bare trainkit_held --seconds 1 --batch 4",
}


def test_all_have_a_tiny_size():
    programs = {
        file.stem
        for file in (ROOT / "benchmarks").glob("[!_]*.py")
        if "__main__" in file.read_text()
    }
    elsewhere = {"sharded_optimizers", "sharded_resume"}  # two processes: test_fsdp_optimizers.py
    elsewhere |= {"tables"}  # measures nothing: test_docs.py
    elsewhere |= {"trackers"}  # needs four packages that most do without
    elsewhere |= {"camvid"}  # needs its images and a package with weights
    assert set(SMALL) | elsewhere == programs and len(programs) >= 6


@pytest.mark.nightly
def test_reading_is_compared(tmp_path):
    """Every part, beside itself."""
    program, results = ROOT / "benchmarks" / "compare_commits.py", tmp_path / "results"
    words = ("--before", str(ROOT), "--reads", "segment-png", "--seconds", "2")
    run(sys.executable, str(program), *words, "--results", str(results))
    recorded = json.loads((results / "compare_commits-reading.json").read_text())
    rows = {each["row"].rpartition(", ")[2] for each in recorded["measurements"]}
    assert rows == {"decoded", "decoded anew", "training batches"}
    assert len(recorded["measurements"]) == 3 * len(rows)


# interpreters of their own, again and again, or what takes over ten seconds at its tiniest
LONG = {"compare_commits", "confusion_counts", "crash_recovery", "gpu", "input_pipeline", "memory"}
LONG |= {"scaling", "startup", "step_overhead", "checkpoint", "damaged_images", "optimizers"}
LONG |= {"step_lines", "activation_checkpointing", "all_networks", "index_reads", "sliding_window"}
LONG |= {"sharded_checkpoint"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly) if name in LONG else name for name in SMALL],
)
def test_runs(name, tmp_path):
    program = ROOT / "benchmarks" / f"{name}.py"
    results = tmp_path / "results"
    words = [word.replace("~", " ") for word in SMALL[name].split()]
    words += ["--results", str(results)]
    run(sys.executable, program, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    files = sorted(results.glob("*.json"))
    assert files and all(file.stem.partition("-")[0] == name for file in files)
    for file in files:
        recorded = json.loads(file.read_text())
        assert shlex.split(recorded["command"])[1:] == [f"benchmarks/{name}.py", *words[:-2]]
        assert recorded["machine"]["cores"] >= 1 and recorded["versions"]["torch"]
        assert recorded["source"].startswith("measured ") and recorded["measurements"]
        for each in recorded["measurements"]:
            assert "value" in each or 0 <= each["min"] <= each["median"] <= each["max"], each

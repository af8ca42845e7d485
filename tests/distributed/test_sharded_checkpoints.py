"""Sharded checkpoints under FSDP2, on real gloo processes: written by all, read as one by anybody,
whole or absent wherever a process is killed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import trainkit
from helpers.cases import at_night
from helpers.logs import assert_bit_equal, rows
from helpers.processes import FSDP, TESTS, TOYS, Script, torchrun
from helpers.reading_parts import LARGE, write
from helpers.toy_recipes import recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.errors import UserError
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint import list_checkpoints, load, verify
from trainkit.storage.lookup import find_weights

SHARDED = {**FSDP, "TOY_FORMAT": "sharded"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run with AdamW, batch norm, averaged weights and mixup: whole and sharded checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    torchrun(2, TOYS, folder / "full", "all", **FSDP)
    torchrun(2, TOYS, folder / "sharded", "all", **SHARDED)
    return folder


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def unfinished(run: Path, to: Path) -> Path:
    """A copy of a run without its summary and its newest checkpoint."""
    shutil.copytree(run, to, symlinks=True)
    (to / "summary.json").unlink()
    shutil.rmtree(newest(to))
    return to


def same(one, other) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_it_holds_what_a_whole_one_holds(trained):
    """Weights, optimizer, averages, counters, unlogged steps; seconds are those of each run."""
    assert_bit_equal(trained / "full" / "all", trained / "sharded" / "all")
    full, sharded = (load(newest(trained / each / "all")) for each in ("full", "sharded"))
    for each in (full, sharded):
        each[1]["progress"] |= {"seconds": 0, "train_seconds": 0}
    assert same(full[1], sharded[1]) and full[0].keys() == sharded[0].keys()


def test_each_process_writes_its_rows(trained):
    """Rows as torch.chunk gives them; what all have alike is written once."""
    path = newest(trained / "sharded" / "all")
    manifest = json.loads((path / "manifest.json").read_text())
    names = {
        f"{kind}-rank-0000{rank}-of-00002.safetensors"
        for kind in ("model", "state")
        for rank in (1, 2)
    }
    assert manifest["shards"] == 2 and manifest["format"] == 3
    assert manifest["files"].keys() == names | {"state.json", "model.json"}
    assert {each.name for each in path.iterdir()} == {*manifest["files"], "manifest.json"}
    one, two = (load_file(path / f"model-rank-0000{rank}-of-00002.safetensors") for rank in (1, 2))
    whole = load_file(newest(trained / "full" / "all") / "model.safetensors")
    assert one.keys() == whole.keys() > two.keys()
    assert {name.rpartition(".")[2] for name in two} == {"weight", "bias"}
    for name in two:
        assert all(map(torch.equal, (one[name], two[name]), whole[name].chunk(2)))


@pytest.mark.parametrize("background", at_night(False, True, day=(True,)))
def test_killed_and_resumed_bit_for_bit(tmp_path, trained, background):
    extra = {"TOY_ASYNC": "1"} if background else {}
    torchrun(2, TOYS, tmp_path, "all", **SHARDED, **extra, TOY_READS="70", code=None)
    assert not (tmp_path / "all" / "summary.json").exists()
    printed = torchrun(2, TOYS, tmp_path, "all", **SHARDED, **extra).stdout
    assert "resuming from step-" in printed
    assert_bit_equal(trained / "sharded" / "all", tmp_path / "all")
    assert all(verify(path) is None for path in list_checkpoints(tmp_path / "all" / "checkpoints"))
    assert not list((tmp_path / "all" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    "processes, env",
    [
        pytest.param(1, {}, id="one"),
        pytest.param(2, FSDP, id="whole again", marks=pytest.mark.nightly),
        pytest.param(3, SHARDED, id="three", marks=pytest.mark.nightly),
    ],
)
def test_resumed_otherwise(tmp_path, trained, processes, env):
    """By one process without FSDP, in the other format, by three: as from a whole checkpoint."""
    for before in ("full", "sharded"):
        run = unfinished(trained / before / "all", tmp_path / before / "all")
        printed = torchrun(processes, TOYS, tmp_path / before, "all", **env).stdout
        assert "resuming from step-000000010" in printed
        shards = json.loads((newest(run) / "manifest.json").read_text()).get("shards")
        assert shards == (3 if processes == 3 else None)
    assert_bit_equal(tmp_path / "full" / "all", tmp_path / "sharded" / "all")
    if processes == 2:
        assert_bit_equal(trained / "full" / "all", run)


def test_a_run_of_whole_ones_changes_over(tmp_path, trained):
    run = unfinished(trained / "full" / "all", tmp_path / "all")
    torchrun(2, TOYS, tmp_path, "all", **SHARDED)
    assert_bit_equal(trained / "full" / "all", run)
    assert (newest(run) / "state-rank-00002-of-00002.safetensors").is_file()


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "older"])
def test_damage_in_one_part_passes_the_whole_over(tmp_path, trained, damage):
    run = shutil.copytree(trained / "sharded" / "all", tmp_path / "all", symlinks=True)
    (run / "summary.json").unlink()
    before, last = list_checkpoints(run / "checkpoints")[-2:]
    file = last / "state-rank-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    if damage == "missing":
        file.unlink()
    elif damage == "older":  # a part of the checkpoint before, whole in itself
        shutil.copy(before / file.name, file)
    else:
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    assert file.name in verify(last)
    with pytest.raises(UserError, match=f"{last.name} is damaged: {file.name}"):
        load(last)
    if damage == "flip":
        printed = torchrun(2, TOYS, tmp_path, "all", **SHARDED).stdout
        assert f"checkpoint {last.name} is damaged and skipped: {file.name}" in printed
        assert f"resuming from {before.name}" in printed
        assert_bit_equal(trained / "sharded" / "all", run)


def test_a_manifest_that_names_too_few_files_is_damage(tmp_path, trained):
    path = shutil.copytree(newest(trained / "sharded" / "all"), tmp_path / "step-000000012")
    right = json.loads((path / "manifest.json").read_text())
    for shards in (1, 3, 10**9, 0, "2", None, 2.0):
        (path / "manifest.json").write_text(json.dumps({**right, "shards": shards}))
        assert "manifest.json is damaged: " in verify(path), shards
    (path / "manifest.json").write_text(json.dumps({**right, "format": 4}))
    assert "of format 4, of a newer trainkit" in verify(path)


def test_one_process_whose_disk_is_full_stops_all(tmp_path, trained):
    """The second process cannot write its part: its words are shown once, and what was there
    stays."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, resource, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import run
from trainkit.storage import checkpoint_writer

written = checkpoint_writer.CheckpointWriter.save

def save(self, step, *arguments):
    self.wait()
    if step == 8 and os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    written(self, step, *arguments)

checkpoint_writer.CheckpointWriter.save = save
try: run("all", Path(sys.argv[1]), checkpoint_format="sharded")
except OSError as error: print(f"CAUGHT {{error}}")
""")
    done = torchrun(2, script, tmp_path / "run", **FSDP, code=None)
    message = "step-000000008 could not be written: process 1: "
    assert done.stdout.count(message) == 1 and "File too large" in done.stdout, done.stdout
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[-1] == "step-000000006" and not kept[0].startswith(".")
    shutil.copytree(tmp_path / "run", tmp_path / "all", symlinks=True)
    torchrun(2, TOYS, tmp_path, "all", **SHARDED)
    assert_bit_equal(trained / "sharded" / "all", tmp_path / "all")


def test_without_fsdp_it_is_refused(tmp_path):
    options = Options(out=tmp_path / "run", workers=0, checkpoint_format="sharded")
    with pytest.raises(UserError, match="checkpoint_format is sharded, and without FSDP each"):
        train(recognition(), options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_each_process_reads_its_rows(tmp_path, processes):
    """Of parts of four: the rows that torch cuts for it, and no more than them is in its memory."""
    write(tmp_path)
    script = TESTS / "helpers" / "reading_parts.py"
    printed = torchrun(processes, script, tmp_path).stdout
    taken = [int(line.split()[0]) for line in printed.splitlines() if line.endswith("MiB")]
    # what is mapped from the files, and a copy
    assert len(taken) == processes and max(taken) < 2.5 * LARGE / processes, printed


@pytest.mark.parametrize("turns", [1, 2, 3, 9])
def test_processes_hash_the_files_between_them(tmp_path, trained, turns):
    """Each file in one of the shares: damage of any is found by one process, and by no other."""
    path = shutil.copytree(newest(trained / "sharded" / "all"), tmp_path / "step-000000012")
    assert [verify(path, turn, turns) for turn in range(turns)] == [None] * turns
    sizes = {
        name: (path / name).stat().st_size
        for name in json.loads((path / "manifest.json").read_text())["files"]
    }
    loads = [0] * turns
    for name, size in sizes.items():
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = [verify(path, turn, turns) for turn in range(turns)]
        (finder,) = (turn for turn, fault in enumerate(found) if fault is not None)
        assert name in found[finder]
        loads[finder] += size
        (path / name).write_bytes(data)
    assert max(loads) <= max(*sizes.values(), 2 * sum(sizes.values()) / turns)


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit.models.recognition import classifier
from trainkit.recipe import Recipe


def recipe(lr: float = 0.05) -> Recipe:
    network = classifier("small", CLASSES)
    val_data = Images(13, augment=False)
    val_data.transform = None
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    return recognition(
        model=network, optimizer=optimizer, val_data=val_data, epochs=1, mix=None, ema={ema}
    )
"""


def shard_by_hand(path: Path, count: int) -> None:
    """Cut a whole checkpoint into parts as the documentation says, by other means than trainkit's.

    Every tensor that has rows is cut by torch.chunk, so that later processes may hold nothing.
    """
    manifest = json.loads((path / "manifest.json").read_text())
    for kind in ("model", "state"):
        parts = [{} for _ in range(count)]
        for name, value in load_file(path / f"{kind}.safetensors").items():
            rows = value.chunk(count) if value.ndim else [value]
            for part, some in zip(parts, rows):
                part[name] = some.contiguous()
        (path / f"{kind}.safetensors").unlink()
        del manifest["files"][f"{kind}.safetensors"]
        for rank, part in enumerate(parts, 1):
            file = path / f"{kind}-rank-{rank:05d}-of-{count:05d}.safetensors"
            save_file(part, file)
            manifest["files"][file.name] = checkpoint._described(file)
    manifest |= {"format": 3, "shards": count}
    (path / "manifest.json").write_text(json.dumps(manifest))


COMMANDS = {
    "export": "--out {out}/weights.safetensors",
    "push": "me/mine --folder {out}/pushed",
    "evaluate": "--workers 0 --no-report --no-pictures --out {out}",
    "predict": "{image} --out {out}/predictions --workers 0",
    "average": "--last 2 --keep --workers 0 --precise-bn 16 --out {out}/average",
}


def read_by_commands(run: Path, image: Path, out: Path, commands: list[str]) -> dict:
    """What commands, and `trainkit.load`, make of a run: tensors, predictions and results."""
    out.mkdir()
    for command in commands:
        words = COMMANDS[command].format(out=out, image=image).split()
        assert main([command, str(run), *words]) == 0, command
    found: dict = {"loaded": trainkit.load(run)[0](torch.ones(1, 3, 12, 12)).tolist()}
    for file in sorted(out.rglob("*.safetensors")):
        tensors = load_file(file).items()
        found[str(file.relative_to(out))] = {n: (v.dtype, v.numpy().tobytes()) for n, v in tensors}
    if "evaluate" in commands:
        results = json.loads((out / "results.json").read_text())
        found |= {name: value for name, value in results.items() if name != "sha256"}
    if "predict" in commands:
        found["rows"] = (out / "predictions" / "predictions.csv").read_text()
    return found


@pytest.mark.parametrize(
    "ema, commands",
    [
        (0.5, ["export", "push"]),
        pytest.param(0.5, list(COMMANDS), marks=pytest.mark.nightly),
        pytest.param(None, list(COMMANDS), marks=pytest.mark.nightly),
    ],
)
def test_commands_read_it_as_one(tmp_path, ema, commands):
    """As they read the whole one that it was cut from."""
    recipe, image, run = tmp_path / "mine.py", tmp_path / "image.png", tmp_path / "run"
    recipe.write_text(RECIPE.format(tests=str(TESTS), ema=ema))
    Image.effect_noise((12, 12), 90).convert("RGB").save(image)
    words = "--workers 0 --checkpoint-every 2 --keep-checkpoints 9 --no-report --no-pictures"
    assert main([str(recipe), "--out", str(run), *words.split()]) == 0
    whole = read_by_commands(run, image, tmp_path / "whole", commands)
    for path in list_checkpoints(run / "checkpoints"):
        shard_by_hand(path, 3)
        assert verify(path) is None
    assert read_by_commands(run, image, tmp_path / "parts", commands) == whole
    part = newest(run) / "model-rank-00002-of-00003.safetensors"
    with pytest.raises(UserError, match="is one process's part of a sharded checkpoint: give its"):
        trainkit.load(part)


ADAPTED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.lora_recipes import run

if __name__ == "__main__":
    run(Path(sys.argv[1]), epochs=1, checkpoint_format=sys.argv[2])
"""


@pytest.mark.nightly
def test_adapters_are_gathered_for_other_programs(tmp_path):
    """peft's file holds whole matrices, in either format."""
    script = tmp_path / "adapted.py"
    script.write_text(ADAPTED.format(tests=str(TESTS)))
    for name in ("full", "sharded"):
        torchrun(2, script, tmp_path / name, name, **FSDP)
    full, sharded = (
        load_file(newest(tmp_path / name) / "adapter_model.safetensors")
        for name in ("full", "sharded")
    )
    assert len(full) > 10 and full.keys() == sharded.keys()
    assert all(torch.equal(value, sharded[name]) for name, value in full.items())


def test_best_and_last_name_it(trained):
    """There is no one file that a link could lead to."""
    run = trained / "sharded" / "all"
    row = rows(run, "evaluate")[-1]
    for name, step in (("best", row["best_step"]), ("last", row["step"])):
        said = json.loads((run / f"{name}.safetensors").read_text())
        assert said["checkpoint"] == f"checkpoints/step-{step:09d}" and said["weights"] == "ema"
        assert find_weights(run / f"{name}.safetensors")[0].name == f"step-{step:09d}"


def deaths(folder: Path, every: int) -> list[str]:
    script = Script(TESTS / "helpers" / "sharded_crash_points.py", folder, every)
    printed = script.communicate()[0].splitlines()
    assert script.returncode == 0, printed
    return printed


def test_death_before_some_operations_of_either_process(tmp_path):
    printed = deaths(tmp_path, 8)
    assert {line[0] for line in printed} == {"0", "1"}
    assert printed[0].endswith("[1, 2]") and any(line.endswith("[2, 3]") for line in printed)


@pytest.mark.nightly
def test_death_before_every_operation_of_either_process(tmp_path):
    """Every checkpoint is whole or absent, and the next save cleans up."""
    printed = deaths(tmp_path, 1)
    assert len(printed) > 45
    for operation in (
        "0 os.mkdir", "0 half of save_file model-rank-00001", "0 open manifest.json", "0 fsync",
        "0 os.rename .writing", "0 os.remove", "1 save_file model-rank-00002",
        "1 half of save_file state-rank-00002", "1 fsync",
    ):  # fmt: skip
        assert any(line.startswith(operation) for line in printed), operation

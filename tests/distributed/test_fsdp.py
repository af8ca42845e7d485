"""FSDP2 on two gloo processes, by the code that GPUs run.

The same training, and checkpoints that fit everywhere.
"""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.logs import (
    assert_bit_equal,
    assert_same_results,
    assert_same_training,
    rows,
    without_intervals,
)
from helpers.processes import FSDP, ROOT, TESTS, TOYS, forked_script, torchrun
from helpers.processes import run as run_command
from helpers.toy_recipes import everything, run
from trainkit import evaluate
from trainkit.distributed.fsdp import Sharding, prepare
from trainkit.distributed.weight_use import weight_use
from trainkit.storage.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same runs sharded, sharded as ZeRO's stage 2, and with DDP."""
    folder = tmp_path_factory.mktemp("trained")
    torchrun(2, TOYS, folder / "fsdp", "recognition-3", "segmentation-3", "all", **FSDP)
    torchrun(2, TOYS, folder / "zero2", "all", **FSDP, FSDP_RESHARD_AFTER_FORWARD="false")
    torchrun(2, TOYS, folder / "ddp", "all")
    return folder


@pytest.mark.parametrize("name", ["recognition-3", "segmentation-3"])
def test_it_is_the_training_of_one_process(tmp_path, trained, name):
    run(name, tmp_path / name)
    assert_same_training(tmp_path / name, trained / "fsdp" / name)
    norms = [row["grad_norm"] for row in rows(tmp_path / name)]
    assert [row["grad_norm"] for row in rows(trained / "fsdp" / name)] == pytest.approx(
        norms, rel=1e-5
    )


def test_it_is_the_training_of_ddp(trained):
    """With AdamW, batch norm, dropout, mixup and averaged weights, each evaluated.

    Keys and shapes are the same.
    """
    assert_same_training(trained / "ddp" / "all", trained / "fsdp" / "all")
    files = ("model.safetensors", "state.safetensors")
    for file in files:
        mine, theirs = (
            load_file(list_checkpoints(trained / each / "all" / "checkpoints")[-1] / file)
            for each in ("fsdp", "ddp")
        )
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)


def test_what_is_kept_from_forward_to_backward_changes_nothing(trained):
    """Not even in the evaluation of averaged weights, which are put in place of others that were
    gathered before."""
    assert_bit_equal(trained / "fsdp" / "all", trained / "zero2" / "all")


def test_killed_and_gone_on_with(tmp_path, trained):
    torchrun(2, TOYS, tmp_path, "all", **FSDP, TOY_READS="70", code=None)
    assert not (tmp_path / "all" / "summary.json").exists() and list_checkpoints(
        tmp_path / "all" / "checkpoints"
    )
    assert "resuming from step-" in torchrun(2, TOYS, tmp_path, "all", **FSDP).stdout
    assert_bit_equal(trained / "fsdp" / "all", tmp_path / "all")


@pytest.mark.parametrize("before, after", [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_a_run_may_change_over(tmp_path, trained, before, after):
    shutil.copytree(trained / before / "all", tmp_path / "all")
    (tmp_path / "all" / "summary.json").unlink()
    newest = list_checkpoints(tmp_path / "all" / "checkpoints")[-1]
    shutil.rmtree(newest)
    assert (
        "resuming from step-"
        in torchrun(2, TOYS, tmp_path, "all", **(FSDP if after == "fsdp" else {})).stdout
    )
    assert_same_training(trained / after / "all", tmp_path / "all")


def test_a_checkpoint_is_measured_without_it(trained):
    folder = trained / "fsdp" / "all"
    final = json.loads((folder / "summary.json").read_text())["final"]
    found = evaluate(everything(), list_checkpoints(folder / "checkpoints")[-1], workers=0)
    assert_same_results(without_intervals(found), final)


def test_an_image_that_one_process_cannot_show_keeps_none_waiting(tmp_path):
    """All gather the parameters for its mask, so that the training ends, and says why."""
    (tmp_path / "script.py").write_text(f"""
import os, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import Maps, segmentation
from trainkit import Options, train

class Once(Maps):
    given = set()
    def __getitem__(self, index):
        if os.environ["RANK"] == "1" and index in self.given:
            raise OSError(f"{{index}} was read before")
        self.given.add(index)
        return super().__getitem__(index)

recipe = segmentation(epochs=0.3, val_data=Once(13, augment=False))
train(recipe, Options(out=Path(sys.argv[1]), workers=0, report=False))
""")
    done = torchrun(2, tmp_path / "script.py", tmp_path / "run", **FSDP, code=None)
    assert done.returncode != 0 and "was read before" in done.stdout + done.stderr
    assert list_checkpoints(tmp_path / "run" / "checkpoints")


def test_each_process_holds_its_part(tmp_path):
    """Of weights, gradients' averages and the optimizer's state; and what cannot be is refused."""
    script = f"""
import os, sys; sys.path.insert(0, {str(TESTS)!r})
import torch
from helpers.toy_recipes import everything
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.task_module import TaskModule
from trainkit.distributed.fsdp import is_sharded, prepare
from trainkit.distributed.sharded_tensors import local
accelerator = start_accelerator()
recipe = everything()
task_module = prepare(accelerator, TaskModule(recipe.model, recipe.task), recipe.optimizer)
task_module(torch.zeros(2, 3, 12, 12), torch.zeros(2, dtype=torch.long)).sum().backward()
recipe.optimizer.step()
weights = list(recipe.model.parameters())
held = sum(local(weight).numel() for weight in weights)
states = recipe.optimizer.state.values()
states = [value for state in states for value in state.values() if value.ndim]
assert is_sharded(task_module) and len(states) == 2 * len(weights)
total = sum(weight.numel() for weight in weights)
kept = sum(local(state).numel() for state in states)
print(f"HELD {{held}} {{total}} {{kept}}\\n", end="")  # in one piece, as two processes write
model = everything().model.to(memory_format=torch.channels_last)
try: prepare(accelerator, TaskModule(model, recipe.task))
except ValueError as error: print(error)
model = everything().model
model.scale = torch.nn.Parameter(torch.tensor(1.0))
try: prepare(accelerator, TaskModule(model, recipe.task))
except ValueError as error: print(error)
"""
    (tmp_path / "script.py").write_text(script)
    printed = torchrun(2, tmp_path / "script.py", **FSDP).stdout
    held = [
        list(map(int, line.split()[1:])) for line in printed.splitlines() if line.startswith("HELD")
    ]
    assert len(held) == 2 and held[0][0] + held[1][0] == held[0][1]
    assert all(mine < 0.6 * total and states == 2 * mine for mine, total, states in held)
    assert "channels_last and FSDP do not go together" in printed
    assert "parameters without a dimension (model.scale): hold each as a tensor" in printed


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"FSDP_VERSION": "1"}, "FSDP_VERSION is 1: .*set fsdp_version: 2"),
        (
            {"FSDP_OFFLOAD_PARAMS": "true"},
            "FSDP_OFFLOAD_PARAMS is true: .*leave fsdp_offload_params out",
        ),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "give trainkit --activation-checkpointing"),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, "without a class: name the blocks"),
        ({}, "there is one: take accelerate_configs/gpu.yaml"),
    ],
)
def test_what_is_refused(monkeypatch, changed, message):
    from accelerate import Accelerator

    for name, value in {**FSDP, **changed}.items():
        monkeypatch.setenv(name, value)
    accelerator = Accelerator.__new__(Accelerator) if changed else None
    if accelerator is None:
        from trainkit.distributed.accelerator import start_accelerator

        accelerator = start_accelerator()
    with pytest.raises(ValueError, match=message):
        prepare(accelerator, nn.Linear(2, 2))


def test_modules_that_are_gathered_on_their_own():
    """By size, inner ones first and counted once; by the names of their classes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(4, 2)  # 10 weights
            # 20 + 30
            self.blocks = nn.ModuleList(
                [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)) for _ in range(2)]
            )

        def forward(self, x):
            return self.stem(x) + sum(block(x)[:, :2] for block in self.blocks)

    net = Net()
    use = weight_use(net, lambda: net(torch.ones(2, 4)))
    (one, two), (three, four) = net.blocks
    assert Sharding(least=25).units(net, use) == [four, two]  # what is left of each block is 20
    assert Sharding(least=20).units(net, use) == [four, three, two, one]
    assert Sharding(least=50).units(net, use) == [net.blocks[1], net.blocks[0]]
    assert Sharding(least=100).units(net, use) == Sharding().units(net, use) == []
    assert Sharding(least=20).units(net) == []
    assert Sharding(classes=frozenset({"Sequential"})).units(net) == [net.blocks[1], net.blocks[0]]


def test_modules_whose_weights_are_used_outside_of_their_calls():
    """They are the next module's around them: an iterated chain's, a layer's whose weight is read.

    Those that the pass does not reach are nobody's; to ask for a weight's type is no use.
    """

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.asked = nn.Linear(4, 4)

        def forward(self, x):
            x = torch.nn.functional.linear(x.to(self.asked.weight.dtype), self.inner.weight)
            return self.asked(x)

    class Given(nn.Linear):
        def forward(self):
            return self.weight[0]  # its memory, which is used later

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), Read())
            self.extra = nn.Linear(4, 4)
            self.given = Given(4, 4)
            self.converted = nn.Linear(4, 4)
            self.dropout = nn.Dropout()
            self.register_buffer("expanded", torch.ones(1).expand(4))
            self.register_buffer("replaced", torch.ones(1))

        def forward(self, x):
            for each in self.chain:
                x = each(self.dropout(x))
            self.replaced = self.replaced + 1
            converted = self.converted.weight.type(torch.float64)
            return self.converted(x + self.given()) + converted.sum() + self.expanded

    net = Net().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    use = weight_use(net, lambda: net(torch.ones(1, 4)))
    read = net.chain[2]
    # the read module has the weights of `inner`, and the whole network those of the chain
    assert Sharding(least=10).units(net, use) == [read.asked, read]
    assert Sharding(least=8).units(net, use) == [read.asked, read, net.chain[1], net.chain[0]]
    assert Sharding(least=100).units(net, use) == []
    assert torch.equal(state, torch.get_rng_state()) and not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


UNITS = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from torch.distributed.fsdp import FSDPModule
from helpers.network_recipes import with_layers
from trainkit import Options, evaluate, train
from trainkit.data.seeding import seed_host

seed_host(0)
recipe = with_layers()
train(recipe, Options(out=Path(sys.argv[1]), workers=0))
print("TRAINED", sum(isinstance(module, FSDPModule) for module in recipe.model))
recipe = with_layers()
evaluate(recipe, Path(sys.argv[1]))
print("EVALUATED", sum(isinstance(module, FSDPModule) for module in recipe.model))
"""


def test_what_is_gathered_on_its_own_in_a_training_and_an_evaluation(tmp_path):
    """Four linear layers, each of more than a hundred weights."""
    script = tmp_path / "script.py"
    script.write_text(UNITS.format(tests=str(TESTS)))
    printed = torchrun(2, script, tmp_path / "run", **FSDP).stdout
    assert "TRAINED 4" in printed and "EVALUATED 4" in printed, printed
    assert "gathered at once" not in printed


def test_modules_that_two_hold_are_counted_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(4, 4)
            self.one, self.two = nn.Sequential(shared), nn.Sequential(shared, nn.Linear(4, 5))

        def forward(self, x):
            return self.two(self.one(x))

    net = Net()
    use = weight_use(net, lambda: net(torch.ones(2, 4)))
    assert Sharding(least=20).units(net, use) == [net.two[1], net.two[0]]
    assert Sharding(least=21).units(net, use) == [net.two[1]]


@pytest.mark.nightly
def test_the_config_starts_it(tmp_path):
    words = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "accelerate_configs" / "fsdp2.yaml"),
    ]
    words += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    script = tmp_path / "script.py"
    script.write_text(
        "from trainkit.distributed.fsdp import Sharding\nprint('ASKED', Sharding.asked())\n"
    )
    printed = run_command(sys.executable, *words, str(script)).stdout
    assert (
        printed.count(
            "ASKED Sharding(reshard_after_forward=True, least=1000000, classes=frozenset())"
        )
        == 2
    )


WITH_OPTIMIZER = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from helpers.toy_recipes import recognition
from trainkit import Options, train
from trainkit.data.seeding import seed_host


def trained(folder, name):
    seed_host(5)
    recipe = recognition()
    optimizer = getattr(torch.optim, name)(recipe.model.parameters(), lr=0.05)
    recipe = recognition(model=recipe.model, optimizer=optimizer, clip_norm=0.5, ema=0.9)
    train(recipe, Options(out=Path(folder), seed=5, workers=0, log_every=1, keep_checkpoints=9))


if __name__ == "__main__":
    try:
        trained(*sys.argv[1:])
    except ValueError as error:
        print(error)
"""


@pytest.mark.nightly
def test_state_that_was_made_with_the_optimizer(tmp_path):
    """Adagrad's sums, which are there before anything is sharded.

    As in one process, and resumed bit for bit.
    """
    script = tmp_path / "with_optimizer.py"
    script.write_text(WITH_OPTIMIZER.format(tests=str(TESTS)))
    forked_script(script, tmp_path / "one", "Adagrad")
    torchrun(2, script, tmp_path / "fsdp", "Adagrad", **FSDP)
    assert_same_training(tmp_path / "one", tmp_path / "fsdp")
    shutil.copytree(tmp_path / "fsdp", tmp_path / "again")
    (tmp_path / "again" / "summary.json").unlink()
    shutil.rmtree(list_checkpoints(tmp_path / "again" / "checkpoints")[-1])
    assert (
        "resuming from step-" in torchrun(2, script, tmp_path / "again", "Adagrad", **FSDP).stdout
    )
    assert_bit_equal(tmp_path / "fsdp", tmp_path / "again")


def test_an_optimizer_that_cannot_be_sharded_is_refused(tmp_path):
    """Before the first step, and in both processes."""
    script = tmp_path / "with_optimizer.py"
    script.write_text(WITH_OPTIMIZER.format(tests=str(TESTS)))
    printed = torchrun(2, script, tmp_path / "run", "Adafactor", **FSDP, code=None).stdout
    assert (
        printed.count(
            "optimizer Adafactor does not update weights that FSDP has sharded as it does whole"
            " ones"
        )
        == 2
    )
    assert not (tmp_path / "run" / "log.jsonl").exists()


PROBE = """
import os, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from helpers.toy_recipes import recognition
from trainkit import Options, train
from trainkit.data.seeding import seed_host


CLIPPED = {{"agc": {{"clip_agc": 0.01}}, "by_value": {{"clip_value": 0.002}}}}


def probe(folder, frozen):
    seed_host(5)
    recipe = recognition()
    recipe.model.backbone.requires_grad_(not frozen)
    optimizer = torch.optim.SGD(recipe.model.head.parameters(), lr=0.1)
    recipe = recognition(model=recipe.model, optimizer=optimizer, clip_norm=0.05, ema=0.9)
    train(recipe, Options(out=Path(folder), seed=5, workers=0, log_every=1))


def clipped(folder, changes):
    seed_host(5)
    in_one_process = "RANK" not in os.environ
    options = Options(
        out=Path(folder), seed=5, workers=0, log_every=1, micro_batch=8 if in_one_process else 3
    )
    train(recognition(**changes), options)


if __name__ == "__main__":
    for name, changes in CLIPPED.items():
        clipped(sys.argv[1] + "/" + name, changes)
    probe(sys.argv[1] + "/trained", frozen=False)
    probe(sys.argv[1] + "/frozen", frozen=True)
"""


@pytest.mark.nightly
def test_a_linear_probe_is_that_of_one_process(tmp_path):
    """With a backbone that gets gradients all the same, and with a frozen one.

    Clipped by the norm, under DDP and FSDP; and whole trainings clipped by AGC and by value, in
    two processes in micro-batches.
    """
    script = tmp_path / "probe.py"
    script.write_text(PROBE.format(tests=str(TESTS)))
    forked_script(script, tmp_path / "one")
    torchrun(2, script, tmp_path / "ddp")
    torchrun(2, script, tmp_path / "fsdp", **FSDP)
    norms = [row["grad_norm"] for row in rows(tmp_path / "one" / "frozen")]
    assert max(norms) > 0.05, "clipping does something"
    last = {kind: rows(tmp_path / "one" / kind)[-1]["loss"] for kind in ("agc", "by_value")}
    assert last["agc"] != pytest.approx(last["by_value"], rel=1e-3), "clipping does something"
    for many in ("ddp", "fsdp"):
        for kind in ("trained", "frozen"):
            assert_same_training(tmp_path / "one" / "frozen", tmp_path / many / kind)
            found = [row["grad_norm"] for row in rows(tmp_path / many / kind)]
            assert found == pytest.approx(norms, rel=1e-5), (many, kind)
        for kind in ("agc", "by_value"):
            assert_same_training(tmp_path / "one" / kind, tmp_path / many / kind)
    assert_bit_equal(tmp_path / "one" / "frozen", tmp_path / "one" / "trained")

"""Optimizers under FSDP on two gloo processes: as in one process, or refused before step 1."""

import json
import re

import pytest

from helpers.processes import ROOT, TESTS, torchrun

SCRIPT = """
import json, sys, warnings
sys.path[:0] = {paths!r}
import torch
from helpers.optimizers import builders
from sharded_optimizers import compared
from sharded_resume import resumed
from torch.distributed.tensor import DTensor
from trainkit.distributed.accelerator import start_accelerator


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Signs(torch.optim.Optimizer):
    "Number by number, with an attribute and state of its own."

    def __init__(self, weights):
        super().__init__(weights, {{"lr": 0.01}})
        self.decay = 0.9

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - self.decay)
                weight.sub_(mean.sign(), alpha=group["lr"])


class ByNorm(torch.optim.Optimizer):
    "Divides by the norm of what this process holds."

    def __init__(self, weights):
        super().__init__(weights, {{"lr": 0.01}})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                grad = local(weight.grad)
                local(weight).sub_(grad / grad.norm(), alpha=group["lr"])


class ByTotal(torch.optim.SGD):
    "Keeps in its groups a sum over all weights, as Prodigy does, but of this process's part alone."

    def step(self, closure=None):
        for group in self.param_groups:
            total = sum(local(weight.grad).abs().sum().item() for weight in group["params"])
            group["total"] = group.get("total", 0.0) + total
        super().step(closure)


class Rowwise(torch.optim.SGD):
    "State that is a number of each row, which is no part of a weight."

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["rows"] = torch.zeros(len(local(weight)))


class Late(torch.optim.SGD):
    "Does something else in every tenth step."

    taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.taken += 1
        if self.taken % 10 == 0:
            for group in self.param_groups:
                for weight in group["params"]:
                    local(weight.grad).sub_(local(weight.grad).mean())
        super().step(closure)


class Kron(torch.optim.SGD):
    "Of a name that is not tried, since timm's would take minutes."


own = {{
    "kron": lambda model: Kron(model.parameters(), lr=0.1),
    "signs": lambda model: Signs(model.parameters()),
    "by norm": lambda model: ByNorm(model.parameters()),
    "by total": lambda model: ByTotal(model.parameters(), lr=0.1),
    "rowwise": lambda model: Rowwise(model.parameters(), lr=0.1),
    "late": lambda model: Late(model.parameters(), lr=0.1),
}}
warnings.simplefilter("ignore")
torch.set_num_threads(1)
accelerator = start_accelerator()
known = builders() | own
found = {{name: compared(accelerator, known[name]) for name in {names!r}}}
again = {{name: resumed(accelerator, known[name]) for name in {resumed!r}}}
if accelerator.is_main_process:
    print("FOUND", json.dumps([found, again]))
"""
SAME = ["torch.optim.AdamW", "torch.optim.Adagrad", "torch.optim.NAdam", "torch.optim.RAdam",
        "torch.optim.ASGD", "timm lamb", "timm lookahead_adamw", "schedulefree.AdamWScheduleFree",
        "schedulefree.ScheduleFreeWrapper", "signs"]  # fmt: skip
REFUSED = {
    "torch.optim.Muon": "its update of a weight of shape .* differs",
    "torch.optim.Rprop": "RuntimeError: ",
    "timm adafactorbv": "its 'exp_avg_sq_r' is not sharded as its weights are",
    "prodigyopt.Prodigy": "RuntimeError: ",
    "by norm": "its update of a weight of shape .* differs",
    "by total": "its 'total' differs",
    "rowwise": "its 'rows' is not sharded as its weights are",
    "kron": "optimizer Kron is not for weights that FSDP has sharded",
    "late": "its update of a weight of shape .* differs",
}
RESUMED = [
    "timm nadamw",
    "timm lookahead_adamw",
    "schedulefree.RAdamScheduleFree",
    "schedulefree.ScheduleFreeWrapper",
]


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """By optimizer, what the trial before the first step said, and how a training without it went.

    What a resume gave.

    All of it in one pair of processes.
    """
    script = tmp_path_factory.mktemp("script") / "script.py"
    paths = [str(TESTS), str(ROOT / "benchmarks")]
    script.write_text(SCRIPT.format(paths=paths, names=[*SAME, *REFUSED], resumed=RESUMED))
    lines = torchrun(2, script).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("FOUND"))
    return json.loads(line.removeprefix("FOUND"))


@pytest.fixture(scope="module")
def found(printed) -> dict[str, tuple[str, str]]:
    return printed[0]


@pytest.mark.parametrize("name", SAME)
def test_it_trains_as_in_one_process(found, name):
    """To rounding.

    Gradients of two halves are added up, which near nothing Adam's quotient makes larger.
    """
    said, went = found[name]
    assert said == "same"
    words = went.split()
    assert float(words[1]) < 1e-3 and float(words[-1]) < 1e-4, went


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_otherwise_is_refused(found, name):
    said, _ = found[name]
    assert re.search(REFUSED[name], said) and said.endswith(
        "take AdamW or SGD, or launch without FSDP"
    ), said


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_is_bit_equal(printed, name):
    """Of those whose state is more than tensors by weight.

    Counts in groups, an optimizer inside, weights in training.

    benchmarks/sharded_resume.py does it for all that can be built.
    """
    assert printed[1][name] == "bit-equal"

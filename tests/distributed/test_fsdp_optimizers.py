"""Optimizers under FSDP on two gloo processes: as in one process, or refused before step 1."""

import json
import re

import pytest

from helpers.cases import at_night, collected
from helpers.processes import ROOT, TESTS, torchrun

SCRIPT = """
import json, sys, threading, warnings
from collections import ChainMap
sys.path[:0] = {paths!r}
import torch
from helpers.optimizers import builders
from sharded_optimizers import compared, network
from sharded_resume import resumed
from timm.optim import Lookahead
from torch.distributed.tensor import DTensor
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.fsdp_trial import require_same_updates


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


class Vanishing(ByNorm):
    "The same, of so small a rate, as under layer decay, that rounding hides it."

    def __init__(self, weights):
        super().__init__(weights)
        self.param_groups[0]["lr"] = 1e-12


class Lists(torch.optim.SGD):
    "State that is a number of each row, in a list."

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["factors"] = [torch.zeros(len(local(weight)) + 1)]


class Largest(torch.optim.SGD):
    "Fails where this process's part is empty, and so in one process alone."

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    local(weight.grad).max()
        super().step(closure)


class Locked(torch.optim.SGD):
    "Holds what cannot be copied."

    def __init__(self, weights):
        super().__init__(weights, 0.1)
        self.lock = threading.Lock()


class Several(torch.optim.Optimizer):
    "Two optimizers in a list, each with attributes of its own."

    def __init__(self, weights):
        weights = list(weights)
        self.optimizers = [Signs(weights[:3]), Signs(weights[3:])]
        super().__init__(weights, {{"lr": 0.01}})
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]

    @property
    def state(self):
        return ChainMap(*(each.state for each in self.optimizers))

    @state.setter
    def state(self, value):
        pass

    def step(self):
        for each in self.optimizers:
            each.step()


class Global(torch.optim.SGD):
    "State of all weights together, of which each process holds its own."

    def step(self, closure=None):
        total = sum(local(weight.grad).sum().item() for weight in self.param_groups[0]["params"])
        self.state["total"] = self.state.get("total", 0.0) + total
        super().step(closure)


class Still(torch.optim.SGD):
    def step(self, closure=None):
        pass


def with_one(model):
    "A weight of which the second process has no part."
    model.one = torch.nn.Parameter(torch.ones(1))
    return Largest(model.parameters(), lr=0.1)


hooked = []


def with_hook(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: hooked.append(1))
    return optimizer


own = {{
    "vanishing": lambda model: Vanishing(model.parameters()),
    "lists": lambda model: Lists(model.parameters(), lr=0.1),
    "largest": with_one,
    "locked": lambda model: Locked(model.parameters()),
    "several": lambda model: Several(model.parameters()),
    "global": lambda model: Global(model.parameters(), lr=0.1),
    "still": lambda model: Still(model.parameters(), lr=0.1),
    "kron in lookahead": lambda model: Lookahead(Kron(model.parameters(), lr=0.1)),
    "hooked": with_hook,
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
hooked.clear()
require_same_updates(network(with_hook)[1], accelerator)
if accelerator.is_main_process:
    print("FOUND", json.dumps([found, again, len(hooked)]))
"""
SAME = ["torch.optim.AdamW", "torch.optim.Adagrad", "torch.optim.NAdam", "torch.optim.RAdam",
        "torch.optim.ASGD", "timm lamb", "timm lookahead_adamw", "schedulefree.AdamWScheduleFree",
        "schedulefree.ScheduleFreeWrapper", "signs", "several",
        "hooked"]  # fmt: skip
REFUSED = {
    "torch.optim.Muon": "its update of a weight of shape .* differs",
    "torch.optim.Rprop": "RuntimeError: ",
    "timm adafactorbv": "its 'exp_avg_sq_r' is not sharded as its weights are",
    "prodigyopt.Prodigy": "RuntimeError: ",
    "by norm": "its update of a weight of shape .* differs",
    "by total": "its 'total' differs",
    "rowwise": "its 'rows' is not sharded as its weights are",
    "kron": "optimizer Kron is not for weights that FSDP has sharded",
    "vanishing": "its update of a weight of shape .* differs",
    "lists": "its 'factors' is not sharded as its weights are",
    "largest": "optimizer Largest does not update weights .*Error: ",
    "locked": r"optimizer Locked cannot be copied \(TypeError: ",
    "global": "its 'total' differs",
    "still": "updates move no weight",
    "kron in lookahead": "optimizer Kron is not for weights that FSDP has sharded",
    "late": "its update of a weight of shape .* differs",
}
# one of each kind: torch's, a library's, one inside another, and each reason to refuse
DAY = ["torch.optim.AdamW", "timm lookahead_adamw", "schedulefree.AdamWScheduleFree", "several",
       "torch.optim.Rprop", "timm adafactorbv", "by norm", "by total", "rowwise", "kron", "lists",
       "locked", "still", "schedulefree.ScheduleFreeWrapper"]  # fmt: skip
RESUMED = [
    "timm nadamw",
    "timm lookahead_adamw",
    "schedulefree.RAdamScheduleFree",
    "schedulefree.ScheduleFreeWrapper",
]


@pytest.fixture(scope="module")
def printed(request, tmp_path_factory) -> tuple[dict[str, tuple[str, str]], dict[str, str], int]:
    """By optimizer, what the trial before the first step said, and how a training without it went.

    What a resume gave.

    All of it in one pair of processes.
    """
    script = tmp_path_factory.mktemp("script") / "script.py"
    paths = [str(TESTS), str(ROOT / "benchmarks")]
    names = [name for name in (*SAME, *REFUSED) if name in collected(request)]
    resumed = [name for name in RESUMED if name in collected(request, "resumed")]
    script.write_text(SCRIPT.format(paths=paths, names=names, resumed=resumed))
    lines = torchrun(2, script).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("FOUND"))
    return json.loads(line.removeprefix("FOUND"))


@pytest.fixture(scope="module")
def found(printed) -> dict[str, tuple[str, str]]:
    return printed[0]


@pytest.mark.parametrize("name", at_night(*SAME, day=DAY))
def test_it_trains_as_in_one_process(found, name):
    """To rounding.

    Gradients of two halves are added up, which near nothing Adam's quotient makes larger.
    """
    message, went = found[name]
    assert message == "same"
    words = went.split()
    assert float(words[1]) < 1e-3 and float(words[-1]) < 1e-4, went


@pytest.mark.parametrize("name", at_night(*REFUSED, day=DAY))
def test_what_would_train_otherwise_is_refused(found, name):
    message, _ = found[name]
    assert re.search(REFUSED[name], message) and message.endswith(
        "take AdamW or SGD, or launch without FSDP"
    ), message


@pytest.mark.parametrize("resumed", at_night(*RESUMED, day=DAY))
def test_a_resume_is_bit_equal(printed, resumed):
    """Of those whose state is more than tensors by weight.

    Counts in groups, an optimizer inside, weights in training.

    benchmarks/sharded_resume.py does it for all that can be built.
    """
    assert printed[1][resumed] == "bit-equal"


def test_a_users_hooks_are_left_alone(printed):
    """They reach what is not copied, such as the model."""
    assert printed[2] == 0

"""Sees all that the steps of a training compute, and compares it with another's: `trainkit audit`.

The first training records digests, a file for each step; another one compares its own with them as
it goes, and notes the first that differs. Hooks of torch see what a step computes, and the batches
of the loop pass through `Audit.watch`, so that a training which nobody audits pays nothing for it.
"""

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.data.reader import name_of
from trainkit.data.repeatability import value_digest
from trainkit.distributed.unwrapping import without_compile, without_wrappers
from trainkit.engine.training import Training
from trainkit.errors import UserError

SAMPLE = 4096  # values kept of a recorded tensor, evenly spaced, to say by how much it differs
BATCH = ("image", "target")
STATE = ("parameter", "buffer", "optimizer state", "EMA")


@dataclass(frozen=True)
class Difference:
    """The first thing that two trainings do not have in common.

    Attributes:
        step: counted from 1; 0: before the first one.
        kind: such as "image" or "gradient".
        name: the module, the parameter, or the image by its place in the batch.
        restored: it was found in the state that a resume has restored after `step`.
        value: which value of the tensor differs most, such as [0, 2, 17].
        first: that value in the first training.
        other: that value in this one.
        compared: how many values of the tensor were compared one by one.
        of: how many it has; 0 where it is no tensor, or in one of the two alone.
    """

    step: int
    kind: str
    name: str
    restored: bool = False
    value: list[int] | None = None
    first: float | None = None
    other: float | None = None
    compared: int = 0
    of: int = 0


class Audit:
    """Records what each step of a training computes, or compares it with such records.

    Args:
        folder: of the records.
        results: folder for what this training leaves: `difference-<rank>.json` where there is one,
            and at its end `end-<rank>.json`.
        steps: after which it ends; all where the run has fewer.
        records: this is the first training, which writes the records.
        batches_only: compare initial weights and batches alone, as on another number of processes.
        kill_after: end this process by SIGKILL after so many steps.
    """

    def __init__(
        self,
        folder: Path,
        results: Path,
        steps: int,
        records: bool = False,
        batches_only: bool = False,
        kill_after: int | None = None,
    ):
        self.folder, self.results, self.steps = folder, results, steps
        self.records, self.batches_only, self.kill_after = records, batches_only, kill_after
        self.difference: Difference | None = None
        self._step = 0
        self._restored = False
        self._inside = False  # a forward pass of the training
        self._last: Any = None  # output that was seen
        self._last_version = 0
        self._pass = 0  # of this step
        self._parts: list[tuple[Tensor, Tensor]] = []  # of the batch
        self._kept: dict[tuple[str, str], list[Any]] = {}  # records of this step
        self._expected: Mapping[tuple[str, str], list[Any]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()
        self._own_part: dict[str, None] = {}  # what sees its own process's part of a batch

    def watch(self, training: Training, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass the batches of the loop on; after the last one that is asked for, end the process.

        Raises:
            UserError: the training computes on another device than the CPU, or has one step.
            SystemExit: with code 0, after the last step.
        """
        setup, state = training.setup, training.state
        if setup.accelerator.device.type != "cpu":
            raise UserError(
                f"trainkit audit is proven on CPUs alone, and this trains on"
                f" {setup.accelerator.device}: set ACCELERATE_USE_CPU=true to audit on the CPU"
            )
        steps = min(self.steps, setup.plan.total_steps)
        if steps < 2:
            raise UserError("the recipe has 1 step, and an audit takes 2, to resume between them")
        self._begin(training)
        self._restored = state.step > 0
        self._open(state.step)
        self._see_state()
        self._close()
        self._restored = False
        for batch in batches:
            self._open(state.step + 1)
            yield batch
            self._see_state()
            self._require_all_seen()
            self._close()
            if state.step == self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if state.step == steps:
                break
        self._end(state.step)
        raise SystemExit(0)

    def _begin(self, training: Training) -> None:
        """Hook into all that a step goes through."""
        setup, wrapped = training.setup, training.stepper.task_module
        self._training = training
        self._rank = setup.accelerator.process_index
        self._module = without_wrappers(wrapped)
        self._names = {id(weight): _plain(name) for name, weight in self._module.named_parameters()}
        wrapped.register_forward_pre_hook(self._before_forward)
        wrapped.register_forward_hook(self._after_forward)
        setup.recipe.optimizer.register_step_pre_hook(self._before_update)
        if without_compile(wrapped) is wrapped:  # else hooks would be compiled along
            for name, module in setup.recipe.model.named_modules():
                module.register_forward_hook(self._seeing(name or "the network"))
        if setup.accelerator.mixed_precision != "no":
            self._own_part[f"precision {setup.accelerator.mixed_precision}"] = None

    def _before_forward(self, module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        if not module.training:  # in an evaluation
            return
        self._inside = True
        sizes = self._training.setup.plan.order.passes(self._step - 1, self._rank)
        size = sizes[self._pass % len(sizes)]  # 0: a padding sample
        self._parts.append((inputs[0][:size].detach().clone(), inputs[1][:size].detach().clone()))
        self._pass += 1
        if self._pass == len(sizes):
            self._see_batch()
        if self._pass == 1:
            self._drawn_before = _generators()

    def _see_batch(self) -> None:
        """Compare each image of this process's share of the batch with the one of its place."""
        order = self._training.setup.plan.order
        begin = order.share(self._step - 1, self._rank).start
        images, targets = (torch.cat(parts) for parts in zip(*self._parts))
        for place, image in enumerate(images, begin):
            self._see("image", str(place), image)
        if self.batches_only and self._training.recipe.task.provides("prepare"):
            return  # which may draw random numbers, of each process its own
        for place, target in enumerate(targets, begin):
            self._see("target", str(place), target)

    def _seeing(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple, output: Any) -> None:
            version = getattr(output, "_version", 0)  # of one that is changed in place
            if self._inside and not (output is self._last and version == self._last_version):
                self._see("output", name, output)
                self._last, self._last_version = output, version  # also of modules around it

        return look

    def _after_forward(self, module: nn.Module, inputs: tuple, losses: Any) -> None:
        if self._inside:
            self._inside, self._last = False, None
            self._see("loss", "the sums over the targets", losses)

    def _before_update(self, *_: Any) -> None:
        for name, weight in self._module.named_parameters():
            if weight.grad is not None:
                self._see("gradient", _plain(name), weight.grad)
        drawn = _generators()
        for name, state in drawn.items():
            self._see("generator", name, state)
            if state != self._drawn_before[name]:
                self._own_part[f"random numbers of {name}, as of dropout"] = None
        for norm in self._training.recipe.model.modules():
            if isinstance(norm, AnyBatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
                self._own_part |= {"BatchNorm": None} if norm.training else {}

    def _see_state(self) -> None:
        """Weights, buffers, optimizer and averages, as they are after the step."""
        recipe, ema = self._training.recipe, self._training.stepper.ema
        for name, weight in self._module.named_parameters():
            self._see("parameter", _plain(name), weight)
        for name, buffer in self._module.named_buffers():
            self._see("buffer", _plain(name), buffer)
        state = recipe.optimizer.state_dict()
        weights = [weight for group in recipe.optimizer.param_groups for weight in group["params"]]
        for owner, values in state["state"].items():
            of = self._names.get(id(weights[owner])) if isinstance(owner, int) else owner
            values = values if isinstance(values, Mapping) else {"state": values}
            for name, value in values.items():
                self._see("optimizer state", f"{name} of {of}", value)
        for number, group in enumerate(state["param_groups"]):
            for name, value in group.items():
                if name not in ("params", "lr"):  # which is set before each step
                    self._see("optimizer state", f"{name} of group {number}", value)
        averages = {} if ema is None else ema.state_dict()["averages"]
        for name, average in averages.items():
            self._see("EMA", name, average)

    def _open(self, step: int) -> None:
        """Begin with a step, counted from 1."""
        self._step, self._pass = step, 0
        self._parts.clear()
        self._counts.clear()
        self._seen.clear()
        if not self.records:
            self._expected = torch.load(self._file)

    def _close(self) -> None:
        if self.records:
            torch.save(self._kept, self._file)
            self._kept = {}

    @property
    def _file(self) -> Path:
        return self.folder / f"step-{self._step}.pt"

    def _see(self, kind: str, name: str, value: Any) -> None:
        """Record the digest of a value, or compare it."""
        if self.batches_only and kind not in BATCH and self._step > 0:
            return
        self._counts[kind, name] += 1
        if self._counts[kind, name] > 1:
            name = f"{name}, time {self._counts[kind, name]}"
        self._seen.add((kind, name))
        if self.records:
            self._kept[kind, name] = [value_digest(value).hex(), *_sampled(value)]
            return
        if self.difference is not None:
            return
        digest, shape, sample = self._expected.get((kind, name), [None, None, None])
        if digest != value_digest(value).hex():
            self._differs(kind, name, **_biggest(shape, sample, value))

    def _require_all_seen(self) -> None:
        """Note what the first training had in this step and this one has not."""
        if self.records or self.batches_only or self.difference is not None:
            return
        missing = [key for key in self._expected if key not in self._seen]
        if missing:
            self._differs(*missing[0])

    def _differs(self, kind: str, name: str, **values: Any) -> None:
        if kind in BATCH:
            keys = self._training.setup.plan.order.keys(self._step - 1)
            data = self._training.recipe.train_data
            index = keys[int(name)][1] % len(data)
            name = f"{name} ({name_of(data, index)})"
        found = Difference(self._step, kind, name, self._restored, **values)
        self.difference = found
        self._write("difference", asdict(found))

    def _end(self, steps: int) -> None:
        digests = {
            _plain(name): value_digest(weight).hex()
            for name, weight in self._module.named_parameters()
        }
        content = {
            "steps": steps,
            "own_part": list(self._own_part),
            "parameters": digests,
        }
        self._write("end", content)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        (self.results / f"{name}-{self._rank}.json").write_text(json.dumps(content))


def _plain(name: str) -> str:
    """A name as the network itself has it."""
    return name.removeprefix("model.")


def _generators() -> dict[str, bytes]:
    """Digests of the global generators' states."""
    return {
        "torch's generator": value_digest(torch.get_rng_state()),
        "Python's generator": value_digest(random.getstate()),
        "NumPy's generator": value_digest(np.random.get_state()),
    }


def _sampled(value: Any) -> tuple[list[int] | None, Tensor | None]:
    """Shape and evenly spaced values of a tensor; None for anything else."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None, None
    flat = value.detach().flatten()
    return list(value.shape), flat[:: max(1, -(-len(flat) // SAMPLE))].clone()


def _biggest(shape: list[int] | None, sample: Tensor | None, value: Any) -> dict[str, Any]:
    """Where and by how much a tensor differs most from a recorded one, of the values kept."""
    other_shape, other = _sampled(value)
    if sample is None or other is None or other_shape != shape:
        return {}
    mine, theirs = other.double(), sample.double()
    gap = (mine - theirs).abs().nan_to_num(nan=torch.inf)
    gap[(mine == theirs) | (mine.isnan() & theirs.isnan())] = 0
    place = int(gap.argmax())
    found: dict[str, Any] = {"compared": len(sample), "of": value.numel()}
    if gap[place] > 0:
        at = np.unravel_index(place * max(1, -(-value.numel() // SAMPLE)), value.shape)
        found |= {"value": [int(each) for each in at]}
        found |= {"first": float(theirs[place]), "other": float(mine[place])}
    return found

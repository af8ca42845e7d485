"""--profile: a trace of a few steps, and what each kind of work takes of them."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

from accelerate.utils import ProfileKwargs
from torch import nn
from torch.profiler import record_function

from trainkit.distributed.unwrapping import without_compile
from trainkit.engine.setup import Setup
from trainkit.engine.task_module import TaskModule
from trainkit.storage.run_folder import RunFolder

FIRST, LAST = 10, 20  # steps of this process, counted from 1
FOLDER = "profile"
DATA, FORWARD, TASK = "trainkit data", "trainkit model", "trainkit task"
STEP, BETWEEN = "trainkit whole step", "trainkit evaluation or save"
BACKWARD, OPTIMIZER = "autograd::engine::evaluate_function", "Optimizer.step#"
KINDS = (
    "data", "forward", "loss", "backward", "optimizer", "evaluation, saving",
    "the rest: trainkit, log, screen",
)  # fmt: skip


class Ranges:
    """Names what a module does in a trace, by hooks that are removed after."""

    def __init__(self, module: nn.Module, name: str):
        self._open: list[Any] = []
        self._name = name
        self._hooks = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, module: nn.Module, inputs: tuple) -> None:
        if not module.training:  # in an evaluation
            return
        opened = record_function(self._name)
        opened.__enter__()
        self._open.append(opened)

    def _end(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def remove(self) -> None:
        """Name nothing any more."""
        for hook in self._hooks:
            hook.remove()


def profiled(
    batches: Iterable[Any], setup: Setup, run: RunFolder, task_module: nn.Module
) -> Iterable[Any]:
    """The same batches; with `--profile` the steps that are made of some of them are recorded.

    Args:
        batches: of a training, in this process.
        setup: of the training.
        run: where the trace goes: profile/, for Perfetto (https://ui.perfetto.dev).
        task_module: model and task, as wrapped for processes and precision.
    """
    return _recorded(batches, setup, run, task_module) if setup.options.profile else batches


def _recorded(
    batches: Iterable[Any], setup: Setup, run: RunFolder, task_module: nn.Module
) -> Iterator[Any]:
    reader = iter(batches)
    yield from islice(reader, FIRST - 1)
    on_cuda = setup.accelerator.device.type == "cuda"
    asked = ProfileKwargs(
        activities=["cpu", "cuda"] if on_cuda else ["cpu"],
        output_trace_dir=str(run.folder / FOLDER),
    )
    num_steps = 0
    with ExitStack() as stack:
        profiler = stack.enter_context(setup.accelerator.profile(asked))
        for module, name in _named(setup, task_module):
            stack.callback(Ranges(module, name).remove)
        for _ in range(FIRST, LAST + 1):
            with record_function(STEP):
                with record_function(DATA):
                    batch = next(reader, None)
                if batch is None:
                    break
                yield batch  # all that the loop does before it asks for the next one
                num_steps += 1
    if num_steps:
        _show(setup, run, profiler, num_steps)
    yield from reader


def _named(setup: Setup, task_module: nn.Module) -> list[tuple[nn.Module, str]]:
    inner = without_compile(task_module)
    tasks = [each for each in inner.modules() if isinstance(each, TaskModule)]
    return [(setup.recipe.model, FORWARD), *((each, TASK) for each in tasks[:1])]


def milliseconds(profiler: Any, num_steps: int, of: str = "cpu_time_total") -> dict[str, float]:
    """What each of KINDS takes of a step, of the host's time or, with "device_time_total", a GPU's.

    Args:
        profiler: that has recorded.
        num_steps: so many steps.
        of: which of the times of an event.
    """
    events = profiler.key_averages()

    def total(name: str) -> float:
        times = (getattr(each, of) for each in events if each.key.startswith(name))
        return sum(times) / 1e3 / num_steps

    forward = total(FORWARD)
    loss = total(TASK) - forward  # of both together
    parts = [total(DATA), forward, loss, total(BACKWARD), total(OPTIMIZER)]
    parts.append(total(BETWEEN))
    return dict(zip(KINDS, [*parts, total(STEP) - sum(parts)]))


def _show(setup: Setup, run: RunFolder, profiler: Any, num_steps: int) -> None:
    """Show the table in the main process, and where the trace is."""
    host = milliseconds(profiler, num_steps)
    whole = sum(host.values())
    heads = ["", "ms a step", "share"]
    rows = [[kind, f"{ms:.3f}", f"{100 * ms / whole:.0f} %"] for kind, ms in host.items()]
    if setup.accelerator.device.type == "cuda":
        device = milliseconds(profiler, num_steps, "device_time_total")
        heads.append("GPU, ms a step")
        rows = [[*row, f"{device[row[0]]:.3f}"] for row in rows]
    title = f"steps {FIRST} to {FIRST + num_steps - 1} of this start, {whole:.3f} ms each"
    setup.display.grid(title, heads, rows)
    setup.display.note(
        f"trace: {run.folder / FOLDER}, for https://ui.perfetto.dev; the profiler itself slows"
        " these steps"
    )

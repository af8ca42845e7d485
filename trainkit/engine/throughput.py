"""Images per second, the share of time that waits for data, and memory, for rows of the log."""

import sys

import psutil
import torch
from accelerate import Accelerator

from trainkit.engine.state import TrainState

LOOKED_AT = 100  # steps, after which a long wait for data is reported
LARGE_SHARE = 0.2


class Throughput:
    """Adds up how long this process waits for its batches, and makes a row's share of it.

    Attributes:
        waited_s: seconds in which this process waited for batches since the last row; the loop adds
            to it.
    """

    def __init__(self, accelerator: Accelerator, workers: int):
        """Measure from here on.

        Args:
            accelerator: of this process.
            workers: data-loading workers of this process.
        """
        self.accelerator = accelerator
        self.workers = workers
        self.waited_s = 0.0
        self._images, self._seconds = 0, 0.0  # of the training, at the last row
        self._peak_gib = 0.0
        self._process = psutil.Process()
        # step and seconds at the first row of this process, whose batches also wait for the
        # workers to start; what was waited for since
        self._begun: tuple[int, float] | None = None
        self._waited_since = 0.0
        self._looked_at = False

    def resume(self, state: TrainState) -> None:
        """Measure from where a checkpoint is, and not from the start of the run."""
        self._images, self._seconds = state.images, state.train_seconds

    def row(self, state: TrainState) -> dict[str, float]:
        """What a row of the log says of the time since the last one."""
        seconds = state.train_seconds - self._seconds
        images_per_s = (state.images - self._images) / seconds
        waited_s = min(self.waited_s, seconds)
        self._images, self._seconds, self.waited_s = state.images, state.train_seconds, 0.0
        if self._begun is None:
            self._begun = state.step, state.train_seconds
        else:
            self._waited_since += waited_s
        return {
            "images_per_s": images_per_s,
            "images_per_s_per_device": round(images_per_s / self.accelerator.num_processes, 3),
            "data_wait": round(waited_s / seconds, 4),
            "memory_gib": round(self._memory_gib(), 4),
        }

    def advice(self, state: TrainState) -> str | None:
        """A line where the first steps waited long for data; None where not, or once it is said."""
        if self._begun is None or self._looked_at or state.step - self._begun[0] < LOOKED_AT:
            return None
        self._looked_at = True
        num_steps, seconds = state.step - self._begun[0], state.train_seconds - self._begun[1]
        if self._waited_since <= LARGE_SHARE * seconds:
            return None
        return (
            f"{100 * self._waited_since / seconds:.0f} % of the time of the first {num_steps} steps"
            f" was waiting for data: try more --workers than {self.workers}, or data that are read"
            " in order (--stream, where the recipe has it); trainkit check measures how fast images"
            " are read, and how fast they are trained on"
        )

    def _memory_gib(self) -> float:
        """Peak memory of the GPU since the last row, or the memory of this process now."""
        if self.accelerator.device.type != "cuda":
            return self._process.memory_info().rss / 2**30
        gib = torch.cuda.max_memory_allocated() / 2**30
        self._peak_gib = max(self._peak_gib, gib)
        torch.cuda.reset_peak_memory_stats()
        return gib

    def peak_memory_gib(self) -> float:
        """The peak memory of this process in GiB: of the GPU where it has one, else of the host."""
        return max(self._peak_gib, peak_memory_gib(self.accelerator))


def peak_memory_gib(accelerator: Accelerator) -> float:
    """The peak since the start, or since it was last set back: of the GPU, else of the host."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30

"""What the processes tell each other in a step, in one all-reduce beside the forward pass."""

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.engine.stop_signal import StopFlag


class Exchange:
    """Counts of valid targets, and whether a process is asked to stop, summed over the processes.

    The sum is under way while the forward pass runs, and is waited for where the losses are divided
    by it. A GPU waits on its stream, the host does not. In a single process nothing is sent.
    """

    def __init__(self, num_processes: int, stop: StopFlag):
        """Ask on behalf of `num_processes` processes; `stop` hears who is to stop."""
        self._num_processes = num_processes
        self._stop = stop
        self._summed: Tensor | None = None  # (K + 1,), the last of which counts who is to stop
        self._work: dist.Work | None = None
        self._counts: Tensor | None = None

    def start(self, counts: Tensor) -> None:
        """Send this process's counts (K,), without waiting; every process must, in each step."""
        self._counts = counts
        if self._num_processes == 1:
            return
        asked = counts.new_full((1,), int(self._stop.is_asked))
        self._summed = torch.cat([counts, asked])
        self._work = dist.all_reduce(self._summed, async_op=True)

    def counts(self) -> Tensor:
        """The counts (K,) of the whole batch, of the last `start`; waits for them."""
        assert self._counts is not None  # the step has begun
        if self._work is not None:
            assert self._summed is not None
            self._work.wait()
            self._work = None
            self._counts = self._summed[:-1]
            self._stop.hear(self._summed[-1:])
        return self._counts

"""What a training leaves for its report: its starts, and at its end the report itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from trainkit.engine.reporting import Reporter
from trainkit.errors import NonFiniteError
from trainkit.storage import starts


def record_start(reporter: Reporter, initial_weights: Sequence[str] = ()) -> None:
    """Record this start of the run in the main process, see `trainkit.storage.starts.add_start`."""
    accelerator = reporter.accelerator
    if not accelerator.is_main_process:
        return
    device = accelerator.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    with reporter.writing(starts.NAME):
        starts.add_start(
            reporter.run.folder,
            step=reporter.state.step,
            num_processes=accelerator.num_processes,
            device=device,
            precision=accelerator.mixed_precision,
            initial_weights=initial_weights,
        )


def write_report(reporter: Reporter) -> None:
    """Write report.html in the main process; a failure is shown and ends nothing."""
    if not (reporter.options.report and reporter.accelerator.is_main_process):
        return
    from trainkit.report.page import report_or_reason  # what no training needs to begin

    reporter.note(report_or_reason(reporter.run.folder, under_way=False))


@contextmanager
def reporting_failure(reporter: Reporter) -> Iterator[None]:
    """Context manager: a non-finite loss or gradient that ends the run is in its report."""
    try:
        yield
    except NonFiniteError:
        reporter.display.stop()
        write_report(reporter)
        raise

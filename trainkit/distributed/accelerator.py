"""Accelerator and process-group set-up, over the processes that were really started."""

import atexit
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import AORecipeKwargs, parse_flag_from_env

from trainkit.distributed.fsdp import kept_from_accelerate
from trainkit.distributed.host import keep_freed_memory, use_all_cores
from trainkit.distributed.launcher import end_with_launcher, rank
from trainkit.errors import ReportedError, UserError, causes, first_line, is_of_one_process

REFUSED_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed steps inside its own backward pass and averages over processes by its own count,"
        " so a step would not be that of the whole batch"
    ),
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM has a training loop of its own",
}

TRANSPORTS = (
    "gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Socket Timeout",
    "TCPStore", "client socket has failed", "Timed out waiting", "Broken pipe",
    "caused pair closure", "Read timeout", "Write timeout", "Connection timed out",
    "No route to host",
)  # fmt: skip
FAILURE_REPORTED = "trainkit: the process that failed has said why"  # a name in the group's store


def computes_on_cpu() -> bool:
    """Whether there is no accelerator device, or the launcher was asked for the CPU."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def use_whole_host() -> None:
    """Use all cores that nobody has limited, and keep freed memory, where the CPU computes.

    It changes the whole process, so the commands do it, and functions such as `train` do not: a
    program of its own calls it before these where it wants the same speed.
    """
    if computes_on_cpu():
        use_all_cores()
        keep_freed_memory()


def start_accelerator(static_graph: bool = False, timeout_s: int = 600) -> Accelerator:
    """Make the Accelerator of this process, with all processes in one group.

    Precision and everything else come from the launcher (`accelerate launch`, `accelerate config`).
    Where there is no accelerator device, processes are joined over gloo on the CPU.

    Args:
        static_graph: DDP's setting.
        timeout_s: of a collective operation, in seconds.

    Raises:
        UserError: the launcher started other processes than the group has, or an engine that the
            loop would not be exact under.
    """
    end_with_launcher()
    for variable, reason in REFUSED_ENGINES.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"{variable} is set: {reason}. Launch with accelerate_configs/multi_gpu.yaml, or"
                " with accelerate_configs/fsdp2.yaml to shard the parameters"
            )
    on_cpu = computes_on_cpu()
    timeout = timedelta(seconds=timeout_s)
    if on_cpu:
        _join_afresh(timeout)
    # Gradients as views of what is sent: no second copy of them.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static_graph)
    joining = InitProcessGroupKwargs(timeout=timeout)
    try:
        handlers = [ddp, joining, *_float8()]
        with kept_from_accelerate():
            accelerator = Accelerator(cpu=on_cpu or None, kwargs_handlers=handlers)
    except (ValueError, ImportError) as error:  # such as fp8 without the library that does it
        raise UserError(
            f"accelerate cannot start: {error} See accelerate_configs/ for one that can"
        ) from error
    precision = accelerator.mixed_precision
    if precision not in ("no", "bf16", "fp16", "fp8"):  # accelerate would take it for "no"
        raise UserError(f"mixed_precision is {precision}; it can be no, bf16, fp16 or fp8")
    if accelerator.device.type == "cpu" and precision == "fp16":  # and here too
        raise UserError(
            "fp16 takes a GPU, and this runs on the CPU: launch with --mixed_precision bf16 or no"
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE is {started}, but {accelerator.num_processes} processes are in the group:"
            " they would train apart and overwrite each other. Start them with `accelerate launch`"
            " or torchrun, and unset WORLD_SIZE for a single process"
        )
    if on_cpu and accelerator.num_processes > 1:
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    # the loop divides by counts, whatever the environment says
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def allow_tf32(allowed: bool) -> None:
    """Whether float32 may be multiplied in TF32, in matrix products and convolutions alike."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def lost_processes_reported() -> Iterator[None]:
    """Report where joining the other processes, or a collective operation with them, failed.

    Also while the group forms, and where an error of the training came only because the others
    failed.

    Raises:
        ConnectionError: in place of torch's many errors.
    """
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        # reported already
        if processes == 1 or isinstance(error, (ChildProcessError, ConnectionError)):
            raise
        failed = next((each for each in causes(error) if _is_of_the_group(each)), None)
        if failed is None:
            raise
        raise ConnectionError(
            f"process {rank()} of {processes}, on {socket.gethostname()}, lost the others: one has"
            f" ended, or the network between them has ({first_line(failed)}). The same command"
            " resumes from the last checkpoint"
        ) from error


def _is_of_the_group(error: BaseException) -> bool:
    """Whether torch.distributed raised it, by its class or by the words of a transport."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in TRANSPORTS)
    )


def _join_afresh(timeout: timedelta) -> None:
    """Rejoin with a new store prefix after a restart by torchrun.

    The launcher keeps one store for all attempts, and gloo would find in it the addresses of those
    that died: of 4 restarts one hung and one gave up, and none of 6 since (docs/results.md).
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if (
        attempt == "0"
        or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        or dist.is_initialized()
    ):
        return
    address, port, processes, rank = (
        os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    )
    shared = dist.TCPStore(address, int(port), int(processes), is_master=False, timeout=timeout)
    store = dist.PrefixStore(f"attempt-{attempt}", shared)
    dist.init_process_group(
        "gloo", store=store, rank=int(rank), world_size=int(processes), timeout=timeout
    )


def _leave_group() -> None:
    """End gloo's threads before the interpreter ends.

    Left to it, 3 runs in 40 aborted after their work. Where FSDP still holds the group they stay,
    and one may be waiting for the interpreter, to release a tensor.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)


def fail_first() -> None:
    """Have `fail_last` of the others return when this process ends, by when it has said why."""
    if dist.is_initialized():
        atexit.register(_report_the_end)


def fail_last(seconds: float = 10.0) -> None:
    """Wait for the process that failed, before this one ends because of it.

    A launcher terminates all processes when the first has ended with a failure, and the one that
    failed may still be closing its trackers, its error unsaid.

    Args:
        seconds: waited at most, such as where the other's program catches the error.
    """
    with suppress(dist.DistError):  # it has waited long enough, or the store has ended meanwhile
        _store().wait([FAILURE_REPORTED], timedelta(seconds=seconds))


@contextmanager
def main_process_ends_first() -> Iterator[None]:
    """Have the main process end first of an error that all have: it alone reports such an error.

    It may have trackers to close and a report to write before, and a launcher terminates it when
    another process has ended.
    """
    try:
        yield
    except ReportedError as error:
        if dist.is_initialized() and not is_of_one_process(error):
            if rank() == 0:
                fail_first()
            else:
                fail_last()
        raise


def _report_the_end() -> None:
    with suppress(dist.DistError):  # the others have waited long enough
        _store().set(FAILURE_REPORTED, "")


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()  # torch has no public name for it


def _float8() -> list[AORecipeKwargs]:
    """Settings for fp8 by torchao under which weights stay float32 tensors.

    Accelerate would make them ones that no checkpoint can hold.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8"
    if not asked or find_spec("torchao") is None:
        return []
    return [AORecipeKwargs(enable_fsdp_float8_all_gather=False)]

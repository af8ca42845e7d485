"""FSDP2: each process holds a part of every weight, gradient and optimizer state.

Asked for by an accelerate config (accelerate_configs/fsdp2.yaml). Accelerate itself ignores it
without a GPU; here it is the same few lines on every device, so that what is tested on the CPU is
what runs on GPUs. A step is that of the whole batch as before, and a checkpoint holds whole
tensors: a run may resume with or without it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainkit.distributed.sharded_tensors import part
from trainkit.distributed.unwrapping import without_compile
from trainkit.distributed.weight_use import WeightUse
from trainkit.errors import UserError, first_line, is_shortage

VARIABLE = "ACCELERATE_USE_FSDP"


@dataclass(frozen=True)
class Sharding:
    """What an accelerate config says about FSDP."""

    reshard_after_forward: bool = True
    """false: whole weights are kept from forward to backward, which is ZeRO's stage 2"""
    least: int | None = None
    """weights of a module that is gathered on its own"""
    classes: frozenset[str] = frozenset()
    """names of modules that are gathered on their own"""

    @classmethod
    def asked(cls) -> "Sharding | None":
        """Read it from the environment of `accelerate launch`; None where it is not asked for.

        Raises:
            UserError: what it says is not supported.
        """
        if os.environ.get(VARIABLE, "false").lower() != "true":
            return None
        said = {
            name: os.environ.get(f"FSDP_{name}", "").strip()
            for name in (*ALLOWED, "MIN_NUM_PARAMS")
        }
        for name, (allowed, remedy) in ALLOWED.items():
            if said[name].lower() not in allowed:
                raise UserError(f"FSDP_{name} is {said[name] or 'not set'}: {remedy}")
        policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
        names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
        classes = frozenset(name.strip() for name in names if name.strip())
        if policy == "TRANSFORMER_BASED_WRAP" and not classes:
            raise UserError(
                "fsdp_auto_wrap_policy is TRANSFORMER_BASED_WRAP without a class: name the blocks"
                " in fsdp_transformer_layer_cls_to_wrap, such as Bottleneck or EncoderBlock, or"
                " take SIZE_BASED_WRAP"
            )
        return cls(
            reshard_after_forward=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
            == "true",
            least=int(said["MIN_NUM_PARAMS"] or 10**8) if policy == "SIZE_BASED_WRAP" else None,
            classes=classes if policy == "TRANSFORMER_BASED_WRAP" else frozenset(),
        )

    def units(self, root: nn.Module, use: WeightUse | None = None) -> list[nn.Module]:
        """The modules inside `root` that are gathered on their own, inner ones first.

        Args:
            root: the whole.
            use: where its weights are used, without which none is taken by its size.
        """
        taken: dict[nn.Module, set[Tensor]] = {}  # weights of each module that units in it hold
        found = []
        for module in _inner_first(root):
            inside = set().union(*(taken[child] for child in module.children()))
            free = set(module.parameters()) - inside
            large = self.least is not None and sum(map(Tensor.numel, free)) >= self.least
            by_size = large and use is not None and use.allows(module, free)
            by_size = by_size and not _is_of_transformers(module)
            if module is not root and free and (by_size or type(module).__name__ in self.classes):
                found.append(module)
                inside |= free
            taken[module] = inside
        return found


# Setting of accelerate: values that are fine, and what to do about others.
ALLOWED = {
    "VERSION": (("2",), "FSDP 1 flattens the weights; set fsdp_version: 2"),
    "OFFLOAD_PARAMS": (
        ("", "false"),
        "weights are not moved to the host; leave fsdp_offload_params out",
    ),
    "ACTIVATION_CHECKPOINTING": (("", "false"), "give trainkit --activation-checkpointing instead"),
}


def _inner_first(module: nn.Module) -> list[nn.Module]:
    """All modules, each once and after those inside it, the last ones first."""
    found: dict[nn.Module, None] = {}

    def visit(each: nn.Module) -> None:
        if each in found:  # two modules may hold it
            return
        for child in reversed(list(each.children())):
            visit(child)
        found[each] = None

    visit(module)
    return list(found)


def _is_of_transformers(module: nn.Module) -> bool:
    """Whether it is a whole network or backbone of transformers.

    Those look up by their class which layers' outputs they are to keep, and `fully_shard` gives a
    module another class.
    """
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


@contextmanager
def kept_from_accelerate() -> Iterator[None]:
    """Context manager: Accelerate does not shard by itself."""
    before = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    find_use: Callable[[], WeightUse] | None = None,
    note: Callable[[str], None] = print,
) -> nn.Module:
    """Prepare the model by `accelerator.prepare`, sharded with the optimizer where asked for.

    The optimizer itself stays as it is: accelerate's wrapper looks for a package on the disk in
    each step, a tenth of a small network's time (docs/results.md).

    Args:
        accelerator: of this process.
        model: on any device.
        optimizer: of its weights.
        find_use: runs forward passes to see where weights are used, by which modules are gathered
            on their own for their size; without it none is, nor where a pass fails.
        note: what says that one failed.

    Raises:
        UserError: FSDP is asked for and there is one process, or the precision, the layout or the
            shape of a weight does not go with it.
    """
    sharding = Sharding.asked()
    if sharding is None:
        return accelerator.prepare(model)
    if accelerator.num_processes == 1:
        raise UserError(
            "FSDP shares weights out among processes, and there is one: take"
            " accelerate_configs/gpu.yaml"
        )
    if accelerator.scaler is not None:
        raise UserError("fp16 and FSDP do not go together here: launch with --mixed_precision bf16")
    if accelerator.mixed_precision == "fp8":
        raise UserError("fp8 and FSDP do not go together here: launch with --mixed_precision bf16")
    if any(not weight.is_contiguous() for weight in model.parameters()):
        raise UserError(
            "channels_last and FSDP do not go together: torch shards contiguous weights only"
        )
    scalars = [name for name, weight in model.named_parameters() if weight.ndim == 0]
    if scalars:
        raise UserError(
            f"FSDP does not shard parameters without a dimension ({', '.join(scalars[:3])}): hold"
            " each as a tensor of one number, such as torch.ones(1), or launch without FSDP"
        )
    model.to(accelerator.device)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    use = None
    if sharding.least is not None and find_use is not None:
        use = _of_all(model, find_use, note)
    _shard(model, sharding, use, optimizer)
    # As for an evaluation: precision and compiling, and no DDP around it.
    return accelerator.prepare_model(model, evaluation_mode=True)


def _of_all(
    root: nn.Module, find_use: Callable[[], WeightUse], note: Callable[[str], None]
) -> WeightUse | None:
    """What holds in the passes of all processes; None, and a note, where one failed.

    All must shard alike, and what a network draws at random may differ.
    """
    weights, modules = dict(root.named_parameters()), dict(root.named_modules())
    names = {module: name for name, module in modules.items()}
    mine: dict[str, set[str]] | str
    try:
        inside = find_use().inside
        mine = {
            name: {names[module] for module in inside[id(each)]}
            for name, each in weights.items()
            if id(each) in inside
        }
    except Exception as error:  # a network of one's own may take no such pass
        if is_shortage(error):
            raise
        mine = f"{type(error).__name__}: {first_line(error)}"
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    faults = [each for each in gathered if isinstance(each, str)]
    if faults:
        note(
            f"FSDP: all weights are gathered at once, as a first forward pass failed ({faults[0]})"
        )
        return None
    common = WeightUse(root)
    for name, weight in weights.items():
        found = [each[name] for each in gathered if name in each]
        if found:
            common.inside[id(weight)] = {modules[each] for each in set.intersection(*found)}
    return common


def _shard(
    model: nn.Module, sharding: Sharding, use: WeightUse | None, optimizer: Optimizer | None
) -> None:
    names = {id(weight): name for name, weight in model.named_parameters()}
    for unit in (*sharding.units(model, use), model):
        fully_shard(unit, reshard_after_forward=sharding.reshard_after_forward)
    sharded = dict(model.named_parameters())
    if optimizer is not None:
        take_parts(optimizer, {weight: sharded[name] for weight, name in names.items()})


def take_parts(optimizer: Optimizer, parts: Mapping[int, nn.Parameter]) -> None:
    """Give an optimizer sharded weights in place of whole ones.

    Args:
        optimizer: of the whole weights.
        parts: by the id of the whole weight.
    """
    for group in optimizer.param_groups:
        group["params"] = [parts[id(weight)] for weight in group["params"]]
    for weight in list(optimizer.state):  # made with the optimizer, as Adagrad does
        if not isinstance(weight, Tensor):  # of all weights together
            continue
        state, own = optimizer.state.pop(weight), parts[id(weight)]
        optimizer.state[own] = {
            name: part(value, own) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }


def is_sharded(module: nn.Module) -> bool:
    """Whether `prepare` has sharded it."""
    return isinstance(without_compile(module), FSDPModule)


@contextmanager
def no_sync(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Context manager: gradients stay in this process."""
    inner = without_compile(model)
    if not isinstance(inner, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    inner.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        inner.set_requires_gradient_sync(True)


def settle_buckets(model: nn.Module, propagate: Callable[[Tensor], None]) -> None:
    """Have DDP fix its buckets now, by a backward pass, `propagate`, whose gradients are 0.

    It does so once, after the first step that it sees, in the order in which gradients arrived, and
    gradients are added over more than two processes in an order that depends on their places: after
    a resume the first step was another one, by a rounding. The order here is that in which DDP
    begins: the last weight first.
    """
    inner = without_compile(model)
    if not isinstance(inner, DistributedDataParallel) or inner.static_graph:
        return  # of a static graph DDP must meet the passes themselves, see step.py
    weights = [weight for weight in inner.module.parameters() if weight.requires_grad]
    inner.reducer.prepare_for_forward()
    inner.reducer.prepare_for_backward([])
    propagate(sum(weight.sum().float() for weight in weights) * 0)
    for weight in weights:
        weight.grad = None


def reshard(model: nn.Module) -> None:
    """Free whole weights left by passes without a backward, as they do not follow their parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def agree_on_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of process 0, as a checkpoint holds them.

    Batch norm saw another part of the batch in each. DDP agrees on them before a step's first
    forward pass, and not before those of an evaluation.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def most_of_all(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers, which is waited for."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)

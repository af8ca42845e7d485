"""What goes into a checkpoint, on the CPU: copied, where training continues meanwhile."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from trainkit.distributed.sharded_tensors import whole
from trainkit.models.lora import Adapters
from trainkit.storage.adapters import AdapterFiles
from trainkit.storage.checkpoint_shards import ALONE, Shards
from trainkit.storage.packing import pack


@dataclass(frozen=True)
class Snapshot:
    """What goes into a checkpoint, on the CPU; once copied, training may continue meanwhile."""

    model: dict[str, Tensor]
    tensors: dict[str, Tensor]
    structure: Any
    model_json: Mapping[str, Any] | None = None
    """what it takes to rebuild the network; None: not written"""
    adapter: AdapterFiles | None = None
    """the network's adapters (LoRA), as peft reads them; None: not written"""

    @classmethod
    def of(
        cls,
        model: dict[str, Tensor],
        state: dict[str, Any],
        copy: bool = True,
        model_json: Mapping[str, Any] | None = None,
        adapters: Adapters | None = None,
        shards: Shards = ALONE,
    ) -> "Snapshot":
        """Take a snapshot; where several processes write, of what this one writes, in all of them.

        Args:
            model: the state dict.
            state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
            copy: also what is on the CPU; without, nothing may change until the snapshot is
                written.
            model_json: content of model.json; None for no such file.
            adapters: that the network has, see `trainkit.models.lora`; None for none.
            shards: which part this process writes.
        """
        tensors: dict[str, Tensor] = {}
        structure = pack(state, tensors, "state")
        adapter = None if adapters is None else AdapterFiles.of(adapters, model, tensors)
        if adapter is not None:
            adapter = replace(adapter, tensors=_on_cpu(whole(adapter.tensors), copy))
        model, tensors = (_on_cpu(shards.of_this_process(each), copy) for each in (model, tensors))
        return cls(model, tensors, structure, model_json, adapter)


def _on_cpu(tensors: Mapping[str, Tensor], copy: bool) -> dict[str, Tensor]:
    """Tensors that share no memory with each other, which safetensors would refuse.

    With `copy`, nor with those given.
    """
    here = {
        name: tensor.detach().to("cpu", copy=copy).contiguous() for name, tensor in tensors.items()
    }
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in here.values())
    return {
        n: t.clone() if places[t.untyped_storage().data_ptr()] > 1 else t for n, t in here.items()
    }

"""What stands inside torch.compile and DistributedDataParallel."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainkit.distributed.unwrapping import without_compile, without_wrappers


class WithModule(nn.Module):
    """A network that calls a part of its own `module`: it is no wrapper."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)


def test_wrappers_are_taken_off(tmp_path):
    model = WithModule()
    assert without_wrappers(model) is without_compile(model) is model
    assert without_wrappers(torch.compile(model)) is model
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert without_compile(torch.compile(wrapped)) is wrapped
        assert without_wrappers(torch.compile(wrapped)) is without_wrappers(wrapped) is model
    finally:
        dist.destroy_process_group()

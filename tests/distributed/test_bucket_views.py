"""DDP's gradients as views of the buckets that are sent: one copy, and the same training."""

import pytest

from helpers.processes import TESTS, torchrun

SCRIPT = f"""
import copy, sys; sys.path.insert(0, {str(TESTS)!r})
import torch
from torch import nn
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.fsdp import no_sync, settle_buckets

accelerator = start_accelerator()
assert accelerator.ddp_handler.gradient_as_bucket_view
torch.manual_seed(0)
images, classes = torch.randn(4, 12, 6), torch.randint(7, (4, 12))
plain = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 7))
ends, held = [], []
for views in (True, False):
    accelerator.ddp_handler.gradient_as_bucket_view = views
    inner = copy.deepcopy(plain)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=0.05)
    net = accelerator.prepare(inner)
    settle_buckets(net, lambda loss: loss.backward())
    for step in range(4):
        mine = range(6 * accelerator.process_index, 6 * accelerator.process_index + 6)
        first, second = list(mine)[:4], list(mine)[4:]  # micro-batches
        with no_sync(accelerator, net):
            nn.functional.cross_entropy(net(images[step, first]), classes[step, first]).backward()
        nn.functional.cross_entropy(net(images[step, second]), classes[step, second]).backward()
        grads = [weight.grad for weight in inner.parameters()]
        held.append(len({{grad.untyped_storage().data_ptr() for grad in grads}}))
        nn.utils.clip_grad_norm_(inner.parameters(), 0.5)
        optimizer.step()
        for weight in inner.parameters():
            weight.grad = None
    ends.append(inner.state_dict() | {{"state": optimizer.state_dict()["state"][0]["exp_avg"]}})
assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())
print("HELD", *held)
"""


@pytest.mark.nightly
def test_gradients_lie_in_the_buckets_and_train_alike(tmp_path):
    """On two gloo processes: one storage for six gradients, and bit-equal weights and state."""
    (tmp_path / "script.py").write_text(SCRIPT)
    printed = torchrun(2, tmp_path / "script.py").stdout
    assert printed.count("HELD 1 1 1 1 6 6 6 6") == 2

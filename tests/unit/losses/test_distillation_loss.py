"""The divergence from a teacher against torch.nn.functional.kl_div, sums and gradients."""

import pytest
import torch
from torch.nn import functional as F

from trainkit.losses.distillation import distillation_sum

CLASSES, IGNORE, T = 5, 255, 3.0


def random(*shape, seed):
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(logits, teacher, shares):
    """(N,) or (N, H, W) shares; double precision."""
    ours, theirs = (logits.double() / T).log_softmax(1), (teacher.double() / T).softmax(1)
    each = F.kl_div(ours, theirs, reduction="none").sum(1)
    return T**2 * (each * shares).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(), (7, 33)])
def test_sum_and_gradient_of_valid_targets(dtype, size):
    logits = random(6, CLASSES, *size, seed=0).to(dtype).requires_grad_()
    teacher = random(6, CLASSES, *size, seed=1).to(dtype)
    targets = torch.randint(CLASSES, (6, *size), generator=torch.Generator().manual_seed(2))
    targets[torch.rand(6, *size, generator=torch.Generator().manual_seed(3)) < 0.4] = IGNORE
    found = distillation_sum(logits, teacher, targets, IGNORE, T)
    found.backward()

    same = logits.detach().double().requires_grad_()
    expected = by_hand(same, teacher, targets != IGNORE)
    expected.backward()
    assert found.dtype == torch.float32 and 0 < (targets == IGNORE).sum() < targets.numel()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(logits.grad.double(), same.grad, rtol=tolerance, atol=tolerance)
    assert not logits.grad.movedim(1, -1)[targets == IGNORE].any()


def test_mixed_targets_count_by_what_of_them_is_not_ignored():
    logits, teacher = random(3, CLASSES, seed=0), random(3, CLASSES, seed=1)
    targets = torch.tensor([[0.3, 0.7, 0, 0, 0], [0.4, 0, 0, 0, 0], [0, 0, 0, 0, 0.0]])
    found = distillation_sum(logits, teacher, targets, -1, T)
    assert found.item() == pytest.approx(
        by_hand(logits, teacher, torch.tensor([1.0, 0.4, 0.0])).item(), rel=1e-6
    )


def test_nan_counts_nowhere_where_it_is_ignored():
    logits = torch.zeros(1, CLASSES, 2, 2)
    logits[0, :, 0, 0] = torch.nan
    logits.requires_grad_()
    targets = torch.tensor([[[IGNORE, 1], [1, 1]]])
    teacher = random(1, CLASSES, 2, 2, seed=1)
    teacher[0, 0, 1, 1] = -torch.inf  # a class that the teacher rules out
    found = distillation_sum(logits, teacher, targets, IGNORE, T)
    found.backward()
    assert found.isfinite() and logits.grad.isfinite().all() and logits.grad.any()

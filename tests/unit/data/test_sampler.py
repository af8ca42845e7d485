"""Order, shares and seeds: arithmetic, so checked by enumeration and by hypothesis."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainkit.data.sampler import TrainOrder, evaluation_batches, split
from trainkit.data.seeding import ORDER, Seeded, fold


def flat(batches):
    return [key for batch in batches for key in batch]


@given(st.integers(0, 200), st.integers(1, 9), st.sampled_from([1, 2]))
def test_split_is_even_and_whole(num_images, parts, unit):
    sizes = split(num_images, parts, unit)
    assert sum(sizes) == num_images and len(sizes) == parts
    full = [size for size in sizes if size]
    assert all(size % unit == 0 for size in full[:-1])
    assert max(sizes) - min(sizes) <= 2 * unit - (unit == 1)


@given(
    num_images=st.integers(1, 60),
    batch_size=st.integers(8, 20),
    processes=st.integers(1, 4),
    micro_batch=st.none() | st.integers(2, 8),
    unit=st.sampled_from([1, 2]),
    drop_last=st.booleans(),
)
def test_processes_share_each_batch(
    num_images, batch_size, processes, micro_batch, unit, drop_last
):
    alone = TrainOrder(num_images, batch_size, 3, 1, None, unit, drop_last)
    shared = TrainOrder(num_images, batch_size, 3, processes, micro_batch, unit, drop_last)
    steps = 2 * alone.steps_per_epoch + 1
    whole = list(alone.batches(0, steps, 0))
    parts = [list(shared.batches(0, steps, process)) for process in range(processes)]
    for step in range(steps):
        passes = [shared.passes(step, process) for process in range(processes)]
        assert len({len(sizes) for sizes in passes}) == 1, "every process makes as many passes"
        assert passes[0][0] > 0, "the first process always has images"
        assert max(map(max, passes)) <= (micro_batch or batch_size)
        mine = [parts[process][step][: sum(passes[process])] for process in range(processes)]
        assert flat(mine) == whole[step]
        assert all(parts[process][step] for process in range(processes)), (
            "none is empty, there is a filler"
        )
    for epoch in range(2):
        images = sorted(index for e, index in flat(whole) if e == epoch)
        if not drop_last:
            assert images == list(range(num_images))
        assert len(set(images)) == len(images)


def test_going_on_is_a_seek():
    order = TrainOrder(53, 8, 1)
    everything = list(order.batches(0, 30, 0))
    for start in (1, 6, 7, 8, 29):
        assert list(order.batches(start, 30, 0)) == everything[start:]


def test_order_changes_with_epoch_and_seed_and_nothing_else():
    order = TrainOrder(100, 8, 1)
    assert torch.equal(order.epoch(3), TrainOrder(100, 32, 1, 4, 2).epoch(3))
    assert not torch.equal(order.epoch(3), order.epoch(4))
    generator = torch.Generator().manual_seed(fold(1, ORDER, 3))  # int32 has the numbers of int64
    assert order.epoch(3).tolist() == torch.randperm(100, generator=generator).tolist()
    assert not torch.equal(order.epoch(3), TrainOrder(100, 8, 2).epoch(3))


@given(st.integers(1, 50), st.integers(1, 7), st.integers(1, 5))
def test_evaluation_covers_every_image_once(num_images, batch_size, processes):
    shares = [
        evaluation_batches(num_images, batch_size, process, processes)
        for process in range(processes)
    ]
    assert len({len(batches) for batches, _ in shares}) == 1
    seen = [
        key
        for batches, valid in shares
        for batch, count in zip(batches, valid)
        for key in batch[:count]
    ]
    assert sorted(seen) == [(-1, index) for index in range(num_images)]
    assert all(0 < len(batch) <= batch_size for batches, _ in shares for batch in batches)


def test_fold_has_no_easy_collisions():
    seeds = {
        fold(seed, epoch, index)
        for seed in range(4)
        for epoch in range(-1, 50)
        for index in range(500)
    }
    assert len(seeds) == 4 * 51 * 500
    assert fold(1, 2) != fold(2, 1)
    assert fold(0) == 0xE220A8397B1DCDAF, (
        "the first number of splitmix64 from 0, as its authors' program gives it"
    )


class Draws:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.rand(()).item(), random.random(), np.random.rand(), index


def test_a_read_depends_on_seed_epoch_and_index_alone():
    data = Seeded(Draws(), 9)
    first = data[2, 3]
    torch.rand(7), random.random(), np.random.rand()
    assert data[2, 3] == first
    assert data[2, 4] != first and data[1, 3][:3] != first[:3] and Seeded(Draws(), 8)[2, 3] != first


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 8, 0), "train_data is empty"),
        ((9, 3, 0, 4), "batch_size is 3 for 4 processes"),
        ((9, 4, 0, 4, None, 2), "each needs at least 2"),
        ((9, 8, 0, 1, 1, 2), "micro_batch is 1"),
    ],
)
def test_user_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainOrder(*arguments)


def test_drop_last_keeps_the_only_batch():
    assert TrainOrder(27, 8, 0, drop_last=True).steps_per_epoch == 3
    assert TrainOrder(27, 8, 0).steps_per_epoch == 4
    assert TrainOrder(5, 8, 0, drop_last=True).steps_per_epoch == 1


@pytest.mark.parametrize("processes", [64, 512])
def test_shares_of_many_processes(processes):
    """Together they have each batch once and in order, with as many passes each.

    And each image of an evaluation.
    """
    order = TrainOrder(5000, 1024, 3, processes, micro_batch=3)
    for step in range(order.steps_per_epoch):
        passes = [order.passes(step, process) for process in range(processes)]
        assert len({len(each) for each in passes}) == 1 and sum(
            map(sum, passes)
        ) == order.num_images_of(step)
        mine = [next(order.batches(step, step + 1, process)) for process in range(processes)]
        together = [key for keys, each in zip(mine, passes) for key in keys[: sum(each)]]
        assert together == order.keys(step)
    seen, lengths = [], set()
    for process in range(processes):
        batches, valid = evaluation_batches(5000, 4, process, processes)
        seen += [index for batch, count in zip(batches, valid) for _, index in batch[:count]]
        lengths.add(len(batches))
    assert sorted(seen) == list(range(5000)) and len(lengths) == 1

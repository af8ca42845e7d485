"""The order of many images, computed for the places asked for: a permutation, and a uniform one."""

import itertools
import json
import math
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import Dataset

from helpers.network_recipes import residual
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.data.computed_order import ComputedOrder
from trainkit.data.permutation import Permutation
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import ORDER, fold
from trainkit.data.to_device import ToDevice
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError
from trainkit.schedules import cos
from trainkit.storage.checkpoint import list_checkpoints

MANY = 2**22 + 1  # the fewest of which a new run computes the order


def computed(num_images, **changes):
    return TrainOrder(num_images, **{"batch_size": 8, "seed": 3, "version": 2, **changes})


def orders(num_images, count):
    """So many computed orders of different seeds and epochs: (count, num_images)."""
    places = np.arange(num_images)
    return np.stack(
        [
            ComputedOrder(num_images, num_images, 1, number % 7, number // 7).at(places)
            for number in range(count)
        ]
    )


def drawn(num_images, count):
    """As many of torch."""
    generator = torch.Generator().manual_seed(2)
    found = [torch.randperm(num_images, generator=generator) for _ in range(count)]
    return torch.stack(found).numpy()


def surprise(counts, expected=None):
    """How improbable counts are where all cells are alike, as a p-value of the chi-square test."""
    return stats.chisquare(np.ravel(counts), expected).pvalue


def of_positions(found):
    """What is where: n x n counts, whose rows and columns are bound to have equal sums."""
    count, size = found.shape
    table = np.zeros((size, size))
    np.add.at(table, (np.broadcast_to(np.arange(size), found.shape), found), 1)
    statistic = ((table - count / size) ** 2 / (count / size)).sum() * (size - 1) / size
    return stats.chi2.sf(statistic, (size - 1) ** 2)


def of_neighbours(found):
    """How far a number is from the one before it, modulo n: 1 to n - 1, all alike."""
    size = found.shape[1]
    steps = np.diff(found, axis=1)[:, ::2] % size
    return surprise(np.bincount(steps.ravel(), minlength=size)[1:])


def of_permutations(found):
    """Which of all permutations it is."""
    named = {each: number for number, each in enumerate(itertools.permutations(range(4)))}
    return surprise(np.bincount([named[tuple(row)] for row in found.tolist()], minlength=24))


@pytest.mark.parametrize("size", [*range(1, 65), 100, 1009, 4096, 4097, 100_000])
def test_each_number_once_and_back_again(size):
    permutation = Permutation(size, [fold(size, number) for number in range(12)])
    found = permutation.at(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))
    assert np.array_equal(permutation.places_of(found), np.arange(size))


@pytest.mark.parametrize("size", [MANY, 10**10, 2**40 - 87, 2**62])
def test_any_size_without_memory(size):
    order, places = ComputedOrder(size, 1024, 1, 0, 5), np.arange(0, size, size // 998)
    tracemalloc.start()
    found = order.at(places)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert found.min() >= 0 and found.max() < size and len(set(found.tolist())) == len(places)
    assert [order._place_of(int(index)) for index in found[:9]] == places[:9].tolist()


def test_numbers_are_those_of_a_plain_network():
    """Written out in Python's integers."""
    size, keys = 10**10 + 19, [fold(7, ORDER, 2, number) for number in range(12)]
    left_base = math.isqrt(size - 1) + 1
    right_base = -(-size // left_base)

    def below(base, key, digit):
        mask = 2**64 - 1
        state = ((digit ^ key) + 0x9E3779B97F4A7C15) & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        return ((state ^ state >> 31) >> 32) * base >> 32

    def plain(number):
        while True:
            left, right = divmod(number, right_base)
            for first, second in zip(keys[::2], keys[1::2]):
                left = (left + below(left_base, first, right)) % left_base
                right = (right + below(right_base, second, left)) % right_base
            number = left * right_base + right
            if number < size:
                return number

    places = np.array([0, 1, 2, 99_999, 5 * 10**9, size - 1])
    found = ComputedOrder(size, 64, 1, seed=7, epoch=2).at(places)
    assert found.tolist() == [plain(int(place)) for place in places]
    # what runs have that began with version 2
    first = [index for _, index in computed(MANY).keys(0)]
    assert first == [1856444, 2728142, 2972790, 3055341, 754537, 1076329, 2814366, 2171134]


@pytest.mark.parametrize("of", [orders, drawn])
def test_small_orders_are_uniform(of):
    """By the same measures as torch's."""
    for size, count in ((2, 400), (3, 400), (7, 400), (16, 400), (64, 200)):
        found = of(size, count)
        assert of_positions(found) > 1e-3, size
        assert size == 2 or of_neighbours(found) > 1e-3, size
    assert of_permutations(of(4, 960)) > 1e-3


@pytest.mark.nightly
def test_small_orders_of_all_sizes_are_uniform():
    """2 to 64: p-values as they are where nothing is to be found."""
    tests = [(of_positions(found), of_neighbours(found))
             for found in (orders(size, 1500) for size in range(3, 65))]  # fmt: skip
    for p_values in zip(*tests):
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3
        assert min(p_values) > 1e-5
    assert of_permutations(orders(4, 12_000)) > 1e-3


@pytest.mark.parametrize("size", [MANY, 10**10])
def test_large_orders_are_uniform(size):
    """Where a batch comes from, neighbours in it, and the same places in two epochs."""
    cells, epochs = 16, [ComputedOrder(size, 64, 1, 0, epoch) for epoch in range(2)]
    for first in (0, size // 3, size - 40_000):
        places = np.arange(first, first + 40_000)
        here, later = (order.at(places) * cells // size for order in epochs)
        even = [here[::2] * cells + here[1::2], here * cells + later]
        assert surprise(np.bincount(here, minlength=cells)) > 1e-3
        for pairs in even:
            assert surprise(np.bincount(pairs, minlength=cells**2)) > 1e-3
    spread = np.linspace(0, size - 1, 40_000).astype(np.int64)
    for values, modulus in ((epochs[0].at(spread), 251), (epochs[0].at(np.arange(40_000)), 251)):
        assert surprise(np.bincount(values % modulus, minlength=modulus)) > 1e-3
    starts = spread * cells // size
    table = np.bincount(starts * cells + epochs[0].at(spread) * cells // size, minlength=cells**2)
    assert surprise(table) > 1e-3


def test_copies_are_laid_out_as_in_a_drawn_order():
    """A batch has its images once, then once more; the last one is shorter."""
    order = computed(30, batch_size=12, repeats=3)
    found = order.epoch(1)
    assert sorted(found.tolist()) == list(range(30)) and not torch.equal(found, order.epoch(0))
    for batch in found.split(12):
        images = batch.view(3, -1) % 10
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        assert (batch.view(3, -1) // 10 == torch.arange(3)[:, None]).all()
    listed = found.tolist()
    after = [order.replacement(1, index) for index in listed]
    assert after == [*listed[1:], listed[0]]


def test_an_order_is_of_seed_and_epoch_alone():
    order = computed(5000)
    assert torch.equal(order.epoch(3), computed(5000, batch_size=32, num_processes=4).epoch(3))
    assert not torch.equal(order.epoch(3), order.epoch(4))
    assert not torch.equal(order.epoch(3), computed(5000, seed=4).epoch(3))
    with pytest.raises(UserError, match="has order 3, and this trainkit knows 1 and 2"):
        computed(5000, version=3)


def test_steps_are_computed_together_without_a_trace():
    """5000 images at 16 a share: blocks of 256 steps, begun anywhere, over the ends of epochs."""
    order = computed(5000, batch_size=16)
    batches = list(order.batches(0, 700, 0))
    assert list(itertools.chain(*batches[:313])) == [
        (0, index) for index in order.epoch(0).tolist()
    ]
    assert len(batches[312]) == 8 and batches[313][0][0] == 1
    for start in (1, 255, 256, 312, 313, 699):
        assert list(order.batches(start, 700, 0)) == batches[start:]
    assert [order.keys(step) for step in (0, 312, 600)] == [batches[step] for step in (0, 312, 600)]


class Many(Dataset):
    """Images all alike, which list who asked for them."""

    def __init__(self, num_images=MANY):
        self.num_images, self.read = num_images, []

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        self.read.append(index)
        return torch.zeros(3, 12, 12, dtype=torch.uint8), index % CLASSES


def test_a_run_keeps_the_version_of_its_order(tmp_path):
    """New ones of many images have 2; those that recorded none have what they began with."""
    options = Options(out=tmp_path / "run", workers=0, checkpoint_every=2)

    def read():
        data = Many()
        recipe = recognition(train_data=data, epochs=4 * 8 / MANY, schedule=cos())
        train(recipe, options)
        return data.read[-16:]  # before come those that are read to look at

    def indices(version):
        keys = [computed(MANY, seed=0, version=version).keys(step) for step in (2, 3)]
        return [index for _, index in itertools.chain(*keys)]

    assert read() == indices(2)
    file = options.out / "settings.json"
    recorded = json.loads(file.read_text())
    assert recorded["order"] == 2

    def resume_after_step_2():
        shutil.rmtree(list_checkpoints(options.out / "checkpoints")[-1])
        (options.out / "summary.json").unlink()
        return read()

    assert resume_after_step_2() == indices(2)
    del recorded["order"]
    file.write_text(json.dumps(recorded))
    assert resume_after_step_2() == indices(1) != indices(2)
    assert "order" not in json.loads(file.read_text())
    file.write_text(json.dumps({**recorded, "order": 3}))
    with pytest.raises(UserError, match="settings.json has order 3"):
        resume_after_step_2()


def test_statistics_are_estimated_from_the_runs_order():
    """Precise BN takes the first images of an epoch, in the version that the run has."""
    recipe = residual(train_data=Many(), batch_size=8)
    accelerator = start_accelerator()
    for asked, version in ((None, 2), (1, 1), (2, 2)):
        evaluator = Evaluator(
            recipe, TaskModule(recipe.model, recipe.task), accelerator,
            ToDevice(accelerator.device, recipe.mean, recipe.std), 3, 0, None,
            precise_bn=32, order=asked,
        )  # fmt: skip
        passes = PreciseBatchNorm(evaluator)._passes()
        assert list(map(len, passes)) == [16, 16]
        keys = [computed(MANY, version=version).keys(step) for step in range(4)]
        assert list(itertools.chain(*passes)) == [index for _, index in itertools.chain(*keys)]

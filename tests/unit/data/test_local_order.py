"""Orders of streamed files and balanced draws, computed for the places asked for."""

import math
import random
import tracemalloc
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from scipy import stats

from trainkit.data.local_order import LocalOrder
from trainkit.data.sampler import MOST_DRAWN, Balanced, Locality, TrainOrder
from trainkit.errors import UserError


def laid_out(lengths, num_interleaved, batch_size, key, order_of) -> list[int]:
    """An order by lists and sorting alone: groups dealt out by rank, all sequences advance alike.

    `order_of` has the order of a group's images.
    """
    generator = torch.Generator().manual_seed(key)
    by_rank = torch.randperm(len(lengths), generator=generator).tolist()
    sequences: list[list[int]] = [[] for _ in range(num_interleaved)]
    for rank, group in enumerate(by_rank):
        images = [sum(lengths[:group]) + place for place in order_of(group)]
        sequences[rank % num_interleaved] += images
    listed = [
        ((place + 0.5) / len(images), number, image)
        for number, images in enumerate(sequences)
        for place, image in enumerate(images)
    ]
    listed.sort(key=lambda item: item[:2])
    batches = [listed[begin:][:batch_size] for begin in range(0, len(listed), batch_size)]
    return [image for batch in batches for _, _, image in sorted(batch, key=lambda item: item[1])]


@pytest.mark.parametrize("shortest", [0, 1])
def test_streamed_files_are_laid_out_as_a_sort_does(shortest):
    """Of groups of all sizes, also none, in whatever sequences and batches."""
    draw = random.Random(shortest)
    for key in range(60):
        lengths = [draw.randint(shortest, 9) for _ in range(draw.randint(1, 12))]
        lengths[0] += 1
        size, number = sum(lengths), draw.randint(1, 8)
        order = LocalOrder(Locality(tuple(lengths), number), draw.randint(1, size + 3), key)
        found = order.at(np.arange(size))
        orders = [order._within(group).tolist() for group in range(len(lengths))]
        assert [sorted(each) for each in orders] == [list(range(each)) for each in lengths]
        expected = laid_out(lengths, number, order._batch_size, key, orders.__getitem__)
        assert found.tolist() == expected
        assert (order.places_of(found) == np.arange(size)).all()
        some = np.array(draw.choices(range(size), k=5))
        assert (order.at(some) == found[some]).all()


def streamed(**changes) -> TrainOrder:
    lengths = (40, 3, 25, 40, 17, 40, 33, 2)
    order = {"batch_size": 16, "seed": 3, "version": 2, "locality": Locality(lengths, 3)}
    return TrainOrder(**{"num_images": 200, **order, **changes})


def test_a_streamed_epoch_has_each_image_once_in_few_groups():
    order = streamed()
    found = order.epoch(1)
    assert sorted(found.tolist()) == list(range(200))
    assert not torch.equal(found, order.epoch(0)) and torch.equal(found, streamed().epoch(1))
    group = torch.repeat_interleave(torch.arange(8), torch.tensor(order.locality.lengths))
    for batch in found.split(16):  # each of 3 sequences may change over to its next group, or two
        assert len(group[batch].unique()) <= 6


def test_groups_and_their_images_are_shuffled_evenly():
    """Of two groups of two, in one sequence, all eight orders come about alike."""
    locality = Locality((2, 2), 1)
    orders = [tuple(LocalOrder(locality, 4, key).at(np.arange(4))) for key in range(1600)]
    named, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(named) == 8 and stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["streamed", "repeated", "balanced"])
def test_steps_are_those_of_the_epoch(kind):
    """Begun anywhere, of any process; and what follows an image that cannot be used."""
    if kind == "balanced":
        order = balanced(200, batch_size=16)
    else:
        order = streamed(**({} if kind == "streamed" else {"num_images": 400, "repeats": 2}))
    batches = list(order.batches(0, 30, 0))
    assert [index for _, index in chain(*batches)][: order.num_images] == order.epoch(0).tolist()
    for start in (1, 12, 13, 29):
        assert list(order.batches(start, 30, 0)) == batches[start:]
    listed = order.epoch(1).tolist()
    assert [order.replacement(1, index) for index in listed] == [*listed[1:], listed[0]]
    assert order.indices(1, np.array([7, 3])) == [listed[7], listed[3]]


def balanced(num_images: int, **changes) -> TrainOrder:
    """Image i is of class 0 in 7 of 10 cases, of 1 in 2, of 3 in the last; class 2 has none."""
    classes = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 0, 3]).repeat(-(-num_images // 10))[:num_images]
    of_classes = Balanced(classes.argsort(stable=True), classes.bincount(minlength=4))
    order = {"batch_size": 8, "seed": 3, "version": 2, "balanced": of_classes}
    return TrainOrder(**{"num_images": num_images, **order, **changes})


def test_balanced_draws_are_of_all_classes_and_images_alike():
    order = balanced(30_000)
    found = order.epoch(0)
    assert torch.equal(found // 30_000, torch.arange(30_000)), "each draw has an index of its own"
    images = found % 30_000
    of_class = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 0, 3])[images % 10]
    counts = of_class.bincount(minlength=4)
    assert counts[2] == 0 and stats.chisquare(counts[[0, 1, 3]]).pvalue > 1e-3
    for number, members in ((0, 21_000), (1, 6_000), (3, 3_000)):
        drawn = images[of_class == number].bincount(minlength=30_000)
        drawn = drawn[torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 0, 3]).repeat(3000) == number]
        cells = drawn.view(60, -1).sum(1)
        assert len(drawn) == members and stats.chisquare(cells).pvalue > 1e-3
    neighbours = np.histogram2d(of_class[:-1], of_class[1:], bins=[[0, 1, 2, 4]] * 2)[0]
    assert stats.chi2_contingency(neighbours).pvalue > 1e-3
    assert not torch.equal(order.epoch(1) % 30_000, images)


def test_orders_are_those_that_runs_began_with():
    """Literally, of both versions: another order would change every run in progress."""
    first = {
        (name, version): of(version=version).epoch(1)[:8].tolist()
        for name, of in (("streamed", streamed), ("balanced", partial(balanced, 200)))
        for version in (1, 2)
    }
    assert first == {
        ("streamed", 1): [40, 41, 42, 2, 29, 6, 20, 199],
        ("streamed", 2): [75, 93, 96, 81, 101, 69, 104, 19],
        ("balanced", 1): [165, 50, 20, 90, 109, 39, 79, 113],
        ("balanced", 2): [17, 270, 523, 686, 936, 1099, 1269, 1569],
    }


def test_new_runs_of_many_images_compute_them():
    few, many = MOST_DRAWN, MOST_DRAWN + 1
    some = Balanced(torch.tensor([5]), torch.tensor([1]))
    for size, version in ((few, 1), (many, 2)):
        assert TrainOrder(size, 8, 0, locality=Locality((size,), 1)).newest_version == version
        assert TrainOrder(size, 8, 0, balanced=some).newest_version == version


def test_more_draws_than_indices_are_refused():
    """Draw n - 1 of n images has an index up to n * n - 1."""
    few = Balanced(torch.tensor([5]), torch.tensor([1]))
    size = math.isqrt(2**63 - 1)
    order = TrainOrder(size, 8, 0, version=2, balanced=few)
    assert order.indices(0, np.array([size - 1])) == [5 + (size - 1) * size]
    with pytest.raises(UserError, match="3,037,000,500 images, and sampler balanced draws from"):
        TrainOrder(size + 1, 8, 0, version=2, balanced=few)


@pytest.mark.parametrize("kind", ["streamed", "balanced"])
def test_many_images_take_no_memory(kind):
    """10^8 streamed images in row groups of 10^4; draws of 10^6, whose table of classes is given.

    Whole they take 800 and 8 MB for each array.
    """
    if kind == "streamed":
        locality = Locality((10_000,) * 10_000, 16)
        order = TrainOrder(10**8, 64, 0, version=2, locality=locality)
    else:
        order = balanced(10**6, batch_size=64)
    tracemalloc.start()
    batches = order.batches(5, 9, 0)
    keys = list(chain(*batches))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6 and len(set(keys)) == 256

"""Label maps and their counts against plain torch.

Equal in every pixel, whatever the types and the ties.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainkit.metrics import confusion
from trainkit.metrics.segmentation import MeanIoU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(2, 5, 70, 90), (1, 150, 3, 7), (3, 2, 4097), (1, 1, 2, 2), (0, 4, 3, 3)]
)
def test_the_most_probable_class_is_argmax(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator).to(dtype)
    # most pixels have several most probable classes
    ties = torch.randint(-2, 2, shape, generator=generator).to(dtype)
    close = 1 + torch.finfo(dtype).eps * ties  # neighbours among the numbers of this type
    for each in (
        scores,
        ties,
        close,
        scores.transpose(-1, 0).contiguous().transpose(-1, 0),
        -0.0 * ties,
    ):
        assert torch.equal(confusion.argmax_labels(each), each.argmax(1))


def test_the_most_probable_class_among_nans():
    scores = torch.randn(2, 6, 50, 60, generator=torch.Generator().manual_seed(1))
    scores[0, 2, 3, 4] = scores[0, 5, 3, 4] = scores[1, :, 7, 8] = float("nan")
    scores[0, :, 0, 0] = float("-inf")
    scores[0, 3:, 0, 1] = float("inf")
    assert torch.equal(confusion.argmax_labels(scores), scores.argmax(1))
    last = scores.contiguous(memory_format=torch.channels_last)
    assert torch.equal(confusion.argmax_labels(last), scores.argmax(1))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("classes", [2, 7, 200, 256, 257])
def test_masks_of_any_size_and_layout(classes):
    """Cut out of a larger tensor too, and of few pixels; the last class may be the largest."""
    generator = torch.Generator().manual_seed(classes)
    for size in ((2, 1, 1), (1, 3, 5), (2, 17, 19)):
        images, height, width = size
        scores = torch.randint(-3, 4, (images, classes, height + 2, width + 3), generator=generator)
        scores[..., 0, 0] = torch.arange(classes)
        for dtype in (torch.float32, torch.bfloat16):
            each = scores.to(dtype)
            last = each.contiguous(memory_format=torch.channels_last)
            for layout in (each, last, each.transpose(-1, -2)):
                for part in (layout, layout[..., 2:, 3:], layout[:, 1:], layout.flip(1)):
                    assert torch.equal(confusion.argmax_labels(part), part.argmax(1))
                    with torch.inference_mode():
                        assert torch.equal(confusion.argmax_labels(part), part.argmax(1))


def test_pieces_of_masks_in_threads(threads):
    """Of several pieces an image, one of them with NaN."""
    scores = torch.randn(2, 3, 300, 301, generator=torch.Generator().manual_seed(0))
    assert scores[0, 0].numel() > 2 * confusion.SCORES_AT_ONCE
    scores[1, 1, 150, 7] = float("nan")
    for each in (scores, scores.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(confusion.argmax_labels(each), scores.argmax(1))


def test_pieces_of_counts_in_threads(threads):
    """More pixels than the table is summed of at once, and ids that have no place in the last."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(5, (2, confusion.LABELS_AT_ONCE + 301_001), generator=generator)
    maps[1, ::3] = 255
    assert maps.shape[1] > confusion.WORTH_THREADS
    for beyond in (None, 7, 8, -1, 2**40):
        if beyond is not None:
            maps[0, -1] = beyond
        predictions, references = maps
        cells = confusion._cells(predictions, references, 5, 255)
        expected = confusion._count_in_place(cells, 42).view(7, 6)
        assert torch.equal(confusion.count_pairs(predictions, references, 5, 255), expected)
        expected = confusion._count_in_place(confusion._cells(references, predictions, 5, 9), 42)
        found = confusion.count_pairs(references, predictions, 5, 9)
        assert torch.equal(found, expected.view(7, 6))


def test_counts_of_several_threads_are_their_own():
    """The memory that stays from batch to batch is each thread's own."""
    generator = torch.Generator().manual_seed(2)
    maps = [
        torch.randint(classes, (2, 300, 300), generator=generator) for classes in (3, 40, 90, 150)
    ]
    alone = [confusion.count_pairs(each, each.flip(0), 150, 255) for each in maps]
    with ThreadPoolExecutor(len(maps)) as pool:
        for _ in range(20):
            beside = list(
                pool.map(lambda each: confusion.count_pairs(each, each.flip(0), 150, 255), maps)
            )
            assert all(map(torch.equal, beside, alone))


def test_counts_do_not_remember_how_the_first_were_taken():
    """In a new thread, where the memory is made."""
    maps = torch.arange(12).view(2, 6) % 3

    def counts():
        with torch.inference_mode():
            first = confusion.count_pairs(maps, maps.flip(0), 3, 255)
        return first, confusion.count_pairs(maps, maps.flip(0), 3, 255)

    with ThreadPoolExecutor(1) as pool:
        first, then = pool.submit(counts).result()
    assert torch.equal(first, then) and torch.equal(then, one_by_one(maps, maps.flip(0), 3, 255))


def one_by_one(
    predictions: torch.Tensor, references: torch.Tensor, classes: int, ignore: int
) -> torch.Tensor:
    """The definition, a pixel at a time."""
    counts = torch.zeros(classes + 2, classes + 1, dtype=torch.int64)
    for prediction, reference in zip(predictions.flatten().tolist(), references.flatten().tolist()):
        row = reference if 0 <= reference < classes else classes + (reference != ignore)
        counts[row, prediction if 0 <= prediction < classes else classes] += 1
    return counts


@given(
    st.integers(0, 10**6),
    st.integers(2, 9),
    st.sampled_from([255, 9, -1, -100, 65535, 10**6]),
    st.sampled_from(["none", "references", "predictions", "both"]),
    st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16]),
)
def test_counts_are_those_of_the_definition(seed, classes, ignore, out_of_range, dtype):
    generator = torch.Generator().manual_seed(seed)
    predictions, references = (
        torch.randint(classes, (2, 5, 7), generator=generator) for _ in range(2)
    )
    limits = torch.iinfo(dtype)
    if limits.min <= ignore <= limits.max:
        references[torch.rand(references.shape, generator=generator) < 0.3] = ignore
    else:
        ignore = 255 if limits.max >= 255 else -1
    if out_of_range in ("references", "both"):
        references[0, 0] = torch.tensor(
            [100, 120, min(limits.max, 2**40), max(limits.min, -3), 9, 0, 1]
        )
    references = references.to(dtype)
    if out_of_range in ("predictions", "both"):
        predictions[1, :, 0] = torch.tensor([-1, classes, 2**40, -(2**40), 0])
    counts = confusion.count_pairs(predictions, references, classes, ignore)
    assert torch.equal(counts, one_by_one(predictions, references, classes, ignore))


def test_both_ways_of_counting_agree():
    """Pieces, and the way of other devices, on the CPU's tensors here."""
    generator = torch.Generator().manual_seed(0)
    predictions, references = (
        torch.randint(150, (3, 600, 601), generator=generator) for _ in range(2)
    )
    references[:, :20] = 255
    assert predictions.numel() > confusion.LABELS_AT_ONCE
    cells = confusion._cells(predictions.flatten(), references.flatten(), 150, 255)
    in_place = confusion._count_in_place(cells, 152 * 151).view(152, 151)
    assert torch.equal(confusion.count_pairs(predictions, references, 150, 255), in_place)
    valid = references != 255
    assert int(in_place[:150].sum()) == int(valid.sum()) and int(in_place[150].sum()) == int(
        (~valid).sum()
    )


def test_rows_of_images_are_counts_of_their_pixels():
    generator = torch.Generator().manual_seed(0)
    predictions, references = (torch.randint(4, (3, 6, 7), generator=generator) for _ in range(2))
    references[0, :2], references[2] = 255, 255
    images = MeanIoU(4).per_image("mIoU")
    images.add_batch(predictions=predictions, references=references)
    for row, prediction, reference in zip(images.rows().view(3, 3, 4), predictions, references):
        prediction, reference = prediction[reference != 255], reference[reference != 255]
        for found, ids in zip(row, (reference[prediction == reference], reference, prediction)):
            assert found.tolist() == [(ids == c).sum() for c in range(4)]


def test_nan_in_threads_of_inference_mode():
    """The threads are outside the mode that the scores were made in."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            scores = torch.randn(1, 3, 2 * confusion.SCORES_AT_ONCE)
            scores[0, 1, ::5] = torch.nan
            assert torch.equal(confusion.argmax_labels(scores), scores.argmax(1))
    finally:
        torch.set_num_threads(before)

"""The few validation images that are shown: which they are, read again, with their predictions."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainkit.data.loader import make_loader
from trainkit.data.sampler import EVALUATION
from trainkit.data.seeding import generators_kept, seed_step
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.recipe import Recipe
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import THRESHOLD
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.segmentation import Segmentation

MISTAKES_OF_A_CLASS, MOST_MISTAKES = 3, 24
_COUNTS = ("intersection", "predicted_pixels", "true_pixels")
RANKED = 3  # classes of an image that are named where its ranking is asked for


@dataclass(frozen=True)
class Shown:
    """An image as the network got it, and what is known of it."""

    pixels: np.ndarray
    """uint8 (H, W, 3)"""
    target: np.ndarray
    """class id, probabilities (C,), mask (H, W), or masks (C, H, W)"""
    prediction: np.ndarray | None
    """predicted mask or masks, or values (H, W); None where the evaluation's rows say it, or
    nothing does"""
    ranking: tuple[tuple[int, float], ...] = ()
    """class ids and probabilities, the most probable first, where they were asked for"""


def chosen(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, list[int]]:
    """Which images are shown, by kind: "worst", "median" and "mistake", the first one first.

    Args:
        arrays: rows of all images, see `image_rows.merged`.
        number: of images of the first two kinds, at most.

    Returns:
        Indices; no kind that the rows do not show.
    """
    order = _worst_first(arrays)
    if order is None:
        return {}
    number = min(number, len(order))
    middle = max(0, (len(order) - number) // 2)
    worst = order[:number].tolist()
    median = [index for index in order[middle : middle + number].tolist() if index not in worst]
    found = {"worst": worst, "median": median}
    if "predicted" in arrays:
        found["mistake"] = _mistakes(arrays, MOST_MISTAKES if number >= 16 else number)
    return found


def worst_by(arrays: Mapping[str, np.ndarray]) -> str:
    """What the worst images are sorted by, for headings."""
    if "intersection" in arrays:
        return "the lowest IoU"
    return "the most wrong labels" if "score" in arrays else "the highest loss"


def ious(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean IoU of each image over the classes in it: float64 (n,), NaN where none is."""
    hits = arrays["intersection"].astype(np.float64)
    union = arrays["true_pixels"] + arrays["predicted_pixels"] - hits
    known = union > 0
    sums = np.where(known, hits / np.maximum(union, 1), 0).sum(1)
    return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)


def iou_of(arrays: Mapping[str, np.ndarray], index: int) -> float | None:
    """That of one image; None where no class is in it."""
    rows = {name: arrays[name][index : index + 1] for name in _COUNTS}
    value = float(ious(rows)[0])
    return None if np.isnan(value) else value


def labels_called(arrays: Mapping[str, np.ndarray], index: int | slice) -> np.ndarray:
    """Which classes images are said to be of, by the thresholds of the evaluation: bool (..., C).

    A class that counts nowhere in an image is none of them.
    """
    scores = arrays["score"][index].astype(np.float64)
    probabilities = np.exp(-np.logaddexp(0, -scores))
    thresholds = arrays.get("thresholds", THRESHOLD)
    return (probabilities > thresholds) & (arrays["target"][index] >= 0)


def _worst_first(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Indices of the images that are measured; None where nothing says which is worse.

    Masks by their IoU; of any number of classes per image those with the most wrong labels first,
    and of as many the one with the highest loss; others by their loss.
    """
    badness = -ious(arrays) if "intersection" in arrays else arrays.get("loss")
    if badness is None:
        return None
    order = (-badness).argsort(kind="stable")
    order = order[~np.isnan(badness[order])]
    if "score" in arrays:
        wrong = (labels_called(arrays, slice(None)) != (arrays["target"] > 0)).sum(1)
        order = order[(-wrong[order]).argsort(kind="stable")]
    return order


def _mistakes(arrays: Mapping[str, np.ndarray], most: int) -> list[int]:
    """The most confident mistakes, at most three of each true class."""
    target, predicted = arrays["target"], arrays["predicted"]
    found: list[int] = []
    seen: dict[int, int] = {}
    for index in (-arrays["probability"]).argsort(kind="stable").tolist():
        label = int(target[index])
        if label < 0 or label == predicted[index] or seen.get(label, 0) == MISTAKES_OF_A_CLASS:
            continue
        seen[label] = seen.get(label, 0) + 1
        found.append(index)
        if len(found) == most:
            break
    return found


def fixed(total: int, number: int) -> list[int]:
    """So many of `total` images, evenly spaced, the same ones in every evaluation."""
    return sorted({total * place // number for place in range(number)})


def read_shown(
    evaluator: Evaluator, indices: Sequence[int], ranked: Collection[int] = ()
) -> dict[int, Shown]:
    """Read validation images once more, as the evaluation did, and predict masks of them.

    The model has the weights that are measured, and is in evaluation mode. No training is changed:
    what is drawn here is drawn from generators that are restored.

    Args:
        evaluator: that measured them.
        indices: of the images.
        ranked: which of them, of a recognition, get their most probable classes.

    Returns:
        The images by index. Of a model whose parameters are sharded, all processes call it where
        anything is predicted.
    """
    with generators_kept(), torch.no_grad():
        return dict(_read(evaluator, indices, ranked))


def _read(
    evaluator: Evaluator, indices: Sequence[int], ranked: Collection[int]
) -> Iterator[tuple[int, Shown]]:
    recipe = evaluator.recipe
    batches = [[(EVALUATION, index)] for index in indices]
    device = evaluator.accelerator.device
    loader = make_loader(recipe.val_data, evaluator.seed, batches, 0, device, recipe.task.own_check)
    for index, (images, targets, _) in zip(indices, loader):
        seed_step(evaluator.seed, EVALUATION - index, 0)
        prediction: np.ndarray | None = None
        ranking: tuple[tuple[int, float], ...] = ()
        if isinstance(recipe.task, (Segmentation, MultiLabelSegmentation, DenseRegression)):
            mask = _predicted(evaluator, *evaluator.to_device(images, targets))
            prediction = mask.cpu().numpy()
        elif index in ranked:
            ranking = _ranking(_predicted(evaluator, *evaluator.to_device(images, targets)))
        pixels = as_pixels(images[:, 4] if images.ndim == 5 else images, recipe)
        yield index, Shown(pixels[0], targets[0].cpu().numpy(), prediction, ranking)


def _ranking(logits: Tensor) -> tuple[tuple[int, float], ...]:
    """The most probable classes by their logits (C,)."""
    top = logits.float().softmax(0).topk(min(RANKED, len(logits)))
    return tuple(zip(top.indices.tolist(), top.values.tolist()))


def _predicted(evaluator: Evaluator, images: Tensor, targets: Tensor) -> Tensor:
    """What is predicted of one image: its mask (H, W), or its logits (C,)."""
    recipe = evaluator.recipe
    if recipe.inference is not None:
        black, layout = evaluator.to_device.black, evaluator.to_device.format
        inferer = SlidingWindowInferer(
            recipe.inference, evaluator.runner, evaluator.accelerator, black, layout
        )
        found = recipe.task.from_scores(inferer.scores_of(images, targets))
    else:
        found = evaluator.runner(images, targets)
    return found[0]


def as_pixels(images: Tensor, recipe: Recipe, raw: Tensor | None = None) -> np.ndarray:
    """Images as a person sees them: uint8 (N, H, W, 3).

    Of whole numbers the values as they are. Of floats what mean and std made of them is undone,
    where they are not in [0, 1]. Of other than three channels the first three are shown, or the
    first one in grey.

    Args:
        images: (N, C, H, W), as read, or normalised.
        recipe: whose mean and std they are.
        raw: the images as read, where `images` are normalised.
    """
    read = images if raw is None else raw
    values = images.detach().cpu()
    if values.dtype == torch.uint16:
        values = values.to(torch.float32) / 65535
    elif values.dtype == torch.uint8:
        values = values.to(torch.float32) / 255
    elif not (read.is_floating_point() and float(read.min()) >= 0 and float(read.max()) <= 1):
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (recipe.mean, recipe.std))
        if len(mean) == values.shape[1]:
            values = values.float() * std + mean
    channels = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1)
    pixels = (channels.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()

"""What belongs to a trained model beside its weights, and predictions made with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from trainkit.data.bands import USUAL, WHITE, PixelSettings, as_stored
from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import prepare
from trainkit.engine.evaluation_module import EvaluationModule
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError, shortage_reported
from trainkit.inference import Inference
from trainkit.losses.functional import check_num_outputs
from trainkit.models.outputs import main_logits, refusals_reported, run_padded, size_divisor
from trainkit.prediction.blocks import Blocks
from trainkit.prediction.eval_transform import transform_of
from trainkit.prediction.images import ImageLike, Picture, as_pixels, find_images
from trainkit.prediction.results import (
    called,
    largest_classes,
    predicted_mask,
    predicted_values,
    records_of_masks,
    top_classes,
)
from trainkit.recipe import MEAN, STD, Recipe
from trainkit.tasks.base import Task
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

Infer = Callable[[Tensor], Any]  # images (N, C, h, w) -> what the task's predictions are made of


@dataclass(frozen=True)
class ModelInfo:
    """What belongs to a trained model beside its weights: what it takes, and what its outputs mean.

    `trainkit.load` gives it with the model.
    """

    model: nn.Module = field(repr=False)  # of hundreds of lines
    task: Task
    transform: Callable[[Any], Any] | None
    """what an evaluation makes of an image that was read, uint8 (3, H, W); None: nothing"""
    mean: Sequence[float] = MEAN
    """per channel, of images in [0, 1]"""
    std: Sequence[float] = STD
    pixels: PixelSettings = USUAL
    """channels and bits that image files are read with"""
    upright: bool = True
    """whether images are turned by their EXIF orientation"""
    inference: Inference | None = None
    """windows, scales and flips of an evaluation (segmentation)"""
    batch_size: int = 1
    """images of one forward pass"""
    thresholds: Sequence[float | None] | None = None
    """of `MultiLabel`: the probability of each class above which it is called, None for 0.5; of
    `MultiLabelSegmentation`: above which a pixel is of it, None for the task's threshold"""
    val_data: SizedDataset | None = None
    """where a recipe opened it"""

    @classmethod
    def of(cls, recipe: Recipe, for_other_images: bool = True) -> "ModelInfo":
        """Of a recipe.

        for_other_images: the transform is to be used, and not described alone. Raises UserError
        where the validation data does not say how it treats an image then.
        """
        transform = DatasetInfo.of(recipe.val_data).transform
        return cls(
            model=recipe.model,
            task=recipe.task,
            transform=transform_of(recipe.val_data) if for_other_images else transform,
            mean=recipe.mean,
            std=recipe.std,
            pixels=DatasetInfo.of(recipe.val_data).pixels,
            upright=recipe.upright,
            inference=recipe.inference,
            batch_size=recipe.eval_batch_size,
            val_data=recipe.val_data,
        )

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the order of their ids; their ids where they have none."""
        known = self.task.known_classes
        names = range(known or 0) if isinstance(known, int | None) else known
        return [str(name) for name in names]

    def preprocess(self, image: ImageLike) -> Tensor:
        """An image as the model takes it.

        Args:
            image: a file, a PIL image, or pixels: an array (H, W, C) or a tensor (C, H, W), uint8,
                or uint16 where the model takes 16 bits.

        Returns:
            Float32 (1, 3, h, w), resized, cropped and normalised as in an evaluation, on the
            device of the model; of an evaluation in ten crops (10, 3, h, w).
        """
        pixels = as_pixels(image, self.upright, self.pixels)
        image = self._transformed(pixels)
        return self.to_device()(image[None], torch.empty(1))[0]

    def predict(
        self, images: ImageLike | Sequence[ImageLike], top_k: int = 5
    ) -> list[dict[str, Any]]:
        """What the model says of images, in their order.

        Args:
            images: one, or a list of them, see `preprocess`; or a folder with images at any depth.
            top_k: classes named for each image.

        Returns:
            For each image a dict with "file", None where it was given in memory. Recognition:
            "top", the most probable classes, each with "class", "name" and "probability".
            Of any number of classes per image (`MultiLabel`) "labels", likewise, all those above
            their thresholds.
            Segmentation: "mask", class ids (H, W), uint8 or of more than 256 classes int32, at the
            size of the image, and "classes", the largest ones, each with "class", "name" and
            "share"; of overlapping classes (`MultiLabelSegmentation`) "masks", uint8 (C, H, W), and
            "classes". Dense regression: "values", float32 (H, W), and their "least", "mean" and
            "largest". Another task: what its method `records` gives.

        Raises:
            UserError: an image cannot be read, or the task has no predictions to write.
        """
        listed = _listed(images)
        training = [module for module in self.model.modules() if module.training]
        try:
            return self._predicted(listed, top_k)
        finally:  # module by module: some may have been frozen in evaluation mode
            for module in training:
                module.training = True

    def _predicted(self, listed: Sequence[ImageLike], top_k: int) -> list[dict[str, Any]]:
        infer = self.infer()
        self.model.eval()
        found = []
        chunks = range(0, len(listed), self.batch_size)
        batches = (
            [self._read(image) for image in listed[first : first + self.batch_size]]
            for first in chunks
        )
        for pictures, outputs in scored(batches, infer, self, self.blocks()):
            for picture, row in zip(pictures, self.records(pictures, outputs, top_k)):
                file = None if picture.file == Path() else str(picture.file)
                found.append({"file": file, **row})
        return found

    def records(
        self, pictures: Sequence[Picture], outputs: Any, top_k: int
    ) -> list[dict[str, Any]]:
        """What is said of each picture, see `predict`; outputs: what `infer` gave for them."""
        if isinstance(self.task, Recognition):
            probabilities = self.probabilities(outputs, len(pictures))
            rows = top_classes(probabilities, self.classes, top_k)
            return [{"top": row} for row in rows]
        if isinstance(self.task, MultiLabel):
            probabilities = self.probabilities(outputs, len(pictures))
            return [{"labels": row} for row in called(probabilities, self.classes, self.thresholds)]
        if isinstance(self.task, Segmentation):
            masks = self._masks(pictures, outputs)
            return [
                {"mask": mask, "classes": largest_classes(mask, self.classes)[:top_k]}
                for mask in masks
            ]
        if isinstance(self.task, MultiLabelSegmentation):
            usual = self.task.threshold
            limits = self.thresholds or [None] * self.task.num_classes
            known = [usual if each is None else each for each in limits]
            sizes = [picture.size for picture in pictures]
            return records_of_masks(outputs, sizes, known, self.classes, top_k)
        if isinstance(self.task, DenseRegression):
            within = self.task.limits
            pairs = zip(outputs, pictures)
            return [predicted_values(each, picture.size, within) for each, picture in pairs]
        if self.task.provides("records"):
            return self.task.records(outputs, [picture.size for picture in pictures])
        raise UserError(
            f"task {type(self.task.given).__name__}: predictions are written for Recognition,"
            " MultiLabel and Segmentation, what is derived from them, and tasks with a method"
            " `records`, see trainkit.tasks.base.Task"
        )

    def _masks(self, pictures: Sequence[Picture], outputs: Tensor | list[Tensor]) -> list[Tensor]:
        if isinstance(outputs, list):  # of images too large for scores
            return outputs
        return [predicted_mask(each, picture.size) for each, picture in zip(outputs, pictures)]

    def probabilities(self, outputs: Tensor, number: int) -> Tensor:
        """Of each class, from what `infer` gave for `number` images: (N, C), or (N, C, h, w)."""
        if isinstance(self.task, Recognition):
            return self.task.predict(outputs, torch.empty(number)).softmax(1)
        if isinstance(self.task, MultiLabel):
            return self.task.predict(outputs, torch.empty(number)).sigmoid()
        if isinstance(self.task, MultiLabelSegmentation):  # `infer` gave probabilities
            return outputs
        if self.inference is None:
            return outputs.softmax(1)
        return self.task.probabilities(outputs) if isinstance(self.task, Segmentation) else outputs

    def infer(self, accelerator: Accelerator | None = None) -> Infer:
        """What takes images of one shape, normalised, to logits (N, C) or (N, C, h, w), float32.

        Of overlapping classes, to probabilities.
        Where an evaluation looks in windows, at scales or flipped, to probabilities at the size of
        the images; of a task of another kind to what the model returns. accelerator: what the
        model is prepared by; None: it runs where it is.
        """
        prepared = partial(prepare, accelerator) if accelerator is not None else nn.Module.eval
        if self.inference is None:
            model = prepared(self.model).eval()
            called = EvaluationModule(model, accelerator, self.task.is_dense)
            return partial(self._outputs, called)
        to_device = self.to_device(None if accelerator is None else accelerator.device)
        inferer = SlidingWindowInferer(
            self.inference,
            prepared(TaskModule(self.model, self.task)).eval(),
            accelerator or Accelerator(),
            to_device.black,
        )

        def infer(images: Tensor) -> Tensor:
            samples = ((image[None], image.new_empty(1, *image.shape[-2:])) for image in images)
            # in the images' order
            return torch.cat([scores for done in inferer.infer(samples) for scores, _ in done])

        return infer

    def blocks(self, accelerator: Accelerator | None = None) -> Blocks | None:
        """What sees images too large to hold the scores of; None where it takes no windows."""
        seen = self.inference
        if seen is None or seen.window is None or len(seen.scales) > 1 or seen.scales[0] != 1:
            return None
        if not isinstance(self.task, Segmentation):
            return None
        module = TaskModule(self.model, self.task)
        prepared = module if accelerator is None else prepare(accelerator, module)
        to_device = self.to_device(None if accelerator is None else accelerator.device)
        return Blocks(seen, prepared.eval(), to_device, self.task.num_classes)

    def _outputs(self, model: EvaluationModule, images: Tensor) -> Any:
        outputs = run_padded(model, images, size_divisor(self.model) if self.task.is_dense else 1)
        if isinstance(self.task, (DenseRegression, MultiLabelSegmentation)):
            return self.task.scores(outputs, images)
        if not isinstance(self.task, (Recognition, Segmentation, MultiLabel)):
            return outputs
        logits = main_logits(outputs)
        check_num_outputs(logits, self.task.num_classes, type(self.task).__name__)
        return logits.float()

    def to_device(self, device: torch.device | None = None) -> ToDevice:
        """What moves images to a device, the model's by default, and normalises them."""
        if device is None:
            device = next((each.device for each in self.model.parameters()), torch.device("cpu"))
        return ToDevice(device, self.mean, self.std)

    def _read(self, image: ImageLike) -> Picture:
        pixels = as_pixels(image, self.upright, self.pixels)
        file = Path(image) if isinstance(image, (str, Path)) else Path()
        return Picture(file, file, self._transformed(pixels), tuple(pixels.shape[-2:]))

    def _transformed(self, pixels: tv_tensors.Image) -> Tensor:
        image = pixels if self.transform is None else self.transform(pixels)
        return as_stored(image, self.pixels).as_subclass(Tensor)


@torch.inference_mode()
def scored(
    batches: Iterable[Sequence[Picture]],
    infer: Infer,
    info: ModelInfo,
    blocks: Blocks | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[list[Picture], Any]]:
    """Run batch by batch: neighbours of one shape, and what `infer` gives for them.

    Pictures with a fault are left out. Of an image too large for scores, where `blocks` are given,
    it is a list with its mask (H, W). device: of the model.
    """
    to_device = info.to_device(device)
    for batch in batches:
        readable = [(picture, picture.image) for picture in batch if picture.image is not None]
        for _, group in groupby(readable, key=lambda pair: pair[1].shape):
            pairs = list(group)
            alike = [picture for picture, _ in pairs]
            with shortage_reported("the prediction"), refusals_reported(info.model):
                if blocks is not None and _is_large(*pairs[0], blocks):
                    yield from (([picture], [blocks.mask(image)]) for picture, image in pairs)
                    continue
                images = torch.stack([image for _, image in pairs])
                images, _ = to_device(images, torch.empty(len(alike)))
                outputs = infer(images)
            yield alike, outputs


def _is_large(picture: Picture, image: Tensor, blocks: Blocks) -> bool:
    """Whether its mask is put together of blocks: it is seen at its own size."""
    is_stored = image.dtype in WHITE and tuple(image.shape[-2:]) == picture.size
    return is_stored and blocks.are_needed(picture.size)


def _listed(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """One by one: those of a list, of a folder, or a single one."""
    if isinstance(images, (str, Path)):
        return list(find_images([Path(images)])[0])
    if isinstance(images, (Image.Image, np.ndarray, Tensor)):
        return [images]
    return images

"""Sliding-window inference, at several scales and flipped, many windows in one forward pass.

Windows of all scales, flips and images are queued and cut into batches, whatever image they are of;
where the whole image is one window, those of one size make a batch. The scores of a pixel are the
mean over the windows that see it, flipped ones too, and then over the scales, each resized to the
image's own mask.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.distributed.fsdp import most_of_all
from trainkit.engine.evaluation_module import EvaluationModule
from trainkit.inference import Inference


@dataclass
class _Scaled:
    """An image at one scale, and what its windows have given so far."""

    whole: "_Image"
    size: tuple[int, int]
    filled: tuple[int, int]  # with black
    left: int  # windows to come
    sums: Tensor | None = None  # (C, H, W)
    seen: Tensor | None = None  # (H, W)


@dataclass
class _Image:
    """One image: the mean over its scales so far."""

    targets: Tensor  # (1, H, W)
    left: int  # scales to come
    total: Tensor | None = None  # (1, C, H, W), float32


@dataclass
class _Window:
    """A part of an image, and where its scores go."""

    pixels: Tensor  # (C, h, w)
    scaled: _Scaled
    top: int
    left: int
    flipped: bool


@dataclass
class SlidingWindowInferer:
    """Runs a model over images by inference settings, in step with the other processes."""

    inference: Inference
    task_module: nn.Module | EvaluationModule
    """as prepared; in evaluation mode it gives scores where it gets no targets"""
    accelerator: Accelerator
    black: Tensor
    """(C, 1, 1): what images are filled up with, as the model sees it"""
    memory_format: torch.memory_format = torch.contiguous_format
    """of what the model gets"""

    def __post_init__(self) -> None:
        given = self.task_module
        self._module = (
            given
            if isinstance(given, EvaluationModule)
            else EvaluationModule(given, self.accelerator, is_dense=True)
        )

    def infer(
        self, samples: Iterable[tuple[Tensor, Tensor]]
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield after each sample the images that are finished by then, as scores and targets.

        Args:
            samples: images (1, 3, h, w) and targets (1, H, W).

        Yields:
            Scores (1, C, H, W) at the size of their targets, and these; after the last sample once
            more.
        """
        for finished in self.turns(samples):
            yield list(finished)

    def turns(
        self, samples: Iterable[tuple[Tensor, Tensor | None]]
    ) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """As `infer`, with each turn to be gone through before the next one is asked for.

        Only with sharded parameters processes agree on how many passes they make in a turn.

        Args:
            samples: as many in every process; without targets those that do not count.
        """
        waiting: defaultdict[torch.Size, list[_Window]] = defaultdict(list)
        filler = None
        for images, targets in samples:
            if self._module.is_sharded:
                filler = next(self._windows(images, images)).pixels[None]
            ready = () if targets is None else self._full(waiting, images, targets)
            yield self._passes(ready, filler)
        yield self._passes(waiting.values(), filler)

    def _passes(
        self, batches: Iterable[list[_Window]], filler: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Run batches of windows; yield each image that is finished, its scores and targets."""
        together = 0
        if self._module.is_sharded:
            batches = list(batches)
            together = most_of_all(len(batches), self.black.device) - len(batches)
        for batch in batches:
            given = self._forward(torch.stack([window.pixels for window in batch]))
            for window, scores in zip(batch, given):
                done = self._add(window, scores)
                if done is not None:
                    yield done[0] / len(self.inference.scales), done[1]
        for _ in range(together):  # the others gather the weights of this process
            self._forward(filler)

    def scores_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """The scores of one image, without the other processes; with sharded parameters, with all.

        Args:
            images: (1, 3, h, w).
            targets: (1, H, W).

        Returns:
            (1, C, H, W).
        """
        waiting: defaultdict[torch.Size, list[_Window]] = defaultdict(list)
        for batch in (*self._full(waiting, images, targets), *waiting.values()):
            given = self._forward(torch.stack([window.pixels for window in batch]))
            for window, scores in zip(batch, given):
                done = self._add(window, scores)
        assert done is not None  # the last window of the image
        return done[0] / len(self.inference.scales)

    def _forward(self, pixels: Tensor | None) -> Tensor:
        """Run (N, 3, h, w) -> scores (N, C, h, w)."""
        assert pixels is not None  # of a process that has read an image
        return self._module(pixels.contiguous(memory_format=self.memory_format), None)

    def _full(
        self,
        waiting: defaultdict[torch.Size, list[_Window]],
        images: Tensor,
        targets: Tensor,
    ) -> Iterator[list[_Window]]:
        """Add the windows of an image, and yield those that fill a pass, of one shape each.

        As few images as possible wait for a part of their windows.
        """
        most = self.inference.window_batch
        for window in self._windows(images, targets):
            line = waiting[window.pixels.shape]
            line.append(window)
            if len(line) == most:
                yield waiting.pop(window.pixels.shape)
        if sum(map(len, waiting.values())) > 2 * most:  # images of many shapes
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))

    def _windows(self, images: Tensor, targets: Tensor) -> Iterator[_Window]:
        """All windows of an image, at all scales, flipped too."""
        inference, whole = self.inference, _Image(targets, len(self.inference.scales))
        for scale in inference.scales:
            rows, columns = (max(1, int(length * scale + 0.5)) for length in images.shape[-2:])
            size = (rows, columns)
            image = images
            if size != images.shape[-2:]:
                image = F.interpolate(
                    images, size, mode="bilinear", align_corners=False, antialias=True
                )
            image = image[0]
            least = inference.sides or size
            if rows < least[0] or columns < least[1]:
                full = self.black.expand(-1, max(rows, least[0]), max(columns, least[1])).clone()
                full[:, : size[0], : size[1]] = image
                image = full
            down, across = inference.starts(image.shape[1:])
            places = [(top, left) for top in down for left in across]
            scaled = _Scaled(
                whole, size, (image.shape[1], image.shape[2]), len(places) * (1 + inference.flip)
            )
            height, width = inference.sides or image.shape[1:]
            for top, left in places:
                pixels = image[:, top : top + height, left : left + width]
                for flipped in (False, True)[: 1 + inference.flip]:
                    yield _Window(
                        pixels.flip(-1) if flipped else pixels, scaled, top, left, flipped
                    )

    def _add(self, window: _Window, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Add a window's scores (C, h, w) to its image.

        Returns the sum over the scales and the targets of its image where it was the last one, else
        None.
        """
        scaled, scores = window.scaled, scores.flip(-1) if window.flipped else scores
        if scaled.sums is None or scaled.seen is None:
            scaled.sums = scores.new_zeros(scores.shape[0], *scaled.filled)
            scaled.seen = scores.new_zeros(scaled.filled)
        rows, columns = (
            slice(window.top, window.top + scores.shape[1]),
            slice(window.left, window.left + scores.shape[2]),
        )
        scaled.sums[:, rows, columns] += scores
        scaled.seen[rows, columns] += 1
        scaled.left -= 1
        if scaled.left:
            return None
        mean = (scaled.sums / scaled.seen)[None, :, : scaled.size[0], : scaled.size[1]]
        scaled.sums = scaled.seen = None
        whole = scaled.whole
        if mean.shape[-2:] != whole.targets.shape[-2:]:
            mean = F.interpolate(
                mean, whole.targets.shape[-2:], mode="bilinear", align_corners=False
            )
        total = mean if whole.total is None else whole.total.add_(mean)
        whole.total = total
        whole.left -= 1
        return None if whole.left else (total, whole.targets)

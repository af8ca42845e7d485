"""The losses of mask classification: binary masks matched with queries, as sums with their counts.

A query of the network predicts a class, or none, and a binary mask. The matcher of transformers'
Mask2Former assigns to each binary mask of an image the query that costs least, and its losses
measure the pairs at points, most of them where the prediction is uncertain. These are called image
by image with a number of masks of 1, so that what they give is a sum: transformers' own loss
divides by a number of masks that each process clamps, in every forward pass.

The matching is computed on the host: each image and layer waits for the device.

Source:
    Cheng et al., 2022, Mask2Former; Kerssies et al., 2025, EoMT; transformers'
    `Mask2FormerLoss`, which `EomtLoss` equals.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.data.seeding import generators_kept, seed_torch
from trainkit.errors import MissingPackageError
from trainkit.losses.functional import class_presence

TERMS = ("class", "mask", "dice")


@dataclass(frozen=True)
class MaskLoss:
    """Cross-entropy of the queries' classes, and binary cross-entropy and Dice loss of their masks.

    Args:
        num_classes: C.
        num_queries: Q.
        no_object_weight: weight of a query that is to find nothing, in the cross-entropy.
        class_weight: factor of the cross-entropy, in the loss and in the matching.
        mask_weight: the same of the binary cross-entropy of masks.
        dice_weight: the same of their Dice loss.
        num_points: at which masks are compared.
        oversample_ratio: how many times as many the uncertain ones are chosen from.
        importance_sample_ratio: share of them that is chosen for uncertainty.
    """

    num_classes: int
    num_queries: int
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    def counts(self, targets: Tensor, ignore: int) -> Tensor:
        """Count what the sums are divided by, of targets alone; nothing waits for the device.

        An image has a binary mask for each class that occurs in it, of which at most as many as
        there are queries are matched.

        Args:
            targets: segmentation masks (N, H, W).
            ignore: the label that is no class.

        Returns:
            float32 (3,): the sum of the weights of all queries, and twice the number of matched
            binary masks.
        """
        masks = class_presence(targets, self.num_classes, ignore).sum(1)  # (N,)
        matched = masks.clamp(max=self.num_queries).sum()
        unmatched = len(targets) * self.num_queries - matched
        return torch.stack([matched + self.no_object_weight * unmatched, matched, matched])

    @torch.compiler.disable
    def sums(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        targets: Tensor,
        ignore: int,
        seeds: Sequence[int] | None,
    ) -> Tensor:
        """Sum each term over queries or binary masks, and over layers, times its factor.

        Args:
            layers: of the network, in the order in which random numbers are drawn for them: logits
                of classes (N, Q, C + 1), of which the last means nothing, and of masks (N, Q, h,
                w).
            targets: segmentation masks (N, H, W).
            ignore: the label that is no class; its pixels belong to no binary mask.
            seeds: of torch's generators for each image, which are afterwards as before; None: they
                are drawn from as they are.

        Returns:
            float32 (3,), with gradients.
        """
        with (
            torch.autocast(targets.device.type, enabled=False),
            nullcontext() if seeds is None else generators_kept(),
        ):
            images = [self._binary_masks(each, ignore) for each in targets]
            # (layers, N, Q): the class that each query is to find
            wanted = targets.new_full(
                (len(layers), len(targets), self.num_queries), self.num_classes, dtype=torch.long
            )
            # depends on all outputs, also where no image has a mask
            nothing = torch.stack([masks.float().sum() * 0 for _, masks in layers]).sum()
            pairs = [nothing, nothing]
            for image, (ids, masks) in enumerate(images):
                if not len(ids):
                    continue
                if seeds is not None:
                    seed_torch(seeds[image])
                for layer, outputs in enumerate(layers):
                    classes, logits = (each[image : image + 1].float() for each in outputs)
                    queries, chosen = self._matched(logits, classes, masks, ids)
                    wanted[layer, image, queries] = ids[chosen]
                    found = self._library.loss_masks(logits, [masks], [(queries, chosen)], 1)
                    pairs = [
                        total + found[name]
                        for total, name in zip(pairs, ("loss_mask", "loss_dice"))
                    ]
            weight = torch.ones(self.num_classes + 1, device=targets.device)
            weight[-1] = self.no_object_weight
            entropies = [
                F.cross_entropy(
                    classes.float().flatten(0, 1), of_layer.flatten(), weight, reduction="sum"
                )
                for (classes, _), of_layer in zip(layers, wanted)
            ]
            of_classes = torch.stack(entropies).sum()
            return torch.stack(
                [
                    self.class_weight * of_classes,
                    self.mask_weight * pairs[0],
                    self.dice_weight * pairs[1],
                ]
            )

    def _binary_masks(self, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
        """The classes of an image (n,) and their binary masks, float32 (n, H, W)."""
        ids = class_presence(target[None], self.num_classes, ignore)[0].nonzero()[:, 0]
        return ids, (target == ids[:, None, None]).float()

    def _matched(
        self, logits: Tensor, classes: Tensor, masks: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and the binary masks that they are to find, min(n, Q) of each."""
        ((queries, chosen),) = self._library.matcher(logits, classes, [masks], [ids])
        return queries.to(ids.device), chosen.to(ids.device)

    @cached_property
    def _library(self) -> Any:
        """Transformers' loss: its matcher and what it computes of matched masks."""
        try:
            library = import_module("transformers.models.mask2former.modeling_mask2former")
            import_module("scipy.optimize")
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "mask classification matches masks by transformers and scipy"
                f' ({error.name} is missing): pip install "trainkit[transformers]"'
            ) from error
        config = SimpleNamespace(
            num_labels=self.num_classes,
            no_object_weight=self.no_object_weight,
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            train_num_points=self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        return library.Mask2FormerLoss(config, {})

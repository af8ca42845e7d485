"""Networks of transformers that segment by masks: Mask2Former and EoMT.

Each query predicts a class, or none, and a binary mask. In training they return these for every
layer that is supervised, for `trainkit.tasks.mask_classification`; in evaluation the logarithm of
each pixel's scores, at the size of the image: the probabilities of classes and masks multiplied and
added up over the queries, as in the papers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.data.seeding import fold, generators_kept, seed_torch
from trainkit.errors import UserError

# Type of transformers -> the class of the network
MASK_NETWORKS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "eomt": "EomtForUniversalSegmentation",
    "eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
}
ANNEALING_POWER = 0.9
ROPE = 1 << 32  # beyond all positions of images in a batch

Layer = tuple[Tensor, Tensor]
"""logits of classes (N, Q, C + 1), of which the last means nothing, and of masks (N, Q, h, w)"""


def class_scores(classes: Tensor, masks: Tensor, size: torch.Size) -> Tensor:
    """Scores of each pixel and class, whose largest is predicted.

    Args:
        classes: logits (N, Q, C + 1), of which the last means nothing.
        masks: logits (N, Q, h, w).
        size: height and width of the scores, to which the logits of masks are resized.

    Returns:
        float32 (N, C, *size), of any sum.

    Source:
        Cheng et al., 2021, MaskFormer, section 3.4.
    """
    with torch.autocast(classes.device.type, enabled=False):
        probabilities = classes.float().softmax(-1)[..., :-1]
        inside = F.interpolate(masks.float(), size, mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("nqc,nqhw->nchw", probabilities, inside)


def mask_probabilities(num_blocks: int, step: int, total_steps: int) -> tuple[float, ...]:
    """The probability that a query of EoMT attends to its own mask alone, in each last block.

    The run has as many equal parts as there are blocks, and two. One block after another goes from
    1 to 0, each within a part, the first in the second part; in the last part there are no masks.

    Args:
        num_blocks: how many blocks there are that have queries.
        step: number of steps done.
        total_steps: of the whole run.

    Source:
        Kerssies et al., 2025, EoMT, with power 0.9: its configurations for ADE20K, Cityscapes and
        COCO have these steps.
    """
    part = total_steps / (num_blocks + 2)
    progress = (step / part - 1 - block for block in range(num_blocks))
    return tuple((1 - min(1.0, max(0.0, each))) ** ANNEALING_POWER for each in progress)


class _MaskNetwork:
    """What the networks have in common, before transformers' class in the order of bases."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Run images (N, C, H, W) -> "layers" in training, else "out", float32 (N, C, H, W)."""
        if self.training:  # type: ignore[attr-defined]
            return {"layers": self._layers(images)}
        classes, masks = self._layers(images)[self.last_layer]
        scores = class_scores(classes, masks, images.shape[-2:])
        return {"out": scores.clamp(min=torch.finfo(scores.dtype).tiny).log()}

    last_layer = -1
    original_forward: Callable[..., Any]  # of transformers' class

    def _layers(self, images: Tensor) -> list[Layer]:
        """Predictions of each layer, in the order in which transformers computes their losses."""
        raise NotImplementedError


class _Mask2Former(_MaskNetwork):
    last_layer = 0
    head_names = (
        "class_predictor",
        "criterion",
        "model.transformer_module",
        "model.pixel_level_module.decoder",
    )

    def _layers(self, images: Tensor) -> list[Layer]:
        found = self.original_forward(
            pixel_values=images, output_auxiliary_logits=True, output_hidden_states=True
        )
        last = (found.class_queries_logits, found.masks_queries_logits)
        others = [
            (each["class_queries_logits"], each["masks_queries_logits"])
            for each in found.auxiliary_logits
        ]
        return [last, *others]


class MaskedAttention(_MaskNetwork):
    """EoMT: queries attend to their own masks at times, in its last blocks.

    Its grid of patches is of one size.

    Attributes:
        image_size: height and width of the images that it takes.
    """

    head_names = ("query", "upscale_block", "mask_head", "class_predictor", "criterion")
    image_size: tuple[int, int]
    attn_mask_probs: Any
    config: Any

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        sides = config.image_size
        self.image_size = (sides, sides) if isinstance(sides, int) else tuple(sides)
        self._found: list[Layer] = []
        self._drawn: Tensor | None = None  # (N, blocks, Q), of the images of the next pass
        self._at = 0  # which block is masked next
        self._probabilities = (1.0,) * config.num_blocks
        self.register_load_state_dict_post_hook(MaskedAttention._read_probabilities)  # type: ignore[attr-defined]

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that a pretrained encoder brings."""
        own: Any = self
        for part in (own.embeddings, own.layers, own.layernorm):
            yield from part.parameters()

    def parameter_depths(self) -> dict[str, int]:
        """The layer of each parameter for layer-wise learning-rate decay.

        Embeddings are of the first block, and all but blocks of the last one, as in EoMT.
        """
        last = self.config.num_hidden_layers - 1
        named: Any = self
        depths = {}
        for name, _ in named.named_parameters():
            part, _, rest = name.partition(".")
            if part == "layers":
                depths[name] = int(rest.partition(".")[0])
            else:
                depths[name] = 0 if part == "embeddings" else last
        return depths

    def anneal(self, step: int, total_steps: int) -> None:
        """Set the probabilities of masked attention, see `mask_probabilities`."""
        self._probabilities = mask_probabilities(self.config.num_blocks, step, total_steps)
        for block, probability in enumerate(self._probabilities):
            self.attn_mask_probs[block].fill_(probability)

    def draw_masking(self, seed: int, positions: Sequence[int]) -> None:
        """Draw for each image of the next training pass which queries attend everywhere.

        Args:
            seed: of the step.
            positions: of the images in the batch over all processes.
        """
        self._drawn = self._draws([fold(seed, position) for position in positions])

    def _draws(self, seeds: Sequence[int]) -> Tensor:
        """Random numbers (N, blocks, Q) in [0, 1), as the network itself draws them for one image.

        Those of a block that is always masked are 0, as transformers draws none.
        """
        device = self._buffers["attn_mask_probs"].device  # type: ignore[attr-defined]
        shape = (len(seeds), self.config.num_blocks, self.config.num_queries)
        drawn = torch.zeros(shape, device=device)
        if min(self._probabilities) == 1:
            return drawn
        with generators_kept():
            for image, seed in enumerate(seeds):
                seed_torch(seed)
                for block, probability in enumerate(self._probabilities):
                    if probability < 1:
                        drawn[image, block] = torch.rand(1, shape[2], device=device)[0]
        return drawn

    def _layers(self, images: Tensor) -> list[Layer]:
        if images.shape[-2:] != self.image_size:
            sides, given = (
                " x ".join(map(str, pair)) for pair in (self.image_size, images.shape[-2:])
            )
            raise UserError(
                f"{type(self).__name__} takes images of {sides} pixels alone, and these have"
                f" {given}: train on crops of that size, and evaluate in windows of it, or build it"
                " for others (--model-args image_size=...)"
            )
        self._found, self._at = [], 0
        try:
            with self._probabilities_on_host():
                self.original_forward(images)
            return self._found
        finally:
            self._found = []

    @contextmanager
    def _probabilities_on_host(self) -> Iterator[None]:
        """Context manager: in evaluation, ask no device whether attention is masked."""
        if self.training:  # type: ignore[attr-defined]
            yield
            return
        own: Any = self
        own.__dict__["attn_mask_probs"] = self._probabilities
        try:
            yield
        finally:
            del own.__dict__["attn_mask_probs"]

    def predict(self, logits: Tensor) -> Layer:
        """As transformers', which calls it for each layer; what it returns is kept."""
        masks, classes = super().predict(logits)  # type: ignore[misc]
        self._found.append((classes, masks))
        return masks, classes

    def _disable_attention_mask(
        self,
        attn_mask: Tensor,
        prob: Any,
        num_query_tokens: int,
        encoder_start_tokens: int,
        device: torch.device,
    ) -> Tensor:
        """As transformers', with the numbers that were drawn for each image.

        In evaluation they are the same for all images.
        """
        block, self._at = self._at, self._at + 1
        drawn = self._drawn
        if not self.training:  # type: ignore[attr-defined]
            if prob == 1:
                return attn_mask
            drawn = self._draws([0])
        elif drawn is None or len(drawn) != len(attn_mask):  # outside of a training
            if self._probabilities[block] == 1:
                return attn_mask
            drawn = torch.rand(len(attn_mask), 1, num_query_tokens, device=device)
            block = 0
        everywhere = drawn[:, block] > prob  # (N, Q), or (1, Q)
        attn_mask[:, :num_query_tokens, encoder_start_tokens:] |= everywhere[..., None]
        return attn_mask

    @staticmethod
    def _read_probabilities(network: Any, _: Any) -> None:
        network._probabilities = tuple(network.attn_mask_probs.tolist())


class _EomtDinov3(MaskedAttention):
    """Its rotary embeddings are rescaled by a random factor, one for all images of a step."""

    def draw_masking(self, seed: int, positions: Sequence[int]) -> None:
        """As `MaskedAttention.draw_masking`."""
        super().draw_masking(seed, positions)
        own: Any = self
        own.rope_embeddings.seed = fold(seed, ROPE)


class _SeededRope:
    """Rotary embeddings whose random numbers in training are those of a seed."""

    seed: int | None = None

    @torch.compiler.disable
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As transformers'."""
        if not self.training or self.seed is None:  # type: ignore[attr-defined]
            return super().forward(images)  # type: ignore[misc]
        with generators_kept():
            seed_torch(self.seed)
            return super().forward(images)  # type: ignore[misc]


@cache
def mask_network_class(kind: str) -> Any:
    """The class of the network of a type, see `MASK_NETWORKS`; transformers must be installed."""
    library = getattr(import_module("transformers"), MASK_NETWORKS[kind])
    ours = {"mask2former": _Mask2Former, "eomt": MaskedAttention, "eomt_dinov3": _EomtDinov3}[kind]
    members = {"__module__": __name__, "original_forward": library.forward}
    return type(library.__name__, (ours, library), members)


def segments_by_masks(network: nn.Module) -> bool:
    """Whether a network is for `trainkit.tasks.mask_classification.MaskClassification`."""
    return isinstance(network, _MaskNetwork)


def finish_mask_network(network: Any) -> None:
    """Complete a network that was built, or whose weights were loaded."""
    body = getattr(getattr(network, "model", None), "pixel_level_module", None)
    unused = getattr(getattr(getattr(body, "encoder", None), "swin", None), "layernorm", None)
    if unused is not None:  # maps have norms of their own, and DDP would wait for its gradient
        unused.requires_grad_(False)
    if hasattr(network, "attn_mask_probs"):
        MaskedAttention._read_probabilities(network, None)
    rope = getattr(network, "rope_embeddings", None)
    if rope is not None:
        rope.__class__ = type(type(rope).__name__, (_SeededRope, type(rope)), {})

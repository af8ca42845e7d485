"""What activation checkpointing saves over families of networks, and that it changes no bit.

    python benchmarks/activation_checkpointing.py         # twelve families, 8 images of 224
    python benchmarks/activation_checkpointing.py --images 2 --networks resnet50 timm:convnext_tiny

For each network, a fine-tuned one as recipes/recog_folder.py builds it: MiB that autograd holds
between forward and backward (each tensor's memory once, without the weights), with and without;
whether outputs, gradients, buffers and the state of the random numbers are equal; and how many
blocks of which kind.
"""

import argparse
import copy
from collections import Counter

import torch
from _results import Results, add_option
from torch import Tensor, nn

from trainkit.engine.activation_checkpointing import blocks, checkpoint_activations
from trainkit.models.recognition import fine_tuned

NETWORKS = [
    "resnet50", "vit_b_16", "swin_t", "timm:convnext_tiny", "timm:swin_tiny_patch4_window7_224",
    "timm:regnety_008", "timm:efficientnet_b0", "timm:eva02_tiny_patch14_224",
    "timm:vit_small_patch16_dinov3", "timm:densenet121", "timm:resnest26d",
    "timm:maxvit_rmlp_pico_rw_256",
]  # fmt: skip


def step(model: nn.Module, images: Tensor) -> tuple[float, list[Tensor]]:
    """MiB held from forward to backward, and what one step gives."""
    torch.manual_seed(0)
    model.train()
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).square().mean()
    # a block's own tensors come in the backward, one block at a time
    between = sum(held.values()) / 2**20
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return between, [
        loss.detach(),
        *gradients,
        *(b.clone() for b in model.buffers()),
        torch.get_rng_state(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=8)
    add_option(parser)
    asked = parser.parse_args()
    results = Results("activation_checkpointing", "torch", "torchvision", "timm")
    for name in asked.networks:
        side = 256 if name.endswith("_256") else 224
        images = torch.randn(
            asked.images, 3, side, side, generator=torch.Generator().manual_seed(1)
        )
        torch.manual_seed(0)
        model = fine_tuned(name, 10, pretrained=False)
        again = copy.deepcopy(model)
        kinds = Counter(type(block).__name__ for block in blocks(again))
        checkpoint_activations(again)
        before, expected = step(model, images)
        after, found = step(again, images)
        equal = len(found) == len(expected) and all(map(torch.equal, found, expected))
        results.put(name, "images", "", asked.images)
        results.put(name, "kept", "MiB", round(before))
        results.put(name, "checkpointed", "MiB", round(after))
        results.put(name, "bit-equal", "", "yes" if equal else "**no**")
        results.put(name, "blocks", "", ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
        verdict = "equal" if equal else "UNEQUAL"
        print(f"{name:40} {before:8.0f} MiB {after:8.0f} MiB  {verdict}  {dict(kinds)}", flush=True)
    results.write(asked.results)


if __name__ == "__main__":
    main()

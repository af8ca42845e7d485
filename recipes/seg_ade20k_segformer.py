"""SegFormer on ADE20K, 150 classes: B0, and B1 to B5 by --model hf:segformer_b5.

Source: Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, NeurIPS 2021, as mmsegmentation trains it: AdamW 6e-5 for 16 images, head x10, decay
0.01, linear to 0 over 160,000 steps (127 epochs) after 1,500 of warm-up, crop 512 (B5: 640), no
auxiliary loss, norms without decay (here biases too). Encoders start from NVIDIA's weights for
ImageNet (nvidia/mit-b0). Sizes are by the long side here, which is 683 where the short side of 3:4
is the paper's 512. Takes transformers: pip install ".[transformers]".

Launch: trainkit seg_ade20k_segformer --data /path/to/ADEChallengeData2016

On several processes: accelerate launch -m trainkit seg_ade20k_segformer ...

Hardware and time: not yet measured; the authors used eight V100 GPUs.

Expected: not yet measured with this code; the paper has mIoU 37.4 % for B0 and 51.0 % for B5, whole
images at one scale.
"""

from typing import Any

from seg_ade20k import ade20k, segmentation

from trainkit import Recipe
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "hf:segformer", "pretrained": False, "epochs": 5, "lr": 1e-3, "batch_size": 8,
          "model_args": ("hidden_sizes=16,32,64,128", "depths=1,1,1,1", "decoder_hidden_size=64"),
          "long_side": 128, "crop": 96, "warmup_epochs": 0.5, "head_lr_mult": 1.0,
          "sync_batch_norm": False}  # fmt: skip


@variant(
    segmentation,
    model="hf:segformer_b0",
    optimizer="adamw",
    lr=6e-5,
    weight_decay=0.01,
    schedule="poly:power=1.0",
    epochs=127,
    warmup_epochs=1.2,
    long_side=683,
    crop=512,
    photometric=True,
    cat_max_ratio=0.75,
    decay_vectors=False,
)
def recipe(**settings: Any) -> Recipe:
    """SegFormer on ADE20K, 150 classes.

    Args:
        lr: learning rate of the encoder, for 16 images a batch
    """
    return segmentation(ade20k, **settings, lateral=False)

"""A recipe with adapters (LoRA) in a tiny vision transformer.

Run as a script it trains it in the processes it is started in:

    python tests/helpers/lora_recipes.py OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers

from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit import Options, Recipe, train
from trainkit.data.seeding import seed_host
from trainkit.models.recognition import fine_tuned
from trainkit.settings import OptimizerSettings

NAME, SIDE = "timm:test_vit", 32


def recipe(**changes) -> Recipe:
    seed_host(0)
    network = fine_tuned(NAME, CLASSES, False, [SIDE], lora=4)
    optimizer = OptimizerSettings(lr=0.01, optimizer="adamw", head_lr_mult=2.0, ema=0.9)
    values = {
        "model": network,
        "train_data": Images(14, size=SIDE),
        "val_data": Images(5, augment=False, size=SIDE),
        "batch_size": 6,
        "epochs": 2,
        "mix": None,
        **optimizer.build(network, decay_vectors=False),
    }
    return recognition(**{**values, **changes})


def run(out: Path, epochs: float = 2, ema: float | None = 0.9, **options) -> None:
    options = {"workers": 0, "log_every": 1, "report": False, "pictures": False, **options}
    train(recipe(epochs=epochs, ema=ema), Options(out=out, seed=3, **options))


if __name__ == "__main__":
    run(Path(sys.argv[1]))

"""A tiny training, by trainkit or as a bare PyTorch loop, which prints the most memory that it
took, in MiB.

    python benchmarks/_tiny_run.py trainkit
    python benchmarks/_tiny_run.py bare

Four convolutions on 512 images of 32 x 32 pixels, batches of 32, two epochs, an evaluation after
each. What only one of the two imports is part of what is measured, so that each imports its own.
"""

import resource
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Noise, of ten classes."""

    def __init__(self, num_images: int):
        self.images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8)
        self.targets = torch.randint(10, (num_images,))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]


def network() -> nn.Module:
    """(N, 3, 32, 32) -> (N, 10)."""
    widths = (3, 16, 32, 64, 64)
    layers = [
        nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in zip(widths, widths[1:])
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def bare() -> None:
    """The loop that one would write."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_data, val_data = Images(512), Images(128)
    for _ in range(2):
        model.train()
        for images, targets in DataLoader(train_data, 32, shuffle=True):
            loss = nn.functional.cross_entropy(model(images.float() / 255), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(x.float() / 255).argmax(1) == y).sum())
                for x, y in DataLoader(val_data, 32)
            )
    with tempfile.TemporaryDirectory() as folder:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
            Path(folder) / "last.pth",
        )
    assert 0 <= right <= len(val_data)


def by_trainkit() -> None:
    """The same as a recipe."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from trainkit import Options, Recipe, train
    from trainkit.distributed.accelerator import use_whole_host
    from trainkit.schedules import cos
    from trainkit.tasks.recognition import Recognition

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = Recipe(
        task=Recognition(10), model=model, train_data=Images(512), val_data=Images(128),
        optimizer=optimizer, schedule=cos(), epochs=2, batch_size=32, eval_batch_size=32,
    )  # fmt: skip
    use_whole_host()
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Options(out=Path(folder) / "run", workers=0))


if __name__ == "__main__":
    {"bare": bare, "trainkit": by_trainkit}[sys.argv[1]]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

"""From the command to the first optimizer step, whole processes.

Trainkit against a bare Accelerate script.

    python benchmarks/startup.py                   # ResNet-18, 64 JPEG files of 64 x 64, one worker
    python benchmarks/startup.py --rounds 1

Both read the same files by torchvision's ImageFolder and train the same network with the same
optimizer; the function `recipe` below is trainkit's, `bare` the script. Interleaved; medians.
`trainkit --help` is there for its own sake.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT, STEPPED = Path(__file__).parent.parent, "the first step is done"


def parts(images: Path) -> tuple:
    """Data, model and optimizer, which tells of its first step."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet18
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.PILToTensor(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )
    model = resnet18(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: print(STEPPED, flush=True))
    return ImageFolder(images, transform, target_transform=torch.tensor), model, optimizer


def recipe(data: Path = Path("images"), batch_size: int = 16, epochs: int = 1):
    """What trainkit trains."""
    from trainkit import Recipe
    from trainkit.schedules import cos
    from trainkit.tasks.recognition import Recognition

    images, model, optimizer = parts(data)
    return Recipe(
        task=Recognition(2),
        model=model,
        train_data=images,
        val_data=images,
        optimizer=optimizer,
        schedule=cos(),
        epochs=epochs,
        batch_size=batch_size,
    )


def bare(images: Path) -> None:
    """The loop that one would write."""
    from accelerate import Accelerator
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    data, model, optimizer = parts(images)
    accelerator = Accelerator()
    loader = DataLoader(data, 16, shuffle=True, num_workers=1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for inputs, targets in loader:
        loss = F.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def write_images(folder: Path) -> None:
    """Two classes of 32 images each."""
    import torch
    from torchvision.io import write_jpeg

    for number in range(64):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        write_jpeg(torch.randint(256, (3, 64, 64), dtype=torch.uint8), str(path))


def until_stepped(command: list[str]) -> None:
    """Start the command, and end it when it has reported a step."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = []
    while line := process.stdout.readline():
        lines.append(line)
        if STEPPED in line:
            break
    else:
        raise SystemExit("".join(lines) + process.stderr.read())
    process.kill()
    process.communicate()


def main() -> None:
    """All of them in turn."""
    import _results

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", type=Path, metavar="IMAGES", help="be the bare script")
    _results.add_option(parser)
    asked = parser.parse_args()
    if asked.bare is not None:
        bare(asked.bare)
        return
    from _timing import in_words, interleaved, versions

    with tempfile.TemporaryDirectory() as folder:
        images, out, python = Path(folder) / "images", Path(folder) / "run", sys.executable
        images.mkdir()
        write_images(images)
        ours = [
            python,
            "-m",
            "trainkit",
            __file__,
            "--data",
            str(images),
            "--workers",
            "1",
            "--resume",
            "never",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "check": True, "cwd": ROOT}
        ways = {
            "import torch alone": lambda: subprocess.run([python, "-c", "import torch"], **quiet),
            "bare Accelerate": lambda: until_stepped([python, __file__, "--bare", str(images)]),
            "trainkit": lambda: until_stepped([*ours, "--out", str(out)]),
            "trainkit --help": lambda: subprocess.run(
                [python, "-m", "trainkit", "--help"], **quiet
            ),
        }
        taken = interleaved(ways, asked.rounds)
    print(versions("torch", "torchvision", "accelerate"))
    bare_s = median(taken["bare Accelerate"])
    results = _results.Results(
        "startup",
        "torch",
        "torchvision",
        "accelerate",
        rounds=asked.rounds,
        baseline="bare Accelerate",
    )
    for name, seconds in taken.items():
        results.add(name, "seconds", "s", seconds, median(seconds) / bare_s)
        print(
            f"{in_words(name, seconds, unit=1)}, {median(seconds) / bare_s:.2f} x bare Accelerate"
        )
    results.write(asked.results)


if __name__ == "__main__":
    main()

"""Images, masks and labels that cannot be used.

An error that names them, or the next one in the order.
"""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from helpers.logs import rows, weights
from helpers.processes import TOYS, torchrun
from helpers.toy_recipes import Images, Maps, recognition, run, segmentation, with_batch_norm
from trainkit import Options, train
from trainkit.commands.check import check
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.loader import collate
from trainkit.data.reader import Reader, name_of
from trainkit.data.sampler import TrainOrder
from trainkit.data.workers import worker_deaths_reported
from trainkit.engine import forward_passes, plan
from trainkit.errors import DataError
from trainkit.tasks.recognition import Recognition


def neighbour(index: int, seed: int, epoch: int) -> int:
    order = TrainOrder(27, 8, seed).epoch(epoch).tolist()
    return order[(order.index(index) + 1) % 27]


class Torn(Images):
    """Images 3 and 4 cannot be read."""

    torn = (3, 4)

    def __getitem__(self, index):
        if index in self.torn:
            raise ValueError(f"cannot read image-{index}.jpg: it is torn")
        return super().__getitem__(index)


class EveryOther(Torn):
    """Some of every batch."""

    torn = range(0, 27, 2)


def test_the_neighbour_is_the_next_in_the_order():
    order = TrainOrder(5, 2, 9)
    first = order.epoch(3).tolist()
    assert [order.replacement(3, index) for index in first] == [*first[1:], first[0]]


def test_a_replaced_image_is_its_neighbour_as_augmented_in_that_epoch():
    data, order = Torn(27), TrainOrder(27, 8, 5)
    reader = Reader(data, 5, replacement=order.replacement)
    for epoch in range(4):
        image, target, faults = reader[epoch, 3]
        other = neighbour(3, 5, epoch)
        other = neighbour(4, 5, epoch) if other == 4 else other
        assert torch.equal(image, reader[epoch, other][0]) and target == data.targets[other]
        assert faults[0] == "3, number 3 of Torn: cannot read image-3.jpg: it is torn"
        assert reader[epoch, other][2] == []


def test_a_step_that_fails_counts_its_images_once(tmp_path):
    """When it is done, after the run was resumed."""

    class Fails(Recognition):
        """In its third step."""

        steps = 0

        def losses(self, outputs, targets):
            Fails.steps += 1
            if Fails.steps == 3:
                raise ValueError("the loss cannot be computed")
            return super().losses(outputs, targets)

    def how(name):
        return Options(out=tmp_path / name, workers=0, on_bad_image="skip")

    expected = train(recognition(train_data=EveryOther(27)), how("whole"))["bad_images"]
    with pytest.raises(ValueError, match="the loss cannot be computed"):
        train(
            recognition(train_data=EveryOther(27), task=Fails(7, label_smoothing=0.1)),
            how("resumed"),
        )
    summary = train(recognition(train_data=EveryOther(27)), how("resumed"))
    assert Fails.steps == 3 and summary["bad_images"] == expected


def test_skip_lists_and_counts(tmp_path, capsys):
    """Every epoch has both; the list has each once; and the number of workers changes nothing."""
    seen = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        torch.manual_seed(1)
        recipe = recognition(train_data=Torn(27), epochs=2)
        summary = train(
            recipe, Options(out=folder, workers=workers, log_every=2, on_bad_image="skip")
        )
        listed = (folder / "bad_images.txt").read_text().splitlines()
        assert sorted(line.partition(",")[0] for line in listed) == ["3", "4"]
        assert 4 <= summary["bad_images"] <= 6, (
            "twice each, and once more where one is the other's neighbour"
        )
        assert rows(folder)[-1]["bad_images"] == summary["bad_images"]
        seen.append(recipe.model.seen)
    assert seen[0] == seen[1] and len(seen[0]) == 54
    assert capsys.readouterr().out.count("The next one in the order takes its place") == 4
    assert all(
        torch.equal(value, weights(tmp_path / "2")[name])
        for name, value in weights(tmp_path / "0").items()
    )


def test_skip_holds_for_precise_statistics_and_for_a_try(tmp_path):
    """They read training images too, those that every epoch would replace."""
    for build in (with_batch_norm, recognition):
        skipping = Options(
            out=tmp_path / build.__name__, workers=0, on_bad_image="skip", precise_bn=16
        )
        assert train(replace(build(), train_data=Torn(27)), skipping)["final"]["num_images"] == 13
        torn = replace(build(), train_data=Torn(4), batch_size=4)
        assert len(check(torn, Options(workers=0, on_bad_image="skip"))["results"]["losses"]) == 2
        with pytest.raises(ValueError, match="cannot read image-3.jpg: it is torn"):
            check(torn, Options(workers=0))


def test_without_skip_it_stops_and_keeps_what_was_done(tmp_path):
    """The steps before the bad image are saved, and the run goes on once it is mended."""
    options = Options(out=tmp_path / "run", workers=1, log_every=1, seed=5)
    order = TrainOrder(27, 8, 5).epoch(0).tolist()
    data = Torn(27)
    data.torn = (order[20],)  # in step 3
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=f"cannot read image-{order[20]}.jpg: it is torn"):
        train(recognition(train_data=data), options)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000000002"]
    torch.manual_seed(1)
    train(recognition(), options)
    torch.manual_seed(1)
    train(recognition(), Options(out=tmp_path / "whole", workers=0, log_every=1, seed=5))
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_bad_validation_image_stops_and_takes_no_step_with_it(tmp_path):
    """An evaluation leaves nothing out; the epoch before it is saved."""
    data = Torn(13)
    message = (
        "image-3.jpg: it is torn. An evaluation skips no image, with --on-bad-image skip neither"
    )
    with pytest.raises(ValueError, match=message):
        train(recognition(val_data=data), Options(out=tmp_path, workers=0, on_bad_image="skip"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000004"]


@pytest.mark.parametrize("remedy", [forward_passes.REMEDY, plan.REMEDY])
def test_the_message_of_a_damaged_file_names_the_option(tmp_path, remedy):
    """Also where the message is trainkit's own."""
    for name in ("a/0.jpg", "b/0.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "a/0.jpg").write_bytes((tmp_path / "b/0.jpg").read_bytes()[:200])
    reader = Reader(ClassFolder(tmp_path), seed=0, remedy=remedy)
    with pytest.raises(DataError) as raised:
        reader[0, 0]
    assert "a/0.jpg" in str(raised.value) and str(raised.value).endswith(f". {remedy}")
    assert "--on-bad-image skip" in remedy and "trainkit doctor" in remedy


def test_all_images_bad_is_not_one_bad_image(tmp_path):
    data = Torn(27)
    data.torn = range(27)
    with pytest.raises(
        ValueError, match="10 images in a row cannot be used, the last .*not one bad file"
    ):
        train(recognition(train_data=data), Options(out=tmp_path, workers=0, on_bad_image="skip"))


def test_an_internal_error_is_not_a_bad_image(tmp_path):
    class Mistaken(Images):
        def __getitem__(self, index):
            return self.imagse[index]

    with pytest.raises(AttributeError, match="imagse"):
        train(
            recognition(train_data=Mistaken(27)),
            Options(out=tmp_path, workers=0, on_bad_image="skip"),
        )


def test_labels_outside_the_classes(tmp_path):
    """Recognition and segmentation, named by the image; skipped where asked."""
    data = Images(27)
    data.targets[3] = 7
    message = r"image 3 .number 3 of Images.: label 7 is outside the 7 classes 0 to 6"
    with pytest.raises(ValueError, match=message):
        train(recognition(train_data=data), Options(out=tmp_path / "a", workers=0))
    train(recognition(train_data=data), Options(out=tmp_path / "b", workers=0, on_bad_image="skip"))
    assert "label 7 is outside" in (tmp_path / "b" / "bad_images.txt").read_text()
    with pytest.raises(ValueError, match=message):
        train(recognition(val_data=data), Options(out=tmp_path / "c", workers=0))

    class Stray(Maps):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            target[0, :2] = 9 if index == 5 else 255
            return image, target

    with pytest.raises(
        ValueError,
        match=r"image 5 .*label 9 on 2 pixels is outside the 7 classes 0 to 6 .ignored: 255",
    ):
        train(segmentation(train_data=Stray(27)), Options(out=tmp_path / "d", workers=0))


def test_names(tmp_path):
    """A dataset's own, torchvision's, through a subset, and the place where there is none."""
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    assert name_of(ClassFolder(tmp_path), 1) == str(tmp_path / "b" / "2.png")
    assert name_of(ImageFolder(str(tmp_path)), 0) == str(tmp_path / "a" / "1.png")
    assert name_of(Subset(ClassFolder(tmp_path), [1]), 0) == str(tmp_path / "b" / "2.png")
    assert name_of([1, 2], 1) == "number 1 of list"


def test_real_images_truncated(tmp_path, real_data):
    """Real photographs, one cut short: as an image, and as a mask."""
    images = sorted((real_data / "ADEChallengeData2016" / "images" / "validation").glob("*.jpg"))
    masks = sorted(
        (real_data / "ADEChallengeData2016" / "annotations" / "validation").glob("*.png")
    )
    for kind, files in (("images", images), ("masks", masks)):
        (tmp_path / kind).mkdir()
        for file in files:
            (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    for kind, name in (("images", images[1].name), ("masks", masks[1].name)):
        file = tmp_path / kind / name
        whole = file.read_bytes()
        data = MaskFolder(tmp_path / "images", tmp_path / "masks", 151)
        assert len(Reader(data, 0)[0, 1]) == 3
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            ValueError, match=f"cannot read .*{name}: .*replace the file or take it out"
        ):
            Reader(data, 0)[0, 1]
        _, _, faults = Reader(data, 0, replacement=TrainOrder(len(images), 1, 0).replacement)[0, 1]
        assert (
            len(faults) == 1
            and faults[0].startswith("1, ")
            and str(tmp_path / kind / name) in faults[0]
        )
        file.write_bytes(whole)
    (tmp_path / "images" / images[1].name).unlink()
    with pytest.raises(ValueError, match="cannot read .*No such file or directory"):
        Reader(data, 0)[0, 1]


class Deadly(Images):
    """Reading image 3 kills the process that reads it."""

    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


# torch raises anywhere in the main thread, also where another thread is being started, which then
# has not come to be.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.nightly
def test_a_killed_worker_is_reported(tmp_path):
    """torch notices a death by a signal, which names it, or by itself; either may come first.

    Two workers may have died: of those that read some images twice at the start.
    """
    message = (
        r"data-loading worker .pid \d+( and \d+)?. died of SIGKILL: somebody, or the"
        r" system, killed it .*resumes from the last"
    )
    with pytest.raises(ChildProcessError, match=message):
        train(recognition(train_data=Deadly(27)), Options(out=tmp_path, workers=1, log_every=1))
    for text, words in {
        "DataLoader worker (pid 12) is killed by signal: Killed. ": (
            ".pid 12. died of SIGKILL: somebody"
        ),
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly": (
            "data-loading worker .pid 12 and 13. died. The"
        ),
        "DataLoader worker (pid 12) is killed by signal: Bus error. It": (
            "died of SIGBUS: shared memory is full"
        ),
        "DataLoader worker (pid 12) is killed by signal: Segmentation fault. ": (
            "died of SIGSEGV: a library crashed"
        ),
        "DataLoader worker (pid 12) is killed by signal: Terminated. ": (
            "died of SIGTERM: another process ended it"
        ),
    }.items():
        with pytest.raises(ChildProcessError, match=words), worker_deaths_reported():
            raise RuntimeError(text)


def test_skip_on_two_processes_is_skip_on_one(tmp_path):
    torchrun(2, TOYS, tmp_path, "torn")
    net = run("torn", tmp_path / "one")
    two = [json.loads((tmp_path / "torn" / f"seen-{rank}.json").read_text()) for rank in range(2)]
    assert set(two[0]) | set(two[1]) == set(net.seen)
    folders = (tmp_path / "torn", tmp_path / "one")
    counted = [
        json.loads((folder / "summary.json").read_text())["bad_images"] for folder in folders
    ]
    listed = [sorted((folder / "bad_images.txt").read_text().splitlines()) for folder in folders]
    assert counted[0] == counted[1] > 0 and listed[0] == listed[1]
    assert [row["loss"] for row in rows(folders[0])] == pytest.approx(
        [row["loss"] for row in rows(folders[1])], rel=1e-5
    )


def test_an_id_outside_the_classes_is_found_after_right_ones():
    ids = [0, 1, 1, 0, 2, 1]
    data = [(torch.full((3, 2, 2), float(place)), each) for place, each in enumerate(ids)]
    reader = Reader(data, 0, Recognition(2).check)
    images, targets, _ = collate([reader[0, index] for index in range(4)])
    assert torch.equal(targets, torch.tensor(ids[:4])) and images[3, 0, 0, 0] == 3
    for _ in range(2):
        with pytest.raises(DataError, match="label 2 is outside the 2 classes"):
            reader[0, 4]
    tensors = [(image, torch.tensor(each)) for image, each in data[:2]]
    mixed = Reader([*tensors, *data[2:4]], 0, Recognition(2).check)
    assert torch.equal(collate([mixed[0, index] for index in range(4)])[1], targets)

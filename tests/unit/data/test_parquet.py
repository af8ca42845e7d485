"""Parquet files read where they lie: the rows, the order, what is read of them and when."""

import gc
import os
import re
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Value
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset
from torchvision.io import encode_png
from torchvision.transforms import v2

from helpers.logs import weights
from helpers.processes import ROOT
from helpers.toy_recipes import Images, recognition, run, streamed, write_parquet
from trainkit import Options, train
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.dataset_info import opened
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.hub import HubImages, HubMasks
from trainkit.data.datasets.parquet import ParquetTable
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.loader import make_loader
from trainkit.data.reader import Reader
from trainkit.data.sampler import Batches, Locality, TrainOrder, evaluation_batches
from trainkit.data.seeding import seed_host


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_an_order_by_groups(lengths, num_interleaved, batch_size):
    """Every image once; in each sequence one group after another.

    An equal part of every batch to each sequence, in turn.
    """
    order = Locality(tuple(lengths), num_interleaved).permutation(
        batch_size, torch.Generator().manual_seed(0)
    )
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    rank = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    group = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[order]
    sequence = rank[group] % num_interleaved
    for number in range(num_interleaved):
        ranks = rank[group[sequence == number]]
        assert torch.equal(ranks, ranks.sort().values)
    size = sequence.bincount(minlength=num_interleaved)
    for begin in range(0, len(order), batch_size):
        part = sequence[begin : begin + batch_size]
        assert torch.equal(part, part.sort().values)
        until = sequence[: begin + batch_size].bincount(minlength=num_interleaved)
        due = size * min(1.0, (begin + batch_size) / len(order))
        # as many as fit between two of any other sequence, once
        assert (until - due).abs().max() <= num_interleaved


def test_every_image_may_come_anywhere():
    """Groups of one length: an image's place is uniform over the epoch.

    2,000 orders, chi-squared of 11 degrees.
    """
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([Locality((3, 3, 3, 3), 2).permutation(1, generator) for _ in range(2000)])
    for image in (0, 4, 11):
        counts = (orders == image).sum(0).double()
        # 0.1 % of all would exceed it
        assert float(((counts - 2000 / 12) ** 2 / (2000 / 12)).sum()) < 31.3


@pytest.mark.parametrize(("num_interleaved", "batch_size", "shared"), [(16, 256, 0), (32, 200, 2)])
def test_processes_share_batches_and_groups(num_interleaved, batch_size, shared):
    """The same batches for any number of processes, of which neighbours read at most two
    sequences' groups both."""
    alone = TrainOrder(12_800, batch_size, 3, locality=Locality((100,) * 128, num_interleaved))
    steps = alone.steps_per_epoch
    whole = list(alone.batches(0, steps, 0))
    for processes in (2, 4, 8):
        order = replace(alone, num_processes=processes)
        parts = [list(order.batches(0, steps, process)) for process in range(processes)]
        assert [sum((part[step] for part in parts), []) for step in range(steps)] == whole
        assert parts[1][7] == next(order.batches(7, 8, 1))  # a seek
        read = sum(len({index // 100 for batch in part for _, index in batch}) for part in parts)
        assert 128 <= read <= 128 + shared * (processes - 1) * 128 / num_interleaved, processes


def test_copies_of_an_image_share_a_batch():
    order = TrainOrder(60, 12, 0, repeats=2, locality=Locality((10, 10, 10), 2))
    for batch in order.epoch(0).split(12):
        assert Counter(Counter((batch % 30).tolist()).values()) == {2: 6}
    assert sorted(order.epoch(1).tolist()) == list(range(60))


class Counted(ParquetTable):
    """Writes down what each process reads."""

    def read_group(self, number):
        with open(os.environ["GROUPS_READ"], "a") as file:
            file.write(f"{os.getpid()} {number}\n")
        return super().read_group(number)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory, real_data):
    """2,300 of CIFAR-10's real images in four files, in row groups of 50, the last of each file
    shorter."""
    folder = tmp_path_factory.mktemp("cifar")
    table = pq.read_table(real_data / "cifar10" / "train-00000-of-00001.parquet").slice(0, 2300)
    for place in range(4):
        file = folder / f"train-{place:05d}-of-00004.parquet"
        pq.write_table(table.slice(590 * place, 590 if place < 3 else 530), file, row_group_size=50)
    pq.write_table(table.slice(0, 90), folder / "test-00000-of-00001.parquet", row_group_size=20)
    return folder


@pytest.fixture
def groups_read(tmp_path, monkeypatch):
    """Process -> row groups in the order in which it read them, since the last call."""
    file = tmp_path / "groups"
    monkeypatch.setenv("GROUPS_READ", str(file))

    def read() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            process, number = map(int, line.split())
            found.setdefault(process, []).append(number)
        file.unlink(missing_ok=True)
        return found

    return read


def counted(folder, num_interleaved=4, transform=None, split="train"):
    data = HubImages(folder, split, transform, stream=num_interleaved)
    data.table = Counted(data.table.files, num_interleaved).select_columns(data.table.columns)
    return data


def test_the_rows_are_those_that_datasets_reads(cifar, groups_read, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data, whole = counted(cifar), HubImages(cifar, "train")
    assert len(data) == len(whole) == 2300 and data.classes == whole.classes
    assert (
        data.locality.lengths == 3 * (*[50] * 11, 40) + (*[50] * 10, 30) and whole.locality is None
    )
    assert groups_read() == {}
    for index in (0, 49, 50, 589, 590, 1234, 1400, 1500, 2100, 2299):
        image, target = data[index]
        assert torch.equal(image, whole[index][0]) and target == whole[index][1]
        assert data.name_of(index).startswith(f"row {index} of {cifar} (train)")
    (read,) = groups_read().values()
    # two of them are in one group; the last 8 are kept
    assert len(read) == 9 and list(data.table._held) == read[1:]
    with pytest.raises(IndexError):
        data[2300]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_once_and_each_group_read_once(cifar, groups_read, workers):
    """One and two processes: the same batches; no process reads a row group twice."""
    crop = v2.RandomCrop(28)
    (whole,) = batches(counted(cifar, transform=crop), 0, 36, 1, workers)
    read = groups_read()
    assert len(read) == max(1, workers) and set(sum(read.values(), [])) == set(range(47))
    assert all(len(each) == len(set(each)) for each in read.values())
    order = TrainOrder(2300, 64, 5, locality=counted(cifar).locality)
    assert sorted(index for batch in order.batches(0, 36, 0) for _, index in batch) == list(
        range(2300)
    )
    parts = batches(counted(cifar, transform=crop), 0, 36, 2, workers)
    for step, (images, targets) in enumerate(whole):
        for place, each in enumerate((images, targets)):
            assert torch.equal(torch.cat([part[step][place] for part in parts]), each), step
    if workers:
        return
    # Going on in the epoch's midst: the same batches, and nothing is read but of the windows they
    # lie in.
    groups_read()
    (rest,) = batches(counted(cifar, transform=crop), 30, 36, 1, 0)
    assert all(
        torch.equal(a, b)
        for one, other in zip(rest, whole[30:], strict=True)
        for a, b in zip(one, other)
    )
    (again,) = groups_read().values()
    assert again == list(read.values())[0][-len(again) :] and len(again) <= 12


def batches(data, start, stop, processes, workers):
    """Of each process, (images, targets) of each step."""
    found = []
    for process in range(processes):
        order = TrainOrder(len(data), 64, 5, processes, locality=data.locality)
        loader = make_loader(
            data, 5, Batches(order, start, stop, process), workers, torch.device("cpu")
        )
        found.append([(images, targets) for images, targets, _ in loader])
        data.table._held.clear()
    return found


def test_an_evaluation_reads_each_group_once(cifar, groups_read):
    data = counted(cifar, num_interleaved=1)
    indices = []
    for process in range(3):
        found, valid = evaluation_batches(len(data), 16, process, 3)
        loader = make_loader(data, 0, found, 0, torch.device("cpu"))
        indices += [index for batch, number in zip(found, valid) for _, index in batch[:number]]
        assert sum(len(images) for images, _, _ in loader) == sum(map(len, found))
    (read,) = groups_read().values()
    # shares cut two; a filler is image 0
    assert sorted(indices) == list(range(2300)) and len(read) <= 47 + 2 + 1


def test_a_training_resumes_where_it_stopped(tmp_path, monkeypatch):
    """The same on two and three processes: test_processes.py."""
    monkeypatch.setenv("TOY_PARQUET", str(write_parquet(tmp_path)))
    whole = run("streamed", tmp_path / "whole")
    epochs = [set(whole.seen[begin : begin + 27]) for begin in (0, 27)]
    assert len(whole.seen) == 27 + 27 + 16 and [len(each) for each in epochs] == [27, 27]

    class Failing(HubImages):
        def __getitem__(self, index):
            if len(stopped.model.seen) >= 27 + 8:
                raise InterruptedError("stopped")
            return super().__getitem__(index)

    seed_host(5)
    data = Failing(tmp_path, "train", Images(27).change, "image", "label", 2)
    stopped = streamed(train_data=data)
    options = Options(out=tmp_path / "parts", seed=5, workers=0, log_every=1)
    with pytest.raises(InterruptedError):
        train(stopped, options)
    assert run("streamed", tmp_path / "parts").seen == whole.seen[27 + 8 :]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "parts")[name])
    data.table.num_interleaved = 3
    with pytest.raises(ValueError, match="interleaved_row_groups was 2 and is 3"):
        train(streamed(train_data=data), options)
    table = pq.read_table(tmp_path / "train-1.parquet")
    pq.write_table(
        table.set_column(1, "label", [[0] * 17]), tmp_path / "train-1.parquet", row_group_size=4
    )
    with pytest.raises(ValueError, match="train_data was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"):
        train(streamed(), options)


class Ranges(BaseHTTPRequestHandler):
    """Serves parts of a folder's files, and counts the bytes."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(200, b"", (self.server.folder / self.path[1:]).stat().st_size)

    def do_GET(self) -> None:
        if self.server.failures:
            self.server.failures -= 1
            self.answer(503, b"", 0)
            return
        data = (self.server.folder / self.path[1:]).read_bytes()
        begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        part = data[begin : end + 1]
        self.server.sent += len(part)
        self.answer(206, part, len(part), f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")

    def answer(self, status: int, body: bytes, length: int, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None:
        """Nothing."""


@pytest.fixture
def server(cifar):
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        server.folder, server.sent, server.failures = cifar, 0, 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class CollectingTable(ParquetTable):
    """Has the process that reads a row collect its garbage first."""

    def __getitem__(self, index: int) -> dict:
        gc.collect()
        return super().__getitem__(index)


def test_workers_leave_the_parents_connections_open(cifar, server):
    names = sorted(path.name for path in cifar.glob("train*"))
    addresses = [f"{server.url}/{name}" for name in names]
    data = HubImages(cifar, "train", stream=4)
    there = CollectingTable(addresses, num_interleaved=4, pauses_s=(0, 0))
    data.table = there.select_columns(data.table.columns)
    batches(data, 0, 2, 1, 2)
    begun = time.monotonic()
    assert there[2299]
    assert time.monotonic() - begun < 60, "it waits 300 s for a connection that is closed"


def test_files_elsewhere_are_read_as_they_are_needed(cifar, server):
    names = sorted(path.name for path in cifar.glob("train*"))
    here = ParquetTable([cifar / name for name in names])
    addresses = [f"{server.url}/{name}" for name in names]
    there = ParquetTable(addresses, num_interleaved=4, pauses_s=(0, 0))
    size = sum((cifar / name).stat().st_size for name in names)
    assert len(there) == 2300 and server.sent == 4 * 2**16, "the files' ends alone"
    before = server.sent
    assert [there[index] for index in range(600, 630)] == [here[index] for index in range(600, 630)]
    assert server.sent - before < 1.1 * size * 50 / 2300, "one row group, once"
    data = HubImages(cifar, "train", stream=4)
    (expected,) = batches(data, 0, 4, 1, 0)
    data.table = there.select_columns(data.table.columns)
    (found,) = batches(data, 0, 4, 1, 2)  # in processes that have the parent's connections
    assert all(
        torch.equal(a, b)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other)
    )
    server.failures = 2
    assert there[2299] == here[2299]
    server.failures = 99
    with pytest.raises(OSError, match=rf"cannot read {server.url}/{names[0]}: "):
        there[0]


def test_masks_and_labels_that_are_no_classes(cifar, tmp_path):
    images = pq.read_table(cifar / "test-00000-of-00001.parquet")["image"]
    labels = pa.array([index % 4 for index in range(90)])
    table = pa.table({"image": images, "mask": images, "label": labels}).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"image": {"_type": "Image"},'
                        ' "mask": {"_type": "Image"},'
                        ' "label": {"dtype": "int64", "_type": "Value"}}}}'}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "val.parquet", row_group_size=20)
    data = HubMasks(tmp_path, "val", 3, stream=2)
    assert (
        data.mask_column == "mask"
        and len(data) == 90
        and data.locality == Locality((20, 20, 20, 20, 10), 2)
    )
    with pytest.raises(ValueError, match=r"mask of row 7 of .*is a mask saved as JPEG"):
        data[7]  # the images are no masks, and are named
    numbers = HubImages(tmp_path, "val", None, "image", "label", stream=2)
    assert numbers.classes == ["0", "1", "2", "3"] and int(numbers[55][1]) == 3


def test_in_its_recipes(cifar, tmp_path):
    for name, changes in (("recog_imagenet", {}), ("recog_folder", {"pretrained": False})):
        function = load_recipe(ROOT / "recipes" / f"{name}.py")
        recipe = build(
            function, {"data": str(cifar), "model": "small", "stream": 3, "size": 24, **changes}
        )
        assert recipe.train_data.locality.num_interleaved == 3 and recipe.task.classes[9] == "truck"
        assert recipe.train_data[7][0].shape == recipe.val_data[7][0].shape == (3, 24, 24)
    copies = Repeated(recipe.train_data, 3)
    assert (
        copies.locality == recipe.train_data.locality
        and copies.fingerprint == recipe.train_data.fingerprint
    )


@pytest.mark.parametrize("stream", [None, 2])
def test_rows_without_an_image_or_a_label(tmp_path, monkeypatch, stream):
    """Named, and replaced by the next one where that was asked for."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    image = {
        "bytes": encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8)).numpy().tobytes(),
        "path": "a.png",
    }
    mask = {
        "bytes": encode_png(torch.ones(1, 4, 4, dtype=torch.uint8)).numpy().tobytes(),
        "path": "m.png",
    }
    features = Features(
        {"image": ImageFeature(), "mask": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    )
    images, masks = (
        [image, None, image, {"bytes": b"", "path": None}, image],
        [mask, mask, None, mask, mask],
    )
    table = Table.from_dict({"image": images, "mask": masks, "label": [0, 1, 1, 1, None]}, features)
    table.to_parquet(tmp_path / "train.parquet")
    columns = {"image_column": "image", "stream": stream}
    source = f"row %d of {tmp_path} .train."
    data, maps = (
        HubImages(tmp_path, "train", **columns),
        HubMasks(tmp_path, "train", 2, mask_column="mask", **columns),
    )
    assert data[0][0].shape == (3, 4, 4) and maps[0][1].unique().tolist() == [1]
    for each, index, message in (
        (data, 1, "%s is null in the column 'image'; take the row out of the dataset"),
        (data, 3, "%s is null in the column 'image'"),
        (data, 4, "%s .a.png. is null in the column 'label'; take the row out of the dataset"),
        (maps, 1, "%s is null in the column 'image'"),
        (maps, 2, "%s is null in the column 'mask'; take the row out of the dataset"),
    ):
        with pytest.raises(ValueError, match=message % (source % index)):
            each[index]
        _, _, faults = Reader(each, 0, replacement=lambda epoch, index: 0)[0, index]
        assert len(faults) == 1 and re.search(
            f"^{index}, .*{message % (source % index)}", faults[0]
        )
    assert data.name_of(1) == maps.name_of(1) == f"row 1 of {tmp_path} (train)"
    assert maps.mask_name(2) == f"mask of row 2 of {tmp_path} (train)"


@pytest.mark.parametrize("stream", [None, 2])
def test_ids_are_those_of_the_training_split(tmp_path, monkeypatch, stream):
    """Whatever the order of the names in a split; columns without names hold ids.

    Other names are refused.
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    image = {
        "bytes": encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8)).numpy().tobytes(),
        "path": None,
    }
    numbers = Value("int64")
    for folder, split, labels, kind in (
        ("named", "train", [0, 1, 2], ClassLabel(names=["cat", "dog", "eel"])),
        ("named", "val", [0, 1, 2, 2, -1], ClassLabel(names=["eel", "cat", "dog"])),
        ("other", "val", [0], ClassLabel(names=["cat", "dog", "fox"])),
        ("other", "test", [0], ClassLabel(names=["cat", "dog"])),
        ("numbers", "train", [0, 1, 2, 3], numbers),
        ("numbers", "val", [2, 1], numbers),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        rows = {"image": [image] * len(labels), "label": labels}
        table = Table.from_dict(rows, Features({"image": ImageFeature(), "label": kind}))
        table.to_parquet(tmp_path / folder / f"{split}.parquet")
    how = {"stream": stream, "label_column": "label"}
    for folder, labels in (("named", [2, 0, 1, 1, -1]), ("numbers", [2, 1])):
        train_data = ClassSource(tmp_path / folder, **how).open("train")
        val_data = ClassSource(tmp_path / folder, **how).open("val", classes=train_data.classes)
        assert val_data.classes == train_data.classes
        assert [
            int(target) for _, target in (val_data[index] for index in range(len(val_data)))
        ] == labels
        assert [int(train_data[index][1]) for index in range(3)] == [0, 1, 2]
    assert ClassSource(tmp_path / "named", **how).open("val").classes == ["eel", "cat", "dog"]
    message = (
        "other .val. has classes .'fox'. that the training data has not, or the list of classes"
        " that was given; give"
    )
    with pytest.raises(ValueError, match=message):
        ClassSource(tmp_path / "other", **how).open("val", classes=["cat", "dog", "eel"])
    fewer = HubImages(tmp_path / "other", "test", classes=["eel", "cat", "dog"], **how)
    assert int(fewer[0][1]) == 1 and fewer.classes == ["eel", "cat", "dog"]
    assert re.search("of 3 classes ha.* no image in .*other .test.: eel", *fewer.used_warnings)


class Endless(IterableDataset):
    def __iter__(self):
        yield 0, 0


def test_what_cannot_be_counted(cifar, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="train has files of images: stream is for parquet files, leave it out"
    ):
        ClassSource(tmp_path, stream=4).open("train")
    with pytest.raises(
        ValueError, match="num_interleaved is 0; give the number of interleaved row groups"
    ):
        ClassSource(cifar, stream=0).open("train")
    for name in ("train_data", "val_data"):
        with pytest.raises(
            ValueError, match=f"{name} is of type Endless, a stream without length or index: each"
        ):
            recognition(**{name: Endless()})
    with pytest.raises(ValueError, match="train_data is of type Endless, a stream"):
        opened(recognition(train_data=lambda: Endless()).train_data)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        ValueError, match=r"train-0.parquet is not a parquet file, or is cut short: "
    ):
        ParquetTable([tmp_path / "train-0.parquet"])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(
        ValueError, match="other.parquet has other columns than .*test-00000-of-00001.parquet"
    ):
        ParquetTable([cifar / "test-00000-of-00001.parquet", tmp_path / "other.parquet"])
    with pytest.raises(OSError, match="cannot read .*gone.parquet: FileNotFoundError"):
        ParquetTable([tmp_path / "gone.parquet"])

"""Reading images, folders and parquet files; transforms of image and mask together."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from trainkit.data.datasets import synthetic
from trainkit.data.datasets.ade20k import ADE20K, CLASSES, to_train_ids
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.folder import ClassFolder, FileList, MaskFolder
from trainkit.data.datasets.hub import HubImages
from trainkit.data.image_io import read_image, read_mask
from trainkit.data.loader import make_loader
from trainkit.data.on_device import OnDevice
from trainkit.data.transforms.ops import LongSide
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.tasks.recognition import Recognition

PICTURE = np.kron(
    np.array([[0, 60, 120], [180, 240, 30]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8)
)
RGB = np.stack([PICTURE, 255 - PICTURE, PICTURE // 2], -1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Generated data goes below the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_formats_without_loss(tmp_path, suffix):
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(file, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(file).permute(1, 2, 0).numpy(), RGB)
    assert np.array_equal(read_image(file.read_bytes()).permute(1, 2, 0).numpy(), RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_colour(tmp_path, mode):
    file = tmp_path / "image.JPEG"
    Image.fromarray(RGB).convert(mode).save(file, "JPEG", quality=95, subsampling=0)
    expected = np.array(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(read_image(file).permute(1, 2, 0).numpy() - expected).mean() < 1.5


def test_more_kinds(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "png.JPEG", "PNG")  # as one file of ImageNet is
    assert np.array_equal(read_image(tmp_path / "png.JPEG").permute(1, 2, 0).numpy(), RGB)
    Image.fromarray(np.dstack([RGB, PICTURE])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png").permute(1, 2, 0).numpy(), RGB)
    Image.fromarray(PICTURE.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[0].numpy(), PICTURE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(RGB).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 48, 32)


def test_masks_are_labels_not_colours(tmp_path):
    palette = Image.new("P", PICTURE.shape[::-1])
    palette.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 1, 2, 3, 4, 5, 6] + [0] * 753)
    palette.putdata((PICTURE // 60).flatten().tolist())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(PICTURE // 60).save(tmp_path / "grey.png")
    Image.fromarray(PICTURE.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "palette.png").numpy(), PICTURE // 60)
    assert np.array_equal(read_mask(tmp_path / "grey.png").numpy(), PICTURE // 60)
    assert np.array_equal(read_mask(tmp_path / "deep.png").numpy(), PICTURE.astype(int) * 100)
    Image.fromarray(RGB).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"colours.png is a mask with 3 channels"):
        read_mask(tmp_path / "colours.png")


def test_unreadable_files_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        whole
    )
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:20])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}.*replace the file"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"cannot read .*text.png"):
        read_mask(tmp_path / "text.png")


def test_file_list_is_a_list_of_few_bytes(tmp_path):
    names = [f"class {i % 7}/bild-ä-{i}.JPEG" for i in range(1000)]
    files = FileList(tmp_path, names)
    assert [str(files[i].relative_to(tmp_path)) for i in range(1000)] == names
    assert len(pickle.dumps(files)) < 1000 * 40
    with pytest.raises(IndexError):
        files[1000]


def test_class_folder(here):
    root = synthetic.class_folder(3, 2, 16)
    train = ClassFolder(root / "train")
    assert len(train) == 3 * 8 and train.classes == sorted(train.classes)
    image, target = train[4]
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8 and type(image) is torch.Tensor
    assert train.files[4].parent.name == train.classes[int(target)]
    # `datasets` drops files whose names look like a split; every file must be found
    shutil.copyfile(train.files[0], train.files[0].with_name("n02916936_bullet_train.JPEG"))
    assert len(ClassFolder(root / "train")) == 25
    (root / "val" / "unicorn").mkdir()
    with pytest.raises(ValueError, match="classes .'unicorn'. that the training folder has not"):
        ClassSource(root).open("val", classes=train.classes)
    with pytest.raises(FileNotFoundError, match="looked for train/<class>/"):
        ClassSource(here).open("train")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        ClassSource(here / "nowhere").open("train")


def test_all_files_of_real_imagenet(real_data):
    data = ClassFolder(real_data / "imagenet_sample" / "val")
    assert len(data) == 200 and len(data.classes) == 200
    assert any("bullet" in str(data.files[index]) for index in range(200))
    assert all(data[index][0].shape[0] == 3 for index in range(0, 200, 10))


def test_torchvisions_image_folder(real_data):
    """Its class ids are plain ints; one outside the classes is reported like any other."""
    corner = v2.Compose([v2.PILToTensor(), v2.CenterCrop(9)])
    data, keys = ImageFolder(real_data / "imagenet_sample" / "val", corner), [[(0, 0), (0, 199)]]
    cpu = torch.device("cpu")
    images, targets, _ = next(iter(make_loader(data, 0, keys, 0, cpu, Recognition(200).check)))
    assert images.shape == (2, 3, 9, 9) and targets.tolist() == [0, 199]
    with pytest.raises(ValueError, match="label 199 is outside the 199 classes"):
        next(iter(make_loader(data, 0, keys, 0, cpu, Recognition(199).check)))


def test_parquet(here):
    root = synthetic.parquet(16, 8, 12)
    data = HubImages(root, "train")
    memory = OnDevice(data)
    assert len(data) == len(memory) == 16 and len(data.classes) == 8
    for index in range(16):
        assert (
            torch.equal(data[index][0], memory[index][0])
            and data[index][1] == memory[index][1] == index % 8
        )
    assert len(ClassSource(root).open("val")) == 8
    with pytest.raises(FileNotFoundError, match=r"no dev\*.parquet in .* .it holds: test-00000"):
        HubImages(root, "dev")
    with pytest.raises(
        ValueError, match="no column 'picture'; its columns: image .Image., label .ClassLabel."
    ):
        HubImages(root, "train", image_column="picture")


def test_real_cifar10(real_data):
    data = HubImages(real_data / "cifar10", "test")
    assert len(data) == 10_000 and data.classes[:2] == ["airplane", "automobile"]
    assert data[0][0].shape == (3, 32, 32)


def test_ade20k_labels():
    assert len(set(CLASSES)) == 150 and CLASSES[0] == "wall" and CLASSES[149] == "flag"
    assert to_train_ids(torch.tensor([0, 1, 150], dtype=torch.uint8)).tolist() == [255, 0, 149]


def test_generated_ade20k_has_its_layout(here):
    root = synthetic.ade20k(6, 3)
    assert synthetic.ade20k(6, 3) == root
    data = ADE20K(root, "training")
    labels = torch.cat([read_mask(data.masks[i]).unique() for i in range(6)]).unique()
    assert labels[0] == 0 and labels[-1] <= 150
    assert len({data[i][0].shape for i in range(6)}) > 1, "images of different sizes"
    image, mask = data[0]
    stored = read_mask(data.masks[0]).numpy().astype(int)
    assert image.shape[1:] == mask.shape
    assert np.array_equal(mask.numpy(), np.where(stored == 0, 255, stored - 1))
    with pytest.raises(
        FileNotFoundError, match=r"no ADE20K at .*nowhere .*ADEChallengeData2016.zip.*--sample"
    ):
        ADE20K(here / "nowhere", "training")


def test_real_ade20k(real_data):
    data = ADE20K(real_data / "ADEChallengeData2016", "validation")
    image, mask = data[0]
    assert len(data) == 3 and image.shape == (3, 512, 683) and mask.shape == (512, 683)
    stored = read_mask(data.masks[0]).numpy()
    assert ((mask.numpy() == 255) == (stored == 0)).all()


def test_generated_scenes_are_the_same_again(tmp_path, monkeypatch):
    digests = []
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        root = synthetic.ade20k(3, 1)
        digests.append([path.read_bytes() for path in sorted(root.rglob("*.*")) if path.is_file()])
    assert digests[0] == digests[1] and len(digests[0]) == 8


def faulty(root, **changes):
    """A mask folder of one image of 20x10, with a mask of `changes`."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    Image.new("RGB", (20, 10)).save(root / "images" / "a.jpg")
    Image.new("L", changes.get("size", (20, 10)), changes.get("label", 0)).save(
        root / "masks" / changes.get("name", "a.png")
    )
    return MaskFolder(root / "images", root / "masks", 3, ignore=(255, 7))


def test_mask_folder_names_what_is_wrong(tmp_path):
    assert faulty(tmp_path / "good", label=2)[0][1].unique().tolist() == [2]
    assert faulty(tmp_path / "ignored", label=7)[0][1].unique().tolist() == [255]
    with pytest.raises(
        ValueError, match=r"a.png holds label 3 on 200 pixels; the 3 classes are 0 to 2"
    ):
        faulty(tmp_path / "label", label=3)[0]
    with pytest.raises(ValueError, match=r"a.png is 10x20 and its image .*a.jpg is 20x10"):
        faulty(tmp_path / "size", size=(10, 20))[0]
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images in .* have no mask in .*: a.jpg"):
        faulty(tmp_path / "missing", name="b.png")
    with pytest.raises(FileNotFoundError, match="no folder"):
        MaskFolder(tmp_path / "nowhere", tmp_path, 3)


def pair(height, width, ignore=255):
    """An image whose red channel is its mask's label times 10."""
    mask = torch.arange(height * width).view(height, width) // 7 % 5
    image = torch.stack([mask * 10, mask, mask]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(mask.to(torch.uint8))


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (10, 12)])
def test_training_transform_keeps_image_and_mask_together(height, width):
    torch.manual_seed(0)
    transform = train_transform(50, 32)
    for _ in range(20):
        image, mask = transform(*pair(height, width))
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32)
        assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
        padded = mask == 255
        assert (image[:, padded] == 0).float().mean() > 0.99 if padded.any() else True


def test_flip_and_crop_without_resizing_are_exact():
    torch.manual_seed(0)
    transform = train_transform(60, 32, scale=(1.0, 1.0))
    for _ in range(10):
        image, mask = transform(*pair(40, 60))
        assert torch.equal(image[0], mask * 10) and 255 not in mask


def test_long_side():
    image, mask = LongSide(30)(*pair(40, 60))
    assert image.shape == (3, 20, 30) and mask.shape == (40, 60)
    assert eval_transform(None)(*pair(40, 60))[0].shape == (3, 40, 60)
    with pytest.raises(ValueError, match="smaller one first"):
        train_transform(100, 32, scale=(2.0, 0.5))

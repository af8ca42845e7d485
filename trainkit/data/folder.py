"""Datasets in local folders: one folder per class, or images with masks of the same name."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.images import EXTENSIONS, read_image
from trainkit.data.masks import IGNORED, MaskFiles


class FileList(Sequence):
    """Paths relative to a root, kept as one array of bytes: workers share it, and it costs its characters."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self.root = root
        encoded = [path.encode() for path in paths]
        ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = ends.astype(np.min_scalar_type(len(self._bytes)))  # uint32 up to 4 GiB of names

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = self._ends[index - 1] if index else 0
        return self.root / self._bytes[begin : self._ends[index]].tobytes().decode()


class ClassFiles(Dataset):
    """Image files with a class each: index -> (uint8 image (3, H, W), class id).

    targets: the class id of each file, among `classes`.
    """

    def __init__(
        self, files: FileList, targets: list[int], classes: Sequence[str], transform: Callable[[Any], Any] | None
    ):
        self.files, self.targets = files, torch.tensor(targets, dtype=torch.int64)
        self.classes, self.transform = list(classes), transform

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.files[index]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.files[index])
        if self.transform is not None:
            image = self.transform(image)
        return image.as_subclass(Tensor), self.targets[index]


class ClassFolder(ClassFiles):
    """root/<class>/**/<image>: index -> (uint8 image (3, H, W), class id).

    Classes are the folder's subfolders in sorted order, or `classes`, which a validation folder gets from
    the training folder so that ids agree. Every file with an image's extension is taken, whatever else its
    name says.
    """

    def __init__(self, root: Path, transform: Callable[[Any], Any] | None = None, classes: Sequence[str] | None = None):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: put one folder of images per class there")
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"{root} has no subfolders: put one folder of images per class there")
        classes = list(classes) if classes is not None else found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise ValueError(
                f"{root} has classes {unknown[:5]} that the training folder has not; remove or rename them"
            )
        paths, targets = [], []
        for target, name in enumerate(classes):
            files = image_files(root / name) if name in found else []
            paths += [f"{name}/{file}" for file in files]
            targets += [target] * len(files)
        if not paths:
            raise FileNotFoundError(f"{root} has class folders but no images in them ({', '.join(sorted(EXTENSIONS))})")
        super().__init__(FileList(root, paths), targets, classes, transform)
        self.split = root.name


class MaskFolder(MaskFiles):
    """Images and their masks in two folders, paired by name without extension: index -> (image, mask).

    Image: uint8 (3, H, W). Mask: train ids, uint8 (H, W), IGNORED = 255 where nothing counts; how labels become
    train ids, and what is refused, see `MaskDataset`.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        num_classes: int,
        transform: Callable[..., Any] | None = None,
        to_train_ids: Callable[[Tensor], Tensor] | None = None,
        ignore: Sequence[int] = (IGNORED,),
        label_shift: int = 0,
    ):
        for folder in (images, masks):
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"no folder {folder}")
        names, with_mask = image_files(Path(images)), {_stem(name): name for name in image_files(Path(masks))}
        missing = [name for name in names if _stem(name) not in with_mask]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} images in {images} have no mask in {masks}: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            )
        if not names:
            raise FileNotFoundError(f"no images in {images} ({', '.join(sorted(EXTENSIONS))})")
        files = FileList(Path(images), names), FileList(Path(masks), [with_mask[_stem(name)] for name in names])
        super().__init__(
            *files, num_classes, transform, to_train_ids=to_train_ids, ignore=ignore, label_shift=label_shift
        )
        self.split = Path(images).name


def image_files(folder: Path) -> list[str]:
    """Paths of all images below `folder`, relative to it, sorted."""
    found = []
    for where, _, names in os.walk(folder):  # several times as fast as Path.rglob
        inside = os.path.relpath(where, folder)
        prefix = "" if inside == os.curdir else inside + os.sep
        found += [
            prefix + name
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
        ]
    return sorted(found)


def read_classes(classes: str) -> int | list[str]:
    """How many classes, or their names: from "3", from names with commas between, or from a text file of one a line."""
    if classes.isdigit():
        return int(classes)
    if classes.endswith(".txt"):
        if not Path(classes).is_file():
            raise FileNotFoundError(f"no file {classes}: classes is a number, names with commas, or a text file")
        names = Path(classes).read_text().splitlines()
    else:
        names = classes.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError("classes is empty: give how many there are, their names with commas, or a file (--classes)")
    return names


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))

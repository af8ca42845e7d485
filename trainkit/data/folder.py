"""Datasets in local folders: one folder per class, or images with masks of the same name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.images import EXTENSIONS, read_image
from trainkit.data.listing import Names, class_files, image_files
from trainkit.data.masks import IGNORED, MaskFiles


class FileList(Sequence):
    """Paths relative to a root, kept as `Names`: workers share them, and they cost their characters."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self.root, self.names = root, paths if isinstance(paths, Names) else Names.of(paths)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / self.names[index]


class ClassFiles(Dataset):
    """Image files with a class each: index -> (uint8 image (3, H, W), class id).

    targets: the class id of each file, among `classes`.
    """

    def __init__(
        self,
        files: FileList,
        targets: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None,
    ):
        self.files, self.targets = files, torch.as_tensor(targets, dtype=torch.int64)
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
    name says. cache: see `trainkit.data.listing.class_files`, which lists a large folder once.
    """

    def __init__(
        self,
        root: Path,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
        cache: Path | None = None,
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: put one folder of images per class there")
        found, counts, names = class_files(root, cache)
        if not found:
            raise FileNotFoundError(f"{root} has no subfolders: put one folder of images per class there")
        classes = list(classes) if classes is not None else found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise ValueError(
                f"{root} has classes {unknown[:5]} that the training folder has not; remove or rename them"
            )
        if not len(names):
            raise FileNotFoundError(f"{root} has class folders but no images in them ({', '.join(sorted(EXTENSIONS))})")
        ids = {name: target for target, name in enumerate(classes)}
        super().__init__(FileList(root, names), np.repeat([ids[name] for name in found], counts), classes, transform)
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

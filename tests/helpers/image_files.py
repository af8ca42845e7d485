"""Images and segmentation masks written to files."""

import numpy as np
from PIL import Image


def picture(file, width, height, seed, **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, **how)
    return file


def mask(file, width, height, runs):
    """Labels one after the other, row by row: (label, pixels) pairs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = np.concatenate([np.full(pixels, label, np.uint8) for label, pixels in runs])
    Image.fromarray(labels.reshape(height, width)).save(file)
    return file


def photo(file, width=20, height=16, mode="RGB", orientation=None):
    """A JPEG, dark on the left and light on the right half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width), 40, dtype=np.uint8)
    pixels[:, width // 2 :] = 200
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).convert("RGB").convert(mode).save(file, quality=95, exif=exif)


def labels_png(file, labels, palette=None, dtype=np.uint8):
    """A PNG of labels, grey or with a palette."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, dtype=dtype))
    if palette is not None:
        image.putpalette(palette.flatten().tolist())
    image.save(file)


def blocks(*labels, width=20, height=16):
    """A label map of upright stripes, as wide as there is room for."""
    return np.repeat(np.array(labels), width // len(labels))[None].repeat(height, 0)

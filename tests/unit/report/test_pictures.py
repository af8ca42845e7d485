"""Colours and tiles: what an overlay, an error map and a sheet of images show, pixel by pixel."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from trainkit.data.datasets.ade20k import ADE20K
from trainkit.data.datasets.voc import PALETTE
from trainkit.data.palette import class_colours, colour_map
from trainkit.report import pictures
from trainkit.report.pictures import Tile

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("palette", [None, PALETTE, colour_map(151), np.zeros((9, 3))])
def test_no_colour_is_black_and_none_occurs_twice(palette):
    number = 21 if palette is None else len(palette)
    colours = class_colours(number, palette)
    assert colours.shape == (number, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours.tolist()}) == number
    assert colours.max(1).min() >= 48
    if palette is not None:  # the dataset's own stay, where they can be seen
        own = np.asarray(palette)
        kept = (own == colours).all(1)
        assert kept[own.max(1) >= 48].all() and not kept[0]


@pytest.mark.parametrize("number", [10_000, 30_000])
def test_very_many_classes_have_a_colour_each(number):
    """As of iNaturalist and ImageNet-21k: more than the eye tells apart."""
    colours = class_colours(number, [(0, 0, 0), (66, 133, 244)])
    assert len({tuple(colour) for colour in colours.tolist()}) == number
    assert colours.max(1).min() >= 48 and colours[1].tolist() == [66, 133, 244]


def test_neighbours_among_many_classes_have_unlike_colours():
    colours = class_colours(150) / 255
    hues = [colorsys.rgb_to_hsv(*colour) for colour in colours]
    for one, other in zip(hues, hues[1:]):
        turn = abs(one[0] - other[0])
        assert min(turn, 1 - turn) > 0.02 or abs(one[1] - other[1]) > 0.2


def test_an_overlay_is_the_mask_over_the_image():
    image = np.full((40, 60, 3), 100, np.uint8)
    labels = np.zeros((4, 6), dtype=np.int64)
    labels[:, 3:] = 2
    labels[2:] = -1  # ignored
    laid = pixels(pictures.overlaid(Image.fromarray(image), labels, COLOURS, cover=0.5))
    assert np.abs(laid[:20, :30] - [150, 70, 70]).max() <= 1
    assert np.abs(laid[:20, 30:] - [70, 70, 150]).max() <= 1
    void = laid[20:]
    assert (void[..., 0] == void[..., 1]).all() and len(np.unique(void)) == 2, "stripes"
    assert 0.3 < (void[..., 0] > 150).mean() < 0.5


def test_an_error_map_shows_what_is_wrong():
    image = Image.fromarray(np.full((20, 30, 3), 100, np.uint8))
    target, prediction = np.zeros((2, 3), dtype=int), np.zeros((2, 3), dtype=int)
    prediction[0, 1] = 1
    target[1, 2] = -1
    shown = pixels(pictures.error_map(image, target, prediction))
    grey, red, void = shown[:10, :10], shown[:10, 10:20], shown[10:, 20:]
    assert (grey == grey[0, 0, 0]).all()
    assert (red[..., 0] - red[..., 1] > 100).all()
    assert len(np.unique(void)) == 2


@pytest.mark.parametrize("shape, size", [((32, 32), (224, 224)), ((50, 100), (200, 100))])
def test_small_images_are_magnified_by_whole_pixels(shape, size):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    fitted = pictures.fitted(image)
    assert fitted.size == size
    times = size[0] // shape[1]
    assert (np.asarray(fitted) == image.repeat(times, 0).repeat(times, 1)).all()
    large = np.full((300, 600, 3), 7, np.uint8)
    assert (
        pictures.fitted(large).size == (224, 112) and np.asarray(pictures.fitted(large)).max() == 7
    )


def test_text_and_legend_cover_no_image():
    """Every pixel of every tile is in the sheet, in its order."""
    images = [Image.new("RGB", (120, 80), (10 * n, 200, 5 * n)) for n in range(1, 8)]
    tiles = [
        Tile([image, image], [(f"name {n}" * 20, (0, 0, 0))]) for n, image in enumerate(images)
    ]
    legend = [(f"class {n}", (n, 255 - n, 9)) for n in range(50)]
    sheet = pixels(pictures.sheet("title " * 60, "subtitle " * 60, tiles, legend, width=900))
    found = [(sheet == np.asarray(image)[0, 0]).all(2) for image in images]
    assert [int(where.sum()) for where in found] == [2 * 120 * 80] * 7
    places = [tuple(np.argwhere(where)[0]) for where in found]
    assert places == sorted(places) and places[0][0] == places[2][0] < places[3][0]


def test_bars_are_as_long_as_there_are_pixels():
    truth, given = np.array([100, 50, 0]), np.array([0, 25, 125])
    page = pixels(pictures.class_bars("classes", ["a", "b", "c"], COLOURS, truth, given))
    lengths = []
    for colour in COLOURS:
        where = (page == colour).all(2)
        lengths.append(int(where.sum(1).max()) - 1)
    # the longest bar is of the 125 pixels that c is given, as an outline
    assert lengths[0] == pytest.approx(330 * 100 / 125, abs=2)
    assert lengths[1] == pytest.approx(330 * 50 / 125, abs=2)
    assert lengths[2] == pytest.approx(330, abs=2)


def test_many_classes_stand_in_columns():
    names = [f"a rather long name of class {number}" for number in range(150)]
    counts = np.arange(150)
    page = pictures.class_bars("classes", names, class_colours(150), counts, counts)
    assert page.height < 1100 and page.width < 2000
    assert len(ADE20K.classes) == 150

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.views.images import difference_map, enlarge, grid, inline_image, png_bytes, write_png


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_png_gives_back_every_pixel_and_no_metadata(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png_bytes(image))) as read:
        assert not read.info
        np.testing.assert_array_equal(np.asarray(read).reshape(shape), image)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_png_refuses_what_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8|\[H,W\]"):
        png_bytes(image)


def test_grid_puts_images_row_by_row() -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((5, 2, 3, 1), np.uint8)
    sheet = grid(images, columns=3, gap=1, background=200)
    assert sheet.shape == (5, 11, 1)
    assert [sheet[0, 0, 0], sheet[0, 4, 0], sheet[0, 8, 0], sheet[3, 0, 0], sheet[3, 4, 0]] == [0, 1, 2, 3, 4]
    assert sheet[2, 0, 0] == sheet[0, 3, 0] == sheet[4, 10, 0] == 200


def test_difference_is_white_green_and_purple() -> None:
    before = np.full((1, 4, 1), 100, np.uint8)
    after = np.array([[[100], [180], [20], [140]]], np.uint8)
    same, more, less, half = difference_map(before, after, full_scale=80)[0].astype(int)
    assert same.tolist() == [247, 247, 247]
    assert more[1] > more[0] and more[1] > more[2], "brighter is green"
    assert less[1] < less[0] and less[1] < less[2], "darker is purple"
    assert more.tolist() == [27, 120, 55] and less.tolist() == [118, 42, 131]
    np.testing.assert_allclose(half, (same + more) / 2, atol=1)


def test_difference_does_not_wrap_around_in_uint8() -> None:
    before, after = np.full((1, 1, 3), 250, np.uint8), np.full((1, 1, 3), 5, np.uint8)
    assert difference_map(before, after)[0, 0].tolist() == [118, 42, 131]


def test_enlarge_repeats_pixels(tmp_path: Path) -> None:
    image = np.array([[[1], [2]]], np.uint8)
    assert enlarge(image, 2)[:, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert write_png(tmp_path / "a" / "b.png", image).is_file()


def test_inline_image_escapes_its_text_and_keeps_small_pictures_sharp() -> None:
    tag = inline_image(png_bytes(np.zeros((10, 20), np.uint8)), '"><script>')
    assert "<script>" not in tag and 'width="60"' in tag and 'height="30"' in tag
    assert tag.count('src="data:image/png;base64,') == 1

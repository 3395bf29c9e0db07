"""Scans that a user brings: every kind of file that is read, and one clear error for what is not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.config import ModelConfig
from jointdiff.data import DatasetInfo
from jointdiff.data.site_data import open_site
from jointdiff.data.site_source import SiteSource
from jointdiff.errors import DataError
from jointdiff.scans import read_scans

GREY = ModelConfig(channels=1, image_size=16)
RGB = ModelConfig(channels=3, image_size=16)
RAMP = np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path, model: ModelConfig = GREY) -> np.ndarray:
    return read_scans([str(path)], model)[1]


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_pixels_of_the_right_size_come_as_they_are(tmp_path, ending):
    names, scans = read_scans([str(save(tmp_path / f"a.{ending}", RAMP))], GREY)
    assert names == [f"a.{ending}"] and scans.dtype == np.uint8 and scans.shape == (1, 16, 16, 1)
    np.testing.assert_array_equal(scans[0, ..., 0], RAMP)


def test_jpeg_is_close(tmp_path):
    assert np.abs(read(save(tmp_path / "a.jpg", RAMP))[0, ..., 0].astype(int) - RAMP).max() < 12


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    grey = save(tmp_path / "grey.png", RAMP)
    red = save(tmp_path / "red.png", np.stack([np.full((16, 16), 200), *np.zeros((2, 16, 16))], -1).astype(np.uint8))
    np.testing.assert_array_equal(read(grey, RGB)[0], np.repeat(RAMP[..., None], 3, axis=2))
    np.testing.assert_array_equal(read(red, RGB)[0, 0, 0], [200, 0, 0])
    assert read(red).shape == (1, 16, 16, 1) and abs(int(read(red)[0, 0, 0, 0]) - 60) <= 1  # the eye's weight of red


@pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2")])
def test_deeper_files_are_scaled_by_their_full_range(tmp_path, dtype):
    deep = (RAMP.astype(np.int64) * 200 + 1000).astype(dtype)
    scan = read(save(tmp_path / "deep.tif", deep))[0, ..., 0]
    np.testing.assert_array_equal(scan, np.rint(deep.astype(np.float64) / 257).astype(np.uint8))


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("model", [GREY, RGB])
def test_a_scan_is_the_same_whether_it_is_a_sites_own_or_brought_by_hand(tmp_path, model, aspect):
    rng = np.random.default_rng(0)
    scans = {
        "oblong.png": rng.integers(0, 256, (40, 23), dtype=np.uint8),
        "deep.png": rng.integers(900, 9000, (20, 31), dtype=np.uint16),
        "small.tif": rng.integers(0, 256, (9, 5, 3), dtype=np.uint8),
        "exact.bmp": RAMP,
    }
    for number, (name, pixels) in enumerate(scans.items()):
        folder = tmp_path / "data" / ("ill" if number % 2 else "healthy")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / name, pixels)
    source = SiteSource(kind="folder", path=tmp_path / "data", aspect=aspect)
    wanted = DatasetInfo(
        name="sites", task="multi-class", class_names=("healthy", "ill"), channels=model.channels, image_size=16,
        real=True, description="", licence="",
    )  # fmt: skip
    site = open_site(source, wanted, cache=tmp_path / "cache")
    own = np.concatenate([images.images for _, images, _ in site.parts()])
    assert len(own) == len(scans)
    by_hand = read_scans([str(tmp_path / "data" / name) for name in site.names], model, aspect=aspect)[1]
    np.testing.assert_array_equal(by_hand, own)


def test_other_sizes_are_resized_to_the_models(tmp_path):
    big = np.kron(RAMP, np.ones((4, 4), dtype=np.uint8))[:40]
    scan = read(save(tmp_path / "big.png", big))[0, ..., 0]
    np.testing.assert_array_equal(scan[3:13], RAMP[3:13])  # 40 x 64 becomes 10 x 16, with black above and below
    assert scan.shape == (16, 16) and not scan[:3].any() and not scan[13:].any()


def test_a_folder_is_read_by_name_and_passes_other_files_over(tmp_path):
    for name, value in (("b.PNG", 2), ("a.png", 1), ("c.jpeg", 3)):
        save(tmp_path / name, np.full((16, 16), value * 50, np.uint8))
    (tmp_path / "notes.txt").write_text("no scan")
    names, scans = read_scans([str(tmp_path)], GREY)
    assert names == ["a.png", "b.PNG", "c.jpeg"]
    assert scans[:, 0, 0, 0].tolist() == [50, 100, 150]


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 16, 1), (3, 16, 16, 3), (3, 20, 24)])
@pytest.mark.parametrize("model", [GREY, RGB])
def test_npz_of_every_shape(tmp_path, shape, model):
    np.savez(tmp_path / "new.npz", images=np.full(shape, 7, np.uint8) * np.arange(1, 4, dtype=np.uint8).reshape(
        3, *[1] * (len(shape) - 1)))  # fmt: skip
    names, scans = read_scans([str(tmp_path / "new.npz")], model)
    assert names == ["new.npz[0]", "new.npz[1]", "new.npz[2]"]
    assert scans.shape == (3, 16, 16, model.channels) and scans[:, 5, 5, 0].tolist() == [7, 14, 21]


def test_several_sources_keep_their_order(tmp_path):
    np.savez(tmp_path / "new.npz", images=np.zeros((2, 16, 16), np.uint8))
    one = save(tmp_path / "one.png", RAMP)
    names, scans = read_scans([str(one), str(tmp_path / "new.npz"), str(one)], GREY)
    assert names == ["one.png", "new.npz[0]", "new.npz[1]", "one.png"]
    np.testing.assert_array_equal(scans[3], scans[0])


def bad_npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-60])
    return path


def damaged(path: Path) -> Path:
    """Turn bytes over inside the compressed array, so that the table at the file's end still fits."""
    content = bytearray(path.read_bytes())
    content[60:160] = bytes(255 - b for b in content[60:160])
    path.write_bytes(bytes(content))
    return path


def compressed(path: Path) -> Path:
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (4, 16, 16), dtype=np.uint8))
    return path


def single_array(path: Path) -> Path:
    with path.open("wb") as file:
        np.save(file, RAMP)
    return path


def text(path: Path) -> Path:
    path.write_text("no image")
    return path


BAD = {
    "float npz": (lambda f: bad_npz(f, images=np.zeros((2, 16, 16))), "must be uint8 .*float64"),
    "NaN in npz": (lambda f: bad_npz(f, images=np.full((2, 16, 16), np.nan)), "NaN or infinity in 512 of 512 values"),
    "NaN in TIFF": (lambda f: save(f / "x.tif", np.full((16, 16), np.nan, np.float32)), "32 bits or fractions"),
    "32-bit TIFF": (lambda f: save(f / "x.tif", RAMP.astype(np.int32)), "32 bits or fractions"),
    "pages": (lambda f: pages(f / "x.tif"), "several pictures"),
    "16-bit npz": (lambda f: bad_npz(f, images=np.zeros((2, 16, 16), np.uint16)), "must be uint8 .*uint16"),
    "four channels": (lambda f: bad_npz(f, images=np.zeros((2, 16, 16, 4), np.uint8)), r"\[2, 16, 16, 4\]"),
    "one image": (lambda f: bad_npz(f, images=RAMP), r"must be uint8 \[N,H,W\]"),
    "no image": (lambda f: bad_npz(f, images=np.zeros((0, 16, 16), np.uint8)), "No scans were given"),
    "no height": (lambda f: bad_npz(f, images=np.zeros((2, 0, 16), np.uint8)), r"\[2, 0, 16\]"),
    "another name": (lambda f: bad_npz(f, train_images=RAMP), "no array `images`; it has: train_images"),
    "pickled npz": (lambda f: bad_npz(f, images=np.array([{}], dtype=object)), "cannot be read"),
    "cut npz": (lambda f: cut(bad_npz(f, images=np.zeros((2, 16, 16), np.uint8))), "cannot be read as an npz file"),
    "damaged npz": (lambda f: damaged(compressed(f / "x.npz")), "cannot be read as an npz file"),
    "npy named npz": (lambda f: single_array(f / "x.npz"), "single array"),
    "text named npz": (lambda f: text(f / "x.npz"), "cannot be read as an npz file"),
    "missing npz": (lambda f: f / "none.npz", "There is no file"),
    "missing image": (lambda f: f / "none.png", "There is no file"),
    "text": (lambda f: text(f / "x.png"), "cannot be read as an image"),
    "cut png": (lambda f: cut(save(f / "x.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))),
                "cannot be read as an image"),
    "empty folder": (lambda f: f, "holds no image file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_scans([str(path)], GREY)
    assert path.name in str(caught.value) or case == "no image"


def test_nothing_given():
    with pytest.raises(DataError, match="No scans were given"):
        read_scans([], GREY)


def deep_rgb_png(path: Path) -> Path:
    """Write a PNG of 16 bits per colour, which is read as 8 bits without a word; no writer here makes one."""
    rows = b"".join(b"\0" + np.random.default_rng(k).bytes(16 * 6) for k in range(16))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def pages(path: Path) -> Path:
    first, second = (Image.fromarray(RAMP) for _ in range(2))
    first.save(path, save_all=True, append_images=[second])
    return path


def converted(path: Path, mode: str) -> Path:
    Image.fromarray(RAMP).convert(mode).save(path)
    return path


SOLID = np.broadcast_to(np.array([200, 10, 0], np.uint8), (16, 16, 3)).copy()
NOT_EXACT = {
    "larger": (lambda f: save(f / "x.png", np.kron(RAMP, np.ones((2, 2), np.uint8))), GREY, "32 x 32 .* 16 x 16"),
    "not square": (lambda f: save(f / "x.png", RAMP[:8]), GREY, r"8 x 16 pixels \(height x width\)"),
    "grey for colour": (lambda f: save(f / "x.png", RAMP), RGB, "1 channel, but the model sees 3"),
    "colour for grey": (lambda f: save(f / "x.png", np.stack([RAMP, RAMP, RAMP.T], -1)), GREY, "3 channels"),
    "alpha": (lambda f: converted(f / "x.png", "RGBA"), RGB, "4 channels"),
    "palette": (lambda f: converted(f / "x.png", "P"), GREY, "palette"),
    "black and white": (lambda f: converted(f / "x.png", "1"), GREY, "1 bits per channel"),
    "16 bits": (lambda f: save(f / "x.png", RAMP.astype(np.uint16) * 200), GREY, "16 bits"),
    "16 bits, RGB": (lambda f: deep_rgb_png(f / "x.png"), RGB, "16 bits"),
    "32 bits": (lambda f: save(f / "x.tif", RAMP.astype(np.int32)), GREY, "32 bits"),
    "float": (lambda f: save(f / "x.tif", RAMP.astype(np.float32)), GREY, "32 bits"),
    "pages": (lambda f: pages(f / "x.tif"), GREY, "holds 2 pictures"),
    "constant": (lambda f: save(f / "x.png", np.full((16, 16), 9, np.uint8)), GREY, "constant: every pixel is 9"),
    "one colour": (lambda f: save(f / "x.png", SOLID), RGB, "constant"),
    "npz, other size": (lambda f: bad_npz(f, images=np.zeros((2, 16, 8), np.uint8)), GREY, "16 x 8 pixels"),
    "npz, colour": (lambda f: bad_npz(f, images=np.stack([RAMP[None]] * 3, -1)), GREY, "3 channels"),
    "npz, grey": (lambda f: bad_npz(f, images=RAMP[None]), RGB, "1 channel"),
    "npz, constant": (lambda f: bad_npz(f, images=np.stack([RAMP, RAMP * 0])), GREY, r"\[1\] is constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_EXACT)
def test_an_exact_reader_changes_no_scan_but_refuses_it(tmp_path, case):
    make, model, message = NOT_EXACT[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_scans([str(path)], model, exact=True)
    assert path.name in str(caught.value)
    if case not in ("32 bits", "float", "pages"):  # which no reader takes
        assert len(read_scans([str(path)], model)[1])  # which is otherwise fitted to the model


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.jpg"])
@pytest.mark.parametrize("model", [GREY, RGB])
def test_an_exact_reader_takes_what_fits(tmp_path, name, model):
    path = save(tmp_path / name, RAMP if model is GREY else np.stack([RAMP, RAMP.T, RAMP], -1))
    np.testing.assert_array_equal(read_scans([str(path)], model, exact=True)[1], read(path, model)[:])
    pixels = read(path, model)
    np.savez(tmp_path / "a.npz", images=pixels[..., 0] if model is GREY else pixels)
    np.testing.assert_array_equal(read_scans([str(tmp_path / "a.npz")], model, exact=True)[1], pixels)

"""The preview of a site's data: what it shows, what it names, and what it says where data do not fit."""

from __future__ import annotations

import base64
import io
import re
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import site_config
from client.preview import lines, look, preview
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.scan_file import FilesError
from jointdiff.data.site_source import SiteSource, read_source
from jointdiff.errors import ConfigError, DataError
from jointdiff.views.preview_page import SHOWN, groups, strip

WANTED = replace(phantom_info(), image_size=16)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site: thirty pictures, twice as wide as high, and a site.yaml."""
    drawn = draw_scans(replace(WANTED, image_size=32), 30, np.random.default_rng(0))
    for row, image in enumerate(drawn.images):
        folder = tmp_path / "Bilder <b>" / ("unlabelled" if row < 5 else WANTED.class_names[drawn.labels[row]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([image[..., 0]] * 2, axis=1)).save(folder / f"Müller-{row:02d}.png")
    (tmp_path / "site.yaml").write_text("data:\n  kind: folder\n  path: Bilder <b>\n", encoding="utf-8")
    return tmp_path


def source_of(home: Path) -> SiteSource:
    return read_source({"kind": "folder", "path": "Bilder <b>"}, "'data'", home)


def test_the_page_shows_every_class_and_names_no_file(home: Path) -> None:
    path = preview(site_config.read(home), WANTED, home / "preview")
    text = path.read_text(encoding="utf-8")
    assert path == home / "preview" / "index.html" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (home / "data-cache").is_dir(), "the site's own cache, which training uses too"
    headings = re.findall(r"<h3>([^<]*)", text)
    assert [heading.strip() for heading in headings] == ["healthy", "lesion", "without a label"]
    assert text.count("<img") == 3 and "Müller" not in text
    assert "Real scans" in text and "no medical device" in text and "16 x 16 pixels, grey" in text
    assert "64 x 32" in text and "30 images are not square" in text
    assert "Bilder &lt;b&gt;" in text and "Bilder <b>" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text), "the page carries all it shows"


def test_names_are_shown_where_they_are_asked_for(home: Path) -> None:
    path = preview(source_of(home), WANTED, home / "preview", show_names=True)
    assert "healthy/Müller-" in path.read_text(encoding="utf-8")


def test_a_strip_holds_scans_as_read_and_as_fitted(home: Path) -> None:
    site = look(source_of(home), WANTED, home / "cache")
    (name, rows), *_ = groups(site)
    assert name == "healthy"
    picture = strip(site, rows[:2].tolist())
    cell = 112
    assert picture.shape == (2 * cell + 4, 2 * cell + 4, 3)
    read, fitted = picture[:cell, :cell], picture[cell + 4 :, :cell]
    assert (read[:28] == 255).all() and not (read[40:70] == 255).all(), "wide scans stand in a white square"
    assert (fitted[:28] == 0).all(), "and are padded with black for the model"
    image = np.concatenate([images.images for _, images, _ in site.parts()])[rows[0]]
    np.testing.assert_array_equal(fitted[::7, ::7, 0], image[..., 0])


def test_pictures_on_the_page_are_whole(home: Path) -> None:
    text = preview(source_of(home), WANTED, home / "preview").read_text(encoding="utf-8")
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    widths = [Image.open(io.BytesIO(base64.b64decode(data))).width for data in sources]
    assert widths == [SHOWN * 116 - 4, SHOWN * 116 - 4, 5 * 116 - 4]


def test_findings_per_scan(tmp_path: Path) -> None:
    wanted = replace(phantom_info("multi-label"), image_size=16)
    source = read_source({"kind": "phantom", "variant": "multi-label", "num-images": 40}, "'data'", tmp_path)
    site = look(source, wanted, tmp_path / "cache")
    assert [name for name, _ in groups(site)] == ["nodule", "cavity", "no finding", "without a label"]
    text = preview(source, wanted, tmp_path / "preview").read_text(encoding="utf-8")
    assert "None here." in text and "Phantoms" in text


def test_lines_for_the_terminal(home: Path) -> None:
    told = lines(look(source_of(home), WANTED, home / "cache"))
    assert told[0].split() == ["class", "training", "test"]
    assert [line.split()[0] for line in told[1:3]] == ["healthy", "lesion"]
    assert len({len(line) for line in told[:5]}) == 1 and told[5] == ""
    assert any(line.startswith("note: ") for line in told[6:]) and not any("Müller" in line for line in told)


def test_a_site_without_data_and_one_with_damage(home: Path) -> None:
    with pytest.raises(ConfigError, match="has no section `data`"):
        preview(site_config.SiteConfig(home), WANTED, home / "preview")
    damaged = next((home / "Bilder <b>" / "lesion").iterdir())
    damaged.write_bytes(b"x")
    with pytest.raises(FilesError) as caught:
        preview(source_of(home), WANTED, home / "preview")
    assert damaged.name not in str(caught.value)
    with pytest.raises(DataError, match=damaged.name):
        preview(source_of(home), WANTED, home / "preview", show_names=True)
    assert not (home / "preview" / "index.html").exists()

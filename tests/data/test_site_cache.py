"""Fitted scans on disk: reused while nothing changes, mapped, private, whole; and what training does with them."""

from __future__ import annotations

import json
import os
import stat
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.data import HospitalData, streaming
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.site_data import load_site
from jointdiff.data.site_source import read_source
from jointdiff.errors import DataError
from jointdiff.model import JointModel
from jointdiff.training import train_round

WANTED = replace(phantom_info(), image_size=16)


class Site:
    """Twenty-four pictures in two class folders, four without a label."""

    def __init__(self, home: Path) -> None:
        self.home, self.cache = home, home / "data-cache"
        self.decoded = 0
        drawn = draw_scans(WANTED, 24, np.random.default_rng(0))
        for row, image in enumerate(drawn.images):
            folder = home / "data" / ("unlabelled" if row < 4 else WANTED.class_names[drawn.labels[row]])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{row}.png")

    def load(self, wanted: Any = WANTED, audit_holdout: float = 0.0, **values: Any) -> HospitalData:
        self.decoded = 0
        source = read_source({"kind": "folder", "path": "data"} | values, "'data'", self.home)
        return load_site(source, wanted, cache=self.cache, audit_holdout=audit_holdout, progress=self._count)

    def _count(self, done: int, total: int) -> None:
        self.decoded = done
        assert done <= total == 24

    def files(self) -> list[Path]:
        return sorted(self.cache.glob("scans-*.cache"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_second_time_nothing_is_decoded(site: Site) -> None:
    first = site.load()
    assert site.decoded == 24
    again = site.load()
    assert site.decoded == 0
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(first, part).images, getattr(again, part).images)
        np.testing.assert_array_equal(getattr(first, part).labels, getattr(again, part).labels)


def test_files_and_folder_are_the_owner_s_alone(site: Site) -> None:
    site.load()
    (path,) = site.files()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.cache.stat().st_mode) == 0o700


def test_images_are_mapped_and_writing_reaches_no_file(site: Site) -> None:
    data = site.load()
    base = data.train.images
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"
    before = site.files()[0].read_bytes()
    data.train.images[:] = 7
    assert site.files()[0].read_bytes() == before
    assert not (site.load().train.images == 7).all()


@pytest.mark.parametrize("change", ["size", "channels", "aspect", "audit", "content", "time", "file", "label"])
def test_what_changes_is_decoded_anew(site: Site, change: str) -> None:
    site.load()
    path = site.home / "data" / "unlabelled" / "0.png"
    keys: dict[str, Any] = {}
    if change == "size":
        keys["wanted"] = replace(WANTED, image_size=8)
    elif change == "channels":
        keys["wanted"] = replace(WANTED, channels=3)
    elif change == "aspect":
        keys["aspect"] = "crop"
    elif change == "audit":
        keys["audit_holdout"] = 0.2
    elif change == "content":
        Image.fromarray(np.zeros((99, 9), np.uint8)).save(path)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "file":
        path.rename(path.with_name("other.png"))
    else:
        path.rename(site.home / "data" / "lesion" / "0.png")
    site.load(**keys)
    assert site.decoded == 24 and len(site.files()) == 2


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "version", "no heading"])
def test_a_damaged_file_is_made_anew(site: Site, damage: str) -> None:
    whole = site.load()
    (path,) = site.files()
    content = path.read_bytes()
    heading = json.loads(content[:4096].rstrip(b"\0"))
    path.write_bytes({
        "truncated": content[:-10],
        "longer": content + b"x",
        "empty": b"",
        "version": json.dumps(heading | {"format": streaming.FORMAT + 1}).encode().ljust(4096, b"\0") + content[4096:],
        "no heading": bytes(4096) + content[4096:],
    }[damage])  # fmt: skip
    again = site.load()
    assert site.decoded == 24 and path.read_bytes() == content
    np.testing.assert_array_equal(whole.train.labels, again.train.labels)


def test_what_a_killed_process_left_is_swept_and_old_files_go(site: Site) -> None:
    site.load()
    (site.cache / ".scans-x.cache.abc.tmp").write_bytes(b"half")
    for size in (8, 9, 10, 11):
        time.sleep(0.01)
        site.load(replace(WANTED, image_size=size))
    assert len(site.files()) == streaming.KEPT and not list(site.cache.glob("*.tmp"))


def test_an_unwritable_or_full_cache_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cache.write_text("a file in the way")
    with pytest.raises(DataError, match=r"cannot hold the fitted scans: .*Make space or give permission"):
        site.load()
    site.cache.unlink()
    usage = streaming.shutil.disk_usage("/")
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DataError, match="has 0 MB left"):
        site.load()
    assert not site.files()


def test_a_round_of_training_takes_mapped_images(site: Site) -> None:
    data = site.load()
    model = JointModel(ModelConfig(width=8, multipliers=(1,), num_blocks=1, attention_levels=(), image_size=16))
    run = RunConfig(num_rounds=4, local_steps=1, batch_size=4, device="cpu")
    config = Config(run=run, model=model.config, training=TrainingConfig(pseudo_start_fraction=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch warns of arrays that it must not write
        metrics, _ = train_round(
            model, data, config, round_number=3, hospital_index=0, device=torch.device("cpu"), state=None
        )
    assert np.isfinite(metrics["loss"]) and "pseudo_accuracy" not in metrics

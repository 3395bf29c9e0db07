"""A run's folder as a real run leaves it, made in a second: events, metrics, samples, and galleries at three sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.events import EventLog
from jointdiff.storage import write_json
from jointdiff.views.gallery import GalleryItem, write_gallery
from jointdiff.views.images import grid, write_png

HOSTILE = '<img src=x onerror="alert(1)">&"\''
CLASS_NAMES = ["healthy", "lesion"]


def draw_scan(generator: np.random.Generator, *, ill: bool, channels: int = 1, size: int = 28) -> np.ndarray:
    """Draw a chest in the rough: body, two lungs, noise, and perhaps a bright spot."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    image = 40 + 110 * ((x / 0.45) ** 2 + (y / 0.48) ** 2 < 1)
    for side in (-0.2, 0.2):
        image = image - 80 * (((x - side) / 0.15) ** 2 + (y / 0.33) ** 2 < 1)
    height = generator.uniform(-0.2, 0.2)
    if ill:
        image = image + 70 * np.exp(-((x - 0.2) ** 2 + (y - height) ** 2) / 0.004)
    image = image[..., None] + generator.normal(0, 9, (size, size, channels))
    return np.clip(image, 0, 255).astype(np.uint8)


def make_items(count: int, *, seed: int = 0, channels: int = 1) -> list[GalleryItem]:
    """Return explained decisions with falling scores; every seventh was not found."""
    generator = np.random.default_rng(seed)
    items = []
    for index in range(count):
        label = index % 2
        scan = draw_scan(np.random.default_rng(1000 * seed + index), ill=bool(label), channels=channels)
        edited = draw_scan(np.random.default_rng(1000 * seed + index), ill=not label, channels=channels)
        edited = np.clip(0.85 * edited + 0.15 * scan, 0, 255).astype(np.uint8)
        found = index % 7 != 6
        before = np.array([0.93, 0.07] if label == 0 else [0.08, 0.92], dtype=np.float32)
        after = before[::-1].copy() if found else np.array([0.55, 0.45], dtype=np.float32)
        score = float(generator.uniform(0.2, 0.9))
        items.append(GalleryItem(scan, edited, before, after, label, 1 - label, found, score))
    return items


def metrics_of(round_number: int, offset: float, count: int) -> dict[str, Any]:
    """Return what ClassificationStatistics.finish would."""
    auc = 0.98 - 0.35 * math.exp(-round_number / 3) + offset
    hits = round(count / 2 * (auc - 0.02))
    miss = count // 2 - hits
    return {
        "auc": auc, "auc_per_class": [auc], "auc_num_skipped": 0, "accuracy": auc - 0.03,
        "balanced_accuracy": auc - 0.04, "log_loss": 0.3, "calibration_error": 0.041,
        "sensitivity": auc - 0.05, "specificity": auc - 0.02, "operating_point": "p > 0.5",
        "confusion_matrix": [[hits, miss], [miss + 5, hits - 5]], "num_images": count,
    }  # fmt: skip


def make_run(
    folder: Path,
    *,
    num_rounds: int = 10,
    hospitals: tuple[str, ...] = ("hospital-1", "hospital-2", "hospital-3"),
    real: bool = False,
    num_items: int = 16,
    ended: str = "finished",
    galleries: bool = True,
) -> Path:
    """Write a run's folder.

    Args:
        hospitals: Names; one that is no folder's name gets no gallery.
        ended: finished | failed | not at all.
        galleries: Whether the sites have any.
    """
    folder.mkdir(parents=True)
    run = RunConfig(num_rounds=num_rounds, run_name=folder.name, num_hospitals=len(hospitals))
    config = Config(run, ModelConfig(), TrainingConfig())
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    log = EventLog(folder / "events.jsonl")
    dataset = {"name": "phantom", "task": "multi-class", "class_names": CLASS_NAMES, "channels": 1, "image_size": 28,
               "real": real, "description": "", "licence": "none needed"}  # fmt: skip
    log.append("run_started", config=config.to_dict(), run_name=folder.name, dataset=dataset, hospitals=list(hospitals),
               code_version="0.1.0", code_hash="c0ffee" * 8, flwr_version="1.41.0", torch_version="2.15.0")  # fmt: skip
    for index, name in enumerate(hospitals):
        table = {"class_names": CLASS_NAMES, "labelled": [2, 2], "num_unlabelled": 396 + index,
                 "num_train": 400 + index, "test": [100, 100 + index], "num_test": 200 + index}  # fmt: skip
        log.append("hospital_replied", round=0, hospital=name, kind="describe", num_images=400, num_labels=4,
                   duration_s=0.4, device="cpu", metrics={}, bytes_in=900, bytes_out=700, table=table)  # fmt: skip
    rounds = []
    for number in range(1, num_rounds + 1):
        log.append("round_started", round=number, num_rounds=num_rounds, hospitals=list(hospitals))
        warm = number > num_rounds // 2
        coverage = 0.9 - 1.2 * math.exp(-(number - num_rounds // 2) / 2) if warm else None
        means = {"loss": 0.2, "loss_diffusion": 0.15 + 0.5 / number, "loss_class": 0.6 / number if warm else None,
                 "loss_pseudo": 0.9 / number if warm else None, "pseudo_coverage": coverage,
                 "pseudo_accuracy": 0.93 if warm else None, "learning_rate": 1e-3, "images_per_s": 60.0}  # fmt: skip
        for index, name in enumerate(hospitals):
            own = {key: None if value is None else value * (1 + 0.06 * (index - 1)) for key, value in means.items()}
            log.append("hospital_replied", round=number, hospital=name, kind="train", num_images=400, num_labels=4,
                       duration_s=20.5 + index, device="cpu", metrics=own, bytes_in=3_130_000,
                       bytes_out=3_130_400)  # fmt: skip
        log.append("round_aggregated", round=number, num_replies=len(hospitals), duration_s=24.0, metrics=means)
        entry = {
            "round": number,
            "pooled": metrics_of(number, 0.0, 603),
            "hospitals": {name: metrics_of(number, 0.012 * (i - 1), 200 + i) for i, name in enumerate(hospitals)},
            "training": means,
        }
        log.append("evaluated", **{key: entry[key] for key in ("round", "pooled", "hospitals")})
        log.append("checkpoint_saved", round=number, path="checkpoints/last.safetensors", kind="last")
        rounds.append(entry)
    if ended == "finished":
        _finish(folder, log, rounds, hospitals, real=real, num_items=num_items, galleries=galleries)
    elif ended == "failed":
        log.append("run_failed", reason="hospital-2 ran out of <memory>", duration_s=12.0)
    return folder


def _finish(
    folder: Path,
    log: EventLog,
    rounds: list[dict[str, Any]],
    hospitals: tuple[str, ...],
    *,
    real: bool,
    num_items: int,
    galleries: bool,
) -> None:
    scans = [draw_scan(np.random.default_rng(i), ill=i >= 12) for i in range(24)]
    panel = np.repeat(np.repeat(grid(scans, columns=12), 2, axis=0), 2, axis=1)
    write_png(folder / "samples.png", panel)
    kid = {name: {"samples": [0.031, 0.004], "real": [0.0004, 0.001], "noise": [0.412, 0.006]} for name in CLASS_NAMES}
    samples = {"path": "samples.png", "per_class": 12, "metrics": {"referee_agreement": 0.9375, "kid": kid}}
    log.append("sampled", **samples)
    grades = {}
    for index, name in enumerate(hospitals):
        grades[name] = {"num_scans": float(num_items), "validity": 0.97, "referee_validity": 0.9, "lesion_share": 0.71,
                        "lesion_area_share": 0.06, "changed_share": 0.12, "seconds_per_image": 0.14,
                        "num_found": 15.0, "found_share": 0.98, "samples.num": 96.0}  # fmt: skip
        if galleries and Path(name).name == name and name not in (".", ".."):
            write_gallery(
                folder / "sites" / name / "explanations" / folder.name, items=make_items(num_items, seed=index),
                metrics=grades[name], class_names=CLASS_NAMES, title=f"Explained decisions of {name}", real=real,
            )  # fmt: skip
    explanations = {"hospitals": grades, "pooled": next(iter(grades.values()))}
    log.append("explained", **explanations)
    log.append("run_finished", duration_s=271.0, report=folder / "report.html", final=rounds[-1], best=rounds[-1])
    write_json(
        folder / "metrics.json",
        {"schema_version": 1, "rounds": rounds, "best": rounds[-1], "final": rounds[-1], "samples": samples,
         "explanations": explanations},
    )  # fmt: skip


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run's folder: `make_run` with a folder of its own."""

    def build(name: str = "run-a", **options: Any) -> Path:
        return make_run(tmp_path / "runs" / name, **options)

    return build

"""`jointdiff-client explain`: explain a model's decisions about scans that somebody at the site names. Nothing travels.

The page goes into the site's own folder and shows scans: it is patient data. It names no file, unless the site's policy
says so (`explanations: show-names`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client import site_config
from client.own_scans import read_own, references_of
from client.secondary_capture import Capture, new_series, write
from jointdiff.config import ModelConfig
from jointdiff.data.dicom import check_installed
from jointdiff.explanation import BATCH_SIZE
from jointdiff.scan_explanation import OwnExplanations, explain_own_scans, new_folder, write_page
from jointdiff.storage import written
from jointdiff.trained import open_trained

KEPT = "explaining"  # in the site's folder: edits of many scans, until their page is whole
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Request:
    """What was typed."""

    checkpoint: str
    images: Sequence[str]  # image files, folders of them, npz files
    target: str = ""  # name or number of a class, or of the finding to turn over; '' = the nearest other decision
    output: str = ""  # a new or empty folder; '' = explanations/<run>-scans-<N> in the site's folder
    site_folder: str = ""  # '' = the home
    device: str = "auto"
    secondary_capture: bool = False  # whether DICOM objects are written beside the page


def explain_own(request: Request, *, say: Callable[[str], None]) -> Path:
    """Explain, say in words what came of each scan, and write the gallery.

    Args:
        say: Takes one line after the other.

    Returns:
        The absolute path of the page. It is written also where no explanation was found.

    Raises:
        JointDiffError: Policy, checkpoint, scans, target or output are no good; nothing is written.
    """
    site = site_config.site_folder(request.site_folder)
    own = site_config.read(site)
    policy, site_data = own.policy, own.data
    folder = new_folder(request.output) if request.output else None
    trained = open_trained(request.checkpoint, device=request.device)
    run_name = trained.config.run.run_name
    if not _PLAIN_NAME.fullmatch(run_name):  # a checkpoint may come from anywhere, and its run names a folder here
        run_name = "model"
    if folder is None:
        folder = new_folder(_free_folder(site, run_name))
    sources: list[Path | None] = []

    def read(paths: Sequence[str], model: ModelConfig) -> tuple[list[str], np.ndarray]:
        names, images, files = read_own(paths, model, site_data)
        sources.extend(files)
        return names, images

    if request.secondary_capture:
        check_installed()
    keep = site / KEPT
    with written("The explanations", then="What is made is kept, and the same command carries it on."):
        explained = explain_own_scans(
            trained, request.images, target=request.target, read=read, keep=keep,
            refer=lambda: references_of(trained, own, say=say),
            progress=lambda done, total: say(f"{done} of {total} scans explained") if total > BATCH_SIZE else None,
        )  # fmt: skip
    count = len(explained.names)
    title = f"{'One scan' if count == 1 else f'{count} scans'} explained, by the model of run {run_name}"
    page = write_page(folder, trained, explained, title=title, show_names=policy.show_names)
    shutil.rmtree(keep, ignore_errors=True)
    if request.secondary_capture:
        _write_captures(folder / "dicom", explained, sources, show_names=policy.show_names)
    for name, sentence in zip(explained.names, explained.sentences, strict=True):
        say(f"{name}: {sentence}")
    return page


def _write_captures(
    folder: Path, explained: OwnExplanations, sources: Sequence[Path | None], *, show_names: bool
) -> None:
    """Write one DICOM object per explanation; raises a RunError where the disk is full, or the like."""
    series, found = new_series(), explained.found
    with written("The DICOM objects", then="The page is whole. Free its disk, or call again with another --output."):
        for i, (sentence, source) in enumerate(zip(explained.sentences, sources, strict=True)):
            capture = Capture(found.originals[i], found.edited[i], sentence, source)
            write(folder / f"{i + 1:04d}.dcm", capture, number=i + 1, series=series, show_names=show_names)


def _free_folder(site: Path, run_name: str) -> Path:
    number = 1
    while (site / "explanations" / f"{run_name}-scans-{number}").exists():
        number += 1
    return site / "explanations" / f"{run_name}-scans-{number}"

"""`jointdiff-client explain`: explain a model's decisions about scans that somebody at the site names. Nothing travels.

The page goes into the site's own folder and shows scans: it is patient data. It names no file, unless the site's policy
says so (`explanations: show-names`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import site_config
from jointdiff.scan_explanation import explain_own_scans, new_folder, write_page
from jointdiff.trained import open_trained

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
    policy = site_config.read(site).policy
    folder = new_folder(request.output) if request.output else None
    trained = open_trained(request.checkpoint, device=request.device)
    run_name = trained.config.run.run_name
    if not _PLAIN_NAME.fullmatch(run_name):  # a checkpoint may come from anywhere, and its run names a folder here
        run_name = "model"
    if folder is None:
        folder = new_folder(_free_folder(site, run_name))
    explained = explain_own_scans(trained, request.images, target=request.target)
    count = len(explained.names)
    title = f"{'One scan' if count == 1 else f'{count} scans'} explained, by the model of run {run_name}"
    page = write_page(folder, trained, explained, title=title, show_names=policy.show_names)
    for name, sentence in zip(explained.names, explained.sentences, strict=True):
        say(f"{name}: {sentence}")
    return page


def _free_folder(site: Path, run_name: str) -> Path:
    number = 1
    while (site / "explanations" / f"{run_name}-scans-{number}").exists():
        number += 1
    return site / "explanations" / f"{run_name}-scans-{number}"

"""Which files of a run or a site a dashboard may hand out: a list of what is allowed, and nothing beside it."""

from __future__ import annotations

import re
from pathlib import Path

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8", ".json": "application/json", ".jsonl": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8", ".png": "image/png",
}  # fmt: skip
_OF_A_RUN = ("report.html", "config.yaml", "metrics.json", "events.jsonl", "samples.png")
_PART = re.compile(r"[^/\\\x00-\x1f]{1,160}")
_GALLERY_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(html|json|png)")


def of_a_run(folder: Path, path: str) -> Path | None:
    """Return a file of a run that may be shown: the report, what it links to, the galleries of simulated sites.

    Args:
        folder: The run's folder.
        path: As asked for, relative to it.
    """
    if path in _OF_A_RUN:
        return _inside(folder, folder / path)
    parts = path.split("/")
    if len(parts) == 5 and parts[0] == "sites" and parts[2] == "explanations":
        return of_a_gallery(folder / "sites", Path(parts[1], "explanations", parts[3]), parts[4])
    return None


def of_a_gallery(root: Path, gallery: Path, name: str) -> Path | None:
    """Return a file of a gallery: its page, its grades or one of its pictures.

    Args:
        root: The folder that it must not leave, whatever links lie in it.
        gallery: The gallery's folder, relative to `root`.
        name: The file.
    """
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in gallery.parts) or ".." in gallery.parts:
        return None
    if gallery.is_absolute() or not _GALLERY_FILE.fullmatch(name):
        return None
    return _inside(root, root / gallery / name)


def _inside(root: Path, path: Path) -> Path | None:
    """Return the file if it is one, and lies below `root` after every link is followed."""
    try:
        real = path.resolve(strict=True)
        return real if real.is_file() and real.is_relative_to(root.resolve(strict=True)) else None
    except (OSError, ValueError, RuntimeError):
        return None

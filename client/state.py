"""What a site must remember from round to round (optimiser moments, thresholds): on its own disk, one file a round.

Flower's own context.state is lost when a SuperNode restarts. Two versions are kept, so that a round which the server
repeats starts from the same state as the first time.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from jointdiff.storage import atomic_path

_FILE = re.compile(r"round-(\d+)\.safetensors")
_NUM_KEPT = 2


def save(
    site_folder: Path, run_name: str, round_number: int, tensors: dict[str, torch.Tensor], *, part: str = ""
) -> Path:
    """Write the state after `round_number` atomically, and drop all but it and the newest older one.

    Args:
        part: '' is what training goes on from; other parts are kept beside it, each with versions of its own.
    """
    path = _folder(site_folder, run_name, part) / f"round-{round_number:04d}.safetensors"
    with atomic_path(path, private=True) as temporary:
        # A copy of its own for every tensor: safetensors refuses tensors that share memory.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, temporary)
    versions = _versions(site_folder, run_name, part)
    kept = [number for number in sorted(versions) if number <= round_number][-_NUM_KEPT:]
    for number, old in versions.items():
        if number not in kept:  # also rounds after this one: they belong to a future that was given up
            old.unlink(missing_ok=True)
    return path


def load(
    site_folder: Path, run_name: str, *, before: int, after: int = 0, part: str = ""
) -> dict[str, torch.Tensor] | None:
    """Return the newest state of a round before `before`, or None where the site has not trained in this run yet.

    A site that missed rounds goes on from its last one.

    Args:
        after: States up to this round are of another network: the phase of the run that was before (`rounds_before`).
    """
    found = _versions(site_folder, run_name, part)
    versions = {number: path for number, path in found.items() if after < number < before}
    return load_file(versions[max(versions)]) if versions else None


def drop(site_folder: Path, run_name: str, *, part: str) -> None:
    """Delete all versions of a part."""
    for path in _versions(site_folder, run_name, part).values():
        path.unlink(missing_ok=True)


def _folder(site_folder: Path, run_name: str, part: str) -> Path:
    return Path(site_folder) / "state" / run_name / part


def _versions(site_folder: Path, run_name: str, part: str) -> dict[int, Path]:
    folder = _folder(site_folder, run_name, part)
    found = ((_FILE.fullmatch(path.name), path) for path in folder.glob("round-*.safetensors"))
    return {int(match[1]): path for match, path in found if match}

"""The latents on the site's disk: the key that seals them, and the room that they take. Looks, and changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from client import latents
from client.preflight.facts import FIX, PASS, WARN, Facts, Line
from jointdiff.errors import JointDiffError
from jointdiff.views.format import num_bytes


def latents_on_disk(facts: Facts) -> Line:
    """The key is there, its owner's alone, and that of what lies sealed; the disk has room for the run's latents."""
    policy, folder = facts.config.policy, facts.folder / latents.CACHE
    if not policy.latents_on_disk:
        return Line(PASS, "never written (latents: on-disk: false), computed again for every piece of work")
    found = _key(Path(policy.latents_key), folder) if policy.latents_key else Line(PASS, "no key: they lie unsealed")
    if found.status == FIX:
        return found
    needed, free = _needed_bytes(facts), shutil.disk_usage(facts.folder).free
    if needed > free:
        status = WARN if folder.exists() and any(folder.iterdir()) else FIX  # they may be what fills the disk
        return Line(
            status, f"the run's latents take {num_bytes(needed)}, and {num_bytes(free)} are free in {facts.folder}",
            "Make room there, or set `on-disk: false` under latents in site.yaml.",
        )  # fmt: skip
    return Line(found.status, f"{found.text}; this run's take {num_bytes(needed)}" if needed else found.text,
                found.remedy)  # fmt: skip


def _key(path: Path, folder: Path) -> Line:
    lying = len(latents.sealed_in(folder))
    if path.exists() or lying:
        latents.site_key(folder, str(path), make=False)  # what it raises is the line
        what = f"fits what is sealed, {lying} file{'s' * (lying > 1)}" if lying else "is fit, and nothing is sealed yet"
        text = f"the key {path} {what}"
    elif not path.parent.is_dir():
        return Line(
            FIX, f"There is no folder {path.parent} for the key of the latents (encryption-key in site.yaml).",
            "Mount its disk, or name another file.",
        )  # fmt: skip
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        return Line(
            FIX, f"There is no key {path}, and none can be made there: this user may not write to {path.parent}.",
            "Give permission there, or name another file as encryption-key in site.yaml.",
        )  # fmt: skip
    else:
        text = f"no key {path} yet: the first run on latents makes it"
    if path.parent.stat().st_dev == folder.parent.stat().st_dev:
        return Line(
            WARN, f"{text}. It is on the disk of the latents, where it protects little.",
            "Mount the key's disk if it has one, or name a file on another disk as encryption-key in site.yaml.",
        )  # fmt: skip
    return Line(PASS, text)


def _needed_bytes(facts: Facts) -> int:
    """Return what the latents of the run that is asked take; 0 where none is asked, or other checks fail."""
    try:
        if facts.asked is None or not facts.model.model.latent:
            return 0
        model = facts.model.model
        return latents.num_scans(facts.site.data) * model.input_size**2 * model.input_channels
    except JointDiffError:
        return 0

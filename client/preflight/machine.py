"""Device, memory and disk for the model that is asked."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile

from client.preflight.facts import FIX, PASS, WARN, Facts, Line
from jointdiff.views.format import num_bytes

_STEP_TIMEOUT_S = 600.0
_LEAST_FREE, _WARN_FREE = 1_000_000_000, 5_000_000_000  # bytes


def model_fits(facts: Facts) -> Line:
    """One real training step of the configured model, on random images, in a process of its own."""
    run = facts.run
    device = facts.config.device or run.device
    job = json.dumps({"config": facts.model.to_dict(), "device": device})
    command = [sys.executable, "-m", "client.preflight.trial_step"]
    what = f"{facts.model.model.name}, {run.image_size} px, batch-size {run.batch_size}"
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Line(
            FIX, f"{what}: one training step took more than {_STEP_TIMEOUT_S:.0f} s.",
            "Set `device` in site.yaml to a GPU, or ask for a smaller model.",
        )  # fmt: skip
    smaller = "Free memory, set `device` in site.yaml to another one, or ask for a smaller batch-size."
    if done.returncode == -signal.SIGKILL:
        return Line(FIX, f"{what}: the system ended the training step, most likely for lack of memory.", smaller)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return Line(FIX, f"{what}: the training step ended with code {done.returncode}.", smaller)
    if found.get("error"):
        remedy = smaller if found["memory"] else "Set `device: auto` in site.yaml."
        return Line(FIX, f"{what}: {found['error']}", remedy)
    halved = ", in two halves, since a whole batch does not fit" if found["parts"] > 1 else ""
    private = " (differential privacy takes more)" if facts.model.private else ""
    return Line(
        PASS,
        f"{what} on {found['device']}: a step of {found['seconds']:.2f} s, {num_bytes(found['peak_bytes'])} of memory"
        f"{halved}{private}",
    )


def disk(facts: Facts) -> Line:
    """The site's folder can be written, and has room for states, galleries and records."""
    folder = facts.folder
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-"):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Line(
            FIX, f"{folder} cannot be written ({error.strerror or type(error).__name__}).",
            f"Let this user write there: sudo chown -R $USER '{folder}'",
        )  # fmt: skip
    text = f"{num_bytes(free)} free in {folder}"
    if free < _LEAST_FREE:
        return Line(FIX, text, f"Make room: at least {num_bytes(_LEAST_FREE)}, better {num_bytes(_WARN_FREE)}.")
    if free < _WARN_FREE:
        return Line(WARN, text, f"{num_bytes(_WARN_FREE)} or more is comfortable for galleries and records.")
    return Line(PASS, text)

"""What determines a run's future, on the server's disk after every round: one file a round, two kept.

A round is complete when its file is there. The sites keep their own share in the same way (client/state.py), so that a
run killed at any moment goes on from its last complete round and ends with the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jointdiff.errors import CheckpointError, RunError
from jointdiff.storage import atomic_path

FORMAT = "jointdiff-server-state-1"
_FILE = re.compile(r"round-(\d+)\.safetensors")
_NUM_KEPT = 2
_PARTS = ("weights", "average", "moments", "labelled_set")
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RunState:
    """The server's side of a run after a round; numbers and events lie in events.jsonl."""

    round_number: int  # 0: the head is solved, no round has been trained
    weights: Tensors  # what the hospitals train on next
    average: Tensors  # the server's EMA
    moments: Tensors = field(default_factory=dict)  # of the server's optimiser, {} where it has none
    labelled_set: Tensors = field(
        default_factory=dict
    )  # of the training on the server's own images, {} where it has none
    phase: int = 1  # of the run, from 1; after the last round of the first the second may have begun or not


def write_state(run_folder: Path, state: RunState) -> Path:
    """Write a round's state atomically, and drop all but it and the newest older one.

    Raises:
        RunError: The disk is full, or the folder cannot be written; the round before stays.
    """
    path = _path(run_folder, state.round_number)
    tensors = {
        f"{part}/{name}": np.asarray(array, order="C")
        for part in _PARTS
        for name, array in getattr(state, part).items()
    }
    facts = {"format": FORMAT, "round": json.dumps(state.round_number), "phase": json.dumps(state.phase)}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=facts)
    except OSError as error:
        raise RunError(
            f"The state after round {state.round_number} cannot be written to {path}: {error.strerror or error}. The "
            "round before is safe: make room, then resume the run."
        ) from error
    versions = _versions(run_folder)
    kept = [number for number in sorted(versions) if number <= state.round_number][-_NUM_KEPT:]
    for number, old in versions.items():
        if number not in kept:
            old.unlink(missing_ok=True)
    return path


def read_state(run_folder: Path) -> RunState | None:
    """Return the state after the last complete round, or None where not even round 0 is there.

    Raises:
        CheckpointError: The file is damaged. A crash cannot do that, a failing disk or an editor can.
    """
    versions = _versions(run_folder)
    if not versions:
        return None
    number = max(versions)
    path = versions[number]
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
    try:
        with safe_open(str(path), framework="numpy") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            phase = int(facts.get("phase", "1"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        older = [n for n in versions if n < number]
        remedy = f"Remove it, and the run goes on from round {max(older)}." if older else "Start the run again."
        raise CheckpointError(
            f"The run's state after round {number}, {path}, is damaged or cut ({error}). {remedy}"
        ) from None
    return RunState(number, **parts, phase=phase)


def _path(run_folder: Path, number: int) -> Path:
    return Path(run_folder) / "state" / f"round-{number:04d}.safetensors"


def _versions(run_folder: Path) -> dict[int, Path]:
    found = ((_FILE.fullmatch(path.name), path) for path in (Path(run_folder) / "state").glob("round-*.safetensors"))
    return {int(match[1]): path for match, path in found if match}

"""Explain a model's decisions about scans that somebody brings: which target, what was found, and that in words.

Shapes: N scans, K outputs, H x W pixels, C channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from jointdiff.config import ModelConfig
from jointdiff.counterfactual import DEFAULT_METHOD, METHODS
from jointdiff.data import MULTI_CLASS, UNKNOWN, ImageSet
from jointdiff.edit_task import References
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.explanation import (
    BATCH_SIZE,
    Explanations,
    Progress,
    decoding_grades,
    explain_scans,
    gallery_items,
)
from jointdiff.grading import CHANGE_THRESHOLD, grade
from jointdiff.scans import read_scans
from jointdiff.storage import writable, written
from jointdiff.trained import Trained
from jointdiff.views.gallery import write_gallery


@dataclass(frozen=True)
class OwnExplanations:
    """Explained scans, with what a gallery and a terminal say of them."""

    names: list[str]  # of the files: for the terminal of whoever named them, and for nothing that is written unasked
    found: Explanations  # `found` is true only where the edit as it is shown, in whole grey levels, does it
    grades: dict[str, float]
    sentences: list[str]  # one text per scan, without its name


Reader = Callable[[Sequence[str], ModelConfig], tuple[list[str], np.ndarray]]
Refer = Callable[[], References | None]
as_they_are: Reader = partial(read_scans, exact=True)


def explain_own_scans(
    trained: Trained,
    paths: Sequence[str],
    *,
    target: str = "",
    method: str = DEFAULT_METHOD,
    read: Reader = as_they_are,
    refer: Refer = lambda: None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> OwnExplanations:
    """Search the edit of each scan that changes the model's decision. Writes nothing but into `keep`.

    Args:
        paths: As `read_scans` takes them; every scan must fit the model as it is.
        target: Name or number of the wanted class, or of the finding to turn over; '' = the nearest other of each.
        method: One of counterfactual.METHODS.
        read: Gives names and what the model sees of the paths.
        refer: Gives what is known of other scans, None where nothing is; called once, after all input was checked.
        keep: Folder for the edits of many scans, batch by batch: what is interrupted is carried on by the next call.
        progress: Called after every batch with the numbers of scans done and in all.

    Raises:
        CheckpointError: The model cannot denoise, or has no classifier.
        ConfigError: There is no such class or method, or a scan is decided as the target already.
        DataError: A scan cannot be read or does not fit.
    """
    check_method(method)
    trained.check_denoises()
    index = find_target(target, trained.class_names) if target else None
    trained.check_classifies(index)
    names, images = read(paths, trained.config.model)
    targets = None
    if index is not None:
        _check_undecided(trained, names, images, index)
        targets = np.full(len(images), index, np.int64)
    scans = ImageSet(images, np.full(_label_shape(trained, len(images)), UNKNOWN, np.int64))
    found = explain_scans(
        trained.model, scans, trained.config, device=trained.device, targets=targets, references=refer(), method=method,
        folder=keep if len(images) > BATCH_SIZE else None, progress=progress, space=trained.space,
    )  # fmt: skip
    found = replace(found, found=found.found & _reached(trained, found))
    grades = grade(
        found.originals, found.edited, found.probs_before, found.probs_after, found.targets, found=found.found,
        seconds_per_image=found.seconds_per_image, task=trained.config.model.task,
    )  # fmt: skip
    grades |= decoding_grades(trained.model, found, device=trained.device, space=trained.space)
    if len(images) < 2:  # a scan alone is always the nearest to its edit
        grades.pop("identity", None)
    return OwnExplanations(names, found, grades, [_sentence(trained, found, i) for i in range(len(images))])


def new_folder(path: Path | str) -> Path:
    """Return the absolute path of a folder for a page, if it can be written and nothing is in it yet. Makes nothing.

    Raises:
        RunError: It cannot be written, or there is something: pictures of other scans would stay beside the new ones.
    """
    folder = writable(Path(path, "index.html")).parent
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: name a new folder with --output. Nothing was written.")
    return folder


def write_page(
    folder: Path, trained: Trained, explained: OwnExplanations, *, title: str, show_names: bool = False
) -> Path:
    """Write the gallery of explained scans into a new folder, or nothing; return the absolute path of its page.

    Args:
        show_names: Whether it names the files: names often tell who a patient is.

    Raises:
        RunError: The disk is full, or the like.
    """
    items = gallery_items(explained.found)
    if show_names:
        items = [replace(item, name=name) for item, name in zip(items, explained.names, strict=True)]
    try:
        with written("The explanations", then=f"Free the disk of {folder}, or name another with --output."):
            return write_gallery(
                folder,
                items=items,
                metrics=explained.grades,
                class_names=trained.class_names,
                title=title,
                real=True,  # whoever brings scans: they may be of people, and are to be treated so
                task="multi-class" if trained.config.model.task == MULTI_CLASS else "multi-label",
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_method(name: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        ConfigError: The nearest name is offered.
    """
    if name not in METHODS:
        raise ConfigError(f"Unknown method '{name}' of explaining: {nearest(name, METHODS)}")


def find_target(text: str, class_names: Sequence[str]) -> int:
    """Return the index of a class from its name, whatever its case, or from its number.

    Raises:
        ConfigError: There is no such class; the nearest name is offered.

    >>> find_target("ill", ["healthy", "Ill"]), find_target("0", ["healthy", "Ill"])
    (1, 0)
    """
    exact = [k for k, name in enumerate(class_names) if name == text]
    found = exact or [k for k, name in enumerate(class_names) if name.casefold() == text.casefold()]
    if len(found) == 1:
        return found[0]
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    hint = nearest(text, class_names)
    raise ConfigError(f"Unknown class '{text}': {hint} Or give a number, 0 to {len(class_names) - 1}.")


def _check_undecided(trained: Trained, names: Sequence[str], images: np.ndarray, target: int) -> None:
    """Refuse a target that is the decision already; a finding can always be turned over."""
    if trained.config.model.task != MULTI_CLASS:
        return
    probs = trained.predict(images)
    decided = np.flatnonzero(probs.argmax(axis=1) == target)
    if len(decided):
        first = int(decided[0])
        others = f" So are {len(decided) - 1} of the other scans." if len(decided) > 1 else ""
        raise ConfigError(
            f"The model decides for '{trained.class_names[target]}' in {names[first]} as it is (probability "
            f"{probs[first, target]:.2f}), so there is nothing to change.{others} Name another class, or leave the "
            "target away: then each scan's nearest other class is taken."
        )


def _label_shape(trained: Trained, count: int) -> tuple[int, ...]:
    multi_class = trained.config.model.task == MULTI_CLASS
    return (count,) if multi_class else (count, trained.config.model.num_outputs)


def _reached(trained: Trained, found: Explanations) -> np.ndarray:
    """Return bool [N]: the decision about the edit, as it is shown, is the wanted one."""
    rows = np.arange(len(found.targets))
    if trained.config.model.task == MULTI_CLASS:
        reached: np.ndarray = found.probs_after.argmax(axis=1) == found.targets
        return reached
    turned: np.ndarray = (found.probs_before[rows, found.targets] > 0.5) != (
        found.probs_after[rows, found.targets] > 0.5
    )
    return turned


def _sentence(trained: Trained, found: Explanations, index: int) -> str:
    """Say what was decided, what the edit did, and how much of the picture it changed."""
    target = int(found.targets[index])
    before, after = found.probs_before[index], found.probs_after[index]
    difference = np.abs(found.edited[index].astype(np.int64) - found.originals[index]).max(axis=2)
    changed = f"{100 * (difference > CHANGE_THRESHOLD * 255).mean():.1f}% of the picture"
    name = trained.class_names[target]
    decision = trained.decision(before)
    if trained.config.model.task == MULTI_CLASS:
        said = f"The model decides for '{decision}' (probability {before.max():.2f})."
        wanted = f"decides for '{name}'"
    else:
        sure = [f"'{c}' {p:.2f}" for c, p in zip(trained.class_names, before, strict=True) if p > 0.5]
        said = f"The model finds {'; '.join(sure)} (probability)." if sure else "The model finds nothing."
        wanted = f"no longer finds '{name}'" if before[target] > 0.5 else f"finds '{name}'"
    move = f"probability of '{name}': {before[target]:.2f} before, {after[target]:.2f} after"
    if found.found[index]:
        return f"{said} An explanation was found: with {changed} changed it {wanted} ({move})."
    return (
        f"{said} No explanation was found: the search met no edit with which it {wanted} ({move} the last attempt, "
        f"with {changed} changed)."
    )

"""From a site's own words for a diagnosis to the numbers of the federation's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jointdiff.data.base import MULTI_LABEL, UNKNOWN, DatasetInfo
from jointdiff.data.scan_file import shortened
from jointdiff.data.site_source import SiteSource
from jointdiff.errors import ConfigError, DataError, nearest

_IGNORED = -2  # the number of a finding that is left out
NONE = "none"  # the label of a scan without any finding, in a multi-label task
SEPARATOR = ";"


def numbers_of_names(source: SiteSource, wanted: DatasetInfo) -> dict[str, int]:
    """Return the number of each of the site's own names; in a multi-label task UNKNOWN stands for no finding.

    A class that `classes` does not mention goes by the federation's name. Findings that are left out get a number that
    is no class's.

    Raises:
        ConfigError: `classes` mentions a class that the federation does not know, or one name means two.
    """
    known = list(wanted.class_names)
    numbers = {name: number for number, name in enumerate(known)}
    if wanted.task == MULTI_LABEL and NONE not in numbers:
        numbers[NONE] = UNKNOWN
    own = dict(source.classes)
    for name in own:
        if name not in numbers:
            raise ConfigError(
                f"`classes` under {source.where} mentions '{name}', which is no class of the federation: "
                f"{nearest(name, numbers)}. The federation's classes: {', '.join(known)}."
            )
    result: dict[str, int] = {}
    for name, number in numbers.items():
        for text in own.get(name, (name,)):
            if text in result:
                raise ConfigError(
                    f"`classes` under {source.where} leaves open what '{text}' means: your name for one class and "
                    "the federation's for another. Say your own name for both."
                )
            result[text] = number
    for text in source.leave_out:
        if text in result:
            raise ConfigError(
                f"`leave-out` under {source.where} holds '{text}', which means a class of the federation."
            )
        if wanted.task == MULTI_LABEL:
            result[text] = _IGNORED
    return result


def label_numbers(
    texts: Sequence[str], names: Mapping[str, int], wanted: DatasetInfo, path: Path, *, has_multi_label: bool = True
) -> np.ndarray:
    """Return the labels of a site's texts.

    Args:
        texts: N labels; '' = not known. In a multi-label task findings separated by ';', or `none`.
        names: From `numbers_of_names`.
        path: Of the data, for errors.
        has_multi_label: Whether the texts can hold several findings at all.

    Returns:
        int64 [N] (multi-class) or [N, L].

    Raises:
        ConfigError: The task is multi-label, and the texts cannot say that.
        DataError: A text is no class; both lists are named.
    """
    if wanted.task != MULTI_LABEL:
        _check_known(Counter(text for text in texts if text), names, wanted, path)
        return np.array([names[text] if text else UNKNOWN for text in texts], dtype=np.int64)
    if not has_multi_label:
        raise ConfigError(
            f"{path}: the federation asks for several findings per scan, and folders give one class per scan. "
            "Name the findings in a table (kind csv_table, or dicom with a .csv file)."
        )
    parts = [[part.strip() for part in text.split(SEPARATOR) if part.strip()] for text in texts]
    _check_known(Counter(part for some in parts for part in some), names, wanted, path)
    labels = np.full((len(texts), wanted.num_outputs), UNKNOWN, dtype=np.int64)
    for row, some in enumerate(parts):
        if some:
            found = {names[part] for part in some} - {_IGNORED}
            if UNKNOWN in found and len(found) > 1:
                raise DataError(f"{path}: a label says both '{NONE}' and a finding: {shortened([texts[row]])}.")
            labels[row] = [number in found for number in range(wanted.num_outputs)]
    return labels


def renumbered(
    labels: np.ndarray, own: Sequence[str], source: SiteSource, wanted: DatasetInfo, path: str
) -> np.ndarray:
    """Return labels by number in the federation's order.

    Args:
        labels: int [N] into `own`, or [N, len(own)] (0, 1); UNKNOWN where not known.
        own: The names in the site's order.

    Raises:
        ConfigError, DataError: As `numbers_of_names` and `label_numbers`.
    """
    names = numbers_of_names(source, wanted)
    where = Path(path)
    if labels.ndim == 1:
        counts = np.bincount(labels[labels != UNKNOWN], minlength=len(own))
        _check_known(Counter({name: int(count) for name, count in zip(own, counts, strict=False) if count}), names,
                     wanted, where)  # fmt: skip
        table = np.array([names.get(name, UNKNOWN) for name in own] + [UNKNOWN], dtype=np.int64)
        return table[labels]
    _check_known(Counter(dict.fromkeys(own, 1)), names, wanted, where)
    result = np.full((len(labels), wanted.num_outputs), UNKNOWN, dtype=np.int64)
    for column, name in enumerate(own):
        result[:, names[name]] = labels[:, column]
    return result


def _check_known(counts: Counter[str], names: Mapping[str, int], wanted: DatasetInfo, path: Path) -> None:
    strange = [word for word, _ in counts.most_common() if word not in names]
    if not strange:
        return
    similar = nearest(strange[0], names)
    hint = f" For '{strange[0][:40]}': {similar}" if similar.startswith("did") else ""
    raise DataError(
        f"{path} has classes that the federation does not know: {shortened(strange)}.{hint} "
        f"Here: {shortened(sorted(counts))}; in the federation: {shortened(list(wanted.class_names))}. "
        "Correct the label, or say in site.yaml which class it means (`classes`) or to `leave-out` it."
    )

"""Where a site's own scans lie and how they are read: the section `data` of its site.yaml, read strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdiff.data.fitting import ASPECTS
from jointdiff.data.phantom import VARIANTS
from jointdiff.errors import ConfigError, nearest

FOLDER, CSV_TABLE, NPZ, MEDMNIST, DICOM, PHANTOM = KINDS = (
    "folder", "csv_table", "npz", "medmnist", "dicom", "phantom",
)  # fmt: skip
COLUMNS = ("path", "label", "patient", "split")
NEEDED_COLUMNS = ("path", "label")
FROM_HEADER, FROM_FOLDER = "header", "folder"


@dataclass(frozen=True)
class SiteSource:
    """A site's own data. What a kind does not use keeps its default."""

    kind: str  # one of KINDS
    where: str = "site.yaml"  # for errors: the section and its file
    path: Path | None = None  # absolute: the folder, the table, the npz, or where MedMNIST files lie
    root: Path | None = None  # absolute: where the paths of a table start; None = the table's folder
    columns: tuple[tuple[str, str], ...] = ()  # (column, its name in the table), where the site names it
    name: str = ""  # of a MedMNIST set
    variant: str = ""  # of the phantoms
    seed: int = 0  # which phantoms
    num_images: int = 1000  # phantoms, those of the test part included
    classes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (the federation's class, the site's own names for it)
    leave_out: tuple[str, ...] = ()  # the site's own names of classes that the federation does not ask for
    aspect: str = "pad"  # one of ASPECTS: what becomes of scans that are not square
    window: str | tuple[float, float] = "auto"  # DICOM: auto | header | (centre, width)
    patient: str = ""  # FROM_HEADER | FROM_FOLDER | '': where patients are known from, unless a table names them
    test_fraction: float = 0.2  # of the labelled images (patients), where nothing says what the test part is
    skip_unreadable: bool = False  # whether images that cannot be read are left out rather than refused

    @property
    def is_table(self) -> bool:
        """Whether a table names the images."""
        return self.kind == CSV_TABLE or (self.kind == DICOM and self.path is not None and _is_table(self.path))

    def column(self, column: str) -> str:
        """Return what a column of COLUMNS is called in the site's table."""
        return dict(self.columns).get(column, column)


def read_source(values: Mapping[Any, Any], where: str, folder: Path) -> SiteSource:
    """Read the section `data`.

    Args:
        values: The section as YAML gave it.
        where: The section and its file, for errors.
        folder: Of site.yaml: relative paths start there.

    Raises:
        ConfigError: An unknown kind or key, a key that is missing or of another kind, a value out of its range.
    """
    kind = values.get("kind")
    if kind not in KINDS:
        hint = nearest(kind, KINDS) if isinstance(kind, str) else "known: " + ", ".join(KINDS)
        said = f"kind {kind!r} is unknown" if "kind" in values else "kind is missing"
        raise ConfigError(f"Under {where}, {said}: {hint}")
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "kind":
            continue
        if key not in _KEYS:
            raise ConfigError(f"Unknown key '{key}' under {where}: {nearest(str(key), _keys_of(kind))}")
        kinds, read = _KEYS[key]
        if kind not in kinds:
            raise ConfigError(
                f"'{key}' under {where} belongs to kind {' or '.join(kinds)}, not {kind}. "
                f"Keys of {kind}: {', '.join(_keys_of(kind))}."
            )
        result = read(value, f"{key} under {where}")
        found[key.replace("-", "_")] = _absolute(folder, result) if key in ("path", "root") else result
    needed = {MEDMNIST: "name", PHANTOM: "kind"}.get(kind, "path")
    if needed not in values:
        raise ConfigError(f"{needed} is missing under {where}: kind {kind} needs it.")
    source = SiteSource(kind=kind, where=where, **found)
    _check_together(source, values)
    return source


def _check_together(source: SiteSource, values: Mapping[Any, Any]) -> None:
    if source.kind == DICOM and not source.is_table:
        for key in {"columns", "root"} & set(values):
            raise ConfigError(f"'{key}' under {source.where} needs a table: path must name a .csv file.")
    if source.kind == FOLDER and source.patient == FROM_HEADER:
        raise ConfigError(f"patient under {source.where} is 'header', which DICOM files alone have: take 'folder'.")
    if source.is_table and source.patient == FROM_FOLDER:
        raise ConfigError(f"patient under {source.where} is 'folder', but a table names the images: add a column.")
    if source.patient == FROM_HEADER and "patient" in dict(source.columns):
        raise ConfigError(f"Patients under {source.where} come from the header and from a column: keep one of the two.")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{what} must be text, not {value!r}.")
    return value


def _absolute(folder: Path, text: str) -> Path:
    return Path(folder).expanduser().absolute() / Path(text).expanduser()


def _whole(low: int) -> Callable[[Any, str], int]:
    def read(value: Any, what: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError(f"{what} must be a whole number of at least {low}, not {value!r}.")
        return value

    return read


def _one_of(known: Iterable[str]) -> Callable[[Any, str], str]:
    names = tuple(known)

    def read(value: Any, what: str) -> str:
        if value not in names:
            hint = nearest(value, names) if isinstance(value, str) else "known: " + ", ".join(names)
            raise ConfigError(f"{what} is {value!r}: {hint}")
        return str(value)

    return read


def _switch(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false, not {value!r}.")
    return value


def _fraction(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ConfigError(f"{what} must be a number above 0 and below 1, not {value!r}.")
    return float(value)


def _window(value: Any, what: str) -> str | tuple[float, float]:
    if value in ("auto", "header"):
        return str(value)
    numbers = isinstance(value, list) and len(value) == 2 and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value
    )  # fmt: skip
    if not numbers or value[1] <= 1:
        raise ConfigError(f"{what} must be auto, header or [centre, width] with a width above 1, not {value!r}.")
    return float(value[0]), float(value[1])


def _columns(value: Any, what: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping of {', '.join(COLUMNS)} to names of columns, not {value!r}.")
    for column, name in value.items():
        if column not in COLUMNS:
            raise ConfigError(f"Unknown column '{column}' in {what}: {nearest(str(column), COLUMNS)}")
        _text(name, f"{column} in {what}")
    if len(set(value.values())) < len(value):
        raise ConfigError(f"{what} names one column twice: {dict(value)}.")
    return tuple((str(column), str(name)) for column, name in value.items())


def _classes(value: Any, what: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping of the federation's classes to your own names, not {value!r}.")
    pairs = []
    for name, own in value.items():
        pairs.append((_class_name(name, what), _names(own, what)))
    given = [text for _, texts in pairs for text in texts]
    for text in given:
        if given.count(text) > 1:
            raise ConfigError(f"{what} says twice what '{text}' means: each of your names belongs to one class.")
    return tuple(pairs)


def _names(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_class_name(name, what) for name in (value if isinstance(value, list) else [value]))


def _class_name(value: Any, what: str) -> str:
    if isinstance(value, bool):  # YAML reads a bare yes or no so
        raise ConfigError(f"{what} holds {value!r}: put yes, no, true and false in quotes where they name a class.")
    if isinstance(value, int):
        return str(value)
    return _text(value, f"A name in {what}").strip()


_FILES = (FOLDER, CSV_TABLE, DICOM)
_KEYS: dict[str, tuple[tuple[str, ...], Callable[[Any, str], Any]]] = {
    "path": ((FOLDER, CSV_TABLE, NPZ, MEDMNIST, DICOM), _text),
    "root": ((CSV_TABLE, DICOM), _text),
    "columns": ((CSV_TABLE, DICOM), _columns),
    "name": ((MEDMNIST,), _text),
    "variant": ((PHANTOM,), _one_of(VARIANTS)),
    "seed": ((PHANTOM,), _whole(0)),
    "num-images": ((PHANTOM,), _whole(10)),
    "classes": (KINDS, _classes),
    "leave-out": (_FILES, _names),
    "aspect": (_FILES, _one_of(ASPECTS)),
    "window": ((DICOM,), _window),
    "patient": ((FOLDER, DICOM), _one_of((FROM_FOLDER, FROM_HEADER))),
    "test-fraction": ((FOLDER, CSV_TABLE, NPZ, DICOM, PHANTOM), _fraction),
    "skip-unreadable": (_FILES, _switch),
}


def _keys_of(kind: str) -> list[str]:
    return ["kind", *(key for key, (kinds, _) in _KEYS.items() if kind in kinds)]


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".txt")

"""What `jointdiff-client init` asks, in order, and how an answer is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import site_config, site_policy
from jointdiff.data.medmnist import medmnist_names
from jointdiff.data.phantom import VARIANTS
from jointdiff.data.site_source import CSV_TABLE, DICOM, FOLDER, KINDS, MEDMNIST, PHANTOM
from jointdiff.errors import ConfigError, nearest

Answers = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """One question; `key` is what an answers file calls it."""

    key: str
    text: str
    check: Callable[[str, Answers], str]  # returns the answer to keep, or raises ConfigError
    default: Callable[[Answers], str] = lambda _: ""
    applies: Callable[[Answers], bool] = lambda _: True
    shows_data: Callable[[Answers], bool] = lambda _: False  # whether the data can be looked at after it


def as_section(answers: Answers) -> dict[str, Any]:
    """Return the section `data` that the answers mean."""
    section: dict[str, Any] = {"kind": answers["kind"]}
    for key in ("path", "name", "variant", "patient"):
        if answers.get(key):
            section[key] = answers[key]
    columns = {c: answers[f"{c}-column"] for c in ("path", "label", "patient", "split") if answers.get(f"{c}-column")}
    named = {column: name for column, name in columns.items() if name != column}
    if named:
        section["columns"] = named
    if answers.get("classes"):
        section["classes"] = _classes(answers["classes"])
    return section


def _classes(text: str) -> dict[str, Any]:
    """Read `lesion=nodule,mass; healthy=normal`."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, own = part.partition("=")
        names = [word.strip() for word in own.split(",") if word.strip()]
        if not equals or not name.strip() or not names:
            raise ConfigError(f"Write THEIRS=YOURS; ..., such as lesion=nodule,mass; healthy=normal, not {text!r}.")
        found[name.strip()] = names[0] if len(names) == 1 else names
    return found


def _needed(what: str) -> Callable[[str, Answers], str]:
    def check(text: str, _: Answers) -> str:
        if not text:
            raise ConfigError(f"{what} is needed.")
        return text

    return check


def _one_of(what: str, known: tuple[str, ...]) -> Callable[[str, Answers], str]:
    def check(text: str, _: Answers) -> str:
        if text not in known:
            raise ConfigError(f"Unknown {what} '{text}': {nearest(text, [name for name in known if name])}")
        return text

    return check


def _server(text: str, _: Answers) -> str:
    site_config.read_federation({"server": text or "nothing"}, "your answer", Path())
    return text


def _device(text: str, _: Answers) -> str:
    if not site_config.DEVICE.fullmatch(text):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {text!r}.")
    return text


def _any(text: str, _: Answers) -> str:
    return text


def _checked_classes(text: str, _: Answers) -> str:
    _classes(text)
    return text


def _epsilon(text: str, _: Answers) -> str:
    if text.lower() in ("", "none", "null", "no"):
        return ""
    return _positive(text, "epsilon", math.inf)


def _delta(text: str, _: Answers) -> str:
    return _positive(text, "delta", 1.0)


def _positive(text: str, what: str, below: float) -> str:
    try:
        fits = 0 < float(text) < below
    except ValueError:
        fits = False
    if not fits:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ConfigError(f"{what} must be a number above 0{limit}, not {text!r}.")
    return text


def _cell_count(text: str, _: Answers) -> str:
    lowest = site_policy.LOWEST_CELL_COUNT
    if not text.isdecimal() or 0 < int(text) < lowest:
        raise ConfigError(f"min-cell-count must be 0, or a whole number of at least {lowest}, not {text!r}.")
    return text


def _is(*kinds: str) -> Callable[[Answers], bool]:
    return lambda answers: answers["kind"] in kinds


def _is_table(answers: Answers) -> bool:
    is_csv = answers.get("path", "").lower().endswith((".csv", ".tsv", ".txt"))
    return answers["kind"] == CSV_TABLE or (answers["kind"] == DICOM and is_csv)


QUESTIONS = (
    Question("server", "Address of the federation, HOST:PORT, as the coordinator says", _server),
    Question("ca", "File of the federation's certificate, from the coordinator", _needed("A file name"),
             lambda _: "ca.crt"),
    Question("key", "File of this site's private key (`keygen` makes it)", _needed("A file name"),
             lambda _: "site.key"),
    Question("kind", f"How your scans are kept ({', '.join(KINDS)})", _one_of("kind", KINDS), lambda _: FOLDER),
    Question("name", "Which MedMNIST set", _one_of("set", tuple(medmnist_names())), lambda _: "pneumoniamnist",
             _is(MEDMNIST)),
    Question("variant", "Which phantoms (none, or a variant)", _one_of("variant", tuple(VARIANTS)),
             applies=_is(PHANTOM)),
    Question("path", "The folder of your scans, or the .csv or .npz file",
             lambda t, a: t if a["kind"] == MEDMNIST else _needed("A path")(t, a),
             applies=lambda a: a["kind"] != PHANTOM, shows_data=lambda a: not _is_table(a)),
    *(Question(f"{column}-column", f"Table: the column of {what}", _any,
               lambda _, column=column: column if column in ("path", "label") else "",  # type: ignore[misc]
               _is_table, lambda _, column=column: column == "split")  # type: ignore[misc]
      for column, what in (("path", "the image's file"), ("label", "the label"),
                           ("patient", "the patient (none = not known, or a column called so)"),
                           ("split", "train or test (none = a fifth is set aside)"))),
    Question("patient", "Where patients are known from: folder (one folder each), header (DICOM), or none",
             lambda t, a: _one_of("answer", ("", "folder", *(("header",) if a["kind"] == DICOM else ())))(
                 "" if t == "none" else t, a),
             applies=lambda a: a["kind"] in (FOLDER, DICOM) and not _is_table(a),
             shows_data=lambda a: bool(a.get("patient"))),
    Question("classes", "Your names for the federation's classes where they differ: lesion=nodule,mass; healthy=normal",
             _checked_classes, shows_data=lambda a: bool(a.get("classes"))),
    Question("device", "Where to compute: auto, cpu, cuda or cuda:N", _device, lambda _: "auto"),
    Question("epsilon", "Ceiling of differential privacy over this site's whole life (none = no ceiling)", _epsilon,
             lambda _: "none"),
    Question("delta", "Its delta, below 1 / number of images", _delta, lambda _: "1e-5",
             lambda a: bool(a.get("epsilon"))),
    Question("min-cell-count", "Statistics that rest on fewer images are withheld", _cell_count,
             lambda _: str(site_policy.DEPLOYED_MIN_CELL_COUNT)),
)  # fmt: skip

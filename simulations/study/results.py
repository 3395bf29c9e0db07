"""What a study leaves in HOME/studies/NAME/: study.yaml, results.csv, tables.md, index.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from jointdiff import storage
from jointdiff.study_summary import Design, StudyFacts, StudyRow
from jointdiff.views.study_markdown import study_markdown
from jointdiff.views.study_page import study_page

_DECIDED = "equal-seconds.json"
COLUMNS = tuple(f.name for f in fields(StudyRow))
Cells = Mapping[tuple[str, str, int], int]


def write_study(folder: Path, content: Mapping[str, Any]) -> None:
    """Write study.yaml: the study with everything that it leaves to defaults."""
    storage.write_atomic(folder / "study.yaml", yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def write_results(folder: Path, rows: Sequence[StudyRow], design: Design, facts: StudyFacts) -> Path:
    """Write results.csv, tables.md and index.html, each whole or not at all; return the page's path."""
    storage.write_atomic(folder / "results.csv", as_csv(rows))
    storage.write_atomic(folder / "tables.md", study_markdown(rows, design, facts))
    return storage.write_atomic(folder / "index.html", study_page(rows, design, facts))


def as_csv(rows: Sequence[StudyRow]) -> str:
    """Return a line per run, finished or not."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_decided(folder: Path) -> dict[tuple[str, str, int], int]:
    """Return the local-steps that were fixed for methods which go by another one's seconds."""
    path = folder / _DECIDED
    if not path.is_file():
        return {}
    return {(e["method"], e["setting"], e["num_labels"]): e["local_steps"] for e in storage.read_json(path)["cells"]}


def write_decided(folder: Path, decided: Cells) -> None:
    """Keep them, so that a study that is carried on asks for the same runs."""
    entries = [
        {"method": method, "setting": setting, "num_labels": count, "local_steps": steps}
        for (method, setting, count), steps in decided.items()
    ]
    storage.write_json(folder / _DECIDED, {"schema_version": 1, "cells": entries})

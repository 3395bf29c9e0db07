"""The ladder of a site: a model of its own data alone beside a federation's, on the same scans; as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError
from jointdiff.storage import read_json
from jointdiff.views.format import is_number, number
from jointdiff.views.markup import Child, element, table
from jointdiff.views.run_data import mapping

LADDER_FILE = "ladder.json"
SCHEMA_VERSION = 1
ALONE, FEDERATION = "alone", "federation"
_HEADS = {ALONE: "Your own model alone", FEDERATION: "The federation's model"}
_METRICS = {"auc": "AUC", "balanced_accuracy": "Balanced accuracy"}
_HOW = {ALONE: "jointdiff-client train-local", FEDERATION: "jointdiff-client evaluate MODEL.safetensors"}


def read_ladder(folder: Path) -> dict[str, Any]:
    """Return what ladder.json of a site says; {} where there is none or it is damaged."""
    try:
        found = read_json(folder / LADDER_FILE)
    except RunError:
        return {}
    return found if isinstance(found, dict) and found.get("schema_version") == SCHEMA_VERSION else {}


def rows(ladder: Mapping[str, Any]) -> list[list[str]]:
    """Return the table: head, then one row per metric with its 95% interval, the scans, and what was trained."""
    rungs = {rung: mapping(ladder.get(rung)) for rung in _HEADS}
    found = [["", *_HEADS.values()]]
    for metric, name in _METRICS.items():
        found.append([name, *(_estimate(mapping(entry.get("metrics")).get(metric)) for entry in rungs.values())])
    found.append(["Test scans of this site", *(number(entry.get("num_images")) for entry in rungs.values())])
    found.append(["Trained", *(_trained(entry) for entry in rungs.values())])
    return found


def notes(ladder: Mapping[str, Any]) -> list[str]:
    """Return what must be known to read the table."""
    alone, federation = (mapping(ladder.get(rung)) for rung in _HEADS)
    found = [f"Not measured yet: `{how}`." for rung, how in _HOW.items() if not ladder.get(rung)]
    if alone and federation:
        same = alone.get("test_sha256") == federation.get("test_sha256")
        if not same and alone.get("image_size") == federation.get("image_size"):
            found.append("The two were measured on different scans: run both commands again before comparing.")
        elif not same:
            found.append("The two models see the scans at different sizes.")
    found.append(
        "In brackets: 95% intervals, for how far a number may be off because other scans of this site could have come. "
        "Where they overlap widely, this site has too few test scans to tell."
    )
    return found


def lines(ladder: Mapping[str, Any]) -> list[str]:
    """Return table and notes for a terminal."""
    found = rows(ladder)
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]
    return [*told, "", *notes(ladder)]


def ladder_part(ladder: Mapping[str, Any]) -> Child:
    """Return the same for the site's page."""
    if not ladder:
        commands = [[element("code", how), ", " if rung == ALONE else ""] for rung, how in _HOW.items()]
        return element("p", "Does joining help this site? Measure it: ", commands, ".", class_="soft")
    head, *body = rows(ladder)
    return [table(head, body), [element("p", note, class_="note") for note in notes(ladder)]]


def _estimate(found: Any) -> str:
    if not isinstance(found, Mapping) or not all(is_number(found.get(key)) for key in ("value", "low", "high")):
        return "–"
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def _trained(entry: Mapping[str, Any]) -> str:
    if not entry:
        return "–"
    hospitals = entry.get("num_hospitals")
    where = "this site" if hospitals == 1 else f"{number(hospitals)} hospitals"
    return f"{entry.get('method')}, {where}, {number(entry.get('steps'))} steps each"

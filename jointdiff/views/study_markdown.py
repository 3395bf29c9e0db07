"""A study's tables in Markdown: tables.md, and what the terminal shows at the end."""

from __future__ import annotations

from collections.abc import Sequence

from jointdiff.study_summary import (
    FAILED,
    METRICS,
    WAITING,
    Design,
    StudyFacts,
    StudyRow,
    against_first_setting,
    cells,
)
from jointdiff.views import study_words as words
from jointdiff.views.format import MISSING, number
from jointdiff.views.markdown import table, text


def study_markdown(rows: Sequence[StudyRow], design: Design, facts: StudyFacts) -> str:
    """Return everything that the page says, but for the plots."""
    parts = [f"# Study {text(facts.name)}", f"{_where(facts)} Reference: {text(design.reference)}."]
    parts += ["## What is equal", *(f"- {sentence}" for sentence in words.what_is_equal(facts, _places(rows)))]
    for metric in METRICS:
        if any(getattr(row, metric) is not None for row in rows):
            parts += [f"## {words.METRIC_NAMES[metric]}", *_tables(rows, design, metric)]
    if changed := _settings(rows, design):
        parts += [f"## Against the setting {text(design.settings[0])}", *changed]
    parts += ["## Every draw, AUC", *_draws(rows, design)]
    if lost := _lost(rows, facts):
        parts += ["## What has no result", *lost]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def main_table(rows: Sequence[StudyRow], design: Design, facts: StudyFacts) -> str:
    """Return the tables of AUC alone."""
    return "\n\n".join([_where(facts), *_tables(rows, design, "auc")])


def _where(facts: StudyFacts) -> str:
    kind = "real scans" if facts.real else "phantoms (synthetic)"
    return f"{text(facts.dataset)}, {kind}, {facts.num_hospitals} hospitals, {words.split_name(facts)} split."


def _places(rows: Sequence[StudyRow]) -> list[str]:
    return [row.place for row in rows]


def _tables(rows: Sequence[StudyRow], design: Design, metric: str) -> list[str]:
    parts = []
    for cell in cells(rows, design, metric):
        head, body = words.columns(cell, design.reference)
        title = f"**{text(words.title(cell.setting, cell.num_labels))}: {words.METRIC_NAMES[metric]}**"
        parts.append(f"{title}\n\n{table([text(c) for c in head], [[text(line[0]), *line[1:]] for line in body])}")
    return parts


def _settings(rows: Sequence[StudyRow], design: Design) -> list[str]:
    parts = []
    for cell in against_first_setting(rows, design):
        body = [[text(line.method), words.signed(line.difference)] for line in cell.lines]
        title = f"**{text(words.title(cell.setting, cell.num_labels))}**"
        parts.append(f"{title}\n\n{table(['method', 'AUC: minus the first setting, 95%'], body)}")
    return parts


def _draws(rows: Sequence[StudyRow], design: Design) -> list[str]:
    parts = []
    for setting in design.settings:
        for count in dict.fromkeys((*design.num_labels, 0)):
            head, body = draw_table(rows, setting, count)
            if body:
                shown = table([text(c) for c in head], [[text(c) for c in line] for line in body])
                parts.append(f"**{text(words.title(setting, count))}**\n\n{shown}")
    return parts


def draw_table(rows: Sequence[StudyRow], setting: str, count: int) -> tuple[list[str], list[list[str]]]:
    """Return head and body of every run's AUC: a line per draw, a column per method, place and hospital."""
    mine = [row for row in rows if row.setting == setting and row.num_labels == count]
    seeds = len({row.seed for row in mine}) > 1
    found = {(row.draw, _column(row)): row for row in mine}
    head = list(dict.fromkeys(_column(row) for row in mine))
    body = [
        [f"{draw[0]}" + (f", seed {draw[1]}" if seeds else ""), *(_value(found.get((draw, column))) for column in head)]
        for draw in sorted({row.draw for row in mine})
    ]
    return ["split-seed", *head], body


def _column(row: StudyRow) -> str:
    return (
        row.method
        + (f", {row.place}" if row.place != "federated" else "")
        + (f" {row.hospital}" if row.hospital else "")
    )


def _value(row: StudyRow | None) -> str:
    if row is None:
        return MISSING
    return number(row.auc) if row.status not in (FAILED, WAITING) else row.status


def _lost(rows: Sequence[StudyRow], facts: StudyFacts) -> list[str]:
    lines = [f"- {text(row.run)}: failed: {text(row.reason)}" for row in rows if row.status == FAILED]
    waiting = [row for row in rows if row.status == WAITING]
    lines += [f"- {text(row.run)}: not run yet{': ' + text(row.reason) if row.reason else ''}" for row in waiting]
    return lines + [f"- {text(note)}" for note in facts.notes]

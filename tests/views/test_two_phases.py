"""How a run of two phases is shown: on the terminal, on the dashboard, in the report, finished or not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from jointdiff.config import RunConfig, to_mapping
from jointdiff.history import effective
from jointdiff.views import report_results
from jointdiff.views.live.snapshot import as_run, snapshot
from jointdiff.views.terminal import ProgressPrinter

ENCODED = {"psnr": 21.5, "psnr_gain": 6.0, "latent_std": 0.9, "num_images": 12}
JUDGED = {"auc": 0.75, "balanced_accuracy": 0.5, "num_images": 12}


def told(num_rounds: int = 5) -> list[dict[str, Any]]:
    """Return the events of a run of 2 and 3 rounds, so many of which are over."""
    run = {**to_mapping(RunConfig()), "latent": True, "autoencoder-rounds": 2, "num-rounds": 3}
    events: list[dict[str, Any]] = [
        {"event": "run_started", "run_name": "both", "hospitals": ["a"], "config": {"run": run}, "dataset": {}}
    ]
    for number in range(1, num_rounds + 1):
        phase = "autoencoder" if number <= 2 else "latents"
        if number in (1, 3):
            first, last = (1, 2) if number == 1 else (3, 5)
            events.append({"event": "phase_started", "round": first - 1, "phase": phase, "number": 1 + (number > 2),
                           "num_phases": 2, "first_round": first, "last_round": last})  # fmt: skip
        means = {"loss_l1": 0.125} if number <= 2 else {"loss_diffusion": 0.25}
        pooled = ENCODED if number <= 2 else JUDGED
        events += [
            {"event": "round_started", "round": number, "num_rounds": 5, "hospitals": ["a"], "phase": phase},
            {"event": "round_aggregated", "round": number, "num_replies": 1, "metrics": means},
            {"event": "evaluated", "round": number, "pooled": pooled, "hospitals": {"a": pooled}},
        ]
    return [{"schema_version": 1, "time": "2026-01-01T00:00:00+00:00", **event} for event in events]


def test_the_terminal_has_the_columns_of_each_phase_and_counts_through_both() -> None:
    stream = io.StringIO()
    with ProgressPrinter(stream) as printer:
        for event in told():
            printer(event)
    lines = stream.getvalue().splitlines()
    assert "3 rounds of 30 steps, after 2 for the autoencoder." in lines[1]
    heads = [index for index, line in enumerate(lines) if line.startswith("Phase")]
    assert lines[heads[0]] == "Phase 1 of 2, rounds 1 to 2: the autoencoder."
    assert lines[heads[1]] == "Phase 2 of 2, rounds 3 to 5: the model on its latents."
    assert "PSNR" in lines[heads[0] + 1] and "21.5" in lines[heads[0] + 2]
    assert "AUC" in lines[heads[1] + 1] and lines[heads[1] + 2].split()[0] == "3/5"


@pytest.mark.parametrize("num_rounds", [1, 2, 3, 5])
def test_the_curves_of_a_phase_are_drawn_over_its_own_rounds(num_rounds: int, tmp_path: Path) -> None:
    page = str(report_results.curves(as_run(tmp_path, told(num_rounds)), last_round=5))
    assert "PSNR (dB)" in page
    both = num_rounds > 2
    assert ("First phase" in page) == ("Second phase" in page) == ("Balanced accuracy" in page) == both
    if both:
        first, second = page.split("Second phase")
        assert "AUC" not in first and "PSNR" not in second


def test_the_headline_says_at_which_psnr_the_autoencoder_was_frozen(tmp_path: Path) -> None:
    page = str(report_results.headline(as_run(tmp_path, told())))
    assert "21.5 dB" in page and "when it was frozen" in page and "0.75" in page
    assert "frozen" not in str(report_results.headline(as_run(tmp_path, told(2))))


def test_the_dashboard_counts_the_rounds_of_both_phases(tmp_path: Path) -> None:
    for num_rounds in (1, 5):
        found = snapshot(as_run(tmp_path, told(num_rounds)), written=True)
        assert (found["round"], found["num_rounds"]) == (num_rounds, 5)
    assert "Phase 2 of 2 began, rounds 3 to 5" in " ".join(line["text"] for line in found["log"])
    assert as_run(tmp_path, told(1)[:1]).num_rounds == 5  # before the first round


def test_a_run_resumed_in_its_first_phase_has_not_begun_the_second() -> None:
    resumed = [*told(3), {"event": "run_resumed", "round": 1, "time": "2026-01-01T00:00:00+00:00"}]
    assert [e["number"] for e in effective(resumed) if e["event"] == "phase_started"] == [1]
    again = [*told(3), {"event": "run_resumed", "round": 3, "time": "2026-01-01T00:00:00+00:00"}]
    assert [e["number"] for e in effective(again) if e["event"] == "phase_started"] == [1, 2]

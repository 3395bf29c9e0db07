"""A run's progress on the terminal, made of its events: a line per round, losses, coverage, AUC, time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jointdiff.autoencoder_keys import AUTOENCODER
from jointdiff.views.format import MISSING, duration, is_number, number, percent
from jointdiff.views.run_data import mapping

COLUMNS = ("round", "denoise", "labels", "pseudo", "cover", "AUC", "bal.acc", "time", "left")
AUTOENCODER_COLUMNS = ("round", "loss", "L1", "featur", "KL", "PSNR", "gain/dB", "time", "left")
_WIDTHS = (7, 7, 6, 6, 6, 5, 7, 10, 11)  # with a space between: 73, fits a terminal of 80
NUM_RECENT = 3  # rounds that the estimate of the time left looks back on: later phases cost more than earlier ones
_SHOWN_ROUNDS = 12  # rows of the live table


class ProgressPrinter:
    """Consumes events one by one and prints what a person wants to know: live on a terminal, plain lines elsewhere.

    Use as a context manager, so that the terminal is itself again however the run ends.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Open nothing yet.

        Args:
            stream: Where to print; None is standard output. Plain lines are printed unless it is a terminal.
        """
        # Text objects only, never console markup: a hospital's name must not be able to paint the terminal.
        self._console = Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live: Live | None = None
        self._rows: list[tuple[str, ...]] = []
        self._times: list[float] = []
        self._num_rounds = 0
        self._round: Mapping[str, Any] = {}
        self._training: dict[str, Any] = {}
        self._started_at: float | None = None
        self._answered = 0
        self._asked = 0
        self._open = False
        self._told_withheld = False
        self._encodes = False  # an autoencoder has no accuracy: its rows show reconstructions

    def __enter__(self) -> ProgressPrinter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live table; what it showed stays on the screen."""
        if self._live is not None:
            self._live.update(self._table(""), refresh=True)
            self._live.stop()
            self._live = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event; unknown ones are passed over."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler(event)

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        dataset = mapping(event.get("dataset"))
        run = mapping(mapping(event.get("config")).get("run"))
        self._encodes = run.get("method") == AUTOENCODER
        real = dataset.get("real")
        kind = "origin not recorded" if real is None else "real scans" if real else "phantoms (synthetic)"
        hospitals = event.get("hospitals") or []
        self._say(f"Run {event.get('run_name')}: {dataset.get('name', 'unknown data')}, {kind}. "
                  "Research use, no medical device.")  # fmt: skip
        first = f", after {run.get('autoencoder-rounds')} for the autoencoder" if run.get("latent") else ""
        self._say(f"{len(hospitals)} hospitals, {run.get('num-labels') or 'all'} labels, method {run.get('method')}, "
                  f"{run.get('num-rounds')} rounds of {run.get('local-steps')} steps{first}.")  # fmt: skip

    def _on_phase_started(self, event: Mapping[str, Any]) -> None:
        self.close()
        self._rows, self._times = [], []  # other columns, another pace
        what = "the autoencoder" if event.get("phase") == AUTOENCODER else "the model on its latents"
        self._say(f"Phase {event.get('number')} of {event.get('num_phases')}, rounds {event.get('first_round')} to "
                  f"{event.get('last_round')}: {what}.")  # fmt: skip

    def _on_server_set(self, event: Mapping[str, Any]) -> None:
        self._say(f"The server holds {number(mapping(event.get('table')).get('num_labelled'))} labelled images.")

    def _on_round_started(self, event: Mapping[str, Any]) -> None:
        self._end_round({}, _seconds(event))
        self._round, self._training, self._open = event, {}, True
        if event.get("phase"):
            self._encodes = event["phase"] == AUTOENCODER
        self._answered, self._asked = 0, len(event.get("hospitals") or [])
        self._num_rounds = int(event.get("num_rounds") or self._num_rounds)
        self._started_at = _seconds(event)
        self._refresh("training")

    def _on_hospital_replied(self, event: Mapping[str, Any]) -> None:
        if event.get("kind") == "train":
            self._answered += 1
        self._refresh(_DOING.get(str(event.get("kind")), ""))

    def _on_hospital_failed(self, event: Mapping[str, Any]) -> None:
        self._trouble(event, "failed")

    def _on_hospital_refused(self, event: Mapping[str, Any]) -> None:
        self._trouble(event, "refused")

    def _on_update_rejected(self, event: Mapping[str, Any]) -> None:
        self._trouble(event, "sent an update that was rejected")

    def _on_update_questioned(self, event: Mapping[str, Any]) -> None:
        self._trouble(event, "sent an update that is questioned")

    def _on_round_aggregated(self, event: Mapping[str, Any]) -> None:
        self._training = mapping(event.get("metrics"))
        self._refresh("evaluating")

    def _on_evaluated(self, event: Mapping[str, Any]) -> None:
        pooled = mapping(event.get("pooled"))
        self._end_round(pooled, _seconds(event))
        if not pooled and not self._told_withheld and (who := list(mapping(event.get("withheld")))):
            self._told_withheld = True
            self._say(f"No AUC: {', '.join(who)} withhold their test statistics (min-cell-count in site.yaml: too few "
                      "test scans of a class).")  # fmt: skip

    def _on_sampled(self, event: Mapping[str, Any]) -> None:
        if event.get("reason"):
            self._say(str(event["reason"]))
            return
        share = mapping(event.get("metrics")).get("referee_agreement")
        self._say("Samples drawn" + (f": a referee agrees with {percent(share)}." if is_number(share) else "."))

    def _on_explained(self, event: Mapping[str, Any]) -> None:
        self._say(f"Decisions explained at {len(mapping(event.get('hospitals')))} hospitals.")

    def _on_run_finished(self, event: Mapping[str, Any]) -> None:
        self._end_round({}, _seconds(event))
        self.close()
        pooled = mapping(mapping(event.get("final")).get("pooled"))
        if "psnr" in pooled:
            self._say(
                f"Pooled, last round: PSNR {number(pooled['psnr'], 1)} dB, {number(pooled.get('psnr_gain'), 1)} dB "
                f"over grey pictures, on {number(pooled.get('num_images'))} images."
            )
        elif pooled:
            self._say(
                f"Pooled, last round: balanced accuracy {number(pooled.get('balanced_accuracy'))}, "
                f"AUC {number(pooled.get('auc'))} on {number(pooled.get('num_images'))} images."
            )
        self._say(f"Run finished in {duration(event.get('duration_s'))}.")
        self._say(f"Report: {event.get('report', MISSING)}")

    def _on_run_failed(self, event: Mapping[str, Any]) -> None:
        self.close()
        after = f" after {duration(event['duration_s'])}" if is_number(event.get("duration_s")) else ""
        self._say(f"Run failed{after}: {event.get('reason') or 'no reason recorded'}")
        if event.get("resume"):
            self._say(f"To carry it on from its last complete round: {event['resume']}")
        if event.get("report"):
            self._say(f"Report: {event['report']}")

    def _on_run_resumed(self, event: Mapping[str, Any]) -> None:
        self._say(f"Resumed after round {event.get('round')}.")

    def _on_round_repeated(self, event: Mapping[str, Any]) -> None:
        self._say(f"! Round {event.get('round')}: only {event.get('num_replies')} good replies to {event.get('kind')}, "
                  f"{event.get('min_hospitals')} are needed. It is repeated.")  # fmt: skip

    def _trouble(self, event: Mapping[str, Any], what: str) -> None:
        self._say(f"! {event.get('hospital')} {what} ({event.get('kind', 'round')} {event.get('round', '')}): "
                  f"{event.get('reason', '')}")  # fmt: skip

    def _end_round(self, pooled: Mapping[str, Any], now: float | None) -> None:
        if not self._open:
            return
        self._open = False
        if now is not None and self._started_at is not None:
            self._times.append(max(0.0, now - self._started_at))
        metrics = self._training
        self._encodes = self._encodes or "psnr" in pooled
        row = (
            f"{self._round.get('round')}/{self._num_rounds}",
            *(_reconstruction_cells(metrics, pooled) if self._encodes else _cells(metrics, pooled)),
            duration(self._times[-1]) if self._times else MISSING,
            self._time_left(),
        )
        self._rows.append(row)
        if self._console.is_terminal:
            self._refresh("")
            return
        if len(self._rows) == 1:
            self._say(_line(AUTOENCODER_COLUMNS if self._encodes else COLUMNS))
        self._say(_line(row))

    def _time_left(self) -> str:
        """Return the time that the rounds left will take, at the pace of the last ones; explanations come on top."""
        left = self._num_rounds - int(self._round.get("round") or 0)
        if left <= 0 or not self._times:
            return MISSING
        recent = self._times[-NUM_RECENT:]
        return duration(left * sum(recent) / len(recent))

    def _refresh(self, doing: str) -> None:
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(self._table(doing), refresh=True)

    def _table(self, doing: str) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in AUTOENCODER_COLUMNS if self._encodes else COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self._rows[-_SHOWN_ROUNDS:]:
            table.add_row(*row)
        if not doing:
            return Group(table)
        status = f"{doing}, round {self._round.get('round', 0)}/{self._num_rounds}"
        return Group(table, Text(f"{status}: {self._answered} of {self._asked} hospitals trained", style="dim"))

    def _say(self, text: str) -> None:
        self._console.print(Text(printable(text)))
        self._console.file.flush()


_DOING = {"autoencoder": "encoding scans", "describe": "introducing", "train": "training",
          "head": "solving the head", "evaluate": "evaluating",
          "explain": "explaining", "keys": "agreeing on keys", "shares": "dealing shares",
          "unmask": "unmasking the sum"}  # fmt: skip


def printable(text: str) -> str:
    r"""Return text without control characters: a name must not be able to move the cursor or ring the bell.

    >>> printable("a\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _cells(metrics: Mapping[str, Any], pooled: Mapping[str, Any]) -> tuple[str, ...]:
    losses = (number(metrics.get(f"loss_{name}")) for name in ("diffusion", "class", "pseudo"))
    scores = (number(pooled.get(name)) for name in ("auc", "balanced_accuracy"))
    return (*losses, percent(metrics.get("pseudo_coverage")), *scores)


def _reconstruction_cells(metrics: Mapping[str, Any], pooled: Mapping[str, Any]) -> tuple[str, ...]:
    losses = (number(metrics.get(name)) for name in ("loss", "loss_l1", "loss_feature", "loss_kl"))
    return (*losses, number(pooled.get("psnr"), 1), number(pooled.get("psnr_gain"), 1))


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _seconds(event: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None

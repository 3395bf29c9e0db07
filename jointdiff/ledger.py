"""The lifelong privacy ledger of a site: every noisy step ever taken on its data, over rounds, runs, restarts, crashes.

An entry is written, durably, before a round trains: what can leave has been paid for. A round whose process dies after
that has cost its budget too. Epsilon is composed anew from all entries each time, so that no sum can be wrong for long.

A ledger is about one data set and one unit. It never forgets: a site that starts a new one for the same scans gives
away twice what it promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff import ledger_file
from jointdiff.accounting import ACCOUNTANTS, Bound, History, bound_of, rounds_within
from jointdiff.errors import ConfigError, RefusedError
from jointdiff.ledger_file import Entry, LedgerFile
from jointdiff.storage import locked


def _now() -> datetime:
    return datetime.now(UTC)


def dataset_fingerprint(images: np.ndarray) -> str:
    """Return the sha256 of a set of records: of their type and shape, and of the sorted sha256 of each.

    The order of records does not matter: a sampled step does not see it, and a site that sorts its files anew must not
    be told that these are other data. A single changed pixel does, and so does another image size: take the images as
    every run reads them.

    Args:
        images: [N, ...], any type of numbers.

    >>> images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    >>> dataset_fingerprint(images) == dataset_fingerprint(images[::-1])
    True
    >>> dataset_fingerprint(images) == dataset_fingerprint(images[[0, 0, 1]])
    False
    """
    assert images.dtype.kind in "biuf", images.dtype
    plain = np.ascontiguousarray(images, dtype=images.dtype.newbyteorder("<"))
    records = sorted(hashlib.sha256(record.tobytes()).digest() for record in plain)
    header = f"{plain.dtype.str} {plain.shape[1:]} {len(plain)}\n".encode()
    return hashlib.sha256(header + b"".join(records)).hexdigest()


class Ledger:
    """The ledger of one site, opened for one data set, one delta and one ceiling. Use `Ledger.open`."""

    def __init__(
        self, folder: Path, found: LedgerFile, *, delta: float, ceiling: float | None, accountant: str,
        clock: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self._folder = folder
        self._found = found
        self._clock = clock
        self._accountant = accountant
        self.delta = delta
        self.ceiling = ceiling

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        dataset: str,
        num_records: int,
        unit: str = "image",
        delta: float,
        ceiling: float | None,
        accountant: str = "rdp",
        clock: Callable[[], datetime] = _now,
    ) -> Ledger:
        """Open a site's ledger, or begin it, and check that it fits what is asked.

        Another delta than before is allowed: epsilon is then composed anew for it, and the next entry says so.

        Args:
            folder: The site's own folder; made if needed.
            dataset: `dataset_fingerprint` of the records.
            num_records: How many units there are; delta may not be larger than one over it.
            unit: What a guarantee is about, in a word: image, patient. The caller groups the records.
            delta: Probability that the guarantee fails, for which epsilon is composed.
            ceiling: The largest epsilon this site allows on these data, ever; None for no limit.
            accountant: "rdp", or "prv" (jointdiff.accounting).
            clock: Tells the time of an entry, with its zone.

        Raises:
            ConfigError: A value is out of its range.
            RefusedError: The ledger is missing, edited, cannot be written, is of other data or another unit, or has
                spent more than the ceiling. The text names no path and may travel.
        """
        _check(num_records=num_records, unit=unit, delta=delta, ceiling=ceiling, accountant=accountant)
        folder = Path(os.path.abspath(folder))
        fresh = ledger_file.new(dataset=dataset, num_records=num_records, unit=unit, delta=delta, ceiling=ceiling)
        with _exclusive(folder):
            found = ledger_file.read(folder)
            if found is None:
                ledger_file.write(folder, fresh)
                found = fresh
        _check_terms(found, fresh)
        ledger = cls(folder, found, delta=delta, ceiling=ceiling, accountant=accountant, clock=clock)
        if ceiling is not None and ledger.epsilon > ceiling:
            raise RefusedError(
                f"The privacy ceiling of this site is epsilon {ceiling:g} at delta {delta:g}, and {ledger.epsilon:.4g} "
                "is spent on these data already: nothing more is trained on them unless the site raises its ceiling."
            )
        return ledger

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first, as of opening or of this ledger's last `spend` or `has`."""
        return self._found.entries

    @property
    def head_sha256(self) -> str:
        """The last hash of the chain: noted elsewhere, it shows later that nothing was written anew."""
        return self._found.head_sha256

    @property
    def history(self) -> History:
        """(noise multiplier, sample rate, steps) of every entry, for `accounting.noise_multiplier_for`."""
        return self._found.history

    @property
    def epsilon(self) -> float:
        """Epsilon that is spent, at this ledger's delta."""
        return self._bound(self._found.history).epsilon

    def epsilon_after(self, noise_multiplier: float, sample_rate: float, steps: int) -> float:
        """Return what epsilon would be after these steps."""
        return self._bound((*self._found.history, (noise_multiplier, sample_rate, steps))).epsilon

    def rounds_left(self, noise_multiplier: float, sample_rate: float, steps: int) -> int | None:
        """Return how many rounds of so many steps the ceiling still allows; None without a ceiling."""
        return self._number_left((noise_multiplier, sample_rate, steps))

    def has(self, key: str) -> bool:
        """Return whether a round with this key was charged, by whatever process. Reads the ledger anew.

        A round that was charged and is asked for again is answered with the reply that was kept. Where there is none,
        its process died: training again draws new noise, and costs again.
        """
        self._found = self._read()
        return any(entry["key"] == key for entry in self._found.entries)

    def check_room(self, planned: History) -> None:
        """Refuse a run that the ceiling cannot bear to its end, before its first step. Writes nothing.

        Args:
            planned: (noise multiplier, sample rate, steps) of every phase that lies ahead.

        Raises:
            RefusedError: All of it together, after what is spent, would pass the ceiling.
        """
        if self.ceiling is None:
            return
        after = self._bound((*self._found.history, *planned)).epsilon
        if after > self.ceiling:
            phases = " and ".join(f"{steps} steps with noise multiplier {noise:g}" for noise, _, steps in planned)
            raise RefusedError(
                f"The privacy ceiling of this site is epsilon {self.ceiling:g} at delta {self.delta:g}. "
                f"{self.epsilon:.4g} is spent, and this run would make it {after:.4g} in all its phases ({phases}). "
                "Nothing of it is trained: a run that must stop half way spends, and leaves no model. More noise, a "
                "smaller target-epsilon or fewer rounds make it fit."
            )

    def spend(
        self, *, run: str, round: int, noise_multiplier: float, sample_rate: float, steps: int, key: str
    ) -> Entry:  # fmt: skip
        """Charge a round before it trains: check the ceiling and write the entry, in one go and durably.

        Each call is charged, also a second one with the same key: who trains twice has spent twice (ask `has` before).

        Args:
            run: Name of the run.
            round: Its number, 1-based.
            noise_multiplier: Standard deviation of the noise over the clipping norm.
            sample_rate: Probability of a unit to be in a step.
            steps: Steps of this round.
            key: What tells this round and its instructions from others.

        Returns:
            The entry, as it stands in the file.

        Raises:
            ConfigError: A value is out of its range.
            RefusedError: The ceiling would be passed, or the ledger is broken or cannot be written: nothing may train.
        """
        step = (float(noise_multiplier), float(sample_rate), int(steps))
        if step[2] < 1:
            raise ConfigError(f"{steps} steps cannot be charged: a round has at least 1.")
        with _exclusive(self._folder):
            self._found = self._read()
            after = self._bound((*self._found.history, step))
            if self.ceiling is not None and after.epsilon > self.ceiling:
                raise self._beyond(step, after.epsilon)
            now = self._clock().astimezone(UTC)
            notes = (after.note, self._clock_note(now), self._delta_note(step))
            longer = self._found.with_entry(
                {
                    "time": now.isoformat(timespec="seconds"),
                    "run": run,
                    "round": int(round),
                    "noise_multiplier": step[0],
                    "sample_rate": step[1],
                    "steps": step[2],
                    "epsilon": after.epsilon if math.isfinite(after.epsilon) else None,
                    "delta": self.delta,
                    "ceiling": self.ceiling,
                    "accountant": after.accountant,
                    "note": "; ".join(note for note in notes if note),
                    "key": key,
                }
            )
            ledger_file.write(self._folder, longer)
            self._found = longer
        return self.entries[-1]

    def _read(self) -> LedgerFile:
        found = ledger_file.read(self._folder)
        if found is None:
            raise RefusedError("The privacy ledger of this site was deleted while a run was on: put it back.")
        _check_terms(found, self._found)
        return found

    def _bound(self, history: History) -> Bound:
        """Return the bound of the history, or of a longer one; never less than what was written at the same delta.

        PRV can come out a little smaller after more steps, and smaller than the RDP of before. What is spent cannot.
        """
        bound = bound_of(history, self.delta, accountant=self._accountant)
        written = (e["epsilon"] for e in self.entries if e["delta"] == self.delta)
        floor = max((math.inf if epsilon is None else epsilon for epsilon in written), default=0.0)
        return replace(bound, epsilon=max(bound.epsilon, floor))

    def _number_left(self, step: tuple[float, float, int]) -> int | None:
        if self.ceiling is None:
            return None
        return rounds_within(self.ceiling, self.delta, step, spent=self.history, accountant=self._accountant)

    def _beyond(self, step: tuple[float, float, int], after: float) -> RefusedError:
        noise_multiplier, sample_rate, steps = step
        fitting = self._number_left((noise_multiplier, sample_rate, 1))
        return RefusedError(
            f"The privacy ceiling of this site is epsilon {self.ceiling:g} at delta {self.delta:g}. {self.epsilon:.4g} "
            f"is spent, and this round would make it {after:.4g} ({steps} steps, noise multiplier "
            f"{noise_multiplier:g}, sample rate {sample_rate:g}). What is left buys 0 such rounds ({fitting} of the "
            f"{steps} steps). "
            "More noise or fewer steps a round make it last longer."
        )

    def _clock_note(self, now: datetime) -> str:
        """Tell of a clock that was moved back. The order of entries is that of the chain, so nothing is lost by it."""
        if not self.entries or now >= datetime.fromisoformat(self.entries[-1]["time"]):
            return ""
        return f"clock moved back: the entry before is of {self.entries[-1]['time']}"

    def _delta_note(self, step: tuple[float, float, int]) -> str:
        """Tell of another delta than in the entry before, with epsilon at the old one: a smaller number is no gain."""
        before = self.entries[-1]["delta"] if self.entries else self.delta
        if before == self.delta:
            return ""
        epsilon = bound_of((*self.history, step), before, accountant=self._accountant).epsilon
        return f"delta was {before:g} before, and epsilon at that delta is {epsilon:.4g}"


def _check(*, num_records: int, unit: str, delta: float, ceiling: float | None, accountant: str) -> None:
    if num_records < 1:
        raise ConfigError(f"A ledger for {num_records} records has nothing to protect: at least 1 is needed.")
    if not unit:
        raise ConfigError("The unit of privacy is empty: say what is protected, for instance image or patient.")
    if accountant not in ACCOUNTANTS:
        raise ConfigError(f"accountant {accountant!r} is not known: it is one of {', '.join(ACCOUNTANTS)}.")
    if ceiling is not None and not 0 < ceiling < math.inf:
        raise ConfigError(f"A privacy ceiling of {ceiling} is none: give a finite epsilon above 0, or leave it out.")
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta} must lie between 0 and 1: it is a probability, say 1e-5.")
    if delta > 1 / num_records:
        raise RefusedError(
            f"delta {delta:g} is larger than one over the number of records here ({1 / num_records:.2g} for "
            f"{num_records}). A guarantee that may fail so often allows to publish a whole record now and then: take a "
            "smaller delta."
        )


def _check_terms(found: LedgerFile, asked: LedgerFile) -> None:
    have, want = found.terms, asked.terms
    if have["dataset"] != want["dataset"]:
        raise RefusedError(
            f"The privacy ledger in the folder of this site is of another data set ({have['dataset'][:8]}, not "
            f"{want['dataset'][:8]}). What was spent on those data stays there. If these are other scans, give them a "
            "folder of their own; if they are the same scans, changed or read at another size, their budget is spent "
            "as it was: read them as before."
        )
    if have != want:
        raise RefusedError(
            f"The privacy ledger of this site protects {have['num_records']} records of the unit {have['unit']!r}, and "
            f"{want['num_records']} of the unit {want['unit']!r} are asked for. What was spent cannot be told for "
            "another unit: keep the unit, and the grouping of records, that the ledger began with."
        )


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a ledger; what the disk refuses becomes a refusal without its path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ledger_file.LOCK_FILE):
            yield
    except OSError as error:
        raise RefusedError(
            f"The privacy ledger of this site cannot be read or written ({error.strerror or type(error).__name__}). "
            "What is not in the ledger is not trained: free the disk, or let this process write in the folder of the "
            "site."
        ) from error


def summary(folder: Path) -> dict[str, Any] | None:
    """Return what a site's ledger says, verified and composed anew; None where there is none. Writes nothing.

    Returns:
        What stands in the file, with `epsilon` (None: infinite) the larger of what was written and what is composed
        now, and `rounds_left`: how many rounds like the last the ceiling allows; None without a ceiling or an entry.

    Raises:
        RefusedError: The ledger is missing though there was one, damaged, edited, or cut off.
    """
    found = ledger_file.read(Path(folder))
    if found is None:
        return None
    delta, ceiling, rounds_left = found.state["delta"], found.state["ceiling"], None
    accountant = found.entries[-1]["accountant"] if found.entries else "rdp"
    ledger = Ledger(Path(folder), found, delta=delta, ceiling=ceiling, accountant=accountant, clock=_now)
    if found.history:
        rounds_left = ledger.rounds_left(*found.history[-1])
    epsilon = ledger.epsilon if math.isfinite(ledger.epsilon) else None
    return {**found.to_dict(), "epsilon": epsilon, "rounds_left": rounds_left}

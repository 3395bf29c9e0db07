"""The privacy ledger. The figures of the comparisons with dp-accounting are logged:

pytest -m "slow or not slow" --log-cli-level=INFO tests/test_ledger.py -k "dp_accounting or distribution"
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from client.border import MAX_CHARACTERS, safe_reason
from jointdiff import ledger_file
from jointdiff.accounting import LOW_ORDERS, ORDERS, epsilon_of, noise_multiplier_for
from jointdiff.errors import ConfigError, RefusedError
from jointdiff.ledger import Ledger, dataset_fingerprint, summary

_log = logging.getLogger(__name__)
logging.getLogger("absl").setLevel(logging.ERROR)  # dp-accounting tells of every order that it leaves out

DELTA = 1e-5
STEP = {"noise_multiplier": 1.5, "sample_rate": 0.1, "steps": 10}
WHEN = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def reopen(tmp_path: Path) -> Callable[..., Ledger]:
    """Open the site's ledger as a new process would."""

    def make(**changes) -> Ledger:
        values = {"dataset": "d" * 64, "num_records": 1000, "delta": DELTA, "ceiling": None} | changes
        return Ledger.open(tmp_path / "site", **values)

    return make


def refusal(match: str):
    """What a refusal at a site looks like: it may travel, whole and unchanged."""
    return _Refusal(match)


class _Refusal:
    def __init__(self, match: str) -> None:
        self._raises = pytest.raises(RefusedError, match=match)

    def __enter__(self):
        self.info = self._raises.__enter__()
        return self.info

    def __exit__(self, *error) -> bool | None:
        passed = self._raises.__exit__(*error)
        text = " ".join(str(self.info.value).split())
        assert safe_reason(self.info.value) == text and len(text) <= MAX_CHARACTERS, text
        return passed


def spend(ledger: Ledger, number: int, **changes):
    return ledger.spend(run="run-a", round=number, key=f"run-a:{number}", **(STEP | changes))


# Numbers


def schedule(draw: random.Random) -> list[tuple[float, float, int]]:
    """The rounds of one to three runs, each with its own noise and sample rate."""
    rounds = []
    for _ in range(draw.randint(1, 3)):
        noise, rate = round(draw.uniform(1.0, 6.0), 3), round(draw.uniform(0.01, 0.25), 4)
        rounds += [(noise, rate, draw.randint(5, 40)) for _ in range(draw.randint(1, 5))]
    return rounds


def as_event(rounds) -> dp_event.DpEvent:
    return dp_event.ComposedDpEvent([
        dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
        for noise, rate, steps in rounds
    ])  # fmt: skip


def spend_with_restarts(draw: random.Random, rounds, open_ledger: Callable[[], Ledger]) -> float:
    ledger = open_ledger()
    for number, (noise, rate, steps) in enumerate(rounds, start=1):
        if draw.random() < 0.4:
            ledger = open_ledger()
        before = ledger.epsilon
        foreseen = ledger.epsilon_after(noise, rate, steps)
        entry = spend(ledger, number, noise_multiplier=noise, sample_rate=rate, steps=steps)
        assert before < ledger.epsilon == entry["epsilon"] == foreseen
    return open_ledger().epsilon


def test_twenty_schedules_with_restarts_against_dp_accounting(tmp_path: Path) -> None:
    lines = []
    for number in range(20):
        draw = random.Random(number)
        rounds, delta = schedule(draw), 10 ** -draw.uniform(4, 6)
        found = spend_with_restarts(draw, rounds, lambda delta=delta, number=number: Ledger.open(
            tmp_path / str(number), dataset="d", num_records=1000, delta=delta, ceiling=None))  # fmt: skip
        oracle = RdpAccountant([*LOW_ORDERS, *ORDERS])
        oracle.compose(as_event(rounds))
        expected = oracle.get_epsilon(delta)
        lines.append(f"{len(rounds):2d} rounds, delta {delta:.1e}: ledger {found:8.4f}, dp-accounting {expected:8.4f}, "
                     f"ratio {found / expected:.5f}")  # fmt: skip
        assert found == pytest.approx(expected, rel=0.01), lines[-1]
        assert found == epsilon_of(rounds, delta)  # composed over restarts = composed at once
    _log.info("RDP on the same orders\n%s", "\n".join(lines))


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 20), marks=pytest.mark.slow)])
def test_prv_ledgers_against_the_privacy_loss_distribution(tmp_path: Path, seeds: range) -> None:
    lines = []
    for number in seeds:
        draw = random.Random(number)
        rounds, delta = schedule(draw), 10 ** -draw.uniform(4, 6)
        ledger = Ledger.open(
            tmp_path / str(number), dataset="d", num_records=1000, delta=delta, ceiling=None, accountant="prv"
        )  # fmt: skip
        half = len(rounds) // 2
        for index, (noise, rate, steps) in enumerate(rounds[:half]):
            spend(ledger, index, noise_multiplier=noise, sample_rate=rate, steps=steps)
        ledger = Ledger.open(
            tmp_path / str(number), dataset="d", num_records=1000, delta=delta, ceiling=None, accountant="prv"
        )  # fmt: skip
        for index, (noise, rate, steps) in enumerate(rounds[half:]):
            spend(ledger, half + index, noise_multiplier=noise, sample_rate=rate, steps=steps)
        oracle = PLDAccountant()
        oracle.compose(as_event(rounds))
        expected = oracle.get_epsilon(delta)
        lines.append(f"{len(rounds):2d} rounds, delta {delta:.1e}: ledger {ledger.epsilon:8.4f}, PLD {expected:8.4f}, "
                     f"ratio {ledger.epsilon / expected:.5f}, RDP {epsilon_of(rounds, delta):8.4f}")  # fmt: skip
        assert expected <= ledger.epsilon < 1.01 * expected, lines[-1]
    _log.info("PRV against PLD\n%s", "\n".join(lines))


def test_epsilon_never_falls_where_the_numbers_of_prv_jitter(reopen) -> None:
    ledger = reopen(accountant="prv")
    spent = [spend(ledger, n, noise_multiplier=8.0, sample_rate=1.0, steps=1)["epsilon"] for n in range(1, 9)]
    assert spent == sorted(spent) and reopen(accountant="prv").epsilon == spent[-1]
    loose = reopen(accountant="rdp")
    after = spend(loose, 9, noise_multiplier=8.0, sample_rate=1.0, steps=1)["epsilon"]
    assert after > spent[-1]
    assert reopen(accountant="prv").epsilon == after  # a tighter bound came later: what was said stands


# What is refused, and when


def test_a_planned_run_fits_to_its_last_round_and_not_one_more(reopen) -> None:
    spend(reopen(), 1)
    before = reopen(ceiling=4.0)
    noise = noise_multiplier_for(4.0, DELTA, 0.1, 6 * 10, spent=before.history)
    assert before.rounds_left(noise, 0.1, 10) == 6
    for number in range(2, 8):
        spend(reopen(ceiling=4.0), number, noise_multiplier=noise)
    ledger = reopen(ceiling=4.0)
    assert ledger.epsilon <= 4.0 and ledger.rounds_left(noise, 0.1, 10) == 0
    with refusal(r"ceiling of this site is epsilon 4 at delta 1e-05\. 3\.99\d is spent.*make it 4\.\d+.*buys 0 such"):
        spend(ledger, 8, noise_multiplier=noise)
    assert len(reopen(ceiling=4.0).entries) == 7


def test_a_refusal_tells_how_many_steps_would_fit(reopen) -> None:
    ledger = reopen(ceiling=reopen().epsilon_after(1.5, 0.1, 10))
    spend(ledger, 1)  # up to the ceiling itself
    ledger = reopen(ceiling=2.0)
    with refusal(r"\((\d+) of the 500 steps\)") as refused:
        spend(ledger, 2, steps=500)
    fitting = int(str(refused.value).split(" of the 500 steps")[0].split("(")[-1])
    assert ledger.epsilon_after(1.5, 0.1, fitting) <= 2.0 < ledger.epsilon_after(1.5, 0.1, fitting + 1) and fitting > 0


def test_without_noise_epsilon_is_infinite_for_good(reopen, tmp_path: Path) -> None:
    with refusal("make it inf"):
        spend(reopen(ceiling=8.0), 1, noise_multiplier=0.0)
    assert spend(reopen(), 1, noise_multiplier=0.0)["epsilon"] is None
    assert reopen().epsilon == math.inf and reopen().rounds_left(1.0, 0.1, 1) is None
    assert summary(tmp_path / "site")["epsilon"] is None
    with refusal("and inf is spent"):
        reopen(ceiling=8.0)


def test_a_ceiling_below_what_is_spent_is_refused_at_the_door(reopen) -> None:
    spent = spend(reopen(), 1)["epsilon"]
    assert reopen(ceiling=spent).ceiling == spent
    with refusal(rf"ceiling of this site is epsilon 0\.5 at delta 1e-05, and {spent:.4g} is spent"):
        reopen(ceiling=0.5)


def test_another_data_set_unit_or_grouping_is_refused(reopen) -> None:
    spend(reopen(), 1)
    with refusal(r"another data set \(dddddddd, not eeeeeeee\)"):
        reopen(dataset="e" * 64)
    with refusal(r"protects 1000 records of the unit 'image', and 1000 of the unit 'patient'"):
        reopen(unit="patient")
    with refusal(r"and 900 of the unit 'image' are asked for"):
        reopen(num_records=900)
    assert len(reopen().entries) == 1


def test_delta_above_one_over_n_is_refused(reopen) -> None:
    with refusal(r"delta 0\.0011 is larger than one over the number of records here \(0\.001 for 1000\)"):
        reopen(delta=0.0011)
    assert reopen(delta=0.001).delta == 0.001


@pytest.mark.parametrize("changes, word", [
    ({"delta": 0.0}, "delta"), ({"delta": math.nan}, "delta"), ({"ceiling": 0.0}, "ceiling"),
    ({"ceiling": math.inf}, "ceiling"), ({"unit": ""}, "unit"), ({"num_records": 0}, "0 records"),
    ({"accountant": "gdp"}, "gdp"),
])  # fmt: skip
def test_settings_out_of_range_are_named(reopen, tmp_path: Path, changes, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        reopen(**changes)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("changes", [{"steps": 0}, {"noise_multiplier": -1.0}, {"sample_rate": 0.0}])
def test_steps_out_of_range_are_not_charged(reopen, changes) -> None:
    with pytest.raises(ConfigError):
        spend(reopen(), 1, **changes)
    assert not reopen().entries


def test_another_delta_is_composed_anew_and_noted(reopen) -> None:
    ledger = reopen()
    spend(ledger, 1)
    wide = reopen(delta=1e-3)
    assert wide.epsilon == epsilon_of(ledger.history, 1e-3) < ledger.epsilon
    entry = spend(wide, 2)
    at_the_old = epsilon_of(wide.history, DELTA)
    assert (
        entry["delta"] == 1e-3
        and f"delta was 1e-05 before, and epsilon at that delta is {at_the_old:.4g}" in entry["note"]
    )
    assert reopen().epsilon == at_the_old > ledger.epsilon
    assert spend(wide, 3)["note"] == ""


# Keys, restarts, crashes


def test_a_key_that_was_charged_is_known_to_every_process(reopen) -> None:
    first, second = reopen(), reopen()
    spend(first, 1)
    assert second.has("run-a:1") and not second.has("run-a:2")
    entry = spend(second, 1)  # trained again, since no reply was kept: charged again
    assert entry["number"] == 2 and reopen().epsilon == epsilon_of([(1.5, 0.1, 20)], DELTA)


def test_a_process_killed_between_the_entry_and_the_reply_has_paid(reopen, tmp_path: Path) -> None:
    spend(reopen(), 1)
    program = (
        "import os, signal; from pathlib import Path; from jointdiff.ledger import Ledger\n"
        f"ledger = Ledger.open(Path({str(tmp_path / 'site')!r}), dataset='d' * 64, num_records=1000, delta={DELTA}, "
        "ceiling=None)\n"
        f"ledger.spend(run='run-a', round=2, key='run-a:2', **{STEP!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    ledger = reopen()
    assert ledger.has("run-a:2") and ledger.epsilon == epsilon_of([(1.5, 0.1, 20)], DELTA)


@pytest.mark.parametrize("file", [ledger_file.LEDGER_FILE, ledger_file.HEAD_FILE])
def test_a_crash_while_writing_leaves_a_ledger_that_holds(reopen, tmp_path: Path, monkeypatch, file: str) -> None:
    ledger = reopen()
    spend(ledger, 1)
    real = os.replace

    def replace(source, target) -> None:
        if Path(target).name == file:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        spend(ledger, 2)
    monkeypatch.undo()
    paid = 1 if file == ledger_file.LEDGER_FILE else 2
    assert len(reopen().entries) == paid
    assert spend(reopen(), 3)["number"] == paid + 1


def test_a_full_disk_is_a_refusal_and_nothing_is_charged(reopen, tmp_path: Path, monkeypatch) -> None:
    ledger = reopen()
    spend(ledger, 1)
    before = ledger.epsilon

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(os, "fsync", full)
    with refusal("cannot be read or written .No space left on device."):
        spend(ledger, 2)
    monkeypatch.undo()
    assert ledger.epsilon == reopen().epsilon == before


def _spend_many(folder: Path, worker: int) -> None:
    for number in range(5):
        ledger = Ledger.open(folder, dataset="d" * 64, num_records=1000, delta=DELTA, ceiling=None)
        ledger.spend(run=f"run-{worker}", round=number, key=f"{worker}:{number}", **STEP)


def test_processes_that_spend_at_once_lose_nothing(reopen, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_spend_many, args=(tmp_path / "site", worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = reopen()
    assert sorted(e["key"] for e in ledger.entries) == sorted(f"{w}:{n}" for w in range(4) for n in range(5))
    assert ledger.epsilon == epsilon_of([(1.5, 0.1, 200)], DELTA)


def test_a_clock_that_moved_back_is_noted_and_loses_nothing(reopen) -> None:
    spend(reopen(clock=lambda: WHEN), 1)
    assert spend(reopen(clock=lambda: WHEN.replace(microsecond=0)), 2)["note"] == ""  # entries hold whole seconds
    entry = spend(reopen(clock=lambda: WHEN - timedelta(days=2)), 3)
    assert (entry["time"], entry["note"]) == (
        "2026-02-27T12:00:00+00:00", "clock moved back: the entry before is of 2026-03-01T12:00:00+00:00",
    )  # fmt: skip
    assert spend(reopen(clock=lambda: WHEN), 4)["note"] == "" and len(reopen().entries) == 4


def test_times_are_written_in_utc(reopen) -> None:
    from zoneinfo import ZoneInfo

    entry = spend(reopen(clock=lambda: WHEN.astimezone(ZoneInfo("Asia/Tokyo"))), 1)
    assert entry["time"] == "2026-03-01T12:00:00+00:00"


# The chain


@pytest.fixture
def written(reopen, tmp_path: Path) -> Path:
    """A site's folder with a ledger of three entries."""
    ledger = reopen(ceiling=9.0)
    for number in (1, 2, 3):
        spend(ledger, number)
    return tmp_path / "site"


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / ledger_file.LEDGER_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


EDITS = {
    "a number": (lambda c: c["entries"][1].update(noise_multiplier=9.0), "entry 2 of 3"),
    "an added field": (lambda c: c["entries"][1].update(extra=1), "entry 2 of 3"),
    "steps as text": (lambda c: c["entries"][1].update(steps="10"), "entry 2 of 3"),
    "an epsilon": (lambda c: c["entries"][2].update(epsilon=0.1), "entry 3 of 3"),
    "one taken out": (lambda c: c["entries"].pop(1), "entry 2 of 2"),
    "two swapped": (lambda c: c["entries"].insert(0, c["entries"].pop(1)), "entry 1 of 3"),
    "one doubled": (lambda c: c["entries"].append(c["entries"][2]), "entry 4 of 4"),
    "no dict": (lambda c: c["entries"].append("x"), "entry 4 of 4"),
    "all taken out": (lambda c: c["entries"].clear(), "its last hash"),
    "the sum": (lambda c: c.update(epsilon=0.1), "sums at its top"),
    "the ceiling": (lambda c: c.update(ceiling=None), "sums at its top"),
    "the data set": (lambda c: c.update(dataset="e"), "entry 1 of 3"),
    "the number of records": (lambda c: c.update(num_records=10_000), "entry 1 of 3"),
    "the head": (lambda c: c.update(head_sha256="0" * 64), "its last hash"),
    "a new field": (lambda c: c.update(extra=1), "fields"),
    "entries lost": (lambda c: c.pop("entries"), "fields"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_shows(written: Path, reopen, name: str) -> None:
    change, where = EDITS[name]
    edit(written, change)
    with refusal(f"edited or cut: .*{where}"):
        reopen(ceiling=9.0)
    with refusal("edited or cut"):
        summary(written)


def cut(content: dict) -> None:
    """Cut off the last entry as someone would who knows the format."""
    content["entries"].pop()
    last = content["entries"][-1]
    content.update({name: last[name] for name in ("delta", "epsilon", "ceiling")}, head_sha256=last["sha256"])


def test_a_clean_cut_at_the_end_shows_by_the_head(written: Path, reopen) -> None:
    edit(written, cut)
    with refusal("its 2 entries do not hold the last hash"):
        reopen(ceiling=9.0)


def test_what_a_chain_on_one_disk_cannot_show(written: Path, reopen) -> None:
    """Both files written anew pass; the last hash, noted elsewhere, is then no longer in the chain."""
    noted = reopen(ceiling=9.0).head_sha256
    edit(written, cut)
    content = json.loads((written / ledger_file.LEDGER_FILE).read_text())
    (written / ledger_file.HEAD_FILE).write_text(
        json.dumps({"num_entries": 2, "head_sha256": content["head_sha256"]})
    )  # fmt: skip
    forged = reopen(ceiling=9.0)
    assert len(forged.entries) == 2 and noted not in {entry["sha256"] for entry in forged.entries}


def test_a_noted_hash_stays_in_the_chain(written: Path, reopen) -> None:
    ledger = reopen(ceiling=9.0)
    noted = ledger.head_sha256
    spend(ledger, 4)
    assert noted in {entry["sha256"] for entry in reopen(ceiling=9.0).entries} and ledger.head_sha256 != noted


def test_a_deleted_ledger_or_head_is_refused(written: Path, reopen) -> None:
    ledger = reopen(ceiling=9.0)
    shutil.move(written / ledger_file.HEAD_FILE, written / "aside")
    with refusal("head that is written beside the privacy ledger of this site is missing"):
        reopen(ceiling=9.0)
    shutil.move(written / "aside", written / ledger_file.HEAD_FILE)
    (written / ledger_file.LEDGER_FILE).unlink()
    for broken in (
        lambda: reopen(ceiling=9.0),
        lambda: spend(ledger, 4),
        lambda: ledger.has("x"),
        lambda: summary(written),
    ):
        with refusal("is missing, though its head is there. Nothing more is trained"):
            broken()
    (written / ledger_file.HEAD_FILE).unlink()
    with refusal("deleted while a run was on"):
        spend(ledger, 4)


@pytest.mark.parametrize("file", [ledger_file.LEDGER_FILE, ledger_file.HEAD_FILE])
@pytest.mark.parametrize("content", [b"", b"{ cut", b"[1]", b"\xff\xfe"])
def test_a_damaged_file_is_refused(written: Path, reopen, file: str, content: bytes) -> None:
    (written / file).write_bytes(content)
    with refusal("is damaged"):
        reopen(ceiling=9.0)


def test_another_version_is_named(written: Path, reopen) -> None:
    edit(written, lambda content: content.update(schema_version=2))
    with refusal("schema version 2, and this version of JointDiff reads 1"):
        reopen(ceiling=9.0)


def test_the_file_has_the_fields_of_the_contract(written: Path) -> None:
    content = json.loads((written / ledger_file.LEDGER_FILE).read_text())
    assert {"schema_version", "unit", "adjacency", "delta", "epsilon", "entries", "head_sha256"} <= content.keys()
    assert content["epsilon"] == content["entries"][-1]["epsilon"] and content["unit"] == "image"


def test_a_summary_says_what_is_left(written: Path, reopen, tmp_path: Path) -> None:
    found = summary(written)
    assert found is not None and found["epsilon"] == reopen(ceiling=9.0).epsilon
    assert found["rounds_left"] == reopen(ceiling=9.0).rounds_left(1.5, 0.1, 10) > 5
    assert summary(tmp_path / "elsewhere") is None and not (tmp_path / "elsewhere").exists()


# The fingerprint of the data


def test_the_fingerprint_sees_contents_and_not_their_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    same = dataset_fingerprint(images)
    assert dataset_fingerprint(images[::-1]) == same == dataset_fingerprint(np.asfortranarray(images))
    others = [images[:-1], images.reshape(20, 2, 8, 1), images.astype(np.int16), np.concatenate([images, images[:1]])]
    changed = images.copy()
    changed[3, 1, 1, 0] ^= 1
    assert len({same, *map(dataset_fingerprint, (*others, changed))}) == 6
    wide = images.astype("<f4")
    assert dataset_fingerprint(wide) == dataset_fingerprint(wide.astype(">f4")) != same

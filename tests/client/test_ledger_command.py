from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.cli import main
from jointdiff.ledger import Ledger


@pytest.fixture
def site(tmp_path: Path) -> Path:
    ledger = Ledger.open(tmp_path, dataset="d" * 64, num_records=1000, unit="patient", delta=1e-5, ceiling=8.0)
    for number in (1, 2):
        ledger.spend(run="run-a", round=number, noise_multiplier=1.5, sample_rate=0.1, steps=10, key=f"a:{number}")
    return tmp_path


def test_the_ledger_is_printed_for_people(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--site", str(site)]) == 0
    lines = capsys.readouterr().out.splitlines()
    content = json.loads((site / "ledger.json").read_text())
    first = content["entries"][0]
    assert lines[1].split() == ["1", *first["time"][:19].split("T"), "run-a", "1", "1.5", "0.1", "10",
                                f"{first['epsilon']:.4f}", first["sha256"][:12]]  # fmt: skip
    assert f"Spent: epsilon {content['epsilon']:.4f} at delta 1e-05; protected is one patient of" in lines[4]
    left = Ledger.open(site, dataset="d" * 64, num_records=1000, unit="patient", delta=1e-5, ceiling=8.0)
    rounds = left.rounds_left(1.5, 0.1, 10)
    assert (
        lines[5] == f"Ceiling: epsilon 8. Left: {8 - content['epsilon']:.4f}, which is {rounds} rounds like the last."
    )
    assert lines[-1] == content["head_sha256"]


def test_json_holds_all(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--json", "--site", str(site)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("rounds_left") > 0 and found == json.loads((site / "ledger.json").read_text())


def test_a_ledger_without_ceiling_or_bound_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.open(tmp_path, dataset="d", num_records=10, delta=0.01, ceiling=None)
    assert main(["ledger", "--site", str(tmp_path)]) == 0
    assert "Spent: epsilon 0.0000" in capsys.readouterr().out
    ledger.spend(run="r", round=1, noise_multiplier=0.0, sample_rate=0.1, steps=10, key="k")
    assert main(["ledger", "--site", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Spent: epsilon infinite at delta 0.01" in out and "Ceiling: none." in out


def test_a_broken_chain_and_a_missing_ledger_end_non_zero(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site / "ledger.json"
    path.write_text(path.read_text().replace('"noise_multiplier": 1.5', '"noise_multiplier": 9.5', 1))
    assert main(["ledger", "--site", str(site)]) == 6
    error = capsys.readouterr().err
    assert "chain of hashes breaks at entry 1 of 2" in error and str(site) in error
    assert main(["ledger", "--site", str(tmp_path / "no")]) == 5
    assert "There is no privacy ledger" in capsys.readouterr().err and not (tmp_path / "no").exists()

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from client.cli import main
from client.dashboard import make_app
from jointdiff.ledger import Ledger

HOSTILE = '<img src=x onerror="alert(1)">&"\''
FAILURE = "2026-01-02T03:04:05+00:00 round 4 train failed\nTraceback (most recent call last):\n  File x\n"


@pytest.fixture
def site(fake_run: Callable[..., Path]) -> Path:
    folder = fake_run("run-a", num_rounds=1, num_items=4) / "sites" / "hospital-1"
    for number in (3, 4):
        path = folder / "state" / "run-a" / f"round-{number:04d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


@pytest.fixture
def client(site: Path) -> TestClient:
    return TestClient(make_app(site), base_url="http://localhost:8051")


def test_a_site_sees_its_rounds_and_galleries(client: TestClient, site: Path) -> None:
    found = client.get("/data.json").json()
    assert [(run["name"], run["last_round"], run["gallery"]["num_scans"]) for run in found["runs"]] == [("run-a", 4, 4)]
    page = client.get("/").text
    assert 'href="/explanations/run-a/index.html"' in page and "Phantoms" in page
    assert "differential privacy is off" in page and "tells of no failure" in page
    gallery = client.get("/explanations/run-a/index.html")
    assert gallery.status_code == 200 and "style-src 'unsafe-inline'" in gallery.headers["content-security-policy"]
    assert client.get("/explanations/run-a/0000-scan.png").headers["content-type"] == "image/png"
    assert client.get("/explanations/run-a/metrics.json").json()["real"] is False


def test_ledger_and_manifests_are_shown(client: TestClient, site: Path) -> None:
    ledger = Ledger.open(site, dataset="d", num_records=99, unit="patient", delta=1e-5, ceiling=8.0)
    for number in (1, 2):
        ledger.spend(run=HOSTILE, round=number, noise_multiplier=2.0, sample_rate=0.1, steps=9, key=f"key-{number}")
    manifest = site / "egress" / "run-a" / "round-0005.json"
    manifest.parent.mkdir(parents=True)
    reply = {"kind": "train", "num_bytes": 3_000_008, "tensors": [{"name": "w"}], "scalars": [{"name": "loss"}]}
    manifest.write_text(json.dumps({"replies": [reply, {"num_bytes": 40, "stopped": "an undeclared tensor: 'scan'"}]}))
    parts = client.get("/live").json()["parts"]
    assert f"ε {ledger.epsilon:.2f} of 8" in parts["tiles"] and "1e-05" in parts["tiles"] and "3.0 MB" in parts["tiles"]
    assert "patient" in parts["ledger"] and f"{ledger.epsilon:.2f}" in parts["ledger"]
    assert (
        "key-1" not in parts["ledger"] and ledger.head_sha256 not in parts["ledger"] and "<img" not in parts["ledger"]
    )
    found = client.get("/data.json").json()["runs"][0]
    expected = {"round": 5, "num_replies": 2, "num_parts": 2, "num_bytes": 3_000_048, "num_stopped": 1, "error": None}
    assert found["egress"] == [expected] and found["last_round"] == 5
    manifest.write_text("{ cut")
    assert "cannot be read" in client.get("/live").json()["parts"]["egress"]
    content = (site / "ledger.json").read_text()
    for broken in ("{ cut", content.replace('"steps": 9', '"steps": 1', 1)):
        (site / "ledger.json").write_text(broken)
        parts = client.get("/live").json()["parts"]
        assert "does not hold" in parts["ledger"] and "does not hold" in parts["tiles"] and "ε" not in parts["tiles"]
    (site / "ledger.json").unlink()
    assert "is missing, though" in client.get("/live").json()["parts"]["ledger"]


def test_a_ledger_without_bound_is_shown_as_such(client: TestClient, site: Path) -> None:
    ledger = Ledger.open(site, dataset="d", num_records=99, delta=1e-5, ceiling=None)
    ledger.spend(run="run-a", round=1, noise_multiplier=0.0, sample_rate=0.1, steps=9, key="k")
    parts = client.get("/live").json()["parts"]
    assert "ε ∞" in parts["tiles"] and "∞" in parts["ledger"]


def test_failures_come_from_the_site_s_own_log(client: TestClient, site: Path) -> None:
    tag = {"If-None-Match": client.get("/live").headers["etag"]}
    assert client.get("/live", headers=tag).status_code == 304
    (site / "site.log").write_text(FAILURE + f"MemoryError: {HOSTILE}\n\n")
    answer = client.get("/live", headers=tag)
    assert answer.status_code == 200
    found = client.get("/data.json").json()["failures"]
    assert found == [{"time": "2026-01-02T03:04:05+00:00", "round": 4, "kind": "train",
                      "reason": f"MemoryError: {HOSTILE}"}]  # fmt: skip
    assert "<img" not in "".join(answer.json()["parts"].values()) and "&lt;img" in answer.json()["parts"]["failures"]
    (site / "site.log").write_text("x" * 200_000 + "\n" + FAILURE + "ValueError: late\n")
    assert client.get("/data.json").json()["failures"][0]["reason"] == "ValueError: late"
    assert len(client.get("/data.json").json()["log"]) < 70_000


@pytest.mark.parametrize("path", [
    "/explanations/run-a/..%2f..%2fsite.log", "/explanations/..%2fstate/x.json", "/explanations/%2e%2e/secret.json",
    "/site.log", "/state/run-a/round-0004.safetensors", "/explanations/run-a/link.json", "/ledger.json",
    "/explanations/run-a/.hidden.json", "/explanations//etc/passwd",
])  # fmt: skip
def test_only_galleries_are_handed_out(client: TestClient, site: Path, path: str) -> None:
    for name in ("site.log", "secret.json", "ledger.json", "explanations/run-a/.hidden.json"):
        (site / name).write_text("{}")
    (site / "explanations" / "run-a" / "link.json").symlink_to(site / "secret.json")
    assert client.get(path).status_code == 404


def test_the_same_guard_stands_before_it(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/").status_code == 405
    headers = client.get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["cache-control"] == "no-store"


def test_an_empty_site_has_a_page(tmp_path: Path) -> None:
    page = TestClient(make_app(tmp_path), base_url="http://127.0.0.1").get("/")
    assert page.status_code == 200 and "None yet" in page.text


def test_the_command_serves_until_it_is_stopped(site: Path) -> None:
    command = [sys.executable, "-u", "-m", "client.cli", "dashboard", "--site", str(site), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = line.split()[4]
            assert "hospital-1" in urllib.request.urlopen(address, timeout=20).read().decode()
            port = address.rstrip("/").rpartition(":")[2]
            assert main(["dashboard", "--site", str(site), "--port", port]) == 5
        finally:
            os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 0 and "Traceback" not in process.stdout.read()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--site", str(tmp_path / "no"), "--port", "0"]) == 5
    error = capsys.readouterr().err
    assert error.startswith("error: There is no site's folder") and "--site" in error

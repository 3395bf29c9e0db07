from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from jointdiff.errors import RunError
from jointdiff.events import EventLog
from jointdiff.storage import run_locked
from jointdiff.views.gallery_assets import script_hash
from jointdiff.views.report import write_report
from server.dashboard import HOST, listen, make_app, serve

HOSTILE = '<img src=x onerror="alert(1)">&"\''


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return TestClient(make_app(tmp_path), base_url="http://127.0.0.1:8050")


def test_every_answer_carries_a_strict_policy(client: TestClient, fake_run: Callable[..., Path]) -> None:
    fake_run("one", num_rounds=2, galleries=False)
    for path in ("/", "/live", "/data.json", "/runs/one", "/runs/one/live", "/runs/one/data.json", "/static/live.js",
                 "/runs/none", "/nowhere"):  # fmt: skip
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'", path
        assert (policy["script-src"], policy["style-src"], policy["connect-src"]) == ("'self'",) * 3
        assert policy["img-src"] == "'self' data:" and policy["frame-ancestors"] == "'none'"
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_pages_need_no_inline_script_or_style(client: TestClient, fake_run: Callable[..., Path]) -> None:
    fake_run("one", num_rounds=2, galleries=False)
    for path in ("/", "/runs/one"):
        page = client.get(path).text
        assert " style=" not in page and "<style" not in page and page.count("<script") == 1
        assert '<script src="/static/live.js" defer></script>' in page
        assert "http://" not in page and "https://" not in page


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8050", "10.0.0.7"])
def test_a_foreign_name_for_this_machine_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 421 and "Runs" not in answer.text
    assert "content-security-policy" in answer.headers
    assert client.get("/", headers={"Host": "localhost:1234"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    for path in ("/", "/nowhere"):  # refused before anyone asks what it would do
        answer = client.request(method, path)
        assert answer.status_code == 405 and answer.headers["allow"] == "GET"


def test_there_is_no_self_description_to_find(client: TestClient) -> None:
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3


def test_hostile_names_and_reasons_are_text(client: TestClient, fake_run: Callable[..., Path]) -> None:
    folder = fake_run("one", num_rounds=1, hospitals=(HOSTILE, "b"), ended="", galleries=False)
    log = EventLog(folder / "events.jsonl")
    log.append("hospital_failed", round=1, hospital=HOSTILE, kind="train", reason="</li><script>alert(2)</script>")
    log.append("run_failed", reason=f"\udc80{HOSTILE}")
    for path in ("/", "/runs/one"):
        assert "<img" not in client.get(path).text and "alert(2)</script>" not in client.get(path).text
    parts = client.get("/runs/one/live").json()["parts"]
    assert "<img" not in "".join(parts.values()) and "<script" not in "".join(parts.values())
    assert "&lt;img src=x" in parts["rounds"] and "&lt;script&gt;" in parts["side"]
    assert client.get("/runs/one/data.json").json()["troubles"][0]["hospital"] == HOSTILE


@pytest.mark.parametrize("path", [
    "/runs/..%2f..%2fsecret/data.json", "/runs/../secret", "/runs/%2e%2e", "/runs/latest",
        "/runs/one/../../secret.json",
    "/runs/one/%2e%2e/%2e%2e/secret.json", "/runs/one/run.lock", "/runs/one/checkpoints/last.safetensors",
    "/runs/one/sites/..%2f..%2f..%2fsecret.json", "/static/..%2f..%2f..%2fsecret.json", "/static/%2e%2e%2fstyle.css",
    "/runs/one/sites/hospital-1/explanations/one/..%2f..%2fsite.log", "/runs/one//etc/passwd",
    "/runs/one/sites/hospital-1/site.log",
])  # fmt: skip
def test_no_path_leads_out(client: TestClient, fake_run: Callable[..., Path], tmp_path: Path, path: str) -> None:
    folder = fake_run("one", num_rounds=1, num_items=2)
    (tmp_path / "secret.json").write_text("secret")
    (folder / "checkpoints").mkdir()
    for name in ("run.lock", "checkpoints/last.safetensors", "sites/hospital-1/site.log"):
        (folder / name).write_text("secret")
    answer = client.get(path)
    assert answer.status_code == 404 and "secret\n" not in answer.text and answer.text != "secret"


def test_report_and_galleries_open_under_their_own_policy(client: TestClient, fake_run: Callable[..., Path]) -> None:
    folder = fake_run("one", num_rounds=2, num_items=2)
    assert 'href="/runs/one/report.html"' not in client.get("/runs/one").text
    write_report(folder)
    assert 'href="/runs/one/report.html"' in client.get("/runs/one").text
    gallery = "/runs/one/sites/hospital-1/explanations/one"
    assert f'href="{gallery}/index.html"' in client.get("/runs/one").text
    for path in ("/runs/one/report.html", f"{gallery}/index.html"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200 and "style-src 'unsafe-inline'" in policy and "default-src 'none'" in policy
        assert f"script-src '{script_hash()}';" in policy, "the gallery's own script, and no other"
    assert client.get(f"{gallery}/0000-scan.png").headers["content-type"] == "image/png"


def test_only_changes_are_sent(client: TestClient, fake_run: Callable[..., Path]) -> None:
    folder = fake_run("one", num_rounds=2, ended="", galleries=False)
    with run_locked(folder):
        first = client.get("/runs/one/live")
        tag = {"If-None-Match": first.headers["etag"]}
        assert first.json()["poll_s"] == 1.0
        again = client.get("/runs/one/live", headers=tag)
        assert again.status_code == 304 and not again.content
        with open(folder / "events.jsonl", "a") as file:
            file.write('{"event": "evaluated", "round": 9')  # half a line says nothing yet
        assert client.get("/runs/one/live", headers=tag).status_code == 304
        EventLog(folder / "events.jsonl").append("round_started", round=3, num_rounds=5, hospitals=["hospital-1"])
        third = client.get("/runs/one/live", headers=tag)
        assert third.status_code == 200 and "3/5" in third.json()["title"]
    ended = client.get("/runs/one/live").json()
    assert "interrupted" in ended["title"] and ended["poll_s"] > 1.0  # nobody holds the run any more


def test_broken_runs_have_a_page_and_hide_no_other(
    client: TestClient, fake_run: Callable[..., Path], tmp_path: Path
) -> None:
    fake_run("good", num_rounds=1, galleries=False)
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "events.jsonl").write_text('{"event": "run_started", "schema_version": 99}\n')
    (tmp_path / "runs" / "bare").mkdir()
    overview = client.get("/").text
    assert all(f'href="/runs/{name}"' in overview for name in ("good", "bad", "bare"))
    assert "schema_version 99" in client.get("/runs/bad").text
    assert "Nothing has been recorded yet" in client.get("/runs/bare").text
    states = {run["name"]: run["state"] for run in client.get("/data.json").json()["runs"]}
    assert states == {"good": "finished", "bad": "unknown", "bare": "empty"}


def test_a_home_without_runs_says_what_to_do(client: TestClient) -> None:
    assert "make simulate" in client.get("/").text


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(RunError, match=rf"port {port} .*--port {port + 1}"):
            serve(tmp_path, port)
    with pytest.raises(RunError, match="--port"):
        listen(70000)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The dashboard of `tmp_path`, served for real on a free port."""
    listener: socket.socket = listen(0)
    server = uvicorn.Server(uvicorn.Config(make_app(tmp_path), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://{HOST}:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of the system's chromium; what goes wrong in it fails the test."""
    import shutil

    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 800}, reduced_motion="reduce")
        wrong: list[str] = []
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}") or dialog.dismiss())
        yield opened
        browser.close()
    assert not [text for text in wrong if "ERR_CONNECTION_REFUSED" not in text]


@pytest.mark.browser
def test_a_page_follows_a_run_without_reload(
    address: str, page: Any, fake_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = fake_run("going", num_rounds=2, ended="", galleries=False)
    log = EventLog(folder / "events.jsonl")
    names = ["hospital-1", "hospital-2", "hospital-3"]
    write_more = threading.Event()

    def write() -> None:
        write_more.wait(60)
        log.append("round_started", round=3, num_rounds=5, hospitals=names)
        log.append("hospital_replied", round=3, hospital="hospital-1", kind="train", metrics={}, bytes_out=1)
        log.append("hospital_failed", round=3, hospital="hospital-2", kind="train", reason=f"no memory {HOSTILE}")
        log.append("evaluated", round=3, pooled={"auc": 0.777, "num_images": 6}, hospitals={})

    with run_locked(folder):
        page.goto(f"{address}/")
        page.get_by_role("link", name="going").focus()
        page.keyboard.press("Enter")  # reachable by keyboard alone
        page.wait_for_selector("#link[data-state=live]")
        assert page.locator("h1").inner_text().startswith("going")
        page.evaluate("window.sameDocument = true")
        page.locator("#rounds .scroll").focus()
        assert page.locator("td.failed").count() == 0
        thread = threading.Thread(target=write)
        thread.start()
        write_more.set()
        cell = page.locator("td.failed a")
        cell.wait_for(timeout=15000)
        page.locator("#tiles", has_text="0.777").wait_for(timeout=15000)
        thread.join()
        assert "3/5" in page.title()
        assert page.evaluate("document.activeElement.matches('#rounds .scroll')")  # focus has stayed where it was
        cell.focus()
        page.keyboard.press("Enter")
        reason = page.locator(":target")
        assert f"no memory {HOSTILE}" in reason.inner_text() and "hospital-2" in reason.inner_text()
        assert reason.evaluate("e => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.top < innerHeight }")
        assert "no memory" in page.locator("[role=status]").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        log.append("run_finished", duration_s=1.0)
        page.locator(".chip.finished").wait_for(timeout=15000)
        assert page.evaluate("window.sameDocument") is True


@pytest.mark.browser
def test_a_page_says_when_the_server_is_gone(page: Any, fake_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = fake_run("going", num_rounds=1, ended="", galleries=False)
    with run_locked(folder):
        listener = listen(0)
        server = uvicorn.Server(uvicorn.Config(make_app(tmp_path), log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        page.goto(f"http://{HOST}:{listener.getsockname()[1]}/runs/going")
        page.wait_for_selector("#link[data-state=live]")
        server.should_exit = True
        thread.join(10)
        listener.close()
        page.wait_for_selector("#link[data-state=lost]", timeout=15000)
        assert "no answer since" in page.locator("#link").inner_text()

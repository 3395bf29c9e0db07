"""The coordinator's dashboard: the runs of a home, live, on this machine only.

It reads what runs write and changes nothing, so it may start and stop at any time, also while a run is being written.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from jointdiff.errors import RunError
from jointdiff.views.live import files
from jointdiff.views.live.document import View, asset, to_json
from jointdiff.views.live.guard import FILE_POLICY, Guard, port_taken
from jointdiff.views.live.runs import Runs
from jointdiff.views.markup import Child, element

HOST = "127.0.0.1"  # never another: nobody logs in here


def make_app(home: Path) -> FastAPI:
    """Return the web application that shows the runs of a home.

    Args:
        home: The folder that holds runs/; it need not have any yet.
    """
    runs = Runs(home)
    app = FastAPI(title="JointDiff", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard)

    @app.exception_handler(RunError)
    def not_there(request: Request, error: RunError) -> Response:
        return PlainTextResponse(f"{error}\n", status_code=404)

    @app.get("/")
    def overview() -> Response:
        return _page(runs.overview(), "/live", [])

    @app.get("/live")
    def overview_live(request: Request) -> Response:
        return _changes(request, runs.overview())

    @app.get("/data.json")
    def overview_data() -> Response:
        return Response(to_json({"schema_version": 1, "runs": runs.summaries()}), media_type="application/json")

    @app.get("/runs/{name}")
    def run(name: str) -> Response:
        return _page(runs.view(name), f"/runs/{name}/live", [" / ", element("span", name)])

    @app.get("/runs/{name}/live")
    def run_live(request: Request, name: str) -> Response:
        return _changes(request, runs.view(name))

    @app.get("/runs/{name}/data.json")
    def run_data(name: str) -> Response:
        return Response(to_json(runs.data(name)), media_type="application/json")

    @app.get("/runs/{name}/{path:path}")
    def run_file(name: str, path: str) -> Response:
        return _file(files.of_a_run(runs.folder(name), path))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = asset(name)
        return Response(found[0], media_type=found[1]) if found else PlainTextResponse("not found\n", status_code=404)

    return app


def serve(home: Path, port: int, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        home: The folder that holds runs/.
        port: On 127.0.0.1; 0 takes a free one.
        ready: Called with the address as soon as it answers; None writes it to the log.

    Raises:
        RunError: The port is taken.
    """
    with listen(port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        config = uvicorn.Config(make_app(home), log_level="warning", access_log=False, ws="none", server_header=False)
        (ready or _log_address)(address)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return  # Ctrl-C is how a dashboard ends


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine's own address.

    Raises:
        RunError: The port is taken, or may not be used.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        listener.bind((HOST, port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        raise port_taken(port, error) from None
    return listener


def _page(view: View, live_url: str, trail: Child) -> Response:
    return HTMLResponse(view.to_html(live_url, trail=[element("a", "JointDiff", href="/"), trail]))


def _changes(request: Request, view: View) -> Response:
    """Return the parts of a page, or 304 where the one who asks has them already."""
    headers = {"ETag": view.etag}
    if request.headers.get("if-none-match") == view.etag:
        return Response(status_code=304, headers=headers)
    return Response(view.json, media_type="application/json", headers=headers)


def _file(path: Path | None) -> Response:
    if path is None:
        return PlainTextResponse("There is no such file, or it is not for this page.\n", status_code=404)
    kind = files.MEDIA_TYPES[path.suffix]
    return FileResponse(path, media_type=kind, headers={"Content-Security-Policy": FILE_POLICY})


def _log_address(address: str) -> None:
    # A warning, so that it is seen whatever the caller has set up: without the address the page cannot be opened.
    logging.getLogger("uvicorn.error").warning("Dashboard: %s (Ctrl-C ends it)", address)

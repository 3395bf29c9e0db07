"""The site's own dashboard: its rounds, its ledger, what left it, and its galleries, on this machine only.

It reads the site's folder and changes nothing. Nothing of it is seen by the server.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from jointdiff.errors import RunError
from jointdiff.views.live import files
from jointdiff.views.live.document import View, asset, panel, to_json
from jointdiff.views.live.guard import FILE_POLICY, Guard, port_taken
from jointdiff.views.live.ladder import ladder_part, read_ladder
from jointdiff.views.live.site import read_site
from jointdiff.views.live.site_page import site_view
from jointdiff.views.markup import element

HOST = "127.0.0.1"  # never another: galleries show scans, and nobody logs in here


def make_app(site_folder: Path) -> FastAPI:
    """Return the web application that shows one site.

    Args:
        site_folder: The site's own folder: state/, explanations/, site.log; any of them may still be missing.
    """
    folder = Path(os.path.abspath(site_folder))
    app = FastAPI(title="JointDiff", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard)

    @app.get("/")
    def site() -> Response:
        trail = [element("a", "JointDiff", href="/"), element("span", " / this site")]
        return HTMLResponse(_view(folder).to_html("/live", trail=trail))

    @app.get("/live")
    def site_live(request: Request) -> Response:
        view = _view(folder)
        headers = {"ETag": view.etag}
        if request.headers.get("if-none-match") == view.etag:
            return Response(status_code=304, headers=headers)
        return Response(view.json, media_type="application/json", headers=headers)

    @app.get("/data.json")
    def site_data() -> Response:
        found = {**read_site(folder), "ladder": read_ladder(folder)}
        return Response(to_json(found), media_type="application/json")

    @app.get("/explanations/{run}/{name}")
    def gallery(run: str, name: str) -> Response:
        path = files.of_a_gallery(folder / "explanations", Path(run), name)
        if path is None:
            return PlainTextResponse("There is no such file, or it is not for this page.\n", status_code=404)
        kind = files.MEDIA_TYPES[path.suffix]
        return FileResponse(path, media_type=kind, headers={"Content-Security-Policy": FILE_POLICY})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = asset(name)
        return Response(found[0], media_type=found[1]) if found else PlainTextResponse("not found\n", status_code=404)

    return app


def _view(folder: Path) -> View:
    """Return the site's page, with the table that says whether joining helps below the runs."""
    view = site_view(read_site(folder))
    parts = dict(view.parts)
    ladder = panel("Does joining help this site?", ladder_part(read_ladder(folder)), note="measured here; nothing left")
    order = [name for key in parts for name in ((key, "ladder") if key == "runs" else (key,))]
    return replace(view, parts={name: ladder if name == "ladder" else parts[name] for name in order})


def serve(site_folder: Path, port: int, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        site_folder: The site's own folder.
        port: On 127.0.0.1; 0 takes a free one.
        ready: Called with the address as soon as it answers; None writes it to the log.

    Raises:
        RunError: There is no such folder, or the port is taken.
    """
    if not Path(site_folder).is_dir():
        raise RunError(f"There is no site's folder at {Path(site_folder).absolute()}. Name it with --site.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
            listener.bind((HOST, port))
            listener.listen(64)
        except (OSError, OverflowError) as error:
            raise port_taken(port, error) from None
        config = uvicorn.Config(
            make_app(site_folder), log_level="warning", access_log=False, ws="none", server_header=False
        )  # fmt: skip
        (ready or _log_address)(f"http://{HOST}:{listener.getsockname()[1]}/")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return  # Ctrl-C is how a dashboard ends


def _log_address(address: str) -> None:
    # A warning, so that it is seen whatever the caller has set up: without the address the page cannot be opened.
    logging.getLogger("uvicorn.error").warning("Dashboard: %s (Ctrl-C ends it)", address)

"""The frame of every page that is watched: head, named parts that are replaced one by one, no inline script or style.

The parts are rendered here and escaped by `element`; live.js only puts them where they belong, so that it needs to
know nothing of what it shows.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass

from jointdiff.storage import plain
from jointdiff.views.format import is_number
from jointdiff.views.markup import Child, Html, element, join

ASSETS: dict[str, tuple[str, str, str]] = {  # name -> package, file, media type
    "style.css": ("jointdiff.views", "style.css", "text/css; charset=utf-8"),
    "live.css": ("jointdiff.views.live", "live.css", "text/css; charset=utf-8"),
    "live.js": ("jointdiff.views.live", "live.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("jointdiff.views.live", "icon.svg", "image/svg+xml"),
}
STATES = {
    "running": "running", "finished": "finished", "failed": "failed", "interrupted": "interrupted",
    "empty": "nothing yet", "unknown": "not readable",
}  # fmt: skip
FAST_S, SLOW_S = 1.0, 5.0  # pause between two looks: while something happens, and else


@dataclass(frozen=True)
class View:
    """What one page shows at one moment."""

    title: str
    parts: Mapping[str, Child]  # id -> content, in the page's order
    poll_s: float = FAST_S
    announcement: str = ""  # read out by a screen reader when it changes

    @functools.cached_property
    def json(self) -> bytes:
        """What live.js asks for."""
        parts = {name: join(content) for name, content in self.parts.items()}
        return to_json({"title": self.title, "poll_s": self.poll_s, "announcement": self.announcement, "parts": parts})

    @functools.cached_property
    def etag(self) -> str:
        """A name of this moment, quoted as HTTP wants it: the same as long as nothing has changed."""
        return f'"{hashlib.sha256(self.json).hexdigest()[:32]}"'

    def to_html(self, live_url: str, *, trail: Child = None) -> bytes:
        """Return the whole page as it is now; without script it shows this moment.

        Args:
            live_url: Where the page asks for what has changed.
            trail: What stands above the first part: where one is, and the way back.
        """
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", name="robots", content="noindex"),
            element("title", self.title),
            element("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
            [element("link", rel="stylesheet", href=f"/static/{name}") for name in ("style.css", "live.css")],
            element("script", src="/static/live.js", defer=True),
        )
        body = element(
            "body",
            element("a", "Skip to the content", href="#content", class_="skip"),
            element(
                "header",
                element("div", trail, class_="trail"),
                element("p", element("noscript", "Reload to see what has changed."), id="link", data_state="quiet"),
                class_="top",
            ),
            element("p", self.announcement, id="announcement", class_="unseen", role="status", aria_live="polite"),
            element("main", [element("div", part, id=name) for name, part in self.parts.items()], id="content",
                    tabindex="-1"),
            data_live=live_url,
        )  # fmt: skip
        return ("<!doctype html>\n" + element("html", head, body, lang="en") + "\n").encode()


def asset(name: str) -> tuple[bytes, str] | None:
    """Return the bytes and the media type of a style sheet, script or icon; None for any other name."""
    if name not in ASSETS:
        return None
    package, file, kind = ASSETS[name]
    return importlib.resources.files(package).joinpath(file).read_bytes(), kind


def to_json(value: object) -> bytes:
    """Return JSON in ASCII: half a surrogate pair, which an event can carry, has no UTF-8 form."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).encode("ascii")


def chip(state: str) -> Html:
    """Return a run's state as a small label; the dot is drawn by the style."""
    return element("span", STATES.get(state, state), class_=f"chip {state if state in STATES else 'unknown'}")


def progress(done: int, total: int, label: str) -> Html:
    """Return a bar that is filled to done / total."""
    width = 100 * min(max(done, 0), total) / total if total > 0 else 0
    return element(
        "svg", element("rect", width=100, height=4, class_="track"),
        element("rect", width=f"{width:.2f}", height=4, class_="fill"),
        viewBox="0 0 100 4", preserveAspectRatio="none", class_="progress", role="img", aria_label=label,
    )  # fmt: skip


def tiles(entries: list[tuple[str, Child, Child]]) -> Html:
    """Return name, value and note of the numbers that are looked at first."""
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value, element("small", note)))
            for name, value, note in entries
        ],
        class_="headline",
    )


def panel(title: str, *content: Child, note: str = "") -> Html:
    """Return a part of a page with its heading."""
    small = element("span", note, class_="soft") if note else None
    return element("section", element("h2", title, " " if small else None, small), *content, class_="panel")


def clock(time: object) -> Html:
    """Return hours, minutes and seconds (UTC) of an event's time."""
    text = str(time or "")
    return element("time", text[11:19] or "–", datetime=text or None)


def sparkline(values: list[float | None]) -> Html | None:
    """Return a small curve of shares from 0 to 1 without axes; None for less than two points."""
    known = [(index, value) for index, value in enumerate(values) if is_number(value) and value is not None]
    if len(known) < 2:
        return None
    low, high = min(value for _, value in known), max(value for _, value in known)
    middle, half = (low + high) / 2, max(high - low, 0.1) / 2
    steps = max(1, len(values) - 1)
    points = [
        f"{1 + 58 * index / steps:.1f} {2 + 12 * (0.5 + (middle - value) / (2 * half)):.1f}" for index, value in known
    ]
    path = element("path", d="M" + "L".join(points), class_="series", stroke="var(--s0)")
    return element("svg", path, viewBox="0 0 60 16", class_="spark", aria_hidden="true")

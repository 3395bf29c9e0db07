"""All runs of a home, looked at again and again: what has not changed is not read again."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jointdiff.errors import RunError
from jointdiff.storage import LATEST, is_locked, run_path
from jointdiff.views.live.document import View
from jointdiff.views.live.follow import Follower
from jointdiff.views.live.overview import compact, overview_view, unreadable
from jointdiff.views.live.run_page import broken_view, run_view
from jointdiff.views.live.snapshot import as_run, snapshot
from jointdiff.views.markup import Child, element
from jointdiff.views.run_data import RunData

_NUM_FOLLOWED = 8  # runs whose events stay in memory; of all others a summary
_STRANGE = "Its events are not as JointDiff writes them; the dashboard's own log says more."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Look:
    """One run as it was when its files had this state."""

    state: tuple[Any, ...]
    summary: dict[str, Any]
    found: dict[str, Any]  # the snapshot, {} where the run cannot be read
    run: RunData | None
    reason: str = ""  # why it cannot be read
    view: list[View] = field(default_factory=list)  # the page, once it was asked for


class Runs:
    """The runs of HOME/runs. Safe to ask from several threads."""

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.abspath(home))
        self._lock = threading.Lock()
        self._followers: OrderedDict[str, Follower] = OrderedDict()
        self._looks: OrderedDict[str, _Look] = OrderedDict()
        self._summaries: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def names(self) -> list[str]:
        """Return the names of the runs' folders."""
        try:
            entries = sorted(os.scandir(self.home / "runs"), key=lambda entry: entry.name)
        except OSError:
            return []
        return [entry.name for entry in entries if entry.name != LATEST and _is_run(self.home, entry)]

    def overview(self) -> View:
        """Return the page of all runs."""
        return overview_view(self.summaries(), str(self.home / "runs"))

    def summaries(self) -> list[dict[str, Any]]:
        """Return what the overview shows of every run."""
        with self._lock:
            names = self.names()
            for gone in set(self._summaries) - set(names):
                del self._summaries[gone]
            return [self._summary(name) for name in names]

    def view(self, name: str) -> View:
        """Return the page of one run.

        Raises:
            RunError: There is no such run.
        """
        look = self._locked_look(name)
        if not look.view:
            look.view.append(self._view(name, look))
        return look.view[0]

    def _view(self, name: str, look: _Look) -> View:
        if look.run is None:
            return broken_view(name, look.reason)
        try:
            return run_view(look.run, look.found, links=_links(name, look.run), galleries=galleries(name, look.run))
        except Exception:  # an event of a strange shape must not take the page away: say so instead
            _log.warning("The run %s cannot be shown.", name, exc_info=True)
            return broken_view(name, _STRANGE)

    def data(self, name: str) -> dict[str, Any]:
        """Return one run's snapshot; state and reason alone where it cannot be read.

        Raises:
            RunError: There is no such run.
        """
        look = self._locked_look(name)
        return look.found or {"run_name": name, "state": "unknown", "reason": look.reason}

    def folder(self, name: str) -> Path:
        """Return a run's folder.

        Raises:
            RunError: There is no such run, or the name is none.
        """
        folder = run_path(self.home, name)
        if not folder.is_dir():
            raise RunError(f"There is no run named '{name}' in {self.home / 'runs'}.")
        return folder

    def _summary(self, name: str) -> dict[str, Any]:
        state = self._state(name)
        known = self._summaries.get(name)
        if known is None or known[0] != state:
            look = self._look(name)
            self._summaries[name] = known = (look.state, look.summary)
        return known[1]

    def _locked_look(self, name: str) -> _Look:
        self.folder(name)
        with self._lock:
            return self._look(name)

    def _look(self, name: str) -> _Look:
        state = self._state(name)
        look = self._looks.get(name)
        if look is None or look.state != state:
            self._looks[name] = look = self._look_anew(name, state)
        for kept in (self._looks, self._followers):
            if name in kept:
                kept.move_to_end(name)
            while len(kept) > _NUM_FOLLOWED:
                kept.popitem(last=False)
        return look

    def _look_anew(self, name: str, state: tuple[Any, ...]) -> _Look:
        folder = run_path(self.home, name)
        follower = self._followers.setdefault(name, Follower(folder / "events.jsonl"))
        try:
            run = as_run(folder, follower.read())
            found = snapshot(run, written=state[0], num_damaged=follower.num_damaged)
            return _Look(state, compact(name, found), found, run)
        except RunError as error:
            reason = str(error)
        except Exception:  # one run of a strange shape must not hide all others
            _log.warning("The run %s cannot be read.", name, exc_info=True)
            reason = _STRANGE
        return _Look(state, unreadable(name, reason), {}, None, reason)

    def _state(self, name: str) -> tuple[Any, ...]:
        """Return what changes when there is something new to see."""
        folder = run_path(self.home, name)
        written = is_locked(folder)  # before the events are looked at: see `snapshot`
        try:
            status = os.stat(folder / "events.jsonl")
            file = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            file = (0, 0, 0)
        return (written, *file, (folder / "report.html").is_file())


def galleries(name: str, run: RunData) -> dict[str, str]:
    """Return the address of every hospital's gallery that lies in the run's own folder, as in a simulation."""
    found = {}
    for hospital in run.hospitals:
        site = run.site_folder(hospital)
        if site is None or site.parent != run.folder / "sites":
            continue
        if (site / "explanations" / name / "index.html").is_file():
            parts = ("runs", name, "sites", hospital, "explanations", name, "index.html")
            found[hospital] = "/" + "/".join(quote(part, safe="") for part in parts)
    return found


def _links(name: str, run: RunData) -> Child:
    links = [element("a", "All runs", href="/")]
    if (run.folder / "report.html").is_file():
        links.append(element("a", "Report", href=f"/runs/{quote(name, safe='')}/report.html"))
    links.append(element("a", "These numbers as JSON", href=f"/runs/{quote(name, safe='')}/data.json"))
    return links


def _is_run(home: Path, entry: os.DirEntry[str]) -> bool:
    try:
        run_path(home, entry.name)
        return entry.is_dir()
    except (RunError, OSError):
        return False

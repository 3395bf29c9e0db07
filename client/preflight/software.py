"""Which software is installed here."""

from __future__ import annotations

import sys

from client.preflight.facts import FIX, PASS, Facts, Line
from client.versions import FLOWER_BELOW, FLOWER_FROM, flower_fits, versions

_OLDEST_PYTHON = (3, 11)


def installed(_facts: Facts) -> Line:
    """Python, torch and Flower are there, in versions that work together."""
    found = versions()
    text = f"Python {found['python']}, torch {found['torch']}, flwr {found['flwr']}"
    if sys.version_info < _OLDEST_PYTHON:
        return Line(FIX, text, "Python 3.11 or newer is needed: make setup PYTHON=python3.11")
    if not flower_fits(found["flwr"]):
        (low, a), (high, b) = FLOWER_FROM, FLOWER_BELOW
        return Line(FIX, text, f"pip install 'flwr[simulation]>={low}.{a},<{high}.{b}'")
    return Line(PASS, text)


def code(_facts: Facts) -> Line:
    """Version and hash of JointDiff; they must be those of the server, which a site without a run cannot ask."""
    found = versions()
    return Line(PASS, f"{found['jointdiff']}, code {found['code_hash'][:12]}: compare with `jointdiff-server status`")

"""The frame of a gallery's pages, with style and script in themselves: they open from a folder, without a network.

The policy allows the one script of this package, by its hash: a hostile text, should it ever slip through as markup,
could not run. This module imports no torch, so that a dashboard can ask it for the hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources

from jointdiff.views.markup import Child, Html, page

SCRIPT = "gallery.js"


@functools.cache
def asset(name: str) -> str:
    """Return the text of a style sheet or script of this package."""
    return importlib.resources.files("jointdiff.views").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def script_hash() -> str:
    """Return the hash of the script as a content security policy names it.

    A server that hands out galleries adds `script-src '<hash>'` to its own policy, else they show as plain lists.
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(asset(SCRIPT).encode()).digest()).decode()


def document(title: str, *body: Child, style: str = "") -> Html:
    """Return a whole page.

    Args:
        style: CSS on top of the style sheets.
    """
    policy = (
        f"default-src 'none'; script-src '{script_hash()}'; img-src 'self' file:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    return page(title, *body, style=f"{asset('gallery.css')}\n{style}", policy=policy)

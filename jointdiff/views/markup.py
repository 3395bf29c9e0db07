"""HTML that cannot forget to escape: text becomes markup only through `element`, which escapes every plain string.

A hospital's name, a reason for a refusal, a class name: all of them come from someone else.
"""

from __future__ import annotations

import functools
import html
import importlib.resources
from collections.abc import Iterable

_VOID = frozenset({"br", "hr", "img", "meta", "col", "link"})
# No script, no network, no form: even if a hostile text slipped through, the page could not act on it.
POLICY = (
    "default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


class Html(str):
    """Markup that is already escaped. Made by this module only; a plain `str` is text."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def element(tag: str, *children: Child, **attributes: object) -> Html:
    """Return <tag attributes>children</tag>.

    Args:
        children: Text (escaped), `Html` (as it is), numbers, nested iterables; None is left out.
        attributes: `class_` is class, `data_x` is data-x, `stroke_width` is stroke-width; None and False are left
            out, True stands alone.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    opening = f"<{tag}{_attributes(attributes)}>"
    if tag in _VOID:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Return nested children as one piece of markup, every plain string escaped."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        # Half a surrogate pair, which JSON can carry, has no UTF-8 form: it must not stop a page.
        return Html(html.escape(children).encode("utf-8", "replace").decode("utf-8"))
    if isinstance(children, int | float):
        return Html(children)
    return Html("".join(join(child) for child in children))


def _attributes(attributes: dict[str, object]) -> str:
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{join(str(value))}"')
    return "".join(parts)


def headline(tiles: Iterable[tuple[Child, Child, Child]]) -> Html:
    """Return the large numbers on top of a page: name, value, and a note below each."""
    rows = [element("div", element("dt", name), element("dd", value, element("small", note)))
            for name, value, note in tiles]  # fmt: skip
    return element("dl", rows, class_="headline")


def table(
    header: Iterable[Child], rows: Iterable[Iterable[Child]], *, caption: str = "", numeric_from: int = 1
) -> Html:
    """Return a table that scrolls sideways on a narrow screen instead of breaking the page.

    Args:
        header: Names of the columns.
        rows: Cells; the first of each row is its heading.
        numeric_from: Columns from this one on are set flush right, with figures of equal width.
    """

    def kind(column: int) -> str | None:
        return "num" if column >= numeric_from else None

    head = element("tr", [element("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(header)])
    body = [
        element(
            "tr",
            [
                element("th", cell, scope="row") if i == 0 else element("td", cell, class_=kind(i))
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    # The caption stands outside, so that it wraps where the table has to scroll.
    words = element("p", caption, class_="caption") if caption else None
    return element("div", words, scrolling(element("table", element("thead", head), element("tbody", body))))


def scrolling(wide: Html, *, class_: str = "") -> Html:
    """Return a region that scrolls sideways; tabindex makes it reachable by keyboard."""
    return element("div", wide, class_=f"scroll {class_}".strip(), tabindex="0")


def page(title: str, *body: Child, style: str = "", policy: str = POLICY) -> Html:
    """Return a whole document: no external resource, light and dark, narrow and printed.

    Args:
        style: CSS after the style sheet of all pages.
        policy: Content security policy.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="robots", content="noindex"),
        element("title", title),
        element("style", Html("\n".join(filter(None, (_style(), style))))),
    )
    return Html("<!doctype html>\n" + element("html", head, element("body", element("main", *body)), lang="en") + "\n")


@functools.cache
def _style() -> str:
    return importlib.resources.files("jointdiff.views").joinpath("style.css").read_text(encoding="utf-8")


_ORIGINS: dict[bool | None, tuple[str, str, str]] = {
    None: ("Origin not recorded", "The run does not say whether its images are phantoms or scans.", "unknown"),
    True: ("Real scans", "Images of people, from a public data set or the user's own files.", "real"),
    False: ("Phantoms", "Synthetic images, drawn by a program. No patient, no scan.", "phantom"),
}


def banner(*, real: bool | None, where: str = "") -> Html:
    """Return the line that opens every page: what the images are, and what the page is not for.

    Args:
        real: True: scans of people; False: phantoms, drawn by a program; None: not recorded.
        where: More about the data, e.g. the name of the set.
    """
    kind, text, style = _ORIGINS[real]
    return element(
        "p",
        element("strong", kind),
        f" {text}" + (f" {where}" if where else ""),
        element("span", "Research use, no medical device.", class_="research"),
        class_=f"banner {style}",
    )


def facts(pairs: Iterable[tuple[Child, Child]]) -> Html:
    """Return label and value pairs as a definition list."""
    return element(
        "dl", [element("div", element("dt", label), element("dd", value)) for label, value in pairs], class_="facts"
    )

"""The page that shows a site what the model will see of its scans. It stays at the site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jointdiff.data.base import MULTI_LABEL, UNKNOWN
from jointdiff.data.checks import Finding, class_rows, findings
from jointdiff.data.fitting import resize, to_channels, to_uint8
from jointdiff.data.site_data import LoadedSite
from jointdiff.storage import write_atomic
from jointdiff.views.format import number
from jointdiff.views.images import enlarge, grid, inline_image, png_bytes
from jointdiff.views.markup import Html, banner, element, facts, headline, page, table

SHOWN = 8  # scans per class
_CELL = 112  # pixels per side of a scan on the page, at least
_PAPER = 255


def write_preview(folder: Path, site: LoadedSite, *, show_names: bool = False) -> Path:
    """Write index.html, readable by its owner alone: it shows scans. The page carries its pictures and opens offline.

    Args:
        folder: Made if needed.
        show_names: Whether the page may name files.

    Returns:
        The absolute path of the page.
    """
    return write_atomic(folder / "index.html", render_preview(site, show_names=show_names), private=True)


def render_preview(site: LoadedSite, *, show_names: bool = False) -> Html:
    """Return the whole page."""
    info, source = site.data.info, site.source
    title = "What the model will see"
    found = findings(site, show_names=show_names)
    head, rows = class_rows(site)
    return page(
        title,
        banner(real=info.real),
        element("h1", title),
        element("p", "Some scans of every class, as this site's files show them and as they are fitted to the model. "
                "The page stays at this site.", class_="lead"),
        _headline(site, found),
        facts([
            ("Kind of data", source.kind),
            ("Where", str(source.path or "drawn by a program")),
            ("The model sees", f"{info.image_size} x {info.image_size} pixels, {_channels(info.channels)}"),
            ("Aspect", source.aspect),
            *([("Window", str(source.window))] if source.kind == "dicom" else []),
            ("Patients", "known" if site.knows_patients else "not known"),
        ]),
        element("h2", "Classes"),
        table(head, rows),
        element("h2", "What was noticed"),
        _list(found),
        element("h2", "Scans"),
        element("p", "Above: as read. Below: as the model sees them.", class_="note"),
        [_strip(site, name, rows, show_names) for name, rows in groups(site)],
    )  # fmt: skip


def groups(site: LoadedSite) -> list[tuple[str, np.ndarray]]:
    """Return the rows of every class, of scans without a finding (multi-label), and of scans without a label."""
    info = site.data.info
    labels = np.concatenate([images.labels for _, images, _ in site.parts()])
    if info.task == MULTI_LABEL:
        known = (labels != UNKNOWN).all(axis=1)
        found = [(name, labels[:, k] == 1) for k, name in enumerate(info.class_names)]
        found.append(("no finding", known & (labels == 0).all(axis=1)))
    else:
        known = labels != UNKNOWN
        found = [(name, labels == k) for k, name in enumerate(info.class_names)]
    return [(name, np.flatnonzero(chosen)) for name, chosen in (*found, ("without a label", ~known))]


def strip(site: LoadedSite, rows: Sequence[int]) -> np.ndarray:
    """Return scans side by side, uint8 [H, W, 3]: as read above, as fitted below."""
    size = site.data.info.image_size
    factor = max(1, _CELL // size)
    cell = size * factor
    fitted = [enlarge(to_channels(fitted_image(site, row), 3), factor) for row in rows]
    return grid([*(_thumbnail(site.read(row), cell) for row in rows), *fitted], columns=len(rows), gap=4)


def fitted_image(site: LoadedSite, row: int) -> np.ndarray:
    """Return the i-th image as the model sees it, uint8 [S, S, C]."""
    for _, images, rows in site.parts():
        if rows.start <= row < rows.stop:
            return np.asarray(images.images[row - rows.start])
    raise IndexError(row)


def _thumbnail(picture: np.ndarray, cell: int) -> np.ndarray:
    """Return a picture of any size inside a white square, its aspect kept."""
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    small = to_channels(picture, 3)
    if scale >= 1:
        small = enlarge(small, int(scale))
    else:
        small = to_uint8(resize(small, max(1, round(height * scale)), max(1, round(width * scale))))
    square = np.full((cell, cell, 3), _PAPER, dtype=np.uint8)
    top, left = (cell - small.shape[0]) // 2, (cell - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def _strip(site: LoadedSite, name: str, rows: np.ndarray, show_names: bool) -> Html:
    if not len(rows):
        return element("section", element("h3", name), element("p", "None here.", class_="note"))
    chosen = rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)].tolist()
    sizes = ", ".join(f"{site.facts['width'][row]} x {site.facts['height'][row]}" for row in chosen)
    names = element("p", ", ".join(site.names[row] for row in chosen), class_="note") if show_names else None
    return element(
        "section",
        element("h3", name, " ", element("span", f"{len(chosen)} of {len(rows)}", class_="soft")),
        inline_image(png_bytes(strip(site, chosen)), f"{len(chosen)} scans of {name}: as read, and as fitted"),
        element("p", f"Width x height in the files: {sizes}.", class_="note"),
        names,
    )


def _headline(site: LoadedSite, found: Sequence[Finding]) -> Html:
    data = site.data
    to_mend = sum(finding.severity == "error" for finding in found)
    warnings = sum(finding.severity == "warning" for finding in found)
    return headline([
        ("Images", number(len(site.facts)), "that are used"),
        ("Training", number(len(data.train)), f"{data.train.num_labelled} with a label"),
        ("Test", number(len(data.test)), "all with a label"),
        ("To mend", number(to_mend), f"and {warnings} warnings"),
    ])  # fmt: skip


def _list(found: Sequence[Finding]) -> Html:
    style = {"error": "bad", "warning": "bad"}
    return element("ul", [
        element("li", element("span", finding.severity, class_=style.get(finding.severity, "soft")), f" {finding.text}",
                f" {finding.advice}" if finding.advice else None)
        for finding in found
    ])  # fmt: skip


def _channels(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"

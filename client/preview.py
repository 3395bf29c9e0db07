"""`jointdiff-client preview`: what the model will see of a site's data, as a page and as lines, for the site alone."""

from __future__ import annotations

from pathlib import Path

from client.site_config import SiteConfig
from jointdiff.data.base import DatasetInfo
from jointdiff.data.checks import class_rows, findings
from jointdiff.data.scan_file import FilesError
from jointdiff.data.site_data import LoadedSite, Progress, open_site
from jointdiff.data.site_source import SiteSource
from jointdiff.errors import ConfigError, DataError
from jointdiff.views.preview_page import write_preview


def look(
    site: SiteConfig | SiteSource,
    wanted: DatasetInfo,
    cache: Path,
    *,
    show_names: bool = False,
    progress: Progress | None = None,
) -> LoadedSite:
    """Load a site's data for looking at them.

    Args:
        site: The site's configuration, or its section `data`.
        wanted: What the federation says.
        cache: Folder of fitted scans.
        show_names: Whether an error may name files that are missing or damaged.

    Raises:
        ConfigError: The configuration names no data, or does not fit the federation.
        DataError: As `load_site`.
    """
    source = site.data if isinstance(site, SiteConfig) else site
    if source is None:
        assert isinstance(site, SiteConfig)
        raise ConfigError(f"{site.path} has no section `data`: there is nothing to show.")
    try:
        return open_site(source, wanted, cache=cache, progress=progress)
    except FilesError as error:
        if not (show_names and error.files):
            raise
        raise DataError("\n  ".join([str(error), *error.files])) from None


def preview(
    site: SiteConfig | SiteSource,
    wanted: DatasetInfo,
    folder: Path,
    *,
    show_names: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the page that shows some scans of every class as read and as fitted, the class table and the findings.

    Args:
        folder: Of the page. A bare section `data` gets its cache there too; a site has one in its own folder.

    Returns:
        The absolute path of index.html.

    Raises:
        ConfigError, DataError: As `look`.
    """
    cache = site.cache if isinstance(site, SiteConfig) else folder / "data-cache"
    return write_preview(folder, look(site, wanted, cache, show_names=show_names, progress=progress),
                         show_names=show_names)  # fmt: skip


def lines(site: LoadedSite, *, show_names: bool = False) -> list[str]:
    """Return the class table and the findings for a terminal."""
    head, rows = class_rows(site)
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    told = []
    for name, *counts in cells:
        columns = [count.rjust(width) for count, width in zip(counts, widths[1:], strict=True)]
        told.append("  ".join([name.ljust(widths[0]), *columns]))
    return [*told, "", *map(str, findings(site, show_names=show_names))]

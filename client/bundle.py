"""What a site thinks of Flower's app bundle (FAB): settings may come in it, code may not.

Flower unpacks the bundle of every run at every site and puts its folder first on Python's path, so a bundle with a
package `client` would run in place of the installed one, before any check of ours. Flower has no option against it:
`clientapp_process.py` stands in for its `flwr-clientapp` and looks first.
"""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import PurePosixPath

from jointdiff.errors import RefusedError

CLIENT_APP = "client.app:app"
_HARMLESS = frozenset({".toml", ".md", ".yaml", ".yml", ".json", ".txt", ""})
_INFO = ".info"  # Flower's own list of the files and their hashes
_MAX_BYTES = 1_000_000  # of pyproject.toml, unpacked


def check_bundle(content: bytes) -> None:
    """Refuse a bundle that holds anything but settings and texts, or that names another app than the installed one.

    Args:
        content: The bundle, a zip file.

    Raises:
        RefusedError: It does, or cannot be read. The text may travel.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            files = [PurePosixPath(entry.filename) for entry in bundle.infolist() if not entry.is_dir()]
            with bundle.open("pyproject.toml") as file:
                settings = tomllib.loads(file.read(_MAX_BYTES).decode("utf-8"))
        named = settings["tool"]["flwr"]["app"]["components"]["clientapp"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError, OSError) as error:
        raise RefusedError(
            "The bundle of this run cannot be read, or does not name its ClientApp. The coordinator submits the run "
            "again with jointdiff-server run."
        ) from error
    code = sum(file.suffix.lower() not in _HARMLESS for file in files if file.parts[0] != _INFO)
    if code:
        raise RefusedError(
            f"The bundle of this run holds {code} file(s) that are no settings, such as Python code. This site runs "
            "the code that it has installed and no other: the coordinator takes them out of the app's folder."
        )
    if named != CLIENT_APP:
        raise RefusedError("The bundle of this run names another ClientApp than the one that this site has installed.")

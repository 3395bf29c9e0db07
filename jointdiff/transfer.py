"""What the instructions say of a message's tensors: the codecs of both ways with their versions, and what is left out.

    {"download": {"codec": "int8", "version": 1}, "upload": {"codec": "top-k:0.05", "version": 1},
     "without": ["decoder"]}

A message of whole models in float32 says nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jointdiff import codecs
from jointdiff.codecs import Codec
from jointdiff.config import RunConfig
from jointdiff.errors import RefusedError
from jointdiff.sharing import LEFT_OUT

_FP32 = Codec(codecs.PLAIN)


@dataclass(frozen=True)
class Transfer:
    """How tensors travel with one question and with its answer."""

    download: Codec = _FP32
    upload: Codec = _FP32
    without: tuple[str, ...] = ()  # of sharing.LEFT_OUT: parts of the model that the site must hold, or does not need

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into the instructions; {} where tensors travel whole and as they are."""
        if self == Transfer():
            return {}
        ways = {"download": self.download, "upload": self.upload}
        found: dict[str, Any] = {
            way: {"codec": codec.text, "version": codecs.known()[codec.name]} for way, codec in ways.items()
        }
        return found | {"without": list(self.without)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any], run: RunConfig, *, answers: bool) -> Transfer:
        """Read what instructions say, and hold it against the run's configuration.

        Args:
            said: Not trusted.
            run: Names the codecs that were agreed on.
            answers: Whether the question is one whose answer `upload` encodes.

        Raises:
            RefusedError: This side does not know a codec or its version, or instructions and configuration differ.
        """
        if not said:
            found = cls()
        else:
            without = said.get("without", [])
            if not isinstance(without, list) or not all(part in LEFT_OUT for part in without):
                raise RefusedError("The instructions leave out a part of the model that this site does not know.")
            found = cls(_known("download", said), _known("upload", said), tuple(without))
        if found.upload != (codecs.parse(run.upload) if answers else _FP32):
            raise RefusedError(
                f"The run's configuration says upload={run.upload}, the instructions of this question something else."
            )
        return found


def _known(way: str, said: Mapping[str, Any]) -> Codec:
    entry = said.get(way)
    named, version = (entry.get("codec"), entry.get("version")) if isinstance(entry, Mapping) else (None, None)
    try:
        codec = codecs.parse(named if isinstance(named, str) else "")
    except ValueError:
        codec = None
    if codec is None or version != codecs.known()[codec.name]:
        known = ", ".join(f"{name} version {number}" for name, number in codecs.known().items())
        what = f"{named} version {version}" if _plain(named) and _plain(version) else "one without a plain name"
        raise RefusedError(
            f"The server asks for a codec that this site does not know ({way}: {what}). It knows {known}. Install the "
            "same version of JointDiff on both sides, or take another codec."
        )
    return codec


def _plain(value: Any) -> bool:
    """Tell whether something of the server's may be said back to it: a short word or a number."""
    return isinstance(value, str | int) and len(str(value)) <= 20 and str(value).replace("-", "").isalnum()

"""How the server's tensors go down and the hospitals' come up: codecs of both ways, and parts that are left out.

The server's own weights stay in float32. Hospitals start from what they decode, so their changes are measured against
that (the reference), here and at the sites bit for bit; what the download codec lost is put back after merging. A
reply is decoded as it is spooled: every check and every strategy sees plain weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jointdiff import codec_wire, codecs, head_codec
from jointdiff.codecs import Codec, Tensors
from jointdiff.config import Config
from jointdiff.sharing import LACKS, Sharing, is_left_out
from jointdiff.transfer import Transfer
from server.slices import slices

_PLAIN = Codec(codecs.PLAIN)


@dataclass(frozen=True)
class Sent:
    """What goes down with one question, and how the answers are read."""

    arrays: Mapping[str, np.ndarray]
    transfer: Transfer = field(default_factory=Transfer)
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)  # what answers are measured against
    decode: Callable[[Mapping[str, np.ndarray]], Tensors] | None = None  # of an answer; may raise ValueError


class Exchange:
    """The exchange of one run's models."""

    def __init__(self, config: Config) -> None:
        self._sharing = Sharing.of(config)
        self._download = codecs.parse(config.run.download)
        self._upload = codecs.parse(config.run.upload)
        self._some_lack = True  # a hospital may not hold what could be left out: nobody has been asked yet

    def for_training(self, number: int, weights: Mapping[str, np.ndarray]) -> Sent:
        """Return the weights as they go down in a round."""
        without = self._sharing.without(decoder=self._some_lack or self._sharing.opens(number), body=self._some_lack)
        due = {name: weights[name] for name in self._sharing.up(weights, number)}
        reference = codec_wire.round_trip(self._download, due)  # also of what was sent in a round before
        decode = None if self._upload.plain else lambda packed: self._weights_of(packed, reference)
        transfer = Transfer(self._download, self._upload, tuple(without))
        return Sent(self._packed(weights, without), transfer, reference, decode)

    def for_reading(self, weights: Mapping[str, np.ndarray]) -> Sent:
        """Return weights for a question about features or predictions: their decoder is not needed."""
        without = self._sharing.without(decoder=False, body=self._some_lack)
        return Sent(self._packed(weights, without), Transfer(self._download, _PLAIN, tuple(without)))

    def for_head(self, weights: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> Sent:
        """Return weights for the question about the head's sums, whose names and shapes `like` gives."""
        sent = self.for_reading(weights)
        transfer = replace(sent.transfer, upload=self._upload)
        decode = None if self._upload.plain else lambda packed: head_codec.unpack(packed, like)
        return Sent(sent.arrays, transfer, decode=decode)

    def note(self, lost: Mapping[str, str]) -> None:
        """Take in why hospitals gave no answer to a training question: some may lack what was left out."""
        self._some_lack = any(reason.startswith(LACKS) for reason in lost.values())

    def merged(
        self, weights: Mapping[str, np.ndarray], merged: Tensors, reference: Mapping[str, np.ndarray]
    ) -> Tensors:
        """Return the next weights: the old ones plus what merging changed against the reference.

        Args:
            weights: Of the server, in float32.
            merged: From the strategy, of the reference's names; overwritten.
            reference: What the hospitals' changes were measured against.
        """
        if not self._download.plain:
            for name, start, stop in slices(reference, side_by_side=3):
                new = merged[name].reshape(-1)[start:stop]
                old, got = (np.ravel(part[name])[start:stop] for part in (weights, reference))
                new[:] = new.astype(np.float64) + (old.astype(np.float64) - got)
        return {name: merged.get(name, old) for name, old in weights.items()}

    def _packed(self, weights: Mapping[str, np.ndarray], without: list[str]) -> Tensors:
        chosen = {name: array for name, array in weights.items() if not is_left_out(name, without)}
        return codec_wire.pack(self._download, chosen)

    def _weights_of(self, packed: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Tensors:
        """Return a hospital's weights from its encoded change.

        Raises:
            ValueError: This is no encoded change of such weights; says why.
        """
        weights = codec_wire.unpack(self._upload, packed, codecs.layout_of(reference))
        for name, change in weights.items():
            change += reference[name]
        return weights

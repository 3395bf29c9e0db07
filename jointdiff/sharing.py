"""Which tensors travel in which round: all; or the decoder every K-th round only. Pure.

What a private run freezes never goes up, nor do heads where hospitals have their own (`personal=head`).

The classifier needs the encoder alone, so the decoder may be averaged less often. With decoder-every:K rounds come in
periods of K. The merged decoder goes down in a period's first round, each hospital trains its own through the period,
and its change goes up in the last one (or in the last round of the run). Questions about features and predictions
carry no decoder then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jointdiff.aggregation_rules import has_own_head

if TYPE_CHECKING:
    from jointdiff.config import Config

_DECODER = ("unet.up.", "unet.norm_out.", "unet.conv_out.")
_BODY = "unet."
_HEAD = "head."
ENCODER, HEAD, DECODER = PARTS = ("encoder", "head", "decoder")  # of the network; what is neither head nor decoder
LEFT_OUT = ("decoder", "body")  # what a message may come without
LACKS = "This site does not hold the part of the model that was left out of the message"  # how a refusal begins


def is_decoder(name: str) -> bool:
    """Tell whether a tensor serves the denoiser alone."""
    return name.startswith(_DECODER)


def part_of(name: str) -> str:
    """Return the part of the network that a tensor belongs to, one of PARTS.

    >>> [part_of(name) for name in ("unet.down.0.conv.weight", "unet.up.0.conv.weight", "head.linear.bias")]
    ['encoder', 'decoder', 'head']
    """
    if is_decoder(name):
        return DECODER
    return HEAD if name.startswith(_HEAD) else ENCODER


@dataclass(frozen=True)
class Sharing:
    """What the key `share` and the training preset mean for one run."""

    every: int  # rounds of a period; 1 = all tensors travel in every round
    num_rounds: int
    frozen_body: bool
    own_head: bool = False  # hospitals keep heads of their own

    @classmethod
    def of(cls, config: Config) -> Sharing:
        """Return the sharing of a run."""
        everybody = config.run.participation == 1 and not config.run.secure_aggregation
        frozen = config.private and config.training.body_lr_scale == 0 and everybody
        return cls(period(config.run.share), config.run.num_rounds, frozen, has_own_head(config.run))

    @property
    def partial(self) -> bool:
        """Whether hospitals keep decoders of their own between rounds."""
        return self.every > 1

    def period_of(self, round_number: int) -> int:
        """Return the 0-based period of a 1-based round.

        >>> [Sharing(3, 9, False).period_of(number) for number in (1, 3, 4)]
        [0, 0, 1]
        """
        return (round_number - 1) // self.every

    def opens(self, round_number: int) -> bool:
        """Tell whether a round is the first of its period: the decoder goes down."""
        return (round_number - 1) % self.every == 0

    def closes(self, round_number: int) -> bool:
        """Tell whether a round is the last of its period, or of the run: the decoder's change goes up.

        >>> [number for number in range(1, 9) if Sharing(3, 8, False).closes(number)]
        [3, 6, 8]
        """
        return round_number % self.every == 0 or round_number >= self.num_rounds

    def up(self, names: Iterable[str], round_number: int) -> list[str]:
        """Return which of a model's tensors a hospital sends after training in a round, in order."""
        return [
            name
            for name in names
            if not (self.frozen_body and name.startswith(_BODY))
            and not (self.own_head and part_of(name) == HEAD)
            and (self.closes(round_number) or not is_decoder(name))
        ]

    def without(self, *, decoder: bool, body: bool) -> list[str]:
        """Return what the server leaves out of a message: a list of `decoder` and `body`, for the instructions.

        Args:
            decoder: Whether a partly shared decoder goes along; without partial sharing it always does.
            body: Whether a frozen body goes along; one that is trained always does.
        """
        return [LEFT_OUT[0]] * (self.partial and not decoder) + [LEFT_OUT[1]] * (self.frozen_body and not body)

    @property
    def holds(self) -> bool:
        """Whether hospitals keep tensors for rounds in which these do not come."""
        return self.partial or self.frozen_body

    def held(self, name: str) -> bool:
        """Tell whether a hospital keeps this tensor for rounds in which it does not come."""
        return (self.partial and is_decoder(name)) or (self.frozen_body and name.startswith(_BODY))


def is_left_out(name: str, without: Iterable[str]) -> bool:
    """Tell whether a tensor belongs to what a message leaves out.

    >>> is_left_out("unet.up.0.conv", ["decoder"]), is_left_out("unet.down.0", ["decoder"]), is_left_out("head.x", [])
    (True, False, False)
    """
    return ("decoder" in without and is_decoder(name)) or ("body" in without and name.startswith(_BODY))


def period(share: str) -> int:
    """Return the K of `share`: 1 for `all`, K for `decoder-every:K`.

    Raises:
        ValueError: Anything else; says what is known.

    >>> period("all"), period("decoder-every:4")
    (1, 4)
    """
    name, _, every = share.partition(":")
    if share == "all":
        return 1
    if name != "decoder-every" or not (every.isascii() and every.isdigit()) or not 2 <= int(every[:7]) <= 1000:
        raise ValueError("known are all and decoder-every:K with K from 2 to 1000, such as decoder-every:4")
    return int(every)

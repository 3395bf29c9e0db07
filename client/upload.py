"""What leaves after training: weights as they are, or their change, encoded, with error feedback.

What encoding loses is added to the next round's change, so that nothing is lost for good (Seide et al., "1-Bit
Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019):

    x = (w - w_sent) + e;  the hospital sends C(x);  e <- x - decoded(C(x))

In private runs too: every w comes out of noised steps, w_sent and e are computed from such alone, so C(x) and its error
are functions of what the ledger has paid for (post-processing). A residual of gradients before the noise would be an
unnoised record of the data: there is none here, since what is encoded is the change of finished weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client import state
from jointdiff import codec_wire, codecs, head_codec
from jointdiff.codecs import Tensors
from jointdiff.config import Config
from jointdiff.errors import RunError
from jointdiff.protocol import RoundInstructions, RoundReport

ERROR = "upload_error"  # ||x - decoded|| / ||x||
_LOST = "upload"  # part of the state: e


def pack(
    ask: RoundInstructions,
    config: Config,
    report: RoundReport,
    *,
    reference: Mapping[str, np.ndarray],
    trained: Mapping[str, np.ndarray],
    site_folder: Path,
) -> tuple[RoundReport, Tensors]:
    """Return the report with the codec's error in it, and what travels beside it.

    Args:
        reference: w_sent: decoded, as the server has it too.
        trained: w, of the tensors that leave in this round.
        site_folder: Keeps e, by round: a repeated round sends the same bytes again.

    Raises:
        RunError: The change cannot be encoded: the training has diverged.
    """
    codec = codecs.parse(config.run.upload)
    if codec.plain:
        return report, dict(trained)
    before = state.load(site_folder, ask.run_name, before=ask.round, after=config.rounds_before, part=_LOST) or {}
    wanted = {name: trained[name] - reference[name] for name in trained}
    for name in wanted.keys() & before.keys():
        wanted[name] += before[name].numpy()
    try:
        packed = codec_wire.pack(codec, wanted)
    except ValueError as error:
        raise RunError(f"The change of the weights cannot be encoded as {codec.text}: {error}") from None
    decoded = codec_wire.round_trip(codec, wanted)
    lost = {
        name: torch.from_numpy(wanted[name] - decoded[name])
        for name in wanted
        if codecs.is_large(wanted[name].shape)  # the others are exact
    }
    state.save(site_folder, ask.run_name, ask.round, {**before, **lost}, part=_LOST)
    metrics = {**report.metrics, ERROR: codecs.relative_error(wanted, decoded)}
    return replace(report, metrics=metrics), packed


def pack_sums(sums: Mapping[str, np.ndarray]) -> Tensors:
    """Return what travels for the head's sums in a run whose upload is encoded.

    Raises:
        RunError: They hold NaN or infinite values.
    """
    try:
        return head_codec.pack(sums)
    except ValueError as error:
        raise RunError(f"The sums for the head cannot be encoded: {error}") from None

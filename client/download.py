"""What the server sent, as the tensors that this site works with: decoded, and completed by what the site holds.

A message may come without the decoder, or without a frozen body (jointdiff/sharing.py). For training the site then
takes its own: what it holds lies beside the state of training, by round, so that a repeated round starts alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from client import state
from jointdiff import codec_wire, protocol
from jointdiff.config import Config
from jointdiff.errors import RefusedError, RunError
from jointdiff.networks import Design, build, design_of
from jointdiff.protocol import RoundInstructions
from jointdiff.sharing import LACKS, Sharing, is_decoder, is_left_out
from jointdiff.transfer import Transfer

Tensors = dict[str, np.ndarray]
_HELD = "held"  # part of the state: own/NAME after training, sent/NAME as the server has it, and of which period
_PERIOD = "period"


def decode(ask: RoundInstructions, config: Config, arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Return the float32 tensors that a message carries, of the parts of the model that it has not left out.

    Raises:
        RefusedError: The message's codecs are not known here, or not those of the run.
        RunError: The tensors are damaged.
    """
    transfer = Transfer.from_dict(ask.transfer, config.run, answers=ask.kind in (protocol.TRAIN, protocol.HEAD))
    if transfer == Transfer():
        return dict(arrays)
    layout = {
        name: shape
        for name, shape in layout_of_model(design_of(config)).items()
        if not is_left_out(name, transfer.without)
    }
    try:
        return codec_wire.unpack(transfer.download, arrays, layout)
    except ValueError as error:
        raise RunError(f"The tensors that the server sent cannot be read: {error}.") from None


def complete(
    ask: RoundInstructions, config: Config, sent: Mapping[str, np.ndarray], site_folder: Path
) -> tuple[Tensors, Tensors]:
    """Return whole models: the weights to work with, and the weights that a change is measured against.

    Args:
        sent: From `decode`.
        site_folder: Of the site; what it holds is read from there.

    Raises:
        RefusedError: The site does not hold what was left out.
    """
    layout, sharing, trains = layout_of_model(design_of(config)), Sharing.of(config), ask.kind == protocol.TRAIN
    if not sharing.holds or (sent.keys() == layout.keys() and not trains):
        return dict(sent), dict(sent)
    before, after = ask.round + (not trains), config.rounds_before
    held = state.load(site_folder, ask.run_name, before=before, after=after, part=_HELD) or {}
    now = sharing.period_of(config.own_round(ask.round))
    valid = bool(held) and (sharing.frozen_body or int(held[_PERIOD]) == now)
    weights, reference = {}, {}
    for name, shape in layout.items():
        own = valid and sharing.held(name)
        if name in sent and not (own and trains and is_decoder(name)):
            weights[name] = reference[name] = sent[name]
        elif own:  # even where a decoder came again, for another site that lacks it
            weights[name] = held[f"own/{name}"].numpy()
            reference[name] = held[f"sent/{name}"].numpy()
        elif is_decoder(name) and not trains:
            weights[name] = reference[name] = np.zeros(shape, np.float32)  # features and predictions need none
        else:
            raise RefusedError(f"{LACKS}. It takes part again when the server sends it.")
    return weights, reference


def keep(ask: RoundInstructions, config: Config, reference: Tensors, trained: Tensors, site_folder: Path) -> None:
    """Write down what this site holds after a round: its own tensors, and what the server has in their place."""
    sharing = Sharing.of(config)
    names = [name for name in trained if sharing.held(name)]
    if not names:
        return
    held = {f"own/{name}": torch.tensor(trained[name]) for name in names}
    held |= {f"sent/{name}": torch.tensor(reference[name]) for name in names}
    held[_PERIOD] = torch.tensor(sharing.period_of(config.own_round(ask.round)))
    state.save(site_folder, ask.run_name, ask.round, held, part=_HELD)


@lru_cache(maxsize=4)
def layout_of_model(design: Design) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a network's tensors, in its own order."""
    with torch.device("meta"):  # no memory, no random numbers
        return {name: tuple(tensor.shape) for name, tensor in build(design).state_dict().items()}

"""The frozen autoencoder of a latent run on its way to the hospitals: each gets it once, before all else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jointdiff import latent_run, protocol
from jointdiff.config import Config
from jointdiff.spaces import PIXELS, Latents, Space
from jointdiff.training import select_device

if TYPE_CHECKING:
    from server.questions import Questions


class SharedAutoencoder:
    """The copy in the run's folder, and who still lacks it.

    Args:
        folder: Of the run.
        hospitals: All of them.
    """

    def __init__(self, config: Config, folder: Path, hospitals: list[str]) -> None:
        self._config = config
        self._folder = folder
        self._lacking = list(hospitals) if config.model.latent else []

    @cached_property
    def space(self) -> Space:
        """Where the run's network works, at the server: for its own images, and for what it draws.

        Raises:
            CheckpointError: The copy is missing, damaged, or another autoencoder.
        """
        return latent_run.space_in(self._folder, self._config, select_device(self._config.run.device))

    def give(self, questions: Questions, number: int, *, minimum: int) -> None:
        """Send it to every hospital that lacks it; in a run on pixels nothing happens."""
        space = self.space if self._lacking else PIXELS
        if not isinstance(space, Latents):
            return
        tensors, keys = latent_run.to_tensors(space.autoencoder)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        told = {name: {"autoencoder": keys} for name in self._lacking}
        with questions.ask(
            protocol.AUTOENCODER, number, arrays, minimum=minimum, only=self._lacking, payloads=told
        ) as answers:
            known = {reply.hospital for reply in answers.good}
        self._lacking = [name for name in self._lacking if name not in known]

    def note(self, lost: Mapping[str, str]) -> None:
        """Take in why hospitals gave no answer: one that has lost it gets it again before the next round."""
        self._lacking += [
            name
            for name, reason in lost.items()
            if reason.startswith(protocol.LACKS_AUTOENCODER) and name not in self._lacking
        ]

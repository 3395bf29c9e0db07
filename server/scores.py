"""The hospitals' prediction statistics become metrics: per hospital, and pooled as if all images lay in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jointdiff.config import Config, trains_autoencoder
from jointdiff.local_work import Statistics, merged
from jointdiff.reconstruction import ReconstructionStatistics
from jointdiff.score_histogram import NUM_BINS
from jointdiff.statistics import COARSE_BINS, ClassificationStatistics

TEST = "test"  # the hospital's share of the evaluation split
HELDOUT = "heldout"  # the part of its kept labels that chooses `best`
PARTS = (TEST, HELDOUT)
SERVER = "the server"  # holds labels too where it has images of its own; a hospital's name has no space


class Scores:
    """Statistics by hospital. Counts merge exactly, so the pooled metrics are never an average of averages."""

    def __init__(self, config: Config) -> None:
        self._model = config.model
        self._kind = ReconstructionStatistics if trains_autoencoder(config) else ClassificationStatistics
        self.withheld: dict[str, list[str]] = {}  # hospital -> what it holds back
        self._found: dict[str, dict[str, Statistics]] = {part: {} for part in PARTS}

    def add(self, hospital: str, arrays: Mapping[str, np.ndarray], withheld: Sequence[str] = ()) -> None:
        """Read one hospital's arrays, named `<part>.<statistic>`.

        Args:
            withheld: What the hospital says that it holds back: a part, or `<part>.<what of it>`.

        Raises:
            ValueError: They are not statistics of this run's task; nothing of this hospital is kept then.
        """
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            groups.setdefault(part, {})[rest] = array
        if (TEST not in groups and TEST not in withheld) or not groups.keys() <= set(PARTS):
            raise ValueError(f"statistics of {sorted(groups)} came, not of {TEST}")
        found: dict[str, Statistics] = {part: self._kind.from_arrays(group) for part, group in groups.items()}
        for statistics in found.values():
            if isinstance(statistics, ReconstructionStatistics):
                continue
            if (statistics.task, statistics.num_outputs) != (self._model.task, self._model.num_outputs):
                raise ValueError(f"statistics of a {statistics.task} task with {statistics.num_outputs} outputs came")
            if statistics.num_bins not in (NUM_BINS, COARSE_BINS):
                raise ValueError(f"statistics with {statistics.num_bins} score bins came")
        for part, statistics in found.items():
            self._found[part][hospital] = statistics
        names = [name for name in withheld if name.partition(".")[0] in PARTS]
        if names:
            self.withheld[hospital] = names

    def add_heldout(self, holder: str, statistics: Statistics) -> None:
        """Count held-out labels of somebody who has no share of the evaluation split."""
        self._found[HELDOUT][holder] = statistics

    def pooled(self, part: str = TEST) -> dict[str, Any] | None:
        """Return the metrics over all hospitals' images, or None where nobody sent any.

        Where one hospital counts scores in coarse bins, all are counted in these.
        """
        found = list(self._found[part].values())
        num_bins = min((s.num_bins for s in found if isinstance(s, ClassificationStatistics)), default=NUM_BINS)
        alike = [s.coarser(num_bins) if isinstance(s, ClassificationStatistics) else s for s in found]
        return merged(alike).finish() if alike else None

    def by_hospital(self, part: str = TEST) -> dict[str, dict[str, Any]]:
        """Return each hospital's own metrics."""
        return {hospital: statistics.finish() for hospital, statistics in self._found[part].items()}

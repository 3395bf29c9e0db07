"""What each hospital counts in a mean, for the whole network or for one part of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jointdiff.protocol import RoundReport
from jointdiff.sharing import ENCODER
from server.replies import Reply

COVERAGE = "pseudo_coverage"  # share of the unlabelled images that a report's training believed a pseudo-label of


def hospital_weights(replies: Sequence[Reply], weighting: str) -> list[float]:
    """Return each hospital's weight in the mean; where none has any, all have 1.

    Args:
        weighting: One of

            - `images`: its number of training images n_k;
            - `labels`: its number of labelled ones l_k;
            - `equal`: 1;
            - `confidence`: l_k + c_k (n_k - l_k), the images whose label it knows or believes, c_k being the mean share
              of its unlabelled images whose pseudo-label was believed in this round. A hospital that reports no such
              share counts by its labels alone; where no hospital reports one (in a warm-up there are no pseudo-labels)
              all count by images.
    """
    weights = _counts([reply.report for reply in replies], weighting)
    return weights if any(weights) else [1.0 for _ in replies]


def weights_by_part(replies: Sequence[Reply], weightings: Mapping[str, str]) -> dict[str, list[float]]:
    """Return each hospital's weight for every part of the network (sharing.PARTS).

    A part with a rule of its own by which nobody counts has weights of 0: nobody knows anything of it, so it stays as
    it is. Without a rule of its own it goes with the encoder.

    Args:
        weightings: Part -> weighting (config.RunConfig.weightings).
    """
    whole = weightings[ENCODER]
    reports = [reply.report for reply in replies]
    return {
        part: hospital_weights(replies, weighting) if weighting == whole else _counts(reports, weighting)
        for part, weighting in weightings.items()
    }


def _counts(reports: Sequence[RoundReport], weighting: str) -> list[float]:
    if weighting == "equal":
        return [1.0 for _ in reports]
    if weighting == "labels":
        return [float(report.num_labels) for report in reports]
    if weighting == "confidence" and any(COVERAGE in report.metrics for report in reports):
        return [_known_or_believed(report) for report in reports]
    return [float(report.num_images) for report in reports]


def _known_or_believed(report: RoundReport) -> float:
    # Clipped: no hospital can make itself heavier than its images.
    coverage = min(1.0, max(0.0, report.metrics.get(COVERAGE, 0.0)))
    return report.num_labels + coverage * max(0, report.num_images - report.num_labels)

"""The end of a run: the hospitals explain decisions and grade samples, the server draws a panel of samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jointdiff import protocol
from jointdiff.config import Config
from jointdiff.data.base import DatasetInfo
from jointdiff.grading import merge_grades
from jointdiff.record import RunRecord
from jointdiff.sample_grades import PREFIX, merge_sample_grades
from jointdiff.showcase import make_samples
from jointdiff.spaces import Space
from jointdiff.training import select_device
from server.questions import Questions
from server.slices import Tensors


def show(
    weights: Tensors, info: DatasetInfo, config: Config, *, questions: Questions, record: RunRecord,
    hospitals: Sequence[str], allow_samples: Collection[str], round_number: int, space: Space,
) -> None:  # fmt: skip
    """Explain and draw with these weights, unless `explain` is 0.

    A model that was never trained to denoise can neither draw nor edit.

    Args:
        hospitals: All of the run, by name.
        allow_samples: Those that let the server draw samples.
        round_number: The last round.
        space: Where the network works.
    """
    if not config.run.explain or not config.training.diffusion_weight:
        return
    with questions.ask(protocol.EXPLAIN, round_number, weights, minimum=0) as answers:
        grades = {reply.hospital: reply.report.metrics for reply in answers.good}
    _explained(grades, record)
    against = [name for name in hospitals if name not in allow_samples] if info.real else []
    _sampled(weights, merge_sample_grades(grades.values(), info.class_names), config, record, against, space)


def _explained(grades: Mapping[str, Mapping[str, float]], record: RunRecord) -> None:
    own = {
        hospital: {name: value for name, value in found.items() if not name.startswith(PREFIX)}
        for hospital, found in grades.items()
    }
    record.event("explained", hospitals=own, pooled=merge_grades(own.values()))


def _sampled(
    weights: Tensors, grades: Mapping[str, Any], config: Config, record: RunRecord, against: Sequence[str],
    space: Space,
) -> None:  # fmt: skip
    """Draw samples, unless they could be copies of patients and a hospital does not allow it."""
    if against:
        reason = (
            "The server drew no samples: they can be copies of the scans that were trained on, and not every "
            f"hospital's policy allows it (server-samples): {', '.join(against)}."
        )
        record.event("sampled", path="", per_class=0, metrics=dict(grades), reason=reason)
        return
    samples = make_samples(weights, config, record.folder, device=select_device(config.run.device), space=space)
    record.event("sampled", **{**samples, "metrics": dict(grades)})

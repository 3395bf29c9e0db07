"""The loop over the rounds: describe; then train, merge, solve the head, evaluate, round by round; then explain.

The loop is ours, not Flower's Strategy.start: that one has no first round, checks nothing that it averages, and waits
without limit. A hospital that fails costs its round, and is named with the reason. Replies are merged in the hospitals'
order, so the order of their arrival changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from jointdiff import identity, protocol
from jointdiff.config import Config, RunConfig
from jointdiff.ema import moving_average
from jointdiff.errors import RunError
from jointdiff.grading import merge_grades
from jointdiff.head import head_sums, solve_head, standardisation_sums
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions
from jointdiff.record import Listener, RunRecord
from jointdiff.sample_grades import PREFIX, merge_sample_grades
from jointdiff.showcase import make_samples
from jointdiff.training import head_is_solved_after, select_device
from server.aggregation import Tensors, WeightedSum, weighted_means
from server.hospitals import Hospitals
from server.replies import Reply, check_update, one_line, to_arrays
from server.scores import HELDOUT, Scores
from server.spool import Spool

_DONE = {"ok": "hospital_replied", "failed": "hospital_failed", "refused": "hospital_refused"}


def run_federation(grid: Grid, run: RunConfig, *, callback: Listener | None = None) -> Path:
    """Run a whole federation over `grid` and return the run's folder.

    Args:
        grid: Flower's, or anything that behaves like it.
        run: What the user asked for.
        callback: Called with every event after it is on disk: the door for progress bars, previews and tests.

    Raises:
        JointDiffError: The run cannot start, or no hospital's reply could be used. Whatever is raised after the run's
            folder exists is also its last event, `run_failed`.
    """
    config, info, folder = prepare(run)
    record = RunRecord(folder, config, callback)
    try:
        federation = Federation(grid, config, record)
        record.start(info, federation.hospitals.names)
        federation.describe()
        federation.prepare_head(0)
        for number in range(1, config.run.num_rounds + 1):
            federation.round(number)
        federation.show(info.class_names)
        record.finish()
    except BaseException as error:
        record.fail(error)
        raise
    return folder


class Federation:
    """The server's side of a run: the global weights, their average over the rounds, and what to do with replies."""

    def __init__(self, grid: Grid, config: Config, record: RunRecord) -> None:
        self.config = config
        self.record = record
        self.hospitals = Hospitals(grid, [f"hospital-{k + 1}" for k in range(config.run.num_hospitals)])
        self.weights = initial_weights(config)  # what the hospitals train on
        self.average = self.weights  # the server's EMA: what is evaluated, explained and saved
        sites_home = config.run.sites_home
        self._sites = Path(sites_home) if sites_home else record.folder / "sites"

    def describe(self) -> None:
        """Ask every hospital who it is."""
        self._ask(protocol.DESCRIBE, 0, {})

    def round(self, number: int) -> None:
        """Train, merge, solve the head, evaluate, save."""
        names, num_rounds = list(self.hospitals.names), self.config.run.num_rounds
        self.record.event("round_started", round=number, num_rounds=num_rounds, hospitals=names)
        self._train(number)
        self.prepare_head(number)
        heldout_auc = self._evaluate(number)
        self.record.save_round(self.average, round_number=number, heldout_auc=heldout_auc)

    def show(self, class_names: Sequence[str]) -> None:
        """Let the hospitals explain decisions and grade samples; draw a panel of samples here. Unless `explain` is 0.

        A model that was never trained to denoise can neither draw nor edit.
        """
        if self.config.run.explain and self.config.training.diffusion_weight:
            replies = self._ask(protocol.EXPLAIN, self.config.run.num_rounds, self.average, required=False)
            grades = {reply.hospital: reply.report.metrics for reply in replies}
            self._explained(grades)
            self._sampled(merge_sample_grades(grades.values(), class_names))

    def _explained(self, grades: Mapping[str, Mapping[str, float]]) -> None:
        own = {
            hospital: {name: value for name, value in found.items() if not name.startswith(PREFIX)}
            for hospital, found in grades.items()
        }
        self.record.event("explained", hospitals=own, pooled=merge_grades(own.values()))

    def _sampled(self, grades: Mapping[str, Any]) -> None:
        device = select_device(self.config.run.device)
        samples = make_samples(self.average, self.config, self.record.folder, device=device)
        samples["metrics"] = dict(grades)
        self.record.event("sampled", **samples)

    def _train(self, number: int) -> None:
        """Replace the weights by the mean of the hospitals' trained ones."""
        started = time.monotonic()
        total = WeightedSum()

        def add(reply: Reply, tensors: Tensors) -> None:
            check_update(tensors, like=self.weights)
            total.add(tensors, reply.report.num_images)

        replies = self._ask(protocol.TRAIN, number, self.weights, use=add)
        self.weights = total.mean()
        self.average = moving_average(self.average, self.weights, number, self.config.training.ema_decay)
        metrics = weighted_means((reply.report.metrics, reply.report.num_images) for reply in replies)
        duration_s = time.monotonic() - started
        self.record.event(
            "round_aggregated", round=number, num_replies=len(replies), duration_s=duration_s, metrics=metrics
        )

    def prepare_head(self, number: int) -> None:
        """Solve or standardise the head on the hospitals' sums over the average's features; both models get it."""
        if not head_is_solved_after(number, self.config):
            return
        model = self.config.model
        no_labels = np.zeros((0, model.num_outputs) if model.task == "multi-label" else 0, np.int64)
        no_images = np.zeros((0, len(self.weights["head.mean"])))
        like = head_sums(no_images, no_images, no_labels, model.num_outputs)
        if self.config.training.head == "gradient":
            like = standardisation_sums(no_images)
        total = WeightedSum()

        def add(_: Reply, tensors: Tensors) -> None:
            check_update(tensors, like=like)
            total.add(tensors, 1)

        self._ask(protocol.HEAD, number, self.average, use=add)
        head = {name: tensor.numpy() for name, tensor in solve_head(total.total(), self.config).items()}
        check_update(head, like={name: self.weights[name] for name in head})
        self.weights = {**self.weights, **head}
        self.average = {**self.average, **head}

    def _evaluate(self, number: int) -> float | None:
        """Evaluate the average at every hospital; return the AUC on held-out kept labels, None where there are none."""
        scores = Scores(self.config.model)
        self._ask(
            protocol.EVALUATE, number, self.average, use=lambda reply, tensors: scores.add(reply.hospital, tensors)
        )
        heldout = scores.pooled(HELDOUT)
        heldout_auc = heldout["auc"] if heldout else None
        self.record.event(
            "evaluated",
            round=number,
            pooled=scores.pooled(),
            hospitals=scores.by_hospital(),
            heldout_auc=heldout_auc,
        )
        return heldout_auc

    def _ask(
        self,
        kind: str,
        number: int,
        tensors: Tensors,
        *,
        use: Callable[[Reply, Tensors], None] | None = None,
        required: bool = True,
    ) -> list[Reply]:
        """Send one question to all hospitals, then use the replies one by one in the hospitals' order.

        Args:
            kind: One of protocol.KINDS.
            tensors: What travels with the question.
            use: Called with each good reply and its tensors; a ValueError rejects the reply and is named in the events.
            required: Whether the run stops when no reply at all could be used.

        Returns:
            The replies that were used, without their tensors.
        """
        questions = [self._question(kind, number, k) for k in range(len(self.hospitals.names))]
        replies: dict[str, Reply] = {}
        used: list[Reply] = []
        lost: dict[str, str] = {}
        with Spool(self.record.folder / "spool") as spool:
            for reply in self.hospitals.ask(questions, to_arrays(tensors)):
                self._note(kind, number, reply)
                spool.write(reply.hospital, reply.tensors)
                replies[reply.hospital] = replace(reply, tensors={})
            for name in self.hospitals.names:
                if not replies[name].ok:
                    lost[name] = replies[name].report.reason
                    continue
                try:
                    if use is not None:
                        use(replies[name], spool.read(name))
                    used.append(replies[name])
                except ValueError as error:
                    lost[name] = one_line(str(error))
                    self.record.event("update_rejected", round=number, hospital=name, kind=kind, reason=lost[name])
        if required and not used:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in lost.items())
            logs = self._sites / "<hospital>" / "site.log"
            raise RunError(
                f"No hospital could {kind} in round {number}, so the run stops. {reasons}. The details are in each "
                f"hospital's own log, in a simulation {logs}."
            )
        return used

    def _question(self, kind: str, number: int, index: int) -> RoundInstructions:
        run, hospital = self.config.run, self.hospitals.names[index]
        return RoundInstructions(
            kind=kind,
            run_name=run.run_name,
            hospital=hospital,
            hospital_index=index,
            round=number,
            config=self.config.to_dict(),
            site_folder=str(self._sites / hospital),
            code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )

    def _note(self, kind: str, number: int, reply: Reply) -> None:
        """Write the event of one reply, as it comes."""
        report = reply.report
        fields: dict[str, Any] = {"round": number, "hospital": reply.hospital, "kind": kind}
        if reply.ok:
            fields |= {
                "num_images": report.num_images,
                "num_labels": report.num_labels,
                "duration_s": report.duration_s,
                "device": report.device,
                "metrics": report.metrics,
                "bytes_in": reply.bytes_in,
                "bytes_out": reply.bytes_out,
            }
            fields |= {"table": report.table} if kind == protocol.DESCRIBE else {}
        else:
            fields["reason"] = report.reason
        self.record.event(_DONE[report.status], **fields)

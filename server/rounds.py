"""The loop over the rounds: describe; then train, merge, solve the head, evaluate, round by round; then explain.

The loop is ours, not Flower's Strategy.start: that one has no first round, checks nothing that it averages, and waits
without limit. After each round everything that determines the future is on disk, so a run that was killed goes on from
its last complete round. Replies are merged in the hospitals' order, so the order of their arrival changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid

from jointdiff import latent_run, local_work, protocol, storage
from jointdiff.config import Config, RunConfig, trains_autoencoder
from jointdiff.data.base import DatasetInfo
from jointdiff.ema import moving_average
from jointdiff.errors import RunError
from jointdiff.head_sums import add_sums
from jointdiff.networks import network_with
from jointdiff.phases import phases_of, with_autoencoder
from jointdiff.preparation import initial_weights, prepare, reopen
from jointdiff.record import Listener, RunRecord
from jointdiff.training import select_device
from server.aggregation import WeightedSum, weighted_means
from server.autoencoder import SharedAutoencoder
from server.deployment.admission import admitted
from server.ending import show
from server.exchange import Exchange
from server.hospitals import Hospitals
from server.labelled_set import LabelledSet
from server.merging import apply_mean, merge, outliers, questionable
from server.optimizers import initial_moments
from server.participants import asked_to_train
from server.questions import Questions
from server.replies import Reply, check_update
from server.run_state import RunState, read_state, write_state
from server.scores import HELDOUT, SERVER, Scores
from server.secure_sum import SecureSums
from server.slices import Tensors


def run_federation(grid: Grid, run: RunConfig, *, callback: Listener | None = None) -> Path:
    """Run a whole federation over `grid`, or what is left of it (`resume`), and return the run's folder.

    Args:
        grid: Flower's, or anything that behaves like it.
        run: What the user asked for.
        callback: Called with every event after it is on disk: the door for progress bars, previews and tests.

    Raises:
        JointDiffError: The run cannot start, or too few hospitals answered. Whatever is raised after the run's
            folder exists is also its last event, `run_failed`.
    """
    config, info, folder = reopen(run) if run.resume else prepare(run)
    with storage.run_locked(folder):
        state = read_state(folder) if run.resume else None
        record = RunRecord(folder, config, callback, resumable=True)
        try:
            if run.resume:
                record.resume(state.round_number if state else 0)
            else:
                record.start(info, config.run.hospital_names)
            _run_phases(grid, config, record, state).show(info)
            record.finish()
        except BaseException as error:
            record.fail(error)
            raise
    return folder


def _run_phases(grid: Grid, config: Config, record: RunRecord, state: RunState | None) -> Federation:
    """Work through what is left of a run's phases, mostly the only one, and return the federation of the last.

    Raises:
        RunError: The first of two has left an autoencoder that nothing may be built upon: the second does not start.
    """
    federation: Federation | None = None
    for number in range(state.phase if state else 1, len(phases_of(config)) + 1):
        phase = phases_of(config)[number - 1]
        reached = state if state and state.phase == number else None
        record.enter(phase, anew=reached is None)
        federation = Federation(grid, phase, record, before=federation)
        federation.begin(reached)
        while federation.round_number < phase.run.num_rounds:
            federation.next_round()
        local_work.check_outcome(phase, record.last_pooled)
        if config.run.latent and trains_autoencoder(phase):
            frozen = latent_run.freeze(record.folder, phase, federation.average)
            config = with_autoencoder(config, frozen.fingerprint)
            record.write_config(config)
    assert federation is not None, "a run has a phase"
    return federation


def _nodes_of(names: Sequence[str], home: Path) -> dict[str, int]:
    """Return the SuperNode of each hospital, as its admission says.

    Raises:
        RunError: A hospital is not admitted, or was revoked.
    """
    known = admitted(home)
    if missing := [name for name in names if name not in known]:
        raise RunError(
            f"{', '.join(missing)}: not admitted to the federation in {home}, or revoked. Admitted are: "
            f"{', '.join(known) or 'none'}. Admit a hospital by `jointdiff-server admit NAME key.pub`."
        )
    return {name: known[name] for name in names}


def _hospitals(grid: Grid, config: Config) -> Hospitals:
    names = list(config.run.hospital_names)
    return Hospitals(
        grid,
        names,
        one_each=config.run.secure_aggregation,
        nodes=_nodes_of(names, storage.home_path(config.run.home)) if config.run.over_sites else None,
        reply_timeout_s=config.run.round_timeout_s,
    )


class Federation:
    """The server's side of a run, or of one of its phases: the global weights, their average, what to do with replies.

    Rounds are counted within the phase; the record and the hospitals are told those of the run.

    Args:
        before: Of the phase before, if this process has been through it: its hospitals are known already.
    """

    def __init__(self, grid: Grid, config: Config, record: RunRecord, *, before: Federation | None = None) -> None:
        self.config = config
        self.record = record
        names = list(config.run.hospital_names)
        secure = config.run.secure_aggregation
        self.hospitals: Hospitals = before.hospitals if before else _hospitals(grid, config)
        self.questions = Questions(self.hospitals, config, record)
        self.secure_sums = SecureSums(self.questions, names, config, record) if secure else None
        self.exchange = Exchange(config)
        self.round_number = 0  # the last complete round
        self.weights = initial_weights(config)  # what the hospitals train on
        self.average = self.weights  # the server's EMA: what is evaluated, explained and saved
        self.moments = initial_moments(config.run.strategy, self.weights)  # of the server's optimiser
        self.autoencoder = SharedAutoencoder(config, record.folder, names)
        self.labelled_set = LabelledSet.of(config, record, self.autoencoder)  # the server's own, mostly none
        self._undescribed: list[str] = before._undescribed if before else names
        self._allow_samples: set[str] = before._allow_samples if before else set()  # these let the server draw samples

    def begin(self, state: RunState | None) -> None:
        """Meet the hospitals, then take up the state of a run that is resumed, or solve the first head."""
        self.describe(minimum=self.questions.minimum)
        if state is None:
            if self.labelled_set:
                self.labelled_set.introduce()
            self.prepare_head(0)
            self._save()
            return
        self.round_number = self.config.own_round(state.round_number)
        self.weights, self.average, self.moments = dict(state.weights), dict(state.average), dict(state.moments)
        if self.labelled_set:
            self.labelled_set.state = state.labelled_set
        if self.round_number:  # a crash may have come between the state and the checkpoints
            self.record.save_round(self.average, round_number=self.round_number, heldout_auc=self.record.heldout_auc)

    def describe(self, number: int = 0, *, minimum: int = 0) -> None:
        """Ask the hospitals that have not said yet who they are: at the start all, later those that join."""
        self.autoencoder.give(self.questions, number, minimum=minimum)
        if self._undescribed:
            with self.questions.ask(protocol.DESCRIBE, number, {}, minimum=minimum, only=self._undescribed) as answers:
                known = {reply.hospital for reply in answers.good}
                self._allow_samples |= {
                    reply.hospital for reply in answers.good if reply.report.table.get("server_samples") is True
                }
            self._undescribed = [name for name in self._undescribed if name not in known]

    def next_round(self) -> None:
        """Train, merge, solve the head, evaluate, save."""
        number = self.round_number + 1
        asked = asked_to_train(self.hospitals.names, self.config.run, number)
        self.record.event("round_started", round=number, num_rounds=self.config.all_rounds, hospitals=list(asked),
                          **({"phase": self.config.phase.name} if self.config.phase else {}))  # fmt: skip
        self.describe(number)
        self._train(number, asked)
        self.prepare_head(number)
        heldout_auc = self._evaluate(number)
        self.round_number = number
        self._save()
        self.record.save_round(self.average, round_number=number, heldout_auc=heldout_auc)

    def _save(self) -> None:
        own = self.labelled_set.state if self.labelled_set else {}
        number, phase = self.round_number + self.config.rounds_before, self.config.phase
        state = RunState(number, self.weights, self.average, self.moments, own, phase=phase.number if phase else 1)
        write_state(self.record.folder, state)

    def show(self, info: DatasetInfo) -> None:
        """Let the hospitals explain decisions and grade samples; draw a panel of samples here."""
        show(
            self.average,
            info,
            self.config,
            questions=self.questions,
            record=self.record,
            hospitals=self.hospitals.names,
            allow_samples=self._allow_samples,
            round_number=self.round_number,
            space=self.autoencoder.space,
        )

    def _train(self, number: int, asked: Sequence[str]) -> None:
        """Merge the trained weights of the hospitals that are asked into the next ones."""
        started = time.monotonic()
        replies = self._trained(number, asked)
        if self.labelled_set:
            self.weights = dict(self.labelled_set.train(self.weights, number))
        model = self.config.model
        num_classes = 2 if model.task == "multi-label" else model.num_outputs
        for hospital, reason in questionable(replies, num_classes=num_classes).items():
            self.record.event("update_questioned", round=number, hospital=hospital, kind=protocol.TRAIN, reason=reason)
        self.average = moving_average(self.average, self.weights, number, self.config.training.ema_decay)
        metrics = weighted_means((reply.report.metrics, reply.report.num_images) for reply in replies)
        duration_s = time.monotonic() - started
        self.record.event(
            "round_aggregated", round=number, num_replies=len(replies), duration_s=duration_s, metrics=metrics
        )

    def _trained(self, number: int, asked: Sequence[str]) -> list[Reply]:
        """Let the hospitals train, put the next weights in the place of the old ones, and return whose count."""
        sent = self.exchange.for_training(number, self.weights)
        reference = sent.reference
        if self.secure_sums:
            replies, mean = self.secure_sums.mean_weights(number, reference, sent)
            mean, self.moments = apply_mean(mean, self.config.run, weights=reference, moments=self.moments)
            self.weights = self.exchange.merged(self.weights, mean, reference)
            return replies

        def check(reply: Reply, tensors: Mapping[str, np.ndarray]) -> None:
            if not reply.report.num_images:
                raise ValueError("it says that it trained on no image; a weight in the mean must be positive")
            check_update(tensors, like=reference)

        with self.questions.ask(
            protocol.TRAIN,
            number,
            sent,
            minimum=self.questions.minimum_of(len(asked)),
            only=asked,
            check=check,
            check_all=lambda replies, spool: outliers(replies, spool, reference),
        ) as answers:
            self.exchange.note(answers.lost)
            self.autoencoder.note(answers.lost)
            merged, self.moments = merge(
                answers.good, answers.spool, self.config.run, weights=reference, moments=self.moments
            )
            self.weights = self.exchange.merged(self.weights, merged, reference)
            return answers.good

    def prepare_head(self, number: int) -> None:
        """Solve the head, or scale the latents, on the hospitals' sums over the average's; both models get it."""
        if not local_work.sums_are_merged_after(number, self.config):
            return
        if self.config.private:  # no sums over a site's features leave it: synthetic scans stand in
            if not self.config.run.initial_weights:  # which bring their own standardisation
                self._take_head(self._public_head())
            return
        gather = partial(self._all_head_sums, number)
        for found in local_work.solved(gather, number, self.config, self.average):
            self._take_head(found)

    def _all_head_sums(self, number: int, pseudo: bool) -> Tensors:
        """Return the hospitals' sums, and with them those of the server's own labelled set."""
        sums = self._head_sums(number, pseudo=pseudo)
        return add_sums([sums, self.labelled_set.head_sums(self.average, pseudo=pseudo)]) if self.labelled_set else sums

    def _head_sums(self, number: int, *, pseudo: bool) -> Tensors:
        """Return the hospitals' sums over the features of their labelled images, or of those that the head labels."""
        like = local_work.no_sums(self.config, {name: array.shape for name, array in self.weights.items()})
        sent, told = self.exchange.for_head(self.average, like), protocol.head_payload(pseudo=pseudo)
        if self.secure_sums:
            return self.secure_sums.head_sums(number, sent, like, told)
        total = WeightedSum()
        with self.questions.ask(
            protocol.HEAD,
            number,
            sent,
            minimum=self.questions.minimum,
            check=lambda _, tensors: check_update(tensors, like=like),
            payloads=dict.fromkeys(self.hospitals.names, told),
        ) as answers:
            for _, tensors in answers.tensors():
                total.add(tensors, 1)
        return total.total()

    def _public_head(self) -> dict[str, torch.Tensor]:
        device = select_device(self.config.run.device)
        model = network_with(self.config, self.average, device)
        return local_work.solved_in_public(model, self.config, device, space=self.autoencoder.space)

    def _take_head(self, solved: Mapping[str, torch.Tensor]) -> None:
        """Put the head's tensors into both models, unless they are nonsense."""
        head = {name: tensor.numpy() for name, tensor in solved.items()}
        try:
            check_update(head, like={name: self.weights[name] for name in head})
        except ValueError as error:
            what = "scale of the latents" if trains_autoencoder(self.config) else "classifier head"
            raise RunError(f"The {what} cannot be solved from the hospitals' sums: {error}.") from None
        self.weights = {**self.weights, **head}
        self.average = {**self.average, **head}

    def _evaluate(self, number: int) -> float | None:
        """Evaluate the average at every hospital; return the AUC on held-out kept labels, None where there are none."""
        scores = Scores(self.config)
        with self.questions.ask(
            protocol.EVALUATE,
            number,
            self.exchange.for_reading(self.average),
            minimum=1,
            check=lambda reply, tensors: scores.add(reply.hospital, tensors, reply.report.withheld),
        ):
            pass  # the check reads the statistics
        if self.labelled_set and (held_out := self.labelled_set.heldout(self.average)):
            scores.add_heldout(SERVER, held_out)
        heldout = scores.pooled(HELDOUT)
        heldout_auc = heldout.get("auc") if heldout else None
        withheld = {"withheld": scores.withheld} if scores.withheld else {}
        self.record.event(
            "evaluated", round=number, pooled=scores.pooled(), hospitals=scores.by_hospital(), heldout_auc=heldout_auc,
            **withheld,
        )  # fmt: skip
        return heldout_auc

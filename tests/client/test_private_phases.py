"""A private run of two phases: one budget, composed over both, and refused beforehand where it is too much."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant

from client import round as client_round
from jointdiff import identity, latent_run, protocol, storage
from jointdiff.accounting import ORDERS, epsilon_of
from jointdiff.config import Config
from jointdiff.errors import RefusedError
from jointdiff.latents import FrozenAutoencoder
from jointdiff.ledger import Ledger
from jointdiff.phases import phases_of, with_autoencoder
from jointdiff.preparation import initial_weights, prepare
from jointdiff.private_training import plan_for
from jointdiff.protocol import RoundInstructions

DELTA = 1e-3


@pytest.fixture
def whole(tiny_run, tmp_path):
    """A function that resolves a private run of two phases: 3 rounds of 2 steps, then 2 of 2; keywords change it."""
    (tmp_path / "kl-tiny.yaml").write_text("widths: [8]\nnum-blocks: 1\n")

    def make(**changes) -> Config:
        own = {"latent": True, "autoencoder_rounds": 3, "autoencoder_model": str(tmp_path / "kl-tiny.yaml")}
        private = {"target_epsilon": 8.0, "delta": DELTA, "num_labels": 0, "preset": "joint-private"}
        return prepare(tiny_run(**{**own, **private, **changes}))[0]

    return make


def plans(config: Config, num_units: int = 16):
    return [plan_for(phase, num_units) for phase in phases_of(config)]


def test_both_phases_compose_to_the_target_and_the_first_alone_to_its_share(whole) -> None:
    first, second = plans(whole(autoencoder_budget=0.3))
    alone = epsilon_of([(first.noise_multiplier, first.sample_rate, 6)], DELTA)
    assert 0.3 * 8 * 0.99 < alone <= 0.3 * 8
    assert 8 * 0.99 < second.epsilon <= 8 and first.epsilon == pytest.approx(second.epsilon, rel=1e-12)
    # Epsilons do not add up: the second phase alone would cost more than the rest of the share.
    assert 8 - alone < epsilon_of([(second.noise_multiplier, second.sample_rate, 4)], DELTA) < 8


def test_the_composition_is_that_of_opacus_and_of_another_accountant(whole) -> None:
    first, second = plans(whole())
    steps = [(first.noise_multiplier, first.sample_rate, 6), (second.noise_multiplier, second.sample_rate, 4)]
    rdp, prv, pld = RDPAccountant(), PRVAccountant(), PLDAccountant()
    rdp.history = prv.history = steps
    assert second.epsilon <= rdp.get_epsilon(DELTA, alphas=list(ORDERS)) * (1 + 1e-9)
    for sigma, rate, count in steps:
        pld.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), count))
    exact = pld.get_epsilon(DELTA)
    assert exact <= second.epsilon < 1.35 * exact
    assert prv.get_epsilon(DELTA, eps_error=0.01) <= second.epsilon


def test_a_noise_multiplier_that_is_given_holds_in_both_phases(whole) -> None:
    first, second = plans(whole(target_epsilon=0.0, noise_multiplier=1.5))
    assert first.noise_multiplier == second.noise_multiplier == 1.5
    assert first.epsilon == pytest.approx(epsilon_of([(1.5, first.sample_rate, 10)], DELTA))


def question(config: Config, tmp_path, kind: str, number: int, **changes) -> RoundInstructions:
    return RoundInstructions(
        kind=kind, run_name="tiny", hospital="hospital-2", hospital_index=1, round=number, config=config.to_dict(),
        site_folder=str(tmp_path / "site"), code_version=identity.code_version(), code_hash=identity.code_hash(),
        **changes,
    )  # fmt: skip


def with_ceiling(tmp_path, epsilon: float) -> None:
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "site.yaml").write_text(f"privacy:\n  epsilon: {epsilon}\n  delta: {DELTA}\n")


def test_a_run_that_passes_the_ceiling_in_its_second_phase_is_refused_before_the_first_step(whole, tmp_path) -> None:
    first, _ = phases_of(whole())
    with_ceiling(tmp_path, 7.0)  # the first phase alone would fit: 4
    with pytest.raises(RefusedError, match=r"ceiling.*epsilon 7 .*would make it 7\.9\d+ in all its phases \(6 steps"):
        client_round.run(question(first, tmp_path, protocol.TRAIN, 1), initial_weights(first))
    assert storage.read_json(tmp_path / "site" / "ledger.json")["entries"] == []


def test_the_ledger_holds_both_phases_and_what_they_were_planned_for(whole, tiny_autoencoder, tmp_path) -> None:
    frozen = FrozenAutoencoder.load(tiny_autoencoder())
    config = with_autoencoder(whole(), frozen.fingerprint)
    first, second = phases_of(config)
    with_ceiling(tmp_path, 8.0)
    weights = initial_weights(first)
    for number in (1, 2, 3):
        _, weights = client_round.run(question(first, tmp_path, protocol.TRAIN, number), weights)
    tensors, keys = latent_run.to_tensors(frozen)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    client_round.run(question(second, tmp_path, protocol.AUTOENCODER, 3, payload={"autoencoder": keys}), arrays)
    weights = initial_weights(second)
    for number in (4, 5):
        report, weights = client_round.run(question(second, tmp_path, protocol.TRAIN, number), weights)
        assert all(np.isfinite(array).all() for array in weights.values())
    ledger = storage.read_json(tmp_path / "site" / "ledger.json")
    assert [entry["round"] for entry in ledger["entries"]] == [1, 2, 3, 4, 5]
    planned = plan_for(second, ledger["num_records"])
    assert ledger["epsilon"] == pytest.approx(planned.epsilon) == report.metrics["epsilon"]
    assert ledger["epsilon"] <= 8.0
    with pytest.raises(RefusedError, match="ceiling"):  # an old run's room is spent: nothing beyond both phases
        client_round.run(question(second, tmp_path, protocol.TRAIN, 6), weights)


def test_room_is_counted_after_what_other_runs_have_spent(tmp_path) -> None:
    planned = ((2.0, 0.1, 30), (1.5, 0.1, 20))
    ceiling = 1.05 * epsilon_of(planned, DELTA)
    ledger = Ledger.open(tmp_path, dataset="d", num_records=99, delta=DELTA, ceiling=ceiling)
    ledger.check_room(planned)
    ledger.spend(run="old", round=1, noise_multiplier=2.0, sample_rate=0.1, steps=20, key="")
    with pytest.raises(RefusedError, match=r"30 steps with noise multiplier 2 and 20 steps with noise multiplier 1\.5"):
        ledger.check_room(planned)
    assert len(ledger.entries) == 1


def test_a_phase_is_not_asked_for_rounds_of_the_one_before(whole, tmp_path) -> None:
    _, second = phases_of(whole())
    with pytest.raises(RefusedError, match="none of the phase"):
        client_round.run(question(second, tmp_path, protocol.TRAIN, 2), {})

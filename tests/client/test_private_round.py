"""A site in a private run: what it pays, what it keeps, what it does not send."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from client import round as client_round
from jointdiff import identity, protocol, storage
from jointdiff.errors import ConfigError, RefusedError
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions
from server.rounds import run_federation
from simulations.local import LocalGrid, run_local

PRIVATE = {"target-epsilon": 8.0, "delta": 0.01, "num-labels": 0}


@pytest.fixture
def config(tiny_run):
    return prepare(tiny_run(**PRIVATE))[0]


@pytest.fixture
def ask(config, tmp_path):
    def make(kind=protocol.TRAIN, round_number=1, **changes):
        asked = RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-2", hospital_index=1, round=round_number,
            config=config.to_dict(), site_folder=str(tmp_path / "site"), code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )  # fmt: skip
        return dataclasses.replace(asked, **changes)

    return make


def entries(folder) -> list[dict]:
    return storage.read_json(folder / "ledger.json")["entries"]


def test_a_repeated_question_gets_the_reply_it_got_and_is_paid_once(ask, config, tmp_path):
    weights = initial_weights(config)
    first, trained = client_round.run(ask(), weights)
    again, same = client_round.run(ask(), weights)
    assert all(np.array_equal(trained[name], same[name]) for name in weights)
    assert any(not np.array_equal(trained[name], weights[name]) for name in weights)
    assert first.metrics == again.metrics and len(entries(tmp_path / "site")) == 1


def test_another_question_is_paid_and_draws_anew(ask, config, tmp_path):
    weights = initial_weights(config)
    _, first = client_round.run(ask(), weights)
    changed = {name: array + np.float32(1e-6) for name, array in weights.items()}
    report, second = client_round.run(ask(), changed)
    assert len(entries(tmp_path / "site")) == 2
    # The same weights but for a millionth: only another draw of the noise makes them differ so much.
    assert max(float(np.abs(first[name] - second[name]).max()) for name in weights) > 1e-4
    third, _ = client_round.run(ask(round_number=2), weights)
    assert third.metrics["epsilon"] > report.metrics["epsilon"] > 0


def test_the_ledger_is_written_before_the_first_step(ask, config, tmp_path, monkeypatch):
    from client import private_round

    monkeypatch.setattr(private_round, "train_private_round", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        client_round.run(ask(), initial_weights(config))
    assert len(entries(tmp_path / "site")) == 1
    monkeypatch.undo()
    client_round.run(ask(), initial_weights(config))
    assert len(entries(tmp_path / "site")) == 2, "steps that may have been taken are paid, and those taken now too"


def test_nothing_computed_from_training_records_leaves_but_the_weights(ask, config):
    report, tensors = client_round.run(ask(), initial_weights(config))
    assert set(report.metrics) == {
        "noise_multiplier", "sample_rate", "steps", "learning_rate", "epsilon", "delta",
    }  # fmt: skip
    assert report.num_labels == 0 and set(tensors) == set(initial_weights(config))
    described, _ = client_round.run(ask(protocol.DESCRIBE), {})
    assert described.num_labels == 0
    assert all(described.table[name] is None for name in ("labelled", "num_labelled", "num_unlabelled"))
    with pytest.raises(RefusedError, match="not noised"):
        client_round.run(ask(protocol.HEAD), initial_weights(config))


def test_the_run_stays_below_what_was_asked_and_says_what_it_spent(tiny_run):
    folder = run_local(tiny_run(**PRIVATE, num_rounds=3))
    spent = [storage.read_json(site / "ledger.json")["epsilon"] for site in sorted((folder / "sites").iterdir())]
    assert len(spent) == 3 and all(7.5 < epsilon <= 8.0 for epsilon in spent)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "ε" in report


def test_a_resumed_private_run_ends_and_pays_no_round_twice(tiny_run):
    class StopError(Exception):
        pass

    def stop(event):
        if event["event"] == "round_aggregated" and event["round"] == 2:
            raise StopError

    run = tiny_run(**PRIVATE, num_rounds=3)
    with pytest.raises(StopError):
        run_federation(LocalGrid(), run, callback=stop)
    folder = run_federation(LocalGrid(), dataclasses.replace(run, resume=True))
    for site in (folder / "sites").iterdir():
        assert [entry["round"] for entry in entries(site)] == [1, 2, 3], "round 2 was answered from what was kept"


def test_bad_private_settings_end_before_the_run_begins(tiny_run):
    for changes, message in (
        ({"target-epsilon": 8.0, "noise-multiplier": 1.0}, "two ways to say one"),
        ({"target-epsilon": -1.0}, "at least 0"),
        ({"target-epsilon": 8.0, "delta": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_run(**changes)
    for changes, message in (
        ({"target-epsilon": 8.0, "method": "two-stage"}, "head=ridge"),
        ({"target-epsilon": 8.0, "weighting": "labels"}, "weighting=labels"),
        ({"target-epsilon": 8.0, "initial-weights": "/nowhere.safetensors"}, "nowhere"),
    ):
        with pytest.raises(Exception, match=message):
            prepare(tiny_run(**changes))


def test_a_delta_that_allows_to_publish_a_record_is_refused(ask, config, tiny_run):
    config = prepare(tiny_run(**PRIVATE | {"delta": 0.5}, run_name="other"))[0]
    with pytest.raises((ConfigError, RefusedError), match="smaller delta"):
        client_round.run(ask(config=config.to_dict()), initial_weights(config))


def test_a_private_run_may_start_from_public_weights(tiny_run):
    pretrained = run_local(tiny_run(num_rounds=1, run_name="public", method="supervised"))
    checkpoint = pretrained / "checkpoints" / "last.safetensors"
    config = prepare(tiny_run(**PRIVATE, initial_weights=str(checkpoint), run_name="private"))[0]
    fresh = prepare(tiny_run(**PRIVATE, run_name="fresh"))[0]
    ours, theirs = initial_weights(config), initial_weights(fresh)
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)
    from jointdiff import checkpoint as checkpoints

    assert all(np.array_equal(ours[n], t.numpy()) for n, t in checkpoints.load(checkpoint).state.items())


def test_a_sites_ceiling_holds_and_shuts_out_runs_without_privacy(ask, config, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    policy = site / "site.yaml"
    policy.write_text("privacy:\n  epsilon: 0.5\n  delta: 0.01\n  min-cell-count: 0\n")
    with pytest.raises(RefusedError, match="ceiling"):
        client_round.run(ask(), initial_weights(config))
    assert not (site / "ledger.json").exists() or not entries(site), "what was refused is not paid"
    policy.write_text("privacy:\n  epsilon: 9\n  delta: 0.01\n  min-cell-count: 0\n")
    client_round.run(ask(), initial_weights(config))
    plain = dataclasses.replace(config, run=dataclasses.replace(config.run, target_epsilon=0.0))
    for kind in (protocol.TRAIN, protocol.HEAD, protocol.EXPLAIN):  # all that is computed from training images
        with pytest.raises(RefusedError, match="ceiling"):
            client_round.run(ask(kind, config=plain.to_dict()), initial_weights(config))


def test_a_site_can_demand_secure_aggregation(ask, config, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "site.yaml").write_text("privacy: {require-secure-aggregation: true, min-cell-count: 0}\n")
    for kind in (protocol.TRAIN, protocol.HEAD):
        with pytest.raises(RefusedError, match="secure aggregation alone"):
            client_round.run(ask(kind), initial_weights(config))
    client_round.run(ask(protocol.EVALUATE), initial_weights(config))


def test_training_without_noise_after_private_rounds_stands_in_the_ledger(ask, config, tmp_path):
    client_round.run(ask(), initial_weights(config))
    plain = dataclasses.replace(config, run=dataclasses.replace(config.run, target_epsilon=0.0))
    client_round.run(ask(config=plain.to_dict()), initial_weights(config))
    private, without = entries(tmp_path / "site")
    assert private["epsilon"] < 10 and (without["noise_multiplier"], without["epsilon"]) == (0.0, None)


def test_a_kept_reply_that_is_damaged_is_paid_anew_and_stops_nothing(ask, config, tmp_path):
    weights = initial_weights(config)
    client_round.run(ask(), weights)
    (kept,) = (tmp_path / "site" / "state").rglob("private-reply.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    client_round.run(ask(), weights)
    assert len(entries(tmp_path / "site")) == 2
    client_round.run(ask(), weights)
    assert len(entries(tmp_path / "site")) == 2, "and kept again"


def test_private_and_summed_securely_at_once(tiny_run):
    folder = run_local(tiny_run(**PRIVATE, secure_aggregation=True, min_hospitals=0, num_rounds=2))
    final = storage.read_json(folder / "metrics.json")["final"]
    assert final["pooled"]["num_images"] > 0
    for site in (folder / "sites").iterdir():
        assert [entry["round"] for entry in entries(site)] == [1, 2]

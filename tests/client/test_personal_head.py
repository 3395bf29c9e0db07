"""Heads that stay at their hospitals: what decides, what leaves, what is kept, and what runs cannot have them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from client import egress, state
from client import round as client_round
from client.egress import StoppedError
from client.personal_head import PART
from client.site_policy import SIMULATED
from jointdiff import identity, protocol
from jointdiff.config import RunConfig, parse_run_config, resolve, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.events import read_events
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions
from jointdiff.sharing import HEAD, part_of
from jointdiff.training import head_is_solved_after
from server.run_state import read_state
from simulations.local import run_local

WARMUP = 1  # rounds
ROUNDS = 3
PRESET = (
    "head: {head}\nclass-weight: 1.0\npseudo-weight: 1.0\npseudo-policy: fixed\nthreshold: 0.6\nteacher: local\n"
    "warmup-fraction: 0.34\nlearning-rate: 0.01\n"
)


@pytest.fixture
def personal_run(tiny_run, tmp_path):
    """A function that makes a run of three rounds, the first of them a warm-up; hospitals have heads of their own."""

    def make(head="ridge-start", **changes):
        preset = tmp_path / f"{head}.yaml"
        preset.write_text(PRESET.format(head=head))
        return tiny_run(num_rounds=ROUNDS, **{"preset": str(preset), "personal": "head"} | changes)

    return make


def own_head(folder, hospital, number=ROUNDS + 1):
    return state.load(folder / "sites" / hospital, folder.name, before=number, part=PART)


def evaluated(folder):
    return [event["pooled"] for event in read_events(folder / "events.jsonl") if event["event"] == "evaluated"]


def test_the_head_of_the_only_hospital_is_that_of_a_run_without_personal_heads_bit_for_bit(personal_run):
    """Kept at the site or merged with nobody else's: the same training, average over the rounds, and decisions."""
    own = run_local(personal_run(num_hospitals=1, run_name="own"))
    shared = run_local(personal_run(num_hospitals=1, run_name="shared", personal=""))
    assert evaluated(own) == evaluated(shared) and len(evaluated(own)) == ROUNDS
    kept, (there, here) = own_head(own, "hospital-1"), (read_state(folder) for folder in (shared, own))
    for name, array in there.weights.items():
        if part_of(name) == HEAD:
            assert np.array_equal(kept[f"own/{name}"], array) and np.array_equal(
                kept[f"average/{name}"], there.average[name]
            )
        else:
            assert np.array_equal(here.weights[name], array)
    assert not np.array_equal(here.weights["head.linear.weight"], there.weights["head.linear.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "ridge", "upload": "int8", "download": "int8", "share": "decoder-every:2"},
        {"secure-aggregation": True, "min-hospitals": 0},
    ],
    ids=["plain", "encoded", "masked"],
)
def test_no_head_leaves_and_only_hospitals_with_labels_have_one(personal_run, changes):
    run = personal_run(**{"num_labels": 2, **changes})
    folder = run_local(run)
    with_labels = []
    for hospital in run.hospital_names:
        files = (folder / "sites" / hospital / "egress" / folder.name).glob("round-*.json")
        replies = [reply for file in files for reply in json.loads(file.read_text())["replies"]]
        sent = {tensor["name"] for reply in replies if reply["kind"] == "train" for tensor in reply["tensors"]}
        assert sent and not any("head" in name for name in sent)
        if any(reply_labels(reply) for reply in replies if reply["kind"] == "train"):
            with_labels.append(hospital)
    heads = {hospital: own_head(folder, hospital) for hospital in run.hospital_names}
    assert [name for name, head in heads.items() if head] == with_labels and len(with_labels) in (1, 2)
    if len(with_labels) == 2:
        first, second = (heads[name]["own/head.linear.weight"] for name in with_labels)
        assert not np.array_equal(first, second)
    assert "which stays there (personal=head)" in (folder / "report.html").read_text()
    found = read_state(folder)
    assert np.any(found.weights["head.linear.weight"]), "the head for all is solved"
    assert all(np.array_equal(found.weights[n], found.average[n]) for n in found.weights if part_of(n) == HEAD)


def reply_labels(reply):
    return next(value["value"] for value in reply["scalars"] if value["name"] == "num_labels")


def test_a_run_that_was_stopped_goes_on_with_the_same_heads_bit_for_bit(personal_run):
    whole = run_local(personal_run(run_name="whole", num_hospitals=2))

    def stop(event):
        if event["event"] == "hospital_replied" and event["kind"] == "train" and event["round"] == 3:
            raise KeyboardInterrupt

    run = personal_run(run_name="stopped", num_hospitals=2)
    with pytest.raises(KeyboardInterrupt):
        run_local(run, stop)
    stopped = run_local(dataclasses.replace(run, resume=True))
    assert evaluated(stopped) == evaluated(whole)
    for hospital in run.hospital_names:
        first, again = own_head(whole, hospital), own_head(stopped, hospital)
        assert first.keys() == again.keys() and all(np.array_equal(first[name], again[name]) for name in first)


@pytest.fixture
def ask(personal_run, tmp_path):
    """A function that asks the second hospital; with the run's configuration."""
    config = prepare(personal_run())[0]

    def make(kind, number, tensors):
        asked = RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-2", hospital_index=1, round=number,
            config=config.to_dict(), site_folder=str(tmp_path / "site"), code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )  # fmt: skip
        return asked, client_round.run(asked, tensors)

    make.config = config
    make.folder = tmp_path / "site"
    return make


def test_a_head_begins_with_the_label_term_and_decides_in_place_of_the_one_that_came(ask):
    weights = initial_weights(ask.config)
    _, (_, sent) = ask(protocol.TRAIN, WARMUP, weights)
    assert not any(part_of(name) == HEAD for name in sent)
    assert state.load(ask.folder, "tiny", before=9, part=PART) is None, "the warm-up trains no head"
    ask(protocol.TRAIN, WARMUP + 1, weights)
    other = weights | {"head.linear.bias": np.float32([90, -90])}  # sees the first class everywhere
    _, (_, own) = ask(protocol.EVALUATE, WARMUP + 1, weights)
    _, (_, same) = ask(protocol.EVALUATE, WARMUP + 1, other)
    assert all(np.array_equal(own[name], same[name]) for name in own)
    _, (_, before) = ask(protocol.EVALUATE, WARMUP, other)
    assert before["test.confusion"][:, 1].sum() == 0, "in the warm-up's round it had none yet"
    _, (_, sums) = ask(protocol.HEAD, WARMUP + 1, weights)
    _, (_, again) = ask(protocol.HEAD, WARMUP + 1, other)
    assert all(np.array_equal(sums[name], again[name]) for name in sums)


def test_a_repeated_round_starts_from_the_head_of_the_round_before(ask):
    weights = initial_weights(ask.config)
    ask(protocol.TRAIN, 2, weights)
    _, (_, first) = ask(protocol.TRAIN, 3, weights)
    head = state.load(ask.folder, "tiny", before=4, part=PART)
    _, (_, again) = ask(protocol.TRAIN, 3, weights | {"head.linear.bias": np.float32([1, 0])})
    repeated = state.load(ask.folder, "tiny", before=4, part=PART)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(head[name], repeated[name]) for name in head)


def test_a_reply_that_holds_the_head_is_stopped(ask):
    weights = initial_weights(ask.config)
    asked, (report, sent) = ask(protocol.TRAIN, 2, weights)
    assert egress.check(asked, report, sent, SIMULATED)[1].keys() == sent.keys()
    with pytest.raises(StoppedError, match="undeclared tensor"):
        egress.check(asked, report, sent | {"head.linear.bias": weights["head.linear.bias"]}, SIMULATED)


def test_the_head_for_all_is_solved_after_every_round(ask):
    assert all(head_is_solved_after(number, ask.config) for number in range(ROUNDS + 1))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"personal": "heads"}, "Unknown personal 'heads'"),
        ({"personal": "head", "head-weighting": "labels"}, "are not averaged"),
        ({"personal": "head", "target-epsilon": 8.0}, "no sums leave"),
        ({"personal": "head", "method": "supervised"}, "head: gradient"),
        ({"personal": "head", "method": "two-stage"}, "no round trains a head"),
    ],
)
def test_runs_that_cannot_have_heads_of_their_own_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        run = parse_run_config({**to_mapping(RunConfig()), **keys})
        resolve(run, channels=1, num_outputs=2, task="multi-class")

"""Whole federations of every setting: who has which labels, who lacks classes, who is asked."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from jointdiff.config import RunConfig
from jointdiff.events import read_events
from server.participants import asked_to_train
from simulations.baselines import centralised, pooled_data
from simulations.local import run_local
from simulations.pixels import run_pixels


def of(events, name, **fields):
    return [e for e in events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]


def last(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def run_of(run):
    """Run a federation in process; return its folder, its events, and the table of each hospital."""
    folder = run_local(run)
    events = read_events(folder / "events.jsonl")
    assert not of(events, "hospital_failed") and of(events, "run_finished")
    return folder, events, [e["table"] for e in of(events, "hospital_replied", kind="describe")]


@pytest.mark.parametrize("method", ["joint", "fixmatch"])
def test_one_labelled_hospital_and_two_without_a_label(tiny_run, method):
    run = tiny_run(label_split="hospitals:1", num_labels=0, num_rounds=1, method=method)
    _, events, tables = run_of(run)
    assert [table["num_labelled"] for table in tables] == [16, 0, 0]
    assert [table["num_unlabelled"] for table in tables] == [0, 16, 16]
    assert of(events, "evaluated")[-1]["pooled"]["num_images"] == 18


def test_the_baselines_see_the_servers_labels_too(tiny_run):
    run = tiny_run(label_split="server", num_labels=12)
    pooled = pooled_data(run)
    assert (len(pooled.train), pooled.train.num_labelled, len(pooled.test)) == (48, 12, 18)
    assert run_pixels(run).auc > 0.9
    alone = centralised(tiny_run(participation=0.5), "total")
    assert alone.participation == 1 and alone.local_steps == 4, (
        "two of three hospitals train in a round, two steps each"
    )


def test_unequal_numbers_of_labels(tiny_run):
    _, _, tables = run_of(tiny_run(label_split="dirichlet:0.3", num_labels=13, num_hospitals=4, num_rounds=1))
    labelled = [table["num_labelled"] for table in tables]
    assert sum(labelled) == 13 and np.ptp(labelled) > 1
    assert sorted(np.sum([table["labelled"] for table in tables], axis=0)) == [6, 7]


def test_class_gaps_leave_hospitals_one_class_and_the_pooled_numbers_whole(tiny_run):
    _, events, tables = run_of(tiny_run(partition="gaps:1", num_rounds=1))
    assert [[count > 0 for count in table["test"]] for table in tables] == [[True, False], [False, True], [True, False]]
    evaluated = of(events, "evaluated")[-1]
    assert evaluated["pooled"]["num_images"] == 18 and evaluated["pooled"]["auc"] is not None
    assert all(own["auc"] is None for own in evaluated["hospitals"].values())


def test_unequal_sizes_weigh_in_the_mean(tiny_run):
    _, events, tables = run_of(tiny_run(partition="quantity:0.5", num_rounds=1))
    sizes = [table["num_train"] for table in tables]
    assert sum(sizes) == 48 and max(sizes) > 2 * min(sizes)
    assert [e["num_images"] for e in of(events, "hospital_replied", kind="train", round=1)] == sizes


def test_every_round_asks_another_share_of_the_hospitals(tiny_run):
    run = tiny_run(num_hospitals=4, participation=0.5, min_hospitals=0)
    _, events, tables = run_of(run)
    asked = [e["hospitals"] for e in of(events, "round_started")]
    trained = [[e["hospital"] for e in of(events, "hospital_replied", kind="train", round=n)] for n in (1, 2)]
    assert asked == trained and all(len(names) == 2 for names in asked) and len({*map(tuple, asked)}) > 1
    assert [e["num_replies"] for e in of(events, "round_aggregated")] == [2, 2] and len(tables) == 4
    for kind in ("head", "evaluate"):
        assert [len(of(events, "hospital_replied", kind=kind, round=n)) for n in (1, 2)] == [4, 4]


def test_a_run_that_asks_few_goes_on_with_the_same_ones(tiny_run):
    settings = {"participation": 0.5}
    straight = run_local(tiny_run(run_name="straight", **settings))

    def stop(event):
        if event["event"] == "round_aggregated" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(tiny_run(**settings), callback=stop)
    folder = run_local(tiny_run(resume=True, **settings))
    assert same(last(folder), last(straight))
    rounds = [
        [(e["round"], e["hospitals"]) for e in of(read_events(f / "events.jsonl"), "round_started")]
        for f in (straight, folder)
    ]
    assert rounds[1] == [*rounds[0][:2], *rounds[0][1:]]  # the second one twice


def test_all_are_asked_unless_a_share_is():
    names = [f"h{k}" for k in range(10)]
    assert asked_to_train(names, RunConfig(num_hospitals=10), 1) == tuple(names)
    few = [asked_to_train(names, RunConfig(num_hospitals=10, participation=0.01, seed=s), 1) for s in range(40)]
    assert {len(asked) for asked in few} == {1} and len({*few}) > 7  # every seed draws for itself
    rounds = [asked_to_train(names, RunConfig(num_hospitals=10, participation=0.5), n) for n in range(1, 21)]
    assert len({*rounds}) > 15  # and every round
    drawn = asked_to_train(names, RunConfig(num_hospitals=10, participation=0.3), 7)
    assert len(drawn) == 3 and list(drawn) == sorted(drawn)

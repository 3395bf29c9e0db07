"""What events add up to, above all when a run was carried on after a crash."""

from __future__ import annotations

from jointdiff.history import History, effective


def round_events(number: int, auc: float, *, best: bool = True) -> list[dict]:
    evaluated = {"pooled": {"auc": auc}, "hospitals": {"a": {"auc": auc}}, "heldout_auc": auc}
    return [
        {"event": "round_started", "round": number},
        {"event": "round_aggregated", "round": number, "metrics": {"loss": 1 / number}},
        {"event": "evaluated", "round": number, **evaluated},
        {"event": "checkpoint_saved", "round": number, "kind": "last"},
        *([{"event": "checkpoint_saved", "round": number, "kind": "best"}] if best else []),
    ]


STRAIGHT = [{"event": "run_started"}, *round_events(1, 0.7), *round_events(2, 0.9), *round_events(3, 0.8, best=False)]


def test_rounds_best_and_final_follow_from_the_events():
    metrics = History(STRAIGHT).to_metrics()
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3]
    assert metrics["best"]["round"] == 2 and metrics["final"]["pooled"] == {"auc": 0.8}
    assert metrics["rounds"][1]["training"] == {"loss": 0.5}


def test_what_came_after_the_last_whole_round_is_taken_back():
    trouble = {"event": "hospital_failed", "round": 3, "hospital": "a"}
    given_up = [
        *STRAIGHT[:11], {"event": "round_started", "round": 3}, trouble,
        *round_events(3, 0.99), {"event": "explained", "pooled": {}}, {"event": "run_failed"},
    ]  # fmt: skip
    resumed = [*given_up, {"event": "run_resumed", "round": 2}, *round_events(3, 0.8, best=False)]
    assert History(resumed).to_metrics() == History(STRAIGHT).to_metrics()
    kept = [(e["event"], e.get("round")) for e in effective(resumed)]
    assert ("run_failed", None) not in kept and ("hospital_failed", 3) in kept
    assert kept.count(("evaluated", 3)) == 1
    one_by_one = History()
    for event in resumed:
        one_by_one.add(event)
    assert one_by_one.to_metrics() == History(STRAIGHT).to_metrics()


def test_the_best_of_a_given_up_round_is_not_the_best():
    events = [*STRAIGHT[:6], *round_events(2, 0.99), {"event": "run_resumed", "round": 1}]
    assert History(events).best["round"] == 1
    live = History()
    for event in events:
        live.add(event)
    assert live.best["round"] == 1

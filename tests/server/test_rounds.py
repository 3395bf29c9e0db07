"""The loop with hospitals that do not all behave: what each fault costs, and that it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import ConfigRecord, Message
from safetensors.numpy import load_file

from client import border
from client import round as client_round
from client.app import app as client_app
from jointdiff import checkpoint, identity, protocol, storage
from jointdiff.config import Config
from jointdiff.ema import moving_average
from jointdiff.errors import RefusedError, RunError
from jointdiff.events import read_events
from jointdiff.preparation import prepare
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.record import RunRecord
from server.replies import from_arrays, to_arrays
from server.rounds import Federation, run_federation
from simulations.local import LocalGrid

Fault = Callable[[Message, RoundInstructions, Callable[[], Message]], Message]


def faulty_app(fault: Fault):
    """Return the real ClientApp behind a fault, which may answer itself or call the app."""

    def app(message, context):
        asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
        return fault(message, asked, lambda: client_app(message, context))

    return app


def spoil(
    change: Callable[[np.ndarray], np.ndarray], hospital="hospital-2", round_number=1, kind=protocol.TRAIN
) -> Fault:
    """Return a fault that changes one hospital's tensors once."""

    def fault(message, asked, honest):
        reply = honest()
        if (asked.hospital, asked.round, asked.kind) == (hospital, round_number, kind):
            tensors = from_arrays(reply.content["arrays"])
            reply.content["arrays"] = to_arrays({name: change(tensor) for name, tensor in tensors.items()})
        return reply

    return fault


def raising(hospitals, round_number=1, kind=protocol.TRAIN) -> Fault:
    """Return a fault in which hospitals raise through Flower's border."""

    def fault(message, asked, honest):
        if asked.hospital in hospitals and (asked.round, asked.kind) == (round_number, kind):
            raise RuntimeError("at /data/patients/doe.npz")
        return honest()

    return fault


def run_with(run, fault: Fault | None = None):
    """Run a federation in process; return its folder and events."""
    app = faulty_app(fault) if fault else client_app
    folder = run_federation(LocalGrid(app), run)
    return folder, read_events(folder / "events.jsonl")


def of(events, name, **fields):
    return [e for e in events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]


def last_weights(folder):
    return load_file(folder / "checkpoints" / "last.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_the_contract_says(tiny_run, quick_referee):
    run = tiny_run(explain=2, method="two-stage")
    folder, events = run_with(run)
    config = Config.from_dict(yaml.safe_load((folder / "config.yaml").read_text()))
    assert config.run == run and config.model.num_outputs == 2
    order = [e["event"] for e in events if e["event"] != "hospital_replied"]
    a_round = ["round_started", "round_aggregated", "evaluated", "checkpoint_saved", "checkpoint_saved"]
    assert order == ["run_started", *a_round, *a_round, "explained", "sampled", "run_finished"]
    kinds = [e["kind"] for e in of(events, "hospital_replied", hospital="hospital-3")]
    # After the last round the head trains itself: it is asked for ten times more.
    assert kinds == ["describe", "head", "train", "head", "evaluate", "train", *11 * ["head"], "evaluate", "explain"]
    train = of(events, "hospital_replied", kind="train")[0]
    assert train["bytes_in"] > 0 and train["bytes_out"] > 0 and train["device"] == "cpu" and train["num_images"] == 16
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["schema_version"] == 1
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    assert metrics["final"] == metrics["rounds"][-1]
    assert metrics["final"]["pooled"]["num_images"] == 18
    assert sorted(metrics["final"]["hospitals"]) == ["hospital-1", "hospital-2", "hospital-3"]
    assert metrics["explanations"]["pooled"]["num_scans"] == 6
    assert of(events, "run_finished")[0]["report"] == str(folder / "report.html") and (folder / "report.html").is_file()
    assert (folder / metrics["samples"]["path"]).is_file()
    assert not (folder / "spool").exists()
    saved = checkpoint.load(folder / "checkpoints" / "last.safetensors")
    assert saved.round_number == 2 and saved.config == config and saved.code_hash == identity.code_hash()


def test_pooled_metrics_are_those_of_all_images_together(tiny_run):
    _, events = run_with(tiny_run(num_rounds=1))
    evaluated = of(events, "evaluated")[0]
    confusion = sum(np.array(m["confusion_matrix"]) for m in evaluated["hospitals"].values())
    assert evaluated["pooled"]["confusion_matrix"] == confusion.tolist()
    assert evaluated["pooled"]["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_the_order_of_the_replies_changes_nothing(tiny_run):
    class Reversed(LocalGrid):
        """Answers the newest question first, with a node for each hospital."""

        def pull_messages(self, message_ids):
            newest = list(self._waiting)[-1:]
            return super().pull_messages([i for i in message_ids if i in newest])

    straight, _ = run_with(tiny_run())
    back = run_federation(Reversed(num_nodes=3), tiny_run(run_name="back"))
    arrival = [e["hospital"] for e in of(read_events(back / "events.jsonl"), "hospital_replied", kind="train")]
    assert arrival[:3] == ["hospital-3", "hospital-2", "hospital-1"]
    assert same(last_weights(straight), last_weights(back))
    straight_metrics, back_metrics = (json.loads((f / "metrics.json").read_text()) for f in (straight, back))
    for entry in [*straight_metrics["rounds"], *back_metrics["rounds"]]:
        for name in [n for n in entry["training"] if n == "images_per_s" or n.startswith("seconds.")]:
            entry["training"].pop(name)  # a clock's word
    assert straight_metrics["rounds"] == back_metrics["rounds"]


def test_a_reply_with_nan_is_rejected_and_named_and_the_others_go_on(tiny_run):
    run = tiny_run(num_rounds=1)
    folder, events = run_with(run, spoil(lambda a: a * np.float32("nan")))
    rejected = of(events, "update_rejected")
    assert [(e["hospital"], e["kind"], e["round"]) for e in rejected] == [("hospital-2", "train", 1)]
    assert "NaN" in rejected[0]["reason"]
    assert of(events, "round_aggregated")[0]["num_replies"] == 2
    # Just as if it had not answered at all.
    without, _ = run_with(tiny_run(num_rounds=1, run_name="without"), raising(["hospital-2"]))
    assert same(last_weights(folder), last_weights(without))


@pytest.mark.parametrize("kind", [protocol.HEAD, protocol.EVALUATE])
def test_nonsense_statistics_are_rejected_and_named(tiny_run, kind):
    run = tiny_run(num_rounds=1, method="two-stage")
    _, events = run_with(run, spoil(lambda a: a.reshape(-1)[:0], kind=kind))
    rejected = of(events, "update_rejected")
    assert {(e["hospital"], e["kind"]) for e in rejected} == {("hospital-2", kind)}
    # A head that trains itself is asked for once more each time.
    assert len(rejected) == (11 if kind == protocol.HEAD else 1)
    assert of(events, "run_finished")


def test_wrong_shapes_are_rejected_and_named(tiny_run):
    _, events = run_with(tiny_run(num_rounds=1), spoil(lambda a: a.reshape(-1)))
    (rejected,) = of(events, "update_rejected")
    assert rejected["hospital"] == "hospital-2" and "not float32" in rejected["reason"]


def test_a_claim_to_have_no_images_is_rejected(tiny_run):
    def fault(message, asked, honest):
        reply = honest()
        if asked.hospital == "hospital-1" and asked.kind == protocol.TRAIN:
            reply.content["report"] = ConfigRecord({"json": RoundReport("hospital-1").to_json()})
        return reply

    _, events = run_with(tiny_run(num_rounds=1), fault)
    assert "positive" in of(events, "update_rejected", hospital="hospital-1")[0]["reason"]


def test_a_hospital_that_raises_costs_its_round_only(tiny_run):
    _, events = run_with(tiny_run(), raising(["hospital-3"]))
    (failed,) = of(events, "hospital_failed")
    assert (failed["hospital"], failed["round"], failed["kind"]) == ("hospital-3", 1, "train")
    assert [e["num_replies"] for e in of(events, "round_aggregated")] == [2, 3]
    assert of(events, "run_finished")


def test_no_path_of_a_site_reaches_the_server(tiny_run, monkeypatch):
    def broken(*_, **__):
        raise FileNotFoundError("/data/patients/doe.npz")

    monkeypatch.setattr(client_round.local_work, "train", broken)
    with pytest.raises(RunError) as caught:
        run_with(run := tiny_run())
    text = Path(run.home, "runs", "tiny", "events.jsonl").read_text()
    lines = [line for line in text.splitlines() if "hospital_failed" in line]
    assert len(lines) == 3 and not any("doe" in line or "/" in json.loads(line)["reason"] for line in lines)
    assert "doe" not in str(caught.value) and "FileNotFoundError" in str(caught.value)


def test_when_every_hospital_fails_the_run_fails_and_says_why(tiny_run):
    run = tiny_run()
    everyone = ["hospital-1", "hospital-2", "hospital-3"]
    with pytest.raises(RunError, match=r"In round 2 no hospital could train.*hospital-1: .*hospital-3: "):
        run_with(run, raising(everyone, round_number=2))
    events = read_events(Path(run.home) / "runs" / "tiny" / "events.jsonl")
    assert events[-1]["event"] == "run_failed" and "round 2" in events[-1]["reason"]
    # What was reached before is kept.
    folder = Path(run.home) / "runs" / "tiny"
    assert checkpoint.load(folder / "checkpoints" / "last.safetensors").round_number == 1
    assert (folder / "report.html").is_file()


def test_other_code_at_a_site_is_refused_naming_both(tiny_run, monkeypatch):
    real = identity.check_identity

    def check(version, code):
        monkeypatch.setattr(identity, "code_hash", lambda: "a" * 64)
        try:
            real(version, code)
        finally:
            monkeypatch.undo()

    with monkeypatch.context() as patch:
        patch.setattr(client_round, "check_identity", check)
        with pytest.raises(RunError, match="aaaaaaaaaaaa"):
            run_with(run := tiny_run())
    events = read_events(Path(run.home) / "runs" / "tiny" / "events.jsonl")
    refused = of(events, "hospital_refused", kind="describe")
    assert refused and identity.code_hash()[:12] in refused[0]["reason"]


def test_a_refusal_in_one_round_is_a_refusal_in_the_events(tiny_run, monkeypatch):
    real = border.run

    def refuse(asked, tensors):
        if (asked.hospital, asked.kind) == ("hospital-1", protocol.EVALUATE):
            raise RefusedError("This site does not evaluate.")
        return real(asked, tensors)

    monkeypatch.setattr(border, "run", refuse)
    _, events = run_with(tiny_run(num_rounds=1))
    assert of(events, "hospital_refused")[0]["reason"] == "This site does not evaluate."
    assert of(events, "evaluated")[0]["pooled"]["num_images"] == 12


def test_explanations_that_fail_do_not_lose_the_run(tiny_run):
    everyone = ["hospital-1", "hospital-2", "hospital-3"]
    _, events = run_with(tiny_run(num_rounds=1, explain=2), raising(everyone, kind=protocol.EXPLAIN))
    assert len(of(events, "hospital_failed", kind="explain")) == 3
    assert of(events, "run_finished")


def test_a_model_that_never_learned_to_denoise_neither_draws_nor_edits(tiny_run):
    folder, events = run_with(tiny_run(num_rounds=1, explain=2, method="supervised"))
    assert not of(events, "sampled") and not of(events, "explained") and not (folder / "samples.png").exists()
    assert of(events, "run_finished")


@pytest.mark.parametrize(("warmup_rounds", "asked_in"), [(0, 0), (1, 1), (2, 2)])
def test_a_gradient_head_is_standardised_once_when_the_label_term_starts(tiny_run, tmp_path, warmup_rounds, asked_in):
    preset = tmp_path / "gradient.yaml"
    preset.write_text(f"head: gradient\nwarmup-fraction: {warmup_rounds / 2}\nema-decay: 0.0\n")
    folder, events = run_with(tiny_run(preset=str(preset)))
    replies = of(events, "hospital_replied", kind="head")
    assert [(e["round"], e["hospital"]) for e in replies] == [(asked_in, f"hospital-{k}") for k in (1, 2, 3)]
    head = last_weights(folder)
    assert head["head.scale"].std() > 0  # not the ones it was made with


def test_an_interrupted_run_says_so(tiny_run):
    run = tiny_run()

    def stop(event):
        if event["event"] == "round_aggregated":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federation(LocalGrid(), run, callback=stop)
    events = read_events(Path(run.home) / "runs" / "tiny" / "events.jsonl")
    assert events[-1]["event"] == "run_failed" and events[-1]["reason"] == "interrupted"


def test_an_existing_run_name_is_refused_and_nothing_is_touched(tiny_run):
    folder, _ = run_with(tiny_run(num_rounds=1))
    before = (folder / "events.jsonl").read_bytes()
    with pytest.raises(RunError, match="resume"):
        run_with(tiny_run(num_rounds=1))
    assert (folder / "events.jsonl").read_bytes() == before


def test_best_is_chosen_on_held_out_labels_and_ties_take_the_later(tiny_run):
    config, _, folder = prepare(tiny_run())
    federation = Federation(LocalGrid(), config, RunRecord(folder, config))
    chosen = []
    for number, auc in enumerate([0.7, 0.9, 0.9, 0.8], start=1):
        federation.record.event("evaluated", round=number, heldout_auc=auc)
        federation.record.save_round(federation.average, round_number=number, heldout_auc=auc)
        best = checkpoint.load(folder / "checkpoints" / "best.safetensors")
        chosen.append((best.round_number, best.metric))
    assert chosen == [(1, 0.7), (2, 0.9), (3, 0.9), (3, 0.9)]
    assert storage.read_json(folder / "metrics.json")["best"]["round"] == 3


def test_without_held_out_labels_best_is_last(tiny_run):
    folder, _ = run_with(tiny_run())
    best, last = (checkpoint.load(folder / "checkpoints" / f"{kind}.safetensors") for kind in ("best", "last"))
    assert best.round_number == last.round_number == 2 and best.metric is None


def test_the_moving_average_forgets_the_random_start():
    start, one, two = ({"x": np.float32([value])} for value in (1e6, 1.0, 3.0))
    average = moving_average(start, one, 1, 0.9)
    assert average["x"] == 1.0 and average["x"].dtype == np.float32
    assert moving_average(average, two, 2, 0.9)["x"] == 2.0  # the plain mean until the decay is reached
    assert moving_average(average, two, 50, 0.5)["x"] == 2.0
    assert moving_average(average, two, 2, 0) is two

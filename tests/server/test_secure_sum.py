"""Whole runs with secure aggregation: the sum is right, the server sees nothing else, and dropouts are borne."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from safetensors.numpy import load_file

from client import round as client_round
from client import secure_sum as site_sum
from client.app import app as client_app
from jointdiff import head, parcels, protocol, quorum, secure_sum
from jointdiff.config import RunConfig, parse_run_config, to_mapping
from jointdiff.errors import ConfigError, RunError
from jointdiff.events import read_events
from jointdiff.fixed_point import for_sums, for_updates
from jointdiff.protocol import RoundInstructions, RoundReport
from server import questions, rounds
from server.aggregation import fedavg, merge_statistics
from server.hospitals import Hospitals
from server.merging import change_norm
from server.replies import to_arrays
from server.rounds import run_federation
from server.run_state import read_state
from server.slices import InMemory
from simulations.local import LocalGrid, run_local

SECURE = {"secure_aggregation": True, "min_hospitals": 0}
QUICK = {"method": "supervised", "local_steps": 1}  # one sum for the head in a whole run


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(questions, "BACKOFF_S", 0.0)


@dataclass
class Secrets:
    """What the sites would have sent without masks, by (round, hospital), the secrets they drew, and what came out."""

    updates: dict = field(default_factory=dict)  # (sent, trained, report)
    sums: dict = field(default_factory=dict)
    largest: dict[int, int] = field(default_factory=dict)  # round -> the count that has weight 1
    norm_limits: dict[int, float] = field(default_factory=dict)  # round -> what the server told
    drawn: list[bytes] = field(default_factory=list)
    means: list[dict] = field(default_factory=list)  # the server's, round by round


@pytest.fixture
def secrets(monkeypatch) -> Secrets:
    found = Secrets()
    mask_change, mask_sums = site_sum.SecureSum.mask_change, site_sum.SecureSum.mask_sums
    new_secret = secure_sum.new_secret

    def change(self, sent, trained, report):
        masked = mask_change(self, sent, trained, report)
        found.updates[self._ask.round, self._ask.hospital] = (dict(sent), trained, report)
        found.largest[self._ask.round] = self._ask.payload["largest"]
        found.norm_limits[self._ask.round] = self._ask.payload["norm_limit"]
        return masked

    def sums(self, values):
        masked = mask_sums(self, values)
        found.sums[self._ask.round, self._ask.hospital] = values
        return masked

    def secret():
        found.drawn.append(new_secret())
        return found.drawn[-1]

    apply_mean = rounds.apply_mean
    monkeypatch.setattr(
        rounds, "apply_mean", lambda mean, *a, **k: found.means.append(mean) or apply_mean(mean, *a, **k)
    )
    monkeypatch.setattr(site_sum.SecureSum, "mask_change", change)
    monkeypatch.setattr(site_sum.SecureSum, "mask_sums", sums)
    monkeypatch.setattr(secure_sum, "new_secret", secret)
    return found


class Inbox(LocalGrid):
    """Keeps every message that the server receives, and lets hospitals drop out: (round, kind) -> hospitals."""

    def __init__(self, num_nodes, drops=None) -> None:
        super().__init__(client_app, num_nodes=num_nodes)
        self.drops = drops or {}
        self.arrived: list[tuple[RoundInstructions, RoundReport, dict[str, np.ndarray]]] = []

    def _answer(self, message: Message) -> Message:
        asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
        if asked.hospital in self.drops.get((asked.round, asked.kind), ()):
            self._app = _dies
        reply = super()._answer(message)
        self._app = client_app
        if not reply.has_error():
            report = RoundReport.from_json(str(reply.content["report"]["json"]))
            arrays = parcels.unpack_all(array.numpy() for array in reply.content["arrays"].values())
            self.arrived.append((asked, report, arrays))
        return reply

    def tensors(self, kind):
        return {(a.round, a.hospital): arrays for a, _, arrays in self.arrived if a.kind == kind and arrays}


def _dies(*_):
    raise RuntimeError("at /data/patients/doe.npz")


def of(events, name, **fields):
    return [e for e in events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]


def flat(tensors) -> np.ndarray:
    return np.concatenate([np.ravel(tensors[name]).astype(np.float64) for name in sorted(tensors)])


def check_mean(secrets, mean, number, included, run) -> float:
    """Hold the mean of a round against plain FedAvg over what the included hospitals trained; return the bound."""
    trained = {name: update for (at, name), update in secrets.updates.items() if at == number}
    counts = {
        name: secure_sum.counted(run.weighting, num_images=report.num_images, num_labels=report.num_labels)
        for name, (_, _, report) in trained.items()
    }
    updates = [trained[name][1] for name in included]
    plain = fedavg([InMemory(update) for update in updates], [counts[name] for name in included], updates[0])
    relative = sum(counts[name] for name in included) / secrets.largest[number]
    bound = for_updates(run.num_hospitals).error(len(included)) / relative
    for name, array in plain.items():
        # Both are rounded to float32 at their ends.
        assert np.abs(mean[name].astype(np.float64) - array).max() <= bound + np.spacing(np.abs(array)).max(), name
    assert any(not np.array_equal(mean[name], array) for name, array in trained[included[0]][0].items())
    return bound


@pytest.mark.parametrize("weighting", ["images", "labels", "equal"])
def test_every_rounds_weights_are_those_of_plain_fedavg_within_the_stated_step(tiny_run, secrets, weighting):
    run = tiny_run(**SECURE, partition="dirichlet:1.0", weighting=weighting)
    events = read_events(run_local(run) / "events.jsonl")
    names = ["hospital-1", "hospital-2", "hospital-3"]
    assert len({report.num_images for _, _, report in secrets.updates.values()}) > 1, "equal weights would hide much"
    for number in (1, 2):
        assert check_mean(secrets, secrets.means[number - 1], number, names, run) < 1e-7
    summed = of(events, "securely_summed")
    order = [(0, "head"), (1, "train"), (1, "head"), (2, "train"), (2, "head")]
    assert [(e["round"], e["kind"]) for e in summed] == order
    assert all(e["dropped"] == {} and e["threshold"] == 2 and e["included"] == names for e in summed)
    assert summed[1]["step"] == 2**-26
    norm = change_norm(InMemory(secrets.means[0]), secrets.updates[1, "hospital-1"][0])
    assert secrets.norm_limits == {1: 0, 2: pytest.approx(10 * np.sqrt(3) * norm, rel=1e-3)}


def test_the_head_is_solved_on_the_plain_sums_within_the_stated_step(tiny_run, secrets, monkeypatch):
    seen = []
    solve_head = head.solve_head
    monkeypatch.setattr(head, "solve_head", lambda sums, config: seen.append(sums) or solve_head(sums, config))
    run_local(tiny_run(**SECURE, num_rounds=1))
    error = for_sums(3).error(3)
    for number, sums in enumerate(seen):
        plain = merge_statistics([secrets.sums[number, f"hospital-{k}"] for k in (1, 2, 3)])
        assert plain.keys() == sums.keys()
        for name, array in plain.items():
            assert sums[name].shape == array.shape
            assert np.abs(sums[name] - array).max() <= error + 1e-15 * np.abs(array).max(), name
    assert len(seen) == 2 and error < 3e-9


def test_a_head_that_trains_itself_needs_nobodys_own_sums(tiny_run):
    folders = [
        run_local(tiny_run(num_rounds=1, method="two-stage", run_name=name, **settings))
        for name, settings in (("plain", {}), ("secure", SECURE))
    ]
    plain, secure = (load_file(folder / "checkpoints" / "last.safetensors") for folder in folders)
    for name in ("head.linear.weight", "head.linear.bias"):
        np.testing.assert_allclose(secure[name], plain[name], atol=1e-3)
    kinds = [e["kind"] for e in of(read_events(folders[1] / "events.jsonl"), "securely_summed", round=1)]
    assert kinds == ["train", *["head"] * 11]


# What drops out in which round, of five: the questions, and the hospitals that are in the sum.
DROPS = {
    1: ({}, (1, 2, 3, 4, 5)),
    2: ({"keys": 1}, (2, 3, 4, 5)),
    3: ({"shares": 2}, (1, 3, 4, 5)),
    4: ({"train": 3}, (1, 2, 4, 5)),
    5: ({"unmask": 4}, (1, 2, 3, 4, 5)),
    6: ({"train": 5, "unmask": 1}, (1, 2, 3, 4)),
    7: ({"keys": 2, "train": 1}, (3, 4, 5)),
}


def test_hospitals_that_drop_out_are_named_and_the_sum_of_the_others_is_right(tiny_run, secrets):
    run = tiny_run(**SECURE, **QUICK, num_hospitals=5, num_rounds=len(DROPS))
    plan = {
        (number, kind): [f"hospital-{k}"] for number, (drops, _) in DROPS.items() for kind, k in drops.items()
    }  # fmt: skip
    events = read_events(run_federation(Inbox(5, plan), run) / "events.jsonl")
    for number, (drops, included) in DROPS.items():
        (summed,) = of(events, "securely_summed", round=number, kind="train")
        names = [f"hospital-{k}" for k in included]
        assert summed["included"] == names, number
        assert summed["dropped"] == {f"hospital-{k}": kind for kind, k in drops.items()}, number
        failed = {(e["kind"], e["hospital"]) for e in of(events, "hospital_failed", round=number)}
        assert failed == {(kind, f"hospital-{k}") for kind, k in drops.items()}, number
        check_mean(secrets, secrets.means[number - 1], number, names, run)


def reveals(message: np.ndarray, hidden: np.ndarray) -> bool:
    """Tell whether an array holds another one to any degree that a correlation shows (6 standard deviations)."""
    if message.std() == 0 or hidden.std() == 0:
        return False
    return abs(np.corrcoef(message, hidden)[0, 1]) > 6 / np.sqrt(message.size)


def views(arrays) -> dict[str, np.ndarray]:
    """Return what a curious server may take a message's numbers for."""
    signed = {n: a.view(f"i{a.itemsize}") if a.dtype.kind == "u" else a for n, a in arrays.items()}
    found = {"as they are": flat(arrays), "signed": flat(signed)}
    if all(a.itemsize == 4 for a in arrays.values()):
        found["low half"] = flat({n: np.ascontiguousarray(a).view(np.uint32) & 0xFFFF for n, a in arrays.items()})
        with np.errstate(invalid="ignore"):
            as_floats = flat({n: np.ascontiguousarray(a).view(np.float32) for n, a in arrays.items()})
        found["as floats"] = np.nan_to_num(as_floats, posinf=0, neginf=0).clip(-1e3, 1e3)
    return found


def test_the_servers_inbox_holds_no_update_in_the_clear(tiny_run, secrets):
    run = tiny_run(**SECURE)
    grid = Inbox(3)
    on_disk: set[bytes] = set()
    folder = run_federation(grid, run, callback=lambda _: on_disk.update(_server_files(run).values()))
    for kind, hidden in ((protocol.TRAIN, secrets.updates), (protocol.HEAD, secrets.sums)):
        received = grid.tensors(kind)
        assert received.keys() == hidden.keys() and len(received) >= 6
        for at, arrays in received.items():
            plain = hidden[at]
            secret = [plain] if kind == protocol.HEAD else [
                plain[1], {n: plain[1][n] - plain[0][n] for n in plain[1]}
            ]  # fmt: skip
            for values in secret:
                for how, view in views(arrays).items():
                    assert not reveals(view, flat(values)), f"{kind} {at} {how}"
            counts = np.bincount(np.concatenate([np.ravel(a).view(np.uint8) for a in arrays.values()]), minlength=256)
            chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
            assert abs(chi_square - 255) < 6 * np.sqrt(2 * 255), f"{kind} {at}: bytes are not uniform"
    texts = "".join(report.to_json() for _, report, _ in grid.arrived)
    assert len(secrets.drawn) == 3 * 3 * 5 and not [s for s in secrets.drawn if secure_sum.to_text(s) in texts]
    assert not _on_the_servers_disk(on_disk, secrets.updates)
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file() and "sites" not in p.parts)
    assert not [s for s in secrets.drawn if secure_sum.to_text(s).encode() in everything]
    # Nobody dropped out, so not one share of a key was given, and the keys stay secret for ever.
    assert all(r.payload["keys"] == {} for a, r, _ in grid.arrived if a.kind == protocol.UNMASK)


def _server_files(run):
    root = _folder(run)
    return {
        path.name: path.read_bytes()
        for part in ("spool", "state", "checkpoints")
        for path in (root / part).glob("*.safetensors")
    }


def _folder(run) -> Path:
    return Path(run.home) / "runs" / run.run_name


def _on_the_servers_disk(files, updates) -> set:
    """Return (round, hospital) of each update one of whose tensors lay whole in a file of the server."""
    found = set()
    for at, (sent, trained, _) in updates.items():
        changed = [a for n, a in trained.items() if a.size > 16 and not np.array_equal(a, sent[n])]
        assert changed
        found |= {at for content in files for array in changed if array.tobytes() in content}
    return found


def test_the_same_look_finds_every_update_of_a_plain_run(tiny_run, monkeypatch):
    """The search above can fail: without masks it finds each hospital's weights, in the inbox and on the disk."""
    updates = {}
    train = client_round._WORK[protocol.TRAIN]

    def spied(site, tensors):
        report, weights = train(site, tensors)
        updates[site.instructions.round, site.instructions.hospital] = (dict(tensors), weights, report)
        return report, weights

    monkeypatch.setitem(client_round._WORK, protocol.TRAIN, spied)
    run, grid, on_disk = tiny_run(num_rounds=1), Inbox(3), set()
    run_federation(grid, run, callback=lambda _: on_disk.update(_server_files(run).values()))
    for at, arrays in grid.tensors(protocol.TRAIN).items():
        assert reveals(views(arrays)["as they are"], flat(updates[at][1]))
    assert _on_the_servers_disk(on_disk, updates) >= {(1, "hospital-1"), (1, "hospital-2")}


def test_too_few_left_is_a_new_session_and_then_the_end(tiny_run, secrets):
    run = tiny_run(**SECURE, **QUICK, num_rounds=1, round_retries=1)
    grid = Inbox(3, {(1, "train"): ["hospital-2"]})
    with pytest.raises(RunError, match="only 2 of the 3 hospitals that are needed could train"):
        run_federation(grid, run)
    events = read_events(_folder(run) / "events.jsonl")
    repeated = of(events, "round_repeated")
    assert [(e["kind"], e["num_replies"], e["min_hospitals"]) for e in repeated] == [("train", 2, 3)]
    nonces = [a.payload["session"] for a, _, _ in grid.arrived if (a.round, a.kind) == (1, "keys")]
    assert len(nonces) == 6 and len(set(nonces)) == 2


def test_a_round_that_is_repeated_is_a_new_session_and_the_first_one_stays_shut(tiny_run, secrets):
    class FirstSessionFails(Inbox):
        nonce = ""

        def _answer(self, message):
            asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
            if (asked.round, asked.kind) == (1, "train"):
                self.nonce = self.nonce or asked.payload["session"]
                fails = asked.payload["session"] == self.nonce
                self.drops = {(1, "train"): ["hospital-2"]} if fails else {}
            return super()._answer(message)

    grid = FirstSessionFails(3)
    run = tiny_run(**SECURE, **QUICK, num_rounds=1, round_retries=1)
    folder = run_federation(grid, run)
    events = read_events(folder / "events.jsonl")
    names = ["hospital-1", "hospital-2", "hospital-3"]
    assert of(events, "securely_summed", round=1, kind="train")[0]["included"] == names
    assert len(of(events, "round_repeated")) == 1
    check_mean(secrets, secrets.means[0], 1, names, run)
    opened = [a.payload["session"] for a, _, _ in grid.arrived if (a.round, a.kind) == (1, "unmask")]
    assert len(opened) == 3 and grid.nonce not in opened
    twice = [arrays for a, _, arrays in grid.arrived if (a.round, a.kind, a.hospital) == (1, "train", "hospital-1")]
    assert len(twice) == 2
    assert not reveals(flat(twice[0]) - flat(twice[1]), flat(secrets.updates[1, "hospital-1"][1]))


def test_two_of_three_go_on_where_min_hospitals_says_so(tiny_run, secrets):
    run = tiny_run(**{**SECURE, "min_hospitals": 2}, **QUICK, num_rounds=1)
    folder = run_federation(Inbox(3, {(1, "train"): ["hospital-2"]}), run)
    (summed,) = of(read_events(folder / "events.jsonl"), "securely_summed", round=1, kind="train")
    assert summed["included"] == ["hospital-1", "hospital-3"] and summed["dropped"] == {"hospital-2": "train"}


def test_a_hospital_whose_training_diverges_refuses_and_is_named(tiny_run, monkeypatch):
    train_round = client_round.local_work.train

    def diverging(model, *args, hospital_index, **settings):
        found = train_round(model, *args, hospital_index=hospital_index, **settings)
        if hospital_index == 1:
            next(model.parameters()).data.fill_(float("nan"))
        return found

    monkeypatch.setattr(client_round.local_work, "train", diverging)
    run = tiny_run(**SECURE, **QUICK, num_hospitals=4, num_rounds=1)
    events = read_events(run_local(run) / "events.jsonl")
    (refused,) = of(events, "hospital_refused")
    assert (refused["hospital"], refused["kind"]) == ("hospital-2", "train") and "NaN or infinite" in refused["reason"]


def _resent(reply, report, payload, arrays):
    reply.content["report"] = ConfigRecord({"json": replace(report, payload=payload).to_json()})
    reply.content["arrays"] = to_arrays(arrays)
    return reply


SPOILED = [  # of hospital-2's answers, one a round: what becomes of payload and tensors, at which question, the reason
    (lambda r, a: ({"keys": r["keys"][:1] * 2}, a), "keys", "two different"),
    (lambda r, a: ({}, a), "keys", "two different"),
    (lambda r, a: ({"sealed": {}}, a), "shares", "every other hospital"),
    (lambda r, a: (r, {n: v.astype(np.float32) for n, v in a.items()}), "train", "not uint32"),
    (lambda r, a: (r, {n: v for n, v in a.items() if n != "head.mean"}), "train", "missing ['head.mean']"),
    (lambda r, a: ({"seeds": {}, "keys": {}}, a), "unmask", "not those that were asked for"),
    (lambda r, a: ({**r, "seeds": dict.fromkeys(r["seeds"], "QUJD")}, a), "unmask", "3 bytes, not 32"),
]


def test_an_answer_that_does_not_fit_is_rejected_and_the_others_go_on(tiny_run):
    class Spoiling(Inbox):
        def _answer(self, message):
            reply = super()._answer(message)
            asked, report, arrays = self.arrived[-1]
            if asked.round and asked.hospital == "hospital-2" and asked.kind == SPOILED[asked.round - 1][1]:
                return _resent(reply, report, *SPOILED[asked.round - 1][0](report.payload, arrays))
            return reply

    run = tiny_run(**SECURE, **QUICK, num_hospitals=4, num_rounds=len(SPOILED))
    events = read_events(run_federation(Spoiling(4), run) / "events.jsonl")
    for number, (_, kind, text) in enumerate(SPOILED, start=1):
        (rejected,) = of(events, "update_rejected", round=number)
        assert (rejected["hospital"], rejected["kind"]) == ("hospital-2", kind) and text in rejected["reason"]
        (summed,) = of(events, "securely_summed", round=number, kind="train")
        assert summed["dropped"] == {"hospital-2": kind}
        assert ("hospital-2" in summed["included"]) == (kind == "unmask")


def test_wrong_shares_are_noticed_and_the_round_is_a_new_session(tiny_run):
    class Lying(Inbox):
        def _answer(self, message):
            reply = super()._answer(message)
            asked, report, _ = self.arrived[-1]
            if (asked.round, asked.kind, asked.hospital) == (1, "unmask", "hospital-1"):
                seeds = dict.fromkeys(report.payload["seeds"], secure_sum.to_text(bytes(32)))
                return _resent(reply, report, {**report.payload, "seeds": seeds}, {})
            return reply

    run = tiny_run(**SECURE, **QUICK, num_rounds=1, round_retries=1)
    with pytest.raises(RunError, match=r"the masks on .* do not cancel"):
        run_federation(Lying(3), run)
    assert len(of(read_events(_folder(run) / "events.jsonl"), "round_repeated")) == 1


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam", "fedyogi"])
def test_the_strategies_that_need_only_the_mean_work(tiny_run, strategy):
    plain, secure = (
        read_state(run_local(tiny_run(num_rounds=1, strategy=strategy, run_name=name, method="supervised", **extra)))
        for name, extra in (("plain", {}), ("secure", SECURE))
    )
    assert plain.moments.keys() == secure.moments.keys()
    for name, array in plain.weights.items():
        assert np.allclose(array, secure.weights[name], atol=2e-4), name  # an adaptive step enlarges tiny changes


def test_a_resumed_run_makes_new_sessions_and_ends_as_one_that_was_not_stopped(tiny_run):
    class Stop(Exception):
        pass

    def stop(event):
        if event["event"] == "hospital_replied" and (event["round"], event["kind"]) == (2, "shares"):
            raise Stop

    whole = run_local(tiny_run(**SECURE, run_name="whole"))
    run = tiny_run(**SECURE, run_name="stopped")
    with pytest.raises(Stop):
        run_local(run, stop)
    folder = run_local(replace(run, resume=True))
    a, b = (load_file(f / "checkpoints" / "last.safetensors") for f in (whole, folder))
    assert all(np.array_equal(a[name], b[name]) for name in a)  # sums of whole numbers: masks leave no trace
    assert not list(folder.rglob(site_sum.FILE)), "secrets stay behind"
    kinds = [e["kind"] for e in of(read_events(folder / "events.jsonl"), "securely_summed", round=2)]
    assert kinds == ["train", "head"]


def test_fewer_supernodes_than_hospitals_are_refused(tiny_run, monkeypatch):
    monkeypatch.setattr("server.hospitals.time.sleep", lambda _: None)
    now = iter(range(0, 10_000, 60))
    hospitals = Hospitals(
        LocalGrid(num_nodes=2), ["a", "b", "c"], one_each=True, clock=lambda: next(now), sleep=lambda _: None
    )
    asked = [RoundInstructions(protocol.KEYS, "run", name, 0, 1, {}, "", "v", "h") for name in ("a", "b", "c")]
    with pytest.raises(RunError, match=r"2 connected within 180 s for 3 hospitals.*num-supernodes=3"):
        list(hospitals.ask(asked, None))


def test_a_hospital_whose_supernode_is_gone_is_not_moved_to_another(tiny_run):
    class Losing(Inbox):
        lost = False

        def get_node_ids(self):
            nodes = list(super().get_node_ids())
            return nodes[:1] + nodes[2:] if self.lost else nodes

    grid = Losing(4)
    seen = []

    def look(event):
        grid.lost = grid.lost or event["event"] == "round_started"

    original = LocalGrid.push_messages

    def push(messages):
        messages = list(messages)
        for message in messages:
            asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
            seen.append((asked.hospital, message.metadata.dst_node_id))
        return original(grid, messages)

    grid.push_messages = push
    folder = run_federation(grid, tiny_run(**SECURE, **QUICK, num_hospitals=4, num_rounds=1), callback=look)
    assert len(set(seen)) == 4, "a hospital was moved to another's SuperNode"
    failed = of(read_events(folder / "events.jsonl"), "hospital_failed", round=1)
    assert {(e["hospital"], e["reason"]) for e in failed} == {("hospital-2", "its SuperNode is not connected")}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *(({"strategy": rule, "num-hospitals": 5}, "a robust rule must see every") for rule in
          ("trimmed-mean", "median", "krum", "multi-krum")),
        ({"num-hospitals": 2}, "needs num-hospitals of at least 3, not 2"),
        ({"num-hospitals": 1}, "needs num-hospitals of at least 3, not 1"),
        ({"min-hospitals": 1}, "must be 0 or at least 2 of 3"),
        ({"num-hospitals": 9, "min-hospitals": 4}, "must be 0 or at least 5 of 9"),
    ],
)  # fmt: skip
def test_what_excludes_secure_aggregation_is_refused_with_the_reason(changes, text):
    parse_run_config({**to_mapping(RunConfig()), **changes, "min-hospitals": 0})  # without it all of them are fine
    with pytest.raises(ConfigError, match=text):
        parse_run_config({**to_mapping(RunConfig()), "secure-aggregation": True, **changes})


def test_the_quorum_of_the_readme():
    assert [quorum.least_summands(n) for n in (3, 4, 5, 6, 7)] == [3, 3, 3, 4, 4]

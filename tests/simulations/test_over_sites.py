"""A run over hospitals with data of their own (`dataset=sites`), in one process: each has a home with a site.yaml."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jointdiff.config import parse_run_config
from jointdiff.errors import ConfigError, RunError
from jointdiff.events import read_events
from jointdiff.protocol import RoundInstructions
from server.deployment import federation_folder
from server.deployment.hospital_record import Hospital, opened
from server.rounds import run_federation
from simulations.local import SERVER_NODE_ID, LocalGrid
from tests.conftest import TINY_SIZE

NAMES = ("anna", "city", "north")


class SitesGrid(LocalGrid):
    """Every node is a machine of its own: the home that a process finds there is that of the node's site."""

    def __init__(self, homes: dict[int, Path], monkeypatch) -> None:
        super().__init__(num_nodes=len(homes))
        self.homes, self.patch, self.asked = homes, monkeypatch, []

    def _answer(self, message):
        self.asked.append(RoundInstructions.from_json(str(message.content["instructions"]["json"])))
        with self.patch.context() as patch:
            patch.setenv("JOINTDIFF_HOME", str(self.homes[message.metadata.dst_node_id]))
            return super()._answer(message)


@pytest.fixture
def sites(tmp_path, tiny_files) -> dict[int, Path]:
    """Homes of three sites by node id: the second has an unlabelled half, the third calls its classes otherwise."""
    homes = {}
    with np.load(tiny_files / "data.npz") as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    for k, name in enumerate(NAMES):
        home = tmp_path / name
        home.mkdir()
        own = labels[k::3].astype(np.int64)
        if k == 1:
            own[::2] = -1
        names = ("healthy", "ill") if k < 2 else ("gesund", "krank")
        np.savez(home / "scans.npz", train_images=images[k::3], train_labels=own, class_names=np.array(names))
        classes = "\n  classes: {healthy: gesund, ill: krank}" if k == 2 else ""
        text = f"data:\n  kind: npz\n  path: scans.npz{classes}\nprivacy:\n  min-cell-count: 0\n"
        (home / "site.yaml").write_text(text)
        homes[SERVER_NODE_ID + 1 + k] = home
    return homes


@pytest.fixture
def run(tiny_run, sites, tmp_path):
    """The run-config over these sites, who are admitted in another order than their nodes' ids."""
    coordinator = tmp_path / "coordinator"
    coordinator.mkdir()
    folder = federation_folder.of(coordinator)
    folder.path.mkdir(mode=0o700)
    with opened(folder) as (hospitals, _):
        for k in (2, 0, 1):
            node_id = str(SERVER_NODE_ID + 1 + k)
            hospitals.append(Hospital(NAMES[k], f"SHA256:{k}", f"key {k}", node_id, "2026-01-01T00:00:00+00:00"))
    return tiny_run(
        dataset="sites", classes="healthy,ill", num_labels=0, hospitals="north,anna,city", home=str(coordinator),
        explain=4, image_size=TINY_SIZE,
    )  # fmt: skip


def test_every_hospital_trains_on_its_own_data_under_its_own_name(run, sites, monkeypatch):
    grid = SitesGrid(sites, monkeypatch)
    folder = run_federation(grid, run)
    events = read_events(folder / "events.jsonl")
    assert events[-1]["event"] == "run_finished"
    assert not [e for e in events if e["event"] in ("hospital_failed", "hospital_refused", "update_rejected")]
    described = {
        e["hospital"]: e["table"] for e in events if e["event"] == "hospital_replied" and e["kind"] == "describe"
    }
    assert set(described) == set(NAMES)
    assert described["city"]["num_unlabelled"] == 8 and described["anna"]["num_unlabelled"] == 0
    assert described["north"]["class_names"] == ["healthy", "ill"], "a site's own names stay there"
    final = json.loads((folder / "metrics.json").read_text())["final"]
    assert set(final["hospitals"]) == set(NAMES)
    for node_id, home in sites.items():
        assert (home / "explanations" / "tiny" / "index.html").is_file()
        assert (home / "egress" / "tiny" / "round-0001.json").is_file()
        assert {a.hospital for a in grid.asked if a.hospital == NAMES[node_id - SERVER_NODE_ID - 1]}
    assert {a.site_folder for a in grid.asked} == {""}
    assert not (folder / "sites").exists() and not list(folder.rglob("*.npz"))


def test_what_a_site_found_in_its_explanations_stays_there_where_its_site_yaml_says_so(run, sites, monkeypatch):
    """`report: none`: the gallery is made with its grades, and the reply itself holds none of them."""
    monkeypatch.setattr("jointdiff.explanation.appointed_referee", lambda *_, **__: None)
    monkeypatch.setattr("jointdiff.explanation.grade_samples", lambda *_, **__: {"samples.num": 4.0})
    anna = sites[SERVER_NODE_ID + 1]
    (anna / "site.yaml").write_text((anna / "site.yaml").read_text() + "explanations: {report: none}\n")
    replies: dict[str, str] = {}

    class Listens(SitesGrid):
        def _answer(self, message):
            asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
            reply = super()._answer(message)
            if asked.kind == "explain":
                assert not any(reply.content.array_records.values())
                replies[asked.hospital] = json.dumps(
                    [dict(record) for record in (*reply.content.config_records.values(),
                                                 *reply.content.metric_records.values())]
                )  # fmt: skip
            return reply

    folder = run_federation(Listens(sites, monkeypatch), replace(run, num_rounds=1))
    (explained,) = [e for e in read_events(folder / "events.jsonl") if e["event"] == "explained"]
    assert explained["hospitals"]["anna"] == {} and "validity" in explained["hospitals"]["city"]
    told = sum(grades.get("num_scans", 0) for grades in explained["hospitals"].values())
    assert explained["pooled"]["num_scans"] == told > 0
    assert "validity" in replies["city"] and "samples.num" in replies["city"]
    assert "validity" not in replies["anna"] and "samples" not in replies["anna"], replies["anna"]
    for home in sites.values():
        gallery = home / "explanations" / "tiny"
        assert (gallery / "index.html").is_file() and list(gallery.glob("*-scan.png"))
        assert "validity" in json.loads((gallery / "metrics.json").read_text())["metrics"]
    left = "".join(path.read_text() for path in (anna / "egress" / "tiny").glob("*.json"))
    assert '"explain"' in left and "validity" not in left


def test_a_site_refuses_a_run_that_names_a_data_set_or_its_data(run, tiny_run, sites, monkeypatch):
    grid = SitesGrid(sites, monkeypatch)
    simulated = tiny_run(run_name="rogue", home=run.home)
    with pytest.raises(RunError, match="no hospital could describe"):
        run_federation(grid, simulated)
    events = read_events(Path(run.home) / "runs" / "rogue" / "events.jsonl")
    refused = [e["reason"] for e in events if e["event"] == "hospital_refused"]
    assert len(refused) == 3 and all("belongs to a site with a policy of its own" in reason for reason in refused)

    class NamesNoFolder(SitesGrid):
        def _answer(self, message):
            asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
            message.content["instructions"]["json"] = replace(asked, site_folder="").to_json()
            return super()._answer(message)

    with pytest.raises(RunError):
        run_federation(NamesNoFolder(sites, monkeypatch), replace(simulated, run_name="rogue-2"))
    events = read_events(Path(run.home) / "runs" / "rogue-2" / "events.jsonl")
    refused = [e["reason"] for e in events if e["event"] == "hospital_refused"]
    assert len(refused) == 3 and all("set dataset=sites" in reason for reason in refused)


def test_a_site_without_data_of_its_own_refuses_and_the_others_go_on(run, sites, monkeypatch):
    (sites[SERVER_NODE_ID + 1] / "site.yaml").write_text("privacy:\n  min-cell-count: 0\n")
    events = read_events(run_federation(SitesGrid(sites, monkeypatch), run) / "events.jsonl")
    refused = {e["hospital"]: e["reason"] for e in events if e["event"] == "hospital_refused"}
    assert set(refused) == {"anna"} and "has named none" in refused["anna"]
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [2, 2]


def test_a_run_resumes_with_its_own_hospitals(run, sites, monkeypatch):
    straight = run_federation(SitesGrid(sites, monkeypatch), replace(run, run_name="straight", explain=0))

    class Dies(SitesGrid):
        def _answer(self, message):
            asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
            if (asked.round, asked.kind) == (2, "train"):
                raise KeyboardInterrupt
            return super()._answer(message)

    with pytest.raises(KeyboardInterrupt):
        run_federation(Dies(sites, monkeypatch), replace(run, explain=0))
    resume = parse_run_config({"run-name": "tiny", "home": run.home, "resume": True})
    folder = run_federation(SitesGrid(sites, monkeypatch), resume)
    both = [(f / "checkpoints" / "last.safetensors") for f in (folder, straight)]
    from safetensors.numpy import load_file

    a, b = map(load_file, both)
    assert all(np.array_equal(a[name], b[name]) for name in b)


def test_a_hospital_that_is_not_admitted_is_named_before_anything_starts(run, sites, monkeypatch):
    with pytest.raises(RunError, match=r"south: not admitted .* Admitted are: north, anna, city"):
        run_federation(SitesGrid(sites, monkeypatch), replace(run, hospitals="north,anna,south"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ""}, "at least 2 different names"),
        ({"classes": "a,a"}, "at least 2 different names"),
        ({"channels": 2}, "channels must be 1"),
        ({"task": "binary"}, "Unknown task"),
        ({"num-labels": 12}, "brings its own data and labels"),
        ({"data-root": "/data"}, "brings its own data and labels"),
        ({"partition": "scanner"}, "brings its own data and labels"),
        ({"hospitals": "a,b"}, "num-hospitals says: 3"),
        ({"hospitals": "a,b,B/c"}, "small letters"),
        ({"dataset": "phantom", "num-labels": 12}, "for dataset=sites alone"),
    ],
)
def test_keys_that_contradict_each_other_are_one_clear_error(changes, said):
    keys = {"dataset": "sites", "classes": "healthy,ill", "num-labels": 0, "hospitals": "a,b,c"}
    with pytest.raises(ConfigError, match=said):
        parse_run_config(keys | changes)

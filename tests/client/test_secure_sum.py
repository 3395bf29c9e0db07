"""A site's steps in a secure sum: each once, in their order, and never both secrets of another hospital."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from client.secure_sum import FILE, SecureSum
from jointdiff import protocol, secure_sum
from jointdiff.errors import RefusedError
from jointdiff.fixed_point import for_updates
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.secure_sum import PublicKeys, Session, to_bytes

SENT = {"w": np.arange(-20, 20, dtype=np.float32) / 16}


class Sites:
    """Three sites and what a server would hand on between them."""

    def __init__(self, run, folder, count=3) -> None:
        self.run, self.folder = run, folder
        self.names = [f"hospital-{k + 1}" for k in range(count)]
        self.nonce = "n1"

    def at(self, name, kind, **payload) -> SecureSum:
        payload = {"session": self.nonce, **payload}
        asked = RoundInstructions(kind, "run", name, 0, 1, {}, "", "v", "h", payload=payload)
        return SecureSum(asked, self.run, self.folder / name)

    def path(self, name):
        return self.folder / name / "state" / "run" / FILE

    def keys(self):
        self.roster = {name: self.at(name, protocol.KEYS).show_keys()["keys"] for name in self.names}

    def shares(self, names=None):
        told = {"of": protocol.TRAIN, "roster": self.roster}
        asked = names or self.names
        self.sealed = {n: self.at(n, protocol.SHARES, **told).deal_shares()["sealed"] for n in asked}

    def masked(self, name, *, trained=None, largest=8, norm_limit=0.0, num_images=8, kind=protocol.TRAIN):
        sealed = {sender: boxes[name] for sender, boxes in self.sealed.items() if sender != name}
        site = self.at(name, kind, sealed=sealed, largest=largest, norm_limit=norm_limit)
        trained = trained or {"w": SENT["w"] + np.float32(0.5)}
        return site.mask_change(SENT, trained, RoundReport(name, num_images=num_images))

    def reveal(self, name, survivors):
        return self.at(name, protocol.UNMASK, survivors=survivors).reveal()


@pytest.fixture
def sites(tiny_run, tmp_path):
    return Sites(tiny_run(secure_aggregation=True, min_hospitals=0), tmp_path)


@pytest.fixture
def five(tiny_run, tmp_path):
    return Sites(tiny_run(secure_aggregation=True, min_hospitals=0, num_hospitals=5), tmp_path, 5)


def test_three_sites_make_a_sum(sites):
    sites.keys()
    sites.shares()
    sent = [sites.masked(name, num_images=count) for name, count in zip(sites.names, (8, 4, 2), strict=True)]
    revealed = {k + 1: sites.reveal(name, sites.names) for k, name in enumerate(sites.names)}
    assert all(answer["keys"] == {} for answer in revealed.values())
    seeds = {
        name: secure_sum.combine({at: to_bytes(answer["seeds"][name]) for at, answer in revealed.items()}, 2)
        for name in sites.names
    }
    roster = {name: PublicKeys.from_json(keys) for name, keys in sites.roster.items()}
    total = {"w": sent[0]["w"] + sent[1]["w"] + sent[2]["w"]}
    unmasked = secure_sum.unmask(
        total, Session("n1", "train", 2, roster), participants=sites.names, largest=8, seeds=seeds, keys={}
    )
    assert np.array_equal(for_updates(3).decode(unmasked, 3)["w"], np.full(40, 0.5 * (1 + 0.5 + 0.25)))


def test_secrets_lie_in_a_file_for_the_owner_alone_and_are_gone_with_the_answer(sites):
    sites.keys()
    for step in (lambda: None, sites.shares, lambda: [sites.masked(name) for name in sites.names]):
        step()
        for name in sites.names:
            assert stat.S_IMODE(sites.path(name).stat().st_mode) == 0o600
    kept = json.loads(sites.path("hospital-1").read_text())
    assert kept.keys() == {"session", "done", "received"}, "the own secrets are of no more use once the masks are on"
    sites.reveal("hospital-1", sites.names)
    assert not sites.path("hospital-1").exists()
    assert [p for p in (sites.folder / "hospital-1").rglob("*") if p.is_file()] == []


def test_shares_are_given_once_and_for_one_list_of_survivors(five):
    five.keys()
    five.shares()
    for name in five.names:
        five.masked(name)
    first = five.reveal("hospital-1", five.names[:4])
    assert first["seeds"].keys() == set(five.names[:4]) and first["keys"].keys() == {"hospital-5"}
    for survivors in (five.names[:4], five.names):
        with pytest.raises(RefusedError, match="is done once"):
            five.reveal("hospital-1", survivors)


@pytest.mark.parametrize(
    ("survivors", "text"),
    [
        (["hospital-1", "hospital-2"], "2 hospitals are left in the sum; below 3"),
        (["hospital-2", "hospital-3", "hospital-4"], "or not this hospital"),
        (["hospital-1", "hospital-2", "hospital-9"], "names others"),
        (7, "lacks something"),
    ],
)
def test_a_wrong_list_of_survivors_opens_nothing_and_spoils_nothing(five, survivors, text):
    five.keys()
    five.shares()
    for name in five.names:
        five.masked(name)
    with pytest.raises(RefusedError, match=text):
        five.reveal("hospital-1", survivors)
    assert five.reveal("hospital-1", five.names)["keys"] == {}


def test_a_second_masked_answer_is_refused(sites):
    sites.keys()
    sites.shares()
    sites.masked("hospital-1")
    with pytest.raises(RefusedError, match="is done once"):
        sites.masked("hospital-1", trained={"w": SENT["w"]})


def test_shares_are_dealt_once(sites):
    sites.keys()
    sites.shares()
    with pytest.raises(RefusedError, match="not at the step 'shares'"):
        sites.shares()


def test_steps_of_another_session_or_out_of_order_are_refused(sites):
    sites.keys()
    with pytest.raises(RefusedError, match="not at the step 'unmask'"):
        sites.reveal("hospital-1", sites.names)
    sites.shares()
    sites.nonce = "n2"
    with pytest.raises(RefusedError, match="not at the step 'train'"):
        sites.masked("hospital-1")
    with pytest.raises(RefusedError, match="not at the step"):
        sites.at("hospital-1", protocol.TRAIN).check_ready()
    sites.path("hospital-2").unlink()
    with pytest.raises(RefusedError, match="not at the step"):
        sites.masked("hospital-2")


def test_new_keys_end_the_session_before(sites):
    sites.keys()
    sites.shares()
    before = sites.path("hospital-1").read_text()
    sites.nonce = "n2"
    sites.keys()
    after = sites.path("hospital-1").read_text()
    assert json.loads(before)["seed"] not in after and json.loads(before)["masking"] not in after


def test_sums_of_another_kind_than_the_keys_were_made_for_are_refused(sites):
    sites.keys()
    sites.shares()
    with pytest.raises(RefusedError, match="another kind"):
        sites.masked("hospital-1", kind=protocol.HEAD)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda r: r.pop("hospital-3"), "2 hospitals take part; it must be 3"),
        (
            lambda r: r.update({"hospital-1": r["hospital-2"], "hospital-2": r["hospital-1"]}),
            "does not hold this hospital's own",
        ),
        (lambda r: r.update({"hospital-3": r["hospital-2"]}), "same public key"),
        (lambda r: r.update({"hospital-3": ["a", "b"]}), "base64|bytes"),
        (lambda r: r.update({"hospital-3": 3}), "two different ones"),
    ],
)
def test_a_list_of_keys_that_cannot_be_right_gets_no_shares(sites, spoil, text):
    sites.keys()
    spoil(sites.roster)
    with pytest.raises(RefusedError, match=text):
        sites.shares(["hospital-1"])


def test_shares_that_were_changed_or_are_of_too_few_get_no_tensors(sites):
    sites.keys()
    sites.shares()
    boxes = sites.sealed["hospital-2"]
    sites.sealed["hospital-2"] = {**boxes, "hospital-1": boxes["hospital-3"]}
    with pytest.raises(RefusedError, match="cannot be opened"):
        sites.masked("hospital-1")
    del sites.sealed["hospital-2"]
    with pytest.raises(RefusedError, match="2 hospitals are left in the sum; below 3"):
        sites.masked("hospital-3")


def test_min_hospitals_2_lets_two_of_three_go_on(tiny_run, tmp_path):
    sites = Sites(tiny_run(secure_aggregation=True, min_hospitals=2), tmp_path)
    sites.keys()
    sites.shares(["hospital-1", "hospital-2"])
    for name in sites.names[:2]:
        sites.masked(name)
    assert sites.reveal("hospital-1", sites.names[:2])["seeds"].keys() == set(sites.names[:2])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trained": {"w": SENT["w"] + np.float32("nan")}}, "NaN or infinite"),
        ({"trained": {"w": SENT["w"] + np.float32(8.5)}}, "w holds 8.5, but a secure sum carries"),
        ({"norm_limit": 0.1}, "more than the 0.1 that the changes"),
        ({"largest": 7}, "said to count 7, but this one counts 8"),
        ({"largest": None}, "lacks something"),
    ],
)
def test_a_change_that_cannot_be_summed_does_not_leave(sites, settings, text):
    sites.keys()
    sites.shares()
    with pytest.raises(RefusedError, match=text):
        sites.masked("hospital-1", **settings)
    assert sites.masked("hospital-1")["w"].dtype == np.uint32  # nothing was lost by it


def test_a_run_without_secure_sums_has_no_keys(tiny_run, tmp_path):
    with pytest.raises(RefusedError, match="without secure-aggregation"):
        Sites(tiny_run(), tmp_path).keys()

"""Every policy with every teacher, through a whole tiny federation."""

import json

import pytest
from safetensors import safe_open

from jointdiff.events import read_events
from jointdiff.pseudo_label_keys import POLICIES, TEACHERS
from simulations.local import run_local

PAIRS = [
    pytest.param(p, t, marks=() if p == "softmatch" or t == "global" else pytest.mark.slow)
    for p in POLICIES
    for t in TEACHERS
    if p != "mixture" or t == "global"
]
KEPT = {"fixed": set(), "mixture": set(), "freematch": {"confidence", "class_probs"}, "flexmatch": {"settled"},
        "softmatch": {"mean", "variance"}}  # fmt: skip


def federation(tiny_run, tmp_path, **training):
    preset = tmp_path / "preset.yaml"
    keys = {"warmup-fraction": 0.0, "head": "gradient", "class-weight": 1.0, "pseudo-weight": 1.0, "threshold": 0.5}
    preset.write_text(json.dumps(keys | {name.replace("_", "-"): value for name, value in training.items()}))
    return run_local(tiny_run(num_hospitals=1, min_hospitals=1, preset=str(preset)))


@pytest.mark.parametrize(("policy", "teacher"), PAIRS)
def test_a_federation_learns_from_every_policy_and_teacher(tiny_run, tmp_path, policy, teacher):
    alignment = "none" if policy == "mixture" else "estimated"
    folder = federation(tiny_run, tmp_path, pseudo_policy=policy, teacher=teacher, alignment=alignment)
    replies = [
        e for e in read_events(folder / "events.jsonl") if e["event"] == "hospital_replied" and e["kind"] == "train"
    ]
    assert len(replies) == 2
    for reply in replies:
        told = reply["metrics"]
        assert 0 <= told["pseudo_coverage"] <= 1 and 0.5 <= told["pseudo_confidence"] <= 1
        assert not any("threshold" in name or "alignment" in name for name in told)
    assert replies[-1]["metrics"]["pseudo_coverage"] > 0 and replies[-1]["metrics"]["loss_pseudo"] > 0

    (site,) = (folder / "sites").iterdir()
    with safe_open(site / "state" / "tiny" / "round-0002.safetensors", "np") as kept:
        names = {name for name in kept.keys() if not name.startswith("optimizer.")}  # noqa: SIM118
    prefixes = ("", "global.") if teacher == "agreement" else ("",)
    assert {n for n in names if n.startswith("thresholds.")} == {
        f"thresholds.{p}{n}" for p in prefixes for n in KEPT[policy]
    }
    aligned = {f"alignment.{p}mean" for p in prefixes} if alignment != "none" else set()
    assert {n for n in names if n.startswith("alignment.")} == aligned
    records = [path.read_text() for path in (site / "egress").rglob("round-*.json")]
    assert any("pseudo_confidence" in text for text in records)
    assert not any(name in text for text in records for name in names), "what a policy remembers never leaves"

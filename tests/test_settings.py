"""The keys that say who has which images and labels, and who trains: what is refused, and why."""

from __future__ import annotations

import pytest

from jointdiff.config import RunConfig, parse_run_config, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.settings import label_split_of, num_asked, partition_of


@pytest.mark.parametrize(
    "text", ["iid", "dirichlet:0.5", "dirichlet:100", "quantity:1e-3", "gaps:2", "scanner", "by-source"]
)
def test_partitions_that_are_known(text: str) -> None:
    parse_run_config({"partition": text})


@pytest.mark.parametrize("text", ["even", "dirichlet:0.5", "hospitals:1", "hospitals:3", "server"])
def test_label_splits_that_are_known(text: str) -> None:
    parse_run_config({"label-split": text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "quantitiy:1"}, "Unknown partition 'quantitiy': did you mean 'quantity'"),
        ({"partition": "dirichlet"}, "'dirichlet:ALPHA' needs a positive number, not ''"),
        ({"partition": "dirichlet:inf"}, "needs a positive number, not 'inf'"),
        ({"partition": "quantity:nan"}, "'quantity:ALPHA' needs a positive number, not 'nan'"),
        ({"partition": "quantity:-1"}, "needs a positive number, not '-1'"),
        ({"partition": "gaps:0"}, "'gaps:N' needs a whole number of at least 1, not '0': try gaps:1"),
        ({"partition": "gaps:1.5"}, "needs a whole number of at least 1, not '1.5'"),
        ({"partition": "iid:1"}, "partition 'iid' takes no value"),
        ({"label-split": "evne"}, "Unknown label-split 'evne': did you mean 'even'"),
        ({"label-split": "dirichlet:x"}, "label-split 'dirichlet:ALPHA' needs a positive number, not 'x'"),
        ({"label-split": "hospitals:0"}, "'hospitals:K' needs a whole number of at least 1, not '0'"),
        ({"label-split": "hospitals:4"}, "more hospitals than there are (num-hospitals 3)"),
        ({"label-split": "server:1"}, "label-split 'server' takes no value"),
        ({"label-split": "dirichlet:1", "num-labels": 0}, "num-labels=0 keeps all of them"),
        ({"server-steps": -2}, "server-steps must be at least 0, or -1 for as many as local-steps, not -2"),
        ({"server-steps": 5}, "server-steps=5 is for label-split=server alone"),
        ({"server-data": "x.npz", "label-split": "server"}, "server-data='x.npz' is for label-split=server with"),
        ({"label-split": "server", "target-epsilon": 8.0}, "label-split=server and differential privacy exclude"),
        ({"label-split": "server", "weighting": "labels"}, "label-split=server and weighting=labels exclude"),
        ({"label-split": "server", "head-weighting": "labels"}, "label-split=server and head-weighting=labels exclude"),
        ({"label-split": "server", "personal": "head"}, "label-split=server and personal=head exclude"),
        ({"dataset": "sites", "classes": "a,b", "num-labels": 0, "label-split": "server"}, "needs server-data=PATH"),
        ({"participation": 0.0}, "participation must be a share of the hospitals above 0 and at most 1, not 0.0"),
        ({"participation": 1.5}, "at most 1, not 1.5"),
        ({"participation": float("nan")}, "at most 1, not nan"),
        ({"participation": 0.5, "secure-aggregation": True}, "participation=0.5 and secure-aggregation=true exclude"),
        ({"participation": 0.5, "share": "decoder-every:2"}, "participation=0.5 and share=decoder-every:2 exclude"),
        ({"participation": 0.5, "min-hospitals": 3}, "asks 2 of 3 hospitals to train"),
        ({"participation": 0.5, "strategy": "median"}, "needs num-hospitals of at least 3, not 2"),
    ],
)  # fmt: skip
def test_one_clear_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config({**to_mapping(RunConfig()), **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("label-split", "hospitals:1"), ("label-split", "dirichlet:1"), ("partition", "gaps:1")]
)
def test_real_hospitals_bring_what_they_have(key: str, value: str) -> None:
    sites = {"dataset": "sites", "classes": "a,b", "num-labels": 0 if value != "dirichlet:1" else 12}
    parse_run_config({**sites, "num-labels": 0})
    with pytest.raises(ConfigError, match="makes no sense with dataset=sites"):
        parse_run_config({**sites, key: value})


def test_what_was_written_is_read() -> None:
    assert (partition_of("gaps:2").name, partition_of("gaps:2").count) == ("gaps", 2)
    assert label_split_of("dirichlet:0.1").value == 0.1
    assert [num_asked(n, 0.5) for n in (1, 2, 3, 10)] == [1, 1, 2, 5]

"""What a hospital says of its own seconds: by name, within the work's duration, and never in a private run."""

import dataclasses

import pytest

from client import egress
from client import round as client_round
from client.egress import StoppedError
from client.site import Site
from client.site_policy import SIMULATED
from jointdiff import identity, protocol
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions
from jointdiff.round_profile import REPORTED


@pytest.fixture
def ask(tiny_run, tmp_path):
    config = prepare(tiny_run())[0]

    def make(kind):
        return RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-1", hospital_index=0, round=1, config=config.to_dict(),
            site_folder=str(tmp_path / "site"), code_version=identity.code_version(), code_hash=identity.code_hash(),
        )  # fmt: skip

    return make, config


@pytest.mark.parametrize("kind", list(REPORTED))
def test_the_seconds_of_a_piece_of_work_add_up_to_its_duration_and_may_leave(ask, kind):
    make, config = ask
    report, arrays = client_round.run(make(kind), initial_weights(config))
    seconds = {name: value for name, value in report.metrics.items() if name.startswith("seconds.")}
    assert seconds.keys() == set(REPORTED[kind]) and all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) == pytest.approx(report.duration_s)
    assert egress.check(make(kind), report, arrays, SIMULATED)[0].metrics == pytest.approx(dict(report.metrics))


def test_no_other_kind_reports_seconds_and_none_may_leave(ask):
    make, _ = ask
    report, _ = client_round.run(make(protocol.DESCRIBE), {})
    assert not report.metrics
    told = dataclasses.replace(report, metrics={"seconds.load": 1.0})
    with pytest.raises(StoppedError, match="an undeclared scalar"):
        egress.check(make(protocol.DESCRIBE), told, {}, SIMULATED)
    with pytest.raises(StoppedError, match="an undeclared scalar"):
        egress.check(make(protocol.HEAD), dataclasses.replace(told, table={}, metrics={"seconds.train": 1.0}),
                     client_round.run(make(protocol.HEAD), initial_weights(ask[1]))[1], SIMULATED)  # fmt: skip


def test_with_differential_privacy_time_stays_at_the_site(ask):
    """A step takes as long as the records that it drew by chance are many."""
    make, config = ask
    private = dataclasses.replace(config, run=dataclasses.replace(config.run, noise_multiplier=1.0))
    for kind in REPORTED:
        assert not {name for name in egress._SCALARS[kind](private) if name.startswith("seconds.")}
        asked = dataclasses.replace(make(kind), config=private.to_dict())
        assert Site(asked, private).seconds_of_work(5.0) == {}

"""The report's section about time, on runs whose times are known."""

from jointdiff.views.report import write_report
from jointdiff.views.report_time import MAX_BARS, time_of_rounds
from jointdiff.views.run_data import RunData
from tests.test_profile import one_round


def run_of(tmp_path, events):
    return RunData(tmp_path, events)


def test_every_round_has_a_bar_and_every_part_its_seconds(tmp_path):
    events = [*one_round(load=2.0, train=3.5, save=0.5), *one_round(20, 2)]
    text = str(time_of_rounds(run_of(tmp_path, events)))
    # round 1: 7 + 1 + 2 of 20 s are work, round 2: 9 + 1 + 2
    assert "45.0%" in text and text.count("<rect") == 4
    assert "20 s, 50.0%" in text and "20 s, 40.0%" in text
    assert "hospitals load data and model" in text and "As each hospital says" in text
    assert "masking" not in text and "exchange keys" not in text, "a part without seconds is no line"


def test_of_many_rounds_the_slowest_are_drawn(tmp_path):
    events = [event for n in range(MAX_BARS + 5) for event in one_round(20 * n, n + 1)]
    text = str(time_of_rounds(run_of(tmp_path, events)))
    assert text.count("<rect") == 2 * MAX_BARS and f"of {MAX_BARS + 5} rounds" in text


def test_a_run_without_a_round_has_no_such_section_and_a_real_one_has(tmp_path, fake_run):
    assert time_of_rounds(run_of(tmp_path, [])) is None
    folder = fake_run(num_rounds=2)
    text = write_report(folder).read_text()
    assert 'id="time"' in text and "Where the time of a round goes" in text


def test_a_hospital_has_the_same_colour_in_every_chart(tmp_path):
    """Replies come in any order; curves stand in that of the evaluations."""
    events = [
        {"event": "hospital_replied", "kind": "train", "hospital": name, "round": 1, "metrics": {"loss": 1.0}}
        for name in ("b", "late", "a")
    ]
    run = RunData(tmp_path, events, {"rounds": [{"round": 1, "hospitals": {"a": {}, "b": {}}}]})
    assert list(run.training_curve("loss")) == ["a", "b", "late"]

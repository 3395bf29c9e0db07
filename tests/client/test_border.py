from __future__ import annotations

import dataclasses

import pytest

from client import border
from jointdiff import identity
from jointdiff.config import Config
from jointdiff.errors import ConfigError, DataError, RefusedError
from jointdiff.protocol import RoundInstructions


@pytest.fixture
def instructions(tmp_path):
    return RoundInstructions(
        kind="describe",
        run_name="run",
        hospital="hospital-2",
        hospital_index=1,
        round=3,
        config=Config().to_dict(),
        site_folder=str(tmp_path / "site"),
        code_version=identity.code_version(),
        code_hash=identity.code_hash(),
    )


@pytest.mark.parametrize(
    "error",
    [
        DataError("The file /data/patients/doe.npz is missing."),
        DataError("The file C:\\patients\\doe is missing."),
        DataError("Look at ~root."),
        DataError("The file doe_1956.dcm is broken."),
        DataError("The file Doe.NII is broken."),
        FileNotFoundError(2, "No such file or directory", "doe"),
        ValueError("patient Doe has no label"),
    ],
)
def test_what_could_be_a_path_or_is_not_ours_does_not_travel(error):
    reason = border.safe_reason(error)
    assert reason == f"{type(error).__name__} (the details are in the log of the site)"


def test_our_own_errors_without_a_path_travel_shortened_and_on_one_line():
    assert border.safe_reason(ConfigError("hospital-3 is left\nwithout data.")) == "hospital-3 is left without data."
    shortened = border.safe_reason(ConfigError("xyz " * 999))
    assert border.MAX_CHARACTERS - 4 <= len(shortened) <= border.MAX_CHARACTERS and shortened.endswith("...")


@pytest.mark.parametrize(
    "text",
    [
        bytes(range(200)).hex(),  # an image as one long word
        " ".join(map(str, range(200))),  # its pixels as numbers
        "abcdefghij" * 20,  # its pixels as letters
        "J\u00fcrgen has no label.",
    ],
)
def test_a_text_that_could_carry_pixels_does_not_travel_whoever_raised_it(text):
    assert border.safe_reason(DataError(text)) == "DataError (the details are in the log of the site)"


def test_the_name_of_a_class_is_a_channel_too():
    error = type("Doe_1956", (ValueError,), {})("x")
    assert border.safe_reason(error) == "an error (the details are in the log of the site)"


def test_a_failure_is_a_report_and_the_traceback_stays_in_the_log(instructions, monkeypatch, tmp_path):
    def broken(*_):
        raise ValueError("cannot read /data/patients/doe.dcm")

    monkeypatch.setattr(border, "run", broken)
    report, tensors = border.answer(instructions.to_json(), dict)
    assert (report.status, report.hospital, tensors) == ("failed", "hospital-2", {})
    assert "doe" not in report.to_json() and "/" not in report.reason
    log = (tmp_path / "site" / border.LOG_FILE).read_text()
    assert "doe.dcm" in log and "Traceback" in log and "round 3" in log


def test_a_refusal_is_told_from_a_failure(instructions, monkeypatch):
    def refuse(*_):
        raise RefusedError("Not on a Sunday.")

    monkeypatch.setattr(border, "run", refuse)
    report, _ = border.answer(instructions.to_json(), dict)
    assert (report.status, report.reason) == ("refused", "Not on a Sunday.")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "train"}'])
def test_unreadable_instructions_are_answered_too(text):
    report, _ = border.answer(text, dict)
    assert report.status == "failed"


def test_damaged_tensors_are_answered_too(instructions):
    def damaged():
        raise ValueError("bad magic")

    report, _ = border.answer(instructions.to_json(), damaged)
    assert (report.status, report.reason[:10]) == ("failed", "ValueError")


def test_a_log_that_cannot_be_written_does_not_stop_the_answer(instructions, monkeypatch, tmp_path):
    (tmp_path / "site").write_text("a file where the folder should be")
    bad = dataclasses.replace(instructions, kind="dance")
    report, _ = border.answer(bad.to_json(), dict)
    assert report.status == "refused"


def test_interrupts_are_not_swallowed(instructions, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(border, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        border.answer(instructions.to_json(), dict)

from __future__ import annotations

import pytest
import torch

from client import state


def test_what_was_saved_is_loaded(tmp_path):
    tensors = {"optimizer.0.exp_avg": torch.randn(3, 4), "optimizer.step": torch.tensor(5.0)}
    state.save(tmp_path, "run", 1, tensors)
    loaded = state.load(tmp_path, "run", before=2)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_before_the_first_round_there_is_nothing(tmp_path):
    assert state.load(tmp_path, "run", before=1) is None
    state.save(tmp_path, "other-run", 1, {})
    assert state.load(tmp_path, "run", before=9) is None


def test_two_versions_are_kept_and_a_repeated_round_starts_where_it_started(tmp_path):
    for number in (1, 2, 3):
        state.save(tmp_path, "run", number, {"x": torch.tensor(float(number))})
    assert sorted(p.name for p in (tmp_path / "state" / "run").iterdir()) == [
        "round-0002.safetensors",
        "round-0003.safetensors",
    ]
    assert state.load(tmp_path, "run", before=3)["x"] == 2


def test_a_site_that_missed_a_round_goes_on_from_its_last(tmp_path):
    state.save(tmp_path, "run", 1, {"x": torch.tensor(1.0)})
    assert state.load(tmp_path, "run", before=5)["x"] == 1


def test_a_resumed_run_forgets_the_future_that_was_given_up(tmp_path):
    for number in (4, 5):
        state.save(tmp_path, "run", number, {"x": torch.tensor(float(number))})
    state.save(tmp_path, "run", 4, {"x": torch.tensor(40.0)})
    assert state.load(tmp_path, "run", before=9)["x"] == 40


def test_a_failed_write_leaves_the_old_version(tmp_path, monkeypatch):
    state.save(tmp_path, "run", 1, {"x": torch.tensor(1.0)})
    monkeypatch.setattr(state, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        state.save(tmp_path, "run", 1, {"x": torch.tensor(2.0)})
    assert [p.name for p in (tmp_path / "state" / "run").iterdir()] == ["round-0001.safetensors"]
    assert state.load(tmp_path, "run", before=2)["x"] == 1


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    x = torch.randn(4)
    state.save(tmp_path, "run", 1, {"a": x, "b": x})
    assert torch.equal(state.load(tmp_path, "run", before=2)["b"], x)

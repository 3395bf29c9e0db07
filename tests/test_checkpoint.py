"""Checkpoints come back bit for bit, and every kind of damage has an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jointdiff import checkpoint
from jointdiff.config import Config, ModelConfig, RunConfig
from jointdiff.errors import CheckpointError

CONFIG = Config(run=RunConfig(seed=7), model=ModelConfig(multipliers=(1, 2)))


class Net(torch.nn.Module):
    def __init__(self, width: int = 4, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or CONFIG.model
        self.inner = torch.nn.Linear(3, width)
        self.register_buffer("count", torch.tensor(5))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(
        tmp_path / "best.safetensors", Net().state_dict(), CONFIG, round_number=3, metric=0.91, metric_name="auc"
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    state = Net().state_dict()
    state["half"] = torch.randn(5).to(torch.bfloat16)
    state["tied"] = state["inner.weight"]
    path = checkpoint.save(tmp_path / "a.safetensors", state, CONFIG, round_number=3, metric=0.91, metric_name="auc")
    read = checkpoint.load(path)
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[k], v) and read.state[k].dtype == v.dtype for k, v in state.items())
    assert (read.config, read.round_number, read.metric, read.metric_name) == (CONFIG, 3, 0.91, "auc")
    assert read.code_version


def test_no_metric_stays_none(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "a.safetensors", Net().state_dict(), CONFIG, round_number=0)
    assert checkpoint.load(path).metric is None


def test_load_into_copies_the_weights(saved: Path) -> None:
    model = Net()
    checkpoint.load_into(model, saved)
    assert all(torch.equal(v, checkpoint.load(saved).state[k]) for k, v in model.state_dict().items())


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("keep", [20, 300, -1])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_not_safetensors(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(saved)


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a JointDiff checkpoint"):
        checkpoint.load(tmp_path / "foreign.safetensors")


def test_unknown_configuration_key(tmp_path: Path) -> None:
    metadata = {
        "format": checkpoint.FORMAT,
        "config": '{"run": {"sede": 1}}',
        "round": "1",
        "metric": "null",
        "metric_name": "",
        "code_version": "9.9",
    }
    save_file({"a": torch.zeros(2)}, tmp_path / "newer.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"written by 9\.9.*sede"):
        checkpoint.load(tmp_path / "newer.safetensors")


def test_other_architecture_names_tensor_and_key_and_leaves_the_model(saved: Path) -> None:
    model = Net(width=6, config=ModelConfig(multipliers=(1, 2, 4)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"multipliers is \(1, 2\) in the checkpoint.*inner\.weight.*\[4, 3\]"):
        checkpoint.load_into(model, saved)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_missing_and_surplus_tensors_are_named(saved: Path) -> None:
    model = torch.nn.Module()
    model.inner = torch.nn.Linear(3, 4, bias=False)
    model.extra = torch.nn.Linear(1, 1, bias=False)
    with pytest.raises(CheckpointError, match=r"'extra\.weight' is not in.*'inner\.bias' of the checkpoint"):
        checkpoint.load_into(model, saved)


def test_nan_is_neither_read_nor_written(saved: Path) -> None:
    good = saved.read_bytes()
    model = Net()
    with torch.no_grad():
        model.inner.bias[1] = float("nan")
    with pytest.raises(CheckpointError, match=r"Refusing.*inner\.bias"):
        checkpoint.save(saved, model.state_dict(), CONFIG, round_number=1)
    assert saved.read_bytes() == good
    damaged = bytearray(good)
    damaged[-4:] = b"\x00\x00\xc0\x7f"  # the last float of the file becomes NaN
    saved.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        checkpoint.load(saved)

"""Federations whose tensors travel encoded: they train, count fewer bytes, bear damage, and resume bit for bit."""

from __future__ import annotations

import importlib.util
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jointdiff import codec_wire
from jointdiff.codecs import layout_of, parse
from jointdiff.config import Config, RunConfig
from jointdiff.events import read_events
from jointdiff.preparation import initial_weights, prepare
from server.exchange import Exchange
from server.replies import from_arrays, to_arrays
from server.rounds import run_federation
from simulations.local import LocalGrid, run_local

_spec = importlib.util.spec_from_file_location("_resume", Path(__file__).with_name("test_resume.py"))
assert _spec is not None and _spec.loader is not None
_resume = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_resume)

FEW_BYTES = (
    {"upload": "int8", "download": "bf16"},
    {"upload": "top-k:0.05", "download": "int8"},
    {"share": "decoder-every:2", "upload": "bf16"},
    {"share": "decoder-every:2", "upload": "int8", "download": "int8"},
)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


def replies(folder: Path, kind: str = "train") -> list[dict]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == "hospital_replied" and e["kind"] == kind]


def distance(a, b) -> float:
    return float(np.sqrt(sum(((a[name].astype(np.float64) - b[name]) ** 2).sum() for name in a)))


@pytest.fixture
def federation(tiny_run):
    def go(name: str, grid=None, **settings) -> Path:
        settings = {"num_rounds": 3, "num_labels": 0, "round_retries": 0, "run_name": name} | settings
        return run_federation(grid or LocalGrid(), tiny_run(**settings))

    return go


_PLAIN: list[Path] = []  # the same federation without codecs, run once


@pytest.fixture
def plain(federation) -> Path:
    if not _PLAIN:
        _PLAIN.append(federation("plain"))
    return _PLAIN[0]


@pytest.mark.parametrize("settings", FEW_BYTES, ids=str)
def test_a_federation_ends_and_moves_the_weights_as_without_codecs(federation, plain, tiny_run, settings):
    folder = federation("few", **settings)
    events = read_events(folder / "events.jsonl")
    assert not [e for e in events if e["event"] in ("hospital_refused", "hospital_failed", "update_rejected")]
    start = initial_weights(prepare(tiny_run(run_name="start"))[0])
    moved = distance(weights(plain), start)
    assert distance(weights(folder), start) > 0.3 * moved
    assert 0 < distance(weights(folder), weights(plain)) < (1.2 if "top" in str(settings) else 0.5) * moved
    own = [sum(e[key] for e in replies(folder)) for key in ("bytes_in", "bytes_out")]
    full = [sum(e[key] for e in replies(plain)) for key in ("bytes_in", "bytes_out")]
    if "upload" in settings or "share" in settings:
        assert own[1] < full[1]
    if "download" in settings or "share" in settings:
        assert own[0] < full[0]
    errors = [e["metrics"].get("upload_error") for e in events if e["event"] == "round_aggregated"]
    assert all(0 < error < 1 for error in errors) if "upload" in settings else errors == [None] * 3
    if "upload" in settings:
        assert "Error of an encoded update" in (folder / "report.html").read_text()


def test_int8_counts_a_quarter_of_the_bytes_on_the_default_model(federation):
    settings = {"model": "unet-28", "num_rounds": 1, "local_steps": 1, "num_hospitals": 2}
    few = federation("few", upload="int8", download="bf16", **settings)
    full = federation("full", **settings)
    for kind, key, times in (("train", "bytes_out", 3.5), ("train", "bytes_in", 2), ("head", "bytes_out", 3.5)):
        wanted, found = (sum(e[key] for e in replies(folder, kind)) for folder in (full, few))
        assert wanted > times * found, (kind, key, wanted / found)


def test_what_the_download_loses_is_not_lost_to_the_server(tiny_run):
    config = Config(run=RunConfig(download="int8"))
    rng = np.random.default_rng(0)
    own = {"w": rng.standard_normal((64, 64)).astype(np.float32), "b": rng.standard_normal(64).astype(np.float32)}
    exchange = Exchange(config)
    sent = exchange.for_training(1, own)
    got = codec_wire.unpack(parse("int8"), sent.arrays, layout_of(own))
    assert all(np.array_equal(got[name], sent.reference[name]) for name in own), "as the hospitals have it"
    assert not np.array_equal(got["w"], own["w"])
    step = {name: np.float32(1e-4) * rng.standard_normal(a.shape).astype(np.float32) for name, a in own.items()}
    merged = {name: sent.reference[name] + step[name] for name in own}
    after = exchange.merged(own, merged, sent.reference)
    for name in own:  # a change far below a step of the codec is there in full
        assert np.allclose(after[name] - own[name], step[name], atol=1e-6)


@pytest.mark.parametrize("strategy", ["fedadam", "median"])
def test_every_strategy_sees_decoded_updates(federation, strategy):
    settings = {"strategy": strategy, "num_faulty": 0, "num_rounds": 2}
    few = federation("few", upload="int8", download="bf16", **settings)
    plain = federation("plain", **settings)
    assert distance(weights(few), weights(plain)) < 0.1 * distance(weights(plain), dict.fromkeys(weights(plain), 0.0))


class _Spoiling(LocalGrid):
    """A network, or a hospital, that changes one hospital's answers to the question of training."""

    def __init__(self, spoil) -> None:
        super().__init__()
        self._spoil = spoil

    def _answer(self, message):
        asked = json.loads(str(message.content["instructions"]["json"]))
        reply = super()._answer(message)
        if asked["hospital"] == "hospital-2" and asked["kind"] in ("train", "head") and asked["round"] == 1:
            reply.content["arrays"] = to_arrays(self._spoil(from_arrays(reply.content["arrays"])))
        return reply


def _no_scale(packed: np.ndarray) -> np.ndarray:
    return codec_wire.squeeze(np.full(len(zlib.decompress(packed.tobytes())) // 4, np.nan, np.float32))


SPOILT = {
    "cut": lambda arrays: {name: array[:-3] if array.ndim else array for name, array in arrays.items()},
    "other names": lambda arrays: {"x" + name: array for name, array in arrays.items()},
    "nothing": lambda _: {},
    "floats": lambda arrays: {name: array.astype(np.float32) for name, array in arrays.items()},
    "a NaN scale": lambda arrays: arrays | {n: _no_scale(a) for n, a in arrays.items() if n == "int8.scale"},
    "an endless stream": lambda arrays: {
        name: codec_wire.squeeze(np.zeros(10**7, np.uint8)) for name in arrays
    },
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_damaged_update_is_rejected_with_the_reason_and_costs_its_own_round_alone(federation, spoil):
    folder = federation("spoilt", _Spoiling(spoil), upload="int8", num_rounds=2)
    events = read_events(folder / "events.jsonl")
    rejected = [(e["hospital"], e["round"], e["kind"]) for e in events if e["event"] == "update_rejected"]
    assert ("hospital-2", 1, "train") in rejected and {name for name, *_ in rejected} == {"hospital-2"}
    assert all(
        "cannot be decoded" in e["reason"] for e in events if e["event"] == "update_rejected" and e["kind"] == "train"
    )
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [2, 3]
    assert all(np.isfinite(array).all() for array in weights(folder).values())


@pytest.mark.parametrize(
    ("moment", "settings"),
    [
        pytest.param("while round 1 trains", {"upload": "int8", "download": "bf16"}, marks=pytest.mark.slow),
        pytest.param(
            "after round 2 is merged",
            {"upload": "top-k:0.05", "download": "int8", "strategy": "fedadam"},
            marks=pytest.mark.slow,
        ),
        ("at the checkpoint of round 3", {"upload": "int8", "download": "int8", "share": "decoder-every:3"}),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(tiny_run, moment, settings):
    settings = {"num_rounds": 4, "num_labels": 0, **settings}
    straight = run_local(tiny_run(run_name="straight", **settings))
    run = tiny_run(**settings)
    folder = _resume.killed(run, _resume.MOMENTS[moment])
    assert run_local(replace(run, resume=True)) == folder
    assert _resume.same(weights(folder), weights(straight))


def test_the_decoder_moves_in_the_last_round_of_a_period_alone(federation):
    folder = federation("periods", share="decoder-every:3", num_rounds=4)
    by_round = {e["round"]: e for e in replies(folder) if e["hospital"] == "hospital-1"}
    assert by_round[1]["bytes_in"] > by_round[2]["bytes_in"] == by_round[3]["bytes_in"] < by_round[4]["bytes_in"]
    assert by_round[1]["bytes_out"] == pytest.approx(by_round[2]["bytes_out"], rel=0.02)
    for number in (3, 4):
        assert by_round[number]["bytes_out"] > 1.2 * by_round[2]["bytes_out"]


def test_a_hospital_that_lost_its_decoder_says_so_and_gets_it_in_the_next_round(federation, tiny_run):
    run = tiny_run(share="decoder-every:6", num_rounds=4, num_labels=0, min_hospitals=1)

    def lose(event):
        if event["event"] == "round_started" and event["round"] == 2:
            for path in (Path(run.home) / "runs" / "tiny" / "sites" / "hospital-3").rglob("held/*.safetensors"):
                path.unlink()

    folder = run_local(run, callback=lose)
    events = read_events(folder / "events.jsonl")
    refused = [(e["hospital"], e["round"]) for e in events if e["event"] == "hospital_refused" and e["kind"] == "train"]
    assert refused == [("hospital-3", 2)]
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [3, 2, 3, 3]


def test_an_encoded_download_goes_with_secure_sums(federation):
    secure = {"secure_aggregation": True, "min_hospitals": 0, "num_rounds": 2}
    few = federation("few", LocalGrid(num_nodes=3), download="bf16", **secure)
    open_sum = federation("open", download="bf16", num_rounds=2)
    assert distance(weights(few), weights(open_sum)) < 1e-4 * distance(
        weights(open_sum), dict.fromkeys(weights(open_sum), 0.0)
    )


@pytest.mark.parametrize("settings", [{"upload": "bf16"}, {"upload": "int8", "download": "bf16"}], ids=str)
def test_a_private_federation_works_encoded(federation, settings):
    folder = federation("private", target_epsilon=8.0, delta=0.01, num_rounds=2, **settings)
    assert len(replies(folder)) == 6
    assert all(e["metrics"]["upload_error"] < 0.05 and e["metrics"]["epsilon"] <= 8 for e in replies(folder))


def test_a_frozen_body_comes_once_and_never_goes_up(federation, tmp_path):
    preset = tmp_path / "frozen.yaml"
    preset.write_text(
        "pseudo-policy: fixed\nbody-lr-scale: 0.0\nhead: gradient\nwarmup-fraction: 0.0\nclass-weight: 1\n"
    )
    folder = federation("frozen", target_epsilon=8.0, delta=0.01, preset=str(preset))
    first, *_ = (e for e in replies(folder) if e["round"] == 1)
    second, *_ = (e for e in replies(folder) if e["round"] == 2)
    assert first["bytes_in"] > 3 * second["bytes_in"] and first["bytes_out"] < first["bytes_in"] / 3
    assert len(replies(folder)) == 9 and len(replies(folder, "evaluate")) == 9

"""What leaves a site after training, encoded: with error feedback, by round, and nothing but what is declared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from client import egress, state, upload
from client import round as client_round
from client.egress import StoppedError
from client.egress_record import describe_tensor
from client.site_policy import SIMULATED
from jointdiff import codec_wire, codecs, head_codec, identity, protocol
from jointdiff.codecs import layout_of, parse
from jointdiff.config import Config, RunConfig
from jointdiff.errors import RefusedError, RunError
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.sharing import LACKS, is_decoder
from jointdiff.transfer import Transfer

CODECS = ("bf16", "int8", "top-k:0.05")


@pytest.fixture
def settings(tiny_run):
    """A function that returns the configuration of a run and its first weights."""

    def make(**changes) -> tuple[Config, dict[str, np.ndarray]]:
        config = prepare(tiny_run(run_name="tiny" + "".join(filter(str.isalnum, str(changes)))[-40:], **changes))[0]
        rng = np.random.default_rng(0)  # layers that start at zero hold back the gradients of those before them
        weights = {n: a + rng.normal(0, 0.05, a.shape).astype(np.float32) for n, a in initial_weights(config).items()}
        return config, weights | {"head.scale": np.abs(weights["head.scale"])}

    return make


@pytest.fixture
def site(tmp_path):
    """A function that asks a site, in the codecs of its run, and holds the answer against the allow-list."""

    def go(config, tensors, number=1, kind=protocol.TRAIN, *, without=(), folder="site"):
        download = parse(config.run.download)
        codec = parse(config.run.upload if kind in (protocol.TRAIN, protocol.HEAD) else "fp32")
        ask = RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-1", hospital_index=0, round=number,
            config=config.to_dict(), site_folder=str(tmp_path / folder), code_version=identity.code_version(),
            code_hash=identity.code_hash(), transfer=Transfer(download, codec, tuple(without)).to_dict(),
        )  # fmt: skip
        report, arrays = client_round.run(ask, codec_wire.pack(download, tensors))
        return egress.check(ask, report, arrays, SIMULATED)

    return go


def decoded(config, arrays, weights):
    return codec_wire.unpack(parse(config.run.upload), arrays, layout_of(weights))


@pytest.mark.parametrize("text", CODECS)
def test_the_change_leaves_encoded_and_its_error_is_told(settings, site, text):
    config, weights = settings(upload=text)
    plain, _ = settings()
    report, arrays = site(config, weights)
    true = site(plain, weights, folder="plain")[1]
    change = {name: true[name] - weights[name] for name in weights}
    got = decoded(config, arrays, weights)
    assert report.metrics[upload.ERROR] == pytest.approx(codecs.relative_error(change, got), rel=1e-5)
    assert 0 < report.metrics[upload.ERROR] < (1 if "top" in text else 0.02)
    assert sum(a.nbytes for a in arrays.values()) < sum(a.nbytes for a in true.values()) * 0.75, (
        "most of so small a model is small tensors"
    )
    assert all("encoded" in describe_tensor(protocol.TRAIN, name) for name in arrays)


@pytest.mark.parametrize("text", CODECS)
def test_what_a_round_lost_is_sent_in_the_next_one_and_a_repeated_round_sends_the_same_bytes(
    settings, site, tmp_path, text
):
    config, weights = settings(upload=text)
    plain, _ = settings()
    sums = {name: np.zeros(array.shape) for name, array in weights.items()}
    for number in (1, 2, 3):
        true = site(plain, weights, number, folder="plain")[1]
        arrays = site(config, weights, number)[1]
        again = site(config, weights, number)[1]
        assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
        got = decoded(config, arrays, weights)
        for name in sums:
            sums[name] += true[name] - weights[name] - got[name].astype(np.float64)
    large = [name for name in weights if codecs.is_large(weights[name].shape)]
    assert large and not any(sums[name].any() for name in weights if name not in large)
    lost = state.load(tmp_path / "site", "tiny", before=4, part="upload")
    for name in large:  # what is missing so far is what the site still holds, and no more
        assert np.allclose(sums[name], lost[name].numpy(), atol=1e-6)
        assert lost[name].any()


def test_an_update_that_has_diverged_is_not_encoded(settings, tmp_path):
    config, weights = settings(upload="int8")
    ask = RoundInstructions("train", "r", "h", 0, 1, {}, "", "", "")
    broken = {name: array * np.nan for name, array in weights.items()}
    with pytest.raises(RunError, match="cannot be encoded as int8"):
        upload.pack(ask, config, RoundReport("h"), reference=weights, trained=broken, site_folder=tmp_path)


@pytest.mark.parametrize("text", CODECS)
def test_nothing_but_an_encoded_change_passes_the_allow_list(settings, text):
    config, weights = settings(upload=text)
    ask = RoundInstructions("train", "r", "h", 0, 1, config.to_dict(), "", "", "")
    packed = codec_wire.pack(parse(text), weights)
    report = RoundReport("h", num_images=3, metrics={upload.ERROR: 0.5})
    egress.check(ask, report, packed, SIMULATED)
    name = next(iter(packed))
    for arrays, what in (
        (weights, "undeclared tensor"),
        ({**packed, "scan": packed[name]}, "undeclared tensor"),
        ({**packed, name: np.append(packed[name], np.uint8(3))}, "stands for no change"),
        ({n: a for n, a in packed.items() if n != name}, "without all"),
    ):
        with pytest.raises(StoppedError, match=what):
            egress.check(ask, report, arrays, SIMULATED)
    plain = dataclasses.replace(config, run=dataclasses.replace(config.run, upload="fp32"))
    with pytest.raises(StoppedError, match="undeclared scalar"):
        egress.check(dataclasses.replace(ask, config=plain.to_dict()), report, weights, SIMULATED)


def test_the_sums_of_the_head_leave_encoded(settings, site):
    config, weights = settings(upload="int8")
    plain, _ = settings()
    _, arrays = site(config, weights, kind=protocol.HEAD)
    _, exact = site(plain, weights, kind=protocol.HEAD, folder="plain")
    got = head_codec.unpack(arrays, exact)
    assert np.array_equal(got["sum"], exact["sum"]) and not np.array_equal(got["products"], exact["products"])
    assert np.allclose(got["products"], exact["products"], rtol=1e-2, atol=1e-3 * np.abs(exact["products"]).max())
    assert sum(a.nbytes for a in arrays.values()) < sum(a.nbytes for a in exact.values()) / 2


@pytest.mark.parametrize("text", ["bf16", "int8"])
def test_a_site_trains_on_what_it_decodes_and_measures_its_change_against_that(settings, site, text):
    config, weights = settings(download=text)
    plain, _ = settings()
    received = codec_wire.round_trip(parse(text), weights)
    _, sent = site(config, weights)
    _, wanted = site(plain, received, folder="plain")
    assert all(np.array_equal(sent[name], wanted[name]) for name in wanted)


def test_a_codec_that_is_not_known_is_refused_before_anything_is_done(settings, tmp_path):
    config, weights = settings(upload="int8")
    for entry, text in (({"codec": "int3", "version": 1}, "int3 version 1"), ({"codec": "int8", "version": 9}, "9")):
        transfer = {"download": {"codec": "fp32", "version": 1}, "upload": entry, "without": []}
        ask = RoundInstructions(
            protocol.TRAIN, "tiny", "hospital-1", 0, 1, config.to_dict(), str(tmp_path / "site"),
            identity.code_version(), identity.code_hash(), transfer=transfer,
        )  # fmt: skip
        with pytest.raises(RefusedError, match=text):
            client_round.run(ask, weights)
    assert not list((tmp_path / "site").rglob("*.safetensors"))


def test_a_damaged_download_is_an_error_that_says_so(settings, site, monkeypatch):
    config, weights = settings(download="int8")
    monkeypatch.setattr(codec_wire, "pack", lambda *_: {"int8.int8": np.zeros(3, np.uint8)})
    with pytest.raises(RunError, match="cannot be read: the names"):
        site(config, weights)


def test_the_decoder_stays_at_the_site_through_a_period(settings, site):
    config, weights = settings(share="decoder-every:3", upload="int8", num_rounds=6)
    encoder = {name: array for name, array in weights.items() if not is_decoder(name)}
    with pytest.raises(RefusedError, match=LACKS):
        site(config, encoder, 2, without=["decoder"])
    _, first = site(config, weights, 1)
    assert decoded(config, first, encoder).keys() == encoder.keys()
    _, second = site(config, encoder, 2, without=["decoder"])
    again = site(config, weights, 2)[1]  # it is sent once more, for another site: this one goes on with its own
    assert all(np.array_equal(second[name], again[name]) for name in second)
    _, third = site(config, encoder, 3, without=["decoder"])
    assert decoded(config, third, weights).keys() == weights.keys(), "the last round of the period"
    repeated = site(config, encoder, 3, without=["decoder"])[1]
    assert all(np.array_equal(third[name], repeated[name]) for name in third)
    with pytest.raises(RefusedError, match=LACKS):  # of the period before
        site(config, encoder, 4, without=["decoder"])
    change = decoded(config, third, weights)
    moved = [name for name in weights if is_decoder(name) and change[name].any()]
    assert moved, "the change over the whole period"


def test_features_and_predictions_need_no_decoder(settings, site):
    config, weights = settings(share="decoder-every:3")
    encoder = {name: array for name, array in weights.items() if not is_decoder(name)}
    for kind in (protocol.HEAD, protocol.EVALUATE):
        part = site(config, encoder, 1, kind, without=["decoder"])[1]
        whole = site(config, weights, 1, kind)[1]
        assert part and all(np.array_equal(part[name], whole[name]) for name in whole)


@pytest.mark.parametrize("text", ["bf16", "int8"])
def test_private_training_is_encoded_after_the_noise_and_paid_once(settings, site, tmp_path, text):
    private = {"target_epsilon": 8.0, "delta": 0.01, "num_labels": 0, "upload": text}
    config, weights = settings(**private)
    report, arrays = site(config, weights)
    again = site(config, weights)[1]
    ledger = (tmp_path / "site" / "ledger.json").read_text()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays), "the kept reply, not a second draw"
    assert ledger.count('"noise_multiplier"') == 1 and 0 < report.metrics[upload.ERROR] < 0.02
    assert not {name for name in report.metrics if "loss" in name}


def test_a_frozen_body_never_goes_up_and_comes_down_once(settings, site, tmp_path):
    preset = tmp_path / "frozen.yaml"
    preset.write_text(
        "pseudo-policy: fixed\nbody-lr-scale: 0.0\nhead: gradient\nwarmup-fraction: 0.0\nclass-weight: 1.0\n"
    )
    config, weights = settings(target_epsilon=8.0, delta=0.01, num_labels=0, preset=str(preset))
    head = {name: array for name, array in weights.items() if name.startswith("head.")}
    with pytest.raises(RefusedError, match=LACKS):
        site(config, head, without=["body"])
    _, first = site(config, weights)
    assert first.keys() == head.keys()
    _, second = site(config, head, 2, without=["body"])
    assert second.keys() == head.keys()
    statistics = site(config, head, 2, protocol.EVALUATE, without=["body"])[1]
    whole = site(config, weights, 2, protocol.EVALUATE)[1]
    assert all(np.array_equal(statistics[name], whole[name]) for name in whole)


def test_defaults_say_nothing_and_keep_nothing(settings, site, tmp_path):
    config, weights = settings()
    assert config.run.upload == RunConfig().upload == "fp32"
    _, arrays = site(config, weights)
    assert arrays.keys() == weights.keys()
    assert {path.parent.name for path in (tmp_path / "site" / "state").rglob("*.safetensors")} == {"tiny"}

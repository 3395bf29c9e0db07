from __future__ import annotations

import numpy as np
import pytest

from jointdiff import codec_wire, codecs, head_codec
from jointdiff.codecs import Codec, layout_of, parse, relative_error
from jointdiff.config import Config, ModelConfig, RunConfig, parse_run_config, to_mapping
from jointdiff.errors import ConfigError, RefusedError
from jointdiff.head import solve_head
from jointdiff.head_sums import add_sums, head_sums
from jointdiff.sharing import Sharing, is_decoder
from jointdiff.transfer import Transfer

TEXTS = ("bf16", "int8", "top-k:0.05")
LOSSY = [parse(text) for text in TEXTS]


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (48, 24, 3, 3), "a.bias": (48,), "b.weight": (300, 300), "head.linear.weight": (2, 336)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found["b.weight"][7] = 0  # a channel without values
    found["a.weight"] *= np.float32(1e-6)
    return found


def sent(codec, tensors):
    """What arrives of tensors that travel."""
    return codec_wire.unpack(codec, codec_wire.pack(codec, tensors), layout_of(tensors), canonical=True)


@pytest.mark.parametrize("codec", LOSSY, ids=TEXTS)
def test_small_tensors_arrive_exactly_and_all_in_their_form(codec, tensors):
    found = sent(codec, tensors)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
        assert codecs.is_large(array.shape) or np.array_equal(found[name], array)
    assert not np.array_equal(found["b.weight"], tensors["b.weight"])
    trip = codec_wire.round_trip(codec, tensors)
    assert all(np.array_equal(trip[name], found[name]) for name in tensors), "the server knows what the site has"


def test_what_travels_of_fp32_are_the_tensors_themselves(tensors):
    codec = parse("fp32")
    assert codec_wire.pack(codec, tensors) == tensors and sent(codec, tensors) == tensors


def test_bf16_is_off_by_at_most_its_last_bit(tensors):
    found = sent(parse("bf16"), tensors)
    for name, array in tensors.items():
        assert (np.abs(found[name] - array) <= np.abs(array) * 2.0**-8).all()
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -0.0], np.float32)  # halfway: to the even one
    assert codecs.from_bf16(codecs.to_bf16(ties)).tolist() == [1.0, 1 + 2**-6, 0.0]


def test_bf16_rounds_as_torch_does():
    import torch

    values = (np.random.default_rng(1).standard_normal(10_000) * 1e3).astype(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(codecs.from_bf16(codecs.to_bf16(values)), theirs)


def test_int8_is_off_by_at_most_half_a_step_of_its_channel(tensors):
    found = sent(parse("int8"), tensors)
    for name in ("a.weight", "b.weight"):
        rows, got = (t[name].reshape(len(t[name]), -1).astype(np.float64) for t in (tensors, found))
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert (np.abs(got - rows) <= step / 2 * (1 + 1e-5)).all()
    assert not found["b.weight"][7].any()


def test_top_k_keeps_the_largest_of_every_tensor(tensors):
    found = sent(parse("top-k:0.05"), tensors)
    for name in ("a.weight", "b.weight"):
        kept = np.flatnonzero(found[name])
        assert len(kept) == int(np.ceil(0.05 * tensors[name].size))
        left = np.delete(np.abs(tensors[name]).reshape(-1), kept)
        assert left.max() <= np.abs(tensors[name]).reshape(-1)[kept].min()
        assert relative_error({name: tensors[name].reshape(-1)[kept]}, {name: found[name].reshape(-1)[kept]}) < 2**-8
    indices = parse("top-k:0.05").parts(layout_of(tensors))["gap"][1]
    assert indices == np.uint32, "90,000 values"
    assert parse("top-k:0.05").parts({"a": (48, 24, 3, 3)})["gap"][1] == np.uint16


@pytest.mark.parametrize("codec", LOSSY, ids=TEXTS)
def test_a_part_of_a_model_decodes_as_in_the_whole(codec, tensors):
    part = {name: tensors[name] for name in ("b.weight", "a.bias")}
    whole = sent(codec, tensors)
    assert all(np.array_equal(array, whole[name]) for name, array in sent(codec, part).items())
    only_small = {"a.bias": tensors["a.bias"]}
    assert np.array_equal(sent(codec, only_small)["a.bias"], tensors["a.bias"])
    assert sent(codec, {}) == {}


@pytest.mark.parametrize("codec", LOSSY, ids=TEXTS)
def test_with_error_feedback_the_sum_of_what_arrives_comes_to_the_sum_of_what_was_sent(codec, tensors):
    rng = np.random.default_rng(2)
    drift = tensors["b.weight"]  # every round's change has a common part and noise of its own
    lost, true, arrived, without = (np.zeros_like(drift) for _ in range(4))
    error = {}
    for number in range(1, 61):
        change = drift + rng.standard_normal(drift.shape).astype(np.float32)
        wanted = change + lost
        got = sent(codec, {"w": wanted})["w"]
        lost = wanted - got
        true, arrived, without = true + change, arrived + got, without + sent(codec, {"w": change})["w"]
        error[number] = relative_error({"w": true}, {"w": arrived})
    assert error[60] < error[5] / 3, "what is lost stays bounded while the sum grows"
    assert error[60] < relative_error({"w": true}, {"w": without}) / 2


@pytest.mark.parametrize("codec", LOSSY, ids=TEXTS)
def test_the_order_of_the_tensors_does_not_matter(codec, tensors):
    turned = dict(reversed(tensors.items()))  # as a file gives them back
    found, wanted = codec_wire.pack(codec, turned), codec_wire.pack(codec, tensors)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


BAD = {
    "a part is missing": lambda p: p.pop("int8.scale"),
    "a part too many": lambda p: p.update(scan=p["int8.scale"]),
    "no bytes": lambda p: p.update({"int8.int8": p["int8.int8"].astype(np.int32)}),
    "a flipped bit": lambda p: p.update({"int8.int8": p["int8.int8"] ^ np.uint8(1)}),
    "cut short": lambda p: p.update({"int8.int8": p["int8.int8"][:-9]}),
    "more behind it": lambda p: p.update({"int8.int8": np.append(p["int8.int8"], np.uint8(7))}),
    "a bomb": lambda p: p.update({"int8.scale": codec_wire.squeeze(np.zeros(10**6, np.float32))}),
    "too few": lambda p: p.update({"int8.scale": codec_wire.squeeze(np.zeros(3, np.float32))}),
    "a NaN scale": lambda p: p.update({"int8.scale": codec_wire.squeeze(np.full(348, np.nan, np.float32))}),
    "a negative scale": lambda p: p.update({"int8.scale": codec_wire.squeeze(np.full(348, -1, np.float32))}),
    "a scale beyond float32": lambda p: p.update({"int8.scale": codec_wire.squeeze(np.full(348, 3e38, np.float32))}),
    "minus 128": lambda p: p.update({"int8.int8": codec_wire.squeeze(np.full(100368, -128, np.int8))}),
    "a NaN bias": lambda p: p.update({"int8.float32": codec_wire.squeeze(np.full(720, np.nan, np.float32))}),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_damaged_payload_is_a_value_error_with_the_reason(tensors, spoil):
    codec = parse("int8")
    packed = codec_wire.pack(codec, tensors)
    spoil(packed)
    with pytest.raises(ValueError, match=r"int8|scale|float32|names"):
        codec_wire.unpack(codec, packed, layout_of(tensors))


def test_top_k_refuses_an_index_outside_the_tensor_and_values_that_are_none(tensors):
    codec = parse("top-k:0.05")
    encoded = codec.encode(tensors)
    far = {**encoded, "gap": encoded["gap"] + np.uint32(60)}
    with pytest.raises(ValueError, match="leads to index"):
        codec.decode(far, layout_of(tensors))
    with pytest.raises(ValueError, match="NaN"):
        codec.decode({**encoded, "bf16": np.full_like(encoded["bf16"], 0x7FC0)}, layout_of(tensors))


def test_a_stream_that_hides_something_is_not_canonical(tensors):
    import zlib

    codec = parse("bf16")
    packed = codec_wire.pack(codec, tensors)
    planes = zlib.decompress(packed["bf16.bf16"].tobytes())
    other = {**packed, "bf16.bf16": np.frombuffer(zlib.compress(planes, 0), np.uint8)}
    codec_wire.unpack(codec, other, layout_of(tensors))
    with pytest.raises(ValueError, match="not the stream"):
        codec_wire.unpack(codec, other, layout_of(tensors), canonical=True)


@pytest.mark.parametrize("codec", LOSSY, ids=TEXTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(codec, tensors, value):
    tensors["b.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"b\.weight holds NaN"):
        codec_wire.pack(codec, tensors)


@pytest.mark.parametrize(
    "text", ["", "int4", "int8:2", "fp32:1", "top-k", "top-k:", "top-k:0", "top-k:0.6", "top-k:nan"]
)
def test_what_is_no_codec(text):
    with pytest.raises(ValueError, match=r"known are|share of top-k"):
        parse(text)
    with pytest.raises(ConfigError, match="upload="):
        parse_run_config({**to_mapping(RunConfig()), "upload": text})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"upload": "int8", "secure-aggregation": True}, "no common sum"),
        ({"share": "decoder-every:4", "secure-aggregation": True}, "masks the whole model"),
        ({"download": "top-k:0.1"}, "most weights would be 0"),
        ({"share": "decoder-every:1"}, "share="),
        ({"share": "decoder"}, "share="),
    ],
)
def test_settings_that_cannot_be(changes, text):
    with pytest.raises(ConfigError, match=text):
        parse_run_config({**to_mapping(RunConfig()), **changes})


def test_a_secure_sum_bears_an_encoded_download():
    parse_run_config({**to_mapping(RunConfig()), "download": "int8", "secure-aggregation": True})


def test_a_transfer_reads_back_what_it_says():
    run = RunConfig(upload="top-k:0.05", download="bf16")
    transfer = Transfer(parse("bf16"), parse("top-k:0.05"), ("decoder",))
    assert Transfer.from_dict(transfer.to_dict(), run, answers=True) == transfer
    assert Transfer().to_dict() == {} and Transfer.from_dict({}, RunConfig(), answers=True) == Transfer()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"upload": {"codec": "int4", "version": 1}}, "upload: int4 version 1.* It knows fp32 version 1"),
        ({"upload": {"codec": "int8", "version": 2}}, "int8 version 2"),
        ({"upload": {"codec": "/etc/passwd", "version": 1}}, "one without a plain name"),
        ({"download": None}, "download: one without"),
        ({"upload": {"codec": "bf16", "version": 1}}, "says upload=int8"),
        ({"without": ["encoder"]}, "leave out a part"),
    ],
)
def test_a_site_refuses_what_it_does_not_know(change, text):
    said = Transfer(parse("int8"), parse("int8")).to_dict() | change
    with pytest.raises(RefusedError, match=text):
        Transfer.from_dict(said, RunConfig(upload="int8"), answers=True)


def test_silence_is_no_consent_to_another_codec():
    with pytest.raises(RefusedError, match="says upload=int8"):
        Transfer.from_dict({}, RunConfig(upload="int8"), answers=True)


def test_the_decoder_is_what_no_decision_needs():
    import torch

    from jointdiff.model import JointModel

    model = JointModel(ModelConfig(width=8, multipliers=(1, 2), attention_levels=()))
    x = torch.rand(2, 1, 28, 28)
    before = model.classify(x), model.denoise(x, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if is_decoder(name):
                tensor += 1
    after = model.classify(x), model.denoise(x, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_what_travels_when():
    sharing = Sharing.of(Config(run=RunConfig(share="decoder-every:3", num_rounds=7)))
    names = ["unet.conv_in.weight", "unet.up.0.weight", "head.mean"]
    assert [len(sharing.up(names, number)) for number in range(1, 8)] == [2, 2, 3, 2, 2, 3, 3]
    assert [number for number in range(1, 8) if sharing.opens(number)] == [1, 4, 7]
    assert sharing.without(decoder=False, body=False) == ["decoder"] and sharing.without(decoder=True, body=False) == []


def sums_of(rng, count, features=40, shift=5.0):
    x = rng.standard_normal((count, features)) @ rng.standard_normal((features, features)) + shift
    return head_sums(x, x[:60], np.arange(60) % 2, 2)


def test_the_head_of_encoded_sums_is_that_of_exact_ones():
    rng = np.random.default_rng(3)
    parts = [sums_of(rng, 200), sums_of(rng, 100, shift=-3.0)]
    like = head_sums(np.zeros((0, 40)), np.zeros((0, 40)), np.zeros(0, np.int64), 2)
    got = [head_codec.unpack(head_codec.pack(sums), like, canonical=True) for sums in parts]
    for sums, found in zip(parts, got, strict=True):
        for name in sums.keys() - {"products", "group_products"}:
            assert np.array_equal(sums[name], found[name])
    exact, near = (solve_head(add_sums(sums), Config()) for sums in (parts, got))
    change = (near["head.linear.weight"] - exact["head.linear.weight"]).norm()
    assert 0 < change < 0.002 * exact["head.linear.weight"].norm()
    assert sum(a.nbytes for a in head_codec.pack(parts[0]).values()) < sum(a.nbytes for a in parts[0].values()) / 2


def test_sums_over_no_image_and_without_products_travel():
    like = head_sums(np.zeros((0, 40)), np.zeros((0, 40)), np.zeros(0, np.int64), 2)
    got = head_codec.unpack(head_codec.pack(like), like)
    assert all(np.array_equal(got[name], like[name]) for name in like)
    plain = {name: like[name] for name in ("count", "sum", "squares")}
    assert head_codec.unpack(head_codec.pack(plain), plain).keys() == plain.keys()


def test_damaged_sums_are_a_value_error():
    sums = sums_of(np.random.default_rng(4), 100)
    packed, name = head_codec.pack(sums), "products.correlation"
    for changes, text in (
        ({name: packed[name][:-5]}, "damaged|another length"),
        ({name: codec_wire.squeeze(np.full(780, 2048, np.int16))}, "beyond 1"),
        ({"sum": packed["sum"] * np.nan}, "NaN"),
        ({"sum": packed["sum"][:3]}, "sum is float64"),
        ({"scan": packed["sum"]}, "names"),
    ):
        with pytest.raises(ValueError, match=text):
            head_codec.unpack({**packed, **changes}, sums)


def test_codec_texts():
    assert [codec.text for codec in LOSSY] == list(TEXTS) and Codec("fp32").plain

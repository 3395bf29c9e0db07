"""`speed` changes seconds and, by no more than is said here, roundings.

Tolerances, over a round of a few steps: no weight ends elsewhere by more than 3% of the largest change of any weight
(AdamW makes steps of its own size out of gradients that are nothing but rounding), and the means of the losses differ
by less than 1e-5 of themselves between plain and auto, 1e-4 between compiled and auto.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.preflight.trial_step import random_data
from jointdiff import speed
from jointdiff.config import Config, RunConfig, TrainingConfig, parse_run_config, resolve
from jointdiff.errors import ConfigError
from jointdiff.privacy import refuse_what_cannot_be_private
from jointdiff.speed import MIN_STEPS_TO_COMPILE, autocast_for, has_fast_bf16, speed_for
from jointdiff.training import train_round
from tests.test_training import MODEL, RUN, fresh

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    speed._say_once.cache_clear()
    yield
    speed._compiled.cache_clear()


def configured(setting: str = "auto", **run) -> Config:
    training = TrainingConfig(warmup_fraction=0.0, pseudo_start_fraction=0.0, autocast="off")
    return Config(replace(RUN, speed=setting, **run), MODEL, training)


def one_round(setting: str, **run):
    """Return how the weights moved in a round, and what was told."""
    model, config = fresh(), configured(setting, **run)
    data = random_data(config, CPU)
    told, _ = train_round(model, data, config, round_number=3, hospital_index=0, device=CPU, state=None)
    start = fresh().state_dict()
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values()), "no layout leaves a round"
    assert not any(parameter.requires_grad is False for parameter in model.parameters())
    return {name: tensor.detach() - start[name] for name, tensor in model.state_dict().items()}, told


def assert_near(a, b, share: float, rel: float) -> None:
    (moves, told), (others, told_there) = a, b
    largest = max(float(move.abs().max()) for move in moves.values())
    for name, move in moves.items():
        assert float((move - others[name]).abs().max()) < share * largest, name
    for name in ("loss", "loss_diffusion", "loss_class", "loss_pseudo", "pseudo_coverage"):
        assert told_there[name] == pytest.approx(told[name], rel=rel), name


def test_plain_and_auto_give_the_same_but_for_rounding():
    plain = one_round("plain")
    assert_near(plain, one_round("auto"), share=0.03, rel=1e-5)


@pytest.mark.slow
def test_compiled_gives_the_same_but_for_rounding(caplog):
    """The real compiler, minutes of it; where there is none, that is said, and the round is auto's own."""
    found = one_round("compiled")
    if caplog.messages:
        pytest.skip(caplog.messages[0])
    assert_near(one_round("auto"), found, share=0.03, rel=1e-4)


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_compiler_that_fails_is_said_once_and_done_without(at, caplog, monkeypatch):
    """torch.compile traces for real; the compiler behind it is missing, or fails only on the way back."""

    def backend(graph, _inputs):
        if at == "forward":
            raise FileNotFoundError("no C++ compiler")
        return lambda *args: [_FailsBackward.apply(out) if out.requires_grad else out for out in graph(*args)]

    monkeypatch.setattr(speed, "_compiled", lambda: tuple(torch.compile(call, backend=backend) for call in _UNCOMPILED))
    monkeypatch.setattr(speed._compiled, "cache_clear", lambda: None, raising=False)
    moves, told = one_round("compiled")
    one_round("compiled")
    (said,) = [text for text in caplog.messages if "torch.compile" in text]
    assert "does not work here" in said
    torch._dynamo.reset()
    others, _ = one_round("auto")
    assert all(torch.equal(moves[name], others[name]) for name in moves), "bit for bit as without"
    assert "batch_parts" not in told


_UNCOMPILED = (speed._denoise, speed._classify)


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("the kernel cannot be built")


def test_what_is_compiled_by_itself():
    """On a GPU the rounds that are long enough; on a CPU none; nothing whose dropout would draw other numbers."""
    wants = speed._wants_compiler
    long, short = configured(local_steps=MIN_STEPS_TO_COMPILE), configured(local_steps=MIN_STEPS_TO_COMPILE - 1)
    assert wants(long, GPU) and not wants(short, GPU) and not wants(long, CPU)
    assert wants(configured("compiled"), CPU) and not wants(configured("plain", local_steps=10**6), GPU)
    assert not wants(replace(long, model=replace(MODEL, dropout=0.1)), GPU)


@pytest.mark.parametrize(
    ("setting", "layout"), [("auto", torch.channels_last), ("plain", torch.contiguous_format)]
)  # fmt: skip
def test_layout_and_precision(setting, layout):
    model = fresh()
    config = replace(configured(setting), training=TrainingConfig(autocast="auto"))
    found = speed_for(model, config, CPU, num_views=4)
    assert not found.compiled and found.memory_format == layout
    assert model.unet.conv_in.weight.is_contiguous(memory_format=layout)
    with found.precision():
        enabled = torch.is_autocast_enabled("cpu")
    assert enabled == (setting == "auto" and has_fast_bf16(CPU))


def test_a_processor_without_bf16_computes_in_fp32(monkeypatch):
    def enabled(setting, **able):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
        with autocast_for(CPU, setting):
            return torch.is_autocast_enabled("cpu")

    assert not enabled("auto") and not enabled("auto", avx512_bf16=False)
    assert enabled("auto", amx_bf16=True) and enabled("bf16") and not enabled("off", amx_bf16=True)


def test_a_gpu_that_only_emulates_bf16_is_left_in_fp32_and_one_without_is_an_error(monkeypatch):
    """`auto` must not take torch's yes for a GPU that emulates bf16 (Turing and older)."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bf16(GPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(ConfigError, match=r"autocast: bf16, and cuda has no bf16\. Take autocast: auto or off"):
        autocast_for(GPU, "bf16")
    assert not has_fast_bf16(GPU)


def test_the_key_is_checked():
    assert RunConfig().speed == "auto"
    with pytest.raises(ConfigError, match="Unknown speed 'fast'"):
        parse_run_config({"speed": "fast"})
    private = resolve(
        parse_run_config({"speed": "compiled", "noise-multiplier": 1.0}), channels=1, num_outputs=2, task="multi-class"
    )
    with pytest.raises(ConfigError, match="A private run cannot have speed=compiled: per-record gradients"):
        refuse_what_cannot_be_private(private)

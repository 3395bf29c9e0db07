"""A site's part in one round of private training: look whether it was answered before, pay, train, keep the answer.

The order is what protects: the ledger is written before a step is taken, so that no crash can hide one; and a round
that the server repeats gets the reply it got before, since a new draw of noise would have to be paid for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from client import state
from jointdiff.autoencoder import Autoencoder
from jointdiff.errors import RefusedError
from jointdiff.ledger import Ledger, dataset_fingerprint
from jointdiff.privacy import num_units
from jointdiff.private_autoencoder import train_private_autoencoder_round
from jointdiff.private_training import plan_for, train_private_round
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.storage import atomic_path

if TYPE_CHECKING:
    from client.round import Answer
    from client.site import Site


def train_privately(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    """Train for one round with differential privacy, or return what was answered to the same question before.

    Args:
        site: Its configuration is a private one.
        tensors: The weights that the server sent.

    Raises:
        ConfigError: The configuration cannot be private.
        RefusedError: The site's ceiling would be passed, or its ledger is not in order.
    """
    ask = site.instructions
    key = question_key(ask, tensors)
    kept = site.folder / "state" / ask.run_name / "private-reply.safetensors"
    if (answer := _kept_reply(kept, key)) is not None:
        return answer
    plan = plan_for(site.config, num_units(site.data.train))
    ledger = _ledger(site, plan.delta)
    if site.config.phase is not None and all(entry["run"] != ask.run_name for entry in ledger.entries):
        ledger.check_room(plan.ahead(site.config.own_round(ask.round)))  # for both phases, before the first step
    ledger.spend(
        run=ask.run_name, round=ask.round, noise_multiplier=plan.noise_multiplier, sample_rate=plan.sample_rate,
        steps=plan.steps, key=key,
    )  # fmt: skip
    model = site.model(tensors)
    work = train_private_autoencoder_round if isinstance(model, Autoencoder) else train_private_round
    metrics, new_state = work(
        model,  # type: ignore[arg-type]
        site.inputs,
        site.config,
        plan,
        round_number=site.config.own_round(ask.round),
        device=site.device,
        state=state.load(site.folder, ask.run_name, before=ask.round, after=site.config.rounds_before),
    )
    state.save(site.folder, ask.run_name, ask.round, new_state)
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    metrics |= {"epsilon": ledger.epsilon, "delta": ledger.delta}
    # How many labels there are is a count over records: it does not leave. How many records, is public.
    report = RoundReport(ask.hospital, num_images=len(site.data.train), metrics=metrics)
    _keep_reply(kept, key, report, weights)
    return report, weights


def charge_plain_round(site: Site) -> None:
    """Write a round without differential privacy into a ledger that the site keeps: its epsilon is infinite from here.

    Raises:
        RefusedError: The ledger is not in order.
    """
    ask = site.instructions
    _ledger(site, site.config.run.delta).spend(
        run=ask.run_name, round=ask.round, noise_multiplier=0.0, sample_rate=1.0,
        steps=site.config.run.local_steps, key="",
    )  # fmt: skip


def _ledger(site: Site, delta: float) -> Ledger:
    train = site.data.train
    unit = "image" if train.patients is None else "patient"
    if site.policy.unit == "patient" != unit:
        raise RefusedError("This site protects patients, but its table does not say which image is whose.")
    return Ledger.open(
        site.folder,
        dataset=dataset_fingerprint(train.images),
        num_records=num_units(train),
        unit=unit,
        delta=delta if site.policy.delta is None else site.policy.delta,
        ceiling=site.policy.epsilon,
    )


def question_key(instructions: RoundInstructions, tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of all that decides the answer: the instructions, and every tensor's name and content.

    A secure sum's session does not: what is sent again in a new session is masked anew, not trained anew. Nor does the
    way in which the tensors came.
    """
    digest = hashlib.sha256(replace(instructions, payload={}, transfer={}).to_json().encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}/{array.dtype}/{array.shape}/".encode() + array.tobytes())
    return digest.hexdigest()


def _kept_reply(path: Path, key: str) -> Answer | None:
    """Return the reply that was kept, if it was to this very question and is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            note = file.metadata() or {}
            if note.get("key") != key:
                return None
            return RoundReport.from_json(note["report"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:  # damaged: the round is trained, and paid for, once more
        return None


def _keep_reply(path: Path, key: str, report: RoundReport, weights: Mapping[str, np.ndarray]) -> None:
    """Keep a reply in place of the last one, in one step."""
    with atomic_path(path) as temporary:
        arrays = {name: np.array(array, order="C") for name, array in weights.items()}
        save_file(arrays, temporary, metadata={"key": key, "report": report.to_json()})

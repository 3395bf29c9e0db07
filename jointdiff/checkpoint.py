"""Checkpoints: one safetensors file that carries its configuration, round, metric and code version.

Nothing is ever unpickled. The file is an ordinary safetensors file; the facts lie as strings in its header's metadata:
`format`, `config` (JSON of `Config.to_dict()`), `round`, `metric`, `metric_name`, `code_version`, `code_hash`.
The checkpoint of a latent run holds its autoencoder too: tensors `autoencoder/...`, and `autoencoder` in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import jointdiff
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.config import Config, ModelConfig
from jointdiff.errors import CheckpointError, ConfigError
from jointdiff.storage import atomic_path

FORMAT = "jointdiff-checkpoint-1"
_OWN = {"format", "config", "round", "metric", "metric_name", "code_version", "code_hash", "autoencoder"}
_PART = "autoencoder/"  # prefix of the tensors of a latent run's autoencoder
_NUM_NAMED = 3  # how many differing tensors or keys an error names


@dataclass(frozen=True)
class Part:
    """A second network in the file: a state_dict, and what it is made of, as plain keys."""

    state: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    state: dict[str, torch.Tensor]  # the model's state_dict, on the CPU
    config: Config
    round_number: int  # 0 before the first round
    metric: float | None  # the value that chose this checkpoint; None where nothing chose
    metric_name: str
    code_version: str
    code_hash: str  # '' where the writer did not say
    autoencoder: Part | None = None  # of a latent run: latent_run.from_tensors makes one of it


def save(
    path: Path | str,
    model_state: Mapping[str, torch.Tensor],
    config: Config,
    *,
    round_number: int,
    metric: float | None = None,
    metric_name: str = "",
    code_hash: str = "",
    autoencoder: Part | None = None,
) -> Path:
    """Write a checkpoint atomically: a reader sees the old file or the whole new one.

    Args:
        path: The file; its folder must exist.
        model_state: A module's `state_dict()`, on any device.
        config: The resolved configuration, from which the model can be built again.
        round_number: Round after which the weights were taken; 0 before the first.
        metric, metric_name: What this checkpoint was chosen by, if anything.
        code_hash: `jointdiff.identity.code_hash()` of the writer.
        autoencoder: Of a latent run: both parts go into the one file.

    Raises:
        CheckpointError: A weight is NaN or infinite; nothing is written, and an older file stays as it was.
    """
    path = Path(path)
    # A copy of its own for every tensor: safetensors refuses tensors that share memory (tied weights, views).
    parts = {**model_state, **({} if autoencoder is None else {_PART + k: v for k, v in autoencoder.state.items()})}
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts.items()}
    check_finite(state, f"Refusing to write the checkpoint {path.name}")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "round": str(round_number),
        "metric": json.dumps(metric),
        "metric_name": metric_name,
        "code_version": jointdiff.__version__,
        "code_hash": code_hash,
    }
    if autoencoder is not None:
        metadata["autoencoder"] = json.dumps(autoencoder.config, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
    return path


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: Missing, truncated, not a safetensors file, not written by JointDiff, or with NaN weights.
    """
    path = Path(path)
    metadata, state = read(path)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise CheckpointError(
            f"{path} is a safetensors file, but not a JointDiff checkpoint (format {found!r}, wanted {FORMAT!r}): "
            "it does not say its configuration, so the network cannot be built from it."
        )
    check_finite(state, f"The checkpoint {path} is unusable")
    second = {name: state.pop(name) for name in list(state) if name.startswith(_PART)}
    try:
        return Checkpoint(
            state=state,
            config=Config.from_dict(json.loads(metadata["config"])),
            round_number=int(metadata["round"]),
            metric=json.loads(metadata["metric"]),
            metric_name=metadata["metric_name"],
            code_version=metadata["code_version"],
            code_hash=metadata.get("code_hash", ""),
            autoencoder=(
                Part({name.removeprefix(_PART): t for name, t in second.items()}, json.loads(metadata["autoencoder"]))
                if second
                else None
            ),
        )
    except (ConfigError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The header of the checkpoint {path} does not fit JointDiff {jointdiff.__version__} "
            f"(written by {metadata.get('code_version', 'an unknown version')}): {error}"
        ) from None


def read(path: Path | str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the header's metadata and the tensors of any safetensors file, on the CPU.

    Raises:
        CheckpointError: Missing, truncated, or not a safetensors file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}. A run keeps its own in <run folder>/checkpoints/.")
    if not path.is_file():
        raise CheckpointError(f"The checkpoint path {path} is not a file. Name the .safetensors file itself.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(_damage(path, error)) from None


def export(source: Path | str, target: Path | str, config: Config, **facts: str) -> Path:
    """Write a checkpoint once more: the same weights, round, metric and code, with more to read in the header.

    Args:
        source: The checkpoint; `target` may be the same file.
        config: What the header is to say of the configuration, e.g. without the folders of this machine.
        facts: Further texts for the header's metadata, e.g. `model_card`. `load` passes them over.

    Raises:
        CheckpointError: As `load`.
    """
    assert not facts.keys() & _OWN, f"{sorted(facts.keys() & _OWN)} belong to the checkpoint itself"
    load(source)
    with safe_open(str(source), framework="pt", device="cpu") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    metadata = {**metadata, "config": json.dumps(config.to_dict(), sort_keys=True), **facts}
    with atomic_path(Path(target)) as temporary:
        save_file(state, temporary, metadata=metadata)
    return Path(target).absolute()


def load_into(model: torch.nn.Module, path: Path | str) -> Checkpoint:
    """Load a checkpoint's weights into a model of the same architecture.

    Args:
        model: If it has a `config` of type ModelConfig, the two configurations are compared too.

    Raises:
        CheckpointError: As `load`; or the architecture differs: the first differing keys and tensors are named,
            and the model is left as it was.
    """
    checkpoint = load(path)
    own = getattr(model, "config", None)
    encodes = isinstance(own, AutoencoderConfig)
    _check_autoencoder(own, checkpoint.config.model, path)
    differences = [
        *_config_differences(own, checkpoint.config.autoencoder if encodes else checkpoint.config.model),
        *_tensor_differences(model.state_dict(), checkpoint.state),
    ]
    if differences:
        more = f" (and {len(differences) - _NUM_NAMED} more)" if len(differences) > _NUM_NAMED else ""
        raise CheckpointError(
            f"The checkpoint {path} is of another architecture: "
            + "; ".join(differences[:_NUM_NAMED])
            + more
            + f". It was trained as model '{checkpoint.config.model.name}' on '{checkpoint.config.run.dataset}': "
            "build the model from the checkpoint's own configuration, or name the checkpoint of this run."
        )
    model.load_state_dict(checkpoint.state)
    return checkpoint


def _check_autoencoder(own: object, other: ModelConfig, path: Path | str) -> None:
    """Refuse weights that learned other latents than those that the model will see: they would mean nothing to them."""
    if not isinstance(own, ModelConfig) or own.autoencoder == other.autoencoder:
        return
    names = [f"latents of the autoencoder {c.autoencoder[:12]}" if c.latent else "pixels" for c in (other, own)]
    raise CheckpointError(
        f"The checkpoint {path} was trained on {names[0]}, and here the network sees {names[1]}: set autoencoder to "
        "the file that the checkpoint was trained with, or leave it out for pixels."
    )


def _config_differences(own: object, other: ModelConfig | AutoencoderConfig | None) -> list[str]:
    if not isinstance(own, ModelConfig | AutoencoderConfig) or other is None:
        return []
    # The name is a label, and dropout holds no weights: neither changes which weights fit.
    keys = [f.name for f in fields(own) if f.name not in ("name", "dropout")]
    return [
        f"{key.replace('_', '-')} is {getattr(other, key)!r} in the checkpoint, {getattr(own, key)!r} here"
        for key in keys
        if getattr(own, key) != getattr(other, key)
    ]


def _tensor_differences(own: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    differences = []
    for name in [*own, *(n for n in other if n not in own)]:
        if name not in other:
            differences.append(f"tensor '{name}' is not in the checkpoint")
        elif name not in own:
            differences.append(f"tensor '{name}' of the checkpoint is not in the model")
        elif own[name].shape != other[name].shape:
            here, there = list(own[name].shape), list(other[name].shape)
            differences.append(f"tensor '{name}' has shape {there} in the checkpoint, {here} here")
    return differences


def check_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        what: How the error begins.

    Raises:
        CheckpointError: There are any.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{what}: {len(bad)} of {len(state)} tensors hold NaN or infinity, first {', '.join(bad[:_NUM_NAMED])}. "
            "Training has diverged; use an earlier checkpoint, or a smaller learning rate."
        )


def _damage(path: Path, error: SafetensorError) -> str:
    """Tell a file that was cut from one that never was a safetensors file: the header says how long it should be."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        start = file.read(1)
    if start == b"{" and header_bytes < 100_000_000:
        with path.open("rb") as file:
            file.seek(8)
            header = file.read(header_bytes)
        wanted = 8 + header_bytes
        try:
            entries = json.loads(header)
            wanted += max(e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            pass  # the header itself is cut: its own length is what can be said
        if num_bytes < wanted:
            return (
                f"The checkpoint {path} is truncated: it has {num_bytes} of at least {wanted} bytes. "
                "Copy it again, or use an earlier checkpoint."
            )
    return f"{path} is not a safetensors file, or damaged ({error}). Other formats are not read, pickles never."

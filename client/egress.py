"""What may leave a site: one allow-list per kind of message, derived from the resolved configuration.

`check` holds a reply against it and returns the reply anew, made of nothing but what was declared; a reply with
anything else in it is stopped as a whole. To add a kind: its payload in _PAYLOADS, its scalars in _SCALARS.

What this cannot see: data hidden inside an allowed tensor, in the digits of an allowed number, or in the time at which
a reply is sent (docs/threat-model.md).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from client import upload
from client.download import layout_of_model
from client.safe_text import may_travel
from client.site_policy import SitePolicy
from jointdiff import codec_wire, codecs, head_codec, protocol
from jointdiff.config import Config, trains_autoencoder
from jointdiff.data import info_of
from jointdiff.grading import MEAN_OVER
from jointdiff.local_work import no_sums
from jointdiff.networks import Design, build, design_of
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.reconstruction import SHAPES as RECONSTRUCTION
from jointdiff.reconstruction import ReconstructionStatistics
from jointdiff.round_profile import REPORTED
from jointdiff.sample_grades import PREFIX
from jointdiff.score_histogram import NUM_BINS
from jointdiff.sharing import Sharing
from jointdiff.small_counts import holds, is_small
from jointdiff.statistics import (
    COARSE_BINS,
    NAMES,
    NUM_CALIBRATION_BINS,
    OPTIONAL_NAMES,
    ClassificationStatistics,
)

PARTS = ("test", "heldout")  # of the evaluation
MAX_COUNT = 2**29  # images
MAX_SCALAR = 1e12
MAX_DURATION_S = 1e9
NUM_PUBLIC_KEYS = 2  # of a hospital in a secure sum: one to seal shares, one to agree on masks
# What a secure sum's questions bring beside counts: field: (whether by hospital, bytes of each entry).
_SECRETS = {
    protocol.KEYS: {"keys": (False, 32)},
    protocol.SHARES: {"sealed": (True, 92)},
    protocol.UNMASK: {"seeds": (True, 32), "keys": (True, 32)},
}
TABLE_LISTS = ("labelled", "test")
TABLE_TOTALS = ("num_labelled", "num_unlabelled", "num_train", "num_heldout", "num_test", "min_cell_count")
_WITHHELD = re.compile(r"(test|heldout)(\.(calibration|confusion|output-\d{1,4}))?|num_images|num_labels|grades")

_TRAINING = frozenset({
    "loss", "loss_diffusion", "loss_class", "loss_pseudo", "pseudo_coverage", "pseudo_confidence", "pseudo_accuracy",
    "learning_rate", "images_per_s", "batch_parts",
})  # fmt: skip
_RECONSTRUCTION = frozenset({
    "loss", "loss_l1", "loss_l2", "loss_feature", "loss_kl", "learning_rate", "images_per_s",
    "batch_parts",
})  # fmt: skip
# With differential privacy no scalar may be computed from training records without noise.
_PRIVATE_TRAINING = frozenset({
    "epsilon", "delta", "noise_multiplier", "sample_rate", "steps", "learning_rate",
})  # fmt: skip
_GRADES = frozenset(MEAN_OVER) | frozenset(MEAN_OVER.values()) | {PREFIX + "num", PREFIX + "referee_agreement"}


class StoppedError(Exception):
    """A reply holds something that is not declared.

    Args:
        what: A fixed text of this module: it travels.
        detail: What it was, by its name: for the site's own log.
    """

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(what)
        self.what = what
        self.detail = detail


@dataclass(frozen=True)
class Form:
    """What an array must be."""

    shape: tuple[int | None, ...]  # None = any length
    dtype: str


@dataclass(frozen=True)
class Payload:
    """The arrays of one kind of message."""

    required: Mapping[str, Form] = field(default_factory=dict)
    optional: Mapping[str, Form] = field(default_factory=dict)
    check: Callable[[Mapping[str, np.ndarray], RoundReport, Config, SitePolicy], None] | None = None


def check(
    ask: RoundInstructions, report: RoundReport, arrays: Mapping[str, np.ndarray], policy: SitePolicy
) -> tuple[RoundReport, dict[str, np.ndarray]]:
    """Return the reply made anew of what is declared for it.

    Args:
        ask: The instructions as they came, from before any work was done.
        report: As the work gave it; read strictly by the caller, so that its fields are known.
        arrays: Beside it.
        policy: The site's.

    Raises:
        StoppedError: The reply holds anything that is not declared.
    """
    _check_texts(ask, report)
    if report.status != "ok":
        if arrays:
            raise StoppedError("a tensor beside a report that is not ok", _names(arrays))
        if (
            report.metrics
            or report.table
            or report.payload
            or report.num_images
            or report.num_labels
            or report.duration_s
        ):
            raise StoppedError("a value in a report that is not ok", "the fields of a failure or refusal")
        return RoundReport(ask.hospital, status=report.status, code=report.code, reason=report.reason), {}
    config = Config.from_dict(ask.config)
    payload = _PAYLOADS[ask.kind](config, policy)
    if ask.kind == protocol.TRAIN:
        payload = _travelling(payload, config, config.own_round(ask.round))
    kept = _check_arrays(payload, arrays)
    if payload.check is not None:
        payload.check(kept, report, config, policy)
    return (
        RoundReport(
            ask.hospital,
            num_images=_count(report.num_images, "num_images"),
            num_labels=_count(report.num_labels, "num_labels"),
            duration_s=_scalar(report.duration_s, "duration_s", MAX_DURATION_S),
            device=report.device,
            metrics=_check_scalars(_SCALARS[ask.kind](config), report.metrics),
            table=_check_table(report.table, config) if ask.kind == protocol.DESCRIBE else _no_table(report.table),
            withheld=list(report.withheld),
            payload=_check_secrets(ask, report.payload, config.run.hospital_names),
        ),
        kept,
    )


def _check_texts(ask: RoundInstructions, report: RoundReport) -> None:
    """Stop every text that is not one of an enumerated set, or a reason that reads like one of ours."""
    if report.hospital != ask.hospital:
        raise StoppedError("another hospital's name than the one asked", repr(report.hospital))
    if report.status not in ("ok", "failed", "refused"):
        raise StoppedError("a status that is not declared", repr(report.status))
    if report.code not in protocol.CODES:
        raise StoppedError("a code that is not declared", repr(report.code))
    if report.status == "ok" and (report.reason or report.code):
        raise StoppedError("a reason in a report that is ok", repr(report.reason or report.code))
    if not may_travel(report.reason):
        raise StoppedError("a reason that is no safe text", repr(report.reason))
    if report.device not in _device_names():
        raise StoppedError("a device that is not one of this machine", repr(report.device))
    if len(report.withheld) > 2**12 or len(set(report.withheld)) != len(report.withheld):
        raise StoppedError("names of withheld statistics that are not declared", repr(report.withheld))
    for name in report.withheld:
        if not _WITHHELD.fullmatch(name):
            raise StoppedError("names of withheld statistics that are not declared", repr(name))


@lru_cache(maxsize=1)
def _device_names() -> frozenset[str]:
    """Return every way in which this machine's devices are called in a report."""
    names = {"", "cpu"}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_name(index)
        names |= {f"cuda:{index} ({card})", f"cuda ({card})"}
    return frozenset(names)


def _check_arrays(payload: Payload, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    forms = {**payload.required, **payload.optional}
    unknown = arrays.keys() - forms.keys()
    if unknown:
        raise StoppedError("an undeclared tensor", _names(unknown))
    missing = payload.required.keys() - arrays.keys()
    if missing:
        raise StoppedError("a reply without all of its declared tensors", _names(missing))
    for name, array in arrays.items():
        form = forms[name]
        fits = len(array.shape) == len(form.shape) and all(
            wanted is None or wanted == size for size, wanted in zip(array.shape, form.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(form.dtype):
            found = f"{name!r} is {array.dtype} {list(array.shape)}, declared {form.dtype} {list(form.shape)}"
            raise StoppedError("a tensor of another shape or type than declared", found)
    return {name: arrays[name] for name in forms if name in arrays}


def _check_scalars(allowed: frozenset[str], metrics: Mapping[str, Any]) -> dict[str, float]:
    unknown = metrics.keys() - allowed
    if unknown:
        raise StoppedError("an undeclared scalar", _names(unknown))
    return {name: _scalar(metrics[name], name, MAX_SCALAR) for name in sorted(metrics)}


def _scalar(value: Any, name: str, limit: float) -> float:
    # Whole numbers of Python have no end: as a float it holds eight bytes, whatever it was.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
        raise StoppedError("a scalar that is no finite number of a sane size", name)
    return float(value)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_COUNT:
        raise StoppedError("a count that is none", name)
    return value


def _no_table(table: Mapping[str, Any]) -> dict[str, Any]:
    if table:
        raise StoppedError("an undeclared table", _names(table))
    return {}


def _check_table(table: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return a class table made anew: names as the data set declares them, whole numbers, or None for withheld."""
    names = ("class_names", *TABLE_LISTS, *TABLE_TOTALS, "server_samples")
    if table.keys() != set(names):
        raise StoppedError("an undeclared field of the class table", _names(table.keys() ^ set(names)))
    run, num_outputs = config.run, config.model.num_outputs
    declared = list(info_of(run).class_names)
    if table["class_names"] != declared:
        raise StoppedError("names of classes that are not the data set's", repr(table["class_names"]))
    if not isinstance(table["server_samples"], bool):
        raise StoppedError("a permission that is neither yes nor no", "server_samples")
    found: dict[str, Any] = {"class_names": declared, "server_samples": table["server_samples"]}
    for name in TABLE_LISTS:
        counts = table[name]
        if counts is not None and (not isinstance(counts, list) or len(counts) != num_outputs):
            raise StoppedError("counts that are not one per class", name)
        found[name] = None if counts is None else [_count(count, name) for count in counts]
    return found | {name: None if table[name] is None else _count(table[name], name) for name in TABLE_TOTALS}


def _check_secrets(ask: RoundInstructions, payload: Mapping[str, Any], hospitals: Sequence[str]) -> dict[str, Any]:
    """Return what a secure sum exchanges, made anew: keys and shares of a fixed length, for named hospitals."""
    declared = _SECRETS.get(ask.kind, {})
    if payload.keys() != declared.keys():
        raise StoppedError("an undeclared payload", _names(payload.keys() ^ declared.keys()))
    others = set(hospitals)
    for name, (by_hospital, num_bytes) in declared.items():
        found = payload[name]
        if isinstance(found, dict) != by_hospital or (by_hospital and not found.keys() <= others):
            raise StoppedError("a payload of another form than declared", name)
        texts = list(found.values()) if by_hospital else found
        if not isinstance(texts, list) or (not by_hospital and len(texts) != NUM_PUBLIC_KEYS):
            raise StoppedError("a payload of another form than declared", name)
        for text in texts:
            if not isinstance(text, str) or len(text) > 2 * num_bytes or len(_decoded(text)) != num_bytes:
                raise StoppedError("a key or share of another length than declared", name)
    return dict(payload)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _nothing(_config: Config, _policy: SitePolicy) -> Payload:
    return Payload()


def _weights(config: Config, _policy: SitePolicy) -> Payload:
    """The model's own tensors, no other; in a secure sum masked, as whole numbers."""
    return Payload(_masked(_state_forms(design_of(config)), "uint32", config))


def _travelling(payload: Payload, config: Config, round_number: int) -> Payload:
    """What of the model goes up in this round, in the form of the run's codec."""
    names = Sharing.of(config).up(payload.required, round_number)
    codec = codecs.parse(config.run.upload)
    if codec.plain:
        return Payload({name: payload.required[name] for name in names})
    layout = {name: shape for name, shape in layout_of_model(design_of(config)).items() if name in set(names)}

    def check(arrays: Mapping[str, np.ndarray], *_: object) -> None:
        try:
            codec_wire.unpack(codec, arrays, layout, canonical=True)
        except ValueError as error:
            raise StoppedError("an encoded tensor that stands for no change of the weights", str(error)) from None

    return Payload({name: Form((None,), "uint8") for name in codec_wire.names(codec, layout)}, check=check)


def _masked(forms: Mapping[str, Form], dtype: str, config: Config) -> dict[str, Form]:
    return {name: replace(f, dtype=dtype) if config.run.secure_aggregation else f for name, f in forms.items()}


def _head(config: Config, _policy: SitePolicy) -> Payload:
    """The sums that solve the head, or scale the latents; their forms are those of sums over no image."""
    sums = no_sums(config, layout_of_model(design_of(config)))
    if codecs.parse(config.run.upload).plain:
        return Payload(_masked(_forms_like(sums), "uint64", config))

    def check(arrays: Mapping[str, np.ndarray], *_: object) -> None:
        try:
            head_codec.unpack(arrays, sums, canonical=True)
        except ValueError as error:
            raise StoppedError("encoded sums that stand for no sums over features", str(error)) from None

    encoded = head_codec.forms(sums).items()
    forms = {name: Form((None,), "uint8") if shape is None else Form(shape, "float64") for name, shape in encoded}
    return Payload(forms, check=check)


def _statistics(config: Config, _policy: SitePolicy) -> Payload:
    """Counts of predictions; which parts are there depends on the data and on what the site withholds."""
    if trains_autoencoder(config):
        forms = {f"{part}.{name}": Form(shape, "int64") for part in PARTS for name, shape in RECONSTRUCTION.items()}
        return Payload(optional=forms, check=_check_reconstruction)
    k = config.model.num_outputs
    rows = (k, 2) if config.model.task == "multi-label" else (k,)
    shapes: dict[str, tuple[int | None, ...]] = {
        "header": (5,), "confusion": (*rows, rows[-1]), "histogram_keys": (None,), "histogram_counts": (None,),
        "log_loss": (1,), "calibration": (NUM_CALIBRATION_BINS, 3), "histogram_widths": (None,),
        "confusion_slack": rows,
    }  # fmt: skip
    forms = {f"{part}.{name}": Form(shapes[name], "int64") for part in PARTS for name in (*NAMES, *OPTIONAL_NAMES)}
    return Payload(optional=forms, check=_check_statistics)


def _check_statistics(
    arrays: Mapping[str, np.ndarray], report: RoundReport, config: Config, policy: SitePolicy
) -> None:
    for part in PARTS:
        group = {n.removeprefix(f"{part}."): array for n, array in arrays.items() if n.startswith(f"{part}.")}
        if not group:
            continue
        try:
            found = ClassificationStatistics.from_arrays(group)
        except ValueError as error:
            raise StoppedError("statistics that contradict themselves", f"{part}: {error}") from None
        num_bins = COARSE_BINS if policy.min_cell_count else NUM_BINS
        wanted = (config.model.task, config.model.num_outputs, num_bins)
        if (found.task, found.num_outputs, found.num_bins) != wanted:
            raise StoppedError("statistics of another task or other bins", f"{part}: wanted {wanted}")
        if part == "test" and found.num_images > report.num_images:
            raise StoppedError("statistics of more images than the report counts", part)
        if not policy.min_cell_count and (found.histogram_widths is not None or found.confusion_slack is not None):
            raise StoppedError("merged cells where nothing is withheld", part)
        if policy.min_cell_count and not holds(found, policy.min_cell_count):
            raise StoppedError("a count below the site's min-cell-count", part)


def _check_reconstruction(
    arrays: Mapping[str, np.ndarray], report: RoundReport, _config: Config, policy: SitePolicy
) -> None:
    """Sums over reconstructions: of no more images than are counted, and of none where these are few."""
    for part in PARTS:
        group = {n.removeprefix(f"{part}."): array for n, array in arrays.items() if n.startswith(f"{part}.")}
        if not group:
            continue
        try:
            found = ReconstructionStatistics.from_arrays(group)
        except ValueError as error:
            raise StoppedError("statistics that contradict themselves", f"{part}: {error}") from None
        if is_small(found.num_images, policy.min_cell_count):
            raise StoppedError("a count below the site's min-cell-count", part)
        if part == "test" and found.num_images > report.num_images:
            raise StoppedError("statistics of more images than the report counts", part)


_PAYLOADS: dict[str, Callable[[Config, SitePolicy], Payload]] = {
    protocol.AUTOENCODER: _nothing,
    protocol.DESCRIBE: _nothing,
    protocol.TRAIN: _weights,
    protocol.HEAD: _head,
    protocol.EVALUATE: _statistics,
    protocol.EXPLAIN: _nothing,
    protocol.KEYS: _nothing,
    protocol.SHARES: _nothing,
    protocol.UNMASK: _nothing,
}


def _grade_names(config: Config) -> frozenset[str]:
    if config.private:  # the referee, and what samples are compared with, know training records
        return frozenset(name for name in _GRADES if "referee" not in name and not name.startswith(PREFIX))
    kinds = [f"{name}{error}" for name in ("samples", "real", "noise") for error in ("", ".error")]
    return _GRADES | {f"{PREFIX}kid.{k}.{kind}" for k in range(config.model.num_outputs) for kind in kinds}


def _training(config: Config) -> frozenset[str]:
    """What a round tells of itself; the codec's error is computed from the weights alone, noised or not."""
    codec = frozenset(() if codecs.parse(config.run.upload).plain else (upload.ERROR,))
    open_scalars = _RECONSTRUCTION if trains_autoencoder(config) else _TRAINING
    return codec | (_PRIVATE_TRAINING if config.private else open_scalars | _seconds(config, protocol.TRAIN))


def _seconds(config: Config, kind: str) -> frozenset[str]:
    """What the site's time went into; with differential privacy nothing, since it tells how many records were drawn."""
    return frozenset() if config.private else frozenset(REPORTED[kind])


_SCALARS: dict[str, Callable[[Config], frozenset[str]]] = {
    protocol.AUTOENCODER: lambda _: frozenset(),
    protocol.DESCRIBE: lambda _: frozenset(),
    protocol.TRAIN: _training,
    protocol.HEAD: lambda config: _seconds(config, protocol.HEAD),
    protocol.EVALUATE: lambda config: _seconds(config, protocol.EVALUATE),
    protocol.EXPLAIN: _grade_names,
    protocol.KEYS: lambda _: frozenset(),
    protocol.SHARES: lambda _: frozenset(),
    protocol.UNMASK: lambda _: frozenset(),
}
KINDS = tuple(_PAYLOADS)


@lru_cache(maxsize=4)
def _state_forms(design: Design) -> dict[str, Form]:
    with torch.device("meta"):  # the forms alone: no memory, no images, no random numbers
        state = build(design).state_dict()
    return {name: Form(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in state.items()}


def _forms_like(arrays: Mapping[str, np.ndarray]) -> dict[str, Form]:
    return {name: Form(array.shape, str(array.dtype)) for name, array in arrays.items()}


def _names(names: Any) -> str:
    return ", ".join(repr(str(name))[:200] for name in sorted(names, key=str)[:20])


def stopped_report(hospital: str, error: StoppedError) -> RoundReport:
    """Return what travels in the place of a reply that was stopped."""
    reason = f"egress: {error.what} was stopped; its name is in the log of the site"
    return replace(RoundReport(hospital), status="refused", code="egress", reason=reason)

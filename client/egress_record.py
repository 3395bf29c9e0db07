"""The record of what left a site, in words: what `jointdiff-client egress` shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from client.manifest import RunManifest
from jointdiff import codecs, protocol
from jointdiff.round_profile import PREFIX as SECONDS
from jointdiff.views.format import num_bytes

ASKED = {
    protocol.AUTOENCODER: "said that it keeps the autoencoder",
    protocol.DESCRIBE: "introduced itself",
    protocol.TRAIN: "sent its trained weights",
    protocol.HEAD: "sent sums of features",
    protocol.EVALUATE: "sent counts of predictions",
    protocol.EXPLAIN: "sent grades of explanations",
}
_HEAD = {
    "count": "number of training images",
    "sum": "sum of each feature, or latent channel, over the training images",
    "squares": "sum of each feature's, or latent channel's, square over the training images",
    "products": "sums of products of two features over the training images",
    "clean_sum": "sum of each feature over the labelled images, by class",
    "group_count": "number of views of labelled images, by class",
    "group_sum": "sum of each feature over the views of labelled images, by class",
    "group_products": "sums of products of two features over the views of labelled images, by class",
    "target_sum": "number of views with each label",
    "target_products": "sums of feature times label over the views of labelled images",
}
_ENCODED = {  # what the parts of an encoded update are, by the end of their names
    "bf16": "the changes of the weights, 16 bits each",
    "int8": "the changes of the weights, 8 bits each",
    "scale": "what one step of these 8 bits is worth, for each output channel",
    "gap": "how many weights lie between two whose change is told",
    "float32": "the changes of biases, norms and other small tensors, as they are",
    "diagonal": "sums of squares of features",
    "correlation": "correlations of two features, 10 bits each",
}
_STATISTICS = {
    "header": "format, task, number of outputs, bins and images",
    "confusion": "how often each class was taken for each",
    "histogram_keys": "score histogram: which bins hold scores, for each output and truth",
    "histogram_counts": "score histogram: how many scores each of them holds",
    "histogram_widths": "score histogram: how many bins were merged into each cell, so that none holds few",
    "log_loss": "sum of the log-loss over the images",
    "calibration": "how often which confidence was right, in 15 bins; zeros where it is withheld",
    "confusion_slack": "how far replaced small counts of the confusion can be off",
}
_RECONSTRUCTION = {
    "counted": "format and number of images",
    "psnr": "sum over the images of how near the reconstruction is, in dB",
    "absolute_error": "sum over the images of the reconstruction's mean absolute error",
    "squared_error": "sum over the images of the reconstruction's mean squared error",
    "contrast": "sum over the images of the variance of their own pixels",
    "latent_sum": "sum over the images of the mean of each latent channel",
    "latent_squares": "sum over the images of the mean square of each latent channel",
}
_MASKED = ("uint32", "uint64")  # whole numbers of this size are masked ones alone
_PARTS = {"test": "of the evaluation images", "heldout": "of the held-out labelled images"}
_VALUES = {
    "code": "a word for why there is no result",
    "device": "what the site computed on",
    "duration_s": "how long the work took, seconds",
    "hospital": "the name under which the site was asked",
    "num_images": "number of images used",
    "num_labels": "number of labelled images among them",
    "reason": "why there is no result, in safe words",
    "status": "whether all went well",
}
_TABLES = {
    "class_names": "name of a class", "labelled": "labelled images of a class", "test": "evaluation images of a class",
    "min_cell_count": "below which count the site withholds statistics", "num_heldout": "held-out labelled images",
    "num_labelled": "labelled training images", "num_test": "evaluation images", "num_train": "training images",
    "num_unlabelled": "unlabelled training images", "server_samples": "whether the server may draw samples",
}  # fmt: skip


def describe_tensor(kind: str, name: str) -> str:
    """Say what a tensor is.

    >>> describe_tensor("train", "unet.down.0.conv.weight")
    "weights of layer 'unet.down.0.conv', as this site's training left them"
    >>> describe_tensor("evaluate", "test.log_loss")
    'sum of the log-loss over the images, of the evaluation images'
    >>> describe_tensor("train", "int8.scale")
    'encoded and squeezed: what one step of these 8 bits is worth, for each output channel'
    """
    if kind == protocol.HEAD and name in _HEAD:
        return _HEAD[name]
    if kind in (protocol.TRAIN, protocol.HEAD) and _is_encoded(name):
        return f"encoded and squeezed: {_ENCODED[name.rpartition('.')[2]]}"
    part, _, statistic = name.partition(".")
    said = _STATISTICS | _RECONSTRUCTION
    if kind == protocol.EVALUATE and part in _PARTS and statistic in said:
        return f"{said[statistic]}, {_PARTS[part]}"
    if name in ("latent_mean", "latent_std"):
        return "scale of the latents, as the server sent it"
    if name in ("head.mean", "head.scale"):
        return "standardisation of the features, as the server sent it"
    layer, _, what = name.rpartition(".")
    return f"{'biases' if what == 'bias' else 'weights'} of layer '{layer}', as this site's training left them"


def _is_encoded(name: str) -> bool:
    whole, _, part = name.rpartition(".")
    return part in _ENCODED and whole in (*codecs.known(), "products", "group_products")


def describe_value(name: str) -> str:
    """Say what a value of the report is.

    >>> describe_value("metrics.loss"), describe_value("table.test.1")
    ('mean over images or steps, or a count: loss', 'evaluation images of a class')
    >>> describe_value("metrics.seconds.train")
    'seconds that this part of the work took: train'
    """
    section, _, rest = name.partition(".")
    if section == "metrics" and rest.startswith(SECONDS):
        return f"seconds that this part of the work took: {rest.removeprefix(SECONDS)}"
    if section == "metrics":
        return f"mean over images or steps, or a count: {rest}"
    if section == "table":
        return _TABLES.get(rest.partition(".")[0], rest)
    if section == "payload":
        return "secure sum: a public key, or a share of a secret that is good for this one sum"
    if section == "withheld":
        return "name of statistics that the site holds back"
    return _VALUES.get(name, name)


def lines(found: RunManifest, *, explain: bool) -> Iterator[str]:
    """Return the record of one run as text: a line per reply, with `explain` one more for everything in it."""
    entries = list(found.entries)
    total = f"{num_bytes(found.num_bytes)} in {len(entries)} replies"
    yield f"run {found.run}: {total}"
    for number, entry in entries:
        what = ASKED.get(entry["kind"], entry["kind"]) if entry["status"] == "ok" else entry["status"]
        yield (
            f"  {entry['time']}  round {number:<4} {entry['kind']:<9} {what:<28} {len(entry['tensors']):>4} tensors  "
            f"{len(entry['scalars']):>3} values  {num_bytes(entry['num_bytes']):>9}  sha256 {entry['sha256'][:12]}"
        )
        if entry.get("stopped"):
            yield f"      stopped, and not sent: {entry['stopped']}"
        if explain:
            yield from _explained(entry)
    if found.problems:
        yield from (f"  PROBLEM  {problem}" for problem in found.problems)
    else:
        yield "  verified: every file is whole, sums are right, no entry was changed or taken out"


def _explained(entry: Mapping[str, Any]) -> Iterator[str]:
    for tensor in entry["tensors"]:
        form = f"{tensor['dtype']} {tensor['shape']}  {num_bytes(tensor['bytes'])}"
        masked = (
            "masked: random by itself, it counts in the sum over the hospitals; " if tensor["dtype"] in _MASKED else ""
        )
        yield f"      {tensor['name']}  {form}: {masked}{describe_tensor(entry['kind'], tensor['name'])}"
    for value in entry["scalars"]:
        yield f"      {value['name']} = {value.get('value')!r}: {describe_value(value['name'])}"


def to_json(found: RunManifest) -> dict[str, Any]:
    """Return the record of one run as plain JSON."""
    return {
        "run": found.run,
        "num_bytes": found.num_bytes,
        "verified": not found.problems,
        "problems": found.problems,
        "rounds": [{"round": number, "replies": found.rounds[number]} for number in sorted(found.rounds)],
    }

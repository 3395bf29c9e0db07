"""A model card in Markdown: what one checkpoint learned from, how good it is, what that says, and what not.

Made from the run's events and the checkpoint's own header. Nothing in it is a folder of the machine it was made on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdiff.intervals import Estimate, estimates, recalls
from jointdiff.views.format import MISSING, duration, number, words
from jointdiff.views.labels import METRICS, PERSONAL, class_name, grades
from jointdiff.views.markdown import table, text
from jointdiff.views.model_card_data import data_seen, privacy, what_left
from jointdiff.views.run_data import TROUBLE, RunData, mapping

if TYPE_CHECKING:  # imports torch, and a card needs only its facts
    from jointdiff.checkpoint import Checkpoint

INTENDED_USE = (
    "For research on federated, semi-supervised learning with medical images. **Not a medical device**: no authority "
    "has assessed it, and neither its predictions nor its explanations may be used for diagnosis, treatment or triage "
    "of a patient. A counterfactual shows what would change the *model's* decision; it is no statement about a "
    "patient, a disease or a cause."
)
_SETTINGS = ("method", "preset", "strategy", "weighting", "head-weighting", "decoder-weighting", "personal",
             "local-steps", "batch-size", "partition", "num-labels", "label-split", "participation", "seed",
             "split-seed")  # fmt: skip
_TRAINING = ("head", "prediction", "learning-rate", "class-weight", "pseudo-weight", "ema-decay")


def model_card(run: RunData, checkpoint: Checkpoint, kind: str) -> str:
    """Return the card of one checkpoint of a run.

    Args:
        run: The run that made it; gaps in it are said.
        checkpoint: As loaded.
        kind: best | last.
    """
    sections = (
        ("Model", _model(run, checkpoint)),
        ("Data that it has seen", data_seen(run)),
        ("Results", _results(run, checkpoint)),
        ("What chose what", _choice(run, checkpoint, kind)),
        ("Explanations", _explanations(run)),
        ("Privacy", privacy(run)),
        ("What left the sites", what_left(run)),
        ("Limits", _limits(run, checkpoint)),
        ("Intended use", INTENDED_USE),
        ("Code", _code(run, checkpoint)),
    )
    parts = [f"# Model card: {text(run.run_name)}, {kind} weights"]
    for title, content in sections:
        parts += [f"## {title}", content] if content else []
    return "\n\n".join(parts) + "\n"


def _model(run: RunData, checkpoint: Checkpoint) -> str:
    own = checkpoint.config.to_dict()
    weights = sum(tensor.numel() for tensor in checkpoint.state.values())
    model, asked, training = own["model"], own["run"], own["training"]
    size = f"{model['image-size']} x {model['image-size']} pixels, {'grey' if model['channels'] == 1 else 'RGB'}"
    rows = [
        ["what it is", "joint diffusion-classifier: one UNet to denoise and to classify with"],
        ["network", f"{text(Path(str(model['name'])).name)}, {number(weights)} numbers in its state"],
        ["input", size],
        ["output", f"{text(model['task'])}, {model['num-outputs']}: {text(', '.join(run.class_names) or MISSING)}"],
        [
            "weights",
            f"average over the rounds, after round {checkpoint.round_number} of {checkpoint.config.all_rounds}",
        ],
        *[[key, _setting(asked[key])] for key in _SETTINGS if asked.get(key) not in (None, "")],
        *[[key, _setting(training[key])] for key in _TRAINING if key in training],
    ]
    return table(["", ""], rows, numeric_from=9) + "\n\nThe whole configuration is in the file's header, key `config`."


def _setting(value: Any) -> str:
    return text(Path(value).name if isinstance(value, str) and value.endswith((".yaml", ".yml")) else value)


def entry_of(run: RunData, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metrics of the very weights that the checkpoint holds, {} where its round was never evaluated."""
    return next((entry for entry in run.rounds if entry.get("round") == checkpoint.round_number), {})


def _results(run: RunData, checkpoint: Checkpoint) -> str:
    entry = entry_of(run, checkpoint)
    if not entry:
        return f"Not evaluated: the run holds no metrics of round {checkpoint.round_number}."
    task = checkpoint.config.model.task
    hospitals = mapping(entry.get("hospitals"))
    rows = [_result("**all, pooled**", mapping(entry.get("pooled")), task)]
    rows += [_result(text(name), mapping(own), task) for name, own in hospitals.items()]
    shown = [METRICS[key] for key in _SHOWN]
    per_class = []
    for index, (found, passed) in enumerate(recalls(mapping(entry.get("pooled")), task)):
        name = text(class_name(run.class_names, index))
        per_class.append([name, _estimate(found), _estimate(passed)])
    return "\n\n".join(
        [
            f"On the {run.evaluated_on}, after round {checkpoint.round_number}. Pooled is over all hospitals' images "
            "together, no average of averages. In brackets 95% intervals: which values other images from the same "
            "source could have given. They do not cover another seed, another draw of the labels, or another hospital, "
            "and treat images as independent, also where several are of one patient.",
            *([f"**{PERSONAL}**"] if checkpoint.config.run.personal else []),
            table(["hospital", "images", *shown], rows),
            table(["class, pooled", "found among its own", "passed over among the others"], per_class),
            "AUC: score interval on the Hanley-McNeil variance (Newcombe 2006); shares: Wilson; balanced accuracy: "
            "square-and-add of Wilson intervals. Decision: the most probable class, or p > 0.5 of a label; fixed "
            "beforehand.",
        ]
    )


_SHOWN = ("auc", "balanced_accuracy", "accuracy")


def _result(name: str, metrics: Mapping[str, Any], task: str) -> list[str]:
    found = estimates(metrics, task)
    cells = [_estimate(found[key]) if key in found else number(metrics.get(key)) for key in _SHOWN]
    return [name, number(metrics.get("num_images")), *cells]


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return f"{number(estimate.value)} [{number(float(estimate.low))}, {number(float(estimate.high))}]"


def _choice(run: RunData, checkpoint: Checkpoint, kind: str) -> str:
    if kind == "last":
        chosen = "These are the weights of the last round that was saved. Nothing chose them."
    elif checkpoint.metric_name:
        chosen = (
            f"These weights were chosen among the rounds by {text(words(checkpoint.metric_name))} = "
            f"{number(checkpoint.metric)}, on labels that had been given for training and were held out of it."
        )
    else:
        chosen = "Too few labels were given to hold some out, so nothing chose: best is the last round that was saved."
    if run.split == "validation":
        return (
            f"{chosen} The numbers above are of the **validation** split, which is there for choosing settings: take "
            "them for no test result. The test split was not touched."
        )
    return (
        f"{chosen} **No test label chose anything in this run**: no round, weight, threshold or setting. What a person "
        "chose between runs, with such numbers in view, a run cannot know."
    )


def _explanations(run: RunData) -> str:
    pooled = mapping(run.last("explained").get("pooled"))
    if not pooled:
        return ""
    rows = [[text(label), text(value)] for label, value in grades(pooled)]
    return (
        f"Counterfactuals, made by the weights of round {run.final.get('round')}, kept at the hospitals.\n\n"
        + table(["grade, over all hospitals", ""], rows)
    )


def _limits(run: RunData, checkpoint: Checkpoint) -> str:
    config = checkpoint.config.model
    lines = [
        f"One training seed, one draw of the labels. The model knows images of {config.image_size} x "
        f"{config.image_size} pixels like those it was trained on, and has an answer to every image, also to one that "
        "shows something else.",
    ]
    if run.dataset.get("real") is False:
        lines.append("Numbers on phantoms say that the software works. They say nothing about any clinical question.")
    if troubles := run.of(*TROUBLE):
        who = dict.fromkeys(text(event.get("hospital", MISSING)) for event in troubles)
        lines.append(f"{len(troubles)} answers failed, were refused or rejected (hospitals: {', '.join(who)}).")
    if run.ending.get("event") != "run_finished":
        lines.append("**The run had not finished** when this card was written.")
    if not checkpoint.config.training.diffusion_weight:
        lines.append("Trained without the denoising loss: it can neither draw samples nor explain.")
    return "\n".join(f"- {line}" for line in lines)


def _code(run: RunData, checkpoint: Checkpoint) -> str:
    rows = [
        ["JointDiff", text(checkpoint.code_version)],
        ["code, SHA-256", text(checkpoint.code_hash or run.started.get("code_hash") or "not recorded")],
        ["Flower", text(run.started.get("flwr_version") or "not recorded")],
        ["PyTorch", text(run.started.get("torch_version") or "not recorded")],
        ["run started", text(run.started.get("time") or "not recorded")],
        ["duration", duration(run.ending.get("duration_s"))],
    ]
    return table(["", ""], rows, numeric_from=9)

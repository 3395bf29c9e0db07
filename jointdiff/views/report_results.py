"""Report sections about how well it works: headline numbers, curves, confusion matrix, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jointdiff.views import markup
from jointdiff.views.charts import Series, line_chart
from jointdiff.views.format import MISSING, duration, is_number, num_bytes, number, percent, words
from jointdiff.views.labels import METRICS, PERSONAL, class_name
from jointdiff.views.markup import Html, element, scrolling, table
from jointdiff.views.run_data import RunData, mapping

POOLED = "all hospitals, pooled"
MEAN = "all hospitals, mean"


def headline(run: RunData) -> Html | None:
    """Return the few numbers that a reader looks for first."""
    pooled = mapping(run.final.get("pooled"))
    if not pooled:
        return None
    num_outputs = max(2, len(run.class_names)) if run.dataset.get("task") != "multi-label" else 2
    where = f"pooled, {number(pooled.get('num_images'))} {run.evaluated_on}"
    described = [mapping(event.get("table")) for event in run.replies("describe")]
    labelled = sum(sum(_counts(entry.get("labelled"))) for entry in described)
    hidden = sum("labelled" in entry and entry["labelled"] is None for entry in described)
    trained_on = sum(entry.get("num_train") or 0 for entry in described)
    traffic = sum((event.get("bytes_in") or 0) + (event.get("bytes_out") or 0) for event in run.replies())
    multi_label = run.dataset.get("task") == "multi-label"
    measures = [
        ("PSNR", f"{number(pooled['psnr'], 1)} dB", f"of reconstructions; {where}"),
        ("Over grey pictures", f"{number(pooled.get('psnr_gain'), 1)} dB", "gain over each image's own mean grey"),
    ] if "psnr" in pooled else [
        ("Balanced accuracy", with_error(pooled, "balanced_accuracy"), f"{where}; chance {1 / num_outputs:.2f}"),
        ("AUC", with_error(pooled, "auc"), f"{where}; chance 0.50"),
    ]  # fmt: skip
    if len(run.phases) > 1 and "psnr" not in pooled:
        first = mapping(run.phases[0].final.get("pooled"))
        measures.append(("PSNR", f"{number(first.get('psnr'), 1)} dB", "of the autoencoder, when it was frozen"))
    tiles = [
        *measures,
        ("Labelled images" if not multi_label else "Labels given",
         number(labelled) if len(described) > hidden else MISSING,
         (f"of {number(trained_on)} training images, {len(run.hospitals)} hospitals together"
          + (f"; {hidden} withhold theirs" if hidden else "")) if described else ""),
        ("Duration", duration(run.ending.get("duration_s")), f"{len(run.rounds)} rounds evaluated"),
        ("Exchanged", num_bytes(traffic), "both ways, all hospitals"),
    ]  # fmt: skip
    return markup.headline(tiles)


def _counts(value: Any) -> list[int]:
    return [int(count) for count in value] if isinstance(value, list) else []


def curves(run: RunData, *, last_round: int | None = None) -> Html | None:
    """Return the charts over the rounds: what was evaluated, then what training reported.

    Args:
        last_round: Where the axis ends, for a run that still goes on; None ends it where the run has come to.
    """
    if not run.rounds and not run.replies("train"):
        return None
    phases = run.phases
    if len(phases) == 1:
        return _charts(phases[0], last_round)
    first, second = phases
    return element(
        "div", element("h3", "First phase: the autoencoder"), _charts(first, None),
        element("h3", "Second phase: the model on its latents"), _charts(second, last_round),
    )  # fmt: skip


def _charts(run: RunData, last_round: int | None) -> Html:
    """Return the charts of a run, or of one of its phases."""
    numbers = [float(event["round"]) for event in run.of("round_started", "evaluated")]
    rounds = (min(numbers), max(*numbers, float(last_round or 0), min(numbers))) if numbers else None
    why = {"missing": "Withheld by the hospitals: see “On the test images”."} if run.final.get("withheld") else {}
    if any("psnr" in mapping(entry.get("pooled")) for entry in run.rounds):
        return element("div", _reconstruction_curves(run, rounds), class_="charts")
    charts = [
        line_chart("AUC", _evaluated(run, "auc"), y_range=(0, 1), x_range=rounds, **why),
        line_chart("Balanced accuracy", _evaluated(run, "balanced_accuracy"), y_range=(0, 1), x_range=rounds, **why),
        line_chart("Denoising loss", _trained(run, "loss_diffusion"), x_range=rounds, note="per image, in training"),
        line_chart(
            "Label losses",
            [
                Series("cross-entropy on labels", _means(run, "loss_class")),
                Series("cross-entropy on pseudo-labels", _means(run, "loss_pseudo")),
            ],
            x_range=rounds,
            note="mean of all hospitals, before weighting",
        ),
        line_chart("Pseudo-label coverage", _trained(run, "pseudo_coverage"), y_range=(0, 1), x_range=rounds,
                   note="share of unlabelled images that got one; of soft weights, their mean"),
        line_chart("Pseudo-label confidence", _trained(run, "pseudo_confidence"), y_range=(0, 1), x_range=rounds,
                   note="mean of the teacher's largest probability"),
        line_chart("Pseudo-label accuracy", _trained(run, "pseudo_accuracy"), y_range=(0, 1), x_range=rounds,
                   note="against labels hidden from training; known in simulations only"),
    ]  # fmt: skip
    return element("div", charts, class_="charts")


def _reconstruction_curves(run: RunData, rounds: tuple[float, float] | None) -> list[Html | None]:
    note = "per pixel, in training; 2 = black to white"
    return [
        line_chart("PSNR (dB)", _evaluated(run, "psnr"), x_range=rounds, note="mean over the images"),
        line_chart("Gain over grey pictures (dB)", _evaluated(run, "psnr_gain"), x_range=rounds),
        line_chart("Mean absolute error", _trained(run, "loss_l1"), x_range=rounds, note=note),
        line_chart("Feature distance", _trained(run, "loss_feature"), x_range=rounds, note="in the fixed feature net"),
        line_chart("Distance of the latents to a normal distribution", _trained(run, "loss_kl"), x_range=rounds,
                   note="KL divergence per latent"),
        line_chart("Smallest spread of a latent channel", _evaluated(run, "latent_std"), x_range=rounds,
                   note="standard deviation before scaling; near 0 = collapsed"),
    ]  # fmt: skip


def _evaluated(run: RunData, key: str) -> list[Series]:
    pooled = [(float(entry["round"]), mapping(entry.get("pooled")).get(key)) for entry in run.rounds]
    rounds = [(float(entry["round"]), mapping(entry.get("hospitals"))) for entry in run.rounds]
    names = dict.fromkeys(name for _, hospitals in rounds for name in hospitals)
    lines = [Series(POOLED, pooled, main=True)]
    for name in names:
        points = [(at, _metric(hospitals.get(name), key)) for at, hospitals in rounds]
        lines.append(Series(str(name), points))
    return lines


def _metric(values: Any, key: str) -> float | None:
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if is_number(value) else None


def _trained(run: RunData, key: str) -> list[Series]:
    sites = [Series(name, points) for name, points in run.training_curve(key).items()]
    return [Series(MEAN, _means(run, key), main=True), *sites]


def _means(run: RunData, key: str) -> list[tuple[float, float | None]]:
    """Return the weighted mean over hospitals as the server formed it, by round."""
    values = {event["round"]: mapping(event.get("metrics")).get(key) for event in run.of("round_aggregated")}
    if not values:
        values = {entry["round"]: mapping(entry.get("training")).get(key) for entry in run.rounds}
    return [(float(round_number), value) for round_number, value in sorted(values.items())]


def results(run: RunData) -> Html | None:
    """Return the last round's numbers of every hospital and of all, the confusion matrix and what it rests on."""
    pooled = mapping(run.final.get("pooled"))
    if not pooled:
        return withheld_note(run) if run.final.get("withheld") else None
    hospitals = mapping(run.final.get("hospitals"))
    keys = [key for key in METRICS if is_number(pooled.get(key))]
    rows = [_row(name, mapping(values), keys) for name, values in hospitals.items()]
    rows.append([element("b", POOLED), *_row("", pooled, keys)[1:]])
    overview = table(
        ["Hospital", "Images", *(METRICS[key] for key in keys)],
        rows,
        caption=f"Round {number(run.final.get('round'))}, the last one. Pooled numbers are computed on all images "
        "together, not averaged over hospitals.",
    )
    return element(
        "div",
        overview,
        element("p", PERSONAL, class_="note") if run.run_config.get("personal") else None,
        withheld_note(run),
        _per_class(run, pooled),
        element("div", _confusion(run, pooled), _statements(run, pooled), class_="columns"),
    )


def _row(name: str, values: Mapping[str, Any], keys: list[str]) -> list[str]:
    return [name, number(values.get("num_images")), *(with_error(values, key) for key in keys)]


def with_error(values: Mapping[str, Any], key: str) -> str:
    """Return a metric, with the bound of its error where sites withhold small counts.

    >>> with_error({"auc": 0.91, "auc_error": 0.02}, "auc"), with_error({"auc": 0.91}, "auc")
    ('0.910 ± 0.020', '0.910')
    """
    error = values.get(f"{key}_error")
    shown = number(values.get(key))
    return f"{shown} ± {number(error)}" if is_number(values.get(key)) and is_number(error) else shown


def withheld_note(run: RunData) -> Html:
    """Return which hospitals withhold small counts, and what the ± says; that none does is said too."""
    counts = {str(event["hospital"]): mapping(event.get("table")).get("min_cell_count")
              for event in run.replies("describe")}  # fmt: skip
    strict = {name: count for name, count in counts.items() if is_number(count) and count}
    if not strict:
        return element("p", "No hospital withholds small counts (min-cell-count 0, the default of simulations).",
                       class_="note")  # fmt: skip
    who = ", ".join(f"{name} (below {count})" for name, count in strict.items())
    whole = [name for name, names in mapping(run.final.get("withheld")).items() if "test" in names]
    return element(
        "p",
        f"Withheld by the site: statistics on small counts, by {who}. ",
        f"All statistics of the last round: {', '.join(whole)}; their images are in no number here. "
        if whole
        else None,
        "± is an exact bound, not a confidence interval: scores came in coarse bins, and replaced small counts of the "
        "confusion matrix can have moved a number by so much. The calibration table is withheld.",
        class_="note",
    )


def _per_class(run: RunData, pooled: Mapping[str, Any]) -> Html | None:
    """Return the measures that come as one number per class or label."""
    size = len(run.class_names)
    keys = [key for key, value in pooled.items() if size > 1 and isinstance(value, list) and len(value) == size
            and all(is_number(entry) or entry is None for entry in value)]  # fmt: skip
    if not keys:
        return None
    rows = [[name, *(number(pooled[key][index]) for key in keys)] for index, name in enumerate(run.class_names)]
    heads = [METRICS.get(key, words(key)) for key in keys]
    return table(["Class", *heads], rows, caption="By class, pooled")


def _confusion(run: RunData, pooled: Mapping[str, Any]) -> Html | None:
    matrix = pooled.get("confusion_matrix")
    if not isinstance(matrix, list) or not matrix or not isinstance(matrix[0], list):
        return None
    if isinstance(matrix[0][0], list):  # multi-label: one [[tn, fp], [fn, tp]] per label
        rows = [[class_name(run.class_names, index), *(number(cell) for row in block for cell in row)]
                for index, block in enumerate(matrix)]  # fmt: skip
        header = ["Label", "True negative", "False positive", "False negative", "True positive"]
        return table(header, rows, caption="Confusion, label by label, pooled")
    names = [class_name(run.class_names, index) for index in range(len(matrix))]
    body = []
    for index, row in enumerate(matrix):
        total = sum(row) or 1
        cells = [_cell(count, count / total, column == index) for column, count in enumerate(row)]
        body.append(element("tr", element("th", names[index], scope="row"), cells))
    head = element("tr", element("th", "true \\ predicted"), [element("th", name, scope="col") for name in names])
    whole = element("table", element("thead", head), element("tbody", body))
    caption = element("p", "Confusion matrix, pooled: images, and their share of the true class", class_="caption")
    return element("div", caption, scrolling(whole, class_="matrix"))


def _cell(count: float, share: float, right: bool) -> Html:
    return element(
        "td", number(count), element("br"), element("span", percent(share), class_="soft"),
        class_="right" if right else None, style=f"background: rgba(var(--heat), {0.42 * share:.2f})",
    )  # fmt: skip


def _statements(run: RunData, pooled: Mapping[str, Any]) -> Html:
    """Return in words what sensitivity, specificity and calibration mean here."""
    parts = []
    if is_number(pooled.get("sensitivity")) and is_number(pooled.get("specificity")):
        point = pooled.get("operating_point")
        at = f"p > {point:.2f}" if is_number(point) else str(point or "not stated")
        who = f" for '{run.class_names[1]}'" if len(run.class_names) == 2 else ""
        both = f"Sensitivity {number(pooled['sensitivity'])}, specificity {number(pooled['specificity'])}"
        parts.append(
            element(
                "p",
                element("b", both),
                f"{who} at the operating point {at}, which was fixed before these images were seen.",
            )
        )
    if is_number(pooled.get("calibration_error")):
        parts.append(
            element(
                "p",
                element("b", f"Calibration error {number(pooled['calibration_error'])}"),
                ": the mean distance between the probability stated and the share that turned out right; 0 is perfect.",
            )
        )
    best = mapping(run.metrics.get("best"))
    if best and best.get("round") is not None:
        same = best.get("round") == run.final.get("round")
        parts.append(
            element(
                "p",
                element("b", f"Best round: {best['round']}"),
                " (the last one)." if same else
                "." if "psnr" in pooled else
                f", balanced accuracy {number(mapping(best.get('pooled')).get('balanced_accuracy'))}, "
                f"AUC {number(mapping(best.get('pooled')).get('auc'))}.",
                " It is chosen on a held-out part of the kept labels, never on these images; where a fifth of them"
                " is fewer than 10 of some class, none is held out and the last round stands.",
            )
        )  # fmt: skip
    return element("div", parts)

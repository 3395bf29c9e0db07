"""Report sections about the run itself: who had which data, what travelled, what failed, under which configuration."""

from __future__ import annotations

from typing import Any

import yaml

from jointdiff.views.format import MISSING, duration, is_number, num_bytes, number
from jointdiff.views.labels import class_name
from jointdiff.views.markup import Html, element, facts, table
from jointdiff.views.run_data import TROUBLE, RunData, mapping, privacy_spent

_VERSIONS = {"JointDiff": "code_version", "Code": "code_hash", "Flower": "flwr_version", "PyTorch": "torch_version"}
_METHODS = {
    "joint": "joint diffusion-classifier",
    "two-stage": "two stages (diffusion, then a head on frozen features)",
    "fixmatch": "FixMatch",
    "supervised": "supervised on the labelled images only",
    "autoencoder": "an autoencoder of their scans",
}


def data_sentence(run: RunData) -> str:
    """Return which data set it is and under which licence."""
    name, licence = run.dataset.get("name"), run.dataset.get("licence")
    if not name:
        return ""
    return f"Data set: {name}" + (f", licence: {licence}" if licence else "") + "."


def summary_sentence(run: RunData) -> str:
    """Return the run in one sentence."""
    method = str(run.run_config.get("method", ""))
    when = str(run.started.get("time", ""))[:16].replace("T", " ")
    count = len(run.hospitals)
    who = f"{count} hospitals learned together" if count != 1 else "One hospital learned"
    what = _METHODS.get(method, method)
    if run.run_config.get("latent") is True:
        what = f"{_METHODS['autoencoder']}, then {what} on its latents"
    return f"{who}: {what}, seed {run.run_config.get('seed', MISSING)}, started {when} UTC."


def outcome(run: RunData) -> Html | None:
    """Return an alert for a run that did not end well, None for one that did."""
    kind = run.ending.get("event")
    if kind == "run_finished":
        return None
    if kind == "run_failed":
        reason = str(run.ending.get("reason") or "no reason was recorded")
        how = (
            f" To carry it on from its last complete round: {run.ending['resume']}." if run.ending.get("resume") else ""
        )
        return element("p", element("b", "This run failed. "), reason, how, class_="alert", role="alert")
    return element("p", element("b", "This run has not ended"), " (or was stopped): numbers so far.", class_="alert")


def privacy(run: RunData) -> Html | None:
    """Return what each hospital has spent of its privacy, and what the numbers mean; None for a run without."""
    spent = privacy_spent(run)
    if not spent:
        return None
    rows = []
    for name in run.hospitals:
        facts = spent.get(name, {})
        epsilon = f"ε {number(facts['epsilon'], 2)}" if facts else MISSING
        values = (number(facts.get(key), digits) for key, digits in (("noise_multiplier", 3), ("sample_rate", 4)))
        rows.append([name, epsilon, number(facts.get("delta"), 6), *values])
    return element(
        "div",
        table(["Hospital", "spent", "delta", "noise multiplier", "share of records in a step"], rows,
              caption="Differential privacy, as each hospital's ledger has it, over all runs on its data"),
        element(
            "p",
            "What anybody can learn about one record from all that was sent and from the final model is bounded: the "
            "odds that it was trained on change by at most e^ε, but for a chance of δ (e^1 is 2.7, e^8 2,981). One "
            "record is an image, or a patient where the site's table names patients. Test images and held-out labels "
            "are outside: they are counted, not trained on.",
            class_="note",
        ),
    )  # fmt: skip


def class_tables(run: RunData) -> Html | None:
    """Return how many images of which class every hospital trains and is tested on."""
    tables = {str(event["hospital"]): mapping(event.get("table")) for event in run.replies("describe")}
    tables = {name: entry for name, entry in tables.items() if entry}
    if not tables:
        return None
    names = run.class_names or [str(name) for name in next(iter(tables.values())).get("class_names") or []]

    def rows(key: str, extra: tuple[str, ...]) -> list[list[Any]]:
        counts = {name: [*_padded(entry.get(key), len(names)), *(entry.get(k) for k in extra)]
                  for name, entry in tables.items()}  # fmt: skip
        known = [[value for value in column if is_number(value)] for column in zip(*counts.values(), strict=True)]
        total = [sum(column) if column else None for column in known]
        body = [[name, *map(number, values)] for name, values in counts.items()]
        return [*body, [element("b", "all"), *map(number, total)]] if len(body) > 1 else body

    heads = [class_name(names, index) for index in range(len(names))]
    return element(
        "div",
        table(["Hospital", *heads, "unlabelled", "all"], rows("labelled", ("num_unlabelled", "num_train")),
              caption="For training: images whose label was kept, by class, and those whose label was hidden"),
        table(["Hospital", *heads, "all"], rows("test", ("num_test",)), caption="For evaluation, by class"),
        element("p", f"{MISSING}: withheld by the site (min-cell-count, or a private run); the sums are without it.",
                class_="note")
        if any(value is None for entry in tables.values() for value in entry.values()) else None,
        element("p", "Classes of a multi-label set overlap: their counts do not add up to the images.", class_="note")
        if run.dataset.get("task") == "multi-label" else None,
        class_="columns" if len(names) <= 4 else None,  # beside each other, where they are narrow
    )  # fmt: skip


def _padded(value: Any, size: int) -> list[Any]:
    counts = list(value) if isinstance(value, list) else []
    return [*counts, *[None] * size][:size]


def exchange(run: RunData) -> Html | None:
    """Return bytes, durations and devices of every hospital."""
    if not run.replies():
        return None
    rows = []
    sums = [0.0, 0.0, 0.0, 0.0]
    for hospital in run.hospitals:
        replies = [event for event in run.replies() if str(event.get("hospital")) == hospital]
        devices = dict.fromkeys(str(event["device"]) for event in replies if event.get("device"))
        trained = sum(event.get("duration_s") or 0 for event in replies if event.get("kind") == "train")
        other = sum(event.get("duration_s") or 0 for event in replies if event.get("kind") != "train")
        to_site = sum(event.get("bytes_in") or 0 for event in replies)
        from_site = sum(event.get("bytes_out") or 0 for event in replies)
        sums = [total + part for total, part in zip(sums, (trained, other, to_site, from_site), strict=True)]
        rows.append(
            [hospital, ", ".join(devices) or MISSING, number(len(replies)), duration(trained), duration(other),
             num_bytes(to_site), num_bytes(from_site)]
        )  # fmt: skip
    if len(rows) > 1:
        rows.append([element("b", "all"), "", number(len(run.replies())), duration(sums[0]), duration(sums[1]),
                     num_bytes(sums[2]), num_bytes(sums[3])])  # fmt: skip
    durations = (event.get("duration_s") for event in run.of("round_aggregated"))
    round_seconds = [float(seconds) for seconds in durations if seconds is not None and is_number(seconds)]
    return element(
        "div",
        table(
            ["Hospital", "Device", "Replies", "Training", "Other work", "Server to site", "Site to server"],
            rows,
            numeric_from=2,
        ),
        facts(
            [
                ("Whole run", duration(run.ending.get("duration_s"))),
                ("Mean round", duration(sum(round_seconds) / len(round_seconds)) if round_seconds else MISSING),
                ("Slowest round", duration(max(round_seconds, default=None))),
                *_encoding(run),
            ]
        ),
    )


def _encoding(run: RunData) -> list[tuple[str, str]]:
    """Return which codecs were used, and what they cost in accuracy of the updates; nothing for plain exchanges."""
    told = [(key, str(run.run_config.get(key) or "")) for key in ("upload", "download", "share")]
    rows = [(key.capitalize(), value) for key, value in told if value not in ("", "fp32", "all")]
    errors = [mapping(event.get("metrics")).get("upload_error") for event in run.of("round_aggregated")]
    known = [float(error) for error in errors if error is not None and is_number(error)]
    if known:
        mean = number(sum(known) / len(known), 4)
        rows.append(("Error of an encoded update, relative, mean over the rounds", mean))
    return rows


def trouble(run: RunData) -> Html:
    """Return what failed, was refused or rejected; 'none' is said too."""
    events = run.of(*TROUBLE)
    if not events:
        return element("p", "None: every hospital answered every question.")
    what = {"hospital_failed": "failed", "hospital_refused": "refused", "update_rejected": "update rejected",
            "update_questioned": "questioned, but taken"}  # fmt: skip
    rows = [
        [str(event.get("hospital", MISSING)), number(event.get("round")), str(event.get("kind") or MISSING),
         what[event["event"]], str(event.get("reason") or MISSING)]
        for event in events
    ]  # fmt: skip
    return table(["Hospital", "Round", "Question", "What happened", "Reason"], rows, numeric_from=99)


def configuration(run: RunData) -> Html:
    """Return code and versions in the open, the resolved configuration folded."""
    started = run.started
    versions = [(name, str(started[key])[:24]) for name, key in _VERSIONS.items() if started.get(key)]
    files = [name for name in ("config.yaml", "metrics.json", "events.jsonl") if (run.folder / name).is_file()]
    links = [[" · " if index else None, element("a", name, href=name)] for index, name in enumerate(files)]
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "not recorded"
    return element(
        "div",
        facts(versions) if versions else None,
        element("details", element("summary", "Resolved configuration"), element("pre", text)),
        element("p", "Beside this page: ", links) if links else None,
    )

"""Sections of a model card about the data and what became of them: who had which, what left the sites, what it cost."""

from __future__ import annotations

from pathlib import Path

from jointdiff.views.format import MISSING, num_bytes, number
from jointdiff.views.markdown import table, text
from jointdiff.views.run_data import RunData, mapping, privacy_spent

# What an answer of a site carries beside its envelope (docs/hospital-it.md, "What leaves a site").
CARRIES = {
    "autoencoder": "nothing: it keeps the frozen autoencoder and encodes its own scans",
    "describe": "the class table: numbers of images and labels by class",
    "train": "all weights of the model after local training; losses and rates",
    "head": "sums over features of the training images, and by class over the labelled ones",
    "evaluate": "counts of the predictions on the evaluation images: confusion matrix, score histograms",
    "explain": "grades of explanations and samples; no picture",
    "keys": "two public keys of one secure sum; numbers of images and labels",
    "shares": "shares of this site's secrets of one secure sum, sealed for each other site",
    "unmask": "the shares of the sites' secrets that open one secure sum",
}
_ENCODED = {  # with an upload codec
    "train": "the change of the model's weights, encoded; losses and rates",
    "head": "sums over features of the training images, and by class over the labelled ones; their products encoded",
}
_MASKED = {  # with secure aggregation
    "train": "the weighted change of all weights, masked so that only the hospitals' sum can be read; losses and rates",
    "head": "sums over features of the training images, masked so that only the hospitals' sum can be read",
}


def data_seen(run: RunData) -> str:
    """Return which data set, under which licence, and how many images and labels each hospital had."""
    real = run.dataset.get("real")
    origin = (
        "**real scans**" if real else "not recorded" if real is None else "**phantoms**: synthetic drawings, no patient"
    )
    facts = [
        ["data set", text(data_name(str(run.dataset.get("name") or MISSING)))],
        ["origin", origin],
        ["licence", text(run.dataset.get("licence") or "not recorded")],
    ]
    described = {str(event.get("hospital")): event for event in run.replies("describe")}
    tables = {name: mapping(event.get("table")) for name, event in described.items()}
    names = run.class_names
    rows = []
    sums = [0] * (4 + len(names))
    for hospital, entry in tables.items():
        kept = [*(entry.get("labelled") or []), *[None] * len(names)][: len(names)]  # None: withheld by the site
        given = entry.get("num_labelled", described[hospital].get("num_labels"))
        values = [entry.get("num_train"), given, *kept, entry.get("num_unlabelled"), entry.get("num_test")]
        sums = [total + (value or 0) for total, value in zip(sums, values, strict=True)]
        rows.append([text(hospital), *map(number, values)])
    facts += [
        ["hospitals", number(len(run.hospitals))],
        ["training images in all", number(sums[0]) if rows else "not recorded"],
        ["of these with a label", number(sums[1]) if rows else "not recorded"],
    ]
    parts = [table(["", ""], facts, numeric_from=9)]
    if rows:
        head = ["hospital", "training images", "labels", *(f"labels: {text(n)}" for n in names), "unlabelled",
                run.evaluated_on]  # fmt: skip
        parts.append(table(head, [*rows, ["**all**", *map(number, sums)]] if len(rows) > 1 else rows))
    return "\n\n".join(parts)


def privacy(run: RunData) -> str:
    """Return what every site has spent, or that nothing protects the images."""
    spent = privacy_spent(run)
    if not spent:
        return (
            "**Off.** No site reported an epsilon: no noise was added, and nothing bounds what the weights reveal "
            "about the images they were trained on."
        )
    rows = []
    for name in run.hospitals:
        facts = spent.get(name, {})
        epsilon = number(facts["epsilon"], 2) if facts else "off"
        rows.append([text(name), epsilon, text(number(facts.get("delta"), 6))])
    return "Differential privacy, as each site reported it.\n\n" + table(["hospital", "epsilon spent", "delta"], rows)


def what_left(run: RunData) -> str:
    """Return what the sites answered to which question, and how many bytes that was."""
    rows = []
    encoded = run.run_config.get("upload", "fp32") != "fp32"
    carries = CARRIES | (_ENCODED if encoded else {}) | (_MASKED if run.run_config.get("secure-aggregation") else {})
    for question in dict.fromkeys([*carries, *(str(event.get("kind")) for event in run.replies())]):
        replies = run.replies(question)
        if replies:
            sent = sum(event.get("bytes_out") or 0 for event in replies)
            what = carries.get(question, "not described here")
            rows.append([text(question), what, number(len(replies)), num_bytes(sent)])
    if not rows:
        return "Not recorded."
    return table(["question", "what the answer carries", "answers", "bytes"], rows, numeric_from=2) + (
        "\n\nImages, file names and galleries stay at the site. What the above can still reveal of them: "
        "docs/hospital-it.md of JointDiff."
    )


def data_name(name: str) -> str:
    """Return a data set's name without the folder of an npz file.

    >>> data_name("npz:/data/ward-3/scans.npz"), data_name("phantom:rgb")
    ('npz:scans.npz', 'phantom:rgb')
    """
    kind, colon, path = name.partition(":")
    return f"{kind}{colon}{Path(path).name}" if kind == "npz" else name

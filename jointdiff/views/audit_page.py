"""The page of a site's audit: what attacks on the model achieved, in plain words. It stays at the site."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jointdiff.attacks.audit import Audit
from jointdiff.attacks.membership import FALSE_POSITIVE_RATE, auc_bound, true_positive_bound
from jointdiff.storage import write_atomic, write_json
from jointdiff.views.audit_sections import Privacy, copies, inversion, limits, membership, pictures, strongest
from jointdiff.views.format import MISSING, duration, number, percent
from jointdiff.views.images import write_png
from jointdiff.views.markup import Child, Html, banner, element, facts, headline, page

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class AuditFacts:
    """Where the attacked model came from."""

    run_name: str
    dataset: str
    real: bool
    round_number: int
    method: str
    duration_s: float


def write_audit(folder: Path, audit: Audit, facts_of_run: AuditFacts, privacy: Privacy | None) -> Path:
    """Write pictures, metrics.json and index.html; the page carries its pictures and opens offline.

    Args:
        folder: audit/<run>/ of the site; made if needed. index.html is written last: where it is, all is.

    Returns:
        The absolute path of index.html.
    """
    for name, picture in pictures(audit).items():
        write_png(folder / f"{name}.png", picture)
    write_json(folder / "metrics.json", metrics_of(audit, facts_of_run, privacy))
    return write_atomic(folder / "index.html", render_audit(audit, facts_of_run, privacy))


def metrics_of(audit: Audit, facts_of_run: AuditFacts, privacy: Privacy | None) -> dict[str, Any]:
    """Return every number of the page, fit for JSON."""
    copied = None
    if audit.copies is not None:
        copied = {k: v for k, v in asdict(audit.copies).items() if k not in ("closest", "nearest")}
    hidden = ("original", "guess", "reconstruction")
    inversions = [{k: v for k, v in vars(i).items() if k not in hidden} for i in audit.inversions]
    plain = {k: v for k, v in vars(audit).items() if k not in ("attacks", "copies", "pairs", "inversions")}
    bound = None
    if privacy is not None:
        bound = {
            **asdict(privacy),
            "false_positive_rate": FALSE_POSITIVE_RATE,
            "true_positive_rate": true_positive_bound(privacy.epsilon, privacy.delta, FALSE_POSITIVE_RATE),
            "auc": auc_bound(privacy.epsilon, privacy.delta),
        }
    return {
        "schema_version": SCHEMA_VERSION, **asdict(facts_of_run), **plain, "privacy": bound,
        "membership": [asdict(attack) for attack in audit.attacks], "copies": copied, "inversions": inversions,
    }  # fmt: skip


def render_audit(audit: Audit, facts_of_run: AuditFacts, privacy: Privacy | None) -> Html:
    """Return the whole page."""
    title = f"Privacy audit of {audit.hospital}, run {facts_of_run.run_name}"
    sections = (
        ("membership", "Who was trained on", membership(audit, privacy)),
        ("copies", "Copies among generated images", copies(audit)),
        ("inversion", "Drawing an image from one update", inversion(audit)),
        ("limits", "What this does not say", limits()),
    )
    return page(
        title,
        banner(real=facts_of_run.real, where=f"Data set: {facts_of_run.dataset}."),
        element("h1", title),
        element(
            "p",
            "This site attacked the finished model with its own data, to see what the model and one update give away. "
            "The page shows training images: it stays at this site, and nothing of it was sent to anyone.",
            class_="lead",
        ),
        _headline(audit),
        element("nav", [element("a", name, href=f"#{anchor}") for anchor, name, _ in sections], aria_label="Sections"),
        facts(_facts(audit, facts_of_run, privacy)),
        [element("section", element("h2", name), content, id=anchor) for anchor, name, content in sections],
    )


def _headline(audit: Audit) -> Html:
    best = strongest(audit.attacks)
    found = best.result if best else None
    clear = [i for i in audit.inversions if i.view == "clear"]
    drawn = sum(i.recognised for i in clear)
    tiles = [
        ("Membership AUC", number(found.auc.value) if found else MISSING,
         f"strongest of {sum(a.result is not None for a in audit.attacks)} attacks; 0.5 is guessing" if found
         else "not measured"),
        ("Caught at 1% false alarms", percent(found.true_positive_rate.value) if found else MISSING,
         "of the members, same attack; guessing catches 1%" if found else "not measured"),
        ("Copies", percent(audit.copies.copied.value) if audit.copies else MISSING,
         f"of {audit.copies.num_samples} generated images" if audit.copies else "not measured"),
        ("Redrawn from an update", f"{drawn} of {len(clear)}" if clear else MISSING,
         "updates in the clear" if clear else "not measured"),
    ]  # fmt: skip
    return headline(tiles)


def _facts(audit: Audit, run: AuditFacts, privacy: Privacy | None) -> list[tuple[Child, Child]]:
    spent = f"ε {number(privacy.epsilon, 2)} at δ {privacy.delta:g}" if privacy else "none: no finite ε here"
    return [
        ("Run", f"{run.run_name}, {run.method}, after round {run.round_number}"),
        ("Images trained on (members)", number(audit.num_train)),
        ("of these with a label", number(audit.num_labelled)),
        ("Held back (non-members)", number(audit.num_nonmembers)),
        ("Held back, but equal to a training image", f"{number(audit.num_shared)}, left out"),
        ("Training images that repeat another", number(audit.num_repeats)),
        ("Differential privacy, from the ledger", spent),
        ("Reference models trained here", number(audit.num_references)),
        ("Duration of this audit", duration(run.duration_s)),
    ]

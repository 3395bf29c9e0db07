"""What the site says of itself: site.yaml, its data, its privacy ceiling."""

from __future__ import annotations

from client.preflight.facts import FIX, PASS, UNKNOWN, WARN, Facts, Line
from jointdiff import ledger
from jointdiff.data import checks, class_table


def site_yaml(facts: Facts) -> Line:
    """site.yaml is there, can be read, and has the sections that a site needs."""
    config = facts.config
    if not config.path.exists():
        return Line(FIX, f"There is no {config.path}.", "jointdiff-client init")
    missing = [name for name in ("federation", "data") if getattr(config, name) is None]
    if missing:
        text = f"{config.path} has no section {' and no '.join(missing)}."
        return Line(FIX, text, "configs/site.example.yaml shows its form.")
    assert config.data is not None and config.federation is not None
    device = config.device or "as the run says"
    return Line(PASS, f"server {config.federation.server}, data of kind {config.data.kind}, device {device}")


def readable(facts: Facts) -> Line:
    """The data can be read, and their classes are those of the run."""
    found = class_table(facts.site.data)
    labelled = ", ".join(f"{name} {n}" for name, n in zip(found["class_names"], found["labelled"], strict=True))
    text = (
        f"{found['num_train']} training images, labelled: {labelled}; unlabelled {found['num_unlabelled']}; "
        f"{found['num_test']} test images"
    )
    if not found["num_labelled"]:
        return Line(WARN, text, "No training image has a label: this site helps the generator alone.")
    if not found["num_test"]:
        return Line(WARN, text, "No labelled image is set aside for the test: this site cannot be evaluated.")
    minimum = facts.config.policy.min_cell_count
    if found["num_train"] < minimum:
        return Line(FIX, text, f"Fewer than min-cell-count ({minimum}): this site would refuse to train. Add scans.")
    return Line(PASS, text)


def privacy(facts: Facts) -> Line:
    """What is asked stays below the site's ceiling, and below what is left of it."""
    policy, run = facts.config.policy, facts.run
    if policy.require_secure_aggregation and facts.asked is not None and not run.secure_aggregation:
        return Line(
            FIX, "site.yaml wants secure aggregation, and the run has none.",
            "The coordinator sets secure-aggregation=true; or take require-secure-aggregation out of site.yaml.",
        )  # fmt: skip
    if policy.epsilon is None:
        return Line(PASS, "no ceiling in site.yaml (privacy: epsilon)")
    found = ledger.summary(facts.folder)
    spent = 0.0 if found is None else found["epsilon"]
    if spent is None or spent >= policy.epsilon:
        told = "without bound" if spent is None else f"{spent:.4g}"
        return Line(
            FIX, f"The ceiling is epsilon {policy.epsilon:g}, and {told} is spent: every run is refused.",
            "Raise privacy: epsilon in site.yaml if your data protection officer agrees, or take no part.",
        )  # fmt: skip
    left = policy.epsilon - spent
    text = f"ceiling epsilon {policy.epsilon:g}, spent {spent:.4g}, left {left:.4g}"
    if facts.asked is None:
        return Line(PASS, f"{text}; a run without differential privacy is refused")
    if not facts.model.private:
        return Line(
            FIX, f"{text}; the run has no differential privacy and would be refused.",
            "The coordinator sets target-epsilon, or you take the ceiling out of site.yaml.",
        )  # fmt: skip
    if run.target_epsilon > policy.epsilon or (not found and run.target_epsilon > left):
        return Line(
            FIX, f"{text}; the run asks epsilon {run.target_epsilon:g}.",
            f"The coordinator sets target-epsilon={left:.3g} or less.",
        )  # fmt: skip
    if run.target_epsilon > left:
        return Line(
            WARN, f"{text}; the run asks epsilon {run.target_epsilon:g}, which composes with what is spent.",
            "This site will refuse rounds once the ceiling is reached. `jointdiff-client ledger` shows what is spent.",
        )  # fmt: skip
    if not run.target_epsilon:
        return Line(UNKNOWN, f"{text}; what noise-multiplier={run.noise_multiplier:g} costs, the run's start tells.")
    return Line(PASS, f"{text}; the run asks epsilon {run.target_epsilon:g}")


def sane(facts: Facts) -> Line:
    """No copies, no leaks between the parts, no constant or tiny images: what `jointdiff.data.checks` finds."""
    found = [one for one in checks.findings(facts.site) if one.severity != checks.NOTE]
    if not found:
        return Line(PASS, "no copies, no leak between training and test, sizes and values as they should be")
    status = FIX if any(one.severity == checks.ERROR for one in found) else WARN
    return Line(status, " ".join(one.text for one in found), " ".join(one.advice for one in found if one.advice))

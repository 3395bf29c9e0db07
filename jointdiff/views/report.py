"""A run's report: one HTML file that carries its own pictures and opens offline, for a finished run or a failed one."""

from __future__ import annotations

from pathlib import Path

from jointdiff.storage import write_atomic
from jointdiff.views import report_pictures, report_results, report_run, report_time
from jointdiff.views.markup import Html, banner, element, page
from jointdiff.views.run_data import RunData, load_run

# id of the section, its heading, what makes its content; a section that has nothing to say is left out
SECTIONS = (
    ("curves", "Over the rounds", report_results.curves),
    ("result", "On the {split} images", report_results.results),
    ("data", "Who had which data", report_run.class_tables),
    ("privacy", "Privacy spent", report_run.privacy),
    ("samples", "What the generator draws", report_pictures.samples),
    ("explanations", "Single decisions, explained", report_pictures.galleries),
    ("time", "Where the time of a round goes", report_time.time_of_rounds),
    ("exchange", "What travelled, how long it took, on which device", report_run.exchange),
    ("trouble", "Failures and refusals", report_run.trouble),
    ("configuration", "Configuration and code", report_run.configuration),
)


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run's folder.

    Args:
        run_folder: HOME/runs/<run>; only its events.jsonl must be there.

    Returns:
        The absolute path of the report.

    Raises:
        RunError: The folder holds no run, or a file of it is damaged.
    """
    run = load_run(run_folder)
    return write_atomic(run.folder / "report.html", render_report(run))


def render_report(run: RunData) -> Html:
    """Return the whole page."""
    contents = [(anchor, title.format(split=run.split), make(run)) for anchor, title, make in SECTIONS]
    shown = [(anchor, title, content) for anchor, title, content in contents if content is not None]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in shown]
    return page(
        f"{run.run_name} - JointDiff",
        banner(real=run.dataset.get("real"), where=report_run.data_sentence(run)),
        element("h1", run.run_name),
        element("p", report_run.summary_sentence(run), class_="lead"),
        report_run.outcome(run),
        report_results.headline(run),
        element("nav", links, aria_label="Sections"),
        [element("section", element("h2", title), content, id=anchor) for anchor, title, content in shown],
    )

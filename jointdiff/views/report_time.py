"""The report's section about time: a bar for each round, and what of it was no hospital's work."""

from __future__ import annotations

from jointdiff.round_profile import PARTS, WORK, RoundProfile, hospital_seconds, round_profiles, share_without_work
from jointdiff.round_profile import total_parts as totals
from jointdiff.views.format import MISSING, duration, percent, words
from jointdiff.views.markup import Html, element, table
from jointdiff.views.run_data import RunData

MAX_BARS = 40  # of more rounds the slowest are drawn
_BAR_HEIGHT = 12


def time_of_rounds(run: RunData) -> Html | None:
    """Return where the time of the rounds went; None where no round was evaluated."""
    profiles = round_profiles(run.events)
    if not profiles:
        return None
    summed = totals(profiles)
    whole = sum(summed.values())
    shown = sorted(sorted(profiles, key=lambda p: -p.duration_s)[:MAX_BARS], key=lambda p: p.number)
    rows = [
        [text, duration(summed[name]), percent(summed[name] / whole) if whole else MISSING]
        for name, text in PARTS.items()
        if summed[name] > 0
    ]
    return element(
        "div",
        element("p", element("b", percent(share_without_work(summed))),
                " of the rounds' time no hospital trained, evaluated or added up features."),
        _bars(shown),
        element("p", f"The {MAX_BARS} slowest of {len(profiles)} rounds are drawn.", class_="note")
        if len(shown) < len(profiles) else None,
        table(["What", "All rounds", "Share"], rows,
              caption="An instant in which several hospitals are at it counts once, for the first line that fits"),
        _hospitals(run),
    )  # fmt: skip


def _bars(profiles: list[RoundProfile]) -> Html:
    """Return one bar per round, as long as the round took: the work of the hospitals dark, all else light."""
    longest = max(profile.duration_s for profile in profiles) or 1.0
    rows = []
    for index, profile in enumerate(profiles):
        y, x = index * (_BAR_HEIGHT + 3), 40.0
        rows.append(element("text", f"{profile.number}", x=34, y=y + 10, text_anchor="end"))
        work = sum(profile.parts[name] for name in WORK)
        for opacity, seconds, what in ((1, work, "work"), (0.35, profile.duration_s - work, "all else")):
            width = 400 * seconds / longest
            title = element("title", f"round {profile.number}, {what}: {duration(seconds)}")
            rows.append(
                element("rect", title, x=f"{x:.1f}", y=y, width=f"{width:.1f}", height=_BAR_HEIGHT, fill="var(--s0)",
                        opacity=opacity)
            )  # fmt: skip
            x += width
        share = f"{duration(profile.duration_s)}, {percent(profile.other_share)}"
        rows.append(element("text", share, x=f"{x + 6:.1f}", y=y + 10))
    svg = element(
        "svg", rows, viewBox=f"0 0 560 {len(profiles) * (_BAR_HEIGHT + 3)}", role="img",
        aria_label="Seconds of each round: work of the hospitals, and all else",
    )  # fmt: skip
    caption = element(
        "figcaption", element("b", "Every round"), " dark: hospitals work; light: all else, with its share"
    )
    return element("figure", caption, svg)


def _hospitals(run: RunData) -> Html | None:
    """Return each hospital's own account, where they give one (never in a private run)."""
    said = hospital_seconds(run.events)
    kinds = list(dict.fromkeys(name for own in said.values() for name in own))
    if not kinds:
        return None
    rows = [[name, *(duration(said[name].get(kind)) for kind in kinds)] for name in run.hospitals if name in said]
    return table(["Hospital", *map(words, kinds)], rows, caption="As each hospital says, all rounds together")

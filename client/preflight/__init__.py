"""`jointdiff-client preflight`: everything that must be right before a site joins, each by a check of its own.

A check is a function from `Facts` to a `Line`; CHECKS lists them in the order of the table. One that fails, even by a
programming error, hides no other. No line holds a patient's data or the name of a file of the site's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from client.preflight import federation, latents_key, machine, own_data, software
from client.preflight.facts import FIX, PASS, UNKNOWN, WARN, Facts, Line, read_run_config
from jointdiff.errors import JointDiffError

CHECKS: dict[str, Callable[[Facts], Line]] = {
    "site.yaml": own_data.site_yaml,
    "software": software.installed,
    "JointDiff": software.code,
    "data": own_data.readable,
    "data quality": own_data.sane,
    "privacy": own_data.privacy,
    "model": machine.model_fits,
    "disk": machine.disk,
    "latents": latents_key.latents_on_disk,
    "server's name": federation.name,
    "server's port": federation.port,
    "TLS": federation.tls,
    "health": federation.health,
    "clock": federation.clock,
    "key": federation.key,
    "admission": federation.admission,
}

__all__ = ["CHECKS", "FIX", "PASS", "UNKNOWN", "WARN", "Facts", "Line", "lines", "read_run_config", "run",
           "to_json", "verdict"]  # fmt: skip


def run(facts: Facts) -> Iterator[Line]:
    """Do every check, one after the other, and yield its line."""
    for name, check in CHECKS.items():
        try:
            yield check(facts).named(name)
        except JointDiffError as error:
            yield Line(FIX, str(error)).named(name)
        except Exception as error:
            yield Line(UNKNOWN, f"The check itself failed ({type(error).__name__}).").named(name)


def lines(found: Iterable[Line]) -> Iterator[str]:
    """Return the table: status, what was looked at, what was found, and below it what mends it."""
    width = max(map(len, CHECKS))
    for line in found:
        yield f"{line.status:<8}{line.name:<{width + 2}}{line.text}"
        if line.remedy:
            yield f"{'':<{width + 10}}-> {line.remedy}"


def to_json(line: Line) -> dict[str, str]:
    """Return a line for programs."""
    return {"check": line.name, "status": line.status, "found": line.text, "remedy": line.remedy}


def verdict(found: Sequence[Line]) -> str:
    """Return what the table comes to."""
    counts = {status: sum(line.status == status for line in found) for status in (FIX, WARN, UNKNOWN)}
    if counts[FIX]:
        return f"{counts[FIX]} of {len(found)} checks need a FIX before this site can join."
    rest = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return "This site is ready to join." + (f" ({rest})" if rest else "")

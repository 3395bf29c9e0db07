"""A study on its way: what is planned, how far each run is, what is told of it meanwhile, and how it ends."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path

from jointdiff import storage
from jointdiff.data.registry import info_of
from jointdiff.errors import JointDiffError, RunError
from jointdiff.study_summary import FAILED, FEDERATED, FINISHED, WAITING, Design, StudyFacts, StudyRow
from jointdiff.views.format import duration, number
from jointdiff.views.study_markdown import main_table
from simulations import named_run
from simulations.method_choice import PIXELS
from simulations.study import results, timing
from simulations.study.file import Study
from simulations.study.jobs import carry_out, finished_row, waiting_row
from simulations.study.plan import PlannedRun, check, design_of, plan, resolved_study, undecided
from simulations.study.workers import Outcome, carry_out_all

_WRITE_S = 20.0  # between two writings of the tables while runs go on
_TELL_S = 60.0  # between two lines of what is going on, where nothing ends


class Running:
    """A study on its way: what is planned, how far each run is, and what is told of it."""

    def __init__(self, study: Study, home: Path, workers: int) -> None:
        self.study, self.home, self.workers = study, home, workers
        self.folder = home / "studies" / study.name
        self.decided = results.read_decided(self.folder)
        self.planned: dict[str, PlannedRun] = {}  # by the run's name
        self._written, self._told = 0.0, time.monotonic()

    def look(self) -> None:
        """Plan all runs, check them, and read the results of those that have finished before."""
        planned = plan(self.study, self.home, local_steps=self.decided)
        check(planned)
        self.planned = {one.row.run: self.planned.get(one.row.run) or self._found(one) for one in planned}
        self.timings = timing.learn(self.planned.values(), self.home)

    def _found(self, one: PlannedRun) -> PlannedRun:
        if one.kind == PIXELS:
            there = (self.folder / "pixels" / f"{one.row.run}.json").is_file()
        else:
            folder = storage.run_path(self.home, one.row.run)
            state = named_run.state_of(folder)
            there = state == named_run.FINISHED
            if state == named_run.INTERRUPTED:
                return waiting_row(one, WAITING, "stopped on the way")
        try:
            return finished_row(one, carry_out(one, self.folder), FINISHED) if there else one
        except JointDiffError as error:  # what it left is damaged: the others go on
            return waiting_row(one, FAILED, str(error))

    def of(self, *statuses: str) -> list[PlannedRun]:
        """Return the runs of these statuses, in order."""
        return [one for one in self.planned.values() if one.row.status in statuses]

    def check_data(self) -> None:
        """Deal out the first draw of every setting that has a run to do: files that are missing are told at once.

        Raises:
            DataError: Files are missing or damaged, or the data cannot be dealt.
        """
        from jointdiff.data import hospital_data

        seen = set()
        for one in self.of(WAITING):
            if (one.row.setting, one.row.num_labels) not in seen:
                seen.add((one.row.setting, one.row.num_labels))
                try:
                    hospital_data(one.run, 0)
                except JointDiffError as error:
                    raise type(error)(f"setting '{one.row.setting}': {error}") from None

    def listing(self) -> list[str]:
        """Return what a study would do, a line a run."""
        lines = [f"Study {self.study.name}: {len(self.planned)} runs, {self.workers} at a time. {self.folder}"]
        for one in self.planned.values():
            seconds = self.timings.seconds(one)
            done = one.row.status == FINISHED
            state = "finished" if done else "goes on" if one.row.reason else "to do"
            took = (
                f"{duration(one.row.seconds)}" if done else f"about {duration(seconds)}" if seconds else "time unknown"
            )
            lines.append(f"  {state:8}  {one.row.run}  {one.row.steps} steps, {took}")
        lines += [f"Not run: {note}" for note in self.notes()]
        lines.append(f"{len(self.of(FINISHED))} finished, {len(self.of(WAITING))} to do; {self._left()}.")
        return lines

    def run(self) -> None:
        """Run what is left.

        Raises:
            RunError: At least one run failed; names them.
        """
        results.write_study(self.folder, resolved_study(self.study, self.decided))
        print(
            f"Study {self.study.name}: {len(self.planned)} runs, {len(self.of(FINISHED))} have finished before, "
            f"{self.workers} at a time; {self._left()}."
        )
        self._carry_out(self.of(WAITING))
        while self._decide():
            self.look()
            self._carry_out(self.of(WAITING))
        page = self.write(force=True)
        print(f"\n{main_table(self._rows(), self._design(), self._facts())}\n\nTables and plots: {page}")
        if failed := self.of(FAILED):
            raise RunError(
                f"{len(failed)} of {len(self.planned)} runs failed: "
                + "; ".join(f"{one.row.run}: {one.row.reason.rstrip('.')}" for one in failed[:5])
                + ("; and others" if len(failed) > 5 else "")
                + f". The tables name them; call it again to try them again: {page}"
            )

    def _carry_out(self, jobs: list[PlannedRun]) -> None:
        if not jobs:
            return
        workers = min(self.workers, len(jobs))
        with contextlib.closing(carry_out_all(jobs, self.folder, workers, idle=self._idle)) as outcomes:  # type: ignore[type-var]
            try:
                for outcome in outcomes:
                    self._take(outcome)
            finally:
                self.write(force=True)

    def _take(self, outcome: Outcome) -> None:
        one = outcome.planned
        if outcome.result is None:
            self.planned[one.row.run] = waiting_row(one, FAILED, outcome.reason)
            what = f"FAILED: {outcome.reason}"
        else:
            self.planned[one.row.run] = done = finished_row(one, outcome.result, FINISHED)
            self.timings.add(done.run, done.work, done.row.seconds)
            what = f"auc {number(done.row.auc)}, {duration(done.row.seconds)}"
        ended = len(self.of(FINISHED, FAILED))
        print(f"[{ended}/{len(self.planned)}] {one.row.run}: {what}; {self._left()}", flush=True)
        self._told = time.monotonic()
        self.write()

    def _idle(self, going_on: dict[str, str]) -> None:
        if going_on and time.monotonic() - self._told > _TELL_S:
            self._told = time.monotonic()
            runs = ", ".join(f"{name} ({how or 'starting'})" for name, how in going_on.items())
            print(f"  going on: {runs}; {self._left()}", flush=True)

    def _left(self) -> str:
        seconds = self.timings.total(self.of(WAITING), self.workers)
        later = " and what goes by others' seconds" if undecided(self.study, self.decided) else ""
        return "time left not known yet" if seconds is None else f"about {duration(seconds)} left{later}"

    def _decide(self) -> bool:
        """Fix the steps of methods that go by another one's seconds, as far as these are known now."""
        new = {}
        for method, setting, count in undecided(self.study, self.decided):
            like, whom = self.study.seconds_of[method]
            own, other = self._seconds(setting, like, count), self._seconds(setting, whom, count)
            if own and other:
                local_steps = next(
                    one.run.local_steps for one in self.planned.values() if _cell(one.row) == (setting, like, count)
                )
                new[method, setting, count] = max(1, round(local_steps * other / own))
        if new:
            self.decided |= new
            results.write_decided(self.folder, self.decided)
            results.write_study(self.folder, resolved_study(self.study, self.decided))
        return bool(new)

    def _seconds(self, setting: str, method: str, count: int) -> float | None:
        rows = [one.row for one in self.of(FINISHED) if _cell(one.row) == (setting, method, count)]
        known = [row.seconds for row in rows if row.seconds]
        return statistics.median(known) if known else None

    def notes(self) -> list[str]:
        """Return what a study leaves out, and why: nothing is dropped in silence."""
        study = self.study
        lines = [f"setting '{s}' with method '{m}': excluded by the study file." for s, m in sorted(study.exclude)]
        for method, setting, count in undecided(study, self.decided):
            like, whom = study.seconds_of[method]
            lines.append(
                f"setting '{setting}' with method '{method}', {count or 'all'} labels: its steps are fixed once runs "
                f"of '{like}' and '{whom}' have finished there."
            )
        return lines

    def write(self, *, force: bool = False) -> Path:
        """Write results.csv, tables.md and the page, unless that was done a moment ago."""
        if force or time.monotonic() - self._written > _WRITE_S:
            self._written = time.monotonic()
            return results.write_results(self.folder, self._rows(), self._design(), self._facts())
        return self.folder / "index.html"

    def _rows(self) -> list[StudyRow]:
        return [one.row for one in self.planned.values()]

    def _design(self) -> Design:
        from jointdiff.reproducibility import SERVER, seed_for

        return design_of(self.study, seed_for(0, SERVER, 0, "bootstrap over the draws of a study"))

    def _facts(self) -> StudyFacts:
        runs = [one.run for one in self.planned.values()]
        run, counts = runs[0], sorted({one.num_hospitals for one in runs})
        content = resolved_study(self.study, self.decided)
        return StudyFacts(
            name=self.study.name,
            dataset=run.dataset,
            real=info_of(run).real,
            split=run.eval_split,
            num_hospitals=f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]),
            centralised_steps=self.study.centralised_steps,
            runner=self.study.runner,
            notes=tuple(self.notes()),
            content=content,
            eval_scanners={one.row.setting: one.run.eval_scanners for one in self.planned.values()},
        )


def _cell(row: StudyRow) -> tuple[str, str, int] | None:
    return (row.setting, row.method, row.num_labels) if row.place == FEDERATED else None

"""Grade explanations of finished runs: `python -m simulations.explain RUN_FOLDER... --methods a,b --controls`.

Every method explains the same scans, batch by batch in turn, so that their times compare. One row per method and
control, each cell the mean over the runs and, for several runs, the smallest and the largest. Choose settings with
`--split val`, then make the table once with `--split test`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff import checkpoint, storage
from jointdiff.appointed_referee import simulation_referee
from jointdiff.command_line import exit_code_of
from jointdiff.config import Config, parse_run_config
from jointdiff.controls import Edits, all_controls
from jointdiff.counterfactual import DEFAULT_METHOD, METHODS, default_targets
from jointdiff.data import ImageSet, hospital_data, info_of
from jointdiff.edit_task import CounterfactualSettings
from jointdiff.errors import CheckpointError, ConfigError, RunError, nearest
from jointdiff.evaluation import predict
from jointdiff.explanation import choose_scans, site_references
from jointdiff.fidelity import FeatureNet
from jointdiff.grading import ScanGrades, grade_scans
from jointdiff.model import JointModel, to_network, to_uint8
from jointdiff.realism import denoising_losses, grouped_kid
from jointdiff.referee import Referee
from jointdiff.reproducibility import SERVER, generator_for, seed_for
from jointdiff.run_keys import EVAL_SPLITS
from jointdiff.schedule import SCHEDULES
from jointdiff.training import select_device
from simulations.explain_settings import DEFAULTS, settings_of
from simulations.explain_table import BASELINE, EVERYWHERE, Row, directions, notes, table

BATCH_SIZE = 32  # scans that a method explains before the next has its turn


@dataclass(frozen=True)
class Run:
    """A finished run, ready to be explained."""

    name: str
    model: JointModel
    config: Config
    device: torch.device


def open_run(folder: Path, *, split: str, device: torch.device) -> Run:
    """Read a run's best checkpoint and its configuration.

    Raises:
        RunError: The folder is not that of a finished run.
        CheckpointError: The checkpoint is damaged, or its model cannot classify or cannot denoise.
    """
    path = folder / "checkpoints" / "best.safetensors"
    if not path.is_file():
        raise RunError(
            f"{folder} is no folder of a finished run: it holds no checkpoints/best.safetensors. "
            "Name HOME/runs/<run>, the folder whose report a run's last line names."
        )
    config = checkpoint.load(path).config
    with torch.random.fork_rng(devices=[]):
        model = JointModel(config.model)
    checkpoint.load_into(model, path)
    if config.model.latent:
        raise CheckpointError(
            f"{path} works on latents of an autoencoder, and these tables edit pixels: the grades of a latent run's "
            "edits are in its report, and `jointdiff explain` makes them again."
        )
    if not config.training.diffusion_weight:
        raise CheckpointError(
            f"{path} was trained without the denoising loss (method {config.run.method}), so it cannot edit scans: "
            "take a run of method joint or two-stage."
        )
    if not bool(model.head.linear.weight.any()):
        raise CheckpointError(
            f"{path} has no classifier (all weights of its head are zero), so there is no decision to explain: "
            "take a run that has finished, with labels."
        )
    # The run may have been copied: what is kept beside runs (the referee) lies in the home that it is in now.
    home = folder.resolve().parents[1] if folder.resolve().parent.name == "runs" else storage.home()
    run = replace(config.run, eval_split=split, home=str(home))
    return Run(folder.resolve().name, model.to(device).eval(), replace(config, run=run), device)


def take_turns(
    methods: Sequence[str],
    run: Run,
    model: JointModel,
    scans: np.ndarray,
    targets: np.ndarray,
    others: ImageSet,
    settings: CounterfactualSettings | None = None,
) -> dict[str, Edits]:
    """Explain scans by several methods in one process, in turns batch by batch; each begins a batch as often.

    Args:
        model: The run's, or another of its configuration.
        scans: uint8 [N,H,W,C].
        targets: int64 [N].
        others: Test scans, whose first say how sure the model typically is (explanation.site_references).
        settings: None: the defaults.
    """
    training, device = run.config.training, run.device
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    known = site_references(model, others, device=device)
    parts: dict[str, list[Edits]] = {name: [] for name in methods}
    for turn, start in enumerate(range(0, len(scans), BATCH_SIZE)):
        images = to_network(scans[start : start + BATCH_SIZE], device)
        aims = targets[start : start + BATCH_SIZE]
        first = turn % len(methods)
        for name in (*methods[first:], *methods[:first]):
            wanted = torch.from_numpy(aims).to(device)
            made = METHODS[name](
                model, images, wanted, alpha_bar, prediction=training.prediction, settings=settings, references=known
            )
            found = made.found.cpu().numpy()
            parts[name].append(Edits(to_uint8(made.images), aims, found, made.seconds_per_image))
    return {name: Edits.together(part) for name, part in parts.items()}


def grade_run(
    run: Run,
    methods: Sequence[str],
    *,
    num_scans: int,
    controls: Sequence[str],
    say: Callable[[str], None],
    edits_by: CounterfactualSettings | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Explain scans of all hospitals of a run and grade them together.

    Args:
        num_scans: In all; every hospital gives its share, or all it has.
        controls: Those of the methods that are shown with their four controls.
        say: Takes lines of progress.
        edits_by: How edits are searched; None: the defaults.

    Returns:
        Rows, and facts of the run: name, num_scans, referee_accuracy, kid_scale.
    """
    referee = simulation_referee(run.config, run.device)
    settings, count = run.config.run, run.config.run.num_hospitals
    chosen: list[ImageSet] = []
    edits: dict[tuple[str, str], list[Edits]] = {}
    for k in range(count):
        test = hospital_data(settings, k).test
        share = num_scans // count + (k < num_scans % count)
        scans = choose_scans(test, share, seed=seed_for(settings.seed, k, 0, "explain"))
        if not len(scans):
            continue
        say(f"{run.name}, hospital-{k + 1}: {len(scans)} scans")
        probs = predict(run.model, scans.images, device=run.device)
        targets = default_targets(torch.from_numpy(probs), task=run.config.model.task).numpy()
        if not chosen:  # what a first call costs is nobody's time
            take_turns(methods, run, run.model, scans.images[:1], targets[:1], test, edits_by)
        made = take_turns(methods, run, run.model, scans.images, targets, test, edits_by)
        chosen.append(scans)
        for name in methods:
            edits.setdefault((name, ""), []).append(made[name])
            if name not in controls:
                continue
            again = partial(_explain_by, name, run, test, edits_by)
            generator = generator_for(settings.seed, k, 0, "controls of explanations")
            found = all_controls(
                again, run.model, scans.images, made[name], probs, generator=generator, device=run.device
            )
            for control, part in found.items():
                edits.setdefault((name, control), []).append(part)
    scans = ImageSet.together(chosen)
    judged = _judge(run, scans, referee, {key: Edits.together(parts) for key, parts in edits.items()})
    names = info_of(settings).class_names
    return _rows(run, judged, names), {
        "run": run.name,
        "num_scans": len(scans),
        "referee_accuracy": referee.accuracy(scans),
        "kid_scale": kid_scale(scans, judged[methods[0], ""], seed=seed_for(settings.seed, SERVER, 0, "kid scale")),
    }


def _explain_by(
    name: str,
    run: Run,
    others: ImageSet,
    settings: CounterfactualSettings | None,
    model: JointModel,
    scans: np.ndarray,
    targets: np.ndarray,
) -> Edits:
    return take_turns([name], run, model, scans, targets, others, settings)[name]


def _judge(
    run: Run, scans: ImageSet, referee: Referee, edits: dict[tuple[str, str], Edits]
) -> dict[tuple[str, str], ScanGrades]:
    """Grade edits by the run's true model and its referee, whoever made them."""
    training, task = run.config.training, run.config.model.task
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(run.device)
    net = FeatureNet(run.config.model.channels)

    def ask(images: np.ndarray) -> np.ndarray:
        return predict(run.model, images, device=run.device)

    def losses(images: np.ndarray) -> np.ndarray:
        generator = generator_for(run.config.run.seed, SERVER, 0, "denoising loss of explanations")
        return denoising_losses(run.model, images, alpha_bar, prediction=training.prediction, generator=generator)

    before, loss_before = ask(scans.images), losses(scans.images)
    return {
        key: grade_scans(
            scans.images,
            part.images,
            before,
            ask(part.images),
            part.targets,
            found=part.found,
            masks=scans.masks,
            twins=scans.twins,
            labels=scans.labels,
            referee=referee.predict,
            predict=ask,
            features=net.features,
            denoising_losses=(loss_before, losses(part.images)),
            seconds_per_image=part.seconds_per_image,
            task=task,
        )
        for key, part in edits.items()
    }


def _rows(run: Run, judged: dict[tuple[str, str], ScanGrades], class_names: Sequence[str]) -> list[Row]:
    baseline = judged.get((BASELINE, ""))
    slowest = None if baseline is None else baseline.means()["seconds_per_image"]
    rows = []
    for (method, control), graded in judged.items():
        for direction, where in directions(graded.aims, class_names, run.config.model.task).items():
            grades = graded.means(where)
            if slowest is not None and grades.get("seconds_per_image"):
                grades["speedup"] = slowest / grades["seconds_per_image"]
            rows.append(Row(run.name, method, control, direction, grades))
    return rows


def kid_scale(scans: ImageSet, graded: ScanGrades, *, seed: int) -> dict[str, list[float]]:
    """Return what KID values mean here, [value, standard error] by name, where there are scans enough.

    Returns:
        real: scans of each class, one half against the other. unedited: the scans themselves against those of the
        class that their edits aim at. noise: uniform noise against the same.
    """
    if graded.kid_sides is None:
        return {}
    edits, real = graded.kid_sides
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(real.groups)) % 2 == 0
    net = FeatureNet(scans.images.shape[3])
    noise = net.features(rng.integers(0, 256, scans.images.shape, dtype=np.uint8))
    found = {
        "real": grouped_kid(real.select(half), real.select(~half)),
        "unedited": grouped_kid(replace(edits, features=net.features(scans.images)), real),
        "noise": grouped_kid(replace(edits, features=noise), real),
    }
    return {name: [value[0], value[1]] for name, value in found.items() if value is not None}


def _check_alike(runs: Sequence[Run]) -> None:
    """Refuse to average over runs of different data."""
    facts = [(r.config.run.dataset, r.config.model.image_size, r.config.model.task) for r in runs]
    for run, fact in zip(runs, facts, strict=True):
        if fact != facts[0]:
            raise ConfigError(
                f"{run.name} is of (dataset, image-size, task) = {fact}, {runs[0].name} of {facts[0]}: "
                "make one table for each."
            )


def _methods(text: str, option: str, known: Collection[str]) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise ConfigError(f"Unknown method '{name}' in {option}: {nearest(name, known)}")
    return names


def _command(options: argparse.Namespace) -> None:
    methods = _methods(options.methods, "--methods", METHODS)
    controls = (
        [] if options.controls is None else _methods(options.controls or ",".join(methods), "--controls", methods)
    )
    if options.num_scans < 1:
        raise ConfigError(f"--num-scans must be at least 1, not {options.num_scans}.")
    output = storage.writable(options.json) if options.json else None
    chosen = settings_of(options.set)
    device = select_device(parse_run_config({"device": options.device}).device)
    folders = dict.fromkeys(Path(folder).resolve() for folder in options.folders)
    runs = [open_run(folder, split=options.split, device=device) for folder in folders]
    _check_alike(runs)
    rows: list[Row] = []
    facts: list[dict[str, Any]] = []
    for run in runs:
        found, fact = grade_run(
            run,
            methods,
            num_scans=options.num_scans,
            controls=controls,
            say=partial(print, file=sys.stderr),
            edits_by=chosen,
        )
        rows += found
        facts.append(fact)
    net = FeatureNet(runs[0].config.model.channels)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema_version": 1, "split": options.split, "feature_net": net.name, "runs": facts}
        content["settings"] = vars(chosen)
        storage.write_json(output, content | {"rows": [vars(row) for row in rows]})
    print(notes(facts, split=options.split, feature_net=net.name))
    for direction in dict.fromkeys(row.direction for row in rows):
        print(f"\n{'All edits' if direction == EVERYWHERE else f'Edits {direction}'}\n\n{table(rows, direction)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tables; return 0, or the error's exit code."""
    parser = argparse.ArgumentParser(prog="simulations.explain", description="Grade explanations of finished runs.")
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER", help="HOME/runs/<run> of a finished run")
    parser.add_argument("--methods", default=DEFAULT_METHOD, help="comma-separated (default: %(default)s)")
    parser.add_argument("--num-scans", type=int, default=96, help="per run, of all hospitals (default: %(default)s)")
    parser.add_argument("--split", choices=EVAL_SPLITS, default="val", help="whose scans (default: %(default)s)")
    parser.add_argument(
        "--controls",
        nargs="?",
        const="",
        metavar="METHODS",
        help="also four controls of these methods (default: of all)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="how edits are searched, other than by default: "
        f"{', '.join(f'{name}={text}' for name, text in DEFAULTS.items())}",
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    parser.add_argument("--json", default="", metavar="PATH", help="also write every run's grades to this file")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _command(options))


if __name__ == "__main__":
    sys.exit(main())

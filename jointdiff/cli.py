"""`jointdiff train | evaluate | predict | sample | prototypes | explain`: one site without a federation."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jointdiff.command_line import exit_code_of
from jointdiff.config import Config, RunConfig, parse_run_config, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.overrides import absolute_paths, parse_overrides
from jointdiff.storage import writable, write_atomic

if TYPE_CHECKING:  # torch takes seconds to import: a typo must not wait for it
    from jointdiff.trained import Trained

PROGRESS_FROM = 100  # scans from which on progress is shown
_KEYS = "run-config keys as KEY=VALUE (simulations/3_hospitals/README.md describes them)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or the error's exit code."""
    options = _parse(arguments)
    return exit_code_of(lambda: options.command(options))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; KEY=VALUE may stand before and after options, which argparse alone does not take."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("keys" not in options or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.keys = [*options.keys, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff", description="Train and use a joint diffusion-classifier alone.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train on one site's images: centralised, or one hospital of several")
    train.add_argument("--hospital", type=int, default=1, help="which of num-hospitals trains alone (default: 1)")
    train.add_argument("keys", nargs="*", metavar="KEY=VALUE", help=_KEYS)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="metrics of a checkpoint on a data set's evaluation split")
    _with_checkpoint(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("keys", nargs="*", metavar="KEY=VALUE", help=_KEYS + "; default: the checkpoint's own")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="probabilities of new scans, as CSV")
    _with_checkpoint(predict)
    predict.add_argument(
        "scans", nargs="+", help="image or DICOM files, folders of them, or npz files (array `images`)"
    )
    predict.add_argument(
        "--aspect", default="pad", metavar="NAME",
        help="of scans that are not square, as `aspect` in site.yaml: pad | crop | stretch (default: pad)",
    )  # fmt: skip
    predict.add_argument(
        "--window", default="auto", metavar="WINDOW",
        help="of DICOM files, as `window` in site.yaml: auto | header | CENTRE,WIDTH (default: auto)",
    )  # fmt: skip
    predict.add_argument("--output", "-o", default="-", help="CSV file; - prints it (default)")
    predict.set_defaults(command=_predict)

    sample = commands.add_parser("sample", help="draw images of each class into one PNG")
    _with_checkpoint(sample)
    sample.add_argument("--per-class", type=int, default=8, help="images per class (default: 8)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--output", "-o", default="samples.png", help="PNG file (default: samples.png)")
    sample.set_defaults(command=_sample)

    prototypes = commands.add_parser("prototypes", help="draw the most typical images of each class, a PNG per class")
    _with_checkpoint(prototypes)
    prototypes.add_argument("--per-class", type=int, default=4, help="images to keep per class (default: 4)")
    prototypes.add_argument("--candidates", type=int, default=32, help="images to draw per class (default: 32)")
    prototypes.add_argument("--seed", type=int, default=0)
    prototypes.add_argument("--output", "-o", default="prototypes", help="folder of the PNGs (default: prototypes)")
    prototypes.set_defaults(command=_prototypes)

    explain = commands.add_parser("explain", help="counterfactuals of test scans, or of your own: a gallery")
    _with_checkpoint(explain)
    explain.add_argument("--hospital", type=int, default=1, help="whose test scans (default: 1)")
    explain.add_argument("--num-scans", type=int, metavar="N", help="how many of them (default: the key explain)")
    explain.add_argument(
        "--method", default="", metavar="NAME",
        help="with --image: how edits are searched, a name of METHODS in jointdiff/counterfactual.py (default: "
        "DEFAULT_METHOD there)",
    )  # fmt: skip
    explain.add_argument(
        "--image", nargs="+", default=[], metavar="PATH",
        help="explain these in place of test scans: image or DICOM files, folders of them, or npz files (`images`)",
    )  # fmt: skip
    explain.add_argument(
        "--target", default="", metavar="CLASS",
        help="with --image: name or number of the wanted class, or of the finding to turn over (default: the nearest "
        "other decision)",
    )  # fmt: skip
    explain.add_argument("--output", "-o", default="explanations", help="folder of the gallery (default: explanations)")
    explain.add_argument("keys", nargs="*", metavar="KEY=VALUE", help=_KEYS + "; default: the checkpoint's own")
    explain.set_defaults(command=_explain)
    return parser


def _with_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run's checkpoints/best.safetensors or last.safetensors")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")


def _train(options: argparse.Namespace) -> None:
    run = RunConfig(num_hospitals=1)
    run = absolute_paths(parse_run_config({**to_mapping(run), **parse_overrides(options.keys)}))
    from jointdiff.standalone import train_alone
    from jointdiff.views.terminal import ProgressPrinter

    with ProgressPrinter() as progress:
        train_alone(run, hospital=options.hospital - 1, callback=progress)


def _open(options: argparse.Namespace) -> Trained:
    from jointdiff.trained import open_trained

    return open_trained(options.checkpoint, device=options.device)


def _with_keys(config: Config, texts: Sequence[str]) -> Config:
    """Return a checkpoint's configuration with run-config keys changed; its network stays what it is."""
    asked = parse_overrides(texts)
    run = absolute_paths(parse_run_config({**to_mapping(config.run), **asked}))
    if asked.get("autoencoder", config.run.autoencoder) != config.run.autoencoder:
        raise ConfigError("autoencoder cannot be changed: the checkpoint carries the one that it was trained with.")
    from jointdiff.data import info_of

    info = info_of(run)
    facts = (info.channels, info.num_outputs, info.task, run.image_size)
    own = (config.model.channels, config.model.num_outputs, config.model.task, config.model.image_size)
    if facts != own:
        raise ConfigError(
            f"The checkpoint was trained for (channels, outputs, task, image-size) = {own}, but {run.dataset} has "
            f"{facts}: choose a checkpoint that was trained on such images."
        )
    return replace(config, run=run)


def _evaluate(options: argparse.Namespace) -> None:
    from jointdiff.standalone import evaluate_checkpoint

    trained = _open(options)
    config = _with_keys(trained.config, options.keys)
    metrics = evaluate_checkpoint(trained.model, config, trained.device, space=trained.space)
    if options.json:
        print(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")


def _window(text: str) -> str | tuple[float, float]:
    if text in ("auto", "header"):
        return text
    try:
        centre, width = map(float, text.split(","))
    except ValueError:
        centre = width = math.nan
    if not (math.isfinite(centre) and math.isfinite(width) and width > 1):
        raise ConfigError(f"--window must be auto, header or CENTRE,WIDTH with a width above 1, not '{text}'.")
    return centre, width


def _predict(options: argparse.Namespace) -> None:
    from jointdiff.data.fitting import ASPECTS
    from jointdiff.scans import read_scans

    if options.aspect not in ASPECTS:
        raise ConfigError(f"--aspect must be {', '.join(ASPECTS[:-1])} or {ASPECTS[-1]}, not '{options.aspect}'.")
    window = _window(options.window)
    output = None if options.output == "-" else writable(options.output)
    trained = _open(options)
    names, scans = read_scans(options.scans, trained.config.model, window=window, aspect=options.aspect)
    probs = trained.predict(scans)
    rows = [["scan", *(f"p({name})" for name in trained.class_names), "decision"]]
    for name, row in zip(names, probs, strict=True):
        rows.append([name, *(f"{p:.6f}" for p in row), trained.decision(row)])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    if output is None:
        print(text.getvalue(), end="")
        return
    print(f"{len(names)} scans: {write_atomic(output, text.getvalue())}")


def _sample(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from jointdiff.showcase import guided_samples
    from jointdiff.views.images import grid, write_png

    if options.per_class < 1:
        raise ConfigError(f"--per-class must be at least 1, not {options.per_class}.")
    output = writable(options.output)
    trained = _open(options)
    trained.check_denoises()
    targets = np.repeat(np.arange(trained.config.model.num_outputs), options.per_class)
    generator = torch.Generator().manual_seed(options.seed)
    images = guided_samples(
        trained.model, trained.config, targets, device=trained.device, generator=generator, space=trained.space
    )
    path = write_png(output, grid(images, columns=options.per_class))
    print(f"{len(images)} samples, one row per class: {path}")


def _prototypes(options: argparse.Namespace) -> None:
    from jointdiff.prototypes import draw_prototypes
    from jointdiff.views.images import enlarge, grid, write_png

    if options.per_class < 1:
        raise ConfigError(f"--per-class must be at least 1, not {options.per_class}.")
    if options.candidates < options.per_class:
        raise ConfigError(
            f"--candidates must be at least --per-class ({options.per_class}), not {options.candidates}: prototypes "
            "are chosen among them."
        )
    folder = writable(Path(options.output, "class-0.png")).parent
    trained = _open(options)
    trained.check_denoises()
    names = trained.class_names
    for target in range(len(names)):
        trained.check_classifies(target)
    drawn = [
        draw_prototypes(
            trained.model, trained.config, target, per_class=options.per_class, num_candidates=options.candidates,
            seed=options.seed, device=trained.device, space=trained.space,
        )
        for target in range(len(names))
    ]  # fmt: skip
    for target, (name, found) in enumerate(zip(names, drawn, strict=True)):
        said = f"'{name}': the model gives it {found.num_decided} of {found.num_candidates} drawn images"
        if not len(found.images):
            (folder / f"class-{target}.png").unlink(missing_ok=True)  # of an earlier call: it would pass for this one's
            print(f"{said}, so there is no prototype.")
            continue
        path = write_png(folder / f"class-{target}.png", grid([enlarge(i, 4) for i in found.images], columns=10**6))
        low, high = found.probs.min(), found.probs.max()
        print(f"{said}; the {len(found.images)} most typical (probability {low:.2f} to {high:.2f}): {path}")
    print(
        "Prototypes are drawings, not patients. One may resemble a scan that the model was trained on: keep them here."
    )


def _explain(options: argparse.Namespace) -> None:
    folder = writable(Path(options.output, "index.html")).parent
    if not options.image and options.target:
        raise ConfigError("--target names a class for scans of your own: name them with --image.")
    trained = _open(options)
    trained.check_denoises()
    if options.image:
        _explain_own(options, trained, folder)
    else:
        _explain_test(options, trained, folder)


def _explain_own(options: argparse.Namespace, trained: Trained, folder: Path) -> None:
    from jointdiff.counterfactual import DEFAULT_METHOD
    from jointdiff.scan_explanation import explain_own_scans, new_folder, write_page

    if options.keys or options.num_scans is not None:
        raise ConfigError("--image explains these scans, so run-config keys and --num-scans mean nothing: leave them.")
    new_folder(folder)
    method = options.method or DEFAULT_METHOD
    explained = explain_own_scans(trained, options.image, target=options.target, method=method)
    page = write_page(folder, trained, explained, title=f"{len(explained.names)} scans explained by method {method}")
    for name, sentence in zip(explained.names, explained.sentences, strict=True):
        print(f"{name}: {sentence}")
    print(f"{len(explained.names)} scans explained: {page}")


def _say_progress(done: int, total: int) -> None:
    if total > PROGRESS_FROM:
        print(f"\r{done} of {total} scans explained", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _explain_test(options: argparse.Namespace, trained: Trained, folder: Path) -> None:
    from jointdiff.counterfactual import DEFAULT_METHOD
    from jointdiff.data import hospital_data
    from jointdiff.explanation import explain_site
    from jointdiff.scan_explanation import check_method

    config = _with_keys(trained.config, options.keys)
    if options.num_scans is not None:
        if options.num_scans < 1:
            raise ConfigError(f"--num-scans must be at least 1, not {options.num_scans}.")
        config = replace(config, run=replace(config.run, explain=options.num_scans))
    if config.run.explain == 0:
        raise ConfigError("explain=0 asks for no scan, and so did the checkpoint's run: give a number, as explain=64.")
    if not 1 <= options.hospital <= config.run.num_hospitals:
        raise ConfigError(f"--hospital must be 1 to {config.run.num_hospitals}, not {options.hospital}.")
    method = options.method or DEFAULT_METHOD
    check_method(method)
    trained.check_classifies()
    index = options.hospital - 1
    grades, count = explain_site(
        trained.model, hospital_data(config.run, index), config, hospital_index=index, device=trained.device,
        folder=folder, method=method, progress=_say_progress, space=trained.space,
    )  # fmt: skip
    for name, value in grades.items():
        print(f"{name:24} {value:.4f}")
    print(f"{count} scans explained: {folder / 'index.html'}")

"""`jointdiff train | evaluate | predict | sample | explain`: one site without a federation."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jointdiff.command_line import exit_code_of
from jointdiff.config import Config, RunConfig, parse_run_config, to_mapping
from jointdiff.errors import CheckpointError, ConfigError, JointDiffError
from jointdiff.overrides import absolute_paths, parse_overrides
from jointdiff.storage import writable, write_atomic

if TYPE_CHECKING:  # torch takes seconds to import: a typo must not wait for it
    import torch

    from jointdiff.model import JointModel

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
    predict.add_argument("scans", nargs="+", help="image files, folders of them, or npz files with an array `images`")
    predict.add_argument("--output", "-o", default="-", help="CSV file; - prints it (default)")
    predict.set_defaults(command=_predict)

    sample = commands.add_parser("sample", help="draw images of each class into one PNG")
    _with_checkpoint(sample)
    sample.add_argument("--per-class", type=int, default=8, help="images per class (default: 8)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--output", "-o", default="samples.png", help="PNG file (default: samples.png)")
    sample.set_defaults(command=_sample)

    explain = commands.add_parser("explain", help="counterfactuals of test scans: a gallery with grades")
    _with_checkpoint(explain)
    explain.add_argument("--hospital", type=int, default=1, help="whose test scans (default: 1)")
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


def _open(options: argparse.Namespace) -> tuple[JointModel, Config, torch.device]:
    from jointdiff import checkpoint
    from jointdiff.model import JointModel
    from jointdiff.training import select_device

    device = select_device(parse_run_config({"device": options.device}).device)
    loaded = checkpoint.load(options.checkpoint)
    model = JointModel(loaded.config.model)
    checkpoint.load_into(model, options.checkpoint)
    return model.to(device).eval(), loaded.config, device


def _check_denoises(config: Config) -> None:
    """Refuse to draw or edit with a network that was never trained to denoise: the pictures would mean nothing."""
    if not config.training.diffusion_weight:
        raise CheckpointError(
            f"The checkpoint was trained without the denoising loss (method {config.run.method}), so it can neither "
            "draw nor edit scans: take one of method joint or two-stage."
        )


def _with_keys(config: Config, texts: Sequence[str]) -> Config:
    """Return a checkpoint's configuration with run-config keys changed; its network stays what it is."""
    run = absolute_paths(parse_run_config({**to_mapping(config.run), **parse_overrides(texts)}))
    from jointdiff.data import dataset_info

    info = dataset_info(run.dataset, data_root=run.data_root, image_size=run.image_size)
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

    model, config, device = _open(options)
    metrics = evaluate_checkpoint(model, _with_keys(config, options.keys), device)
    if options.json:
        print(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")


def _predict(options: argparse.Namespace) -> None:
    from jointdiff.data import dataset_info
    from jointdiff.evaluation import predict
    from jointdiff.scans import read_scans

    output = None if options.output == "-" else writable(options.output)
    model, config, device = _open(options)
    names, scans = read_scans(options.scans, config.model)
    probs = predict(model, scans, device=device)
    try:
        info = dataset_info(config.run.dataset, data_root=config.run.data_root, image_size=config.model.image_size)
        classes = list(info.class_names)
    except JointDiffError:  # the data the model was trained on need not be here
        classes = [f"class {k}" for k in range(probs.shape[1])]
    rows = [["scan", *(f"p({name})" for name in classes), "decision"]]
    for name, row in zip(names, probs, strict=True):
        if config.model.task == "multi-class":
            decision = classes[int(row.argmax())]
        else:
            decision = "; ".join(c for c, p in zip(classes, row, strict=True) if p > 0.5) or "none"
        rows.append([name, *(f"{p:.6f}" for p in row), decision])
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
    model, config, device = _open(options)
    _check_denoises(config)
    targets = np.repeat(np.arange(config.model.num_outputs), options.per_class)
    generator = torch.Generator().manual_seed(options.seed)
    images = guided_samples(model, config, targets, device=device, generator=generator)
    path = write_png(output, grid(images, columns=options.per_class))
    print(f"{len(images)} samples, one row per class: {path}")


def _explain(options: argparse.Namespace) -> None:
    from jointdiff.data import hospital_data
    from jointdiff.explanation import explain_site

    folder = writable(Path(options.output, "index.html")).parent
    model, config, device = _open(options)
    _check_denoises(config)
    config = _with_keys(config, options.keys)
    if config.run.explain == 0:
        raise ConfigError("explain=0 asks for no scan, and so did the checkpoint's run: give a number, as explain=64.")
    if not 1 <= options.hospital <= config.run.num_hospitals:
        raise ConfigError(f"--hospital must be 1 to {config.run.num_hospitals}, not {options.hospital}.")
    index = options.hospital - 1
    grades, count = explain_site(
        model, hospital_data(config.run, index), config, hospital_index=index, device=device, folder=folder
    )
    for name, value in grades.items():
        print(f"{name:24} {value:.4f}")
    print(f"{count} scans explained: {folder / 'index.html'}")

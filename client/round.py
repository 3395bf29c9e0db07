"""One local piece of work, without Flower: instructions and tensors in, a report and tensors out.

What happens on each kind of message stands in one function each; `run` checks who asks and picks it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from client import download, latents, personal_head, state, upload
from client.site import Site
from jointdiff import codecs, local_work, protocol
from jointdiff.config import Config
from jointdiff.data import class_table
from jointdiff.data.base import class_counts
from jointdiff.errors import RefusedError
from jointdiff.explanation import explain_site
from jointdiff.identity import check_identity
from jointdiff.ledger_file import LEDGER_FILE
from jointdiff.model import JointModel
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.round_profile import LOAD, SAVE
from jointdiff.sample_grades import PREFIX
from jointdiff.score_histogram import NUM_BINS
from jointdiff.sharing import Sharing
from jointdiff.small_counts import grades_without_small, is_small, shown, table_without_small, withhold
from jointdiff.statistics import COARSE_BINS, ClassificationStatistics

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
Tensors = dict[str, np.ndarray]
Answer = tuple[RoundReport, Tensors]


def run(instructions: RoundInstructions, tensors: Mapping[str, np.ndarray]) -> Answer:
    """Do what the server asks of this hospital.

    Args:
        instructions: What to do, with the run's resolved configuration.
        tensors: The model's state_dict as float32 arrays, or as the instructions' codec has it; empty for DESCRIBE.

    Returns:
        The report, and what travels beside it: weights or their encoded change (TRAIN), mergeable statistics (HEAD,
        EVALUATE), or nothing.
        In a run with secure aggregation weights and statistics for the head are masked.

    Raises:
        RefusedError: The server runs other code, or asks for a kind of work that this site does not know.
        JointDiffError: Data or device are not there.
    """
    started = time.perf_counter()
    check_identity(instructions.code_version, instructions.code_hash)
    if instructions.kind not in _WORK:
        raise RefusedError(f"This site does not know the kind of work that was asked; it knows {', '.join(_WORK)}.")
    if not _RUN_NAME.fullmatch(instructions.run_name):
        raise RefusedError("The name of the run is no plain name: the site uses it for its own folders.")
    site = Site(instructions, Config.from_dict(instructions.config))
    if site.config.own_round(instructions.round) < 0:
        raise RefusedError("The number of the round is none of the phase that the instructions name.")
    with site.timed(LOAD):
        sent = download.decode(instructions, site.config, tensors)
    report, answer = _WORK[instructions.kind](site, sent)
    duration_s = time.perf_counter() - started
    metrics = {**report.metrics, **site.seconds_of_work(duration_s)}
    return replace(report, device=site.device_name, duration_s=duration_s, metrics=metrics), answer


def _autoencoder(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    latents.keep(site.instructions, site.config, tensors, site.folder)
    _ = site.inputs  # computed here, so that no round waits for them
    return RoundReport(site.instructions.hospital), {}


def _describe(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    minimum = site.policy.min_cell_count
    table = table_without_small(class_table(site.data), minimum, multi_label=site.config.model.task == "multi-label")
    if site.config.private:
        table |= dict.fromkeys(("labelled", "num_labelled", "num_unlabelled"))
    table |= {"min_cell_count": minimum, "server_samples": site.policy.server_samples}
    return replace(site.report(site.data.train), table=table), {}


def _train(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    site.check_sending()
    ask, config = site.instructions, site.config
    with site.timed(LOAD):
        start, reference = download.complete(ask, config, tensors, site.folder)
    if config.run.secure_aggregation:
        site.secure_sum.check_ready()  # before the work, not after it
    report, weights = _trained(site, start)
    with site.timed(SAVE):
        download.keep(ask, config, reference, weights, site.folder)
        personal_head.keep(
            ask, config, num_labels=site.data.train.num_labelled, sent=start, trained=weights, site_folder=site.folder
        )
        weights = {name: weights[name] for name in Sharing.of(config).up(weights, config.own_round(ask.round))}
        if config.run.secure_aggregation:
            return report, site.secure_sum.mask_change(reference, weights, report)
        return upload.pack(ask, config, report, reference=reference, trained=weights, site_folder=site.folder)


def _trained(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    """Return the report and the weights after this round's local steps, in the clear."""
    if site.config.private:
        from client.private_round import train_privately  # Opacus is slow to load, and few need it

        return train_privately(site, tensors)
    ask = site.instructions
    if (site.folder / LEDGER_FILE).is_file():
        from client.private_round import charge_plain_round

        charge_plain_round(site)
    model = site.model(tensors)
    with site.timed(LOAD):
        old_state = state.load(site.folder, ask.run_name, before=ask.round, after=site.config.rounds_before)
    metrics, new_state = local_work.train(
        model,
        site.inputs,
        site.config,
        round_number=site.config.own_round(ask.round),
        hospital_index=ask.hospital_index,
        device=site.device,
        state=old_state,
    )
    with site.timed(SAVE):
        state.save(site.folder, ask.run_name, ask.round, new_state)
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    return replace(site.report(site.data.train), metrics=metrics), weights


def _head(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    site.check_sending()
    if site.config.private:
        raise RefusedError("In a private run no sums over a site's features leave it: they are not noised.")
    model, pseudo = site.model(tensors), site.instructions.payload.get("pseudo") is True
    features = site.features(model) if isinstance(model, JointModel) else None
    statistics = local_work.sums_of(model, site.inputs, site.config, site.device, pseudo=pseudo, features=features)
    if site.config.run.secure_aggregation:
        statistics = site.secure_sum.mask_sums(statistics)
    elif not codecs.parse(site.config.run.upload).plain:
        statistics = upload.pack_sums(statistics)
    return site.report(site.data.train), statistics


def _keys(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return replace(site.report(site.data.train), payload=site.secure_sum.show_keys()), {}


def _shares(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return RoundReport(site.instructions.hospital, payload=site.secure_sum.deal_shares()), {}


def _unmask(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return RoundReport(site.instructions.hospital, payload=site.secure_sum.reveal()), {}


def _evaluate(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    model, minimum = site.model(tensors), site.policy.min_cell_count
    report = site.report(site.data.test)
    answer: Tensors = {}
    for part, images in (("test", site.inputs.test), ("heldout", site.inputs.heldout)):
        if images is None or not len(images):
            continue
        num_bins = COARSE_BINS if minimum else NUM_BINS
        found: local_work.Statistics | None = local_work.statistics_of(
            model, images, site.config, site.device, num_bins=num_bins
        )
        if isinstance(found, ClassificationStatistics) and minimum:
            found, names = withhold(found, minimum)
            report.withheld.extend(f"{part}.{name}".removesuffix(".") for name in names)
        elif found is not None and is_small(found.num_images, minimum):
            found, names = None, [""]
            report.withheld.extend(f"{part}.{name}".removesuffix(".") for name in names)
        if found is not None:
            answer |= {f"{part}.{name}": array for name, array in found.to_arrays().items()}
    return report, answer


def _explain(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    if not site.policy.render_explanations:  # the server asks for no minimum of answers here: a refusal stops no run
        raise RefusedError("The policy of this site renders no explanations at the end of a run.")
    site.check_privacy()
    model = site.model(tensors)
    if not isinstance(model, JointModel):
        raise RefusedError("An autoencoder decides nothing, so there is nothing to explain.")
    folder = site.folder / "explanations" / site.instructions.run_name
    grades, num_graded = explain_site(
        model,
        site.data,
        site.config,
        hospital_index=site.instructions.hospital_index,
        device=site.device,
        folder=folder,
        site=site.folder,
        space=site.space,
    )
    minimum, report = site.policy.min_cell_count, site.report(site.data.test)
    report = replace(report, num_images=shown(num_graded, minimum))
    withheld = set(report.withheld) - {"num_images"} | ({"num_images"} if is_small(num_graded, minimum) else set())
    if site.policy.explanations_report == "none":
        return replace(report, num_labels=0, withheld=sorted(withheld | {"grades", "num_labels"})), {}
    if site.config.private:  # the referee and the realism of samples are computed from training images: they stay here
        grades = {k: v for k, v in grades.items() if "referee" not in k and not k.startswith(PREFIX)}
    counts = class_counts(site.data.hidden_labels, site.config.model.num_outputs)
    told = grades_without_small(grades, minimum, counts, PREFIX)
    withheld |= {"grades"} if told.keys() != grades.keys() else set()
    return replace(report, metrics=told, withheld=sorted(withheld)), {}


_WORK: dict[str, Callable[[Site, Mapping[str, np.ndarray]], Answer]] = {
    protocol.AUTOENCODER: _autoencoder,
    protocol.DESCRIBE: _describe,
    protocol.TRAIN: _train,
    protocol.HEAD: _head,
    protocol.EVALUATE: _evaluate,
    protocol.EXPLAIN: _explain,
    protocol.KEYS: _keys,
    protocol.SHARES: _shares,
    protocol.UNMASK: _unmask,
}

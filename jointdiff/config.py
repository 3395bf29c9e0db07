"""The one strict configuration tree of a run: what is asked (RunConfig), which network, which training.

Order, later wins: the dataclasses' defaults < YAML presets in configs/ < run-config keys.
Keys are written in kebab-case wherever a user meets them (`num-rounds`), fields in snake_case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from jointdiff import aggregation_rules, settings, sharing
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.autoencoder_keys import AUTOENCODER, check_reconstruction
from jointdiff.errors import ConfigError, nearest
from jointdiff.phase_keys import PhaseConfig, autoencoder_run
from jointdiff.presets import preset_names, read_preset
from jointdiff.pseudo_label_keys import check_pseudo_labels
from jointdiff.run_keys import ROBUST_STRATEGIES, check_run
from jointdiff.training_keys import check_head, check_rates, check_views

SITES = "sites"


@dataclass(frozen=True)
class RunConfig:
    """What the user asks for: exactly the run-config keys of the simulations."""

    dataset: str = "phantom"  # phantom[:variant] | a MedMNIST name | npz:PATH | sites = the hospitals' own data
    data_root: str = ""  # folder of files already there; '' = medmnist's own default
    classes: str = ""  # dataset=sites: names of the classes or findings, "normal,pneumonia"; sites map their own
    channels: int = 1  # dataset=sites: 1 grey, 3 RGB
    task: str = "multi-class"  # dataset=sites: multi-class | multi-label
    image_size: int = 28  # pixels per side
    num_hospitals: int = 3
    hospitals: str = ""  # dataset=sites: who takes part, by the names of their admission, "st-mary,city"
    num_labels: int = 12  # labels kept in all hospitals together; 0 = all
    label_split: str = "even"  # even | dirichlet:ALPHA | hospitals:K = the first K hold all | server
    server_data: str = ""  # label-split=server over dataset=sites: npz of the server's own labelled images
    server_steps: int = -1  # label-split=server: steps on its own images after a round; -1 = local-steps, 0 = none
    partition: str = "iid"  # iid | dirichlet:ALPHA | quantity:ALPHA | gaps:N | scanner | by-source
    split_seed: int = 0  # drives partition and which labels are kept
    audit_holdout: float = 0.0  # share of each hospital's training images never trained on: non-members of its audit
    seed: int = 0  # drives initial weights and training
    method: str = "joint"  # joint | two-stage | fixmatch | supervised | autoencoder
    num_rounds: int = 12
    local_steps: int = 30  # optimiser steps per hospital and round
    batch_size: int = 24  # images per step
    strategy: str = "fedavg"  # fedavg | fedprox | fedadam | fedyogi | trimmed-mean | median | krum | multi-krum
    weighting: str = "images"  # a hospital's weight in the mean: images | labels | equal | confidence
    head_weighting: str = ""  # the same for the classifier head alone; '' = as weighting
    decoder_weighting: str = ""  # the same for the decoder alone; '' = as weighting
    personal: str = ""  # '' | head = each hospital with labels trains and keeps a classifier head of its own
    proximal_mu: float = 0.01  # strategy fedprox: pull of the local weights to those sent
    server_learning_rate: float = 0.01  # strategies fedadam, fedyogi
    secure_aggregation: bool = False  # the server learns sums of the hospitals' updates, and no single one
    upload: str = "fp32"  # what hospitals send: fp32 = weights | bf16, int8, top-k:SHARE = their change, encoded
    download: str = "fp32"  # what the server sends: fp32 | bf16 | int8
    share: str = "all"  # all | decoder-every:K = the decoder is merged every K-th round; frozen parts never go up
    num_faulty: int = 1  # hospitals whose updates the robust rules can bear
    min_hospitals: int = 0  # good replies that a round needs; 0 = more than half
    participation: float = 1.0  # share of the hospitals that train in a round, drawn anew for each; at least one
    round_timeout_s: int = 3600  # for one hospital's one answer, the start of its process included
    round_retries: int = 2  # how often a hospital that was lost is asked again, and a round with too few is repeated
    target_epsilon: float = (
        0.0  # differential privacy: what the whole run may cost each hospital; 0 = see noise-multiplier
    )
    noise_multiplier: float = 0.0  # the same, said as noise; 0 = found from target-epsilon; both 0 = no privacy
    delta: float = 1e-4  # of every epsilon; below one over a hospital's number of records
    initial_weights: str = ""  # checkpoint that the run starts from; '' = drawn from the seed
    autoencoder: str = ""  # file of a frozen autoencoder, in whose latents the run works; '' = on pixels
    latent: bool = False  # two phases in one run: train the autoencoder of the scans, then the method on its latents
    autoencoder_rounds: int = 4  # latent: rounds of the first phase; num-rounds are those of the second
    autoencoder_model: str = "auto"  # latent: a name in configs/autoencoder/; auto = by image-size
    autoencoder_preset: str = ""  # latent: training preset of the first phase; '' = the autoencoder's own
    autoencoder_budget: float = 0.5  # latent: share of target-epsilon that the first phase may spend
    model: str = "auto"  # a name in configs/model/ (method=autoencoder: configs/autoencoder/); auto = by image-size
    preset: str = ""  # a name in configs/training/ or a YAML file; '' = the method's own
    eval_split: str = "test"  # val = to choose settings without touching the test split
    eval_scanners: int = (
        0  # evaluation images as this many scanners would show them that no hospital has; 0 = as they are
    )
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    speed: str = "auto"  # auto | plain = fp32, nothing compiled | compiled = torch.compile on any device (speed.py)
    explain: int = 64  # scans explained and graded per hospital at the end; 0 = none
    run_name: str = ""  # '' = made from the data set, the method and the time
    home: str = ""  # '' = $JOINTDIFF_HOME, else ~/.jointdiff
    sites_home: str = ""  # '' = inside the run's folder; else sites keep their life across runs
    resume: bool = False  # carry on the unfinished run of this run-name, with its own settings

    @property
    def over_sites(self) -> bool:
        """Whether the hospitals bring data of their own, as real ones do; else each is dealt a share of a data set."""
        return self.dataset == SITES

    @property
    def class_names(self) -> tuple[str, ...]:
        """With dataset=sites: what `classes` says."""
        return _names(self.classes)

    @property
    def weightings(self) -> dict[str, str]:
        """How hospitals are weighted in the mean of each part of the network (sharing.PARTS)."""
        return {
            sharing.ENCODER: self.weighting,
            sharing.HEAD: self.head_weighting or self.weighting,
            sharing.DECODER: self.decoder_weighting or self.weighting,
        }

    @property
    def is_robust(self) -> bool:
        """Whether the strategy bears wrong updates; it must see every one."""
        return self.strategy in ROBUST_STRATEGIES

    @property
    def hospital_names(self) -> tuple[str, ...]:
        """Who takes part, in order."""
        return _names(self.hospitals) or tuple(f"hospital-{k + 1}" for k in range(self.num_hospitals))

    @property
    def num_asked(self) -> int:
        """How many hospitals train in a round."""
        return settings.num_asked(self.num_hospitals, self.participation)


@dataclass(frozen=True)
class ModelConfig:
    """The joint UNet. Channels and size of the images come from the data, those of latents from the autoencoder."""

    name: str = "unet-28"
    channels: int = 1
    image_size: int = 28
    num_outputs: int = 2  # classes, or labels of a multi-label task
    task: str = "multi-class"  # multi-class | multi-label
    patch_size: int = 1  # pixels per side folded into channels before the first convolution
    width: int = 16  # channels of the first level
    multipliers: tuple[int, ...] = (1, 2, 4)  # width of each level
    num_blocks: int = 1  # residual blocks per level (the decoder has one more)
    attention_levels: tuple[int, ...] = (2,)  # levels with self-attention, 0 = full size
    dropout: float = 0.0
    latent_channels: int = 0  # channels of a latent; 0 = the network works on pixels
    latent_size: int = 0  # positions per side of a latent
    autoencoder: str = ""  # fingerprint of the frozen autoencoder whose latents the network knows

    @property
    def latent(self) -> bool:
        """Whether the network works on latents of images, not on their pixels."""
        return self.latent_channels > 0

    @property
    def input_channels(self) -> int:
        """Channels of what the network sees."""
        return self.latent_channels or self.channels

    @property
    def input_size(self) -> int:
        """Pixels, or positions of a latent, per side of what the network sees."""
        return self.latent_size or self.image_size


@dataclass(frozen=True)
class TrainingConfig:
    """How a hospital trains. One YAML file in configs/training/ per method."""

    schedule: str = "cosine"  # cosine | linear
    prediction: str = "v"  # v | eps
    num_timesteps: int = 1000
    snr_gamma: float = 5.0  # min-SNR weighting of the denoising loss; 0 disables
    diffusion_weight: float = 1.0
    class_weight: float = 0.01  # w_c
    pseudo_weight: float = 0.01  # w_u
    warmup_fraction: float = 0.5  # share of the rounds with the denoising loss alone
    pseudo_policy: str = "freematch"  # fixed | freematch | flexmatch | softmatch | mixture (with teacher global alone)
    teacher: str = (
        "global"  # local = the model itself | global = the weights sent | local-ema | agreement = local, global
    )
    teacher_ema_decay: float = 0.9  # of teacher local-ema, from step to step, from the weights sent
    alignment: str = "none"  # none | uniform = classes equally common | estimated = as common as the mixture finds them
    threshold: float = 0.95  # of the policies fixed, flexmatch and mixture
    pseudo_start_fraction: float = 0.0  # share of the rounds before pseudo-labels join
    pseudo_ramp_fraction: float = 0.0  # share of the rounds, from there, over which their weight rises from 0
    labelled_view: str = "strong"  # strong | weak: views of the labelled images in the label term
    latent_views: str = "scans"  # on latents, views are made of: scans, and encoded | latents (faster, and far worse)
    labelled_batch: int = 16  # labelled images per step, drawn with replacement; never more than batch-size
    unlabelled_ratio: float = 1.0  # unlabelled images per image of the batch in the pseudo-label term
    head: str = "ridge"  # ridge = solved on merged sums after every round | ridge-start = until labels join | gradient
    ridge: float = 1.0  # L2 penalty of the solved head, on standardised features
    head_self_training: int = 0  # times that a solved head is solved again with the images that it is sure of
    head_pseudo_ridge: float = 0.1  # the L2 penalty in these
    head_calibration: bool = (
        False  # two classes, ridge-start: at the end the learned logits get the solved head's scale
    )
    head_labelled_share: float = 0.2  # weight of the labelled images in these, the others have the rest
    head_views: int = 20  # strong views of each labelled image that the head is solved on; 0 = the images as they are
    learning_rate: float = 1e-3
    lr_warmup_fraction: float = 0.05
    label_lr_scale: float = 1.0  # factor on the learning rate in the rounds after the denoising warm-up
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # norm; 0 disables
    ema_decay: float = 0.25  # of the server's average over rounds; 0 disables
    autocast: str = "auto"  # auto | bf16 | off
    l1_weight: float = 1.0  # method autoencoder: of the mean absolute error per pixel
    l2_weight: float = 1.0  # method autoencoder: of the mean squared error per pixel
    feature_weight: float = 0.1  # method autoencoder: of the distance in the fixed feature net; 0 disables
    kl_weight: float = 1e-4  # method autoencoder: of the latents' distance to a normal distribution
    max_grad_norm: float = 1.0  # private runs: largest norm of one record's gradient
    noise_multiplicity: int = 1  # private runs: draws of timestep and noise per record (Dockhorn et al. 2023)
    body_lr_scale: float = 1.0  # private runs: learning rate of all but the head, as a share; 0 freezes the body
    physical_batch: int = 64  # private runs: records in one pass; a Poisson batch is done in parts


@dataclass(frozen=True)
class Config:
    """The resolved configuration: saved in the run's folder, sent with every instruction."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    autoencoder: AutoencoderConfig | None = None  # of runs that train one; no section where there is none
    autoencoder_training: TrainingConfig | None = None  # of a run of two phases, as a whole
    phase: PhaseConfig | None = None  # of one phase of such a run

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return nested plain dicts with kebab-case keys, fit for YAML and JSON."""
        sections = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: to_mapping(section) for name, section in sections.items() if section is not None}

    @property
    def private(self) -> bool:
        """Whether hospitals train with differential privacy."""
        return self.run.target_epsilon > 0 or self.run.noise_multiplier > 0

    @property
    def rounds_before(self) -> int:
        """Rounds of the run that lie before those of this configuration: 0 but in a second phase."""
        return self.phase.rounds_before if self.phase else 0

    @property
    def all_rounds(self) -> int:
        """Rounds of the whole run."""
        if self.phase:
            return self.phase.all_rounds
        return self.run.num_rounds + (self.run.autoencoder_rounds if self.run.latent else 0)

    def own_round(self, round_number: int) -> int:
        """Return the number within the phase of a round of the run: what schedules and seeds go by."""
        return round_number - self.rounds_before

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: A section or key is unknown, or a value has the wrong type.
        """
        sections = {
            "run": RunConfig,
            "model": ModelConfig,
            "training": TrainingConfig,
            "autoencoder": AutoencoderConfig,
            "autoencoder_training": TrainingConfig,
            "phase": PhaseConfig,
        }
        for key in tree:
            if key not in sections:
                raise ConfigError(f"Unknown section '{key}' in the configuration: {nearest(key, sections)}")
        always = {name: tree.get(name, {}) for name in ("run", "model", "training")}
        return cls(
            **{name: from_mapping(sections[name], section, name) for name, section in {**always, **tree}.items()}
        )


T = TypeVar("T")


def to_mapping(section: Any) -> dict[str, Any]:
    """Return a dataclass as a dict with kebab-case keys; tuples become lists."""
    items = {}
    for f in fields(section):
        value = getattr(section, f.name)
        items[f.name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
    return items


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str, base: T | None = None) -> T:
    """Build `kind` from kebab-case keys over `base` (or its defaults), strictly.

    Raises:
        ConfigError: A key is unknown (the nearest one is named), or a value has the wrong type.
    """
    known = {f.name.replace("_", "-"): f.name for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"Unknown key '{key}' in {where}: {nearest(key, known)}")
        changes[known[key]] = _coerce(value, hints[known[key]], f"{key} ({where})")
    return dataclasses.replace(base or kind(), **changes)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, name: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        pass
    elif hint in (int, float, str, bool) and isinstance(value, hint):
        return value
    elif hint == tuple[int, ...] and isinstance(value, list | tuple) and all(type(v) is int for v in value):
        return tuple(value)
    wanted = getattr(hint, "__name__", str(hint)) if hint != tuple[int, ...] else "list of int"
    raise ConfigError(f"{name} must be of type {wanted}, not {type(value).__name__}: {value!r}")


def parse_run_config(values: Mapping[str, Any]) -> RunConfig:
    """Check the run-config keys and every value that can be checked without data.

    Raises:
        ConfigError: Unknown key, wrong type, or a value out of range; says what to do.
    """
    run = from_mapping(RunConfig, values, "run-config")
    check_run(run)
    return run


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def resolve(run: RunConfig, *, channels: int, num_outputs: int, task: str) -> Config:
    """Fill in presets: configs/model/<model>.yaml and configs/training/<preset or method>.yaml.

    Args:
        channels, num_outputs, task: What the data set says of itself.

    Raises:
        ConfigError: A preset is missing or holds an unknown key, or does not go with a key of the run.
        CheckpointError: The autoencoder that the run names cannot be read.
    """
    encodes = run.method == AUTOENCODER
    autoencoder = autoencoder_config(run.image_size, channels, run.model) if encodes else None
    autoencoder_training: TrainingConfig | None = None
    latents: dict[str, Any] = {}
    if run.latent:
        first = resolve(autoencoder_run(run), channels=channels, num_outputs=num_outputs, task=task)
        autoencoder, autoencoder_training = first.autoencoder, first.training
        assert autoencoder is not None
        latent_channels, latent_size, _ = autoencoder.latent_shape
        latents = {"latent-channels": latent_channels, "latent-size": latent_size}
    if run.autoencoder:
        from jointdiff.latent_run import chosen, model_keys  # brings torch, which takes seconds, and few need it

        latents = model_keys(chosen(run, channels=channels))
    size = int(latents.get("latent-size", run.image_size))
    name = run.model if run.model != "auto" and not encodes else _model_for(size)
    data = {"name": name, "channels": channels, "image-size": run.image_size, "num-outputs": num_outputs, "task": task}
    data |= latents
    model = from_mapping(ModelConfig, {**read_preset("model", name), **data}, f"model preset '{name}'")
    preset = preset_of(run)
    training = from_mapping(TrainingConfig, read_preset("training", preset), f"training preset '{preset}'")
    check_rates(training)
    check_views(training)
    check_head(training)
    check_reconstruction(training)
    check_pseudo_labels(training, task)
    config = Config(
        run=run, model=model, training=training, autoencoder=autoencoder, autoencoder_training=autoencoder_training
    )
    aggregation_rules.check_training(config)
    return config


def trains_autoencoder(config: Config) -> bool:
    """Tell whether a run trains the autoencoder of scans, and no classifier."""
    return config.run.method == AUTOENCODER


def preset_of(run: RunConfig) -> str:
    """Return the name or file of a run's training preset: the one that is asked for, else its method's own.

    A method may have one of its own for private runs (joint-private), and one for runs on latents (joint-latent).
    """
    private, known = run.target_epsilon > 0 or run.noise_multiplier > 0, preset_names("training")
    on_latents = run.latent or bool(run.autoencoder)
    kinds = [kind for kind, wanted in (("private", private), ("latent", on_latents)) if wanted]
    own = [name for kind in kinds if (name := f"{run.method}-{kind}") in known]
    return run.preset or next(iter(own), run.method)


def _model_for(image_size: int) -> str:
    if image_size <= 32:
        return "unet-28"
    return "unet-64" if image_size <= 64 else "unet-128"


def autoencoder_config(image_size: int, channels: int, name: str = "auto") -> AutoencoderConfig:
    """Return the autoencoder of a preset in configs/autoencoder/, for images of this size.

    Args:
        name: The preset; auto = by image size: the smallest that is made for it, kl-256 beyond.

    Raises:
        ConfigError: There is no such preset, it holds an unknown key, or it does not go with the image size.
    """
    if name == "auto":
        name = next((f"kl-{size}" for size in (64, 128, 224) if image_size <= size), "kl-256")
    data = {"name": name, "channels": channels, "image-size": image_size}
    found = from_mapping(
        AutoencoderConfig, {**read_preset("autoencoder", name), **data}, f"autoencoder preset '{name}'"
    )
    try:
        found.check()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found

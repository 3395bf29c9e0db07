"""Record-level differential privacy: Poisson batches, clipped gradients, noise (Abadi et al. 2016), on Opacus.

The unit is one record (or one patient: `PoissonBatches`). Adjacency: one unit added or removed; the number of units is
taken as public. All randomness that protects comes from the operating system at the site, never from the run's seed,
and is never stored.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer

from jointdiff.aggregation_rules import by_labels
from jointdiff.config import Config
from jointdiff.data.base import ImageSet
from jointdiff.errors import ConfigError


def refuse_what_cannot_be_private(config: Config) -> None:
    """Check that nothing in a configuration breaks differential privacy.

    Raises:
        ConfigError: Something does; says what, why, and what to take instead.
    """
    run, training = config.run, config.training
    pseudo = training.pseudo_weight > 0
    for wrong, what, why, instead in (
        (
            training.head != "gradient", f"head={training.head}",
            "it is solved from sums over the sites' features, which are not noised", "head: gradient",
        ),
        (
            pseudo and training.pseudo_policy != "fixed", f"pseudo-policy={training.pseudo_policy}",
            "it learns from all of a site's images together, outside the clipped and noised steps",
            "pseudo-policy: fixed",
        ),
        (
            pseudo and training.alignment != "none", f"alignment={training.alignment}",
            "it learns from all of a site's images together, outside the clipped and noised steps", "alignment: none",
        ),
        (
            pseudo and training.teacher not in ("local", "global"), f"teacher={training.teacher}",
            "it is not built for private steps", "teacher: global or local",
        ),
        (
            training.autocast == "bf16", "autocast=bf16",
            "clipping needs the norms in fp32", "autocast: auto (fp32 in private runs)",
        ),
        (
            run.speed == "compiled", "speed=compiled",
            "per-record gradients need the network as it is", "speed=auto (nothing compiled in private runs)",
        ),
        (
            bool(by_labels(run)), by_labels(run),
            "the number of labels, or of pseudo-labels, would leave the sites unnoised", "images or equal",
        ),
        (
            run.strategy == "fedprox", "strategy=fedprox",
            "it is not built for private steps", "strategy=fedavg",
        ),
        (training.max_grad_norm <= 0, f"max-grad-norm={training.max_grad_norm}", "nothing would be clipped", "1.0"),
        (training.noise_multiplicity < 1, f"noise-multiplicity={training.noise_multiplicity}",
         "every record needs one draw of noise at least", "1"),
        (training.physical_batch < 1, f"physical-batch={training.physical_batch}",
         "a pass needs one record at least", "64"),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(f"A private run cannot have {what}: {why}. Take {instead}.")


def num_units(images: ImageSet) -> int:
    """Return how many units of privacy a set holds: patients where they are known, else images."""
    return len(images) if images.patients is None else len(np.unique(images.patients))


def system_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device` whose seed comes from the operating system and is kept nowhere else."""
    generator = torch.Generator(device=device)
    generator.manual_seed(secrets.randbits(63))
    return generator


class PoissonBatches:
    """Draws batches in which every unit is present with the same probability, independently of all others.

    Args:
        num_records: N.
        sample_rate: In (0,1].
        generator: On the CPU.
        patients: Whom each record belongs to, integers [N], where the unit is the patient: a patient who is drawn
            gives one record, drawn among theirs, so that nobody counts more than once in a step. None: the unit is the
            record.
    """

    def __init__(
        self, num_records: int, sample_rate: float, generator: torch.Generator, *, patients: np.ndarray | None = None
    ) -> None:
        units = np.arange(num_records) if patients is None else np.unique(patients, return_inverse=True)[1].ravel()
        counts = np.bincount(units, minlength=0)
        self._records = torch.as_tensor(np.argsort(units, kind="stable"))  # unit by unit
        self._counts = torch.as_tensor(counts)
        self._starts = self._counts.cumsum(0) - self._counts
        self._rate, self._generator = sample_rate, generator

    @property
    def num_units(self) -> int:
        """How many records, or patients, are drawn from."""
        return len(self._counts)

    def draw(self) -> torch.Tensor:
        """Return the indices of one batch's records, int64 [B]; B varies and may be 0."""
        drawn = (torch.rand(self.num_units, generator=self._generator, dtype=torch.float64) < self._rate).nonzero()[
            :, 0
        ]
        among = (torch.rand(len(drawn), generator=self._generator) * self._counts[drawn]).long()
        return self._records[self._starts[drawn] + among.minimum(self._counts[drawn] - 1)]


class PrivateSteps:
    """Optimiser steps on clipped, noised gradients of per-record losses.

    Every forward pass of a batch must hold the same records in the same order; their losses are summed per record, and
    there is one backward pass: a second one would count a record twice.

    Args:
        model: Is trained in place. Use it as a context manager: the hooks are taken off again at the end.
        optimizer: Over the model's trainable parameters.
        noise_multiplier: sigma; the noise on the sum of clipped gradients has standard deviation sigma * C.
        max_grad_norm: C, the largest norm of one record's gradient.
        expected_batch: sample rate * units: what the noised sum is divided by.
        generator: Of the noise, on the model's device.

    Raises:
        ConfigError: A layer has no per-record gradients.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch: float,
        generator: torch.Generator,
    ) -> None:
        try:
            self._hooked = GradSampleModule(model, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise ConfigError(
                f"The model cannot be trained privately: {' '.join(str(error).split())} Take a model without it."
            ) from None
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",  # `finish` divides: the expected batch need not be a whole number
            generator=generator,
        )
        self._model, self._expected_batch = model, expected_batch
        self._so_far: list[torch.Tensor | None] | None = None  # the sum before the `add` that is under way
        # Opacus 1.6 reads a convolution's input as if it lay contiguously: of any other layout (a transposed tensor, as
        # in attention; channels last) it takes wrong numbers, without a word.
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        self._layouts = [c.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)) for c in convolutions]

    def __enter__(self) -> PrivateSteps:
        """Start with empty gradients."""
        self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks and all that they left off the model."""
        self._clear()
        self._hooked.to_standard_module()
        for hook in self._layouts:
            hook.remove()

    def add(self, losses: torch.Tensor) -> None:
        """Clip the gradients of some of the batch's records and add them up: all of them, or none if it breaks off.

        Args:
            losses: One scalar per record, [n] with n > 0, in the order of the forward passes.
        """
        parameters = self._optimizer.params
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the images need no gradient
            losses.sum().backward()
        # A record that counted twice would break the bound on what one can do: the sum so far is put aside, and what
        # joins both in the end asks for no memory.
        self._so_far = [p.summed_grad for p in parameters]
        for parameter in parameters:
            parameter.summed_grad = None
        self._optimizer.clip_and_accumulate()
        for parameter, so_far in zip(parameters, self._so_far, strict=True):
            if so_far is not None:
                parameter.summed_grad += so_far
            parameter.grad_sample = None
        self._so_far = None

    def forget(self) -> None:
        """Drop what a forward pass or an `add` that broke off has left: the sum is what it was before."""
        if self._so_far is not None:
            for parameter, so_far in zip(self._optimizer.params, self._so_far, strict=True):
                parameter.summed_grad = so_far
            self._so_far = None
        for parameter in self._optimizer.params:
            parameter.grad = parameter.grad_sample = None
            parameter._forward_counter = 0  # Opacus counts the passes whose backward is to come
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)

    def finish(self) -> None:
        """Noise the sum, divide it by the expected batch size, and step. A batch without records is noise alone."""
        for parameter in self._optimizer.params:
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter)
        self._optimizer.add_noise()
        for parameter in self._optimizer.params:
            parameter.grad /= self._expected_batch
        self._optimizer.original_optimizer.step()
        self._clear()

    def _clear(self) -> None:
        for parameter in self._optimizer.params:
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None


def chunks(index: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Split a batch's indices into parts that one pass can hold."""
    for start in range(0, len(index), size):
        yield index[start : start + size]

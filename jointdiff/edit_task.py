"""What a search for counterfactuals is asked: settings, and a batch of scans with the margins that they should reach.

Shapes: images [N,C,H,W] in [-1,1]; targets [N] int64 (a class, or of a multi-label task the label to turn over). A
margin is log p / (1 - p) of what is wanted; it has no ceiling, so its gradient does not fade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from jointdiff.diffusion import add_noise
from jointdiff.model import JointModel
from jointdiff.sampling import Denoiser, LogProb, denoiser, guide_to_margin, spaced_timesteps


@dataclass(frozen=True)
class CounterfactualSettings:
    """How an edit is searched."""

    confidence: float = 0.95  # wanted of the target, where its typical margin is not known
    depth: float = 0.3  # timestep to which a scan is inverted, as a share of all timesteps
    num_steps: int = 6  # DDIM steps each way
    max_step: float = 0.12  # largest root mean square change of one guided step
    l1: float = 0.01  # soft threshold of the edit in every step of the single passes, the search's first among them
    features: float = 0.0  # share of the distance in the model's own features that every step takes back, 0 to 1
    redraw_depth: float = 0.7  # timestep from which a region is drawn anew
    redraw_steps: int = 4
    depths: tuple[float, ...] = ()  # others tried with the region that was found: the least edit that convinces stays
    temperature: float = 0.4  # of the noise it is drawn from: below 1 likelier, smoother tissue
    shares: tuple[float, ...] = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25)  # regions tried, as shares of the pixels
    retry_shares: tuple[float, ...] = (0.5, 1.0)  # tried where none of them turns the decision
    tolerance: float = 0.3  # by how much a margin may miss what is wanted, in the search for a region
    slack: float = 1.0  # by how much a margin may miss it after the region was widened
    scales: tuple[float, ...] = (0.05, 0.2, 1.0)  # of the guidance on representations, weakest first
    around: int = 3  # width of the square over which the change around a pixel is averaged, odd
    edge: int = 3  # width of the square over which the border of a region is softened, odd
    diffuse: float = 0.1  # share of the pixels that the first pass changes above which a change is diffuse, not a spot
    widest: float = 0.3  # share of the pixels that the region of a diffuse change has at most
    overshoot: tuple[float, ...] = (
        8.0,
        5.0,
        3.0,
        1.0,
    )  # margins beyond what is wanted, for a diffuse change
    most_changed: float = 0.25  # share of the pixels that an edit guided beyond what is wanted may visibly change
    apart: float = 1.1  # how much nearer to its own scan than to any other such an edit must stay
    mirrored: float = 0.5  # share of the mirrored scan's margin in the guidance of single passes and diffuse changes
    seed: int = 0  # of the noise of methods that draw some


# A position of a latent stands for many pixels: what is softened over several of them is no region any more.
# The others were chosen on pixels; on latents what is diffuse has not been measured.
LATENT_SETTINGS = CounterfactualSettings(around=1, l1=0.0, diffuse=1.0, mirrored=0.0)


@dataclass(frozen=True)
class References:
    """What a site knows of scans apart from the one that is explained; no label is looked at."""

    margins: torch.Tensor  # [K,2]: how sure the model typically is of each decision (counterfactual.typical_margins)
    scans: torch.Tensor | None = None  # [M,C,H,W]: no edit may be guided beyond its goal too near to one of these


@dataclass(frozen=True)
class EditTask:
    """One batch to be edited, and what all methods ask of it."""

    model: JointModel
    images: torch.Tensor
    targets: torch.Tensor
    alpha_bar: torch.Tensor
    prediction: str
    settings: CounterfactualSettings
    shown: torch.Tensor  # [N]: of a multi-label task 1.0 to show the finding, 0.0 to remove it; else 1.0
    goal: torch.Tensor  # [N]: the margin to reach
    others: torch.Tensor | None = None  # [M,C,H,W]: scans that an edit should stay apart from

    @property
    def denoise(self) -> Denoiser:
        """The model's estimate of x_0, not guided."""
        return denoiser(self.model, self.alpha_bar, prediction=self.prediction)

    def margin_of_logits(self, index: torch.Tensor | slice = slice(None)) -> LogProb:
        """Return the margin of what is wanted of some of the images, as a function of their logits [n,K]."""
        return lambda logits: margin_of(logits, self.targets[index], self.shown[index], self.model.config.task)

    def margin(self, index: torch.Tensor | slice = slice(None)) -> LogProb:
        """The same, as a function of the images."""
        of_logits = self.margin_of_logits(index)
        return lambda x: of_logits(self.model.classify(x))

    def _mirrored_margin(self, index: torch.Tensor | slice) -> LogProb:
        share, of_logits = self.settings.mirrored, self.margin_of_logits(index)
        if not share:
            return self.margin(index)

        def mixed(x: torch.Tensor) -> torch.Tensor:
            own, mirrored = self.model.classify(torch.cat([x, x.flip(3)])).chunk(2)
            return (1 - share) * of_logits(own) + share * of_logits(mirrored)

        return mixed

    def feature_distance(self, index: torch.Tensor | slice = slice(None)) -> LogProb | None:
        """Return the distance of edits to their scans in the shared features; None where the settings ask for none.

        It is the mean square of the difference of pooled features, each in units of its spread over training scans.
        """
        if not self.settings.features:
            return None
        own, scale = self.model.features(self.images[index]).detach(), self.model.head.scale
        return lambda x: ((self.model.features(x) - own) / scale).square().mean(dim=1)

    def guided(
        self,
        index: torch.Tensor | slice = slice(None),
        *,
        l1: float = 0.0,
        region: torch.Tensor | None = None,
        beyond: torch.Tensor | float = 0.0,
        mirrored: bool = False,
    ) -> Denoiser:
        """Return the denoiser of some of the images, guided to their goal and `beyond` it (`guide_to_margin`).

        Args:
            mirrored: Guide on the mean margin of an edit and its mirror image (`mirrored` of the settings): what holds
                for both convinces other networks more often than what turns this one.
        """
        return guide_to_margin(
            self.denoise,
            self._mirrored_margin(index) if mirrored else self.margin(index),
            self.goal[index] + beyond,
            max_step=self.settings.max_step,
            originals=self.images[index],
            l1=l1,
            region=region,
            distance=self.feature_distance(index),
            distance_share=self.settings.features,
        )

    def lost(self, edited: torch.Tensor, index: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Tell which edits of some images are no longer clearly that patient's, bool [n].

        Those to which another scan is nearer (Euclidean) than `apart` times their own. A scan among the others that
        is the edited one itself does not count.
        """
        if self.others is None or len(self.others) == 0:
            return torch.zeros(len(edited), dtype=torch.bool, device=edited.device)
        own, others, edits = (x.flatten(1) for x in (self.images[index], self.others.to(edited), edited))
        itself = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist") < 1e-4
        apart = torch.cdist(edits, others, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(itself, math.inf)
        return apart.amin(dim=1) < self.settings.apart * (edits - own).norm(dim=1)

    def timesteps(self, depth: float, steps: int) -> list[int]:
        """Return timesteps from a depth (a share of all of them) down to 0."""
        return spaced_timesteps(steps, int(depth * len(self.alpha_bar)))

    def noised(self, timestep: int, *, temperature: float = 1.0) -> torch.Tensor:
        """Return the images with fresh noise (its standard deviation is `temperature`), of a generator of its own."""
        generator = torch.Generator(device=self.images.device).manual_seed(self.settings.seed)
        noise = torch.randn(self.images.shape, generator=generator, device=self.images.device)
        t = torch.full((len(self.images),), timestep, device=self.images.device)
        return add_noise(self.images, temperature * noise, t, self.alpha_bar)


def margin_of(logits: torch.Tensor, targets: torch.Tensor, shown: torch.Tensor, task: str) -> torch.Tensor:
    """Return log p / (1 - p) of what is wanted: [N]."""
    own = logits.gather(1, targets[:, None])[:, 0]
    if task == "multi-label":
        return torch.where(shown > 0.5, own, -own)
    return own - logits.scatter(1, targets[:, None], -math.inf).logsumexp(dim=1)

"""The default search for a counterfactual: where the edit has to be, how much of the scan, from which noise level."""

from __future__ import annotations

import torch

from jointdiff.edit_task import EditTask
from jointdiff.regions import change_map, strongest
from jointdiff.sampling import sample_ddim
from jointdiff.single_pass import inversion

_VISIBLE = 0.1  # change of a pixel in [-1,1] that counts: 5% of the range, as in the grade of changed pixels


class _Redraw:
    """Draws the region of the strongest change anew, under guidance, with the rest of the scan held fixed."""

    def __init__(self, task: EditTask) -> None:
        self._task = task
        self._change = change_map(task.images, inversion(task), around=task.settings.around)
        self.extent = (self._change > _VISIBLE).float().flatten(1).mean(dim=1)  # [N]: share of the pixels it changes

    def __call__(
        self,
        index: torch.Tensor,
        shares: torch.Tensor,
        *,
        depth: float | None = None,
        further: torch.Tensor | float = 0.0,
        mirrored: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return edits of some images with these shares of the pixels drawn anew, and by how much each passes its goal.

        Args:
            depth: Noise level that the region is drawn from, as a share of all timesteps; None: `redraw_depth`.
            further: Margin beyond the goal that guidance aims at, of each of them or of all; what an edit passes its
                goal by does not count it.
            mirrored: Guide on the mirror image too.
        """
        task, settings = self._task, self._task.settings
        timesteps = task.timesteps(settings.redraw_depth if depth is None else depth, settings.redraw_steps)
        noised = task.noised(timesteps[0], temperature=settings.temperature)[index]
        mask = strongest(self._change[index], shares, edge=settings.edge)
        guided = task.guided(index, region=mask, beyond=further, mirrored=mirrored)
        edited = sample_ddim(guided, noised, timesteps, task.alpha_bar)
        return edited, task.margin(index)(edited) - task.goal[index]


class _Found:
    """The edit of each image so far [N,C,H,W], by how much it passes its goal [N], and how it was drawn."""

    def __init__(self, images: torch.Tensor) -> None:
        self.edited = images.clone()
        self.beyond, self.shares, self.further = (images.new_zeros(len(images)) for _ in range(3))

    def keep(
        self,
        index: torch.Tensor,
        drawn: tuple[torch.Tensor, torch.Tensor],
        shares: torch.Tensor,
        further: torch.Tensor | float = 0.0,
    ) -> None:
        """Take these edits of some images, drawn in regions of `shares` and guided `further` than the goal."""
        self.edited[index], self.beyond[index] = drawn
        self.shares[index], self.further[index] = shares, further


def region(task: EditTask) -> torch.Tensor:
    """Find where the edit has to be, then draw that region anew, in the scan that is held fixed around it.

    1. One pass from the DDIM inversion shows where the model wants a change. 2. Where it changed much of the scan
    (`diffuse`), what is to change is no spot of which the smallest sufficient part would do: `_diffuse_edits`. 3. Else,
    or where these do not hold, `_spot_edits`. 4. Both are drawn from other noise levels (`depths`) too; the least edit
    that convinces stays. Where none turns the decision, larger regions are drawn. A scan that the model gives the
    target already is returned as it is.
    """
    settings = task.settings
    redraw, found = _Redraw(task), _Found(task.images)
    diffuse = redraw.extent > settings.diffuse
    held = _diffuse_edits(task, redraw, found, diffuse.nonzero()[:, 0])
    is_spot = torch.ones_like(diffuse)
    is_spot[held] = False
    _spot_edits(task, redraw, found, is_spot.nonzero()[:, 0])
    everything = torch.arange(len(task.images), device=task.images.device)
    for depth in settings.depths:
        other, other_beyond = redraw(everything, found.shares, depth=depth, further=found.further)
        better = _better(task, other, other_beyond, found.edited, found.beyond)
        found.edited[better], found.beyond[better] = other[better], other_beyond[better]
    for share in settings.retry_shares:
        again = (task.margin()(found.edited) <= 0).nonzero()[:, 0]
        if len(again) == 0:
            break
        found.edited[again] = redraw(again, torch.full_like(found.shares[again], share))[0]
    decided = task.margin()(task.images) > 0
    found.edited[decided] = task.images[decided]
    return found.edited


def _diffuse_edits(task: EditTask, redraw: _Redraw, found: _Found, index: torch.Tensor) -> torch.Tensor:
    """Draw regions as large as the change of the first pass, guided beyond the goal; return whose edits hold.

    As far beyond as leaves the scan that patient's and most of it as it was: of the margins `overshoot`, in their
    order, the first whose edit is not `lost`, visibly changes at most `most_changed` of the pixels, and reaches the
    goal.
    """
    settings, held = task.settings, []
    for further in settings.overshoot:
        if len(index) == 0:
            break
        shares = redraw.extent[index].clamp(max=settings.widest)
        edited, beyond = redraw(index, shares, further=further, mirrored=True)
        changed = ((edited - task.images[index]).abs().amax(dim=1) > _VISIBLE).float().mean(dim=(1, 2))
        holds = (beyond >= -settings.slack) & (changed <= settings.most_changed) & ~task.lost(edited, index)
        found.keep(index[holds], (edited[holds], beyond[holds]), shares[holds], further)
        held.append(index[holds])
        index = index[~holds]
    return torch.cat(held) if held else index[:0]


def _spot_edits(task: EditTask, redraw: _Redraw, found: _Found, index: torch.Tensor) -> None:
    """Draw the smallest region anew that reaches the wanted margin.

    Of regions that hold the strongest share of the first pass's change, a binary search takes the smallest that reaches
    the goal. The next larger one is drawn once more, so that it covers what it should; it is kept where it still
    convinces.
    """
    if len(index) == 0:
        return
    settings = task.settings
    shares = torch.tensor(settings.shares, device=task.images.device)
    low, high = torch.zeros_like(index), torch.full_like(index, len(shares) - 1)
    while (open_ := low < high).any():
        some = open_.nonzero()[:, 0]
        middle = (low[some] + high[some]) // 2
        enough = redraw(index[some], shares[middle])[1] >= -settings.tolerance
        high[some[enough]], low[some[~enough]] = middle[enough], middle[~enough] + 1
    wider = shares[(low + 1).clamp(max=len(shares) - 1)]
    found.keep(index, redraw(index, wider), wider)
    missed = found.beyond[index] < -settings.slack
    if missed.any():
        again, smallest = index[missed], shares[low[missed]]
        found.keep(again, redraw(again, smallest), smallest)


def _better(
    task: EditTask, edited: torch.Tensor, beyond: torch.Tensor, rival: torch.Tensor, rival_beyond: torch.Tensor
) -> torch.Tensor:
    """Tell which edits beat their rivals, bool [N]: of two that convince the smaller (L1), else the surer."""
    least = -task.settings.slack
    smaller = _size(edited - task.images) < _size(rival - task.images)
    return torch.where(rival_beyond >= least, (beyond >= least) & smaller, beyond > rival_beyond)


def _size(edit: torch.Tensor) -> torch.Tensor:
    return edit.abs().mean(dim=(1, 2, 3))

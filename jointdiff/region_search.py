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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return edits of some images with these shares of the pixels drawn anew, and by how much each passes its goal.

        Args:
            depth: Noise level that the region is drawn from, as a share of all timesteps; None: `redraw_depth`.
            further: Margin beyond the goal that guidance aims at, of each of them or of all; what an edit passes its
                goal by does not count it.
        """
        task, settings = self._task, self._task.settings
        timesteps = task.timesteps(settings.redraw_depth if depth is None else depth, settings.redraw_steps)
        noised = task.noised(timesteps[0], temperature=settings.temperature)[index]
        guided = task.guided(index, region=strongest(self._change[index], shares, edge=settings.edge), beyond=further)
        edited = sample_ddim(guided, noised, timesteps, task.alpha_bar)
        return edited, task.margin(index)(edited) - task.goal[index]


def region(task: EditTask) -> torch.Tensor:
    """Find where the edit has to be, then draw the smallest region anew that reaches the wanted margin.

    1. One pass from the DDIM inversion shows where the model wants a change. 2. Of regions that hold the strongest
    share of it, a binary search takes the smallest that, drawn anew from noise under guidance with the rest of the scan
    held fixed, reaches the goal. 3. The next larger region is drawn once more, so that it covers what it should; it is
    kept where it still convinces. Where the first pass changed much of the scan (`diffuse`), what is to change is no
    spot of which the smallest sufficient part would do: the region is as large as that change, and guided beyond the
    goal, unless the edit then looks more like another scan than like its own. 4. It is drawn from other noise levels
    (`depths`) too; the least edit that convinces stays. Where none turns the decision, larger ones are drawn. A scan
    that the model gives the target already is returned as it is.
    """
    settings = task.settings
    redraw = _Redraw(task)
    shares = torch.tensor(settings.shares, device=task.images.device)
    everything = torch.arange(len(task.images), device=task.images.device)
    low, high = torch.zeros_like(everything), torch.full_like(everything, len(shares) - 1)
    while (open_ := low < high).any():
        index = open_.nonzero()[:, 0]
        middle = (low[index] + high[index]) // 2
        enough = redraw(index, shares[middle])[1] >= -settings.tolerance
        high[index[enough]], low[index[~enough]] = middle[enough], middle[~enough] + 1
    spot = shares[(low + 1).clamp(max=len(shares) - 1)]
    diffuse = redraw.extent > settings.diffuse
    chosen = torch.where(diffuse, spot.maximum(redraw.extent.clamp(max=settings.widest)), spot)
    further = settings.overshoot * diffuse
    edited, beyond = redraw(everything, chosen, further=further)
    lost = (diffuse & task.lost(edited)).nonzero()[:, 0]
    if len(lost):
        chosen[lost], further[lost] = spot[lost], 0.0
        edited[lost], beyond[lost] = redraw(lost, chosen[lost])
    again = (beyond < -settings.slack).nonzero()[:, 0]
    if len(again):
        chosen[again] = shares[low[again]]
        edited[again], beyond[again] = redraw(again, chosen[again], further=further[again])
    for depth in settings.depths:
        other, other_beyond = redraw(everything, chosen, depth=depth, further=further)
        better = _better(task, other, other_beyond, edited, beyond)
        edited[better], beyond[better] = other[better], other_beyond[better]
    for share in settings.retry_shares:
        again = (task.margin()(edited) <= 0).nonzero()[:, 0]
        if len(again) == 0:
            break
        edited[again] = redraw(again, torch.full((len(again),), share, device=again.device), further=further[again])[0]
    decided = task.margin()(task.images) > 0
    edited[decided] = task.images[decided]
    return edited


def _better(
    task: EditTask, edited: torch.Tensor, beyond: torch.Tensor, rival: torch.Tensor, rival_beyond: torch.Tensor
) -> torch.Tensor:
    """Tell which edits beat their rivals, bool [N]: of two that convince the smaller (L1), else the surer."""
    least = -task.settings.slack
    smaller = _size(edited - task.images) < _size(rival - task.images)
    return torch.where(rival_beyond >= least, (beyond >= least) & smaller, beyond > rival_beyond)


def _size(edit: torch.Tensor) -> torch.Tensor:
    return edit.abs().mean(dim=(1, 2, 3))

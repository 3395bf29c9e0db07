"""Paint synthetic chests and lesions: pure numpy, vectorised over patients.

N patients, S pixels per side. Geometry is in units of half the image (x to the right, y downwards, both in [-1, 1]), so
any size in pixels shows the same patients. Brightness is 0 (air) to about 1 (bone) before the exposure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

SIDES = (-1.0, 1.0)  # left and right half of the image
NUM_VESSELS = 5  # per lung
AIR = 0.15  # how much darker than lung a lesion's dark part is
TEXTURE_GRIDS = ((5, 0.027), (11, 0.027), (22, 0.018))  # (cells per side, standard deviation of brightness)
LESION_KINDS = ("nodule", "cavity")


@dataclass(frozen=True)
class Patients:
    """All that is drawn per patient, float32 [N] unless said otherwise; every use is in `paint_chests`."""

    centre: np.ndarray  # x of the spine
    lift: np.ndarray  # shifts the whole chest in y
    width: np.ndarray  # half-width of the body
    tissue: np.ndarray  # brightness of soft tissue
    lung_x: np.ndarray  # distance of the lungs' centres from the spine
    lung_rx: np.ndarray  # half-axes of the lungs
    lung_ry: np.ndarray
    lung_depth: np.ndarray  # how much darker than tissue
    heart: np.ndarray  # size
    rib_frequency: np.ndarray  # ribs per unit of y
    rib_phase: np.ndarray
    rib_slope: np.ndarray
    rib_brightness: np.ndarray
    spine_brightness: np.ndarray
    vessel_angles: np.ndarray  # [N, 2, NUM_VESSELS]
    vessel_lengths: np.ndarray  # [N, 2, NUM_VESSELS]
    vessel_bends: np.ndarray  # [N, 2, NUM_VESSELS]
    vessel_brightness: np.ndarray
    texture: tuple[np.ndarray, ...]  # per grid of TEXTURE_GRIDS, [N, cells, cells]
    gain: np.ndarray  # the exposure
    offset: np.ndarray
    gamma: np.ndarray
    tilt_x: np.ndarray  # brightness slope across the image
    tilt_y: np.ndarray
    tints: np.ndarray  # [N, 3], gain of each channel of an RGB scan

    def select(self, rows: slice) -> Patients:
        """Return some of the patients."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts["texture"] = tuple(grid[rows] for grid in parts["texture"])
        return Patients(**{name: value if name == "texture" else value[rows] for name, value in parts.items()})


def draw_patients(num: int, rng: np.random.Generator) -> Patients:
    """Draw `num` patients and the exposure of each one's scan."""

    def between(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (num, *shape)).astype(np.float32)

    return Patients(
        centre=between(-0.05, 0.05),
        lift=between(-0.05, 0.05),
        width=between(0.87, 0.97),
        tissue=between(0.52, 0.60),
        lung_x=between(0.41, 0.45),
        lung_rx=between(0.305, 0.355),
        lung_ry=between(0.60, 0.68),
        lung_depth=between(0.39, 0.47),
        heart=between(0.92, 1.14),
        rib_frequency=between(3.4, 4.0),
        rib_phase=between(0.2, 0.8),
        rib_slope=between(0.32, 0.52),
        rib_brightness=between(0.08, 0.13),
        spine_brightness=between(0.15, 0.24),
        vessel_angles=between(-0.3, 0.3, 2, NUM_VESSELS),
        vessel_lengths=between(0.26, 0.44, 2, NUM_VESSELS),
        vessel_bends=between(-0.5, 0.5, 2, NUM_VESSELS),
        vessel_brightness=between(0.08, 0.14),
        texture=tuple(rng.standard_normal((num, cells, cells), dtype=np.float32) * sd for cells, sd in TEXTURE_GRIDS),
        gain=between(0.72, 0.98),
        offset=between(0.0, 0.12),
        gamma=between(0.88, 1.22),
        tilt_x=between(-0.07, 0.07),
        tilt_y=between(-0.07, 0.07),
        tints=between(0.8, 1.05, 3),
    )


@dataclass(frozen=True)
class Lesions:
    """One lesion per patient, float32 [N]."""

    side: np.ndarray  # one of SIDES
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    density: np.ndarray  # brightness of its solid part, of soft tissue's
    turn: np.ndarray  # shapes the ragged outline

    def select(self, rows: slice) -> Lesions:
        """Return some of the lesions."""
        return Lesions(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw_lesions(patients: Patients, rng: np.random.Generator, other: Lesions | None = None) -> Lesions:
    """Draw a lesion for every patient, uniformly over what is well inside the lungs, away from heart and diaphragm.

    Args:
        other: Lesions to stay clear of: these lie in the other lung.
    """
    num, tries = len(patients.centre), 24
    side = rng.choice(SIDES, num).astype(np.float32)
    if other is not None:
        side = -other.side
    u, v = rng.uniform(-1, 1, (2, num, tries)).astype(np.float32)
    x = patients.centre[:, None] + (side * patients.lung_x)[:, None] + u * patients.lung_rx[:, None]
    y = patients.lift[:, None] - 0.05 + v * patients.lung_ry[:, None]
    depth = lung_depth_at(patients, x[:, None, :], y[:, None, :])[:, 0]
    first = np.argmax(depth > 0.85, axis=1)
    rows = np.arange(num)
    return Lesions(
        side=side,
        x=x[rows, first],
        y=y[rows, first],
        radius=rng.uniform(0.24, 0.31, num).astype(np.float32),
        density=rng.uniform(1.15, 1.3, num).astype(np.float32),
        turn=rng.uniform(0, 2 * np.pi, num).astype(np.float32),
    )


def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x [1, 1, S] and y [1, S, 1], the centres of the pixels."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def lung_depth_at(patients: Patients, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much of the ray at (x, y) passes through lung, in [0, 1].

    Args:
        x: Broadcastable to [N, 1, W].
        y: Broadcastable to [N, H, 1] or to x.
    """
    p = patients
    dx, dy = x - _column(p.centre), y - _column(p.lift)
    depth = np.zeros(np.broadcast_shapes(dx.shape, dy.shape), dtype=np.float32)
    for side in SIDES:
        across = (dx - side * _column(p.lung_x) - side * 0.12 * dy) / (_column(p.lung_rx) * (1 + 0.25 * dy))
        along = (dy + 0.05) / _column(p.lung_ry)
        inside = 1 - (across**2 + np.abs(along) ** 2.6)
        diaphragm = 0.50 - 0.12 * (1 - across**2) - dy
        depth += _step(inside / 0.22) * _step(diaphragm / 0.05)
    heart = 1 - ((dx - 0.13) / (0.27 * _column(p.heart))) ** 2 - ((dy - 0.27) / (0.30 * _column(p.heart))) ** 2
    return depth * (1 - _step(heart / 0.25))


def paint_chests(patients: Patients, size: int) -> np.ndarray:
    """Return the brightness of every patient's healthy chest, float32 [N, S, S]."""
    p = patients
    x, y = pixel_grid(size)
    dx, dy = x - _column(p.centre), y - _column(p.lift)
    shoulders = 0.24 + (_column(p.width) - 0.24) * _step((dy + 0.80) / 0.07)
    body = _step((shoulders - np.abs(dx)) / 0.05)
    lungs = lung_depth_at(p, x, y)
    image = _column(p.tissue) - _column(p.lung_depth) * lungs
    image += _column(p.spine_brightness) * np.exp(-((dx / 0.09) ** 2)) * (0.8 + 0.2 * np.cos(2 * np.pi * 5 * dy))
    image += 0.06 * _step((dy - 0.55) / 0.10)  # liver and stomach
    rib_y = dy + _column(p.rib_slope) * np.abs(dx) * (1.2 - np.abs(dx)) - 0.2
    ribs = (0.5 + 0.5 * np.cos(2 * np.pi * (_column(p.rib_frequency) * rib_y + _column(p.rib_phase)))) ** 3
    image += _column(p.rib_brightness) * ribs * _step((np.abs(dx) - 0.12) / 0.05) * _step((0.62 - dy) / 0.08)
    image += _column(p.vessel_brightness) * _vessels(p, dx, dy) * lungs
    for grid in p.texture:
        image += _enlarge(grid, size)
    return image * body


def _vessels(p: Patients, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return bent lines that leave the root of each lung and fade, [N, S, S], at most about 1."""
    total = np.zeros(np.broadcast_shapes(dx.shape, dy.shape), dtype=np.float32)
    fan = np.linspace(-1.1, 1.1, NUM_VESSELS)
    for s, side in enumerate(SIDES):
        for v in range(NUM_VESSELS):
            angle = _column(p.vessel_angles[:, s, v] + fan[v].astype(np.float32))
            along = side * (dx - side * 0.16) * np.cos(angle) + dy * np.sin(angle)
            off = dy * np.cos(angle) - side * (dx - side * 0.16) * np.sin(angle)
            off = off - _column(p.vessel_bends[:, s, v]) * along**2
            reach = np.clip(along / _column(p.vessel_lengths[:, s, v]), 0, None)
            line = np.exp(-((off / 0.045) ** 2) - reach**2)
            np.maximum(total, line * (along > 0), out=total)
    return total


def paint_lesions(
    patients: Patients, lesions: Lesions, kind: str, brightness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return `brightness` [N, S, S] with a lesion in every chest, and its mask, bool [N, S, S].

    A `nodule` is a dense mass with a ragged outline in a rim of air; a `cavity` is a ring around a core of air. Both
    are made of levels that the healthy chest has too, so that no histogram tells. Beyond the mask nothing changes.
    """
    x, y = pixel_grid(brightness.shape[-1])
    dx, dy = (x - _column(lesions.x)) / _column(lesions.radius), (y - _column(lesions.y)) / _column(lesions.radius)
    rho = np.sqrt(dx**2 + dy**2)
    if kind == "cavity":
        solid = np.exp(-(((rho - 0.62) / 0.22) ** 2))
        dark = np.exp(-((rho / 0.30) ** 2))
    else:
        angle, turn = np.arctan2(dy, dx), _column(lesions.turn)
        lobes = np.cos(2 * angle + turn) + np.cos(5 * angle - 3 * turn) + np.cos(9 * angle)
        solid = _step((0.54 + 0.05 * lobes - rho) / 0.10)
        dark = 0.8 * np.exp(-(((rho - 0.85) / 0.15) ** 2))
    fade = np.clip((1 - rho) / 0.15, 0, 1)
    tissue = _column(patients.tissue * lesions.density)
    air = _column(patients.tissue - patients.lung_depth - AIR)
    return brightness + fade * (solid * (tissue - brightness) + dark * (1 - solid) * (air - brightness)), rho < 1


def expose(patients: Patients, brightness: np.ndarray) -> np.ndarray:
    """Return the scan in [0, 1] that the patient's exposure makes of `brightness` [N, S, S]."""
    p = patients
    x, y = pixel_grid(brightness.shape[-1])
    light = _column(p.gain) * brightness + _column(p.offset) + _column(p.tilt_x) * x + _column(p.tilt_y) * y
    return np.clip(light, 0, 1) ** _column(p.gamma)


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _step(z: np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 to 1, half-way at z = 0, steepness 1."""
    return 0.5 + 0.5 * np.tanh(2 * z)


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Return noise [N, cells, cells] as a smooth field [N, S, S] of the same standard deviation."""
    cells = grid.shape[-1]
    centres = (np.arange(cells) + 0.5) / cells
    pixels = (np.arange(size) + 0.5) / size
    weights = np.exp(-0.5 * ((pixels[:, None] - centres[None, :]) * cells / 0.6) ** 2)
    weights = (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)
    return weights @ grid @ weights.T

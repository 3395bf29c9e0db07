"""Find a data set by the name the user wrote: phantom[:variant], npz:PATH, or a 2D set of MedMNIST."""

from __future__ import annotations

from functools import lru_cache

from jointdiff.config import SITES, RunConfig
from jointdiff.data import medmnist, npz, phantom
from jointdiff.data.base import Dataset, DatasetInfo
from jointdiff.errors import ConfigError, nearest


def info_of(run: RunConfig) -> DatasetInfo:
    """Describe what a run trains on, without reading images: a data set, or what the hospitals' own data must be.

    Raises:
        ConfigError, DataError: As `dataset_info`.
    """
    if not run.over_sites:
        return dataset_info(run.dataset, data_root=run.data_root, image_size=run.image_size)
    return DatasetInfo(
        name=run.dataset,
        task=run.task,
        class_names=run.class_names,
        channels=run.channels,
        image_size=run.image_size,
        real=True,
        description="The hospitals' own scans; they never leave them.",
        licence="the hospitals' own",
    )


def dataset_info(name: str, *, data_root: str = "", image_size: int = 28) -> DatasetInfo:
    """Describe a data set without reading its images.

    Args:
        name: `phantom[:variant]`, `npz:PATH`, or a MedMNIST name such as `pneumoniamnist`.
        data_root: Folder of files already there; '' = the source's own default.
        image_size: Pixels per side.

    Raises:
        ConfigError: There is no such data set (the nearest name is offered), variant or size.
        DataError: The user's file is missing, damaged or of a wrong shape.
    """
    kind, _, rest = name.partition(":")
    if kind == "phantom":
        return phantom.phantom_info(rest, image_size=image_size)
    if kind == "npz":
        return npz.npz_info(rest, data_root=data_root, image_size=image_size)
    _check_medmnist(name)
    return medmnist.medmnist_info(name, image_size=image_size)


@lru_cache(maxsize=2)
def load_dataset(name: str, *, data_root: str = "", image_size: int = 28, seed: int = 0) -> Dataset:
    """Load a data set in its official splits; kept in memory, so nobody may write into its arrays.

    Args:
        name, data_root, image_size: As in `dataset_info`.
        seed: Which phantoms are drawn, or which images of the user's own become the test split where there is none.

    Raises:
        ConfigError: There is no such data set (the nearest name is offered), variant or size.
        DataError: A file is missing, damaged, or does not hold what it should; says what to do.
    """
    if name == SITES:
        raise ConfigError("dataset=sites has no data here: every hospital reads its own, named in its site.yaml.")
    kind, _, rest = name.partition(":")
    if kind == "phantom":
        return phantom.load_phantom(rest, image_size=image_size, seed=seed)
    if kind == "npz":
        return npz.load_npz(rest, data_root=data_root, image_size=image_size, seed=seed)
    _check_medmnist(name)
    return medmnist.load_medmnist(name, data_root=data_root, image_size=image_size)


def known_names() -> list[str]:
    """Return every name a user may write, with PATH as it stands."""
    variants = [f"phantom:{variant}" if variant else "phantom" for variant in phantom.VARIANTS]
    return [*variants, *medmnist.medmnist_names(), "npz:PATH"]


def _check_medmnist(name: str) -> None:
    if name not in medmnist.medmnist_names():
        raise ConfigError(f"Unknown dataset '{name}': {nearest(name, known_names())}")

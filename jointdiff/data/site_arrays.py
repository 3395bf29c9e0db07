"""A site's arrays: an npz of its own, a MedMNIST set, or phantoms to try a federation with. All are held in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jointdiff.data import medmnist, npz, streaming
from jointdiff.data.base import Dataset, DatasetInfo, ImageSet
from jointdiff.data.class_names import renumbered
from jointdiff.data.fitting import fit
from jointdiff.data.listing import TEST, TRAIN
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.scan_file import digest_of
from jointdiff.data.site_data import LoadedSite, hospital_of
from jointdiff.data.site_source import MEDMNIST, NPZ, SiteSource
from jointdiff.data.site_split import NOT_USED, PARTS, UNUSED, assign, patient_numbers
from jointdiff.errors import ConfigError, DataError, nearest


def open_arrays(source: SiteSource, wanted: DatasetInfo, *, audit_holdout: float) -> LoadedSite:
    """Open a site's arrays; raises as `site_data.load_site`, and as the adapter of the kind."""
    where = str(source.path or source.where)
    info, images, splits = _load(source, wanted)
    if info.task != wanted.task:
        raise DataError(f"{where} is a {info.task} set, but the federation's task is {wanted.task}.")
    labels = renumbered(images.labels, info.class_names, source, wanted, where)
    digests = [digest_of(image) for image in images.images]
    patients = None if images.patients is None else patient_numbers([f"{p:020d}" for p in images.patients])
    parts = assign(
        labels,
        names=digests,
        patients=patients,
        splits=splits,
        num_outputs=wanted.num_outputs,
        test_fraction=source.test_fraction,
        audit_holdout=audit_holdout,
        where=where,
    )
    order = np.argsort(parts, kind="stable")
    order = order[parts[order] != UNUSED]
    fitted = replace(_fitted(images, source, wanted), labels=labels, patients=patients)
    own = images.images
    facts = _facts(order, parts, images.select(order), patients, [digests[i] for i in order])
    unused = int((parts == UNUSED).sum())
    return LoadedSite(
        source=source,
        data=hospital_of(
            wanted,
            {name: fitted.select(order[parts[order] == part]) for part, name in enumerate(PARTS)},
            real=info.real,
        ),
        facts=facts,
        names=[f"image {i}" for i in order],
        read=lambda row: own[order[row]],
        knows_patients=patients is not None,
        left_out={NOT_USED: unused} if unused else {},
    )


def _load(source: SiteSource, wanted: DatasetInfo) -> tuple[DatasetInfo, ImageSet, list[str]]:
    """Return what the arrays say of themselves, all images, and the part of each ('' where nothing says it)."""
    if source.kind == NPZ:
        data = npz.load_whole(str(source.path))
    elif source.kind == MEDMNIST:
        if source.name not in medmnist.medmnist_names():
            hint = nearest(source.name, medmnist.medmnist_names())
            raise ConfigError(f"There is no MedMNIST set '{source.name}' (name under {source.where}): {hint}")
        root = "" if source.path is None else str(source.path)
        data = medmnist.load_medmnist(source.name, data_root=root, image_size=wanted.image_size)
    else:
        info = phantom_info(source.variant, image_size=wanted.image_size)
        drawn = draw_scans(info, source.num_images, np.random.default_rng([source.seed, 0]))
        return info, drawn, [""] * len(drawn)
    if not len(data.test):
        return data.info, data.train, [""] * len(data.train)
    return data.info, _joined(data), [TRAIN] * len(data.train) + [TEST] * len(data.test)


def _joined(data: Dataset) -> ImageSet:
    """Return training and test images as one set."""
    patients = None
    if data.train.patients is not None and data.test.patients is not None:
        patients = np.concatenate([data.train.patients, data.test.patients])
    return ImageSet(
        images=np.concatenate([data.train.images, data.test.images]),
        labels=np.concatenate([data.train.labels, data.test.labels]),
        patients=patients,
    )


def _fitted(images: ImageSet, source: SiteSource, wanted: DatasetInfo) -> ImageSet:
    """Return the images, and a phantom's twins, as the model sees them."""
    if images.images.shape[1:] == (wanted.image_size, wanted.image_size, wanted.channels):
        return images

    def fitted(pictures: np.ndarray) -> np.ndarray:
        return np.stack([
            fit(picture, image_size=wanted.image_size, channels=wanted.channels, aspect=source.aspect)
            for picture in pictures
        ])  # fmt: skip

    twins = None if images.twins is None else fitted(images.twins)
    return replace(images, images=fitted(images.images), twins=twins)


def _facts(
    order: np.ndarray, parts: np.ndarray, images: ImageSet, patients: np.ndarray | None, digests: list[str]
) -> np.ndarray:
    facts = np.zeros(len(order), dtype=streaming.FACTS)
    facts["entry"], facts["part"] = order, parts[order]
    facts["patient"] = -1 if patients is None else patients[order]
    facts["height"], facts["width"] = images.images.shape[1:3]
    flat = images.images.reshape(len(order), -1)
    facts["low"], facts["high"] = flat.min(axis=1), flat.max(axis=1)
    facts["digest"] = digests
    return facts

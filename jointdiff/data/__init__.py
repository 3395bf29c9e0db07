"""Where images come from, how they are dealt to hospitals, and which labels a hospital keeps."""

from __future__ import annotations

from jointdiff.data.base import MULTI_CLASS, MULTI_LABEL, UNKNOWN, Dataset, DatasetInfo, ImageSet
from jointdiff.data.hospital import HospitalData, class_table, hospital_data
from jointdiff.data.registry import dataset_info, info_of, known_names, load_dataset

__all__ = [
    "MULTI_CLASS",
    "MULTI_LABEL",
    "UNKNOWN",
    "Dataset",
    "DatasetInfo",
    "HospitalData",
    "ImageSet",
    "class_table",
    "dataset_info",
    "hospital_data",
    "info_of",
    "known_names",
    "load_dataset",
]

"""The section `data` of site.yaml: what is accepted, and the nearest key for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jointdiff.data.site_source import SiteSource, read_source
from jointdiff.errors import ConfigError

WHERE = "'data' in /home/site/site.yaml"


def read(text: str) -> SiteSource:
    return read_source(yaml.safe_load(text), WHERE, Path("/home/site"))


def test_every_key_of_a_table() -> None:
    source = read(
        "kind: csv_table\npath: Liste Köln.csv\nroot: /archive\ncolumns: {path: Datei, label: Befund, patient: Fall}\n"
        "classes: {lesion: [Herd, 1], healthy: 0}\naspect: crop\ntest-fraction: 0.3\nskip-unreadable: true\n"
    )
    assert source.path == Path("/home/site/Liste Köln.csv") and source.root == Path("/archive") and source.is_table
    assert [source.column(c) for c in ("path", "label", "patient", "split")] == ["Datei", "Befund", "Fall", "split"]
    assert source.classes == (("lesion", ("Herd", "1")), ("healthy", ("0",)))
    assert (source.aspect, source.test_fraction, source.skip_unreadable) == ("crop", 0.3, True)
    assert hash(source) == hash(read("kind: csv_table\npath: Liste Köln.csv\nroot: /archive\n"
                                     "columns: {path: Datei, label: Befund, patient: Fall}\n"
                                     "classes: {lesion: [Herd, 1], healthy: 0}\naspect: crop\ntest-fraction: 0.3\n"
                                     "skip-unreadable: true\n"))  # fmt: skip


def test_a_home_is_expanded_and_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/it")
    source = read("kind: folder\npath: ~/Röntgen bilder\n")
    assert source.path == Path("/home/it/Röntgen bilder") and not source.is_table
    assert (source.aspect, source.test_fraction, source.skip_unreadable, source.window) == ("pad", 0.2, False, "auto")


def test_dicom_by_folder_or_by_table() -> None:
    assert read("kind: dicom\npath: scans\nwindow: [40, 400]\npatient: header").window == (40.0, 400.0)
    assert read("kind: dicom\npath: liste.csv\ncolumns: {label: finding}").is_table
    assert read("kind: phantom").num_images == 1000


BAD: dict[str, tuple[str, str]] = {
    "typo": ("kind: folder\npath: a\naspct: pad", r"Unknown key 'aspct' under 'data' in .*: did you mean 'aspect'"),
    "no kind": ("path: a", "kind is missing: known: folder, csv_table"),
    "unknown kind": ("kind: csv-table\npath: a", "kind 'csv-table' is unknown: did you mean 'csv_table'"),
    "no path": ("kind: npz", "path is missing .*kind npz needs it"),
    "no name": ("kind: medmnist", "name is missing"),
    "key of another kind": ("kind: folder\npath: a\nwindow: auto", "'window' .* belongs to kind dicom, not folder"),
    "path as a number": ("kind: folder\npath: 7", "path under .* must be text, not 7"),
    "aspect": ("kind: folder\npath: a\naspect: padd", "aspect .* is 'padd': did you mean 'pad'"),
    "window without width": ("kind: dicom\npath: a\nwindow: [40, 1]", "width above 1, not \\[40, 1\\]"),
    "window word": ("kind: dicom\npath: a\nwindow: lung", "must be auto, header or"),
    "columns of a folder": ("kind: dicom\npath: a\ncolumns: {path: x}", "'columns' .* needs a table"),
    "unknown column": ("kind: csv_table\npath: a.csv\ncolumns: {lable: x}", "'lable' .*did you mean 'label'"),
    "one column for two": ("kind: csv_table\npath: a.csv\ncolumns: {path: x, label: x}", "names one column twice"),
    "fraction": ("kind: folder\npath: a\ntest-fraction: 1", "above 0 and below 1, not 1"),
    "fraction as text": ("kind: folder\npath: a\ntest-fraction: a fifth", "above 0 and below 1, not 'a fifth'"),
    "switch": ("kind: folder\npath: a\nskip-unreadable: maybe", "must be true or false, not 'maybe'"),
    "bare yes": ("kind: folder\npath: a\nclasses: {lesion: yes}", "put yes, no, true and false in quotes"),
    "one name for two": ("kind: folder\npath: a\nclasses: {a: x, b: [y, x]}", "says twice what 'x' means"),
    "classes as a list": ("kind: folder\npath: a\nclasses: [a, b]", "must be a mapping"),
    "patients in pictures": ("kind: folder\npath: a\npatient: header", "which DICOM files alone have"),
    "patients twice": (
        "kind: dicom\npath: a.csv\npatient: header\ncolumns: {patient: p}", "from the header and from a column",
    ),
    "folders of a table": ("kind: dicom\npath: a.csv\npatient: folder", "a table names the images"),
    "variant": ("kind: phantom\nvariant: rbg", "variant .* is 'rbg': did you mean 'rgb'"),
    "seed": ("kind: phantom\nseed: -1", "whole number of at least 0, not -1"),
    "few phantoms": ("kind: phantom\nnum-images: 3", "at least 10, not 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as caught:
        read(text)
    assert "/home/site/site.yaml" in str(caught.value), "the file is named, and the text is none that may travel"


def test_nothing_but_plain_values_is_kept() -> None:
    source: Any = read("kind: folder\npath: a")
    with pytest.raises(AttributeError):
        source.path = None

"""Explaining at a site: single scans by hand, what is refused, and what the site's policy lets a run ask."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client import manifest
from client.cli import main
from client.explain import KEPT
from jointdiff import checkpoint
from jointdiff.cli import main as alone
from jointdiff.counterfactual import METHODS
from jointdiff.data import ImageSet, info_of
from jointdiff.data.site_data import open_site
from jointdiff.data.site_source import SiteSource
from jointdiff.events import read_events
from jointdiff.explanation import Explanations, references
from jointdiff.scan_explanation import find_target
from jointdiff.scans import read_scans
from jointdiff.trained import open_trained
from simulations.local import run_local

# Of the modules that a Secondary Capture Image must have (PS3.3 A.8.1): what must have a value, and what must be there.
TYPE_1 = (
    "StudyInstanceUID", "Modality", "SeriesInstanceUID", "ConversionType", "SOPClassUID", "SOPInstanceUID",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber", "SeriesNumber", "InstanceNumber", "PatientOrientation",
)  # fmt: skip

WITHOUT = "Explained without the typical margins and the guard of identity of the site's own scans"


@pytest.fixture(scope="module")
def best(tiny_files, tmp_path_factory) -> Path:
    """A trained checkpoint: brighter scans are ill."""
    home = tmp_path_factory.mktemp("home")
    keys = {
        "dataset": f"npz:{tiny_files / 'data.npz'}", "image-size": 16, "model": tiny_files / "model.yaml",
        "num-rounds": 1, "local-steps": 2, "batch-size": 4, "device": "cpu", "run-name": "tiny", "home": home,
    }  # fmt: skip
    assert alone(["train", *(f"{k}={v}" for k, v in keys.items())]) == 0
    return home / "runs" / "tiny" / "checkpoints" / "best.safetensors"


@pytest.fixture(scope="module")
def test_images(tiny_files) -> np.ndarray:
    """Test scans, healthy and ill in turn."""
    return np.load(tiny_files / "data.npz")["test_images"]


@pytest.fixture
def site(tmp_path, test_images) -> Path:
    """A site's folder, with three scans outside it."""
    (tmp_path / "scans").mkdir()
    for name, pixels in zip(("doe-jane", "roe-richard", "poe-anna"), test_images, strict=False):
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{name}.png")
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def jane(site: Path) -> Path:
    return site.parent / "scans" / "doe-jane.png"


def explain(capsys, site: Path, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["explain", *map(str, arguments), "--site", str(site), "--device", "cpu"])
    return code, *capsys.readouterr()


def changed(best: Path, path: Path, change) -> Path:
    """Write a copy of a checkpoint after `change(state)`."""
    saved = checkpoint.load(best)
    change(saved.state)
    return checkpoint.save(path, saved.state, saved.config, round_number=1)


def force(monkeypatch, *, found: bool) -> None:
    """Let the search turn every scan over, or leave it as it is: the search itself has its own tests."""
    from jointdiff.evaluation import predict

    def search(model, scans: ImageSet, config, *, device, targets=None, method="region", **_) -> Explanations:
        before = predict(model, scans.images, device=device)
        aims = before.argmin(axis=1) if targets is None else targets
        bright = np.where(aims == 1, 90, -90)[:, None, None, None] if found else 0
        edited = np.clip(scans.images.astype(int) + bright, 0, 255).astype(np.uint8)
        after = predict(model, edited, device=device)
        return Explanations(scans, edited, aims, before, after, np.full(len(aims), True), 0.5)

    monkeypatch.setattr("jointdiff.scan_explanation.explain_scans", search)


# ---- one scan by hand


def test_one_scan_is_explained_by_the_real_search_and_the_page_names_no_file(best, site, capsys):
    code, out, err = explain(capsys, site, best, "--image", jane(site), "--target", "ILL")
    assert (code, err) == (0, "")
    folder = site / "explanations" / "tiny-scans-1"
    without, first, last = out.splitlines()
    assert without == f"{WITHOUT}: {site / 'site.yaml'} names no data."
    assert first.startswith("doe-jane.png: The model decides for 'healthy' (probability 0.")
    assert last == f"Explanations, for this site alone: {folder / 'index.html'}"
    record = json.loads((folder / "metrics.json").read_text())
    (item,) = record["items"]
    assert item["target"] == 1 and record["real"] is True and record["class_names"] == ["healthy", "ill"]
    before, after = item["probs_before"][1], item["probs_after"][1]
    assert f"probability of 'ill': {before:.2f} before, {after:.2f} after" in first
    assert ("An explanation was found" in first) == item["found"] == (after > 0.5)
    for path in folder.rglob("*"):
        assert "doe" not in path.name and b"doe-jane" not in path.read_bytes()


def test_without_a_target_each_scan_of_a_folder_goes_to_its_other_class(best, site, capsys, monkeypatch):
    force(monkeypatch, found=True)
    code, out, _ = explain(capsys, site, best, "--image", site.parent / "scans", "-o", site / "new" / "page")
    assert code == 0 and (site / "new" / "page" / "index.html").is_file()
    lines = out.splitlines()[1:]
    assert [line.split(":")[0] for line in lines[:3]] == ["doe-jane.png", "poe-anna.png", "roe-richard.png"]
    assert all("An explanation was found: with 100.0% of the picture changed" in line for line in lines[:2])
    items = json.loads((site / "new" / "page" / "metrics.json").read_text())["items"]
    assert [item["target"] for item in items] == [1, 1, 0] and all(item["found"] for item in items)


def test_scans_by_hand_get_the_references_that_a_gallery_of_the_sites_test_scans_gets(
    best, site, tiny_files, test_images, capsys, monkeypatch
):
    """The site's own test scans, once for all that are named; the decisions of the model on them, no label."""
    (site / "site.yaml").write_text(f"data: {{kind: npz, path: {tiny_files / 'data.npz'}}}\n")
    given, search = [], METHODS["region"]

    def spy(*rest, references=None, **keys):
        given.append(references)
        return search(*rest, references=references, **keys)

    monkeypatch.setitem(METHODS, "region", spy)
    monkeypatch.setattr("jointdiff.counterfactual.MIN_TYPICAL", 2)
    code, out, err = explain(capsys, site, best, "--image", jane(site), site.parent / "scans" / "poe-anna.png")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "References: 18 of the site's 18 test scans."
    trained = open_trained(best, device="cpu")
    scans = ImageSet(test_images[..., None], np.arange(18) % 2)
    expected = references(trained.model, scans, device=trained.device)
    (got,) = given
    torch.testing.assert_close(got.scans, expected.scans, rtol=0, atol=0)
    torch.testing.assert_close(got.margins, expected.margins, rtol=0, atol=0, equal_nan=True)
    assert not got.margins[:, 1].isnan().all()


def test_where_the_sites_data_cannot_be_read_the_scan_is_explained_without_and_that_is_said(
    best, site, tmp_path, capsys, monkeypatch
):
    force(monkeypatch, found=True)
    (site / "site.yaml").write_text(f"data: {{kind: npz, path: {tmp_path / 'gone.npz'}}}\n")
    code, out, _ = explain(capsys, site, best, "--image", jane(site))
    assert code == 0 and "An explanation was found" in out
    assert out.splitlines()[0].startswith(f"{WITHOUT}, which cannot be read: ") and "gone.npz" in out.splitlines()[0]


def test_no_explanation_is_said_plainly_and_is_no_failure(best, site, capsys, monkeypatch):
    """Also where the search says that it found one, and the edit in whole grey levels does not do it."""
    force(monkeypatch, found=False)
    code, out, _ = explain(capsys, site, best, "--image", jane(site))
    assert code == 0 and "No explanation was found: the search met no edit with which it decides for 'ill'" in out
    assert "An explanation was found" not in out and "with 0.0% of the picture changed" in out
    (item,) = json.loads((site / "explanations" / "tiny-scans-1" / "metrics.json").read_text())["items"]
    assert item["found"] is False


def test_file_names_stand_on_the_page_where_the_policy_says_so(best, site, capsys, monkeypatch):
    force(monkeypatch, found=True)
    (site / "site.yaml").write_text("explanations: {show-names: true}\n")
    assert explain(capsys, site, best, "--image", jane(site))[0] == 0
    assert "doe-jane.png" in (site / "explanations" / "tiny-scans-1" / "index.html").read_text()


def test_a_second_call_keeps_the_first_page(best, site, capsys, monkeypatch):
    force(monkeypatch, found=True)
    for number in (1, 2):
        out = explain(capsys, site, best, "--image", jane(site))[1]
        assert str(site / "explanations" / f"tiny-scans-{number}" / "index.html") in out


def test_a_run_name_of_a_foreign_checkpoint_does_not_choose_the_folder(best, site, tmp_path, capsys, monkeypatch):
    force(monkeypatch, found=True)
    content = best.read_bytes()
    assert content.count(b'\\"tiny\\"') == 1
    (tmp_path / "evil.safetensors").write_bytes(content.replace(b'\\"tiny\\"', b'\\"../x\\"'))
    assert explain(capsys, site, tmp_path / "evil.safetensors", "--image", jane(site))[0] == 0
    assert [p.name for p in (site / "explanations").iterdir()] == ["model-scans-1"]


def test_a_finding_is_turned_over_in_a_multi_label_task(best, site, tmp_path, capsys, test_images):
    from jointdiff.config import parse_run_config, resolve
    from jointdiff.model import JointModel

    model_yaml = tmp_path / "model.yaml"
    model_yaml.write_text("width: 8\nmultipliers: [1]\npatch-size: 2\nnum-blocks: 1\nattention-levels: []\n")
    labels = np.stack([np.arange(8) % 2, np.arange(8) // 4], axis=1)
    np.savez(tmp_path / "m.npz", train_images=test_images[:8], train_labels=labels, class_names=np.array(["a", "b"]))
    run = parse_run_config({"dataset": f"npz:{tmp_path / 'm.npz'}", "image-size": 16, "model": str(model_yaml)})
    config = resolve(run, channels=1, num_outputs=2, task="multi-label")
    with torch.random.fork_rng():
        model = JointModel(config.model)
    model.head.linear.weight.data[0] = 0.01
    model.head.linear.bias.data = torch.tensor([3.0, 0.0])
    path = checkpoint.save(tmp_path / "m.safetensors", model.state_dict(), config, round_number=1)
    code, out, err = explain(capsys, site, path, "--image", jane(site), "--target", "a")
    assert code == 0, err
    assert "The model finds 'a' 0.9" in out and "no longer finds 'a' (probability of 'a': 0.9" in out
    code, _, err = explain(capsys, site, path, "--image", jane(site), "--target", "b")
    assert code == 4 and "no classifier for 'b'" in err


@pytest.mark.parametrize(("text", "index"), [("ill", 1), ("Healthy", 0), ("1", 1), ("0", 0)])
def test_a_class_is_named_or_numbered(text, index):
    assert find_target(text, ("healthy", "ill")) == index


def test_names_that_differ_by_case_alone_or_look_like_numbers():
    assert [find_target(t, ("A", "a", "1")) for t in ("A", "a", "1", "0")] == [0, 1, 2, 0]


# ---- what is refused: one clear error, a true exit code, and nothing written


def write_png(pixels, name="bad.png", **options):
    def make(folder: Path, best: Path) -> list[object]:
        Image.fromarray(pixels).save(folder / name, **options)
        return [best, "--image", folder / name]

    return make


def write_npz(images):
    def make(folder: Path, best: Path) -> list[object]:
        np.savez(folder / "bad.npz", images=images)
        return [best, "--image", folder / "bad.npz"]

    return make


def one_bad_in_a_folder(folder: Path, best: Path) -> list[object]:
    Image.fromarray(NOISE).save(folder / "a.png")
    Image.fromarray(NOISE[:12]).save(folder / "b.png")
    return [best, "--image", folder]


def with_target(target: str):
    def make(folder: Path, best: Path) -> list[object]:
        return [best, "--image", folder.parent / "scans" / "doe-jane.png", "--target", target]

    return make


def with_head(change):
    def make(folder: Path, best: Path) -> list[object]:
        path = changed(best, folder / "c.safetensors", change)
        return [path, "--image", folder.parent / "scans" / "doe-jane.png"]

    return make


def without_denoising(folder: Path, best: Path) -> list[object]:
    import dataclasses

    saved = checkpoint.load(best)
    config = dataclasses.replace(saved.config, training=dataclasses.replace(saved.config.training, diffusion_weight=0))
    checkpoint.save(folder / "c.safetensors", saved.state, config, round_number=1)
    return [folder / "c.safetensors", "--image", folder.parent / "scans" / "doe-jane.png"]


def all_alike(state) -> None:
    state["head.linear.weight"] = torch.ones_like(state["head.linear.weight"])


NOISE = np.random.default_rng(5).integers(0, 200, (16, 16), dtype=np.uint8)
GAP = np.where(np.eye(16, dtype=bool), np.nan, NOISE / 255)
BAD = {
    "size": (write_png(np.kron(NOISE, np.ones((2, 2), np.uint8))), 3, "bad.png is 32 x 32 pixels (height x width), but "
             "the model sees 16 x 16"),
    "depth": (write_png(NOISE.astype(np.uint16) * 100), 3, "bad.png has 16 bits per channel"),
    "channels": (write_png(np.stack([NOISE] * 3, -1)), 3, "bad.png has 3 channels, but the model sees 1 (grey"),
    "constant": (write_png(np.full((16, 16), 77, np.uint8)), 3, "bad.png is constant: every pixel is 77"),
    "size in npz": (write_npz(np.zeros((2, 8, 8), np.uint8)), 3, "is 8 x 8 pixels"),
    "depth in npz": (write_npz(NOISE[None].astype(np.uint16)), 3, "must be uint8"),
    "channels in npz": (write_npz(np.stack([NOISE[None]] * 3, -1)), 3, "has 3 channels"),
    "constant in npz": (write_npz(np.stack([NOISE, NOISE * 0])), 3, "bad.npz[1] is constant: every pixel is 0"),
    "nan": (write_npz(GAP[None]), 3, "holds NaN or infinity in 16 of 256 values"),
    "one of a folder": (one_bad_in_a_folder, 3, "b.png is 12 x 16 pixels"),
    "nothing there": (lambda f, best: [best, "--image", f / "none.png"], 3, "There is no file"),
    "unknown class": (with_target("il"), 2, "Unknown class 'il': did you mean 'ill'?"),
    "number too high": (with_target("2"), 2, "Unknown class '2'"),
    "current class": (with_target("healthy"), 2, "decides for 'healthy' in doe-jane.png as it is"),
    "no head": (with_head(lambda s: s["head.linear.weight"].zero_()), 4, "The checkpoint has no classifier"),
    "no difference between classes": (with_head(all_alike), 4, "The checkpoint has no classifier"),
    "no denoising": (without_denoising, 4, "trained without the denoising loss"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_written(best, site, tmp_path, capsys, case):
    make, code, message = BAD[case]
    (tmp_path / "bad").mkdir()
    arguments = make(tmp_path / "bad", best)
    before = sorted(tmp_path.rglob("*"))
    got, out, err = explain(capsys, site, *arguments)
    assert got == code and message in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert not out and sorted(tmp_path.rglob("*")) == before


def test_an_output_with_something_in_it_is_left_alone(best, site, capsys):
    (site / "old").mkdir()
    (site / "old" / "0000-scan.png").write_text("of another patient")
    code, _, err = explain(capsys, site, best, "--image", jane(site), "-o", site / "old")
    assert (
        code == 5
        and "is not empty: name a new folder" in err
        and [p.name for p in (site / "old").iterdir()] == ["0000-scan.png"]
    )


def test_a_damaged_policy_stops_before_the_work(best, site, capsys):
    (site / "site.yaml").write_text("explanations: {show-name: true}\n")
    code, _, err = explain(capsys, site, best, "--image", jane(site))
    assert code == 2 and "did you mean 'show-names'?" in err and not (site / "explanations").exists()


# ---- what a run may ask


@pytest.fixture
def end_of_run(tiny_run, tmp_path, monkeypatch, quick_referee):
    """A function that runs a federation whose sites have policies; gives its events, and the answers to `explain`."""
    monkeypatch.setattr(
        "jointdiff.explanation.grade_samples", lambda *_, **__: {"samples.num": 4.0, "samples.referee_agreement": 0.5}
    )

    def go(*policies: str):
        for number, text in enumerate(policies, start=1):
            folder = tmp_path / "sites" / f"hospital-{number}"
            folder.mkdir(parents=True)
            (folder / "site.yaml").write_text(f"{text}\n")
        run = tiny_run(
            sites_home=str(tmp_path / "sites"), num_hospitals=len(policies), num_rounds=1, local_steps=1, explain=2
        )
        events = read_events(run_local(run) / "events.jsonl")
        assert events[-1]["event"] == "run_finished"
        return events, [e for e in events if e.get("kind") == "explain"]

    return go


OPEN = "privacy: {min-cell-count: 0, server-samples: false}"


def test_a_site_that_renders_nothing_and_one_that_tells_nothing(end_of_run, tmp_path):
    events, answers = end_of_run(
        f"{OPEN}\nexplanations: {{render: false}}",
        f"{OPEN}\nexplanations: {{report: none}}",
        "privacy: {min-cell-count: 3}\nexplanations: {report: none}",
        OPEN,
    )
    refused, silent, small, told = sorted(answers, key=lambda e: e["hospital"])
    assert refused["event"] == "hospital_refused" and "renders no explanations" in refused["reason"]
    assert (silent["event"], silent["num_images"], silent["num_labels"]) == ("hospital_replied", 2, 0)
    assert not silent["metrics"] and silent["withheld"] == ["grades", "num_labels"]
    assert not small["metrics"] and small["num_images"] == 0 and "num_images" in small["withheld"]
    assert told["metrics"]["num_scans"] == 2 and "validity" in told["metrics"] and "withheld" not in told
    (explained,) = [e for e in events if e["event"] == "explained"]
    assert explained["hospitals"]["hospital-2"] == {} and explained["pooled"]["num_scans"] == 2
    sites = [tmp_path / "sites" / f"hospital-{k}" for k in (1, 2, 3, 4)]
    assert [(s / "explanations" / "tiny" / "index.html").is_file() for s in sites] == [False, True, True, True]
    (left,) = [entry for _, entry in manifest.read(sites[1], "tiny").entries if entry["kind"] == "explain"]
    assert "validity" not in json.dumps(left) and "samples" not in json.dumps(left)


def test_where_every_site_renders_nothing_the_run_still_ends(end_of_run, tmp_path):
    _, answers = end_of_run(*[f"{OPEN}\nexplanations: {{render: false}}"] * 2)
    assert [e["event"] for e in answers] == ["hospital_refused"] * 2
    assert not list((tmp_path / "sites").rglob("index.html"))


def jane_as_dicom(site: Path, test_images: np.ndarray, *, rows: int = 40, columns: int = 40, **fields) -> Path:
    scan = pydicom.Dataset()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = DigitalXRayImageStorageForPresentation
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = generate_uid()
    scan.PatientName, scan.PatientID, scan.StudyInstanceUID = "Doe^Jane", "MRN-4711", generate_uid()
    scan.PatientBirthDate, scan.AccessionNumber, scan.BurnedInAnnotation = "19610203", "ACC-12", "NO"
    shown = np.asarray(Image.fromarray(test_images[0].squeeze()).resize((columns, rows)))
    scan.set_pixel_data(shown.astype(np.uint16) * 16, "MONOCHROME2", 12)
    for name, value in fields.items():
        setattr(scan, name, value)
    path = site.parent / "scans" / "doe-jane.dcm"
    scan.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("show_names", [False, True])
def test_dicom_goes_in_and_a_secondary_capture_comes_out(capsys, best, site, test_images, show_names):
    path = jane_as_dicom(site, test_images, rows=40, columns=30)
    (site / "site.yaml").write_text(f"explanations: {{show-names: {str(show_names).lower()}}}\n")
    code, out, error = explain(capsys, site, best, "--image", path, "--secondary-capture", "-o", site / "page")
    assert code == 0, error
    assert "doe-jane.dcm: The model decides for" in out
    (made,) = (site / "page" / "dicom").iterdir()
    assert made.stat().st_mode & 0o077 == 0
    found, scan = pydicom.dcmread(made), pydicom.dcmread(path)
    assert found.SOPClassUID == SecondaryCaptureImageStorage and list(found.ImageType) == ["DERIVED", "SECONDARY"]
    assert found.ConversionType == "SYN" and "Not for diagnosis" in found.ImageComments
    assert found.SOPInstanceUID != scan.SOPInstanceUID and found.SeriesInstanceUID
    for name in TYPE_1:
        assert found.get(name) not in (None, ""), name
    for name in TYPE_2:
        assert name in found, name
    assert (found.PatientName == "Doe^Jane") == show_names
    assert (found.StudyInstanceUID == scan.StudyInstanceUID) == show_names
    everything = made.read_bytes()
    for told in (b"Doe", b"MRN-4711", b"19610203", b"ACC-12"):
        assert (told in everything) == show_names, told
    assert found.BurnedInAnnotation == "NO"  # as the scan says of itself
    pixels = found.pixel_array
    assert pixels.shape == (384 + 2 * 28, 3 * 384 + 2 * 8, 3) and pixels[28:-28].std() > 10
    yellow = (pixels[-28:] == (255, 255, 0)).all(axis=2).sum()
    assert yellow > 100, "the warning stands in the picture"


def test_an_image_file_becomes_a_capture_of_nobody(capsys, best, site):
    (site / "site.yaml").write_text("explanations: {show-names: true}\n")
    code, _, error = explain(
        capsys, site, best, "--image", site.parent / "scans", "--secondary-capture", "-o", site / "page"
    )
    assert code == 0, error
    made = [pydicom.dcmread(path) for path in sorted((site / "page" / "dicom").iterdir())]
    assert [scan.InstanceNumber for scan in made] == [1, 2, 3] and len({scan.SeriesInstanceUID for scan in made}) == 1
    assert len({scan.SOPInstanceUID for scan in made}) == 3
    assert not any(scan.PatientName or "BurnedInAnnotation" in scan for scan in made)


@pytest.mark.parametrize(
    ("damage", "match"),
    [("truncated", "truncated or damaged"), ("frames", "several frames"), ("blank", "is constant")],
)
def test_dicom_that_is_no_good_is_named(capsys, best, site, test_images, damage, match):
    fields = {"NumberOfFrames": 3} if damage == "frames" else {}
    path = jane_as_dicom(site, np.full_like(test_images, 7) if damage == "blank" else test_images, **fields)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    code, _, error = explain(capsys, site, best, "--image", path, "-o", site / "page")
    assert code != 0 and match in error and "doe-jane.dcm" in error
    assert not (site / "page").exists()


@pytest.mark.parametrize("window", ["auto", (600.0, 900.0)])
def test_dicom_is_the_same_whether_it_is_a_sites_own_or_brought_by_hand(tmp_path, best, site, test_images, window):
    for name, columns in (("healthy", 30), ("ill", 40)):
        (tmp_path / "data" / name).mkdir(parents=True)
        jane_as_dicom(site, test_images, columns=columns).rename(tmp_path / "data" / name / "scan.dcm")
    trained = open_trained(best, device="cpu")
    wanted = info_of(trained.config.run)
    loaded = open_site(SiteSource(kind="dicom", path=tmp_path / "data", window=window), wanted, cache=tmp_path / "c")
    own = np.concatenate([images.images for _, images, _ in loaded.parts()])
    paths = [str(tmp_path / "data" / name) for name in loaded.names]
    by_hand = read_scans(paths, trained.config.model, window=window)[1]
    np.testing.assert_array_equal(by_hand, own)
    np.testing.assert_array_equal(trained.predict(by_hand), trained.predict(own))


def test_many_scans_that_are_interrupted_are_carried_on(capsys, best, site, test_images, monkeypatch):
    many = np.random.default_rng(0).permuted(np.repeat(test_images[:2], 70, axis=0), axis=2)
    np.savez(site.parent / "scans" / "many.npz", images=many)
    request = (best, "--image", site.parent / "scans" / "many.npz", "-o", site / "page")
    real, calls = METHODS["region"], []

    def search(model, images, *rest, stop=True, **keys):
        if stop and calls:
            raise KeyboardInterrupt
        calls.append(len(images))
        return real(model, images, *rest, **keys)

    monkeypatch.setitem(METHODS, "region", search)
    assert explain(capsys, site, *request)[0] == 130
    assert calls == [64] and not (site / "page").exists()
    (part,) = (site / KEPT / "parts").iterdir()
    assert part.stat().st_mode & 0o077 == 0
    monkeypatch.setitem(METHODS, "region", partial(search, stop=False))
    code, out, error = explain(capsys, site, *request)
    assert code == 0, error
    assert calls == [64, 64, 12] and "140 of 140 scans explained" in out
    assert (site / "page" / "index.html").is_file() and not (site / KEPT).exists()

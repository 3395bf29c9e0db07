"""Preflight over a real site: real certificates, TLS servers and a training step; each fault is a line of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from client import keys, latents, preflight, sealed, versions
from client.cli import main
from client.preflight import facts, federation, latents_key, machine, own_data, software
from client.preflight.trial_step import measure, random_data
from jointdiff.config import Config, resolve
from jointdiff.data import HospitalData
from jointdiff.errors import ConfigError
from jointdiff.ledger import Ledger
from jointdiff.phases import phases_of
from jointdiff.views.format import num_bytes

_spec = importlib.util.spec_from_file_location("_site_tools", Path(__file__).with_name("site_tools.py"))
assert _spec is not None and _spec.loader is not None
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

DATA = "  kind: folder\n  path: scans\n  classes:\n    healthy: normal\n    lesion: nodule\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory):
    return tools.Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture
def site(tmp_path: Path, authority) -> Path:
    """A site where everything is right, but for the server."""
    keys.generate(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    tools.write_scans(tmp_path / "scans")
    tools.write_site(tmp_path, f"127.0.0.1:{tools.free_port()}", DATA)
    return tmp_path


def asked(tiny_files: Path, **changes: object) -> dict:
    return {"image-size": 16, "batch-size": 4, "model": str(tiny_files / "model.yaml"),
            "classes": "healthy,lesion", **{k.replace("_", "-"): v for k, v in changes.items()}}  # fmt: skip


def test_one_failing_check_hides_no_other(site, tiny_files, authority, capsys):
    with tools.serving(authority.issue("server", days=20), off_s=-30) as port:
        tools.write_site(site, f"127.0.0.1:{port}", DATA)
        words = [f"{key}={value}" for key, value in asked(tiny_files).items()]
        (site / "site.key").chmod(0o644)
        assert main(["preflight", "--json", "--site", str(site), "--run-config", *words]) == 1
        found = {line["check"]: line for line in json.loads(capsys.readouterr().out)}
    assert list(found) == list(preflight.CHECKS)
    states = {name: line["status"] for name, line in found.items()}
    assert states == {
        "site.yaml": "PASS", "software": "PASS", "JointDiff": "PASS", "data": "PASS", "data quality": "PASS",
        "privacy": "PASS", "model": "PASS", "disk": states["disk"], "latents": "PASS", "server's name": "PASS",
        "server's port": "PASS", "TLS": "WARN", "health": "PASS", "clock": "FIX", "key": "FIX", "admission": "UNKNOWN",
    }  # fmt: skip
    assert "renew" in found["TLS"]["remedy"] and re.search(r"clock is (29|30|31) s ahead of", found["clock"]["found"])
    assert found["key"]["remedy"] == f"chmod 600 '{site / 'site.key'}'"
    assert keys.fingerprint_of(site / "site.key") in found["key"]["found"]
    assert re.search(r"\d+ training images, labelled: healthy \d+, lesion \d+; unlabelled 24", found["data"]["found"])
    assert "of memory" in found["model"]["found"]
    text = json.dumps(found)
    assert "patient-" not in text and ".png" not in text


def test_the_table_says_what_mends_what(site, capsys, monkeypatch):
    monkeypatch.setattr(
        preflight, "CHECKS", {name: preflight.CHECKS[name] for name in ("server's port", "TLS", "disk")}
    )
    assert main(["preflight", "--site", str(site / "site.yaml")]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("FIX     server's port") and "nobody listens there" in told[0]
    assert told[1].strip().startswith("-> Ask the coordinator") and told[2].startswith("UNKNOWN TLS")
    assert "Not come to" in told[2] and told[-1].startswith("1 of 3 checks need a FIX")
    (site / "disk").mkdir()
    monkeypatch.setattr(preflight, "CHECKS", {"disk": machine.disk, "odd": lambda _: 1 / 0})
    assert main(["preflight", "--site", str(site)]) == 0
    told = capsys.readouterr().out
    assert "The check itself failed (ZeroDivisionError)" in told and "ready to join" in told


def test_an_empty_folder_is_told_every_step(tmp_path, monkeypatch):
    monkeypatch.delitem(preflight.CHECKS, "model")  # it needs no site, and takes its time
    found = {line.name: line for line in preflight.run(preflight.Facts(tmp_path, {"classes": "a,b"}))}
    assert found["site.yaml"].status == "FIX" and found["site.yaml"].remedy == "jointdiff-client init"
    assert found["data"].status == "FIX" and "jointdiff-client init" in found["data"].text
    assert found["admission"].status == "FIX" and "federation" in found["admission"].text
    assert found["software"].status == "PASS"


@pytest.mark.parametrize(("server", "fault", "where", "words"), [
    ("nowhere.invalid:443", "", "server's name", "cannot be resolved"),
    ("", "plain", "TLS", "plain HTTP"),
    ("", "theirs", "TLS", "not signed by the authority"),
    ("", "expired", "TLS", "has expired"),
])  # fmt: skip
def test_a_fault_on_the_way_is_named_where_it_is(site, tmp_path, authority, server, fault, where, words):
    issuer = tools.Authority(tmp_path, "theirs") if fault == "theirs" else authority
    paths = None if fault == "plain" else issuer.issue("server", days=-1 if fault == "expired" else 50)
    with tools.serving(paths) as port:
        tools.write_site(site, server or f"127.0.0.1:{port}", DATA)
        own = facts.Facts(site)
        checks = {"server's name": federation.name, "server's port": federation.port, "TLS": federation.tls,
                  "health": federation.health, "clock": federation.clock,
                  "admission": federation.admission}  # fmt: skip
        found = {name: check(own) for name, check in checks.items()}
    names = list(checks)
    before, after = names[: names.index(where)], names[names.index(where) + 1 :]
    assert all(found[name].status == "PASS" for name in before) and all(
        found[name].status == "UNKNOWN" for name in after
    )
    assert found[where].status == "FIX" and words in found[where].text and found[where].remedy


def test_keys_that_are_missing_or_strange(site):
    (site / "site.key").write_text("no key")
    with pytest.raises(ConfigError, match="no private key"):
        federation.key(facts.Facts(site))
    (site / "site.key").unlink()
    assert federation.key(facts.Facts(site)).remedy == "jointdiff-client keygen"


def test_data_that_are_not_right(site, tiny_files):
    shutil.copy(site / "scans" / "normal" / "patient-0.png", site / "scans" / "nodule" / "copy.png")
    line = own_data.sane(facts.Facts(site, asked(tiny_files)))
    assert line.status == "FIX" and "different labels" in line.text and ".png" not in line.text + line.remedy
    own = facts.Facts(site, asked(tiny_files, classes="healthy,tumour"))
    with pytest.raises(ConfigError, match="lesion"):
        own_data.readable(own)


def test_few_scans_are_too_few_for_the_sites_own_policy(site, tiny_files):
    tools.write_site(site, "127.0.0.1:1", DATA, "privacy:\n  min-cell-count: 70\n")
    line = own_data.readable(facts.Facts(site, asked(tiny_files)))
    assert line.status == "FIX" and "min-cell-count (70)" in line.remedy


def test_the_ceiling_against_what_is_asked(site, tiny_files):
    def line(**changes: object) -> preflight.Line:
        return own_data.privacy(facts.Facts(site, asked(tiny_files, **changes)))

    assert "no ceiling" in line().text
    privacy = "privacy:\n  epsilon: 4\n  delta: 1.0e-5\n  require-secure-aggregation: false\n"
    tools.write_site(site, "127.0.0.1:1", DATA, privacy)
    assert line().status == "FIX" and "no differential privacy" in line().text
    assert line(target_epsilon=3.0).status == "PASS" and line(target_epsilon=5.0).status == "FIX"
    assert line(noise_multiplier=1.0).status == "UNKNOWN"
    assert own_data.privacy(facts.Facts(site)).status == "PASS"
    ledger = Ledger.open(site, dataset="d", num_records=99, delta=1e-5, ceiling=None)
    ledger.spend(run="r", round=1, noise_multiplier=1.0, sample_rate=0.1, steps=9, key="k")
    assert 1 < ledger.epsilon < 4 and f"spent {ledger.epsilon:.4g}" in line(target_epsilon=3.0).text
    assert line(target_epsilon=3.0).status == "WARN" and line(target_epsilon=0.1).status == "PASS"
    ledger.spend(run="r", round=2, noise_multiplier=0.3, sample_rate=0.5, steps=20, key="l")
    assert line(target_epsilon=1.0).status == "FIX" and "every run is refused" in line(target_epsilon=1.0).text
    tools.write_site(site, "127.0.0.1:1", DATA, privacy.replace("false", "true"))
    assert "secure aggregation" in line().text
    assert "secure aggregation" not in line(secure_aggregation=True).text


def test_a_trial_step_is_a_real_one_and_tells_what_fails(tiny_run):
    run = tiny_run(num_labels=0)
    config = resolve(run, channels=3, num_outputs=2, task="multi-label")
    data = random_data(config, torch.device("cpu"))
    assert isinstance(data, HospitalData) and data.train.images.shape == (8, 16, 16, 3)
    assert 0 < data.train.num_labelled < 8 and data.hidden_labels.shape == (8, 2)
    found = measure(config, "cpu")
    assert found["device"] == "cpu" and found["seconds"] > 0 and found["peak_bytes"] > 10_000_000
    assert found["parts"] == 1
    assert "no GPU" in measure(config, "cuda:77")["error"] or "GPU(s)" in measure(config, "cuda:77")["error"]


def test_a_trial_of_a_run_of_two_phases_is_a_step_of_either(tiny_run, tmp_path):
    (tmp_path / "kl-tiny.yaml").write_text("widths: [8]\nnum-blocks: 0\n")
    run = tiny_run(latent=True, autoencoder_model=str(tmp_path / "kl-tiny.yaml"))
    config = resolve(run, channels=1, num_outputs=2, task="multi-class")
    assert measure(config, "cpu")["parts"] == 1
    source = random_data(phases_of(config)[1], torch.device("cpu")).view_source
    assert source is not None and source.images.shape == (8, 16, 16, 1)
    assert config.autoencoder is not None
    unfit = dataclasses.replace(config, autoencoder=dataclasses.replace(config.autoencoder, image_size=15))
    with pytest.raises(ValueError, match="is no multiple"):
        measure(unfit, "cpu")


def test_a_step_that_is_killed_is_memory(site, tiny_files, monkeypatch):
    shell = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    run = machine.subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", lambda command, **k: run([command[0], "-c", shell], **k))
    line = machine.model_fits(facts.Facts(site, asked(tiny_files)))
    assert line.status == "FIX" and "lack of memory" in line.text and "batch-size" in line.remedy


def test_a_device_that_does_a_batch_in_halves_is_told_as_one(site, tiny_files, monkeypatch):
    found = {"device": "cuda:0", "seconds": 0.5, "peak_bytes": 10**9, "parts": 2}
    shell, run = f"import json; print(json.dumps({found}))", machine.subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", lambda command, **k: run([command[0], "-c", shell], **k))
    line = machine.model_fits(facts.Facts(site, asked(tiny_files)))
    assert line.status == "PASS" and "in two halves, since a whole batch does not fit" in line.text


def test_disks_that_are_full_or_closed(site, monkeypatch):
    usage = shutil.disk_usage(site)
    for free, status in ((5e8, "FIX"), (2e9, "WARN"), (9e9, "PASS")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=free: usage._replace(free=int(free)))
        assert machine.disk(facts.Facts(site)).status == status
    assert machine.disk(facts.Facts(site / "nowhere")).status == "FIX"


def test_versions_are_those_that_the_package_asks_for(monkeypatch):
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    asked_for = next(text for text in pyproject["project"]["dependencies"] if text.startswith("flwr"))
    low, high = (tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", asked_for))
    assert (low, high) == (versions.FLOWER_FROM, versions.FLOWER_BELOW)
    line = software.code(facts.Facts(Path()))
    assert versions.versions()["code_hash"][:12] in line.text
    monkeypatch.setattr(software, "versions", lambda: {**versions.versions(), "flwr": "1.50.0"})
    line = software.installed(facts.Facts(Path()))
    assert line.status == "FIX" and "pip install 'flwr[simulation]>=1.41,<1.43'" in line.remedy


def test_a_run_config_comes_from_files_and_words(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.flwr.app.config]\nimage-size = 64\nclasses = "a,b"\n')
    assert preflight.read_run_config([str(tmp_path / "pyproject.toml")]) == {"image-size": 64, "classes": "a,b"}
    (tmp_path / "config.yaml").write_text("run:\n  image-size: 32\nmodel: {}\n")
    assert preflight.read_run_config([str(tmp_path / "config.yaml")]) == {"image-size": 32}
    assert preflight.read_run_config(["image-size=16", "classes=a,b"]) == {"image-size": 16, "classes": "a,b"}
    (tmp_path / "bad.yaml").write_text("- 1\n")
    for bad in ("bad.yaml", "missing.toml"):
        with pytest.raises(ConfigError, match="run-config"):
            preflight.read_run_config([str(tmp_path / bad)])
    with pytest.raises(ConfigError, match="for simulations"):
        _ = facts.Facts(tmp_path, {"dataset": "phantom"}).run
    assert Config().run.dataset == "phantom"


@pytest.fixture
def latents_of(site, tmp_path):
    """What the check says under a section `latents` of site.yaml; it must change nothing."""

    def lying():
        """What there is, but for the cache of fitted scans, which reading the data makes and touches."""
        found = [path for path in tmp_path.rglob("*") if "data-cache" not in str(path) and path != site]
        return sorted((path, path.stat().st_mtime_ns) for path in found)

    def say(section: str, asked=None) -> facts.Line:
        tools.write_site(site, "127.0.0.1:1", DATA)
        with (site / "site.yaml").open("a") as file:
            file.write(f"latents: {section}\n")
        before = lying()
        (line,) = [each for each in preflight.run(facts.Facts(site, asked)) if each.name == "latents"]
        assert lying() == before
        return line

    return say


@pytest.fixture
def one_check(monkeypatch):
    monkeypatch.setattr(preflight, "CHECKS", {"latents": preflight.CHECKS["latents"]})


def test_the_key_of_the_latents_is_looked_at_and_never_made(site, one_check, latents_of, tmp_path):
    key, section = tmp_path / "keys" / "latents.key", f"{{encryption-key: {tmp_path}/keys/latents.key}}"
    assert latents_of("{on-disk: false}").status == latents_of("{on-disk: true}").status == "PASS"
    line = latents_of(section)
    assert line.status == "FIX" and "no folder" in line.text and "Mount its disk" in line.remedy
    key.parent.mkdir()
    line = latents_of(section)
    assert line.status == "WARN" and "makes it" in line.text and "protects little" in line.text
    own = sealed.load_key(key)
    assert latents_of(section).status == "WARN" and "is fit" in latents_of(section).text
    key.chmod(0o644)
    assert latents_of(section).status == "FIX" and f"chmod 600 '{key}'" in latents_of(section).text
    key.chmod(0o600)
    key.write_text("ab" * 31)
    assert latents_of(section).status == "FIX" and "64 hexadecimal digits" in latents_of(section).text

    key.write_text(own.hex())
    folder = site / latents.CACHE
    folder.mkdir()
    images = np.zeros((2, 4, 4, 4), np.uint8)
    sealed.write(folder / "latents-0.sealed", "these", iter(images), images.shape, own)
    assert "fits what is sealed, 1 file" in latents_of(section).text
    key.write_text("ab" * 32)
    line = latents_of(section)
    assert line.status == "FIX" and "is not the one that the latents" in line.text
    key.unlink()
    line = latents_of(section)
    assert line.status == "FIX" and "is not there, and latents lie sealed" in line.text


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
def test_a_key_on_a_disk_of_its_own_is_as_it_should_be(site, one_check, latents_of):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        if Path(disk).stat().st_dev == site.stat().st_dev:
            pytest.skip("the tests' files are on that disk too")
        assert latents_of(f"{{encryption-key: {disk}/latents.key}}").status == "PASS"
        sealed.load_key(Path(disk, "latents.key"))
        assert latents_of(f"{{encryption-key: {disk}/latents.key}}").status == "PASS"


def test_room_for_the_latents_of_the_run_that_is_asked(site, one_check, latents_of, tiny_files, monkeypatch, tmp_path):
    (tmp_path / "kl-tiny.yaml").write_text("widths: [8]\nnum-blocks: 0\n")
    run = asked(tiny_files, latent=True, autoencoder_model=str(tmp_path / "kl-tiny.yaml"))
    own = facts.Facts(site, run)
    side = own.model.model.input_size
    needed = (len(own.site.data.train) + len(own.site.data.test)) * side * side * 4
    if own.site.data.heldout is not None:
        needed += len(own.site.data.heldout) * side * side * 4
    line = latents_of("{on-disk: true}", run)
    assert line.status == "PASS" and line.text.endswith(f"this run's take {num_bytes(needed)}")
    assert latents_of("{on-disk: true}", asked(tiny_files)).text == "no key: they lie unsealed"
    usage = shutil.disk_usage(site)
    for free, status in ((needed - 1, "FIX"), (needed, "PASS")):
        monkeypatch.setattr(latents_key.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert latents_of("{on-disk: true}", run).status == status
    monkeypatch.setattr(latents_key.shutil, "disk_usage", lambda _: usage._replace(free=0))
    (site / latents.CACHE).mkdir()
    (site / latents.CACHE / "scans-0.cache").write_bytes(b"0")
    assert latents_of("{on-disk: true}", run).status == "WARN"

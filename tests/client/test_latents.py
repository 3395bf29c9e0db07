"""A site in a latent run: it keeps the autoencoder that came, and computes the latents of its scans once."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import yaml

from client import border, latents, sealed
from client import round as client_round
from client.egress import check
from client.site_policy import SECTIONS, SIMULATED, SitePolicy
from jointdiff import identity, latent_run, protocol
from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError, DataError, RefusedError
from jointdiff.latents import FrozenAutoencoder
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions
from jointdiff.spaces import Latents, seen_data


@pytest.fixture
def config(tiny_run, tiny_autoencoder):
    return prepare(tiny_run(autoencoder=tiny_autoencoder()))[0]


@pytest.fixture
def parts(tiny_autoencoder):
    tensors, keys = latent_run.to_tensors(FrozenAutoencoder.load(tiny_autoencoder()))
    return {name: tensor.numpy() for name, tensor in tensors.items()}, keys


@pytest.fixture
def ask(config, parts, tmp_path):
    def make(kind, **changes):
        asked = RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-2", hospital_index=1, round=1, config=config.to_dict(),
            site_folder=str(tmp_path / "site"), code_version=identity.code_version(), code_hash=identity.code_hash(),
            payload={"autoencoder": parts[1]} if kind == protocol.AUTOENCODER else {},
        )  # fmt: skip
        return dataclasses.replace(asked, **changes)

    return make


@pytest.fixture
def counted(monkeypatch):
    """Numbers of images that were encoded, call by call."""
    calls = []
    encode = Latents.inputs
    monkeypatch.setattr(Latents, "inputs", lambda self, images: calls.append(len(images)) or encode(self, images))
    return calls


def test_a_site_keeps_the_autoencoder_and_encodes_its_scans_once(ask, parts, config, counted, tmp_path):
    report, tensors = client_round.run(ask(protocol.AUTOENCODER), parts[0])
    assert (report.status, report.num_images, report.metrics, tensors) == ("ok", 0, {}, {})
    assert check(ask(protocol.AUTOENCODER), report, tensors, SIMULATED)[0] == report  # nothing else leaves
    assert sum(counted) == 16 + 6  # training and test images of hospital-2
    weights = initial_weights(config)
    for kind in (protocol.TRAIN, protocol.HEAD, protocol.EVALUATE):
        assert client_round.run(ask(kind), weights)[0].status == "ok"
    assert sum(counted) == 16 + 6
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "site" / latents.CACHE).glob("*.cache")] == [0]


def test_what_is_trained_on_are_the_latents_of_the_sites_own_scans(ask, parts, config, tmp_path, tiny_autoencoder):
    client_round.run(ask(protocol.AUTOENCODER), parts[0])
    space = latents.space_of(config, tmp_path / "site", "cpu")
    data = hospital_data(config.run, 1)
    found = latents.seen(data, space, tmp_path / "site", training=config.training)
    expected = seen_data(data, Latents(FrozenAutoencoder.load(tiny_autoencoder())))
    assert found.view_source is not None and found.view_source.images is data.train.images
    for name in ("train", "test"):
        np.testing.assert_array_equal(getattr(found, name).images, getattr(expected, name).images)
        np.testing.assert_array_equal(getattr(found, name).labels, getattr(data, name).labels)


@pytest.mark.parametrize("damage", ["truncated", "of another version", "empty"])
def test_a_damaged_cache_is_made_anew(ask, parts, config, counted, tmp_path, damage):
    client_round.run(ask(protocol.AUTOENCODER), parts[0])
    (path,) = (tmp_path / "site" / latents.CACHE).glob("*.cache")
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-100],
        "empty": b"",
        "of another version": whole.replace(b'"format": 1', b'"format": 0'),
    }
    path.write_bytes(broken[damage])
    counted.clear()
    space = latents.space_of(config, tmp_path / "site", "cpu")
    latents.seen(hospital_data(config.run, 1), space, tmp_path / "site")
    assert sum(counted) == 22 and path.read_bytes() == whole


def test_other_scans_and_other_autoencoders_are_other_caches(config, counted, tmp_path, tiny_autoencoder):
    data = hospital_data(config.run, 1)
    for seed in (0, 1):
        latents.seen(data, Latents(FrozenAutoencoder.load(tiny_autoencoder(seed))), tmp_path)
    changed = data.train.images.copy()
    changed[3, 4, 5] ^= 1
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, images=changed))
    latents.seen(data, Latents(FrozenAutoencoder.load(tiny_autoencoder())), tmp_path)
    assert sum(counted) == 3 * 22 and len(list((tmp_path / latents.CACHE).glob("*.cache"))) == 3


def test_latents_are_sealed_at_every_moment_where_a_site_has_a_key(ask, parts, config, counted, tmp_path):
    site, key = tmp_path / "site", tmp_path / "keys" / "latents.key"
    site.mkdir()
    key.parent.mkdir()
    client_round.run(ask(protocol.AUTOENCODER), parts[0])  # before there was a key: latents lie unsealed
    (site / "site.yaml").write_text(f"latents: {{encryption-key: {key}}}\nprivacy: {{min-cell-count: 0}}\n")
    space, data = latents.space_of(config, site, "cpu"), hospital_data(config.run, 1)
    plain = latents.seen(data, space, tmp_path / "elsewhere")
    counted.clear()
    weights = initial_weights(config)
    for kind in (protocol.TRAIN, protocol.EVALUATE):
        assert client_round.run(ask(kind), weights)[0].status == "ok"
    assert sum(counted) == 16 + 6, "sealed once, opened again"
    (path,) = (site / latents.CACHE).glob("*.sealed")
    assert not list((site / latents.CACHE).glob("*.cache"))
    assert path.stat().st_mode & 0o077 == key.stat().st_mode & 0o077 == 0
    assert not any(row.tobytes()[:16] in path.read_bytes() for row in plain.train.images)
    found = latents.seen(data, space, site, key_file=str(key))
    np.testing.assert_array_equal(found.train.images, plain.train.images)
    np.testing.assert_array_equal(found.test.images, plain.test.images)
    latents.seen(data, space, site)  # the key is taken out of site.yaml, and named again
    latents.seen(data, space, site, key_file=str(key))
    assert not list((site / latents.CACHE).glob("*.cache"))
    key.unlink()  # as where the key's disk is not mounted
    with pytest.raises(ConfigError, match=r"is not there, and latents lie sealed.*Mount the key's disk"):
        latents.seen(data, space, site, key_file=str(key))
    assert path.exists() and not key.exists()


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "another key", "another version", "another's name"])
def test_sealed_images_are_opened_whole_or_not_at_all(tmp_path, damage):
    images = np.random.default_rng(0).integers(0, 256, (150, 4, 4, 4), np.uint8)
    key, path = sealed.load_key(tmp_path / "key"), tmp_path / "images"
    sealed.write(path, "these", iter(images), images.shape, key)
    np.testing.assert_array_equal(sealed.read(path, "these", images.shape, key), images)
    whole = path.read_bytes()
    changed = {
        "truncated": whole[:-1], "a flipped bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "another version": whole.replace(b"sealed-2", b"sealed-1"),
    }  # fmt: skip
    path.write_bytes(changed.get(damage, whole))
    name = "those" if damage == "another's name" else "these"
    other = sealed.load_key(tmp_path / "key2") if damage == "another key" else key
    assert sealed.read(path, name, images.shape, other) is None
    assert sealed.is_of_another_key(path, other) == (damage == "another key")
    batch = 12 + 64 * 64 + 16
    start = whole.index(b"\n") + 1
    swapped = whole[:start] + whole[start + batch : start + 2 * batch] + whole[start : start + batch]
    path.write_bytes(swapped + whole[start + 2 * batch :])
    assert sealed.read(path, "these", images.shape, key) is None, "batches keep their places"


@pytest.fixture
def sealed_site(config, counted, tmp_path, tiny_autoencoder):
    """A function that returns the training latents under a key of a name, and the folder where they lie."""
    space, data = Latents(FrozenAutoencoder.load(tiny_autoencoder())), hospital_data(config.run, 1)

    def seen(name: str):
        return latents.seen(data, space, tmp_path / "site", key_file=str(tmp_path / name)).train.images

    first = seen("own.key").copy()
    sealed.load_key(tmp_path / "other.key")
    counted.clear()
    return seen, first, tmp_path / "site" / latents.CACHE


def test_another_key_than_the_latents_were_sealed_with_is_told_and_changes_nothing(
    sealed_site, counted, tmp_path, tiny_autoencoder, config
):
    seen, first, folder = sealed_site
    plain = folder / "scans-0.cache"
    plain.write_bytes(b"of a time without a key")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ConfigError, match=r"other\.key .*is not the one that the latents .*Mount or name the right key"
    ):
        seen("other.key")
    other = Latents(FrozenAutoencoder.load(tiny_autoencoder(1)))  # nor are latents of another run mixed with them
    with pytest.raises(ConfigError, match=f"delete {folder}"):
        latents.seen(hospital_data(config.run, 1), other, tmp_path / "site", key_file=str(tmp_path / "other.key"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not counted
    np.testing.assert_array_equal(seen("own.key"), first)
    assert not counted and not plain.exists()
    shutil.rmtree(folder)  # as the error says
    np.testing.assert_array_equal(seen("other.key"), first)
    assert sum(counted) == 22


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "its key's check", "another version", "empty"])
def test_damaged_sealed_latents_are_no_matter_of_the_key_and_made_anew(sealed_site, counted, damage):
    seen, first, folder = sealed_site
    (path,) = latents.sealed_in(folder)
    whole = path.read_bytes()
    at = whole.index(b'"key-check": "') + len(b'"key-check": "')
    path.write_bytes({
        "truncated": whole[:-1], "a flipped bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "its key's check": whole[:at] + (b"0" if whole[at : at + 1] != b"0" else b"1") + whole[at + 1 :],
        "another version": whole.replace(b"sealed-2", b"sealed-1"), "empty": b"",
    }[damage])  # fmt: skip
    np.testing.assert_array_equal(seen("own.key"), first)
    assert sum(counted) == 22 and len(latents.sealed_in(folder)) == 1
    np.testing.assert_array_equal(seen("own.key"), first)
    assert sum(counted) == 22, "sealed again"


def test_the_server_learns_no_path_from_a_site_whose_key_is_another(ask, parts, config, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for key in ("own.key", "other.key"):
        text = f"latents: {{encryption-key: {tmp_path / key}}}\nprivacy: {{min-cell-count: 0}}\n"
        (site / "site.yaml").write_text(text)
        sealed.load_key(tmp_path / key)
        if key == "own.key":
            client_round.run(ask(protocol.AUTOENCODER), parts[0])
        report, _ = border.answer(ask(protocol.EVALUATE).to_json(), lambda: initial_weights(config))
        assert (report.status, report.code) == {"own.key": ("ok", ""), "other.key": ("failed", "configuration")}[key]
    assert "other" not in report.reason and "/" not in report.reason and report.reason.isascii()
    assert "is not the one that the latents" in (site / border.LOG_FILE).read_text()


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "latents.key"
    assert sealed.load_key(path) == sealed.load_key(path) != sealed.load_key(tmp_path / "other.key")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        sealed.load_key(path)
    path.chmod(0o600)
    path.write_text("hunter2\n")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        sealed.load_key(path)
    with pytest.raises(ConfigError, match="neither be read nor made"):
        sealed.load_key(tmp_path / "not-mounted" / "latents.key")
    assert not (tmp_path / "not-mounted").exists()


def test_a_full_disk_leaves_no_half_sealed_file(config, tmp_path, tiny_autoencoder, monkeypatch):
    space, data = Latents(FrozenAutoencoder.load(tiny_autoencoder())), hospital_data(config.run, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed.storage, "_sync", full)
    key = tmp_path / "k"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    with pytest.raises(DataError, match=r"No space left on device\. Make space"):
        latents.seen(data, space, tmp_path / "site", key_file=str(key))
    assert not [each for each in (tmp_path / "site" / latents.CACHE).iterdir() if "latents-" in each.name]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{encryption-key: keys/latents.key}", "absolute path"),
        ("{encryption-key: 3}", "absolute path"),
        ("{on-disk: false, encryption-key: /keys/latents.key}", "take out one of them"),
    ],
)
def test_a_site_is_told_what_is_wrong_with_its_key(text, match):
    with pytest.raises(ConfigError, match=match):
        SECTIONS["latents"](SitePolicy(), yaml.safe_load(text), "site.yaml")


def test_a_site_that_wants_it_so_writes_no_latent(ask, parts, config, counted, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "site.yaml").write_text("latents: {on-disk: false}\nprivacy: {min-cell-count: 0}\n")
    client_round.run(ask(protocol.AUTOENCODER), parts[0])
    _, first = client_round.run(ask(protocol.EVALUATE), initial_weights(config))
    assert sum(counted) in (0, 22)  # once in this process, whoever asked first
    assert not (site / latents.CACHE).exists() and first


def test_a_site_without_the_autoencoder_says_so_in_words_that_the_server_knows(ask, config, tmp_path, parts):
    with pytest.raises(RefusedError, match=protocol.LACKS_AUTOENCODER):
        client_round.run(ask(protocol.TRAIN), initial_weights(config))
    client_round.run(ask(protocol.AUTOENCODER), parts[0])
    (path,) = (tmp_path / "site" / "autoencoders").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RefusedError, match=protocol.LACKS_AUTOENCODER):
        client_round.run(ask(protocol.TRAIN), initial_weights(config))


def test_another_autoencoder_than_the_runs_is_not_kept(ask, parts, tiny_autoencoder, tmp_path, tiny_run):
    other, _ = latent_run.to_tensors(FrozenAutoencoder.load(tiny_autoencoder(1)))
    with pytest.raises(RefusedError, match="The autoencoder that the server sent is not used"):
        client_round.run(ask(protocol.AUTOENCODER), {name: tensor.numpy() for name, tensor in other.items()})
    with pytest.raises(RefusedError, match="cannot be read"):
        client_round.run(ask(protocol.AUTOENCODER, payload={}), parts[0])
    pixels = prepare(tiny_run(run_name="pixels"))[0]
    with pytest.raises(RefusedError, match="this run works on pixels"):
        client_round.run(ask(protocol.AUTOENCODER, config=pixels.to_dict()), parts[0])
    assert not (tmp_path / "site" / "autoencoders").exists()

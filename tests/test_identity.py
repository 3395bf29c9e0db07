from __future__ import annotations

import pytest

from jointdiff import identity
from jointdiff.errors import RefusedError


def test_every_single_file_counts():
    files = [("client/round.py", b"a"), ("configs/model/unet-28.yaml", b"b")]
    whole = identity.hash_files(files)
    assert identity.hash_files(reversed(files)) == whole
    assert identity.hash_files([("client/round.py", b"A"), files[1]]) != whole
    assert identity.hash_files([("client/other.py", b"a"), files[1]]) != whole
    assert identity.hash_files(files[:1]) != whole


def test_the_hash_covers_code_and_presets_of_all_packages(monkeypatch):
    seen: list[str] = []
    real = identity.hash_files

    def spy(files):
        files = list(files)
        seen.extend(name for name, _ in files)
        return real(files)

    monkeypatch.setattr(identity, "hash_files", spy)
    identity.code_hash.__wrapped__()
    for name in ("client/app.py", "server/rounds.py", "jointdiff/training.py", "configs/training/joint.yaml"):
        assert name in seen
    assert not any("pycache" in name for name in seen)


def test_the_same_code_is_welcome():
    identity.check_identity(identity.code_version(), identity.code_hash())


@pytest.mark.parametrize("version, code", [("0.0.0", None), (None, "f" * 64)])
def test_other_code_is_refused_naming_both_and_the_remedy(version, code):
    with pytest.raises(RefusedError) as caught:
        identity.check_identity(version or identity.code_version(), code or identity.code_hash())
    text = str(caught.value)
    assert (version or code)[:12] in text
    assert identity.code_version() in text and identity.code_hash()[:12] in text
    assert "install the same version" in text

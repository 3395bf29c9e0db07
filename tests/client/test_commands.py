"""The commands of a site as they are typed: they all take --site, and say one clear thing."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client import keys
from client.cli import _parser, main
from jointdiff.errors import ConfigError, RunError

COMMANDS = ("init", "keygen", "preview", "preflight", "start", "stop", "status", "train-local", "evaluate",
            "dashboard", "ledger", "egress", "explain", "audit")  # fmt: skip


def test_every_command_takes_site_and_none_the_old_word(capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["--help"])
    told = capsys.readouterr().out
    for command in COMMANDS:
        assert command in told
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and "--site PATH" in text and "--site-folder" not in text


def test_keygen_says_what_to_send_and_what_never(tmp_path, capsys):
    assert main(["keygen", "--site", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"Send this to the coordinator: {tmp_path / 'site.pub'}" in told
    assert keys.fingerprint_of(tmp_path / "site.key") in told
    assert told.index("Never send this") < told.index(str(tmp_path / "site.key"))
    assert stat.S_IMODE((tmp_path / "site.key").stat().st_mode) == 0o600
    secret = (tmp_path / "site.key").read_text()
    assert secret.splitlines()[1] not in told
    assert main(["keygen", "--site", str(tmp_path)]) == ConfigError.exit_code
    assert (tmp_path / "site.key").read_text() == secret


def test_preview_shows_classes_and_a_page(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text("data:\n  kind: phantom\n  num-images: 40\n")
    assert main(["preview", "--site", str(tmp_path), "--size", "16"]) == 0
    told = capsys.readouterr().out
    page = Path(told.strip().splitlines()[-1].rpartition(": ")[2])
    assert page.is_file() and page.parent == tmp_path / "preview" and "training" in told
    assert main(["preview", "--site", str(tmp_path / "none")]) == ConfigError.exit_code
    assert "jointdiff-client init" in capsys.readouterr().err


def test_site_may_be_the_file_or_its_folder_and_nothing_else(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text("device: cpu\n")
    (tmp_path / "other.yaml").write_text("")
    errors = []
    for path in (tmp_path, tmp_path / "site.yaml"):
        assert main(["ledger", "--site", str(path)]) == RunError.exit_code
        errors.append(capsys.readouterr().err)
    assert errors[0] == errors[1] and f"no privacy ledger in {tmp_path}" in errors[0]
    assert main(["ledger", "--site", str(tmp_path / "other.yaml")]) == ConfigError.exit_code
    assert "--site must name a site.yaml" in capsys.readouterr().err


def test_status_tells_of_the_last_run_from_the_sites_own_folder(tmp_path, capsys):
    (tmp_path / "data-cache").mkdir(parents=True)
    assert main(["status", "--site", str(tmp_path)]) == 1
    assert "No run has asked this site" in capsys.readouterr().out
    path = tmp_path / "state" / "run-a" / "round-0003.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert main(["status", "--site", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "Not running. `jointdiff-client start`" in told and "Last run: run-a, round 3" in told
    assert main(["stop", "--site", str(tmp_path)]) == 0 and "No SuperNode" in capsys.readouterr().out


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys, client.cli as c; c._parser(); sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

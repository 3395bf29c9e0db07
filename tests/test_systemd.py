"""systemd units: systemd's own check finds no fault in them, whatever the folder is called."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jointdiff import systemd
from jointdiff.errors import ConfigError, RunError
from server.cli import main

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
HOMES = ("/srv/jointdiff", '/srv/Klinikum Süd/50% "of" it \\ $HOME')


def verified(units: list[Path]) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("home", HOMES)
def test_systemd_finds_no_fault(tmp_path: Path, home: str) -> None:
    options = ["--port", "443", "--host", "0.0.0.0"]
    units = systemd.write_server_units(tmp_path, home=Path(home), user="jointdiff", options=options)
    units += systemd.write_client_unit(tmp_path, site=Path(home), user="hospital")
    assert len(units) == 5
    done = verified(units)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr


@needs_systemd
@pytest.mark.parametrize(
    ("was", "becomes"), [("Restart=always", "Restartt=always"), ("jointdiff-client", "no-such-command")]
)
def test_the_check_can_fail(tmp_path: Path, was: str, becomes: str) -> None:
    unit = systemd.write_client_unit(tmp_path, site=Path("/srv/site"), user="hospital")[0]
    unit.write_text(unit.read_text().replace(was, becomes))
    assert verified([unit]).stderr.strip()


def read(unit: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(unit, encoding="utf-8")
    return dict(parser["Service"])


def test_what_a_site_relies_on(tmp_path: Path) -> None:
    """Started again for ever, but not in the minute in which the server refuses it; only its home to write."""
    service = read(systemd.write_client_unit(tmp_path, site=Path("/srv/site"), user="hospital")[0])
    assert service["User"] == "hospital" and service["Restart"] == "always" and service["RestartSec"] == "75"
    hardened = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateTmp": "yes", "CapabilityBoundingSet": ""}
    assert hardened.items() <= service.items()
    assert service["ReadWritePaths"] == '"/srv/site"' and service["Environment"] == '"JOINTDIFF_HOME=/srv/site"'
    client = Path(sys.executable).with_name("jointdiff-client")
    assert service["ExecStart"] == f'"{client}" start --foreground --site "/srv/site"'


def test_every_letter_of_a_folder_stays_what_it_is(tmp_path: Path) -> None:
    service = read(systemd.write_client_unit(tmp_path, site=Path(HOMES[1]), user="hospital")[0])
    written = '/srv/Klinikum Süd/50%% \\"of\\" it \\\\ $HOME'
    assert service["ReadWritePaths"] == f'"{written}"' and service["Environment"] == f'"JOINTDIFF_HOME={written}"'
    assert service["ExecStart"].endswith(f'--site "{written.replace("$", "$$")}"')


def test_the_coordinators_units_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, home = tmp_path / "units", tmp_path / "home"
    asked = ["systemd", "--home", str(home), "--user", "coordinator", "-o", str(output), "--port", "443"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "systemctl enable --now jointdiff-server.target" in said and f"chown -R coordinator: {home}" in said
    for name in ("superlink", "superexec", "front-door"):
        service = read(output / f"jointdiff-{name}.service")
        assert f"start --foreground {name} " in service["ExecStart"] and '"--port" "443"' in service["ExecStart"]
        assert (service["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE") == (name == "front-door")
    target = (output / "jointdiff-server.target").read_text()
    assert "jointdiff-front-door.service" in target
    assert not home.exists(), "units are written for a home that may be another machine's"
    assert main([*asked, "--no-front-door"]) == 0
    assert "front-door" not in (output / "jointdiff-server.target").read_text()


@pytest.mark.parametrize("user", ["", "Root", "a b", "x\nUser=root", "1000"])
def test_users_that_cannot_be(tmp_path: Path, user: str) -> None:
    with pytest.raises(ConfigError, match="--user"):
        systemd.write_client_unit(tmp_path, site=Path("/srv/site"), user=user)


def test_a_folder_that_would_write_lines_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control character"):
        systemd.write_client_unit(tmp_path, site=Path("/srv/site\nExecStartPre=/bin/true"), user="hospital")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        systemd.write_client_unit(tmp_path / "file", site=Path("/srv/site"), user="hospital")

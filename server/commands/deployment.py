"""`jointdiff-server start | status | stop | run | follow | stop-run | systemd`: a federation over real hospitals."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jointdiff import storage
from jointdiff.command_line import INTERRUPTED
from jointdiff.errors import RunError
from server.deployment import superlink
from server.deployment.federation_folder import FRONT_PORT
from server.deployment.superlink import SUPERLINK_PORT, Deployment, Settings

if TYPE_CHECKING:
    from server.deployment.deployed_run import Submitted

PROCESSES = ("superlink", "superexec", "front-door")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of a deployment to `jointdiff-server`."""
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument(
        "--home",
        default="",
        metavar="FOLDER",
        help="where `federation` lies (default: $JOINTDIFF_HOME, else ~/.jointdiff)",
    )

    listening = argparse.ArgumentParser(add_help=False)
    listening.add_argument("--port", type=int, help=f"of the front door, what sites are given (default: {FRONT_PORT})")
    listening.add_argument("--host", help="address that the front door listens on (default: 0.0.0.0, all)")
    listening.add_argument(
        "--superlink-port", type=int, metavar="PORT", help=f"on loopback (default: {SUPERLINK_PORT})"
    )
    listening.add_argument(
        "--no-front-door", action="store_true", help="start no nginx: another proxy publishes /v1/fleet/ and /health"
    )

    start = subparsers.add_parser(
        "start", parents=[everywhere, listening], help="start the federation: SuperLink and front door"
    )
    start.add_argument(
        "--foreground", choices=PROCESSES, metavar="PROCESS",
        help=f"become one process ({', '.join(PROCESSES)}), for systemd",
    )  # fmt: skip
    start.set_defaults(command=_start)

    status = subparsers.add_parser("status", parents=[everywhere], help="processes, certificates, hospitals, run")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_status)

    stop = subparsers.add_parser("stop", parents=[everywhere], help="stop the federation's processes")
    stop.add_argument("--force", action="store_true", help="also while a run is in progress; it can be carried on")
    stop.set_defaults(command=_stop)

    run = subparsers.add_parser("run", parents=[everywhere], help="start a run over the admitted hospitals, follow it")
    run.add_argument(
        "settings", nargs="?", default="", metavar="SIMULATION-OR-CONFIG",
        help="a folder such as simulations/3_hospitals, or a YAML file of run-config keys (default: all defaults)",
    )  # fmt: skip
    run.add_argument(
        "--run-config", "-c", action="append", default=[], metavar='"KEY=VALUE ..."',
        help="set run-config keys; may be repeated, the last one wins",
    )  # fmt: skip
    run.add_argument("--resume", default="", metavar="RUN", help="carry an unfinished run on, with its own settings")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the settings, submit nothing")
    run.add_argument("--detach", action="store_true", help="submit and return; the run goes on")
    run.set_defaults(command=_run)

    one_run = argparse.ArgumentParser(add_help=False)
    one_run.add_argument("run", metavar="RUN", help="the run's name")
    follow = subparsers.add_parser("follow", parents=[one_run, everywhere], help="watch a deployed run to its end")
    follow.set_defaults(command=_follow_again)
    away = subparsers.add_parser("stop-run", parents=[one_run, everywhere], help="end a deployed run")
    away.set_defaults(command=_stop_run)

    systemd = subparsers.add_parser(
        "systemd", parents=[everywhere, listening], help="write systemd units for the federation"
    )
    systemd.add_argument(
        "--user", default="jointdiff", metavar="NAME", help="who the services run as (default: %(default)s)"
    )
    systemd.add_argument("--output", "-o", default="systemd", metavar="FOLDER", help="default: ./%(default)s")
    systemd.set_defaults(command=_systemd)


def _deployment(options: argparse.Namespace) -> Deployment:
    return Deployment(storage.home(options.home))


def _settings(options: argparse.Namespace, deployment: Deployment) -> Settings:
    """Return what was asked for; what was not said stays as it was at the last start."""
    last = deployment.settings
    return Settings(
        host=options.host or last.host,
        port=last.port if options.port is None else options.port,
        superlink_port=last.superlink_port if options.superlink_port is None else options.superlink_port,
        front_door=not options.no_front_door,
    )


def _start(options: argparse.Namespace) -> None:
    deployment = _deployment(options)
    settings = _settings(options, deployment)
    if options.foreground:
        superlink.run_in_foreground(deployment, options.foreground, settings)
    _say("Starting the federation (10 to 20 s) ...")
    superlink.start(deployment, settings, _say)
    for service in deployment.services():
        if running := service.running():
            _say(f"{service.name} runs: process {running.pid}, log {service.log}")
    from server.deployment import admission, certificates

    for line in (*admission.settle(deployment.home), *certificates.warnings(deployment.folder)):
        _say(f"warning: {line}")
    if settings.front_door:
        _say(f"The federation listens on {settings.host}:{settings.port}.")
        _say(f"Give each site {deployment.folder.ca_crt} and this address: {_public_host(deployment)}:{settings.port}")
    else:
        _say(f"The SuperLink listens on {superlink.LOOPBACK}:{settings.superlink_port}, this machine alone.")
        _say("Without a front door nothing is published: your proxy may pass on /v1/fleet/ and /health, nothing else.")


def _public_host(deployment: Deployment) -> str:
    """Return the first of the names by which the server's certificate says that sites call it."""
    from jointdiff.certificate_checks import utc_now
    from server.deployment import certificates

    issued = {one.what: one for one in certificates.listing(deployment.folder, now=utc_now())}
    return issued["server"].names[0] if "server" in issued else "HOST"


def _status(options: argparse.Namespace) -> int:
    from server.deployment import status as deployment_status

    status = deployment_status.look(_deployment(options))
    _say(json.dumps(status.to_dict(), indent=2) if options.json else "\n".join(deployment_status.lines(status)))
    return 0 if status.ok else 1


def _stop(options: argparse.Namespace) -> None:
    deployment = _deployment(options)
    interrupted: list[str] = []
    if superlink.servers(deployment) and options.force:
        from server.deployment import deployed_run

        interrupted = deployed_run.being_written(deployment)
    if not superlink.stop(deployment, _say, force=options.force):
        _say("Nothing ran.")
        return
    _say("Who is admitted, the runs and the SuperLink's database stay. After `jointdiff-server start` the sites")
    _say("connect again by themselves, and runs that wait for their turn begin.")
    for name in interrupted:
        _say(f"The run '{name}' was interrupted; after the start: jointdiff-server run --resume {name}")


def _run(options: argparse.Namespace) -> int:
    from server.deployment import deployed_run

    deployment = _deployment(options)
    if options.resume:
        run = deployed_run.prepare_resume(deployment, options.resume, options.run_config)
    else:
        run = deployed_run.prepare(deployment, options.settings, options.run_config)
    deployed_run.check(run)
    if options.dry_run:
        import yaml

        from jointdiff.config import to_mapping

        _say(yaml.safe_dump(to_mapping(run), sort_keys=False).rstrip())
        return 0
    submitted = deployed_run.submit(deployment, run)
    _say(f"Run '{run.run_name}' over {run.num_hospitals} hospitals: {', '.join(run.hospital_names)}")
    _say(f"Run folder: {storage.run_path(deployment.home, run.run_name)}")
    if options.detach:
        _say(f"It goes on by itself. {_how(submitted, options.home)}")
        return 0
    return _follow(deployment, submitted, options.home)


def _follow_again(options: argparse.Namespace) -> int:
    from server.deployment import deployed_run

    deployment = _deployment(options)
    return _follow(deployment, deployed_run.find(deployment, options.run), options.home)


def _follow(deployment: Deployment, submitted: Submitted, home: str) -> int:
    from jointdiff.views.terminal import ProgressPrinter
    from server.deployment import deployed_run

    try:
        with ProgressPrinter() as show:
            verdict = deployed_run.follow(deployment, submitted, show, _say)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is still to be said is one line
        _say(f"\nThe run '{submitted.run_name}' goes on; only the watching has ended. {_how(submitted, home)}")
        return INTERRUPTED
    if verdict.ok:
        _say(f"Done. Report: {verdict.report}")
        return 0
    for line in verdict.log_lines:
        sys.stderr.write(f"  | {line}\n")
    again = f"To carry it on: jointdiff-server run --resume {submitted.run_name}{_where(home)}"
    raise RunError(f"The run '{submitted.run_name}' failed: {verdict.cause.rstrip('.')}. {again}")


def _how(submitted: Submitted, home: str) -> str:
    name = f"{submitted.run_name}{_where(home)}"
    return f"Watch it: jointdiff-server follow {name}. End it: jointdiff-server stop-run {name}"


def _where(home: str) -> str:
    return f" --home {home}" if home else ""


def _stop_run(options: argparse.Namespace) -> None:
    from server.deployment import deployed_run

    deployment = _deployment(options)
    deployed_run.stop_run(deployment, deployed_run.find(deployment, options.run))
    _say(f"The run '{options.run}' was stopped. To carry it on: jointdiff-server run --resume {options.run}")


def _systemd(options: argparse.Namespace) -> None:
    from jointdiff import systemd

    deployment = Deployment(storage.home_path(options.home))
    settings, home = _settings(options, deployment), deployment.home
    superlink.check_ports(settings)
    listening = ["--host", settings.host, "--port", str(settings.port)]
    listening += ["--superlink-port", str(settings.superlink_port)]
    listening += ["--no-front-door"] * (not settings.front_door)
    written = systemd.write_server_units(
        Path(options.output), home=home, user=options.user, options=listening, front_door=settings.front_door
    )
    for line in systemd.how_to_install(written, systemd.SERVER_TARGET, user=options.user, folder=home):
        _say(line)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()

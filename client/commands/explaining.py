"""`explain | audit`: what a finished model says about this site's scans, and what it gives away about them."""

from __future__ import annotations

import argparse

from client.commands.common import Commands, say, site_folder, with_site


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    explain = commands.add_parser("explain", help="what would have to change in a scan for another decision: a page")
    explain.add_argument("checkpoint", help="a run's checkpoints/best.safetensors or last.safetensors")
    explain.add_argument(
        "--image", nargs="+", required=True, metavar="PATH",
        help="the scan: an image file, a folder of them, or an npz file with an array `images`, of the size, depth and "
        "channels that the model sees; or DICOM, which is fitted as site.yaml says of the site's own",
    )  # fmt: skip
    explain.add_argument(
        "--target", default="", metavar="CLASS",
        help="name or number of the wanted class, or of the finding to turn over (default: the nearest other decision)",
    )  # fmt: skip
    explain.add_argument(
        "--output", "-o", default="", metavar="FOLDER",
        help="of the page, new or empty (default: explanations/<run>-scans-<N>/ in the site's folder)",
    )  # fmt: skip
    explain.add_argument(
        "--secondary-capture", action="store_true",
        help="write each explanation as a DICOM object (Secondary Capture) too, into dicom/ beside the page; it names "
        "the patient only where the site's policy shows names",
    )  # fmt: skip
    explain.set_defaults(command=_explain)
    audit = commands.add_parser(
        "audit", help="attack a finished run's model with this site's own data: a page that stays"
    )
    audit.add_argument("run", metavar="RUN-OR-CHECKPOINT", help="a run's folder or name, or a .safetensors file")
    audit.add_argument("--hospital", type=int, default=1, help="which of the run's hospitals this is (default: 1)")
    audit.add_argument(
        "--references", type=int, default=2, metavar="K",
        help="reference models to train here for the likelihood ratio, even; each takes what this site's share of the "
        "run took; 0 = none (default: %(default)s)",
    )  # fmt: skip
    audit.add_argument(
        "--inversions", type=int, default=2, metavar="N",
        help="images to draw from their update; minutes each; 0 = none (default: %(default)s)",
    )  # fmt: skip
    audit.set_defaults(command=_audit)
    for parser in (explain, audit):
        parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    with_site(explain)
    audit.add_argument(
        "--site", default="", metavar="PATH",
        help="where audit/<run>/ goes, the ledger is, and, of a run of real hospitals, whose data are attacked: a "
        "site.yaml or the folder that holds it (default: this "
        "hospital's folder in the run's, else the home)",
    )  # fmt: skip


def _explain(options: argparse.Namespace) -> None:
    from client.explain import Request, explain_own

    request = Request(
        options.checkpoint, options.image, options.target, options.output, options.site, options.device,
        options.secondary_capture,
    )  # fmt: skip
    page = explain_own(request, say=say)
    say(f"Explanations, for this site alone: {page}")


def _audit(options: argparse.Namespace) -> None:
    from client.audit import Request, audit_run

    folder = str(site_folder(options)) if options.site else ""
    request = Request(
        options.run, folder, options.hospital, options.references, options.inversions, options.device
    )  # fmt: skip
    page = audit_run(request, progress=say)
    say(f"Audit, for this site alone: {page}")

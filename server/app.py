"""The Flower ServerApp: read the run-config, run the rounds, say where the report is. Nothing else happens here.

An exception leaves this function, so that Flower records the run as failed; its reason is also in the run's events.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from jointdiff.config import parse_run_config
from jointdiff.views.terminal import ProgressPrinter
from server.rounds import run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation over Flower's grid."""
    run = parse_run_config(context.run_config)
    with ProgressPrinter() as progress:
        run_federation(grid, run, callback=progress)

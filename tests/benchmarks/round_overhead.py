"""Seconds per round beside Flower's plain FedAvg: `python tests/benchmarks/round_overhead.py`.

One run of Flower's simulation, three hospitals on three SuperNodes that take turns with both loops, repeated: local
work of one second, then none. Ours checks, spools, merges and saves a durable state every round; Flower's averages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from simulations.checks import app_defaults, find_app
from simulations.flower_daemon import FlowerDaemon
from simulations.resources import of_this_machine

_APPS = """
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

SHAPES = {f"layer-{k}": (100, 1000) for k in range(4)}
client = ClientApp()
app = ServerApp()

@client.train()
def train(message, context):
    records = message.content.config_records
    ours = "instructions" in records
    asked = json.loads(str(records["instructions"]["json"])) if ours else {}
    time.sleep(asked["config"]["run"]["local-steps"] - 1 if ours else float(records["config"]["seconds"]))
    arrays = message.content.array_records["arrays"]
    if ours:
        from jointdiff.protocol import RoundReport
        from server.replies import from_arrays, to_arrays
        changed = to_arrays({n: t + np.float32(0.01) for n, t in from_arrays(arrays).items()})
    else:
        changed = ArrayRecord({n: Array(a.numpy() + np.float32(0.01)) for n, a in arrays.items()})
    content = RecordDict({"arrays": changed})
    if ours:
        report = RoundReport(asked["hospital"], num_images=10)
        content["report"] = ConfigRecord({"json": report.to_json()})
    else:
        content["metrics"] = MetricRecord({"num-examples": 10})
    return Message(content, reply_to=message)

def flowers(grid, rounds, seconds):
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    start = ArrayRecord({n: Array(np.zeros(s, np.float32)) for n, s in SHAPES.items()})
    strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({"seconds": float(seconds)}))

def ours(grid, rounds, seconds, folder):
    from jointdiff.config import Config, RunConfig
    from jointdiff.record import RunRecord
    from server.hospitals import Hospitals
    from server.merging import merge, outliers
    from server.questions import Questions
    from server.replies import check_update
    from server.run_state import RunState, write_state
    run = RunConfig(num_hospitals=3, run_name="overhead", local_steps=seconds + 1)
    config, weights = Config(run=run), {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(folder, config)
    questions = Questions(Hospitals(grid, ["a", "b", "c"]), config, record)
    for number in range(1, rounds + 1):
        record.event("round_started", round=number, num_rounds=rounds, hospitals=["a", "b", "c"])
        with questions.ask("train", number, weights, minimum=3,
                           check=lambda _, t: check_update(t, like=weights),
                           check_all=lambda r, s: outliers(r, s, weights)) as answers:
            weights, _ = merge(answers.good, answers.spool, run, weights=weights, moments={})
        write_state(folder, RunState(number, weights, weights))
        record.event("round_aggregated", round=number, num_replies=3, duration_s=0.0, metrics={})

@app.main()
def main(grid, context):
    home = Path(context.run_config["home"])
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.2)
    flowers(grid, 2, 0)  # starts Ray's workers
    found = []
    for repeat in range(int(context.run_config["seed"])):
        for seconds in (1, 0):
            for name in ("flower", "ours") if repeat % 2 else ("ours", "flower"):
                began, rounds = time.perf_counter(), 5
                if name == "flower":
                    flowers(grid, rounds, seconds)
                else:
                    ours(grid, rounds, seconds, home / f"{repeat}-{seconds}")
                found.append({"loop": name, "local_s": seconds, "round_s": (time.perf_counter() - began) / rounds})
    (home / "found.json").write_text(json.dumps(found))
"""


def main() -> None:
    """Print seconds per round of both loops, and the ratio of each pair measured side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    simulation = find_app("3_hospitals")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        app = home / "app"
        app.mkdir()
        text = (simulation / "pyproject.toml").read_text()
        text = text.replace("server.app:app", "overhead_apps:app").replace("client.app:app", "overhead_apps:client")
        (app / "pyproject.toml").write_text(text)
        (home / "overhead_apps.py").write_text(_APPS)
        settings = {**app_defaults(simulation), "home": str(home), "seed": options.repeats}
        shared = of_this_machine("cpu", 3)
        environment = {**shared.environment, "PYTHONPATH": str(home)}
        with FlowerDaemon(home / "flower", extra_environment=environment) as daemon:
            run_id = daemon.submit(app, settings, {**shared.federation, "num-supernodes": 3})
            while not (status := daemon.status(run_id)).is_finished:
                time.sleep(2)
        if not (home / "found.json").exists():
            raise SystemExit(f"The run ended without numbers: {status}")
        found = json.loads((home / "found.json").read_text())
    print("| local work | Flower's FedAvg, s per round | ours, s per round | ratio, median (min to max) |")
    print("|---|---|---|---|")
    for seconds in (1, 0):
        times = {
            loop: [f["round_s"] for f in found if (f["loop"], f["local_s"]) == (loop, seconds)]
            for loop in ("flower", "ours")
        }
        ratios = [b / a for a, b in zip(times["flower"], times["ours"], strict=True)]
        cells = [f"{statistics.median(times[loop]):.3f}" for loop in ("flower", "ours")]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {seconds} s | {' | '.join(cells)} | {spread} |")


if __name__ == "__main__":
    main()
